//! Async: lets many agents live their days and deliver them.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use muster_agent::{
    batcher::{Batcher, Closed},
    keeper::{Keeper, Keepers, Plan},
    relays::{RelayAddress, Relays},
    spool::{BatchContext, Sizes},
    uplink::{Doing, Link, NoNews, Uplink},
};
use muster_certs::{Keys, Role, SystemTime};
use muster_mesh::{
    clock::{Clock, SystemClock},
    ids::{DeviceId, Lane, Version},
    limits,
    papers::Papers,
    queue::segment::Segments,
    quic::Client,
    record::{Kind, Record, State},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli,
    day::{self, DAY_MS, Dice, Event},
    journal::{AgentJournal, JournalFile},
    pictures::Album,
};

/// redb's cache per open segment: thousands of agents in one process have little each.
const CACHE_BYTES: usize = 256 << 10;

/// How it went.
#[derive(Debug, Default)]
pub struct Outcome {
    pub agents: usize,
    pub batches: u64,
    /// Of these, batches that hold a picture.
    pub pictures: u64,
    /// Batches that the hub lacked when the time was up.
    pub waiting: u64,
}

/// Runs until every agent has lived its days and the hub has acked them, or the drain's time is up.
pub async fn run(args: cli::Run) -> anyhow::Result<Outcome> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let names = args.relays.iter().map(|(_, name)| name.to_string()).collect();
    let journal = JournalFile::open(&args.journal, clock.clone(), names)
        .with_context(|| format!("the journal {} can't be opened", args.journal.display()))?;
    let journal = Arc::new(journal);
    let devices = devices(&args.certificates, args.agents)?;
    let album = Arc::new(Album::draw(args.pictures)?);
    let keepers = Keepers::start(clock.clone()).context("the keeper's thread doesn't start")?;
    let stop = CancellationToken::new();
    let relays: Vec<RelayAddress> =
        args.relays.iter().map(|(address, name)| RelayAddress { address: address.clone(), name: name.clone() }).collect();
    let (mut uplinks, mut days, mut waiting) = (JoinSet::new(), JoinSet::new(), Vec::new());
    let mut sockets: Option<Client> = None;
    for (number, device) in devices.iter().enumerate() {
        let keys = keys(&args.certificates, device)?;
        let client = sockets.as_ref().map_or_else(|| Client::new(&keys), |client| client.sharing_sockets(&keys));
        sockets.get_or_insert_with(|| client.clone());
        let keeper = keeper(&keepers, &args, device.parse()?, &clock, &journal)?;
        let (doing, state) = watch::channel(Doing { state: State::Active, since_ms: clock.now().wall_ms });
        let uplink = Uplink {
            client,
            relays: Relays::Configured(relays.clone()),
            keeper: keeper.clone(),
            doing: state,
            news: Arc::new(NoNews),
            papers: Arc::new(Papers::in_memory(keys.clone())),
            asks: Default::default(),
            wake: Arc::new(Notify::new()),
            link: watch::channel(Link::default()).0,
        };
        uplinks.spawn(uplink.run(stop.clone()));
        days.spawn(live(args.clone(), number, keeper.clone(), clock.clone(), album.clone(), doing));
        waiting.push(keeper);
    }
    let mut outcome = Outcome { agents: devices.len(), ..Outcome::default() };
    while let Some(lived) = days.join_next().await {
        let (batches, pictures) = lived??;
        outcome.batches += batches;
        outcome.pictures += pictures;
    }
    outcome.waiting = drain(&waiting, Duration::from_secs(args.drain_s)).await?;
    stop.cancel();
    while uplinks.join_next().await.is_some() {}
    keepers.stop();
    Ok(outcome)
}

/// The devices whose certificates lie in the folder.
fn devices(folder: &Path, most: Option<usize>) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("the certificates' folder {} can't be read", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut devices: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".pem").filter(|name| name.parse::<DeviceId>().is_ok()).map(str::to_owned)).collect();
    devices.sort();
    devices.truncate(most.unwrap_or(usize::MAX));
    anyhow::ensure!(
        !devices.is_empty(),
        "{} holds no <device>.pem: make them with `muster-certs issue agent --count N --out DIR`",
        folder.display()
    );
    Ok(devices)
}

fn keys(folder: &Path, device: &str) -> anyhow::Result<Arc<Keys>> {
    let file = |name: &str| folder.join(name);
    let (certificate, key) = (file(&format!("{device}.pem")), file(&format!("{device}.key")));
    Ok(Keys::load(&certificate, &key, &file("roots.pem"), Role::Agent, Arc::new(SystemTime))?)
}

fn keeper(
    keepers: &Keepers,
    args: &cli::Run,
    device: DeviceId,
    clock: &Arc<dyn Clock>,
    journal: &Arc<JournalFile>,
) -> anyhow::Result<Keeper> {
    let folder = args.state.join(device.to_string());
    let budgets = [args.budget_mib << 20, args.pictures_budget_mib << 20];
    let plan = Plan {
        device,
        open: Box::new(move || {
            let lane = |lane: Lane| Segments::open(&folder.join(lane.name()), CACHE_BYTES);
            Ok([lane(Lane::Telemetry)?, lane(Lane::Pictures)?])
        }),
        sizes: Sizes { budgets, segment_bytes: limits::AGENT_SEGMENT_BYTES as u64 },
        context: context(args, &**clock),
        clock: clock.clone(),
        journal: Some(Arc::new(Mutex::new(AgentJournal { file: journal.clone(), device }))),
        shown: true,
    };
    Ok(keepers.add(plan)?)
}

fn context(args: &cli::Run, clock: &dyn Clock) -> BatchContext {
    let version = Version::default();
    BatchContext { policy: version, notice: version, erasure: version, test_mode: args.test_mode, boot: clock.boot(), zone: clock.zone() }
}

/// What happens at a moment of the day.
enum Happening {
    Event(Event),
    Picture,
}

/// A day and its pictures, in order of time.
fn happenings(seed: u64, pictures: u32) -> Vec<(u64, Happening)> {
    let mut all: Vec<_> = day::day(seed).into_iter().map(|event| (event.at_ms, Happening::Event(event))).collect();
    all.extend(day::pictures(seed, pictures).into_iter().map(|at_ms| (at_ms, Happening::Picture)));
    all.sort_by_key(|(at_ms, _)| *at_ms);
    all
}

/// One agent's days. Returns how many batches it made, and how many of them hold a picture.
async fn live(
    args: cli::Run,
    number: usize,
    keeper: Keeper,
    clock: Arc<dyn Clock>,
    album: Arc<Album>,
    _doing: watch::Sender<Doing>,
) -> anyhow::Result<(u64, u64)> {
    let (mut batches, mut pictures) = (0, 0);
    let begin = Instant::now();
    for today in 0..args.days {
        let seed = args.seed.wrapping_mul(1_000_003).wrapping_add(number as u64).wrapping_mul(367).wrapping_add(u64::from(today));
        let midnight_ms = u64::from(today) * DAY_MS;
        let mut dice = Dice::new(seed);
        let mut batcher = Batcher::default();
        let mut closes_at_ms = u64::MAX;
        for (at_ms, happening) in happenings(seed, args.pictures_a_day) {
            let at_ms = midnight_ms + at_ms;
            // A batch closes a minute of the day after its first record, whatever the speed.
            if at_ms >= closes_at_ms {
                closes_at_ms = u64::MAX;
                batches += keep(&keeper, batcher.close(clock.now())).await?;
            }
            sleep_until(begin + Duration::from_secs_f64(at_ms as f64 / 1_000.0 / args.speed)).await;
            let (now, context) = (clock.now(), context(&args, &*clock));
            let (kind, closes) = match happening {
                Happening::Picture => (Kind::Screenshot(album.shot(&mut dice)), false),
                Happening::Event(event) => (event.kind, event.closes),
            };
            let record = Record { at: now.wall_ms, kind };
            let is_picture = matches!(record.kind, Kind::Screenshot(_));
            for closed in batcher.put(now, &context, vec![record], closes) {
                match closed.lane {
                    Lane::Telemetry => closes_at_ms = u64::MAX,
                    Lane::Pictures => pictures += 1,
                }
                batches += keep(&keeper, Some(closed)).await?;
            }
            if closes_at_ms == u64::MAX && !is_picture {
                closes_at_ms = at_ms + limits::BATCH_CLOSE_AGE.as_millis() as u64;
            }
        }
        batches += keep(&keeper, batcher.close(clock.now())).await?;
    }
    Ok((batches, pictures))
}

async fn keep(keeper: &Keeper, closed: Option<Closed>) -> anyhow::Result<u64> {
    let Some(closed) = closed else { return Ok(0) };
    keeper.keep(closed).await?;
    Ok(1)
}

/// Waits until the hub has everything, or the time is up. Returns what it lacks.
async fn drain(keepers: &[Keeper], most: Duration) -> anyhow::Result<u64> {
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let until = Instant::now() + most;
    loop {
        let mut waiting = 0;
        for keeper in keepers {
            let standing = keeper.standing().await?;
            waiting += standing.waiting.iter().map(|lane| lane.0).sum::<u64>();
        }
        if waiting == 0 || timeout_at(until, tokio::time::sleep(LOOK_EVERY)).await.is_err() {
            return Ok(waiting);
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { agents, batches, pictures, waiting } = self;
        write!(f, "{agents} agents made {batches} batches, {pictures} of them with a picture; the hub lacks {waiting} of them")
    }
}
