//! Notifications to systemd (`Type=notify`, sd_notify(3)): listening, status, stopping.
//!
//! Started does not mean ready: systemd must not restart the daemon because a token is unavailable. Without systemd
//! this does nothing.

use sd_notify::NotifyState;
use tokio::sync::watch;

use super::{background::Background, readiness::Report};

/// Reports that the daemon listens, and from then on whether it is ready and why not.
pub fn listening(mut report: watch::Receiver<Report>, background: &Background) {
    tell(&[NotifyState::Ready]);
    background.spawn_until_end(async move {
        loop {
            let status = status(&report.borrow_and_update());
            tell(&[NotifyState::Status(&status)]);
            if report.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Reports that the daemon is stopping.
pub fn ending() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

/// One line: what prevents the daemon from issuing, if anything.
fn status(report: &Report) -> String {
    let mut troubles = Vec::new();
    for part in &report.parts {
        if let Some(trouble) = &part.trouble {
            troubles.push(format!("{}: {}", part.name, trouble.replace('\n', " ")));
        }
    }
    match (report.ready(), troubles.is_empty()) {
        (true, true) => "ready".to_owned(),
        (true, false) => format!("ready, but {}", troubles.join("; ")),
        (false, _) => format!("not ready: {}", troubles.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::readiness::Part;

    #[test]
    fn a_status_is_one_line_with_every_trouble() {
        let part = |name: &str, trouble: Option<&str>| Part {
            name: name.to_owned(),
            trouble: trouble.map(str::to_owned),
            note: None,
            needed: true,
        };
        let mut report = Report { parts: vec![part("log", None), part("token a", None)] };
        assert_eq!(status(&report), "ready");
        report.parts.push(part("token b", Some("the PIN\nwas refused")));
        report.parts.push(part("CA certificate", Some("expired")));
        assert_eq!(status(&report), "not ready: token b: the PIN was refused; CA certificate: expired");
    }
}
