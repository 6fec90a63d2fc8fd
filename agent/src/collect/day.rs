//! Quiet: what becomes a record, and when. It sees only values: the clocks, the policy, and what the senses said.
//!
//! ```text
//! waiting for notice ─ outside hours ─ paused ─ asleep ─ locked ─ battery low ─ call ─ idle | active     the first that holds is the state
//! └───────────── nothing is asked ────────────┘ └ only the computer itself ┘
//! ```

use std::{collections::BTreeMap, sync::Arc};

use jiff::{Timestamp, civil::DateTime, tz::Offset};
use muster_mesh::{
    clock::{Reading, Zone},
    ids::{BootId, Version},
    notice::{self, Acknowledged, Notice},
    policy::{Policy, Switch},
    record::{Heartbeat, Kind, Record, Session, State},
};

use super::{
    addresses::Addresses,
    computer::Computer,
    focus::Spans,
    minutes::Minutes,
    pause::{Asked, Mark, Pausing},
    sense::{Abilities, ComputerSight, Power, Sample},
};
use crate::{redact, spool::BatchContext};

/// What this build can observe by itself. Pictures need a program beside it: whoever looks for that one says so by [`Day::set_served`].
pub const SERVES: [Switch; 5] = [Switch::Presence, Switch::Counts, Switch::Applications, Switch::Titles, Switch::Addresses];

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
    serves: Vec<Switch>,
    /// Why a switch isn't served, where there is more to say than that.
    why_not: BTreeMap<Switch, &'static str>,
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
    computer: Computer,
    minutes: Minutes,
    spans: Spans,
    addresses: Addresses,
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
            serves: SERVES.to_vec(),
            why_not: BTreeMap::new(),
            in_force: None,
            acknowledged,
            effective: None,
            pausing,
            state: State::WaitingForNotice,
            since_ms: 0,
            last: None,
            last_beat_ms: None,
            started: false,
            computer: Computer::default(),
            minutes: Minutes::default(),
            spans: Spans::default(),
            addresses: Addresses::default(),
            abilities: Abilities::default(),
        }
    }

    // --- a second ---

    /// Whether the computer itself may be asked: whether it is locked, goes to sleep, has power.
    pub fn may_watch(&self, now: Reading, zone: &Zone) -> bool {
        matches!(self.gate(now, zone), Gate::Open(_))
    }

    /// What the computer said: before the other senses are asked, since it may forbid them.
    pub fn see_computer(&mut self, now: Reading, sight: ComputerSight) {
        let jumped = self.slept_ms(now).is_some();
        self.computer.see(now, jumped, sight);
    }

    /// What may be asked of the other senses now. None: nothing at all.
    pub fn may_observe(&self, now: Reading, zone: &Zone) -> Option<Arc<Policy>> {
        match self.gate(now, zone) {
            Gate::Open(policy) => Some(policy).filter(|_| self.computer.holds().is_none()),
            Gate::Waiting | Gate::Outside | Gate::Paused => None,
        }
    }

    /// A second went by. What `sample` holds although nothing may be observed is not looked at.
    pub fn tick(&mut self, now: Reading, zone: &Zone, sample: Sample) -> Vec<Record> {
        let mut records = Vec::new();
        let slept_ms = self.slept_ms(now);
        if slept_ms.is_some() && is_told(self.state) {
            records.extend(self.cut());
            records.extend(self.last.and_then(|last| self.computer.falls_asleep(last)));
        }
        let gate = self.gate(now, zone);
        self.enter(self.state_at(&gate, &sample), now, slept_ms, &mut records);
        match &gate {
            Gate::Open(policy) => self.observe(policy, now, sample, &mut records),
            Gate::Waiting | Gate::Outside | Gate::Paused => self.computer.rest(),
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
            Gate::Open(policy) => self.computer.holds().unwrap_or_else(|| {
                let idle = sample.idle_ms.is_some_and(|idle_ms| idle_ms >= idle_after_ms(policy));
                match (sample.call == Some(true), idle) {
                    (true, _) => State::Call,
                    (false, true) => State::Idle,
                    (false, false) => State::Active,
                }
            }),
        }
    }

    fn enter(&mut self, to: State, now: Reading, slept_ms: Option<u64>, records: &mut Vec<Record>) {
        let from = self.state;
        if from != to {
            self.state = to;
            self.since_ms = now.wall_ms;
        }
        match to {
            State::Active | State::Idle | State::Call => self.enter_told(from, now, records),
            State::Asleep | State::Locked | State::BatteryLow => {
                records.extend(self.cut());
                self.enter_told(from, now, records);
            }
            State::Paused => self.enter_pause(from, now, records),
            State::OutsideHours => self.leave_hours(from, now, slept_ms, records),
            State::WaitingForNotice | State::Leaving => records.extend(self.cut()),
        }
    }

    fn enter_told(&mut self, from: State, now: Reading, records: &mut Vec<Record>) {
        if !self.started {
            self.started = true;
            records.push(session(now, Session::Start));
        }
        records.extend(self.unpause(now));
        let mut woke = None;
        if self.state == State::Asleep {
            records.extend(self.computer.falls_asleep(now));
        } else {
            woke = self.computer.wakes(now);
            records.extend(woke.iter().cloned());
            records.extend(self.computer.lock_news(now));
        }
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
        if slept_ms.is_none() && (is_told(from) || from == State::Paused) {
            records.push(self.beat(now));
        }
    }

    fn unpause(&mut self, now: Reading) -> Option<Record> {
        let told = self.pausing.told.take()?;
        Some(session(now, Session::Unpause { paused_ms: told.elapsed_ms(now, self.boot) }))
    }

    fn observe(&mut self, policy: &Policy, now: Reading, sample: Sample, records: &mut Vec<Record>) {
        if self.computer.holds().is_none() {
            self.observe_person(policy, now, sample, records);
        }
        let due_ms = u64::from(policy.heartbeat_s) * 1_000;
        let is_due = self.last_beat_ms.is_none_or(|last_ms| now.boot_ms.saturating_sub(last_ms) + HALF_TICK_MS >= due_ms);
        // A sleeping computer gives no signs of life, whenever it really falls asleep.
        if is_due && self.state != State::Asleep {
            records.push(self.beat(now));
        }
    }

    fn observe_person(&mut self, policy: &Policy, now: Reading, sample: Sample, records: &mut Vec<Record>) {
        if policy.has(Switch::Counts) {
            // Who is in a call is there, without touching a key.
            let idle_ms = if self.state == State::Call { Some(0) } else { sample.idle_ms };
            records.extend(self.minutes.tick(now, sample.counts, idle_ms, idle_after_ms(policy)));
        } else {
            self.minutes = Minutes::default();
        }
        if policy.has(Switch::Applications) {
            records.extend(self.spans.tick(now, sample.front.map(|front| redact::front(policy, front))));
        }
        if policy.has(Switch::Addresses) {
            records.extend(self.addresses.tick(now, sample.addresses));
        } else {
            self.addresses = Addresses::default();
        }
    }

    fn beat(&mut self, now: Reading) -> Record {
        self.last_beat_ms = Some(now.boot_ms);
        let heartbeat = Heartbeat { state: self.state, battery: self.computer.battery(), version: env!("CARGO_PKG_VERSION").into() };
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
        if is_told(self.state) {
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
        self.effective = allowed.map(|policy| Arc::new(policy.only(&self.serves)));
        let mut records = Vec::new();
        for switch in Switch::ALL {
            let wanted = asked.has(switch);
            let unread = self.effective.as_ref().is_some_and(|policy| !policy.has(switch));
            let (able, why) = match (self.serves.contains(&switch), unread) {
                (false, _) => (false, self.why_not.get(&switch).copied().unwrap_or(NOT_BUILT)),
                (true, true) => (false, "the notice that names it hasn't been read"),
                (true, false) => (true, ""),
            };
            if wanted {
                records.extend(self.abilities.tell_lack(now.wall_ms, switch.name(), able, why));
            }
        }
        records
    }

    /// Whether this agent can observe something here, and if not, why. The caller has put away what [`turn`](Self::turn) gave before.
    pub fn set_served(&mut self, switch: Switch, served: Result<(), &'static str>, now: Reading) -> Vec<Record> {
        self.serves.retain(|&other| other != switch);
        match served {
            Ok(()) => {
                self.serves.push(switch);
                self.why_not.remove(&switch);
            }
            Err(why) => {
                self.why_not.insert(switch, why);
            }
        }
        self.narrow(now)
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

    /// None: not known, or nothing may be asked.
    pub fn power(&self) -> Option<Power> {
        self.computer.power()
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
        self.in_force.as_ref().map(|in_force| Notice::of(&in_force.policy, &self.serves))
    }

    /// Whether the person is to be asked to read it.
    pub fn asks(&self) -> bool {
        self.in_force.as_ref().is_some_and(|in_force| notice::asks(&in_force.policy, self.acknowledged.as_ref(), &self.serves))
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

/// Whether what happens to the session in this state is told.
fn is_told(state: State) -> bool {
    match state {
        State::Active | State::Idle | State::Call | State::Locked | State::Asleep | State::BatteryLow => true,
        State::WaitingForNotice | State::Paused | State::OutsideHours | State::Leaving => false,
    }
}

fn idle_after_ms(policy: &Policy) -> u64 {
    u64::from(policy.idle_after_s) * 1_000
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
        record::{Application, Battery, Capability, Source},
    };

    use super::*;
    use crate::collect::sense::{Counts, Front, SessionSight, Window, tests::policy};

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
        call: Option<bool>,
        session: Option<SessionSight>,
        power: Option<Power>,
        made: Vec<Record>,
    }

    fn utc() -> Zone {
        Zone { name: "Etc/UTC".into(), offset_s: 0 }
    }

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: EIGHT + ms as i64, boot_ms: 9_000_000 + ms }
    }

    fn window(class: &str, title: &str) -> Front {
        Front::Window(Window { source: Source::X11, class: class.into(), instance: class.into(), title: Some(title.into()) })
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
            Desk { day, ms: 0, keys: 0, front: window("Editor", "letter"), idle_ms: Some(0), call: None, session: None, power: None, made }
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
            if self.day.may_watch(at(self.ms), &utc()) {
                self.day.see_computer(at(self.ms), ComputerSight { session: self.session, power: self.power });
            }
            let counts = Counts { keys: self.keys, ..Counts::default() };
            let sample =
                Sample { front: Some(self.front.clone()), idle_ms: self.idle_ms, counts: Some(counts), call: self.call, addresses: None };
            let made = self.day.tick(at(self.ms), &utc(), sample);
            self.made.extend(made);
        }

        /// As `until`, while nobody touches a key.
        fn until_without_input(&mut self, ms: u64) -> &mut Desk {
            while self.ms < ms {
                self.ms += SECOND;
                self.idle_ms = self.idle_ms.map(|idle_ms| idle_ms + SECOND);
                self.tick();
            }
            self
        }

        fn stop(&mut self) {
            let made = self.day.stop(at(self.ms));
            self.made.extend(made);
        }

        /// Milliseconds that activity records call active, and idle.
        fn worked_ms(&self) -> (u32, u32) {
            let times = self.made.iter().filter_map(|record| match &record.kind {
                Kind::Activity(activity) => Some((activity.active_ms, activity.idle_ms)),
                _ => None,
            });
            times.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
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
        assert!(desk.day.may_observe(at(0), &utc()).is_none() && !desk.day.may_watch(at(0), &utc()));
        desk.session = Some(SessionSight { locked: true, sleeping: false });
        let made = desk.day.sensed(at(0), "window", Some("no display"));
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
    fn a_switch_that_cannot_be_served_is_a_capability_until_it_can() {
        let mut wide = policy();
        wide.pictures.interval_s = 60;
        let mut desk = Desk::read(wide.clone());
        let told = |made: &[Record]| match made {
            [Record { kind: Kind::Capability(Capability { what, able, why }), .. }] => (what.clone(), *able, why.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&desk.made), ("pictures".into(), false, NOT_BUILT.into()));
        assert!(!desk.day.asks() && !desk.day.effective().unwrap().has(Switch::Pictures));
        let made = desk.day.set_served(Switch::Pictures, Ok(()), at(1));
        assert_eq!(made, [], "the notice that was read doesn't name it");
        assert!(desk.day.asks() && !desk.day.effective().unwrap().has(Switch::Pictures));
        let notice = desk.day.notice().unwrap();
        let made = desk.day.acknowledge(notice.acknowledge(&wide, 2), at(2));
        assert_eq!(told(&made[1..]), ("pictures".into(), true, String::new()));
        assert!(desk.day.effective().unwrap().has(Switch::Pictures));
        let made = desk.day.set_served(Switch::Pictures, Err("muster-shot isn't installed"), at(3));
        assert_eq!(told(&made), ("pictures".into(), false, "muster-shot isn't installed".into()));
        assert!(!desk.day.effective().unwrap().has(Switch::Pictures));
    }

    #[test]
    fn a_call_of_40_minutes_without_input_is_never_idle() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        desk.call = Some(true);
        desk.until_without_input(41 * MINUTE);
        assert_eq!(desk.day.state(), State::Call);
        // One key at the end, so that its minute makes a record.
        desk.idle_ms = Some(0);
        desk.until(42 * MINUTE);
        desk.call = Some(false);
        desk.until(43 * MINUTE);
        desk.stop();
        assert!(desk.beats().iter().all(|(_, state)| *state != State::Idle), "{:?}", desk.beats());
        let calls = desk.beats().into_iter().filter(|(_, state)| *state == State::Call).count();
        assert_eq!(calls, 1 + 8, "one at the change, then every five minutes");
        assert_eq!(desk.worked_ms().1, 0, "no millisecond of it is idle");
        assert_eq!(desk.focus_ms(), 43 * 60_000 - 1_000, "what is in front in a call is seen");

        // The same without a call is idle after a minute.
        let mut desk = Desk::read(policy());
        desk.until(MINUTE).until_without_input(41 * MINUTE);
        assert_eq!(desk.day.state(), State::Idle);
    }

    #[test]
    fn a_locked_session_is_told_and_not_looked_at() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        desk.session = Some(SessionSight { locked: true, sleeping: false });
        desk.front = window("Lock screen", "canary");
        desk.until(31 * MINUTE);
        assert!(desk.day.may_watch(at(desk.ms), &utc()) && desk.day.may_observe(at(desk.ms), &utc()).is_none());
        assert_eq!(desk.kinds_since(61 * SECOND), ["heartbeat"; 5], "only signs of life, every five minutes");
        desk.session = Some(SessionSight::default());
        desk.front = window("Editor", "letter");
        desk.until(32 * MINUTE);
        desk.stop();
        assert_eq!(desk.sessions()[1..3], [(61_000, Session::Lock), (31 * 60_000 + 1_000, Session::Unlock)]);
        assert!(desk.beats().contains(&(61_000, State::Locked)) && desk.beats().contains(&(31 * 60_000 + 1_000, State::Active)));
        assert_eq!((desk.keys_made(), desk.focus_ms()), (59 + 59, 59_000 + 59_000));
        assert!(!format!("{:?}", desk.made).contains("canary"));
    }

    #[test]
    fn a_lock_during_a_pause_is_told_when_it_ends() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        desk.day.pause(at(desk.ms), Some(5 * MINUTE));
        desk.session = Some(SessionSight { locked: true, sleeping: false });
        desk.until(4 * MINUTE);
        assert_eq!(desk.sessions().last().unwrap().1, Session::Pause);
        desk.until(10 * MINUTE);
        let names: Vec<&str> = desk.sessions().iter().map(|(_, session)| session.name()).collect();
        assert_eq!(names, ["start", "pause", "unpause", "lock"]);
        assert_eq!(desk.day.state(), State::Locked);
    }

    #[test]
    fn a_low_battery_pauses_observing_and_says_so_once() {
        let power = |on_ac, percent| Some(Power { on_ac, battery: Some(Battery { percent, charging: on_ac }) });
        let mut desk = Desk::read(policy());
        desk.power = power(false, 30);
        desk.until(MINUTE);
        desk.power = power(false, 14);
        desk.front = window("Secret", "canary");
        desk.until(3 * MINUTE);
        assert_eq!(desk.day.state(), State::BatteryLow);
        assert!(desk.day.may_observe(at(desk.ms), &utc()).is_none());
        assert_eq!(desk.kinds_since(61 * SECOND), Vec::<&str>::new());
        desk.power = power(false, 20);
        desk.until(4 * MINUTE);
        assert_eq!(desk.day.state(), State::BatteryLow, "20 % isn't above 20 %");
        desk.power = power(true, 15);
        desk.front = window("Editor", "letter");
        desk.until(5 * MINUTE);
        let batteries: Vec<_> = desk
            .made
            .iter()
            .filter_map(|record| match &record.kind {
                Kind::Heartbeat(heartbeat) => Some((heartbeat.state, heartbeat.battery.map(|battery| (battery.percent, battery.charging)))),
                _ => None,
            })
            .collect();
        let expected = [(State::Active, Some((30, false))), (State::BatteryLow, Some((14, false))), (State::Active, Some((15, true)))];
        assert_eq!(batteries, expected);
        assert!(!format!("{:?}", desk.made).contains("canary"));
    }

    /// Plays logind's word and the clock's gap of one sleep; the names of what is told of it, and how long it was.
    fn sleep(word_before: bool, stale_ticks: u64) -> (Vec<&'static str>, Vec<u64>) {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        let sleeping = Some(SessionSight { locked: false, sleeping: true });
        if word_before {
            desk.session = sleeping;
            desk.until(MINUTE + 2 * SECOND);
        }
        desk.ms += 3 * HOUR;
        // What logind says after the wake may be heard late, and in any tick.
        for tick in 0..stale_ticks {
            desk.session = if word_before || tick > 0 { sleeping } else { Some(SessionSight::default()) };
            desk.tick();
            desk.ms += SECOND;
        }
        desk.session = Some(SessionSight::default());
        desk.tick();
        desk.until(desk.ms + 2 * MINUTE);
        desk.stop();
        let slept = |session: &Session| if let Session::Resume { slept_ms } = session { Some(*slept_ms) } else { None };
        assert_eq!(desk.worked_ms().1, 0, "asleep is not idle");
        assert!(desk.worked_ms().0 <= 4 * 60_000, "and no work");
        let sessions = desk.sessions();
        (sessions.iter().map(|(_, session)| session.name()).collect(), sessions.iter().filter_map(|(_, session)| slept(session)).collect())
    }

    #[test]
    fn logind_and_the_clocks_make_one_pair_of_one_sleep() {
        let pair = ["start", "suspend", "resume", "stop"];
        for (word_before, stale_ticks, slept) in
            [(false, 0, 3 * HOUR), (false, 4, 3 * HOUR), (true, 0, 3 * HOUR + SECOND), (true, 3, 3 * HOUR + 4 * SECOND)]
        {
            assert_eq!(sleep(word_before, stale_ticks), (pair.to_vec(), vec![slept]), "{word_before} {stale_ticks}");
        }
    }

    #[test]
    fn a_sleep_that_only_logind_tells_is_a_state_of_its_own() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        desk.session = Some(SessionSight { locked: true, sleeping: true });
        desk.until(11 * MINUTE);
        assert_eq!(desk.day.state(), State::Asleep);
        assert_eq!(desk.kinds_since(61 * SECOND), Vec::<&str>::new(), "no sign of life");
        desk.session = Some(SessionSight { locked: true, sleeping: false });
        desk.tick();
        let woke = 11 * 60_000;
        let told = [(61_000, Session::Suspend), (woke, Session::Resume { slept_ms: 10 * MINUTE - SECOND }), (woke, Session::Lock)];
        assert_eq!(desk.sessions()[1..], told);
        assert_eq!(desk.beats()[1..], [(61_000, State::Asleep), (woke, State::Locked)]);
    }

    #[test]
    fn idle_that_cannot_be_seen_never_becomes_idle_and_a_window_that_cannot_be_seen_has_no_source() {
        let mut desk = Desk::read(policy());
        desk.until(MINUTE);
        (desk.idle_ms, desk.front) = (None, Front::Unseen);
        desk.until(10 * MINUTE);
        desk.stop();
        assert!(desk.beats().iter().all(|(_, state)| *state != State::Idle));
        let unseen = |record: &Record| match &record.kind {
            Kind::Focus(focus) if focus.source == Source::None => Some((focus.application.clone(), focus.ms)),
            _ => None,
        };
        let unseen: Vec<_> = desk.made.iter().filter_map(unseen).collect();
        assert_eq!(unseen, [(Application::None, 300_000), (Application::None, 239_000)]);
    }
}
