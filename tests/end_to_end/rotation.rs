//! Async: an issuing CA and a root are replaced under a mesh of real processes, with the commands of the runbooks: under load, and while one
//! branch office is off line throughout.

use std::{collections::BTreeSet, fs, path::Path, process::Command, sync::Arc};

use muster_certs::{Keys, Role, SystemTime};
use muster_start::mesh::{AgentAt, Mesh, Node};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    enrolment::{AGENT_LIFE, RELAY_LIFE, has_arrived, issued, name_of, renewed_ahead, until_ended, until_issued},
    swarm::{LOOK_EVERY, Life, PATIENCE, Swarm, folder, mesh, program},
};

const HOME: &str = "oslo";
const AWAY: &str = "bergen";
const ADA: AgentAt<'static> = AgentAt { person: "ada", name: "Ada", site: HOME, relays: &[HOME], display: None };
const BO: AgentAt<'static> = AgentAt { person: "bo", name: "Bo", site: AWAY, relays: &[AWAY], display: None };

/// Rotations of the issuing CA, each begun as soon as the one before is done.
const ROTATIONS: usize = 5;
/// In this one an agent, and in that one the relay, is killed while everybody moves.
const AGENT_KILLED_IN: usize = 2;
const RELAY_KILLED_IN: usize = 4;
/// It makes batches until it is killed.
const LOAD: Life = Life { days: 1_000, speed: 1_200, drain_s: 0, pictures_a_day: 0 };

#[tokio::test]
async fn the_issuing_ca_is_rotated_five_times_under_load_and_nobody_notices() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[HOME]);
    for life in [AGENT_LIFE, RELAY_LIFE] {
        mesh.set(&Node::Hub, life, "20");
    }
    mesh.start_hub().await.unwrap();
    mesh.start_relay(HOME).await.unwrap();
    mesh.start_agent(&ADA).await.unwrap();
    until_arrived(&mut mesh, &ADA).await;
    let mut swarm = Swarm::new(&mesh, HOME, 8);
    swarm.start(&mesh, &[HOME], LOAD);
    let enrolled = [relay(HOME), agent(&ADA)];
    let mut issuers = BTreeSet::from([issuer(&mesh)["key"].to_string()]);

    for rotation in 1..=ROTATIONS {
        let acked = swarm.acked();
        rotate(&mesh, &["start", "issuing"]).unwrap();
        rotate(&mesh, &["advance"]).unwrap();
        // Too early: the swarm's certificates lie in files, and nobody has renewed these yet.
        let said = until_advance(&mut mesh, |advanced| advanced.err().filter(|said| said.contains("would cut off"))).await;
        assert!(said.contains("it holds a certificate of the old issuing CA"), "{said}");
        match rotation {
            AGENT_KILLED_IN => {
                mesh.kill(&agent(&ADA));
                mesh.start_agent(&ADA).await.unwrap();
            }
            RELAY_KILLED_IN => {
                mesh.kill(&relay(HOME));
                mesh.start_relay(HOME).await.unwrap();
            }
            _ => {}
        }
        certs(&mesh, &["renew", of(&swarm.certificates())]).unwrap();
        until_advance(&mut mesh, Result::ok).await;
        let newest = issuer(&mesh);
        assert!(issuers.insert(newest["key"].to_string()), "{newest} issued before");
        for node in enrolled.iter().chain([&Node::Hub]) {
            // What the hub has issued may still be on its way, or its answer was lost: then it is asked for again.
            let holds = async |mesh: &Mesh| json!(issuer_held(mesh, node)) == newest["key"];
            mesh.until(node, &format!("it holds a certificate of {newest}"), holds).await.unwrap();
        }
        assert_eq!(issuing_keys(&mesh), [newest["file"].as_str().unwrap()], "after rotation {rotation}");
        swarm.until("something arrived during the rotation", |swarm| swarm.acked() > acked).await;
    }

    swarm.drain(&mesh, &[HOME]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound(), "{report}");
    until_arrived(&mut mesh, &ADA).await;
    // Nobody starts a process that ended but this test.
    mesh.check().unwrap();
    let mut ahead = 0;
    for node in &enrolled {
        assert_eq!(issued(&mesh, node).await.1, 0, "{node} never was without a certificate");
        ahead += renewed_ahead(&mesh, node).await;
    }
    assert!(ahead > 0, "nobody moved to a new issuing CA before a renewal was due");
    let of_a_killed_relay = |line: &str| line.contains("the hub can't be asked");
    for node in &enrolled {
        let complaints = complaints(&mesh, node);
        assert!(complaints.iter().all(|line| *node != relay(HOME) && of_a_killed_relay(line)), "{node}: {complaints:#?}");
    }
}

#[tokio::test]
async fn a_root_is_replaced_while_a_site_is_away_and_it_comes_back_by_itself() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[HOME, AWAY]);
    for life in [AGENT_LIFE, RELAY_LIFE] {
        mesh.set(&Node::Hub, life, "30");
    }
    mesh.start_hub().await.unwrap();
    for site in [HOME, AWAY] {
        mesh.start_relay(site).await.unwrap();
    }
    for at in [&ADA, &BO] {
        mesh.start_agent(at).await.unwrap();
        until_arrived(&mut mesh, at).await;
    }
    let (home, away) = ([relay(HOME), agent(&ADA)], [relay(AWAY), agent(&BO)]);
    let away_names = away.each_ref().map(|node| name_of(&mesh, node));
    let first_root = fs::read_to_string(mesh.ca().roots_path()).unwrap();
    mesh.stop(&relay(AWAY)).await.unwrap();

    // A way back from each step.
    rotate(&mesh, &["start", "root"]).unwrap();
    rotate(&mesh, &["back"]).unwrap();
    assert_eq!(fs::read_to_string(mesh.ca().roots_path()).unwrap(), first_root);
    rotate(&mesh, &["start", "root"]).unwrap();
    rotate(&mesh, &["advance"]).unwrap();
    rotate(&mesh, &["back"]).unwrap();
    rotate(&mesh, &["advance"]).unwrap();
    let said = until_advance(&mut mesh, |advanced| advanced.err().filter(|said| said.contains("would cut off"))).await;
    assert!(said.contains(&away_names[0]) && said.contains("certificate of the old issuing CA"), "{said}");
    // Until the certificates of those who are away have ended; the others have moved long before.
    until_advance(&mut mesh, Result::ok).await;
    rotate(&mesh, &["back"]).unwrap();
    assert!(rotate(&mesh, &["back"]).unwrap_err().contains("no further way back"));
    assert!(fs::read_to_string(mesh.ca().roots_path()).unwrap().contains(first_root.trim()));
    until_advance(&mut mesh, Result::ok).await;
    until_advance(&mut mesh, |advanced| {
        let said = advanced.expect_err("who was away would be cut off");
        let names: Vec<&str> =
            said.lines().filter_map(|line| line.trim().strip_suffix(" (it holds the old roots, or never said which)")).collect();
        let mut wanted = away_names.each_ref().map(String::as_str);
        wanted.sort_unstable();
        (names == wanted).then_some(())
    })
    .await;
    for node in &home {
        assert_eq!(issued(&mesh, node).await.1, 0, "{node} never was without a certificate");
    }

    // By the cross certificate: it has the old root alone.
    for node in &away {
        until_ended(&mesh, node).await;
    }
    mesh.start_relay(AWAY).await.unwrap();
    for node in &away {
        until_issued(&mut mesh, node, |_, recoveries| recoveries == 1).await;
    }
    until_arrived(&mut mesh, &BO).await;
    until_advance(&mut mesh, Result::ok).await;
    assert!(rotate(&mesh, &["status"]).unwrap().contains("none is under way"));

    // And it goes on: everybody renews below the new root alone, the hub starts with what it put into its files.
    mesh.stop(&Node::Hub).await.unwrap();
    mesh.start_hub().await.unwrap();
    for node in home.iter().chain(&away) {
        let before = issued(&mesh, node).await.0;
        until_issued(&mut mesh, node, |all, _| all > before).await;
    }
    for at in [&ADA, &BO] {
        until_arrived(&mut mesh, at).await;
    }
    assert_eq!(complaints(&mesh, &relay(HOME)), [""; 0]);
}

fn relay(site: &str) -> Node {
    Node::Relay(site.into())
}

fn agent(at: &AgentAt<'_>) -> Node {
    Node::Agent(at.person.into())
}

async fn status(mesh: &Mesh, node: &Node) -> Value {
    mesh.ask(node, &json!({ "verb": "status" })).await.unwrap()
}

async fn until_arrived(mesh: &mut Mesh, at: &AgentAt<'_>) {
    let node = agent(at);
    if let Err(error) = mesh.until(&node, "what it collects arrives", async |mesh| has_arrived(&status(mesh, &node).await)).await {
        let log = fs::read_to_string(mesh.folder_of(&node).join("log")).unwrap();
        panic!("{error}\n{:#}\n{log}", status(mesh, &node).await);
    }
}

/// Of a node's log: complaints about certificates.
fn complaints(mesh: &Mesh, node: &Node) -> Vec<String> {
    let log = fs::read_to_string(mesh.folder_of(node).join("log")).unwrap();
    let complaints = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    complaints.filter(|line| line.contains("certificate")).map(str::to_owned).collect()
}

/// The issuing CA in force, as `rotate status` shows it.
fn issuer(mesh: &Mesh) -> Value {
    let status: Value = serde_json::from_str(&certs(mesh, &["--json", "rotate", "status"]).unwrap()).unwrap();
    status["issues"].clone()
}

/// By whom the certificate was issued that lies in a node's folder.
fn issuer_held(mesh: &Mesh, node: &Node) -> Option<String> {
    let folder = mesh.folder_of(node);
    let keys = match node {
        Node::Hub => {
            let [certificate, key] = ["certificate.pem", "key.pem"].map(|file| folder.join(file));
            Keys::load(&certificate, &key, &mesh.ca().roots_path(), Role::Hub, Arc::new(SystemTime)).unwrap()
        }
        Node::Relay(_) | Node::Agent(_) => mesh.member(node).unwrap().unwrap().keys(Arc::new(SystemTime)).unwrap(),
    };
    keys.leaf().issuer.clone()
}

/// The issuing CAs whose keys lie in the CA's folder.
fn issuing_keys(mesh: &Mesh) -> Vec<String> {
    let files = fs::read_dir(mesh.folder().join("ca/issuing")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    files.filter_map(|file| file.strip_suffix(".key").map(str::to_owned)).collect()
}

/// `muster-certs rotate …`, and what it says.
fn rotate(mesh: &Mesh, words: &[&str]) -> Result<String, String> {
    certs(mesh, &[&["rotate"], words].concat())
}

/// `muster-certs …` on the mesh's CA, and what it says.
fn certs(mesh: &Mesh, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program("muster-certs")).arg("--dir").arg(mesh.folder().join("ca")).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Tries the next step with a new report, until what it says is `enough`.
async fn until_advance<T>(mesh: &mut Mesh, enough: impl Fn(Result<String, String>) -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        let report = mesh.folder().join("members.json");
        fs::write(&report, mesh.done(&Node::Hub, &["member", "list", "--json"]).unwrap()).unwrap();
        let advanced = rotate(mesh, &["advance", "--members", of(&report)]);
        if let Some(enough) = enough(advanced.clone()) {
            return enough;
        }
        mesh.check().unwrap();
        assert!(begin.elapsed() < PATIENCE, "{advanced:?}\n{}", fs::read_to_string(&report).unwrap());
        sleep(LOOK_EVERY).await;
    }
}

fn of(path: &Path) -> &str {
    path.to_str().unwrap()
}
