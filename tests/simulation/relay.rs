//! Quiet: a relay in memory: the relay's buffers and its side of the connections, with a network that can lose and delay.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_mesh::{
    batch::Envelope,
    ids::{BootId, InstanceId, Lane, SpoolId},
    link::{
        relay_side::{ConnectionId, RelaySide},
        relay_sync::Rules,
    },
    message::{Answer, Facts, HubAck, PostHead, Signed, Taken},
    queue::{
        directory::{DirectoryError, Entry},
        memory::Memory,
    },
};
use muster_relay::buffer::{Buffer, Gone, Size, facts};

use crate::{
    hub::Hub,
    plant::Plant,
    world::{DEVICE, SEGMENT_BYTES},
};

/// One relay of the simulated mesh.
pub struct Relay {
    pub buffers: [Buffer<Memory>; 2],
    pub side: RelaySide,
    /// Read from a connection and not committed yet.
    pub inbox: Vec<(ConnectionId, Lane, Envelope)>,
    pub posts: [Option<InFlight>; 2],
    backed_up: [Option<u64>; 2],
    plant: Option<Plant>,
    /// Planted: the highest number taken of each spool, and the highest posted.
    watermark: BTreeMap<SpoolId, u64>,
    posted: BTreeMap<SpoolId, u64>,
}

/// A POST on its way, or its answer.
#[derive(Clone)]
pub struct InFlight {
    pub head: PostHead,
    pub posted: Vec<Result<Envelope, ()>>,
    pub answer: Option<Answer>,
}

impl Relay {
    pub fn open(directories: [Memory; 2], instances: [InstanceId; 2], plant: Option<Plant>) -> Self {
        let rules = Rules {
            numbers_rise_for_ever: plant != Some(Plant::NumbersAreReusedAfterARewind),
            rewind_is_synced: plant != Some(Plant::RewindIsForgottenInACrash),
            segments_rise_for_ever: plant != Some(Plant::SegmentNumbersAreReused),
        };
        Relay::open_with(directories, instances, rules, Size { bytes_max: u64::MAX, segment_bytes: SEGMENT_BYTES }, plant)
    }

    /// A sound relay with a budget.
    pub fn open_sized(directories: [Memory; 2], instances: [InstanceId; 2], bytes_max: u64, segment_bytes: u64) -> Self {
        Relay::open_with(directories, instances, Rules::default(), Size { bytes_max, segment_bytes }, None)
    }

    fn open_with(directories: [Memory; 2], instances: [InstanceId; 2], rules: Rules, size: Size, plant: Option<Plant>) -> Self {
        let [telemetry, pictures] = directories;
        let open = |lane: Lane, directory| Buffer::open(lane, directory, size, instances[lane.index()], rules).expect("memory opens");
        let buffers = [open(Lane::Telemetry, telemetry), open(Lane::Pictures, pictures)];
        let side = RelaySide::new(1);
        Relay {
            buffers,
            side,
            inbox: Vec::new(),
            posts: [None, None],
            backed_up: [None, None],
            plant,
            watermark: BTreeMap::new(),
            posted: BTreeMap::new(),
        }
    }

    pub fn new_directory(plant: Option<Plant>) -> Memory {
        let mut memory = Memory::default();
        memory.forgets_highest = plant == Some(Plant::SegmentNumbersAreReused);
        memory.forgets_sidecars = plant == Some(Plant::SidecarIsRewrittenInMemoryOnly);
        memory
    }

    /// The process is killed and started again: what was not committed is gone.
    pub fn crash(self, instances: [InstanceId; 2]) -> Self {
        let (plant, watermark) = (self.plant, self.watermark);
        let directories = self.buffers.map(|buffer| {
            let mut directory = buffer.into_directory();
            directory.cut();
            directory
        });
        Relay { watermark, ..Relay::open(directories, instances, plant) }
    }

    /// Commits the inbox, one commit per lane, and only then counts the acks. An error: nothing more is acked until the folder was reopened.
    pub fn commit(&mut self) -> Result<(), DirectoryError> {
        for lane in Lane::ALL {
            let arrived: Vec<_> = self.inbox.iter().filter(|(_, of, _)| *of == lane).cloned().collect();
            let mut entries = Vec::new();
            for (_, _, envelope) in &arrived {
                if self.keeps(envelope) {
                    entries.push(Entry { facts: arrival(), envelope: envelope.clone() });
                }
            }
            if !entries.is_empty() {
                self.buffers[lane.index()].commit(&entries)?;
            }
            for (connection, _, _) in arrived {
                self.side.committed(connection, lane, 1);
            }
        }
        self.inbox.clear();
        Ok(())
    }

    /// A sound relay keeps everything.
    fn keeps(&mut self, envelope: &Envelope) -> bool {
        let header = envelope.header();
        let mark = self.watermark.entry(header.spool).or_default();
        let keeps = match self.plant {
            Some(Plant::RelayDropsBelowWatermark) => header.seq > *mark,
            Some(Plant::RelayTakesOnlyTheNext) => header.seq == *mark + 1,
            _ => true,
        };
        if keeps {
            *mark = (*mark).max(header.seq);
        }
        keeps
    }

    /// Sends the next POST of a lane, with up to `most` batches.
    pub fn post(&mut self, lane: Lane, most: usize, now_ms: i64, hub: &mut Hub) -> Gone {
        let mut gone = Gone::default();
        if self.posts[lane.index()].is_some() {
            return gone;
        }
        // The simulated batches have about 200 bytes.
        let next = self.buffers[lane.index()].post(most * 260, now_ms, &mut gone).expect("memory reads");
        self.name_damage(&mut gone);
        if self.plant == Some(Plant::DamagedCountsAsReceived) {
            gone.returned.drain(..).for_each(|(lost, _)| hub.count_as_stored(lost.device, lost.spool, &lost.numbers));
        }
        let (number, entries) = next.map_or((0, Vec::new()), |post| (post.number, post.entries));
        if entries.is_empty() && lane == Lane::Pictures {
            return gone;
        }
        let asks = if lane == Lane::Telemetry && self.plant != Some(Plant::NothingIsAsked) { self.side.asks(4_096) } else { Vec::new() };
        let queues = self.buffers.iter().map(|buffer| buffer.sync().queue_state()).collect();
        let head = PostHead { lane, number, queues, asks, presence: None, relay_ms: now_ms, versions: Vec::new() };
        let posted: Vec<_> = entries.into_iter().map(|(_, envelope)| Envelope::read(envelope).map_err(|_| ())).collect();
        for envelope in posted.iter().flatten() {
            let highest = self.posted.entry(envelope.header().spool).or_default();
            *highest = (*highest).max(envelope.header().seq);
        }
        self.posts[lane.index()] = Some(InFlight { head, posted, answer: None });
        gone
    }

    /// Planted: a damaged envelope is named by its own header, whose number the damage changed.
    fn name_damage(&self, gone: &mut Gone) {
        if self.plant != Some(Plant::DamageIsNamedByTheDamagedHeader) {
            return;
        }
        for (lost, _) in &mut gone.returned {
            lost.numbers = lost.numbers.numbers().map(|seq| (seq + 64, seq + 64)).collect();
        }
    }

    /// The answer of a lane's POST arrives, if there is one.
    pub fn answer(&mut self, lane: Lane, now_ms: i64, hub: &mut Hub) -> Gone {
        let Some(InFlight { answer: Some(_), .. }) = &self.posts[lane.index()] else { return Gone::default() };
        let Some(InFlight { head, posted, answer: Some(answer) }) = self.posts[lane.index()].take() else { return Gone::default() };
        match answer {
            Answer::Taken(taken) => self.taken(lane, &head, &posted, taken, now_ms, hub),
            Answer::Stale { number } => {
                self.buffers[lane.index()].stale(number);
                Gone::default()
            }
            Answer::Rewind { queues } => {
                self.buffers[lane.index()].failed();
                for (lane, number) in queues {
                    self.posts[lane.index()] = None;
                    self.buffers[lane.index()].rewind(number).expect("memory has room");
                }
                Gone { devices: vec![DEVICE], ..Gone::default() }
            }
        }
    }

    fn taken(&mut self, lane: Lane, head: &PostHead, posted: &[Result<Envelope, ()>], taken: Taken, now_ms: i64, hub: &mut Hub) -> Gone {
        self.backed_up = taken.backed_up;
        for ack in taken.acks {
            self.side.signed(self.inferred(ack.into(), hub));
        }
        if posted.is_empty() {
            return Gone::default();
        }
        let mut gone = self.buffers[lane.index()].taken(head.number, &taken.returned, now_ms).expect("memory has room");
        self.name_damage(&mut gone);
        if self.plant == Some(Plant::RelayFreesAtOnce) {
            self.buffers[lane.index()].free(Some(u64::MAX), now_ms).expect("memory deletes");
        }
        gone
    }

    /// Planted: the relay makes up the hub's ack from what it posted.
    fn inferred(&self, ack: Bytes, hub: &Hub) -> Bytes {
        if self.plant != Some(Plant::RelayInfersTheHubAck) {
            return ack;
        }
        let signed = Signed::read(&ack).expect("the hub's ack decodes");
        let (device, spool) = (signed.device.expect("named"), signed.spool.expect("named"));
        let stored = self.posted.get(&spool).map(|&highest| (1, highest)).into_iter().collect();
        hub.signed(device, spool, &HubAck { stored, ..HubAck::default() }).into()
    }

    pub fn free(&mut self, lane: Lane, now_ms: i64) {
        let backed_up = match self.plant {
            Some(Plant::RelayFreesAfterATime) => Some(u64::MAX),
            _ => self.backed_up[lane.index()],
        };
        self.buffers[lane.index()].free(backed_up, now_ms).expect("memory deletes");
    }
}

fn arrival() -> Bytes {
    facts(&Facts { receipt_ms: 0, dial: 0, boot: BootId([0; 16]), zero_ms: 0, address: None })
}
