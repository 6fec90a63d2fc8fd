//! Async: counts over everything since a time: nobody's data, for those who compare the stages.

use std::sync::Arc;

use serde_json::json;

use super::{
    Route,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time,
};
use crate::hub::Hub;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ShowSummary, show)
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&["since"])?;
    let since_ms = match call.query("since") {
        Some(text) => time::parse(text).ok_or_else(|| ApiError::Field("since", "it isn't a time as in RFC 3339".into()))?,
        None => 0,
    };
    let summary = hub.store.summary(since_ms).await?;
    Ok(Said::plain(json!({
        "since": time::rfc3339(since_ms),
        "kinds": summary.kinds,
        "batches": {
            "stored": summary.batches,
            "held": summary.held,
            "refused": summary.refused,
            "expired": summary.expired,
        },
        "duplicates": summary.duplicates,
        "missing": summary.missing,
        "lost": summary.lost,
        "gaps": summary.gaps,
        "alarms": summary.alarms,
        "travel_ms": {
            "to_relay_p50": summary.to_relay_ms.0,
            "to_relay_p99": summary.to_relay_ms.1,
            "to_hub_p50": summary.to_hub_ms.0,
            "to_hub_p99": summary.to_hub_ms.1,
        },
        "ever": summary.counters,
    })))
}
