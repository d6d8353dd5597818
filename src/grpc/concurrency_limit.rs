//! A place for each request under way, taken before its body is read: so what strangers can have us hold in memory
//! is at most the number of places times the size of a message.
//!
//! Stands before the certificate service only; health is answered however busy we are. Called by tonic.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::{
    connection::Peer,
    service::line::Line,
    status::{Refusal, status},
};
use crate::telemetry::{RequestId, recent::Recent};

/// A service with so many places; clones share them.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    service: S,
    places: Arc<Semaphore>,
    recent: Arc<Recent>,
}

impl<S> ConcurrencyLimit<S> {
    /// Puts so many places before a service; `recent` is told whom there was none for.
    #[must_use]
    pub fn new(service: S, places: usize, recent: Arc<Recent>) -> Self {
        Self { service, places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))), recent }
    }
}

impl<S: NamedService> NamedService for ConcurrencyLimit<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for ConcurrencyLimit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                let answer = self.service.call(request);
                Box::pin(async move {
                    let _place = place;
                    answer.await
                })
            }
            Err(_) => {
                let peer = request.extensions().get::<Peer>().map(|peer| peer.address);
                let line = Line::start(RequestId::random(), peer, Instant::now());
                let status = status(&Refusal::Overload, line.id());
                line.refused(&Refusal::Overload, status.code(), &self.recent);
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
