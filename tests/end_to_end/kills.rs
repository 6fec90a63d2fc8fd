//! Async: kill −9 at any moment, under load: nothing that was acked is lost, nothing is there twice.

use std::{collections::BTreeMap, time::Duration};

use muster_mesh::chance;
use muster_start::mesh::{AgentAt, Mesh, Node};
use tokio::time::{Instant, sleep, timeout};

use crate::swarm::{BUSY, PATIENCE, Swarm, folder, mesh};

const SITE: &str = "oslo";
const AT: AgentAt<'static> = AgentAt { person: "ada", name: "Ada", site: SITE, relays: &[SITE], display: None };
const AGENTS: usize = 16;
/// Batches that are on their way at each kill.
const UNACKED_MIN: usize = 20;
/// A kill comes at any moment of this after there is enough on its way: syncs and commits begin and end within it.
const MOMENT: Duration = Duration::from_millis(1_500);
/// One of so many starts is killed while it starts: a kill in the midst of recovery.
const STARTS_PER_KILL: f64 = 4.0;
const START: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Swarm,
    Relay,
    Hub,
    Agent,
}

/// The mesh under load, and what was done to it.
struct Scene {
    mesh: Mesh,
    swarm: Swarm,
    kills: BTreeMap<Victim, usize>,
    /// Besides those, whatever was on its way then.
    while_starting: usize,
}

#[tokio::test]
async fn kills_at_random_lose_nothing_and_double_nothing() {
    let (each, of_the_agent) = if std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long") { (67, 20) } else { (10, 3) };
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    mesh.start_agent(&AT).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);
    let mut scene = Scene { mesh, swarm, kills: BTreeMap::new(), while_starting: 0 };

    for victim in shuffled(each, of_the_agent) {
        scene.kill(victim).await;
        scene.start(victim).await;
    }
    let Scene { mut mesh, mut swarm, kills, while_starting } = scene;
    assert!(kills[&Victim::Swarm] >= each && kills[&Victim::Relay] >= each && kills[&Victim::Hub] >= each, "{kills:?}");
    assert!(kills[&Victim::Agent] >= of_the_agent, "{kills:?}");

    mesh.stop(&Node::Agent(AT.person.into())).await.unwrap();
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    println!("after {kills:?}, and {while_starting} more while it started: {report}");
    assert!(report.is_sound() && report.stored > 300, "{report}");
    assert_eq!(report.held, 0, "{report}");
    mesh.start_agent(&AT).await.unwrap();
    mesh.until(&Node::Hub, "the hub has all of the real agent too", async |mesh| {
        let in_hub = mesh.hub().unwrap().get("/api/v1/summary").await.unwrap();
        in_hub["missing"] == 0 && in_hub["lost"] == 0 && in_hub["duplicates"] == 0 && in_hub["gaps"] == 0 && in_hub["alarms"] == 0
    })
    .await
    .unwrap();
}

/// Who is killed, one after another, in an order that nobody knows.
fn shuffled(each: usize, of_the_agent: usize) -> Vec<Victim> {
    let of = |victim, times| std::iter::repeat_n(victim, times);
    let victims =
        of(Victim::Swarm, each).chain(of(Victim::Relay, each)).chain(of(Victim::Hub, each)).chain(of(Victim::Agent, of_the_agent));
    let mut drawn: Vec<(u64, Victim)> = victims.map(|victim| (chance::random_u64(), victim)).collect();
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, victim)| victim).collect()
}

impl Scene {
    /// At any moment at which enough is on its way, by the journal. Every second time the mesh got something done since the last kill.
    async fn kill(&mut self, victim: Victim) {
        let acked = self.swarm.acked();
        if chance::fraction() < 0.5 {
            self.swarm.until("the hub answers again", |swarm| swarm.acked() > acked).await;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.swarm.until("enough is on its way", |swarm| swarm.unacked() >= UNACKED_MIN).await;
            sleep(chance::jitter(MOMENT)).await;
            if self.swarm.unacked() >= UNACKED_MIN {
                break;
            }
            assert!(Instant::now() < deadline, "there is never enough on its way");
        }
        self.end(victim);
        *self.kills.entry(victim).or_default() += 1;
    }

    fn end(&mut self, victim: Victim) {
        match victim {
            Victim::Swarm => self.swarm.kill(),
            Victim::Relay => self.mesh.kill(&Node::Relay(SITE.into())),
            Victim::Hub => self.mesh.kill(&Node::Hub),
            Victim::Agent => self.mesh.kill(&Node::Agent(AT.person.into())),
        }
    }

    /// Starts it again; now and then it is killed once more before it is ready.
    async fn start(&mut self, victim: Victim) {
        // A swarm is ready as soon as it is a process: it is killed early by being killed again.
        let is_cut = chance::fraction() < 1.0 / STARTS_PER_KILL;
        if is_cut && (timeout(chance::jitter(START), self.run(victim)).await.is_err() || victim == Victim::Swarm) {
            self.end(victim);
            self.while_starting += 1;
            self.run(victim).await;
        } else if !is_cut {
            self.run(victim).await;
        }
    }

    async fn run(&mut self, victim: Victim) {
        match victim {
            Victim::Swarm => self.swarm.start(&self.mesh, &[SITE], BUSY),
            Victim::Relay => self.mesh.start_relay(SITE).await.unwrap(),
            Victim::Hub => self.mesh.start_hub().await.unwrap(),
            Victim::Agent => self.mesh.start_agent(&AT).await.unwrap(),
        }
    }
}
