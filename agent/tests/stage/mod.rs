//! Async: what these tests play the agent: an Xvfb with openbox, in which xdotool types and clicks; private buses, on which python3-dbusmock
//! plays services; and the collector between them.
//!
//! Without the programs a test is skipped with a line, and fails where `CI` is set.
// Each test program uses a part of it.
#![allow(dead_code)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use muster_agent::{
    batcher::Closed,
    bus,
    collect::{Asker, BATCHES_WAITING_MAX, Collector, Parts, day::PolicyInForce},
    desktop,
    standing::Standing,
};
use muster_mesh::{
    clock::SystemClock,
    ids::Version,
    policy::Policy,
    record::{Application, Capability, Kind, Record, Session, State},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use zbus::{Connection, zvariant::DynamicType};

/// Places in `KIND_NAMES`.
pub const HEARTBEAT: usize = 0;
pub const FOCUS: usize = 2;
pub const CAPABILITY: usize = 6;

pub const POLICY: &str = r#"
    [purpose]
    text = "a test"
    legal_ground = "none"
    contact = "nobody"
    [when]
    working_hours = { days = "mon-sun", from = "00:00", to = "24:00" }
    heartbeat_s = 5
    idle_after_s = 4
    [windows]
    applications = true
    titles = true
    excluded = ["secretapp"]
    [input]
    counts = true
"#;

/// Real programs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for something that programs do.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "{what} didn't come");
        thread::sleep(Duration::from_millis(50));
    }
}

fn skip(what: &str, packages: &str) {
    assert!(env::var_os("CI").is_none(), "{what} is missing");
    eprintln!("skipped: {what} is missing (apt-get install {packages})");
}

fn is_there(program: &str) -> bool {
    Command::new("which").arg(program).stdout(Stdio::null()).status().is_ok_and(|found| found.success())
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Running {
    Running(command.stderr(Stdio::null()).spawn().unwrap())
}

// --- a display ---

pub struct Desktop {
    pub display: String,
    programs: Vec<Running>,
}

impl Drop for Desktop {
    fn drop(&mut self) {
        while self.programs.pop().is_some() {}
    }
}

impl Desktop {
    /// None: a program is missing.
    pub fn start() -> Option<Desktop> {
        if !Desktop::has_programs() {
            return None;
        }
        let mut server = spawn(Command::new("Xvfb").args(["-displayfd", "1"]).args(SCREEN).stdout(Stdio::piped()));
        let mut number = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Some(Desktop::around(server, format!(":{}", number.trim())))
    }

    fn has_programs() -> bool {
        for program in ["Xvfb", "openbox", "xdotool", "xterm", "xprop"] {
            if !is_there(program) {
                skip(program, "xvfb openbox xdotool xterm x11-utils");
                return false;
            }
        }
        true
    }

    /// A display of this name, which can be started once more after it was dropped: far above the numbers that others are given.
    pub fn named(display: &str) -> Option<Desktop> {
        let server = || spawn(Command::new("Xvfb").arg(display).args(SCREEN).stdout(Stdio::null()));
        Desktop::has_programs().then(|| Desktop::around(server(), display.to_owned()))
    }

    fn around(server: Running, display: String) -> Desktop {
        let mut desktop = Desktop { display, programs: vec![server] };
        until("a display", || desktop.command("xprop", &["-root"]).stdout(Stdio::null()).status().unwrap().success());
        desktop.spawn("openbox", &[]);
        until("a window manager", || desktop.output("xprop", &["-root", "_NET_SUPPORTING_WM_CHECK"]).contains("window id"));
        desktop
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("DISPLAY", &self.display).stderr(Stdio::null());
        command
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        self.programs.push(spawn(self.command(program, arguments).stdout(Stdio::null())));
    }

    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.command(program, arguments).output().unwrap().stdout).into_owned()
    }

    pub fn xdotool(&self, arguments: &str) {
        assert!(self.command("xdotool", &arguments.split(' ').collect::<Vec<_>>()).status().unwrap().success(), "{arguments}");
    }

    pub fn window(&mut self, class: &str, title: &str) {
        self.spawn("xterm", &["-class", class, "-name", class, "-title", title, "-e", "sleep", "600"]);
        until(title, || self.output("xdotool", &["getactivewindow", "getwindowname"]).contains(title));
    }

    /// This display, and no buses.
    pub fn alone(&self) -> desktop::Desktop {
        let nowhere = Some("unix:path=/nonexistent/bus".to_owned());
        let buses = bus::Addresses { system: nowhere.clone(), session: nowhere, session_id: None };
        desktop::Desktop { display: Some(self.display.clone()), buses }
    }
}

/// It doesn't begin anew when the last who looked has gone: whoever came at that moment would be sent away.
const SCREEN: [&str; 6] = ["-noreset", "-screen", "0", "800x600x24", "-nolisten", "tcp"];

// --- buses, and who plays on them ---

/// A private bus without any service.
pub struct Bus {
    pub address: String,
    /// One connection of the test's own, so that who else is connected can be counted.
    connection: Connection,
    players: Vec<Running>,
    python: String,
    _daemon: Running,
}

const BUS: &str = r#"<busconfig><type>session</type><listen>ADDRESS</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"#;

impl Bus {
    /// A bus with a socket of this name in the folder. None: a program is missing.
    pub async fn start(folder: &Path, name: &str) -> Option<Bus> {
        let imports =
            |python: &&str| Command::new(python).args(["-c", "import dbusmock"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        let python = ["python3", "/usr/bin/python3"].into_iter().find(imports);
        let (Some(python), true) = (python, is_there("dbus-daemon")) else {
            skip("dbus-daemon or dbusmock", "dbus-daemon python3-dbusmock");
            return None;
        };
        let socket = folder.join(name);
        let _ = fs::remove_file(&socket);
        let address = format!("unix:path={}", socket.display());
        let config = folder.join(format!("{name}.conf"));
        fs::write(&config, BUS.replace("ADDRESS", &address)).unwrap();
        let daemon = spawn(Command::new("dbus-daemon").args(["--nofork", "--config-file"]).arg(&config).stdout(Stdio::null()));
        let connection = connect(&address).await;
        Some(Bus { address, connection, players: Vec::new(), python: python.into(), _daemon: daemon })
    }

    /// Plays one of dbusmock's own services of the system bus.
    pub async fn play_template(&mut self, template: &str, service: &'static str, path: &'static str) -> Player {
        self.play(&["--template", template], service, path).await
    }

    /// Plays a service whose methods are added.
    pub async fn play_service(&mut self, service: &'static str, path: &'static str, interface: &str) -> Player {
        self.play(&["--system", service, path, interface], service, path).await
    }

    async fn play(&mut self, arguments: &[&str], service: &'static str, path: &'static str) -> Player {
        let mut command = Command::new(&self.python);
        command.args(["-m", "dbusmock"]).args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).stdout(Stdio::null());
        self.players.push(spawn(&mut command));
        let player = Player { connection: self.connection.clone(), service, path };
        let begin = Instant::now();
        while !self.names().await.contains(&service.to_owned()) {
            assert!(begin.elapsed() < DEADLINE, "{service} isn't played");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        player
    }

    /// Waits until only so many are connected.
    pub async fn until_left(&self, wanted: usize) {
        let begin = Instant::now();
        while self.names().await.len() != wanted {
            assert!(begin.elapsed() < DEADLINE, "{:?} and not {wanted}", self.names().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everybody who is connected.
    pub async fn names(&self) -> Vec<String> {
        let dbus = "org.freedesktop.DBus";
        let answer = self.connection.call_method(Some(dbus), "/org/freedesktop/DBus", Some(dbus), "ListNames", &()).await.unwrap();
        answer.body().deserialize().unwrap()
    }
}

async fn connect(address: &str) -> Connection {
    let begin = Instant::now();
    loop {
        match zbus::connection::Builder::address(address).unwrap().build().await {
            Ok(connection) => return connection,
            Err(error) => assert!(begin.elapsed() < DEADLINE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Steers one played service.
pub struct Player {
    connection: Connection,
    service: &'static str,
    path: &'static str,
}

pub const MOCK: &str = "org.freedesktop.DBus.Mock";

impl Player {
    pub async fn call<B: serde::Serialize + DynamicType>(&self, interface: &str, method: &str, body: &B) {
        self.call_at(self.path, interface, method, body).await;
    }

    pub async fn call_at<B: serde::Serialize + DynamicType>(&self, path: &str, interface: &str, method: &str, body: &B) {
        self.connection.call_method(Some(self.service), path, Some(interface), method, body).await.unwrap();
    }

    /// From now on the method gives this (in Python).
    pub async fn answers(&self, path: &str, interface: &str, method: &str, takes: &str, gives: &str, value: &str) {
        self.call_at(path, MOCK, "AddMethod", &(interface, method, takes, gives, format!("ret = {value}"))).await;
    }
}

// --- the agent ---

/// The collector with a policy whose notice was read.
pub struct Agent {
    collector: Collector,
    pub asker: Asker,
    carrier: JoinHandle<()>,
    records: Arc<Mutex<Vec<Record>>>,
    // The policy holds as long as somebody could send another.
    _in_force: watch::Sender<Option<PolicyInForce>>,
    _state: tempfile::TempDir,
}

/// All that it made.
pub struct Observed {
    pub records: Vec<Record>,
}

impl Agent {
    pub async fn start(desktop: desktop::Desktop, policy: &str) -> Agent {
        let state = tempfile::tempdir().unwrap();
        let (in_force, receiver) = watch::channel(None);
        let (sender, batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let standing = Standing::new(state.path());
        let senses = desktop.senses().unwrap();
        let clock = Arc::new(SystemClock::new());
        let parts = Parts { clock, senses, test_mode: false, standing, in_force: receiver, batches: sender };
        let collector = Collector::start(parts).unwrap();
        let asker = collector.asker();
        let records = Arc::default();
        let carrier = tokio::spawn(carry(batches, Arc::clone(&records)));
        let policy = Policy::from_toml(policy).unwrap();
        in_force.send_replace(Some(PolicyInForce { version: Version { epoch: 1, n: 1 }, policy, erasure: Version::default() }));
        asker.resume().await.unwrap();
        Agent { collector, asker, carrier, records, _in_force: in_force, _state: state }
    }

    pub async fn read_notice(&self) {
        let notice = self.asker.notice().await.unwrap().notice;
        self.asker.acknowledge(notice.sha256).await.unwrap();
    }

    pub async fn seconds(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    pub async fn until_state(&self, state: State) {
        let mut snapshot = self.asker.snapshot();
        let seen = tokio::time::timeout(DEADLINE, snapshot.wait_for(|snapshot| snapshot.state == state)).await;
        let came = seen.is_ok_and(|seen| seen.is_ok());
        assert!(came, "{state:?} didn't come; it is {:?}: {:#?}", self.asker.snapshot().borrow().state, self.so_far());
    }

    /// Somebody moves the pointer until they are seen.
    pub async fn until_active(&self, desktop: &Desktop) {
        let begin = Instant::now();
        let snapshot = self.asker.snapshot();
        while snapshot.borrow().state != State::Active {
            assert!(begin.elapsed() < DEADLINE, "it is {:?}: {:#?}", snapshot.borrow().state, self.so_far());
            desktop.xdotool("mousemove_relative 1 1");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Records made so far, by place in `KIND_NAMES`.
    pub fn observed(&self, kind: usize) -> u64 {
        self.asker.snapshot().borrow().observed[kind]
    }

    pub async fn until_observed(&self, kind: usize, wanted: u64) {
        let mut snapshot = self.asker.snapshot();
        let seen = tokio::time::timeout(DEADLINE, snapshot.wait_for(|snapshot| snapshot.observed[kind] >= wanted)).await;
        assert!(seen.is_ok_and(|seen| seen.is_ok()), "{wanted} of kind {kind} didn't come, only {}", self.observed(kind));
    }

    /// The records of the batches that were closed.
    fn so_far(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }

    pub async fn stop(self) -> Observed {
        let Agent { collector, carrier, records, .. } = self;
        tokio::task::spawn_blocking(move || collector.stop()).await.unwrap();
        carrier.await.unwrap();
        let records = std::mem::take(&mut *records.lock().unwrap());
        Observed { records }
    }
}

async fn carry(mut batches: mpsc::Receiver<Closed>, records: Arc<Mutex<Vec<Record>>>) {
    while let Some(closed) = batches.recv().await {
        records.lock().unwrap().extend(closed.records);
    }
}

impl Observed {
    pub fn input(&self) -> (u32, u32, u32, bool) {
        let mut sum = (0, 0, 0, false);
        for record in &self.records {
            if let Kind::Activity(activity) = &record.kind {
                sum = (sum.0 + activity.keys, sum.1 + activity.clicks, sum.2 + activity.wheel, sum.3 | activity.pointer_moved);
            }
        }
        sum
    }

    pub fn focus_ms(&self, wanted: impl Fn(&Application, Option<&str>) -> bool) -> u32 {
        let ms = |record: &Record| match &record.kind {
            Kind::Focus(focus) if wanted(&focus.application, focus.title.as_deref()) => focus.ms,
            _ => 0,
        };
        self.records.iter().map(ms).sum()
    }

    /// What was told of one ability, in order.
    pub fn able(&self, what: &str) -> Vec<bool> {
        let told = |record: &Record| match &record.kind {
            Kind::Capability(Capability { what: told, able, .. }) if told == what => Some(*able),
            _ => None,
        };
        self.records.iter().filter_map(told).collect()
    }

    /// The states that heartbeats say, each once in a row.
    pub fn states(&self) -> Vec<State> {
        let mut states: Vec<State> = self.beats().into_iter().map(|(_, state)| state).collect();
        states.dedup();
        states
    }

    /// Each heartbeat, with its place among the records.
    pub fn beats(&self) -> Vec<(usize, State)> {
        let beat = |(place, record): (usize, &Record)| match &record.kind {
            Kind::Heartbeat(beat) => Some((place, beat.state)),
            _ => None,
        };
        self.records.iter().enumerate().filter_map(beat).collect()
    }

    /// What happened to the session, with its place among the records.
    pub fn sessions(&self) -> Vec<(usize, &Session)> {
        let session = |(place, record)| match record {
            &Record { kind: Kind::Session(ref session), .. } => Some((place, session)),
            _ => None,
        };
        self.records.iter().enumerate().filter_map(session).collect()
    }
}
