//! Quiet: bad envelopes (and odd good ones), each with a name and the verdict that it must get.

use bytes::Bytes;
use muster_mesh::{
    batch::{Envelope, FrameError, Header, OpenError},
    ids::Lane,
    limits,
    record::RecordError,
};

use crate::wire::*;

/// What becomes of bytes that should be an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A program or a disk is at fault: the connection ends, or the number is returned.
    NoFrame(FrameError),
    /// Held or refused by [`OpenError::fate`].
    Unopened(OpenError),
    Opened,
}

pub fn verdict(bytes: &Bytes) -> Verdict {
    match Envelope::read(bytes.clone()) {
        Err(error) => Verdict::NoFrame(error),
        Ok(envelope) => envelope.open().map_or_else(Verdict::Unopened, |_| Verdict::Opened),
    }
}

pub struct Case {
    pub name: String,
    pub bytes: Bytes,
    pub expected: Verdict,
}

fn case(name: impl Into<String>, bytes: impl Into<Bytes>, expected: Verdict) -> Case {
    Case { name: name.into(), bytes: bytes.into(), expected }
}

pub fn all() -> Vec<Case> {
    [frames(), header_lengths(), unknown(), compressed(), bodies(), records(), kept()].into_iter().flatten().collect()
}

/// Good bytes, to have something to spoil.
pub fn good() -> Bytes {
    framed(&Body::with(|_| ()), |_| ())
}

fn spoilt(at: usize, with: &[u8]) -> Bytes {
    let mut bytes = good().to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes.into()
}

fn frames() -> Vec<Case> {
    use FrameError::*;
    let no = Verdict::NoFrame;
    let good = good();
    let longer: Bytes = [&good[..], &[0]].concat().into();
    vec![
        case("nothing", Bytes::new(), no(Cut)),
        case("87 bytes", good.slice(..87), no(Cut)),
        case("a header alone", good.slice(..88), no(Cut)),
        case("without its last byte", good.slice(..good.len() - 1), no(Cut)),
        case("a byte more", longer, no(Cut)),
        case("another magic", spoilt(0, b"MSTS"), no(Magic)),
        case("lane 2", spoilt(7, &[2]), no(Lane(2))),
        case("lane 255", spoilt(7, &[255]), no(Lane(255))),
        case("another checksum", spoilt(good.len() - 1, &[!good[good.len() - 1]]), no(Crc)),
        case("a flipped bit in the body", spoilt(100, &[good[100] ^ 1]), no(Crc)),
        case("number 0", framed(&Body::with(|_| ()), |header| header.seq = 0), no(Seq(0))),
        case("number 2^63", framed(&Body::with(|_| ()), |header| header.seq = 1 << 63), no(Seq(1 << 63))),
        case("number 2^64-1", framed(&Body::with(|_| ()), |header| header.seq = u64::MAX), no(Seq(u64::MAX))),
    ]
}

/// Each length and count of the header at 0, its bound, one more, and 2^32-1.
fn header_lengths() -> Vec<Case> {
    use OpenError::{Bound, Count, Decode};
    let (no, un) = (Verdict::NoFrame, Verdict::Unopened);
    let body = Body::with(|_| ());
    let length = body.len() as u32;
    let with = |change: fn(&mut Header)| framed(&body, change);
    let mut cases = vec![
        case("body_len 0 before a body", with(|header| header.body_len = 0), no(FrameError::Cut)),
        case("body_len 0 and no body", framed(&[], |_| ()), un(Decode)),
        case("raw_len 0", with(|header| header.raw_len = 0), un(Bound)),
        case("raw_len one more than the body", framed(&body, |header| header.raw_len = length + 1), un(Bound)),
        case("raw_len 2^32-1", with(|header| header.raw_len = u32::MAX), un(Bound)),
        case("records 0", with(|header| header.records = 0), un(Bound)),
        case("records 500 of 1", with(|header| header.records = 500), un(Count)),
        case("records 501", with(|header| header.records = 501), un(Bound)),
        case("records 2^32-1", with(|header| header.records = u32::MAX), un(Bound)),
    ];
    for lane in Lane::ALL {
        let most = limits::raw_max(lane);
        let of = |body: &[u8], body_len: u32| framed(body, |header| (header.lane, header.body_len) = (lane, body_len));
        // As long as it may be: its zone makes it so.
        let longest = vec![0xee; most];
        cases.extend([
            case(format!("{lane}: body_len at its bound"), of(&longest, most as u32), un(Decode)),
            case(format!("{lane}: body_len at its bound without a body"), of(&body, most as u32), no(FrameError::Cut)),
            case(format!("{lane}: body_len above its bound"), of(&body, most as u32 + 1), no(FrameError::Length(most as u32 + 1))),
            case(
                format!("{lane}: body_len above its bound, all there"),
                of(&[&longest[..], &[0]].concat(), most as u32 + 1),
                no(FrameError::Length(most as u32 + 1)),
            ),
            case(format!("{lane}: body_len 2^32-1"), of(&body, u32::MAX), no(FrameError::Length(u32::MAX))),
        ]);
    }
    cases
}

/// What a newer program may write.
fn unknown() -> Vec<Case> {
    use OpenError::*;
    let un = Verdict::Unopened;
    let with = |change: fn(&mut Header)| framed(&Body::with(|_| ()), change);
    vec![
        case("version 0", with(|header| header.version = 0), un(Version(0))),
        case("version 2", with(|header| header.version = 2), un(Version(2))),
        case("version 255", with(|header| header.version = 255), un(Version(255))),
        case("seal 1", with(|header| header.seal = 1), un(Seal(1))),
        case("codec 2", with(|header| header.codec = 2), un(Codec(2))),
        case("codec 255", with(|header| header.codec = 255), un(Codec(255))),
        case("flag 2", with(|header| header.flags = 3), un(Flags(3))),
        case("the highest flag", with(|header| header.flags = 1 << 31), un(Flags(1 << 31))),
        case(
            "version 2 beside counts of its own",
            with(|header| (header.version, header.records, header.raw_len) = (2, u32::MAX, 0)),
            un(Version(2)),
        ),
    ]
}

fn compressed() -> Vec<Case> {
    use OpenError::{Bound, Inflate, LeftOver};
    let un = Verdict::Unopened;
    let raw = Body::with(|_| ());
    let packed = zlib(&raw);
    let with = |body: &[u8], raw_len: u32| framed(body, |header| (header.codec, header.raw_len) = (1, raw_len));
    let raw_len = raw.len() as u32;
    let telemetry = limits::TELEMETRY_RAW_MAX as u32;
    let bomb = zlib(&vec![0; 100 << 20]);
    let small_bomb = zlib(&vec![0; limits::TELEMETRY_RAW_MAX]);
    let pictures_bomb = zlib(&vec![0; limits::PICTURES_RAW_MAX]);
    let in_pictures =
        |body: &[u8], raw_len| framed(body, |header| (header.lane, header.codec, header.raw_len) = (Lane::Pictures, 1, raw_len));
    vec![
        case("compressed and sound", with(&packed, raw_len), Verdict::Opened),
        case("inflates to more than it says", with(&packed, raw_len - 1), un(Inflate)),
        case("inflates to less than it says", with(&packed, raw_len + 1), un(Inflate)),
        case("inflates although it says nothing", with(&packed, 0), un(Inflate)),
        case("no zlib at all", with(&[0xff; 60], 60), un(Inflate)),
        case("an empty stream", with(&[], 0), un(Inflate)),
        case("zlib cut short", with(&packed[..packed.len() - 5], raw_len), un(Inflate)),
        case("zlib with another checksum", with(&[&packed[..packed.len() - 1], &[0x55]].concat(), raw_len), un(Inflate)),
        case("a byte behind zlib's end", with(&[&packed[..], &[0]].concat(), raw_len), un(LeftOver)),
        case("a second stream behind the first", with(&[&packed[..], &packed[..]].concat(), raw_len), un(LeftOver)),
        case("ratio above 1,100", with(&packed, packed.len() as u32 * 1_100 + 1), un(Bound)),
        case("raw_len above its bound", with(&bomb, telemetry + 1), un(Bound)),
        case("compressed, raw_len 2^32-1", with(&bomb, u32::MAX), un(Bound)),
        case("100 MiB that say to be 128 KiB", with(&bomb, telemetry), un(Inflate)),
        case("128 KiB of nothing in 150 bytes", with(&small_bomb, telemetry), un(LeftOver)),
        case("3 MiB of nothing in 3 KiB", in_pictures(&pictures_bomb, limits::PICTURES_RAW_MAX as u32), un(LeftOver)),
    ]
}

/// Counts and lengths inside of a body.
fn bodies() -> Vec<Case> {
    use OpenError::{Bound, Count, Decode, LeftOver, Record};
    let un = Verdict::Unopened;
    let with = |change: &dyn Fn(&mut Body)| framed(&Body::with(|body| change(body)), |_| ());
    let many = |tails: usize| vec![tail(1, 2); tails];
    let mut cases = vec![
        case("a byte behind the records", with(&|body| body.behind = vec![0]), un(LeftOver)),
        case("a second list of records", with(&|body| body.behind = counted(1, heartbeat(0))), un(LeftOver)),
        case("fewer records than counted", with(&|body| body.records_count = Some(2)), un(Decode)),
        case("more records than counted", with(&|body| body.records.push(heartbeat(1))), un(Count)),
        case("no records inside", with(&|body| body.records.clear()), un(Count)),
        case("501 records inside", with(&|body| body.records = vec![heartbeat(0); 501]), un(Decode)),
        case("tails at their bound", with(&|body| body.tails = many(limits::TAILS_MAX)), Verdict::Opened),
        case("a tail too many", with(&|body| body.tails = many(limits::TAILS_MAX + 1)), un(Bound)),
        case("a tail that holds from 0", with(&|body| body.tails = vec![tail(0, 2)]), un(Record(RecordError::NumberTooLarge))),
        case("a tail up to 2^63", with(&|body| body.tails = vec![tail(1, 1 << 63)]), un(Record(RecordError::NumberTooLarge))),
        case("a tail of lane 2", with(&|body| body.tails = vec![[vec![5; 16], vec![2, 1, 2, 0]].concat()]), un(Decode)),
        case("a boot clock of 2^63", with(&|body| body.boot_ms = 1 << 63), un(Record(RecordError::NumberTooLarge))),
        case("a boot clock of 2^63-1", with(&|body| body.boot_ms = (1 << 63) - 1), Verdict::Opened),
        case("a zone of 0 bytes", with(&|body| body.zone.clear()), Verdict::Opened),
        case("a zone at its bound", with(&|body| body.zone = vec![b'z'; limits::TEXT_BYTES_MAX]), Verdict::Opened),
        case(
            "a zone above its bound",
            with(&|body| body.zone = vec![b'z'; limits::TEXT_BYTES_MAX + 1]),
            un(Record(RecordError::TextTooLong)),
        ),
        case("a zone with NUL", with(&|body| body.zone = b"Europe\0Oslo".to_vec()), un(Record(RecordError::Nul))),
        case("a zone that isn't UTF-8", with(&|body| body.zone = vec![0xc3, 0x28]), un(Decode)),
    ];
    for huge in HUGE {
        cases.extend([
            case(format!("a zone of {huge} bytes"), with(&|body| body.zone_len = Some(huge)), un(Decode)),
            case(format!("{huge} tails"), with(&|body| body.tails_count = Some(huge)), un(Decode)),
            case(format!("{huge} records"), with(&|body| body.records_count = Some(huge)), un(Decode)),
        ]);
    }
    // As many as would just fit the memory that decoding may claim for pictures.
    for count in [10_000, 26_000, 100_000, 600_000, 1_000_000] {
        cases.push(case(format!("{count} tails that aren't there"), with(&|body| body.tails_count = Some(count)), un(Decode)));
    }
    cases
}

/// One record that breaks something: the batch goes with it, whole.
fn records() -> Vec<Case> {
    use RecordError::*;
    let un = Verdict::Unopened;
    let broken = |error| un(OpenError::Record(error));
    let with = |record: Vec<u8>| framed(&Body::of(vec![record]).bytes(), |_| ());
    let in_pictures = |record: Vec<u8>| framed(&Body::of(vec![record]).bytes(), |header| header.lane = Lane::Pictures);
    let many = |count: usize| vec!["a"; count];
    let long_title = focus(1, "xterm", "a".repeat(1 << 20));
    let too_long = |record: &[u8]| Verdict::NoFrame(FrameError::Length(Body::of(vec![record.to_vec()]).bytes().len() as u32));
    let session = |tag: u8, ms: u64| record(0, 4, [vec![tag], varint(ms)].concat());
    let mut cases = vec![
        case("a kind of record that isn't known", with(record(0, 10, [])), un(OpenError::Decode)),
        case("a state that isn't known", with(record(0, 0, [10, 0, 0])), un(OpenError::Decode)),
        case("a bool of 2", with(record(0, 6, [text("x"), vec![2], text("")].concat())), un(OpenError::Decode)),
        case("an option of 2", with(record(0, 0, [0, 2, 0])), un(OpenError::Decode)),
        case("a title that isn't UTF-8", with(focus(1, "xterm", [0xff, 0xfe])), un(OpenError::Decode)),
        case("a title with half a character", with(focus(1, "xterm", [0xe2, 0x82])), un(OpenError::Decode)),
        case("a title with NUL", with(focus(1, "xterm", "a\0b")), broken(Nul)),
        case("an application with NUL", with(focus(1, "\0", "a")), broken(Nul)),
        case("a title of 513 characters", with(focus(1, "xterm", "é".repeat(513))), broken(TextTooLong)),
        case("a title of 1 MB", in_pictures(long_title.clone()), broken(TextTooLong)),
        case("a title of 1 MB in telemetry", with(long_title.clone()), too_long(&long_title)),
        case("an application of 4,097 bytes", with(focus(1, "x".repeat(4_097), "a")), broken(TextTooLong)),
        case("65 addresses", with(network(65, &many(65))), broken(ListTooLong)),
        case("a span of 2^32 ms", with(focus(1 << 32, "xterm", "a")), un(OpenError::Decode)),
        case("a sleep of 2^63 ms", with(session(5, 1 << 63)), broken(NumberTooLarge)),
        case("a pause of 2^64-1 ms", with(session(7, u64::MAX)), broken(NumberTooLarge)),
        case("a gap that begins at 0", with(gap(0, Some(3))), broken(GapBackwards)),
        case("a gap backwards", with(gap(9, Some(8))), broken(GapBackwards)),
        case("a gap up to 2^63", with(gap(9, Some(1 << 63))), broken(NumberTooLarge)),
        case("a gap from 2^64-1", with(gap(u64::MAX, None)), broken(NumberTooLarge)),
        case(
            "one bad record among good ones",
            framed(&Body::of(vec![heartbeat(0), focus(1, "xterm", "a\0b"), heartbeat(2)]).bytes(), |header| header.records = 3),
            broken(Nul),
        ),
    ];
    for huge in HUGE {
        cases.extend([
            case(format!("a version of {huge} bytes"), with(record(0, 0, [vec![1, 0], varint(huge)].concat())), un(OpenError::Decode)),
            case(format!("{huge} addresses"), with(network(huge, &[])), un(OpenError::Decode)),
            case(format!("a picture of {huge} bytes"), in_pictures(picture(huge, &[1, 2, 3])), un(OpenError::Decode)),
        ]);
    }
    cases
}

fn picture(length: u64, bytes: &[u8]) -> Vec<u8> {
    let fields = [vec![0], varint(1), varint(1), vec![0, 0, 0], vec![7; 32], vec![8; 16], vec![0, 1], counted(length, bytes)];
    record(0, 3, fields.concat())
}

/// Odd, and kept as it is: the hub shows it, nobody corrects it.
fn kept() -> Vec<Case> {
    let with = |record: Vec<u8>| framed(&Body::of(vec![record]).bytes(), |_| ());
    let opened = |name: &str, bytes| case(name, bytes, Verdict::Opened);
    vec![
        opened("a title from right to left", with(focus(1, "xterm", "\u{202e}txt.exe"))),
        opened("a title of 512 characters of 4 bytes", with(focus(1, "xterm", "🦀".repeat(512)))),
        opened("a title of 0 bytes", with(focus(1, "xterm", ""))),
        opened("an application of 4,096 bytes", with(focus(1, "x".repeat(4_096), "a"))),
        opened("64 addresses", with(network(64, &["a"; 64]))),
        opened(
            "500 records of 64 addresses",
            framed(&Body::of(vec![network(64, &["abc"; 64]); 500]).bytes(), |header| header.records = 500),
        ),
        opened("no address", with(network(0, &[]))),
        opened("a span of 49 days", with(focus(u64::from(u32::MAX), "xterm", "a"))),
        opened("the farthest future", with(heartbeat(i64::MAX))),
        opened("before all time", with(heartbeat(i64::MIN))),
        opened("a sleep of 2^63-1 ms", with(record(0, 4, [vec![5], varint(i64::MAX as u64)].concat()))),
        opened("a gap without an end", with(gap(1, None))),
        opened("number 2^40", framed(&Body::with(|_| ()), |header| header.seq = 1 << 40)),
        opened("number 2^63-1", framed(&Body::with(|_| ()), |header| header.seq = limits::SEQ_MAX)),
        opened("500 records", framed(&Body::with(|body| body.records = vec![heartbeat(0); 500]), |header| header.records = 500)),
        opened("a picture of 0 bytes", framed(&Body::of(vec![picture(0, &[])]).bytes(), |header| header.lane = Lane::Pictures)),
    ]
}
