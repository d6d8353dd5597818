//! `adopt` of keys that vendors' own tools have made; with a TPM those of pkcs11-tool and of tpm2_ptool, made in the TPM
//! or imported into it.

use std::fs;

use serde_json::Value;
use testkit::plug_in::{self, PlugIn};

use super::{
    cases,
    modules::{Key, LABEL, Module, PIN},
    place::{Place, plug_in},
};

const MODULE: Module = Module::Tpm2;

/// A key that another program has put into the token, with its public files in `ca`.
pub enum By<'a> {
    /// pkcs11-tool generates it, of this type.
    Pkcs11Tool(&'static str),
    /// `tpm2_ptool addkey` generates it, of this algorithm.
    AddKey(&'static str),
    /// `tpm2_ptool import` imports the key of this CA, of this algorithm.
    Import(&'a PlugIn, &'static str),
}

impl By<'_> {
    pub fn put(&self, place: &Place) {
        let store = format!("--path={}", place.text("tpm2"));
        let pin = format!("--userpin={PIN}");
        let token = format!("--label={LABEL}");
        let ptool = |words: &[&str]| {
            let common = [&token, &pin, &store, "--key-label=ca"];
            MODULE.tool("tpm2_ptool", place.root(), &[words, &common[..]].concat())
        };
        match self {
            Self::Pkcs11Tool(kind) => {
                pkcs11_tool(place, &["--keypairgen", "--key-type", kind, "--id", "01", "--label", "ca"]);
            }
            Self::AddKey(algorithm) => {
                ptool(&["addkey", &format!("--algorithm={algorithm}")]);
            }
            Self::Import(ca, algorithm) => {
                ca.write(&place.path("ca"));
                let key = format!("--privkey={}", place.text("ca/ca-key.pem"));
                ptool(&["import", &key, &format!("--algorithm={algorithm}")]);
                return;
            }
        }
        let public = place.text("public.der");
        pkcs11_tool(place, &["--read-object", "--type", "pubkey", "--label", "ca", "--output-file", &public]);
        plug_in::write_public_of(&fs::read(public).unwrap(), &place.path("ca"));
    }
}

fn pkcs11_tool(place: &Place, words: &[&str]) {
    let module = MODULE.path().display().to_string();
    let login = ["--module", &module, "--token-label", LABEL, "--login", "--pin", PIN];
    MODULE.tool("pkcs11-tool", place.root(), &[&login[..], words].concat());
}

/// A key made by the vendor's own tool is adopted, whatever else the token takes.
pub async fn made_by_the_vendor(module: Module) {
    let place = Place::new(module);
    let receipt = place.adopt_made_by_the_vendor();
    serves(&place, &receipt, &format!("{module:?}-vendor"), false).await;
}

/// The receipt of an adoption is right, and the key serves.
async fn serves(place: &Place, receipt: &Value, name: &str, extractable: bool) {
    assert_eq!(receipt["origin"], "made or imported by other tools", "{receipt}");
    cases::helper_keys(place.module, receipt);
    cases::seen_and_serving(place, name, extractable).await;
}

/// Adopts a key once all of `flags` are given, each of which is asked for, and serves with it.
async fn adopted(name: &str, by: By<'_>, flags: &[&str]) {
    let place = Place::new(MODULE);
    by.put(&place);
    let refused = place.adopt(&[]);
    assert!(!refused.good, "{refused:?}");
    for flag in flags {
        assert!(refused.err.contains(flag), "{flag}: {refused:?}");
    }
    let receipt = place.adopt(flags).json();
    assert_eq!(receipt["accepted_weaknesses"].as_array().unwrap().len(), flags.len(), "{receipt}");
    let extractable = flags.contains(&"--allow-extractable");
    serves(&place, &receipt, &format!("adopted-{name}"), extractable).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn p256_key_of_pkcs11_tool() {
    adopted("pkcs11-tool-p256", By::Pkcs11Tool("EC:prime256v1"), &["--allow-decrypt", "--allow-derive"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn rsa_key_of_pkcs11_tool() {
    adopted("pkcs11-tool-rsa", By::Pkcs11Tool("rsa:2048"), &["--allow-decrypt"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn p256_key_of_tpm2_ptool() {
    adopted("addkey-p256", By::AddKey("ecc256"), &["--allow-decrypt"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn rsa_key_of_tpm2_ptool() {
    adopted("addkey-rsa", By::AddKey("rsa2048"), &["--allow-decrypt"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn p256_key_imported_by_tpm2_ptool() {
    adopted("import-p256", By::Import(&plug_in(Key::P256), "ecc"), &["--allow-decrypt", "--allow-extractable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another module: make test-tokens"]
async fn rsa_key_imported_by_tpm2_ptool() {
    adopted("import-rsa", By::Import(&plug_in(Key::Rsa2048), "rsa"), &["--allow-decrypt", "--allow-extractable"]).await;
}
