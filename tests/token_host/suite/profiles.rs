//! Vendors' tokens as their documentation describes them: SoftHSM behind a profile of `tests/faulty-token`.

use std::{collections::BTreeMap, path::Path};

use testkit::{faulty, softhsm::module_path};

use super::modules::{Capability, Key, Module};

/// A profile of `tests/faulty-token/src/profile/table.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// YubiHSM 2.
    YubiHsm,
    /// AWS CloudHSM, whose AES key wrap has a number of its own.
    CloudHsm,
    /// The same with CKM_RSA_AES_KEY_WRAP.
    CloudHsmRsaAes,
    /// Thales Luna.
    Luna,
    /// Entrust nShield with a card set or softcard.
    NShield,
    /// The same with keys that the module alone protects.
    NShieldModule,
    /// Nitrokey NetHSM.
    NetHsm,
    /// Google Cloud KMS.
    CloudKms,
    /// A smart card.
    SmartCard,
    /// A token without RSA-OAEP.
    NoOaep,
}

/// The vendor's number of RFC 5649 at AWS.
pub const CLOUDHSM_KWP: &str = "0x8000216f";

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Self::YubiHsm => "yubihsm",
            Self::CloudHsm => "cloudhsm",
            Self::CloudHsmRsaAes => "cloudhsm-rsa-aes",
            Self::Luna => "luna",
            Self::NShield => "nshield",
            Self::NShieldModule => "nshield-module",
            Self::NetHsm => "nethsm",
            Self::CloudKms => "cloud-kms",
            Self::SmartCard => "smart-card",
            Self::NoOaep => "no-oaep",
        }
    }

    /// Why the profile cannot do something; `None` if it can.
    pub fn cannot(self, what: Capability) -> Option<&'static str> {
        use Capability::{
            Generate, HelperKey, KwpNumber, Local, OaepSha256, RefuseRecovery, Restrict, SignOnly, StoreCertificate,
            Take, Unmodifiable, Unwrap, WrapOut,
        };
        match (self, what) {
            (Self::NetHsm | Self::CloudKms, Generate(_) | HelperKey(_) | Take(_) | Unwrap(_)) => {
                Some("keys are made by the vendor's own interface, and PKCS#11 writes nothing")
            }
            (Self::NetHsm | Self::CloudKms, _) => None,
            (Self::SmartCard, HelperKey(_)) => Some("the card has room for one key"),
            (Self::Luna | Self::NoOaep, Generate(Key::Ed25519) | HelperKey(Key::Ed25519) | Take(Key::Ed25519)) => {
                self.takes(what)
            }
            (
                Self::YubiHsm
                | Self::CloudHsm
                | Self::CloudHsmRsaAes
                | Self::NShield
                | Self::NShieldModule
                | Self::SmartCard,
                Generate(Key::Ed25519) | HelperKey(Key::Ed25519) | Take(Key::Ed25519) | Unwrap(Key::Ed25519),
            ) => Some("the profile has no Ed25519"),
            (Self::YubiHsm, Unwrap(_)) => Some("a YubiHSM unwraps with keys of the vendor's own type only"),
            (Self::SmartCard, Unwrap(_)) => Some("smart cards do not unwrap private keys"),
            (
                Self::YubiHsm
                | Self::CloudHsm
                | Self::CloudHsmRsaAes
                | Self::NShield
                | Self::NShieldModule
                | Self::SmartCard,
                Restrict,
            ) => Some("the attribute is unknown to the library"),
            (Self::CloudHsm | Self::CloudHsmRsaAes, Unmodifiable) => Some("CKA_MODIFIABLE must be true"),
            (Self::CloudHsm | Self::CloudHsmRsaAes, StoreCertificate) => Some("there are key objects only"),
            (Self::CloudHsm | Self::CloudHsmRsaAes, RefuseRecovery) => {
                Some("CKA_SIGN_RECOVER must be equal to CKA_SIGN")
            }
            (Self::Luna, WrapOut(_)) => Some("SoftHSM does not wrap with CKM_AES_CBC_PAD"),
            (Self::CloudHsmRsaAes, WrapOut(_)) => Some("SoftHSM does not wrap with CKM_RSA_AES_KEY_WRAP"),
            (Self::YubiHsm | Self::SmartCard, WrapOut(_)) => Some("the profile has no wrapping key"),
            (_, Take(_)) => self.takes(what),
            (_, KwpNumber | OaepSha256 | Unwrap(_) | WrapOut(_)) => Module::SoftHsm.cannot(what),
            (
                _,
                Generate(_) | HelperKey(_) | Local | RefuseRecovery | Restrict | SignOnly(_) | StoreCertificate
                | Unmodifiable,
            ) => None,
        }
    }

    /// C_CreateObject of private keys.
    fn takes(self, what: Capability) -> Option<&'static str> {
        match (self, what) {
            (
                Self::CloudHsm | Self::CloudHsmRsaAes | Self::Luna | Self::NShield | Self::NShieldModule,
                Capability::Take(_),
            ) => Some("the vendor forbids C_CreateObject of private keys"),
            _ => None,
        }
    }

    /// The level of its imports.
    pub fn level(self) -> &'static str {
        match self {
            Self::CloudHsm => "vendor_kwp_under_rsa_oaep",
            Self::CloudHsmRsaAes => "rsa_aes_key_wrap",
            Self::Luna => "aes_cbc_pad_under_rsa_oaep",
            Self::NoOaep => "aes_key_generated_in_token",
            Self::YubiHsm | Self::NShield | Self::NShieldModule | Self::NetHsm | Self::CloudKms | Self::SmartCard => {
                "aes_kwp_under_rsa_oaep"
            }
        }
    }

    /// The flags with which its imports are made.
    pub fn import_flags(self) -> &'static [&'static str] {
        if self == Self::CloudHsm { &["--kwp-mechanism", CLOUDHSM_KWP] } else { &[] }
    }

    /// Whether it is used without a PIN.
    pub fn has_no_login(self) -> bool {
        matches!(self, Self::CloudKms | Self::NShieldModule)
    }

    /// Environment variables of the library, in addition to SoftHSM's.
    pub fn environment(self, directory: &Path) -> BTreeMap<String, String> {
        let path = |name: &str| directory.join(name).display().to_string();
        let variables = [
            ("FAULTY_TOKEN_MODULE", module_path().display().to_string()),
            ("FAULTY_TOKEN_CONTROL", path("faults")),
            ("FAULTY_TOKEN_PROFILE", self.name().to_owned()),
            ("FAULTY_TOKEN_PIN_FILE", path("pin")),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    pub fn library() -> std::path::PathBuf {
        faulty::MODULE.clone()
    }
}
