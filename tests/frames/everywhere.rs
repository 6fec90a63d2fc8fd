//! Quiet: what nobody thought of: a hostile number in place of every byte of every sample, and seeded mutations of all of them.
//!
//! Nothing here says what must come out, only that it comes out: no panic, and no memory beyond the decoder's bound.

use bytes::Bytes;
use muster_mesh::{
    ids::Lane,
    limits,
    message::{Answer, Bundle, DenyList, Down, Facts, HubAck, PostHead, Signed, Up},
    relay_list::RelayList,
};

use crate::{
    corpus,
    envelope::open_bytes_max,
    measured,
    post::{ANSWER_READ_BYTES_MAX, POST_READ_BYTES_MAX},
    samples,
    wire::*,
};

const MUTATIONS: usize = 20_000;
const CONTROL_READ_BYTES_MAX: u64 = 20 * limits::CONTROL_BYTES_MAX as u64;

/// One decoder with good input for it.
struct Decoder {
    name: &'static str,
    samples: Vec<Bytes>,
    read: fn(Bytes),
    bytes_max: u64,
}

fn decoders() -> Vec<Decoder> {
    let of = |name, samples, read, bytes_max| Decoder { name, samples, read, bytes_max };
    let envelopes: Vec<Bytes> = samples::envelopes().iter().map(|envelope| envelope.bytes().clone()).collect();
    let behind_length = |frame: Bytes| frame.slice(4..);
    let ups = samples::ups().into_iter().map(|(_, message)| behind_length(message.frame().unwrap())).collect();
    let downs = samples::downs().into_iter().map(|(_, message)| behind_length(message.frame().unwrap())).collect();
    let answers = samples::answers().into_iter().map(|(_, answer)| answer.bytes().unwrap()).collect();
    vec![
        of("envelope", [envelopes.clone(), vec![corpus::good()]].concat(), envelope, open_bytes_max(Lane::Pictures)),
        of("up", ups, |bytes| drop(Up::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("down", downs, |bytes| drop(Down::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("signed", vec![samples::signed().bytes().unwrap().into()], |bytes| drop(Signed::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("hub's ack", vec![samples::hub_ack().bytes().unwrap().into()], |bytes| drop(HubAck::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("bundle", vec![samples::bundle().bytes().unwrap().into()], |bytes| drop(Bundle::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("the denied", vec![samples::deny_list().bytes().unwrap().into()], |bytes| drop(DenyList::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("relays", vec![samples::relay_list().bytes().unwrap().into()], |bytes| drop(RelayList::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("facts", vec![samples::facts().bytes().unwrap()], |bytes| drop(Facts::read(&bytes)), CONTROL_READ_BYTES_MAX),
        of("post", vec![samples::post(&[]), samples::post(&envelopes)], post, POST_READ_BYTES_MAX + open_bytes_max(Lane::Pictures)),
        of("answer", answers, |bytes| drop(Answer::read(&bytes)), ANSWER_READ_BYTES_MAX),
    ]
}

/// As it came, and with a true crc, so that what is wrong gets past the frame.
fn envelope(bytes: Bytes) {
    corpus::verdict(&bytes);
    corpus::verdict(&with_true_crc(bytes.to_vec()).into());
}

fn post(bytes: Bytes) {
    let Ok((_, posted)) = PostHead::read(bytes) else { return };
    for posted in posted.into_iter().flatten() {
        let _ = posted.envelope.open();
    }
}

impl Decoder {
    fn try_with(&self, bytes: Bytes, what: impl FnOnce() -> String) {
        let length = bytes.len();
        let ((), peak) = measured(|| (self.read)(bytes));
        assert!(peak <= self.bytes_max, "{}, {}: {peak} bytes of memory for {length}", self.name, what());
    }
}

#[test]
fn every_length_everywhere_is_refused_before_memory_is_taken_for_it() {
    // 0, one byte's end, and the ends of u16, u32, i64 and u64; as bincode writes them and as plain little-endian fields.
    let numbers = [0, 250, 251, 500, 501, 4_096, 4_097, u64::from(u16::MAX), 1 << 16, 600_000, 3 << 20, (3 << 20) + 1, 8 << 20];
    let numbers: Vec<u64> = numbers.into_iter().chain(HUGE).collect();
    for decoder in decoders() {
        for sample in &decoder.samples {
            for at in 0..sample.len() {
                for number in &numbers {
                    let with = |start: &[u8], end: &[u8]| Bytes::from([start, end, &sample[(at + 1).min(sample.len())..]].concat());
                    decoder.try_with(with(&sample[..at], &varint(*number)), || format!("{number} at {at}"));
                    let mut fixed = sample.to_vec();
                    for (byte, with) in fixed[at..].iter_mut().zip((*number as u32).to_le_bytes()) {
                        *byte = with;
                    }
                    decoder.try_with(fixed.into(), || format!("{number} over the bytes at {at}"));
                }
            }
        }
    }
}

#[test]
fn twenty_thousand_mutations_of_each_decoders_samples_panic_nowhere() {
    for decoder in decoders() {
        let mut chance = Chance(0x6d75_7374_6572);
        for turn in 0..MUTATIONS {
            let sample = &decoder.samples[chance.below(decoder.samples.len())];
            let mut bytes = sample.to_vec();
            for _ in 0..=chance.below(4) {
                chance.mutate(&mut bytes);
            }
            decoder.try_with(bytes.into(), || format!("mutation {turn}"));
        }
    }
}

/// splitmix64: the same numbers in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff][self.below(10)],
            2 => drop(bytes.splice(at..at, varint(HUGE[self.below(HUGE.len())]))),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..(at + 1 + self.below(20)).min(bytes.len()))),
            5 => {
                let again = bytes[at..(at + 1 + self.below(40)).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            6 => bytes.push(self.next() as u8),
            _ => {
                let number = self.next();
                let few = self.below(9);
                for (byte, with) in bytes[at..].iter_mut().zip(number.to_le_bytes().into_iter().take(few)) {
                    *byte = with;
                }
            }
        }
    }
}
