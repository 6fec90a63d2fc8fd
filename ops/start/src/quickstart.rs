//! Async: the program: a hub, a relay and an agent on loopback, watched until the end, compared, and stopped in order.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use muster_certs::files;
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
    policy::Policy,
    state_dir::StateDir,
};
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    desktop::{Desktop, Hands},
    engines::Engines,
    ledger::Ledger,
    mesh::{self, AgentAt, Mesh, Node, Setup},
    summary::{AtAgent, InHub, Summary},
    terminal::Terminal,
};

pub const SITE: &str = "oslo";
pub const AGENT: &str = "you";
pub const LEDGER: &str = "runs.json";
const POLICY: &str = include_str!("../../examples/policy.toml");
/// The hub's usual one; another if somebody has it.
const WEB_PORT: u16 = 8443;
/// Sooner than in real life, so that one sees something arrive.
const INTERVAL_S: u64 = 2;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// After Ctrl-C; what hasn't arrived by then arrives after the next start.
const DRAIN_BRIEFLY: Duration = Duration::from_secs(10);
/// What a cut off run is known by lies this far back at most.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    pub folder: PathBuf,
    pub fresh: bool,
    /// None: until it is stopped.
    pub seconds: Option<u64>,
    pub summary: Option<PathBuf>,
    /// None: what lies in the folder, else everything.
    pub policy: Option<PathBuf>,
    pub engines: Engines,
}

/// True: it did what was asked for; with a length, that the stages agree.
pub async fn run(plan: Plan, terminal: &mut Terminal) -> anyhow::Result<bool> {
    let stop = Stop::listen()?;
    let lock = StateDir::open(&plan.folder, "quickstart")?;
    if plan.fresh {
        mesh::empty(lock.path())?;
    }
    if let Some(policy) = &plan.policy {
        take_policy(policy, lock.path())?;
    }
    let desktop = choose_desktop(lock.path(), &plan.engines, terminal)?;
    let mut mesh = Mesh::open(lock.path(), setup(plan.engines.clone()))?;
    let ended = tokio::select! {
        ended = observe(&mut mesh, desktop, &plan, &stop, terminal) => ended,
        () = stop.twice.cancelled() => Err(Complaint::new("it was stopped in haste", "The next start goes on with what lies here").into()),
    };
    // Also where something went wrong: what still runs stops in order.
    let stopped = mesh.stop_all().await;
    let summary = ended?;
    stopped?;
    tell(&summary, &plan, terminal)
}

async fn observe(mesh: &mut Mesh, seat: Seat, plan: &Plan, stop: &Stop, terminal: &mut Terminal) -> anyhow::Result<Summary> {
    let mut run = Run::start(mesh, seat, terminal).await?;
    run.watch(plan.seconds, stop, terminal).await?;
    run.end(plan.seconds.is_some(), terminal).await
}

fn setup(engines: Engines) -> Setup {
    let policy = POLICY.to_owned();
    Setup { policy, test_mode: true, interval_s: INTERVAL_S, web_port: Some(WEB_PORT), guests: Default::default(), engines }
}

/// Checked before anything starts: the hub would go on with the policy that it had.
fn take_policy(from: &Path, folder: &Path) -> anyhow::Result<()> {
    let text = files::read(from)?;
    Policy::from_toml(&text).with_context(|| format!("{} is no policy", from.display()))?;
    Ok(files::write_public(&folder.join("policy.toml"), text.as_bytes())?)
}

/// What is observed: somebody's desktop only if they say so here and now, else one in memory.
enum Seat {
    Real(String),
    Own(Desktop),
}

fn choose_desktop(folder: &Path, engines: &Engines, terminal: &mut Terminal) -> anyhow::Result<Seat> {
    let real = env::var("DISPLAY").ok().filter(|display| !display.is_empty() && terminal.can_ask());
    if let Some(display) = real {
        terminal.say("This can observe the desktop in front of you: which windows you use with their titles, how many keys and clicks,");
        terminal.say("the computer's addresses, and blurred pictures of the screen, several a minute.");
        let stays = [engines, &Engines::of(folder)?].into_iter().all(|engines| *engines == Engines::default());
        terminal.say(&match stays {
            true => format!("It stays on this computer, in {}.", folder.display()),
            false => "It goes to the store that was named.".to_owned(),
        });
        terminal.say("Otherwise a desktop in memory is observed, on which a script works.");
        if terminal.ask("Observe this desktop?") {
            return Ok(Seat::Real(display));
        }
    }
    Ok(Seat::Own(Desktop::start(&folder.join("desktop"))?))
}

/// A mesh under way, and what was seen of it.
struct Run<'a> {
    mesh: &'a mut Mesh,
    /// Before the desktop, which else would go away under them.
    hands: Option<Hands>,
    _seat: Seat,
    ledger: Ledger,
    agent: Node,
    started_ms: i64,
    begin: Instant,
    seconds: u64,
    returned_before: u64,
    noted: Instant,
    last: Summary,
}

impl<'a> Run<'a> {
    async fn start(mesh: &'a mut Mesh, mut seat: Seat, terminal: &mut Terminal) -> anyhow::Result<Run<'a>> {
        let mut ledger = Ledger::open(&mesh.folder().join(LEDGER))?;
        let agent = Node::Agent(AGENT.into());
        terminal.live("starting the hub");
        mesh.start_hub().await?;
        terminal.live("starting the relay");
        mesh.start_relay(SITE).await?;
        let returned_before = mesh.hub()?.in_hub(0).await?.returned_ever;

        terminal.live("starting the agent");
        let started_ms = SystemClock::new().now().wall_ms;
        ledger.begin(started_ms)?;
        let display = match &seat {
            Seat::Real(display) => display.as_str(),
            Seat::Own(desktop) => desktop.display(),
        };
        let at = AgentAt { person: AGENT, name: "You", site: SITE, relays: &[SITE], display: Some(display) };
        mesh.start_agent(&at).await?;
        let has_policy = async |mesh: &Mesh| {
            let status = mesh.ask(&agent, &json!({ "verb": "status" })).await;
            status.is_ok_and(|status| !status["policy"].is_null())
        };
        mesh.until(&agent, "the hub's policy came to it", has_policy).await?;
        say_where(mesh, &seat, terminal)?;

        let hands = match &mut seat {
            Seat::Real(_) => None,
            Seat::Own(desktop) => Some(desktop.hands()?),
        };
        let now = Instant::now();
        let last = Summary { started_ms, ..Summary::default() };
        Ok(Run { mesh, hands, _seat: seat, ledger, agent, started_ms, begin: now, seconds: 0, returned_before, noted: now, last })
    }

    /// Shows what goes on until the time is over or somebody stops it.
    async fn watch(&mut self, seconds: Option<u64>, stop: &Stop, terminal: &mut Terminal) -> anyhow::Result<()> {
        let end = seconds.map(|seconds| self.begin + Duration::from_secs(seconds));
        loop {
            self.mesh.check()?;
            self.look().await?;
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            terminal.live(&self.line(left));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            tokio::select! {
                () = sleep(left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY))) => {}
                () = stop.once.cancelled() => return Ok(()),
            }
        }
    }

    /// Ends collection, and lets what was collected arrive.
    async fn end(&mut self, thoroughly: bool, terminal: &mut Terminal) -> anyhow::Result<Summary> {
        self.hands = None;
        terminal.live("ending collection");
        self.mesh.ask(&self.agent, &json!({ "verb": "leave" })).await?;
        self.seconds = self.begin.elapsed().as_secs();
        let within = if thoroughly { DRAIN_WITHIN } else { DRAIN_BRIEFLY };
        let deadline = Instant::now() + within;
        loop {
            self.mesh.check()?;
            self.look().await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if self.last.is_drained() || left.is_zero() {
                break;
            }
            terminal.live(&format!("{}, letting it arrive", self.line(None)));
            sleep(LOOK_EVERY.min(left)).await;
        }
        terminal.live(&self.line(None));
        self.ledger.note(self.last.clone(), true)?;
        Ok(self.last.clone())
    }

    /// Asks both ends how far things have come.
    async fn look(&mut self) -> anyhow::Result<()> {
        let status = self.mesh.ask(&self.agent, &json!({ "verb": "status" })).await?;
        let mut at_agent = AtAgent::from_json(&status)?;
        let in_hub: InHub = self.mesh.hub()?.in_hub(self.started_ms).await?;
        // What the hub returned, its agent hears of through the relay, unless the relay is gone.
        at_agent.returned = at_agent.returned.max(in_hub.returned_ever.saturating_sub(self.returned_before));
        let seconds = if self.seconds > 0 { self.seconds } else { self.begin.elapsed().as_secs() };
        self.last = Summary::of(self.started_ms, seconds, &at_agent, &in_hub);
        if self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            self.ledger.note(self.last.clone(), false)?;
        }
        Ok(())
    }

    fn line(&self, left: Option<Duration>) -> String {
        let sum = self.last.kinds.sum();
        let left = left.map(|left| format!(", {} s left", left.as_secs_f64().ceil())).unwrap_or_default();
        format!("observed {} → branch {} → hub {} records{left}", sum.observed, sum.relay_acked, sum.in_hub)
    }
}

fn say_where(mesh: &Mesh, seat: &Seat, terminal: &mut Terminal) -> anyhow::Result<()> {
    let hub = mesh.hub()?;
    match seat {
        Seat::Real(_) => terminal.say("Your own desktop is observed, in test mode."),
        Seat::Own(desktop) => {
            terminal
                .say(&format!("A desktop in memory is observed, in test mode: display {}, on which a script works.", desktop.display()));
        }
    }
    terminal.say(&format!(
        "What is collected stands in {}; change it, and it is in force seconds later.",
        mesh.folder().join("policy.toml").display()
    ));
    if *mesh.engines() == Engines::default() {
        let [rows, pictures] = [mesh.database().display().to_string(), mesh.engines().objects(mesh.folder())];
        terminal.say(&format!("The hub keeps rows in {rows} and pictures in {pictures}/"));
    }
    let agent = mesh.config(&Node::Agent(AGENT.into()));
    terminal.say(&format!("What was taken, as the person sees it: muster-agent today, or shots list, --config {}", agent.display()));
    terminal.say(&format!("The hub's API is at {}/api/v1/", hub.address()));
    let person = format!("Sign in as {} with the one-time password {}", hub.name(), hub.password());
    terminal.say_in_person(&person, "The admin's one-time password is shown at a terminal only, and this is none.");
    Ok(())
}

fn tell(summary: &Summary, plan: &Plan, terminal: &mut Terminal) -> anyhow::Result<bool> {
    if let Some(path) = &plan.summary {
        let mut text = serde_json::to_vec_pretty(summary)?;
        text.push(b'\n');
        std::fs::write(path, text).with_context(|| format!("the summary can't be written to {}", path.display()))?;
    }
    if plan.seconds.is_none() {
        let rest =
            if summary.is_drained() { "everything is in the hub." } else { "what isn't in the hub yet arrives after the next start." };
        terminal.say(&format!("Stopped: {rest}"));
        return Ok(true);
    }
    for (kind, stages) in summary.kinds.each() {
        terminal.say(&format!(
            "  {kind:<12}{:>6} observed{:>6} in the branch{:>6} in the hub",
            stages.observed, stages.relay_acked, stages.in_hub
        ));
    }
    match summary.differences().as_slice() {
        [] => terminal.say("The stages agree."),
        found => {
            terminal.say("The stages differ:");
            found.iter().for_each(|difference| terminal.say(&format!("  {difference}")));
        }
    }
    Ok(summary.agree)
}

/// Ctrl-C, or the end of the session: once ends collection; twice waits for nothing but the programs' own ends.
struct Stop {
    once: CancellationToken,
    twice: CancellationToken,
}

impl Stop {
    fn listen() -> anyhow::Result<Stop> {
        let stop = Stop { once: CancellationToken::new(), twice: CancellationToken::new() };
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signals = signal(kind).context("signals can't be listened to")?;
            let (once, twice) = (stop.once.clone(), stop.twice.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if once.is_cancelled() {
                        twice.cancel();
                    }
                    once.cancel();
                }
            });
        }
        Ok(stop)
    }
}
