//! Async: a swarm of agents beside a mesh, as a process that can be killed, and what its journal says.

use std::{
    cell::{RefCell, RefMut},
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use muster_certs::files;
use muster_mesh::ids::{DeviceId, Lane, SpoolId};
use muster_start::{
    engines::Engines,
    mesh::{Mesh, Node, Setup},
    process::Process,
};
use muster_swarm::{
    check::{self, Report},
    cli::Check,
    journal::Line,
};
use tokio::time::{Instant, sleep};

use crate::engines::{self, Own};

const POLICY: &str = include_str!("../../ops/examples/policy.toml");
/// Machines are shared: this is never a measure of speed, only an end to waiting.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A folder whose name is short, since the control sockets' paths must be.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("m").tempdir_in("/tmp").expect("a temporary folder")
}

/// A mesh in test mode that syncs each second, with guests between all its sites.
pub fn mesh(folder: &Path, sites: &[&str]) -> Mesh {
    let servers = engines::of_this_run();
    let mut mesh = mesh_on(folder, sites, servers.as_ref().map(Own::engines).unwrap_or_default());
    let environment = servers.iter().flat_map(Own::environment);
    environment.for_each(|(name, value)| mesh.set(&Node::Hub, name, &value));
    // The mesh outlives this call, and so must its database.
    std::mem::forget(servers);
    mesh
}

/// The same whose rows and pictures lie elsewhere.
pub fn mesh_on(folder: &Path, sites: &[&str], engines: Engines) -> Mesh {
    let others = |site: &str| sites.iter().filter(|other| **other != site).map(|other| (*other).to_owned()).collect();
    let guests = sites.iter().map(|site| ((*site).to_owned(), others(site))).collect();
    // A real agent beside a swarm has no desktop: each picture that it can't take would be a gap, and these tests count gaps.
    let policy = POLICY.replace("interval_s = 15 ", "interval_s = 0 ");
    let setup = Setup { policy, test_mode: true, interval_s: 1, web_port: None, guests, engines };
    Mesh::open(&folder.join("q"), setup).expect("a mesh")
}

/// One of the built programs.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program's path");
    this.ancestors().nth(2).expect("tests lie two folders below the programs").join(name)
}

/// Many agents of one site.
pub struct Swarm {
    folder: PathBuf,
    running: Option<Process>,
    lives: u64,
    seen: RefCell<Seen>,
}

/// What its journal said up to now: it grows to many thousand lines, and is looked at many times a second.
#[derive(Default)]
struct Seen {
    bytes: u64,
    made: BTreeMap<(DeviceId, SpoolId, u64), Lane>,
    acked: BTreeSet<(DeviceId, SpoolId, u64)>,
    branch: BTreeSet<(DeviceId, SpoolId, u64)>,
    /// With those that were said again.
    in_branch: usize,
}

impl Seen {
    /// Reads the whole lines that are new. A torn one gets its end from the next life's first write, and says nothing.
    fn read_on(&mut self, journal: &Path) {
        let Ok(mut file) = File::open(journal) else { return };
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(self.bytes)).and_then(|_| file.read_to_end(&mut text)).expect("the journal is read");
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        self.bytes += whole as u64;
        for line in text[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()) {
            match line {
                Line::Made { device, spool, seq, lane, .. } => drop(self.made.insert((device, spool, seq), lane)),
                Line::Hub { device, spool, seq, .. } => drop(self.acked.insert((device, spool, seq))),
                Line::Relay { device, spool, seq, .. } => {
                    self.in_branch += 1;
                    self.branch.insert((device, spool, seq));
                }
            }
        }
    }
}

/// How a life of the swarm goes.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    pub days: u32,
    pub speed: u32,
    pub drain_s: u64,
    pub pictures_a_day: u32,
}

/// Days that pass so fast that there is always something on its way.
pub const BUSY: Life = Life { days: 1_000, speed: 400, drain_s: 0, pictures_a_day: 40 };
/// Makes nothing, and waits for what is on its way.
pub const DRAINING: Life = Life { days: 0, speed: 1, drain_s: 600, pictures_a_day: 0 };

impl Swarm {
    /// Issues the agents' certificates.
    pub fn new(mesh: &Mesh, site: &str, agents: usize) -> Swarm {
        let folder = mesh.folder().join("swarm");
        let certificates = folder.join("certificates");
        files::create_folder(&folder).and_then(|()| files::create_folder(&certificates)).expect("the swarm's folders");
        let people: Vec<_> = (0..agents).map(|number| (format!("swarm{number}"), format!("Swarm {number}"))).collect();
        for agent in mesh.ca().issue_agents(site, &people).expect("certificates") {
            let device: String = agent.device().iter().map(|byte| format!("{byte:02x}")).collect();
            files::write_public(&certificates.join(format!("{device}.pem")), agent.signed.pem.as_bytes()).expect("a certificate");
            files::write_secret(&certificates.join(format!("{device}.key")), agent.signed.key_pem.as_bytes()).expect("a key");
        }
        fs::copy(mesh.ca().roots_path(), certificates.join("roots.pem")).expect("the roots");
        Swarm { folder, running: None, lives: 0, seen: RefCell::default() }
    }

    /// Starts the process; its agents try the relays of these sites in order.
    pub fn start(&mut self, mesh: &Mesh, sites: &[&str], life: Life) {
        assert!(self.running.is_none(), "the swarm runs already");
        self.lives += 1;
        let mut command = Command::new(program("muster-swarm"));
        command.arg("run");
        for site in sites {
            let address = relay_address(mesh, site);
            command.arg("--relay").arg(format!("{address}=site/{site}/relay/{site}-1"));
        }
        let path = |name: &str| self.folder.join(name);
        command
            .arg("--certificates")
            .arg(self.certificates())
            .arg("--state")
            .arg(path("state"))
            .arg("--journal")
            .arg(path("journal.jsonl"));
        let numbers = [
            ("--seed", self.lives),
            ("--days", life.days.into()),
            ("--speed", life.speed.into()),
            ("--drain-s", life.drain_s),
            ("--pictures-a-day", life.pictures_a_day.into()),
        ];
        for (name, number) in numbers {
            command.arg(name).arg(number.to_string());
        }
        self.running = Some(Process::start("the swarm", &mut command, &path("log")).expect("the swarm starts"));
    }

    /// Kill −9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.running.take() {
            process.kill();
        }
    }

    /// Waits until it has ended by itself, for as long as the hub acks something now and then.
    pub async fn finish(&mut self) {
        let mut process = self.running.take().expect("the swarm runs");
        let (mut acked, mut deadline) = (self.acked(), Instant::now() + PATIENCE);
        loop {
            if let Some(status) = process.ended() {
                assert!(status.success(), "the swarm ended badly: {}", fs::read_to_string(process.log()).unwrap_or_default());
                return;
            }
            if self.acked() > acked {
                (acked, deadline) = (self.acked(), Instant::now() + PATIENCE);
            }
            assert!(Instant::now() < deadline, "the swarm doesn't end: {} unacked, {} in the branch", self.unacked(), self.in_branch());
            sleep(LOOK_EVERY).await;
        }
    }

    /// Makes nothing more, and waits until the hub has everything.
    pub async fn drain(&mut self, mesh: &Mesh, sites: &[&str]) {
        self.kill();
        self.start(mesh, sites, DRAINING);
        self.finish().await;
    }

    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where its certificates lie. It reads them when it starts.
    pub fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    /// Batches that were made, and of which the hub has said nothing.
    pub fn unacked(&self) -> usize {
        let seen = self.seen();
        seen.made.keys().filter(|number| !seen.acked.contains(*number)).count()
    }

    /// Of one lane: batches that were made, and how many of these the hub has acked.
    pub fn of_lane(&self, lane: Lane) -> (usize, usize) {
        let seen = self.seen();
        let of_lane = seen.made.iter().filter(|(_, of)| **of == lane);
        of_lane.fold((0, 0), |(made, acked), (number, _)| (made + 1, acked + usize::from(seen.acked.contains(number))))
    }

    /// Batches that a relay has said it has.
    pub fn in_branch(&self) -> usize {
        self.seen().in_branch
    }

    /// Which of these there are of which the hub has said nothing.
    pub fn only_in_branch(&self) -> BTreeSet<(DeviceId, SpoolId, u64)> {
        let seen = self.seen();
        seen.branch.difference(&seen.acked).copied().collect()
    }

    pub fn acked(&self) -> usize {
        self.seen().acked.len()
    }

    fn seen(&self) -> RefMut<'_, Seen> {
        let mut seen = self.seen.borrow_mut();
        seen.read_on(&self.folder.join("journal.jsonl"));
        seen
    }

    /// Waits until the journal says something.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Swarm) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if let Some(process) = &mut self.running {
                process.check().unwrap_or_else(|complaint| panic!("{complaint}"));
            }
            assert!(
                Instant::now() < deadline,
                "it never was so that {what}: {} unacked, {} in the branch",
                self.unacked(),
                self.in_branch()
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// Compares the journal with the hub's rows, read by SQL.
    pub async fn check(&self, mesh: &Mesh) -> Report {
        let (database, objects) = (mesh.engines().store_url(mesh.folder()), Some(mesh.engines().objects(mesh.folder())));
        check::check(&Check { journal: self.folder.join("journal.jsonl"), database, objects, under_way: false })
            .await
            .expect("the check runs")
    }
}

/// Where a site's relay takes agents.
fn relay_address(mesh: &Mesh, site: &str) -> String {
    configured(mesh, &Node::Relay(site.to_owned()), "agents", "listen")
}

/// What the configuration of a node that was started once says.
pub fn configured(mesh: &Mesh, node: &Node, table: &str, key: &str) -> String {
    let text = fs::read_to_string(mesh.config(node)).expect("it was started once");
    let config: toml::Table = text.parse().expect("its configuration");
    config[table][key].as_str().expect("a text").to_owned()
}
