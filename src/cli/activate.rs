//! `activate`: hands the PIN to a running token host, which waits for it at its activation socket.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;

use super::token::PinArgs;
use process::output::Output;
use token::{TokenUri, pin::LockedPin};
use token_host::activation::{Answer, Visit};

/// Mode bits of a directory in which others may replace a socket.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The sticky bit: others may not replace what they do not own.
const STICKY: u32 = 0o1000;

/// Arguments of `activate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The activation socket of the token host: `[activation] socket` in its configuration
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    #[command(flatten)]
    pin: PinArgs,
}

/// Result of the command.
#[derive(Debug, Serialize)]
struct Activated {
    socket: PathBuf,
    /// User ID of the token host.
    host_uid: u32,
    /// The token that the host waited for; none if it was active already.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    state: State,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Active,
    AlreadyActive,
    /// The host has the PIN and tries it when a daemon connects.
    Pending,
}

/// Hands over the PIN.
///
/// # Errors
/// If no token host answers, the socket could be somebody else's, or the token refuses the PIN.
pub fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let (stream, host_uid) = connect(&args.socket)?;
    let socket = args.socket.display();
    let visit = Visit::begin(stream).with_context(|| {
        format!(
            "{socket}: the token host does not answer; it answers to root, its own user and the uids in its [activation] only"
        )
    })?;
    let token = visit.waits_for().map(str::to_owned);
    let state = match &token {
        None => State::AlreadyActive,
        Some(token) => {
            let uri: TokenUri = token.parse().with_context(|| format!("{socket}: the token host names no token"))?;
            output.note(&format!("the token host of user {host_uid} waits for the PIN of {uri}"));
            let label = uri.label().or(uri.serial()).unwrap_or_default();
            let pin = LockedPin::new(args.pin.read(None, label)?).context("the PIN's memory cannot be locked")?;
            let answer = visit.hand_over(pin.pin()).with_context(|| {
                format!("{socket}: the connection broke; run this again, which says whether the token host is active")
            })?;
            match answer {
                Answer::Accepted => State::Active,
                Answer::Kept => State::Pending,
                Answer::Refused(reason) => bail!("the token host is not active: {reason}"),
            }
        }
    };
    output.print(&Activated { socket: args.socket, host_uid, token, state }, |done| {
        let socket = done.socket.display();
        match done.state {
            State::Active => format!("{socket}: the token host is active; the token has accepted the PIN\n"),
            State::AlreadyActive => format!("{socket}: the token host is active already; it took no PIN\n"),
            State::Pending => {
                format!("{socket}: the token host has the PIN and tries it when the daemon connects; see /readyz\n")
            }
        }
    })
}

/// Connects to a socket that nobody but its owner can have put there.
fn connect(path: &Path) -> anyhow::Result<(UnixStream, u32)> {
    let name = path.display();
    let absolute = path.canonicalize().with_context(|| format!("{name}: no token host listens there"))?;
    let socket = fs::symlink_metadata(&absolute)?;
    if !socket.file_type().is_socket() {
        bail!("{name}: is not a socket; name [activation] socket of the token host");
    }
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let above = fs::metadata(directory)?;
    let trusted = |uid: u32| uid == 0 || uid == socket.uid() || uid == nix::unistd::geteuid().as_raw();
    if !trusted(above.uid()) || above.mode() & WRITABLE_BY_OTHERS != 0 && above.mode() & STICKY == 0 {
        bail!(
            "{name}: others may put a socket of their own into {}, which would get the PIN; use a directory that only the \
             token host's user can write",
            directory.display()
        );
    }
    let failed = |error: io::Error| anyhow::Error::from(error).context(format!("{name}: no token host answers"));
    let stream = UnixStream::connect(&absolute).map_err(failed)?;
    let uid = getsockopt(&stream, PeerCredentials)?.uid();
    if uid != socket.uid() {
        bail!("{name}: belongs to user {}, and user {uid} listens; no PIN was sent", socket.uid());
    }
    Ok((stream, uid))
}
