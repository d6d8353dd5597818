//! A directory with the files of a good plug-in CA, in which a test spoils one.

use std::{fs, path::Path, process::Command};

use der::Tag;
use pki::{
    Bundle, PublicKey,
    bundle::{BundleFiles, Input, Problem},
    private_key::PrivateKey,
    testing::{
        P256, P384, RSA,
        draft::{Draft, authority_key_id, common_name, subject_key_id},
        now,
    },
};

use super::page::Case;

/// Key identifiers that are the same in every run.
pub const ROOT_ID: &[u8] = &[0x0a; 8];
pub const UPPER_ID: &[u8] = &[0x0b; 8];
pub const CA_ID: &[u8] = &[0x0c; 8];

pub fn name(text: &str) -> Vec<u8> {
    common_name(Tag::Utf8String, text.as_bytes())
}

/// The root's certificate before it is signed by [`P384`].
pub fn root() -> Draft {
    Draft::new(&name("Root CA"), &P384, now()).with(subject_key_id(ROOT_ID))
}

/// An intermediate's, to be signed by [`P384`].
pub fn upper() -> Draft {
    let draft = Draft::under(&name("Upper CA"), &RSA, &name("Root CA"), now()).with(subject_key_id(UPPER_ID));
    Draft { serial: vec![2], ..draft.with(authority_key_id(Some(ROOT_ID), None)) }
}

/// The CA's below the intermediate, to be signed by [`RSA`].
pub fn ca() -> Draft {
    let draft = Draft::under(&name("Mesh CA"), &P256, &name("Upper CA"), now()).with(subject_key_id(CA_ID));
    Draft { serial: vec![3], ..draft.with(authority_key_id(Some(UPPER_ID), None)) }
}

/// The directory.
pub struct Desk(tempfile::TempDir);

impl Desk {
    pub fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("ca-cert.pem", ca().pem(&RSA));
        desk.write("cert-chain.pem", upper().pem(&P384));
        desk.write("root-cert.pem", root().pem(&P384));
        desk.write("ca-key.pem", P256.serialize_pem());
        desk
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path().join(file)).unwrap()
    }

    pub fn text(&self, file: &str) -> String {
        String::from_utf8(self.read(file)).unwrap()
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(file), content).unwrap();
    }

    /// Runs a command of a shell; it must succeed.
    pub fn shell(&self, command: &str) {
        let output = Command::new("bash").args(["-euc", command]).current_dir(self.path()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What is wrong with the files, as `import` reports it.
    pub fn problems(&self) -> Vec<Problem> {
        let input = |name: &str| Input { name: name.to_owned(), bytes: self.read(name) };
        let files = BundleFiles {
            ca_cert: input("ca-cert.pem"),
            cert_chain: input("cert-chain.pem"),
            root_cert: input("root-cert.pem"),
        };
        let key = self.key();
        let public_key = key.as_ref().ok().map(|key| ("ca-key.pem", key));
        let found = Bundle::check_read(files, Vec::new(), public_key, now()).err().unwrap_or_default();
        found.into_iter().chain(key.err()).collect()
    }

    fn key(&self) -> Result<PublicKey, Problem> {
        let text = self.read("ca-key.pem");
        let key = PrivateKey::from_pem(&text, None).map_err(|error| error.in_file("ca-key.pem", &text))?;
        Ok(key.public_key().clone())
    }

    /// The case for the page.
    pub fn case(&self, input: &str) -> Case {
        let messages = self.problems().into_iter().map(|problem| {
            let Problem { file, reason, remedy } = problem;
            (without_fingerprints(&format!("{file}: {reason}")), remedy.map(|it| without_offsets(&it)))
        });
        Case { input: input.to_owned(), messages: messages.collect() }
    }
}

/// Signatures with ECDSA differ in length, and so do places in a file after them.
fn without_offsets(text: &str) -> String {
    let word = |word: &str| match word.strip_prefix('+').map(str::parse::<usize>) {
        Some(Ok(2..)) => "+600".to_owned(),
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The beginnings of fingerprints differ from run to run.
fn without_fingerprints(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_end_matches([';', ')', ',']);
        let is_hex = bare.len() == 16 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex { word.replace(bare, "0123456789abcdef") } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
