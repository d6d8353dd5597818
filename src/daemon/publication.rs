//! Judges the CRLs of the bundle's CAs after each change of them or of the bundle, and as time passes; reports the result in
//! readiness, metrics and log.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{
    background::Background,
    readiness::{Readiness, ReadinessHandle},
};
use crate::{
    bundle_files,
    config::Config,
    issue::CertificateAuthority,
    publication::{Authority, Publication},
    revocation::PublishedCrl,
    telemetry::metrics,
};
use pki::{
    bundle::{Input, Problem},
    crl::Role,
};
use process::clock;

/// How often the files are read again.
const POLL: Duration = Duration::from_secs(5);

/// What is judged, apart from the CA's own CRL.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Whether the CRLs are to be published.
    pub enabled: bool,
    /// PEM files with the CRLs of the other CAs and of the roots.
    pub files: Vec<PathBuf>,
    /// How long each CRL must remain valid for a first publication.
    pub margin: Duration,
}

impl Inputs {
    /// What `[revocation]` says; `None` without it.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let settings = config.revocation.as_ref()?;
        Some(Self {
            enabled: settings.enabled,
            files: settings.root_crl_files.clone(),
            margin: settings.refresh_after(),
        })
    }

    /// The content of the files.
    ///
    /// # Errors
    /// All files that cannot be read.
    pub fn read(&self) -> Result<Vec<Input>, Vec<Problem>> {
        let (mut inputs, mut problems) = (Vec::new(), Vec::new());
        for path in &self.files {
            match bundle_files::read_public(path) {
                Ok(input) => inputs.push(input),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(inputs) } else { Err(problems) }
    }

    fn judge(&self, ca: &CertificateAuthority, own: Option<&str>) -> Publication {
        let publication = match self.read() {
            Ok(files) => Publication::new(&ca.issuer(), own, &files, clock::now(), self.margin),
            Err(blocked) => Publication { blocked, ..Publication::default() },
        };
        Publication { enabled: self.enabled, ..publication }
    }
}

/// Keeps the publication of a CA current until the daemon ends. `own` is the CA's own CRL; `leading` is whether this
/// replica signs it.
pub fn start(
    inputs: Inputs,
    ca: Arc<CertificateAuthority>,
    mut own: watch::Receiver<Option<Arc<PublishedCrl>>>,
    leading: Option<watch::Receiver<bool>>,
    readiness: &Readiness,
    background: &Background,
) {
    let handle = readiness.informational("CRLs");
    background.spawn_until_end(async move {
        let mut issuers = ca.issuers();
        let mut warned = Vec::new();
        loop {
            let current = own.borrow_and_update().clone();
            issuers.mark_unchanged();
            let mut publication = inputs.judge(&ca, current.as_deref().map(|crl| crl.pem.as_str()));
            if leading.as_ref().is_some_and(|leading| !*leading.borrow()) {
                publication.missing_own = None;
            }
            if publication.warnings != warned {
                publication.warnings.iter().for_each(|warning| tracing::warn!(warning, "CRLs"));
                warned.clone_from(&publication.warnings);
            }
            report(&publication, &handle);
            gather(&publication);
            ca.replace_publication(publication);
            tokio::select! {
                _ = own.changed() => {}
                _ = issuers.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    });
}

/// Until the CRLs are enabled, an incomplete set does not affect readiness.
fn report(publication: &Publication, handle: &ReadinessHandle) {
    let (trouble, summary) = (publication.trouble(), publication.summary());
    if publication.enabled {
        handle.set(trouble);
        handle.note(summary);
        return;
    }
    handle.set(None);
    let state = trouble.unwrap_or_else(|| "complete".to_owned());
    let summary = summary.map(|summary| format!("; {summary}")).unwrap_or_default();
    handle.note(Some(format!("not published, as [revocation] enabled is not set; {state}{summary}")));
}

fn gather(publication: &Publication) {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    for (of, is_own) in [("ca", true), ("others", false)] {
        let crls = publication.authorities.iter().filter(|it: &&Authority| (it.role == Role::Ca) == is_own);
        // The one that expires first.
        let first = crls.filter_map(|it| it.crl.as_ref()).min_by_key(|crl| crl.next_update);
        if let Some(crl) = first {
            let label = Some(("of", of.to_owned()));
            metrics::level("istio_hsm_ca_crl_this_update_timestamp_seconds", label.clone(), seconds(crl.this_update));
            metrics::level("istio_hsm_ca_crl_next_update_timestamp_seconds", label.clone(), seconds(crl.next_update));
            metrics::level("istio_hsm_ca_crl_entries", label, count(crl.entries));
        }
    }
    let publishable = if publication.is_complete() { 1.0 } else { 0.0 };
    metrics::level("istio_hsm_ca_crls_enabled", None, if publication.enabled { 1.0 } else { 0.0 });
    metrics::level("istio_hsm_ca_crls_publishable", None, publishable);
    metrics::level("istio_hsm_ca_crls_bytes", None, count(publication.text.len()));
}
