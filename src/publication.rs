//! The CRLs that are published next to the roots: those of all CAs and roots of the bundle, as one PEM text, and whether
//! they may be published without harm ([`pki::crl::judge()`]).
//!
//! Envoy rejects every certificate below a CA without a current CRL as soon as it has the CRL of another. A set that is
//! incomplete is therefore never published. A published set stays as it is until there is a better one.
//!
//! Pure: the files have been read, and the time is given.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use pki::{
    Issuer,
    bundle::{Input, Problem},
    crl::{self, Crl, Role},
};

/// What a ConfigMap holds (Kubernetes: pkg/apis/core/validation, MaxSecretSize, which applies to ConfigMaps, too).
pub const SIZE_MAX: usize = 1 << 20;
/// From this size on there is a warning.
pub const SIZE_WARNING: usize = SIZE_MAX / 2;
/// How long every CRL must remain valid to be published: until the kubelets have replaced mounted files, and Envoy has
/// loaded them.
const VALID_FOR: Duration = Duration::from_secs(3600);

/// The CRLs at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// Whether they are to be published.
    pub enabled: bool,
    /// All CRLs in PEM, the CA's first.
    pub text: String,
    /// Every CA of the bundle.
    pub authorities: Vec<Authority>,
    /// Why the CRLs must not be published, apart from [`Publication::missing_own`].
    pub blocked: Vec<Problem>,
    /// That the CA itself has no CRL, which a token signs as soon as it can; in Kubernetes for the leader only.
    pub missing_own: Option<Problem>,
    /// Why they should not be published for the first time: some are past nextUpdate soon.
    pub premature: Vec<Problem>,
    /// What the operator should look into.
    pub warnings: Vec<String>,
}

/// A CA of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// What it is: the CA, an intermediate CA, a root.
    pub role: Role,
    /// Its subject for people.
    pub subject: String,
    /// Its CRL, if there is one.
    pub crl: Option<Published>,
}

/// A CRL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The file and line, or what else it is.
    pub place: String,
    /// The CRL number in hexadecimal digits.
    pub number: Option<String>,
    /// thisUpdate.
    pub this_update: SystemTime,
    /// nextUpdate.
    pub next_update: SystemTime,
    /// How many certificates it revokes.
    pub entries: usize,
}

/// The name of the CA's own CRL in messages.
pub const OWN: &str = "the CA's own CRL";

impl Publication {
    /// Judges for publication the CA's own CRL, in PEM, and those in files. `margin` is how long each must remain valid for a first
    /// publication.
    #[must_use]
    pub fn new(issuer: &Issuer, own: Option<&str>, files: &[Input], now: SystemTime, margin: Duration) -> Self {
        let own = own.map(|pem| Input { name: OWN.to_owned(), bytes: pem.as_bytes().to_vec() });
        let (mut crls, mut blocked) = (Vec::new(), Vec::new());
        for input in own.iter().chain(files) {
            match crl::read(input) {
                Ok(read) => crls.extend(read),
                Err(problems) => blocked.extend(problems),
            }
        }
        let judged = crl::judge(issuer, &crls, now, VALID_FOR);
        // What is missing may stand in a file that cannot be read.
        if blocked.is_empty() {
            blocked = judged.problems;
        }
        let premature = match blocked.as_slice() {
            [] => crl::judge(issuer, &crls, now, margin).problems,
            _ => Vec::new(),
        };
        let authorities = judged.authorities.into_iter();
        let authorities: Vec<Authority> = authorities
            .map(|it| Authority { role: it.role, subject: it.subject, crl: it.crl.map(Published::from) })
            .collect();
        let mut warnings: Vec<String> = judged.warnings.iter().map(ToString::to_string).collect();
        let text: String = crls.iter().map(Crl::to_pem).collect();
        if text.len() > SIZE_WARNING {
            let size = size(&text, &crls);
            if text.len() > SIZE_MAX {
                blocked.push(Problem::with_remedy("the CRLs", size, REMEDY_SIZE));
            } else {
                warnings.push(format!("the CRLs: {size}; {REMEDY_SIZE}"));
            }
        }
        Self { enabled: true, text, authorities, blocked, missing_own: judged.missing_own, premature, warnings }
    }

    /// Whether the CRLs may be published.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.blocked.is_empty() && self.missing_own.is_none()
    }

    /// Every problem in one line.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let problems = self.blocked.iter().chain(&self.missing_own).chain(&self.premature);
        let problems: Vec<String> = problems.map(ToString::to_string).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// The CRLs in one line: `the CA CN=ca: number 2A until 2026-01-01T00:00:00Z, 3 entries`.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let mut text = String::new();
        for Authority { role, subject, crl } in &self.authorities {
            let separator = if text.is_empty() { "" } else { "; " };
            let crl = crl.as_ref().map_or_else(|| "no CRL".to_owned(), ToString::to_string);
            let _ = write!(text, "{separator}{role} {subject}: {crl}");
        }
        (!text.is_empty()).then_some(text)
    }
}

const REMEDY_SIZE: &str = "revoke fewer certificates by blocking their subjects until they expire, or shorten [ca] max_ttl; \
                           entries leave the CRL when their certificates expire";

/// The size, and how many entries fit.
fn size(text: &str, crls: &[Crl]) -> String {
    let entries: usize = crls.iter().map(Crl::entries).sum();
    let fit = entries.saturating_mul(SIZE_MAX).checked_div(text.len()).unwrap_or_default();
    format!(
        "{} KiB with {entries} entries; a ConfigMap holds {} KiB, which is about {fit} entries",
        text.len() / 1024,
        SIZE_MAX / 1024
    )
}

impl From<&Crl> for Published {
    fn from(crl: &Crl) -> Self {
        Self {
            place: crl.place(),
            number: crl.number_text(),
            this_update: crl.this_update(),
            next_update: crl.next_update(),
            entries: crl.entries(),
        }
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let until = humantime::format_rfc3339_seconds(self.next_update);
        let entries = if self.entries == 1 { "entry" } else { "entries" };
        let number = self.number.as_deref().unwrap_or("none");
        write!(f, "number {number} until {until}, {} {entries} ({})", self.entries, self.place)
    }
}

/// A published text, as another replica or an earlier run wrote it.
#[derive(Debug)]
pub struct Earlier {
    crls: Vec<Crl>,
}

impl Earlier {
    /// Reads a text; `None` if it is empty or cannot be used by anyone.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let input = Input { name: "the published CRLs".to_owned(), bytes: text.as_bytes().to_vec() };
        crl::read(&input).ok().map(|crls| Self { crls })
    }

    /// Whether one of its CRLs is past nextUpdate soon, after which Envoy rejects certificates that are not revoked.
    #[must_use]
    pub fn expires_soon(&self, now: SystemTime) -> bool {
        self.crls.iter().any(|crl| crl.next_update().duration_since(now).unwrap_or_default() < VALID_FOR)
    }

    /// Whether the CA signed a CRL with a higher number than the one in a publication.
    #[must_use]
    pub fn is_newer(&self, issuer: &Issuer, publication: &Publication) -> bool {
        let of = |crls: &[Crl]| {
            let judged = crl::judge(issuer, crls, SystemTime::UNIX_EPOCH, Duration::ZERO);
            let crl = judged.authorities.into_iter().find(|it| it.role == Role::Ca).and_then(|it| it.crl);
            crl.and_then(Crl::number).map(<[u8]>::to_vec)
        };
        let Some(ours) = Self::read(&publication.text).and_then(|ours| of(&ours.crls)) else { return false };
        of(&self.crls).is_some_and(|theirs| (theirs.len(), &theirs) > (ours.len(), &ours))
    }
}
