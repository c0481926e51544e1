//! HTTP: one shape of errors, whatever is wrong.

use std::time::{Duration, Instant};

use chappe_schema::{limit::REQUEST_BYTES_MAX, operation::OPERATIONS};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    node::Mode,
    world::{Answer, World},
};

#[tokio::test]
async fn a_newcomers_way() {
    let world = World::new().await;
    let hello = world.http("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((hello.status, hello.json()["service"].as_str()), (200, Some("chappe")));
    let body = r#"{"user":"ada","device":"phone","ttl_seconds":60}"#;
    let issued = world
        .http(&format!(
            "POST /v1/dev/tokens HTTP/1.1\r\nhost: 127.0.0.1:8080\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert_eq!(issued.status, 201);
    let issued = issued.json();
    let token = issued["token"].as_str().unwrap();
    assert!(issued["expires_at"].as_str().unwrap().ends_with('Z'));
    let mine = world
        .http(&format!(
            "GET /v1/conversations HTTP/1.1\r\nhost: x\r\nauthorization: bearer {token}\r\nconnection: close\r\n\r\n"
        ))
        .await;
    assert_eq!(mine.json()["conversations"], json!([]));
}

#[tokio::test]
async fn a_send_and_its_replay_have_one_answer() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut bob = world.client("bob").await;
    let path = format!("/v1/conversations/{chat}/messages");
    let body = json!({"client_msg_id": uuid::Uuid::now_v7(), "body": {"text": "hi"}, "colour": 1});
    let first = world.ask("ada", "POST", &path, Some(&body)).await;
    assert_eq!(first.status, 201);
    assert_eq!(first.json()["ignored"], json!(["colour"]));
    let again = world.ask("ada", "POST", &path, Some(&body)).await;
    assert_eq!(again.status, 201);
    assert_eq!(again.json()["duplicate"], true);
    assert_eq!(again.json()["seq"], first.json()["seq"]);
    // Over another transport too.
    let mut ada = world.client("ada").await;
    let mut args = body.clone();
    args["conversation"] = json!(chat);
    assert_eq!(ada.ask("message.send", args).await["ok"]["duplicate"], true);
    assert_eq!(bob.all_within(Duration::from_millis(50)).await.len(), 1);
}

#[tokio::test]
async fn every_error_has_the_one_shape() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let messages = format!("/v1/conversations/{chat}/messages");
    for (method, path, body, status, code) in [
        ("GET", "/v1/nothing", None, 404, "request.unknown_operation"),
        ("GET", "/v1/conversations/", None, 404, "request.unknown_operation"),
        ("PUT", "/v1/conversations", None, 405, "request.method_not_allowed"),
        ("GET", "/v1/conversations/nonsense", None, 422, "request.invalid"),
        ("GET", "/v1/conversations?limit=x", None, 422, "request.invalid"),
        ("GET", "/v1/conversations?limit=%ff", None, 422, "request.invalid"),
        ("GET", "/v1/conversations?limit=0", None, 422, "request.invalid"),
        ("POST", &messages, Some(json!([1])), 400, "request.malformed"),
        ("POST", &messages, Some(json!({})), 422, "request.invalid"),
        ("POST", &messages, Some(json!({"conversation": "x"})), 422, "request.invalid"),
        ("GET", &format!("{messages}/7"), None, 404, "message.not_found"),
        ("GET", "/v1/conversations/01890a5d-ac96-774b-bcce-b302099a8057", None, 404, "conversation.not_found"),
    ] {
        let answer = world.ask("ada", method, path, body.as_ref()).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, code), "{method} {path}");
        assert!(answer.header("x-request-id").is_some());
    }
    let not_allowed = world.ask("ada", "PUT", "/v1/conversations", None).await;
    let allow = not_allowed.header("allow").unwrap();
    assert!(allow.contains("get") && allow.contains("post"), "{allow}");
}

/// The document describes the server to programs, the page shows it to people; neither needs anything from elsewhere.
#[tokio::test]
async fn the_server_describes_itself() {
    let world = World::new().await;
    let ask =
        async |path: &str| world.http(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
    let document = ask("/openapi.json").await;
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    let document = document.json();
    assert_eq!(document["openapi"], "3.1.0");
    for row in OPERATIONS {
        let Some(http) = row.http else { continue };
        let operation = &document["paths"][http.path][http.method.name().to_ascii_lowercase()];
        assert_eq!(operation["operationId"], row.name, "{}", row.name);
        assert!(operation["responses"].get(http.status.to_string()).is_some(), "{}", row.name);
    }
    let page = ask("/docs").await;
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for elsewhere in ["http:", "https:", " src=", "@import", "url("] {
        assert!(!page.body.contains(elsewhere), "the page asks for {elsewhere}");
    }
}

#[tokio::test]
async fn tokens_are_asked_for() {
    let world = World::new().await;
    let ask = async |authorization: &str| {
        world
            .http(&format!("GET /v1/conversations HTTP/1.1\r\nhost: x\r\n{authorization}connection: close\r\n\r\n"))
            .await
    };
    for (authorization, code) in [
        ("", "auth.required"),
        ("authorization: Bearer x.y.z\r\n", "auth.invalid"),
        ("authorization: Basic YTpi\r\n", "auth.invalid"),
        ("authorization: nonsense\r\n", "auth.invalid"),
    ] {
        let answer = ask(authorization).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, code));
        assert!(answer.header("www-authenticate").unwrap().starts_with("bearer realm="));
    }
}

#[tokio::test]
async fn bodies_are_json_and_bounded() {
    let world = World::new().await;
    let post = |typed: &str, body: &str| {
        let token = world.token("ada");
        format!(
            "POST /v1/conversations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{typed}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json_type = "content-type: application/json; charset=utf-8\r\n";
    for (typed, body, status, code) in [
        ("", "{}".to_owned(), 415, "request.unsupported_media_type"),
        ("content-type: text/plain\r\n", "{}".to_owned(), 415, "request.unsupported_media_type"),
        (json_type, "{".to_owned(), 400, "request.malformed"),
        (json_type, "{\"kind\":\"group\"}{}".to_owned(), 400, "request.malformed"),
        (json_type, "x".to_owned(), 400, "request.malformed"),
        (json_type, " ".repeat(REQUEST_BYTES_MAX + 1), 413, "request.too_large"),
    ] {
        let answer = world.http(&post(typed, &body)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, code), "{typed} {}", body.len());
        assert_eq!(answer.header("connection") == Some("close"), status == 413, "{answer:?}");
    }
    // Without an announced length the bound holds too.
    let mut stream = world.tcp().await;
    let head = post(json_type, "").replace("content-length: 0", "transfer-encoding: chunked");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    for _ in 0..6 {
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    assert_eq!(Answer::read(&mut stream).await.problem(), "request.too_large");
}

#[tokio::test]
async fn a_slow_body_is_not_waited_for_for_ever() {
    let world = World::new().await;
    let mut stream = world.tcp().await;
    let head = format!(
        "POST /v1/conversations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        world.token("ada")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request.timeout"));
    assert!(began.elapsed() >= Duration::from_secs(9));
}

#[tokio::test]
async fn limits_are_told_and_kept() {
    let world = World::with(|config| {
        config.limits.commands = chappe_gateway::limiter::Rate { per_second: 1, burst: 3 };
    })
    .await;
    for left in [2, 1, 0] {
        let answer = world.ask("ada", "GET", "/v1/conversations", None).await;
        assert_eq!(answer.header("ratelimit-limit"), Some("3"));
        assert_eq!(answer.header("ratelimit-remaining"), Some(left.to_string().as_str()));
    }
    let answer = world.ask("ada", "GET", "/v1/conversations", None).await;
    assert_eq!((answer.status, answer.problem().as_str()), (429, "rate.limited"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.header("ratelimit-reset").is_some());
    // One budget over all transports.
    let mut ada = world.client("ada").await;
    assert_eq!(ada.ask("conversation.list", json!({})).await["error"]["code"], "rate.limited");
}

#[tokio::test]
async fn pages_of_allowed_origins_may_read_answers() {
    let world = World::new().await;
    let preflight = world
        .http("OPTIONS /v1/conversations HTTP/1.1\r\nhost: x\r\norigin: http://localhost:3000\r\naccess-control-request-method: POST\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert!(preflight.header("access-control-allow-headers").unwrap().contains("idempotency-key"));
    let stranger =
        world.http("GET / HTTP/1.1\r\nhost: x\r\norigin: https://evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(stranger.header("access-control-allow-origin"), None);
    assert_eq!(stranger.header("vary"), Some("origin"));
}

#[tokio::test]
async fn heads_have_no_body() {
    let world = World::new().await;
    let mut stream = world.tcp().await;
    stream.write_all(b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn development_tokens_are_not_for_strangers_pages() {
    let world = World::new().await;
    let body = r#"{"user":"ada"}"#;
    let rebound = world
        .http(&format!(
            "POST /v1/dev/tokens HTTP/1.1\r\nhost: evil.example\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert_eq!((rebound.status, rebound.problem().as_str()), (403, "forbidden"));
}

#[tokio::test]
async fn a_node_that_panics_or_errs_is_a_problem_too() {
    let world = World::new().await;
    world.node.behave(Mode::Refusing(chappe_schema::error::Code::Unavailable));
    let answer = world.ask("ada", "GET", "/v1/conversations", None).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "unavailable"));
    assert_eq!(answer.json()["retryable"], true);
}

#[tokio::test]
async fn a_kept_connection_serves_many() {
    let world = World::new().await;
    let mut stream = world.tcp().await;
    for _ in 0..10 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(Answer::read(&mut stream).await.status, 200);
    }
}

/// Goal: whoever's mistake it is, and whichever layer notices, the answer has the one shape.
#[tokio::test]
async fn what_is_no_http_is_a_problem_too() {
    let world = World::new().await;
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\ncookie: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(70));
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200_000));
    for (request, status, code) in [
        ("nonsense\r\n\r\n", 400, "request.malformed"),
        ("GET  / HTTP/1.1\r\n\r\n", 400, "request.malformed"),
        ("GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400, "request.malformed"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "request.malformed"),
        ("GET / HTTP/1.1\r\nbad name: x\r\n\r\n", 400, "request.malformed"),
        ("\x16\x03\x01\x02\x00\x01\x00", 400, "request.malformed"),
        (&large, 431, "request.head_too_large"),
        (&many, 431, "request.head_too_large"),
        (&long, 431, "request.head_too_large"),
    ] {
        let mut stream = world.tcp().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = Answer::read(&mut stream).await;
        let start: String = request.chars().take(30).collect();
        assert_eq!(answer.status, status, "{start}: {answer:?}");
        assert_eq!(answer.problem(), code, "{start}");
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0, "and then the connection ends, politely");
    }
    // Behind an answered request the library speaks for itself: no body, but a clean end all the same.
    let mut stream = world.tcp().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(Answer::read(&mut stream).await.status, 200);
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 400 "), "{rest}");
}

/// Goal: an error repeats little of what was sent, and speaks our language.
#[tokio::test]
async fn errors_repeat_little_and_name_the_field() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let messages = format!("/v1/conversations/{chat}/messages");
    let long = "x".repeat(5_000);
    let digits = "9".repeat(400);
    for (method, path, body, field, said) in [
        ("GET", &format!("/v1/{long}"), None, None, "there is nothing at /v1/xxx"),
        (&*long.to_uppercase(), &"/v1/conversations".to_owned(), None, None, "XXX"),
        ("GET", &format!("{messages}?limit={long}"), None, Some("limit"), "expected a whole number, 0 or more"),
        ("GET", &format!("{messages}/{digits}"), None, Some("seq"), "expected a whole number, 0 or more"),
        ("GET", &format!("{messages}?limit=0"), None, Some("limit"), "expected 1 or more; more than 200 counts as 200"),
        ("GET", &format!("/v1/conversations/{long}"), None, Some("conversation"), "expected a UUID"),
        ("POST", &messages, Some(json!({"conversation": chat})), Some("conversation"), "is given twice"),
        ("POST", &messages, Some(json!({"client_msg_id": &long})), Some("client_msg_id"), "expected a UUID"),
        ("POST", &messages, Some(json!({"client_msg_id": 7})), Some("client_msg_id"), "expected a UUID"),
        ("POST", &"/v1/conversations".to_owned(), Some(json!({"kind": &long})), Some("kind"), "`direct`"),
        ("POST", &"/v1/conversations".to_owned(), Some(json!([1])), None, "expected a JSON object"),
    ] {
        let answer = world.ask("ada", method, path, body.as_ref()).await.json();
        let detail = answer["detail"].as_str().unwrap();
        assert_eq!(answer["field"].as_str(), field, "{detail}");
        assert!(detail.contains(said) && detail.len() < 160 && !detail.contains("column"), "{detail}");
    }
    let mut ada = world.client("ada").await;
    let answer = ada.ask(&long, json!({})).await;
    assert!(answer["error"]["detail"].as_str().unwrap().len() < 100, "{answer}");
    let answer = ada.ask("conversation.list", json!({"é".repeat(500): 1})).await;
    assert!(answer["ok"]["ignored"][0].as_str().unwrap().len() <= 64, "{answer}");
    ada.say_text(r#"{"id":true,"heartbeat":{}}"#).await;
    let answer = ada.frame().await;
    assert!(answer["error"]["detail"].as_str().unwrap().starts_with("an `id` is a non-negative"), "{answer}");
    for (body, code, field) in [
        (r#"{"user":""}"#, "request.invalid", Some("user")),
        (r#"{"user":"a","device":7}"#, "request.invalid", Some("device")),
        (r#"{"user":"a","ttl_seconds":"x"}"#, "request.invalid", Some("ttl_seconds")),
        (r#"{"user":"a","colour":1}"#, "request.invalid", Some("colour")),
        ("{}", "request.invalid", Some("user")),
        ("", "request.malformed", None),
        ("[]", "request.malformed", None),
    ] {
        let typed = "host: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close";
        let length = body.len();
        let request = format!("POST /v1/dev/tokens HTTP/1.1\r\n{typed}\r\ncontent-length: {length}\r\n\r\n{body}");
        let answer = world.http(&request).await;
        assert_eq!(answer.problem(), code, "{body}");
        assert_eq!(answer.json()["field"].as_str(), field, "{body}: {answer:?}");
    }
}
