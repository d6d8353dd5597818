//! `grpc.health.v1.Health`: whether a certificate can be issued now, as reported by the daemon through a watch channel.
//!
//! Watches end when the daemon drains, so that they do not delay it.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use istio_api::istio_certificate_service_server::SERVICE_NAME;

/// State of the health service.
#[derive(Clone, Debug)]
pub struct Reporter {
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
}

/// The health service. The whole server (`""`) and the certificate service have the same status.
#[must_use]
pub fn service(ready: watch::Receiver<bool>, stop: CancellationToken) -> HealthServer<Reporter> {
    HealthServer::new(Reporter { ready, stop })
}

impl Reporter {
    fn status(&self, ready: bool) -> ServingStatus {
        if ready && !self.stop.is_cancelled() { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

fn is_known(service: &str) -> bool {
    service.is_empty() || service == SERVICE_NAME
}

fn reply(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Reporter {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("no such service"));
        }
        let ready = *self.ready.borrow();
        Ok(Response::new(reply(self.status(ready))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // An unknown service can be watched, too, as the protocol requires, although it never appears here.
        if !is_known(&request.get_ref().service) {
            let unknown = futures_util::stream::once(std::future::ready(Ok(reply(ServingStatus::ServiceUnknown))));
            let silence = futures_util::stream::pending().take_until(self.stop.clone().cancelled_owned());
            return Ok(Response::new(Box::pin(unknown.chain(silence))));
        }
        let reporter = self.clone();
        let news = WatchStream::new(self.ready.clone())
            .map(move |ready| Ok(reply(reporter.status(ready))))
            .take_until(self.stop.clone().cancelled_owned());
        let last = futures_util::stream::once(std::future::ready(Ok(reply(ServingStatus::NotServing))));
        Ok(Response::new(Box::pin(news.chain(last))))
    }
}
