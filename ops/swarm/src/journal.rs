//! Blocking: the swarm's journal: what was made, and what the relay and the hub said of it, one line of JSON each.
//!
//! `made` is written and synced before the queue's commit, so that no batch exists that the journal doesn't know.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use muster_agent::{
    journal::Journal,
    spool::{Incident, Sealed},
};
use muster_mesh::{
    clock::Clock,
    ids::{DeviceId, Lane, SpoolId},
    message::{Reason, Verdict},
    ranges::Ranges,
    record::{self, Kind, Record, Screenshot},
};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Line {
    Made { device: DeviceId, spool: SpoolId, seq: u64, lane: Lane, records: u32, sha256: String, at_ms: i64 },
    Relay { device: DeviceId, spool: SpoolId, seq: u64, relay: String, at_ms: i64 },
    Hub { device: DeviceId, spool: SpoolId, seq: u64, verdict: String, at_ms: i64 },
}

/// The file that all agents of a swarm write.
pub struct JournalFile {
    file: Mutex<File>,
    clock: Arc<dyn Clock>,
    /// Names of the relays, as they stand in the arguments.
    relays: Vec<String>,
}

/// One agent's way to it.
pub struct AgentJournal {
    pub file: Arc<JournalFile>,
    pub device: DeviceId,
}

impl JournalFile {
    /// Appends to the file, and makes it if it isn't there.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, relays: Vec<String>) -> io::Result<Self> {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        // A kill may have torn the last line: the next one begins a line of its own.
        file.write_all(b"\n")?;
        Ok(JournalFile { file: Mutex::new(file), clock, relays })
    }

    /// One write for all lines: a kill leaves at most the last one torn.
    fn write(&self, lines: &[Line], sync: bool) {
        let mut text = Vec::new();
        for line in lines {
            if serde_json::to_writer(&mut text, line).is_ok() {
                text.push(b'\n');
            }
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.write_all(&text).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Without its journal a swarm proves nothing: the check will find the hole.
            tracing::error!("the journal can't be written: {error}");
        }
    }
}

impl Journal for AgentJournal {
    fn made(&mut self, sealed: &[Sealed]) {
        let at_ms = self.file.clock.now().wall_ms;
        let line = |sealed: &Sealed| {
            let header = sealed.envelope.header();
            let sha256 = digest(&sealed.records);
            let (device, spool, seq, lane) = (header.device, header.spool, header.seq, sealed.lane);
            Line::Made { device, spool, seq, lane, records: header.records, sha256, at_ms }
        };
        self.file.write(&sealed.iter().map(line).collect::<Vec<_>>(), true);
    }

    fn relay(&mut self, relay: usize, numbers: &[(SpoolId, u64)]) {
        let (device, at_ms) = (self.device, self.file.clock.now().wall_ms);
        let relay = self.file.relays.get(relay).cloned().unwrap_or_default();
        let line = |&(spool, seq): &(SpoolId, u64)| Line::Relay { device, spool, seq, relay: relay.clone(), at_ms };
        self.file.write(&numbers.iter().map(line).collect::<Vec<_>>(), false);
    }

    fn hub(&mut self, spool: SpoolId, stored: &Ranges, shown: &[(u64, Verdict, Reason)]) {
        let (device, at_ms) = (self.device, self.file.clock.now().wall_ms);
        let verdict = |seq: u64| shown.iter().find(|shown| shown.0 == seq).map_or(Verdict::Stored, |shown| shown.1);
        let line = |seq: u64| Line::Hub { device, spool, seq, verdict: verdict(seq).name().to_owned(), at_ms };
        self.file.write(&stored.numbers().map(line).collect::<Vec<_>>(), false);
    }

    fn incident(&mut self, incident: &Incident) {
        tracing::warn!("{}: {incident:?}", self.device);
    }
}

/// What the journal and the hub's rows are compared by. Pictures lie in objects and not in rows: here their own hash stands for them.
pub fn digest(records: &[Record]) -> String {
    let without_bytes = |record: &Record| match &record.kind {
        Kind::Screenshot(shot) => Record { at: record.at, kind: Kind::Screenshot(Screenshot { bytes: Vec::new(), ..shot.clone() }) },
        Kind::Heartbeat(_)
        | Kind::Activity(_)
        | Kind::Focus(_)
        | Kind::Session(_)
        | Kind::Network(_)
        | Kind::Capability(_)
        | Kind::Gap(_)
        | Kind::Timer(_)
        | Kind::Entry(_) => record.clone(),
    };
    let bytes = record::digest(&records.iter().map(without_bytes).collect::<Vec<_>>());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All whole lines of a journal. A torn last line is left out: the batch behind it was never committed.
pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        // A torn line names a batch that was never committed, and an empty one is the begin of a process.
        if let Ok(line) = serde_json::from_slice(&line) {
            lines.push(line);
        }
    }
    Ok(lines)
}
