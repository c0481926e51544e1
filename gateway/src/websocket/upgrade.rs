//! From HTTP to WebSocket (RFC 6455 §4.2): who may, and what is answered.

use chappe_schema::error::{Code, Error};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tungstenite::handshake::derive_accept_key;

use super::encode::Format;
use crate::http::origin;

/// Where WebSockets begin.
pub(crate) const PATH: &str = "/v1/ws";

/// The subprotocols, for clients that want to be sure what they talk to, or want another encoding than JSON.
const SUBPROTOCOLS: [(&str, Format); 2] = [("chappe.v1.json", Format::Json), ("chappe.v1.protobuf", Format::Protobuf)];

/// Answers a handshake: `101 Switching Protocols` with what must stand in it.
///
/// # Errors
/// When it is none, or a page of an origin that may not.
pub(crate) fn accept<B, T: Default>(request: &Request<B>, origins: &[String]) -> Result<(Response<T>, Format), Error> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Error::new(Code::MethodNotAllowed).with_detail("a WebSocket begins with GET"));
    }
    let upgrades = lists(headers, &header::CONNECTION, "upgrade") && lists(headers, &header::UPGRADE, "websocket");
    if !upgrades {
        return Err(Error::new(Code::UpgradeRequired)
            .with_detail("expected the headers `connection: upgrade` and `upgrade: websocket`"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Error::new(Code::UpgradeRequired).with_detail("expected `sec-websocket-version: 13`"));
    }
    // 16 bytes in base64.
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24) else {
        return Err(Error::new(Code::Malformed).with_detail("expected a `sec-websocket-key` of 16 bytes"));
    };
    if !origin::may_connect(headers, origins) {
        return Err(Error::new(Code::Forbidden).with_detail("pages of this origin may not use this server"));
    }
    let mut response = Response::new(T::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    let mut format = Format::Json;
    if let Some((name, known)) = chosen(headers) {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        format = known;
    }
    Ok((response, format))
}

/// Of the subprotocols that a client offers, the first one that is known.
fn chosen(headers: &HeaderMap) -> Option<(&'static str, Format)> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|header| header.to_str().ok());
    let known = |item: &str| SUBPROTOCOLS.into_iter().find(|(name, _)| item.trim().eq_ignore_ascii_case(name));
    offered.flat_map(|header| header.split(',')).find_map(known)
}

/// Whether a header's comma-separated values hold one, in any case.
fn lists(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .any(|header| header.split(',').any(|item| item.trim().eq_ignore_ascii_case(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(change: impl FnOnce(&mut Request<()>)) -> Result<Response<()>, Error> {
        let mut request = Request::builder()
            .uri(PATH)
            .header("host", "chat.example.com")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        change(&mut request);
        accept(&request, &[]).map(|(response, _)| response)
    }

    #[test]
    fn the_standards_example_is_answered() {
        let response = handshake(|_| {}).unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!response.headers().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn the_subprotocol_is_echoed_only_if_offered() {
        let offered = |value: &'static str| {
            let response = handshake(|request| {
                request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(value));
            });
            response.unwrap().headers().get("sec-websocket-protocol").cloned()
        };
        assert_eq!(offered("graphql, chappe.v1.json").unwrap(), "chappe.v1.json");
        assert_eq!(offered("chappe.v1.protobuf, chappe.v1.json").unwrap(), "chappe.v1.protobuf");
        assert_eq!(offered("chappe.v2.json, Chappe.v1.JSON ,chappe.v1.protobuf").unwrap(), "chappe.v1.json");
        assert_eq!(offered("graphql"), None);
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        for (name, code) in [
            ("connection", Code::UpgradeRequired),
            ("upgrade", Code::UpgradeRequired),
            ("sec-websocket-version", Code::UpgradeRequired),
            ("sec-websocket-key", Code::Malformed),
        ] {
            let error = handshake(|request| {
                request.headers_mut().remove(name);
            });
            assert_eq!(error.unwrap_err().code, code, "{name}");
        }
        let error = handshake(|request| *request.method_mut() = Method::POST).unwrap_err();
        assert_eq!(error.code, Code::MethodNotAllowed);
        let error = handshake(|request| {
            request.headers_mut().insert("origin", HeaderValue::from_static("https://evil.example"));
        });
        assert_eq!(error.unwrap_err().code, Code::Forbidden);
        let same_host = handshake(|request| {
            request.headers_mut().insert("origin", HeaderValue::from_static("https://chat.example.com"));
        });
        assert!(same_host.is_ok());
    }
}
