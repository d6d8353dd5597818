//! `ceremony run`: rehearses an act, or performs one that was rehearsed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use aws_lc_rs::digest;
use serde::Serialize;

use super::{
    AlreadyReported,
    books::Books,
    document::{Act, Document, FILE_MAX},
    inputs::{FileDigest, Inputs},
    perform::{self, Conditions},
    plan::Plan,
    rehearsal,
    ssh::SshKey,
    stage::{Stage, digests},
    transcript::{Kind, Program, Rehearsed, Transcript},
};
use crate::cli::{bundle_dir, token::PinArgs};
use audit_log::{
    record::CeremonyPhase,
    show::{self, Ceremonies},
    tree::sha256,
};
use process::{
    clock,
    error::chain,
    output::{Output, Refused},
};
use token::key::hex;

/// Most bytes of a transcript.
const TRANSCRIPT_MAX: usize = 8 << 20;

/// Arguments of `ceremony run`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("mode").required(true).args(["rehearse", "rehearsed"])))]
pub struct Args {
    /// The ceremony file, which says what is done (docs/CEREMONIES.md)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Perform it on a temporary SoftHSM token, with keys that stand in for those of the CA
    #[arg(long)]
    rehearse: bool,
    /// Perform it on the real token; TRANSCRIPT is the JSON transcript of its rehearsal
    #[arg(long, value_name = "TRANSCRIPT", requires = "sign_with")]
    rehearsed: Option<PathBuf>,
    /// The operator's SSH key that signs the transcript: a private key, or the public key of one in the agent
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// Directory for the transcripts [default: the one of the ceremony file]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// SoftHSM's library, for the rehearsal
    #[arg(long, value_name = "FILE", conflicts_with = "rehearsed")]
    softhsm: Option<PathBuf>,
    /// A file with the passphrase of an encrypted key to be imported [default: a prompt]
    #[arg(long, value_name = "FILE")]
    key_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    pin: PinArgs,
    /// The directory of the rehearsal's token; used by the rehearsal itself only
    #[arg(long, value_name = "DIR", hide = true, requires = "rehearse")]
    rehearsal_directory: Option<PathBuf>,
}

/// Result of the command.
#[derive(Debug, Serialize)]
struct Done {
    act: String,
    kind: Kind,
    transcript: PathBuf,
    transcript_sha256: String,
    text: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
}

/// A ceremony that has been prepared.
struct Prepared {
    document: Document,
    act: Act,
    plan: Plan,
    inputs: Inputs,
    file: FileDigest,
    /// The ceremony file's digest.
    digest: Vec<u8>,
    program: Program,
}

/// Rehearses or performs an act.
///
/// # Errors
/// If the file or an input is not as it should be, it was not rehearsed, or a step fails.
pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<()> {
    match (&args.rehearsed, &args.rehearsal_directory) {
        (None, None) => {
            // Mistakes in the file are reported before a token is made.
            prepare(args)?;
            match rehearsal::in_own_process()? {
                true => Ok(()),
                false => Err(AlreadyReported.into()),
            }
        }
        (None, Some(directory)) => rehearse(args, prepare(args)?, directory, output),
        (Some(rehearsed), _) => act(args, prepare(args)?, rehearsed, output),
    }
}

fn prepare(args: &Args) -> anyhow::Result<Prepared> {
    let name = args.file.display();
    let content =
        process::files::read_input(&args.file, FILE_MAX).with_context(|| format!("{name}: cannot be read"))?;
    let text = std::str::from_utf8(&content).ok().with_context(|| format!("{name}: it is not UTF-8"))?;
    let (document, act) = Document::parse(text).with_context(|| name.to_string())?;
    let mut inputs = Inputs::new(args.file.parent().map(Path::to_owned).unwrap_or_default());
    let digest = sha256(&[&content]).to_vec();
    let plan = Plan::of(&act, &mut inputs, &digest, clock::now()).with_context(|| name.to_string())?;
    let file_name = args.file.file_name().map(PathBuf::from).unwrap_or_default();
    let file = FileDigest::of(&file_name, &content);
    Ok(Prepared { document, act, plan, inputs, file, digest, program: program()? })
}

/// This program: its version and the digest of its file.
fn program() -> anyhow::Result<Program> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut file = std::fs::File::open("/proc/self/exe").context("this program's file cannot be read")?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            count => context.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    Ok(Program { version: env!("CARGO_PKG_VERSION").to_owned(), sha256: hex(context.finish().as_ref()) })
}

impl Prepared {
    fn transcript(&self, kind: Kind) -> Transcript {
        let mut transcript = Transcript::new(kind, self.act.name(), self.program.clone(), self.file.clone());
        transcript.title.clone_from(&self.document.title);
        transcript.participants.clone_from(&self.document.participants);
        transcript.inputs.clone_from(&self.inputs.read);
        transcript.log_origin.clone_from(&self.document.log.origin);
        transcript
    }

    /// Names of the participants.
    fn participants(&self) -> Vec<String> {
        self.document.participants.iter().map(|one| format!("{} ({})", one.name, one.role)).collect()
    }
}

/// Performs the act on the temporary token, with a temporary log.
fn rehearse(args: &Args, prepared: Prepared, directory: &Path, output: Output) -> anyhow::Result<()> {
    let place = Place::of(args, "rehearsal");
    let key = args.sign_with.as_deref().map(SshKey::open).transpose()?;
    let mut transcript = prepared.transcript(Kind::Rehearsal);
    transcript.signed_by = key.as_ref().map(|key| key.description.clone());
    transcript.step(output, format!("the rehearsal of {} begins", prepared.file.name));
    let (uri, opened) = rehearsal::token(args.softhsm.as_deref())?;
    let session = opened.login(true)?;
    transcript.library = opened.module.info().ok();
    transcript.token = Some(opened.token.info().clone());
    transcript.step(output, "a temporary token was made");
    let books = Books::open(&directory.join("log"), &prepared.document.log.origin)?;
    let stage = Stage { uri: &uri, opened: &opened, session: &session, books: &books, rehearsal: true, output };
    let conditions = Conditions { comparable_sha256: None, key_passphrase_file: None };
    let product = perform::perform(&stage, prepared.plan, &conditions, &mut transcript);
    books.close();
    let product = product?;
    let written = product.map(|content| -> anyhow::Result<PathBuf> {
        let path = place.file("pem");
        transcript.outputs.push(FileDigest::of(Path::new(path.file_name().unwrap_or_default()), &content));
        bundle_dir::write_file(&path, &content, 0o644)?;
        Ok(path)
    });
    let written = written.transpose()?;
    "done".clone_into(&mut transcript.result);
    transcript.step(output, "the rehearsal is complete; nothing of its token is kept");
    place.make_room("json.sig")?;
    place.write(&transcript, key.as_ref(), written, output)
}

/// Performs the act on the real token.
fn act(args: &Args, prepared: Prepared, rehearsed: &Path, output: Output) -> anyhow::Result<()> {
    let (rehearsal, comparable) = check_rehearsal(&prepared, rehearsed)?;
    let place = Place::of(args, "transcript");
    let log_directory = prepared.inputs.path(&prepared.document.log.directory);
    let target = prepared.act.output().map(|file| prepared.inputs.path(file));
    check_untouched(&prepared, &place, target.as_deref(), &log_directory)?;
    let key = args.sign_with.as_deref().map(SshKey::open).transpose()?;
    let mut transcript = prepared.transcript(Kind::Act);
    transcript.signed_by = key.as_ref().map(|key| key.description.clone());
    transcript.rehearsal = Some(rehearsal);
    transcript.step(output, format!("the ceremony of {} begins; it is as rehearsed", prepared.file.name));
    let uri = prepared.document.token.clone();
    let opened = args.pin.open(&uri)?;
    let session = opened.login(true)?;
    transcript.library = opened.module.info().ok();
    transcript.token = Some(opened.token.info().clone());
    transcript.step(output, format!("logged in to the token {}", opened.token.info().label));
    let books = Books::open(&log_directory, &prepared.document.log.origin)?;
    let entry = books.ceremony(transcript.act.clone(), prepared.file.sha256.clone(), prepared.participants());
    entry.record(CeremonyPhase::Begun, None, None)?;
    transcript.step(output, "the beginning was recorded in the issuance log");
    let stage = Stage { uri: &uri, opened: &opened, session: &session, books: &books, rehearsal: false, output };
    let conditions = Conditions {
        comparable_sha256: comparable.as_deref(),
        key_passphrase_file: args.key_passphrase_file.as_deref(),
    };
    let performed = perform::perform(&stage, prepared.plan, &conditions, &mut transcript).and_then(|product| {
        let (Some(content), Some(path)) = (product, &target) else { return Ok(None) };
        let name = prepared.act.output().map(PathBuf::as_path).unwrap_or(path);
        transcript.outputs.push(FileDigest::of(name, &content));
        let kept =
            || format!("the following was signed, and could not be written:\n{}", String::from_utf8_lossy(&content));
        bundle_dir::write_file(path, &content, 0o644).with_context(kept)?;
        transcript.step(output, format!("written: {}", name.display()));
        Ok(Some(path.clone()))
    });
    let (phase, reason) = match &performed {
        Ok(_) => (CeremonyPhase::Done, None),
        Err(error) => (CeremonyPhase::Failed, Some(chain(error.as_ref()))),
    };
    transcript.result = reason.clone().unwrap_or_else(|| "done".to_owned());
    transcript.step(output, if reason.is_none() { "the ceremony is complete" } else { "the ceremony has failed" });
    let digest = hex(&sha256(&[&transcript.to_json()?]));
    let recorded = entry.record(phase, Some(digest), reason);
    books.close();
    let written = place.write(&transcript, key.as_ref(), performed.as_ref().ok().cloned().flatten(), output);
    performed?;
    recorded.context("the act was performed, and its end is not in the issuance log; keep the transcript")?;
    written
}

/// Compares a ceremony with its rehearsal. Returns the rehearsal's digest, and that of what was signed.
fn check_rehearsal(prepared: &Prepared, path: &Path) -> anyhow::Result<(FileDigest, Option<String>)> {
    let name = path.display();
    let content = process::files::read_input(path, TRANSCRIPT_MAX).with_context(|| {
        format!(
            "{name}: the transcript of the rehearsal cannot be read; rehearse the ceremony with --rehearse first, and name its \
             JSON transcript"
        )
    })?;
    let rehearsed =
        Rehearsed::parse(&content).with_context(|| format!("{name}: it is not the transcript of a rehearsal"))?;
    let mut reasons = Vec::new();
    let mut differs = |same: bool, reason: String| {
        if !same {
            reasons.push(reason);
        }
    };
    differs(rehearsed.kind == Kind::Rehearsal, "it is the transcript of an act; give that of the rehearsal".to_owned());
    differs(rehearsed.result == "done", "the rehearsal has failed; rehearse it again".to_owned());
    differs(rehearsed.act == prepared.act.name(), format!("it is of the act {}", rehearsed.act));
    differs(
        rehearsed.file.sha256 == prepared.file.sha256,
        format!(
            "the ceremony file has SHA-256 {}, and the rehearsed one had {}; review and rehearse the file as it is now",
            prepared.file.sha256, rehearsed.file.sha256
        ),
    );
    differs(
        rehearsed.program == prepared.program,
        format!(
            "this program is {} with SHA-256 {}, and the rehearsal ran {} with {}; use the program that was rehearsed",
            prepared.program.version, prepared.program.sha256, rehearsed.program.version, rehearsed.program.sha256
        ),
    );
    differs(rehearsed.inputs == prepared.inputs.read, "it had other inputs; rehearse it with these".to_owned());
    let comparable = rehearsed.signed.map(|signed| signed.comparable_sha256);
    let signed = match &prepared.plan {
        Plan::Certificate(tbs) => Some(digests(tbs.der(), None).1),
        Plan::Crl(tbs) => Some(digests(tbs.der(), None).1),
        // Known when the key exists.
        Plan::Root(_) => comparable.clone(),
        Plan::Import(_) | Plan::Retire(_) => None,
    };
    differs(comparable == signed, "other bytes would be signed than in the rehearsal; rehearse it again".to_owned());
    differs(
        comparable.is_some() || !matches!(prepared.plan, Plan::Root(_)),
        "it does not say what was signed; rehearse it again".to_owned(),
    );
    if !reasons.is_empty() {
        return Err(Refused { what: format!("{name}: the ceremony is not as rehearsed:"), reasons }.into());
    }
    Ok((FileDigest::of(path, &content), comparable))
}

/// Makes sure that the act overwrites nothing, and was not performed before.
fn check_untouched(prepared: &Prepared, place: &Place, target: Option<&Path>, log: &Path) -> anyhow::Result<()> {
    let transcripts = ["json", "txt", "json.sig"].map(|ending| place.file(ending));
    for path in target.into_iter().chain(transcripts.iter().map(PathBuf::as_path)) {
        if path.symlink_metadata().is_ok() {
            bail!("{}: exists already and is not overwritten; move it away, or name another file", path.display());
        }
        bundle_dir::check_file(path)?;
    }
    let held = if log.exists() { show::ceremonies(log)? } else { Ceremonies::default() };
    if let Some(earlier) = held.unrepeatable(&hex(&prepared.digest)) {
        bail!(
            "{}: this file was performed already ({:?} at {}, line {} of {}); write a new file for another ceremony",
            prepared.file.name,
            earlier.phase,
            earlier.time,
            earlier.line,
            log.display()
        );
    }
    Ok(())
}

/// Where the transcripts are written.
struct Place {
    directory: PathBuf,
    stem: String,
}

impl Place {
    fn of(args: &Args, what: &str) -> Self {
        let directory = args.out.clone().or_else(|| args.file.parent().map(Path::to_owned)).unwrap_or_default();
        let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
        Self { directory, stem: format!("{stem}.{what}") }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.directory.join(format!("{}.{ending}", self.stem))
    }

    /// Removes a file of an earlier rehearsal.
    fn make_room(&self, ending: &str) -> anyhow::Result<()> {
        match std::fs::remove_file(self.file(ending)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}: cannot be replaced", self.file(ending).display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the transcripts, signs the JSON document, and prints the result.
    fn write(
        &self,
        transcript: &Transcript,
        key: Option<&SshKey>,
        written: Option<PathBuf>,
        output: Output,
    ) -> anyhow::Result<()> {
        let json = transcript.to_json()?;
        let (path, text) = (self.file("json"), self.file("txt"));
        bundle_dir::write_file(&path, &json, 0o644)?;
        bundle_dir::write_file(&text, transcript.to_text(&json).as_bytes(), 0o644)?;
        let signature = key.map(|key| key.sign(&path)).transpose().with_context(|| {
            format!(
                "the ceremony is over and {} is written, but not signed; sign it with `ssh-keygen -Y sign -n {} -f KEY {}`",
                path.display(),
                super::ssh::NAMESPACE,
                path.display()
            )
        })?;
        let done = Done {
            act: transcript.act.clone(),
            kind: transcript.kind,
            transcript: path,
            transcript_sha256: hex(&sha256(&[&json])),
            text,
            signature,
            output: written,
        };
        output.print(&done, |done| {
            use std::fmt::Write;
            let mut lines = String::new();
            if let Some(output) = &done.output {
                let _ = writeln!(lines, "{}", output.display());
            }
            let _ = writeln!(lines, "transcript: {} (SHA-256 {})", done.transcript.display(), done.transcript_sha256);
            let _ = writeln!(lines, "for paper: {}", done.text.display());
            if let Some(signature) = &done.signature {
                let _ = writeln!(lines, "signature: {}", signature.display());
            }
            lines
        })
    }
}
