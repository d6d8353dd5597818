//! scripts/release.sh: the release is reproducible and complete, and the Debian package is installed, used, upgraded and
//! removed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

use crate::{
    guide,
    image::must,
    rendered::root,
    systemd::{BEFORE, CHECKS, PASSED, under_systemd},
};

/// The release of a checkout's last commit, built in a copy of the repository.
struct Release {
    _directory: tempfile::TempDir,
    dist: PathBuf,
}

impl Release {
    fn build() -> Self {
        let directory = tempfile::tempdir_in(root().join("target")).unwrap();
        let source = directory.path().join("source");
        must("git", "git", &["clone", "--quiet", text(&root()), text(&source)]);
        let script = source.join("scripts/release.sh");
        let output = Command::new("bash").arg(script).env_remove("CARGO_TARGET_DIR").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let dist = directory.path().join("dist");
        fs::rename(source.join("target/dist"), &dist).unwrap();
        fs::remove_dir_all(source).unwrap();
        Self { _directory: directory, dist }
    }

    /// The only file with this ending.
    fn file(&self, ending: &str) -> PathBuf {
        let files: Vec<_> = self.files().into_keys().filter(|name| name.ends_with(ending)).collect();
        assert_eq!(files.len(), 1, "{ending}: {files:?}");
        self.dist.join(&files[0])
    }

    /// The digests of all files.
    fn files(&self) -> BTreeMap<String, String> {
        let sums = fs::read_to_string(self.dist.join("SHA256SUMS")).unwrap();
        let line =
            |line: &str| line.split_once("  ").map(|(digest, name)| (name.to_owned(), digest.to_owned())).unwrap();
        sums.lines().map(line).collect()
    }
}

static RELEASE: LazyLock<Release> = LazyLock::new(Release::build);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[ignore = "builds twice with whole-program optimization: make test-release"]
fn release_is_the_same_in_another_directory() {
    let other = Release::build();
    assert!(RELEASE.files().len() >= 5, "{:?}", RELEASE.files());
    assert_eq!(RELEASE.files(), other.files());
}

#[test]
#[ignore = "builds with whole-program optimization: make test-release"]
fn released_programs_are_stripped_and_name_their_dependencies() {
    let directory = tempfile::tempdir().unwrap();
    must(
        "tar",
        "tar",
        &["-C", text(directory.path()), "-xf", text(&RELEASE.file(&format!("{}.tar.xz", std::env::consts::ARCH)))],
    );
    must("tar", "tar", &["-C", text(directory.path()), "-xf", text(&RELEASE.file("debug-symbols.tar.xz"))]);
    for (program, _) in guide::PROGRAMS {
        let path = directory.path().join("bin").join(program);
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < 40 << 20, "{program} has {size} bytes");
        let sections = must("readelf", "binutils", &["--sections", "--wide", text(&path)]);
        assert!(sections.contains(".dep-v0") && !sections.contains(".debug_info"), "{sections}");
        let notes = must("readelf", "binutils", &["--notes", text(&path)]);
        let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap();
        let symbols =
            directory.path().join("usr/lib/debug/.build-id").join(&id[..2]).join(format!("{}.debug", &id[2..]));
        assert!(symbols.exists(), "{program}: {}", symbols.display());
        // Nothing of the machine on which it was built.
        let bytes = fs::read(&path).unwrap();
        let at = text(RELEASE.dist.parent().unwrap()).as_bytes();
        assert!(!bytes.windows(at.len()).any(|window| window == at), "{program} contains the path of its build");

        let bill = fs::read(RELEASE.file(&format!("{program}-{}.cdx.json", env!("CARGO_PKG_VERSION")))).unwrap();
        let bill: Value = serde_json::from_slice(&bill).unwrap();
        assert_eq!(bill["bomFormat"], "CycloneDX");
        let components: Vec<_> = bill["components"].as_array().unwrap().iter().map(|part| &part["name"]).collect();
        assert!(components.iter().any(|name| *name == "cryptoki"), "{components:?}");
        assert_eq!(components.iter().any(|name| *name == "tonic"), program == "istio-hsm-ca", "{components:?}");
    }
}

/// After the guide's blocks: an upgrade while the services run, removal, purge.
const UPGRADE: &str = r#"
issue
[ "$(man --where istio-hsm-ca-import 2>/dev/null || ls /usr/share/man/man1/istio-hsm-ca-import.1.gz)" = /usr/share/man/man1/istio-hsm-ca-import.1.gz ]
for file in bash-completion/completions/istio-hsm-ca zsh/vendor-completions/_istio-hsm-ca \
  fish/vendor_completions.d/istio-hsm-ca.fish doc/istio-hsm-ca/docs/GUIDE.md doc/istio-hsm-ca/copyright; do
  test -s /usr/share/$file*
done
bash -n /usr/share/bash-completion/completions/istio-hsm-ca
pids() { systemctl show --property MainPID --value istio-hsm-ca istio-hsm-ca-token@hsm; }
before=$(pids)
cp /etc/istio-hsm-ca/config.toml config-before
dpkg --install "$NEWER"
[ "$before" != "$(pids)" ]
ready
issue
cmp config-before /etc/istio-hsm-ca/config.toml
dpkg --remove istio-hsm-ca
[ "$(systemctl show --property MainPID --value istio-hsm-ca)" = 0 ]
if pgrep --full /usr/bin/istio-hsm-ca; then exit 1; fi
test ! -e /usr/bin/istio-hsm-ca -a ! -e /usr/lib/systemd/system/istio-hsm-ca.service
test ! -e /etc/systemd/system/multi-user.target.wants/istio-hsm-ca.service
dpkg --purge istio-hsm-ca
cmp config-before /etc/istio-hsm-ca/config.toml
test -s /etc/istio-hsm-ca/token/hsm.pin
ls /var/lib/istio-hsm-ca/log/* >/dev/null
"#;

#[test]
#[ignore = "needs systemd and root, and builds with whole-program optimization: make test-release"]
fn package_is_installed_used_upgraded_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let package = RELEASE.file(".deb");
    let (tree, newer) = (directory.path().join("tree"), directory.path().join("newer.deb"));
    must("dpkg-deb", "dpkg", &["--raw-extract", text(&package), text(&tree)]);
    let control = tree.join("DEBIAN/control");
    let changed = fs::read_to_string(&control).unwrap().replace("\nVersion: ", "\nVersion: 99.");
    fs::write(&control, changed).unwrap();
    must("dpkg-deb", "dpkg", &["--build", "--root-owner-group", text(&tree), text(&newer)]);
    let install = format!("dpkg --install {}\nNEWER={}", package.display(), newer.display());
    // The first block installs the same by hand.
    let blocks = guide::script(&guide::blocks(&guide::page(), guide::SYSTEMD)[1..]);
    under_systemd(&[], &[BEFORE, &install, &blocks, CHECKS, UPGRADE, PASSED]);
}
