//! Takes a new bundle while the daemon runs, without a dropped request.
//!
//! A new bundle must be stable as a set, complete, valid, keep every root that workloads trust, and its key must be
//! proven on every token, before it is taken. What is refused says why, and the old one stays. A key that a token
//! lacks is looked for again, since an import raises no file event.

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

/// Istio's own debounce for the same files is 100 ms; the set must stay the same for this long.
const SETTLE: Duration = Duration::from_millis(200);
/// Events can be lost (network file systems, a directory that is replaced), so that the files are also read now and then.
const POLL: Duration = Duration::from_secs(10);
/// How long the tokens may take to find a new key.
const PROOF: Duration = Duration::from_secs(10);

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The files changed while they were read.
    #[error("the files are still changing")]
    Changing,
    /// The files are refused.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// A token does not hold the key.
    #[error("the key of the new ca-cert.pem is not in every token: {}; import it there", .0.join("; "))]
    KeyMissing(Vec<String>),
    /// A root would be dropped.
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
    /// Where what is in use is kept, for the token hosts and for the next start.
    pub last_good: LastGoodBundle,
    /// Whether a root may be dropped.
    pub allow_root_removal: bool,
    /// The CA that takes the new bundle.
    pub ca: Arc<CertificateAuthority>,
    /// The tokens that must hold its key.
    pub pool: Arc<Pool>,
    /// Reloaded along: denylist, previous CAs, keys of issuers.
    pub authenticator: Arc<Authenticator>,
    /// The files of authentication that are watched too: the denylist, previous CAs.
    pub watched: Vec<PathBuf>,
    /// Notified on SIGHUP.
    pub reload_trigger: Arc<Notify>,
    /// Says when the CA's certificate has expired.
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
                // Full means that one is waiting already.
                let _ = events.try_send(());
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "cannot watch the bundle directory; polling it instead"))
            .ok();
        let mut refused: Option<String> = None;
        let mut stamps = stamps(&self.watched);
        // Now, and not with the first poll: until then the daemon would not be ready.
        self.say_expiry();
        self.bundle.set(None);
        self.callers.set(None);
        metrics::level("istio_hsm_ca_bundle_refused", None, 0.0);
        loop {
            if let Some(watcher) = &mut watcher {
                // Watched again each time: a directory that was exchanged for another keeps no watch.
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
                // Taken before the files are read: what changes meanwhile is read again.
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

    /// Takes the files if they differ from what is in use; tells whether they did.
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

    /// The files, once they stay the same; none if they are those in use.
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

    /// The stamps of the watched files once they stay the same; the old ones while they are still changing, so that a
    /// denylist that is being written is not read by halves. Who rings means the files as they are.
    async fn settled(&self, old: &[Stamp], triggered: bool) -> Vec<Stamp> {
        let now = stamps(&self.watched);
        if triggered || now == old {
            return now;
        }
        tokio::time::sleep(SETTLE).await;
        // The change that came meanwhile has raised an event, and at the latest the next poll sees it.
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

/// What tells a changed file from the one that was read: inode, time of change, length; none where there is no file.
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

/// Whether a root of the old bundle is not in the new one, compared by DER as Istio does.
fn drops_a_root(old: &Issuer, new: &Issuer) -> bool {
    old.roots().iter().any(|root| !new.roots().contains(root))
}
