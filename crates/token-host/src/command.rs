//! `token-host`: the only process that loads a vendor's library, reads the PIN and holds sessions.

use std::{path::PathBuf, process::ExitCode};

use nix::unistd::User;

use clap::Parser;
use process::logging::{self, Filter, Format};

use crate::{Form, run};

/// Arguments of `token-host`.
#[derive(Debug, Parser)]
#[command(name = "istio-hsm-ca-token-host", version)]
struct Args {
    /// Run as the daemon's child, with its socket as standard input; used by `serve` only
    #[arg(long, value_name = "TOKEN", hide = true, conflicts_with_all = ["config", "socket", "uid"])]
    child: Option<String>,
    /// The host's configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "child")]
    config: Option<PathBuf>,
    /// The Unix socket to listen on
    #[arg(long, value_name = "PATH", required_unless_present = "child")]
    socket: Option<PathBuf>,
    /// A user ID whose daemon may connect, in addition to this process's own; may be repeated
    #[arg(long, value_name = "NUMBER")]
    uid: Vec<u32>,
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,
    /// Which lines are logged: a level, or directives such as info,token=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_filter: Filter,
    /// A user name, like --uid; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "child")]
    user: Vec<String>,
}

/// Parses the command line, runs the host until it ends, and returns the exit status. Logs to standard error.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // clap's own text and exit status: 0 for help and version, 2 for usage errors.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    // A host that cannot log still signs.
    let _ = logging::init(&logging::Settings { format: args.log_format, filter: args.log_filter });
    match (args.child, args.config, args.socket) {
        (Some(name), _, _) => run(Form::Child(name)),
        (None, Some(config), Some(socket)) => {
            let mut uids = args.uid;
            for name in args.user {
                match User::from_name(&name) {
                    Ok(Some(user)) => uids.push(user.uid.as_raw()),
                    Ok(None) => {
                        return fail(&format!(
                            "the user {name} does not exist; create it, or give its number with --uid"
                        ));
                    }
                    Err(error) => return fail(&format!("user {name} cannot be looked up: {error}; give --uid")),
                }
            }
            run(Form::Supervised { config, socket, uids })
        }
        (None, _, _) => ExitCode::from(2),
    }
}

fn fail(reason: &str) -> ExitCode {
    tracing::error!(reason, "the token host does not start");
    ExitCode::FAILURE
}
