//! Quiet: what a disk without room for a small file must not stop. The rest is shown by the simulation and in `relay/tests/branch`.

use muster_mesh::{
    batch::{Envelope, FLAG_TEST_MODE, Header, frame},
    ids::{SpoolId, Version},
    queue::memory::Memory,
};

use super::*;

const NOW: i64 = 1_800_000_000_000;
const DEVICE: DeviceId = DeviceId([7; 16]);
const SPOOL: SpoolId = SpoolId([8; 16]);
const SIZE: Size = Size { bytes_max: 1 << 30, segment_bytes: 1 << 20 };

fn buffer(envelopes: u64) -> Buffer<Memory> {
    let mut buffer = Buffer::open(Lane::Telemetry, Memory::default(), SIZE, InstanceId([1; 16]), Rules::default()).unwrap();
    buffer.commit(&(1..=envelopes).map(entry).collect::<Vec<_>>()).unwrap();
    buffer
}

fn entry(seq: u64) -> Entry {
    let version = Version { epoch: 1, n: 1 };
    let header = Header {
        version: 1,
        seal: 0,
        codec: 0,
        lane: Lane::Telemetry,
        device: DEVICE,
        spool: SPOOL,
        seq,
        records: 1,
        raw_len: 10,
        body_len: 10,
        policy: version,
        notice: version,
        erasure: version,
        flags: FLAG_TEST_MODE,
    };
    Entry { facts: Bytes::new(), envelope: Envelope::read(frame(&header, &[0; 10])).unwrap() }
}

fn post(buffer: &mut Buffer<Memory>) -> Result<Option<Post>, DirectoryError> {
    buffer.post(1 << 20, NOW, &mut Gone::default())
}

#[test]
fn a_number_that_found_no_room_to_be_reserved_is_reserved_when_there_is_some() {
    let mut buffer = buffer(3);
    buffer.directory().full = true;
    for _ in 0..2 {
        assert!(matches!(post(&mut buffer), Err(DirectoryError::Full)), "a number that isn't reserved leaves");
    }
    buffer.directory().full = false;
    let posted = post(&mut buffer).unwrap().expect("what waits goes on waiting for ever");
    assert_eq!(posted.entries.len(), 3);
    let reopened = Buffer::open(buffer.lane, buffer.directory().clone(), SIZE, InstanceId([2; 16]), Rules::default()).unwrap();
    assert!(reopened.sync().progress().reserved >= posted.number, "the number could be given twice");
}

#[test]
fn what_the_hub_returned_and_can_not_be_disowned_yet_is_sent_again() {
    let mut buffer = buffer(3);
    let first = post(&mut buffer).unwrap().unwrap();
    buffer.roll().unwrap();
    buffer.directory().full = true;
    let returned = [(1, ReturnReason::Damaged)];
    assert!(matches!(buffer.taken(first.number, &returned, NOW), Err(DirectoryError::Full)));
    buffer.directory().full = false;
    let again = post(&mut buffer).unwrap().expect("what waits goes on waiting for ever");
    assert!(again.number > first.number && again.entries.len() == 3);
    let gone = buffer.taken(again.number, &returned, NOW).unwrap();
    assert_eq!(gone.returned.len(), 1);
    assert!(!buffer.has_backlog());
}

#[test]
fn what_the_hub_has_is_passed_although_there_is_no_room_to_note_it() {
    let mut buffer = buffer(3);
    let posted = post(&mut buffer).unwrap().unwrap();
    buffer.directory().full = true;
    let gone = buffer.taken(posted.number, &[(2, ReturnReason::Damaged)], NOW).unwrap();
    assert_eq!(gone.returned.len(), 1, "its agent hears that it isn't here any more");
    assert!(!buffer.has_backlog());
}
