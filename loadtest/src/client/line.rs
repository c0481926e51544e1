//! One line of the protocol, read only as far as it is needed.
//!
//! A delivery is mostly body, and the body stands last. So the fields of a line are walked one by one, the walk ends
//! at the field that was sought, and nothing is allocated. Values are handed out as the raw JSON they are.

use uuid::Uuid;

/// What the server said in one line.
#[derive(Debug)]
pub enum Line<'a> {
    /// The first line of a connection.
    Hello(&'a [u8]),
    /// The answer to a request.
    Ok(u64, &'a [u8]),
    /// The refusal of a request, or of the connection when there is no id.
    Error(Option<u64>, &'a [u8]),
    /// A live or missed event.
    Event(Event<'a>),
    /// A resumed conversation has been filled up to `head`.
    CaughtUp(Position<'a>),
    /// Events were dropped: read history.
    Resync(Position<'a>),
    /// Come back after so many milliseconds.
    GoingAway(u64),
    /// The line is alive; up to where the user's inbox is known, if the server says so.
    Heartbeat(Option<&'a str>),
    /// A word this client does not know; later servers may say more.
    Unknown,
}

/// A conversation and its head.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    /// The conversation's id as text.
    pub conversation: &'a str,
    /// Its last seq.
    pub head: u64,
}

/// An event, as lazily as it came.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Its dotted name.
    pub name: &'a str,
    /// The conversation's id as text.
    pub conversation: &'a str,
    /// Its place in the conversation; 0 for what is not durable.
    pub seq: u64,
    rest: Fields<'a>,
}

impl<'a> Event<'a> {
    /// Reads an event object.
    pub fn parse(json: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(json);
        match fields.next()? {
            (b"event", value) => Self::after_name(value, fields),
            _ => Self::in_any_order(json),
        }
    }

    /// The slow way, for a server that writes its fields in another order than ours does.
    fn in_any_order(json: &'a [u8]) -> Option<Self> {
        let conversation = field(json, "conversation").and_then(text).unwrap_or("");
        let seq = field(json, "seq").and_then(number).unwrap_or(0);
        Some(Self { name: text(field(json, "event")?)?, conversation, seq, rest: Fields::new(json) })
    }

    fn after_name(name: &'a [u8], mut fields: Fields<'a>) -> Option<Self> {
        let mut conversation = "";
        let all = fields.clone_walk();
        // `seq` stands third; an ephemeral event has none, and then the walk ends with the object.
        for (key, value) in fields.by_ref() {
            match key {
                b"conversation" => conversation = text(value)?,
                b"seq" => return Some(Self { name: text(name)?, conversation, seq: number(value)?, rest: fields }),
                _ => {}
            }
        }
        Some(Self { name: text(name)?, conversation, seq: 0, rest: all })
    }

    /// The raw JSON of another field.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.rest.clone_walk().find_map(|(key, value)| (key == name.as_bytes()).then_some(value))
    }

    /// Its ordinal among messages.
    pub fn n(&self) -> Option<u64> {
        number(self.field("n")?)
    }

    /// Who caused it.
    pub fn sender(&self) -> Option<&'a str> {
        text(self.field("sender")?)
    }

    /// The client's id of the command that caused it.
    pub fn id(&self) -> Option<Uuid> {
        Uuid::try_parse(text(self.field("id")?)?).ok()
    }

    /// The seq it is about.
    pub fn target(&self) -> Option<u64> {
        number(self.field("target")?)
    }

    /// The last seq that it removes.
    pub fn floor(&self) -> Option<u64> {
        number(field(self.field("data")?, "floor")?)
    }

    /// The raw JSON of its message body.
    pub fn body(&self) -> Option<&'a [u8]> {
        field(self.field("data")?, "body").filter(|body| *body != b"null")
    }
}

impl<'a> Line<'a> {
    /// Reads one line; `None` when it is not an object.
    pub fn parse(json: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(json);
        let (key, value) = fields.next()?;
        Some(match key {
            b"event" => Self::Event(Event::after_name(value, fields)?),
            b"id" => {
                let id = number(value)?;
                fields.find_map(|(key, value)| match key {
                    b"ok" => Some(Self::Ok(id, value)),
                    b"error" => Some(Self::Error(Some(id), value)),
                    _ => None,
                })?
            }
            b"error" => Self::Error(field(json, "id").and_then(number), value),
            b"ok" => Self::Ok(field(json, "id").and_then(number)?, value),
            b"hello" => Self::Hello(value),
            b"caught_up" => Self::CaughtUp(Position::parse(value)?),
            b"resync" => Self::Resync(Position::parse(value)?),
            b"going_away" => Self::GoingAway(number(field(value, "reconnect_after_ms")?)?),
            b"heartbeat" => Self::Heartbeat(field(value, "cursor").and_then(text)),
            _ => Event::in_any_order(json).map_or(Self::Unknown, Self::Event),
        })
    }
}

impl<'a> Position<'a> {
    fn parse(json: &'a [u8]) -> Option<Self> {
        Some(Self { conversation: text(field(json, "conversation")?)?, head: number(field(json, "head")?)? })
    }
}

/// The raw JSON of the named field of an object.
pub fn field<'a>(json: &'a [u8], name: &str) -> Option<&'a [u8]> {
    Fields::new(json).find_map(|(key, value)| (key == name.as_bytes()).then_some(value))
}

/// A raw JSON number as an integer.
pub fn number(json: &[u8]) -> Option<u64> {
    if json.is_empty() {
        return None;
    }
    json.iter().try_fold(0u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?
    })
}

/// A raw JSON string without its quotes; `None` if it has escapes, which no id and no name has.
pub fn text(json: &[u8]) -> Option<&str> {
    let [b'"', inner @ .., b'"'] = json else { return None };
    std::str::from_utf8(inner).ok().filter(|text| !text.contains('\\'))
}

/// The elements of a raw JSON array.
pub fn elements(json: &[u8]) -> Elements<'_> {
    let mut at = skip_space(json, 0);
    at = if json.get(at) == Some(&b'[') { at + 1 } else { json.len() };
    Elements { json, at }
}

/// Walks an array.
#[derive(Debug)]
pub struct Elements<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = skip_space(self.json, self.at);
        if matches!(self.json.get(start), None | Some(b']')) {
            return None;
        }
        let end = skip_value(self.json, start)?;
        self.at = skip_comma(self.json, end);
        Some(&self.json[start..end])
    }
}

/// Walks the fields of an object.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Begins at the object's brace.
    pub fn new(json: &'a [u8]) -> Self {
        let start = skip_space(json, 0);
        Self { json, at: if json.get(start) == Some(&b'{') { start + 1 } else { json.len() } }
    }

    /// A second walk over what is left; named so that a copy is never taken by accident.
    fn clone_walk(&self) -> Self {
        *self
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = skip_space(self.json, self.at);
        if self.json.get(start) != Some(&b'"') {
            return None;
        }
        let key_end = skip_string(self.json, start)?;
        let colon = skip_space(self.json, key_end);
        if self.json.get(colon) != Some(&b':') {
            return None;
        }
        let value = skip_space(self.json, colon + 1);
        let value_end = skip_value(self.json, value)?;
        self.at = skip_comma(self.json, value_end);
        Some((&self.json[start + 1..key_end - 1], &self.json[value..value_end]))
    }
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

fn skip_comma(json: &[u8], at: usize) -> usize {
    let at = skip_space(json, at);
    if json.get(at) == Some(&b',') { at + 1 } else { at }
}

fn skip_string(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn skip_value(json: &[u8], start: usize) -> Option<usize> {
    match json.get(start)? {
        b'"' => skip_string(json, start),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0usize);
            loop {
                match json.get(at)? {
                    b'"' => at = skip_string(json, at)? - 1,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
        }
        _ => {
            let length =
                json[start..].iter().take_while(|b| !matches!(b, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
            let end = start + length.count();
            (end > start).then_some(end)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_read_lazily_and_whole() {
        let json = br#"{"event":"message.new","conversation":"0191-a","seq":413,"n":230,"at":"2026","sender":"ada","id":"01919191-0000-7000-8000-000000000001","data":{"body":{"text":"a \"quoted\" } brace"}}}"#;
        let Some(Line::Event(event)) = Line::parse(json) else { panic!("not an event") };
        assert_eq!((event.name, event.conversation, event.seq), ("message.new", "0191-a", 413));
        assert_eq!((event.n(), event.sender()), (Some(230), Some("ada")));
        assert_eq!(event.id(), Some(Uuid::from_u128(0x01919191_0000_7000_8000_000000000001)));
        assert_eq!(event.body(), Some(&br#"{"text":"a \"quoted\" } brace"}"#[..]));
        assert_eq!(event.target(), None);
    }

    #[test]
    fn what_has_no_seq_is_read_whole_too() {
        let json = br#"{"event":"inbox.changed","conversation":"0191-a","data":{"unread":3}}"#;
        let Some(Line::Event(event)) = Line::parse(json) else { panic!("not an event") };
        assert_eq!((event.name, event.seq, event.field("data")), ("inbox.changed", 0, Some(&br#"{"unread":3}"#[..])));
    }

    #[test]
    fn every_kind_of_line_is_known() {
        for (json, shown) in [
            (r#"{"id":2,"ok":{"seq":416}}"#, "Ok(2"),
            (r#"{"id":2,"error":{"code":"x"}}"#, "Error(Some(2)"),
            (r#"{"error":{"code":"x"}}"#, "Error(None"),
            (r#"{"hello":{}}"#, "Hello("),
            (r#"{"caught_up":{"conversation":"c","head":3}}"#, "CaughtUp("),
            (r#"{ "resync" : { "conversation" : "c" , "head" : 3 } }"#, "Resync("),
            (r#"{"going_away":{"reconnect_after_ms":8123}}"#, "GoingAway(8123"),
            (r#"{"heartbeat":{}}"#, "Heartbeat(None"),
            (r#"{"heartbeat":{"cursor":"1.2.3"}}"#, "Heartbeat(Some(\"1.2.3\""),
            (r#"{"seq":7,"id":"x","conversation":"c","event":"message.new"}"#, "Event("),
            (r#"{"error":{"code":"x"},"id":2}"#, "Error(Some(2)"),
            (r#"{"event":"typing.started","conversation":"c","data":{}}"#, "Event("),
            (r#"{"news":{}}"#, "Unknown"),
        ] {
            assert!(format!("{:?}", Line::parse(json.as_bytes()).unwrap()).starts_with(shown), "{json}");
        }
    }

    #[test]
    fn arrays_are_walked() {
        let found: Vec<_> = elements(br#"[{"a":[1,2]}, "x,]" ,3]"#).collect();
        assert_eq!(found, [&br#"{"a":[1,2]}"#[..], br#""x,]""#, b"3"]);
        assert_eq!(elements(b"[]").count(), 0);
        assert_eq!(elements(b"{}").count(), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in ".{0,40}", number in any::<u32>(), flag in any::<bool>()) {
            let value = serde_json::json!({"a": {"deep": [text, {"x": [flag]}]}, "b": number, "c": text, "d": null});
            let json = serde_json::to_vec(&value).unwrap();
            for (key, raw) in Fields::new(&json) {
                let found: serde_json::Value = serde_json::from_slice(raw).unwrap();
                prop_assert_eq!(&found, &value[std::str::from_utf8(key).unwrap()]);
            }
            prop_assert_eq!(Fields::new(&json).count(), 4);
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(json in prop::collection::vec(prop::sample::select(&b"{}[]\":,\\ a1"[..]), 0..60)) {
            let _ = Line::parse(&json);
            let _ = elements(&json).count();
        }
    }
}
