//! The inputs that the fuzzers have found and been given, each through what it was found for (scripts/fuzz.sh).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use istio_hsm_ca::auth::jwt::compact;

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// The inputs of a target by their files' names.
fn inputs(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn kept_inputs_keep_the_promises_of_their_parsers() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, run) in targets::TARGETS {
        let inputs = inputs(&corpus.join(target));
        let accepted = inputs.iter().filter(|(name, input)| {
            println!("{target}/{name}");
            run(input)
        });
        let accepted = accepted.count();
        // Otherwise the fuzzer would begin without anything to change.
        assert!(accepted > 0 && accepted < inputs.len(), "{target}: {accepted} of {} accepted", inputs.len());
    }
    let directories: BTreeSet<_> =
        fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(directories, targets::TARGETS.map(|(name, _)| name.to_owned()).into());
}
