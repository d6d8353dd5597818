//! The transcript of a ceremony: JSON for machines, and the same as a text to be signed on paper.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{document::Participant, inputs::FileDigest, ssh};
use audit_log::{timestamp, tree::sha256};
use process::{clock, output::Output};
use token::{
    key::hex,
    module::{Info, LibraryInfo},
};

/// The version of the format.
const VERSION: u8 = 1;

/// Whether a ceremony was rehearsed or performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Act,
    Rehearsal,
}

/// The program that ran.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Program {
    pub(super) version: String,
    /// SHA-256 of the executable, hexadecimal.
    pub(super) sha256: String,
}

/// What was signed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Signed {
    /// `certificate` or `crl`.
    pub(super) what: String,
    /// SHA-256 of the signed bytes: the TBSCertificate or TBSCertList.
    pub(super) sha256: String,
    /// The same with the key that the ceremony makes, and its identifier, set to zero: equal in rehearsal and act.
    pub(super) comparable_sha256: String,
    /// Index of its intent in the issuance log.
    pub(super) intent: u64,
    /// What it says, for people.
    pub(super) content: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    time: String,
    step: String,
}

/// Everything that a ceremony did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Transcript {
    version: u8,
    pub(super) kind: Kind,
    /// `done`, or why the ceremony ended before.
    pub(super) result: String,
    pub(super) act: String,
    pub(super) title: String,
    pub(super) participants: Vec<Participant>,
    pub(super) program: Program,
    /// The ceremony file.
    pub(super) file: FileDigest,
    /// The transcript of the rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rehearsal: Option<FileDigest>,
    pub(super) inputs: Vec<FileDigest>,
    pub(super) outputs: Vec<FileDigest>,
    /// The PKCS#11 library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) library: Option<LibraryInfo>,
    /// The token, with its serial number and firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Info>,
    /// Origin of the issuance log.
    pub(super) log_origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed: Option<Signed>,
    /// What the token says about the key: its attributes, and where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Value>,
    /// The SSH key that signs the transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed_by: Option<String>,
    pub(super) steps: Vec<Step>,
}

/// What an act needs of its rehearsal's transcript.
#[derive(Debug, Deserialize)]
pub(super) struct Rehearsed {
    version: u8,
    pub(super) kind: Kind,
    pub(super) result: String,
    pub(super) act: String,
    pub(super) program: Program,
    pub(super) file: FileDigest,
    pub(super) inputs: Vec<FileDigest>,
    pub(super) signed: Option<Signed>,
}

impl Rehearsed {
    /// Parses a transcript.
    ///
    /// # Errors
    /// If it is not a transcript of this version.
    pub(super) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let rehearsed: Self = serde_json::from_slice(text)?;
        if rehearsed.version != VERSION {
            anyhow::bail!("it is of version {}, and this program reads version {VERSION}", rehearsed.version);
        }
        Ok(rehearsed)
    }
}

impl Transcript {
    /// The transcript of a ceremony that begins.
    pub(super) fn new(kind: Kind, act: &str, program: Program, file: FileDigest) -> Self {
        Self {
            version: VERSION,
            kind,
            result: "not finished".to_owned(),
            act: act.to_owned(),
            title: String::new(),
            participants: Vec::new(),
            program,
            file,
            rehearsal: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            library: None,
            token: None,
            log_origin: String::new(),
            signed: None,
            key: None,
            signed_by: None,
            steps: Vec::new(),
        }
    }

    /// Records a step, and shows it.
    pub(super) fn step(&mut self, output: Output, text: impl Into<String>) {
        let step = Step { time: timestamp::format(clock::now()), step: text.into() };
        output.note(&format!("{}  {}", step.time, step.step));
        self.steps.push(step);
    }

    /// The JSON document, with a final newline.
    ///
    /// # Errors
    /// Never for values of this program.
    pub(super) fn to_json(&self) -> anyhow::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// The text for paper. `json` is the JSON document, whose digest it states.
    pub(super) fn to_text(&self, json: &[u8]) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, &hex(&sha256(&[json])));
        text
    }

    fn write(&self, text: &mut String, json_sha256: &str) -> std::fmt::Result {
        let what = match self.kind {
            Kind::Act => "KEY CEREMONY",
            Kind::Rehearsal => "REHEARSAL OF A KEY CEREMONY (no key of the CA was used)",
        };
        writeln!(text, "{what}\n\n{}\n", self.title)?;
        writeln!(text, "act:            {}", self.act)?;
        writeln!(text, "result:         {}", self.result)?;
        writeln!(text, "ceremony file:  {}\n                SHA-256 {}", self.file.name, self.file.sha256)?;
        writeln!(
            text,
            "program:        istio-hsm-ca {}\n                SHA-256 {}",
            self.program.version, self.program.sha256
        )?;
        if let Some(rehearsal) = &self.rehearsal {
            writeln!(text, "rehearsal:      {}\n                SHA-256 {}", rehearsal.name, rehearsal.sha256)?;
        }
        if let Some(token) = &self.token {
            writeln!(
                text,
                "token:          {} (serial number {}, {} {})",
                token.label, token.serial, token.manufacturer, token.model
            )?;
            writeln!(text, "                hardware {}, firmware {}", token.hardware, token.firmware)?;
        }
        if let Some(library) = &self.library {
            writeln!(
                text,
                "library:        {} {} (PKCS#11 {})",
                library.description, library.version, library.cryptoki
            )?;
        }
        writeln!(text, "issuance log:   {}", self.log_origin)?;
        if let Some(key) = &self.signed_by {
            writeln!(text, "signed by:      {key}")?;
        }
        for (heading, files) in [("Inputs", &self.inputs), ("Outputs", &self.outputs)] {
            if !files.is_empty() {
                writeln!(text, "\n{heading}\n")?;
            }
            for file in files {
                writeln!(text, "  {}\n    SHA-256 {}", file.name, file.sha256)?;
            }
        }
        if let Some(signed) = &self.signed {
            writeln!(text, "\nSigned: {} (intent {} of the issuance log)\n", signed.what, signed.intent)?;
            for line in &signed.content {
                writeln!(text, "  {line}")?;
            }
            writeln!(text, "  signed bytes: SHA-256 {}", signed.sha256)?;
            writeln!(text, "  comparable:   SHA-256 {}", signed.comparable_sha256)?;
        }
        if let Some(key) = &self.key {
            writeln!(text, "\nKey\n")?;
            for line in serde_json::to_string_pretty(key).unwrap_or_default().lines() {
                writeln!(text, "  {line}")?;
            }
        }
        writeln!(text, "\nSteps\n")?;
        for step in &self.steps {
            writeln!(text, "  {}  {}", step.time, step.step)?;
        }
        writeln!(text, "\nThe JSON transcript has SHA-256\n  {json_sha256}")?;
        writeln!(text, "and is signed in the namespace {} (ssh-keygen -Y verify).", ssh::NAMESPACE)?;
        writeln!(text, "\nWe took part in this ceremony, and it went as this transcript says.\n")?;
        for participant in &self.participants {
            writeln!(text, "\n  ______________________________  {} ({})", participant.name, participant.role)?;
        }
        Ok(())
    }
}
