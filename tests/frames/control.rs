//! Quiet: the control messages' decoder: `Up::read` and `Down::read`, and `Signed` and `HubAck` inside of them.
//!
//! The length before a message is read by `mesh/quic`, and tried in its own tests.

use std::collections::BTreeSet;

use muster_mesh::{
    limits,
    message::{Down, HubAck, MessageError, Signed, Up},
};

use crate::{measured, samples, wire::*};

pub const MESSAGE_ERRORS: usize = 6;

/// A new variant breaks this match, and its number the tests that count what was reached.
pub fn message_error(error: &MessageError) -> usize {
    match error {
        MessageError::TooLong(_) => TOO_LONG,
        MessageError::Cut => CUT,
        MessageError::Kind(_) => KIND,
        MessageError::Decode => DECODE,
        MessageError::LeftOver => LEFT_OVER,
        MessageError::Frame(_) => FRAME,
    }
}

pub const TOO_LONG: usize = 0;
pub const CUT: usize = 1;
pub const KIND: usize = 2;
pub const DECODE: usize = 3;
pub const LEFT_OVER: usize = 4;
pub const FRAME: usize = 5;

const HELLO: u16 = 1;
const HOLDING: u16 = 2;
const STATE: u16 = 3;
const WELCOME: u16 = 17;
const ACK: u16 = 18;
const RETURNED: u16 = 19;
const LANE: u16 = 20;

/// Memory that reading one control message may take.
const READ_BYTES_MAX: u64 = 20 * limits::CONTROL_BYTES_MAX as u64;

type Expected = Result<bool, MessageError>;

/// Name, bytes behind the length, and what reading gives: a message, none (skipped), or an error.
type Case = (String, Vec<u8>, Expected);

fn message(kind: u16, body: impl AsRef<[u8]>) -> Vec<u8> {
    [&kind.to_le_bytes()[..], body.as_ref()].concat()
}

/// A Hello whose lists have these counts and bytes.
fn hello(zone: Vec<u8>, versions: Vec<u8>, tails: Vec<u8>) -> Vec<u8> {
    let start = [vec![1, 1], varint(7), vec![3; 16], zigzag(0), varint(5)].concat();
    message(HELLO, [start, zone, versions, tails].concat())
}

fn state(tails: Vec<u8>) -> Vec<u8> {
    message(STATE, [vec![1], zigzag(0), tails].concat())
}

fn tails(count: usize) -> Vec<u8> {
    counted(count as u64, tail(1, 2).repeat(count))
}

fn up_cases() -> Vec<Case> {
    use MessageError::*;
    let (none, zone) = (|| vec![0], || text("UTC"));
    let mut cases: Vec<Case> = vec![
        ("nothing".into(), vec![], Err(Cut)),
        ("half a kind".into(), vec![1], Err(Cut)),
        ("a hello".into(), hello(zone(), none(), none()), Ok(true)),
        ("a kind that nobody knows".into(), message(99, []), Err(Kind(99))),
        ("kind 0".into(), message(0, []), Err(Kind(0))),
        ("the last kind that must be known".into(), message(0x7fff, []), Err(Kind(0x7fff))),
        ("the first kind that may be skipped".into(), message(0x8000, [1, 2, 3]), Ok(false)),
        ("the last kind that may be skipped".into(), message(0xffff, []), Ok(false)),
        ("a relay's message from an agent".into(), message(ACK, [0, 1]), Err(Kind(ACK))),
        ("a hello without a body".into(), message(HELLO, []), Err(Decode)),
        ("a byte behind a hello".into(), [hello(zone(), none(), none()), vec![0]].concat(), Err(LeftOver)),
        ("a zone at its bound".into(), hello(text("z".repeat(4_096)), none(), none()), Ok(true)),
        ("a zone above its bound".into(), hello(text("z".repeat(4_097)), none(), none()), Err(TooLong(4_097))),
        ("a zone that isn't UTF-8".into(), hello(text([0xff]), none(), none()), Err(Decode)),
        ("tails at their bound".into(), hello(zone(), none(), tails(2 * limits::TAILS_MAX)), Ok(true)),
        ("a tail too many".into(), hello(zone(), none(), tails(2 * limits::TAILS_MAX + 1)), Err(TooLong(2 * limits::TAILS_MAX + 1))),
        ("a state with tails at their bound".into(), state(tails(limits::STATE_TAILS_MAX)), Ok(true)),
        ("a state with a tail too many".into(), state(tails(limits::STATE_TAILS_MAX + 1)), Err(TooLong(limits::STATE_TAILS_MAX + 1))),
        ("a state that isn't known".into(), message(STATE, [10, 0, 0]), Err(Decode)),
        ("a tail of lane 2".into(), message(HOLDING, [vec![5; 16], vec![2, 1, 2, 0]].concat()), Err(Decode)),
        ("a byte behind a tail".into(), message(HOLDING, [tail(1, 2), vec![0]].concat()), Err(LeftOver)),
    ];
    for huge in HUGE {
        cases.extend([
            (format!("a zone of {huge} bytes"), hello(varint(huge), none(), none()), Err(Decode)),
            (format!("{huge} versions"), hello(zone(), varint(huge), none()), Err(Decode)),
            (format!("{huge} tails"), hello(zone(), none(), varint(huge)), Err(Decode)),
            (format!("a state with {huge} tails"), state(varint(huge)), Err(Decode)),
        ]);
    }
    cases
}

fn down_cases() -> Vec<Case> {
    use MessageError::*;
    let welcome = |claims: Vec<u8>| message(WELCOME, [vec![1], varint(9), varint(9), varint(9), zigzag(0), vec![0, 0], claims].concat());
    let returned = |numbers: Vec<u8>| message(RETURNED, [vec![5; 16], numbers, vec![0]].concat());
    let mut cases: Vec<Case> = vec![
        ("nothing".into(), vec![], Err(Cut)),
        ("half a kind".into(), vec![17], Err(Cut)),
        ("a welcome".into(), welcome(vec![0]), Ok(true)),
        ("an ack".into(), message(ACK, [vec![0], varint(u64::MAX)].concat()), Ok(true)),
        ("an agent's message from a relay".into(), message(HELLO, []), Err(Kind(HELLO))),
        ("a kind that may be skipped".into(), message(0x8001, [9; 9]), Ok(false)),
        ("a byte behind an ack".into(), message(ACK, [0, 1, 0]), Err(LeftOver)),
        ("an ack of lane 2".into(), message(ACK, [2, 1]), Err(Decode)),
        ("a lane state that isn't known".into(), message(LANE, [0, 3]), Err(Decode)),
        ("half an ack".into(), message(ACK, [0]), Err(Decode)),
    ];
    for huge in HUGE {
        cases.extend([
            (format!("{huge} claims"), welcome(varint(huge)), Err(Decode)),
            (format!("{huge} ranges"), welcome([vec![1], vec![5; 16], varint(huge)].concat()), Err(Decode)),
            (format!("{huge} numbers"), returned(varint(huge)), Err(Decode)),
        ]);
    }
    cases
}

fn up(bytes: &[u8]) -> Expected {
    Up::read(bytes).map(|message| message.is_some())
}

fn down(bytes: &[u8]) -> Expected {
    Down::read(bytes).map(|message| message.is_some())
}

/// Checks each case and says which errors were reached.
fn all_as_expected(cases: Vec<Case>, read: fn(&[u8]) -> Expected) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    for (name, bytes, expected) in cases {
        let (got, peak) = measured(|| read(&bytes));
        assert!(peak <= READ_BYTES_MAX, "{name}: {peak} bytes for {}", bytes.len());
        reached.extend(got.as_ref().err().map(message_error));
        assert_eq!(got, expected, "{name}");
    }
    reached
}

#[test]
fn every_bad_control_message_gets_its_error_and_every_error_is_reached() {
    let ups = all_as_expected(up_cases(), up);
    assert_eq!(ups, BTreeSet::from([TOO_LONG, CUT, KIND, DECODE, LEFT_OVER]));
    // How long it may be is checked before it is read: `ControlReceiver` in mesh/quic.
    let downs = all_as_expected(down_cases(), down);
    assert_eq!(downs, BTreeSet::from([CUT, KIND, DECODE, LEFT_OVER]));
    // No control message holds an envelope: that one is reached by the POST.
    assert!(ups.union(&downs).all(|error| *error < MESSAGE_ERRORS && *error != FRAME));
}

#[test]
fn a_control_message_that_is_cut_anywhere_or_goes_on_is_an_error() {
    for (name, message) in samples::ups() {
        let frame = message.frame().unwrap();
        assert_eq!(Up::read(&frame[4..]), Ok(Some(message)), "{name}");
        for length in 0..frame.len() - 4 {
            assert!(Up::read(&frame[4..4 + length]).is_err(), "{name} cut at {length}");
        }
        assert_eq!(Up::read(&[&frame[4..], &[0]].concat()), Err(MessageError::LeftOver), "{name}");
    }
    for (name, message) in samples::downs() {
        let frame = message.frame().unwrap();
        assert_eq!(Down::read(&frame[4..]), Ok(Some(message.clone())), "{name}");
        // What is signed is passed on unread: whoever obeys it reads it.
        if matches!(message, Down::Signed(_)) {
            continue;
        }
        for length in 0..frame.len() - 4 {
            assert!(Down::read(&frame[4..4 + length]).is_err(), "{name} cut at {length}");
        }
        assert_eq!(Down::read(&[&frame[4..], &[0]].concat()), Err(MessageError::LeftOver), "{name}");
    }
}

#[test]
fn what_is_signed_is_whole_or_an_error() {
    let signed = samples::signed();
    let bytes = signed.bytes().unwrap();
    assert_eq!(Signed::read(&bytes), Ok(signed));
    let mut reached = BTreeSet::new();
    for length in 0..bytes.len() {
        reached.insert(message_error(&Signed::read(&bytes[..length]).unwrap_err()));
    }
    reached.insert(message_error(&Signed::read(&[&bytes[..], &[0]].concat()).unwrap_err()));
    for length in [limits::CONTROL_BYTES_MAX + 1, 1 << 20] {
        assert_eq!(Signed::read(&vec![0; length]), Err(MessageError::TooLong(length)));
        reached.insert(TOO_LONG);
    }
    assert_eq!(reached, BTreeSet::from([TOO_LONG, DECODE, LEFT_OVER]));
    // Its lengths are u64: the body's stands behind kind, flags, both ids and the version.
    for (at, field) in [(2 + 17 + 17 + 8, "body"), (bytes.len() - 8, "signature")] {
        for huge in HUGE {
            let mut spoilt = bytes.clone();
            spoilt[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            let (got, peak) = measured(|| Signed::read(&spoilt));
            assert!(got == Err(MessageError::Decode) && peak <= READ_BYTES_MAX, "{field} of {huge} bytes: {got:?}, {peak}");
        }
    }
}

#[test]
fn the_hubs_ack_is_whole_or_an_error() {
    let ack = samples::hub_ack();
    let bytes = ack.bytes().unwrap();
    assert_eq!(HubAck::read(&bytes), Ok(ack));
    for length in 0..bytes.len() {
        assert_eq!(HubAck::read(&bytes[..length]), Err(MessageError::Decode), "cut at {length}");
    }
    assert_eq!(HubAck::read(&[&bytes[..], &[0]].concat()), Err(MessageError::LeftOver));
    for huge in HUGE {
        for spoilt in [varint(huge), [vec![0], varint(huge)].concat()] {
            let (got, peak) = measured(|| HubAck::read(&spoilt));
            assert!(got == Err(MessageError::Decode) && peak <= READ_BYTES_MAX, "{huge}: {got:?}, {peak}");
        }
    }
}
