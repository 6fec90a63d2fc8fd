//! Quiet: counts gathered into minutes. A minute without input makes no record.

use muster_mesh::{
    clock::Reading,
    record::{Activity, Kind, Record},
};

use super::sense::Counts;

const MINUTE_MS: u64 = 60_000;

/// The minute under way.
#[derive(Debug, Default)]
pub struct Minutes {
    open: Option<Minute>,
    /// What the counter said last, and when.
    counts: Option<Counts>,
    last: Option<Reading>,
    /// Boot clock of the last input known.
    input_ms: Option<u64>,
}

#[derive(Debug)]
struct Minute {
    begin: Reading,
    sum: Counts,
    active_ms: u64,
    idle_ms: u64,
}

impl Minutes {
    /// Takes what the senses say now. The first counts after a rest only say where counting begins.
    pub fn tick(&mut self, now: Reading, counts: Option<Counts>, idle_ms: Option<u64>, idle_after_ms: u64) -> Option<Record> {
        let input_ms = idle_ms.map(|idle_ms| now.boot_ms.saturating_sub(idle_ms));
        let more = self.counts.zip(counts).map(|(before, after)| after.since(before)).unwrap_or_default();
        if let (Some(last), Some(open)) = (self.last, &mut self.open) {
            let span = (last.boot_ms, now.boot_ms);
            let active_ms = active_ms(span, [self.input_ms, input_ms], idle_after_ms);
            open.active_ms += active_ms;
            open.idle_ms += span.1.saturating_sub(span.0) - active_ms;
        }
        self.counts = counts;
        self.input_ms = input_ms;
        self.last = Some(now);
        let open = self.open.get_or_insert_with(|| Minute::new(now));
        open.sum.add(more);
        if open.ends_by(now) { self.open.replace(Minute::new(now)).and_then(|minute| minute.record(now)) } else { None }
    }

    /// The minute up to the last tick, before what holds now changes; what was pressed since then counts in the next.
    pub fn turn(&mut self) -> Option<Record> {
        let counts = self.counts;
        let record = self.cut();
        self.counts = counts;
        record
    }

    /// The minute up to the last tick. Nothing is known of what comes until the next.
    pub fn cut(&mut self) -> Option<Record> {
        let Minutes { open, last, .. } = std::mem::take(self);
        open?.record(last?)
    }
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        Counts {
            keys: self.keys.saturating_sub(before.keys),
            clicks: self.clicks.saturating_sub(before.clicks),
            wheel: self.wheel.saturating_sub(before.wheel),
            pointer_moved: self.pointer_moved,
        }
    }

    fn add(&mut self, more: Counts) {
        self.keys += more.keys;
        self.clicks += more.clicks;
        self.wheel += more.wheel;
        self.pointer_moved |= more.pointer_moved;
    }
}

impl Minute {
    fn new(begin: Reading) -> Minute {
        Minute { begin, sum: Counts::default(), active_ms: 0, idle_ms: 0 }
    }

    /// By the wall's minutes; by length too, so that a wall clock set back doesn't stretch it.
    fn ends_by(&self, now: Reading) -> bool {
        let minute = |reading: Reading| reading.wall_ms.div_euclid(MINUTE_MS as i64);
        minute(now) != minute(self.begin) || now.boot_ms.saturating_sub(self.begin.boot_ms) >= MINUTE_MS
    }

    fn record(&self, end: Reading) -> Option<Record> {
        let Counts { keys, clicks, wheel, pointer_moved } = self.sum;
        let ms = end.boot_ms.saturating_sub(self.begin.boot_ms);
        if ms == 0 || (keys == 0 && clicks == 0 && wheel == 0 && !pointer_moved) {
            return None;
        }
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let activity = Activity {
            ms: number(ms),
            keys: number(keys),
            clicks: number(clicks),
            wheel: number(wheel),
            pointer_moved,
            active_ms: number(self.active_ms),
            idle_ms: number(self.idle_ms),
        };
        Some(Record { at: self.begin.wall_ms, kind: Kind::Activity(activity) })
    }
}

/// How much of a span lies within `idle_after_ms` of an input: of the last one before it, and of the last one by its end.
///
/// Where nobody can tell when the last input was, all of it: "cannot see" is never "idle".
fn active_ms(span: (u64, u64), inputs: [Option<u64>; 2], idle_after_ms: u64) -> u64 {
    let [before, Some(by_end)] = inputs else { return span.1.saturating_sub(span.0) };
    let mut active_ms = 0;
    let mut from = span.0;
    for input in [before.unwrap_or(by_end), by_end] {
        let (begin, end) = (input.max(from), (input + idle_after_ms).min(span.1));
        if begin < end {
            active_ms += end - begin;
            from = end;
        }
    }
    active_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONDAY: i64 = 1_795_392_000_000;

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: MONDAY + ms as i64, boot_ms: 5_000_000 + ms }
    }

    fn keys(keys: u64) -> Option<Counts> {
        Some(Counts { keys, ..Counts::default() })
    }

    fn activity(record: Record) -> (i64, Activity) {
        match record.kind {
            Kind::Activity(activity) => (record.at - MONDAY, activity),
            other => panic!("{other:?}"),
        }
    }

    fn play(minutes: &mut Minutes, ticks: impl IntoIterator<Item = (u64, Option<Counts>, Option<u64>)>) -> Vec<(i64, Activity)> {
        ticks.into_iter().filter_map(|(ms, counts, idle_ms)| minutes.tick(at(ms), counts, idle_ms, 60_000)).map(activity).collect()
    }

    #[test]
    fn counts_fall_into_minutes_and_their_sum_is_what_the_counter_rose_by() {
        let mut minutes = Minutes::default();
        let mut made = play(&mut minutes, (0..150).map(|s| (s * 1_000 + 300, keys(1_000 + s), Some(100))));
        made.extend(minutes.cut().map(activity));
        assert_eq!(
            made.iter().map(|(at, activity)| (*at, activity.ms, activity.keys)).collect::<Vec<_>>(),
            [(300, 60_000, 60), (60_300, 60_000, 60), (120_300, 29_000, 29)]
        );
        assert!(made.iter().all(|(_, activity)| activity.active_ms == activity.ms && activity.idle_ms == 0));
    }

    #[test]
    fn a_minute_without_input_makes_no_record() {
        let made = play(&mut Minutes::default(), (0..200).map(|s| (s * 1_000, keys(7), Some(s * 1_000))));
        assert_eq!(made, []);
        let moved = Some(Counts { pointer_moved: true, ..Counts::default() });
        let made = play(&mut Minutes::default(), (0..=60).map(|s| (s * 1_000, moved, Some(0))));
        assert!(made[0].1.pointer_moved);
    }

    #[test]
    fn idle_begins_and_ends_where_the_last_input_says() {
        // The last input was 90 s before; at 30.5 s somebody comes back.
        let ticks = (0..=60).map(|s| {
            let ms = s * 1_000;
            if ms < 30_500 { (ms, keys(0), Some(90_000 + ms)) } else { (ms, keys(1), Some(ms - 30_500)) }
        });
        let made = play(&mut Minutes::default(), ticks);
        assert_eq!((made[0].1.idle_ms, made[0].1.active_ms, made[0].1.ms), (30_500, 29_500, 60_000));
    }

    #[test]
    fn idle_that_cannot_be_seen_is_not_idle() {
        let made = play(&mut Minutes::default(), (0..=60).map(|s| (s * 1_000, keys(s), None)));
        assert_eq!((made[0].1.idle_ms, made[0].1.active_ms), (0, 60_000));
    }

    #[test]
    fn what_happens_while_nothing_is_asked_is_not_counted() {
        let mut minutes = Minutes::default();
        play(&mut minutes, [(0, keys(10), Some(0)), (1_000, keys(15), Some(0))]);
        let cut = activity(minutes.cut().unwrap()).1;
        assert_eq!((cut.keys, cut.ms), (5, 1_000));
        play(&mut minutes, [(20_000, keys(900), Some(0)), (21_000, keys(903), Some(0))]);
        assert_eq!(activity(minutes.cut().unwrap()).1.keys, 3);
    }

    #[test]
    fn a_turn_loses_no_key() {
        let mut minutes = Minutes::default();
        play(&mut minutes, [(0, keys(10), Some(0)), (1_000, keys(15), Some(0))]);
        let before = activity(minutes.turn().unwrap()).1.keys;
        play(&mut minutes, [(2_000, keys(18), Some(0)), (3_000, keys(20), Some(0))]);
        assert_eq!(before + activity(minutes.cut().unwrap()).1.keys, 10);
    }

    #[test]
    fn a_wall_clock_that_is_set_back_does_not_stretch_a_minute() {
        let mut minutes = Minutes::default();
        let mut made = Vec::new();
        for s in 0..=120 {
            let mut now = at(s * 1_000);
            now.wall_ms = MONDAY + 10_000;
            made.extend(minutes.tick(now, keys(s), Some(0), 60_000).map(activity));
        }
        assert_eq!(made.iter().map(|(_, activity)| activity.ms).collect::<Vec<_>>(), [60_000, 60_000]);
    }
}
