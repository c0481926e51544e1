//! The server's HTTP side: tokens, operations, and the admin port.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP client with one base address.
#[derive(Debug, Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer of the server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Http {
    /// A client of `base`, for example `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { base: base.trim_end_matches('/').to_owned(), client }
    }

    /// Any request; `body` is sent as JSON.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let body = body.map(Value::to_string);
        let content_type = body.as_ref().map(|_| "application/json");
        self.send(method, path, token, content_type, body.unwrap_or_default().into_bytes()).await
    }

    /// Any request with any bytes.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let asked = async {
            let response = self.client.request(request).await?;
            let (head, body) = response.into_parts();
            let headers = head.headers.iter();
            let headers =
                headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            anyhow::Ok(Answer {
                status: head.status.as_u16(),
                headers: headers.collect(),
                body: body.collect().await?.to_bytes(),
            })
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        answer
            .with_context(|| format!("{}{path} did not answer", self.base))?
            .with_context(|| format!("{}{path} failed", self.base))
    }

    /// A page as text, if it answers with 200.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.call(Method::GET, path, None, None).await?;
        if answer.status != 200 {
            bail!("{path} answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// A development token from the server.
    pub async fn token(&self, user: &str) -> anyhow::Result<String> {
        let answer = self.call(Method::POST, "/v1/dev/tokens", None, Some(&json!({ "user": user }))).await?;
        let value = answer.json()?;
        match value["token"].as_str() {
            Some(token) if answer.status == 201 => Ok(token.to_owned()),
            _ => bail!("no token: {} {value}", answer.status),
        }
    }
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        let shown = || {
            format!("status {} with a body that is not JSON: {:?}", self.status, String::from_utf8_lossy(&self.body))
        };
        serde_json::from_slice(&self.body).with_context(shown)
    }

    /// A header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}
