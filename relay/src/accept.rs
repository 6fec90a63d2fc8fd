//! Async: agents that come: who they are, their hello and our welcome, and from then on one task per connection and one per lane.
//!
//! A lane's reader takes an envelope off the network only when the writer has room for it. Refusing is not reading; what was read is either
//! committed and acked, or the connection ends.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_mesh::{
    batch::Envelope,
    clock::Clock,
    ids::DeviceId,
    limits,
    link::relay_side::ConnectionId,
    message::{self, CloseCode, Down, Facts, Hello, Limits, Up, Welcome},
    papers::Papers,
    queue::directory::Entry,
    quic::{AcceptError, Arriving, Connection, ControlError, ControlReceiver, ControlSender, LaneError, LaneReceiver, Server, StreamError},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agents::{Agents, Bell, Registered},
    buffer,
    door::Carrier,
    writer::LaneInbox,
};

/// The older connection of a device has this long to let go.
const OLDER_LEAVES: Duration = Duration::from_secs(5);
/// Whoever is sent away is told of the newest list of relays within this.
const LAST_WORD: Duration = Duration::from_secs(3);
/// Connections have this long to end when the program stops.
const LAST_GOODBYES: Duration = Duration::from_secs(5);

/// What every connection of this relay shares.
pub struct Branch {
    pub site: String,
    /// Other sites whose agents may deliver here, besides those that the hub names.
    pub guests: Vec<String>,
    pub agents: Arc<Agents>,
    pub lanes: [LaneInbox; 2],
    pub clock: Arc<dyn Clock>,
    /// Asks for certificates go this way.
    pub carrier: Arc<Carrier>,
    /// Who is denied, and who is a guest.
    pub papers: Arc<Papers>,
}

impl Branch {
    fn takes(&self, site: &str) -> bool {
        site == self.site || self.guests.iter().any(|guest| guest == site) || self.papers.relay_list().takes(&self.site, site)
    }

    /// A guest that isn't one any more hears of the list that says so before it goes: where else it may deliver stands there.
    async fn until_not_taken(&self, connection: &Connection) -> End {
        self.papers.until(|_| !connection.peer().site().is_some_and(|site| self.takes(site))).await;
        sleep(LAST_WORD).await;
        not_our_site()
    }
}

/// Takes agents until `stop`, then says goodbye to all of them.
pub async fn serve(server: Server, branch: Arc<Branch>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            arriving = server.accept() => match arriving {
                Some(arriving) if server.connections() > limits::CONNECTIONS_MAX => arriving.refuse(),
                Some(arriving) => { connections.spawn(attend(arriving, branch.clone())); }
                None => return,
            },
        }
    }
    server.refuse_new();
    branch.agents.end_all(CloseCode::Leaving);
    let goodbyes = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        _ = timeout(LAST_GOODBYES, goodbyes) => {}
        // Who dials meanwhile is refused in here.
        _ = async { while server.accept().await.is_some() {} } => {}
    }
    connections.shutdown().await;
    server.close(CloseCode::Leaving, "the relay stops");
    // A peer that is gone doesn't answer its goodbye.
    let _ = timeout(Duration::from_secs(1), server.idle()).await;
}

/// Why a connection is over, and what to tell the agent; no code: it knows.
struct End {
    code: Option<CloseCode>,
    why: String,
}

impl End {
    fn with(code: CloseCode, why: impl Into<String>) -> End {
        End { code: Some(code), why: why.into() }
    }
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> End {
        let code = if matches!(error, StreamError::Ended(_)) { None } else { Some(CloseCode::Stream) };
        End { code, why: error.to_string() }
    }
}

impl From<ControlError> for End {
    fn from(error: ControlError) -> End {
        End { code: error.close_code(), why: error.to_string() }
    }
}

impl From<LaneError> for End {
    fn from(error: LaneError) -> End {
        End { code: error.close_code(), why: error.to_string() }
    }
}

impl From<AcceptError> for End {
    fn from(error: AcceptError) -> End {
        End { code: error.close_code(), why: error.to_string() }
    }
}

impl From<message::MessageError> for End {
    fn from(error: message::MessageError) -> End {
        End::with(CloseCode::Message, error.to_string())
    }
}

impl From<crate::writer::Closed> for End {
    fn from(closed: crate::writer::Closed) -> End {
        End::with(CloseCode::Leaving, closed.to_string())
    }
}

async fn attend(arriving: Arriving, branch: Arc<Branch>) {
    let connection = match arriving.handshake().await {
        Ok(connection) => connection,
        Err(error) => {
            metrics::counter!("muster_relay_handshakes_failed_total").increment(1);
            tracing::debug!(%error, "a handshake came to nothing");
            return;
        }
    };
    metrics::counter!("muster_relay_connections_total").increment(1);
    let end = match welcome(&connection, &branch).await {
        Ok(visit) => visit.stay().await,
        Err(end) => end,
    };
    let device = connection.peer().device().map(|device| device.to_string()).unwrap_or_default();
    tracing::debug!(device, code = ?end.code, why = end.why, "a connection ended");
    if let Some(code) = end.code {
        metrics::counter!("muster_relay_closed_total", "code" => format!("{code:?}")).increment(1);
        connection.close(code, &end.why);
    }
}

// --- hello and welcome ---

/// An agent that was welcomed.
struct Visit {
    connection: Connection,
    branch: Arc<Branch>,
    device: DeviceId,
    registered: Registered,
    control: (ControlSender, ControlReceiver),
    /// Of its facts what the whole connection shares.
    arrival: Facts,
}

async fn welcome(connection: &Connection, branch: &Arc<Branch>) -> Result<Visit, End> {
    let device = admitted(connection, branch)?;
    let silent = || End::with(CloseCode::Silent, "no hello came in time");
    let (control, hello) = timeout(limits::HANDSHAKE_TIMEOUT, hello(connection)).await.map_err(|_| silent())??;
    if hello.protocols.0 > message::AGENT_PROTOCOL || hello.protocols.1 < message::AGENT_PROTOCOL {
        return Err(End::with(CloseCode::Protocol, format!("this relay speaks protocol {}", message::AGENT_PROTOCOL)));
    }
    let now_ms = branch.clock.now().wall_ms;
    let (registered, older) = branch.agents.hello(device, &hello, now_ms);
    if let Some(older) = older {
        metrics::counter!("muster_relay_replaced_total").increment(1);
        // One that doesn't let go in time only costs repeats: what it still puts is missing in the claims below.
        let _ = timeout(OLDER_LEAVES, older.left()).await;
    }
    let arrival = Facts {
        receipt_ms: now_ms,
        dial: hello.dial,
        boot: hello.boot,
        zero_ms: now_ms.saturating_sub(i64::try_from(hello.boot_ms).unwrap_or(i64::MAX)),
        address: None,
    };
    let mut visit = Visit { connection: connection.clone(), branch: branch.clone(), device, registered, control, arrival };
    // One that never reads isn't waited for: the device's next connection waits for this one to leave.
    let unheard = || End::with(CloseCode::Silent, "the welcome wasn't read in time");
    timeout(limits::HANDSHAKE_TIMEOUT, visit.say_welcome()).await.map_err(|_| unheard())??;
    Ok(visit)
}

/// What someone is comes from the certificate alone; whether it may deliver here is the hub's list, and our own.
fn admitted(connection: &Connection, branch: &Branch) -> Result<DeviceId, End> {
    let (site, device) = (connection.peer().site(), connection.peer().device());
    match (site, device) {
        (Some(site), Some(device)) if branch.takes(site) => Ok(device),
        (site, device) => {
            let device = device.map(|device| device.to_string()).unwrap_or_default();
            tracing::warn!(device, site, "an agent of a site that is neither ours nor a guest's was turned away");
            Err(not_our_site())
        }
    }
}

async fn hello(connection: &Connection) -> Result<((ControlSender, ControlReceiver), Hello), End> {
    let (sender, mut receiver) = connection.accept_control().await?;
    while let Some(message) = receiver.receive().await? {
        match Up::read(&message)? {
            Some(Up::Hello(hello)) => return Ok(((sender, receiver), hello)),
            Some(Up::Holding(_) | Up::State(_) | Up::Ask(_)) => return Err(End::with(CloseCode::Message, "hello comes first")),
            None => {}
        }
    }
    Err(End::with(CloseCode::Message, "the control stream ended without a hello"))
}

impl Visit {
    /// Claims come from the writers, behind everything that the older connection put.
    async fn say_welcome(&mut self) -> Result<(), End> {
        let mut claims = Vec::new();
        for lane in &self.branch.lanes {
            claims.extend(lane.claims(self.device).await?);
        }
        let lanes = self.branch.agents.welcomed(self.registered.id);
        let clock_ms = self.branch.clock.now().wall_ms;
        let welcome = Welcome { protocol: message::AGENT_PROTOCOL, limits: Limits::OURS, clock_ms, lanes, claims };
        self.control.0.send(Down::Welcome(welcome).frame()?).await?;
        Ok(())
    }

    /// Serves the connection until it ends.
    async fn stay(self) -> End {
        let Visit { connection, branch, device, registered, control: (mut sender, mut receiver), arrival } = self;
        let reader = Reader { id: registered.id, device, branch: branch.clone(), arrival, connection: connection.clone() };
        let mut readers = JoinSet::new();
        // One at a time: an agent that asks without end waits for its own answers.
        let (ask, asked) = mpsc::channel(1);
        let (answer, answers) = mpsc::channel(1);
        let end = tokio::select! {
            biased;
            () = branch.papers.until_denied(&connection.peer().leaf) => denied(),
            code = registered.bell.ending() => End::with(code, "this relay ends the connection"),
            end = listen(&mut receiver, &branch, registered.id, ask) => end,
            end = speak(&mut sender, &branch.agents, &registered.bell, registered.id, answers) => end,
            () = carry(&branch.carrier, asked, answer) => End::with(CloseCode::Message, "the agent has no more to ask"),
            end = take_lanes(&connection, &reader, &mut readers) => end,
            end = branch.until_not_taken(&connection) => end,
        };
        // Nothing more of it may reach an inbox once the next connection of the device asks what lies here.
        readers.shutdown().await;
        drop(registered);
        end
    }
}

fn not_our_site() -> End {
    End::with(CloseCode::NotOurSite, "this relay takes neither your site nor guests of it")
}

fn denied() -> End {
    metrics::counter!("muster_relay_denied_total").increment(1);
    End::with(CloseCode::Denied, "this certificate was denied")
}

async fn listen(receiver: &mut ControlReceiver, branch: &Branch, id: ConnectionId, ask: mpsc::Sender<Bytes>) -> End {
    loop {
        let heard = match receiver.receive().await {
            Ok(Some(message)) => Up::read(&message).map_err(End::from),
            Ok(None) => return End::with(CloseCode::Leaving, "the agent has no more to say"),
            Err(error) => Err(End::from(error)),
        };
        match heard {
            Ok(Some(Up::Holding(tail))) => branch.agents.holding(id, &tail),
            Ok(Some(Up::State(state))) => branch.agents.state(id, state),
            Ok(Some(Up::Ask(asked))) => {
                if ask.try_send(asked).is_err() {
                    return End::with(CloseCode::Message, "more asks than answers");
                }
            }
            Ok(Some(Up::Hello(_))) => return End::with(CloseCode::Message, "a second hello"),
            Ok(None) => {}
            Err(end) => return end,
        }
    }
}

/// Asks go to the hub and come back as answers, in order.
async fn carry(carrier: &Carrier, mut asked: mpsc::Receiver<Bytes>, answer: mpsc::Sender<Bytes>) {
    while let Some(ask) = asked.recv().await {
        let answered = carrier.carry_for_agent(ask).await;
        if answer.send(answered).await.is_err() {
            return;
        }
    }
}

async fn speak(sender: &mut ControlSender, agents: &Agents, bell: &Bell, id: ConnectionId, mut answers: mpsc::Receiver<Bytes>) -> End {
    let mut acked = [0; 2];
    loop {
        while let Some(down) = agents.next_control(id) {
            if let Down::Ack(ack) = &down {
                let more = ack.count - std::mem::replace(&mut acked[ack.lane.index()], ack.count);
                metrics::counter!("muster_relay_acked_total", "lane" => ack.lane.name()).increment(more);
            }
            // Only what a hub signed can be too long, and then the hub's next version may fit.
            let Ok(frame) = down.frame() else { continue };
            if let Err(error) = sender.send(frame).await {
                return error.into();
            }
        }
        tokio::select! {
            () = bell.rung() => {}
            Some(answer) = answers.recv() => {
                // Longer than a message may be: the agent asks again.
                let Ok(frame) = Down::Answer(answer).frame() else { continue };
                if let Err(error) = sender.send(frame).await {
                    return error.into();
                }
            }
        }
    }
}

// --- lanes ---

async fn take_lanes(connection: &Connection, reader: &Reader, readers: &mut JoinSet<Result<(), End>>) -> End {
    loop {
        tokio::select! {
            lane = connection.accept_lane() => match lane {
                Ok(lane) => { readers.spawn(reader.clone().read(lane)); }
                Err(error) => return error.into(),
            },
            Some(ended) = readers.join_next() => match ended {
                // The agent finished this lane; the connection goes on.
                Ok(Ok(())) => {}
                Ok(Err(end)) => return end,
                Err(_) => return End::with(CloseCode::NotCommitted, "a lane's reader broke"),
            },
        }
    }
}

/// Reads a lane of one connection.
#[derive(Clone)]
struct Reader {
    id: ConnectionId,
    device: DeviceId,
    branch: Arc<Branch>,
    arrival: Facts,
    connection: Connection,
}

impl Reader {
    async fn read(self, mut stream: LaneReceiver) -> Result<(), End> {
        let lane = stream.lane();
        let inbox = &self.branch.lanes[lane.index()];
        let room = Arc::new(Semaphore::new(limits::LANE_INBOX_MAX));
        loop {
            self.branch.agents.open(lane).await;
            let Some(first) = self.receive(&mut stream).await? else { return Ok(()) };
            let (run, broken) = self.run(first, &mut stream);
            if !run.is_empty() {
                metrics::counter!("muster_relay_received_total", "lane" => lane.name()).increment(run.len() as u64);
                let entries = self.entries(run);
                // Behind their time of receipt: nothing that came after the list of the denied is ever kept.
                if self.branch.papers.denied().check(&self.connection.peer().leaf).is_err() {
                    return Err(denied());
                }
                inbox.put(self.id, &room, entries).await?;
            }
            if let Some(end) = broken {
                return Err(end);
            }
        }
    }

    /// The next envelope, unless its sender is denied by then.
    async fn receive(&self, stream: &mut LaneReceiver) -> Result<Option<Envelope>, End> {
        tokio::select! {
            biased;
            () = self.branch.papers.until_denied(&self.connection.peer().leaf) => Err(denied()),
            received = stream.receive() => Ok(received?),
        }
    }

    /// What came together, up to the first that is not to be taken.
    fn run(&self, first: Envelope, stream: &mut LaneReceiver) -> (Vec<Envelope>, Option<End>) {
        let (mut run, mut next, mut bytes) = (Vec::new(), Some(first), 0);
        while let Some(envelope) = next {
            if envelope.header().device != self.device {
                return (run, Some(End::with(CloseCode::EnvelopeDevice, "an envelope of another device")));
            }
            bytes += envelope.bytes().len();
            run.push(envelope);
            if run.len() >= limits::LANE_RUN_MAX || bytes >= limits::COMMIT_BYTES_MAX {
                break;
            }
            next = match stream.ready() {
                Ok(next) => next,
                Err(error) => return (run, Some(error.into())),
            };
        }
        (run, None)
    }

    /// The run with what this relay knows of its arrival.
    fn entries(&self, run: Vec<Envelope>) -> Vec<Entry> {
        let address = self.branch.agents.received(self.id, self.device, &run).then(|| self.connection.address().ip().to_string());
        let facts = Facts { receipt_ms: self.branch.clock.now().wall_ms, address, ..self.arrival.clone() };
        let facts: Bytes = buffer::facts(&facts);
        run.into_iter().map(|envelope| Entry { facts: facts.clone(), envelope }).collect()
    }
}
