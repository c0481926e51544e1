//! Calls of gRPC against a node that misbehaves: every error has its status, and deadlines are the server's too.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use chappe_schema::{
    error::Code,
    operation::{OPERATIONS, Op},
    proto::{details, v1},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

use crate::{node::Mode, parity, world::World};

const SOON: Duration = Duration::from_secs(60);

type Http2 = Client<HttpConnector, Full<Bytes>>;

fn client() -> Http2 {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

/// A call's headers and trailers, as one.
async fn call(
    world: &World,
    client: &Http2,
    path: &str,
    message: &[u8],
    further: &[(&'static str, &str)],
) -> HeaderMap {
    let (head, body) = said(world, client, path, framed(message), further).await.into_parts();
    assert_eq!(head.status, 200);
    let body = timeout(SOON, body.collect()).await.expect("no end").unwrap();
    let mut headers = head.headers;
    headers.extend(body.trailers().cloned().unwrap_or_default());
    headers
}

/// A message in its envelope.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

/// What is answered to a call with these bytes.
async fn said(
    world: &World,
    client: &Http2,
    path: &str,
    bytes: Vec<u8>,
    further: &[(&'static str, &str)],
) -> Response<Incoming> {
    let mut request = Request::post(format!("http://{}{path}", world.gateway.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", world.token("ada")));
    for (name, value) in further {
        request.headers_mut().unwrap().insert(*name, value.parse().unwrap());
    }
    let request = request.body(Full::new(Bytes::from(bytes))).unwrap();
    timeout(SOON, client.request(request)).await.expect("no answer").unwrap()
}

/// The status and the one error object.
fn refusal(headers: &HeaderMap) -> (i32, v1::Error) {
    let details = headers.get("grpc-status-details-bin").expect("a refusal has details").as_bytes();
    let (status, error) = details::read(&BASE64_STANDARD_NO_PAD.decode(details.trim_ascii_end()).unwrap()).unwrap();
    assert_eq!(headers["grpc-status"], status.to_string());
    (status, error)
}

#[tokio::test]
async fn every_operation_shows_a_nodes_errors_with_their_status() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 2, false).to_string();
    let client = client();
    for code in [Code::ConversationNotFound, Code::Forbidden, Code::Overloaded, Code::OutcomeUnknown, Code::Internal] {
        world.node.behave(Mode::Refusing(code));
        for row in OPERATIONS.iter().filter(|row| row.is_for_users()) {
            let rpc = row.op.rpc();
            let Some(method) = rpc.method else { continue };
            let message = rpc.request(parity::args(row.op, &chat).to_string().as_bytes()).unwrap();
            let headers = call(&world, &client, &method.path(), &message, &[]).await;
            let (status, error) = refusal(&headers);
            assert_eq!((status, &*error.code), (i32::from(code.row().grpc), code.row().code), "{}", row.name);
            assert_eq!((error.status, error.retryable), (u32::from(code.row().http), code.row().retryable));
            assert!(error.request_id.is_some());
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_nobody_answers() {
    let world = World::new().await;
    let client = client();
    let path = Op::ConversationList.rpc().method.unwrap().path();
    assert_eq!(call(&world, &client, &path, &[], &[]).await["grpc-status"], "0");
    world.node.behave(Mode::Silent);
    let headers = call(&world, &client, &path, &[], &[("grpc-timeout", "300m")]).await;
    let (status, error) = refusal(&headers);
    assert_eq!((status, &*error.code, error.retryable), (4, "outcome_unknown", true));
    // Without one, the server's own holds.
    let (status, error) = refusal(&call(&world, &client, &path, &[], &[]).await);
    assert_eq!((status, &*error.code), (i32::from(Code::Unavailable.row().grpc), "unavailable"));
}

#[tokio::test]
async fn what_is_no_call_of_grpc_is_said() {
    let world = World::new().await;
    let client = client();
    for (path, status, code) in [
        ("/chappe.v1.Messages/Nothing", 12, "request.unknown_operation"),
        ("/nobody.Here/Nothing", 12, "request.unknown_operation"),
        ("/chappe.v1.Admin/GetUser", 12, "request.unknown_operation"),
        ("/grpc.health.v1.Health/Nothing", 12, "request.unknown_operation"),
        ("/grpc.reflection.v1.ServerReflection/Nothing", 12, "request.unknown_operation"),
    ] {
        let (found, error) = refusal(&call(&world, &client, path, &[], &[]).await);
        assert_eq!((found, &*error.code), (status, code), "{path}");
        let is_named = error.detail.is_some_and(|detail| detail.contains(&path[1..]));
        assert!(is_named || path.contains("Admin"), "{path}");
    }
    let send = Op::MessageSend.rpc().method.unwrap().path();
    let (status, error) = refusal(&call(&world, &client, &send, &[0xff; 9], &[]).await);
    assert_eq!((status, &*error.code), (3, "request.malformed"));
    let (status, error) = refusal(&call(&world, &client, &send, &vec![0; 200_000], &[]).await);
    assert_eq!((status, &*error.code), (11, "request.too_large"));
    // JSON over HTTP/2, on the same connection.
    let request = Request::get(format!("http://{}/v1/conversations", world.gateway.address()))
        .header("authorization", format!("Bearer {}", world.token("ada")));
    let answer = client.request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, hyper::Version::HTTP_2));
}

/// HTTP/2 has its host in the request's line.
#[tokio::test]
async fn development_tokens_come_over_http2_too() {
    let world = World::new().await;
    let request = Request::post(format!("http://{}/v1/dev/tokens", world.gateway.address()))
        .header("content-type", "application/json")
        .body(Full::from(r#"{"user":"ada"}"#))
        .unwrap();
    let answer = timeout(SOON, client().request(request)).await.expect("no answer").unwrap();
    assert_eq!(answer.status(), 201);
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_begun() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 2, false).to_string();
    let rpc = Op::MessageGet.row().op.rpc();
    let message = rpc.request(parity::args(Op::MessageGet, &chat).to_string().as_bytes()).unwrap();
    let headers = call(&world, &client(), &rpc.method.unwrap().path(), &message, &[("grpc-timeout", "0n")]).await;
    assert_eq!(refusal(&headers).1.code, Code::OutcomeUnknown.row().code);
    assert_eq!(headers["grpc-status"], "4");
}

/// What gRPC says of its own form: `statuscodes.md` and `compression.md` of its documents.
#[tokio::test]
async fn a_call_has_one_message_and_it_is_not_compressed() {
    let world = World::new().await;
    let client = client();
    let path = Op::ConversationList.rpc().method.unwrap().path();
    for (messages, code) in [(1, None), (0, Some("request.malformed")), (2, Some("request.malformed"))] {
        let bytes = framed(&[]).repeat(messages);
        let answer = said(&world, &client, &path, bytes, &[]).await;
        match code {
            Some(code) => {
                let (status, error) = refusal(answer.headers());
                assert_eq!((status, &*error.code), (12, code), "{messages} messages");
            }
            None => assert!(!answer.headers().contains_key("grpc-status"), "{answer:?}"),
        }
    }
    for path in [&*path, "/chappe.v1.Realtime/Connect"] {
        let headers = call(&world, &client, path, &[], &[("grpc-encoding", "gzip")]).await;
        let (status, error) = refusal(&headers);
        assert_eq!((status, &*error.code), (12, "request.malformed"), "{path}");
        assert_eq!(headers["grpc-accept-encoding"], "identity", "{path}");
    }
    // Whoever speaks another tongue is told in HTTP's words.
    let json = [("content-type", "application/grpc+json")];
    let (head, body) = said(&world, &client, &path, framed(&[]), &json).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status.as_u16(), &problem["code"]), (415, &"request.unsupported_media_type".into()));
    assert_eq!(problem["request_id"], head.headers["x-request-id"].to_str().unwrap());
    assert_eq!(head.headers["accept"], "application/grpc+proto");
}

/// The next message of a stream, if it is there or comes.
async fn next(body: &mut Incoming) -> Option<Bytes> {
    let frame = timeout(SOON, body.frame()).await.expect("nothing comes")?.unwrap();
    frame.into_data().ok().map(|data| data.slice(5..))
}

#[tokio::test]
async fn health_is_watched_without_an_end() {
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const WATCH: &str = "/grpc.health.v1.Health/Watch";
    /// A `HealthCheckRequest`.
    fn of(service: &str) -> Vec<u8> {
        let mut message = vec![1 << 3 | 2, service.len() as u8];
        message.extend(service.as_bytes());
        message
    }
    /// A `HealthCheckResponse`.
    fn status(message: &[u8]) -> u8 {
        assert_eq!((message.len(), message[0]), (2, 1 << 3));
        message[1]
    }
    let (serving, not_serving, unknown) = (1, 2, 3);
    let world = World::new().await;
    let client = client();
    let watch = async |service: &str| said(&world, &client, WATCH, framed(&of(service)), &[]).await.into_body();
    let mut nobodys = watch("nobody.Here").await;
    assert_eq!(status(&next(&mut nobodys).await.unwrap()), unknown);
    let mut known = [watch("").await, watch("chappe.v1.Messages").await, watch("chappe.v1.Realtime").await];
    for body in &mut known {
        assert_eq!(status(&next(body).await.unwrap()), serving);
    }
    let headers = call(&world, &client, CHECK, &of("nobody.Here"), &[]).await;
    assert_eq!(headers["grpc-status"], "5", "who asks once is told that there is none");
    assert_eq!(call(&world, &client, CHECK, &of("chappe.v1.Messages"), &[]).await["grpc-status"], "0");
    world.gateway.retire();
    for body in &mut known {
        assert_eq!(status(&next(body).await.unwrap()), not_serving);
    }
    let more = std::pin::pin!(nobodys.frame());
    assert!(futures_util::FutureExt::now_or_never(more).is_none(), "the stream goes on");
}

#[tokio::test]
async fn heads_have_the_bounds_of_http1_and_the_one_object() {
    let world = World::new().await;
    let client = client();
    let headers = |count: usize, bytes: usize| {
        let mut headers = HeaderMap::new();
        for number in 0..count {
            let name: hyper::header::HeaderName = format!("x-{number}").parse().unwrap();
            headers.insert(name, "x".repeat(bytes).parse().unwrap());
        }
        headers
    };
    for (headers, status) in [
        (headers(64, 10), 200),
        (headers(65, 10), 431),
        (headers(1, 30_000), 200),
        (headers(1, 33_000), 431),
        (headers(1, 100_000), 431),
    ] {
        let mut request = Request::get(format!("http://{}/", world.gateway.address())).body(Full::default()).unwrap();
        *request.headers_mut() = headers;
        let (head, body) = timeout(SOON, client.request(request)).await.expect("no answer").unwrap().into_parts();
        assert_eq!(head.status, status);
        if status == 431 {
            let body = body.collect().await.unwrap().to_bytes();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(problem["code"], "request.head_too_large");
            assert_eq!(problem["request_id"], head.headers["x-request-id"].to_str().unwrap());
        }
    }
    let path = Op::ConversationList.rpc().method.unwrap().path();
    let long = "x".repeat(40_000);
    let (status, error) = refusal(&call(&world, &client, &path, &[], &[("x-long", &long)]).await);
    assert_eq!((status, &*error.code), (11, "request.head_too_large"));
}
