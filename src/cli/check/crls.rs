//! The CRLs of the bundle's CAs, and what prevents their publication.

use super::finding::{Finding, Findings};
use crate::{config::Config, daemon::publication::Inputs, publication::Publication};
use pki::{Bundle, bundle::Problem, crl::Role};

/// The state of every CA. The CA's own CRL is the daemon's, and not missed here.
pub(super) fn crls(config: &Config, bundle: &Bundle) -> Vec<Finding> {
    let mut found = Findings::about("CRLs");
    let Some(inputs) = Inputs::of(config) else { return found.into_vec() };
    let publication = match inputs.read() {
        Ok(files) => Publication::new(bundle.issuer(), None, &files, process::clock::now(), inputs.margin),
        Err(blocked) => Publication { blocked, ..Publication::default() },
    };
    for authority in &publication.authorities {
        let name = format!("{} {}", authority.role, authority.subject);
        match &authority.crl {
            Some(crl) => found.ok(format!("{name}: {crl}")),
            None if authority.role == Role::Ca => found.ok(format!("{name}: the daemon signs its CRL")),
            None => {}
        }
    }
    for Problem { file, reason, remedy } in publication.blocked.iter().chain(&publication.premature) {
        let remedy = remedy.clone().unwrap_or_else(|| "correct it".to_owned());
        found.warning(format!("{file}: {reason}"), format!("{remedy}; until then CRLs are not published"));
    }
    for warning in &publication.warnings {
        found.warning(warning, "see docs/REVOCATION.md, section Safeguards");
    }
    if !inputs.enabled {
        let state = if publication.blocked.is_empty() { "may be enabled" } else { "are not complete" };
        found.ok(format!("the CRLs are not published, and {state}: [revocation] enabled"));
    }
    found.into_vec()
}
