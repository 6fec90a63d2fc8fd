//! Quiet: a pause that the person asked for, and what of it was told. It outlives the program, so it knows its time by two clocks.

use muster_mesh::{clock::Reading, ids::BootId};
use serde::{Deserialize, Serialize};

/// A moment, by both clocks of one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub boot: BootId,
    pub boot_ms: u64,
    pub wall_ms: i64,
}

/// A wish for a pause. None as length: until the person resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub since: Mark,
    pub for_ms: Option<u64>,
}

/// All that is kept about pauses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pausing {
    pub asked: Option<Asked>,
    /// When the `Pause` record was made that has no `Unpause` yet.
    pub told: Option<Mark>,
}

impl Mark {
    pub fn new(now: Reading, boot: BootId) -> Mark {
        Mark { boot, boot_ms: now.boot_ms, wall_ms: now.wall_ms }
    }

    /// By the boot clock, which nobody sets; over a restart of the computer only the wall clock knows.
    pub fn elapsed_ms(&self, now: Reading, boot: BootId) -> u64 {
        if self.boot == boot {
            now.boot_ms.saturating_sub(self.boot_ms)
        } else {
            u64::try_from(now.wall_ms.saturating_sub(self.wall_ms)).unwrap_or(0)
        }
    }
}

impl Asked {
    /// None: no end was named. 0: it is over.
    pub fn left_ms(&self, now: Reading, boot: BootId) -> Option<u64> {
        self.for_ms.map(|for_ms| for_ms.saturating_sub(self.since.elapsed_ms(now, boot)))
    }
}

impl Pausing {
    /// Without an end, from now on.
    pub fn until_resumed(now: Reading, boot: BootId) -> Pausing {
        Pausing { asked: Some(Asked { since: Mark::new(now, boot), for_ms: None }), told: None }
    }

    pub fn is_on(&self, now: Reading, boot: BootId) -> bool {
        self.asked.is_some_and(|asked| asked.left_ms(now, boot) != Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);

    fn at(wall_ms: i64, boot_ms: u64) -> Reading {
        Reading { wall_ms, boot_ms }
    }

    #[test]
    fn setting_the_clock_does_not_end_a_pause() {
        let asked = Asked { since: Mark::new(at(1_000, 50), BOOT), for_ms: Some(600) };
        let pausing = Pausing { asked: Some(asked), told: None };
        assert!(pausing.is_on(at(999_999, 649), BOOT));
        assert!(!pausing.is_on(at(0, 650), BOOT));
    }

    #[test]
    fn a_pause_goes_on_over_a_restart_of_the_computer() {
        let asked = Asked { since: Mark::new(at(1_000, 50_000), BOOT), for_ms: Some(600) };
        let other = BootId([2; 16]);
        assert_eq!(asked.left_ms(at(1_200, 3), other), Some(400));
        assert_eq!(asked.left_ms(at(1_600, 3), other), Some(0));
        assert_eq!(asked.left_ms(at(0, 3), other), Some(600), "a clock set back makes it longer, never shorter");
        assert!(Pausing::until_resumed(at(0, 0), BOOT).is_on(at(i64::MAX, u64::MAX), BOOT));
    }
}
