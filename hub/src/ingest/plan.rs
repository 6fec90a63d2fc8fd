//! Quiet: what becomes of each envelope of a POST. It is told what the database knows, decides, and changes what is known; nothing here
//! reads or writes.
//!
//! | an arriving number is | verdict | what is kept |
//! |---|---|---|
//! | new, opens, of kinds with rows | stored | rows |
//! | new, from another version, or it doesn't decode | held | the envelope |
//! | new, with a picture that isn't what its record says | held | the envelope |
//! | new, of a denied device, taken by a relay that knew it | refused | a line |
//! | new, breaks a bound, or says test mode at a hub without it | refused | a line |
//! | new, all of it older than its retention | expired | a line |
//! | known, with the same content | repeat | – |
//! | known, with other content | held | the envelope beside the first, and an alarm |
//! | new, and one hole too many | returned | – |
//! | damaged on its way | returned | – |

use std::collections::{BTreeMap, HashMap};

use muster_mesh::{
    batch::{Batch, Envelope, Fate, OpenError},
    ids::{BootId, DeviceId, Lane, SpoolId},
    limits,
    link::hub_ranges::{Judgement, SpoolRow},
    message::{Facts, Reason, ReturnReason, Verdict},
    record::{Kind, Numbers, Record, RecordError},
};

use crate::{
    images::Unfit,
    ingest::{
        attempts::Attempt,
        placing::{self, DAY_MS, Placed},
    },
    rows::Table,
};

/// Spools that one POST may touch: its own envelopes name at most 4,096, tails and gaps the rest.
pub const SPOOLS_TOUCHED_MAX: usize = 16_384;

/// (device, spool)
pub type SpoolKey = (DeviceId, SpoolId);

/// One envelope of a POST, as far as it could be read.
#[derive(Debug)]
pub enum Arrival {
    /// Its frame is broken, or it lies in the wrong lane: it never counts as received.
    Damaged,
    Whole(Box<Whole>),
}

/// An envelope with a sound frame.
#[derive(Debug)]
pub struct Whole {
    pub facts: Facts,
    pub envelope: Envelope,
    pub digest: [u8; 8],
    pub opened: Result<Batch, OpenError>,
    pub picture: Picture,
}

/// How far the picture of an envelope has come before its POST's transaction begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picture {
    /// There is none, or nobody asked for it: its number was known already.
    None,
    Unfit(Unfit),
    /// Its object is in the store.
    Put(Attempt),
}

/// What the database knows of the spools and boots that a POST touches.
#[derive(Debug, Default)]
pub struct Known {
    pub spools: BTreeMap<SpoolKey, SpoolRow>,
    /// UTC minus the boot clock, the first measurement of each.
    pub boots: HashMap<(DeviceId, BootId), i64>,
}

/// What the hub decides by, besides the POST itself.
#[derive(Debug, Clone)]
pub struct Rules {
    pub now_ms: i64,
    /// The relay's clock when it sent the POST.
    pub relay_ms: i64,
    pub test_mode: bool,
    pub retention: Retention,
    /// Devices that are denied, and since when their relay, by its clock, has known it.
    pub denied: BTreeMap<DeviceId, i64>,
}

/// How long each kind is kept, in days: what tells most of a person no longer than the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub days: u16,
    pub titles_days: u16,
    pub pictures_days: u16,
    pub network_days: u16,
}

impl Retention {
    /// Everything alike.
    pub fn alike(days: u16) -> Retention {
        Retention { days, titles_days: days, pictures_days: days, network_days: days }
    }

    pub fn days_of(&self, table: Table) -> i64 {
        i64::from(match table {
            Table::Screenshot => self.pictures_days,
            Table::Network => self.network_days,
            Table::Heartbeat | Table::Activity | Table::Focus | Table::Session | Table::Capability | Table::Gap => self.days,
        })
    }

    pub fn titles_days(&self) -> i64 {
        i64::from(self.titles_days)
    }

    /// The longest of all kinds.
    pub fn ceiling_days(&self) -> i64 {
        Table::ALL.iter().map(|table| self.days_of(*table)).max().unwrap_or(0)
    }

    pub fn ceiling_ms(&self) -> i64 {
        self.ceiling_days() * DAY_MS
    }
}

/// What becomes of one envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub reason: Reason,
    pub keep: Keep,
}

/// What is written for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// Rows of these records, at this time; the others are older than their kind is kept.
    Rows {
        placed: Placed,
        records: Vec<Kept>,
    },
    /// The envelope, unread.
    Envelope {
        alarm: bool,
    },
    /// Its number and verdict.
    Line,
    Nothing,
    /// Nothing, and the relay is told.
    Back(ReturnReason),
}

/// A record that becomes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its place in the batch.
    pub idx: usize,
    /// False: its title, if it has one, is older than titles are kept.
    pub titled: bool,
}

impl Outcome {
    fn new(verdict: Verdict, reason: Reason, keep: Keep) -> Outcome {
        Outcome { verdict, reason, keep }
    }

    fn returned(why: ReturnReason) -> Outcome {
        Outcome::new(Verdict::Returned, Reason::None, Keep::Back(why))
    }
}

impl Whole {
    pub fn key(&self) -> SpoolKey {
        let header = self.envelope.header();
        (header.device, header.spool)
    }
}

/// The spools whose rows a POST touches: those of its envelopes, and those that tails and gaps name.
pub fn touched(arrivals: &[Arrival]) -> BTreeMap<SpoolKey, Lane> {
    let whole = || arrivals.iter().filter_map(Arrival::whole);
    let mut keys: BTreeMap<SpoolKey, Lane> = whole().map(|whole| (whole.key(), whole.envelope.header().lane)).collect();
    for batch in whole().filter_map(|whole| whole.opened.as_ref().ok()) {
        let tails = batch.head.tails.iter().map(|tail| (tail.spool, tail.lane));
        let gaps = gaps(batch).map(|(numbers, lane)| (numbers.spool, lane));
        for (spool, lane) in tails.chain(gaps) {
            if keys.len() < SPOOLS_TOUCHED_MAX {
                keys.entry((batch.device, spool)).or_insert(lane);
            }
        }
    }
    keys
}

/// The boots whose clocks a POST needs or measures.
pub fn boots(arrivals: &[Arrival]) -> Vec<(DeviceId, BootId)> {
    let whole = arrivals.iter().filter_map(Arrival::whole);
    let both = |whole: &Whole| {
        let own = whole.opened.as_ref().ok().map(|batch| (batch.device, batch.head.boot));
        own.into_iter().chain([(whole.envelope.header().device, whole.facts.boot)])
    };
    let mut boots: Vec<_> = whole.flat_map(both).collect();
    boots.sort_unstable();
    boots.dedup();
    boots
}

/// The numbers that a POST brings.
pub fn numbers(arrivals: &[Arrival]) -> Vec<(SpoolKey, u64)> {
    arrivals.iter().filter_map(Arrival::whole).map(|whole| (whole.key(), whole.envelope.header().seq)).collect()
}

/// Whether a row of it will name an object: a picture is among the records that are kept.
pub fn names_object(whole: &Whole, outcome: &Outcome) -> bool {
    let (Ok(batch), Keep::Rows { records, .. }) = (&whole.opened, &outcome.keep) else { return false };
    records.iter().any(|kept| matches!(batch.records[kept.idx].kind, Kind::Screenshot(_)))
}

/// Decides about a POST's envelopes in their order.
pub fn decide(arrivals: &[Arrival], known: &mut Known, rules: &Rules) -> Vec<Outcome> {
    arrivals
        .iter()
        .map(|arrival| match arrival {
            Arrival::Damaged => Outcome::returned(ReturnReason::Damaged),
            Arrival::Whole(whole) => decide_one(whole, known, rules),
        })
        .collect()
}

/// Holds each new envelope unread: what is left when the database won't take its rows.
pub fn hold(arrivals: &[Arrival], known: &mut Known, rules: &Rules) -> Vec<Outcome> {
    let held = |arrival: &Arrival, known: &mut Known| {
        let Some(whole) = arrival.whole() else { return Outcome::returned(ReturnReason::Damaged) };
        let header = whole.envelope.header();
        let row = known.spools.entry(whole.key()).or_default();
        if row.judge(header.seq, whole.digest) != Judgement::New {
            return decide_one(whole, known, rules);
        }
        let outcome = Outcome::new(Verdict::Held, Reason::StoreError, Keep::Envelope { alarm: false });
        row.take(header.seq, whole.digest, outcome.verdict, outcome.reason, rules.now_ms);
        outcome
    };
    arrivals.iter().map(|arrival| held(arrival, known)).collect()
}

fn decide_one(whole: &Whole, known: &mut Known, rules: &Rules) -> Outcome {
    let seq = whole.envelope.header().seq;
    let judgement = known.spools.entry(whole.key()).or_default().judge(seq, whole.digest);
    let trusted = placing::is_trusted(rules.relay_ms, whole.facts.receipt_ms, rules.now_ms);
    if trusted {
        // The first measurement stays.
        known.boots.entry((whole.envelope.header().device, whole.facts.boot)).or_insert(whole.facts.zero_ms);
    }
    let outcome = match judgement {
        Judgement::Repeat => Outcome::new(Verdict::Repeat, Reason::None, Keep::Nothing),
        Judgement::OtherContent => Outcome::new(Verdict::Held, Reason::OtherContent, Keep::Envelope { alarm: true }),
        Judgement::TooManyRanges => Outcome::returned(ReturnReason::TooManyRanges),
        Judgement::New if came_denied(whole, rules) => Outcome::new(Verdict::Refused, Reason::Denied, Keep::Line),
        Judgement::New if excuses_too_much(whole, known) => Outcome::returned(ReturnReason::TooManyRanges),
        Judgement::New => match &whole.opened {
            Ok(batch) => judge_batch(batch, whole, trusted, known, rules),
            Err(error) => judge_unopened(*error),
        },
    };
    settle_numbers(whole, &outcome, known, rules.now_ms);
    outcome
}

/// Taken by a relay that had been told not to.
fn came_denied(whole: &Whole, rules: &Rules) -> bool {
    rules.denied.get(&whole.envelope.header().device).is_some_and(|since_ms| whole.facts.receipt_ms > *since_ms)
}

fn judge_unopened(error: OpenError) -> Outcome {
    let reason = match error {
        OpenError::Version(_) => Reason::UnknownVersion,
        OpenError::Seal(_) => Reason::UnknownSeal,
        OpenError::Codec(_) => Reason::UnknownCodec,
        OpenError::Flags(_) => Reason::UnknownFlags,
        OpenError::Bound => Reason::Bound,
        OpenError::Inflate | OpenError::Decode | OpenError::Count | OpenError::LeftOver => Reason::Undecodable,
        OpenError::Record(record) => match record {
            RecordError::Nul => Reason::Undecodable,
            RecordError::TextTooLong | RecordError::ListTooLong | RecordError::NumberTooLarge | RecordError::GapBackwards => Reason::Bound,
        },
    };
    match error.fate() {
        Fate::Held => Outcome::new(Verdict::Held, reason, Keep::Envelope { alarm: false }),
        Fate::Refused => Outcome::new(Verdict::Refused, reason, Keep::Line),
    }
}

fn judge_batch(batch: &Batch, whole: &Whole, trusted: bool, known: &Known, rules: &Rules) -> Outcome {
    if batch.test_mode && !rules.test_mode {
        return Outcome::new(Verdict::Refused, Reason::TestMode, Keep::Line);
    }
    let unread = |reason| Outcome::new(Verdict::Held, reason, Keep::Envelope { alarm: false });
    let Some(tables) = batch.records.iter().map(Table::of).collect::<Option<Vec<_>>>() else {
        return unread(Reason::UnknownKind);
    };
    // Telemetry never waits for the object store.
    if batch.lane == Lane::Telemetry && tables.contains(&Table::Screenshot) {
        return unread(Reason::UnknownKind);
    }
    if let Picture::Unfit(_) = whole.picture {
        return unread(Reason::Picture);
    }
    let zero_ms = known.boots.get(&(batch.device, batch.head.boot)).copied();
    let placed = placing::place(&batch.head, whole.facts.receipt_ms, zero_ms, trusted, rules.retention.ceiling_ms());
    let is_within = |record: &Record, days: i64| {
        !placed.may_expire() || placed.time(record.at) >= rules.now_ms.saturating_sub(days.saturating_mul(DAY_MS))
    };
    let kept = |(idx, (record, table)): (usize, (&Record, &Table))| {
        let titled = is_within(record, rules.retention.titles_days());
        is_within(record, rules.retention.days_of(*table)).then_some(Kept { idx, titled })
    };
    let records: Vec<Kept> = batch.records.iter().zip(&tables).enumerate().filter_map(kept).collect();
    if records.is_empty() {
        return Outcome::new(Verdict::Expired, Reason::None, Keep::Line);
    }
    Outcome::new(Verdict::Stored, Reason::None, Keep::Rows { placed, records })
}

/// Gaps that would make more ranges than a spool's row may have: such a batch can't help by coming again.
fn excuses_too_much(whole: &Whole, known: &Known) -> bool {
    let Ok(batch) = &whole.opened else { return false };
    let mut new: HashMap<SpoolId, usize> = HashMap::new();
    for (numbers, _) in gaps(batch) {
        *new.entry(numbers.spool).or_default() += 1;
    }
    let excused = |spool: &SpoolId| known.spools.get(&(batch.device, *spool)).map_or(0, |row| row.excused().len());
    new.iter().any(|(spool, more)| excused(spool) + more > limits::SPOOL_RANGES_MAX)
}

/// Puts the verdict into the spool's row, and what the batch states into the rows that it names.
fn settle_numbers(whole: &Whole, outcome: &Outcome, known: &mut Known, now_ms: i64) {
    let seq = whole.envelope.header().seq;
    let row = known.spools.entry(whole.key()).or_default();
    match outcome.verdict {
        Verdict::Returned => return,
        Verdict::Repeat => {}
        Verdict::Held if outcome.reason == Reason::OtherContent => {
            // A second computer with the same numbers may say anything: its statements don't count.
            row.show(seq, outcome.verdict, outcome.reason);
            return;
        }
        Verdict::Stored | Verdict::Held | Verdict::Refused | Verdict::Expired | Verdict::Erased => {
            row.take(seq, whole.digest, outcome.verdict, outcome.reason, now_ms);
        }
    }
    if let Ok(batch) = &whole.opened {
        state(batch, known);
    }
}

/// Tails and gaps only raise the rows, so they count in each readable batch of their maker, whatever became of its records.
fn state(batch: &Batch, known: &mut Known) {
    for tail in &batch.head.tails {
        if let Some(row) = known.spools.get_mut(&(batch.device, tail.spool)) {
            row.state(tail);
        }
    }
    for (numbers, _) in gaps(batch) {
        if let Some(row) = known.spools.get_mut(&(batch.device, numbers.spool)) {
            row.excuse(numbers.first, numbers.last);
        }
    }
}

fn gaps(batch: &Batch) -> impl Iterator<Item = (Numbers, Lane)> {
    batch.records.iter().filter_map(|record| match &record.kind {
        Kind::Gap(gap) => gap.numbers.map(|numbers| (numbers, gap.lane)),
        _ => None,
    })
}

impl Arrival {
    pub fn whole(&self) -> Option<&Whole> {
        match self {
            Arrival::Damaged => None,
            Arrival::Whole(whole) => Some(whole),
        }
    }
}
