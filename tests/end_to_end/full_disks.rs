//! Async: disks that run full under a relay and under the hub: what can't be kept stays where it came from, what can go goes, and all of it
//! goes on by itself when there is room again. Small file systems in memory play the disks.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use muster_start::{
    http,
    mesh::{Mesh, Node},
};
use serde_json::json;

use crate::{
    backup::is_on_a_server,
    swarm::{BUSY, Swarm, folder, mesh},
};

const SITE: &str = "oslo";
const AGENTS: usize = 8;

/// A file system of its own that is mounted over a folder. Dropped, it is taken away.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// None where this user may not mount.
    pub fn mount(folder: &Path, mebibytes: u32) -> Option<SmallDisk> {
        fs::create_dir_all(folder).unwrap();
        let size = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "muster-test"]).arg(folder).output().unwrap();
        if !mounted.status.success() {
            println!("skipped: this user may not mount a small disk: {}", String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(SmallDisk { folder: folder.to_owned() })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for size in [1 << 16, 1 << 12] {
            let piece = vec![1; size];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// Gives back what was taken.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("somebody-elses")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Programs that were just killed may hold it for a moment longer: it goes when they have gone.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

fn relay() -> Node {
    Node::Relay(SITE.into())
}

async fn lane_of_the_relay(mesh: &Mesh) -> serde_json::Value {
    let status = mesh.ask(&relay(), &json!({ "verb": "status" })).await.unwrap();
    status["lanes"][0].clone()
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
    let before = swarm.in_branch();
    swarm.until("the agents keep what they make", |swarm| swarm.unacked() > 100).await;
    assert_eq!(swarm.in_branch(), before, "nothing is acked that isn't on the disk");

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
    let mut acked = swarm.acked();
    // What lay in its log already may still fit.
    loop {
        let before = swarm.in_branch();
        swarm.until("the branch has more", |swarm| swarm.in_branch() > before + 100).await;
        if swarm.acked() == acked {
            break;
        }
        acked = swarm.acked();
    }
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
