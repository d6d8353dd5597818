//! Admits requests: what streams may hold in memory, and how many complete requests are in progress.
//!
//! A stream holds memory from its headers until its response is sent. A request of the certificate service takes a place
//! only when it is complete, so that a client that never sends the rest keeps nobody from being served. Health checks
//! and reflection take no place: they are answered under any load.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{
    connection::Peer,
    service::request_log::RequestLog,
    settings::Limits,
    standing::{Standing, Stream},
    status::{Refusal, status},
};
use crate::{
    limits::{Held, Shares},
    telemetry::recent::Recent,
};

/// What a stream counts for in addition to its headers and body, in bytes: HTTP/2's state, its task, its response.
const STREAM: usize = 4096;
/// What a header counts for in addition to its name and value, in bytes (RFC 9113, section 6.5.2).
const HEADER: usize = 32;
/// The length of a gRPC message's prefix.
const PREFIX: usize = 5;

/// The limits of all services of the endpoint.
#[derive(Clone, Debug)]
pub struct Admission {
    memory: Arc<Shares>,
    places: Arc<Shares>,
    /// The longest body in bytes that is kept.
    longest: usize,
    recent: Arc<Recent>,
}

impl Admission {
    /// `recent` records the requests that exceed a limit.
    #[must_use]
    pub fn new(limits: &Limits, recent: Arc<Recent>) -> Self {
        Self {
            memory: Shares::new(limits.request_memory),
            places: Shares::new(limits.requests),
            longest: limits.message_bytes + PREFIX,
            recent,
        }
    }

    /// A service whose requests take a place once they are complete.
    #[must_use]
    pub fn of_requests<S>(&self, service: S) -> Admitted<S> {
        Admitted { service, admission: self.clone(), takes_places: true }
    }

    /// A service whose streams are only counted.
    #[must_use]
    pub fn of_streams<S>(&self, service: S) -> Admitted<S> {
        Admitted { service, admission: self.clone(), takes_places: false }
    }

    fn refuse(&self, peer: &Peer) -> Response<Body> {
        let log = RequestLog::start(Some(peer.address), Instant::now());
        let status = status(&Refusal::Overload, log.id());
        log.refused(&Refusal::Overload, status.code(), &self.recent);
        status.into_http()
    }
}

/// A service behind the limits; clones share them.
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    service: S,
    admission: Admission,
    takes_places: bool,
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let clone = self.service.clone();
        // The one that was polled for readiness serves.
        let mut service = std::mem::replace(&mut self.service, clone);
        let (admission, takes_places) = (self.admission.clone(), self.takes_places);
        Box::pin(async move {
            let Some(peer) = request.extensions().get::<Peer>().cloned() else {
                return Ok(Status::internal("internal error of the CA").into_http());
            };
            let stream = peer.standing.stream();
            let network = peer.standing.client().network;
            let size = STREAM + length(request.headers());
            let memory = admission.memory.take(network, size).or_else(|full| {
                if peer.standing.make_room(full) { Ok(admission.memory.replace(network, size)) } else { Err(full) }
            });
            let Ok(mut memory) = memory else { return Ok(admission.refuse(&peer)) };
            let response = if takes_places {
                let (head, body) = request.into_parts();
                let body = match complete(body, admission.longest, &mut memory, &peer.standing).await {
                    Ok(body) => Body::new(Full::new(body)),
                    Err(Incomplete::Memory) => return Ok(admission.refuse(&peer)),
                    Err(Incomplete::Stream(status)) => return Ok(status.into_http()),
                };
                let Ok(_place) = admission.places.take(network, 1) else { return Ok(admission.refuse(&peer)) };
                let _busy = peer.standing.busy();
                service.call(Request::from_parts(head, body)).await?
            } else {
                service.call(request).await?
            };
            Ok(response.map(|body| Body::new(Counted { body, _memory: memory, _stream: stream })))
        })
    }
}

/// The size of a header list as HTTP/2 counts it.
fn length(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER).sum()
}

/// Why a request did not become complete.
enum Incomplete {
    Memory,
    Stream(Status),
}

/// Reads a body to its end. Of a longer one the beginning is enough: its message is refused by its prefix.
async fn complete(mut body: Body, longest: usize, memory: &mut Held, standing: &Standing) -> Result<Bytes, Incomplete> {
    let mut whole = Bytes::new();
    while whole.len() <= longest
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(Incomplete::Stream)?.into_data() else { continue };
        if let Err(full) = memory.grow(data.len()) {
            if !standing.make_room(full) {
                return Err(Incomplete::Memory);
            }
            memory.grow_by_replacing(data.len());
        }
        // Almost always there is one frame, which is not copied.
        whole = if whole.is_empty() {
            data
        } else {
            let mut longer = BytesMut::from(whole);
            longer.extend_from_slice(&data);
            longer.freeze()
        };
    }
    Ok(whole)
}

/// A response that counts in the limits until it is sent.
struct Counted {
    body: Body,
    _memory: Held,
    _stream: Stream,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
