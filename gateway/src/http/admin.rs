//! What server-side callers may: operations about users, and every operation of users on a user's behalf.
//!
//! All of it lies under `/v1/admin`, so that whoever stands in front of a gateway can keep the internet out of it.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, RawPathParams, Request},
    response::Response,
};
use chappe_schema::{
    access::By,
    error::{Code, Error},
    id::UserId,
    operation::{Http, OPERATIONS, Operation},
    wire::Actor,
};
use http::{HeaderMap, header};

use super::{
    connection::About,
    routes::{Refused, Watched, bearer, filter, operate, path_of, refuse},
};
use crate::{
    auth::{Caller, count_refusal},
    gateway::Gateway,
};

/// The field of a path that names the user as whom a caller asks.
pub(super) const AS: &str = "as";

/// Where the operations of users lie for server-side callers.
const AS_USER: &str = "/v1/admin/as/{as}";

/// Adds the routes of server-side callers, where there are any.
pub(super) fn add(mut router: Router, gateway: &Arc<Gateway>) -> Router {
    if gateway.auth.api_keys().is_none() {
        return router;
    }
    for row in OPERATIONS.iter().filter(|row| row.scope().is_some()) {
        let Some(http) = &row.http else { continue };
        let (path, watched) = if row.is_for_users() {
            // One label for all: what is asked for users stands under the same names for users themselves.
            let path = format!("{AS_USER}{}", http.path.strip_prefix("/v1").unwrap_or(http.path));
            (path, Watched::new(AS_USER, http.method.name()))
        } else {
            (http.path.to_owned(), Watched::new(http.path, http.method.name()))
        };
        let (gateway, watched) = (Arc::clone(gateway), Arc::new(watched));
        let handler = move |request| {
            let perform = move |gateway, about, request| perform(gateway, row, http, about, request);
            watched.clone().time(request, gateway.clone(), perform)
        };
        router = router.route(&path, axum::routing::on(filter(http.method), handler));
    }
    router
}

async fn perform(
    gateway: Arc<Gateway>,
    row: &'static Operation,
    http: &'static Http,
    about: About,
    request: Request,
) -> Result<Response, Refused> {
    let (mut parts, body) = request.into_parts();
    let caller = permit(&gateway, &about, &parts.headers, row).await?;
    let path = path_of(RawPathParams::from_request_parts(&mut parts, &()).await)?;
    let field = if row.is_for_users() { AS } else { "user" };
    let named = path.iter().find(|(name, _)| *name == field).map(|(_, value)| UserId::new(value));
    let user = match named {
        Some(Ok(user)) => user,
        Some(Err(malformed)) => return Err(Error::invalid(field, malformed.0).into()),
        // The route has the field.
        None => return Err(Error::new(Code::Internal).into()),
    };
    if !row.is_for_users() {
        tracing::info!(event = "admin_operation", key = &*caller.name, operation = row.name, %user);
    }
    let actor = Actor { user, device: None, by: By::Key(Arc::clone(&caller.name)) };
    let request = Request::from_parts(parts, body);
    operate(&gateway, about.exchange, row, http, actor, &path, request).await
}

/// The server-side caller whose key stands in the headers, if it may ask this.
pub(crate) async fn permit(
    gateway: &Gateway,
    about: &About,
    headers: &HeaderMap,
    row: &Operation,
) -> Result<Arc<Caller>, Refused> {
    let caller = authenticate(gateway, about, headers).await?;
    if let Some(scope) = row.scope().filter(|scope| !caller.may(*scope)) {
        let detail = format!("the API key `{}` lacks the scope `{}`", caller.name, scope.name());
        return Err(Error::new(Code::Forbidden).with_detail(detail).into());
    }
    Ok(caller)
}

async fn authenticate(gateway: &Gateway, about: &About, headers: &HeaderMap) -> Result<Arc<Caller>, Refused> {
    let known = gateway.auth.api_keys().unwrap_or_default();
    let error = match headers.get(header::AUTHORIZATION).map(|value| bearer(value)) {
        None => {
            Error::new(Code::AuthRequired).with_detail("an API key is required: `authorization: Bearer` and the key")
        }
        Some(presented) => match presented.and_then(|key| known.caller(key)) {
            Some(caller) => return Ok(caller),
            None => Error::new(Code::AuthInvalid).with_detail("there is no such API key"),
        },
    };
    count_refusal("api_key");
    Err(refuse(gateway, about, error).await)
}
