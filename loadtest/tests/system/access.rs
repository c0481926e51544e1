//! Who may come in no longer: expiry and log-outs, on live sockets, over HTTP, and after a restart.

use std::time::{Duration, Instant};

use chappe_loadtest::{
    client::{Client, Down, News, Options, Stream, http::Http},
    server::{Server, Setup},
};
use hyper::Method;
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
    let server = Server::start(Setup { unlimited: true, args: args.to_vec(), ..Setup::default() }).await.unwrap();
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
