//! Delivery states in words: how far each member has got in a conversation.
//!
//! A receipt is a watermark, never a row per message and user: "bob has read up to message 228". What of one message is
//! delivered and read follows from its ordinal `n` and the members' watermarks.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    error::{Code, Error},
    frame::Object,
    id::{ConversationId, UserId},
    inbox::Counts,
    limit::RECEIPTS_BATCH_MAX,
};

/// How far a member has got, as the other members see it. Both only rise, and whoever reads has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Watermarks {
    /// Messages up to this ordinal have reached one of the member's devices.
    pub delivered_n: u64,
    /// They have read up to here.
    pub read_n: u64,
}

/// A member's watermarks.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Receipt {
    /// Whose.
    pub user: UserId,
    /// How far they have got.
    pub marks: Watermarks,
}

/// Watermarks of one conversation that have moved: one word for all of a moment. It may get lost.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Receipts {
    /// Where.
    pub conversation: ConversationId,
    /// By user id, each user once.
    pub items: Vec<Receipt>,
}

/// How far a client says that its user has got in one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Progress {
    /// Where.
    pub conversation: ConversationId,
    /// Messages up to this ordinal have reached the device.
    pub delivered: Option<u64>,
    /// The user has read up to here.
    pub read: Option<u64>,
}

/// How far the user has got now, as their own devices see it, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Progressed {
    /// What others see of it.
    pub delivered_n: u64,
    /// Messages read, privately or not: what counts are made of.
    pub read_n: u64,
    /// What the user has not read.
    pub counts: Counts,
}

/// How one message stands with one member.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ReceiptView {
    /// Whose.
    pub user: UserId,
    /// Whether it has reached them.
    pub delivered: bool,
    /// Whether they have read it.
    pub read: bool,
}

// === impl Watermarks, Receipts ===

impl Watermarks {
    /// What two sayings tell together.
    #[must_use]
    pub fn highest(self, other: Self) -> Self {
        Self { delivered_n: self.delivered_n.max(other.delivered_n), read_n: self.read_n.max(other.read_n) }
    }

    /// Adds the watermarks' fields to an object.
    pub fn write_json(self, object: &mut Object<'_>) {
        object.number("delivered_n", self.delivered_n).number("read_n", self.read_n);
    }
}

impl Receipts {
    /// What an older word and this one tell together.
    #[must_use]
    pub fn after(&self, older: &Self) -> Self {
        let all = older.items.iter().chain(&self.items);
        let mut by_user: BTreeMap<&UserId, Watermarks> = BTreeMap::new();
        for Receipt { user, marks } in all {
            let known = by_user.entry(user).or_default();
            *known = known.highest(*marks);
        }
        let items = by_user.into_iter().map(|(user, marks)| Receipt { user: user.clone(), marks }).collect();
        Self { conversation: self.conversation, items }
    }
}

impl Progressed {
    /// Adds its fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        Watermarks { delivered_n: self.delivered_n, read_n: self.read_n }.write_json(object);
        self.counts.write_json(object);
    }
}

// === what clients write ===

#[derive(Deserialize)]
pub(crate) struct BatchArgs {
    conversations: BTreeMap<ConversationId, BatchItem>,
    pub(crate) private: Option<bool>,
}

#[derive(Deserialize)]
struct BatchItem {
    delivered: Option<u64>,
    read: Option<u64>,
}

impl BatchArgs {
    pub(crate) fn progress(&self) -> Result<Vec<Progress>, Error> {
        let count = self.conversations.len();
        if count > RECEIPTS_BATCH_MAX {
            let detail = format!("{count} conversations; at most {RECEIPTS_BATCH_MAX} at once");
            return Err(Error::invalid("conversations", detail));
        }
        let idle = |item: &BatchItem| item.delivered.is_none() && item.read.is_none();
        if count == 0 || self.conversations.values().any(idle) {
            let detail = "expected conversations, each with `delivered`, `read` or both";
            return Err(Error::new(Code::Invalid).with_detail(detail).at("conversations"));
        }
        let item = |(conversation, item): (&ConversationId, &BatchItem)| Progress {
            conversation: *conversation,
            delivered: item.delivered,
            read: item.read,
        };
        Ok(self.conversations.iter().map(item).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipts(items: &[(&str, u64, u64)]) -> Receipts {
        let items = items.iter().map(|(user, delivered_n, read_n)| Receipt {
            user: UserId::new(user).unwrap(),
            marks: Watermarks { delivered_n: *delivered_n, read_n: *read_n },
        });
        Receipts { conversation: ConversationId(uuid::Uuid::nil()), items: items.collect() }
    }

    #[test]
    fn two_words_are_one_that_never_falls() {
        let older = receipts(&[("ada", 5, 3), ("eve", 2, 2)]);
        let newer = receipts(&[("ada", 4, 4), ("bob", 1, 0)]);
        assert_eq!(newer.after(&older), receipts(&[("ada", 5, 4), ("bob", 1, 0), ("eve", 2, 2)]));
        assert_eq!(newer.after(&older), older.after(&newer));
    }

    #[test]
    fn a_batch_says_something_of_each_of_its_conversations() {
        let parse = |json: &str| serde_json::from_str::<BatchArgs>(json).unwrap().progress();
        let id = |n: usize| ConversationId(uuid::Uuid::from_u128(n as u128));
        let one = parse(&format!(r#"{{"conversations":{{"{}":{{"delivered":4,"read":2}}}}}}"#, id(1))).unwrap();
        assert_eq!(one, [Progress { conversation: id(1), delivered: Some(4), read: Some(2) }]);
        let many = |count: usize| {
            let items: Vec<String> = (0..count).map(|n| format!(r#""{}":{{"read":1}}"#, id(n))).collect();
            parse(&format!(r#"{{"conversations":{{{}}}}}"#, items.join(",")))
        };
        assert_eq!(many(RECEIPTS_BATCH_MAX).unwrap().len(), RECEIPTS_BATCH_MAX);
        for refused in
            [many(0), many(RECEIPTS_BATCH_MAX + 1), parse(&format!(r#"{{"conversations":{{"{}":{{}}}}}}"#, id(1)))]
        {
            assert_eq!(refused.unwrap_err().field.as_deref(), Some("conversations"));
        }
    }
}
