//! A compromised daemon gets only what the host's own limits permit.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    num::{NonZeroU32, NonZeroU64},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use testkit::wait::eventually_blocking;

use der::{AnyRef, Decode, Encode, Reader, SliceReader, Tag};
use pki::{
    Issuer, Profile, PublicKey, Tbs,
    tbs::Serial,
    testing::{context, element, extension, san, san_value},
};
use rcgen::KeyPair;
use token_host::{
    canary_message,
    protocol::{Frame, Kind, Reply, Request, Sign, Status, VERSION},
};

use super::harness::{LOG_ORIGIN, MAX_VALIDITY, PATIENCE, PROGRAM, Site, root, soft_issuer, template};
use testkit::faulty::{Control, MODULE, through};

/// A server name that no host here permits together with an identity.
const SERVER: &str = "ca.test";

/// Permits raising priorities; its number in capabilities(7).
const CAP_SYS_NICE: u32 = 23;

/// The daemon's side of the connection to a host, byte by byte.
pub struct Forger {
    socket: UnixStream,
    buffer: Vec<u8>,
    correlation: u64,
}

impl Forger {
    /// Connects to a host's socket. The file exists a moment before the host listens.
    pub fn connect(socket: &Path) -> Self {
        let began = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(socket) => return Self::new(socket),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{}: {error}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, buffer: Vec::new(), correlation: 0 }
    }

    /// Sends a request and returns the reply; `None` if the host closes the connection.
    pub fn ask(&mut self, request: &Request<'_>) -> Option<Reply> {
        self.correlation += 1;
        let mut bytes = Vec::new();
        request.encode(self.correlation, &mut bytes).unwrap();
        self.socket.write_all(&bytes).ok()?;
        self.reply()
    }

    /// Sends several requests in one write and returns the replies in their order, without those that never come.
    fn ask_all(&mut self, requests: &[Request<'_>]) -> Vec<Reply> {
        self.send(requests);
        self.answers(requests.len())
    }

    fn send(&mut self, requests: &[Request<'_>]) {
        let mut bytes = Vec::new();
        for request in requests {
            self.correlation += 1;
            request.encode(self.correlation, &mut bytes).unwrap();
        }
        self.socket.write_all(&bytes).unwrap();
    }

    /// The replies to the last requests in the requests' order; the host's threads reply in any order.
    fn answers(&mut self, count: usize) -> Vec<Reply> {
        let mut replies: Vec<_> = std::iter::from_fn(|| self.frame()).take(count).collect();
        replies.sort_by_key(|(correlation, _)| *correlation);
        let expected = (self.correlation + 1 - u64::try_from(count).unwrap())..=self.correlation;
        assert!(replies.iter().map(|(correlation, _)| *correlation).eq(expected), "{replies:?}");
        replies.into_iter().map(|(_, reply)| reply).collect()
    }

    fn reply(&mut self) -> Option<Reply> {
        let (correlation, reply) = self.frame()?;
        assert_eq!(correlation, self.correlation);
        Some(reply)
    }

    fn frame(&mut self) -> Option<(u64, Reply)> {
        loop {
            if let Some((frame, length)) = Frame::split(&self.buffer).unwrap() {
                let answer = (frame.correlation, Reply::decode(frame).unwrap());
                self.buffer.drain(..length);
                return Some(answer);
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend(bytes.iter().take(count)),
            }
        }
    }

    pub fn hello(&mut self, settings: &[u8]) -> Status {
        match self.ask(&Request::Hello { version: VERSION, settings }) {
            Some(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn sign(&mut self, kind: Kind, key: [u8; 32], message: &[u8]) -> Option<Reply> {
        self.ask(&Request::Sign(Sign { kind, key, request_id: "forged", deadline_ms: 30_000, message }))
    }

    /// Sends bytes and returns whether the host closes the connection.
    fn hangs_up(mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).unwrap();
        self.reply().is_none()
    }
}

/// A host as a child of this process.
pub(super) fn child(site: &Site) -> (Child, Forger) {
    child_of(Command::new(PROGRAM), site)
}

/// The same, started by this command.
fn child_of(mut command: Command, site: &Site) -> (Child, Forger) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = command
        .args(["--child", "forged"])
        .envs(site.environment())
        .envs(Control::new(site.directory.path()).environment())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, Forger::new(ours))
}

pub(super) fn leaf(issuer: &Arc<Issuer>, change: impl FnOnce(&mut pki::Template)) -> Vec<u8> {
    leaf_of(Serial::random(), issuer, change)
}

fn leaf_of(serial: Serial, issuer: &Arc<Issuer>, change: impl FnOnce(&mut pki::Template)) -> Vec<u8> {
    let mut template = template();
    change(&mut template);
    Tbs::build(template, Arc::clone(issuer), serial).unwrap().der().to_vec()
}

fn intermediate(issuer: &Arc<Issuer>) -> Vec<u8> {
    leaf(issuer, |template| {
        template.profile = Profile::Intermediate { organization: "evil".to_owned() };
        template.names.clear();
    })
}

/// The elements of a SEQUENCE.
pub(super) fn parts(sequence: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = SliceReader::new(AnyRef::from_der(sequence).unwrap().value()).unwrap();
    let mut parts = Vec::new();
    while !reader.is_finished() {
        parts.push(reader.tlv_bytes().unwrap().to_vec());
    }
    parts
}

/// A TBSCertificate with one field replaced (0 version ... 6 public key, 7 extensions), or another SEQUENCE.
pub(super) fn with(tbs: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut fields = parts(tbs);
    fields[at] = field.to_vec();
    element(Tag::Sequence, &[&fields.concat()])
}

/// A TBSCertificate with a changed list of extensions.
fn extended(tbs: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let fields = parts(tbs);
    let mut extensions = parts(AnyRef::from_der(&fields[7]).unwrap().value());
    change(&mut extensions);
    let list = element(Tag::Sequence, &[&extensions.concat()]);
    with(tbs, 7, &element(context(3, true), &[&list]))
}

/// A leaf with these subject alternative names: (context tag, content).
fn named(tbs: &[u8], names: &[(u32, &[u8])]) -> Vec<u8> {
    let names = extension(b"\x55\x1d\x11", Some(0xff), &san_value(names));
    extended(tbs, |extensions| *extensions.last_mut().unwrap() = names)
}

/// A SubjectPublicKeyInfo.
fn spki(algorithm: &[u8], bits: &[u8]) -> Vec<u8> {
    element(Tag::Sequence, &[algorithm, &element(Tag::BitString, &[b"\0", bits])])
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| element(Tag::Integer, &[b"\0", bytes]);
    let exponent = element(Tag::Integer, &[exponent]);
    let key = element(Tag::Sequence, &[&number(modulus), &exponent]);
    spki(b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00", &key)
}

/// A leaf valid for a hundred years, from another builder.
fn hundred_years(issuer: &Arc<Issuer>) -> Vec<u8> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2126, 1, 1);
    let other = rcgen::Issuer::from_ca_cert_pem(issuer.roots_pem(), pair).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = params.signed_by(&key, &other).unwrap();
    x509_cert::Certificate::from_der(certificate.der()).unwrap().tbs_certificate().to_der().unwrap()
}

/// The key for a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Ca,
    CanaryKey,
    LogKey,
    Nobody,
}

/// A message that no host may sign.
pub(super) struct Forgery {
    /// The violated rule: kind and field in SECURITY.md's table.
    rule: (&'static str, &'static str),
    name: &'static str,
    kind: Kind,
    by: By,
    message: Vec<u8>,
    /// A part of the reason.
    word: &'static str,
}

pub(super) fn forgery(
    rule: (&'static str, &'static str),
    name: &'static str,
    kind: Kind,
    message: Vec<u8>,
    word: &'static str,
) -> Forgery {
    Forgery { rule, name, kind, by: By::Ca, message, word }
}

const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
const OTHER_ROOT: &str = "57DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// The valid messages that a host has signed before it receives the forged ones.
struct Honest {
    serial: Serial,
    leaf: Vec<u8>,
    checkpoint: String,
}

impl Honest {
    fn new(issuer: &Arc<Issuer>) -> Self {
        let serial = Serial::random();
        let leaf = leaf_of(serial, issuer, |_| {});
        Self { serial, leaf, checkpoint: format!("{LOG_ORIGIN}\n42\n{ROOT}\n") }
    }
}

fn forgeries(issuer: &Arc<Issuer>, honest: &Honest) -> Vec<Forgery> {
    use Kind::{Canary, Checkpoint, Intermediate, Leaf};
    let ca = intermediate(issuer);
    let Honest { serial, leaf: honest, checkpoint } = honest;
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let of = |names: &[&str]| leaf(issuer, |template| template.names = names.iter().map(|name| san(name)).collect());
    let shifted = |back: Duration, forth: Duration| {
        leaf(issuer, |template| {
            template.not_before = template.not_before + forth - back;
            template.not_after = template.not_after + forth - back;
        })
    };
    let point = |name: &str, length: usize| {
        let curve = if name == "P-256" { P256_ALGORITHM } else { P384_ALGORITHM };
        with(honest, 6, &spki(curve, &[&[4], vec![1; length].as_slice()].concat()))
    };
    let modulus = |bytes: usize| [vec![0xc5; bytes - 1], vec![0x01]].concat();
    let even = [modulus(255), vec![0x02]].concat();
    let exponent = b"\x01\x00\x01";
    let key = |spki: &[u8]| with(honest, 6, spki);
    let ed25519 = |point: &[u8]| key(&spki(ED25519_ALGORITHM, point));
    let head = |origin: &str, size: &str, root: &str| format!("{origin}\n{size}\n{root}\n").into_bytes();
    let id = super::harness::WORKLOAD.as_bytes();
    let mut forgeries = vec![
        forgery(("any", "kind"), "a leaf as a checkpoint", Checkpoint, honest.clone(), "not a checkpoint"),
        forgery(("any", "kind"), "a leaf as a canary", Canary, honest.clone(), "not a canary's"),
        forgery(("any", "kind"), "a leaf as an intermediate", Intermediate, honest.clone(), ""),
        forgery(("any", "kind"), "a canary as a leaf", Leaf, canary_message(), ""),
        forgery(("any", "kind"), "a canary as a checkpoint", Checkpoint, canary_message(), "not a checkpoint"),
        forgery(("any", "kind"), "a checkpoint as a leaf", Leaf, checkpoint.clone().into(), ""),
        forgery(("any", "kind"), "a checkpoint as a canary", Canary, checkpoint.clone().into(), "not a canary's"),
        forgery(("certificate", "form"), "nothing", Leaf, Vec::new(), ""),
        forgery(("certificate", "form"), "garbage", Leaf, vec![0x30; 300], ""),
        forgery(("certificate", "form"), "half a leaf", Leaf, honest[..honest.len() / 2].to_vec(), ""),
        forgery(("certificate", "form"), "a leaf and more", Leaf, [honest.as_slice(), b"\0"].concat(), ""),
        forgery(
            ("certificate", "form"),
            "a foreign extension",
            Leaf,
            extended(honest, |list| list.push(extension(b"\x55\x1d\x20", None, b"\x30\x00"))),
            "none of ours",
        ),
        forgery(
            ("certificate", "serial number"),
            "that of another certificate",
            Leaf,
            leaf_of(*serial, issuer, |template| template.not_after -= minutes(1)),
            "another certificate",
        ),
        forgery(
            ("certificate", "serial number"),
            "a small one",
            Leaf,
            with(honest, 1, &element(Tag::Integer, &[&[1]])),
            "too small",
        ),
        forgery(
            ("certificate", "signature"),
            "another algorithm",
            Leaf,
            with(honest, 2, b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"),
            "not that of the CA's key",
        ),
        forgery(("certificate", "issuer"), "another name", Leaf, with(honest, 3, b"\x30\x00"), "issuer"),
        forgery(("certificate", "issuer"), "another CA", Leaf, leaf(&soft_issuer(), |_| {}), ""),
        forgery(
            ("certificate", "validity"),
            "a day and an hour",
            Leaf,
            leaf(issuer, |template| template.not_after += MAX_VALIDITY),
            "longer than allowed",
        ),
        forgery(("certificate", "validity"), "a hundred years", Leaf, hundred_years(issuer), ""),
        forgery(
            ("certificate", "validity"),
            "a year from now",
            Leaf,
            shifted(Duration::ZERO, minutes(525_600)),
            "in the future",
        ),
        forgery(("certificate", "validity"), "in ten minutes", Leaf, shifted(Duration::ZERO, minutes(10)), "future"),
        forgery(("certificate", "validity"), "a month ago", Leaf, shifted(minutes(43_200), Duration::ZERO), "past"),
        forgery(("certificate", "validity"), "ten minutes ago", Leaf, shifted(minutes(10), Duration::ZERO), "past"),
        forgery(
            ("certificate", "validity"),
            "a day from in a minute",
            Leaf,
            leaf(issuer, |template| {
                template.not_before += minutes(4);
                template.not_after = template.not_before + MAX_VALIDITY + minutes(2);
            }),
            "later than the host allows",
        ),
        forgery(("certificate", "subject public key"), "not on P-256", Leaf, point("P-256", 64), "not a valid one"),
        forgery(("certificate", "subject public key"), "not on P-384", Leaf, point("P-384", 96), "not a valid one"),
        forgery(
            ("certificate", "subject public key"),
            "not on Ed25519",
            Leaf,
            ed25519(&[&[2], &[0; 31][..]].concat()),
            "not on the curve",
        ),
        forgery(
            ("certificate", "subject public key"),
            "a point of Ed25519 in another encoding",
            Leaf,
            ed25519(&[&[0xf0], &[0xff; 30][..], &[0x7f]].concat()),
            "only encoding",
        ),
        forgery(("certificate", "subject public key"), "RSA-1024", Leaf, key(&rsa(&modulus(128), exponent)), "RSA"),
        forgery(("certificate", "subject public key"), "RSA-8192", Leaf, key(&rsa(&modulus(1024), exponent)), "RSA"),
        forgery(("certificate", "subject public key"), "an even modulus", Leaf, key(&rsa(&even, exponent)), "RSA"),
        forgery(
            ("certificate", "subject public key"),
            "a modulus of ones",
            Leaf,
            key(&rsa(&[0xff; 256], exponent)),
            "divisible by 3",
        ),
        forgery(("certificate", "subject public key"), "exponent 1", Leaf, key(&rsa(&modulus(256), &[1])), "RSA"),
        forgery(
            ("certificate", "subject public key"),
            "an exponent of 40 bits",
            Leaf,
            key(&rsa(&modulus(256), &[1, 0, 0, 0, 1])),
            "exponent is unusual",
        ),
        forgery(
            ("certificate", "subject public key"),
            "the CA's own",
            Leaf,
            key(issuer.public_key().spki_der()),
            "the CA's own key",
        ),
        forgery(("leaf", "subject"), "a name", Leaf, with(honest, 5, issuer.subject()), "not empty"),
        forgery(("leaf", "basic constraints"), "CA:TRUE", Leaf, ca.clone(), "end entity"),
        forgery(("leaf", "names"), "none", Leaf, extended(honest, |list| drop(list.pop())), "names nobody"),
        forgery(
            ("leaf", "names"),
            "a foreign trust domain",
            Leaf,
            of(&["URI:spiffe://evil.example/ns/default/sa/httpbin"]),
            "evil.example",
        ),
        forgery(("leaf", "names"), "a DNS name", Leaf, of(&["DNS:istiod.istio-system.svc"]), "istiod.istio-system.svc"),
        forgery(("leaf", "names"), "an address", Leaf, of(&["IP:10.0.0.1"]), "10.0.0.1"),
        forgery(
            ("leaf", "names"),
            "an identity and a DNS name",
            Leaf,
            named(honest, &[(6, id), (2, SERVER.as_bytes())]),
            "a SPIFFE ID and other names",
        ),
        forgery(
            ("leaf", "names"),
            "two identities",
            Leaf,
            named(honest, &[(6, id), (6, b"spiffe://cluster.local/ns/default/sa/other")]),
            "more than one SPIFFE ID",
        ),
        forgery(("leaf", "names"), "a name twice", Leaf, named(honest, &[(2, b"a"), (2, b"a")]), "twice"),
        forgery(("intermediate", "permission"), "CA:TRUE, honestly", Intermediate, ca, "does not allow intermediates"),
        forgery(("checkpoint", "form"), "nothing", Checkpoint, Vec::new(), "not a checkpoint"),
        forgery(
            ("checkpoint", "form"),
            "an extension line",
            Checkpoint,
            format!("{LOG_ORIGIN}\n43\n{ROOT}\nextension\n").into(),
            "not a checkpoint",
        ),
        forgery(("checkpoint", "form"), "a zero before", Checkpoint, head(LOG_ORIGIN, "043", ROOT), "not a checkpoint"),
        forgery(("checkpoint", "form"), "a short hash", Checkpoint, head(LOG_ORIGIN, "43", "AAAA"), "not a checkpoint"),
        forgery(("checkpoint", "origin"), "another log", Checkpoint, head("evil/log", "43", ROOT), "log_origins"),
        forgery(("checkpoint", "size"), "a smaller tree", Checkpoint, head(LOG_ORIGIN, "41", ROOT), "only grows"),
        forgery(("checkpoint", "size"), "an empty tree", Checkpoint, head(LOG_ORIGIN, "0", ROOT), "only grows"),
        forgery(
            ("checkpoint", "size"),
            "2^32 + 1 lines more",
            Checkpoint,
            head(LOG_ORIGIN, "4294967339", ROOT),
            "no log grows so fast",
        ),
        forgery(
            ("checkpoint", "size"),
            "a tree that no other can follow",
            Checkpoint,
            head(LOG_ORIGIN, "18446744073709551615", ROOT),
            "no log grows so fast",
        ),
        forgery(("checkpoint", "root"), "another root", Checkpoint, head(LOG_ORIGIN, "42", OTHER_ROOT), "another root"),
        forgery(("canary", "form"), "another prefix", Canary, b"istio-hsm-ca canarx\0nonce".to_vec(), "not a canary's"),
        forgery(
            ("canary", "form"),
            "a long message",
            Canary,
            [canary_message(), vec![0; 64]].concat(),
            "not a canary's",
        ),
    ];
    for point in SMALL_ORDER {
        let (rule, message) = (("certificate", "subject public key"), ed25519(point));
        forgeries.push(forgery(rule, "a point of small order", Leaf, message, "small order"));
    }
    for (name, by) in [("nobody's", By::Nobody), ("the canary key", By::CanaryKey), ("the log key", By::LogKey)] {
        let message = leaf(issuer, |_| {});
        forgeries.push(Forgery { rule: ("any", "key"), name, kind: Leaf, by, message, word: "no CA certificate" });
    }
    forgeries
}

const P256_ALGORITHM: &[u8] = b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384_ALGORITHM: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";

const ED25519_ALGORITHM: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";

/// Points of Ed25519 of order 1, 2, 4, 8 and 8, and the first in another encoding.
const SMALL_ORDER: [&[u8; 32]; 6] = [
    b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"\xec\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    &[0; 32],
    b"\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05",
    b"\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a",
    b"\xee\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
];

/// Where intermediates are permitted.
fn forged_intermediates(issuer: &Arc<Issuer>) -> Vec<Forgery> {
    let good = intermediate(issuer);
    let unbounded = extension(b"\x55\x1d\x13", Some(0xff), b"\x30\x03\x01\x01\xff");
    let san = |kind, name: &str| extension(b"\x55\x1d\x11", Some(0xff), &san_value(&[(kind, name.as_bytes())]));
    let names = |kind, name| extended(&good, |list| list.push(san(kind, name)));
    let organization = |tag: Tag, text: &[u8]| {
        let attribute = element(Tag::Sequence, &[b"\x06\x03\x55\x04\x0a", &element(tag, &[text])]);
        with(&good, 5, &element(Tag::Sequence, &[&element(Tag::Set, &[&attribute])]))
    };
    let strange = extension(b"\x55\x1d\x0e", None, b"\x04\x01x");
    let cases = [
        (
            "basic constraints",
            "any path length",
            extended(&good, |list| list[1] = unbounded),
            "not those of one profile",
        ),
        ("subject", "the CA's own name", with(&good, 5, issuer.subject()), "not one organization"),
        ("subject", "a zero byte", organization(Tag::Utf8String, b"istiod\0"), "control character"),
        ("subject", "a line", organization(Tag::Utf8String, b"istiod\nO=Istio"), "control character"),
        ("subject", "an escape sequence", organization(Tag::Utf8String, b"\x1b[31mistiod"), "control character"),
        ("subject", "a C1 control", organization(Tag::Utf8String, "istiod\u{9b}31m".as_bytes()), "control character"),
        ("subject", "a printable line", organization(Tag::PrintableString, b"istiod\n"), "control character"),
        ("subject", "a printable @", organization(Tag::PrintableString, b"root@istio"), "no PrintableString has"),
        (
            "subject",
            "printable UTF-8",
            organization(Tag::PrintableString, "istiöd".as_bytes()),
            "no PrintableString has",
        ),
        ("names", "a DNS name that is not listed", names(2, "other.example.com"), "does not list the name"),
        ("names", "a workload's", names(6, "spiffe://cluster.local/ns/a/sa/b"), "not a DNS name"),
        ("subject key identifier", "another key's", extended(&good, |list| list[2] = strange), "not the key's"),
    ];
    let forgery =
        |(field, name, message, word)| forgery(("intermediate", field), name, Kind::Intermediate, message, word);
    cases.into_iter().map(forgery).collect()
}

impl Forger {
    pub(super) fn status(&mut self) -> Status {
        match self.ask(&Request::Ping) {
            Some(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Requests a signature with the CA key or one of the host's own keys.
    pub(super) fn signs(&mut self, kind: Kind, key: &PublicKey, message: &[u8]) {
        let signature = self.signature(kind, key.fingerprint(), message);
        key.verify(key.signature_algorithm(), message, &signature).unwrap();
    }

    /// Requests a signature with the key of this fingerprint.
    pub(super) fn signature(&mut self, kind: Kind, key: [u8; 32], message: &[u8]) -> Vec<u8> {
        match self.sign(kind, key, message) {
            Some(Reply::Signed { signature, .. }) => signature,
            other => panic!("{kind:?}: {other:?}"),
        }
    }

    pub(super) fn refuses(&mut self, issuer: &Arc<Issuer>, forgeries: &[Forgery]) {
        let status = self.status();
        let own = |spki: &[u8]| PublicKey::from_spki_der(spki).unwrap().fingerprint();
        for Forgery { rule, name, kind, by, message, word } in forgeries {
            let key = match by {
                By::Ca => issuer.public_key().fingerprint(),
                By::CanaryKey => own(&status.canary_key),
                By::LogKey => own(&status.log_key),
                By::Nobody => [0; 32],
            };
            match self.sign(*kind, key, message) {
                Some(Reply::Refused { reason, limit: false }) => {
                    assert!(reason.contains(word), "{rule:?} {name}: {reason}");
                }
                other => panic!("{rule:?} {name}: {other:?}"),
            }
        }
        let refused = u64::try_from(forgeries.len()).unwrap();
        assert_eq!(self.status().refused, status.refused + refused);
    }
}

/// Expects a host to sign what is valid, refuse everything forged, and sign the same valid messages again.
pub fn refuses_all(forger: &mut Forger, issuer: &Arc<Issuer>) {
    let key = issuer.public_key();
    let open = Request::Open { key: key.fingerprint(), known: b"" };
    let Some(Reply::Opened { known, found }) = forger.ask(&open) else { panic!("the key is not found") };
    assert_eq!(found, "found by its CKA_ID, the SHA-1 of the public key");
    let open = Request::Open { key: key.fingerprint(), known: &known };
    assert_eq!(forger.ask(&open), Some(Reply::Opened { known: known.clone(), found }));
    let honest = Honest::new(issuer);
    let status = forger.status();
    let log_key = PublicKey::from_spki_der(&status.log_key).unwrap();
    for _ in 0..2 {
        forger.signs(Kind::Leaf, key, &honest.leaf);
        forger.signs(Kind::Checkpoint, &log_key, honest.checkpoint.as_bytes());
        forger.refuses(issuer, &forgeries(issuer, &honest));
    }
    for other in [&status.log_key, &status.canary_key] {
        let fingerprint = PublicKey::from_spki_der(other).unwrap().fingerprint();
        let open = Request::Open { key: fingerprint, known: b"no JSON" };
        assert!(matches!(forger.ask(&open), Some(Reply::Refused { .. })));
    }
    let signed = forger.status().signed;
    let leaves = signed.iter().filter(|count| count.kind == Kind::Leaf).map(|count| count.count).sum::<u64>();
    assert_eq!(leaves, 2);
    forger.signs(Kind::Checkpoint, &log_key, format!("{LOG_ORIGIN}\n43\n{OTHER_ROOT}\n").as_bytes());
}

/// Each rule in SECURITY.md has a message that violates it, and no test expects any other rule.
#[test]
fn every_rule_of_the_security_page_has_its_forgery() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md")).unwrap();
    let (_, section) = page.split_once("\n## What a token host signs\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let promised: BTreeSet<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].to_owned(), cells[2].to_owned())
        })
        .collect();
    let issuer = soft_issuer();
    let forged = forgeries(&issuer, &Honest::new(&issuer)).into_iter().chain(forged_intermediates(&issuer));
    let crls = super::crls::forgeries(&issuer, &super::crls::honest(&issuer));
    let mut tested: BTreeSet<_> = forged.chain(crls).map(|forgery| forgery.rule).collect();
    // By `host_without_the_permission_signs_no_crl`.
    tested.insert(("CRL", "permission"));
    // By `host_signs_no_more_certificates_than_its_limit`.
    tested.insert(("certificate", "number"));
    let tested = tested.into_iter().map(|(kind, field)| (kind.to_owned(), field.to_owned())).collect();
    assert_eq!(promised, tested);
}

#[test]
fn host_that_allows_intermediates_refuses_forged_ones() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    let mut settings = site.host_settings();
    settings.allow_intermediate = true;
    forger.hello(&serde_json::to_vec(&settings).unwrap());
    forger.refuses(&site.issuer, &forged_intermediates(&site.issuer));
    forger.signs(Kind::Intermediate, site.issuer.public_key(), &intermediate(&site.issuer));
    drop(forger);
    assert!(host.wait().unwrap().success());
}

/// A root above the CA, a certificate of the chain, a further one of `ca_certificates`, and the keys that the host itself
/// uses. The files are read again when a daemon opens a key.
#[test]
fn host_certifies_no_key_of_its_bundle_and_none_of_its_own() {
    let site = Site::new();
    let bundle = site.directory.path().join("other-bundle");
    std::fs::create_dir(&bundle).unwrap();
    let ca = std::fs::read_to_string(site.bundle.join("ca-cert.pem")).unwrap();
    std::fs::write(bundle.join("ca-cert.pem"), &ca).unwrap();
    let pairs: [KeyPair; 4] = std::array::from_fn(|at| {
        let algorithms = [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        KeyPair::generate_for(algorithms[at % 2]).unwrap()
    });
    let [above, between, former, later] = pairs.each_ref().map(root);
    std::fs::write(bundle.join("root-cert.pem"), format!("{ca}{above}")).unwrap();
    std::fs::write(bundle.join("cert-chain.pem"), between).unwrap();
    let former_file = site.directory.path().join("former.pem");
    std::fs::write(&former_file, format!("{ca}{former}")).unwrap();
    let mut settings = site.host_settings();
    settings.bundle = bundle.clone();
    settings.ca_certificates = vec![former_file];
    settings.allow_intermediate = true;
    let (mut host, mut forger) = child(&site);
    let status = forger.hello(&serde_json::to_vec(&settings).unwrap());

    let ca_key = site.issuer.public_key();
    let messages = |spki: &[u8]| {
        let key = PublicKey::from_spki_der(spki).unwrap();
        let of = |profile: Profile| {
            leaf(&site.issuer, |template| {
                if profile != Profile::Leaf {
                    template.names.clear();
                }
                (template.public_key, template.profile) = (key.clone(), profile);
            })
        };
        let organization = "evil".to_owned();
        [(Kind::Leaf, of(Profile::Leaf)), (Kind::Intermediate, of(Profile::Intermediate { organization }))]
    };
    let spki = |pair: &KeyPair| rcgen::PublicKeyData::subject_public_key_info(pair);
    let refuses = |forger: &mut Forger, name: &str, spki: &[u8], word: &str| {
        for (kind, message) in messages(spki) {
            match forger.sign(kind, ca_key.fingerprint(), &message) {
                Some(Reply::Refused { reason, .. }) => assert!(reason.contains(word), "{name}: {reason}"),
                other => panic!("{name} {kind:?}: {other:?}"),
            }
        }
    };
    refuses(&mut forger, "root-cert.pem", &spki(&pairs[0]), "the key of a CA");
    refuses(&mut forger, "cert-chain.pem", &spki(&pairs[1]), "the key of a CA");
    refuses(&mut forger, "ca_certificates", &spki(&pairs[2]), "the key of a CA");
    refuses(&mut forger, "the log key", &status.log_key, "log key or canary key");
    refuses(&mut forger, "the canary key", &status.canary_key, "log key or canary key");
    for (kind, message) in messages(&spki(&pairs[3])) {
        forger.signs(kind, ca_key, &message);
    }
    // A damaged file loses nothing that was known.
    std::fs::write(bundle.join("root-cert.pem"), later).unwrap();
    std::fs::write(bundle.join("cert-chain.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let open = Request::Open { key: ca_key.fingerprint(), known: b"" };
    assert!(matches!(forger.ask(&open), Some(Reply::Opened { .. })));
    for (pair, name) in pairs.iter().zip(["an earlier root", "a damaged file", "ca_certificates", "a new root"]) {
        refuses(&mut forger, name, &spki(pair), "the key of a CA");
    }
    drop(forger);
    assert!(host.wait().unwrap().success());
}

#[test]
fn host_signs_no_more_certificates_than_its_limit() {
    for (per_hour, in_total) in [(Some(3), None), (None, Some(3)), (Some(3), Some(100))] {
        let site = Site::new();
        let (mut host, mut forger) = child(&site);
        let mut settings = site.host_settings();
        settings.max_certificates_per_hour = per_hour.and_then(NonZeroU32::new);
        settings.max_certificates = in_total.and_then(NonZeroU64::new);
        forger.hello(&serde_json::to_vec(&settings).unwrap());
        let key = site.issuer.public_key();
        let leaves: Vec<_> = (0..3).map(|_| leaf(&site.issuer, |_| {})).collect();
        leaves.iter().for_each(|leaf| forger.signs(Kind::Leaf, key, leaf));
        for _ in 0..3 {
            match forger.sign(Kind::Leaf, key.fingerprint(), &leaf(&site.issuer, |_| {})) {
                Some(Reply::Refused { reason, limit: true }) => assert!(reason.contains("limit of 3 cert"), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        // The same certificate again does not count.
        leaves.iter().for_each(|leaf| forger.signs(Kind::Leaf, key, leaf));
        drop(forger);
        assert!(host.wait().unwrap().success());
    }
}

/// The last head is stored over restarts, even if the host was killed.
#[test]
fn next_host_process_knows_the_last_checkpoint() {
    let site = Site::new();
    let settings = serde_json::to_vec(&site.host_settings()).unwrap();
    for (size, good) in [(7, true), (6, false), (7, true), (8, true), (7, false)] {
        let (mut host, mut forger) = child(&site);
        let log_key = PublicKey::from_spki_der(&forger.hello(&settings).log_key).unwrap();
        let message = format!("{LOG_ORIGIN}\n{size}\n{ROOT}\n");
        if good {
            forger.signs(Kind::Checkpoint, &log_key, message.as_bytes());
        } else {
            let reply = forger.sign(Kind::Checkpoint, [0; 32], message.as_bytes());
            assert!(matches!(reply, Some(Reply::Refused { .. })), "{reply:?}");
        }
        host.kill().unwrap();
        host.wait().unwrap();
    }
}

/// The remedy that the refusal gives: a false checkpoint blocks the log until its lines are removed.
#[test]
fn host_forgets_a_false_checkpoint_whose_lines_are_removed() {
    let site = Site::new();
    let settings = site.host_settings();
    let file = settings.checkpoint_file.clone().unwrap();
    let settings = serde_json::to_vec(&settings).unwrap();
    let head = |size: u64| format!("{LOG_ORIGIN}\n{size}\n{ROOT}\n");
    let other = format!("other.test/log\n9\n{ROOT}\n");
    std::fs::write(&file, &other).unwrap();
    // None of these can be the first of a log.
    for (first, is_signed) in [(u64::MAX, false), ((1 << 48) + 1, false), (1 << 48, true)] {
        let (mut host, mut forger) = child(&site);
        let log_key = PublicKey::from_spki_der(&forger.hello(&settings).log_key).unwrap();
        if is_signed {
            forger.signs(Kind::Checkpoint, &log_key, head(first).as_bytes());
            let Some(Reply::Refused { reason, .. }) = forger.sign(Kind::Checkpoint, [0; 32], head(7).as_bytes()) else {
                panic!("a smaller tree is signed");
            };
            let remedy =
                format!("remove the three lines of {LOG_ORIGIN:?} (origin, size and root) from {}", file.display());
            assert!(reason.contains(&remedy), "{reason}");
        } else {
            match forger.sign(Kind::Checkpoint, [0; 32], head(first).as_bytes()) {
                Some(Reply::Refused { reason, .. }) => assert!(reason.contains("first checkpoint"), "{reason}"),
                other => panic!("{first}: {other:?}"),
            }
        }
        drop(forger);
        assert!(host.wait().unwrap().success());
    }
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, kept.replace(&head(1 << 48), "")).unwrap();
    let (mut host, mut forger) = child(&site);
    let log_key = PublicKey::from_spki_der(&forger.hello(&settings).log_key).unwrap();
    forger.signs(Kind::Checkpoint, &log_key, head(7).as_bytes());
    drop(forger);
    assert!(host.wait().unwrap().success());
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains(&other) && kept.contains(&head(7)), "{kept}");
}

#[test]
fn a_forged_daemon_gets_nothing_that_the_host_does_not_allow() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    let settings = serde_json::to_vec(&site.host_settings()).unwrap();
    let status = forger.hello(&settings);
    assert_eq!((status.version, status.pid, status.sessions), (VERSION, host.id(), 1));
    refuses_all(&mut forger, &site.issuer);
    // A second hello changes nothing.
    let again = forger.ask(&Request::Hello { version: VERSION, settings: &settings });
    assert!(matches!(again, Some(Reply::Refused { .. })), "{again:?}");
    drop(forger);
    assert!(host.wait().unwrap().success(), "the host fails when the daemon disconnects");
}

#[test]
fn invalid_frame_ends_the_connection() {
    let (mut reply, mut ping) = (Vec::new(), Vec::new());
    Reply::Opened { known: Vec::new(), found: String::new() }.encode(0, &mut reply).unwrap();
    Request::Ping.encode(0, &mut ping).unwrap();
    let cases: [(&str, bool, Vec<u8>); 6] = [
        ("a gigabyte", true, vec![0x40, 0, 0, 0]),
        ("an empty frame", true, vec![0; 4]),
        // Correlation 1, and an empty body with the unknown number 15.
        ("an unknown body", true, vec![0, 0, 0, 4, 0x08, 1, 0x7a, 0]),
        ("a reply", true, reply),
        ("HTTP", true, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a ping before the hello", false, ping),
    ];
    let site = Site::new();
    for (name, greeted, bytes) in cases {
        let (mut host, mut forger) = child(&site);
        if greeted {
            forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
        }
        assert!(forger.hangs_up(&bytes), "{name}");
        host.wait().unwrap();
    }
}

#[test]
fn settings_that_the_host_does_not_know_are_refused() {
    let site = Site::new();
    let good = serde_json::to_string(&site.host_settings()).unwrap();
    for bad in ["", "{}", "null", &good.replace("bundle", "bundel"), &good.replace("cluster.local", "Cluster Local")] {
        let (mut host, mut forger) = child(&site);
        let reply = forger.ask(&Request::Hello { version: VERSION, settings: bad.as_bytes() });
        assert!(matches!(reply, Some(Reply::Fault(_))), "{bad}: {reply:?}");
        assert!(!host.wait().unwrap().success());
    }
}

#[test]
fn a_host_shows_nothing_of_itself() {
    let site = Site::new();
    let (mut host, mut forger) = child(&site);
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let process = std::path::PathBuf::from(format!("/proc/{}", host.id()));
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    // The hard limit, too: the soft limit is 0 on many machines anyway.
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // Files in /proc of a process that is not dumpable belong to root; as root this test shows
    // nothing, and `supervised` verifies it for another user.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(process.join("mem")).unwrap());
    assert_eq!(owner, 0);
    for secret in ["environ", "cmdline"] {
        let text = std::fs::read(process.join(secret)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(testkit::softhsm::PIN), "{secret}");
    }
    drop(forger);
    host.wait().unwrap();
}

/// Settings with the module that fails on command, and a long call timeout.
fn faulty_settings(site: &Site) -> Vec<u8> {
    let mut settings = site.host_settings();
    settings.uri = through(&MODULE, &settings.uri);
    settings.call_timeout = Duration::from_secs(60);
    serde_json::to_vec(&settings).unwrap()
}

#[test]
fn expired_request_is_not_signed() {
    let site = Site::new();
    let control = Control::new(site.directory.path());
    let (mut host, mut forger) = child(&site);
    forger.hello(&faulty_settings(&site));
    let key = site.issuer.public_key().fingerprint();
    let message = leaf(&site.issuer, |_| {});
    let sign =
        |deadline_ms| Request::Sign(Sign { kind: Kind::Leaf, key, request_id: "late", deadline_ms, message: &message });
    assert_eq!(forger.ask(&sign(0)), Some(Reply::Expired));
    assert!(matches!(forger.ask(&sign(30_000)), Some(Reply::Signed { .. })));
    // After a slow request, the second one's deadline has passed, but not the third one's.
    control.breaks("C_Sign delay=300");
    let mark = control.mark();
    let replies = forger.ask_all(&[sign(30_000), sign(100), sign(30_000)]);
    assert!(matches!(replies[..], [Reply::Signed { .. }, Reply::Expired, Reply::Signed { .. }]), "{replies:?}");
    assert_eq!(control.books_since(mark).signed.len(), 2, "the expired request reached the token");
    // Once the host has detected that the token is slow, it reads ahead: now the second one's deadline passes while it
    // waits for the session that the first one uses.
    control.breaks("C_Sign delay=30");
    assert_eq!(forger.ask_all(&std::array::from_fn::<_, 8, _>(|_| sign(30_000))).len(), 8);
    control.breaks("C_Sign delay=1000");
    let mark = control.mark();
    forger.send(&[sign(30_000)]);
    std::thread::sleep(Duration::from_millis(500));
    forger.send(&[sign(100), sign(30_000)]);
    let replies = forger.answers(3);
    assert!(matches!(replies[..], [Reply::Signed { .. }, Reply::Expired, Reply::Signed { .. }]), "{replies:?}");
    assert_eq!(control.books_since(mark).signed.len(), 2, "the expired request reached the token");
    let Some(Reply::Status(status)) = forger.ask(&Request::Ping) else { panic!() };
    assert_eq!(status.expired, 3);
    drop(forger);
    host.wait().unwrap();
}

/// Here neither the parent's death nor a call's timeout applies: the watchdog detects that the daemon has disconnected.
#[test]
fn a_host_whose_daemon_hangs_up_ends_although_a_call_hangs() {
    for supervised in [false, true] {
        let site = Site::new();
        let control = Control::new(site.directory.path());
        let socket = site.directory.path().join("host.sock");
        let (mut host, mut forger) = if supervised {
            let config = site.directory.path().join("token-host.toml");
            let settings: token_host::Settings = serde_json::from_slice(&faulty_settings(&site)).unwrap();
            std::fs::write(&config, toml::to_string(&settings).unwrap()).unwrap();
            let mut command = Command::new(PROGRAM);
            command.args(["--config"]).arg(&config).arg("--socket").arg(&socket);
            let started = command.envs(site.environment()).envs(control.environment()).stdin(Stdio::null()).spawn();
            (started.unwrap(), Forger::connect(&socket))
        } else {
            child(&site)
        };
        forger.hello(&faulty_settings(&site));
        control.breaks("C_Sign hang");
        let mark = control.mark();
        let (key, message) = (site.issuer.public_key().fingerprint(), leaf(&site.issuer, |_| {}));
        let sign = Sign { kind: Kind::Leaf, key, request_id: "hangs", deadline_ms: 30_000, message: &message };
        let mut bytes = Vec::new();
        Request::Sign(sign).encode(99, &mut bytes).unwrap();
        forger.socket.write_all(&bytes).unwrap();
        eventually_blocking("the module is called", || control.books_since(mark).faults_of("C_Sign") != 0);
        drop(forger);
        let began = Instant::now();
        let status = loop {
            if let Some(status) = host.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > Duration::from_secs(10) {
                host.kill().unwrap();
                panic!("supervised {supervised}: the host lives on");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(!status.success(), "supervised {supervised}: {status}");
    }
}

/// A host has a higher priority than the daemon, in all its threads, if the system permits it.
#[test]
fn a_host_has_a_higher_priority_if_it_may() {
    let nice = |task: &Path| -> i32 {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        // The name, in parentheses, may contain anything; nice is the 19th field, the 17th after it.
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
    };
    let site = Site::new();
    let (mut host, mut forger) = child_of(Command::new(PROGRAM), &site);
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let own = nice(Path::new("/proc/self"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let may = u64::from_str_radix(capabilities, 16).unwrap() & (1 << CAP_SYS_NICE) != 0;
    let expected = if may { (own - 10).max(-20) } else { own };
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", host.id())).unwrap().flatten().collect();
    assert!(tasks.len() > 1, "there is no watchdog thread");
    for task in tasks {
        // It starts before, and serves nobody.
        if std::fs::read_to_string(task.path().join("comm")).unwrap().trim() == "log-repeats" {
            continue;
        }
        assert_eq!(nice(&task.path()), expected, "{}", task.path().display());
    }
    drop(forger);
    host.wait().unwrap();
}

/// What a host may have open: standard input and output, one socket, and what its module has opened.
#[test]
fn host_inherits_no_descriptor() {
    let site = Site::new();
    let theirs = ["log", "key"].map(|name| site.directory.path().join(name));
    theirs.iter().for_each(|path| std::fs::write(path, "secret").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 7<\"$1\" 9>>\"$2\"; shift 2; exec \"$@\"", "sh"]).args(&theirs).arg(PROGRAM);
    let (mut host, mut forger) = child_of(shell, &site);
    // No module is loaded before the hello selects one.
    forger.hello(&serde_json::to_vec(&site.host_settings()).unwrap());
    let open = |process: u32| -> Vec<(u32, String)> {
        let listing = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let number = |entry: &std::fs::DirEntry| entry.file_name().to_str().unwrap().parse().unwrap();
        let target = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap().display().to_string();
        listing.flatten().map(|entry| (number(&entry), target(&entry))).collect()
    };
    let descriptors = open(host.id());
    assert_eq!(descriptors.iter().find(|(number, _)| *number == 0).unwrap().1, "/dev/null", "{descriptors:?}");
    let error = &descriptors.iter().find(|(number, _)| *number == 2).unwrap().1;
    let sockets: std::collections::BTreeSet<_> =
        descriptors.iter().filter(|(_, to)| to.starts_with("socket:")).collect();
    let sockets: std::collections::BTreeSet<_> =
        sockets.into_iter().map(|(_, to)| to).filter(|to| *to != error).collect();
    assert_eq!(sockets.len(), 1, "more than its own: {descriptors:?}");
    let module = site.directory.path().join("tokens").display().to_string();
    for (number, to) in &descriptors {
        let known = *number <= 2 || sockets.contains(to) || to.starts_with(&module);
        assert!(known, "{number} is {to}: {descriptors:?}");
    }
    drop(forger);
    host.wait().unwrap();
}
