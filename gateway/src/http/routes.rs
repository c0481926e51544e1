//! Which path leads where: walked from the table of operations, so that HTTP offers what the other transports offer.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, rejection::RawPathParamsRejection},
    response::Response,
    routing::{MethodFilter, MethodRouter, get, on, post},
};
use chappe_cluster::process::metrics::HTTP_REQUEST_DURATION_SECONDS;
use chappe_schema::{
    access::By,
    command::Command,
    error::{Code, Error, excerpt},
    operation::{Http, Method, OPERATIONS, Operation},
    reply::Reply,
    wire::Actor,
};
use http::{HeaderMap, HeaderValue, Version, header};
use metrics::{Histogram, histogram};
use tokio::sync::oneshot;

use super::{admin, answer, arguments, connection::About, dev_tokens, exchange::Exchange};
use crate::{
    auth::Identity,
    gateway::{Gateway, log, scope},
    grpc::services::Services,
    limiter::{Decision, Key, Scope},
    route::Pending,
};

/// Everything that is not a WebSocket, cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes {
    /// What HTTP with JSON offers.
    pub(crate) http: Router,
    /// What gRPC offers.
    pub(crate) grpc: Services,
}

/// The routes of a gateway.
pub(crate) fn of(gateway: &Arc<Gateway>) -> Routes {
    Routes { http: json(gateway), grpc: Services::of(gateway) }
}

/// The operations, and what the server says of itself.
fn json(gateway: &Arc<Gateway>) -> Router {
    let mut router = Router::new();
    for row in OPERATIONS.iter().filter(|row| row.is_for_users()) {
        if let Some(http) = &row.http {
            router = router.route(http.path, operation(gateway, row, http));
        }
    }
    if gateway.auth.dev_tokens().is_some() {
        let watched = Arc::new(Watched::new("/v1/dev/tokens", "POST"));
        let gateway = Arc::clone(gateway);
        let handler = move |request| watched.clone().time(request, gateway.clone(), dev_tokens::issue);
        router = router.route("/v1/dev/tokens", post(handler));
    }
    // The page needs tokens that anybody may have.
    router = admin::add(router, gateway);
    let has_page = gateway.auth.dev_tokens().is_some();
    let unmatched = Arc::new(Watched::new("unmatched", "any"));
    let (missing, wrong) = (unmatched.clone(), unmatched);
    let (gateway, same) = (Arc::clone(gateway), Arc::clone(gateway));
    router
        .route("/", get(move |headers: HeaderMap| async move { greet(&headers, has_page) }))
        .route("/openapi.json", get(|| async { answer::document(OPENAPI) }))
        .route("/docs", get(|| async { answer::page(DOCS) }))
        .fallback(move |request| missing.clone().time(request, gateway.clone(), not_found))
        .method_not_allowed_fallback(move |request| wrong.clone().time(request, same.clone(), not_allowed))
}

/// A person gets a page to try the server with, a program where to go on.
fn greet(headers: &HeaderMap, has_page: bool) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if has_page && accepts.contains("text/html") {
        return answer::page(PAGE);
    }
    answer::json(200, GREETING.as_bytes().to_vec())
}

const PAGE: &str = include_str!("page.html");

/// A page that shows [`OPENAPI`] to people.
const DOCS: &str = include_str!("docs.html");

/// Everything that HTTP offers, for programs. A test of `schema` holds it to the tables.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

const GREETING: &str = concat!(
    r#"{"service":"chappe","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","websocket":"/v1/ws","http":"/v1","openapi":"/openapi.json","docs":"/docs"}"#
);

fn operation(gateway: &Arc<Gateway>, row: &'static Operation, http: &'static Http) -> MethodRouter {
    let gateway = Arc::clone(gateway);
    let watched = Arc::new(Watched::new(http.path, http.method.name()));
    let handler = move |request| {
        let ask = move |gateway, about, request| ask(gateway, row, http, about, request);
        watched.clone().time(request, gateway.clone(), ask)
    };
    on(filter(http.method), handler)
}

pub(super) const fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    }
}

/// A user's operation.
async fn ask(
    gateway: Arc<Gateway>,
    row: &'static Operation,
    http: &'static Http,
    about: About,
    request: Request,
) -> Result<Response, Refused> {
    let (mut parts, body) = request.into_parts();
    let identity = authenticate(&gateway, &about, &parts.headers).await?;
    let path = path_of(RawPathParams::from_request_parts(&mut parts, &()).await)?;
    let request = Request::from_parts(parts, body);
    operate(&gateway, about.exchange, row, http, identity.actor(None), &path, request).await
}

/// The fields of a path.
pub(super) fn path_of(path: Result<RawPathParams, RawPathParamsRejection>) -> Result<RawPathParams, Error> {
    path.map_err(|_| Error::new(Code::Malformed).with_detail("the path is not UTF-8"))
}

/// One operation, once it is known who asks: from a request to its reply.
pub(super) async fn operate(
    gateway: &Gateway,
    exchange: Option<Arc<Exchange>>,
    row: &'static Operation,
    http: &'static Http,
    actor: Actor,
    path: &RawPathParams,
    request: Request,
) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let body = arguments::body(http.method, &parts.headers, body).await?;
    let mut ignored = Vec::new();
    let fields = path.iter().filter(|(name, _)| *name != admin::AS);
    let arguments = arguments::assemble(row, http, fields, &parts.uri, &parts.headers, &body, &mut ignored)?;
    let exchange = exchange.as_deref();
    let (reply, decision) = perform(gateway, exchange, row, actor, &arguments, &mut ignored).await?;
    let mut json = Vec::with_capacity(256);
    reply.write_json(&mut json, &ignored);
    if let Some(exchange) = exchange {
        exchange.is_of(json.len());
    }
    let mut response = answer::json(http.status, json);
    answer::limits(response.headers_mut(), &decision);
    Ok(response)
}

/// One operation, once it is known who asks and what: over HTTP and over gRPC.
pub(crate) async fn perform(
    gateway: &Gateway,
    exchange: Option<&Exchange>,
    row: &'static Operation,
    actor: Actor,
    arguments: &str,
    ignored: &mut Vec<String>,
) -> Result<(Reply, Decision), Refused> {
    let (scope, key) = match &actor.by {
        By::Token(_) => (scope(row.op), Key::User(actor.user.as_str())),
        By::Key(name) => (Scope::ApiKeys, Key::Caller(name)),
    };
    let decision = gateway.limiter.check(scope, key, 1).await;
    if !decision.allowed {
        return Err(Refused::limited(decision));
    }
    let refused = |error| Refused { error, decision };
    if row.is_for_users() {
        gateway.check_access(&actor).await.map_err(refused)?;
    }
    let decoded = Command::decode(row.op, &actor.user, arguments, ignored).map_err(refused)?;
    if let Some(exchange) = exchange {
        exchange.make_room(row.op).await;
    }
    let (answer, reply) = oneshot::channel();
    gateway.ask(Pending::Waiter(row.op, answer), actor, decoded.id, decoded.command);
    // Every question is answered, by the sweep if by nobody else; the sender is dropped only with the gateway.
    let reply = reply.await.unwrap_or_else(|_| Err(Error::new(Code::GoingAway)));
    Ok((reply.map_err(refused)?, decision))
}

/// The user whose token stands in the headers.
pub(crate) async fn authenticate(gateway: &Gateway, about: &About, headers: &HeaderMap) -> Result<Identity, Refused> {
    let token = match headers.get(header::AUTHORIZATION) {
        None => "",
        Some(value) => bearer(value)
            .ok_or_else(|| Error::new(Code::AuthInvalid).with_detail("expected `authorization: Bearer` and a token"))?,
    };
    match gateway.auth.check(token, gateway.clock.now_ms()) {
        Ok(identity) => Ok(identity),
        Err(error) => Err(refuse(gateway, about, error).await),
    }
}

/// Guessing costs as much as coming anew.
pub(super) async fn refuse(gateway: &Gateway, about: &About, error: Error) -> Refused {
    let decision = gateway.limiter.check(Scope::Handshakes, Key::Address(about.client), 1).await;
    if decision.allowed { error.into() } else { Refused::limited(decision) }
}

pub(crate) fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn not_found(_: Arc<Gateway>, _: About, request: Request) -> Result<Response, Refused> {
    let detail = format!("there is nothing at {}", excerpt(request.uri().path()));
    Err(Error::new(Code::UnknownOperation).with_detail(detail).into())
}

async fn not_allowed(_: Arc<Gateway>, _: About, request: Request) -> Result<Response, Refused> {
    let detail = format!("{} is not offered here", excerpt(request.method().as_str()));
    Err(Error::new(Code::MethodNotAllowed).with_detail(detail).into())
}

/// A request that was refused, and what is left of the budget that it went on.
pub(crate) struct Refused {
    pub(crate) error: Error,
    pub(crate) decision: Decision,
}

impl Refused {
    /// By the limiter.
    pub(crate) fn limited(decision: Decision) -> Self {
        Self { error: Error::new(Code::RateLimited).after_ms(decision.retry_after_ms), decision }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, decision: Decision::UNLIMITED }
    }
}

/// One route's durations. Handles are made when a class of statuses is first met, and kept.
pub(crate) struct Watched {
    route: &'static str,
    method: &'static str,
    by_class: [OnceLock<Histogram>; 5],
}

impl Watched {
    pub(crate) const fn new(route: &'static str, method: &'static str) -> Self {
        Self { route, method, by_class: [const { OnceLock::new() }; 5] }
    }

    /// Handles a request, turns a refusal into the one shape, and notes how long it took.
    pub(super) async fn time<F, H>(self: Arc<Self>, mut request: Request, gateway: Arc<Gateway>, handle: F) -> Response
    where
        F: FnOnce(Arc<Gateway>, About, Request) -> H,
        H: Future<Output = Result<Response, Refused>>,
    {
        let Some(about) = request.extensions_mut().remove::<About>() else {
            // Every request comes through a connection.
            return answer::problem(&Error::new(Code::Internal), "");
        };
        let (request_id, began, version) = (Arc::clone(&about.request_id), about.began, request.version());
        let response = handle(gateway, about, request).await.unwrap_or_else(|Refused { error, decision }| {
            log(&error, &request_id);
            let mut response: Response<Body> = answer::problem(&error, &request_id);
            answer::limits(response.headers_mut(), &decision);
            // The rest of such a body is not read, so that nothing more can be asked behind it; HTTP/2 has streams for that.
            if matches!(error.code, Code::TooLarge | Code::RequestTimeout) && version < Version::HTTP_2 {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        });
        self.note(response.status().as_u16(), began);
        response
    }

    /// Notes how long an answer took.
    pub(crate) fn note(&self, status: u16, began: Instant) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let name = ["1xx", "2xx", "3xx", "4xx", "5xx"][class];
        let (route, method) = (self.route, self.method);
        let histogram = self.by_class[class].get_or_init(
            || histogram!(HTTP_REQUEST_DURATION_SECONDS, "route" => route, "method" => method, "status_class" => name),
        );
        histogram.record(began.elapsed().as_secs_f64());
    }
}
