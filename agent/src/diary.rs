//! Blocking: what is noted of each batch beside the queue: a line in the day log and a copy of each picture for the person, and a count for
//! those who compare.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use muster_mesh::{
    clock::Clock,
    ids::{Lane, SpoolId},
    message::{Reason, Verdict},
    ranges::Ranges,
};
use serde_json::Value;

use crate::{
    daylog::{DayLog, Entry},
    journal::Journal,
    shots::album::Album,
    spool::Sealed,
    tally::Tally,
    today,
};

/// Told by the keeper. Nothing depends on it: where the disk refuses, batches go on.
pub struct Diary {
    clock: Arc<dyn Clock>,
    log: DayLog,
    album: Album,
    tally: Tally,
    refused: bool,
}

/// The same diary, told by one and read by others.
pub type SharedDiary = Arc<Mutex<Diary>>;

impl Diary {
    pub fn new(clock: Arc<dyn Clock>, log: DayLog, album: Album) -> SharedDiary {
        Arc::new(Mutex::new(Diary { clock, log, album, tally: Tally::default(), refused: false }))
    }

    /// Lets go of pictures that are two days old, also while no new ones come.
    pub fn sweep(&mut self) {
        let swept = self.album.sweep(self.clock.now().wall_ms);
        self.noted(swept);
    }

    fn noted(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => self.refused = false,
            Err(error) if !self.refused => {
                tracing::warn!(%error, "the day log can't be written: `today` and `shots` will lack what is collected now");
                self.refused = true;
            }
            Err(_) => {}
        }
    }
}

/// How far the batches since the start have come.
pub fn journey(diary: &SharedDiary) -> Value {
    diary.lock().unwrap_or_else(PoisonError::into_inner).tally.to_json()
}

impl Journal for Diary {
    fn made(&mut self, sealed: &[Sealed]) {
        let (now, zone) = (self.clock.now(), self.clock.zone());
        let date = today::civil_date(now.wall_ms, &zone);
        for batch in sealed {
            let header = *batch.envelope.header();
            self.tally.made(header.spool, header.seq, &batch.records, now.boot_ms);
            let entry = Entry::of(batch.lane, header.spool, header.seq, now.wall_ms, &batch.records);
            let written = self.log.note(date, entry);
            self.noted(written);
        }
    }

    fn kept(&mut self, sealed: &[Sealed]) {
        let now_ms = self.clock.now().wall_ms;
        for batch in sealed.iter().filter(|batch| batch.lane == Lane::Pictures) {
            let header = batch.envelope.header();
            let written = self.album.note(header.spool, header.seq, &batch.records, now_ms);
            self.noted(written);
        }
    }

    fn relay(&mut self, _relay: usize, numbers: &[(SpoolId, u64)]) {
        let now_ms = self.clock.now().boot_ms;
        numbers.iter().for_each(|&(spool, seq)| self.tally.relay(spool, seq, now_ms));
    }

    fn returned(&mut self, numbers: u64) {
        self.tally.returned(numbers);
    }

    fn hub(&mut self, spool: SpoolId, stored: &Ranges, shown: &[(u64, Verdict, Reason)]) {
        let (now, zone) = (self.clock.now(), self.clock.zone());
        self.tally.hub(spool, stored, now.boot_ms);
        let date = today::civil_date(now.wall_ms, &zone);
        for &(seq, verdict, reason) in shown {
            let written = self.log.note_verdict(date, spool, seq, verdict, reason);
            self.noted(written);
        }
    }
}
