//! The controllers of one replica, with a CA key in software that a test can make unavailable, and with short
//! lifetimes. The daemon itself, with a token, is tested in `replicas`.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use audit_log::Log;
use istio_hsm_ca::{
    auth::{Caller, InternalCaller},
    config::Config,
    daemon::{background::Background, controllers, readiness::Readiness},
    issue::{CertificateAuthority, Parts, Request, limits::Limits},
    kubernetes::{
        Clusters,
        permissions::{self, Permission},
        served,
        status::ControllerStatus,
    },
    policy::Asked,
    signer::{BoxFuture, Context, SignError, Signed, Signer, Source, ToBeSigned},
    telemetry::{RequestId, metrics, recent::Recent},
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::Client;
use pki::{
    Bundle, Issuer,
    bundle::{BundleFiles, Input},
};
use process::clock::{self, Clock};
use rcgen::SigningKey;
use tokio::sync::watch;

use super::{
    csrs::pem,
    harness::{Cluster, client_of},
};
use testkit::plug_in::PlugIn;

/// A replica.
pub struct Rig {
    pub ca: Arc<CertificateAuthority>,
    pub leading: watch::Sender<bool>,
    pub readiness: Readiness,
    /// The account it runs under.
    pub account: Client,
    clusters: Clusters,
    log: Log,
    signer: Arc<Software>,
    background: Option<Background>,
    _files: tempfile::TempDir,
}

/// Signs while it is available.
struct Software {
    authorities: Mutex<Vec<Arc<PlugIn>>>,
    away: AtomicBool,
}

impl std::fmt::Debug for Software {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Software")
    }
}

impl Signer for Software {
    fn sign<'a>(&'a self, message: &'a ToBeSigned, _context: &'a Context) -> BoxFuture<'a, Result<Signed, SignError>> {
        Box::pin(async move {
            if self.away.load(Ordering::SeqCst) {
                return Err(SignError::Unavailable("it is away".into()));
            }
            let authorities = self.authorities.lock().unwrap();
            let ours = |one: &&Arc<PlugIn>| issuer(one).public_key() == message.key();
            let signature = authorities.iter().find(ours).unwrap().ca.key().sign(message.der()).unwrap();
            Ok(Signed { signature, source: Source { token: "software".into(), host: 0, session: 0 } })
        })
    }

    fn verdict(&self, _source: &Source, verified: bool) {
        assert!(verified);
    }
}

/// The checked files of a plug-in CA.
pub fn issuer(plug_in: &PlugIn) -> Arc<Issuer> {
    let input = |name: &str, text: &str| Input { name: name.into(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", &plug_in.ca_cert),
        cert_chain: input("cert-chain.pem", &plug_in.cert_chain),
        root_cert: input("root-cert.pem", &plug_in.root_cert),
    };
    Arc::clone(Bundle::check(files, clock::now()).unwrap().issuer())
}

impl Rig {
    /// A leading replica under an account with exactly the permissions that the program reports, minus `without`.
    pub async fn start(
        cluster: &Cluster,
        plug_in: PlugIn,
        toml: &str,
        change: impl Fn(&mut Config),
        without: Option<&Permission>,
    ) -> Self {
        // What is counted earlier is lost.
        let _all = metrics::install();
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut config = configuration(&cluster.admin(), cluster, toml);
        change(&mut config);
        let rights: Vec<Permission> =
            permissions(&config).into_iter().filter(|permission| Some(permission) != without).collect();
        let rules: Vec<(Option<String>, PolicyRule)> = rights.iter().map(rule).collect();
        let everywhere: Vec<_> =
            rules.iter().filter(|(namespace, _)| namespace.is_none()).map(|(_, rule)| rule.clone()).collect();
        let inside: Vec<(&str, PolicyRule)> =
            rules.iter().filter_map(|(namespace, rule)| Some((namespace.as_deref()?, rule.clone()))).collect();
        let kubeconfig = cluster.user("controllers", &everywhere, &inside).await;
        let settings = config.kubernetes.as_mut().unwrap();
        settings.clusters[0].kubeconfig = Some(kubeconfig.clone());
        let account = client_of(&kubeconfig).await;
        let clusters = Clusters::new(settings, &config.ca.trust_domains).await.unwrap();

        let plug_in = Arc::new(plug_in);
        let signer =
            Arc::new(Software { authorities: Mutex::new(vec![Arc::clone(&plug_in)]), away: AtomicBool::new(false) });
        let directory = files.path().join("log");
        let (log, opened) = Log::open(audit_log::Settings::new(directory, "test.invalid/log"), None).unwrap();
        let kept_log = log.clone();
        let ca = Arc::new(CertificateAuthority::new(Parts {
            issuer: issuer(&plug_in),
            rules: config.rules(),
            denylist: istio_hsm_ca::auth::DenylistCheck::default(),
            revocations: istio_hsm_ca::revocation::Revocations::default(),
            limits: Limits::new(istio_hsm_ca::issue::limits::Settings::default()),
            first_class: Vec::new(),
            default_deadline: Duration::from_secs(5),
            clock: Clock::start(opened.clock, "".into()),
            log,
            signer: Arc::clone(&signer) as Arc<dyn Signer>,
            recent: Arc::new(Recent::new()),
        }));
        let (leading, watched) = watch::channel(true);
        let background = Background::default();
        let readiness = Readiness::new();
        controllers::start(&config, &clusters, &ca, Some(&watched), &readiness, &background);
        Self {
            ca,
            leading,
            readiness,
            account,
            clusters,
            log: kept_log,
            signer,
            background: Some(background),
            _files: files,
        }
    }

    /// Changes the CA certificate or roots, as a reload does.
    pub fn replace(&self, plug_in: PlugIn) {
        let plug_in = Arc::new(plug_in);
        self.signer.authorities.lock().unwrap().push(Arc::clone(&plug_in));
        self.ca.replace_issuer(issuer(&plug_in));
    }

    /// Makes the token unavailable or available.
    pub fn take_token(&self, away: bool) {
        self.signer.away.store(away, Ordering::SeqCst);
    }

    /// The status of one of its controllers.
    pub fn status(&self, controller: &'static str) -> ControllerStatus {
        self.clusters.first().unwrap().controller_status(controller).borrow().clone()
    }

    /// The interfaces that `check` misses.
    pub async fn unserved(&self) -> Vec<String> {
        served::unserved(self.clusters.first().unwrap()).await.unwrap()
    }

    /// The problem of a controller on `/readyz`; the daemon stays ready.
    pub fn remark(&self, controller: &str) -> Option<String> {
        let report = self.readiness.watch().borrow().clone();
        assert!(report.ready());
        let name = format!("controller {controller} in {}", self.clusters.first().unwrap().name());
        report.parts.into_iter().find(|part| part.name == name).unwrap().trouble
    }

    /// Number of failing objects according to the metrics.
    pub fn in_error(&self) -> f64 {
        let cluster = format!("cluster=\"{}\"", self.clusters.first().unwrap().name());
        let text = metrics::install().render()();
        let of_ours = |line: &&str| line.starts_with("istio_hsm_ca_objects_in_error{") && line.contains(&cluster);
        let lines = text.lines().filter(of_ours);
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Number of certificates in the log.
    pub fn intents(&self) -> u64 {
        self.log.stats().intents
    }

    /// Issues a certificate that is unrelated to any cluster.
    pub async fn sign(&self) {
        let request = Request {
            id: RequestId::random().into(),
            caller: Caller::internal(InternalCaller::ServingCertificate),
            csr: pem(&[]),
            asked: Asked::default(),
            issuer: None,
            arrived: std::time::Instant::now(),
            deadline: None,
        };
        self.ca.issue(request).await.unwrap();
    }

    /// Grants its account one more permission.
    pub async fn grant(&self, cluster: &Cluster, permission: &Permission) {
        let (namespace, rule) = rule(permission);
        match namespace {
            None => cluster.grant("controllers", "more", &[rule], &[]).await,
            Some(namespace) => cluster.grant("controllers", "more", &[], &[(&namespace, rule)]).await,
        }
    }

    /// Ends the replica.
    pub async fn end(mut self) {
        self.background.take().unwrap().end(Duration::from_secs(5)).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(background) = &self.background {
            background.ended().cancel();
        }
    }
}

/// A configuration with one cluster.
pub fn configuration(kubeconfig: &Path, cluster: &Cluster, toml: &str) -> Config {
    let text = format!(
        "[ca]\nbundle = '/b'\n[[token]]\nname = 't'\n\
         uri = 'pkcs11:token=t?module-path=/m.so&pin-source=file:/p'\n[serving]\ndns_names = ['ca.test']\n\
         [log]\ndirectory = '/l'\n[token_host]\nallow_intermediate = true\n\
         [kubernetes]\nnamespace = '{}'\nidentity = 'a'\n[[kubernetes.cluster]]\nkubeconfig = '{}'\n{toml}",
        cluster.namespace,
        kubeconfig.display()
    );
    Config::parse(&text, "").unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The permissions that the program reports, without those for the Lease, which is not used here.
pub fn permissions(config: &Config) -> Vec<Permission> {
    let settings = config.kubernetes.as_ref().unwrap();
    let all = permissions::needed(settings, &settings.clusters[0], settings.namespace.as_ref());
    all.into_iter().filter(|permission| permission.resource != "leases").collect()
}

/// A permission as an RBAC rule, with its namespace.
pub fn rule(permission: &Permission) -> (Option<String>, PolicyRule) {
    let rule = PolicyRule {
        api_groups: Some(vec![permission.group.to_owned()]),
        resources: Some(vec![permission.resource.to_owned()]),
        resource_names: permission.name.clone().map(|name| vec![name]),
        verbs: vec![permission.verb.to_owned()],
        ..PolicyRule::default()
    };
    (permission.namespace.clone(), rule)
}

/// Runs openssl on files with these contents, named 0, 1, ...
pub fn openssl(files: &[&[u8]], arguments: &[&str]) -> Result<String, String> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (number, content) in files.iter().enumerate() {
        fs::write(directory.path().join(number.to_string()), content).unwrap();
    }
    let output = std::process::Command::new("openssl")
        .args(arguments)
        .current_dir(directory.path())
        .output()
        .expect("openssl is needed; install the package openssl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// The first certificate in PEM: serial number and notAfter.
pub fn certificate(pem: &[u8]) -> (String, SystemTime) {
    use x509_cert::{Certificate, der::DecodePem};
    let text = std::str::from_utf8(pem).unwrap();
    let end = text.find("-----END").unwrap() + "-----END CERTIFICATE-----\n".len();
    let certificate = Certificate::from_pem(&text[..end]).unwrap();
    let tbs = certificate.tbs_certificate();
    (tbs.serial_number().to_string(), tbs.validity().not_after.to_system_time())
}
