//! Quiet: one local day of one device, a function of its batches: the order in which they came changes nothing.
//!
//! The day is the civil one (23, 24 or 25 hours) of the zone that most of its batches name. Spans are cut at its ends; records without a
//! length belong to the day in which their placed time lies.

use std::collections::BTreeMap;

use jiff::{
    civil::Date,
    tz::{Offset, TimeZone},
};
use muster_mesh::{
    batch::FLAG_TEST_MODE,
    record::{Application, Kind, Record, Session, Source},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{api::time::rfc3339, ingest::placing::ShiftWhy, store::KeptBatch};

/// A day as the API shows it. Lists are in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Day {
    pub day: String,
    pub zone: String,
    #[schema(format = DateTime)]
    pub from: Option<String>,
    #[schema(format = DateTime)]
    pub to: Option<String>,
    pub length_ms: i64,
    /// Records by kind that lie in the day.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub counts: BTreeMap<&'static str, u64>,
    pub input: Input,
    pub minutes: Vec<Minute>,
    pub focus: Vec<FocusSpan>,
    pub states: Vec<StateAt>,
    pub sessions: Vec<SessionAt>,
    pub network: Vec<NetworkAt>,
    pub capabilities: Vec<CapabilityAt>,
    pub gaps: Vec<GapAt>,
    /// Batches whose times were shifted or are doubtful, by the reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub shifted: BTreeMap<&'static str, u64>,
    pub test_mode: bool,
}

/// All minutes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Input {
    pub minutes: u64,
    pub keys: u64,
    pub clicks: u64,
    pub wheel: u64,
    pub active_ms: u64,
    pub idle_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Minute {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub length_ms: u32,
    pub keys: u32,
    pub clicks: u32,
    pub wheel: u32,
    pub pointer_moved: bool,
    pub active_ms: u32,
    pub idle_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FocusSpan {
    #[schema(format = DateTime)]
    pub from: Option<String>,
    pub length_ms: i64,
    /// None where it is private, or nothing was in front.
    pub application: Option<String>,
    pub private: bool,
    /// None where there is none, and where only the day's focus shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How it was found out; `none`: it can't be seen there, which is never "nothing".
    pub source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StateAt {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SessionAt {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub what: &'static str,
    /// How long it slept, or nothing was collected.
    pub length_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NetworkAt {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub addresses: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CapabilityAt {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub what: String,
    pub able: bool,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct GapAt {
    #[schema(format = DateTime)]
    pub at: Option<String>,
    pub lane: &'static str,
    pub reason: &'static str,
    pub records: u64,
    pub bytes: u64,
}

/// A day's two ends, milliseconds UTC; the second is exclusive.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub from_ms: i64,
    pub to_ms: i64,
}

impl Ends {
    /// The ends of a date where these batches were made, and the zone's name. None: a date so far off that it has no ends.
    pub fn of(date: Date, batches: &[KeptBatch]) -> Option<(String, Ends)> {
        let (zone_name, zone) = zone_of(batches);
        let start = |date: Date| date.at(0, 0, 0, 0).to_zoned(zone.clone()).ok().map(|start| start.timestamp().as_millisecond());
        Some((zone_name, Ends { from_ms: start(date)?, to_ms: start(date.tomorrow().ok()?)? }))
    }

    pub fn contains(&self, at_ms: i64) -> bool {
        (self.from_ms..self.to_ms).contains(&at_ms)
    }
}

impl Day {
    /// None: a date so far off that it has no ends.
    pub fn of(date: Date, batches: &[KeptBatch]) -> Option<Day> {
        let (zone_name, ends) = Ends::of(date, batches)?;
        let mut day = Day::empty(date, zone_name, ends);
        for (at_ms, batch, record) in in_order(batches) {
            if day.add(ends, at_ms, record) {
                day.test_mode |= batch.flags & FLAG_TEST_MODE != 0;
            }
        }
        for batch in batches.iter().filter(|batch| batch.placed.why != ShiftWhy::None) {
            *day.shifted.entry(batch.placed.why.name()).or_default() += 1;
        }
        Some(day)
    }

    /// The same without the titles of windows.
    pub fn without_titles(mut self) -> Day {
        self.focus.iter_mut().for_each(|span| span.title = None);
        self
    }

    fn empty(date: Date, zone: String, ends: Ends) -> Day {
        Day {
            day: date.to_string(),
            zone,
            from: rfc3339(ends.from_ms),
            to: rfc3339(ends.to_ms),
            length_ms: ends.to_ms - ends.from_ms,
            counts: BTreeMap::new(),
            input: Input::default(),
            minutes: Vec::new(),
            focus: Vec::new(),
            states: Vec::new(),
            sessions: Vec::new(),
            network: Vec::new(),
            capabilities: Vec::new(),
            gaps: Vec::new(),
            shifted: BTreeMap::new(),
            test_mode: false,
        }
    }

    /// Adds what of a record lies in the day. False: nothing.
    fn add(&mut self, ends: Ends, at_ms: i64, record: &Record) -> bool {
        let inside = ends.contains(at_ms);
        if inside {
            *self.counts.entry(record.kind_name()).or_default() += 1;
        }
        if let Kind::Focus(focus) = &record.kind {
            let from_ms = at_ms.max(ends.from_ms);
            let length_ms = at_ms.saturating_add(i64::from(focus.ms)).min(ends.to_ms) - from_ms;
            if inside || (from_ms < ends.to_ms && length_ms > 0) {
                self.add_focus(from_ms, length_ms, focus);
                return true;
            }
            return false;
        }
        if inside {
            self.add_inside(at_ms, &record.kind);
        }
        inside
    }

    fn add_focus(&mut self, from_ms: i64, length_ms: i64, focus: &muster_mesh::record::Focus) {
        let (application, private) = match &focus.application {
            Application::Named(name) => (Some(name.clone()), false),
            Application::Private => (None, true),
            Application::None => (None, false),
        };
        let source = match focus.source {
            Source::X11 => "x11",
            Source::Portal => "portal",
            Source::None => "none",
        };
        self.focus.push(FocusSpan { from: rfc3339(from_ms), length_ms, application, private, title: focus.title.clone(), source });
    }

    fn add_inside(&mut self, at_ms: i64, kind: &Kind) {
        let at = rfc3339(at_ms);
        match kind {
            Kind::Heartbeat(heartbeat) => self.states.push(StateAt { at, state: heartbeat.state.name() }),
            Kind::Activity(activity) => {
                let muster_mesh::record::Activity { ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms } = *activity;
                let input = &mut self.input;
                input.minutes += 1;
                input.keys += u64::from(keys);
                input.clicks += u64::from(clicks);
                input.wheel += u64::from(wheel);
                input.active_ms += u64::from(active_ms);
                input.idle_ms += u64::from(idle_ms);
                self.minutes.push(Minute { at, length_ms: ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms });
            }
            Kind::Session(session) => {
                let length_ms = match session {
                    Session::Resume { slept_ms } => Some(*slept_ms),
                    Session::Unpause { paused_ms } => Some(*paused_ms),
                    Session::Start | Session::Stop | Session::Lock | Session::Unlock | Session::Suspend | Session::Pause => None,
                    Session::NoticeAcknowledged { .. } => None,
                };
                self.sessions.push(SessionAt { at, what: session.name(), length_ms });
            }
            Kind::Network(network) => self.network.push(NetworkAt { at, addresses: network.addresses.clone() }),
            Kind::Capability(capability) => {
                let muster_mesh::record::Capability { what, able, why } = capability.clone();
                self.capabilities.push(CapabilityAt { at, what, able, why });
            }
            Kind::Gap(gap) => {
                let (lane, reason) = (gap.lane.name(), gap.reason.name());
                self.gaps.push(GapAt { at, lane, reason, records: gap.records, bytes: gap.bytes });
            }
            Kind::Focus(_) | Kind::Screenshot(_) | Kind::Timer(_) | Kind::Entry(_) => {}
        }
    }
}

/// Records by placed time; equal times by their keys, which the agent gave.
fn in_order(batches: &[KeptBatch]) -> Vec<(i64, &KeptBatch, &Record)> {
    let mut records = Vec::new();
    for batch in batches {
        records.extend(batch.records.iter().enumerate().map(|(idx, record)| (batch.placed.time(record.at), batch, idx, record)));
    }
    records.sort_by_key(|(at_ms, batch, idx, _)| (*at_ms, batch.spool, batch.seq, *idx));
    records.into_iter().map(|(at_ms, batch, _, record)| (at_ms, batch, record)).collect()
}

/// The zone that most batches name; of equals the first by name. A name that no calendar knows counts by its offset.
fn zone_of(batches: &[KeptBatch]) -> (String, TimeZone) {
    let mut named: BTreeMap<(&str, i32), usize> = BTreeMap::new();
    for batch in batches {
        *named.entry((&batch.zone, batch.offset_s)).or_default() += 1;
    }
    let mut by_name: BTreeMap<&str, (usize, i32)> = BTreeMap::new();
    for ((name, offset_s), count) in named {
        let entry = by_name.entry(name).or_insert((0, offset_s));
        entry.0 += count;
    }
    let most = by_name.into_iter().max_by_key(|(name, (count, _))| (*count, std::cmp::Reverse(*name)));
    let Some((name, (_, offset_s))) = most else { return ("UTC".into(), TimeZone::UTC) };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte));
    let known = if is_name { TimeZone::get(name).ok() } else { None };
    let zone = known.unwrap_or_else(|| Offset::from_seconds(offset_s).map_or(TimeZone::UTC, TimeZone::fixed));
    (name.to_owned(), zone)
}

#[cfg(test)]
mod tests {
    use muster_mesh::{
        ids::{Lane, SpoolId},
        record::{Activity, Focus},
    };

    use super::*;
    use crate::ingest::placing::{DAY_MS, Placed};

    /// 2026-10-25, when Oslo puts its clocks back.
    const OCTOBER_25: i64 = 1_792_886_400_000;

    #[test]
    fn a_day_has_23_24_or_25_hours() {
        let hours = |date: &str| Day::of(date.parse().unwrap(), &[batch(1, 0, Vec::new())]).unwrap().length_ms / 3_600_000;
        assert_eq!((hours("2026-10-25"), hours("2026-10-26"), hours("2026-03-29")), (25, 24, 23));
    }

    #[test]
    fn spans_are_cut_at_the_days_ends_and_nothing_is_counted_in_two_days() {
        // Local midnight is 22:00 UTC of the day before.
        let midnight = OCTOBER_25 - 2 * 3_600_000;
        let batches = [batch(1, 0, vec![focus(midnight - 60_000, 180_000), activity(midnight - 1), activity(midnight)])];
        let before = Day::of("2026-10-24".parse().unwrap(), &batches).unwrap();
        let after = Day::of("2026-10-25".parse().unwrap(), &batches).unwrap();
        assert_eq!((before.focus[0].length_ms, after.focus[0].length_ms), (60_000, 120_000));
        assert_eq!((before.counts["focus"], after.counts.get("focus")), (1, None));
        assert_eq!((before.input.minutes, after.input.minutes), (1, 1));
    }

    #[test]
    fn the_order_of_batches_changes_nothing() {
        let mut batches: Vec<_> =
            (0..40).map(|i| batch(i, 0, vec![activity(OCTOBER_25 + (i as i64 % 7) * 1_000), focus(OCTOBER_25, 500)])).collect();
        let day = Day::of("2026-10-25".parse().unwrap(), &batches).unwrap();
        batches.reverse();
        batches.swap(3, 17);
        assert_eq!(Day::of("2026-10-25".parse().unwrap(), &batches).unwrap(), day);
    }

    #[test]
    fn placed_times_count_and_a_zone_that_no_calendar_knows_goes_by_its_offset() {
        let mut batches = [batch(1, 2 * DAY_MS, vec![activity(OCTOBER_25 - 2 * DAY_MS)])];
        batches[0].zone = "../../etc/passwd".into();
        let day = Day::of("2026-10-25".parse().unwrap(), &batches).unwrap();
        assert_eq!((day.input.minutes, day.length_ms, day.shifted["measured"]), (1, DAY_MS, 1));
    }

    fn batch(seq: u64, shift_ms: i64, records: Vec<Record>) -> KeptBatch {
        let why = if shift_ms == 0 { ShiftWhy::None } else { ShiftWhy::Measured };
        KeptBatch {
            spool: SpoolId([1; 16]),
            lane: Lane::Telemetry,
            seq,
            placed: Placed { shift_ms, why, day: 0 },
            wall_ms: 0,
            zone: "Europe/Oslo".into(),
            offset_s: 7_200,
            flags: 0,
            records,
        }
    }

    fn focus(at: i64, ms: u32) -> Record {
        Record { at, kind: Kind::Focus(Focus { ms, application: Application::Private, title: None, source: Source::X11 }) }
    }

    fn activity(at: i64) -> Record {
        let activity = Activity { ms: 60_000, keys: 1, clicks: 1, wheel: 0, pointer_moved: true, active_ms: 60_000, idle_ms: 0 };
        Record { at, kind: Kind::Activity(activity) }
    }
}
