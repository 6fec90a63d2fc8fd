//! Quiet: the envelope's decoder: `Envelope::read`, `Envelope::open`, and the bounds of records behind them.

use std::collections::BTreeSet;

use bytes::Bytes;
use muster_mesh::{
    batch::{Envelope, Fate, FrameError, OpenError},
    ids::Lane,
    limits,
    link::hub_ranges::{Judgement, SpoolRow},
    message::{PostHead, Reason, Verdict as HubVerdict},
    record::{Kind, RecordError},
};

use crate::{
    corpus::{self, Verdict, verdict},
    measured, samples,
    wire::*,
};

// A new variant breaks these matches; its number then breaks the test below until a case of the corpus reaches it.

const FRAME_ERRORS: usize = 6;

fn frame_error(error: FrameError) -> usize {
    match error {
        FrameError::Magic => 0,
        FrameError::Lane(_) => 1,
        FrameError::Length(_) => 2,
        FrameError::Seq(_) => 3,
        FrameError::Cut => 4,
        FrameError::Crc => 5,
    }
}

const OPEN_ERRORS: usize = 10;

fn open_error(error: OpenError) -> usize {
    match error {
        OpenError::Version(_) => 0,
        OpenError::Seal(_) => 1,
        OpenError::Codec(_) => 2,
        OpenError::Flags(_) => 3,
        OpenError::Bound => 4,
        OpenError::Inflate => 5,
        OpenError::Decode => 6,
        OpenError::Count => 7,
        OpenError::LeftOver => 8,
        OpenError::Record(_) => 9,
    }
}

const RECORD_ERRORS: usize = 5;

fn record_error(error: RecordError) -> usize {
    match error {
        RecordError::Nul => 0,
        RecordError::TextTooLong => 1,
        RecordError::ListTooLong => 2,
        RecordError::NumberTooLarge => 3,
        RecordError::GapBackwards => 4,
    }
}

#[test]
fn every_bad_envelope_gets_its_verdict() {
    for case in corpus::all() {
        assert_eq!(verdict(&case.bytes), case.expected, "{}", case.name);
    }
}

#[test]
fn the_corpus_reaches_every_error_of_the_envelopes_decoder() {
    let (mut frames, mut opens, mut records) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for case in corpus::all() {
        match verdict(&case.bytes) {
            Verdict::NoFrame(error) => drop(frames.insert(frame_error(error))),
            Verdict::Unopened(error) => {
                opens.insert(open_error(error));
                if let OpenError::Record(error) = error {
                    records.insert(record_error(error));
                }
            }
            Verdict::Opened => {}
        }
    }
    assert_eq!(frames, BTreeSet::from_iter(0..FRAME_ERRORS));
    assert_eq!(opens, BTreeSet::from_iter(0..OPEN_ERRORS));
    assert_eq!(records, BTreeSet::from_iter(0..RECORD_ERRORS));
}

#[test]
fn names_in_the_corpus_are_unique() {
    let cases = corpus::all();
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
}

/// Memory that opening one envelope may take: what decoding may claim, the inflated body, and the records made of them.
pub fn open_bytes_max(lane: Lane) -> u64 {
    10 * limits::raw_max(lane) as u64
}

#[test]
fn no_bad_envelope_makes_its_reader_allocate_beyond_its_lane() {
    for case in corpus::all() {
        let lane = case.bytes.get(7).and_then(|number| Lane::from_u8(*number)).unwrap_or(Lane::Telemetry);
        let (_, peak) = measured(|| verdict(&case.bytes));
        assert!(peak <= open_bytes_max(lane), "{}: {peak} bytes for {}", case.name, case.bytes.len());
    }
}

#[test]
fn what_a_newer_program_wrote_is_held_and_what_breaks_version_1_is_refused() {
    for case in corpus::all() {
        let Verdict::Unopened(error) = case.expected else { continue };
        let refused = match error {
            OpenError::Bound => true,
            OpenError::Record(error) => error != RecordError::Nul,
            _ => false,
        };
        assert_eq!(error.fate(), if refused { Fate::Refused } else { Fate::Held }, "{}", case.name);
    }
}

#[test]
fn an_envelope_that_is_cut_anywhere_or_goes_on_is_no_envelope() {
    for whole in samples::envelopes() {
        let bytes = whole.bytes();
        for length in 0..bytes.len() {
            assert_eq!(Envelope::read(bytes.slice(..length)), Err(FrameError::Cut), "cut at {length}");
        }
        for more in [1, 4, 88, bytes.len()] {
            let longer: Bytes = [&bytes[..], &bytes[..more.min(bytes.len())]].concat().into();
            assert_eq!(Envelope::read(longer), Err(FrameError::Cut), "{more} more");
        }
    }
}

/// The crc is right, so it is the body's own decoder that must notice.
#[test]
fn a_body_that_is_cut_anywhere_is_held() {
    let batch = samples::batch(samples::records().into_iter().map(|(_, record)| record).collect());
    let records = batch.records.len() as u32;
    let raw = Body::of(hand_encoded(&batch)).bytes();
    for length in 0..raw.len() {
        let cut = framed(&raw[..length], |header| header.records = records);
        assert_eq!(verdict(&cut), Verdict::Unopened(OpenError::Decode), "cut at {length}");
        let packed = framed(&zlib(&raw[..length]), |header| (header.codec, header.records, header.raw_len) = (1, records, length as u32));
        assert_eq!(verdict(&packed), Verdict::Unopened(OpenError::Decode), "cut at {length}, then compressed");
    }
    let packed = zlib(&raw);
    for length in 0..packed.len() {
        let cut = framed(&packed[..length], |header| (header.codec, header.records, header.raw_len) = (1, records, raw.len() as u32));
        let got = verdict(&cut);
        assert!(matches!(got, Verdict::Unopened(OpenError::Inflate | OpenError::Bound)), "cut at {length}: {got:?}");
    }
}

fn hand_encoded(batch: &muster_mesh::batch::Batch) -> Vec<Vec<u8>> {
    let list = |record| muster_mesh::record::encode(std::slice::from_ref(record))[1..].to_vec();
    batch.records.iter().map(list).collect()
}

#[test]
fn a_hand_written_body_opens_as_what_it_says() {
    let bytes = framed(&Body::of(vec![focus(300, "xterm", "\u{202e}txt.exe"), heartbeat(i64::MAX)]).bytes(), |header| header.records = 2);
    let batch = Envelope::read(bytes).unwrap().open().unwrap();
    assert_eq!((batch.head.zone.as_str(), batch.head.boot_ms, batch.head.offset_s), ("Europe/Oslo", 12_345, 3_600));
    let Kind::Focus(focus) = &batch.records[0].kind else { panic!("{:?}", batch.records[0]) };
    // The direction's mark is the person's own title: it is kept, and whoever shows it must mind it.
    assert_eq!((focus.title.as_deref(), focus.ms), (Some("\u{202e}txt.exe"), 300));
    assert_eq!(batch.records[1].at, i64::MAX);
}

#[test]
fn the_next_batch_goes_on_whatever_came_before_it() {
    let good = samples::envelopes().remove(0).bytes().clone();
    // A few at a time, so that the 3 MiB ones fit into a POST.
    for case in corpus::all().into_iter().filter(|case| case.bytes.len() < 4 << 20) {
        let body = samples::post(&[good.clone(), case.bytes.clone(), good.clone()]);
        let (_, posted) = PostHead::read(body).unwrap();
        assert_eq!(posted.len(), 3, "{}", case.name);
        for place in [0, 2] {
            let envelope = &posted[place].as_ref().unwrap().envelope;
            assert_eq!((envelope.bytes(), envelope.open().is_ok()), (&good, true), "{}", case.name);
        }
        match (&posted[1], case.expected) {
            (Err(error), Verdict::NoFrame(frame)) => assert_eq!(*error, frame.into(), "{}", case.name),
            (Ok(posted), Verdict::Unopened(error)) => assert_eq!(posted.envelope.open(), Err(error), "{}", case.name),
            (Ok(posted), Verdict::Opened) => assert!(posted.envelope.open().is_ok(), "{}", case.name),
            (got, expected) => panic!("{}: {got:?} instead of {expected:?}", case.name),
        }
    }
}

#[test]
fn a_number_that_jumps_by_2_to_the_40_is_one_more_range_and_one_that_falls_back_is_new() {
    let mut row = SpoolRow::default();
    for seq in [5, 5 + (1 << 40), 3, limits::SEQ_MAX] {
        assert_eq!(row.judge(seq, [1; 8]), Judgement::New, "{seq}");
        row.take(seq, [1; 8], HubVerdict::Stored, Reason::None, 0);
    }
    assert_eq!(row.stored().len(), 4);
    assert_eq!(row.judge(5 + (1 << 40), [1; 8]), Judgement::Repeat);
    assert_eq!(row.judge(5 + (1 << 40), [2; 8]), Judgement::OtherContent);
    let (missing, peak) = measured(|| row.missing());
    // Four ranges and no numbers one by one.
    assert!(missing.announced.len() + missing.lost.len() <= 4 && peak < 4_096, "{peak}");
}
