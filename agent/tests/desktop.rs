//! Blocking: the collector on a real display: an Xvfb with openbox, in which xdotool types and clicks.
//!
//! Needs xvfb, openbox, xdotool and xterm. Without them it is skipped with a line, and fails where `CI` is set.
// Deadlines of real processes.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use muster_agent::{
    batcher::Closed,
    collect::{Asker, BATCHES_WAITING_MAX, Collector, Parts, day::PolicyInForce},
    standing::Standing,
    x11,
};
use muster_mesh::{
    clock::SystemClock,
    ids::Version,
    policy::Policy,
    record::{Application, Kind, Record, Session},
};
use tokio::sync::{mpsc, watch};

const POLICY: &str = r#"
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

/// Programs that end with the test.
struct Desktop {
    display: String,
    children: Vec<Child>,
}

impl Drop for Desktop {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Desktop {
    /// None: a program is missing.
    fn start() -> Option<Desktop> {
        for program in ["Xvfb", "openbox", "xdotool", "xterm", "xprop"] {
            if Command::new("which").arg(program).stdout(Stdio::null()).status().map_or(true, |found| !found.success()) {
                assert!(env::var_os("CI").is_none(), "{program} is missing");
                eprintln!("skipped: {program} is missing (apt-get install xvfb openbox xdotool xterm x11-utils)");
                return None;
            }
        }
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut number = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut number).unwrap();
        let mut desktop = Desktop { display: format!(":{}", number.trim()), children: vec![server] };
        desktop.spawn("openbox", &[]);
        until("a window manager", || desktop.output("xprop", &["-root", "_NET_SUPPORTING_WM_CHECK"]).contains("window id"));
        Some(desktop)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("DISPLAY", &self.display).stderr(Stdio::null());
        command
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        self.children.push(self.command(program, arguments).stdout(Stdio::null()).spawn().unwrap());
    }

    fn output(&self, program: &str, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.command(program, arguments).output().unwrap().stdout).into_owned()
    }

    fn xdotool(&self, arguments: &str) {
        assert!(self.command("xdotool", &arguments.split(' ').collect::<Vec<_>>()).status().unwrap().success(), "{arguments}");
    }

    fn window(&mut self, class: &str, title: &str) {
        self.spawn("xterm", &["-class", class, "-name", class, "-title", title, "-e", "sleep", "600"]);
        until(title, || self.output("xdotool", &["getactivewindow", "getwindowname"]).contains(title));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} didn't come");
        thread::sleep(Duration::from_millis(50));
    }
}

struct Observed {
    records: Vec<Record>,
}

impl Observed {
    fn input(&self) -> (u32, u32, u32, bool) {
        let mut sum = (0, 0, 0, false);
        for record in &self.records {
            if let Kind::Activity(activity) = &record.kind {
                sum = (sum.0 + activity.keys, sum.1 + activity.clicks, sum.2 + activity.wheel, sum.3 | activity.pointer_moved);
            }
        }
        sum
    }

    fn focus_ms(&self, wanted: impl Fn(&Application, Option<&str>) -> bool) -> u32 {
        let ms = |record: &Record| match &record.kind {
            Kind::Focus(focus) if wanted(&focus.application, focus.title.as_deref()) => focus.ms,
            _ => 0,
        };
        self.records.iter().map(ms).sum()
    }
}

struct Running {
    collector: Collector,
    batches: mpsc::Receiver<Closed>,
    asker: Asker,
    // The policy holds as long as somebody could send another.
    _in_force: watch::Sender<Option<PolicyInForce>>,
    _state: tempfile::TempDir,
}

async fn running(display: &str) -> Running {
    let state = tempfile::tempdir().unwrap();
    let (in_force, receiver) = watch::channel(None);
    let (sender, batches) = mpsc::channel(BATCHES_WAITING_MAX);
    let parts = Parts {
        clock: Arc::new(SystemClock::new()),
        senses: x11::senses(Some(display)),
        test_mode: false,
        standing: Standing::new(state.path()),
        in_force: receiver,
        batches: sender,
    };
    let collector = Collector::start(parts).unwrap();
    let asker = collector.asker();
    let policy =
        PolicyInForce { version: Version { epoch: 1, n: 1 }, policy: Policy::from_toml(POLICY).unwrap(), erasure: Version::default() };
    in_force.send_replace(Some(policy));
    asker.resume().await.unwrap();
    let notice = asker.notice().await.unwrap().notice;
    asker.acknowledge(notice.sha256).await.unwrap();
    Running { collector, batches, asker, _in_force: in_force, _state: state }
}

impl Running {
    async fn seconds(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    async fn stop(self) -> Observed {
        let Running { collector, mut batches, .. } = self;
        tokio::task::spawn_blocking(move || collector.stop()).await.unwrap();
        let mut records = Vec::new();
        while let Some(closed) = batches.recv().await {
            records.extend(closed.records);
        }
        Observed { records }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_desktop_is_counted_exactly_and_a_pause_is_not_seen() {
    let Some(mut desktop) = Desktop::start() else { return };
    desktop.window("Writer", "control letter");
    let agent = running(&desktop.display).await;
    agent.seconds(2).await;

    desktop.xdotool("mousemove_relative 5 5");
    desktop.xdotool(&format!("key --delay 5 {}", vec!["a"; 100].join(" ")));
    desktop.xdotool("click --repeat 40 --delay 5 1");
    desktop.xdotool("click --repeat 10 --delay 5 4");
    agent.seconds(2).await;

    agent.asker.pause(None).await.unwrap();
    desktop.window("Hidden", "canary of the pause");
    desktop.xdotool(&format!("key --delay 5 {}", vec!["b"; 50].join(" ")));
    agent.seconds(2).await;
    desktop.window("SecretApp", "canary of the excluded");
    agent.asker.resume().await.unwrap();
    agent.seconds(7).await;

    let observed = agent.stop().await;
    assert_eq!(observed.input(), (100, 40, 10, true), "{:#?}", observed.records);
    let writer = Application::Named("Writer".into());
    assert!(observed.focus_ms(|application, title| *application == writer && title == Some("control letter")) >= 2_000);
    assert!(observed.focus_ms(|application, title| *application == Application::Private && title.is_none()) >= 5_000);
    let text = format!("{:?}", observed.records);
    assert!(!text.contains("canary") && !text.contains("Hidden") && !text.to_lowercase().contains("secretapp"), "{text}");
    assert!(text.contains("state: Idle"), "seven seconds without input are idle: {text}");
    let paused = observed.records.iter().find_map(|record| match &record.kind {
        Kind::Session(Session::Unpause { paused_ms }) => Some(*paused_ms),
        _ => None,
    });
    assert!(paused.is_some_and(|ms| (2_000..30_000).contains(&ms)), "{paused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_display_that_dies_is_a_capability_and_not_the_end() {
    let Some(mut desktop) = Desktop::start() else { return };
    desktop.window("Writer", "control letter");
    let agent = running(&desktop.display).await;
    agent.seconds(2).await;
    drop(desktop);
    agent.seconds(3).await;
    let observed = agent.stop().await;
    let able: Vec<(String, bool)> = observed
        .records
        .iter()
        .filter_map(|record| if let Kind::Capability(told) = &record.kind { Some((told.what.clone(), told.able)) } else { None })
        .filter(|(what, _)| what == "window")
        .collect();
    assert_eq!(able, [("window".to_owned(), true), ("window".to_owned(), false)]);
    assert!(matches!(observed.records.last(), Some(Record { kind: Kind::Session(Session::Stop), .. })), "{:?}", observed.records);
}
