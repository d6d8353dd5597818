//! Files of private keys that are something else, and keys of types that this CA does not take.

use base64::{Engine, engine::general_purpose::STANDARD};
use pki::{
    bundle::Problem,
    pem,
    private_key::PrivateKey,
    testing::{P256, P384, draft::Draft, now},
};
use secrecy::SecretString;

use super::{
    desk::{Desk, name},
    page::Section,
};

/// Whether the remedy is a command that puts the file right.
type IsCommand = bool;

/// What is wrong, and the file that is put in place of ca-key.pem.
const CASES: &[(&str, IsCommand, fn(&Desk) -> Vec<u8>)] = &[
    ("A key in UTF-16", true, |desk| {
        let units: Vec<u8> = desk.text("ca-key.pem").encode_utf16().flat_map(u16::to_le_bytes).collect();
        [vec![0xff, 0xfe], units].concat()
    }),
    ("A key in DER", true, |desk| made(desk, "openssl pkey -in ca-key.pem -outform DER")),
    ("An encrypted key in DER", false, |desk| {
        made(desk, "openssl pkcs8 -topk8 -in ca-key.pem -passout pass:x -outform DER")
    }),
    ("A key under the label of another form", true, |desk| {
        desk.text("ca-key.pem").replace("PRIVATE KEY", "EC PRIVATE KEY").into_bytes()
    }),
    ("A key under a label of its own", true, |desk| {
        desk.text("ca-key.pem").replace("PRIVATE KEY", "ANY PRIVATE KEY").into_bytes()
    }),
    ("A line of a Kubernetes manifest with a key", true, |desk| {
        format!("ca-key.pem: {}\n", STANDARD.encode(desk.read("ca-key.pem"))).into_bytes()
    }),
    ("An indented key", true, |desk| {
        desk.text("ca-key.pem").lines().map(|line| format!("  {line}\n")).collect::<String>().into_bytes()
    }),
    ("A JSON Web Key", false, |_| b"{\"kty\":\"EC\"}".to_vec()),
    ("An empty file", false, |_| Vec::new()),
    ("The root's key", false, |desk| {
        desk.write("cert-chain.pem", "");
        let direct = Draft::under(&name("Mesh CA"), &P256, &name("Root CA"), now());
        desk.write("ca-cert.pem", direct.pem(&P384));
        P384.serialize_pem().into_bytes()
    }),
    ("A PKCS#1 key in DER", false, |desk| {
        made(desk, "openssl genrsa -traditional 2048 | openssl rsa -traditional -outform DER")
    }),
    ("A key in PKCS#12", false, |desk| {
        made(desk, "openssl pkcs12 -export -in ca-cert.pem -inkey ca-key.pem -passout pass:x")
    }),
    ("Base64 of a key in PEM", true, |desk| STANDARD.encode(desk.read("ca-key.pem")).into_bytes()),
    ("A key with \\n as two characters", true, |desk| desk.text("ca-key.pem").replace('\n', "\\n").into_bytes()),
    ("A key folded into one line", true, |desk| desk.text("ca-key.pem").replace('\n', " ").into_bytes()),
    ("An HTML page in place of a key", false, |_| b"<html>\n".to_vec()),
    ("A public key in place of a private key", false, |desk| made(desk, "openssl pkey -in ca-key.pem -pubout")),
    ("A certificate in place of a key", false, |desk| desk.read("ca-cert.pem")),
    ("A certificate request in place of a key", false, |desk| {
        made(desk, "openssl req -new -key ca-key.pem -subj /CN=a")
    }),
    ("EC PARAMETERS without the key", false, |desk| made(desk, "openssl ecparam -name prime256v1")),
    ("An OpenSSH key", false, |_| pem::encode("OPENSSH PRIVATE KEY", b"openssh-key-v1").into_bytes()),
    ("An OpenSSH public key", false, |_| b"ssh-rsa AAAAB3NzaC1yc2E= me\n".to_vec()),
    ("A key that is in a token", false, |_| pem::encode("PKCS#11 PROVIDER URI", b"0").into_bytes()),
    ("A key of a TPM", false, |_| pem::encode("TSS2 PRIVATE KEY", b"0").into_bytes()),
    ("A P-521 key", false, |desk| made(desk, "openssl ecparam -name secp521r1 -genkey -noout")),
    ("A secp256k1 key", false, |desk| made(desk, "openssl ecparam -name secp256k1 -genkey -noout")),
    ("An RSASSA-PSS key", false, |desk| made(desk, "openssl genpkey -algorithm RSA-PSS")),
    ("An Ed448 key", false, |desk| made(desk, "openssl genpkey -algorithm ED448")),
    ("A key with explicit curve parameters", false, |desk| {
        made(desk, "openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit")
    }),
    ("A key of 1024 bits", false, |desk| made(desk, "openssl genrsa 1024")),
    ("A key with Proc-Type: 4,ENCRYPTED", false, |desk| {
        made(desk, "openssl rsa -in <(openssl genrsa 2048) -traditional -aes128 -passout pass:x")
    }),
    ("Two keys", false, |desk| [desk.read("ca-key.pem"), desk.read("ca-key.pem")].concat()),
    ("A key that is cut off", false, |desk| desk.read("ca-key.pem")[..60].to_vec()),
    ("A key that is no certificate's", false, |desk| made(desk, "openssl ecparam -name prime256v1 -genkey -noout")),
];

fn made(desk: &Desk, command: &str) -> Vec<u8> {
    desk.shell(&format!("{command} > made 2>/dev/null"));
    desk.read("made")
}

pub fn section() -> Section {
    let cases = CASES.iter().map(|(input, _, spoil)| {
        let desk = Desk::new();
        let content = spoil(&desk);
        desk.write("ca-key.pem", content);
        desk.case(input)
    });
    Section {
        title: "Private keys",
        about: "`import` reads ca-key.pem. Byte order marks and zero-width characters are skipped.",
        cases: cases.collect(),
    }
}

/// The commands that ask for a passphrase, or whose key would be another one.
#[test]
fn conversions_of_keys_make_keys_that_are_read() {
    let cases = [
        ("openssl pkcs8 -topk8 -in ca-key.pem -passout pass:x -outform DER > new; mv new ca-key.pem", None),
        (
            "openssl genrsa -traditional -aes128 -passout pass:x 2048 > ca-key.pem",
            Some(" -passin pass:x -passout pass:x"),
        ),
        ("openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit > ca-key.pem", Some("")),
        ("ssh-keygen -q -t ecdsa -N '' -f key; mv key ca-key.pem", Some("")),
    ];
    for (make, passphrase) in cases {
        let desk = Desk::new();
        desk.shell(make);
        let text = desk.read("ca-key.pem");
        let error = PrivateKey::from_pem(&text, None).err().unwrap();
        let remedy = error.in_file("ca-key.pem", &text).remedy.unwrap();
        desk.shell(&remedy.replace(" -in ", &format!("{} -in ", passphrase.unwrap_or_default())));
        let secret = SecretString::from("x");
        let key = PrivateKey::from_pem(&desk.read("ca-key.pem"), Some(&secret));
        assert!(key.is_ok(), "{make}: {remedy}: {:?}", key.err());
    }
}

#[test]
fn commands_in_remedies_put_the_key_right() {
    for (input, _, spoil) in CASES.iter().filter(|(_, is_command, _)| *is_command) {
        let desk = Desk::new();
        let content = spoil(&desk);
        desk.write("ca-key.pem", content);
        let problems = desk.problems();
        let [problem] = problems.as_slice() else { panic!("{input}: {problems:#?}") };
        desk.shell(problem.remedy.as_ref().unwrap());
        assert_eq!(desk.problems(), Vec::<Problem>::new(), "{input}: {problem}");
    }
}
