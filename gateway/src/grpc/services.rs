//! Which path leads where: operations of the table, health, reflection.

use std::sync::{Arc, OnceLock};

use axum::{body::Body, response::Response};
use chappe_schema::{
    error::{Code, Error, excerpt},
    operation::{OPERATIONS, Op},
    proto::DESCRIPTORS,
};
use http::{HeaderMap, HeaderValue, Request, header};
use tonic::{Status, server::NamedService};
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt;

use super::{call, health::Health, realtime, status};
use crate::{
    gateway::{Gateway, log},
    http::{answer, connection::About, routes::Watched},
};

/// Everything that gRPC offers, cheap to clone.
#[derive(Clone)]
pub(crate) struct Services(Arc<Inner>);

struct Inner {
    gateway: Arc<Gateway>,
    /// By operation.
    watched: Vec<Option<Arc<Watched>>>,
    health: HealthServer<Health>,
    reflects: bool,
}

/// Paths of methods, for metrics that last as long as the process.
fn paths() -> &'static [Option<String>] {
    static PATHS: OnceLock<Vec<Option<String>>> = OnceLock::new();
    PATHS.get_or_init(|| OPERATIONS.iter().map(|row| row.op.rpc().method.map(|method| method.path())).collect())
}

/// Whether a request is gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    media(headers).is_some_and(|media| media.starts_with("application/grpc"))
}

fn media(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

impl Services {
    /// Of a gateway. Reflection tells everybody what there is: it is on where it is configured, and on a server that only
    /// its own machine can reach.
    pub(crate) fn of(gateway: &Arc<Gateway>) -> Self {
        let watched = paths().iter().map(|path| Some(Arc::new(Watched::new(path.as_deref()?, "gRPC"))));
        Self(Arc::new(Inner {
            gateway: Arc::clone(gateway),
            watched: watched.collect(),
            health: HealthServer::new(Health::of(gateway)),
            reflects: gateway.config.grpc_reflection || gateway.auth.dev_tokens().is_some(),
        }))
    }

    /// Answers a call.
    pub(crate) async fn answer(&self, about: About, request: Request<Body>) -> Response {
        let inner = &*self.0;
        let path = request.uri().path();
        if media(request.headers()).is_some_and(|media| !is_protobuf(media)) {
            // Whoever comes so cannot read a status of gRPC either.
            let detail = "gRPC is spoken here as `application/grpc` and `application/grpc+proto`";
            let error = Error::new(Code::UnsupportedMedia).with_detail(detail);
            log(&error, &about.request_id);
            let mut response = answer::problem(&error, &about.request_id);
            response.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/grpc+proto"));
            return response;
        }
        if let Some(op) = Op::of_path(path)
            && let Some(watched) = &inner.watched[op as usize]
        {
            return call::answer(Arc::clone(&inner.gateway), op.row(), Arc::clone(watched), about, request).await;
        }
        if path == realtime::PATH {
            let response = realtime::answer(Arc::clone(&inner.gateway), about, request).await;
            return response.map(Body::new);
        }
        let method = path.trim_start_matches('/').to_owned();
        let service = method.split('/').next().unwrap_or_default();
        let response = if service == <HealthServer<Health> as NamedService>::NAME {
            let Ok(response) = inner.health.clone().oneshot(request).await;
            Some(response.map(Body::new))
        } else if inner.reflects {
            reflect(service, request).await
        } else {
            None
        };
        match response {
            Some(response) if !is_unknown(&response) => response,
            _ => {
                let detail = format!("there is no method {}", excerpt(&method));
                let error = Error::new(Code::UnknownOperation).with_detail(detail);
                log(&error, &about.request_id);
                refuse(&error, &about.request_id)
            }
        }
    }
}

/// A refusal as gRPC shows it.
pub(crate) fn refuse(error: &Error, request_id: &str) -> Response {
    status::of(error, request_id).into_http::<tonic::body::Body>().map(Body::new)
}

/// Whether one of the library's services said of a method, in no words at all, that it has none of that name.
fn is_unknown(response: &Response) -> bool {
    Status::from_header_map(response.headers())
        .is_some_and(|status| status.code() == tonic::Code::Unimplemented && status.message().is_empty())
}

fn is_protobuf(media: &str) -> bool {
    let media = media.split(';').next().unwrap_or_default().trim();
    matches!(media, "application/grpc" | "application/grpc+proto")
}

/// Reflection, in both of the versions that are in use. What it is asked is rare, so that it is made when it is.
async fn reflect(service: &str, request: Request<Body>) -> Option<Response> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let response = match service {
        "grpc.reflection.v1.ServerReflection" => {
            let Ok(response) = builder().build_v1().ok()?.oneshot(request).await;
            response
        }
        "grpc.reflection.v1alpha.ServerReflection" => {
            let Ok(response) = builder().build_v1alpha().ok()?.oneshot(request).await;
            response
        }
        _ => return None,
    };
    Some(response.map(Body::new))
}
