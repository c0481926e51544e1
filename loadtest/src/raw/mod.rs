//! Peers without logic: what this machine can do at all. A ratio against them is like with like, since they carry the
//! same bytes for the same clients, and do nothing else.

pub mod append;
pub mod broadcast;
pub mod server;

use uuid::Uuid;

use crate::websocket::{self, Opcode};

/// The frame with which a raw peer greets.
fn hello() -> Vec<u8> {
    // An hour between heartbeats: none comes between the figures.
    server_frame(r#"{"hello":{"connection":"raw","heartbeat_ms":3600000,"generation":"raw"}}"#)
}

/// A frame that answers any request: id 0 means "your oldest".
fn ack(bytes: usize) -> Vec<u8> {
    server_frame(&padded(r#"{"id":0,"ok":{"seq":0,"created_at":""#, "\"}}", bytes))
}

/// A frame that delivers a message to a member of a group.
fn delivery(group: usize, bytes: usize) -> Vec<u8> {
    let head = format!(
        r#"{{"event":"message.new","conversation":"{}","seq":0,"data":{{"body":{{"text":""#,
        conversation(group)
    );
    server_frame(&padded(&head, "\"}}}", bytes))
}

/// What a raw peer calls a group's conversation.
pub fn conversation(group: usize) -> Uuid {
    Uuid::from_u128(group as u128)
}

fn padded(head: &str, tail: &str, bytes: usize) -> String {
    format!("{head}{}{tail}", "x".repeat(bytes.saturating_sub(head.len() + tail.len())))
}

fn server_frame(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    websocket::encode(&mut frame, Opcode::Text, text.as_bytes(), None);
    frame
}

/// The group in a request's first line, `GET /raw/17 HTTP/1.1`.
fn group(head: &[u8]) -> Option<usize> {
    let path = head.split(|byte| *byte == b' ').nth(1)?;
    std::str::from_utf8(path).ok()?.rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::client::line::Line;

    #[test]
    fn raw_frames_are_lines_of_the_right_size() {
        for (frame, bytes) in [(ack(120), 120), (delivery(7, 420), 420)] {
            assert_eq!(frame.len(), bytes + if bytes < 126 { 2 } else { 4 });
            let line = &frame[frame.len() - bytes..];
            assert!(
                matches!(Line::parse(line), Some(Line::Ok(0, _) | Line::Event(_))),
                "{}",
                String::from_utf8_lossy(line)
            );
        }
        assert_eq!(group(b"GET /raw/17 HTTP/1.1\r\n"), Some(17));
    }
}
