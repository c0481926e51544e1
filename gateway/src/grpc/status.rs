//! Errors as gRPC shows them: a status from the table, and the one object in its details.

use chappe_schema::{
    error::{Code, Error},
    proto::details,
};
use tonic::{Status, metadata::MetadataValue};

use super::codec::SEVERAL;
use crate::gateway::log;

/// How long clients that repeat by themselves should wait.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Which compressions are understood.
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// The error as a status.
pub(super) fn of(error: &Error, request_id: &str) -> Status {
    with_code(error, error.code.row().grpc.into(), request_id)
}

/// The error as the status of a request that took longer than its client waits.
pub(super) fn late(error: &Error, request_id: &str) -> Status {
    with_code(error, tonic::Code::DeadlineExceeded as i32, request_id)
}

fn with_code(error: &Error, code: i32, request_id: &str) -> Status {
    let row = error.code.row();
    let said = if error.detail.is_empty() { row.title } else { &error.detail };
    let details = details::write(code, said, &details::message(error, request_id));
    let mut status = Status::with_details(code.into(), said, details.into());
    if let Some(ms) = error.retry_after_ms {
        status.metadata_mut().insert(PUSHBACK, MetadataValue::from(ms));
    }
    status
}

/// An answer that gets the one object too where the library refused by itself.
pub(super) fn dressed(
    response: http::Response<tonic::body::Body>,
    request_id: &str,
) -> http::Response<tonic::body::Body> {
    let refused = Status::from_header_map(response.headers());
    match refused.filter(|refused| refused.code() != tonic::Code::Ok && refused.details().is_empty()) {
        Some(refused) => {
            let (error, code) = translated(&refused);
            log(&error, request_id);
            let mut status = with_code(&error, code, request_id);
            if let Some(encodings) = refused.metadata().get(ACCEPT_ENCODING) {
                status.metadata_mut().insert(ACCEPT_ENCODING, encodings.clone());
            }
            status.into_http()
        }
        None => response,
    }
}

/// What the library found wrong by itself, in our words, and its status. Where gRPC itself says which one is right (its
/// `statuscodes.md`), that is not the table's: compression, and any number of messages but one, are `UNIMPLEMENTED`.
fn translated(refused: &Status) -> (Error, i32) {
    let unimplemented = tonic::Code::Unimplemented as i32;
    let of_table = |error: Error| {
        let code = error.code.row().grpc.into();
        (error, code)
    };
    let malformed = |detail: &'static str| Error::new(Code::Malformed).with_detail(detail);
    match (refused.code(), refused.message()) {
        (tonic::Code::OutOfRange, _) => of_table(
            Error::new(Code::TooLarge)
                .with_detail(format!("at most {} bytes are accepted", chappe_schema::limit::REQUEST_BYTES_MAX)),
        ),
        (tonic::Code::Unimplemented, SEVERAL) => (malformed(SEVERAL), unimplemented),
        (tonic::Code::Internal, NONE) => {
            (malformed("a call of this method has one message, and this one has none"), unimplemented)
        }
        (tonic::Code::Unimplemented, _) => (malformed("compressed messages are not accepted"), unimplemented),
        (tonic::Code::Cancelled, _) => of_table(Error::new(Code::Aborted)),
        _ => of_table(malformed("the request is not one gRPC message")),
    }
}

/// What the library says when there is no message.
const NONE: &str = "Missing request message.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_a_status_with_the_one_object() {
        for code in Code::ALL {
            let error = Error::new(*code).with_detail("why").at("seq").after_ms(700);
            let status = of(&error, "r-1");
            assert_eq!(status.code() as i32, i32::from(code.row().grpc), "{}", code.row().code);
            assert_ne!(status.code(), tonic::Code::Ok);
            let (said, error) = details::read(status.details()).unwrap();
            assert_eq!((said, error.code.as_str()), (status.code() as i32, code.row().code));
            assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "700");
        }
    }
}
