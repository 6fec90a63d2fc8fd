//! Async: where agents deliver, as an admin says it and the hub signs it.
#![allow(clippy::unwrap_used)]

mod world;

use muster_certs::Name;
use muster_hub::{
    admission::{self, AdmissionError},
    relays::{self, GUESTS_MAX, Place},
};
use muster_mesh::{
    ids::Version,
    message::{Signed, SignedKind},
    relay_list::{RelayAt, RelayList},
};
use world::*;

#[tokio::test]
async fn what_an_admin_says_of_relays_is_signed_for_all_and_each_change_is_a_version() {
    each_store(async |mut world: World| {
        let store = world.hub.store.clone();
        assert_eq!(signed(&mut world).await, None, "nothing was ever said");
        relays::expect(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
        assert_eq!(signed(&mut world).await, None, "it hasn't joined yet");
        relays::set(&store, &relay("oslo", "oslo-2"), place("o2:5")).await.unwrap();
        let mut writing = store.write().await.unwrap();
        writing.tell_of_dial("site/oslo/relay/oslo-1").await.unwrap();
        writing.commit().await.unwrap();
        let (first, list) = signed(&mut world).await.unwrap();
        assert_eq!(hosts(&list), ["oslo oslo-1 o1:4433 o1:4434", "oslo oslo-2 o2:5 o2:4434"]);
        assert_eq!(signed(&mut world).await.unwrap(), (first, list), "nothing has changed");

        // Moved: it was told of and stays so, also while its next computer is awaited.
        relays::expect(&store, &relay("oslo", "oslo-1"), place("o9")).await.unwrap();
        relays::remove(&store, &relay("oslo", "oslo-2")).await.unwrap();
        let guests = ["home", "bergen", "home", "oslo"].map(str::to_owned).to_vec();
        assert_eq!(relays::set_guests(&store, "oslo", guests).await.unwrap(), ["bergen", "home"]);
        let (second, list) = signed(&mut world).await.unwrap();
        assert!(second > first);
        assert_eq!(hosts(&list), ["oslo oslo-1 o9:4433 o9:4434"]);
        assert!(list.takes("oslo", "home") && list.takes("oslo", "bergen") && !list.takes("oslo", "oslo"));
        relays::set_guests(&store, "oslo", vec!["home".to_owned()]).await.unwrap();
        assert!(!signed(&mut world).await.unwrap().1.takes("oslo", "bergen"));

        // Nobody is led to a relay that was denied, and who joins under its name says anew where it is.
        admission::deny(&store, &relay("oslo", "oslo-1"), world.now_ms(), "stolen").await.unwrap();
        let (third, list) = signed(&mut world).await.unwrap();
        assert!(third > second && hosts(&list).is_empty());
        assert!(relays::doors(&store, "oslo").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_was_put_back_says_what_it_knows_under_a_version_above() {
    each_store(async |mut world: World| {
        let store = world.hub.store.clone();
        relays::set(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
        relays::set_guests(&store, "oslo", vec!["home".to_owned()]).await.unwrap();
        for _ in 0..4 {
            relays::set(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
            relays::set(&store, &relay("oslo", "oslo-1"), place("o2")).await.unwrap();
            signed(&mut world).await;
            relays::set(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
            signed(&mut world).await;
        }
        let (known, _) = signed(&mut world).await.unwrap();
        let shown = of_relays(&mut world).await.unwrap();
        for rest in ["DELETE FROM papers WHERE kind = 5", "DELETE FROM papers WHERE kind = 5; DELETE FROM dials; DELETE FROM guests"] {
            world.meddle(rest).await;
            world.restart(false).await;
            world.hub.shown(&shown).await.unwrap();
            let (now, list) = signed(&mut world).await.unwrap();
            assert!(now > known, "{now} isn't above {known}");
            assert_eq!(hosts(&list).len(), usize::from(!rest.contains("dials")), "a list of before isn't what the database says");
        }
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_changes_nothing() {
    each_store(async |mut world: World| {
        let store = world.hub.store.clone();
        let agent: Name = format!("site/oslo/agent/{}", device(1)).parse().unwrap();
        let is_about = |said: Result<(), AdmissionError>, want: &str| match said {
            Err(AdmissionError::Wrong { field, .. }) => assert_eq!(field, want),
            other => panic!("{other:?}"),
        };
        is_about(relays::set(&store, &agent, place("o1")).await.map(drop), "relay");
        is_about(relays::set(&store, &relay("oslo", "oslo-1"), place("no host")).await.map(drop), "address");
        is_about(relays::set_guests(&store, "oslo", vec!["Home Office".to_owned()]).await.map(drop), "guests");
        is_about(relays::set_guests(&store, "Oslo!", Vec::new()).await.map(drop), "site");
        let crowd = (0..=GUESTS_MAX).map(|n| format!("site-{n}")).collect();
        is_about(relays::set_guests(&store, "oslo", crowd).await.map(drop), "guests");
        assert!(matches!(relays::remove(&store, &relay("oslo", "oslo-1")).await, Err(AdmissionError::Unknown(_))));
        assert_eq!(signed(&mut world).await, None);
    })
    .await;
}

#[tokio::test]
async fn more_relays_than_fit_into_one_message_are_refused_before_they_are_signed() {
    let mut world = World::new().await;
    let store = world.hub.store.clone();
    let host = "h".repeat(200);
    let mut kept = 0;
    let refused = loop {
        match relays::set(&store, &relay("oslo", &format!("oslo-{kept}")), place(&host)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(kept > 100 && refused.to_string().contains("no room"), "{kept}, {refused}");
    let (_, list) = signed(&mut world).await.unwrap();
    assert_eq!(hosts(&list).len(), kept);
}

fn relay(site: &str, id: &str) -> Name {
    Name::Relay { site: site.to_owned(), id: id.to_owned() }
}

fn place(address: &str) -> Place {
    Place { address: address.to_owned(), door: None }
}

/// Site, id, address and door of each.
fn hosts(list: &RelayList) -> Vec<String> {
    let of = |(site, id, RelayAt { address, door }): (&String, &String, &RelayAt)| format!("{site} {id} {address} {door}");
    list.sites.iter().flat_map(|(site, relays)| relays.relays.iter().map(move |(id, at)| of((site, id, at)))).collect()
}

async fn of_relays(world: &mut World) -> Option<Vec<u8>> {
    world.hub.control.look(world.now_ms()).await.unwrap();
    let signed = world.post(&[]).await.signed;
    signed.into_iter().find(|bytes| Signed::read(bytes).unwrap().kind == SignedKind::Relays.as_u8())
}

/// What a relay is given that holds nothing.
async fn signed(world: &mut World) -> Option<(Version, RelayList)> {
    let signed = Signed::read(&of_relays(world).await?).unwrap();
    Some((signed.version, RelayList::read(&signed.body).unwrap()))
}
