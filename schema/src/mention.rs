//! Whom a message is for in particular. Mentions stand beside the body, never in it: bodies are the application's own,
//! and those of an encrypted conversation cannot be read here.

use std::sync::Arc;

use serde::Deserialize;

use crate::{error::Error, frame::Object, id::UserId, limit::MENTIONS_MAX};

/// The users whom one message mentions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Mentions {
    /// By user id, each once. Who is no member counts for nothing.
    #[serde(default)]
    pub users: Vec<UserId>,
    /// Every member; only admins and owners may.
    #[serde(default)]
    pub all: bool,
}

/// The mentions of a message, `None` for the usual one that has none. Shared by everyone who keeps them.
pub type Mentioned = Option<Arc<Mentions>>;

impl Mentions {
    /// Brings what a client wrote into one form, in which the same mentions are equal.
    ///
    /// # Errors
    /// `request.invalid` when there are too many.
    pub fn checked(mut self) -> Result<Mentioned, Error> {
        if self.users.len() > MENTIONS_MAX {
            let detail = format!("{} users; at most {MENTIONS_MAX} are mentioned one by one", self.users.len());
            return Err(Error::invalid("mentions", detail));
        }
        self.users.sort_unstable();
        self.users.dedup();
        self.users.shrink_to_fit();
        Ok((self.all || !self.users.is_empty()).then(|| Arc::new(self)))
    }

    /// Whether `user` is meant.
    #[must_use]
    pub fn name(&self, user: &UserId) -> bool {
        self.all || self.users.binary_search(user).is_ok()
    }

    /// Heap bytes, roughly.
    #[must_use]
    pub const fn heap_bytes(&self) -> usize {
        size_of::<Self>() + 16 + self.users.capacity() * size_of::<UserId>()
    }

    /// Adds the field `mentions` to an object, if there are any.
    pub fn write_json(mentioned: &Mentioned, object: &mut Object<'_>) {
        let Some(mentions) = mentioned else { return };
        object.object("mentions", |object| {
            if !mentions.users.is_empty() {
                object.array("users", &mentions.users, |out, user| crate::frame::write_text(out, user.as_str()));
            }
            if mentions.all {
                object.flag("all", true);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str) -> Result<Mentioned, Error> {
        serde_json::from_str::<Mentions>(json).unwrap().checked()
    }

    #[test]
    fn the_same_mentions_are_equal_however_they_are_written() {
        let mentions = checked(r#"{"users":["eve","bob","eve"]}"#).unwrap().unwrap();
        assert_eq!(Some(mentions.clone()), checked(r#"{"users":["bob","eve"],"all":false}"#).unwrap());
        let user = |name| UserId::new(name).unwrap();
        assert!(mentions.name(&user("bob")) && mentions.name(&user("eve")) && !mentions.name(&user("ada")));
        assert!(checked(r#"{"all":true}"#).unwrap().unwrap().name(&user("anyone")));
        assert_eq!(checked(r#"{"users":[]}"#).unwrap(), None);
    }

    #[test]
    fn mentions_are_bounded() {
        let users = |count: usize| {
            let users: Vec<String> = (0..count).map(|n| format!("\"u{n}\"")).collect();
            format!(r#"{{"users":[{}]}}"#, users.join(","))
        };
        assert!(checked(&users(MENTIONS_MAX)).is_ok());
        assert_eq!(checked(&users(MENTIONS_MAX + 1)).unwrap_err().field.as_deref(), Some("mentions"));
    }
}
