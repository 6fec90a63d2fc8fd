//! Async: how fast batches become committed rows: a little in every run, and a real day's worth with MUSTER_TEST=long (in release, alone).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod world;

use std::time::Instant;

use muster_mesh::{batch::Envelope, ids::DeviceId, message::Answer};
use world::*;

/// Batches of 1 to 4 records of many devices, as realistic-day.md makes them.
fn posts(posts: u64, batches: u64, devices: u64) -> Vec<Vec<Envelope>> {
    let mut seqs = vec![0; devices as usize];
    let mut i = 0u64;
    let mut one = || {
        i += 1;
        let device = (i * 7) % devices;
        seqs[device as usize] += 1;
        let mut id = [9; 16];
        id[..8].copy_from_slice(&device.to_le_bytes());
        let at = NOW - 20_000_000 + i as i64 * 10;
        let mut records =
            vec![activity(at, i as u32 % 260), focus(at, ["firefox", "code", "xterm"][i as usize % 3]), heartbeat(at), focus(at, "mail")];
        records.truncate(1 + i as usize % 4);
        let mut batch = batch(seqs[device as usize], records);
        (batch.device, batch.head.wall_ms) = (DeviceId(id), at);
        batch.seal().unwrap()
    };
    (0..posts).map(|_| (0..batches).map(|_| one()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn small_batches_become_rows_quickly() {
    let long = std::env::var("MUSTER_TEST").is_ok_and(|value| value == "long");
    let posts = if long { posts(60, 4_096, 1_000) } else { posts(3, 500, 100) };
    let mut world = World::new().await;
    let bodies: Vec<_> = posts
        .iter()
        .enumerate()
        .map(|(i, envelopes)| {
            let mut head = world.head(RELAY, true);
            head.number = i as u64 + 1;
            let facts = facts(NOW).bytes().unwrap();
            head.body(envelopes.iter().map(|envelope| (&facts[..], &envelope.bytes()[..]))).unwrap()
        })
        .collect();
    let begun = Instant::now();
    for body in bodies {
        let Answer::Taken(taken) = world.hub.ingest.post(RELAY, body).await.unwrap() else { panic!() };
        assert_eq!(taken.counts.repeat + taken.counts.held + taken.counts.returned, 0);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let records =
        world.one("SELECT (SELECT COUNT(*) FROM activity) + (SELECT COUNT(*) FROM focus) + (SELECT COUNT(*) FROM heartbeat)").await;
    let batches = world.one("SELECT COUNT(*) FROM batches").await;
    println!(
        "{records} records in {batches} batches: {:.0} records/s, {:.0} batches/s",
        records as f64 / seconds,
        batches as f64 / seconds
    );
    assert_eq!(batches, posts.iter().map(|post| post.len() as i64).sum::<i64>());
    let bytes = std::fs::metadata(world.database()).unwrap().len();
    println!("{:.0} bytes of database per record", bytes as f64 / records as f64);
}
