//! The checked-in code matches the proto file.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The checked-in code and descriptor match proto/ca.proto, so that the build needs no generator. `UPDATE_GENERATED=1
/// cargo test -p istio-hsm-ca-istio-api` writes them.
#[test]
fn generated_code_is_current() {
    let mut compiler = protox::Compiler::new([root().join("proto")]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_file(root().join("proto/ca.proto")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(directory.path())
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())
        .unwrap();
    let code = std::fs::read(directory.path().join("istio.v1.auth.rs")).unwrap();
    let descriptor = compiler.include_source_info(false).encode_file_descriptor_set();
    let files: [(PathBuf, Vec<u8>); 2] = [
        (root().join("src/generated/istio.v1.auth.rs"), code),
        (root().join("src/generated/istio.v1.auth.fds.bin"), descriptor),
    ];
    for (path, fresh) in files {
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == fresh, "{} is not what proto/ca.proto gives", path.display());
    }
}
