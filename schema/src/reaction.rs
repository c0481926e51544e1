//! What a reaction says: an emoji or a short name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    archive::Text,
    id::{Malformed, text_id},
    limit::REACTION_KEY_BYTES_MAX,
};

/// A reaction's key, compared byte for byte: whoever wants two ways of writing an emoji to be one writes one of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ReactionKey(#[rkyv(with = Text)] Arc<str>);

impl ReactionKey {
    /// # Errors
    /// When `text` is empty, longer than 64 bytes, or holds white space or a control character, and for `.` and `..`,
    /// which no path can hold.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let fits = |c: char| !c.is_control() && !c.is_whitespace();
        if text.is_empty()
            || text.len() > REACTION_KEY_BYTES_MAX
            || !text.chars().all(fits)
            || matches!(text, "." | "..")
        {
            return Err(Malformed(
                "expected an emoji or a short name: 1 to 64 bytes without white space or control characters",
            ));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_id!(ReactionKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_and_fit_into_a_path() {
        let family = "👨‍👩‍👧‍👦";
        for good in ["👍", "❤️", family, "+1", "party_parrot", "a/b%?#", "...", &"x".repeat(64)] {
            assert_eq!(ReactionKey::new(good).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "a\u{7}", "\u{85}", "x\u{2028}", ".", "..", &"x".repeat(65)] {
            assert!(ReactionKey::new(bad).is_err(), "{bad:?}");
        }
        assert_ne!(ReactionKey::new("❤").unwrap(), ReactionKey::new("❤️").unwrap());
    }
}
