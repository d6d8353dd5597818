//! Readiness: what prevents the daemon from issuing certificates.
//!
//! Each part of the daemon reports whether it works; the daemon is ready when all parts work that every certificate
//! needs. Failures of parts that only some callers need are reported without making the daemon unready. Liveness does
//! not depend on readiness: a broken HSM is not fixed by restarting the daemon.

use tokio::sync::watch;

/// Readiness of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the part, such as `token softhsm`.
    pub name: String,
    /// Why it does not work; `None` if it does.
    pub trouble: Option<String>,
    /// What else there is to say of it.
    pub note: Option<String>,
    /// Whether every certificate needs it.
    pub needed: bool,
}

/// Readiness of all parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The parts, in the order in which they were added.
    pub parts: Vec<Part>,
}

impl Report {
    /// Whether certificates can be issued.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.parts.iter().all(|part| part.trouble.is_none() || !part.needed)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", if self.ready() { "ready" } else { "not ready" })?;
        for part in &self.parts {
            write!(f, "{}: {}", part.name, part.trouble.as_deref().unwrap_or("ok"))?;
            match &part.note {
                Some(note) => writeln!(f, " ({note})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Collects the readiness of the parts.
#[derive(Clone, Debug)]
pub struct Readiness {
    report: watch::Sender<Report>,
}

/// Sets the readiness of one part.
#[derive(Debug)]
pub struct ReadinessHandle {
    report: watch::Sender<Report>,
    index: usize,
}

impl Readiness {
    /// Creates an empty collection.
    #[must_use]
    pub fn new() -> Self {
        Self { report: watch::Sender::new(Report::default()) }
    }

    /// Adds a part that is not ready until its handle reports otherwise.
    #[must_use]
    pub fn required(&self, name: impl Into<String>) -> ReadinessHandle {
        self.add(name.into(), true)
    }

    /// Adds a part that only some callers need: its failures are reported, and the daemon stays ready.
    #[must_use]
    pub fn informational(&self, name: impl Into<String>) -> ReadinessHandle {
        self.add(name.into(), false)
    }

    fn add(&self, name: String, needed: bool) -> ReadinessHandle {
        let mut index = 0;
        self.report.send_modify(|report| {
            index = report.parts.len();
            report.parts.push(Part { name, trouble: Some("starting".to_owned()), note: None, needed });
        });
        ReadinessHandle { report: self.report.clone(), index }
    }

    /// Watches the report.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl ReadinessHandle {
    /// Says what else there is to know of the part.
    pub fn note(&self, note: Option<String>) {
        self.report.send_if_modified(|report| {
            let part = report.parts.get_mut(self.index).filter(|part| part.note != note);
            part.map(|part| part.note = note).is_some()
        });
    }

    /// Says whether the part can do its share; a change is logged.
    pub fn set(&self, trouble: Option<String>) {
        self.report.send_if_modified(|report| {
            let Some(part) = report.parts.get_mut(self.index) else { return false };
            if part.trouble == trouble {
                return false;
            }
            match &trouble {
                None => tracing::info!(part = part.name, "ready"),
                Some(reason) if part.needed => tracing::warn!(part = part.name, reason, "not ready"),
                Some(reason) => tracing::warn!(part = part.name, reason, "not available; the daemon works without"),
            }
            part.trouble = trouble;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_is() {
        let readiness = Readiness::new();
        let (token, log) = (readiness.required("token"), readiness.required("log"));
        let report = || readiness.watch().borrow().clone();
        assert!(!report().ready());
        token.set(None);
        assert!(!report().ready());
        log.set(None);
        assert!(report().ready());
        token.set(Some("the token is gone".to_owned()));
        assert!(!report().ready());
        assert_eq!(report().to_string(), "not ready\ntoken: the token is gone\nlog: ok\n");
        token.set(None);
        let cluster = readiness.informational("cluster");
        cluster.set(Some("away".to_owned()));
        token.note(Some("as found".to_owned()));
        assert!(report().ready());
        assert_eq!(report().to_string(), "ready\ntoken: ok (as found)\nlog: ok\ncluster: away\n");
    }
}
