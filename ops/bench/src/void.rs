//! Quiet: a folder that forgets what is put into it: what is left of a hop's cost is the hop's own.

use std::collections::BTreeMap;

use muster_mesh::queue::{
    directory::{Directory, DirectoryError, Entry, Page},
    sidecar::Sidecar,
};

/// Takes everything and keeps nothing but the numbers of its segments.
#[derive(Debug, Default)]
pub struct Void {
    /// Bytes that were put into each segment.
    segments: BTreeMap<u64, u64>,
    highest: u64,
}

impl Directory for Void {
    fn segments(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }

    fn highest_ever(&self) -> u64 {
        self.highest
    }

    fn create(&mut self, segment: u64, _: &Sidecar) -> Result<(), DirectoryError> {
        self.highest = self.highest.max(segment);
        self.segments.insert(segment, 0);
        Ok(())
    }

    fn append(&mut self, segment: u64, _: u64, entries: &[Entry]) -> Result<(), DirectoryError> {
        let bytes: usize = entries.iter().map(|entry| entry.facts.len() + entry.envelope.bytes().len()).sum();
        *self.segments.entry(segment).or_default() += bytes as u64;
        Ok(())
    }

    fn read(&mut self, _: u64, from: u64, _: usize) -> Result<Page, DirectoryError> {
        Ok(Page { next: from, last: true, ..Page::default() })
    }

    fn sidecar(&mut self, _: u64) -> Result<Option<Sidecar>, DirectoryError> {
        Ok(None)
    }

    fn put_sidecar(&mut self, _: u64, _: &Sidecar) -> Result<(), DirectoryError> {
        Ok(())
    }

    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.segments.remove(&segment);
        Ok(())
    }

    fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError> {
        self.delete(segment)
    }

    fn file(&mut self, _: &str) -> Result<Option<Vec<u8>>, DirectoryError> {
        Ok(None)
    }

    fn put_file(&mut self, _: &str, _: &[u8], _: bool) -> Result<(), DirectoryError> {
        Ok(())
    }

    fn allocated(&self) -> u64 {
        self.segments.values().sum()
    }
}
