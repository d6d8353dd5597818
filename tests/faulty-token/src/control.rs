//! The commands, one per line: `FUNCTION ACTION [LIMIT]`; and the records written meanwhile.
//!
//! - FUNCTION: a PKCS#11 function, `C_SignInit:CKA_ID` (hexadecimal) for one key, or `*` for each function.
//! - ACTION: `return=CKR` (a number, also hexadecimal), `delay=MILLISECONDS`, `hang`, `abort`, `segv`, `exit`,
//!   `print` (to standard output), `logout` (the login is lost before the call), `renumber=N` (all object handles are
//!   N higher from this call on), `removed` (the token is out of its slot), `sessions=N` (of C_OpenSession: no more at
//!   once), of C_FindObjects `hide` (nothing is found), of C_GetTokenInfo `pin=low`, `pin=final`, `pin=locked` (what the
//!   token says of its PIN), `malformed` (a clock that tells no time, and a label padded with zero bytes), of
//!   C_SignInit `idle=MILLISECONDS` (a session that has not signed for longer is gone), and of C_Sign `wrong`, `truncate`,
//!   `long`, `takes=MICROSECONDS` (with the real signature in it).
//! - LIMIT: `times=N,ID` (N times in all processes together; ID is one that no earlier command had),
//!   `until=MILLISECONDS` (of the Unix epoch), none: for good.
//!
//! Records are appended to a file next to that of the commands, with the extension `calls`: `calls FUNCTION` at the
//! first call of a process, `fault FUNCTION ACTION` for each fault that occurred, `login PROCESS` before and `done
//! PROCESS` after each C_Login, `sign CKA_ID INPUT` in hexadecimal before each signature that is requested from the
//! real module.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cryptoki_sys::{CK_FLAGS, CK_RV, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED};

/// Faults that the function itself must implement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Hide,
    Idle(Duration),
    Long,
    Logout,
    Malformed,
    Pin(CK_FLAGS),
    Removed,
    Renumber(u64),
    Return(CK_RV),
    Sessions(u64),
    Takes(Duration),
    Truncate,
    Wrong,
}

fn path() -> Option<&'static PathBuf> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("FAULTY_TOKEN_CONTROL").map(PathBuf::from)).as_ref()
}

/// Appends a line to the records.
pub fn note(line: &str) {
    static BOOKS: OnceLock<Option<File>> = OnceLock::new();
    let open = || OpenOptions::new().append(true).create(true).open(path()?.with_extension("calls")).ok();
    if let Some(mut books) = BOOKS.get_or_init(open).as_ref() {
        // A single write, so that lines of several threads and processes do not mix.
        let _ = books.write_all(format!("{line}\n").as_bytes());
    }
}

/// Records the first call of a function.
pub fn note_call(function: &'static str) {
    static CALLED: Mutex<Option<HashSet<&str>>> = Mutex::new(None);
    let mut called = CALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if called.get_or_insert_default().insert(function) {
        note(&format!("calls {function}"));
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The return code of C_SignInit with one key.
pub fn fault_of_key(id: &[u8]) -> Option<CK_RV> {
    commands().filter(|text| text.contains("C_SignInit:"))?;
    match fault(&format!("C_SignInit:{}", hex(id))) {
        Some(Action::Return(rv)) => Some(rv),
        _ => None,
    }
}

/// Notes what a key is about to sign.
pub fn note_signature(id: &[u8], input: &[u8]) {
    note(&format!("sign {} {}", hex(id), hex(input)));
}

/// Takes the fault of a call, which counts against its limit; faults that return nothing are executed here.
pub fn fault(function: &str) -> Option<Action> {
    find(function, true)
}

/// The fault of a call if the function itself must implement it; does not count against the limit.
pub fn peek(function: &str) -> Option<Action> {
    find(function, false)
}

/// The commands. An unchanged file is not read again, since the benches count this module's time as the token's.
fn commands() -> Option<Arc<str>> {
    static READ: Mutex<Option<(State, Arc<str>)>> = Mutex::new(None);
    let metadata = fs::metadata(path()?).ok()?;
    let time = (metadata.ctime(), metadata.ctime_nsec());
    let state = State { inode: metadata.ino(), size: metadata.len(), time };
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    match &*read {
        Some((seen, text)) if *seen == state => Some(Arc::clone(text)),
        _ => {
            let text = Arc::from(fs::read_to_string(path()?).ok()?);
            *read = Some((state, Arc::clone(&text)));
            Some(text)
        }
    }
}

/// Identity and time of change of the commands' file.
#[derive(PartialEq, Eq)]
struct State {
    inode: u64,
    size: u64,
    time: (i64, i64),
}

fn find(function: &str, take: bool) -> Option<Action> {
    let text = commands()?;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(action)) = (words.next(), words.next()) else { continue };
        if name != "*" && name != function || !lasts(words.next(), take) {
            continue;
        }
        if take {
            note(&format!("fault {function} {action}"));
        }
        match act(action, take) {
            None => {}
            action => return action,
        }
    }
    None
}

#[expect(clippy::disallowed_methods, reason = "the main package's rule; faults end by the wall clock")]
fn lasts(limit: Option<&str>, take: bool) -> bool {
    let Some((kind, value)) = limit.and_then(|limit| limit.split_once('=')) else { return true };
    if kind == "until" {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        return value.parse::<u128>().is_ok_and(|until| now < until);
    }
    let Some((times, id)) = value.split_once(',') else { return false };
    let times: u32 = times.parse().unwrap_or(0);
    (0..times).any(|time| {
        let used = path().map(|path| path.with_extension(format!("{id}.{time}")));
        used.is_some_and(|used| match take {
            true => OpenOptions::new().write(true).create_new(true).open(used).is_ok(),
            false => !used.exists(),
        })
    })
}

#[expect(clippy::disallowed_methods, reason = "a module that ends the process is one of the faults")]
fn act(action: &str, now: bool) -> Option<Action> {
    let (name, value) = action.split_once('=').unwrap_or((action, ""));
    let number = || match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap_or(5),
        None => value.parse().unwrap_or(5),
    };
    match name {
        "hide" => return Some(Action::Hide),
        "idle" => return Some(Action::Idle(Duration::from_millis(number()))),
        "long" => return Some(Action::Long),
        "logout" => return Some(Action::Logout),
        "malformed" => return Some(Action::Malformed),
        "pin" => return Some(Action::Pin(pin_flag(value))),
        "removed" => return Some(Action::Removed),
        "renumber" => return Some(Action::Renumber(number())),
        "return" => return Some(Action::Return(number())),
        "sessions" => return Some(Action::Sessions(number())),
        "takes" => return Some(Action::Takes(Duration::from_micros(number()))),
        "truncate" => return Some(Action::Truncate),
        "wrong" => return Some(Action::Wrong),
        _ if !now => {}
        "abort" => std::process::abort(),
        "delay" => std::thread::sleep(Duration::from_millis(number())),
        "exit" => std::process::exit(0),
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "print" => {
            let mut out = std::io::stdout();
            let _ = out.write_all(&[b'x'; 100_000]).and_then(|()| out.flush());
        }
        "segv" => segv(),
        _ => {}
    }
    None
}

/// The token flag for a state of the user PIN.
fn pin_flag(state: &str) -> CK_FLAGS {
    match state {
        "low" => CKF_USER_PIN_COUNT_LOW,
        "final" => CKF_USER_PIN_FINAL_TRY,
        "locked" => CKF_USER_PIN_LOCKED,
        _ => 0,
    }
}

fn segv() {
    let nowhere = std::hint::black_box(8_usize) as *mut u8;
    // SAFETY: none; this is the crash that the test requests.
    unsafe { std::ptr::write_volatile(nowhere, 1) };
}
