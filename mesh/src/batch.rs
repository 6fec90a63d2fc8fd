//! Quiet: a batch of one device's records, and the envelope that carries it unchanged from the agent to the hub.
//!
//! ```text
//! magic "MSTR" | version u8 | seal u8 | codec u8 | lane u8
//! device (16) | spool (16) | seq u64 | records u32 | raw_len u32 | body_len u32
//! policy (u32, u32) | notice (u32, u32) | erasure (u32, u32) | flags u32 (bit 0: test mode)
//! body … | crc32c of everything before                                  (88 + body + 4)
//! ```
//!
//! Little-endian. The header is these 88 bytes in every version. The body is a [`Head`] and the records in bincode, then zlib when that is
//! smaller. A relay reads magic, lane, device, spool, seq, body_len and crc ([`Envelope::read`]); only the hub opens it ([`Envelope::open`]).

use std::io::{Read, Write};

use bincode::{Decode, Encode};
use bytes::Bytes;
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use sha2::{Digest, Sha256};

use crate::{
    ids::{BootId, DeviceId, Lane, SpoolId, Version},
    limits,
    record::{self, Record, RecordError},
};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 88;
/// Bytes behind the body.
pub const CRC_BYTES: usize = 4;
/// The version that this build writes, and the only one that it opens.
pub const VERSION: u8 = 1;
/// Flag: the agent runs in test mode.
pub const FLAG_TEST_MODE: u32 = 1;

const MAGIC: [u8; 4] = *b"MSTR";
const CODEC_STORED: u8 = 0;
const CODEC_ZLIB: u8 = 1;
/// Level 3 gives 95 % of the gain of level 6 at 1.5 times its speed.
const ZLIB_LEVEL: u32 = 3;
/// A decoded list is wider than its bytes: 500 records of 64 addresses each, all of one character, need 6 times the longest telemetry body.
const DECODED_RATIO_MAX: usize = 8;

/// One spool as its agent states it: the hub's row only rises by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Tail {
    pub spool: SpoolId,
    pub lane: Lane,
    /// The lowest number that the agent still holds; equal to `next` when it holds none.
    pub first_held: u64,
    /// The number that the next batch gets.
    pub next: u64,
    pub closed: bool,
}

impl Tail {
    /// Nothing of it is held any more, and nothing will come.
    pub fn is_finished(&self) -> bool {
        self.closed && self.first_held >= self.next
    }
}

/// What stands before the records in a body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Head {
    pub boot: BootId,
    /// Wall and boot clock read together, in milliseconds, when the batch was closed.
    pub wall_ms: i64,
    pub boot_ms: u64,
    /// IANA name of the time zone in force.
    pub zone: String,
    /// Offset of local time from UTC in seconds.
    pub offset_s: i32,
    /// Spools whose tail changed since the last batch; all of them in the first batch of a spool.
    pub tails: Vec<Tail>,
}

/// A batch that is not sealed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub device: DeviceId,
    pub spool: SpoolId,
    pub seq: u64,
    pub lane: Lane,
    pub policy: Version,
    pub notice: Version,
    pub erasure: Version,
    pub test_mode: bool,
    pub head: Head,
    pub records: Vec<Record>,
}

/// The header's fields that every version has, as they lie in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub version: u8,
    pub seal: u8,
    pub codec: u8,
    pub lane: Lane,
    pub device: DeviceId,
    pub spool: SpoolId,
    pub seq: u64,
    pub records: u32,
    pub raw_len: u32,
    pub body_len: u32,
    pub policy: Version,
    pub notice: Version,
    pub erasure: Version,
    pub flags: u32,
}

/// A sealed batch: bytes that never change again, with a sound frame (magic, lane, number, length, crc).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    bytes: Bytes,
    header: Header,
}

/// A batch that can't be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a batch holds 1 to {} records", limits::BATCH_RECORDS_MAX)]
    Records,
    #[error("the batch is {0} bytes, longer than its lane allows")]
    TooLong(usize),
    #[error("a batch's number is 1 to 2^63-1")]
    Seq,
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Bytes that are not an envelope's frame: a fault of a program or of a disk, never of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("it doesn't begin with MSTR")]
    Magic,
    #[error("there is no lane {0}")]
    Lane(u8),
    #[error("its body of {0} bytes is longer than its lane allows")]
    Length(u32),
    #[error("its number {0} is not 1 to 2^63-1")]
    Seq(u64),
    #[error("it ends before its length, or goes on behind it")]
    Cut,
    #[error("its checksum doesn't match")]
    Crc,
}

/// A sound frame that this build doesn't open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("unknown version {0}")]
    Version(u8),
    #[error("unknown seal {0}")]
    Seal(u8),
    #[error("unknown codec {0}")]
    Codec(u8),
    #[error("unknown flags {0:#x}")]
    Flags(u32),
    #[error("the header's counts and lengths break a bound of version 1")]
    Bound,
    #[error("the body doesn't inflate to the length that the header says")]
    Inflate,
    #[error("the body doesn't decode")]
    Decode,
    #[error("the body holds another number of records than the header says")]
    Count,
    #[error("bytes are left over behind the body's end")]
    LeftOver,
    #[error("{0}")]
    Record(RecordError),
}

/// What the hub does with a batch that it can't open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Kept unread: a newer agent's data survives an older hub.
    Held,
    /// Dropped and counted: version 1 itself forbids it.
    Refused,
}

impl OpenError {
    /// Held, except a broken bound of version 1.
    pub fn fate(&self) -> Fate {
        match self {
            OpenError::Bound => Fate::Refused,
            OpenError::Record(error) => match error {
                RecordError::Nul => Fate::Held,
                RecordError::TextTooLong | RecordError::ListTooLong | RecordError::NumberTooLarge | RecordError::GapBackwards => {
                    Fate::Refused
                }
            },
            OpenError::Version(_)
            | OpenError::Seal(_)
            | OpenError::Codec(_)
            | OpenError::Flags(_)
            | OpenError::Inflate
            | OpenError::Decode
            | OpenError::Count
            | OpenError::LeftOver => Fate::Held,
        }
    }
}

impl Batch {
    /// Encodes and frames the batch, once: every later store keeps these bytes.
    pub fn seal(&self) -> Result<Envelope, SealError> {
        if self.records.is_empty() || self.records.len() > limits::BATCH_RECORDS_MAX {
            return Err(SealError::Records);
        }
        if self.seq == 0 || self.seq > limits::SEQ_MAX {
            return Err(SealError::Seq);
        }
        self.records.iter().try_for_each(Record::check)?;
        let mut raw = bincode::encode_to_vec(&self.head, bincode::config::standard()).unwrap_or_default();
        raw.extend(record::encode(&self.records));
        if raw.len() > limits::raw_max(self.lane) {
            return Err(SealError::TooLong(raw.len()));
        }
        let raw_len = raw.len() as u32;
        let (codec, body) = match deflate(&raw) {
            Some(smaller) => (CODEC_ZLIB, smaller),
            None => (CODEC_STORED, raw),
        };
        let header = Header {
            version: VERSION,
            seal: 0,
            codec,
            lane: self.lane,
            device: self.device,
            spool: self.spool,
            seq: self.seq,
            records: self.records.len() as u32,
            raw_len,
            body_len: body.len() as u32,
            policy: self.policy,
            notice: self.notice,
            erasure: self.erasure,
            flags: if self.test_mode { FLAG_TEST_MODE } else { 0 },
        };
        Ok(Envelope { bytes: frame(&header, &body), header })
    }
}

/// Header, body and crc as one run of bytes. Tests make hostile envelopes with it.
pub fn frame(header: &Header, body: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + CRC_BYTES);
    bytes.extend(MAGIC);
    bytes.extend([header.version, header.seal, header.codec, header.lane.as_u8()]);
    bytes.extend(header.device.0);
    bytes.extend(header.spool.0);
    bytes.extend(header.seq.to_le_bytes());
    for number in [header.records, header.raw_len, header.body_len] {
        bytes.extend(number.to_le_bytes());
    }
    for version in [header.policy, header.notice, header.erasure] {
        bytes.extend(version.epoch.to_le_bytes());
        bytes.extend(version.n.to_le_bytes());
    }
    bytes.extend(header.flags.to_le_bytes());
    bytes.extend(body);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.into()
}

fn deflate(raw: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(raw.len() / 2), Compression::new(ZLIB_LEVEL));
    encoder.write_all(raw).ok()?;
    encoder.finish().ok().filter(|smaller| smaller.len() < raw.len())
}

impl Header {
    /// Reads the 88 bytes and checks what every version promises. The lengths are checked before anything is allocated by them.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let lane = Lane::from_u8(bytes[7]).ok_or(FrameError::Lane(bytes[7]))?;
        let header = Header {
            version: bytes[4],
            seal: bytes[5],
            codec: bytes[6],
            lane,
            device: DeviceId(array(bytes, 8)),
            spool: SpoolId(array(bytes, 24)),
            seq: u64::from_le_bytes(array(bytes, 40)),
            records: u32::from_le_bytes(array(bytes, 48)),
            raw_len: u32::from_le_bytes(array(bytes, 52)),
            body_len: u32::from_le_bytes(array(bytes, 56)),
            policy: version_at(bytes, 60),
            notice: version_at(bytes, 68),
            erasure: version_at(bytes, 76),
            flags: u32::from_le_bytes(array(bytes, 84)),
        };
        if header.body_len as usize > limits::raw_max(lane) {
            return Err(FrameError::Length(header.body_len));
        }
        if header.seq == 0 || header.seq > limits::SEQ_MAX {
            return Err(FrameError::Seq(header.seq));
        }
        Ok(header)
    }

    /// Length of the whole envelope.
    pub fn envelope_len(&self) -> usize {
        HEADER_BYTES + self.body_len as usize + CRC_BYTES
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn version_at(bytes: &[u8; HEADER_BYTES], at: usize) -> Version {
    Version { epoch: u32::from_le_bytes(array(bytes, at)), n: u32::from_le_bytes(array(bytes, at + 4)) }
}

impl Envelope {
    /// Checks the frame of exactly these bytes.
    pub fn read(bytes: Bytes) -> Result<Envelope, FrameError> {
        let header = Header::read(bytes.first_chunk().ok_or(FrameError::Cut)?)?;
        if bytes.len() != header.envelope_len() {
            return Err(FrameError::Cut);
        }
        let (checked, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        if crc32c::crc32c(checked).to_le_bytes() != crc {
            return Err(FrameError::Crc);
        }
        Ok(Envelope { header, bytes })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The first 8 bytes of SHA-256 over the envelope: tells other content under a known number.
    pub fn digest(&self) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&Sha256::digest(&self.bytes)[..8]);
        short
    }

    /// Opens the body, bounded: nothing is allocated beyond the lane's limits, whatever the bytes say.
    pub fn open(&self) -> Result<Batch, OpenError> {
        let header = &self.header;
        if header.version != VERSION {
            return Err(OpenError::Version(header.version));
        }
        if header.seal != 0 {
            return Err(OpenError::Seal(header.seal));
        }
        if header.flags & !FLAG_TEST_MODE != 0 {
            return Err(OpenError::Flags(header.flags));
        }
        let body = &self.bytes[HEADER_BYTES..self.bytes.len() - CRC_BYTES];
        let raw_len = header.raw_len as usize;
        let known = match header.codec {
            CODEC_STORED => raw_len == body.len(),
            CODEC_ZLIB => raw_len <= body.len().saturating_mul(limits::INFLATE_RATIO_MAX),
            other => return Err(OpenError::Codec(other)),
        };
        let counted = (1..=limits::BATCH_RECORDS_MAX as u32).contains(&header.records);
        if !known || !counted || raw_len > limits::raw_max(header.lane) {
            return Err(OpenError::Bound);
        }
        let inflated;
        let raw = if header.codec == CODEC_ZLIB {
            inflated = inflate(body, raw_len)?;
            &inflated
        } else {
            body
        };
        let (head, records) = decode(raw, header.lane, header.records as usize)?;
        Ok(Batch {
            device: header.device,
            spool: header.spool,
            seq: header.seq,
            lane: header.lane,
            policy: header.policy,
            notice: header.notice,
            erasure: header.erasure,
            test_mode: header.flags & FLAG_TEST_MODE != 0,
            head,
            records,
        })
    }
}

/// Exactly one zlib stream of exactly `raw_len` bytes.
fn inflate(body: &[u8], raw_len: usize) -> Result<Vec<u8>, OpenError> {
    let mut decoder = ZlibDecoder::new(body);
    let mut raw = Vec::with_capacity(raw_len);
    let read = decoder.by_ref().take(raw_len as u64 + 1).read_to_end(&mut raw);
    if read.is_err() || raw.len() != raw_len {
        return Err(OpenError::Inflate);
    }
    if decoder.total_in() as usize != body.len() {
        return Err(OpenError::LeftOver);
    }
    Ok(raw)
}

fn decode(raw: &[u8], lane: Lane, count: usize) -> Result<(Head, Vec<Record>), OpenError> {
    match lane {
        Lane::Telemetry => decode_within::<{ DECODED_RATIO_MAX * limits::TELEMETRY_RAW_MAX }>(raw, count),
        Lane::Pictures => decode_within::<{ DECODED_RATIO_MAX * limits::PICTURES_RAW_MAX }>(raw, count),
    }
}

/// `MEMORY`: what decoding may claim, so that a false count of tails or addresses is refused before anything is allocated by it.
fn decode_within<const MEMORY: usize>(raw: &[u8], count: usize) -> Result<(Head, Vec<Record>), OpenError> {
    let config = bincode::config::standard().with_limit::<MEMORY>();
    let (head, used): (Head, usize) = bincode::decode_from_slice(raw, config).map_err(|_| OpenError::Decode)?;
    let (records, more): (Records, usize) = bincode::decode_from_slice(&raw[used..], config).map_err(|_| OpenError::Decode)?;
    let records = records.0;
    if used + more != raw.len() {
        return Err(OpenError::LeftOver);
    }
    if records.len() != count {
        return Err(OpenError::Count);
    }
    if head.tails.len() > limits::TAILS_MAX {
        return Err(OpenError::Bound);
    }
    if head.zone.contains('\0') {
        return Err(OpenError::Record(RecordError::Nul));
    }
    if head.zone.len() > limits::TEXT_BYTES_MAX {
        return Err(OpenError::Record(RecordError::TextTooLong));
    }
    let tail_fits = |tail: &Tail| tail.first_held <= limits::SEQ_MAX && tail.next <= limits::SEQ_MAX && tail.first_held >= 1;
    if head.boot_ms > i64::MAX as u64 || !head.tails.iter().all(tail_fits) {
        return Err(OpenError::Record(RecordError::NumberTooLarge));
    }
    records.iter().try_for_each(|record| record.check().map_err(OpenError::Record))?;
    Ok((head, records))
}

/// At most [`limits::BATCH_RECORDS_MAX`] records, so that a false count can't claim memory.
struct Records(Vec<Record>);

impl<C> Decode<C> for Records {
    fn decode<D: bincode::de::Decoder<Context = C>>(decoder: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let count = u64::decode(decoder)?;
        if count > limits::BATCH_RECORDS_MAX as u64 {
            return Err(bincode::error::DecodeError::LimitExceeded);
        }
        (0..count).map(|_| Record::decode(decoder)).collect::<Result<_, _>>().map(Records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Activity, Application, Focus, Kind, Source};

    #[test]
    fn a_batch_comes_out_as_it_went_in() {
        for records in [1, 2, 40, limits::BATCH_RECORDS_MAX] {
            let batch = batch(records);
            let envelope = batch.seal().unwrap();
            assert_eq!(Envelope::read(envelope.bytes().clone()).unwrap().open().unwrap(), batch);
        }
    }

    #[test]
    fn a_body_is_only_compressed_when_that_is_smaller() {
        assert_eq!(batch(1).seal().unwrap().header().codec, CODEC_STORED);
        assert_eq!(batch(40).seal().unwrap().header().codec, CODEC_ZLIB);
    }

    #[test]
    fn the_frame_is_byte_by_byte_as_the_format_says() {
        let id = |text: &str| text.parse::<DeviceId>().unwrap().0;
        let header = Header {
            version: 1,
            seal: 0,
            codec: 0,
            lane: Lane::Telemetry,
            device: DeviceId(id("0192f3a4b5c67d8e9fa0b1c2d3e4f506")),
            spool: SpoolId(id("0192f3a4c0de7a11bead00112233445f")),
            seq: 17,
            records: 2,
            raw_len: 19,
            body_len: 19,
            policy: Version { epoch: 1, n: 3 },
            notice: Version { epoch: 1, n: 2 },
            erasure: Version { epoch: 1, n: 0 },
            flags: 1,
        };
        let bytes = frame(&header, b"two made-up records");
        assert_eq!(bytes.len(), 111);
        assert_eq!(bytes[107..], [0x79, 0x04, 0x85, 0x88]);
        assert_eq!(*Envelope::read(bytes).unwrap().header(), header);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let bytes = batch(3).seal().unwrap().bytes().clone();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(Envelope::read(flipped.into()).is_err(), "byte {at}");
        }
    }

    pub(crate) fn batch(records: usize) -> Batch {
        let record = |i: usize| Record {
            at: 1_795_424_402_000 + i as i64,
            kind: if i.is_multiple_of(2) {
                Kind::Activity(Activity {
                    ms: 60_000,
                    keys: i as u32,
                    clicks: 2,
                    wheel: 0,
                    pointer_moved: true,
                    active_ms: 50_000,
                    idle_ms: 10_000,
                })
            } else {
                Kind::Focus(Focus {
                    ms: 900,
                    application: Application::Named("xterm".into()),
                    title: Some("plan.txt".into()),
                    source: Source::X11,
                })
            },
        };
        Batch {
            device: DeviceId([1; 16]),
            spool: SpoolId([2; 16]),
            seq: 9,
            lane: Lane::Telemetry,
            policy: Version { epoch: 1, n: 4 },
            notice: Version { epoch: 1, n: 2 },
            erasure: Version::default(),
            test_mode: true,
            head: Head {
                boot: BootId(*b"\x03boot of a test\xff"),
                wall_ms: 1_795_424_402_000,
                boot_ms: 12_345,
                zone: "Europe/Oslo".into(),
                offset_s: 3_600,
                tails: Vec::new(),
            },
            records: (0..records).map(record).collect(),
        }
    }
}
