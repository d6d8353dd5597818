//! Arguments of commands that read the configuration: the file, and flags that override it.

use std::{net::SocketAddr, num::NonZeroU8, path::PathBuf};

use crate::config::{Config, ConfigError};
use token::TokenUri;

/// The configuration and the flags over it.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/istio-hsm-ca/config.toml")]
    config: PathBuf,
    /// `[ca] bundle`: the directory of ca-cert.pem, root-cert.pem and cert-chain.pem
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// `[ca] trust_domains`: replaces the list; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Vec<String>,
    /// `[[token]]`: replaces the configured tokens; may be repeated
    #[arg(long, value_name = "URI")]
    token: Vec<TokenUri>,
    /// `[listen] address`
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// `[listen] threads`: threads that serve requests [default: one per core]
    #[arg(long, value_name = "NUMBER")]
    threads: Option<NonZeroU8>,
    /// `[serving] dns_names`: replaces the list; may be repeated
    #[arg(long, value_name = "NAME")]
    serving_dns_name: Vec<String>,
    /// `[log] directory`
    #[arg(long, value_name = "DIR")]
    log_directory: Option<PathBuf>,
    /// `[admin] address`
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// `[admin] status_address`: address of the status page
    #[arg(long, value_name = "ADDRESS:PORT")]
    status: Option<SocketAddr>,
    /// `[admin] socket`: socket used by `istio-hsm-ca issue`
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// `[logging] filter`: a level, or target=level directives
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// `[logging] format`: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ConfigArgs {
    /// Reads the configuration.
    ///
    /// # Errors
    /// All mistakes in it.
    pub fn read(&self) -> anyhow::Result<Config> {
        Ok(self.configuration()?)
    }

    /// Like [`Self::read`], with the typed error.
    ///
    /// # Errors
    /// All mistakes in it.
    pub fn configuration(&self) -> Result<Config, ConfigError> {
        let mut config = Config::read(&self.config, &self.overlay())?;
        config.confirm_clock = self.confirm_clock().into();
        Ok(config)
    }

    /// The command that confirms the clock for the daemon with these arguments.
    fn confirm_clock(&self) -> String {
        use std::fmt::Write;
        let mut command = format!("istio-hsm-ca log confirm-clock --config {}", quoted(&self.config));
        if let Some(directory) = &self.log_directory {
            let _ = write!(command, " --log-directory {}", quoted(directory));
        }
        command + " --reason 'WHAT HAPPENED'"
    }

    /// The configuration file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.config
    }

    /// The flags as a TOML document.
    fn overlay(&self) -> String {
        let mut document = toml::Table::new();
        let mut set = |section: &str, key: &str, value: Option<toml::Value>| {
            let Some(value) = value else { return };
            let section = document.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = section.as_table_mut() {
                section.insert(key.to_owned(), value);
            }
        };
        let text = |value: &Option<PathBuf>| value.as_ref().map(|path| toml::Value::from(path.display().to_string()));
        let address = |value: &Option<SocketAddr>| value.map(|address| toml::Value::from(address.to_string()));
        let list = |values: &[String]| (!values.is_empty()).then(|| toml::Value::from(values.to_vec()));
        set("ca", "bundle", text(&self.bundle));
        set("ca", "trust_domains", list(&self.trust_domain));
        set("listen", "address", address(&self.listen));
        set("listen", "threads", self.threads.map(|threads| i64::from(threads.get()).into()));
        set("serving", "dns_names", list(&self.serving_dns_name));
        set("log", "directory", text(&self.log_directory));
        set("admin", "address", address(&self.admin));
        set("admin", "status_address", address(&self.status));
        set("admin", "socket", text(&self.admin_socket));
        set("logging", "filter", self.log_filter.clone().map(Into::into));
        set("logging", "format", self.log_format.clone().map(Into::into));
        if !self.token.is_empty() {
            let tokens = self.token.iter().map(|uri| {
                let name = uri.label().or(uri.serial()).unwrap_or("token");
                let fields = [("name", name.to_owned()), ("uri", uri.to_string())];
                toml::Value::from(fields.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect::<toml::Table>())
            });
            document.insert("token".to_owned(), tokens.collect::<Vec<_>>().into());
        }
        document.to_string()
    }
}

/// A path as a word for the shell, absolute: the daemon's directory is not the operator's.
fn quoted(path: &std::path::Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    if path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@".contains(c)) {
        return path;
    }
    format!("'{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        config: ConfigArgs,
    }

    #[test]
    fn every_flag_reaches_its_place() {
        let flags = [
            "x",
            "--bundle=/b \"quoted\"",
            "--trust-domain=a",
            "--trust-domain=b",
            "--token=pkcs11:token=t?module-path=/m.so&pin-source=file:/p",
            "--listen=127.0.0.1:1",
            "--threads=3",
            "--serving-dns-name=d",
            "--log-directory=/l",
            "--admin=127.0.0.1:2",
            "--status=127.0.0.1:3",
            "--admin-socket=/s",
            "--log-filter=debug",
            "--log-format=json",
        ];
        let overlay = Command::try_parse_from(flags).unwrap().config.overlay();
        let config = Config::parse("", &overlay).unwrap();
        assert_eq!(config.ca.bundle.to_str(), Some("/b \"quoted\""));
        assert_eq!(config.ca.trust_domains.len(), 2);
        assert_eq!(config.tokens[0].name, "t");
        assert_eq!(config.listen.address.port(), 1);
        assert_eq!(config.listen.threads.map(NonZeroU8::get), Some(3));
        assert_eq!(config.serving.dns_names[0].as_str(), "d");
        assert_eq!(config.admin.address.unwrap().port(), 2);
        assert_eq!(config.admin.status_address.unwrap().port(), 3);
        assert_eq!(config.admin.socket.as_deref().and_then(std::path::Path::to_str), Some("/s"));
        assert_eq!(config.logging.format, process::logging::Format::Json);
    }

    #[test]
    fn the_command_that_confirms_the_clock_is_complete() {
        let command = |flags: &[&str]| {
            let flags = ["x"].iter().chain(flags);
            Command::try_parse_from(flags).unwrap().config.confirm_clock()
        };
        let start = "istio-hsm-ca log confirm-clock --config";
        let end = "--reason 'WHAT HAPPENED'";
        assert_eq!(command(&[]), format!("{start} /etc/istio-hsm-ca/config.toml {end}"));
        let flags = ["--config=/it's a/file", "--log-directory=/var/log/ca"];
        assert_eq!(command(&flags), format!(r"{start} '/it'\''s a/file' --log-directory /var/log/ca {end}"));
    }
}
