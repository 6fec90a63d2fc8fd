//! Async: what the hub signs, who is denied, and what a hub that was put back from a backup learns from its relays.
#![allow(clippy::unwrap_used)]

mod world;

use muster_certs::{
    Denied, Identity, Issued, KeyRequest, Keys, Name, Role, SystemTime, When, files, issue_control, issued, issuer::leaf_life_ms,
};
use muster_hub::{
    config::ControlFiles,
    control::{self, Control, ControlError, Own, Renews},
    issued::Listed,
    laggards::GIVEN_MAX,
    relays::{self, Place},
    store::StoredPaper,
};
use muster_mesh::{
    control_key::{ControlKey, Controls, Unproven},
    ids::{Lane, Version},
    limits::CONTROLS_MAX,
    message::{Answer, Bundle, DenyList, Facts, HeldVersion, PostHead, Reason, Signed, SignedKind, Taken, Verdict},
};
use world::*;

#[tokio::test]
async fn all_that_a_hub_answers_is_proven_by_its_bundle() {
    each_store(async |mut world: World| {
        let taken = world.post(&[sealed(1), sealed(2)]).await;
        let (controls, _, bundle) = stranger().taking(&taken.signed[0], &Denied::default(), When::Taking(NOW)).unwrap();
        assert_eq!(bundle.roots, mesh_of_one().root);
        for bytes in taken.signed[1..].iter().chain(&taken.acks) {
            controls.read(bytes, &Denied::default()).unwrap();
        }
        assert_eq!(taken.acks.len(), 1);
        // Signed once, however often it is asked for.
        let again = world.post(&[]).await;
        assert_eq!(again.signed, taken.signed);
    })
    .await;
}

#[tokio::test]
async fn each_hubs_key_is_in_every_hubs_bundle() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    let mesh = mesh_of_one();
    let (key, chain) = ControlKey::issue(&mesh.issuer, 2, NOW).unwrap();
    let second = key.sign(&Signed::new(SignedKind::Policy, Version { epoch: 1, n: 1 }, Vec::new())).unwrap();
    let hub = mesh.issuer.issue(&Identity::new(DOMAIN, Name::Hub { id: "hub-2".into() }).unwrap(), NOW).unwrap();
    let keys = Keys::from_pem(&hub.pem, &hub.key_pem, &mesh.root, Role::Hub, std::sync::Arc::new(SystemTime)).unwrap();
    let own = Own { key, chain: chain.pem, renews: None };
    let other = Control::open(world.hub.store.clone(), keys, own, false, NOW).await.unwrap();
    world.hub.control.look(NOW).await.unwrap();
    for control in [&world.hub.control, &other] {
        let papers = control.newer_than(&[], &[]).unwrap();
        let (controls, signed, _) = stranger().taking(&papers[0], &Denied::default(), When::Taking(NOW)).unwrap();
        assert_eq!(signed.version, Version { epoch: 1, n: 2 });
        assert!(controls.read(&second, &Denied::default()).is_ok());
    }
}

#[tokio::test]
async fn what_an_ended_key_signed_is_believed_by_nobody_from_the_new_bundle_on() {
    each_store(async |mut world: World| {
        let mesh = mesh_of_one();
        let (stolen, chain) = ControlKey::issue(&mesh.issuer, 2, NOW).unwrap();
        let mut writing = world.hub.store.write().await.unwrap();
        writing.keep_control_key(2, &chain.pem, NOW).await.unwrap();
        writing.commit().await.unwrap();
        world.hub.control.look(NOW).await.unwrap();
        let policy = stolen.sign(&Signed::new(SignedKind::Policy, Version { epoch: 9, n: 9 }, Vec::new())).unwrap();
        let before = world.post(&[]).await.signed[0].clone();
        let (controls, _, bundle) = stranger().taking(&before, &Denied::default(), When::Taking(NOW)).unwrap();
        assert!(controls.read(&policy, &Denied::default()).is_ok());

        world.clock.advance(5_000);
        let now_ms = world.now_ms();
        assert!(control::end_key(&world.hub.store, 2, now_ms).await.unwrap());
        assert!(!control::end_key(&world.hub.store, 2, now_ms).await.unwrap());
        assert!(!control::end_key(&world.hub.store, 3, now_ms).await.unwrap());
        world.hub.control.look(now_ms).await.unwrap();
        let taken = world.post(&[]).await;
        let (now, signed, _) = controls.taking(&taken.signed[0], &Denied::default(), When::Taking(now_ms)).unwrap();
        assert_eq!(now.read(&policy, &Denied::default()), Err(Unproven::UnknownKey(2)));
        // Who stole it brings a bundle of its own, with a version above and its chain in it.
        let version = Version { n: signed.version.n + 1, ..signed.version };
        let forged = stolen.sign(&Signed::new(SignedKind::Bundle, version, bundle.bytes().unwrap())).unwrap();
        let list = DenyList::read(&Signed::read(&of_kind(&taken, SignedKind::Deny).unwrap()).unwrap().body).unwrap().denied();
        let refused = now.taking(&forged, &list, When::Taking(now_ms)).map(drop);
        assert!(matches!(refused, Err(Unproven::Chain(_))), "{refused:?}");
        assert!(matches!(world.hub.shown(&forged).await, Err(ControlError::Unproven(Unproven::Chain(_)))));
        assert!(now.taking(&forged, &Denied::default(), When::Taking(now_ms)).is_ok(), "the list isn't what refuses it");
    })
    .await;
}

#[tokio::test]
async fn a_key_for_which_the_bundle_has_no_room_is_refused_where_it_is_added_and_keeps_no_denial_back() {
    each_store(async |world: World| {
        let numbers = |control: &Control| -> Vec<u32> {
            let (_, _, bundle) = stranger().taking(&control.newer_than(&[], &[]).unwrap()[0], &Denied::default(), When::Kept(NOW)).unwrap();
            bundle.controls.iter().map(|control| control.n).collect()
        };
        let last = CONTROLS_MAX as u32;
        // Of all of them the second ends first.
        add_key(&world, 2, NOW - 364 * DAY_MS).await;
        for n in 3..=last {
            add_key(&world, n, NOW).await;
        }
        world.hub.control.look(NOW).await.unwrap();
        assert_eq!(numbers(&world.hub.control), (1..=last).collect::<Vec<_>>());
        let refused = other_hub(&world, last + 1, NOW).await.err().unwrap().to_string();
        assert!(refused.contains("muster-hub key end"), "{refused}");
        assert_eq!(world.hub.store.control_keys().await.unwrap().len(), CONTROLS_MAX);
        // A hub of an older version adds it all the same.
        add_key(&world, last + 1, NOW).await;
        deny(&world, "site/oslo/relay/lost").await;
        assert!(world.hub.control.denied().borrow().names(&"site/oslo/relay/lost".parse().unwrap()), "whoever was denied since then isn't");
        assert_eq!(numbers(&world.hub.control), (1..=last).collect::<Vec<_>>(), "the bundle before it holds");
        assert!(control::end_key(&world.hub.store, last + 1, NOW).await.unwrap());
        world.hub.control.look(NOW).await.unwrap();
        assert_eq!(numbers(&world.hub.control), (1..=last).collect::<Vec<_>>());
        // Once a certificate has ended there is room.
        let other = other_hub(&world, last + 2, NOW + 2 * DAY_MS).await.unwrap();
        let with_it: Vec<u32> = [1].into_iter().chain(3..=last).chain([last + 2]).collect();
        assert_eq!(numbers(&other), with_it);
        world.hub.control.look(NOW + 2 * DAY_MS).await.unwrap();
        assert_eq!(numbers(&world.hub.control), with_it);
    })
    .await;
}

#[tokio::test]
async fn a_bundle_in_the_database_that_nobody_can_read_is_followed_by_one_that_all_can() {
    each_store(async |mut world: World| {
        let mut above = Version { epoch: 1, n: 30 };
        for restarted in [false, true] {
            let mut writing = world.hub.store.write().await.unwrap();
            writing.add_paper(SignedKind::Bundle.as_u8(), &StoredPaper { version: above, body: b"rubbish".to_vec() }, NOW).await.unwrap();
            writing.commit().await.unwrap();
            if restarted {
                world.restart(false).await;
            } else {
                world.hub.control.look(NOW).await.unwrap();
            }
            let (_, signed, bundle) = stranger().taking(&world.post(&[]).await.signed[0], &Denied::default(), When::Taking(NOW)).unwrap();
            assert_eq!((signed.version, bundle.roots.as_str()), (Version { n: above.n + 1, ..above }, mesh_of_one().root.as_str()));
            above.n += 30;
        }
    })
    .await;
}

#[tokio::test]
async fn a_control_certificate_in_files_is_taken_while_the_hub_runs_and_a_bad_one_stops_nothing_else() {
    let world = World::new().await;
    let mesh = mesh_of_one();
    let at = ControlFiles { certificate: world.folder.path().join("control.pem"), key: world.folder.path().join("control.key") };
    let put = |n: u32, key_pem: &str, now_ms: i64| {
        let chain = issue_control(&mesh.issuer, n, key_pem, now_ms).unwrap().pem;
        files::write_secret(&at.key, key_pem.as_bytes()).unwrap();
        files::write_public(&at.certificate, chain.as_bytes()).unwrap();
        chain
    };
    let [first, second] = [(); 2].map(|()| KeyRequest::generate().unwrap().key_pem);
    let own = Own { key: ControlKey::from_pem(2, &first).unwrap(), chain: put(2, &first, NOW), renews: Some(Renews::Files(at.clone())) };
    let keys = mesh.keys(Name::Hub { id: "hub-2".into() });
    let control = Control::open(world.hub.store.clone(), keys, own, false, NOW).await.unwrap();

    let renewed = put(2, &first, NOW + DAY_MS);
    control.look(NOW).await.unwrap();
    let rows = world.hub.store.control_keys().await.unwrap();
    assert_eq!(rows.iter().find(|row| row.n == 2).map(|row| row.chain.as_str()), Some(renewed.as_str()));

    put(3, &second, NOW);
    control.look(NOW).await.unwrap();
    let said = control.sign(&Signed::new(SignedKind::Policy, Version { epoch: 1, n: 1 }, Vec::new())).unwrap();
    assert_eq!(Signed::read(&said).unwrap().key, 3);

    files::write_public(&at.certificate, b"rubbish").unwrap();
    deny(&world, "site/oslo/relay/lost").await;
    assert!(control.look(NOW).await.unwrap_err().to_string().contains("control certificate"));
    assert!(control.denied().borrow().names(&"site/oslo/relay/lost".parse().unwrap()));
}

#[tokio::test]
async fn a_hub_put_back_from_a_backup_lets_nobody_in_again() {
    each_store(async |mut world: World| {
        deny(&world, "site/oslo/relay/lost").await;
        let first = world.post(&[]).await;
        let list = of_kind(&first, SignedKind::Deny).unwrap();
        assert_eq!(DenyList::read(&Signed::read(&list).unwrap().body).unwrap().denied.len(), 1);
        let handle = world.hub.control.denied();
        assert!(handle.borrow().names(&"site/oslo/relay/lost".parse().unwrap()));
        for announced in [false, true] {
            // The backup is from before.
            world.meddle("DELETE FROM denied; DELETE FROM papers WHERE kind = 3").await;
            world.restart(announced).await;
            assert!(of_kind(&world.post(&[]).await, SignedKind::Deny).is_none());
            deny(&world, "site/oslo/relay/other").await;
            world.hub.shown(&list).await.unwrap();
            let taken = world.post(&[]).await;
            let now = Signed::read(&of_kind(&taken, SignedKind::Deny).unwrap()).unwrap();
            let names: Vec<String> = DenyList::read(&now.body).unwrap().denied.into_iter().map(|denial| denial.name).collect();
            assert_eq!(names, ["site/oslo/relay/lost", "site/oslo/relay/other"], "yesterday's revocation is gone");
            assert!(now.version > Signed::read(&list).unwrap().version);
            assert!(world.hub.control.denied().borrow().names(&"site/oslo/relay/lost".parse().unwrap()));
        }
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_is_told_that_it_was_put_back_says_everything_under_versions_above_before_anybody_shows_it_more() {
    each_store(async |mut world: World| {
        lead(&world, "o1").await;
        deny(&world, "site/oslo/relay/lost").await;
        // Since the backup: each of them is said anew, and in the end there is what there was.
        lead(&world, "o2").await;
        lead(&world, "o1").await;
        deny(&world, "site/oslo/relay/other").await;
        let (_, chain) = ControlKey::issue(&mesh_of_one().issuer, 2, NOW).unwrap();
        let mut writing = world.hub.store.write().await.unwrap();
        writing.keep_control_key(2, &chain.pem, NOW).await.unwrap();
        writing.commit().await.unwrap();
        world.hub.control.look(NOW).await.unwrap();
        set_retention(&world, "titles_days = 20").await;
        std::fs::write(world.folder.path().join("policy.toml"), include_str!("policy.toml")).unwrap();
        world.hub.policies.look(NOW).await.unwrap();
        let first = Version { epoch: 1, n: 1 };
        let given_out = newest(&mut world).await;
        assert!(given_out.iter().all(|version| *version > first), "{given_out:?}");

        world.meddle("DELETE FROM papers WHERE n > 1; DELETE FROM policies WHERE n > 1; DELETE FROM control_keys WHERE n = 2").await;
        world.meddle("DELETE FROM denied WHERE name = 'site/oslo/relay/other'").await;
        world.restart(true).await;
        for ((kind, before), now) in KINDS.iter().zip(given_out).zip(newest(&mut world).await) {
            assert!(now > before, "{kind:?}: {before}, then {now}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_hub_takes_a_new_epoch_only_on_sight_of_what_was_signed() {
    each_store(async |mut world: World| {
        let far = Version { epoch: 5, n: 40 };
        let mut head = world.head(RELAY, false);
        head.versions = vec![HeldVersion { kind: SignedKind::Policy.as_u8(), version: far }];
        world.send(RELAY, &head, &[]).await;
        assert_eq!(world.hub.policies.current().epoch, 1, "a relay's word alone raised the epoch");
        let policy = Signed::new(SignedKind::Policy, far, b"{}".to_vec());
        let unsigned = world.hub.shown(&policy.bytes().unwrap()).await;
        assert!(matches!(unsigned, Err(ControlError::Unproven(Unproven::Unsigned))), "{unsigned:?}");
        assert_eq!(world.hub.policies.current().epoch, 1);
        world.hub.shown(&mesh_of_one().key().sign(&policy).unwrap()).await.unwrap();
        assert_eq!((world.hub.policies.current().epoch, world.hub.policies.current().version.n), (6, 41));
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_the_database_forgot_brings_its_keys_back_under_a_version_above() {
    each_store(async |mut world: World| {
        let mesh = mesh_of_one();
        let (key, chain) = ControlKey::issue(&mesh.issuer, 7, NOW).unwrap();
        let own = Signed::read(&world.post(&[]).await.signed[0]).unwrap();
        let mut body = Bundle::read(&own.body).unwrap();
        body.controls.push(muster_mesh::message::ControlChain { n: 7, chain: chain.pem });
        let known = Version { epoch: 1, n: 30 };
        let forgotten = Signed::new(SignedKind::Bundle, known, body.bytes().unwrap());
        // Signed by the key that this database doesn't know.
        world.hub.shown(&key.sign(&forgotten).unwrap()).await.unwrap();
        let now = world.post(&[]).await.signed[0].clone();
        let (controls, signed, _) = stranger().taking(&now, &Denied::default(), When::Taking(NOW)).unwrap();
        assert!(signed.version > known, "{:?}", signed.version);
        assert!(controls.read(&key.sign(&Signed::new(SignedKind::Policy, known, Vec::new())).unwrap(), &Denied::default()).is_ok());
    })
    .await;
}

#[tokio::test]
async fn what_a_relay_took_of_a_denied_device_after_it_was_told_is_refused_and_what_it_took_before_is_kept() {
    each_store(async |mut world: World| {
        let agent = format!("site/oslo/agent/{}", device(1));
        deny(&world, &agent).await;
        let version = Signed::read(&of_kind(&world.post(&[]).await, SignedKind::Deny).unwrap()).unwrap().version;
        // Nobody has told this relay yet: what it brings came before.
        assert_eq!(verdicts(&post(&mut world, 1, NOW - 10, None).await), (1, 0));
        // Its clock says 09:00:02.500 when it first says that it has the list.
        assert_eq!(verdicts(&post(&mut world, 2, NOW + 500, Some(version)).await), (1, 0));
        let taken = post(&mut world, 3, NOW + 501, Some(version)).await;
        assert_eq!(verdicts(&taken), (0, 1), "a batch that came after the list became rows");
        let shown = ack_of(&taken, device(1), spool(1)).shown;
        assert_eq!(shown, [(3, Verdict::Refused, Reason::Denied)]);
        // Late, from before.
        assert_eq!(verdicts(&post(&mut world, 4, NOW + 400, Some(version)).await), (1, 0));
        assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 3);
        assert_eq!(world.hub.store.held_versions(SignedKind::Deny.as_u8()).await.unwrap(), [(RELAY.to_owned(), version)]);
    })
    .await;
}

#[tokio::test]
async fn what_comes_of_a_denied_device_is_kept_once_it_was_given_another_certificate_by_files() {
    each_store(async |mut world: World| {
        deny(&world, &format!("site/oslo/agent/{}", device(1))).await;
        let version = Signed::read(&of_kind(&world.post(&[]).await, SignedKind::Deny).unwrap()).unwrap().version;
        let path = world.folder.path().join("issued.jsonl");
        let line = |issued_ms: i64| Issued {
            device: device(1).0,
            site: "oslo".into(),
            person: "kari".into(),
            name: "Kari".into(),
            not_after_ms: issued_ms + leaf_life_ms(Role::Agent),
        };
        issued::append(&path, &[line(NOW - 1)]).unwrap();
        let mut listed = Listed::open(world.hub.store.clone(), world.hub.ingest.issued.clone(), path.clone()).await.unwrap();
        assert_eq!(verdicts(&post(&mut world, 1, NOW + 500, Some(version)).await), (1, 0));
        assert_eq!(verdicts(&post(&mut world, 2, NOW + 501, Some(version)).await), (0, 1), "its certificate is from before its denial");
        issued::append(&path, &[line(NOW + 1_000)]).unwrap();
        listed.look().await.unwrap();
        assert_eq!(
            verdicts(&post(&mut world, 3, NOW + 501, Some(version)).await),
            (1, 0),
            "its relay lets it in, and the hub throws it away"
        );
    })
    .await;
}

#[tokio::test]
async fn a_relay_that_is_given_the_list_with_each_answer_and_never_holds_it_is_told_of() {
    each_store(async |mut world: World| {
        deny(&world, "site/oslo/relay/lost").await;
        let behind = |world: &World| [SignedKind::Deny, SignedKind::Bundle].map(|kind| world.hub.control.behind(kind, NOW));
        let mut newest = None;
        for answers in 1..=GIVEN_MAX {
            assert_eq!(behind(&world), [0, 0], "before its answer {answers}");
            let mut head = world.head(RELAY, false);
            head.versions = world.hub.control.versions(&[]).into_iter().filter(|held| held.kind == SignedKind::Bundle.as_u8()).collect();
            let Answer::Taken(taken) = world.send(RELAY, &head, &[]).await else { panic!() };
            newest = of_kind(&taken, SignedKind::Deny);
            assert!(newest.is_some(), "it is given the list with each answer");
        }
        assert_eq!(behind(&world), [1, 0]);
        let version = Signed::read(&newest.unwrap()).unwrap().version;
        let mut head = world.head(RELAY, false);
        head.versions = world.hub.control.versions(&[]);
        assert!(head.versions.contains(&HeldVersion { kind: SignedKind::Deny.as_u8(), version }));
        world.send(RELAY, &head, &[]).await;
        assert_eq!(behind(&world), [0, 0]);
    })
    .await;
}

/// A hub's member that knows the root and nothing else.
fn stranger() -> Controls {
    Controls::new(DOMAIN, &mesh_of_one().root)
}

const KINDS: [SignedKind; 4] = [SignedKind::Policy, SignedKind::Deny, SignedKind::Bundle, SignedKind::Relays];

/// Of each kind, what a relay is given that holds nothing.
async fn newest(world: &mut World) -> [Version; 4] {
    let taken = world.post(&[]).await;
    KINDS.map(|kind| Signed::read(&of_kind(&taken, kind).unwrap()).unwrap().version)
}

/// Says where the relay is.
async fn lead(world: &World, address: &str) {
    let place = Place { address: address.to_owned(), door: None };
    relays::set(&world.hub.store, &RELAY.parse().unwrap(), place).await.unwrap();
    world.hub.control.look(world.now_ms()).await.unwrap();
}

/// A row of a control key, as a hub adds it that asks nobody.
async fn add_key(world: &World, n: u32, issued_ms: i64) {
    let chain = issue_control(&mesh_of_one().issuer, n, &KeyRequest::generate().unwrap().key_pem, issued_ms).unwrap().pem;
    let mut writing = world.hub.store.write().await.unwrap();
    writing.keep_control_key(n, &chain, NOW).await.unwrap();
    writing.commit().await.unwrap();
}

/// One more hub of this database, with a control key of its own.
async fn other_hub(world: &World, n: u32, now_ms: i64) -> anyhow::Result<Control> {
    let (key, chain) = ControlKey::issue(&mesh_of_one().issuer, n, NOW).unwrap();
    let keys = mesh_of_one().keys(Name::Hub { id: format!("hub-{n}") });
    Control::open(world.hub.store.clone(), keys, Own { key, chain: chain.pem, renews: None }, false, now_ms).await
}

async fn deny(world: &World, name: &str) {
    control::deny(&world.hub.store, &name.parse().unwrap(), world.now_ms(), "a test").await.unwrap();
    world.hub.control.look(world.now_ms()).await.unwrap();
}

fn of_kind(taken: &Taken, kind: SignedKind) -> Option<Vec<u8>> {
    taken.signed.iter().find(|bytes| Signed::read(bytes).unwrap().kind == kind.as_u8()).cloned()
}

fn verdicts(taken: &Taken) -> (u32, u32) {
    (taken.counts.stored, taken.counts.refused)
}

/// One batch of device 1 that came to the relay at a time; the relay's clock says half a second after nine o'clock and two seconds.
async fn post(world: &mut World, seq: u64, receipt_ms: i64, holds: Option<Version>) -> Taken {
    let held = |version| HeldVersion { kind: SignedKind::Deny.as_u8(), version };
    let head = PostHead { relay_ms: NOW + 500, versions: holds.map(held).into_iter().collect(), number: seq, ..world.head(RELAY, true) };
    let queues = head.queues.iter().map(|queue| match queue.lane {
        Lane::Telemetry => muster_mesh::message::QueueState { answered: seq - 1, ..*queue },
        Lane::Pictures => *queue,
    });
    let head = PostHead { queues: queues.collect(), ..head };
    let facts = [Facts { receipt_ms, ..facts(NOW) }];
    match world.send_with(RELAY, &head, &[sealed(seq)], &facts).await {
        Answer::Taken(taken) => taken,
        other => panic!("{other:?}"),
    }
}
