//! The self-signed root: issued through the same pipeline as every certificate, except for policy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Serialize;

use super::{Key, left_behind};
use crate::cli::{
    bundle_dir,
    ceremony::{
        books::{Books, whole_seconds},
        signing,
    },
};
use audit_log::{checkpoint, timestamp};
use pki::{
    Bundle, Issued, Issuer, Profile, Tbs, Template,
    bundle::{BundleFiles, Input},
    profile::CLOCK_SKEW,
    tbs::Serial,
};
use process::{
    clock,
    output::{Output, Refused},
};
use token::{
    Session, Token,
    adopt::{self, Access, Adopted, Adoption, Origin},
    generate::Generated,
    key::{Hints, hex},
};

/// Parameters of a root.
pub(super) struct Root {
    pub(super) organization: String,
    pub(super) days: u16,
    pub(super) bundle: PathBuf,
    pub(super) log: PathBuf,
    pub(super) origin: String,
}

/// The receipt.
#[derive(Debug, Serialize)]
struct Receipt {
    at: String,
    #[serde(flatten)]
    key: Generated,
    certificate: Certificate,
    installed: Adopted,
    bundle: PathBuf,
    log: Recording,
    /// The log key as a signed note verifier key.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_verifier_key: Option<String>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    organization: String,
    serial: String,
    sha256: String,
    not_before: String,
    not_after: String,
}

#[derive(Debug, Serialize)]
struct Recording {
    directory: PathBuf,
    origin: String,
    index: u64,
}

pub(super) fn run(key: &Key<'_>, root: Root, output: Output) -> anyhow::Result<()> {
    for name in ["ca-cert.pem", "tls.crt"] {
        if root.bundle.join(name).exists() {
            bail!(
                "{}: holds a {name} already, and another CA's files are not overwritten; name another --bundle",
                root.bundle.display()
            );
        }
    }
    bundle_dir::check(&root.bundle).context("no key was made: --bundle")?;
    let opened = key.token.open()?;
    let session = opened.login(true)?;
    let books = Books::open(&root.log, &root.origin)?;
    let made = key.make(&opened, &session);
    let done = made.and_then(|made| ceremony(&books, (&opened.token, &session), made, &root));
    books.close();
    let receipt = done?;
    output.print(&receipt, |receipt| {
        format!(
            "{} key {} (CKA_ID {}) was made in the token {}\n\
             root: O={}, serial {}, until {}; recorded as intent {} of {}\n\
             bundle: {}\n",
            receipt.key.algorithm,
            receipt.key.label,
            receipt.key.id,
            receipt.key.token.label,
            receipt.certificate.organization,
            receipt.certificate.serial,
            receipt.certificate.not_after,
            receipt.log.index,
            receipt.log.directory.display(),
            receipt.bundle.display(),
        )
    })
}

/// Records, signs, verifies, installs, writes; in this order.
fn ceremony(
    books: &Books,
    (token, session): (&Token, &Session),
    made: Generated,
    root: &Root,
) -> anyhow::Result<Receipt> {
    let (issued, index) = sign(books, session, &made, root).with_context(|| left_behind(&made))?;
    let unfinished = || {
        format!(
            "the key `{}` and its self-signed certificate (intent {index} of {}) exist, the certificate as below; keep \
             it as root.pem, fix the cause and run `istio-hsm-ca install --ca-cert root.pem --root-cert root.pem \
             --cert-chain root.pem`\n{}",
            made.label,
            root.log.display(),
            issued.to_pem()
        )
    };
    let access = Access { session, read_only: None };
    let accepted = made.accepted_weaknesses.clone();
    let adoption = Adoption { hints: Hints::default(), accepted, origin: Origin::Generated };
    let installed = adopt::run(token, access, &made.public_key, issued.der(), &adoption).with_context(unfinished)?;
    let (not_before, not_after) = (timestamp::format(issued.not_before()), timestamp::format(issued.not_after()));
    let log_key = made.service_keys.log_public_key();
    let receipt = Receipt {
        at: timestamp::format(clock::now()),
        certificate: Certificate {
            organization: root.organization.clone(),
            serial: issued.serial().to_hex(),
            sha256: hex(&audit_log::tree::sha256(&[issued.der()])),
            not_before,
            not_after,
        },
        installed,
        bundle: root.bundle.clone(),
        log: Recording { directory: root.log.clone(), origin: root.origin.clone(), index },
        log_verifier_key: log_key.and_then(|key| checkpoint::verifier_key(&root.origin, &key).ok()),
        key: made.clone(),
    };
    write(&root.bundle, &issued, &receipt).with_context(unfinished)?;
    Ok(receipt)
}

fn sign(books: &Books, session: &Session, made: &Generated, root: &Root) -> anyhow::Result<(Issued, u64)> {
    let not_before = whole_seconds(clock::now())? - CLOCK_SKEW;
    let template = Template {
        profile: Profile::SelfSignedRoot { organization: root.organization.clone() },
        public_key: made.public_key.clone(),
        names: Vec::new(),
        not_before,
        not_after: not_before + Duration::from_secs(u64::from(root.days) * 24 * 60 * 60),
    };
    let issuer = Issuer::of_new_root(&template)?;
    let tbs = Tbs::build(template, issuer, Serial::random())?;
    books.sign(tbs, &made.token.label, |recorded| {
        let signature = signing::sign_certificate(session, recorded)?;
        Ok(Issued::assemble(Arc::clone(recorded.value()), &signature)?)
    })
}

/// All three files contain the same certificate, as with Istio's own CA; `serve` must accept what is written.
fn write(directory: &Path, issued: &Issued, receipt: &Receipt) -> anyhow::Result<()> {
    let pem = issued.to_pem();
    let input = |name: &str| Input { name: name.to_owned(), bytes: pem.clone().into_bytes() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem"),
        cert_chain: input("cert-chain.pem"),
        root_cert: input("root-cert.pem"),
    };
    if let Err(problems) = Bundle::check(files, clock::now()) {
        let reasons = problems.iter().map(ToString::to_string).collect();
        return Err(Refused { what: "BUG: the new root is no CA that `serve` takes:".to_owned(), reasons }.into());
    }
    let mut content = serde_json::to_vec_pretty(receipt)?;
    content.push(b'\n');
    let name = bundle_dir::receipt_name("generate", &receipt.key.token.serial);
    let pem = pem.as_bytes();
    let files = [("cert-chain.pem", pem), ("root-cert.pem", pem), ("ca-cert.pem", pem), (&name, &content)];
    Ok(bundle_dir::write(directory, &files)?)
}
