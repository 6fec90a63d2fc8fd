//! Quiet: a relay's connected agents: what each is told, what is asked for them at the hub, and who is present.
//!
//! A relay remembers nothing about anyone who isn't connected, except by its segments. Each outlet is polled on its own and holds at most one
//! thing per connection and spool, so that a client that never reads blocks nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    batch::Tail,
    ids::{DeviceId, Lane, SpoolId, Version},
    limits,
    message::{Ack, Ask, Down, HeldVersion, Hello, LaneState, Presence, ReturnReason, Returned, Signed, SignedKind, Snapshot, StateNow},
    record::State,
};

/// One connection, numbered by the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// All connections of one relay.
#[derive(Debug, Clone, Default)]
pub struct RelaySide {
    connections: BTreeMap<ConnectionId, Connection>,
    by_device: BTreeMap<DeviceId, ConnectionId>,
    /// The newest of each (kind, device), acks excepted; passed on to whoever holds an older one.
    signed: BTreeMap<(u8, Option<DeviceId>), (Version, Bytes)>,
    /// Asks take turns: the last (connection, spool) that was asked for.
    asked: Option<(ConnectionId, SpoolId)>,
    snapshot: u64,
    changed: BTreeSet<DeviceId>,
    gone: BTreeSet<DeviceId>,
    snapshot_full: bool,
}

#[derive(Debug, Clone)]
struct Connection {
    device: DeviceId,
    dial: u64,
    state: StateNow,
    /// Spools with something held, by its first held number.
    holding: BTreeMap<SpoolId, u64>,
    committed: [u64; 2],
    acked: [u64; 2],
    lanes: [(LaneState, LaneState); 2],
    /// The newest ack of the hub per spool, overwritten.
    acks: BTreeMap<SpoolId, Bytes>,
    returned: VecDeque<Returned>,
    /// Signed messages that this agent holds an older version of.
    news: BTreeMap<(u8, Option<DeviceId>), Bytes>,
    held: BTreeMap<u8, Version>,
}

impl RelaySide {
    /// The numbers of presence snapshots start here: a value that rises over restarts, such as the clock.
    pub fn new(first_snapshot: u64) -> Self {
        RelaySide { snapshot: first_snapshot, snapshot_full: true, ..Self::default() }
    }

    // --- connections ---

    /// An agent said hello. Returns the device's older connection, which ends once its inbox is committed.
    pub fn hello(&mut self, id: ConnectionId, device: DeviceId, hello: &Hello, now_ms: i64) -> Option<ConnectionId> {
        let holding = hello.tails.iter().filter(|tail| tail.first_held < tail.next).map(|tail| (tail.spool, tail.first_held)).collect();
        let held: BTreeMap<u8, Version> = hello.versions.iter().map(|held| (held.kind, held.version)).collect();
        let mut connection = Connection {
            device,
            dial: hello.dial,
            state: StateNow { state: State::Active, since_ms: now_ms, tails: Vec::new() },
            holding,
            committed: [0; 2],
            acked: [0; 2],
            lanes: [(LaneState::Open, LaneState::Open); 2],
            acks: BTreeMap::new(),
            returned: VecDeque::new(),
            news: BTreeMap::new(),
            held,
        };
        for (&key, (version, bytes)) in &self.signed {
            connection.offer(key, *version, bytes);
        }
        self.connections.insert(id, connection);
        let older = self.by_device.insert(device, id).filter(|older| *older != id);
        self.gone.remove(&device);
        self.changed.insert(device);
        older
    }

    pub fn gone(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if self.by_device.get(&connection.device) == Some(&id) {
            self.by_device.remove(&connection.device);
            self.changed.remove(&connection.device);
            self.gone.insert(connection.device);
        }
    }

    /// The connection that speaks for a device.
    pub fn connection_of(&self, device: DeviceId) -> Option<ConnectionId> {
        self.by_device.get(&device).copied()
    }

    /// The lanes as a Welcome says them now: from here on only changes are told.
    pub fn welcomed(&mut self, id: ConnectionId) -> [LaneState; 2] {
        let Some(connection) = self.connections.get_mut(&id) else { return [LaneState::Open; 2] };
        connection.lanes.each_mut().map(|(now, told)| {
            *told = *now;
            *now
        })
    }

    /// Whether policy lets the addresses of a device be noted.
    pub fn network_is_on(&self, device: DeviceId) -> bool {
        let kind = SignedKind::Policy.as_u8();
        let policy = self.signed.get(&(kind, Some(device))).or_else(|| self.signed.get(&(kind, None)));
        policy.and_then(|(_, bytes)| Signed::read(bytes).ok()).is_some_and(|signed| signed.flags & FLAG_NETWORK_ON != 0)
    }

    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, DeviceId)> + '_ {
        self.connections.iter().map(|(&id, connection)| (id, connection.device))
    }

    /// How the device that is connected here shows itself.
    pub fn states(&self) -> impl Iterator<Item = (DeviceId, State)> + '_ {
        self.by_device.iter().filter_map(|(&device, id)| Some((device, self.connections.get(id)?.state.state)))
    }

    // --- what the agent says ---

    pub fn holding(&mut self, id: ConnectionId, tail: &Tail) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if tail.first_held < tail.next {
            let full = connection.holding.len() >= SPOOLS_MAX && !connection.holding.contains_key(&tail.spool);
            if !full {
                connection.holding.insert(tail.spool, tail.first_held);
            }
        } else {
            connection.holding.remove(&tail.spool);
            connection.acks.remove(&tail.spool);
        }
    }

    pub fn state(&mut self, id: ConnectionId, state: StateNow) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.state = state;
        if self.by_device.get(&connection.device) == Some(&id) {
            self.changed.insert(connection.device);
        }
    }

    /// An envelope came: its spool has something to wait for.
    pub fn received(&mut self, id: ConnectionId, spool: SpoolId, seq: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.holding.len() < SPOOLS_MAX {
            connection.holding.entry(spool).or_insert(seq);
        }
    }

    /// So many more envelopes of this connection's lane lie on the disk.
    pub fn committed(&mut self, id: ConnectionId, lane: Lane, more: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.committed[lane.index()] += more;
        }
    }

    pub fn lane(&mut self, lane: Lane, state: LaneState) {
        self.connections.values_mut().for_each(|connection| connection.lanes[lane.index()].0 = state);
    }

    // --- what comes from the hub or from the queue ---

    /// Something signed came down. An ack goes to its agent's slot, anything else to whoever holds an older version. Unknown bytes are dropped.
    pub fn signed(&mut self, bytes: Bytes) {
        let Ok(signed) = Signed::read(&bytes) else { return };
        if SignedKind::from_u8(signed.kind) == Some(SignedKind::Ack) {
            let (Some(device), Some(spool)) = (signed.device, signed.spool) else { return };
            let connection = self.by_device.get(&device).and_then(|id| self.connections.get_mut(id));
            if let Some(connection) = connection.filter(|connection| connection.holding.contains_key(&spool)) {
                connection.acks.insert(spool, bytes);
            }
            return;
        }
        let key = (signed.kind, signed.device);
        if self.signed.get(&key).is_some_and(|(version, _)| *version >= signed.version) {
            return;
        }
        for connection in self.connections.values_mut() {
            connection.offer(key, signed.version, &bytes);
        }
        self.signed.insert(key, (signed.version, bytes));
    }

    /// Of what is for all only these kinds are proven still: the others aren't passed on any more, and the hub is asked for them again.
    pub fn only(&mut self, held: &[HeldVersion]) {
        let stays = |(kind, device): &(u8, Option<DeviceId>)| device.is_some() || held.iter().any(|held| held.kind == *kind);
        self.signed.retain(|key, _| stays(key));
        self.connections.values_mut().for_each(|connection| connection.news.retain(|key, _| stays(key)));
    }

    /// For the POST's head, per kind: what this relay itself holds (0.0: nothing), so that the hub sends what is newer; and behind it the
    /// highest that one of its agents reports, where that is higher, so that a hub that was rolled back notices. Only known kinds: what an
    /// agent makes up must not make the POST too long for the hub.
    pub fn versions(&self) -> Vec<HeldVersion> {
        let kinds = SignedKind::ALL.into_iter().filter(|kind| *kind != SignedKind::Ack).map(SignedKind::as_u8);
        let of_kind = |kind: u8| {
            let own = self.signed.get(&(kind, None)).map(|&(version, _)| version);
            let reported = self.connections.values().filter_map(|connection| connection.held.get(&kind).copied()).max();
            let higher = reported.filter(|reported| own.is_none_or(|own| own < *reported));
            let own = own.or(higher.map(|_| Version::default()));
            [own, higher].into_iter().flatten().map(move |version| HeldVersion { kind, version })
        };
        kinds.flat_map(of_kind).collect()
    }

    /// Numbers of a device that this relay doesn't have any more.
    pub fn returned(&mut self, device: DeviceId, spool: SpoolId, numbers: Vec<(u64, u64)>, why: ReturnReason) {
        let connection = self.by_device.get(&device).and_then(|id| self.connections.get_mut(id));
        if let Some(connection) = connection {
            connection.returned.push_back(Returned { spool, numbers, why });
        }
    }

    // --- outlets ---

    /// The next control message for an agent; None until something changes. Acks go before `Returned`, so that an ack never speaks for a number
    /// that was lost after it was counted.
    pub fn next_control(&mut self, id: ConnectionId) -> Option<Down> {
        let connection = self.connections.get_mut(&id)?;
        for lane in Lane::ALL {
            let i = lane.index();
            if connection.committed[i] > connection.acked[i] {
                connection.acked[i] = connection.committed[i];
                return Some(Down::Ack(Ack { lane, count: connection.acked[i] }));
            }
            let (now, told) = connection.lanes[i];
            if now != told {
                connection.lanes[i].1 = now;
                return Some(Down::Lane(lane, now));
            }
        }
        if let Some(returned) = connection.returned.pop_front() {
            return Some(Down::Returned(returned));
        }
        // By the bundle the others are believed.
        let bundle = connection.news.remove(&(SignedKind::Bundle.as_u8(), None));
        if let Some(bytes) = bundle.or_else(|| connection.news.pop_first().map(|(_, bytes)| bytes)) {
            return Some(Down::Signed(bytes));
        }
        connection.acks.pop_first().map(|(_, bytes)| Down::Signed(bytes))
    }

    /// Spools of connected agents that wait for the hub, at most `most`, taking turns.
    pub fn asks(&mut self, most: usize) -> Vec<Ask> {
        let all: Vec<((ConnectionId, SpoolId), Ask)> = self
            .connections
            .iter()
            .flat_map(|(&id, connection)| {
                connection.holding.iter().map(move |(&spool, &from)| ((id, spool), Ask { device: connection.device, spool, from }))
            })
            .collect();
        let start = self.asked.map_or(0, |last| all.partition_point(|(key, _)| *key <= last));
        let turn: Vec<_> = all[start..].iter().chain(&all[..start]).take(most.min(all.len())).collect();
        self.asked = turn.last().map(|(key, _)| *key).or(self.asked);
        turn.into_iter().map(|(_, ask)| *ask).collect()
    }

    /// Who is here: everyone, or what changed since the last snapshot that was answered.
    pub fn snapshot(&mut self, most: usize) -> Snapshot {
        self.snapshot += 1;
        let full = self.snapshot_full;
        let listed = |device: &DeviceId| {
            let connection = self.connections.get(self.by_device.get(device)?)?;
            let StateNow { state, since_ms, ref tails } = connection.state;
            Some(Presence { device: *device, dial: connection.dial, state, since_ms, tails: tails.clone() })
        };
        let devices: Vec<Presence> = if full {
            self.by_device.keys().filter_map(listed).take(most).collect()
        } else {
            self.changed.iter().filter_map(listed).take(most).collect()
        };
        Snapshot { number: self.snapshot, full, devices, gone: self.gone.iter().copied().take(most).collect() }
    }

    /// The hub answered a POST with this snapshot: what it said needn't be said again.
    pub fn snapshot_taken(&mut self, snapshot: &Snapshot) {
        for presence in &snapshot.devices {
            let now = self.by_device.get(&presence.device).and_then(|id| self.connections.get(id));
            if now.is_none_or(|now| now.state.state == presence.state && now.dial == presence.dial) {
                self.changed.remove(&presence.device);
            }
        }
        snapshot.gone.iter().for_each(|device| {
            self.gone.remove(device);
        });
        if snapshot.full {
            self.snapshot_full = false;
        }
    }

    /// The hub may have missed something: the next snapshot is a full one. What doesn't fit into it follows as changes.
    pub fn snapshot_lost(&mut self) {
        self.snapshot_full = true;
        self.changed.extend(self.by_device.keys());
    }

    /// Whether the next snapshot says anything new.
    pub fn has_presence_news(&self) -> bool {
        self.snapshot_full || !self.changed.is_empty() || !self.gone.is_empty()
    }
}

/// `Signed.flags`, bit 0: the relay may note addresses.
const FLAG_NETWORK_ON: u8 = 1;
/// Spools of one connection that wait: an agent states 256 and its open ones, and may add as many.
const SPOOLS_MAX: usize = 2 * limits::TAILS_MAX;

impl Connection {
    fn offer(&mut self, key: (u8, Option<DeviceId>), version: Version, bytes: &Bytes) {
        let (kind, device) = key;
        let meant = device.is_none_or(|device| device == self.device);
        if meant && self.held.get(&kind).is_none_or(|held| *held < version) {
            self.news.insert(key, bytes.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BootId;

    #[test]
    fn a_relay_without_the_policy_that_its_agent_holds_says_both() {
        let mut side = RelaySide::new(1);
        let policy = |n| HeldVersion { kind: SignedKind::Policy.as_u8(), version: Version { epoch: 1, n } };
        let made_up = (0..=255).map(|kind| HeldVersion { kind, version: Version { epoch: 0, n: 0 } });
        let versions = made_up.chain([policy(4)]).collect();
        let boot = BootId([0; 16]);
        let hello = Hello { protocols: (1, 1), dial: 1, boot, wall_ms: 0, boot_ms: 0, zone: String::new(), versions, tails: Vec::new() };
        side.hello(ConnectionId(1), DeviceId([1; 16]), &hello, 0);
        let none = HeldVersion { kind: policy(0).kind, version: Version::default() };
        let of_policy = |side: &RelaySide| side.versions().into_iter().filter(|held| held.kind == none.kind).collect::<Vec<_>>();
        assert_eq!(of_policy(&side), [none, policy(4)]);
        assert!(side.versions().len() <= 2 * (SignedKind::ALL.len() - 1));
        let signed = Signed::new(SignedKind::Policy, policy(4).version, Vec::new());
        side.signed(signed.bytes().unwrap_or_default().into());
        assert_eq!(of_policy(&side), [policy(4)]);
        // Its signature counts no more: the hub is asked for it again, and takes nobody for rolled back.
        side.only(&[policy(4)]);
        assert_eq!(of_policy(&side), [policy(4)]);
        side.only(&[]);
        assert_eq!(of_policy(&side), [none, policy(4)]);
    }

    #[test]
    fn a_full_snapshot_that_doesnt_fit_goes_on_as_changes() {
        let mut side = RelaySide::new(1);
        let boot = BootId([0; 16]);
        let hello = Hello {
            protocols: (1, 1),
            dial: 1,
            boot,
            wall_ms: 0,
            boot_ms: 0,
            zone: String::new(),
            versions: Vec::new(),
            tails: Vec::new(),
        };
        for n in 1..=5 {
            side.hello(ConnectionId(n), DeviceId([n as u8; 16]), &hello, 0);
        }
        side.snapshot_lost();
        let mut listed = BTreeSet::new();
        for full in [true, false, false] {
            let snapshot = side.snapshot(2);
            assert_eq!(snapshot.full, full);
            listed.extend(snapshot.devices.iter().map(|presence| presence.device));
            side.snapshot_taken(&snapshot);
        }
        assert_eq!(listed.len(), 5);
        assert!(!side.has_presence_news());
    }
}
