//! Async: counts over everything since a time: nobody's data, for those who compare the stages.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use utoipa::ToSchema;

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

/// Of the spools that were born since.
#[derive(Serialize, ToSchema)]
pub struct SummaryShown {
    #[schema(format = DateTime)]
    since: Option<String>,
    /// Rows by kind.
    #[schema(value_type = BTreeMap<String, i64>)]
    kinds: BTreeMap<&'static str, i64>,
    batches: BatchesShown,
    /// Records beyond one per place in its batch.
    duplicates: i64,
    /// Numbers that were announced and are neither stored nor excused.
    missing: u64,
    /// Of them: nobody has them any more.
    lost: u64,
    /// Records that tell of something dropped or not taken.
    gaps: i64,
    /// Other content under a known number.
    alarms: i64,
    travel_ms: TravelShown,
    /// Over the whole life of the database.
    ever: BTreeMap<String, i64>,
}

#[derive(Serialize, ToSchema)]
pub struct BatchesShown {
    stored: i64,
    held: i64,
    refused: i64,
    expired: i64,
}

/// From the batch's end at the agent, as the clocks say.
#[derive(Serialize, ToSchema)]
pub struct TravelShown {
    to_relay_p50: i64,
    to_relay_p99: i64,
    to_hub_p50: i64,
    to_hub_p99: i64,
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let since_ms = match call.query("since") {
        Some(text) => time::parse(text).ok_or_else(|| ApiError::Field("since", "it isn't a time as in RFC 3339".into()))?,
        None => 0,
    };
    let summary = hub.store.summary(since_ms).await?;
    let ((to_relay_p50, to_relay_p99), (to_hub_p50, to_hub_p99)) = (summary.to_relay_ms, summary.to_hub_ms);
    Said::plain(&SummaryShown {
        since: time::rfc3339(since_ms),
        kinds: summary.kinds,
        batches: BatchesShown { stored: summary.batches, held: summary.held, refused: summary.refused, expired: summary.expired },
        duplicates: summary.duplicates,
        missing: summary.missing,
        lost: summary.lost,
        gaps: summary.gaps,
        alarms: summary.alarms,
        travel_ms: TravelShown { to_relay_p50, to_relay_p99, to_hub_p50, to_hub_p99 },
        ever: summary.counters,
    })
}
