//! What a message may carry: one JSON object of the application's, kept byte for byte.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    error::{Code, Error},
    limit::{BODY_BYTES_MAX, BODY_DEPTH_MAX},
};

/// A validated JSON object: well-formed UTF-8 and escapes, bounded size and depth, `text` (if there) a string.
/// It is spliced into frames as it is, so its bytes never contain a line break.
#[derive(Clone, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Body(Bytes);

impl Body {
    /// Validates and copies `json`.
    ///
    /// # Errors
    /// `message.too_large` or `request.invalid`, naming what is wrong.
    pub fn parse(json: &str) -> Result<Self, Error> {
        Self::parse_within(json, BODY_BYTES_MAX)
    }

    /// [`parse`](Self::parse) with another bound on the size, in bytes.
    ///
    /// # Errors
    /// As `parse`.
    pub fn parse_within(json: &str, bytes_max: usize) -> Result<Self, Error> {
        if json.len() > bytes_max {
            let detail = format!("{} bytes; at most {bytes_max} are accepted", json.len());
            return Err(Error::new(Code::MessageTooLarge).with_detail(detail).at("body"));
        }
        let mut decoder = serde_json::Deserializer::from_str(json);
        Object.deserialize(&mut decoder).map_err(|error| Error::invalid("body", error.to_string()))?;
        // Inside JSON strings line breaks are always escaped, so a raw one can only be white space between tokens.
        if json.bytes().any(|b| b == b'\n' || b == b'\r') {
            let one_line: String = json.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
            return Ok(Self(Bytes::from(one_line)));
        }
        Ok(Self(Bytes::copy_from_slice(json.as_bytes())))
    }

    /// A body that was validated before it was stored.
    #[must_use]
    pub const fn trusted(json: Bytes) -> Self {
        Self(json)
    }

    /// What stands in the place of a body that was taken away: at rest no bytes, for clients `null`.
    #[must_use]
    pub const fn erased() -> Self {
        Self(Bytes::new())
    }

    /// The JSON text's bytes; none of an erased body.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Its `text`, if there is one.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Text {
            text: Option<String>,
        }
        serde_json::from_slice::<Text>(&self.0).ok()?.text
    }

    /// What clients are shown.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        if self.0.is_empty() { b"null" } else { &self.0 }
    }
}

impl fmt::Debug for Body {
    /// Bodies never reach a log: only their size shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(de::Error::custom)
    }
}

/// Walks the top level, where `text` has a meaning.
struct Object;

impl<'de> DeserializeSeed<'de> for Object {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_text) = map.next_key_seed(Key)? {
            if is_text {
                map.next_value_seed(Text)?;
            } else {
                map.next_value_seed(Anything { depth: 1 })?;
            }
        }
        Ok(())
    }
}

/// A key of the top level; the answer says whether it is `text`.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == "text")
    }
}

/// A string.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`text` to be a string")
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// Any value. Every string is decoded on the way, so a lone surrogate that a recipient's decoder would refuse
/// is refused here.
#[derive(Clone, Copy)]
struct Anything {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Anything {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Anything {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= BODY_DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {BODY_DEPTH_MAX} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> Visitor<'de> for Anything {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while map.next_key_seed(Key)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        Body::parse(json).unwrap_err().detail.into_owned()
    }

    #[test]
    fn an_object_is_kept_as_it_is() {
        let json = r#"{"text":"héllo \u00e9 😀","x":[1,2.5,-3,null,true,{"y":""}]}"#;
        assert_eq!(Body::parse(json).unwrap().bytes(), json.as_bytes());
    }

    #[test]
    fn an_erased_body_is_null() {
        assert_eq!((Body::erased().json(), Body::erased().bytes().len()), (&b"null"[..], 0));
        assert_eq!(Body::trusted(Bytes::new()), Body::erased());
        assert_eq!(Body::parse("{}").unwrap().json(), b"{}");
    }

    #[test]
    fn a_text_is_found_wherever_it_stands() {
        let text = |json: &str| Body::parse(json).unwrap().text();
        assert_eq!(text(r#"{"a":{"text":"no"},"text":"h\u00e9 \"you\""}"#), Some("hé \"you\"".to_owned()));
        assert_eq!((text("{}"), text(r#"{"a":"text"}"#), Body::erased().text()), (None, None, None));
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        let body = Body::parse("{\r\n \"text\": \"a\\nb\"\n}").unwrap();
        assert_eq!(body.bytes(), "{   \"text\": \"a\\nb\" }".as_bytes());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in
            ["", "1", "[]", "\"x\"", "{", "{\"a\":}", "{\"text\":1}", "{\"text\":null}", "{'a':1}", "{\"a\":1,}"]
        {
            assert!(Body::parse(json).is_err(), "{json} was accepted");
        }
        assert!(refused(r#"{"text":1}"#).contains("`text` to be a string"));
    }

    #[test]
    fn lone_surrogates_are_refused_anywhere() {
        for json in [r#"{"text":"\ud800"}"#, r#"{"a":["\udc00"]}"#, r#"{"\ud800":1}"#, r#"{"a":{"\ud800x":1}}"#] {
            assert!(Body::parse(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(Body::parse(&nested(BODY_DEPTH_MAX - 1)).is_ok());
        assert!(refused(&nested(BODY_DEPTH_MAX)).contains("nested deeper"));
        assert!(Body::parse(&nested(10_000)).is_err());
        let sized = |bytes: usize| format!("{{\"text\":\"{}\"}}", "x".repeat(bytes - 11));
        assert!(Body::parse(&sized(BODY_BYTES_MAX)).is_ok());
        assert_eq!(Body::parse(&sized(BODY_BYTES_MAX + 1)).unwrap_err().code, Code::MessageTooLarge);
    }
}
