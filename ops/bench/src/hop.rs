//! Async: the hop: batches acked by a relay over QUIC and mutual TLS, synced to its disk, beside the same without a disk.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use muster_certs::{Identity, Keys, Name, Role, SystemTime, issuer::Issuer};
use muster_mesh::{
    clock::{Clock, SystemClock},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId},
    link::relay_sync::Rules,
    message::{Down, Hello, Up},
    papers::Papers,
    queue::{directory::Directory, segment::Segments},
    quic::{Client, Connection, ControlReceiver, ControlSender, Server},
};
use muster_relay::{
    accept::{self, Branch},
    agents::Agents,
    buffer::{Buffer, Size},
    door::Carrier,
    run::CACHE_BYTES,
    sync::{HubAddress, Line},
    writer::{LaneInbox, Writer},
};
use tokio::{
    sync::{Barrier, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    measure::{self, alternate},
    queue,
    void::Void,
};

const DOMAIN: &str = "bench.muster.internal";
/// Agents that dial at the same time: a crowd that comes at once is told to come again, and this doesn't measure handshakes.
const DIALLING_MAX: usize = 32;

/// What one agent has to send, before it begins again.
const DISTINCT_BYTES: usize = 512 << 10;

/// A load on one relay.
#[derive(Debug, Clone, Copy)]
struct Load {
    lane: Lane,
    agents: usize,
    in_flight: u64,
    batches: u64,
    bytes: usize,
}

/// Everyone connects, a few at a time; then all begin at once.
struct Start {
    doors: Semaphore,
    ready: Barrier,
    go: CancellationToken,
}

/// 64 agents with 64 in flight, 2 KB.
pub fn row() -> anyhow::Result<()> {
    let load = Load { lane: Lane::Telemetry, agents: 64, in_flight: 64, batches: 200_000, bytes: 2_048 };
    println!("hop, {load:?}");
    let (mut none, mut disk) = (|| run(load, false).map(|rate| rate * 2_048.0 / 1e6), || run(load, true).map(|rate| rate * 2_048.0 / 1e6));
    alternate("MB/s", &mut [("without a disk", &mut none), ("synced to redb", &mut disk)])
}

/// Once, for alternating with another program.
pub fn once() -> anyhow::Result<()> {
    synced_once(Load { lane: Lane::Telemetry, agents: 64, in_flight: 64, batches: 200_000, bytes: 2_048 })
}

/// Pictures of 80 KB, once, for alternating with another program.
pub fn pictures_once() -> anyhow::Result<()> {
    synced_once(Load { lane: Lane::Pictures, agents: 64, in_flight: 8, batches: 12_800, bytes: 80 << 10 })
}

fn synced_once(load: Load) -> anyhow::Result<()> {
    let rate = run(load, true)?;
    println!(
        "hop, synced: {} x {} B from {} agents = {rate:.0}/s, {:.1} MB/s; resident at most, agents included: {} MB",
        load.batches,
        load.bytes,
        load.agents,
        rate * load.bytes as f64 / 1e6,
        measure::resident_max_kb()? / 1_024
    );
    Ok(())
}

/// 1,000 agents with 4 in flight, 2 KB and as a real day makes them.
pub fn crowd() -> anyhow::Result<()> {
    for bytes in [2_048, 250] {
        let load = Load { lane: Lane::Telemetry, agents: 1_000, in_flight: 4, batches: 200_000, bytes };
        println!("hop, {load:?}");
        let mut disk = || run(load, true);
        alternate("batches/s", &mut [("synced to redb", &mut disk)])?;
    }
    Ok(())
}

fn run(load: Load, disk: bool) -> anyhow::Result<f64> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async move {
        let folder = tempfile::tempdir_in(".")?;
        let path = folder.path().to_owned();
        if disk {
            load.over(move |lane: Lane| Segments::open(&path.join(lane.name()), CACHE_BYTES)).await
        } else {
            load.over(|_| Ok(Void::default())).await
        }
    })
}

impl Load {
    /// Batches acked per second by a relay over this folder.
    async fn over<D: Directory + Send + 'static>(
        self,
        folder: impl Fn(Lane) -> Result<D, muster_mesh::queue::directory::DirectoryError> + Clone + Send + 'static,
    ) -> anyhow::Result<f64> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (root, issuer) = Issuer::in_memory(DOMAIN, clock.now().wall_ms)?;
        let keys = |name: Name, role: Role| -> anyhow::Result<Arc<Keys>> {
            let signed = issuer.issue(&Identity::new(DOMAIN, name)?, clock.now().wall_ms)?;
            Ok(Keys::from_pem(&signed.pem, &signed.key_pem, root.pem(), role, Arc::new(SystemTime))?)
        };
        let relay_name = Name::Relay { site: "oslo".into(), id: "oslo-1".into() };
        let relay_keys = keys(relay_name.clone(), Role::Relay)?;
        let server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &relay_keys)?;
        let address = server.address().to_string();
        let agents = Arc::new(Agents::new(1));
        let size = Size { bytes_max: u64::MAX, segment_bytes: muster_mesh::limits::RELAY_SEGMENT_BYTES as u64 };
        let lane = |lane: Lane| {
            let folder = folder.clone();
            let open = move || Buffer::open(lane, folder(lane)?, size, InstanceId([1; 16]), Rules::default());
            Writer::start(lane, Box::new(open), agents.clone(), clock.clone())
        };
        let (telemetry, pictures) = (lane(Lane::Telemetry)?, lane(Lane::Pictures)?);
        let lanes: [LaneInbox; 2] = [telemetry.0, pictures.0];
        // Nobody is asked in a benchmark: its hub is an address where nobody listens.
        let nobody = HubAddress { address: "127.0.0.1:9".to_owned(), name: Name::Hub { id: "hub-1".into() } };
        let branch = Branch {
            site: "oslo".into(),
            guests: Vec::new(),
            agents: agents.clone(),
            lanes: lanes.clone(),
            clock: clock.clone(),
            carrier: Arc::new(Carrier::new(Arc::new(Line::new(&relay_keys, &nobody)?))),
            papers: Arc::new(Papers::in_memory(relay_keys)),
        };
        let stop = CancellationToken::new();
        let door = tokio::spawn(accept::serve(server, Arc::new(branch), stop.clone()));

        let mut connections = Vec::new();
        let mut sockets: Option<Client> = None;
        for number in 0..self.agents {
            let mut device = [9; 16];
            device[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let keys = keys(Name::Agent { site: "oslo".into(), device }, Role::Agent)?;
            let client = match (number % 16, &sockets) {
                (1.., Some(sockets)) => sockets.sharing_sockets(&keys),
                _ => Client::new(&keys),
            };
            sockets = Some(client.clone());
            connections.push((DeviceId(device), client));
        }
        let mut senders = JoinSet::new();
        let doors = Semaphore::new(DIALLING_MAX);
        let start = Arc::new(Start { doors, ready: Barrier::new(self.agents + 1), go: CancellationToken::new() });
        for (device, client) in connections {
            let (address, name, start) = (address.clone(), relay_name.clone(), start.clone());
            senders.spawn(async move { self.send(device, client, &address, &name, &start).await });
        }
        tokio::select! {
            _ = start.ready.wait() => {}
            Some(ended) = senders.join_next() => {
                ended??;
                anyhow::bail!("an agent ended before the start");
            }
        }
        let begin = Instant::now();
        start.go.cancel();
        while let Some(sent) = senders.join_next().await {
            sent??;
        }
        let took = begin.elapsed().as_secs_f64();
        stop.cancel();
        door.await?;
        lanes.iter().for_each(LaneInbox::stop);
        tokio::task::spawn_blocking(|| [telemetry.1, pictures.1].map(|thread| thread.join().is_ok())).await?;
        Ok((self.batches / self.agents as u64 * self.agents as u64) as f64 / took)
    }

    /// One agent: connects, waits for the start, sends its share with so many in flight.
    async fn send(self, device: DeviceId, client: Client, address: &str, relay: &Name, start: &Start) -> anyhow::Result<()> {
        let (connection, mut control) = welcomed(&client, address, relay, &start.doors).await?;
        let mut lane = connection.open_lane(self.lane).await?;
        let total = self.batches / self.agents as u64;
        let spool = SpoolId(device.0);
        let distinct = total.min((DISTINCT_BYTES / self.bytes) as u64);
        let envelopes: Vec<Bytes> =
            (1..=distinct).map(|seq| queue::envelope(self.lane, device, spool, seq, self.bytes).bytes().clone()).collect();
        start.ready.wait().await;
        start.go.cancelled().await;
        let (mut sent, mut acked) = (0u64, 0u64);
        while acked < total {
            let more = (total - sent).min(self.in_flight - (sent - acked));
            if more > 0 {
                lane.send((sent..sent + more).map(|at| envelopes[at as usize % envelopes.len()].clone())).await?;
                sent += more;
            }
            let message = control.1.receive().await?.context("the relay ended the control stream")?;
            if let Some(Down::Ack(ack)) = Down::read(&message)? {
                acked = ack.count;
            }
        }
        Ok(())
    }
}

/// Connects and says hello; the relay's door lets only so many in at a time.
async fn welcomed(
    client: &Client,
    address: &str,
    relay: &Name,
    doors: &Semaphore,
) -> anyhow::Result<(Connection, (ControlSender, ControlReceiver))> {
    let _turn = doors.acquire().await?;
    let connection = client.connect(address, relay, Duration::from_secs(60)).await?;
    let mut control = connection.open_control().await?;
    let hello = Hello {
        protocols: (1, 1),
        dial: 1,
        boot: BootId([1; 16]),
        wall_ms: 0,
        boot_ms: 0,
        zone: String::new(),
        versions: Vec::new(),
        tails: Vec::new(),
    };
    control.0.send(Up::Hello(hello).frame()?).await?;
    loop {
        let message = control.1.receive().await?.context("the relay says nothing")?;
        if let Some(Down::Welcome(_)) = Down::read(&message)? {
            return Ok((connection, control));
        }
    }
}
