//! Quiet: a hub in memory: the hub's range code over maps instead of tables.

use std::collections::{BTreeMap, BTreeSet};

use muster_mesh::{
    batch::Envelope,
    ids::{DeviceId, InstanceId, Lane, SpoolId, Version},
    limits,
    link::hub_ranges::{Comparison, Judgement, SpoolRow, compare},
    message::{Answer, HubAck, PostHead, Reason, ReturnReason, Signed, SignedKind, Taken, Verdict},
    ranges::Ranges,
    record::Kind,
};

use crate::plant::Plant;

/// What a backup contains.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub rows: BTreeMap<(DeviceId, SpoolId), SpoolRow>,
    pub instances: BTreeMap<InstanceId, u64>,
    /// How often the rows of an envelope were inserted, by (spool, seq, digest).
    pub contents: BTreeMap<(SpoolId, u64, [u8; 8]), u32>,
    pub held: BTreeSet<(SpoolId, u64, [u8; 8])>,
}

/// The hub and its backups.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    pub state: State,
    pub backups: Vec<State>,
    /// Everything that was stored at any time, restores notwithstanding.
    pub ever: BTreeSet<(SpoolId, u64)>,
    pub epoch: u32,
    plant: Option<Plant>,
    /// For planted bugs: the incarnation that each relay queue saw last, and the count that it was answered.
    seen_epoch: BTreeMap<InstanceId, u32>,
    answered_count: BTreeMap<InstanceId, u64>,
}

impl Hub {
    pub fn new(plant: Option<Plant>) -> Self {
        Hub { plant, epoch: 1, ..Hub::default() }
    }

    /// Takes a POST: `None` is an envelope whose frame is damaged.
    pub fn take(&mut self, head: &PostHead, posted: &[Result<Envelope, ()>]) -> Answer {
        match self.compare(head, !posted.is_empty()) {
            Comparison::Fresh => {}
            Comparison::Stale { number } => return Answer::Stale { number },
            Comparison::Rewind { queues } => return Answer::Rewind { queues },
        }
        let mut returned = Vec::new();
        let mut spools = BTreeSet::new();
        for (i, envelope) in posted.iter().enumerate() {
            match envelope {
                Ok(envelope) => {
                    spools.insert((envelope.header().device, envelope.header().spool));
                    returned.extend(self.one(envelope).map(|why| (i as u32, why)));
                }
                Err(()) => returned.push((i as u32, ReturnReason::Damaged)),
            }
        }
        if let (false, Some(own)) = (posted.is_empty(), self.own_instance(head)) {
            let number = self.state.instances.entry(own).or_default();
            *number = if self.plant == Some(Plant::HubCountsPosts) { *number + 1 } else { head.number };
            self.answered_count.insert(own, *number);
        }
        let asks: BTreeMap<_, _> = head.asks.iter().map(|ask| ((ask.device, ask.spool), ask.from)).collect();
        let acked = asks.keys().copied().chain(spools).collect::<BTreeSet<_>>();
        let acks = acked.into_iter().map(|key| self.ack(key, asks.get(&key).copied().unwrap_or(1))).collect();
        let taken = Taken { number: head.number, returned, acks, backed_up: self.backed_up(head), ..Taken::default() };
        Answer::Taken(taken)
    }

    fn own_instance(&self, head: &PostHead) -> Option<InstanceId> {
        let lane = if self.plant == Some(Plant::OneCounterOverBothLanes) { Lane::Telemetry } else { head.lane };
        head.queues.iter().find(|queue| queue.lane == lane).map(|queue| queue.instance)
    }

    fn compare(&mut self, head: &PostHead, has_envelopes: bool) -> Comparison {
        let mut head = head.clone();
        match self.plant {
            Some(Plant::PostComparesItsOwnLane) => head.queues.retain(|queue| queue.lane == head.lane),
            Some(Plant::NoRestoreIsSeen) => head.queues.iter_mut().for_each(|queue| queue.answered = 0),
            Some(Plant::OnlyAnnouncedRestoresAreSeen) => {
                let changed = head
                    .queues
                    .iter()
                    .filter(|queue| self.seen_epoch.insert(queue.instance, self.epoch).is_some_and(|seen| seen != self.epoch));
                let queues: Vec<_> =
                    changed.map(|queue| (queue.lane, self.state.instances.get(&queue.instance).copied().unwrap_or(0))).collect();
                if !queues.is_empty() {
                    return Comparison::Rewind { queues };
                }
                head.queues.iter_mut().for_each(|queue| queue.answered = 0);
            }
            Some(Plant::OneCounterOverBothLanes) => {
                let shared = head.queues.iter().find(|queue| queue.lane == Lane::Telemetry).map(|queue| queue.instance);
                head.queues.iter_mut().for_each(|queue| queue.instance = shared.unwrap_or(queue.instance));
            }
            Some(Plant::HubCountsPosts) => {
                // The number of a POST says nothing here: only how many there were.
                head.number = u64::MAX;
                for queue in &mut head.queues {
                    let answered = self.answered_count.get(&queue.instance).copied().unwrap_or(0);
                    queue.answered = if queue.answered == 0 { 0 } else { answered };
                }
            }
            _ => {}
        }
        compare(&head, has_envelopes, |instance| self.state.instances.get(&instance).copied().unwrap_or(0))
    }

    fn one(&mut self, envelope: &Envelope) -> Option<ReturnReason> {
        let (header, digest) = (*envelope.header(), envelope.digest());
        let key = (header.device, header.spool);
        let name = (header.spool, header.seq, digest);
        let row = self.state.rows.entry(key).or_default();
        match row.judge(header.seq, digest) {
            Judgement::Repeat => return None,
            Judgement::TooManyRanges => return Some(ReturnReason::TooManyRanges),
            Judgement::OtherContent => {
                self.state.held.insert(name);
                return None;
            }
            Judgement::New => {}
        }
        row.take(header.seq, digest, Verdict::Stored, Reason::None, 0);
        *self.state.contents.entry(name).or_default() += 1;
        self.ever.insert((header.spool, header.seq));
        let batch = envelope.open().expect("the simulated agent seals what this build opens");
        if self.plant != Some(Plant::TailsAreNotStated) {
            for tail in &batch.head.tails {
                self.state.rows.entry((header.device, tail.spool)).or_default().state(tail);
            }
        }
        for record in &batch.records {
            if let Kind::Gap(gap) = &record.kind
                && let Some(numbers) = gap.numbers
            {
                let row = self.state.rows.entry((header.device, numbers.spool)).or_default();
                row.excuse(numbers.first, numbers.last);
                if self.plant == Some(Plant::StoredAndExcusedAreOneSet) {
                    count_as_stored(row, &row.excused().clone());
                }
            }
        }
        None
    }

    /// Planted: numbers count as stored without their bytes.
    pub fn count_as_stored(&mut self, device: DeviceId, spool: SpoolId, numbers: &Ranges) {
        count_as_stored(self.state.rows.entry((device, spool)).or_default(), numbers);
    }

    fn ack(&self, (device, spool): (DeviceId, SpoolId), from: u64) -> Vec<u8> {
        let row = self.state.rows.get(&(device, spool)).cloned().unwrap_or_default();
        let ack = match self.plant {
            Some(Plant::HubAcksThePrefix) => {
                let prefix = row.stored().iter().next().filter(|(first, _)| *first == 1);
                HubAck { stored: prefix.into_iter().collect(), ..HubAck::default() }
            }
            Some(Plant::AnswerStartsAtTheHubsFloor) => row.ack(row.first_held().max(from)),
            _ => row.ack(from),
        };
        self.signed(device, spool, &ack)
    }

    pub fn signed(&self, device: DeviceId, spool: SpoolId, ack: &HubAck) -> Vec<u8> {
        let body = ack.bytes().expect("an ack encodes");
        let mut signed = Signed::new(SignedKind::Ack, Version { epoch: self.epoch, n: 0 }, body);
        (signed.device, signed.spool) = (Some(device), Some(spool));
        signed.bytes().expect("an ack encodes")
    }

    fn backed_up(&self, head: &PostHead) -> [Option<u64>; 2] {
        Lane::ALL.map(|lane| {
            let instance = head.queues.iter().find(|queue| queue.lane == lane)?.instance;
            self.backups.iter().map(|backup| backup.instances.get(&instance).copied().unwrap_or(0)).min()
        })
    }

    pub fn backup(&mut self) {
        self.backups.push(self.state.clone());
        let kept = self.backups.len().min(2);
        self.backups.drain(..self.backups.len() - kept);
    }

    pub fn restore(&mut self, silent: bool, oldest: bool, keep: bool) {
        let Some(last) = self.backups.len().checked_sub(1) else { return };
        let which = if oldest { 0 } else { last };
        self.state = self.backups[which].clone();
        if !keep {
            self.backups.truncate(which + 1);
        }
        if !silent {
            self.epoch += 1;
        }
    }
}

fn count_as_stored(row: &mut SpoolRow, numbers: &Ranges) {
    for seq in numbers.numbers().take(limits::RANGES_SENT_MAX * 4) {
        if !row.stored().contains(seq) {
            row.take(seq, [0; 8], Verdict::Stored, Reason::None, 0);
        }
    }
}
