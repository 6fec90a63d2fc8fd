//! Async: quickstart as people start it, and what its `--check` finds when something went missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use muster_mesh::clock::{Clock, SystemClock};
use muster_start::{
    engines::Engines,
    ledger::Ledger,
    mesh::{self, AgentAt, Mesh, Node, Setup},
    quickstart::{AGENT, LEDGER, SITE},
    summary::{AtAgent, InHub, Stages, Summary},
};
use serde_json::json;

use crate::{engines::Own, swarm::program};

const POLICY: &str = include_str!("../../ops/examples/policy.toml");

/// A folder, with a short name since the control sockets' paths must be short, and a policy that doesn't let a test wait for pictures.
struct Place {
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        fs::write(folder.path().join("policy.toml"), hasty()).unwrap();
        Place { folder, environment: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("q")
    }

    /// Looks at what earlier calls left.
    fn check(&self) -> Output {
        self.call(&["--check"])
    }

    fn quickstart(&self, arguments: &[&str]) -> Output {
        let policy = self.folder.path().join("policy.toml");
        self.call(&[arguments, &["--policy", policy.to_str().unwrap()]].concat())
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("muster-quickstart"));
        command.args(arguments).arg("--folder").arg(self.path()).env_remove("DISPLAY").envs(self.environment.iter().cloned());
        command.output().unwrap()
    }
}

/// Quickstart's policy, with a picture every 2 s.
fn hasty() -> String {
    let hasty = POLICY.replace("interval_s = 15 ", "interval_s = 2 ");
    assert_ne!(hasty, POLICY);
    hasty
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn delete_one_row_of(table: &str, folder: &Path) {
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&mesh::database_url(folder)).await.unwrap();
    let one = format!("DELETE FROM {table} WHERE (day, spool_id, seq, idx) = (SELECT day, spool_id, seq, idx FROM {table} LIMIT 1)");
    let deleted = sqlx::query(sqlx::AssertSqlSafe(one)).execute(&pool).await.unwrap();
    assert_eq!(deleted.rows_affected(), 1);
    pool.close().await;
}

#[tokio::test]
async fn what_quickstart_observes_arrives_and_a_row_that_goes_later_is_found() {
    let place = Place::new();
    let file = place.folder.path().join("out.json");
    let first = place.quickstart(&["--for", "6", "--summary", file.to_str().unwrap()]);
    assert!(first.status.success(), "{}", said(&first));
    let summary: Summary = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(summary.agree && summary.test_mode && summary.kinds.each().iter().all(|(_, stages)| stages.in_hub > 0), "{summary:?}");
    assert!((6..10).contains(&summary.seconds), "{summary:?}");

    let second = place.quickstart(&["--for", "3"]);
    assert!(second.status.success(), "a second start finds what the first left: {}", said(&second));
    let checked = place.check();
    assert!(checked.status.success() && said(&checked).matches("agrees").count() == 2, "{}", said(&checked));

    delete_one_row_of("focus", &place.path()).await;
    let red = place.check();
    let Stages { observed, .. } = summary.kinds.focus;
    let told = format!("focus: {observed} observed, {observed} in the branch, {} in the hub", observed - 1);
    assert!(!red.status.success() && said(&red).contains(&told), "{told} isn't in: {}", said(&red));

    let fresh = place.quickstart(&["--fresh", "--for", "3"]);
    assert!(fresh.status.success(), "{}", said(&fresh));
    assert!(said(&place.check()).starts_with("run 1 "), "--fresh forgets");
}

/// One pass over everything that differs between engines: a run, a second one, and the comparison by SQL.
#[tokio::test]
async fn quickstart_does_the_same_on_postgresql_and_s3() {
    let Some(own) = Own::new().await else { return };
    let mut place = Place::new();
    place.environment.extend(own.environment());
    let engines = own.engines();
    let (store, objects) = (engines.store.unwrap(), engines.objects.unwrap());
    let file = place.folder.path().join("out.json");
    let first = place.quickstart(&["--for", "6", "--summary", file.to_str().unwrap(), "--store", &store, "--objects", &objects]);
    assert!(first.status.success(), "{}", said(&first));
    let summary: Summary = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(summary.agree && summary.kinds.each().iter().all(|(_, stages)| stages.in_hub > 0), "{summary:?}");
    assert!(!place.path().join("hub/muster.db").exists() && !place.path().join("hub/objects").exists(), "nothing lies beside them");

    let elsewhere = place.quickstart(&["--for", "3", "--store", "sqlite:///tmp/other.db"]);
    assert!(!elsewhere.status.success() && said(&elsewhere).contains("--fresh"), "{}", said(&elsewhere));
    let second = place.quickstart(&["--for", "4"]);
    assert!(second.status.success(), "the engines are remembered: {}", said(&second));
    let checked = place.check();
    assert!(checked.status.success() && said(&checked).matches("agrees").count() == 2, "{}", said(&checked));

    delete_one_row_of("screenshot", &place.path()).await;
    let red = place.check();
    let Stages { observed, .. } = summary.kinds.screenshot;
    assert!(!red.status.success() && said(&red).contains("screenshot: "), "{observed} observed: {}", said(&red));
    assert!(!said(&first).contains(&store), "a URL that may hold a password isn't said");
}

/// A run whose last batches lie with the agent and the relay, and not yet in the hub. Ends with all stopped.
async fn run_cut_from_the_hub(place: &Place) -> (Mesh, Summary) {
    let mut mesh = open(place);
    let started_ms = SystemClock::new().now().wall_ms;
    let mut ledger = Ledger::open(&mesh.folder().join(LEDGER)).unwrap();
    ledger.begin(started_ms).unwrap();
    start_all(&mut mesh).await;
    let agent = Node::Agent(AGENT.into());
    let in_hub = arrived(&mut mesh, started_ms, 2).await;

    mesh.stop(&Node::Hub).await.unwrap();
    for verb in ["pause", "resume", "leave"] {
        mesh.ask(&agent, &json!({ "verb": verb })).await.unwrap();
    }
    let mut at_agent = AtAgent::default();
    mesh.until(&agent, "the branch has everything", async |mesh| {
        at_agent = AtAgent::from_json(&mesh.ask(&agent, &json!({ "verb": "status" })).await.unwrap()).unwrap();
        // What the last verb made may not be a batch yet.
        let is_there = |(kind, count): (&String, &u64)| at_agent.relay_acked.get(kind).copied().unwrap_or(0) == *count;
        at_agent.made_batches > in_hub.stored
            && at_agent.made_batches == at_agent.relay_acked_batches
            && at_agent.observed.iter().all(is_there)
    })
    .await
    .unwrap();
    let summary = Summary::of(started_ms, 1, &at_agent, &in_hub);
    assert!(summary.kinds.session.observed > summary.kinds.session.in_hub, "{summary:?}");
    ledger.note(summary.clone(), true).unwrap();
    mesh.stop_all().await.unwrap();
    (mesh, summary)
}

fn open(place: &Place) -> Mesh {
    // No picture comes in between: each batch that these tests count has its reason in them.
    let (policy, engines) = (POLICY.replace("interval_s = 15 ", "interval_s = 0 "), Engines::default());
    Mesh::open(&place.path(), Setup { policy, test_mode: true, interval_s: 1, web_port: None, guests: Default::default(), engines })
        .unwrap()
}

async fn start_all(mesh: &mut Mesh) {
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let at = AgentAt { person: AGENT, name: "You", site: SITE, relays: &[SITE], display: None };
    mesh.start_agent(&at).await.unwrap();
}

/// Waits until the hub has so many batches of spools born since a time.
async fn arrived(mesh: &mut Mesh, since_ms: i64, batches: u64) -> InHub {
    let mut in_hub = InHub::default();
    mesh.until(&Node::Hub, "the batches have arrived", async |mesh| {
        in_hub = mesh.hub().unwrap().in_hub(since_ms).await.unwrap();
        in_hub.stored >= batches
    })
    .await
    .unwrap();
    in_hub
}

/// Starts all again, and stops all when the new run's first batch has arrived: an agent sends in order, so whatever it still has came before.
async fn run_on(place: &Place, mesh: &mut Mesh) {
    let started_ms = SystemClock::new().now().wall_ms;
    Ledger::open(&place.path().join(LEDGER)).unwrap().begin(started_ms).unwrap();
    start_all(mesh).await;
    arrived(mesh, started_ms, 1).await;
    mesh.stop_all().await.unwrap();
}

fn delete_segments(folder: &Path) {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let segments: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    assert!(!segments.is_empty(), "{} has no segment", folder.display());
    segments.iter().for_each(|path| fs::remove_file(path).unwrap());
}

#[tokio::test]
async fn a_segment_that_goes_at_the_relay_before_the_sync_is_sent_again_by_the_agent() {
    let place = Place::new();
    let (mut mesh, summary) = run_cut_from_the_hub(&place).await;
    delete_segments(&mesh.state(&Node::Relay(SITE.into())).join("telemetry"));
    run_on(&place, &mut mesh).await;
    let checked = said(&place.check());
    // Without a desktop there are two kinds that nobody saw; everything else is there.
    let expected = "activity: none was observed, and some was expected; screenshot: none was observed, and some was expected";
    let line = checked.lines().next().unwrap();
    assert!(line.ends_with(expected) && line.contains("): activity"), "{summary:?}\n{checked}");
}

#[tokio::test]
async fn what_goes_at_the_agent_and_in_the_branch_before_the_sync_is_found_missing() {
    let place = Place::new();
    let (mut mesh, summary) = run_cut_from_the_hub(&place).await;
    fs::remove_dir_all(mesh.state(&Node::Relay(SITE.into()))).unwrap();
    delete_segments(&mesh.state(&Node::Agent(AGENT.into())).join("telemetry"));
    run_on(&place, &mut mesh).await;
    let checked = place.check();
    let Stages { observed, in_hub, .. } = summary.kinds.session;
    let told = format!("session: {observed} observed, {observed} in the branch, {in_hub} in the hub");
    assert!(!checked.status.success() && said(&checked).contains(&told), "{told} isn't in: {}", said(&checked));
}
