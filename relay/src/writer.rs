//! Blocking: the thread that owns one lane's buffer: what connections read becomes one commit, and only then do the acks go.
//!
//! In between it serves the sync and whoever asks. After a disk error the connections whose envelopes were read and not committed end, and
//! nothing more is acked before the folder was opened again. A full disk is no fault: posting and deleting go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use muster_mesh::{
    clock::Clock,
    ids::{DeviceId, Lane},
    limits,
    link::relay_side::ConnectionId,
    message::{Claim, CloseCode, LaneState, QueueState, ReturnReason},
    queue::{
        Position,
        directory::{Directory, DirectoryError, Entry},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    agents::Agents,
    buffer::{Buffer, Gone, Post},
    contents::{self, Contents},
};

/// How long the thread sleeps at most.
const TICK: Duration = Duration::from_secs(1);
/// Between two attempts to open a folder again, or to find room on a full disk.
const RETRY_MS: u64 = 2_000;
/// What nobody needs is deleted this often.
const FREE_EVERY_MS: u64 = 30_000;
/// A segment is closed at this age, so that it can be freed and backed up.
const ROLL_EVERY_MS: u64 = 24 * 3_600 * 1_000;
/// The budget is looked at after so many bytes, and once a second.
const WEIGH_BYTES: usize = 8 << 20;

/// The way to one lane's writer. Clones lead to the same.
#[derive(Clone)]
pub struct LaneInbox {
    lane: Lane,
    requests: Sender<Request>,
    /// Bytes that all connections together may have in this inbox.
    room: Arc<Semaphore>,
}

/// The writer's thread has ended: the program stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is closed")]
pub struct Closed;

/// What a connection read, on its way to the disk.
struct Run {
    connection: ConnectionId,
    entries: Vec<Entry>,
    bytes: usize,
    /// Given back when the run is committed or dropped.
    _room: [OwnedSemaphorePermit; 2],
}

/// What the next POST carries, and what every POST says of this queue.
pub struct Posting {
    pub post: Option<Post>,
    pub queue: QueueState,
    /// Envelopes that wait besides those.
    pub waiting: u64,
}

/// How a lane stands.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LaneStanding {
    pub lane: Lane,
    pub instance: String,
    pub answered: u64,
    pub segments: usize,
    pub waiting: u64,
    pub bytes: u64,
    pub full: bool,
    pub readable: bool,
}

enum Request {
    Run(Run),
    Claims(DeviceId, oneshot::Sender<Vec<Claim>>),
    Post(usize, oneshot::Sender<Posting>),
    Queue(oneshot::Sender<QueueState>),
    Taken { number: u64, returned: Vec<(u32, ReturnReason)> },
    Stale(u64),
    Failed,
    Rewind(u64, oneshot::Sender<()>),
    BackedUp(Option<u64>),
    Contents(Position, usize, oneshot::Sender<Contents>),
    Standing(oneshot::Sender<LaneStanding>),
    Stop,
}

impl LaneInbox {
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Hands a run to the writer; waits while this connection, or all of them, have enough there.
    pub async fn put(&self, connection: ConnectionId, own_room: &Arc<Semaphore>, entries: Vec<Entry>) -> Result<(), Closed> {
        let bytes: usize = entries.iter().map(|entry| entry.facts.len() + entry.envelope.bytes().len()).sum();
        let own = own_room.clone().acquire_many_owned(count(entries.len(), limits::LANE_INBOX_MAX)).await.map_err(|_| Closed)?;
        let shared = self.room.clone().acquire_many_owned(count(bytes, limits::LANES_INBOX_BYTES_MAX)).await.map_err(|_| Closed)?;
        self.send(Request::Run(Run { connection, entries, bytes, _room: [own, shared] }))
    }

    /// What lies here of a device, everything that was put before included.
    pub async fn claims(&self, device: DeviceId) -> Result<Vec<Claim>, Closed> {
        self.ask(|answer| Request::Claims(device, answer)).await
    }

    pub async fn post(&self, bytes_max: usize) -> Result<Posting, Closed> {
        self.ask(|answer| Request::Post(bytes_max, answer)).await
    }

    pub async fn queue(&self) -> Result<QueueState, Closed> {
        self.ask(Request::Queue).await
    }

    pub fn taken(&self, number: u64, returned: Vec<(u32, ReturnReason)>) -> Result<(), Closed> {
        self.send(Request::Taken { number, returned })
    }

    pub fn stale(&self, number: u64) -> Result<(), Closed> {
        self.send(Request::Stale(number))
    }

    pub fn failed(&self) -> Result<(), Closed> {
        self.send(Request::Failed)
    }

    /// Everything here is sent again; durable when this returns.
    pub async fn rewind(&self, number: u64) -> Result<(), Closed> {
        self.ask(|answer| Request::Rewind(number, answer)).await
    }

    /// The highest number of this lane's POSTs that every kept backup of the hub contains.
    pub fn backed_up(&self, number: Option<u64>) -> Result<(), Closed> {
        self.send(Request::BackedUp(number))
    }

    /// Headers of what lies here, from a position on.
    pub async fn contents(&self, from: Position, most: usize) -> Result<Contents, Closed> {
        self.ask(|answer| Request::Contents(from, most, answer)).await
    }

    pub async fn standing(&self) -> Result<LaneStanding, Closed> {
        self.ask(Request::Standing).await
    }

    /// Commits what was put, then ends the thread.
    pub fn stop(&self) {
        // It has ended already: that is what is wanted.
        let _ = self.send(Request::Stop);
    }

    fn send(&self, request: Request) -> Result<(), Closed> {
        self.requests.send(request).map_err(|_| Closed)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Closed> {
        let (answer, answered) = oneshot::channel();
        self.send(request(answer))?;
        answered.await.map_err(|_| Closed)
    }
}

/// A run larger than all the room takes all of it.
fn count(wanted: usize, most: usize) -> u32 {
    u32::try_from(wanted.min(most)).unwrap_or(u32::MAX)
}

/// Opens a lane's folder, at the start and after a disk error.
pub type Open<D> = Box<dyn FnMut() -> Result<Buffer<D>, DirectoryError> + Send>;

/// One lane's writer.
pub struct Writer<D> {
    lane: Lane,
    open: Open<D>,
    buffer: Option<Buffer<D>>,
    inbox: Receiver<Request>,
    agents: Arc<Agents>,
    clock: Arc<dyn Clock>,
    /// As last known; what every POST says also while the folder can't be read.
    queue: QueueState,
    /// Until the hub has said it, nothing counts as backed up.
    backed_up: Option<u64>,
    disk_full: bool,
    /// What the hub returned can't be disowned before there is room: nothing is posted until then.
    held_back: bool,
    state: LaneState,
    unweighed: usize,
    quarantined: u64,
    ticked_ms: u64,
    retried_ms: u64,
    freed_ms: u64,
    rolled_ms: u64,
}

impl<D: Directory + 'static> Writer<D> {
    /// Opens the folder on a thread of its own, which then owns it.
    pub fn start(
        lane: Lane,
        mut open: Open<D>,
        agents: Arc<Agents>,
        clock: Arc<dyn Clock>,
    ) -> Result<(LaneInbox, JoinHandle<()>), DirectoryError>
    where
        D: Send,
    {
        let (requests, inbox) = mpsc::channel();
        let (opened, first) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("buffer-{lane}")).spawn(move || {
            let buffer = match open() {
                Ok(buffer) => buffer,
                Err(error) => return drop(opened.send(Err(error))),
            };
            // Whoever waits for this either lives or has gone together with all senders.
            let _ = opened.send(Ok(()));
            Writer::new(lane, open, buffer, inbox, agents, clock).run();
        })?;
        first.recv().map_err(|_| io::Error::other("the buffer's thread ended"))??;
        let room = Arc::new(Semaphore::new(limits::LANES_INBOX_BYTES_MAX));
        Ok((LaneInbox { lane, requests, room }, thread))
    }

    fn new(lane: Lane, open: Open<D>, buffer: Buffer<D>, inbox: Receiver<Request>, agents: Arc<Agents>, clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.now().boot_ms;
        Writer {
            lane,
            open,
            queue: buffer.sync().queue_state(),
            buffer: Some(buffer),
            inbox,
            agents,
            clock,
            backed_up: Some(0),
            disk_full: false,
            held_back: false,
            state: LaneState::Open,
            unweighed: WEIGH_BYTES,
            quarantined: 0,
            ticked_ms: 0,
            retried_ms: now_ms,
            freed_ms: 0,
            rolled_ms: now_ms,
        }
    }

    fn run(mut self) {
        let mut stop = false;
        while !stop {
            let burst = self.next_burst();
            stop = burst.stop;
            self.commit(burst.runs);
            burst.asked.into_iter().for_each(|request| self.serve(request));
            self.look_after();
        }
    }

    /// Waits for something, then takes whatever came with it: as long as more is there, up to one commit's size, and not for longer than
    /// the first may wait.
    fn next_burst(&mut self) -> Burst {
        let mut burst = Burst::default();
        match self.inbox.recv_timeout(TICK) {
            Ok(first) => burst.add(first),
            Err(RecvTimeoutError::Timeout) => return burst,
            Err(RecvTimeoutError::Disconnected) => return Burst { stop: true, ..burst },
        }
        let began_ms = self.clock.now().boot_ms;
        while !burst.is_full() && u128::from(self.clock.now().boot_ms.saturating_sub(began_ms)) < limits::COMMIT_WAIT.as_millis() {
            match self.inbox.try_recv() {
                Ok(request) => burst.add(request),
                Err(_) => break,
            }
        }
        burst
    }

    /// One transaction; then, and only then, the acks.
    fn commit(&mut self, runs: Vec<Run>) {
        if runs.is_empty() {
            return;
        }
        let mut counts: BTreeMap<ConnectionId, u64> = BTreeMap::new();
        let (mut entries, mut bytes, mut rooms) = (Vec::new(), 0, Vec::new());
        for run in runs {
            *counts.entry(run.connection).or_default() += run.entries.len() as u64;
            bytes += run.bytes;
            entries.extend(run.entries);
            rooms.push(run._room);
        }
        let began_ms = self.clock.now().boot_ms;
        let committed = match &mut self.buffer {
            Some(buffer) if !self.disk_full => buffer.commit(&entries),
            Some(_) => Err(DirectoryError::Full),
            None => Err(DirectoryError::NoTail),
        };
        match committed {
            Ok(()) => {
                self.agents.committed(self.lane, &counts);
                self.unweighed += bytes;
                let lane = self.lane.name();
                metrics::counter!("muster_relay_committed_total", "lane" => lane).increment(entries.len() as u64);
                metrics::counter!("muster_relay_committed_bytes_total", "lane" => lane).increment(bytes as u64);
                let took_ms = self.clock.now().boot_ms.saturating_sub(began_ms);
                metrics::histogram!("muster_relay_commit_seconds", "lane" => lane).record(took_ms as f64 / 1_000.0);
            }
            Err(error) => {
                let ids: BTreeSet<ConnectionId> = counts.into_keys().collect();
                metrics::counter!("muster_relay_not_committed_total", "lane" => self.lane.name()).increment(entries.len() as u64);
                self.agents.not_committed(ids);
                self.failed(error);
            }
        }
    }

    fn serve(&mut self, request: Request) {
        // Whoever asked may be gone: an answer that nobody takes is dropped.
        match request {
            Request::Run(run) => self.commit(vec![run]),
            Request::Claims(device, answer) => {
                let claims = self.buffer.as_ref().map(|buffer| buffer.claims(device)).unwrap_or_default();
                let _ = answer.send(claims);
            }
            Request::Post(bytes_max, answer) => {
                let posting = self.post(bytes_max);
                if let Err(unsent) = answer.send(posting)
                    && unsent.post.is_some()
                    && let Some(buffer) = &mut self.buffer
                {
                    buffer.failed();
                }
            }
            Request::Queue(answer) => drop(answer.send(self.queue)),
            Request::Taken { number, returned } => self.taken(number, &returned),
            Request::Stale(number) => self.with(|buffer| {
                buffer.stale(number);
                Ok(())
            }),
            Request::Failed => self.with(|buffer| {
                buffer.failed();
                Ok(())
            }),
            Request::Rewind(number, answer) => {
                self.with(|buffer| buffer.rewind(number));
                let _ = answer.send(());
            }
            Request::BackedUp(number) => self.backed_up = number,
            Request::Contents(from, most, answer) => {
                let contents = self.buffer.as_mut().map(|buffer| contents::look(buffer.directory(), self.lane, from, most));
                let _ = answer.send(contents.unwrap_or_default());
            }
            Request::Standing(answer) => drop(answer.send(self.standing())),
            Request::Stop => {}
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Buffer<D>) -> Result<(), DirectoryError>) {
        let Some(buffer) = &mut self.buffer else { return };
        let acted = act(buffer);
        self.queue = buffer.sync().queue_state();
        if let Err(error) = acted {
            self.failed(error);
        }
    }

    fn post(&mut self, bytes_max: usize) -> Posting {
        let (mut next, mut waiting, mut gone, held_back) = (None, 0, Gone::default(), self.held_back);
        let now_ms = self.clock.now().wall_ms;
        self.with(|buffer| {
            let posted = if held_back { Ok(None) } else { buffer.post(bytes_max, now_ms, &mut gone) };
            waiting = buffer.backlog();
            next = posted?;
            Ok(())
        });
        self.agents.lost(gone);
        let carried = next.as_ref().map_or(0, |post| post.entries.len() as u64);
        Posting { post: next, queue: self.queue, waiting: waiting.saturating_sub(carried) }
    }

    fn taken(&mut self, number: u64, returned: &[(u32, ReturnReason)]) {
        let now_ms = self.clock.now().wall_ms;
        let mut gone = Gone::default();
        let mut is_noted = true;
        self.with(|buffer| {
            let taken = buffer.taken(number, returned, now_ms);
            is_noted = taken.is_ok();
            gone = taken?;
            Ok(())
        });
        // The same POST again and again would come to the same: it waits for room.
        self.held_back = !is_noted && self.disk_full;
        self.agents.lost(gone);
    }

    /// The disk said no.
    fn failed(&mut self, error: DirectoryError) {
        self.retried_ms = self.clock.now().boot_ms;
        match error {
            DirectoryError::Full => {
                if !self.disk_full {
                    tracing::warn!(lane = %self.lane, "the disk is full: agents keep what they have until there is room");
                }
                self.disk_full = true;
            }
            DirectoryError::Unreadable(_) | DirectoryError::NoTail | DirectoryError::Io(_) => {
                if self.buffer.take().is_some() {
                    tracing::error!(lane = %self.lane, %error, "the buffer's folder failed: it is opened again");
                }
            }
        }
        self.tell_state();
    }

    // --- what is due ---

    fn look_after(&mut self) {
        let now_ms = self.clock.now().boot_ms;
        let ticked = now_ms.saturating_sub(self.ticked_ms) >= TICK.as_millis() as u64;
        if (self.buffer.is_none() || self.disk_full) && now_ms.saturating_sub(self.retried_ms) >= RETRY_MS {
            self.retry(now_ms);
        }
        if now_ms.saturating_sub(self.rolled_ms) >= ROLL_EVERY_MS {
            self.rolled_ms = now_ms;
            self.with(Buffer::roll);
        }
        if ticked || self.unweighed >= WEIGH_BYTES {
            (self.ticked_ms, self.unweighed) = (now_ms, 0);
            let full = self.buffer.as_ref().is_some_and(Buffer::is_full);
            if full || now_ms.saturating_sub(self.freed_ms) >= FREE_EVERY_MS || self.freed_ms == 0 {
                self.freed_ms = now_ms.max(1);
                self.free();
            }
            self.tell_state();
        }
        if ticked {
            self.measure();
        }
    }

    fn free(&mut self) {
        let (backed_up, now_ms, mut freed) = (self.backed_up, self.clock.now().wall_ms, 0);
        self.with(|buffer| {
            // A tail that the hub has answered for is in the way as much as any other segment.
            if buffer.is_full() && !buffer.has_backlog() {
                buffer.roll()?;
            }
            freed = buffer.free(backed_up, now_ms)?;
            Ok(())
        });
        metrics::counter!("muster_relay_freed_segments_total", "lane" => self.lane.name()).increment(freed);
    }

    fn retry(&mut self, now_ms: u64) {
        self.retried_ms = now_ms;
        match &mut self.buffer {
            None => match (self.open)() {
                Ok(buffer) => {
                    tracing::info!(lane = %self.lane, "the buffer's folder is open again");
                    self.queue = buffer.sync().queue_state();
                    self.buffer = Some(buffer);
                    self.quarantined = 0;
                    // What was claimed before may have gone into quarantine.
                    self.agents.end_all_slowly(CloseCode::ClaimsChanged);
                }
                Err(error) => tracing::warn!(lane = %self.lane, %error, "the buffer's folder can't be opened yet"),
            },
            Some(buffer) => {
                let now_ms = self.clock.now().wall_ms;
                // A new file both finds out whether there is room and leaves the one whose last append failed.
                let room = buffer.free_answered(now_ms).and_then(|_| buffer.roll());
                match room {
                    Ok(()) => {
                        tracing::info!(lane = %self.lane, "the disk has room again");
                        (self.disk_full, self.held_back) = (false, false);
                    }
                    Err(DirectoryError::Full) => {}
                    Err(error) => self.failed(error),
                }
            }
        }
        self.tell_state();
    }

    fn tell_state(&mut self) {
        let full = self.disk_full || self.buffer.as_ref().is_none_or(Buffer::is_full);
        let state = if full { LaneState::Full } else { LaneState::Open };
        if state == self.state {
            return;
        }
        match state {
            LaneState::Full if self.buffer.as_ref().is_some_and(Buffer::is_full) => {
                tracing::warn!(lane = %self.lane, "the budget is used up by what the hub lacks: agents keep what they have until the hub takes it");
            }
            LaneState::Open => tracing::info!(lane = %self.lane, "agents are read again"),
            LaneState::Full | LaneState::Share => {}
        }
        self.state = state;
        self.agents.lane(self.lane, state);
    }

    fn measure(&mut self) {
        let lane = self.lane.name();
        let Some(buffer) = &self.buffer else { return };
        metrics::gauge!("muster_relay_backlog", "lane" => lane).set(buffer.backlog() as f64);
        metrics::gauge!("muster_relay_full", "lane" => lane).set(if self.state == LaneState::Full { 1.0 } else { 0.0 });
        metrics::gauge!("muster_relay_buffer_bytes", "lane" => lane).set(buffer.queue().used_bytes() as f64);
        let quarantined = buffer.quarantined();
        // Also by nothing: what begins at 0 is seen to rise.
        metrics::counter!("muster_relay_quarantined_segments_total", "lane" => lane)
            .increment(quarantined.saturating_sub(self.quarantined));
        if quarantined > self.quarantined {
            tracing::error!(
                lane,
                segments = quarantined - self.quarantined,
                "damaged segments were set aside: look into the folder `quarantine`"
            );
            self.quarantined = quarantined;
        }
    }

    fn standing(&self) -> LaneStanding {
        let buffer = self.buffer.as_ref();
        LaneStanding {
            lane: self.lane,
            instance: self.queue.instance.to_string(),
            answered: self.queue.answered,
            segments: buffer.map_or(0, |buffer| buffer.queue().segments().count()),
            waiting: buffer.map_or(0, Buffer::backlog),
            bytes: buffer.map_or(0, |buffer| buffer.queue().used_bytes()),
            full: self.state == LaneState::Full,
            readable: buffer.is_some(),
        }
    }
}

/// What came together.
#[derive(Default)]
struct Burst {
    runs: Vec<Run>,
    envelopes: usize,
    bytes: usize,
    /// Served after the commit, so that what was put before a question is in its answer.
    asked: Vec<Request>,
    stop: bool,
}

impl Burst {
    fn add(&mut self, request: Request) {
        match request {
            Request::Run(run) => {
                self.envelopes += run.entries.len();
                self.bytes += run.bytes;
                self.runs.push(run);
            }
            Request::Stop => self.stop = true,
            asked => self.asked.push(asked),
        }
    }

    fn is_full(&self) -> bool {
        self.envelopes >= limits::COMMIT_ENVELOPES_MAX || self.bytes >= limits::COMMIT_BYTES_MAX || self.stop
    }
}
