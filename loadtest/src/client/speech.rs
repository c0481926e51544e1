//! How a client talks with the server.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The transport, and how frames are written on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speech {
    /// Lines of JSON on a WebSocket.
    #[default]
    Json,
    /// Messages of protobuf on a WebSocket.
    Protobuf,
    /// `Realtime.Connect` of gRPC, on an HTTP/2 connection of its own.
    Grpc,
    /// Operations as HTTP requests, one after the other on one connection; events, and what HTTP does not offer, on a WebSocket.
    Http,
}

impl Speech {
    const ALL: [(&str, Self); 4] =
        [("json", Self::Json), ("protobuf", Self::Protobuf), ("grpc", Self::Grpc), ("http", Self::Http)];

    /// The subprotocol of the WebSocket.
    pub const fn protocol(self) -> &'static str {
        if self.is_protobuf() { "chappe.v1.protobuf" } else { "chappe.v1.json" }
    }

    /// Whether frames are protobuf.
    pub const fn is_protobuf(self) -> bool {
        matches!(self, Self::Protobuf | Self::Grpc)
    }
}

impl FromStr for Speech {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, speech)| speech).ok_or_else(|| "expected json, protobuf, grpc or http".to_owned())
    }
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.into_iter().find_map(|(name, speech)| (speech == *self).then_some(name));
        f.write_str(name.unwrap_or_default())
    }
}
