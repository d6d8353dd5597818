//! `ceremony`: acts with an offline root's key, each rehearsed, performed and judged by openssl and ssh-keygen.

use std::{fs, process::Command};

use der::{Reader, SliceReader, asn1::AnyRef};
use serde_json::Value;

use super::harness::{Done, Machine, exists};
use testkit::softhsm::PIN;

/// The root of most tests.
const ROOT: &str = "[create_root]\nalgorithm = \"p384\"\nlabel = \"root\"\nsubject = \"O=Example,CN=Root 2026\"\n\
    not_before = \"2026-01-01\"\nnot_after = \"2056-01-01\"\noutput = \"root.pem\"\n";

/// A machine with an operator's SSH key, and a ceremony file for each act.
struct Desk {
    machine: Machine,
}

impl Desk {
    fn new() -> Self {
        let machine = Machine::new();
        let key = machine.path("operator");
        let status =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f"]).arg(&key).status();
        assert!(status.unwrap().success());
        let public = machine.read("operator.pub");
        machine.write("allowed", format!("ann namespaces=\"istio-hsm-ca-ceremony\" {public}"));
        machine.directory.pin_file();
        Self { machine }
    }

    fn sha256(&self, file: &str) -> String {
        self.machine.openssl(&format!("dgst -sha256 -r {file}"))[..64].to_owned()
    }

    /// An input: its name and digest.
    fn input(&self, file: &str) -> String {
        format!("{{ file = \"{file}\", sha256 = \"{}\" }}", self.sha256(file))
    }

    fn write(&self, name: &str, act: &str) {
        let head = format!(
            "version = 1\ntitle = \"A test\"\ntoken = \"{}\"\n\
             participants = [{{ name = \"Ann\", role = \"operator\" }}, {{ name = \"Bob\", role = \"witness\" }}]\n\
             log = {{ directory = \"log\", origin = \"ca.test/root\" }}\n",
            self.machine.uri("ca")
        );
        self.machine.write(&format!("{name}.toml"), format!("{head}\n{act}"));
    }

    fn rehearse(&self, name: &str) -> Done {
        self.machine.run(&format!("ceremony run $/{name}.toml --rehearse"), &[])
    }

    fn act(&self, name: &str, input: &str) -> Done {
        let words = format!(
            "ceremony run $/{name}.toml --rehearsed $/{name}.rehearsal.json --sign-with $/operator --pin-file $/pin"
        );
        self.machine.run_with(&words, &[], input.as_bytes())
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_str(&self.machine.read(file)).unwrap()
    }

    /// Rehearses and performs an act, and compares the two. Returns the transcript of the act.
    fn perform(&self, name: &str, act: &str) -> Value {
        self.write(name, act);
        let before = self.machine.token_files();
        let rehearsed = self.rehearse(name);
        assert_eq!(rehearsed.status, 0, "{rehearsed:?}");
        assert_eq!(self.machine.token_files(), before, "the rehearsal has changed the token");
        let done = self.act(name, "");
        assert_eq!(done.status, 0, "{done:?}");
        let (rehearsal, transcript) =
            (self.json(&format!("{name}.rehearsal.json")), self.json(&format!("{name}.transcript.json")));
        assert_eq!(rehearsal["signed"]["comparable_sha256"], transcript["signed"]["comparable_sha256"]);
        assert_eq!(rehearsal["inputs"], transcript["inputs"]);
        assert_eq!((&transcript["kind"], &transcript["result"]), (&"act".into(), &"done".into()));
        assert!(self.verify_signature(name), "{done:?}");
        let text = self.machine.read(&format!("{name}.transcript.txt"));
        for expected in
            ["KEY CEREMONY", "Ann (operator)", "Bob (witness)", &self.sha256(&format!("{name}.transcript.json"))]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains(PIN));
        transcript
    }

    fn verify_signature(&self, name: &str) -> bool {
        let path = |file: &str| self.machine.path(file);
        let transcript = fs::File::open(path(&format!("{name}.transcript.json"))).unwrap();
        let signature = path(&format!("{name}.transcript.json.sig"));
        let allowed = path("allowed");
        let mut verify = Command::new("ssh-keygen");
        verify.args(["-q", "-Y", "verify", "-I", "ann", "-n", "istio-hsm-ca-ceremony", "-f"]).arg(allowed);
        verify.arg("-s").arg(signature).stdin(transcript).status().unwrap().success()
    }
}

/// The files of deploy/ceremonies, in an order in which they can be performed.
const EXAMPLES: [&str; 8] = [
    "create-root",
    "sign-intermediate",
    "issue-crl",
    "create-next-root",
    "cross-certify",
    "renew-certificate",
    "import-key",
    "retire-key",
];

/// A file of deploy/ceremonies with this test's token, and the digests of its inputs in place of the zeros.
fn example(desk: &Desk, name: &str, key_sha256: &str) -> String {
    let path = testkit::root().join(format!("deploy/ceremonies/{name}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    let mut filled = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        if line.starts_with("token = ") {
            line = format!("token = \"{}\"", desk.machine.uri("ca"));
        } else if line.starts_with("key_sha256 = ") {
            line = format!("key_sha256 = \"{key_sha256}\"");
        } else if let (false, Some((_, file))) = (line.starts_with('#'), line.split_once("file = \"")) {
            let digest = desk.sha256(file.split('"').next().unwrap());
            line = line.replace(&"0".repeat(64), &digest);
        }
        filled.push_str(&line);
        filled.push('\n');
    }
    filled
}

#[test]
fn example_files_are_performed() {
    let desk = Desk::new();
    let machine = &desk.machine;
    let files = fs::read_dir(testkit::root().join("deploy/ceremonies")).unwrap().count();
    assert_eq!(files, EXAMPLES.len(), "a file is not in this test");
    let mut name = Command::new("openssl");
    name.args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.csr"]);
    name.args(["-subj", "/O=Example/CN=Example Mesh CA"]).current_dir(machine.directory.path());
    assert!(name.output().unwrap().status.success());
    machine.openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout existing-root-key.pem -out existing-root.pem -days 3650 \
         -subj /O=Example/CN=Existing -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
    );
    let mut key = String::new();
    for name in EXAMPLES {
        machine.write(&format!("{name}.toml"), example(&desk, name, &key));
        let rehearsed = desk.rehearse(name);
        assert_eq!(rehearsed.status, 0, "{name}: {rehearsed:?}");
        let confirmations = format!("{}\nca\n", key.get(..16).unwrap_or_default());
        let done = desk.act(name, &confirmations);
        assert_eq!(done.status, 0, "{name}: {done:?}");
        let transcript = desk.json(&format!("{name}.transcript.json"));
        key = transcript["key"]["key_sha256"].as_str().unwrap().to_owned();
    }
    machine.openssl("verify -x509_strict -CAfile root.pem ca-cert.pem");
    machine.openssl("crl -in root.crl -noout -verify -CAfile root.pem");
    machine.openssl("verify -x509_strict -CAfile root.pem new-root-by-root.pem");
    machine.openssl("verify -x509_strict -CAfile renewed-root.pem ca-cert.pem");
}

/// TBSCertificate or TBSCertList of a PEM text.
fn signed_part(pem: &str) -> Vec<u8> {
    let block = pki::pem::blocks(pem.as_bytes()).unwrap().remove(0);
    let whole = AnyRef::try_from(block.der.as_slice()).unwrap();
    SliceReader::new(whole.value()).unwrap().tlv_bytes().unwrap().to_vec()
}

#[test]
fn root_signs_an_intermediate_and_its_crl_as_rehearsed() {
    let desk = Desk::new();
    let machine = &desk.machine;
    let transcript = desk.perform("root", ROOT);
    assert_ne!(desk.json("root.rehearsal.json")["signed"]["sha256"], transcript["signed"]["sha256"], "a new key");
    assert_eq!(transcript["key"]["attributes"]["extractable"], false);
    assert_eq!(transcript["token"]["label"], "ca");
    machine.openssl("verify -x509_strict -check_ss_sig -CAfile root.pem root.pem");
    let text = machine.openssl("x509 -in root.pem -noout -text");
    for expected in ["Certificate Sign, CRL Sign", "CA:TRUE", "Root 2026", "Not After : Jan  1 00:00:00 2056"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    machine.openssl("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -subj /O=Example/CN=Mesh -out ca.csr");
    let act = format!(
        "[sign_intermediate]\nissuer = {}\nrequest = {}\nsubject = \"O=Example,CN=Mesh\"\nnot_before = \"2026-06-01\"\n\
         not_after = \"2049-06-01\"\npath_length = 0\noutput = \"ca.pem\"\n",
        desk.input("root.pem"),
        desk.input("ca.csr")
    );
    desk.perform("ca", &act);
    machine.openssl("verify -x509_strict -CAfile root.pem ca.pem");
    // The same bytes but for the signature.
    assert_eq!(signed_part(&machine.read("ca.rehearsal.pem")), signed_part(&machine.read("ca.pem")));
    assert!(!machine.try_openssl("verify -CAfile root.pem ca.rehearsal.pem").0, "signed by a stand-in");

    let serial = machine.openssl("x509 -in ca.pem -noout -serial");
    let act = format!(
        "[issue_crl]\nissuer = {}\nnumber = 1\nthis_update = \"2026-07-01\"\nnext_update = \"2049-07-01\"\noutput = \"root.crl\"\n\
         [[issue_crl.revoked]]\nserial = \"{}\"\nrevoked_at = \"2026-06-30\"\nreason = \"cACompromise\"\nexpires = \"2049-06-01\"\n",
        desk.input("root.pem"),
        serial.trim().trim_start_matches("serial=")
    );
    desk.perform("crl", &act);
    assert_eq!(signed_part(&machine.read("crl.rehearsal.pem")), signed_part(&machine.read("root.crl")));
    machine.openssl("crl -in root.crl -noout -verify -CAfile root.pem");
    let (valid, said) = machine.try_openssl("verify -crl_check -CRLfile root.crl -CAfile root.pem ca.pem");
    assert!(!valid && said.contains("certificate revoked"), "{said}");

    // Every act is in the log, which passes its verification.
    let log = machine.run("log show --directory $/log", &[]);
    for expected in
        ["ceremony create_root by Ann (operator), Bob (witness): begun", "sign_intermediate", "CRL 1", ": done"]
    {
        assert!(log.out.contains(expected), "{expected}: {log:?}");
    }
    machine.done_alone("log check-certificate --directory $/log $/ca.pem");
}

#[test]
fn roots_certify_each_other_and_are_renewed() {
    let desk = Desk::new();
    let machine = &desk.machine;
    desk.perform("old", &ROOT.replace("root.pem", "old.pem"));
    let new = ROOT.replace("root.pem", "new.pem").replace("\"root\"", "\"new\"").replace("2026\"\nnot", "2036\"\nnot");
    desk.perform("new", &new.replace("p384", "p256"));
    for (issuer, subject) in [("old", "new"), ("new", "old")] {
        let act = format!(
            "[cross_certify]\nissuer = {}\ncertificate = {}\nnot_before = \"2026-06-01\"\nnot_after = \"2049-06-01\"\n\
             output = \"{subject}-by-{issuer}.pem\"\n",
            desk.input(&format!("{issuer}.pem")),
            desk.input(&format!("{subject}.pem"))
        );
        desk.perform(&format!("{subject}-by-{issuer}"), &act);
        machine.openssl(&format!("verify -x509_strict -CAfile {issuer}.pem {subject}-by-{issuer}.pem"));
    }
    let act = format!(
        "[renew_certificate]\ncertificate = {}\nnot_before = \"2026-06-01\"\nnot_after = \"2056-01-01\"\noutput = \"renewed.pem\"\n",
        desk.input("old.pem")
    );
    desk.perform("renewed", &act);
    // What the old root certified is below the renewed one.
    machine.openssl("verify -x509_strict -CAfile renewed.pem new-by-old.pem");
    assert_eq!(signed_part(&machine.read("renewed.rehearsal.pem")), signed_part(&machine.read("renewed.pem")));
    for field in ["-pubkey", "-subject", "-ext subjectKeyIdentifier"] {
        let of = |file: &str| machine.openssl(&format!("x509 -in {file} -noout {field}"));
        assert_eq!(of("renewed.pem"), of("old.pem"), "{field}");
    }
}

#[test]
fn imported_key_is_retired_after_two_confirmations() {
    let desk = Desk::new();
    let machine = &desk.machine;
    machine.openssl(
        "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 3650 -subj /O=Example/CN=Root \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
    );
    let act = format!("[import_key]\ncertificate = {}\nkey = \"key.pem\"\nlabel = \"root\"\n", desk.input("cert.pem"));
    let transcript = desk.perform("import", &act);
    assert_eq!(transcript["key"]["label"], "root");
    let key = transcript["key"]["key_sha256"].as_str().unwrap().to_owned();
    assert_ne!(
        desk.json("import.rehearsal.json")["key"]["key_sha256"],
        key.as_str(),
        "the real key was in the rehearsal"
    );

    desk.write("retire", &format!("[retire_key]\nkey_sha256 = \"{key}\"\n"));
    assert_eq!(desk.rehearse("retire").status, 0);
    let before = machine.contents();
    let refused = desk.act("retire", "0123456789abcdef\nca\n");
    refused.refused(&["the first confirmation is not", "nothing was destroyed"]);
    assert_eq!(machine.contents(), before);
    fs::remove_file(machine.path("retire.transcript.json")).unwrap();
    for ending in ["txt", "json.sig"] {
        fs::remove_file(machine.path(&format!("retire.transcript.{ending}"))).unwrap();
    }
    // A ceremony that failed may be performed again.
    let done = desk.act("retire", &format!("{}\nca\n", &key[..16]));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(desk.verify_signature("retire"));
    let view = machine.json("inspect");
    assert!(!view.to_string().contains(&key), "{view}");
}

#[test]
fn act_is_refused_unless_it_is_as_rehearsed() {
    let desk = Desk::new();
    let machine = &desk.machine;
    desk.write("root", ROOT);
    let before = machine.token_files();
    machine.run("ceremony run $/root.toml", &[]).usage(&["--rehearse"]);
    machine.run("ceremony run $/root.toml --rehearsed $/x", &[]).usage(&["--sign-with"]);
    desk.act("root", "").refused(&["root.rehearsal.json: the transcript of the rehearsal cannot be read"]);
    assert_eq!(desk.rehearse("root").status, 0);

    desk.write("root", &ROOT.replace("2056", "2055"));
    desk.act("root", "").refused(&["not as rehearsed", "review and rehearse the file as it is now"]);
    desk.write("root", ROOT);
    let rehearsal = machine.read("root.rehearsal.json");
    machine.write("root.rehearsal.json", rehearsal.replace("\"sha256\": \"", "\"sha256\": \"0"));
    desk.act("root", "").refused(&["use the program that was rehearsed"]);
    machine.write("root.rehearsal.json", rehearsal.replace("\"rehearsal\"", "\"act\""));
    desk.act("root", "").refused(&["it is the transcript of an act"]);
    machine.write("root.rehearsal.json", &rehearsal);
    machine.write("root.pem", "");
    desk.act("root", "").refused(&["root.pem: exists already"]);
    fs::remove_file(machine.path("root.pem")).unwrap();
    let words = "ceremony run $/root.toml --rehearsed $/root.rehearsal.json --sign-with $/root.toml --pin-file $/pin";
    machine.run(words, &[]).refused(&["--sign-with", "it is not an SSH key"]);
    assert_eq!(machine.token_files(), before, "an object was made");
    assert!(!exists(&machine.path("log")), "something was recorded");

    assert_eq!(desk.act("root", "").status, 0);
    for file in ["root.pem", "root.transcript.json", "root.transcript.txt", "root.transcript.json.sig"] {
        fs::remove_file(machine.path(file)).unwrap();
    }
    desk.act("root", "").refused(&["this file was performed already"]);
}

#[test]
fn inputs_are_those_that_were_reviewed() {
    let desk = Desk::new();
    let machine = &desk.machine;
    desk.perform("root", ROOT);
    machine.openssl("req -new -newkey rsa:2048 -nodes -keyout ca.key -subj /CN=Mesh -out ca.csr");
    let act = |subject: &str, more: &str| {
        format!(
            "[sign_intermediate]\nissuer = {}\nrequest = {}\nsubject = \"{subject}\"\nnot_before = \"2026-06-01\"\n\
             not_after = \"2049-06-01\"\noutput = \"ca.pem\"\n{more}",
            desk.input("root.pem"),
            desk.input("ca.csr")
        )
    };
    let refused = |act: &str, expected: &[&str]| {
        desk.write("ca", act);
        desk.rehearse("ca").refused(expected);
    };
    refused(&act("CN=Other", ""), &["the request is for the subject \"CN=Mesh\""]);
    refused(
        &act("CN=Mesh", "").replace("2049-06", "2056-06"),
        &["what would be signed breaks a rule: the validity ends after the CA's", "correct the ceremony file"],
    );
    refused(&act("CN=Mesh", "").replace("2049", "2021"), &["not_after is not later than not_before"]);
    refused(&act("CN=Mesh", "unknown = 1\n"), &["unknown field `unknown`"]);
    refused(&act("CN=Mesh", "").replace("ca.csr", "root.pem"), &["its SHA-256 is"]);
    let good = act("CN=Mesh", "");
    machine.openssl("req -new -newkey rsa:2048 -nodes -keyout ca.key -subj /CN=Mesh -out ca.csr");
    refused(&good, &["ca.csr: its SHA-256 is", "put the reviewed file there"]);
}
