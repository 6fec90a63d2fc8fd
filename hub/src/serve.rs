//! Async: listeners. TCP, TLS and HTTP with time limits around warp, which has none of its own.
//!
//! A connection has a slot, so many seconds for its handshake, so many until its first request, and an end: at the latest when either
//! certificate ends. A drain lets what is being answered be answered.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Limited;
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use muster_certs::{Denied, Keys, Leaf, Name, Role, WebKeys, handshake_words};
use muster_mesh::{callers::Callers, clock::Clock, complaint::Complaint, limits};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;
use warp::{filters::BoxedFilter, reply::Response};

use crate::api::{door::busy, problem::ApiError};

/// Connections of one listener; more wait in the kernel.
const CONNECTIONS_MAX: usize = 1_024;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until the first request's head is here.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
const HEADER: Duration = Duration::from_secs(15);
/// One request, body and answer: 8 MiB over a slow line, and a commit on a slow disk.
const REQUEST: Duration = Duration::from_secs(120);
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Whoever asked too often at the door comes again after this: by then it is another minute.
const TURNED_AWAY_S: u32 = 60;
/// Somebody without a certificate: a question or two.
const STRANGER: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(20);
/// A relay has one POST in flight per lane.
const STREAMS_MAX: u32 = 8;
/// A little above what a handler takes, so that it is the handler who says that a body is too long.
const BODY_BYTES_MAX: usize = limits::POST_BYTES_MAX + 64 * 1_024;
/// Relays only: an agent has no business here.
const RELAYS: &[Role] = &[Role::Relay];

/// Who is at the other end: an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// From the certificate; None at the web port.
    pub name: Option<Name>,
}

/// What a connection has to pass before its requests are answered.
pub enum Door {
    /// Mutual TLS, relays only.
    Mesh { keys: Arc<Keys>, tls: Arc<ServerConfig>, clock: Arc<dyn Clock>, denials: watch::Receiver<Arc<Denied>> },
    /// TLS for those who have no certificate. Each address connects so often a minute, and asks so often over all its connections.
    Strangers { tls: Arc<ServerConfig>, connected: Mutex<Callers>, asked: Mutex<Callers>, clock: Arc<dyn Clock> },
    /// TLS with the organisation's certificate, for people. A web page whose name points here has no certificate for it.
    WebTls { tls: Arc<ServerConfig> },
    /// Plain HTTP on loopback. Only requests that name this host: otherwise any web page could have its name point here.
    Web,
}

impl Door {
    /// `denials` tells whenever others are denied: their connections end at once.
    pub fn mesh(keys: Arc<Keys>, clock: Arc<dyn Clock>, denials: watch::Receiver<Arc<Denied>>) -> Result<Door, Complaint> {
        let tls = muster_certs::server_config(&keys, RELAYS, &[b"h2", b"http/1.1"])
            .map_err(|error| Complaint::new(format!("TLS can't be set up ({error})"), "Issue a hub's certificate with muster-certs"))?;
        Ok(Door::Mesh { keys, tls: Arc::new(tls), clock, denials })
    }

    pub fn strangers(keys: &Arc<Keys>, clock: Arc<dyn Clock>) -> Result<Door, Complaint> {
        let tls = muster_certs::door_config(keys, &[b"h2", b"http/1.1"])
            .map_err(|error| Complaint::new(format!("TLS can't be set up ({error})"), "Issue a hub's certificate with muster-certs"))?;
        Ok(Door::Strangers { tls: Arc::new(tls), connected: Mutex::default(), asked: Mutex::default(), clock })
    }

    /// None: plain HTTP.
    pub fn web(keys: Option<&Arc<WebKeys>>) -> Result<Door, Complaint> {
        let Some(keys) = keys else { return Ok(Door::Web) };
        let tls = muster_certs::web_config(keys, &[b"h2", b"http/1.1"])
            .map_err(|error| Complaint::new(format!("TLS can't be set up ({error})"), "Look at `web.certificate` and `web.key`"))?;
        Ok(Door::WebTls { tls: Arc::new(tls) })
    }

    /// Whether this address may connect now.
    fn admits(&self, address: SocketAddr) -> bool {
        match self {
            Door::Mesh { .. } | Door::WebTls { .. } | Door::Web => true,
            Door::Strangers { connected, clock, .. } => admits(connected, address, clock),
        }
    }

    /// Whether this address may ask now, over a connection that it has.
    fn hears(&self, address: SocketAddr) -> bool {
        match self {
            Door::Mesh { .. } | Door::WebTls { .. } | Door::Web => true,
            Door::Strangers { asked, clock, .. } => admits(asked, address, clock),
        }
    }
}

fn admits(callers: &Mutex<Callers>, address: SocketAddr, clock: &Arc<dyn Clock>) -> bool {
    // Nothing under this lock panics half-way through a change.
    let admitted = callers.lock().unwrap_or_else(PoisonError::into_inner).admit(address.ip(), clock.now().boot_ms);
    if !admitted {
        metrics::counter!("muster_hub_door_turned_away_total").increment(1);
    }
    admitted
}

/// Takes a port. `field` is its name in the configuration.
pub async fn bind(listen: SocketAddr, field: &str) -> Result<TcpListener, Complaint> {
    TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Complaint::new(
            format!("port {} on {} is in use by another program", listen.port(), listen.ip()),
            format!("Stop it, or give another as `{field}`"),
        ),
        _ => Complaint::new(format!("the hub can't listen on {listen}: {error}"), format!("Give another as `{field}`")),
    })
}

/// Answers until `stop`, then drains.
pub fn spawn(listener: TcpListener, door: Door, routes: BoxedFilter<(Response,)>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(Listening { listener, door: Arc::new(door), routes, stop }.run())
}

struct Listening {
    listener: TcpListener,
    door: Arc<Door>,
    routes: BoxedFilter<(Response,)>,
    stop: CancellationToken,
}

impl Listening {
    async fn run(self) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            // Nothing is accepted while all slots are taken.
            let slot = tokio::select! {
                slot = slots.clone().acquire_owned() => slot,
                () = self.stop.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            match accepted {
                Ok((_, address)) if !self.door.admits(address) => {}
                Ok((stream, address)) => {
                    let connection = Connection {
                        door: self.door.clone(),
                        routes: self.routes.clone(),
                        stop: self.stop.clone(),
                        peer: Peer { address, name: None },
                        leaf: None,
                        ends: Instant::now() + CONNECTION_AGE_MAX,
                        asked: Arc::default(),
                    };
                    connections.spawn(async move {
                        connection.run(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Most likely no file descriptor is left: the next ones end first.
                    tracing::warn!(%error, "a connection can't be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        connections.close();
        if timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!("some requests were not answered in time and are cut off");
        }
    }
}

struct Connection {
    door: Arc<Door>,
    routes: BoxedFilter<(Response,)>,
    stop: CancellationToken,
    peer: Peer,
    /// At the mesh port, what the peer's certificate says.
    leaf: Option<Leaf>,
    ends: Instant,
    /// Whether a request's head has come.
    asked: Arc<AtomicBool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match self.door.clone().as_ref() {
            Door::Web => self.serve(stream).await,
            Door::WebTls { tls } => match timeout(HANDSHAKE, TlsAcceptor::from(tls.clone()).accept(stream)).await {
                Ok(Ok(stream)) => self.serve(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "a handshake at the web port failed"),
                Err(_) => tracing::debug!("a handshake at the web port took too long"),
            },
            Door::Strangers { tls, .. } => {
                self.ends = self.ends.min(Instant::now() + STRANGER);
                let acceptor = TlsAcceptor::from(tls.clone());
                match timeout(limits::DOOR_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.serve(stream).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake at the door failed"),
                    Err(_) => tracing::debug!("a handshake at the door took too long"),
                }
            }
            Door::Mesh { keys, tls, clock, .. } => {
                let acceptor = TlsAcceptor::from(tls.clone());
                let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return say_refused(&error),
                    Err(_) => return tracing::debug!("a handshake at the mesh port took too long"),
                };
                // The check inside the handshake, once more: nothing below depends on how the library calls verifiers.
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let leaf = match muster_certs::check_peer(chain, keys, RELAYS) {
                    Ok(leaf) => leaf,
                    Err(error) => return tracing::warn!(%error, "a connection at the mesh port was refused"),
                };
                let left_ms = leaf.not_after_ms.min(keys.not_after_ms()).saturating_sub(clock.now().wall_ms);
                let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
                self.ends = self.ends.min(Instant::now() + left.min(CONNECTION_AGE_MAX));
                self.peer.name = Some(leaf.identity.name.clone());
                self.leaf = Some(leaf);
                self.serve(stream).await;
            }
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let builder = http();
        let service = hyper::service::service_fn(|request| self.answer(request));
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let first_request = Instant::now() + FIRST_REQUEST;
        let (mut closing, mut heard) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(self.ends), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                // At once: nothing that is under way is answered.
                () = self.denied() => {
                    metrics::counter!("muster_hub_denied_total").increment(1);
                    return tracing::warn!("the connection of somebody who was denied is closed");
                }
                // Asked when the time has come: a condition before the arm would be that of the connection's beginning.
                () = sleep_until(first_request), if !heard => {
                    heard = true;
                    if !self.asked.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits until the peer is denied.
    async fn denied(&self) {
        let (Door::Mesh { keys, denials, .. }, Some(leaf)) = (self.door.as_ref(), &self.leaf) else { return pending().await };
        let mut denials = denials.clone();
        while keys.check_denied(leaf).is_ok() {
            // Nobody is denied any more once the hub has ended.
            if denials.changed().await.is_err() {
                return pending().await;
            }
        }
    }

    fn is_denied(&self) -> bool {
        match (self.door.as_ref(), &self.leaf) {
            (Door::Mesh { keys, .. }, Some(leaf)) => keys.check_denied(leaf).is_err(),
            (Door::Mesh { .. } | Door::Strangers { .. } | Door::WebTls { .. } | Door::Web, _) => false,
        }
    }

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        self.asked.store(true, Ordering::Relaxed);
        let here = match self.door.as_ref() {
            Door::Mesh { .. } | Door::Strangers { .. } | Door::WebTls { .. } => true,
            Door::Web => names_this_host(&request),
        };
        let (is_heard, is_denied) = (self.door.hears(self.peer.address), self.is_denied());
        let mut request = request.map(|body| Limited::new(body, BODY_BYTES_MAX));
        request.extensions_mut().insert(self.peer.clone());
        let mut service = warp::service(self.routes.clone());
        async move {
            if !here {
                return Ok(ApiError::OtherHost.response());
            }
            if !is_heard {
                return Ok(busy(TURNED_AWAY_S).unwrap_or_else(|error| error.response()));
            }
            if is_denied {
                return Ok(ApiError::NotARelay.response());
            }
            match timeout(REQUEST, service.call(request)).await {
                Ok(answered) => answered,
                Err(_) => Ok(ApiError::Slow.response()),
            }
        }
    }
}

/// Someone with a wrong certificate is worth a line; a scanner that says something else isn't.
fn say_refused(error: &io::Error) {
    metrics::counter!("muster_hub_handshakes_refused_total").increment(1);
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            tracing::info!(error = handshake_words(&error.to_string()), "a certificate was refused at the mesh port");
        }
        _ => tracing::debug!(%error, "a handshake at the mesh port failed"),
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER).max_headers(64).max_buf_size(64 * 1_024);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(32 * 1_024)
        .max_pending_accept_reset_streams(20)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    http
}

fn names_this_host<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(|authority| authority.as_str());
    // HTTP/2 has it in the URI, HTTP/1 in the header; where both are given both count.
    let given: Vec<&str> = authority.into_iter().chain(host).collect();
    !given.is_empty() && given.iter().all(|host| is_this_host(host))
}

/// `localhost`, `127.0.0.1` or `[::1]`, with or without a port.
fn is_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_answered() {
        for ours in ["localhost", "LOCALHOST:8443", "127.0.0.1:1", "[::1]:8443", "[::1]"] {
            assert!(is_this_host(ours), "{ours}");
        }
        for other in ["", "evil.example", "localhost.evil.example:8443", "127.0.0.1.evil.example", "localhost:", "::1", "user@localhost"] {
            assert!(!is_this_host(other), "{other}");
        }
    }

    #[test]
    fn a_request_that_names_two_hosts_is_not_answered() {
        let request = |uri: &str, host: Option<&str>| {
            let request = Request::builder().uri(uri);
            match host {
                Some(host) => request.header("host", host),
                None => request,
            }
            .body(())
            .unwrap()
        };
        assert!(names_this_host(&request("/", Some("localhost"))));
        assert!(names_this_host(&request("http://localhost/", None)));
        assert!(!names_this_host(&request("http://localhost/", Some("evil.example"))));
        assert!(!names_this_host(&request("/", None)));
    }
}
