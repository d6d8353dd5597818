//! A small file system that a test can fill.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted file system, unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts a tmpfs with these options at a new directory.
    pub fn new(path: &Path, options: &str) -> Self {
        fs::create_dir(path).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status().unwrap();
        assert!(
            status.success(),
            "a test mounts a small file system: run it as root, in a container `--cap-add SYS_ADMIN`"
        );
        Self(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
