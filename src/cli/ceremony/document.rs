//! The ceremony file: what participants review before a ceremony, and the only source of what it does (docs/CEREMONIES.md).
//!
//! Everything that is signed follows from the file and the inputs that it pins by their SHA-256, so that the file's digest
//! stands for all of it.

use std::{path::PathBuf, time::SystemTime};

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::books::whole_seconds;
use crate::cli::generate::Algorithm;
use audit_log::show::parse_time;
use pki::{
    crl::{Reason, SerialNumber},
    request::Subject,
};
use token::TokenUri;

/// The version of the format.
const VERSION: u8 = 1;

/// Most bytes of a ceremony file: a CRL with 10,000 entries has 1 MiB.
pub(super) const FILE_MAX: usize = 4 << 20;

/// A ceremony file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    version: u8,
    /// What the ceremony is for, in one line.
    pub(super) title: String,
    /// Who takes part, in which role.
    pub(super) participants: Vec<Participant>,
    /// The token whose key is made, used or destroyed.
    pub(super) token: TokenUri,
    /// The issuance log that records the ceremony.
    pub(super) log: LogPlace,
    create_root: Option<CreateRoot>,
    sign_intermediate: Option<SignIntermediate>,
    cross_certify: Option<CrossCertify>,
    renew_certificate: Option<RenewCertificate>,
    issue_crl: Option<IssueCrl>,
    import_key: Option<ImportKey>,
    retire_key: Option<RetireKey>,
}

/// A participant.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Participant {
    pub(super) name: String,
    pub(super) role: String,
}

/// The issuance log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogPlace {
    pub(super) directory: PathBuf,
    pub(super) origin: String,
}

/// An input file, relative to the ceremony file's directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub(super) file: PathBuf,
    pub(super) sha256: String,
}

/// The CA that signs: its certificate, and its path up to a root unless it is one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IssuerFiles {
    pub(super) file: PathBuf,
    pub(super) sha256: String,
    /// The intermediates between it and the root.
    pub(super) chain: Option<Input>,
    /// The root; the CA itself if there is none.
    pub(super) root: Option<Input>,
}

impl IssuerFiles {
    /// The CA's own certificate.
    pub(super) fn certificate(&self) -> Input {
        Input { file: self.file.clone(), sha256: self.sha256.clone() }
    }
}

/// Makes a key and its self-signed root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateRoot {
    pub(super) algorithm: Algorithm,
    /// CKA_LABEL of the key.
    pub(super) label: String,
    pub(super) subject: Name,
    pub(super) not_before: Time,
    pub(super) not_after: Time,
    pub(super) path_length: Option<u8>,
    pub(super) output: PathBuf,
}

/// Signs the request of a CA below.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignIntermediate {
    pub(super) issuer: IssuerFiles,
    pub(super) request: Input,
    /// The subject that the request must have.
    pub(super) subject: Name,
    pub(super) not_before: Time,
    pub(super) not_after: Time,
    pub(super) path_length: Option<u8>,
    pub(super) output: PathBuf,
}

/// Certifies the key of another root.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CrossCertify {
    pub(super) issuer: IssuerFiles,
    /// The other root, self-signed.
    pub(super) certificate: Input,
    pub(super) not_before: Time,
    pub(super) not_after: Time,
    pub(super) path_length: Option<u8>,
    pub(super) output: PathBuf,
}

/// Certifies the same key and name for another period.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewCertificate {
    /// The CA above; none for a root, which signs itself.
    pub(super) issuer: Option<IssuerFiles>,
    pub(super) certificate: Input,
    pub(super) not_before: Time,
    pub(super) not_after: Time,
    pub(super) output: PathBuf,
}

/// Signs the list of the certificates that a CA has revoked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IssueCrl {
    pub(super) issuer: IssuerFiles,
    /// The CRL number: greater than that of every earlier list.
    pub(super) number: u64,
    pub(super) this_update: Time,
    pub(super) next_update: Time,
    #[serde(default)]
    pub(super) revoked: Vec<RevokedCertificate>,
    pub(super) output: PathBuf,
}

/// An entry of a CRL.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokedCertificate {
    /// Hexadecimal.
    pub(super) serial: SerialNumber,
    pub(super) revoked_at: Time,
    /// A reason of RFC 5280, section 5.3.1.
    #[serde(default)]
    pub(super) reason: Reason,
    /// notAfter of the certificate, after which the entry is left out.
    pub(super) expires: Time,
}

/// Imports a key from a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportKey {
    /// The certificate of the key.
    pub(super) certificate: IssuerFiles,
    /// The key's file; it is known by the certificate, so that its digest is not stated.
    pub(super) key: PathBuf,
    /// CKA_LABEL of the key.
    pub(super) label: String,
    /// Whether it may cross the PKCS#11 boundary in the clear if the token cannot unwrap it.
    #[serde(default)]
    pub(super) allow_plaintext: bool,
}

/// Destroys a key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetireKey {
    /// SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.
    pub(super) key_sha256: String,
    /// A certificate of the key, if the token holds neither one nor the public key.
    pub(super) certificate: Option<Input>,
}

/// What a ceremony does.
#[derive(Debug)]
pub(super) enum Act {
    CreateRoot(CreateRoot),
    CrossCertify(CrossCertify),
    ImportKey(ImportKey),
    IssueCrl(IssueCrl),
    RenewCertificate(RenewCertificate),
    RetireKey(RetireKey),
    SignIntermediate(SignIntermediate),
}

impl Act {
    /// The name of its table in the file.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::CreateRoot(_) => "create_root",
            Self::CrossCertify(_) => "cross_certify",
            Self::ImportKey(_) => "import_key",
            Self::IssueCrl(_) => "issue_crl",
            Self::RenewCertificate(_) => "renew_certificate",
            Self::RetireKey(_) => "retire_key",
            Self::SignIntermediate(_) => "sign_intermediate",
        }
    }

    /// The file that it writes.
    pub(super) fn output(&self) -> Option<&PathBuf> {
        match self {
            Self::CreateRoot(act) => Some(&act.output),
            Self::CrossCertify(act) => Some(&act.output),
            Self::IssueCrl(act) => Some(&act.output),
            Self::RenewCertificate(act) => Some(&act.output),
            Self::SignIntermediate(act) => Some(&act.output),
            Self::ImportKey(_) | Self::RetireKey(_) => None,
        }
    }
}

impl Document {
    /// Parses a ceremony file.
    ///
    /// # Errors
    /// If it is not TOML, has an unknown key or an invalid value, or does not have exactly one act.
    pub(super) fn parse(text: &str) -> anyhow::Result<(Self, Act)> {
        let mut document: Self = toml::from_str(text)?;
        if document.version != VERSION {
            anyhow::bail!("version = {}: this program reads version {VERSION}", document.version);
        }
        let unnamed = |text: &str| text.trim().is_empty() || text.chars().any(char::is_control);
        if unnamed(&document.title) {
            anyhow::bail!("title: say in one line what the ceremony is for");
        }
        if document.participants.is_empty()
            || document.participants.iter().any(|one| unnamed(&one.name) || unnamed(&one.role))
        {
            anyhow::bail!("participants: list who takes part, each with a name and a role");
        }
        let acts = [
            document.create_root.take().map(Act::CreateRoot),
            document.sign_intermediate.take().map(Act::SignIntermediate),
            document.cross_certify.take().map(Act::CrossCertify),
            document.renew_certificate.take().map(Act::RenewCertificate),
            document.issue_crl.take().map(Act::IssueCrl),
            document.import_key.take().map(Act::ImportKey),
            document.retire_key.take().map(Act::RetireKey),
        ];
        let mut acts = acts.into_iter().flatten();
        match (acts.next(), acts.next()) {
            (Some(act), None) => Ok((document, act)),
            (None, _) => anyhow::bail!(
                "the file has no act; add one of the tables create_root, sign_intermediate, cross_certify, \
                 renew_certificate, issue_crl, import_key and retire_key"
            ),
            (Some(one), Some(other)) => anyhow::bail!(
                "the file has the acts {} and {}; write a file for each, and review each on its own",
                one.name(),
                other.name()
            ),
        }
    }
}

/// A time of the file, in whole seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) SystemTime);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = parse_time(&text).filter(|time| whole_seconds(*time).is_ok_and(|whole| whole == *time));
        time.map(Self)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a time; write \"2027-01-31T00:00:00Z\"")))
    }
}

/// A distinguished name of the file: attributes in the order of the certificate.
#[derive(Clone, Debug)]
pub(super) struct Name(pub(super) Subject);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"
        version = 1
        title = "a test"
        token = "pkcs11:token=root?module-path=/usr/lib/p11.so"
        participants = [{ name = "Ann", role = "operator" }]
        log = { directory = "log", origin = "ca.test/root" }
    "#;
    const ROOT: &str = r#"
        [create_root]
        algorithm = "p256"
        label = "root"
        subject = "O=Example,CN=Root"
        not_before = "2027-01-01"
        not_after = "2037-01-01T00:00:00Z"
        output = "root.pem"
    "#;

    fn refused(text: &str) -> String {
        Document::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn file_has_exactly_one_act() {
        let (document, act) = Document::parse(&format!("{HEAD}{ROOT}")).unwrap();
        assert_eq!((document.participants.len(), act.name()), (1, "create_root"));
        let retire = format!("[retire_key]\nkey_sha256 = \"{}\"\n", "ab".repeat(32));
        assert!(refused(HEAD).contains("no act"));
        assert!(refused(&format!("{HEAD}{ROOT}{retire}")).contains("the acts create_root and retire_key"));
    }

    #[test]
    fn invalid_file_is_refused() {
        let whole = format!("{HEAD}{ROOT}");
        for (from, to, expected) in [
            ("version = 1", "version = 2", "version 1"),
            ("a test", " ", "title"),
            ("{ name = \"Ann\", role = \"operator\" }", "", "participants"),
            ("\"Ann\"", "\"\"", "participants"),
            ("p256", "p521", "p521"),
            ("O=Example,CN=Root", "Root", "is no name"),
            ("2027-01-01\"", "yesterday\"", "is not a time"),
            ("2027-01-01\"", "2027-01-01T00:00:00.5Z\"", "is not a time"),
            ("output =", "out =", "unknown field `out`"),
            ("pkcs11:token=root", "pkcs11:token=root;pin-value=1", "PIN"),
        ] {
            let error = refused(&whole.replace(from, to));
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
