//! Async: disks that are lost, copied back or restored, and agents that move: nothing that was acked is lost unless all its copies were
//! destroyed, nothing is stuck, nobody has to do anything.

use std::{fs, path::Path, process::Command};

use muster_mesh::{
    batch::{self, Batch, Envelope, Head},
    clock::{Clock, SystemClock},
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    queue::{Queue, directory::Entry, segment::Segments, sidecar::Born},
    record::{Capability, Kind, Record},
};
use muster_start::mesh::{AgentAt, Mesh, Node};
use muster_swarm::check::Report;

use crate::{
    backup::Backup,
    swarm::{BUSY, Swarm, folder, mesh},
};

const OSLO: &str = "oslo";
const HOME: &str = "home";
const AGENTS: usize = 6;

/// A hub, a relay and a busy swarm.
async fn busy(folder: &Path, sites: &[&str]) -> (Mesh, Swarm) {
    let mut mesh = mesh(folder, sites);
    mesh.start_hub().await.unwrap();
    for site in sites {
        mesh.start_relay(site).await.unwrap();
    }
    let mut swarm = Swarm::new(&mesh, OSLO, AGENTS);
    swarm.start(&mesh, sites, BUSY);
    (mesh, swarm)
}

async fn sound(mut swarm: Swarm, mesh: &Mesh, sites: &[&str]) -> Report {
    swarm.drain(mesh, sites).await;
    let report = swarm.check(mesh).await;
    assert!(report.is_sound() && report.stored > 50, "{report}");
    report
}

fn relay(site: &str) -> Node {
    Node::Relay(site.to_owned())
}

/// As `cp -a`: sparse files stay sparse, modes stay owner-only.
pub fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap().success());
}

#[tokio::test]
async fn a_relay_that_is_wiped_after_its_acks_and_before_the_sync_costs_nothing() {
    let folder = folder();
    let (mut mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
    swarm.until("the hub has something", |swarm| swarm.acked() > 20).await;
    mesh.kill(&Node::Hub);
    let before = swarm.in_branch();
    swarm.until("the branch has what the hub lacks", |swarm| swarm.in_branch() > before + 50).await;
    mesh.kill(&relay(OSLO));
    fs::remove_dir_all(mesh.state(&relay(OSLO))).unwrap();
    // The new computer joins under the old one's name.
    mesh.start_hub().await.unwrap();
    mesh.start_relay(OSLO).await.unwrap();
    sound(swarm, &mesh, &[OSLO]).await;
}

#[tokio::test]
async fn minutes_without_the_hub_are_kept_in_the_branch_and_drain_by_themselves() {
    let folder = folder();
    let (mut mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
    swarm.until("the hub has something", |swarm| swarm.acked() > 20).await;
    mesh.stop(&Node::Hub).await.unwrap();
    let before = swarm.in_branch();
    swarm.until("the branch has hundreds that the hub lacks", |swarm| swarm.in_branch() > before + 400).await;
    let acked = swarm.acked();
    let status = mesh.ask(&relay(OSLO), &serde_json::json!({ "verb": "status" })).await.unwrap();
    assert!(status["lanes"][0]["waiting"].as_u64().unwrap() > 300, "{status}");
    assert_eq!(swarm.acked(), acked, "nobody is told \"in the hub\" while there is no hub");
    mesh.start_hub().await.unwrap();
    sound(swarm, &mesh, &[OSLO]).await;
}

#[tokio::test]
async fn agents_that_move_to_a_guest_relay_and_back_are_whole_in_the_hub() {
    let folder = folder();
    let (mut mesh, mut swarm) = busy(folder.path(), &[OSLO, HOME]).await;
    swarm.until("the first relay has something", |swarm| swarm.in_branch() > 50).await;
    // What lies in the first relay stays there while it is down.
    mesh.kill(&relay(OSLO));
    let before = swarm.acked();
    swarm.until("they deliver through the other one", |swarm| swarm.acked() > before + 50).await;
    mesh.start_relay(OSLO).await.unwrap();
    mesh.kill(&relay(HOME));
    let before = swarm.acked();
    swarm.until("they are back", |swarm| swarm.acked() > before + 50).await;
    mesh.start_relay(HOME).await.unwrap();
    sound(swarm, &mesh, &[OSLO, HOME]).await;
}

async fn hub_is_put_back(announced: bool) {
    let folder = folder();
    let (mut mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
    swarm.until("the hub has something", |swarm| swarm.acked() > 50).await;
    mesh.kill(&Node::Hub);
    let backup = Backup::of(&mesh, folder.path()).await;
    mesh.start_hub().await.unwrap();
    let before = swarm.acked();
    swarm.until("the hub has more than its backup", |swarm| swarm.acked() > before + 100).await;
    mesh.kill(&Node::Hub);
    backup.put_back(&mesh).await;
    if announced {
        mesh.start_restored_hub().await.unwrap()
    } else {
        mesh.start_hub().await.unwrap()
    }
    sound(swarm, &mesh, &[OSLO]).await;
}

#[tokio::test]
async fn a_hub_that_is_restored_with_a_word_gets_everything_again() {
    hub_is_put_back(true).await;
}

#[tokio::test]
async fn a_hub_whose_files_are_copied_back_silently_gets_everything_again() {
    hub_is_put_back(false).await;
}

#[tokio::test]
async fn laptops_whose_folders_are_copied_back_never_give_a_number_two_contents() {
    let folder = folder();
    let (mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
    swarm.until("the hub has something", |swarm| swarm.acked() > 50).await;
    swarm.kill();
    let image = folder.path().join("image");
    copy(&swarm.state(), &image);
    swarm.start(&mesh, &[OSLO], BUSY);
    let before = swarm.acked();
    swarm.until("the hub has more than the image", |swarm| swarm.acked() > before + 50).await;
    // What the image forgets and the hub lacks would be lost with its only copy: here the branch has it all.
    swarm.drain(&mesh, &[OSLO]).await;
    copy(&image, &swarm.state());
    swarm.start(&mesh, &[OSLO], BUSY);
    let before = swarm.acked();
    swarm.until("it works on", |swarm| swarm.acked() > before + 50).await;
    let report = sound(swarm, &mesh, &[OSLO]).await;
    assert_eq!(report.held, 0, "other content under a known number: {report}");
}

#[tokio::test]
async fn a_row_that_is_deleted_by_hand_turns_the_check_red() {
    let folder = folder();
    let (mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
    swarm.until("the hub has something", |swarm| swarm.acked() > 60).await;
    swarm.drain(&mesh, &[OSLO]).await;
    assert!(swarm.check(&mesh).await.is_sound());
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&muster_start::mesh::database_url(mesh.folder())).await.unwrap();
    let one = "DELETE FROM focus WHERE (day, spool_id, seq, idx) = (SELECT day, spool_id, seq, idx FROM focus LIMIT 1)";
    assert_eq!(sqlx::query(one).execute(&pool).await.unwrap().rows_affected(), 1);
    pool.close().await;
    let report = swarm.check(&mesh).await;
    assert!(report.faults.len() == 1 && report.faults[0].contains("other records than were made"), "{report}");
}

#[tokio::test]
async fn segments_lost_at_a_relay_heal_and_lost_at_an_agent_too_turn_the_check_red() {
    for lost_at_the_agent_too in [false, true] {
        let folder = folder();
        let (mut mesh, mut swarm) = busy(folder.path(), &[OSLO]).await;
        mesh.kill(&Node::Hub);
        let before = swarm.in_branch();
        swarm.until("the branch has what the hub lacks", |swarm| swarm.in_branch() > before + 100).await;
        swarm.kill();
        mesh.kill(&relay(OSLO));
        fs::remove_dir_all(mesh.state(&relay(OSLO)).join("telemetry")).unwrap();
        if lost_at_the_agent_too {
            let agent = fs::read_dir(swarm.state()).unwrap().next().unwrap().unwrap().path();
            for entry in
                fs::read_dir(agent.join("telemetry")).unwrap().map(Result::unwrap).filter(|entry| entry.path().extension().is_some())
            {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        mesh.start_hub().await.unwrap();
        mesh.start_relay(OSLO).await.unwrap();
        swarm.drain(&mesh, &[OSLO]).await;
        let report = swarm.check(&mesh).await;
        assert_eq!(report.is_sound(), !lost_at_the_agent_too, "{report}");
    }
}

#[tokio::test]
async fn what_a_newer_agent_sends_is_held_told_in_today_and_stops_nothing_behind_it() {
    const PERSON: &str = "ada";
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[OSLO]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(OSLO).await.unwrap();
    let at = AgentAt { person: PERSON, name: "Ada", site: OSLO, relays: &[OSLO], display: None };
    let agent = Node::Agent(PERSON.into());
    mesh.start_agent(&at).await.unwrap();
    mesh.stop(&agent).await.unwrap();
    put_newer_batches(&mesh, &agent);
    mesh.start_agent(&at).await.unwrap();
    mesh.until(&agent, "the person is told", async |mesh| {
        let today = mesh.ask(&agent, &serde_json::json!({ "verb": "today" })).await.unwrap();
        let text = today["text"].as_str().unwrap();
        text.contains("1 batch is held (unknown version)") && text.contains("1 batch is held (unknown codec)")
    })
    .await
    .unwrap();
    let summary = mesh.hub().unwrap().get("/api/v1/summary").await.unwrap();
    assert_eq!((&summary["batches"]["held"], &summary["missing"], &summary["lost"]), (&2.into(), &0.into(), &0.into()), "{summary:#}");
    assert!(summary["kinds"]["timer"].is_null() && summary["kinds"]["capability"].as_u64().unwrap() > 0, "{summary:#}");
}

/// A spool as a newer build may leave it: of its three batches this hub can open the last one only.
fn put_newer_batches(mesh: &Mesh, agent: &Node) {
    let device = DeviceId(mesh.member(agent).unwrap().unwrap().name.device().unwrap());
    let spool = SpoolId::new(1, [7; 10]);
    let batch = |seq: u64| Batch {
        device,
        spool,
        seq,
        lane: Lane::Telemetry,
        policy: Version::default(),
        notice: Version::default(),
        erasure: Version::default(),
        test_mode: true,
        head: Head { boot: BootId([9; 16]), wall_ms: 0, boot_ms: 0, zone: "Etc/UTC".into(), offset_s: 0, tails: Vec::new() },
        records: vec![Record {
            at: SystemClock::new().now().wall_ms,
            kind: Kind::Capability(Capability { what: "a newer thing".into(), able: true, why: String::new() }),
        }],
    };
    let changed = |seq: u64, change: fn(&mut batch::Header)| {
        let sealed = batch(seq).seal().unwrap();
        let mut header = *sealed.header();
        change(&mut header);
        let body = &sealed.bytes()[batch::HEADER_BYTES..sealed.bytes().len() - batch::CRC_BYTES];
        Envelope::read(batch::frame(&header, body)).unwrap()
    };
    let envelopes = [changed(1, |header| header.version = 9), changed(2, |header| header.codec = 9), batch(3).seal().unwrap()];
    let entries = envelopes.map(|envelope| Entry { facts: Default::default(), envelope });
    let (mut queue, _) = Queue::open(Segments::open(&mesh.state(agent).join("telemetry"), 1 << 20).unwrap(), 8 << 20).unwrap();
    queue.roll(Some(Born { device, spool, first: 1 }), 0).unwrap();
    queue.append(&entries).unwrap();
    // As the agent's own start does with every tail that it finds.
    queue.roll(None, 0).unwrap();
}
