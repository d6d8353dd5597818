//! Token URIs (RFC 7512), such as `pkcs11:token=istio-ca?module-path=/usr/lib/m.so&pin-source=file:/run/pin`.
//!
//! It selects a token and says how to reach it. `id=` and `object=` are hints where the CA's key is looked for first:
//! which key it is, is decided by a signature that verifies with the CA certificate. A PIN in the URI is refused, since
//! URIs stand in configuration files and process lists; a slot number is refused, since slots are renumbered.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

/// Maximum length of a URI. A label has at most 32 bytes, a path 4096; percent-encoding triples them.
const MAX_URI: usize = 16 * 1024;

/// CK_TOKEN_INFO's field sizes in bytes (PKCS#11 v3.1, section 3.2): longer values match no token.
const MAX_LABEL: usize = 32;
const MAX_SERIAL: usize = 16;
const MAX_MANUFACTURER: usize = 32;
const MAX_MODEL: usize = 16;
const MAX_PATH: usize = 4096;
/// Longest CKA_ID and CKA_LABEL that are looked for. The standard sets no limit; tokens do, at 255 bytes or less.
const MAX_OBJECT: usize = 255;

/// Characters that Display percent-encodes: all but the unreserved ones, and `/` in paths.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A valid token URI. Contains no secrets: the PIN is referenced by the path of its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct TokenUri {
    label: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module_path: Option<PathBuf>,
    library_parameters: Option<String>,
    pin_source: Option<PathBuf>,
}

/// Not a valid token URI. Never contains a value, which might be a misplaced PIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// An attribute occurs twice.
    #[error("the token URI has the attribute `{0}` twice; give it once")]
    Duplicate(&'static str),
    /// An attribute has a percent sign without two hex digits, a byte that must be encoded, or is not UTF-8.
    #[error(
        "the token URI's attribute `{0}` is not well encoded; write bytes outside [A-Za-z0-9-._~] as %XX, in UTF-8"
    )]
    Encoding(&'static str),
    /// It does not start with `pkcs11:`.
    #[error(
        "the token URI does not start with `pkcs11:`; write pkcs11:token=LABEL?module-path=...&pin-source=file:..."
    )]
    NotPkcs11,
    /// An attribute has no `=value`, or an empty value.
    #[error("the token URI's attribute `{0}` has no value; write {0}=VALUE or leave it out")]
    NoValue(&'static str),
    /// `type` of something other than a private key.
    #[error("the token URI's `type` is not private; leave it out, only private keys are looked for")]
    ObjectType,
    /// A path that is not absolute.
    #[error("the token URI's attribute `{0}` is not an absolute path; write it from the root")]
    RelativePath(&'static str),
    /// `pin-source` is not `file:`.
    #[error("the token URI's `pin-source` is not a file; write pin-source=file:/path/to/pin")]
    PinSource,
    /// The URI contains a PIN.
    #[error(
        "the token URI may not hold a PIN (`pin-value`); put the PIN in a file and name it by pin-source=file:/path"
    )]
    PinValue,
    /// The URI contains a slot number.
    #[error(
        "the token URI may not name a slot (`{0}`), since slots are renumbered; name the token by token= or serial="
    )]
    Slot(&'static str),
    /// A value is longer than the token's field.
    #[error("the token URI's attribute `{name}` is longer than the {max} bytes that PKCS#11 gives it")]
    TooLong {
        /// The attribute.
        name: &'static str,
        /// Its limit in bytes.
        max: usize,
    },
    /// The URI is too long.
    #[error("the token URI is longer than {MAX_URI} bytes")]
    Unbounded,
    /// An attribute is unknown at its position.
    #[error(
        "the token URI has the attribute `{0}`, which is not known at that place; before `?` stand token, serial, manufacturer, model, id, object (with `;`), after it module-path, library-parameters, pin-source (with `&`)"
    )]
    Unknown(String),
    /// There is neither a label nor a serial number.
    #[error("the token URI selects no token; name it by token=LABEL or serial=SERIAL")]
    Unselective,
}

impl TokenUri {
    /// The token's label (CK_TOKEN_INFO.label).
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// The token's serial number.
    #[must_use]
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// The token's manufacturer.
    #[must_use]
    pub fn manufacturer(&self) -> Option<&str> {
        self.manufacturer.as_deref()
    }

    /// The token's model.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The CA key's CKA_LABEL, as a hint.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The CA key's CKA_ID, as a hint.
    #[must_use]
    pub fn id(&self) -> Option<&[u8]> {
        self.id.as_deref()
    }

    /// The vendor's library.
    #[must_use]
    pub fn module_path(&self) -> Option<&Path> {
        self.module_path.as_deref()
    }

    /// String for the library at C_Initialize, in the field that the standard reserves. A non-standard attribute for
    /// NSS, which uses this name and finds its database with it.
    #[must_use]
    pub fn library_parameters(&self) -> Option<&str> {
        self.library_parameters.as_deref()
    }

    /// The file that holds the PIN.
    #[must_use]
    pub fn pin_source(&self) -> Option<&Path> {
        self.pin_source.as_deref()
    }
}

impl TryFrom<String> for TokenUri {
    type Error = UriError;

    fn try_from(text: String) -> Result<Self, UriError> {
        text.parse()
    }
}

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > MAX_URI {
            return Err(UriError::Unbounded);
        }
        let (scheme, rest) = text.split_once(':').ok_or(UriError::NotPkcs11)?;
        if !scheme.eq_ignore_ascii_case("pkcs11") {
            return Err(UriError::NotPkcs11);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self {
            label: None,
            serial: None,
            manufacturer: None,
            model: None,
            object: None,
            id: None,
            module_path: None,
            library_parameters: None,
            pin_source: None,
        };
        for attribute in path.split(';').filter(|a| !a.is_empty()) {
            uri.take_path_attribute(attribute)?;
        }
        for attribute in query.split('&').filter(|a| !a.is_empty()) {
            uri.take_query_attribute(attribute)?;
        }
        if uri.label.is_none() && uri.serial.is_none() {
            return Err(UriError::Unselective);
        }
        Ok(uri)
    }
}

impl TokenUri {
    fn take_path_attribute(&mut self, attribute: &str) -> Result<(), UriError> {
        let (name, value) = split(attribute);
        match name {
            "token" => set(&mut self.label, "token", bounded("token", value, MAX_LABEL)?),
            "serial" => set(&mut self.serial, "serial", bounded("serial", value, MAX_SERIAL)?),
            "manufacturer" => {
                set(&mut self.manufacturer, "manufacturer", bounded("manufacturer", value, MAX_MANUFACTURER)?)
            }
            "model" => set(&mut self.model, "model", bounded("model", value, MAX_MODEL)?),
            "object" => set(&mut self.object, "object", bounded("object", value, MAX_OBJECT)?),
            "id" => {
                let id = within("id", decode_bytes("id", value)?, MAX_OBJECT)?;
                set(&mut self.id, "id", id)
            }
            // Other programs' URIs of keys have it.
            "type" if value == "private" => Ok(()),
            "type" => Err(UriError::ObjectType),
            "slot-id" => Err(UriError::Slot("slot-id")),
            "slot-description" => Err(UriError::Slot("slot-description")),
            "slot-manufacturer" => Err(UriError::Slot("slot-manufacturer")),
            "pin-value" => Err(UriError::PinValue),
            _ => Err(unknown(name)),
        }
    }

    fn take_query_attribute(&mut self, attribute: &str) -> Result<(), UriError> {
        let (name, value) = split(attribute);
        match name {
            "module-path" => {
                let path = bounded("module-path", value, MAX_PATH)?;
                set(&mut self.module_path, "module-path", absolute("module-path", &path)?)
            }
            "library-parameters" => {
                let parameters = bounded("library-parameters", value, MAX_PATH)?;
                set(&mut self.library_parameters, "library-parameters", parameters)
            }
            "pin-source" => {
                let source = bounded("pin-source", value, MAX_PATH)?;
                // RFC 8089: `file:/path`, `file:///path` and `file://localhost/path` are the same file.
                let rest = source.strip_prefix("file:").ok_or(UriError::PinSource)?;
                let path = match rest.strip_prefix("//") {
                    None => rest,
                    Some(authority) => authority.strip_prefix("localhost").unwrap_or(authority),
                };
                set(&mut self.pin_source, "pin-source", absolute("pin-source", path)?)
            }
            "pin-value" => Err(UriError::PinValue),
            _ => Err(unknown(name)),
        }
    }
}

/// Formats the URI in one canonical form, without secrets.
impl Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = [
            ("token", &self.label),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("object", &self.object),
        ];
        f.write_str("pkcs11:")?;
        let mut separator = "";
        for (name, value) in path {
            if let Some(value) = value {
                write!(f, "{separator}{name}={}", utf8_percent_encode(value, ENCODED))?;
                separator = ";";
            }
        }
        if let Some(id) = &self.id {
            write!(f, "{separator}id={}", percent_encode(id, NON_ALPHANUMERIC))?;
        }
        // Both paths came out of UTF-8 text, so that the conversion loses nothing.
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let query = [
            ("module-path=", path(&self.module_path)),
            ("library-parameters=", self.library_parameters.clone()),
            ("pin-source=file:", path(&self.pin_source)),
        ];
        separator = "?";
        for (name, value) in query {
            if let Some(value) = value {
                write!(f, "{separator}{name}{}", utf8_percent_encode(&value, ENCODED))?;
                separator = "&";
            }
        }
        Ok(())
    }
}

/// An attribute's name is shown only if it looks like one: it might be a misplaced PIN.
fn unknown(name: &str) -> UriError {
    let is_name = name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    UriError::Unknown(if is_name { name.to_owned() } else { "...".to_owned() })
}

fn split(attribute: &str) -> (&str, &str) {
    attribute.split_once('=').unwrap_or((attribute, ""))
}

fn set<T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), UriError> {
    if place.is_some() {
        return Err(UriError::Duplicate(name));
    }
    *place = Some(value);
    Ok(())
}

fn absolute(name: &'static str, path: &str) -> Result<PathBuf, UriError> {
    if !path.starts_with('/') {
        return Err(UriError::RelativePath(name));
    }
    // Without repeated slashes: `file:` and a path that begins with two would be read as a host.
    Ok(Path::new(path).components().collect())
}

fn bounded(name: &'static str, value: &str, max: usize) -> Result<String, UriError> {
    within(name, decode(name, value)?, max)
}

/// Neither empty nor longer than `max` bytes.
fn within<T: AsRef<[u8]>>(name: &'static str, value: T, max: usize) -> Result<T, UriError> {
    match value.as_ref().len() {
        0 => Err(UriError::NoValue(name)),
        length if length > max => Err(UriError::TooLong { name, max }),
        _ => Ok(value),
    }
}

/// Percent-decodes to UTF-8 without control characters.
fn decode(name: &'static str, value: &str) -> Result<String, UriError> {
    let text = String::from_utf8(decode_bytes(name, value)?).map_err(|_| UriError::Encoding(name))?;
    if text.chars().any(char::is_control) {
        return Err(UriError::Encoding(name));
    }
    Ok(text)
}

/// Percent-decodes strictly: RFC 7512's pk11-pchar and pk11-qchar, and whole escapes.
fn decode_bytes(name: &'static str, value: &str) -> Result<Vec<u8>, UriError> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let high = rest.next().and_then(hex).ok_or(UriError::Encoding(name))?;
                let low = rest.next().and_then(hex).ok_or(UriError::Encoding(name))?;
                bytes.push(high << 4 | low);
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => bytes.push(byte),
            _ if b"-._~:[]@!$'()*+,=&/?|".contains(&byte) => bytes.push(byte),
            _ => return Err(UriError::Encoding(name)),
        }
    }
    Ok(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_writes() {
        let cases = [
            ("pkcs11:token=istio-ca", "pkcs11:token=istio-ca"),
            ("PKCS11:serial=ab%2012;token=x", "pkcs11:token=x;serial=ab%2012"),
            (
                "pkcs11:token=My%20token;manufacturer=SoftHSM;model=v2?module-path=/usr/lib/m.so&pin-source=file:///run/pin",
                "pkcs11:token=My%20token;manufacturer=SoftHSM;model=v2?module-path=/usr/lib/m.so&pin-source=file:/run/pin",
            ),
            ("pkcs11:token=t?pin-source=file:%2Frun%2Fpin", "pkcs11:token=t?pin-source=file:/run/pin"),
            (
                "pkcs11:token=t?library-parameters=configdir='sql:/d'%20flags=x&module-path=/m",
                "pkcs11:token=t?module-path=/m&library-parameters=configdir%3D%27sql%3A/d%27%20flags%3Dx",
            ),
            ("pkcs11:token=t?pin-source=file://localhost/p", "pkcs11:token=t?pin-source=file:/p"),
            ("pkcs11:token=t?pin-source=file:////run//pin", "pkcs11:token=t?pin-source=file:/run/pin"),
            ("pkcs11:token=%C3%A4%3B%26", "pkcs11:token=%C3%A4%3B%26"),
            ("pkcs11:token=t;id=%00%ffA;type=private;object=CA%20key", "pkcs11:token=t;object=CA%20key;id=%00%FFA"),
        ];
        for (text, canonical) in cases {
            let uri: TokenUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), canonical);
            assert_eq!(canonical.parse::<TokenUri>().unwrap(), uri, "{text}");
        }
        let uri: TokenUri = "pkcs11:token=a;model=v2?module-path=/m.so&pin-source=file:/p".parse().unwrap();
        assert_eq!(uri.label(), Some("a"));
        assert_eq!(uri.model(), Some("v2"));
        assert_eq!(uri.module_path(), Some(Path::new("/m.so")));
        assert_eq!(uri.pin_source(), Some(Path::new("/p")));
        assert_eq!(uri.serial(), None);
        assert_eq!(uri.manufacturer(), None);
        assert_eq!((uri.object(), uri.id()), (None, None));
        let uri: TokenUri = "pkcs11:token=a;object=k;id=%A3%B2".parse().unwrap();
        assert_eq!((uri.object(), uri.id()), (Some("k"), Some(&[0xa3, 0xb2][..])));
    }

    #[test]
    fn refuses() {
        let long = format!("pkcs11:token={}", "x".repeat(33));
        let endless = format!("pkcs11:token={}", "x".repeat(MAX_URI));
        let cases = [
            ("", UriError::NotPkcs11),
            ("token=x", UriError::NotPkcs11),
            ("http:token=x", UriError::NotPkcs11),
            ("pkcs11:", UriError::Unselective),
            ("pkcs11:model=v2", UriError::Unselective),
            ("pkcs11:token", UriError::NoValue("token")),
            ("pkcs11:token=", UriError::NoValue("token")),
            ("pkcs11:token=a;token=b", UriError::Duplicate("token")),
            ("pkcs11:token=a?module-path=/a&module-path=/b", UriError::Duplicate("module-path")),
            ("pkcs11:token=a%2", UriError::Encoding("token")),
            ("pkcs11:token=a%zz", UriError::Encoding("token")),
            ("pkcs11:token=a b", UriError::Encoding("token")),
            ("pkcs11:token=%00", UriError::Encoding("token")),
            ("pkcs11:token=%FF", UriError::Encoding("token")),
            ("pkcs11:token=\u{e4}", UriError::Encoding("token")),
            ("pkcs11:token=a;slot-id=1", UriError::Slot("slot-id")),
            ("pkcs11:token=a;object=", UriError::NoValue("object")),
            ("pkcs11:token=a;id=", UriError::NoValue("id")),
            ("pkcs11:token=a;id=%0", UriError::Encoding("id")),
            ("pkcs11:token=a;id=1;id=2", UriError::Duplicate("id")),
            ("pkcs11:token=a;type=cert", UriError::ObjectType),
            ("pkcs11:object=a;id=%01", UriError::Unselective),
            ("pkcs11:token=a;pin-value=1", UriError::PinValue),
            ("pkcs11:token=a?pin-value=1", UriError::PinValue),
            ("pkcs11:token=a?pin-source=1234", UriError::PinSource),
            ("pkcs11:token=a?pin-source=|cat", UriError::PinSource),
            ("pkcs11:token=a?pin-source=file:pin", UriError::RelativePath("pin-source")),
            ("pkcs11:token=a?pin-source=file://host/pin", UriError::RelativePath("pin-source")),
            ("pkcs11:token=a?module-path=m.so", UriError::RelativePath("module-path")),
            ("pkcs11:token=a?module-name=m", UriError::Unknown("module-name".to_owned())),
            ("pkcs11:token=a;x-vendor=1", UriError::Unknown("x-vendor".to_owned())),
            ("pkcs11:token=a;module-path=/m", UriError::Unknown("module-path".to_owned())),
            ("pkcs11:token=a;1234", UriError::Unknown("...".to_owned())),
            ("pkcs11:token=a?library-parameters=", UriError::NoValue("library-parameters")),
            (long.as_str(), UriError::TooLong { name: "token", max: 32 }),
            (endless.as_str(), UriError::Unbounded),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<TokenUri>(), Err(error), "{text}");
        }
    }

    #[test]
    fn tells_no_pin() {
        for text in ["pkcs11:token=a?pin-value=s3cret", "pkcs11:token=a?pin=s3cret", "pkcs11:token=a?pin-source=s3cret"]
        {
            let error = text.parse::<TokenUri>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(pkcs11:)?[ -~\u{e4}]{0,80}") {
            if let Ok(uri) = text.parse::<TokenUri>() {
                prop_assert_eq!(uri.to_string().parse::<TokenUri>(), Ok(uri));
            }
        }

        #[test]
        fn any_label_survives(label in "[^\\p{Cc}]{1,8}") {
            let text = format!("pkcs11:token={}", utf8_percent_encode(&label, NON_ALPHANUMERIC));
            let uri: TokenUri = text.parse().unwrap();
            prop_assert_eq!(uri.label(), Some(label.as_str()));
            prop_assert_eq!(uri.to_string().parse::<TokenUri>(), Ok(uri));
        }
    }
}
