//! A user's inbox as one device keeps it: listed once, then kept right by what has changed since a cursor.
//!
//! Live events say what is said; a device that wants counts without asking adds them up itself ([`Inbox::hear`]), and asks
//! ([`Client::sync_inbox`]) for what it cannot tell from an event. Whatever gets lost, the next cursor that differs from
//! ours (at `connect`, in a heartbeat) says so.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Client, Failure, Happened};

/// What a device knows of its user's conversations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inbox {
    user: String,
    rows: BTreeMap<Uuid, Value>,
    cursor: Option<String>,
}

impl Inbox {
    /// The inbox of a user of whom nothing is known.
    pub fn of(user: &str) -> Self {
        Self { user: user.to_owned(), ..Self::default() }
    }

    /// What is known of one conversation, as the server's row.
    pub fn row(&self, conversation: Uuid) -> Option<&Value> {
        self.rows.get(&conversation)
    }

    /// All conversations in the order of the list, archived ones last.
    pub fn rows(&self) -> Vec<&Value> {
        let mut rows: Vec<&Value> = self.rows.values().collect();
        let place = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let rank = (row["archived"] != json!(true), row["pinned"] == json!(true));
            (rank, text("active_at"), text("id"))
        };
        rows.sort_by_key(|row| std::cmp::Reverse(place(row)));
        rows
    }

    /// Up to where it is known.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Takes the answer of a list. The cursor of the first page counts: what moves meanwhile has changed since.
    fn listed(&mut self, page: &Value) -> Option<String> {
        for row in page["conversations"].as_array().into_iter().flatten() {
            self.put(row);
        }
        if self.cursor.is_none() {
            self.cursor = page["cursor"].as_str().map(str::to_owned);
        }
        page["next_cursor"].as_str().map(str::to_owned)
    }

    fn put(&mut self, row: &Value) {
        let Some(id) = row["id"].as_str().and_then(|id| Uuid::try_parse(id).ok()) else { return };
        match row["left"] {
            Value::Bool(true) => drop(self.rows.remove(&id)),
            _ => drop(self.rows.insert(id, row.clone())),
        }
    }

    /// Takes an event as it comes live. `false`: what it means for the counts only the server can tell.
    pub fn hear(&mut self, event: &Happened) -> bool {
        if event.name == "inbox.changed" {
            let (Some(row), Value::Object(changes)) = (self.rows.get_mut(&event.conversation), &event.data) else {
                return false;
            };
            for (name, value) in changes.iter().filter(|(name, _)| *name != "cursor") {
                row[name] = value.clone();
            }
            // A mute has an end, or none.
            if let (Some(row), false) = (row.as_object_mut(), changes.contains_key("muted_until")) {
                row.remove("muted_until");
            }
            return true;
        }
        let Some(row) = self.rows.get_mut(&event.conversation) else { return false };
        if event.seq <= row["head"].as_u64().unwrap_or(0) {
            return true;
        }
        let (n, is_message) = (event.n.unwrap_or(0), event.name == "message.new");
        if !is_message {
            // Whom it mentioned, whether it was read: the row that the server counts is asked for.
            return false;
        }
        let data = &event.data;
        let mentions = &data["mentions"];
        let is_meant = mentions["all"] == json!(true)
            || mentions["users"].as_array().is_some_and(|users| users.iter().any(|user| *user == json!(self.user)));
        let count = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
        if event.sender.as_deref() == Some(&*self.user) {
            (row["read_n"], row["unread"], row["mentions"]) = (json!(n), json!(0), json!(0));
            row["marked_unread"] = json!(false);
        } else {
            row["unread"] = json!(count(row, "unread") + 1);
            row["mentions"] = json!(count(row, "mentions") + u64::from(is_meant));
        }
        (row["head"], row["n"]) = (json!(event.seq), json!(n));
        // What the list shows of it, and when it was said, the next sync tells to the letter.
        row["last"] = json!({ "seq": event.seq, "n": n, "sender": event.sender, "text": data["body"]["text"] });
        true
    }
}

impl Client {
    /// The whole inbox, archived conversations included.
    pub async fn inbox(&self) -> Result<Inbox, Failure> {
        let mut inbox = Inbox::of(self.user());
        for archived in [false, true] {
            let mut cursor = None;
            loop {
                let page = self.request("conversation.list", args(json!({ "archived": archived }), cursor)).await?;
                cursor = inbox.listed(&page);
                if cursor.is_none() {
                    break;
                }
            }
        }
        self.sync_inbox(&mut inbox).await?;
        Ok(inbox)
    }

    /// Brings a device's inbox up to date: what has changed since its cursor, or all of it if the cursor is of no use.
    pub async fn sync_inbox(&self, inbox: &mut Inbox) -> Result<(), Failure> {
        loop {
            let changes = self.request("inbox.sync", args(json!({}), inbox.cursor.clone())).await?;
            if changes["reset"].is_string() {
                *inbox = Box::pin(self.inbox()).await?;
                return Ok(());
            }
            for item in changes["conversations"].as_array().into_iter().flatten() {
                inbox.put(item);
            }
            inbox.cursor = changes["cursor"].as_str().map(str::to_owned);
            if changes["more"] != json!(true) {
                self.know_inbox(inbox);
                return Ok(());
            }
        }
    }
}

fn args(mut args: Value, cursor: Option<String>) -> Value {
    if let Some(cursor) = cursor {
        args["cursor"] = json!(cursor);
    }
    args
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn chat() -> Uuid {
        Uuid::from_u128(7)
    }

    fn message(seq: u64, n: u64, sender: &str, mentions: Value) -> Happened {
        Happened {
            name: "message.new".into(),
            conversation: chat(),
            seq,
            n: Some(n),
            sender: Some(sender.into()),
            id: None,
            target: None,
            data: json!({ "body": { "text": "hi" }, "mentions": mentions }),
        }
    }

    fn counts(inbox: &Inbox) -> [u64; 4] {
        let row = inbox.row(chat()).unwrap();
        ["head", "read_n", "unread", "mentions"].map(|name| row[name].as_u64().unwrap())
    }

    #[test]
    fn live_events_are_added_up() {
        let mut inbox = Inbox::of("bob");
        let row = json!({ "id": chat(), "head": 5, "n": 3, "read_n": 1, "unread": 2, "mentions": 0 });
        let next = inbox.listed(&json!({ "conversations": [row], "cursor": "1.1.1", "next_cursor": "x" }));
        assert_eq!((next.as_deref(), inbox.cursor()), (Some("x"), Some("1.1.1")));
        assert!(inbox.hear(&message(6, 4, "ada", json!({ "users": ["bob"] }))));
        assert!(inbox.hear(&message(6, 4, "ada", json!({ "users": ["bob"] }))), "once");
        assert!(inbox.hear(&message(7, 5, "ada", json!({ "all": true }))));
        assert!(inbox.hear(&message(8, 6, "ada", json!({ "users": ["eve"] }))));
        assert_eq!(counts(&inbox), [8, 1, 5, 2]);
        assert!(inbox.hear(&message(9, 7, "bob", Value::Null)));
        assert_eq!(counts(&inbox), [9, 7, 0, 0]);
        let edit = Happened { name: "message.updated".into(), ..message(10, 7, "ada", Value::Null) };
        assert!(!inbox.hear(&edit));
        let data = json!({ "read_n": 7, "unread": 1, "mentions": 1, "muted": true, "cursor": "1.1.9" });
        let changed = Happened { name: "inbox.changed".into(), seq: 0, data, ..message(0, 0, "", Value::Null) };
        assert!(inbox.hear(&changed));
        assert_eq!((counts(&inbox), &inbox.row(chat()).unwrap()["muted"]), ([9, 7, 1, 1], &json!(true)));
        inbox.put(&json!({ "id": chat(), "left": true }));
        assert!(inbox.rows().is_empty() && !inbox.hear(&changed));
    }

    #[test]
    fn rows_stand_as_in_the_list() {
        let mut inbox = Inbox::of("bob");
        for (n, at, pinned, archived) in
            [(1, "a", false, false), (2, "b", false, true), (3, "c", false, false), (4, "a", true, false)]
        {
            let id = Uuid::from_u128(n);
            inbox.put(&json!({ "id": id, "active_at": at, "pinned": pinned, "archived": archived }));
        }
        let ids: Vec<_> = inbox.rows().iter().map(|row| row["id"].as_str().unwrap().as_bytes()[35] - b'0').collect();
        assert_eq!(ids, [4, 3, 1, 2]);
    }
}
