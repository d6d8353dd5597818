//! Measures a token, or a running daemon as its agents see it.

fn main() -> std::process::ExitCode {
    istio_hsm_ca_bench::main()
}
