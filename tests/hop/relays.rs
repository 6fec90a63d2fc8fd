//! Async: the hub's list of relays: agents go by it, and relays take guests by it. Where a relay has gone somebody else answers: as good as
//! nobody, and sooner known.

use muster_mesh::{
    door::Dial,
    relay_list::{RelayAt, RelayList, SiteRelays},
};

use super::*;

fn list(town: &Town, n: u32, sites: &[(&str, &[&Office], &[&str])]) {
    let at = |office: &&Office| (office.id.clone(), RelayAt { address: office.address.clone(), door: String::new() });
    let site = |&(site, relays, guests): &(&str, &[&Office], &[&str])| {
        let guests = guests.iter().map(|guest| (*guest).to_owned()).collect();
        (site.to_owned(), SiteRelays { relays: relays.iter().map(at).collect(), guests })
    };
    let list = RelayList { made_ms: SystemClock::new().now().wall_ms, sites: sites.iter().map(site).collect() };
    let signed = Signed::new(SignedKind::Relays, Version { epoch: 1, n }, list.bytes().unwrap());
    let mut kept = town.hub.kept.lock().unwrap();
    kept.signed.retain(|other| other.kind != signed.kind);
    kept.signed.push(signed);
}

/// As one that was enrolled when only this relay was known.
fn joined(office: &Office) -> Relays {
    let dial = Dial { address: office.address.clone(), door: String::new(), name: office.name().to_string() };
    Relays::OfSite { site: "oslo".to_owned(), joined: vec![dial] }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_by_the_hubs_newest_list_also_after_a_start() {
    let town = Town::new().await;
    let (first, second) = (town.relay("oslo-1").await, town.relay("oslo-2").await);
    let agent = town.agent_in(tempfile::tempdir().unwrap(), joined(&first));
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.trust.relay_list().sites.len(), 0);
    list(&town, 1, &[("oslo", &[&first, &second], &[])]);
    until("the list comes", || agent.trust.relay_list().sites.len() == 1).await;
    assert_eq!(agent.link().relay, Some(first.at()), "a new list ends no connection");
    let (went, way) = (first.at(), joined(&first));
    first.stop().await;
    let somebody_else = town.relay_at(&went.address, "oslo", "oslo-9").await;
    agent.observe(2).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(second.at()));
    // One that is switched on later knows it from its disk, and that the first has moved: somebody else is where it was.
    let folder = agent.stop().await;
    let moved = town.relay("oslo-1").await;
    assert_ne!(moved.at(), went);
    let agent = town.agent_in(folder, way.clone());
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(second.at()));
    list(&town, 2, &[("oslo", &[&moved], &[])]);
    until("the next list comes", || agent.trust.relay_list().sites["oslo"].relays.len() == 1).await;
    second.stop().await;
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(moved.at()));
    agent.stop().await;
    moved.stop().await;
    somebody_else.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_takes_guests_as_long_as_the_hub_says_so() {
    let town = Town::new().await;
    let (home, host) = (town.relay("oslo-1").await, town.relay_of("bergen", "bergen-1").await);
    let next = town.relay_of("stavanger", "stavanger-1").await;
    let agent = town.agent_in(tempfile::tempdir().unwrap(), joined(&home));
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    list(&town, 1, &[("oslo", &[&home], &[]), ("bergen", &[&host], &["oslo"])]);
    until("the list comes", || agent.trust.relay_list().takes("bergen", "oslo")).await;
    let went = home.at();
    home.stop().await;
    let somebody_else = town.relay_at(&went.address, "oslo", "oslo-9").await;
    agent.observe(2).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(host.at()));
    // It is another's guest: it hears of that before it is sent away.
    list(&town, 2, &[("bergen", &[&host], &[]), ("stavanger", &[&next], &["oslo"])]);
    until("it is with its next host", || agent.link().relay == Some(next.at())).await;
    // It is nobody's guest any more: the connection ends, and it isn't taken again.
    list(&town, 3, &[("bergen", &[&host], &[]), ("stavanger", &[&next], &[])]);
    until("the guest has left", || agent.link().relay.is_none()).await;
    agent.observe(1).await;
    assert_eq!(agent.keeper.standing().await.unwrap().waiting[0].0, 1, "what it collects waits for its own relay");
    agent.stop().await;
    host.stop().await;
    next.stop().await;
    somebody_else.stop().await;
}
