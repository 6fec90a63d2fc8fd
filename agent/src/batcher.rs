//! Quiet: gathers records into batches, and says when one closes.
//!
//! A batch closes after 60 s, at 500 records or 64 KiB, at a change of state, before what it is made under changes, and when the wall clock
//! steps against the boot clock. All its times are by the clocks as they were while it was made. A picture is a batch of its own, on its own
//! lane, and leaves the one under way as it is.

use muster_mesh::{
    clock::Reading,
    ids::Lane,
    limits, record,
    record::{Kind, Record},
};

pub use crate::spool::BatchContext;

/// A batch that waits for its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub lane: Lane,
    pub context: BatchContext,
    /// Both clocks at the close, or before the step that closed it.
    pub closed_at: Reading,
    pub records: Vec<Record>,
    /// The wall clock stepped: before this batch gets its number the spools of both lanes are closed and new ones begun, since this may be
    /// a resumed memory snapshot, whose next numbers another life has given already.
    pub new_spools: bool,
}

/// The telemetry batch under way.
#[derive(Debug, Default)]
pub struct Batcher {
    open: Option<Open>,
    last: Option<Reading>,
    stepped: bool,
}

#[derive(Debug)]
struct Open {
    context: BatchContext,
    begin: Reading,
    records: Vec<Record>,
    bytes: usize,
}

impl Batcher {
    /// Once a second, also when there is nothing: notices steps of the clock and closes what is old enough.
    pub fn tick(&mut self, now: Reading) -> Option<Closed> {
        let stepped = self.before_step(now);
        self.last = Some(now);
        if let Some(before) = stepped {
            self.stepped = true;
            return self.close(before);
        }
        let age_ms = self.open.as_ref().map_or(0, |open| now.boot_ms.saturating_sub(open.begin.boot_ms));
        if u128::from(age_ms) >= limits::BATCH_CLOSE_AGE.as_millis() { self.close(now) } else { None }
    }

    /// The last reading before the wall clock stepped, if it did. What is under way belongs to that time, so it is put before the next `tick`.
    pub fn before_step(&self, now: Reading) -> Option<Reading> {
        let last = self.last?;
        let wall_ms = now.wall_ms.saturating_sub(last.wall_ms);
        let boot_ms = i64::try_from(now.boot_ms.saturating_sub(last.boot_ms)).unwrap_or(i64::MAX);
        (u128::from(wall_ms.abs_diff(boot_ms)) > limits::CLOCK_STEP.as_millis()).then_some(last)
    }

    /// Adds records, all made under `context`; `tick(now)` came before. `urgent`: the state changed, so they go at once.
    pub fn put(&mut self, now: Reading, context: &BatchContext, records: Vec<Record>, urgent: bool) -> Vec<Closed> {
        let mut closed = Vec::new();
        if self.open.as_ref().is_some_and(|open| open.context != *context) {
            closed.extend(self.close(now));
        }
        for record in records {
            if let Kind::Screenshot(_) = record.kind {
                closed.push(self.picture(now, context, record));
                continue;
            }
            let bytes = record::encode(std::slice::from_ref(&record)).len();
            if self.open.as_ref().is_some_and(|open| !open.has_room(bytes)) {
                closed.extend(self.close(now));
            }
            let open = self.open.get_or_insert_with(|| Open { context: context.clone(), begin: now, records: Vec::new(), bytes: 0 });
            open.bytes += bytes;
            open.records.push(record);
        }
        if urgent {
            closed.extend(self.close(now));
        }
        closed
    }

    fn picture(&mut self, closed_at: Reading, context: &BatchContext, record: Record) -> Closed {
        let new_spools = std::mem::take(&mut self.stepped);
        Closed { lane: Lane::Pictures, context: context.clone(), closed_at, records: vec![record], new_spools }
    }

    /// A batch with `new_spools` was dropped before it got its number: the next one says so.
    pub fn remember_step(&mut self) {
        self.stepped = true;
    }

    /// Closes the batch under way, if there is one.
    pub fn close(&mut self, closed_at: Reading) -> Option<Closed> {
        let Open { context, records, .. } = self.open.take()?;
        let new_spools = std::mem::take(&mut self.stepped);
        Some(Closed { lane: Lane::Telemetry, context, closed_at, records, new_spools })
    }
}

impl Open {
    fn has_room(&self, bytes: usize) -> bool {
        self.records.len() < limits::BATCH_RECORDS_MAX && self.bytes + bytes <= limits::BATCH_CLOSE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use muster_mesh::{
        clock::Zone,
        ids::{BootId, Version},
        record::{Area, Capability, PictureFormat, Screenshot, Why},
    };

    use super::*;

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: 1_000_000 + ms as i64, boot_ms: ms }
    }

    fn record(text: &str) -> Record {
        Record { at: 0, kind: Kind::Capability(Capability { what: text.into(), able: true, why: String::new() }) }
    }

    fn context(policy: u32) -> BatchContext {
        BatchContext {
            policy: Version { epoch: 1, n: policy },
            notice: Version::default(),
            erasure: Version::default(),
            test_mode: false,
            boot: BootId([1; 16]),
            zone: Zone { name: "Etc/UTC".into(), offset_s: 0 },
        }
    }

    #[test]
    fn a_batch_closes_after_a_minute() {
        let mut batcher = Batcher::default();
        assert_eq!(batcher.put(at(0), &context(1), vec![record("a")], false), []);
        assert_eq!(batcher.tick(at(59_999)), None);
        let closed = batcher.tick(at(60_000)).unwrap();
        assert_eq!((closed.records, closed.closed_at, closed.new_spools), (vec![record("a")], at(60_000), false));
        assert_eq!(batcher.tick(at(200_000)), None, "an empty batch is none");
    }

    #[test]
    fn a_batch_closes_when_it_is_full() {
        let mut batcher = Batcher::default();
        let closed = batcher.put(at(0), &context(1), vec![record("a"); 1_001], false);
        assert_eq!(closed.iter().map(|closed| closed.records.len()).collect::<Vec<_>>(), [500, 500]);
        let mut batcher = Batcher::default();
        let closed = batcher.put(at(0), &context(1), vec![record(&"x".repeat(4_000)); 20], false);
        assert_eq!(closed.iter().map(|closed| closed.records.len()).collect::<Vec<_>>(), [16]);
        assert!(closed.iter().all(|closed| record::encode(&closed.records).len() <= limits::BATCH_CLOSE_BYTES + 8));
    }

    #[test]
    fn a_change_of_state_closes_at_once_and_a_change_of_context_before_it() {
        let mut batcher = Batcher::default();
        batcher.put(at(0), &context(1), vec![record("old")], false);
        let closed = batcher.put(at(5), &context(2), vec![record("new")], true);
        let seen: Vec<_> = closed.iter().map(|closed| (closed.context.policy.n, closed.records.clone())).collect();
        assert_eq!(seen, [(1, vec![record("old")]), (2, vec![record("new")])]);
    }

    fn picture(part: u8) -> Record {
        let screenshot = Screenshot {
            area: Area::Monitor,
            width: 1,
            height: 1,
            format: PictureFormat::Webp,
            blurred: true,
            why: Why::DetailedLog,
            sha256: [0; 32],
            group: [0; 16],
            part,
            parts: 2,
            bytes: vec![0; limits::BATCH_CLOSE_BYTES],
        };
        Record { at: 0, kind: Kind::Screenshot(screenshot) }
    }

    #[test]
    fn each_picture_is_a_batch_of_its_own_and_leaves_the_one_under_way_alone() {
        let mut batcher = Batcher::default();
        batcher.put(at(0), &context(1), vec![record("a")], false);
        let closed = batcher.put(at(1), &context(1), vec![picture(0), record("b"), picture(1)], false);
        let seen: Vec<_> = closed.iter().map(|closed| (closed.lane, closed.records.clone(), closed.context.policy.n)).collect();
        assert_eq!(seen, [(Lane::Pictures, vec![picture(0)], 1), (Lane::Pictures, vec![picture(1)], 1)]);
        assert_eq!(batcher.close(at(2)).unwrap().records, [record("a"), record("b")]);
    }

    #[test]
    fn after_a_step_a_picture_brings_the_new_spools_too() {
        let mut batcher = Batcher::default();
        batcher.remember_step();
        let closed = batcher.put(at(1), &context(1), vec![picture(0), record("b")], true);
        assert_eq!(
            closed.iter().map(|closed| (closed.lane, closed.new_spools)).collect::<Vec<_>>(),
            [(Lane::Pictures, true), (Lane::Telemetry, false)]
        );
    }

    #[test]
    fn a_step_of_the_wall_clock_closes_the_batch_by_the_old_time_under_new_spools() {
        for step in [2_001, -2_001, 86_400_000] {
            let mut batcher = Batcher::default();
            batcher.put(at(0), &context(1), vec![record("a")], false);
            assert_eq!(batcher.tick(at(1_000)), None);
            let stepped = |ms: u64| Reading { wall_ms: at(ms).wall_ms + step, ..at(ms) };
            let closed = batcher.tick(stepped(2_000)).unwrap();
            assert_eq!((closed.closed_at, closed.new_spools), (at(1_000), true), "{step}");
            let next = batcher.put(stepped(2_000), &context(1), vec![record("b")], true);
            assert!(!next[0].new_spools, "once");
        }
    }

    #[test]
    fn a_step_while_nothing_is_under_way_is_remembered() {
        let mut batcher = Batcher::default();
        batcher.tick(at(0));
        assert_eq!(batcher.tick(Reading { wall_ms: 5, boot_ms: 1_000 }), None);
        assert!(batcher.put(Reading { wall_ms: 6, boot_ms: 1_001 }, &context(1), vec![record("a")], true)[0].new_spools);
    }

    #[test]
    fn sleep_and_small_corrections_are_no_step() {
        let mut batcher = Batcher::default();
        batcher.tick(at(0));
        batcher.put(at(0), &context(1), vec![record("a")], false);
        assert_eq!(batcher.tick(Reading { wall_ms: at(1_000).wall_ms + 2_000, boot_ms: 1_000 }), None);
        assert!(!batcher.tick(Reading { wall_ms: at(3 * 3_600_000).wall_ms + 2_000, boot_ms: 3 * 3_600_000 }).unwrap().new_spools);
    }
}
