//! Async: 2,000 pictures of 80 KB from POSTs into objects and committed rows, beside nothing but the same puts with fsync into such a folder.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use muster_hub::objects::Objects;
use muster_mesh::{
    clock::{Clock, Reading, SystemClock},
    ids::{DeviceId, Lane},
    record::{Kind, Record},
};
use muster_swarm::{
    day::Dice,
    pictures::{Album, Look},
};
use tokio::time::Instant;

use crate::{
    ingest::{Posts, hub, post_bodies, seal, taken},
    measure::alternate,
    place::Place,
};

const PICTURES: u64 = 2_000;
/// POSTs end below 8 MiB.
const PICTURES_PER_POST: usize = 90;
/// Puts on their way at once, as the hub's.
const ON_THE_WAY: usize = 8;

pub fn row() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let album = Album::draw(Look::Sharp)?;
    let mut dice = Dice::new(7);
    let pictures: Vec<_> = (0..PICTURES).map(|_| album.shot(&mut dice)).collect();
    let bytes: Vec<Bytes> = pictures.iter().map(|picture| Bytes::from(picture.bytes.clone())).collect();
    let now_ms = SystemClock::new().now().wall_ms;
    let mut envelopes = Vec::new();
    for (seq, picture) in (1..).zip(pictures) {
        let record = Record { at: now_ms, kind: Kind::Screenshot(picture) };
        let reading = Reading { wall_ms: now_ms, boot_ms: seq };
        envelopes.push(seal(Lane::Pictures, DeviceId([5; 16]), seq, reading, vec![record])?);
    }
    let posts = Posts { bodies: post_bodies(Lane::Pictures, &envelopes, PICTURES_PER_POST, now_ms)?, records: PICTURES };
    println!("drain of {PICTURES} pictures, {} KB each on average", bytes.iter().map(Bytes::len).sum::<usize>() / bytes.len() / 1_000);
    let mut puts = || {
        runtime.block_on(async {
            let place = Place::new("sqlite").await?;
            put(&place, &bytes).await
        })
    };
    let mut ours = || {
        runtime.block_on(async {
            let place = Place::new("sqlite").await?;
            drain(&place, &posts).await
        })
    };
    alternate("pictures/s", &mut [("puts with fsync into a folder", &mut puts), ("ours, from POST to commit", &mut ours)])
}

async fn put(place: &Place, pictures: &[Bytes]) -> anyhow::Result<f64> {
    let objects = Arc::new(Objects::open(&place.folder().join("objects").display().to_string())?);
    let begin = Instant::now();
    let puts = pictures.iter().enumerate().map(|(number, bytes)| {
        let objects = objects.clone();
        async move { objects.put(&format!("2026/11/22/{number}"), bytes.clone()).await }
    });
    stream::iter(puts).buffer_unordered(ON_THE_WAY).try_collect::<Vec<()>>().await?;
    Ok(pictures.len() as f64 / begin.elapsed().as_secs_f64())
}

async fn drain(place: &Place, posts: &Posts) -> anyhow::Result<f64> {
    let ingest = hub(place).await?;
    let begin = Instant::now();
    let mut stored = 0;
    for body in &posts.bodies {
        stored += u64::from(taken(&ingest, body.clone()).await?);
    }
    anyhow::ensure!(stored == posts.records, "{stored} of {} pictures were stored", posts.records);
    let rate = stored as f64 / begin.elapsed().as_secs_f64();
    ingest.store.close().await;
    Ok(rate)
}
