//! Who may come in no longer: expiry, log-outs and bans, on live sockets, over HTTP, and after a restart; and who may
//! speak for others.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::{Client, Down, News, Options, Stream, http::Http},
    server::Setup,
};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

/// What is promised is 30 s. What is heard by a push takes a moment.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A token of the server's, for one device if one is named.
async fn token(url: &str, user: &str, device: Option<&str>, ttl_s: u64) -> String {
    let mut asked = json!({ "user": user, "ttl_seconds": ttl_s });
    if let Some(device) = device {
        asked["device"] = device.into();
    }
    let answer = Http::new(url).call(Method::POST, "/v1/dev/tokens", None, Some(&asked)).await.unwrap();
    answer.json().unwrap()["token"].as_str().unwrap().to_owned()
}

async fn connect(url: &str, user: &str, token: &str, device: &str) -> anyhow::Result<(Client, Stream)> {
    let options = Options { device: device.into(), reconnect: false, ..Options::default() };
    Client::connect(url, user, token, options).await
}

/// Why a connection is ended.
async fn ended(stream: &mut Stream) -> String {
    let down = async {
        loop {
            match stream.next().await.expect("the client ended") {
                News::Down(Down::Refused(refusal), _) => return refusal.code.to_string(),
                News::Down(other, _) => panic!("{other:?}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(AT_ONCE, down).await.expect("the connection stays open")
}

/// The status and the code of a request over HTTP.
async fn list(url: &str, token: &str) -> (u16, Value) {
    let answer = Http::new(url).call(Method::GET, "/v1/conversations", Some(token), None).await.unwrap();
    (answer.status, answer.json().unwrap()["code"].clone())
}

/// What a connection that is not let in is told.
async fn turned_away(url: &str, user: &str, token: &str, device: &str) -> String {
    format!("{:#}", connect(url, user, token, device).await.expect_err("let in"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_logged_out_everywhere_and_for_good() {
    let mut server = super::server().await;
    let url = server.url();
    let (phone, laptop) = (token(&url, "ada", Some("phone"), 600).await, token(&url, "ada", Some("laptop"), 600).await);
    let (_one, mut one_hears) = connect(&url, "ada", &phone, "x").await.unwrap();
    let (_two, mut two_hears) = connect(&url, "ada", &phone, "y").await.unwrap();
    let (ada, _hears) = connect(&url, "ada", &laptop, "z").await.unwrap();
    let sessions = ada.request("session.list", json!({})).await.unwrap();
    let devices = |sessions: &Value| -> Vec<String> {
        let sessions = sessions["sessions"].as_array().unwrap();
        sessions.iter().map(|session| session["device"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(devices(&sessions), ["phone", "phone", "laptop"]);
    assert_eq!((list(&url, &phone).await.0, list(&url, &laptop).await.0), (200, 200));

    // The phone is stolen; the laptop logs it out.
    ada.request("session.logout", json!({ "device": "phone" })).await.unwrap();
    for hears in [&mut one_hears, &mut two_hears] {
        assert_eq!(ended(hears).await, "auth.logged_out");
    }
    assert_eq!(devices(&ada.request("session.list", json!({})).await.unwrap()), ["laptop"]);
    assert_eq!(list(&url, &phone).await, (401, json!("auth.logged_out")));
    assert!(turned_away(&url, "ada", &phone, "phone").await.contains("auth.logged_out"));
    assert_eq!(list(&url, &laptop).await.0, 200);

    // It holds after a crash, and a token of later lets the phone in again.
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(list(&url, &phone).await, (401, json!("auth.logged_out")));
    assert!(turned_away(&url, "ada", &phone, "phone").await.contains("auth.logged_out"));
    let newer = token(&url, "ada", Some("phone"), 600).await;
    let (_three, mut three_hears) = connect(&url, "ada", &newer, "phone").await.unwrap();
    let (_ada, mut ada_hears) = connect(&url, "ada", &laptop, "laptop").await.unwrap();

    // Everything, over HTTP this time. Whoever asked is out too.
    let path = "/v1/sessions/logout_all";
    let answer = Http::new(&url).call(Method::POST, path, Some(&laptop), None).await.unwrap();
    assert!(answer.status == 200 && answer.json().unwrap()["before"].is_string());
    for hears in [&mut ada_hears, &mut three_hears] {
        assert_eq!(ended(hears).await, "auth.logged_out");
    }
    for old in [&laptop, &newer] {
        assert_eq!(list(&url, old).await, (401, json!("auth.logged_out")));
    }
    assert!(server.terminate().await.unwrap().success());
    server.restart().await.unwrap();
    for old in [&laptop, &newer] {
        assert_eq!(list(&url, old).await, (401, json!("auth.logged_out")));
        assert!(turned_away(&url, "ada", old, "laptop").await.contains("auth.logged_out"));
    }
    let newest = token(&url, "ada", None, 600).await;
    assert_eq!(list(&url, &newest).await.0, 200);
}

/// A token that names no device is logged out by itself: the user's others stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_without_a_device_is_logged_out_alone() {
    let server = super::server().await;
    let url = server.url();
    let (one, other) = (token(&url, "ada", None, 600).await, token(&url, "ada", None, 600).await);
    let (first, mut first_hears) = connect(&url, "ada", &one, "tablet").await.unwrap();
    let (second, _hears) = connect(&url, "ada", &other, "desktop").await.unwrap();
    let out = first.request("session.logout", json!({})).await.unwrap();
    assert!(out["before"].is_string(), "whoever logs itself out is answered first: {out}");
    assert_eq!(ended(&mut first_hears).await, "auth.logged_out");
    // Under no other name either.
    for device in ["tablet", "desktop", "new"] {
        assert!(turned_away(&url, "ada", &one, device).await.contains("auth.logged_out"));
    }
    assert_eq!(list(&url, &one).await, (401, json!("auth.logged_out")));
    assert_eq!(list(&url, &other).await.0, 200);
    second.request("session.list", json!({})).await.unwrap();
    assert!(connect(&url, "ada", &token(&url, "ada", None, 600).await, "tablet").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_its_token_unless_a_newer_one_comes() {
    let args = ["--set", "gateway.auth.expiry_grace=1s", "--set", "gateway.auth.leeway_s=0"].map(str::to_owned);
    let server = super::start(Setup { unlimited: true, args: args.to_vec(), ..Setup::default() }).await.unwrap();
    let url = server.url();
    let began = Instant::now();
    let (short, long) = (token(&url, "ada", None, 2).await, token(&url, "ada", None, 600).await);
    let (_ada, mut ada_hears) = connect(&url, "ada", &short, "one").await.unwrap();
    let (other, mut other_hears) = connect(&url, "ada", &short, "two").await.unwrap();
    other.request("auth.refresh", json!({ "token": long })).await.unwrap();
    assert_eq!(ended(&mut ada_hears).await, "auth.expired");
    let lived = began.elapsed();
    // A token's end is cut to the second; then its grace, and two seconds for the sweep.
    assert!(lived >= Duration::from_secs(2) && lived < Duration::from_secs(7), "{lived:?}");
    assert_eq!(list(&url, &short).await, (401, json!("auth.expired")));
    assert_eq!(other_hears.event(Duration::from_secs(1)).await, None);
    other.request("session.list", json!({})).await.unwrap();
}

// === server-side callers

/// Two keys and their hashes; the file of a server holds the second part only.
const BACKEND: (&str, &str) = (
    "chappe_backend_0123456789abcdef0123456789abcdef",
    "bfdfcba82b605af75dd7cc9b79237a2a36ecc45bef924cbee898e33bcf1cf9b3",
);
const READER: (&str, &str) = (
    "chappe_reader_0123456789abcdef0123456789abcdef",
    "d4c6f1f0f367a78ec25ca2f1590539add58515b54a971da09eb8586a3eb03105",
);

fn entry(name: &str, sha256: &str, scopes: &str) -> String {
    format!("[[key]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n")
}

/// The key of a caller, or one that nobody knows.
pub(super) fn key(caller: &str) -> &'static str {
    match caller {
        "backend" => BACKEND.0,
        "reader" => READER.0,
        _ => "chappe_nobody_0123456789abcdef0123456789abcdef",
    }
}

/// Arguments for a server whose `backend` may everything and whose `reader` may only look.
pub(super) fn keys(home: &Path) -> Vec<String> {
    let file = home.join("keys.toml");
    let (all, some) = (r#""users.read", "users.write", "as_user.read", "as_user.write""#, r#""users.read""#);
    std::fs::write(&file, entry("backend", BACKEND.1, all) + &entry("reader", READER.1, some)).unwrap();
    vec!["--set".to_owned(), format!("gateway.auth.api_keys_file={}", file.display())]
}

async fn ask(url: &str, key: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let answer = Http::new(url).call(method, path, Some(key), body.as_ref()).await.unwrap();
    (answer.status, answer.json().unwrap())
}

/// Goal: an application's server runs the chat for its users, throws one out, and lets them in again; all of it holds over
/// restarts and reaches whoever is connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_side_caller_speaks_for_users_and_bans_one() {
    let home = tempfile::tempdir().unwrap();
    let args = keys(home.path());
    let mut server = super::start(Setup { unlimited: true, args, ..Setup::default() }).await.unwrap();
    let url = server.url();
    let (key, _) = BACKEND;

    // The backend makes a group for ada, with bob in it, and speaks for her.
    let create = json!({ "kind": "group", "title": "support", "members": ["bob"] });
    let (status, created) = ask(&url, key, Method::POST, "/v1/admin/as/ada/conversations", Some(create)).await;
    assert_eq!(status, 201, "{created}");
    let group = created["conversation"]["id"].as_str().unwrap().to_owned();
    let (bob_token, eve_token) = (token(&url, "bob", Some("phone"), 600).await, token(&url, "eve", None, 600).await);
    let (_bob, mut bob_hears) = connect(&url, "bob", &bob_token, "phone").await.unwrap();
    let (_eve, mut eve_hears) = connect(&url, "eve", &eve_token, "phone").await.unwrap();
    let as_ada = format!("/v1/admin/as/ada/conversations/{group}");
    let add = ask(&url, key, Method::PUT, &format!("{as_ada}/members/eve"), None).await;
    assert_eq!((add.0, &add.1["changed"]), (200, &json!(true)));
    let send = json!({ "client_msg_id": uuid::Uuid::now_v7(), "body": { "text": "how can we help?" } });
    let (status, sent) = ask(&url, key, Method::POST, &format!("{as_ada}/messages"), Some(send)).await;
    assert_eq!(status, 201, "{sent}");
    for hears in [&mut bob_hears, &mut eve_hears] {
        let event = loop {
            let event = hears.event(AT_ONCE).await.expect("nothing is heard");
            if event.name == "message.new" {
                break event;
            }
        };
        assert_eq!((event.sender.as_deref(), event.seq), (Some("ada"), sent["seq"].as_u64().unwrap()));
    }

    // Eve is thrown out: at once where she is connected, over HTTP, and whoever would speak for her is refused too.
    assert_eq!(list(&url, &eve_token).await.0, 200);
    let ban = json!({ "reason": "spam", "until": "2100-01-01T00:00:00Z" });
    let (status, banned) = ask(&url, key, Method::PUT, "/v1/admin/users/eve/ban", Some(ban)).await;
    assert_eq!((status, &banned["user"]["banned"]["by"]), (200, &json!("backend")), "{banned}");
    assert_eq!(ended(&mut eve_hears).await, "auth.banned");
    for round in ["before", "after"] {
        assert_eq!(list(&url, &eve_token).await, (403, json!("auth.banned")), "{round} a restart");
        let newer = token(&url, "eve", None, 600).await;
        assert_eq!(list(&url, &newer).await, (403, json!("auth.banned")), "{round} a restart");
        let said = turned_away(&url, "eve", &newer, "tablet").await;
        assert!(said.contains("auth.banned") && said.contains("2100-01-01"), "{said}");
        assert_eq!(ask(&url, key, Method::GET, "/v1/admin/as/eve/conversations", None).await.0, 403);
        let (_, eve) = ask(&url, key, Method::GET, "/v1/admin/users/eve", None).await;
        assert_eq!((&eve["user"]["banned"]["reason"], &eve["user"]["conversations"]), (&json!("spam"), &json!(1)));
        assert_eq!(eve["user"]["sessions"], json!([]));
        if round == "before" {
            server.kill().await.unwrap();
            server.restart().await.unwrap();
        }
    }
    let (status, eve) = ask(&url, key, Method::DELETE, "/v1/admin/users/eve/ban", None).await;
    assert!(status == 200 && eve["user"].get("banned").is_none(), "{eve}");
    assert_eq!(list(&url, &eve_token).await.0, 200, "her token is as good as ever");

    // Bob has lost his phone.
    let (_bob, mut bob_hears) = connect(&url, "bob", &bob_token, "phone").await.unwrap();
    let body = Some(json!({ "device": "phone" }));
    let (status, out) = ask(&url, key, Method::POST, "/v1/admin/users/bob/logout", body).await;
    assert!(status == 200 && out["before"].is_string(), "{out}");
    assert_eq!(ended(&mut bob_hears).await, "auth.logged_out");
    let (_, bob) = ask(&url, key, Method::GET, "/v1/admin/users/bob", None).await;
    assert_eq!(bob["user"]["logged_out_devices"][0]["device"], "phone");

    // The key is replaced without a restart.
    std::fs::write(home.path().join("keys.toml"), entry("reader", READER.1, r#""users.read""#)).unwrap();
    server.signal(Signal::HUP).unwrap();
    let began = Instant::now();
    while ask(&url, key, Method::GET, "/v1/admin/users/bob", None).await.0 != 401 {
        assert!(began.elapsed() < AT_ONCE, "the former key still counts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&url, READER.0, Method::GET, "/v1/admin/users/bob", None).await.0, 200);
    let refused = ask(&url, READER.0, Method::DELETE, "/v1/admin/users/bob/ban", None).await;
    assert_eq!((refused.0, &refused.1["code"]), (403, &json!("forbidden")));
    assert!(!server.last_words().contains(BACKEND.0), "a key is in the log");
}
