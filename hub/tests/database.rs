//! Async: the database's versions, and what is deleted when its time is up.
#![allow(clippy::unwrap_used)]

mod world;

use muster_hub::{
    day::Day,
    ingest::plan::Retention,
    retention,
    store::{Answered, Store},
};
use muster_mesh::{batch::Batch, message::Facts};
use world::*;

#[tokio::test]
async fn a_database_from_a_newer_version_gets_one_line_and_is_not_touched() {
    let world = World::new().await;
    world.hub.store.close().await;
    world
        .meddle("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'later', 1, X'00', 0)")
        .await;
    let before = std::fs::read(world.database()).unwrap();
    let refused = Store::open(&world.url()).await.err().unwrap().to_string();
    assert!(refused.contains("version 999") && refused.contains("nothing was touched") && !refused.contains('\n'), "{refused}");
    assert_eq!(std::fs::read(world.database()).unwrap(), before);
    let checked = Store::check(&world.url()).await.err().unwrap().to_string();
    assert!(checked.contains("version 999"), "{checked}");
}

#[tokio::test]
async fn a_file_that_is_no_database_gets_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("muster.db");
    std::fs::write(&path, "this is a letter, and a rather long one at that; nothing in it is a database of any kind whatsoever").unwrap();
    let refused = Store::open(&format!("sqlite://{}", path.display())).await.err().unwrap().to_string();
    assert!(refused.contains("not a database") && !refused.contains('\n'), "{refused}");
    let nowhere = Store::open(&format!("sqlite://{}", folder.path().join("no/such/muster.db").display())).await.err().unwrap().to_string();
    assert!(nowhere.contains("folder"), "{nowhere}");
    assert!(Store::open("postgres://somewhere").await.err().unwrap().to_string().contains("store.url"));
}

#[tokio::test]
async fn a_new_database_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    for name in ["muster.db", "muster.db-wal"] {
        let about = std::fs::metadata(world.folder.path().join(name)).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn check_changes_nothing_and_knows_a_missing_database() {
    let world = World::new().await;
    world.hub.store.close().await;
    let files = || {
        let files = std::fs::read_dir(world.folder.path()).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = files();
    let checked = Store::check(&world.url()).await.unwrap();
    assert_eq!(checked.version, Some(checked.newest));
    assert!(files() == before, "{:?}", files().keys());
    let nowhere = world.folder.path().join("none.db");
    assert_eq!(Store::check(&format!("sqlite://{}", nowhere.display())).await.unwrap().version, None);
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn what_is_too_old_is_deleted_in_small_pieces_and_its_numbers_stay() {
    let mut world = World::new().await;
    let at = |days: i64, seq: u64| {
        let wall_ms = NOW - days * DAY_MS;
        let mut batch = batch(seq, vec![activity(wall_ms, 1), focus(wall_ms, "xterm"), heartbeat(wall_ms)]);
        batch.head.wall_ms = wall_ms;
        batch.head.boot = muster_mesh::ids::BootId([seq as u8; 16]);
        batch.seal().unwrap()
    };
    let envelopes: Vec<_> = (1..=40).map(|seq| at(seq as i64, seq)).collect();
    assert_eq!(world.post(&envelopes).await.counts.stored, 40);
    let retention = Retention { days: 20 };
    let swept = retention::sweep(&world.hub.store, NOW, retention, 7).await.unwrap();
    assert_eq!((swept.records, swept.batches), (60, 20));
    assert_eq!(retention::sweep(&world.hub.store, NOW, retention, 7).await.unwrap(), Default::default());
    assert_eq!((world.one("SELECT COUNT(*) FROM batches").await, world.one("SELECT COUNT(*) FROM focus").await), (20, 20));
    // The numbers stay: the same batch again is a repeat, and the check says what became of it.
    assert_eq!(world.post(&[at(30, 30)]).await.counts.repeat, 1);
    let kept = world.hub.store.kept_numbers(device(1), spool(1), 20, 21).await.unwrap();
    assert!(matches!(kept[0].answered, Answered::Rows(_)));
    assert_eq!(kept[1].answered, Answered::Deleted);
}

#[tokio::test]
async fn digests_are_kept_of_the_newest_numbers_while_a_number_may_still_come() {
    let mut world = World::new().await;
    let envelopes: Vec<_> = (1..=300).map(sealed).collect();
    world.post(&envelopes).await;
    let digests = "SELECT COUNT(*) FROM digests";
    assert_eq!(world.one(digests).await, 256);
    world.post(&(301..=310).map(sealed).collect::<Vec<_>>()).await;
    retention::sweep(&world.hub.store, NOW, Retention { days: 45 }, 10).await.unwrap();
    assert_eq!(world.one(digests).await, 256);
    let mut closing = batch(311, vec![heartbeat(NOW)]);
    closing.head.tails = vec![tail(spool(1), 311, 312, true)];
    world.post(&[closing.seal().unwrap()]).await;
    assert_eq!((world.one(digests).await, world.one("SELECT settled FROM spools").await), (0, 1));
    // A spool that nothing came of for a week.
    let other = Batch { spool: spool(2), ..batch(1, vec![heartbeat(NOW)]) }.seal().unwrap();
    world.post(&[other]).await;
    assert_eq!(world.one(digests).await, 1);
    retention::sweep(&world.hub.store, NOW + 8 * DAY_MS, Retention { days: 45 }, 10).await.unwrap();
    assert_eq!(world.one(digests).await, 0);
}

#[tokio::test]
async fn what_a_wrong_clock_put_into_the_future_and_what_is_held_go_by_their_arrival() {
    let mut world = World::new().await;
    let mut future = batch(1, vec![activity(NOW + 900 * DAY_MS, 1)]);
    future.head.wall_ms = NOW + 900 * DAY_MS;
    let mut head = world.head(RELAY, true);
    // A relay whose clock is off places nothing.
    head.relay_ms = NOW - DAY_MS;
    world.send(RELAY, &head, &[future.seal().unwrap()]).await;
    head.number = 2;
    let other = batch(1, vec![start(NOW)]).seal().unwrap();
    world.send(RELAY, &head, &[other]).await;
    assert_eq!((world.one("SELECT COUNT(*) FROM activity").await, world.one("SELECT COUNT(*) FROM holds").await), (1, 1));
    let swept = retention::sweep(&world.hub.store, NOW + 44 * DAY_MS, Retention { days: 45 }, 1_000).await.unwrap();
    assert_eq!((swept.records, swept.holds), (0, 0));
    let swept = retention::sweep(&world.hub.store, NOW + 46 * DAY_MS, Retention { days: 45 }, 1_000).await.unwrap();
    assert_eq!((swept.records, swept.holds), (1, 1));
    assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 0);
}

#[tokio::test]
async fn a_day_that_comes_three_days_late_out_of_order_from_two_relays_is_the_same_day() {
    let batches: Vec<_> = (1..=120u64)
        .map(|seq| {
            let wall_ms = NOW - 6 * 3_600_000 + seq as i64 * 300_000;
            let mut batch = batch(seq, vec![activity(wall_ms - 50_000, seq as u32), focus(wall_ms - 30_000, "xterm"), heartbeat(wall_ms)]);
            (batch.head.wall_ms, batch.head.boot_ms) = (wall_ms, (wall_ms - NOW + 30_000_000) as u64);
            batch.seal().unwrap()
        })
        .collect();
    let measured = |now_ms: i64| Facts { zero_ms: NOW - 30_000_000, ..facts(now_ms) };

    let mut orderly = World::new().await;
    for envelopes in batches.chunks(10) {
        orderly.clock.advance(3_000_000);
        let facts = vec![measured(orderly.now_ms()); envelopes.len()];
        post(&mut orderly, RELAY, envelopes, &facts).await;
    }

    let mut late = World::new().await;
    late.clock.advance(3 * DAY_MS as u64);
    let mut shuffled = batches.clone();
    // A fixed shuffle: 37 and 120 have no common factor.
    shuffled.iter_mut().enumerate().for_each(|(i, envelope)| *envelope = batches[i * 37 % 120].clone());
    for (i, envelopes) in shuffled.chunks(7).enumerate() {
        let relay = if i % 2 == 0 { RELAY } else { "site/rome/relay/rome-1" };
        // The two relays' clocks differ a little.
        let facts = vec![Facts { zero_ms: NOW - 30_000_000 + i as i64, ..measured(late.now_ms()) }; envelopes.len()];
        post(&mut late, relay, envelopes, &facts).await;
    }

    for date in ["2026-11-22", "2026-11-23", "2026-11-24"] {
        assert_eq!(day(&late, date).await, day(&orderly, date).await, "{date}");
    }
    let monday = day(&late, "2026-11-23").await;
    assert!(monday.input.minutes > 50 && monday.focus.len() > 50, "{monday:?}");
}

async fn post(world: &mut World, relay: &str, envelopes: &[muster_mesh::batch::Envelope], facts: &[Facts]) {
    let number = world.one("SELECT COALESCE(MAX(number), 0) FROM instances").await as u64 + 1;
    let mut head = world.head(relay, true);
    head.number = number;
    let answer = world.send_with(relay, &head, envelopes, facts).await;
    let muster_mesh::message::Answer::Taken(taken) = answer else { panic!("{answer:?}") };
    assert_eq!(taken.counts.stored as usize, envelopes.len());
}

async fn day(world: &World, date: &str) -> Day {
    let device = world.hub.store.device(device(1)).await.unwrap().unwrap();
    let batches = world.hub.store.kept_batches(device.id, 20_778, 20_782).await.unwrap();
    Day::of(date.parse().unwrap(), &batches).unwrap()
}
