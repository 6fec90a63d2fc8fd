//! Async: a branch's relay in wrong hands (`muster-hostile`), between real agents and the real hub: what it says in the hub's name, to whom it
//! gives certificates, what it keeps from others. No agent deletes or collects more because of it, and somebody notices.

use std::{fs, process::Command};

use muster_start::{
    mesh::{AgentAt, Mesh, Node},
    process::Process,
};
use serde_json::{Value, json};
use sqlx::{Connection, Row};
use tokio::time::{Instant, sleep};

use crate::{
    enrolment::{AGENT_LIFE, has_arrived, issued, says, turned_away},
    swarm::{LOOK_EVERY, PATIENCE, folder, mesh},
    sweeps::connected,
};

/// The site whose relay it is.
const TRAP: &str = "trap";
/// Where an honest relay is.
const HOME: &str = "home";

#[tokio::test]
async fn nothing_that_a_relay_in_wrong_hands_says_or_loses_frees_or_widens_anything() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[TRAP, HOME]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(TRAP).await.unwrap();
    let (ada, bob) = (agent("ada"), agent("bob"));
    for person in ["ada", "bob"] {
        mesh.start_agent(&at(person, &[TRAP])).await.unwrap();
        until(&mut mesh, &agent(person), "the first batches have arrived", has_arrived).await;
    }
    mesh.stop(&relay(TRAP)).await.unwrap();

    let mut hostile = Hostile::begins(&mesh, "forge-acks");
    // Of each it brings one, has the hub's ack for it, and tells it to the other, too.
    for _ in 0..4 {
        busy(&mesh, &[&ada, &bob]).await;
        hostile.until_more(&mut mesh, "forged acks").await;
    }
    hostile.until_it_did(&mut mesh, "of which 1 are of others", 2).await;
    for node in [&ada, &bob] {
        let status = status(&mesh, node).await;
        let (made, relay, hub) = (batches(&status, "made"), batches(&status, "relay"), batches(&status, "hub"));
        let stored = stored(&mesh, node).await;
        assert!(relay > hub && made > hub + 2, "it said that it has them: {status:#}");
        assert!(hub <= stored, "{node} takes {hub} batches for the hub's, which has {stored}");
        assert!(status["journey"]["returned"].as_u64() > Some(0), "it gave them back: {status:#}");
        assert!(says(&status, "messages claimed to be the hub's and weren't; they were ignored"), "{status:#}");
    }
    assert!(log(&mesh, &ada).contains("isn't the hub's word"), "the log says so");

    hostile.becomes(&mesh, "widen-policy").await;
    hostile.until_it_did(&mut mesh, "beside 1 of the hub's", 2).await;
    let narrow = fs::read_to_string(mesh.folder().join("policy.toml")).unwrap().replace("titles = true ", "titles = false ");
    fs::write(mesh.folder().join("policy.toml"), narrow).unwrap();
    let in_force = |status: &Value, n: u32| status["policy"]["n"] == n && says(status, "titles") == (n == 1);
    until(&mut mesh, &ada, "the hub's narrower policy comes through", |status| in_force(status, 2)).await;
    hostile.until_it_did(&mut mesh, "beside 2 of the hub's", 3).await;
    let now = status(&mesh, &ada).await;
    assert!(in_force(&now, 2), "a wider policy, or the one from before, is in force: {now:#}");
    // And with what it has kept on its disk of all that it was told.
    mesh.stop(&ada).await.unwrap();
    mesh.start_agent(&at("ada", &[TRAP])).await.unwrap();
    until(&mut mesh, &ada, "it is back", |status| status["connected"] == true).await;
    assert!(in_force(&status(&mesh, &ada).await, 2));

    hostile.becomes(&mesh, "mangle").await;
    for deed in ["dropped a batch", "twice and in the wrong order"] {
        while hostile.did(deed) == 0 {
            busy(&mesh, &[&ada, &bob]).await;
            mesh.check().unwrap();
        }
    }
    drop(hostile);
    mesh.start_relay(HOME).await.unwrap();
    for person in ["ada", "bob"] {
        mesh.stop(&agent(person)).await.unwrap();
        mesh.start_agent(&at(person, &[HOME])).await.unwrap();
    }
    everything_arrived_once(&mut mesh).await;
}

#[tokio::test]
async fn a_relay_between_gets_no_certificate_and_gives_none() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[TRAP]);
    mesh.set(&Node::Hub, AGENT_LIFE, "20");
    mesh.start_hub().await.unwrap();
    mesh.start_relay(TRAP).await.unwrap();
    mesh.stop(&relay(TRAP)).await.unwrap();
    let (at, ada) = (at("ada", &[TRAP]), agent("ada"));
    mesh.configure_agent(&at).unwrap();
    let token = ["token", "agent", "--site", TRAP, "--person", at.person, "--name", at.name];
    let token = mesh.done(&Node::Hub, &token).unwrap().trim().to_owned();
    let tokens = |mesh: &Mesh| mesh.done(&Node::Hub, &["token", "list"]).unwrap().lines().filter(|line| line.contains("ada")).count();

    let mut hostile = Hostile::begins(&mesh, "swap-csr");
    let said = mesh.done(&ada, &["enroll", &token]).unwrap_err().to_string();
    assert!(said.contains("the answer isn't the hub's"), "{said}");
    assert_eq!((mesh.member(&ada).unwrap(), tokens(&mesh)), (None, 1), "nobody has joined with it");
    for (deed, answer) in [("changed an ask on its way", "unreadable"), ("put in a request of its own", "token")] {
        assert!(hostile.did(deed) > 0 && hostile.did(deed) == hostile.did(&format!("{deed}: {answer}")), "{}", hostile.log());
    }

    hostile.becomes(&mesh, "replay-ask").await;
    mesh.done(&ada, &["enroll", &token]).unwrap();
    hostile.until_it_did(&mut mesh, "brought an ask again", 3).await;
    assert_eq!((issued(&mesh, &ada).await, tokens(&mesh)), ((1, 0), 0), "one device, one use, one certificate");
    mesh.start_agent(&at).await.unwrap();
    hostile.until_it_did(&mut mesh, "brought an ask again", 6).await;
    let replays = hostile.did("brought an ask again");
    assert_eq!(hostile.did("brought an ask again: the same answer"), replays, "{}", hostile.log());
    assert_eq!(issued(&mesh, &ada).await, (2, 0), "one more by its renewal, and none by {replays} replays");
    let listed = mesh.done(&Node::Hub, &["member", "list"]).unwrap();
    assert!(!listed.contains("two disks"), "nobody is taken for a copied disk: {listed}");

    hostile.becomes(&mesh, "swap-csr").await;
    until(&mut mesh, &ada, "it says that it isn't the hub that answers", |status| says(status, "the answer isn't the hub's")).await;
    assert!(hostile.did("put in a request of its own: unknown") > 0 && hostile.did("ISSUED") == 0, "{}", hostile.log());
    assert_eq!(issued(&mesh, &ada).await, (2, 0));
    hostile.ends().await;
    mesh.start_relay(TRAP).await.unwrap();
    let begin = Instant::now();
    while issued(&mesh, &ada).await.0 < 3 {
        assert!(begin.elapsed() < PATIENCE, "it isn't renewed: {}", log(&mesh, &ada));
        sleep(LOOK_EVERY).await;
    }
    everything_arrived_once(&mut mesh).await;
}

#[tokio::test]
async fn a_relay_that_withholds_the_list_of_the_denied_is_noticed_and_what_it_brings_ends_with_its_own_denial() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[TRAP, HOME]);
    mesh.start_hub().await.unwrap();
    for site in [TRAP, HOME] {
        mesh.start_relay(site).await.unwrap();
    }
    let ada = agent("ada");
    mesh.start_agent(&at("ada", &[TRAP])).await.unwrap();
    until(&mut mesh, &ada, "the first batches have arrived", has_arrived).await;
    mesh.stop(&relay(TRAP)).await.unwrap();
    let mut hostile = Hostile::begins(&mesh, "withhold-deny-list");
    let denied = mesh.member(&ada).unwrap().unwrap().name.to_string();
    mesh.done(&Node::Hub, &["member", "deny", &denied]).unwrap();
    hostile.until_it_did(&mut mesh, "withheld the list of the denied", 1).await;

    // It is let in where the list is withheld; and by then everybody can see where that is.
    let behind = "muster_hub_relays_behind{kind=\"deny\"} 1";
    let is_told = async |mesh: &Mesh| metrics(mesh, &Node::Hub).await.contains(behind);
    mesh.until(&Node::Hub, "somebody is behind", is_told).await.unwrap();
    let said = log(&mesh, &Node::Hub);
    let named = |line: &&str| line.contains("goes on holding less") && line.contains(&format!("site/{TRAP}/relay/{TRAP}-1"));
    assert_eq!(said.lines().filter(named).count(), 1, "it is said once, with its name: {said}");
    assert!(!said.contains(&format!("site/{HOME}/relay/{HOME}-1 kind")), "the honest one isn't behind: {said}");
    mesh.done(&Node::Hub, &["member", "deny", &format!("site/{TRAP}/relay/{TRAP}-1"), "--why", "withholds"]).unwrap();
    let is_cut = async |mesh: &Mesh| counted(mesh, &Node::Hub, "muster_hub_denied_total").await > 0;
    mesh.until(&Node::Hub, "the hub cuts it", is_cut).await.unwrap();
    hostile.until_more(&mut mesh, "the hub takes nothing").await;
    let before = stored(&mesh, &ada).await;
    busy(&mesh, &[&ada]).await;
    hostile.until_more(&mut mesh, "the hub takes nothing").await;
    hostile.until_more(&mut mesh, "the hub takes nothing").await;
    assert_eq!(stored(&mesh, &ada).await, before, "a denied relay brought something: {}", hostile.log());

    // Nor does it help the denied one to go where the list is.
    let has_list = async |mesh: &Mesh| holds_list(mesh, &format!("site/{HOME}/relay/{HOME}-1")).await;
    mesh.until(&relay(HOME), "the honest relay has heard of it", has_list).await.unwrap();
    let seen = turned_away(&mesh, &relay(HOME)).await;
    mesh.stop(&ada).await.unwrap();
    mesh.start_agent(&at("ada", &[HOME])).await.unwrap();
    mesh.until(&relay(HOME), "it is turned away", async |mesh| turned_away(mesh, &relay(HOME)).await > seen).await.unwrap();
    let kept = status(&mesh, &ada).await;
    assert!(kept["connected"] == false && batches(&kept, "hub") == 0, "{kept:#}");
    assert_eq!(stored(&mesh, &ada).await, before);
}

// --- the hostile relay ---

/// The program with one misdeed, in the place of the relay of [`TRAP`], which has been there and was stopped.
struct Hostile {
    process: Process,
    lives: usize,
}

impl Hostile {
    fn begins(mesh: &Mesh, misdeed: &str) -> Hostile {
        Hostile { process: start(mesh, misdeed, 0), lives: 1 }
    }

    /// Another program with another misdeed. Agents hear that the first one leaves, and dial again.
    async fn becomes(&mut self, mesh: &Mesh, misdeed: &str) {
        self.ends().await;
        self.process = start(mesh, misdeed, self.lives);
        self.lives += 1;
    }

    async fn ends(&mut self) {
        self.process.stop(PATIENCE).await.unwrap();
    }

    /// Of this misdeed.
    fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap()
    }

    /// How often it did something, or said something else of itself.
    fn did(&self, deed: &str) -> usize {
        self.log().lines().filter(|line| line.contains(deed)).count()
    }

    async fn until_it_did(&mut self, mesh: &mut Mesh, deed: &str, times: usize) {
        let begin = Instant::now();
        while self.did(deed) < times {
            self.process.check().unwrap();
            mesh.check().unwrap();
            assert!(begin.elapsed() < PATIENCE, "it never did that {times} times: {deed}\n{}", self.log());
            sleep(LOOK_EVERY).await;
        }
    }

    async fn until_more(&mut self, mesh: &mut Mesh, deed: &str) {
        let times = self.did(deed) + 1;
        self.until_it_did(mesh, deed, times).await;
    }
}

fn start(mesh: &Mesh, misdeed: &str, life: usize) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-hostile"));
    command.arg(misdeed).arg("--config").arg(mesh.config(&relay(TRAP)));
    let log = mesh.folder_of(&relay(TRAP)).join(format!("hostile-{life}.log"));
    Process::start("the hostile relay", &mut command, &log).unwrap()
}

// --- what is looked at ---

fn at<'a>(person: &'a str, relays: &'a [&'a str]) -> AgentAt<'a> {
    AgentAt { person, name: person, site: TRAP, relays, display: None }
}

pub fn agent(person: &str) -> Node {
    Node::Agent(person.to_owned())
}

pub fn relay(site: &str) -> Node {
    Node::Relay(site.to_owned())
}

pub async fn status(mesh: &Mesh, node: &Node) -> Value {
    mesh.ask(node, &json!({ "verb": "status" })).await.unwrap()
}

pub async fn until(mesh: &mut Mesh, node: &Node, what: &str, holds: impl Fn(&Value) -> bool) {
    if let Err(error) = mesh.until(node, what, async |mesh| holds(&status(mesh, node).await)).await {
        panic!("{error}\n{:#}\n{}", status(mesh, node).await, log(mesh, node));
    }
}

pub fn log(mesh: &Mesh, node: &Node) -> String {
    fs::read_to_string(mesh.folder_of(node).join("log")).unwrap()
}

/// Makes each of them close two batches.
pub async fn busy(mesh: &Mesh, agents: &[&Node]) {
    for agent in agents {
        for verb in ["pause", "resume"] {
            mesh.ask(agent, &json!({ "verb": verb })).await.unwrap();
        }
    }
}

/// Batches since the agent's start: `made`, in the branch (`relay`), in the `hub`.
pub fn batches(status: &Value, place: &str) -> i64 {
    status["journey"][place]["batches"].as_i64().unwrap()
}

/// Batches of an agent that are rows.
pub async fn stored(mesh: &Mesh, agent: &Node) -> i64 {
    let device = mesh.member(agent).unwrap().unwrap().name.device().unwrap();
    let count = "SELECT COUNT(*) FROM batches JOIN devices ON devices.id = batches.device_id WHERE devices.device = $1";
    let mut database = connected(mesh).await;
    let row = sqlx::query(count).bind(device.to_vec()).fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    row.get(0)
}

/// Whether somebody has said that it has a list of the denied.
pub async fn holds_list(mesh: &Mesh, name: &str) -> bool {
    let mut database = connected(mesh).await;
    let count = "SELECT COUNT(*) FROM held_versions WHERE kind = 3 AND name = $1";
    let row = sqlx::query(count).bind(name.to_owned()).fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    row.get::<i64, _>(0) > 0
}

pub async fn metrics(mesh: &Mesh, node: &Node) -> String {
    String::from_utf8(mesh.health(node, "/metrics").await.unwrap().body).unwrap()
}

/// A metric's count, with all its labels.
pub async fn counted(mesh: &Mesh, node: &Node, name: &str) -> u64 {
    let said = metrics(mesh, node).await;
    let lines = said.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Every number of every spool has arrived, none of them was given up, and none came with two contents.
pub async fn everything_arrived_once(mesh: &mut Mesh) {
    let begin = Instant::now();
    loop {
        let summary = mesh.hub().unwrap().get("/api/v1/summary").await.unwrap();
        let mut arrived = true;
        for person in ["ada", "bob", "eve"] {
            if mesh.process(&agent(person)).is_some() {
                arrived &= has_arrived(&status(mesh, &agent(person)).await);
            }
        }
        if arrived && summary["missing"] == 0 {
            assert_eq!((&summary["lost"], &summary["batches"]["held"]), (&0.into(), &0.into()), "{summary:#}");
            break;
        }
        mesh.check().unwrap();
        assert!(begin.elapsed() < PATIENCE, "something doesn't arrive: {summary:#}");
        sleep(LOOK_EVERY).await;
    }
    let mut database = connected(mesh).await;
    let given_up = sqlx::query("SELECT COUNT(*) FROM gap WHERE of_spool_id IS NOT NULL").fetch_one(&mut database).await.unwrap();
    assert_eq!(given_up.get::<i64, _>(0), 0, "numbers were given up");
    database.close().await.unwrap();
}
