//! A hundred imports killed at random moments: the token never has a partial key that `serve` would use, and the next
//! import succeeds.
//!
//! The test runs itself as the program to be killed, each time with another token directory.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pki::private_key::PrivateKey;
use token::{
    Module, TokenUri,
    import::{self, How},
    key::{self, CANARY_KEY_LABEL, KeyError, LOG_KEY_LABEL, proof},
};

use super::{options, signs};
use testkit::{
    ca::TestCa,
    softhsm::{Directory, module_path, pin},
};

const ROUNDS: u32 = 100;
const TOKEN: &str = "killed";
/// Tells a child where its key is. Without it the child's tests do nothing, as when all ignored tests are run.
const KEY_DIRECTORY: &str = "TEST_IMPORT_KEY_DIRECTORY";

#[test]
fn a_hundred_kills_leave_no_half_key() {
    let template = Directory::new();
    template.init_token(TOKEN);
    // Duration of an import on this machine, so that the kills fall within it.
    let whole = {
        let directory = prepared(&template);
        let (mut child, _open) = start(&directory, "killed::child_import");
        let begin = Instant::now();
        assert!(child.wait().unwrap().success());
        begin.elapsed()
    };
    let (round, killed, states) = (AtomicU32::new(0), AtomicU32::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let round = round.fetch_add(1, Ordering::Relaxed);
                    if round >= ROUNDS {
                        break;
                    }
                    let directory = prepared(&template);
                    let (mut child, _open) = start(&directory, "killed::child_import");
                    await_moment(round, whole, &directory, &mut child);
                    child.kill().unwrap();
                    if !child.wait().unwrap().success() {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                    let (mut child, mut lines) = start(&directory, "killed::child_check");
                    let state = lines.find_map(|line| line.split_once("STATE ").map(|(_, state)| state.to_owned()));
                    let rest: Vec<String> = lines.collect();
                    assert!(child.wait().unwrap().success(), "round {round}: {state:?}\n{}", rest.join("\n"));
                    states.lock().unwrap().push(state.unwrap_or_default());
                }
            });
        }
    });
    let killed = killed.into_inner();
    let mut states = states.into_inner().unwrap();
    states.sort();
    let mut counts: Vec<(usize, &str)> = Vec::new();
    for state in &states {
        match counts.last_mut() {
            Some((count, last)) if last == state => *count += 1,
            _ => counts.push((1, state)),
        }
    }
    println!("{killed} of {ROUNDS} imports were killed before they ended; what they left: {counts:?}");
    assert!(killed >= ROUNDS / 3, "too few imports were killed half-way to prove anything: {killed}");
}

/// Waits for the moment to kill. The moments are deterministic; the machine is random enough. A quarter are spread
/// evenly over the import, most of which generates the wrapping pair; the others are when it writes: as soon as the
/// token has this number of additional files, and up to two milliseconds later.
fn await_moment(round: u32, whole: Duration, directory: &Directory, child: &mut Child) {
    if round.is_multiple_of(4) {
        thread::sleep(whole * (round * 37 % ROUNDS) / ROUNDS);
        return;
    }
    let before = files(directory);
    // Four objects of the two service keys, the marker, three objects of the CA key; each with a lock file.
    let wanted = before + 1 + usize::try_from(round).unwrap() % 16;
    while files(directory) < wanted && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_micros(50));
    }
    thread::sleep(Duration::from_micros(u64::from(round * 37 % ROUNDS) * 20));
}

fn files(directory: &Directory) -> usize {
    let token = fs::read_dir(directory.path().join("tokens")).unwrap().next().unwrap().unwrap();
    fs::read_dir(token.path()).unwrap().count()
}

fn prepared(template: &Directory) -> Directory {
    let directory = template.duplicate();
    let ca = TestCa::p256();
    fs::write(directory.path().join("ca-key.pem"), &ca.key_pem).unwrap();
    fs::write(directory.path().join("ca-cert.der"), &ca.certificate).unwrap();
    directory
}

/// Starts this test program for one test, and waits until it reports that it has begun.
fn start(directory: &Directory, test: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"])
        .env("SOFTHSM2_CONF", directory.conf())
        .env(KEY_DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("BEGIN")), "the child did not begin");
    (child, lines)
}

fn handed_over() -> Option<(PrivateKey, Vec<u8>)> {
    let directory = PathBuf::from(std::env::var_os(KEY_DIRECTORY)?);
    let key = PrivateKey::from_pem(&fs::read(directory.join("ca-key.pem")).unwrap(), None).unwrap();
    Some((key, fs::read(directory.join("ca-cert.der")).unwrap()))
}

fn load() -> (Module, token::Token) {
    let module = Module::load(Path::new(&module_path())).unwrap();
    let uri: TokenUri = format!("pkcs11:token={TOKEN}").parse().unwrap();
    let token = module.find_token(&uri).unwrap();
    (module, token)
}

#[test]
#[ignore = "the program that is killed"]
fn child_import() {
    let Some((key, certificate)) = handed_over() else { return };
    let (_module, token) = load();
    let session = token.open_session(true).unwrap();
    token.login(&session, &pin()).unwrap();
    println!("\nBEGIN");
    let ready = import::plan_in_session(token, session, key.public_key(), &options(false)).unwrap();
    import::run(ready, &key, &certificate).unwrap();
}

#[test]
#[ignore = "looks at what the kill left, and imports again"]
fn child_check() {
    let Some((ca_key, certificate)) = handed_over() else { return };
    let (_module, token) = load();
    let session = token.open_session(true).unwrap();
    token.login(&session, &pin()).unwrap();
    println!("\nBEGIN");
    let public = ca_key.public_key();
    let found = match key::find_private_key(&session, public) {
        Ok(_) => {
            signs(&session, public);
            "whole"
        }
        Err(KeyError::NoneSigns { .. }) => "no",
        Err(error) => panic!("{error}"),
    };
    let mut service = 0;
    for label in [LOG_KEY_LABEL, CANARY_KEY_LABEL] {
        match key::find_by_label(&session, label) {
            Ok(found) => {
                proof::signs(&session, found.handle, &found.public_key).unwrap();
                service += 1;
            }
            Err(KeyError::NotFound(_)) => {}
            Err(error) => panic!("{label}: {error}"),
        }
    }
    let again = token.open_session(true).unwrap();
    let ready = import::plan_in_session(token, again, public, &options(false)).unwrap();
    let report = import::run(ready, &ca_key, &certificate).unwrap();
    let marked = if report.cleared.is_empty() { "" } else { ", marked" };
    println!("\nSTATE {found} CA key, {service} service keys{marked}");
    assert_eq!(report.private_key == How::AlreadyThere, found == "whole");
    signs(&session, public);
}
