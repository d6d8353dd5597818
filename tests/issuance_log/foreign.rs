//! Verifies with an independent implementation: the Go project's signed notes and transparency-log trees
//! (tests/foreign-verifier). Run by `make test-foreign`.

use std::{fs, path::Path, process::Command};

use audit_log::{Settings, prove, show};

use super::writer::{self, LogKey, ORIGIN};

#[test]
#[ignore = "needs Go and one module of its proxy: make test-foreign"]
fn another_implementation_verifies_checkpoints_roots_and_proofs() {
    if std::env::var("ISTIO_HSM_CA_SKIP").is_ok_and(|skip| skip.split(',').any(|part| part == "foreign-verifier")) {
        println!("skipped by ISTIO_HSM_CA_SKIP");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let verifier = scratch.path().join("foreign-verifier");
    let built = Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&verifier)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign-verifier"))
        .status();
    let built = built.unwrap_or_else(|error| {
        panic!("go: {error}; install the package golang-go, or set ISTIO_HSM_CA_SKIP=foreign-verifier to go without")
    });
    assert!(built.success(), "the foreign verifier was not built; the reason is above");

    // Trees of many sizes, and a log with several segments and checkpoints.
    for records in [1, 2, 3, 4, 5, 7, 8, 13, 16, 40] {
        let directory = scratch.path().join(format!("log-{records}"));
        let settings = Settings { segment_bytes: 9000, ..Settings::new(&directory, ORIGIN) };
        writer::written(settings.clone(), records);
        writer::written(settings, 3);
        let run = |key: &str, proof: &prove::Proof| {
            let (proof_file, leaf_file) = (scratch.path().join("proof"), scratch.path().join("leaf"));
            fs::write(&proof_file, proof.to_tlog_proof()).unwrap();
            fs::write(&leaf_file, &proof.text).unwrap();
            let output =
                Command::new(&verifier).arg(key).arg(&directory).arg(proof_file).arg(leaf_file).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let key = LogKey::new(1).verifier_key();
        let entries = show::entries(&directory, &show::Filter::default()).unwrap();
        for entry in entries.iter().step_by(3) {
            let proof = prove::by_serial(&directory, &entry.intent.serial).unwrap();
            assert_eq!(run(&key, &proof), (true, String::new()), "{records}");
        }
        // The verifier can fail: it rejects another key, another leaf, another path, and a changed log.
        let sound = prove::by_serial(&directory, &entries[0].intent.serial).unwrap();
        assert!(!run(&LogKey::new(2).verifier_key(), &sound).0);
        let mut other = sound.clone();
        other.text[30] ^= 1;
        assert!(!run(&key, &other).0);
        let mut other = sound.clone();
        other.path[0][0] ^= 1;
        assert!(!run(&key, &other).0);
        let first = directory.join("00000000000000000000.jsonl");
        let text = fs::read_to_string(&first).unwrap();
        fs::write(&first, text.replacen("leaf", "LEAF", 1)).unwrap();
        let (well, why) = run(&key, &sound);
        assert!(!well && why.contains("the lines give"), "{why}");
    }
}
