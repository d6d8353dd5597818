//! Commands of a shell that put a file right. File names are quoted already.

/// The name of a file as one word of a shell.
pub(super) fn quoted(file: &str) -> String {
    if file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte)) && !file.is_empty() {
        return file.to_owned();
    }
    format!("'{}'", file.replace('\'', r"'\''"))
}

/// Edits the file, byte by byte: it need not be UTF-8.
pub(super) fn in_place(quoted: &str, script: &str) -> String {
    format!("LC_ALL=C sed -i '{script}' {quoted}")
}

/// The same with extended regular expressions.
pub(super) fn in_place_extended(quoted: &str, script: &str) -> String {
    format!("LC_ALL=C sed -i -E '{script}' {quoted}")
}

/// Puts the output of a command in place of the file.
pub(super) fn replaced(quoted: &str, command: &str) -> String {
    format!("{command} > {quoted}.new && mv {quoted}.new {quoted}")
}

/// The same for a private key.
pub(super) fn replaced_secretly(quoted: &str, command: &str) -> String {
    format!("(umask 077; {})", replaced(quoted, command))
}

/// The text as a part of a basic regular expression of sed.
pub(super) fn pattern(text: &str) -> String {
    text.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != ' ' && letter != '-', ".")
}
