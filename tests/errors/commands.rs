//! PIN files, and what commands refuse before they do anything.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use process::error::Report;
use token::pin;

use super::{
    configuration::BASE,
    desk::Desk,
    page::{Case, Section},
};

/// What is wrong, and the file's content and mode.
const PINS: &[(&str, &[u8], u32)] = &[
    ("A PIN file with a byte order mark", b"\xef\xbb\xbf1234\n", 0o600),
    ("A PIN file in UTF-16", b"\xff\xfe1\x002\x003\x004\x00", 0o600),
    ("An empty PIN file", b"\n", 0o600),
    ("A PIN file with two lines", b"1234\n5678\n", 0o600),
    ("A PIN file that others can write", b"1234\n", 0o666),
];

/// What is wrong, the arguments, and how the directory comes to be so.
const COMMANDS: &[(&str, &str, fn(&Desk))] = &[
    ("A certificate in place of a request", "issue --csr ca-cert.pem --out new.pem", |_| ()),
    ("A request in DER", "issue --csr request --out new.pem", |desk| {
        desk.shell("openssl req -new -key ca-key.pem -subj / -outform DER -out request 2>/dev/null");
    }),
    ("A request in UTF-16", "issue --csr request --out new.pem", |desk| {
        desk.shell("openssl req -new -key ca-key.pem -subj / 2>/dev/null | iconv -f UTF-8 -t UTF-16 > request");
    }),
    ("A file of a key in place of the certificate to write", "issue --csr request --out ca-key.pem", request),
    ("A directory in place of the certificate to write", "issue --csr request --out .", request),
    ("A configuration in UTF-16", "serve --config wide.toml", |desk| {
        desk.shell("echo '[ca]' | iconv -f UTF-8 -t UTF-16 > wide.toml");
    }),
    ("A configuration that is missing", "serve --config none.toml", |_| ()),
    (
        "One token, and the key's file to be removed",
        "import --from . --token pkcs11:token=ca?module-path=/usr/lib/hsm.so --bundle bundle --remove-key-file",
        |_| (),
    ),
    (
        "Files that are missing",
        "import --from none --token pkcs11:token=ca?module-path=/none.so --bundle bundle --dry-run",
        |_| (),
    ),
];

/// What is wrong with a revocation, the arguments after `revoke`, and the state document.
const REVOCATIONS: &[(&str, &str, &str)] = &[
    ("A revocation that selects nothing", "--yes", ""),
    ("A state document of revocation that is not one", "--list", "{}"),
    ("A state document of revocation of a newer release", "--list", r#"{"v":2}"#),
    ("A block that does not exist", "--unblock 7 --yes", ""),
    ("The release of a certificate that is not revoked", "--release --serial 0a --yes", ""),
    ("A revocation without an answer", "--release --serial 0a", ""),
];

/// The same for ceremonies.
const CEREMONIES: &[(&str, &str, fn(&Desk))] = &[
    ("A ceremony file without an act", "ceremony run act.toml --rehearse", |desk| ceremony(desk, "")),
    ("A ceremony file with two acts", "ceremony run act.toml --rehearse", |desk| {
        ceremony(
            desk,
            "[retire_key]\nkey_sha256 = \"\"\n[import_key]\nkey = \"\"\nlabel = \"\"\ncertificate = { file = \"\", sha256 = \"\" }\n",
        );
    }),
    ("An input of a ceremony that is not the reviewed one", "ceremony run act.toml --rehearse", |desk| {
        desk.write("cert.pem", "changed\n");
        ceremony(desk, &retire("certificate = { file = \"cert.pem\", sha256 = \"00\" }\n"));
    }),
    ("A ceremony that was not rehearsed", "ceremony run act.toml --rehearsed none.json --sign-with key", |desk| {
        ceremony(desk, &retire(""));
    }),
    ("More shares needed than there are", "ceremony split-pin --shares 2 --threshold 3 --out shares", |_| ()),
];

fn retire(more: &str) -> String {
    format!("[retire_key]\nkey_sha256 = \"{}\"\n{more}", "0a".repeat(32))
}

fn ceremony(desk: &Desk, act: &str) {
    let head = "version = 1\ntitle = \"a ceremony\"\ntoken = \"pkcs11:token=root?module-path=/usr/lib/hsm.so\"\n\
                participants = [{ name = \"Ann\", role = \"operator\" }]\n\
                log = { directory = \"log\", origin = \"ca.test/root\" }\n";
    desk.write("act.toml", format!("{head}{act}"));
}

fn request(desk: &Desk) {
    desk.shell("openssl req -new -key ca-key.pem -subj / -out request 2>/dev/null");
}

fn pins() -> impl Iterator<Item = Case> {
    PINS.iter().map(|(input, content, mode)| {
        let desk = Desk::new();
        desk.write("pin", content);
        let path = desk.path().join("pin");
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        let error = pin::read(&path).err().unwrap_or_else(|| panic!("{input}: accepted"));
        let Report { problem, remedy } = Report::from(&error);
        let plain = |text: &str| text.replace(&path.display().to_string(), "pin");
        Case { input: (*input).to_owned(), messages: vec![(plain(&problem), remedy.map(|it| plain(&it)))] }
    })
}

fn commands() -> impl Iterator<Item = Case> {
    COMMANDS.iter().chain(CEREMONIES).map(|(input, arguments, spoil)| {
        let desk = Desk::new();
        spoil(&desk);
        desk.write("config.toml", BASE);
        let issue = "issue --config config.toml --spiffe-id spiffe://cluster.local/ns/a/sa/b";
        let arguments = arguments.replacen("issue", issue, 1);
        let output = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
            .args(arguments.split(' '))
            .current_dir(desk.path())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{input}: accepted");
        let text = String::from_utf8(output.stderr).unwrap();
        let lines = text.lines().map(|line| line.trim_start_matches([' ', '-'])).filter(|line| !line.ends_with(':'));
        // Further reasons do not belong to the case: this directory has no bundle and no token.
        let messages = lines.take(1).map(|line| (line.trim_start_matches("error: ").to_owned(), None)).collect();
        Case { input: (*input).to_owned(), messages }
    })
}

fn revocations() -> impl Iterator<Item = Case> {
    let section = "\n[revocation]\nstore = { file = \"revocations.json\" }\n";
    let missing = ("A revocation without its section", "--serial 0a --yes", "", "");
    let configured = REVOCATIONS.iter().map(move |(input, arguments, state)| (*input, *arguments, *state, section));
    std::iter::once(missing).chain(configured).map(|(input, arguments, state, section)| {
        let desk = Desk::new();
        desk.write("config.toml", format!("{BASE}{section}"));
        if !state.is_empty() {
            desk.write("revocations.json", state);
        }
        let output = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"))
            .args(["revoke", "--config", "config.toml"])
            .args(arguments.split(' '))
            .current_dir(desk.path())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{input}: accepted");
        let text = String::from_utf8(output.stderr).unwrap();
        Case { input: input.to_owned(), messages: vec![(text.trim().trim_start_matches("error: ").to_owned(), None)] }
    })
}

pub fn section() -> Section {
    Section {
        title: "Commands and PIN files",
        about: "Nothing is signed, generated or imported before these are checked.",
        cases: pins().chain(commands()).chain(revocations()).collect(),
    }
}
