//! Async: kill −9 at any moment, under load: nothing that was acked is lost, nothing is there twice.

use muster_start::mesh::{AgentAt, Node};

use crate::swarm::{BUSY, Swarm, folder, mesh};

const SITE: &str = "oslo";
const PERSON: &str = "ada";
const AGENTS: usize = 12;
/// Batches that are on their way at each kill.
const UNACKED_MIN: usize = 20;

#[tokio::test]
async fn kills_at_random_lose_nothing_and_double_nothing() {
    let rounds = if std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long") { 66 } else { 9 };
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);
    let agent = Node::Agent(PERSON.into());
    let at = AgentAt { person: PERSON, name: "Ada", site: SITE, relays: &[SITE], display: None };
    mesh.start_agent(&at).await.unwrap();

    let mut kills = 0;
    for round in 0..rounds {
        swarm.until("enough is on its way", |swarm| swarm.unacked() >= UNACKED_MIN).await;
        swarm.kill();
        swarm.start(&mesh, &[SITE], BUSY);

        let before = swarm.in_branch();
        swarm.until("the swarm is at work again", |swarm| swarm.unacked() >= UNACKED_MIN && swarm.in_branch() > before).await;
        mesh.kill(&Node::Relay(SITE.into()));
        mesh.start_relay(SITE).await.unwrap();

        let before = swarm.acked();
        swarm.until("the hub answers", |swarm| swarm.unacked() >= UNACKED_MIN && swarm.acked() > before).await;
        mesh.kill(&Node::Hub);
        mesh.start_hub().await.unwrap();
        kills += 3;

        if round % 3 == 0 {
            mesh.kill(&agent);
            mesh.start_agent(&at).await.unwrap();
            kills += 1;
        }
    }
    assert_eq!(kills, rounds * 3 + rounds / 3);

    mesh.stop(&agent).await.unwrap();
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    println!("after {kills} kills: {report}");
    assert!(report.is_sound() && report.stored > 300, "{report}");
    assert_eq!(report.held, 0, "{report}");
    mesh.start_agent(&at).await.unwrap();
    mesh.until(&Node::Hub, "the hub has all of the real agent too", async |mesh| {
        let in_hub = mesh.hub().unwrap().get("/api/v1/summary").await.unwrap();
        in_hub["missing"] == 0 && in_hub["lost"] == 0 && in_hub["duplicates"] == 0 && in_hub["gaps"] == 0 && in_hub["alarms"] == 0
    })
    .await
    .unwrap();
}
