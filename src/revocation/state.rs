//! The state document: revoked certificates, blocks, the last reserved CRL number, and the last changes.
//!
//! Pure. One JSON object with a version; readers reject unknown versions and fields, since a document that is only partly
//! understood could revoke too little. Times are seconds since 1970.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{KeyHash, block::BlockSelector};
use audit_log::record::RevocationAction;
use pki::crl::{Reason, RevokedEntry, SerialNumber};

/// The version of the format.
pub const VERSION: u8 = 1;

/// Number of changes that the document keeps, so that replicas which were away record them.
const CHANGES_KEPT: usize = 64;

/// The state of revocation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`VERSION`].
    pub v: u8,
    /// Counts the changes of revoked certificates and blocks.
    pub revision: u64,
    /// The last CRL for which a number was reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<ReservedCrl>,
    /// Revoked certificates by the key of the CA that issued them.
    #[serde(default)]
    pub revoked: BTreeMap<KeyHash, Vec<Revoked>>,
    /// To whom no certificates are issued.
    #[serde(default)]
    pub blocks: Vec<Block>,
    /// The last changes, oldest first.
    #[serde(default)]
    pub changes: Vec<Change>,
}

impl Default for Document {
    fn default() -> Self {
        Self { v: VERSION, revision: 0, crl: None, revoked: BTreeMap::new(), blocks: Vec::new(), changes: Vec::new() }
    }
}

/// A CRL for which a number was reserved. It may not have been signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReservedCrl {
    /// The CRL number.
    pub number: u64,
    /// When it was reserved.
    pub at: u64,
    /// nextUpdate.
    pub next_update: u64,
}

/// A revoked certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Its serial number.
    pub serial: SerialNumber,
    /// When it was revoked.
    pub at: u64,
    /// Its notAfter.
    pub expires: u64,
    /// Why.
    pub reason: Reason,
    /// Its key, which is not certified again; unknown if no log has the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyHash>,
    /// The revision that revoked it.
    pub revision: u64,
}

/// To whom no certificates are issued.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Names the block in messages and for lifting it: the revision that made it.
    pub id: u64,
    /// Whom it denies certificates.
    pub selector: BlockSelector,
    /// When it was made.
    pub at: u64,
    /// When it ends; without, it is lifted by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Who made it.
    pub by: String,
}

impl Block {
    /// Whether it has not ended.
    #[must_use]
    pub fn holds(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| seconds(now) < until)
    }
}

/// A change of the document, for the issuance logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The revision that it led to.
    pub revision: u64,
    /// When it was made.
    pub at: u64,
    /// Who made it.
    pub by: String,
    /// What was done.
    pub action: RevocationAction,
    /// What was selected, as on the command line.
    pub selector: String,
    /// Why.
    pub reason: Reason,
    /// Whether it made or lifted a block.
    pub block: bool,
    /// Serial numbers that were released; those that were revoked have the change's revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub released: Vec<SerialNumber>,
}

/// A certificate to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The key of the CA that issued it.
    pub ca_key: KeyHash,
    /// Its serial number.
    pub serial: SerialNumber,
    /// Its notAfter.
    pub expires: SystemTime,
    /// Its key, if it is known.
    pub key: Option<KeyHash>,
}

/// Who changes the document, when, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The operator.
    pub by: String,
    /// Now.
    pub at: SystemTime,
    /// What was selected, as on the command line.
    pub selector: String,
    /// Why.
    pub reason: Reason,
}

/// What a revocation changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Certificates that are newly revoked.
    pub revoked: Vec<SerialNumber>,
    /// Certificates that were revoked already; those on hold get the new reason.
    pub already: Vec<SerialNumber>,
    /// The block that was made.
    pub block: Option<u64>,
}

/// A change is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The document does not revoke the certificate.
    #[error("the certificate {0} is not revoked; `istio-hsm-ca revoke --list` shows those that are")]
    NotRevoked(SerialNumber),
    /// Only certificateHold can be undone (RFC 5280, section 5.3.1).
    #[error(
        "the certificate {serial} was revoked for good ({reason}); only certificates revoked with the reason \
         certificateHold can be released, so issue a new one"
    )]
    NotOnHold {
        /// The certificate.
        serial: SerialNumber,
        /// Why it was revoked.
        reason: Reason,
    },
    /// There is no such block.
    #[error("there is no block {0}; `istio-hsm-ca revoke --list` shows them")]
    NoBlock(u64),
    /// Nothing would change.
    #[error("nothing would change: {0}")]
    Nothing(&'static str),
}

impl Document {
    /// Revokes certificates, and blocks if `block` is given, with the time at which it ends.
    ///
    /// # Errors
    /// If nothing would change.
    pub fn revoke(
        &mut self,
        order: &Order,
        certificates: &[Certificate],
        block: Option<(BlockSelector, Option<SystemTime>)>,
    ) -> Result<Effect, ChangeError> {
        let (revision, at) = (self.revision + 1, seconds(order.at));
        let mut effect = Effect::default();
        let mut changed = false;
        for certificate in certificates {
            let of_ca = self.revoked.entry(certificate.ca_key).or_default();
            match of_ca.iter_mut().find(|revoked| revoked.serial == certificate.serial) {
                Some(held) if held.reason == Reason::CertificateHold && order.reason != held.reason => {
                    (held.reason, held.revision, changed) = (order.reason, revision, true);
                    held.key = held.key.or(certificate.key);
                    effect.already.push(certificate.serial.clone());
                }
                Some(_) => effect.already.push(certificate.serial.clone()),
                None => {
                    of_ca.push(Revoked {
                        serial: certificate.serial.clone(),
                        at,
                        expires: seconds(certificate.expires),
                        reason: order.reason,
                        key: certificate.key,
                        revision,
                    });
                    effect.revoked.push(certificate.serial.clone());
                }
            }
        }
        self.revoked.retain(|_ca, certificates| !certificates.is_empty());
        if let Some((selector, until)) = block
            && !self.blocks.iter().any(|block| block.selector == selector && block.until.is_none())
        {
            self.blocks.retain(|block| block.selector != selector);
            let until = until.map(seconds);
            self.blocks.push(Block { id: revision, selector, at, until, by: order.by.clone() });
            effect.block = Some(revision);
        }
        if !changed && effect.revoked.is_empty() && effect.block.is_none() {
            return Err(ChangeError::Nothing("all of this is revoked and blocked already, or there is nothing"));
        }
        self.record(order, RevocationAction::Revoked, effect.block.is_some(), Vec::new());
        Ok(effect)
    }

    /// Releases certificates on hold.
    ///
    /// # Errors
    /// If one of them is not on hold; nothing changes then.
    pub fn release(&mut self, order: &Order, serials: &[SerialNumber]) -> Result<(), ChangeError> {
        for serial in serials {
            let entry = self.revoked.values().flatten().find(|revoked| revoked.serial == *serial);
            match entry {
                None => return Err(ChangeError::NotRevoked(serial.clone())),
                Some(Revoked { reason: Reason::CertificateHold, .. }) => {}
                Some(Revoked { reason, .. }) => {
                    return Err(ChangeError::NotOnHold { serial: serial.clone(), reason: *reason });
                }
            }
        }
        if serials.is_empty() {
            return Err(ChangeError::Nothing("no certificate is on hold"));
        }
        for certificates in self.revoked.values_mut() {
            certificates.retain(|revoked| !serials.contains(&revoked.serial));
        }
        self.revoked.retain(|_ca, certificates| !certificates.is_empty());
        let order = Order { reason: Reason::CertificateHold, ..order.clone() };
        self.record(&order, RevocationAction::Released, false, serials.to_vec());
        Ok(())
    }

    /// Lifts a block.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn unblock(&mut self, order: &Order, id: u64) -> Result<BlockSelector, ChangeError> {
        let at = self.blocks.iter().position(|block| block.id == id).ok_or(ChangeError::NoBlock(id))?;
        let block = self.blocks.remove(at);
        self.record(order, RevocationAction::Unblocked, true, Vec::new());
        Ok(block.selector)
    }

    /// The serial numbers on hold.
    #[must_use]
    pub fn on_hold(&self) -> Vec<SerialNumber> {
        let held = self.revoked.values().flatten().filter(|revoked| revoked.reason == Reason::CertificateHold);
        held.map(|revoked| revoked.serial.clone()).collect()
    }

    /// Reserves the number of the next CRL: greater than every earlier one, and at least the time, so that it also is
    /// after the document was lost or restored from an older copy. Entries that no CRL needs any more leave.
    pub fn reserve(&mut self, now: SystemTime, next_update: SystemTime, refresh_after: Duration) -> u64 {
        let at = seconds(now);
        let number = self.crl.as_ref().map_or(at, |last| at.max(last.number.saturating_add(1))).max(1);
        self.crl = Some(ReservedCrl { number, at, next_update: seconds(next_update) });
        self.prune(now, refresh_after);
        number
    }

    /// Removes certificates that have expired, and blocks that have ended. A revoked certificate stays until it was on a
    /// CRL issued after it has expired (RFC 5280, section 3.3); the next regular one is due after `refresh_after`.
    pub fn prune(&mut self, now: SystemTime, refresh_after: Duration) {
        let limit = seconds(now).saturating_sub(refresh_after.as_secs());
        for certificates in self.revoked.values_mut() {
            certificates.retain(|revoked| revoked.expires >= limit);
        }
        self.revoked.retain(|_ca, certificates| !certificates.is_empty());
        self.blocks.retain(|block| block.holds(now));
    }

    /// The entries of the CRL of the CA with this key.
    #[must_use]
    pub fn entries(&self, ca_key: [u8; 32]) -> Vec<RevokedEntry> {
        let revoked = self.revoked.get(&KeyHash(ca_key)).map(Vec::as_slice).unwrap_or_default();
        let entry = |revoked: &Revoked| RevokedEntry {
            serial: revoked.serial.clone(),
            revoked_at: time(revoked.at),
            reason: revoked.reason,
            expires: time(revoked.expires),
        };
        revoked.iter().map(entry).collect()
    }

    /// The changes after a revision, each with the serial numbers that it revoked or released.
    #[must_use]
    pub fn changes_after(&self, revision: u64) -> Vec<(&Change, Vec<&SerialNumber>)> {
        let changes = self.changes.iter().filter(|change| change.revision > revision);
        let serials = |change: &Change| {
            let revoked = self.revoked.values().flatten().filter(|revoked| revoked.revision == change.revision);
            revoked.map(|revoked| &revoked.serial).collect::<Vec<_>>()
        };
        changes.map(|change| (change, [serials(change), change.released.iter().collect()].concat())).collect()
    }

    /// Number of revoked certificates.
    #[must_use]
    pub fn revoked_count(&self) -> usize {
        self.revoked.values().map(Vec::len).sum()
    }

    fn record(&mut self, order: &Order, action: RevocationAction, block: bool, released: Vec<SerialNumber>) {
        self.revision += 1;
        let Order { by, at, selector, reason } = order.clone();
        let (revision, at) = (self.revision, seconds(at));
        self.changes.push(Change { revision, at, by, action, selector, reason, block, released });
        self.changes.drain(..self.changes.len().saturating_sub(CHANGES_KEPT));
    }
}

/// Whole seconds since 1970; 0 before.
#[must_use]
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time of a number of seconds since 1970, at most the end of the year 9999.
#[must_use]
pub fn time(seconds: u64) -> SystemTime {
    const END: u64 = 253_402_300_799;
    UNIX_EPOCH + Duration::from_secs(seconds.min(END))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600;
    const DAY: u64 = 86_400;
    const CA: KeyHash = KeyHash([1; 32]);

    fn order(reason: Reason, at: u64) -> Order {
        Order { by: "alice".to_owned(), at: time(at), selector: "--serial 0a".to_owned(), reason }
    }

    fn certificate(serial: &str) -> Certificate {
        Certificate {
            ca_key: CA,
            serial: serial.parse().unwrap(),
            expires: time(NOW + DAY),
            key: Some(KeyHash([7; 32])),
        }
    }

    fn serials(texts: &[&str]) -> Vec<SerialNumber> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn document_is_the_same_after_json() {
        let mut document = Document::default();
        let block = Some(("namespace=shop".parse().unwrap(), Some(time(NOW + 60))));
        document.revoke(&order(Reason::KeyCompromise, NOW), &[certificate("0a")], block).unwrap();
        document.reserve(time(NOW), time(NOW + 30 * DAY), Duration::from_secs(6 * DAY));
        let text = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), document);
        assert!(serde_json::from_str::<Document>(&text.replace("\"revision\":1", "\"revison\":1")).is_err());
    }

    #[test]
    fn only_a_hold_can_be_released_or_get_another_reason() {
        let mut document = Document::default();
        document.revoke(&order(Reason::CertificateHold, NOW), &[certificate("0a"), certificate("0b")], None).unwrap();
        assert_eq!(document.on_hold(), serials(&["0a", "0b"]));
        document.release(&order(Reason::Unspecified, NOW), &serials(&["0a"])).unwrap();
        assert_eq!(document.changes_after(1)[0].1, serials(&["0a"]).iter().collect::<Vec<_>>());
        let effect = document.revoke(&order(Reason::KeyCompromise, NOW + 9), &[certificate("0b")], None).unwrap();
        assert_eq!((effect.revoked, effect.already), (vec![], serials(&["0b"])));
        let entry = document.entries(CA.0).remove(0);
        assert_eq!((entry.reason, entry.revoked_at), (Reason::KeyCompromise, time(NOW)), "revoked since the hold");
        let before = document.clone();
        let release = document.release(&order(Reason::Unspecified, NOW), &serials(&["0b"]));
        assert!(matches!(release, Err(ChangeError::NotOnHold { reason: Reason::KeyCompromise, .. })));
        let release = document.release(&order(Reason::Unspecified, NOW), &serials(&["0c"]));
        assert_eq!(release, Err(ChangeError::NotRevoked("0c".parse().unwrap())));
        let again = document.revoke(&order(Reason::Superseded, NOW), &[certificate("0b")], None);
        assert!(matches!(again, Err(ChangeError::Nothing(_))));
        assert_eq!(document, before);
    }

    #[test]
    fn crl_number_grows_with_a_clock_behind_and_a_lost_document() {
        let mut document = Document::default();
        let day = Duration::from_secs(DAY);
        let first = document.reserve(time(NOW), time(NOW + DAY), day);
        assert_eq!(first, NOW);
        assert_eq!(document.reserve(time(NOW), time(NOW + DAY), day), NOW + 1);
        assert_eq!(document.reserve(time(NOW - DAY), time(NOW), day), NOW + 2);
        assert_eq!(document.reserve(time(NOW + DAY), time(NOW + DAY), day), NOW + DAY);
        assert!(Document::default().reserve(time(NOW + 2 * DAY), time(NOW), day) > NOW + DAY);
    }

    #[test]
    fn certificate_leaves_after_a_crl_that_was_issued_after_its_end() {
        let mut document = Document::default();
        document.revoke(&order(Reason::Superseded, NOW), &[certificate("0a")], None).unwrap();
        let refresh = Duration::from_secs(6 * DAY);
        for (now, expected) in [(NOW, 1), (NOW + DAY + 1, 1), (NOW + 7 * DAY, 1), (NOW + 7 * DAY + 1, 0)] {
            document.prune(time(now), refresh);
            assert_eq!(document.entries(CA.0).len(), expected, "{now}");
        }
    }

    #[test]
    fn blocks_end_are_lifted_and_are_not_made_twice() {
        let mut document = Document::default();
        let shop: BlockSelector = "namespace=shop".parse().unwrap();
        let block = |until: Option<u64>| Some((shop.clone(), until.map(time)));
        let effect = document.revoke(&order(Reason::Unspecified, NOW), &[], block(Some(NOW + 60))).unwrap();
        assert_eq!(effect.block, Some(1));
        assert!(document.blocks[0].holds(time(NOW + 59)) && !document.blocks[0].holds(time(NOW + 60)));
        // One without an end replaces it, and is not replaced.
        assert_eq!(document.revoke(&order(Reason::Unspecified, NOW), &[], block(None)).unwrap().block, Some(2));
        assert!(document.revoke(&order(Reason::Unspecified, NOW), &[], block(Some(NOW + 60))).is_err());
        assert_eq!(document.blocks.len(), 1);
        assert_eq!(document.unblock(&order(Reason::Unspecified, NOW), 1), Err(ChangeError::NoBlock(1)));
        assert_eq!(document.unblock(&order(Reason::Unspecified, NOW), 2), Ok(shop));
        assert_eq!(document.revision, 3);
    }

    #[test]
    fn only_the_last_changes_are_kept() {
        let mut document = Document::default();
        for number in 1..=100_u32 {
            let certificate = certificate(&format!("{number:x}"));
            document.revoke(&order(Reason::Superseded, NOW), &[certificate], None).unwrap();
        }
        assert_eq!((document.revision, document.changes.len()), (100, CHANGES_KEPT));
        assert_eq!(document.changes_after(99).len(), 1);
    }
}
