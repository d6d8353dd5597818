//! Which certificates `revoke` is about: by serial number, or looked up in the issuance logs.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::{
    config::Config,
    revocation::{KeyHash, block::BlockSelector, state::Certificate},
};
use audit_log::{
    record::{IntentLine, OutcomeKind},
    show::{self, Entry},
    timestamp,
};
use pki::{
    crl::SerialNumber,
    identity::{Namespace, SpiffeId},
};
use process::clock;

/// Selects certificates; what is given must match together.
#[derive(Debug, clap::Args)]
pub(super) struct Selector {
    /// A serial number in hexadecimal; may be repeated
    #[arg(long, value_name = "HEX")]
    serial: Vec<SerialNumber>,
    /// Certificates for this SPIFFE ID or DNS name
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// Certificates for the workloads of this Kubernetes namespace
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// Certificates that were requested from this Kubernetes node, as far as the log knows it (ztunnel's)
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Certificates for this key: SHA-256 of its DER SubjectPublicKeyInfo in hexadecimal
    #[arg(long, value_name = "SHA256")]
    key: Option<KeyHash>,
    /// Certificates that were requested at this time or later (2026-01-31T23:59:59Z, or a date), UTC
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<SystemTime>,
    /// Certificates that were requested before this time, UTC
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<SystemTime>,
    /// A directory of an issuance log, of another replica or a copy; may be repeated [default: `[log] directory`]
    #[arg(long, value_name = "DIR", value_parser = super::log_directory)]
    log: Vec<PathBuf>,
    /// For --serial of a certificate that no log has: when it expires
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "serial")]
    expires: Option<SystemTime>,
}

fn parse_time(text: &str) -> Result<SystemTime, String> {
    show::parse_time(text).ok_or_else(|| "a time is written 2026-01-31T23:59:59Z, a date 2026-01-31".to_owned())
}

/// A certificate that is affected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Affected {
    /// Its serial number.
    pub(super) serial: SerialNumber,
    /// Its names, with their types; empty if no log has it.
    names: Vec<String>,
    /// Its notAfter.
    not_after: Option<String>,
    /// The CA key that signed it.
    ca_key: Option<KeyHash>,
    /// Its key.
    key: Option<KeyHash>,
    #[serde(skip)]
    expires: Option<SystemTime>,
}

impl Affected {
    /// A certificate that no log has.
    pub(super) fn unknown(serial: &SerialNumber, expires: Option<SystemTime>) -> Self {
        let not_after = expires.map(timestamp::format);
        Self { serial: serial.clone(), names: Vec::new(), not_after, ca_key: None, key: None, expires }
    }

    fn of(entry: &Entry) -> anyhow::Result<Self> {
        let intent = &entry.intent;
        let wrong =
            |what: &str| format!("intent {}: its {what} is malformed; run `istio-hsm-ca log verify`", intent.index);
        Ok(Self {
            serial: intent.serial.parse().with_context(|| wrong("serial"))?,
            names: intent.names.clone(),
            not_after: Some(intent.not_after.clone()),
            ca_key: Some(intent.ca_key.parse().with_context(|| wrong("ca_key"))?),
            key: Some(intent.spki_sha256.parse().with_context(|| wrong("spki_sha256"))?),
            expires: Some(timestamp::parse(&intent.not_after).with_context(|| wrong("not_after"))?),
        })
    }

    /// For the state document; `ca_key` is the CA of a certificate that no log has.
    pub(super) fn certificate(&self, ca_key: KeyHash) -> Certificate {
        Certificate {
            ca_key: self.ca_key.unwrap_or(ca_key),
            serial: self.serial.clone(),
            expires: self.expires.unwrap_or(SystemTime::UNIX_EPOCH),
            key: self.key,
        }
    }

    /// One line for people.
    pub(super) fn row(&self) -> String {
        let names = if self.names.is_empty() { "-".to_owned() } else { self.names.join(" ") };
        let shown = format!("{}  {}  {names}", self.serial, self.not_after.as_deref().unwrap_or("-"));
        shown.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    }
}

/// The selected certificates.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) certificates: Vec<Affected>,
    /// What the operator should know.
    pub(super) notes: Vec<String>,
    /// The logs that were read, for messages.
    pub(super) logs: String,
}

impl Selector {
    pub(super) fn is_empty(&self) -> bool {
        self.serial.is_empty() && !self.is_by_log()
    }

    pub(super) fn serials(&self) -> &[SerialNumber] {
        &self.serial
    }

    /// Whether only a log can tell the certificates.
    fn is_by_log(&self) -> bool {
        self.identity.is_some()
            || self.namespace.is_some()
            || self.node.is_some()
            || self.key.is_some()
            || self.has_period()
    }

    fn has_period(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Whether what is selected gets no further certificates unless the operator says otherwise: a selector that also
    /// matches future certificates, and one of them only, since a block has one.
    pub(super) fn blocks_by_default(&self) -> bool {
        self.serial.is_empty() && !self.has_period() && self.block().is_ok()
    }

    /// The block of the selector.
    pub(super) fn block(&self) -> anyhow::Result<BlockSelector> {
        let identity = self.identity.as_ref().map(|name| -> anyhow::Result<BlockSelector> {
            match name.parse::<SpiffeId>() {
                Ok(id) => Ok(BlockSelector::Identity(id)),
                Err(_) if !name.contains(':') => Ok(BlockSelector::Server(name.parse().context("--identity")?)),
                Err(error) => Err(anyhow::Error::new(error).context("--identity")),
            }
        });
        let candidates = [
            identity.transpose()?,
            self.namespace.clone().map(BlockSelector::Namespace),
            self.node.as_ref().map(|node| format!("node={node}").parse()).transpose().context("--node")?,
            self.key.map(BlockSelector::Key),
        ];
        let mut candidates = candidates.into_iter().flatten();
        match (candidates.next(), candidates.next()) {
            (Some(block), None) => Ok(block),
            (None, _) => bail!("a block needs --identity, --namespace, --node or --key"),
            (Some(_), Some(_)) => bail!("a block needs exactly one of --identity, --namespace, --node and --key"),
        }
    }

    /// Looks the certificates up that have not expired. `ca_key` is the CA's of a certificate that no log has; without
    /// it, such a certificate is left out.
    pub(super) fn find(&self, config: &Config, ca_key: Option<KeyHash>) -> anyhow::Result<Selection> {
        let now = clock::now();
        let logs = if self.log.is_empty() { vec![config.log.directory.clone()] } else { self.log.clone() };
        let mut selection = Selection {
            logs: logs.iter().map(|log| log.display().to_string()).collect::<Vec<_>>().join(", "),
            ..Selection::default()
        };
        let mut found: BTreeMap<(Option<KeyHash>, SerialNumber), Affected> = BTreeMap::new();
        for log in &logs {
            for entry in self.entries(log)? {
                let affected = Affected::of(&entry)?;
                if affected.expires.is_some_and(|expires| expires > now) {
                    found.insert((affected.ca_key, affected.serial.clone()), affected);
                }
            }
        }
        for serial in &self.serial {
            if found.values().any(|affected| affected.serial == *serial) || ca_key.is_none() {
                continue;
            }
            ensure!(
                !self.is_by_log(),
                "the certificate {serial} is in none of the logs {}, or does not match the other selectors",
                selection.logs
            );
            let expires = self.expires.with_context(|| {
                format!(
                    "the certificate {serial} is in none of the logs {}, or has expired; name the log that has it by \
                     --log, or its notAfter by --expires",
                    selection.logs
                )
            })?;
            ensure!(expires > now, "the certificate {serial} has expired at {}", timestamp::format(expires));
            selection.notes.push(format!(
                "no log has the certificate {serial}: its key is not known, and may be certified again; block it by --key"
            ));
            found.insert((ca_key, serial.clone()), Affected::unknown(serial, Some(expires)));
        }
        selection.certificates = found.into_values().collect();
        Ok(selection)
    }

    fn entries(&self, log: &Path) -> anyhow::Result<Vec<Entry>> {
        let entries = show::certificates(log, |intent| self.matches(intent))
            .with_context(|| format!("the issuance log {} cannot be read; name another one by --log", log.display()))?;
        // Without an outcome, after a crash, the certificate may have been signed.
        let failed = |entry: &Entry| entry.outcome.as_ref().is_some_and(|line| line.outcome == OutcomeKind::Failed);
        Ok(entries.into_iter().filter(|entry| !failed(entry)).collect())
    }

    fn matches(&self, intent: &IntentLine) -> bool {
        let serial = |serials: &[SerialNumber]| {
            serials.is_empty() || intent.serial.parse::<SerialNumber>().is_ok_and(|serial| serials.contains(&serial))
        };
        let time = intent.time();
        let named = |name: &String| {
            intent.names.iter().any(|own| own == name || own.split_once(':').is_some_and(|(_, own)| own == name))
        };
        let within = |namespace: &Namespace| {
            let ids = intent.names.iter().filter_map(|name| name.strip_prefix("URI:")?.parse::<SpiffeId>().ok());
            ids.into_iter().any(|id| id.namespace() == namespace)
        };
        intent.profile != "self-signed-root"
            && serial(&self.serial)
            && self.identity.as_ref().is_none_or(named)
            && self.namespace.as_ref().is_none_or(within)
            && self.node.as_ref().is_none_or(|node| intent.caller.node.as_ref() == Some(node))
            && self.key.is_none_or(|key| intent.spki_sha256.parse() == Ok(key))
            && self.since.is_none_or(|since| time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time.is_some_and(|time| time < until))
    }
}

/// As on the command line, for the log.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.serial.iter().map(|serial| format!("--serial {serial}")).collect();
        words.extend(self.identity.iter().map(|name| format!("--identity {name}")));
        words.extend(self.namespace.iter().map(|namespace| format!("--namespace {namespace}")));
        words.extend(self.node.iter().map(|node| format!("--node {node}")));
        words.extend(self.key.iter().map(|key| format!("--key {key}")));
        words.extend(self.since.iter().map(|time| format!("--since {}", timestamp::format(*time))));
        words.extend(self.until.iter().map(|time| format!("--until {}", timestamp::format(*time))));
        f.write_str(&words.join(" "))
    }
}
