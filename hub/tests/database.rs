//! Async: the database's versions, and what is forgotten when its time is up.
#![allow(clippy::unwrap_used)]

mod world;

use muster_hub::{
    ingest::plan::Retention,
    retention,
    store::{Answered, Store},
};
use muster_mesh::batch::Batch;
use world::*;

#[tokio::test]
async fn programs_that_start_together_on_an_empty_file_bring_it_up_together() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("muster.db").display());
        let opened = tokio::join!(Store::open(&url), Store::open(&url), Store::open(&url));
        for store in [opened.0, opened.1, opened.2] {
            store.unwrap().close().await;
        }
    }
}

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
    for wrong in ["postgres://somewhere", "mysql://somewhere/else"] {
        assert!(Store::open(wrong).await.err().unwrap().to_string().contains("store.url"), "{wrong}");
    }
    let nobody = Store::open("postgres://muster:gehe1m@127.0.0.1:1/muster").await.err().unwrap().to_string();
    assert!(nobody.contains("127.0.0.1:1/muster") && !nobody.contains("gehe1m") && !nobody.contains('\n'), "{nobody}");
}

#[tokio::test]
async fn a_server_is_migrated_by_its_own_verb_and_serve_says_so_in_one_line() {
    let Some(server) = Server::new().await else { return skipped() };
    let refused = Store::open(&server.url).await.err().unwrap().to_string();
    assert!(refused.contains("version 0") && refused.contains("muster-hub migrate") && !refused.contains('\n'), "{refused}");
    // Neither that nor a check made anything.
    let checked = Store::check(&server.url).await.unwrap();
    assert_eq!((checked.version, checked.migrates_itself), (Some(0), false));
    assert_eq!(count_at(&server, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'public'").await, 0);
    // Two at once: one makes it, the other finds it made.
    let both = tokio::join!(Store::migrate(&server.url), Store::migrate(&server.url));
    for store in [both.0.unwrap(), both.1.unwrap()] {
        store.close().await;
    }
    Store::open(&server.url).await.unwrap().close().await;
    let checked = Store::check(&server.url).await.unwrap();
    assert_eq!(checked.version, Some(checked.newest));

    run_at(&server.url, "DROP TABLE session").await;
    let damaged = Store::check(&server.url).await.err().unwrap().to_string();
    assert!(damaged.contains("session") && damaged.contains("backup"), "{damaged}");
    let password = server.url.split(['/', ':', '@']).nth(4).unwrap();
    assert!(!damaged.contains(password), "{damaged}");
    run_at(&server.url, "UPDATE _sqlx_migrations SET checksum = '\\x00'").await;
    let another = Store::open(&server.url).await.err().unwrap().to_string();
    assert!(another.contains("another build"), "{another}");
    run_at(
        &server.url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'later', true, '\\x00', 0)",
    )
    .await;
    for refused in [Store::open(&server.url).await.err(), Store::migrate(&server.url).await.err(), Store::check(&server.url).await.err()] {
        let refused = refused.unwrap().to_string();
        assert!(refused.contains("version 999") && refused.contains("nothing was touched"), "{refused}");
    }
}

async fn count_at(server: &Server, statement: &'static str) -> i64 {
    let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&server.url).await.unwrap();
    sqlx::Row::try_get(&sqlx::query(statement).fetch_one(&mut connection).await.unwrap(), 0).unwrap()
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
        let files = std::fs::read_dir(world.folder.path()).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
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
    each_store(async |mut world: World| {
        let at = |days: i64, seq: u64| {
            let wall_ms = NOW - days * DAY_MS;
            let mut batch = batch(seq, vec![activity(wall_ms, 1), focus(wall_ms, "xterm"), heartbeat(wall_ms)]);
            batch.head.wall_ms = wall_ms;
            batch.head.boot = muster_mesh::ids::BootId([seq as u8; 16]);
            batch.seal().unwrap()
        };
        let envelopes: Vec<_> = (1..=40).map(|seq| at(seq as i64, seq)).collect();
        assert_eq!(world.post(&envelopes).await.counts.stored, 40);
        let retention = Retention::alike(20);
        let swept = retention::sweep(&world.hub.store, &world.hub.objects, NOW, retention, 7).await.unwrap();
        assert_eq!((swept.records, swept.batches), (60, 20));
        assert_eq!(retention::sweep(&world.hub.store, &world.hub.objects, NOW, retention, 7).await.unwrap(), Default::default());
        assert_eq!((world.one("SELECT COUNT(*) FROM batches").await, world.one("SELECT COUNT(*) FROM focus").await), (20, 20));
        // The numbers stay: the same batch again is a repeat, and the check says what became of it.
        assert_eq!(world.post(&[at(30, 30)]).await.counts.repeat, 1);
        let kept = world.hub.store.kept_numbers(device(1), spool(1), 20, 21).await.unwrap();
        assert!(matches!(kept[0].answered, Answered::Rows(_)));
        assert_eq!(kept[1].answered, Answered::Deleted);
    })
    .await;
}

#[tokio::test]
async fn digests_are_kept_of_the_newest_numbers_while_a_number_may_still_come() {
    each_store(async |mut world: World| {
        let envelopes: Vec<_> = (1..=300).map(sealed).collect();
        world.post(&envelopes).await;
        let digests = "SELECT COUNT(*) FROM digests";
        assert_eq!(world.one(digests).await, 256);
        world.post(&(301..=310).map(sealed).collect::<Vec<_>>()).await;
        retention::sweep(&world.hub.store, &world.hub.objects, NOW, Retention::alike(45), 10).await.unwrap();
        assert_eq!(world.one(digests).await, 256);
        let mut closing = batch(311, vec![heartbeat(NOW)]);
        closing.head.tails = vec![tail(spool(1), 311, 312, true)];
        world.post(&[closing.seal().unwrap()]).await;
        assert_eq!((world.one(digests).await, world.one("SELECT settled FROM spools").await), (0, 1));
        // A spool that nothing came of for a week.
        let other = Batch { spool: spool(2), ..batch(1, vec![heartbeat(NOW)]) }.seal().unwrap();
        world.post(&[other]).await;
        assert_eq!(world.one(digests).await, 1);
        retention::sweep(&world.hub.store, &world.hub.objects, NOW + 8 * DAY_MS, Retention::alike(45), 10).await.unwrap();
        assert_eq!(world.one(digests).await, 0);
    })
    .await;
}

#[tokio::test]
async fn what_a_wrong_clock_put_into_the_future_and_what_is_held_go_by_their_arrival() {
    each_store(async |mut world: World| {
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
        let swept = retention::sweep(&world.hub.store, &world.hub.objects, NOW + 44 * DAY_MS, Retention::alike(45), 1_000).await.unwrap();
        assert_eq!((swept.records, swept.holds), (0, 0));
        let swept = retention::sweep(&world.hub.store, &world.hub.objects, NOW + 46 * DAY_MS, Retention::alike(45), 1_000).await.unwrap();
        assert_eq!((swept.records, swept.holds), (1, 1));
        assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 0);
    })
    .await;
}
