//! Async: the whole hop in one process: the agent's keeper and uplink, a relay on its own folder, and a hub of a few lines, over real QUIC
//! and TLS.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_agent::{
    batcher::Closed,
    journal::Journal,
    keeper::{Keeper, Keepers, Plan},
    relays::{RelayAddress, Relays},
    spool::{BatchContext, Sealed, Sizes},
    uplink::{Doing, Link, News, Uplink},
};
use muster_certs::{Identity, Issuer, Keys, Name, Root, SystemTime};
use muster_mesh::{
    clock::{Clock, SystemClock},
    config::Bytes,
    ids::{DeviceId, Lane, SpoolId, Version},
    link::agent_side::Place,
    message::{HeldVersion, Reason, Signed, SignedKind, Verdict},
    queue::{directory::DirectoryError, segment::Segments},
    quic::{Client, Tuning},
    ranges::Ranges,
    record::{Capability, Kind, Record, State},
};
use muster_relay::{
    config::{AgentsConfig, BufferConfig, Config, HubConfig, StatusConfig},
    run::Relay,
};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

#[path = "../../relay/tests/branch/disk.rs"]
mod disk;
mod forging;
#[path = "../../relay/tests/branch/hub.rs"]
mod hub;
mod keeping;
mod relays;

use hub::{Hub, Reply, Signing};

const SOON: Duration = Duration::from_secs(60);
const DEVICE: DeviceId = DeviceId([7; 16]);

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_from_the_agents_disk_to_the_hub_and_its_ack_comes_back() {
    let town = Town::new().await;
    let relay = town.relay("oslo-1").await;
    let agent = town.agent(&[&relay]);
    agent.observe(5).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(town.hub.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(agent.link().relay, Some(relay.at()));
    {
        let notes = agent.notes.lock().unwrap();
        assert_eq!((notes.made.len(), notes.relay.len(), notes.hub.len()), (5, 5, 5));
        assert!(notes.order.windows(2).all(|pair| pair[0] <= pair[1]), "made, then in the branch, then in the hub: {:?}", notes.order);
    }
    let state =
        town.hub.kept.lock().unwrap().heads.iter().flat_map(|head| head.presence.clone()).flat_map(|snapshot| snapshot.devices).last();
    assert_eq!(state.unwrap().state, State::Active);
    agent.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_line_is_down_everything_waits_in_the_branch_and_then_drains() {
    let town = Town::new().await;
    for _ in 0..4 {
        town.hub.say(Reply::Status("503 Busy", ""));
    }
    let relay = town.relay("oslo-1").await;
    let agent = town.agent(&[&relay]);
    agent.observe(20).await;
    agent.until_all_in(Place::Branch).await;
    assert!(town.hub.seqs().is_empty());
    let standing = agent.keeper.standing().await.unwrap();
    assert_eq!(standing.waiting[0], (20, 20));
    // The relay is killed and comes back on its own folder and port: nothing is lost, and the agent isn't asked again.
    let again = relay.restarted(&town).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(town.hub.kept.lock().unwrap().stored.values().map(Ranges::count).sum::<u64>(), 20);
    agent.stop().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_relay_is_taken_when_the_first_is_not_there_and_a_restart_begins_a_new_spool() {
    let town = Town::new().await;
    let relay = town.relay("oslo-2").await;
    // At the first one's address somebody else answers: as good as nobody, and sooner known.
    let gone = RelayAddress { address: relay.address.clone(), name: relay_name("oslo-1") };
    let agent = town.agent_at(vec![gone, relay.at()]);
    agent.observe(3).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(relay.at()));
    let folder = agent.stop().await;
    let agent = town.agent_in(folder, Relays::Configured(vec![relay.at()]));
    agent.observe(2).await;
    agent.until_all_in(Place::Hub).await;
    let spools: Vec<u64> = town.hub.kept.lock().unwrap().stored.values().map(Ranges::count).collect();
    assert_eq!(spools, [3, 2]);
    let dials: Vec<u64> = town.hub.kept.lock().unwrap().posted.iter().map(|posted| posted.facts.dial).collect();
    assert!(dials.windows(2).all(|pair| pair[0] <= pair[1]) && dials[0] < dials[4], "{dials:?}");
    agent.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_collected_without_a_relay_is_sent_when_there_is_one() {
    let town = Town::new().await;
    let relay = town.relay("oslo-1").await;
    let agent = town.agent_at(Vec::new());
    agent.observe(600).await;
    assert_eq!(agent.keeper.standing().await.unwrap().waiting[0], (600, 0));
    let folder = agent.stop().await;
    let agent = town.agent_in(folder, Relays::Configured(vec![relay.at()]));
    agent.observe(1).await;
    timeout(SOON, agent.keeper.delivered()).await.unwrap().unwrap();
    agent.until_all_in(Place::Hub).await;
    assert_eq!(town.hub.kept.lock().unwrap().stored.values().map(Ranges::count).sum::<u64>(), 601);
    agent.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_comes_down_and_is_not_sent_to_who_holds_it() {
    let town = Town::new().await;
    let policy = Signed::new(SignedKind::Policy, Version { epoch: 1, n: 4 }, b"{}".to_vec());
    town.hub.kept.lock().unwrap().signed.push(policy.clone());
    let relay = town.relay("oslo-1").await;
    let agent = town.agent(&[&relay]);
    agent.observe(1).await;
    timeout(SOON, async {
        while agent.papers.0.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let came = agent.papers.0.lock().unwrap().clone();
    assert_eq!(came.iter().map(|signed| (signed.version, &signed.body)).collect::<Vec<_>>(), [(policy.version, &policy.body)]);
    agent.wake.notify_waiters();
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.papers.0.lock().unwrap().len(), 1);
    agent.stop().await;
    relay.stop().await;
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

// --- the town ---

const DOMAIN: &str = "muster.test";

struct Town {
    root: Root,
    issuer: Issuer,
    hub: Hub,
}

impl Town {
    async fn new() -> Town {
        let (root, issuer) = Issuer::in_memory(DOMAIN, SystemClock::new().now().wall_ms).unwrap();
        let hub_keys = keys(&issuer, &root, Name::Hub { id: "hub-1".to_owned() });
        Town { hub: Hub::start(&hub_keys, Signing::new(&root, &issuer)).await, root, issuer }
    }

    async fn relay(&self, id: &str) -> Office {
        self.relay_of("oslo", id).await
    }

    async fn relay_of(&self, site: &str, id: &str) -> Office {
        self.relay_at("127.0.0.1:0", site, id).await
    }

    async fn relay_at(&self, listen: &str, site: &str, id: &str) -> Office {
        let name = Name::Relay { site: site.to_owned(), id: id.to_owned() };
        let folder = tempfile::tempdir().unwrap();
        let signed = self.issuer.issue(&Identity::new(DOMAIN, name).unwrap(), SystemClock::new().now().wall_ms).unwrap();
        for (name, text) in [("relay.pem", signed.pem.as_str()), ("relay.key", signed.key_pem.as_str()), ("roots.pem", self.root.pem())] {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Office::start(folder, site.to_owned(), id.to_owned(), listen, &self.hub.address).await
    }

    fn agent(&self, relays: &[&Office]) -> Laptop {
        self.agent_at(relays.iter().map(|relay| relay.at()).collect())
    }

    fn agent_at(&self, relays: Vec<RelayAddress>) -> Laptop {
        self.agent_in(tempfile::tempdir().unwrap(), Relays::Configured(relays))
    }

    fn agent_in(&self, folder: TempDir, relays: Relays) -> Laptop {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let keepers = Keepers::start(clock.clone()).unwrap();
        let notes: Arc<Mutex<Notes>> = Arc::default();
        let path: PathBuf = folder.path().into();
        let keeper = keepers
            .add(Plan {
                device: DEVICE,
                open: Box::new(move || folders(&path)),
                sizes: Sizes { budgets: [64 << 20; 2], segment_bytes: 8 << 20 },
                context: context(&*clock),
                clock,
                journal: Some(notes.clone()),
                shown: true,
            })
            .unwrap();
        let keys = keys(&self.issuer, &self.root, Name::Agent { site: "oslo".to_owned(), device: DEVICE.0 });
        let (doing, said) = watch::channel(Doing { state: State::Active, since_ms: 1 });
        let (link, linked) = watch::channel(Link::default());
        let (papers, wake, stop): (Arc<Papers>, Arc<Notify>, CancellationToken) = Default::default();
        let trust = Arc::new(muster_mesh::papers::Papers::open(folder.path(), keys.clone(), SystemClock::new().now().wall_ms));
        let uplink = Uplink {
            client: Client::new(&keys),
            relays,
            keeper: keeper.clone(),
            doing: said,
            news: papers.clone(),
            papers: trust.clone(),
            asks: Default::default(),
            wake: wake.clone(),
            link,
        };
        let task = tokio::spawn(uplink.run(stop.clone()));
        Laptop { folder, keepers, keeper, notes, trust, papers, wake, stop, task, linked, _doing: doing }
    }
}

fn keys(issuer: &Issuer, root: &Root, name: Name) -> Arc<Keys> {
    let role = name.role();
    let signed = issuer.issue(&Identity::new(DOMAIN, name).unwrap(), SystemClock::new().now().wall_ms).unwrap();
    Keys::from_pem(&signed.pem, &signed.key_pem, root.pem(), role, Arc::new(SystemTime)).unwrap()
}

fn relay_name(id: &str) -> Name {
    Name::Relay { site: "oslo".to_owned(), id: id.to_owned() }
}

fn folders(path: &Path) -> Result<[Segments; 2], DirectoryError> {
    Ok([Segments::open(&path.join("telemetry"), 1 << 20)?, Segments::open(&path.join("pictures"), 1 << 20)?])
}

fn context(clock: &dyn Clock) -> BatchContext {
    let version = Version { epoch: 1, n: 1 };
    BatchContext { policy: version, notice: version, erasure: Version::default(), test_mode: true, boot: clock.boot(), zone: clock.zone() }
}

/// A relay on its folder.
struct Office {
    relay: Relay,
    folder: TempDir,
    site: String,
    id: String,
    address: String,
}

impl Office {
    async fn start(folder: TempDir, site: String, id: String, listen: &str, hub: &str) -> Office {
        let at = |name: &str| folder.path().join(name);
        let config = Config {
            state: at("state"),
            agents: AgentsConfig {
                listen: listen.parse().unwrap(),
                certificate: Some(at("relay.pem")),
                key: Some(at("relay.key")),
                roots: Some(at("roots.pem")),
                guests: Vec::new(),
                network: Tuning::default(),
            },
            buffer: BufferConfig { budget: Bytes(64 << 20), pictures_budget: Bytes(64 << 20) },
            door: None,
            hub: HubConfig { address: Some(hub.to_owned()), id: Some("hub/hub-1".to_owned()), interval_s: 1 },
            status: StatusConfig { listen: "127.0.0.1:0".parse().unwrap() },
        };
        let relay = Relay::start(&config).await.unwrap();
        let address = relay.agents_address().to_string();
        Office { relay, folder, site, id, address }
    }

    fn at(&self) -> RelayAddress {
        RelayAddress { address: self.address.clone(), name: self.name() }
    }

    fn name(&self) -> Name {
        Name::Relay { site: self.site.clone(), id: self.id.clone() }
    }

    async fn stop(self) -> TempDir {
        timeout(SOON, self.relay.stop()).await.unwrap().unwrap();
        self.folder
    }

    async fn restarted(self, town: &Town) -> Office {
        let (site, id, address) = (self.site.clone(), self.id.clone(), self.address.clone());
        let folder = self.stop().await;
        Office::start(folder, site, id, &address, &town.hub.address).await
    }
}

/// An agent without a desktop.
struct Laptop {
    folder: TempDir,
    keepers: Keepers,
    keeper: Keeper,
    notes: Arc<Mutex<Notes>>,
    trust: Arc<muster_mesh::papers::Papers>,
    papers: Arc<Papers>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    linked: watch::Receiver<Link>,
    _doing: watch::Sender<Doing>,
}

impl Laptop {
    async fn observe(&self, batches: usize) {
        for _ in 0..batches {
            let clock = self.keeper.clock().clone();
            let now = clock.now();
            let kind = Kind::Capability(Capability { what: "test".into(), able: true, why: String::new() });
            let records = vec![Record { at: now.wall_ms, kind }];
            let closed = Closed { lane: Lane::Telemetry, context: context(&*clock), closed_at: now, records, new_spools: false };
            self.keeper.keep(closed).await.unwrap();
        }
        // Answered behind everything that was put before.
        self.keeper.standing().await.unwrap();
    }

    fn link(&self) -> Link {
        self.linked.borrow().clone()
    }

    /// Waits until every batch that this laptop made is there.
    async fn until_all_in(&self, place: Place) {
        let made = self.notes.lock().unwrap().made.clone();
        let there = || made.iter().all(|&(spool, seq)| self.keeper.view().place(spool, seq).0 == place);
        let wait = async {
            while !there() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let places = || made.iter().map(|&(spool, seq)| self.keeper.view().place(spool, seq).0).collect::<Vec<_>>();
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not in {place:?}: {:?}, {:?}", places(), self.link()));
    }

    async fn stop(self) -> TempDir {
        self.stop.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap();
        drop(self.keeper);
        tokio::task::spawn_blocking(move || self.keepers.stop()).await.unwrap();
        self.folder
    }
}

/// What the journal heard.
#[derive(Default)]
struct Notes {
    made: Vec<(SpoolId, u64)>,
    relay: Vec<(SpoolId, u64)>,
    hub: Vec<(SpoolId, u64)>,
    /// 0 made, 1 relay, 2 hub, of number 1.
    order: Vec<u8>,
}

impl Journal for Notes {
    fn made(&mut self, sealed: &[Sealed]) {
        let keys: Vec<_> = sealed.iter().map(|sealed| (sealed.envelope.header().spool, sealed.envelope.header().seq)).collect();
        self.order.extend(keys.iter().filter(|key| key.1 == 1).map(|_| 0));
        self.made.extend(keys);
    }

    fn relay(&mut self, _relay: usize, numbers: &[(SpoolId, u64)]) {
        self.order.extend(numbers.iter().filter(|key| key.1 == 1).map(|_| 1));
        self.relay.extend(numbers);
    }

    fn hub(&mut self, spool: SpoolId, stored: &Ranges, _shown: &[(u64, Verdict, Reason)]) {
        self.order.extend(stored.numbers().filter(|seq| *seq == 1).map(|_| 2));
        self.hub.extend(stored.numbers().map(|seq| (spool, seq)));
    }
}

/// What came down.
#[derive(Default)]
struct Papers(Mutex<Vec<Signed>>);

impl News for Papers {
    fn held(&self) -> Vec<HeldVersion> {
        self.0.lock().unwrap().iter().map(|signed| HeldVersion { kind: signed.kind, version: signed.version }).collect()
    }

    fn signed(&self, signed: Signed, _bytes: &bytes::Bytes) {
        self.0.lock().unwrap().push(signed);
    }

    fn erasure(&self, _version: Version) {}
}
