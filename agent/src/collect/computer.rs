//! Quiet: the computer around the person: locked, asleep, low on battery. While one of them holds, no other sense is asked.
//!
//! Sleep is told by logind where it is, and noticed by the clocks everywhere. Both see the same sleep, in any order, and one pair is told.

use muster_mesh::{
    clock::Reading,
    record::{Battery, Kind, Record, Session, State},
};

use super::sense::{ComputerSight, Power};

/// Below it observing pauses: it isn't worth the last minutes of somebody's work.
const PAUSES_BELOW_PERCENT: u8 = 15;
/// Above it, or on AC, observing resumes: some way off, so that it doesn't flicker.
const RESUMES_ABOVE_PERCENT: u8 = 20;
/// After a sleep that the clocks noticed, word of the same sleep may still arrive for so long.
const LATE_WORD_MS: u64 = 5_000;

/// What was seen last, and what of it was told.
#[derive(Debug, Default)]
pub struct Computer {
    locked: bool,
    sleeping: bool,
    power: Option<Power>,
    is_low: bool,
    told_locked: bool,
    /// When the `Suspend` was made that has no `Resume` yet.
    asleep_since: Option<Reading>,
    /// Boot clock of the tick after a sleep that the clocks noticed.
    woke_ms: Option<u64>,
}

impl Computer {
    /// Takes what can be seen now; `jumped`: the clocks noticed a sleep before this tick.
    pub fn see(&mut self, now: Reading, jumped: bool, sight: ComputerSight) {
        if jumped {
            self.woke_ms = Some(now.boot_ms);
        }
        let session = sight.session.unwrap_or_default();
        self.locked = session.locked;
        self.sleeping = session.sleeping && !self.is_late_word(now);
        self.power = sight.power;
        self.is_low = self.power.is_some_and(|power| power.is_low(self.is_low));
    }

    /// Word of a sleep that is over and told.
    fn is_late_word(&self, now: Reading) -> bool {
        let after_ms = self.woke_ms.map(|woke_ms| now.boot_ms.saturating_sub(woke_ms));
        self.asleep_since.is_none() && after_ms.is_some_and(|after_ms| after_ms < LATE_WORD_MS)
    }

    /// The state that it forces. None: the other senses may be asked.
    pub fn holds(&self) -> Option<State> {
        match (self.sleeping, self.locked, self.is_low) {
            (true, _, _) => Some(State::Asleep),
            (_, true, _) => Some(State::Locked),
            (_, _, true) => Some(State::BatteryLow),
            (false, false, false) => None,
        }
    }

    pub fn power(&self) -> Option<Power> {
        self.power
    }

    pub fn battery(&self) -> Option<Battery> {
        self.power.and_then(|power| power.battery)
    }

    /// A record, if this sleep wasn't told yet.
    pub fn falls_asleep(&mut self, at: Reading) -> Option<Record> {
        if self.asleep_since.is_some() {
            return None;
        }
        self.asleep_since = Some(at);
        Some(session(at, Session::Suspend))
    }

    /// It is awake. A record, if it was told to be asleep.
    pub fn wakes(&mut self, now: Reading) -> Option<Record> {
        let since = self.asleep_since.take()?;
        Some(session(now, Session::Resume { slept_ms: now.boot_ms.saturating_sub(since.boot_ms) }))
    }

    /// A record, if it was locked or unlocked since the last one.
    pub fn lock_news(&mut self, now: Reading) -> Option<Record> {
        if self.told_locked == self.locked {
            return None;
        }
        self.told_locked = self.locked;
        Some(session(now, if self.locked { Session::Lock } else { Session::Unlock }))
    }

    /// Nothing may be asked: what was seen is forgotten. When somebody woke the computer meanwhile is nobody's business.
    pub fn rest(&mut self) {
        *self = Computer { told_locked: self.told_locked, ..Computer::default() };
    }
}

impl Power {
    fn is_low(self, was_low: bool) -> bool {
        let Some(battery) = self.battery.filter(|_| !self.on_ac) else { return false };
        if was_low { battery.percent <= RESUMES_ABOVE_PERCENT } else { battery.percent < PAUSES_BELOW_PERCENT }
    }
}

fn session(at: Reading, session: Session) -> Record {
    Record { at: at.wall_ms, kind: Kind::Session(session) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::sense::SessionSight;

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: ms as i64, boot_ms: ms }
    }

    fn on_battery(percent: u8) -> ComputerSight {
        let power = Power { on_ac: false, battery: Some(Battery { percent, charging: false }) };
        ComputerSight { session: None, power: Some(power) }
    }

    #[test]
    fn a_battery_pauses_below_15_percent_and_resumes_above_20_or_on_ac() {
        let mut computer = Computer::default();
        let mut low = |sight| {
            computer.see(at(0), false, sight);
            computer.holds() == Some(State::BatteryLow)
        };
        let seen = [50, 15, 14, 15, 20, 21, 15, 14].map(|percent| low(on_battery(percent)));
        assert_eq!(seen, [false, false, true, true, true, false, false, true]);
        let charging = Power { on_ac: true, battery: Some(Battery { percent: 3, charging: true }) };
        assert!(!low(ComputerSight { session: None, power: Some(charging) }));
        assert!(low(on_battery(3)));
        assert!(!low(ComputerSight { session: None, power: Some(Power { on_ac: true, battery: None }) }), "no battery is AC");
    }

    #[test]
    fn sleep_comes_before_the_lock_and_the_lock_before_the_battery() {
        let mut computer = Computer::default();
        let mut held = |locked, sleeping| {
            computer.see(at(0), false, ComputerSight { session: Some(SessionSight { locked, sleeping }), ..on_battery(3) });
            computer.holds()
        };
        assert_eq!(held(true, true), Some(State::Asleep));
        assert_eq!(held(true, false), Some(State::Locked));
        assert_eq!(held(false, false), Some(State::BatteryLow));
    }
}
