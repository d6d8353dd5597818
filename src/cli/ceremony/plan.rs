//! What a ceremony will do, worked out from its file and inputs before any token is touched, and linted.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::{Context, bail};

use super::{
    document::{
        Act, CreateRoot, CrossCertify, ImportKey, IssueCrl, IssuerFiles, RenewCertificate, RetireKey, SignIntermediate,
        Time,
    },
    inputs::Inputs,
};
use audit_log::tree::sha256;
use pki::{
    Bundle, CaProfile, CrlTbs, Issuer, KeyAlgorithm, Profile, PublicKey, Tbs, Template, VerifiedCsr,
    crl::{CrlContent, CrlIssuer, RevokedEntry},
    pem,
    request::{requested_subject, subject_text},
    tbs::{Serial, TbsError},
};

/// Separates the serial number's hash from all others.
const SERIAL_DOMAIN: &[u8] = b"istio-hsm-ca ceremony serial v1\0";

/// What will be done.
#[derive(Debug)]
pub(super) enum Plan {
    /// Sign a certificate by a key that exists.
    Certificate(Box<Tbs>),
    /// Sign a CRL by a key that exists.
    Crl(Box<CrlTbs>),
    /// Import a key.
    Import(Box<Import>),
    /// Make a key and its root.
    Root(Root),
    /// Destroy a key.
    Retire(Retire),
}

/// A root whose key does not exist yet.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) algorithm: KeyAlgorithm,
    pub(super) label: String,
    serial: Serial,
    /// DER Name.
    subject: Vec<u8>,
    path_len: Option<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A key that is imported.
#[derive(Debug)]
pub(super) struct Import {
    /// The certificate of the key, judged.
    pub(super) bundle: Bundle,
    pub(super) key: PathBuf,
    pub(super) label: String,
    pub(super) allow_plaintext: bool,
}

/// A key that is destroyed.
#[derive(Debug)]
pub(super) struct Retire {
    /// SHA-256 of its SubjectPublicKeyInfo, lower-case hexadecimal.
    pub(super) key_sha256: String,
    /// The key, if the file names its certificate.
    pub(super) key: Option<PublicKey>,
}

impl Root {
    /// The root's certificate, to be signed by the new key.
    ///
    /// # Errors
    /// If it breaks a rule.
    pub(super) fn certificate(&self, key: &PublicKey) -> anyhow::Result<Tbs> {
        let profile =
            CaProfile { subject: self.subject.clone(), subject_key_id: key.key_id().to_vec(), path_len: self.path_len };
        let template = template(profile, key.clone(), self.not_before, self.not_after);
        let issuer = Issuer::of_new_root(&template)?;
        build(template, issuer, self.serial)
    }
}

impl Plan {
    /// Reads the inputs of an act and works out what it does. `file` is the SHA-256 of the ceremony file, from which the
    /// serial number follows.
    ///
    /// # Errors
    /// If an input is missing or changed, or what would be signed breaks a rule.
    pub(super) fn of(act: &Act, inputs: &mut Inputs, file: &[u8], now: SystemTime) -> anyhow::Result<Self> {
        let serial = serial(file);
        match act {
            Act::CreateRoot(act) => Ok(Self::Root(root(act, serial)?)),
            Act::SignIntermediate(act) => intermediate(act, inputs, serial, now),
            Act::CrossCertify(act) => cross_certificate(act, inputs, serial, now),
            Act::RenewCertificate(act) => renewed(act, inputs, serial, now),
            Act::IssueCrl(act) => crl(act, inputs, now),
            Act::ImportKey(act) => import(act, inputs, now),
            Act::RetireKey(act) => retire(act, inputs),
        }
    }
}

/// 127 bits of the ceremony file's hash: no file is performed twice, so no serial number is used twice.
fn serial(file: &[u8]) -> Serial {
    let hash = sha256(&[SERIAL_DOMAIN, file]);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(hash.get(..16).unwrap_or(&[0; 16]));
    Serial::from_hash(bytes)
}

fn template(profile: CaProfile, public_key: PublicKey, not_before: SystemTime, not_after: SystemTime) -> Template {
    Template { profile: Profile::Ca(profile), public_key, names: Vec::new(), not_before, not_after }
}

/// Builds and lints a certificate. What breaks a rule comes from the ceremony file.
fn build(template: Template, issuer: Arc<Issuer>, serial: Serial) -> anyhow::Result<Tbs> {
    Tbs::build(template, issuer, serial).map_err(|error| match error {
        TbsError::Lint(finding) => {
            anyhow::anyhow!("what would be signed breaks a rule: {finding}; correct the ceremony file")
        }
        error @ TbsError::Encoding(_) => error.into(),
    })
}

fn certificate(template: Template, issuer: Arc<Issuer>, serial: Serial) -> anyhow::Result<Plan> {
    Ok(Plan::Certificate(Box::new(build(template, issuer, serial)?)))
}

fn root(act: &CreateRoot, serial: Serial) -> anyhow::Result<Root> {
    if let Some(problem) = crate::cli::token::label_problem(&act.label) {
        bail!("create_root: {}", problem.replace("--label", "label"));
    }
    check_period(act.not_before, act.not_after)?;
    Ok(Root {
        algorithm: act.algorithm.into(),
        label: act.label.clone(),
        serial,
        subject: act.subject.0.to_der()?,
        path_len: act.path_length,
        not_before: act.not_before.0,
        not_after: act.not_after.0,
    })
}

fn check_period(not_before: Time, not_after: Time) -> anyhow::Result<()> {
    if not_before.0 >= not_after.0 {
        bail!("not_after is not later than not_before; correct the times");
    }
    Ok(())
}

fn issuer(inputs: &mut Inputs, files: &IssuerFiles, now: SystemTime) -> anyhow::Result<Arc<Issuer>> {
    Ok(Arc::clone(inputs.issuer(files, now)?.issuer()))
}

fn intermediate(act: &SignIntermediate, inputs: &mut Inputs, serial: Serial, now: SystemTime) -> anyhow::Result<Plan> {
    check_period(act.not_before, act.not_after)?;
    let issuer = issuer(inputs, &act.issuer, now)?;
    let name = inputs.path(&act.request.file).display().to_string();
    let content = inputs.read(&act.request)?;
    let text = std::str::from_utf8(&content).ok().with_context(|| format!("{name}: it is not PEM"))?;
    let request = VerifiedCsr::for_ca_from_pem(text).with_context(|| name.clone())?;
    let block = pem::blocks(&content).ok().and_then(|blocks| blocks.into_iter().next());
    let subject = requested_subject(&block.with_context(|| format!("{name}: it is not PEM"))?.der)?;
    if !act.subject.0.is_name(&subject) {
        bail!(
            "{name}: the request is for the subject {:?}, and the ceremony file says another; correct the one that is wrong",
            subject_text(&subject)
        );
    }
    let key = request.public_key().clone();
    let profile = CaProfile { subject, subject_key_id: key.key_id().to_vec(), path_len: act.path_length };
    certificate(template(profile, key, act.not_before.0, act.not_after.0), issuer, serial)
}

fn cross_certificate(act: &CrossCertify, inputs: &mut Inputs, serial: Serial, now: SystemTime) -> anyhow::Result<Plan> {
    check_period(act.not_before, act.not_after)?;
    let issuer = issuer(inputs, &act.issuer, now)?;
    let other = inputs.renewed(&act.certificate, None, now)?;
    if other.subject() == issuer.subject() {
        bail!(
            "{}: has the name of the CA that certifies it, {:?}, and verifiers look for an issuer by its name; create the new \
             root with another name",
            inputs.path(&act.certificate.file).display(),
            subject_text(other.subject())
        );
    }
    let profile = profile_of(&other, act.path_length);
    certificate(template(profile, other.public_key().clone(), act.not_before.0, act.not_after.0), issuer, serial)
}

fn renewed(act: &RenewCertificate, inputs: &mut Inputs, serial: Serial, now: SystemTime) -> anyhow::Result<Plan> {
    check_period(act.not_before, act.not_after)?;
    let held = inputs.renewed(&act.certificate, act.issuer.as_ref(), now)?;
    let profile = profile_of(&held, held.path_len());
    let template = template(profile, held.public_key().clone(), act.not_before.0, act.not_after.0);
    let issuer = match &act.issuer {
        Some(files) => issuer(inputs, files, now)?,
        None => Issuer::of_new_root(&template)?,
    };
    certificate(template, issuer, serial)
}

/// Name and key identifier of a CA, as the certificates below it refer to them.
fn profile_of(ca: &Issuer, path_len: Option<u8>) -> CaProfile {
    let own = ca.subject_key_id().map_or_else(|| ca.public_key().key_id().to_vec(), <[u8]>::to_vec);
    CaProfile { subject: ca.subject().to_vec(), subject_key_id: own, path_len }
}

fn crl(act: &IssueCrl, inputs: &mut Inputs, now: SystemTime) -> anyhow::Result<Plan> {
    check_period(act.this_update, act.next_update)?;
    let issuer = issuer(inputs, &act.issuer, now)?;
    let entries = act.revoked.iter().filter(|entry| entry.expires.0 >= act.this_update.0).map(|entry| RevokedEntry {
        serial: entry.serial.clone(),
        revoked_at: entry.revoked_at.0,
        reason: entry.reason,
        expires: entry.expires.0,
    });
    let content = CrlContent {
        number: act.number,
        this_update: act.this_update.0,
        next_update: act.next_update.0,
        entries: entries.collect(),
    };
    Ok(Plan::Crl(Box::new(CrlTbs::build(CrlIssuer::from_certificate(issuer.certificate())?, content)?)))
}

fn import(act: &ImportKey, inputs: &mut Inputs, now: SystemTime) -> anyhow::Result<Plan> {
    if let Some(problem) = crate::cli::token::label_problem(&act.label) {
        bail!("import_key: {}", problem.replace("--label", "label"));
    }
    let bundle = inputs.issuer(&act.certificate, now)?;
    let (key, label) = (inputs.path(&act.key), act.label.clone());
    Ok(Plan::Import(Box::new(Import { bundle, key, label, allow_plaintext: act.allow_plaintext })))
}

fn retire(act: &RetireKey, inputs: &mut Inputs) -> anyhow::Result<Plan> {
    let key_sha256 = act.key_sha256.to_ascii_lowercase();
    if key_sha256.len() != 64 || !key_sha256.chars().all(|c| c.is_ascii_hexdigit()) {
        bail!("retire_key: key_sha256 is not 64 hexadecimal digits; `inspect` shows the digest of each key");
    }
    let key = match &act.certificate {
        None => None,
        Some(input) => {
            let name = inputs.path(&input.file).display().to_string();
            let content = inputs.read(input)?;
            let block = pem::blocks(&content).ok().and_then(|blocks| blocks.into_iter().next());
            let der = block.with_context(|| format!("{name}: it holds no certificate"))?.der;
            let spki = pki::CertificateFields::parse(&der).map(|fields| fields.spki);
            let key = PublicKey::from_spki_der(&spki.with_context(|| format!("{name}: it is not a certificate"))?)?;
            if token::key::hex(&key.fingerprint()) != key_sha256 {
                bail!("{name}: it is the certificate of another key than that of key_sha256; name the one of the key");
            }
            Some(key)
        }
    };
    Ok(Plan::Retire(Retire { key_sha256, key }))
}
