//! Async: a whole mesh in one folder, of real processes: starts, kills, stops and asks them. Dropped, all of them are killed.
//!
//! ```text
//! <folder>/ca/                 a throw-away CA
//! <folder>/policy.toml         what the hub reads; may be changed while it runs
//! <folder>/engines.toml        where the hub keeps rows and pictures, if not below its folder
//! <folder>/hub/                hub.toml, certificate.pem, key.pem, control.pem, control.key, muster.db, objects/, state/, log
//! <folder>/relays/<site>/      relay.toml, certificate.pem, key.pem, state/, log
//! <folder>/agents/<person>/    agent.toml, certificate.pem, key.pem, state/, log
//! ```
//!
//! Ports are chosen anew by each `Mesh`, and stay its own while processes come and go; configurations are written at each start.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use muster_certs::{Ca, Keys, Role, SystemTime, files, issuer::Signed};
use muster_mesh::{clock::Clock, clock::SystemClock, complaint::Complaint, control};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    engines::{ENGINES, Engines},
    http,
    hub_api::HubApi,
    ports::Ports,
    process::Process,
};

const DOMAIN: &str = "quickstart.muster.internal";
/// A start takes a second; a machine that builds beside it takes longer.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A certificate that ends sooner than this is made anew before a start.
const RENEW_BEFORE_MS: i64 = 24 * 3_600 * 1_000;
const ADMINS_MAX: u32 = 1_000;

/// What holds for the whole mesh.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Written to `policy.toml` where there is none.
    pub policy: String,
    pub test_mode: bool,
    /// How often a relay sends to the hub.
    pub interval_s: u64,
    /// The web port, if it is free.
    pub web_port: Option<u16>,
    /// Site → other sites whose agents may deliver there.
    pub guests: BTreeMap<String, Vec<String>>,
    pub engines: Engines,
}

/// One of the programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Hub,
    /// By its site.
    Relay(String),
    /// By its person.
    Agent(String),
}

/// Where an agent belongs and delivers.
#[derive(Debug, Clone)]
pub struct AgentAt<'a> {
    pub person: &'a str,
    pub name: &'a str,
    pub site: &'a str,
    /// Sites of relays, in the order in which they are tried.
    pub relays: &'a [&'a str],
    /// None: it sees no desktop.
    pub display: Option<&'a str>,
}

pub struct Mesh {
    folder: PathBuf,
    setup: Setup,
    programs: PathBuf,
    ca: Ca,
    ports: Ports,
    /// A node's addresses: what listens, and its health.
    places: BTreeMap<Node, Place>,
    running: BTreeMap<Node, Process>,
    environment: BTreeMap<Node, BTreeMap<String, String>>,
    api: Option<HubApi>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    mesh: SocketAddr,
    web: SocketAddr,
    health: SocketAddr,
}

impl Mesh {
    /// Opens a folder, with what an earlier mesh left there, and makes what isn't there yet.
    pub fn open(folder: &Path, mut setup: Setup) -> anyhow::Result<Mesh> {
        let folder = std::path::absolute(folder).context("the current folder is gone")?;
        let ca_dir = folder.join("ca");
        let ca = if ca_dir.join("domain").exists() { Ca::open(&ca_dir)? } else { Ca::init(&ca_dir, DOMAIN)? };
        let policy = folder.join("policy.toml");
        if !policy.exists() {
            files::write_public(&policy, setup.policy.as_bytes())?;
        }
        setup.engines = setup.engines.settle(&folder)?;
        Ok(Mesh {
            folder,
            setup,
            programs: programs()?,
            ca,
            ports: Ports::default(),
            places: BTreeMap::new(),
            running: BTreeMap::new(),
            environment: BTreeMap::new(),
            api: None,
        })
    }

    // --- starting ---

    /// Starts the hub and waits until it answers. Its first start in this `Mesh` makes an admin.
    pub async fn start_hub(&mut self) -> anyhow::Result<()> {
        self.start_hub_with(&["serve"]).await
    }

    /// As [`start_hub`](Self::start_hub), saying that its database was put back from a backup.
    pub async fn start_restored_hub(&mut self) -> anyhow::Result<()> {
        self.start_hub_with(&["serve", "--restored"]).await
    }

    async fn start_hub_with(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let place = self.place(&Node::Hub)?;
        self.certify(&Node::Hub, |ca| ca.issue_hub("hub-1"))?;
        self.give_control()?;
        self.configure(&Node::Hub, &self.hub_toml(place))?;
        if self.setup.engines.wants_migrate() {
            self.migrate()?;
        }
        if self.api.is_none() {
            self.api = Some(self.create_admin(place.web)?);
        }
        self.start(&Node::Hub, arguments, None)?;
        self.until_ready(&Node::Hub, place.health).await
    }

    /// Starts the relay of a site and waits until it takes agents.
    pub async fn start_relay(&mut self, site: &str) -> anyhow::Result<()> {
        let node = Node::Relay(site.to_owned());
        let place = self.place(&node)?;
        self.certify(&node, |ca| ca.issue_relay(site, &format!("{site}-1")))?;
        let hub = self.place(&Node::Hub)?;
        self.configure(&node, &self.relay_toml(site, place, hub))?;
        self.start(&node, &["run"], None)?;
        self.until_ready(&node, place.health).await
    }

    /// Starts a person's agent and waits until it answers its control socket.
    pub async fn start_agent(&mut self, at: &AgentAt<'_>) -> anyhow::Result<()> {
        let node = Node::Agent(at.person.to_owned());
        self.certify(&node, |ca| Ok(ca.issue_agent(at.site, at.person, at.name)?.signed))?;
        let mut relays = Vec::new();
        for site in at.relays {
            relays.push((*site, self.place(&Node::Relay((*site).to_owned()))?.mesh));
        }
        self.configure(&node, &self.agent_toml(&node, &relays))?;
        self.start(&node, &["run"], at.display)?;
        self.until(&node, "it answers", async |mesh| mesh.ask(&node, &json!({ "verb": "status" })).await.is_ok()).await
    }

    /// An environment variable of a node, from its next start on: `MUSTER_RELAY__BUFFER__BUDGET` and the like.
    pub fn set(&mut self, node: &Node, name: &str, value: &str) {
        self.environment.entry(node.clone()).or_default().insert(name.to_owned(), value.to_owned());
    }

    // --- ending ---

    /// Kill −9.
    pub fn kill(&mut self, node: &Node) {
        if let Some(mut process) = self.running.remove(node) {
            process.kill();
        }
    }

    /// Asks it to stop, and waits until it has. Complains if it ended badly.
    pub async fn stop(&mut self, node: &Node) -> Result<(), Complaint> {
        match self.running.remove(node) {
            Some(mut process) => process.stop(STOPPED_WITHIN).await,
            None => Ok(()),
        }
    }

    /// Stops all in the order in which records travel: agents, relays, the hub. The first complaint is told when all have ended.
    pub async fn stop_all(&mut self) -> Result<(), Complaint> {
        let mut nodes: Vec<Node> = self.running.keys().cloned().collect();
        nodes.reverse();
        let mut first = Ok(());
        for node in nodes {
            let stopped = self.stop(&node).await;
            first = first.and(stopped);
        }
        first
    }

    // --- asking ---

    /// Complains if one of those that should run doesn't.
    pub fn check(&mut self) -> Result<(), Complaint> {
        self.running.values_mut().try_for_each(Process::check)
    }

    /// Asks a relay or an agent over its control socket.
    pub async fn ask(&self, node: &Node, question: &Value) -> Result<Value, Complaint> {
        control::ask(&self.state(node), node.program(), question).await
    }

    /// The hub's API, once the hub was started.
    pub fn hub(&self) -> Result<&HubApi, Complaint> {
        self.api.as_ref().ok_or_else(|| Complaint::new("the hub was not started yet", "Start it first"))
    }

    /// Health and metrics of the hub or a relay: `/metrics` and the like.
    pub async fn health(&self, node: &Node, path: &str) -> anyhow::Result<http::Answer> {
        let place = self.places.get(node).with_context(|| format!("{node} was not started"))?;
        Ok(http::ask(place.health, "GET", path, &[], &[]).await?)
    }

    pub fn process(&mut self, node: &Node) -> Option<&mut Process> {
        self.running.get_mut(node)
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Everything of this mesh.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A node's configuration, certificate and log; below it its state.
    pub fn folder_of(&self, node: &Node) -> PathBuf {
        folder_of(&self.folder, node)
    }

    pub fn state(&self, node: &Node) -> PathBuf {
        state_of(&self.folder, node)
    }

    /// Where the hub keeps rows and pictures.
    pub fn engines(&self) -> &Engines {
        &self.setup.engines
    }

    /// The hub's database, where it is SQLite's below its folder.
    pub fn database(&self) -> PathBuf {
        database_of(&self.folder)
    }

    /// Waits until something holds, for as long as the node runs.
    pub async fn until(&mut self, node: &Node, what: &str, mut holds: impl AsyncFnMut(&Mesh) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !holds(self).await {
            if let Some(process) = self.running.get_mut(node) {
                process.check()?;
            }
            if Instant::now() > deadline {
                let what = format!("{node} runs, but within {} s it wasn't so that {what}", READY_WITHIN.as_secs());
                return Err(Complaint::new(what, format!("See {}", self.folder_of(node).join("log").display())).into());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    // --- how ---

    fn place(&mut self, node: &Node) -> Result<Place, Complaint> {
        if let Some(place) = self.places.get(node) {
            return Ok(*place);
        }
        let web = match (node, self.setup.web_port) {
            (Node::Hub, Some(port)) => self.ports.prefer(port)?,
            _ => self.ports.free()?,
        };
        let place = Place { mesh: self.ports.free()?, web, health: self.ports.free()? };
        self.places.insert(node.clone(), place);
        Ok(place)
    }

    /// Makes certificate and key, where there are none that last.
    fn certify(&self, node: &Node, issue: impl FnOnce(&Ca) -> Result<Signed, muster_certs::CaError>) -> anyhow::Result<()> {
        let folder = self.folder_of(node);
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        if certificate.exists() {
            let keys = Keys::load(&certificate, &key, &self.ca.roots_path(), node.role(), Arc::new(SystemTime))?;
            if keys.not_after_ms() > SystemClock::new().now().wall_ms + RENEW_BEFORE_MS {
                return Ok(());
            }
            if keys.role() == Role::Agent {
                // A new certificate would be a new device, and what waits in the queue belongs to the old one.
                let what = format!("the throw-away certificate of {node} has ended");
                return Err(Complaint::new(what, "Start empty, with --fresh").into());
            }
        }
        files::create_folder(&folder)?;
        let signed = issue(&self.ca)?;
        files::write_secret(&key, signed.key_pem.as_bytes())?;
        files::write_public(&certificate, signed.pem.as_bytes())?;
        Ok(())
    }

    /// What the hub signs with, once: a year is longer than a throw-away mesh lives.
    fn give_control(&self) -> anyhow::Result<()> {
        let folder = self.folder_of(&Node::Hub);
        let (certificate, key) = (folder.join("control.pem"), folder.join("control.key"));
        if !certificate.exists() {
            let signed = self.ca.issue_control(1)?;
            files::write_secret(&key, signed.key_pem.as_bytes())?;
            files::write_public(&certificate, signed.pem.as_bytes())?;
        }
        Ok(())
    }

    /// For its owner only: the hub's names its store, maybe with a password.
    fn configure(&self, node: &Node, text: &str) -> anyhow::Result<()> {
        Ok(files::write_secret(&self.config(node), text.as_bytes())?)
    }

    /// A node's configuration, as its `--config` takes it.
    pub fn config(&self, node: &Node) -> PathBuf {
        self.folder_of(node).join(format!("{}.toml", node.program()))
    }

    fn command(&self, node: &Node, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(format!("muster-{}", node.program())));
        command.args(arguments).arg("--config").arg(self.config(node));
        // The configurations written here hold as they stand, whatever this shell has set for other programs of ours.
        for (name, _) in env::vars_os() {
            if ["MUSTER_HUB__", "MUSTER_RELAY__", "MUSTER_AGENT__"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.get(node).into_iter().flatten());
        command
    }

    fn start(&mut self, node: &Node, arguments: &[&str], display: Option<&str>) -> Result<(), Complaint> {
        if let Some(process) = self.running.get_mut(node)
            && process.ended().is_none()
        {
            return Err(Complaint::new(format!("{node} runs already"), "Stop it first"));
        }
        let mut command = self.command(node, arguments);
        match display {
            Some(display) => command.env("DISPLAY", display),
            None => command.env_remove("DISPLAY"),
        };
        let process = Process::start(&node.to_string(), &mut command, &self.folder_of(node).join("log"))?;
        self.running.insert(node.clone(), process);
        Ok(())
    }

    async fn until_ready(&mut self, node: &Node, health: SocketAddr) -> anyhow::Result<()> {
        let is_ready = async |_: &Mesh| http::ask(health, "GET", "/readyz", &[], &[]).await.is_ok_and(|answer| answer.status == 200);
        self.until(node, "it is ready", is_ready).await
    }

    fn migrate(&self) -> anyhow::Result<()> {
        let made = self.command(&Node::Hub, &["migrate"]).output().context("muster-hub can't be started")?;
        if made.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        Err(Complaint::new(format!("the store isn't ready: {said}"), "Look whether it runs, and whether its URL is right").into())
    }

    /// The first name that nobody has yet: one-time passwords aren't kept, so each mesh makes its own admin.
    fn create_admin(&self, web: SocketAddr) -> anyhow::Result<HubApi> {
        let names = (1..=ADMINS_MAX).map(|n| if n == 1 { "admin".to_owned() } else { format!("admin-{n}") });
        let mut last = String::new();
        for name in names {
            let made = self.command(&Node::Hub, &["admin", "create", &name]).output().context("muster-hub can't be started")?;
            if made.status.success() {
                let password = String::from_utf8(made.stdout).context("the password isn't text")?;
                return Ok(HubApi::new(web, &name, password.trim_end()));
            }
            last = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            if !last.contains("There is an admin") {
                break;
            }
        }
        Err(Complaint::new(format!("no admin could be made: {last}"), "Start empty, with --fresh, if this folder is worth nothing").into())
    }

    // --- configurations ---

    fn hub_toml(&self, place: Place) -> String {
        let folder = self.folder_of(&Node::Hub);
        format!(
            "state = {state}\npolicy = {policy}\nissued = {issued}\ntest_mode = {test_mode}\n\n\
             [mesh]\nlisten = \"{mesh}\"\n{keys}\n[web]\nlisten = \"{web}\"\n\n\
             [control]\ncertificate = {control}\nkey = {control_key}\n\n\
             [store]\nurl = {url}\nobjects = {objects}\n\n[status]\nlisten = \"{health}\"\n",
            state = quoted(&self.state(&Node::Hub)),
            policy = quoted(&self.folder.join("policy.toml")),
            issued = quoted(&self.ca.issued_path()),
            test_mode = self.setup.test_mode,
            mesh = place.mesh,
            keys = self.keys_toml(&folder),
            web = place.web,
            control = quoted(&folder.join("control.pem")),
            control_key = quoted(&folder.join("control.key")),
            url = toml::Value::String(self.setup.engines.store_url(&self.folder)),
            objects = toml::Value::String(self.setup.engines.objects(&self.folder)),
            health = place.health,
        )
    }

    fn relay_toml(&self, site: &str, place: Place, hub: Place) -> String {
        let node = Node::Relay(site.to_owned());
        let guests = self.setup.guests.get(site).cloned().unwrap_or_default();
        format!(
            "state = {state}\n\n[agents]\nlisten = \"{listen}\"\n{keys}guests = {guests:?}\n\n\
             [buffer]\nbudget = \"1 GiB\"\npictures_budget = \"1 GiB\"\n\n\
             [hub]\naddress = \"{hub}\"\nid = \"hub/hub-1\"\ninterval_s = {interval_s}\n\n[status]\nlisten = \"{health}\"\n",
            state = quoted(&self.state(&node)),
            listen = place.mesh,
            keys = self.keys_toml(&self.folder_of(&node)),
            hub = hub.mesh,
            interval_s = self.setup.interval_s,
            health = place.health,
        )
    }

    fn agent_toml(&self, node: &Node, relays: &[(&str, SocketAddr)]) -> String {
        let mut text = format!(
            "state = {}\n{}test_mode = {}\n",
            quoted(&self.state(node)),
            self.keys_toml(&self.folder_of(node)),
            self.setup.test_mode,
        );
        for (site, address) in relays {
            text += &format!("\n[[relays]]\naddress = \"{address}\"\nid = \"site/{site}/relay/{site}-1\"\n");
        }
        text
    }

    fn keys_toml(&self, folder: &Path) -> String {
        let [certificate, key, roots] =
            [folder.join("certificate.pem"), folder.join("key.pem"), self.ca.roots_path()].map(|path| quoted(&path));
        format!("certificate = {certificate}\nkey = {key}\nroots = {roots}\n")
    }
}

impl Node {
    /// As in `muster-<program>`.
    pub fn program(&self) -> &'static str {
        match self {
            Node::Hub => "hub",
            Node::Relay(_) => "relay",
            Node::Agent(_) => "agent",
        }
    }

    fn role(&self) -> Role {
        match self {
            Node::Hub => Role::Hub,
            Node::Relay(_) => Role::Relay,
            Node::Agent(_) => Role::Agent,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Hub => write!(f, "the hub"),
            Node::Relay(site) => write!(f, "the relay of {site}"),
            Node::Agent(person) => write!(f, "the agent of {person}"),
        }
    }
}

/// Where a node of the mesh in `folder` has its things.
pub fn folder_of(folder: &Path, node: &Node) -> PathBuf {
    match node {
        Node::Hub => folder.join("hub"),
        Node::Relay(site) => folder.join("relays").join(site),
        Node::Agent(person) => folder.join("agents").join(person),
    }
}

/// A node's state folder.
pub fn state_of(folder: &Path, node: &Node) -> PathBuf {
    folder_of(folder, node).join("state")
}

pub fn database_of(folder: &Path) -> PathBuf {
    folder_of(folder, &Node::Hub).join("muster.db")
}

/// As the hub's configuration names it.
pub fn database_url(folder: &Path) -> String {
    Engines::of(folder).unwrap_or_default().store_url(folder)
}

/// A path as a TOML string.
fn quoted(path: &Path) -> toml::Value {
    toml::Value::String(path.display().to_string())
}

/// The built programs lie beside this one, or one above where tests lie.
fn programs() -> Result<PathBuf, Complaint> {
    let here = env::current_exe().ok();
    let folders = here.iter().flat_map(|here| here.ancestors().skip(1).take(2));
    let all = ["muster-hub", "muster-relay", "muster-agent"];
    folders.into_iter().find(|folder| all.iter().all(|program| folder.join(program).is_file())).map(Path::to_path_buf).ok_or_else(|| {
        Complaint::new("muster-hub, muster-relay and muster-agent aren't built beside this program", "Build them: cargo build")
    })
}

/// What `--fresh` takes away: only what a mesh makes.
pub fn empty(folder: &Path) -> Result<(), Complaint> {
    for name in ["ca", "hub", "relays", "agents", "desktop"] {
        remove(&folder.join(name), fs::remove_dir_all)?;
    }
    for name in ["policy.toml", "runs.json", ENGINES] {
        remove(&folder.join(name), fs::remove_file)?;
    }
    Ok(())
}

fn remove(path: &Path, how: impl FnOnce(PathBuf) -> std::io::Result<()>) -> Result<(), Complaint> {
    match how(path.to_path_buf()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Complaint::new(format!("{} can't be deleted: {error}", path.display()), "Delete it by hand"))
        }
        _ => Ok(()),
    }
}
