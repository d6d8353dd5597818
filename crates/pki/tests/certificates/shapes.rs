//! Plug-in CAs of random shapes: forms of key identifiers, serial numbers, string types, versions, path lengths,
//! constraints, order, cross-signing. About half of them are conforming.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use der::Tag;
use istio_hsm_ca_pki::{
    pem,
    testing::{
        ED25519, P384, P521, RSA,
        draft::{
            Draft, authority_key_id, basic_constraints, common_name, extended_key_usage, key_usage, name_constraints,
            require_explicit_policy, subject_key_id,
        },
        extension, public, san_value,
    },
};
use rcgen::KeyPair;

/// Keys for CAs, made once.
static POOL: LazyLock<Vec<KeyPair>> =
    LazyLock::new(|| (0..10).map(|_| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()).collect());

/// A plug-in CA's files and its key.
pub struct Shape {
    pub ca_cert: String,
    pub cert_chain: String,
    pub root_cert: String,
    /// The CA's own certificate before it was signed.
    pub ca: Draft,
    pub ca_key_id: Option<Vec<u8>>,
    pub key: &'static KeyPair,
    /// What is unusual about it.
    pub notes: Vec<&'static str>,
}

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True in that many of a thousand cases.
    fn chance(&mut self, of_thousand: usize) -> bool {
        self.below(1000) < of_thousand
    }

    /// One of the values, by weight.
    fn pick<T: Copy>(&mut self, weighted: &[(usize, T)]) -> T {
        let mut at = self.below(weighted.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in weighted {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *value,
            }
        }
        unreachable!("below the sum")
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}

/// A certificate that was made, with what those below need of it.
#[derive(Clone)]
struct Made {
    draft: Draft,
    der: Vec<u8>,
    key: &'static KeyPair,
    key_id: Option<Vec<u8>>,
}

impl Made {
    fn pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }
}

struct Maker {
    dice: Dice,
    now: SystemTime,
    notes: Vec<&'static str>,
}

impl Maker {
    fn note(&mut self, note: &'static str) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn odd(&mut self, of_thousand: usize, note: &'static str) -> bool {
        let is_odd = self.dice.chance(of_thousand);
        if is_odd {
            self.note(note);
        }
        is_odd
    }

    fn name(&mut self, text: &str) -> Vec<u8> {
        let kind = self.dice.pick(&[(550, 0), (350, 1), (40, 2), (40, 3), (10, 4)]);
        match kind {
            0 => common_name(Tag::Utf8String, text.as_bytes()),
            1 => common_name(Tag::PrintableString, text.as_bytes()),
            2 => {
                self.note("T61String");
                common_name(Tag::TeletexString, &[text.as_bytes(), b" Z\xfcrich"].concat())
            }
            3 => {
                self.note("BMPString");
                let units: Vec<u8> = format!("{text} Ω").encode_utf16().flat_map(u16::to_be_bytes).collect();
                common_name(Tag::BmpString, &units)
            }
            _ => {
                self.note("PrintableString that is not printable");
                common_name(Tag::PrintableString, &[text.as_bytes(), b"@example"].concat())
            }
        }
    }

    fn serial(&mut self) -> Vec<u8> {
        let tail: Vec<u8> = (0..15).map(|_| self.dice.next() as u8).collect();
        let start = [0x40 | (self.dice.next() as u8 & 0x3f)];
        match self.dice.pick(&[(450, 0), (450, 1), (40, 2), (20, 3), (12, 4), (8, 5)]) {
            0 => start.to_vec(),
            1 => [&start[..], &tail].concat(),
            2 => {
                self.note("serial number of 31 octets");
                [&start[..], &tail, &tail].concat()
            }
            3 => {
                self.note("serial number 0");
                vec![0]
            }
            4 => {
                self.note("negative serial number");
                vec![0xfb]
            }
            _ => {
                self.note("serial number with a superfluous zero");
                vec![0, 5]
            }
        }
    }

    /// The key identifier of a key, in one of its forms.
    fn key_id(&mut self, key: &KeyPair) -> Option<Vec<u8>> {
        match self.dice.pick(&[(70, 0), (20, 1), (10, 2)]) {
            0 if *key.algorithm() != rcgen::PKCS_ECDSA_P521_SHA512 => Some(public(key).key_id().to_vec()),
            1 => None,
            _ => Some((0..8).map(|_| self.dice.next() as u8).collect()),
        }
    }

    fn authority(&mut self, parent: &Made) -> Option<Vec<u8>> {
        let key_id = parent.key_id.as_deref();
        let certificate = Some((parent.draft.issuer.as_slice(), parent.draft.serial.as_slice()));
        match self.dice.pick(&[(300, 0), (500, 1), (100, 2), (40, 3), (20, 4), (20, 5), (10, 6), (10, 7)]) {
            0 => None,
            1 => Some(authority_key_id(key_id, None)),
            2 => Some(authority_key_id(key_id, certificate)),
            3 => Some(authority_key_id(None, certificate)),
            4 => {
                self.note("another key id in authorityKeyIdentifier");
                Some(authority_key_id(Some(b"another"), None))
            }
            5 => {
                self.note("another serial number in authorityKeyIdentifier");
                Some(authority_key_id(key_id, Some((&parent.draft.issuer, &[0x3f, 1]))))
            }
            6 => {
                self.note("another issuer in authorityKeyIdentifier");
                let other = common_name(Tag::Utf8String, b"another");
                Some(authority_key_id(None, Some((&other, &parent.draft.serial))))
            }
            _ => {
                self.note("critical authorityKeyIdentifier");
                let plain = authority_key_id(key_id, None);
                // The value without the extension's own header and object identifier.
                Some(extension(b"\x55\x1d\x23", Some(0xff), &plain[9..]))
            }
        }
    }

    /// The extensions of a CA with that many CAs below it.
    fn extensions(&mut self, below: u16, key_id: Option<&[u8]>) -> Vec<Vec<u8>> {
        let mut list = Vec::new();
        let length = match self.dice.pick(&[(750, 0), (150, 1), (60, 2), (20, 3), (20, 4)]) {
            0 => None,
            1 => Some(below),
            2 => Some(below + 3),
            3 => {
                self.note("path length of 300");
                Some(300)
            }
            _ if below > 0 => {
                self.note("path length too small");
                Some(below - 1)
            }
            _ => None,
        };
        match self.dice.pick(&[(980, 0), (10, 1), (10, 2)]) {
            0 => list.push(basic_constraints(true, length)),
            1 => {
                self.note("CA:FALSE");
                list.push(basic_constraints(false, None));
            }
            _ => self.note("no basicConstraints"),
        }
        match self.dice.pick(&[(900, 0), (80, 1), (20, 2)]) {
            0 => list.push(key_usage(true)),
            1 => {}
            _ => {
                self.note("no keyCertSign");
                list.push(key_usage(false));
            }
        }
        list.extend(key_id.map(subject_key_id));
        match self.dice.pick(&[(880, 0), (60, 1), (15, 2), (15, 3), (10, 4)]) {
            0 => {}
            1 => list.push(extended_key_usage(&[1, 2])),
            2 => {
                self.note("anyExtendedKeyUsage");
                list.push(extended_key_usage(&[0]));
            }
            3 => {
                self.note("serverAuth alone");
                list.push(extended_key_usage(&[1]));
            }
            _ => {
                self.note("empty extendedKeyUsage");
                list.push(extended_key_usage(&[]));
            }
        }
        let ten = [10, 0, 0, 0, 255, 0, 0, 0];
        match self.dice.pick(&[(880, 0), (30, 1), (20, 2), (20, 3), (10, 4), (10, 5), (10, 6), (10, 7), (5, 8), (5, 9)])
        {
            0 => {}
            1 => list.push(name_constraints(&[(2, b"svc")], &[])),
            2 => list.push(name_constraints(&[(2, b".svc"), (2, b"istio.io")], &[(7, &ten)])),
            3 => list.push(name_constraints(&[], &[(2, b"example.com")])),
            4 => list.push(name_constraints(&[(1, b"example.com")], &[])),
            5 => {
                self.note("directory name constraint");
                list.push(name_constraints(&[], &[(4, &common_name(Tag::Utf8String, b"Other"))]));
            }
            6 => {
                self.note("URI constraint");
                list.push(name_constraints(&[(6, b"cluster.local")], &[]));
            }
            7 => {
                self.note("malformed DNS constraint");
                list.push(name_constraints(&[(2, b"svc.")], &[]));
            }
            8 => {
                self.note("mask with a hole");
                list.push(name_constraints(&[], &[(7, &[10, 0, 0, 0, 255, 0, 255, 0])]));
            }
            _ => {
                self.note("registeredID constraint");
                list.push(name_constraints(&[(8, &[0x2a, 3])], &[]));
            }
        }
        match self.dice.pick(&[(880, 0), (40, 1), (30, 2), (20, 3), (20, 4), (5, 5), (5, 6)]) {
            0 => {}
            1 => list.push(extension(b"\x55\x1d\x11", None, &san_value(&[(2, b"ca.istio.io")]))),
            2 => list.push(extension(b"\x55\x1d\x11", None, &san_value(&[(2, b"ca.svc"), (7, &[10, 1, 2, 3])]))),
            3 => list.push(extension(b"\x55\x1d\x11", None, &san_value(&[(1, b"ca@example.com")]))),
            4 => list.push(extension(b"\x55\x1d\x11", Some(0xff), &san_value(&[(6, b"spiffe://cluster.local")]))),
            5 => {
                self.note("malformed URI");
                list.push(extension(b"\x55\x1d\x11", None, &san_value(&[(6, b"http://a b/")])));
            }
            _ => {
                self.note("IP address of 5 bytes");
                list.push(extension(b"\x55\x1d\x11", None, &san_value(&[(7, &[1, 2, 3, 4, 5])])));
            }
        }
        if self.odd(30, "requireExplicitPolicy") {
            let after = self.dice.below(5) as u8;
            list.push(require_explicit_policy(after));
        }
        if self.odd(10, "unknown critical extension") {
            list.push(extension(b"\x2a\x03\x04", Some(0xff), b"\x05\x00"));
        }
        if self.odd(10, "critical cRLDistributionPoints") {
            let point = b"\x30\x12\x30\x10\xa0\x0e\xa0\x0c\x86\x0ahttp://a/b";
            list.push(extension(b"\x55\x1d\x1f", Some(0xff), point));
        }
        if self.odd(10, "critical certificatePolicies") {
            list.push(extension(b"\x55\x1d\x20", Some(0xff), b"\x30\x06\x30\x04\x06\x02\x2a\x03"));
        }
        if self.odd(5, "an extension twice") {
            list.push(key_usage(true));
            list.push(key_usage(true));
        }
        list
    }

    /// A certificate for a name and key, by a parent or itself, with that many CAs below it.
    fn certify(&mut self, subject: &[u8], key: &'static KeyPair, parent: Option<&Made>, below: u16) -> Made {
        let key_id = self.key_id(key);
        let mut draft = Draft::new(subject, key, self.now);
        draft.serial = self.serial();
        draft.extensions = self.extensions(below, key_id.as_deref());
        if let Some(parent) = parent {
            draft.issuer = parent.draft.subject.clone();
            draft.extensions.extend(self.authority(parent));
            if self.odd(15, "issuer's name in another string type") {
                // UTF8String and PrintableString of the same text.
                let at = draft.issuer.iter().position(|byte| matches!(byte, 0x0c | 0x13));
                if let Some(at) = at {
                    draft.issuer[at] ^= 0x1f;
                }
            }
        }
        let hour = Duration::from_secs(3600);
        if self.odd(20, "expired") {
            draft.not_after = self.now - hour;
        } else if self.odd(10, "not yet valid") {
            draft.not_before = self.now + hour;
        }
        draft.has_unique_id = self.odd(10, "unique identifier");
        if self.odd(20, "version 1") {
            draft.version = None;
            draft.extensions.clear();
        } else if self.odd(5, "version 2") {
            draft.version = Some(1);
            draft.extensions.clear();
        }
        let key_id = key_id.filter(|_| !draft.extensions.is_empty());
        let mut der = draft.sign(parent.map_or(key, |parent| parent.key));
        if self.odd(10, "broken signature") {
            *der.last_mut().unwrap() ^= 1;
        }
        Made { draft, der, key, key_id }
    }
}

/// The plug-in CA of a seed.
pub fn shape(seed: u64, now: SystemTime) -> Shape {
    let mut maker = Maker { dice: Dice(seed), now, notes: Vec::new() };
    let depth: u16 = maker.dice.pick(&[(10, 0), (45, 1), (30, 2), (8, 3), (3, 6), (4, 7)]);
    let root_key: &'static KeyPair = match maker.dice.below(10) {
        0 => &RSA,
        1 => &P521,
        _ => &POOL[0],
    };
    let root_key = if depth == 0 { &POOL[0] } else { root_key };
    let root_name = maker.name("Root");
    let root = maker.certify(&root_name, root_key, None, depth);
    let mut path = vec![root];
    for level in 1..=depth {
        let key: &'static KeyPair = match maker.dice.below(20) {
            0 => &P384,
            1 => &ED25519,
            2 => &RSA,
            _ => &POOL[usize::from(level)],
        };
        let name = maker.name(&format!("Level {level}"));
        let parent = path.last().unwrap().clone();
        path.push(maker.certify(&name, key, Some(&parent), depth - level));
    }
    let ca = path.last().unwrap().clone();
    let mut roots = vec![path[0].pem()];
    let mut others: Vec<String> = path[1..].iter().map(Made::pem).collect();

    if maker.odd(120, "root twice, of one key") {
        roots.push(maker.certify(&root_name, root_key, None, depth).pem());
    }
    if maker.odd(60, "root twice, of two keys") {
        roots.push(maker.certify(&root_name, &POOL[8], None, depth).pem());
    }
    let other_name = maker.name("Other root");
    let other = maker.certify(&other_name, &POOL[9], None, depth + 1);
    if maker.odd(200, "another root") {
        roots.push(other.pem());
    }
    if depth > 0 && maker.odd(150, "cross-signed") {
        let crossed = path[maker.dice.below(path.len())].clone();
        let below = depth.min(1);
        others.push(maker.certify(&crossed.draft.subject, crossed.key, Some(&other), below).pem());
    }
    if maker.odd(100, "stray certificate") {
        others.push(maker.certify(&other_name, &POOL[9], Some(&other), 0).pem());
    }
    if depth > 1 && maker.odd(40, "intermediate missing") {
        others.remove(0);
    }
    if maker.dice.chance(200) {
        others.push(path[0].pem());
    }
    maker.dice.shuffle(&mut others);
    maker.dice.shuffle(&mut roots);
    Shape {
        ca_cert: ca.pem(),
        cert_chain: others.concat(),
        root_cert: roots.concat(),
        ca_key_id: ca.key_id,
        ca: ca.draft,
        key: ca.key,
        notes: maker.notes,
    }
}
