//! Valid and invalid plug-in CAs: the result of [`Bundle::check`], and of openssl and rustls-webpki for a leaf issued
//! by them. The certificates are made by openssl at test time.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use der::Tag;
use istio_hsm_ca_pki::{
    Bundle, PublicKey,
    bundle::{BundleFiles, Input},
    pem,
    testing::draft::{Draft, common_name},
};
use process::clock;
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, UnixTime};

const DAY: Duration = Duration::from_secs(86_400);
const CA: &str =
    "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
const LEAF: &str = "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
                    extendedKeyUsage=serverAuth,clientAuth\n\
                    subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/bar\n";
pub(super) const P256: &str = "EC -pkeyopt ec_paramgen_curve:P-256";

/// A directory in which openssl runs; files have short names.
pub(super) struct Workshop(pub(super) tempfile::TempDir);

impl Workshop {
    pub(super) fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        shop.key("leaf", P256);
        shop
    }

    /// Runs openssl; arguments are separated by spaces. True if it succeeds.
    pub(super) fn try_openssl(&self, arguments: &str) -> bool {
        let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(self.0.path()).output();
        output.unwrap().status.success()
    }

    pub(super) fn openssl(&self, arguments: &str) {
        assert!(self.try_openssl(arguments), "openssl {arguments}");
    }

    pub(super) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap()
    }

    pub(super) fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(file), content).unwrap();
    }

    pub(super) fn key(&self, name: &str, algorithm: &str) {
        self.openssl(&format!("genpkey -algorithm {algorithm} -out {name}.key"));
    }

    /// A certificate `name`.crt for `key`.key with the subject CN=`subject`, by `issuer` (certificate, key) or
    /// self-signed.
    pub(super) fn certify(
        &self,
        name: &str,
        (subject, key): (&str, &str),
        issuer: Option<(&str, &str)>,
        extensions: &str,
        more: &str,
    ) {
        self.openssl(&format!("req -new -key {key}.key -subj /O=Istio/CN={subject} -out {name}.csr"));
        let by = match issuer {
            Some((certificate, key)) => format!("-CA {certificate}.crt -CAkey {key}.key"),
            None => format!("-signkey {key}.key"),
        };
        let extensions = if extensions.is_empty() {
            String::new()
        } else {
            self.write("extensions", extensions);
            "-extfile extensions".to_owned()
        };
        let days = if more.contains("-days") { "" } else { "-days 3650" };
        let serial = self.0.path().read_dir().unwrap().count();
        self.openssl(&format!(
            "x509 -req -in {name}.csr {by} {extensions} {days} {more} -set_serial {serial} -out {name}.crt"
        ));
    }

    /// Creates a P-256 key and its certificate.
    fn authority(&self, name: &str, issuer: Option<&str>, extensions: &str, more: &str) -> String {
        self.key(name, P256);
        self.certify(name, (name, name), issuer.map(|issuer| (issuer, issuer)), extensions, more);
        self.read(&format!("{name}.crt"))
    }

    /// Whether openssl accepts given-leaf.crt.
    fn openssl_takes(&self, intermediates: &[u8], roots: &[u8], now: SystemTime) -> bool {
        self.write("given-roots", roots);
        self.write("given-others", intermediates);
        let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        // openssl does not accept empty files.
        let untrusted = if intermediates.is_empty() { "" } else { "-untrusted given-others" };
        let chain = format!("-CAfile given-roots -no-CApath -no-CAstore {untrusted} -auth_level 0");
        ["sslserver", "sslclient"]
            .iter()
            .all(|purpose| self.try_openssl(&format!("verify {chain} -attime {at} -purpose {purpose} given-leaf.crt")))
    }
}

/// Whether rustls-webpki, and so ztunnel, accepts a leaf.
fn webpki_takes(leaf: &[u8], intermediates: &[Vec<u8>], roots: &[Vec<u8>], now: SystemTime) -> bool {
    let der = |bytes: &Vec<u8>| CertificateDer::from(bytes.clone());
    let (roots, intermediates): (Vec<_>, Vec<_>) =
        (roots.iter().map(der).collect(), intermediates.iter().map(der).collect());
    let anchors: Vec<_> = roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
    let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let leaf = CertificateDer::from(leaf.to_vec());
    let Ok(leaf) = webpki::EndEntityCert::try_from(&leaf) else { return false };
    let usages = [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()];
    usages.into_iter().all(|usage| {
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &intermediates, time, usage, None, None).is_ok()
    })
}

fn ders(text: &[u8]) -> Vec<Vec<u8>> {
    pem::blocks(text).unwrap_or_default().into_iter().map(|block| block.der.to_vec()).collect()
}

struct Case {
    name: &'static str,
    /// The key that signs the leaf for the verifiers.
    signer: &'static str,
    ca: Vec<u8>,
    chain: Vec<u8>,
    roots: Vec<u8>,
    /// Days from now at which the bundle is checked.
    at: i32,
}

impl Case {
    fn new(
        name: &'static str,
        signer: &'static str,
        ca: impl Into<Vec<u8>>,
        chain: impl Into<Vec<u8>>,
        roots: impl Into<Vec<u8>>,
    ) -> Self {
        Self { name, signer, ca: ca.into(), chain: chain.into(), roots: roots.into(), at: 0 }
    }

    fn at(self, days: i32) -> Self {
        Self { at: days, ..self }
    }

    fn now(&self) -> SystemTime {
        // A minute later: the certificates were made in this very second.
        let now = clock::now() + Duration::from_secs(60);
        let days = DAY * self.at.unsigned_abs();
        if self.at < 0 { now - days } else { now + days }
    }

    fn files(&self) -> BundleFiles {
        let input = |name: &str, bytes: &[u8]| Input { name: name.to_owned(), bytes: bytes.to_vec() };
        BundleFiles {
            ca_cert: input("ca-cert.pem", &self.ca),
            cert_chain: input("cert-chain.pem", &self.chain),
            root_cert: input("root-cert.pem", &self.roots),
        }
    }

    fn check(&self) -> Result<Bundle, Vec<String>> {
        Bundle::check(self.files(), self.now()).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }
}

/// Valid CAs: length of the path, and a part of each expected warning.
#[test]
fn good_plugin_cas_are_accepted() {
    let shop = Workshop::new();
    let root = shop.authority("root", None, CA, "");
    let other = shop.authority("other-root", None, CA, "");
    let plain = shop.authority("plain", Some("root"), CA, "");

    // The form of Istio's samples: RSA, basicConstraints not critical, no SKI, a DNS name.
    shop.key("sample", "RSA -pkeyopt rsa_keygen_bits:2048");
    let shape = "basicConstraints=CA:true\nkeyUsage=keyCertSign\nsubjectAltName=DNS:ca.istio.io\n\
                 subjectKeyIdentifier=none\nauthorityKeyIdentifier=none\n";
    shop.certify("sample", ("sample", "sample"), Some(("root", "root")), shape, "");
    let sample = shop.read("sample.crt");

    let upper = shop.authority("upper", Some("root"), &CA.replace("CA:true", "CA:true,pathlen:1"), "");
    shop.key("lower", "EC -pkeyopt ec_paramgen_curve:P-384");
    shop.certify(
        "lower",
        ("lower", "lower"),
        Some(("upper", "upper")),
        &CA.replace("CA:true", "CA:true,pathlen:0"),
        "",
    );
    let lower = shop.read("lower.crt");

    // `upper` cross-signed by another root, and a root renewed with the same and with another key.
    shop.certify("upper-cross", ("upper", "upper"), Some(("other-root", "other-root")), CA, "");
    let upper_cross = shop.read("upper-cross.crt");
    shop.certify("root-renewed", ("root", "root"), None, CA, "");
    let renewed = shop.read("root-renewed.crt");
    shop.key("rekeyed", P256);
    shop.certify("rekeyed", ("root", "rekeyed"), None, CA, "");
    let rekeyed = shop.read("rekeyed.crt");

    // The same root without basicConstraints, and with a constraint that every name meets.
    shop.certify("signer", ("root", "root"), None, &CA.replace("basicConstraints=critical,CA:true\n", ""), "");
    let signer = shop.read("signer.crt");
    let directory = "nameConstraints=critical,excluded;dirName:d\n[d]\nO=Other\n";
    shop.certify("lenient", ("root", "root"), None, &format!("{CA}{directory}"), "");
    let lenient = shop.read("lenient.crt");

    let v1 = shop.authority("v1", None, "", "");
    let under_v1 = shop.authority("under-v1", Some("v1"), CA, "");
    shop.key("p521", "EC -pkeyopt ec_paramgen_curve:P-521");
    shop.certify("p521", ("p521", "p521"), None, CA, "-sha512");
    let p521 = shop.read("p521.crt");
    shop.key("ed25519", "ED25519");
    shop.certify("ed25519", ("ed25519", "ed25519"), Some(("p521", "p521")), CA, "-sha512");
    let ed25519 = shop.read("ed25519.crt");

    let usages = shop.authority("usages", Some("root"), &format!("{CA}extendedKeyUsage=serverAuth,clientAuth\n"), "");
    let dns = shop.authority("dns", Some("root"), &format!("{CA}nameConstraints=permitted;DNS:svc\n"), "");
    let soon = shop.authority("soon", Some("root"), CA, "-days 30");
    shop.key("rsa-root", "RSA");
    shop.certify("rsa-root", ("rsa-root", "rsa-root"), None, CA, "-sha1");
    let sha1_root = shop.read("rsa-root.crt");
    let under_sha1_root = shop.authority("under-sha1-root", Some("rsa-root"), CA, "");
    let remarks = format!("Subject: plain\r\n{}\r\n", plain.replace('\n', "\r\n"));

    let cases: Vec<(Case, usize, &[&str])> = vec![
        (Case::new("Istio's sample", "sample", &*sample, &*sample, &*root), 1, &[]),
        (Case::new("empty chain", "plain", &*plain, "", &*root), 1, &[]),
        (Case::new("the CA and the root in the chain", "plain", &*plain, plain.clone() + &root, &*root), 1, &[]),
        (Case::new("CRLF and remarks", "plain", &*remarks, &*remarks, format!("root\n{root}")), 1, &[]),
        (Case::new("the CA is the root", "root", &*root, "", &*root), 0, &[]),
        (Case::new("the CA is the root, repeated", "root", &*root, &*root, &*root), 0, &[]),
        (Case::new("two levels", "lower", &*lower, lower.clone() + &upper, &*root), 2, &[]),
        (Case::new("two levels in disorder", "lower", &*lower, root.clone() + &upper + &lower, &*root), 2, &[]),
        (Case::new("tls.crt with its chain", "lower", lower.clone() + &upper, "", &*root), 2, &[]),
        (Case::new("several roots", "plain", &*plain, &*plain, other.clone() + &root), 1, &[]),
        (
            Case::new("cross-signed, one root known", "lower", &*lower, upper_cross.clone() + &upper, &*root),
            2,
            &["(CN=upper,O=Istio) is not on the CA's path"],
        ),
        (Case::new("root renewed with its key", "plain", &*plain, &*plain, &*renewed), 1, &[]),
        (Case::new("a root of the same name first", "plain", &*plain, "", rekeyed.clone() + &root), 1, &[]),
        (
            Case::new("the root without basicConstraints in addition", "plain", &*plain, "", signer.clone() + &root),
            1,
            &["is not a CA's (it has no basicConstraints); the CA's path does not need it"],
        ),
        (
            Case::new("the root with a directory constraint in addition", "plain", &*plain, "", lenient + &root),
            1,
            &["constrains directory names", "do not know (2.5.29.30)"],
        ),
        (Case::new("a root of version 1", "under-v1", &*under_v1, "", &*v1), 1, &[]),
        (Case::new("Ed25519 under P-521", "ed25519", &*ed25519, "", &*p521), 1, &[]),
        (Case::new("both usages", "usages", &*usages, "", &*root), 1, &[]),
        (Case::new("DNS constraint", "dns", &*dns, "", &*root), 1, &["has name constraints"]),
        (Case::new("expires soon", "soon", &*soon, "", &*root), 1, &["expires in 29 days"]),
        (
            Case::new("a root signed with SHA-1", "under-sha1-root", &*under_sha1_root, "", &*sha1_root),
            1,
            &["signed with SHA-1; nobody verifies"],
        ),
        (
            Case::new("an expired root in addition", "plain", &*plain, "", soon.clone() + &root).at(40),
            1,
            &["expired at", "is not self-signed"],
        ),
    ];
    for (case, path_length, warnings) in cases {
        let name = case.name;
        let bundle = case.check().unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
        let issuer = bundle.issuer();
        let found: Vec<_> = bundle.warnings().iter().map(ToString::to_string).collect();
        let expected = |warning: &String| warnings.iter().any(|part| warning.contains(part));
        assert!(found.iter().all(expected), "{name}: {found:#?}");
        assert!(found.is_empty() == warnings.is_empty(), "{name}: {found:#?}");

        assert_eq!(issuer.path_pem().len(), path_length, "{name}");
        for element in issuer.path_pem() {
            assert!(ders(element.as_bytes()).len() == 1 && element.ends_with("-----\n") && !element.contains('\r'));
        }
        assert_eq!(issuer.roots_pem().as_bytes(), case.roots, "{name}: byte for byte");
        assert_eq!(issuer.roots(), ders(&case.roots), "{name}");
        assert_eq!(issuer.certificate(), ders(&case.ca)[0], "{name}");
        if let Some(first) = issuer.path_pem().first() {
            assert_eq!(ders(first.as_bytes())[0], issuer.certificate(), "{name}: the CA's certificate comes first");
        }

        let signer = case.signer;
        shop.write(&format!("given-{signer}.crt"), pem::encode("CERTIFICATE", issuer.certificate()));
        let more = if signer == "ed25519" { "-sha512" } else { "" };
        shop.certify("given-leaf", ("leaf", "leaf"), Some((&format!("given-{signer}"), signer)), LEAF, more);
        let leaf = ders(shop.read("given-leaf.crt").as_bytes()).remove(0);
        let path: Vec<_> = issuer.path_pem().iter().flat_map(|element| ders(element.as_bytes())).collect();
        // What a client receives rather than the files: openssl searches paths differently.
        let sent = issuer.path_pem().concat();
        assert!(shop.openssl_takes(sent.as_bytes(), &case.roots, case.now()), "{name}: openssl");
        assert!(webpki_takes(&leaf, &path, issuer.roots(), case.now()), "{name}: webpki");
        assert!(!webpki_takes(&leaf, &path, &[], case.now()), "{name}: the verifier accepts everything");
    }
}

/// Invalid CAs: a part of each problem, and which verifier also rejects a leaf.
#[test]
fn bad_plugin_cas_are_refused_with_every_reason() {
    #[derive(Clone, Copy, PartialEq)]
    enum Judge {
        Both,
        /// A rule of openssl that rustls-webpki does not have, or not for trust anchors.
        Openssl,
        /// A rule of one of Istio's clients that openssl does not have.
        Webpki,
        /// A rule of only this program or Go, because we cannot sign with it, or it is not part of a reply.
        Nobody,
    }
    use Judge::{Both, Nobody, Openssl, Webpki};

    let shop = Workshop::new();
    let root = shop.authority("root", None, CA, "");
    let good = shop.authority("good", Some("root"), CA, "");
    let no_authority = shop.authority("no-authority", Some("root"), LEAF, "");
    let no_constraints = shop.authority("no-constraints", Some("root"), "subjectKeyIdentifier=hash\n", "");
    let no_cert_sign = shop.authority("no-cert-sign", Some("root"), &CA.replace("keyCertSign,", ""), "");
    let short_root = shop.authority("short-root", None, &CA.replace("CA:true", "CA:true,pathlen:0"), "");
    let under_short = shop.authority("under-short", Some("short-root"), CA, "");
    let short_lived = shop.authority("short-lived", Some("root"), CA, "-days 10");
    let brief_root = shop.authority("brief-root", None, CA, "-days 20");
    let under_brief = shop.authority("under-brief", Some("brief-root"), CA, "");
    shop.authority("upper", Some("root"), CA, "");
    let lower = shop.authority("lower", Some("upper"), CA, "");
    shop.key("impostor", P256);
    shop.certify("impostor", ("root", "impostor"), None, CA, "");
    let impostor = shop.read("impostor.crt");
    shop.key("p521", "EC -pkeyopt ec_paramgen_curve:P-521");
    shop.certify("p521", ("p521", "p521"), Some(("root", "root")), CA, "");
    shop.key("rsa1024", "RSA -pkeyopt rsa_keygen_bits:1024");
    shop.certify("rsa1024", ("rsa1024", "rsa1024"), Some(("root", "root")), CA, "");
    shop.key("rsa3", "RSA -pkeyopt rsa_keygen_pubexp:3");
    shop.certify("rsa3", ("rsa3", "rsa3"), Some(("root", "root")), CA, "");
    let critical = shop.authority("critical", Some("root"), &format!("{CA}1.2.3.4=critical,DER:0500\n"), "");
    let code = shop.authority("code", Some("root"), &format!("{CA}extendedKeyUsage=codeSigning\n"), "");
    let server = shop.authority("server", Some("root"), &format!("{CA}extendedKeyUsage=serverAuth\n"), "");
    let any = shop.authority("any", Some("root"), &format!("{CA}extendedKeyUsage=anyExtendedKeyUsage\n"), "");
    let uri = shop.authority("uri", Some("root"), &format!("{CA}nameConstraints=permitted;URI:cluster.local\n"), "");
    let directory = "nameConstraints=critical,excluded;dirName:d\n[d]\nO=Other\n";
    let directory = shop.authority("directory", Some("root"), &format!("{CA}{directory}"), "");
    let wrong_upper = shop.authority("wrong-upper", Some("root"), LEAF, "");
    let under_wrong = shop.authority("under-wrong", Some("wrong-upper"), CA, "");

    let der = pem::encode("CERTIFICATE", &[0x30, 3, 2, 1, 5]);
    let mut flipped = ders(good.as_bytes()).remove(0);
    *flipped.last_mut().unwrap() ^= 1;
    let flipped = pem::encode("CERTIFICATE", &flipped);
    let key = shop.read("good.key");
    let latin1 = [b"# Pr\xfcfstelle\n", root.as_bytes()].concat();

    let cases: Vec<(Case, &[&str], Judge)> = vec![
        (Case::new("no certificate", "good", "", &*good, &*root), &["ca-cert.pem: holds no certificate"], Nobody),
        (Case::new("no root", "good", &*good, "", "text\n"), &["root-cert.pem: has content, but no PEM block"], Both),
        (
            Case::new("cut off", "good", good[..100].to_owned(), "", &*root),
            &["ca-cert.pem: line 1: the block that begins here has no END line"],
            Nobody,
        ),
        (
            Case::new("malformed", "good", &*good, format!("\n{der}"), &*root),
            &["cert-chain.pem: line 2: the certificate is malformed"],
            Nobody,
        ),
        (
            Case::new("a key in the chain", "good", &*good, format!("{good}{key}"), &*root),
            &["cert-chain.pem: line 12: holds a `PRIVATE KEY`; this file is public, remove it from there: LC"],
            Nobody,
        ),
        (Case::new("Latin-1", "good", &*good, "", latin1), &["root-cert.pem: is not UTF-8"], Nobody),
        (Case::new("CA:FALSE", "no-authority", &*no_authority, "", &*root), &["CA:FALSE"], Both),
        (
            Case::new("no basicConstraints", "no-constraints", &*no_constraints, "", &*root),
            &["no basicConstraints"],
            Both,
        ),
        (
            Case::new("CA:FALSE further up", "under-wrong", &*under_wrong, &*wrong_upper, &*root),
            &["cert-chain.pem: the certificate on line 1 (CN=wrong-upper,O=Istio) is not a CA's"],
            Both,
        ),
        (
            Case::new("no keyCertSign", "no-cert-sign", &*no_cert_sign, "", &*root),
            &["keyUsage lacks keyCertSign"],
            Openssl,
        ),
        (
            Case::new("path length", "under-short", &*under_short, "", &*short_root),
            &["root-cert.pem: the certificate on line 1 (CN=short-root,O=Istio) allows 0 CA certificates below it"],
            Openssl,
        ),
        (
            Case::new("expired", "short-lived", &*short_lived, "", &*root).at(11),
            &["ca-cert.pem: the certificate on line 1 (CN=short-lived,O=Istio) expired at 20"],
            Both,
        ),
        (
            Case::new("expired root", "under-brief", &*under_brief, "", &*brief_root).at(21),
            &["root-cert.pem: the certificate on line 1 (CN=brief-root,O=Istio) expired at"],
            Openssl,
        ),
        (
            Case::new("not yet valid", "good", &*good, "", &*root).at(-1),
            &[
                "ca-cert.pem: the certificate on line 1 (CN=good,O=Istio) is not yet valid",
                "root-cert.pem: the certificate on line 1 (CN=root,O=Istio) is not yet valid",
            ],
            Both,
        ),
        (
            Case::new("an intermediate is missing", "lower", &*lower, &*lower, &*root),
            &["leads to no root in root-cert.pem: the certificate of its issuer (CN=upper,O=Istio) is missing"],
            Both,
        ),
        (
            Case::new("another root", "good", &*good, "", &*short_root),
            &["the certificate of its issuer (CN=root,O=Istio) is missing"],
            Both,
        ),
        (
            Case::new("a root of another key", "good", &*good, "", &*impostor),
            &["does not verify with the key of the certificate on line 1 (CN=root,O=Istio) in root-cert.pem"],
            Both,
        ),
        (Case::new("a broken signature", "good", &*flipped, "", &*root), &["does not verify with the key of"], Both),
        (
            Case::new("self-signed, not a root", "impostor", &*impostor, "", &*short_root),
            &["is self-issued, but not in root-cert.pem"],
            Both,
        ),
        (
            Case::new("P-521", "p521", shop.read("p521.crt"), "", &*root),
            &["the key is P-521, which is not supported"],
            Nobody,
        ),
        (Case::new("RSA-1024", "rsa1024", shop.read("rsa1024.crt"), "", &*root), &["1024 bits"], Webpki),
        (Case::new("exponent 3", "rsa3", shop.read("rsa3.crt"), "", &*root), &["not 65537"], Nobody),
        (Case::new("critical extension", "critical", &*critical, "", &*root), &["do not know (1.2.3.4)"], Both),
        (Case::new("code signing only", "code", &*code, "", &*root), &["forbids serverAuth and clientAuth"], Both),
        (Case::new("server only", "server", &*server, "", &*root), &["forbids clientAuth below it"], Both),
        (Case::new("any usage", "any", &*any, "", &*root), &["forbids serverAuth and clientAuth"], Both),
        (Case::new("URI constraint", "uri", &*uri, "", &*root), &["constrains URI names"], Webpki),
        (
            Case::new("directory constraint", "directory", &*directory, "", &*root),
            &["constrains directory names", "do not know (2.5.29.30)"],
            Webpki,
        ),
        (
            Case::new("everything at once", "server", &*server, "-----BEGIN CERTIFICATE-----\n*\n", "").at(5000),
            &[
                "cert-chain.pem: line 1: the block that begins here has no END line",
                "root-cert.pem: holds no certificate",
                "ca-cert.pem: the certificate on line 1 (CN=server,O=Istio) expired at",
                "ca-cert.pem: the certificate on line 1 (CN=server,O=Istio) forbids clientAuth",
            ],
            Nobody,
        ),
    ];
    for (case, reasons, judge) in cases {
        let name = case.name;
        let problems = case.check().err().unwrap_or_else(|| panic!("{name}: accepted"));
        assert_eq!(problems.len(), reasons.len(), "{name}: {problems:#?}");
        for (problem, reason) in problems.iter().zip(reasons) {
            assert!(problem.contains(reason), "{name}: {problem}");
        }
        let ca = ders(&case.ca);
        if judge == Nobody || ca.is_empty() {
            continue;
        }
        let signer = case.signer;
        shop.write(&format!("given-{signer}.crt"), pem::encode("CERTIFICATE", &ca[0]));
        shop.certify("given-leaf", ("leaf", "leaf"), Some((&format!("given-{signer}"), signer)), LEAF, "");
        let leaf = ders(shop.read("given-leaf.crt").as_bytes()).remove(0);
        let intermediates = [ca, ders(&case.chain)].concat();
        let webpki = webpki_takes(&leaf, &intermediates, &ders(&case.roots), case.now());
        assert_eq!(webpki, judge == Openssl, "{name}: webpki");
        let files = [case.ca.as_slice(), b"\n", &case.chain].concat();
        assert_eq!(shop.openssl_takes(&files, &case.roots, case.now()), judge == Webpki, "{name}: openssl");
    }
}

/// A root issued again for its key, since the old one had no basicConstraints, which Go wants. The certificates below point
/// to the old one's serial number, to which OpenSSL and Envoy keep.
#[test]
fn clients_may_verify_by_different_roots_of_one_key() {
    let shop = Workshop::new();
    shop.key("root", P256);
    let old = CA.replace("basicConstraints=critical,CA:true\n", "");
    shop.certify("root", ("root", "root"), None, &old, "-days 60");
    let old = shop.read("root.crt");
    let ca = shop.authority("plain", Some("root"), &format!("{CA}authorityKeyIdentifier=keyid,issuer:always\n"), "");
    shop.certify("new", ("root", "root"), None, CA, "");
    let new = shop.read("new.crt");
    shop.certify("given-leaf", ("leaf", "leaf"), Some(("plain", "plain")), LEAF, "");
    let leaf = ders(shop.read("given-leaf.crt").as_bytes()).remove(0);

    for roots in [old.clone() + &new, new.clone() + &old] {
        let case = Case::new("both roots", "plain", &*ca, "", &*roots);
        let bundle = case.check().unwrap_or_else(|problems| panic!("{problems:#?}"));
        let issuer = bundle.issuer();
        assert!(issuer.remaining(clock::now()) <= 60 * DAY, "of the two roots, the earlier end counts");
        assert_eq!(issuer.root_pem(), new, "the root of Go and rustls-webpki");
        let warnings: Vec<_> = bundle.warnings().iter().map(ToString::to_string).collect();
        let [expires, both] = warnings.as_slice() else { panic!("{warnings:#?}") };
        assert!(expires.contains("expires in 59 days") && both.ends_with("leave both there"), "{warnings:#?}");
        assert!(shop.openssl_takes(ca.as_bytes(), roots.as_bytes(), case.now()));
        assert!(webpki_takes(&leaf, &ders(ca.as_bytes()), issuer.roots(), case.now()));
    }
    for (roots, reason) in [(&old, "it has no basicConstraints"), (&new, "its authorityKeyIdentifier has the serial")] {
        let problems = Case::new("one root", "plain", &*ca, "", &**roots).check().unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(reason), "{problems:?}");
    }
    // To OpenSSL and Envoy, the root that is pointed to has to be fit.
    let case = Case::new("expired", "plain", &*ca, "", old.clone() + &new).at(61);
    let problems = case.check().unwrap_err();
    assert!(problems.iter().any(|problem| problem.contains("expired at")), "{problems:?}");
    assert!(!shop.openssl_takes(ca.as_bytes(), (old + &new).as_bytes(), case.now()));
}

/// Which of two roots of one name and key OpenSSL takes depends on their order, and Envoy takes the other one. Constraints
/// of either may forbid a trust domain, or a CA below, although rustls-webpki verifies by the root without them.
#[test]
fn a_second_root_with_constraints_on_spiffe_ids_or_subjects_is_refused() {
    let shop = Workshop::new();
    let root = shop.authority("root", None, CA, "");
    let ca = shop.authority("plain", Some("root"), CA, "");
    shop.certify("given-leaf", ("leaf", "leaf"), Some(("plain", "plain")), LEAF, "");
    let directory = |kind: &str, name: &str| format!("critical,{kind};dirName:d\n[d]\n{name}\n");
    let cases = [
        ("critical,permitted;URI:example.com\n".to_owned(), "constrains URI names, which may forbid SPIFFE IDs", true),
        // Allows the leaf here, and none of another trust domain.
        ("permitted;URI:cluster.local\n".to_owned(), "constrains URI names, which may forbid SPIFFE IDs", false),
        (directory("permitted", "O=Other"), "constrains directory names, which may forbid the names of CAs", true),
        (directory("excluded", "O=istio"), "constrains directory names, which may forbid the names of CAs", true),
    ];
    for (constraints, reason, is_refused) in cases {
        shop.certify("second", ("root", "root"), None, &format!("{CA}nameConstraints={constraints}"), "");
        let second = shop.read("second.crt");
        let orders = [second.clone() + &root, root.clone() + &second];
        let taken = orders.map(|roots| {
            let case = Case::new("a second root", "plain", &*ca, "", &*roots);
            let problems = case.check().err().unwrap_or_else(|| panic!("{constraints}: accepted"));
            assert!(problems.len() == 1 && problems[0].contains(reason), "{constraints}: {problems:?}");
            assert!(problems[0].contains("may take the certificate on line"), "{constraints}: {problems:?}");
            shop.openssl_takes(ca.as_bytes(), roots.as_bytes(), case.now())
        });
        assert_eq!(taken.contains(&false), is_refused, "{constraints}: openssl");
    }
}

#[test]
fn a_signature_with_sha1_below_the_root_is_refused() {
    let shop = Workshop::new();
    let root = shop.authority("root", None, CA, "");
    shop.key("rsa-root", "RSA");
    shop.certify("rsa-root", ("rsa-root", "rsa-root"), None, CA, "");
    let rsa_root = shop.read("rsa-root.crt");
    for (issuer, roots) in [("root", &root), ("rsa-root", &rsa_root)] {
        let name = format!("sha1-under-{issuer}");
        let ca = shop.authority(&name, Some(issuer), CA, "-sha1");
        let problems = Case::new("SHA-1", "", &*ca, "", &**roots).check().unwrap_err();
        let expected =
            "is signed with SHA-1, which Go and rustls-webpki (ztunnel) refuse; have it issued again, signed with";
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn the_end_of_the_path_is_its_earliest_and_the_key_must_match() {
    let shop = Workshop::new();
    let root = shop.authority("root", None, CA, "-days 100");
    let upper = shop.authority("upper", Some("root"), CA, "-days 50");
    let lower = shop.authority("lower", Some("upper"), &CA.replace("CA:true", "CA:true,pathlen:0"), "-days 80");
    let case = Case::new("ends", "lower", &*lower, &*upper, &*root);
    let bundle = case.check().unwrap();
    let issuer = bundle.issuer();
    let left = issuer.remaining(clock::now());
    assert!(left > 49 * DAY && left <= 50 * DAY, "{left:?}");
    assert!(issuer.not_before() <= clock::now());
    assert_eq!((issuer.path_len(), issuer.subject_key_id().map(<[u8]>::len)), (Some(0), Some(20)));
    assert_eq!(bundle.files().cert_chain.bytes, upper.as_bytes());
    assert_eq!(issuer.remaining(clock::now() + 60 * DAY), Duration::ZERO);

    let with_key =
        |key: &PublicKey| Bundle::check_read(case.files(), Vec::new(), Some(("ca-key.pem", key)), case.now());
    assert!(with_key(issuer.public_key()).is_ok());
    shop.openssl("pkey -in root.key -pubout -outform DER -out root.spki");
    let other = PublicKey::from_spki_der(&fs::read(shop.0.path().join("root.spki")).unwrap()).unwrap();
    let problems = with_key(&other).unwrap_err();
    let expected = "ca-key.pem: is the key of the certificate on line 1 (CN=root,O=Istio) in root-cert.pem, and not of the \
                    first certificate in ca-cert.pem (CN=lower,O=Istio); put that certificate into ca-cert.pem, as its first";
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    shop.openssl("pkey -in leaf.key -pubout -outform DER -out leaf.spki");
    let foreign = PublicKey::from_spki_der(&fs::read(shop.0.path().join("leaf.spki")).unwrap()).unwrap();
    let problem = with_key(&foreign).unwrap_err().remove(0).to_string();
    assert!(problem.starts_with("ca-key.pem: is not the key of ca-cert.pem (P-256 with SHA-256 "), "{problem}");
}

/// Many certificates of one name, each of which verifies with the key of every other: the search ends all the same.
#[test]
fn a_maze_of_certificates_takes_no_time() {
    let now = clock::now();
    let name = common_name(Tag::Utf8String, b"maze");
    let keys: Vec<_> = (0..12).map(|_| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()).collect();
    let mut chain = String::new();
    for (one, other) in keys.iter().flat_map(|one| keys.iter().map(move |other| (one, other))) {
        chain += &Draft::new(&name, one, now).pem(other);
    }
    let ca = Draft::new(&name, &keys[0], now).pem(&keys[1]);
    let root = Draft::new(&common_name(Tag::Utf8String, b"root"), &keys[0], now).pem(&keys[0]);
    let start = std::time::Instant::now();
    let problems = Case::new("maze", "maze", ca, chain, root).check().err().unwrap();
    assert!(problems[0].contains("too many possible issuers"), "{problems:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
