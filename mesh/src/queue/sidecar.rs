//! Quiet: what a segment holds, in a small file beside it, so that a claim costs no read of the segment.
//!
//! ```text
//! "MSSC" | format u8 | flags u8 (1 closed, 2 born) | count u64 | bytes u64
//! born: device (16) | spool (16) | first u64            (only with flag 2)
//! keys u32 | per key: device (16) | spool (16) | ranges u32 | first u64, last u64 …
//! crc32c u32 of everything before
//! ```

use std::collections::BTreeMap;

use crate::{
    batch::Envelope,
    ids::{DeviceId, SpoolId},
    ranges::Ranges,
};

const MAGIC: [u8; 4] = *b"MSSC";
const FORMAT: u8 = 1;
const CLOSED: u8 = 1;
const BORN: u8 = 2;

/// What one segment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sidecar {
    pub closed: bool,
    /// At an agent: whose numbers the segment was made for, so that a lost tail can be named.
    pub born: Option<Born>,
    /// Entries, readable or not.
    pub count: u64,
    /// Their envelopes' bytes.
    pub bytes: u64,
    /// The numbers of readable envelopes.
    pub ranges: BTreeMap<(DeviceId, SpoolId), Ranges>,
}

/// The spool of an agent's segment and its first number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Born {
    pub device: DeviceId,
    pub spool: SpoolId,
    pub first: u64,
}

impl Sidecar {
    /// Counts a readable envelope in.
    pub fn add(&mut self, envelope: &Envelope) {
        let header = envelope.header();
        self.bytes += header.envelope_len() as u64;
        self.ranges.entry((header.device, header.spool)).or_default().insert(header.seq);
    }

    pub fn remove(&mut self, device: DeviceId, spool: SpoolId, seq: u64) {
        let Some(ranges) = self.ranges.get_mut(&(device, spool)) else { return };
        ranges.remove(seq);
        if ranges.is_empty() {
            self.ranges.remove(&(device, spool));
        }
    }

    pub fn numbers(&self, device: DeviceId, spool: SpoolId) -> Ranges {
        self.ranges.get(&(device, spool)).cloned().unwrap_or_default()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([FORMAT, if self.closed { CLOSED } else { 0 } | if self.born.is_some() { BORN } else { 0 }]);
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.bytes.to_le_bytes());
        if let Some(born) = self.born {
            bytes.extend(born.device.0);
            bytes.extend(born.spool.0);
            bytes.extend(born.first.to_le_bytes());
        }
        bytes.extend((self.ranges.len() as u32).to_le_bytes());
        for ((device, spool), ranges) in &self.ranges {
            bytes.extend(device.0);
            bytes.extend(spool.0);
            bytes.extend((ranges.len() as u32).to_le_bytes());
            ranges.iter().for_each(|(first, last)| bytes.extend([first.to_le_bytes(), last.to_le_bytes()].concat()));
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// None: damaged, or of a format that this build doesn't know; then the segment itself is read.
    pub fn from_bytes(bytes: &[u8]) -> Option<Sidecar> {
        let (checked, crc) = bytes.split_last_chunk()?;
        if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut rest = checked;
        if take::<4>(&mut rest)? != MAGIC || take::<1>(&mut rest)? != [FORMAT] {
            return None;
        }
        let [flags] = take(&mut rest)?;
        let (count, bytes) = (number(&mut rest)?, number(&mut rest)?);
        let born = match flags & BORN {
            0 => None,
            _ => Some(Born { device: DeviceId(take(&mut rest)?), spool: SpoolId(take(&mut rest)?), first: number(&mut rest)? }),
        };
        let mut ranges = BTreeMap::new();
        for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
            let key = (DeviceId(take(&mut rest)?), SpoolId(take(&mut rest)?));
            let count = u32::from_le_bytes(take(&mut rest)?);
            let numbers = (0..count).map(|_| Some((number(&mut rest)?, number(&mut rest)?))).collect::<Option<Ranges>>()?;
            ranges.insert(key, numbers);
        }
        rest.is_empty().then_some(Sidecar { closed: flags & CLOSED != 0, born, count, bytes, ranges })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_comes_back_as_it_was_and_never_when_damaged() {
        let mut sidecar = Sidecar { closed: true, count: 9, bytes: 1_000, ..Sidecar::default() };
        sidecar.born = Some(Born { device: DeviceId([1; 16]), spool: SpoolId([2; 16]), first: 7 });
        sidecar.ranges.insert((DeviceId([1; 16]), SpoolId([2; 16])), [(7, 9), (12, 15)].into_iter().collect());
        let bytes = sidecar.to_bytes();
        assert_eq!(Sidecar::from_bytes(&bytes), Some(sidecar));
        for at in 0..bytes.len() {
            assert_eq!(Sidecar::from_bytes(&bytes[..at]), None);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(Sidecar::from_bytes(&flipped), None);
        }
    }
}
