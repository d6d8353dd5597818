//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    istio_hsm_ca::cli::main()
}
