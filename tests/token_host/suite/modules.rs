//! The modules, and what each of them cannot do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use testkit::{
    plug_in::{self, PlugIn},
    softhsm::{self, PIN, SO_PIN},
};

use super::profiles::Profile;

/// Label of every token here.
pub const LABEL: &str = "suite";

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
    /// tpm2-pkcs11 on a software TPM (swtpm) behind a resource manager (tpm2-abrmd), of the distribution.
    Tpm2,
    /// SoftHSM behind a vendor's profile.
    Profile(Profile),
}

/// The programs that a module needs while it is used; they end with this value.
#[derive(Default)]
pub struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
    }
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
    /// Restricting a key to one mechanism (CKA_ALLOWED_MECHANISMS).
    Restrict,
    /// Storing a certificate object.
    StoreCertificate,
    /// Refusing signatures with recovery (CKA_SIGN_RECOVER).
    SignOnly,
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
        use Capability::{Generate, HelperKey, KwpNumber, OaepSha256, Take, Unwrap, WrapOut};
        match (self, what) {
            (Self::Profile(profile), _) => profile.cannot(what),
            (_, HelperKey(key)) if self.cannot(Generate(key)).is_some() => self.cannot(Generate(key)),
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
            (Self::P11Kit, Unwrap(_)) => Some("p11-kit 0.24 forwards no mechanism that unwraps keys with AES"),
            (Self::P11Kit, WrapOut(_)) => Some("p11-kit 0.24 forwards no mechanism that wraps keys with AES"),
            (Self::P11Kit, Generate(Key::Ed25519) | Take(Key::Ed25519)) => Some("p11-kit 0.24 forwards no Ed25519"),
            (Self::Tpm2, Generate(Key::Ed25519)) => Some("TPMs have no Ed25519"),
            (Self::Tpm2, Take(_) | Unwrap(_)) => {
                Some("tpm2-pkcs11 has neither C_UnwrapKey nor C_CreateObject of private keys; tpm2_ptool imports keys")
            }
            _ => None,
        }
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
            Self::Nss => Vec::new(),
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

    /// Makes a token in a directory of its own, and starts what its module needs.
    pub fn make_token(self, directory: &Path) -> Servers {
        let path = |name: &str| directory.join(name).display().to_string();
        let mut servers = Servers::default();
        match self {
            Self::Profile(_) => return Self::SoftHsm.make_token(directory),
            Self::P11Kit => {
                Self::SoftHsm.make_token(directory);
                let arguments =
                    ["server", "--foreground", "--name", &path("p11-kit.sock"), "--provider", &softhsm(), "pkcs11:"];
                let environment = Self::SoftHsm.environment(directory);
                servers.start("p11-kit", &arguments, &environment, &directory.join("p11-kit.sock"));
            }
            Self::Tpm2 => {
                let environment = self.environment(directory);
                for name in ["swtpm", "tpm2"] {
                    fs::create_dir(directory.join(name)).unwrap();
                }
                let state = format!("dir={}", path("swtpm"));
                let [server, control] =
                    ["swtpm.sock", "swtpm.sock.ctrl"].map(|name| format!("type=unixio,path={}", path(name)));
                let arguments = [
                    "socket",
                    "--tpm2",
                    "--tpmstate",
                    &state,
                    "--server",
                    &server,
                    "--ctrl",
                    &control,
                    "--flags",
                    "not-need-init,startup-clear",
                ];
                servers.start("swtpm", &arguments, &environment, &directory.join("swtpm.sock"));
                fs::write(directory.join("bus.conf"), bus(&path("bus"))).unwrap();
                let configuration = format!("--config-file={}", path("bus.conf"));
                servers.start("dbus-daemon", &[&configuration, "--nofork"], &environment, &directory.join("bus"));
                let tpm = format!("--tcti=swtpm:path={}", path("swtpm.sock"));
                servers.start("tpm2-abrmd", &["--allow-root", "--session", &tpm], &environment, directory);
                let store = format!("--path={}", path("tpm2"));
                let deadline = Instant::now() + Duration::from_secs(20);
                while let Err(error) = self.try_tool("tpm2_ptool", directory, &["init", &store]) {
                    assert!(Instant::now() < deadline, "the resource manager does not answer: {error}");
                    std::thread::sleep(Duration::from_millis(200));
                }
                let pins = [format!("--sopin={SO_PIN}"), format!("--userpin={PIN}"), format!("--label={LABEL}")];
                self.tool("tpm2_ptool", directory, &["addtoken", "--pid=1", &pins[0], &pins[1], &pins[2], &store]);
            }
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
        servers
    }

    /// The level of imports that the module unwraps, and the flags with which they are made.
    pub fn level(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Profile(profile) => profile.level(),
            Self::SoftHsm | Self::Kryoptic | Self::Nss | Self::P11Kit | Self::Tpm2 => ("aes_kwp_under_rsa_oaep", &[]),
        }
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

    /// Makes a P-256 key with a self-signed CA certificate, with the vendor's own tool; returns the certificate.
    pub fn make_key(self, directory: &Path) -> String {
        let path = |name: &str| directory.join(name).display().to_string();
        if let Self::Profile(profile) = self {
            let ca = PlugIn::self_signed(plug_in::p256());
            fs::write(directory.join("vendor.der"), ca.ca.key().serialize_der()).unwrap();
            let module = softhsm::module_path().display().to_string();
            let login = ["--module", &module, "--token-label", LABEL, "--login", "--pin", PIN];
            // A name as ID, longer than any hash.
            let id: String = format!("vendor/{}/keys/istio-ca/versions/1", profile.name()).bytes().map(hex).collect();
            let key = ["--write-object", &path("vendor.der"), "--type", "privkey", "--id", &id, "--label", "istio-ca"];
            Self::SoftHsm.tool("pkcs11-tool", directory, &[&login[..], &key].concat());
            return ca.ca_cert;
        }
        assert_eq!(self, Self::Nss, "the other modules get keys by import");
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

    pub fn tool(self, program: &str, directory: &Path, arguments: &[&str]) -> String {
        self.try_tool(program, directory, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_tool(self, program: &str, directory: &Path, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(program)
            .args(arguments)
            .envs(self.environment(directory))
            .output()
            .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): run tests/modules.sh"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(out) } else { Err(format!("{program} {arguments:?}: {out}{err}")) }
    }
}

impl Servers {
    /// Starts a program and waits until a path is there.
    fn start(&mut self, program: &str, arguments: &[&str], environment: &BTreeMap<String, String>, path: &Path) {
        let child = Command::new(program)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): run tests/modules.sh"));
        self.0.push(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() {
            assert!(Instant::now() < deadline, "{program} does not make {}", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}")
}

/// A file of a package, on either machine.
fn of_distribution(name: &str) -> Vec<PathBuf> {
    ["x86_64", "aarch64"].map(|machine| PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/{name}"))).into()
}

fn softhsm() -> String {
    softhsm::module_path().display().to_string()
}

/// The configuration of a message bus of one's own.
fn bus(socket: &str) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
         <busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>\
         <allow receive_sender=\"*\"/></policy></busconfig>\n"
    )
}
