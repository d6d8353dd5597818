//! The token's signatures, from a daemon's metrics.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const NAME: &str = "istio_hsm_ca_pkcs11_call_duration_seconds";

/// The number of signatures that a daemon's tokens have made, and how long C_SignInit and C_Sign have taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Signatures {
    count: f64,
    seconds: f64,
}

impl Signatures {
    /// Reads them from the daemon's `[admin] address`.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) async fn read(address: SocketAddr) -> Result<Self> {
        let text = get(address).await.with_context(|| format!("no metrics from http://{address}/metrics"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((labels, value)) = line.strip_prefix(NAME).and_then(|rest| rest.rsplit_once(' ')) else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else { continue };
            let is_of = |function: &str| labels.contains(&format!("\"{function}\""));
            if labels.starts_with("_sum") && (is_of("C_SignInit") || is_of("C_Sign")) {
                found.seconds += value;
            } else if labels.starts_with("_count") && is_of("C_Sign") {
                found.count += value;
            }
        }
        found
    }

    /// The duration of one signature since an earlier reading, in microseconds.
    ///
    /// # Errors
    /// If there was none.
    pub(super) fn microseconds_since(self, before: Self) -> Result<f64> {
        let count = self.count - before.count;
        ensure!(count > 0.0, "the daemon's metrics have no new signature");
        Ok((self.seconds - before.seconds) * 1e6 / count)
    }
}

async fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_calls_of_a_signature_count_as_one() {
        let metrics = |count: u32, sign: f64| {
            format!(
                "# TYPE {NAME} histogram\n\
                 {NAME}_bucket{{token=\"one\",function=\"C_Sign\",le=\"0.1\"}} 7\n\
                 {NAME}_sum{{token=\"one\",function=\"C_Sign\"}} {sign}\n\
                 {NAME}_count{{token=\"one\",function=\"C_Sign\"}} {count}\n\
                 {NAME}_sum{{token=\"one\",function=\"C_SignInit\"}} 0.5\n\
                 {NAME}_count{{token=\"one\",function=\"C_SignInit\"}} {count}\n\
                 {NAME}_sum{{token=\"one\",function=\"C_Login\"}} 9\n"
            )
        };
        let before = Signatures::parse(&metrics(10, 1.0));
        assert_eq!(before, Signatures { count: 10.0, seconds: 1.5 });
        let after = Signatures::parse(&metrics(14, 1.02));
        assert!((after.microseconds_since(before).unwrap() - 5000.0).abs() < 1e-6);
        assert!(after.microseconds_since(after).is_err());
    }
}
