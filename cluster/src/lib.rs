//! Who is here, who owns what, how bytes travel; and what every process shows its operator.
//!
//! - [`link`]: how gateways and nodes reach each other
//! - [`process`]: configuration, logs, metrics, health, shutdown: the same in every process

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod link;
pub mod process;
