//! Async: who is denied while they sleep, behind a relay that is cut off, and by a hub that is put back to the day before.

use muster_mesh::message::SignedKind;
use muster_start::mesh::{AgentAt, Mesh, Node};
use sqlx::{Connection, Row};

use crate::{
    backup::Backup,
    enrolment::{has_arrived, turned_away},
    hostile::{agent, batches, busy, counted, everything_arrived_once, holds_list, log, metrics, relay, status, stored, until},
    line::{Line, Weather},
    swarm::{configured, folder, mesh},
    sweeps::connected,
};

const OSLO: &str = "oslo";
const HOME: &str = "home";

async fn branches(folder: &std::path::Path, sites: &[&str]) -> Mesh {
    let mut mesh = mesh(folder, sites);
    mesh.start_hub().await.unwrap();
    for site in sites {
        mesh.start_relay(site).await.unwrap();
    }
    mesh
}

fn at<'a>(person: &'a str, relays: &'a [&'a str]) -> AgentAt<'a> {
    AgentAt { person, name: person, site: OSLO, relays, display: None }
}

async fn comes(mesh: &mut Mesh, at: &AgentAt<'_>) -> Node {
    let node = agent(at.person);
    mesh.start_agent(at).await.unwrap();
    until(mesh, &node, "the first batches have arrived", |status| status["connected"] == true && has_arrived(status)).await;
    node
}

/// Name, as the hub knows it.
fn deny(mesh: &Mesh, node: &Node) -> String {
    let name = mesh.member(node).unwrap().unwrap().name.to_string();
    mesh.done(&Node::Hub, &["member", "deny", &name]).unwrap();
    name
}

async fn number(mesh: &Mesh, query: &'static str, name: &str) -> i64 {
    let mut database = connected(mesh).await;
    let row = sqlx::query(query).bind(name.to_owned()).fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    row.try_get(0).unwrap_or_default()
}

#[tokio::test]
async fn whoever_is_denied_while_asleep_wakes_up_to_closed_doors_agent_and_relay_alike() {
    let folder = folder();
    let mut mesh = branches(folder.path(), &[OSLO, HOME]).await;
    let ada = comes(&mut mesh, &at("ada", &[OSLO, HOME])).await;
    let bob = comes(&mut mesh, &at("bob", &[HOME, OSLO])).await;

    mesh.process(&ada).unwrap().freeze(true);
    deny(&mesh, &ada);
    let is_closed = async |mesh: &Mesh| counted(mesh, &relay(OSLO), "muster_relay_denied_total").await > 0;
    mesh.until(&relay(OSLO), "it closes the sleeper's connection", is_closed).await.unwrap();
    let before = (stored(&mesh, &ada).await, batches(&status_of_a_sleeper(&mut mesh, &ada).await, "relay"));
    busy(&mesh, &[&ada]).await;
    for site in [OSLO, HOME] {
        let refused = async |mesh: &Mesh| turned_away(mesh, &relay(site)).await > 1;
        mesh.until(&relay(site), "it is turned away, too", refused).await.unwrap();
    }
    let awake = status(&mesh, &ada).await;
    assert!(awake["connected"] == false && batches(&awake, "made") > batches(&awake, "relay"), "it keeps what it collects: {awake:#}");
    assert_eq!((stored(&mesh, &ada).await, batches(&awake, "relay")), before, "something of it was acked");

    // The relay, with batches that the hub doesn't have yet.
    mesh.kill(&ada);
    mesh.process(&relay(HOME)).unwrap().freeze(true);
    busy(&mesh, &[&bob]).await;
    let before = stored(&mesh, &bob).await;
    deny(&mesh, &relay(HOME));
    let is_closed = async |mesh: &Mesh| counted(mesh, &Node::Hub, "muster_hub_denied_total").await > 0;
    mesh.until(&Node::Hub, "it closes the sleeping relay's connection", is_closed).await.unwrap();
    mesh.process(&relay(HOME)).unwrap().freeze(false);
    let is_refused = async |mesh: &Mesh| {
        let said = metrics(mesh, &relay(HOME)).await;
        let posts = said.lines().filter(|line| line.starts_with("muster_relay_posts_total") && line.contains("telemetry"));
        posts.filter(|line| line.contains("unreachable") || line.contains("forbidden")).any(|line| !line.ends_with(" 0"))
    };
    mesh.until(&relay(HOME), "its batches are refused", is_refused).await.unwrap();
    assert_eq!(stored(&mesh, &bob).await, before, "a denied relay brought something");
    // What it had was a copy: the agent has let go of nothing, and brings it elsewhere.
    mesh.kill(&relay(HOME));
    mesh.stop(&bob).await.unwrap();
    mesh.start_agent(&at("bob", &[OSLO])).await.unwrap();
    everything_arrived_once(&mut mesh).await;
    assert!(stored(&mesh, &bob).await > before);
}

/// Wakes it, and asks.
async fn status_of_a_sleeper(mesh: &mut Mesh, node: &Node) -> serde_json::Value {
    mesh.process(node).unwrap().freeze(false);
    status(mesh, node).await
}

#[tokio::test]
async fn behind_a_relay_that_is_cut_off_a_denied_agent_is_served_until_the_list_comes_and_not_a_moment_longer() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[OSLO]);
    mesh.start_hub().await.unwrap();
    let line = Line::before(configured(&mesh, &Node::Hub, "mesh", "listen").parse().unwrap());
    mesh.set(&relay(OSLO), "MUSTER_RELAY__HUB__ADDRESS", &line.address().to_string());
    mesh.start_relay(OSLO).await.unwrap();
    let ada = comes(&mut mesh, &at("ada", &[OSLO])).await;

    line.set(Weather::Refused);
    busy(&mesh, &[&ada]).await;
    let name = deny(&mesh, &ada);
    busy(&mesh, &[&ada]).await;
    let all_in_the_branch = |status: &serde_json::Value| batches(status, "relay") == batches(status, "made");
    until(&mut mesh, &ada, "the branch, which can't know, has it all", all_in_the_branch).await;
    let at_the_branch = batches(&status(&mesh, &ada).await, "relay");
    assert!(stored(&mesh, &ada).await < at_the_branch);
    assert!(status(&mesh, &ada).await["connected"] == true);

    line.set(Weather::Fine);
    until(&mut mesh, &ada, "the list has come", |status| status["connected"] == false).await;
    busy(&mesh, &[&ada]).await;
    let seen = turned_away(&mesh, &relay(OSLO)).await;
    mesh.until(&relay(OSLO), "it is turned away", async |mesh| turned_away(mesh, &relay(OSLO)).await > seen).await.unwrap();
    let is_drained =
        async |mesh: &Mesh| mesh.ask(&relay(OSLO), &serde_json::json!({ "verb": "status" })).await.unwrap()["lanes"][0]["waiting"] == 0;
    mesh.until(&relay(OSLO), "all that it has is in the hub", is_drained).await.unwrap();
    let now = status(&mesh, &ada).await;
    assert!(batches(&now, "made") > batches(&now, "relay"), "{now:#}");
    assert_eq!(batches(&now, "relay"), stored(&mesh, &ada).await, "what came before the list is kept, and nothing that came after it");

    // By the relay's own clock.
    let (held, its_name) = ("SELECT MIN(said_ms) FROM held_versions WHERE kind = 3 AND name = $1", format!("site/{OSLO}/relay/{OSLO}-1"));
    let has_said = async |mesh: &Mesh| number(mesh, held, &its_name).await > 0;
    mesh.until(&relay(OSLO), "the relay says that it has the list", has_said).await.unwrap();
    let since_ms = number(&mesh, held, &its_name).await;
    let device = "FROM batches JOIN devices ON devices.id = batches.device_id WHERE devices.person = $1";
    let of_device = [format!("SELECT MAX(relay_ms) {device}"), format!("SELECT MAX(hub_ms) {device}")];
    let mut database = connected(&mesh).await;
    let mut last = Vec::new();
    for query in of_device {
        let row = sqlx::query(sqlx::AssertSqlSafe(query)).bind("ada").fetch_one(&mut database).await.unwrap();
        last.push(row.get::<i64, _>(0));
    }
    database.close().await.unwrap();
    let denied_ms = number(&mesh, "SELECT at_ms FROM denied WHERE name = $1", &name).await;
    assert!(last[0] <= since_ms, "a row's receipt at the relay, {}, is after the list's, {since_ms}", last[0]);
    assert!(denied_ms < last[1], "nothing of before the list came after the denial, so this test has shown nothing");
}

#[tokio::test]
async fn a_hub_that_is_put_back_to_yesterday_lets_nobody_in_who_was_denied_since_and_everybody_who_joined_since() {
    let folder = folder();
    let mut mesh = branches(folder.path(), &[OSLO]).await;
    let ada = comes(&mut mesh, &at("ada", &[OSLO])).await;
    let bob = comes(&mut mesh, &at("bob", &[OSLO])).await;
    let token = mesh.done(&Node::Hub, &["token", "agent", "--site", OSLO]).unwrap().trim().to_owned();
    mesh.stop(&Node::Hub).await.unwrap();
    let backup = Backup::of(&mesh, folder.path()).await;
    mesh.start_hub().await.unwrap();

    let eve = comes(&mut mesh, &at("eve", &[OSLO])).await;
    let denied = deny(&mesh, &bob);
    until(&mut mesh, &bob, "it is cut off", |status| status["connected"] == false).await;
    busy(&mesh, &[&ada, &eve]).await;
    let has_list = async |mesh: &Mesh| holds_list(mesh, &format!("site/{OSLO}/relay/{OSLO}-1")).await;
    mesh.until(&relay(OSLO), "the relay has said that it has the list", has_list).await.unwrap();
    let given_out = newest(&mesh).await;
    assert!(given_out.iter().all(|(_, epoch, n)| (*epoch, *n) > (0, 0)) && given_out.len() == 4, "{given_out:?}");
    let before = stored(&mesh, &bob).await;

    mesh.kill(&Node::Hub);
    backup.put_back(&mesh).await;
    mesh.start_restored_hub().await.unwrap();
    let has_it_again = async |mesh: &Mesh| number(mesh, "SELECT COUNT(*) FROM denied WHERE name = $1", &denied).await == 1;
    mesh.until(&Node::Hub, "it knows again who is denied", has_it_again).await.unwrap();
    assert!(log(&mesh, &Node::Hub).contains("was put back, and takes it over"));
    busy(&mesh, &[&ada, &bob, &eve]).await;
    for node in [&ada, &eve] {
        until(&mut mesh, node, "what was sent to the lost database has arrived in this one", |status| {
            status["connected"] == true && has_arrived(status)
        })
        .await;
        let all = batches(&status(&mesh, node).await, "made");
        assert_eq!(stored(&mesh, node).await, all, "{node}");
    }
    // Whether it was used or revoked since the backup, nobody knows.
    mesh.configure_agent(&at("mallory", &[OSLO])).unwrap();
    let said = mesh.done(&agent("mallory"), &["enroll", &token]).unwrap_err().to_string();
    assert!(said.contains("was used up"), "{said}");
    let seen = turned_away(&mesh, &relay(OSLO)).await;
    mesh.until(&relay(OSLO), "the denied one knocks in vain", async |mesh| turned_away(mesh, &relay(OSLO)).await > seen).await.unwrap();
    assert!(stored(&mesh, &bob).await <= before && status(&mesh, &bob).await["connected"] == false);
    let listed = mesh.done(&Node::Hub, &["member", "list"]).unwrap();
    assert!(listed.lines().any(|line| line.contains(&denied) && line.contains("denied")), "{listed}");
    for ((kind, epoch, n), (again, new_epoch, new_n)) in given_out.iter().zip(newest(&mesh).await) {
        assert!(*kind == again && (new_epoch, new_n) > (*epoch, *n), "kind {kind}: {epoch}.{n}, then {new_epoch}.{new_n}");
    }
}

/// The newest versions of what the hub signs: kind, epoch, number.
async fn newest(mesh: &Mesh) -> Vec<(i64, i64, i64)> {
    let mut database = connected(mesh).await;
    let mut all = Vec::new();
    for kind in [SignedKind::Policy, SignedKind::Deny, SignedKind::Bundle, SignedKind::Relays].map(|kind| i64::from(kind.as_u8())) {
        let from = if kind == i64::from(SignedKind::Policy.as_u8()) { "policies" } else { "papers WHERE kind = $1" };
        let select = format!("SELECT epoch, n FROM {from} ORDER BY epoch DESC, n DESC LIMIT 1");
        let query = sqlx::query(sqlx::AssertSqlSafe(select));
        let query = if from == "policies" { query } else { query.bind(kind) };
        let row = query.fetch_one(&mut database).await.unwrap();
        all.push((kind, row.get(0), row.get(1)));
    }
    database.close().await.unwrap();
    all
}
