//! Async: what an agent with a good certificate may try at its relay.

use std::time::Duration;

use muster_certs::Name;
use muster_mesh::{
    batch::{Batch, Envelope, Head, Header, frame},
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    limits,
    message::{AGENT_ALPN, CloseCode},
    record::{Heartbeat, Kind, Record, State},
};
use tokio::time::{sleep, timeout};

use crate::{mesh::*, strangers::*};

pub fn device(name: &Name) -> DeviceId {
    DeviceId(name.device().unwrap())
}

pub fn envelope(device: DeviceId, seq: u64) -> Envelope {
    let heartbeat = Heartbeat { state: State::Active, battery: None, version: "0.1.0".to_owned() };
    let version = Version { epoch: 1, n: 1 };
    Batch {
        device,
        spool: SpoolId([9; 16]),
        seq,
        lane: Lane::Telemetry,
        policy: version,
        notice: version,
        erasure: Version::default(),
        test_mode: true,
        head: Head {
            boot: BootId([3; 16]),
            wall_ms: now_ms(),
            boot_ms: 1_000,
            zone: "Europe/Oslo".to_owned(),
            offset_s: 3_600,
            tails: Vec::new(),
        },
        records: vec![Record { at: now_ms(), kind: Kind::Heartbeat(heartbeat) }],
    }
    .seal()
    .unwrap()
}

/// An envelope of this many bytes of body.
pub fn padded(seq: u64, body: usize) -> bytes::Bytes {
    let header = Header { seq, raw_len: body as u32, body_len: body as u32, codec: 0, ..*envelope(DeviceId([1; 16]), 1).header() };
    frame(&header, &vec![seq as u8; body])
}

impl Mesh {
    pub async fn visit(&self, agent: &Name) -> Visit {
        let config = quic_client(client(Some(&self.ca.good(agent)), AGENT_ALPN));
        timeout(SOON, Visit::open(self.relay.agents_address(), config, now_ms() as u64)).await.unwrap().unwrap()
    }

    /// Somebody else, meanwhile, is served as ever.
    async fn serves_others(&self) {
        let agent = self.new_agent();
        let mut visit = self.visit(&agent).await;
        let _lane = visit.lane(Lane::Telemetry, envelope(device(&agent), 1).bytes()).await;
        visit.acked(1).await;
    }

    async fn waiting(&self) -> u64 {
        let standing = self.relay.lane(Lane::Telemetry).standing().await.unwrap();
        standing.waiting
    }
}

#[tokio::test]
async fn an_agent_that_sends_another_devices_batch_is_cut_off_and_nothing_of_it_is_kept() {
    let mesh = Mesh::start().await;
    let (agent, other) = (mesh.new_agent(), mesh.new_agent());
    let visit = mesh.visit(&agent).await;
    let _lane = visit.lane(Lane::Telemetry, envelope(device(&other), 1).bytes()).await;
    assert_eq!(visit.ended().await, Met::Closed(CloseCode::EnvelopeDevice));
    // What it sent before in its own name is kept.
    let visit = mesh.visit(&agent).await;
    let run = [envelope(device(&agent), 1).bytes().to_vec(), envelope(device(&other), 2).bytes().to_vec()].concat();
    let _lane = visit.lane(Lane::Telemetry, &run).await;
    assert_eq!(visit.ended().await, Met::Closed(CloseCode::EnvelopeDevice));
    mesh.serves_others().await;
    for (name, kept) in [(&agent, 1), (&other, 0)] {
        let claims = mesh.relay.lane(Lane::Telemetry).claims(device(name)).await.unwrap();
        assert_eq!(claims.iter().map(|claim| claim.ranges.len()).sum::<usize>(), kept, "{name}");
    }
}

#[tokio::test]
async fn ten_thousand_streams_are_two_and_then_the_end() {
    let mesh = Mesh::start().await;
    let visit = mesh.visit(&mesh.new_agent()).await;
    let mut opened = Vec::new();
    // Past its three streams a client has to wait for ever.
    while opened.len() < 10_000 {
        match timeout(Duration::from_millis(300), visit.connection.open_uni()).await {
            Ok(stream) => opened.push(stream.unwrap()),
            Err(_) => break,
        }
    }
    assert_eq!(opened.len(), Lane::ALL.len());
    assert!(timeout(Duration::from_millis(100), visit.connection.open_bi()).await.is_err());
    mesh.serves_others().await;
    drop((opened, visit));

    // One that gives each stream up to get the next is ended by the first.
    let visit = mesh.visit(&mesh.new_agent()).await;
    let mut tried = 0;
    while tried < 10_000 {
        let Ok(mut stream) = visit.connection.open_uni().await else { break };
        let _ = stream.write_all(&[0]).await;
        let _ = stream.reset(0u32.into());
        tried += 1;
    }
    assert!(tried < 10, "{tried} streams were opened");
    assert_eq!(visit.ended().await, Met::Closed(CloseCode::Stream));
    mesh.serves_others().await;
}

#[tokio::test]
async fn an_agent_that_never_reads_blocks_nobody_and_its_batches_are_kept() {
    let mesh = Mesh::start().await;
    let agent = mesh.new_agent();
    let mut config = quic_client(client(Some(&mesh.ca.good(&agent)), AGENT_ALPN));
    // Room for the Welcome and a few acks.
    config.transport_config(reading_little(128));
    let visit = timeout(SOON, Visit::open(mesh.relay.agents_address(), config, 1)).await.unwrap().unwrap();
    let mut lane = visit.lane(Lane::Telemetry, &[]).await;
    let sent = 600;
    for seq in 1..=sent {
        lane.write_all(envelope(device(&agent), seq).bytes()).await.unwrap();
        if seq % 10 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    mesh.serves_others().await;
    // One slot per connection: what isn't read is overwritten, not queued.
    let claims = mesh.relay.lane(Lane::Telemetry).claims(device(&agent)).await.unwrap();
    assert_eq!(claims.iter().flat_map(|claim| &claim.ranges).collect::<Vec<_>>(), [&(1, sent)]);
    assert_eq!(visit.connection.close_reason(), None);
}

#[tokio::test]
async fn an_agent_that_never_reads_its_welcome_blocks_nobody_not_even_itself() {
    let mesh = Mesh::start().await;
    let agent = mesh.new_agent();
    let mut config = quic_client(client(Some(&mesh.ca.good(&agent)), AGENT_ALPN));
    config.transport_config(reading_little(1));
    let deaf = Visit::open(mesh.relay.agents_address(), config, 1);
    tokio::pin!(deaf);
    let opened = timeout(Duration::from_secs(1), &mut deaf).await;
    mesh.serves_others().await;
    let mut again = mesh.visit(&agent).await;
    let _lane = again.lane(Lane::Telemetry, envelope(device(&agent), 1).bytes()).await;
    again.acked(1).await;
    drop(opened);
}

#[tokio::test]
async fn a_lane_that_sends_more_than_is_read_is_held_back_by_the_window() {
    let mesh = Mesh::start().await;
    let visit = mesh.visit(&mesh.new_agent()).await;
    // A picture that is announced and never finished: the relay waits for its end and takes nothing beyond its window.
    let mut header = envelope(DeviceId([1; 16]), 1).bytes()[..88].to_vec();
    header[7] = Lane::Pictures.as_u8();
    header[56..60].copy_from_slice(&(limits::PICTURES_RAW_MAX as u32).to_le_bytes());
    let mut lane = visit.lane(Lane::Pictures, &header).await;
    let mut sent = 0;
    while let Ok(written) = timeout(SOON, lane.write(&[0xee; 16 * 1_024])).await {
        match written {
            Ok(bytes) => sent += bytes,
            Err(_) => break,
        }
    }
    // The envelope's crc is wrong: nothing behind its end was taken.
    assert_eq!(visit.ended().await, Met::Closed(CloseCode::EnvelopeCrc));
    assert!(sent <= limits::PICTURES_RAW_MAX + 2 * limits::STREAM_WINDOW_BYTES, "{sent} bytes");
    assert_eq!(mesh.waiting().await, 0);
    mesh.serves_others().await;
}
