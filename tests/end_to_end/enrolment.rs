//! Async: those who join, renew and come back, as real processes: what a person with a join token, an admin and a sleeping laptop see.

use std::{fs, path::Path};

use muster_mesh::clock::{Clock, SystemClock};
use muster_start::{
    http,
    mesh::{AgentAt, Mesh, Node, state_of},
    ports::Ports,
};
use serde_json::{Value, json};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep};

use crate::{
    faults::copy,
    hostile::{batches, busy, counted, everything_arrived_once, metrics},
    swarm::{LOOK_EVERY, Life, PATIENCE, Swarm, folder, mesh},
    sweeps::connected,
};

const SITE: &str = "oslo";
const AT: AgentAt<'static> = AgentAt { person: "ada", name: "Ada", site: SITE, relays: &[SITE], display: None };
pub const AGENT_LIFE: &str = "MUSTER_HUB__SIGNER__AGENT_LIFE_S";
pub const RELAY_LIFE: &str = "MUSTER_HUB__SIGNER__RELAY_LIFE_S";

fn agent() -> Node {
    Node::Agent(AT.person.into())
}

fn relay() -> Node {
    Node::Relay(SITE.into())
}

async fn branch(folder: &Path, lives: &[(&str, &str)]) -> Mesh {
    let mut mesh = mesh(folder, &[SITE]);
    lives.iter().for_each(|(name, seconds)| mesh.set(&Node::Hub, name, seconds));
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    mesh
}

pub fn name_of(mesh: &Mesh, node: &Node) -> String {
    mesh.member(node).unwrap().unwrap().name.to_string()
}

/// Certificates issued to a member so far, and how many of them because the one before had ended.
pub async fn issued(mesh: &Mesh, node: &Node) -> (i64, i64) {
    let mut database = connected(mesh).await;
    let sums = "SELECT COUNT(*), CAST(COALESCE(SUM(recovery), 0) AS BIGINT) FROM certificates WHERE name = $1";
    let row = sqlx::query(sums).bind(name_of(mesh, node)).fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    (row.get(0), row.get(1))
}

/// How many of a member's certificates were replaced in the first third of their lives, when no renewal is due.
pub async fn renewed_ahead(mesh: &Mesh, node: &Node) -> usize {
    let mut database = connected(mesh).await;
    let lives = "SELECT issued_ms, not_after_ms FROM certificates WHERE name = $1 ORDER BY issued_ms";
    let rows = sqlx::query(lives).bind(name_of(mesh, node)).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    let lives: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    lives.windows(2).filter(|pair| pair[1].0 < pair[0].0 + (pair[0].1 - pair[0].0) / 3).count()
}

pub async fn until_issued(mesh: &mut Mesh, node: &Node, wanted: impl Fn(i64, i64) -> bool) {
    let begin = Instant::now();
    loop {
        let (all, recoveries) = issued(mesh, node).await;
        if wanted(all, recoveries) {
            return;
        }
        mesh.check().unwrap();
        assert!(begin.elapsed() < PATIENCE, "{node} has {all} certificates, {recoveries} by coming back");
        sleep(LOOK_EVERY).await;
    }
}

async fn status(mesh: &Mesh) -> Value {
    mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap()
}

async fn until_status(mesh: &mut Mesh, what: &str, holds: impl Fn(&Value) -> bool) {
    if let Err(error) = mesh.until(&agent(), what, async |mesh| holds(&status(mesh).await)).await {
        let log = fs::read_to_string(mesh.folder_of(&agent()).join("log")).unwrap();
        panic!("{error}\n{:#}\n{log}", status(mesh).await);
    }
}

pub fn says(status: &Value, words: &str) -> bool {
    status["text"].as_str().unwrap().contains(words)
}

/// All that was collected has arrived.
pub fn has_arrived(status: &Value) -> bool {
    status["journey"]["made"]["batches"].as_u64() > Some(0) && status["journey"]["made"] == status["journey"]["hub"]
}

/// The certificate that lies in a node's folder has ended.
pub async fn until_ended(mesh: &Mesh, node: &Node) {
    let keys = mesh.member(node).unwrap().unwrap().keys(std::sync::Arc::new(muster_certs::SystemTime)).unwrap();
    while SystemClock::new().now().wall_ms <= keys.not_after_ms() {
        sleep(LOOK_EVERY).await;
    }
}

#[tokio::test]
async fn a_computer_of_a_sites_token_connects_collects_nothing_and_says_why_until_an_admin_says_whose_it_is() {
    let folder = folder();
    let mut mesh = branch(folder.path(), &[]).await;
    mesh.enroll_agent(&AT, &["--uses", "2"]).unwrap();
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "it connects and says that it waits", |status| {
        status["connected"] == true && says(status, "waits for an admin to say whose it is: nothing is observed until then")
    })
    .await;
    let name = name_of(&mesh, &agent());
    let listed = mesh.done(&Node::Hub, &["member", "list"]).unwrap();
    assert!(listed.lines().any(|line| line.contains(&name) && line.contains("waits for approval")), "{listed}");
    let waiting = status(&mesh).await;
    assert!(waiting["policy"].is_null(), "{waiting:#}");
    for (kind, count) in waiting["observed"].as_object().unwrap() {
        // What its program can see at all is no word about anybody.
        assert!(kind == "capability" || *count == 0, "{waiting:#}");
    }

    mesh.done(&Node::Hub, &["member", "approve", &name, "--person", AT.person, "--name", AT.name]).unwrap();
    until_status(&mut mesh, "it collects", |status| {
        !status["policy"].is_null() && status["journey"]["made"]["batches"].as_u64() > Some(0) && !says(status, "waits for an admin")
    })
    .await;
    until_status(&mut mesh, "what it collects arrives", has_arrived).await;
}

#[tokio::test]
async fn certificates_of_seconds_are_renewed_under_load_and_nobody_notices() {
    let folder = folder();
    let began_s = SystemClock::new().now().wall_ms / 1_000;
    let mut mesh = branch(folder.path(), &[(AGENT_LIFE, "20"), (RELAY_LIFE, "20")]).await;
    let agents_health = Ports::default().free().unwrap();
    mesh.set(&agent(), "MUSTER_AGENT__STATUS__LISTEN", &agents_health.to_string());
    mesh.start_agent(&AT).await.unwrap();
    // Nobody of that name was ever there, and there is a list.
    mesh.done(&Node::Hub, &["member", "deny", &format!("site/{SITE}/relay/{SITE}-9"), "--why", "stolen"]).unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, 8);
    // About as long as five renewals take.
    swarm.start(&mesh, &[SITE], Life { days: 1, speed: 1_200, drain_s: 1_000, pictures_a_day: 0 });
    until_issued(&mut mesh, &relay(), |all, _| all > 5).await;
    until_issued(&mut mesh, &agent(), |all, _| all > 5).await;
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound(), "{report}");
    until_status(&mut mesh, "everything of the agent has arrived", has_arrived).await;
    for node in [relay(), agent()] {
        assert_eq!(issued(&mesh, &node).await.1, 0, "{node} never was without a certificate");
    }
    let said = fs::read_to_string(mesh.folder_of(&relay()).join("log")).unwrap();
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(!complaints.iter().any(|line| line.contains("certificate")), "{complaints:#?}");
    for (name, programs) in SHOWN {
        let least = if name.starts_with("muster_cert_expiry_") { began_s as f64 } else { 0.0 };
        for node in [Node::Hub, relay(), agent()].into_iter().filter(|node| programs.contains(&node.program())) {
            let is_shown = async |mesh: &Mesh| {
                let said = match &node {
                    Node::Hub | Node::Relay(_) => metrics(mesh, &node).await,
                    Node::Agent(_) => String::from_utf8(http::ask(agents_health, "GET", "/metrics", &[], &[]).await.unwrap().body).unwrap(),
                };
                number(&said, name).is_some_and(|number| number > least)
            };
            mesh.until(&node, &format!("its /metrics show {name} above {least}"), is_shown).await.unwrap();
        }
    }
}

/// Whose /metrics show versions and ages of what the hub signed.
const SHOW_WHAT_WAS_SIGNED: &[&str] = &["hub", "relay", "agent"];
/// What the alert rules go by, and the programs that show it.
const SHOWN: [(&str, &[&str]); 10] = [
    ("muster_cert_expiry_timestamp_seconds{role=\"root\"}", &["hub", "relay", "agent"]),
    ("muster_cert_expiry_timestamp_seconds{role=\"issuing\"}", &["hub"]),
    ("muster_cert_expiry_timestamp_seconds{role=\"hub\"}", &["hub"]),
    ("muster_cert_expiry_timestamp_seconds{role=\"relay\"}", &["relay"]),
    ("muster_cert_expiry_timestamp_seconds{role=\"agent\"}", &["agent"]),
    ("muster_cert_renewals_total{outcome=\"renewed\"}", &["relay", "agent"]),
    ("muster_bundle_version", SHOW_WHAT_WAS_SIGNED),
    ("muster_bundle_age_seconds", SHOW_WHAT_WAS_SIGNED),
    ("muster_deny_list_version", SHOW_WHAT_WAS_SIGNED),
    ("muster_deny_list_age_seconds", SHOW_WHAT_WAS_SIGNED),
];

/// What a program's /metrics say of a name with its labels.
fn number(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn a_laptop_that_slept_past_its_end_comes_back_twice_alone_and_then_an_admin_lets_it_in() {
    let folder = folder();
    let mut mesh = branch(folder.path(), &[(AGENT_LIFE, "20")]).await;
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "the first batches have arrived", has_arrived).await;
    // The first time it really sleeps, with something in its spool that no relay has said it has.
    mesh.process(&relay()).unwrap().freeze(true);
    busy(&mesh, &[&agent()]).await;
    let before = status(&mesh).await;
    assert!(!has_arrived(&before), "{before:#}");
    mesh.process(&agent()).unwrap().freeze(true);
    mesh.process(&relay()).unwrap().freeze(false);
    until_ended(&mesh, &agent()).await;
    mesh.process(&agent()).unwrap().freeze(false);
    until_issued(&mut mesh, &agent(), |_, recoveries| recoveries == 1).await;
    busy(&mesh, &[&agent()]).await;
    until_status(&mut mesh, "what it kept arrives", |status| {
        status["connected"] == true && has_arrived(status) && batches(status, "made") > batches(&before, "made")
    })
    .await;

    mesh.stop(&agent()).await.unwrap();
    until_ended(&mesh, &agent()).await;
    mesh.start_agent(&AT).await.unwrap();
    until_issued(&mut mesh, &agent(), |_, recoveries| recoveries == 2).await;
    until_status(&mut mesh, "what it kept arrives", has_arrived).await;

    mesh.stop(&agent()).await.unwrap();
    until_ended(&mesh, &agent()).await;
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "it says who can help", |status| says(status, "an admin has to let it back in")).await;
    let name = name_of(&mesh, &agent());
    let listed = mesh.done(&Node::Hub, &["member", "list"]).unwrap();
    assert!(listed.lines().any(|line| line.contains(&name) && line.contains("waits to come back")), "{listed}");
    assert!(!has_arrived(&status(&mesh).await), "it collects meanwhile, and keeps it");

    mesh.done(&Node::Hub, &["member", "approve", &name]).unwrap();
    until_status(&mut mesh, "all that it kept arrives", has_arrived).await;
    assert_eq!(issued(&mesh, &agent()).await.1, 3);
}

#[tokio::test]
async fn a_relay_that_was_away_past_its_end_comes_back_by_the_hubs_door() {
    let folder = folder();
    let mut mesh = branch(folder.path(), &[(RELAY_LIFE, "20")]).await;
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "the first batches have arrived", has_arrived).await;
    mesh.stop(&relay()).await.unwrap();
    until_ended(&mesh, &relay()).await;
    mesh.ask(&agent(), &json!({ "verb": "pause" })).await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    until_issued(&mut mesh, &relay(), |_, recoveries| recoveries == 1).await;
    until_status(&mut mesh, "what was kept meanwhile arrives", has_arrived).await;
}

#[tokio::test]
async fn of_two_disks_with_one_devices_key_the_older_is_refused_and_goes_on_keeping_and_the_newer_loses_nothing() {
    let folder = folder();
    let mut mesh = branch(folder.path(), &[(AGENT_LIFE, "20")]).await;
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "the first batches have arrived", has_arrived).await;
    mesh.stop(&agent()).await.unwrap();
    let (state, image) = (state_of(mesh.folder(), &agent()), folder.path().join("image"));
    let known = rows(&mesh).await.len();
    copy(&state, &image);
    until_ended(&mesh, &agent()).await;
    mesh.start_agent(&AT).await.unwrap();
    until_issued(&mut mesh, &agent(), |_, recoveries| recoveries == 1).await;
    // Nobody has said to the original that what it collects last has come.
    mesh.process(&relay()).unwrap().freeze(true);
    busy(&mesh, &[&agent()]).await;
    until_status(&mut mesh, "it keeps it", |status| batches(status, "made") > batches(status, "hub") + 1).await;
    let last = status(&mesh).await;
    mesh.kill(&agent());
    mesh.process(&relay()).unwrap().freeze(false);

    // The image is put into another computer.
    let original = folder.path().join("original");
    fs::rename(&state, &original).unwrap();
    copy(&image, &state);
    until_ended(&mesh, &agent()).await;
    mesh.start_agent(&AT).await.unwrap();
    until_status(&mut mesh, "it is told", |status| says(status, "another disk has this device's key and used it later")).await;
    let before = issued(&mesh, &agent()).await;
    let clone = status(&mesh).await;
    assert!(clone["connected"] == false && !has_arrived(&clone), "it keeps what it collects: {clone:#}");
    let listed = mesh.done(&Node::Hub, &["member", "list"]).unwrap();
    assert!(listed.contains("two disks with its key"), "{listed}");
    let is_refused_again = async |mesh: &Mesh| counted(mesh, &Node::Hub, "muster_hub_clones_total").await > 1;
    mesh.until(&Node::Hub, "it refuses and counts each try", is_refused_again).await.unwrap();
    mesh.stop(&agent()).await.unwrap();
    assert_eq!(issued(&mesh, &agent()).await, before, "nothing was issued to it");

    // The original is none the worse for it.
    fs::rename(&state, folder.path().join("clone")).unwrap();
    fs::rename(&original, &state).unwrap();
    let stored = rows(&mesh).await;
    mesh.start_agent(&AT).await.unwrap();
    until_issued(&mut mesh, &agent(), |all, _| all > before.0).await;
    busy(&mesh, &[&agent()]).await;
    until_status(&mut mesh, "what the original collects arrives", |status| status["connected"] == true && has_arrived(status)).await;
    everything_arrived_once(&mut mesh).await;
    let now = rows(&mesh).await;
    assert!(stored.iter().all(|row| now.contains(row)), "of what the hub had something is another now: {stored:?} {now:?}");
    let made = batches(&last, "made") + batches(&status(&mesh).await, "made");
    assert!(now.len() >= known + made as usize, "{} batches, {known} before the image was taken and {made} since", now.len());
}

/// What the hub has of the agent's batches, in their order.
async fn rows(mesh: &Mesh) -> Vec<[i64; 8]> {
    let device = mesh.member(&agent()).unwrap().unwrap().name.device().unwrap();
    let select = "SELECT spool_id, seq, context_id, boot_ms, wall_ms, relay_ms, hub_ms, records FROM batches \
         JOIN devices ON devices.id = batches.device_id WHERE devices.device = $1 ORDER BY spool_id, seq";
    let mut database = connected(mesh).await;
    let rows = sqlx::query(select).bind(device.to_vec()).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| std::array::from_fn(|at| row.get(at))).collect()
}

#[tokio::test]
async fn a_token_that_does_not_count_is_told_so_and_changes_nothing() {
    let folder = folder();
    let mut mesh = branch(folder.path(), &[]).await;
    let enroll = |mesh: &Mesh, token: &str| mesh.done(&agent(), &["enroll", token]).map(drop).map_err(|error| error.to_string());
    let token = |mesh: &Mesh, words: &[&str]| mesh.done(&Node::Hub, &[&["token"], words].concat()).unwrap().trim().to_owned();
    let site = ["agent", "--site", SITE];
    mesh.configure_agent(&AT).unwrap();

    let revoked = token(&mesh, &site);
    let listed = mesh.done(&Node::Hub, &["token", "list"]).unwrap();
    let id = listed.lines().last().unwrap().split(' ').next().unwrap();
    mesh.done(&Node::Hub, &["token", "revoke", id]).unwrap();
    let of_a_relay = token(&mesh, &["relay", "--site", "bergen", "--id", "bergen-1", "--address", "127.0.0.1:1"]);
    let used = token(&mesh, &site);
    let mut damaged = used.clone();
    damaged.replace_range(20..21, if damaged.as_bytes()[20] == b'a' { "b" } else { "a" });
    for (given, words) in [
        (revoked.as_str(), "the join token is unknown, was used up, has ended"),
        (of_a_relay.as_str(), "this join token is for a branch office's relay"),
        (damaged.as_str(), "join token"),
        ("rubbish", "join token"),
        ("/nowhere/token", "/nowhere/token"),
    ] {
        let said = enroll(&mesh, given).unwrap_err();
        assert!(said.contains(words), "{said}");
        assert!(!said.contains(&used[30..]), "a token stays out of what is said: {said}");
        assert_eq!(mesh.member(&agent()).unwrap(), None);
    }
    enroll(&mesh, &used).unwrap();
    let name = name_of(&mesh, &agent());
    let said = enroll(&mesh, &used).unwrap_err();
    assert!(said.contains(&format!("this is {name} already")), "{said}");
    let other = AgentAt { person: "bob", ..AT };
    mesh.configure_agent(&other).unwrap();
    let said = mesh.done(&Node::Agent("bob".into()), &["enroll", &used]).unwrap_err().to_string();
    assert!(said.contains("was used up"), "{said}");
}

#[tokio::test]
async fn whoever_is_denied_is_cut_off_and_no_relay_takes_them_any_more() {
    const HOME: &str = "home";
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE, HOME]);
    mesh.start_hub().await.unwrap();
    for site in [SITE, HOME] {
        mesh.start_relay(site).await.unwrap();
    }
    let at = AgentAt { relays: &[SITE, HOME], ..AT };
    mesh.start_agent(&at).await.unwrap();
    until_status(&mut mesh, "the first batches have arrived", |status| status["connected"] == true && has_arrived(status)).await;
    let name = name_of(&mesh, &agent());
    mesh.done(&Node::Hub, &["member", "deny", &name, "--why", "lost"]).unwrap();
    until_status(&mut mesh, "it is cut off", |status| status["connected"] == false).await;

    // It goes on collecting, and knocks at both.
    for verb in ["pause", "resume"] {
        mesh.ask(&agent(), &json!({ "verb": verb })).await.unwrap();
    }
    let kept = |status: &Value| status["journey"]["made"]["batches"].as_u64() > status["journey"]["relay"]["batches"].as_u64();
    until_status(&mut mesh, "what it collects stays with it", kept).await;
    for site in [SITE, HOME] {
        let relay = Node::Relay(site.into());
        let refused = async |mesh: &Mesh| turned_away(mesh, &relay).await > 0;
        mesh.until(&relay, "it was turned away", refused).await.unwrap();
    }
    let stored = async |mesh: &Mesh| mesh.hub().unwrap().get("/api/v1/summary").await.unwrap()["batches"]["stored"].clone();
    let before = stored(&mesh).await;
    mesh.stop(&agent()).await.unwrap();
    mesh.start_agent(&at).await.unwrap();
    let seen = turned_away(&mesh, &relay()).await;
    mesh.until(&relay(), "a restart doesn't help it", async |mesh| turned_away(mesh, &relay()).await > seen).await.unwrap();
    assert_eq!(stored(&mesh).await, before, "nothing more of it came");
    assert!(status(&mesh).await["connected"] == false);
}

/// Connections that a relay closed or refused because somebody is denied, or couldn't shake hands.
pub async fn turned_away(mesh: &Mesh, relay: &Node) -> u64 {
    let metrics = String::from_utf8(mesh.health(relay, "/metrics").await.unwrap().body).unwrap();
    let counted = |line: &&str| line.starts_with("muster_relay_denied_total") || line.starts_with("muster_relay_handshakes_failed_total");
    metrics.lines().filter(counted).filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}
