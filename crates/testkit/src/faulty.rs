//! The module in `tests/faulty-token`: built once, controlled by commands, records what it has seen.

use aws_lc_rs::digest::{SHA256, digest};
use token::key::{hex, proof::PROOF_MESSAGE};

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{daemon::Site, root, softhsm::module_path, target_dir};

/// The module, built once with the cargo that runs the tests.
pub static MODULE: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = target_dir().join("faulty-token");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(root().join("tests/faulty-token/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug/libfaulty_token.so")
});

/// The token's URI, with the faulty module or a copy of it instead of the real module.
pub fn through(module: &Path, uri: &str) -> String {
    uri.replace(&module_path().display().to_string(), &module.display().to_string())
}

/// A command's limit: `times` calls in all processes together.
pub fn times(times: u32) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("times={times},{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A command's limit: one call.
pub fn once() -> String {
    times(1)
}

/// A command's limit: a period from now.
pub fn until(from_now: Duration) -> String {
    let end = process::clock::now() + from_now;
    format!("until={}", end.duration_since(UNIX_EPOCH).unwrap().as_millis())
}

/// Controls the faults of one token's module.
#[derive(Clone, Debug)]
pub struct Control {
    directory: PathBuf,
}

/// What the module has recorded.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Functions that were called.
    pub called: Vec<String>,
    /// Faults that occurred: function and action.
    pub faults: Vec<String>,
    /// Process IDs that called C_Login, one per call.
    pub logins: Vec<i32>,
    /// Those whose call has returned.
    pub logged_in: Vec<i32>,
    /// Inputs that were to be signed: CKA_ID and input, in hexadecimal.
    pub signed: Vec<(String, String)>,
}

impl Control {
    /// Uses a separate directory.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.directory.join("faults")
    }

    /// Environment variables for the token host.
    pub fn environment(&self) -> [(String, String); 2] {
        [
            ("FAULTY_TOKEN_MODULE".to_owned(), module_path().display().to_string()),
            ("FAULTY_TOKEN_CONTROL".to_owned(), self.file().display().to_string()),
        ]
    }

    /// The configuration's only `[[token]]`, with a copy of the module instead of the real one; `more` are additional
    /// lines.
    pub fn section(&self, module: &Path, site: &Site, more: &str) -> String {
        let mut environment = toml::Table::new();
        environment.extend(self.environment().map(|(name, value)| (name, value.into())));
        environment.insert("SOFTHSM2_CONF".to_owned(), site.softhsm.conf().display().to_string().into());
        format!(
            "[[token]]\nname = \"softhsm\"\nuri = \"{}\"\n{more}\n[token.environment]\n{}",
            through(module, &site.uri()),
            toml::to_string(&environment).unwrap(),
        )
    }

    /// Causes faults from now on; one command per line.
    pub fn breaks(&self, commands: &str) {
        let new = self.directory.join("faults-new");
        fs::write(&new, commands).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Ends all faults.
    pub fn works(&self) {
        self.breaks("");
    }

    /// Sends SIGKILL or SIGSTOP to token hosts, except during login; returns how many there were.
    pub async fn signal(&self, hosts: impl Fn() -> Vec<Pid>, signal: Signal) -> usize {
        for _ in 0..200 {
            let hosts = hosts();
            let all = |signal| hosts.iter().filter(|host| kill(**host, signal).is_ok()).count();
            // A stopped process cannot begin a login between the check and the kill.
            all(Signal::SIGSTOP);
            let books = self.books_since(0);
            if !hosts.iter().any(|host| books.is_logging_in(host.as_raw())) {
                return all(signal);
            }
            all(Signal::SIGCONT);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the hosts do not come out of their login");
    }

    /// Current length of the records.
    pub fn mark(&self) -> u64 {
        fs::metadata(self.directory.join("faults.calls")).map_or(0, |metadata| metadata.len())
    }

    /// What was recorded after a mark.
    pub fn books_since(&self, mark: u64) -> Books {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(self.directory.join("faults.calls")) {
            file.seek(SeekFrom::Start(mark)).unwrap();
            file.read_to_string(&mut text).unwrap();
        }
        let mut books = Books::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["calls", function] => books.called.push((*function).to_owned()),
                ["fault", function, action] => books.faults.push(format!("{function} {action}")),
                ["login", process] => books.logins.push(process.parse().unwrap()),
                ["done", process] => books.logged_in.push(process.parse().unwrap()),
                ["sign", id, input] => books.signed.push(((*id).to_owned(), (*input).to_owned())),
                _ => panic!("{line:?} in the module's books"),
            }
        }
        books
    }
}

impl Books {
    /// Whether a process is within C_Login. SoftHSM then writes the token's own file, not atomically: killing the
    /// process at that moment can destroy the token.
    pub fn is_logging_in(&self, process: i32) -> bool {
        let count = |processes: &[i32]| processes.iter().filter(|other| **other == process).count();
        count(&self.logins) > count(&self.logged_in)
    }

    /// How often a fault of this function occurred.
    pub fn faults_of(&self, function: &str) -> usize {
        self.faults.iter().filter(|fault| fault.split(' ').next() == Some(function)).count()
    }
}

/// The SHA-256 of what a P-256 or RSA key signs to prove that it is the CA's, in hexadecimal.
pub fn proof_hash() -> String {
    hex(digest(&SHA256, PROOF_MESSAGE).as_ref())
}
