//! The log's tree heads: their only permitted form, and which heads may follow earlier ones.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{Refusal, Rules};

/// Maximum length of a tree head: an origin of a few hundred bytes, a number and a hash.
const MOST: usize = 1024;

/// Maximum number of lines by which a log grows from one signed checkpoint to the next: five days without a checkpoint at
/// 10,000 lines a second. A daemon creates one every 10 seconds.
const GROWTH_MOST: u64 = 1 << 32;

/// Maximum size of the first checkpoint of a log that this host signs: 900 years at 10,000 lines a second. No real log is
/// larger, and one that is refused here would have no remedy.
const FIRST_MOST: u64 = 1 << 48;

/// A tree head, the text of a C2SP tlog-checkpoint without extension lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint<'a> {
    origin: &'a str,
    size: u64,
    /// SHA-256 in Base64.
    root: &'a str,
}

impl<'a> Checkpoint<'a> {
    /// Parses the only encoding of these three values.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Refusal> {
        let read = || {
            let text = std::str::from_utf8(message).ok().filter(|text| text.len() <= MOST)?;
            let (origin, rest) = text.split_once('\n')?;
            let (number, rest) = rest.split_once('\n')?;
            let root = rest.strip_suffix('\n')?;
            let size: u64 = number.parse().ok()?;
            let hash = BASE64_STANDARD.decode(root).ok()?;
            let exact = !origin.is_empty() && size.to_string() == number && hash.len() == 32;
            exact.then_some(Self { origin, size, root })
        };
        read().ok_or(Refusal::Checkpoint)
    }
}

/// The last signed head of each log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SignedHeads(BTreeMap<String, (u64, String)>);

impl SignedHeads {
    /// The heads with this one replacing its predecessor. `file` stores them, for the remedies.
    pub(crate) fn followed_by(&self, checkpoint: &Checkpoint<'_>, file: Option<&Path>) -> Result<Self, Refusal> {
        let Checkpoint { origin, size, root } = *checkpoint;
        let kept = || KeptHead { origin: origin.to_owned(), file: file.map(Path::to_owned) };
        match self.0.get(origin) {
            Some((signed, _)) if size < *signed => {
                return Err(Refusal::Smaller { kept: kept(), size, signed: *signed });
            }
            Some((signed, other)) if size == *signed && root != other => {
                return Err(Refusal::OtherRoot { kept: kept(), size });
            }
            Some((signed, _)) if size - signed > GROWTH_MOST => {
                return Err(Refusal::Growth { kept: kept(), size, signed: *signed, most: GROWTH_MOST });
            }
            None if size > FIRST_MOST => {
                return Err(Refusal::First { origin: origin.to_owned(), size, most: FIRST_MOST });
            }
            Some(_) | None => {}
        }
        let mut heads = self.clone();
        heads.0.insert(origin.to_owned(), (size, root.to_owned()));
        Ok(heads)
    }

    /// Parses the output of [`SignedHeads::text`].
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let mut heads = BTreeMap::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (at, _) = rest.match_indices('\n').nth(2).ok_or(Refusal::Checkpoint)?;
            let (head, others) = rest.split_at(at + 1);
            let Checkpoint { origin, size, root } = Checkpoint::parse(head.as_bytes())?;
            heads.insert(origin.to_owned(), (size, root.to_owned()));
            rest = others;
        }
        Ok(Self(heads))
    }

    /// The checkpoints, one after the other.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|(origin, (size, root))| format!("{origin}\n{size}\n{root}\n")).collect()
    }
}

/// Where the last signed head of a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptHead {
    pub(crate) origin: String,
    file: Option<PathBuf>,
}

impl KeptHead {
    /// How the host's operator makes the host forget the head, after finding it false.
    pub(super) fn remedy(&self) -> String {
        let Some(file) = &self.file else {
            return "restart the token host, which keeps checkpoints until it ends".to_owned();
        };
        format!(
            "remove the three lines of {:?} (origin, size and root) from {} while the token host is stopped",
            self.origin,
            file.display()
        )
    }
}

impl Rules {
    /// Checks the form of a checkpoint, and that its log is known to the host.
    pub(crate) fn checkpoint<'a>(&self, message: &'a [u8]) -> Result<Checkpoint<'a>, Refusal> {
        let checkpoint = Checkpoint::parse(message)?;
        if self.log_origins.iter().any(|listed| listed == checkpoint.origin) {
            return Ok(checkpoint);
        }
        Err(Refusal::Origin { found: checkpoint.origin.to_owned(), listed: format!("{:?}", self.log_origins) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    const OTHER: &str = "57DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    fn head(origin: &str, size: u64, root: &str) -> String {
        format!("{origin}\n{size}\n{root}\n")
    }

    #[test]
    fn only_the_exact_form_is_a_checkpoint() {
        for size in [0, 42, u64::MAX] {
            Checkpoint::parse(head("example.org/log", size, ROOT).as_bytes()).unwrap();
        }
        let good = head("example.org/log", 42, ROOT);
        let bad: [Vec<u8>; 16] = [
            b"".to_vec(),
            b"\x30\x03\x02\x01\x00".to_vec(),
            b"example.org/log\n".to_vec(),
            good.trim_end().into(),
            format!("{good}\n").into(),
            format!("{good}extension\n").into(),
            good.replace("\n42", "\n042").into(),
            good.replace("\n42", "\n+42").into(),
            good.replace("\n42", "\n-1").into(),
            good.replace("\n42", "\n42 ").into(),
            good.replace("\n42", "\n18446744073709551616").into(),
            good.replace('=', "").into(),
            // Not the canonical Base64 of the hash: unused bits are set.
            good.replace("FU=", "FV=").into(),
            good.replace("example.org/log", "").into(),
            good.replace('\n', "\r\n").into(),
            [b"\xff", good.as_bytes()].concat(),
        ];
        for message in bad {
            let text = String::from_utf8_lossy(&message);
            assert_eq!(Checkpoint::parse(&message), Err(Refusal::Checkpoint), "{text:?}");
        }
        assert!(Checkpoint::parse(head(&"o".repeat(2000), 1, ROOT).as_bytes()).is_err());
    }

    #[test]
    fn heads_of_one_log_only_grow_and_keep_their_root() {
        let (mut heads, cases) = (
            SignedHeads::default(),
            [
                (("a", 5, ROOT), true),
                (("a", 5, ROOT), true),
                (("a", 5, OTHER), false),
                (("a", 4, ROOT), false),
                (("a", 0, ROOT), false),
                (("b", 1, OTHER), true),
                (("a", 6, OTHER), true),
                (("a", 5, ROOT), false),
                (("b", 1, ROOT), false),
            ],
        );
        for ((origin, size, root), good) in cases {
            let text = head(origin, size, root);
            match heads.followed_by(&Checkpoint::parse(text.as_bytes()).unwrap(), None) {
                Ok(next) if good => heads = next,
                Err(_) if !good => {}
                other => panic!("{text:?}: {other:?}"),
            }
            assert_eq!(SignedHeads::parse(&heads.text()), Ok(heads.clone()));
        }
        assert_eq!(heads.text(), head("a", 6, OTHER) + &head("b", 1, OTHER));
        for bad in ["a", "a\n6\n", "a\n6\nroot\n", "\n", &format!("{}\n", heads.text())] {
            assert!(SignedHeads::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn log_grows_by_no_more_than_a_log_can() {
        let follow = |heads: &SignedHeads, size| {
            heads.followed_by(&Checkpoint::parse(head("a", size, ROOT).as_bytes()).unwrap(), None)
        };
        let none = SignedHeads::default();
        for size in [FIRST_MOST + 1, u64::MAX] {
            assert!(matches!(follow(&none, size), Err(Refusal::First { .. })), "{size}");
        }
        for signed in [0, 7, FIRST_MOST] {
            let heads = follow(&none, signed).unwrap();
            follow(&heads, signed + GROWTH_MOST).unwrap();
            for size in [signed + GROWTH_MOST + 1, u64::MAX] {
                assert!(matches!(follow(&heads, size), Err(Refusal::Growth { .. })), "{signed} {size}");
            }
        }
        // A file of an earlier release may have any size.
        let heads = SignedHeads::parse(&head("a", u64::MAX, ROOT)).unwrap();
        follow(&heads, u64::MAX).unwrap();
        assert!(matches!(follow(&heads, 8), Err(Refusal::Smaller { signed: u64::MAX, .. })));
    }
}
