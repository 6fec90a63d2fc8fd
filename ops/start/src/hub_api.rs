//! Async: the hub's web API, for one who signed in as an admin.

use std::{net::SocketAddr, sync::Mutex};

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{http, summary::InHub};

/// A signed-in admin. Signs in again when the token has ended.
pub struct HubApi {
    web: SocketAddr,
    name: String,
    password: String,
    token: Mutex<Option<String>>,
}

impl HubApi {
    pub fn new(web: SocketAddr, name: &str, password: &str) -> HubApi {
        HubApi { web, name: name.to_owned(), password: password.to_owned(), token: Mutex::new(None) }
    }

    /// Where people go with a browser.
    pub fn address(&self) -> String {
        format!("http://{}", self.web)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// `path` from `/api/v1/` on.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask("GET", path, &[]).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask("POST", path, body.to_string().as_bytes()).await
    }

    /// What came of spools born at or after a time, milliseconds UTC.
    pub async fn in_hub(&self, since_ms: i64) -> anyhow::Result<InHub> {
        let since = Timestamp::from_millisecond(since_ms).context("a time that no calendar has")?;
        InHub::from_json(&self.get(&format!("/api/v1/summary?since={since:.3}")).await?)
    }

    async fn ask(&self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Value> {
        let known = self.token.lock().ok().and_then(|token| token.clone());
        let mut token = match known {
            Some(token) => token,
            None => self.sign_in().await?,
        };
        let mut answer = self.ask_with(&token, method, path, body).await?;
        if answer.status == 401 {
            token = self.sign_in().await?;
            answer = self.ask_with(&token, method, path, body).await?;
        }
        read(path, &answer)
    }

    async fn ask_with(&self, token: &str, method: &str, path: &str, body: &[u8]) -> anyhow::Result<http::Answer> {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        http::ask(self.web, method, path, &headers, body).await.with_context(|| format!("asking the hub for {path}"))
    }

    async fn sign_in(&self) -> anyhow::Result<String> {
        let credentials = json!({ "name": self.name, "password": self.password }).to_string();
        let headers = [("content-type", "application/json")];
        let answer =
            http::ask(self.web, "POST", "/api/v1/login", &headers, credentials.as_bytes()).await.context("signing in at the hub")?;
        let token = read("/api/v1/login", &answer)?["token"].as_str().context("the hub's answer to the sign-in holds no token")?.to_owned();
        if let Ok(mut kept) = self.token.lock() {
            *kept = Some(token.clone());
        }
        Ok(token)
    }
}

fn read(path: &str, answer: &http::Answer) -> anyhow::Result<Value> {
    if answer.status != 200 {
        bail!("the hub answered {} to {path}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("the hub's answer to {path} is no JSON"))
}
