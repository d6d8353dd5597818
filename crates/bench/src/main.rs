//! Benchmarks of a token, or of a running daemon from its agents' perspective.

fn main() -> std::process::ExitCode {
    istio_hsm_ca_bench::main()
}
