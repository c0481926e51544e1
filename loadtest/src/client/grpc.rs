//! The server's gRPC side: any operation of the table, with the JSON that the other transports speak.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use chappe_schema::{operation::Op, proto::details};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A gRPC client with one base address.
#[derive(Debug, Clone)]
pub struct Grpc {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A refusal.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The status, by its number.
    pub status: i32,
    /// The one error object.
    pub error: Value,
}

/// How a call ended.
pub type Outcome = Result<Value, Refusal>;

impl Grpc {
    /// A client of `base`, for example `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { base: base.trim_end_matches('/').to_owned(), client }
    }

    /// Whether arguments can be said in protobuf as they are: what has the wrong type, is missing or is unknown cannot.
    pub fn can_say(op: Op, arguments: &Value) -> bool {
        let rpc = op.rpc();
        let request = rpc.request(arguments.to_string().as_bytes());
        let again = request.and_then(|request| rpc.arguments(&request));
        again.is_ok_and(|json| serde_json::from_str::<Value>(&json).is_ok_and(|again| again == *arguments))
    }

    /// Performs an operation.
    pub async fn call(&self, op: Op, token: &str, arguments: &Value) -> anyhow::Result<Outcome> {
        let rpc = op.rpc();
        let method = rpc.method.with_context(|| format!("{} is no method", op.name()))?;
        let message = rpc.request(arguments.to_string().as_bytes())?;
        let path = method.path();
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.send(&path, token, &message));
        let (headers, body) = asked.await.with_context(|| format!("{path} did not answer"))??;
        let number = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()?.parse::<i32>().ok());
        match number("grpc-status").context("the answer has no status")? {
            0 => {
                let Some((_, reply)) = body.split_at_checked(PREFIX_BYTES) else { bail!("the answer has no message") };
                Ok(Ok(serde_json::from_str(&rpc.answer(reply)?)?))
            }
            status => {
                let details = headers.get("grpc-status-details-bin").context("the refusal has no details")?;
                let details = BASE64_STANDARD_NO_PAD.decode(details.as_bytes().trim_ascii_end())?;
                let (code, error) = details::read(&details).context("the details hold no error")?;
                anyhow::ensure!(code == status, "the details have another status: {code}, not {status}");
                Ok(Err(Refusal { status, error: serde_json::to_value(error)? }))
            }
        }
    }

    /// One message, and what came back: headers and trailers together, and the body.
    async fn send(&self, path: &str, token: &str, message: &[u8]) -> anyhow::Result<(HeaderMap, Bytes)> {
        let request = Request::post(format!("{}{path}", self.base))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(framed(message)))?;
        let (head, body) = self.client.request(request).await?.into_parts();
        anyhow::ensure!(head.status == 200, "gRPC answered with status {}", head.status);
        let collected = body.collect().await?;
        let mut headers = head.headers;
        headers.extend(collected.trailers().cloned().unwrap_or_default());
        Ok((headers, collected.to_bytes()))
    }
}

/// In front of each message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;

/// A message as it stands in a stream.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.push(0);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}
