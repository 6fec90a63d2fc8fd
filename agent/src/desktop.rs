//! Blocking: everything on this computer that the collector asks, in one place.

use std::{env, io};

use crate::{
    bus::{Addresses, Buses, Inhibitors, Logind, Upower},
    collect::Senses,
    network::Interfaces,
    power::Batteries,
    x11,
};

/// Where a person's desktop is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desktop {
    /// As in ":0". None: what the environment's `DISPLAY` names.
    pub display: Option<String>,
    pub buses: Addresses,
}

impl Desktop {
    /// The one that this program was started in.
    pub fn here() -> Desktop {
        let session_id = env::var("XDG_SESSION_ID").ok().filter(|id| !id.is_empty());
        Desktop { display: None, buses: Addresses { session_id, ..Addresses::default() } }
    }

    /// Its senses; nothing is connected or looked at before they are asked.
    pub fn senses(self) -> io::Result<Senses> {
        let x11::Senses { window, idle, input } = x11::senses(self.display.as_deref());
        let buses = Buses::start(self.buses)?;
        Ok(Senses {
            window,
            idle,
            input,
            session: Box::new(Logind(buses.clone())),
            call: Box::new(Inhibitors(buses.clone())),
            power: Box::new(Batteries::new(Upower(buses))),
            addresses: Box::new(Interfaces::default()),
        })
    }
}
