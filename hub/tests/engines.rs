//! Async: SQLite and PostgreSQL hold the same, whatever the order in which it came, and two hubs may bring it.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::Arc;

use muster_hub::{
    day::Day,
    hub::Hub,
    ingest::IngestError,
    rows::{Shape, Table, Value},
    store::{Answered, StoreError},
};
use muster_mesh::{
    batch::Envelope,
    ids::{BootId, DeviceId, Lane, Version},
    link::hub_ranges::SpoolRow,
    message::{Answer, Facts, HeldVersion, PostHead, QueueState, SignedKind},
    record::{Application, Capability, Focus, Kind, Network, Record, Session, Source},
};
use world::*;

#[tokio::test]
async fn batches_that_come_late_out_of_order_from_two_relays_make_the_same_rows_and_days_on_each_engine() {
    let batches = morning();
    let mut orderly = World::new().await;
    for envelopes in batches.chunks(10) {
        orderly.clock.advance(3_000_000);
        let facts = vec![measured(orderly.now_ms()); envelopes.len()];
        post(&mut orderly, RELAY, envelopes, &facts).await;
    }
    let (rows, days) = (dump(&orderly).await, days(&orderly).await);
    assert!(days[1].input.minutes > 50 && days[1].focus.len() > 50, "{days:?}");

    each_store(async |mut late: World| {
        late.clock.advance(3 * DAY_MS as u64);
        // A fixed shuffle: 37 and 120 have no common factor.
        let shuffled: Vec<_> = (0..batches.len()).map(|i| batches[i * 37 % 120].clone()).collect();
        for (i, envelopes) in shuffled.chunks(7).enumerate() {
            let relay = if i % 2 == 0 { RELAY } else { "site/rome/relay/rome-1" };
            // The two relays' clocks differ a little.
            let facts = vec![Facts { zero_ms: NOW - 30_000_000 + i as i64, ..measured(late.now_ms()) }; envelopes.len()];
            post(&mut late, relay, envelopes, &facts).await;
        }
        let found = dump(&late).await;
        assert_eq!(found.len(), rows.len());
        for (found, expected) in found.iter().zip(&rows) {
            assert_eq!(found, expected);
        }
        assert_eq!(self::days(&late).await, days);
    })
    .await;
}

#[tokio::test]
async fn a_time_beyond_all_calendars_and_a_count_beyond_31_bits_are_kept_on_each_engine() {
    each_store(async |mut world: World| {
        // Nothing that a relay with a wrong clock measured counts: the batch's own time stands.
        let beyond = [i64::MIN, i64::MAX].into_iter().zip(1..).map(|(wall_ms, seq)| {
            let mut batch = batch(seq, vec![heartbeat(wall_ms)]);
            batch.head.wall_ms = wall_ms;
            batch.seal().unwrap()
        });
        let many = vec![activity(NOW, u32::MAX)];
        let envelopes: Vec<_> = beyond.chain([batch(3, many.clone()).seal().unwrap()]).collect();
        let mut head = world.head(RELAY, true);
        head.relay_ms += 3_600_000;
        let Answer::Taken(taken) = world.send(RELAY, &head, &envelopes).await else { panic!("not taken") };
        assert_eq!((taken.counts.stored, taken.counts.held), (3, 0));
        let kept = world.hub.store.kept_numbers(device(1), spool(1), 3, 3).await.unwrap();
        assert_eq!(kept[0].answered, Answered::Rows(many));
        assert_eq!(world.one("SELECT CAST(MAX(day) AS BIGINT) FROM heartbeat").await, i64::from(i32::MAX));
        assert_eq!(world.one("SELECT CAST(MIN(day) AS BIGINT) FROM heartbeat").await, i64::from(i32::MIN));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_take_one_spool_at_once_and_nothing_is_there_twice() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    const BATCHES: u64 = 400;
    let envelopes: Vec<_> = (1..=BATCHES).map(varied).collect();
    // Each relay has everything: one sends it up, the other down; both have a third that sends to whichever hub answers.
    let hubs = [world.hub.clone(), world.another_hub(false).await];
    let mut sending = Vec::new();
    for (n, hub) in hubs.iter().enumerate() {
        let mut own = envelopes.clone();
        if n == 1 {
            own.reverse();
        }
        sending.push(tokio::spawn(send_all(hub.clone(), format!("site/oslo/relay/{n}"), own)));
    }
    let (mut stored, mut repeated) = (0, 0);
    for task in sending {
        let (some, again) = task.await.unwrap();
        (stored, repeated) = (stored + some, repeated + again);
    }
    assert_eq!((stored, repeated), (BATCHES, BATCHES));
    assert_eq!(world.one("SELECT COUNT(*) FROM batches").await as u64, BATCHES);
    for table in ["activity", "focus", "heartbeat"] {
        assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table}")).await as u64, BATCHES, "{table}");
    }
    let summary = world.hub.store.summary(0).await.unwrap();
    assert_eq!((summary.duplicates, summary.missing, summary.alarms), (0, 0, 0));
    let device = world.hub.store.device(device(1)).await.unwrap().unwrap();
    let spools = world.hub.store.spools_of(device.id).await.unwrap();
    assert_eq!(spools.len(), 1);
    assert_eq!(spools[0].2.stored().to_string(), format!("1–{BATCHES}"));
    // Look-ups stand once, and both hubs' rows name the same.
    assert_eq!(world.one("SELECT COUNT(*) FROM applications").await, 40);
    assert_eq!(world.one("SELECT COUNT(DISTINCT application_id) FROM focus").await, 40);
    assert_eq!(world.one("SELECT COUNT(*) FROM contexts").await, 8);
    hubs[1].store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_post_that_reaches_two_hubs_is_taken_by_one() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    let hubs = [world.hub.clone(), world.another_hub(false).await];
    for number in 1..=20 {
        let body = |envelope: Envelope| {
            let facts = facts(NOW).bytes().unwrap();
            head(RELAY, number).body([(&facts[..], &envelope.bytes()[..])]).unwrap()
        };
        // Other content of the same POST: whichever comes second must not be looked at.
        let both = [body(sealed(2 * number)), body(sealed(2 * number + 1))];
        let taking = hubs.iter().zip(both).map(|(hub, body)| {
            let hub = hub.clone();
            tokio::spawn(async move { hub.ingest.post(RELAY, body).await.unwrap() })
        });
        let (mut taken, mut stale) = (0, 0);
        for answer in taking.collect::<Vec<_>>() {
            match answer.await.unwrap() {
                Answer::Taken(_) => taken += 1,
                Answer::Stale { number: highest } if highest == number => stale += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((taken, stale), (1, 1), "POST {number}");
    }
    assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 20);
    hubs[1].store.close().await;
}

#[tokio::test]
async fn a_policy_that_one_hub_gives_out_is_the_others_too_and_no_rollback() {
    let Some(world) = World::on_postgres().await else { return skipped() };
    let other = world.another_hub(false).await;
    let narrower = include_str!("policy.toml").replace("titles = true", "titles = false");
    std::fs::write(world.folder.path().join("policy.toml"), narrower).unwrap();
    // Both see the change at the same time, and give out one version.
    let both = tokio::join!(world.hub.policies.look(NOW), other.policies.look(NOW));
    both.0.unwrap();
    both.1.unwrap();
    other.policies.look(NOW).await.unwrap();
    world.hub.policies.look(NOW).await.unwrap();
    let second = Version { epoch: 1, n: 2 };
    assert_eq!((world.hub.policies.current().version, other.policies.current().version), (second, second));
    assert_eq!(world.one("SELECT COUNT(*) FROM policies").await, 2);

    // A relay knows the third from the first hub before the other has looked.
    std::fs::write(world.folder.path().join("policy.toml"), include_str!("policy.toml")).unwrap();
    world.hub.policies.look(NOW).await.unwrap();
    let third = Version { epoch: 1, n: 3 };
    assert_eq!((world.hub.policies.current().version, other.policies.current().version), (third, second));
    other.policies.told(&[HeldVersion { kind: SignedKind::Policy.as_u8(), version: third }], NOW).await.unwrap();
    assert_eq!((other.policies.current().version, other.policies.current().epoch), (third, 1));
    other.store.close().await;
}

/// Sends all of them in POSTs of eight, the same again when a hub is busy. Returns how many were stored, and repeats.
async fn send_all(hub: Arc<Hub>, relay: String, envelopes: Vec<Envelope>) -> (u64, u64) {
    let facts = facts(NOW).bytes().unwrap();
    let (mut stored, mut repeated) = (0, 0);
    for (envelopes, number) in envelopes.chunks(8).zip(1..) {
        let body = head(&relay, number).body(envelopes.iter().map(|envelope| (&facts[..], &envelope.bytes()[..]))).unwrap();
        let taken = loop {
            match hub.ingest.post(&relay, body.clone()).await {
                Ok(Answer::Taken(taken)) => break taken,
                Err(IngestError::Store(StoreError::Busy)) => tokio::task::yield_now().await,
                other => panic!("{other:?}"),
            }
        };
        stored += u64::from(taken.counts.stored);
        repeated += u64::from(taken.counts.repeat);
    }
    (stored, repeated)
}

fn head(relay: &str, number: u64) -> PostHead {
    let queue = |lane: Lane, answered| QueueState { lane, instance: instance(relay, lane), answered };
    PostHead {
        lane: Lane::Telemetry,
        number,
        queues: vec![queue(Lane::Telemetry, number - 1), queue(Lane::Pictures, 0)],
        asks: Vec::new(),
        presence: None,
        relay_ms: NOW,
        versions: Vec::new(),
    }
}

/// A batch whose look-ups both hubs meet for the first time at the same time.
fn varied(seq: u64) -> Envelope {
    let mut batch = batch(seq, vec![activity(NOW, seq as u32), focus(NOW, &format!("application {}", seq % 40)), heartbeat(NOW)]);
    batch.head.offset_s = (seq % 8) as i32 * 900;
    batch.seal().unwrap()
}

/// 120 batches of a morning, with everything in them that SQL could mistake.
fn morning() -> Vec<Envelope> {
    let batches = (1..=120u64).map(|seq| {
        let wall_ms = NOW - 6 * 3_600_000 + seq as i64 * 300_000;
        let title = ["plan.txt", "\"quoted\" \\ {braces,} NULL", "", "日本語\u{1f600}", "a\tb\nc"][seq as usize % 5];
        let application = Application::Named(["xterm", "Ünïcode \"x\\", "{a,b}"][seq as usize % 3].into());
        let record = |kind: Kind| Record { at: wall_ms - 30_000, kind };
        let records = vec![
            activity(wall_ms - 50_000, seq as u32),
            record(Kind::Focus(Focus { ms: 900, application, title: Some(title.into()), source: Source::Portal })),
            record(Kind::Focus(Focus { ms: 100, application: Application::Private, title: None, source: Source::X11 })),
            record(Kind::Session(Session::NoticeAcknowledged {
                sha256: [seq as u8; 32],
                language: "nb".into(),
                switches: vec!["presence".into(), "\"\\".into()],
            })),
            record(Kind::Session(Session::Resume { slept_ms: i64::MAX as u64 })),
            record(Kind::Network(Network { addresses: vec!["10.0.0.1".into(), "fe80::1".into()] })),
            record(Kind::Capability(Capability { what: "titles".into(), able: false, why: "it's \\ \"not\" there".into() })),
            gap(spool(7), 1 + seq, Some(1 + seq)),
            heartbeat(wall_ms),
        ];
        let mut batch = batch(seq, records);
        (batch.head.wall_ms, batch.head.boot_ms) = (wall_ms, (wall_ms - NOW + 30_000_000) as u64);
        batch.head.boot = if seq % 2 == 0 { BOOT } else { BootId([0; 16]) };
        if seq % 10 == 0 {
            batch.head.tails = vec![tail(spool(1), 1 + seq / 2, seq + 1, false)];
        }
        batch.seal().unwrap()
    });
    batches.collect()
}

fn measured(now_ms: i64) -> Facts {
    Facts { zero_ms: NOW - 30_000_000, ..facts(now_ms) }
}

async fn post(world: &mut World, relay: &str, envelopes: &[Envelope], facts: &[Facts]) {
    let number = world.one("SELECT COALESCE(MAX(number), 0) FROM instances").await as u64 + 1;
    let mut head = world.head(relay, true);
    head.number = number;
    let answer = world.send_with(relay, &head, envelopes, facts).await;
    let Answer::Taken(taken) = answer else { panic!("{answer:?}") };
    assert_eq!(taken.counts.stored as usize, envelopes.len());
}

async fn days(world: &World) -> Vec<Day> {
    let device = world.hub.store.device(device(1)).await.unwrap().unwrap();
    let batches = world.hub.store.kept_batches(device.id, 20_778, 20_782).await.unwrap();
    ["2026-11-22", "2026-11-23", "2026-11-24"].map(|date| Day::of(date.parse().unwrap(), &batches).unwrap()).into()
}

/// Every row of what agents sent, with names instead of numbers of look-ups, in the order of their keys.
async fn dump(world: &World) -> Vec<String> {
    use Shape::{Blob, Int, Text};
    let mut lines = Vec::new();
    let batches = "SELECT d.device, own.spool, b.seq, b.day, c.version, c.policy, c.notice, c.erasure, c.flags, c.boot, z.name, c.offset_s, \
                   b.boot_ms, b.wall_ms, b.shift_ms, b.shift_why, b.records, b.left_out FROM batches b JOIN spools own ON own.id = b.spool_id \
                   JOIN devices d ON d.id = b.device_id JOIN contexts c ON c.id = b.context_id JOIN zones z ON z.id = c.zone_id";
    let shapes = [&[Blob, Blob], &[Int; 7][..], &[Blob, Text], &[Int; 7]].concat();
    lines.extend(rows(world, "batches", batches, "own.spool, b.seq", &shapes).await);
    for table in Table::ALL {
        let read = table.read();
        let name = table.name();
        let select = format!(
            "SELECT own.spool, r.seq, r.idx, r.day, {} FROM {name} r JOIN spools own ON own.id = r.spool_id {}",
            read.select, read.join
        );
        let shapes = [&[Blob, Int, Int, Int], read.shapes].concat();
        lines.extend(rows(world, name, &select, "own.spool, r.seq, r.idx", &shapes).await);
    }
    lines.extend(rows(world, "title_key", "SELECT r.seq, r.idx, r.title_key FROM focus r", "r.seq, r.idx", &[Int; 3]).await);
    lines.extend(rows(world, "boots", "SELECT COUNT(*) FROM boots", "1", &[Int]).await);
    let device: DeviceId = device(1);
    let device = world.hub.store.device(device).await.unwrap().unwrap();
    for (spool, lane, row) in world.hub.store.spools_of(device.id).await.unwrap() {
        lines.push(format!("{spool} {lane:?} {}", numbers(&row)));
    }
    lines
}

/// What is known of a spool's numbers, without when it came.
fn numbers(row: &SpoolRow) -> String {
    format!("{} {} {} {:?} {:?}", row.stored(), row.excused(), row.first_held(), row.missing(), row.ack(1))
}

async fn rows(world: &World, name: &str, select: &str, order: &str, shapes: &[Shape]) -> Vec<String> {
    let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&world.url()).await.unwrap();
    let select = sqlx::AssertSqlSafe(format!("{select} ORDER BY {order}"));
    let rows = sqlx::query(select).fetch_all(&mut connection).await.unwrap();
    let value = |row: &sqlx::any::AnyRow, (i, shape): (usize, &Shape)| match shape {
        Shape::Int => Value::Int(sqlx::Row::try_get(row, i).unwrap()),
        Shape::Text => Value::Text(sqlx::Row::try_get(row, i).unwrap()),
        Shape::Blob => Value::Blob(sqlx::Row::try_get(row, i).unwrap()),
    };
    let line = |row: &sqlx::any::AnyRow| {
        let values: Vec<Value> = shapes.iter().enumerate().map(|shape| value(row, shape)).collect();
        format!("{name} {values:?}")
    };
    rows.iter().map(line).collect()
}
