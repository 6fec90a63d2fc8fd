//! Async: a branch's relay: its door for agents, its door for strangers, its queues and its renewal as they are; what it posts goes over TLS to
//! the hub of the world, without HTTP.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{Keys, Name, Trusted};
use muster_mesh::{
    asking::{Membership, Renewing, Way},
    chance,
    clock::Clock,
    doors,
    ids::{InstanceId, Lane},
    limits,
    link::relay_sync::Rules,
    member::Home,
    message::{Answer, PostHead},
    papers::Papers,
    quic::{DoorServer, Server, Tuning},
};
use muster_relay::{
    accept::{self, Branch},
    agents::Agents,
    buffer::{Buffer, Size},
    door::{self, Carrier},
    enrolment::{ToTheHub, VERSION},
    writer::{LaneInbox, Writer},
};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::Disk,
    hub::{Errand, Hub},
    network::{Card, Network},
    time::Watch,
};

const POST_EVERY: Duration = Duration::from_secs(120);
const BYTES_MAX: u64 = 64 << 20;
/// Nobody is switched on again sooner.
pub const POWER_IS_OFF: Duration = Duration::from_secs(60);

/// A relay's computer, running or not.
pub struct Office {
    pub name: Name,
    pub keys: Arc<Keys>,
    state: TempDir,
    disks: [Disk; 2],
    pub card: Arc<Card>,
    hub: Arc<Hub>,
    /// Why it had no new certificate in time.
    pub troubles: Arc<Mutex<Vec<String>>>,
    running: Option<Running>,
}

struct Running {
    lanes: [LaneInbox; 2],
    writers: Vec<thread::JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Office {
    /// Joins with a token.
    pub async fn enrol(hub: &Arc<Hub>, network: &Network, site: &str, id: &str, ip: Ipv4Addr, watch: &Watch) -> Office {
        let (state, card) = (tempfile::tempdir().unwrap(), network.card(ip));
        let token = hub.token_for_relay(site, id, ip.into()).await;
        let door = hubs_door(hub, &card, Arc::new(watch.clone()));
        let member = doors::join(&Home::of(state.path()), &token, None, VERSION, door).await.unwrap();
        let keys = member.keys(Arc::new(watch.clone())).unwrap();
        Office {
            name: member.name,
            keys,
            state,
            disks: Default::default(),
            card,
            hub: hub.clone(),
            troubles: Arc::default(),
            running: None,
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn cut(&self, is_cut: bool) {
        self.card.network.cut(self.card.ip, is_cut);
    }

    /// The computer is switched on.
    pub fn start(&mut self, watch: &Watch) {
        let clock: Arc<dyn Clock> = Arc::new(watch.clone());
        let home = Home::of(self.state.path());
        self.keys = home.member().unwrap().unwrap().keys(Arc::new(watch.clone())).unwrap();
        let keys = self.keys.clone();
        let papers = Arc::new(Papers::open(self.state.path(), keys.clone(), watch.now_ms()));
        let agents = Arc::new(Agents::new(watch.now_ms().unsigned_abs()));
        agents.signed(papers.all());
        let (lanes, writers) = self.queues(&agents, &clock);
        let at = |port| (self.card.ip, port).into();
        let server = Server::bind_on(&*self.card, at(4433), &keys, Tuning::default()).unwrap();
        let strangers = DoorServer::bind_on(&*self.card, at(4434), &keys).unwrap();
        let trunk = Arc::new(Trunk { hub: self.hub.clone(), keys: keys.clone(), card: self.card.clone() });
        let carrier = Arc::new(Carrier::new(trunk.clone()));
        let branch = Branch {
            site: self.name.site().unwrap().to_owned(),
            guests: Vec::new(),
            agents: agents.clone(),
            lanes: lanes.clone(),
            clock: clock.clone(),
            carrier: carrier.clone(),
            papers: papers.clone(),
        };
        let (membership, standing) = watch::channel(Membership::OF_FILES);
        let renewing = Renewing {
            home: home.clone(),
            keys: keys.clone(),
            papers: papers.clone(),
            clock: clock.clone(),
            way: ToTheHub {
                line: trunk.clone(),
                door: hubs_door(&self.hub, &self.card, keys.time().clone()),
                home,
                keys: keys.clone(),
                clock: clock.clone(),
            },
            wake: Arc::new(Notify::new()),
            version: VERSION,
            membership,
        };
        let stop = CancellationToken::new();
        let posting = Posting { trunk, lanes: lanes.clone(), agents, papers, watch: watch.clone() };
        let tasks = vec![
            tokio::spawn(accept::serve(server, Arc::new(branch), stop.clone())),
            tokio::spawn(door::serve(strangers, carrier, clock, stop.clone())),
            tokio::spawn(renewing.run(stop)),
            tokio::spawn(posting.run()),
            tokio::spawn(note_troubles(standing, self.troubles.clone())),
        ];
        self.running = Some(Running { lanes, writers, tasks });
    }

    fn queues(&self, agents: &Arc<Agents>, clock: &Arc<dyn Clock>) -> ([LaneInbox; 2], Vec<thread::JoinHandle<()>>) {
        let mut writers = Vec::new();
        let lanes = Lane::ALL.map(|lane| {
            let disk = self.disks[lane.index()].clone();
            let size = Size { bytes_max: BYTES_MAX, segment_bytes: BYTES_MAX / 16 };
            let open = move || Buffer::open(lane, disk.clone(), size, InstanceId(chance::random_16()), Rules::default());
            let (inbox, writer) = Writer::start(lane, Box::new(open), agents.clone(), clock.clone()).unwrap();
            writers.push(writer);
            inbox
        });
        (lanes, writers)
    }

    /// The power fails: nobody says goodbye.
    pub async fn stop(&mut self) {
        let Some(Running { lanes, writers, tasks }) = self.running.take() else { return };
        let was_cut = self.card.network.is_cut(self.card.ip);
        self.cut(true);
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        lanes.iter().for_each(LaneInbox::stop);
        drop(lanes);
        // Its sockets go when the last of its connections has been given up.
        sleep(POWER_IS_OFF).await;
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        self.cut(was_cut);
    }

    /// Batches that the hub lacks.
    pub async fn backlog(&self) -> u64 {
        match &self.running {
            Some(running) => running.lanes[0].standing().await.unwrap().waiting,
            None => u64::MAX,
        }
    }
}

pub async fn note_troubles(mut standing: watch::Receiver<Membership>, troubles: Arc<Mutex<Vec<String>>>) {
    while standing.changed().await.is_ok() {
        let trouble = standing.borrow_and_update().trouble.clone();
        troubles.lock().unwrap().extend(trouble);
    }
}

/// The line to the hub.
struct Trunk {
    hub: Arc<Hub>,
    keys: Arc<Keys>,
    card: Arc<Card>,
}

impl Way for Trunk {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        self.hub.run_errand(self.card.ip, &self.keys, Errand::Ask(ask)).await
    }
}

/// The hub's door.
struct AtDoor {
    hub: Arc<Hub>,
    card: Arc<Card>,
    trusted: Trusted,
    time: muster_certs::Time,
}

fn hubs_door(
    hub: &Arc<Hub>,
    card: &Arc<Card>,
    time: muster_certs::Time,
) -> impl Fn(&str, &Name, &Trusted) -> Result<AtDoor, String> + Send + Sync + 'static {
    let (hub, card) = (hub.clone(), card.clone());
    move |_, _, trusted| Ok(AtDoor { hub: hub.clone(), card: card.clone(), trusted: trusted.clone(), time: time.clone() })
}

impl Way for AtDoor {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        self.hub.ask_at_door(self.card.ip, &self.trusted, self.time.clone(), &ask).await
    }
}

/// Posts what lies here, and takes what comes back.
struct Posting {
    trunk: Arc<Trunk>,
    lanes: [LaneInbox; 2],
    agents: Arc<Agents>,
    papers: Arc<Papers>,
    watch: Watch,
}

impl Posting {
    async fn run(self) {
        while self.once().await.is_some() {
            sleep(POST_EVERY).await;
        }
    }

    /// None: the relay has ended.
    async fn once(&self) -> Option<()> {
        let own = &self.lanes[0];
        let posting = own.post(limits::POST_BYTES_MAX / 2).await.ok()?;
        let queues = vec![posting.queue, self.lanes[1].queue().await.ok()?];
        let head = PostHead {
            lane: Lane::Telemetry,
            number: posting.post.as_ref().map_or(0, |post| post.number),
            queues,
            asks: self.agents.asks(limits::ASKS_MAX),
            presence: None,
            relay_ms: self.watch.now_ms(),
            versions: self.papers.held(),
        };
        let entries = posting.post.map(|post| post.entries).unwrap_or_default();
        let body = head.body(entries.iter().map(|(facts, envelope)| (facts.as_ref(), envelope.as_ref()))).unwrap();
        let answered = self.trunk.hub.run_errand(self.trunk.card.ip, &self.trunk.keys, Errand::Post(body)).await;
        match answered.map(|answer| Answer::read(&answer).unwrap()) {
            Ok(Answer::Taken(taken)) => {
                if taken.number > 0 {
                    own.taken(taken.number, taken.returned).ok()?;
                }
                self.lanes.iter().try_for_each(|lane| lane.backed_up(None)).ok()?;
                self.believe(taken.signed);
                self.agents.acks(taken.acks);
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) if head.number > 0 => own.failed().ok()?,
            Err(_) => {}
        }
        Some(())
    }

    fn believe(&self, signed: Vec<Vec<u8>>) {
        let signed: Vec<Bytes> = signed.into_iter().map(Bytes::from).collect();
        for bytes in &signed {
            let paper = self.papers.take(bytes, self.watch.now_ms()).unwrap();
            self.papers.keep(&paper.signed, bytes);
        }
        self.agents.signed(signed);
    }
}
