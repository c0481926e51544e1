//! Server-side callers: which keys count, what each is for, and on whose behalf.

use aws_lc_rs::digest;
use chappe_gateway::limiter::Rate;
use chappe_schema::{
    access::Ban,
    operation::{OPERATIONS, Scope},
};
use serde_json::{Value, json};

use crate::{
    parity,
    world::{Answer, World},
};

/// A key with every scope, one with none of those that change anything, and one that is in no file.
const ALL: &str = "chappe_all_0123456789abcdef0123456789abcdef";
const READS: &str = "chappe_reads_0123456789abcdef0123456789abcdef";
const STRANGE: &str = "chappe_strange_0123456789abcdef0123456789abcdef";

fn entry(name: &str, key: &str, scopes: &str) -> String {
    let hash = digest::digest(&digest::SHA256, key.as_bytes());
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[key]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nscopes = [{scopes}]\n")
}

fn file() -> String {
    entry("backend", ALL, r#""users.read", "users.write", "as_user.read", "as_user.write""#)
        + &entry("reader", READS, r#""users.read", "as_user.read""#)
}

struct Admin {
    world: World,
    dir: tempfile::TempDir,
}

impl Admin {
    async fn new() -> Self {
        Self::limited(Rate { per_second: 1_000_000, burst: 1_000_000 }).await
    }

    async fn limited(rate: Rate) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        std::fs::write(&path, file()).unwrap();
        let world = World::with(|config| {
            config.auth.api_keys_file = Some(path);
            config.limits.api_keys = rate;
        })
        .await;
        Self { world, dir }
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let typed = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let key = if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
        self.world
            .http(&format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{key}{typed}content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            ))
            .await
    }
}

#[tokio::test]
async fn only_a_key_of_the_file_counts() {
    let admin = Admin::new().await;
    let user = "/v1/admin/users/ada";
    assert_eq!(admin.ask(ALL, "GET", user, None).await.status, 200);
    let token = admin.world.token("ada");
    for (key, code) in [
        ("", "auth.required"),
        (STRANGE, "auth.invalid"),
        (&ALL[..20], "auth.invalid"),
        (&format!("{ALL}x"), "auth.invalid"),
        (&token, "auth.invalid"),
    ] {
        for path in [user, "/v1/admin/as/ada/conversations"] {
            let refused = admin.ask(key, "GET", path, None).await;
            assert_eq!((refused.status, refused.problem().as_str()), (401, code), "{key}");
            assert!(!refused.body.contains("chappe_"), "{}", refused.body);
        }
    }
    // Nor does a key count where users come.
    let refused = admin.ask(ALL, "GET", "/v1/conversations", None).await;
    assert_eq!((refused.status, refused.problem().as_str()), (401, "auth.invalid"));
    let mut stranger = admin.world.stranger().await;
    stranger.say(json!({"id": 1, "connect": {"token": ALL}})).await;
    assert_eq!(stranger.closed().await.1, 4502);
}

#[tokio::test]
async fn a_key_is_for_its_scopes_only() {
    let admin = Admin::new().await;
    let chat = admin.world.node.conversation(&["ada", "bob"], 1, false);
    let messages = format!("/v1/admin/as/ada/conversations/{chat}/messages");
    let send = json!({"client_msg_id": uuid::Uuid::now_v7(), "body": {"text": "x"}});
    assert_eq!(admin.ask(READS, "GET", "/v1/admin/users/ada", None).await.status, 200);
    assert_eq!(admin.ask(READS, "GET", &messages, None).await.status, 200);
    for (method, path, body, scope) in [
        ("PUT", "/v1/admin/users/ada/ban", None, Scope::UsersWrite),
        ("DELETE", "/v1/admin/users/ada/ban", None, Scope::UsersWrite),
        ("POST", "/v1/admin/users/ada/logout", None, Scope::UsersWrite),
        ("POST", messages.as_str(), Some(&send), Scope::AsUserWrite),
        ("PUT", &format!("/v1/admin/as/ada/conversations/{chat}/members/eve"), None, Scope::AsUserWrite),
    ] {
        let refused = admin.ask(READS, method, path, body).await;
        assert_eq!((refused.status, refused.problem().as_str()), (403, "forbidden"), "{method} {path}");
        assert!(refused.json()["detail"].as_str().unwrap().contains(scope.name()));
        assert!(admin.ask(ALL, method, path, body).await.status < 300, "{method} {path}");
    }
}

/// Goal: a server-side caller is answered as the user would be. Method: every operation of the table, both ways.
#[tokio::test]
async fn what_is_asked_for_a_user_is_answered_as_to_the_user() {
    for row in OPERATIONS.iter().filter(|row| row.is_for_users() && row.http.is_some()) {
        let answer = |for_user: bool| async move {
            let admin = Admin::new().await;
            let chat = admin.world.node.conversation(&["ada", "bob"], 2, false).to_string();
            let args = parity::args(row.op, &chat);
            let (method, path, body, headers) = parity::request(row, &args).unwrap();
            let answer = if for_user {
                let path = format!("/v1/admin/as/ada{}", path.strip_prefix("/v1").unwrap());
                admin.ask(ALL, method, &path, body.as_ref()).await
            } else {
                admin.world.ask_with("ada", method, &path, body.as_ref(), &headers).await
            };
            (answer.status, parity::timeless(answer.json()))
        };
        let for_user = answer(true).await;
        match row.scope() {
            Some(_) => assert_eq!(for_user, answer(false).await, "{}", row.name),
            None => assert_eq!(for_user.1["code"], "request.unknown_operation", "{}", row.name),
        }
    }
}

#[tokio::test]
async fn a_message_sent_for_a_user_is_the_users_and_reaches_everybody() {
    let admin = Admin::new().await;
    let mut bob = admin.world.client("bob").await;
    let create = json!({"kind": "group", "members": ["bob"]});
    let created = admin.ask(ALL, "POST", "/v1/admin/as/ada/conversations", Some(&create)).await;
    let chat = created.json()["conversation"]["id"].as_str().unwrap().to_owned();
    let send = json!({"client_msg_id": uuid::Uuid::now_v7(), "body": {"text": "from the backend"}});
    let path = format!("/v1/admin/as/ada/conversations/{chat}/messages");
    assert_eq!(admin.ask(ALL, "POST", &path, Some(&send)).await.status, 201);
    let heard = bob.until(|frame| frame["event"] == "message.new").await.pop().unwrap();
    assert_eq!((&heard["sender"], heard.get("device")), (&json!("ada"), None));
    // Who is no member cannot be made to speak there, and learns nothing.
    let path = format!("/v1/admin/as/eve/conversations/{chat}/messages");
    let refused = admin.ask(ALL, "POST", &path, Some(&send)).await;
    assert_eq!((refused.status, refused.problem().as_str()), (404, "conversation.not_found"));
    // Users' names may hold anything; in a path it is escaped.
    assert_eq!(admin.ask(ALL, "GET", "/v1/admin/as/zo%C3%AB%20%2F/conversations", None).await.status, 200);
    for path in ["/v1/admin/as/a%0A/conversations", "/v1/admin/users/a%0A"] {
        let refused = admin.ask(ALL, "GET", path, None).await;
        assert_eq!((refused.status, refused.problem().as_str()), (422, "request.invalid"), "{path}");
    }
}

#[tokio::test]
async fn nobody_acts_for_who_is_banned_but_may_look_and_pardon() {
    let admin = Admin::new().await;
    admin.world.node.change_access("ada", true, |access| access.set_ban(access.version, Some(Ban::default())));
    let refused = admin.ask(ALL, "GET", "/v1/admin/as/ada/conversations", None).await;
    assert_eq!((refused.status, refused.problem().as_str()), (403, "auth.banned"));
    assert_eq!(admin.ask(ALL, "GET", "/v1/admin/users/ada", None).await.status, 200);
    assert_eq!(admin.ask(ALL, "DELETE", "/v1/admin/users/ada/ban", None).await.status, 200);
}

#[tokio::test]
async fn each_key_has_a_budget_of_its_own() {
    let admin = Admin::limited(Rate { per_second: 1, burst: 3 }).await;
    let mut statuses = Vec::new();
    for user in ["ada", "bob", "eve", "zoe"] {
        let answer = admin.ask(ALL, "GET", &format!("/v1/admin/as/{user}/conversations"), None).await;
        assert_eq!(answer.header("ratelimit-limit"), Some("3"), "{answer:?}");
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
    assert_eq!(admin.ask(READS, "GET", "/v1/admin/users/ada", None).await.status, 200);
    assert_eq!(admin.world.ask("ada", "GET", "/v1/conversations", None).await.status, 200);
}

#[tokio::test]
async fn keys_are_read_again_and_a_bad_file_changes_nothing() {
    let admin = Admin::new().await;
    let path = admin.dir.path().join("keys.toml");
    let status = async |key| admin.ask(key, "GET", "/v1/admin/users/ada", None).await.status;
    std::fs::write(&path, "nonsense").unwrap();
    let reloaded = admin.world.gateway.reload_keys();
    assert_eq!((reloaded.read.len(), reloaded.refused.len()), (0, 1), "{reloaded:?}");
    assert_eq!((status(ALL).await, status(STRANGE).await), (200, 401));
    std::fs::write(&path, entry("strange", STRANGE, r#""users.read""#)).unwrap();
    assert_eq!(admin.world.gateway.reload_keys().read, ["api_keys_file"]);
    assert_eq!((status(ALL).await, status(STRANGE).await), (401, 200));
    std::fs::write(&path, "").unwrap();
    assert!(admin.world.gateway.reload_keys().refused.is_empty());
    assert_eq!((status(ALL).await, status(STRANGE).await), (401, 401), "nobody is left");
}

#[tokio::test]
async fn without_a_file_there_is_nothing() {
    let world = World::new().await;
    for path in ["/v1/admin/users/ada", "/v1/admin/as/ada/conversations"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALL}\r\nconnection: close\r\n\r\n");
        let refused = world.http(&request).await;
        assert_eq!((refused.status, refused.problem().as_str()), (404, "request.unknown_operation"));
    }
}
