//! A machine with a token on which an operator runs commands.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use testkit::{
    daemon::BENCH_PROGRAM,
    faulty::Control,
    softhsm::{Directory, PIN, module_path},
};

/// Timeout of any command; RSA keys of 4096 bits take SoftHSM some seconds on a busy machine.
const LONGEST: Duration = Duration::from_secs(120);

/// A machine with one token, `ca`.
pub struct Machine {
    pub directory: Directory,
}

/// Result of a command.
#[derive(Debug)]
pub struct Done {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Machine {
    pub fn new() -> Self {
        let directory = Directory::new();
        directory.init_token("ca");
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A PIN file with this content.
    pub fn pin_file(&self, name: &str, pin: &str) -> PathBuf {
        let path = self.write(name, pin);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The token's URI, without a PIN.
    pub fn uri(&self, token: &str) -> String {
        format!("pkcs11:token={token}?module-path={}", module_path().display())
    }

    /// Arguments for the token `ca` with the correct PIN.
    pub fn token(&self) -> Vec<String> {
        let pin = self.directory.pin_file();
        vec!["--token".into(), self.uri("ca"), "--pin-file".into(), pin.display().to_string()]
    }

    /// The words as arguments, with `$` replaced by the machine's directory. They never include the PIN.
    fn arguments(&self, words: &str, more: &[String]) -> Vec<String> {
        let root = self.directory.path().display().to_string();
        let mut arguments: Vec<String> = words.split_whitespace().map(|word| word.replace('$', &root)).collect();
        arguments.extend_from_slice(more);
        assert!(!arguments.iter().any(|argument| argument.contains(PIN)), "the PIN is in the arguments");
        arguments
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("SOFTHSM2_CONF", self.directory.conf())
            .env("KRYOPTIC_CONF", self.path("kryoptic.conf"))
            .envs(Control::new(self.directory.path()).environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the binary.
    pub fn run(&self, words: &str, more: &[String]) -> Done {
        self.run_with(words, more, &[])
    }

    /// Runs the binary with this standard input.
    pub fn run_with(&self, words: &str, more: &[String], input: &[u8]) -> Done {
        let command = self.command(env!("CARGO_BIN_EXE_istio-hsm-ca"));
        self.finish(command, self.arguments(words, more), input)
    }

    /// Runs the binary with additional environment variables.
    pub fn run_in(&self, words: &str, more: &[String], environment: &[(String, String)]) -> Done {
        let mut command = self.command(env!("CARGO_BIN_EXE_istio-hsm-ca"));
        command.envs(environment.iter().cloned());
        self.finish(command, self.arguments(words, more), &[])
    }

    /// Resource limits of the binary while it reads its standard input.
    pub fn limits_while_it_reads(&self, words: &str, more: &[String]) -> String {
        let arguments = self.arguments(words, more);
        let mut child =
            self.command(env!("CARGO_BIN_EXE_istio-hsm-ca")).args(&arguments).stdin(Stdio::piped()).spawn().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        let deadline = Instant::now() + LONGEST;
        // Blocked in read(), system call 0 on x86-64 and 63 on arm64.
        let reads = || {
            let call = fs::read_to_string(proc.join("syscall")).unwrap_or_default();
            matches!(call.split(' ').next(), Some("0" | "63"))
                && fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") S "))
        };
        while !reads() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{arguments:?} does not read");
            std::thread::sleep(Duration::from_millis(10));
        }
        let limits = fs::read_to_string(proc.join("limits")).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        limits
    }

    /// A valid configuration of the daemon for the token `ca`.
    pub fn configuration(&self) -> String {
        let root = self.directory.path().display();
        format!(
            "[ca]\nbundle = \"{root}/bundle\"\n[[token]]\nname = \"hsm\"\nuri = \"{}\"\n[serving]\ndns_names = [\"ca.test\"]\n\
             [log]\ndirectory = \"{root}/log\"\n[listen]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\nstatus_page = false\n",
            self.directory.uri("ca")
        )
    }

    fn finish(&self, mut command: Command, arguments: Vec<String>, input: &[u8]) -> Done {
        let mut child = command
            .args(&arguments)
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .spawn()
            .unwrap();
        let out = collect(child.stdout.take().unwrap());
        let err = collect(child.stderr.take().unwrap());
        if let Some(mut stdin) = child.stdin.take() {
            // A command that has read enough may close its input, which is not an error here.
            let _closed = stdin.write_all(input);
        }
        let deadline = Instant::now() + LONGEST;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{arguments:?} did not end within {LONGEST:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let (out, err) = (out.join().unwrap(), err.join().unwrap());
        for text in [&out, &err] {
            assert!(!text.contains(PIN), "{arguments:?} prints the PIN: {text}");
            assert!(!text.contains("panicked"), "{arguments:?}: {text}");
        }
        Done { status: status.code().unwrap_or_else(|| panic!("{arguments:?} was killed: {status}\n{err}")), out, err }
    }

    /// Runs the binary on a terminal (by script(1) of util-linux) and types answers when their prompts appear. Returns
    /// the exit status and the terminal's output.
    pub fn at_terminal(&self, words: &str, more: &[String], typed: &[(&str, &str)]) -> (i32, String) {
        self.program_at_terminal(env!("CARGO_BIN_EXE_istio-hsm-ca"), words, more, typed)
    }

    /// Runs istio-hsm-ca-bench on a terminal.
    pub fn bench_at_terminal(&self, words: &str, more: &[String]) -> (i32, String) {
        self.program_at_terminal(BENCH_PROGRAM.to_str().unwrap(), words, more, &[])
    }

    /// Runs istio-hsm-ca-bench to completion.
    pub fn bench(&self, words: &str, more: &[String]) -> std::process::Output {
        self.command(BENCH_PROGRAM.to_str().unwrap()).args(self.arguments(words, more)).output().unwrap()
    }

    fn program_at_terminal(
        &self,
        program: &str,
        words: &str,
        more: &[String],
        typed: &[(&str, &str)],
    ) -> (i32, String) {
        let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
        let words: Vec<String> = self.arguments(words, more).iter().map(quoted).collect();
        let line = format!("exec {} {}", program, words.join(" "));
        let mut child = self
            .command("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut shown = Vec::new();
        let mut answers = typed.iter();
        let mut next = answers.next();
        let mut seen = 0;
        let mut buffer = [0; 4096];
        loop {
            let count = screen.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            shown.extend_from_slice(&buffer[..count]);
            if let Some((prompt, answer)) = next
                && String::from_utf8_lossy(&shown[seen..]).contains(prompt)
            {
                // The prompt appears before echo is disabled; no user types that fast.
                std::thread::sleep(Duration::from_millis(300));
                keyboard.write_all(format!("{answer}\n").as_bytes()).unwrap();
                seen = shown.len();
                next = answers.next();
            }
        }
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(next.is_none(), "no prompt for {next:?}: {shown}");
        (child.wait().unwrap().code().unwrap(), shown)
    }

    /// Like [`Machine::run`] on the token `ca` with the correct PIN; it must succeed.
    pub fn done(&self, words: &str) -> Done {
        let done = self.run(words, &self.token());
        assert_eq!(done.status, 0, "{words}\n{}\n{}", done.out, done.err);
        done
    }

    /// Like [`Machine::done`], without a token.
    pub fn done_alone(&self, words: &str) -> Done {
        let done = self.run(words, &[]);
        assert_eq!(done.status, 0, "{words}\n{}\n{}", done.out, done.err);
        done
    }

    /// Like [`Machine::done`], with JSON output.
    pub fn json(&self, words: &str) -> Value {
        let done = self.done(&format!("{words} --output json"));
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{words}: {error}: {}", done.out))
    }

    /// Like [`Machine::run`] on the token `ca` with the correct PIN; it must fail with these reasons.
    pub fn refused(&self, words: &str, reasons: &[&str]) {
        self.run(words, &self.token()).refused(reasons);
    }

    /// Contents of the token as shown by `inspect`, to detect changes.
    pub fn contents(&self) -> Value {
        let view = self.json("inspect");
        serde_json::json!([view["keys"], view["certificates"]])
    }

    /// All files in the token's directory, to detect any change.
    pub fn token_files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut directories = vec![self.path("tokens")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => directories.push(path),
                    // SoftHSM rewrites its counters at login.
                    false
                        if path.ends_with("token.object")
                            || path.ends_with("token.lock")
                            || path.ends_with("generation") => {}
                    false => files.push((path.clone(), fs::read(path).unwrap())),
                }
            }
        }
        files.sort();
        files
    }

    /// Runs openssl in the machine's directory.
    pub fn try_openssl(&self, words: &str) -> (bool, String) {
        let output =
            Command::new("openssl").args(words.split_whitespace()).current_dir(self.directory.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs openssl successfully.
    pub fn openssl(&self, words: &str) -> String {
        let (good, text) = self.try_openssl(words);
        assert!(good, "openssl {words}: {text}");
        text
    }
}

impl Done {
    /// Expects a failure with these reasons.
    pub fn refused(&self, reasons: &[&str]) {
        assert_eq!(self.status, 1, "{self:?}");
        for reason in reasons {
            assert!(self.err.contains(reason), "{reason:?} is missing: {}", self.err);
        }
    }

    /// Expects a usage error with these reasons.
    pub fn usage(&self, reasons: &[&str]) {
        assert_eq!(self.status, 2, "{self:?}");
        for reason in reasons {
            assert!(self.err.contains(reason), "{reason:?} is missing: {}", self.err);
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The library that logs all calls of another library.
pub fn pkcs11_spy() -> PathBuf {
    let places =
        ["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so", "/usr/lib64/pkcs11-spy.so"];
    let found = places.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("pkcs11-spy.so is missing: install the package opensc-pkcs11")
}

/// Whether a path exists.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
