//! Receipts as people have them: several devices, somebody who reads privately, somebody who is removed, connections that
//! break, a server that dies and one that is stopped. The oracle judges what everybody saw.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chappe_loadtest::{
    client::{Client, News, Options, Progress, Stream, http::Http},
    history::{History, What},
    oracle::Oracle,
};
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{refused, say};

const SOON: Duration = Duration::from_secs(10);

async fn join(url: &str, user: &str, device: &str, history: Option<&Arc<History>>) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    let options = Options { device: device.into(), history: history.cloned(), ..Options::default() };
    Client::connect(url, user, &token, options).await.unwrap()
}

/// What a device believes of the others: what it was shown, raised by what it hears.
#[derive(Debug, Default)]
struct Books(BTreeMap<String, (u64, u64)>);

impl Books {
    fn take(&mut self, receipts: &Value) {
        for receipt in receipts.as_array().into_iter().flatten() {
            let Some(delivered_n) = receipt["delivered_n"].as_u64() else { continue };
            let read_n = receipt["read_n"].as_u64().unwrap();
            assert!(read_n <= delivered_n, "read, but not delivered: {receipt}");
            let known = self.0.entry(receipt["user"].as_str().unwrap().to_owned()).or_default();
            *known = (known.0.max(delivered_n), known.1.max(read_n));
        }
    }

    fn of(&self, user: &str) -> (u64, u64) {
        self.0.get(user).copied().unwrap_or_default()
    }

    /// Hears until it believes this of a user.
    async fn until(&mut self, stream: &mut Stream, user: &str, marks: (u64, u64)) {
        while self.of(user) != marks {
            let heard = stream.event(SOON).await.unwrap_or_else(|| panic!("{user} is not at {marks:?} but {self:?}"));
            if heard.name == "receipt.updated" {
                assert_eq!(heard.seq, 0);
                self.take(&heard.data["receipts"]);
            }
        }
    }
}

/// Everything that a device has heard by the time that nothing more comes.
async fn hear_out(stream: &mut Stream) -> Vec<String> {
    let mut heard = Vec::new();
    while let Ok(Some(news)) = tokio::time::timeout(Duration::from_millis(1_500), stream.next()).await {
        if let News::Event(event) = news {
            heard.push(event.name);
        }
    }
    heard
}

/// Threads: RocketChat/feature-requests#473 and #849: receipts that are larger than the messages, and no switch for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feature_requests_473_who_has_read_what_over_reconnections_and_restarts() {
    let mut server = super::server().await;
    let (url, history) = (server.url(), History::in_memory());
    let (ada, mut ada_hears) = join(&url, "ada", "desk", Some(&history)).await;
    let (bob, mut bob_hears) = join(&url, "bob", "phone", Some(&history)).await;
    let (tablet, mut tablet_hears) = join(&url, "bob", "tablet", None).await;
    let (eve, mut eve_hears) = join(&url, "eve", "desk", Some(&history)).await;
    let trip = ada.create_group("trip", &["bob", "eve"]).await.unwrap();
    let work = ada.create_group("work", &["bob"]).await.unwrap();
    let mut seqs = Vec::new();
    for text in ["where to?", "the sea?", "or the hills?"] {
        seqs.push(say(&ada, trip, text).await);
    }
    say(&ada, work, "at it").await;

    // One request for both conversations; the others hear, and so does bob's other device.
    let of = |conversation, delivered, read| Progress { conversation, delivered, read };
    let said = bob.progress(vec![of(trip, Some(3), Some(1)), of(work, Some(1), None)], None).await.unwrap();
    let rows = said["conversations"].as_array().unwrap();
    let row = |id: Uuid| rows.iter().find(|row| row["id"] == json!(id)).unwrap();
    assert_eq!(
        (&row(trip)["delivered_n"], &row(trip)["read_n"], &row(trip)["unread"]),
        (&json!(3), &json!(1), &json!(2))
    );
    assert_eq!((&row(work)["delivered_n"], &row(work)["unread"]), (&json!(1), &json!(1)));
    let (mut of_ada, mut of_eve) = (Books::default(), Books::default());
    of_ada.until(&mut ada_hears, "bob", (3, 1)).await;
    of_eve.until(&mut eve_hears, "bob", (3, 1)).await;
    loop {
        let heard = tablet_hears.event(SOON).await.expect("the other device hears what was read");
        if heard.name == "inbox.changed" && heard.conversation == trip {
            assert_eq!((&heard.data["read_n"], &heard.data["unread"]), (&json!(1), &json!(2)));
            break;
        }
    }
    assert_eq!(tablet.inbox().await.unwrap().row(trip).unwrap()["unread"], json!(2));

    // What of one message: over HTTP too.
    eve.read(trip, 3).await.unwrap();
    of_ada.until(&mut ada_hears, "eve", (3, 3)).await;
    let http = Http::new(&url);
    let token = http.token("ada").await.unwrap();
    let standing = async |seq: u64, query: &str| {
        let path = format!("/v1/conversations/{trip}/messages/{seq}/receipts{query}");
        http.call(Method::GET, &path, Some(&token), None).await.unwrap().json().unwrap()
    };
    let both =
        json!([{ "user": "bob", "delivered": true, "read": true }, { "user": "eve", "delivered": true, "read": true }]);
    assert_eq!(standing(seqs[0], "").await, json!({ "members": 2, "delivered": 2, "read": 2, "receipts": both }));
    let page = standing(seqs[2], "?limit=1").await;
    assert_eq!(
        (&page["read"], &page["receipts"][0]["read"], &page["next_cursor"]),
        (&json!(1), &json!(false), &json!("bob"))
    );
    assert_eq!(standing(seqs[2], "?cursor=bob").await["receipts"][0]["user"], json!("eve"));
    let body = json!({ "n": 2 });
    let path = format!("/v1/conversations/{trip}/read");
    let bobs = http.token("bob").await.unwrap();
    let (user, conversation) = (history.user("bob"), history.conversation(trip));
    history.record(What::ReceiptStart { user, conversation, delivered: 0, read: 2 });
    assert_eq!(http.call(Method::PUT, &path, Some(&bobs), Some(&body)).await.unwrap().status, 200);
    let read = json!({ "conversation": trip, "n": 99 });
    assert_eq!(refused(&bob, "conversation.read", read).await, "request.invalid");

    // Eve reads privately from now on: she is done, and nobody hears of it.
    eve.request("receipt.prefer", json!({ "private": true, "idempotency_key": Uuid::now_v7() })).await.unwrap();
    say(&ada, trip, "eve?").await;
    let progressed = eve.progress(vec![of(trip, None, Some(4))], None).await.unwrap()["conversations"][0].clone();
    assert_eq!(
        (&progressed["read_n"], &progressed["unread"], &progressed["delivered_n"]),
        (&json!(4), &json!(0), &json!(3))
    );
    bob.read(trip, 4).await.unwrap();
    of_ada.until(&mut ada_hears, "bob", (4, 4)).await;
    assert_eq!(of_ada.of("eve"), (3, 3));

    // A connection that breaks says again what it said, and hears what it missed when it asks.
    bob.break_connection();
    say(&ada, work, "still at it").await;
    let seq = say(&ada, trip, "bob?").await;
    bob.progress(vec![of(trip, Some(5), None), of(work, Some(2), Some(2))], None).await.unwrap();
    of_ada.until(&mut ada_hears, "bob", (5, 4)).await;
    let mut of_bob = Books::default();
    of_bob.take(&bob.receipts(trip, false).await.unwrap()["members"]);
    assert_eq!(of_bob.of("eve"), (3, 3));

    // The server dies: what was said is there again once those who said it are back.
    history.record(What::Fault { name: "kill".into(), begins: true, forgets: true });
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    for attempt in 0.. {
        let mut books = Books::default();
        books.take(&ada.receipts(trip, false).await.unwrap()["members"]);
        let unread = eve.inbox().await.unwrap().row(trip).unwrap()["unread"].clone();
        // What was read privately counts again, too, and is shown to nobody.
        if (books.of("bob"), books.of("eve"), &unread) == ((5, 4), (3, 3), &json!(1)) {
            break;
        }
        assert!(attempt < 100, "not everybody has said it again: {books:?}, and eve has {unread} unread");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Eve is removed: from then on she hears of nobody and nobody of her, and she is not asked for.
    let removed = ada.request("member.remove", json!({ "conversation": trip, "user": "eve" })).await.unwrap();
    let upto = removed["seq"].as_u64().unwrap();
    history.record(What::Leave { user: history.user("eve"), conversation: history.conversation(trip), upto });
    bob.read(trip, 5).await.unwrap();
    of_ada.until(&mut ada_hears, "bob", (5, 5)).await;
    let heard = hear_out(&mut eve_hears).await;
    let left = heard.iter().rposition(|name| name == "member.left").expect("she hears that she was removed");
    assert!(!heard[left..].contains(&"receipt.updated".to_owned()), "{heard:?}");
    assert_eq!(
        refused(&eve, "conversation.read", json!({ "conversation": trip, "n": 5 })).await,
        "conversation.not_found"
    );
    assert_eq!(
        refused(&eve, "receipt.list", json!({ "conversation": trip, "seq": seq })).await,
        "conversation.not_found"
    );
    assert_eq!(standing(seq, "").await["members"], json!(1));
    ada.change(trip, seq, None).await.unwrap();
    assert_eq!(refused(&ada, "receipt.list", json!({ "conversation": trip, "seq": seq })).await, "message.deleted");

    // Switched off, and a stop that loses nothing.
    let off = json!({ "conversation": work, "receipts": false, "idempotency_key": Uuid::now_v7() });
    assert_eq!(refused(&bob, "conversation.update", off.clone()).await, "forbidden");
    ada.request("conversation.update", off).await.unwrap();
    assert_eq!(refused(&bob, "receipt.list", json!({ "conversation": work, "seq": 2 })).await, "receipts.off");
    let members = bob.receipts(work, false).await.unwrap()["members"].clone();
    assert!(members[0].get("read_n").is_none(), "{members}");
    server.terminate().await.unwrap();
    server.restart().await.unwrap();
    let mut after = Books::default();
    after.take(&ada.receipts(trip, true).await.unwrap()["members"]);
    assert_eq!(after.of("bob"), (5, 5));
    for stream in [&mut ada_hears, &mut bob_hears, &mut eve_hears] {
        hear_out(stream).await;
    }
    for client in [ada, bob, tablet, eve] {
        client.stop().await;
    }
    let verdict = Oracle::judge(&history.take());
    let broken: Vec<_> = verdict.violations.iter().filter(|one| [9, 11].contains(&(one.rule as u8))).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
