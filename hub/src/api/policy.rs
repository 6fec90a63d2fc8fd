//! Async: the policy in force.

use std::sync::Arc;

use muster_mesh::ids::Version;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Route,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
};
use crate::hub::Hub;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ShowPolicy, show)
}

#[derive(Serialize, ToSchema)]
pub struct PolicyShown {
    epoch: u32,
    version: VersionShown,
    /// The version of the notice that people read.
    notice: VersionShown,
    test_mode: bool,
    /// The very text that the agents get.
    #[schema(value_type = Object)]
    policy: Value,
}

/// A restored hub takes a new epoch; `n` goes on rising.
#[derive(Serialize, ToSchema)]
pub struct VersionShown {
    epoch: u32,
    n: u32,
}

async fn show(hub: Arc<Hub>, _: Call) -> Result<Said, ApiError> {
    let in_force = hub.policies.current();
    let policy = serde_json::from_slice(&in_force.policy.to_bytes()).map_err(|error| ApiError::Inside(error.to_string()))?;
    let version = |Version { epoch, n }| VersionShown { epoch, n };
    Said::plain(&PolicyShown {
        epoch: in_force.epoch,
        version: version(in_force.version),
        notice: version(in_force.policy.notice),
        test_mode: in_force.policy.test_mode,
        policy,
    })
}
