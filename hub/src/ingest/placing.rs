//! Quiet: when something happened, as well as the hub can tell. It never rewrites an observed time: the *placed* one is at + shift of its
//! batch, and retention and days go by it.

use muster_mesh::batch::Head;

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
pub const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// What a clock beyond all calendars gives: a day's number has 32 bits in the database.
const DAY_MIN: i64 = i32::MIN as i64;
const DAY_MAX: i64 = i32::MAX as i64;

/// Below this a difference of clocks is left alone.
const SHIFT_MIN_MS: i64 = 60 * SECOND_MS;
/// A clock that is further off than this is wrong.
const CLOCK_OFF_MS: i64 = 10 * MINUTE_MS;

/// Why a batch's times are shifted, or are marked though they are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShiftWhy {
    /// Its clock agrees, or nobody ever measured it and it is plausible.
    None,
    /// The agent's wall clock was measured by a relay, against its boot clock.
    Measured,
    /// Never measured and not plausible: as if it were closed when the relay received it.
    Receipt,
    /// The relay's own clock is off: nothing that it measured counts.
    RelayClock,
}

impl ShiftWhy {
    pub const ALL: [ShiftWhy; 4] = [ShiftWhy::None, ShiftWhy::Measured, ShiftWhy::Receipt, ShiftWhy::RelayClock];

    pub fn number(self) -> i64 {
        self as i64
    }

    pub fn of(number: i64) -> Option<ShiftWhy> {
        ShiftWhy::ALL.get(usize::try_from(number).ok()?).copied()
    }

    pub fn name(self) -> &'static str {
        match self {
            ShiftWhy::None => "none",
            ShiftWhy::Measured => "measured",
            ShiftWhy::Receipt => "receipt",
            ShiftWhy::RelayClock => "relay_clock",
        }
    }
}

/// Where a batch lies in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub shift_ms: i64,
    pub why: ShiftWhy,
    /// Days since 1970-01-01 UTC of its placed wall clock: the same in all its rows, fixed at the first insert.
    pub day: i64,
}

impl Placed {
    /// The placed time of something observed at `at`.
    pub fn time(&self, at: i64) -> i64 {
        at.saturating_add(self.shift_ms)
    }

    /// Whether anything in it may be too old: not where nobody's clock is to be trusted.
    pub fn may_expire(&self) -> bool {
        self.why != ShiftWhy::RelayClock
    }
}

/// Whether what a relay measured counts: its clock agrees with the hub's, and it didn't receive this in its own future.
pub fn is_trusted(relay_ms: i64, receipt_ms: i64, now_ms: i64) -> bool {
    relay_ms.saturating_sub(now_ms).saturating_abs() <= CLOCK_OFF_MS && receipt_ms <= relay_ms
}

/// Places a batch. `zero_ms` is the first measurement of its boot (UTC − boot clock), if there is one; `trusted` as [`is_trusted`] says;
/// `ceiling_ms` the longest retention of a kind.
pub fn place(head: &Head, receipt_ms: i64, zero_ms: Option<i64>, trusted: bool, ceiling_ms: i64) -> Placed {
    let (shift_ms, why) = if !trusted {
        (0, ShiftWhy::RelayClock)
    } else {
        match zero_ms {
            Some(zero_ms) => measured(zero_ms.saturating_add_unsigned(head.boot_ms).saturating_sub(head.wall_ms)),
            None if is_plausible(head.wall_ms, receipt_ms, ceiling_ms) => (0, ShiftWhy::None),
            None => (receipt_ms.saturating_sub(head.wall_ms), ShiftWhy::Receipt),
        }
    };
    let day = head.wall_ms.saturating_add(shift_ms).div_euclid(DAY_MS);
    Placed { shift_ms, why, day: day.clamp(DAY_MIN, DAY_MAX) }
}

fn measured(shift_ms: i64) -> (i64, ShiftWhy) {
    if shift_ms.saturating_abs() < SHIFT_MIN_MS { (0, ShiftWhy::None) } else { (shift_ms, ShiftWhy::Measured) }
}

fn is_plausible(wall_ms: i64, receipt_ms: i64, ceiling_ms: i64) -> bool {
    wall_ms > receipt_ms.saturating_sub(ceiling_ms) && wall_ms < receipt_ms.saturating_add(CLOCK_OFF_MS)
}

#[cfg(test)]
mod tests {
    use muster_mesh::ids::BootId;

    use super::*;

    const NOW: i64 = 1_795_424_402_000;
    const CEILING: i64 = 45 * DAY_MS;

    #[test]
    fn a_clock_that_is_an_hour_slow_is_put_right_by_the_first_measurement() {
        let slow = head(NOW - 3_600_000, 500);
        assert_eq!(place(&slow, NOW, Some(NOW - 500), true, CEILING), placed(3_600_000, ShiftWhy::Measured, NOW));
        let good = head(NOW - 59_000, 500);
        assert_eq!(place(&good, NOW, Some(NOW - 500), true, CEILING), placed(0, ShiftWhy::None, NOW - 59_000));
    }

    #[test]
    fn a_boot_that_nobody_measured_is_believed_while_it_is_plausible() {
        for (wall_ms, shift_ms, why) in [
            (NOW - 44 * DAY_MS, 0, ShiftWhy::None),
            (NOW + 9 * MINUTE_MS, 0, ShiftWhy::None),
            (NOW - 46 * DAY_MS, 46 * DAY_MS, ShiftWhy::Receipt),
            (NOW + 11 * MINUTE_MS, -11 * MINUTE_MS, ShiftWhy::Receipt),
            (0, NOW, ShiftWhy::Receipt),
        ] {
            assert_eq!(place(&head(wall_ms, 7), NOW, None, true, CEILING), placed(shift_ms, why, wall_ms + shift_ms));
        }
    }

    #[test]
    fn nothing_measured_by_a_relay_with_a_wrong_clock_counts() {
        assert!(is_trusted(NOW - 9 * MINUTE_MS, NOW - 10 * MINUTE_MS, NOW));
        assert!(!is_trusted(NOW - 11 * MINUTE_MS, NOW - 12 * MINUTE_MS, NOW));
        assert!(!is_trusted(NOW, NOW + 1, NOW));
        let placed = place(&head(0, 7), NOW, Some(NOW), false, CEILING);
        assert_eq!((placed.shift_ms, placed.why, placed.may_expire()), (0, ShiftWhy::RelayClock, false));
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        for wall_ms in [i64::MIN, i64::MAX] {
            for zero_ms in [None, Some(i64::MIN), Some(i64::MAX)] {
                for trusted in [true, false] {
                    let placed = place(&head(wall_ms, u64::MAX >> 1), NOW, zero_ms, trusted, CEILING);
                    placed.time(wall_ms);
                    assert!(i32::try_from(placed.day).is_ok(), "{placed:?}");
                }
            }
        }
    }

    fn head(wall_ms: i64, boot_ms: u64) -> Head {
        Head { boot: BootId([3; 16]), wall_ms, boot_ms, zone: "Europe/Oslo".into(), offset_s: 3_600, tails: Vec::new() }
    }

    fn placed(shift_ms: i64, why: ShiftWhy, wall_ms: i64) -> Placed {
        Placed { shift_ms, why, day: wall_ms.div_euclid(DAY_MS) }
    }
}
