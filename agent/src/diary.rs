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
    /// Not before: what a full disk refuses is sealed again, under another number.
    fn kept(&mut self, sealed: &[Sealed]) {
        let (now, zone) = (self.clock.now(), self.clock.zone());
        let date = today::civil_date(now.wall_ms, &zone);
        for batch in sealed {
            let header = *batch.envelope.header();
            self.tally.made(header.spool, header.seq, &batch.records, now.boot_ms);
            let written = self.log.note(date, Entry::of(batch.lane, header.spool, header.seq, now.wall_ms, &batch.records));
            self.noted(written);
            if batch.lane == Lane::Pictures {
                let written = self.album.note(header.spool, header.seq, &batch.records, now.wall_ms);
                self.noted(written);
            }
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

#[cfg(test)]
mod tests {
    use muster_mesh::{
        clock::{ManualClock, Reading, Zone},
        ids::{BootId, DeviceId, Version},
        link::agent_side::Rules,
        queue::memory::Memory,
        record::{Kind, Record, Session},
    };

    use super::*;
    use crate::spool::{BatchContext, Birth, Sizes, Spool};

    const NOW: Reading = Reading { wall_ms: 1_795_420_800_000, boot_ms: 1_000 };

    #[test]
    fn what_a_full_disk_refused_is_listed_once_when_it_is_kept() {
        let (boot, version) = (BootId([2; 16]), Version::default());
        let zone = Zone { name: "Etc/UTC".into(), offset_s: 0 };
        let dir = tempfile::tempdir().unwrap();
        let [log, read] = [(); 2].map(|()| DayLog::open(dir.path(), 1 << 20).unwrap());
        let diary = Diary::new(Arc::new(ManualClock::new(NOW, boot)), log, Album::open(dir.path(), 1 << 20).unwrap());
        let context = BatchContext { policy: version, notice: version, erasure: version, test_mode: false, boot, zone: zone.clone() };
        let sizes = Sizes { budgets: [64 << 20; 2], segment_bytes: 1 << 20 };
        let birth = |n: u8| Birth { now: NOW, random: [[n; 10], [n + 1; 10]] };
        let folders: [Memory; 2] = Default::default();
        let mut spool =
            Spool::open_with(DeviceId([1; 16]), folders, sizes, context, birth(3), Rules::default(), Some(diary.clone())).unwrap().0;
        let keep = |spool: &mut Spool<Memory>| {
            let record = Record { at: NOW.wall_ms, kind: Kind::Session(Session::Start) };
            let sealed = spool.seal(Lane::Telemetry, vec![record], NOW).unwrap();
            spool.commit(&sealed).is_ok()
        };
        spool.directory(Lane::Telemetry).full = true;
        assert!(!keep(&mut spool));
        spool.directory(Lane::Telemetry).full = false;
        spool.begin(birth(5)).unwrap();
        assert!(keep(&mut spool));
        assert_eq!(journey(&diary)["made"]["batches"], 1);
        assert_eq!(read.day(today::civil_date(NOW.wall_ms, &zone)).unwrap().entries.len(), 1);
    }
}
