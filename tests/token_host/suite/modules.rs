//! The modules, and what each of them cannot do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::softhsm::{self, PIN, SO_PIN};

/// The label of every token here.
pub const LABEL: &str = "suite";

/// An independent PKCS#11 module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// SoftHSM 2, of the distribution.
    SoftHsm,
    /// Kryoptic of the Latchset project, built by tests/modules.sh.
    Kryoptic,
    /// The softoken of Mozilla's NSS, of the distribution.
    Nss,
}

/// A type of CA key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Ed25519,
    P256,
    P384,
    Rsa2048,
}

/// Something that a token does or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Make such a key.
    Generate(Key),
    /// Take such a key in the clear, and sign with it.
    Take(Key),
    /// Take such a key wrapped, and sign with it.
    Unwrap(Key),
    /// RSA-OAEP with SHA-256.
    OaepSha256,
    /// AES-KWP under the standard's number, CKM_AES_KEY_WRAP_KWP.
    KwpNumber,
    /// Wrap an extractable key out, so that the refusal to wrap ours means something.
    WrapOut(Key),
    /// Restrict a key to one mechanism (CKA_ALLOWED_MECHANISMS).
    Restrict,
    /// Make an object unmodifiable (CKA_MODIFIABLE).
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
    /// Why the module cannot do something; `None` when it can. Checked by every case: neither answer is believed.
    pub fn cannot(self, what: Capability) -> Option<&'static str> {
        use Capability::{Generate, KwpNumber, OaepSha256, Take, Unwrap, WrapOut};
        match (self, what) {
            (Self::SoftHsm, Unwrap(Key::Ed25519)) => Some("SoftHSM before 2.7 unwraps no CKK_EC_EDWARDS key"),
            (Self::SoftHsm, WrapOut(Key::Ed25519)) => {
                Some("SoftHSM before 2.7 wraps no CKK_EC_EDWARDS key, not even one that may go")
            }
            (Self::SoftHsm, OaepSha256) => Some("SoftHSM knows RSA-OAEP with SHA-1 alone"),
            (Self::SoftHsm, KwpNumber) => Some("SoftHSM has RFC 5649 under the older number, CKM_AES_KEY_WRAP_PAD"),
            (Self::Kryoptic, Generate(Key::Ed25519) | Take(Key::Ed25519) | Unwrap(Key::Ed25519)) => {
                Some("Kryoptic has Ed25519 with OpenSSL 3.2 and later; Debian 12 has 3.0")
            }
            (Self::Nss, Generate(_) | Take(_) | Unwrap(_)) => Some(
                "NSS stores no key that is restricted to a mechanism, forgets usage flags, and wraps keys out that are \
                 not extractable: the program refuses to put one there; certutil does",
            ),
            _ => None,
        }
    }

    /// The library.
    ///
    /// # Panics
    /// When it is missing: a missing module is a failure, never a skip.
    pub fn path(self) -> PathBuf {
        let candidates: Vec<PathBuf> = match self {
            Self::SoftHsm => return softhsm::module_path(),
            Self::Kryoptic => {
                let cache = std::env::var_os("XDG_CACHE_HOME")
                    .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
                vec![cache.join("istio-hsm-ca/kryoptic-1.5.4/libkryoptic_token.so")]
            }
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

    /// What the library reads from its environment.
    pub fn environment(self, directory: &Path) -> BTreeMap<String, String> {
        let (name, file) = match self {
            Self::SoftHsm => ("SOFTHSM2_CONF", "softhsm2.conf"),
            Self::Kryoptic => ("KRYOPTIC_CONF", "kryoptic.conf"),
            Self::Nss => return BTreeMap::new(),
        };
        BTreeMap::from([(name.to_owned(), directory.join(file).display().to_string())])
    }

    /// What the library is given at C_Initialize.
    pub fn parameters(self, directory: &Path) -> Option<String> {
        (self == Self::Nss).then(|| {
            let database = directory.join("nss");
            format!(
                "configdir='sql:{}' certPrefix='' keyPrefix='' secmod='secmod.db' dbTokenDescription='{LABEL}'",
                database.display()
            )
        })
    }

    /// Makes a token in a directory of its own.
    pub fn make_token(self, directory: &Path) {
        let path = |name: &str| directory.join(name).display().to_string();
        match self {
            Self::SoftHsm => {
                fs::create_dir(directory.join("tokens")).unwrap();
                let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", path("tokens"));
                fs::write(directory.join("softhsm2.conf"), text).unwrap();
                let words = ["--init-token", "--free", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN];
                self.tool("softhsm2-util", directory, &words);
            }
            Self::Kryoptic => {
                let text = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", path("kryoptic.sql"));
                fs::write(directory.join("kryoptic.conf"), text).unwrap();
                let module = self.path().display().to_string();
                let first = ["--module", &module, "--slot", "1", "--init-token", "--label", LABEL, "--so-pin", SO_PIN];
                self.tool("pkcs11-tool", directory, &first);
                let login = ["--login", "--login-type", "so", "--so-pin", SO_PIN, "--init-pin", "--new-pin", PIN];
                let second = [&["--module", &module, "--slot", "1"], &login[..]].concat();
                self.tool("pkcs11-tool", directory, &second);
            }
            Self::Nss => {
                fs::create_dir(directory.join("nss")).unwrap();
                let database = format!("sql:{}", path("nss"));
                let pin = path("pin");
                self.tool("certutil", directory, &["-N", "-d", &database, "-f", &pin]);
            }
        }
    }

    /// Has the vendor's own tool make a P-256 key with a self-signed CA certificate; answers the certificate.
    pub fn make_key(self, directory: &Path) -> String {
        assert_eq!(self, Self::Nss, "the other modules take keys from the program");
        let path = |name: &str| directory.join(name).display().to_string();
        let mut noise = [0; 64];
        aws_lc_rs::rand::fill(&mut noise).unwrap();
        fs::write(directory.join("noise"), noise).unwrap();
        let script = format!(
            "printf 'y\\n-1\\ny\\n' | certutil -S -x -d 'sql:{}' -f '{}' -z '{}' -n ca -s 'CN=Suite,O=Suite' -w -1 -k ec \
             -q nistp256 -t C,, -v 120 -m 4711 -2 --keyUsage certSigning,crlSigning \
             --keyAttrFlags token,private,sensitive,unextractable",
            path("nss"),
            path("pin"),
            path("noise")
        );
        self.tool("sh", directory, &["-c", &script]);
        self.tool("certutil", directory, &["-L", "-d", &format!("sql:{}", path("nss")), "-n", "ca", "-a"])
    }

    fn tool(self, program: &str, directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .envs(self.environment(directory))
            .output()
            .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): run tests/modules.sh"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
        out
    }
}
