//! When a new CRL is due. Pure.

use std::time::{Duration, SystemTime};

use pki::{crl::RevokedEntry, profile::CLOCK_SKEW};

/// The last CRL that this replica signed, as far as the next one depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// SHA-256 of the CA certificate's SubjectPublicKeyInfo.
    pub ca_key: [u8; 32],
    /// DER of the CA certificate.
    pub certificate: Vec<u8>,
    /// Its entries.
    pub entries: Vec<RevokedEntry>,
    /// When it was signed.
    pub signed_at: SystemTime,
}

/// What a CRL is for now.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// DER of the CA certificate.
    pub certificate: &'a [u8],
    /// The entries.
    pub entries: &'a [RevokedEntry],
    /// Now.
    pub now: SystemTime,
    /// The age at which a CRL is replaced.
    pub refresh_after: Duration,
}

/// Why a new CRL is due; `None` if the last one will do.
#[must_use]
pub fn due(last: Option<&Last>, wanted: &Wanted<'_>) -> Option<&'static str> {
    let Some(last) = last else { return Some("there is none yet") };
    if last.certificate != wanted.certificate {
        return Some("the CA certificate changed");
    }
    if last.entries != wanted.entries {
        return Some("the revoked certificates changed");
    }
    // A clock that was set back makes it due as well, since thisUpdate must not be in the future.
    match wanted.now.duration_since(last.signed_at) {
        Ok(age) if age < wanted.refresh_after => None,
        Ok(_) => Some("the last one is old enough"),
        Err(ahead) if ahead.duration() <= CLOCK_SKEW => None,
        Err(_) => Some("the clock was set back"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::crl::Reason;

    #[test]
    fn crl_is_due_when_its_content_or_its_age_says_so() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let hour = Duration::from_secs(3600);
        let entry =
            RevokedEntry { serial: "0a".parse().unwrap(), revoked_at: now, reason: Reason::Superseded, expires: now };
        let last = Last { ca_key: [1; 32], certificate: vec![1], entries: vec![entry.clone()], signed_at: now };
        let released = RevokedEntry { reason: Reason::KeyCompromise, ..entry.clone() };
        let (same, none, other) = (vec![entry], vec![], vec![released]);
        let cases: [(&[u8], &[RevokedEntry], SystemTime, bool); 8] = [
            (&[1], &same, now, false),
            (&[1], &same, now + hour - Duration::from_secs(1), false),
            (&[1], &same, now + hour, true),
            (&[1], &same, now - CLOCK_SKEW, false),
            (&[1], &same, now - hour, true),
            (&[2], &same, now, true),
            (&[1], &none, now, true),
            (&[1], &other, now, true),
        ];
        for (certificate, entries, now, expected) in cases {
            let wanted = Wanted { certificate, entries, now, refresh_after: hour };
            assert_eq!(due(Some(&last), &wanted).is_some(), expected, "{wanted:?}");
            assert!(due(None, &wanted).is_some());
        }
    }
}
