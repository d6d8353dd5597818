//! The endpoint's own certificate: issued by this CA and renewed at half its lifetime, or read from files.
//!
//! The key of an issued one is generated in memory for each renewal. Failures are retried while the old certificate
//! stays in use; when that has expired, the endpoint is not ready. Started with [`spawn`].

pub mod files;
pub mod key;

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_cert::der::Decode;

use self::{
    files::{Content, Files, FilesError},
    key::{KeyError, ServingKey},
};
use super::{settings::Serving, tls::ServingCertificate};
use crate::{
    auth::{Caller, InternalCaller},
    issue::{CertificateAuthority, IssueError, Request},
    policy::Asked,
    telemetry::RequestId,
};
use pki::{Issuer, identity::Name};

use process::error::{Advice, Remedy, chain};

/// Interval of reading files, and of comparing the clock with the certificate's validity.
const LOOK: Duration = Duration::from_secs(2);
/// Delay after the first failure; it doubles up to [`BACKOFF_MOST`].
const BACKOFF: Duration = Duration::from_secs(1);
/// Maximum delay between two attempts, short enough to notice a recovered token soon.
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// No serving certificate, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The files cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Only one of the two files is configured.
    #[error("[serving] certificate_file and key_file go together{advice}", advice = Advice(self))]
    Half,
    /// The CA issued no certificate.
    #[error("the serving certificate was not issued")]
    Issue(#[from] IssueError),
    /// No key could be generated.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate issued or read is malformed.
    #[error("the serving certificate cannot be parsed")]
    Malformed,
}

impl Remedy for ServingError {
    fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Files(error) => error.remedy(),
            Self::Half => Some("set both, or neither to use a certificate issued by this CA".into()),
            Self::Issue(_) | Self::Key(_) | Self::Malformed => None,
        }
    }
}

/// Source of the certificate.
#[derive(Debug)]
enum Source {
    Files { files: Files, tried: Option<Content> },
    Issued { ca: Arc<CertificateAuthority>, issuers: watch::Receiver<Arc<Issuer>> },
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content")
    }
}

/// A certificate and its validity.
struct Current {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Validity of the certificate in use.
#[derive(Clone, Copy, Debug)]
struct InUse {
    not_before: SystemTime,
    not_after: SystemTime,
    renew_at: SystemTime,
}

impl InUse {
    /// Whether another one is needed: it is late, or the clock is behind the one that it was issued by.
    fn is_due(self, now: SystemTime) -> bool {
        now >= self.renew_at || now < self.not_before
    }

    /// Why clients reject it, if they do.
    fn problem(self, now: SystemTime) -> Option<&'static str> {
        match now {
            now if now >= self.not_after => Some("it has expired"),
            now if now < self.not_before => Some("it is not valid yet"),
            _ => None,
        }
    }
}

/// The files in the settings, if any.
///
/// # Errors
/// If only one of the two is configured.
pub fn files(settings: &Serving) -> Result<Option<Files>, ServingError> {
    match (&settings.certificate_file, &settings.key_file) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let dns = settings.dns_names.iter().cloned().map(Name::Dns);
            let names = dns.chain(settings.ip_addresses.iter().copied().map(Name::Ip)).collect();
            Ok(Some(Files { certificate: PathBuf::clone(certificate), key: PathBuf::clone(key), names }))
        }
        (Some(_), None) | (None, Some(_)) => Err(ServingError::Half),
    }
}

/// Starts to keep the serving certificate, until `stop` is cancelled. The watch tells why there is none that clients
/// accept, `None` when there is; the first is tried at once.
///
/// # Errors
/// If the settings contain only one of the two files. Temporary failures are only logged and retried.
pub fn spawn(
    ca: Arc<CertificateAuthority>,
    settings: &Serving,
    certificate: ServingCertificate,
    stop: CancellationToken,
) -> Result<watch::Receiver<Option<String>>, ServingError> {
    let source = match files(settings)? {
        Some(files) => Source::Files { files, tried: None },
        None => Source::Issued { issuers: ca.issuers(), ca },
    };
    Ok(start(source, certificate, stop))
}

/// Like [`spawn`], for an endpoint without its own CA: only from files.
#[must_use]
pub fn spawn_files(
    files: Files,
    certificate: ServingCertificate,
    stop: CancellationToken,
) -> watch::Receiver<Option<String>> {
    start(Source::Files { files, tried: None }, certificate, stop)
}

fn start(source: Source, certificate: ServingCertificate, stop: CancellationToken) -> watch::Receiver<Option<String>> {
    let (trouble, watched) = watch::channel(Some("there is none yet".to_owned()));
    let renewer = CertRenewer { source, certificate, trouble };
    tokio::spawn(async move {
        tokio::select! { () = stop.cancelled() => {}, () = renewer.run() => {} }
    });
    watched
}

struct CertRenewer {
    source: Source,
    certificate: ServingCertificate,
    trouble: watch::Sender<Option<String>>,
}

impl CertRenewer {
    async fn run(mut self) {
        let mut backoff = BACKOFF;
        let mut in_use: Option<InUse> = None;
        let mut failure: Option<String> = None;
        let mut changed = true;
        loop {
            let now = process::clock::now();
            // After a failure whatever the clock says: it may be the clock that failed.
            let due = changed || failure.is_some() || in_use.is_none_or(|in_use| in_use.is_due(now));
            let wait = if due {
                match self.source.obtain().await {
                    Ok(Some(Current { certified, not_before, not_after })) => {
                        let new = InUse { not_before, not_after, renew_at: half_life(now, not_after) };
                        in_use = Some(new);
                        self.take(certified, not_after);
                        failure = None;
                        backoff = BACKOFF;
                        until(now, new.renew_at).min(LOOK)
                    }
                    Ok(None) => LOOK,
                    Err(error) => {
                        let is_clock = matches!(error, ServingError::Issue(IssueError::Clock(_)));
                        let error = chain(&error);
                        // The clock costs nothing to ask; its state is reported and used at once when it changes.
                        let wait = if is_clock { LOOK } else { backoff };
                        if !is_clock || failure.as_ref() != Some(&error) {
                            tracing::warn!(
                                error,
                                retry_s = wait.as_secs(),
                                "the serving certificate could not be renewed; will retry"
                            );
                        }
                        failure = Some(error);
                        if !is_clock {
                            backoff = (backoff * 2).min(BACKOFF_MOST);
                        }
                        wait
                    }
                }
            } else {
                in_use.map_or(LOOK, |in_use| until(now, in_use.renew_at).min(LOOK))
            };
            let now = process::clock::now();
            let trouble = match in_use {
                Some(in_use) => in_use.problem(now).map(|problem| because(problem, failure.as_deref())),
                None => Some(because("there is none yet", failure.as_deref())),
            };
            if trouble.is_some() && in_use.is_some() && self.trouble.borrow().is_none() {
                tracing::error!(
                    reason = trouble.as_deref(),
                    "the serving certificate is not valid now; clients will reject it"
                );
            }
            self.trouble.send_if_modified(|current| {
                let changed = *current != trouble;
                *current = trouble;
                changed
            });
            changed = tokio::select! {
                () = tokio::time::sleep(wait) => matches!(self.source, Source::Files { .. }),
                () = self.source.replaced() => true,
            };
        }
    }

    fn take(&self, certified: Arc<CertifiedKey>, not_after: SystemTime) {
        self.certificate.replace(certified);
        let end = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!("istio_hsm_ca_serving_certificate_expiry_timestamp_seconds").set(end.as_secs_f64());
        tracing::info!(not_after_unix = end.as_secs(), "the serving certificate was renewed");
    }
}

impl Source {
    /// Waits for another CA certificate. Files are read and compared instead.
    async fn replaced(&mut self) {
        if let Self::Issued { issuers, .. } = self
            && issuers.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Obtains a certificate; `None` if the files are unchanged.
    async fn obtain(&mut self) -> Result<Option<Current>, ServingError> {
        match self {
            Self::Files { files, tried } => {
                let content = files.read()?;
                if tried.as_ref() == Some(&content) {
                    return Ok(None);
                }
                // Stored before parsing, to report the same mistake only once.
                let content = tried.insert(content);
                let parsed = files.parse(content, process::clock::now());
                // The same files are good later.
                if matches!(parsed, Err(FilesError::NotYetValid { .. })) {
                    *tried = None;
                }
                current(parsed?).map(Some)
            }
            Self::Issued { ca, .. } => current(issued(ca).await?).map(Some),
        }
    }
}

/// Issues a certificate for a new key, through the issuance pipeline.
async fn issued(ca: &CertificateAuthority) -> Result<Arc<CertifiedKey>, ServingError> {
    let key = ServingKey::generate()?;
    let request = Request {
        id: RequestId::random().into(),
        caller: Caller::internal(InternalCaller::ServingCertificate),
        csr: key.request()?,
        asked: Asked::default(),
        issuer: None,
        arrived: std::time::Instant::now(),
        deadline: None,
    };
    let issued = ca.issue(request).await?;
    let mut chain = vec![CertificateDer::from(issued.der().to_vec())];
    for pem in issued.tbs().issuer().path_pem() {
        chain.push(CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| ServingError::Malformed)?);
    }
    Ok(Arc::new(CertifiedKey::new(chain, Arc::new(key))))
}

fn current(certified: Arc<CertifiedKey>) -> Result<Current, ServingError> {
    let leaf = certified.cert.first().ok_or(ServingError::Malformed)?;
    let leaf = x509_cert::Certificate::from_der(leaf).map_err(|_| ServingError::Malformed)?;
    let validity = leaf.tbs_certificate().validity();
    let (not_before, not_after) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    Ok(Current { certified, not_before, not_after })
}

fn because(trouble: &str, failure: Option<&str>) -> String {
    failure.map_or_else(|| trouble.to_owned(), |failure| format!("{trouble}: {failure}"))
}

/// The middle of what is left; never in a hot loop, however short that is.
fn half_life(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + (left / 2).max(BACKOFF)
}

fn until(now: SystemTime, then: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default().max(BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_half_its_life_and_never_in_a_hot_loop() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = Duration::from_secs(86_400);
        assert_eq!(half_life(now, now + day), now + day / 2);
        for end in [now, now - day, now + BACKOFF] {
            assert_eq!(half_life(now, end), now + BACKOFF);
            assert_eq!(until(now, end), BACKOFF);
        }
        assert_eq!(until(now, now + day), day);
    }

    #[test]
    fn a_certificate_is_renewed_and_reported_while_the_clock_is_outside_its_validity() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = Duration::from_secs(86_400);
        let in_use = InUse { not_before: now, not_after: now + 2 * day, renew_at: now + day };
        let cases = [
            (now - day, true, Some("it is not valid yet")),
            (now, false, None),
            (now + day, true, None),
            (now + 2 * day, true, Some("it has expired")),
        ];
        for (at, due, problem) in cases {
            assert_eq!((in_use.is_due(at), in_use.problem(at)), (due, problem), "{at:?}");
        }
    }
}
