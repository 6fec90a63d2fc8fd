//! Async: the running agent: it starts each part, and ends it in order: the collector, the queue, the way to the branch.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use muster_certs::{Keys, Name};
use muster_mesh::{
    asking::{Membership, Renewing},
    clock::{Clock, SystemClock},
    complaint::Complaint,
    config::expand,
    control, expiry,
    ids::{DeviceId, Lane, SpoolId, Version},
    limits,
    link::agent_side,
    papers::Papers,
    queue::segment::Segments,
    quic::{Client, Kernel},
    reload::{Kept, Reloading},
    state_dir::StateDir,
    status::Status,
};
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answers::{Answers, Whereabouts},
    batcher::Closed,
    collect::{BATCHES_WAITING_MAX, Collector, Parts, Snapshot, day::PolicyInForce},
    config::Config,
    daylog::{DAYLOG_BYTES_MAX, DayLog},
    desktop::Desktop,
    diary::{Diary, SharedDiary},
    enrolment::{ASKS_WAITING_MAX, ThroughRelay, VERSION},
    keeper::{Keeper, Keepers, Plan},
    network,
    news::{self, Newest},
    relays::RelayAddress,
    shots::{
        Narrowing, Shots,
        album::{ALBUM_BYTES_MAX, Album},
        camera::Camera,
        helper::{self, Helper},
    },
    spool::{BatchContext, Sizes},
    standing::Standing,
    today::Place,
    uplink::{self, Doing, Link, Uplink},
    who::{Enrolled, Who},
};

/// redb's cache per open segment; two are open in each lane.
const CACHE_BYTES: usize = 512 << 10;
/// Pictures stay at most this much longer than their two days.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Observes until `stop`.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    refuse_root(&config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let state = StateDir::open(&expand(&config.state), "agent")?;
    control::check_folder(state.path())?;
    let Who { keys, device, relays, enrolled } = Who::find(&config, state.path(), clock.now().wall_ms)?;
    let (membership, standing) = watch::channel(enrolled.as_ref().map_or(Membership::OF_FILES, Enrolled::membership));
    let status = Status::install();
    let site = keys.identity().name.site().unwrap_or_default().to_owned();
    let papers = Arc::new(Papers::open(state.path(), keys.clone(), clock.now().wall_ms));

    let diary = diary(&state, &clock)?;
    let keepers = Keepers::start(clock.clone()).context("the queue's thread can't be started")?;
    let keeper = keepers.add(plan(&config, state.path(), device, &clock, &diary)).map_err(|error| unopened(state.path(), &error))?;
    let Observing { collector, batches, in_force } = observe(&config, state.path(), clock.clone(), &papers)?;
    let (asker, collecting) = (collector.asker(), Collecting::new(collector, tokio::spawn(carry(batches, keeper.clone()))));
    let (link, linked) = watch::channel(Link::default());
    let wake = Arc::new(Notify::new());
    let (ask, asks) = mpsc::channel(ASKS_WAITING_MAX);
    let (heard, hearing) = watch::channel(in_force.borrow().clone());
    let ways = {
        let (relays, papers) = (relays.clone(), papers.clone());
        Box::new(move || relays.now(&papers))
    };
    let uplink = Uplink {
        client: Client::new(&keys),
        relays,
        keeper: keeper.clone(),
        doing: doing(asker.snapshot()),
        news: Arc::new(Newest::new(heard, papers.clone())),
        papers: papers.clone(),
        wake: wake.clone(),
        asks: Mutex::new(Some(asks)),
        link,
    };
    let closing = CancellationToken::new();
    let leaving = CancellationToken::new();
    let uplink = tokio::spawn(uplink.run(leaving.clone()));
    let sleep =
        tokio::spawn(uplink::watch_for_wakes(clock.clone(), network::reachable, uplink::WAKE_CHECK_EVERY, wake.clone(), closing.clone()));
    let gate = tokio::spawn(news::gate(hearing, standing.clone(), in_force, closing.clone()));
    let versions = tokio::spawn(papers.clone().keep_measuring(clock.clone(), closing.clone()));
    let renewing = enrolled.map(|Enrolled { home, .. }| {
        let renewing = Renewing {
            home: home.clone(),
            keys: keys.clone(),
            papers: papers.clone(),
            clock: clock.clone(),
            way: ThroughRelay { asks: ask, linked: linked.clone(), home, keys: keys.clone(), papers, network: Arc::new(Kernel) },
            wake,
            version: VERSION,
            membership,
        };
        tokio::spawn(renewing.run(closing.clone()))
    });
    let telling = tokio::spawn(expiry::keep_telling(keys.clone(), closing.clone()));
    let reloading = reloading(&config, &keys).map(|reloading| tokio::spawn(reloading.run_without_hangup(closing.clone())));
    let sweeper = tokio::spawn(sweep(diary.clone(), closing.clone()));

    let answers = Answers {
        asker,
        clock,
        whereabouts: Arc::new(Queue { keeper, linked, site, ways, standing }),
        state: state.path().to_path_buf(),
        diary,
        collecting: collecting.clone(),
    };
    let ready = Arc::new(AtomicBool::new(false));
    let control = control::serve(&state, move |question| answer(answers.clone(), question), closing.clone()).await?;
    let health = match config.status {
        Some(at) => Some(status.serve(at.listen, ready.clone(), closing.clone()).await?.1),
        None => None,
    };
    ready.store(true, Ordering::Relaxed);
    tracing::info!("muster-agent observes; `muster-agent status` says what");

    stop.cancelled().await;
    collecting.end().await?;
    leaving.cancel();
    uplink.await.context("the way to the branch")?;
    tokio::task::spawn_blocking(move || keepers.stop()).await.context("the queue's thread")?;
    closing.cancel();
    control.await.context("the control socket")?;
    sleep.await.context("the watch over sleep")?;
    gate.await.context("the gate before the policy")?;
    if let Some(renewing) = renewing {
        renewing.await.context("the certificate's renewal")?;
    }
    if let Some(reloading) = reloading {
        reloading.await.context("the look at changed certificates")?;
    }
    telling.await.context("the certificates' ends")?;
    versions.await.context("versions for monitoring")?;
    sweeper.await.context("the sweeper of old pictures")?;
    if let Some(health) = health {
        health.await.context("health and metrics")?;
    }
    Ok(())
}

/// None: this computer was enrolled, and there are no files to look at. SIGHUP is the end of the person's session, and no word about files.
fn reloading(config: &Config, keys: &Arc<Keys>) -> Option<Reloading> {
    let [certificate, key, roots] = config.files()?.map(expand);
    Some(Reloading::new(Kept::Node { keys: keys.clone(), certificate, key, roots }))
}

/// It observes the person who runs it, and root is nobody's account; tests may run as root.
fn refuse_root(config: &Config) -> Result<(), Complaint> {
    if rustix::process::geteuid().is_root() && !config.test_mode {
        return Err(Complaint::new(
            "muster-agent observes the person who runs it, and root is no person",
            "Run it as the user who is signed in (with `test_mode = true` in its configuration it runs as root, for trying it out)",
        ));
    }
    Ok(())
}

// --- the queue ---

fn diary(state: &StateDir, clock: &Arc<dyn Clock>) -> Result<SharedDiary, Complaint> {
    let log = DayLog::open(state.path(), DAYLOG_BYTES_MAX).map_err(|error| {
        Complaint::new(format!("the day log in {} can't be opened: {error}", state.path().display()), "Look after the state folder")
    })?;
    let album = Album::open(state.path(), ALBUM_BYTES_MAX).map_err(|error| {
        Complaint::new(format!("the pictures in {} can't be opened: {error}", state.path().display()), "Look after the state folder")
    })?;
    Ok(Diary::new(clock.clone(), log, album))
}

/// Pictures that are two days old go, also while no new ones come.
async fn sweep(diary: SharedDiary, stop: CancellationToken) {
    let mut looks = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => diary.lock().unwrap_or_else(PoisonError::into_inner).sweep(),
        }
    }
}

fn plan(config: &Config, state: &Path, device: DeviceId, clock: &Arc<dyn Clock>, diary: &SharedDiary) -> Plan<Segments> {
    let folders = Lane::ALL.map(|lane| state.join(lane.name()));
    let open = move || {
        let [telemetry, pictures] = &folders;
        Ok([Segments::open(telemetry, CACHE_BYTES)?, Segments::open(pictures, CACHE_BYTES)?])
    };
    // The first batch brings what is in force then.
    let context = BatchContext {
        policy: Version::default(),
        notice: Version::default(),
        erasure: Version::default(),
        test_mode: config.test_mode,
        boot: clock.boot(),
        zone: clock.zone(),
    };
    let sizes = Sizes {
        budgets: [config.queue.budget.get(), config.queue.pictures_budget.get()],
        segment_bytes: limits::AGENT_SEGMENT_BYTES as u64,
    };
    Plan { device, open: Box::new(open), sizes, context, clock: clock.clone(), journal: Some(diary.clone()), shown: true }
}

fn unopened(state: &Path, error: &crate::spool::SpoolError) -> Complaint {
    Complaint::new(format!("the queue in {} can't be opened: {error}", state.display()), "Look after that folder and the disk below it")
}

/// Hands batches to the queue until the collector has ended.
async fn carry(mut batches: mpsc::Receiver<Closed>, keeper: Keeper) {
    while let Some(closed) = batches.recv().await {
        if keeper.keep(closed).await.is_err() {
            // Its thread broke, and said so; the collector counts what finds no room.
            return;
        }
    }
}

// --- the collector ---

/// The collector on this desktop, with both ends of what connects it to the rest.
pub struct Observing {
    pub collector: Collector,
    /// What the spool numbers and keeps.
    pub batches: mpsc::Receiver<Closed>,
    /// Where the uplink puts the hub's policy.
    pub in_force: watch::Sender<Option<PolicyInForce>>,
}

/// Starts the collector on this desktop.
pub fn observe(config: &Config, state: &Path, clock: Arc<dyn Clock>, papers: &Papers) -> anyhow::Result<Observing> {
    let shots = shots(config, state, &clock)?;
    let standing = Standing::new(state);
    let (in_force, receiver) = watch::channel(news::proven(standing.in_force(), papers));
    let (sender, batches) = mpsc::channel(BATCHES_WAITING_MAX);
    let senses = Desktop::here().senses().context("the thread that listens to the buses can't be started")?;
    let parts = Parts { clock, senses, test_mode: config.test_mode, standing, in_force: receiver, batches: sender };
    let collector = Collector::start_with(parts, shots).context("the collector's thread can't be started")?;
    Ok(Observing { collector, batches, in_force })
}

fn shots(config: &Config, state: &Path, clock: &Arc<dyn Clock>) -> Result<Shots, Complaint> {
    let pictures = &config.pictures;
    let program = helper::find(pictures.helper.as_deref().map(expand).as_deref())?;
    let camera = program.map(|program| Box::new(Helper::new(program, clock.clone())) as Box<dyn Camera>);
    let narrowing = Narrowing { off: pictures.off, blur: pictures.blur, interval_min_s: pictures.interval_min_s };
    Ok(Shots::new(state, narrowing, camera))
}

/// Collection, which ends once, by whoever asks first. Clones end the same.
#[derive(Clone)]
pub struct Collecting(Arc<Mutex<Option<Running>>>);

struct Running {
    collector: Collector,
    /// Hands its batches to the queue.
    carrier: JoinHandle<()>,
}

impl Collecting {
    fn new(collector: Collector, carrier: JoinHandle<()>) -> Collecting {
        Collecting(Arc::new(Mutex::new(Some(Running { collector, carrier }))))
    }

    /// Ends collection: when this returns, the last batch is with the queue. What was collected goes on travelling.
    pub async fn end(&self) -> anyhow::Result<()> {
        let mut running = self.0.lock().await;
        if let Some(Running { collector, carrier }) = running.take() {
            tokio::task::spawn_blocking(move || collector.stop()).await.context("stopping the collector")?;
            carrier.await.context("the last batches")?;
        }
        Ok(())
    }
}

/// What presence needs of what the collector does.
fn doing(mut snapshot: watch::Receiver<Snapshot>) -> watch::Receiver<Doing> {
    let of = |snapshot: &Snapshot| Doing { state: snapshot.state, since_ms: snapshot.since_ms };
    let (told, doing) = watch::channel(of(&snapshot.borrow()));
    tokio::spawn(async move {
        // Until the collector or the uplink has ended.
        while snapshot.changed().await.is_ok() && !told.is_closed() {
            let new = of(&snapshot.borrow_and_update());
            told.send_if_modified(|old| std::mem::replace(old, new) != new);
        }
    });
    doing
}

// --- what people ask ---

fn answer(answers: Answers, question: serde_json::Value) -> futures_util::future::BoxFuture<'static, serde_json::Value> {
    Box::pin(async move { answers.answer(question).await })
}

/// Where each batch is, by what the queue was told.
struct Queue {
    keeper: Keeper,
    linked: watch::Receiver<Link>,
    /// Where this computer belongs.
    site: String,
    /// Which relays it would dial now.
    ways: Box<dyn Fn() -> Vec<RelayAddress> + Send + Sync>,
    standing: watch::Receiver<Membership>,
}

/// What a person should know of how this computer stands with the hub.
fn membership_lines(membership: &Membership) -> Vec<String> {
    let waits = "This computer waits for an admin to say whose it is: nothing is observed until then.";
    let waits = (!membership.is_approved()).then(|| waits.to_owned());
    waits.into_iter().chain(membership.trouble.as_ref().map(|why| format!("Its certificate couldn't be renewed yet: {why}."))).collect()
}

impl Queue {
    /// Where it goes, and where else. None: there is one way.
    fn ways_line(&self) -> Option<String> {
        let shown = |relay: &RelayAddress| match &relay.name {
            Name::Relay { site, id } if *site != self.site => format!("{site}'s {id}"),
            Name::Relay { id, .. } => id.clone(),
            other => other.to_string(),
        };
        let mut ways: Vec<String> = (self.ways)().iter().map(shown).collect();
        let mut known = BTreeSet::new();
        ways.retain(|way| known.insert(way.clone()));
        (ways.len() > 1).then(|| format!("Its relays, in order: {}.", ways.join(", ")))
    }
}

impl Whereabouts for Queue {
    fn place(&self, spool: SpoolId, seq: u64) -> Place {
        match self.keeper.view().place(spool, seq).0 {
            agent_side::Place::Here => Place::Here,
            agent_side::Place::Branch => Place::Branch,
            agent_side::Place::Hub => Place::Hub,
            agent_side::Place::Dropped => Place::Dropped,
        }
    }

    fn connection(&self) -> String {
        let link = self.linked.borrow();
        let said = match (link.relay.as_ref().map(|relay| &relay.name), &link.fault) {
            (Some(Name::Relay { site, id }), _) if *site != self.site => format!("Connected as a guest to {site}'s relay {id}."),
            (Some(Name::Relay { id, .. }), _) => format!("Connected to your branch's relay {id}."),
            (Some(other), _) => format!("Connected to {other}."),
            (None, Some(fault)) => format!("Not connected to a relay ({fault}). What is collected waits here."),
            (None, None) => "Not connected to a relay yet.".into(),
        };
        let unproven = match link.unproven {
            0 => None,
            n => Some(format!("{n} messages claimed to be the hub's and weren't; they were ignored.")),
        };
        let lines = [said].into_iter().chain(self.ways_line()).chain(unproven).chain(membership_lines(&self.standing.borrow()));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_connected(&self) -> bool {
        self.linked.borrow().relay.is_some()
    }
}
