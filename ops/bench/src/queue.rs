//! Blocking: appending to a queue, beside redb alone and beside a bare file.

use std::{fs::File, io::Write};

use bytes::Bytes;
use muster_mesh::{
    batch::{self, Envelope, Header},
    ids::{DeviceId, Lane, SpoolId, Version},
    limits,
    queue::{Queue, directory::Entry, segment::Segments},
};
use muster_relay::run::CACHE_BYTES;
use redb::{Builder, TableDefinition};
use tokio::time::Instant;

use crate::measure::alternate;

const ENVELOPE_BYTES: usize = 2_048;
const PER_COMMIT: usize = 256;
const COMMITS: usize = 400;
const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");

/// 2 KB envelopes, 256 a commit.
pub fn row() -> anyhow::Result<()> {
    println!("queue append, {ENVELOPE_BYTES} B, {PER_COMMIT} a commit, synced");
    alternate(
        "MB/s",
        &mut [
            ("redb alone, the same bytes in values of 65,400", &mut redb_alone),
            ("our queue", &mut ours),
            ("bare append + fdatasync", &mut bare),
        ],
    )
}

fn ours() -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(".")?;
    let (mut queue, _) = Queue::open(Segments::open(folder.path(), CACHE_BYTES)?, limits::RELAY_SEGMENT_BYTES as u64)?;
    queue.roll(None, 0)?;
    let entries: Vec<Entry> = (1..=PER_COMMIT as u64).map(|seq| entry(seq, ENVELOPE_BYTES)).collect();
    let begin = Instant::now();
    for _ in 0..COMMITS {
        if queue.tail_is_full() {
            queue.roll(None, 0)?;
        }
        queue.append(&entries)?;
    }
    Ok(megabytes(begin))
}

fn redb_alone() -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(".")?;
    let open = |number: usize| Builder::new().set_cache_size(CACHE_BYTES).create(folder.path().join(number.to_string()));
    let value = noise(limits::BLOCK_BYTES_MAX);
    let bytes = PER_COMMIT * ENVELOPE_BYTES;
    let (mut file, mut database, mut written) = (0, open(0)?, 0);
    let begin = Instant::now();
    for commit in 0..COMMITS as u64 {
        if written >= limits::RELAY_SEGMENT_BYTES {
            (file, written) = (file + 1, 0);
            database = open(file)?;
        }
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(BLOCKS)?;
            for (at, chunk) in (0..).zip((0..bytes).step_by(value.len())) {
                table.insert(commit * 1_000 + at, &value[..value.len().min(bytes - chunk)])?;
            }
        }
        transaction.commit()?;
        written += bytes;
    }
    Ok(megabytes(begin))
}

fn bare() -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(".")?;
    let mut file = File::create(folder.path().join("log"))?;
    let bytes = noise(PER_COMMIT * ENVELOPE_BYTES);
    let begin = Instant::now();
    for _ in 0..COMMITS {
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    Ok(megabytes(begin))
}

fn megabytes(begin: Instant) -> f64 {
    (COMMITS * PER_COMMIT * ENVELOPE_BYTES) as f64 / begin.elapsed().as_secs_f64() / 1e6
}

/// An envelope of exactly so many bytes, stored.
pub fn entry(seq: u64, bytes: usize) -> Entry {
    Entry { facts: Bytes::from_static(&[7; 30]), envelope: envelope(Lane::Telemetry, DeviceId([1; 16]), SpoolId([2; 16]), seq, bytes) }
}

pub fn envelope(lane: Lane, device: DeviceId, spool: SpoolId, seq: u64, bytes: usize) -> Envelope {
    let body = noise(bytes.saturating_sub(batch::HEADER_BYTES + batch::CRC_BYTES));
    let header = Header {
        version: batch::VERSION,
        seal: 0,
        codec: 0,
        lane,
        device,
        spool,
        seq,
        records: 1,
        raw_len: body.len() as u32,
        body_len: body.len() as u32,
        policy: Version::default(),
        notice: Version::default(),
        erasure: Version::default(),
        flags: 0,
    };
    Envelope::read(batch::frame(&header, &body)).unwrap_or_else(|error| unreachable!("{error}"))
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}
