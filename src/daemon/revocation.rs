//! Revocation in the daemon: follows the store, and keeps the CRL up to date.
//!
//! Every replica applies the store's document. One replica signs the CRL: the leader if there is an election, otherwise
//! each one. A CRL is built for a number that was reserved in the store, so a replica without the store signs none.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    background::Background,
    readiness::{Readiness, ReadinessHandle},
    setup::Core,
};
use crate::{
    config::Config,
    issue::{CertificateAuthority, IssueError},
    kubernetes::{Clusters, revocations::ConfigMapStore},
    revocation::{
        PublishedCrl, Revocations, Settings, Store, StoreError, StoreSettings,
        file::FileStore,
        follow::Follower,
        schedule::{Last, Wanted, due},
        state::{Document, seconds, time},
        store::update,
    },
    telemetry::RequestId,
    token_pool::PoolHealth,
};
use pki::{
    CrlTbs,
    crl::{CrlContent, CrlError, CrlIssuer},
    profile::CLOCK_SKEW,
};
use process::{clock::ClockError, error::chain, files, output::Refused};

/// Maximum time for the signature of a CRL.
const SIGNATURE: Duration = Duration::from_secs(30);
/// Delay after a change, so that changes that follow each other share a CRL.
const GATHER: Duration = Duration::from_millis(500);
/// Interval at which the age is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Delays after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Mode of the CRL's file: a CRL is public.
const CRL_MODE: u32 = 0o644;

/// No CRL was signed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The clock is not plausible.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// No CRL can be built.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// The CRL's file cannot be written.
    #[error("[revocation] crl_file {}: {source}; make its directory writable for the daemon's user", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The CRL was not recorded, signed or verified.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The store's document is older than the state in use: a CRL from it would release revoked certificates.
    #[error("{place}: it has revision {found}, and this replica has applied revision {applied}")]
    Older {
        /// The store.
        place: String,
        /// Its revision.
        found: u64,
        /// The applied revision.
        applied: u64,
    },
    /// No number could be reserved.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's document was not applied yet.
    #[error("the state of revocation has not been read yet")]
    Unknown,
    /// No token signs now. Nothing was recorded for a CRL that could not be signed.
    #[error("no token signs: {0}")]
    Token(String),
}

/// The store of the configuration.
///
/// # Errors
/// If it is a ConfigMap, and the cluster or the namespace is not known.
pub fn store(settings: &Settings, clusters: Option<&Clusters>) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match (&settings.store, clusters) {
        (StoreSettings::File(path), _) => Arc::new(FileStore::new(path.clone())),
        (StoreSettings::ConfigMap(name), Some(clusters)) => Arc::new(ConfigMapStore::new(clusters, name)?),
        (StoreSettings::ConfigMap(name), None) => {
            return Err(StoreError::Unavailable {
                place: format!("ConfigMap {name}"),
                reason: "no cluster is configured".to_owned(),
                remedy: "add [[kubernetes.cluster]], or keep the state in a file",
            });
        }
    })
}

/// Starts to follow the store and to sign CRLs. Returns the CRL of this replica, now and at each change; `None` without
/// `[revocation]`. `leading` is whether this replica signs; without an election each one does.
///
/// # Errors
/// Those of [`store`].
pub fn start(
    config: &Config,
    core: &Core,
    revocations: &Revocations,
    clusters: Option<&Clusters>,
    leading: Option<watch::Receiver<bool>>,
    readiness: &Readiness,
    background: &Background,
) -> Result<Option<watch::Receiver<Option<Arc<PublishedCrl>>>>, StoreError> {
    let Some(settings) = &config.revocation else { return Ok(None) };
    let store = store(settings, clusters)?;
    let follower = Follower::new(Arc::clone(&store), revocations.clone(), core.log.clone(), &config.log.directory);
    let first = readiness.required("revocation");
    let contact = readiness.informational("revocation store");
    background.spawn_until_end(follower.run(move |result| report(result, &first, &contact)));
    let published = watch::Sender::new(None);
    let crls = published.subscribe();
    let refresher = Refresher {
        ca: Arc::clone(&core.ca),
        tokens: core.pool.health(),
        store,
        revocations: revocations.clone(),
        settings: settings.clone(),
        published,
        handle: readiness.informational("CRL signing"),
        last: None,
    };
    background.spawn_until_end(refresher.run(leading));
    Ok(Some(crls))
}

/// Applies the store's document once, for `issue` without a daemon.
///
/// # Errors
/// If the store cannot be read.
pub async fn apply_once(config: &Config, core: &Core, revocations: &Revocations) -> anyhow::Result<()> {
    let Some(settings) = &config.revocation else { return Ok(()) };
    let store = connect(config, settings).await?;
    let mut follower = Follower::new(store, revocations.clone(), core.log.clone(), &config.log.directory);
    follower.apply().await?;
    Ok(())
}

/// The store of the configuration, for commands, which have no clients of the clusters yet.
///
/// # Errors
/// If the clients cannot be created, or those of [`store`].
pub async fn connect(config: &Config, settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    let clusters = match config.kubernetes.as_ref().filter(|_| settings.config_map().is_some()) {
        Some(kubernetes) => {
            let clusters = Clusters::new(kubernetes, &config.ca.trust_domains).await.map_err(|errors| Refused {
                what: "[kubernetes] cannot be used:".to_owned(),
                reasons: errors.iter().map(|error| chain(error)).collect(),
            })?;
            Some(clusters)
        }
        None => None,
    };
    Ok(store(settings, clusters.as_ref())?)
}

/// The first reading decides whether the daemon is ready; a later failure only means that the state may be old.
fn report(result: Result<u64, String>, first: &ReadinessHandle, contact: &ReadinessHandle) {
    match result {
        Ok(revision) => {
            first.set(None);
            first.note(Some(format!("revision {revision}")));
            contact.set(None);
        }
        Err(reason) => contact.set(Some(format!("{reason}; the last known state stays in use"))),
    }
}

/// Keeps the CRL up to date.
struct Refresher {
    ca: Arc<CertificateAuthority>,
    tokens: watch::Receiver<PoolHealth>,
    store: Arc<dyn Store>,
    revocations: Revocations,
    settings: Settings,
    published: watch::Sender<Option<Arc<PublishedCrl>>>,
    handle: ReadinessHandle,
    last: Option<Last>,
}

impl Refresher {
    async fn run(mut self, mut leading: Option<watch::Receiver<bool>>) {
        let (mut changes, mut issuers) = (self.revocations.changes(), self.ca.issuers());
        let mut delay = RETRY.0;
        loop {
            if let Some(leading) = leading.as_mut()
                && !*leading.borrow_and_update()
            {
                // Another replica signs meanwhile; this one begins with a new number.
                self.last = None;
                self.published.send_replace(None);
                self.handle.set(None);
                self.handle.note(Some("signed by the leader".to_owned()));
                if leading.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let wait = match self.refresh().await {
                Ok(()) => {
                    self.handle.set(None);
                    delay = RETRY.0;
                    LOOK_INTERVAL
                }
                Err(error) => {
                    self.handle.set(Some(format!("no CRL was signed: {}", chain(&error))));
                    // A token that starts or comes back is looked for again soon.
                    delay = if matches!(error, RefreshError::Token(_) | RefreshError::Unknown) {
                        RETRY.0
                    } else {
                        (delay * 2).min(RETRY.1)
                    };
                    delay
                }
            };
            let led = async {
                match leading.as_mut() {
                    Some(leading) => drop(leading.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = changes.changed() => if changed.is_err() { return },
                changed = issuers.changed() => if changed.is_err() { return },
                () = led => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Signs a CRL if one is due.
    async fn refresh(&mut self) -> Result<(), RefreshError> {
        let now = time(seconds(self.ca.now()?));
        let issuer = self.ca.issuer();
        let ca_key = issuer.public_key().fingerprint();
        let entries = self.revocations.document().entries(ca_key);
        let refresh_after = self.settings.refresh_after();
        let wanted = Wanted { certificate: issuer.certificate(), entries: &entries, now, refresh_after };
        let Some(reason) = due(self.last.as_ref(), &wanted) else { return Ok(()) };
        let health = self.tokens.borrow().clone();
        if !health.is_ready() {
            return Err(RefreshError::Token(health.reason()));
        }
        let applied = self.revocations.revision().ok_or(RefreshError::Unknown)?;
        let crl_issuer = CrlIssuer::from_certificate(issuer.certificate())?;
        let next_update = now + self.settings.lifetime;
        let reserve = |document: &mut Document| match document.revision {
            found if found < applied => Err(RefreshError::Older { place: self.store.place(), found, applied }),
            _ => Ok(document.reserve(now, next_update, refresh_after)),
        };
        let (document, number) = update(&*self.store, reserve).await?;
        let entries = document.entries(ca_key);
        self.adopt(document);
        let this_update = (now - CLOCK_SKEW).max(issuer.not_before());
        let content = CrlContent { number, this_update, next_update, entries: entries.clone() };
        let tbs = Arc::new(CrlTbs::build(crl_issuer, content)?);
        let id: Arc<str> = RequestId::random().to_string().into();
        let signed = self.ca.sign_crl(id, Arc::clone(&tbs), now, Instant::now() + SIGNATURE).await?;
        let crl = PublishedCrl { pem: signed.to_pem(), number, this_update, next_update, entries: tbs.entries() };
        tracing::info!(number, entries = crl.entries, bytes = signed.der().len(), reason, "signed a CRL");
        self.last = Some(Last { ca_key, certificate: issuer.certificate().to_vec(), entries, signed_at: now });
        self.tell(&crl);
        let written = self.write(&crl);
        self.published.send_replace(Some(Arc::new(crl)));
        written
    }

    /// The document of the reservation is the newest; an entry that has left it must not make another CRL due.
    fn adopt(&self, document: Document) {
        if document.revision >= self.revocations.document().revision {
            self.revocations.set(document);
        }
    }

    fn tell(&self, crl: &PublishedCrl) {
        let until = audit_log::timestamp::format(crl.next_update);
        self.handle.note(Some(format!("number {}, {} entries, valid until {until}", crl.number, crl.entries)));
    }

    fn write(&self, crl: &PublishedCrl) -> Result<(), RefreshError> {
        match self.settings.crl_file.as_deref().filter(|_| self.settings.enabled) {
            Some(path) => write(path, crl),
            None => Ok(()),
        }
    }
}

fn write(path: &Path, crl: &PublishedCrl) -> Result<(), RefreshError> {
    files::replace_with_mode(path, crl.pem.as_bytes(), CRL_MODE)
        .map_err(|source| RefreshError::File { path: path.to_owned(), source })
}
