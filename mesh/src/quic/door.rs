//! Async: the door beside the listener for agents: a port of its own where nobody shows a certificate, and one question is answered a connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use muster_certs::{DIALLED_NAME, Keys, Name, Trusted, check_door, door_config, stranger_config};
use quinn::{
    Endpoint, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{pki_types::CertificateDer, time_provider::TimeProvider};
use tokio::time::{Instant, timeout_at};

use super::{ConnectError, Counted, Ended, Kernel, Network, Tuning, endpoint, not_bound, number, resolve, transport, window};
use crate::{complaint::Complaint, door::DOOR_ALPN, limits, message::CloseCode};

/// Strangers at once; more are told to come later.
const KNOCKS_MAX: usize = 64;
/// Which field of the configuration a wrong address stands in.
const FIELD: &str = "door.listen";

/// A relay's door.
pub struct DoorServer {
    endpoint: Endpoint,
    address: SocketAddr,
    knocks: Arc<std::sync::atomic::AtomicUsize>,
}

/// Somebody who wants to ask.
pub struct Knock {
    incoming: quinn::Incoming,
    deadline: Instant,
    _counted: Counted,
}

/// A question, to be answered once.
pub struct Question {
    /// An encoded [`crate::door::Ask`], or rubbish.
    pub ask: Vec<u8>,
    connection: quinn::Connection,
    answer: quinn::SendStream,
    deadline: Instant,
    _counted: Counted,
}

impl DoorServer {
    /// Listens on `listen` (UDP; port 0 chooses one). Later swaps of `keys` count for the next handshake.
    pub fn bind(listen: SocketAddr, keys: &Arc<Keys>) -> Result<DoorServer, Complaint> {
        DoorServer::bind_on(&Kernel, listen, keys)
    }

    pub fn bind_on(network: &dyn Network, listen: SocketAddr, keys: &Arc<Keys>) -> Result<DoorServer, Complaint> {
        let wrong = |why: String| {
            Complaint::new(format!("strangers can't be received with these keys: {why}"), "Name a relay's certificate in [agents]")
        };
        let tls = door_config(keys, &[DOOR_ALPN]).map_err(|error| wrong(error.to_string()))?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| wrong(error.to_string()))?;
        let mut transport = transport(Tuning::default());
        transport
            .max_idle_timeout(Some(window(limits::DOOR_TIMEOUT.as_millis() as usize).into()))
            .max_concurrent_bidi_streams(1u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(window(limits::DOOR_BYTES_MAX))
            .receive_window(window(limits::DOOR_BYTES_MAX))
            .send_window(limits::DOOR_BYTES_MAX as u64);
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(transport))
            .max_incoming(KNOCKS_MAX)
            .incoming_buffer_size(limits::INCOMING_BYTES_MAX as u64)
            .incoming_buffer_size_total((KNOCKS_MAX * limits::INCOMING_BYTES_MAX) as u64);
        let unbound = |error: std::io::Error| not_bound(listen, &error, FIELD);
        let endpoint = endpoint(network.socket(listen).map_err(unbound)?, Some(config)).map_err(unbound)?;
        let address = endpoint.local_addr().map_err(unbound)?;
        Ok(DoorServer { endpoint, address, knocks: Arc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next who knocks and whose address is real. None: the door was closed.
    pub async fn knocked(&self) -> Option<Knock> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if self.knocks.load(std::sync::atomic::Ordering::Relaxed) >= KNOCKS_MAX {
                incoming.refuse();
            } else if !incoming.remote_address_validated() && incoming.may_retry() {
                // Always: what is counted per address must not be counted for somebody else. It can only fail for one that was asked already.
                let _ = incoming.retry();
            } else {
                let deadline = Instant::now() + limits::DOOR_TIMEOUT;
                return Some(Knock { incoming, deadline, _counted: Counted::new(&self.knocks) });
            }
        }
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.endpoint.close(number(CloseCode::Leaving), b"the door is closed");
    }
}

impl Knock {
    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Tells it at once to come later.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Hears the question. None: it was none in time, or too long.
    pub async fn question(self) -> Option<Question> {
        let Knock { incoming, deadline, _counted } = self;
        let heard = timeout_at(deadline, async {
            let connection = incoming.accept().ok()?.await.ok()?;
            let (answer, mut asked) = connection.accept_bi().await.ok()?;
            let ask = asked.read_to_end(limits::DOOR_BYTES_MAX).await.ok()?;
            Some((ask, connection, answer))
        });
        let (ask, connection, answer) = heard.await.ok()??;
        Some(Question { ask, connection, answer, deadline, _counted })
    }
}

impl Question {
    /// How long there is for an answer.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Answers, and stays until it was heard or the time is up.
    pub async fn answer(mut self, bytes: &[u8]) {
        let answered = timeout_at(self.deadline, async {
            self.answer.write_all(bytes).await.ok()?;
            self.answer.finish().ok()?;
            // Who has heard it lets go.
            self.connection.closed().await;
            Some(())
        });
        let _ = answered.await;
        self.connection.close(number(CloseCode::Leaving), b"answered");
    }
}

/// Asks one question at a door, where exactly `expected` must answer, with one of the trusted roots behind it.
pub async fn ask_at_door(
    network: &dyn Network,
    address: &str,
    trusted: &Trusted,
    expected: &Name,
    time: Arc<dyn TimeProvider>,
    ask: &[u8],
) -> Result<Vec<u8>, ConnectError> {
    let deadline = Instant::now() + limits::DOOR_TIMEOUT;
    let config = stranger_side(trusted, expected, time)?;
    let addresses = timeout_at(deadline, resolve(address)).await.map_err(|_| ConnectError::NoAnswer)??;
    let mut failed = ConnectError::Address("the name has no address".to_owned());
    for (tried, one) in addresses.iter().enumerate() {
        let left = (addresses.len() - tried) as u32;
        let share = Instant::now() + deadline.saturating_duration_since(Instant::now()) / left;
        match timeout_at(share, ask_one(network, *one, trusted, expected, config.clone(), ask)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = ConnectError::NoAnswer,
        }
    }
    Err(failed)
}

async fn ask_one(
    network: &dyn Network,
    address: SocketAddr,
    trusted: &Trusted,
    expected: &Name,
    config: quinn::ClientConfig,
    ask: &[u8],
) -> Result<Vec<u8>, ConnectError> {
    let any = SocketAddr::from(match address {
        SocketAddr::V4(_) => (std::net::IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED), 0),
        SocketAddr::V6(_) => (std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED), 0),
    });
    let socket = network.socket(any).and_then(|socket| endpoint(socket, None)).map_err(|error| ConnectError::Socket(error.to_string()))?;
    let connecting = socket.connect_with(config, address, DIALLED_NAME).map_err(|error| ConnectError::Address(error.to_string()))?;
    let connection = connecting.await.map_err(Ended::from)?;
    let chain = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok()).unwrap_or_default();
    check_door(&chain, trusted, expected).map_err(|why| ConnectError::Untrusted(why.to_string()))?;
    let broken = |why: String| connection.close_reason().map_or(ConnectError::Other(why), |ended| Ended::from(ended).into());
    let (mut asking, mut answered) = connection.open_bi().await.map_err(Ended::from)?;
    asking.write_all(ask).await.map_err(|error| broken(error.to_string()))?;
    asking.finish().map_err(|error| broken(error.to_string()))?;
    let answer = answered.read_to_end(limits::DOOR_BYTES_MAX).await.map_err(|error| broken(error.to_string()))?;
    connection.close(VarInt::from_u32(0), b"");
    socket.wait_idle().await;
    Ok(answer)
}

fn stranger_side(trusted: &Trusted, expected: &Name, time: Arc<dyn TimeProvider>) -> Result<quinn::ClientConfig, ConnectError> {
    let tls = stranger_config(trusted, expected, time, &[DOOR_ALPN]).map_err(|error| ConnectError::OurKeys(error.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| ConnectError::OurKeys(error.to_string()))?;
    let mut transport = transport(Tuning::default());
    transport.max_concurrent_bidi_streams(0u32.into()).max_concurrent_uni_streams(0u32.into());
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
