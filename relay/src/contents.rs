//! Blocking: what lies in a lane's folder, by headers only: for `queue inspect`, and for `queue verify` of a stopped relay. Bodies stay shut.

use bytes::Bytes;
use muster_mesh::{
    batch::Envelope,
    ids::{DeviceId, Lane, SpoolId},
    limits,
    message::Facts,
    queue::{
        Position,
        directory::{Directory, DirectoryError},
    },
};
use serde::{Deserialize, Serialize};

/// A page of what lies in a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub envelopes: Vec<Listed>,
    /// Places that can't be read.
    pub damaged: u64,
    /// Where the next page begins: (segment, index). None: this is the end.
    pub next: Option<(u64, u64)>,
}

/// One envelope by its header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub segment: u64,
    pub index: u64,
    pub device: DeviceId,
    pub spool: SpoolId,
    pub seq: u64,
    pub lane: Lane,
    pub version: u8,
    pub records: u32,
    pub bytes: usize,
    /// The relay's clock when it came, milliseconds UTC.
    pub receipt_ms: Option<i64>,
}

/// At most so many envelopes on a page.
pub const PAGE_MAX: usize = 1_000;

/// Lists at most `most` envelopes from a position on. Changes nothing.
pub fn look<D: Directory>(directory: &mut D, lane: Lane, from: Position, most: usize) -> Contents {
    let most = most.clamp(1, PAGE_MAX);
    let mut contents = Contents::default();
    for segment in directory.segments().into_iter().filter(|segment| *segment >= from.segment) {
        let mut index = if segment == from.segment { from.index } else { 0 };
        loop {
            let Ok(page) = directory.read(segment, index, limits::COMMIT_BYTES_MAX) else {
                contents.damaged += 1;
                break;
            };
            for slot in page.slots {
                if contents.envelopes.len() == most {
                    contents.next = Some((segment, slot.index));
                    return contents;
                }
                match listed(segment, slot.index, &slot.facts, slot.envelope) {
                    Some(listed) if listed.lane == lane => contents.envelopes.push(listed),
                    Some(_) | None => contents.damaged += 1,
                }
            }
            if page.last || page.next <= index {
                break;
            }
            index = page.next;
        }
    }
    contents
}

fn listed(segment: u64, index: u64, facts: &[u8], envelope: Bytes) -> Option<Listed> {
    let envelope = Envelope::read(envelope).ok()?;
    let header = envelope.header();
    Some(Listed {
        segment,
        index,
        device: header.device,
        spool: header.spool,
        seq: header.seq,
        lane: header.lane,
        version: header.version,
        records: header.records,
        bytes: header.envelope_len(),
        receipt_ms: Facts::read(facts).ok().map(|facts| facts.receipt_ms),
    })
}

/// What reading everything in a folder found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub segments: u64,
    pub envelopes: u64,
    pub bytes: u64,
    /// Segments that can't be read at all.
    pub unreadable: Vec<u64>,
    /// Per segment how many envelopes its sidecar has beyond the readable ones, or can't be read.
    pub damaged: Vec<(u64, u64)>,
}

impl Verified {
    pub fn is_sound(&self) -> bool {
        self.unreadable.is_empty() && self.damaged.is_empty()
    }
}

/// Reads every segment of a folder to its end. Changes nothing in it.
pub fn verify<D: Directory>(directory: &mut D) -> Result<Verified, DirectoryError> {
    let mut verified = Verified::default();
    for segment in directory.segments() {
        verified.segments += 1;
        match read_all(directory, segment) {
            Ok((envelopes, bytes, damaged)) => {
                verified.envelopes += envelopes;
                verified.bytes += bytes;
                let stated = directory.sidecar(segment)?.filter(|sidecar| sidecar.closed);
                let named: u64 = stated.map_or(0, |sidecar| sidecar.ranges.values().map(|numbers| numbers.count()).sum());
                let damaged = damaged.max(named.saturating_sub(envelopes));
                if damaged > 0 {
                    verified.damaged.push((segment, damaged));
                }
            }
            Err(DirectoryError::Unreadable(_)) => verified.unreadable.push(segment),
            Err(error) => return Err(error),
        }
    }
    Ok(verified)
}

/// Readable envelopes, their bytes, and places that can't be read.
fn read_all<D: Directory>(directory: &mut D, segment: u64) -> Result<(u64, u64, u64), DirectoryError> {
    let (mut envelopes, mut bytes, mut damaged, mut index) = (0, 0, 0, 0);
    loop {
        let page = directory.read(segment, index, limits::COMMIT_BYTES_MAX)?;
        damaged += (page.next - index).saturating_sub(page.slots.len() as u64) + u64::from(page.last && page.damaged_end);
        for slot in page.slots {
            match Envelope::read(slot.envelope) {
                Ok(envelope) => {
                    envelopes += 1;
                    bytes += envelope.header().envelope_len() as u64;
                }
                Err(_) => damaged += 1,
            }
        }
        if page.last || page.next <= index {
            return Ok((envelopes, bytes, damaged));
        }
        index = page.next;
    }
}
