//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.split_at_checked(2) {
        Some(([_, command], rest)) if command == "token-host" => {
            let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
            istio_hsm_ca::token::host::main(rest)
        }
        _ => ExitCode::from(2),
    }
}
