//! Async: both ends over real loopback sockets and real mutual TLS.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{Identity, Issuer, LeafParams, Root, SystemTime};
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::{
    batch::{FLAG_TEST_MODE, FrameError, HEADER_BYTES, Header, frame},
    clock::{Clock, SystemClock},
    door::DOOR_ALPN,
    ids::{SpoolId, Version},
    message::MessageError,
};

const SOON: Duration = Duration::from_secs(10);

// --- connecting ---

#[tokio::test]
async fn agent_and_relay_know_each_other_by_their_certificates() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    assert_eq!(relay.peer().device(), Some(DeviceId([7; 16])));
    assert_eq!(relay.peer().site(), Some("oslo"));
    assert_eq!(*agent.peer().name(), relay_name("oslo-1"));
    assert!(relay.address().ip().is_loopback());
}

#[tokio::test]
async fn a_relay_with_another_id_is_not_taken_for_the_dialled_one() {
    let branch = Branch::new();
    let door = Door::open(&branch.keys(relay_name("oslo-2")));
    let error = branch.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap_err();
    let ConnectError::Untrusted(why) = error else { panic!("{error:?}") };
    assert!(why.starts_with("dialled site/oslo/relay/oslo-1, but spiffe://"), "{why}");
}

#[tokio::test]
async fn who_isnt_an_agent_of_this_ca_is_refused_and_hears_so() {
    let branch = Branch::new();
    let door = Door::open(&branch.keys(relay_name("oslo-1")));
    let stranger = Branch::new();
    // A relay that poses as an agent, and an agent of another CA that trusts ours.
    let posing = Client::new(&branch.keys(relay_name("oslo-3")));
    let foreign = Client::new(&stranger.keys_trusting(agent_name(7), &branch.root));
    for client in [posing, foreign] {
        let ended = match client.connect(&door.address, &relay_name("oslo-1"), SOON).await {
            Ok(connection) => timeout(SOON, connection.closed()).await.unwrap(),
            Err(error) => panic!("the dialler's own handshake is done before it is refused: {error}"),
        };
        assert!(matches!(ended, Ended::Refused(_)), "{ended:?}");
    }
}

#[tokio::test]
async fn a_relay_of_another_ca_is_not_trusted() {
    let (branch, stranger) = (Branch::new(), Branch::new());
    let door = Door::open(&stranger.keys(relay_name("oslo-1")));
    let error = branch.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted(_)), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_no_answer_in_time_and_a_bad_address_says_so() {
    let branch = Branch::new();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = branch.agent().connect(&address, &relay_name("oslo-1"), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error, ConnectError::NoAnswer);
    let error = branch.agent().connect("nowhere", &relay_name("oslo-1"), SOON).await.unwrap_err();
    assert!(matches!(error, ConnectError::Address(_)), "{error:?}");
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let first = Server::bind("127.0.0.1:0".parse().unwrap(), &keys).unwrap();
    let line = Server::bind(first.address(), &keys).err().unwrap().to_string();
    assert_eq!(
        line,
        format!(
            "port {}/udp on 127.0.0.1 is in use by another program. Stop it, or give another address as `agents.listen`.",
            first.address().port()
        )
    );
    let line = Server::bind("127.0.0.1:0".parse().unwrap(), &branch.keys(agent_name(1))).err().unwrap().to_string();
    assert!(line.contains("relay's certificate"), "{line}");
}

#[tokio::test]
async fn a_draining_relay_refuses_at_once_and_keeps_its_connections() {
    let branch = Branch::new();
    let (agent, relay, mut door) = branch.connected().await;
    door.server.refuse_new();
    let error = branch.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap_err();
    assert_eq!(error, ConnectError::Busy);
    assert_eq!((agent.ended(), relay.ended()), (None, None));
    door.server.close(CloseCode::Leaving, "stopping");
    let ended = timeout(SOON, agent.closed()).await.unwrap();
    assert_eq!(ended, Ended::ByPeer { code: Some(CloseCode::Leaving), number: 1, text: "stopping".to_owned() });
    assert!(timeout(SOON, door.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn above_the_threshold_a_dialler_first_proves_its_address() {
    let branch = Branch::new();
    let tuning = Tuning { retry_above: 0, segmentation_offload: false, mtu_discovery: false };
    let mut door = Door::open_with(&branch.keys(relay_name("oslo-1")), tuning);
    let agent = branch.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap();
    let relay = door.next().await.unwrap();
    assert_eq!(relay.peer().device(), Some(DeviceId([7; 16])));
    drop(agent);
    // A client that was let go without a word is no fault.
    assert!(matches!(timeout(SOON, relay.closed()).await.unwrap(), Ended::ByPeer { code: None, .. }));
}

#[tokio::test]
async fn an_agent_finds_large_datagrams_where_the_path_carries_them_unless_told_not_to() {
    let branch = Branch::new();
    let mut door = Door::open(&branch.keys(relay_name("oslo-1")));
    let datagram_bytes = |connection: &Connection| connection.inner.quinn.stats().path.current_mtu;
    let agent = branch.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap();
    let _relay = door.next().await.unwrap();
    // The search ends less than twenty bytes below its bound.
    let found = async {
        while datagram_bytes(&agent) + 20 < limits::DATAGRAM_BYTES_MAX {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, found).await.unwrap();
    assert!(datagram_bytes(&agent) <= limits::DATAGRAM_BYTES_MAX);
    let tuning = Tuning { mtu_discovery: false, ..Tuning::default() };
    let cautious = Client::with(&branch.keys(agent_name(8)), tuning).connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap();
    let relay = door.next().await.unwrap();
    let (mut lane, picture) = (cautious.open_lane(Lane::Pictures).await.unwrap(), envelope(Lane::Pictures, 1, 500_000));
    let mut receiver = timeout(SOON, async { tokio::join!(lane.send([picture.clone()]), relay.accept_lane()).1 }).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, receiver.receive()).await.unwrap().unwrap().unwrap().bytes(), &picture);
    assert_eq!(datagram_bytes(&cautious), 1_200);
}

#[tokio::test]
async fn a_connection_ends_with_the_agents_certificate() {
    let branch = Branch::new();
    let mut door = Door::open(&branch.keys(relay_name("oslo-1")));
    let now_ms = now_ms();
    let identity = Identity::new(DOMAIN, agent_name(7)).unwrap();
    let mut params = LeafParams::of(&identity, now_ms);
    params.not_after_ms = now_ms + 3_000;
    let short = branch.keys_of(&branch.issuer.sign(&params).unwrap(), Role::Agent, &branch.root);
    let agent = Client::new(&short).connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap();
    let relay = door.next().await.unwrap();
    assert_eq!(relay.ended(), None);
    let ended = timeout(SOON, agent.closed()).await.unwrap();
    assert!(matches!(ended, Ended::ByUs | Ended::ByPeer { code: Some(CloseCode::Aged), .. }), "{ended:?}");
    assert!(timeout(SOON, relay.closed()).await.is_ok());
}

// --- control ---

#[tokio::test]
async fn messages_go_both_ways_whole_and_in_order() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let (mut up, mut down) = agent.open_control().await.unwrap();
    let messages: Vec<Bytes> = [2, 3, 1_000, 40_000, limits::CONTROL_BYTES_MAX, 2].into_iter().map(message).collect();
    for one in &messages {
        up.send(one.clone()).await.unwrap();
    }
    let (mut back, mut arriving) = timeout(SOON, relay.accept_control()).await.unwrap().unwrap();
    for one in &messages {
        let got = timeout(SOON, arriving.receive()).await.unwrap().unwrap().unwrap();
        assert_eq!(got, one.slice(4..));
        back.send(one.clone()).await.unwrap();
    }
    for one in &messages {
        assert_eq!(down.receive().await.unwrap().unwrap(), one.slice(4..));
    }
    drop(up);
    assert_eq!(arriving.receive().await.unwrap(), None);
}

#[tokio::test]
async fn a_message_that_is_too_long_or_cut_ends_the_connection_with_a_code() {
    let too_long = ((limits::CONTROL_BYTES_MAX + 1) as u32).to_le_bytes().to_vec();
    let huge = u32::MAX.to_le_bytes().to_vec();
    for (bytes, expected) in [
        (too_long, MessageError::TooLong(limits::CONTROL_BYTES_MAX + 1)),
        (huge, MessageError::TooLong(u32::MAX as usize)),
        (vec![9, 0, 0, 0, 1], MessageError::Cut),
        (vec![9, 0], MessageError::Cut),
    ] {
        let branch = Branch::new();
        let (agent, relay, _door) = branch.connected().await;
        let (mut up, _down) = agent.open_control().await.unwrap();
        up.send(bytes.into()).await.unwrap();
        drop(up);
        let (_back, mut arriving) = relay.accept_control().await.unwrap();
        let error = timeout(SOON, arriving.receive()).await.unwrap().unwrap_err();
        assert_eq!((error.close_code(), error), (Some(CloseCode::Message), ControlError::Message(expected)));
    }
}

// --- lanes ---

#[tokio::test]
async fn envelopes_of_every_size_arrive_whole_and_in_order() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    for lane in Lane::ALL {
        let largest = limits::raw_max(lane);
        let sizes = (0..3_000).map(|i| i % 700).chain([largest, 0, 16_300, 16_400, 70_000, largest, 5]);
        let sent: Vec<Bytes> = sizes.zip(1..).map(|(size, seq)| envelope(lane, seq, size)).collect();
        let mut sender = agent.open_lane(lane).await.unwrap();
        let run = sent.clone();
        let sending = tokio::spawn(async move {
            for part in run.chunks(100) {
                sender.send(part.iter().cloned()).await.unwrap();
            }
            sender.finish();
        });
        let mut receiver = timeout(SOON, relay.accept_lane()).await.unwrap().unwrap();
        assert_eq!(receiver.lane(), lane);
        for one in &sent {
            let got = timeout(SOON, receiver.receive()).await.unwrap().unwrap().unwrap();
            assert_eq!(got.bytes(), one);
        }
        assert_eq!(receiver.receive().await.unwrap(), None);
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_send_and_a_receive_that_are_dropped_half_way_lose_and_double_nothing() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let mut sender = agent.open_lane(Lane::Telemetry).await.unwrap();
    let sent: Vec<Bytes> = (1..=400).map(|seq| envelope(Lane::Telemetry, seq, 20_000)).collect();
    let mut runs: VecDeque<Vec<Bytes>> = sent.chunks(200).map(<[Bytes]>::to_vec).collect();
    // 4 MB don't fit into the windows while nobody reads: this send is dropped in the middle.
    assert!(timeout(Duration::from_millis(300), sender.send(runs.pop_front().unwrap())).await.is_err());
    let rest = runs.pop_front().unwrap();
    let sending = tokio::spawn(async move { sender.send(rest).await.map(|()| sender) });
    let mut receiver = loop {
        if let Ok(receiver) = timeout(Duration::from_micros(50), relay.accept_lane()).await {
            break receiver.unwrap();
        }
    };
    for one in &sent {
        let got = loop {
            if let Ok(got) = timeout(Duration::from_micros(200), receiver.receive()).await {
                break got.unwrap().unwrap();
            }
        };
        assert_eq!(got.bytes(), one);
    }
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lane_that_nobody_reads_holds_up_neither_the_other_nor_the_control_stream() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let mut pictures = agent.open_lane(Lane::Pictures).await.unwrap();
    let stuck = (1..=8).map(|seq| envelope(Lane::Pictures, seq, 1 << 20));
    assert!(timeout(Duration::from_millis(300), pictures.send(stuck)).await.is_err());
    let (mut up, _down) = agent.open_control().await.unwrap();
    up.send(message(100)).await.unwrap();
    let mut telemetry = agent.open_lane(Lane::Telemetry).await.unwrap();
    telemetry.send([envelope(Lane::Telemetry, 1, 250)]).await.unwrap();
    let (_back, mut arriving) = timeout(SOON, relay.accept_control()).await.unwrap().unwrap();
    assert!(timeout(SOON, arriving.receive()).await.unwrap().unwrap().is_some());
    let mut lanes = [relay.accept_lane().await.unwrap(), relay.accept_lane().await.unwrap()];
    lanes.sort_by_key(LaneReceiver::lane);
    assert!(timeout(SOON, lanes[0].receive()).await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn a_broken_envelope_ends_the_lane_with_its_code() {
    let good = envelope(Lane::Telemetry, 1, 300);
    let spoil = |at: usize, with: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let too_long = limits::TELEMETRY_RAW_MAX as u32 + 1;
    let cases: [(Vec<u8>, LaneError, CloseCode); 9] = [
        (spoil(0, b"X"), FrameError::Magic.into(), CloseCode::EnvelopeMagic),
        (spoil(7, &[9]), FrameError::Lane(9).into(), CloseCode::EnvelopeLane),
        (spoil(7, &[1]), LaneError::OtherLane(Lane::Pictures), CloseCode::EnvelopeLane),
        (spoil(40, &[0; 8]), FrameError::Seq(0).into(), CloseCode::EnvelopeSeq),
        (spoil(56, &too_long.to_le_bytes()), FrameError::Length(too_long).into(), CloseCode::EnvelopeLength),
        (spoil(56, &[0xff; 4]), FrameError::Length(u32::MAX).into(), CloseCode::EnvelopeLength),
        (spoil(100, &[0xaa]), FrameError::Crc.into(), CloseCode::EnvelopeCrc),
        (good[..50].to_vec(), FrameError::Cut.into(), CloseCode::EnvelopeLength),
        (good[..200].to_vec(), FrameError::Cut.into(), CloseCode::EnvelopeLength),
    ];
    for (bytes, expected, code) in cases {
        let branch = Branch::new();
        let (agent, relay, _door) = branch.connected().await;
        let mut sender = agent.open_lane(Lane::Telemetry).await.unwrap();
        sender.send([good.clone(), bytes.into()]).await.unwrap();
        sender.finish();
        let mut receiver = relay.accept_lane().await.unwrap();
        assert!(receiver.receive().await.unwrap().is_some());
        let error = timeout(SOON, receiver.receive()).await.unwrap().unwrap_err();
        assert_eq!((error.close_code(), &error), (Some(code), &expected));
        relay.close(code, &error.to_string());
        let ended = timeout(SOON, agent.closed()).await.unwrap();
        assert!(matches!(ended, Ended::ByPeer { code: Some(told), .. } if told == code), "{ended:?}");
    }
}

#[tokio::test]
async fn an_announced_length_alone_makes_nobody_allocate() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let mut sender = agent.open_lane(Lane::Pictures).await.unwrap();
    let picture = envelope(Lane::Pictures, 1, limits::PICTURES_RAW_MAX);
    sender.send([picture.slice(..1_000)]).await.unwrap();
    let mut receiver = relay.accept_lane().await.unwrap();
    assert!(timeout(Duration::from_millis(200), receiver.receive()).await.is_err());
    assert!((HEADER_BYTES..=4_096).contains(&receiver.reserved_bytes()), "{}", receiver.reserved_bytes());
}

#[tokio::test]
async fn a_second_stream_of_a_lane_and_an_unknown_lane_are_refused() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    agent.open_lane(Lane::Telemetry).await.unwrap().finish();
    assert_eq!(relay.accept_lane().await.unwrap().lane(), Lane::Telemetry);
    agent.open_lane(Lane::Telemetry).await.unwrap().finish();
    let error = timeout(SOON, relay.accept_lane()).await.unwrap().err().unwrap();
    assert_eq!((error.close_code(), error), (Some(CloseCode::Stream), AcceptError::SecondLane(Lane::Telemetry)));

    for (bytes, expected) in [(&[7u8][..], AcceptError::UnknownLane(7)), (&[], AcceptError::NoLane)] {
        let (agent, relay, _door) = branch.connected().await;
        let mut stream = agent.inner.quinn.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
        let error = timeout(SOON, relay.accept_lane()).await.unwrap().err().unwrap();
        assert_eq!(error, expected);
    }
}

#[tokio::test]
async fn a_sender_dropped_with_half_a_run_gives_the_stream_up() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let mut sender = agent.open_lane(Lane::Telemetry).await.unwrap();
    let run = (1..=400).map(|seq| envelope(Lane::Telemetry, seq, 20_000));
    assert!(timeout(Duration::from_millis(300), sender.send(run)).await.is_err());
    let mut receiver = relay.accept_lane().await.unwrap();
    drop(sender);
    let error = timeout(SOON, async {
        loop {
            match receiver.receive().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("half a run looks like the end of all"),
                Err(error) => break error,
            }
        }
    });
    assert!(matches!(error.await.unwrap(), LaneError::Stream(StreamError::GivenUp(_))));
}

#[tokio::test]
async fn an_agent_cant_open_more_than_its_three_streams() {
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let _control = agent.open_control().await.unwrap();
    let _lanes = [agent.open_lane(Lane::Telemetry).await.unwrap(), agent.open_lane(Lane::Pictures).await.unwrap()];
    assert!(timeout(Duration::from_millis(100), agent.inner.quinn.open_uni()).await.is_err());
    assert!(timeout(Duration::from_millis(100), agent.inner.quinn.open_bi()).await.is_err());
    assert!(timeout(Duration::from_millis(100), relay.inner.quinn.open_bi()).await.is_err());
    assert!(timeout(Duration::from_millis(100), relay.inner.quinn.open_uni()).await.is_err());
}

/// A figure rather than a check: `MUSTER_TEST=long cargo test --release -p muster-mesh small_envelopes -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_small_envelopes_a_second_cost_little() {
    let count = if std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long") { 1_000_000 } else { 20_000 };
    let branch = Branch::new();
    let (agent, relay, _door) = branch.connected().await;
    let mut sender = agent.open_lane(Lane::Telemetry).await.unwrap();
    let one = envelope(Lane::Telemetry, 1, 158);
    let begun = Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..count / 50 {
            sender.send((0..50).map(|_| one.clone())).await.unwrap();
        }
        sender.finish();
    });
    let mut receiver = relay.accept_lane().await.unwrap();
    let mut received = 0u64;
    while receiver.receive().await.unwrap().is_some() {
        received += 1;
    }
    sending.await.unwrap();
    assert_eq!(received, count);
    let per_second = received as f64 / begun.elapsed().as_secs_f64();
    tracing::info!(per_second, "envelopes of 250 bytes over one lane");
    if count > 20_000 {
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{per_second:.0} envelopes of 250 bytes a second\n"));
    }
    assert!(per_second > 5_000.0, "{per_second:.0} a second");
}

// --- both ends ---

const DOMAIN: &str = "muster.test";

struct Branch {
    root: Root,
    issuer: Issuer,
}

impl Branch {
    fn new() -> Branch {
        let (root, issuer) = Issuer::in_memory(DOMAIN, now_ms()).unwrap();
        Branch { root, issuer }
    }

    fn keys(&self, name: Name) -> Arc<Keys> {
        self.keys_trusting(name, &self.root)
    }

    fn keys_trusting(&self, name: Name, root: &Root) -> Arc<Keys> {
        let role = name.role();
        let signed = self.issuer.issue(&Identity::new(DOMAIN, name).unwrap(), now_ms()).unwrap();
        if std::ptr::eq(root, &self.root) {
            return self.keys_of(&signed, role, root);
        }
        let both = format!("{}{}", self.root.pem(), root.pem());
        Keys::from_pem(&signed.pem, &signed.key_pem, &both, role, Arc::new(SystemTime)).unwrap()
    }

    fn keys_of(&self, signed: &muster_certs::Signed, role: Role, root: &Root) -> Arc<Keys> {
        Keys::from_pem(&signed.pem, &signed.key_pem, root.pem(), role, Arc::new(SystemTime)).unwrap()
    }

    fn agent(&self) -> Client {
        Client::new(&self.keys(agent_name(7)))
    }

    async fn connected(&self) -> (Connection, Connection, Door) {
        let mut door = Door::open(&self.keys(relay_name("oslo-1")));
        let agent = self.agent().connect(&door.address, &relay_name("oslo-1"), SOON).await.unwrap();
        let relay = timeout(SOON, door.next()).await.unwrap().unwrap();
        (agent, relay, door)
    }
}

/// A relay's listener with a task that lets everybody in.
struct Door {
    server: Arc<Server>,
    address: String,
    came: tokio::sync::mpsc::Receiver<Connection>,
    task: JoinHandle<()>,
}

impl Door {
    fn open(keys: &Arc<Keys>) -> Door {
        Door::open_with(keys, Tuning::default())
    }

    fn open_with(keys: &Arc<Keys>, tuning: Tuning) -> Door {
        let server = Arc::new(Server::bind_with("127.0.0.1:0".parse().unwrap(), keys, tuning).unwrap());
        let (send, came) = tokio::sync::mpsc::channel(16);
        let accepting = server.clone();
        let task = tokio::spawn(async move {
            while let Some(arriving) = accepting.accept().await {
                if let Ok(connection) = arriving.handshake().await {
                    let _ = send.send(connection).await;
                }
            }
        });
        Door { address: server.address().to_string(), server, came, task }
    }

    async fn next(&mut self) -> Option<Connection> {
        self.came.recv().await
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn now_ms() -> i64 {
    SystemClock::new().now().wall_ms
}

fn relay_name(id: &str) -> Name {
    Name::Relay { site: "oslo".to_owned(), id: id.to_owned() }
}

fn agent_name(n: u8) -> Name {
    Name::Agent { site: "oslo".to_owned(), device: [n; 16] }
}

/// A control message of `length` bytes behind its length.
fn message(length: usize) -> Bytes {
    let mut bytes = (length as u32).to_le_bytes().to_vec();
    bytes.extend((0..length).map(|i| i as u8));
    bytes.into()
}

fn envelope(lane: Lane, seq: u64, body: usize) -> Bytes {
    let version = Version { epoch: 1, n: 1 };
    let header = Header {
        version: 1,
        seal: 0,
        codec: 0,
        lane,
        device: DeviceId([7; 16]),
        spool: SpoolId([9; 16]),
        seq,
        records: 1,
        raw_len: body as u32,
        body_len: body as u32,
        policy: version,
        notice: version,
        erasure: version,
        flags: FLAG_TEST_MODE,
    };
    let body: Vec<u8> = (0..body as u64).map(|i| (i.wrapping_mul(seq) >> 3) as u8).collect();
    frame(&header, &body)
}

// --- the door for those without a certificate ---

#[tokio::test]
async fn a_stranger_asks_at_a_door_and_is_answered() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let (address, door) = echoing(&keys);
    let answer =
        ask_at_door(&Kernel, &address, &trusted(&keys), &relay_name("oslo-1"), Arc::new(SystemTime), b"who are you").await.unwrap();
    assert_eq!(answer, b"who are you, from 127.0.0.1");
    let longest = vec![7; limits::DOOR_BYTES_MAX];
    let error = ask_at_door(&Kernel, &address, &trusted(&keys), &relay_name("oslo-2"), Arc::new(SystemTime), &longest).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted(_)), "{error:?}");
    let stranger = Branch::new().keys(relay_name("oslo-1"));
    let error =
        ask_at_door(&Kernel, &address, &trusted(&stranger), &relay_name("oslo-1"), Arc::new(SystemTime), &longest).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted(_)), "{error:?}");
    // None of these stood in the way of the next.
    assert!(ask_at_door(&Kernel, &address, &trusted(&keys), &relay_name("oslo-1"), Arc::new(SystemTime), b"again").await.is_ok());
    door.abort();
}

#[tokio::test]
async fn a_question_that_is_too_long_is_not_heard() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let (address, heard, door) = measuring(&keys);
    let trusted = trusted(&keys);
    let name = relay_name("oslo-1");
    let ask = async |bytes: usize| ask_at_door(&Kernel, &address, &trusted, &name, Arc::new(SystemTime), &vec![7; bytes]).await;
    // Its answers are short: only the question can be too long.
    assert_eq!(ask(limits::DOOR_BYTES_MAX).await.unwrap(), limits::DOOR_BYTES_MAX.to_string().as_bytes());
    let asked = ask(limits::DOOR_BYTES_MAX + 1).await;
    assert!(asked.is_err(), "{asked:?}");
    assert_eq!(ask(3).await.unwrap(), b"3");
    assert_eq!(*heard.lock().unwrap(), [limits::DOOR_BYTES_MAX, 3]);
    door.abort();
}

#[tokio::test]
async fn a_stranger_is_heard_on_one_stream() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let (address, heard, door) = measuring(&keys);
    let (_socket, stranger) = stranger(&address, &keys).await;
    let (mut asking, mut answered) = stranger.open_bi().await.unwrap();
    asking.write_all(b"first").await.unwrap();
    assert!(timeout(Duration::from_millis(100), stranger.open_bi()).await.is_err(), "a second stream beside the first");
    assert!(timeout(Duration::from_millis(100), stranger.open_uni()).await.is_err(), "a stream of one way");
    asking.finish().unwrap();
    assert_eq!(answered.read_to_end(10).await.unwrap(), b"5");
    // Nor behind it. From here on time passes only while nobody works.
    tokio::time::pause();
    let second = async {
        let (mut asking, mut answered) = stranger.open_bi().await.ok()?;
        asking.write_all(b"second").await.ok()?;
        asking.finish().ok()?;
        answered.read_to_end(10).await.ok()
    };
    assert_eq!(timeout(limits::DOOR_TIMEOUT * 10, second).await.unwrap(), None);
    assert_eq!(*heard.lock().unwrap(), [5]);
    door.abort();
}

#[tokio::test]
async fn a_stranger_who_stays_is_sent_away_by_the_door() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let (address, heard, door) = measuring(&keys);
    let sent_away = async |stranger: &quinn::Connection| {
        // From here on time passes only while nobody works, and the stranger shows every second that it is there.
        tokio::time::pause();
        let ended = timeout(limits::DOOR_TIMEOUT * 10, stranger.closed()).await;
        tokio::time::resume();
        match ended {
            Ok(quinn::ConnectionError::ApplicationClosed(close)) => CloseCode::from_u64(close.error_code.into_inner()),
            other => panic!("it wasn't the door: {other:?}"),
        }
    };
    // Without a stream.
    let (_socket, silent) = stranger(&address, &keys).await;
    assert_eq!(sent_away(&silent).await, None);
    // With half a question.
    let (_socket, slow) = stranger(&address, &keys).await;
    let (mut asking, _answered) = slow.open_bi().await.unwrap();
    asking.write_all(b"who").await.unwrap();
    assert_eq!(sent_away(&slow).await, None);
    // With an answer.
    let (_socket, lingering) = stranger(&address, &keys).await;
    let (mut asking, mut answered) = lingering.open_bi().await.unwrap();
    asking.write_all(b"who are you").await.unwrap();
    asking.finish().unwrap();
    assert_eq!(answered.read_to_end(10).await.unwrap(), b"11");
    assert_eq!(sent_away(&lingering).await, Some(CloseCode::Leaving));
    // This door lets one in after the other: none of them holds the place any more.
    let answer = ask_at_door(&Kernel, &address, &trusted(&keys), &relay_name("oslo-1"), Arc::new(SystemTime), b"again").await;
    assert_eq!(answer.unwrap(), b"5");
    assert_eq!(*heard.lock().unwrap(), [11, 5]);
    door.abort();
}

#[tokio::test]
async fn an_agents_listener_is_no_door_and_a_door_is_no_listener_for_agents() {
    let branch = Branch::new();
    let keys = branch.keys(relay_name("oslo-1"));
    let listener = Door::open(&keys);
    let asked = ask_at_door(&Kernel, &listener.address, &trusted(&keys), &relay_name("oslo-1"), Arc::new(SystemTime), b"?").await;
    assert!(asked.is_err(), "{asked:?}");
    let (address, door) = echoing(&keys);
    let error = branch.agent().connect(&address, &relay_name("oslo-1"), SOON).await.unwrap_err();
    assert!(matches!(error, ConnectError::Protocol), "{error:?}");
    door.abort();
}

/// A door that says back what it was asked, and by whom.
fn echoing(keys: &Arc<Keys>) -> (String, JoinHandle<()>) {
    answering(keys, |ask, from| format!("{}, from {from}", String::from_utf8_lossy(ask)))
}

/// A door that says only how long each question was, and notes it.
fn measuring(keys: &Arc<Keys>) -> (String, Arc<Mutex<Vec<usize>>>, JoinHandle<()>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = heard.clone();
    let (address, door) = answering(keys, move |ask, _| {
        noted.lock().unwrap().push(ask.len());
        ask.len().to_string()
    });
    (address, heard, door)
}

/// One after the other.
fn answering(keys: &Arc<Keys>, answer: impl Fn(&[u8], IpAddr) -> String + Send + 'static) -> (String, JoinHandle<()>) {
    let door = DoorServer::bind("127.0.0.1:0".parse().unwrap(), keys).unwrap();
    let address = door.address().to_string();
    let serving = tokio::spawn(async move {
        while let Some(knock) = door.knocked().await {
            let from = knock.address().ip();
            let Some(question) = knock.question().await else { continue };
            let answer = answer(&question.ask, from);
            question.answer(answer.as_bytes()).await;
        }
    });
    (address, serving)
}

/// Somebody who keeps the connection alive and does what a test wants.
async fn stranger(address: &str, keys: &Keys) -> (Endpoint, quinn::Connection) {
    let tls = muster_certs::stranger_config(&trusted(keys), &relay_name("oslo-1"), Arc::new(SystemTime), &[DOOR_ALPN]).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(transport));
    let socket = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = socket.connect_with(config, address.parse().unwrap(), DIALLED_NAME).unwrap().await.unwrap();
    (socket, connection)
}

fn trusted(keys: &Keys) -> muster_certs::Trusted {
    muster_certs::Trusted::of_roots(&keys.identity().domain, &keys.roots_pem()).unwrap()
}
