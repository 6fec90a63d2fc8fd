//! Async: the object store is away, slow or full, and the hub is killed around it: pictures wait and telemetry doesn't, a row always has its
//! object, and an object that no row names goes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use muster_hub::{
    objects::Objects,
    store::Store,
    strays::{self, Reach},
};
use muster_mesh::{
    chance,
    clock::{Clock, SystemClock},
    ids::Lane,
};
use muster_start::{
    engines::Engines,
    mesh::{Mesh, Node, database_url},
};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Row};
use tokio::time::{Instant, sleep};

use crate::{
    backup::is_on_a_server,
    engines::Own,
    line::{Line, Weather},
    small_disk::SmallDisk,
    swarm::{BUSY, Life, PATIENCE, Swarm, configured, folder, mesh, mesh_on},
    sweeps::{FILLED, RETENTION_DAYS, connected, sql, today},
};

const SITE: &str = "oslo";
const AGENTS: usize = 4;
/// Telemetry of a day of all agents is more than this.
const DAY_BATCHES: usize = 400 * AGENTS;
/// Hardly within the time that a try may take.
const SLOW: Duration = Duration::from_secs(6);
/// Of their pictures, so many wait at the end of an outage.
const PICTURES: usize = 40;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3_600);

fn is_long() -> bool {
    std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long")
}

/// One day, as long as an outage has to be; then nothing is made any more, and the hub waited for.
fn one_day() -> Life {
    let speed = if is_long() { 120 } else { 800 };
    Life { days: 1, speed, drain_s: 1_000, pictures_a_day: 40 }
}

fn relay() -> Node {
    Node::Relay(SITE.into())
}

fn acked(swarm: &Swarm, lane: Lane) -> usize {
    swarm.of_lane(lane).1
}

fn waiting(swarm: &Swarm, lane: Lane) -> usize {
    let (made, acked) = swarm.of_lane(lane);
    made - acked
}

/// Waits until the telemetry of a whole day is in the hub. Nobody waits for long where the outage is said to be.
async fn until_telemetry_is_through(swarm: &mut Swarm) {
    let deadline = Instant::now() + PATIENCE + if is_long() { HOUR } else { Duration::ZERO };
    while swarm.of_lane(Lane::Telemetry).0 < DAY_BATCHES || waiting(swarm, Lane::Telemetry) > 0 {
        let of_lane = swarm.of_lane(Lane::Telemetry);
        assert!(Instant::now() < deadline, "telemetry waits for the object store: {} of {} are acked", of_lane.1, of_lane.0);
        sleep(LOOK_EVERY).await;
    }
}

async fn met(line: &Line, weather: Weather) {
    let deadline = Instant::now() + PATIENCE;
    while line.met() == 0 {
        assert!(Instant::now() < deadline, "nobody met {weather:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// A mesh whose bucket lies behind a line. None: there are no servers.
async fn behind_a_line(folder: &std::path::Path) -> Option<(Own, Line, Mesh)> {
    let own = Own::new().await?;
    let server = own.environment()[0].1.strip_prefix("http://").unwrap().parse().unwrap();
    let line = Line::before(server);
    // Rows in SQLite, which has one writer: whoever held it while a bucket is waited for would stop all others.
    let mut mesh = mesh_on(folder, &[SITE], Engines { store: None, ..own.engines() });
    own.environment().into_iter().for_each(|(name, value)| mesh.set(&Node::Hub, name, &value));
    mesh.set(&Node::Hub, "AWS_ENDPOINT_URL", &format!("http://{}", line.address()));
    Some((own, line, mesh))
}

/// By order, not by time: batches are acked between the begin of a POST of pictures that hangs and its end. If it ends before, the next one.
async fn telemetry_passes_a_hanging_post(line: &Line, swarm: &Swarm, mesh: &Mesh) {
    const ACKS: usize = 50;
    const POSTS: usize = 6;
    for _ in 0..POSTS {
        line.set(Weather::Silent);
        met(line, Weather::Silent).await;
        let (ended, before) = (pictures_posts(mesh).await, acked(swarm, Lane::Telemetry));
        loop {
            // In this order: acks that came with the end of the POST come after it.
            let now = acked(swarm, Lane::Telemetry);
            if pictures_posts(mesh).await != ended {
                break;
            }
            if now >= before + ACKS {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
    panic!("telemetry waits for POSTs of pictures");
}

/// Those of the relay that have an outcome.
async fn pictures_posts(mesh: &Mesh) -> u64 {
    let answer = mesh.health(&relay(), "/metrics").await.unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    let of_pictures = text.lines().filter(|line| line.starts_with("muster_relay_posts_total{") && line.contains("lane=\"pictures\""));
    of_pictures.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

async fn is_sound(swarm: &mut Swarm, mesh: &Mesh) {
    let deadline = Instant::now() + PATIENCE;
    while swarm.unacked() > 0 {
        assert!(Instant::now() < deadline, "{} aren't in the hub, and nothing is in the way", swarm.unacked());
        sleep(LOOK_EVERY).await;
    }
    let report = swarm.check(mesh).await;
    println!("{report}");
    assert!(report.is_sound() && report.held == 0 && report.excused == 0 && report.pictures > PICTURES as u64, "{report}");
}

#[tokio::test]
async fn while_the_bucket_is_away_or_full_telemetry_is_acked_and_pictures_wait() {
    let folder = folder();
    let Some((_own, line, mut mesh)) = behind_a_line(folder.path()).await else { return };
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], one_day());
    swarm.until("some pictures are in the hub", |swarm| acked(swarm, Lane::Pictures) > 2).await;

    // A POST of a lane follows another: whoever meets the first of these belongs to one that can't be committed.
    line.set(Weather::Refused);
    met(&line, Weather::Refused).await;
    let rows = objects_of_rows(&mesh).await.len();
    telemetry_passes_a_hanging_post(&line, &swarm, &mesh).await;
    for weather in [Weather::CutAfter(4_000), Weather::NoRoom] {
        line.set(weather);
        met(&line, weather).await;
    }
    // A hub that starts now serves as well.
    mesh.kill(&Node::Hub);
    mesh.start_hub().await.unwrap();
    until_telemetry_is_through(&mut swarm).await;
    assert!(waiting(&swarm, Lane::Pictures) > PICTURES, "{:?}", swarm.of_lane(Lane::Pictures));
    assert_eq!(objects_of_rows(&mesh).await.len(), rows, "no picture got through");

    line.set(Weather::Fine);
    is_sound(&mut swarm, &mesh).await;
}

#[tokio::test]
async fn a_slow_bucket_slows_pictures_and_nothing_else() {
    let folder = folder();
    let Some((_own, line, mut mesh)) = behind_a_line(folder.path()).await else { return };
    line.set(Weather::Late(SLOW));
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], one_day());
    until_telemetry_is_through(&mut swarm).await;
    assert!(waiting(&swarm, Lane::Pictures) > PICTURES, "{:?}", swarm.of_lane(Lane::Pictures));
    swarm.until("a slow store lets pictures through", |swarm| acked(swarm, Lane::Pictures) > 2).await;

    line.set(Weather::Fine);
    is_sound(&mut swarm, &mesh).await;
}

#[tokio::test]
async fn a_full_folder_of_pictures_stops_pictures_only_and_retention_makes_room() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    if is_on_a_server(&mesh) {
        // Its pictures are on another's disk.
        return;
    }
    let Some(disk) = SmallDisk::mount(&PathBuf::from(mesh.engines().objects(mesh.folder())), 12) else { return };
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], one_day());
    swarm.until("some pictures are in the hub", |swarm| acked(swarm, Lane::Pictures) > 2).await;

    // Pictures of long ago take most of it, others' files the rest.
    let objects = Objects::open(&mesh.engines().objects(mesh.folder())).unwrap();
    for i in 0..OLD_PICTURES {
        objects.put(&old_picture(i), Bytes::from(vec![1; OLD_PICTURE_BYTES])).await.unwrap();
    }
    disk.fill();
    mesh.until(&Node::Hub, "pictures find no room", async |mesh| metric(mesh, "muster_hub_object_put_failures_total").await > 0)
        .await
        .unwrap();
    let rows = objects_of_rows(&mesh).await.len();
    until_telemetry_is_through(&mut swarm).await;
    assert!(waiting(&swarm, Lane::Pictures) > PICTURES, "{:?}", swarm.of_lane(Lane::Pictures));
    assert_eq!(objects_of_rows(&mesh).await.len(), rows, "no picture got through");

    // Their time comes: the sweep at a start is the sweep of each day.
    mesh.stop(&Node::Hub).await.unwrap();
    keep_old_pictures(&mesh).await;
    mesh.start_hub().await.unwrap();
    is_sound(&mut swarm, &mesh).await;
    let there = names(&objects).await;
    assert!((0..OLD_PICTURES).all(|i| !there.contains(&old_picture(i))), "what made room is gone");
    disk.clear();
}

const OLD_PICTURES: i64 = 80;
/// Together more than all pictures of the day.
const OLD_PICTURE_BYTES: usize = 100 << 10;

fn old_picture(i: i64) -> String {
    format!("2001/01/01/{:032x}/{i}-{:016x}", 0, 0)
}

/// Their rows, too old by a day at least.
async fn keep_old_pictures(mesh: &Mesh) {
    let day = today() - RETENTION_DAYS - 2;
    let columns = "day, spool_id, seq, idx, at, area, width, height, format, blurred, why, sha256, group_id, part, parts, bytes_len, object, object_id";
    for i in 0..OLD_PICTURES {
        let object = old_picture(i);
        let row = format!(
            "INSERT INTO screenshot ({columns}) VALUES \
             ({day}, {FILLED}, {i}, 0, {day} * 86400000, 0, 1, 1, 0, 1, 0, x'00', x'00', 0, 1, {OLD_PICTURE_BYTES}, '{object}', randomblob(16))"
        );
        sql(mesh, &row).await;
    }
}

// --- kills ---

/// Pictures on their way at each kill.
const WAITING_MIN: usize = 2;
/// A kill at random comes at any moment of this after there are as many.
const MOMENT: Duration = Duration::from_millis(2_500);
/// The hub's answers take so long to the relay: the time between a row and its ack is long enough to be seen.
const LATE: Duration = Duration::from_millis(400);
/// Each window is aimed at by every third of them; as many are never needed.
const KILLS_MAX: usize = 60;

/// Whoever holds this keeps the hub from writing rows. Closed or dropped, it lets go.
async fn rows_held(mesh: &Mesh) -> AnyConnection {
    let mut database = connected(mesh).await;
    let lock = if is_on_a_server(mesh) { "BEGIN; LOCK TABLE batches IN EXCLUSIVE MODE" } else { "BEGIN IMMEDIATE" };
    // The hub may be writing this very moment.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = sqlx::raw_sql(lock).execute(&mut database).await {
        assert!(Instant::now() < deadline, "the rows can't be held: {error}");
        sleep(LOOK_EVERY).await;
    }
    database
}

/// Waits for the moment at which the hub is killed: at random, while an object has no row yet, or while a row wasn't acked yet. What is
/// returned is kept until after the kill.
async fn moment(mesh: &Mesh, objects: &Objects, kills: usize) -> Option<AnyConnection> {
    let deadline = Instant::now() + PATIENCE;
    let (rows, there) = (objects_of_rows(mesh).await, names(objects).await);
    match kills % 3 {
        0 => {
            sleep(chance::jitter(MOMENT)).await;
            None
        }
        1 => {
            let held = rows_held(mesh).await;
            while names(objects).await.difference(&there).count() == 0 {
                assert!(Instant::now() < deadline, "no picture is put while rows are held");
                sleep(LOOK_EVERY).await;
            }
            Some(held)
        }
        _ => {
            while objects_of_rows(mesh).await.len() == rows.len() {
                assert!(Instant::now() < deadline, "no picture becomes a row");
                sleep(LOOK_EVERY).await;
            }
            None
        }
    }
}

#[tokio::test]
async fn kills_between_object_row_and_ack_leave_no_row_without_object_and_objects_without_rows_go() {
    let kills_min = if is_long() { 60 } else { 12 };
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.start_hub().await.unwrap();
    let hub: SocketAddr = configured(&mesh, &Node::Hub, "mesh", "listen").parse().unwrap();
    let line = Line::before(hub);
    line.set(Weather::Late(LATE));
    mesh.set(&relay(), "MUSTER_RELAY__HUB__ADDRESS", &line.address().to_string());
    mesh.start_relay(SITE).await.unwrap();
    let objects = Objects::open(&mesh.engines().objects(mesh.folder())).unwrap();
    let mut swarm = Swarm::new(&mesh, SITE, AGENTS);
    swarm.start(&mesh, &[SITE], BUSY);

    let (mut strays, mut before_the_row, mut before_the_ack, mut kills) = (0, 0, 0, 0);
    while kills < kills_min || before_the_row == 0 || before_the_ack == 0 {
        assert!(kills < KILLS_MAX, "of {kills} kills {before_the_row} came between object and row, {before_the_ack} between row and ack");
        swarm.until("pictures are on their way", |swarm| waiting(swarm, Lane::Pictures) >= WAITING_MIN).await;
        let held = moment(&mesh, &objects, kills).await;
        // Where the answer of a commit was lost with the hub before this one, the relay has sent the same again.
        before_the_ack += usize::from(metric(&mesh, "muster_hub_repeated_batches_total{lane=\"pictures\"}").await > 0);
        mesh.kill(&Node::Hub);
        // What it said last is on the line still, and goes with it.
        line.set(Weather::Late(LATE));
        drop(held);
        kills += 1;
        let rows = objects_of_rows(&mesh).await;
        let there = names(&objects).await;
        let missing: Vec<_> = rows.difference(&there).collect();
        assert!(missing.is_empty(), "rows without objects: {missing:?}");
        let now = there.difference(&rows).count();
        before_the_row += usize::from(now > strays);
        strays = now;

        let progress = acked(&swarm, Lane::Pictures);
        mesh.start_hub().await.unwrap();
        swarm.until("the hub takes pictures again", |swarm| acked(swarm, Lane::Pictures) > progress).await;
    }
    line.set(Weather::Fine);
    swarm.drain(&mesh, &[SITE]).await;
    let report = swarm.check(&mesh).await;
    println!(
        "of {kills} kills {before_the_row} came between object and row, {before_the_ack} between row and ack; {strays} strays; {report}"
    );
    assert!(report.is_sound() && report.held == 0 && report.excused == 0 && report.pictures > 0, "{report}");

    mesh.stop(&Node::Hub).await.unwrap();
    let rows = objects_of_rows(&mesh).await;
    assert!(names(&objects).await.len() > rows.len(), "the strays are there until the sweep");
    if is_on_a_server(&mesh) {
        let store = Store::open(&database_url(mesh.folder())).await.unwrap();
        let later_ms = SystemClock::new().now().wall_ms + 2 * HOUR.as_millis() as i64;
        strays::sweep(&store, &objects, later_ms, Reach::Everything).await.unwrap();
        store.close().await;
    } else {
        two_hours_pass(&mesh);
        mesh.start_hub().await.unwrap();
        mesh.until(&Node::Hub, "the strays are gone", async |mesh| files(mesh).len() <= rows.len()).await.unwrap();
        assert_eq!(files(&mesh).len(), rows.len(), "not even half a picture stays");
    }
    assert_eq!(names(&objects).await, rows, "exactly the strays are gone");
    let report = swarm.check(&mesh).await;
    assert!(report.is_sound(), "{report}");
}

/// For what lies in the folder of the pictures.
fn two_hours_pass(mesh: &Mesh) {
    let now_ms = u64::try_from(SystemClock::new().now().wall_ms).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms) - 2 * HOUR;
    files(mesh).iter().for_each(|file| File::options().write(true).open(file).unwrap().set_modified(then).unwrap());
}

/// Every file below a day's folders, also of a picture that was half-way written.
fn files(mesh: &Mesh) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::from(mesh.engines().objects(mesh.folder()))]);
    let top = folders[0].clone();
    while let Some(folder) = folders.pop() {
        // Where the sweep took the last file, the folder goes with it.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(Result::unwrap) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                // Beside the days' folders lies what the hub itself needs there.
                Ok(_) if folder != top => files.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    files
}

// --- what lies where ---

async fn names(objects: &Objects) -> BTreeSet<String> {
    let mut listing = objects.list(None);
    let mut names = BTreeSet::new();
    loop {
        let more = listing.older(i64::MAX, 1_000).await.unwrap();
        if more.is_empty() {
            return names;
        }
        names.extend(more);
    }
}

async fn objects_of_rows(mesh: &Mesh) -> BTreeSet<String> {
    let mut database = connected(mesh).await;
    let select = format!("SELECT object FROM screenshot WHERE spool_id <> {FILLED}");
    let rows = sqlx::query(AssertSqlSafe(select)).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.try_get(0).unwrap()).collect()
}

/// What the hub counts under this name; 0 where it has counted nothing yet.
async fn metric(mesh: &Mesh, name: &str) -> u64 {
    let answer = mesh.health(&Node::Hub, "/metrics").await.unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}
