//! Serves the admin address and the status page: plain HTTP for probes, Prometheus and a person's browser.
//!
//! Clients that send their request slowly make room for others.
//!
//! A web page can have a browser send requests to any address, by a name of its own that it lets point there (DNS
//! rebinding); what it cannot change is the name, which the browser sends in `Host`.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header::HOST, uri::Authority},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use pki::identity::DnsName;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::limits::{Held, Network, Shares};

/// Connections of one listener. The kubelet, Prometheus and a browser need less than ten.
const CONNECTIONS: usize = 64;
/// How long a client may take for the head of its request.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may take, which serves one request.
const CONNECTION: Duration = Duration::from_secs(30);
/// How long nothing is accepted after the system refused.
const PAUSE: Duration = Duration::from_millis(100);
/// What a client reads that asks for another host.
const WRONG_HOST: &str =
    "this host name is not served here; ask by IP address or localhost, or add it to [admin] hosts\n";

/// The host names by which a listener is asked: IP addresses, `localhost`, and those that are configured. An IP address
/// says nothing that a web page could choose, and the kubelet asks by the pod's.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Arc<[DnsName]>);

impl Hosts {
    /// The configured names.
    #[must_use]
    pub fn new(names: &[DnsName]) -> Self {
        Self(names.into())
    }

    /// Whether a request may be answered. One without `Host` comes from no browser.
    fn allow(&self, uri: Option<&Authority>, headers: &HeaderMap) -> bool {
        let mut named = headers.get_all(HOST).iter().map(|value| value.to_str().ok()?.parse().ok());
        uri.is_none_or(|authority| self.is_known(authority))
            && named.all(|authority: Option<Authority>| authority.is_some_and(|authority| self.is_known(&authority)))
    }

    fn is_known(&self, authority: &Authority) -> bool {
        let host = authority.host();
        // `Authority` ends the host at the first `:` or `]` and accepts anything after it.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => true,
            // `u16` would also accept a sign.
            Some(rest) => rest
                .strip_prefix(':')
                .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()),
            None => false,
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => {
                host.parse::<Ipv4Addr>().is_ok()
                    || name.eq_ignore_ascii_case("localhost")
                    || self.0.iter().any(|known| known.as_str().eq_ignore_ascii_case(name))
            }
        };
        port && is_host
    }
}

/// Serves a listener until `shutdown`.
///
/// # Errors
/// Never; the listener is served until the end.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    hosts: Hosts,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let shares = Shares::new(CONNECTIONS);
    let waiting = Arc::new(Waiting::default());
    let mut accepted_so_far = 0_u64;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let network = peer.ip().into();
                let held = shares
                    .take(network, 1)
                    .or_else(|full| if waiting.drop_one() { Ok(shares.replace(network, 1)) } else { Err(full) });
                match held {
                    Ok(held) => {
                        accepted_so_far += 1;
                        let place = waiting.add(accepted_so_far, network);
                        connections.spawn(connection(stream, peer, app.clone(), hosts.clone(), place, held));
                    }
                    Err(full) => tracing::debug!(%peer, %full, "an admin connection was rejected"),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept an admin connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Answers under way are read at once; who does not read them is not waited for.
    let _ = timeout(PAUSE, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

/// The connections whose request is not complete. They make room for others, so that slow clients keep no probe from
/// being answered.
#[derive(Debug, Default)]
struct Waiting(Mutex<BTreeMap<u64, (Network, CancellationToken)>>);

impl Waiting {
    fn add(self: &Arc<Self>, number: u64, network: Network) -> Place {
        let dropped = CancellationToken::new();
        self.0.lock().insert(number, (network, dropped.clone()));
        Place { waiting: Arc::clone(self), number, dropped }
    }

    /// Drops the oldest connection of the address that has the most; returns whether there was one.
    fn drop_one(&self) -> bool {
        let mut waiting = self.0.lock();
        let mut by_network: HashMap<Network, usize> = HashMap::new();
        for (network, _) in waiting.values() {
            *by_network.entry(*network).or_default() += 1;
        }
        let most = by_network.values().max().copied();
        let oldest = waiting.iter().find(|(_, (network, _))| by_network.get(network).copied() == most);
        let Some(number) = oldest.map(|(number, _)| *number) else { return false };
        waiting.remove(&number).inspect(|(_, dropped)| dropped.cancel()).is_some()
    }
}

/// One connection among those that wait for their client.
#[derive(Debug)]
struct Place {
    waiting: Arc<Waiting>,
    number: u64,
    dropped: CancellationToken,
}

impl Place {
    /// The request is complete.
    fn leave(&self) {
        self.waiting.0.lock().remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, app: Router, hosts: Hosts, place: Place, _held: Held) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        place.leave();
        let (app, request) = (app.clone(), request.map(Body::new));
        let allowed = hosts.allow(request.uri().authority(), request.headers());
        async move { Ok::<_, Infallible>(if allowed { answer(app, request).await } else { refuse() }) }
    });
    let mut http = http1::Builder::new();
    let http = http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false).max_buf_size(16 * 1024);
    let served = timeout(CONNECTION, http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = served => match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "an admin connection failed"),
            Err(_) => tracing::debug!(%peer, "an admin connection took too long"),
        },
        () = place.dropped.cancelled() => tracing::debug!(%peer, "an admin connection without a request made room"),
    }
}

async fn answer(app: Router, request: Request) -> Response {
    match app.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn refuse() -> Response {
    (StatusCode::MISDIRECTED_REQUEST, WRONG_HOST).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_configured_names_are_hosts() {
        let hosts = Hosts::new(&["ca.example.com".parse().unwrap()]);
        let cases = [
            (&["127.0.0.1:15014"][..], true),
            (&["10.0.0.7"], true),
            (&["[::1]:15016"], true),
            (&["localhost:8080"], true),
            (&["LOCALHOST."], true),
            (&["CA.example.com:15014"], true),
            (&[], true),
            (&["attacker.example"], false),
            (&["127.0.0.1.attacker.example"], false),
            (&["ca.example.com.attacker.example:15014"], false),
            (&["localhost", "attacker.example"], false),
            (&["localhost:80.evil.com"], false),
            (&["localhost:80@evil.com"], false),
            (&["localhost:80:80"], false),
            (&["localhost:65536"], false),
            (&["localhost:"], false),
            (&["localhost:+80"], false),
            (&["localhost.:80"], true),
            (&["localhost..", "localhost"], false),
            (&["localhost@evil.com"], false),
            (&["evil.com@localhost"], false),
            (&["127.0.0.1:80.evil.com"], false),
            (&["127.0.0.1@evil.com"], false),
            (&["ca.example.com:80.evil.com"], false),
            (&["[::1]"], true),
            (&["[::1]evil.com"], false),
            (&["[::1].evil.com:80"], false),
            (&["[::1]:80.evil.com"], false),
            (&["[::1]:80]"], false),
            (&["[localhost]"], false),
            (&["[127.0.0.1]"], false),
            (&["::1"], false),
            (&[""], false),
            (&["a b"], false),
        ];
        for (values, allowed) in cases {
            let headers = values.iter().map(|value| (HOST, value.parse().unwrap())).collect();
            assert_eq!(hosts.allow(None, &headers), allowed, "{values:?}");
        }
        let authority = "attacker.example".parse().unwrap();
        assert!(!hosts.allow(Some(&authority), &HeaderMap::new()));
    }
}
