//! `POST /v1/dev/tokens`: a token for whoever asks, on a server that only its own machine can reach.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use chappe_schema::{
    decode,
    error::{Code, Error},
    frame::Object,
    id::{DeviceId, UserId},
    operation::Method,
    time::Timestamp,
};
use http::header;
use serde::Deserialize;

use super::{answer, arguments, connection::About, origin, routes::Refused};
use crate::{
    gateway::Gateway,
    limiter::{Key, Scope},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    user: UserId,
    device: Option<DeviceId>,
    ttl_seconds: Option<u64>,
}

pub(crate) async fn issue(gateway: Arc<Gateway>, about: About, request: Request) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    // A page of a stranger's name that resolves to this machine would otherwise get tokens from its visitors' servers.
    // HTTP/2 names it in the request's line, where a header of that name counts for nothing (RFC 9113 §8.3.1).
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = authority.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
    if !host.is_some_and(origin::is_loopback) {
        return Err(Error::new(Code::Forbidden)
            .with_detail("development tokens are only for this machine, by its own name")
            .into());
    }
    // A proxy that speaks to this machine's loopback may speak for the whole internet.
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    if forwarded.iter().any(|name| parts.headers.contains_key(*name)) {
        return Err(Error::new(Code::Forbidden)
            .with_detail("development tokens are not for clients behind a proxy")
            .into());
    }
    let decision = gateway.limiter.check(Scope::DevTokens, Key::Address(about.client), 1).await;
    if !decision.allowed {
        return Err(Refused::limited(decision));
    }
    let body = arguments::body(Method::Post, &parts.headers, body).await?;
    let text =
        std::str::from_utf8(&body).map_err(|_| Error::new(Code::Malformed).with_detail("the body is not UTF-8"))?;
    let asked: Asked = decode::object(text, &mut Vec::new())?;
    let Some(tokens) = gateway.auth.dev_tokens() else { return Err(Error::new(Code::UnknownOperation).into()) };
    let issued = tokens
        .issue(&asked.user, asked.device.as_ref(), asked.ttl_seconds, gateway.clock.now_ms())
        .map_err(|_| Error::new(Code::Internal).with_detail("the token could not be signed"))?;
    let mut json = Vec::with_capacity(512);
    let mut object = Object::begin(&mut json);
    object
        .text("token", &issued.token)
        .text("user", asked.user.as_str())
        .display("expires_at", Timestamp(issued.expires_at_ms));
    object.end();
    let mut response = answer::json(201, json);
    answer::limits(response.headers_mut(), &decision);
    Ok(response)
}
