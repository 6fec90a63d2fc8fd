//! Async: what a device can and can't measure, as it said last: "cannot see" is never "idle".

use std::{collections::HashSet, sync::Arc};

use muster_mesh::ids::DeviceId;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route, devices,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{hub::Hub, store::KeptCapability};

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ListCapabilities, list)
}

#[derive(Serialize, ToSchema)]
pub struct CapabilityList {
    #[schema(value_type = String)]
    device: DeviceId,
    /// One per ability, its last word.
    capabilities: Vec<CapabilityShown>,
}

#[derive(Serialize, ToSchema)]
pub struct CapabilityShown {
    what: String,
    able: bool,
    why: String,
    /// When it said so.
    #[schema(format = DateTime)]
    since: Option<String>,
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let device = devices::find(&hub, call.segment(0)).await?;
    let capabilities = last_words(hub.store.capabilities(device.id).await?);
    Said::about(devices::about(&device), &CapabilityList { device: device.device, capabilities })
}

/// Of words in the order of time, newest first, the first about each ability.
fn last_words(said: Vec<KeptCapability>) -> Vec<CapabilityShown> {
    let mut known = HashSet::new();
    let mut last: Vec<_> = said.into_iter().filter(|word| known.insert(word.what.clone())).collect();
    last.sort_by(|one, other| one.what.cmp(&other.what));
    let shown = |KeptCapability { placed_ms, what, able, why }| CapabilityShown { what, able, why, since: rfc3339(placed_ms) };
    last.into_iter().map(shown).collect()
}
