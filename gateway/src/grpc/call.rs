//! One operation over gRPC: from a message to its reply.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use chappe_schema::{
    error::{Code, Error},
    limit::{COMMAND_DEADLINE_MS, REQUEST_BYTES_MAX},
    operation::Operation,
};
use http::Request;
use tokio::time::timeout;
use tonic::{
    Status,
    server::{Grpc, UnaryService},
};

use super::{caller, codec::Single, deadline, status};
use crate::{
    gateway::{Gateway, log},
    http::{
        answer,
        connection::About,
        routes::{Refused, Watched, perform},
    },
};

/// How long a request may take in all where its client does not say: as long as a node has for a command, and as its
/// message may be on its way.
const PATIENCE: Duration = Duration::from_millis(2 * COMMAND_DEADLINE_MS);

/// Answers one call.
pub(super) async fn answer(
    gateway: Arc<Gateway>,
    row: &'static Operation,
    watched: Arc<Watched>,
    about: About,
    request: Request<Body>,
) -> Response {
    let (request_id, began) = (Arc::clone(&about.request_id), about.began);
    let deadline = deadline::of(request.headers());
    let patience = deadline.unwrap_or(PATIENCE).min(PATIENCE);
    let has_arrived = Arc::new(AtomicBool::new(false));
    let call = Call { gateway, row, about, headers: request.headers().clone(), has_arrived: Arc::clone(&has_arrived) };
    let mut grpc = Grpc::new(Single).max_decoding_message_size(REQUEST_BYTES_MAX);
    // Whoever cancels drops this future, and with it whatever waits in it.
    let response = match patience.is_zero() {
        // Nobody waits for it: it is not begun.
        true => None,
        false => timeout(patience, grpc.unary(call, request)).await.ok(),
    };
    let response = match response {
        Some(response) => status::dressed(response, &request_id),
        None => late(deadline.is_some_and(|deadline| deadline <= PATIENCE), &has_arrived, &request_id).into_http(),
    };
    let (http, response) = (http_status(&response), response.map(Body::new));
    watched.note(http, began);
    response
}

/// A call that took longer than its client waits, or than any may.
fn late(is_clients: bool, has_arrived: &AtomicBool, request_id: &str) -> Status {
    let (error, status): (_, fn(&Error, &str) -> Status) = match (is_clients, has_arrived.load(Ordering::Relaxed)) {
        (true, _) => {
            (Error::new(Code::OutcomeUnknown).with_detail("it took longer than the client waits"), status::late)
        }
        (false, true) => (Error::new(Code::OutcomeUnknown).with_detail("it took longer than a call may"), status::of),
        (false, false) => {
            (Error::new(Code::RequestTimeout).with_detail("the message did not arrive in time"), status::of)
        }
    };
    log(&error, request_id);
    status(&error, request_id)
}

/// The HTTP status that would have been answered, for the metric that all transports share.
fn http_status<B>(response: &http::Response<B>) -> u16 {
    let refused = Status::from_header_map(response.headers());
    match refused.map(|status| status.code()) {
        None | Some(tonic::Code::Ok) => 200,
        Some(
            tonic::Code::Internal | tonic::Code::Unknown | tonic::Code::Unavailable | tonic::Code::DeadlineExceeded,
        ) => 500,
        Some(_) => 400,
    }
}

struct Call {
    gateway: Arc<Gateway>,
    row: &'static Operation,
    about: About,
    headers: http::HeaderMap,
    /// Whether all of the client's message is here.
    has_arrived: Arc<AtomicBool>,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        self.has_arrived.store(true, Ordering::Relaxed);
        let (gateway, row, about, headers) =
            (Arc::clone(&self.gateway), self.row, self.about.clone(), std::mem::take(&mut self.headers));
        Box::pin(async move {
            let request_id = Arc::clone(&about.request_id);
            let performed = call(&gateway, row, &about, &headers, &request.into_inner()).await;
            performed.map_err(|Refused { error, decision }| {
                log(&error, &request_id);
                let mut status = status::of(&error, &request_id);
                let mut limits = http::HeaderMap::new();
                answer::limits(&mut limits, &decision);
                limits.extend(std::mem::take(status.metadata_mut()).into_headers());
                *status.metadata_mut() = tonic::metadata::MetadataMap::from_headers(limits);
                status
            })
        })
    }
}

async fn call(
    gateway: &Gateway,
    row: &'static Operation,
    about: &About,
    headers: &http::HeaderMap,
    message: &[u8],
) -> Result<tonic::Response<Bytes>, Refused> {
    let rpc = row.op.rpc();
    let who = caller::of(gateway, about, headers, row).await?;
    let arguments = rpc.arguments(message)?;
    let actor = who.actor(row, &arguments)?;
    let exchange = about.exchange.as_deref();
    let (reply, decision) = perform(gateway, exchange, row, actor, &arguments, &mut Vec::new()).await?;
    let mut json = Vec::with_capacity(256);
    reply.write_json(&mut json, &[]);
    let message = Bytes::from(rpc.reply(&json)?);
    if let Some(exchange) = exchange {
        exchange.is_of(message.len());
    }
    let mut response = tonic::Response::new(message);
    let mut limits = http::HeaderMap::new();
    answer::limits(&mut limits, &decision);
    *response.metadata_mut() = tonic::metadata::MetadataMap::from_headers(limits);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::http2::tests::{Client, endless},
        sweep::tests::World,
    };

    /// A deadline that the client did not set is none that it has missed.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_never_comes_is_waited_for_and_the_client_is_told_why_not() {
        let world = World::new();
        let mut client = Client::of(&world, 1 << 16).await;
        let path = row().op.rpc().method.unwrap().path();
        for (timeout, code, error) in [
            (None, tonic::Code::Unavailable, "request.timeout"),
            (Some("1H"), tonic::Code::Unavailable, "request.timeout"),
            (Some("5S"), tonic::Code::DeadlineExceeded, "outcome_unknown"),
        ] {
            let mut request = client.request("POST", &path).header("content-type", "application/grpc");
            if let Some(timeout) = timeout {
                request = request.header("grpc-timeout", timeout);
            }
            let answer = client.ask(request.body(endless(&[0, 0, 0, 1, 0, 7])).unwrap()).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            let (_, told) = chappe_schema::proto::details::read(status.details()).unwrap();
            assert_eq!((status.code(), &*told.code), (code, error), "{timeout:?}");
        }
    }

    fn row() -> &'static Operation {
        chappe_schema::operation::Op::MessageSend.row()
    }
}
