//! Blocking: the collector: one thread that owns the senses, asks them once a second for what may be kept, and hands on batches.
//!
//! What may be kept, and what becomes a record, is decided by [`day::Day`]; while nothing may be observed no sense is asked, and while the
//! computer is locked, asleep or low on battery only those that say so.

pub mod addresses;
pub mod computer;
pub mod day;
pub mod eyes;
pub mod focus;
pub mod minutes;
pub mod pause;
pub mod sense;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use muster_mesh::{
    clock::{Clock, Reading, Zone},
    ids::{Lane, Version},
    notice::{Acknowledged, Notice},
    policy::{Policy, Switch},
    record::{Gap, GapReason, KIND_NAMES, Kind, Record, State},
};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    day::{Day, PolicyInForce},
    eyes::Eyes,
    sense::{ActiveWindow, AddressBook, CallWatch, IdleClock, InputCounter, PowerSource, SessionWatch},
};
use crate::{
    batcher::{Batcher, Closed},
    shots::{self, Made, Shots, Sight},
    standing::Standing,
};

const TICK_MS: u64 = 1_000;
/// Questions of the control socket that wait for the next moment.
const COMMANDS_MAX: usize = 32;
/// Batches that wait for the spool: a minute of a slow disk at the worst rate. More are counted, and told as a `Gap`.
pub const BATCHES_WAITING_MAX: usize = 64;
/// When the program stops, the last batches wait this long for room.
const LAST_BATCHES: Duration = Duration::from_secs(5);

/// All that the collector asks a desktop.
pub struct Senses {
    pub window: Box<dyn ActiveWindow>,
    pub idle: Box<dyn IdleClock>,
    pub input: Box<dyn InputCounter>,
    pub session: Box<dyn SessionWatch>,
    pub call: Box<dyn CallWatch>,
    pub power: Box<dyn PowerSource>,
    pub addresses: Box<dyn AddressBook>,
}

/// What a collector is made of.
pub struct Parts {
    pub clock: Arc<dyn Clock>,
    pub senses: Senses,
    /// The agent's own file says test mode.
    pub test_mode: bool,
    pub standing: Standing,
    /// What came from the hub.
    pub in_force: watch::Receiver<Option<PolicyInForce>>,
    pub batches: mpsc::Sender<Closed>,
}

/// The running collector. It stops when this is dropped.
pub struct Collector {
    asker: Asker,
    thread: Option<JoinHandle<()>>,
}

/// Asks the running collector; clones ask the same one.
#[derive(Clone)]
pub struct Asker {
    commands: SyncSender<Command>,
    snapshot: watch::Receiver<Snapshot>,
}

/// What the collector does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub state: State,
    /// Milliseconds UTC; 0: nothing was decided yet.
    pub since_ms: i64,
    pub test_mode: bool,
    pub policy: Option<Version>,
    /// The notice that belongs to it.
    pub notice: Option<Version>,
    /// What of it is observed; None: nothing.
    pub effective: Option<Arc<Policy>>,
    /// Which notice was read, and when (milliseconds UTC).
    pub read: Option<(Version, i64)>,
    /// The notice that waits to be read.
    pub waits: Option<Version>,
    /// Milliseconds that are left of a pause; None: until the person resumes.
    pub paused: Option<Option<u64>>,
    /// Records made since the start, by [`KIND_NAMES`].
    pub observed: [u64; KIND_NAMES.len()],
}

/// The notice as it would be read now.
#[derive(Debug, Clone)]
pub struct NoticeNow {
    pub notice: Notice,
    /// None: it waits to be read.
    pub read_at_ms: Option<i64>,
    pub observed_before: bool,
}

/// Why the person's answer could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("muster-agent is stopping")]
    Stopping,
    #[error("no policy has come from the hub yet, so there is no notice; nothing is recorded until then")]
    NoPolicy,
    #[error("the notice has changed while it was read")]
    Changed,
    #[error("it can't be kept on the disk: {0}")]
    Disk(String),
}

enum Command {
    Notice(oneshot::Sender<Result<NoticeNow, AskError>>),
    Acknowledge { sha256: [u8; 32], reply: oneshot::Sender<Result<(), AskError>> },
    Pause { for_ms: Option<u64>, reply: oneshot::Sender<Result<(), AskError>> },
    Resume { reply: oneshot::Sender<Result<(), AskError>> },
    Stop,
}

impl Collector {
    /// Starts the thread.
    pub fn start(parts: Parts) -> io::Result<Collector> {
        Collector::start_with(parts, Shots::none())
    }

    /// As [`start`](Self::start), with pictures.
    pub fn start_with(parts: Parts, shots: Shots) -> io::Result<Collector> {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let mut work = Work::new(parts, shots);
        let (told, snapshot) = watch::channel(work.snapshot());
        let thread = thread::Builder::new().name("collector".into()).spawn(move || work.run(&inbox, &told))?;
        Ok(Collector { asker: Asker { commands, snapshot }, thread: Some(thread) })
    }

    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Ends collection: the `stop` record is in the last batch, which is handed on before this returns. Blocks for up to some seconds.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.asker.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the collector ended by a fault");
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

impl Asker {
    /// Follows what the collector does.
    pub fn snapshot(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    pub async fn notice(&self) -> Result<NoticeNow, AskError> {
        self.ask(Command::Notice).await
    }

    /// The person has read the text with this SHA-256.
    pub async fn acknowledge(&self, sha256: [u8; 32]) -> Result<(), AskError> {
        self.ask(|reply| Command::Acknowledge { sha256, reply }).await
    }

    /// None as length: until the person resumes. Holds, and is kept, when this returns.
    pub async fn pause(&self, for_ms: Option<u64>) -> Result<(), AskError> {
        self.ask(|reply| Command::Pause { for_ms, reply }).await
    }

    pub async fn resume(&self) -> Result<(), AskError> {
        self.ask(|reply| Command::Resume { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Command) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        // As many questions wait as the control socket takes at once, so a full inbox means that nobody reads it.
        self.commands.try_send(command(reply)).map_err(|_| AskError::Stopping)?;
        answer.await.unwrap_or(Err(AskError::Stopping))
    }
}

// --- the thread ---

struct Work {
    clock: Arc<dyn Clock>,
    eyes: Eyes,
    day: Day,
    batcher: Batcher,
    standing: Standing,
    in_force: watch::Receiver<Option<PolicyInForce>>,
    batches: mpsc::Sender<Closed>,
    shots: Shots,
    /// By lane.
    lost: [Lost; 2],
    observed: [u64; KIND_NAMES.len()],
    effective: Option<Arc<Policy>>,
    kept_pausing: pause::Pausing,
}

/// Records that found no room.
#[derive(Debug, Default)]
struct Lost {
    records: u64,
    bytes: u64,
}

impl Work {
    fn new(parts: Parts, shots: Shots) -> Work {
        let Parts { clock, senses, test_mode, standing, in_force, batches } = parts;
        let (now, boot) = (clock.now(), clock.boot());
        let pausing = standing.pausing(now, boot);
        let day = Day::new(boot, test_mode, standing.acknowledged(), pausing);
        let mut work = Work {
            clock,
            eyes: Eyes::new(senses),
            day,
            batcher: Batcher::default(),
            standing,
            in_force,
            batches,
            shots,
            lost: Default::default(),
            observed: [0; KIND_NAMES.len()],
            effective: None,
            kept_pausing: pausing,
        };
        work.begin(now);
        work
    }

    fn begin(&mut self, now: Reading) {
        let zone = self.clock.zone();
        self.advance(now, &zone);
        let made = self.day.set_served(Switch::Pictures, self.shots.serves(), now);
        self.put(now, &zone, made, false);
        let was_in_force = self.in_force.borrow().clone();
        if let Some(in_force) = was_in_force {
            let made = self.day.set_in_force(in_force, now);
            self.put(now, &zone, made, false);
        }
        // What is there already counts too.
        self.in_force.mark_changed();
        self.take_in_force(now, &zone);
        let mut made = Vec::new();
        self.eyes.probe(now, &mut self.day, &mut made);
        self.put(now, &zone, made, true);
        self.note_effective();
    }

    fn run(&mut self, inbox: &Receiver<Command>, told: &watch::Sender<Snapshot>) {
        let mut next_ms = self.clock.now().boot_ms;
        loop {
            let wait_ms = next_ms.saturating_sub(self.clock.now().boot_ms);
            match inbox.recv_timeout(Duration::from_millis(wait_ms.min(TICK_MS))) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => self.obey(command, told),
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.clock.now();
                    self.tick(now);
                    // From where it should have been, so that ticks don't drift; after a sleep from now on.
                    next_ms = if now.boot_ms > next_ms + TICK_MS { now.boot_ms + TICK_MS } else { next_ms + TICK_MS };
                }
            }
            self.tell(told);
        }
        self.stop();
        self.tell(told);
    }

    fn tell(&self, told: &watch::Sender<Snapshot>) {
        let new = self.snapshot();
        told.send_if_modified(|old| {
            let is_news = *old != new;
            *old = new;
            is_news
        });
    }

    fn tick(&mut self, now: Reading) {
        let zone = self.clock.zone();
        self.advance(now, &zone);
        self.take_in_force(now, &zone);
        self.tell_lost(now, &zone);

        let before = self.day.state();
        let mut made = Vec::new();
        let sample = self.eyes.sample(now, &zone, &mut self.day, &mut made);
        made.extend(self.day.tick(now, &zone, sample));
        let after = self.day.state();
        if before != after {
            // A log outlives the retention of what it would tell: when somebody was idle or paused stays out of it.
            tracing::debug!(to = after.name(), "the state changed");
        }
        let urgent = before != after || made.iter().any(|record| matches!(record.kind, Kind::Session(_)));
        self.put(now, &zone, made, urgent);
        self.take_pictures(now, &zone);
        // Whoever asked for it is told; a change by itself was logged.
        let _ = self.keep_pausing();
    }

    /// The state is up to date: a picture is begun, waited for, or given up.
    fn take_pictures(&mut self, now: Reading, zone: &Zone) {
        let on_battery = self.day.power().is_some_and(|power| !power.on_ac);
        let (eyes, policy) = (&mut self.eyes, self.effective.clone());
        let mut front = || eyes.geometry();
        let sight = Sight { now, zone, state: self.day.state(), policy: policy.as_deref(), on_battery, front: &mut front };
        let Made { turns, records, ability } = self.shots.tick(sight);
        let mut made = if turns { self.day.turn() } else { Vec::new() };
        if let Some(ability) = ability {
            made.extend(self.day.sensed(now, shots::PICTURES, ability.err().as_deref()));
        }
        made.extend(records);
        self.put(now, zone, made, turns);
    }

    /// Time goes on. Where the wall clock stepped, what is under way ends by the old time.
    fn advance(&mut self, now: Reading, zone: &Zone) {
        if let Some(before) = self.batcher.before_step(now) {
            tracing::warn!("the wall clock stepped; the queue goes on under new numbers");
            let made = self.day.turn();
            self.put(before, zone, made, false);
        }
        let closed = self.batcher.tick(now);
        self.send(closed);
    }

    fn take_in_force(&mut self, now: Reading, zone: &Zone) {
        if !self.in_force.has_changed().unwrap_or(false) {
            return;
        }
        let Some(new) = self.in_force.borrow_and_update().clone() else { return };
        let old = self.day.in_force();
        // Which one holds is decided where signatures are looked at.
        if old == Some(&new) {
            return;
        }
        tracing::info!(version = %new.version, notice = new.policy.notice.n, "a policy came");
        if let Err(error) = self.standing.keep_in_force(&new) {
            tracing::warn!(%error, "the policy can't be kept on the disk; it holds until this program ends");
        }
        let made = self.day.turn();
        self.put(now, zone, made, false);
        let made = self.day.set_in_force(new, now);
        self.put(now, zone, made, true);
        self.note_effective();
    }

    fn note_effective(&mut self) {
        self.effective = self.day.effective().cloned().map(Arc::new);
        match (&self.effective, self.day.asks()) {
            (None, true) => tracing::info!("nothing is observed: the notice waits to be read (muster-agent notice)"),
            (Some(_), true) if self.day.is_test_mode() => {
                tracing::info!("test mode: all that the policy names is observed; its notice waits to be read (muster-agent notice)")
            }
            (Some(_), true) => {
                tracing::info!("a newer notice waits to be read (muster-agent notice); what it adds isn't observed until then")
            }
            (_, false) => {}
        }
    }

    fn put(&mut self, now: Reading, zone: &Zone, records: Vec<Record>, urgent: bool) {
        for record in &records {
            self.observed[record.tag()] += 1;
            metrics::counter!("muster_agent_observed_records_total", "kind" => record.kind_name()).increment(1);
        }
        if records.is_empty() && !urgent {
            return;
        }
        let context = self.day.context(zone);
        let closed = self.batcher.put(now, &context, records, urgent);
        self.send(closed);
    }

    fn send(&mut self, closed: impl IntoIterator<Item = Closed>) {
        for batch in closed {
            if let Err(error) = self.batches.try_send(batch) {
                self.lose(error.into_inner());
            }
        }
    }

    /// What finds no room is counted, and told when there is room again.
    fn lose(&mut self, batch: Closed) {
        let lost = &mut self.lost[batch.lane.index()];
        if lost.records == 0 {
            tracing::warn!(lane = batch.lane.name(), "records are dropped: the queue on the disk is too slow");
        }
        lost.records += batch.records.len() as u64;
        lost.bytes += muster_mesh::record::encode(&batch.records).len() as u64;
        if batch.new_spools {
            self.batcher.remember_step();
        }
    }

    fn tell_lost(&mut self, now: Reading, zone: &Zone) {
        for lane in Lane::ALL {
            if self.lost[lane.index()].records == 0 || self.batches.capacity() == 0 {
                continue;
            }
            let Lost { records, bytes } = std::mem::take(&mut self.lost[lane.index()]);
            let gap = Gap { lane, numbers: None, records, bytes, reason: GapReason::Overflow };
            self.put(now, zone, vec![Record { at: now.wall_ms, kind: Kind::Gap(gap) }], false);
        }
    }

    fn keep_pausing(&mut self) -> Result<(), AskError> {
        let pausing = self.day.pausing();
        if pausing == self.kept_pausing {
            return Ok(());
        }
        self.standing.keep_pausing(&pausing).map_err(|error| {
            tracing::warn!(%error, "the pause can't be kept on the disk; it holds until this program ends");
            AskError::Disk(error.to_string())
        })?;
        self.kept_pausing = pausing;
        Ok(())
    }

    fn stop(&mut self) {
        let now = self.clock.now();
        self.tick(now);
        self.shots.stop();
        let zone = self.clock.zone();
        let made = self.day.stop(now);
        self.put(now, &zone, made, true);
        self.eyes.rest();
        // The last batches may have found no room: their Gap, or nothing, is the last that is handed on.
        let mut waited = Duration::ZERO;
        while self.lost.iter().any(|lost| lost.records > 0) && waited < LAST_BATCHES && !self.batches.is_closed() {
            thread::sleep(Duration::from_millis(20));
            waited += Duration::from_millis(20);
            self.tell_lost(now, &zone);
            let last = self.batcher.close(now);
            self.send(last);
        }
    }

    // --- what the person asks ---

    fn obey(&mut self, command: Command, told: &watch::Sender<Snapshot>) {
        match command {
            Command::Notice(reply) => self.reply(reply, told, |work| work.notice_now()),
            Command::Acknowledge { sha256, reply } => self.reply(reply, told, |work| work.acknowledge(sha256)),
            Command::Pause { for_ms, reply } => self.reply(reply, told, |work| {
                let now = work.clock.now();
                work.day.pause(now, for_ms);
                work.tick(now);
                work.keep_pausing()
            }),
            Command::Resume { reply } => self.reply(reply, told, |work| {
                work.day.resume();
                let now = work.clock.now();
                work.tick(now);
                work.keep_pausing()
            }),
            Command::Stop => {}
        }
    }

    /// Whoever gets an answer finds it in the snapshot too.
    fn reply<T>(&mut self, reply: oneshot::Sender<T>, told: &watch::Sender<Snapshot>, make: impl FnOnce(&mut Work) -> T) {
        let answer = make(self);
        self.tell(told);
        // Whoever asked may be gone.
        let _ = reply.send(answer);
    }

    fn notice_now(&self) -> Result<NoticeNow, AskError> {
        let notice = self.day.notice().ok_or(AskError::NoPolicy)?;
        let read_at_ms = self.day.acknowledged().filter(|_| !self.day.asks()).map(|read| read.at_ms);
        Ok(NoticeNow { notice, read_at_ms, observed_before: self.day.effective().is_some() })
    }

    fn acknowledge(&mut self, sha256: [u8; 32]) -> Result<(), AskError> {
        let now = self.clock.now();
        let zone = self.clock.zone();
        self.advance(now, &zone);
        self.take_in_force(now, &zone);
        let (notice, in_force) = self.day.notice().zip(self.day.in_force()).ok_or(AskError::NoPolicy)?;
        if notice.sha256 != sha256 {
            return Err(AskError::Changed);
        }
        let acknowledged: Acknowledged = notice.acknowledge(&in_force.policy, now.wall_ms);
        // Kept first: what is observed must never rest on an answer that a restart has forgotten.
        self.standing.keep_acknowledged(&acknowledged).map_err(|error| AskError::Disk(error.to_string()))?;
        tracing::info!(notice = notice.version.n, "the notice was read");
        let made = self.day.turn();
        self.put(now, &zone, made, false);
        let made = self.day.acknowledge(acknowledged, now);
        self.put(now, &zone, made, true);
        self.note_effective();
        self.tick(now);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let (now, boot) = (self.clock.now(), self.clock.boot());
        let pausing = self.day.pausing();
        Snapshot {
            state: self.day.state(),
            since_ms: self.day.since_ms(),
            test_mode: self.day.is_test_mode(),
            policy: self.day.in_force().map(|in_force| in_force.version),
            notice: self.day.in_force().map(|in_force| in_force.policy.notice),
            effective: self.effective.clone(),
            read: self.day.acknowledged().map(|read| (read.notice, read.at_ms)),
            waits: self.day.in_force().filter(|_| self.day.asks()).map(|in_force| in_force.policy.notice),
            paused: pausing.asked.filter(|_| pausing.is_on(now, boot)).map(|asked| asked.left_ms(now, boot)),
            observed: self.observed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
    };

    use muster_mesh::{
        clock::ManualClock,
        ids::BootId,
        record::{Battery, Source},
    };

    use super::{
        sense::{Counts, Front, Power, Rectangle, SenseError, SessionSight, Window, tests::policy},
        *,
    };

    /// A sense that plays a script: what it says from a moment on. It counts how often it is asked.
    struct Script<T> {
        clock: ManualClock,
        plays: Vec<(u64, Result<T, SenseError>)>,
        asked: Arc<AtomicU64>,
        titles: Arc<Mutex<Vec<String>>>,
    }

    impl<T: Clone> Script<T> {
        fn new(clock: &ManualClock, plays: Vec<(u64, Result<T, SenseError>)>) -> Script<T> {
            Script { clock: clock.clone(), plays, asked: Arc::default(), titles: Arc::default() }
        }

        fn now(&mut self) -> Result<T, SenseError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let now = self.clock.now().boot_ms;
            let play = self.plays.iter().rev().find(|(from, _)| *from <= now);
            play.map_or(Err(SenseError::NoDisplay("not yet".into())), |(_, play)| play.clone())
        }
    }

    impl<T: Clone> Script<T> {
        fn first(&self) -> Result<(), SenseError> {
            self.plays.first().map_or(Ok(()), |(_, play)| play.clone().map(|_| ()))
        }
    }

    impl SessionWatch for Script<SessionSight> {
        fn probe(&mut self) -> Result<(), SenseError> {
            self.first()
        }

        fn session(&mut self) -> Result<SessionSight, SenseError> {
            self.now()
        }
    }

    impl CallWatch for Script<bool> {
        fn probe(&mut self) -> Result<(), SenseError> {
            self.first()
        }

        fn is_held(&mut self) -> Result<bool, SenseError> {
            self.now()
        }
    }

    impl PowerSource for Script<Power> {
        fn probe(&mut self) -> Result<(), SenseError> {
            self.first()
        }

        fn power(&mut self, _boot_ms: u64) -> Result<Power, SenseError> {
            self.now()
        }
    }

    impl AddressBook for Script<Vec<String>> {
        fn addresses(&mut self, _boot_ms: u64) -> Result<Vec<String>, SenseError> {
            self.now()
        }
    }

    impl ActiveWindow for Script<Front> {
        fn probe(&mut self) -> Result<(), SenseError> {
            Ok(())
        }

        fn front(&mut self, may_read_title: &dyn Fn(&str, &str) -> bool) -> Result<Front, SenseError> {
            let mut front = self.now()?;
            if let Front::Window(window) = &mut front {
                if may_read_title(&window.class, &window.instance) {
                    self.titles.lock().unwrap().push(window.class.clone());
                } else {
                    window.title = None;
                }
            }
            Ok(front)
        }

        fn geometry(&mut self) -> Result<Option<Rectangle>, SenseError> {
            Ok(None)
        }
    }

    impl IdleClock for Script<u64> {
        fn probe(&mut self) -> Result<(), SenseError> {
            Ok(())
        }

        fn idle_ms(&mut self, _boot_ms: u64) -> Result<u64, SenseError> {
            self.now()
        }
    }

    impl InputCounter for Script<Counts> {
        fn probe(&mut self) -> Result<(), SenseError> {
            self.first()
        }

        fn counts(&mut self) -> Result<Counts, SenseError> {
            self.now()
        }
    }

    /// What each sense says, from a moment on.
    struct Scripts {
        fronts: Vec<(u64, Result<Front, SenseError>)>,
        counts: Result<Counts, SenseError>,
        sessions: Vec<(u64, Result<SessionSight, SenseError>)>,
        calls: Vec<(u64, Result<bool, SenseError>)>,
        powers: Vec<(u64, Result<Power, SenseError>)>,
        addresses: Vec<(u64, Result<Vec<String>, SenseError>)>,
    }

    impl Scripts {
        /// An unlocked computer on AC.
        fn new(fronts: Vec<(u64, Result<Front, SenseError>)>) -> Scripts {
            Scripts {
                fronts,
                counts: Ok(Counts::default()),
                sessions: vec![(0, Ok(SessionSight::default()))],
                calls: vec![(0, Ok(false))],
                powers: vec![(0, Ok(Power { on_ac: true, battery: None }))],
                addresses: vec![(0, Ok(Vec::new()))],
            }
        }

        fn parts(self, clock: &ManualClock, dir: &Path, batches: mpsc::Sender<Closed>) -> (Parts, Spies) {
            let front = Script::new(clock, self.fronts);
            let idle = Script::new(clock, vec![(0, Ok(0))]);
            let input = Script::new(clock, vec![(0, self.counts)]);
            let session = Script::new(clock, self.sessions);
            let call = Script::new(clock, self.calls);
            let power = Script::new(clock, self.powers);
            let addresses = Script::new(clock, self.addresses);
            let in_force = watch::Sender::new(None);
            let spies = Spies {
                asked: [&front.asked, &idle.asked, &input.asked, &call.asked, &addresses.asked].map(Arc::clone),
                watched: [&session.asked, &power.asked].map(Arc::clone),
                titles: front.titles.clone(),
                in_force: in_force.clone(),
            };
            let senses = Senses {
                window: Box::new(front),
                idle: Box::new(idle),
                input: Box::new(input),
                session: Box::new(session),
                call: Box::new(call),
                power: Box::new(power),
                addresses: Box::new(addresses),
            };
            let standing = Standing::new(dir);
            let (clock, in_force) = (Arc::new(clock.clone()), in_force.subscribe());
            (Parts { clock, senses, test_mode: false, standing, in_force, batches }, spies)
        }

        fn bench(self, room: usize) -> Bench {
            let clock = clock();
            let dir = tempfile::tempdir().unwrap();
            let (sender, batches) = mpsc::channel(room);
            let (parts, spies) = self.parts(&clock, dir.path(), sender);
            Bench { clock, work: Work::new(parts, Shots::none()), batches, spies, dir }
        }
    }

    struct Spies {
        /// Window, idle, input, call, addresses.
        asked: [Arc<AtomicU64>; 5],
        /// The computer itself: session, power.
        watched: [Arc<AtomicU64>; 2],
        titles: Arc<Mutex<Vec<String>>>,
        in_force: watch::Sender<Option<PolicyInForce>>,
    }

    fn clock() -> ManualClock {
        ManualClock::new(Reading { wall_ms: 1_795_420_800_000, boot_ms: 0 }, BootId([3; 16]))
    }

    struct Bench {
        clock: ManualClock,
        work: Work,
        batches: mpsc::Receiver<Closed>,
        spies: Spies,
        dir: tempfile::TempDir,
    }

    fn window(class: &str) -> Result<Front, SenseError> {
        Ok(Front::Window(Window {
            source: Source::X11,
            class: class.into(),
            instance: class.into(),
            title: Some(format!("title of {class}")),
        }))
    }

    fn version(n: u32) -> Version {
        Version { epoch: 1, n }
    }

    fn bench(fronts: Vec<(u64, Result<Front, SenseError>)>, counts: Result<Counts, SenseError>, room: usize) -> Bench {
        Scripts { counts, ..Scripts::new(fronts) }.bench(room)
    }

    impl Bench {
        fn seconds(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.clock.advance(1_000);
                let now = self.clock.now();
                self.work.tick(now);
            }
        }

        fn policy(&mut self, n: u32, policy: Policy) {
            self.spies.in_force.send_replace(Some(PolicyInForce { version: version(n), policy, erasure: version(0) }));
        }

        fn read_notice(&mut self) {
            let sha256 = self.work.notice_now().unwrap().notice.sha256;
            self.work.acknowledge(sha256).unwrap();
        }

        fn closed(&mut self) -> Vec<Closed> {
            std::iter::from_fn(|| self.batches.try_recv().ok()).collect()
        }

        fn records(&mut self) -> Vec<Record> {
            self.closed().into_iter().flat_map(|closed| closed.records).collect()
        }

        fn times_asked(&self) -> u64 {
            times(&self.spies.asked)
        }

        fn times_watched(&self) -> u64 {
            times(&self.spies.watched)
        }
    }

    fn times(asked: &[Arc<AtomicU64>]) -> u64 {
        asked.iter().map(|asked| asked.load(Ordering::Relaxed)).sum()
    }

    fn capabilities<'a>(records: &'a [Record]) -> Vec<(&'a str, bool)> {
        let of = |record: &'a Record| match &record.kind {
            Kind::Capability(told) => Some((told.what.as_str(), told.able)),
            _ => None,
        };
        records.iter().filter_map(of).collect()
    }

    #[test]
    fn no_sense_is_asked_before_the_notice_nor_in_a_pause() {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 64);
        bench.seconds(5);
        bench.policy(1, policy());
        bench.seconds(5);
        assert_eq!((bench.times_asked(), bench.times_watched()), (0, 0));
        assert!(bench.records().iter().all(|record| record.kind_name() == "capability"));

        bench.read_notice();
        bench.seconds(5);
        assert_eq!((bench.times_asked(), bench.times_watched()), (6 * 4, 6 * 2), "addresses are off in this policy");
        bench.work.day.pause(bench.clock.now(), None);
        bench.seconds(60);
        assert_eq!((bench.times_asked(), bench.times_watched()), (6 * 4, 6 * 2));
        let pause = std::fs::read_to_string(bench.dir.path().join("pause.json")).unwrap();
        assert!(pause.contains("told"), "{pause}");
    }

    #[test]
    fn a_locked_a_sleeping_and_an_empty_computer_are_only_asked_about_themselves() {
        let session = |locked, sleeping| Ok(SessionSight { locked, sleeping });
        let power = |percent| Ok(Power { on_ac: false, battery: Some(Battery { percent, charging: false }) });
        let sessions = vec![
            (0, session(false, false)),
            (10_000, session(true, false)),
            (20_000, session(false, true)),
            (30_000, session(false, false)),
        ];
        let powers = vec![(0, power(50)), (40_000, power(9)), (50_000, power(50))];
        let mut bench = Scripts { sessions, powers, ..Scripts::new(vec![(0, window("Editor"))]) }.bench(64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        let mut asked = Vec::new();
        for _ in 0..6 {
            let (asked_before, watched_before) = (bench.times_asked(), bench.times_watched());
            // From 1 s to 8 s of each ten.
            bench.seconds(8);
            asked.push((bench.times_asked() - asked_before, bench.times_watched() - watched_before));
            bench.seconds(2);
        }
        assert_eq!(asked, [(32, 16), (0, 16), (0, 16), (32, 16), (0, 16), (32, 16)]);
        bench.work.stop();
        let states: Vec<State> = bench
            .records()
            .into_iter()
            .filter_map(|record| if let Kind::Heartbeat(beat) = record.kind { Some(beat.state) } else { None })
            .collect();
        let expected = [State::Active, State::Locked, State::Asleep, State::Active, State::BatteryLow, State::Active, State::Leaving];
        assert_eq!(states, expected);
    }

    #[test]
    fn addresses_are_asked_for_and_told_only_where_the_policy_says_so() {
        let addresses = |address: &str| Ok(vec![address.to_owned()]);
        let plays = vec![(0, addresses("10.0.0.1")), (20_000, addresses("10.0.0.2")), (40_000, Err(SenseError::Lost("no".into())))];
        let mut bench = Scripts { addresses: plays, ..Scripts::new(vec![(0, window("Editor"))]) }.bench(64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(4);
        assert_eq!(bench.spies.asked[4].load(Ordering::Relaxed), 0);
        bench.policy(2, Policy { addresses: true, ..policy() });
        bench.seconds(5);
        assert_eq!(bench.spies.asked[4].load(Ordering::Relaxed), 0, "its notice waits");
        bench.read_notice();
        bench.seconds(50);
        bench.work.stop();
        let records = bench.records();
        let told: Vec<_> =
            records.iter().filter_map(|record| if let Kind::Network(told) = &record.kind { Some(&told.addresses) } else { None }).collect();
        assert_eq!(told, [&["10.0.0.1".to_owned()], &["10.0.0.2".to_owned()]]);
        assert!(capabilities(&records).contains(&("network", false)));
    }

    #[test]
    fn a_window_that_cannot_be_seen_is_a_span_without_a_source() {
        let mut bench =
            bench(vec![(0, window("Editor")), (10_000, Err(SenseError::NotSupported("Wayland".into())))], Ok(Counts::default()), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(59);
        assert_eq!(bench.work.day.state(), State::Active, "nobody is idle by it");
        bench.work.stop();
        let spans: Vec<_> = bench
            .records()
            .into_iter()
            .filter_map(|record| if let Kind::Focus(focus) = record.kind { Some((focus.ms, focus.source)) } else { None })
            .collect();
        assert_eq!(spans, [(9_000, Source::X11), (50_000, Source::None)]);
    }

    #[test]
    fn a_sense_that_only_listens_is_told_once_and_is_back_at_once() {
        let gone = || Err(SenseError::Lost("the bus is gone".into()));
        let calls = vec![(0, Ok(false)), (10_000, gone()), (100_000, Ok(true))];
        let mut bench = Scripts { calls, ..Scripts::new(vec![(0, window("Editor"))]) }.bench(64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(98);
        assert_eq!(bench.work.day.state(), State::Active);
        bench.seconds(1);
        assert_eq!(bench.work.day.state(), State::Call);
        let records = bench.records();
        let told: Vec<bool> = capabilities(&records).into_iter().filter(|(what, _)| *what == "call").map(|(_, able)| able).collect();
        assert_eq!(told, [true, false, true]);
    }

    #[test]
    fn the_title_of_an_excluded_application_is_not_even_read() {
        let mut bench = bench(vec![(0, window("Editor")), (10_000, window("keepassxc"))], Ok(Counts::default()), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(20);
        assert!(bench.spies.titles.lock().unwrap().iter().all(|class| class == "Editor"));
        assert!(!bench.spies.titles.lock().unwrap().is_empty());
    }

    #[test]
    fn each_record_goes_under_what_held_when_it_was_made() {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(3);
        bench.policy(2, Policy { titles: false, ..policy() });
        bench.seconds(3);
        bench.work.stop();
        let closed = bench.closed();
        for closed in &closed {
            for record in &closed.records {
                if let Kind::Focus(focus) = &record.kind {
                    assert_eq!(focus.title.is_some(), closed.context.policy == version(1), "{closed:?}");
                }
            }
        }
        let focus = closed.iter().flat_map(|closed| &closed.records).filter(|record| record.kind_name() == "focus").count();
        assert_eq!(focus, 2, "{closed:?}");
    }

    #[test]
    fn a_step_of_the_wall_clock_leaves_each_span_in_a_batch_of_its_own_time() {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(5);
        bench.closed();
        let before = bench.clock.now().wall_ms;
        bench.clock.set_wall(before - 3_600_000);
        bench.seconds(5);
        bench.work.stop();
        let closed = bench.closed();
        assert_eq!(
            closed.iter().map(|closed| (closed.new_spools, closed.closed_at.wall_ms)).collect::<Vec<_>>(),
            [(true, before), (false, before - 3_600_000 + 5_000)]
        );
        for closed in closed {
            assert!(closed.records.iter().all(|record| (closed.closed_at.wall_ms - record.at) < 60_000), "{closed:?}");
            assert!(closed.records.iter().any(|record| record.kind_name() == "focus"), "{closed:?}");
        }
    }

    #[test]
    fn a_sense_that_fails_is_told_once_and_comes_back() {
        let lost = || Err(SenseError::Lost("the connection broke".into()));
        let mut bench =
            bench(vec![(0, window("Editor")), (5_000, lost()), (20_000, window("Editor"))], Err(SenseError::NotSupported("no".into())), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(60);
        bench.work.stop();
        let records = bench.records();
        let told = capabilities(&records);
        let of = |what: &str| told.iter().filter(|(name, _)| *name == what).map(|(_, able)| *able).collect::<Vec<_>>();
        assert_eq!(of("window"), [true, false, true], "{told:?}");
        assert_eq!(of("input"), [false], "{told:?}");
        assert_eq!(bench.spies.asked[2].load(Ordering::Relaxed), 0, "what isn't supported is not asked hot");
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told() {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 1);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.seconds(5);
        let lost = bench.work.lost[0].records;
        assert!(lost > 0);
        bench.records();
        bench.seconds(70);
        let told: Vec<u64> =
            bench.records().iter().filter_map(|record| if let Kind::Gap(gap) = &record.kind { Some(gap.records) } else { None }).collect();
        assert_eq!(told, [lost]);
    }

    #[test]
    fn a_restart_keeps_the_policy_the_notice_and_the_pause() {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 64);
        bench.policy(1, policy());
        bench.seconds(1);
        bench.read_notice();
        bench.work.day.pause(bench.clock.now(), None);
        bench.seconds(1);
        let again = Standing::new(bench.dir.path());
        assert_eq!(again.in_force().unwrap().policy, policy());
        assert_eq!(again.acknowledged().as_ref(), bench.work.day.acknowledged());
        assert_eq!(again.pausing(bench.clock.now(), BootId([3; 16])), bench.work.day.pausing());
    }

    /// A bench whose pictures come from a script.
    fn photographed(policy: Policy) -> (Bench, shots::tests::Script) {
        let mut bench = bench(vec![(0, window("Editor"))], Ok(Counts::default()), 64);
        let film = shots::tests::Script::default();
        let camera = Box::new(film.clone());
        bench.work.shots = Shots::with_chance(bench.dir.path(), shots::Narrowing::default(), Some(camera), shots::tests::at_once());
        let now = bench.clock.now();
        bench.work.day.set_served(Switch::Pictures, bench.work.shots.serves(), now);
        bench.policy(1, policy);
        bench.seconds(1);
        bench.read_notice();
        (bench, film)
    }

    #[test]
    fn a_detailed_log_is_the_windows_until_now_and_a_batch_per_picture() {
        let mut policy = shots::tests::logs(1);
        policy.hours = muster_mesh::policy::WorkingHours::parse("mon-sun", "08:01", "24:00").unwrap();
        // The hours begin with the first minute in which a log can be due.
        let (mut bench, film) = photographed(policy);
        bench.seconds(58);
        assert_eq!(film.0.lock().unwrap().asked.len(), 0);
        bench.seconds(2);
        film.0.lock().unwrap().answers.push_back(Ok(vec![shots::tests::picture(1), shots::tests::picture(2)]));
        bench.seconds(5);
        let closed = bench.closed();
        let pictures: Vec<&Closed> = closed.iter().filter(|closed| closed.lane == Lane::Pictures).collect();
        assert_eq!(pictures.iter().map(|closed| (closed.records.len(), closed.context.policy)).collect::<Vec<_>>(), [(1, version(1)); 2]);
        assert_eq!(bench.work.snapshot().observed[3], 2, "they count among what was observed");
    }

    #[test]
    fn a_pause_throws_the_picture_away_before_anybody_sees_it() {
        let (mut bench, film) = photographed(shots::tests::every_15_s());
        bench.seconds(17);
        assert_eq!(film.0.lock().unwrap().asked.len(), 1);
        film.0.lock().unwrap().answers.push_back(Ok(vec![shots::tests::picture(7)]));
        bench.seconds(1);
        bench.work.day.pause(bench.clock.now(), None);
        let now = bench.clock.now();
        bench.work.tick(now);
        bench.work.day.resume();
        bench.seconds(5);
        let records = bench.records();
        assert!(records.iter().all(|record| record.kind_name() != "screenshot"));
        let told: Vec<GapReason> =
            records.iter().filter_map(|record| if let Kind::Gap(gap) = &record.kind { Some(gap.reason) } else { None }).collect();
        assert_eq!(told, [GapReason::Paused]);
    }

    #[test]
    fn pictures_that_nobody_read_about_are_not_taken() {
        let (mut bench, film) = photographed(policy());
        bench.policy(2, shots::tests::every_15_s());
        bench.seconds(60);
        assert_eq!(film.0.lock().unwrap().asked.len(), 0);
        bench.read_notice();
        bench.seconds(17);
        assert_eq!(film.0.lock().unwrap().asked.len(), 1);
    }

    #[tokio::test]
    async fn the_running_collector_answers_and_its_last_batch_says_stop() {
        let clock = clock();
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut batches) = mpsc::channel(64);
        let (parts, Spies { in_force, .. }) = Scripts::new(vec![(0, window("Editor"))]).parts(&clock, dir.path(), sender);
        let collector = Collector::start(parts).unwrap();
        let asker = collector.asker();
        assert_eq!(asker.notice().await.unwrap_err(), AskError::NoPolicy);
        in_force.send_replace(Some(PolicyInForce { version: version(1), policy: policy(), erasure: version(0) }));
        asker.resume().await.unwrap();
        let notice = asker.notice().await.unwrap();
        assert_eq!(asker.acknowledge([0; 32]).await, Err(AskError::Changed));
        asker.acknowledge(notice.notice.sha256).await.unwrap();
        asker.pause(Some(5)).await.unwrap();
        clock.advance(1_000);
        asker.resume().await.unwrap();
        assert_eq!(asker.snapshot().borrow().state, State::Active);
        tokio::task::spawn_blocking(move || collector.stop()).await.unwrap();
        let mut last = Vec::new();
        while let Some(closed) = batches.recv().await {
            last = closed.records;
        }
        assert!(last.iter().any(|record| matches!(record.kind, Kind::Session(muster_mesh::record::Session::Stop))), "{last:?}");
        assert_eq!(asker.notice().await.unwrap_err(), AskError::Stopping);
    }
}
