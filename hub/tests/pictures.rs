//! Async: pictures from the relay's POST to the object, the row and the API, with an object store that fails on demand.
#![allow(clippy::unwrap_used)]

mod studio;
mod world;

use muster_hub::{
    api::problem::ApiError,
    ingest::IngestError,
    objects::ObjectError,
    store::{Answered, StoreError},
    strays::{self, Reach},
};
use muster_mesh::{
    batch::Batch,
    message::{Reason, Verdict},
    record::{self, Kind, PictureFormat, Record, Screenshot},
};
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
    let sweep =
        async |reach| strays::sweep(&studio.world.hub.store, &studio.world.hub.objects, real_ms + HOUR_MS + 1_000, reach).await.unwrap();
    // Between eleven and midnight the hour of grace ends on the next day.
    let lately = sweep(Reach::Lately).await;
    assert!((1..=2).contains(&lately), "{lately}");
    assert_eq!((sweep(Reach::Everything).await + lately, studio.store.len()), (3, 0));
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
}

fn records_of(seq: u64) -> Vec<Record> {
    vec![Record { at: NOW, kind: Kind::Screenshot(picture(seq)) }]
}

fn sealed_pictures(seq: u64, pictures: Vec<Screenshot>) -> muster_mesh::batch::Envelope {
    let records = pictures.into_iter().map(|picture| Record { at: NOW, kind: Kind::Screenshot(picture) }).collect();
    let batch: Batch = pictures_batch(seq, records);
    batch.seal().unwrap()
}
