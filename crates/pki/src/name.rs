//! Distinguished names as Istio's clients read and compare them, and as text for messages.
//!
//! Go and rustls-webpki compare names byte for byte. OpenSSL and BoringSSL compare the text: without regard to the
//! string type, the case of ASCII letters and repeated white space.

use const_oid::ObjectIdentifier;
use der::{Any, AnyRef, Decode, Encode, Tag, Tagged};
use x509_cert::{
    attr::AttributeTypeAndValue,
    name::{Name, RdnSequence, RelativeDistinguishedName},
};

/// How much of a name a message repeats.
const SHOWN_MAX: usize = 120;

/// A DER Name, with every string as Go's parser reads it (crypto/x509, parseASN1String).
///
/// # Errors
/// What Go refuses, as a predicate of the name.
pub(crate) fn parse(value: AnyRef<'_>) -> Result<Vec<u8>, String> {
    let malformed = |_error: der::Error| "is malformed, or has a string of a type that Go cannot read".to_owned();
    let der = value.to_der().map_err(malformed)?;
    let name = Name::from_der(&der).map_err(malformed)?;
    for attribute in name.iter() {
        if string(&attribute.value).is_none() {
            let value = &attribute.value;
            return Err(match value.tag() {
                tag if is_string(tag) => {
                    format!("has a {} with characters that Go refuses there ({})", type_of(tag), shown(&der))
                }
                tag => format!("has a value of type {}, which Go cannot read", type_of(tag)),
            });
        }
    }
    Ok(der)
}

/// A name for people (RFC 4514), in whatever string types, without control characters and not without end.
pub(crate) fn shown(name_der: &[u8]) -> String {
    let text = Name::from_der(name_der).ok().and_then(|name| in_utf8(&name)).unwrap_or_default();
    if text.is_empty() {
        return "empty name".to_owned();
    }
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN_MAX).collect()
}

/// The string types of a name's attributes, each once: `UTF8String`, `PrintableString and UTF8String`.
pub(crate) fn string_types(name_der: &[u8]) -> String {
    let mut types: Vec<String> = Vec::new();
    for attribute in Name::from_der(name_der).iter().flat_map(Name::iter) {
        let kind = type_of(attribute.value.tag());
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    types.join(" and ")
}

/// Whether OpenSSL and BoringSSL take two DER Names for the same (X509_NAME_cmp).
pub(crate) fn is_same_text(one: &[u8], other: &[u8]) -> bool {
    one == other || canonical(one).is_some_and(|one| canonical(other) == Some(one))
}

/// Whether a DER Name begins with all of another, as OpenSSL and BoringSSL compare them (RFC 5280, section 7.1). True where
/// that cannot be said.
pub(crate) fn is_within(name_der: &[u8], base: &Name) -> bool {
    let (name, base) = (canonical(name_der), base.to_der().ok().and_then(|base| canonical(&base)));
    name.zip(base).is_none_or(|(name, base)| name.starts_with(&base))
}

/// The attributes of each relative name: object identifier and text, or the bytes where there is no text.
type Canonical = Vec<Vec<(ObjectIdentifier, Result<String, Vec<u8>>)>>;

fn canonical(name_der: &[u8]) -> Option<Canonical> {
    let name = Name::from_der(name_der).ok()?;
    let value = |attribute: &AttributeTypeAndValue| {
        let text = string(&attribute.value).filter(|_| attribute.value.tag() != Tag::NumericString);
        let text = text.map(|text| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase());
        (attribute.oid, text.ok_or_else(|| attribute.value.value().to_vec()))
    };
    Some(name.iter_rdn().map(|rdn| rdn.iter().map(value).collect()).collect())
}

/// The name's text, every string of it as if it were a UTF8String: x509-cert shows other types as hexadecimal digits.
fn in_utf8(name: &Name) -> Option<String> {
    let rdns = name.iter_rdn().map(|rdn| {
        let attributes = rdn.iter().map(|attribute| {
            let text = string(&attribute.value).or_else(|| lossy(&attribute.value));
            let value = text.and_then(|text| Any::new(Tag::Utf8String, text.into_bytes()).ok());
            AttributeTypeAndValue { oid: attribute.oid, value: value.unwrap_or_else(|| attribute.value.clone()) }
        });
        RelativeDistinguishedName::try_from(attributes.collect::<Vec<_>>()).ok()
    });
    Some(RdnSequence::from(rdns.collect::<Option<Vec<_>>>()?).to_string())
}

/// What can be shown of a string that Go refuses.
fn lossy(value: &Any) -> Option<String> {
    is_string(value.tag()).then(|| String::from_utf8_lossy(value.value()).into_owned())
}

/// The text of a string as Go and BoringSSL read it: T61String is Latin-1 to them.
fn string(value: &Any) -> Option<String> {
    let bytes = value.value();
    let ascii = |is_allowed: fn(&u8) -> bool| {
        if bytes.iter().all(is_allowed) { String::from_utf8(bytes.to_vec()).ok() } else { None }
    };
    match value.tag() {
        Tag::BmpString => bmp(bytes),
        Tag::Ia5String => ascii(u8::is_ascii),
        Tag::NumericString => ascii(|byte| matches!(byte, b'0'..=b'9' | b' ')),
        // Go takes `*` and `&` beyond X.680.
        Tag::PrintableString => ascii(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'\''..=b')' | b'+'..=b'/') || b" :=?*&".contains(byte)
        }),
        Tag::TeletexString => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        _ => None,
    }
}

/// UCS-2, big-endian: without surrogates and without the code points that are no characters.
fn bmp(bytes: &[u8]) -> Option<String> {
    let (units, rest) = bytes.as_chunks::<2>();
    let is_character = |unit: &u16| !matches!(unit, 0xfffe | 0xffff | 0xfdd0..=0xfdef);
    let decode = |unit: [u8; 2]| {
        Some(u16::from_be_bytes(unit)).filter(is_character).and_then(|unit| char::from_u32(unit.into()))
    };
    if rest.is_empty() { units.iter().copied().map(decode).collect() } else { None }
}

fn is_string(tag: Tag) -> bool {
    matches!(
        tag,
        Tag::BmpString
            | Tag::Ia5String
            | Tag::NumericString
            | Tag::PrintableString
            | Tag::TeletexString
            | Tag::Utf8String
    )
}

/// As X.680 writes it: `UTF8String`.
fn type_of(tag: Tag) -> String {
    match tag {
        Tag::BmpString => "BMPString".to_owned(),
        Tag::Ia5String => "IA5String".to_owned(),
        Tag::NumericString => "NumericString".to_owned(),
        Tag::PrintableString => "PrintableString".to_owned(),
        Tag::TeletexString => "T61String".to_owned(),
        Tag::Utf8String => "UTF8String".to_owned(),
        Tag::VisibleString => "VisibleString".to_owned(),
        Tag::GeneralString => "GeneralString".to_owned(),
        other => other.to_string(),
    }
}
