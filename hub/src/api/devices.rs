//! Async: devices: whose they are, who is there now, and what of theirs isn't here.

use std::sync::Arc;

use muster_mesh::{ids::DeviceId, ranges::Ranges};
use serde_json::{Value, json};

use super::{
    Route, one_of,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{hub::Hub, presence::Presences, store::DeviceRow};

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 500;

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([
        mount(hub, Operation::ListDevices, list),
        mount(hub, Operation::ShowDevice, show),
        mount(hub, Operation::ShowMissing, show_missing),
    ])
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&["after", "limit"])?;
    let after = call.query("after").map(parse_device).transpose()?;
    let most = limit(&call, PAGE, PAGE_MAX)?;
    let devices = hub.store.devices(after, most).await?;
    let next = devices.last().filter(|_| devices.len() as i64 == most).map(|device| device.device.to_string());
    let presences = hub.presences.lock().await;
    let now_ms = hub.now_ms();
    let devices: Vec<Value> = devices.iter().map(|device| shown(device, &presences, now_ms)).collect();
    let about = About { device_id: None, whom: format!("{} devices", devices.len()) };
    Ok(Said::about(about, json!({ "devices": devices, "next": next })))
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&[])?;
    let device = find(&hub, call.segment(0)).await?;
    let presences = hub.presences.lock().await;
    Ok(Said::about(about(&device), shown(&device, &presences, hub.now_ms())))
}

async fn show_missing(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&[])?;
    let device = find(&hub, call.segment(0)).await?;
    let missing = missing(&hub, &device).await?;
    Ok(Said::about(about(&device), json!({ "device": device.device, "spools": missing })))
}

/// Per spool what was announced and isn't here, and what is lost in the branch; spools without either are left out.
pub async fn missing(hub: &Hub, device: &DeviceRow) -> Result<Vec<Value>, ApiError> {
    let mut spools = Vec::new();
    for (spool, lane, row) in hub.store.spools_of(device.id).await? {
        let missing = row.missing();
        if !missing.announced.is_empty() || !missing.lost.is_empty() {
            spools.push(json!({
                "spool": spool,
                "lane": lane.name(),
                "announced": ranges(&missing.announced),
                "lost": ranges(&missing.lost),
            }));
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

fn shown(device: &DeviceRow, presences: &Presences, now_ms: i64) -> Value {
    let presence = presences.of(device.device, now_ms).map(|shown| {
        let tails = shown.tails.iter().map(|tail| {
            json!({ "spool": tail.spool, "lane": tail.lane.name(), "first_held": tail.first_held, "next": tail.next, "closed": tail.closed })
        });
        json!({
            "state": if shown.signal { shown.state.name() } else { "no_signal" },
            "last_state": shown.state.name(),
            "since": rfc3339(shown.since_ms),
            "seen": rfc3339(shown.seen_ms),
            "relay": shown.relay,
            "tails": tails.collect::<Vec<_>>(),
        })
    });
    json!({
        "device": device.device,
        "listed": device.person.is_some(),
        "person": device.person,
        "display": device.display.as_deref().unwrap_or("not in the list"),
        "site": device.site,
        "presence": presence.unwrap_or_else(|| json!({ "state": "no_signal" })),
    })
}

fn ranges(ranges: &Ranges) -> Vec<[u64; 2]> {
    ranges.iter().map(|(first, last)| [first, last]).collect()
}
