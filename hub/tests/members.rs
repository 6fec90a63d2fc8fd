//! Async: who gets a certificate, and who doesn't: the hub's word to those with a join token, to members, and to those whose time was up.
#![allow(clippy::unwrap_used)]

mod world;

use std::{sync::Arc, time::Duration};

use muster_certs::{
    Ca, DeviceKey, KeyRequest, Keys, Leaf, Report, Role, SystemTime, check_leaf, files,
    material::{CHAIN_CERTIFICATES_MAX, certificates},
    pair::Pair,
    read_leaf,
};
use muster_hub::{
    admission, asks,
    control::{Control, Own, Renews},
    own_leaf::{OwnLeaf, RETRY_MS},
    relays::{self, Place},
    report::{OfHub, report},
    signer::{HubAt, Lives, Signer, secret_digest},
    store::{Census, Grant, TokenRow, WaitingAsk},
};
use muster_mesh::{
    clock::{Clock, ManualClock},
    control_key::ControlKey,
    door::{Answer, Ask, Issued, Plea, Refusal, Said, Standing, Wish},
    ids::Version,
    message::{Bundle, Denial, DenyList, Signed, SignedKind},
    relay_list::RelayAt,
    seal::SealKey,
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use world::*;

const LIFE_MS: i64 = 30 * DAY_MS;
const LIVES: Lives = Lives { agent_ms: LIFE_MS, relay_ms: LIFE_MS };

#[tokio::test]
async fn a_token_makes_a_device_of_a_person_once() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let issued = office.enroll(&kari, "t").await.unwrap();
        assert_eq!((issued.join_state, issued.standing), (1, Standing::Approved));
        assert!(issued.name.starts_with("site/oslo/agent/"), "{}", issued.name);
        assert_eq!(issued.dial[0].name, "site/oslo/relay/oslo-1");
        let device = world.hub.store.devices(None, 10).await.unwrap();
        assert_eq!(device[0].person.as_deref(), Some("kari"));
        // The certificate is of the requested key, names whom the hub chose, and lives as long as the hub says.
        let chain = muster_certs::material::certificates("chain", &issued.chain, 4).unwrap();
        let leaf = check_leaf(&chain[0], "muster.test", &muster_certs::Expect::Exactly(issued.name().unwrap())).unwrap();
        assert_eq!(leaf.not_after_ms, (world.now_ms() + LIFE_MS) / 1_000 * 1_000);
        assert!(muster_certs::material::check_key(chain, &kari.request.key_pem).is_ok());
        // Used up.
        assert_eq!(office.enroll(&Device::new(), "t").await, Err(Refusal::Token));
        // The list of issued devices, which doesn't name it, doesn't take it from kari.
        assert!(!world.hub.store.set_listed(&[]).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn where_nobody_says_otherwise_a_computers_certificate_lives_thirty_days_and_a_relays_fourteen() {
    each_store(async |world| {
        let office = Office::with_lives(&world, Lives::default()).await;
        let mut lives = Vec::new();
        for role in ["agent", "relay"] {
            office.token(role, role, None, 1).await;
            let issued = office.enroll(&Device::new(), role).await.unwrap();
            let chain = muster_certs::material::certificates("chain", &issued.chain, 4).unwrap();
            lives.push((role, life(&muster_certs::read_leaf(&chain[0]).unwrap(), world.now_ms())));
        }
        assert_eq!(lives, [("agent", 30 * DAY_MS), ("relay", 14 * DAY_MS)]);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_given_again_and_counts_once() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let first = office.enroll(&kari, "t").await.unwrap();
        assert_eq!(office.enroll(&kari, "t").await.unwrap(), first);
        // Whoever stole the request, and not the device key, gets nothing.
        let request = KeyRequest::of_pem(&kari.request.key_pem).unwrap();
        let thief = Device { key: DeviceKey::generate().unwrap(), request, bundle: Version::default() };
        assert_eq!(office.enroll(&thief, "t").await, Err(Refusal::Unknown));
    })
    .await;
}

#[tokio::test]
async fn a_token_that_does_not_hold_makes_nobody() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 5).await;
        let plea = |wish: Wish| async { office.plead(&Device::new(), wish).await };
        let wrong = Wish::Enroll { token: id("t"), secret: [0; 32] };
        let unknown = Wish::Enroll { token: id("x"), secret: secret("t") };
        assert_eq!(plea(wrong).await, Err(Refusal::Token));
        assert_eq!(plea(unknown).await, Err(Refusal::Token));
        assert!(office.enroll(&Device::new(), "t").await.is_ok());
        assert!(world.hub.store.end_token(&hex(&id("t"))).await.unwrap());
        assert_eq!(office.enroll(&Device::new(), "t").await, Err(Refusal::Token));
        office.token("late", "agent", Some("kari"), 1).await;
        world.clock.advance(DAY_MS as u64);
        assert_eq!(office.enroll(&Device::new(), "late").await, Err(Refusal::Token));
        assert_eq!(world.hub.store.members("", 10).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_computer_of_a_sites_token_waits_until_an_admin_says_whose_it_is() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", None, 2).await;
        let (one, other) = (Device::new(), Device::new());
        let issued = office.enroll(&one, "t").await.unwrap();
        assert_eq!(issued.standing, Standing::Waiting);
        assert_eq!(office.enroll(&other, "t").await.unwrap().standing, Standing::Waiting);
        assert_eq!(world.hub.store.census().await.unwrap(), Census { unapproved: 2, ..Census::default() });
        let mut writing = world.hub.store.write().await.unwrap();
        let mut member = writing.member(&issued.name).await.unwrap().unwrap();
        member.approved = true;
        writing.keep_member(&member).await.unwrap();
        writing.commit().await.unwrap();
        // Asked again with the same key: the same certificate, and the news.
        let renewed = office.renew(&one, &issued).await.unwrap();
        assert_eq!((renewed.standing, &renewed.chain), (Standing::Approved, &issued.chain));
    })
    .await;
}

#[tokio::test]
async fn who_joins_in_the_very_second_of_its_names_denial_is_not_denied() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "relay", None, 2).await;
        let stolen = office.enroll(&Device::new(), "t").await.unwrap();
        // Both within one second.
        world.clock.advance(1_000 - (world.now_ms() % 1_000) as u64 + 300);
        let name = stolen.name().unwrap();
        muster_hub::control::deny(&world.hub.store, &name, world.now_ms(), "stolen").await.unwrap();
        world.clock.advance(300);
        let new = office.enroll(&Device::new(), "t").await.unwrap();
        let denied = muster_certs::Denied::new([(name, world.now_ms() - 300)]);
        assert!(denied.check(&leaf(&stolen)).is_err());
        denied.check(&leaf(&new)).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_denial_by_a_clock_that_is_wrong_denies_what_was_issued_and_nothing_after_it() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "relay", None, 3).await;
        let mut denied = office.enroll(&Device::new(), "t").await.unwrap();
        // Behind the signer's, as if the thief's renewal had been answered while the admin's word waited for it; and ahead of it.
        for off_ms in [-5_000, 5 * 60 * 1_000] {
            let name = denied.name().unwrap();
            admission::deny(&world.hub.store, &name, world.now_ms() + off_ms, "stolen").await.unwrap();
            let list = DenyList { made_ms: 0, denied: world.hub.store.denied(world.now_ms()).await.unwrap() }.denied();
            assert!(list.check(&leaf(&denied)).is_err(), "{off_ms}");
            assert!(world.hub.store.member(&denied.name).await.unwrap().unwrap().denied_ms.is_some());
            // The relay in its place.
            denied = office.enroll(&Device::new(), "t").await.unwrap();
            list.check(&leaf(&denied)).unwrap();
            assert!(leaf(&denied).not_before_ms <= world.now_ms(), "it counts from now on");
        }
    })
    .await;
}

#[tokio::test]
async fn a_member_renews_with_a_new_key_and_keeps_its_name() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let issued = office.enroll(&kari, "t").await.unwrap();
        world.clock.advance(15 * DAY_MS as u64);
        let kari = kari.with_new_request();
        let renewed = office.renew(&kari, &issued).await.unwrap();
        assert_eq!((&renewed.name, renewed.join_state), (&issued.name, 1));
        assert_ne!(renewed.chain, issued.chain);
        // Another device's key asks in vain.
        assert_eq!(office.renew(&Device::new(), &issued).await, Err(Refusal::Unknown));
        let nobody = Issued { name: "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617".into(), ..issued };
        assert_eq!(office.renew(&kari.with_new_request(), &nobody).await, Err(Refusal::Unknown));
    })
    .await;
}

#[tokio::test]
async fn who_slept_past_the_end_comes_back_twice_alone_and_then_by_an_admins_word() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let mut kari = Device::new();
        let mut issued = office.enroll(&kari, "t").await.unwrap();
        for join_state in [2, 3] {
            world.clock.advance((LIFE_MS + DAY_MS) as u64);
            kari = kari.with_new_request();
            let back = office.renew(&kari, &issued).await.unwrap();
            assert_eq!(back.join_state, join_state);
            // The answer was lost on the way, and the old state asks again with the same key: no clone.
            assert_eq!(office.renew(&kari, &issued).await.unwrap(), back);
            issued = back;
        }
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        kari = kari.with_new_request();
        assert_eq!(office.said(&kari, renewal(&issued)).await, Said::Waiting);
        let mut writing = world.hub.store.write().await.unwrap();
        let mut member = writing.member(&issued.name).await.unwrap().unwrap();
        assert_eq!((member.waits_ms, member.cloned_ms), (Some(world.now_ms()), None));
        assert_eq!(world.hub.store.census().await.unwrap(), Census { waiting: 1, ..Census::default() });
        member.allowed = 1;
        writing.keep_member(&member).await.unwrap();
        writing.commit().await.unwrap();
        issued = office.renew(&kari, &issued).await.unwrap();
        assert_eq!(issued.join_state, 4);
        // The approval was for once.
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        assert_eq!(office.said(&kari.with_new_request(), renewal(&issued)).await, Said::Waiting);
        // Only those of the last twelve months count.
        let mut writing = world.hub.store.write().await.unwrap();
        let (_, all) = writing.issued_to(&issued.name, 0).await.unwrap();
        let (_, none) = writing.issued_to(&issued.name, world.now_ms()).await.unwrap();
        assert_eq!((all, none), (3, 0));
    })
    .await;
}

#[tokio::test]
async fn who_came_back_twice_alone_does_so_again_when_the_first_time_is_a_year_ago_and_not_a_moment_sooner() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let mut kari = Device::new();
        let mut issued = office.enroll(&kari, "t").await.unwrap();
        let mut recovered = Vec::new();
        for _ in 0..2 {
            world.clock.advance((LIFE_MS + DAY_MS) as u64);
            kari = kari.with_new_request();
            issued = office.renew(&kari, &issued).await.unwrap();
            recovered.push(world.now_ms());
        }
        // What issues lives no longer than a year itself.
        let mut ca = office.ca();
        ca.start_issuing(&ca.root_folder()).unwrap();
        ca.advance(None, false).unwrap();
        office.signer.look().await.unwrap();
        kari = kari.with_new_request();
        let a_year_on_ms = recovered[0] + 365 * DAY_MS;
        for (at_ms, when) in [
            (world.now_ms() + LIFE_MS + DAY_MS, "a third time"),
            (a_year_on_ms - DAY_MS, "a day before"),
            (a_year_on_ms - 1, "just before"),
        ] {
            world.clock.advance((at_ms - world.now_ms()) as u64);
            assert_eq!(office.said(&kari, renewal(&issued)).await, Said::Waiting, "{when}");
        }
        world.clock.advance(1);
        let back = office.renew(&kari, &issued).await.unwrap();
        assert_eq!(back.join_state, issued.join_state + 1);
        let member = world.hub.store.member(&issued.name).await.unwrap().unwrap();
        assert_eq!((member.waits_ms, member.allowed), (None, 0), "nobody had to approve it");
    })
    .await;
}

#[tokio::test]
async fn a_copied_disk_is_noticed_and_gets_nothing() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let copied = office.enroll(&kari, "t").await.unwrap();
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        let issued = office.renew(&kari.with_new_request(), &copied).await.unwrap();
        // The copy knows only the state from before.
        assert_eq!(office.renew(&kari.with_new_request(), &copied).await, Err(Refusal::Cloned));
        let member = world.hub.store.member(&issued.name).await.unwrap().unwrap();
        assert_eq!(member.cloned_ms, Some(world.now_ms()));
        assert_eq!(world.hub.store.census().await.unwrap(), Census { cloned: 1, ..Census::default() });
        // The later one goes on.
        assert!(office.renew(&kari.with_new_request(), &issued).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn who_was_denied_gets_nothing_not_even_what_it_had() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let issued = office.enroll(&kari, "t").await.unwrap();
        let mut writing = world.hub.store.write().await.unwrap();
        let mut member = writing.member(&issued.name).await.unwrap().unwrap();
        member.denied_ms = Some(world.now_ms());
        writing.keep_member(&member).await.unwrap();
        writing.commit().await.unwrap();
        assert_eq!(office.renew(&kari, &issued).await, Err(Refusal::Denied));
        assert_eq!(office.renew(&kari.with_new_request(), &issued).await, Err(Refusal::Denied));
    })
    .await;
}

#[tokio::test]
async fn whom_only_a_relay_still_knows_to_be_denied_gets_nothing_and_who_joined_under_the_name_since_does() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        office.token("r", "relay", None, 2).await;
        let (kari, stolen) = (Device::new(), Device::new());
        let (issued, of_stolen) = (office.enroll(&kari, "t").await.unwrap(), office.enroll(&stolen, "r").await.unwrap());
        // The list is from after this database's backup was taken.
        let denial = |name: &str| Denial { name: name.into(), issued_before_ms: world.now_ms() + 5, until_ms: world.now_ms() + LIFE_MS };
        let list = DenyList { made_ms: world.now_ms(), denied: vec![denial(&issued.name), denial(&of_stolen.name)] };
        let signed = Signed::new(SignedKind::Deny, Version { epoch: 1, n: 9 }, list.bytes().unwrap());
        let list = mesh_of_one().key().sign(&signed).unwrap();
        world.clock.advance(1_000);
        world.hub.shown(&list).await.unwrap();
        assert_eq!(office.renew(&kari.with_new_request(), &issued).await, Err(Refusal::Denied));
        assert_eq!(office.renew(&kari, &issued).await, Err(Refusal::Denied));
        assert_eq!(office.renew(&stolen.with_new_request(), &of_stolen).await, Err(Refusal::Denied));
        assert_eq!(world.hub.store.census().await.unwrap(), Census { denied: 2, ..Census::default() });
        // The new computer in the stolen one's place, also when the list is shown once more.
        let new = Device::new();
        let of_new = office.enroll(&new, "r").await.unwrap();
        world.hub.shown(&list).await.unwrap();
        assert!(office.renew(&new.with_new_request(), &of_new).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_relay_joins_under_the_name_that_its_token_says_and_may_be_replaced() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "relay", None, 1).await;
        let first = Device::new();
        let told = async || world.hub.store.relay_sites().await.unwrap()["oslo"].relays.contains_key("oslo-7");
        assert!(!told().await, "agents are led to a relay that isn't there");
        let issued = office.enroll(&first, "t").await.unwrap();
        assert!(told().await);
        // Denied, and joined again with a token from before: agents are led to it again.
        admission::deny(&world.hub.store, &issued.name().unwrap(), world.now_ms(), "lost").await.unwrap();
        assert!(!told().await);
        world.clock.advance(2_000);
        assert_eq!((issued.name.as_str(), issued.standing), ("site/oslo/relay/oslo-7", Standing::Approved));
        assert_eq!((issued.dial[0].name.as_str(), issued.dial[0].address.as_str()), ("hub/hub-1", "hub:8444"));
        office.token("again", "relay", None, 1).await;
        let second = Device::new();
        assert_eq!(office.enroll(&second, "again").await.unwrap().join_state, 2);
        assert_eq!(office.renew(&first.with_new_request(), &issued).await, Err(Refusal::Unknown), "the old computer is nobody now");
    })
    .await;
}

#[tokio::test]
async fn whoever_came_back_after_the_backup_was_taken_is_no_copied_disk() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let copied = office.enroll(&kari, "t").await.unwrap();
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        let issued = office.renew(&kari.with_new_request(), &copied).await.unwrap();
        assert_eq!(issued.join_state, 2);
        // The database is one from before that.
        world.meddle("DELETE FROM certificates WHERE recovery = 1; UPDATE members SET join_state = 1").await;
        world.clock.advance(60_000);
        assert_eq!(office.renew(&kari.with_new_request(), &issued).await, Err(Refusal::Cloned), "nobody said that it is an old one");
        world.meddle("UPDATE members SET cloned_ms = NULL").await;
        world.another_hub(true).await;
        world.clock.advance(60_000);
        let back = office.renew(&kari.with_new_request(), &issued).await.unwrap();
        assert!(back.join_state > issued.join_state);
        // From here on the database knows better.
        for (old, state) in [(&copied, 1), (&issued, 2)] {
            assert_eq!(office.renew(&kari.with_new_request(), old).await, Err(Refusal::Cloned), "{state}");
        }
        assert_eq!(office.renew(&kari.with_new_request(), &Issued { join_state: 99, ..back }).await, Err(Refusal::Cloned));
    })
    .await;
}

#[tokio::test]
async fn a_denial_counts_until_whatever_the_database_does_not_know_of_has_ended() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let issued = office.enroll(&Device::new(), "t").await.unwrap();
        // It has ended, as far as this database knows; it was put back, and there may be a later one.
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        admission::deny(&world.hub.store, &issued.name().unwrap(), world.now_ms(), "lost").await.unwrap();
        let denied = world.hub.store.denied(world.now_ms() + LIFE_MS).await.unwrap();
        assert_eq!(denied.iter().map(|denial| &denial.name).collect::<Vec<_>>(), [&issued.name]);
        assert!(world.hub.store.denied(world.now_ms() + 91 * DAY_MS).await.unwrap().is_empty(), "years don't fit into a message");
    })
    .await;
}

#[tokio::test]
async fn an_old_disk_that_asks_with_its_old_key_is_a_copied_disk_all_the_same() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let copied = office.enroll(&kari, "t").await.unwrap();
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        let back = office.renew(&kari.with_new_request(), &copied).await.unwrap();
        // The answer of then would tell it the count of now.
        assert_eq!(office.said(&kari, renewal(&copied)).await, Said::Refused(Refusal::Cloned));
        assert_eq!(office.enroll(&kari, "t").await, Err(Refusal::Token));
        assert_eq!(world.hub.store.census().await.unwrap(), Census { cloned: 1, ..Census::default() });
        assert!(office.renew(&kari.with_new_request(), &back).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn an_old_disk_that_asks_with_its_old_key_after_a_rotation_is_a_copied_disk_all_the_same() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let copied = office.enroll(&kari, "t").await.unwrap();
        world.clock.advance((LIFE_MS + DAY_MS) as u64);
        office.renew(&kari.with_new_request(), &copied).await.unwrap();
        let mut ca = office.ca();
        ca.start_issuing(&ca.root_folder()).unwrap();
        ca.advance(Some(&office.report(&world).await), true).unwrap();
        office.signer.look().await.unwrap();
        // The key of its first certificate, and the count of then.
        assert_eq!(office.said(&kari, renewal(&copied)).await, Said::Refused(Refusal::Cloned));
    })
    .await;
}

#[tokio::test]
async fn what_is_signed_over_an_old_number_or_for_another_hub_is_not_read() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let nonce = office.nonce().await;
        let wish = Wish::Enroll { token: id("t"), secret: secret("t") };
        let plea = kari.plea(wish.clone(), nonce);
        let ask = plea.seal(&kari.key, &office.signer.seal()).unwrap().bytes().unwrap();
        world.clock.advance(5 * 60 * 1_000 + 1);
        assert_eq!(office.signer.answer(&ask).await, Answer::Unreadable);
        let made_up = kari.plea(wish.clone(), [7; 32]).seal(&kari.key, &office.signer.seal()).unwrap().bytes().unwrap();
        assert_eq!(office.signer.answer(&made_up).await, Answer::Unreadable);
        let other = SealKey::generate().unwrap().public();
        let elsewhere = kari.plea(wish, office.nonce().await).seal(&kari.key, &other).unwrap().bytes().unwrap();
        assert_eq!(office.signer.answer(&elsewhere).await, Answer::Unreadable);
        for rubbish in [&b""[..], b"rubbish", &[1, 0], &[0; 20_000]] {
            assert_eq!(office.signer.answer(rubbish).await, Answer::Unreadable);
        }
    })
    .await;
}

#[tokio::test]
async fn two_hubs_that_hear_one_request_at_once_issue_one_certificate() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    let office = Office::new(&world).await;
    office.token("t", "agent", Some("kari"), 1).await;
    let second = office.another(&world).await;
    let kari = Device::new();
    let wish = Wish::Enroll { token: id("t"), secret: secret("t") };
    let (plea, ask) = office.asks(&kari, wish).await;
    let both = tokio::join!(office.signer.answer(&ask), second.answer(&ask));
    // One of them may be told to come again, and then hears the same.
    let again = office.signer.answer(&ask).await;
    for answer in [both.0, both.1, again] {
        match answer {
            Answer::Said { body, tag } => {
                assert!(matches!(plea.said(&body, &tag).unwrap(), Said::Issued(_) | Said::Refused(Refusal::Token)))
            }
            Answer::Busy { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.hub.store.members("", 10).await.unwrap().len(), 1);
    assert!(office.enroll(&kari, "t").await.is_ok());
}

#[tokio::test]
async fn two_hubs_that_hear_one_recovery_at_once_see_no_clone_in_it() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    let office = Office::new(&world).await;
    office.token("t", "agent", Some("kari"), 1).await;
    let second = office.another(&world).await;
    let kari = Device::new();
    let issued = office.enroll(&kari, "t").await.unwrap();
    world.clock.advance((LIFE_MS + DAY_MS) as u64);
    let kari = kari.with_new_request();
    let (plea, ask) = office.asks(&kari, renewal(&issued)).await;
    // Both are under way before either is answered.
    let mut held = world.hub.store.write().await.unwrap();
    held.member(&issued.name).await.unwrap();
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let release = async {
        while world.one(waiting).await < 2 {}
        held.commit().await.unwrap();
    };
    let (one, other, ()) = tokio::join!(office.signer.answer(&ask), second.answer(&ask), release);
    for answer in [one, other] {
        let Answer::Said { body, tag } = answer else { panic!("{answer:?}") };
        let Said::Issued(back) = plea.said(&body, &tag).unwrap() else { panic!() };
        assert_eq!(back.join_state, 2);
    }
    assert_eq!(world.hub.store.census().await.unwrap(), Census { members: 1, ..Census::default() });
}

#[tokio::test]
async fn at_a_hub_without_the_issuing_key_one_hears_the_word_of_the_one_that_has_it() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        assert!(world.hub.signer.is_none());
        let kari = Device::new();
        let wish = || Wish::Enroll { token: id("t"), secret: secret("t") };
        let Said::Issued(issued) = office.said_elsewhere(&world, &kari, wish()).await else { panic!() };
        // Whoever lost the answer comes again, at whichever hub, with a plea of its own, and hears the same.
        assert_eq!(office.said_elsewhere(&world, &kari, wish()).await, Said::Issued(issued.clone()));
        assert_eq!(office.enroll(&kari, "t").await.unwrap(), issued);
        assert_eq!(office.said_elsewhere(&world, &Device::new(), wish()).await, Said::Refused(Refusal::Token));
        // What was fetched doesn't lie there any more; the number does.
        assert_eq!(world.one("SELECT COUNT(*) FROM door_asks").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_number_from_before_the_signer_went_away_is_not_given_out() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        asks::work(&office.signer, &office.store).await.unwrap();
        let nonce = Ask::Nonce.bytes().unwrap();
        assert!(matches!(world.hub.ask(&nonce).await, Answer::Nonce(_)));
        world.clock.advance(2 * 60 * 1_000 + 1);
        assert!(matches!(world.hub.ask(&nonce).await, Answer::Busy { .. }));
        asks::work(&office.signer, &office.store).await.unwrap();
        let Answer::Nonce(number) = world.hub.ask(&nonce).await else { panic!() };
        // It is the newest one: not one that the signer won't take any more in a moment.
        assert_eq!(number[..8], world.now_ms().to_le_bytes());
    })
    .await;
}

#[tokio::test]
async fn the_queue_is_bounded_and_what_nobody_answers_goes() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        assert_eq!(world.hub.ask(b"rubbish").await, Answer::Unreadable);
        assert_eq!(world.one("SELECT COUNT(*) FROM door_asks").await, 0, "rubbish takes a place");
        for n in 0..512 {
            let waiting = WaitingAsk { id: n.to_string(), ask: b"nobody's".to_vec() };
            assert!(world.hub.store.queue_ask(&waiting, world.now_ms(), 512).await.unwrap());
        }
        let kari = Device::new();
        let plea = kari.plea(Wish::Enroll { token: id("t"), secret: secret("t") }, office.nonce().await);
        let ask = plea.seal(&kari.key, &office.signer.seal()).unwrap().bytes().unwrap();
        assert!(matches!(world.hub.ask(&ask).await, Answer::Busy { .. }));
        assert_eq!(world.one("SELECT COUNT(*) FROM door_asks").await, 512, "the queue has no bound");
        world.clock.advance(2 * 60 * 1_000 + 1);
        let wish = Wish::Enroll { token: id("t"), secret: secret("t") };
        assert!(matches!(office.said_elsewhere(&world, &kari, wish).await, Said::Issued(_)));
        assert_eq!(world.one("SELECT COUNT(*) FROM door_asks").await, 1);
    })
    .await;
}

// --- the office ---

/// A hub that signs by the CA's folder.
struct Led {
    control: Control,
    keys: Arc<Keys>,
}

impl Led {
    async fn new(office: &Office, world: &World) -> Led {
        let ca = office.ca();
        let own = ca.issue_hub("hub-1").unwrap();
        let keys = Keys::from_pem(&own.pem, &own.key_pem, ca.roots_pem(), Role::Hub, Arc::new(SystemTime)).unwrap();
        let key_pem = KeyRequest::generate().unwrap().key_pem;
        let chain = office.signer.control_chain(2, &key_pem).unwrap();
        let key = ControlKey::from_pem(2, &key_pem).unwrap();
        let state = world.folder.path().to_owned();
        let own = Own { key, chain, renews: Some(Renews::Signer { signer: office.signer.clone(), key_pem, state }) };
        let control = Control::open(office.store.clone(), keys.clone(), own, false, world.now_ms()).await.unwrap();
        Led { control, keys }
    }
}

/// The time of a test's clock, for the CA.
#[derive(Debug)]
struct At(ManualClock);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().wall_ms.unsigned_abs())))
    }
}

struct Office {
    signer: Arc<Signer>,
    store: Arc<muster_hub::store::Store>,
    seal: Vec<u8>,
}

#[tokio::test]
async fn a_running_hub_follows_each_step_of_a_rotation_and_its_report_lets_the_next_one_pass() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        let hub = Led::new(&office, &world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let mut kari = Device::new();
        let first = office.enroll(&kari, "t").await.unwrap();
        let mut issued = first.clone();
        let mut ca = office.ca();
        let old = ca.issuer_key().to_owned();
        let refused = |ca: &mut Ca, report: &Report| ca.advance(Some(report), false).unwrap_err().to_string();

        ca.start_root(&ca.root_folder()).unwrap();
        let bundle = look(&office, &hub, &world).await;
        assert_eq!((bundle.ca, bundle.issuer.as_str(), roots(&bundle)), (2, old.as_str(), 2));
        ca.advance(Some(&office.report(&world).await), false).unwrap();
        assert!(refused(&mut ca, &office.report(&world).await).contains("still signed by the old issuing CA"));
        let bundle = look(&office, &hub, &world).await;
        assert_eq!((bundle.ca, bundle.issuer.as_str(), roots(&bundle)), (2, ca.issuer_key(), 2));
        assert_eq!(bundle.crosses.matches("BEGIN CERTIFICATE").count(), 1);
        let control = bundle.controls.iter().find(|control| control.n == 2).unwrap();
        let control = muster_certs::material::certificates("chain", &control.chain, 4).unwrap();
        assert_eq!(
            muster_certs::read_leaf(&control[0]).unwrap().issuer.as_deref(),
            Some(ca.issuer_key()),
            "the control certificate moves, too"
        );
        // The hub and her computer hold certificates of the old one: retiring it is refused, with their names.
        let cut_off = refused(&mut ca, &office.report(&world).await);
        assert!(cut_off.contains(&issued.name) && cut_off.contains("hub/hub-1"), "{cut_off}");
        let renewed = ca.issue_hub("hub-1").unwrap();
        hub.keys.replace_pem(&renewed.pem, &renewed.key_pem, ca.roots_pem()).unwrap();
        world.clock.advance(1_000);
        kari = kari.with_new_request();
        issued = office.renew(&kari, &issued).await.unwrap();
        ca.advance(Some(&office.report(&world).await), false).unwrap();
        let bundle = look(&office, &hub, &world).await;
        assert_eq!((bundle.ca, roots(&bundle)), (3, 1));
        assert_eq!(hub.keys.roots_pem(), bundle.roots, "at the hub's own ports");
        // She never said that she has the new root.
        assert!(refused(&mut ca, &office.report(&world).await).contains("it holds the old roots"));
        world.clock.advance(1_000);
        kari = kari.holding(world.hub.store.newest_paper(SignedKind::Bundle.as_u8()).await.unwrap().unwrap().version);
        issued = office.renew(&kari, &issued).await.unwrap();
        ca.advance(Some(&office.report(&world).await), false).unwrap();
        assert_eq!(ca.state().turn, None);
        let bundle = look(&office, &hub, &world).await;
        assert_eq!((bundle.ca, bundle.crosses.as_str()), (3, ""));
        kari = kari.with_new_request();
        assert_eq!(office.renew(&kari, &issued).await.unwrap().roots, ca.roots_pem());
    })
    .await;
}

#[tokio::test]
async fn the_hub_that_issues_renews_its_own_certificate_where_it_lies() {
    let world = World::new().await;
    let office = Office::new(&world).await;
    let file = |name: &str| world.folder.path().join(name);
    let (ca, at) = (office.ca(), Pair { certificate: file("hub.pem"), key: file("hub.key") });
    let issued = ca.issue_hub("hub-1").unwrap();
    files::write_public(&at.certificate, issued.pem.as_bytes()).unwrap();
    files::write_secret(&at.key, issued.key_pem.as_bytes()).unwrap();
    files::write_public(&file("roots.pem"), ca.roots_pem().as_bytes()).unwrap();
    let time = Arc::new(At(world.clock.clone()));
    let keys = Keys::load(&at.certificate, &at.key, &file("roots.pem"), Role::Hub, time).unwrap();
    let own = OwnLeaf::new(office.signer.clone(), keys.clone(), at.clone(), file("roots.pem"));
    let first = keys.leaf().serial;
    own.look(world.now_ms()).unwrap();
    assert_eq!(keys.leaf().serial, first, "it isn't time yet");
    world.clock.advance(46 * DAY_MS as u64);
    own.look(world.now_ms()).unwrap();
    assert_ne!(keys.leaf().serial, first);
    assert_eq!(life(&keys.leaf(), world.now_ms()), 90 * DAY_MS);
    assert_eq!(at.open(&ca).unwrap().serial, keys.leaf().serial);
    // A crash between the two files: the pair doesn't fit, until the next look puts the certificate beside its key.
    std::fs::rename(&at.certificate, file("hub.pem.new")).unwrap();
    files::write_public(&at.certificate, issued.pem.as_bytes()).unwrap();
    assert_eq!(at.open(&ca).unwrap().serial, keys.leaf().serial);
    // What can't be written is told, and what was in use stays.
    files::write_public(&at.certificate, b"rubbish").unwrap();
    world.clock.advance(46 * DAY_MS as u64);
    assert!(own.look(world.now_ms()).unwrap_err().to_string().contains("hub.pem"));
}

#[tokio::test]
async fn a_hub_that_cannot_write_where_its_certificate_lies_issues_nothing_and_says_so_every_few_minutes() {
    let world = World::new().await;
    let office = Office::new(&world).await;
    let file = |name: &str| world.folder.path().join(name);
    // No folder has room for a longer name, so nothing can be laid beside it.
    let (ca, at) = (office.ca(), Pair { certificate: file(&"h".repeat(255)), key: file("hub.key") });
    let issued = ca.issue_hub("hub-1").unwrap();
    std::fs::write(&at.certificate, issued.pem.as_bytes()).unwrap();
    files::write_secret(&at.key, issued.key_pem.as_bytes()).unwrap();
    files::write_public(&file("roots.pem"), ca.roots_pem().as_bytes()).unwrap();
    let keys = Keys::load(&at.certificate, &at.key, &file("roots.pem"), Role::Hub, Arc::new(At(world.clock.clone()))).unwrap();
    let own = OwnLeaf::new(office.signer.clone(), keys.clone(), at, file("roots.pem"));
    let listed = || std::fs::read_to_string(file("ca/certificates.jsonl")).unwrap().lines().count();
    let before = listed();
    world.clock.advance(46 * DAY_MS as u64);
    for _ in 0..3 {
        assert!(own.look(world.now_ms()).unwrap_err().to_string().contains("cannot write"));
        for _ in 0..3 {
            world.clock.advance(1_000);
            own.look(world.now_ms()).unwrap();
        }
        world.clock.advance(RETRY_MS.unsigned_abs());
    }
    assert_eq!(listed(), before, "certificates are listed that lie nowhere");
    assert!(!file("hub.key.new").exists());
    assert_eq!(keys.leaf().not_after_ms, issued.not_after_ms, "what was in use stays");
}

#[tokio::test]
async fn the_report_names_each_living_certificate_of_who_was_denied() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        let mut serials = Vec::new();
        for person in ["kari", "ola"] {
            office.token(person, "agent", Some(person), 1).await;
            let device = Device::new();
            let first = office.enroll(&device, person).await.unwrap();
            world.clock.advance(1_000);
            let second = office.renew(&device.with_new_request(), &first).await.unwrap();
            let serial = |issued: &Issued| {
                let chain = certificates("certificate", &issued.chain, CHAIN_CERTIFICATES_MAX).unwrap();
                read_leaf(&chain[0]).unwrap().serial
            };
            serials.push((first.name.clone(), serial(&first), serial(&second)));
            world.clock.advance(1_000);
        }
        let (kari, first, second) = &serials[0];
        muster_hub::control::deny(&office.store, &kari.parse().unwrap(), world.now_ms(), "lost").await.unwrap();
        let members = office.report(&world).await.members;
        let told: Vec<(&str, Vec<&str>)> = members
            .iter()
            .map(|one| (&*one.name, one.earlier.iter().map(|leaf| &*leaf.serial).chain(one.serial.as_deref()).collect()))
            .collect();
        let mut expected = [(&**kari, vec![&**first, &**second]), (&*serials[1].0, vec![&*serials[1].2])];
        expected.sort();
        assert_eq!(told, expected);
        world.clock.advance(LIFE_MS as u64 + 1_000);
        assert!(office.report(&world).await.members.iter().all(|one| one.earlier.is_empty()), "what has ended needs no list");
    })
    .await;
}

#[tokio::test]
async fn a_device_that_enrols_again_stays_who_it_is_and_whose() {
    each_store(async |world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        office.token("site", "agent", None, 9).await;
        let kari = Device::new();
        let first = office.enroll(&kari, "t").await.unwrap();
        let again = office.enroll(&kari.with_new_request(), "site").await.unwrap();
        assert_eq!((again.name.as_str(), again.join_state, again.standing), (first.name.as_str(), 2, Standing::Approved));
        let devices = world.hub.store.devices(None, 10).await.unwrap();
        assert_eq!((devices.len(), devices[0].person.as_deref()), (1, Some("kari")));
        // By a token for kari, too; by one for somebody else it would give all that is kari's to them.
        office.token("ola", "agent", Some("ola"), 1).await;
        office.token("kari", "agent", Some("kari"), 1).await;
        assert_eq!(office.enroll(&kari.with_new_request(), "ola").await, Err(Refusal::OtherPerson));
        assert_eq!(office.enroll(&kari.with_new_request(), "kari").await.unwrap().name, first.name);
        assert!(office.enroll(&Device::new(), "ola").await.is_ok(), "it wasn't used up");
        // Another computer is another device, and so is one that was denied.
        assert_ne!(office.enroll(&Device::new(), "site").await.unwrap().name, first.name);
        muster_hub::control::deny(&office.store, &first.name().unwrap(), world.now_ms(), "lost").await.unwrap();
        let anew = office.enroll(&kari.with_new_request(), "site").await.unwrap();
        assert_ne!(anew.name, first.name);
        assert_eq!(anew.standing, Standing::Waiting);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_was_lost_before_a_rotation_is_given_again_by_the_new_ca_and_is_no_clone() {
    each_store(async |mut world| {
        let office = Office::new(&world).await;
        office.token("t", "agent", Some("kari"), 1).await;
        let kari = Device::new();
        let lost = office.enroll(&kari, "t").await.unwrap();
        let mut ca = office.ca();
        ca.start_issuing(&ca.root_folder()).unwrap();
        ca.advance(None, false).unwrap();
        office.signer.look().await.unwrap();
        let again = office.enroll(&kari, "t").await.unwrap();
        assert_eq!((again.name.clone(), again.join_state), (lost.name.clone(), 1));
        assert_ne!(again.chain, lost.chain);
        // The same of a recovery, which raises the join state.
        world.clock.advance(2 * LIFE_MS as u64);
        let request = kari.with_new_request();
        let lost = office.renew(&request, &again).await.unwrap();
        assert_eq!(lost.join_state, 2);
        ca.back().unwrap();
        office.signer.look().await.unwrap();
        assert_eq!(office.renew(&request, &again).await.unwrap().join_state, 2);
        world.restart(false).await;
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_does_not_open_changes_nothing_and_is_told() {
    let world = World::new().await;
    let office = Office::new(&world).await;
    let state = world.folder.path().join("ca/rotation.json");
    std::fs::write(&state, "rubbish").unwrap();
    let error = office.signer.look().await.unwrap_err().to_string();
    assert!(error.contains("rotation.json") && error.contains("what was in force stays"), "{error}");
    office.token("t", "agent", Some("kari"), 1).await;
    assert!(office.enroll(&Device::new(), "t").await.is_ok());
    std::fs::remove_file(&state).unwrap();
    office.signer.look().await.unwrap();
}

/// A second of the running hub.
async fn look(office: &Office, hub: &Led, world: &World) -> Bundle {
    office.signer.look().await.unwrap();
    hub.control.look(world.now_ms()).await.unwrap();
    Bundle::read(&world.hub.store.newest_paper(SignedKind::Bundle.as_u8()).await.unwrap().unwrap().body).unwrap()
}

/// How long a certificate lives that was issued now: it is valid for the ten minutes before that, too.
fn life(leaf: &Leaf, now_ms: i64) -> i64 {
    assert_eq!(leaf.not_before_ms, now_ms - 10 * 60 * 1_000);
    leaf.not_after_ms - now_ms
}

fn roots(bundle: &Bundle) -> usize {
    bundle.roots.matches("BEGIN CERTIFICATE").count()
}

impl Office {
    /// As `muster-certs` opens it.
    fn ca(&self) -> Ca {
        self.signer.ca().reopen().unwrap()
    }

    async fn report(&self, world: &World) -> Report {
        report(&self.store, "muster.test", OfHub::default(), world.now_ms()).await.unwrap()
    }

    async fn new(world: &World) -> Office {
        Office::with_lives(world, LIVES).await
    }

    async fn with_lives(world: &World, lives: Lives) -> Office {
        let name = "site/oslo/relay/oslo-1".parse().unwrap();
        relays::set(&world.hub.store, &name, Place { address: "r:1".into(), door: Some("r:2".into()) }).await.unwrap();
        Ca::init_at(&world.folder.path().join("ca"), "muster.test", Arc::new(At(world.clock.clone()))).unwrap();
        let seal = SealKey::generate().unwrap().to_bytes();
        Office { signer: Arc::new(signer(world, &seal, lives)), store: world.hub.store.clone(), seal }
    }

    /// One more hub with the same keys.
    async fn another(&self, world: &World) -> Signer {
        signer(world, &self.seal, LIVES)
    }

    /// A token of this name, for a day.
    async fn token(&self, name: &str, role: &str, person: Option<&str>, uses: i64) {
        let relay = (role == "relay").then(|| "oslo-7".to_owned());
        let person = person.map(str::to_owned);
        let row = TokenRow {
            id: hex(&id(name)),
            secret: secret_digest(&secret(name)),
            role: role.into(),
            grant: Grant { site: "oslo".into(), place: relay.is_some().then(place), relay, display: person.clone(), person },
            uses_left: uses,
            made_ms: 0,
            ends_ms: self.now_ms() + DAY_MS,
            made_by: "kari".into(),
        };
        self.store.add_token(&row).await.unwrap();
    }

    fn now_ms(&self) -> i64 {
        self.signer.now_ms()
    }

    async fn nonce(&self) -> [u8; 32] {
        let Answer::Nonce(nonce) = self.signer.answer(&Ask::Nonce.bytes().unwrap()).await else { panic!() };
        nonce
    }

    /// A plea over a number of now, and as it is sent.
    async fn asks(&self, device: &Device, wish: Wish) -> (Plea, Vec<u8>) {
        let plea = device.plea(wish, self.nonce().await);
        let ask = plea.seal(&device.key, &self.signer.seal()).unwrap().bytes().unwrap();
        (plea, ask)
    }

    async fn said(&self, device: &Device, wish: Wish) -> Said {
        let (plea, ask) = self.asks(device, wish).await;
        let Answer::Said { body, tag } = self.signer.answer(&ask).await else { panic!() };
        plea.said(&body, &tag).unwrap()
    }

    /// The same at a hub that hasn't the issuing key, while the one that has it works.
    async fn said_elsewhere(&self, world: &World, device: &Device, wish: Wish) -> Said {
        asks::work(&self.signer, &self.store).await.unwrap();
        let Answer::Nonce(nonce) = world.hub.ask(&Ask::Nonce.bytes().unwrap()).await else { panic!() };
        let plea = device.plea(wish, nonce);
        let ask = plea.seal(&device.key, &self.signer.seal()).unwrap().bytes().unwrap();
        let working = async { while asks::work(&self.signer, &self.store).await.unwrap() == 0 {} };
        let (answer, ()) = tokio::join!(world.hub.ask(&ask), working);
        let Answer::Said { body, tag } = answer else { panic!("{answer:?}") };
        plea.said(&body, &tag).unwrap()
    }

    async fn plead(&self, device: &Device, wish: Wish) -> Result<Issued, Refusal> {
        match self.said(device, wish).await {
            Said::Issued(issued) => Ok(issued),
            Said::Refused(refusal) => Err(refusal),
            Said::Waiting => panic!("it has to wait"),
        }
    }

    async fn enroll(&self, device: &Device, token: &str) -> Result<Issued, Refusal> {
        self.plead(device, Wish::Enroll { token: id(token), secret: secret(token) }).await
    }

    async fn renew(&self, device: &Device, issued: &Issued) -> Result<Issued, Refusal> {
        self.plead(device, renewal(issued)).await
    }
}

fn signer(world: &World, seal: &[u8], lives: Lives) -> Signer {
    let ca = Ca::open_at(&world.folder.path().join("ca"), Arc::new(At(world.clock.clone()))).unwrap();
    let hub = HubAt { name: "hub/hub-1".parse().unwrap(), address: "hub:8444".into(), door: "hub:8445".into() };
    let clock: Arc<dyn Clock> = Arc::new(world.clock.clone());
    Signer::new(world.hub.store.clone(), clock, ca, SealKey::from_bytes(seal).unwrap(), lives, hub)
}

struct Device {
    key: DeviceKey,
    request: KeyRequest,
    bundle: Version,
}

impl Device {
    fn new() -> Device {
        Device { key: DeviceKey::generate().unwrap(), request: KeyRequest::generate().unwrap(), bundle: Version::default() }
    }

    /// The same device with a new key for its next certificate.
    fn with_new_request(&self) -> Device {
        self.holding(self.bundle)
    }

    /// The same with a bundle.
    fn holding(&self, bundle: Version) -> Device {
        Device { key: DeviceKey::from_pem(self.key.to_pem()).unwrap(), request: KeyRequest::generate().unwrap(), bundle }
    }

    fn plea(&self, wish: Wish, nonce: [u8; 32]) -> Plea {
        Plea {
            wish,
            nonce,
            request: self.request.request.clone(),
            device_key: self.key.public(),
            reply_key: [9; 32],
            version: "0.1.0".into(),
            bundle: self.bundle,
        }
    }
}

fn leaf(issued: &Issued) -> muster_certs::Leaf {
    let chain = muster_certs::material::certificates("chain", &issued.chain, 4).unwrap();
    muster_certs::read_leaf(&chain[0]).unwrap()
}

fn place() -> RelayAt {
    RelayAt { address: "r7:1".into(), door: "r7:2".into() }
}

fn renewal(issued: &Issued) -> Wish {
    Wish::Renew { name: issued.name.clone(), join_state: issued.join_state }
}

fn id(token: &str) -> [u8; 8] {
    std::array::from_fn(|at| token.as_bytes().get(at).copied().unwrap_or(0))
}

fn secret(token: &str) -> [u8; 32] {
    std::array::from_fn(|at| token.as_bytes().get(at).copied().unwrap_or(7))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
