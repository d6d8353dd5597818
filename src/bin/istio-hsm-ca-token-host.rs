//! The token host as a separate program that links neither network nor Kubernetes code.

fn main() -> std::process::ExitCode {
    token_host::main()
}
