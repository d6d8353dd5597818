//! Values of the configuration that are refused.

use istio_hsm_ca::config::Config;

use super::page::{Case, Section};

pub const BASE: &str = r#"
[ca]
bundle = "/etc/istio-hsm-ca/bundle"
trust_domains = ["cluster.local"]

[[token]]
name = "hsm"
uri = "pkcs11:token=ca?module-path=/usr/lib/hsm.so&pin-source=file:/run/pin"

[listen]
address = "127.0.0.1:15012"

[serving]
dns_names = ["istio-hsm-ca.istio-system.svc"]
ip_addresses = ["127.0.0.1"]

[[auth.jwt]]
issuer = "https://issuer.example"
keys = { file = { path = "/etc/istio-hsm-ca/jwks.json" } }
audiences = ["istio-ca"]

[auth.client_certificate]
max_age = "24h"

[log]
directory = "/var/log/istio-hsm-ca"
"#;

/// What is wrong, the line of the configuration, and what is written in its place.
const CASES: &[(&str, &str, &str)] = &[
    ("A port alone", r#"address = "127.0.0.1:15012""#, r#"address = ":15012""#),
    ("A port as a number", r#"address = "127.0.0.1:15012""#, "address = 15012"),
    ("A name in place of an address", r#"address = "127.0.0.1:15012""#, r#"address = "localhost:15012""#),
    ("An address without a port", r#"address = "127.0.0.1:15012""#, r#"address = "0.0.0.0""#),
    ("A URL in place of an address", r#"address = "127.0.0.1:15012""#, r#"address = "tcp://0.0.0.0:15012""#),
    ("A duration as a number", r#"max_age = "24h""#, "max_age = 86400"),
    ("A duration without a unit", r#"max_age = "24h""#, r#"max_age = "86400""#),
    ("A duration of another format", r#"max_age = "24h""#, r#"max_age = "P1D""#),
    ("No duration", r#"max_age = "24h""#, r#"max_age = "0s""#),
    ("A text in place of a list", r#"audiences = ["istio-ca"]"#, r#"audiences = "istio-ca""#),
    ("A text with commas in place of a list", r#"audiences = ["istio-ca"]"#, r#"audiences = "istio-ca, api""#),
    ("A number in a list of texts", r#"audiences = ["istio-ca"]"#, "audiences = [1]"),
    (
        "A trust domain as a URI",
        r#"trust_domains = ["cluster.local"]"#,
        r#"trust_domains = ["spiffe://cluster.local"]"#,
    ),
    ("No trust domain", r#"trust_domains = ["cluster.local"]"#, "trust_domains = []"),
    (
        "A URL in place of a DNS name",
        r#"dns_names = ["istio-hsm-ca.istio-system.svc"]"#,
        r#"dns_names = ["https://istio-hsm-ca.istio-system.svc:15012"]"#,
    ),
    (
        "An IP address among DNS names",
        r#"dns_names = ["istio-hsm-ca.istio-system.svc"]"#,
        r#"dns_names = ["10.0.0.1"]"#,
    ),
    ("A network in place of an IP address", r#"ip_addresses = ["127.0.0.1"]"#, r#"ip_addresses = ["10.0.0.0/8"]"#),
    (
        "A source of keys as a text",
        r#"keys = { file = { path = "/etc/istio-hsm-ca/jwks.json" } }"#,
        r#"keys = "https://issuer.example/jwks""#,
    ),
    (
        "A file of keys as a text",
        r#"keys = { file = { path = "/etc/istio-hsm-ca/jwks.json" } }"#,
        r#"keys = { file = "/etc/istio-hsm-ca/jwks.json" }"#,
    ),
    (
        "A key set over plain HTTP",
        r#"keys = { file = { path = "/etc/istio-hsm-ca/jwks.json" } }"#,
        r#"keys = { url = { url = "http://issuer.example/jwks" } }"#,
    ),
    ("An issuer with white space", r#"issuer = "https://issuer.example""#, r#"issuer = "https://issuer.example ""#),
    ("A path as a list", r#"directory = "/var/log/istio-hsm-ca""#, r#"directory = ["/var/log/istio-hsm-ca"]"#),
    ("A key that does not exist", r#"directory = "/var/log/istio-hsm-ca""#, "directory = \"/var/log\"\nfolder = \"a\""),
    ("A section that does not exist", "[serving]", "[server]\n[serving]"),
    ("A section that is missing", "[log]\ndirectory = \"/var/log/istio-hsm-ca\"", ""),
    ("A path in place of a store", "[log]", "[revocation]\nstore = \"/var/lib/revocations.json\"\n[log]"),
    (
        "A short-lived CRL",
        "[log]",
        "[revocation]\nstore = { file = \"/var/lib/revocations.json\" }\nlifetime = \"1h\"\n[log]",
    ),
    (
        "State of revocation in a ConfigMap without a cluster",
        "[log]",
        "[revocation]\nstore = { config_map = \"revocations\" }\n[log]",
    ),
    ("A value without quotes", r#"directory = "/var/log/istio-hsm-ca""#, "directory = /var/log/istio-hsm-ca"),
    ("A token URI of another scheme", "pkcs11:token=ca?module-path", "token=ca?module-path"),
    ("A PIN in the token URI", "pin-source=file:/run/pin", "pin-value=123456"),
];

pub fn section() -> Section {
    assert!(Config::parse(BASE, "").is_ok(), "{:#?}", Config::parse(BASE, "").err());
    let cases = CASES.iter().map(|(input, from, to)| {
        assert!(BASE.contains(from), "{input}");
        let problems = Config::parse(&BASE.replacen(from, to, 1), "").err().unwrap_or_default();
        Case {
            input: (*input).to_owned(),
            messages: problems.iter().map(|problem| (problem.to_string(), None)).collect(),
        }
    });
    Section {
        title: "Configuration",
        about: "`check` and `serve` report every mistake of the configuration at once, with its line.",
        cases: cases.collect(),
    }
}

#[test]
fn no_pin_is_repeated() {
    let messages =
        section().cases.into_iter().flat_map(|case| case.messages).map(|(message, _)| message).collect::<String>();
    assert!(!messages.contains("123456"), "{messages}");
}
