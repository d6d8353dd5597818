//! Entry point of `istio-hsm-ca`.

fn main() -> std::process::ExitCode {
    istio_hsm_ca::cli::main()
}
