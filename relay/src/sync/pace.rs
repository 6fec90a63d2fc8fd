//! Quiet: when the next POST of a lane is due: on time while all is well, later and later while the hub doesn't answer.

use std::time::Duration;

/// The first retry comes within this.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// No retry waits longer than this, the extra after a long outage aside.
const LONGEST: Duration = Duration::from_secs(60);
/// An outage of this length brings all branches back at once.
const LONG_OUTAGE_MS: u64 = 10 * 60 * 1_000;
/// So they spread over this.
const SPREAD: Duration = Duration::from_secs(120);
/// A hub doesn't know better than this when it will be well.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// One lane's retries.
#[derive(Debug, Clone)]
pub struct Pace {
    first: Duration,
    failures: u32,
    since_ms: Option<u64>,
}

impl Pace {
    /// The first retry comes within `first`, the next ones within twice as much each.
    pub fn new(first: Duration) -> Pace {
        Pace { first, failures: 0, since_ms: None }
    }

    /// The hub answered. True: it hadn't before.
    pub fn well(&mut self) -> bool {
        self.failures = 0;
        self.since_ms.take().is_some()
    }

    /// No answer, or none that took anything. How long to wait; `chance` are two numbers in [0, 1).
    pub fn failed(&mut self, now_ms: u64, retry_after: Option<Duration>, chance: [f64; 2]) -> Duration {
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let cap = LONGEST.min(self.first * 2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        // Full jitter, taken after the cap: behind it nobody meets.
        let mut wait = cap.mul_f64(chance[0]);
        if now_ms.saturating_sub(since_ms) > LONG_OUTAGE_MS {
            wait += SPREAD.mul_f64(chance[1]);
        }
        wait + retry_after.unwrap_or_default().min(RETRY_AFTER_MAX)
    }

    /// How often in a row it failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: [f64; 2] = [1.0, 1.0];

    #[test]
    fn retries_wait_up_to_twice_as_long_each_time_and_never_more_than_a_minute() {
        let mut pace = Pace::new(FIRST_RETRY);
        let waits: Vec<u64> = (0..8).map(|_| pace.failed(0, None, MOST).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pace.failed(0, None, [0.5, 0.0]).as_secs(), 30);
        assert!(pace.well() && !pace.well());
        assert_eq!(pace.failed(0, None, MOST).as_secs(), 1);
    }

    #[test]
    fn after_ten_minutes_branches_spread_over_two_more() {
        let mut pace = Pace::new(FIRST_RETRY);
        pace.failed(1_000, None, MOST);
        assert!(pace.failed(1_000 + LONG_OUTAGE_MS, None, MOST).as_secs() <= 60);
        assert_eq!(pace.failed(1_001 + LONG_OUTAGE_MS, None, [0.0, 0.5]).as_secs(), 60);
        assert_eq!(pace.failed(1_001 + LONG_OUTAGE_MS, None, [0.0, 1.0]).as_secs(), 120);
    }

    #[test]
    fn retry_after_is_never_undercut() {
        let mut pace = Pace::new(FIRST_RETRY);
        assert_eq!(pace.failed(0, Some(Duration::from_secs(30)), [0.0, 0.0]).as_secs(), 30);
        assert!(pace.failed(0, Some(Duration::from_secs(90_000)), MOST).as_secs() <= 3_602);
    }
}
