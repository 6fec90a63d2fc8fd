//! Async: disks that run full under a relay and under the hub: what can't be kept stays where it came from, what can go goes, and all of it
//! goes on by itself when there is room again. Small file systems in memory play the disks.

use muster_start::{
    engines::Engines,
    http,
    mesh::{Mesh, Node},
};
use serde_json::json;

use crate::{
    backup::is_on_a_server,
    small_disk::SmallDisk,
    swarm::{BUSY, Swarm, folder, mesh, mesh_on},
    sweeps::{FILLED, RETENTION_DAYS, one, sql, today},
};

const SITE: &str = "oslo";
const AGENTS: usize = 8;

fn relay() -> Node {
    Node::Relay(SITE.into())
}

async fn lane_of_the_relay(mesh: &Mesh) -> serde_json::Value {
    let status = mesh.ask(&relay(), &json!({ "verb": "status" })).await.unwrap();
    status["lanes"][0].clone()
}

/// What was on its way arrives, and what lay in a log already may still fit; then no more is acked, while more is made. Returns how much was.
async fn until_nothing_is_said(swarm: &mut Swarm, who: &str, acks: impl Fn(&Swarm) -> usize) -> usize {
    const ROUNDS: usize = 30;
    for _ in 0..ROUNDS {
        let (said, unacked) = (acks(swarm), swarm.unacked());
        swarm.until("the agents keep what they make", |swarm| swarm.unacked() > unacked + 100).await;
        if acks(swarm) == said {
            return said;
        }
    }
    panic!("{who} goes on acking, and its disk is full");
}

#[tokio::test]
async fn a_relay_whose_disk_is_full_refuses_hands_on_what_it_has_and_goes_on_by_itself() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    let Some(disk) = SmallDisk::mount(&mesh.state(&relay()), 24) else { return };
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);
    swarm.until("the hub has something", |swarm| swarm.acked() > 20).await;

    disk.fill();
    mesh.until(&relay(), "it refuses", async |mesh| lane_of_the_relay(mesh).await["full"] == true).await.unwrap();
    mesh.until(&relay(), "it has handed on what it has", async |mesh| lane_of_the_relay(mesh).await["waiting"] == 0).await.unwrap();
    let before = until_nothing_is_said(&mut swarm, "the branch", Swarm::in_branch).await;
    // What the hub has answered for makes a little room, and as much is taken again, so that there is always something on its way.
    let said = swarm.only_in_branch();
    swarm.until("the hub has all that the branch said it has", |swarm| swarm.only_in_branch().is_disjoint(&said)).await;

    disk.clear();
    swarm.until("agents are read again", |swarm| swarm.in_branch() > before + 50).await;
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound() && report.held == 0 && report.excused == 0, "{report}");
}

#[tokio::test]
async fn a_hub_whose_disk_is_full_takes_nothing_lets_people_in_and_goes_on_by_itself() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    if is_on_a_server(&mesh) {
        // Its rows are on another's disk.
        return;
    }
    let Some(disk) = SmallDisk::mount(&mesh.folder_of(&Node::Hub), 24) else { return };
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);
    swarm.until("the hub has something", |swarm| swarm.acked() > 20).await;

    disk.fill();
    let acked = until_nothing_is_said(&mut swarm, "the hub", Swarm::acked).await;
    let hub = mesh.hub().unwrap();
    let web = hub.address().trim_start_matches("http://").parse().unwrap();
    let login = json!({ "name": hub.name(), "password": hub.password() }).to_string();
    let answer = http::ask(web, "POST", "/api/v1/login", &[("content-type", "application/json")], login.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));

    disk.clear();
    swarm.until("the hub takes again", |swarm| swarm.acked() > acked + 50).await;
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound() && report.held == 0 && report.excused == 0, "{report}");
}

#[tokio::test]
async fn a_database_without_room_for_a_page_still_lets_go_of_what_is_old_and_then_takes_again() {
    let folder = folder();
    let place = folder.path().join("database");
    let Some(disk) = SmallDisk::mount(&place, 32) else { return };
    let store = Some(format!("sqlite://{}/muster.db", place.display()));
    let mut mesh = mesh_on(folder.path(), &[SITE], Engines { store, objects: None });
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    keep_old_rows(&mesh).await;
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);
    swarm.until("the hub has something", |swarm| swarm.acked() > 20).await;

    disk.fill();
    let acked = until_nothing_is_said(&mut swarm, "the hub", Swarm::acked).await;
    mesh.kill(&Node::Hub);
    // Whatever its end gave back is somebody else's, too.
    disk.fill();
    // It sweeps when it starts, as once a day.
    mesh.start_hub().await.unwrap();
    let old = format!("SELECT COUNT(*) FROM heartbeat WHERE spool_id = {FILLED}");
    mesh.until(&Node::Hub, "what was kept too long is gone", async |mesh| one(mesh, &old).await == 0).await.unwrap();
    swarm.until("in its place the hub takes again", |swarm| swarm.acked() > acked + 50).await;

    disk.clear();
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound() && report.held == 0 && report.excused == 0, "{report}");
}

/// Some megabytes that are too old by a day at least.
async fn keep_old_rows(mesh: &Mesh) {
    const ROWS: i64 = 50_000;
    let day = today() - RETENTION_DAYS - 2;
    let columns = "day, spool_id, seq, idx, at, state, version_id";
    let each = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})");
    sql(mesh, &format!("INSERT INTO heartbeat ({columns}) {each} SELECT {day}, {FILLED}, i, 0, {day} * 86400000, 1, 1 FROM n")).await;
}
