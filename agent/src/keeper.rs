//! Blocking: the thread that owns an agent's spool: it numbers, seals and commits what was collected, and serves the uplink from it.
//!
//! Whoever waits for something to send asks once and is answered when there is something. One thread may keep the spools of many agents: a
//! laptop has one, the swarm has thousands.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use muster_mesh::{
    batch::{SealError, Tail},
    chance,
    clock::Clock,
    ids::{DeviceId, Lane, SpoolId},
    limits,
    link::agent_side::{AgentSide, Rules},
    message::{Ack, HubAck, LaneState, Returned, Welcome},
    queue::directory::{Directory, DirectoryError},
    ranges::Ranges,
    record::{Gap, GapReason, Kind, Record},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::{
    batcher::Closed,
    journal::SharedJournal,
    spool::{BatchContext, Birth, Incident, Sealed, Sizes, Spool, SpoolError},
};

/// What is due is looked for this often.
const TICK: Duration = Duration::from_secs(1);
/// Requests that are taken together, before what they brought is committed and answered.
const BURST_MAX: usize = 1_024;
/// Between two attempts to open a folder again, or to find room on a full disk.
const RETRY_MS: u64 = 2_000;
/// Between two looks whether a disk that had no room for pictures has some.
const PICTURES_RETRY_MS: u64 = 10_000;
/// A segment is closed at this age.
const ROLL_EVERY_MS: u64 = 24 * 3_600 * 1_000;
/// The last dial, beside the telemetry lane's segments.
const DIAL: &str = "dial";

// --- the thread ---

/// A thread that keeps spools.
pub struct Keepers {
    requests: Sender<ToThread>,
    next: AtomicUsize,
    thread: JoinHandle<()>,
}

/// Opens both lanes' folders, at the start and after a disk error.
pub type OpenFolders<D> = Box<dyn FnMut() -> Result<[D; 2], DirectoryError> + Send>;

/// One agent's spool, and what it needs.
pub struct Plan<D> {
    pub device: DeviceId,
    pub open: OpenFolders<D>,
    pub sizes: Sizes,
    /// In force until the first batch brings its own.
    pub context: BatchContext,
    pub clock: Arc<dyn Clock>,
    pub journal: Option<SharedJournal>,
    /// Whether [`Keeper::view`] is kept up to date: each change costs a copy.
    pub shown: bool,
}

enum ToThread {
    Add(usize, Opening),
    Ask(usize, Request),
    Remove(usize),
    Stop,
}

type Opening = Box<dyn FnOnce() -> Option<Box<dyn Owner>> + Send>;

/// One spool with its owner's duties, whatever folder it lies in.
trait Owner: Send {
    fn apply(&mut self, request: Request);
    /// Commits and answers what the requests before it brought.
    fn settle(&mut self);
    fn tick(&mut self);
}

impl Keepers {
    /// `clock` says when something is due for all of them.
    pub fn start(clock: Arc<dyn Clock>) -> io::Result<Keepers> {
        let (requests, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || keep(&inbox, &*clock))?;
        Ok(Keepers { requests, next: AtomicUsize::new(0), thread })
    }

    /// Opens a spool on the thread, which then keeps it. Blocks until it is open.
    pub fn add<D: Directory + Send + 'static>(&self, plan: Plan<D>) -> Result<Keeper, SpoolError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, opened) = mpsc::sync_channel(1);
        let (device, clock) = (plan.device, plan.clock.clone());
        let opening: Opening = Box::new(move || match Kept::open(plan) {
            Ok(kept) => {
                // Whoever waits below is still there.
                let _ = answer.send(Ok(kept.view.subscribe()));
                Some(Box::new(kept))
            }
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        });
        let ended = || SpoolError::Disk(DirectoryError::Io(io::Error::other("the keeper's thread ended")));
        self.requests.send(ToThread::Add(number, opening)).map_err(|_| ended())?;
        let view = opened.recv().map_err(|_| ended())??;
        let rooms = [limits::KEEPER_INBOX_MAX, limits::KEEPER_HEARD_MAX].map(|most| Arc::new(Semaphore::new(most)));
        Ok(Keeper { number, device, clock, requests: self.requests.clone(), rooms, view })
    }

    /// Commits what was put, then ends the thread. Blocks until it has ended.
    pub fn stop(self) {
        // It has ended already: that is what is wanted.
        let _ = self.requests.send(ToThread::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the keeper's thread broke");
        }
    }
}

fn keep(inbox: &Receiver<ToThread>, clock: &dyn Clock) {
    let mut owners: BTreeMap<usize, Box<dyn Owner>> = BTreeMap::new();
    let mut ticked_ms = 0;
    loop {
        let mut burst = Vec::new();
        match inbox.recv_timeout(TICK) {
            Ok(first) => burst.push(first),
            Err(RecvTimeoutError::Timeout) => ticked_ms = 0,
            Err(RecvTimeoutError::Disconnected) => return,
        }
        burst.extend(inbox.try_iter().take(BURST_MAX));
        let stop = apply(burst, &mut owners);
        if stop {
            apply(inbox.try_iter().collect(), &mut owners);
            return;
        }
        let now_ms = clock.now().boot_ms;
        if ticked_ms == 0 || u128::from(now_ms.saturating_sub(ticked_ms)) >= TICK.as_millis() {
            ticked_ms = now_ms.max(1);
            owners.values_mut().for_each(|owner| owner.tick());
        }
    }
}

/// True: the thread is to end.
fn apply(burst: Vec<ToThread>, owners: &mut BTreeMap<usize, Box<dyn Owner>>) -> bool {
    let (mut touched, mut stop) = (BTreeSet::new(), false);
    for message in burst {
        match message {
            ToThread::Add(number, opening) => owners.extend(opening().map(|owner| (number, owner))),
            ToThread::Ask(number, request) => {
                if let Some(owner) = owners.get_mut(&number) {
                    owner.apply(request);
                    touched.insert(number);
                }
            }
            ToThread::Remove(number) => drop(owners.remove(&number)),
            ToThread::Stop => stop = true,
        }
    }
    for number in touched {
        if let Some(owner) = owners.get_mut(&number) {
            owner.settle();
        }
    }
    stop
}

// --- the way to one spool ---

/// The way to one agent's spool. Clones lead to the same.
#[derive(Clone)]
pub struct Keeper {
    number: usize,
    device: DeviceId,
    clock: Arc<dyn Clock>,
    requests: Sender<ToThread>,
    /// For batches, and for what a relay says.
    rooms: [Arc<Semaphore>; 2],
    view: watch::Receiver<Arc<AgentSide>>,
}

/// The keeper's thread has ended, or could not keep what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent's queue can't be used now")]
pub struct Unkept;

/// What a Hello says of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialling {
    /// Stored already.
    pub dial: u64,
    pub tails: Vec<Tail>,
}

/// Why a connection can't go on, seen from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The relay acked what was never sent.
    Relay,
    /// The disk failed: what was told to this relay is forgotten here.
    Disk,
}

/// How the queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Per lane: batches that the hub lacks as far as known, and how many of them the connected relay has.
    pub waiting: [(u64, u64); 2],
    /// Per lane: bytes on the disk.
    pub bytes: [u64; 2],
    pub disk_full: bool,
}

enum Request {
    Keep(Box<Closed>, OwnedSemaphorePermit),
    Dialling(oneshot::Sender<Dialling>),
    Welcome(usize, Box<Welcome>, oneshot::Sender<Fault>),
    Disconnected,
    NextRun(Lane, oneshot::Sender<Vec<Bytes>>),
    NextHolding(oneshot::Sender<Tail>),
    Heard(Heard, OwnedSemaphorePermit),
    NewestTails(oneshot::Sender<Vec<Tail>>),
    Delivered(oneshot::Sender<()>),
    Cloned,
    Standing(oneshot::Sender<Standing>),
}

/// What a relay says about batches.
#[derive(Debug)]
pub enum Heard {
    Ack(Ack),
    Returned(Returned),
    Lane(Lane, LaneState),
    /// The hub's ack, under the hub's epoch.
    Hub(SpoolId, u32, HubAck),
}

impl Keeper {
    pub fn device(&self) -> DeviceId {
        self.device
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Keeps a batch; waits while enough wait for the disk already.
    pub async fn keep(&self, closed: Closed) -> Result<(), Unkept> {
        let room = self.rooms[0].clone().acquire_owned().await.map_err(|_| Unkept)?;
        self.send(Request::Keep(Box::new(closed), room))
    }

    /// As the queue stands now: where each number is. As of the last change.
    pub fn view(&self) -> Arc<AgentSide> {
        self.view.borrow().clone()
    }

    pub async fn standing(&self) -> Result<Standing, Unkept> {
        self.ask(Request::Standing).await
    }

    /// Waits until the connected relay or the hub has everything that was kept before.
    pub async fn delivered(&self) -> Result<(), Unkept> {
        self.ask(Request::Delivered).await
    }

    /// The thread forgets this spool; what lies on the disk stays.
    pub fn remove(&self) {
        // The thread has ended already: that is what is wanted.
        let _ = self.requests.send(ToThread::Remove(self.number));
    }

    // --- for the uplink ---

    /// A new dial, stored, and the tails for its Hello.
    pub async fn dialling(&self) -> Result<Dialling, Unkept> {
        self.ask(Request::Dialling).await
    }

    /// The relay with this number of its own says welcome. The answer comes when the connection can't go on.
    pub fn welcome(&self, relay: usize, welcome: Welcome) -> Result<oneshot::Receiver<Fault>, Unkept> {
        let (fault, faulty) = oneshot::channel();
        self.send(Request::Welcome(relay, Box::new(welcome), fault))?;
        Ok(faulty)
    }

    pub fn disconnected(&self) {
        // Without the thread there is nothing to forget.
        let _ = self.send(Request::Disconnected);
    }

    /// The next envelopes for a lane, when there are some. They count as sent.
    pub async fn next_run(&self, lane: Lane) -> Result<Vec<Bytes>, Unkept> {
        self.ask(|answer| Request::NextRun(lane, answer)).await
    }

    /// The next tail that the relay should hear of, when there is one.
    pub async fn next_holding(&self) -> Result<Tail, Unkept> {
        self.ask(Request::NextHolding).await
    }

    /// Something that the relay said; waits while enough of it waits already.
    pub async fn heard(&self, heard: Heard) -> Result<(), Unkept> {
        let room = self.rooms[1].clone().acquire_owned().await.map_err(|_| Unkept)?;
        self.send(Request::Heard(heard, room))
    }

    pub async fn newest_tails(&self) -> Result<Vec<Tail>, Unkept> {
        self.ask(Request::NewestTails).await
    }

    /// Another computer seems to have this identity: new spools begin, so that no number can mean two things.
    pub fn cloned(&self) {
        // Without the thread no number is given either.
        let _ = self.send(Request::Cloned);
    }

    fn send(&self, request: Request) -> Result<(), Unkept> {
        self.requests.send(ToThread::Ask(self.number, request)).map_err(|_| Unkept)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Unkept> {
        let (answer, answered) = oneshot::channel();
        self.send(request(answer))?;
        answered.await.map_err(|_| Unkept)
    }
}

// --- one spool ---

struct Kept<D> {
    plan: Plan<D>,
    /// None: the disk failed, and the folders are to be opened again.
    spool: Option<Spool<D>>,
    pending: VecDeque<(Closed, OwnedSemaphorePermit)>,
    runs: [Option<oneshot::Sender<Vec<Bytes>>>; 2],
    holding: Option<oneshot::Sender<Tail>>,
    delivered: Vec<oneshot::Sender<()>>,
    fault: Option<oneshot::Sender<Fault>>,
    relay: usize,
    disk_full: bool,
    /// The disk had no room for pictures when this was looked for last (boot clock): none is kept, and each is counted.
    no_pictures_since_ms: Option<u64>,
    /// Pictures that were dropped, and no gap says so yet.
    dropped: Dropped,
    retried_ms: u64,
    rolled_ms: u64,
    view: watch::Sender<Arc<AgentSide>>,
    changed: bool,
}

#[derive(Debug, Default)]
struct Dropped {
    records: u64,
    bytes: u64,
}

impl<D: Directory + Send + 'static> Kept<D> {
    fn open(mut plan: Plan<D>) -> Result<Self, SpoolError> {
        let (spool, incidents) = open_spool(&mut plan)?;
        let now_ms = plan.clock.now().boot_ms;
        let view = watch::Sender::new(Arc::new(spool.side().clone()));
        let kept = Kept {
            plan,
            spool: Some(spool),
            pending: VecDeque::new(),
            runs: [None, None],
            holding: None,
            delivered: Vec::new(),
            fault: None,
            relay: 0,
            disk_full: false,
            no_pictures_since_ms: None,
            dropped: Dropped::default(),
            retried_ms: now_ms,
            rolled_ms: now_ms,
            view,
            changed: false,
        };
        kept.tell(incidents);
        Ok(kept)
    }

    /// Does something with the spool, if it can be used; what fails is seen to.
    fn with<T>(&mut self, act: impl FnOnce(&mut Spool<D>) -> Result<T, SpoolError>) -> Option<T> {
        let done = act(self.spool.as_mut()?);
        self.changed = true;
        done.map_err(|error| self.failed(error)).ok()
    }

    fn failed(&mut self, error: SpoolError) {
        self.retried_ms = self.plan.clock.now().boot_ms;
        match error {
            SpoolError::Disk(DirectoryError::Full) => {
                if !self.disk_full {
                    tracing::warn!("the disk is full: pictures go first, and what is collected waits in memory");
                }
                self.disk_full = true;
            }
            SpoolError::Disk(error) => {
                tracing::error!(%error, "the agent's queue failed: it is opened again");
                self.context_stays();
                self.spool = None;
                self.runs = [None, None];
                self.holding = None;
                if let Some(fault) = self.fault.take() {
                    // The connection may be over already.
                    let _ = fault.send(Fault::Disk);
                }
            }
            SpoolError::Seal(error) => tracing::error!(%error, "a batch of the queue's own can't be sealed"),
        }
    }

    fn context_stays(&mut self) {
        if let Some(spool) = &self.spool {
            self.plan.context = spool.context().clone();
        }
    }

    fn tell(&self, incidents: Vec<Incident>) {
        for incident in incidents {
            match &incident {
                Incident::Clone { spool, number } => {
                    tracing::error!(%spool, number, "another computer has this identity, or a copy of this disk was put back: new spools were begun");
                }
                Incident::Dropped { lane, reason, batches } => {
                    tracing::warn!(%lane, reason = reason.name(), batches, "batches were dropped, and a gap says so")
                }
            }
            if let Some(journal) = &self.plan.journal {
                journal.lock().unwrap_or_else(PoisonError::into_inner).incident(&incident);
            }
        }
    }

    // --- batches ---

    fn commit(&mut self) {
        self.stop_pictures_in_time();
        while !self.pending.is_empty() && self.spool.is_some() && !self.disk_full {
            let before = self.pending.len();
            let committed = self.commit_group();
            if committed {
                self.budget();
            }
            if self.pending.len() == before {
                break;
            }
        }
        self.tell_dropped();
    }

    // --- a disk without room: pictures stop first ---

    fn stop_pictures_in_time(&mut self) {
        let is_picture = |(closed, _): &(Closed, OwnedSemaphorePermit)| closed.lane == Lane::Pictures;
        if !self.pending.iter().any(is_picture) {
            return;
        }
        let has_room = self.spool.as_mut().is_none_or(Spool::has_room_for_pictures);
        if self.disk_full || self.no_pictures_since_ms.is_some() || !has_room {
            self.stop_pictures();
        }
    }

    /// Those that wait are dropped and counted, so that nothing waits behind them.
    fn stop_pictures(&mut self) {
        if self.no_pictures_since_ms.is_none() {
            tracing::warn!("the disk has no room for pictures: none is kept until it has, and each is counted");
            self.no_pictures_since_ms = Some(self.plan.clock.now().boot_ms);
        }
        let mut new_spools = false;
        for (closed, room) in std::mem::take(&mut self.pending) {
            if closed.lane == Lane::Pictures {
                self.dropped.records += closed.records.len() as u64;
                self.dropped.bytes += muster_mesh::record::encode(&closed.records).len() as u64;
                new_spools |= closed.new_spools;
            } else {
                let new_spools = std::mem::take(&mut new_spools) || closed.new_spools;
                self.pending.push_back((Closed { new_spools, ..closed }, room));
            }
        }
        if new_spools {
            // Nothing behind it brings them.
            let birth = birth(&*self.plan.clock);
            self.with(|spool| spool.begin(birth));
        }
    }

    /// As soon as it can be committed.
    fn tell_dropped(&mut self) {
        if self.dropped.records == 0 || self.disk_full {
            return;
        }
        let (now, Dropped { records, bytes }) = (self.plan.clock.now(), &self.dropped);
        let (records, bytes) = (*records, *bytes);
        if self.with(|spool| spool.note_dropped(Lane::Pictures, records, bytes, now)).is_some() {
            self.dropped = Dropped::default();
            self.tell(vec![Incident::Dropped { lane: Lane::Pictures, reason: GapReason::Budget, batches: records }]);
        }
    }

    fn try_pictures_again(&mut self) {
        let (now_ms, birth) = (self.plan.clock.now().boot_ms, birth(&*self.plan.clock));
        self.no_pictures_since_ms = Some(now_ms);
        let Some(spool) = self.spool.as_mut().filter(|_| !self.disk_full) else { return };
        self.changed = true;
        if !spool.has_room_for_pictures() {
            return;
        }
        // A new spool leaves the numbers whose commit failed, and its file finds out whether there is room.
        match spool.begin_lane(Lane::Pictures, birth) {
            Ok(()) => {
                tracing::info!("the disk has room for pictures again");
                self.no_pictures_since_ms = None;
            }
            Err(SpoolError::Disk(DirectoryError::Full)) => {}
            Err(error) => self.failed(error),
        }
    }

    fn budget(&mut self) {
        let now = self.plan.clock.now();
        if let Some(incidents) = self.with(|spool| spool.keep_budget(now)) {
            self.tell(incidents);
        }
    }

    /// Batches of one lane, one behind the other, in one transaction.
    fn commit_group(&mut self) -> bool {
        let Some((first, _)) = self.pending.front_mut() else { return false };
        let lane = first.lane;
        if std::mem::take(&mut first.new_spools) {
            let birth = birth(&*self.plan.clock);
            if self.with(|spool| spool.begin(birth)).is_none() {
                return false;
            }
        }
        let Some(spool) = &mut self.spool else { return false };
        let (mut group, mut bytes) = (Vec::new(), 0);
        for (place, (closed, _)) in self.pending.iter().enumerate() {
            let joins = closed.lane == lane && (place == 0 || !closed.new_spools);
            if !joins || place >= limits::COMMIT_ENVELOPES_MAX || bytes >= limits::COMMIT_BYTES_MAX {
                break;
            }
            spool.set_context(closed.context.clone());
            match spool.seal_behind(place, lane, closed.records.clone(), closed.closed_at) {
                Ok(sealed) => {
                    bytes += sealed.envelope.bytes().len();
                    group.push(sealed);
                }
                Err(SpoolError::Seal(error)) if place == 0 => return self.unsealable(error),
                // What came before it is committed first.
                Err(_) => break,
            }
        }
        self.commit_sealed(lane, &group)
    }

    fn commit_sealed(&mut self, lane: Lane, group: &[Sealed]) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let committed = spool.commit_all(lane, group);
        self.changed = true;
        if let Err(error) = committed {
            match error {
                SpoolError::Disk(DirectoryError::Full) if lane == Lane::Pictures => self.stop_pictures(),
                error => self.failed(error),
            }
            return false;
        }
        metrics::counter!("muster_agent_batches_total", "lane" => lane.name()).increment(group.len() as u64);
        self.pending.drain(..group.len());
        true
    }

    /// A fault of this program: the records are lost, and a gap says how many.
    fn unsealable(&mut self, error: SealError) -> bool {
        let Some((closed, _)) = self.pending.front_mut() else { return false };
        let is_gap = matches!(closed.records.as_slice(), [Record { kind: Kind::Gap(_), .. }]);
        if closed.records.is_empty() || is_gap {
            self.pending.pop_front();
            return false;
        }
        tracing::error!(%error, records = closed.records.len(), "a batch can't be sealed: a gap stands for it");
        let gap = Gap { lane: closed.lane, numbers: None, records: closed.records.len() as u64, bytes: 0, reason: GapReason::Overflow };
        closed.records = vec![Record { at: closed.closed_at.wall_ms, kind: Kind::Gap(gap) }];
        self.commit_group()
    }

    // --- the connection ---

    fn dialling(&mut self) -> Option<Dialling> {
        let wall_ms = u64::try_from(self.plan.clock.now().wall_ms).unwrap_or(0);
        self.with(|spool| {
            let directory = spool.directory(Lane::Telemetry);
            let last = directory.file(DIAL)?.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
            let dial = wall_ms.max(last.map_or(0, |last| last.saturating_add(1)));
            directory.put_file(DIAL, &dial.to_le_bytes(), true)?;
            Ok(Dialling { dial, tails: spool.side_mut().hello_tails() })
        })
    }

    fn welcome(&mut self, relay: usize, welcome: &Welcome, fault: oneshot::Sender<Fault>) {
        self.relay = relay;
        self.fault = Some(fault);
        let birth = birth(&*self.plan.clock);
        match self.with(|spool| spool.on_welcome(relay, welcome, birth)) {
            Some(incidents) => self.tell(incidents),
            // A welcome that nobody could note is none.
            None => self.end(Fault::Disk),
        }
    }

    fn end(&mut self, fault: Fault) {
        if let Some(connection) = self.fault.take() {
            // The connection may be over already.
            let _ = connection.send(fault);
        }
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Ack(ack) => self.acked(ack),
            Heard::Returned(returned) => {
                if let Some(journal) = &self.plan.journal {
                    let numbers: Ranges = returned.numbers.iter().copied().collect();
                    journal.lock().unwrap_or_else(PoisonError::into_inner).returned(numbers.count());
                }
                self.with(|spool| {
                    spool.on_returned(&returned);
                    Ok(())
                });
            }
            Heard::Lane(lane, state) => {
                self.with(|spool| {
                    spool.side_mut().on_lane(lane, state);
                    Ok(())
                });
            }
            Heard::Hub(spool, epoch, ack) => self.hub_acked(spool, epoch, &ack),
        }
    }

    fn acked(&mut self, ack: Ack) {
        let Some(acked) = self.with(|spool| Ok(spool.on_ack(ack.lane, ack.count))) else { return };
        match acked {
            Ok(numbers) => {
                if let Some(journal) = self.plan.journal.as_ref().filter(|_| !numbers.is_empty()) {
                    journal.lock().unwrap_or_else(PoisonError::into_inner).relay(self.relay, &numbers);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the connection ends");
                self.end(Fault::Relay);
            }
        }
    }

    fn hub_acked(&mut self, spool: SpoolId, epoch: u32, ack: &HubAck) {
        let birth = birth(&*self.plan.clock);
        let Some(before) = self.spool.as_ref().map(|kept| kept.side().in_hub(spool)) else { return };
        let Some((_, incidents)) = self.with(|kept| kept.on_hub_ack(spool, epoch, ack, birth)) else { return };
        self.tell(incidents);
        let Some((journal, kept)) = self.plan.journal.as_ref().zip(self.spool.as_ref()) else { return };
        // What the ack says, not what is known behind it: a spool that is over is forgotten by now.
        let mut news: muster_mesh::ranges::Ranges = ack.stored.iter().copied().collect();
        news.subtract(&before);
        if epoch >= kept.side().epoch() && !(news.is_empty() && ack.shown.is_empty()) {
            journal.lock().unwrap_or_else(PoisonError::into_inner).hub(spool, &news, &ack.shown);
        }
    }

    /// Forgets the connection and whatever it still asked for.
    fn disconnected(&mut self) {
        self.fault = None;
        self.runs = [None, None];
        self.holding = None;
        if let Some(spool) = &mut self.spool {
            spool.on_disconnect();
            self.changed = true;
        }
    }

    // --- who waits ---

    fn serve_waiting(&mut self) {
        for lane in Lane::ALL {
            let Some(answer) = self.runs[lane.index()].take().filter(|answer| !answer.is_closed()) else { continue };
            match self.next_run(lane) {
                Some(run) if !run.is_empty() => {
                    // If the connection is gone, its end follows, and with it these don't count as sent any more.
                    let _ = answer.send(run);
                }
                Some(_) => self.runs[lane.index()] = Some(answer),
                None => {}
            }
        }
        if let Some(answer) = self.holding.take().filter(|answer| !answer.is_closed()) {
            match self.spool.as_mut().and_then(|spool| spool.side_mut().next_holding()) {
                Some(tail) => drop(answer.send(tail)),
                None => self.holding = Some(answer),
            }
        }
        if !self.delivered.is_empty() && self.is_delivered() {
            for answer in self.delivered.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    fn next_run(&mut self, lane: Lane) -> Option<Vec<Bytes>> {
        let now = self.plan.clock.now();
        let mut incidents = Vec::new();
        let run = self.with(|spool| spool.next_run(lane, limits::LANE_IN_FLIGHT_MAX, limits::KEEPER_RUN_BYTES, now, &mut incidents));
        self.tell(incidents);
        Some(run?.into_iter().map(|envelope| envelope.bytes().clone()).collect())
    }

    fn is_delivered(&self) -> bool {
        let Some(spool) = &self.spool else { return false };
        self.pending.is_empty() && Lane::ALL.into_iter().map(|lane| spool.side().backlog(lane)).all(|(held, branch)| held == branch)
    }

    fn standing(&self) -> Standing {
        let Some(spool) = &self.spool else { return Standing { disk_full: self.disk_full, ..Standing::default() } };
        Standing {
            waiting: Lane::ALL.map(|lane| spool.side().backlog(lane)),
            bytes: Lane::ALL.map(|lane| spool.queue(lane).used_bytes()),
            disk_full: self.disk_full,
        }
    }

    // --- what is due ---

    fn retry(&mut self) {
        self.retried_ms = self.plan.clock.now().boot_ms;
        if self.spool.is_none() {
            match open_spool(&mut self.plan) {
                Ok((spool, incidents)) => {
                    tracing::info!("the agent's queue is open again");
                    self.spool = Some(spool);
                    self.changed = true;
                    self.tell(incidents);
                }
                Err(error) => tracing::warn!(%error, "the agent's queue can't be opened yet"),
            }
            return;
        }
        let [freeing, beginning] = [birth(&*self.plan.clock), birth(&*self.plan.clock)];
        let freed = self.with(|spool| spool.free_pictures(freeing));
        self.tell(freed.flatten().into_iter().collect());
        // New files find out whether there is room; new spools leave the numbers whose commit failed.
        if self.spool.is_some() && self.with(|spool| spool.begin(beginning)).is_some() {
            tracing::info!("the disk has room again");
            self.disk_full = false;
            self.tell_dropped();
        }
    }

    fn roll(&mut self) {
        for lane in Lane::ALL {
            self.with(|spool| {
                let tail = spool.queue(lane).tail();
                let holds = tail.and_then(|tail| spool.queue(lane).segment(tail)).is_some_and(|sidecar| sidecar.count > 0);
                if holds { spool.roll(lane) } else { Ok(()) }
            });
        }
        self.with(Spool::tidy);
    }
}

impl<D: Directory + Send + 'static> Owner for Kept<D> {
    fn apply(&mut self, request: Request) {
        // Whoever asked may be gone: an answer that nobody takes is dropped.
        match request {
            Request::Keep(closed, room) => self.pending.push_back((*closed, room)),
            Request::Dialling(answer) => {
                // Its tails count everything that was put before.
                self.commit();
                if let Some(dialling) = self.dialling() {
                    let _ = answer.send(dialling);
                }
            }
            Request::Welcome(relay, welcome, fault) => self.welcome(relay, &welcome, fault),
            Request::Disconnected => self.disconnected(),
            Request::NextRun(lane, answer) => self.runs[lane.index()] = Some(answer),
            Request::NextHolding(answer) => self.holding = Some(answer),
            Request::Heard(heard, _room) => self.heard(heard),
            Request::NewestTails(answer) => {
                let tails = self.spool.as_ref().map(|spool| spool.side().newest_tails(limits::STATE_TAILS_MAX));
                let _ = answer.send(tails.unwrap_or_default());
            }
            Request::Delivered(answer) => self.delivered.push(answer),
            Request::Cloned => {
                let birth = birth(&*self.plan.clock);
                let incident = self.spool.as_ref().map(|spool| Incident::Clone { spool: spool.open_spool(Lane::Telemetry), number: 0 });
                self.with(|spool| spool.begin(birth));
                self.tell(incident.into_iter().collect());
            }
            Request::Standing(answer) => {
                // It speaks of everything that was put before.
                self.commit();
                let _ = answer.send(self.standing());
            }
        }
    }

    fn settle(&mut self) {
        self.commit();
        self.serve_waiting();
        if std::mem::take(&mut self.changed)
            && self.plan.shown
            && let Some(spool) = &self.spool
        {
            self.view.send_replace(Arc::new(spool.side().clone()));
        }
    }

    fn tick(&mut self) {
        let now_ms = self.plan.clock.now().boot_ms;
        if (self.spool.is_none() || self.disk_full) && now_ms.saturating_sub(self.retried_ms) >= RETRY_MS {
            self.retry();
        }
        if self.no_pictures_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= PICTURES_RETRY_MS) {
            self.try_pictures_again();
        }
        if now_ms.saturating_sub(self.rolled_ms) >= ROLL_EVERY_MS {
            self.rolled_ms = now_ms;
            self.roll();
        }
        if !self.pending.is_empty() || self.changed || !self.delivered.is_empty() {
            self.settle();
        }
    }
}

fn open_spool<D: Directory>(plan: &mut Plan<D>) -> Result<(Spool<D>, Vec<Incident>), SpoolError> {
    let folders = (plan.open)()?;
    let birth = birth(&*plan.clock);
    Spool::open_with(plan.device, folders, plan.sizes, plan.context.clone(), birth, Rules::default(), plan.journal.clone())
}

fn birth(clock: &dyn Clock) -> Birth {
    Birth { now: clock.now(), random: [chance::random_10(), chance::random_10()] }
}
