//! Async: who looked at whose data, and when.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route, devices,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{hub::Hub, store::Look};

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 1_000;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ListLooks, list)
}

#[derive(Serialize, ToSchema)]
pub struct LookList {
    /// The newest first.
    looks: Vec<LookShown>,
}

#[derive(Serialize, ToSchema)]
pub struct LookShown {
    #[schema(format = DateTime)]
    at: Option<String>,
    who: String,
    /// A device, or how many.
    whom: String,
    /// The operation.
    what: String,
    /// In the words of who looked; pictures are shown only with one.
    reason: Option<String>,
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let most = devices::limit(&call, PAGE, PAGE_MAX)?;
    let device_id = match call.query("device") {
        Some(text) => Some(devices::find(&hub, text).await?.id),
        None => None,
    };
    let looks = hub.store.looks(device_id, most).await?;
    let shown = |Look { at_ms, who, whom, what, reason, .. }| LookShown { at: rfc3339(at_ms), who, whom, what, reason };
    Said::plain(&LookList { looks: looks.into_iter().map(shown).collect() })
}
