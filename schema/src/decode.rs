//! What is wrong with a client's JSON, in words for the client.
//!
//! The decoder speaks to Rust programmers: it names our types, counts columns of a text that over HTTP nobody has sent
//! in this form, and quotes whatever it met. Here its sentences become ours, and the field is found by looking at the
//! text itself.

use serde::Deserialize;

use crate::{
    error::{Code, Error, excerpt},
    limit::IGNORED_MAX,
};

/// Decodes a JSON object, collecting the names of fields that nobody reads: they are usually a client's typo.
///
/// # Errors
/// `request.malformed`, or `request.invalid` with the field.
pub fn object<'a, T: Deserialize<'a>>(json: &'a str, ignored: &mut Vec<String>) -> Result<T, Error> {
    let mut decoder = serde_json::Deserializer::from_str(json);
    let mut note = |path: serde_ignored::Path<'_>| {
        if ignored.len() < IGNORED_MAX {
            ignored.push(excerpt(&path.to_string()).into_owned());
        }
    };
    let decoded = serde_ignored::deserialize(&mut decoder, &mut note);
    decoded.and_then(|args| decoder.end().map(|()| args)).map_err(|error| refusal(json, &error))
}

/// The error for a text that was not decoded, with the offending field where it can be told.
fn refusal(json: &str, error: &serde_json::Error) -> Error {
    if !error.is_data() {
        return Error::new(Code::Malformed).with_detail(sentence(&error.to_string()));
    }
    if !json.trim_start().starts_with('{') {
        return Error::new(Code::Malformed).with_detail("expected a JSON object");
    }
    let text = error.to_string();
    let Told { field, detail } = told(&text);
    let field = field.map(str::to_owned).or_else(|| field_at(json, offset(json, error)));
    let error = Error::new(Code::Invalid).with_detail(detail);
    match field.filter(|field| field.len() <= FIELD_BYTES_MAX) {
        Some(field) => error.at(field),
        None => error,
    }
}

/// Longer names are none of ours, and not worth an echo.
const FIELD_BYTES_MAX: usize = 64;

/// What the decoder said, in our words.
#[must_use]
pub(crate) fn sentence(text: &str) -> String {
    told(text).detail
}

/// One of the decoder's sentences.
struct Told<'a> {
    /// The field, where the sentence is about one.
    field: Option<&'a str>,
    detail: String,
}

fn told(text: &str) -> Told<'_> {
    let text = without_position(text);
    let about = |prefix: &str| {
        let (name, rest) = text.strip_prefix(prefix)?.split_once('`')?;
        Some((name, rest))
    };
    if let Some((name, _)) = about("missing field `") {
        return Told { field: Some(name), detail: format!("the field `{}` is missing", excerpt(name)) };
    }
    if let Some((name, _)) = about("duplicate field `") {
        return Told { field: Some(name), detail: format!("the field `{}` is given twice", excerpt(name)) };
    }
    if let Some((name, rest)) = about("unknown field `") {
        let known = rest.strip_prefix(", expected ").unwrap_or("another one");
        return Told { field: Some(name), detail: format!("unknown field; expected {known}") };
    }
    let detail = match text {
        _ if text.starts_with("UUID parsing failed") => "expected a UUID".to_owned(),
        _ if text.starts_with("EOF while parsing") => "the JSON ends too early".to_owned(),
        "expected value" | "expected ident" => "the JSON is not well formed: expected a value".to_owned(),
        "recursion limit exceeded" => "the JSON is nested too deeply".to_owned(),
        _ => match QUOTING.iter().any(|prefix| text.starts_with(prefix)).then(|| text.rsplit_once(", expected ")) {
            // What was met is the client's own and may be long: the client knows it.
            Some(Some((_, expected))) => format!("expected {}", ours(expected)),
            Some(None) => "expected another value".to_owned(),
            None if is_of_the_parser(text) => format!("the JSON is not well formed: {text}"),
            // A sentence of our own types.
            None => text.to_owned(),
        },
    };
    Told { field: None, detail }
}

/// Sentences that quote what was met.
const QUOTING: [&str; 4] = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant "];

/// What was expected, without the names of a programming language.
fn ours(expected: &str) -> &str {
    const WHOLE: [&str; 10] = ["u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "isize"];
    match expected {
        _ if WHOLE.contains(&expected) => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a borrowed string" | "string" | "a character" => "a string",
        "a boolean" => "true or false",
        "a formatted UUID string" => "a UUID",
        "a sequence" => "an array",
        "a map" => "an object",
        "a tuple of size 2" | "an array of length 2" => "an array of two values",
        "unit" | "option" | "variant identifier" | "field identifier" => "another value",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("tuple struct ") || expected.starts_with("a tuple of size ") => "an array",
        _ if expected.starts_with("enum ") || expected.starts_with("unit struct ") => "a string",
        // Names of our own, and words that our own types use.
        own => own,
    }
}

/// What the parser says of JSON that is none. Our own types say what they expect in other words.
fn is_of_the_parser(text: &str) -> bool {
    const OF_THE_PARSER: [&str; 12] = [
        "expected `",
        "trailing ",
        "key must be",
        "invalid escape",
        "invalid number",
        "invalid unicode",
        "control character",
        "number out of range",
        "lone ",
        "unexpected end",
        "expected numeric key",
        "float key",
    ];
    OF_THE_PARSER.iter().any(|start| text.starts_with(start))
}

/// A sentence without the place that it ends with.
fn without_position(text: &str) -> &str {
    let Some((sentence, place)) = text.rsplit_once(" at line ") else { return text };
    let is_place = place.bytes().all(|byte| byte.is_ascii_digit() || b" column".contains(&byte));
    if is_place { sentence } else { text }
}

/// Where in the text the decoder stopped.
fn offset(json: &str, error: &serde_json::Error) -> usize {
    let before: usize = json.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column()).min(json.len())
}

/// The key of the outermost object whose value was being read at `end`.
fn field_at(json: &str, end: usize) -> Option<String> {
    let bytes = &json.as_bytes()[..end];
    let (mut depth, mut is_key, mut field) = (0_usize, false, None);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                is_key = depth == 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => is_key = true,
            b'"' => {
                let length = string_length(&bytes[at..])?;
                if is_key && depth == 1 {
                    field = json.get(at..at + length);
                    is_key = false;
                }
                at += length - 1;
            }
            _ => {}
        }
        at += 1;
    }
    // A key may be written with escapes.
    serde_json::from_str(field?).ok()
}

/// Bytes of the string that begins here, quotes included; all that is left if it does not end.
fn string_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at) {
            None => return Some(bytes.len()),
            Some(b'\\') => at += 2,
            Some(b'"') => return Some(at + 1),
            Some(_) => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::id::{ConversationId, DeviceId, Seq, UserId};

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Choice {
        Direct,
        Group,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Everything {
        user: UserId,
        device: Option<DeviceId>,
        conversation: Option<ConversationId>,
        title: Option<String>,
        seq: Option<Seq>,
        kind: Option<Choice>,
        members: Option<Vec<UserId>>,
        flag: Option<bool>,
        positions: Option<BTreeMap<ConversationId, (String, Seq)>>,
    }

    fn refused(json: &str) -> (Code, Option<String>, String) {
        let error = object::<Everything>(json, &mut Vec::new()).unwrap_err();
        (error.code, error.field.map(std::borrow::Cow::into_owned), error.detail.into_owned())
    }

    #[test]
    fn what_is_wrong_is_said_in_our_words_and_where() {
        let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
        for (json, field, detail) in [
            (r#"{"device":"d"}"#, "user", "the field `user` is missing"),
            (r#"{"user":"a","title":"x","user":"b"}"#, "user", "the field `user` is given twice"),
            (r#"{"user":"a","seq":1,"title":"x","seq":2,"flag":true}"#, "seq", "the field `seq` is given twice"),
            (r#"{"user":7}"#, "user", "expected a string"),
            (r#"{"user":{"name":"a"}}"#, "user", "expected a string"),
            (r#"{"user":"a","seq":"7"}"#, "seq", "expected a whole number, 0 or more"),
            (r#"{"user":"a","seq":-1}"#, "seq", "expected a whole number, 0 or more"),
            (r#"{"user":"a","seq":1.5}"#, "seq", "expected a whole number, 0 or more"),
            (r#"{"user":"a","seq":99999999999999999999}"#, "seq", "expected a whole number, 0 or more"),
            (r#"{"user":"a","conversation":"x"}"#, "conversation", "expected a UUID"),
            (r#"{"user":"a","conversation":7}"#, "conversation", "expected a UUID"),
            (r#"{"user":"a","kind":"other, expected u64"}"#, "kind", "expected `direct` or `group`"),
            (r#"{"user":"a","flag":"yes"}"#, "flag", "expected true or false"),
            (r#"{"user":"a","members":"bob"}"#, "members", "expected an array"),
            (r#"{"user":"a","members":["bob",7]}"#, "members", "expected a string"),
            (r#"{"user":"a","positions":[]}"#, "positions", "expected an object"),
            (r#"{"user":"a","positions":{"x":["f",1]}}"#, "positions", "expected a UUID"),
            (r#"{"user":"a","colour":1}"#, "colour", "unknown field; expected one of `user`, `device`"),
            // The field is found by the structure of the text, not by what looks like a key.
            (r#"{"user":"a","title":"\"seq\":","kind":"x"}"#, "kind", "expected `direct` or `group`"),
            ("{\n  \"user\": \"a\",\n  \"title\": 7,\n  \"seq\": 1\n}", "title", "expected a string"),
            (r#"{"user":"a","t\u0069tle":7}"#, "title", "expected a string"),
        ] {
            let (code, found, said) = refused(json);
            assert_eq!((code, found.as_deref()), (Code::Invalid, Some(field)), "{json}: {said}");
            assert!(said.starts_with(detail), "{json}: {said}");
        }
        let position = format!(r#"{{"user":"a","positions":{{"{uuid}":["f"]}}}}"#);
        assert_eq!(refused(&position).2, "expected an array of two values");
        let position = format!(r#"{{"user":"a","positions":{{"{uuid}":["f","1"]}}}}"#);
        assert_eq!(refused(&position).1.as_deref(), Some("positions"));
    }

    #[test]
    fn what_is_no_json_is_malformed_without_a_place() {
        for (json, detail) in [
            ("", "the JSON ends too early"),
            ("{\"user\":\"a", "the JSON ends too early"),
            ("{\"user\":}", "the JSON is not well formed: expected a value"),
            ("{\"user\":\"a\",}", "the JSON is not well formed: trailing comma"),
            ("{}x", "the field `user` is missing"),
            ("{\"user\":\"a\"}x", "the JSON is not well formed: trailing characters"),
            ("[1]", "expected a JSON object"),
        ] {
            assert_eq!(refused(json).2, detail, "{json}");
        }
    }

    proptest::proptest! {
        /// However the client got it wrong: no Rust, no columns, and at most 64 bytes of its own.
        #[test]
        fn nothing_leaks(
            value in "(\"[a-z ,:{}`]{0,200}\"|-?[0-9]{1,40}|\\[\\]|\\{\\}|true|null|[ -~]{0,60})",
            field in "(user|device|conversation|title|seq|kind|members|flag|positions|[a-z]{1,200})",
        ) {
            let json = format!(r#"{{"user":"a","{field}":{value}}}"#);
            if let Err(error) = object::<Everything>(&json, &mut Vec::new()) {
                let said = &error.detail;
                proptest::prop_assert!(said.len() <= 300, "{said}");
                for leak in ["column", "u64", "struct", "Everything", "invalid type", "invalid value"] {
                    proptest::prop_assert!(!said.contains(leak), "{said}");
                }
                if value.len() > 64 {
                    proptest::prop_assert!(!said.contains(&value[1..value.len() - 1]), "{said}");
                }
                proptest::prop_assert!(error.field.as_ref().is_none_or(|field| field.len() <= 64));
            }
        }
    }
}
