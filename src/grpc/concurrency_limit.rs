//! Limits the number of concurrent requests. A permit is acquired before the request body is read, which bounds the
//! memory that unauthenticated clients can occupy to the limit times the maximum message size.
//!
//! Wraps the certificate service only: health checks are answered under any load.

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
    service::request_log::RequestLog,
    status::{Refusal, status},
};
use crate::telemetry::recent::Recent;

/// A service with a limit of concurrent requests; clones share it.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    service: S,
    permits: Arc<Semaphore>,
    recent: Arc<Recent>,
}

impl<S> ConcurrencyLimit<S> {
    /// Limits a service. `recent` records the requests that exceed the limit.
    #[must_use]
    pub fn new(service: S, limit: usize, recent: Arc<Recent>) -> Self {
        Self { service, permits: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))), recent }
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
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                let answer = self.service.call(request);
                Box::pin(async move {
                    let _permit = permit;
                    answer.await
                })
            }
            Err(_) => {
                let peer = request.extensions().get::<Peer>().map(|peer| peer.address);
                let log = RequestLog::start(peer, Instant::now());
                let status = status(&Refusal::Overload, log.id());
                log.refused(&Refusal::Overload, status.code(), &self.recent);
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
