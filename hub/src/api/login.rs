//! Async: signing in: name and password for a short-lived token.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    Route,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{
    hub::Hub,
    password,
    token::{self, Caller},
};

/// How long a sign-in waits for its turn.
const WAIT: std::time::Duration = std::time::Duration::from_secs(5);

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::Login, login)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    name: String,
    password: String,
}

#[derive(Serialize, ToSchema)]
pub struct Token {
    /// Goes into `Authorization: Bearer …`.
    token: String,
    #[schema(format = DateTime)]
    expires: Option<String>,
}

async fn login(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let Credentials { name, password } = call.json()?;
    if password.len() > password::PASSWORD_BYTES_MAX {
        return Err(ApiError::WrongPassword);
    }
    let address = call.peer.address.ip();
    hub.lockout.lock().await.begin(&name, address, hub.now_ms()).map_err(ApiError::Wait)?;
    let admin = hub.store.admin(&name).await?;
    let kept = admin.as_ref().map(|admin| admin.password.clone());
    let turn = timeout(WAIT, hub.hashing.acquire()).await.map_err(|_| ApiError::Later("too many sign-ins at once".into()))?;
    let checking = tokio::task::spawn_blocking(move || password::is_right(&password, kept.as_deref()));
    let right = checking.await.map_err(|error| ApiError::Inside(error.to_string()))?;
    drop(turn);
    let Some(admin) = admin.filter(|_| right) else { return Err(ApiError::WrongPassword) };
    hub.lockout.lock().await.succeed(&name, address);
    let now_ms = hub.now_ms();
    let caller = Caller { admin_id: admin.id, name: admin.name };
    let token = hub.tokens.issue(&caller, now_ms).map_err(|error| ApiError::Inside(error.to_string()))?;
    Said::plain(&Token { token, expires: rfc3339(now_ms + token::LIFE_S * 1_000) })
}
