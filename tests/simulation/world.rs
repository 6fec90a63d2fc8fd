//! Quiet: the simulated mesh: one agent with two lanes, two relays, one hub, a network that loses and delays, all on one thread.
//!
//! Agent, relays and hub are the product's own types over a memory directory; only the oracle is separate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_agent::spool::{BatchContext, Birth, Sizes, Spool, SpoolError};
use muster_mesh::{
    batch::Envelope,
    clock::{Reading, Zone},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    link::{agent_side::Rules, relay_side::ConnectionId},
    message::{Answer, Down, Hello, HubAck, LaneState, Limits, Signed, Up, Welcome},
    queue::{directory::Directory, memory::Memory},
    record::{Capability, Gap, Kind, Record},
};
use muster_relay::buffer::Gone;

use crate::{
    action::{Action, Depth},
    hub::Hub,
    plant::Plant,
    relay::{InFlight, Relay},
};

pub const DEVICE: DeviceId = DeviceId([0xd; 16]);
/// About three of the simulated batches.
pub const SEGMENT_BYTES: u64 = 330;
/// POSTs that were given up and may still arrive.
const LATE_MAX: usize = 4;

pub struct World {
    pub agent: Spool<Memory>,
    pub relays: [Relay; 2],
    pub hub: Hub,
    pub connection: Option<Connection>,
    late: VecDeque<(usize, Lane, InFlight)>,
    /// The agent's disk as it was, and how many numbers had been made.
    image: Option<Image>,
    pub now_ms: i64,
    born: u64,
    plant: Option<Plant>,
    /// Every batch that the agent committed, by its number: the digest of its envelope.
    pub made: BTreeMap<(SpoolId, u64), [u8; 8]>,
    /// Copies of these were destroyed by a fault, or overwritten with an image.
    pub destroyed: BTreeSet<(SpoolId, u64)>,
    /// Numbers that a `Gap` of the agent names, by the batches that carry it.
    pub named: BTreeMap<(SpoolId, u64), BTreeSet<(SpoolId, u64)>>,
    /// The agent itself was put back to before these.
    pub forgotten: BTreeSet<(SpoolId, u64)>,
    /// The hub was put back once: it may have forgotten what tails said of numbers whose copies were destroyed.
    pub restored: bool,
    pub violations: Vec<String>,
}

/// A disk, and the numbers that it knew.
type Image = ([Memory; 2], BTreeSet<(SpoolId, u64)>);

/// The agent's connection, with what is on the way in both directions.
pub struct Connection {
    pub relay: usize,
    id: ConnectionId,
    up: VecDeque<(Lane, Envelope)>,
    control_up: VecDeque<Up>,
    down: VecDeque<Down>,
}

impl World {
    pub fn new(plant: Option<Plant>) -> Self {
        let mut born = 0;
        let relay = |born: &mut u64| Relay::open([Relay::new_directory(plant), Relay::new_directory(plant)], instances(born), plant);
        let relays = [relay(&mut born), relay(&mut born)];
        let agent = open_agent([Memory::default(), Memory::default()], 0, &mut born, plant);
        World {
            agent,
            relays,
            hub: Hub::new(plant),
            connection: None,
            late: VecDeque::new(),
            image: None,
            now_ms: 0,
            born,
            plant,
            made: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            named: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            restored: false,
            violations: Vec::new(),
        }
    }

    pub fn act(&mut self, action: Action) {
        self.now_ms += 1_000;
        match action {
            Action::Observe(lane) => self.observe(lane),
            Action::Connect(relay) => self.connect(relay),
            Action::Disconnect => self.disconnect(),
            Action::Up(lane, most, depth) => self.up(lane, most, depth),
            Action::Push(lane, most) => self.push(lane, most),
            Action::RelayReceives => self.relay_receives(),
            Action::RelayCommits => self.relay_commits(),
            Action::AgentReceives => self.agent_receives(),
            Action::Sync(relay, lane, most, depth) => self.sync(relay, lane, most, depth),
            Action::Post(relay, lane, most) => self.post(relay, lane, most),
            Action::HubTakes(relay, lane) => self.hub_takes(relay, lane),
            Action::Answer(relay, lane) => self.answer(relay, lane),
            Action::Lose(relay, lane) => self.lose(relay, lane),
            Action::Late(place) => self.late(place),
            Action::Free(relay, lane) => self.relays[relay].free(lane, self.now_ms),
            Action::Backup => self.hub.backup(),
            Action::AgentCrash => self.agent_crash(),
            Action::RelayCrash(relay) => self.relay_crash(relay),
            Action::WriteBack(relay) => self.relays[relay].buffers.iter_mut().for_each(|buffer| buffer.directory().write_back()),
            Action::RelayWipe(relay) => self.relay_wipe(relay),
            Action::RelayRuin(relay, lane, at) => self.relay_ruin(relay, lane, at),
            Action::RelayFlip(relay, lane, at, place) => self.relay_flip(relay, lane, at, place),
            Action::AgentRuin(lane, at) => self.agent_ruin(lane, at),
            Action::AgentFlip(lane, at, place) => self.agent_flip(lane, at, place),
            Action::Budget(lane) => self.budget(lane),
            Action::Step => self.step(),
            Action::SaveImage => self.save_image(),
            Action::BackToImage => self.back_to_image(),
            Action::Restore { silent, oldest, keep } => {
                self.restored = true;
                self.hub.restore(silent, oldest, keep);
            }
        }
    }

    // --- the agent ---

    pub fn observe(&mut self, lane: Lane) {
        self.roll_if_full(lane);
        let record = Record {
            at: self.now_ms,
            kind: Kind::Capability(Capability { what: format!("{}", self.made.len()), able: true, why: String::new() }),
        };
        let sealed = self.agent.seal(lane, vec![record], reading(self.now_ms)).expect("a small batch seals");
        let committed = self.agent.commit(&sealed);
        self.or_reopen(committed);
        self.note_made();
    }

    /// After an error of its disk the agent opens its queues again.
    fn or_reopen<T>(&mut self, result: Result<T, SpoolError>) -> Option<T> {
        if result.is_err() {
            self.agent_crash();
        }
        result.ok()
    }

    /// The agent's own rolls happen at a commit; here they are counted in.
    fn roll_if_full(&mut self, lane: Lane) {
        if self.agent.queue(lane).tail_is_full() {
            self.agent.roll(lane).expect("memory has room");
        }
    }

    /// Notes what the agent committed since the last look, `Gap`s of its own making included.
    fn note_made(&mut self) {
        for lane in Lane::ALL {
            let spool = self.agent.open_spool(lane);
            let first = self.made.range((spool, 0)..=(spool, u64::MAX)).next_back().map_or(1, |(key, _)| key.1 + 1);
            let claimed = self.agent.queue(lane).claimed(DEVICE, spool);
            if claimed.last().is_none_or(|last| last < first) {
                continue;
            }
            let segments: Vec<u64> = self.agent.queue(lane).segments().map(|(segment, _)| segment).collect();
            for segment in segments {
                for slot in self.agent.directory(lane).read(segment, 0, usize::MAX).map(|page| page.slots).unwrap_or_default() {
                    let Ok(envelope) = Envelope::read(slot.envelope) else { continue };
                    let header = envelope.header();
                    if header.spool == spool && header.seq >= first {
                        self.made.insert((spool, header.seq), envelope.digest());
                        self.note_gaps((spool, header.seq), &envelope);
                    }
                }
            }
        }
    }

    fn note_gaps(&mut self, carrier: (SpoolId, u64), envelope: &Envelope) {
        for record in envelope.open().expect("the simulated agent seals what this build opens").records {
            let Kind::Gap(Gap { numbers: Some(numbers), .. }) = record.kind else { continue };
            let named: Vec<_> = self
                .made
                .range((numbers.spool, numbers.first)..=(numbers.spool, numbers.last.unwrap_or(u64::MAX)))
                .map(|(key, _)| *key)
                .collect();
            for key in named {
                self.named.entry(key).or_default().insert(carrier);
            }
        }
    }

    pub fn connect(&mut self, relay: usize) {
        self.disconnect();
        self.born += 1;
        let id = ConnectionId(self.born);
        let hello = Hello {
            protocols: (1, 1),
            dial: self.born,
            boot: BootId([1; 16]),
            wall_ms: self.now_ms,
            boot_ms: self.now_ms as u64,
            zone: String::new(),
            versions: Vec::new(),
            tails: self.agent.side_mut().hello_tails(),
        };
        let side = &mut self.relays[relay].side;
        side.hello(id, DEVICE, &hello, self.now_ms);
        let claims = self.relays[relay].buffers.iter().flat_map(|buffer| buffer.claims(DEVICE)).collect();
        let welcome = Welcome { protocol: 1, limits: Limits::OURS, clock_ms: self.now_ms, lanes: [LaneState::Open; 2], claims };
        let down = VecDeque::from([Down::Welcome(welcome)]);
        self.connection = Some(Connection { relay, id, up: VecDeque::new(), control_up: VecDeque::new(), down });
    }

    pub fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            let relay = &mut self.relays[connection.relay];
            relay.side.gone(connection.id);
            // What was read is committed all the same: the connection's end doesn't stop the inbox.
            self.agent.on_disconnect();
        }
    }

    pub fn push(&mut self, lane: Lane, most: usize) {
        let mut left = most;
        while left > 0 && self.connection.is_some() {
            let mut incidents = Vec::new();
            let sent = self.agent.next_run(lane, left, usize::MAX, reading(self.now_ms), &mut incidents);
            let sent = self.or_reopen(sent).unwrap_or_default();
            self.note_made();
            let Some(connection) = &mut self.connection else { return };
            if sent.is_empty() {
                return;
            }
            left -= sent.len();
            connection.up.extend(sent.into_iter().map(|envelope| (lane, envelope)));
        }
    }

    /// Everything that is on its way down arrives, and what the agent says to it goes up.
    pub fn agent_receives(&mut self) {
        while let Some(connection) = &mut self.connection {
            let relay = connection.relay;
            while let Some(down) = self.relays[relay].side.next_control(connection.id) {
                connection.down.push_back(down);
            }
            let Some(down) = connection.down.pop_front() else { break };
            self.agent_takes(relay, down);
            self.note_made();
            while let (Some(connection), Some(tail)) = (&mut self.connection, self.agent.side_mut().next_holding()) {
                connection.control_up.push_back(Up::Holding(tail));
            }
        }
    }

    fn agent_takes(&mut self, relay: usize, down: Down) {
        let birth = self.birth();
        match down {
            Down::Welcome(welcome) => {
                let welcomed = self.agent.on_welcome(relay, &welcome, birth);
                self.or_reopen(welcomed);
            }
            Down::Ack(ack) => drop(self.agent.on_ack(ack.lane, ack.count).expect("the relay acks what was sent")),
            Down::Returned(returned) => self.agent.on_returned(&returned),
            Down::Lane(lane, state) => self.agent.side_mut().on_lane(lane, state),
            Down::Signed(bytes) => {
                let signed = Signed::read(&bytes).expect("the hub's ack decodes");
                let ack = HubAck::read(&signed.body).expect("the hub's ack decodes");
                let spool = signed.spool.expect("an ack names its spool");
                self.check_ack(spool, &ack);
                let tidied = self.agent.on_hub_ack(spool, signed.version.epoch, &ack, birth);
                self.or_reopen(tidied);
            }
            Down::Answer(_) => panic!("nobody asks"),
        }
    }

    /// No number is acked that never was in the hub.
    fn check_ack(&mut self, spool: SpoolId, ack: &HubAck) {
        for (first, last) in &ack.stored {
            let false_ack = (*first..=*last).find(|seq| self.made.contains_key(&(spool, *seq)) && !self.hub.ever.contains(&(spool, *seq)));
            if let Some(seq) = false_ack {
                self.violations.push(format!("FALSE ACK: the agent is told that {spool} {seq} is in the hub, and it never was"));
            }
        }
    }

    fn agent_crash(&mut self) {
        self.disconnect();
        self.replace_agent(|directories| directories);
    }

    fn replace_agent(&mut self, disk: impl FnOnce([Memory; 2]) -> [Memory; 2]) {
        // The old process is gone: an empty one takes its place while its disk is opened again.
        let mut unused = 0;
        let empty = open_agent([Memory::default(), Memory::default()], self.now_ms, &mut unused, None);
        let old = std::mem::replace(&mut self.agent, empty);
        self.agent = open_agent(disk(old.into_directories()), self.now_ms, &mut self.born, self.plant);
        self.note_made();
    }

    fn step(&mut self) {
        let birth = self.birth();
        let begun = self.agent.begin(birth);
        self.or_reopen(begun);
    }

    pub fn budget(&mut self, lane: Lane) {
        if self.agent.queue(lane).segments().count() == 1 {
            self.agent.roll(lane).expect("memory has room");
        }
        let freed = self.agent.free_one(lane, reading(self.now_ms));
        self.or_reopen(freed);
        self.note_made();
    }

    fn agent_ruin(&mut self, lane: Lane, at: usize) {
        let Some(segment) = nth(self.agent.queue(lane), at) else { return };
        self.destroy_agents(lane, segment, None);
        if self.agent.queue(lane).tail() == Some(segment) {
            // Only a tail's file knows how many were in it.
            self.forgotten.extend(self.numbers_at_agent(lane, segment));
        }
        self.agent.directory(lane).ruin(segment);
    }

    fn agent_flip(&mut self, lane: Lane, at: usize, place: usize) {
        let Some(segment) = nth(self.agent.queue(lane), at) else { return };
        self.destroy_agents(lane, segment, Some(place));
        self.agent.directory(lane).flip(segment, place as u64);
    }

    fn destroy_agents(&mut self, lane: Lane, segment: u64, place: Option<usize>) {
        let numbers = self.numbers_at_agent(lane, segment);
        self.destroyed.extend(numbers.into_iter().enumerate().filter(|(i, _)| place.is_none_or(|place| place == *i)).map(|(_, key)| key));
    }

    fn numbers_at_agent(&self, lane: Lane, segment: u64) -> Vec<(SpoolId, u64)> {
        let ranges = self.agent.queue(lane).segment(segment).into_iter().flat_map(|sidecar| &sidecar.ranges);
        ranges.flat_map(|(key, ranges)| ranges.numbers().map(|seq| (key.1, seq))).collect()
    }

    fn save_image(&mut self) {
        self.image = Some((Lane::ALL.map(|lane| self.agent.directory(lane).clone()), self.made.keys().copied().collect()));
    }

    fn back_to_image(&mut self) {
        let Some((image, known)) = self.image.clone() else { return };
        let held = self.held_at_agent();
        self.disconnect();
        self.replace_agent(|_| image);
        let lost: Vec<_> = held.difference(&self.held_at_agent()).copied().collect();
        self.destroyed.extend(lost);
        self.forgotten.extend(self.made.keys().filter(|key| !known.contains(key)));
    }

    /// Whether a fault destroyed the number's bytes, or its `Gap`, whose own bytes or `Gap` …
    pub fn was_destroyed(&self, key: (SpoolId, u64)) -> bool {
        let named = || self.named.get(&key).is_some_and(|carriers| carriers.iter().all(|carrier| self.was_destroyed(*carrier)));
        self.destroyed.contains(&key) || named()
    }

    /// What lies on the agent's disk, readable or not.
    pub fn held_at_agent(&self) -> BTreeSet<(SpoolId, u64)> {
        let sidecars = Lane::ALL.into_iter().flat_map(|lane| self.agent.queue(lane).segments().map(|(_, sidecar)| sidecar));
        sidecars.flat_map(|sidecar| sidecar.ranges.iter().flat_map(|(key, ranges)| ranges.numbers().map(move |seq| (key.1, seq)))).collect()
    }

    fn birth(&mut self) -> Birth {
        birth(self.now_ms, &mut self.born, self.plant)
    }

    // --- relays ---

    pub fn relay_receives(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let relay = &mut self.relays[connection.relay];
        while let Some(Up::Holding(tail)) = connection.control_up.pop_front() {
            relay.side.holding(connection.id, &tail);
        }
        for (lane, envelope) in connection.up.drain(..) {
            relay.side.received(connection.id, envelope.header().spool, envelope.header().seq);
            relay.inbox.push((connection.id, lane, envelope));
        }
    }

    pub fn relay_commits(&mut self) {
        for relay in 0..2 {
            if self.relays[relay].commit().is_err() {
                self.relay_crash(relay);
            }
        }
    }

    pub fn post(&mut self, relay: usize, lane: Lane, most: usize) {
        let gone = self.relays[relay].post(lane, most, self.now_ms, &mut self.hub);
        self.tell(relay, gone);
    }

    pub fn hub_takes(&mut self, relay: usize, lane: Lane) {
        if let Some(post) = self.relays[relay].posts[lane.index()].as_mut().filter(|post| post.answer.is_none()) {
            post.answer = Some(self.hub.take(&post.head, &post.posted));
        }
    }

    pub fn answer(&mut self, relay: usize, lane: Lane) {
        let gone = self.relays[relay].answer(lane, self.now_ms, &mut self.hub);
        self.tell(relay, gone);
    }

    /// Connected agents hear of what is gone.
    fn tell(&mut self, relay: usize, gone: Gone) {
        for (lost, why) in gone.returned {
            self.relays[relay].side.returned(lost.device, lost.spool, lost.numbers.iter().collect(), why);
        }
        let keeps = self.plant == Some(Plant::QuarantineKeepsConnections);
        if !gone.devices.is_empty() && !keeps && self.connection.as_ref().is_some_and(|connection| connection.relay == relay) {
            self.disconnect();
        }
    }

    fn lose(&mut self, relay: usize, lane: Lane) {
        let Some(post) = self.relays[relay].posts[lane.index()].take() else { return };
        self.relays[relay].buffers[lane.index()].failed();
        self.give_up(relay, lane, post);
    }

    fn give_up(&mut self, relay: usize, lane: Lane, post: InFlight) {
        if post.answer.is_none() {
            self.late.push_back((relay, lane, post));
            let kept = self.late.len().min(LATE_MAX);
            self.late.drain(..self.late.len() - kept);
        }
    }

    fn late(&mut self, place: usize) {
        if let Some((_, _, post)) = self.late.remove(place) {
            let _: Answer = self.hub.take(&post.head, &post.posted);
        }
    }

    fn relay_crash(&mut self, relay: usize) {
        self.replace_relay(relay, |old, born| old.crash(instances(born)));
    }

    fn relay_wipe(&mut self, relay: usize) {
        for lane in Lane::ALL {
            let segments: Vec<u64> = self.relays[relay].buffers[lane.index()].queue().segments().map(|(segment, _)| segment).collect();
            segments.into_iter().for_each(|segment| self.destroy_relays(relay, lane, segment, None));
        }
        let plant = self.plant;
        self.replace_relay(relay, |_, born| {
            Relay::open([Relay::new_directory(plant), Relay::new_directory(plant)], instances(born), plant)
        });
    }

    fn replace_relay(&mut self, relay: usize, next: impl FnOnce(Relay, &mut u64) -> Relay) {
        if self.connection.as_ref().is_some_and(|connection| connection.relay == relay) {
            self.disconnect();
        }
        for lane in Lane::ALL {
            if let Some(post) = self.relays[relay].posts[lane.index()].take() {
                self.give_up(relay, lane, post);
            }
        }
        let mut unused = 0;
        let empty = Relay::open([Memory::default(), Memory::default()], instances(&mut unused), None);
        let old = std::mem::replace(&mut self.relays[relay], empty);
        self.relays[relay] = next(old, &mut self.born);
    }

    fn relay_ruin(&mut self, relay: usize, lane: Lane, at: usize) {
        let Some(segment) = nth(self.relays[relay].buffers[lane.index()].queue(), at) else { return };
        self.destroy_relays(relay, lane, segment, None);
        if self.plant == Some(Plant::RelayWritesGaps)
            && let Some(sidecar) = self.relays[relay].buffers[lane.index()].queue().segment(segment)
        {
            sidecar.ranges.iter().for_each(|(key, numbers)| self.hub.count_as_stored(key.0, key.1, numbers));
        }
        self.relays[relay].buffers[lane.index()].directory().ruin(segment);
    }

    fn relay_flip(&mut self, relay: usize, lane: Lane, at: usize, place: usize) {
        let Some(segment) = nth(self.relays[relay].buffers[lane.index()].queue(), at) else { return };
        self.destroy_relays(relay, lane, segment, Some(place));
        self.relays[relay].buffers[lane.index()].directory().flip(segment, place as u64);
    }

    fn destroy_relays(&mut self, relay: usize, lane: Lane, segment: u64, place: Option<usize>) {
        let page = self.relays[relay].buffers[lane.index()].directory().read(segment, 0, usize::MAX);
        for slot in page.map(|page| page.slots).unwrap_or_default() {
            if let (true, Ok(envelope)) = (place.is_none_or(|place| place as u64 == slot.index), Envelope::read(slot.envelope)) {
                self.destroyed.insert((envelope.header().spool, envelope.header().seq));
            }
        }
    }

    // --- several steps at once ---

    fn up(&mut self, lane: Lane, most: usize, depth: Depth) {
        self.agent_receives();
        self.push(lane, most);
        if depth > 0 {
            self.relay_receives();
        }
        if depth > 1 {
            self.relay_commits();
        }
        if depth > 2 {
            self.agent_receives();
        }
    }

    fn sync(&mut self, relay: usize, lane: Lane, most: usize, depth: Depth) {
        self.post(relay, lane, most);
        if depth > 0 {
            self.hub_takes(relay, lane);
        }
        if depth > 1 {
            self.answer(relay, lane);
        }
        if depth > 2 {
            self.agent_receives();
        }
    }

    /// After the last fault everything drains without a human: rounds without faults, until nothing changes any more.
    pub fn drain(&mut self) {
        let (mut quiet, mut before) = (0, None);
        for round in 0..80 {
            self.now_ms += 1_000;
            if round < 6 {
                Lane::ALL.into_iter().for_each(|lane| self.observe(lane));
            }
            if self.connection.is_none() {
                self.connect(round % 2);
            }
            self.agent_receives();
            Lane::ALL.into_iter().for_each(|lane| self.push(lane, 99));
            self.relay_receives();
            self.relay_commits();
            for relay in 0..2 {
                for lane in Lane::ALL {
                    self.hub_takes(relay, lane);
                    self.answer(relay, lane);
                    self.sync(relay, lane, 99, 2);
                }
            }
            self.agent_receives();
            self.relay_receives();
            let now = Some((self.hub.state.contents.len(), self.waiting(), self.agent.side().stubs(Lane::Telemetry).count(), round < 6));
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
            if quiet > 6 {
                break;
            }
        }
        self.back_up_and_free();
    }

    /// Every kept backup contains everything: relays need nothing any more.
    fn back_up_and_free(&mut self) {
        self.hub.backup();
        self.hub.backup();
        for relay in 0..2 {
            self.sync(relay, Lane::Telemetry, 99, 2);
            Lane::ALL.into_iter().for_each(|lane| self.relays[relay].free(lane, self.now_ms));
        }
    }

    /// Envelopes that wait at the agent and at the relays.
    fn waiting(&self) -> (u64, u64) {
        let agent = Lane::ALL.into_iter().map(|lane| self.agent.side().backlog(lane).0).sum();
        (agent, self.relays.iter().flat_map(|relay| &relay.buffers).map(|buffer| buffer.backlog()).sum())
    }
}

fn nth<D: Directory>(queue: &muster_mesh::queue::Queue<D>, at: usize) -> Option<u64> {
    queue.segments().nth(at).map(|(segment, _)| segment)
}

fn open_agent(directories: [Memory; 2], now_ms: i64, born: &mut u64, plant: Option<Plant>) -> Spool<Memory> {
    let rules = Rules {
        claims_end_with_the_connection: plant != Some(Plant::AgentSkipsWhatAnyRelayAcked),
        ack_is_of_this_connection: plant != Some(Plant::RelayAckIsCumulative),
        spool_is_forgotten_last: plant != Some(Plant::StubIsForgottenAtOnce),
    };
    let sizes = Sizes { budgets: [u64::MAX; 2], segment_bytes: SEGMENT_BYTES };
    let context = BatchContext {
        policy: Version::default(),
        notice: Version::default(),
        erasure: Version::default(),
        test_mode: true,
        boot: BootId([1; 16]),
        zone: Zone { name: "Z".into(), offset_s: 0 },
    };
    Spool::open(DEVICE, directories, sizes, context, birth(now_ms, born, plant), rules).expect("memory opens").0
}

fn birth(now_ms: i64, born: &mut u64, plant: Option<Plant>) -> Birth {
    *born += 1;
    let number = if plant == Some(Plant::SpoolIdsLiveOn) { 0 } else { *born };
    let random = |lane: u8| {
        let mut random = [lane; 10];
        random[1..9].copy_from_slice(&number.to_be_bytes());
        random
    };
    let now = reading(if plant == Some(Plant::SpoolIdsLiveOn) { 0 } else { now_ms });
    Birth { now, random: [random(1), random(2)] }
}

fn instances(born: &mut u64) -> [InstanceId; 2] {
    [(); 2].map(|()| {
        *born += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&born.to_be_bytes());
        InstanceId(id)
    })
}

fn reading(now_ms: i64) -> Reading {
    Reading { wall_ms: now_ms, boot_ms: now_ms as u64 }
}
