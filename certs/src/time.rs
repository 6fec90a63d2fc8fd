//! Quiet: what time it is, as far as a node can know: its own clock's, unless that stands before something that its mesh has signed. An empty
//! battery says 1970, and a branch goes on working.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::issuer::BACKDATED_MS;
use crate::keys::now_ms;
use crate::material::Window;

/// A clock, and what is known to be past.
pub(crate) struct Known {
    clock: Arc<dyn TimeProvider>,
    /// The own certificate's validity: its beginning is past, because a CA has said so.
    began_ms: AtomicI64,
    end_ms: AtomicI64,
    /// When the hub signed what it signed last.
    signed_ms: AtomicI64,
}

impl Known {
    pub(crate) fn new(clock: Arc<dyn TimeProvider>, own: Window) -> Known {
        let signed_ms = AtomicI64::new(i64::MIN);
        Known { clock, began_ms: AtomicI64::new(own.start_ms), end_ms: AtomicI64::new(own.end_ms), signed_ms }
    }

    /// The own certificate is another one now.
    pub(crate) fn renewed(&self, own: Window) {
        self.began_ms.store(own.start_ms, Ordering::Relaxed);
        self.end_ms.store(own.end_ms, Ordering::Relaxed);
    }

    pub(crate) fn signed(&self, at_ms: i64) {
        self.signed_ms.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// What is past for certain, milliseconds UTC. A signature from beyond the own certificate's end is the mistake of a hub's clock: by it
    /// everybody's certificate would have ended.
    pub(crate) fn past_ms(&self) -> i64 {
        let (began_ms, signed_ms) = (self.began_ms.load(Ordering::Relaxed), self.signed_ms.load(Ordering::Relaxed));
        if signed_ms <= self.end_ms.load(Ordering::Relaxed) { began_ms.max(signed_ms) } else { began_ms }
    }

    /// The clock is wrong: it stands further behind than certificates are dated back.
    pub(crate) fn is_behind(&self) -> bool {
        now_ms(&*self.clock).saturating_add(BACKDATED_MS) < self.past_ms()
    }
}

impl TimeProvider for Known {
    fn current_time(&self) -> Option<UnixTime> {
        let past = Duration::from_millis(self.past_ms().max(0).unsigned_abs());
        let now = self.clock.current_time().map_or(Duration::ZERO, |now| Duration::from_secs(now.as_secs()));
        Some(UnixTime::since_unix_epoch(now.max(past)))
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("clock", &self.clock).field("past_ms", &self.past_ms()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;
    const NOW_MS: i64 = 1_800_000_000_000;

    #[derive(Debug)]
    struct Stands(i64);

    impl TimeProvider for Stands {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.unsigned_abs())))
        }
    }

    fn known(wall_ms: i64) -> Known {
        Known::new(Arc::new(Stands(wall_ms)), Window { start_ms: NOW_MS - DAY_MS, end_ms: NOW_MS + 29 * DAY_MS })
    }

    #[test]
    fn a_right_clock_counts() {
        for off_ms in [0, 10 * 60_000, -10 * 60_000] {
            let known = known(NOW_MS + off_ms);
            known.signed(NOW_MS - DAY_MS);
            assert_eq!((now_ms(&known), known.is_behind()), (NOW_MS + off_ms, false));
        }
    }

    #[test]
    fn a_clock_that_stands_in_1970_counts_as_what_was_signed_last() {
        let known = known(0);
        assert_eq!((now_ms(&known), known.is_behind()), (NOW_MS - DAY_MS, true));
        known.signed(NOW_MS);
        known.signed(NOW_MS - 5_000);
        assert_eq!((now_ms(&known), known.is_behind()), (NOW_MS, true));
        known.renewed(Window { start_ms: NOW_MS + DAY_MS, end_ms: NOW_MS + 31 * DAY_MS });
        assert_eq!(now_ms(&known), NOW_MS + DAY_MS);
    }

    #[test]
    fn a_hub_whose_clock_was_in_2100_once_ends_nobodys_certificate() {
        let known = known(NOW_MS);
        known.signed(4_102_444_800_000);
        assert_eq!((now_ms(&known), known.is_behind()), (NOW_MS, false));
    }
}
