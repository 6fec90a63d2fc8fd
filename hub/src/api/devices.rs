//! Async: devices: whose they are, who is there now, and what of theirs isn't here.

use std::sync::Arc;

use muster_mesh::{
    ids::{DeviceId, SpoolId},
    ranges::Ranges,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route, one_of,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{
    hub::Hub,
    presence::{Presences, Shown},
    store::DeviceRow,
};

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 500;

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([
        mount(hub, Operation::ListDevices, list),
        mount(hub, Operation::ShowDevice, show),
        mount(hub, Operation::ShowMissing, show_missing),
    ])
}

#[derive(Serialize, ToSchema)]
pub struct DeviceList {
    devices: Vec<DeviceShown>,
    /// `after` of the next page; none: this was the last.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct DeviceShown {
    #[schema(value_type = String)]
    device: DeviceId,
    /// Whether it is in the list of issued devices.
    listed: bool,
    person: Option<String>,
    display: String,
    site: Option<String>,
    presence: PresenceShown,
}

/// Who is there now, as a relay says. Only shown, never counted.
#[derive(Serialize, ToSchema)]
pub struct PresenceShown {
    /// `no_signal`: its relay is silent, or it was never seen.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tails: Vec<TailShown>,
}

/// What a device still holds.
#[derive(Serialize, ToSchema)]
pub struct TailShown {
    #[schema(value_type = String)]
    spool: SpoolId,
    lane: &'static str,
    first_held: u64,
    next: u64,
    closed: bool,
}

#[derive(Serialize, ToSchema)]
pub struct MissingShown {
    #[schema(value_type = String)]
    device: DeviceId,
    spools: Vec<SpoolMissing>,
}

/// Numbers that aren't here, first and last of each run.
#[derive(Serialize, ToSchema)]
pub struct SpoolMissing {
    #[schema(value_type = String)]
    spool: SpoolId,
    lane: &'static str,
    /// Still on their way, as far as anyone knows.
    announced: Vec<[u64; 2]>,
    /// Nobody has them any more.
    lost: Vec<[u64; 2]>,
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let after = call.query("after").map(parse_device).transpose()?;
    let most = limit(&call, PAGE, PAGE_MAX)?;
    let devices = hub.store.devices(after, most).await?;
    let next = devices.last().filter(|_| devices.len() as i64 == most).map(|device| device.device.to_string());
    let presences = hub.presences.lock().await;
    let now_ms = hub.now_ms();
    let devices: Vec<DeviceShown> = devices.iter().map(|device| shown(device, &presences, now_ms)).collect();
    let about = About { device_id: None, whom: format!("{} devices", devices.len()) };
    Said::about(about, &DeviceList { devices, next })
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let device = find(&hub, call.segment(0)).await?;
    let presences = hub.presences.lock().await;
    Said::about(about(&device), &shown(&device, &presences, hub.now_ms()))
}

async fn show_missing(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let device = find(&hub, call.segment(0)).await?;
    let spools = missing(&hub, &device).await?;
    Said::about(about(&device), &MissingShown { device: device.device, spools })
}

/// Per spool what was announced and isn't here, and what is lost in the branch; spools without either are left out.
pub async fn missing(hub: &Hub, device: &DeviceRow) -> Result<Vec<SpoolMissing>, ApiError> {
    let mut spools = Vec::new();
    for (spool, lane, row) in hub.store.spools_of(device.id).await? {
        let missing = row.missing();
        if !missing.announced.is_empty() || !missing.lost.is_empty() {
            let (announced, lost) = (ranges(&missing.announced), ranges(&missing.lost));
            spools.push(SpoolMissing { spool, lane: lane.name(), announced, lost });
        }
    }
    Ok(spools)
}

/// The device of a path, or the same 404 for everything that isn't one.
pub async fn find(hub: &Hub, text: &str) -> Result<DeviceRow, ApiError> {
    let device: DeviceId = text.parse().map_err(|_| ApiError::NotFound)?;
    hub.store.device(device).await?.ok_or(ApiError::NotFound)
}

pub fn about(device: &DeviceRow) -> About {
    About { device_id: Some(device.id), whom: device.device.to_string() }
}

/// `limit` of the query, from 1 to `most`.
pub fn limit(call: &Call, usual: i64, most: i64) -> Result<i64, ApiError> {
    let Some(text) = call.query("limit") else { return Ok(usual) };
    let limit: i64 = text.parse().map_err(|_| ApiError::Field("limit", "it isn't a whole number".into()))?;
    if (1..=most).contains(&limit) { Ok(limit) } else { Err(ApiError::Field("limit", format!("it isn't 1 to {most}"))) }
}

pub fn parse_device(text: &str) -> Result<DeviceId, ApiError> {
    text.parse().map_err(|_| ApiError::Field("device", "it isn't 32 lower-case hex digits".into()))
}

fn shown(device: &DeviceRow, presences: &Presences, now_ms: i64) -> DeviceShown {
    DeviceShown {
        device: device.device,
        listed: device.person.is_some(),
        person: device.person.clone(),
        display: device.display.clone().unwrap_or_else(|| "not in the list".into()),
        site: device.site.clone(),
        presence: PresenceShown::of(presences.of(device.device, now_ms)),
    }
}

impl PresenceShown {
    fn of(shown: Option<Shown>) -> PresenceShown {
        let Some(shown) = shown else {
            return PresenceShown { state: "no_signal", last_state: None, since: None, seen: None, relay: None, tails: Vec::new() };
        };
        let tails = shown.tails.iter().map(|tail| TailShown {
            spool: tail.spool,
            lane: tail.lane.name(),
            first_held: tail.first_held,
            next: tail.next,
            closed: tail.closed,
        });
        PresenceShown {
            state: if shown.signal { shown.state.name() } else { "no_signal" },
            last_state: Some(shown.state.name()),
            since: rfc3339(shown.since_ms),
            seen: rfc3339(shown.seen_ms),
            relay: Some(shown.relay),
            tails: tails.collect(),
        }
    }
}

fn ranges(ranges: &Ranges) -> Vec<[u64; 2]> {
    ranges.iter().map(|(first, last)| [first, last]).collect()
}
