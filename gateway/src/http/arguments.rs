//! Path, query, headers and body become the one JSON object that every transport decodes.

use std::time::Duration;

use axum::{body::Body, extract::Query};
use bytes::Bytes;
use chappe_schema::{
    error::{Code, Error, excerpt},
    frame::write_text,
    limit::{IGNORED_MAX, REQUEST_BYTES_MAX},
    operation::{BOOLEAN_FIELDS, Http, Identity, Method, NUMERIC_FIELDS, Operation},
};
use http::{HeaderMap, Uri, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use tokio::time::timeout;

/// How long a body may take: at this size any client that means it is faster.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Digits of the largest number, u64's.
const DIGITS_MAX: usize = 20;

/// Where idempotency keys stand.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A JSON object with the fields of the path, of the query and of the headers, followed by those of the body. Names in
/// the query that nobody reads are added to `ignored`.
///
/// A field that stands twice is refused when the object is decoded, so a body cannot contradict its path.
pub(crate) fn assemble<'a>(
    row: &Operation,
    http: &Http,
    path: impl Iterator<Item = (&'a str, &'a str)>,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    ignored: &mut Vec<String>,
) -> Result<String, Error> {
    let mut object = Fields(Vec::with_capacity(128 + body.len()));
    for (name, value) in path {
        object.add(name, value)?;
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let Query(query) = query.map_err(|_| Error::new(Code::Malformed).with_detail("the query string cannot be read"))?;
    for (name, value) in &query {
        if http.query.contains(&name.as_str()) {
            object.add(name, value)?;
        } else if ignored.len() < IGNORED_MAX {
            ignored.push(excerpt(name).into_owned());
        }
    }
    if matches!(row.identity, Identity::Key | Identity::CreationKey)
        && let Some(key) = headers.get(IDEMPOTENCY_KEY)
    {
        let key = key.to_str().map_err(|_| Error::invalid("idempotency_key", "expected printable ASCII"))?;
        object.add("idempotency_key", key)?;
    }
    object.close_with(body)
}

/// Reads a body whole: bounded in size and time, and JSON if there is anything.
pub(crate) async fn body(method: Method, headers: &HeaderMap, body: Body) -> Result<Bytes, Error> {
    if method == Method::Get || body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let too_large =
        || Error::new(Code::TooLarge).with_detail(format!("at most {REQUEST_BYTES_MAX} bytes are accepted"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > REQUEST_BYTES_MAX as u64) {
        return Err(too_large());
    }
    if !is_json(headers) {
        return Err(Error::new(Code::UnsupportedMedia).with_detail("expected `content-type: application/json`"));
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, REQUEST_BYTES_MAX).collect()).await {
        Err(_) => Err(Error::new(Code::RequestTimeout).with_detail("the body did not arrive in time")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Error::new(Code::Malformed).with_detail("the body broke off")),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok());
    let media = content_type.and_then(|content_type| content_type.split(';').next()).unwrap_or_default();
    media.trim().eq_ignore_ascii_case("application/json")
}

/// A JSON object that is being put together.
struct Fields(Vec<u8>);

impl Fields {
    fn add(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        write_text(&mut self.0, name);
        self.0.push(b':');
        if NUMERIC_FIELDS.contains(&name) {
            // JSON knows no leading zeros; a path may have them.
            let digits = value.trim_start_matches('0');
            // Longer ones are beyond every number that is expected, and some beyond every number that is JSON.
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) || digits.len() > DIGITS_MAX {
                return Err(Error::invalid(name.to_owned(), "expected a whole number, 0 or more"));
            }
            self.0.extend_from_slice(if digits.is_empty() { b"0" } else { digits.as_bytes() });
        } else if BOOLEAN_FIELDS.contains(&name) {
            if !matches!(value, "true" | "false") {
                return Err(Error::invalid(name.to_owned(), "expected `true` or `false`"));
            }
            self.0.extend_from_slice(value.as_bytes());
        } else {
            write_text(&mut self.0, value);
        }
        Ok(())
    }

    /// Adds the fields of a body, which must look like an object; what it really is shows when it is decoded.
    fn close_with(mut self, body: &[u8]) -> Result<String, Error> {
        let text =
            std::str::from_utf8(body).map_err(|_| Error::new(Code::Malformed).with_detail("the body is not UTF-8"))?;
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.is_empty() {
            self.0.extend_from_slice(if self.0.is_empty() { b"{}" } else { b"}" });
        } else {
            let Some(fields) = text.strip_prefix('{') else {
                return Err(Error::new(Code::Malformed).with_detail("expected a JSON object"));
            };
            let has_fields = !fields.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('}');
            self.0.push(match (self.0.is_empty(), has_fields) {
                (true, _) => b'{',
                (false, true) => b',',
                (false, false) => b' ',
            });
            self.0.extend_from_slice(fields.as_bytes());
        }
        // Whatever was added is text.
        String::from_utf8(self.0).map_err(|_| Error::new(Code::Internal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::operation::Op;

    fn assembled(
        op: Op,
        path: &[(&str, &str)],
        uri: &str,
        key: Option<&str>,
        body: &str,
    ) -> (Result<String, Error>, Vec<String>) {
        let row = op.row();
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            headers.insert(IDEMPOTENCY_KEY, key.parse().unwrap());
        }
        let mut ignored = Vec::new();
        let uri = uri.parse().unwrap();
        let path = path.iter().copied();
        let json = assemble(row, &row.http.unwrap(), path, &uri, &headers, body.as_bytes(), &mut ignored);
        (json, ignored)
    }

    #[test]
    fn everything_becomes_one_object() {
        let path = [("conversation", "c\"1"), ("seq", "007")];
        let (json, ignored) = assembled(Op::MessageEdit, &path, "/x?typo=1", Some("k"), " { \"body\":{} } ");
        assert_eq!(json.unwrap(), r#"{"conversation":"c\"1","seq":7,"idempotency_key":"k", "body":{} }"#);
        assert_eq!(ignored, ["typo"]);
        let (json, ignored) = assembled(Op::MessageList, &path[..1], "/x?limit=10&after=0&around=", None, "");
        assert_eq!(json.unwrap_err().field.as_deref(), Some("around"));
        assert!(ignored.is_empty());
        let (json, _) = assembled(Op::MessageList, &path[..1], "/x?limit=10&after=0", None, "");
        assert_eq!(json.unwrap(), r#"{"conversation":"c\"1","limit":10,"after":0}"#);
        let (json, _) = assembled(Op::ConversationLeave, &[("conversation", "c")], "/x", None, "{}");
        assert_eq!(json.unwrap(), r#"{"conversation":"c" }"#);
        let (json, _) = assembled(Op::ConversationCreate, &[], "/x", None, "{\"kind\":1}");
        assert_eq!(json.unwrap(), r#"{"kind":1}"#);
        let (json, _) = assembled(Op::ConversationCreate, &[], "/x", None, "");
        assert_eq!(json.unwrap(), "{}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for body in ["[]", "7", "\"x\"", "nonsense"] {
            let (json, _) = assembled(Op::ConversationCreate, &[], "/x", None, body);
            assert_eq!(json.unwrap_err().code, Code::Malformed, "{body}");
        }
        let (json, _) = assembled(Op::MessageGet, &[("conversation", "c"), ("seq", "x1")], "/x", None, "");
        assert_eq!(json.unwrap_err().field.as_deref(), Some("seq"));
    }
}
