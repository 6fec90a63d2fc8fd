//! Blocking: the one place that reads clocks and the time zone. Quiet cores receive what it read.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::{chance, ids::BootId};

/// Wall and boot clock, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// CLOCK_REALTIME: milliseconds UTC since 1970. Steps when somebody sets it.
    pub wall_ms: i64,
    /// CLOCK_BOOTTIME: milliseconds since the computer started, sleep included. Never steps.
    pub boot_ms: u64,
}

/// The time zone in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// IANA name, or `Etc/Unknown` when the system has only an offset.
    pub name: String,
    /// Local time minus UTC in seconds, now.
    pub offset_s: i32,
}

/// Where shells get the time from.
pub trait Clock: Send + Sync {
    fn now(&self) -> Reading;
    fn zone(&self) -> Zone;
    /// Which start of the computer `boot_ms` counts from.
    fn boot(&self) -> BootId;
}

/// The computer's own clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    boot: BootId,
}

impl SystemClock {
    /// Reads the boot id once: it is the kernel's for as long as the process can live.
    pub fn new() -> SystemClock {
        // Without it each start counts as a boot of its own: the hub then measures the clock once more, and nothing is mixed up.
        SystemClock { boot: kernel_boot_id().unwrap_or_else(|| BootId(chance::random_16())) }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Reading {
        let wall_ms = milliseconds(clock_gettime(ClockId::Realtime));
        let boot_ms = milliseconds(clock_gettime(ClockId::Boottime));
        Reading { wall_ms, boot_ms: boot_ms.max(0) as u64 }
    }

    fn zone(&self) -> Zone {
        let zone = jiff::tz::TimeZone::system();
        let now = jiff::Timestamp::from_millisecond(self.now().wall_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Zone { name: zone.iana_name().unwrap_or("Etc/Unknown").to_owned(), offset_s: zone.to_offset(now).seconds() }
    }

    fn boot(&self) -> BootId {
        self.boot
    }
}

fn kernel_boot_id() -> Option<BootId> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    text.trim().replace('-', "").parse().ok()
}

fn milliseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
}

/// A clock that stands until it is moved, for tests and simulation. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    now: Reading,
    zone: Zone,
    boot: BootId,
}

impl ManualClock {
    /// Stands at `now`, in UTC.
    pub fn new(now: Reading, boot: BootId) -> ManualClock {
        let zone = Zone { name: "Etc/UTC".to_owned(), offset_s: 0 };
        ManualClock { held: Arc::new(Mutex::new(Held { now, zone, boot })) }
    }

    /// Both clocks go on by `ms`, as time does.
    pub fn advance(&self, ms: u64) {
        self.change(|held| {
            held.now.boot_ms += ms;
            held.now.wall_ms += ms as i64;
        });
    }

    /// Somebody sets the wall clock; the boot clock doesn't notice.
    pub fn set_wall(&self, wall_ms: i64) {
        self.change(|held| held.now.wall_ms = wall_ms);
    }

    pub fn set_zone(&self, zone: Zone) {
        self.change(|held| held.zone = zone);
    }

    /// The computer starts again.
    pub fn reboot(&self, boot: BootId) {
        self.change(|held| {
            held.boot = boot;
            held.now.boot_ms = 0;
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Reading {
        self.change(|held| held.now)
    }

    fn zone(&self) -> Zone {
        self.change(|held| held.zone.clone())
    }

    fn boot(&self) -> BootId {
        self.change(|held| held.boot)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn both_clocks_of_the_system_go_on_together() {
        let clock = SystemClock::new();
        let before = clock.now();
        thread::sleep(Duration::from_millis(20));
        let after = clock.now();
        assert!(before.wall_ms > 1_700_000_000_000, "{before:?}");
        assert!(after.boot_ms - before.boot_ms >= 20, "{before:?} {after:?}");
        assert!(after.wall_ms - before.wall_ms >= 15, "{before:?} {after:?}");
    }

    #[test]
    fn the_boot_id_is_the_kernels() {
        let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(SystemClock::new().boot().to_string(), kernel.trim().replace('-', ""));
        assert_eq!(SystemClock::new().boot(), SystemClock::new().boot());
    }

    #[test]
    fn the_zone_has_a_name_and_a_possible_offset() {
        let zone = SystemClock::new().zone();
        assert!(!zone.name.is_empty());
        assert!(zone.offset_s.abs() <= 26 * 3_600, "{zone:?}");
    }

    #[test]
    fn setting_the_wall_clock_leaves_the_boot_clock_alone() {
        let clock = ManualClock::new(Reading { wall_ms: 1_000, boot_ms: 50 }, BootId([1; 16]));
        clock.advance(10);
        clock.set_wall(5);
        assert_eq!(clock.now(), Reading { wall_ms: 5, boot_ms: 60 });
        clock.reboot(BootId([2; 16]));
        assert_eq!((clock.now().boot_ms, clock.boot()), (0, BootId([2; 16])));
    }
}
