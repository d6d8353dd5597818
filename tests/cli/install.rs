//! `install`: a certificate signed by the root's owner.

use super::harness::{Machine, exists};

/// A machine with a key in the token, its CSR, and an offline root in root.key and root.pem.
fn requested(algorithm: &str) -> Machine {
    let machine = Machine::new();
    machine.done(&format!("generate --algorithm {algorithm} --csr $/ca.csr --subject O=Company,CN=Mesh"));
    root(&machine, "root");
    machine
}

fn root(machine: &Machine, name: &str) {
    machine.openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -days 3650 -subj /CN={name} \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign"
    ));
}

/// The root's owner signs the CSR.
fn sign(machine: &Machine, root: &str, out: &str, days: u32) {
    machine.openssl(&format!(
        "x509 -req -in ca.csr -CA {root}.pem -CAkey {root}.key -days {days} -copy_extensions copyall -out {out}"
    ));
}

fn names(machine: &Machine) -> String {
    let [ca, chain, root] = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"];
    format!("--ca-cert {} --cert-chain {} --root-cert {}", path(machine, ca), path(machine, chain), path(machine, root))
}

fn path(machine: &Machine, name: &str) -> String {
    machine.path(&format!("signed/{name}")).display().to_string()
}

/// Writes the three files of the signed CA to signed/.
fn signed(machine: &Machine, root: &str, days: u32) {
    sign(machine, root, "ca.pem", days);
    machine.write("signed/ca-cert.pem", machine.read("ca.pem"));
    machine.write("signed/cert-chain.pem", machine.read("ca.pem"));
    machine.write("signed/root-cert.pem", machine.read(&format!("{root}.pem")));
}

#[test]
fn the_signed_certificate_is_installed_and_renewed() {
    for algorithm in ["p256", "rsa-2048"] {
        let machine = requested(algorithm);
        signed(&machine, "root", 365);
        let receipt = machine.json("install --from $/signed --bundle $/bundle");
        assert_eq!(receipt["certificate"], "written");
        assert_eq!(receipt["label"], "istio-ca");
        for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
            assert_eq!(machine.read(&format!("bundle/{file}")), machine.read(&format!("signed/{file}")), "{file}");
        }
        machine.openssl("verify -x509_strict -CAfile bundle/root-cert.pem bundle/ca-cert.pem");
        let view = machine.json("inspect --bundle $/bundle");
        assert_eq!(view["bundle"]["key_in_token"], true);
        assert_eq!(view["certificates"].as_array().unwrap().len(), 1);

        // Installing the same again changes nothing; a renewed certificate replaces the old one.
        let before = machine.contents();
        assert_eq!(machine.json("install --from $/signed --bundle $/bundle")["certificate"], "unchanged");
        assert_eq!(machine.contents(), before);
        signed(&machine, "root", 400);
        let receipt = machine.json(&format!("install {} --bundle $/bundle", names(&machine)));
        assert_eq!(receipt["certificate"], "replaced");
        assert_eq!(machine.read("bundle/ca-cert.pem"), machine.read("signed/ca-cert.pem"));
        assert_eq!(machine.json("inspect")["certificates"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_certificate_that_expires_soon_is_warned_of() {
    let machine = requested("p256");
    signed(&machine, "root", 30);
    let done = machine.done("install --from $/signed --bundle $/bundle");
    assert!(done.err.contains("warning:") && done.err.contains("expires"), "{done:?}");
}

#[test]
fn another_keys_certificate_is_refused() {
    let machine = requested("p256");
    root(&machine, "stranger");
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        machine.write(&format!("signed/{file}"), machine.read("stranger.pem"));
    }
    let before = machine.token_files();
    machine.refused("install --from $/signed --bundle $/bundle", &["ca-cert.pem", "its key is not in the token ca"]);
    assert_eq!(machine.token_files(), before);
    assert!(!exists(&machine.path("bundle")));
}

#[test]
fn all_reasons_are_reported_without_using_the_token() {
    let machine = requested("p256");
    signed(&machine, "root", 365);
    root(&machine, "other");
    let before = machine.token_files();
    // Issued by another root than the given one.
    machine.write("signed/root-cert.pem", machine.read("other.pem"));
    machine.refused("install --from $/signed --bundle $/bundle", &["nothing was installed", "ca-cert.pem"]);
    // Two invalid files at once, with JSON output.
    std::fs::remove_file(machine.path("signed/root-cert.pem")).unwrap();
    std::fs::remove_file(machine.path("signed/cert-chain.pem")).unwrap();
    let done = machine.run("install --from $/signed --bundle $/bundle --output json", &machine.token());
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!((done.status, error["reasons"].as_array().unwrap().len()), (1, 2), "{error}");
    machine.write("signed/cert-chain.pem", "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n");
    machine.write("signed/root-cert.pem", machine.read("root.pem"));
    machine.refused("install --from $/signed --bundle $/bundle", &["cert-chain.pem", "line "]);
    machine.refused(
        "install --from $/nowhere --bundle $/bundle",
        &["nowhere: is not a directory; name the one that holds"],
    );
    machine.write("file", "");
    std::fs::remove_file(machine.path("signed/root-cert.pem")).unwrap();
    machine.refused(
        "install --from $/signed --bundle $/file",
        &["root-cert.pem: is missing", "cert-chain.pem: line ", "--bundle", "file: is not a directory"],
    );
    assert_eq!(machine.token_files(), before);
    assert!(!exists(&machine.path("bundle")));
}

#[test]
fn install_rejects_incomplete_options() {
    let machine = Machine::new();
    machine.run("install --bundle $/bundle", &machine.token()).usage(&["--from"]);
    machine.run("install --from $/signed", &machine.token()).usage(&["--bundle"]);
    machine.run("install --from $/a --ca-cert $/b --root-cert $/c --bundle $/d", &machine.token()).usage(&["--from"]);
    machine.run("install --ca-cert $/b --bundle $/d", &machine.token()).usage(&["--root-cert"]);
}
