//! CRLs next to a bundle, made by openssl: whether [`judge`] lets them be published, and what Istio's clients make of them.
//! A set that is accepted takes no certificate out of service but the revoked one.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use istio_hsm_ca_pki::{
    Bundle,
    bundle::{BundleFiles, Input},
    crl::{Role, judge, read},
};
use proptest::prelude::*;

use super::{
    envoy::{Envoy, Trust},
    judges::{self, Presented},
    plugged_ca::{P256, Workshop},
};

const MARGIN: Duration = Duration::from_secs(5 * 86_400);
const CA: &str = "basicConstraints=critical,CA:true\nsubjectKeyIdentifier=hash\nkeyUsage=critical,keyCertSign";
const LEAF: &str = "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
                    extendedKeyUsage=serverAuth,clientAuth\nauthorityKeyIdentifier=keyid\n\
                    subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/";
/// A CRL's extensions as the CRLs of most CAs have them.
const COMPLETE: &str = "authorityKeyIdentifier=keyid\n";
const IN_PART: &str =
    "authorityKeyIdentifier=keyid\nissuingDistributionPoint=critical,@point\n[point]\nonlyuser=TRUE\n";
const DELTA: &str = "authorityKeyIdentifier=keyid\n2.5.29.27=critical,DER:020101\n";
const UNKNOWN: &str = "authorityKeyIdentifier=keyid\n1.2.3.4=critical,DER:0500\n";

/// What Istio's clients make of a set of CRLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The revoked certificate is rejected and the others pass.
    AsIntended,
    /// No CRL counts: the revoked certificate passes, too.
    Ignored,
    /// Every certificate of the CA is rejected.
    Outage,
}
use Effect::{AsIntended, Ignored, Outage};

struct Row {
    name: &'static str,
    ca: &'static str,
    roots: &'static [&'static str],
    crls: &'static [&'static str],
    /// What the refusals say, each once; none if the set may be published.
    refused: &'static [&'static str],
    /// With OpenSSL's `-crl_check_all` and in Envoy, apart from [`OPENSSL`].
    effect: Effect,
}

const ROWS: &[Row] = &[
    Row { name: "all", ca: "ca", roots: &["root"], crls: &["ca", "root"], refused: &[], effect: AsIntended },
    Row { name: "any order", ca: "ca", roots: &["root"], crls: &["root", "ca"], refused: &[], effect: AsIntended },
    Row { name: "the CA is a root", ca: "root", roots: &["root"], crls: &["root"], refused: &[], effect: Ignored },
    Row {
        name: "only the CA's",
        ca: "ca",
        roots: &["root"],
        crls: &["ca"],
        refused: &["the root CN=root,O=Istio: has no CRL"],
        effect: Outage,
    },
    Row {
        name: "only the root's",
        ca: "ca",
        roots: &["root"],
        crls: &["root"],
        refused: &["the CA CN=ca,O=Istio: has no CRL"],
        effect: Outage,
    },
    Row {
        name: "the CA's past nextUpdate",
        ca: "ca",
        roots: &["root"],
        crls: &["ca-past", "root"],
        refused: &["ca-past line 1: the CRL of CN=ca,O=Istio was to be replaced by"],
        effect: Outage,
    },
    Row {
        name: "the root's past nextUpdate",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root-past"],
        refused: &["root-past line 1: the CRL of CN=root,O=Istio was to be replaced by"],
        effect: Outage,
    },
    Row {
        name: "the root's past nextUpdate soon",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root-soon"],
        refused: &["root-soon line 1: the CRL of CN=root,O=Istio is valid only until"],
        effect: AsIntended,
    },
    Row {
        name: "the CA's of the future",
        ca: "ca",
        roots: &["root"],
        crls: &["ca-future", "root"],
        refused: &["is not valid before"],
        effect: Outage,
    },
    Row {
        name: "a CA without cRLSign",
        ca: "signs-certificates",
        roots: &["root"],
        crls: &["signs-certificates", "root"],
        refused: &["the CA CN=signs-certificates,O=Istio: lacks cRLSign"],
        effect: Outage,
    },
    Row {
        name: "a root without cRLSign",
        ca: "below-plain",
        roots: &["plain-root"],
        crls: &["below-plain", "plain-root"],
        refused: &["the root CN=plain-root,O=Istio: lacks cRLSign"],
        effect: Outage,
    },
    Row {
        name: "a second root without a CRL",
        ca: "ca",
        roots: &["root", "root2"],
        crls: &["ca", "root"],
        refused: &["the root CN=root2,O=Istio: has no CRL"],
        // Of the CA's own certificates; those below the second root are rejected.
        effect: AsIntended,
    },
    Row {
        name: "two roots",
        ca: "ca",
        roots: &["root", "root2"],
        crls: &["ca", "root", "root2", "ca2"],
        refused: &[],
        effect: AsIntended,
    },
    Row {
        name: "two of one CA",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root", "ca-empty"],
        refused: &["the CA CN=ca,O=Istio: has two CRLs, in ca line 1 and ca-empty line 1"],
        effect: AsIntended,
    },
    Row {
        name: "of another CA of this name",
        ca: "ca",
        roots: &["root"],
        crls: &["namesake", "root"],
        refused: &["the CA CN=ca,O=Istio: has no CRL", "namesake line 1: the signature of the CRL of CN=ca,O=Istio"],
        effect: Outage,
    },
    Row {
        name: "for a part of the certificates",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root-in-part"],
        refused: &["has an issuingDistributionPoint"],
        effect: Outage,
    },
    Row {
        name: "a delta CRL",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root-delta"],
        refused: &["is a delta CRL"],
        effect: Outage,
    },
    Row {
        name: "an unknown critical extension",
        ca: "ca",
        roots: &["root"],
        crls: &["ca-unknown", "root"],
        refused: &["has the unknown critical extension 1.2.3.4"],
        effect: Outage,
    },
    Row {
        name: "version 1",
        ca: "ca",
        roots: &["root"],
        crls: &["ca", "root-v1"],
        refused: &["is of version 1"],
        // ztunnel does not read the file.
        effect: AsIntended,
    },
];

/// Rows of which OpenSSL makes something else than Envoy: it takes a delta CRL for a complete one.
const OPENSSL: &[(&str, Effect)] = &[("a delta CRL", AsIntended)];

/// CAs, leaves and CRLs.
struct Pki(Workshop);

impl Pki {
    fn new() -> Self {
        let pki = Self(Workshop::new());
        pki.ca("root", None, ",cRLSign");
        pki.ca("root2", None, ",cRLSign");
        pki.ca("plain-root", None, "");
        pki.ca("ca", Some("root"), ",cRLSign");
        pki.ca("ca2", Some("root2"), ",cRLSign");
        pki.ca("signs-certificates", Some("root"), "");
        pki.ca("below-plain", Some("plain-root"), ",cRLSign");
        // The same name, another key.
        pki.0.key("namesake", P256);
        pki.0.certify("namesake", ("ca", "namesake"), Some(("root", "root")), &format!("{CA},cRLSign\n"), "");
        for ca in ["root", "ca", "ca2", "signs-certificates", "below-plain"] {
            for (kind, name) in [("good", format!("good-{ca}")), ("bad", format!("bad-{ca}"))] {
                pki.0.key(&name, P256);
                pki.0.certify(&name, (&name, &name), Some((ca, ca)), &format!("{LEAF}{kind}\n"), "");
            }
        }
        for ca in ["ca", "ca2", "signs-certificates", "below-plain"] {
            pki.crl(ca, ca, Some(&format!("bad-{ca}")), ("-1", "30"), COMPLETE);
        }
        for ca in ["root", "root2", "plain-root"] {
            pki.crl(ca, ca, None, ("-1", "30"), COMPLETE);
        }
        pki.crl("ca-past", "ca", Some("bad-ca"), ("-30", "-1"), COMPLETE);
        pki.crl("ca-future", "ca", Some("bad-ca"), ("2", "30"), COMPLETE);
        pki.crl("ca-empty", "ca", Some("bad-ca"), ("-2", "29"), COMPLETE);
        pki.crl("ca-unknown", "ca", Some("bad-ca"), ("-1", "30"), UNKNOWN);
        pki.crl("namesake", "namesake", Some("bad-ca"), ("-1", "30"), COMPLETE);
        pki.crl("root-past", "root", None, ("-30", "-1"), COMPLETE);
        pki.crl("root-soon", "root", None, ("-1", "4"), COMPLETE);
        pki.crl("root-in-part", "root", None, ("-1", "30"), IN_PART);
        pki.crl("root-delta", "root", None, ("-1", "30"), DELTA);
        pki.crl("root-v1", "root", None, ("-1", "30"), "");
        pki
    }

    fn ca(&self, name: &str, issuer: Option<&str>, usage: &str) {
        self.0.key(name, P256);
        let pointer = if issuer.is_some() { "authorityKeyIdentifier=keyid\n" } else { "" };
        self.0.certify(name, (name, name), issuer.map(|it| (it, it)), &format!("{CA}{usage}\n{pointer}"), "");
    }

    /// A CRL `name`.crl from and until some days from now. Without extensions it is of version 1.
    fn crl(&self, name: &str, ca: &str, revoked: Option<&str>, (from, until): (&str, &str), extensions: &str) {
        let date = |days: &str| {
            let days: i64 = days.parse().unwrap();
            let now = judges::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let seconds = now.checked_add_signed(days * 86_400).unwrap();
            let time = der::DateTime::from_unix_duration(Duration::from_secs(seconds)).unwrap();
            time.to_string().replace(['-', ':', 'T'], "")
        };
        let mut index = String::new();
        if let Some(leaf) = revoked {
            let text = std::process::Command::new("openssl")
                .args(["x509", "-noout", "-serial", "-in"])
                .arg(self.0.0.path().join(format!("{leaf}.crt")))
                .output()
                .unwrap();
            let serial = String::from_utf8(text.stdout).unwrap().trim().trim_start_matches("serial=").to_owned();
            writeln!(index, "R\t400101000000Z\t250601000000Z,keyCompromise\t{serial}\tunknown\t/CN=x").unwrap();
        }
        self.0.write(&format!("{name}.index"), index);
        self.0.write(&format!("{name}.number"), "1000\n");
        let (number, wanted) = match extensions {
            "" => ("", ""),
            _ => ("crlnumber=CRL.number\n", "crl_extensions=e\n"),
        };
        let config = format!(
            "[ca]\ndefault_ca=d\n[d]\ndatabase=CRL.index\n{number}{wanted}default_md=sha256\n[e]\n{extensions}"
        );
        self.0.write("crl.conf", config.replace("CRL", name));
        self.0.openssl(&format!(
            "ca -gencrl -config crl.conf -cert {ca}.crt -keyfile {ca}.key -crl_lastupdate {} -crl_nextupdate {} -out \
             {name}.crl",
            date(from),
            date(until)
        ));
    }

    fn all(&self, names: &[&str], extension: &str) -> String {
        names.iter().map(|name| self.0.read(&format!("{name}.{extension}"))).collect()
    }

    fn bundle(&self, row: &Row) -> Bundle {
        let input = |name: &str, text: String| Input { name: name.to_owned(), bytes: text.into_bytes() };
        let files = BundleFiles {
            ca_cert: input("ca-cert.pem", self.all(&[row.ca], "crt")),
            cert_chain: input("cert-chain.pem", String::new()),
            root_cert: input("root-cert.pem", self.all(row.roots, "crt")),
        };
        Bundle::check(files, judges::now()).unwrap()
    }

    /// The leaf of a row's CA, with the row's CRLs for the verifiers.
    fn presented(&self, row: &Row, kind: &str) -> Presented {
        let name = format!("{kind}-{}", row.ca);
        let pem = self.0.read(&format!("{name}.crt"));
        Presented {
            leaf: istio_hsm_ca_pki::pem::blocks(pem.as_bytes()).unwrap().remove(0).der.to_vec(),
            key: self.0.read(&format!("{name}.key")),
            sent: if row.roots.contains(&row.ca) { String::new() } else { self.all(&[row.ca], "crt") },
            roots: self.all(row.roots, "crt"),
            crls: self.all(row.crls, "crl"),
        }
    }

    /// What our judgement says, as lines.
    fn refusals(&self, row: &Row, now: SystemTime) -> Vec<String> {
        let bundle = self.bundle(row);
        let mut refusals = Vec::new();
        let mut crls = Vec::new();
        for name in row.crls {
            let bytes = fs::read(self.0.0.path().join(format!("{name}.crl"))).unwrap();
            match read(&Input { name: (*name).to_owned(), bytes }) {
                Ok(found) => crls.extend(found),
                Err(problems) => refusals.extend(problems.iter().map(ToString::to_string)),
            }
        }
        // A file that is refused counts for nothing; what only follows from that is not compared.
        if refusals.is_empty() {
            let judged = judge(bundle.issuer(), &crls, now, MARGIN);
            refusals.extend(judged.missing_own.iter().chain(&judged.problems).map(ToString::to_string));
        }
        refusals
    }
}

/// What a verifier made of the good and of the revoked leaf.
fn effect(good: &Result<(), String>, bad: &Result<(), String>) -> Effect {
    match (good, bad) {
        (Ok(()), Err(_)) => AsIntended,
        (Ok(()), Ok(())) => Ignored,
        (Err(_), _) => Outage,
    }
}

#[test]
fn crls_that_take_certificates_out_of_service_are_refused() {
    let pki = Pki::new();
    for row in ROWS {
        let refusals = pki.refusals(row, judges::now());
        assert_eq!(refusals.len(), row.refused.len(), "{}: {refusals:#?}", row.name);
        for (refusal, expected) in refusals.iter().zip(row.refused) {
            assert!(refusal.contains(expected), "{}: {refusals:#?}", row.name);
        }
        let (good, bad) = (pki.presented(row, "good"), pki.presented(row, "bad"));
        let by_openssl = effect(&good.openssl(judges::now()), &bad.openssl(judges::now()));
        let expected = OPENSSL.iter().find(|(name, _)| *name == row.name).map_or(row.effect, |(_, effect)| *effect);
        assert_eq!(by_openssl, expected, "{}: OpenSSL: {:?}", row.name, good.openssl(judges::now()));
        if row.refused.is_empty() {
            assert_ne!(row.effect, Outage, "{}", row.name);
            let by_webpki = effect(&good.webpki(judges::now()), &bad.webpki(judges::now()));
            assert_eq!(by_webpki, row.effect, "{}: webpki: {:?}", row.name, good.webpki(judges::now()));
        }
    }
}

#[test]
#[ignore = "Envoy: make test-foreign"]
fn envoy_rejects_what_the_judgement_refuses() {
    let pki = Pki::new();
    let presented: Vec<_> = ROWS.iter().map(|row| (pki.presented(row, "good"), pki.presented(row, "bad"))).collect();
    let server = &presented[0].0;
    let trust = presented.iter().map(|(good, _)| Trust::Files { roots: &good.roots, crls: &good.crls });
    let envoy = Envoy::start(server, &trust.collect::<Vec<_>>());
    for (at, (row, (good, bad))) in ROWS.iter().zip(&presented).enumerate() {
        let verdicts = (envoy.verdict(at, good), envoy.verdict(at, bad));
        assert_eq!(effect(&verdicts.0, &verdicts.1), row.effect, "{}: {verdicts:?}", row.name);
    }
}

#[test]
#[ignore = "Go: make test-foreign"]
fn go_takes_what_the_judgement_accepts() {
    let pki = Pki::new();
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.refused.is_empty()).collect();
    let presented: Vec<_> = rows.iter().flat_map(|row| ["good", "bad"].map(|kind| pki.presented(row, kind))).collect();
    let verdict = |reason: &String| if reason.is_empty() { Ok(()) } else { Err(reason.clone()) };
    for (row, reasons) in rows.iter().zip(judges::go(&presented).chunks(2)) {
        assert_eq!(effect(&verdict(&reasons[0]), &verdict(&reasons[1])), row.effect, "{}: {reasons:?}", row.name);
    }
}

/// A mounted ConfigMap: `ca-crl.pem` is a link into `..data`, which is a link that is replaced.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new() -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("..data/ca-crl.pem", mount.file()).unwrap();
        mount
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("ca-crl.pem")
    }

    /// Puts other content in place, as the kubelet does; none where the ConfigMap is deleted.
    fn replace(&self, version: usize, content: Option<&str>) {
        let (target, link) = (format!("..{version}"), self.0.path().join("..data_tmp"));
        fs::create_dir(self.0.path().join(&target)).unwrap();
        if let Some(content) = content {
            fs::write(self.0.path().join(&target).join("ca-crl.pem"), content).unwrap();
        }
        std::os::unix::fs::symlink(&target, &link).unwrap();
        fs::rename(link, self.0.path().join("..data")).unwrap();
        if content.is_none() {
            fs::remove_file(self.file()).unwrap();
        }
    }
}

/// Whether a condition holds within a few seconds, while the good certificate is served in every handshake.
fn within_seconds(envoy: &Envoy, good: &Presented, condition: impl Fn() -> bool) -> bool {
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        assert_eq!(envoy.verdict(0, good), Ok(()), "a certificate that is not revoked");
        if condition() {
            return true;
        }
    }
    false
}

#[test]
#[ignore = "Envoy: make test-foreign"]
fn envoy_loses_no_handshake_when_crls_are_enabled_and_disabled() {
    let pki = Pki::new();
    pki.crl("nothing", "ca", None, ("-1", "30"), COMPLETE);
    let row = |crls| Row { name: "", ca: "ca", roots: &["root"], crls, refused: &[], effect: AsIntended };
    let (good, bad) = (pki.presented(&row(&["nothing", "root"]), "good"), pki.presented(&row(&["ca", "root"]), "bad"));
    let mount = Mount::new();
    mount.replace(1, Some(""));
    let envoy = Envoy::start(&good, &[Trust::Mounted { roots: &good.roots, crls: &mount.file() }]);
    let passes = || envoy.verdict(0, &bad).is_ok();
    assert!(passes(), "with an empty file");
    mount.replace(2, Some(&good.crls));
    assert!(!within_seconds(&envoy, &good, || !passes()), "rejected without being revoked");
    mount.replace(3, Some(&bad.crls));
    assert!(within_seconds(&envoy, &good, || !passes()), "revoked");
    // Without a file Envoy keeps what it has, and rejects everything after nextUpdate.
    mount.replace(4, None);
    assert!(!within_seconds(&envoy, &good, passes), "accepted after the ConfigMap was deleted");
    mount.replace(5, Some(""));
    std::os::unix::fs::symlink("..data/ca-crl.pem", mount.file()).unwrap();
    mount.replace(6, Some(""));
    assert!(within_seconds(&envoy, &good, passes), "accepted with an empty file");
    mount.replace(7, None);
    assert!(!within_seconds(&envoy, &good, || !passes()), "rejected after the empty file was deleted");
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes: Vec<u8>) {
        let read = |bytes: Vec<u8>| read(&Input { name: "crl".to_owned(), bytes });
        prop_assert!(read(bytes.clone()).is_err());
        prop_assert!(read(istio_hsm_ca_pki::pem::encode("X509 CRL", &bytes).into_bytes()).is_err());
    }
}

#[test]
fn a_judged_bundle_shows_every_ca() {
    let pki = Pki::new();
    let row = Row {
        name: "",
        ca: "ca",
        roots: &["root", "root2"],
        crls: &["ca", "root", "root2", "ca2"],
        refused: &[],
        effect: AsIntended,
    };
    let crls = read(&Input { name: "all".to_owned(), bytes: pki.all(row.crls, "crl").into_bytes() }).unwrap();
    let bundle = pki.bundle(&row);
    let judged = judge(bundle.issuer(), &crls, judges::now(), MARGIN);
    let shown = |it: &istio_hsm_ca_pki::crl::Authority<'_>| {
        let crl = it.crl.unwrap();
        (it.role, it.subject.clone(), crl.entries(), crl.number_text())
    };
    let name = |name: &str| format!("CN={name},O=Istio");
    let number = Some("1000".to_owned());
    let expected = [
        (Role::Ca, name("ca"), 1, number.clone()),
        (Role::Root, name("root"), 0, number.clone()),
        (Role::Root, name("root2"), 0, number),
    ];
    assert_eq!(judged.authorities.iter().map(shown).collect::<Vec<_>>(), expected);
    let warnings: Vec<_> = judged.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(warnings[0].contains("its issuer CN=ca2,O=Istio is not in the bundle"), "{warnings:#?}");
    assert!(warnings[1].contains("the root CN=root2,O=Istio: this CA is not below it"), "{warnings:#?}");
}
