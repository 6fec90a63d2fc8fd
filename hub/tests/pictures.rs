//! Async: pictures from the relay's POST to the object, the row and the API, with an object store that fails on demand.
#![allow(clippy::unwrap_used)]

mod studio;
mod world;

use std::sync::Arc;

use bytes::Bytes;
use muster_hub::{
    api::problem::ApiError,
    check,
    config::Config,
    ingest::IngestError,
    objects::{ObjectError, Objects, mark},
    restore, retention,
    store::{Answered, StoreError},
    strays::{self, Reach},
};
use muster_mesh::{
    batch::Batch,
    ids::{BootId, Lane},
    message::{Reason, Verdict},
    record::{self, Gap, GapReason, Kind, Numbers, PictureFormat, Record, Screenshot, Session},
};
use object_store::memory::InMemory;
use studio::*;
use world::*;

const HOUR_MS: i64 = 3_600_000;

#[tokio::test]
async fn a_picture_becomes_an_object_and_a_row_that_are_the_very_record_and_is_put_once() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        let taken = studio.post(&[shot(1), shot(2)]).await.unwrap();
        assert_eq!((taken.counts.stored, studio.store.puts(), studio.store.len()), (2, 2, 2));
        let again = studio.post(&[shot(2), shot(3)]).await.unwrap();
        assert_eq!((again.counts.stored, again.counts.repeat, studio.store.puts()), (1, 1, 3));
        assert_eq!(ack_of(&again, device(1), pictures_spool()).stored, [(2, 3)]);
        let kept = studio.world.hub.store.kept_numbers(device(1), pictures_spool(), 1, 3).await.unwrap();
        for (kept, seq) in kept.into_iter().zip(1..) {
            let Answered::Rows(mut records) = kept.answered else { panic!("{kept:?}") };
            let sent = records_of(seq);
            assert_ne!(records, sent, "the bytes are in the object alone");
            for record in &mut records {
                let Kind::Screenshot(picture) = &mut record.kind else { continue };
                picture.bytes = studio.world.hub.objects.get(&kept.objects[0]).await.unwrap().to_vec();
            }
            assert_eq!(record::digest(&records), record::digest(&sent));
        }
    })
    .await;
}

#[tokio::test]
async fn pictures_that_are_not_what_they_say_are_held_and_nothing_behind_them_stops() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        let changed = |seq: u64, change: &dyn Fn(&mut Screenshot)| {
            let mut picture = picture(seq);
            change(&mut picture);
            sealed_pictures(seq, vec![picture])
        };
        let with_bytes = |seq: u64, bytes: Vec<u8>| {
            changed(seq, &|picture| *picture = Screenshot { sha256: sha256(&bytes), bytes: bytes.clone(), ..picture.clone() })
        };
        let archive = [picture(3).bytes, b"PK\x05\x06".to_vec(), vec![0; 18]].concat();
        let envelopes = [
            shot(1),
            changed(2, &|picture| picture.sha256[0] ^= 1),
            with_bytes(3, archive),
            with_bytes(4, b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec()),
            changed(5, &|picture| picture.width += 1),
            changed(6, &|picture| picture.format = PictureFormat::Jpeg),
            sealed_pictures(7, vec![picture(7), picture(8)]),
            with_bytes(8, picture(8).bytes[..picture(8).bytes.len() / 2].to_vec()),
            shot(9),
        ];
        let taken = studio.post(&envelopes).await.unwrap();
        assert_eq!((taken.counts.stored, taken.counts.held), (2, 7));
        let ack = ack_of(&taken, device(1), pictures_spool());
        assert_eq!(ack.stored, [(1, 9)]);
        assert!(ack.shown.iter().all(|shown| (shown.1, shown.2) == (Verdict::Held, Reason::Picture)), "{:?}", ack.shown);
        assert_eq!((studio.world.one("SELECT COUNT(*) FROM holds").await, studio.store.len()), (7, 2));
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM screenshot").await, 2);
        // The same again is no news.
        assert_eq!(studio.post(&envelopes).await.unwrap().counts.repeat, 9);
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_down_or_full_stops_pictures_only() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        for (seq, fault) in [(1, Fault::Down), (2, Fault::Full), (3, Fault::FailsAfterPut)] {
            studio.store.set(fault);
            let refused = studio.post(&[shot(seq)]).await.unwrap_err();
            let IngestError::Objects(ObjectError::NotNow(_)) = &refused else { panic!("{refused:?}") };
            let answer = ApiError::from(refused).response();
            assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "2"), "{fault:?}");
            // Telemetry made meanwhile is in the hub before the store comes back.
            let taken = studio.world.post(&[sealed(seq)]).await;
            assert_eq!((taken.counts.stored, ack_of(&taken, device(1), spool(1)).stored), (1, vec![(seq, seq)]));
            assert_eq!(studio.rows_without_objects().await, 0);
            studio.store.set(Fault::None);
            assert_eq!(studio.post(&[shot(seq)]).await.unwrap().counts.stored, 1, "{fault:?}");
            assert_eq!((studio.rows_without_objects().await, studio.world.one("SELECT COUNT(*) FROM screenshot").await), (0, seq as i64));
        }
        // What was put though the store said no: nobody names it.
        assert_eq!((studio.store.len(), studio.sweep(HOUR_MS + 1_000).await, studio.store.len()), (4, 1, 3));
    })
    .await;
}

#[tokio::test]
async fn while_the_store_hangs_telemetry_has_its_acks_and_what_took_too_long_is_not_committed() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.store.set(Fault::Hangs);
        let (hub, body) = (studio.world.hub.clone(), studio.body(&[shot(1)]));
        let hanging = tokio::spawn(async move { hub.ingest.post(RELAY, body).await });
        studio.store.until_asked(1).await;
        for seq in 1..=5 {
            assert_eq!(studio.world.post(&[sealed(seq)]).await.counts.stored, 1);
        }
        assert!(!hanging.is_finished());
        // Eleven minutes later the object may be taken for a stray any time: it may not be named any more.
        studio.world.clock.advance(11 * 60_000);
        studio.store.set(Fault::None);
        let late = hanging.await.unwrap().unwrap_err();
        assert!(matches!(late, IngestError::Store(StoreError::Busy)), "{late:?}");
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM screenshot").await, 0);
        assert_eq!(studio.post(&[shot(1)]).await.unwrap().counts.stored, 1);
        assert_eq!((studio.store.len(), studio.rows_without_objects().await), (2, 0));
        assert_eq!((studio.sweep(HOUR_MS + 1_000).await, studio.store.len(), studio.rows_without_objects().await), (1, 1, 0));
    })
    .await;
}

#[tokio::test]
async fn what_a_store_took_before_it_failed_is_not_put_again() {
    let mut studio = Studio::new(World::new().await);
    let envelopes: Vec<_> = (1..=20).map(shot).collect();
    studio.store.set(Fault::TakesOnly(5));
    assert!(studio.post(&envelopes).await.is_err());
    assert_eq!((studio.store.len(), studio.world.one("SELECT COUNT(*) FROM screenshot").await), (5, 0));
    studio.store.set(Fault::TakesOnly(5));
    assert!(studio.post(&envelopes).await.is_err());
    studio.store.set(Fault::None);
    assert_eq!(studio.post(&envelopes).await.unwrap().counts.stored, 20);
    assert_eq!((studio.store.len(), studio.rows_without_objects().await), (20, 0));
    assert_eq!((studio.sweep(HOUR_MS + 1_000).await, studio.store.len()), (0, 20));
}

#[tokio::test]
async fn a_hub_killed_between_object_and_row_leaves_a_stray_that_goes_after_an_hour() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&[shot(1)]).await.unwrap();
        studio.store.set(Fault::FailsAfterPut);
        assert!(studio.post(&[shot(2), shot(3)]).await.is_err());
        // A new process knows nothing of the attempts of the old one.
        let mut studio = studio.restart();
        studio.store.set(Fault::None);
        let strays = studio.store.len() - 1;
        assert!(strays > 0);
        assert_eq!(studio.post(&[shot(2), shot(3)]).await.unwrap().counts.stored, 2);
        assert_eq!((studio.sweep(0).await, studio.sweep(HOUR_MS - 60_000).await), (0, 0), "an attempt may still commit");
        assert_eq!(studio.sweep(HOUR_MS + 1_000).await, strays as u64);
        assert_eq!((studio.store.len(), studio.rows_without_objects().await), (3, 0));
        // A row whose deletion went before its object's.
        studio.world.meddle("DELETE FROM screenshot WHERE seq = 3").await;
        assert_eq!((studio.sweep(HOUR_MS + 1_000).await, studio.store.len()), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn a_sweep_of_lately_looks_at_the_folders_of_two_days_only() {
    let mut studio = Studio::new(World::new().await);
    studio.store.set(Fault::FailsAfterPut);
    let real_ms = real_ms();
    for (seq, days) in [(1, 0), (2, 1), (3, 5)] {
        studio.world.clock.set_wall(real_ms - days * DAY_MS);
        assert!(studio.post(&[shot(seq)]).await.is_err());
    }
    studio.store.set(Fault::None);
    // They came another way: what was put before is over.
    studio.world.clock.set_wall(NOW);
    assert_eq!(studio.post(&[shot(1), shot(2), shot(3)]).await.unwrap().counts.stored, 3);
    let sweep =
        async |reach| strays::sweep(&studio.world.hub.store, &studio.world.hub.objects, real_ms + HOUR_MS + 1_000, reach).await.unwrap();
    // Between eleven and midnight the hour of grace ends on the next day.
    let lately = sweep(Reach::Lately).await;
    assert!((1..=2).contains(&lately), "{lately}");
    assert_eq!((sweep(Reach::Everything).await + lately, studio.store.len()), (3, 3));
}

#[tokio::test]
async fn a_stale_post_and_a_rewound_one_put_nothing() {
    let mut studio = Studio::new(World::new().await);
    studio.post(&[shot(1)]).await.unwrap();
    studio.number -= 1;
    let stale = studio.send(&[shot(2)]).await.unwrap();
    assert_eq!(stale, muster_mesh::message::Answer::Stale { number: 1 });
    studio.number += 5;
    assert!(matches!(studio.send(&[shot(2)]).await.unwrap(), muster_mesh::message::Answer::Rewind { .. }));
    assert_eq!(studio.store.puts(), 1);
}

#[tokio::test]
async fn a_picture_that_this_hub_would_refuse_is_not_put() {
    let mut studio = Studio::new(World::with(false).await);
    let taken = studio.post(&[shot(1)]).await.unwrap();
    assert_eq!((taken.counts.refused, studio.store.puts()), (1, 0));
}

#[tokio::test]
async fn a_picture_whose_time_is_up_is_not_put() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        let aged = |seq: u64, days: i64, more: &[Record]| {
            let wall_ms = NOW - days * DAY_MS;
            let mut records = vec![Record { at: wall_ms, kind: Kind::Screenshot(picture(seq)) }];
            records.extend(more.iter().cloned());
            let mut batch = pictures_batch(seq, records);
            (batch.head.wall_ms, batch.head.boot) = (wall_ms, BootId([seq as u8; 16]));
            batch
        };
        set_retention(&studio.world, "pictures_days = 5").await;
        // The third has beside it what is kept longer, and the fourth's computer has been measured: its clock is ten days slow.
        let beside = [Record { at: NOW - 6 * DAY_MS, kind: Kind::Session(Session::Lock) }];
        let mut slow = aged(4, 10, &[]);
        (slow.head.boot, slow.head.boot_ms) = (BOOT, 1_000_000);
        studio.world.post(&[sealed(1)]).await;
        let batches = [aged(1, 4, &[]), aged(2, 6, &[]), aged(3, 6, &beside), slow];
        let taken = studio.post(&batches.map(|batch| batch.seal().unwrap())).await.unwrap();
        assert_eq!((taken.counts.stored, taken.counts.expired), (3, 1));
        assert_eq!((studio.store.puts(), studio.rows_without_objects().await), (2, 0));
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM screenshot").await, 2);
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM session").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_sweep_takes_nothing_from_a_store_that_is_not_its_databases_own() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&[shot(1), shot(2)]).await.unwrap();
        // An empty database beside it, and one that has pictures elsewhere.
        let mut elsewhere = Studio::new(World::new().await);
        elsewhere.post(&[shot(1)]).await.unwrap();
        for other in [World::new().await, elsewhere.world] {
            let (hub, objects, later_ms) = (&other.hub, &studio.world.hub.objects, real_ms() + 100 * DAY_MS);
            let refused = strays::sweep(&hub.store, objects, later_ms, Reach::Everything).await.unwrap_err().to_string();
            assert!(refused.contains("another database") && refused.contains("muster-store"), "{refused}");
            let retention = hub.policies.current().retention();
            retention::sweep(&hub.store, objects, later_ms, retention, 100).await.unwrap_err();
        }
        // Nor does another database put a picture there: the pictures' lane waits, and the rest goes on.
        let mut other = Studio::over(World::new().await, Objects::over(studio.store.clone(), None));
        let waits = other.post(&[shot(1)]).await.unwrap_err();
        assert!(matches!(&waits, IngestError::Objects(ObjectError::NotNow(why)) if why.contains("another database")), "{waits:?}");
        assert_eq!(other.world.post(&[sealed(1)]).await.counts.stored, 1);
        assert_eq!((studio.store.puts(), studio.store.len(), studio.rows_without_objects().await), (2, 2, 0));
        // Told to take it over, it does; and it leaves alone what it doesn't know until that is older than pictures are kept.
        studio.world.hub.objects.delete("muster-store").await.unwrap();
        assert_eq!(other.sweep_in_days(100).await, 0, "nobody's");
        other.post(&[shot(9)]).await.unwrap();
        assert_eq!((other.sweep_in_days(1).await, other.sweep_in_days(45).await, studio.store.len()), (0, 0, 3));
        assert_eq!((other.sweep_in_days(47).await, studio.store.len()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_database_from_an_older_backup_leaves_younger_pictures_until_it_knows_their_numbers() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&(1..=4).map(shot).collect::<Vec<_>>()).await.unwrap();
        // As the backup has it: numbers 2, 3 and 4 haven't come.
        studio.go_back_to(1).await;
        assert_eq!((studio.sweep(HOUR_MS + 1_000).await, studio.store.len()), (0, 4));
        // The relay has the second again, and the agent gave up the third.
        let excuse = Numbers { spool: pictures_spool(), first: 3, last: Some(3) };
        let given_up = Gap { lane: Lane::Pictures, numbers: Some(excuse), records: 1, bytes: 1, reason: GapReason::Budget };
        let said = batch(1, vec![Record { at: NOW, kind: Kind::Gap(given_up) }]).seal().unwrap();
        studio.world.post(&[said]).await;
        assert_eq!(studio.post(&[shot(2)]).await.unwrap().counts.stored, 1);
        assert_eq!((studio.store.len(), studio.sweep(HOUR_MS + 1_000).await, studio.store.len()), (5, 2, 3));
        assert_eq!(studio.rows_without_objects().await, 0);
        // What somebody else put there isn't ours to take, however old it is.
        studio.world.hub.objects.put("notes/of/a/neighbour/7-1", Bytes::from_static(b"x")).await.unwrap();
        assert_eq!((studio.sweep_in_days(50).await, studio.store.len()), (1, 3));
    })
    .await;
}

#[tokio::test]
async fn after_a_restore_the_numbers_of_missing_pictures_are_not_stored_and_come_again() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.post(&(1..=1_200).map(shot).collect::<Vec<_>>()[..600]).await.unwrap();
        studio.post(&(601..=1_200).map(shot).collect::<Vec<_>>()).await.unwrap();
        let hub = studio.world.hub.clone();
        let gone = [1, 7, 8, 499, 500, 501, 1_200];
        for seq in gone {
            hub.objects.delete(&studio.object_of(seq).await).await.unwrap();
        }
        // A byte less is something else than nothing: `check` tells it, and no number is given up for it.
        hub.objects.put(&studio.object_of(3).await, Bytes::from_static(b"RIFF")).await.unwrap();
        assert_eq!(restore::forget_missing(&hub.store, &hub.objects, NOW).await.unwrap(), gone.len() as u64);
        assert_eq!(restore::forget_missing(&hub.store, &hub.objects, NOW).await.unwrap(), 0);
        let left = 1_200 - gone.len() as i64;
        for table in ["screenshot", "batches"] {
            assert_eq!(studio.world.one(&format!("SELECT COUNT(*) FROM {table}")).await, left, "{table}");
        }
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM digests WHERE seq IN (499, 500, 501, 502, 1199, 1200)").await, 2);
        let device = hub.store.device(device(1)).await.unwrap().unwrap();
        let spools = hub.store.spools_of(device.id).await.unwrap();
        assert_eq!(spools[0].2.stored().to_string(), "2–6, 9–498, 502–1199");
        assert_eq!(spools[0].2.missing().announced.count(), 6 + 1);
        let again: Vec<_> = gone.into_iter().chain([2]).map(shot).collect();
        let taken = studio.post(&again).await.unwrap();
        assert_eq!((taken.counts.stored, taken.counts.repeat, taken.counts.held), (7, 1, 0));
        assert_eq!((ack_of(&taken, crate::device(1), pictures_spool()).stored, studio.rows_without_objects().await), (vec![(1, 1_200)], 0));
    })
    .await;
}

#[tokio::test]
async fn a_restore_gives_up_nothing_beside_a_store_that_may_be_another() {
    let mut studio = Studio::new(World::new().await);
    studio.post(&[shot(1)]).await.unwrap();
    let store = &studio.world.hub.store;
    // An address with a slip in it, and the store of somebody else.
    let empty = Objects::over(Arc::new(InMemory::new()), None);
    let refused = restore::forget_missing(store, &empty, NOW).await.unwrap_err().to_string();
    assert!(refused.contains("no mark"), "{refused}");
    let others = Objects::over(Arc::new(InMemory::new()), None);
    others.claim(store.id().await.unwrap() + 1).await.unwrap();
    let refused = restore::forget_missing(store, &others, NOW).await.unwrap_err().to_string();
    assert!(refused.contains("another database"), "{refused}");
    assert_eq!(studio.world.one("SELECT COUNT(*) FROM screenshot").await, 1);
    // As the message says, for a store that is really lost.
    empty.put("muster-store", mark(store.id().await.unwrap()).into()).await.unwrap();
    assert_eq!(restore::forget_missing(store, &empty, NOW).await.unwrap(), 1);
}

#[tokio::test]
async fn check_says_which_pictures_are_missing_or_damaged_and_changes_nothing() {
    each_store(async |world| {
        let folder = world.folder.path().join("pictures");
        let text = include_str!("hub.toml")
            .replace("sqlite:///var/lib/muster-hub/muster.db", &world.url())
            .replace("/var/lib/muster-hub/objects", folder.to_str().unwrap());
        let file = world.folder.path().join("hub.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        let said = async |closely| {
            let findings = check::check(&config, closely).await;
            findings.into_iter().find(|finding| finding.what == "pictures").unwrap().said.map_err(|complaint| complaint.to_string())
        };
        assert_eq!(said(check::Pictures::Digests).await.unwrap(), "none yet");
        assert!(!folder.exists());

        let mut studio = Studio::over(world, Objects::open(folder.to_str().unwrap()).unwrap());
        studio.post(&(1..=5).map(shot).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(said(check::Pictures::Digests).await.unwrap(), "5, each with its object");
        let objects = studio.world.hub.objects.clone();
        objects.delete(&studio.object_of(1).await).await.unwrap();
        objects.put(&studio.object_of(2).await, Bytes::from_static(b"RIFF")).await.unwrap();
        let mut damaged = objects.get(&studio.object_of(3).await).await.unwrap().to_vec();
        damaged[30] ^= 1;
        objects.put(&studio.object_of(3).await, damaged.into()).await.unwrap();
        let of = device(1);
        let ask = "; `serve --restored` asks for the missing ones again";
        let kinds = "5, but 1 without their object, 1 with one of another length";
        assert_eq!(said(check::Pictures::Lengths).await.unwrap(), format!("{kinds}: of {of} (2){ask}"));
        assert_eq!(said(check::Pictures::Digests).await.unwrap(), format!("{kinds}, 1 with other content: of {of} (3){ask}"));
        assert_eq!(studio.world.one("SELECT COUNT(*) FROM screenshot").await, 5);

        std::fs::rename(&folder, folder.with_file_name("elsewhere")).unwrap();
        let refused = said(check::Pictures::Lengths).await.unwrap_err();
        assert!(refused.contains("it isn't there") && !folder.exists(), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn two_relays_that_bring_one_picture_at_once_make_one_row_with_its_object() {
    each_store(async |world| {
        let mut studio = Studio::new(world);
        studio.store.set(Fault::Hangs);
        let bodies = [RELAY, "site/rome/relay/rome-1"].map(|relay| (relay, studio.body_by(relay, &[shot(1)])));
        let posting: Vec<_> = bodies
            .into_iter()
            .map(|(relay, body)| {
                let hub = studio.world.hub.clone();
                tokio::spawn(async move { hub.ingest.post(relay, body).await.unwrap() })
            })
            .collect();
        studio.store.until_asked(2).await;
        studio.store.set(Fault::None);
        for post in posting {
            post.await.unwrap();
        }
        assert_eq!((studio.world.one("SELECT COUNT(*) FROM screenshot").await, studio.store.len()), (1, 2));
        assert_eq!((studio.sweep(HOUR_MS + 1_000).await, studio.rows_without_objects().await, studio.store.len()), (1, 0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_bucket_takes_gives_lists_and_deletes_as_a_folder_does() {
    let Some(bucket) = bucket().await else {
        println!("skipped: no S3 server; `source <(ops/engines start FOLDER)` starts one");
        return;
    };
    let mut studio = Studio::over(World::new().await, bucket);
    assert_eq!(studio.post(&[shot(1), shot(2)]).await.unwrap().counts.stored, 2);
    let named = studio.world.one("SELECT COUNT(DISTINCT object) FROM screenshot").await;
    assert_eq!((named, studio.rows_without_objects().await), (2, 0));
    studio.world.meddle("DELETE FROM screenshot WHERE seq = 1").await;
    assert_eq!((studio.sweep(HOUR_MS / 2).await, studio.sweep(HOUR_MS + 5_000).await, studio.sweep(HOUR_MS + 5_000).await), (0, 1, 0));
    assert_eq!(studio.rows_without_objects().await, 0);
    // Another database may neither sweep nor fill it; the bucket's own finds what is missing.
    let other = World::new().await;
    let objects = &studio.world.hub.objects;
    assert!(strays::sweep(&other.hub.store, objects, real_ms() + 100 * DAY_MS, Reach::Everything).await.is_err());
    assert!(objects.claim(other.hub.store.id().await.unwrap()).await.is_err());
    objects.delete(&studio.object_of(2).await).await.unwrap();
    assert_eq!(restore::forget_missing(&studio.world.hub.store, objects, NOW).await.unwrap(), 1);
}

fn records_of(seq: u64) -> Vec<Record> {
    vec![Record { at: NOW, kind: Kind::Screenshot(picture(seq)) }]
}

fn sealed_pictures(seq: u64, pictures: Vec<Screenshot>) -> muster_mesh::batch::Envelope {
    let records = pictures.into_iter().map(|picture| Record { at: NOW, kind: Kind::Screenshot(picture) }).collect();
    let batch: Batch = pictures_batch(seq, records);
    batch.seal().unwrap()
}
