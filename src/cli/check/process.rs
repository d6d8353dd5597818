//! Checks a token in a separate process: the library may crash, hang, or read its own environment.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    finding::{Finding, Findings},
    token,
};
use crate::config::{Config, Token};

/// Number of PKCS#11 calls in a check, for the timeout: loading, login, a dozen of searches.
const CALLS: u32 = 16;
/// Maximum duration of a check.
const LONGEST: Duration = Duration::from_secs(120);
/// Interval of polling for the end of the process.
const LOOK: Duration = Duration::from_millis(20);
/// Maximum size of the process's output: a finding has some 300 bytes.
const ANSWER_MAX: u64 = 256 * 1024;

/// Checks one configured token.
pub(super) fn token(token: &Token) -> anyhow::Result<Vec<Finding>> {
    let mut found = Findings::about(format!("token {}", token.name));
    if let Some(path) = &token.socket {
        match UnixStream::connect(path) {
            Ok(stream) => {
                let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
                match (peer, token.socket_uid) {
                    (Ok(peer), Some(uid)) if peer.uid() != uid => found.error(
                        format!("{}: the host runs as user {}, not {uid}", path.display(), peer.uid()),
                        "run the host as that user, or set socket_uid right",
                    ),
                    (Ok(_) | Err(_), _) => found
                        .ok(format!("{}: a host listens; what it holds is for its own user to check", path.display())),
                }
            }
            Err(error) => found.error(
                format!("{}: no token host answers: {error}", path.display()),
                "start the host (`istio-hsm-ca token-host`), and let this user into the socket's directory",
            ),
        }
        return Ok(found.into_vec());
    }
    let mut child = start(token)?;
    let longest = token.call_timeout.saturating_mul(CALLS).min(LONGEST);
    let module = token.uri.as_ref().and_then(|uri| uri.module_path()).map(|path| path.display().to_string());
    let module = module.unwrap_or_default();
    match wait(&mut child, longest)? {
        None => found.error(
            format!("{module} did not answer within {longest:?}"),
            "see whether the HSM can be reached, by the vendor's tool",
        ),
        Some(status) => match answer_of(&mut child) {
            Ok(findings) if status.success() => found.extend(findings),
            Ok(_) | Err(_) => found.error(
                format!("{module} ended the process that looked at it ({status}){}", last_words(&mut child)),
                "see whether the library works in the vendor's tool, and whether its configuration is readable",
            ),
        },
    }
    Ok(found.into_vec())
}

/// In the process started by [`token()`]: runs the checks, and prints the findings on one line.
pub(super) fn answer(config: &Config, name: &str) -> anyhow::Result<()> {
    let token = config.tokens.iter().find(|token| token.name == name).context("BUG: the token is not configured")?;
    let findings = token::findings(config, token);
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}

fn start(token: &Token) -> anyhow::Result<Child> {
    // The same arguments, so that all flags apply there as they do here.
    Command::new(std::env::current_exe().context("this program's own path is unknown")?)
        .args(std::env::args_os().skip(1))
        .arg(format!("--probe={}", token.name))
        .envs(&token.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("the process that looks at a token cannot be started")
}

/// Waits for the end, or kills the process.
fn wait(child: &mut Child, longest: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// The last line; a library may have printed something before.
fn answer_of(child: &mut Child) -> anyhow::Result<Vec<Finding>> {
    let mut text = String::new();
    child.stdout.take().context("no answer")?.take(ANSWER_MAX).read_to_string(&mut text)?;
    Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
}

fn last_words(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    let read = child.stderr.take().map(|stderr| stderr.take(ANSWER_MAX).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match (read, text.lines().last()) {
        (Some(Ok(_)), Some(line)) => {
            format!(": {}", line.chars().filter(|c| !c.is_control()).take(300).collect::<String>())
        }
        _ => String::new(),
    }
}
