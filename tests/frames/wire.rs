//! Quiet: the formats written a second time, by hand, from their description: what the product's encoder refuses to write can be written here.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::ZlibEncoder};
use muster_mesh::{
    batch::{FLAG_TEST_MODE, HEADER_BYTES, Header, frame},
    ids::{DeviceId, Lane, SpoolId, Version},
};

/// Lengths that no memory holds, as a number of a body's kind.
pub const HUGE: [u64; 4] = [u32::MAX as u64, u32::MAX as u64 + 1, i64::MAX as u64, u64::MAX];

/// An unsigned number in bincode's standard configuration.
pub fn varint(number: u64) -> Vec<u8> {
    match number {
        0..=250 => vec![number as u8],
        251..=0xffff => [&[251][..], &(number as u16).to_le_bytes()].concat(),
        0x1_0000..=0xffff_ffff => [&[252][..], &(number as u32).to_le_bytes()].concat(),
        _ => [&[253][..], &number.to_le_bytes()].concat(),
    }
}

/// A signed one.
pub fn zigzag(number: i64) -> Vec<u8> {
    varint(((number << 1) ^ (number >> 63)) as u64)
}

/// Length and bytes, UTF-8 or not.
pub fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    counted(bytes.as_ref().len() as u64, bytes)
}

/// A length, true or not, and bytes.
pub fn counted(length: u64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&varint(length)[..], bytes.as_ref()].concat()
}

/// `at`, tag and fields of a record.
pub fn record(at: i64, tag: u8, fields: impl AsRef<[u8]>) -> Vec<u8> {
    [&zigzag(at)[..], &[tag], fields.as_ref()].concat()
}

/// A heartbeat: active, no battery, version "1".
pub fn heartbeat(at: i64) -> Vec<u8> {
    record(at, 0, [&[1, 0][..], &text("1")].concat())
}

/// A focus of `ms` on the application `name`, with a title.
pub fn focus(ms: u64, name: impl AsRef<[u8]>, title: impl AsRef<[u8]>) -> Vec<u8> {
    record(0, 2, [varint(ms), vec![0], text(name), vec![1], text(title), vec![0]].concat())
}

/// A network record with addresses, their count true or not.
pub fn network(count: u64, addresses: &[&str]) -> Vec<u8> {
    let listed: Vec<u8> = addresses.iter().flat_map(text).collect();
    record(0, 5, counted(count, listed))
}

/// A gap of one record and one byte, for want of room.
pub fn gap(first: u64, last: Option<u64>) -> Vec<u8> {
    let last = last.map_or(vec![0], |last| [vec![1], varint(last)].concat());
    record(0, 7, [vec![0, 1], vec![9; 16], varint(first), last, varint(1), varint(1), vec![0]].concat())
}

/// One tail of telemetry.
pub fn tail(first_held: u64, next: u64) -> Vec<u8> {
    [vec![5; 16], vec![0], varint(first_held), varint(next), vec![0]].concat()
}

/// A batch's body before it is compressed; counts and lengths are true unless said otherwise.
pub struct Body {
    pub boot_ms: u64,
    pub zone: Vec<u8>,
    pub zone_len: Option<u64>,
    pub tails: Vec<Vec<u8>>,
    pub tails_count: Option<u64>,
    pub records: Vec<Vec<u8>>,
    pub records_count: Option<u64>,
    pub behind: Vec<u8>,
}

impl Body {
    pub fn of(records: Vec<Vec<u8>>) -> Body {
        Body {
            boot_ms: 12_345,
            zone: b"Europe/Oslo".to_vec(),
            zone_len: None,
            tails: Vec::new(),
            tails_count: None,
            records,
            records_count: None,
            behind: Vec::new(),
        }
    }

    pub fn with(change: impl FnOnce(&mut Body)) -> Vec<u8> {
        let mut body = Body::of(vec![heartbeat(0)]);
        change(&mut body);
        body.bytes()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let count = |given: Option<u64>, true_one: usize| given.unwrap_or(true_one as u64);
        [
            vec![3; 16],
            zigzag(1_795_424_402_000),
            varint(self.boot_ms),
            counted(count(self.zone_len, self.zone.len()), &self.zone),
            zigzag(3_600),
            counted(count(self.tails_count, self.tails.len()), self.tails.concat()),
            counted(count(self.records_count, self.records.len()), self.records.concat()),
            self.behind.clone(),
        ]
        .concat()
    }
}

/// The header of a sound envelope of telemetry with one record, around a body of this length.
pub fn header(body_len: usize) -> Header {
    let version = Version { epoch: 1, n: 3 };
    Header {
        version: 1,
        seal: 0,
        codec: 0,
        lane: Lane::Telemetry,
        device: DeviceId([1; 16]),
        spool: SpoolId([2; 16]),
        seq: 9,
        records: 1,
        raw_len: body_len as u32,
        body_len: body_len as u32,
        policy: version,
        notice: version,
        erasure: Version::default(),
        flags: FLAG_TEST_MODE,
    }
}

/// A framed body with a true crc, whose header says something else where `change` says so.
pub fn framed(body: &[u8], change: impl FnOnce(&mut Header)) -> Bytes {
    let mut header = header(body.len());
    change(&mut header);
    frame(&header, body)
}

/// The same bytes with a true crc again, if there is room for one.
pub fn with_true_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.len().checked_sub(4).filter(|end| *end >= HEADER_BYTES) {
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

pub fn zlib(raw: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(raw).unwrap();
    encoder.finish().unwrap()
}
