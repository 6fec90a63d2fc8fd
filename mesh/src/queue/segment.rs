//! Blocking: a queue's folder on a disk: one redb file per segment. The only file that names redb.
//!
//! ```text
//! <number, 16 hex>.v1.seg    a redb file with one table: block key → block
//! <number, 16 hex>.v1.side   its sidecar (sidecar.rs)
//! <number, 16 hex>.v1.try    how often opening it has been tried without success
//! quarantine/                what can't be read
//!
//! block key   index of its first entry << 16 | part
//! block       first index u64 | count u32 | part u16 | parts u16 | crc32c u32 of the rest | payload        (≤ 65,400 bytes)
//! payload     per entry: u16 length | facts | u32 length | envelope;  an entry larger than a block spans several, `count` 1
//! ```
//!
//! Little-endian. Blocks keep redb's pages full: a value per envelope would halve the speed, and a value over 64 KiB doubles its pages.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use bytes::Bytes;
use redb::{Builder, Database, ReadableDatabase, StorageBackend, TableDefinition};

use super::{
    directory::{Directory, DirectoryError, Entry, Page, Room, Slot},
    disk::{Disk, Folder, Medium, QUARANTINE},
    sidecar::Sidecar,
};
use crate::limits;

const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
const BLOCK_HEADER: usize = 20;
const PAYLOAD_MAX: usize = limits::BLOCK_BYTES_MAX - BLOCK_HEADER;
/// Frees room for a small file when the disk is full, so that what says "this may be deleted" can still be written.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: usize = 64 << 10;

/// One lane's folder on a disk.
pub struct Segments<K: Disk = Folder> {
    disk: K,
    cache_bytes: usize,
    /// Living segments and the bytes that each occupies.
    living: BTreeMap<u64, u64>,
    /// Bytes of everything else in the folder.
    others: u64,
    highest: u64,
    tail: Option<OpenSegment>,
    /// The closed segment that was read last: one is open at a time.
    head: Option<OpenSegment>,
}

struct OpenSegment {
    number: u64,
    database: Database,
    /// An append failed: nothing more is acked from this file until it was opened again.
    failed: bool,
}

impl Segments<Folder> {
    /// Opens a folder, and makes it if it isn't there. `cache_bytes` is redb's cache of the tail; the other segment that is open has at most as much.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, DirectoryError> {
        Segments::on(Folder::open(path)?, cache_bytes)
    }
}

impl<K: Disk> Segments<K> {
    pub fn on(disk: K, cache_bytes: usize) -> Result<Self, DirectoryError> {
        let mut segments = Segments { disk, cache_bytes, living: BTreeMap::new(), others: 0, highest: 0, tail: None, head: None };
        segments.look()?;
        segments.make_reserve();
        Ok(segments)
    }

    /// Reads the folder: which segments live, which numbers ever did. What a crash left half made is removed.
    fn look(&mut self) -> Result<(), DirectoryError> {
        let names = self.disk.list()?;
        for name in &names {
            let quarantined = name.strip_prefix(QUARANTINE).and_then(|name| name.strip_prefix('/'));
            if let Some(number) = number_of(quarantined.unwrap_or(name)) {
                self.highest = self.highest.max(number);
            }
            if quarantined.is_none() && name.ends_with(SEGMENT) {
                self.living.extend(number_of(name).map(|number| (number, 0)));
            }
        }
        let orphan = |name: &&String| name.ends_with(NEW) || number_of(name).is_some_and(|number| !self.living.contains_key(&number));
        for name in names.iter().filter(orphan) {
            self.disk.remove(name)?;
        }
        self.weigh()
    }

    fn weigh(&mut self) -> Result<(), DirectoryError> {
        self.living.iter_mut().for_each(|(&number, bytes)| *bytes = self.disk.allocated(&name(number, SEGMENT)));
        let others = self.disk.list()?.into_iter().filter(|name| name.contains('/') || !name.ends_with(SEGMENT));
        self.others = others.map(|name| self.disk.allocated(&name)).sum();
        Ok(())
    }

    fn make_reserve(&mut self) {
        if self.disk.allocated(RESERVE) == 0 {
            // Without room for the reserve there is nothing to reserve: the next start tries again.
            let _ = self.disk.write(RESERVE, &[0; RESERVE_BYTES], true);
        }
    }

    /// Replaces a file by a synced copy under another name and a rename.
    fn replace(&mut self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let new = format!("{name}{NEW}");
        self.disk.write(&new, bytes, durable)?;
        self.disk.rename(&new, name)?;
        if durable { self.disk.sync_folder() } else { Ok(()) }
    }

    /// As [`replace`](Self::replace); on a full disk the reserve makes room.
    fn replace_even_when_full(&mut self, name: &str, bytes: &[u8], durable: bool) -> Result<(), DirectoryError> {
        match self.replace(name, bytes, durable) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && self.disk.allocated(RESERVE) > 0 => {
                self.disk.remove(RESERVE)?;
                self.replace(name, bytes, durable).map_err(DirectoryError::from_io)
            }
            other => other.map_err(DirectoryError::from_io),
        }
    }

    fn builder(&self, cache_bytes_max: usize) -> Builder {
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache_bytes.min(cache_bytes_max));
        builder
    }

    /// The segment's open database; a closed one is opened with redb's own check, since a flipped bit in a page head otherwise panics.
    fn database(&mut self, number: u64) -> Result<&Database, DirectoryError> {
        if self.tail.as_ref().is_some_and(|tail| tail.number == number) {
            return self.tail.as_ref().map(|tail| &tail.database).ok_or(DirectoryError::Unreadable(number));
        }
        if self.head.as_ref().is_none_or(|head| head.number != number) {
            self.head = None;
            self.head = Some(self.open_closed(number)?);
        }
        self.head.as_ref().map(|head| &head.database).ok_or(DirectoryError::Unreadable(number))
    }

    /// A marker counts the tries, because a damaged file can end the process: at the third it isn't opened any more.
    fn open_closed(&mut self, number: u64) -> Result<OpenSegment, DirectoryError> {
        let marker = name(number, TRY);
        let tries = self.disk.read(&marker).ok().and_then(|bytes| bytes.first().copied()).unwrap_or(0);
        if u32::from(tries) >= limits::SEGMENT_OPEN_TRIES {
            return Err(DirectoryError::Unreadable(number));
        }
        // A disk without room for a marker may still be read.
        let _ = self.disk.write(&marker, &[tries + 1], false);
        let medium = self.disk.open(&name(number, SEGMENT), false)?;
        let mut builder = self.builder(limits::READ_CACHE_BYTES);
        builder.set_check_integrity_on_open(true);
        let database = sound(number, || builder.create_with_backend(Backend(medium)).map_err(|error| from_redb(number, error.into())))?;
        let _ = self.disk.remove(&marker);
        Ok(OpenSegment { number, database, failed: false })
    }

    fn forget_open(&mut self, number: u64) {
        self.head.take_if(|head| head.number == number);
        self.tail.take_if(|tail| tail.number == number);
    }
}

impl<K: Disk> Directory for Segments<K> {
    fn segments(&self) -> Vec<u64> {
        self.living.keys().copied().collect()
    }

    fn highest_ever(&self) -> u64 {
        self.highest
    }

    fn create(&mut self, segment: u64, born: &Sidecar) -> Result<(), DirectoryError> {
        self.tail = None;
        // The sidecar first: a segment is never without the name of whose it is.
        self.replace(&name(segment, SIDECAR), &born.to_bytes(), true).map_err(DirectoryError::from_io)?;
        // A cut while redb makes its file leaves one that never opens: it gets its name when it is whole.
        let new = format!("{}{NEW}", name(segment, SEGMENT));
        let medium = self.disk.open(&new, true).map_err(DirectoryError::from_io)?;
        let database = self.builder(usize::MAX).create_with_backend(Backend(medium)).map_err(|error| from_redb(segment, error.into()))?;
        commit(&database, &[]).map_err(|error| from_redb(segment, error))?;
        self.disk.rename(&new, &name(segment, SEGMENT))?;
        self.disk.sync_folder()?;
        self.highest = self.highest.max(segment);
        self.living.insert(segment, 0);
        self.tail = Some(OpenSegment { number: segment, database, failed: false });
        self.make_reserve();
        self.weigh()
    }

    fn append(&mut self, segment: u64, first: u64, entries: &[Entry]) -> Result<(), DirectoryError> {
        let tail = self.tail.as_mut().filter(|tail| tail.number == segment && !tail.failed).ok_or(DirectoryError::NoTail)?;
        commit(&tail.database, &blocks(first, entries)).map_err(|error| {
            tail.failed = true;
            from_redb(segment, error)
        })
    }

    fn read(&mut self, segment: u64, from: u64, bytes_max: usize) -> Result<Page, DirectoryError> {
        if !self.living.contains_key(&segment) {
            return Err(DirectoryError::Unreadable(segment));
        }
        let database = self.database(segment)?;
        sound(segment, || read_blocks(database, from, bytes_max).map_err(|error| from_redb(segment, error)))
    }

    fn sidecar(&mut self, segment: u64) -> Result<Option<Sidecar>, DirectoryError> {
        Ok(self.file(&name(segment, SIDECAR))?.and_then(|bytes| Sidecar::from_bytes(&bytes)))
    }

    fn put_sidecar(&mut self, segment: u64, sidecar: &Sidecar) -> Result<(), DirectoryError> {
        self.replace_even_when_full(&name(segment, SIDECAR), &sidecar.to_bytes(), true)
    }

    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.forget_open(segment);
        remove(&mut self.disk, &name(segment, SEGMENT))?;
        remove(&mut self.disk, &name(segment, SIDECAR))?;
        remove(&mut self.disk, &name(segment, TRY))?;
        self.disk.sync_folder()?;
        self.living.remove(&segment);
        Ok(())
    }

    fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.forget_open(segment);
        for kind in [SEGMENT, SIDECAR] {
            let name = name(segment, kind);
            match self.disk.rename(&name, &format!("{QUARANTINE}/{name}")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        remove(&mut self.disk, &name(segment, TRY))?;
        self.disk.sync_folder()?;
        self.living.remove(&segment);
        self.weigh()
    }

    fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>, DirectoryError> {
        match self.disk.read(name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn put_file(&mut self, name: &str, bytes: &[u8], durable: bool) -> Result<(), DirectoryError> {
        self.replace_even_when_full(name, bytes, durable)
    }

    fn allocated(&self) -> u64 {
        let tail = self.tail.as_ref().map_or(0, |tail| self.disk.allocated(&name(tail.number, SEGMENT)));
        let closed: u64 = self
            .living
            .iter()
            .filter(|(number, _)| self.tail.as_ref().is_none_or(|tail| tail.number != **number))
            .map(|(_, bytes)| bytes)
            .sum();
        // A redb file doubles when it grows.
        closed + self.others + 2 * tail
    }

    fn room(&self) -> Option<Room> {
        self.disk.room()
    }
}

// --- names ---

const SEGMENT: &str = ".v1.seg";
const SIDECAR: &str = ".v1.side";
const TRY: &str = ".v1.try";
const NEW: &str = ".new";

fn name(segment: u64, kind: &str) -> String {
    format!("{segment:016x}{kind}")
}

/// The number of a segment's file, sidecar or marker.
fn number_of(name: &str) -> Option<u64> {
    let kind = [SEGMENT, SIDECAR, TRY].into_iter().find(|kind| name.ends_with(kind))?;
    let digits = name.strip_suffix(kind)?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

fn remove<K: Disk>(disk: &mut K, name: &str) -> Result<(), DirectoryError> {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

// --- blocks ---

/// Packs entries into blocks, each with its key.
fn blocks(first: u64, entries: &[Entry]) -> Vec<(u64, Vec<u8>)> {
    let mut blocks = Vec::new();
    let (mut payload, mut count, mut start) = (block_buffer(), 0u32, first);
    for (index, entry) in (first..).zip(entries) {
        let length = 6 + entry.facts.len() + entry.envelope.bytes().len();
        if payload.len() + length > limits::BLOCK_BYTES_MAX && count > 0 {
            blocks.push(block(start, count, 0, 1, std::mem::replace(&mut payload, block_buffer())));
            (count, start) = (0, index);
        }
        if length > PAYLOAD_MAX {
            blocks.extend(large(index, entry));
            start = index + 1;
            continue;
        }
        put_entry(&mut payload, entry);
        count += 1;
    }
    if count > 0 {
        blocks.push(block(start, count, 0, 1, payload));
    }
    blocks
}

fn block_buffer() -> Vec<u8> {
    let mut buffer = Vec::with_capacity(limits::BLOCK_BYTES_MAX);
    buffer.resize(BLOCK_HEADER, 0);
    buffer
}

fn put_entry(payload: &mut Vec<u8>, entry: &Entry) {
    put_head(payload, entry);
    payload.extend_from_slice(entry.envelope.bytes());
}

/// An entry up to its envelope.
fn put_head(payload: &mut Vec<u8>, entry: &Entry) {
    payload.extend((entry.facts.len() as u16).to_le_bytes());
    payload.extend_from_slice(&entry.facts);
    payload.extend((entry.envelope.bytes().len() as u32).to_le_bytes());
}

/// An entry that spans several blocks; each is filled straight from the envelope, since a picture copied once more is felt.
fn large(index: u64, entry: &Entry) -> Vec<(u64, Vec<u8>)> {
    let envelope = entry.envelope.bytes();
    let mut head = Vec::with_capacity(6 + entry.facts.len());
    put_head(&mut head, entry);
    let length = head.len() + envelope.len();
    let parts = length.div_ceil(PAYLOAD_MAX);
    let part = |part: usize| {
        let (from, to) = (part * PAYLOAD_MAX, length.min((part + 1) * PAYLOAD_MAX));
        let mut bytes = Vec::with_capacity(BLOCK_HEADER + to - from);
        bytes.resize(BLOCK_HEADER, 0);
        bytes.extend_from_slice(&head[from.min(head.len())..to.min(head.len())]);
        bytes.extend_from_slice(&envelope[from.saturating_sub(head.len())..to.saturating_sub(head.len())]);
        block(index, 1, part as u16, parts as u16, bytes)
    };
    (0..parts).map(part).collect()
}

/// Fills in the header of a block whose payload is in place.
fn block(first: u64, count: u32, part: u16, parts: u16, mut bytes: Vec<u8>) -> (u64, Vec<u8>) {
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..14].copy_from_slice(&part.to_le_bytes());
    bytes[14..16].copy_from_slice(&parts.to_le_bytes());
    let crc = block_crc(&bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    (first << 16 | u64::from(part), bytes)
}

fn block_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..16]), &bytes[BLOCK_HEADER..])
}

struct BlockHeader {
    first: u64,
    count: u32,
    part: u16,
    parts: u16,
}

/// None: the block is damaged.
fn block_header(bytes: &[u8]) -> Option<BlockHeader> {
    let header = bytes.first_chunk::<BLOCK_HEADER>()?;
    if block_crc(bytes).to_le_bytes() != header[16..20] {
        return None;
    }
    Some(BlockHeader {
        first: header[..8].try_into().map(u64::from_le_bytes).ok()?,
        count: header[8..12].try_into().map(u32::from_le_bytes).ok()?,
        part: header[12..14].try_into().map(u16::from_le_bytes).ok()?,
        parts: header[14..16].try_into().map(u16::from_le_bytes).ok()?,
    })
}

/// Takes one entry off a payload.
fn take_entry(payload: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let facts_len = usize::from(u16::from_le_bytes(*payload.first_chunk()?));
    let facts = payload.get(2..2 + facts_len).map(|facts| payload.slice_ref(facts))?;
    let rest = payload.slice(2 + facts_len..);
    let envelope_len = u32::from_le_bytes(*rest.first_chunk()?) as usize;
    let envelope = rest.get(4..4usize.checked_add(envelope_len)?).map(|envelope| rest.slice_ref(envelope))?;
    *payload = rest.slice(4 + envelope_len..);
    Some((facts, envelope))
}

// --- redb ---

fn commit(database: &Database, blocks: &[(u64, Vec<u8>)]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(BLOCKS)?;
        for (key, block) in blocks {
            table.insert(key, block.as_slice())?;
        }
    }
    // Durability::Immediate is redb's default: when this returns, the bytes are synced.
    transaction.commit()?;
    Ok(())
}

fn read_blocks(database: &Database, from: u64, bytes_max: usize) -> Result<Page, redb::Error> {
    let table = database.begin_read()?.open_table(BLOCKS)?;
    let start = table.range(..=(from << 16 | 0xffff))?.next_back().transpose()?.map_or(0, |(key, _)| key.value() >> 16 << 16);
    let mut reading = Reading { page: Page { next: from, ..Page::default() }, from, bytes_left: bytes_max, parts: Vec::new() };
    for item in table.range(start..)? {
        let (key, value) = item?;
        if !reading.take(key.value() >> 16, Bytes::copy_from_slice(value.value())) {
            return Ok(reading.page);
        }
    }
    reading.page.last = true;
    Ok(reading.page)
}

/// A read on its way through the blocks.
struct Reading {
    page: Page,
    from: u64,
    bytes_left: usize,
    /// Of a large entry, so far.
    parts: Vec<Bytes>,
}

impl Reading {
    /// False: enough was read.
    fn take(&mut self, first: u64, bytes: Bytes) -> bool {
        let header = block_header(&bytes).filter(|header| header.first == first);
        self.page.damaged_end = header.is_none();
        let Some(header) = header else {
            self.parts.clear();
            return true;
        };
        let payload = bytes.slice(BLOCK_HEADER..);
        if header.parts <= 1 {
            return self.take_entries(header.first, header.count, payload);
        }
        if usize::from(header.part) != self.parts.len() {
            // A part before this one is damaged: the entry is.
            self.parts.clear();
            return true;
        }
        self.parts.push(payload);
        if self.parts.len() < usize::from(header.parts) {
            return true;
        }
        let whole: Vec<u8> = self.parts.drain(..).flatten().collect();
        self.take_entries(header.first, 1, whole.into())
    }

    fn take_entries(&mut self, first: u64, count: u32, mut payload: Bytes) -> bool {
        for index in first..first + u64::from(count) {
            let Some((facts, envelope)) = take_entry(&mut payload) else { return true };
            if index < self.from {
                continue;
            }
            if envelope.len() > self.bytes_left && !self.page.slots.is_empty() {
                return false;
            }
            self.bytes_left = self.bytes_left.saturating_sub(envelope.len());
            self.page.slots.push(Slot { index, facts, envelope });
            self.page.next = index + 1;
        }
        true
    }
}

/// Runs what reads a file that may be damaged: redb may panic on one that was altered behind its back, and that is no fault of this program.
fn sound<T>(segment: u64, read: impl FnOnce() -> Result<T, DirectoryError>) -> Result<T, DirectoryError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(DirectoryError::Unreadable(segment)))
}

fn from_redb(segment: u64, error: redb::Error) -> DirectoryError {
    match error {
        redb::Error::Io(error) => DirectoryError::from_io(error),
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => DirectoryError::Unreadable(segment),
        other => DirectoryError::Io(io::Error::other(other.to_string())),
    }
}

#[derive(Debug)]
struct Backend<M>(M);

impl<M: Medium> StorageBackend for Backend<M> {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

#[cfg(test)]
mod tests;
