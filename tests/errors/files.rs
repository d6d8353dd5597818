//! Files of certificates that are something else than PEM certificates.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use pki::{bundle::Problem, pem, testing::P384};

use super::{
    desk::{Desk, root, upper},
    page::Section,
};

/// Whether the remedy is a command that puts the file right.
#[derive(Clone, Copy, PartialEq)]
enum Remedy {
    Command,
    Words,
}
use Remedy::{Command, Words};

/// The file, and what is put in its place.
type Spoil = fn(&Desk) -> (&'static str, Vec<u8>);

/// What is wrong, and how it is made.
const CASES: &[(&str, Remedy, Spoil)] = &[
    ("UTF-16", Command, |desk| ("ca-cert.pem", utf16(&desk.text("ca-cert.pem"), true))),
    ("UTF-16 without a byte order mark", Command, |desk| {
        ("cert-chain.pem", utf16(&desk.text("cert-chain.pem"), false))
    }),
    ("UTF-32", Command, |desk| {
        let text = desk.text("ca-cert.pem");
        ("ca-cert.pem", text.chars().flat_map(|letter| u32::from(letter).to_be_bytes()).collect())
    }),
    ("A byte order mark in root-cert.pem", Command, |desk| {
        ("root-cert.pem", format!("\u{feff}{}", desk.text("root-cert.pem")).into_bytes())
    }),
    ("Zero-width characters in root-cert.pem", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replacen("MI", "M\u{200b}I", 1).into_bytes())
    }),
    ("A certificate in DER", Command, |desk| ("root-cert.pem", der(&desk.text("root-cert.pem")))),
    ("Certificates in DER, one after the other", Command, |desk| {
        ("cert-chain.pem", [der(&desk.text("cert-chain.pem")), der(&desk.text("root-cert.pem"))].concat())
    }),
    ("A chain of PKCS#7 in DER", Command, |desk| ("cert-chain.pem", pkcs7(desk, "DER"))),
    ("A chain of PKCS#7 in PEM", Command, |desk| ("cert-chain.pem", pkcs7(desk, "PEM"))),
    ("PKCS#7 under the label CERTIFICATE", Command, |desk| {
        let text = String::from_utf8(pkcs7(desk, "PEM")).unwrap();
        ("cert-chain.pem", text.replace("PKCS7", "CERTIFICATE").into_bytes())
    }),
    ("PKCS#7 under the label CMS", Command, |desk| {
        let text = String::from_utf8(pkcs7(desk, "PEM")).unwrap();
        ("cert-chain.pem", text.replace("PKCS7", "CMS").into_bytes())
    }),
    ("PKCS#7 next to certificates", Command, |desk| {
        let [pkcs7, root] = [pkcs7(desk, "PEM"), desk.read("root-cert.pem")];
        let mislabelled = String::from_utf8(pkcs7.clone()).unwrap().replace("PKCS7", "CERTIFICATE");
        ("cert-chain.pem", [root.as_slice(), &pkcs7, &root, mislabelled.as_bytes()].concat())
    }),
    ("PKCS#7 under a label of its own", Command, |desk| {
        let text = String::from_utf8(pkcs7(desk, "PEM")).unwrap();
        ("cert-chain.pem", text.replace("PKCS7", "PKCS#7").into_bytes())
    }),
    ("A TRUSTED CERTIFICATE", Command, |desk| {
        desk.shell("openssl x509 -in root-cert.pem -trustout -addtrust serverAuth -out trusted");
        ("root-cert.pem", desk.read("trusted"))
    }),
    ("Several TRUSTED CERTIFICATEs", Command, |desk| {
        desk.shell("openssl x509 -in root-cert.pem -trustout -out trusted");
        desk.shell("openssl x509 -in cert-chain.pem -trustout >> trusted");
        ("root-cert.pem", desk.read("trusted"))
    }),
    ("An X509 CERTIFICATE", Command, |desk| {
        ("ca-cert.pem", desk.text("ca-cert.pem").replace(" CERTIFICATE", " X509 CERTIFICATE").into_bytes())
    }),
    ("A certificate under a label of its own", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replace(" CERTIFICATE", " X.509 Certificate").into_bytes())
    }),
    ("A certificate under another label next to one", Command, |desk| {
        let other = desk.text("cert-chain.pem").replace(" CERTIFICATE", " CERT");
        ("cert-chain.pem", format!("{}{other}", desk.text("root-cert.pem")).into_bytes())
    }),
    ("A certificate request next to its certificate", Command, |desk| {
        desk.shell("openssl req -new -key ca-key.pem -subj '/CN=Mesh CA' -out request");
        ("ca-cert.pem", [desk.read("request"), desk.read("ca-cert.pem")].concat())
    }),
    ("A certificate request", Words, |desk| {
        desk.shell("openssl req -new -key ca-key.pem -subj '/CN=Mesh CA' -out request");
        ("ca-cert.pem", desk.read("request"))
    }),
    ("A certificate request under the label CERTIFICATE", Words, |desk| {
        desk.shell("openssl req -new -key ca-key.pem -subj '/CN=Mesh CA' -out request");
        ("ca-cert.pem", desk.text("request").replace(" CERTIFICATE REQUEST", " CERTIFICATE").into_bytes())
    }),
    ("PKCS#12", Words, |desk| {
        desk.shell("openssl pkcs12 -export -in ca-cert.pem -inkey ca-key.pem -passout pass:x -out p12");
        ("ca-cert.pem", desk.read("p12"))
    }),
    ("PKCS#12 in PEM", Words, |desk| {
        desk.shell("openssl pkcs12 -export -in ca-cert.pem -inkey ca-key.pem -passout pass:x -out p12");
        ("ca-cert.pem", pem::encode("PKCS12", &desk.read("p12")).into_bytes())
    }),
    ("Base64 of PEM", Command, |desk| ("root-cert.pem", STANDARD.encode(desk.read("root-cert.pem")).into_bytes())),
    ("Base64 of PEM with a byte order mark and text before it", Command, |desk| {
        let text = format!("Bag Attributes\n{}", desk.text("ca-cert.pem"));
        ("ca-cert.pem", [b"\xef\xbb\xbf", STANDARD.encode(text).as_bytes()].concat())
    }),
    ("Base64 of PEM in quotes, without padding", Command, |desk| {
        let text = format!("{}  ", desk.text("ca-cert.pem"));
        let padded = (0..3).map(|more| STANDARD.encode(&text[..text.len() - more])).find(|it| it.ends_with('='));
        ("ca-cert.pem", format!("'{}'\n", padded.unwrap().trim_end_matches('=')).into_bytes())
    }),
    ("Base64 of PEM in the alphabet of URLs", Command, |desk| {
        // Two letters that are encoded as - and _.
        let text = format!("{}\n\u{3ff}~?\u{3ff}", desk.text("ca-cert.pem"));
        let text = (0..3).map(|more| URL_SAFE.encode(format!("{}{text}", "\n".repeat(more))));
        ("ca-cert.pem", text.max_by_key(|it| it.matches(['-', '_']).count()).unwrap().into_bytes())
    }),
    ("Base64 of a compressed file", Command, |desk| {
        desk.shell("gzip -nc root-cert.pem | base64 > root.gz");
        ("root-cert.pem", desk.read("root.gz"))
    }),
    ("A line of a Kubernetes manifest", Command, |desk| {
        ("ca-cert.pem", format!("  ca-cert.pem: {}\n", STANDARD.encode(desk.read("ca-cert.pem"))).into_bytes())
    }),
    ("PEM in hexadecimal digits", Command, |desk| {
        desk.shell("xxd -p ca-cert.pem > hex");
        ("ca-cert.pem", desk.read("hex"))
    }),
    ("DER in hexadecimal digits", Command, |desk| {
        desk.shell("openssl x509 -in ca-cert.pem -outform DER | xxd -p > hex");
        ("ca-cert.pem", desk.read("hex"))
    }),
    ("Percent-encoded PEM", Command, |desk| {
        let text = desk.text("ca-cert.pem").replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
        ("ca-cert.pem", text.into_bytes())
    }),
    ("Base64 of base64 of PEM", Command, |desk| {
        ("cert-chain.pem", STANDARD.encode(STANDARD.encode(desk.read("cert-chain.pem"))).into_bytes())
    }),
    ("Base64 of DER without BEGIN and END lines", Command, |desk| {
        ("cert-chain.pem", STANDARD.encode(der(&desk.text("cert-chain.pem"))).into_bytes())
    }),
    ("\\n as two characters", Command, |desk| {
        ("ca-cert.pem", desk.text("ca-cert.pem").replace('\n', "\\n").into_bytes())
    }),
    ("\\n as two characters, in quotes", Command, |desk| {
        ("root-cert.pem", format!("\"{}\",\n", desk.text("root-cert.pem").replace('\n', "\\r\\n")).into_bytes())
    }),
    ("\\\\n as three characters", Command, |desk| {
        ("ca-cert.pem", desk.text("ca-cert.pem").replace('\n', "\\\\n").into_bytes())
    }),
    ("Indented PEM", Command, |desk| {
        let text = desk.text("root-cert.pem").lines().map(|line| format!("    {line}\n")).collect::<String>();
        ("root-cert.pem", format!("root-cert.pem: |\n{text}").into_bytes())
    }),
    ("PEM quoted in a mail", Command, |desk| {
        let text = desk.text("root-cert.pem").lines().map(|line| format!("> {line}\n")).collect::<String>();
        ("root-cert.pem", text.into_bytes())
    }),
    ("PEM in quotes after its name", Command, |desk| {
        ("root-cert.pem", format!("cert=\"{}\";\n", desk.text("root-cert.pem").trim_end()).into_bytes())
    }),
    ("Carriage returns alone", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replace('\n', "\r").into_bytes())
    }),
    ("PEM folded into one line", Command, |desk| {
        let two = format!("{}{}", desk.text("root-cert.pem"), desk.text("cert-chain.pem"));
        ("root-cert.pem", two.replace('\n', " ").into_bytes())
    }),
    ("END and BEGIN on one line", Command, |desk| {
        let glued = format!("{}{}", desk.text("root-cert.pem").trim_end(), desk.text("cert-chain.pem"));
        ("root-cert.pem", glued.into_bytes())
    }),
    ("An HTML page", Words, |_| ("root-cert.pem", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n".to_vec())),
    ("An XML document", Words, |_| ("root-cert.pem", b"<Error><Code>AccessDenied</Code></Error>".to_vec())),
    ("A Kubernetes manifest without the file's name", Words, |desk| {
        let value = STANDARD.encode(desk.read("ca-cert.pem"));
        ("ca-cert.pem", format!("kind: Secret\napiVersion: v1\ndata:\n  tls.crt: {value}\n").into_bytes())
    }),
    ("A manifest of a ConfigMap", Words, |desk| {
        let text = desk.text("ca-cert.pem").replace('\n', "\n    ");
        let head = "apiVersion: v1\nkind: ConfigMap\ndata:\n  ca-cert.pem: |\n    ";
        ("ca-cert.pem", format!("{head}{text}").into_bytes())
    }),
    ("A file of SOPS", Words, |_| ("ca-cert.pem", b"data: ENC[AES256_GCM,data:1,iv:2,tag:3,type:str]\n".to_vec())),
    ("A file of age", Words, |_| ("ca-cert.pem", pem::encode("AGE ENCRYPTED FILE", b"age").into_bytes())),
    ("A file of OpenPGP", Words, |_| {
        ("ca-cert.pem", b"-----BEGIN PGP MESSAGE-----\n\nhQ==\n=aaaa\n-----END PGP MESSAGE-----\n".to_vec())
    }),
    ("A pointer of Git LFS", Words, |_| {
        ("ca-cert.pem", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec())
    }),
    ("A placeholder", Words, |_| ("ca-cert.pem", b"${CA_CERT}\n".to_vec())),
    ("A Kubernetes manifest", Command, |desk| {
        let value = STANDARD.encode(desk.read("ca-cert.pem"));
        ("ca-cert.pem", format!("apiVersion: v1\nkind: Secret\ndata:\n  ca-cert.pem: {value}\n").into_bytes())
    }),
    ("JSON", Words, |desk| {
        let text = desk.text("ca-cert.pem").replace('\n', "\\n");
        ("ca-cert.pem", format!("{{\"certificate\":\"{text}\"}}\n").into_bytes())
    }),
    ("OpenSSL's description of a certificate", Words, |desk| {
        desk.shell("openssl x509 -in ca-cert.pem -noout -text -out description");
        ("ca-cert.pem", desk.read("description"))
    }),
    ("A public key", Words, |desk| {
        desk.shell("openssl pkey -in ca-key.pem -pubout -out public");
        ("ca-cert.pem", desk.read("public"))
    }),
    ("A private key in place of the certificate", Words, |desk| ("ca-cert.pem", desk.read("ca-key.pem"))),
    ("A private key next to a certificate", Command, |desk| {
        ("root-cert.pem", [desk.read("root-cert.pem"), desk.read("ca-key.pem")].concat())
    }),
    ("A revocation list next to a certificate", Command, |desk| {
        let crl = pem::encode("X509 CRL", &[0x30, 0]);
        ("cert-chain.pem", format!("{}{crl}", desk.text("cert-chain.pem")).into_bytes())
    }),
    ("Text without PEM", Words, |_| ("cert-chain.pem", b"see the wiki\n".to_vec())),
    ("Four hyphens", Command, |desk| ("ca-cert.pem", desk.text("ca-cert.pem").replace("-----", "----").into_bytes())),
    ("Six hyphens", Command, |desk| ("ca-cert.pem", desk.text("ca-cert.pem").replace("-----", "------").into_bytes())),
    ("BEGIN and END in small letters", Command, |desk| {
        let text = desk.text("ca-cert.pem");
        let text = text.replace("BEGIN CERTIFICATE", "begin certificate").replace("END CERTIFICATE", "end certificate");
        ("ca-cert.pem", text.into_bytes())
    }),
    ("No BEGIN line", Words, |desk| {
        ("ca-cert.pem", desk.text("ca-cert.pem").split_once('\n').unwrap().1.as_bytes().to_vec())
    }),
    ("Typographic dashes", Command, |desk| {
        ("ca-cert.pem", desk.text("ca-cert.pem").replace("-----", "\u{2013}\u{2013}-").into_bytes())
    }),
    ("A gzip file", Command, |desk| {
        desk.shell("gzip -nc root-cert.pem > root.gz");
        ("root-cert.pem", desk.read("root.gz"))
    }),
    ("A file of xz", Words, |_| ("root-cert.pem", b"\xfd7zXZ\0\0\x04".to_vec())),
    ("A ZIP archive", Words, |_| ("root-cert.pem", b"PK\x03\x04\x14\0".to_vec())),
    ("A tar archive", Words, |desk| {
        desk.shell("tar -cf tar ca-cert.pem");
        ("ca-cert.pem", desk.read("tar"))
    }),
    ("A Java keystore", Words, |_| ("ca-cert.pem", b"\xfe\xed\xfe\xed\0\0\0\x02".to_vec())),
    ("Binary data", Words, |_| ("ca-cert.pem", vec![0, 1, 2, 3, 0, 9])),
    ("A PEM header in root-cert.pem", Words, |desk| {
        let text = desk.text("root-cert.pem").replacen("-----\n", "-----\nComment: new\n\n", 1);
        ("root-cert.pem", text.into_bytes())
    }),
    ("Empty lines within a certificate in root-cert.pem", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replace('\n', "\n\n").into_bytes())
    }),
    ("Form feeds within a certificate in root-cert.pem", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replacen("MI", "\u{c}MI", 1).into_bytes())
    }),
    ("A tab after BEGIN in root-cert.pem", Command, |desk| {
        ("root-cert.pem", desk.text("root-cert.pem").replacen("-----\n", "-----\t\n", 1).into_bytes())
    }),
    ("NUL characters in root-cert.pem", Command, |desk| {
        ("root-cert.pem", format!("\0{}", desk.text("root-cert.pem")).into_bytes())
    }),
    ("Lines of 253 characters in root-cert.pem", Command, |desk| {
        ("root-cert.pem", lines_of(&desk.text("root-cert.pem"), 253).into_bytes())
    }),
    ("A comment in root-cert.pem that is not UTF-8", Command, |desk| {
        ("root-cert.pem", [b"Z\xfcrich\n", desk.text("root-cert.pem").as_bytes()].concat())
    }),
    ("A damaged block", Words, |desk| ("ca-cert.pem", desk.text("ca-cert.pem").replacen("MI", "M*", 1).into_bytes())),
    ("No certificate", Words, |_| ("root-cert.pem", Vec::new())),
];

pub fn section() -> Section {
    let cases = CASES.iter().map(|(input, _, spoil)| {
        let desk = Desk::new();
        let (file, content) = spoil(&desk);
        desk.write(file, content);
        desk.case(input)
    });
    Section {
        title: "Files of certificates",
        about: "`import`, `install`, `check` and `serve` read ca-cert.pem, cert-chain.pem and root-cert.pem. In ca-cert.pem and \
                cert-chain.pem, byte order marks and zero-width characters are skipped.",
        cases: cases.collect(),
    }
}

#[test]
fn commands_in_remedies_put_the_file_right() {
    for (input, _, spoil) in CASES.iter().filter(|(_, remedy, _)| *remedy == Command) {
        let desk = Desk::new();
        let (file, content) = spoil(&desk);
        desk.write(file, content);
        let problems = desk.problems();
        let [problem, rest @ ..] = problems.as_slice() else { panic!("{input}: accepted") };
        // The several blocks of one file have one remedy.
        assert!(rest.iter().all(|other| other.remedy == problem.remedy), "{input}: {problems:#?}");
        let remedy = problem.remedy.as_ref().unwrap();
        desk.shell(
            remedy.rsplit_once("from there: ").or(remedy.split_once("remove it: ")).map_or(remedy, |(_, it)| it),
        );
        assert_eq!(desk.problems(), Vec::<Problem>::new(), "{input}: {remedy}");
    }
}

#[test]
fn marks_in_files_that_are_not_passed_on_are_skipped() {
    let desk = Desk::new();
    desk.write("ca-cert.pem", format!("\u{feff}{}", desk.text("ca-cert.pem")));
    desk.write(
        "cert-chain.pem",
        desk.text("cert-chain.pem").replace("BEGIN ", "BEGIN\u{a0}").replacen("MI", "M\u{200b}I", 1),
    );
    desk.write("ca-key.pem", format!("\u{feff}{}", desk.text("ca-key.pem")));
    assert_eq!(desk.problems(), Vec::<Problem>::new());
}

#[test]
fn a_command_quotes_the_name_of_its_file() {
    let desk = Desk::new();
    let name = "my ca's $cert.pem";
    desk.write(name, der(&desk.text("root-cert.pem")));
    let found = pki::found::file(&desk.read(name), name, pki::found::Wanted::Certificates).unwrap();
    desk.shell(&found.remedy);
    assert_eq!(desk.text(name), desk.text("root-cert.pem"));
}

/// PEM with the base64 in lines of that length.
fn lines_of(text: &str, length: usize) -> String {
    let base64 = STANDARD.encode(der(text));
    let lines = base64.as_bytes().chunks(length).map(|line| format!("{}\n", str::from_utf8(line).unwrap()));
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let mark: &[u8] = if mark { &[0xff, 0xfe] } else { &[] };
    let units = text.replace('\n', "\r\n").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    [mark, &units].concat()
}

fn der(text: &str) -> Vec<u8> {
    pem::blocks(text.as_bytes()).unwrap().remove(0).der.to_vec()
}

/// The intermediate and the root, as an AD CS gives a chain.
fn pkcs7(desk: &Desk, form: &str) -> Vec<u8> {
    desk.write("both", format!("{}{}", upper().pem(&P384), root().pem(&P384)));
    desk.shell(&format!("openssl crl2pkcs7 -nocrl -certfile both -outform {form} -out p7b"));
    desk.read("p7b")
}
