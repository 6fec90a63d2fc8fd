//! Async: a root is replaced under a mesh of real processes, with the commands of the runbook, while one branch office is off line throughout.

use std::{fs, path::Path, process::Command};

use muster_start::mesh::{AgentAt, Mesh, Node};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    enrolment::{AGENT_LIFE, RELAY_LIFE, has_arrived, issued, name_of, until_ended, until_issued},
    swarm::{LOOK_EVERY, PATIENCE, folder, mesh, program},
};

const HOME: &str = "oslo";
const AWAY: &str = "bergen";
const ADA: AgentAt<'static> = AgentAt { person: "ada", name: "Ada", site: HOME, relays: &[HOME], display: None };
const BO: AgentAt<'static> = AgentAt { person: "bo", name: "Bo", site: AWAY, relays: &[AWAY], display: None };

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

    // A way back from each step, as long as there is one.
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
    assert!(rotate(&mesh, &["back"]).unwrap_err().contains("no way back"));
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
    let log = fs::read_to_string(mesh.folder_of(&relay(HOME)).join("log")).unwrap();
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(!complaints.iter().any(|line| line.contains("certificate")), "{complaints:#?}");
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

/// `muster-certs rotate …`, and what it says.
fn rotate(mesh: &Mesh, words: &[&str]) -> Result<String, String> {
    let ca = mesh.folder().join("ca");
    let output = Command::new(program("muster-certs")).arg("--dir").arg(ca).arg("rotate").args(words).output().unwrap();
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
