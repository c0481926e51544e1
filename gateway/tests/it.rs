//! The gateway from the outside: real sockets, an independent WebSocket client, a node of a few lines.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "it/access.rs"]
mod access;
#[path = "it/admin.rs"]
mod admin;
#[path = "it/bench.rs"]
mod bench;
#[path = "it/catch_up.rs"]
mod catch_up;
#[path = "it/delivery.rs"]
mod delivery;
#[path = "it/door.rs"]
mod door;
#[path = "it/drain.rs"]
mod drain;
#[path = "it/flow.rs"]
mod flow;
#[path = "it/grpc.rs"]
mod grpc;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/http.rs"]
mod http;
#[path = "it/http2.rs"]
mod http2;
#[path = "it/inbox.rs"]
mod inbox;
#[path = "it/jwks.rs"]
mod jwks;
#[path = "it/node.rs"]
mod node;
#[path = "it/parity.rs"]
mod parity;
#[path = "it/presence.rs"]
mod presence;
#[path = "it/tls.rs"]
mod tls;
#[path = "it/world.rs"]
mod world;
