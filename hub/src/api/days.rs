//! Async: one device's day.

use std::sync::Arc;

use jiff::civil::Date;
use serde_json::json;

use super::{
    Route, devices,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
};
use crate::{day::Day, hub::Hub};

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ShowDay, show)
}

async fn show(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&[])?;
    let device = devices::find(&hub, call.segment(0)).await?;
    let date = parse_date(call.segment(1)).ok_or_else(|| ApiError::Field("day", "it isn't a day such as 2026-11-23".into()))?;
    let utc_day = days_since_1970(date);
    // A local day lies within the UTC days around it.
    let batches = hub.store.kept_batches(device.id, utc_day - 1, utc_day + 1).await?;
    let day = Day::of(date, &batches).ok_or_else(|| ApiError::Field("day", "no calendar goes that far".into()))?;
    let mut shown = serde_json::to_value(&day).map_err(|error| ApiError::Inside(error.to_string()))?;
    shown["device"] = json!(device.device);
    shown["missing"] = json!(devices::missing(&hub, &device).await?);
    Ok(Said::about(devices::about(&device), shown))
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
