//! Async: POSTs of a relay into committed rows, beside a plain insert of the same rows of all tables.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::Context;
use bytes::Bytes;
use muster_agent::{batcher::Batcher, spool::BatchContext};
use muster_hub::{ingest::Ingest, policy::Policies, presence::Presences, store::Store};
use muster_mesh::{
    batch::{Batch, Head},
    clock::{Clock, Reading, SystemClock, Zone},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    limits,
    message::{Answer, Facts, PostHead, QueueState},
    record::Record,
};
use muster_swarm::day;
use sqlx::{Column, Executor, Row, TypeInfo, ValueRef, sqlite::SqliteRow};
use tokio::{sync::Mutex, time::Instant};

use crate::measure::alternate;

/// People whose day is ingested.
const PEOPLE: u64 = 120;
const RELAY: &str = "site/oslo/relay/oslo-1";
const POLICY: &str = include_str!("../../examples/policy.toml");

/// At 500 records a batch, and as a real day makes them.
pub fn row() -> anyhow::Result<()> {
    for (name, records) in [("500 records a batch", limits::BATCH_RECORDS_MAX), ("as a real day makes them", 0)] {
        let posts = posts(records)?;
        println!("ingest, {name}: {} POSTs, {} records", posts.bodies.len(), posts.records);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let rows = runtime.block_on(async {
            let folder = tempfile::tempdir_in(".")?;
            ingest(folder.path(), &posts).await?;
            dump(folder.path()).await
        })?;
        let mut plain = || {
            runtime.block_on(async {
                let folder = tempfile::tempdir_in(".")?;
                insert(folder.path(), &rows, posts.records).await
            })
        };
        let mut ours = || {
            runtime.block_on(async {
                let folder = tempfile::tempdir_in(".")?;
                ingest(folder.path(), &posts).await
            })
        };
        alternate("records/s", &mut [("plain multi-row insert of the same rows", &mut plain), ("ours, from POST to commit", &mut ours)])?;
    }
    Ok(())
}

struct Posts {
    bodies: Vec<Bytes>,
    records: u64,
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
    let facts = Facts { receipt_ms: clock.now().wall_ms, dial: 1, boot: BootId([1; 16]), zero_ms: begin_ms, address: None }.bytes()?;
    let envelopes: Vec<Bytes> = batches.into_values().collect();
    let mut bodies = Vec::new();
    for (number, chunk) in (1..).zip(envelopes.chunks(if records_per_batch == 0 { 4_000 } else { 100 })) {
        let queue = |lane: Lane, answered| QueueState { lane, instance: InstanceId([lane.as_u8() + 1; 16]), answered };
        let head = PostHead {
            lane: Lane::Telemetry,
            number,
            queues: vec![queue(Lane::Telemetry, number - 1), queue(Lane::Pictures, 0)],
            asks: Vec::new(),
            presence: None,
            relay_ms: clock.now().wall_ms,
            versions: Vec::new(),
        };
        bodies.push(head.body(chunk.iter().map(|envelope| (facts.as_ref(), envelope.as_ref())))?);
    }
    Ok(Posts { bodies, records })
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

fn seal(device: DeviceId, seq: u64, now: Reading, records: Vec<Record>) -> anyhow::Result<Bytes> {
    let context = context();
    let batch = Batch {
        device,
        spool: SpoolId(device.0),
        seq,
        lane: Lane::Telemetry,
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

async fn ingest(folder: &Path, posts: &Posts) -> anyhow::Result<f64> {
    let store = Arc::new(Store::open(&url(folder)).await?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let policy = folder.join("policy.toml");
    std::fs::write(&policy, POLICY)?;
    let policies = Arc::new(Policies::open(store.clone(), policy, true, false, clock.now().wall_ms).await?);
    let presences = Arc::new(Mutex::new(Presences::default()));
    let ingest = Ingest { store: store.clone(), clock, policies, presences, test_mode: true };
    let begin = Instant::now();
    let mut stored = 0;
    for body in &posts.bodies {
        match ingest.post(RELAY, body.clone()).await? {
            Answer::Taken(taken) => stored += taken.counts.stored,
            other => anyhow::bail!("the hub answers {other:?}"),
        }
    }
    let took = begin.elapsed().as_secs_f64();
    anyhow::ensure!(stored > 0, "nothing was stored");
    store.close().await;
    Ok(posts.records as f64 / took)
}

// --- the yardstick ---

enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Every table with its rows, and the statements that make the empty tables.
struct Rows {
    schema: Vec<String>,
    tables: Vec<(String, usize, Vec<Vec<Value>>)>,
}

async fn dump(folder: &Path) -> anyhow::Result<Rows> {
    let pool = sqlx::SqlitePool::connect(&url(folder)).await?;
    let master = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx%'";
    let made: Vec<(String, String)> = sqlx::query_as(master).fetch_all(&pool).await?;
    let indexes: Vec<(String,)> =
        sqlx::query_as("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetch_all(&pool).await?;
    let mut tables = Vec::new();
    for (name, _) in &made {
        let rows = pool.fetch_all(sqlx::AssertSqlSafe(format!("SELECT * FROM {name}"))).await?;
        let columns = rows.first().map_or(0, |row| row.columns().len());
        let rows = rows.iter().map(values).collect::<Result<_, _>>()?;
        tables.push((name.clone(), columns, rows));
    }
    let schema = made.into_iter().map(|(_, sql)| sql).chain(indexes.into_iter().map(|(sql,)| sql)).collect();
    pool.close().await;
    Ok(Rows { schema, tables })
}

fn values(row: &SqliteRow) -> anyhow::Result<Vec<Value>> {
    let value = |at: usize| -> anyhow::Result<Value> {
        let raw = row.try_get_raw(at)?;
        Ok(match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => Value::Number(row.try_get_unchecked(at)?),
            "TEXT" => Value::Text(row.try_get_unchecked(at)?),
            "BLOB" => Value::Bytes(row.try_get_unchecked(at)?),
            other => anyhow::bail!("an unexpected column of type {other}"),
        })
    };
    row.columns().iter().map(|column| value(column.ordinal())).collect()
}

/// Rows per statement, and statements per transaction: as many rows as a POST of ours has.
const ROWS: usize = 100;
const STATEMENTS: usize = 60;

async fn insert(folder: &Path, rows: &Rows, records: u64) -> anyhow::Result<f64> {
    let options: sqlx::sqlite::SqliteConnectOptions = url(folder).parse::<sqlx::sqlite::SqliteConnectOptions>()?.create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await?;
    let mut connection = pool.acquire().await?;
    connection.execute("PRAGMA journal_mode=WAL").await?;
    connection.execute("PRAGMA synchronous=FULL").await?;
    for sql in &rows.schema {
        connection.execute(sqlx::AssertSqlSafe(sql.clone())).await.context("the schema")?;
    }
    let begin = Instant::now();
    for (name, columns, rows) in &rows.tables {
        for transaction in rows.chunks(ROWS * STATEMENTS) {
            connection.execute("BEGIN IMMEDIATE").await?;
            for statement in transaction.chunks(ROWS) {
                let row = format!("({})", vec!["?"; *columns].join(","));
                let sql = format!("INSERT INTO {name} VALUES {}", vec![row; statement.len()].join(","));
                let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
                for value in statement.iter().flatten() {
                    query = match value {
                        Value::Null => query.bind(None::<i64>),
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_str()),
                        Value::Bytes(bytes) => query.bind(bytes.as_slice()),
                    };
                }
                query.execute(&mut *connection).await?;
            }
            connection.execute("COMMIT").await?;
        }
    }
    let took = begin.elapsed().as_secs_f64();
    drop(connection);
    pool.close().await;
    Ok(records as f64 / took)
}

fn url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("muster.db").display())
}
