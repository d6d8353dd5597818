//! Text that people take for PEM.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use super::{
    Der, Found, Wanted,
    command::{in_place, in_place_extended, pattern, quoted, replaced, replaced_secretly},
    contains, der,
};
use crate::pem;

/// A predicate of the file, and the remedy.
type Kind = (String, String);

/// With or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What a text is that has no PEM block, or a broken one.
pub(super) fn text(bytes: &[u8], file: &str, wanted: Wanted) -> Option<Found> {
    if wanted == Wanted::Text {
        return None;
    }
    let cleaned = pem::cleaned(bytes);
    let text = cleaned.trim_ascii_start();
    let name = file.rsplit('/').next().unwrap_or(file);
    let quoted = &quoted(file);
    let (what, remedy) =
        encoded(text, quoted, wanted).or_else(|| foreign(text, name, quoted, wanted)).or_else(|| {
            if contains(text, b"-----BEGIN ") {
                broken(text, quoted, wanted)
            } else {
                without_blocks(text, quoted, wanted)
            }
        })?;
    Some(Found { what, remedy })
}

fn output(wanted: Wanted, quoted: &str, command: &str) -> String {
    match wanted {
        Wanted::PrivateKey => replaced_secretly(quoted, command),
        Wanted::Certificates | Wanted::Request | Wanted::Text => replaced(quoted, command),
    }
}

/// PEM or DER in base64 or hexadecimal digits.
fn encoded(text: &[u8], quoted: &str, wanted: Wanted) -> Option<Kind> {
    // A value in a manifest: `ca-cert.pem: LS0t...`.
    let after_key = text.iter().position(|byte| matches!(byte, b':' | b'=')).and_then(|at| {
        let (key, rest) = text.split_at_checked(at)?;
        let value = rest.get(1..)?;
        (is_key(key) && decoded(value).is_some()).then_some(value)
    });
    let (value, is_value) = (after_key.unwrap_or(text), after_key.is_some());
    // Hexadecimal digits are in the alphabet of base64, too.
    let (plain, command) = match hexadecimal(text) {
        Some(plain) => (plain, format!("xxd -r -p {quoted}")),
        None => {
            let (plain, decode) = decoded(value)?;
            let command = match is_value {
                true => format!("sed 's/^[^:=]*[:=] *//' {quoted} | {}", decode.replace(" FILE", "")),
                false => decode.replace("FILE", quoted),
            };
            (plain, command)
        }
    };
    let form = if command.starts_with("xxd") { "hexadecimal digits" } else { "base64" };
    let done = |what: String, command: &str| Some((what, output(wanted, quoted, command)));
    if contains(&pem::cleaned(&plain), b"-----BEGIN") {
        let what = match (is_value, form) {
            (true, _) => "is a line of a Kubernetes manifest, with base64 of PEM".to_owned(),
            (false, "base64") => "is base64 of PEM, as in the data of a Kubernetes Secret".to_owned(),
            (false, form) => format!("is PEM in {form}"),
        };
        return done(what, &command);
    }
    if let Some((twice, again)) = decoded(&plain)
        && contains(&twice, b"-----BEGIN")
    {
        return done("is PEM in base64 twice".to_owned(), &format!("{command} | {}", again.replace(" FILE", "")));
    }
    if plain.starts_with(&[0x1f, 0x8b]) {
        return done(format!("is {form} of a gzip file"), &format!("{command} | gzip -d"));
    }
    let kind = der(&plain)?;
    let what = format!("is {kind} in {form} without BEGIN and END lines");
    let convert = match (wanted, kind) {
        (Wanted::Certificates, Der::Certificate) => "openssl x509 -inform DER",
        (Wanted::Certificates, Der::Pkcs7) => "openssl pkcs7 -inform DER -print_certs",
        (Wanted::Certificates, Der::Pkcs12) => "openssl pkcs12 -nokeys",
        (Wanted::PrivateKey, Der::PrivateKey) => "openssl pkey -inform DER",
        (Wanted::PrivateKey, Der::Pkcs12) => "openssl pkcs12 -nocerts",
        (Wanted::Request, Der::Request) => "openssl req -inform DER",
        _ => return Some((what, kind.to(wanted, quoted))),
    };
    done(what, &format!("{command} | {convert}"))
}

fn is_key(text: &[u8]) -> bool {
    (1..64).contains(&text.len()) && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-\"".contains(byte))
}

/// What a text of nothing but base64 says, and the command that decodes `FILE`.
fn decoded(text: &[u8]) -> Option<(Zeroizing<Vec<u8>>, String)> {
    const QUOTES: &[u8] = b"\"',;";
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut has_quotes, mut has_other_alphabet) = (false, false);
    for byte in text {
        match byte {
            b'-' => plain.push(b'+'),
            b'_' => plain.push(b'/'),
            byte if is_base64(byte) => plain.push(*byte),
            byte if QUOTES.contains(byte) => has_quotes = true,
            byte if byte.is_ascii_whitespace() => {}
            _ => return None,
        }
        has_other_alphabet |= matches!(byte, b'-' | b'_');
    }
    if plain.len() < 16 {
        return None;
    }
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plain.len())]);
    let length = BASE64.decode_slice(&*plain, &mut bytes).ok()?;
    bytes.truncate(length);
    let mut steps = Vec::new();
    let mut from = " FILE";
    if has_other_alphabet {
        steps.push("tr -- '-_' '+/' < FILE".to_owned());
        from = "";
    }
    if has_quotes {
        steps.push(format!("tr -d '\"'\"'\"',;'{}", if from.is_empty() { "" } else { " < FILE" }));
        from = "";
    }
    let missing = plain.len().wrapping_neg() % 4;
    if missing > 0 {
        let padding = "=".repeat(missing);
        steps.push(format!("{{ tr -d '\\n'{}; echo '{padding}'; }}", if from.is_empty() { "" } else { " < FILE" }));
        from = "";
    }
    // Marks before it are skipped.
    steps.push(format!("base64 -di{from}"));
    Some((bytes, steps.join(" | ")))
}

/// What a dump of hexadecimal digits says, such as that of `xxd -p`.
fn hexadecimal(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    let mut high = None;
    for byte in text.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        let digit = u8::try_from(char::from(*byte).to_digit(16)?).ok()?;
        match high.take() {
            Some(high) => bytes.push(high << 4 | digit),
            None => high = Some(digit),
        }
    }
    (high.is_none() && bytes.len() >= 32).then_some(bytes)
}

/// Text of other programs.
fn foreign(text: &[u8], name: &str, quoted: &str, wanted: Wanted) -> Option<Kind> {
    let starts = |with: &str| text.get(..with.len()).is_some_and(|head| head.eq_ignore_ascii_case(with.as_bytes()));
    let has = |part: &str| contains(text, part.as_bytes());
    let has_line = |with: &str| starts(with) || has(&format!("\n{with}"));
    let into = |command: &str| output(wanted, quoted, command);
    let (what, remedy) = if has_line("apiVersion:") && has_line("kind:") {
        ("is a Kubernetes manifest", into_manifest(text, name, quoted, wanted))
    } else if starts("{") && has("\"apiVersion\"") && has("\"kind\"") {
        ("is a Kubernetes manifest", into(&format!("jq -r '.data[\"{}\"]' {quoted} | base64 -d", pattern_free(name))))
    } else if has("ENC[AES256_GCM,") {
        ("is encrypted by SOPS", into(&format!("sops -d {quoted}")))
    } else if starts("{") && has("\"kty\"") {
        ("is a JSON Web Key", "export the key as PEM".to_owned())
    } else if starts("{{") || starts("${") || starts("$(") || starts("<%") {
        ("is a placeholder of a template, which nothing was put in place of", "fill the template in".to_owned())
    } else if starts("{") || starts("[") {
        ("is JSON", format!("give the PEM text in it: jq -r .FIELD {quoted}"))
    } else if starts("<") && !starts("<<<<<<<") {
        let remedy =
            "it is what a server answered in place of the file, often a login or error page: download it again";
        (if has("<html") || has("<HTML") { "is an HTML page" } else { "is XML or an HTML page" }, remedy.to_owned())
    } else if starts("$ANSIBLE_VAULT;") {
        ("is encrypted by Ansible Vault", format!("decrypt it: ansible-vault decrypt {quoted}"))
    } else if has_line("-----BEGIN PGP MESSAGE-----") {
        ("is encrypted by OpenPGP", into(&format!("gpg -d {quoted}")))
    } else if starts("age-encryption.org/") || has_line("-----BEGIN AGE ENCRYPTED FILE-----") {
        ("is encrypted by age", into(&format!("age -d {quoted}")))
    } else if starts("version https://git-lfs.") {
        ("is a pointer of Git LFS, not the file", format!("git lfs pull --include {quoted}"))
    } else if starts("PuTTY-User-Key-File") {
        ("is a PuTTY key, an SSH key", "give the CA's own file in PEM".to_owned())
    } else if starts("ssh-") || starts("ecdsa-sha2-") || starts("---- BEGIN SSH2") {
        ("is an OpenSSH public key", "give the CA's own file in PEM".to_owned())
    } else {
        return None;
    };
    Some((what.to_owned(), remedy))
}

/// A file's name within a filter of jq.
fn pattern_free(name: &str) -> String {
    name.chars().filter(|letter| letter.is_ascii_alphanumeric() || "._-".contains(*letter)).collect()
}

/// The command that takes the value of the file's own name out of a manifest.
fn into_manifest(text: &[u8], name: &str, quoted: &str, wanted: Wanted) -> String {
    let value = text
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.trim_ascii().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b":")));
    match value.map(<[u8]>::trim_ascii) {
        Some(value) if decoded(value).is_some() => {
            let command = format!("sed -n 's/^ *{}: *//p' {quoted} | base64 -di", pattern(name));
            output(wanted, quoted, &command)
        }
        Some(_) | None => {
            // The values of a ConfigMap, and of stringData, are text.
            let (kind, decode) = match contains(text, b"kind: ConfigMap") {
                true => ("configmap", ""),
                false => ("secret", " | base64 -d"),
            };
            let key = name.replace('.', "\\.");
            format!(
                "give the value in it, not the manifest: kubectl get {kind} NAME -n NAMESPACE -o \
                 jsonpath='{{.data.{key}}}'{decode}"
            )
        }
    }
}

/// PEM with its lines lost or changed.
fn broken(text: &[u8], quoted: &str, wanted: Wanted) -> Option<Kind> {
    if ["\\n-----END", "-----\\n", "-----\\r\\n"].into_iter().any(|part| contains(text, part.as_bytes())) {
        let script = r#"s/\\\\*r//g; s/\\\\*n/\n/g; s/^[[:space:]]*["'"'"']//; s/["'"'"'],*$//"#;
        return Some(("has \\n as two characters in place of line ends".to_owned(), in_place(quoted, script)));
    }
    if contains(text, b"----------BEGIN ") {
        let what = "has the END line of a block and the BEGIN line of the next on one line";
        return Some((what.to_owned(), in_place(quoted, r"s/----------BEGIN /-----\n-----BEGIN /g")));
    }
    let lines = || text.split(|byte| *byte == b'\n');
    if lines().any(|line| contains(line, b"-----BEGIN ") && contains(line, b"-----END ")) {
        let blocks = r"s/ *(-----BEGIN [A-Z0-9 ]+-----) */\n\1\n/g; s/ *(-----END [A-Z0-9 ]+-----) */\n\1\n/g";
        let command = format!(r"sed -E '{blocks}' {quoted} | sed -E '/-----/!s/[ \r]+/\n/g' | sed '/^$/d'");
        return Some(("is PEM folded into one line".to_owned(), output(wanted, quoted, &command)));
    }
    if has_other_dashes(text) {
        return Some(dashes(text, quoted));
    }
    let is_at_start = |line: &&[u8]| line.starts_with(b"-----BEGIN ") || line.starts_with(b"-----END ");
    let has_edge = |line: &&[u8]| contains(line, b"-----BEGIN ") || contains(line, b"-----END ");
    let has_more = |line: &[u8]| !is_at_start(&line) || !line.trim_ascii_end().ends_with(b"-----");
    if lines().filter(has_edge).any(has_more) {
        let what = "has BEGIN or END lines with something else on them: indentation, quotes or a name";
        let script = r"s/^[[:space:]>|]*//; s/^.*\(-----BEGIN \)/\1/; s/\(-----END [A-Z0-9 ]*-----\).*$/\1/";
        return Some((what.to_owned(), in_place(quoted, script)));
    }
    None
}

/// Whether a BEGIN or END line has hyphens other than five, or none, or is not in capitals.
fn has_other_dashes(text: &[u8]) -> bool {
    let is_other = |line: &[u8]| {
        let line = line.trim_ascii();
        let is_dash = |byte: &u8| *byte == b'-' || !byte.is_ascii();
        let bare = match (line.iter().position(|byte| !is_dash(byte)), line.iter().rposition(|byte| !is_dash(byte))) {
            (Some(from), Some(to)) if from >= 2 && to.saturating_add(2) < line.len() => line.get(from..=to),
            _ => None,
        };
        let Some(bare) = bare else { return false };
        let words = bare.trim_ascii();
        let is_edge = ["BEGIN ", "END "]
            .iter()
            .any(|edge| words.get(..edge.len()).is_some_and(|start| start.eq_ignore_ascii_case(edge.as_bytes())));
        let expected = [b"-----", words, b"-----"].concat();
        is_edge && (line != expected || words.iter().any(u8::is_ascii_lowercase))
    };
    text.split(|byte| *byte == b'\n').any(is_other)
}

fn dashes(text: &[u8], quoted: &str) -> Kind {
    let what = if contains(text, &[0xe2, 0x80, 0x93]) || contains(text, &[0xe2, 0x80, 0x94]) {
        "has typographic dashes in place of hyphens in its BEGIN line"
    } else {
        "has BEGIN or END lines without five hyphens on both sides, or not in capitals"
    };
    // U+2010 to U+2015, and the minus sign.
    let dash = r"(-|\xE2\x80[\x90-\x95]|\xE2\x88\x92)+";
    let label = "(BEGIN|END) ([A-Z0-9 ]*[A-Z0-9])";
    let script = format!(r"s/^[[:space:]]*{dash} *{label} *{dash}[[:space:]]*$/-----\U\2 \3-----/I");
    (what.to_owned(), in_place_extended(quoted, &script))
}

fn without_blocks(text: &[u8], quoted: &str, wanted: Wanted) -> Option<Kind> {
    let has = |part: &str| contains(text, part.as_bytes());
    if has_other_dashes(text) {
        return Some(dashes(text, quoted));
    }
    let (what, remedy) = if has("-----BEGIN%20") || has("-----BEGIN+") {
        let command = format!("printf '%b' \"$(sed 's/%/\\\\x/g' {quoted})\"");
        return Some(("is percent-encoded, as in a URL".to_owned(), output(wanted, quoted, &command)));
    } else if has("-----END ") {
        ("has an END line without its BEGIN line: the beginning is cut off", "copy it again, as a whole")
    } else if has("Data:") && has("Signature Algorithm:") {
        let remedy = "export it again without -noout, or as PEM";
        ("is OpenSSL's description of a certificate or request, without itself", remedy)
    } else {
        return None;
    };
    Some((what.to_owned(), remedy.to_owned()))
}
