//! Blocking: a queue's folder on a real disk, on one whose power is cut, and on one that is damaged.

use std::{
    collections::BTreeMap,
    env,
    fs::OpenOptions,
    os::unix::fs::FileExt,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
};

use super::*;
use crate::{
    batch::{Batch, Envelope, Head},
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    queue::{Position, Queue, sidecar::Born},
    record::{Capability, Kind, Record},
};

const CACHE: usize = 1 << 20;
const SEGMENT_BYTES: u64 = 20_000;

#[test]
fn what_was_appended_is_read_back_in_order_over_blocks_and_segments() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(Segments::open(folder.path(), CACHE).unwrap());
    let sizes = [1, 10, 70_000, 200, 65_380, 65_400, 200_000, 3, 3];
    let entries: Vec<Entry> = (1..).zip(sizes).map(|(seq, size)| entry(seq, size)).collect();
    for chunk in entries.chunks(4) {
        queue.append(chunk).unwrap();
        queue.roll(None, 0).unwrap();
    }
    assert_eq!(read_all(&mut queue), entries);
    drop(queue);
    let mut queue = open(Segments::open(folder.path(), CACHE).unwrap());
    assert_eq!(read_all(&mut queue), entries);
    assert_eq!(queue.claimed(device(), spool()).to_string(), "1–9");
}

#[test]
fn reading_stops_at_its_bound_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(Segments::open(folder.path(), CACHE).unwrap());
    let entries: Vec<Entry> = (1..=300).map(|seq| entry(seq, 900)).collect();
    queue.append(&entries).unwrap();
    let first = queue.read(queue.oldest(), 5_000).unwrap();
    assert!((1..10).contains(&first.entries.len()), "{}", first.entries.len());
    assert_eq!(read_all(&mut queue), entries);
}

#[test]
fn each_page_of_a_full_commit_of_pictures_is_written_once() {
    let pictures: Vec<Entry> = (1..).map(|seq| entry(seq, 80_000)).take(limits::COMMIT_BYTES_MAX / 80_000).collect();
    let pages: u64 = pictures.iter().map(|entry| entry.envelope.bytes().len().div_ceil(PAYLOAD_MAX) as u64).sum();
    let operations = |cache_bytes: usize| {
        let disk = CutDisk::new(0);
        let mut queue = open(Segments::on(disk.clone(), cache_bytes).unwrap());
        let before = disk.state().operations_left;
        queue.append(&pictures).unwrap();
        before - disk.state().operations_left
    };
    let few = pages + pages / 4;
    assert!((pages..few).contains(&operations(limits::WRITTEN_CACHE_BYTES)), "{}", operations(limits::WRITTEN_CACHE_BYTES));
    // The control: in a cache that the commit doesn't fit into, they are written more than once.
    assert!(operations(limits::COMMIT_BYTES_MAX) > few);
}

#[test]
fn a_segments_number_is_never_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(Segments::open(folder.path(), CACHE).unwrap());
    queue.append(&[entry(1, 5)]).unwrap();
    let first = queue.tail().unwrap();
    queue.roll(None, 0).unwrap();
    queue.set_aside(first).unwrap();
    drop(queue);
    let queue = open(Segments::open(folder.path(), CACHE).unwrap());
    assert!(queue.tail().unwrap() > first + 1);
}

#[test]
fn a_cut_at_any_moment_loses_nothing_that_was_acked() {
    let long = env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long");
    for seed in 0..if long { 20_000 } else { 200 } {
        cut_power(seed);
    }
}

/// One life of a queue on a disk whose power is cut after so many operations, and what is there afterwards.
fn cut_power(seed: u64) {
    let disk = CutDisk::new(seed);
    // Cuts fall on every kind of step: creation takes some 40 operations, a commit about 10.
    disk.state().operations_left = 1 + seed.wrapping_mul(7_919) % 600;
    let mut life = Life::default();
    let _ = life.live(disk.clone(), seed);
    for again in 0..3 {
        disk.cut(again);
        let mut queue = match Segments::on(disk.clone(), CACHE).and_then(|segments| Queue::open(segments, SEGMENT_BYTES)) {
            Ok((queue, opened)) => {
                assert!(opened.unreadable.is_empty() && opened.lost.is_empty(), "seed {seed}: {opened:?}");
                queue
            }
            Err(error) => panic!("seed {seed}: the queue doesn't open after a cut: {error}"),
        };
        let numbers: Vec<u64> = read_all(&mut queue).iter().map(|entry| entry.envelope.header().seq).collect();
        // Where everything was deleted nothing is there, and nothing has to be.
        let last = numbers.last().copied().unwrap_or(life.deleted);
        let first = numbers.first().copied().unwrap_or(last + 1);
        assert_eq!(numbers, (first..=last).collect::<Vec<_>>(), "seed {seed}: in order, without a hole");
        assert!(first <= life.deleted + 1, "seed {seed}: only up to {} was deleted, and the first is {first}", life.deleted);
        assert!(last >= life.acked, "seed {seed}: {} were acked, {last} are there", life.acked);
        let progress = queue.directory().file("progress").unwrap().map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        assert!(progress >= life.noted && progress <= life.acked + 1, "seed {seed}: {progress}, and {} was synced", life.noted);
        // A cut while the next start works is survived as well.
        disk.state().operations_left = 20 + seed % 50;
        let _ = queue.roll(born(last + 1), 0);
    }
}

/// What a queue's owner was told until the power went.
#[derive(Debug, Default)]
struct Life {
    acked: u64,
    /// Numbers up to here may be deleted, because somebody asked for it.
    deleted: u64,
    /// What the last synced progress says.
    noted: u64,
}

impl Life {
    /// Appends, closes, saves progress and deletes until the power goes.
    fn live(&mut self, disk: CutDisk, seed: u64) -> Result<(), DirectoryError> {
        let (mut queue, _) = Queue::open(Segments::on(disk, CACHE)?, SEGMENT_BYTES)?;
        queue.roll(born(1), 0)?;
        for commit in 0.. {
            let count = 1 + (seed + commit) % 5;
            let size = if (seed + commit).is_multiple_of(17) { 70_000 } else { 2_000 };
            let entries: Vec<Entry> = (self.acked + 1..=self.acked + count).map(|seq| entry(seq, size)).collect();
            queue.append(&entries)?;
            self.acked += count;
            if commit % 4 == 3 {
                queue.directory().put_file("progress", &self.acked.to_le_bytes(), true)?;
                self.noted = self.acked;
            }
            if queue.tail_is_full() {
                queue.roll(born(self.acked + 1), 0)?;
            }
            let oldest = queue.segments().find(|(_, sidecar)| sidecar.closed).map(|(segment, sidecar)| (segment, sidecar.clone()));
            if let Some((segment, sidecar)) = oldest.filter(|_| commit % 3 == 2) {
                self.deleted = sidecar.numbers(device(), spool()).last().unwrap_or(self.deleted);
                queue.delete(segment)?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_flipped_byte_anywhere_is_noticed_and_stops_nothing() {
    // redb may end the process on a file that was altered: each flip is looked at by a process of its own.
    if let Ok(folder) = env::var("MUSTER_FLIPPED_QUEUE") {
        return look_at_flipped(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    for (case, place) in ["head", "middle", "page", "end", "sidecar", "value"].into_iter().enumerate() {
        let path = folder.path().join(place);
        let flipped_first = make_flipped(&path, place, case as u64);
        for start in 0..5 {
            let status = Command::new(env::current_exe().unwrap())
                .args(["--exact", "queue::segment::tests::a_flipped_byte_anywhere_is_noticed_and_stops_nothing", "--nocapture"])
                .env("MUSTER_FLIPPED_QUEUE", &path)
                .output()
                .unwrap();
            if status.status.success() {
                break;
            }
            assert!(start < 4, "{place}: never starts again: {}", String::from_utf8_lossy(&status.stderr));
        }
        let mut queue = open(Segments::open(&path, CACHE).unwrap());
        let there: Vec<u64> = read_all(&mut queue).iter().map(|entry| entry.envelope.header().seq).collect();
        let second: Vec<u64> = (101..=200).collect();
        assert!(there.ends_with(&second), "{place}: what lies behind the damage is read");
        let quarantined = path.join(QUARANTINE).join(name(flipped_first, SEGMENT)).exists();
        assert!(quarantined || there.len() == 200 || place == "value", "{place}: {} are read, nothing was set aside", there.len());
        assert_eq!(quarantined, !there.contains(&1) && there.len() == 100, "{place}");
    }
}

/// Two closed segments with 100 numbers each, one byte of the first flipped. Returns its number.
fn make_flipped(path: &Path, place: &str, seed: u64) -> u64 {
    let mut queue = open(Segments::open(path, CACHE).unwrap());
    let first = queue.tail().unwrap();
    for numbers in [1..=100, 101..=200] {
        queue.append(&numbers.map(|seq| entry(seq, 800)).collect::<Vec<_>>()).unwrap();
        queue.roll(None, 0).unwrap();
    }
    drop(queue);
    let file = path.join(name(first, if place == "sidecar" { SIDECAR } else { SEGMENT }));
    let bytes = std::fs::read(&file).unwrap();
    let marked = bytes.windows(10).position(|window| window == b"aaaaaaaaaa").unwrap_or(40) as u64;
    let length = bytes.len() as u64;
    let at = match place {
        "head" => 70,
        "middle" => length / 2 + seed,
        "page" => marked / 4_096 * 4_096 + 2,
        "end" => length - 5,
        "value" => marked + 500,
        _ => length / 2,
    };
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    first
}

/// What a relay does at its start and its reads: unreadable segments are set aside.
fn look_at_flipped(path: &Path) {
    let (mut queue, opened) = Queue::open(Segments::open(path, CACHE).unwrap(), SEGMENT_BYTES).unwrap();
    for unreadable in opened.unreadable {
        queue.set_aside(unreadable.segment).unwrap();
    }
    queue.roll(None, 0).unwrap();
    let mut at = queue.oldest();
    loop {
        let found = queue.read(at, usize::MAX).unwrap();
        if let Some(unreadable) = found.unreadable {
            queue.set_aside(unreadable.segment).unwrap();
        } else if found.next == at {
            break;
        }
        at = found.next;
    }
}

// --- a queue of numbered envelopes ---

fn open<K: Disk>(segments: Segments<K>) -> Queue<Segments<K>> {
    let (mut queue, _) = Queue::open(segments, SEGMENT_BYTES).unwrap();
    queue.roll(None, 0).unwrap();
    queue
}

fn read_all<K: Disk>(queue: &mut Queue<Segments<K>>) -> Vec<Entry> {
    let (mut at, mut all) = (queue.oldest(), Vec::new());
    loop {
        let found = queue.read(at, 30_000).unwrap();
        assert!(found.unreadable.is_none());
        all.extend(found.entries.into_iter().map(|(_, entry)| entry));
        if found.next == at {
            return all;
        }
        at = found.next;
    }
}

fn born(first: u64) -> Option<Born> {
    Some(Born { device: device(), spool: spool(), first })
}

fn device() -> DeviceId {
    DeviceId([7; 16])
}

fn spool() -> SpoolId {
    SpoolId([8; 16])
}

/// A stored envelope of about this many bytes.
fn entry(seq: u64, size: usize) -> Entry {
    let mut noise = seq;
    let text: String = (0..size.min(3_900)).map(|_| noise_letter(&mut noise)).collect();
    let record = |i: usize| Record {
        at: i as i64,
        kind: Kind::Capability(Capability { what: format!("aaaaaaaaaa{text}"), able: true, why: String::new() }),
    };
    let lane = if size > 60_000 { Lane::Pictures } else { Lane::Telemetry };
    let batch = Batch {
        device: device(),
        spool: spool(),
        seq,
        lane,
        policy: Version::default(),
        notice: Version::default(),
        erasure: Version::default(),
        test_mode: false,
        head: Head { boot: BootId([1; 16]), wall_ms: 0, boot_ms: 0, zone: "Etc/UTC".into(), offset_s: 0, tails: Vec::new() },
        records: (0..size.div_ceil(3_900)).map(record).collect(),
    };
    let sealed = batch.seal().unwrap();
    let facts = Bytes::from(vec![seq as u8; 3]);
    // Stored, so that the size on the disk is the size asked for.
    if size <= 60_000 {
        return Entry { facts, envelope: sealed };
    }
    let mut header = *sealed.header();
    (header.codec, header.body_len, header.raw_len) = (0, size as u32, size as u32);
    let body: Vec<u8> = (0..size).map(|_| noise_letter(&mut noise) as u8).collect();
    Entry { facts, envelope: Envelope::read(crate::batch::frame(&header, &body)).unwrap() }
}

fn noise_letter(noise: &mut u64) -> char {
    *noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    char::from(b'b' + (*noise >> 33) as u8 % 20)
}

// --- a disk whose power is cut ---

/// A folder whose un-synced writes are lost, torn at 512 bytes or kept, each by chance, when the power is cut.
#[derive(Debug, Clone)]
struct CutDisk(Arc<Mutex<CutState>>);

#[derive(Debug)]
struct CutState {
    /// What programs see: names and the files behind them.
    names: BTreeMap<String, Arc<Mutex<CutFile>>>,
    /// What the folder is after a cut: it follows `names` at each sync of the folder.
    synced: BTreeMap<String, Arc<Mutex<CutFile>>>,
    operations_left: u64,
    chance: u64,
}

#[derive(Debug, Default)]
struct CutFile {
    seen: Vec<u8>,
    synced: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone)]
struct CutMedium {
    file: Arc<Mutex<CutFile>>,
    disk: CutDisk,
}

impl CutDisk {
    fn new(seed: u64) -> Self {
        let state =
            CutState { names: BTreeMap::new(), synced: BTreeMap::new(), operations_left: u64::MAX, chance: seed.wrapping_add(0x9e37_79b9) };
        CutDisk(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, CutState> {
        self.0.lock().unwrap()
    }

    /// One more operation, unless the power is gone.
    fn operate(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operations_left = state.operations_left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        Ok(())
    }

    /// The power was cut; what is left is what a new start finds.
    fn cut(&self, salt: u64) {
        let mut state = self.state();
        state.operations_left = u64::MAX;
        let mut chance = state.chance.wrapping_mul(31).wrapping_add(salt);
        // A rename or removal that was not synced may have reached the disk all the same, in order.
        let keep_names = (noise_letter(&mut chance) as u8).is_multiple_of(2);
        let names = if keep_names { state.names.clone() } else { state.synced.clone() };
        for file in names.values() {
            let mut file = file.lock().unwrap();
            let mut left = file.synced.clone();
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let kept = match noise_letter(&mut chance) as u8 % 3 {
                    0 => 0,
                    1 => bytes.len(),
                    _ => bytes.len() / 2 / 512 * 512,
                };
                let end = offset as usize + kept;
                if left.len() < end {
                    left.resize(end, 0);
                }
                left[offset as usize..end].copy_from_slice(&bytes[..kept]);
            }
            file.seen.clone_from(&left);
            file.synced = left;
        }
        state.chance = chance;
        state.synced.clone_from(&names);
        state.names = names;
    }
}

impl Disk for CutDisk {
    type File = CutMedium;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.lock().unwrap().seen.clone())
    }

    fn write(&mut self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let medium = self.open(name, true)?;
        medium.write(0, bytes)?;
        if durable { medium.sync() } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.operate()?;
        let mut state = self.state();
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.operate()?;
        self.state().names.remove(name).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.operate()?;
        let mut state = self.state();
        state.synced = state.names.clone();
        Ok(())
    }

    fn open(&mut self, name: &str, create: bool) -> io::Result<CutMedium> {
        self.operate()?;
        let mut state = self.state();
        if create {
            state.names.insert(name.to_owned(), Arc::default());
        }
        let file = state.names.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(CutMedium { file, disk: self.clone() })
    }

    fn allocated(&self, name: &str) -> u64 {
        self.state().names.get(name).map_or(0, |file| file.lock().unwrap().seen.len() as u64)
    }
}

impl Medium for CutMedium {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.file.lock().unwrap();
        let end = offset as usize + into.len();
        into.copy_from_slice(file.seen.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.operate()?;
        let mut file = self.file.lock().unwrap();
        let end = offset as usize + bytes.len();
        if file.seen.len() < end {
            file.seen.resize(end, 0);
        }
        file.seen[offset as usize..end].copy_from_slice(bytes);
        file.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.operate()?;
        let mut file = self.file.lock().unwrap();
        file.seen.resize(len as usize, 0);
        // A length is metadata: it is taken as journaled with the next write, like ext4 does.
        file.synced.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate()?;
        let mut file = self.file.lock().unwrap();
        file.pending.clear();
        file.synced = file.seen.clone();
        Ok(())
    }
}

#[test]
fn a_position_past_everything_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(Segments::open(folder.path(), CACHE).unwrap());
    let found = queue.read(Position { segment: 99, index: 3 }, 10).unwrap();
    assert!(found.entries.is_empty() && found.next == Position { segment: 99, index: 3 });
}
