//! The modules, and what each of them cannot do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use testkit::softhsm;

use super::profiles::Profile;

/// Label of every token here.
pub const LABEL: &str = "suite";

/// The user's PIN; openCryptoki takes no more than 8 characters.
pub const PIN: &str = "1234-usr";

/// The security officer's PIN.
pub const SO_PIN: &str = "1234-off";

/// An independent PKCS#11 module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// SoftHSM 2 of the distribution.
    SoftHsm,
    /// Kryoptic of the Latchset project, built by tests/modules.sh.
    Kryoptic,
    /// The softoken of Mozilla's NSS, of the distribution.
    Nss,
    /// p11-kit's client, connected to a p11-kit server with SoftHSM behind it, of the distribution.
    P11Kit,
    /// The SoftTok of openCryptoki with its slot daemon, of the distribution.
    OpenCryptoki,
    /// tpm2-pkcs11 on a software TPM (swtpm) behind a resource manager (tpm2-abrmd), of the distribution.
    Tpm2,
    /// SoftHSM behind a vendor's profile.
    Profile(Profile),
}

/// A type of CA key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Ed25519,
    P256,
    P384,
    Rsa2048,
}

/// A feature that a token may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Generating such a key.
    Generate(Key),
    /// A helper key of such a type: the canary key (P-256), the log key (Ed25519).
    HelperKey(Key),
    /// Importing such a key in the clear, and signing with it.
    Take(Key),
    /// Unwrapping such a key, and signing with it.
    Unwrap(Key),
    /// RSA-OAEP with SHA-256.
    OaepSha256,
    /// AES-KWP with the standard's mechanism number, CKM_AES_KEY_WRAP_KWP.
    KwpNumber,
    /// Wrapping an extractable key, without which the refusal to wrap ours proves nothing.
    WrapOut(Key),
    /// Remembering that a key was generated in the token (CKA_LOCAL).
    Local,
    /// Restricting a key to one mechanism (CKA_ALLOWED_MECHANISMS).
    Restrict,
    /// Storing a certificate object.
    StoreCertificate,
    /// Letting such a key sign and do nothing else, if it is imported.
    SignOnly(Key),
    /// Refusing signatures with recovery (CKA_SIGN_RECOVER) by a key that may only sign.
    RefuseRecovery,
    /// Making an object unmodifiable (CKA_MODIFIABLE).
    Unmodifiable,
}

impl Key {
    /// Its name for `generate --algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa-2048",
        }
    }
}

impl Module {
    /// Why the module cannot do something; `None` if it can. Verified in every case.
    pub fn cannot(self, what: Capability) -> Option<&'static str> {
        use Capability::{
            Generate, HelperKey, KwpNumber, Local, OaepSha256, Restrict, SignOnly, Take, Unwrap, WrapOut,
        };
        match (self, what) {
            (Self::Profile(profile), _) => profile.cannot(what),
            (_, HelperKey(key)) if self.cannot(Generate(key)).is_some() => self.cannot(Generate(key)),
            (Self::SoftHsm, Unwrap(Key::Ed25519)) => Some("SoftHSM before 2.7 unwraps no CKK_EC_EDWARDS key"),
            (Self::SoftHsm, WrapOut(Key::Ed25519)) => {
                Some("SoftHSM before 2.7 wraps no CKK_EC_EDWARDS key, not even one that may go")
            }
            (Self::SoftHsm | Self::P11Kit, OaepSha256) => Some("SoftHSM knows RSA-OAEP with SHA-1 alone"),
            (Self::SoftHsm, KwpNumber) => Some("SoftHSM has RFC 5649 under the older number, CKM_AES_KEY_WRAP_PAD"),
            (Self::Kryoptic, Generate(Key::Ed25519) | Take(Key::Ed25519) | Unwrap(Key::Ed25519)) => {
                Some("Kryoptic has Ed25519 with OpenSSL 3.2 and later; Debian 12 has 3.0")
            }
            (Self::Nss, Unwrap(Key::P256 | Key::P384)) => {
                Some("NSS unwraps an elliptic-curve key only with its own attribute for the public key")
            }
            (Self::Nss, Generate(Key::Ed25519) | Take(Key::Ed25519) | Unwrap(Key::Ed25519)) => {
                Some("NSS 3.87 has no Ed25519")
            }
            (Self::Nss, WrapOut(_)) => Some("NSS says too little about the length of a key wrapped with AES-KWP"),
            (Self::Nss, SignOnly(Key::Rsa2048)) => {
                Some("NSS lets each RSA key that it unwraps decrypt, unwrap keys, and sign with recovery")
            }
            (Self::Nss, Local) => Some("NSS forgets CKA_LOCAL of an object that is copied"),
            (Self::Nss, Restrict) => Some("NSS has no place for CKA_ALLOWED_MECHANISMS in its database"),
            (Self::OpenCryptoki, Restrict) => Some("SoftTok knows no CKA_ALLOWED_MECHANISMS"),
            (Self::OpenCryptoki, WrapOut(_)) => Some("SoftTok protects no key that it unwraps for wrapping it out"),
            (
                Self::OpenCryptoki,
                Generate(Key::P256 | Key::P384 | Key::Ed25519)
                | Take(Key::P256 | Key::P384 | Key::Ed25519)
                | Unwrap(Key::P256 | Key::P384 | Key::Ed25519),
            ) => Some("openCryptoki 3.8's SoftTok has no elliptic curves"),
            (Self::P11Kit, Unwrap(Key::Rsa2048 | Key::Ed25519)) => {
                Some("p11-kit 0.24 forwards no mechanism that unwraps keys with AES, only RSA-OAEP, for short keys")
            }
            (Self::P11Kit, WrapOut(_)) => Some("p11-kit 0.24 forwards no mechanism that wraps keys with AES"),
            (Self::P11Kit, Generate(Key::Ed25519) | Take(Key::Ed25519)) => Some("p11-kit 0.24 forwards no Ed25519"),
            (Self::Tpm2, Generate(Key::Ed25519)) => Some("TPMs have no Ed25519"),
            (Self::Tpm2, Take(_) | Unwrap(_)) => {
                Some("tpm2-pkcs11 has neither C_UnwrapKey nor C_CreateObject of private keys; tpm2_ptool imports keys")
            }
            _ => None,
        }
    }

    /// The level by which it unwraps such a key, as in a receipt.
    pub fn level(self, key: Key) -> &'static str {
        match (self, key) {
            (Self::Profile(profile), _) => profile.level(),
            (Self::OpenCryptoki, _) => "aes_cbc_pad_under_rsa_oaep",
            (Self::P11Kit, Key::P256 | Key::P384) => "rsa_oaep",
            _ => "aes_kwp_under_rsa_oaep",
        }
    }

    /// The flags with which such a key is imported: what must be accepted, or a vendor's mechanism.
    pub fn import_flags(self, key: Key) -> &'static [&'static str] {
        match (self, key) {
            (Self::Profile(profile), _) => profile.import_flags(),
            (Self::Nss, Key::Rsa2048) => &["--allow-decrypt", "--allow-unwrap"],
            _ => &[],
        }
    }

    /// The flags that accept the weaknesses of a key made by [`Module::make_key`].
    pub fn adopt_flags(self) -> &'static [&'static str] {
        match self {
            Self::Profile(_) => &["--allow-decrypt", "--allow-unwrap", "--allow-derive"],
            _ => &["--allow-derive"],
        }
    }

    /// The key of [`super::place::Place::filled`].
    pub fn usual_key(self) -> Key {
        if self == Self::OpenCryptoki { Key::Rsa2048 } else { Key::P256 }
    }

    /// Path of the library.
    ///
    /// # Panics
    /// If it is missing: a missing module is a failure, never a skip.
    pub fn path(self) -> PathBuf {
        let candidates: Vec<PathBuf> = match self {
            Self::SoftHsm => return softhsm::module_path(),
            Self::Profile(_) => return Profile::library(),
            Self::Kryoptic => {
                let cache = std::env::var_os("XDG_CACHE_HOME")
                    .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
                vec![cache.join("istio-hsm-ca/kryoptic-1.5.4/libkryoptic_token.so")]
            }
            Self::OpenCryptoki => of_distribution("pkcs11/libopencryptoki.so"),
            Self::P11Kit => of_distribution("pkcs11/p11-kit-client.so"),
            Self::Tpm2 => of_distribution("libtpm2_pkcs11.so.1"),
            Self::Nss => ["x86_64", "aarch64"]
                .iter()
                .flat_map(|machine| {
                    let directory = PathBuf::from(format!("/usr/lib/{machine}-linux-gnu"));
                    [directory.join("libsoftokn3.so"), directory.join("nss/libsoftokn3.so")]
                })
                .collect(),
        };
        let found = candidates.iter().find(|path| path.exists());
        found.unwrap_or_else(|| panic!("{self:?} is missing ({candidates:?}): run tests/modules.sh")).clone()
    }

    /// Environment variables of the library.
    pub fn environment(self, directory: &Path) -> BTreeMap<String, String> {
        let path = |name: &str| directory.join(name).display().to_string();
        let variables = match self {
            Self::SoftHsm => vec![("SOFTHSM2_CONF", path("softhsm2.conf"))],
            Self::Profile(profile) => {
                let mut all = Self::SoftHsm.environment(directory);
                all.extend(profile.environment(directory));
                return all;
            }
            Self::Kryoptic => vec![("KRYOPTIC_CONF", path("kryoptic.conf"))],
            Self::Nss | Self::OpenCryptoki => Vec::new(),
            Self::P11Kit => vec![("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", path("p11-kit.sock")))],
            Self::Tpm2 => vec![
                ("TPM2_PKCS11_STORE", path("tpm2")),
                ("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session".to_owned()),
                ("TPM2TOOLS_TCTI", "tabrmd:bus_type=session".to_owned()),
                ("TPM2_PKCS11_LOG_LEVEL", "0".to_owned()),
                ("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", path("bus"))),
            ],
        };
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Parameters of the library for C_Initialize.
    pub fn parameters(self, directory: &Path) -> Option<String> {
        (self == Self::Nss).then(|| {
            let database = directory.join("nss");
            format!(
                "configdir='sql:{}' certPrefix='' keyPrefix='' secmod='secmod.db' dbTokenDescription='{LABEL}'",
                database.display()
            )
        })
    }

    /// Time limit of a call.
    pub fn call_timeout(self) -> Duration {
        match self.hanging_hosts() {
            0 => Duration::from_secs(10),
            _ => Duration::from_secs(2),
        }
    }

    /// How many token hosts hang.
    pub fn hanging_hosts(self) -> u64 {
        u64::from(self == Self::Profile(Profile::Luna))
    }

    /// Whether the token is used without a PIN.
    pub fn has_no_login(self) -> bool {
        matches!(self, Self::Profile(profile) if profile.has_no_login())
    }
}

/// A file of a package, on either machine.
fn of_distribution(name: &str) -> Vec<PathBuf> {
    ["x86_64", "aarch64"].map(|machine| PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/{name}"))).into()
}
