//! Quiet: times as the API writes and reads them: RFC 3339, UTC.

use jiff::Timestamp;

/// None: further away than a calendar goes.
pub fn rfc3339(ms: i64) -> Option<String> {
    Timestamp::from_millisecond(ms).ok().map(|time| format!("{time:.3}"))
}

/// Milliseconds UTC.
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|time| time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_795_424_402_000).unwrap(), "2026-11-23T09:00:02.000Z");
        assert_eq!(parse("2026-11-23T10:00:02+01:00"), Some(1_795_424_402_000));
        assert_eq!((parse("yesterday"), rfc3339(i64::MAX)), (None, None));
    }
}
