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
        let awaited = relays::expect(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
        assert_eq!((awaited.address.as_str(), awaited.door.as_str()), ("o1:4433", "o1:4434"));
        assert_eq!(signed(&mut world).await, None, "it hasn't joined yet");
        relays::set(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
        relays::set(&store, &relay("oslo", "oslo-2"), place("o2:5")).await.unwrap();
        let (first, list) = signed(&mut world).await.unwrap();
        assert_eq!(hosts(&list), ["oslo oslo-1 o1:4433 o1:4434", "oslo oslo-2 o2:5 o2:4434"]);
        assert_eq!(signed(&mut world).await.unwrap(), (first, list), "nothing has changed");

        // Its next computer is awaited somewhere else: until that is there, this one is.
        relays::expect(&store, &relay("oslo", "oslo-1"), place("o8")).await.unwrap();
        assert_eq!(signed(&mut world).await.unwrap().0, first);
        relays::set(&store, &relay("oslo", "oslo-1"), place("o9")).await.unwrap();
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
async fn what_a_relay_shows_stops_nothing_whatever_stands_in_it() {
    each_store(async |mut world: World| {
        let store = world.hub.store.clone();
        relays::set(&store, &relay("oslo", "oslo-1"), place("o1")).await.unwrap();
        signed(&mut world).await.unwrap();
        // As whoever has stolen a control key says it, or a hub of a later version.
        let say = |version, body: &[u8]| Signed::new(SignedKind::Relays, version, body.to_vec());
        let rubbish = say(Version { epoch: 1, n: 500 }, b"rubbish");
        let highest = say(Version { epoch: 2, n: u32::MAX }, b"");
        for shown in [rubbish, highest] {
            world.hub.shown(&world.hub.control.sign(&shown).unwrap()).await.unwrap();
            let (version, list) = signed(&mut world).await.unwrap();
            assert!(version > shown.version, "{version}");
            assert_eq!(hosts(&list), ["oslo oslo-1 o1:4433 o1:4434"]);
        }
        let last = say(Version { epoch: u32::MAX, n: 1 }, b"");
        assert!(world.hub.shown(&world.hub.control.sign(&last).unwrap()).await.is_err());
        world.restart(false).await;
        relays::set(&world.hub.store.clone(), &relay("oslo", "oslo-1"), place("o2")).await.unwrap();
        assert_eq!(hosts(&signed(&mut world).await.unwrap().1), ["oslo oslo-1 o2:4433 o2:4434"]);
    })
    .await;
}

#[tokio::test]
async fn nobody_is_led_to_a_relay_of_whose_denial_only_another_relay_still_knows() {
    each_store(async |mut world: World| {
        let stolen = relay("oslo", "oslo-1");
        let lead = async |world: &World| relays::set(&world.hub.store, &stolen, place("o1")).await.unwrap();
        lead(&world).await;
        admission::deny(&world.hub.store, &stolen, world.now_ms(), "stolen").await.unwrap();
        world.hub.control.look(world.now_ms()).await.unwrap();
        let is_deny = |bytes: &Vec<u8>| Signed::read(bytes).unwrap().kind == SignedKind::Deny.as_u8();
        let list = world.post(&[]).await.signed.into_iter().find(is_deny).unwrap();
        world.meddle("DELETE FROM denied; DELETE FROM papers WHERE kind = 3").await;
        lead(&world).await;
        world.restart(true).await;
        assert_eq!(hosts(&signed(&mut world).await.unwrap().1).len(), 1, "the backup knows nothing of it");
        world.hub.shown(&list).await.unwrap();
        assert!(hosts(&signed(&mut world).await.unwrap().1).is_empty());
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
    let host = ["h".repeat(60), "h".repeat(60), "h".repeat(60)].join(".");
    let mut kept = 0;
    let refused = loop {
        match relays::set(&store, &relay(&format!("site-{kept}"), "relay-1"), place(&host)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(kept > 100 && refused.to_string().contains("no room"), "{kept}, {refused}");
    let (_, list) = signed(&mut world).await.unwrap();
    assert_eq!(hosts(&list).len(), kept);
    // One more that is only awaited isn't promised anything either.
    let awaited = relays::expect(&store, &relay(&format!("site-{kept}"), "relay-1"), place(&host)).await;
    assert!(awaited.is_err_and(|error| error.to_string().contains("no room")));
}

#[tokio::test]
async fn a_site_has_as_many_relays_as_fit_into_an_answer() {
    let world = World::new().await;
    for n in 0..muster_mesh::limits::RELAYS_OF_A_SITE_MAX {
        relays::set(&world.hub.store, &relay("oslo", &format!("oslo-{n}")), place("o1")).await.unwrap();
    }
    let refused = relays::expect(&world.hub.store, &relay("oslo", "one-more"), place("o1")).await.unwrap_err();
    assert!(refused.to_string().contains("oslo has 16 relays"), "{refused}");
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
