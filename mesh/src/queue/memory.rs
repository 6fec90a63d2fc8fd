//! Quiet: a folder in memory, for the simulation. It can lose, damage and give back what a disk can, and it can be copied like one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    directory::{Directory, DirectoryError, Entry, Page, Slot},
    sidecar::Sidecar,
};

/// A folder of segments in memory. A clone is a disk image.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    segments: BTreeMap<u64, Vec<(Bytes, Bytes)>>,
    sidecars: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
    /// What small files fall back to in a power cut.
    synced: BTreeMap<String, Vec<u8>>,
    unreadable: BTreeSet<u64>,
    highest: u64,
    /// The disk is full: nothing can be written until it isn't.
    pub full: bool,
    /// A planted fault: segment numbers start again above the highest living one.
    pub forgets_highest: bool,
    /// A planted fault: small files and sidecars of closed segments are never written again.
    pub forgets_sidecars: bool,
}

impl Memory {
    /// What a power cut leaves.
    pub fn cut(&mut self) {
        self.files = self.synced.clone();
    }

    /// The operating system writes back what was not synced.
    pub fn write_back(&mut self) {
        self.synced = self.files.clone();
    }

    /// Flips a bit in the envelope at a place of a segment.
    pub fn flip(&mut self, segment: u64, index: u64) {
        let Some((_, envelope)) = self.segments.get_mut(&segment).and_then(|slots| slots.get_mut(index as usize)) else { return };
        let mut bytes = envelope.to_vec();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        *envelope = bytes.into();
    }

    /// Makes a whole segment unreadable.
    pub fn ruin(&mut self, segment: u64) {
        self.unreadable.insert(segment);
    }

    fn writable(&self) -> Result<(), DirectoryError> {
        if self.full { Err(DirectoryError::Full) } else { Ok(()) }
    }
}

impl Directory for Memory {
    fn segments(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }

    fn highest_ever(&self) -> u64 {
        if self.forgets_highest { self.segments.last_key_value().map_or(0, |(&segment, _)| segment) } else { self.highest }
    }

    fn create(&mut self, segment: u64, born: &Sidecar) -> Result<(), DirectoryError> {
        self.writable()?;
        self.highest = self.highest.max(segment);
        self.segments.insert(segment, Vec::new());
        self.sidecars.insert(segment, born.to_bytes());
        Ok(())
    }

    fn append(&mut self, segment: u64, first: u64, entries: &[Entry]) -> Result<(), DirectoryError> {
        self.writable()?;
        if self.unreadable.contains(&segment) {
            return Err(DirectoryError::Unreadable(segment));
        }
        let slots = self.segments.get_mut(&segment).ok_or(DirectoryError::Unreadable(segment))?;
        slots.truncate(first as usize);
        slots.extend(entries.iter().map(|entry| (entry.facts.clone(), entry.envelope.bytes().clone())));
        Ok(())
    }

    fn read(&mut self, segment: u64, from: u64, bytes_max: usize) -> Result<Page, DirectoryError> {
        if self.unreadable.contains(&segment) {
            return Err(DirectoryError::Unreadable(segment));
        }
        let slots = self.segments.get(&segment).ok_or(DirectoryError::Unreadable(segment))?;
        let (mut page, mut bytes) = (Page { next: from, ..Page::default() }, 0);
        for (facts, envelope) in slots.iter().skip(from as usize) {
            bytes += envelope.len();
            if bytes > bytes_max && !page.slots.is_empty() {
                return Ok(page);
            }
            page.slots.push(Slot { index: page.next, facts: facts.clone(), envelope: envelope.clone() });
            page.next += 1;
        }
        page.last = true;
        Ok(page)
    }

    fn sidecar(&mut self, segment: u64) -> Result<Option<Sidecar>, DirectoryError> {
        Ok(self.sidecars.get(&segment).and_then(|bytes| Sidecar::from_bytes(bytes)))
    }

    fn put_sidecar(&mut self, segment: u64, sidecar: &Sidecar) -> Result<(), DirectoryError> {
        self.writable()?;
        let known = self.sidecars.get(&segment).and_then(|bytes| Sidecar::from_bytes(bytes));
        if !self.forgets_sidecars || known.is_none_or(|known| !known.closed) {
            self.sidecars.insert(segment, sidecar.to_bytes());
        }
        Ok(())
    }

    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.segments.remove(&segment);
        self.sidecars.remove(&segment);
        self.unreadable.remove(&segment);
        Ok(())
    }

    fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.delete(segment)
    }

    fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>, DirectoryError> {
        Ok(self.files.get(name).cloned())
    }

    fn put_file(&mut self, name: &str, bytes: &[u8], durable: bool) -> Result<(), DirectoryError> {
        self.writable()?;
        self.files.insert(name.to_owned(), bytes.to_vec());
        if durable {
            self.synced = self.files.clone();
        }
        Ok(())
    }

    fn allocated(&self) -> u64 {
        self.segments.values().flatten().map(|(facts, envelope)| (facts.len() + envelope.len()) as u64).sum()
    }
}
