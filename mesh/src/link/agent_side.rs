//! Quiet: what an agent knows of its numbers: which it holds, what the hub has, what the connected relay claims; and so what to send, what
//! to delete and what to state.
//!
//! It sends in order all that the hub lacks and this relay doesn't claim. It deletes what the hub's ack names, and what the connected relay
//! claims only when its budget forces it.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    batch::Tail,
    ids::{Lane, SpoolId},
    limits,
    message::{Claim, HubAck, LaneState, Reason, ReturnReason, Returned, Verdict, Welcome},
    ranges::Ranges,
};

/// The agent's side of the hop, for both lanes.
#[derive(Debug, Clone, Default)]
pub struct AgentSide {
    spools: BTreeMap<SpoolId, Spool>,
    relay: Option<Relay>,
    /// How often each relay returned a number; each relay has a number of its own, by its name.
    returns: BTreeMap<(usize, SpoolId, u64), u8>,
    /// The highest epoch of a hub that this agent knows.
    epoch: u32,
    rules: Rules,
}

/// Choices inside this machine that the simulation turns back, to see that each is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Only what the connected relay claims is skipped, never what any relay ever acked.
    pub claims_end_with_the_connection: bool,
    /// A relay's ack counts envelopes of this connection, and doesn't cover every number up to the last.
    pub ack_is_of_this_connection: bool,
    /// A closed spool is kept in mind until the hub has a batch that states its end.
    pub spool_is_forgotten_last: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { claims_end_with_the_connection: true, ack_is_of_this_connection: true, spool_is_forgotten_last: true }
    }
}

/// One opening of one lane's queue.
#[derive(Debug, Clone)]
struct Spool {
    lane: Lane,
    /// Numbers by segment, oldest first: (first, last).
    spans: BTreeMap<u64, (u64, u64)>,
    next: u64,
    closed: bool,
    /// The hub has these: told by its acks since this agent started.
    hub: Ranges,
    /// Never sent (again): damaged here. A committed `Gap` names each.
    aside: Ranges,
    /// Its end is damaged: a peer may know higher numbers than `next`, and that is no alarm.
    end_unknown: bool,
    /// As the last batch stated it.
    stated: Option<Tail>,
    /// Batches that state it closed and empty: when the hub has one of them, the spool is forgotten.
    ends: Vec<(SpoolId, u64)>,
    shown: BTreeMap<u64, (Verdict, Reason)>,
    /// The last tail that the connected relay was told.
    told: Option<Tail>,
}

/// The connection, from Welcome on.
#[derive(Debug, Clone)]
struct Relay {
    number: usize,
    claims: BTreeMap<SpoolId, Ranges>,
    /// Returned too often: not sent again on this connection.
    refused: BTreeMap<SpoolId, Ranges>,
    lanes: [RelayLane; 2],
}

#[derive(Debug, Clone)]
struct RelayLane {
    state: LaneState,
    /// Sent and not yet acked, in the order of the stream.
    in_flight: VecDeque<(SpoolId, u64)>,
    in_flight_max: usize,
    /// Envelopes that the relay has acked on this connection.
    acked: u64,
    sending: BTreeMap<SpoolId, Ranges>,
    /// Spools below have nothing to send.
    from: Option<SpoolId>,
}

/// Numbers of one spool and one segment that are to be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub spool: SpoolId,
    pub segment: u64,
    /// Place of `first` in the segment.
    pub index: u64,
    pub first: u64,
    pub last: u64,
}

/// A segment that goes because the budget is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    pub segment: u64,
    pub spool: SpoolId,
    /// Numbers that nobody else has as far as this agent knows: a `Gap` names them before the segment goes.
    pub unclaimed: Ranges,
}

/// What a peer said that can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the relay acked more envelopes than were sent")]
    AckOfUnsent,
}

/// A peer knows a number of this spool that was never given: two computers have one identity, or a disk image was copied back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneAlarm {
    pub spool: SpoolId,
    pub number: u64,
    pub was_open: bool,
}

/// Where a number is, as far as this agent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Here,
    Branch,
    Hub,
    Dropped,
}

impl AgentSide {
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    // --- spools and segments, told by the queue's owner ---

    /// A spool that was found on the disk, closed.
    pub fn found(&mut self, spool: SpoolId, lane: Lane, next: u64) {
        let found = self.spools.entry(spool).or_insert_with(|| Spool::new(lane));
        found.next = found.next.max(next);
        found.closed = true;
    }

    /// A new spool.
    pub fn opened(&mut self, spool: SpoolId, lane: Lane) {
        self.spools.insert(spool, Spool::new(lane));
    }

    pub fn closed(&mut self, spool: SpoolId) {
        if let Some(spool) = self.spools.get_mut(&spool) {
            spool.closed = true;
        }
    }

    /// A segment holds these numbers of a spool.
    pub fn holds(&mut self, spool: SpoolId, segment: u64, first: u64, last: u64) {
        let Some(spool) = self.spools.get_mut(&spool) else { return };
        let span = spool.spans.entry(segment).or_insert((first, last));
        span.1 = span.1.max(last);
        spool.next = spool.next.max(last + 1);
        let lane = spool.lane;
        self.look_again(lane);
    }

    /// Numbers that are never sent again; a committed `Gap` names them.
    pub fn set_aside(&mut self, spool: SpoolId, numbers: &Ranges) {
        if let Some(spool) = self.spools.get_mut(&spool) {
            spool.aside.extend(numbers);
        }
        self.state_all();
    }

    /// The spool's end is damaged: numbers from `next` up may have existed.
    pub fn end_is_unknown(&mut self, spool: SpoolId, next: u64) {
        if let Some(spool) = self.spools.get_mut(&spool) {
            spool.next = spool.next.max(next);
            spool.end_unknown = true;
        }
    }

    /// The segment is gone.
    pub fn deleted(&mut self, segment: u64, spool: SpoolId) {
        if let Some(spool) = self.spools.get_mut(&spool) {
            spool.spans.remove(&segment);
        }
    }

    /// A segment went that the hub didn't have: what its batches stated is stated again.
    pub fn dropped(&mut self, segment: u64, spool: SpoolId) {
        self.deleted(segment, spool);
        self.state_all();
    }

    fn state_all(&mut self) {
        self.spools.values_mut().for_each(|spool| {
            spool.stated = None;
            spool.ends.clear();
        });
    }

    /// The number that the spool's next batch gets.
    pub fn next_number(&self, spool: SpoolId) -> u64 {
        self.spools.get(&spool).map_or(1, |spool| spool.next)
    }

    pub fn lane_of(&self, spool: SpoolId) -> Option<Lane> {
        self.spools.get(&spool).map(|spool| spool.lane)
    }

    /// Whether a number is never sent (again).
    pub fn is_aside(&self, spool: SpoolId, seq: u64) -> bool {
        self.spools.get(&spool).is_some_and(|spool| spool.aside.contains(seq))
    }

    /// Closed spools of a lane of which nothing is held: they are kept in mind by a stub.
    pub fn stubs(&self, lane: Lane) -> impl Iterator<Item = (SpoolId, u64)> + '_ {
        let stub = move |spool: &&Spool| spool.lane == lane && spool.closed && spool.spans.is_empty();
        self.spools.iter().filter(move |(_, spool)| stub(spool)).map(|(&id, spool)| (id, spool.next))
    }

    // --- statements in batches ---

    /// The tails that the next batch of `own` states: those that changed since they were last stated, all of them in a spool's first batch.
    /// That `own` itself grows is no change: the batch's own number says so.
    pub fn tails_to_state(&mut self, own: SpoolId) -> Vec<Tail> {
        if self.next_number(own) == 1 {
            self.state_all();
        }
        let changed = |id: &SpoolId, spool: &Spool| {
            let tail = spool.tail(*id);
            let same = |stated: Tail| if *id == own { Tail { next: tail.next, ..stated } == tail } else { stated == tail };
            (tail.next > 1 && !spool.stated.is_some_and(same)).then_some(tail)
        };
        self.spools.iter().filter_map(|(id, spool)| changed(id, spool)).take(limits::TAILS_MAX).collect()
    }

    /// A batch with these tails was committed under this number.
    pub fn stated(&mut self, own: SpoolId, seq: u64, tails: &[Tail]) {
        for tail in tails {
            let Some(spool) = self.spools.get_mut(&tail.spool) else { continue };
            spool.stated = Some(*tail);
            if tail.is_finished() {
                spool.ends.push((own, seq));
            }
        }
    }

    /// The oldest spools with something held, and the open ones: for Hello.
    pub fn hello_tails(&mut self) -> Vec<Tail> {
        let held = self.spools.iter().filter(|(_, spool)| spool.closed && !spool.spans.is_empty()).take(limits::TAILS_MAX);
        let open = self.spools.iter().filter(|(_, spool)| !spool.closed);
        let tails: Vec<Tail> = held.chain(open).map(|(&id, spool)| spool.tail(id)).collect();
        self.spools.values_mut().for_each(|spool| spool.told = None);
        for tail in &tails {
            if let Some(spool) = self.spools.get_mut(&tail.spool) {
                spool.told = Some(*tail);
            }
        }
        tails
    }

    /// The newest tails, for showing.
    pub fn newest_tails(&self, most: usize) -> Vec<Tail> {
        self.spools.iter().rev().take(most).map(|(&id, spool)| spool.tail(id)).collect()
    }

    /// A tail whose first held number rose, or that emptied, since the relay was told. To be asked until it says none.
    pub fn next_holding(&mut self) -> Option<Tail> {
        self.relay.as_ref()?;
        let rose = |id: SpoolId, spool: &Spool| {
            let tail = spool.tail(id);
            let told = spool.told.map_or(!spool.spans.is_empty(), |told| told.first_held != tail.first_held || told.closed != tail.closed);
            told.then_some(tail)
        };
        let tail = self.spools.iter().find_map(|(&id, spool)| rose(id, spool))?;
        self.spools.get_mut(&tail.spool)?.told = Some(tail);
        Some(tail)
    }

    // --- the connection ---

    /// A Welcome came from the relay with this number of its own. Numbers that were never given raise an alarm.
    pub fn on_welcome(&mut self, relay: usize, welcome: &Welcome) -> Vec<CloneAlarm> {
        let kept = match self.relay.take() {
            Some(old) if !self.rules.claims_end_with_the_connection => old.claims,
            _ => BTreeMap::new(),
        };
        let lane = |lane: Lane| RelayLane {
            state: welcome.lanes[lane.index()],
            in_flight: VecDeque::new(),
            in_flight_max: (welcome.limits.lane_in_flight as usize).clamp(1, limits::LANE_IN_FLIGHT_MAX),
            acked: 0,
            sending: BTreeMap::new(),
            from: None,
        };
        let mut claims = kept;
        let mut alarms = Vec::new();
        for Claim { spool, ranges } in &welcome.claims {
            let ranges: Ranges = ranges.iter().copied().collect();
            alarms.extend(self.known(*spool, &ranges));
            claims.entry(*spool).or_default().extend(&ranges);
        }
        self.relay = Some(Relay { number: relay, claims, refused: BTreeMap::new(), lanes: [lane(Lane::Telemetry), lane(Lane::Pictures)] });
        alarms
    }

    /// The connection is gone, and with it all that the relay claimed.
    pub fn on_disconnect(&mut self) {
        if self.rules.claims_end_with_the_connection {
            self.relay = None;
        } else if let Some(relay) = &mut self.relay {
            relay.lanes.iter_mut().for_each(|lane| lane.in_flight_max = 0);
        }
    }

    pub fn is_connected(&self) -> bool {
        self.relay.is_some()
    }

    /// A peer named these numbers: were they ever given?
    fn known(&mut self, id: SpoolId, numbers: &Ranges) -> Option<CloneAlarm> {
        let spool = self.spools.get_mut(&id)?;
        let highest = numbers.last().filter(|&last| last >= spool.next)?;
        if spool.end_unknown {
            spool.next = highest.saturating_add(1);
            return None;
        }
        Some(CloneAlarm { spool: id, number: highest, was_open: !spool.closed })
    }

    pub fn on_lane(&mut self, lane: Lane, state: LaneState) {
        if let Some(relay) = &mut self.relay {
            relay.lanes[lane.index()].state = state;
        }
    }

    /// The next numbers to send on a lane, at most `most`, one after another in one segment. They count as sent once [`sent`](Self::sent)
    /// was called.
    pub fn next_run(&mut self, lane: Lane, most: usize) -> Option<Run> {
        let relay = self.relay.as_ref()?;
        let line = &relay.lanes[lane.index()];
        let room = line.in_flight_max.saturating_sub(line.in_flight.len()).min(most);
        if room == 0 || line.state == LaneState::Full {
            return None;
        }
        let from = line.from.unwrap_or(SpoolId([0; 16]));
        let spools = self.spools.range(from..).filter(|(_, spool)| spool.lane == lane);
        let elsewhere = |id: &SpoolId| [relay.claims.get(id), line.sending.get(id), relay.refused.get(id)];
        let found = spools.map(|(id, spool)| (*id, spool.first_wanted(elsewhere(id), room as u64)));
        let (spool, run) = found.into_iter().find_map(|(id, run)| Some((id, run?)))?;
        self.relay.as_mut()?.lanes[lane.index()].from = Some(spool);
        Some(Run { spool, ..run })
    }

    /// These went onto the lane's stream.
    pub fn sent(&mut self, lane: Lane, spool: SpoolId, first: u64, last: u64) {
        let Some(relay) = &mut self.relay else { return };
        let line = &mut relay.lanes[lane.index()];
        line.in_flight.extend((first..=last).map(|seq| (spool, seq)));
        line.sending.entry(spool).or_default().insert_range(first, last);
    }

    /// The first `count` envelopes of this connection's lane lie on the relay's disk. Returns what is newly there.
    pub fn on_ack(&mut self, lane: Lane, count: u64) -> Result<Vec<(SpoolId, u64)>, PeerError> {
        let Some(relay) = &mut self.relay else { return Ok(Vec::new()) };
        let line = &mut relay.lanes[lane.index()];
        let newly = count.saturating_sub(line.acked) as usize;
        if newly > line.in_flight.len() {
            return Err(PeerError::AckOfUnsent);
        }
        let acked: Vec<(SpoolId, u64)> = line.in_flight.drain(..newly).collect();
        line.acked += newly as u64;
        for &(spool, seq) in &acked {
            // What was returned meanwhile isn't there any more.
            if line.sending.get_mut(&spool).is_some_and(|sending| sending.contains(seq)) {
                let first = if self.rules.ack_is_of_this_connection { seq } else { 1 };
                relay.claims.entry(spool).or_default().insert_range(first, seq);
            }
            if let Some(sending) = line.sending.get_mut(&spool) {
                sending.remove(seq);
            }
        }
        Ok(acked)
    }

    /// The relay doesn't have these any more. They are sent again, and what it returns too often waits for the next connection, or for
    /// another relay. Nothing is let go for it: a relay's word, which nobody has signed, frees no number.
    pub fn on_returned(&mut self, returned: &Returned) {
        let Some(relay) = &mut self.relay else { return };
        let Some(spool) = self.spools.get(&returned.spool) else { return };
        let named: Ranges = returned.numbers.iter().copied().collect();
        let mut held = spool.numbers();
        held.subtract(&spool.hub);
        held.subtract(&spool.aside);
        let lane = spool.lane;
        let refused = relay.refused.entry(returned.spool).or_default();
        for seq in held.intersection(&named).numbers() {
            let times = self.returns.entry((relay.number, returned.spool, seq)).or_default();
            *times = times.saturating_add(1);
            if *times > limits::RETURNS_MAX || returned.why == ReturnReason::TooManyRanges {
                refused.insert(seq);
            }
        }
        if let Some(claims) = relay.claims.get_mut(&returned.spool) {
            claims.subtract(&named);
        }
        if let Some(sending) = relay.lanes[lane.index()].sending.get_mut(&returned.spool) {
            sending.subtract(&named);
        }
        self.look_again(lane);
    }

    /// The hub's ack for a spool, under the hub's epoch. True when it says something new.
    pub fn on_hub_ack(&mut self, id: SpoolId, epoch: u32, ack: &HubAck) -> (bool, Option<CloneAlarm>) {
        if epoch < self.epoch {
            return (false, None);
        }
        self.epoch = epoch;
        let stored: Ranges = ack.stored.iter().copied().collect();
        let alarm = self.known(id, &stored);
        let Some(spool) = self.spools.get_mut(&id) else { return (false, None) };
        let before = spool.hub.count();
        spool.hub.extend(&stored);
        spool.shown.extend(ack.shown.iter().map(|&(seq, verdict, reason)| (seq, (verdict, reason))));
        while spool.shown.len() > limits::SHOWN_VERDICTS_MAX {
            spool.shown.pop_first();
        }
        let news = spool.hub.count() != before;
        self.returns.retain(|&(_, of, seq), _| of != id || !stored.contains(seq));
        (news, alarm)
    }

    /// Something on the lane may be sendable again.
    fn look_again(&mut self, lane: Lane) {
        if let Some(relay) = &mut self.relay {
            relay.lanes[lane.index()].from = None;
        }
    }

    // --- deleting ---

    /// Segments of a lane of which the hub has everything (or that a `Gap` names). The owner deletes those that are not the tail.
    pub fn deletable(&self, lane: Lane) -> Vec<(u64, SpoolId)> {
        let spools = self.spools.iter().filter(|(_, spool)| spool.lane == lane);
        let done = |spool: &Spool, (first, last): (u64, u64)| {
            let mut settled = spool.hub.clone();
            settled.extend(&spool.aside);
            settled.covers(first, last)
        };
        spools
            .flat_map(|(&id, spool)| {
                spool.spans.iter().filter(move |(_, span)| done(spool, **span)).map(move |(&segment, _)| (segment, id))
            })
            .collect()
    }

    /// Which segment goes when the lane's budget is used up: the oldest that the hub and the connected relay have together, else the oldest.
    /// The tail never goes.
    pub fn victim(&self, lane: Lane, tail: u64) -> Option<Victim> {
        let mut victims = self.spools.iter().filter(|(_, spool)| spool.lane == lane).flat_map(|(&id, spool)| {
            let claims = self.relay.as_ref().and_then(|relay| relay.claims.get(&id));
            spool.spans.iter().filter(move |(segment, _)| **segment != tail).map(move |(&segment, &span)| {
                let mut unclaimed = Ranges::of(span.0, span.1);
                [Some(&spool.hub), Some(&spool.aside), claims].into_iter().flatten().for_each(|known| unclaimed.subtract(known));
                Victim { segment, spool: id, unclaimed }
            })
        });
        let first = victims.next()?;
        if first.unclaimed.is_empty() {
            return Some(first);
        }
        Some(victims.find(|victim| victim.unclaimed.is_empty()).unwrap_or(first))
    }

    /// Closed spools that nobody needs to hear of any more: nothing of them is held, and the hub has a batch that says so.
    pub fn forget(&mut self) -> Vec<SpoolId> {
        let has = |&(spool, seq): &(SpoolId, u64)| self.spools.get(&spool).is_some_and(|spool| spool.hub.contains(seq));
        let over = |spool: &Spool| spool.closed && spool.spans.is_empty();
        let kept = self.rules.spool_is_forgotten_last;
        let done = |spool: &Spool| over(spool) && (spool.next == 1 || !kept || spool.ends.iter().any(has));
        let forgotten: Vec<SpoolId> = self.spools.iter().filter(|(_, spool)| done(spool)).map(|(&id, _)| id).collect();
        for id in &forgotten {
            self.spools.remove(id);
            self.returns.retain(|&(_, spool, _), _| spool != *id);
        }
        forgotten
    }

    // --- showing ---

    /// Where a number is, and what the hub said of it besides "stored".
    pub fn place(&self, spool: SpoolId, seq: u64) -> (Place, Option<(Verdict, Reason)>) {
        let Some(known) = self.spools.get(&spool) else {
            // Forgotten, because the hub has all of it; or so new that only whoever asks knows it yet.
            let is_newer = self.spools.last_key_value().is_none_or(|(newest, _)| spool > *newest);
            return (if is_newer { Place::Here } else { Place::Hub }, None);
        };
        let claims = self.relay.as_ref().and_then(|relay| relay.claims.get(&spool));
        let place = if known.hub.contains(seq) {
            Place::Hub
        } else if known.aside.contains(seq) {
            Place::Dropped
        } else if claims.is_some_and(|claims| claims.contains(seq)) {
            Place::Branch
        } else if seq >= known.next || known.numbers().contains(seq) {
            Place::Here
        } else {
            Place::Branch
        };
        (place, known.shown.get(&seq).copied())
    }

    /// How many batches are held here, and how many of them the connected relay has: (held, in the branch), for a lane.
    pub fn backlog(&self, lane: Lane) -> (u64, u64) {
        let spools = self.spools.iter().filter(|(_, spool)| spool.lane == lane);
        spools.fold((0, 0), |(held, branch), (id, spool)| {
            let mut waiting = spool.numbers();
            waiting.subtract(&spool.hub);
            waiting.subtract(&spool.aside);
            let all = waiting.count();
            if let Some(claims) = self.relay.as_ref().and_then(|relay| relay.claims.get(id)) {
                waiting.subtract(claims);
            }
            (held + all, branch + all - waiting.count())
        })
    }

    /// What the hub said it has of a spool since this agent started.
    pub fn in_hub(&self, spool: SpoolId) -> Ranges {
        self.spools.get(&spool).map(|spool| spool.hub.clone()).unwrap_or_default()
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl Spool {
    fn new(lane: Lane) -> Self {
        Spool {
            lane,
            spans: BTreeMap::new(),
            next: 1,
            closed: false,
            hub: Ranges::new(),
            aside: Ranges::new(),
            end_unknown: false,
            stated: None,
            ends: Vec::new(),
            shown: BTreeMap::new(),
            told: None,
        }
    }

    fn tail(&self, spool: SpoolId) -> Tail {
        let first_held = self.spans.values().map(|&(first, _)| first).min().unwrap_or(self.next);
        Tail { spool, lane: self.lane, first_held, next: self.next, closed: self.closed }
    }

    fn numbers(&self) -> Ranges {
        self.spans.values().copied().collect()
    }

    /// The first numbers, in one segment, that the hub lacks and that are not `elsewhere`: claimed by the relay, on their way, refused by it.
    fn first_wanted(&self, elsewhere: [Option<&Ranges>; 3], most: u64) -> Option<Run> {
        for (&segment, &(first, last)) in &self.spans {
            let mut wanted = Ranges::of(first, last);
            elsewhere.into_iter().chain([Some(&self.hub), Some(&self.aside)]).flatten().for_each(|known| wanted.subtract(known));
            if let Some((from, to)) = wanted.iter().next() {
                return Some(Run { spool: SpoolId([0; 16]), segment, index: from - first, first: from, last: to.min(from + most - 1) });
            }
        }
        None
    }
}
