//! Which path leads where: operations of the table, health, reflection.

use std::sync::{Arc, OnceLock};

use axum::{body::Body, response::Response};
use chappe_schema::{
    error::{Code, Error, excerpt},
    operation::{OPERATIONS, Op},
    proto::{DESCRIPTORS, rpc::PACKAGE},
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use tonic::server::NamedService;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::ServiceExt;

use super::{call, realtime, status};
use crate::{
    gateway::{Gateway, log},
    http::{connection::About, routes::Watched},
};

/// Everything that gRPC offers, cheap to clone.
#[derive(Clone)]
pub(crate) struct Services(Arc<Inner>);

struct Inner {
    gateway: Arc<Gateway>,
    /// By operation.
    watched: Vec<Option<Arc<Watched>>>,
    health: HealthServer<HealthService>,
    reporter: HealthReporter,
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
        let reporter = HealthReporter::new();
        Self(Arc::new(Inner {
            gateway: Arc::clone(gateway),
            watched: watched.collect(),
            health: HealthServer::new(HealthService::from_health_reporter(reporter.clone())),
            reporter,
            reflects: gateway.config.grpc_reflection || gateway.auth.dev_tokens().is_some(),
        }))
    }

    /// Keeps what the health service says: serving, until the gateway is about to leave.
    pub(crate) async fn keep_health(self) {
        let mut retiring = self.0.gateway.retiring.subscribe();
        self.say(ServingStatus::Serving).await;
        // The sender lives in the gateway, so this cannot end by itself.
        let _ = retiring.wait_for(|retiring| *retiring).await;
        self.say(ServingStatus::NotServing).await;
    }

    async fn say(&self, status: ServingStatus) {
        let mut services: Vec<&str> =
            OPERATIONS.iter().filter_map(|row| row.op.rpc().method.map(|method| method.service)).collect();
        services.push("Realtime");
        services.sort_unstable();
        services.dedup();
        self.0.reporter.set_service_status("", status).await;
        for service in services {
            self.0.reporter.set_service_status(format!("{PACKAGE}.{service}"), status).await;
        }
    }

    /// Answers a call.
    pub(crate) async fn answer(&self, about: About, request: Request<Body>) -> Response {
        let inner = &*self.0;
        let path = request.uri().path();
        if media(request.headers()).is_some_and(|media| !is_protobuf(media)) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
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
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
        if service == <HealthServer<HealthService> as NamedService>::NAME {
            let Ok(response) = inner.health.clone().oneshot(request).await;
            return response.map(Body::new);
        }
        if inner.reflects
            && let Some(response) = reflect(&service, request).await
        {
            return response;
        }
        let error = Error::new(Code::UnknownOperation).with_detail(format!("there is no method {}", excerpt(&service)));
        log(&error, &about.request_id);
        status::of(&error, &about.request_id).into_http::<tonic::body::Body>().map(Body::new)
    }
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
