//! Async: what the real agent costs with everything on: relay and hub behind it, buses and an X server before it, on which hands work at the
//! rates of `realistic-day.md`.

use std::{fs, process::Command, time::Duration};

use anyhow::Context;
use muster_mesh::record::{Application, Kind};
use muster_start::{
    buses::Buses,
    desktop::Desktop,
    engines::Engines,
    mesh::{AgentAt, Mesh, Node, Setup},
};
use muster_swarm::day::{self, Event};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

const SITE: &str = "oslo";
const PERSON: &str = "ada";
const SCREEN: &str = "1920x1080x24";
const APPLICATIONS: usize = 14;
/// Whose day it is, and the part of it that is replayed: the second hour's beginning.
const SEED: u64 = 7;
const FROM_MINUTE: u64 = 60;
const MINUTES: u64 = 10;
/// For trying this out.
const MINUTES_NAME: &str = "MUSTER_BENCH_MINUTES";
const MINUTE_MS: u64 = 60_000;
/// What is pressed in a minute comes in handfuls, one in so long.
const HANDFUL_MS: u64 = 5_000;
/// Until the start's own work is done: the dial, the first batches, the policy.
const SETTLED: Duration = Duration::from_secs(10);
/// In real life too.
const SYNC_EVERY_S: u64 = 5;
/// In which Linux tells CPU time, whatever it counts in itself.
const TICK_MS: u64 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const ARRIVED_WITHIN: Duration = Duration::from_secs(120);

/// Everything on, as in real life but for pictures: one a minute, where a day has two.
const POLICY: &str = r#"
[purpose]
text = "a benchmark"
legal_ground = "none"
contact = "nobody"
[when]
working_hours = { days = "mon-sun", from = "00:00", to = "24:00" }
heartbeat_s = 300
idle_after_s = 300
[windows]
applications = true
titles = true
excluded = ["KeePassXC"]
[input]
counts = true
[pictures]
interval_s = 60
area = "all"
blur = true
[network]
addresses = true
"#;

/// So many minutes of a day, once.
pub fn row() -> anyhow::Result<()> {
    let minutes = std::env::var(MINUTES_NAME).ok().map(|text| text.parse()).transpose()?.unwrap_or(MINUTES);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(minutes))
}

async fn measure(minutes: u64) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("m").tempdir_in("/tmp")?;
    let mut desktop = Desktop::start_sized(&folder.path().join("desktop"), SCREEN)?;
    let buses = Buses::start(&folder.path().join("buses")).await?;
    buses.battery(80.0, false).await?;
    let mut windows = Vec::new();
    for number in 0..APPLICATIONS {
        let place = format!("90x30+{}+{}", 40 * number, 24 * number);
        windows.push(desktop.open(&application(number), "nothing yet", &place)?);
    }
    let setup = Setup {
        policy: POLICY.to_owned(),
        test_mode: true,
        interval_s: SYNC_EVERY_S,
        web_port: None,
        guests: Default::default(),
        engines: Engines::default(),
    };
    let mut mesh = Mesh::open(&folder.path().join("q"), setup)?;
    mesh.start_hub().await?;
    mesh.start_relay(SITE).await?;
    let agent = Node::Agent(PERSON.into());
    buses.environment().iter().for_each(|(name, value)| mesh.set(&agent, name, value));
    mesh.start_agent(&AgentAt { person: PERSON, name: "Ada", site: SITE, relays: &[SITE], display: Some(desktop.display()) }).await?;
    mesh.until(&agent, "the policy came", async |mesh| status(mesh, &agent).await.is_ok_and(|status| !status["policy"].is_null())).await?;
    sleep(SETTLED).await;

    let id = mesh.process(&agent).context("the agent runs")?.id();
    let (begin, pictures) = (Cost::of(id)?, observed(&status(&mesh, &agent).await?, "screenshot"));
    let work = Work::of(&day::day(SEED), minutes, &windows);
    work.play(&desktop, &mut mesh).await?;
    let spent = Cost::of(id)?.since(begin);
    let pictures = observed(&status(&mesh, &agent).await?, "screenshot") - pictures;

    mesh.ask(&agent, &json!({ "verb": "leave" })).await?;
    let status = arrived(&mut mesh, &agent).await?;
    work.tell(minutes, pictures, &counted(&mesh).await?);
    spent.tell(minutes, pictures);
    println!("the agent's memory at most: {:.1} MB", most_memory_kb(id)? as f64 / 1_024.0);
    println!("observed, all of it in the hub: {}", status["observed"]);
    mesh.stop_all().await?;
    Ok(())
}

fn application(number: usize) -> String {
    format!("application-{number:02}")
}

async fn status(mesh: &Mesh, agent: &Node) -> anyhow::Result<Value> {
    Ok(mesh.ask(agent, &json!({ "verb": "status" })).await?)
}

fn observed(status: &Value, kind: &str) -> u64 {
    status["observed"][kind].as_u64().unwrap_or(0)
}

/// Waits until the hub has acked all that was made.
async fn arrived(mesh: &mut Mesh, agent: &Node) -> anyhow::Result<Value> {
    let deadline = Instant::now() + ARRIVED_WITHIN;
    loop {
        let status = status(mesh, agent).await?;
        if status["journey"]["made"] == status["journey"]["hub"] {
            return Ok(status);
        }
        mesh.check()?;
        anyhow::ensure!(Instant::now() < deadline, "not everything came to the hub: {status:#}");
        sleep(LOOK_EVERY).await;
    }
}

/// What the hub says was pressed today.
async fn counted(mesh: &Mesh) -> anyhow::Result<Value> {
    let hub = mesh.hub()?;
    let devices = hub.get("/api/v1/devices").await?;
    let device = devices["devices"][0]["device"].as_str().context("the hub knows no device")?;
    let today = Command::new("date").arg("+%F").output()?.stdout;
    let today = String::from_utf8_lossy(&today);
    Ok(hub.get(&format!("/api/v1/devices/{device}/days/{}", today.trim())).await?["input"].clone())
}

// --- the hands ---

/// What is done with xdotool, in order of time.
struct Work {
    gestures: Vec<Gesture>,
    keys: u32,
    clicks: u32,
    wheel: u32,
    changes: u32,
}

struct Gesture {
    at_ms: u64,
    arguments: Vec<String>,
}

impl Work {
    fn of(day: &[Event], minutes: u64, windows: &[String]) -> Work {
        let mut work = Work { gestures: Vec::new(), keys: 0, clicks: 0, wheel: 0, changes: 0 };
        let from_ms = FROM_MINUTE * MINUTE_MS;
        let mut front = 0;
        let within = |event: &&Event| (from_ms..from_ms + minutes * MINUTE_MS).contains(&event.at_ms);
        for event in day.iter().filter(within) {
            let at_ms = event.at_ms - from_ms;
            match &event.kind {
                Kind::Focus(focus) => {
                    front = windows
                        .iter()
                        .enumerate()
                        .position(|(at, _)| focus.application == Application::Named(application(at)))
                        .unwrap_or(front);
                    work.turn_to(at_ms, &windows[front], focus.title.as_deref().unwrap_or_default());
                }
                // It stands at the end of its minute.
                Kind::Activity(minute) => {
                    let (begin_ms, handfuls) = (at_ms / MINUTE_MS * MINUTE_MS, (u64::from(minute.active_ms) / HANDFUL_MS).max(1) as u32);
                    for number in 0..handfuls {
                        let part = |all: u32| all * (number + 1) / handfuls - all * number / handfuls;
                        let at_ms = begin_ms + u64::from(number) * HANDFUL_MS;
                        work.press(at_ms, [part(minute.keys), part(minute.clicks), part(minute.wheel)]);
                    }
                }
                _ => {}
            }
        }
        work.gestures.sort_by_key(|gesture| gesture.at_ms);
        work
    }

    fn turn_to(&mut self, at_ms: u64, window: &str, title: &str) {
        self.changes += 1;
        self.add(at_ms, &["set_window", "--name", title, window, "windowactivate", window]);
    }

    /// In whatever is in front: one handful of keys, clicks, and steps of the wheel.
    fn press(&mut self, at_ms: u64, [keys, clicks, wheel]: [u32; 3]) {
        self.keys += keys;
        self.clicks += clicks;
        self.wheel += wheel;
        let (x, y) = (60 + 7 * (at_ms / HANDFUL_MS) % 100, 60 + 5 * (at_ms / HANDFUL_MS) % 80);
        self.add(at_ms, &["getactivewindow", "mousemove", "--window", "%1", &x.to_string(), &y.to_string()]);
        for (count, delay, button) in [(clicks, "150", "1"), (wheel, "40", "5")] {
            if count > 0 {
                self.add(at_ms, &["click", "--repeat", &count.to_string(), "--delay", delay, button]);
            }
        }
        if keys > 0 {
            let mut arguments = vec!["key", "--delay", "80"];
            arguments.extend((0..keys).map(|_| "a"));
            self.add(at_ms, &arguments);
        }
    }

    fn add(&mut self, at_ms: u64, arguments: &[&str]) {
        self.gestures.push(Gesture { at_ms, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() });
    }

    /// As a person does it: what takes long delays what follows.
    async fn play(&self, desktop: &Desktop, mesh: &mut Mesh) -> anyhow::Result<()> {
        let begin = Instant::now();
        for gesture in &self.gestures {
            sleep_until(begin + Duration::from_millis(gesture.at_ms)).await;
            mesh.check()?;
            // Nothing else waits in this program meanwhile.
            desktop.xdotool(&gesture.arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let last = self.gestures.last().map_or(0, |gesture| gesture.at_ms);
        sleep_until(begin + Duration::from_millis(last.div_ceil(MINUTE_MS) * MINUTE_MS)).await;
        Ok(())
    }

    fn tell(&self, minutes: u64, pictures: u64, counted: &Value) {
        let Work { keys, clicks, wheel, changes, .. } = self;
        println!(
            "desk, {minutes} minutes on {SCREEN}: {keys} keys, {clicks} clicks, {wheel} steps of the wheel, {changes} changes of window, {pictures} pictures"
        );
        println!("of them counted, as the hub says: {} keys, {} clicks, {} steps", counted["keys"], counted["clicks"], counted["wheel"]);
    }
}

// --- what it costs ---

/// CPU time of a process, in milliseconds: its own, and that of its children that have ended.
#[derive(Debug, Clone, Copy)]
struct Cost {
    own_ms: u64,
    children_ms: u64,
}

impl Cost {
    /// It stands after the program's name in brackets.
    fn of(id: u32) -> anyhow::Result<Cost> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).context("this system doesn't tell a process's CPU time")?;
        let (_, after) = text.rsplit_once(')').context("a process's CPU time can't be read")?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let sum_of = |first: usize| -> anyhow::Result<u64> {
            let two = fields.get(first..first + 2).context("a process's CPU time can't be read")?;
            Ok((two[0].parse::<u64>()? + two[1].parse::<u64>()?) * TICK_MS)
        };
        Ok(Cost { own_ms: sum_of(11)?, children_ms: sum_of(13)? })
    }

    fn since(self, begin: Cost) -> Cost {
        Cost { own_ms: self.own_ms - begin.own_ms, children_ms: self.children_ms - begin.children_ms }
    }

    fn tell(self, minutes: u64, pictures: u64) {
        let line = |what: &str, spent_ms: u64| {
            let share = spent_ms as f64 / (minutes * MINUTE_MS) as f64 * 100.0;
            println!("{what:<58} {:>12.1} ms a minute   {share:.3} % of a core", spent_ms as f64 / minutes as f64);
        };
        line("the agent itself", self.own_ms);
        line("its helper for pictures", self.children_ms);
        println!("one picture of the helper's: {:.0} ms", self.children_ms as f64 / pictures.max(1) as f64);
    }
}

/// Linux's VmHWM.
fn most_memory_kb(id: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("this system doesn't tell a process's memory")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
