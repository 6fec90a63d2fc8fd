//! Blocking: a folder in memory that outlives whoever opens it, and can be told to fail.

use std::{
    io,
    sync::{Arc, Mutex},
};

use muster_mesh::queue::{
    directory::{Directory, DirectoryError, Entry, Page},
    memory::Memory,
    sidecar::Sidecar,
};

#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    memory: Memory,
    fault: bool,
}

impl Disk {
    /// Appends answer with an I/O error until this is called again.
    pub fn fail(&self, fault: bool) {
        self.0.lock().unwrap().fault = fault;
    }

    pub fn fill(&self, full: bool) {
        self.0.lock().unwrap().memory.full = full;
    }

    #[allow(dead_code, reason = "only one of the two tests that share this file ruins a segment")]
    pub fn ruin(&self, segment: u64) {
        self.0.lock().unwrap().memory.ruin(segment);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.0.lock().unwrap().memory)
    }
}

impl Directory for Disk {
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
        if self.0.lock().unwrap().fault {
            return Err(DirectoryError::Io(io::Error::other("a broken disk")));
        }
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
}
