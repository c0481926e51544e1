//! Replies and problems, with the headers that belong to them.

use axum::body::Body;
use axum::response::Response;
use chappe_schema::error::{Code, Error};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::limiter::Decision;

/// JSON with a status.
pub(crate) fn json(status: u16, body: Vec<u8>) -> Response {
    typed(status, body, "application/json")
}

/// A document in JSON that is the same for everybody.
pub(crate) fn document(json: &'static str) -> Response {
    let mut response = typed(200, json, "application/json");
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A page that loads nothing from elsewhere and talks to nobody but this server.
pub(crate) fn page(html: &'static str) -> Response {
    let mut response = typed(200, html, "text/html; charset=utf-8");
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

/// An error in the one shape (RFC 9457).
pub(crate) fn problem(error: &Error, request_id: &str) -> Response {
    let row = error.code.row();
    let mut response = typed(row.http, body(error, request_id), "application/problem+json");
    if let Some(ms) = error.retry_after_ms {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    if let Some(challenge) = challenge(error.code) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// A problem as a whole response, for a connection that no HTTP server looks after.
pub(crate) fn plain(error: &Error) -> Vec<u8> {
    let row = error.code.row();
    let reason = StatusCode::from_u16(row.http).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let body = body(error, "");
    let retry = error.retry_after_ms.map(|ms| format!("retry-after: {}\r\n", ms.div_ceil(1000))).unwrap_or_default();
    let mut response = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
        row.http,
        body.len()
    )
    .into_bytes();
    response.extend(body);
    response
}

/// Says what is left of a budget.
pub(crate) fn limits(headers: &mut HeaderMap, decision: &Decision) {
    if !decision.is_limited() {
        return;
    }
    for (name, value) in [
        (LIMIT, u64::from(decision.limit)),
        (REMAINING, u64::from(decision.remaining)),
        (RESET, decision.reset_after_s()),
    ] {
        headers.insert(name, HeaderValue::from(value));
    }
}

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

fn typed(status: u16, body: impl Into<Body>, content_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    // The tables hold valid statuses only.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Answers are about the caller and about now.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn body(error: &Error, request_id: &str) -> Vec<u8> {
    // Writing plain fields to a vector cannot fail.
    serde_json::to_vec(&error.problem(request_id)).unwrap_or_default()
}

const fn challenge(code: Code) -> Option<&'static str> {
    match code {
        Code::AuthRequired => Some("Bearer realm=\"chappe\""),
        Code::AuthInvalid | Code::AuthLoggedOut => Some("Bearer realm=\"chappe\", error=\"invalid_token\""),
        Code::AuthExpired => Some("Bearer realm=\"chappe\", error=\"invalid_token\", error_description=\"expired\""),
        _ => None,
    }
}
