//! Async: the hub deletes what is old, is killed on the way, and goes on: exactly the right half is gone in the end, with its objects, and
//! whatever came meanwhile is there.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use muster_hub::objects::Objects;
use muster_mesh::{
    clock::{Clock, SystemClock},
    link::hub_ranges::SpoolRow,
};
use muster_start::mesh::{Mesh, Node, database_url};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Row};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    backup::is_on_a_server,
    swarm::{BUSY, PATIENCE, Swarm, folder, mesh},
};

const SITE: &str = "oslo";
const KILLS: usize = 3;
/// Rows of each table; every second one's time is up.
const ROWS: i64 = 10_000;
/// Numbers of their device and spool, beyond those that the hub gives.
pub const FILLED: i64 = 1_000_000;
const TABLES: [&str; 9] = ["heartbeat", "activity", "focus", "screenshot", "session", "network", "capability", "gap", "batches"];
/// As the policy of these tests keeps everything.
pub const RETENTION_DAYS: i64 = 45;
/// Less than this is nothing to be killed in the midst of.
const PIECE: i64 = 1_000;

#[tokio::test]
async fn a_sweep_that_is_killed_three_times_deletes_the_right_half_while_batches_come() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    mesh.stop(&Node::Hub).await.unwrap();
    let objects = Objects::open(&mesh.engines().objects(mesh.folder())).unwrap();
    fill(&mesh, &objects).await;
    let mut swarm = Swarm::new(&mesh, SITE, 8);
    swarm.start(&mesh, &[SITE], BUSY);

    let mut gone = 0;
    for _ in 0..KILLS {
        // It sweeps as soon as it starts: nobody waits until it is ready.
        let _ = timeout(Duration::from_millis(1), mesh.start_hub()).await;
        let deadline = Instant::now() + PATIENCE;
        let before = gone;
        while gone < before + PIECE {
            assert!(Instant::now() < deadline, "{gone} rows are gone, and no more go");
            sleep(Duration::from_millis(5)).await;
            gone = deleted(&mesh).await;
        }
        mesh.kill(&Node::Hub);
        gone = deleted(&mesh).await;
        assert!(gone < ROWS / 2 * TABLES.len() as i64, "all was gone before the kill: nothing was cut off");
    }
    mesh.start_hub().await.unwrap();
    mesh.until(&Node::Hub, "the old half is gone", async |mesh| deleted(mesh).await == ROWS / 2 * TABLES.len() as i64).await.unwrap();
    mesh.until(&Node::Hub, "its objects are gone", async |mesh| one(mesh, "SELECT COUNT(*) FROM doomed").await == 0).await.unwrap();
    for table in TABLES {
        let stays = format!("SELECT COUNT(*) FROM {table} WHERE spool_id = {FILLED} AND seq % 2 = 0");
        assert_eq!(one(&mesh, &stays).await, ROWS / 2, "{table}");
    }
    let there: BTreeSet<String> = objects.list(None).older(i64::MAX, 100_000).await.unwrap().into_iter().collect();
    for i in 1..=ROWS {
        assert_eq!(there.contains(&object(i)), i % 2 == 0, "{}", object(i));
    }
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound() && report.stored > 20, "{report}");
}

/// The odd rows are too old by a day at least, the even ones have a day at least.
async fn fill(mesh: &Mesh, objects: &Objects) {
    let server = is_on_a_server(mesh);
    let bytes = if server { "decode(md5(CAST(i AS TEXT)), 'hex')" } else { "randomblob(16)" };
    let blob = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if server { format!("'\\x{hex}'") } else { format!("X'{hex}'") }
    };
    let (id, numbers) = (blob(&[1; 16]), blob(&SpoolRow::default().to_bytes()));
    let today = today();
    let day = format!("(CASE WHEN i % 2 = 1 THEN {today} - {RETENTION_DAYS} - 2 ELSE {today} - 1 END)");
    let at = format!("{day} * CAST(86400000 AS BIGINT)");
    let key = format!("{day}, {FILLED}, i, 0, {at}");
    let columns = [
        ("heartbeat (day, spool_id, seq, idx, at, state, version_id)", format!("{key}, 1, 1")),
        (
            "activity (day, spool_id, seq, idx, at, ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms)",
            format!("{key}, 1, 1, 1, 1, 1, 1, 1"),
        ),
        ("focus (day, spool_id, seq, idx, at, ms, application_id, title, source)", format!("{key}, 900, 1, 'title', 0")),
        (
            "screenshot (day, spool_id, seq, idx, at, area, width, height, format, blurred, why, sha256, group_id, part, parts, bytes_len, object, object_id)",
            format!("{key}, 0, 1, 1, 0, 1, 0, {bytes}, {bytes}, 0, 1, 7, 'k' || CAST(100000 + i AS TEXT), {bytes}"),
        ),
        ("session (day, spool_id, seq, idx, at, what)", format!("{key}, 0")),
        ("network (day, spool_id, seq, idx, at, addresses)", format!("{key}, '[]'")),
        ("capability (day, spool_id, seq, idx, at, what, able, why)", format!("{key}, 'titles', 1, ''")),
        ("gap (day, spool_id, seq, idx, at, lane, records, bytes, reason)", format!("{key}, 0, 1, 1, 0")),
        (
            "batches (spool_id, seq, device_id, day, context_id, relay_id, boot_ms, wall_ms, relay_ms, hub_ms, shift_ms, shift_why, records, left_out)",
            format!("{FILLED}, i, {FILLED}, {day}, 1, 1, 0, {at}, 0, {at}, 0, 0, 8, 0"),
        ),
    ];
    let mut database = connected(mesh).await;
    let mut statements = vec![
        format!("INSERT INTO devices (id, device) VALUES ({FILLED}, {id})"),
        format!("INSERT INTO spools (id, device_id, spool, lane, numbers, settled) VALUES ({FILLED}, {FILLED}, {id}, 0, {numbers}, 1)"),
    ];
    let each = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT");
    statements.extend(columns.map(|(table, values)| format!("INSERT INTO {table} {each} {values} FROM n")));
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
    for i in 1..=ROWS {
        objects.put(&object(i), Bytes::from_static(b"picture")).await.unwrap();
    }
}

fn object(i: i64) -> String {
    format!("k{}", 100_000 + i)
}

/// How many of the rows that were filled in are gone.
async fn deleted(mesh: &Mesh) -> i64 {
    let counts: Vec<String> = TABLES.map(|table| format!("(SELECT COUNT(*) FROM {table} WHERE spool_id = {FILLED})")).to_vec();
    ROWS * TABLES.len() as i64 - one(mesh, &format!("SELECT {}", counts.join(" + "))).await
}

pub fn today() -> i64 {
    SystemClock::new().now().wall_ms.div_euclid(86_400_000)
}

pub async fn one(mesh: &Mesh, select: &str) -> i64 {
    let mut database = connected(mesh).await;
    let number = sqlx::query(AssertSqlSafe(select.to_owned())).fetch_one(&mut database).await.unwrap().try_get(0).unwrap();
    database.close().await.unwrap();
    number
}

pub async fn sql(mesh: &Mesh, statement: &str) {
    let mut database = connected(mesh).await;
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

pub async fn connected(mesh: &Mesh) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect(&database_url(mesh.folder())).await.unwrap()
}
