//! Quiet: the POST's decoder, `PostHead::read` with `Facts::read`, and the answer's, `Answer::read`.

use std::collections::BTreeSet;

use bytes::Bytes;
use muster_mesh::{
    batch::FrameError,
    limits,
    message::{Answer, Facts, MessageError, PostHead},
};

use crate::{control::*, corpus, measured, samples, wire::*};

/// Memory that reading a POST may take: what decoding its head may claim, and some.
pub const POST_READ_BYTES_MAX: u64 = 16 * limits::POST_HEAD_BYTES_MAX as u64 + limits::POST_BYTES_MAX as u64;
/// The same for an answer.
pub const ANSWER_READ_BYTES_MAX: u64 = 9 * limits::ANSWER_BYTES_MAX as u64;

/// A POST by hand: its head behind a length, true or not, and what follows.
fn post(head_len: u32, head: &[u8], entries: &[u8]) -> Bytes {
    [&head_len.to_le_bytes()[..], head, entries].concat().into()
}

fn entry(facts_len: u16, facts: &[u8], envelope_len: u32, envelope: &[u8]) -> Vec<u8> {
    [&facts_len.to_le_bytes()[..], facts, &envelope_len.to_le_bytes(), envelope].concat()
}

/// A head with this list of asks (its count and bytes).
fn head(asks: Vec<u8>) -> Vec<u8> {
    [vec![0, 1, 0], asks, vec![0], zigzag(0), vec![0]].concat()
}

fn asks(count: usize) -> Vec<u8> {
    counted(count as u64, [vec![1; 32], vec![1]].concat().repeat(count))
}

fn cases() -> Vec<(String, Bytes, Result<usize, MessageError>)> {
    use MessageError::*;
    let small = head(vec![0]);
    let small_len = small.len() as u32;
    let good = corpus::good();
    let facts = samples::facts().bytes().unwrap();
    let whole = entry(facts.len() as u16, &facts, good.len() as u32, &good);
    let with = |entries: &[u8]| post(small_len, &small, entries);
    let most = limits::POST_HEAD_BYTES_MAX;
    let empty_entry = entry(0, &[], 0, &[]);
    let mut cases: Vec<(String, Bytes, Result<usize, MessageError>)> = vec![
        ("nothing".into(), Bytes::new(), Err(Cut)),
        ("3 bytes".into(), vec![0; 3].into(), Err(Cut)),
        ("a head of 0 bytes".into(), post(0, &[], &[]), Err(Decode)),
        ("a head that is longer than the body".into(), post(small_len + 1, &small, &[]), Err(Cut)),
        ("a head at its bound that isn't there".into(), post(most as u32, &small, &[]), Err(Cut)),
        ("a head at its bound".into(), post(most as u32, &vec![0xff; most], &[]), Err(Decode)),
        ("a head above its bound".into(), post(most as u32 + 1, &small, &[]), Err(TooLong(most + 1))),
        ("a head of 2^32-1 bytes".into(), post(u32::MAX, &small, &[]), Err(TooLong(u32::MAX as usize))),
        ("a byte behind the head, counted to it".into(), post(small_len + 1, &[&small[..], &[0]].concat(), &[]), Err(LeftOver)),
        ("a POST above its bound".into(), vec![0; limits::POST_BYTES_MAX + 1].into(), Err(TooLong(limits::POST_BYTES_MAX + 1))),
        ("no envelopes".into(), with(&[]), Ok(0)),
        ("one envelope".into(), with(&whole), Ok(1)),
        ("half a length of facts".into(), with(&[9]), Err(Cut)),
        ("facts of 65,535 bytes that aren't there".into(), with(&entry(u16::MAX, &facts, 0, &[])), Err(Cut)),
        ("half a length of an envelope".into(), with(&[0, 0, 1, 1]), Err(Cut)),
        ("an envelope of 2^32-1 bytes".into(), with(&entry(0, &[], u32::MAX, &good)), Err(Cut)),
        ("an envelope one byte longer than the body".into(), with(&entry(0, &[], good.len() as u32 + 1, &good)), Err(Cut)),
        ("a byte behind the last envelope".into(), with(&[&whole[..], &[0]].concat()), Err(Cut)),
        ("envelopes at their bound".into(), with(&empty_entry.repeat(limits::POST_ENVELOPES_MAX)), Ok(limits::POST_ENVELOPES_MAX)),
        (
            "an envelope too many".into(),
            with(&empty_entry.repeat(limits::POST_ENVELOPES_MAX + 1)),
            Err(TooLong(limits::POST_ENVELOPES_MAX + 1)),
        ),
    ];
    let with_head = |head: Vec<u8>| post(head.len() as u32, &head, &[]);
    cases.extend([
        ("asks at their bound".into(), with_head(head(asks(limits::ASKS_MAX))), Ok(0)),
        ("an ask too many".into(), with_head(head(asks(limits::ASKS_MAX + 1))), Err(TooLong(limits::ASKS_MAX + 1))),
        ("a lane that isn't known".into(), with_head([vec![2, 1, 0, 0, 0], zigzag(0), vec![0]].concat()), Err(Decode)),
    ]);
    for huge in HUGE {
        let presence = |devices: Vec<u8>| with_head([vec![0, 1, 0, 0, 1, 7, 1], devices].concat());
        cases.extend([
            (format!("{huge} queues"), with_head([vec![0, 1], varint(huge)].concat()), Err(Decode)),
            (format!("{huge} asks"), with_head(head(varint(huge))), Err(Decode)),
            (format!("{huge} devices"), presence(varint(huge)), Err(Decode)),
            (format!("{huge} devices that are gone"), presence([vec![0], varint(huge)].concat()), Err(Decode)),
            (format!("{huge} versions"), with_head([vec![0, 1, 0, 0, 0], zigzag(0), varint(huge)].concat()), Err(Decode)),
        ]);
    }
    cases
}

#[test]
fn every_bad_post_gets_its_error_and_every_error_is_reached() {
    let mut reached = BTreeSet::new();
    for (name, body, expected) in cases() {
        let (got, peak) = measured(|| PostHead::read(body.clone()));
        assert!(peak <= POST_READ_BYTES_MAX, "{name}: {peak} bytes for {}", body.len());
        reached.extend(got.as_ref().err().map(message_error));
        assert_eq!(got.map(|(_, posted)| posted.len()), expected, "{name}");
    }
    assert_eq!(reached, BTreeSet::from([TOO_LONG, CUT, DECODE, LEFT_OVER]));
}

#[test]
fn what_is_wrong_with_one_envelope_of_a_post_is_said_of_that_one_alone() {
    let good = corpus::good();
    let facts = samples::facts().bytes().unwrap();
    let sound = entry(facts.len() as u16, &facts, good.len() as u32, &good);
    let long: Vec<u8> = [&facts[..], &vec![7; usize::from(u16::MAX) - facts.len()]].concat();
    let mut damaged = good.to_vec();
    damaged[100] ^= 1;
    let entries = [
        sound.clone(),
        entry(0, &[], good.len() as u32, &good),
        sound.clone(),
        entry(3, &[0xff; 3], good.len() as u32, &good),
        entry(facts.len() as u16, &facts, 0, &[]),
        entry(facts.len() as u16, &facts, damaged.len() as u32, &damaged),
        // A newer relay knows more: what stands behind the facts is ignored.
        entry(u16::MAX, &long, good.len() as u32, &good),
        sound,
    ];
    let small = head(vec![0]);
    let (_, posted) = PostHead::read(post(small.len() as u32, &small, &entries.concat())).unwrap();
    let errors: Vec<Option<MessageError>> = posted.iter().map(|posted| posted.as_ref().err().cloned()).collect();
    let frame = |error: FrameError| Some(MessageError::Frame(error));
    let decode = Some(MessageError::Decode);
    assert_eq!(errors, [None, decode.clone(), None, decode, frame(FrameError::Cut), frame(FrameError::Crc), None, None]);
    let reached: BTreeSet<usize> = errors.iter().flatten().map(message_error).collect();
    assert_eq!(reached, BTreeSet::from([DECODE, FRAME]));
}

/// With those that the POST as a whole and the control messages reach, none is left out.
#[test]
fn no_message_error_is_left_out() {
    let reached = BTreeSet::from([TOO_LONG, CUT, KIND, DECODE, LEFT_OVER, FRAME]);
    assert_eq!(reached, BTreeSet::from_iter(0..MESSAGE_ERRORS));
}

#[test]
fn a_post_that_is_cut_anywhere_is_an_error_or_has_fewer_envelopes() {
    let envelopes: Vec<Bytes> = samples::envelopes().iter().map(|envelope| envelope.bytes().clone()).collect();
    let body = samples::post(&envelopes);
    let (head, whole) = PostHead::read(body.clone()).unwrap();
    assert_eq!((&head, whole.len()), (&samples::head(), 2));
    let mut shorter = 0;
    for length in 0..body.len() {
        match PostHead::read(body.slice(..length)) {
            Err(error) => assert!(matches!(error, MessageError::Cut | MessageError::Decode), "cut at {length}: {error}"),
            // HTTP says where a body ends; between two envelopes the cut can't be seen here.
            Ok((read, posted)) => {
                shorter += 1;
                assert!(read == head && posted == whole[..posted.len()] && posted.len() < whole.len(), "cut at {length}");
            }
        }
    }
    assert_eq!(shorter, 2);
}

#[test]
fn facts_that_are_cut_anywhere_are_an_error_and_a_tail_is_ignored() {
    let facts = samples::facts();
    let bytes = facts.bytes().unwrap();
    for length in 0..bytes.len() {
        assert_eq!(Facts::read(&bytes[..length]), Err(MessageError::Decode), "cut at {length}");
    }
    assert_eq!(Facts::read(&[&bytes[..], &[1, 2, 3]].concat()), Ok(facts));
    let start = [zigzag(0), vec![1], vec![3; 16], zigzag(0), vec![1]].concat();
    for huge in HUGE {
        let spoilt = [&start[..], &varint(huge)].concat();
        let (got, peak) = measured(|| Facts::read(&spoilt));
        assert!(got == Err(MessageError::Decode) && peak <= 1 << 20, "an address of {huge} bytes: {got:?}, {peak}");
    }
    assert_eq!(Facts::read(&[&start[..], &text([0xff])].concat()), Err(MessageError::Decode));
}

#[test]
fn an_answer_is_whole_or_an_error() {
    let mut reached = BTreeSet::new();
    for (name, answer) in samples::answers() {
        let bytes = answer.bytes().unwrap();
        assert_eq!(Answer::read(&bytes), Ok(answer), "{name}");
        for length in 0..bytes.len() {
            reached.insert(message_error(&Answer::read(&bytes[..length]).unwrap_err()));
        }
        reached.insert(message_error(&Answer::read(&[&bytes[..], &[0]].concat()).unwrap_err()));
    }
    for length in [limits::ANSWER_BYTES_MAX + 1, limits::ANSWER_BYTES_MAX * 2] {
        assert_eq!(Answer::read(&vec![0; length]), Err(MessageError::TooLong(length)));
        reached.insert(TOO_LONG);
    }
    assert_eq!(Answer::read(&vec![0xff; limits::ANSWER_BYTES_MAX]), Err(MessageError::Decode));
    assert_eq!(Answer::read(&[3]), Err(MessageError::Decode));
    let counts = vec![0; 7];
    for huge in HUGE {
        for (field, before) in [
            ("returned", vec![]),
            ("acks", vec![0]),
            ("an ack's bytes", vec![0, 1]),
            ("versions", vec![0, 0, 0, 0]),
            ("signed", vec![0, 0, 0, 0, 0]),
        ] {
            let spoilt = [vec![0, 7], counts.clone(), before, varint(huge)].concat();
            let (got, peak) = measured(|| Answer::read(&spoilt));
            assert!(got == Err(MessageError::Decode) && peak <= ANSWER_READ_BYTES_MAX, "{huge} {field}: {got:?}, {peak}");
        }
    }
    assert_eq!(reached, BTreeSet::from([TOO_LONG, DECODE, LEFT_OVER]));
}
