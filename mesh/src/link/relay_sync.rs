//! Quiet: one lane's way from a relay to the hub: which POST carries which number, how far the queue was answered, what may be freed.
//!
//! POST numbers rise for ever: over crashes, because they are reserved durably, and over rewinds. The position moves past everything that
//! the hub answered, kept or returned: no batch stops the next.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    ids::{InstanceId, Lane},
    limits,
    message::QueueState,
    queue::Position,
};

/// One lane's queue as the hub knows it.
#[derive(Debug, Clone)]
pub struct RelaySync {
    lane: Lane,
    progress: Progress,
    next_number: u64,
    in_flight: Option<InFlight>,
    /// Progress must lie on the disk before the next POST leaves.
    unsynced: bool,
    rules: Rules,
}

/// Choices inside this machine that the simulation turns back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// POST numbers go on rising after a rewind.
    pub numbers_rise_for_ever: bool,
    /// A rewind lies on the disk before the next POST.
    pub rewind_is_synced: bool,
    /// A segment's number is never given again, not even when the segment went into quarantine.
    pub segments_rise_for_ever: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { numbers_rise_for_ever: true, rewind_is_synced: true, segments_rise_for_ever: true }
    }
}

/// What lies in the file `progress`: it may be old (that costs repeats), and is never ahead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub instance: InstanceId,
    /// Everything before it was answered.
    pub position: Position,
    /// The number of the last POST that was answered.
    pub answered: u64,
    /// Numbers up to here may have been used.
    pub reserved: u64,
    /// Which POST passed which segment, and when.
    pub passed: BTreeMap<u64, Passed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    pub number: u64,
    pub at_ms: i64,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    number: u64,
    upto: Position,
}

impl RelaySync {
    /// Goes on where `progress` says; without one the queue is a new instance, from its oldest segment.
    pub fn open(lane: Lane, progress: Option<Progress>, new_instance: InstanceId, oldest: Position, rules: Rules) -> Self {
        let unsynced = progress.is_none();
        let mut progress =
            progress.unwrap_or(Progress { instance: new_instance, position: oldest, answered: 0, reserved: 0, passed: BTreeMap::new() });
        progress.position = progress.position.max(oldest);
        RelaySync { lane, next_number: progress.reserved + 1, progress, in_flight: None, unsynced, rules }
    }

    /// What every POST says of this queue.
    pub fn queue_state(&self) -> QueueState {
        QueueState { lane: self.lane, instance: self.progress.instance, answered: self.progress.answered }
    }

    pub fn position(&self) -> Position {
        self.progress.position
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The new tail's number must lie above this.
    pub fn last_known_segment(&self) -> u64 {
        let passed = self.progress.passed.last_key_value().map_or(0, |(&segment, _)| segment);
        if self.rules.segments_rise_for_ever { self.progress.position.segment.max(passed) } else { 0 }
    }

    /// Progress must be synced before the next POST.
    pub fn must_sync(&self) -> bool {
        self.unsynced
    }

    pub fn synced(&mut self) {
        self.unsynced = false;
    }

    pub fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Takes the next number for a POST that carries everything up to `upto`. Afterwards [`must_sync`](Self::must_sync) is to be asked.
    pub fn post(&mut self, upto: Position) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        if number > self.progress.reserved {
            self.progress.reserved = number + limits::POST_NUMBERS_RESERVED - 1;
            self.unsynced = true;
        }
        self.in_flight = Some(InFlight { number, upto });
        number
    }

    /// The hub took the POST with this number. False: it isn't the one in flight, and nothing changes.
    pub fn taken(&mut self, number: u64) -> bool {
        let Some(post) = self.in_flight.take_if(|post| post.number == number) else { return false };
        self.progress.answered = self.progress.answered.max(number);
        self.progress.position = self.progress.position.max(post.upto);
        true
    }

    /// The hub has seen a higher number: count on from there.
    pub fn stale(&mut self, number: u64) {
        self.in_flight = None;
        self.next_number = self.next_number.max(number + 1);
        if self.next_number > self.progress.reserved + 1 {
            self.progress.reserved = self.next_number - 1;
        }
    }

    /// The hub was rolled back to this number: everything is sent again, from the oldest segment.
    pub fn rewind(&mut self, number: u64, oldest: Position) {
        self.in_flight = None;
        self.progress.answered = number;
        self.progress.position = oldest;
        self.progress.passed.clear();
        if !self.rules.numbers_rise_for_ever {
            self.next_number = number + 1;
        }
        self.unsynced = self.unsynced || self.rules.rewind_is_synced;
    }

    /// No answer came: the same envelopes go again under the next number.
    pub fn failed(&mut self) {
        self.in_flight = None;
    }

    /// The position lies at the end of a closed segment: it goes on to the next.
    pub fn passes(&mut self, segment: u64, now_ms: i64) {
        self.progress.passed.insert(segment, Passed { number: self.progress.answered, at_ms: now_ms });
        self.progress.position = self.progress.position.max(Position { segment: segment + 1, index: 0 });
    }

    /// Nothing readable lies before this place: there is nothing to post, and the sidecars say so already.
    pub fn skip(&mut self, upto: Position) {
        self.progress.position = self.progress.position.max(upto);
    }

    /// The segment is gone.
    pub fn freed(&mut self, segment: u64) {
        self.progress.passed.remove(&segment);
    }

    /// Segments that nobody needs any more: every kept backup contains them, or, where no backup is configured (`backed_up` none), the hub
    /// answered for them long enough ago.
    pub fn freeable(&self, backed_up: Option<u64>, now_ms: i64) -> Vec<u64> {
        let grace_ms = GRACE.as_millis() as i64;
        let free = |passed: &Passed| match backed_up {
            Some(number) => passed.number <= number,
            None => passed.at_ms.saturating_add(grace_ms) <= now_ms,
        };
        self.progress.passed.iter().filter(|(_, passed)| free(passed)).map(|(&segment, _)| segment).collect()
    }

    /// Segments that the hub has answered for, oldest first: the first to go when the budget is used up.
    pub fn answered_segments(&self) -> Vec<u64> {
        self.progress.passed.keys().copied().collect()
    }
}

const GRACE: Duration = limits::GRACE_WITHOUT_BACKUP;
const MAGIC: [u8; 4] = *b"MSPR";

impl Progress {
    /// ```text
    /// "MSPR" | instance (16) | position u64, u64 | answered u64 | reserved u64 | passed u32 | per segment: number u64, post u64, at_ms i64 | crc32c
    /// ```
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &self.instance.0].concat();
        for number in [self.position.segment, self.position.index, self.answered, self.reserved] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend((self.passed.len() as u32).to_le_bytes());
        for (segment, passed) in &self.passed {
            bytes.extend([segment.to_le_bytes(), passed.number.to_le_bytes(), passed.at_ms.to_le_bytes()].concat());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// None: damaged. Then the queue is a new instance.
    pub fn from_bytes(bytes: &[u8]) -> Option<Progress> {
        let (checked, crc) = bytes.split_last_chunk()?;
        if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
            return None;
        }
        let rest = checked.strip_prefix(&MAGIC)?;
        let (instance, rest) = rest.split_first_chunk()?;
        let (fixed, rest) = rest.split_first_chunk::<36>()?;
        let number = |at: usize| fixed[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let position = Position { segment: number(0)?, index: number(8)? };
        let (answered, reserved) = (number(16)?, number(24)?);
        let (passed, []) = rest.as_chunks::<24>() else { return None };
        let read = |chunk: &[u8; 24]| {
            let part = |at: usize| chunk[at..at + 8].try_into().map(u64::from_le_bytes).ok();
            Some((part(0)?, Passed { number: part(8)?, at_ms: part(16)? as i64 }))
        };
        let passed = passed.iter().map(read).collect::<Option<BTreeMap<_, _>>>()?;
        Some(Progress { instance: InstanceId(*instance), position, answered, reserved, passed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_over_a_crash_a_stale_answer_and_a_rewind() {
        let mut sync = open(None);
        let first = sync.post(at(1, 5));
        assert!(sync.must_sync() && sync.taken(first));
        let crashed = open(Some(sync.progress().clone()));
        let mut sync = crashed;
        assert!(sync.post(at(1, 9)) > first);
        sync.stale(5_000);
        let after_stale = sync.post(at(1, 9));
        assert_eq!(after_stale, 5_001);
        sync.rewind(3, at(1, 0));
        assert!(sync.must_sync());
        assert_eq!((sync.queue_state().answered, sync.position()), (3, at(1, 0)));
        assert_eq!(sync.post(at(1, 9)), 5_002);
    }

    #[test]
    fn only_the_post_in_flight_moves_the_position() {
        let mut sync = open(None);
        let lost = sync.post(at(1, 5));
        sync.failed();
        let second = sync.post(at(1, 7));
        assert!(!sync.taken(lost));
        assert_eq!(sync.position(), at(1, 0));
        assert!(sync.taken(second));
        assert_eq!(sync.position(), at(1, 7));
    }

    #[test]
    fn a_segment_is_freed_behind_the_backup_or_by_age_where_there_is_none() {
        let mut sync = open(None);
        let number = sync.post(at(1, 5));
        sync.taken(number);
        sync.passes(1, 1_000);
        assert_eq!(sync.freeable(Some(number - 1), i64::MAX), Vec::<u64>::new());
        assert_eq!(sync.freeable(Some(number), 0), [1]);
        assert_eq!(sync.freeable(None, 1_000 + GRACE.as_millis() as i64 - 1), Vec::<u64>::new());
        assert_eq!(sync.freeable(None, 1_000 + GRACE.as_millis() as i64), [1]);
    }

    #[test]
    fn progress_comes_back_as_it_was_and_never_when_damaged() {
        let mut progress = open(None).progress().clone();
        progress.passed.insert(3, Passed { number: 9, at_ms: -1 });
        let bytes = progress.to_bytes();
        assert_eq!(Progress::from_bytes(&bytes), Some(progress));
        for at in 0..bytes.len() {
            assert_eq!(Progress::from_bytes(&bytes[..at]), None);
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert_eq!(Progress::from_bytes(&flipped), None);
        }
    }

    fn open(progress: Option<Progress>) -> RelaySync {
        RelaySync::open(Lane::Telemetry, progress, InstanceId([7; 16]), at(1, 0), Rules::default())
    }

    fn at(segment: u64, index: u64) -> Position {
        Position { segment, index }
    }
}
