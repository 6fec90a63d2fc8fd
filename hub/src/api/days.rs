//! Async: one device's day: what happened in it, which windows with their titles, which pictures.

use std::sync::Arc;

use jiff::civil::Date;
use muster_mesh::ids::DeviceId;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route,
    devices::{self, SpoolMissing},
    one_of,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
};
use crate::{
    day::{Day, FocusSpan},
    hub::Hub,
    store::{DeviceRow, KeptBatch},
};

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([mount(hub, Operation::ShowDay, show), mount(hub, Operation::ShowFocus, show_focus)])
}

/// A day, without the titles of windows.
#[derive(Serialize, ToSchema)]
pub struct DayShown {
    #[schema(value_type = String)]
    device: DeviceId,
    #[serde(flatten)]
    day: Day,
    /// What was announced and isn't here, of any day.
    missing: Vec<SpoolMissing>,
}

/// The windows of a day, with their titles where the policy allowed them.
#[derive(Serialize, ToSchema)]
pub struct FocusShown {
    #[schema(value_type = String)]
    device: DeviceId,
    day: String,
    zone: String,
    #[schema(format = DateTime)]
    from: Option<String>,
    #[schema(format = DateTime)]
    to: Option<String>,
    focus: Vec<FocusSpan>,
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let asked = OfDay::find(&hub, &call).await?;
    let missing = devices::missing(&hub, &asked.device).await?;
    let shown = DayShown { device: asked.device.device, day: asked.day()?.without_titles(), missing };
    Said::about(devices::about(&asked.device), &shown)
}

async fn show_focus(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let asked = OfDay::find(&hub, &call).await?;
    let Day { day, zone, from, to, focus, .. } = asked.day()?;
    Said::about(devices::about(&asked.device), &FocusShown { device: asked.device.device, day, zone, from, to, focus })
}

/// The device and the day of a path, with what is kept around it.
pub struct OfDay {
    pub device: DeviceRow,
    pub date: Date,
    /// Days since 1970-01-01 UTC: a local day lies within them.
    pub utc_days: (i64, i64),
    pub batches: Vec<KeptBatch>,
}

impl OfDay {
    pub async fn find(hub: &Hub, call: &Call) -> Result<OfDay, ApiError> {
        let device = devices::find(hub, call.segment(0)).await?;
        let date = parse_date(call.segment(1)).ok_or_else(|| ApiError::Field("day", "it isn't a day such as 2026-11-23".into()))?;
        let utc_day = days_since_1970(date);
        let utc_days = (utc_day - 1, utc_day + 1);
        let batches = hub.store.kept_batches(device.id, utc_days.0, utc_days.1).await?;
        Ok(OfDay { device, date, utc_days, batches })
    }

    fn day(&self) -> Result<Day, ApiError> {
        Day::of(self.date, &self.batches).ok_or_else(no_such_day)
    }
}

pub fn no_such_day() -> ApiError {
    ApiError::Field("day", "no calendar goes that far".into())
}

/// Exactly `YYYY-MM-DD`.
fn parse_date(text: &str) -> Option<Date> {
    let date: Date = text.parse().ok()?;
    (date.to_string() == text).then_some(date)
}

fn days_since_1970(date: Date) -> i64 {
    let epoch = Date::constant(1970, 1, 1);
    i64::from(epoch.until(date).map_or(0, |span| span.get_days()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_named_in_one_way() {
        assert_eq!(parse_date("2026-11-23").map(days_since_1970), Some(20_780));
        assert_eq!(parse_date("1969-12-31").map(days_since_1970), Some(-1));
        for bad in ["2026-02-30", "20261123", "2026-11-23T00:00", "2026-1-3", "today", ""] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
