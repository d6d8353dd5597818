//! The token host as a program of its own: it links neither the network nor Kubernetes.

fn main() -> std::process::ExitCode {
    token_host::main()
}
