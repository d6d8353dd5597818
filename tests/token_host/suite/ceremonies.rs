//! Ceremonies in each module: a root is created, renewed with the key in the token, and destroyed.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{
    modules::{Capability, LABEL, Module},
    place::Place,
};

/// Rehearses and performs an act. Returns the transcript.
fn perform(place: &Place, name: &str, act: &str, input: &str) -> Result<Value, String> {
    let head = format!(
        "version = 1\ntitle = \"{name}\"\ntoken = \"{}\"\nparticipants = [{{ name = \"Ann\", role = \"operator\" }}]\n\
         log = {{ directory = \"acts\", origin = \"suite.test/ceremonies\" }}\n",
        place.uri()
    );
    fs::write(place.path(&format!("{name}.toml")), format!("{head}{act}")).unwrap();
    let file = place.text(&format!("{name}.toml"));
    let (rehearsal, key) = (place.text(&format!("{name}.rehearsal.json")), place.text("operator"));
    for mode in [vec!["--rehearse"], vec!["--rehearsed", &rehearsal, "--sign-with", &key]] {
        let mut command = place.module.command(place.root(), env!("CARGO_BIN_EXE_istio-hsm-ca"));
        command.args(["ceremony", "run", &file]).args(mode).envs(place.environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The rehearsal asks nothing and closes its input.
        let _closed = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    let transcript = fs::read_to_string(place.path(&format!("{name}.transcript.json"))).unwrap();
    Ok(serde_json::from_str(&transcript).unwrap())
}

/// A root that is created, renewed and destroyed by ceremonies.
pub fn root(module: Module) {
    let place = Place::new(module);
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(place.path("operator"));
    assert!(keygen.status().unwrap().success());
    let key = module.usual_key();
    let act = format!(
        "[create_root]\nalgorithm = \"{}\"\nlabel = \"root\"\nsubject = \"O=Suite,CN=Root\"\n\
         not_before = \"2026-01-01\"\nnot_after = \"2046-01-01\"\noutput = \"root.pem\"\n",
        key.name()
    );
    let created = perform(&place, "create", &act, "");
    if let Some(reason) = module.cannot(Capability::Generate(key)) {
        assert!(created.is_err(), "outdated: {reason}");
        return;
    }
    let created = created.unwrap();
    assert_eq!(created["key"]["attributes"]["extractable"], false, "{created}");
    let digest = created["outputs"][0]["sha256"].as_str().unwrap();
    let act = format!(
        "[renew_certificate]\ncertificate = {{ file = \"root.pem\", sha256 = \"{digest}\" }}\n\
         not_before = \"2026-01-01\"\nnot_after = \"2055-01-01\"\noutput = \"renewed.pem\"\n"
    );
    perform(&place, "renew", &act, "").unwrap();
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-CAfile"]).args([place.path("renewed.pem"), place.path("renewed.pem")]);
    let verified = verify.output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    let key = created["key"]["key_sha256"].as_str().unwrap();
    let before = place.keys();
    let act = format!("[retire_key]\nkey_sha256 = \"{key}\"\n");
    let retired = perform(&place, "retire", &act, &format!("{}\n{LABEL}\n", &key[..16])).unwrap();
    assert_eq!(retired["result"], "done", "{retired}");
    assert_eq!(place.keys(), before - 1);
}
