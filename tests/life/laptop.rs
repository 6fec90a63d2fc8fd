//! Async: an agent without a desktop: its queue, its uplink and its renewal as they are.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_agent::{
    batcher::Closed,
    enrolment::{ThroughRelay, VERSION},
    keeper::{Keeper, Keepers, Plan},
    relays::Relays,
    spool::{BatchContext, Sizes},
    uplink::{Doing, Link, NoNews, Uplink},
};
use muster_certs::{Keys, Name, Trusted};
use muster_mesh::{
    asking::{Membership, Renewing, Way},
    clock::Clock,
    doors,
    ids::{DeviceId, Lane, Version},
    member::Home,
    papers::Papers,
    quic::{Client, Tuning, ask_at_door},
    record::{Capability, Kind, Record, State},
};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    branch::{POWER_IS_OFF, note_troubles},
    chance::Chance,
    disk::Disk,
    hub::Hub,
    network::{Card, Network},
    time::Watch,
};

/// A batch each so often, a half more or less.
const BATCH_EVERY: Duration = Duration::from_secs(120);

/// A person's computer, running or not.
pub struct Laptop {
    pub name: Name,
    pub keys: Arc<Keys>,
    state: TempDir,
    disks: [Disk; 2],
    card: Arc<Card>,
    pub notes: Arc<Mutex<Notes>>,
    /// Why it had no new certificate in time.
    pub troubles: Arc<Mutex<Vec<String>>>,
    running: Option<Running>,
}

/// What it did.
#[derive(Default)]
pub struct Notes {
    made: u64,
    /// The content of each batch that it kept.
    pub kept: Vec<String>,
    /// Why there was no connection.
    pub faults: Vec<String>,
    /// Messages that weren't the hub's.
    pub unproven: u64,
}

impl Notes {
    fn begin(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Of the faults those that are about a certificate.
    pub fn about_certificates(&self) -> Vec<String> {
        let is_about = |fault: &&String| fault.contains("certificate") || fault.contains("the relay that was dialled");
        self.faults.iter().filter(is_about).cloned().collect()
    }
}

struct Running {
    keeper: Keeper,
    tasks: Vec<JoinHandle<()>>,
    linked: watch::Receiver<Link>,
    _doing: watch::Sender<Doing>,
}

impl Laptop {
    /// Joins with a token, at the door of a relay.
    pub async fn enrol(hub: &Arc<Hub>, network: &Network, site: &str, person: &str, ip: Ipv4Addr, watch: &Watch) -> Laptop {
        let (state, card) = (tempfile::tempdir().unwrap(), network.card(ip));
        let token = hub.token_for_agent(site, person).await;
        let time: muster_certs::Time = Arc::new(watch.clone());
        let door = |address: &str, name: &Name, trusted: &Trusted| {
            Ok(AtDoor { card: card.clone(), address: address.to_owned(), name: name.clone(), trusted: trusted.clone(), time: time.clone() })
        };
        let member = doors::join(&Home::of(state.path()), &token, None, VERSION, door).await.unwrap();
        let keys = member.keys(time.clone()).unwrap();
        Laptop {
            name: member.name,
            keys,
            state,
            disks: Default::default(),
            card,
            notes: Arc::default(),
            troubles: Arc::default(),
            running: None,
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn is_connected(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.linked.borrow().relay.is_some())
    }

    pub fn cut(&self, is_cut: bool) {
        self.card.network.cut(self.card.ip, is_cut);
    }

    /// The computer is switched on.
    pub fn start(&mut self, keepers: &Keepers, watch: &Watch, chance: Chance) {
        let clock: Arc<dyn Clock> = Arc::new(watch.clone());
        let home = Home::of(self.state.path());
        let member = home.member().unwrap().unwrap();
        self.keys = member.keys(Arc::new(watch.clone())).unwrap();
        let keys = self.keys.clone();
        let papers = Arc::new(Papers::open(self.state.path(), keys.clone(), watch.now_ms()));
        let keeper = keepers.add(self.plan(&clock)).unwrap();
        let (link, linked) = watch::channel(Link::default());
        let (doing, does) = watch::channel(Doing { state: State::Active, since_ms: watch.now_ms() });
        let (ask, asks) = mpsc::channel(1);
        let wake = Arc::new(Notify::new());
        let site = member.name.site().unwrap().to_owned();
        let uplink = Uplink {
            client: Client::on(self.card.clone(), &keys, Tuning::default()),
            relays: Relays::OfSite { site, joined: member.dial.clone() },
            keeper: keeper.clone(),
            doing: does,
            news: Arc::new(NoNews),
            papers: papers.clone(),
            wake: wake.clone(),
            asks: tokio::sync::Mutex::new(Some(asks)),
            link,
        };
        let (membership, standing) = watch::channel(Membership::of(&member));
        let way = ThroughRelay {
            asks: ask,
            linked: linked.clone(),
            home: home.clone(),
            keys: keys.clone(),
            papers: papers.clone(),
            network: self.card.clone(),
        };
        let renewing = Renewing { home, keys, papers, clock, way, wake, version: VERSION, membership };
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(uplink.run(stop.clone())),
            tokio::spawn(renewing.run(stop)),
            tokio::spawn(note_troubles(standing, self.troubles.clone())),
            tokio::spawn(note_faults(linked.clone(), self.notes.clone())),
            tokio::spawn(collect(keeper.clone(), self.name.clone(), self.notes.clone(), chance)),
        ];
        self.running = Some(Running { keeper, tasks, linked, _doing: doing });
    }

    fn plan(&self, clock: &Arc<dyn Clock>) -> Plan<Disk> {
        let disks = self.disks.clone();
        Plan {
            device: self.name.device().map(DeviceId).unwrap(),
            open: Box::new(move || Ok(disks.clone())),
            sizes: Sizes { budgets: [64 << 20; 2], segment_bytes: 8 << 20 },
            context: context(&**clock),
            clock: clock.clone(),
            journal: None,
            shown: false,
        }
    }

    /// The power fails: nobody says goodbye.
    pub async fn stop(&mut self) {
        let Some(Running { keeper, tasks, .. }) = self.running.take() else { return };
        let was_cut = self.card.network.is_cut(self.card.ip);
        self.cut(true);
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        keeper.remove();
        drop(keeper);
        // Its sockets go when the last of its connections has been given up.
        sleep(POWER_IS_OFF).await;
        self.cut(was_cut);
    }

    /// Nothing more is collected; what was, travels on.
    pub fn end_collecting(&mut self) {
        if let Some(running) = &mut self.running
            && let Some(collecting) = running.tasks.pop()
        {
            collecting.abort();
        }
    }

    /// Batches of which the hub's word isn't known.
    pub async fn waiting(&self) -> u64 {
        match &self.running {
            Some(running) => running.keeper.standing().await.unwrap().waiting[0].0,
            None => u64::MAX,
        }
    }
}

fn context(clock: &dyn Clock) -> BatchContext {
    let version = Version { epoch: 1, n: 1 };
    BatchContext { policy: version, notice: version, erasure: Version::default(), test_mode: true, boot: clock.boot(), zone: clock.zone() }
}

/// Keeps a batch now and then.
async fn collect(keeper: Keeper, name: Name, notes: Arc<Mutex<Notes>>, mut chance: Chance) {
    loop {
        sleep(BATCH_EVERY / 2 + BATCH_EVERY.mul_f64(chance.below(1_000) as f64 / 1_000.0)).await;
        let (clock, made) = (keeper.clock().clone(), notes.lock().unwrap().begin());
        let (now, what) = (clock.now(), format!("{name} {made}"));
        let kind = Kind::Capability(Capability { what: what.clone(), able: true, why: String::new() });
        let records = vec![Record { at: now.wall_ms, kind }];
        let closed = Closed { lane: Lane::Telemetry, context: context(&*clock), closed_at: now, records, new_spools: false };
        keeper.keep(closed).await.unwrap();
        // Answered behind the commit: from here on it must arrive.
        keeper.standing().await.unwrap();
        notes.lock().unwrap().kept.push(what);
    }
}

async fn note_faults(mut linked: watch::Receiver<Link>, notes: Arc<Mutex<Notes>>) {
    let mut before = 0;
    while linked.changed().await.is_ok() {
        let link = linked.borrow_and_update().clone();
        let mut notes = notes.lock().unwrap();
        notes.unproven += link.unproven - before;
        before = link.unproven;
        notes.faults.extend(link.fault);
    }
}

/// A relay's door, as a newcomer sees it.
struct AtDoor {
    card: Arc<Card>,
    address: String,
    name: Name,
    trusted: Trusted,
    time: muster_certs::Time,
}

impl Way for AtDoor {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        let asked = ask_at_door(&*self.card, &self.address, &self.trusted, &self.name, self.time.clone(), &ask).await;
        asked.map_err(|error| error.to_string())
    }
}
