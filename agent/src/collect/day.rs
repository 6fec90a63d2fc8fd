//! Quiet: what becomes a record, and when. It sees only values: the clocks, the policy, and what the senses said.
//!
//! ```text
//! waiting for notice ─ outside hours ─ paused ─ idle | active          the first that holds is the state
//! └────────── nothing is asked of the senses ────────┘
//! ```

use std::sync::Arc;

use jiff::{Timestamp, civil::DateTime, tz::Offset};
use muster_mesh::{
    clock::{Reading, Zone},
    ids::{BootId, Version},
    notice::{self, Acknowledged, Notice},
    policy::{Policy, Switch},
    record::{Heartbeat, Kind, Record, Session, State},
};

use super::{
    focus::Spans,
    minutes::Minutes,
    pause::{Asked, Mark, Pausing},
    sense::{Abilities, Sample},
};
use crate::{redact, spool::BatchContext};

/// What this build can observe at all.
pub const SERVES: [Switch; 4] = [Switch::Presence, Switch::Counts, Switch::Applications, Switch::Titles];

/// What every agent of this build can't see.
const LACKS: [&str; 2] = ["battery", "lock"];
const NOT_BUILT: &str = "this version can't observe it";

/// Ticks come every second; a longer silence was a sleep, of the computer or of this program.
const SLEEP_MS: u64 = 5_000;
/// Ticks don't come to the millisecond: a heartbeat is due at the nearest one.
const HALF_TICK_MS: u64 = 500;

/// What the hub says holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyInForce {
    pub version: Version,
    pub policy: Policy,
    /// The device's erasure version, from the hub's acks.
    pub erasure: Version,
}

/// The collector's decisions.
pub struct Day {
    boot: BootId,
    /// The agent's own file says so; it takes the policy's word too.
    own_test_mode: bool,
    in_force: Option<PolicyInForce>,
    acknowledged: Option<Acknowledged>,
    /// What of the policy may be observed. None: nothing.
    effective: Option<Arc<Policy>>,
    pausing: Pausing,
    state: State,
    since_ms: i64,
    last: Option<Reading>,
    last_beat_ms: Option<u64>,
    started: bool,
    minutes: Minutes,
    spans: Spans,
    abilities: Abilities,
}

enum Gate {
    Waiting,
    Outside,
    Paused,
    Open(Arc<Policy>),
}

impl Day {
    pub fn new(boot: BootId, own_test_mode: bool, acknowledged: Option<Acknowledged>, pausing: Pausing) -> Day {
        Day {
            boot,
            own_test_mode,
            in_force: None,
            acknowledged,
            effective: None,
            pausing,
            state: State::WaitingForNotice,
            since_ms: 0,
            last: None,
            last_beat_ms: None,
            started: false,
            minutes: Minutes::default(),
            spans: Spans::default(),
            abilities: Abilities::default(),
        }
    }

    // --- a second ---

    /// What may be asked of the senses now. None: nothing at all.
    pub fn may_observe(&self, now: Reading, zone: &Zone) -> Option<Arc<Policy>> {
        match self.gate(now, zone) {
            Gate::Open(policy) => Some(policy),
            Gate::Waiting | Gate::Outside | Gate::Paused => None,
        }
    }

    /// A second went by. What `sample` holds although nothing may be observed is not looked at.
    pub fn tick(&mut self, now: Reading, zone: &Zone, sample: Sample) -> Vec<Record> {
        let mut records = Vec::new();
        let slept_ms = self.slept_ms(now);
        if slept_ms.is_some() && is_observed(self.state) {
            records.extend(self.cut());
            records.extend(self.last.map(|last| session(last, Session::Suspend)));
        }
        let gate = self.gate(now, zone);
        self.enter(self.state_at(&gate, &sample), now, slept_ms, &mut records);
        if let Gate::Open(policy) = &gate {
            self.observe(policy, now, sample, &mut records);
        }
        if !self.pausing.is_on(now, self.boot) {
            self.pausing.asked = None;
        }
        self.last = Some(now);
        records
    }

    fn slept_ms(&self, now: Reading) -> Option<u64> {
        let gap_ms = now.boot_ms.saturating_sub(self.last?.boot_ms);
        (gap_ms > SLEEP_MS).then_some(gap_ms)
    }

    fn gate(&self, now: Reading, zone: &Zone) -> Gate {
        let Some(policy) = &self.effective else { return Gate::Waiting };
        if !policy.hours.contains(local(now, zone)) {
            return Gate::Outside;
        }
        if self.pausing.is_on(now, self.boot) { Gate::Paused } else { Gate::Open(policy.clone()) }
    }

    fn state_at(&self, gate: &Gate, sample: &Sample) -> State {
        match gate {
            Gate::Waiting => State::WaitingForNotice,
            Gate::Outside => State::OutsideHours,
            Gate::Paused => State::Paused,
            Gate::Open(policy) => {
                let idle = sample.idle_ms.is_some_and(|idle_ms| idle_ms >= u64::from(policy.idle_after_s) * 1_000);
                if idle { State::Idle } else { State::Active }
            }
        }
    }

    fn enter(&mut self, to: State, now: Reading, slept_ms: Option<u64>, records: &mut Vec<Record>) {
        let from = self.state;
        if from != to {
            self.state = to;
            self.since_ms = now.wall_ms;
        }
        match to {
            State::Active | State::Idle => self.enter_observed(from, now, slept_ms, records),
            State::Paused => self.enter_pause(from, now, records),
            State::OutsideHours => self.leave_hours(from, now, slept_ms, records),
            State::WaitingForNotice | State::Call | State::Locked | State::Asleep | State::BatteryLow | State::Leaving => {
                records.extend(self.cut());
            }
        }
    }

    fn enter_observed(&mut self, from: State, now: Reading, slept_ms: Option<u64>, records: &mut Vec<Record>) {
        if !self.started {
            self.started = true;
            records.push(session(now, Session::Start));
        }
        records.extend(self.unpause(now));
        let woke = slept_ms.filter(|_| is_observed(from));
        records.extend(woke.map(|slept_ms| session(now, Session::Resume { slept_ms })));
        if from != self.state || woke.is_some() {
            records.push(self.beat(now));
        }
    }

    fn enter_pause(&mut self, from: State, now: Reading, records: &mut Vec<Record>) {
        if from == State::Paused {
            return;
        }
        records.extend(self.cut());
        // After a restart the pause under way was told before it.
        if self.pausing.told.is_none() {
            self.pausing.told = Some(Mark::new(now, self.boot));
            records.extend([session(now, Session::Pause), self.beat(now)]);
        }
    }

    /// One heartbeat says that the hours are over. Whoever wakes the computer after them is not told of.
    fn leave_hours(&mut self, from: State, now: Reading, slept_ms: Option<u64>, records: &mut Vec<Record>) {
        records.extend(self.cut());
        if from == State::Paused {
            records.extend(self.unpause(now));
        }
        if slept_ms.is_none() && (is_observed(from) || from == State::Paused) {
            records.push(self.beat(now));
        }
    }

    fn unpause(&mut self, now: Reading) -> Option<Record> {
        let told = self.pausing.told.take()?;
        Some(session(now, Session::Unpause { paused_ms: told.elapsed_ms(now, self.boot) }))
    }

    fn observe(&mut self, policy: &Policy, now: Reading, sample: Sample, records: &mut Vec<Record>) {
        if policy.has(Switch::Counts) {
            records.extend(self.minutes.tick(now, sample.counts, sample.idle_ms, u64::from(policy.idle_after_s) * 1_000));
        } else {
            self.minutes = Minutes::default();
        }
        if policy.has(Switch::Applications) {
            records.extend(self.spans.tick(now, sample.front.map(|front| redact::front(policy, front))));
        }
        let due_ms = u64::from(policy.heartbeat_s) * 1_000;
        if self.last_beat_ms.is_none_or(|last_ms| now.boot_ms.saturating_sub(last_ms) + HALF_TICK_MS >= due_ms) {
            records.push(self.beat(now));
        }
    }

    fn beat(&mut self, now: Reading) -> Record {
        self.last_beat_ms = Some(now.boot_ms);
        let heartbeat = Heartbeat { state: self.state, battery: None, version: env!("CARGO_PKG_VERSION").into() };
        Record { at: now.wall_ms, kind: Kind::Heartbeat(heartbeat) }
    }

    /// What is under way becomes records, before what holds now changes: a policy, a notice, the wall clock.
    pub fn turn(&mut self) -> Vec<Record> {
        self.minutes.turn().into_iter().chain(self.spans.cut()).collect()
    }

    /// What is under way becomes records, and what comes until the next look is never counted.
    fn cut(&mut self) -> Vec<Record> {
        self.minutes.cut().into_iter().chain(self.spans.cut()).collect()
    }

    /// The program stops.
    pub fn stop(&mut self, now: Reading) -> Vec<Record> {
        let mut records = self.cut();
        if is_observed(self.state) {
            self.state = State::Leaving;
            self.since_ms = now.wall_ms;
            records.extend([self.beat(now), session(now, Session::Stop)]);
        }
        records
    }

    // --- what holds ---

    /// A policy came. The caller has put away what [`turn`](Self::turn) gave under the old one.
    pub fn set_in_force(&mut self, in_force: PolicyInForce, now: Reading) -> Vec<Record> {
        self.in_force = Some(in_force);
        self.narrow(now)
    }

    /// The person has read the notice. The caller has put away what [`turn`](Self::turn) gave under the old one.
    pub fn acknowledge(&mut self, acknowledged: Acknowledged, now: Reading) -> Vec<Record> {
        let Acknowledged { sha256, language, switches, .. } = acknowledged.clone();
        self.acknowledged = Some(acknowledged);
        let mut records = vec![session(now, Session::NoticeAcknowledged { sha256, language, switches })];
        records.extend(self.narrow(now));
        records
    }

    fn narrow(&mut self, now: Reading) -> Vec<Record> {
        let Some(in_force) = &self.in_force else { return Vec::new() };
        let asked = &in_force.policy;
        let allowed = if self.is_test_mode() { Some(asked.clone()) } else { notice::allowed(asked, self.acknowledged.as_ref()) };
        self.effective = allowed.map(|policy| Arc::new(policy.only(&SERVES)));
        let mut records = Vec::new();
        for switch in Switch::ALL {
            let wanted = asked.has(switch);
            let unread = self.effective.as_ref().is_some_and(|policy| !policy.has(switch));
            let (able, why) = match (SERVES.contains(&switch), unread) {
                (false, _) => (false, NOT_BUILT),
                (true, true) => (false, "the notice that names it hasn't been read"),
                (true, false) => (true, ""),
            };
            if wanted {
                records.extend(self.abilities.tell_lack(now.wall_ms, switch.name(), able, why));
            }
        }
        records
    }

    /// What this build can't see on any computer.
    pub fn lacks(&mut self, now: Reading) -> Vec<Record> {
        LACKS.into_iter().filter_map(|what| self.abilities.tell(now.wall_ms, what, false, NOT_BUILT)).collect()
    }

    /// Whether a sense works. A record, if this is news.
    pub fn sensed(&mut self, now: Reading, sense: &'static str, trouble: Option<&str>) -> Option<Record> {
        self.abilities.tell(now.wall_ms, sense, trouble.is_none(), trouble.unwrap_or(""))
    }

    // --- pauses ---

    /// None as length: until the person resumes. It begins with the next tick.
    pub fn pause(&mut self, now: Reading, for_ms: Option<u64>) {
        self.pausing.asked = Some(Asked { since: Mark::new(now, self.boot), for_ms });
    }

    pub fn resume(&mut self) {
        self.pausing.asked = None;
    }

    pub fn pausing(&self) -> Pausing {
        self.pausing
    }

    // --- to be asked ---

    pub fn state(&self) -> State {
        self.state
    }

    /// Milliseconds UTC; 0: nothing was decided yet.
    pub fn since_ms(&self) -> i64 {
        self.since_ms
    }

    pub fn in_force(&self) -> Option<&PolicyInForce> {
        self.in_force.as_ref()
    }

    /// What of the policy is observed.
    pub fn effective(&self) -> Option<&Policy> {
        self.effective.as_deref()
    }

    pub fn acknowledged(&self) -> Option<&Acknowledged> {
        self.acknowledged.as_ref()
    }

    /// Both the agent's own file and the policy say so.
    pub fn is_test_mode(&self) -> bool {
        self.own_test_mode && self.in_force.as_ref().is_some_and(|in_force| in_force.policy.test_mode)
    }

    /// The text for the policy in force.
    pub fn notice(&self) -> Option<Notice> {
        self.in_force.as_ref().map(|in_force| Notice::of(&in_force.policy, &SERVES))
    }

    /// Whether the person is to be asked to read it.
    pub fn asks(&self) -> bool {
        self.in_force.as_ref().is_some_and(|in_force| notice::asks(&in_force.policy, self.acknowledged.as_ref(), &SERVES))
    }

    /// What records made now are made under.
    pub fn context(&self, zone: &Zone) -> BatchContext {
        BatchContext {
            policy: self.in_force.as_ref().map(|in_force| in_force.version).unwrap_or_default(),
            notice: self.acknowledged.as_ref().map(|acknowledged| acknowledged.notice).unwrap_or_default(),
            erasure: self.in_force.as_ref().map(|in_force| in_force.erasure).unwrap_or_default(),
            test_mode: self.is_test_mode(),
            boot: self.boot,
            zone: zone.clone(),
        }
    }
}

/// The person is there to be seen.
fn is_observed(state: State) -> bool {
    matches!(state, State::Active | State::Idle)
}

fn session(at: Reading, session: Session) -> Record {
    Record { at: at.wall_ms, kind: Kind::Session(session) }
}

/// The civil time that a person's clock shows.
fn local(now: Reading, zone: &Zone) -> DateTime {
    let offset = Offset::from_seconds(zone.offset_s).unwrap_or(Offset::UTC);
    // Clocks beyond the year 9999 read as 1970, in working hours or not: nothing better can be said of them.
    offset.to_datetime(Timestamp::from_millisecond(now.wall_ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use muster_mesh::{
        policy::WorkingHours,
        record::{Application, Capability},
    };

    use super::*;
    use crate::collect::sense::{Counts, Front, Window, tests::policy};

    /// Monday, 23 November 2026, 08:00 UTC.
    const EIGHT: i64 = 1_795_420_800_000;
    const BOOT: BootId = BootId([7; 16]);
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;

    struct Desk {
        day: Day,
        ms: u64,
        keys: u64,
        front: Front,
        idle_ms: Option<u64>,
        made: Vec<Record>,
    }

    fn utc() -> Zone {
        Zone { name: "Etc/UTC".into(), offset_s: 0 }
    }

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: EIGHT + ms as i64, boot_ms: 9_000_000 + ms }
    }

    fn window(class: &str, title: &str) -> Front {
        Front::Window(Window { class: class.into(), instance: class.into(), title: Some(title.into()) })
    }

    fn in_force(policy: Policy) -> PolicyInForce {
        PolicyInForce { version: Version { epoch: 1, n: 1 }, policy, erasure: Version::default() }
    }

    impl Desk {
        /// Somebody who has read the notice of this policy.
        fn read(policy: Policy) -> Desk {
            let acknowledged = Notice::of(&policy, &SERVES).acknowledge(&policy, 0);
            Desk::new(Some(policy), Some(acknowledged), Pausing::default())
        }

        fn new(policy: Option<Policy>, acknowledged: Option<Acknowledged>, pausing: Pausing) -> Desk {
            let mut day = Day::new(BOOT, false, acknowledged, pausing);
            let made = policy.map(|policy| day.set_in_force(in_force(policy), at(0))).unwrap_or_default();
            Desk { day, ms: 0, keys: 0, front: window("Editor", "letter"), idle_ms: Some(0), made }
        }

        /// Ticks each second until `ms`, with one key press a second.
        fn until(&mut self, ms: u64) -> &mut Desk {
            while self.ms < ms {
                self.ms += SECOND;
                self.keys += 1;
                self.tick();
            }
            self
        }

        fn tick(&mut self) {
            let counts = Counts { keys: self.keys, ..Counts::default() };
            let sample = Sample { front: Some(self.front.clone()), idle_ms: self.idle_ms, counts: Some(counts) };
            let made = self.day.tick(at(self.ms), &utc(), sample);
            self.made.extend(made);
        }

        fn sessions(&self) -> Vec<(i64, Session)> {
            let session = |record: &Record| match &record.kind {
                Kind::Session(session) => Some((record.at - EIGHT, session.clone())),
                _ => None,
            };
            self.made.iter().filter_map(session).collect()
        }

        fn beats(&self) -> Vec<(i64, State)> {
            let beat = |record: &Record| match &record.kind {
                Kind::Heartbeat(heartbeat) => Some((record.at - EIGHT, heartbeat.state)),
                _ => None,
            };
            self.made.iter().filter_map(beat).collect()
        }

        fn keys_made(&self) -> u32 {
            let keys = |record: &Record| if let Kind::Activity(activity) = &record.kind { activity.keys } else { 0 };
            self.made.iter().map(keys).sum()
        }

        fn focus_ms(&self) -> u32 {
            let ms = |record: &Record| if let Kind::Focus(focus) = &record.kind { focus.ms } else { 0 };
            self.made.iter().map(ms).sum()
        }

        fn kinds_since(&self, ms: u64) -> Vec<&'static str> {
            self.made.iter().filter(|record| record.at > EIGHT + ms as i64).map(Record::kind_name).collect()
        }
    }

    fn office() -> Policy {
        Policy { hours: WorkingHours::parse("mon-fri", "08:00", "17:00").unwrap(), ..policy() }
    }

    #[test]
    fn a_start_a_state_and_regular_signs_of_life() {
        let mut desk = Desk::read(policy());
        desk.until(11 * MINUTE);
        assert_eq!(desk.sessions(), [(1_000, Session::Start)]);
        assert_eq!(desk.beats(), [(1_000, State::Active), (301_000, State::Active), (601_000, State::Active)]);
        desk.idle_ms = Some(60_000);
        desk.until(11 * MINUTE + 2 * SECOND);
        assert_eq!(desk.beats().last(), Some(&(661_000, State::Idle)));
        desk.idle_ms = None;
        desk.until(11 * MINUTE + 3 * SECOND);
        assert_eq!(desk.beats().last(), Some(&(663_000, State::Active)), "cannot see is never idle");
        let made = desk.day.stop(at(desk.ms));
        desk.made.extend(made);
        assert_eq!(desk.sessions().last(), Some(&(663_000, Session::Stop)));
        assert_eq!(desk.beats().last(), Some(&(663_000, State::Leaving)));
        assert_eq!(desk.keys_made(), 662, "the first second only says where counting begins");
        assert_eq!(desk.focus_ms(), 662_000);
    }

    #[test]
    fn before_the_notice_only_capabilities_are_made() {
        let mut desk = Desk::new(Some(policy()), None, Pausing::default());
        assert!(desk.day.may_observe(at(0), &utc()).is_none());
        let made = desk.day.lacks(at(0));
        desk.made.extend(made);
        desk.until(10 * MINUTE);
        let made = desk.day.stop(at(desk.ms));
        desk.made.extend(made);
        assert!(!desk.made.is_empty() && desk.made.iter().all(|record| record.kind_name() == "capability"), "{:?}", desk.made);
        assert_eq!(desk.day.state(), State::WaitingForNotice);
    }

    #[test]
    fn reading_the_notice_starts_the_day() {
        let mut desk = Desk::new(Some(policy()), None, Pausing::default());
        desk.until(5 * SECOND);
        let notice = desk.day.notice().unwrap();
        assert!(desk.day.asks());
        let made = desk.day.acknowledge(notice.acknowledge(&policy(), 1), at(desk.ms));
        desk.made.extend(made);
        assert!(!desk.day.asks());
        desk.until(7 * SECOND);
        let names = desk.sessions().iter().map(|(_, session)| session.name()).collect::<Vec<_>>();
        assert_eq!(names, ["notice_acknowledged", "start"]);
        assert_eq!(desk.beats(), [(6_000, State::Active)]);
    }

    #[test]
    fn test_mode_needs_both_files() {
        for (own, hubs, observes) in [(true, true, true), (true, false, false), (false, true, false)] {
            let mut day = Day::new(BOOT, own, None, Pausing::default());
            day.set_in_force(in_force(Policy { test_mode: hubs, ..policy() }), at(0));
            assert_eq!(day.may_observe(at(0), &utc()).is_some(), observes, "own {own}, hub's {hubs}");
            assert_eq!(day.context(&utc()).test_mode, observes);
        }
    }

    #[test]
    fn a_pause_collects_nothing_and_is_only_a_length() {
        let mut desk = Desk::read(policy());
        desk.until(90 * SECOND);
        desk.day.pause(at(desk.ms), None);
        assert!(desk.day.may_observe(at(desk.ms), &utc()).is_none());
        desk.front = window("Secret", "canary");
        desk.tick();
        desk.until(20 * MINUTE);
        assert_eq!(desk.kinds_since(90 * SECOND), Vec::<&str>::new());
        assert_eq!(desk.sessions().last(), Some(&(90_000, Session::Pause)));
        assert_eq!(desk.beats().last(), Some(&(90_000, State::Paused)));
        desk.day.resume();
        desk.front = window("Editor", "letter");
        desk.tick();
        desk.until(21 * MINUTE);
        let made = desk.day.stop(at(desk.ms));
        desk.made.extend(made);
        assert!(desk.sessions().contains(&(20 * 60_000, Session::Unpause { paused_ms: (20 * MINUTE) - 90 * SECOND })));
        assert_eq!(desk.keys_made(), 89 + 60, "no key of the pause");
        assert_eq!(desk.focus_ms(), 89_000 + 60_000);
        assert!(!format!("{:?}", desk.made).contains("canary"));
        assert!(!format!("{:?}", desk.made).contains("Secret"));
    }

    #[test]
    fn a_pause_with_a_length_ends_by_itself() {
        let mut desk = Desk::read(policy());
        desk.until(10 * SECOND);
        desk.day.pause(at(desk.ms), Some(30 * SECOND));
        desk.until(60 * SECOND);
        assert_eq!(desk.sessions()[1..], [(11_000, Session::Pause), (40_000, Session::Unpause { paused_ms: 29_000 })]);
        assert_eq!(desk.day.pausing(), Pausing::default());
    }

    #[test]
    fn a_pause_outlives_the_program_and_is_told_once() {
        let mut desk = Desk::read(policy());
        desk.until(10 * SECOND);
        desk.day.pause(at(desk.ms), None);
        desk.tick();
        let kept = desk.day.pausing();
        assert_eq!(desk.day.stop(at(desk.ms)), [], "stopping while paused is the person's own");

        let acknowledged = Notice::of(&policy(), &SERVES).acknowledge(&policy(), 0);
        let mut again = Desk::new(Some(policy()), Some(acknowledged), kept);
        again.ms = MINUTE;
        again.until(2 * MINUTE);
        assert_eq!(again.made, []);
        again.day.resume();
        again.until(2 * MINUTE + SECOND);
        assert_eq!(again.sessions(), [(121_000, Session::Start), (121_000, Session::Unpause { paused_ms: 111_000 })]);
    }

    #[test]
    fn outside_working_hours_nothing_is_observed_and_one_heartbeat_says_so() {
        let mut desk = Desk::read(office());
        desk.ms = 9 * HOUR - 30 * SECOND;
        desk.until(9 * HOUR - SECOND);
        assert_eq!(desk.day.state(), State::Active);
        desk.front = window("Private life", "canary");
        desk.until(10 * HOUR);
        assert_eq!(desk.beats().last(), Some(&(9 * 3_600_000, State::OutsideHours)));
        assert_eq!(desk.kinds_since(9 * HOUR), Vec::<&str>::new());
        desk.day.pause(at(desk.ms), Some(MINUTE));
        desk.until(11 * HOUR);
        let made = desk.day.stop(at(desk.ms));
        assert_eq!((desk.kinds_since(9 * HOUR), made), (Vec::new(), Vec::new()), "neither a pause nor a stop");
        assert!(!format!("{:?}", desk.made).contains("canary"));
    }

    #[test]
    fn hours_are_local() {
        let desk = Desk::read(office());
        let oslo = Zone { name: "Europe/Oslo".into(), offset_s: 3_600 };
        assert!(desk.day.may_observe(at(8 * HOUR + 30 * MINUTE), &utc()).is_some());
        assert!(desk.day.may_observe(at(8 * HOUR + 30 * MINUTE), &oslo).is_none());
    }

    #[test]
    fn a_pause_over_the_end_of_hours_is_two_pauses() {
        let mut desk = Desk::read(office());
        desk.ms = 9 * HOUR - MINUTE;
        desk.until(9 * HOUR - 50 * SECOND);
        desk.day.pause(at(desk.ms), None);
        desk.until(9 * HOUR + MINUTE);
        assert_eq!(desk.sessions().last(), Some(&(9 * 3_600_000, Session::Unpause { paused_ms: 49_000 })));
        let told = desk.sessions().len();
        // It is still on the next morning; the sleep between is nobody's business.
        desk.ms = 24 * HOUR - SECOND;
        desk.until(24 * HOUR + MINUTE);
        assert_eq!(desk.sessions()[told..], [(24 * 3_600_000, Session::Pause)]);
        assert_eq!(desk.beats().last(), Some(&(24 * 3_600_000, State::Paused)));
    }

    #[test]
    fn three_hours_of_sleep_are_neither_idle_nor_work() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        desk.ms += 3 * HOUR;
        desk.tick();
        desk.until(desk.ms + 2 * MINUTE);
        let made = desk.day.stop(at(desk.ms));
        desk.made.extend(made);
        let woke = 60_000 + 3 * 3_600_000;
        assert_eq!(desk.sessions()[1..3], [(60_000, Session::Suspend), (woke, Session::Resume { slept_ms: 3 * HOUR })]);
        assert!(desk.beats().contains(&(woke, State::Active)));
        let awake = 59_000 + 120_000;
        assert_eq!(desk.focus_ms(), awake);
        let worked: u32 = desk
            .made
            .iter()
            .map(|record| if let Kind::Activity(activity) = &record.kind { activity.active_ms + activity.idle_ms } else { 0 })
            .sum();
        assert_eq!(worked, awake);
    }

    #[test]
    fn waking_after_hours_is_not_told() {
        let mut desk = Desk::read(office());
        desk.ms = 9 * HOUR - MINUTE;
        desk.until(9 * HOUR - 30 * SECOND);
        desk.ms += 3 * HOUR;
        desk.tick();
        desk.until(desk.ms + MINUTE);
        assert_eq!(desk.sessions().last().unwrap().1, Session::Suspend);
        assert_eq!(desk.kinds_since(9 * HOUR), Vec::<&str>::new());
    }

    #[test]
    fn a_wider_policy_waits_for_its_notice() {
        let narrow = Policy { titles: false, ..policy() };
        let mut desk = Desk::read(narrow);
        desk.until(5 * SECOND);
        let cut = desk.day.turn();
        desk.made.extend(cut);
        let made = desk.day.set_in_force(in_force(policy()), at(desk.ms));
        assert!(
            matches!(&made[..], [Record { kind: Kind::Capability(Capability { what, able: false, .. }), .. }] if what == "titles"),
            "{made:?}"
        );
        desk.until(10 * SECOND);
        assert!(desk.day.asks() && !desk.day.effective().unwrap().titles);
        assert!(!format!("{:?}", desk.made).contains("letter"));

        let notice = desk.day.notice().unwrap();
        let cut = desk.day.turn();
        desk.made.extend(cut);
        let made = desk.day.acknowledge(notice.acknowledge(&policy(), 1), at(desk.ms));
        assert_eq!(made.len(), 2, "read, and titles can be seen now: {made:?}");
        desk.until(15 * SECOND);
        let cut = desk.day.turn();
        desk.made.extend(cut);
        assert!(format!("{:?}", desk.made).contains("letter"));
    }

    #[test]
    fn an_excluded_application_is_private() {
        let mut desk = Desk::read(policy());
        desk.until(5 * SECOND);
        desk.front = window("keepassXC", "my bank");
        desk.until(15 * SECOND);
        let cut = desk.day.turn();
        desk.made.extend(cut);
        let private = desk
            .made
            .iter()
            .any(|record| matches!(&record.kind, Kind::Focus(focus) if focus.application == Application::Private && focus.ms == 9_000));
        let text = format!("{:?}", desk.made).to_lowercase();
        assert!(private && !text.contains("bank") && !text.contains("keepass"), "{text}");
    }

    #[test]
    fn what_the_policy_leaves_off_is_not_made() {
        let mut desk = Desk::read(Policy { counts: false, applications: false, titles: false, ..policy() });
        desk.until(10 * MINUTE);
        let made = desk.day.stop(at(desk.ms));
        desk.made.extend(made);
        assert!(desk.made.iter().all(|record| ["heartbeat", "session"].contains(&record.kind_name())), "{:?}", desk.made);
    }

    #[test]
    fn a_switch_that_this_build_cannot_serve_is_a_capability() {
        let mut wide = policy();
        wide.addresses = true;
        let desk = Desk::read(wide);
        assert!(
            matches!(&desk.made[..], [Record { kind: Kind::Capability(Capability { what, able: false, .. }), .. }] if what == "addresses")
        );
    }
}
