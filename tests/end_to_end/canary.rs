//! Async: words that must be nowhere, and words that must be found everywhere, by the same scanner in the same run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use muster_mesh::{
    batch::{Batch, Envelope},
    ids::Lane,
    queue::{directory::Directory, segment::Segments},
};
use muster_start::{
    desktop::Desktop,
    mesh::{AgentAt, Mesh, Node},
};
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection, Row};
use tokio::time::{Instant, sleep};

use crate::{
    backup::is_on_a_server,
    swarm::{PATIENCE, folder, mesh, program},
};

pub const SITE: &str = "oslo";
pub const PERSON: &str = "ada";
/// The agent looks once a second: what stands this long is seen.
const SEEN: Duration = Duration::from_millis(2_500);

#[tokio::test]
async fn what_may_not_be_seen_is_in_no_file_and_what_may_be_is_found() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    // The hub isn't in test mode: the notice must be read first.
    mesh.set(&Node::Hub, "MUSTER_HUB__TEST_MODE", "false");
    set_policy(&mesh, true, &every_day());
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let desktop = Desktop::start(&folder.path().join("desktop")).unwrap();
    let at = AgentAt { person: PERSON, name: "Ada", site: SITE, relays: &[SITE], display: Some(desktop.display()) };
    mesh.start_agent(&at).await.unwrap();
    let window = |class: &'static str, title: &'static str| Window::shown(desktop.display(), class, title);

    until(&mut mesh, "the notice waits", |status| !status["notice_waits"].is_null()).await;
    window("Before", "CANARY-before-notice").seen().await;
    assert!(text(&mesh, "today").await.contains("haven't read the notice"));
    read_the_notice(&mesh);
    until(&mut mesh, "it observes", |status| status["state"] == "active").await;
    window("Control", "CONTROL-first").seen().await;

    mesh.ask(&agent(), &json!({ "verb": "pause", "for_ms": null })).await.unwrap();
    window("Breaktime", "CANARY-pause").seen().await;
    mesh.ask(&agent(), &json!({ "verb": "resume" })).await.unwrap();

    window("KeePassXC", "CANARY-excluded").seen().await;
    window("Control", "CONTROL-second").seen().await;

    set_policy(&mesh, true, &another_day());
    until(&mut mesh, "it is outside hours", |status| status["state"] == "outside_hours").await;
    window("Evening", "CANARY-outside-hours").seen().await;

    set_policy(&mesh, false, &every_day());
    until(&mut mesh, "it observes again", |status| status["state"] != "outside_hours").await;
    window("Untitled", "CANARY-titles-off").seen().await;

    set_policy(&mesh, true, &every_day());
    until(&mut mesh, "titles are on again", |status| status["policy"]["n"] == 4).await;
    window("Control", "CONTROL-third").seen().await;

    let made = |status: &Value| status["journey"]["made"]["batches"].as_u64().unwrap();
    let before = made(&mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap());
    mesh.ask(&agent(), &json!({ "verb": "leave" })).await.unwrap();
    // Leaving closes one more batch at least.
    until(&mut mesh, "the hub has everything", |status| made(status) > before && status["journey"]["made"] == status["journey"]["hub"])
        .await;
    mesh.stop_all().await.unwrap();

    let everywhere = everything(&mesh).await;
    for (place, text) in &everywhere {
        for canary in ["CANARY-before-notice", "CANARY-pause", "CANARY-excluded", "CANARY-outside-hours", "CANARY-titles-off", "cellardoor"]
        {
            assert!(!text.contains(canary), "{canary} is in {place}");
        }
        if place.starts_with("decoded") {
            for control in ["CONTROL-first", "CONTROL-second", "CONTROL-third", "Untitled"] {
                assert!(text.contains(control), "{control} isn't in {place}: the scanner finds nothing there");
            }
            for application in ["Before", "Breaktime", "KeePassXC", "Evening"] {
                assert!(!text.contains(application), "{application} is in {place}");
            }
        }
    }
    assert_eq!(everywhere.iter().filter(|(place, _)| place.starts_with("decoded")).count(), 3);
}

pub fn agent() -> Node {
    Node::Agent(PERSON.into())
}

// --- the desktop ---

struct Window {
    child: Child,
}

impl Window {
    /// In front; the same secret word is typed into each.
    fn shown(display: &str, class: &str, title: &str) -> Window {
        let xterm = ["-class", class, "-name", class, "-title", title, "-e", "cat"];
        let child = Command::new("xterm").args(xterm).env("DISPLAY", display).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut looks = 0;
        while !xdotool(display, &["getactivewindow", "getwindowname"]).contains(title) {
            looks += 1;
            assert!(looks < 1_000, "{title} doesn't come to the front");
            std::thread::sleep(Duration::from_millis(50));
        }
        xdotool(display, &["type", "--delay", "5", "cellardoor"]);
        Window { child }
    }

    /// Stands long enough to be seen, and is closed.
    async fn seen(self) {
        sleep(SEEN).await;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn xdotool(display: &str, arguments: &[&str]) -> String {
    let output = Command::new("xdotool").args(arguments).env("DISPLAY", display).stderr(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// --- the person ---

/// As a person does: in a terminal, answering what it asks.
pub fn read_the_notice(mesh: &Mesh) {
    let program = program("muster-agent");
    let config = mesh.folder_of(&agent()).join("agent.toml");
    let command = format!("{} notice --config {}", program.display(), config.display());
    let mut terminal =
        Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(terminal.stdin.as_mut().unwrap(), b"1\n").unwrap();
    let output = terminal.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("What this computer records") && said.contains("Thank you"), "{said}");
    let piped = Command::new(program).args(["notice", "--config"]).arg(config).stdin(Stdio::null()).output().unwrap();
    assert!(!piped.status.success(), "a script can't read the notice for someone");
}

async fn text(mesh: &Mesh, verb: &str) -> String {
    let answer = mesh.ask(&agent(), &json!({ "verb": verb })).await.unwrap();
    answer["text"].as_str().unwrap_or_default().to_owned()
}

pub async fn until(mesh: &mut Mesh, what: &str, holds: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        mesh.check().unwrap();
        let status = mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap();
        if holds(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "it never was so that {what}: {status:#}");
        sleep(Duration::from_millis(200)).await;
    }
}

// --- the policy ---

fn set_policy(mesh: &Mesh, titles: bool, days: &str) {
    let text = format!(
        "[purpose]\ntext = \"a test\"\nlegal_ground = \"none\"\ncontact = \"nobody\"\n\
         [when]\nworking_hours = {{ days = \"{days}\", from = \"00:00\", to = \"24:00\" }}\nheartbeat_s = 5\nidle_after_s = 300\n\
         [windows]\napplications = true\ntitles = {titles}\nexcluded = [\"KeePassXC\"]\n[input]\ncounts = true\n"
    );
    fs::write(mesh.folder().join("policy.toml"), text).unwrap();
}

pub fn every_day() -> String {
    "mon-sun".into()
}

/// A day of the week that isn't today anywhere.
pub fn another_day() -> String {
    let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let output = Command::new("date").args(["-u", "+%u"]).output().unwrap();
    let today: usize = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    names[(today - 1 + 3) % 7].into()
}

// --- the scanner ---

/// All that lies on disks: every file as it is, and queues and rows decoded.
async fn everything(mesh: &Mesh) -> Vec<(String, String)> {
    let mut all = Vec::new();
    files_below(mesh.folder(), &mut |path| {
        let bytes = fs::read(path).unwrap_or_default();
        all.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
    });
    // The test's own words: the policy names the excluded application, and the windows' logs are the desktop's.
    all.retain(|(place, _)| !place.ends_with("policy.toml"));
    all.push(("decoded: the agent's queue".into(), queue(&mesh.state(&agent()))));
    all.push(("decoded: the relay's queue".into(), queue(&mesh.state(&Node::Relay(SITE.into())))));
    all.push(("decoded: the hub's rows".into(), rows(mesh).await));
    all
}

pub fn files_below(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found(&path) }
    }
}

fn queue(state: &Path) -> String {
    batches(state).iter().map(|batch| format!("{:?}\n", batch.records)).collect()
}

/// Every batch of both lanes, opened.
pub fn batches(state: &Path) -> Vec<Batch> {
    let mut found = Vec::new();
    for lane in Lane::ALL {
        let mut directory = Segments::open(&state.join(lane.name()), 1 << 20).unwrap();
        for segment in directory.segments() {
            let mut from = 0;
            loop {
                let page = directory.read(segment, from, usize::MAX).unwrap();
                found.extend(page.slots.iter().map(|slot| Envelope::read(slot.envelope.clone()).unwrap().open().unwrap()));
                if page.last {
                    break;
                }
                from = page.next;
            }
        }
    }
    found
}

/// Every text and every blob of every table, but for the policies' own texts.
async fn rows(mesh: &Mesh) -> String {
    sqlx::any::install_default_drivers();
    let mut database = AnyConnection::connect(&muster_start::mesh::database_url(mesh.folder())).await.unwrap();
    let columns = if is_on_a_server(mesh) {
        "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT) FROM information_schema.columns \
         WHERE table_schema = 'public' AND data_type IN ('text', 'bytea')"
    } else {
        "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table' AND c.type IN ('TEXT', 'BLOB')"
    };
    let columns: Vec<(String, String)> = sqlx::query_as(columns).fetch_all(&mut database).await.unwrap();
    assert!(columns.len() > 10, "{columns:?}");
    let mut text = String::new();
    for (table, column) in columns.into_iter().filter(|(table, _)| table != "policies" && !table.starts_with("_sqlx")) {
        let select = format!("SELECT {column} FROM {table} WHERE {column} IS NOT NULL");
        for row in sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut database).await.unwrap() {
            let value = row.try_get::<String, _>(0).or_else(|_| row.try_get::<Vec<u8>, _>(0).map(|bytes| lossy(&bytes)));
            text += &value.unwrap();
            text.push('\n');
        }
    }
    database.close().await.unwrap();
    text
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
