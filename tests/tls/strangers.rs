//! Async: clients and servers without manners: they show any certificate or none, take whoever answers, and say what a test wants.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{DIALLED_NAME, Signed, tls::provider};
use muster_mesh::{
    batch::Tail,
    ids::{BootId, InstanceId, Lane},
    message::{self, Answer, CloseCode, Down, Hello, PostHead, QueueState, SYNC_CONTENT_TYPE, Up},
};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::mesh::*;

pub const HTTP: &[u8] = b"http/1.1";

/// How a listener answered somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The relay's Welcome, or the hub's answer, came.
    Welcomed,
    /// TLS ended it; the number of the alert.
    Alert(u8),
    /// The relay ended it by a code of ours.
    Closed(CloseCode),
    /// It ended without a word that says why.
    Cut,
}

pub fn alert(alert: AlertDescription) -> Met {
    Met::Alert(u8::from(alert))
}

/// A TLS client that shows this certificate, or none, and takes whoever answers.
pub fn client(shown: Option<&Signed>, alpn: &[u8]) -> ClientConfig {
    let builder = ClientConfig::builder_with_details(provider().clone(), Arc::new(muster_certs::SystemTime))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match shown {
        Some(signed) => builder.with_client_auth_cert(signed.chain.clone(), key(signed)).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// A TLS server that shows this certificate and asks for none.
pub fn server(shown: &Signed, alpn: &[u8]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_details(provider().clone(), Arc::new(muster_certs::SystemTime))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), key(shown))
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn key(signed: &Signed) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(signed.key_pem.as_bytes()).unwrap()
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

// --- QUIC ---

pub fn endpoint() -> Endpoint {
    Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
}

pub fn quic_client(tls: ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// Dials a relay, says Hello, and waits for what comes.
pub async fn knock_at_relay(address: SocketAddr, tls: ClientConfig) -> Met {
    match timeout(SOON, Visit::open(address, quic_client(tls), 1)).await.unwrap() {
        Ok(_) => Met::Welcomed,
        Err(error) => met(&error),
    }
}

/// A connection that the relay has welcomed.
pub struct Visit {
    pub connection: Connection,
    pub up: SendStream,
    pub down: RecvStream,
    _endpoint: Endpoint,
}

impl Visit {
    pub async fn open(address: SocketAddr, config: quinn::ClientConfig, dial: u64) -> Result<Visit, ConnectionError> {
        let mut visit = Visit::silent(address, config).await?;
        visit.say(&Up::Hello(hello(dial)).frame().unwrap()).await?;
        match visit.hear().await? {
            Some(Down::Welcome(_)) => Ok(visit),
            other => panic!("a Welcome comes first: {other:?}"),
        }
    }

    /// Connected, and nothing said yet.
    pub async fn silent(address: SocketAddr, config: quinn::ClientConfig) -> Result<Visit, ConnectionError> {
        let endpoint = endpoint();
        let connection = endpoint.connect_with(config, address, DIALLED_NAME).unwrap().await?;
        let (up, down) = connection.open_bi().await?;
        Ok(Visit { connection, up, down, _endpoint: endpoint })
    }

    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        match self.up.write_all(bytes).await {
            Ok(()) => Ok(()),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next control message that is known.
    pub async fn hear(&mut self) -> Result<Option<Down>, ConnectionError> {
        let mut length = [0; 4];
        self.read(&mut length).await?;
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        self.read(&mut message).await?;
        Ok(Down::read(&message).unwrap())
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), ConnectionError> {
        match self.down.read_exact(bytes).await {
            Ok(()) => Ok(()),
            Err(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => Err(error),
            Err(quinn::ReadExactError::FinishedEarly(_)) => Err(self.connection.closed().await),
            Err(error) => panic!("{error}"),
        }
    }

    /// A lane's stream with these bytes behind the lane's number.
    pub async fn lane(&self, lane: Lane, bytes: &[u8]) -> SendStream {
        let mut stream = self.connection.open_uni().await.unwrap();
        stream.write_all(&[lane.as_u8()]).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Hears on until so many envelopes of telemetry are acked.
    pub async fn acked(&mut self, count: u64) {
        loop {
            if let Some(Down::Ack(ack)) = timeout(SOON, self.hear()).await.unwrap().unwrap()
                && (ack.lane, ack.count) == (Lane::Telemetry, count)
            {
                return;
            }
        }
    }

    pub async fn ended(&self) -> Met {
        met(&timeout(SOON, self.connection.closed()).await.unwrap())
    }
}

pub fn met(error: &ConnectionError) -> Met {
    match error {
        ConnectionError::ConnectionClosed(close) => {
            u64::from(close.error_code).checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok()).map_or(Met::Cut, Met::Alert)
        }
        ConnectionError::ApplicationClosed(close) => CloseCode::from_u64(close.error_code.into_inner()).map_or(Met::Cut, Met::Closed),
        _ => Met::Cut,
    }
}

fn hello(dial: u64) -> Hello {
    let now_ms = now_ms();
    Hello {
        protocols: (message::AGENT_PROTOCOL, message::AGENT_PROTOCOL),
        dial,
        boot: BootId([3; 16]),
        wall_ms: now_ms,
        boot_ms: 1_000,
        zone: "Europe/Oslo".to_owned(),
        versions: Vec::new(),
        tails: Vec::<Tail>::new(),
    }
}

/// A relay's door that shows this certificate to whoever comes.
pub fn quic_server(shown: &Signed) -> (SocketAddr, Endpoint) {
    let crypto = QuicServerConfig::try_from(server(shown, message::AGENT_ALPN)).unwrap();
    let endpoint =
        Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    });
    (endpoint.local_addr().unwrap(), endpoint)
}

/// A transport that reads nothing beyond so many bytes of a stream.
pub fn reading_little(bytes: u32) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(bytes.into()).keep_alive_interval(Some(Duration::from_secs(5)));
    Arc::new(transport)
}

// --- HTTPS ---

/// Comes to the hub's mesh port, waits a while for the door to be shut, then brings a POST.
pub async fn knock_at_hub(address: SocketAddr, tls: ClientConfig) -> Met {
    let mut stream = match dial_hub(address, tls).await {
        Ok(stream) => stream,
        Err(error) => return met_tls(&error),
    };
    // Who is refused is told so at once. What is written before that would have the kernel throw the alert away.
    let mut byte = [0; 1];
    match timeout(Duration::from_secs(3), stream.read(&mut byte)).await {
        Ok(Ok(0)) => Met::Cut,
        Ok(Ok(_)) => panic!("nobody asked yet, and the hub answers"),
        Ok(Err(error)) => met_tls(&error),
        Err(_) => bring_post(&mut stream).await,
    }
}

/// Brings a POST at once: for who is welcome.
pub async fn post_to_hub(address: SocketAddr, tls: ClientConfig) -> Met {
    match dial_hub(address, tls).await {
        Ok(mut stream) => bring_post(&mut stream).await,
        Err(error) => met_tls(&error),
    }
}

pub async fn dial_hub(address: SocketAddr, tls: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(tls)).connect(DIALLED_NAME.try_into().unwrap(), stream).await
}

async fn bring_post(stream: &mut TlsStream<TcpStream>) -> Met {
    let body = post();
    let head = format!(
        "POST /sync/1 HTTP/1.1\r\nhost: {DIALLED_NAME}\r\ncontent-type: {SYNC_CONTENT_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    if let Err(error) = stream.write_all(&[head.as_bytes(), &body].concat()).await {
        return met_tls(&error);
    }
    let mut answer = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap() {
        Ok(_) if answer.starts_with(b"HTTP/1.1 200") => {
            let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|end| &answer[end + 4..]).unwrap();
            assert!(matches!(Answer::read(body), Ok(Answer::Taken(_))));
            Met::Welcomed
        }
        Ok(_) => Met::Cut,
        Err(error) => met_tls(&error),
    }
}

fn met_tls(error: &io::Error) -> Met {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => Met::Alert(u8::from(*alert)),
        _ => Met::Cut,
    }
}

/// A POST without envelopes: compared, and nothing committed.
pub fn post() -> Bytes {
    let queue = |lane: Lane| QueueState { lane, instance: InstanceId([lane.as_u8() + 1; 16]), answered: 0 };
    let queues = Lane::ALL.map(queue).to_vec();
    let head =
        PostHead { lane: Lane::Telemetry, number: 0, queues, asks: Vec::new(), presence: None, relay_ms: now_ms(), versions: Vec::new() };
    head.body([]).unwrap()
}

/// What a rustls connection knows after the hub has let it in.
pub fn session(stream: &TlsStream<TcpStream>) -> &ClientConnection {
    stream.get_ref().1
}
