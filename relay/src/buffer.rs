//! Blocking: one lane's buffer at a relay: its queue, how far the hub has answered, and when what lies here may go.
//!
//! What may be decided without a disk is decided in `mesh::link::relay_sync`; this joins it with the folder. The simulation drives it over
//! memory.

use bytes::Bytes;
use muster_mesh::{
    ids::{DeviceId, InstanceId, Lane},
    limits,
    link::relay_sync::{Progress, RelaySync, Rules},
    message::{Claim, Facts, ReturnReason},
    queue::{
        Lost, Position, Queue,
        directory::{Directory, DirectoryError, Entry},
    },
};

const PROGRESS: &str = "progress";
/// A POST is read in steps of this: it may be full by its count long before it is by its bytes.
const READ_BYTES: usize = 1 << 20;

/// One lane's queue at a relay, with its way to the hub.
pub struct Buffer<D> {
    lane: Lane,
    queue: Queue<D>,
    sync: RelaySync,
    bytes_max: u64,
    post: Option<Vec<Sent>>,
    quarantined: u64,
}

/// An envelope of the POST that is in flight.
struct Sent {
    position: Position,
    device: DeviceId,
    spool: muster_mesh::ids::SpoolId,
    seq: u64,
}

/// What the next POST of this lane carries.
pub struct Post {
    pub number: u64,
    /// Encoded facts and envelope.
    pub entries: Vec<(Bytes, Bytes)>,
}

/// Numbers that connected agents must hear of: they are not here any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone {
    /// Sent again by their agents.
    pub returned: Vec<(Lost, ReturnReason)>,
    /// Whole files went: the connections of these devices end, so that they are welcomed anew.
    pub devices: Vec<DeviceId>,
}

/// How large a lane's buffer may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub bytes_max: u64,
    pub segment_bytes: u64,
}

impl<D: Directory> Buffer<D> {
    /// Opens the folder. What can't be read is set aside at once: its agents still have it, or hear from the hub that it has it.
    pub fn open(lane: Lane, directory: D, size: Size, new_instance: InstanceId, rules: Rules) -> Result<Self, DirectoryError> {
        let (mut queue, opened) = Queue::open(directory, size.segment_bytes)?;
        let quarantined = opened.unreadable.len() as u64;
        for unreadable in opened.unreadable {
            queue.set_aside(unreadable.segment)?;
        }
        let progress = queue.directory().file(PROGRESS)?.and_then(|bytes| Progress::from_bytes(&bytes));
        let sync = RelaySync::open(lane, progress, new_instance, queue.oldest(), rules);
        queue.roll(None, sync.last_known_segment())?;
        let mut buffer = Buffer { lane, queue, sync, bytes_max: size.bytes_max, post: None, quarantined };
        buffer.save_if_needed()?;
        Ok(buffer)
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    pub fn sync(&self) -> &RelaySync {
        &self.sync
    }

    pub fn queue(&self) -> &Queue<D> {
        &self.queue
    }

    /// Segments that went into quarantine since this was opened.
    pub fn quarantined(&self) -> u64 {
        self.quarantined
    }

    pub fn into_directory(self) -> D {
        self.queue.into_directory()
    }

    pub fn directory(&mut self) -> &mut D {
        self.queue.directory()
    }

    /// Commits these envelopes: when it returns they lie on the disk and may be acked, not before.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<(), DirectoryError> {
        if self.queue.tail_is_full() {
            self.roll()?;
        }
        self.queue.append(entries).map(|_| ())
    }

    /// Closes the tail: by size, at each start, daily.
    pub fn roll(&mut self) -> Result<(), DirectoryError> {
        self.queue.roll(None, self.sync.last_known_segment()).map(|_| ())
    }

    /// What lies here of one device, in readable files: at most so many spools, newest first.
    pub fn claims(&self, device: DeviceId) -> Vec<Claim> {
        let spools = self.queue.spools(device).into_iter().rev().take(limits::WELCOME_SPOOLS_MAX / 2);
        let claim = |spool| Claim { spool, ranges: self.queue.claimed(device, spool).from(0, limits::RANGES_SENT_MAX) };
        spools.map(claim).filter(|claim: &Claim| !claim.ranges.is_empty()).collect()
    }

    /// Whether something waits for the hub.
    pub fn has_backlog(&self) -> bool {
        let at = self.sync.position();
        self.queue
            .segments()
            .any(|(segment, sidecar)| segment > at.segment && sidecar.count > 0 || segment == at.segment && at.index < sidecar.count)
    }

    /// Envelopes that wait for the hub.
    pub fn backlog(&self) -> u64 {
        let at = self.sync.position();
        let waiting = |(segment, count): (u64, u64)| match segment.cmp(&at.segment) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => count.saturating_sub(at.index),
            std::cmp::Ordering::Greater => count,
        };
        self.queue.segments().map(|(segment, sidecar)| waiting((segment, sidecar.count))).sum()
    }

    /// The next POST: envelopes from the position on, at most `bytes_max`. None when nothing waits, or one is in flight. What is damaged is
    /// found here, named in `gone`, and never posted.
    pub fn post(&mut self, bytes_max: usize, now_ms: i64, gone: &mut Gone) -> Result<Option<Post>, DirectoryError> {
        if self.sync.is_in_flight() {
            return Ok(None);
        }
        let posted = self.read_post(bytes_max, now_ms, gone);
        if posted.is_err() {
            // Nothing of it leaves, so nobody will say what became of it.
            self.failed();
        }
        posted
    }

    fn read_post(&mut self, bytes_max: usize, now_ms: i64, gone: &mut Gone) -> Result<Option<Post>, DirectoryError> {
        let (mut entries, mut sent, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut upto = self.next_place(now_ms);
        // One read ends with its segment: several make a POST.
        loop {
            let found = self.queue.read(upto, (bytes_max - bytes).min(READ_BYTES))?;
            gone.returned.extend(found.lost.into_iter().map(|lost| (lost, ReturnReason::Damaged)));
            if let Some(unreadable) = found.unreadable {
                gone.devices.extend(unreadable.sidecar.iter().flat_map(|sidecar| sidecar.ranges.keys().map(|key| key.0)));
                self.queue.set_aside(unreadable.segment)?;
                self.quarantined += 1;
                continue;
            }
            let mut next = found.next;
            for (position, entry) in found.entries {
                let header = entry.envelope.header();
                let length = entry.facts.len() + header.envelope_len() + 6;
                if sent.len() >= limits::POST_ENVELOPES_MAX || (bytes + length > bytes_max && !sent.is_empty()) {
                    next = position;
                    break;
                }
                bytes += length;
                sent.push(Sent { position, device: header.device, spool: header.spool, seq: header.seq });
                entries.push((entry.facts, entry.envelope.bytes().clone()));
            }
            let stopped = next != found.next;
            let moved = next != upto;
            upto = next;
            if stopped || !moved || bytes >= bytes_max || entries.len() >= limits::POST_ENVELOPES_MAX {
                break;
            }
        }
        if entries.is_empty() {
            // Nothing but damage lay before `upto`: it is named above, and there is nothing to post.
            self.sync.skip(upto);
            return Ok(None);
        }
        let number = self.sync.post(upto);
        self.post = Some(sent);
        self.save_if_needed()?;
        Ok(Some(Post { number, entries }))
    }

    /// The position, moved past the ends of closed segments.
    fn next_place(&mut self, now_ms: i64) -> Position {
        self.pass_behind(now_ms);
        loop {
            let at = self.sync.position();
            let Some((segment, sidecar)) = self.queue.segments().find(|(segment, _)| *segment >= at.segment) else { return at };
            let index = if segment == at.segment { at.index } else { 0 };
            if !sidecar.closed || index < sidecar.count {
                return Position { segment, index };
            }
            self.sync.passes(segment, now_ms);
        }
    }

    /// One POST may carry the position over several segments: all of them were answered for.
    fn pass_behind(&mut self, now_ms: i64) {
        let at = self.sync.position().segment;
        let behind = self.queue.segments().map(|(segment, _)| segment).take_while(|segment| *segment < at);
        let behind: Vec<u64> = behind.filter(|segment| !self.sync.progress().passed.contains_key(segment)).collect();
        behind.into_iter().for_each(|segment| self.sync.passes(segment, now_ms));
    }

    /// The hub took the POST with this number and returned some of its envelopes. Names what agents must hear.
    pub fn taken(&mut self, number: u64, returned: &[(u32, ReturnReason)], now_ms: i64) -> Result<Gone, DirectoryError> {
        let Some(sent) = self.post.take() else { return Ok(Gone::default()) };
        let gone = match self.disown(&sent, returned) {
            Ok(gone) => gone,
            Err(error) => {
                // It is sent again, and returned again.
                self.sync.failed();
                return Err(error);
            }
        };
        if self.sync.taken(number) {
            self.next_place(now_ms);
            match self.save(false) {
                // It may be old: that costs repeats after a restart, and agents hear what is gone all the same.
                Err(DirectoryError::Full) => {}
                saved => saved?,
            }
        }
        Ok(gone)
    }

    fn disown(&mut self, sent: &[Sent], returned: &[(u32, ReturnReason)]) -> Result<Gone, DirectoryError> {
        let mut gone = Gone::default();
        // What the hub returned is disowned on the disk before the position moves past it.
        for &(index, why) in returned {
            let Some(envelope) = sent.get(index as usize) else { continue };
            self.queue.disown(envelope.position.segment, envelope.device, envelope.spool, envelope.seq)?;
            let numbers = muster_mesh::ranges::Ranges::of(envelope.seq, envelope.seq);
            gone.returned.push((Lost { device: envelope.device, spool: envelope.spool, numbers }, why));
        }
        Ok(gone)
    }

    /// The hub has seen a higher number.
    pub fn stale(&mut self, number: u64) {
        self.post = None;
        self.sync.stale(number);
    }

    /// The hub was rolled back: everything here is sent again. Durable when it returns.
    pub fn rewind(&mut self, number: u64) -> Result<(), DirectoryError> {
        self.post = None;
        self.sync.rewind(number, self.queue.oldest());
        self.save_if_needed()
    }

    /// No answer came.
    pub fn failed(&mut self) {
        self.post = None;
        self.sync.failed();
    }

    /// Deletes what nobody needs: what every kept backup contains, or where there is none what was answered long ago; and, when the budget is
    /// used up, what the hub has answered for, oldest first. Never what the hub lacks.
    pub fn free(&mut self, backed_up: Option<u64>, now_ms: i64) -> Result<u64, DirectoryError> {
        self.next_place(now_ms);
        let mut freed = 0;
        for segment in self.sync.freeable(backed_up, now_ms) {
            self.delete(segment)?;
            freed += 1;
        }
        for segment in self.sync.answered_segments() {
            if self.queue.used_bytes() <= self.bytes_max {
                break;
            }
            self.delete(segment)?;
            freed += 1;
        }
        if freed > 0 {
            self.save(false)?;
        }
        Ok(freed)
    }

    /// Deletes the oldest segment that the hub has answered for, because the disk is full. False: there is none.
    pub fn free_answered(&mut self, now_ms: i64) -> Result<bool, DirectoryError> {
        self.next_place(now_ms);
        let Some(&oldest) = self.sync.answered_segments().first() else { return Ok(false) };
        self.delete(oldest)?;
        Ok(true)
    }

    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.queue.delete(segment)?;
        self.sync.freed(segment);
        Ok(())
    }

    /// The budget is used up by what the hub lacks: nothing more is taken until it isn't.
    pub fn is_full(&self) -> bool {
        self.queue.used_bytes() > self.bytes_max
    }

    fn save_if_needed(&mut self) -> Result<(), DirectoryError> {
        if self.sync.must_sync() { self.save(true) } else { Ok(()) }
    }

    fn save(&mut self, durable: bool) -> Result<(), DirectoryError> {
        let bytes = self.sync.progress().to_bytes();
        self.queue.directory().put_file(PROGRESS, &bytes, durable)?;
        if durable {
            self.sync.synced();
        }
        Ok(())
    }
}

/// The facts of an arrival, as they lie beside the envelope.
pub fn facts(facts: &Facts) -> Bytes {
    // Facts are five small fields: encoding them has no failing case.
    facts.bytes().unwrap_or_default()
}

#[cfg(test)]
mod tests;
