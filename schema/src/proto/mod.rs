//! The operations as protobuf: package `chappe.v1` of `schema/proto`, which other languages' clients are generated from.
//!
//! The types are made from the proto file; a test makes them again and compares. A request becomes the JSON that every
//! transport decodes, a reply is made from the JSON that every transport shows: fields have the same names, so that
//! neither can say anything that the other cannot.
//!
//! - [`v1`]: the types
//! - [`rpc`]: which operation is which method, one row for each
//! - [`frame`]: the frames of a connection
//! - [`details`]: errors in a status
//! - [`json`]: fields that look otherwise in JSON: times, words, bodies

pub mod details;
pub mod frame;
pub mod json;
pub mod rpc;

/// Package `chappe.v1`, as made from `schema/proto/chappe/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    // Included, so that the formatter leaves it as it was made.
    include!("chappe.v1.rs");
}

/// What describes the package to programs: a `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("chappe.v1.bin");
