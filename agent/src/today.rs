//! Quiet: the texts of `muster-agent today` and `muster-agent shots`: what was collected, and where each thing is now.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil, tz::Offset};
use muster_mesh::{
    clock::Zone,
    ids::SpoolId,
    policy::{Policy, Switch},
};

use crate::{
    daylog::{Entry, Remembered},
    shots::album::Shot,
};

/// Where a batch is, as far as the agent was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Only on this computer.
    Here,
    /// On the disk of the connected relay, not yet in the hub.
    Branch,
    /// On the hub's disk.
    Hub,
    /// Nowhere: it was dropped, and a `Gap` says so.
    Dropped,
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Place::Here => "here",
            Place::Branch => "in the branch",
            Place::Hub => "in the hub",
            Place::Dropped => "dropped",
        }
    }
}

/// All that the text says.
pub struct View<'a> {
    pub now_ms: i64,
    pub zone: &'a Zone,
    pub test_mode: bool,
    /// What of the policy is observed; None: nothing.
    pub effective: Option<&'a Policy>,
    /// Number of the notice that was read, and when in milliseconds UTC.
    pub read: Option<(u32, i64)>,
    /// A newer notice waits.
    pub waits: bool,
    pub day: &'a Remembered,
    pub place: &'a dyn Fn(SpoolId, u64) -> Place,
    /// One line about the connection, without its end of line.
    pub connection: &'a str,
}

const SIGNS_OF_LIFE: usize = 0;
const MINUTES: usize = 1;
const WINDOWS: usize = 2;
const SESSION: usize = 4;
const CAPABILITIES: usize = 6;

/// A line of the table: its name, what it counts of a batch, and a remark.
type Row = (&'static str, fn(&Entry) -> u64, String);

/// Made from the day log, for a terminal.
pub fn text(view: &View) -> String {
    let mut text = format!("Today, {}, {}. {}\n", day_name(view.now_ms, view.zone), view.zone.name, reading(view));
    if view.test_mode {
        text += "This is test mode.\n";
    }
    text += &format!("\n{:<36}{:>5}{:>16}{:>13}\n", "What was collected", "here", "in the branch", "in the hub");
    for (name, count, remark) in rows(view) {
        let [here, branch, hub] = counted(view, count);
        text += format!("  {name:<34}{here:>5}{branch:>16}{hub:>13}   {remark}").trim_end();
        text.push('\n');
    }
    text += &verdicts(view.day);
    if view.day.is_cut {
        text += "\nThe oldest batches of today aren't listed any more.\n";
    }
    text += &format!("\n{}\n", view.connection);
    text += "\n  muster-agent pause 30m     nothing is collected until you resume\n";
    text += "  muster-agent notice        what is recorded about you, why, who can see it, how long it is kept\n";
    text
}

fn reading(view: &View) -> String {
    match view.read {
        Some((number, at_ms)) if view.waits => {
            format!("You read notice {number} on {}; a newer one waits: muster-agent notice.", date(at_ms, view.zone))
        }
        Some((number, at_ms)) => format!("You read notice {number} on {}.", date(at_ms, view.zone)),
        None => "You haven't read the notice yet: muster-agent notice.".into(),
    }
}

fn rows(view: &View) -> Vec<Row> {
    let beats = match view.effective {
        Some(policy) => format!("{}, and when your state changes", every(policy.heartbeat_s)),
        None => String::new(),
    };
    let windows = match view.effective {
        Some(policy) if policy.has(Switch::Titles) => "program names and titles",
        Some(_) | None => "program names; titles are off",
    };
    let mut rows: Vec<Row> = vec![
        ("signs of life", |entry| entry.kinds[SIGNS_OF_LIFE].into(), beats),
        ("active minutes", |entry| entry.kinds[MINUTES].into(), "how many keys and clicks, never which".into()),
        ("windows", |entry| (entry.kinds[WINDOWS] - entry.private).into(), windows.into()),
        ("detailed logs", |entry| entry.logs.into(), logs(view)),
        ("pictures at an interval", |entry| entry.pictures.into(), interval(view)),
        ("pictures not taken", |entry| entry.untaken.values().sum(), untaken(view)),
        ("pauses", |entry| entry.pauses.len() as u64, pauses(view)),
        ("left out as private", |entry| entry.private.into(), "only counted, without a name".into()),
        ("start, stop, sleep and the like", |entry| entry.kinds[SESSION].into(), String::new()),
        ("what can't be measured here", |entry| entry.kinds[CAPABILITIES].into(), String::new()),
        ("dropped", |entry| entry.dropped, String::new()),
    ];
    // Where pictures are off, and were, one line says so.
    let (had_pictures, has_interval) =
        (entries(view).any(|entry| entry.pictures > 0), view.effective.is_some_and(|policy| policy.pictures.interval_s > 0));
    let had_untaken = entries(view).any(|entry| !entry.untaken.is_empty());
    rows.retain(|(name, ..)| match *name {
        "pictures at an interval" => had_pictures || has_interval,
        "pictures not taken" => had_untaken,
        _ => true,
    });
    rows
}

fn entries<'a>(view: &View<'a>) -> std::slice::Iter<'a, Entry> {
    view.day.entries.iter()
}

fn logs(view: &View) -> String {
    match view.effective.map(|policy| policy.pictures.detailed_logs_per_day) {
        None => String::new(),
        Some(0) => "off".into(),
        Some(1) => "once a day, at a time that nobody knows before: muster-agent shots".into(),
        Some(n) => format!("{n} times a day, at times that nobody knows before: muster-agent shots"),
    }
}

fn interval(view: &View) -> String {
    match view.effective.map(|policy| policy.pictures.interval_s) {
        None | Some(0) => String::new(),
        Some(seconds) => format!("{}: muster-agent shots", every(seconds)),
    }
}

/// "paused 1, an excluded program could be seen 2"
fn untaken(view: &View) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in entries(view).flat_map(|entry| &entry.untaken) {
        *counts.entry(reason).or_default() += count;
    }
    let words = |reason: &str| match reason {
        "excluded" => "a private program could be seen".to_owned(),
        "paused" => "you had paused".to_owned(),
        "locked" => "locked".to_owned(),
        "asleep" => "asleep or off".to_owned(),
        "failed" => "it failed".to_owned(),
        other => other.replace('_', " "),
    };
    counts.into_iter().map(|(reason, count)| format!("{} {count}", words(reason))).collect::<Vec<_>>().join(", ")
}

fn counted(view: &View, count: fn(&Entry) -> u64) -> [u64; 3] {
    let mut counted = [0; 3];
    for entry in &view.day.entries {
        let place = match (view.place)(entry.spool, entry.seq) {
            Place::Here => 0,
            Place::Branch => 1,
            Place::Hub => 2,
            Place::Dropped => continue,
        };
        counted[place] += count(entry);
    }
    counted
}

fn pauses(view: &View) -> String {
    let clock = |ms: i64| clock_time(ms, view.zone);
    let span = |(begin, ms): &(i64, u64)| format!("{}-{}", clock(*begin), clock(begin.saturating_add_unsigned(*ms)));
    let spans: Vec<String> = view.day.entries.iter().flat_map(|entry| &entry.pauses).map(span).collect();
    if spans.is_empty() { String::new() } else { format!("{}, nothing was collected", spans.join(", ")) }
}

/// What the hub did with batches besides storing them.
fn verdicts(day: &Remembered) -> String {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (verdict, reason) in day.verdicts.values() {
        *counts.entry((verdict, reason)).or_default() += 1;
    }
    let mut text = String::new();
    for ((verdict, reason), count) in counts {
        let batches = if count == 1 { "batch is" } else { "batches are" };
        let why = if reason == "none" { String::new() } else { format!(" ({})", reason.replace('_', " ")) };
        text += &format!("\nIn the hub {count} {batches} {verdict}{why}.");
    }
    if text.is_empty() { text } else { text + "\n" }
}

/// The list of pictures, the newest last.
pub fn shots_text(shots: &[(Shot, Place)], zone: &Zone, effective: Option<&Policy>) -> String {
    let policy = match effective.map(|policy| policy.pictures) {
        Some(pictures) if pictures.are_on() => "",
        Some(_) | None => "No pictures are taken on this computer now.\n",
    };
    if shots.is_empty() {
        return format!("{policy}There is no picture of the last two days.");
    }
    let mut text =
        format!("{policy}{:>5}  {:<20}{:<15}{:<18}{:>10}{:>9}   {}\n", "no.", "taken", "why", "of", "size", "bytes", "where it is now");
    for (shot, place) in shots {
        let taken = civil_time(shot.at_ms, zone).strftime("%a %-d %b, %H:%M").to_string();
        let why = if shot.detailed_log { "detailed log" } else { "interval" };
        let of = match (shot.active_window, shot.parts) {
            (true, _) => "window in front".to_owned(),
            (false, 1) => "screen".to_owned(),
            (false, parts) => format!("screen {} of {parts}", shot.part + 1),
        };
        let blurred = if shot.blurred { "blurred" } else { "not blurred" };
        let size = format!("{}x{}", shot.width, shot.height);
        text += &format!("{:>5}  {taken:<20}{why:<15}{of:<18}{size:>10}{:>9}   {}, {blurred}\n", shot.number, shot.bytes, place.name());
    }
    text + "\n  muster-agent shots show NO                  opens it, exactly as it was sent\n  muster-agent shots show NO --out FILE       writes it to a file\n"
}

fn every(seconds: u32) -> String {
    match seconds {
        60 => "every minute".into(),
        s if s % 60 == 0 => format!("every {} minutes", s / 60),
        s => format!("every {s} seconds"),
    }
}

/// The civil day of a moment, in the person's zone now.
pub fn civil_date(ms: i64, zone: &Zone) -> civil::Date {
    civil_time(ms, zone).date()
}

/// "14:32"
pub fn clock_time(ms: i64, zone: &Zone) -> String {
    civil_time(ms, zone).strftime("%H:%M").to_string()
}

fn civil_time(ms: i64, zone: &Zone) -> civil::DateTime {
    Offset::from_seconds(zone.offset_s).unwrap_or(Offset::UTC).to_datetime(Timestamp::from_millisecond(ms).unwrap_or_default())
}

fn day_name(ms: i64, zone: &Zone) -> String {
    civil_time(ms, zone).strftime("%A %-d %B %Y").to_string()
}

fn date(ms: i64, zone: &Zone) -> String {
    civil_time(ms, zone).strftime("%-d %B").to_string()
}

#[cfg(test)]
mod tests {
    use muster_mesh::{
        ids::Lane,
        record::{Gap, GapReason, Heartbeat, Kind, Record, Session, State},
    };

    use super::*;
    use crate::collect::sense::tests::policy;

    const SPOOL: SpoolId = SpoolId([9; 16]);
    const NOON: i64 = 1_795_431_600_000; // Monday 23 November 2026, 12:00 in Oslo

    fn heartbeat() -> Record {
        Record { at: 0, kind: Kind::Heartbeat(Heartbeat { state: State::Active, battery: None, version: "0".into() }) }
    }

    fn shot(number: u64, detailed_log: bool, parts: u8) -> Shot {
        Shot {
            number,
            at_ms: NOON,
            detailed_log,
            active_window: false,
            part: 0,
            parts,
            width: 1_280,
            height: 720,
            jpeg: false,
            blurred: true,
            bytes: 11_873,
            spool: SPOOL,
            seq: number,
        }
    }

    fn flat(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn the_list_of_pictures_says_when_why_and_where_each_is() {
        let zone = Zone { name: "Europe/Oslo".into(), offset_s: 3_600 };
        let policy = policy();
        let listed = flat(&shots_text(&[(shot(7, true, 2), Place::Hub), (shot(8, false, 1), Place::Here)], &zone, Some(&policy)));
        for line in [
            "No pictures are taken on this computer now.",
            "7 Mon 23 Nov, 12:00 detailed log screen 1 of 2 1280x720 11873 in the hub, blurred",
            "8 Mon 23 Nov, 12:00 interval screen 1280x720 11873 here, blurred",
        ] {
            assert!(listed.iter().any(|found| found == line), "{line} is missing in:\n{listed:#?}");
        }
        assert_eq!(shots_text(&[], &zone, Some(&crate::shots::tests::every_15_s())), "There is no picture of the last two days.");
    }

    #[test]
    fn pictures_that_were_not_taken_are_told_with_their_reasons() {
        let gap = |reason| Record { at: 0, kind: Kind::Gap(Gap { lane: Lane::Pictures, numbers: None, records: 1, bytes: 0, reason }) };
        let records = [gap(GapReason::Paused), gap(GapReason::Excluded), gap(GapReason::Excluded)];
        let entries = vec![Entry::of(Lane::Telemetry, SPOOL, 1, NOON, &records)];
        let (zone, policy) = (Zone { name: "Etc/UTC".into(), offset_s: 0 }, crate::shots::tests::logs(2));
        let view = |day: &Remembered, policy: &Policy| {
            flat(&text(&View {
                now_ms: NOON,
                zone: &zone,
                test_mode: false,
                effective: Some(policy),
                read: None,
                waits: false,
                day,
                place: &|_, _| Place::Here,
                connection: "",
            }))
        };
        let told = view(&Remembered { entries, ..Remembered::default() }, &policy);
        for line in [
            "detailed logs 0 0 0 2 times a day, at times that nobody knows before: muster-agent shots",
            "pictures not taken 3 0 0 a private program could be seen 2, you had paused 1",
            "dropped 0 0 0",
        ] {
            assert!(told.iter().any(|found| found == line), "{line} is missing in:\n{told:#?}");
        }
        assert!(!told.iter().any(|line| line.starts_with("pictures at an interval")));
        let none = view(&Remembered::default(), &crate::shots::tests::every_15_s());
        assert!(none.iter().any(|line| line == "pictures at an interval 0 0 0 every 15 seconds: muster-agent shots"), "{none:#?}");
        assert!(none.iter().any(|line| line == "detailed logs 0 0 0 off") && !none.iter().any(|line| line.starts_with("pictures not")));
    }

    #[test]
    fn the_table_says_where_each_thing_is() {
        let unpause = Record { at: NOON, kind: Kind::Session(Session::Unpause { paused_ms: 39 * 60_000 }) };
        let gap = Record {
            at: 0,
            kind: Kind::Gap(Gap { lane: Lane::Telemetry, numbers: None, records: 5, bytes: 9, reason: GapReason::Overflow }),
        };
        let entries = [vec![heartbeat(), heartbeat()], vec![heartbeat(), unpause], vec![heartbeat(), gap]];
        let entries = entries.iter().zip(1..).map(|(records, seq)| Entry::of(Lane::Telemetry, SPOOL, seq, NOON, records)).collect();
        let verdicts = BTreeMap::from([((SPOOL, 1), ("held".to_owned(), "unknown_version".to_owned()))]);
        let day = Remembered { entries, verdicts, is_cut: false };
        let policy = policy();
        let text = text(&View {
            now_ms: NOON,
            zone: &Zone { name: "Europe/Oslo".into(), offset_s: 3_600 },
            test_mode: false,
            effective: Some(&policy),
            read: Some((3, NOON - 21 * 86_400_000)),
            waits: false,
            day: &day,
            place: &|_, seq| [Place::Hub, Place::Branch, Place::Here][seq as usize - 1],
            connection: "Connected to your branch's relay oslo-1.",
        });
        let flat: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "Today, Monday 23 November 2026, Europe/Oslo. You read notice 3 on 2 November.",
            "What was collected here in the branch in the hub",
            "signs of life 1 1 2 every 5 minutes, and when your state changes",
            "pauses 0 1 0 11:21-12:00, nothing was collected",
            "dropped 5 0 0",
            "In the hub 1 batch is held (unknown version).",
            "Connected to your branch's relay oslo-1.",
        ] {
            assert!(flat.iter().any(|found| found == line), "{line} is missing in:\n{text}");
        }
    }
}
