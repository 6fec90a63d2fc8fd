//! Blocking: the agent's spool: both lanes' queues, joined with what the agent knows of its numbers.
//!
//! A number is born here with the commit of its batch, and never outlives its bytes. Every step that forgets something commits first what
//! says so: a `Gap` before a segment goes, a stub before a spool's last segment goes. The simulation drives it over memory.

use std::sync::PoisonError;

use bytes::Bytes;
use muster_mesh::{
    batch::{Batch, Envelope, Head, SealError},
    clock::{Reading, Zone},
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    limits,
    link::agent_side::{AgentSide, CloneAlarm, PeerError, Rules, Run, Victim},
    message::{HubAck, Returned, Welcome},
    queue::{
        Queue, Unreadable,
        directory::{Directory, DirectoryError, Entry, Room},
        sidecar::{Born, Sidecar},
    },
    ranges::Ranges,
    record::{Gap, GapReason, Kind, Numbers, Record},
};

use crate::journal::SharedJournal;

const STUBS: &str = "stubs";

/// What is in force while records are made; a change of it closes the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchContext {
    pub policy: Version,
    pub notice: Version,
    pub erasure: Version,
    pub test_mode: bool,
    pub boot: BootId,
    pub zone: Zone,
}

/// Both lanes' queues of one agent.
pub struct Spool<D> {
    device: DeviceId,
    lanes: [LaneQueue<D>; 2],
    side: AgentSide,
    /// In force now: what a `Gap` is sealed under.
    context: BatchContext,
    journal: Option<SharedJournal>,
}

struct LaneQueue<D> {
    queue: Queue<D>,
    open: SpoolId,
    bytes_max: u64,
}

/// How large each lane may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub budgets: [u64; 2],
    pub segment_bytes: u64,
}

/// Chance and time for a moment at which spools are born.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    pub now: Reading,
    pub random: [[u8; 10]; 2],
}

/// A batch that is numbered and sealed, and not committed yet.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub lane: Lane,
    pub envelope: Envelope,
    pub records: Vec<Record>,
    head: Head,
}

/// Why something could not be put into the spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the agent's queue: {0}")]
    Disk(#[from] DirectoryError),
    #[error("a batch can't be sealed: {0}")]
    Seal(#[from] SealError),
}

/// What is shown to a person and logged once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incident {
    /// Two computers have this identity, or a disk image was copied back.
    Clone { spool: SpoolId, number: u64 },
    /// Something was dropped: `records` may be unknown (0).
    Dropped { lane: Lane, reason: GapReason, batches: u64 },
}

impl<D: Directory> Spool<D> {
    /// Opens both folders, names what is damaged by a committed `Gap`, and begins a new spool in each lane.
    pub fn open(
        device: DeviceId,
        directories: [D; 2],
        sizes: Sizes,
        context: BatchContext,
        birth: Birth,
        rules: Rules,
    ) -> Result<(Self, Vec<Incident>), SpoolError> {
        Self::open_with(device, directories, sizes, context, birth, rules, None)
    }

    /// As [`open`](Self::open), with a journal that hears of every batch before it is committed.
    pub fn open_with(
        device: DeviceId,
        directories: [D; 2],
        sizes: Sizes,
        context: BatchContext,
        birth: Birth,
        rules: Rules,
        journal: Option<SharedJournal>,
    ) -> Result<(Self, Vec<Incident>), SpoolError> {
        let mut side = AgentSide::new(rules);
        let [telemetry, pictures] = directories;
        let (telemetry, mut damage) = found(telemetry, Lane::Telemetry, &sizes, &mut side)?;
        let (pictures, more) = found(pictures, Lane::Pictures, &sizes, &mut side)?;
        damage.extend(more);
        let mut spool = Spool { device, lanes: [telemetry, pictures], side, context, journal };
        spool.begin(birth)?;
        let mut incidents = Vec::new();
        for damage in damage {
            incidents.push(spool.excuse_damage(damage, birth.now)?);
        }
        Ok((spool, incidents))
    }

    /// Begins new spools in both lanes: at each start, and when the wall clock stepped.
    pub fn begin(&mut self, birth: Birth) -> Result<(), SpoolError> {
        self.begin_lanes(&Lane::ALL, birth)
    }

    /// Begins a new spool in one lane: the numbers of a commit that failed are left behind.
    pub fn begin_lane(&mut self, lane: Lane, birth: Birth) -> Result<(), SpoolError> {
        self.begin_lanes(&[lane], birth)
    }

    fn begin_lanes(&mut self, lanes: &[Lane], birth: Birth) -> Result<(), SpoolError> {
        for lane in lanes {
            self.side.closed(self.lanes[lane.index()].open);
        }
        // Before a roll deletes the empty segment that alone names its spool.
        self.save_stubs()?;
        for &lane in lanes {
            let id = SpoolId::new(birth.now.wall_ms.max(0) as u64, birth.random[lane.index()]);
            self.side.opened(id, lane);
            self.lanes[lane.index()].open = id;
            self.roll(lane)?;
        }
        Ok(())
    }

    /// Closes the lane's tail and opens the next segment of its spool: by size, daily, with a new spool.
    pub fn roll(&mut self, lane: Lane) -> Result<(), SpoolError> {
        let LaneQueue { queue, open, .. } = &mut self.lanes[lane.index()];
        let born = Born { device: self.device, spool: *open, first: self.side.next_number(*open) };
        queue.roll(Some(born), 0)?;
        Ok(())
    }

    pub fn set_context(&mut self, context: BatchContext) {
        self.context = context;
    }

    pub fn context(&self) -> &BatchContext {
        &self.context
    }

    pub fn side(&self) -> &AgentSide {
        &self.side
    }

    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The open spool of a lane.
    pub fn open_spool(&self, lane: Lane) -> SpoolId {
        self.lanes[lane.index()].open
    }

    pub fn queue(&self, lane: Lane) -> &Queue<D> {
        &self.lanes[lane.index()].queue
    }

    pub fn directory(&mut self, lane: Lane) -> &mut D {
        self.lanes[lane.index()].queue.directory()
    }

    pub fn into_directories(self) -> [D; 2] {
        self.lanes.map(|lane| lane.queue.into_directory())
    }

    // --- making batches ---

    /// Numbers and seals one batch under the context in force. It exists only once [`commit`](Self::commit) returned.
    pub fn seal(&mut self, lane: Lane, records: Vec<Record>, closed_at: Reading) -> Result<Sealed, SpoolError> {
        self.seal_behind(0, lane, records, closed_at)
    }

    /// As [`seal`](Self::seal), behind `ahead` batches of the lane that were sealed and not committed yet: all of them are committed together.
    pub fn seal_behind(&mut self, ahead: usize, lane: Lane, records: Vec<Record>, closed_at: Reading) -> Result<Sealed, SpoolError> {
        let spool = self.lanes[lane.index()].open;
        let head = Head {
            boot: self.context.boot,
            wall_ms: closed_at.wall_ms,
            boot_ms: closed_at.boot_ms,
            zone: self.context.zone.name.clone(),
            offset_s: self.context.zone.offset_s,
            // The first of those ahead states them all.
            tails: if ahead == 0 { self.side.tails_to_state(spool) } else { Vec::new() },
        };
        let batch = Batch {
            device: self.device,
            spool,
            seq: self.side.next_number(spool) + ahead as u64,
            lane,
            policy: self.context.policy,
            notice: self.context.notice,
            erasure: self.context.erasure,
            test_mode: self.context.test_mode,
            head,
            records,
        };
        let envelope = batch.seal()?;
        Ok(Sealed { lane, envelope, records: batch.records, head: batch.head })
    }

    /// Commits a sealed batch: from here on its number exists.
    pub fn commit(&mut self, sealed: &Sealed) -> Result<(), SpoolError> {
        self.commit_all(sealed.lane, std::slice::from_ref(sealed))
    }

    /// Commits batches of one lane that were sealed one behind the other, in one transaction.
    pub fn commit_all(&mut self, lane: Lane, sealed: &[Sealed]) -> Result<(), SpoolError> {
        if self.lanes[lane.index()].queue.tail_is_full() {
            self.roll(lane)?;
        }
        if let Some(journal) = &self.journal {
            journal.lock().unwrap_or_else(PoisonError::into_inner).made(sealed);
        }
        let entry = |sealed: &Sealed| Entry { facts: Bytes::new(), envelope: sealed.envelope.clone() };
        let entries: Vec<Entry> = sealed.iter().map(entry).collect();
        let position = self.lanes[lane.index()].queue.append(&entries)?;
        for sealed in sealed {
            let header = sealed.envelope.header();
            self.side.holds(header.spool, position.segment, header.seq, header.seq);
            self.side.stated(header.spool, header.seq, &sealed.head.tails);
        }
        if let Some(journal) = &self.journal {
            journal.lock().unwrap_or_else(PoisonError::into_inner).kept(sealed);
        }
        Ok(())
    }

    /// Batches of a lane that never got a number are dropped: a `Gap` says so before they are forgotten.
    pub fn note_dropped(&mut self, lane: Lane, records: u64, bytes: u64, now: Reading) -> Result<(), SpoolError> {
        self.commit_gaps(vec![Gap { lane, numbers: None, records, bytes, reason: GapReason::Budget }], now)
    }

    /// Seals and commits records of the telemetry lane that the spool itself makes.
    fn commit_gaps(&mut self, gaps: Vec<Gap>, now: Reading) -> Result<(), SpoolError> {
        let mut records: Vec<Record> = gaps.into_iter().map(|gap| Record { at: now.wall_ms, kind: Kind::Gap(gap) }).collect();
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(limits::BATCH_RECORDS_MAX));
            let sealed = self.seal(Lane::Telemetry, records, now)?;
            self.commit(&sealed)?;
            records = rest;
        }
        Ok(())
    }

    // --- sending ---

    /// The next envelopes to send on a lane, at most `bytes_max` beyond the first; they count as sent. Empty: nothing to send now.
    pub fn next_run(
        &mut self,
        lane: Lane,
        most: usize,
        bytes_max: usize,
        now: Reading,
        incidents: &mut Vec<Incident>,
    ) -> Result<Vec<Envelope>, SpoolError> {
        loop {
            let Some(run) = self.side.next_run(lane, most) else { return Ok(Vec::new()) };
            let envelopes = self.read_run(lane, run, bytes_max, now, incidents)?;
            if let (Some(first), Some(last)) = (envelopes.first(), envelopes.last()) {
                self.side.sent(lane, run.spool, first.header().seq, last.header().seq);
                return Ok(envelopes);
            }
        }
    }

    /// Reads a run up to its first damaged number. Damage is excused before this returns, so that the next run doesn't name it.
    fn read_run(
        &mut self,
        lane: Lane,
        run: Run,
        bytes_max: usize,
        now: Reading,
        incidents: &mut Vec<Incident>,
    ) -> Result<Vec<Envelope>, SpoolError> {
        let from = muster_mesh::queue::Position { segment: run.segment, index: run.index };
        let found = self.lanes[lane.index()].queue.read(from, bytes_max)?;
        if let Some(unreadable) = found.unreadable {
            incidents.push(self.excuse_damage(Damage::Segment { lane, unreadable }, now)?);
            return Ok(Vec::new());
        }
        for lost in found.lost {
            incidents.push(self.excuse_damage(Damage::Numbers { lane, spool: lost.spool, numbers: lost.numbers }, now)?);
        }
        let envelopes = found.entries.into_iter().map(|(_, entry)| entry.envelope);
        let run_of = |seq: u64, envelope: &Envelope| envelope.header().seq == seq && envelope.header().spool == run.spool;
        let envelopes: Vec<Envelope> = (run.first..=run.last)
            .zip(envelopes)
            .take_while(|(seq, envelope)| run_of(*seq, envelope))
            .map(|(_, envelope)| envelope)
            .collect();
        if envelopes.is_empty() && !self.side_knows_aside(run) {
            // The read found neither the number nor damage to name: whatever lies there is not this number.
            let numbers = Ranges::of(run.first, run.first);
            incidents.push(self.excuse_damage(Damage::Numbers { lane, spool: run.spool, numbers }, now)?);
        }
        Ok(envelopes)
    }

    fn side_knows_aside(&self, run: Run) -> bool {
        self.side.is_aside(run.spool, run.first)
    }

    // --- the connection ---

    pub fn on_welcome(&mut self, relay: usize, welcome: &Welcome, birth: Birth) -> Result<Vec<Incident>, SpoolError> {
        let alarms = self.side.on_welcome(relay, welcome);
        self.alarm(alarms, birth)
    }

    pub fn on_disconnect(&mut self) {
        self.side.on_disconnect();
    }

    /// Returns what newly lies in the branch.
    pub fn on_ack(&mut self, lane: Lane, count: u64) -> Result<Vec<(SpoolId, u64)>, PeerError> {
        self.side.on_ack(lane, count)
    }

    /// Numbers that the relay doesn't have any more. They stay here.
    pub fn on_returned(&mut self, returned: &Returned) {
        self.side.on_returned(returned);
    }

    /// The hub's ack: what it names may go. True when it says something new.
    pub fn on_hub_ack(&mut self, spool: SpoolId, epoch: u32, ack: &HubAck, birth: Birth) -> Result<(bool, Vec<Incident>), SpoolError> {
        let (news, alarm) = self.side.on_hub_ack(spool, epoch, ack);
        let incidents = self.alarm(alarm.into_iter().collect(), birth)?;
        if news {
            self.tidy()?;
        }
        Ok((news, incidents))
    }

    pub fn side_mut(&mut self) -> &mut AgentSide {
        &mut self.side
    }

    fn alarm(&mut self, alarms: Vec<CloneAlarm>, birth: Birth) -> Result<Vec<Incident>, SpoolError> {
        if alarms.iter().any(|alarm| alarm.was_open) {
            self.begin(birth)?;
        }
        Ok(alarms.into_iter().map(|alarm| Incident::Clone { spool: alarm.spool, number: alarm.number }).collect())
    }

    // --- forgetting ---

    /// Deletes what the hub has, and forgets spools that are over.
    pub fn tidy(&mut self) -> Result<(), SpoolError> {
        for lane in Lane::ALL {
            for (segment, spool) in self.side.deletable(lane) {
                if self.lanes[lane.index()].queue.tail() != Some(segment) {
                    self.delete(lane, segment, spool)?;
                }
            }
        }
        if !self.side.forget().is_empty() {
            self.save_stubs()?;
        }
        Ok(())
    }

    /// The stub lies on the disk before a spool's last segment goes.
    fn delete(&mut self, lane: Lane, segment: u64, spool: SpoolId) -> Result<(), SpoolError> {
        self.side.deleted(segment, spool);
        if self.side.stubs(lane).any(|(stub, _)| stub == spool) {
            self.save_stubs()?;
        }
        self.lanes[lane.index()].queue.delete(segment)?;
        Ok(())
    }

    fn save_stubs(&mut self) -> Result<(), SpoolError> {
        for lane in Lane::ALL {
            let stubs: Vec<u8> =
                self.side.stubs(lane).flat_map(|(spool, next)| [spool.0.as_slice(), &next.to_le_bytes()].concat()).collect();
            let bytes = [stubs.as_slice(), &crc32c::crc32c(&stubs).to_le_bytes()].concat();
            let directory = self.lanes[lane.index()].queue.directory();
            if directory.file(STUBS)?.as_deref() != Some(&bytes) {
                directory.put_file(STUBS, &bytes, true)?;
            }
        }
        Ok(())
    }

    /// Whether the disk has room for pictures besides what the rest of the day needs.
    pub fn has_room_for_pictures(&mut self) -> bool {
        let room = self.directory(Lane::Pictures).room();
        room.is_none_or(|Room { free, size }| free > limits::PICTURES_LEAVE_BYTES.min(size / limits::PICTURES_LEAVE_PART))
    }

    /// Frees segments until each lane is within its budget: first what the connected relay claims, then the oldest, with a `Gap` before it.
    pub fn keep_budget(&mut self, now: Reading) -> Result<Vec<Incident>, SpoolError> {
        let mut incidents = Vec::new();
        for lane in [Lane::Pictures, Lane::Telemetry] {
            while self.lanes[lane.index()].queue.used_bytes() > self.lanes[lane.index()].bytes_max {
                let Some(incident) = self.free_one(lane, now)? else { break };
                incidents.extend(incident);
            }
        }
        Ok(incidents)
    }

    /// On a disk without a byte left: pictures make room for the rest. The `Gap` that names them comes first, in what the folder's reserve gives.
    pub fn free_pictures(&mut self, birth: Birth) -> Result<Option<Incident>, SpoolError> {
        let tail = self.lanes[Lane::Pictures.index()].queue.tail().unwrap_or(0);
        let Some(victim) = self.side.victim(Lane::Pictures, tail) else { return Ok(None) };
        if !victim.unclaimed.is_empty() {
            // The tail whose commit failed takes nothing more.
            self.begin_lane(Lane::Telemetry, birth)?;
        }
        Ok(self.free_one(Lane::Pictures, birth.now)?.flatten())
    }

    /// Frees one segment of a lane. None: there is none besides the tail.
    pub fn free_one(&mut self, lane: Lane, now: Reading) -> Result<Option<Option<Incident>>, SpoolError> {
        let tail = self.lanes[lane.index()].queue.tail().unwrap_or(0);
        let Some(Victim { segment, spool, unclaimed }) = self.side.victim(lane, tail) else { return Ok(None) };
        let mut incident = None;
        if !unclaimed.is_empty() {
            let gaps = self.gaps_for(lane, segment, spool, &unclaimed)?;
            self.commit_gaps(gaps, now)?;
            incident = Some(Incident::Dropped { lane, reason: GapReason::Budget, batches: unclaimed.count() });
        }
        // What its batches stated may never reach the hub, or never be acked to this agent: it is stated again.
        self.side.dropped(segment, spool);
        self.delete(lane, segment, spool)?;
        Ok(Some(incident))
    }

    /// The `Gap`s that excuse these numbers, and those that were in them: dropping a `Gap` must not drop what it said.
    fn gaps_for(&mut self, lane: Lane, segment: u64, spool: SpoolId, numbers: &Ranges) -> Result<Vec<Gap>, SpoolError> {
        let (mut records, mut bytes, mut carried) = (0, 0, Vec::new());
        let mut at = muster_mesh::queue::Position { segment, index: 0 };
        loop {
            let found = self.lanes[lane.index()].queue.read(at, limits::COMMIT_BYTES_MAX)?;
            for (_, entry) in found.entries {
                let header = entry.envelope.header();
                if header.spool != spool || !numbers.contains(header.seq) {
                    continue;
                }
                records += u64::from(header.records);
                bytes += header.envelope_len() as u64;
                let opened = entry.envelope.open().map(|batch| batch.records).unwrap_or_default();
                carried.extend(opened.into_iter().filter_map(|record| if let Kind::Gap(gap) = record.kind { Some(gap) } else { None }));
            }
            if found.unreadable.is_some() || found.next.segment != segment || found.next == at {
                break;
            }
            at = found.next;
        }
        let mut gaps = gaps(lane, spool, numbers, GapReason::Budget);
        if let Some(first) = gaps.first_mut() {
            (first.records, first.bytes) = (records, bytes);
        }
        gaps.extend(carried);
        Ok(gaps)
    }

    fn excuse(&mut self, lane: Lane, spool: SpoolId, numbers: &Ranges, reason: GapReason, now: Reading) -> Result<(), SpoolError> {
        self.commit_gaps(gaps(lane, spool, numbers, reason), now)?;
        self.side.set_aside(spool, numbers);
        Ok(())
    }

    /// Names damage by a committed `Gap`, then lets go of it.
    fn excuse_damage(&mut self, damage: Damage, now: Reading) -> Result<Incident, SpoolError> {
        let reason = GapReason::Damaged;
        match damage {
            Damage::Numbers { lane, spool, numbers } => {
                self.excuse(lane, spool, &numbers, reason, now)?;
                Ok(Incident::Dropped { lane, reason, batches: numbers.count() })
            }
            Damage::End { lane, spool, first } => {
                self.commit_gaps(vec![open_gap(lane, spool, first)], now)?;
                self.side.end_is_unknown(spool, first);
                Ok(Incident::Dropped { lane, reason, batches: 0 })
            }
            Damage::Segment { lane, unreadable } => {
                let mut batches = 0;
                let sidecar = unreadable.sidecar.unwrap_or_default();
                for (&(_, spool), numbers) in &sidecar.ranges {
                    batches += numbers.count();
                    self.commit_gaps(gaps(lane, spool, numbers, reason), now)?;
                }
                if let Some(born) = sidecar.born.filter(|_| unreadable.open_ended) {
                    self.commit_gaps(vec![open_gap(lane, born.spool, born.first)], now)?;
                    self.side.end_is_unknown(born.spool, born.first);
                }
                let was_tail = self.lanes[lane.index()].queue.tail() == Some(unreadable.segment);
                self.forget_segment(lane, unreadable.segment, &sidecar)?;
                if was_tail {
                    self.roll(lane)?;
                }
                Ok(Incident::Dropped { lane, reason, batches })
            }
        }
    }

    fn forget_segment(&mut self, lane: Lane, segment: u64, sidecar: &Sidecar) -> Result<(), SpoolError> {
        let spools = sidecar.ranges.keys().map(|key| key.1).chain(sidecar.born.map(|born| born.spool));
        spools.for_each(|spool| self.side.dropped(segment, spool));
        self.save_stubs()?;
        self.lanes[lane.index()].queue.set_aside(segment)?;
        Ok(())
    }
}

/// Damage that no `Gap` names yet.
enum Damage {
    Numbers {
        lane: Lane,
        spool: SpoolId,
        numbers: Ranges,
    },
    /// From this number up anything may have been.
    End {
        lane: Lane,
        spool: SpoolId,
        first: u64,
    },
    Segment {
        lane: Lane,
        unreadable: Unreadable,
    },
}

/// Opens one lane's folder and tells the side what lies in it.
fn found<D: Directory>(directory: D, lane: Lane, sizes: &Sizes, side: &mut AgentSide) -> Result<(LaneQueue<D>, Vec<Damage>), SpoolError> {
    let (mut queue, opened) = Queue::open(directory, sizes.segment_bytes)?;
    let stubs = queue.directory().file(STUBS)?.unwrap_or_default();
    if let Some((stubs, crc)) = stubs.split_last_chunk::<4>()
        && crc32c::crc32c(stubs) == u32::from_le_bytes(*crc)
    {
        for stub in stubs.as_chunks::<24>().0 {
            let (mut spool, mut next) = ([0; 16], [0; 8]);
            spool.copy_from_slice(&stub[..16]);
            next.copy_from_slice(&stub[16..]);
            side.found(SpoolId(spool), lane, u64::from_le_bytes(next));
        }
    }
    for (segment, sidecar) in queue.segments() {
        if let Some(born) = sidecar.born.filter(|born| born.first > 1) {
            side.found(born.spool, lane, born.first);
        }
        let born = sidecar.born.filter(|_| sidecar.count > 0).map(|born| (born.spool, born.first, born.first + sidecar.count - 1));
        let ranges = sidecar.ranges.iter().filter_map(|(key, numbers)| Some((key.1, numbers.first()?, numbers.last()?)));
        for (spool, first, last) in born.into_iter().chain(ranges.filter(|_| born.is_none())) {
            side.found(spool, lane, last + 1);
            side.holds(spool, segment, first, last);
        }
    }
    let unreadable = opened.unreadable.into_iter();
    let mut damage: Vec<Damage> = Vec::new();
    for unreadable in unreadable {
        if let Some(born) = unreadable.sidecar.as_ref().and_then(|sidecar| sidecar.born) {
            side.found(born.spool, lane, born.first);
        }
        damage.push(Damage::Segment { lane, unreadable });
    }
    damage.extend(opened.lost.into_iter().map(|lost| Damage::Numbers { lane, spool: lost.spool, numbers: lost.numbers }));
    damage.extend(opened.open_ended.into_iter().map(|(spool, first)| Damage::End { lane, spool, first }));
    let lane_queue = LaneQueue { queue, open: SpoolId([0; 16]), bytes_max: sizes.budgets[lane.index()] };
    Ok((lane_queue, damage))
}

fn gaps(lane: Lane, spool: SpoolId, numbers: &Ranges, reason: GapReason) -> Vec<Gap> {
    let gap = |(first, last)| Gap { lane, numbers: Some(Numbers { spool, first, last: Some(last) }), records: 0, bytes: 0, reason };
    numbers.iter().map(gap).collect()
}

fn open_gap(lane: Lane, spool: SpoolId, first: u64) -> Gap {
    Gap { lane, numbers: Some(Numbers { spool, first, last: None }), records: 0, bytes: 0, reason: GapReason::Damaged }
}
