//! The module in `tests/faulty-token`: built once, told what to break, and asked what it has seen.

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

/// The module, built once; cargo is the one that runs the tests.
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

/// The token's URI, with the faulty module, or a copy of it, in the real one's place.
pub fn through(module: &Path, uri: &str) -> String {
    uri.replace(&module_path().display().to_string(), &module.display().to_string())
}

/// A limit of a command: `times` calls in all processes together.
pub fn times(times: u32) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("times={times},{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A limit of a command: one call.
pub fn once() -> String {
    times(1)
}

/// A limit of a command: from now on for a while.
pub fn until(from_now: Duration) -> String {
    let end = process::clock::now() + from_now;
    format!("until={}", end.duration_since(UNIX_EPOCH).unwrap().as_millis())
}

/// Commands for one token's module: what to break.
#[derive(Clone, Debug)]
pub struct Control {
    directory: PathBuf,
}

/// What the module has seen.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// The functions that were called.
    pub called: Vec<String>,
    /// How often each fault has happened: function and action.
    pub faults: Vec<String>,
    /// The processes that called C_Login, once for each call.
    pub logins: Vec<i32>,
    /// Those whose call has returned.
    pub logged_in: Vec<i32>,
    /// What was about to be signed: CKA_ID and input, in hexadecimal.
    pub signed: Vec<(String, String)>,
}

impl Control {
    /// In a directory of the token's own.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.directory.join("faults")
    }

    /// Variables for the token's host.
    pub fn environment(&self) -> [(String, String); 2] {
        [
            ("FAULTY_TOKEN_MODULE".to_owned(), module_path().display().to_string()),
            ("FAULTY_TOKEN_CONTROL".to_owned(), self.file().display().to_string()),
        ]
    }

    /// The configuration's one `[[token]]`, with a copy of the module in the real one's place; `more` are lines of it.
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

    /// Breaks something from now on; one command a line.
    pub fn breaks(&self, commands: &str) {
        let new = self.directory.join("faults-new");
        fs::write(&new, commands).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Nothing is broken any more.
    pub fn works(&self) {
        self.breaks("");
    }

    /// Sends SIGKILL or SIGSTOP to hosts, but to none within its login; answers how many there were.
    pub async fn signal(&self, hosts: impl Fn() -> Vec<Pid>, signal: Signal) -> usize {
        for _ in 0..200 {
            let hosts = hosts();
            let all = |signal| hosts.iter().filter(|host| kill(**host, signal).is_ok()).count();
            // What stands still cannot begin a login between the look and the kill.
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

    /// How long the books are now.
    pub fn mark(&self) -> u64 {
        fs::metadata(self.directory.join("faults.calls")).map_or(0, |metadata| metadata.len())
    }

    /// What has happened since the books were as long as that.
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
    /// Whether a process is within C_Login. SoftHSM writes the token's own file then, and not atomically: a process
    /// that is killed at that moment may leave no token behind.
    pub fn is_logging_in(&self, process: i32) -> bool {
        let count = |processes: &[i32]| processes.iter().filter(|other| **other == process).count();
        count(&self.logins) > count(&self.logged_in)
    }

    /// How often a fault of this function has happened.
    pub fn faults_of(&self, function: &str) -> usize {
        self.faults.iter().filter(|fault| fault.split(' ').next() == Some(function)).count()
    }
}
