//! Quiet: one person's working day, as `realistic-day.md` beside this crate describes it. Assumed, not measured: replace a figure when the mesh has a better one.
//!
//! About 900 records in 450–520 batches: minutes with input, focus spans, heartbeats, session events, a lunch as a lock with a nap in it.

use muster_mesh::record::{Activity, Application, Capability, Focus, Heartbeat, Kind, Network, Session, Source, State};

const MINUTE_MS: u64 = 60_000;
/// Of eight and a half hours and a lunch, the minutes with input.
const ACTIVE_MINUTES: u64 = 380;
const FOCUS_SPANS: u64 = 360;
const HEARTBEAT_EVERY_MINUTES: u64 = 5;
const DAY_MINUTES: u64 = 550;

/// Something that happens at a moment of the day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds from the begin of the day.
    pub at_ms: u64,
    pub kind: Kind,
    /// A change of state: the batch closes.
    pub closes: bool,
}

/// A whole day in order of time. The same seed gives the same day.
pub fn day(seed: u64) -> Vec<Event> {
    let mut dice = Dice::new(seed ^ 0x6d75_7374_6572);
    let mut events = Vec::new();
    let lunch = (210 + dice.below(60), 35 + dice.below(21));
    events.push(event(0, Kind::Session(Session::Start), true));
    for what in ["activity", "focus"] {
        events.push(event(1, Kind::Capability(Capability { what: what.into(), able: true, why: String::new() }), false));
    }
    let away = |minute: u64| minute >= lunch.0 && minute < lunch.0 + lunch.1;
    minutes(&mut dice, away, &mut events);
    spans(&mut dice, away, &mut events);
    for minute in (0..DAY_MINUTES).step_by(HEARTBEAT_EVERY_MINUTES as usize) {
        events.push(heartbeat(minute * MINUTE_MS + 2, if away(minute) { State::Locked } else { State::Active }, false));
    }
    // At the desk, away from it with the lid closed, at the desk again.
    let nap = (lunch.0 + 5) * MINUTE_MS;
    for (at_ms, address) in
        [(2, "192.0.2.17"), (nap - 2, "192.0.2.17"), (nap + 20 * MINUTE_MS, "198.51.100.4"), (nap + 21 * MINUTE_MS, "192.0.2.17")]
    {
        events.push(event(at_ms, Kind::Network(Network { addresses: vec![address.into(), "fe80::1".into()] }), false));
    }
    events.push(event(nap, Kind::Session(Session::Suspend), true));
    events.push(event(nap + 20 * MINUTE_MS, Kind::Session(Session::Resume { slept_ms: 20 * MINUTE_MS }), true));
    // Lunch and three shorter locks.
    let short = |dice: &mut Dice| (30 + dice.below(480), 1 + dice.below(6));
    let mut locks = vec![lunch];
    locks.extend((0..3).map(|_| short(&mut dice)));
    for (from, minutes) in locks {
        events.push(event(from * MINUTE_MS, Kind::Session(Session::Lock), true));
        events.push(heartbeat(from * MINUTE_MS + 1, State::Locked, true));
        events.push(event((from + minutes) * MINUTE_MS, Kind::Session(Session::Unlock), true));
        events.push(heartbeat((from + minutes) * MINUTE_MS + 1, State::Active, true));
    }
    events.push(event(DAY_MINUTES * MINUTE_MS, Kind::Session(Session::Stop), true));
    events.sort_by_key(|event| event.at_ms);
    events
}

/// When the day's pictures are taken, in milliseconds from its begin, in order of time.
pub fn pictures(seed: u64, count: u32) -> Vec<u64> {
    let mut dice = Dice::new(seed ^ 0x7368_6f74);
    let mut moments: Vec<u64> = (0..count).map(|_| dice.below(DAY_MS)).collect();
    moments.sort_unstable();
    moments
}

/// How long the day is, in milliseconds.
pub const DAY_MS: u64 = DAY_MINUTES * MINUTE_MS;

fn minutes(dice: &mut Dice, away: impl Fn(u64) -> bool, events: &mut Vec<Event>) {
    let present: Vec<u64> = (0..DAY_MINUTES).filter(|minute| !away(*minute)).collect();
    for (at, minute) in present.iter().enumerate() {
        // So many of the present minutes have input, evenly.
        if (at as u64 * ACTIVE_MINUTES) / (present.len() as u64) == ((at as u64 + 1) * ACTIVE_MINUTES) / (present.len() as u64) {
            continue;
        }
        let active_ms = 5_000 + dice.below(55_001) as u32;
        let activity = Activity {
            ms: MINUTE_MS as u32,
            keys: dice.skewed(38, 260),
            clicks: dice.skewed(9, 45),
            wheel: dice.skewed(12, 120),
            pointer_moved: dice.below(10) > 0,
            active_ms,
            idle_ms: MINUTE_MS as u32 - active_ms,
        };
        events.push(event(minute * MINUTE_MS + 59_999, Kind::Activity(activity), false));
    }
}

fn spans(dice: &mut Dice, away: impl Fn(u64) -> bool, events: &mut Vec<Event>) {
    for _ in 0..FOCUS_SPANS {
        let minute = dice.below(DAY_MINUTES - 1);
        if away(minute) {
            continue;
        }
        let focus = Focus {
            ms: 2_000 + dice.skewed(23_000, 300_000),
            application: application(dice),
            title: Some(title(dice)),
            source: Source::X11,
        };
        events.push(event(minute * MINUTE_MS + dice.below(MINUTE_MS), Kind::Focus(focus), false));
    }
}

/// Fourteen applications, of which three make 70 %.
fn application(dice: &mut Dice) -> Application {
    let at = match dice.below(100) {
        0..30 => 0,
        30..52 => 1,
        52..70 => 2,
        _ => 3 + dice.below(11),
    };
    Application::Named(format!("application-{at:02}"))
}

/// Median 34 characters; 12 % with letters outside ASCII, 1 % right-to-left; the same title returns often.
fn title(dice: &mut Dice) -> String {
    const WORDS: [&str; 12] =
        ["report", "invoice", "plan", "offer", "meeting", "notes", "draft", "budget", "review", "contract", "inbox", "release"];
    let again = dice.below(10) < 6;
    let number = if again { dice.below(40) } else { dice.below(4_000) };
    let first = WORDS[(number % 12) as usize];
    let second = WORDS[(number / 12 % 12) as usize];
    match dice.below(100) {
        0 => format!("دفتر {number} — {first}"),
        1..13 => format!("Übersicht {first} {number} — Åsgård {second}"),
        _ => format!("{first} {second} {number} - application window"),
    }
}

fn heartbeat(at_ms: u64, state: State, closes: bool) -> Event {
    event(at_ms, Kind::Heartbeat(Heartbeat { state, battery: None, version: "0.1.0".into() }), closes)
}

fn event(at_ms: u64, kind: Kind, closes: bool) -> Event {
    Event { at_ms, kind, closes }
}

/// The same on every machine.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    pub fn draw(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Half of the draws lie below `median`, the rest thins out up to `most`.
    fn skewed(&mut self, median: u64, most: u64) -> u32 {
        if self.below(2) == 0 {
            return self.below(median + 1) as u32;
        }
        let above = most - median;
        (median + self.below(above + 1) * self.below(above + 1) / above.max(1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_about_900_records_and_the_same_seed_gives_the_same() {
        for seed in 0..20 {
            let today = day(seed);
            assert_eq!(today, day(seed));
            assert!((780..=960).contains(&today.len()), "{}", today.len());
            assert!(today.is_sorted_by_key(|event| event.at_ms));
        }
        assert_ne!(day(1), day(2));
        assert_eq!(pictures(7, 2), pictures(7, 2));
        assert!(pictures(7, 40).is_sorted() && pictures(7, 40).len() == 40);
    }
}
