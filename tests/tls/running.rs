//! Async: what a relay and an agent do while they run: a door or none, and certificates that change in their files.

use std::{sync::Arc, time::Duration};

use muster_certs::{Name, Signed, SystemTime, Trusted, read_leaf};
use muster_mesh::{
    config::Bytes,
    door::{Answer, Ask, DOOR_ALPN},
    ids::Lane,
    message::{AGENT_PROTOCOL, CloseCode, Down, LaneState, Limits, Up, Welcome},
    quic::{Connection, ControlReceiver, ControlSender, Kernel, Server, ask_at_door},
    status::Status,
};
use rustix::process::{Signal, getpid, kill_process};
use rustls::{AlertDescription, pki_types::CertificateDer};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    abuse::{device, envelope},
    mesh::*,
    strangers::*,
};

/// An agent looks at its files every half minute, and nothing makes it look sooner.
const LOOKED_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_relay_has_a_door_only_where_its_configuration_has_one() {
    let (closed, open) = (Mesh::start().await, Mesh::with_a_door().await);
    assert_eq!(closed.relay.door_address(), None);
    // Nor is a stranger heard where agents are.
    assert_eq!(
        knock_at_relay(closed.relay.agents_address(), client(None, DOOR_ALPN)).await,
        alert(AlertDescription::NoApplicationProtocol)
    );
    let door = open.relay.door_address().unwrap();
    assert_ne!(door, open.relay.agents_address());
    let (trusted, ask) = (Trusted::of_roots(DOMAIN, open.ca.root.pem()).unwrap(), Ask::Nonce.bytes().unwrap());
    let answer = ask_at_door(&Kernel, &door.to_string(), &trusted, &relay_name(), Arc::new(SystemTime), &ask).await.unwrap();
    // This hub has nobody who could answer.
    assert!(matches!(Answer::read(&answer).unwrap(), Answer::Busy { .. }));
    closed.stop().await;
    open.stop().await;
}

// --- certificates that change in their files ---

#[tokio::test]
async fn a_running_relay_takes_a_new_certificate_from_its_files_and_refuses_a_bad_one() {
    // From here on a hangup ends nobody. It is the whole process': the others here look at their files once more, and that is all.
    let _heard = signal(SignalKind::hangup()).unwrap();
    let mesh = Mesh::start().await;
    let agent = mesh.new_agent();
    let mut old = mesh.visit(&agent).await;
    let first = shown(&old);

    let renewed = mesh.ca.good(&relay_name());
    let before = count("reloaded", "relay");
    mesh.put_relays(&renewed);
    hang_up_until(|| count("reloaded", "relay") > before).await;
    assert_ne!(first, *renewed.leaf());
    assert_eq!(shown(&mesh.visit(&mesh.new_agent()).await), *renewed.leaf());
    // The old connection goes on.
    let _lane = old.lane(Lane::Telemetry, envelope(device(&agent), 1).bytes()).await;
    old.acked(1).await;

    let before = count("refused", "relay");
    mesh.put_relays(&Authority::new().good(&relay_name()));
    hang_up_until(|| count("refused", "relay") > before).await;
    assert_eq!(shown(&mesh.visit(&mesh.new_agent()).await), *renewed.leaf());
    assert_eq!(old.connection.close_reason(), None);
    mesh.stop().await;
}

#[tokio::test]
async fn a_running_agent_dials_with_the_new_certificate_of_its_files() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Authority::new());
    let name = Name::Agent { site: "oslo".to_owned(), device: [1; 16] };
    let (first, renewed) = (ca.good(&name), ca.good(&name));
    ca.write(folder.path(), "agent", &first);
    let relay = Server::bind(anywhere(), &ca.keys(&relay_name())).unwrap();
    let (config, stop) = (agent_config(folder.path(), &relay), CancellationToken::new());
    let running = tokio::spawn(muster_agent::run::run(config, stop.clone()));
    let old = Session::begin(&relay).await;
    assert_eq!(old.serial(), serial(&first));

    let before = count("reloaded", "agent");
    ca.write(folder.path(), "agent", &renewed);
    until(LOOKED_WITHIN, || count("reloaded", "agent") > before).await;
    assert_eq!(old.connection.ended(), None, "the old connection goes on");
    old.connection.close(CloseCode::Leaving, "a test");
    assert_eq!(Session::begin(&relay).await.serial(), serial(&renewed));
    stop.cancel();
    running.await.unwrap().unwrap();
}

fn agent_config(folder: &std::path::Path, relay: &Server) -> muster_agent::config::Config {
    use muster_agent::config::{Config, Pictures, Queue, Relay};
    let at = |name: &str| Some(folder.join(name));
    Config {
        state: folder.join("agent"),
        certificate: at("agent.pem"),
        key: at("agent.key"),
        roots: at("roots.pem"),
        test_mode: true,
        relays: vec![Relay { address: relay.address().to_string(), id: relay_name() }],
        queue: Queue { budget: Bytes(64 << 20), pictures_budget: Bytes(64 << 20) },
        pictures: Pictures::default(),
        status: None,
    }
}

/// An agent that was let in; its control stream stays open.
struct Session {
    connection: Connection,
    _control: (ControlSender, ControlReceiver),
}

impl Session {
    async fn begin(relay: &Server) -> Session {
        let arriving = timeout(SOON, relay.accept()).await.unwrap().unwrap();
        let connection = arriving.handshake().await.unwrap();
        let (mut down, mut up) = timeout(SOON, connection.accept_control()).await.unwrap().unwrap();
        let hello = timeout(SOON, up.receive()).await.unwrap().unwrap().unwrap();
        assert!(matches!(Up::read(&hello).unwrap(), Some(Up::Hello(_))));
        let (limits, lanes) = (Limits::OURS, [LaneState::Open; 2]);
        let welcome = Welcome { protocol: AGENT_PROTOCOL, limits, clock_ms: now_ms(), lanes, claims: Vec::new() };
        down.send(Down::Welcome(welcome).frame().unwrap()).await.unwrap();
        Session { connection, _control: (down, up) }
    }

    /// Of the certificate that the agent showed.
    fn serial(&self) -> String {
        self.connection.peer().leaf.serial.clone()
    }
}

fn serial(signed: &Signed) -> String {
    read_leaf(signed.leaf()).unwrap().serial
}

/// The certificate that the relay showed.
fn shown(visit: &Visit) -> CertificateDer<'static> {
    let chain = visit.connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    chain[0].clone()
}

async fn hang_up_until(holds: impl Fn() -> bool) {
    until(SOON, || {
        let held = holds();
        if !held {
            kill_process(getpid(), Signal::HUP).unwrap();
        }
        held
    })
    .await;
}

async fn until(limit: Duration, holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(limit, held).await.unwrap();
}

/// Looks at changed files that came to this, in all of this process.
fn count(outcome: &str, role: &str) -> u64 {
    let begin = format!("muster_cert_reloads_total{{role=\"{role}\",outcome=\"{outcome}\"}} ");
    let text = Status::install().text();
    text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
}
