//! Async: what TLS itself must not do: an older version, another protocol, a session resumed, a word said early.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use muster_certs::DIALLED_NAME;
use muster_mesh::{
    message::{AGENT_ALPN, CloseCode, StateNow, Up},
    record::State,
};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, NamedGroup,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{mesh::*, strangers::*};

/// QUIC has no TLS below 1.3. This build of rustls has no 1.2 to dial with, so the hello is written by hand.
#[tokio::test]
async fn a_tls_1_2_client_is_refused_at_the_hubs_port() {
    let mesh = Mesh::start().await;
    // Alert, fatal, protocol version.
    assert_eq!(hub_answers(mesh.hub.mesh, &hello(0x0303, false)).await, [0x15, 3, 3, 0, 2, 2, 70]);
    assert_eq!(hub_answers(mesh.hub.mesh, &hello(0x0301, false)).await, [0x15, 3, 3, 0, 2, 2, 70]);
    // The same hello that offers 1.3 gets further: it lacks only a key share.
    let answer = hub_answers(mesh.hub.mesh, &hello(0x0303, true)).await;
    assert!(answer[0] == 0x16 || answer[5..] != [2, 70], "{answer:02x?}");
    assert_eq!(post_to_hub(mesh.hub.mesh, client(Some(&mesh.ca.good(&relay_name())), HTTP)).await, Met::Welcomed);
}

/// A ClientHello of this version, with supported_versions = 1.3 or without.
fn hello(version: u16, offers_1_3: bool) -> Vec<u8> {
    let mut hello = version.to_be_bytes().to_vec();
    hello.extend([0x2a; 32]); // random
    hello.extend([0, 0, 4, 0x13, 0x01, 0xc0, 0x2b, 1, 0]); // no session, two suites, no compression
    let mut extensions = vec![
        0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x1d, // group x25519
        0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03, // ECDSA P-256 SHA-256
    ];
    if offers_1_3 {
        extensions.extend([0x00, 0x2b, 0, 3, 2, 3, 4]);
        extensions.extend([0x00, 0x33, 0, 2, 0, 0]);
    }
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let length = hello.len() as u8;
    let mut record = vec![0x16, 0x03, 0x01, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

async fn hub_answers(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 7];
    timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused() {
    let mesh = Mesh::start().await;
    let (agent, relay) = (mesh.ca.good(&mesh.new_agent()), mesh.ca.good(&relay_name()));
    for alpn in [&b"muster/2"[..], b"h3", b"MUSTER/1"] {
        let met = knock_at_relay(mesh.relay.agents_address(), client(Some(&agent), alpn)).await;
        assert_eq!(met, alert(AlertDescription::NoApplicationProtocol));
    }
    // QUIC without any protocol is refused as well.
    let mut none = client(Some(&agent), AGENT_ALPN);
    none.alpn_protocols.clear();
    assert_eq!(knock_at_relay(mesh.relay.agents_address(), none).await, alert(AlertDescription::NoApplicationProtocol));
    for alpn in [&b"muster/1"[..], b"h3", b"spdy/3"] {
        let met = knock_at_hub(mesh.hub.mesh, client(Some(&relay), alpn)).await;
        assert_eq!(met, alert(AlertDescription::NoApplicationProtocol));
    }
    assert_eq!(knock_at_relay(mesh.relay.agents_address(), client(Some(&agent), AGENT_ALPN)).await, Met::Welcomed);
    assert_eq!(post_to_hub(mesh.hub.mesh, client(Some(&relay), HTTP)).await, Met::Welcomed);
}

#[tokio::test]
async fn a_second_handshake_at_the_relay_is_full_and_nothing_is_taken_early() {
    let mesh = Mesh::start().await;
    let (config, tickets) = that_would_resume(client(Some(&mesh.ca.good(&mesh.new_agent())), AGENT_ALPN));
    let (config, endpoint) = (quic_client(config), endpoint());
    for dial in 1..=3 {
        let connecting = endpoint.connect_with(config.clone(), mesh.relay.agents_address(), DIALLED_NAME).unwrap();
        let connecting = connecting.into_0rtt().map(drop).expect_err("early data were possible");
        drop(connecting.await.unwrap());
        // A ticket would come behind the handshake, before the Welcome.
        let visit = Visit::open(mesh.relay.agents_address(), config.clone(), dial).await.unwrap();
        visit.connection.close(0u32.into(), b"");
    }
    assert_eq!(tickets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_second_handshake_at_the_hub_is_full_and_no_ticket_comes() {
    let mesh = Mesh::start().await;
    let (config, tickets) = that_would_resume(client(Some(&mesh.ca.good(&relay_name())), HTTP));
    for _ in 0..3 {
        assert_eq!(post_to_hub(mesh.hub.mesh, config.clone()).await, Met::Welcomed);
        let stream = dial_hub(mesh.hub.mesh, config.clone()).await.unwrap();
        assert_eq!(session(&stream).handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!((session(&stream).tls13_tickets_received(), session(&stream).is_early_data_accepted()), (0, false));
    }
    assert_eq!(tickets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_who_is_denied_is_cut_off_and_gets_nowhere_with_what_it_kept_of_earlier_sessions() {
    let mesh = Mesh::start().await;
    let (agent, relay) = (mesh.new_agent(), muster_certs::Name::Relay { site: "oslo".to_owned(), id: "oslo-2".to_owned() });
    let (at_relay, first) = that_would_resume(client(Some(&mesh.ca.good(&agent)), AGENT_ALPN));
    let (at_hub, second) = that_would_resume(client(Some(&mesh.ca.good(&relay)), HTTP));
    let at_relay = quic_client(at_relay);
    let mut visit = Visit::open(mesh.relay.agents_address(), at_relay.clone(), 1).await.unwrap();
    assert_eq!(post_to_hub(mesh.hub.mesh, at_hub.clone()).await, Met::Welcomed);
    let mut stream = dial_hub(mesh.hub.mesh, at_hub.clone()).await.unwrap();

    mesh.deny(&agent).await;
    mesh.deny(&relay).await;
    // The hub's next look, and the relay's next POST, which its presence makes due.
    let ended = timeout(SOON, stream.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(ended, Ok(1)), "the hub says something to who is denied: {ended:?}");
    let state = StateNow { state: State::Idle, since_ms: now_ms(), tails: Vec::new() };
    visit.say(&Up::State(state).frame().unwrap()).await.unwrap();
    let closed = visit.ended().await;
    assert!(closed == Met::Closed(CloseCode::Denied), "{closed:?}");

    let unknown = alert(AlertDescription::CertificateUnknown);
    for dial in 2..=3 {
        let connecting = endpoint().connect_with(at_relay.clone(), mesh.relay.agents_address(), DIALLED_NAME).unwrap();
        assert!(connecting.into_0rtt().is_err(), "early data were possible");
        let again = Visit::open(mesh.relay.agents_address(), at_relay.clone(), dial).await;
        assert_eq!(again.err().as_ref().map(met), Some(unknown));
        assert_eq!(knock_at_hub(mesh.hub.mesh, at_hub.clone()).await, unknown);
    }
    assert_eq!((first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)), (0, 0), "a ticket came");
    mesh.stop().await;
}

/// The same client with a place for tickets and a wish for early data, and the count of tickets that came.
fn that_would_resume(mut config: ClientConfig) -> (ClientConfig, Arc<AtomicUsize>) {
    let store = Arc::new(Tickets { count: Arc::default(), kept: rustls::client::ClientSessionMemoryCache::new(16) });
    let count = store.count.clone();
    config.resumption = Resumption::store(store);
    config.enable_early_data = true;
    (config, count)
}

#[derive(Debug)]
struct Tickets {
    count: Arc<AtomicUsize>,
    kept: rustls::client::ClientSessionMemoryCache,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.kept.set_tls12_session(server, value);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.kept.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.kept.insert_tls13_ticket(server, value);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.take_tls13_ticket(server)
    }
}
