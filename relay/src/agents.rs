//! Async: everyone who is connected: the relay's side of all connections behind one lock, which is never held over an await, and a bell for
//! each connection.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use muster_mesh::{
    batch::{Envelope, Tail},
    chance,
    ids::{DeviceId, Lane},
    link::relay_side::{ConnectionId, RelaySide},
    message::{Ask, CloseCode, Down, HeldVersion, Hello, LaneState, Signed, SignedKind, Snapshot, StateNow},
    record::State,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::buffer::Gone;

/// Connections of a whole branch are ended over so long each, so that their agents don't come back together.
const END_EACH: Duration = Duration::from_millis(5);

/// All connected agents.
pub struct Agents {
    inner: Mutex<Inner>,
    next: AtomicU64,
    gates: [watch::Sender<LaneState>; 2],
}

struct Inner {
    side: RelaySide,
    bells: BTreeMap<ConnectionId, Arc<Bell>>,
}

/// How a connection's task is reached.
pub struct Bell {
    /// Something may be said to the agent.
    news: Notify,
    end: watch::Sender<Option<(CloseCode, Instant)>>,
    left: CancellationToken,
}

impl Bell {
    fn new() -> Bell {
        Bell { news: Notify::new(), end: watch::Sender::new(None), left: CancellationToken::new() }
    }

    /// Ends the connection after `delay`, or sooner if somebody wants it sooner.
    pub fn end(&self, code: CloseCode, delay: Duration) {
        let at = Instant::now() + delay;
        self.end.send_if_modified(|end| {
            let sooner = end.is_none_or(|(_, planned)| at < planned);
            if sooner {
                *end = Some((code, at));
            }
            sooner
        });
    }

    /// Waits until something may be said.
    pub async fn rung(&self) {
        self.news.notified().await;
    }

    /// Waits until the connection is to end.
    pub async fn ending(&self) -> CloseCode {
        let mut end = self.end.subscribe();
        loop {
            let planned = *end.borrow_and_update();
            let Some((code, at)) = planned else {
                // The sender lives in `self`, so this can't fail.
                let _ = end.changed().await;
                continue;
            };
            tokio::select! {
                () = sleep_until(at) => return code,
                _ = end.changed() => {}
            }
        }
    }

    /// Waits until nothing more of the connection goes into an inbox.
    pub async fn left(&self) {
        self.left.cancelled().await;
    }
}

/// A connection that is counted as present until this is dropped.
pub struct Registered {
    pub id: ConnectionId,
    pub bell: Arc<Bell>,
    agents: Arc<Agents>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.agents.gone(self.id);
        self.bell.left.cancel();
    }
}

impl Agents {
    /// The numbers of presence snapshots start at `first_snapshot`: a value that rises over restarts, such as the clock.
    pub fn new(first_snapshot: u64) -> Agents {
        let inner = Inner { side: RelaySide::new(first_snapshot), bells: BTreeMap::new() };
        Agents {
            inner: Mutex::new(inner),
            next: AtomicU64::new(1),
            gates: [watch::Sender::new(LaneState::Open), watch::Sender::new(LaneState::Open)],
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- connections ---

    /// An agent said hello. The second is the device's older connection, which was told to end.
    pub fn hello(self: &Arc<Self>, device: DeviceId, hello: &Hello, now_ms: i64) -> (Registered, Option<Arc<Bell>>) {
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let bell = Arc::new(Bell::new());
        let mut inner = self.lock();
        let older = inner.side.hello(id, device, hello, now_ms).and_then(|older| inner.bells.get(&older).cloned());
        inner.bells.insert(id, bell.clone());
        Lane::ALL.into_iter().for_each(|lane| inner.side.lane(lane, *self.gates[lane.index()].borrow()));
        drop(inner);
        if let Some(older) = &older {
            older.end(CloseCode::Replaced, Duration::ZERO);
        }
        (Registered { id, bell, agents: self.clone() }, older)
    }

    /// The lanes for the Welcome of this connection.
    pub fn welcomed(&self, id: ConnectionId) -> [LaneState; 2] {
        self.lock().side.welcomed(id)
    }

    fn gone(&self, id: ConnectionId) {
        let mut inner = self.lock();
        inner.side.gone(id);
        inner.bells.remove(&id);
    }

    pub fn count(&self) -> usize {
        self.lock().bells.len()
    }

    /// Devices that are connected now, by state.
    pub fn states(&self) -> BTreeMap<State, usize> {
        let mut states = BTreeMap::new();
        self.lock().side.states().for_each(|(_, state)| *states.entry(state).or_default() += 1);
        states
    }

    /// Ends every connection at once.
    pub fn end_all(&self, code: CloseCode) {
        self.lock().bells.values().for_each(|bell| bell.end(code, Duration::ZERO));
    }

    /// Ends every connection, one after another in the order of chance.
    pub fn end_all_slowly(&self, code: CloseCode) {
        let inner = self.lock();
        let span = END_EACH * u32::try_from(inner.bells.len()).unwrap_or(u32::MAX);
        inner.bells.values().for_each(|bell| bell.end(code, chance::jitter(span)));
    }

    // --- what an agent says ---

    pub fn holding(&self, id: ConnectionId, tail: &Tail) {
        self.lock().side.holding(id, tail);
    }

    pub fn state(&self, id: ConnectionId, state: StateNow) {
        self.lock().side.state(id, state);
    }

    /// A run of envelopes came. True: the address that they came from may be noted.
    pub fn received(&self, id: ConnectionId, device: DeviceId, run: &[Envelope]) -> bool {
        let mut inner = self.lock();
        run.iter().for_each(|envelope| inner.side.received(id, envelope.header().spool, envelope.header().seq));
        inner.side.network_is_on(device)
    }

    /// Waits until a lane is read again.
    pub async fn open(&self, lane: Lane) {
        let mut gate = self.gates[lane.index()].subscribe();
        // The sender lives in `self`, so this can't fail.
        let _ = gate.wait_for(|state| *state != LaneState::Full).await;
    }

    pub fn lane_state(&self, lane: Lane) -> LaneState {
        *self.gates[lane.index()].borrow()
    }

    /// The next message for an agent.
    pub fn next_control(&self, id: ConnectionId) -> Option<Down> {
        self.lock().side.next_control(id)
    }

    // --- what the buffers say ---

    /// So many more envelopes of each connection's lane lie on the disk.
    pub fn committed(&self, lane: Lane, more: &BTreeMap<ConnectionId, u64>) {
        let mut inner = self.lock();
        for (&id, &more) in more {
            inner.side.committed(id, lane, more);
            inner.ring(id);
        }
    }

    /// What these connections sent is lost on the way to the disk: they are never acked again, and end.
    pub fn not_committed(&self, ids: impl IntoIterator<Item = ConnectionId>) {
        let mut inner = self.lock();
        for id in ids {
            inner.side.gone(id);
            if let Some(bell) = inner.bells.get(&id) {
                bell.end(CloseCode::NotCommitted, Duration::ZERO);
            }
        }
    }

    /// Whether a lane is read.
    pub fn lane(&self, lane: Lane, state: LaneState) {
        self.gates[lane.index()].send_replace(state);
        let mut inner = self.lock();
        inner.side.lane(lane, state);
        inner.ring_all();
    }

    /// Numbers and files that are not here any more.
    pub fn lost(&self, gone: Gone) {
        let mut inner = self.lock();
        for (lost, why) in gone.returned {
            inner.side.returned(lost.device, lost.spool, lost.numbers.iter().collect(), why);
            inner.ring_device(lost.device);
        }
        for device in gone.devices {
            let bell = inner.side.connection_of(device).and_then(|id| inner.bells.get(&id));
            if let Some(bell) = bell {
                bell.end(CloseCode::ClaimsChanged, Duration::ZERO);
            }
        }
    }

    // --- what the hub says and is told ---

    /// The hub's acks, as they came.
    pub fn acks(&self, acks: Vec<Vec<u8>>) {
        let mut inner = self.lock();
        for bytes in acks {
            let Ok(signed) = Signed::read(&bytes) else { continue };
            // An answer's acks are acks: anything else belongs into its other list, and is not taken from here.
            if SignedKind::from_u8(signed.kind) != Some(SignedKind::Ack) {
                continue;
            }
            inner.side.signed(Bytes::from(bytes));
            if let Some(device) = signed.device {
                inner.ring_device(device);
            }
        }
    }

    /// Policies and whatever else is signed, and was believed.
    pub fn signed(&self, signed: Vec<Bytes>) {
        if signed.is_empty() {
            return;
        }
        let mut inner = self.lock();
        signed.into_iter().for_each(|bytes| inner.side.signed(bytes));
        inner.ring_all();
    }

    /// Of what is for all only these kinds are proven still.
    pub fn only(&self, held: &[HeldVersion]) {
        self.lock().side.only(held);
    }

    pub fn asks(&self, most: usize) -> Vec<Ask> {
        self.lock().side.asks(most)
    }

    pub fn versions(&self) -> Vec<HeldVersion> {
        self.lock().side.versions()
    }

    pub fn has_presence_news(&self) -> bool {
        self.lock().side.has_presence_news()
    }

    pub fn snapshot(&self, most: usize) -> Snapshot {
        self.lock().side.snapshot(most)
    }

    pub fn snapshot_taken(&self, snapshot: &Snapshot) {
        self.lock().side.snapshot_taken(snapshot);
    }

    pub fn snapshot_lost(&self) {
        self.lock().side.snapshot_lost();
    }
}

impl Inner {
    fn ring(&self, id: ConnectionId) {
        if let Some(bell) = self.bells.get(&id) {
            bell.news.notify_one();
        }
    }

    fn ring_device(&self, device: DeviceId) {
        if let Some(id) = self.side.connection_of(device) {
            self.ring(id);
        }
    }

    fn ring_all(&self) {
        self.bells.values().for_each(|bell| bell.news.notify_one());
    }
}
