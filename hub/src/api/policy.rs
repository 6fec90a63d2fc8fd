//! Async: the policy in force.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Route,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
};
use crate::hub::Hub;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ShowPolicy, show)
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&[])?;
    let in_force = hub.policies.current();
    // The very text that the agents get.
    let policy: Value = serde_json::from_slice(&in_force.policy.to_bytes()).map_err(|error| ApiError::Inside(error.to_string()))?;
    Ok(Said::plain(json!({
        "epoch": in_force.epoch,
        "version": in_force.version,
        "notice": in_force.policy.notice,
        "test_mode": in_force.policy.test_mode,
        "policy": policy,
    })))
}
