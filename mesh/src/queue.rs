//! Quiet: one lane's queue: segments that are appended at the tail, read at the head and deleted whole.
//!
//! It says what lies in readable segments and where; what may be deleted, and when, is decided by `link/`. Agent and relay use it alike: an
//! agent's segment holds one spool in order, so there a number is arithmetic.

pub mod directory;
pub mod disk;
pub mod memory;
pub mod segment;
pub mod sidecar;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    batch::Envelope,
    ids::{DeviceId, SpoolId},
    limits,
    ranges::Ranges,
};
use directory::{Directory, DirectoryError, Entry, Page};
use sidecar::{Born, Sidecar};

/// Where an envelope lies: the segment's number and the place in it, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub segment: u64,
    pub index: u64,
}

/// One lane's queue over one folder.
pub struct Queue<D> {
    directory: D,
    segments: BTreeMap<u64, Sidecar>,
    segment_bytes: u64,
}

/// A segment that can't be read: it stays in place until its owner says that it may be set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub segment: u64,
    /// What it held as far as known; none when its sidecar is gone or says nothing.
    pub sidecar: Option<Sidecar>,
    /// More may have been in it than the sidecar says: it was the tail.
    pub open_ended: bool,
}

/// Numbers that a segment's sidecar had beyond its readable envelopes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub device: DeviceId,
    pub spool: SpoolId,
    pub numbers: Ranges,
}

/// What one read found.
#[derive(Debug, Default)]
pub struct Found {
    /// In order; the queue's envelopes are checked against their crc.
    pub entries: Vec<(Position, Entry)>,
    /// Where to read on.
    pub next: Position,
    /// Numbers that turned out damaged; the sidecar is rewritten already.
    pub lost: Vec<Lost>,
    /// A segment that can't be read at all: nothing behind it was read.
    pub unreadable: Option<Unreadable>,
}

/// What opening found besides sound segments.
#[derive(Debug, Default)]
pub struct Opened {
    pub unreadable: Vec<Unreadable>,
    /// Agent only: numbers of a segment that lie between readable ones.
    pub lost: Vec<Lost>,
    /// Agent only: spools whose end is damaged: from this number up anything may have been.
    pub open_ended: Vec<(SpoolId, u64)>,
}

impl<D: Directory> Queue<D> {
    /// Opens the folder. Every segment in it is closed afterwards; [`roll`](Self::roll) opens the new tail, numbered above `at_least` and above
    /// everything that ever was in the folder.
    pub fn open(directory: D, segment_bytes: u64) -> Result<(Self, Opened), DirectoryError> {
        let mut queue = Queue { directory, segments: BTreeMap::new(), segment_bytes };
        let mut opened = Opened::default();
        for segment in queue.directory.segments() {
            match queue.directory.sidecar(segment)? {
                Some(sidecar) if sidecar.closed => {
                    queue.segments.insert(segment, sidecar);
                }
                born => queue.rebuild(segment, born, &mut opened)?,
            }
        }
        opened.lost = queue.segments.values().filter_map(holes).collect();
        Ok((queue, opened))
    }

    /// Reads a segment that was not closed and gives it a sidecar.
    fn rebuild(&mut self, segment: u64, born: Option<Sidecar>, opened: &mut Opened) -> Result<(), DirectoryError> {
        let born = born.and_then(|sidecar| sidecar.born);
        let scan = match self.scan(segment) {
            Ok(scan) => scan,
            Err(DirectoryError::Unreadable(_)) => {
                let sidecar = born.map(|born| Sidecar { born: Some(born), ..Sidecar::default() });
                opened.unreadable.push(Unreadable { segment, sidecar, open_ended: true });
                return Ok(());
            }
            Err(other) => return Err(other),
        };
        let mut sidecar = Sidecar { born, closed: true, count: scan.end, ..Sidecar::default() };
        scan.envelopes.iter().for_each(|envelope| sidecar.add(envelope));
        if let Some(born) = born.filter(|_| scan.damaged_end) {
            opened.open_ended.push((born.spool, born.first + scan.end));
        }
        self.directory.put_sidecar(segment, &sidecar)?;
        self.segments.insert(segment, sidecar);
        Ok(())
    }

    /// Everything readable of one segment.
    fn scan(&mut self, segment: u64) -> Result<Scan, DirectoryError> {
        let mut scan = Scan::default();
        loop {
            let page = self.directory.read(segment, scan.end, limits::COMMIT_BYTES_MAX)?;
            scan.end = scan.end.max(page.next);
            scan.damaged_end = page.damaged_end;
            scan.envelopes.extend(page.slots.into_iter().filter_map(|slot| Envelope::read(slot.envelope).ok()));
            if page.last {
                return Ok(scan);
            }
        }
    }

    /// Closes the tail, if there is one, and opens the next segment. A closed one without envelopes is deleted.
    pub fn roll(&mut self, born: Option<Born>, at_least: u64) -> Result<u64, DirectoryError> {
        let old = self.tail();
        if let Some(tail) = old {
            self.close(tail)?;
        }
        let number = self.directory.highest_ever().max(at_least) + 1;
        let sidecar = Sidecar { born, ..Sidecar::default() };
        self.directory.create(number, &sidecar)?;
        self.segments.insert(number, sidecar);
        let empty: Vec<u64> =
            self.segments.range(..number).filter(|(_, sidecar)| sidecar.count == 0).map(|(&segment, _)| segment).collect();
        empty.into_iter().try_for_each(|segment| self.delete(segment))?;
        Ok(number)
    }

    fn close(&mut self, tail: u64) -> Result<(), DirectoryError> {
        let Some(sidecar) = self.segments.get_mut(&tail) else { return Ok(()) };
        sidecar.closed = true;
        self.directory.put_sidecar(tail, sidecar).inspect_err(|_| sidecar.closed = false)
    }

    /// The segment that is appended to.
    pub fn tail(&self) -> Option<u64> {
        self.segments.last_key_value().filter(|(_, sidecar)| !sidecar.closed).map(|(&segment, _)| segment)
    }

    /// Whether the tail has reached its size, so that it should be rolled before the next append.
    pub fn tail_is_full(&self) -> bool {
        self.tail().and_then(|tail| self.segments.get(&tail)).is_none_or(|sidecar| sidecar.bytes >= self.segment_bytes)
    }

    /// Appends to the tail in one commit: when this returns, the entries lie on the disk. There must be a tail.
    pub fn append(&mut self, entries: &[Entry]) -> Result<Position, DirectoryError> {
        let tail = self.tail().ok_or(DirectoryError::NoTail)?;
        let sidecar = self.segments.get_mut(&tail).ok_or(DirectoryError::NoTail)?;
        let first = Position { segment: tail, index: sidecar.count };
        self.directory.append(tail, first.index, entries)?;
        sidecar.count += entries.len() as u64;
        entries.iter().for_each(|entry| sidecar.add(&entry.envelope));
        Ok(first)
    }

    /// Reads on from a position: at least one entry where there is a readable one, at most `bytes_max` bytes beyond it, never past one segment.
    pub fn read(&mut self, from: Position, bytes_max: usize) -> Result<Found, DirectoryError> {
        let mut at = from;
        loop {
            let Some((&segment, sidecar)) = self.segments.range(at.segment..).next() else {
                return Ok(Found { next: at, ..Found::default() });
            };
            let index = if segment == at.segment { at.index } else { 0 };
            if index < sidecar.count {
                return self.read_segment(segment, index, bytes_max);
            }
            if !sidecar.closed {
                return Ok(Found { next: Position { segment, index }, ..Found::default() });
            }
            at = Position { segment: segment + 1, index: 0 };
        }
    }

    fn read_segment(&mut self, segment: u64, index: u64, bytes_max: usize) -> Result<Found, DirectoryError> {
        let page = match self.directory.read(segment, index, bytes_max) {
            Ok(page) => page,
            Err(DirectoryError::Unreadable(_)) => {
                let unreadable = Unreadable { segment, sidecar: self.segments.get(&segment).cloned(), open_ended: false };
                return Ok(Found { next: Position { segment, index }, unreadable: Some(unreadable), ..Found::default() });
            }
            Err(other) => return Err(other),
        };
        let count = self.segments.get(&segment).map_or(0, |sidecar| sidecar.count);
        let next = Position { segment, index: if page.last { count } else { page.next } };
        let expected = next.index - index;
        let entries = checked(segment, page);
        let lost = if (entries.len() as u64) < expected { self.repair(segment)? } else { Vec::new() };
        Ok(Found { entries, next, lost, unreadable: None })
    }

    /// Finds what a segment's sidecar has beyond its readable envelopes, and writes the sidecar that is true, before anyone moves on.
    fn repair(&mut self, segment: u64) -> Result<Vec<Lost>, DirectoryError> {
        let readable = self.scan(segment)?;
        let Some(old) = self.segments.get(&segment) else { return Ok(Vec::new()) };
        let mut new = Sidecar { ranges: BTreeMap::new(), bytes: 0, ..old.clone() };
        readable.envelopes.iter().for_each(|envelope| new.add(envelope));
        let mut lost = Vec::new();
        for (&(device, spool), numbers) in &old.ranges {
            let mut numbers = numbers.clone();
            numbers.subtract(&new.numbers(device, spool));
            if !numbers.is_empty() {
                lost.push(Lost { device, spool, numbers });
            }
        }
        new.bytes = old.bytes;
        if new.closed && !lost.is_empty() {
            self.directory.put_sidecar(segment, &new)?;
        }
        self.segments.insert(segment, new);
        Ok(lost)
    }

    /// The hub returned these: the segment doesn't claim them any more. Durable when it returns.
    pub fn disown(&mut self, segment: u64, device: DeviceId, spool: SpoolId, seq: u64) -> Result<(), DirectoryError> {
        let Some(sidecar) = self.segments.get_mut(&segment) else { return Ok(()) };
        sidecar.remove(device, spool, seq);
        if sidecar.closed { self.directory.put_sidecar(segment, sidecar) } else { Ok(()) }
    }

    /// Deletes a whole segment.
    pub fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.directory.delete(segment)?;
        self.segments.remove(&segment);
        Ok(())
    }

    /// Moves an unreadable segment out of the way, for a person to look at.
    pub fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.directory.set_aside(segment)?;
        self.segments.remove(&segment);
        Ok(())
    }

    /// What lies here of one spool, in readable segments.
    pub fn claimed(&self, device: DeviceId, spool: SpoolId) -> Ranges {
        let mut claimed = Ranges::new();
        self.segments.values().filter_map(|sidecar| sidecar.ranges.get(&(device, spool))).for_each(|ranges| claimed.extend(ranges));
        claimed
    }

    /// The spools of one device that lie here.
    pub fn spools(&self, device: DeviceId) -> BTreeSet<SpoolId> {
        let all = (device, SpoolId([0; 16]))..=(device, SpoolId([255; 16]));
        self.segments.values().flat_map(|sidecar| sidecar.ranges.range(all.clone()).map(|(key, _)| key.1)).collect()
    }

    /// The living segments, oldest first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = (u64, &Sidecar)> {
        self.segments.iter().map(|(&segment, sidecar)| (segment, sidecar))
    }

    pub fn segment(&self, segment: u64) -> Option<&Sidecar> {
        self.segments.get(&segment)
    }

    /// The oldest living segment's first place.
    pub fn oldest(&self) -> Position {
        Position { segment: self.segments.first_key_value().map_or(0, |(&segment, _)| segment), index: 0 }
    }

    pub fn directory(&mut self) -> &mut D {
        &mut self.directory
    }

    pub fn into_directory(self) -> D {
        self.directory
    }

    /// Bytes that the folder occupies, and one growth step of the tail.
    pub fn used_bytes(&self) -> u64 {
        self.directory.allocated()
    }
}

/// Numbers that an agent's segment was given and doesn't have any more.
fn holes(sidecar: &Sidecar) -> Option<Lost> {
    let born = sidecar.born.filter(|_| sidecar.count > 0)?;
    let numbers = sidecar.numbers(born.device, born.spool).missing(born.first, born.first + sidecar.count - 1);
    (!numbers.is_empty()).then_some(Lost { device: born.device, spool: born.spool, numbers })
}

#[derive(Default)]
struct Scan {
    envelopes: Vec<Envelope>,
    /// One above the highest place that can be known.
    end: u64,
    damaged_end: bool,
}

fn checked(segment: u64, page: Page) -> Vec<(Position, Entry)> {
    let check = |slot: directory::Slot| {
        let envelope = Envelope::read(slot.envelope).ok()?;
        Some((Position { segment, index: slot.index }, Entry { facts: slot.facts, envelope }))
    };
    page.slots.into_iter().filter_map(check).collect()
}
