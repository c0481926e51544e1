//! Which web pages may use this server (browsers say where a page comes from; other clients do not).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Whether a WebSocket may be opened: not from a browser, from the host that the page came from, or from an origin
/// that is allowed.
pub(crate) fn may_connect(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_same_host =
        host.is_some_and(|host| authority(origin).is_some_and(|origin| origin.eq_ignore_ascii_case(host)));
    is_same_host || is_allowed(origin, allowed)
}

/// Adds what lets a page read the answer, if its origin is allowed.
pub(crate) fn allow(request: Option<&HeaderValue>, answer: &mut HeaderMap, allowed: &[String]) {
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = request.filter(|origin| origin.to_str().is_ok_and(|origin| is_allowed(origin, allowed))) else {
        return;
    };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

/// Adds what a browser asks before it sends a request that a form could not.
pub(crate) fn allow_preflight(answer: &mut HeaderMap) {
    for (name, value) in PREFLIGHT {
        answer.insert(name, HeaderValue::from_static(value));
    }
}

const EXPOSED: &str =
    "date, location, retry-after, ratelimit-limit, ratelimit-remaining, ratelimit-reset, x-request-id";

const PREFLIGHT: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, PATCH, DELETE"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, idempotency-key"),
    // Browsers cap it themselves.
    (header::ACCESS_CONTROL_MAX_AGE, "600"),
];

/// Whether an origin is configured; with none configured, whether it is a page of this machine.
fn is_allowed(origin: &str, allowed: &[String]) -> bool {
    if allowed.is_empty() {
        return authority(origin).is_some_and(is_loopback);
    }
    allowed.iter().any(|allowed| allowed == "*" || allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
}

/// Whether a host, with or without a port, is this machine by name.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connects(origin: Option<&str>, allowed: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("chat.example.com:8080"));
        if let Some(origin) = origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        may_connect(&headers, &allowed.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn strangers_pages_are_kept_out() {
        assert!(connects(None, &[]));
        assert!(connects(Some("http://chat.example.com:8080"), &[]));
        assert!(connects(Some("http://localhost:3000"), &[]));
        assert!(connects(Some("http://127.0.0.1"), &[]));
        assert!(connects(Some("http://[::1]:5173"), &[]));
        for stranger in
            ["http://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "null", ""]
        {
            assert!(!connects(Some(stranger), &[]), "{stranger}");
        }
    }

    #[test]
    fn configured_origins_replace_loopback() {
        let allowed = ["https://app.example.com/"];
        assert!(connects(Some("https://app.example.com"), &allowed));
        assert!(!connects(Some("http://localhost:3000"), &allowed));
        assert!(!connects(Some("https://app.example.com.evil.example"), &allowed));
        assert!(connects(Some("https://anything.example"), &["*"]));
    }
}
