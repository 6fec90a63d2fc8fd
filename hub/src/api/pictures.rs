//! Async: pictures of screens: which there are of a day, and one of them. Shown only to who says why, and never without the look on record.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use muster_mesh::{
    ids::DeviceId,
    record::{Area, Why},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route,
    days::{self, OfDay},
    devices, one_of,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{day::Ends, hub::Hub, images, objects::ObjectError, store::KeptPicture};

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([mount(hub, Operation::ListPictures, list), mount(hub, Operation::ShowPicture, show)])
}

#[derive(Serialize, ToSchema)]
pub struct PictureList {
    #[schema(value_type = String)]
    device: DeviceId,
    day: String,
    zone: String,
    /// In the order of time.
    pictures: Vec<PictureShown>,
}

#[derive(Serialize, ToSchema)]
pub struct PictureShown {
    /// Its name in this API; it says nothing.
    picture: String,
    #[schema(format = DateTime)]
    at: Option<String>,
    /// `monitor` or `active_window`.
    area: &'static str,
    width: u32,
    height: u32,
    /// `image/webp` or `image/jpeg`.
    content_type: &'static str,
    bytes: i64,
    blurred: bool,
    /// `detailed_log` or `interval`.
    why: &'static str,
    /// The pictures taken together, of several monitors.
    group: String,
    part: u8,
    parts: u8,
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let asked = OfDay::find(&hub, &call).await?;
    let (zone, ends) = Ends::of(asked.date, &asked.batches).ok_or_else(days::no_such_day)?;
    let mut kept = hub.store.pictures(asked.device.id, asked.utc_days.0, asked.utc_days.1).await?;
    kept.retain(|kept| ends.contains(kept.placed_ms));
    kept.sort_by_key(|kept| (kept.placed_ms, kept.picture.group, kept.picture.part, kept.id));
    let pictures = kept.iter().map(PictureShown::of).collect();
    let shown = PictureList { device: asked.device.device, day: asked.date.to_string(), zone, pictures };
    Said::about(devices::about(&asked.device), &shown)
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let device = devices::find(&hub, call.segment(0)).await?;
    // An id of 16 bytes, written as all others.
    let DeviceId(id) = call.segment(1).parse().map_err(|_| ApiError::NotFound)?;
    let KeptPicture { object, picture, .. } = hub.store.picture(device.id, id).await?.ok_or(ApiError::NotFound)?;
    let bytes = hub.objects.get(&object).await.inspect_err(|error| {
        // Unless its row went while it was being read.
        if let ObjectError::Missing = error {
            metrics::counter!("muster_hub_missing_objects_total").increment(1);
            tracing::warn!(object, "a picture's row is here, and its object isn't");
        }
    })?;
    if digest(&SHA256, &bytes).as_ref() != picture.sha256 {
        metrics::counter!("muster_hub_damaged_objects_total").increment(1);
        return Err(ApiError::Inside(format!("the object {object} isn't what was put there")));
    }
    Ok(Said::picture(devices::about(&device), hex(&id), picture.format, bytes))
}

impl PictureShown {
    fn of(kept: &KeptPicture) -> PictureShown {
        let picture = &kept.picture;
        PictureShown {
            picture: hex(&kept.id),
            at: rfc3339(kept.placed_ms),
            area: match picture.area {
                Area::Monitor => "monitor",
                Area::ActiveWindow => "active_window",
            },
            width: picture.width,
            height: picture.height,
            content_type: images::content_type(picture.format),
            bytes: kept.bytes_len,
            blurred: picture.blurred,
            why: match picture.why {
                Why::DetailedLog => "detailed_log",
                Why::Interval => "interval",
            },
            group: hex(&picture.group),
            part: picture.part,
            parts: picture.parts,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
