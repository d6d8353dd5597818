//! Blocks: to whom no further certificates are issued.

use std::{fmt, str::FromStr};

use super::{KeyHash, key_hash::KeyHashError};
use pki::identity::{DnsName, Name, NameError, Namespace, SpiffeId};

/// Whom a block denies certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlockSelector {
    /// A workload's SPIFFE ID, as the caller's or in the certificate.
    Identity(SpiffeId),
    /// A public key, whatever the certificate names.
    Key(KeyHash),
    /// All workloads of a Kubernetes namespace, in every trust domain.
    Namespace(Namespace),
    /// Everything that is requested from a Kubernetes node, as far as the node is known: by ztunnel for its workloads.
    Node(String),
    /// A DNS name in the certificate.
    Server(DnsName),
}

/// Not a block's selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockSelectorError {
    /// The word before `=` is unknown.
    #[error("{0:?} is not identity=, server=, namespace=, node= or key= and a value")]
    Kind(String),
    /// The hash is malformed.
    #[error(transparent)]
    Key(#[from] KeyHashError),
    /// The name is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The node has no name.
    #[error("{0:?} is not the name of a node")]
    Node(String),
}

impl BlockSelector {
    /// Whether a request is denied: its identities (the caller's and those in the certificate), DNS names, key, node.
    #[must_use]
    pub fn matches(&self, subject: &super::Subject<'_>) -> bool {
        match self {
            Self::Identity(id) => subject.identities().any(|other| other == id),
            Self::Key(key) => subject.key == key.0,
            Self::Namespace(namespace) => subject.identities().any(|id| id.namespace() == namespace),
            Self::Node(node) => subject.node == Some(node.as_str()),
            Self::Server(server) => subject.names.iter().any(|name| matches!(name, Name::Dns(dns) if dns == server)),
        }
    }
}

impl fmt::Display for BlockSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => write!(f, "identity={id}"),
            Self::Key(key) => write!(f, "key={key}"),
            Self::Namespace(namespace) => write!(f, "namespace={namespace}"),
            Self::Node(node) => write!(f, "node={node}"),
            Self::Server(server) => write!(f, "server={server}"),
        }
    }
}

impl FromStr for BlockSelector {
    type Err = BlockSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((kind, value)) = text.split_once('=') else { return Err(BlockSelectorError::Kind(text.to_owned())) };
        Ok(match kind {
            "identity" => Self::Identity(value.parse()?),
            "key" => Self::Key(value.parse()?),
            "namespace" => Self::Namespace(value.parse()?),
            "node" if !value.is_empty() && !value.chars().any(|c| c.is_control() || c.is_whitespace()) => {
                Self::Node(value.to_owned())
            }
            "node" => return Err(BlockSelectorError::Node(value.to_owned())),
            "server" => Self::Server(value.parse()?),
            _ => return Err(BlockSelectorError::Kind(text.to_owned())),
        })
    }
}

impl TryFrom<String> for BlockSelector {
    type Error = BlockSelectorError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BlockSelector> for String {
    fn from(selector: BlockSelector) -> Self {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Subject, *};

    #[test]
    fn each_selector_denies_its_own_and_nothing_else() {
        let caller: SpiffeId = "spiffe://td/ns/shop/sa/web".parse().unwrap();
        let names = [
            Name::Spiffe("spiffe://other/ns/cart/sa/api".parse().unwrap()),
            Name::Dns("web.shop.svc".parse().unwrap()),
        ];
        let subject = Subject { caller: Some(&caller), names: &names, key: [7; 32], node: Some("worker-1") };
        let key = |byte| format!("key={}", KeyHash([byte; 32]));
        for (selector, expected) in [
            ("identity=spiffe://td/ns/shop/sa/web", true),
            ("identity=spiffe://other/ns/cart/sa/api", true),
            ("identity=spiffe://td/ns/shop/sa/web2", false),
            ("namespace=shop", true),
            ("namespace=cart", true),
            ("namespace=sho", false),
            ("node=worker-1", true),
            ("node=worker-10", false),
            ("server=web.shop.svc", true),
            ("server=shop.svc", false),
            (&key(7), true),
            (&key(8), false),
        ] {
            let parsed: BlockSelector = selector.parse().unwrap();
            assert_eq!(parsed.to_string(), selector);
            assert_eq!(parsed.matches(&subject), expected, "{selector}");
        }
        for bad in ["", "shop", "pod=a", "node=", "node=a b", "key=7", "identity=web", "namespace=A"] {
            assert!(bad.parse::<BlockSelector>().is_err(), "{bad}");
        }
    }
}
