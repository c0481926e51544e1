//! Errors as gRPC shows them: a status from the table, and the one object in its details.

use chappe_schema::{
    error::{Code, Error},
    proto::details,
};
use tonic::{Status, metadata::MetadataValue};

/// How long clients that repeat by themselves should wait.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

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

/// What the library found wrong by itself, in our words.
pub(super) fn translated(code: tonic::Code, said: &str) -> Error {
    match code {
        tonic::Code::OutOfRange => Error::new(Code::TooLarge)
            .with_detail(format!("at most {} bytes are accepted", chappe_schema::limit::REQUEST_BYTES_MAX)),
        tonic::Code::Unimplemented if said.contains("ompress") => {
            Error::new(Code::Malformed).with_detail("compressed messages are not accepted")
        }
        tonic::Code::Unimplemented => Error::new(Code::UnknownOperation),
        tonic::Code::Cancelled => Error::new(Code::Aborted),
        _ => Error::new(Code::Malformed).with_detail("the request is not one gRPC message"),
    }
}

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
