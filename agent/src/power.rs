//! Blocking: the computer's power: by UPower where it runs, else as the kernel tells it; the only file that names the driver for that.

use muster_mesh::record::Battery;
use starship_battery::{Manager, State, units::energy::joule};

use crate::{
    bus::Upower,
    collect::sense::{Power, PowerSource, SenseError},
};

/// A percent lasts longer.
const LOOK_EVERY_MS: u64 = 10_000;

/// UPower's word, and the kernel's where there is none.
pub struct Batteries {
    upower: Upower,
    kernel: Kernel,
}

/// Read by ourselves.
#[derive(Debug, Default)]
struct Kernel {
    /// Boot clock of the last look, and what was seen.
    seen: Option<(u64, Power)>,
}

impl Batteries {
    pub fn new(upower: Upower) -> Batteries {
        Batteries { upower, kernel: Kernel::default() }
    }
}

impl PowerSource for Batteries {
    fn probe(&mut self) -> Result<(), SenseError> {
        self.upower.probe().or_else(|_| Manager::new().map(|_| ()).map_err(|error| unreadable(&error)))
    }

    fn power(&mut self, boot_ms: u64) -> Result<Power, SenseError> {
        self.upower.power().or_else(|_| self.kernel.power(boot_ms))
    }

    fn rest(&mut self) {
        self.upower.rest();
        self.kernel = Kernel::default();
    }
}

impl Kernel {
    fn power(&mut self, boot_ms: u64) -> Result<Power, SenseError> {
        if let Some((at_ms, power)) = self.seen
            && boot_ms.saturating_sub(at_ms) < LOOK_EVERY_MS
        {
            return Ok(power);
        }
        self.seen = None;
        let power = together(&read()?);
        self.seen = Some((boot_ms, power));
        Ok(power)
    }
}

/// One of possibly several batteries.
#[derive(Debug, Clone, Copy)]
struct Cell {
    joules: f32,
    joules_full: f32,
    state: State,
}

fn read() -> Result<Vec<Cell>, SenseError> {
    let cells = Manager::new().and_then(|manager| manager.batteries()).map_err(|error| unreadable(&error))?;
    // One that can't be read is taken out just now.
    let cells = cells.filter_map(Result::ok).map(|battery| Cell {
        joules: battery.energy().get::<joule>(),
        joules_full: battery.energy_full().get::<joule>(),
        state: battery.state(),
    });
    Ok(cells.collect())
}

/// All batteries as one; none at all is a computer on AC.
fn together(cells: &[Cell]) -> Power {
    let (joules, full) = cells.iter().fold((0.0, 0.0), |sum, cell| (sum.0 + cell.joules, sum.1 + cell.joules_full));
    let discharging = cells.iter().any(|cell| matches!(cell.state, State::Discharging | State::Empty));
    let charging = cells.iter().any(|cell| cell.state == State::Charging);
    let percent = joules / full * 100.0;
    // Clamped to 0 to 100 it fits, whatever was read.
    let battery = percent.is_finite().then(|| Battery { percent: percent.clamp(0.0, 100.0).round() as u8, charging });
    Power { on_ac: !discharging, battery }
}

fn unreadable(error: &starship_battery::Error) -> SenseError {
    SenseError::NotSupported(format!("this computer's batteries can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(joules: f32, joules_full: f32, state: State) -> Cell {
        Cell { joules, joules_full, state }
    }

    #[test]
    fn no_battery_is_ac_and_several_are_one() {
        assert_eq!(together(&[]), Power { on_ac: true, battery: None });
        let one = together(&[cell(10.0, 100.0, State::Discharging)]);
        assert_eq!(one, Power { on_ac: false, battery: Some(Battery { percent: 10, charging: false }) });
        let two = together(&[cell(10.0, 100.0, State::Discharging), cell(300.0, 300.0, State::Full)]);
        assert_eq!(two, Power { on_ac: false, battery: Some(Battery { percent: 78, charging: false }) });
        let plugged = together(&[cell(50.0, 100.0, State::Charging)]);
        assert_eq!(plugged, Power { on_ac: true, battery: Some(Battery { percent: 50, charging: true }) });
        assert_eq!(together(&[cell(0.0, 0.0, State::Unknown)]), Power { on_ac: true, battery: None });
    }

    #[test]
    fn this_computers_batteries_are_read_every_ten_seconds() {
        let mut kernel = Kernel::default();
        let Ok(first) = kernel.power(1_000) else {
            println!("skipped: this system shows no power supplies");
            return;
        };
        let kept = Power { on_ac: !first.on_ac, battery: None };
        kernel.seen = Some((1_000, kept));
        assert_eq!(kernel.power(10_999), Ok(kept));
        assert_eq!(kernel.power(11_000).map(|power| power.on_ac), Ok(first.on_ac));
    }
}
