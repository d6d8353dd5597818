//! Reloads the bundle in the running daemon without dropping requests.
//!
//! A new bundle replaces the old one only if its files are unchanged for a while, complete and valid, it has every root
//! that workloads trust, and every token proves that it holds the key. Otherwise the old bundle stays in use, and the
//! reason is logged. A missing key is looked up again periodically, since an import causes no file event.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{last_good_bundle::LastGoodBundle, readiness::ReadinessHandle};
use crate::bundle_files::read_directory;
use crate::{auth::Authenticator, issue::CertificateAuthority, telemetry::metrics, token_pool::Pool};
use pki::{Bundle, Issuer, bundle::BundleFiles};
use process::error::chain;

/// How long the files must be unchanged. Istio's debounce for the same files is 100 ms.
const SETTLE: Duration = Duration::from_millis(200);
/// Polling interval: events may be lost (network file systems, a replaced directory).
const POLL: Duration = Duration::from_secs(10);
/// Timeout for the tokens to find a new key.
const PROOF: Duration = Duration::from_secs(10);

/// A bundle was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The files changed while they were read.
    #[error("the files are still changing")]
    Changing,
    /// The files are invalid, for these reasons.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// These tokens do not hold the key.
    #[error("the key of the new ca-cert.pem is not in every token: {}; import it there", .0.join("; "))]
    KeyMissing(Vec<String>),
    /// The new bundle drops a root.
    #[error(
        "root-cert.pem lacks a root of the bundle in use, and workloads that trust only that one would fail; add it \
         again, or set allow_root_removal"
    )]
    RootDropped,
}

impl ReloadError {
    /// What a daemon would do that starts with these files.
    fn at_restart(&self) -> &'static str {
        match self {
            Self::Changing | Self::Invalid(_) | Self::RootDropped => "a restart would fail",
            Self::KeyMissing(_) => "after a restart, tokens without its key would not sign",
        }
    }
}

/// Watches the bundle's directory.
#[derive(Debug)]
pub struct Reloader {
    /// The bundle's directory.
    pub directory: PathBuf,
    /// The files in use.
    pub in_use: BundleFiles,
    /// Stores what is in use, for the token hosts and for the next start.
    pub last_good: LastGoodBundle,
    /// Whether dropping a root is allowed.
    pub allow_root_removal: bool,
    /// The CA that uses the new bundle.
    pub ca: Arc<CertificateAuthority>,
    /// The tokens that must hold the CA key.
    pub pool: Arc<Pool>,
    /// Reloaded as well: denylist, previous CAs, keys of issuers.
    pub authenticator: Arc<Authenticator>,
    /// Files of authentication to be watched as well: the denylist, previous CAs.
    pub watched: Vec<PathBuf>,
    /// Notified on SIGHUP.
    pub reload_trigger: Arc<Notify>,
    /// Reports an expired CA certificate.
    pub handle: ReadinessHandle,
    /// Says when the bundle's files are refused: the daemon stays ready with the previous ones.
    pub bundle: ReadinessHandle,
    /// Says when the files of authentication are refused, as `bundle`.
    pub callers: ReadinessHandle,
}

impl Reloader {
    /// Reloads until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (events, mut changed) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                // If the channel is full, an event is waiting already.
                let _ = events.try_send(());
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "cannot watch the bundle directory; polling it instead"))
            .ok();
        let mut refused: Option<String> = None;
        let mut stamps = stamps(&self.watched);
        // Now rather than at the first poll, so that the daemon becomes ready.
        self.say_expiry();
        self.bundle.set(None);
        self.callers.set(None);
        metrics::level("istio_hsm_ca_bundle_refused", None, 0.0);
        loop {
            if let Some(watcher) = &mut watcher {
                // Watch again each time, because replacing the directory loses the watch.
                let _ = watcher.unwatch(&self.directory);
                let _ = watcher.watch(&self.directory, RecursiveMode::NonRecursive);
                for directory in self.watched.iter().filter_map(|file| file.parent()) {
                    let _ = watcher.unwatch(directory);
                    let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
                }
            }
            let triggered = tokio::select! {
                () = stop.cancelled() => return,
                () = self.reload_trigger.notified() => true,
                _ = changed.recv() => false,
                () = tokio::time::sleep(POLL) => false,
            };
            let now = self.settled(&stamps, triggered).await;
            if triggered || now != stamps {
                // Set before the files are read, so that concurrent changes cause another read.
                stamps = now;
                self.reload_authentication();
            }
            self.say_expiry();
            match self.attempt().await {
                Ok(true) => {
                    refused = None;
                    metrics::reload("bundle", true);
                    tracing::info!(directory = %self.directory.display(), "the new bundle is in use");
                    self.say_expiry();
                }
                Ok(false) => refused = None,
                Err(ReloadError::Changing) => {}
                Err(error) => {
                    let text = format!(
                        "the new bundle in {} is refused and the previous one stays in use, but {}: {error}",
                        self.directory.display(),
                        error.at_restart()
                    );
                    if triggered || refused.as_ref() != Some(&text) {
                        metrics::reload("bundle", false);
                        tracing::error!(error = %error, at_restart = error.at_restart(), "the new bundle is refused; the previous one stays in use");
                    }
                    refused = Some(text);
                }
            }
            metrics::level("istio_hsm_ca_bundle_refused", None, if refused.is_some() { 1.0 } else { 0.0 });
            self.bundle.set(refused.clone());
        }
    }

    /// Applies the files if they differ from those in use; returns whether they did.
    async fn attempt(&mut self) -> Result<bool, ReloadError> {
        let Some(files) = self.stable_files().await? else { return Ok(false) };
        let bundle = Bundle::check(files.clone(), process::clock::now())
            .map_err(|problems| ReloadError::Invalid(problems.iter().map(ToString::to_string).collect()))?;
        for warning in bundle.warnings() {
            tracing::warn!(warning = warning.0, "bundle");
        }
        let old = self.ca.issuer();
        let new = bundle.issuer();
        if !self.allow_root_removal && drops_a_root(&old, new) {
            return Err(ReloadError::RootDropped);
        }
        let proofs = self.pool.prove(new.public_key(), Instant::now() + PROOF).await;
        let missing: Vec<String> = proofs
            .into_iter()
            .filter_map(|proof| proof.result.err().map(|error| format!("{}: {error}", proof.token)))
            .collect();
        let another_key = old.public_key() != new.public_key();
        if !missing.is_empty() {
            if another_key {
                self.pool.forget(new.public_key());
            }
            return Err(ReloadError::KeyMissing(missing));
        }
        self.last_good.keep(&files);
        self.ca.replace_issuer(Arc::clone(new));
        if another_key {
            self.pool.forget(old.public_key());
        }
        self.in_use = files;
        Ok(true)
    }

    /// The files once they are unchanged for a while; `None` if they are those in use.
    async fn stable_files(&self) -> Result<Option<BundleFiles>, ReloadError> {
        let read = || {
            read_directory(&self.directory)
                .map_err(|problems| ReloadError::Invalid(problems.iter().map(ToString::to_string).collect()))
        };
        let first = read();
        if first.as_ref().is_ok_and(|files| same_content(files, &self.in_use)) {
            return Ok(None);
        }
        tokio::time::sleep(SETTLE).await;
        let (first, second) = (first?, read()?);
        if same_content(&first, &second) { Ok(Some(second)) } else { Err(ReloadError::Changing) }
    }

    /// The stamps of the watched files once they are unchanged for a while, otherwise the old ones, so that a
    /// half-written denylist is not used. With `triggered` (SIGHUP), the files are used as they are.
    async fn settled(&self, old: &[Stamp], triggered: bool) -> Vec<Stamp> {
        let now = stamps(&self.watched);
        if triggered || now == old {
            return now;
        }
        tokio::time::sleep(SETTLE).await;
        // A concurrent change has caused an event; otherwise the next poll detects it.
        if stamps(&self.watched) == now { now } else { old.to_vec() }
    }

    fn reload_authentication(&self) {
        match self.authenticator.reload() {
            Ok(()) => {
                self.callers.set(None);
                metrics::reload("callers", true);
                tracing::info!("reloaded the denylist, previous CAs and JWT issuer keys");
            }
            Err(errors) => {
                metrics::reload("callers", false);
                let reasons: Vec<String> = errors.iter().map(|error| chain(error)).collect();
                self.callers.set(Some(format!(
                    "the previous content of these files stays in use, but a restart would fail: {}",
                    reasons.join("; ")
                )));
                for error in reasons {
                    tracing::error!(
                        error,
                        "a file for authentication could not be reloaded; its previous content stays in use"
                    );
                }
            }
        }
    }

    fn say_expiry(&self) {
        let left = self.ca.issuer().remaining(process::clock::now());
        let expired = left.is_zero();
        self.handle
            .set(expired.then(|| "the CA's certificate path has expired; import a renewed certificate".to_owned()));
    }
}

/// Detects changes of a file: inode, time of change, length; `None` if there is no file.
type Stamp = Option<(u64, i64, i64, u64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |file: &PathBuf| {
        std::fs::metadata(file).ok().map(|data| (data.ino(), data.mtime(), data.mtime_nsec(), data.len()))
    };
    files.iter().map(stamp).collect()
}

fn same_content(one: &BundleFiles, other: &BundleFiles) -> bool {
    one.ca_cert.bytes == other.ca_cert.bytes
        && one.cert_chain.bytes == other.cert_chain.bytes
        && one.root_cert.bytes == other.root_cert.bytes
}

/// Whether the new bundle lacks a root of the old one, compared by DER as Istio does.
fn drops_a_root(old: &Issuer, new: &Issuer) -> bool {
    old.roots().iter().any(|root| !new.roots().contains(root))
}
