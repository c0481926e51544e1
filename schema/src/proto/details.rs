//! What stands in `grpc-status-details-bin`: a `google.rpc.Status` whose only detail is the one error object.

use prost::Message;

use super::v1;
use crate::error::Error;

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// What the detail is called.
const TYPE_URL: &str = "type.googleapis.com/chappe.v1.Error";

/// An error as a message.
#[must_use]
pub fn message(error: &Error, request_id: &str) -> v1::Error {
    let row = error.code.row();
    v1::Error {
        code: row.code.to_owned(),
        status: row.http.into(),
        title: row.title.to_owned(),
        detail: (!error.detail.is_empty()).then(|| error.detail.clone().into_owned()),
        field: error.field.as_deref().map(str::to_owned),
        retryable: row.retryable,
        retry_after_ms: error.retry_after_ms,
        floor: error.floor,
        request_id: (!request_id.is_empty()).then(|| request_id.to_owned()),
    }
}

/// The bytes for a status of this code, with this sentence.
#[must_use]
pub fn write(code: i32, said: &str, error: &v1::Error) -> Vec<u8> {
    let detail = prost_types::Any { type_url: TYPE_URL.to_owned(), value: error.encode_to_vec() };
    Status { code, message: said.to_owned(), details: vec![detail] }.encode_to_vec()
}

/// A client's side: the error in the bytes, and the status's code.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<(i32, v1::Error)> {
    let status = Status::decode(bytes).ok()?;
    let detail = status.details.into_iter().find(|detail| detail.type_url == TYPE_URL)?;
    Some((status.code, v1::Error::decode(&*detail.value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn every_error_is_the_object_that_http_shows() {
        for code in Code::ALL {
            let error = Error::new(*code).with_detail("why").at("seq").after_ms(700);
            let (status, said) = read(&write(5, "why", &message(&error, "r-1"))).unwrap();
            assert_eq!(status, 5);
            let shown = serde_json::to_value(&said).unwrap();
            assert_eq!(shown, serde_json::to_value(error.problem("r-1")).unwrap(), "{}", code.row().code);
        }
        assert_eq!(read(b"\xff"), None);
        assert_eq!(read(b""), None);
    }
}
