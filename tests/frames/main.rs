//! Quiet: bad input in every place where bytes of others are read: the envelope, the control messages, the POST and its answer.
//!
//! | file | what |
//! |---|---|
//! | `wire` | the formats written a second time, by hand, so that one thing can be wrong |
//! | `samples` | good messages of every kind |
//! | `corpus` | bad envelopes, each with its name and its verdict |
//! | `envelope` `control` `post` | one decoder each: every error reached, every length, every cut |
//! | `everywhere` | the same done to every byte of every sample, and 20,000 mutations of each decoder's samples |
//! | `golden` | the formats byte by byte |
#![allow(clippy::unwrap_used)]

mod control;
mod corpus;
mod envelope;
mod everywhere;
mod golden;
mod post;
mod samples;
mod wire;

/// What one call allocated at its peak, in bytes, and what it gave. Counts this thread only, so tests may run side by side.
fn measured<T>(call: impl FnOnce() -> T) -> (T, u64) {
    let mut given = None;
    let info = allocation_counter::measure(|| given = Some(call()));
    (given.unwrap(), info.bytes_max)
}

#[test]
fn the_meter_sees_an_allocation() {
    let (kept, peak) = measured(|| Vec::<u8>::with_capacity(3 << 20));
    assert!(kept.capacity() >= 3 << 20 && peak >= 3 << 20, "{peak}");
}
