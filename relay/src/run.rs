//! Async: the running relay: its buffers, its door, its way to the hub, and what people and monitoring ask; started and ended in order.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use muster_certs::Keys;
use muster_mesh::{
    asking::{Membership, Renewing},
    chance,
    clock::{Clock, SystemClock},
    complaint::Complaint,
    config::{Bytes, expand},
    control, expiry,
    ids::{InstanceId, Lane},
    limits,
    link::relay_sync::Rules,
    papers::Papers,
    queue::{Position, directory::DirectoryError, segment::Segments},
    quic::{DoorServer, Server},
    reload::{Kept, Reloading, wake_at_hangup},
    state_dir::StateDir,
    status::Status,
};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{self, Branch},
    agents::Agents,
    buffer::{Buffer, Size},
    config::{Config, segment_bytes},
    door::{self, Carrier},
    enrolment::{ToTheHub, VERSION, hubs_door},
    sync::{FIRST_RETRY, HubSync, Line},
    who::Who,
    writer::{LaneInbox, Writer},
};

/// redb's cache of the segment that is written.
pub const CACHE_BYTES: usize = limits::WRITTEN_CACHE_BYTES;

/// A relay that runs.
pub struct Relay {
    agents_address: SocketAddr,
    door_address: Option<SocketAddr>,
    status_address: SocketAddr,
    agents: Arc<Agents>,
    lanes: [LaneInbox; 2],
    writers: Vec<thread::JoinHandle<()>>,
    door: JoinHandle<()>,
    syncs: Vec<JoinHandle<()>>,
    services: Vec<JoinHandle<()>>,
    ready: Arc<AtomicBool>,
    closing_door: CancellationToken,
    closing: CancellationToken,
    _state: StateDir,
}

impl Relay {
    /// Opens the state folder and starts everything. Health and metrics are this process' own.
    pub async fn start(config: &Config) -> anyhow::Result<Relay> {
        config.check()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let state = StateDir::open(&expand(&config.state), "relay")?;
        control::check_folder(state.path())?;
        let Who { keys, hub, home } = Who::find(config, state.path(), clock.now().wall_ms)?;
        let line = Arc::new(Line::new(&keys, &hub)?);
        let carrier = Arc::new(Carrier::new(line.clone()));
        let status = Status::install();
        let agents = Arc::new(Agents::new(clock.now().wall_ms.max(0) as u64));
        let papers = Arc::new(Papers::open(state.path(), keys.clone(), clock.now().wall_ms));
        agents.signed(papers.all());
        let (lanes, writers) = buffers(config, state.path(), &agents, &clock)?;
        let server = Server::bind_with(config.agents.listen, &keys, config.agents.network)?;
        let agents_address = server.address();
        let strangers = config.door.map(|door| DoorServer::bind(door.listen, &keys)).transpose()?;
        let door_address = strangers.as_ref().map(DoorServer::address);
        let (closing_door, closing) = (CancellationToken::new(), CancellationToken::new());
        let ready = Arc::new(AtomicBool::new(false));

        let (status_address, health) = status.serve(config.status.listen, ready.clone(), closing.clone()).await?;
        let (membership, standing) = watch::channel(Membership::OF_FILES);
        let asked = Asked { agents: agents.clone(), lanes: lanes.clone(), keys: keys.clone(), standing };
        let control = control::serve(&state, move |question| asked.clone().answer(question), closing.clone()).await?;
        let site = keys.identity().name.site().unwrap_or_default().to_owned();
        let branch = Branch {
            site,
            guests: config.agents.guests.clone(),
            agents: agents.clone(),
            lanes: lanes.clone(),
            clock: clock.clone(),
            carrier: carrier.clone(),
            papers: papers.clone(),
        };
        let door = tokio::spawn(accept::serve(server, Arc::new(branch), closing_door.clone()));
        let (interval, first_retry) = (config.interval(), FIRST_RETRY);
        let mut services = vec![health, control];
        if let Some(strangers) = strangers {
            services.push(tokio::spawn(door::serve(strangers, carrier, clock.clone(), closing.clone())));
        }
        services.push(tokio::spawn(expiry::keep_telling(keys.clone(), closing.clone())));
        if let Some(reloading) = reloading(config, &keys) {
            services.push(tokio::spawn(reloading.run(closing.clone())));
        }
        if let Some(home) = home {
            let wake = Arc::new(Notify::new());
            services.push(tokio::spawn(wake_at_hangup(wake.clone(), closing.clone())));
            let renewing = Renewing {
                home: home.clone(),
                keys: keys.clone(),
                papers: papers.clone(),
                clock: clock.clone(),
                way: ToTheHub { line: line.clone(), door: hubs_door(keys.time().clone()), home, keys: keys.clone(), clock: clock.clone() },
                wake,
                version: VERSION,
                membership,
            };
            services.push(tokio::spawn(renewing.run(closing.clone())));
        }
        let gauges = tokio::spawn(measure(agents.clone(), closing.clone()));
        let versions = tokio::spawn(papers.clone().keep_measuring(clock.clone(), closing.clone()));
        let sync = Arc::new(HubSync { line, agents: agents.clone(), lanes: lanes.clone(), clock, papers, interval, first_retry });
        let syncs = Lane::ALL.map(|lane| tokio::spawn(sync.clone().run(lane, closing.clone()))).into();
        ready.store(true, Ordering::Relaxed);
        tracing::info!(%agents_address, hub = hub.address, "muster-relay takes agents of {}", keys.identity().name.site().unwrap_or_default());
        services.extend([gauges, versions]);
        Ok(Relay {
            agents_address,
            door_address,
            status_address,
            agents,
            lanes,
            writers,
            door,
            syncs,
            services,
            ready,
            closing_door,
            closing,
            _state: state,
        })
    }

    /// Where agents dial.
    pub fn agents_address(&self) -> SocketAddr {
        self.agents_address
    }

    /// Where those without a certificate ask.
    pub fn door_address(&self) -> Option<SocketAddr> {
        self.door_address
    }

    /// Where health and metrics are asked.
    pub fn status_address(&self) -> SocketAddr {
        self.status_address
    }

    /// Connected agents.
    pub fn connections(&self) -> usize {
        self.agents.count()
    }

    pub fn lane(&self, lane: Lane) -> &LaneInbox {
        &self.lanes[lane.index()]
    }

    /// Says goodbye to the agents, commits what was read, and ends everything.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.ready.store(false, Ordering::Relaxed);
        self.closing_door.cancel();
        self.door.await.context("the door for agents")?;
        self.lanes.iter().for_each(LaneInbox::stop);
        let writers = self.writers;
        let joined = tokio::task::spawn_blocking(move || writers.into_iter().map(thread::JoinHandle::join).all(|ended| ended.is_ok()));
        anyhow::ensure!(joined.await.context("the buffers")?, "a buffer's thread broke");
        self.closing.cancel();
        for task in self.syncs.into_iter().chain(self.services) {
            task.await.context("a part of the relay")?;
        }
        tracing::info!("muster-relay has stopped");
        Ok(())
    }
}

/// Runs until `stop`.
pub async fn run(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    // From here on SIGHUP ends nothing, also while everything starts; those who look at certificates hear it.
    let _hangup = signal(SignalKind::hangup()).context("SIGHUP can't be heard")?;
    let relay = Relay::start(config).await?;
    stop.cancelled().await;
    relay.stop().await
}

/// None: the relay was enrolled, and there are no files to look at.
fn reloading(config: &Config, keys: &Arc<Keys>) -> Option<Reloading> {
    let [certificate, key, roots] = config.files()?.map(expand);
    Some(Reloading::new(Kept::Node { keys: keys.clone(), certificate, key, roots }))
}

type Buffers = ([LaneInbox; 2], Vec<thread::JoinHandle<()>>);

fn buffers(config: &Config, state: &Path, agents: &Arc<Agents>, clock: &Arc<dyn Clock>) -> Result<Buffers, Complaint> {
    let mut writers = Vec::new();
    let mut start = |lane: Lane| {
        let folder = state.join(lane.name());
        let budget = config.buffer.of(lane);
        let open = open(lane, folder.clone(), budget);
        let (inbox, thread) = Writer::start(lane, Box::new(open), agents.clone(), clock.clone()).map_err(|error| {
            Complaint::new(
                format!("the buffer {} can't be opened: {error}", folder.display()),
                "Look after that folder and the disk below it",
            )
        })?;
        writers.push(thread);
        Ok(inbox)
    };
    let lanes = [start(Lane::Telemetry)?, start(Lane::Pictures)?];
    Ok((lanes, writers))
}

/// Opens a lane's folder, as often as it takes.
fn open(lane: Lane, folder: std::path::PathBuf, budget: Bytes) -> impl FnMut() -> Result<Buffer<Segments>, DirectoryError> + Send {
    let size = Size { bytes_max: budget.get(), segment_bytes: segment_bytes(budget) };
    move || Buffer::open(lane, Segments::open(&folder, CACHE_BYTES)?, size, InstanceId(chance::random_16()), Rules::default())
}

async fn measure(agents: Arc<Agents>, stop: CancellationToken) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        metrics::gauge!("muster_relay_agents").set(agents.count() as f64);
    }
}

// --- what the verbs ask ---

/// A question of the command line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    Status,
    /// Envelopes of one lane, from a place on.
    Inspect {
        lane: Lane,
        segment: u64,
        index: u64,
        most: usize,
    },
}

#[derive(Clone)]
struct Asked {
    agents: Arc<Agents>,
    lanes: [LaneInbox; 2],
    keys: Arc<Keys>,
    standing: watch::Receiver<Membership>,
}

impl Asked {
    fn answer(self, question: Value) -> futures_util::future::BoxFuture<'static, Value> {
        Box::pin(async move {
            let answered = match serde_json::from_value(question) {
                Ok(Question::Status) => self.status().await,
                Ok(Question::Inspect { lane, segment, index, most }) => self.inspect(lane, Position { segment, index }, most).await,
                Err(_) => return json!({ "error": "that question isn't known here" }),
            };
            answered.unwrap_or_else(|closed| json!({ "error": closed.to_string() }))
        })
    }

    async fn status(&self) -> Result<Value, crate::writer::Closed> {
        let states: serde_json::Map<String, Value> =
            self.agents.states().into_iter().map(|(state, count)| (state.name().to_owned(), count.into())).collect();
        let mut lanes = Vec::new();
        for lane in &self.lanes {
            lanes.push(lane.standing().await?);
        }
        Ok(json!({
            "relay": self.keys.identity().name.to_string(),
            "certificate_until_ms": self.keys.not_after_ms(),
            "trouble": self.standing.borrow().trouble,
            "connections": self.agents.count(),
            "states": states,
            "lanes": lanes,
        }))
    }

    async fn inspect(&self, lane: Lane, from: Position, most: usize) -> Result<Value, crate::writer::Closed> {
        Ok(json!(self.lanes[lane.index()].contents(from, most).await?))
    }
}
