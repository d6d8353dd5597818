//! The checked-in protocol code matches proto/token_host.proto, so that the build needs no generator.

use std::path::Path;

/// `UPDATE_GENERATED=1 cargo test -p istio-hsm-ca-token-host --test generated` writes the code.
#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
    compiler.include_source_info(true).open_file(root.join("proto/token_host.proto")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    prost_build::Config::new().out_dir(directory.path()).compile_fds(compiler.file_descriptor_set()).unwrap();
    let fresh = std::fs::read(directory.path().join("istio_hsm_ca.token_host.rs")).unwrap();
    let path = root.join("src/generated/istio_hsm_ca.token_host.rs");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == fresh, "{} does not match proto/token_host.proto", path.display());
}
