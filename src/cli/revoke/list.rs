//! The text of `revoke --list`.

use std::{fmt::Write, time::SystemTime};

use crate::revocation::state::{Document, time};
use audit_log::timestamp;

/// What is revoked and blocked.
pub(super) fn text(document: &Document, now: SystemTime) -> String {
    let at = |seconds: u64| timestamp::format(time(seconds));
    let mut text = format!("revision {}\n", document.revision);
    // Writing to a String cannot fail.
    let _ = match &document.crl {
        Some(crl) => writeln!(
            text,
            "last CRL number {}, reserved at {}, valid until {}",
            crl.number,
            at(crl.at),
            at(crl.next_update)
        ),
        None => writeln!(text, "no CRL yet"),
    };
    for block in document.blocks.iter().filter(|block| block.holds(now)) {
        let until = block.until.map_or("until it is lifted".to_owned(), |until| format!("until {}", at(until)));
        let _ =
            writeln!(text, "block {}: {}, since {} by {}, {until}", block.id, block.selector, at(block.at), block.by);
    }
    for (ca, certificates) in &document.revoked {
        let _ = writeln!(text, "CA key {ca}: {} revoked", certificates.len());
        for revoked in certificates {
            let _ = writeln!(
                text,
                "  {}  {}  since {}, expires {}",
                revoked.serial,
                revoked.reason,
                at(revoked.at),
                at(revoked.expires)
            );
        }
    }
    text
}
