//! The state of revocation as every request sees it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use tokio::sync::watch;

use super::{KeyHash, state::Document};
use pki::{
    crl::SerialNumber,
    identity::{Name, SpiffeId},
};

/// What a request asks for, as far as blocks need it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The caller's identity, if it is a workload.
    pub caller: Option<&'a SpiffeId>,
    /// The names in the certificate.
    pub names: &'a [Name],
    /// SHA-256 of the DER SubjectPublicKeyInfo in the certificate.
    pub key: [u8; 32],
    /// The caller's node, if it is known.
    pub node: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// The caller's identity and those in the certificate.
    pub fn identities(&self) -> impl Iterator<Item = &'a SpiffeId> {
        let names = self.names.iter().filter_map(|name| match name {
            Name::Spiffe(id) => Some(id),
            Name::Dns(_) | Name::Ip(_) => None,
        });
        self.caller.into_iter().chain(names)
    }
}

/// The document in use, with indexes.
#[derive(Debug, Default)]
pub struct Current {
    /// A document of the store was applied.
    is_applied: bool,
    document: Document,
    /// The CA keys below which each serial number is revoked.
    revoked: HashMap<SerialNumber, Vec<KeyHash>>,
    /// Keys of revoked certificates.
    keys: HashSet<KeyHash>,
}

/// The revoked certificates and blocks in use. Clones share them and see each change.
#[derive(Clone, Debug)]
pub struct Revocations(watch::Sender<Arc<Current>>);

impl Default for Revocations {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Revocations {
    /// Replaces the state; requests see it from now on.
    pub fn set(&self, document: Document) {
        let mut revoked: HashMap<SerialNumber, Vec<KeyHash>> = HashMap::new();
        let mut keys = HashSet::new();
        for (ca, certificates) in &document.revoked {
            for certificate in certificates {
                revoked.entry(certificate.serial.clone()).or_default().push(*ca);
                keys.extend(certificate.key);
            }
        }
        self.0.send_replace(Arc::new(Current { is_applied: true, document, revoked, keys }));
    }

    /// The document in use.
    #[must_use]
    pub fn document(&self) -> Document {
        self.current().document.clone()
    }

    /// The revision in use; `None` before the first document was applied.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        let current = self.current();
        current.is_applied.then_some(current.document.revision)
    }

    /// Notifies of each change of the document.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Current>> {
        self.0.subscribe()
    }

    /// Whether a certificate with this serial number below the CA with this key is revoked.
    #[must_use]
    pub fn is_revoked(&self, ca_key: [u8; 32], serial: &SerialNumber) -> bool {
        self.current().revoked.get(serial).is_some_and(|cas| cas.contains(&KeyHash(ca_key)))
    }

    /// Whether a certificate with this serial number and this key (SHA-256 of its DER SubjectPublicKeyInfo) is revoked below
    /// any CA key: for the handshake, which has not established the issuer yet.
    #[must_use]
    pub fn has_revoked_key(&self, serial: &SerialNumber, key: [u8; 32]) -> bool {
        let current = self.current();
        current.revoked.contains_key(serial) && current.keys.contains(&KeyHash(key))
    }

    /// Why a certificate is denied, as text; `None` if it is not.
    #[must_use]
    pub fn denied(&self, subject: &Subject<'_>, now: SystemTime) -> Option<String> {
        let current = self.current();
        if current.keys.contains(&KeyHash(subject.key)) {
            return Some("the key of a revoked certificate".to_owned());
        }
        let blocks = current.document.blocks.iter().filter(|block| block.holds(now));
        let block = blocks.into_iter().find(|block| block.selector.matches(subject))?;
        Some(format!("block {} ({})", block.id, block.selector))
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.0.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::state::{Certificate, Order, time},
        *,
    };
    use pki::crl::Reason;

    const NOW: u64 = 1_767_225_600;

    #[test]
    fn revoked_certificate_is_known_by_its_issuer_and_its_key() {
        let revocations = Revocations::default();
        assert_eq!(revocations.revision(), None);
        let order = Order { by: "a".to_owned(), at: time(NOW), selector: String::new(), reason: Reason::KeyCompromise };
        let serial: SerialNumber = "0a".parse().unwrap();
        let certificate = Certificate {
            ca_key: KeyHash([1; 32]),
            serial: serial.clone(),
            expires: time(NOW + 60),
            key: Some(KeyHash([7; 32])),
        };
        let block = Some(("namespace=shop".parse().unwrap(), Some(time(NOW + 60))));
        let mut document = Document::default();
        document.revoke(&order, &[certificate], block).unwrap();
        revocations.set(document);
        assert_eq!(revocations.revision(), Some(1));
        assert!(revocations.is_revoked([1; 32], &serial));
        assert!(!revocations.is_revoked([2; 32], &serial), "of another CA");
        assert!(!revocations.is_revoked([1; 32], &"0b".parse().unwrap()));
        assert!(revocations.has_revoked_key(&serial, [7; 32]));
        assert!(
            !revocations.has_revoked_key(&serial, [8; 32])
                && !revocations.has_revoked_key(&"0b".parse().unwrap(), [7; 32])
        );

        let (shop, cart) = ("spiffe://td/ns/shop/sa/a".parse().unwrap(), "spiffe://td/ns/cart/sa/a".parse().unwrap());
        let denied = |caller, key: u8, now| {
            revocations.denied(&Subject { caller: Some(caller), names: &[], key: [key; 32], node: None }, time(now))
        };
        assert_eq!(denied(&cart, 7, NOW).as_deref(), Some("the key of a revoked certificate"));
        assert_eq!(denied(&shop, 8, NOW).as_deref(), Some("block 1 (namespace=shop)"));
        assert_eq!(denied(&cart, 8, NOW), None);
        assert_eq!(denied(&shop, 8, NOW + 60), None, "the block has ended");
    }
}
