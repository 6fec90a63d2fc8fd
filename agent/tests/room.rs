//! Async: pictures and the disk's room: each lane has its own budget, pictures go first, and what is collected besides them goes on.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    fs::File,
    io::Write,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_agent::{
    batcher::Closed,
    journal::Journal,
    keeper::{Keeper, Keepers, Plan},
    spool::{BatchContext, Birth, Incident, Sealed, Sizes, Spool},
};
use muster_mesh::{
    clock::{Clock, ManualClock, Reading, Zone},
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    link::agent_side::Rules,
    message::{Claim, LaneState, Limits, Welcome},
    queue::{
        directory::{Directory, DirectoryError, Entry, Page, Room},
        memory::Memory,
        segment::Segments,
        sidecar::Sidecar,
    },
    ranges::Ranges,
    record::{Area, Capability, Gap, GapReason, Kind, PictureFormat, Record, Screenshot, Why},
};
use tokio::time::{sleep, timeout};

const DEVICE: DeviceId = DeviceId([1; 16]);
const NOW: Reading = Reading { wall_ms: 1_795_420_800_000, boot_ms: 1_000 };
const PICTURE_BYTES: usize = 10_000;

/// A folder in memory on a disk whose room can be said. Clones are the same.
#[derive(Clone, Default)]
struct Folder(Arc<Mutex<(Memory, Option<Room>)>>);

impl Folder {
    fn fill(&self, full: bool) {
        self.0.lock().unwrap().0.full = full;
    }

    fn room(&self, free: u64) {
        self.0.lock().unwrap().1 = Some(Room { free, size: 1 << 40 });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.0.lock().unwrap().0)
    }
}

impl Directory for Folder {
    fn segments(&self) -> Vec<u64> {
        self.with(|memory| memory.segments())
    }

    fn highest_ever(&self) -> u64 {
        self.with(|memory| memory.highest_ever())
    }

    fn create(&mut self, segment: u64, born: &Sidecar) -> Result<(), DirectoryError> {
        self.with(|memory| memory.create(segment, born))
    }

    fn append(&mut self, segment: u64, first: u64, entries: &[Entry]) -> Result<(), DirectoryError> {
        self.with(|memory| memory.append(segment, first, entries))
    }

    fn read(&mut self, segment: u64, from: u64, bytes_max: usize) -> Result<Page, DirectoryError> {
        self.with(|memory| memory.read(segment, from, bytes_max))
    }

    fn sidecar(&mut self, segment: u64) -> Result<Option<Sidecar>, DirectoryError> {
        self.with(|memory| memory.sidecar(segment))
    }

    fn put_sidecar(&mut self, segment: u64, sidecar: &Sidecar) -> Result<(), DirectoryError> {
        self.with(|memory| memory.put_sidecar(segment, sidecar))
    }

    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.with(|memory| memory.delete(segment))
    }

    fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.with(|memory| memory.set_aside(segment))
    }

    fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>, DirectoryError> {
        self.with(|memory| memory.file(name))
    }

    fn put_file(&mut self, name: &str, bytes: &[u8], durable: bool) -> Result<(), DirectoryError> {
        self.with(|memory| memory.put_file(name, bytes, durable))
    }

    fn allocated(&self) -> u64 {
        self.with(|memory| memory.allocated())
    }

    fn room(&self) -> Option<Room> {
        self.0.lock().unwrap().1
    }
}

fn context() -> BatchContext {
    let version = Version::default();
    let zone = Zone { name: "Etc/UTC".into(), offset_s: 0 };
    BatchContext { policy: version, notice: version, erasure: version, test_mode: false, boot: BootId([2; 16]), zone }
}

fn sign_of_life() -> Record {
    Record { at: NOW.wall_ms, kind: Kind::Capability(Capability { what: "test".into(), able: true, why: "x".repeat(500) }) }
}

fn picture() -> Record {
    let screenshot = Screenshot {
        area: Area::Monitor,
        width: 1_280,
        height: 720,
        format: PictureFormat::Webp,
        blurred: true,
        why: Why::Interval,
        sha256: [3; 32],
        group: [4; 16],
        part: 0,
        parts: 1,
        bytes: noise(),
    };
    Record { at: NOW.wall_ms, kind: Kind::Screenshot(screenshot) }
}

/// As a picture's bytes it doesn't shrink.
fn noise() -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..PICTURE_BYTES).map(byte).collect()
}

/// What was committed, in order.
#[derive(Default)]
struct Kept {
    records: Vec<(Lane, SpoolId, u64, Record)>,
    incidents: Vec<Incident>,
}

impl Journal for Kept {
    fn kept(&mut self, sealed: &[Sealed]) {
        for batch in sealed {
            let header = *batch.envelope.header();
            self.records.extend(batch.records.iter().map(|record| (batch.lane, header.spool, header.seq, record.clone())));
        }
    }

    fn incident(&mut self, incident: &Incident) {
        self.incidents.push(incident.clone());
    }
}

impl Kept {
    fn gaps(&self) -> Vec<Gap> {
        let gap = |record: &Record| if let Kind::Gap(gap) = &record.kind { Some(gap.clone()) } else { None };
        self.records.iter().filter_map(|(lane, _, _, record)| gap(record).filter(|_| *lane == Lane::Telemetry)).collect()
    }

    fn signs_of_life(&self) -> usize {
        self.records.iter().filter(|(_, _, _, record)| *record == sign_of_life()).count()
    }

    fn pictures(&self) -> Vec<(SpoolId, u64)> {
        self.records.iter().filter(|(lane, ..)| *lane == Lane::Pictures).map(|(_, spool, seq, _)| (*spool, *seq)).collect()
    }
}

// --- budgets, at the spool itself ---

const SEGMENT: u64 = 40_000;

fn spool(journal: &Arc<Mutex<Kept>>) -> Spool<Memory> {
    let sizes = Sizes { budgets: [64 << 20, 8 * SEGMENT], segment_bytes: SEGMENT };
    let birth = Birth { now: NOW, random: [[5; 10], [6; 10]] };
    let journal = Some(journal.clone() as muster_agent::journal::SharedJournal);
    Spool::open_with(DEVICE, Default::default(), sizes, context(), birth, Rules::default(), journal).unwrap().0
}

fn put(spool: &mut Spool<Memory>, lane: Lane, record: Record) -> Vec<Incident> {
    let sealed = spool.seal(lane, vec![record], NOW).unwrap();
    spool.commit(&sealed).unwrap();
    spool.keep_budget(NOW).unwrap()
}

#[test]
fn pictures_beyond_their_budget_cost_the_oldest_of_them_and_no_telemetry() {
    let journal = Arc::new(Mutex::new(Kept::default()));
    let mut spool = spool(&journal);
    for _ in 0..100 {
        put(&mut spool, Lane::Pictures, picture());
        put(&mut spool, Lane::Telemetry, sign_of_life());
        assert!(spool.queue(Lane::Pictures).used_bytes() <= 8 * SEGMENT);
    }
    let kept = journal.lock().unwrap();
    let id = spool.open_spool(Lane::Pictures);
    let mut dropped = Ranges::new();
    for gap in kept.gaps() {
        let numbers = gap.numbers.unwrap();
        assert_eq!((gap.lane, gap.reason, numbers.spool), (Lane::Pictures, GapReason::Budget, id));
        dropped.insert_range(numbers.first, numbers.last.unwrap());
    }
    let held = spool.side().backlog(Lane::Pictures).0;
    assert_eq!(dropped.iter().collect::<Vec<_>>(), [(1, 100 - held)], "the oldest, each named once");
    assert!((10..90).contains(&held), "{held}");
    assert_eq!(spool.side().backlog(Lane::Telemetry).0, 100 + kept.gaps().len() as u64, "nothing of the rest went");
}

#[test]
fn what_the_connected_relay_claims_goes_first_and_needs_no_gap() {
    let journal = Arc::new(Mutex::new(Kept::default()));
    let mut spool = spool(&journal);
    let until_dropped = |spool: &mut Spool<Memory>| (0..100).map(|_| put(spool, Lane::Pictures, picture())).find(|told| !told.is_empty());
    (0..12).for_each(|_| drop(put(&mut spool, Lane::Pictures, picture())));
    // It has numbers 5 to 8: a whole segment in the middle.
    let claims = vec![Claim { spool: spool.open_spool(Lane::Pictures), ranges: vec![(5, 8)] }];
    let welcome = Welcome { protocol: 1, limits: Limits::OURS, clock_ms: NOW.wall_ms, lanes: [LaneState::Open; 2], claims };
    spool.on_welcome(0, &welcome, Birth { now: NOW, random: [[7; 10], [8; 10]] }).unwrap();
    let told = until_dropped(&mut spool);
    let id = spool.open_spool(Lane::Pictures);
    assert!(told.is_some(), "at last one goes that nobody has");
    let gaps = journal.lock().unwrap().gaps();
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].numbers.unwrap().first, 1, "number 1 went only after those that the branch has");
    assert_eq!(spool.side().place(id, 5).0, muster_mesh::link::agent_side::Place::Branch);
}

// --- a disk without room, at the keeper ---

struct Desk {
    clock: ManualClock,
    keeper: Keeper,
    journal: Arc<Mutex<Kept>>,
    _keepers: Keepers,
}

impl Desk {
    fn new() -> (Desk, [Folder; 2]) {
        let folders = [Folder::default(), Folder::default()];
        let opened = folders.clone();
        (Desk::on(move || Ok(opened.clone())), folders)
    }

    fn on<D: Directory + Send + 'static>(open: impl FnMut() -> Result<[D; 2], DirectoryError> + Send + 'static) -> Desk {
        let clock = ManualClock::new(NOW, BootId([2; 16]));
        let keepers = Keepers::start(Arc::new(clock.clone())).unwrap();
        let journal = Arc::new(Mutex::new(Kept::default()));
        let plan = Plan {
            device: DEVICE,
            open: Box::new(open),
            sizes: Sizes { budgets: [64 << 20; 2], segment_bytes: 8 << 20 },
            context: context(),
            clock: Arc::new(clock.clone()),
            journal: Some(journal.clone()),
            shown: false,
        };
        Desk { clock, keeper: keepers.add(plan).unwrap(), journal, _keepers: keepers }
    }

    async fn keep(&self, lane: Lane, record: Record) {
        let closed = Closed { lane, context: context(), closed_at: self.clock.now(), records: vec![record], new_spools: false };
        self.keeper.keep(closed).await.unwrap();
    }

    async fn pictures_and_the_rest(&self, each: usize) {
        for _ in 0..each {
            self.keep(Lane::Pictures, picture()).await;
            self.keep(Lane::Telemetry, sign_of_life()).await;
        }
        // It answers when all that was put before is seen to.
        self.keeper.standing().await.unwrap();
    }

    fn with<T>(&self, look: impl FnOnce(&Kept) -> T) -> T {
        look(&self.journal.lock().unwrap())
    }

    fn pictures(&self) -> Vec<(SpoolId, u64)> {
        self.with(Kept::pictures)
    }

    fn signs_of_life(&self) -> usize {
        self.with(Kept::signs_of_life)
    }

    /// Pictures that gaps count without a number.
    fn counted(&self) -> u64 {
        let gaps: Vec<Gap> = self.with(Kept::gaps).into_iter().filter(|gap| gap.numbers.is_none()).collect();
        assert!(gaps.iter().all(|gap| (gap.lane, gap.reason) == (Lane::Pictures, GapReason::Budget)), "{gaps:?}");
        assert!(gaps.iter().all(|gap| gap.bytes >= gap.records * PICTURE_BYTES as u64));
        gaps.iter().map(|gap| gap.records).sum()
    }

    /// A picture each time, until one is kept again.
    async fn until_pictures_are_kept(&self) {
        let before = self.pictures().len();
        let wait = async {
            while self.pictures().len() == before {
                self.clock.advance(2_000);
                self.keep(Lane::Pictures, picture()).await;
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(30), wait).await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_runs_low_stops_pictures_and_nothing_else() {
    let (desk, folders) = Desk::new();
    desk.pictures_and_the_rest(3).await;
    assert_eq!((desk.pictures().len(), desk.signs_of_life()), (3, 3));
    folders[1].room(60 << 20);
    desk.pictures_and_the_rest(5).await;
    assert_eq!((desk.pictures().len(), desk.signs_of_life(), desk.counted()), (3, 8, 5));
    assert!(!desk.keeper.standing().await.unwrap().disk_full);
    folders[1].room(100 << 20);
    desk.until_pictures_are_kept().await;
    let pictures = desk.pictures();
    assert_ne!(pictures[0].0, pictures.last().unwrap().0, "under a new spool");
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_picture_costs_the_picture_and_holds_nothing_up() {
    let (desk, folders) = Desk::new();
    desk.pictures_and_the_rest(1).await;
    folders[1].fill(true);
    desk.pictures_and_the_rest(4).await;
    assert_eq!((desk.pictures().len(), desk.signs_of_life(), desk.counted()), (1, 5, 4));
    assert!(!desk.keeper.standing().await.unwrap().disk_full);
    folders[1].fill(false);
    desk.until_pictures_are_kept().await;
}

#[tokio::test]
async fn while_the_rest_waits_for_a_full_disk_no_picture_waits_before_it() {
    let (desk, folders) = Desk::new();
    desk.pictures_and_the_rest(1).await;
    folders.iter().for_each(|folder| folder.fill(true));
    desk.pictures_and_the_rest(10).await;
    assert!(desk.keeper.standing().await.unwrap().disk_full);
    assert_eq!((desk.pictures().len(), desk.signs_of_life(), desk.counted()), (1, 1, 0), "not even a gap has room");
    folders.iter().for_each(|folder| folder.fill(false));
    let wait = async {
        while desk.signs_of_life() < 11 || desk.counted() < 10 {
            desk.clock.advance(1_000);
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), wait).await.unwrap();
    assert_eq!(desk.counted(), 10);
    desk.until_pictures_are_kept().await;
}

// --- a real disk, and a small one ---

/// A disk in memory of its own, which goes with this. None: nobody may make one here.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u32) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "muster"]).arg(dir.path()).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(dir));
        }
        eprintln!("skipped: no small disk can be mounted here (root may)");
        None
    }

    /// To the last byte.
    fn fill(&self) {
        let mut file = File::create(self.0.path().join("somebody's")).unwrap();
        while file.write_all(&[7; 4_096]).is_ok() {}
        while file.write_all(&[7]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still has a file open there has ended, or this takes it along later.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_small_disk_pictures_leave_room_and_then_make_room() {
    let Some(disk) = SmallDisk::new(32) else { return };
    let path = disk.0.path().to_owned();
    let desk = Desk::on(move || {
        let lane = |lane: Lane| Segments::open(&path.join(lane.name()), 512 << 10);
        Ok([lane(Lane::Telemetry)?, lane(Lane::Pictures)?])
    });
    // 30 MB of pictures, on a disk of 32 MiB.
    for _ in 0..30 {
        desk.pictures_and_the_rest(100).await;
    }
    let (kept, lost) = (desk.pictures().len() as u64, desk.counted());
    assert_eq!((desk.signs_of_life(), kept + lost), (3_000, 3_000));
    assert!(lost > 100 && kept > 1_500, "{kept} kept, {lost} not");
    assert!(!desk.keeper.standing().await.unwrap().disk_full);

    disk.fill();
    // Its files have some room left; what they can't hold costs pictures, the oldest first, and each is named.
    let clock = desk.clock.clone();
    let passing = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(20)).await;
            clock.advance(500);
        }
    });
    let named = |kept: &Kept| -> u64 {
        let numbers = kept.gaps().into_iter().filter_map(|gap| gap.numbers);
        numbers.map(|numbers| numbers.last.unwrap() - numbers.first + 1).sum()
    };
    let mut sent = 3_000;
    let until_freed = async {
        while desk.with(named) == 0 {
            desk.keep(Lane::Telemetry, sign_of_life()).await;
            sent += 1;
        }
        while desk.signs_of_life() < sent || desk.keeper.standing().await.unwrap().disk_full {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), until_freed).await.unwrap();
    passing.abort();
    assert!(desk.with(named) > 100, "a whole segment of them");
}
