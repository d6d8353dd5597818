//! Content of a request in addition to its CSR: the metadata Struct, and gRPC's deadline. Pure.

use std::time::Duration;

use prost_types::{Struct, value::Kind};
use tonic::metadata::MetadataMap;

use crate::grpc::status::Refusal;

/// The requested signer; Istio's agent always sends it, usually empty.
pub const CERT_SIGNER: &str = "CertSigner";
/// The impersonated identity; sent by ztunnel.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Maximum length of a value in bytes: that of a SPIFFE ID (SPIFFE-ID, section 2.3).
const TEXT_MAX: usize = 2048;

/// A string of the metadata; an empty one counts as absent. Unknown keys are ignored, as in Istio.
///
/// # Errors
/// If the value is not a string, or longer than any valid one.
pub fn text(metadata: Option<&Struct>, field: &'static str) -> Result<Option<String>, Refusal> {
    let Some(value) = metadata.and_then(|metadata| metadata.fields.get(field)) else { return Ok(None) };
    match &value.kind {
        Some(Kind::StringValue(text)) if text.is_empty() => Ok(None),
        Some(Kind::StringValue(text)) if text.len() <= TEXT_MAX => Ok(Some(text.clone())),
        Some(Kind::StringValue(_)) => Err(Refusal::Metadata { field, reason: "is longer than 2048 bytes" }),
        Some(
            Kind::BoolValue(_) | Kind::ListValue(_) | Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StructValue(_),
        )
        | None => Err(Refusal::Metadata { field, reason: "is not a string" }),
    }
}

/// How long the caller waits: the `grpc-timeout` header, 1 to 8 digits and a unit (gRPC over HTTP/2). A malformed one
/// counts as absent.
#[must_use]
pub fn timeout(headers: &MetadataMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{ListValue, Value};

    use super::*;

    fn metadata(kind: Option<Kind>) -> Struct {
        Struct { fields: [(CERT_SIGNER.to_owned(), Value { kind })].into() }
    }

    #[test]
    #[expect(clippy::type_complexity, reason = "a table")]
    fn texts() {
        let string = |length| Some(Kind::StringValue("x".repeat(length)));
        let cases: Vec<(Option<Kind>, Result<Option<usize>, ()>)> = vec![
            (string(0), Ok(None)),
            (string(1), Ok(Some(1))),
            (string(TEXT_MAX), Ok(Some(TEXT_MAX))),
            (string(TEXT_MAX + 1), Err(())),
            (None, Err(())),
            (Some(Kind::BoolValue(true)), Err(())),
            (Some(Kind::NullValue(0)), Err(())),
            (Some(Kind::NumberValue(0.0)), Err(())),
            (Some(Kind::ListValue(ListValue::default())), Err(())),
            (Some(Kind::StructValue(Struct::default())), Err(())),
        ];
        for (kind, expected) in cases {
            let metadata = metadata(kind.clone());
            let read = text(Some(&metadata), CERT_SIGNER).map(|text| text.map(|text| text.len())).map_err(|_| ());
            assert_eq!(read, expected, "{kind:?}");
            assert!(text(Some(&metadata), IMPERSONATED_IDENTITY).unwrap().is_none(), "another key is ignored");
        }
        assert!(text(None, CERT_SIGNER).unwrap().is_none());
    }

    #[test]
    fn timeouts() {
        let cases: &[(&str, Option<Duration>)] = &[
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("10S", Some(Duration::from_secs(10))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("5n", Some(Duration::from_nanos(5))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
            ("1.5S", None),
        ];
        for (value, expected) in cases {
            let mut headers = MetadataMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            assert_eq!(timeout(&headers), *expected, "{value}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
