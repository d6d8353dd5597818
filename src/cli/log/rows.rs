//! The rows of `log show`.

use audit_log::record::{
    CeremonyLine, CeremonyPhase, CrlLine, IntentLine, OutcomeKind, OutcomeLine, RevocationAction, RevocationLine,
};

/// The column titles.
pub(super) fn heading() -> String {
    format!("{:>9}  {:24}  {:32}  {:24}  CALLER, NAMES, OUTCOME\n", "INDEX", "TIME", "SERIAL", "NOT AFTER")
}

/// A certificate.
pub(super) fn row(intent: &IntentLine, outcome: &str) -> String {
    let caller = match intent.caller.peer {
        Some(peer) => format!("{} ({}) from {peer}", intent.caller.identity, intent.caller.method),
        None => format!("{} ({})", intent.caller.identity, intent.caller.method),
    };
    let names = if intent.names.is_empty() { intent.profile.clone() } else { intent.names.join(" ") };
    format!(
        "{:>9}  {:24}  {:32}  {:24}  {}, {}, {outcome}\n",
        intent.index,
        printable(&intent.time),
        printable(&intent.serial),
        printable(&intent.not_after),
        printable(&caller),
        printable(&names),
    )
}

/// The beginning or the end of a ceremony.
pub(super) fn ceremony_row(line: &CeremonyLine) -> String {
    let phase = match line.phase {
        CeremonyPhase::Begun => "begun".to_owned(),
        CeremonyPhase::Done => "done".to_owned(),
        CeremonyPhase::Failed => format!("failed: {}", printable(line.reason.as_deref().unwrap_or_default())),
    };
    format!(
        "{:>9}  {:24}  ceremony {} by {}: {phase}; file {}\n",
        "-",
        printable(&line.time),
        printable(&line.act),
        printable(&line.participants.join(", ")),
        printable(&line.file_sha256),
    )
}

/// A CRL.
pub(super) fn crl_row(crl: &CrlLine, outcome: &str) -> String {
    format!(
        "{:>9}  {:24}  {:32}  {:24}  {}, {} entries, {outcome}\n",
        crl.index,
        printable(&crl.time),
        format!("CRL {}", crl.number),
        printable(&crl.next_update),
        printable(&crl.caller.identity),
        crl.entries,
    )
}

/// A change of the set of revoked certificates.
pub(super) fn revocation_row(line: &RevocationLine) -> String {
    let action = match line.action {
        RevocationAction::Released => "released",
        RevocationAction::Revoked => "revoked",
        RevocationAction::Unblocked => "unblocked",
    };
    let block = match (line.action, line.block) {
        (RevocationAction::Revoked, true) => ", and no further ones are issued to it",
        _ => "",
    };
    format!(
        "{:>9}  {:24}  {action} by {}: {} certificates of {} ({}){block}\n",
        "-",
        printable(&line.time),
        printable(&line.by),
        line.serials.len(),
        printable(&line.selector),
        printable(&line.reason),
    )
}

/// How an intent ended.
pub(super) fn outcome(line: &OutcomeLine) -> String {
    match line.outcome {
        OutcomeKind::Failed => format!("failed: {}", printable(line.reason.as_deref().unwrap_or_default())),
        OutcomeKind::Issued => format!("issued by {}", printable(line.token.as_deref().unwrap_or_default())),
    }
}

/// A text from the log without control characters: the log may have been tampered with.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
