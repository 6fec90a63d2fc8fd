//! Async: QUIC between agent and relay: sockets, handshakes and streams, with nothing of the QUIC library in any signature but [`Network`]'s.
//!
//! ```text
//! agent ──► control: bidirectional, first      u32 length | kind | body …   (both ways)
//!       ──► lane:    unidirectional, per lane  lane u8 | envelope | envelope …
//! ```
//!
//! Mutual TLS 1.3 by `muster_certs`, whose leaf check runs inside the handshake and again here, per connection: a [`Peer`] is what it found.
//! A dialler's handshake is done *before* the listener has looked at its certificate: "connected" is an agent when the relay's Welcome came.
//!
//! Every `accept…`, `receive` and `closed` may be dropped and called again without losing anything. A dropped `send` goes on with the next.

use std::{
    fmt, io, mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_certs::{DIALLED_NAME, Keys, Leaf, Name, Role, check_dialled, check_peer, client_config, handshake_words, server_config};
use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    chance,
    complaint::Complaint,
    ids::{DeviceId, Lane},
    limits,
    message::{self, CloseCode},
};

mod door;
mod stream;

pub use door::{DoorServer, Knock, Question, ask_at_door};
use stream::Inlet;
pub use stream::{AcceptError, ControlError, ControlReceiver, ControlSender, LaneError, LaneReceiver, LaneSender, StreamError};

/// Who may dial a relay.
const DIALLERS: &[Role] = &[Role::Agent];
/// Of the reason that a peer gives, this much is shown.
const REASON_CHARS_MAX: usize = 200;

/// Switches for networks and drivers that need them, and the flood's threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// Several packets per system call; off where a network driver gets it wrong.
    pub segmentation_offload: bool,
    /// Larger packets where the path takes them; off where a firewall drops the probes' answers and more.
    pub mtu_discovery: bool,
    /// Handshakes at once above which a dialler must first show that its address is real.
    pub retry_above: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { segmentation_offload: true, mtu_discovery: true, retry_above: limits::HANDSHAKES_BEFORE_RETRY }
    }
}

/// Where sockets come from: the computer's own network, or another that carries datagrams.
pub trait Network: Send + Sync {
    /// A UDP socket at `listen` (port 0 chooses one).
    fn socket(&self, listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
}

/// The computer's own network. Its sockets belong to the runtime in which they are made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Network for Kernel {
    fn socket(&self, listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(udp_socket(listen)?)
    }
}

// --- listening ---

/// A relay's door for agents.
pub struct Server {
    endpoint: Endpoint,
    address: SocketAddr,
    keys: Arc<Keys>,
    retry_above: usize,
    draining: AtomicBool,
    handshakes: Arc<AtomicUsize>,
}

impl Server {
    /// Listens on `listen` (UDP; port 0 chooses one). Later swaps of `keys` count for the next handshake.
    pub fn bind(listen: SocketAddr, keys: &Arc<Keys>) -> Result<Server, Complaint> {
        Server::bind_with(listen, keys, Tuning::default())
    }

    pub fn bind_with(listen: SocketAddr, keys: &Arc<Keys>, tuning: Tuning) -> Result<Server, Complaint> {
        Server::bind_on(&Kernel, listen, keys, tuning)
    }

    pub fn bind_on(network: &dyn Network, listen: SocketAddr, keys: &Arc<Keys>, tuning: Tuning) -> Result<Server, Complaint> {
        let config = server_side(keys, tuning)?;
        let socket = network.socket(listen).map_err(|error| not_bound(listen, &error, "agents.listen"))?;
        let endpoint = endpoint(socket, Some(config)).map_err(|error| not_bound(listen, &error, "agents.listen"))?;
        let address = endpoint.local_addr().map_err(|error| not_bound(listen, &error, "agents.listen"))?;
        Ok(Server {
            endpoint,
            address,
            keys: keys.clone(),
            retry_above: tuning.retry_above,
            draining: AtomicBool::new(false),
            handshakes: Arc::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next one that dials. None: the server was closed.
    ///
    /// Under a flood, diallers first prove their address, or are told to come later; while draining all are told so. Neither comes out here.
    pub async fn accept(&self) -> Option<Arriving> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let under_way = self.handshakes.load(Ordering::Relaxed);
            if self.draining.load(Ordering::Relaxed) || under_way >= limits::HANDSHAKES_MAX {
                incoming.refuse();
            } else if under_way >= self.retry_above && incoming.may_retry() {
                // It can only fail for one that was asked already.
                let _ = incoming.retry();
            } else {
                return Some(Arriving { incoming, keys: self.keys.clone(), _counted: Counted::new(&self.handshakes) });
            }
        }
    }

    /// From now on everybody who dials is told at once to go elsewhere; connections go on. [`Server::accept`] must be called on.
    pub fn refuse_new(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends all connections and the listening.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.endpoint.close(number(code), text.as_bytes());
    }

    /// Connections that live, handshakes included.
    pub fn connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Waits until the last connection's goodbye was said. Give it a timeout: a peer that is gone doesn't answer.
    pub async fn idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// Somebody who dials and isn't known yet.
pub struct Arriving {
    incoming: quinn::Incoming,
    keys: Arc<Keys>,
    _counted: Counted,
}

impl Arriving {
    /// Where it says it comes from.
    pub fn address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Tells it at once to go elsewhere or come later.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Lets it show who it is. Ok: an agent of our domain, whose certificate holds now.
    pub async fn handshake(self) -> Result<Connection, HandshakeError> {
        let deadline = Instant::now() + limits::HANDSHAKE_TIMEOUT;
        let connecting = self.incoming.accept().map_err(Ended::from)?;
        let quinn = timeout_at(deadline, connecting).await.map_err(|_| HandshakeError::TooSlow)?.map_err(Ended::from)?;
        Connection::new(quinn, &self.keys, |chain, keys| {
            check_peer(chain, keys, DIALLERS).map_err(|why| HandshakeError::Identity(why.to_string()))
        })
    }
}

/// A handshake that came to nothing. For the log; the dialler was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("it took longer than {} s", limits::HANDSHAKE_TIMEOUT.as_secs())]
    TooSlow,
    #[error("its certificate is not accepted: {0}")]
    Identity(String),
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// One handshake under way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Counted {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// --- dialling ---

/// An agent's way out. Clones share its sockets.
#[derive(Clone)]
pub struct Client {
    network: Arc<dyn Network>,
    sockets: Arc<Mutex<Sockets>>,
    keys: Arc<Keys>,
    tuning: Tuning,
}

/// One socket per family, made when the first address of it is dialled.
#[derive(Default)]
struct Sockets {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl Client {
    pub fn new(keys: &Arc<Keys>) -> Client {
        Client::with(keys, Tuning::default())
    }

    pub fn with(keys: &Arc<Keys>, tuning: Tuning) -> Client {
        Client::on(Arc::new(Kernel), keys, tuning)
    }

    pub fn on(network: Arc<dyn Network>, keys: &Arc<Keys>, tuning: Tuning) -> Client {
        Client { network, sockets: Arc::default(), keys: keys.clone(), tuning }
    }

    /// The branch office that its certificate names.
    pub fn site(&self) -> Option<String> {
        self.keys.identity().name.site().map(str::to_owned)
    }

    /// The same sockets for somebody else: many agents in one process (swarm, benchmarks).
    pub fn sharing_sockets(&self, keys: &Arc<Keys>) -> Client {
        Client { keys: keys.clone(), ..self.clone() }
    }

    /// Dials `address` (`host:port`), where exactly `expected` must answer, and gives up after `timeout`. Each address of the host gets its
    /// share of that time.
    ///
    /// Ok doesn't mean that *we* are accepted: see the module's doc.
    pub async fn connect(&self, address: &str, expected: &Name, timeout: Duration) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + timeout;
        let addresses = timeout_at(deadline, resolve(address)).await.map_err(|_| ConnectError::NoAnswer)??;
        let mut failed = ConnectError::Address("the name has no address".to_owned());
        for (tried, one) in addresses.iter().enumerate() {
            let left = (addresses.len() - tried) as u32;
            let share = Instant::now() + deadline.saturating_duration_since(Instant::now()) / left;
            match self.dial(*one, expected, share).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn dial(&self, address: SocketAddr, expected: &Name, deadline: Instant) -> Result<Connection, ConnectError> {
        let config = client_side(&self.keys, expected, self.tuning)?;
        let endpoint = self.endpoint(address).map_err(|error| ConnectError::Socket(error.to_string()))?;
        let connecting = endpoint.connect_with(config, address, DIALLED_NAME).map_err(|error| ConnectError::Address(error.to_string()))?;
        let quinn = timeout_at(deadline, connecting).await.map_err(|_| ConnectError::NoAnswer)?.map_err(Ended::from)?;
        Connection::new(quinn, &self.keys, |chain, keys| {
            check_dialled(chain, keys, expected).map_err(|why| ConnectError::Untrusted(why.to_string()))
        })
    }

    fn endpoint(&self, to: SocketAddr) -> io::Result<Endpoint> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, any) = match to {
            SocketAddr::V4(_) => (&mut sockets.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&mut sockets.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let made = endpoint(self.network.socket(any)?, None)?;
        Ok(slot.insert(made).clone())
    }

    /// Waits until the last connection's goodbye was said. Give it a timeout: a peer that is gone doesn't answer.
    pub async fn idle(&self) {
        let endpoints = {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            [sockets.v4.clone(), sockets.v6.clone()]
        };
        for endpoint in endpoints.into_iter().flatten() {
            endpoint.wait_idle().await;
        }
    }
}

/// A relay that couldn't be reached, as the next step needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The address in the configuration leads nowhere (now).
    #[error("the address can't be dialled: {0}")]
    Address(String),
    /// This computer gives no socket.
    #[error("no socket: {0}")]
    Socket(String),
    /// Unreachable, or no relay there. Try the next, and this one later.
    #[error("no answer in time")]
    NoAnswer,
    /// It is draining or flooded. Try the next, and this one later.
    #[error("it is busy and takes nobody new")]
    Busy,
    /// Somebody else answered, or with a certificate that doesn't hold. A person must look.
    #[error("the one that answers is not the relay that was dialled: {0}")]
    Untrusted(String),
    /// It doesn't accept our certificate. A person must look.
    #[error("it doesn't accept our certificate (TLS alert {0})")]
    Refused(u8),
    /// It doesn't speak `muster/1`.
    #[error("it speaks another protocol")]
    Protocol,
    /// Our own certificate or role makes no dialler.
    #[error("this program can't dial: {0}")]
    OurKeys(String),
    #[error("{0}")]
    Other(String),
}

impl From<Ended> for ConnectError {
    fn from(ended: Ended) -> ConnectError {
        match ended {
            Ended::Silent => ConnectError::NoAnswer,
            Ended::Busy => ConnectError::Busy,
            Ended::Untrusted(why) => ConnectError::Untrusted(why),
            Ended::NoCommonProtocol => ConnectError::Protocol,
            Ended::Refused(alert) => ConnectError::Refused(alert),
            Ended::ByUs | Ended::ByPeer { .. } | Ended::Restarted | Ended::Broken(_) => ConnectError::Other(ended.to_string()),
        }
    }
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = tokio::net::lookup_host(address).await.map_err(|error| ConnectError::Address(error.to_string()))?;
    Ok(found.collect())
}

// --- a connection ---

/// Who is at the other end, by its certificate alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub leaf: Leaf,
    /// Where it came from at the handshake.
    pub address: SocketAddr,
}

impl Peer {
    pub fn name(&self) -> &Name {
        &self.leaf.identity.name
    }

    /// An agent's device.
    pub fn device(&self) -> Option<DeviceId> {
        self.name().device().map(DeviceId)
    }

    /// Where it belongs (not where it may deliver).
    pub fn site(&self) -> Option<&str> {
        self.name().site()
    }
}

/// A connection of two who know each other. It ends by itself at its greatest age or with either certificate; when the last clone and the
/// last stream are dropped it ends too.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    quinn: quinn::Connection,
    peer: Peer,
    lanes: tokio::sync::Mutex<Lanes>,
    age: AbortHandle,
}

/// Lane streams that the peer opened.
#[derive(Default)]
struct Lanes {
    /// Accepted, its lane not read yet: kept here so that a dropped `accept_lane` doesn't lose it.
    arriving: Option<Inlet>,
    seen: [bool; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.age.abort();
    }
}

impl Connection {
    fn new<E: From<Ended>>(
        quinn: quinn::Connection,
        keys: &Keys,
        check: impl FnOnce(&[CertificateDer<'_>], &Keys) -> Result<Leaf, E>,
    ) -> Result<Connection, E> {
        let chain = quinn.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
        let chain = chain.ok_or_else(|| Ended::Broken("the peer showed no certificate".to_owned()))?;
        let leaf = check(&chain, keys)?;
        let peer = Peer { leaf, address: quinn.remote_address() };
        let age = end_in_time(quinn.clone(), age_left(keys, &peer.leaf));
        Ok(Connection { inner: Arc::new(Inner { quinn, peer, lanes: Default::default(), age }) })
    }

    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// Where the peer is now: a laptop may change its network without losing the connection.
    pub fn address(&self) -> SocketAddr {
        self.inner.quinn.remote_address()
    }

    /// The network's current estimate of a round trip.
    pub fn round_trip(&self) -> Duration {
        self.inner.quinn.rtt()
    }

    /// Ends the connection now; what wasn't sent yet is dropped. Only the first call's reason arrives. `text` is for the peer's log.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.inner.quinn.close(number(code), text.as_bytes());
    }

    /// Waits for the end and says why.
    pub async fn closed(&self) -> Ended {
        self.inner.quinn.closed().await.into()
    }

    /// Why it ended, if it did.
    pub fn ended(&self) -> Option<Ended> {
        self.inner.quinn.close_reason().map(Ended::from)
    }

    /// The agent's first stream. The relay sees it with the first message.
    pub async fn open_control(&self) -> Result<(ControlSender, ControlReceiver), StreamError> {
        let deadline = Instant::now() + limits::HANDSHAKE_TIMEOUT;
        let opened = timeout_at(deadline, self.inner.quinn.open_bi()).await.map_err(|_| StreamError::NotOpened)?;
        Ok(stream::control(self, opened.map_err(Ended::from)?))
    }

    /// The stream for one lane's envelopes; one of each per connection.
    pub async fn open_lane(&self, lane: Lane) -> Result<LaneSender, StreamError> {
        let deadline = Instant::now() + limits::HANDSHAKE_TIMEOUT;
        let opened = timeout_at(deadline, self.inner.quinn.open_uni()).await.map_err(|_| StreamError::NotOpened)?;
        LaneSender::begin(self, opened.map_err(Ended::from)?, lane).await
    }

    /// The control stream that the agent opened.
    pub async fn accept_control(&self) -> Result<(ControlSender, ControlReceiver), StreamError> {
        Ok(stream::control(self, self.inner.quinn.accept_bi().await.map_err(Ended::from)?))
    }

    /// The next lane that the agent opened. An error that has a [`AcceptError::close_code`] should end the connection.
    pub async fn accept_lane(&self) -> Result<LaneReceiver, AcceptError> {
        let mut lanes = self.inner.lanes.lock().await;
        if lanes.arriving.is_none() {
            let stream = self.inner.quinn.accept_uni().await.map_err(|error| StreamError::Ended(error.into()))?;
            lanes.arriving = Some(Inlet::new(stream));
        }
        let first = match &mut lanes.arriving {
            Some(inlet) => inlet.gather(1).await,
            None => Ok(false),
        };
        // From here on nothing waits, so the stream can't be lost between its slot and the caller.
        let Some(mut inlet) = lanes.arriving.take() else { return Err(AcceptError::NoLane) };
        if !first? {
            return Err(AcceptError::NoLane);
        }
        let number = inlet.take()[0];
        let lane = Lane::from_u8(number).ok_or(AcceptError::UnknownLane(number))?;
        if mem::replace(&mut lanes.seen[lane.index()], true) {
            return Err(AcceptError::SecondLane(lane));
        }
        Ok(LaneReceiver::new(self, inlet, lane))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.inner.peer.leaf.identity).finish()
    }
}

/// How long a connection may live: a day at most, and no longer than either certificate. A tenth of it is left to chance, so that a branch
/// that came back together doesn't dial together every day.
fn age_left(keys: &Keys, peer: &Leaf) -> Duration {
    let now_ms = keys.time().current_time().map_or(0, |now| now.as_secs().saturating_mul(1_000));
    let end_ms = keys.not_after_ms().min(peer.not_after_ms).max(0) as u64;
    let certificates = Duration::from_millis(end_ms.saturating_sub(now_ms));
    let age = limits::CONNECTION_AGE_MAX - chance::jitter(limits::CONNECTION_AGE_MAX / 10);
    age.min(certificates)
}

fn end_in_time(quinn: quinn::Connection, left: Duration) -> AbortHandle {
    let ending = tokio::spawn(async move {
        sleep(left).await;
        quinn.close(number(CloseCode::Aged), b"the connection reached its age");
    });
    ending.abort_handle()
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// We closed it.
    #[error("closed by this side")]
    ByUs,
    /// The peer closed it; without a code it just let go, or is newer than this build.
    #[error("closed by the other side: {text} ({number})")]
    ByPeer { code: Option<CloseCode>, number: u64, text: String },
    /// The peer is draining or flooded.
    #[error("the other side is busy and takes nobody new")]
    Busy,
    /// The peer's certificate doesn't hold here.
    #[error("the other side's certificate is not accepted: {0}")]
    Untrusted(String),
    /// Our certificate doesn't hold there; the number is the TLS alert.
    #[error("the other side doesn't accept our certificate (TLS alert {0})")]
    Refused(u8),
    #[error("there is no common protocol")]
    NoCommonProtocol,
    /// Nothing was heard for `limits::CONNECTION_SILENCE`, or the handshake wasn't answered.
    #[error("the other side is silent")]
    Silent,
    /// The peer knows nothing of this connection any more.
    #[error("the other side was restarted")]
    Restarted,
    #[error("the connection broke: {0}")]
    Broken(String),
}

const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

impl From<quinn::ConnectionError> for Ended {
    fn from(error: quinn::ConnectionError) -> Ended {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                let number = close.error_code.into_inner();
                Ended::ByPeer { code: CloseCode::from_u64(number), number, text: reason(&close.reason) }
            }
            E::ConnectionClosed(close) if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED => Ended::Busy,
            E::ConnectionClosed(close) => match alert(close.error_code) {
                Some(ALERT_NO_APPLICATION_PROTOCOL) => Ended::NoCommonProtocol,
                Some(alert) => Ended::Refused(alert),
                None => Ended::Broken(format!("{} ({})", close.error_code, reason(&close.reason))),
            },
            E::TransportError(error) => match alert(error.code) {
                Some(ALERT_NO_APPLICATION_PROTOCOL) => Ended::NoCommonProtocol,
                Some(_) => Ended::Untrusted(handshake_words(&error.reason).to_owned()),
                None => Ended::Broken(error.to_string()),
            },
            E::TimedOut => Ended::Silent,
            E::Reset => Ended::Restarted,
            E::LocallyClosed => Ended::ByUs,
            E::VersionMismatch => Ended::NoCommonProtocol,
            E::CidsExhausted => Ended::Broken("no connection ids are left".to_owned()),
        }
    }
}

/// QUIC puts TLS alerts into 0x100 to 0x1ff.
fn alert(code: quinn::TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())
}

/// A peer's words, fit for a log.
fn reason(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(REASON_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn number(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

// --- configuration ---

fn server_side(keys: &Arc<Keys>, tuning: Tuning) -> Result<quinn::ServerConfig, Complaint> {
    let wrong =
        |why: String| Complaint::new(format!("agents can't be received with these keys: {why}"), "Name a relay's certificate in [agents]");
    let tls = server_config(keys, DIALLERS, &[message::AGENT_ALPN]).map_err(|error| wrong(error.to_string()))?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| wrong(error.to_string()))?;
    let mut transport = transport(tuning);
    transport
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams((Lane::ALL.len() as u32).into())
        .stream_receive_window(window(limits::STREAM_WINDOW_BYTES))
        .receive_window(window(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::RELAY_SEND_WINDOW_BYTES as u64);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(limits::INCOMING_MAX)
        .incoming_buffer_size(limits::INCOMING_BYTES_MAX as u64)
        .incoming_buffer_size_total((limits::INCOMING_MAX * limits::INCOMING_BYTES_MAX) as u64);
    Ok(config)
}

fn client_side(keys: &Arc<Keys>, expected: &Name, tuning: Tuning) -> Result<quinn::ClientConfig, ConnectError> {
    let tls = client_config(keys, expected, &[message::AGENT_ALPN]).map_err(|error| ConnectError::OurKeys(error.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| ConnectError::OurKeys(error.to_string()))?;
    let mut transport = transport(tuning);
    // Only the agent keeps the connection alive: it also keeps the firewall before it open, and two would cost twice.
    transport
        .keep_alive_interval(Some(limits::KEEP_ALIVE_EVERY))
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window(limits::AGENT_WINDOW_BYTES))
        .receive_window(window(limits::AGENT_WINDOW_BYTES))
        .send_window(limits::AGENT_SEND_WINDOW_BYTES as u64);
    if tuning.mtu_discovery {
        transport.mtu_discovery_config(Some(mtu_discovery()));
    }
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport(tuning: Tuning) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let silence = window(limits::CONNECTION_SILENCE.as_millis() as usize);
    transport
        .max_idle_timeout(Some(silence.into()))
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(tuning.segmentation_offload);
    if !tuning.mtu_discovery {
        transport.mtu_discovery_config(None);
    }
    transport
}

/// Only an agent sends much. It searches once per connection: where a size isn't carried, each attempt is a few lost packets.
fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(limits::DATAGRAM_BYTES_MAX).interval(limits::CONNECTION_AGE_MAX);
    discovery
}

/// All bounds in `limits` fit: 2^62 is the end.
fn window(bytes: usize) -> VarInt {
    VarInt::from_u64(bytes as u64).unwrap_or(VarInt::MAX)
}

/// With large buffers, as far as the kernel allows: at its default a burst of a whole branch is dropped.
fn udp_socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, limits::UDP_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, limits::UDP_BUFFER_BYTES);
    Ok(socket)
}

fn endpoint(socket: Arc<dyn AsyncUdpSocket>, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    if server.is_some() {
        config.max_udp_payload_size(limits::DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    }
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))
}

fn not_bound(listen: SocketAddr, error: &io::Error, field: &str) -> Complaint {
    let another = format!("give another address as `{field}`");
    match error.kind() {
        io::ErrorKind::AddrInUse => Complaint::new(
            format!("port {}/udp on {} is in use by another program", listen.port(), listen.ip()),
            format!("Stop it, or {another}"),
        ),
        io::ErrorKind::AddrNotAvailable => Complaint::new(
            format!("this computer has no address {}", listen.ip()),
            format!("Give one of its own, or 0.0.0.0 for all, as `{field}`"),
        ),
        io::ErrorKind::PermissionDenied => Complaint::new(
            format!("this user may not listen on port {}/udp", listen.port()),
            format!("Give a port above 1023 as `{field}`"),
        ),
        _ => Complaint::new(format!("nobody can be received on {listen}: {error}"), format!("Give another address as `{field}`")),
    }
}

#[cfg(test)]
mod tests;
