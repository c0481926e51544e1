//! `grpc.health.v1.Health`: whether the services serve. All do, until the gateway is about to leave.

use std::{pin::Pin, sync::Arc};

use chappe_schema::{operation::OPERATIONS, proto::rpc::PACKAGE};
use futures_util::{
    Stream,
    future::pending,
    stream::{self, StreamExt},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server};

use crate::gateway::Gateway;

/// What is known of the services.
pub(super) struct Health {
    retiring: watch::Receiver<bool>,
}

impl Health {
    pub(super) fn of(gateway: &Arc<Gateway>) -> Self {
        Self { retiring: gateway.retiring.subscribe() }
    }
}

/// Whether there is such a service; the empty name is the server.
fn is_known(service: &str) -> bool {
    let is_ours = |name: &str| {
        name == "Realtime"
            || OPERATIONS.iter().any(|row| row.op.rpc().method.is_some_and(|method| method.service == name))
    };
    let ours = service.strip_prefix(PACKAGE).and_then(|service| service.strip_prefix('.'));
    service.is_empty() || ours.is_some_and(is_ours)
}

fn said(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

const fn serving(retiring: bool) -> ServingStatus {
    if retiring { ServingStatus::NotServing } else { ServingStatus::Serving }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("there is no such service"));
        }
        let retiring = *self.retiring.borrow();
        Ok(Response::new(said(serving(retiring))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// A word at once and one at every change, without an end: the protocol wants that of services that there are not, too,
    /// since clients take an end for a reason to ask again.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !is_known(&request.get_ref().service) {
            let unknown = stream::iter([Ok(said(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(Box::pin(unknown.chain(stream::once(pending())))));
        }
        let mut retiring = self.retiring.clone();
        retiring.mark_changed();
        let words = stream::unfold(retiring, |mut retiring| async move {
            // Its sender lives in the gateway.
            retiring.changed().await.ok()?;
            let status = serving(*retiring.borrow_and_update());
            Some((Ok(said(status)), retiring))
        });
        Ok(Response::new(Box::pin(words)))
    }
}
