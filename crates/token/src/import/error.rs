//! Why an import fails or cannot begin.

use pki::{KeyAlgorithm, private_key::PrivateKeyError};

use super::{rehearsal::Clear, wrap::WrapError};
use crate::{
    CallError, Pkcs11Error,
    key::{
        KeyError,
        proof::ProofError,
        template::{self, CertificateError},
    },
    module::LibraryInfo,
};

/// The token cannot unwrap such a key, or failed before it could be seen.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct NotWrapped {
    pub(super) algorithm: KeyAlgorithm,
    /// The strictest way's error.
    pub(super) source: WrapError,
    /// How the token takes such a key in the clear, if it may.
    pub(super) clear: Option<Clear>,
    /// Whether the token lacks the ability, and did not fail.
    pub(super) inability: bool,
    /// What imports keys instead.
    pub(super) tool: &'static str,
}

/// What imports keys into a token that takes none through PKCS#11.
pub(super) fn import_tool(library: &LibraryInfo) -> &'static str {
    match library.description.as_str() {
        "TPM2.0 Cryptoki" => "`tpm2_ptool import` (hsm-config/tpm2-pkcs11.toml)",
        _ => "the vendor's own tool (hsm-config/VENDORS.md)",
    }
}

fn takes_none(algorithm: KeyAlgorithm, tool: &str) -> String {
    format!(
        "takes no {algorithm} key through PKCS#11, wrapped or in the clear; import it with {tool} and take it into service \
         with `istio-hsm-ca adopt`"
    )
}

impl NotWrapped {
    fn text(&self) -> String {
        let algorithm = self.algorithm;
        match (self.inability, self.clear) {
            (false, _) => format!("failed while it was tried out how it takes a {algorithm} key"),
            (true, Some(Clear::Session(_))) => {
                format!("cannot unwrap a {algorithm} key; --allow-plaintext-import imports it in the clear")
            }
            (true, Some(Clear::Token)) => format!(
                "cannot unwrap a {algorithm} key; --allow-plaintext-import tries to import it in the clear, which cannot \
                 be tried out before; if it fails, import the key with {} and take it into service with `istio-hsm-ca adopt`",
                self.tool
            ),
            (true, None) => takes_none(algorithm, self.tool),
        }
    }
}

/// Errors of an import. Everything it created has been removed again, except for [`ImportError::NotUndone`].
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The certificate is for another key.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The key in the token is not suitable, or several keys match.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token takes such a key in no way; only writing it as a token object has shown that.
    #[error("the token {}", takes_none(*.algorithm, .tool))]
    NotTaken {
        /// The key's type.
        algorithm: KeyAlgorithm,
        /// What imports keys instead.
        tool: &'static str,
        /// C_CreateObject's error.
        #[source]
        source: Pkcs11Error,
    },
    /// Some of the created objects could not be removed.
    #[error("{source}; in addition, {left} of the created objects could not be removed: import again to remove them")]
    NotUndone {
        /// Number of objects left.
        left: usize,
        /// The original error.
        source: Box<ImportError>,
    },
    /// The software key cannot be decomposed.
    #[error(transparent)]
    PrivateKey(#[from] PrivateKeyError),
    /// The key in the token failed its checks.
    #[error("the key in the token failed its checks")]
    Proof(#[from] ProofError),
    /// An object with the key's CKA_ID does not work and is not from an interrupted import.
    #[error(
        "the token holds a private key with {what} that does not work as the CA's key; delete it with the vendor's tool"
    )]
    Unproven {
        /// The search criterion.
        what: String,
        /// The failed check.
        #[source]
        source: ProofError,
    },
    /// Wrapping failed.
    #[error("the token did not accept the wrapped key")]
    Wrap(#[from] WrapError),
}

impl ImportError {
    /// Whether the token rejects an attribute of a template.
    pub(super) fn rejects_template(&self) -> bool {
        let fault = match self {
            Self::Call(call) => Some(&call.source),
            Self::Wrap(wrap) => wrap.fault(),
            Self::NotTaken { source, .. } => Some(source),
            Self::Certificate(_)
            | Self::Key(_)
            | Self::NotUndone { .. }
            | Self::PrivateKey(_)
            | Self::Proof(_)
            | Self::Unproven { .. } => None,
        };
        fault.is_some_and(template::rejects_template)
    }
}
