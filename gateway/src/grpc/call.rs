//! One operation over gRPC: from a message to its reply.

use std::{pin::Pin, sync::Arc, time::Duration};

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

use super::{caller, codec::Raw, deadline, status};
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
    let patience = deadline::of(request.headers()).unwrap_or(PATIENCE).min(PATIENCE);
    let call = Call { gateway, row, about, headers: request.headers().clone() };
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(REQUEST_BYTES_MAX);
    // Whoever cancels drops this future, and with it whatever waits in it.
    let response = match patience.is_zero() {
        // Nobody waits for it: it is not begun.
        true => None,
        false => timeout(patience, grpc.unary(call, request)).await.ok(),
    };
    let response = match response {
        Some(response) => dressed(response, &request_id),
        None => {
            let error = Error::new(Code::OutcomeUnknown).with_detail("it took longer than the client waits");
            log(&error, &request_id);
            status::late(&error, &request_id).into_http()
        }
    };
    let (http, response) = (http_status(&response), response.map(Body::new));
    watched.note(http, began);
    response
}

/// What the library refused by itself gets the one object too.
fn dressed(response: http::Response<tonic::body::Body>, request_id: &str) -> http::Response<tonic::body::Body> {
    let headers = response.headers();
    let refused = Status::from_header_map(headers).filter(|status| status.code() != tonic::Code::Ok);
    match refused {
        Some(refused) if refused.details().is_empty() => {
            let error = status::translated(refused.code(), refused.message());
            log(&error, request_id);
            status::of(&error, request_id).into_http()
        }
        _ => response,
    }
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
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
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
    let (reply, decision) = perform(gateway, row, actor, &arguments, &mut Vec::new()).await?;
    let mut json = Vec::with_capacity(256);
    reply.write_json(&mut json, &[]);
    let mut response = tonic::Response::new(Bytes::from(rpc.reply(&json)?));
    let mut limits = http::HeaderMap::new();
    answer::limits(&mut limits, &decision);
    *response.metadata_mut() = tonic::metadata::MetadataMap::from_headers(limits);
    Ok(response)
}
