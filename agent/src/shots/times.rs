//! Quiet: when pictures are due: a day's detailed logs at times that nobody can know before, and pictures at an interval of observed time.
//!
//! No time is drawn ahead. In each minute of the day's window (working hours ∩ 08:00–22:00 of the local civil day) chance decides whether it is
//! this one, by (logs still wanted) / (minutes still to come): every choice of minutes is equally likely, the day's number always comes out,
//! and no file and no memory ever holds what is to come. What is remembered of a day is only how many moments it has had:
//!
//! ```text
//! a restart, another zone, a DST day    the rest of the number over the rest of the local window
//! a late start, a sleep in between      the same
//! the window is over, some are missing  each is told as not taken: asleep if the agent wasn't awake all the time, else outside hours
//! a moment comes and may not be used    it counts as had, and is told as not taken, with the reason
//! ```

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::Offset};
use muster_mesh::{clock::Reading, policy::WorkingHours, record::GapReason};
use serde::{Deserialize, Serialize};

const DAY_MINUTES: usize = 24 * 60;
/// Earlier and later than this nobody is photographed, whatever the working hours are.
const FIRST_MINUTE: usize = 8 * 60;
const END_MINUTE: usize = 22 * 60;
/// Looks come every second; whoever didn't look for this long wasn't awake.
const HOLE_MS: u64 = 5_000;
/// A moment never falls on a minute's last two seconds: the tick that finds it is in the same minute.
const LAST_SECOND: i64 = 58;
/// A moment that couldn't be used for so long goes back among the minutes to come.
const LATE_MS: u64 = 60_000;
/// Civil days that are remembered: a traveller, or a clock that is set, comes back to some.
const DAYS_MAX: usize = 16;

/// The moments of each day. [`Book`] is all of it that outlives a restart.
#[derive(Debug)]
pub struct Times {
    book: Book,
    window: Option<Window>,
    /// The local minute in which chance was asked last.
    asked_minute: Option<i64>,
    /// The moment, once its minute has come: wall clock.
    due_ms: Option<i64>,
    last: Option<Reading>,
    /// At the last look something was asked for.
    was_asked: bool,
}

/// What was had so far, as it lies on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    days: Vec<Day>,
    /// Not taken, and not told yet: how many, by the reason's name.
    untaken: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Day {
    /// The local civil day, in days since 1970-01-01.
    day: i64,
    wanted: u8,
    had: u8,
    /// A log was begun, and how it ended isn't noted.
    under_way: bool,
    /// No moment comes any more.
    over: bool,
    /// The agent wasn't awake for all of the window. After a start that is so.
    #[serde(skip, default = "yes")]
    has_holes: bool,
}

/// What holds at a look.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    pub now: Reading,
    /// Local time minus UTC in seconds.
    pub offset_s: i32,
    /// None: nothing is asked for, or the person hasn't read about it.
    pub asked: Option<Asked<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub logs_per_day: u8,
    pub hours: &'a WorkingHours,
}

/// The minutes of one civil day in which may be taken.
#[derive(Debug)]
struct Window {
    day: i64,
    hours: WorkingHours,
    /// By minute of the day: how many of the window's minutes are this one or later.
    left: Vec<u16>,
}

/// Where a wall clock stands on the person's own.
struct Local {
    day: i64,
    minute: usize,
    second: i64,
    /// Minutes since 1970 by the person's clock.
    minute_number: i64,
}

fn yes() -> bool {
    true
}

impl Times {
    /// After a start. A log that was under way when the program ended counts as failed.
    pub fn new(mut book: Book) -> Times {
        let broken = book.days.iter_mut().map(|day| std::mem::take(&mut day.under_way)).filter(|&was| was).count();
        book.not_taken(GapReason::Failed, broken as u64);
        Times { book, window: None, asked_minute: None, due_ms: None, last: None, was_asked: false }
    }

    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Once a second. True: a detailed log is due; [`begun`](Self::begun) or [`passed`](Self::passed) follows, now or at a later look.
    /// `chance` gives numbers in [0, 1).
    pub fn look(&mut self, look: &Look<'_>, chance: &mut dyn FnMut() -> f64) -> bool {
        let was_away = self.last.is_none_or(|last| look.now.boot_ms.saturating_sub(last.boot_ms) > HOLE_MS);
        self.last = Some(look.now);
        let local = Local::of(look.now.wall_ms, look.offset_s);
        self.book.end_days_before(local.day, was_away);
        let asked = look.asked.filter(|asked| asked.logs_per_day > 0);
        let was_asked = std::mem::replace(&mut self.was_asked, asked.is_some());
        let Some(asked) = asked else {
            self.book.nothing_is_asked(local.day);
            self.due_ms = None;
            return false;
        };
        let window = window(&mut self.window, local.day, asked.hours);
        let (whole, left) = (window.left[0], window.left[local.minute]);
        if whole == 0 {
            self.due_ms = None;
            return false;
        }
        let is_late = was_away && left < whole;
        let is_in_window = left > window.left[local.minute + 1];
        // A day that is met only after its window lacks its number, unless it is what asks that is new.
        let day = self.book.day(local.day, asked.logs_per_day, left > 0 || is_late || was_asked);
        day.has_holes |= is_late;
        if !day.over {
            day.wanted = asked.logs_per_day;
        }
        if left == 0 {
            self.book.end_day(local.day);
        }
        let need = self.book.need(local.day);
        let stale = |due_ms: &mut i64| look.now.wall_ms.abs_diff(*due_ms) > LATE_MS;
        // Whoever flew into the night isn't photographed in it.
        self.due_ms.take_if(|due_ms| stale(due_ms) || need == 0 || !is_in_window);
        if need > 0 && is_in_window && self.due_ms.is_none() && self.asked_minute != Some(local.minute_number) {
            self.asked_minute = Some(local.minute_number);
            if chance() * f64::from(left) < f64::from(need) {
                // Anywhere in what is left of the minute.
                let wait_ms = chance() * 1_000.0 * (LAST_SECOND - local.second).max(0) as f64;
                self.due_ms = Some(look.now.wall_ms.saturating_add(wait_ms as i64));
            }
        }
        self.due_ms.is_some_and(|due_ms| look.now.wall_ms >= due_ms)
    }

    /// A log is begun now. It counts as had before there is a picture, so that a restart never takes it twice.
    pub fn begun(&mut self) {
        self.had(true);
    }

    /// How the log that was begun ended is in its records.
    pub fn ended(&mut self) {
        self.book.days.iter_mut().for_each(|day| day.under_way = false);
    }

    /// The moment has come and can't be used.
    pub fn passed(&mut self, reason: GapReason) {
        self.had(false);
        self.not_taken(reason);
    }

    /// A picture that was asked for wasn't taken.
    pub fn not_taken(&mut self, reason: GapReason) {
        self.book.not_taken(reason, 1);
    }

    /// What wasn't taken and isn't told yet. It counts as told.
    pub fn tell(&mut self) -> Vec<(GapReason, u64)> {
        let untaken = std::mem::take(&mut self.book.untaken);
        let named = |(name, count): (String, u64)| Some((GapReason::ALL.into_iter().find(|reason| reason.name() == name)?, count));
        untaken.into_iter().filter_map(named).collect()
    }

    fn had(&mut self, under_way: bool) {
        // The day whose window is looked at is the one whose moment it was.
        let (Some(_), Some(window)) = (self.due_ms.take(), &self.window) else { return };
        if let Some(day) = self.book.days.iter_mut().find(|day| day.day == window.day) {
            day.had = day.had.saturating_add(1);
            day.under_way = under_way;
        }
    }
}

impl Book {
    fn not_taken(&mut self, reason: GapReason, count: u64) {
        if count > 0 {
            *self.untaken.entry(reason.name().to_owned()).or_default() += count;
        }
    }

    /// The newest of them are kept, by when they were looked at.
    fn day(&mut self, number: i64, wanted: u8, counts: bool) -> &mut Day {
        let day = match self.days.iter().position(|day| day.day == number) {
            Some(at) => self.days.remove(at),
            None => Day { day: number, wanted: if counts { wanted } else { 0 }, had: 0, under_way: false, over: !counts, has_holes: false },
        };
        if self.days.len() == DAYS_MAX {
            self.days.remove(0);
        }
        self.days.push_mut(day)
    }

    fn need(&self, number: i64) -> u8 {
        let day = self.days.iter().find(|day| day.day == number && !day.over);
        day.map_or(0, |day| day.wanted.saturating_sub(day.had))
    }

    /// `was_away`: whoever looks now didn't see the end of their windows.
    fn end_days_before(&mut self, number: i64, was_away: bool) {
        let earlier = self.days.iter_mut().filter(|day| day.day < number && !day.over);
        let earlier: Vec<i64> = earlier
            .map(|day| {
                day.has_holes |= was_away;
                day.day
            })
            .collect();
        earlier.into_iter().for_each(|day| self.end_day(day));
    }

    /// What it lacks won't come any more.
    fn end_day(&mut self, number: i64) {
        let Some(day) = self.days.iter_mut().find(|day| day.day == number && !day.over) else { return };
        day.over = true;
        let missing = u64::from(day.wanted.saturating_sub(day.had));
        let reason = if day.has_holes { GapReason::Asleep } else { GapReason::OutsideHours };
        self.not_taken(reason, missing);
    }

    fn nothing_is_asked(&mut self, number: i64) {
        if let Some(day) = self.days.iter_mut().find(|day| day.day == number && !day.over) {
            day.wanted = day.had;
        }
    }
}

fn window<'a>(kept: &'a mut Option<Window>, day: i64, hours: &WorkingHours) -> &'a Window {
    kept.take_if(|window| window.day != day || window.hours != *hours);
    kept.get_or_insert_with(|| Window::of(day, hours))
}

impl Window {
    fn of(day: i64, hours: &WorkingHours) -> Window {
        let mut left = vec![0; DAY_MINUTES + 1];
        // Days beyond the year 9999 have no window.
        let midnight = day.checked_mul(86_400).and_then(|seconds| Timestamp::from_second(seconds).ok());
        if let Some(date) = midnight.map(|midnight| Offset::UTC.to_datetime(midnight).date()) {
            for minute in (0..DAY_MINUTES).rev() {
                let time = date.at((minute / 60) as i8, (minute % 60) as i8, 0, 0);
                let may = (FIRST_MINUTE..END_MINUTE).contains(&minute) && hours.contains(time);
                left[minute] = left[minute + 1] + u16::from(may);
            }
        }
        Window { day, hours: hours.clone(), left }
    }
}

impl Local {
    fn of(wall_ms: i64, offset_s: i32) -> Local {
        let seconds = wall_ms.div_euclid(1_000).saturating_add(i64::from(offset_s));
        let minute_number = seconds.div_euclid(60);
        let minute = usize::try_from(minute_number.rem_euclid(DAY_MINUTES as i64)).unwrap_or(0);
        Local { day: minute_number.div_euclid(DAY_MINUTES as i64), minute, second: seconds.rem_euclid(60), minute_number }
    }
}

/// Pictures at an interval of observed time: what wasn't observed doesn't count, so nothing is asked for in it.
#[derive(Debug, Default)]
pub struct Interval {
    observed_ms: u64,
}

impl Interval {
    /// `observed_ms` went by since the last look, all of it observed. True: one is due; it stays due until [`taken`](Self::taken).
    pub fn look(&mut self, observed_ms: u64, every_s: u32) -> bool {
        if every_s == 0 {
            self.observed_ms = 0;
            return false;
        }
        self.observed_ms = self.observed_ms.saturating_add(observed_ms);
        // Ticks don't come to the millisecond: one is due at the nearest.
        self.observed_ms + 500 >= u64::from(every_s) * 1_000
    }

    pub fn taken(&mut self) {
        self.observed_ms = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::tz::TimeZone;

    use super::*;

    const SECOND_MS: i64 = 1_000;
    const MINUTE_MS: i64 = 60 * SECOND_MS;
    const HOUR_MS: i64 = 60 * MINUTE_MS;
    /// Monday, 1 January 2024, 00:00 UTC: the days from here hold several changes of every zone's clock.
    const BEGIN_MS: i64 = 1_704_067_200_000;

    /// Half of them change their clocks, at different times and by different amounts; one has 45 minutes in its offset.
    const ZONES: [&str; 10] = [
        "Europe/Oslo",
        "America/New_York",
        "America/Sao_Paulo",
        "Asia/Kathmandu",
        "Asia/Tokyo",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "Pacific/Chatham",
        "Pacific/Honolulu",
        "Antarctica/Troll",
    ];

    /// Chance that a seed gives: SplitMix64.
    fn chance(mut seed: u64) -> impl FnMut() -> f64 {
        move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// One agent in virtual time.
    struct Agent {
        times: Times,
        zone: TimeZone,
        /// UTC milliseconds until which the offset is known to hold.
        offset: (i64, i32),
        ms: i64,
        hours: WorkingHours,
        per_day: u8,
        chance: Box<dyn FnMut() -> f64>,
        /// (day, second of it) of each log that was taken.
        taken: Vec<(i64, i64)>,
        /// Local days on which it looked.
        days: BTreeSet<i64>,
        untaken: Vec<(GapReason, u64)>,
    }

    impl Agent {
        fn new(zone: &str, seed: u64) -> Agent {
            Agent {
                times: Times::new(Book::default()),
                zone: TimeZone::get(zone).unwrap(),
                offset: (i64::MIN, 0),
                ms: BEGIN_MS,
                hours: WorkingHours::always(),
                per_day: 2,
                chance: Box::new(chance(seed)),
                taken: Vec::new(),
                days: BTreeSet::new(),
                untaken: Vec::new(),
            }
        }

        /// Clocks change on the quarter of an hour.
        fn offset_s(&mut self) -> i32 {
            let quarter = self.ms.div_euclid(15 * MINUTE_MS);
            if self.offset.0 != quarter {
                self.offset = (quarter, self.zone.to_offset(Timestamp::from_millisecond(self.ms).unwrap()).seconds());
            }
            self.offset.1
        }

        fn local(&mut self) -> (i64, i64) {
            let seconds = self.ms / 1_000 + i64::from(self.offset_s());
            (seconds.div_euclid(86_400), seconds.rem_euclid(86_400))
        }

        fn look(&mut self) -> bool {
            let offset_s = self.offset_s();
            let now = Reading { wall_ms: self.ms, boot_ms: (self.ms - BEGIN_MS) as u64 + 1 };
            let asked = Some(Asked { logs_per_day: self.per_day, hours: &self.hours });
            self.times.look(&Look { now, offset_s, asked }, &mut self.chance)
        }

        /// Looks that a computer which is awake makes; where nothing can be due between two of them, they are left out, and boot time says that
        /// nobody slept.
        fn awake_until(&mut self, until_ms: i64) {
            while self.ms < until_ms {
                let due = self.look();
                let today = self.local().0;
                self.days.insert(today);
                if due {
                    let at = self.local();
                    self.taken.push(at);
                    self.times.begun();
                    self.times.ended();
                }
                self.untaken.extend(self.times.tell());
                self.ms = self.next_look().min(until_ms);
                self.times.last = Some(Reading { wall_ms: self.ms, boot_ms: (self.ms - BEGIN_MS) as u64 });
            }
        }

        fn next_look(&mut self) -> i64 {
            let (day, second) = self.local();
            let is_far = !(7 * 3_600..22 * 3_600).contains(&second) || self.times.book.need(day) == 0;
            match self.times.due_ms {
                Some(due_ms) => due_ms.max(self.ms + 1),
                // The window is an hour away: nothing is missed.
                None if is_far => self.ms + HOUR_MS / 2,
                None => self.ms + MINUTE_MS - self.ms.rem_euclid(MINUTE_MS),
            }
        }

        fn asleep_until(&mut self, until_ms: i64) {
            self.ms = until_ms;
        }

        /// The program ends and starts again: only the book is left.
        fn restart(&mut self) {
            let text = serde_json::to_string(self.times.book()).unwrap();
            self.times = Times::new(serde_json::from_str(&text).unwrap());
        }

        /// By day: how many were taken.
        fn days(&self) -> BTreeMap<i64, usize> {
            let mut days = BTreeMap::new();
            self.taken.iter().for_each(|(day, _)| *days.entry(*day).or_default() += 1);
            days
        }

        fn not_taken(&self, reason: GapReason) -> u64 {
            self.untaken.iter().filter(|(other, _)| *other == reason).map(|(_, count)| count).sum()
        }
    }

    /// Days of each zone: 2,000 in all, or in each with `MUSTER_TEST=long`.
    fn days_of_a_zone() -> i64 {
        if std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long") { 2_000 } else { 200 }
    }

    const DAY_MS: i64 = 24 * HOUR_MS;

    fn office() -> WorkingHours {
        WorkingHours::parse("mon-sun", "07:00", "17:00").unwrap()
    }

    #[test]
    fn each_day_has_exactly_its_number_within_its_window_in_every_zone() {
        for (zone, seed) in ZONES.into_iter().zip(1..) {
            let days = days_of_a_zone();
            let mut agent = Agent { hours: office(), per_day: 2 + (seed % 2) as u8, ..Agent::new(zone, seed) };
            // From its first midnight on, whatever the zone. Before it, some start when the window is over: that is said.
            let (today, second) = agent.local();
            let (first, begins_after) = (today + 1, second >= 17 * 3_600);
            let end = BEGIN_MS + (days + 2) * DAY_MS;
            agent.awake_until(end);
            let taken = agent.days();
            for day in first..first + days {
                assert_eq!(taken.get(&day), Some(&usize::from(agent.per_day)), "{zone}, day {day}: {:?}", agent.untaken);
            }
            assert!(agent.taken.iter().all(|(_, second)| (8 * 3_600..17 * 3_600).contains(second)), "{zone}");
            let said = if begins_after { vec![(GapReason::Asleep, u64::from(agent.per_day))] } else { vec![] };
            assert_eq!(agent.untaken, said, "{zone}");
        }
    }

    #[test]
    fn late_starts_sleeps_restarts_and_travels_keep_the_number_or_say_why() {
        let mut days_seen = 0;
        let mut reasons: BTreeSet<&str> = BTreeSet::new();
        for (zone, seed) in ZONES.into_iter().zip(100..) {
            let mut agent = Agent { hours: office(), ..Agent::new(zone, seed) };
            let mut luck = chance(seed * 7);
            let end = BEGIN_MS + days_of_a_zone() * DAY_MS;
            while agent.ms < end {
                // One to nine hours awake, then asleep, off, or on another continent.
                agent.awake_until((agent.ms + HOUR_MS + (luck() * 8.0 * HOUR_MS as f64) as i64).min(end));
                match (luck() * 4.0) as u32 {
                    0 => agent.asleep_until(agent.ms + (luck() * 14.0 * HOUR_MS as f64) as i64),
                    1 => {
                        agent.asleep_until(agent.ms + (luck() * 14.0 * HOUR_MS as f64) as i64);
                        agent.restart();
                    }
                    2 => {
                        agent.zone = TimeZone::get(ZONES[(luck() * 10.0) as usize]).unwrap();
                        agent.offset.0 = i64::MIN;
                    }
                    _ => agent.restart(),
                }
            }
            // What lies open at the end is told by the next start, days later and on the morning of a day that isn't counted.
            agent.zone = TimeZone::UTC;
            agent.offset.0 = i64::MIN;
            agent.asleep_until((end.div_euclid(DAY_MS) + 5) * DAY_MS);
            let last = agent.local().0;
            agent.awake_until(agent.ms + MINUTE_MS);
            agent.days.remove(&last);
            let (days, taken) = (agent.days.len() as u64, agent.taken.len() as u64);
            let missed: u64 = agent.untaken.iter().map(|(_, count)| count).sum();
            assert!(agent.days().values().all(|taken| *taken <= 2), "{zone}: {:?}", agent.days());
            assert!(agent.taken.iter().all(|(_, second)| (8 * 3_600..17 * 3_600).contains(second)), "{zone}");
            // A day on which the computer was never on is no day of the agent's; every other has both of them, or says why not.
            assert_eq!(taken + missed, 2 * days, "{zone}: {taken} taken and {missed} not");
            assert!(taken > missed, "{zone}: {taken} taken and {missed} not");
            assert!(agent.times.book().days.len() <= DAYS_MAX);
            reasons.extend(agent.untaken.iter().map(|(reason, _)| reason.name()));
            days_seen += days;
        }
        assert!(days_seen > 1_900, "{days_seen}");
        assert_eq!(reasons, BTreeSet::from(["asleep", "outside_hours"]));
    }

    #[test]
    fn a_late_start_draws_the_whole_number_over_what_is_left() {
        for seed in 0..50 {
            let mut agent = Agent { hours: office(), ..Agent::new("Etc/UTC", seed) };
            agent.ms = BEGIN_MS + 16 * HOUR_MS + 30 * MINUTE_MS;
            agent.awake_until(BEGIN_MS + 20 * HOUR_MS);
            assert_eq!((agent.taken.len(), &agent.untaken[..]), (2, &[][..]));
            assert!(agent.taken.iter().all(|(_, second)| (16 * 3_600 + 1_800..17 * 3_600).contains(second)));
        }
    }

    #[test]
    fn a_start_after_the_window_says_that_both_were_slept_through() {
        let mut agent = Agent { hours: office(), ..Agent::new("Etc/UTC", 1) };
        agent.ms = BEGIN_MS + 18 * HOUR_MS;
        agent.awake_until(BEGIN_MS + 18 * HOUR_MS + MINUTE_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (0, &[(GapReason::Asleep, 2)][..]));
        agent.restart();
        agent.awake_until(BEGIN_MS + 19 * HOUR_MS);
        assert_eq!(agent.untaken.len(), 1, "once");
    }

    #[test]
    fn a_policy_that_comes_after_the_window_misses_nothing() {
        let mut agent = Agent { hours: office(), per_day: 0, ..Agent::new("Etc/UTC", 1) };
        agent.ms = BEGIN_MS + 18 * HOUR_MS;
        agent.awake_until(BEGIN_MS + 18 * HOUR_MS + MINUTE_MS);
        agent.per_day = 2;
        agent.awake_until(BEGIN_MS + 26 * HOUR_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (0, &[][..]));
        agent.awake_until(BEGIN_MS + 44 * HOUR_MS);
        assert_eq!(agent.taken.len(), 2);
    }

    #[test]
    fn a_policy_that_is_switched_off_at_noon_misses_nothing() {
        let mut agent = Agent { hours: office(), per_day: 24, ..Agent::new("Etc/UTC", 3) };
        agent.awake_until(BEGIN_MS + 12 * HOUR_MS);
        let taken = agent.taken.len();
        assert!((1..24).contains(&taken));
        agent.per_day = 0;
        agent.awake_until(BEGIN_MS + 40 * HOUR_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (taken, &[][..]));
    }

    #[test]
    fn sleeping_from_noon_on_is_told_the_next_morning() {
        let (mut taken, mut slept) = (0, 0);
        for seed in 0..40 {
            let mut agent = Agent { hours: office(), ..Agent::new("Etc/UTC", seed) };
            agent.awake_until(BEGIN_MS + 12 * HOUR_MS);
            agent.asleep_until(BEGIN_MS + 31 * HOUR_MS);
            agent.awake_until(BEGIN_MS + 31 * HOUR_MS + MINUTE_MS);
            assert_eq!(agent.taken.len() as u64 + agent.not_taken(GapReason::Asleep), 2);
            taken += agent.taken.len();
            slept += agent.not_taken(GapReason::Asleep);
        }
        assert!(taken > 10 && slept > 10, "{taken} taken, {slept} slept through");
    }

    #[test]
    fn a_flight_over_a_whole_window_says_so() {
        let mut agent = Agent { hours: office(), ..Agent::new("Pacific/Honolulu", 1) };
        // 1 January, 23:00 in Honolulu is 2 January, 22:45 in Chatham.
        agent.awake_until(BEGIN_MS + 33 * HOUR_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (4, &[][..]));
        agent.zone = TimeZone::get("Pacific/Chatham").unwrap();
        agent.offset.0 = i64::MIN;
        agent.awake_until(BEGIN_MS + 34 * HOUR_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (4, &[(GapReason::OutsideHours, 2)][..]));
    }

    #[test]
    fn a_moment_is_not_carried_into_another_zones_night() {
        let mut agent = Agent { hours: office(), per_day: 1, ..Agent::new("Etc/UTC", 4) };
        while agent.times.due_ms.is_none() {
            assert!(!agent.look());
            agent.ms += SECOND_MS;
        }
        let due_ms = agent.times.due_ms.unwrap();
        assert!(due_ms > agent.ms, "it waits for its second");
        // Twelve hours earlier or later it is night.
        agent.zone = TimeZone::fixed(jiff::tz::offset(12));
        agent.offset.0 = i64::MIN;
        agent.ms = due_ms;
        assert!(!agent.look());
        agent.awake_until(BEGIN_MS + 72 * HOUR_MS);
        assert!(agent.taken.iter().all(|(_, second)| (8 * 3_600..17 * 3_600).contains(second)), "{:?}", agent.taken);
    }

    #[test]
    fn a_window_with_too_few_minutes_says_so() {
        let mut agent = Agent { hours: WorkingHours::parse("mon-sun", "21:58", "23:00").unwrap(), per_day: 5, ..Agent::new("Etc/UTC", 1) };
        agent.awake_until(BEGIN_MS + 30 * HOUR_MS);
        assert_eq!((agent.taken.len(), agent.not_taken(GapReason::OutsideHours)), (2, 3), "22:00 is the end, whatever the hours are");
        let night = WorkingHours::parse("mon-sun", "23:00", "05:00").unwrap();
        let mut agent = Agent { hours: night, ..Agent::new("Etc/UTC", 1) };
        agent.awake_until(BEGIN_MS + 60 * HOUR_MS);
        assert_eq!((agent.taken.len(), agent.untaken.len()), (0, 0), "a day without a window asks for nothing");
    }

    #[test]
    fn a_moment_that_cannot_be_used_counts_as_had_and_is_told() {
        let mut agent = Agent { hours: office(), ..Agent::new("Etc/UTC", 5) };
        let mut passed = 0;
        while agent.ms < BEGIN_MS + 24 * HOUR_MS {
            if agent.look() {
                agent.times.passed(GapReason::Paused);
                passed += 1;
            }
            agent.ms += SECOND_MS;
        }
        assert_eq!((passed, agent.times.tell()), (2, vec![(GapReason::Paused, 2)]));
        assert_eq!(agent.times.tell(), []);
    }

    #[test]
    fn a_log_that_a_kill_broke_off_is_not_taken_again_and_counts_as_failed() {
        let mut agent = Agent { hours: office(), per_day: 1, ..Agent::new("Etc/UTC", 5) };
        while !agent.look() {
            agent.ms += SECOND_MS;
        }
        agent.times.begun();
        agent.restart();
        agent.awake_until(BEGIN_MS + 40 * HOUR_MS);
        let days = agent.days();
        assert_eq!(agent.untaken, [(GapReason::Failed, 1)]);
        assert!(!days.contains_key(&(BEGIN_MS / DAY_MS)), "{days:?}");
    }

    #[test]
    fn a_moment_that_has_to_wait_stays_due_for_a_minute() {
        let mut agent = Agent { hours: office(), per_day: 1, ..Agent::new("Etc/UTC", 9) };
        while !agent.look() {
            agent.ms += SECOND_MS;
        }
        for _ in 0..50 {
            agent.ms += SECOND_MS;
            assert!(agent.look());
        }
        agent.ms += 30 * SECOND_MS;
        assert!(!agent.look(), "it goes back among the minutes to come");
        agent.awake_until(BEGIN_MS + 24 * HOUR_MS);
        assert_eq!((agent.taken.len(), &agent.untaken[..]), (1, &[][..]));
    }

    // --- nobody can know ---

    /// Minutes of the window (08:00-17:00) at which logs were taken.
    fn minutes(agent: &Agent) -> Vec<f64> {
        agent.taken.iter().map(|(_, second)| (*second as f64 / 60.0) - 480.0).collect()
    }

    fn correlation(pairs: &[(f64, f64)]) -> f64 {
        let n = pairs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
        let (a, b) = (mean(|pair| pair.0), mean(|pair| pair.1));
        let sum = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
        let (ab, aa, bb) =
            (sum(&|pair| (pair.0 - a) * (pair.1 - b)), sum(&|pair| (pair.0 - a) * (pair.0 - a)), sum(&|pair| (pair.1 - b) * (pair.1 - b)));
        ab / (aa * bb).sqrt()
    }

    /// `days` days of one log a day.
    fn one_a_day(seed: u64, days: i64) -> Agent {
        let mut agent = Agent { hours: office(), per_day: 1, ..Agent::new("Etc/UTC", seed) };
        agent.awake_until(BEGIN_MS + days * DAY_MS);
        assert_eq!(agent.taken.len() as i64, days);
        agent
    }

    #[test]
    fn every_part_of_the_window_is_as_likely_as_any_other() {
        let mut by_hour = [0u32; 9];
        let mut by_second = [0u32; 6];
        for seed in 0..5 {
            let agent = one_a_day(seed, 360);
            minutes(&agent).iter().for_each(|minute| by_hour[(*minute / 60.0) as usize] += 1);
            agent.taken.iter().for_each(|(_, second)| by_second[(second % 60 / 10) as usize] += 1);
        }
        // 200 an hour are expected; chi-square with 8 degrees of freedom is below 26.1 in 999 of 1,000.
        let chi: f64 = by_hour.iter().map(|count| (f64::from(*count) - 200.0).powi(2) / 200.0).sum();
        assert!(chi < 26.1, "{chi}: {by_hour:?}");
        assert!(by_second.iter().all(|count| (200..400).contains(count)), "{by_second:?}");
    }

    #[test]
    fn two_agents_do_not_share_times_and_yesterday_does_not_tell_today() {
        let days = 1_000;
        let (ours, theirs) = (one_a_day(1, days), one_a_day(2, days));
        let shared = ours.taken.iter().zip(&theirs.taken).filter(|(a, b)| (a.1 - b.1).abs() < 60).count();
        // 1,000 days, 540 minutes: 3.7 are expected within a minute of each other.
        assert!(shared < 15, "{shared}");
        let (a, b) = (minutes(&ours), minutes(&theirs));
        let between: Vec<(f64, f64)> = a.iter().copied().zip(b).collect();
        let yesterday: Vec<(f64, f64)> = a.windows(2).map(|pair| (pair[0], pair[1])).collect();
        // Of 1,000 independent pairs it lies within 0.1 in 998 of 1,000.
        for (what, pairs) in [("two agents", between), ("two days", yesterday)] {
            let found = correlation(&pairs);
            assert!(found.abs() < 0.1, "{what}: {found}");
        }
    }

    #[test]
    fn what_lies_on_the_disk_says_nothing_of_what_is_to_come() {
        let book = |seed| {
            let mut agent = Agent { hours: office(), ..Agent::new("Etc/UTC", seed) };
            agent.awake_until(BEGIN_MS + 8 * HOUR_MS + MINUTE_MS);
            (agent.taken.len(), serde_json::to_string(agent.times.book()).unwrap())
        };
        let books: BTreeSet<(usize, String)> = (0..50).map(book).filter(|(taken, _)| *taken == 0).collect();
        assert_eq!(books.len(), 1, "50 different days to come, one text: {books:?}");
    }

    #[test]
    fn an_interval_counts_observed_time_only() {
        let mut interval = Interval::default();
        let due: Vec<bool> = (0..14).map(|_| interval.look(1_000, 15)).collect();
        assert!(due.iter().all(|due| !due));
        assert!(!interval.look(0, 15), "nothing was observed");
        assert!(interval.look(1_000, 15) && interval.look(1_000, 15), "it stays due");
        interval.taken();
        assert!(!interval.look(1_000, 15));
        assert!(!interval.look(60_000, 0), "switched off");
        assert!(!interval.look(1_000, 15), "and it begins anew");
    }
}
