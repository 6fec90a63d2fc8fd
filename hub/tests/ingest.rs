//! Async: POSTs as relays make them, and what the database holds afterwards.
#![allow(clippy::unwrap_used)]

mod world;

use muster_hub::store::Answered;
use muster_mesh::{
    batch::{self as envelope, Batch, Envelope, Header},
    ids::{BootId, Lane, Version},
    message::{Answer, Ask, Facts, HeldVersion, Reason, ReturnReason, Signed, SignedKind, Verdict},
    record::{self, Area, Kind, PictureFormat, Record, Screenshot, Why},
};
use world::*;

#[tokio::test]
async fn a_repeated_batch_is_acked_and_stored_once() {
    each_store(async |mut world: World| {
        let first = world.post(&[sealed(1), sealed(2)]).await;
        assert_eq!((first.counts.stored, first.number), (2, 1));
        assert_eq!(ack_of(&first, device(1), spool(1)).stored, [(1, 2)]);
        let again = world.post(&[sealed(2), sealed(3)]).await;
        assert_eq!((again.counts.stored, again.counts.repeat), (1, 1));
        assert_eq!(ack_of(&again, device(1), spool(1)).stored, [(2, 3)]);
        assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 3);
        for table in ["activity", "focus", "heartbeat"] {
            assert_eq!(world.one(&format!("SELECT COUNT(*) FROM {table}")).await, 3, "{table}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_same_number_with_other_content_is_held_and_the_original_stays() {
    each_store(async |mut world: World| {
        world.post(&[sealed(1)]).await;
        let other = batch(1, vec![heartbeat(NOW), gap(spool(9), 1, Some(5))]).seal().unwrap();
        let taken = world.post(&[other.clone(), sealed(2)]).await;
        assert_eq!((taken.counts.held, taken.counts.stored), (1, 1));
        let ack = world.post_by(RELAY, &[], &[ask(1)]).await;
        assert_eq!(ack_of(&ack, device(1), spool(1)).shown, [(1, Verdict::Held, Reason::OtherContent)]);
        assert_eq!(world.one("SELECT COUNT(*) FROM alarms").await, 1);
        assert_eq!(world.one("SELECT COUNT(*) FROM activity WHERE seq = 1").await, 1);
        // What a second computer states about other spools doesn't count.
        assert_eq!(world.one("SELECT COUNT(*) FROM gap").await, 0);
        world.post(&[other]).await;
        assert_eq!(world.one("SELECT COUNT(*) FROM holds").await, 1);
    })
    .await;
}

#[tokio::test]
async fn what_this_hub_does_not_know_is_held_and_never_stops_the_next() {
    each_store(async |mut world: World| {
        let strange = |seq: u64, change: fn(&mut Header)| {
            let good = sealed(seq);
            let mut header = *good.header();
            change(&mut header);
            let body = &good.bytes()[envelope::HEADER_BYTES..good.bytes().len() - envelope::CRC_BYTES];
            Envelope::read(envelope::frame(&header, body)).unwrap()
        };
        let envelopes = [
            strange(1, |header| header.version = 2),
            strange(2, |header| header.seal = 1),
            strange(3, |header| header.codec = 9),
            strange(4, |header| header.flags = 4),
            strange(5, |header| header.records = 2),
            batch(6, vec![picture()]).seal().unwrap(),
            strange(7, |header| header.records = 0),
            sealed(8),
        ];
        let taken = world.post(&envelopes).await;
        assert_eq!((taken.counts.held, taken.counts.refused, taken.counts.stored), (6, 1, 1));
        let ack = ack_of(&taken, device(1), spool(1));
        assert_eq!(ack.stored, [(1, 8)]);
        let held = |seq, reason| (seq, Verdict::Held, reason);
        let shown = [
            held(1, Reason::UnknownVersion),
            held(2, Reason::UnknownSeal),
            held(3, Reason::UnknownCodec),
            held(4, Reason::UnknownFlags),
            held(5, Reason::Undecodable),
            held(6, Reason::UnknownKind),
            (7, Verdict::Refused, Reason::Bound),
        ];
        assert_eq!(ack.shown, shown);
        assert_eq!(world.one("SELECT COUNT(*) FROM holds").await, 6);
        let kept = world.hub.store.kept_numbers(device(1), spool(1), 1, 100).await.unwrap();
        let verdicts: Vec<_> = kept.iter().filter(|kept| matches!(kept.answered, Answered::Verdict(..))).map(|kept| kept.seq).collect();
        assert_eq!(verdicts, [1, 2, 3, 4, 5, 6, 7]);
    })
    .await;
}

#[tokio::test]
async fn test_mode_is_refused_by_a_hub_without_it() {
    let mut world = World::with(false).await;
    let mut real = batch(2, vec![start(NOW)]);
    real.test_mode = false;
    let taken = world.post(&[sealed(1), real.seal().unwrap()]).await;
    assert_eq!((taken.counts.refused, taken.counts.stored), (1, 1));
    assert_eq!(ack_of(&taken, device(1), spool(1)).shown, [(1, Verdict::Refused, Reason::TestMode)]);
}

#[tokio::test]
async fn a_damaged_batch_is_returned_and_never_counts_as_received() {
    each_store(async |mut world: World| {
        let head = world.head(RELAY, true);
        let facts = facts(NOW).bytes().unwrap();
        let (mut damaged, good) = (sealed(1).bytes().to_vec(), sealed(2));
        damaged[100] ^= 1;
        let other_lane = Batch { lane: Lane::Pictures, ..batch(3, vec![start(NOW)]) }.seal().unwrap();
        let entries = [(&facts[..], &damaged[..]), (&facts[..], &good.bytes()[..]), (&facts[..], &other_lane.bytes()[..])];
        let Answer::Taken(taken) = world.hub.ingest.post(RELAY, head.body(entries).unwrap()).await.unwrap() else { panic!() };
        assert_eq!(taken.returned, [(0, ReturnReason::Damaged), (2, ReturnReason::Damaged)]);
        assert_eq!(ack_of(&taken, device(1), spool(1)).stored, [(2, 2)]);
    })
    .await;
}

#[tokio::test]
async fn gaps_and_tails_say_what_is_missing_and_late_bytes_are_stored_all_the_same() {
    each_store(async |mut world: World| {
        let mut stating = batch(9, vec![gap(spool(1), 1, Some(3)), gap(spool(2), 5, None)]);
        stating.head.tails = vec![tail(spool(1), 6, 12, false), tail(spool(3), 2, 2, true)];
        world.post(&[stating.seal().unwrap()]).await;
        assert_eq!(missing(&world, 1).await, ("6–8, 10–11".into(), "4–5".into()));
        assert_eq!(missing(&world, 3).await, ("none".into(), "1".into()));
        let late = world.post(&[sealed(2), sealed(4)]).await;
        assert_eq!(late.counts.stored, 2);
        assert_eq!(missing(&world, 1).await, ("6–8, 10–11".into(), "5".into()));
    })
    .await;
}

#[tokio::test]
async fn a_post_is_committed_once_by_its_number() {
    each_store(async |mut world: World| {
        world.post(&[sealed(1)]).await;
        let mut late = world.head(RELAY, true);
        late.number = 1;
        assert_eq!(world.send(RELAY, &late, &[sealed(2)]).await, Answer::Stale { number: 1 });
        let mut ahead = world.head(RELAY, true);
        ahead.queues[1].answered = 5;
        let rewind = Answer::Rewind { queues: vec![(Lane::Pictures, 0)] };
        assert_eq!(world.send(RELAY, &ahead, &[sealed(2)]).await, rewind);
        // One without envelopes is compared too.
        ahead.number = 0;
        assert_eq!(world.send(RELAY, &ahead, &[]).await, rewind);
        assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 1);
        // Another relay can't count on this one's queue.
        let mut thief = world.head("site/rome/relay/rome-1", true);
        thief.queues[0].instance = instance(RELAY, Lane::Telemetry);
        thief.number = 1_000;
        assert!(matches!(world.send("site/rome/relay/rome-1", &thief, &[sealed(7)]).await, Answer::Taken(_)));
        assert_eq!(world.post(&[sealed(2)]).await.number, 2);
    })
    .await;
}

#[tokio::test]
async fn a_database_put_back_is_noticed_by_its_numbers() {
    let mut world = World::new().await;
    world.post(&[sealed(1)]).await;
    world.hub.store.close().await;
    let copy = std::fs::read(world.database()).unwrap();
    world.restart(false).await;
    world.post(&[sealed(2)]).await;
    world.hub.store.close().await;
    std::fs::write(world.database(), copy).unwrap();
    world.restart(false).await;
    let head = world.head(RELAY, true);
    assert_eq!(world.send(RELAY, &head, &[sealed(3)]).await, Answer::Rewind { queues: vec![(Lane::Telemetry, 1)] });
    assert_eq!(world.one("SELECT COUNT(*) FROM batches").await, 1);
}

#[tokio::test]
async fn a_batch_that_the_database_refuses_is_held_and_the_others_are_stored() {
    each_store(async |mut world: World| {
        let planted = if world.is_on_postgres() {
            "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF NEW.keys = 666 THEN RAISE EXCEPTION 'planted'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER planted BEFORE INSERT ON activity FOR EACH ROW EXECUTE FUNCTION planted()"
        } else {
            "CREATE TRIGGER planted BEFORE INSERT ON activity WHEN NEW.keys = 666 BEGIN SELECT RAISE(ABORT, 'planted'); END"
        };
        world.meddle(planted).await;
        let bad = batch(2, vec![activity(NOW, 666)]).seal().unwrap();
        let taken = world.post(&[sealed(1), bad, sealed(3)]).await;
        assert_eq!((taken.counts.stored, taken.counts.held), (2, 1));
        assert_eq!(ack_of(&taken, device(1), spool(1)).shown, [(2, Verdict::Held, Reason::StoreError)]);
        assert_eq!(world.one("SELECT COUNT(*) FROM activity").await, 2);
        // What the failed transaction had learned of look-up tables is asked for again.
        assert_eq!(world.post(&[sealed(4)]).await.counts.stored, 1);
        assert_eq!(world.one("SELECT COUNT(*) FROM focus r JOIN applications a ON a.id = r.application_id").await, 3);
        assert_eq!(
            world.one("SELECT COUNT(*) FROM batches b JOIN contexts c ON c.id = b.context_id JOIN zones z ON z.id = c.zone_id").await,
            3
        );
    })
    .await;
}

#[tokio::test]
async fn old_batches_are_expired_and_old_records_left_out() {
    each_store(async |mut world: World| {
        let old = NOW - 46 * DAY_MS;
        let mut expired = batch(1, vec![activity(old, 1)]);
        expired.head.wall_ms = NOW - 44 * DAY_MS;
        expired.head.boot = BootId([7; 16]);
        let mut partly = batch(2, vec![activity(old, 1), heartbeat(NOW)]);
        partly.head = expired.head.clone();
        let taken = world.post(&[expired.seal().unwrap(), partly.seal().unwrap()]).await;
        assert_eq!((taken.counts.expired, taken.counts.stored), (1, 1));
        assert_eq!((world.one("SELECT COUNT(*) FROM activity").await, world.one("SELECT COUNT(*) FROM heartbeat").await), (0, 1));
        assert_eq!(world.one("SELECT n FROM counters WHERE name = 'expired_records_left_out'").await, 1);
        // Expired numbers stay: the same again is a repeat.
        assert_eq!(world.post(&[expired.seal().unwrap()]).await.counts.repeat, 1);
    })
    .await;
}

#[tokio::test]
async fn a_slow_clock_is_put_right_by_the_relays_first_measurement() {
    each_store(async |mut world: World| {
        let mut slow = batch(1, vec![activity(NOW - 7_200_000, 1)]);
        slow.head.wall_ms = NOW - 7_200_000;
        world.post(&[slow.seal().unwrap()]).await;
        assert_eq!(world.one("SELECT shift_ms FROM batches").await, 7_200_000);
        assert_eq!(world.one("SELECT shift_why FROM batches").await, 1);
        // A relay whose clock is off measures nothing, and nothing of it expires.
        let mut head = world.head("site/rome/relay/rome-1", true);
        head.relay_ms = NOW - 3_600_000;
        let mut ancient = batch(2, vec![activity(0, 1)]);
        ancient.head.boot = BootId([8; 16]);
        let facts = Facts { boot: BootId([8; 16]), zero_ms: 5, ..facts(NOW - 3_600_000) };
        let Answer::Taken(taken) = world.send_with("site/rome/relay/rome-1", &head, &[ancient.seal().unwrap()], &[facts]).await else {
            panic!()
        };
        assert_eq!(taken.counts.stored, 1);
        assert_eq!(world.one("SELECT shift_why FROM batches WHERE seq = 2").await, 3);
        assert_eq!(world.one("SELECT COUNT(*) FROM boots").await, 1);
    })
    .await;
}

#[tokio::test]
async fn too_many_holes_are_returned_for_good() {
    each_store(async |mut world: World| {
        let odd: Vec<_> = (0..1_024).map(|i| sealed(2 * i + 1)).collect();
        assert_eq!(world.post(&odd).await.counts.stored, 1_024);
        let taken = world.post(&[sealed(5_000), sealed(2)]).await;
        assert_eq!((taken.returned.clone(), taken.counts.stored), (vec![(0, ReturnReason::TooManyRanges)], 1));
        let many_gaps: Vec<_> = (0..500).map(|i| gap(spool(4), 3 * i + 1, Some(3 * i + 1))).collect();
        let shifted = |by: u64| (0..500).map(|i| gap(spool(4), 3 * i + by, Some(3 * i + by))).collect::<Vec<_>>();
        let taken = world
            .post(&[
                batch(4, many_gaps).seal().unwrap(),
                batch(6, shifted(5_001)).seal().unwrap(),
                batch(8, shifted(9_001)).seal().unwrap(),
            ])
            .await;
        assert_eq!((taken.counts.stored, taken.returned), (2, vec![(2, ReturnReason::TooManyRanges)]));
    })
    .await;
}

#[tokio::test]
async fn an_ask_starts_at_the_first_held_number_and_an_unknown_spool_has_nothing() {
    each_store(async |mut world: World| {
        world.post(&[sealed(1), sealed(2), sealed(5)]).await;
        let asks = [Ask { from: 2, ..ask(1) }, ask(7)];
        let taken = world.post_by(RELAY, &[], &asks).await;
        assert_eq!(ack_of(&taken, device(1), spool(1)).stored, [(2, 2), (5, 5)]);
        assert!(ack_of(&taken, device(1), spool(7)).stored.is_empty());
        assert_eq!(taken.number, 0);
    })
    .await;
}

#[tokio::test]
async fn a_restored_hub_takes_new_epochs() {
    each_store(async |mut world: World| {
        let policy = |version: Version| vec![HeldVersion { kind: SignedKind::Policy.as_u8(), version }];
        let mut head = world.head(RELAY, false);
        head.versions = policy(Version { epoch: 1, n: 1 });
        let Answer::Taken(taken) = world.send(RELAY, &head, &[]).await else { panic!() };
        let kinds: Vec<u8> = taken.signed.iter().map(|bytes| Signed::read(bytes).unwrap().kind).collect();
        assert_eq!(kinds, [SignedKind::Bundle, SignedKind::Notice].map(SignedKind::as_u8), "only what it doesn't hold");
        world.restart(true).await;
        assert_eq!(world.hub.policies.current().version, Version { epoch: 2, n: 2 });
    })
    .await;
}

#[tokio::test]
async fn rows_hash_to_what_the_agent_made_and_a_deleted_row_is_seen() {
    each_store(async |mut world: World| {
    world.post(&[sealed(1), sealed(2)]).await;
    let kept = world.hub.store.kept_numbers(device(1), spool(1), 1, 2).await.unwrap();
    for (kept, seq) in kept.iter().zip(1..) {
        let Answered::Rows(records) = &kept.answered else { panic!("{kept:?}") };
        assert_eq!(record::digest(records), record::digest(&some_records(seq)));
    }
    world.meddle("DELETE FROM focus WHERE seq = 2").await;
    let kept = world.hub.store.kept_numbers(device(1), spool(1), 2, 2).await.unwrap();
    let Answered::Rows(records) = &kept[0].answered else { panic!() };
    assert_ne!(record::digest(records), record::digest(&some_records(2)));
    world.meddle("DELETE FROM batches WHERE seq = 1; DELETE FROM activity WHERE seq = 1; DELETE FROM focus WHERE seq = 1; DELETE FROM heartbeat WHERE seq = 1").await;
    let kept = world.hub.store.kept_numbers(device(1), spool(1), 1, 1).await.unwrap();
    assert_eq!(kept[0].answered, Answered::Deleted);
    })
    .await;
}

async fn missing(world: &World, n: u8) -> (String, String) {
    let device = world.hub.store.device(device(1)).await.unwrap().unwrap();
    let spools = world.hub.store.spools_of(device.id).await.unwrap();
    let (_, _, row) = spools.into_iter().find(|(id, _, _)| *id == spool(n)).unwrap();
    (row.missing().announced.to_string(), row.missing().lost.to_string())
}

fn ask(n: u8) -> Ask {
    Ask { device: device(1), spool: spool(n), from: 1 }
}

fn picture() -> Record {
    let picture = Screenshot {
        area: Area::Monitor,
        width: 1,
        height: 1,
        format: PictureFormat::Webp,
        blurred: true,
        why: Why::Interval,
        sha256: [0; 32],
        group: [0; 16],
        part: 0,
        parts: 1,
        bytes: vec![1, 2, 3],
    };
    Record { at: NOW, kind: Kind::Screenshot(picture) }
}
