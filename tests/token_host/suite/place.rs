//! A token of one module in a separate directory, and the commands for it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use istio_hsm_ca::token_pool::{HostEndpoint, TokenSettings};
use pki::{
    Bundle, Issuer,
    bundle::{BundleFiles, Input},
};
use process::clock;
use rcgen::{KeyPair, RsaKeySize};
use serde_json::Value;

use testkit::{faulty, plug_in::PlugIn};

use super::{
    modules::{Capability, Key, LABEL, Module, PIN},
    set_up::Servers,
};
use crate::harness::MAX_VALIDITY;

/// A self-signed CA as an operator has it.
pub fn plug_in(key: Key) -> PlugIn {
    PlugIn::self_signed(match key {
        Key::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        Key::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        Key::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        Key::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    })
}

/// Result of a command.
#[derive(Debug)]
pub struct Done {
    pub good: bool,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Its output as JSON; it must have succeeded.
    pub fn json(&self) -> Value {
        assert!(self.good, "{}\n{}", self.out, self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// Runs the program by a command that runs others.
pub fn run(mut timeout: Command, environment: &BTreeMap<String, String>, arguments: &[&str]) -> Done {
    let output = timeout
        .args(["120", env!("CARGO_BIN_EXE_istio-hsm-ca")])
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!out.contains(PIN) && !err.contains(PIN), "{arguments:?} prints the PIN");
    assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    Done { good: output.status.success(), out, err }
}

pub struct Place {
    pub module: Module,
    /// Dropped before the directory, in which the process IDs are.
    servers: Servers,
    root: tempfile::TempDir,
}

impl Place {
    pub fn new(module: Module) -> Self {
        let prefix = format!("suite-{module:?}-").to_lowercase();
        let root = tempfile::Builder::new().prefix(&prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut place = Self { module, root, servers: Servers::default() };
        place.write_pin(PIN);
        place.servers = module.make_token(place.root.path());
        place
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The programs that the module needs.
    pub fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn write_pin(&self, pin: &str) {
        fs::write(self.path("pin"), format!("{pin}\n")).unwrap();
        fs::set_permissions(self.path("pin"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn environment(&self) -> BTreeMap<String, String> {
        self.module.environment(self.root.path())
    }

    pub fn uri(&self) -> String {
        self.uri_of(&self.module.path())
    }

    fn uri_of(&self, library: &Path) -> String {
        let parameters = self.module.parameters(self.root.path()).unwrap_or_default();
        let parameters = match parameters.as_str() {
            "" => String::new(),
            text => format!("&library-parameters={}", text.replace(' ', "%20")),
        };
        let pin = match self.module.has_no_login() {
            true => String::new(),
            false => format!("&pin-source=file:{}", self.text("pin")),
        };
        format!("pkcs11:token={LABEL}?module-path={}{parameters}{pin}", library.display())
    }

    /// timeout(1) where the module works.
    pub fn timeout(&self) -> Command {
        self.module.command(self.root.path(), "timeout")
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        run(self.timeout(), &self.environment(), arguments)
    }

    /// Imports a plug-in CA.
    pub fn import(&self, ca: &PlugIn, more: &[&str]) -> Done {
        ca.write(&self.path("ca"));
        let (from, uri, bundle) = (self.text("ca"), self.uri(), self.text("bundle"));
        let words = ["--output", "json", "import", "--from", &from, "--token", &uri, "--bundle", &bundle];
        self.run(&[&words, more].concat())
    }

    /// A place whose token has the module's usual CA key, by whichever way its module supports.
    pub fn filled(module: Module) -> Self {
        let (place, key) = (Self::new(module), module.usual_key());
        if module.cannot(Capability::Unwrap(key)).is_none() {
            place.import(&plug_in(key), module.import_flags(key)).json();
        } else if module.cannot(Capability::Generate(key)).is_none() {
            place.generate(key).json();
        } else {
            place.adopt_made_by_the_vendor();
        }
        place
    }

    /// Has the vendor's own tool make a P-256 CA key, with its public files in `ca`, and adopts it. Returns the receipt.
    pub fn adopt_made_by_the_vendor(&self) -> Value {
        let certificate = self.module.make_key(self.root.path());
        fs::create_dir(self.path("ca")).unwrap();
        for (name, text) in
            [("ca-cert.pem", certificate.as_str()), ("root-cert.pem", &certificate), ("cert-chain.pem", "")]
        {
            fs::write(self.path("ca").join(name), text).unwrap();
        }
        self.adopt(self.module.adopt_flags()).json()
    }

    /// Adopts the key of the public files in `ca`.
    pub fn adopt(&self, flags: &[&str]) -> Done {
        let (from, uri, bundle) = (self.text("ca"), self.uri(), self.text("bundle"));
        let words = ["--output", "json", "adopt", "--from", &from, "--token", &uri, "--bundle", &bundle];
        self.run(&[&words, flags].concat())
    }

    /// `generate` of a self-signed root.
    pub fn generate(&self, key: Key) -> Done {
        let (uri, bundle, log) = (self.uri(), self.text("bundle"), self.text("log"));
        let words =
            ["--output", "json", "generate", "--algorithm", key.name(), "--self-signed", "--organization", "Suite"];
        let places = ["--bundle", &bundle, "--log", &log, "--log-origin", "suite.test/log", "--token", &uri];
        self.run(&[&words[..], &places].concat())
    }

    /// How many private keys the token holds.
    pub fn keys(&self) -> usize {
        let uri = self.uri();
        self.run(&["--output", "json", "inspect", "--token", &uri]).json()["keys"].as_array().unwrap().len()
    }

    /// `inspect`, with the bundle.
    pub fn inspect(&self) -> Value {
        let (uri, bundle) = (self.uri(), self.text("bundle"));
        self.run(&["--output", "json", "inspect", "--token", &uri, "--bundle", &bundle]).json()
    }

    /// `check` for a configuration with this token.
    pub fn check(&self) -> Vec<Value> {
        let environment: Vec<String> =
            self.environment().iter().map(|(name, value)| format!("{name} = '{value}'")).collect();
        fs::write(self.path("keys.json"), r#"{"keys":[]}"#).unwrap();
        let text = format!(
            "[ca]\nbundle = '{}'\n[[token]]\nname = 'one'\nuri = \"{}\"\nenvironment = {{ {} }}\n\
             [listen]\naddress = '127.0.0.1:0'\n[serving]\ndns_names = ['ca.test']\n\
             [log]\ndirectory = '{}'\n[admin]\naddress = '127.0.0.1:0'\n",
            self.text("bundle"),
            self.uri(),
            environment.join(", "),
            self.text("log"),
        );
        fs::write(self.path("config.toml"), text).unwrap();
        let config = self.text("config.toml");
        let done = self.run(&["--output", "json", "check", "--config", &config]);
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// Issuer of the bundle.
    pub fn issuer(&self) -> Arc<Issuer> {
        let input =
            |name: &str| Input { name: name.to_owned(), bytes: fs::read(self.path("bundle").join(name)).unwrap() };
        let files = BundleFiles {
            ca_cert: input("ca-cert.pem"),
            cert_chain: input("cert-chain.pem"),
            root_cert: input("root-cert.pem"),
        };
        Arc::clone(Bundle::check(files, clock::now()).unwrap().issuer())
    }

    /// The token's settings for a pool.
    pub fn token(&self, name: &str) -> TokenSettings {
        self.token_of(name, self.uri(), self.environment())
    }

    /// The same with the module that fails on command; see [`Place::breaks`].
    pub fn faulty_token(&self, name: &str) -> TokenSettings {
        let mut environment = self.environment();
        if !matches!(self.module, Module::Profile(_)) {
            environment.insert("FAULTY_TOKEN_MODULE".to_owned(), self.module.path().display().to_string());
            environment.insert("FAULTY_TOKEN_CONTROL".to_owned(), self.text("faults"));
        }
        self.token_of(name, self.uri_of(&faulty::MODULE), environment)
    }

    /// Sets the commands of the faulty module.
    pub fn breaks(&self, commands: &str) {
        fs::write(self.path("faults.new"), commands).unwrap();
        fs::rename(self.path("faults.new"), self.path("faults")).unwrap();
    }

    fn token_of(&self, name: &str, uri: String, environment: BTreeMap<String, String>) -> TokenSettings {
        let mut settings = token_host::Settings::new(uri, self.path("pin-refused"), self.path("bundle"), MAX_VALIDITY);
        settings.trust_domains = vec!["cluster.local".parse().unwrap()];
        settings.log_origins = vec!["suite.test/log".to_owned()];
        settings.call_timeout = self.module.call_timeout();
        TokenSettings {
            name: Arc::from(name),
            call_timeout: settings.call_timeout,
            keep_alive: Duration::from_secs(1),
            log_only: false,
            endpoint: HostEndpoint::Child {
                settings: Box::new(settings),
                program: Some(self.module.host_program(self.root.path())),
                environment,
            },
        }
    }
}
