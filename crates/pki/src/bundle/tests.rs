use proptest::prelude::*;

use super::*;

/// A root and a CA issued by it, made by openssl with its own defaults: PEM.
fn made() -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let output = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let request = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 3650";
    openssl(&format!("{request} -subj /CN=root -keyout root.key -out root.crt"));
    openssl(&format!("{request} -subj /CN=ca -CA root.crt -CAkey root.key -keyout ca.key -out ca.crt"));
    let read = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();
    (read("root.crt"), read("ca.crt"))
}

fn check(ca: &[u8], chain: &[u8], roots: &[u8]) -> Result<Bundle, Vec<Problem>> {
    let input = |name: &str, bytes: &[u8]| Input { name: name.to_owned(), bytes: bytes.to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", ca),
        cert_chain: input("cert-chain.pem", chain),
        root_cert: input("root-cert.pem", roots),
    };
    Bundle::check(files, std::time::SystemTime::now() + std::time::Duration::from_secs(60))
}

#[test]
fn every_flipped_bit_of_a_certificate_is_noticed() {
    let (root, ca) = made();
    let good = check(ca.as_bytes(), b"", root.as_bytes()).unwrap();
    assert_eq!(good.issuer().path_pem(), [ca]);
    let der = good.issuer().certificate().to_vec();
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        let text = pem::encode(LABEL, &changed);
        assert!(check(text.as_bytes(), b"", root.as_bytes()).is_err(), "byte {at}");
    }
}

#[test]
fn issuer_without_a_certificate_has_the_given_names() {
    let (root, _) = made();
    let bundle = check(root.as_bytes(), b"", root.as_bytes()).unwrap();
    let key = bundle.issuer().public_key().clone();
    let (start, end) = (bundle.issuer().not_before(), bundle.issuer().not_after());
    let issuer = Issuer::self_signed(bundle.issuer().subject().to_vec(), key.clone(), start, end);
    assert_eq!((issuer.subject(), issuer.public_key()), (bundle.issuer().subject(), &key));
    assert_eq!(issuer.subject_key_id(), Some(&key.key_id()[..]));
    assert_eq!((issuer.not_before(), issuer.not_after()), (start, end));
    assert!(issuer.path_pem().is_empty() && issuer.roots().is_empty() && issuer.certificate().is_empty());
    assert_eq!(bundle.issuer().subject_key_id(), issuer.subject_key_id(), "openssl computes another one");
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(ca: Vec<u8>, chain: Vec<u8>, roots: Vec<u8>) {
        let _ = check(&ca, &chain, &roots);
        let block = |der: &[u8]| pem::encode(LABEL, der).into_bytes();
        let _ = check(&block(&ca), &block(&chain), &block(&roots));
    }
}

#[test]
fn mangled_certificates_do_no_harm() {
    let (root, ca) = made();
    let der = pem::blocks(ca.as_bytes()).unwrap().remove(0).der;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let changes = proptest::collection::vec((0..der.len(), any::<u8>()), 1..6);
    let outcome = runner.run(&(changes, 0..der.len()), |(changes, length)| {
        let mut mangled = der.to_vec();
        changes.into_iter().for_each(|(at, to)| mangled[at] = to);
        let text = pem::encode(LABEL, &mangled);
        let _ = check(text.as_bytes(), text.as_bytes(), text.as_bytes());
        let _ = check(ca.as_bytes(), text.as_bytes(), root.as_bytes());
        mangled.truncate(length + 1);
        let text = pem::encode(LABEL, &mangled);
        prop_assert!(check(text.as_bytes(), b"", root.as_bytes()).is_err());
        Ok(())
    });
    outcome.unwrap();
}
