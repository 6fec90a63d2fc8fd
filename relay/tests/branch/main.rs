//! Async: a relay over real loopback QUIC and TLS, with agents made by hand and a hub of a few lines.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use muster_certs::{Identity, Issuer, Keys, Name, Root, SystemTime};
use muster_mesh::{
    batch::{FLAG_TEST_MODE, Header, Tail, frame},
    clock::{Clock, SystemClock},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    limits,
    link::relay_sync::Rules,
    message::{
        Ack, Answer, CloseCode, Denial, DenyList, Down, Hello, HubAck, LaneState, PostHead, Returned, Signed, SignedKind, StateNow, Up,
        Welcome,
    },
    papers::Papers,
    queue::Position,
    quic::{Client, Connection, ControlReceiver, ControlSender, Ended, Server},
    record::State,
};
use muster_relay::{
    accept::{self, Branch},
    agents::Agents,
    buffer::{Buffer, Size},
    door::Carrier,
    sync::{HubAddress, HubSync, Line},
    writer::{LaneInbox, Writer},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

mod disk;
mod hub;

use disk::Disk;
use hub::{Hub, Reply, Signing};

const SOON: Duration = Duration::from_secs(10);

// --- agent and relay ---

#[tokio::test]
async fn a_batch_is_committed_then_acked_then_posted_then_acked_by_the_hub() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1), batch(7, 1, 2), batch(7, 1, 3)]).await;
    assert_eq!(agent.acked(Lane::Telemetry, 3).await, 3);
    let contents = office.lanes[0].contents(Position::default(), 10).await.unwrap();
    assert_eq!(
        contents.envelopes.iter().map(|one| (one.device, one.seq)).collect::<Vec<_>>(),
        [(device(7), 1), (device(7), 2), (device(7), 3)]
    );
    let ack = agent.hub_ack().await;
    assert_eq!(ack.stored, [(1, 3)]);
    assert_eq!(office.hub.seqs(), [1, 2, 3]);
    let kept = office.hub.kept.lock().unwrap();
    let facts = &kept.posted[0].facts;
    assert_eq!((facts.dial, facts.boot, facts.address.clone()), (9, BootId([1; 16]), None));
    assert!(facts.zero_ms > 1_700_000_000_000);
    assert!(kept.heads.iter().all(|head| head.queues.len() == 2));
}

#[tokio::test]
async fn a_picture_travels_on_its_own_lane() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    let picture = envelope(Lane::Pictures, 7, 2, 1, 2_000_000);
    agent.send(Lane::Pictures, [picture.clone()]).await;
    assert_eq!(agent.acked(Lane::Pictures, 1).await, 1);
    assert_eq!(agent.hub_ack().await.stored, [(1, 1)]);
    assert_eq!(office.hub.kept.lock().unwrap().posted[0].envelope.bytes(), &picture);
}

#[tokio::test]
async fn what_is_no_sound_envelope_of_this_device_ends_the_connection_with_its_code() {
    let office = Office::new().await;
    let sound = batch(7, 1, 1);
    let changed = |at: usize, to: u8| {
        let mut bytes = sound.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    let crc = changed(sound.len() - 1, sound[sound.len() - 1] ^ 1);
    for (bad, code) in [
        (changed(0, b'X'), CloseCode::EnvelopeMagic),
        (crc, CloseCode::EnvelopeCrc),
        (changed(7, 9), CloseCode::EnvelopeLane),
        (envelope(Lane::Pictures, 7, 1, 1, 10), CloseCode::EnvelopeLane),
        (changed(59, 255), CloseCode::EnvelopeLength),
        (batch(7, 1, 0), CloseCode::EnvelopeSeq),
        (batch(8, 1, 2), CloseCode::EnvelopeDevice),
    ] {
        let mut agent = office.agent(7).await;
        agent.send(Lane::Telemetry, [sound.clone(), bad]).await;
        assert_eq!(agent.ended().await, Some(code));
    }
    // The sound ones before them were kept, and nothing of another device.
    let contents = office.lanes[0].contents(Position::default(), 100).await.unwrap();
    assert_eq!(contents.envelopes.len(), 7);
    assert!(contents.envelopes.iter().all(|one| one.device == device(7)));
}

#[tokio::test]
async fn a_second_stream_of_a_lane_and_a_wrong_beginning_end_the_connection() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    let mut second = agent.connection.open_lane(Lane::Telemetry).await.unwrap();
    let _ = second.send([batch(7, 1, 2)]).await;
    assert_eq!(agent.ended().await, Some(CloseCode::Stream));

    let state = Up::State(StateNow { state: State::Active, since_ms: 0, tails: Vec::new() });
    let old = Up::Hello(Hello { protocols: (7, 9), ..hello(Vec::new()) });
    for (first, code) in [(state, CloseCode::Message), (old, CloseCode::Protocol)] {
        let connection = office.dial(&office.ca.keys(agent_name("oslo", 7))).await;
        let (mut up, _down) = connection.open_control().await.unwrap();
        up.send(first.frame().unwrap()).await.unwrap();
        assert_eq!(ended(&connection).await, Some(code));
    }
    let mut twice = office.agent(7).await;
    twice.up.send(Up::Hello(hello(Vec::new())).frame().unwrap()).await.unwrap();
    assert_eq!(twice.ended().await, Some(CloseCode::Message));
}

#[tokio::test]
async fn a_guest_delivers_and_a_stranger_does_not() {
    let office = Office::new().await;
    let mut guest = office.agent_of("home", 8).await;
    guest.send(Lane::Telemetry, [batch(8, 1, 1)]).await;
    assert_eq!(guest.acked(Lane::Telemetry, 1).await, 1);
    let stranger = office.dial(&office.ca.keys(agent_name("bergen", 9))).await;
    assert_eq!(ended(&stranger).await, Some(CloseCode::NotOurSite));
}

#[tokio::test]
async fn a_newer_connection_ends_the_older_and_is_told_what_that_brought() {
    let office = Office::new().await;
    let mut older = office.agent(7).await;
    older.send(Lane::Telemetry, (1..=50).map(|seq| batch(7, 1, seq))).await;
    assert_eq!(older.acked(Lane::Telemetry, 50).await, 50);
    let newer = office.agent(7).await;
    assert_eq!(older.ended().await, Some(CloseCode::Replaced));
    let claims: Vec<_> = newer.welcome.claims.iter().map(|claim| (claim.spool, claim.ranges.clone())).collect();
    assert_eq!(claims, [(spool(1), vec![(1, 50)])]);
    assert_eq!(office.agents.count(), 1);
    let other = office.agent(8).await;
    assert_eq!(other.welcome.claims, []);
}

#[tokio::test]
async fn a_full_lane_is_not_read_until_the_hub_has_taken_what_lies_there() {
    let office = Office::with(Size { bytes_max: 4_000, segment_bytes: 1_000 }).await;
    for _ in 0..50 {
        office.hub.say(Reply::Status("503 Busy", ""));
    }
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, (1..=40).map(|seq| batch(7, 1, seq))).await;
    assert_eq!(agent.lane_said(Lane::Telemetry).await, LaneState::Full);
    // A reader that was waiting already takes one more run, and one datagram may bring it whole.
    agent.send(Lane::Telemetry, (41..=200).map(|seq| batch(7, 1, seq))).await;
    sleep(Duration::from_millis(200)).await;
    // Whoever comes now is told so at once, and told again when it is over.
    let mut late = office.agent(8).await;
    assert_eq!(late.welcome.lanes, [LaneState::Full, LaneState::Open]);
    assert!(office.lanes[0].standing().await.unwrap().waiting <= 40 + limits::LANE_RUN_MAX as u64, "what isn't read isn't committed");
    office.hub.kept.lock().unwrap().replies.clear();
    late.welcome.lanes = [LaneState::Open; 2];
    assert_eq!(late.lane_said(Lane::Telemetry).await, LaneState::Open);
    assert_eq!(agent.acked(Lane::Telemetry, 200).await, 200);
}

#[tokio::test]
async fn after_a_disk_error_nothing_is_acked_before_the_folder_was_opened_again() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(agent.acked(Lane::Telemetry, 1).await, 1);
    office.disk.fail(true);
    agent.send(Lane::Telemetry, [batch(7, 1, 2)]).await;
    assert_eq!(agent.ended().await, Some(CloseCode::NotCommitted));
    let mut again = office.agent(7).await;
    assert_eq!(again.lane_said(Lane::Telemetry).await, LaneState::Full);
    office.disk.fail(false);
    // The folder was opened again: what it claims is to be asked again.
    assert_eq!(again.ended().await, Some(CloseCode::ClaimsChanged));
    let mut last = office.agent(7).await;
    assert_eq!(last.welcome.claims.iter().map(|claim| claim.ranges.clone()).collect::<Vec<_>>(), [vec![(1, 1)]]);
    last.send(Lane::Telemetry, [batch(7, 1, 2)]).await;
    assert_eq!(last.acked(Lane::Telemetry, 1).await, 1);
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(agent.acked(Lane::Telemetry, 1).await, 1);
    office.disk.fill(true);
    agent.send(Lane::Telemetry, [batch(7, 1, 2)]).await;
    assert_eq!(agent.ended().await, Some(CloseCode::NotCommitted));
    let mut again = office.agent(7).await;
    assert_eq!(again.lane_said(Lane::Telemetry).await, LaneState::Full);
    office.disk.fill(false);
    assert_eq!(again.lane_said(Lane::Telemetry).await, LaneState::Open);
    again.send(Lane::Telemetry, [batch(7, 1, 2)]).await;
    assert_eq!(again.acked(Lane::Telemetry, 1).await, 1);
}

#[tokio::test]
async fn a_ruined_segment_is_set_aside_and_its_agent_welcomed_anew() {
    let office = Office::new().await;
    office.hub.say(Reply::Status("503 Busy", "retry-after: 1\r\n"));
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(agent.acked(Lane::Telemetry, 1).await, 1);
    office.disk.ruin(1);
    assert_eq!(agent.ended().await, Some(CloseCode::ClaimsChanged));
    let mut again = office.agent(7).await;
    assert_eq!(again.welcome.claims, []);
    again.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(again.acked(Lane::Telemetry, 1).await, 1);
}

// --- relay and hub ---

#[tokio::test]
async fn what_the_hub_doesnt_take_is_kept_and_sent_again_under_a_higher_number() {
    let office = Office::new().await;
    for status in ["503 Busy", "404 Not Found", "413 Too Large", "403 Forbidden", "500 Oops"] {
        office.hub.say(Reply::Status(status, ""));
    }
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(agent.acked(Lane::Telemetry, 1).await, 1);
    agent.hub_ack().await;
    let numbers = office.numbers();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
}

#[tokio::test]
async fn a_stale_number_is_counted_on_from() {
    let office = Office::new().await;
    office.hub.say(Reply::Answer(Answer::Stale { number: 70_000 }));
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(agent.hub_ack().await.stored, [(1, 1)]);
    assert_eq!(*office.numbers().last().unwrap(), 70_001);
}

#[tokio::test]
async fn a_rewound_hub_gets_everything_again_and_agents_are_welcomed_anew() {
    let office = Office::new().await;
    let mut agent = office.agent(7).await;
    agent.send(Lane::Telemetry, [batch(7, 1, 1), batch(7, 1, 2)]).await;
    assert_eq!(agent.hub_ack().await.stored, [(1, 2)]);
    let before = *office.numbers().last().unwrap();
    office.hub.say(Reply::Answer(Answer::Rewind { queues: vec![(Lane::Telemetry, 0), (Lane::Pictures, 0)] }));
    agent.send(Lane::Telemetry, [batch(7, 1, 3)]).await;
    assert_eq!(agent.ended().await, Some(CloseCode::ClaimsChanged));
    office.until(|hub| hub.posted.len() >= 5).await;
    assert_eq!(office.hub.seqs(), [1, 2, 1, 2, 3]);
    assert!(*office.numbers().last().unwrap() > before);
    let kept = office.hub.kept.lock().unwrap();
    assert_eq!(kept.heads.iter().rev().find(|head| head.number > before).unwrap().queues[0].answered, 0);
}

#[tokio::test]
async fn presence_and_asks_ride_with_telemetry() {
    let office = Office::new().await;
    let tail = Tail { spool: spool(4), lane: Lane::Telemetry, first_held: 5, next: 9, closed: true };
    let mut agent = office.agent_with("oslo", 7, vec![tail]).await;
    let state = StateNow { state: State::Idle, since_ms: 17, tails: vec![tail] };
    agent.up.send(Up::State(state).frame().unwrap()).await.unwrap();
    office
        .until(|hub| {
            hub.heads.iter().flat_map(|head| &head.presence).any(|snapshot| snapshot.devices.iter().any(|one| one.state == State::Idle))
        })
        .await;
    {
        let kept = office.hub.kept.lock().unwrap();
        let asks: Vec<_> = kept.heads.iter().flat_map(|head| &head.asks).map(|ask| (ask.device, ask.spool, ask.from)).collect();
        assert!(asks.contains(&(device(7), spool(4), 5)), "{asks:?}");
        assert!(kept.heads.iter().all(|head| head.number == 0 && head.lane == Lane::Telemetry));
    }
    drop(agent);
    office.until(|hub| hub.heads.iter().flat_map(|head| &head.presence).any(|snapshot| snapshot.gone.contains(&device(7)))).await;
}

#[tokio::test]
async fn a_policy_reaches_agents_that_hold_an_older_one() {
    let office = Office::new().await;
    let policy = Signed::new(SignedKind::Policy, Version { epoch: 1, n: 4 }, b"{}".to_vec());
    office.hub.kept.lock().unwrap().signed.push(policy.clone());
    let mut agent = office.agent(7).await;
    let came = agent.signed(SignedKind::Policy).await;
    assert_eq!((came.version, &came.body), (policy.version, &policy.body));
}

// --- the denied ---

#[tokio::test]
async fn a_denied_device_is_cut_off_and_turned_away_and_what_it_brought_before_is_kept() {
    let office = Office::new().await;
    for _ in 0..4 {
        // The list comes with the first answer after the line was down.
        office.hub.say(Reply::Status("503 Busy", ""));
    }
    let (mut lost, mut other) = (office.agent(7).await, office.agent(8).await);
    lost.send(Lane::Telemetry, (1..=3).map(|seq| batch(7, 1, seq))).await;
    assert_eq!(lost.acked(Lane::Telemetry, 3).await, 3);
    office.hub.kept.lock().unwrap().signed.push(denying(1, &[agent_name("oslo", 7)]));
    assert_eq!(lost.ended().await, Some(CloseCode::Denied));
    // What it says from now on is kept by nobody, whoever it is that it dials.
    let again = office.dial(&office.ca.keys(agent_name("oslo", 7))).await;
    let ended = timeout(SOON, again.closed()).await.unwrap();
    assert!(!matches!(ended, Ended::ByUs), "{ended:?}");
    office.until(|hub| hub.posted.len() == 3).await;
    assert_eq!(other.signed(SignedKind::Deny).await.version.n, 1, "the list goes on to agents");
    other.send(Lane::Telemetry, [batch(8, 2, 1)]).await;
    assert_eq!(other.acked(Lane::Telemetry, 1).await, 1);

    // The POST that carries it says which list was in force.
    let told = |head: &PostHead| head.versions.iter().any(|held| held.kind == SignedKind::Deny.as_u8());
    office.until(|hub| hub.posted.len() == 4 && hub.heads.iter().any(told)).await;
    let kept = office.hub.kept.lock().unwrap();
    let told_ms = kept.heads.iter().find(|head| told(head)).unwrap().relay_ms;
    let of_the_lost: Vec<_> = kept.posted.iter().filter(|posted| posted.envelope.header().device == device(7)).collect();
    assert_eq!(of_the_lost.len(), 3);
    assert!(of_the_lost.iter().all(|posted| posted.facts.receipt_ms <= told_ms), "something of it was kept after the list");
}

#[tokio::test]
async fn a_batch_that_comes_after_the_list_is_never_kept() {
    let office = Office::new().await;
    let mut lost = office.agent(7).await;
    lost.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    assert_eq!(lost.acked(Lane::Telemetry, 1).await, 1);
    office.papers.take(&office.hub.signing.sign(&office.hub.signing.bundle).into(), 0).unwrap();
    let list = office.hub.signing.sign(&denying(1, &[agent_name("oslo", 7)]));
    office.papers.take(&list.into(), 0).unwrap();
    // From here on the list is in force, whether or not the connection has heard of it.
    for seq in 2..50 {
        lost.send(Lane::Telemetry, [batch(7, 1, seq)]).await;
    }
    assert_eq!(lost.ended().await, Some(CloseCode::Denied));
    let contents = office.lanes[0].contents(Position::default(), 100).await.unwrap();
    assert_eq!(contents.envelopes.iter().map(|one| one.seq).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn what_lies_waiting_when_the_list_comes_isnt_even_read() {
    // All tasks are on this thread; writers, which count other things, aren't.
    let counted = Counted::default();
    let _counting = metrics::set_default_local_recorder(&counted);
    let office = Office::new().await;
    let (mut lost, mut other) = (office.agent(7).await, office.agent(8).await);
    office.agents.lane(Lane::Telemetry, LaneState::Full);
    lost.send(Lane::Telemetry, [batch(7, 1, 1)]).await;
    // Behind it on the same line: once this was heard, the batch lies here.
    let state = StateNow { state: State::Idle, since_ms: 17, tails: Vec::new() };
    lost.up.send(Up::State(state).frame().unwrap()).await.unwrap();
    let is_idle = |hub: &hub::Kept| {
        let devices = hub.heads.iter().flat_map(|head| &head.presence).flat_map(|snapshot| &snapshot.devices);
        devices.into_iter().any(|one| (one.device, one.state) == (device(7), State::Idle))
    };
    office.until(is_idle).await;

    // Its reader is woken first, and the list is in force by then.
    office.agents.lane(Lane::Telemetry, LaneState::Open);
    office.papers.take(&office.hub.signing.sign(&office.hub.signing.bundle).into(), 0).unwrap();
    office.papers.take(&office.hub.signing.sign(&denying(1, &[agent_name("oslo", 7)])).into(), 0).unwrap();
    assert_eq!(lost.ended().await, Some(CloseCode::Denied));
    assert_eq!(counted.received(), 0, "a batch of the denied was read");
    other.send(Lane::Telemetry, [batch(8, 1, 1)]).await;
    assert_eq!(other.acked(Lane::Telemetry, 1).await, 1);
    assert_eq!(counted.received(), 1, "what is read is counted");
}

/// How many batches were read off the network by the tasks of this thread.
#[derive(Default)]
struct Counted(Arc<AtomicU64>);

impl Counted {
    fn received(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == "muster_relay_received_total" { Counter::from_arc(self.0.clone()) } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn a_hub_that_says_less_than_it_has_signed_is_shown_it_and_lets_nobody_in_again_here() {
    let office = Office::new().await;
    office.hub.kept.lock().unwrap().signed.push(denying(9, &[agent_name("oslo", 7)]));
    // Each batch is a POST, and its answer.
    let mut other = office.agent(8).await;
    other.send(Lane::Telemetry, [batch(8, 1, 1)]).await;
    other.signed(SignedKind::Deny).await;
    other.send(Lane::Telemetry, [batch(8, 1, 2)]).await;
    let holds =
        |hub: &hub::Kept, kind: SignedKind| hub.heads.last().is_some_and(|head| head.versions.iter().any(|held| held.kind == kind.as_u8()));
    office.until(|hub| holds(hub, SignedKind::Deny)).await;
    {
        let mut kept = office.hub.kept.lock().unwrap();
        assert!(kept.shown.is_empty(), "a hub that knows it all was shown something");
        // Put back from before, with a new epoch, and somebody else was denied since.
        kept.signed[0] = Signed { version: Version { epoch: 2, n: 1 }, ..denying(1, &[agent_name("oslo", 9)]) };
    }
    other.send(Lane::Telemetry, [batch(8, 1, 3)]).await;
    office.until(|hub| hub.shown.len() >= 2).await;
    let shown: Vec<Signed> = office.hub.kept.lock().unwrap().shown.iter().map(|bytes| Signed::read(bytes).unwrap()).collect();
    assert_eq!((shown[0].kind, shown[1].kind), (SignedKind::Bundle.as_u8(), SignedKind::Deny.as_u8()));
    assert_eq!(shown[1].version, Version { epoch: 1, n: 9 });
    for n in [7, 9] {
        let turned_away = office.dial(&office.ca.keys(agent_name("oslo", n))).await;
        timeout(SOON, turned_away.closed()).await.unwrap();
    }
    other.send(Lane::Telemetry, [batch(8, 1, 4)]).await;
    assert_eq!(other.acked(Lane::Telemetry, 4).await, 4);
}

/// A list of the denied, of whom nobody has a certificate that was issued later.
fn denying(n: u32, names: &[Name]) -> Signed {
    let now_ms = SystemClock::new().now().wall_ms;
    let hour_ms = 3_600_000;
    let denial = |name: &Name| Denial { name: name.to_string(), issued_before_ms: now_ms + hour_ms, until_ms: now_ms + 24 * hour_ms };
    let list = DenyList { made_ms: now_ms, denied: names.iter().map(denial).collect() };
    Signed::new(SignedKind::Deny, Version { epoch: 1, n }, list.bytes().unwrap())
}

// --- the office ---

const DOMAIN: &str = "muster.test";

struct Ca {
    root: Root,
    issuer: Issuer,
}

impl Ca {
    fn new() -> Ca {
        let (root, issuer) = Issuer::in_memory(DOMAIN, SystemClock::new().now().wall_ms).unwrap();
        Ca { root, issuer }
    }

    fn keys(&self, name: Name) -> Arc<Keys> {
        let role = name.role();
        let signed = self.issuer.issue(&Identity::new(DOMAIN, name).unwrap(), SystemClock::new().now().wall_ms).unwrap();
        Keys::from_pem(&signed.pem, &signed.key_pem, self.root.pem(), role, Arc::new(SystemTime)).unwrap()
    }
}

/// A relay in Oslo, with guests from home, its disk, and its hub.
struct Office {
    ca: Ca,
    hub: Hub,
    disk: Disk,
    papers: Arc<Papers>,
    agents: Arc<Agents>,
    lanes: [LaneInbox; 2],
    address: String,
    stop: CancellationToken,
}

impl Office {
    async fn new() -> Office {
        Office::with(Size { bytes_max: 64 << 20, segment_bytes: 8 << 20 }).await
    }

    async fn with(size: Size) -> Office {
        let ca = Ca::new();
        let hub = Hub::start(&ca.keys(hub_name()), Signing::new(&ca.root, &ca.issuer)).await;
        let keys = ca.keys(relay_name());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let agents = Arc::new(Agents::new(1));
        let papers = Arc::new(Papers::in_memory(keys.clone()));
        let disk = Disk::default();
        let telemetry = disk.clone();
        let mut born = 0;
        let start = |lane: Lane, disk: Disk| {
            let open = move || {
                born += 1;
                Buffer::open(lane, disk.clone(), size, InstanceId([born; 16]), Rules::default())
            };
            Writer::start(lane, Box::new(open), agents.clone(), clock.clone()).unwrap().0
        };
        let lanes = [start(Lane::Telemetry, telemetry), start(Lane::Pictures, Disk::default())];
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), &keys).unwrap();
        let address = server.address().to_string();
        let stop = CancellationToken::new();
        let line = Line::new(&keys, &HubAddress { address: hub.address.clone(), name: hub_name() }).unwrap();
        let line = Arc::new(line);
        let branch = Branch {
            site: "oslo".to_owned(),
            guests: vec!["home".to_owned()],
            agents: agents.clone(),
            lanes: lanes.clone(),
            clock: clock.clone(),
            carrier: Arc::new(Carrier::new(line.clone())),
            papers: papers.clone(),
        };
        tokio::spawn(accept::serve(server, Arc::new(branch), stop.clone()));
        let [interval, first_retry] = [Duration::from_millis(50); 2];
        let sync =
            Arc::new(HubSync { line, agents: agents.clone(), lanes: lanes.clone(), clock, papers: papers.clone(), interval, first_retry });
        for lane in Lane::ALL {
            tokio::spawn(sync.clone().run(lane, stop.clone()));
        }
        Office { ca, hub, disk, papers, agents, lanes, address, stop }
    }

    async fn dial(&self, keys: &Arc<Keys>) -> Connection {
        Client::new(keys).connect(&self.address, &relay_name(), SOON).await.unwrap()
    }

    async fn agent(&self, n: u8) -> Agent {
        self.agent_of("oslo", n).await
    }

    async fn agent_of(&self, site: &str, n: u8) -> Agent {
        self.agent_with(site, n, Vec::new()).await
    }

    async fn agent_with(&self, site: &str, n: u8, tails: Vec<Tail>) -> Agent {
        let connection = self.dial(&self.ca.keys(agent_name(site, n))).await;
        let (mut up, mut down) = connection.open_control().await.unwrap();
        up.send(Up::Hello(hello(tails)).frame().unwrap()).await.unwrap();
        let first = timeout(SOON, down.receive()).await.unwrap().unwrap().unwrap();
        let Some(Down::Welcome(welcome)) = Down::read(&first).unwrap() else { panic!("a welcome comes first") };
        Agent { connection, up, down, welcome, lanes: [None, None] }
    }

    /// Numbers of the POSTs that carried envelopes.
    fn numbers(&self) -> Vec<u64> {
        self.hub.kept.lock().unwrap().heads.iter().map(|head| head.number).filter(|number| *number > 0).collect()
    }

    async fn until(&self, seen: impl Fn(&hub::Kept) -> bool) {
        let wait = async {
            while !seen(&self.hub.kept.lock().unwrap()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, wait).await.expect("the hub sees it");
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.stop.cancel();
        self.lanes.iter().for_each(LaneInbox::stop);
    }
}

/// An agent by hand.
struct Agent {
    connection: Connection,
    up: ControlSender,
    down: ControlReceiver,
    welcome: Welcome,
    lanes: [Option<muster_mesh::quic::LaneSender>; 2],
}

impl Agent {
    async fn send(&mut self, lane: Lane, run: impl IntoIterator<Item = Bytes>) {
        let slot = &mut self.lanes[lane.index()];
        if slot.is_none() {
            *slot = Some(self.connection.open_lane(lane).await.unwrap());
        }
        // The relay may have ended the connection: then that is what the test looks at.
        let _ = slot.as_mut().unwrap().send(run).await;
    }

    async fn next(&mut self) -> Down {
        loop {
            let message = timeout(SOON, self.down.receive()).await.expect("the relay says something").unwrap().unwrap();
            if let Some(down) = Down::read(&message).unwrap() {
                return down;
            }
        }
    }

    /// Acked so far on a lane, once it is as much as expected.
    async fn acked(&mut self, lane: Lane, expected: u64) -> u64 {
        loop {
            if let Down::Ack(Ack { lane: of, count }) = self.next().await
                && of == lane
                && count >= expected
            {
                return count;
            }
        }
    }

    async fn lane_said(&mut self, lane: Lane) -> LaneState {
        if self.welcome.lanes[lane.index()] == LaneState::Full {
            self.welcome.lanes[lane.index()] = LaneState::Open;
            return LaneState::Full;
        }
        loop {
            match self.next().await {
                Down::Lane(of, state) if of == lane => return state,
                _ => {}
            }
        }
    }

    async fn signed(&mut self, kind: SignedKind) -> Signed {
        loop {
            match self.next().await {
                Down::Signed(bytes) => {
                    let signed = Signed::read(&bytes).unwrap();
                    if signed.kind == kind.as_u8() {
                        return signed;
                    }
                }
                Down::Returned(Returned { .. }) => panic!("nothing is returned here"),
                _ => {}
            }
        }
    }

    async fn hub_ack(&mut self) -> HubAck {
        HubAck::read(&self.signed(SignedKind::Ack).await.body).unwrap()
    }

    async fn ended(&mut self) -> Option<CloseCode> {
        ended(&self.connection).await
    }
}

async fn ended(connection: &Connection) -> Option<CloseCode> {
    match timeout(SOON, connection.closed()).await.expect("the connection ends") {
        Ended::ByPeer { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn hello(tails: Vec<Tail>) -> Hello {
    let boot = BootId([1; 16]);
    Hello { protocols: (1, 1), dial: 9, boot, wall_ms: 0, boot_ms: 1_000, zone: "Etc/UTC".into(), versions: Vec::new(), tails }
}

fn hub_name() -> Name {
    Name::Hub { id: "hub-1".to_owned() }
}

fn relay_name() -> Name {
    Name::Relay { site: "oslo".to_owned(), id: "oslo-1".to_owned() }
}

fn agent_name(site: &str, n: u8) -> Name {
    Name::Agent { site: site.to_owned(), device: [n; 16] }
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

fn spool(n: u8) -> SpoolId {
    SpoolId([n; 16])
}

fn batch(of: u8, in_spool: u8, seq: u64) -> Bytes {
    envelope(Lane::Telemetry, of, in_spool, seq, 100)
}

fn envelope(lane: Lane, of: u8, in_spool: u8, seq: u64, body: usize) -> Bytes {
    let version = Version { epoch: 1, n: 1 };
    let header = Header {
        version: 1,
        seal: 0,
        codec: 0,
        lane,
        device: device(of),
        spool: spool(in_spool),
        seq,
        records: 1,
        raw_len: body as u32,
        body_len: body as u32,
        policy: version,
        notice: version,
        erasure: version,
        flags: FLAG_TEST_MODE,
    };
    frame(&header, &vec![seq as u8; body])
}
