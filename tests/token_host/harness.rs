//! A CA whose key is in one or more tokens, a log, and a pool with the tokens' hosts.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use audit_log::{Intent, Log, Outcome, Recorded};
use istio_hsm_ca::{
    auth::{Caller, InternalCaller},
    signer::{Context, Priority, SignError, Signed, Signer, ToBeSigned},
    token_pool::{HostEndpoint, Phase, Pool, PoolHealth, Settings, Snapshot, TokenSettings},
};
use pki::{
    Bundle, Issued, Issuer, Profile, PublicKey, Tbs, Template,
    bundle::{BundleFiles, Input},
    identity::Name,
    tbs::Serial,
};
use process::clock;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData};

use testkit::softhsm::Directory;

/// Path of the token host's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_istio-hsm-ca-token-host");
/// The label of the test's token.
pub const TOKEN: &str = "istio-ca";
/// The only workload.
pub const WORKLOAD: &str = "spiffe://cluster.local/ns/default/sa/httpbin";
/// The host's own maximum validity.
pub const MAX_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Origin of a mill's log.
pub const LOG_ORIGIN: &str = "token-host.test/log";
/// Timeout of all operations, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(30);

static WORKLOAD_KEY: LazyLock<PublicKey> = LazyLock::new(|| {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    PublicKey::from_spki_der(&pair.subject_public_key_info()).unwrap()
});

/// A P-256 CA, imported once.
static P256: LazyLock<Ca> =
    LazyLock::new(|| Ca::import(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()));

/// A plug-in CA: its bundle, and a token with its key.
pub struct Ca {
    directory: Directory,
    pub issuer: Arc<Issuer>,
}

impl Ca {
    /// Imports a key with the command, as an operator does.
    pub fn import(pair: &KeyPair) -> Self {
        let directory = Directory::new();
        directory.init_token(TOKEN);
        let (source, bundle) = (directory.path().join("source"), directory.path().join("bundle"));
        fs::create_dir(&source).unwrap();
        let certificate = root(pair);
        fs::write(source.join("ca-key.pem"), pair.serialize_pem()).unwrap();
        fs::set_permissions(source.join("ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(source.join("ca-cert.pem"), &certificate).unwrap();
        fs::write(source.join("root-cert.pem"), &certificate).unwrap();
        fs::write(source.join("cert-chain.pem"), "").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
            .args(["import", "--token", &directory.uri(TOKEN), "--from"])
            .arg(&source)
            .arg("--bundle")
            .arg(&bundle)
            .env("SOFTHSM2_CONF", directory.conf())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let written = fs::read_to_string(bundle.join("ca-cert.pem")).unwrap();
        assert_eq!(written, certificate);
        Self { directory, issuer: issuer(&certificate) }
    }

    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    /// A copy of its token, for one test.
    pub fn site(&self) -> Site {
        let directory = self.directory.duplicate();
        directory.pin_file();
        Site { uri: directory.uri(TOKEN), directory, bundle: self.bundle(), issuer: Arc::clone(&self.issuer) }
    }
}

/// A CA whose key is not in any token.
pub fn soft_issuer() -> Arc<Issuer> {
    issuer(&root(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()))
}

fn issuer(certificate: &str) -> Arc<Issuer> {
    let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", certificate),
        cert_chain: input("cert-chain.pem", ""),
        root_cert: input("root-cert.pem", certificate),
    };
    Arc::clone(Bundle::check(files, clock::now()).unwrap().issuer())
}

/// A self-signed CA certificate in PEM.
pub fn root(pair: &KeyPair) -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, "token host test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    params.self_signed(pair).unwrap().pem()
}

/// A token's directory, and the configuration of its host.
pub struct Site {
    pub directory: Directory,
    pub uri: String,
    pub bundle: PathBuf,
    pub issuer: Arc<Issuer>,
}

impl Site {
    /// A site with the P-256 key.
    pub fn new() -> Self {
        P256.site()
    }

    pub fn pin(&self) -> PathBuf {
        self.directory.path().join("pin")
    }

    pub fn marker(&self) -> PathBuf {
        self.directory.path().join("pin-refused")
    }

    pub fn host_settings(&self) -> token_host::Settings {
        let mut settings =
            token_host::Settings::new(self.uri.clone(), self.marker(), self.bundle.clone(), MAX_VALIDITY);
        settings.trust_domains = vec!["cluster.local".parse().unwrap()];
        settings.log_origins = vec![LOG_ORIGIN.to_owned()];
        settings.checkpoint_file = Some(self.directory.path().join("signed-checkpoints"));
        settings
    }

    pub fn environment(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("SOFTHSM2_CONF".to_owned(), self.directory.conf().display().to_string())])
    }

    pub fn token(&self, name: &str) -> TokenSettings {
        self.token_with(name, self.host_settings())
    }

    pub fn token_with(&self, name: &str, settings: token_host::Settings) -> TokenSettings {
        TokenSettings {
            name: Arc::from(name),
            call_timeout: settings.call_timeout,
            keep_alive: Duration::from_secs(10),
            log_only: false,
            endpoint: HostEndpoint::Child {
                settings: Box::new(settings),
                program: Some(PathBuf::from(PROGRAM)),
                environment: self.environment(),
            },
        }
    }
}

/// A pool that issues: the pipeline of `issue` without its front end.
pub struct Mill {
    pub pool: Pool,
    pub log: Log,
    pub issuer: Arc<Issuer>,
    _log_directory: tempfile::TempDir,
}

/// The settings of a pool of these tokens, with defaults.
pub fn pool(tokens: Vec<TokenSettings>) -> Settings {
    Settings::new(tokens)
}

impl Mill {
    /// Starts the hosts without waiting for them.
    pub fn start(settings: Settings, issuer: &Arc<Issuer>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = audit_log::Settings::new(directory.path().join("log"), LOG_ORIGIN);
        let (log, _) = Log::open(log, None).unwrap();
        let pool = Pool::start(settings).unwrap();
        Self { pool, log, issuer: Arc::clone(issuer), _log_directory: directory }
    }

    /// Starts the hosts; each must prove that it has the key.
    pub async fn proven(settings: Settings, issuer: &Arc<Issuer>) -> Self {
        let mill = Self::start(settings, issuer);
        for proof in mill.prove().await {
            assert_eq!(proof.result, Ok(()), "{}", proof.token);
        }
        mill
    }

    pub async fn prove(&self) -> Vec<istio_hsm_ca::token_pool::Proof> {
        self.pool.prove(self.issuer.public_key(), Instant::now() + PATIENCE).await
    }

    /// Records a leaf.
    pub async fn recorded(&self) -> Recorded<Arc<Tbs>> {
        let tbs = Arc::new(Tbs::build(template(), Arc::clone(&self.issuer), Serial::random()).unwrap());
        let intent = Intent {
            request_id: "test".to_owned(),
            time: clock::now(),
            caller: (&Caller::internal(InternalCaller::ServingCertificate)).into(),
            tbs,
        };
        self.log.record(intent).await.unwrap()
    }

    pub async fn sign(
        &self,
        tbs: &Recorded<Arc<Tbs>>,
        priority: Priority,
        within: Duration,
    ) -> Result<Signed, SignError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let request_id = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed)).into();
        let context = Context { request_id, deadline: Instant::now() + within, priority, avoid: Vec::new() };
        self.pool.sign(&ToBeSigned::Certificate(tbs.clone()), &context).await
    }

    /// A certificate, from the record to the verdict.
    pub async fn issue_within(&self, within: Duration) -> Result<Issued, SignError> {
        let recorded = self.recorded().await;
        let signed = self.sign(&recorded, Priority::Normal, within).await?;
        let issued = Issued::assemble(Arc::clone(recorded.value()), &signed.signature);
        self.pool.verdict(&signed.source, issued.is_ok());
        let token = signed.source.token.to_string();
        self.log.outcome(recorded.index(), Outcome::Issued { token });
        Ok(issued.unwrap())
    }

    pub async fn issue(&self) -> Result<Issued, SignError> {
        self.issue_within(PATIENCE).await
    }

    pub fn snapshot(&self, at: usize) -> Snapshot {
        self.pool.snapshot().remove(at)
    }

    /// Waits until the health is as expected.
    pub async fn until(&self, what: &str, wanted: impl Fn(&PoolHealth) -> bool) -> PoolHealth {
        let mut health = self.pool.health();
        let waited = tokio::time::timeout(PATIENCE, health.wait_for(|health| wanted(health))).await;
        match waited {
            Ok(health) => health.unwrap().clone(),
            Err(_) => panic!("never {what}: {:?}", self.pool.health().borrow()),
        }
    }

    pub async fn end(self) {
        self.pool.shutdown(Instant::now() + Duration::from_secs(5)).await;
    }
}

/// Content of a leaf valid for one hour.
pub fn template() -> Template {
    let now = UNIX_EPOCH + Duration::from_secs(seconds(clock::now()));
    Template {
        profile: Profile::Leaf,
        public_key: WORKLOAD_KEY.clone(),
        names: vec![Name::Spiffe(WORKLOAD.parse().unwrap())],
        not_before: now - Duration::from_secs(120),
        not_after: now + Duration::from_secs(3600),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Whether the token at an index is in a phase.
pub fn is(at: usize, phase: Phase) -> impl Fn(&PoolHealth) -> bool {
    move |health| health.tokens.get(at).is_some_and(|token| token.phase == phase)
}

/// Child processes of this process, or of `parent`, that are hosts of a token with this name.
pub fn hosts_of(parent: u32, name: &str) -> Vec<u32> {
    let argument = format!("--child\0{name}\0");
    let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let path = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(path.join("status")).ok()?;
        let command = fs::read_to_string(path.join("cmdline")).ok()?;
        let is_child = status.contains(&format!("\nPPid:\t{parent}\n")) && !status.contains("\nState:\tZ");
        (is_child && command.ends_with(&argument)).then_some(pid)
    });
    children.collect()
}

/// The only host of a token in this process's pools.
pub fn host_of(name: &str) -> nix::unistd::Pid {
    let hosts = hosts_of(std::process::id(), name);
    assert_eq!(hosts.len(), 1, "{name}: {hosts:?}");
    nix::unistd::Pid::from_raw(hosts[0].try_into().unwrap())
}

/// Verifies a leaf up to its root with OpenSSL.
pub fn openssl_verifies(issued: &Issued, root: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (leaf, roots) = (directory.path().join("leaf.pem"), directory.path().join("root.pem"));
    fs::write(&leaf, issued.to_pem()).unwrap();
    fs::write(&roots, root).unwrap();
    let output = Command::new("openssl").args(["verify", "-CAfile"]).arg(&roots).arg(&leaf).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
