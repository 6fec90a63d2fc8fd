//! Async: POSTs of a relay into committed rows of either database, beside a plain insert of the same rows of all tables.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use muster_agent::{batcher::Batcher, spool::BatchContext};
use muster_certs::{Identity, Issuer, Keys, Name, Role, SystemTime};
use muster_hub::{
    control::{Control, Own},
    ingest::{Ingest, pictures::Pictures},
    objects::Objects,
    policy::Policies,
    store::Store,
};
use muster_mesh::{
    batch::{Batch, Head},
    clock::{Clock, Reading, SystemClock, Zone},
    control_key::ControlKey,
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    limits,
    message::{Answer, Facts, PostHead, QueueState},
    record::Record,
};
use muster_swarm::day;
use tokio::time::Instant;

use crate::{measure::alternate, place::Place, plain};

/// People whose day is ingested.
const PEOPLE: u64 = 120;
const RELAY: &str = "site/oslo/relay/oslo-1";
const POLICY: &str = include_str!("../../examples/policy.toml");

/// At 500 records a batch, and as a real day makes them.
pub fn row(engine: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (name, records) in [("500 records a batch", limits::BATCH_RECORDS_MAX), ("as a real day makes them", 0)] {
        let posts = posts(records)?;
        println!("ingest into {engine}, {name}: {} POSTs, {} records", posts.bodies.len(), posts.records);
        let rows = runtime.block_on(async {
            let place = Place::new("sqlite").await?;
            ingest(&place, &posts).await?;
            let rows = plain::dump(place.url()).await;
            place.leave().await?;
            rows
        })?;
        let mut plain = || {
            runtime.block_on(async {
                let place = Place::new(engine).await?;
                let took = plain::insert(&place, &rows).await?;
                place.leave().await?;
                Ok(posts.records as f64 / took)
            })
        };
        let mut ours = || {
            runtime.block_on(async {
                let place = Place::new(engine).await?;
                let rate = ingest(&place, &posts).await?;
                place.leave().await?;
                Ok(rate)
            })
        };
        alternate("records/s", &mut [("plain multi-row insert of the same rows", &mut plain), ("ours, from POST to commit", &mut ours)])?;
    }
    Ok(())
}

/// What a relay sends.
pub struct Posts {
    pub bodies: Vec<Bytes>,
    pub records: u64,
}

/// A branch's day as its relay sends it: in order of time, all people mixed.
fn posts(records_per_batch: usize) -> anyhow::Result<Posts> {
    let clock = SystemClock::new();
    let begin_ms = clock.now().wall_ms - day::DAY_MS as i64;
    let mut batches: BTreeMap<(u64, u64), Bytes> = BTreeMap::new();
    let mut records = 0;
    for person in 0..PEOPLE {
        let mut device = [3; 16];
        device[..8].copy_from_slice(&person.to_be_bytes());
        for (seq, (at_ms, batch)) in (1..).zip(person_day(person, records_per_batch)) {
            records += batch.len() as u64;
            let reading = Reading { wall_ms: begin_ms + at_ms as i64, boot_ms: at_ms };
            batches.insert(
                (at_ms, person),
                seal(
                    Lane::Telemetry,
                    DeviceId(device),
                    seq,
                    reading,
                    batch
                        .into_iter()
                        .map(|mut record| {
                            record.at += begin_ms;
                            record
                        })
                        .collect(),
                )?,
            );
        }
    }
    let envelopes: Vec<Bytes> = batches.into_values().collect();
    let per_post = if records_per_batch == 0 { 4_000 } else { 100 };
    Ok(Posts { bodies: post_bodies(Lane::Telemetry, &envelopes, per_post, begin_ms)?, records })
}

/// As a relay sends them. `zero_ms`: when the agents' computers booted, UTC.
pub fn post_bodies(lane: Lane, envelopes: &[Bytes], per_post: usize, zero_ms: i64) -> anyhow::Result<Vec<Bytes>> {
    let now_ms = SystemClock::new().now().wall_ms;
    let facts = Facts { receipt_ms: now_ms, dial: 1, boot: BootId([1; 16]), zero_ms, address: None }.bytes()?;
    let mut bodies = Vec::new();
    for (number, chunk) in (1..).zip(envelopes.chunks(per_post)) {
        let queue = |of: Lane| QueueState {
            lane: of,
            instance: InstanceId([of.as_u8() + 1; 16]),
            answered: if of == lane { number - 1 } else { 0 },
        };
        let head = PostHead {
            lane,
            number,
            queues: Lane::ALL.map(queue).to_vec(),
            asks: Vec::new(),
            presence: None,
            relay_ms: now_ms,
            versions: Vec::new(),
        };
        bodies.push(head.body(chunk.iter().map(|envelope| (facts.as_ref(), envelope.as_ref())))?);
    }
    Ok(bodies)
}

/// Batches with the moment they close; times are from the day's begin.
fn person_day(person: u64, records_per_batch: usize) -> Vec<(u64, Vec<Record>)> {
    let records =
        day::day(person).into_iter().map(|event| (event.at_ms, event.closes, Record { at: event.at_ms as i64, kind: event.kind }));
    if records_per_batch > 0 {
        let all: Vec<Record> = records.map(|(_, _, record)| record).collect();
        return all.chunks(records_per_batch).map(|chunk| (chunk.last().map_or(0, |record| record.at as u64), chunk.to_vec())).collect();
    }
    let context = context();
    let (mut batcher, mut closed) = (Batcher::default(), Vec::new());
    for (at_ms, closes, record) in records {
        let now = Reading { wall_ms: at_ms as i64, boot_ms: at_ms };
        closed.extend(batcher.tick(now));
        closed.extend(batcher.put(now, &context, vec![record], closes));
    }
    closed.extend(batcher.close(Reading { wall_ms: day::DAY_MS as i64, boot_ms: day::DAY_MS }));
    closed.into_iter().map(|closed| (closed.closed_at.boot_ms, closed.records)).collect()
}

fn context() -> BatchContext {
    let version = Version { epoch: 1, n: 1 };
    let zone = Zone { name: "Europe/Oslo".into(), offset_s: 3_600 };
    BatchContext { policy: version, notice: version, erasure: Version::default(), test_mode: true, boot: BootId([1; 16]), zone }
}

pub fn seal(lane: Lane, device: DeviceId, seq: u64, now: Reading, records: Vec<Record>) -> anyhow::Result<Bytes> {
    let context = context();
    let batch = Batch {
        device,
        spool: SpoolId(device.0),
        seq,
        lane,
        policy: context.policy,
        notice: context.notice,
        erasure: context.erasure,
        test_mode: true,
        head: Head {
            boot: context.boot,
            wall_ms: now.wall_ms,
            boot_ms: now.boot_ms,
            zone: context.zone.name,
            offset_s: context.zone.offset_s,
            tails: Vec::new(),
        },
        records,
    };
    Ok(batch.seal()?.bytes().clone())
}

/// What a person's day takes on the disk, indexes and all.
pub fn day_row() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let posts = posts(0)?;
    for engine in ["sqlite", "postgres"] {
        let bytes = runtime.block_on(async {
            let place = Place::new(engine).await?;
            let empty = place.bytes().await?;
            ingest(&place, &posts).await?;
            let bytes = place.bytes().await? - empty;
            place.leave().await?;
            anyhow::Ok(bytes)
        })?;
        println!("stored per person and day, {engine}: {:.3} MB of {} records", bytes as f64 / PEOPLE as f64 / 1e6, posts.records / PEOPLE);
    }
    Ok(())
}

/// A hub's ingest over this place.
pub async fn hub(place: &Place) -> anyhow::Result<Ingest> {
    let store = Arc::new(Store::open(place.url()).await?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let policy = place.folder().join("policy.toml");
    std::fs::write(&policy, POLICY)?;
    let policies = Arc::new(Policies::open(store.clone(), policy, true, false, clock.now().wall_ms).await?);
    let objects = Objects::open(&place.folder().join("objects").display().to_string())?;
    let pictures = Pictures::new(Arc::new(objects), clock.clone());
    let control = Arc::new(control(store.clone(), clock.now().wall_ms).await?);
    Ok(Ingest { store, clock, policies, control, presences: Arc::default(), pictures, issued: Arc::default(), test_mode: true })
}

/// A throw-away signature: what a hub answers is signed.
async fn control(store: Arc<Store>, now_ms: i64) -> anyhow::Result<Control> {
    const DOMAIN: &str = "bench.muster.internal";
    let (root, issuer) = Issuer::in_memory(DOMAIN, now_ms)?;
    let hub = issuer.issue(&Identity::new(DOMAIN, Name::Hub { id: "hub-1".to_owned() })?, now_ms)?;
    let keys = Keys::from_pem(&hub.pem, &hub.key_pem, root.pem(), Role::Hub, Arc::new(SystemTime))?;
    let (key, chain) = ControlKey::issue(&issuer, 1, now_ms)?;
    Control::open(store, keys, Own { key, chain: chain.pem, renews: None }, false, now_ms).await
}

async fn ingest(place: &Place, posts: &Posts) -> anyhow::Result<f64> {
    let ingest = hub(place).await?;
    let begin = Instant::now();
    let mut stored = 0;
    for body in &posts.bodies {
        stored += taken(&ingest, body.clone()).await?;
    }
    let took = begin.elapsed().as_secs_f64();
    anyhow::ensure!(stored > 0, "nothing was stored");
    ingest.store.close().await;
    Ok(posts.records as f64 / took)
}

/// How many batches of a POST were stored.
pub async fn taken(ingest: &Ingest, body: Bytes) -> anyhow::Result<u32> {
    match ingest.post(RELAY, body).await? {
        Answer::Taken(taken) => Ok(taken.counts.stored),
        other => anyhow::bail!("the hub answers {other:?}"),
    }
}
