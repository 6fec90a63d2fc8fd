//! Blocking: what earlier runs in a folder came to, `runs.json`, so that it can be compared again.

use std::path::{Path, PathBuf};

use muster_certs::files;
use muster_mesh::complaint::Complaint;
use serde::{Deserialize, Serialize};

use crate::summary::Summary;

/// Older ones are forgotten; the hub's rows stay.
const RUNS_MAX: usize = 100;

/// The runs of one folder, oldest first.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    runs: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// It ended in order, so its numbers are the last ones. Otherwise they are the last that were seen.
    pub ended: bool,
    pub summary: Summary,
}

impl Ledger {
    pub fn open(path: &Path) -> Result<Ledger, Complaint> {
        let runs = if path.exists() {
            let text = files::read(path).map_err(|error| unusable(path, &error.to_string()))?;
            serde_json::from_str(&text).map_err(|error| unusable(path, &error.to_string()))?
        } else {
            Vec::new()
        };
        Ok(Ledger { path: path.to_owned(), runs })
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub fn begin(&mut self, started_ms: i64) -> Result<(), Complaint> {
        self.runs.drain(..self.runs.len().saturating_sub(RUNS_MAX - 1));
        self.runs.push(Run { ended: false, summary: Summary { started_ms, ..Summary::default() } });
        self.write()
    }

    /// The run under way has come to this.
    pub fn note(&mut self, summary: Summary, ended: bool) -> Result<(), Complaint> {
        if let Some(last) = self.runs.last_mut() {
            *last = Run { ended, summary };
        }
        self.write()
    }

    fn write(&self) -> Result<(), Complaint> {
        let text = serde_json::to_vec_pretty(&self.runs).map_err(|error| unusable(&self.path, &error.to_string()))?;
        files::write_secret(&self.path, &text).map_err(|error| unusable(&self.path, &error.to_string()))
    }
}

fn unusable(path: &Path, why: &str) -> Complaint {
    Complaint::new(format!("the list of earlier runs {} can't be used: {why}", path.display()), "Put it right, or start empty with --fresh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_there_from_its_begin_on_and_keeps_its_last_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs.json");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.begin(5).unwrap();
        let begun = Ledger::open(&path).unwrap();
        assert_eq!(begun.runs().iter().map(|run| (run.ended, run.summary.started_ms)).collect::<Vec<_>>(), [(false, 5)]);
        let summary = Summary { started_ms: 5, seconds: 20, ..Summary::default() };
        ledger.note(summary.clone(), true).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().runs(), [Run { ended: true, summary }]);
    }

    #[test]
    fn a_broken_list_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs.json");
        std::fs::write(&path, "[{").unwrap();
        let line = Ledger::open(&path).unwrap_err().to_string();
        assert!(line.contains("runs.json") && line.contains("--fresh"), "{line}");
    }
}
