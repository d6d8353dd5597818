//! A fresh SoftHSM token for each test.
//!
//! Tests in one process share the library and a directory, since C_Initialize and SOFTHSM2_CONF are per process, but
//! each has its own token. Tests that start a program give it a separate [`Directory`]. `TEST_PKCS11_MODULE` selects
//! another library (Kryoptic) for the same tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use cryptoki::session::{Session, UserType};
use parking_lot::Mutex;
use secrecy::SecretString;
use token::{Module, Token, TokenUri};

use super::tmp;

/// The user's PIN of every test token.
pub const PIN: &str = "1234-user";

/// The security officer's PIN of every test token.
pub const SO_PIN: &str = "1234-officer";

const DEFAULT_MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// The library under test.
///
/// # Panics
/// If it is missing: a missing library is a failure, never a skip.
pub fn module_path() -> PathBuf {
    if let Some(path) = std::env::var_os("TEST_PKCS11_MODULE") {
        return PathBuf::from(path);
    }
    let found = DEFAULT_MODULES.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("SoftHSM is missing: install the package softhsm2, or name a library by TEST_PKCS11_MODULE")
}

/// Whether the library under test is SoftHSM.
pub fn is_softhsm() -> bool {
    module_path().to_string_lossy().contains("softhsm")
}

/// A token in the process's shared directory, used by one test only.
pub struct TestToken {
    /// The library.
    pub module: Module,
    /// The token.
    pub token: Token,
    /// Its URI, by label.
    pub uri: TokenUri,
}

impl TestToken {
    /// Creates a token with a label that begins with `name`.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        /// SoftHSM fails if tokens are created concurrently.
        static CREATION: Mutex<()> = Mutex::new(());
        let _one_at_a_time = CREATION.lock();
        let module = shared_module();
        let label = format!("{name:.20}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let pkcs11 = module.pkcs11();
        let blank = pkcs11
            .get_slots_with_token()
            .unwrap()
            .into_iter()
            .find(|slot| pkcs11.get_token_info(*slot).is_ok_and(|info| !info.token_initialized()))
            .expect("the library under test has no blank token left");
        pkcs11.init_token(blank, &SO_PIN.into(), &label).unwrap();
        let session = pkcs11.open_rw_session(blank).unwrap();
        session.login(UserType::So, Some(&SO_PIN.into())).unwrap();
        session.init_pin(&PIN.into()).unwrap();
        session.logout().unwrap();
        let uri: TokenUri = format!("pkcs11:token={label}").parse().unwrap();
        let token = module.find_token(&uri).unwrap();
        Self { module, token, uri }
    }

    /// A logged-in read-write session.
    pub fn session(&self) -> Session {
        let session = self.token.open_session(true).unwrap();
        self.token.login(&session, &pin()).unwrap();
        session
    }
}

/// The correct PIN.
pub fn pin() -> SecretString {
    SecretString::from(PIN)
}

/// A directory with SoftHSM's configuration and tokens, for a program that a test starts.
pub struct Directory {
    root: tempfile::TempDir,
}

impl Directory {
    /// Creates an empty one.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("softhsm-").tempdir_in(tmp()).unwrap();
        configure(root.path());
        Self { root }
    }

    /// Creates a copy with the same tokens.
    pub fn duplicate(&self) -> Self {
        let copy = Self::new();
        copy_all(&self.root.path().join("tokens"), &copy.root.path().join("tokens"));
        copy
    }

    /// Creates a token with [`PIN`].
    pub fn init_token(&self, label: &str) {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN])
            .env("SOFTHSM2_CONF", self.conf())
            .output()
            .expect("softhsm2-util is missing: install the package softhsm2");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// SoftHSM's configuration, for the variable SOFTHSM2_CONF.
    pub fn conf(&self) -> PathBuf {
        self.root.path().join("softhsm2.conf")
    }

    /// Its path; tests can store other files there.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// A file with the PIN, for pin-source.
    pub fn pin_file(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.root.path().join("pin");
        fs::write(&path, format!("{PIN}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The URI of one of its tokens, with library and PIN.
    pub fn uri(&self, label: &str) -> String {
        format!(
            "pkcs11:token={label}?module-path={}&pin-source=file:{}",
            module_path().display(),
            self.pin_file().display()
        )
    }
}

/// The library, loaded once in this process with a separate directory.
fn shared_module() -> Module {
    static MODULE: LazyLock<Module> = LazyLock::new(|| {
        let root = tmp().join(format!("softhsm-process-{}", std::process::id()));
        remove_stale(root.parent().unwrap());
        fs::create_dir_all(&root).unwrap();
        configure(&root);
        set_variable("SOFTHSM2_CONF", &root.join("softhsm2.conf"));
        set_variable("KRYOPTIC_CONF", &root.join("kryoptic.conf"));
        Module::load(&module_path()).unwrap()
    });
    MODULE.clone()
}

#[expect(unsafe_code, reason = "libraries read their configuration's path from the environment alone")]
fn set_variable(name: &str, value: &Path) {
    // SAFETY: called once, inside a LazyLock's lock, before the library that reads it is loaded; the test harness and
    // std access the environment under std's lock.
    unsafe { std::env::set_var(name, value) }
}

fn configure(root: &Path) {
    let tokens = root.join("tokens");
    fs::create_dir_all(&tokens).unwrap();
    let softhsm =
        format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(root.join("softhsm2.conf"), softhsm).unwrap();
    let kryoptic: String = (0..64)
        .map(|slot| {
            format!("[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = \"{}/{slot}.sql\"\n", tokens.display())
        })
        .collect();
    fs::write(root.join("kryoptic.conf"), kryoptic).unwrap();
}

/// Removes the directories of test processes that have ended, which nothing else would remove.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(process) = name.strip_prefix("softhsm-process-")
            && !Path::new("/proc").join(process).exists()
        {
            let _already_gone = fs::remove_dir_all(entry.path());
        }
    }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
