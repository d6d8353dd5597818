//! The name under which a log of this machine is known.

/// The origin of an issuance log for which none is configured: `HOSTNAME/istio-hsm-ca`.
#[must_use]
pub fn default_log_origin() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}/istio-hsm-ca", host.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned()))
}
