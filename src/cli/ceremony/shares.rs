//! Splits a PIN into shares of which any k restore it (Shamir's secret sharing), and assembles it again.
//!
//! Fewer than k shares say nothing about the PIN. What is shared is 16 random bytes, the PIN's length and the PIN, padded. Each
//! share carries a digest of all that, by which a wrong assembly is recognized before any token sees the PIN; because of the
//! random bytes, nobody can find the PIN by trying digests. A checksum over each share catches typing errors.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context, bail};
use blahaj::{Share, Sharks};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use audit_log::tree::sha256;
use process::output::{self, Output};

/// The version of the format, the first byte of each share.
const VERSION: u8 = 1;
/// Random bytes in front of the PIN.
const NONCE: usize = 16;
/// PINs are padded to a multiple of this, so that a share does not tell the length.
const BLOCK: usize = 32;
/// Length of the digest of what is shared.
const DIGEST: usize = 8;
/// Length of the checksum of a share.
const CHECKSUM: usize = 4;
/// Version, threshold, number of the share, digest.
const HEADER: usize = 3 + DIGEST;
/// Separates this digest from all others.
const DOMAIN: &[u8] = b"istio-hsm-ca shared PIN v1\0";
/// Length of the PIN in bytes, as two bytes.
const LENGTH: usize = 2;

/// Most bytes of a file with a share: one of a PIN of 1024 bytes has 2,700.
const SHARE_FILE_MAX: usize = 16 * 1024;

/// One share, as its holder keeps it.
#[derive(Clone)]
pub(in crate::cli) struct PinShare {
    bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for PinShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinShare").field("number", &self.number()).finish_non_exhaustive()
    }
}

impl PinShare {
    /// Reads a share from a text: hexadecimal digits, between which blanks and hyphens do not matter; lines that begin with
    /// `#` are left out.
    ///
    /// # Errors
    /// If it is not a share, or its checksum shows a typing error.
    pub(in crate::cli) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
        let mut high = None;
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for digit in lines.flat_map(str::chars).filter(|c| !c.is_whitespace() && *c != '-') {
            let Some(digit) = digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()) else {
                bail!("a share of a PIN consists of hexadecimal digits; type it as it is printed");
            };
            match high.take() {
                None => high = Some(digit),
                Some(high) => bytes.push(high << 4 | digit),
            }
        }
        let shared = bytes.len().checked_sub(HEADER + CHECKSUM).filter(|shared| *shared >= NONCE + BLOCK);
        if high.is_some() || shared.is_none() {
            bail!("the share of the PIN is not complete; type all of it");
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if sha256(&[content]).get(..CHECKSUM) != Some(checksum) {
            bail!("the share of the PIN has a typing error: its checksum is wrong; compare it with what is printed");
        }
        if bytes.first() != Some(&VERSION) {
            bail!("the share of the PIN is of another version of this program; use that version");
        }
        Ok(Self { bytes })
    }

    /// The share in groups of four hexadecimal digits.
    pub(in crate::cli) fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.bytes.len() * 3));
        for (at, byte) in self.bytes.iter().enumerate() {
            if at > 0 && at % 2 == 0 {
                text.push('-');
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// How many shares restore the PIN.
    pub(in crate::cli) fn threshold(&self) -> u8 {
        self.bytes.get(1).copied().unwrap_or_default()
    }

    /// The number of the share, from 1.
    pub(in crate::cli) fn number(&self) -> u8 {
        self.bytes.get(2).copied().unwrap_or_default()
    }

    fn digest(&self) -> &[u8] {
        self.bytes.get(3..HEADER).unwrap_or_default()
    }

    fn point(&self) -> Result<Share, &'static str> {
        let end = self.bytes.len().saturating_sub(CHECKSUM);
        let point = [&[self.number()], self.bytes.get(HEADER..end).unwrap_or_default()].concat();
        Share::try_from(Zeroizing::new(point).as_slice())
    }
}

/// Splits a PIN into `count` shares, of which `threshold` restore it.
///
/// # Errors
/// If the numbers do not fit, or the PIN is too long.
pub(in crate::cli) fn split(pin: &SecretString, threshold: u8, count: u8) -> anyhow::Result<Vec<PinShare>> {
    if threshold < 2 || count < threshold {
        bail!("a PIN is split into at least two shares, of which at least two are needed to restore it");
    }
    let pin = pin.expose_secret().as_bytes();
    let Ok(length) = u16::try_from(pin.len()) else { bail!("the PIN is too long to be split") };
    let padded = (LENGTH + pin.len()).next_multiple_of(BLOCK);
    let mut shared = Zeroizing::new(Vec::with_capacity(NONCE + padded));
    shared.resize(NONCE, 0);
    aws_lc_rs::rand::fill(&mut shared).map_err(|_| anyhow::anyhow!("no random numbers are available"))?;
    shared.extend_from_slice(&length.to_be_bytes());
    shared.extend_from_slice(pin);
    shared.resize(NONCE + padded, 0);
    let digest = digest(&shared);
    let shares = (1..=count).zip(Sharks(threshold).dealer(&shared)).map(|(number, share)| {
        let point = Zeroizing::new(Vec::from(&share));
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER + point.len() + CHECKSUM));
        bytes.extend_from_slice(&[VERSION, threshold, number]);
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(point.get(1..).unwrap_or_default());
        let checksum = sha256(&[&bytes]);
        bytes.extend_from_slice(checksum.get(..CHECKSUM).unwrap_or_default());
        PinShare { bytes }
    });
    Ok(shares.collect())
}

/// Restores the PIN, and proves by the digest in the shares that it is the one that was split.
///
/// # Errors
/// If the shares are of different PINs, too few, or do not restore the PIN that was split.
pub(in crate::cli) fn assemble(shares: &[PinShare]) -> anyhow::Result<SecretString> {
    let Some(first) = shares.first() else { bail!("there is no share of the PIN") };
    let mut points = Vec::new();
    for (at, share) in shares.iter().enumerate() {
        let number = share.number();
        if share.digest() != first.digest() || share.threshold() != first.threshold() {
            bail!(
                "share {number} belongs to another splitting of a PIN than share {}; use those of one",
                first.number()
            );
        }
        if shares.iter().take(at).any(|other| other.number() == number) {
            bail!("share {number} is there twice; give {} different ones", first.threshold());
        }
        points.push(share.point().map_err(anyhow::Error::msg)?);
    }
    if points.len() < usize::from(first.threshold()) {
        bail!("{} shares are needed to restore the PIN, and {} were given", first.threshold(), points.len());
    }
    let sharks = Sharks(first.threshold());
    let restored = sharks.recover(&points).map(Zeroizing::new);
    let restored = restored.map_err(|error| anyhow::anyhow!("the shares do not fit together: {error}"))?;
    let wrong = "the shares do not restore the PIN that was split: one of them was changed; no PIN was tried";
    if digest(&restored) != first.digest() {
        bail!(wrong);
    }
    let content = restored.get(NONCE..).and_then(|rest| rest.split_first_chunk::<LENGTH>());
    let pin = content.and_then(|(length, rest)| rest.get(..usize::from(u16::from_be_bytes(*length))));
    let Some(Ok(pin)) = pin.map(std::str::from_utf8) else { bail!(wrong) };
    Ok(SecretString::from(Box::<str>::from(pin)))
}

/// Reads the shares in files.
///
/// # Errors
/// If a file cannot be read or holds no share.
pub(in crate::cli) fn read_files(files: &[PathBuf]) -> anyhow::Result<Vec<PinShare>> {
    let read = |path: &PathBuf| {
        let name = path.display();
        let content = process::files::read_input(path, SHARE_FILE_MAX).map(Zeroizing::new);
        let content = content.with_context(|| format!("{name}: the share cannot be read"))?;
        let text = std::str::from_utf8(&content).ok().with_context(|| format!("{name}: it is not a text"))?;
        PinShare::parse(text).with_context(|| name.to_string())
    };
    files.iter().map(read).collect()
}

/// Asks for shares at the terminal until they suffice; nothing that is typed is shown. Anything else is asked for again.
///
/// # Errors
/// If there is no terminal.
pub(in crate::cli) fn ask() -> anyhow::Result<Vec<PinShare>> {
    if !output::interactive() {
        bail!("--pin-shares asks for the shares at a terminal, and there is none; give files with --pin-share");
    }
    let mut shares: Vec<PinShare> = Vec::new();
    loop {
        let needed = shares.first().map_or("?".to_owned(), |first| first.threshold().to_string());
        let prompt = format!("Share {} of {needed} of the PIN: ", shares.len() + 1);
        let typed = Zeroizing::new(rpassword::prompt_password(prompt)?);
        match PinShare::parse(&typed) {
            Ok(share) if shares.iter().any(|other| other.number() == share.number()) => {
                Output::Text
                    .warn(&format!("share {} was typed already; the next holder types the next one", share.number()));
            }
            Ok(share) => shares.push(share),
            Err(error) => Output::Text.warn(&error.to_string()),
        }
        if shares.first().is_some_and(|first| shares.len() >= usize::from(first.threshold())) {
            return Ok(shares);
        }
    }
}

fn digest(shared: &[u8]) -> Vec<u8> {
    sha256(&[DOMAIN, shared]).get(..DIGEST).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Vec<PinShare> {
        split(&SecretString::from("1234-user"), 3, 5).unwrap()
    }

    #[test]
    fn any_three_of_five_shares_restore_the_pin() {
        let shares = shares();
        for chosen in [[0, 1, 2], [4, 2, 0], [1, 3, 4]] {
            let texts = chosen.map(|at| shares[at].to_text());
            let chosen: Vec<_> = texts.iter().map(|text| PinShare::parse(text).unwrap()).collect();
            assert_eq!(assemble(&chosen).unwrap().expose_secret(), "1234-user");
        }
        assert_eq!(assemble(&shares).unwrap().expose_secret(), "1234-user");
    }

    #[test]
    fn length_of_the_pin_is_not_in_the_share() {
        let lengths = ["1", "0123456789012345678901234567"]
            .map(|pin| split(&SecretString::from(pin), 2, 2).unwrap()[0].bytes.len());
        assert_eq!(lengths[0], lengths[1]);
        let long = "x".repeat(1000);
        let shares = split(&SecretString::from(long.as_str()), 2, 2).unwrap();
        assert_eq!(assemble(&shares).unwrap().expose_secret(), long);
    }

    #[test]
    fn wrong_shares_restore_nothing() {
        let shares = shares();
        let refused = |chosen: &[PinShare], expected: &str| {
            let error = assemble(chosen).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(&shares[..2], "3 shares are needed to restore the PIN, and 2 were given");
        refused(&[shares[0].clone(), shares[1].clone(), shares[0].clone()], "share 1 is there twice");
        refused(&[shares[0].clone(), shares[1].clone(), self::shares()[2].clone()], "belongs to another splitting");
        refused(&[], "there is no share");
        // Changed by somebody who makes the checksum fit.
        let mut forged = shares[2].clone();
        forged.bytes[HEADER] ^= 1;
        let end = forged.bytes.len() - CHECKSUM;
        let checksum = sha256(&[&forged.bytes[..end]]);
        forged.bytes[end..].copy_from_slice(&checksum[..CHECKSUM]);
        let forged = PinShare::parse(&forged.to_text()).unwrap();
        refused(&[shares[0].clone(), shares[1].clone(), forged], "no PIN was tried");
    }

    #[test]
    fn every_typing_error_is_found() {
        let text = shares()[0].to_text();
        let spaced = format!("# of the token\n  {}\n", text.to_uppercase().replace('-', " "));
        assert_eq!(PinShare::parse(&spaced).unwrap().number(), 1);
        for (at, digit) in text.char_indices().filter(|(_, c)| *c != '-') {
            let mut wrong = text.to_string();
            wrong.replace_range(at..=at, if digit == '0' { "1" } else { "0" });
            assert!(PinShare::parse(&wrong).unwrap_err().to_string().contains("typing error"));
        }
        for (wrong, expected) in [("", "not complete"), ("12", "not complete"), ("hello", "hexadecimal")] {
            assert!(PinShare::parse(wrong).unwrap_err().to_string().contains(expected), "{wrong}");
        }
        assert!(PinShare::parse(&text[..text.len() - 1]).is_err());
    }

    #[test]
    fn nothing_is_split_into_less_than_two() {
        for (threshold, count) in [(1, 3), (3, 2), (0, 0)] {
            assert!(split(&SecretString::from("1234"), threshold, count).is_err(), "{threshold} of {count}");
        }
    }
}
