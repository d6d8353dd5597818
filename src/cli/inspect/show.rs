//! Text output of `inspect`.

use std::{fmt::Write, time::SystemTime};

use humantime_serde::re::humantime::parse_rfc3339;

use super::{Listing, View};
use token::{key::Flags, module::PinState};

pub(super) fn listing(listing: &Listing) -> String {
    let Listing { module, view } = listing;
    let mut text = format!("{}: {} tokens\n", module.display(), view.tokens.len());
    if let Some(library) = &view.library {
        let (name, by) = (shown(&library.description), shown(&library.manufacturer));
        let _ = writeln!(text, "  library {name} {} of {by}, PKCS#11 {}", library.version, library.cryptoki);
        malformed(&mut text, &library.malformed);
    }
    for token in &view.tokens {
        let info = &token.info;
        let _ = writeln!(
            text,
            "  {:32}  serial {:16}  {} {}  {}",
            shown(&info.label),
            shown(&info.serial),
            shown(&info.manufacturer),
            shown(&info.model),
            pin(info.pin)
        );
        malformed(&mut text, &info.malformed);
    }
    for slot in &view.unreadable {
        let _ = writeln!(text, "  slot {}: its token cannot be read: {}", slot.slot, shown(&slot.error));
    }
    text
}

/// Fields of a description that violate the standard; the others were read.
fn malformed(text: &mut String, fields: &[String]) {
    for field in fields {
        let _ = writeln!(text, "    malformed: {}", shown(field));
    }
}

pub(super) fn view(view: &View, now: SystemTime) -> String {
    let info = &view.token;
    let mut text = format!(
        "token {} (serial {}, {} {}, firmware {}); {}\n",
        shown(&info.label),
        shown(&info.serial),
        shown(&info.manufacturer),
        shown(&info.model),
        shown(&info.firmware),
        pin(info.pin)
    );
    malformed(&mut text, &info.malformed);
    let _ = match view.logged_in {
        true => writeln!(text, "private keys: {}", view.keys.len()),
        false => writeln!(text, "private keys: hidden without a login"),
    };
    for key in &view.keys {
        let pairs = match key.pairs_with_bundle {
            None => "",
            Some(true) => "  pairs with ca-cert.pem",
            Some(false) => "  not ca-cert.pem's",
        };
        let view = &key.view;
        let _ = writeln!(text, "  {:28}  {:8}  id {}{pairs}", shown(&view.label), view.kind, view.id);
        let _ = writeln!(text, "    {}", flags(&view.attributes));
        if let Some(reason) = &view.unfit {
            let _ = writeln!(text, "    unfit: {reason}");
        }
    }
    if view.unreadable > 0 {
        let _ =
            writeln!(text, "  {} private objects cannot be read; look at them with the vendor's tool", view.unreadable);
    }
    let _ = writeln!(text, "certificates: {}", view.certificates.len());
    for certificate in &view.certificates {
        let _ = match &certificate.content {
            None => writeln!(text, "  {:28}  cannot be read", shown(&certificate.label)),
            Some(content) => writeln!(
                text,
                "  {:28}  {}\n    until {} ({}){}",
                shown(&certificate.label),
                shown(&content.subject),
                content.not_after,
                left(&content.not_after, now),
                match (view.logged_in, content.key_present) {
                    (false, _) => "",
                    (true, true) => ", its key is in the token",
                    (true, false) => ", its key is NOT in the token",
                },
            ),
        };
    }
    if let Some(bundle) = &view.bundle {
        let found = match bundle.key_in_token {
            None => "not looked for without a login",
            Some(true) => "in the token, and signs",
            Some(false) => "NOT in the token, or not usable; run `import`, `adopt` or `check`",
        };
        let _ = writeln!(text, "bundle {}: the key of ca-cert.pem is {found}", bundle.directory.display());
        if let Some(by) = bundle.found_by {
            let _ = writeln!(text, "  found {}", by.in_words());
        }
        for copy in &bundle.copies {
            let _ = writeln!(text, "  the token holds a copy of it, with {}", shown(&copy.to_string()));
        }
    }
    text
}

fn flags(flags: &Flags) -> String {
    let named = [
        ("sensitive", flags.sensitive),
        ("extractable", flags.extractable),
        ("sign", flags.sign),
        ("decrypt", flags.decrypt),
        ("unwrap", flags.unwrap),
        ("derive", flags.derive),
        ("modifiable", flags.modifiable),
        ("always-authenticate", flags.always_authenticate),
        ("local", flags.local),
        ("always-sensitive", flags.always_sensitive),
        ("never-extractable", flags.never_extractable),
    ];
    let words = named.iter().filter_map(|(name, value)| match value {
        Some(true) => Some((*name).to_owned()),
        Some(false) => Some(format!("!{name}")),
        None => None,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn pin(state: PinState) -> &'static str {
    match state {
        PinState::CountLow => "a wrong PIN was tried since the last good one",
        PinState::FinalTry => "ONE PIN TRY LEFT",
        PinState::Locked => "PIN LOCKED",
        PinState::Normal => "PIN in order",
        PinState::Unset => "no user PIN set",
    }
}

/// Remaining lifetime of a certificate.
fn left(not_after: &str, now: SystemTime) -> String {
    match parse_rfc3339(not_after).map(|end| end.duration_since(now)) {
        Ok(Ok(left)) => format!("{} days left", left.as_secs() / (24 * 60 * 60)),
        Ok(Err(_)) => "EXPIRED".to_owned(),
        Err(_) => "?".to_owned(),
    }
}

/// A text from the token without control characters.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_shown_in_days() {
        let now = parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        assert_eq!(left("2026-01-11T01:00:00Z", now), "10 days left");
        assert_eq!(left("2025-12-31T23:59:59Z", now), "EXPIRED");
        assert_eq!(left("never", now), "?");
    }

    #[test]
    fn false_attributes_are_marked() {
        let some = Flags { sign: Some(true), extractable: Some(false), ..Flags::default() };
        assert_eq!(flags(&some), "!extractable sign");
    }
}
