//! Async: what is deleted when its time is up, kind by kind, and what stays.
#![allow(clippy::unwrap_used)]

mod world;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use muster_hub::{
    ingest::plan::Retention,
    objects::Objects,
    retention,
    store::{Answered, KeptNumber, Swept},
};
use muster_mesh::{
    batch::{Batch, Envelope},
    ids::BootId,
    record::{self, Kind, Network, Record},
};
use object_store::memory::InMemory;
use world::*;

/// Rows of each table in the great sweep; every second one's time is up.
const ROWS: i64 = 10_000;
const PIECE: i64 = 300;
/// A day's length as the engines' 64-bit number.
const MS: &str = "CAST(86400000 AS BIGINT)";
/// The numbers of their device and spool, beyond those that the hub gives.
const FILLED: i64 = 1_000_000;
const TODAY: i64 = NOW / DAY_MS;
const KINDS: [&str; 8] = ["heartbeat", "activity", "focus", "screenshot", "session", "network", "capability", "gap"];

#[tokio::test]
async fn what_was_written_of_those_who_joined_goes_when_nothing_depends_on_it_any_more() {
    each_store(async |world: World| {
        let at = |days: i64| NOW + days * DAY_MS;
        let body = if world.is_on_postgres() { "decode('00', 'hex')" } else { "x'00'" };
        for name in ["a", "b", "c"] {
            world.meddle(&format!("INSERT INTO members VALUES ('{name}', '', 1, 1, '', 0, '', 0, NULL, NULL, NULL)")).await;
        }
        // What goes is named so.
        for (key, name, end) in [("goes", "a", -397), ("a", "a", -300), ("b", "b", -500), ("c1", "c", -395), ("c2", "c", 10)] {
            world.meddle(&format!("INSERT INTO certificates VALUES ('{key}', '{name}', '', '', '', 0, 0, {})", at(end))).await;
        }
        for (id, end) in [("goes", -31), ("stays", -29)] {
            world
                .meddle(&format!(
                    "INSERT INTO join_tokens VALUES ('{id}', '', 'relay', '', '', NULL, NULL, NULL, NULL, 1, 0, {}, '')",
                    at(end)
                ))
                .await;
            world.meddle(&format!("INSERT INTO token_keys VALUES ('{id}', '', 0, {})", at(end))).await;
        }
        for (name, until) in [("goes", -397), ("stays", -395)] {
            world.meddle(&format!("INSERT INTO denied VALUES ('{name}', 0, {}, 0, '', NULL, NULL)", at(until))).await;
        }
        // The hub's own newest bundle is of epoch 1.
        for (kind, n, made) in [(4, 0, -40), (4, 1, -31), (4, 2, -29), (3, 1, -500)] {
            world.meddle(&format!("INSERT INTO papers VALUES ({kind}, 0, {n}, {}, {body})", at(made))).await;
        }
        for (name, n, since) in [("a", 1, -801), ("a", 2, -799), ("a", 3, -1), ("b", 1, -900)] {
            world.meddle(&format!("INSERT INTO held_versions VALUES ('{name}', 3, 1, {n}, {}, 0)", at(since))).await;
        }
        world.meddle(&format!("INSERT INTO held_versions VALUES ('c', 4, 0, 0, {}, 0)", at(-40))).await;
        let sweep = async || world.hub.store.sweep(NOW, Retention::alike(30), 1).await.unwrap();
        assert_eq!(sweep().await, Swept { identities: 6, ..Swept::default() });
        for (table, key) in [("certificates", "public_key"), ("join_tokens", "id"), ("token_keys", "kid"), ("denied", "name")] {
            assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table} WHERE {key} = 'goes'")).await, 0, "{table}");
        }
        assert_eq!(world.one("SELECT COUNT(*) FROM certificates").await, 4);
        assert_eq!(world.one("SELECT COUNT(*) FROM papers WHERE epoch = 0 AND kind = 4 AND n = 1").await, 0);
        assert_eq!(world.one("SELECT COUNT(*) FROM papers WHERE epoch = 0 AND kind = 4 AND n = 0").await, 1, "c holds it");
        assert_eq!(world.one("SELECT COUNT(*) FROM papers WHERE kind = 3").await, 1, "the only list of the denied is gone");
        assert_eq!(world.one("SELECT COUNT(*) FROM held_versions WHERE name = 'a' AND n = 1").await, 0);
        assert_eq!(world.one("SELECT COUNT(*) FROM held_versions").await, 4);
        assert_eq!(sweep().await, Swept::default());
    })
    .await;
}

#[tokio::test]
async fn exactly_the_old_half_of_every_table_goes_with_its_objects_however_often_the_sweep_is_cut_off() {
    each_store(async |world: World| {
        let hub = &world.hub;
        fill(&world).await;
        let objects = Objects::over(Arc::new(InMemory::new()), None);
        for i in 1..=ROWS {
            objects.put(&object(i), bytes::Bytes::from_static(b"picture")).await.unwrap();
        }
        let retention = Retention::alike(30);
        let sweep = || retention::sweep(&hub.store, &objects, NOW, retention, PIECE);
        // Three times it ends in the middle of whatever it was doing.
        let (mut gone, mut cuts, mut polls) = (0, 0, 61);
        while cuts < 3 {
            assert!(
                Cut { future: Box::pin(sweep()), polls }.await.is_none(),
                "{polls} polls are enough for all of it: nothing was cut off"
            );
            reports_agree(&world, &objects).await;
            let now = deleted_so_far(&world).await;
            // How far it comes differs between the engines.
            if now > gone { (gone, cuts, polls) = (now, cuts + 1, polls + 17) } else { polls *= 2 }
        }
        // The last sweep goes through, and ten POSTs get in between its pieces.
        let over = AtomicBool::new(false);
        let sweeping = async {
            let swept = sweep().await.unwrap();
            over.store(true, Ordering::SeqCst);
            swept
        };
        let posting = async {
            for number in 1..=10 {
                world.post_number(number, &[sealed(ROWS as u64 + number)]).await;
                assert!(!over.load(Ordering::SeqCst), "POST {number} had to wait for the end of the sweep");
            }
        };
        let (swept, ()) = tokio::join!(sweeping, posting);
        assert!(swept.records > 0);

        for table in KINDS.iter().chain(&["batches", "holds", "dropped"]) {
            let posted = if ["activity", "focus", "heartbeat", "batches"].contains(table) { 10 } else { 0 };
            assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table}")).await, ROWS / 2 + posted, "{table}");
            assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table} WHERE seq <= {ROWS} AND seq % 2 = 0")).await, ROWS / 2, "{table}");
        }
        reports_agree(&world, &objects).await;
        assert_eq!(stored_objects(&objects).await, (1..=ROWS).filter(|i| i % 2 == 0).map(object).collect::<Vec<_>>());
        assert_eq!(world.one("SELECT COUNT(*) FROM doomed").await, 0);
        assert_eq!(world.one("SELECT objects FROM deleted WHERE kind = 'screenshot'").await, ROWS / 2);
        // No transaction took more than its share.
        let most = world.one("SELECT MAX(n) FROM pieces").await;
        assert!(most > 0 && most <= PIECE, "{most} rows in one transaction");
        assert_eq!(sweep().await.unwrap(), Swept::default());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_that_sweep_at_once_delete_and_report_everything_once() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    fill(&world).await;
    let other = world.another_hub(false).await;
    let sweeps = [world.hub.clone(), other.clone()].map(|hub| {
        tokio::spawn(async move { retention::sweep(&hub.store, &hub.objects, NOW, Retention::alike(30), PIECE).await.unwrap() })
    });
    let mut records = 0;
    for sweep in sweeps {
        records += sweep.await.unwrap().records as i64;
    }
    assert_eq!(records, KINDS.len() as i64 * ROWS / 2);
    assert_eq!(world.one("SELECT CAST(SUM(objects) AS BIGINT) FROM deleted").await, ROWS / 2);
    for table in KINDS.iter().chain(&["batches", "holds", "dropped"]) {
        assert_eq!(world.one(&format!("SELECT records FROM deleted WHERE kind = '{table}'")).await, ROWS / 2, "{table}");
        assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table}")).await, ROWS / 2, "{table}");
    }
    other.store.close().await;
}

#[tokio::test]
async fn titles_networks_and_the_rest_go_each_in_its_time_and_the_check_says_expired() {
    each_store(async |mut world: World| {
        set_retention(&world, "titles_days = 10\nnetwork_days = 20\npictures_days = 5").await;
        let all = |at: i64| vec![focus(at, "xterm"), network(at), heartbeat(at)];
        let batches = [
            aged(1, 5, all),
            aged(2, 15, all),
            aged(3, 25, all),
            aged(4, 25, |at| vec![network(at)]),
            aged(5, 15, |at| vec![heartbeat(at), activity(at, 1)]),
            aged(6, 46, all),
        ];
        let taken = world.post(&batches.each_ref().map(sealed_batch)).await;
        assert_eq!((taken.counts.stored, taken.counts.expired), (4, 2));
        // What came too late for its kind was never written.
        assert_eq!(titles(&world).await, [1]);
        assert_eq!(seqs(&world, "network").await, [1, 2]);
        assert_eq!(world.one("SELECT n FROM counters WHERE name = 'expired_records_left_out'").await, 1);
        let whole =
            |kept: &KeptNumber| matches!(&kept.answered, Answered::Rows(records) if proves(records, &batches[kept.seq as usize - 1]));
        let left = |kept: &KeptNumber| if let Answered::Expired(left) = kept.answered { Some(left) } else { None };
        let now = kept(&world).await;
        assert!(whole(&now[0]) && whole(&now[4]), "{now:?}");
        assert_eq!((left(&now[1]), left(&now[2])), (Some(3), Some(2)));

        // Ten days on: the title of the first goes, the network of the second, and nothing else.
        let retention = world.hub.policies.current().retention();
        let later = NOW + 10 * DAY_MS;
        let swept = retention::sweep(&world.hub.store, &world.hub.objects, later, retention, 2).await.unwrap();
        assert_eq!((swept.records, swept.titles, swept.batches), (1, 1, 0));
        assert!(titles(&world).await.is_empty());
        assert_eq!(seqs(&world, "network").await, [1]);
        assert_eq!(seqs(&world, "focus").await, [1, 2, 3]);
        let then = kept(&world).await;
        assert_eq!((left(&then[0]), left(&then[1]), left(&then[2])), (Some(3), Some(2), Some(2)));
        // Its kinds are kept longer: it is still proven.
        assert!(whole(&then[4]), "{then:?}");
        let deletions = world.hub.store.deletions(10).await.unwrap();
        let deletions: Vec<_> = deletions.iter().map(|deletion| (deletion.kind.as_str(), deletion.days, deletion.records)).collect();
        assert_eq!(deletions, [("network", 20, 1), ("title", 10, 1)]);
    })
    .await;
}

#[tokio::test]
async fn a_row_that_another_hand_deleted_is_not_taken_for_an_expired_one() {
    each_store(async |mut world: World| {
        set_retention(&world, "network_days = 20").await;
        world
            .post(&[sealed_batch(&aged(1, 15, |at| vec![network(at), heartbeat(at)])), sealed_batch(&aged(2, 19, |at| vec![network(at)]))])
            .await;
        let retention = world.hub.policies.current().retention();
        retention::sweep(&world.hub.store, &world.hub.objects, NOW + 2 * DAY_MS, retention, 100).await.unwrap();
        world.meddle("DELETE FROM heartbeat").await;
        let kept = kept(&world).await;
        assert!(matches!(&kept[0].answered, Answered::Rows(records) if records.len() == 1), "{kept:?}");
        assert_eq!(kept[1].answered, Answered::Expired(0));
    })
    .await;
}

#[tokio::test]
async fn an_object_that_does_not_go_keeps_no_row_and_goes_with_the_next_sweep() {
    each_store(async |world: World| {
        fill(&world).await;
        let locked = world.folder.path().join("locked");
        let broken = Objects::open(locked.to_str().unwrap()).unwrap();
        // A folder where the object should be can't be deleted as a file.
        for i in 1..=40 {
            std::fs::create_dir_all(locked.join(object(i)).join("x")).unwrap();
        }
        let retention = Retention::alike(30);
        assert!(retention::sweep(&world.hub.store, &broken, NOW, retention, 1_000).await.is_err());
        assert_eq!(world.one("SELECT COUNT(*) FROM screenshot").await, ROWS / 2);
        let left = world.one("SELECT COUNT(*) FROM doomed").await;
        assert!(left >= 10, "{left}");
        retention::sweep(&world.hub.store, &world.hub.objects, NOW, retention, 1_000).await.unwrap();
        assert_eq!(world.one("SELECT COUNT(*) FROM doomed").await, 0);
        assert_eq!(world.one("SELECT objects FROM deleted WHERE kind = 'screenshot'").await, ROWS / 2);
    })
    .await;
}

/// A future that is dropped after so many polls, wherever it is then.
struct Cut<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Cut<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.polls.checked_sub(1) {
            None => Poll::Ready(None),
            Some(polls) => {
                self.polls = polls;
                self.future.as_mut().poll(context).map(Some)
            }
        }
    }
}

/// Ten thousand rows in each table: the odd ones are too old by a day at least, the even ones aren't by a day at most.
async fn fill(world: &World) {
    let bytes = if world.is_on_postgres() { "decode(md5(CAST(i AS TEXT)), 'hex')" } else { "randomblob(16)" };
    let day = format!("(CASE WHEN i % 2 = 1 THEN {TODAY} - 31 - i % 7 ELSE {TODAY} - 30 + i % 30 END)");
    let received = format!("({day} + 1) * {MS} - 1");
    let key = format!("{day}, {FILLED}, i, 0, {day} * {MS}");
    let rows = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT");
    let tables = [
        ("heartbeat (day, spool_id, seq, idx, at, state, battery, charging, version_id)", format!("{key}, 1, NULL, NULL, 1")),
        (
            "activity (day, spool_id, seq, idx, at, ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms)",
            format!("{key}, 60000, 1, 1, 1, 1, 1, 1"),
        ),
        ("focus (day, spool_id, seq, idx, at, ms, application_id, title, title_key, source)", format!("{key}, 900, 1, 'title', NULL, 0")),
        (
            "screenshot (day, spool_id, seq, idx, at, area, width, height, format, blurred, why, sha256, group_id, part, parts, bytes_len, object, object_id)",
            format!("{key}, 0, 1, 1, 0, 1, 0, {bytes}, {bytes}, 0, 1, 7, 'k' || CAST(100000 + i AS TEXT), {bytes}"),
        ),
        ("session (day, spool_id, seq, idx, at, what, ms, sha256, language, switches)", format!("{key}, 0, NULL, NULL, NULL, NULL")),
        ("network (day, spool_id, seq, idx, at, addresses)", format!("{key}, '[]'")),
        ("capability (day, spool_id, seq, idx, at, what, able, why)", format!("{key}, 'titles', 1, ''")),
        (
            "gap (day, spool_id, seq, idx, at, lane, of_spool_id, first, last, records, bytes, reason)",
            format!("{key}, 0, NULL, NULL, NULL, 1, 1, 0"),
        ),
        (
            "batches (spool_id, seq, device_id, day, context_id, relay_id, boot_ms, wall_ms, relay_ms, hub_ms, shift_ms, shift_why, records, left_out)",
            format!("{FILLED}, i, {FILLED}, {day}, 1, 1, 0, {day} * {MS}, 0, {received}, 0, 0, 8, 0"),
        ),
        (
            "holds (spool_id, seq, digest, reason, relay_id, hub_ms, facts, envelope)",
            format!("{FILLED}, i, {bytes}, 1, 1, {received}, {bytes}, {bytes}"),
        ),
        ("dropped (spool_id, seq, verdict, reason, hub_ms)", format!("{FILLED}, i, 1, 1, {received}")),
    ];
    let blob = if world.is_on_postgres() { "'\\x01'" } else { "X'01'" };
    let mut statements = vec![
        format!("INSERT INTO devices (id, device) VALUES ({FILLED}, {blob})"),
        format!("INSERT INTO spools (id, device_id, spool, lane, numbers, settled) VALUES ({FILLED}, {FILLED}, {blob}, 0, {blob}, 1)"),
        "CREATE TABLE pieces (n BIGINT)".into(),
    ];
    statements.extend(tables.map(|(table, columns)| format!("INSERT INTO {table} {rows} {columns} FROM n")));
    // The report rises by what one transaction deleted.
    if world.is_on_postgres() {
        statements.push(
            "CREATE FUNCTION count_piece() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO pieces VALUES (NEW.records - COALESCE(OLD.records, 0)); RETURN NEW; END $$; \
             CREATE TRIGGER piece AFTER INSERT OR UPDATE ON deleted FOR EACH ROW EXECUTE FUNCTION count_piece()"
                .into(),
        );
    } else {
        statements.push("CREATE TRIGGER first AFTER INSERT ON deleted BEGIN INSERT INTO pieces VALUES (NEW.records); END".into());
        statements
            .push("CREATE TRIGGER more AFTER UPDATE ON deleted BEGIN INSERT INTO pieces VALUES (NEW.records - OLD.records); END".into());
    }
    world.meddle(&statements.join("; ")).await;
}

fn object(i: i64) -> String {
    format!("k{}", 100_000 + i)
}

async fn stored_objects(objects: &Objects) -> Vec<String> {
    let mut listing = objects.list(None);
    let mut names = Vec::new();
    loop {
        let some = listing.older(i64::MAX, 1_000).await.unwrap();
        if some.is_empty() {
            names.sort();
            return names;
        }
        names.extend(some);
    }
}

async fn deleted_so_far(world: &World) -> i64 {
    let mut gone = 0;
    for table in KINDS {
        gone += ROWS - world.one(&format!("SELECT COUNT(*) FROM {table}")).await;
    }
    gone
}

/// What the reports say is what is gone, no row that stays is gone, and each picture's row has its object.
async fn reports_agree(world: &World, objects: &Objects) {
    let deletions = world.hub.store.deletions(100).await.unwrap();
    let reported: BTreeMap<_, _> = deletions.iter().map(|deletion| (deletion.kind.as_str(), deletion.records as i64)).collect();
    for table in KINDS.iter().chain(&["batches", "holds", "dropped"]) {
        let left = world.one(&format!("SELECT COUNT(*) FROM {table} WHERE seq <= {ROWS}")).await;
        assert_eq!(ROWS - left, reported.get(table).copied().unwrap_or(0), "{table}");
        assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table} WHERE seq <= {ROWS} AND seq % 2 = 0")).await, ROWS / 2, "{table}");
    }
    let there: std::collections::BTreeSet<_> = stored_objects(objects).await.into_iter().collect();
    let pictures = world.one("SELECT COUNT(*) FROM screenshot").await as usize;
    let doomed = world.one("SELECT COUNT(*) FROM doomed").await as usize;
    // Every object is named by a row or waits for its deletion, some of those are gone already.
    assert!(there.len() >= pictures && there.len() <= pictures + doomed, "{} objects, {pictures} rows, {doomed} doomed", there.len());
    for i in (2..=ROWS).step_by(2) {
        assert!(there.contains(&object(i)), "{i}");
    }
}

/// A batch of so many days ago, from a boot that nobody measured.
fn aged(seq: u64, days: i64, records: impl Fn(i64) -> Vec<Record>) -> Batch {
    let wall_ms = NOW - days * DAY_MS;
    let mut batch = batch(seq, records(wall_ms));
    batch.head.wall_ms = wall_ms;
    batch.head.boot = BootId([seq as u8; 16]);
    // A day that is only just within the ceiling is plausible; one beyond it is placed by a boot that was measured.
    if days > 44 {
        batch.head.boot = BOOT;
        batch.head.boot_ms = 0;
        batch.head.wall_ms = NOW - 1_000_000;
    }
    batch
}

fn sealed_batch(batch: &Batch) -> Envelope {
    batch.seal().unwrap()
}

fn network(at: i64) -> Record {
    Record { at, kind: Kind::Network(Network { addresses: vec!["10.0.0.1".into()] }) }
}

fn proves(records: &[Record], batch: &Batch) -> bool {
    record::digest(records) == record::digest(&batch.records)
}

async fn kept(world: &World) -> Vec<KeptNumber> {
    world.hub.store.kept_numbers(device(1), spool(1), 1, 100).await.unwrap()
}

/// Numbers of batches with a title.
async fn titles(world: &World) -> Vec<u64> {
    numbers(world, "focus WHERE title IS NOT NULL").await
}

async fn seqs(world: &World, table: &str) -> Vec<u64> {
    numbers(world, table).await
}

/// The numbers below 10 that a table has.
async fn numbers(world: &World, table: &str) -> Vec<u64> {
    let digits =
        world.one(&format!("SELECT CAST(COALESCE(SUM(power), 0) AS BIGINT) FROM (SELECT DISTINCT {POWER} AS power FROM {table}) p")).await;
    (1..10).filter(|n| digits / 10_i64.pow(*n) % 10 == 1).map(u64::from).collect()
}

/// Ten to the power of the batch's number, in what both engines understand.
const POWER: &str = "CASE seq WHEN 1 THEN 10 WHEN 2 THEN 100 WHEN 3 THEN 1000 WHEN 4 THEN 10000 WHEN 5 THEN 100000 ELSE 1000000 END";
