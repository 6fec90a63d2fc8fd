//! Quiet: who is there now, as the relays' snapshots say. Only shown, never counted; a restart forgets it.
//!
//! Of two relays that show the same device the higher dial counts; a lower one counts after 45 s without a sign of the higher. A relay that
//! misses its turn for 45 s shows nobody any more: "no signal", whatever its backlog says. A snapshot of changes whose number isn't the next
//! is taken as far as it goes: what it lacks comes with the next full one.

use std::collections::HashMap;

use muster_mesh::{
    batch::Tail,
    ids::DeviceId,
    limits,
    message::{Presence, Snapshot},
    record::State,
};

/// Devices shown at one relay; more are left out.
const DEVICES_MAX: usize = 50_000;

#[derive(Debug, Default)]
pub struct Presences {
    relays: HashMap<String, AtRelay>,
}

#[derive(Debug, Default)]
struct AtRelay {
    number: u64,
    seen_ms: i64,
    devices: HashMap<DeviceId, Presence>,
}

/// A device as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub relay: String,
    pub state: State,
    pub since_ms: i64,
    /// The last snapshot of its relay.
    pub seen_ms: i64,
    /// False: "no signal".
    pub signal: bool,
    pub tails: Vec<Tail>,
}

impl Presences {
    /// A relay's snapshot came at `now_ms`.
    pub fn take(&mut self, relay: &str, snapshot: &Snapshot, now_ms: i64) {
        let at_relay = self.relays.entry(relay.to_owned()).or_default();
        at_relay.seen_ms = now_ms;
        if snapshot.full {
            at_relay.devices.clear();
        } else if snapshot.number <= at_relay.number {
            // It overtook a newer one, or repeats one.
            return;
        }
        at_relay.number = snapshot.number;
        for device in &snapshot.gone {
            at_relay.devices.remove(device);
        }
        for presence in &snapshot.devices {
            if at_relay.devices.len() < DEVICES_MAX || at_relay.devices.contains_key(&presence.device) {
                at_relay.devices.insert(presence.device, presence.clone());
            }
        }
    }

    /// Where a device is shown. None: at no relay since the hub started.
    pub fn of(&self, device: DeviceId, now_ms: i64) -> Option<Shown> {
        let silence_ms = limits::PRESENCE_SILENCE.as_millis() as i64;
        let has_signal = |at: &AtRelay| now_ms.saturating_sub(at.seen_ms) < silence_ms;
        let shown = self.relays.iter().filter_map(|(relay, at)| at.devices.get(&device).map(|presence| (relay, at, presence)));
        // One with a signal comes before any without; then the dial alone decides.
        let (relay, at, presence) = shown.max_by_key(|(relay, at, presence)| (has_signal(at), presence.dial, std::cmp::Reverse(*relay)))?;
        Some(Shown {
            relay: relay.clone(),
            state: presence.state,
            since_ms: presence.since_ms,
            seen_ms: at.seen_ms,
            signal: has_signal(at),
            tails: presence.tails.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId([7; 16]);

    #[test]
    fn the_higher_dial_counts_until_it_was_silent_for_45_seconds() {
        let mut presences = Presences::default();
        presences.take("a", &full(1, 10, State::Active), 0);
        presences.take("b", &full(1, 9, State::Idle), 1_000);
        assert_eq!(shown(&presences, 44_000), ("a".into(), State::Active, true));
        assert_eq!(shown(&presences, 45_000), ("b".into(), State::Idle, true));
        assert_eq!(shown(&presences, 46_000), ("a".into(), State::Active, false));
    }

    #[test]
    fn changes_and_goodbyes_change_what_is_shown_and_late_ones_do_not() {
        let mut presences = Presences::default();
        presences.take("a", &full(5, 1, State::Active), 0);
        presences.take("a", &changes(4, State::Idle), 0);
        assert_eq!(shown(&presences, 0).1, State::Active);
        presences.take("a", &changes(8, State::Locked), 0);
        assert_eq!(shown(&presences, 0).1, State::Locked);
        presences.take("a", &Snapshot { number: 9, full: false, devices: Vec::new(), gone: vec![DEVICE] }, 0);
        assert_eq!(presences.of(DEVICE, 0), None);
    }

    fn shown(presences: &Presences, now_ms: i64) -> (String, State, bool) {
        let shown = presences.of(DEVICE, now_ms).unwrap();
        (shown.relay, shown.state, shown.signal)
    }

    fn full(number: u64, dial: u64, state: State) -> Snapshot {
        let presence = Presence { device: DEVICE, dial, state, since_ms: 0, tails: Vec::new() };
        Snapshot { number, full: true, devices: vec![presence], gone: Vec::new() }
    }

    fn changes(number: u64, state: State) -> Snapshot {
        Snapshot { full: false, ..full(number, 1, state) }
    }
}
