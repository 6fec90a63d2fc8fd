//! Quiet: the formats byte by byte, in files that are read by eye: a name, then bytes in hex; lines with `#` are for the reader.
//!
//! When a test here fails after the first release, it is the code that is wrong: these bytes lie on disks.

use bytes::Bytes;
use muster_mesh::{
    batch::{Envelope, Header, frame},
    ids::{DeviceId, Lane, SpoolId, Version},
    message::{Answer, Bundle, DenyList, Down, Facts, HubAck, PostHead, Signed, Up},
    record,
    relay_list::RelayList,
};

use crate::{samples, wire::*};

const ENVELOPE: &str = include_str!("../golden/envelope.hex");
const BATCH: &str = include_str!("../golden/batch.hex");
const COMPRESSED: &str = include_str!("../golden/compressed.hex");
const RECORDS: &str = include_str!("../golden/records.hex");
const MESSAGES: &str = include_str!("../golden/messages.hex");
const SIGNED: &str = include_str!("../golden/signed.hex");

/// Names and bytes of a golden file.
fn lines(file: &str) -> Vec<(&str, Vec<u8>)> {
    let lines = file.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty());
    lines.map(|line| line.rsplit_once(char::is_whitespace).unwrap()).map(|(name, hex)| (name.trim(), unhex(hex))).collect()
}

fn whole(file: &str) -> Vec<u8> {
    lines(file).into_iter().flat_map(|(_, bytes)| bytes).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    if text == "-" {
        return Vec::new();
    }
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares line by line; what is wrong is printed as the line that the file would need.
fn same(file: &str, made: &[(String, Vec<u8>)]) {
    let golden = lines(file);
    let wrong: Vec<String> = made
        .iter()
        .filter(|(name, bytes)| !golden.iter().any(|(golden, line)| golden == name && line == bytes))
        .map(|(name, bytes)| format!("{name:<24} {}", hex(bytes)))
        .collect();
    assert!(wrong.is_empty(), "these are not in the golden file:\n{}", wrong.join("\n"));
    assert_eq!(golden.len(), made.len(), "the golden file has more than is made");
}

#[test]
fn an_envelope_is_byte_by_byte_as_the_formats_picture_shows() {
    let header = Header {
        device: "0192f3a4b5c67d8e9fa0b1c2d3e4f506".parse::<DeviceId>().unwrap(),
        spool: "0192f3a4c0de7a11bead00112233445f".parse::<SpoolId>().unwrap(),
        seq: 17,
        records: 2,
        policy: Version { epoch: 1, n: 3 },
        notice: Version { epoch: 1, n: 2 },
        erasure: Version { epoch: 1, n: 0 },
        lane: Lane::Telemetry,
        ..header(19)
    };
    let bytes = frame(&header, b"two made-up records");
    assert_eq!(hex(&bytes), hex(&whole(ENVELOPE)));
    assert_eq!(*Envelope::read(whole(ENVELOPE).into()).unwrap().header(), header);
}

#[test]
fn a_sealed_batch_is_the_golden_one_byte_by_byte() {
    let batch = samples::batch(vec![samples::records().remove(1).1]);
    assert_eq!(hex(batch.seal().unwrap().bytes()), hex(&whole(BATCH)));
    assert_eq!(Envelope::read(whole(BATCH).into()).unwrap().open().unwrap(), batch);
}

/// Which bytes zlib makes may change with its version; that they are read may not. It holds the samples that there were when it was made:
/// newer ones stand behind them.
#[test]
fn a_golden_compressed_batch_still_opens() {
    let golden = Envelope::read(whole(COMPRESSED).into()).unwrap();
    let records = golden.header().records as usize;
    assert_eq!((golden.header().codec, records), (1, 23));
    let batch = samples::batch(samples::records().into_iter().map(|(_, record)| record).take(records).collect());
    assert_eq!(golden.open(), Ok(batch));
}

#[test]
fn every_kind_of_record_has_its_golden_bytes() {
    let records = samples::records();
    let made: Vec<_> =
        records.iter().map(|(name, one)| ((*name).to_owned(), record::encode(std::slice::from_ref(one))[1..].to_vec())).collect();
    same(RECORDS, &made);
    let tags: std::collections::BTreeSet<usize> = records.iter().map(|(_, record)| record.tag()).collect();
    assert_eq!(tags.len(), record::KIND_NAMES.len(), "a kind without a golden record");
}

#[test]
fn every_message_has_its_golden_bytes() {
    let mut made: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes: &[u8]| made.push((name.to_owned(), bytes.to_vec()));
    samples::ups().iter().for_each(|(name, message)| add(&format!("up {name}"), &message.frame().unwrap()));
    samples::downs().iter().for_each(|(name, message)| add(&format!("down {name}"), &message.frame().unwrap()));
    add("post", &samples::post(&[]));
    add("facts", &samples::facts().bytes().unwrap());
    samples::answers().iter().for_each(|(name, answer)| add(&format!("answer {name}"), &answer.bytes().unwrap()));
    add("hub ack", &samples::hub_ack().bytes().unwrap());
    same(MESSAGES, &made);
    for (name, bytes) in lines(MESSAGES) {
        let read = match name.split(' ').next().unwrap() {
            "up" => Up::read(&bytes[4..]).map(drop),
            "down" => Down::read(&bytes[4..]).map(drop),
            "post" => PostHead::read(Bytes::from(bytes)).map(drop),
            "facts" => Facts::read(&bytes).map(drop),
            "answer" => Answer::read(&bytes).map(drop),
            "hub" => HubAck::read(&bytes).map(drop),
            other => panic!("{other}?"),
        };
        assert_eq!(read, Ok(()), "{name}");
    }
    assert!(Signed::read(&samples::signed().bytes().unwrap()).is_ok());
}

#[test]
fn what_the_hub_signs_for_all_has_its_golden_bytes() {
    let bodies =
        [("bundle", samples::bundle().bytes()), ("the denied", samples::deny_list().bytes()), ("relays", samples::relay_list().bytes())];
    let made: Vec<_> = bodies.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.unwrap())).collect();
    same(SIGNED, &made);
    for (name, bytes) in lines(SIGNED) {
        let is_the_same = match name {
            "bundle" => Bundle::read(&bytes) == Ok(samples::bundle()),
            "the denied" => DenyList::read(&bytes) == Ok(samples::deny_list()),
            "relays" => RelayList::read(&bytes) == Ok(samples::relay_list()),
            other => panic!("{other}?"),
        };
        assert!(is_the_same, "{name}");
    }
}
