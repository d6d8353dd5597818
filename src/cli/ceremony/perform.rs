//! Performs an act in a token, step by step.

use std::{
    io::{BufRead, Write},
    path::Path,
};

use anyhow::{Context, bail};
use serde_json::json;

use super::{
    plan::{Import, Plan, Retire, Root},
    software_key::SoftwareKey,
    stage::{Stage, digests},
    transcript::Transcript,
};
use crate::cli::import::source;
use pki::{KeyAlgorithm, PublicKey, pem};
use process::output::Refused;
use token::{
    adopt::{self, Access, Adoption, Origin},
    import::{self, Options},
    key::{Accepted, Hints, Search, hex},
    retire::{self, Retirement},
};

/// What an act needs besides its plan.
pub(super) struct Conditions<'a> {
    /// The digest that the signed bytes had in the rehearsal; none in a rehearsal.
    pub(super) comparable_sha256: Option<&'a str>,
    /// File with the passphrase of an encrypted key.
    pub(super) key_passphrase_file: Option<&'a Path>,
}

/// Performs an act. Returns what it is to write.
///
/// # Errors
/// If the token fails, or a check; steps that were completed stay completed.
pub(super) fn perform(
    stage: &Stage<'_>,
    plan: Plan,
    conditions: &Conditions<'_>,
    transcript: &mut Transcript,
) -> anyhow::Result<Option<Vec<u8>>> {
    match plan {
        Plan::Certificate(tbs) => {
            if !stage.rehearsal {
                find(stage, tbs.issuer().public_key(), transcript)?;
            }
            stage.sign_certificate(*tbs, None, transcript).map(Some)
        }
        Plan::Crl(tbs) => {
            if !stage.rehearsal {
                find(stage, tbs.issuer().public_key(), transcript)?;
            }
            stage.sign_crl(*tbs, transcript).map(Some)
        }
        Plan::Root(root) => create_root(stage, &root, conditions, transcript).map(Some),
        Plan::Import(import) => import_key(stage, &import, conditions, transcript).map(|()| None),
        Plan::Retire(retire) => retire_key(stage, &retire, transcript).map(|()| None),
    }
}

/// Finds the key that signs, and puts into the transcript what the token says about it.
fn find(stage: &Stage<'_>, key: &PublicKey, transcript: &mut Transcript) -> anyhow::Result<()> {
    let found = Search::new(Hints::from(stage.uri)).find_all(stage.session, key)?;
    for weakness in found.flags.weaknesses() {
        stage.output.warn(&format!("the key {}", weakness.in_words()));
    }
    transcript.key = Some(json!({
        "key_sha256": hex(&key.fingerprint()),
        "object": found.locator.to_string(),
        "found": found.by.in_words(),
        "attributes": found.flags,
    }));
    transcript.step(stage.output, format!("the key was found {}, and proven by a signature", found.by.in_words()));
    Ok(())
}

fn create_root(
    stage: &Stage<'_>,
    root: &Root,
    conditions: &Conditions<'_>,
    transcript: &mut Transcript,
) -> anyhow::Result<Vec<u8>> {
    let made = stage.make_key(root.algorithm, &root.label)?;
    transcript.step(stage.output, format!("the {} key `{}` was made", root.algorithm, root.label));
    let mut certify = || -> anyhow::Result<Vec<u8>> {
        let tbs = root.certificate(&made.public_key)?;
        let (_, comparable) = digests(tbs.der(), Some(&made.public_key));
        check_rehearsed(conditions.comparable_sha256, &comparable)?;
        let pem = stage.sign_certificate(tbs, Some(&made), transcript)?;
        let certificate = pem::blocks(&pem)?.into_iter().next().context("BUG: the certificate is not PEM")?;
        let access = Access { session: stage.session, read_only: None };
        let adoption = Adoption { hints: Hints::default(), accepted: Accepted::default(), origin: Origin::Generated };
        let installed = adopt::run(&stage.opened.token, access, &made.public_key, &certificate.der, &adoption)?;
        transcript.step(stage.output, "the certificate was stored with the key, as far as the token allows");
        transcript.key = Some(json!({
            "key_sha256": made.key_sha256,
            "algorithm": made.algorithm,
            "label": made.label,
            "id": made.id,
            "attributes": made.attributes,
            "omitted_attributes": made.omitted_attributes,
            "read_attempt": installed.read_attempt,
            "certificate": installed.certificate,
            "notes": installed.notes,
        }));
        Ok(pem)
    };
    Stage::with_key(&made, certify())
}

/// Compares what is about to be signed with the rehearsal.
///
/// # Errors
/// If it is not the same.
pub(super) fn check_rehearsed(rehearsed: Option<&str>, comparable: &str) -> anyhow::Result<()> {
    match rehearsed {
        Some(rehearsed) if rehearsed != comparable => bail!(
            "what would be signed is not what was rehearsed (SHA-256 {comparable}, and {rehearsed} in the rehearsal); \
             nothing was signed; rehearse the ceremony with this program"
        ),
        _ => Ok(()),
    }
}

fn import_key(
    stage: &Stage<'_>,
    plan: &Import,
    conditions: &Conditions<'_>,
    transcript: &mut Transcript,
) -> anyhow::Result<()> {
    let issuer = plan.bundle.issuer();
    let (key, certificate) = if stage.rehearsal {
        let stand_in = SoftwareKey::like(issuer)?;
        let algorithm = issuer.key_algorithm();
        transcript
            .step(stage.output, format!("a {algorithm} key was made in software, in place of {}", plan.key.display()));
        (stand_in.key, stand_in.certificate)
    } else {
        let (key, warning) =
            source::private_key(&plan.key, conditions.key_passphrase_file).map_err(anyhow::Error::msg)?;
        if let Some(warning) = warning {
            stage.output.warn(&warning);
        }
        if key.public_key() != issuer.public_key() {
            bail!("{}: it is not the key of the certificate in the ceremony file", plan.key.display());
        }
        (key, issuer.certificate().to_vec())
    };
    let options = Options {
        label: plan.label.clone(),
        allow_plaintext: plan.allow_plaintext,
        kwp_mechanism: None,
        accepted: Accepted::default(),
    };
    let opened = stage.opened;
    let ready =
        import::plan(&opened.module, stage.uri, &opened.pin, key.public_key(), &options).map_err(|problems| {
            let reasons = problems.iter().map(|problem| crate::cli::with_advice(problem)).collect();
            Refused { what: "nothing was imported:".to_owned(), reasons }
        })?;
    let report = import::run(ready, &key, &certificate)?;
    transcript.step(stage.output, format!("the key is in the token: {}", source::how(&report)));
    for note in report.notes.iter().chain(&report.cleared) {
        transcript.step(stage.output, format!("note: {note}"));
    }
    transcript.key = Some(serde_json::to_value(&report)?);
    Ok(())
}

fn retire_key(stage: &Stage<'_>, plan: &Retire, transcript: &mut Transcript) -> anyhow::Result<()> {
    let key = if stage.rehearsal {
        stage.stand_in(KeyAlgorithm::P256, transcript)?
    } else {
        let named = match &plan.key {
            Some(key) => Some(key.clone()),
            None => retire::public_key(stage.session, &plan.key_sha256)?,
        };
        named.with_context(|| {
            format!(
                "the token {} holds no public key or certificate with SHA-256 {}; check that this is the right token, or name \
                 the key's certificate in the ceremony file",
                stage.token(),
                plan.key_sha256
            )
        })?
    };
    let retirement = Retirement::find(stage.session, &key)?;
    let preview = retirement.preview();
    transcript.key = Some(serde_json::to_value(&preview)?);
    transcript.step(stage.output, format!("found to be destroyed: {}", preview.private_keys.join("; ")));
    if stage.rehearsal {
        transcript
            .step(stage.output, "the act asks two participants to confirm the key's SHA-256; the rehearsal does not");
    } else {
        confirm(stage, plan, transcript)?;
    }
    let retired = retirement.destroy()?;
    transcript.step(
        stage.output,
        format!(
            "destroyed: {} private key objects, {} public key objects, {} certificates; the token does not sign with the key \
             any more",
            retired.private_keys.len(),
            retired.public_keys,
            retired.certificates
        ),
    );
    Ok(())
}

/// Asks twice, on standard input: for the key's SHA-256, and for the token's label.
fn confirm(stage: &Stage<'_>, plan: &Retire, transcript: &mut Transcript) -> anyhow::Result<()> {
    let digits = plan.key_sha256.get(..16).unwrap_or_default();
    let label = stage.token();
    let questions = [
        ("first", "the first 16 digits of the key's SHA-256, as reviewed on paper", digits),
        ("second", "the label of the token in which the key is destroyed for ever", label),
    ];
    for (who, what, expected) in questions {
        let mut asked = std::io::stderr();
        let _ = write!(asked, "{who} confirmation: type {what}: ").and_then(|()| asked.flush());
        let mut typed = String::new();
        std::io::stdin().lock().read_line(&mut typed).context("no confirmation can be read")?;
        if typed.trim() != expected {
            bail!("the {who} confirmation is not {what}; nothing was destroyed");
        }
        transcript.step(stage.output, format!("{who} confirmation: {what}"));
    }
    Ok(())
}
