//! Async: who looked at whose data, and when.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Route, devices,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::hub::Hub;

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 1_000;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ListLooks, list)
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&["device", "limit"])?;
    let most = devices::limit(&call, PAGE, PAGE_MAX)?;
    let device_id = match call.query("device") {
        Some(text) => Some(devices::find(&hub, text).await?.id),
        None => None,
    };
    let looks = hub.store.looks(device_id, most).await?;
    let looks: Vec<Value> =
        looks.iter().map(|look| json!({ "at": rfc3339(look.at_ms), "who": look.who, "whom": look.whom, "what": look.what })).collect();
    Ok(Said::plain(json!({ "looks": looks })))
}
