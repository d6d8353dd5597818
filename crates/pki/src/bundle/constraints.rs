//! Subject alternative names and name constraints of CA certificates (RFC 5280, sections 4.2.1.6 and 4.2.1.10), as
//! Go's crypto/x509 reads them and as Go, OpenSSL and rustls-webpki apply them.

use der::{AnyRef, Decode, Tag, Tagged};
use x509_cert::ext::pkix::{NameConstraints, name::GeneralName};

use crate::name;

/// The names of a CA's certificate: most have none.
#[derive(Clone, Debug, Default)]
pub(super) struct AltNames {
    dns: Vec<String>,
    ips: Vec<Vec<u8>>,
    uris: Vec<String>,
    emails: bool,
    /// The tag numbers of the kinds that rustls-webpki does not know, emails among them.
    others: Vec<u32>,
    is_there: bool,
}

impl AltNames {
    /// Reads the content of the extension.
    ///
    /// # Errors
    /// What Go cannot read, as a predicate of the certificate.
    pub(super) fn parse(value: &[u8]) -> Result<Self, &'static str> {
        const MALFORMED: &str = "has a malformed subjectAltName, which Go cannot read";
        let fields: Vec<AnyRef<'_>> = Vec::from_der(value).map_err(|_error| MALFORMED)?;
        let mut names = Self { is_there: true, ..Self::default() };
        for field in fields {
            let Tag::ContextSpecific { number, constructed } = field.tag() else { return Err(MALFORMED) };
            let (content, number) = (field.value(), number.value());
            let text = || str::from_utf8(content).ok().filter(|text| text.is_ascii()).map(str::to_owned);
            match (number, constructed) {
                (1, false) => {
                    text().ok_or("has an e-mail address with characters that Go cannot read in its subjectAltName")?;
                    names.emails = true;
                    names.others.push(number);
                }
                (2, false) => {
                    let name =
                        text().ok_or("has a DNS name with characters that Go cannot read in its subjectAltName")?;
                    names.dns.push(name);
                }
                (6, false) => {
                    let uri = text().filter(|uri| is_uri(uri));
                    names.uris.push(uri.ok_or("has a URI that Go cannot read in its subjectAltName")?);
                }
                (7, false) if matches!(content.len(), 4 | 16) => names.ips.push(content.to_vec()),
                (7, false) => {
                    return Err("has an IP address of the wrong length in its subjectAltName, which Go cannot read");
                }
                (0 | 3 | 4 | 5, true) => names.others.push(number),
                (8, false) => names.others.push(number),
                _ => return Err(MALFORMED),
            }
        }
        Ok(names)
    }

    /// Whether Go takes the extension, when critical, for one that it does not know: no name of a kind it knows.
    pub(super) fn is_unknown_to_go(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty() && self.uris.is_empty() && !self.emails
    }
}

/// Name constraints that Go can read.
#[derive(Clone, Debug)]
pub(super) struct Constraints {
    permitted: Vec<GeneralName>,
    excluded: Vec<GeneralName>,
    has_distances: bool,
}

impl Constraints {
    /// Reads the content of the extension.
    ///
    /// # Errors
    /// What Go cannot read, as a predicate of the certificate.
    pub(super) fn parse(value: &[u8]) -> Result<Self, &'static str> {
        let read =
            NameConstraints::from_der(value).map_err(|_error| "has malformed nameConstraints, which Go cannot read")?;
        let subtrees = [read.permitted_subtrees.unwrap_or_default(), read.excluded_subtrees.unwrap_or_default()];
        let has_distances = subtrees.iter().flatten().any(|subtree| subtree.minimum != 0 || subtree.maximum.is_some());
        let [permitted, excluded] =
            subtrees.map(|list| list.into_iter().map(|subtree| subtree.base).collect::<Vec<_>>());
        if permitted.is_empty() && excluded.is_empty() {
            return Err("has empty nameConstraints, which Go cannot read");
        }
        for base in permitted.iter().chain(&excluded) {
            let is_readable = match base {
                GeneralName::DnsName(name) => is_domain(name.as_str(), true),
                GeneralName::IpAddress(range) => is_range(range.as_bytes()),
                GeneralName::Rfc822Name(name) => {
                    let name = name.as_str();
                    name.split_once('@').map_or_else(
                        || is_domain(name, true),
                        |(local, host)| !local.is_empty() && is_domain(host, false),
                    )
                }
                GeneralName::UniformResourceIdentifier(host) => {
                    is_domain(host.as_str(), true) && host.as_str().parse::<std::net::IpAddr>().is_err()
                }
                _ => true,
            };
            if !is_readable {
                return Err("has a name constraint that Go cannot read");
            }
        }
        Ok(Self { permitted, excluded, has_distances })
    }

    /// Whether Go takes the extension, when critical, for one that it does not know.
    pub(super) fn is_unknown_to_go(&self) -> bool {
        use GeneralName::{DnsName, IpAddress, Rfc822Name, UniformResourceIdentifier};
        let is_known = |base: &GeneralName| {
            matches!(base, DnsName(_) | IpAddress(_) | Rfc822Name(_) | UniformResourceIdentifier(_))
        };
        !self.bases().all(is_known)
    }

    /// Why no leaf below can be verified, as a predicate of the constrained certificate: it has a SPIFFE ID and an empty
    /// subject.
    pub(super) fn forbids_leaves(&self) -> Option<&'static str> {
        let mut bases = self.bases();
        if self.has_distances {
            return Some("has name constraints with a minimum or maximum, which rustls-webpki (ztunnel) refuses");
        }
        bases.find_map(|base| match base {
            GeneralName::UniformResourceIdentifier(_) => Some(
                "constrains URI names, and rustls-webpki (ztunnel) refuses every SPIFFE ID below such a constraint",
            ),
            GeneralName::DirectoryName(_) => {
                Some("constrains directory names, and rustls-webpki (ztunnel) refuses every certificate below")
            }
            _ => None,
        })
    }

    /// Why OpenSSL and BoringSSL may refuse a certificate below, given the subjects of the CAs there, as a predicate of
    /// the constrained certificate. Other subjects are unknown yet: those of leaves are empty, those of CAs that this CA
    /// issues are not.
    pub(super) fn may_forbid_leaves(&self, subjects: &[&[u8]]) -> Option<&'static str> {
        let is_directory = |base: &GeneralName| matches!(base, GeneralName::DirectoryName(_));
        let is_excluded = |base: &GeneralName| match base {
            GeneralName::DirectoryName(base) => subjects.iter().any(|subject| name::is_within(subject, base)),
            _ => false,
        };
        if self.has_distances {
            return Some("has name constraints with a minimum or maximum");
        }
        if self.bases().any(|base| matches!(base, GeneralName::UniformResourceIdentifier(_))) {
            return Some("constrains URI names, which may forbid SPIFFE IDs");
        }
        (self.permitted.iter().any(is_directory) || self.excluded.iter().any(is_excluded))
            .then_some("constrains directory names, which may forbid the names of CAs below")
    }

    /// The first name of a CA certificate further down that they forbid, for people.
    pub(super) fn forbidden(&self, names: &AltNames) -> Option<String> {
        let is_kind = |number: u32, base: &GeneralName| match base {
            GeneralName::OtherName(_) => number == 0,
            GeneralName::Rfc822Name(_) => number == 1,
            GeneralName::EdiPartyName(_) => number == 5,
            GeneralName::RegisteredId(_) => number == 8,
            _ => false,
        };
        let dns = names.dns.iter().filter(|name| !self.permits(&Base::Dns(name))).map(|name| format!("DNS:{name}"));
        let ips = names.ips.iter().filter(|ip| !self.permits(&Base::Ip(ip))).map(|ip| format!("IP:{}", address(ip)));
        // Go matches the host of every URI below any constraint, and fails where there is none.
        let uris = names.uris.iter().filter(|uri| !has_named_host(uri)).map(|uri| format!("URI:{uri}"));
        // rustls-webpki does not look at names of other kinds: it refuses them.
        let others = names.others.iter().filter(|number| self.bases().any(|base| is_kind(**number, base)));
        let others = others.map(|number| match number {
            1 => "an e-mail address".to_owned(),
            _ => "a name of another kind".to_owned(),
        });
        dns.chain(ips).chain(uris).chain(others).next().filter(|_| names.is_there)
    }

    fn permits(&self, name: &Base<'_>) -> bool {
        let mut of_kind = self.permitted.iter().filter(|base| name.is_kind(base)).peekable();
        let is_permitted = of_kind.peek().is_none() || of_kind.any(|base| name.is_within(base));
        is_permitted && !self.excluded.iter().any(|base| name.is_within(base))
    }

    fn bases(&self) -> impl Iterator<Item = &GeneralName> {
        self.permitted.iter().chain(&self.excluded)
    }
}

/// A name that is compared with the base of a subtree.
enum Base<'a> {
    Dns(&'a str),
    Ip(&'a [u8]),
}

impl Base<'_> {
    fn is_kind(&self, base: &GeneralName) -> bool {
        matches!((self, base), (Self::Dns(_), GeneralName::DnsName(_)) | (Self::Ip(_), GeneralName::IpAddress(_)))
    }

    fn is_within(&self, base: &GeneralName) -> bool {
        match (self, base) {
            (Self::Dns(name), GeneralName::DnsName(base)) => {
                let (name, base) = (name.to_ascii_lowercase(), base.as_str().to_ascii_lowercase());
                let rest = name.strip_suffix(&base);
                rest.is_some_and(|rest| {
                    base.is_empty()
                        || base.starts_with('.') && !rest.is_empty()
                        || rest.is_empty()
                        || rest.ends_with('.')
                })
            }
            (Self::Ip(ip), GeneralName::IpAddress(range)) => {
                let (network, mask) = range.as_bytes().split_at(range.as_bytes().len() / 2);
                network.len() == ip.len()
                    && ip.iter().zip(network).zip(mask).all(|((ip, network), mask)| ip & mask == network & mask)
            }
            _ => false,
        }
    }
}

/// Go's domainNameValid (crypto/x509, parser.go).
fn is_domain(name: &str, is_constraint: bool) -> bool {
    let labels = if is_constraint { name.strip_prefix('.').unwrap_or(name) } else { name };
    name.is_empty()
        || !labels.is_empty()
            && labels.split('.').all(|label| !label.is_empty() && label.bytes().all(|byte| matches!(byte, b'!'..=b'~')))
}

/// A network and a mask of ones followed by zeros.
fn is_range(bytes: &[u8]) -> bool {
    let (_, mask) = bytes.split_at(bytes.len() / 2);
    let ones = mask.iter().map(|byte| byte.leading_ones()).scan(true, |going, ones| {
        let counted = if *going { ones } else { 0 };
        *going &= ones == 8;
        Some(counted)
    });
    matches!(bytes.len(), 8 | 32) && ones.sum::<u32>() == mask.iter().map(|byte| byte.count_ones()).sum::<u32>()
}

/// Whether Go's net/url takes a URI, and crypto/x509 its host; the rare forms that are refused here and not by Go are
/// no names of a CA.
fn is_uri(uri: &str) -> bool {
    let is_plain = uri.bytes().all(|byte| byte > 0x20 && byte != 0x7f);
    let mut escapes = uri.split('%').skip(1);
    let is_escaped =
        escapes.all(|rest| rest.as_bytes().first_chunk::<2>().is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)));
    let has_scheme = match uri.split_once(':') {
        Some((scheme, _)) if scheme.contains('/') => true,
        Some((scheme, _)) => {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        }
        None => true,
    };
    is_plain
        && is_escaped
        && has_scheme
        && host(uri).is_none_or(|host| {
            let (name, port) = host.rsplit_once(':').filter(|_| !host.ends_with(']')).unwrap_or((host, ""));
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=%:[]<>\"".contains(c);
            port.bytes().all(|byte| byte.is_ascii_digit()) && name.chars().all(is_allowed) && is_domain(host, false)
        })
}

/// The part between `//` and the next `/`, without user information.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("//")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

fn has_named_host(uri: &str) -> bool {
    let name = host(uri).map(|host| host.split_once(':').map_or(host, |(name, _)| name));
    name.is_some_and(|name| !name.is_empty() && !name.starts_with('[') && name.parse::<std::net::IpAddr>().is_err())
}

fn address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from))
        .map_or_else(|_| super::certificate::hex(bytes), |ip| ip.to_string())
}
