//! Quiet: what the hub knows of numbers. The hub alone dedupes, per (device, spool); it alone says what may be deleted at an agent.
//!
//! The hub keeps a [`SpoolRow`] per (device, spool) and a number per relay queue, loads them inside the records' own transaction, asks
//! here, and stores them with the records.

use std::collections::BTreeMap;

use crate::{
    batch::Tail,
    ids::{InstanceId, Lane},
    limits,
    message::{HubAck, PostHead, Reason, Verdict},
    ranges::Ranges,
};

/// How long digests are kept after the last arrival.
const DIGESTS_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// One spool of one device at the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolRow {
    /// Every number with a kept verdict, with or without rows. Deleting rows never takes numbers out.
    stored: Ranges,
    /// Numbers that a `Gap` of their maker names. Apart from *stored*: late bytes for an excused number are stored.
    excused: Ranges,
    /// Highest tail stated so far.
    first_held: u64,
    next: u64,
    closed: bool,
    /// Of the newest numbers, the first bytes of SHA-256 over the envelope.
    digests: BTreeMap<u64, [u8; 8]>,
    /// The newest verdicts that are neither stored nor repeat.
    shown: BTreeMap<u64, (Verdict, Reason)>,
    /// Receipt of the last new number, milliseconds UTC.
    arrived_ms: i64,
}

/// What an arriving number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    New,
    Repeat,
    /// Other content under a stored number: held beside it, and an alarm.
    OtherContent,
    /// The spool has too many holes: returned, and not to be sent again.
    TooManyRanges,
}

/// Numbers that the agent spoke of and that are not here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Still at the agent or in a branch.
    pub announced: Ranges,
    /// The agent doesn't hold them any more, no `Gap` names them: lost in the branch, unless a relay still has them.
    pub lost: Ranges,
}

/// A row that doesn't decode: the database was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a spool's row doesn't decode")]
pub struct RowError;

impl SpoolRow {
    pub fn stored(&self) -> &Ranges {
        &self.stored
    }

    pub fn excused(&self) -> &Ranges {
        &self.excused
    }

    /// The highest first held number that was stated.
    pub fn first_held(&self) -> u64 {
        self.first_held
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Decides about a number before anything is written. Nothing changes until [`take`](Self::take).
    pub fn judge(&self, seq: u64, digest: [u8; 8]) -> Judgement {
        if self.stored.contains(seq) {
            return match self.digests.get(&seq) {
                Some(known) if *known != digest => Judgement::OtherContent,
                Some(_) | None => Judgement::Repeat,
            };
        }
        let joins = self.stored.contains(seq + 1) || self.stored.contains(seq.saturating_sub(1));
        if !joins && self.stored.len() >= limits::SPOOL_RANGES_MAX { Judgement::TooManyRanges } else { Judgement::New }
    }

    /// The number got a kept verdict, in this transaction.
    pub fn take(&mut self, seq: u64, digest: [u8; 8], verdict: Verdict, reason: Reason, now_ms: i64) {
        self.stored.insert(seq);
        self.next = self.next.max(seq + 1);
        self.excused.remove(seq);
        self.digests.insert(seq, digest);
        if self.digests.len() > limits::DIGESTS_KEPT {
            self.digests.pop_first();
        }
        if !matches!(verdict, Verdict::Stored | Verdict::Repeat) {
            self.show(seq, verdict, reason);
        }
        self.arrived_ms = now_ms;
    }

    /// What was stored under this number is gone: it counts as never arrived, so that whoever still has it sends it again.
    pub fn forget(&mut self, seq: u64) {
        self.stored.remove(seq);
        self.digests.remove(&seq);
        self.shown.remove(&seq);
    }

    /// Other content came under a stored number: the agent that asks may see it.
    pub fn show(&mut self, seq: u64, verdict: Verdict, reason: Reason) {
        self.shown.insert(seq, (verdict, reason));
        if self.shown.len() > limits::SHOWN_VERDICTS_MAX {
            self.shown.pop_first();
        }
    }

    /// The agent states a tail. It only raises the row: late batches carry old tails.
    pub fn state(&mut self, tail: &Tail) {
        self.first_held = self.first_held.max(tail.first_held);
        self.next = self.next.max(tail.next);
        self.closed |= tail.closed;
    }

    /// A `Gap` of the maker names these. `last` None: from `first` up, whatever isn't stored.
    pub fn excuse(&mut self, first: u64, last: Option<u64>) {
        self.excused.insert_range(first, last.unwrap_or(limits::SEQ_MAX).min(limits::SEQ_MAX));
        self.excused.subtract(&self.stored);
    }

    pub fn missing(&self) -> Missing {
        let first_held = self.first_held.max(1);
        let absent = |first: u64, below: u64| {
            let mut absent = Ranges::of(first, below.saturating_sub(1));
            absent.subtract(&self.stored);
            absent.subtract(&self.excused);
            absent
        };
        Missing { announced: absent(first_held, self.next), lost: absent(1, first_held) }
    }

    /// What an agent may delete, and what it may show, from its first held number up.
    pub fn ack(&self, from: u64) -> HubAck {
        let shown = self.shown.range(from..).map(|(&seq, &(verdict, reason))| (seq, verdict, reason)).collect();
        HubAck { stored: self.stored.from(from, limits::RANGES_SENT_MAX), shown, erasure: Default::default() }
    }

    /// Forgets digests of a spool that is over: other content can't come any more. True when something was forgotten.
    pub fn settle(&mut self, now_ms: i64) -> bool {
        let forget = self.needs_no_digests(now_ms) && !self.digests.is_empty();
        if forget {
            self.digests.clear();
        }
        forget
    }

    /// Whether no number can come any more, or none came for a week.
    pub fn needs_no_digests(&self, now_ms: i64) -> bool {
        let over = self.closed && self.missing().announced.is_empty();
        over || now_ms.saturating_sub(self.arrived_ms) > DIGESTS_MS
    }

    /// Takes the digests out: a database may keep them apart from the row, so that a row that changes with each batch stays small.
    pub fn take_digests(&mut self) -> BTreeMap<u64, [u8; 8]> {
        std::mem::take(&mut self.digests)
    }

    /// Puts a digest that was kept apart back in, before [`judge`](Self::judge) is asked about its number.
    pub fn know_digest(&mut self, seq: u64, digest: [u8; 8]) {
        self.digests.insert(seq, digest);
    }

    /// The row as one value for the database: a format byte, then counted lists, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![ROW_FORMAT, u8::from(self.closed)];
        for number in [self.first_held, self.next, self.arrived_ms as u64] {
            bytes.extend(number.to_le_bytes());
        }
        for ranges in [&self.stored, &self.excused] {
            bytes.extend((ranges.len() as u32).to_le_bytes());
            ranges.iter().for_each(|(first, last)| bytes.extend([first.to_le_bytes(), last.to_le_bytes()].concat()));
        }
        bytes.extend((self.digests.len() as u32).to_le_bytes());
        self.digests.iter().for_each(|(seq, digest)| bytes.extend([seq.to_le_bytes(), *digest].concat()));
        bytes.extend((self.shown.len() as u32).to_le_bytes());
        for (seq, (verdict, reason)) in &self.shown {
            bytes.extend(seq.to_le_bytes());
            bytes.extend([*verdict as u8, *reason as u8]);
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<SpoolRow, RowError> {
        let mut reader = Reader { rest: bytes };
        if reader.u8()? != ROW_FORMAT {
            return Err(RowError);
        }
        let closed = reader.u8()? != 0;
        let (first_held, next, arrived_ms) = (reader.u64()?, reader.u64()?, reader.u64()? as i64);
        let (stored, excused) = (reader.ranges()?, reader.ranges()?);
        let mut row = SpoolRow { stored, excused, first_held, next, closed, arrived_ms, ..SpoolRow::default() };
        for _ in 0..reader.u32()? {
            row.digests.insert(reader.u64()?, reader.take()?);
        }
        for _ in 0..reader.u32()? {
            let seq = reader.u64()?;
            let verdict = *Verdict::ALL.get(usize::from(reader.u8()?)).ok_or(RowError)?;
            let reason = *Reason::ALL.get(usize::from(reader.u8()?)).ok_or(RowError)?;
            row.shown.insert(seq, (verdict, reason));
        }
        if reader.rest.is_empty() { Ok(row) } else { Err(RowError) }
    }
}

const ROW_FORMAT: u8 = 1;

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(RowError)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, RowError> {
        Ok(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, RowError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, RowError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn ranges(&mut self) -> Result<Ranges, RowError> {
        (0..self.u32()?).map(|_| Ok((self.u64()?, self.u64()?))).collect()
    }
}

/// Whether a POST may be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    Fresh,
    /// It is late: a POST with this number or a higher one was committed before.
    Stale {
        number: u64,
    },
    /// The relay was answered for more than the hub knows: the hub was rolled back.
    Rewind {
        queues: Vec<(Lane, u64)>,
    },
}

/// Compares a POST with the hub's number per relay queue (0 for one that it doesn't know). `has_envelopes` is false for a POST that only
/// asks and shows presence: it is compared, and changes no number.
pub fn compare(head: &PostHead, has_envelopes: bool, number_of: impl Fn(InstanceId) -> u64) -> Comparison {
    let behind = head.queues.iter().filter(|queue| number_of(queue.instance) < queue.answered);
    let queues: Vec<_> = behind.map(|queue| (queue.lane, number_of(queue.instance))).collect();
    if !queues.is_empty() {
        return Comparison::Rewind { queues };
    }
    let own = head.queues.iter().find(|queue| queue.lane == head.lane).map_or(0, |queue| number_of(queue.instance));
    if has_envelopes && head.number <= own { Comparison::Stale { number: own } } else { Comparison::Fresh }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SpoolId;

    #[test]
    fn late_bytes_for_an_excused_number_are_stored() {
        let mut row = SpoolRow::default();
        row.excuse(1, Some(3));
        assert_eq!(row.judge(2, [0; 8]), Judgement::New);
        row.take(2, [0; 8], Verdict::Stored, Reason::None, 0);
        assert_eq!((row.stored().to_string(), row.excused().to_string()), ("2".into(), "1, 3".into()));
        row.excuse(1, None);
        assert!(!row.excused().contains(2));
    }

    #[test]
    fn other_content_under_a_known_number_is_told_apart() {
        let mut row = SpoolRow::default();
        row.take(1, [1; 8], Verdict::Stored, Reason::None, 0);
        assert_eq!(row.judge(1, [1; 8]), Judgement::Repeat);
        assert_eq!(row.judge(1, [2; 8]), Judgement::OtherContent);
    }

    #[test]
    fn a_forgotten_number_is_missing_and_comes_again_as_new() {
        let mut row = SpoolRow::default();
        (1..=3).for_each(|seq| row.take(seq, [seq as u8; 8], Verdict::Stored, Reason::None, 0));
        row.forget(2);
        assert_eq!((row.stored().to_string(), row.missing().announced), ("1, 3".into(), Ranges::of(2, 2)));
        assert_eq!((row.judge(2, [9; 8]), row.ack(1).stored), (Judgement::New, vec![(1, 1), (3, 3)]));
    }

    #[test]
    fn a_late_tail_never_lowers_the_row() {
        let mut row = SpoolRow::default();
        row.state(&tail(4, 9, true));
        row.state(&tail(1, 3, false));
        let missing = row.missing();
        assert_eq!((missing.announced.to_string(), missing.lost.to_string()), ("4–8".into(), "1–3".into()));
        row.take(2, [0; 8], Verdict::Held, Reason::UnknownCodec, 0);
        row.excuse(1, Some(1));
        assert_eq!(row.missing().lost, Ranges::of(3, 3));
    }

    #[test]
    fn a_spool_with_too_many_holes_returns_what_would_make_one_more() {
        let mut row = SpoolRow::default();
        for i in 0..limits::SPOOL_RANGES_MAX as u64 {
            row.take(i * 2 + 1, [0; 8], Verdict::Stored, Reason::None, 0);
        }
        assert_eq!(row.judge(1_000_000, [0; 8]), Judgement::TooManyRanges);
        assert_eq!(row.judge(2, [0; 8]), Judgement::New);
    }

    #[test]
    fn numbers_below_an_arrived_one_are_announced_by_it() {
        let mut row = SpoolRow::default();
        row.take(3, [0; 8], Verdict::Stored, Reason::None, 0);
        assert_eq!(row.missing().announced, Ranges::of(1, 2));
    }

    #[test]
    fn an_ack_starts_at_the_asked_number_and_names_sixteen_ranges() {
        let mut row = SpoolRow::default();
        for i in 0..20 {
            row.take(i * 2 + 1, [0; 8], Verdict::Refused, Reason::Bound, 0);
        }
        let ack = row.ack(5);
        assert_eq!((ack.stored.len(), ack.stored[0], ack.shown.len()), (16, (5, 5), 18));
    }

    #[test]
    fn a_row_comes_out_of_the_database_as_it_went_in() {
        let mut row = SpoolRow::default();
        row.take(7, [9; 8], Verdict::Held, Reason::TestMode, 1_795_424_402_000);
        row.excuse(1, Some(4));
        row.state(&tail(3, 8, true));
        let bytes = row.to_bytes();
        assert_eq!(SpoolRow::from_bytes(&bytes), Ok(row));
        for cut in 0..bytes.len() {
            assert_eq!(SpoolRow::from_bytes(&bytes[..cut]), Err(RowError), "cut at {cut}");
        }
    }

    #[test]
    fn digests_are_kept_while_a_number_may_still_come() {
        let mut row = SpoolRow::default();
        row.take(1, [1; 8], Verdict::Stored, Reason::None, 0);
        row.state(&tail(1, 3, true));
        assert!(!row.settle(0));
        row.take(2, [1; 8], Verdict::Stored, Reason::None, 0);
        assert!(row.settle(0));
    }

    fn tail(first_held: u64, next: u64, closed: bool) -> Tail {
        Tail { spool: SpoolId([0; 16]), lane: Lane::Telemetry, first_held, next, closed }
    }
}
