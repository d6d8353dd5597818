//! `check`: reports everything that would prevent `serve` from working.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use serde_json::Value;

use super::harness::{Done, Machine, exists};
use testkit::softhsm::{Directory, module_path};

/// A machine with a self-signed root, ready to serve, and its configuration.
struct Ready {
    machine: Machine,
    config: String,
}

impl Ready {
    fn new() -> Self {
        let machine = Machine::new();
        machine.done("generate --algorithm p256 --self-signed --organization o --bundle $/bundle --log $/log");
        machine.write("keys.json", r#"{"keys":[]}"#);
        let config = format!(
            r#"
[ca]
bundle = "{root}/bundle"
[[token]]
name = "hsm"
uri = "{uri}"
environment = {{ SOFTHSM2_CONF = "{conf}" }}
[listen]
address = "127.0.0.1:0"
[serving]
dns_names = ["ca.test"]
[log]
directory = "{root}/log"
[admin]
address = "127.0.0.1:0"
"#,
            root = machine.directory.path().display(),
            uri = machine.directory.uri("ca"),
            conf = machine.directory.conf().display(),
        );
        Self { machine, config }
    }

    /// Replaces one text in the configuration.
    fn with(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from}: {}", self.config);
        self.config = self.config.replace(from, to);
        self
    }

    fn check(&self) -> (Done, Vec<Value>) {
        self.machine.write("config.toml", &self.config);
        let done = self.machine.run("check --config $/config.toml --output json", &[]);
        let findings: Vec<Value> = serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        for finding in &findings {
            let fields: Vec<_> = finding.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["level", "part", "remedy", "text"], "{finding}");
            assert_eq!(finding["remedy"].is_null(), finding["level"] == "ok", "no remedy: {finding}");
        }
        let errors = findings.iter().filter(|finding| finding["level"] == "error").count();
        assert_eq!(done.status, i32::from(errors > 0), "{done:?}");
        (done, findings)
    }

    /// Expects exactly these errors: part, and words of text and remedy.
    fn fails(&self, expected: &[(&str, &str, &str)]) -> Vec<Value> {
        let (_done, findings) = self.check();
        let errors: Vec<_> = findings.iter().filter(|finding| finding["level"] == "error").collect();
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (part, text, remedy) in expected {
            let has = |finding: &&&Value| {
                finding["part"] == *part
                    && finding["text"].as_str().unwrap().contains(text)
                    && finding["remedy"].as_str().unwrap().contains(remedy)
            };
            assert!(errors.iter().any(|error| has(&error)), "{part}: {text}; {remedy}: {errors:#?}");
        }
        findings
    }
}

fn warned(findings: &[Value], part: &str, text: &str) -> bool {
    let has = |finding: &&Value| {
        finding["level"] == "warning" && finding["part"] == part && finding["text"].as_str().unwrap().contains(text)
    };
    findings.iter().any(|finding| has(&finding))
}

#[test]
fn check_passes_and_changes_nothing() {
    let ready = Ready::new();
    let log = fs::read_dir(ready.machine.path("log")).unwrap().count();
    let before = ready.machine.token_files();
    let findings = ready.fails(&[]);
    assert_eq!(ready.machine.token_files(), before, "the token is unchanged");
    assert_eq!(fs::read_dir(ready.machine.path("log")).unwrap().count(), log, "the log is unchanged");
    assert!(warned(&findings, "auth", "no issuer of tokens is configured"));
    assert!(warned(&findings, "addresses", "[listen] address 127.0.0.1:0 has no fixed port"));
    let all = findings.iter().map(|finding| format!("{} {}", finding["part"], finding["text"])).collect::<String>();
    for expected in [
        "until 20",
        "COMPLIANCE_POLICY=fips-140-2",
        "the PIN is taken",
        "signature verifies with ca-cert.pem",
        "1 certificates intended",
    ] {
        assert!(all.contains(expected), "{expected}: {all}");
    }
    let text = ready.machine.run("check --config $/config.toml", &[]);
    assert_eq!(text.status, 0, "{text:?}");
    assert!(text.out.contains("ok       bundle") && text.out.contains("-> add [[auth.jwt]]"), "{text:?}");
}

#[test]
fn a_configuration_is_refused_with_every_mistake() {
    let ready = Ready::new().with("[serving]", "[serving]\nnonsense = 1").with("name = \"hsm\"", "name = \"\"");
    ready.fails(&[
        ("configuration", "nonsense", "config.toml"),
        ("configuration", "must have 1 to 64 characters", "config.toml"),
    ]);
    let absent = ready.machine.run("check --config $/nowhere.toml", &[]);
    assert_eq!(absent.status, 1, "{absent:?}");
    assert!(absent.out.contains("nowhere.toml") && absent.out.contains("-> name the configuration"), "{absent:?}");
    ready.machine.run("check --listen nowhere", &[]).usage(&["--listen"]);
}

#[test]
fn check_reports_many_problems_at_once() {
    let ready = Ready::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("address = \"{}\"", taken.local_addr().unwrap());
    let ready = ready
        .with("[listen]\naddress = \"127.0.0.1:0\"", &format!("[listen]\n{address}"))
        .with("dns_names = [\"ca.test\"]", "certificate_file = \"/nowhere/tls.crt\"\nkey_file = \"/nowhere/tls.key\"")
        .with("token=ca", "token=nowhere")
        .with("/bundle", "/no-bundle");
    ready.fails(&[
        ("bundle", "no-bundle: is not a directory", "name the one that `import` or `install` wrote"),
        ("token hsm", "it holds `ca`", "inspect --module"),
        ("addresses", "[listen] address", "stop what listens there"),
        ("serving", "/nowhere/tls.crt", "PEM certificate chain"),
    ]);
}

#[test]
fn a_wrong_pin_is_tried_once_and_never_again() {
    let ready = Ready::new();
    let pin = ready.machine.pin_file("wrong-pin", "999999\n");
    let ready = {
        let right = ready.machine.directory.pin_file().display().to_string();
        ready.with(&format!("file:{right}"), &format!("file:{}", pin.display()))
    };
    ready.fails(&[("token hsm", "refuses the PIN", "correct the PIN file")]);
    assert!(exists(&ready.machine.path("log/pin-refused.hsm")), "there is no marker as from `serve`");
    // The token's PIN is correct now but is not tried, since the file has not changed.
    ready.fails(&[("token hsm", "wrong-pin, and it is not tried again", "write the right PIN into that file")]);
    fs::write(&pin, format!("{}\n", testkit::softhsm::PIN)).unwrap();
    ready.fails(&[]);
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(warned(&ready.fails(&[]), "token hsm", "can be read by everybody"));
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o666)).unwrap();
    ready.fails(&[("token hsm", "can be written by its group or by others", "chmod go-w")]);
    fs::remove_file(&pin).unwrap();
    ready.fails(&[("token hsm", "wrong-pin cannot be read", "check its path")]);
}

#[test]
fn a_wrong_pin_is_tried_once_also_where_no_daemon_has_been_yet() {
    let ready = Ready::new();
    let pin = ready.machine.pin_file("wrong-pin", "999999\n");
    let (right, root) = (
        ready.machine.directory.pin_file().display().to_string(),
        ready.machine.directory.path().display().to_string(),
    );
    let ready = ready
        .with(&format!("file:{right}"), &format!("file:{}", pin.display()))
        .with(&format!("{root}/log"), &format!("{root}/new/log"));
    ready.fails(&[("token hsm", "refuses the PIN", "correct the PIN file")]);
    ready.fails(&[("token hsm", "wrong-pin, and it is not tried again", "write the right PIN into that file")]);
    // If no marker can be written, the PIN is not tried, even if it is correct.
    fs::write(&pin, format!("{}\n", testkit::softhsm::PIN)).unwrap();
    ready.fails(&[]);
    fs::create_dir(ready.machine.path("new/log/pin-refused.hsm.probe")).unwrap();
    ready.fails(&[("token hsm", "pin-refused.hsm cannot be used", "check its directory")]);
}

#[test]
fn tokens_keys_and_modules() {
    // The token has another CA's key but not the bundle's.
    let (ready, other) = (Ready::new(), Ready::new());
    for file in ["ca-cert.pem", "root-cert.pem", "cert-chain.pem"] {
        fs::copy(other.machine.path("bundle").join(file), ready.machine.path("bundle").join(file)).unwrap();
    }
    ready.fails(&[("token hsm", "holds no private key whose signature verifies with ca-cert.pem", "import it")]);
    // A fresh token has no keys at all.
    ready.machine.directory.init_token("empty");
    let ready = ready.with("token=ca", "token=empty");
    let findings =
        ready.fails(&[("token hsm", "holds no private key whose signature verifies with ca-cert.pem", "import it")]);
    assert!(warned(&findings, "token hsm", "no checkpoints of the issuance log are signed"), "{findings:#?}");
    assert!(warned(&findings, "token hsm", "canary key"), "{findings:#?}");
    ready.machine.directory.init_token("empty");
    ready.fails(&[("token hsm", "several tokens in", "add serial= to the URI")]);
}

#[test]
fn a_library_that_is_none() {
    let ready = Ready::new();
    let module = module_path().display().to_string();
    ready.machine.write("no-library.so", "this is no library");
    let path = ready.machine.path("no-library.so").display().to_string();
    let ready = ready.with(&module, &path);
    ready.fails(&[("token hsm", "no-library.so cannot be used", "check module-path")]);
    let ready = ready.with(&path, "/nowhere/module.so");
    ready.fails(&[("token hsm", "/nowhere/module.so cannot be used", "check module-path")]);
}

#[test]
fn a_token_with_an_environment_of_its_own() {
    let ready = Ready::new();
    // A copy of the same token, found only with its own SOFTHSM2_CONF.
    let other: Directory = ready.machine.directory.duplicate();
    let conf = other.conf().display().to_string();
    let uri = ready.machine.directory.uri("ca");
    let second = format!(
        "[[token]]\nname = \"second\"\nuri = \"{uri}\"\nenvironment = {{ SOFTHSM2_CONF = \"{conf}\" }}\n[listen]"
    );
    let ready = ready.with("[listen]", &second);
    ready.fails(&[]);
    fs::remove_dir_all(other.path().join("tokens")).unwrap();
    fs::create_dir(other.path().join("tokens")).unwrap();
    ready.fails(&[("token second", "it holds", "inspect --module")]);
}

#[test]
fn a_host_that_others_run() {
    let ready = Ready::new();
    let socket = ready.machine.path("host.sock");
    let uri = format!("uri = \"{}\"", ready.machine.directory.uri("ca"));
    let environment = format!("environment = {{ SOFTHSM2_CONF = \"{}\" }}", ready.machine.directory.conf().display());
    let ready = ready.with(&uri, &format!("socket = \"{}\"", socket.display())).with(&environment, "");
    ready.fails(&[("token hsm", "no token host answers", "start the host")]);
    let _host = UnixListener::bind(&socket).unwrap();
    ready.fails(&[]);
    let ready = ready.with("name = \"hsm\"", "name = \"hsm\"\nsocket_uid = 4242");
    ready.fails(&[("token hsm", "not 4242", "run the host as that user")]);
}

#[test]
fn check_reports_the_state_of_the_log() {
    let ready = Ready::new();
    let segment = ready.machine.path("log/00000000000000000000.jsonl");
    let whole = fs::read(&segment).unwrap_or_else(|error| {
        panic!(
            "{error}: {:?}",
            fs::read_dir(ready.machine.path("log")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
        )
    });
    // An incomplete last line, as left by a crash, is not moved.
    let torn = [whole.as_slice(), b"{\"half"].concat();
    fs::write(&segment, &torn).unwrap();
    assert!(warned(&ready.fails(&[]), "log", "6 bytes of a line"), "{:?}", ready.check());
    assert_eq!(fs::read(&segment).unwrap(), torn, "check changes nothing");
    // A malformed line is an error.
    fs::write(&segment, [whole.as_slice(), b"{}\n"].concat()).unwrap();
    ready.fails(&[("log", "line 2", "log verify")]);
    fs::write(&segment, &whole).unwrap();
    // Another daemon has the log open.
    let lock = fs::File::open(ready.machine.path("log/lock")).unwrap();
    lock.lock().unwrap();
    ready.fails(&[("log", "another process has this log open", "stop it")]);
    drop(lock);
    ready.fails(&[]);
    // The log cannot be created.
    let root = ready.machine.directory.path().display().to_string();
    let ready = ready.with(&format!("{root}/log"), &format!("{root}/config.toml/log"));
    ready.fails(&[
        ("token hsm", "pin-refused.hsm cannot be used", "check its directory"),
        ("log", "", ""),
        ("log", "is not a directory", "name another path"),
    ]);
}

#[test]
fn a_clock_behind_the_log() {
    let ready = Ready::new();
    let segment = ready.machine.path("log/00000000000000000000.jsonl");
    let lines = fs::read_to_string(&segment).unwrap();
    let year = lines.find("\"time\":\"").map(|at| lines[at + 8..at + 12].to_owned()).unwrap();
    // These lines are not covered by a checkpoint yet, so the log is still valid.
    fs::write(&segment, lines.replace(&format!("\"time\":\"{year}"), "\"time\":\"2999")).unwrap();
    ready.fails(&[("clock", "behind the newest record", "set the clock right")]);
}

#[test]
fn those_who_prove_who_calls() {
    let ready = Ready::new();
    let keys = ready.machine.path("keys.json").display().to_string();
    let issuer = format!(
        "[[auth.jwt]]\nissuer = \"https://issuer.test\"\nkeys = {{ file = {{ path = \"{keys}\" }} }}\n[listen]"
    );
    let ready = ready.with("[listen]", &issuer);
    let findings = ready.fails(&[]);
    // A key set without keys is not valid.
    assert!(warned(&findings, "auth", "issuer https://issuer.test"), "{findings:#?}");
    // One that is missing may come later.
    fs::remove_file(&keys).unwrap();
    let findings = ready.fails(&[]);
    assert!(warned(&findings, "auth", "keys.json cannot be read"), "{findings:#?}");
    let remedy = "name a readable file; until then its tokens are refused, and `serve` keeps trying";
    assert!(findings.iter().any(|finding| finding["remedy"] == remedy), "{findings:#?}");
    ready.machine.write(
        "keys.json",
        r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"1","use":"sig",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
    );
    assert!(!warned(&ready.fails(&[]), "auth", "issuer"));
}

#[test]
fn check_reports_serving_certificate_problems() {
    let ready = Ready::new();
    let root = ready.machine.directory.path().display().to_string();
    for name in ["one", "two"] {
        ready.machine.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.crt -subj /CN={name}"
        ));
    }
    let files = format!("certificate_file = \"{root}/one.crt\"\nkey_file = \"{root}/one.key\"");
    let ready = ready.with("dns_names = [\"ca.test\"]", &files);
    ready.fails(&[]);
    ready.with("one.key", "two.key").fails(&[("serving", "the key is not that of", "")]);
}

/// Each stops `serve` as well, with the same words.
#[test]
fn check_finds_what_stops_serve() {
    let leaf = |ready: &Ready, change: fn(&mut rcgen::CertificateParams)| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["other.test".to_owned()]).unwrap();
        change(&mut params);
        ready.machine.write("tls.crt", params.self_signed(&key).unwrap().pem());
        ready.machine.write("tls.key", key.serialize_pem());
    };
    let ready = Ready::new();
    let root = ready.machine.directory.path().display().to_string();
    let files =
        format!("dns_names = [\"ca.test\"]\ncertificate_file = \"{root}/tls.crt\"\nkey_file = \"{root}/tls.key\"");
    let ready = ready.with("dns_names = [\"ca.test\"]", &files);
    leaf(&ready, |_| ());
    ready.fails(&[("serving", "not valid for DNS:ca.test; its names are DNS:other.test", "subject alternative name")]);
    leaf(&ready, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 2));
    ready.fails(&[("serving", "expired at 2020-01-02", "renewed certificate")]);

    let long = format!("/tmp/{}/admin.sock", "x".repeat(100));
    let cases: [(&str, &str, (&str, &str, &str), bool); 7] = [
        (
            "[admin]",
            &format!("[admin]\nsocket = \"{long}\""),
            ("addresses", "the path has 116 bytes, and that of a socket has at most 107", "shorter path"),
            true,
        ),
        (
            "[admin]",
            "[admin]\nsocket = \"/nowhere/admin.sock\"",
            ("addresses", "its directory does not exist", "create /nowhere"),
            true,
        ),
        (
            "[listen]\naddress = \"127.0.0.1:0\"",
            "[listen]\naddress = \"0.0.0.0:0\"\nplaintext = true",
            ("addresses", "refusing to serve plaintext on 0.0.0.0:0", "127.0.0.1"),
            true,
        ),
        (
            "[listen]\naddress = \"127.0.0.1:0\"",
            "[listen]\naddress = \"192.0.2.1:0\"",
            ("addresses", "cannot listen on 192.0.2.1:0", "configure an address of this machine"),
            true,
        ),
        (
            "[listen]",
            "[auth.client_certificate]\ndenylist = \"/nowhere/denylist\"\n[listen]",
            ("auth", "/nowhere/denylist cannot be read", ""),
            true,
        ),
        (
            "[log]",
            "[token_host]\ndns_names = [\"other.test\"]\n[log]",
            ("limits", "the serving certificate would not be issued", "[token_host]"),
            false,
        ),
        (
            "[log]",
            "[token_host]\nmax_validity = \"12h\"\n[log]",
            (
                "limits",
                "a workload's certificate in the trust domain cluster.local would not be issued",
                "[token_host]",
            ),
            false,
        ),
    ];
    for (from, to, (part, text, remedy), ends) in cases {
        let ready = Ready::new().with(from, to);
        let (_, findings) = ready.check();
        let found = findings.iter().any(|finding| {
            finding["level"] == "error"
                && finding["part"] == part
                && finding["text"].as_str().unwrap().contains(text)
                && finding["remedy"].as_str().unwrap().contains(remedy)
        });
        assert!(found, "{part}: {text}; {remedy}: {findings:#?}");
        if ends {
            let served = ready.machine.run("serve --config $/config.toml", &[]);
            assert_eq!(served.status, 1, "{served:?}");
            assert!(served.err.contains(text), "{text}: {served:?}");
        }
    }
}

#[test]
fn issue_checks_its_output_file_before_it_signs() {
    let ready = Ready::new();
    ready.machine.write("config.toml", &ready.config);
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    ready.machine.write("request.csr", request.pem().unwrap());
    ready.machine.write("key.pem", key.serialize_pem());
    let segment = ready.machine.path("log/00000000000000000000.jsonl");
    let before = fs::read(&segment).unwrap();
    let issue = |out: &str| {
        let id = "spiffe://cluster.local/ns/demo/sa/httpbin";
        ready
            .machine
            .run(&format!("issue --config $/config.toml --csr $/request.csr --spiffe-id {id} --out {out}"), &[])
    };
    for (out, expected) in [
        ("$/key.pem", "holds something else than certificates"),
        ("$/bundle", "is a directory; name a file"),
        ("$/key.pem/chain.pem", "key.pem: cannot be written"),
        ("/proc/nothing/chain.pem", "/proc: cannot be written"),
    ] {
        issue(out).refused(&["nothing was issued: --out", expected]);
    }
    assert_eq!(fs::read(&segment).unwrap(), before, "nothing was signed");
    for _ in 0..2 {
        let done = issue("$/chain.pem");
        assert_eq!(done.status, 0, "its own file is replaced: {done:?}");
    }
    assert!(fs::read_to_string(ready.machine.path("chain.pem")).unwrap().contains("BEGIN CERTIFICATE"));
}

#[test]
fn check_warns_of_a_log_origin_that_follows_from_a_generated_host_name() {
    let ready = Ready::new();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let findings = ready.fails(&[]);
    let generated = host.len() == 12 && host.bytes().all(|byte| byte.is_ascii_hexdigit());
    if generated {
        assert!(warned(&findings, "log", "which looks generated"), "{findings:#?}");
    }
    let ready = ready.with("[log]", &format!("[log]\norigin = \"{host}/istio-hsm-ca\""));
    assert!(!warned(&ready.fails(&[]), "log", "which looks generated"));
}
