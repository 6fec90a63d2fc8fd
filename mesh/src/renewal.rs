//! Quiet: when a certificate is renewed: at half of its life, a tenth more or less, by the wall clock; soon, when another CA issues. Time and
//! chance are arguments.

use std::time::Duration;

use muster_certs::issuer::BACKDATED_MS;

use crate::clock::Reading;

/// However long a certificate lives, it is looked at this often: a laptop's clock may have been set.
const CHECK_EVERY_MAX: Duration = Duration::from_secs(60);
/// However short a certificate lives, nobody looks, and nobody asks again, more often.
pub const CHECK_EVERY_MIN: Duration = Duration::from_secs(1);
/// A certificate's life is looked at so often.
const CHECKS: u32 = 20;

/// A certificate is renewed when so much of its life has passed …
const RENEW_FROM: f64 = 0.4;
/// … and a random part of so much.
const RENEW_WITHIN: f64 = 0.2;

/// From one second on that is more than a minute.
const DOUBLINGS_MAX: u32 = 6;

/// Once another CA issues, a mesh has its new certificates after this: long enough that its members don't all ask at the same time.
const MOVE_WITHIN_MS: i64 = 3_600_000;

/// A certificate's life, from its issue on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub issued_ms: i64,
    pub end_ms: i64,
}

impl Life {
    /// By our profile a certificate begins ten minutes before its issue.
    pub fn of(not_before_ms: i64, not_after_ms: i64) -> Life {
        Life { issued_ms: not_before_ms.saturating_add(BACKDATED_MS).min(not_after_ms), end_ms: not_after_ms }
    }

    fn length_ms(self) -> i64 {
        self.end_ms.saturating_sub(self.issued_ms).max(0)
    }

    /// When to renew, milliseconds UTC. `chance` in [0, 1): so that what was issued together isn't renewed together.
    pub fn renew_ms(self, chance: f64) -> i64 {
        self.issued_ms.saturating_add((self.length_ms() as f64 * (RENEW_FROM + RENEW_WITHIN * chance)) as i64)
    }

    /// When to renew because another CA issues by now, milliseconds UTC. `chance` in [0, 1).
    pub fn move_ms(self, now_ms: i64, chance: f64) -> i64 {
        let within_ms = (self.length_ms() / i64::from(CHECKS)).min(MOVE_WITHIN_MS);
        now_ms.saturating_add((within_ms as f64 * chance) as i64)
    }

    /// From when on a renewal that was due is late enough to be told of, milliseconds UTC.
    pub fn late_ms(self, due_ms: i64) -> i64 {
        due_ms.saturating_add(self.length_ms() / 10)
    }

    /// How often to look whether it is time, at least.
    pub fn check_every(self) -> Duration {
        (Duration::from_millis(self.length_ms().unsigned_abs()) / CHECKS).clamp(CHECK_EVERY_MIN, CHECK_EVERY_MAX)
    }

    /// When to ask again after so many failures in a row: as often as one looks, so that a certificate which lives is renewed in time; ever more
    /// seldom once it has ended.
    pub fn retry_after(self, failures: u32, now_ms: i64) -> Duration {
        let doublings = if now_ms > self.end_ms { failures.saturating_sub(1).min(DOUBLINGS_MAX) } else { 0 };
        (self.check_every() * 2u32.pow(doublings)).min(CHECK_EVERY_MAX)
    }

    /// Whether the certificate, which came at `came`, is old enough to be replaced. By the clock that says more: the wall clock may be set, and
    /// the boot clock stands still where a virtual machine does. A wall clock that stands far ahead finds every new certificate old.
    pub fn has_rested(self, came: Reading, now: Reading) -> bool {
        let by_wall_ms = now.wall_ms.saturating_sub(came.wall_ms).max(0).unsigned_abs();
        let by_boot_ms = now.boot_ms.saturating_sub(came.boot_ms);
        by_wall_ms.max(by_boot_ms) >= (self.length_ms() as f64 * RENEW_FROM) as u64
    }
}

/// What time it is at least: a wall clock that stands before what is past for certain is wrong, and the boot clock counts on from there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reckoning {
    past_ms: i64,
    /// When that was learned.
    boot_ms: u64,
}

impl Reckoning {
    /// Milliseconds UTC. `past_ms`: what is past for certain by now.
    pub fn now_ms(&mut self, now: Reading, past_ms: i64) -> i64 {
        if past_ms > self.past_ms {
            *self = Reckoning { past_ms, boot_ms: now.boot_ms };
        }
        let since = now.boot_ms.saturating_sub(self.boot_ms);
        now.wall_ms.max(self.past_ms.saturating_add_unsigned(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    #[test]
    fn a_certificate_is_renewed_around_half_of_its_life() {
        let life = Life::of(-BACKDATED_MS, 30 * DAY_MS);
        assert_eq!(life.renew_ms(0.5), 15 * DAY_MS);
        assert_eq!(life.renew_ms(0.0), 12 * DAY_MS);
        assert!(life.renew_ms(0.999_999) < 18 * DAY_MS);
        assert_eq!(life.check_every(), Duration::from_secs(60));
    }

    #[test]
    fn when_another_ca_issues_everybody_moves_within_an_hour_and_not_at_once() {
        let life = Life::of(-BACKDATED_MS, 30 * DAY_MS);
        assert_eq!((life.move_ms(7, 0.0), life.move_ms(7, 0.5)), (7, 1_800_007));
        assert_eq!(Life::of(-BACKDATED_MS, 20_000).move_ms(7, 0.5), 507);
    }

    #[test]
    fn a_certificate_of_seconds_is_looked_at_in_time() {
        let life = Life::of(1_000_000 - BACKDATED_MS, 1_020_000);
        assert_eq!(life.check_every(), Duration::from_secs(1));
        assert!((1_008_000..1_012_000).contains(&life.renew_ms(0.3)));
    }

    #[test]
    fn one_that_lives_no_time_is_renewed_at_once_and_does_not_spin() {
        let life = Life::of(5_000, 5_000);
        assert_eq!((life.renew_ms(0.7), life.check_every()), (5_000, Duration::from_secs(1)));
    }

    #[test]
    fn who_fails_asks_on_while_the_certificate_lives_and_ever_more_seldom_once_it_has_ended() {
        let seconds = |life: Life, now_ms| [1, 2, 3, 6, 7, 8, u32::MAX].map(|failures| life.retry_after(failures, now_ms).as_secs());
        let short = Life::of(1_000_000 - BACKDATED_MS, 1_020_000);
        assert_eq!(seconds(short, 1_020_000), [1; 7]);
        assert_eq!(seconds(short, 1_020_001), [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(seconds(Life::of(5_000, 5_000), 6_000), [1, 2, 4, 32, 60, 60, 60]);
        let usual = Life::of(-BACKDATED_MS, 30 * DAY_MS);
        assert_eq!((seconds(usual, 0), seconds(usual, 31 * DAY_MS)), ([60; 7], [60; 7]));
    }

    #[test]
    fn a_new_certificate_rests_by_whichever_clock_has_gone_on() {
        let life = Life::of(-BACKDATED_MS, 30 * DAY_MS);
        let at = |wall_days: i64, boot_days: u64| Reading { wall_ms: wall_days * DAY_MS, boot_ms: boot_days * 86_400_000 };
        let came = at(40, 100);
        for (wall_days, boot_days, has_rested) in
            [(40, 100, false), (51, 111, false), (52, 100, true), (40, 112, true), (2, 101, false), (2, 112, true)]
        {
            assert_eq!(life.has_rested(came, at(wall_days, boot_days)), has_rested, "{wall_days} {boot_days}");
        }
    }

    #[test]
    fn a_dead_clock_is_counted_on_from_what_is_past_for_certain() {
        let mut reckoning = Reckoning::default();
        let at = |wall_ms, boot_ms| Reading { wall_ms, boot_ms };
        assert_eq!(reckoning.now_ms(at(5_000, 1_000), 100 * DAY_MS), 100 * DAY_MS);
        assert_eq!(reckoning.now_ms(at(65_000, 61_000), 100 * DAY_MS), 100 * DAY_MS + 60_000);
        // Something newer was signed, and then somebody sets the clock.
        assert_eq!(reckoning.now_ms(at(70_000, 66_000), 101 * DAY_MS), 101 * DAY_MS);
        assert_eq!(reckoning.now_ms(at(102 * DAY_MS, 67_000), 101 * DAY_MS), 102 * DAY_MS);
    }
}
