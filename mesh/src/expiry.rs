//! Async: until when certificates are good, for monitoring: `muster_cert_expiry_timestamp_seconds{role}`, in seconds since 1970.

use std::{sync::Arc, time::Duration};

use muster_certs::Keys;
use tokio_util::sync::CancellationToken;

/// More often than anybody scrapes.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The end of one certificate. `role`: `hub`, `relay`, `agent`, `issuing`, `root`, `web`.
pub fn tell(role: &'static str, not_after_ms: i64) {
    metrics::gauge!("muster_cert_expiry_timestamp_seconds", "role" => role).set(not_after_ms.div_euclid(1_000) as f64);
}

/// A program's own certificate, and the root that ends first.
pub fn tell_keys(keys: &Keys) {
    tell(keys.role().as_str(), keys.not_after_ms());
    tell("root", keys.roots_end_ms());
}

/// Goes on telling until `stop`: certificates change while a program runs.
pub async fn keep_telling(keys: Arc<Keys>, stop: CancellationToken) {
    let mut every = tokio::time::interval(TELL_EVERY);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        tell_keys(&keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    #[test]
    fn the_end_is_told_in_whole_seconds() {
        let status = Status::install();
        tell("web", 1_800_000_000_999);
        let text = status.text();
        assert!(text.contains("muster_cert_expiry_timestamp_seconds{role=\"web\"} 1800000000\n"), "{text}");
    }
}
