//! Quiet: the seam to the disk: what a queue needs of a folder. `segment.rs` makes it of redb files, `memory.rs` of memory.

use std::io;

use bytes::Bytes;

use super::sidecar::Sidecar;
use crate::batch::Envelope;

/// An envelope and what its keeper knows of its arrival (empty at an agent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub facts: Bytes,
    pub envelope: Envelope,
}

/// An entry as it lies on the disk, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub index: u64,
    pub facts: Bytes,
    pub envelope: Bytes,
}

/// Part of a segment. Places that can't be read are left out.
#[derive(Debug, Default)]
pub struct Page {
    pub slots: Vec<Slot>,
    /// Where to read on.
    pub next: u64,
    /// Nothing is behind it.
    pub last: bool,
    /// The segment's end can't be read: how many were there isn't known. Only meaningful with `last`.
    pub damaged_end: bool,
}

/// What the disk answers when it can't.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The segment's file can't be opened or read as a whole: it belongs into quarantine.
    #[error("segment {0:016x} can't be read")]
    Unreadable(u64),
    #[error("the disk is full")]
    Full,
    #[error("there is no open segment")]
    NoTail,
    /// Nothing more is acked from this file until it was opened again.
    #[error("{0}")]
    Io(io::Error),
}

impl DirectoryError {
    pub fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DirectoryError::Full,
            _ => DirectoryError::Io(error),
        }
    }
}

impl From<io::Error> for DirectoryError {
    fn from(error: io::Error) -> Self {
        DirectoryError::from_io(error)
    }
}

/// How much room a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be written.
    pub free: u64,
    /// All of its bytes.
    pub size: u64,
}

/// A folder of segments. Everything but [`put_file`](Directory::put_file) with `durable` false lies on the disk when it returns.
pub trait Directory {
    /// The living segments' numbers, ascending.
    fn segments(&self) -> Vec<u64>;
    /// The highest number that is or was here, quarantine included.
    fn highest_ever(&self) -> u64;
    /// Creates an empty segment with its first sidecar.
    fn create(&mut self, segment: u64, born: &Sidecar) -> Result<(), DirectoryError>;
    /// Appends in one commit; `first` is the place of the first entry.
    fn append(&mut self, segment: u64, first: u64, entries: &[Entry]) -> Result<(), DirectoryError>;
    /// Reads from a place on, at least one entry where there is one.
    fn read(&mut self, segment: u64, from: u64, bytes_max: usize) -> Result<Page, DirectoryError>;
    /// None: missing or damaged.
    fn sidecar(&mut self, segment: u64) -> Result<Option<Sidecar>, DirectoryError>;
    fn put_sidecar(&mut self, segment: u64, sidecar: &Sidecar) -> Result<(), DirectoryError>;
    /// Deletes a segment with its sidecar.
    fn delete(&mut self, segment: u64) -> Result<(), DirectoryError>;
    /// Moves a segment into quarantine.
    fn set_aside(&mut self, segment: u64) -> Result<(), DirectoryError>;
    /// A small file beside the segments; None: missing or damaged.
    fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>, DirectoryError>;
    /// Replaces a small file by rename. Not `durable`: an old version may come back after a power cut.
    fn put_file(&mut self, name: &str, bytes: &[u8], durable: bool) -> Result<(), DirectoryError>;
    /// Bytes that everything in the folder occupies, and one growth step.
    fn allocated(&self) -> u64;
    /// Of the disk below the folder. None: nobody knows.
    fn room(&self) -> Option<Room> {
        None
    }
}
