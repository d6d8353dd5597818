//! Whether a set of CRLs can be published next to the roots of a bundle without harm.
//!
//! Envoy (BoringSSL) verifies every certificate of a chain as soon as it has any CRL: a CA or root without a current CRL
//! takes all certificates below it out of service. OpenSSL's `verify -crl_check_all` does the same. The rules here follow
//! from handshakes with Envoy (docs/REVOCATION.md).

use std::time::{Duration, SystemTime};

use super::Crl;
use crate::{
    Issuer,
    bundle::{
        Problem, Warning,
        certificate::Certificate,
        path::{is_signature_of, may_point_to},
        rules::date,
    },
    name, pem,
};

/// What a CA certificate is in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The CA that issues here, which may be its own root.
    Ca,
    /// A CA between the issuing CA and a root.
    Intermediate,
    /// A root.
    Root,
}

/// A CA of the bundle, and its CRL.
#[derive(Clone, Debug)]
pub struct Authority<'a> {
    /// What it is.
    pub role: Role,
    /// Its subject for people (RFC 4514).
    pub subject: String,
    /// Its CRL, if there is one that its key signed.
    pub crl: Option<&'a Crl>,
}

/// The result of [`judge`].
#[derive(Clone, Debug)]
pub struct Judgement<'a> {
    /// The CAs from the issuing one up to its root, then the other roots.
    pub authorities: Vec<Authority<'a>>,
    /// Why the issuing CA has no CRL among them, if it has none: the only problem that is not the operator's to solve.
    pub missing_own: Option<Problem>,
    /// Why else the CRLs must not be published.
    pub problems: Vec<Problem>,
    /// What cannot be decided here.
    pub warnings: Vec<Warning>,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ca => "the CA",
            Self::Intermediate => "the intermediate CA",
            Self::Root => "the root",
        })
    }
}

/// One CA while it is judged: certificates with the same name and key are one CA.
struct Candidate {
    role: Role,
    certificates: Vec<Certificate>,
}

const REISSUE: &str = "have its certificate issued again for the same name and key, with cRLSign in keyUsage, and put it in \
                       place of the old one; until then leave revocation disabled";
const WITHOUT_KEY_ID: &str = "have the CRL issued again with authorityKeyIdentifier";

/// Judges the CRLs for the CAs of a bundle. `margin` is how long each CRL must remain valid.
///
/// Every CA and root must have exactly one CRL that its key signed, that is valid now and for another `margin`, and whose
/// authorityKeyIdentifier points to it; its certificate must permit it to sign CRLs. CRLs of CAs that are not in the
/// bundle are accepted with a warning: they belong to CAs below other roots.
#[must_use]
pub fn judge<'a>(issuer: &Issuer, crls: &'a [Crl], now: SystemTime, margin: Duration) -> Judgement<'a> {
    let candidates = candidates(issuer);
    let mut judged =
        Judgement { authorities: Vec::new(), missing_own: None, problems: Vec::new(), warnings: Vec::new() };
    for candidate in &candidates {
        let has_namesake = candidates.iter().filter(|other| other.subject() == candidate.subject()).count() > 1;
        let crl = match candidate.crl(crls, has_namesake, &mut judged.problems) {
            Ok(crl) => Some(crl),
            Err(problem) if candidate.role == Role::Ca => {
                judged.missing_own = Some(problem);
                None
            }
            Err(problem) => {
                judged.problems.push(problem);
                None
            }
        };
        judged.authorities.push(Authority { role: candidate.role, subject: candidate.name(), crl });
    }
    for crl in crls {
        judged.problems.extend(untimely(crl, now, margin));
        judged.problems.extend(stray(crl, &candidates));
        if !candidates.iter().any(|candidate| candidate.subject() == crl.issuer) {
            judged.warnings.push(Warning(format!(
                "{}: its issuer {} is not in the bundle, so that its signature is not verified; it belongs here if that \
                 CA is below one of the roots",
                crl.place(),
                crl.issuer_text()
            )));
        }
    }
    let is_on_path = |candidate: &Candidate| {
        let path = issuer.path_pem().iter().map(String::as_str).chain([issuer.root_pem()]);
        let mut blocks = path.filter_map(|text| pem::blocks(text.as_bytes()).ok()).flatten();
        blocks.any(|block| candidate.certificates.iter().any(|it| it.der == *block.der))
    };
    for candidate in candidates.iter().filter(|candidate| candidate.role == Role::Root && !is_on_path(candidate)) {
        judged.warnings.push(Warning(format!(
            "{} {}: this CA is not below it; Envoy rejects the certificates of each CA below it whose CRL is not \
             published, so that the CRLs of all those CAs must be in [revocation] crl_files",
            candidate.role,
            candidate.name()
        )));
    }
    judged
}

/// The CAs of a bundle, each once. Certificates that cannot be read are not in a checked bundle.
fn candidates(issuer: &Issuer) -> Vec<Candidate> {
    let path = issuer.path_pem().iter().filter_map(|text| pem::blocks(text.as_bytes()).ok()).flatten();
    let below_root = path.map(|block| block.der.to_vec());
    let all = below_root.map(|der| (Role::Intermediate, der));
    let all = all.chain(issuer.roots().iter().map(|der| (Role::Root, der.clone())));
    let mut found: Vec<Candidate> = Vec::new();
    for (role, der) in all {
        let Ok(certificate) = Certificate::parse("the bundle", 1, &der) else { continue };
        let is_ca = certificate.subject == issuer.subject() && certificate.spki == issuer.public_key().spki_der();
        match found.iter_mut().find(|known| known.certificates.iter().any(|it| it.is_same_ca(&certificate))) {
            Some(known) => known.certificates.push(certificate),
            None => {
                let role = if is_ca { Role::Ca } else { role };
                found.push(Candidate { role, certificates: vec![certificate] });
            }
        }
    }
    found
}

impl Candidate {
    fn subject(&self) -> &[u8] {
        self.certificates.first().map_or(&[], |certificate| &certificate.subject)
    }

    fn name(&self) -> String {
        name::shown(self.subject())
    }

    fn label(&self) -> String {
        format!("{} {}", self.role, self.name())
    }

    /// Whether the CA's key signed a CRL.
    fn has_signed(&self, crl: &Crl) -> bool {
        self.certificates.iter().any(|certificate| is_signature_of(&crl.signature, &crl.tbs, certificate))
    }

    /// The CA's CRL; what is wrong with it or with the CA is added to the problems.
    fn crl<'a>(&self, crls: &'a [Crl], has_namesake: bool, problems: &mut Vec<Problem>) -> Result<&'a Crl, Problem> {
        if self.certificates.iter().any(|certificate| certificate.may_sign_crls == Some(false)) {
            let reason = "lacks cRLSign in keyUsage: Envoy rejects all certificates below it as soon as there is a CRL";
            problems.push(Problem::with_remedy(&self.label(), reason, REISSUE));
        }
        let own: Vec<&Crl> = crls.iter().filter(|crl| crl.issuer == self.subject() && self.has_signed(crl)).collect();
        let crl = own.first().copied().ok_or_else(|| self.without_crl(crls))?;
        if let [first, second, ..] = own.as_slice() {
            let reason =
                format!("has two CRLs, in {} and {}; which of them counts is undefined", first.place(), second.place());
            problems.push(Problem::with_remedy(&self.label(), reason, "remove the older one"));
        }
        for certificate in self.certificates.iter().filter(|it| !may_point_to(&crl.authority, it)) {
            let reason = format!(
                "has an authorityKeyIdentifier that does not point to {} ({}); Envoy ignores the CRL",
                self.label(),
                if certificate.subject_key_id.is_some() {
                    "its subjectKeyIdentifier differs"
                } else {
                    "its serial number differs"
                }
            );
            problems.push(Problem::with_remedy(&crl.place(), reason, WITHOUT_KEY_ID));
        }
        if has_namesake && crl.authority.key_id.is_none() {
            let reason =
                format!("has no authorityKeyIdentifier, and the bundle has several CAs with the name {}", self.name());
            problems.push(Problem::with_remedy(&crl.place(), reason, WITHOUT_KEY_ID));
        }
        Ok(crl)
    }

    fn without_crl(&self, crls: &[Crl]) -> Problem {
        let label = self.label();
        if let Some(other) = crls.iter().find(|crl| crl.issuer != self.subject() && self.has_signed(crl)) {
            let reason = format!(
                "has its CRL in {}, which names the issuer in another encoding; Go and ztunnel compare names byte for byte",
                other.place()
            );
            return Problem::with_remedy(
                &label,
                reason,
                "have the CRL issued again with the certificate's subject, byte for byte",
            );
        }
        let remedy = match self.role {
            Role::Ca => {
                "this daemon signs its CRL; the line `CRL signing` at /readyz says why there is none".to_owned()
            }
            Role::Intermediate | Role::Root => format!(
                "have its owner issue a CRL, even if nothing is revoked (`openssl ca -gencrl`), and name its file in \
                 [revocation] crl_files{}",
                if self.role == Role::Root {
                    "; if no workload needs this root, remove it from the bundle"
                } else {
                    ""
                }
            ),
        };
        let reason = "has no CRL: Envoy rejects all certificates below it as soon as there is another CA's CRL";
        Problem::with_remedy(&label, reason, remedy)
    }
}

/// A CRL with the name of a CA of the bundle that no such CA signed.
fn stray(crl: &Crl, candidates: &[Candidate]) -> Option<Problem> {
    let mut namesakes = candidates.iter().filter(|candidate| candidate.subject() == crl.issuer).peekable();
    namesakes.peek()?;
    if namesakes.any(|candidate| candidate.has_signed(crl)) {
        return None;
    }
    let reason = format!(
        "the signature of the CRL of {} does not verify with the key of the certificate in the bundle, or is of a type \
         that ztunnel does not support, such as SHA-1",
        crl.issuer_text()
    );
    Some(Problem::with_remedy(
        &crl.place(),
        reason,
        "get the CRL of the CA that is in the bundle, signed with SHA-256 or better",
    ))
}

/// Why a CRL is not current for long enough.
fn untimely(crl: &Crl, now: SystemTime, margin: Duration) -> Option<Problem> {
    let (from, until) = (crl.this_update(), crl.next_update());
    let issuer = crl.issuer_text();
    let problem = |reason: String, remedy: &str| Some(Problem::with_remedy(&crl.place(), reason, remedy));
    if from > now {
        let reason =
            format!("the CRL of {issuer} is not valid before {}: Envoy rejects all certificates below it", date(from));
        return problem(reason, "wait, or set the clock right");
    }
    let renew = "have its CA issue a new CRL, and put it in place of this one";
    if until <= now {
        let reason = format!(
            "the CRL of {issuer} was to be replaced by {} (nextUpdate): Envoy rejects all certificates below it",
            date(until)
        );
        return problem(reason, renew);
    }
    if until.duration_since(now).is_ok_and(|left| left < margin) {
        let reason = format!(
            "the CRL of {issuer} is valid only until {} (nextUpdate), after which Envoy rejects all certificates below it; \
             at least {} days must be left",
            date(until),
            margin.as_secs() / 86_400
        );
        return problem(reason, renew);
    }
    None
}
