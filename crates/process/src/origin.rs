//! The default name of this machine's log.

/// The default origin of an issuance log: `HOSTNAME/istio-hsm-ca`.
#[must_use]
pub fn default_log_origin() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}/istio-hsm-ca", host.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned()))
}
