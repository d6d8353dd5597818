//! The token suite: `import`, `generate`, `inspect`, `check` and `serve` with each module available for tests.
//!
//! SoftHSM's part runs with the other tests (`make test`); the other modules' parts are ignored until `make
//! test-tokens` has installed the modules. What a module cannot do is a predicate with its reason
//! ([`modules::Module::cannot`]), and a module that unexpectedly can do it fails the test. To add a module: its path,
//! how it creates a token, what it cannot do, and an annotated configuration in `hsm-config/`.

mod adopted;
mod cases;
mod ceremonies;
mod documented;
mod failures;
mod modules;
mod place;
mod profiles;
mod servers;
mod set_up;
mod two;

use modules::{Key, Module};
use profiles::Profile;

/// Each case with each key on one module.
macro_rules! suite {
    ($name:ident, $module:ident $(, $ignore:meta)?) => {
        mod $name {
            use super::{Key, Module, cases, ceremonies};

            const MODULE: Module = Module::$module;

            suite!(@cases MODULE, [$($ignore)?], rsa_2048 Rsa2048, p256 P256, p384 P384, ed25519 Ed25519);

            #[tokio::test(flavor = "multi_thread")]
            $(#[$ignore])?
            async fn signing_recovers_after_failures() {
                cases::recovers(MODULE).await;
            }

            #[test]
            $(#[$ignore])?
            fn root_is_created_renewed_and_destroyed_by_ceremonies() {
                ceremonies::root(MODULE);
            }

            #[tokio::test(flavor = "multi_thread")]
            $(#[$ignore])?
            async fn sampled_faults_are_not_noticed() {
                cases::sampled_faults(MODULE).await;
            }

            #[test]
            $(#[$ignore])?
            fn a_wrong_pin_is_tried_once() {
                cases::wrong_pin(MODULE);
            }
        }
    };
    // A vendor's token as its documentation describes it.
    ($name:ident, profile $profile:ident) => {
        mod $name {
            use super::{Key, Module, Profile, adopted, cases};

            const MODULE: Module = Module::Profile(Profile::$profile);

            suite!(@cases MODULE, [], rsa_2048 Rsa2048, p256 P256, p384 P384, ed25519 Ed25519);

            #[tokio::test(flavor = "multi_thread")]
            async fn signing_recovers_after_failures() {
                cases::recovers(MODULE).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn key_of_the_vendors_tool_is_adopted() {
                adopted::made_by_the_vendor(MODULE).await;
            }

            #[test]
            fn a_wrong_pin_is_tried_once() {
                cases::wrong_pin(MODULE);
            }
        }
    };
    (@cases $module:ident, $ignore:tt, $($key:ident $variant:ident),*) => {
        $(suite!(@case $module, $ignore, $key $variant);)*
    };
    (@case $module:ident, [$($ignore:meta)?], $key:ident $variant:ident) => {
        mod $key {
            use super::{Key, cases};

            #[tokio::test(flavor = "multi_thread")]
            $(#[$ignore])?
            async fn imported_and_serving() {
                cases::imported(super::$module, Key::$variant).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            $(#[$ignore])?
            async fn generated_and_serving() {
                cases::generated(super::$module, Key::$variant).await;
            }
        }
    };
}

suite!(softhsm, SoftHsm);
suite!(kryoptic, Kryoptic, ignore = "needs another module: make test-tokens");
suite!(nss, Nss, ignore = "needs another module: make test-tokens");
suite!(p11_kit, P11Kit, ignore = "needs another module: make test-tokens");
suite!(opencryptoki, OpenCryptoki, ignore = "needs another module: make test-tokens");
suite!(tpm2, Tpm2, ignore = "needs another module: make test-tokens");
suite!(yubihsm, profile YubiHsm);
suite!(cloudhsm, profile CloudHsm);
suite!(cloudhsm_rsa_aes, profile CloudHsmRsaAes);
suite!(luna, profile Luna);
suite!(nshield, profile NShield);
suite!(nshield_module, profile NShieldModule);
suite!(nethsm, profile NetHsm);
suite!(cloud_kms, profile CloudKms);
suite!(smart_card, profile SmartCard);
suite!(no_oaep, profile NoOaep);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn nss_serves_a_key_that_its_own_tool_has_made() {
    adopted::made_by_the_vendor(Module::Nss).await;
}
