//! Async: the agent's way to its branch: it finds a relay, says hello, and from Welcome on lets both lanes and the control messages flow.
//!
//! What is sent, and what an ack means, is decided in `mesh::link::agent_side` on the keeper's thread; here it is carried. One task per agent.

use std::{
    collections::VecDeque,
    future::pending,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use muster_certs::Name;
use muster_mesh::{
    chance,
    clock::Clock,
    control_key::Unproven,
    ids::{Lane, Version},
    limits,
    message::{self, CloseCode, Down, HeldVersion, Hello, HubAck, MessageError, Signed, SignedKind, StateNow, Up, Welcome},
    papers::Papers,
    quic::{Client, ConnectError, Connection, ControlError, ControlReceiver, ControlSender, Ended, StreamError},
    record::State,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    enrolment::Asked,
    keeper::{Fault, Heard, Keeper, Unkept},
    relays::{RelayAddress, Relays},
};

/// One attempt to reach one relay.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From Hello to Welcome: a relay that has just started may take ten seconds to know what it claims.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// The first retry comes within this, the next ones within twice as much each.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// A connection that held for so long was a good one: the next failure begins at the first retry again.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// What was collected last has this long to leave when the program stops.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Whoever has no more to say closes within this.
const GOODBYE: Duration = Duration::from_secs(1);
/// A guest looks whether its own relay is back after this, and up to as much again, so that a branch doesn't leave together.
const GUEST_FOR: Duration = Duration::from_secs(10 * 60);
/// Clocks and networks are compared this often, to find out that the computer slept, or is somewhere else.
pub const WAKE_CHECK_EVERY: Duration = Duration::from_secs(5);
const SLEEP_MS: u64 = 10_000;

/// What the person's computer is doing, for presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    pub state: State,
    pub since_ms: i64,
}

/// Whoever keeps what the hub signs: policies, notices, and what only a newer program knows. Called on the uplink's task.
pub trait News: Send + Sync {
    /// The highest version held of each kind, for Hello.
    fn held(&self) -> Vec<HeldVersion>;
    /// Something that is the hub's word; `bytes` as it signed them.
    fn signed(&self, signed: Signed, bytes: &Bytes);
    /// The device's erasure version, as an ack of the hub says it.
    fn erasure(&self, version: Version);
}

/// Nothing is kept: for agents that only deliver.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNews;

impl News for NoNews {
    fn held(&self) -> Vec<HeldVersion> {
        Vec::new()
    }

    fn signed(&self, _signed: Signed, _bytes: &Bytes) {}

    fn erasure(&self, _version: Version) {}
}

/// How the uplink stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// The connected relay. None: not connected.
    pub relay: Option<RelayAddress>,
    /// Since when it stands so, milliseconds UTC.
    pub since_ms: i64,
    /// What the last attempt came to nothing by.
    pub fault: Option<String>,
    /// Messages that claimed to be the hub's and weren't, since the program's start: none of them changed anything.
    pub unproven: u64,
}

/// One agent's way to its branch.
pub struct Uplink {
    pub client: Client,
    pub relays: Relays,
    pub keeper: Keeper,
    pub doing: watch::Receiver<Doing>,
    pub news: Arc<dyn News>,
    /// Whose signatures count, and who is denied.
    pub papers: Arc<Papers>,
    /// Dial at once: the computer woke up, or its network changed.
    pub wake: Arc<Notify>,
    /// What is to be asked of the hub. None: nobody asks.
    pub asks: tokio::sync::Mutex<Option<mpsc::Receiver<Asked>>>,
    /// Where its own state is told.
    pub link: watch::Sender<Link>,
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("the relay says what can't be understood: {0}")]
    Message(#[from] MessageError),
    #[error("no welcome came in time")]
    NoWelcome,
    #[error("the relay doesn't begin with a welcome")]
    NotWelcome,
    #[error("{0}")]
    Closed(Ended),
    #[error("the queue ends the connection: {0:?}")]
    Fault(Fault),
    #[error(transparent)]
    Unkept(#[from] Unkept),
    #[error("the relay has no more to say, and doesn't close the connection")]
    Silent,
    /// The relay sends it again to whoever says hello without it.
    #[error("what a key signed that counts no more has to come again")]
    LetGo,
    #[error("this relay was denied by the hub")]
    Denied,
    #[error("the computer woke up")]
    Woken,
    #[error("a guest looks whether its own relay is back")]
    Home,
    #[error("the program stops")]
    Stopped,
}

impl SessionEnd {
    /// What to tell the relay; none where it knows, or is gone.
    fn close_code(&self) -> Option<CloseCode> {
        match self {
            SessionEnd::Control(error) => error.close_code(),
            SessionEnd::Message(_) | SessionEnd::NotWelcome | SessionEnd::Fault(Fault::Relay) => Some(CloseCode::Message),
            SessionEnd::NoWelcome
            | SessionEnd::Silent
            | SessionEnd::Fault(Fault::Disk)
            | SessionEnd::Unkept(_)
            | SessionEnd::Woken
            | SessionEnd::Home
            | SessionEnd::LetGo
            | SessionEnd::Stopped => Some(CloseCode::Leaving),
            SessionEnd::Denied => Some(CloseCode::Denied),
            SessionEnd::Stream(_) => Some(CloseCode::Stream),
            SessionEnd::Connect(_) | SessionEnd::Closed(_) => None,
        }
    }
}

impl Uplink {
    /// Connects and connects again until `stop`; then gives what was collected last a moment to leave.
    pub async fn run(self, stop: CancellationToken) {
        let (mut tries, mut met) = (Tries::default(), Met::default());
        while !stop.is_cancelled() {
            let (best, end) = self.round(&mut met, &stop).await;
            if matches!(end, SessionEnd::Stopped) {
                break;
            }
            tries.ended(best, &end, self.keeper.clock().now().boot_ms);
            if tries.is_cloned() {
                self.keeper.cloned();
            }
            let wait = tries.next_wait(chance::fraction());
            tracing::debug!(%end, wait_ms = wait.as_millis() as u64, "no connection to a relay");
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {}
                () = sleep(wait) => {}
            }
        }
        self.tell(None, None);
    }

    /// Tries each relay in order; the first that says welcome is stayed with. Returns how long it held, and why it is over.
    async fn round(&self, met: &mut Met, stop: &CancellationToken) -> (Duration, SessionEnd) {
        let mut last = SessionEnd::Connect(ConnectError::Address("no relay is known".to_owned()));
        for relay in self.relays.now(&self.papers) {
            let session = tokio::select! {
                session = stop.run_until_cancelled(self.arrive(met.place(&relay.name), &relay)) => session,
                () = self.wake.notified() => return (Duration::ZERO, SessionEnd::Woken),
            };
            let (connection, welcomed) = match session {
                None => return (Duration::ZERO, SessionEnd::Stopped),
                Some(Ok(arrived)) => arrived,
                Some(Err(error)) => {
                    tracing::debug!(relay = %relay.name, %error, "a relay can't be reached");
                    self.tell(None, Some(format!("{}: {error}", relay.name)));
                    last = error;
                    continue;
                }
            };
            let began = Instant::now();
            tracing::info!(relay = %relay.name, "connected");
            self.tell(Some(relay.clone()), None);
            let end = self.stay(&connection, welcomed, stop).await;
            self.keeper.disconnected();
            if let Some(code) = end.close_code() {
                connection.close(code, &end.to_string());
            }
            tracing::info!(relay = %relay.name, why = %end, "disconnected");
            self.tell(None, Some(format!("{}: {end}", relay.name)));
            return (began.elapsed(), end);
        }
        (Duration::ZERO, last)
    }

    fn tell(&self, relay: Option<RelayAddress>, fault: Option<String>) {
        let since_ms = self.keeper.clock().now().wall_ms;
        self.link.send_modify(|link| {
            if link.relay != relay {
                link.since_ms = since_ms;
            }
            (link.relay, link.fault) = (relay, fault);
        });
    }

    // --- hello and welcome ---

    async fn arrive(&self, place: usize, relay: &RelayAddress) -> Result<(Connection, Welcomed), SessionEnd> {
        let connection = self.client.connect(&relay.address, &relay.name, CONNECT_TIMEOUT).await?;
        let arrived = timeout(WELCOME_TIMEOUT, self.greet(place, &connection)).await.unwrap_or(Err(SessionEnd::NoWelcome));
        match arrived {
            Ok(welcomed) => Ok((connection, welcomed)),
            Err(error) => {
                // The relay's own reason says more than that a stream broke.
                let error = connection.ended().map_or(error, SessionEnd::Closed);
                if let Some(code) = error.close_code() {
                    connection.close(code, &error.to_string());
                }
                Err(error)
            }
        }
    }

    async fn greet(&self, place: usize, connection: &Connection) -> Result<Welcomed, SessionEnd> {
        let (mut sender, mut receiver) = connection.open_control().await?;
        let dialling = self.keeper.dialling().await?;
        let (now, clock) = (self.keeper.clock().now(), self.keeper.clock());
        let hello = Hello {
            protocols: (message::AGENT_PROTOCOL, message::AGENT_PROTOCOL),
            dial: dialling.dial,
            boot: clock.boot(),
            wall_ms: now.wall_ms,
            boot_ms: now.boot_ms,
            zone: clock.zone().name,
            versions: self.versions(),
            tails: dialling.tails,
        };
        sender.send(Up::Hello(hello).frame()?).await?;
        let welcome = self.welcome(connection, &mut receiver).await?;
        let fault = self.keeper.welcome(place, welcome)?;
        Ok(Welcomed { sender, receiver, fault })
    }

    fn versions(&self) -> Vec<HeldVersion> {
        let of_papers = [SignedKind::Deny, SignedKind::Bundle, SignedKind::Relays].map(SignedKind::as_u8);
        let held = self.papers.held().into_iter().filter(|held| of_papers.contains(&held.kind));
        self.news.held().into_iter().chain(held).collect()
    }

    async fn welcome(&self, connection: &Connection, receiver: &mut ControlReceiver) -> Result<Welcome, SessionEnd> {
        loop {
            let Some(message) = receiver.receive().await? else { return Err(SessionEnd::Closed(connection.closed().await)) };
            match Down::read(&message)? {
                Some(Down::Welcome(welcome)) if welcome.protocol == message::AGENT_PROTOCOL => return Ok(welcome),
                Some(_) => return Err(SessionEnd::NotWelcome),
                None => {}
            }
        }
    }

    // --- the session ---

    async fn stay(&self, connection: &Connection, welcomed: Welcomed, stop: &CancellationToken) -> SessionEnd {
        let Welcomed { mut sender, mut receiver, fault } = welcomed;
        let asked = Unanswered::default();
        let ended = tokio::select! {
            ended = self.listen(&mut receiver, &asked) => ended,
            ended = self.speak(&mut sender, &asked) => ended,
            ended = self.fill(connection, Lane::Telemetry) => ended,
            ended = self.fill(connection, Lane::Pictures) => ended,
            fault = faulty(fault) => Err(SessionEnd::Fault(fault)),
            () = self.last_words(stop) => Err(SessionEnd::Stopped),
            () = self.wake.notified() => Err(SessionEnd::Woken),
            () = self.papers.until_denied(&connection.peer().leaf) => Err(SessionEnd::Denied),
            () = over(self.visit(connection.peer().site())) => Err(SessionEnd::Home),
        };
        let end = match ended {
            Err(end) => end,
            // The relay has no more to say; one that doesn't close, either, isn't waited for.
            Ok(()) => timeout(GOODBYE, connection.closed()).await.map_or(SessionEnd::Silent, SessionEnd::Closed),
        };
        match (&end, connection.ended()) {
            (
                SessionEnd::Stopped | SessionEnd::Woken | SessionEnd::Home | SessionEnd::LetGo | SessionEnd::Denied | SessionEnd::Fault(_),
                _,
            )
            | (_, None) => end,
            // The relay's own reason says more than that a stream broke.
            (_, Some(ended)) => SessionEnd::Closed(ended),
        }
    }

    /// How long this agent stays at a relay of a site. None: as long as it likes, being at home there or nowhere else.
    fn visit(&self, at: Option<&str>) -> Option<Duration> {
        let (home, relays) = (self.client.site(), self.relays.now(&self.papers));
        let has_home = relays.iter().any(|relay| relay.name.site() == home.as_deref());
        visit(home.as_deref(), at).filter(|_| has_home)
    }

    /// What the relay says.
    async fn listen(&self, receiver: &mut ControlReceiver, unanswered: &Unanswered) -> Result<(), SessionEnd> {
        while let Some(message) = receiver.receive().await? {
            match Down::read(&message)? {
                Some(Down::Ack(ack)) => self.keeper.heard(Heard::Ack(ack)).await?,
                Some(Down::Returned(returned)) => self.keeper.heard(Heard::Returned(returned)).await?,
                Some(Down::Lane(lane, state)) => self.keeper.heard(Heard::Lane(lane, state)).await?,
                Some(Down::Signed(bytes)) => self.signed(bytes).await?,
                Some(Down::Answer(answer)) => unanswered.answer(answer),
                Some(Down::Welcome(_)) => return Err(SessionEnd::NotWelcome),
                None => {}
            }
        }
        Ok(())
    }

    /// What the hub didn't sign changes nothing here. The connection stays: a relay that carries rubbish may carry the hub's word beside it,
    /// and a new control key may be a moment ahead of its bundle.
    async fn signed(&self, bytes: Bytes) -> Result<(), SessionEnd> {
        let held = self.papers.held().len();
        let signed = match self.papers.take(&bytes, self.keeper.clock().now().wall_ms) {
            Ok(paper) => paper.signed,
            Err(Unproven::Message(error)) => return Err(error.into()),
            Err(error) => {
                self.unproven(&error);
                return Ok(());
            }
        };
        if self.papers.held().len() < held {
            return Err(SessionEnd::LetGo);
        }
        if signed.device.is_some_and(|device| device != self.keeper.device()) {
            return Ok(());
        }
        match (SignedKind::from_u8(signed.kind), signed.spool) {
            // From before a restore: what it says is there may be gone.
            (Some(SignedKind::Ack), _) if signed.version.epoch < self.papers.epoch() => {}
            (Some(SignedKind::Ack), Some(spool)) if signed.device.is_some() => {
                let ack = HubAck::read(&signed.body)?;
                self.news.erasure(ack.erasure);
                self.keeper.heard(Heard::Hub(spool, signed.version.epoch, ack)).await?;
            }
            // These are in force by now.
            (Some(SignedKind::Ack | SignedKind::Bundle | SignedKind::Deny | SignedKind::Relays), _) => {}
            _ => self.news.signed(signed, &bytes),
        }
        Ok(())
    }

    fn unproven(&self, error: &Unproven) {
        metrics::counter!("muster_agent_unproven_total", "why" => error.name()).increment(1);
        let mut is_first = false;
        self.link.send_modify(|link| {
            is_first = link.unproven == 0;
            link.unproven += 1;
        });
        if is_first {
            tracing::warn!(%error, "the relay says something in the hub's name that isn't the hub's word: it is ignored, and so is all like it");
        } else {
            tracing::debug!(%error, "something in the hub's name is ignored");
        }
    }

    /// What the relay is told: how the person's computer stands, and what is held no more.
    async fn speak(&self, sender: &mut ControlSender, unanswered: &Unanswered) -> Result<(), SessionEnd> {
        let mut doing = self.doing.clone();
        let mut asks = self.asks.lock().await;
        let mut every = interval(limits::STATE_EVERY);
        doing.mark_changed();
        // Kept over the turns: a tail that was answered and not taken would never be told.
        let mut holding = pin!(self.keeper.next_holding());
        loop {
            let state_is_due = tokio::select! {
                changed = doing.changed() => changed.is_ok() || pending().await,
                _ = every.tick() => true,
                Some(Asked { ask, answer }) = next_ask(&mut asks) => {
                    unanswered.expect(answer);
                    sender.send(Up::Ask(ask).frame()?).await?;
                    false
                }
                tail = &mut holding => {
                    sender.send(Up::Holding(tail?).frame()?).await?;
                    holding.set(self.keeper.next_holding());
                    false
                }
            };
            if state_is_due {
                let Doing { state, since_ms } = *doing.borrow_and_update();
                every.reset();
                let tails = self.keeper.newest_tails().await?;
                sender.send(Up::State(StateNow { state, since_ms, tails }).frame()?).await?;
            }
        }
    }

    /// One lane's stream, opened with the first envelopes that it carries.
    async fn fill(&self, connection: &Connection, lane: Lane) -> Result<(), SessionEnd> {
        let mut run = self.keeper.next_run(lane).await?;
        let mut stream = connection.open_lane(lane).await?;
        loop {
            stream.send(run).await?;
            run = self.keeper.next_run(lane).await?;
        }
    }

    async fn last_words(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        // What doesn't leave now lies on the disk until the next start.
        let _ = timeout(LAST_WORDS, self.keeper.delivered()).await;
    }
}

async fn next_ask(asks: &mut Option<mpsc::Receiver<Asked>>) -> Option<Asked> {
    match asks {
        Some(asks) => asks.recv().await,
        None => pending().await,
    }
}

/// Who waits for an answer of the hub, oldest first. They come in the order of the asks.
#[derive(Default)]
struct Unanswered(Mutex<VecDeque<oneshot::Sender<Bytes>>>);

impl Unanswered {
    fn expect(&self, answer: oneshot::Sender<Bytes>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
    }

    fn answer(&self, answer: Bytes) {
        if let Some(waiting) = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            // Who no longer waits asks again.
            let _ = waiting.send(answer);
        }
    }
}

/// A connection from Welcome on.
struct Welcomed {
    sender: ControlSender,
    receiver: ControlReceiver,
    fault: oneshot::Receiver<Fault>,
}

/// How long an agent of `home` stays at a relay of another site. None: it is at home, for as long as it likes.
fn visit(home: Option<&str>, at: Option<&str>) -> Option<Duration> {
    (home != at).then(|| GUEST_FOR + chance::jitter(GUEST_FOR))
}

async fn over(visit: Option<Duration>) {
    match visit {
        Some(length) => sleep(length).await,
        None => pending().await,
    }
}

async fn faulty(fault: oneshot::Receiver<Fault>) -> Fault {
    // The keeper lets go of it only with its thread, whose end the other parts notice.
    match fault.await {
        Ok(fault) => fault,
        Err(_) => pending().await,
    }
}

/// Tells `wake` whenever the computer has slept, or is in another network, until `stop`. `network`: what tells one network from another; `every`: how
/// often that is looked at, usually [`WAKE_CHECK_EVERY`].
pub async fn watch_for_wakes(
    clock: Arc<dyn Clock>,
    network: impl Fn() -> Vec<IpAddr>,
    every: Duration,
    wake: Arc<Notify>,
    stop: CancellationToken,
) {
    let (mut last, mut last_network) = ((Instant::now(), clock.now().boot_ms), network());
    while stop.run_until_cancelled(sleep(every)).await.is_some() {
        let now = (Instant::now(), clock.now().boot_ms);
        // The runtime's clock stands still in sleep, the boot clock doesn't.
        let awake_ms = u64::try_from(now.0.duration_since(last.0).as_millis()).unwrap_or(u64::MAX);
        let (has_slept, network) = (now.1.saturating_sub(last.1) > awake_ms.saturating_add(SLEEP_MS), network());
        if has_slept || network != last_network {
            wake.notify_waiters();
        }
        (last, last_network) = (now, network);
    }
}

/// Relays that were dialled, each with a number of its own: what one of them returned is counted by it, whatever list it stands in later.
#[derive(Debug, Default)]
struct Met(Vec<Name>);

impl Met {
    fn place(&mut self, name: &Name) -> usize {
        let place = self.0.iter().position(|met| met == name);
        place.unwrap_or_else(|| {
            self.0.push(name.clone());
            self.0.len() - 1
        })
    }
}

/// How often it failed, and how.
#[derive(Debug, Default)]
struct Tries {
    failures: u32,
    /// When a newer connection of this device took over, by the boot clock.
    replaced_ms: VecDeque<u64>,
    cloned: bool,
}

impl Tries {
    fn ended(&mut self, held: Duration, end: &SessionEnd, now_ms: u64) {
        self.failures = if held >= GOOD_AFTER { 0 } else { self.failures.saturating_add(1) };
        if matches!(end, SessionEnd::Woken) {
            self.failures = 0;
        }
        let SessionEnd::Closed(Ended::ByPeer { code: Some(CloseCode::Replaced), .. }) = end else { return };
        self.replaced_ms.push_back(now_ms);
        self.replaced_ms.retain(|at_ms| now_ms.saturating_sub(*at_ms) < 60_000);
        // Each was answered by a dial of the other.
        if 2 * self.replaced_ms.len() > limits::DIALS_PER_MINUTE_MAX {
            self.replaced_ms.clear();
            self.cloned = true;
        }
    }

    /// Two computers take the connection from each other, once per alarm.
    fn is_cloned(&mut self) -> bool {
        std::mem::take(&mut self.cloned)
    }

    /// Full jitter, taken after the cap: a whole branch dials after a relay's restart.
    fn next_wait(&self, chance: f64) -> Duration {
        if self.failures == 0 {
            return RETRY_FIRST.mul_f64(chance);
        }
        let cap = RETRY_LONGEST.min(RETRY_FIRST * 2u32.saturating_pow((self.failures - 1).min(16)));
        cap.mul_f64(chance)
    }
}

#[cfg(test)]
mod tests;
