//! Async: compares a journal with the hub's rows, read by SQL: every row has its made line, every hub line its rows with the same hash, every
//! picture's row its object, and nothing that was made is missing without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::Context;
use muster_hub::{
    objects::{ObjectError, Objects},
    store::{Answered, KeptPicture, Store},
};
use muster_mesh::{
    ids::{DeviceId, SpoolId},
    ranges::Ranges,
};
use sha2::{Digest, Sha256};

use crate::{
    cli::Check,
    journal::{self, Line},
};

type Key = (DeviceId, SpoolId);

/// A batch as its maker wrote it down, just before its commit.
struct Made {
    sha256: String,
    at_ms: i64,
}

/// What the comparison found.
#[derive(Debug, Default)]
pub struct Report {
    pub made: u64,
    pub relay_acked: u64,
    pub hub_acked: u64,
    /// Rows of numbers that the journal knows, with the records that it knows.
    pub stored: u64,
    pub held: u64,
    /// Stored, and some of its records were too old then or since.
    pub expired: u64,
    /// Rows of pictures whose objects were read and are the same bytes.
    pub pictures: u64,
    /// Made, not in the hub, and named by a `Gap`.
    pub excused: u64,
    /// Made and not in the hub, while batches may still be on their way.
    pub under_way: u64,
    /// Written down, and then killed before the commit.
    pub unborn: u64,
    /// One line each; empty when all is well.
    pub faults: Vec<String>,
}

/// Reads both sides and compares them.
pub async fn check(args: &Check) -> anyhow::Result<Report> {
    let lines = journal::read(&args.journal).with_context(|| format!("the journal {} can't be read", args.journal.display()))?;
    let store = Store::open(&args.database).await?;
    let objects = args.objects.as_deref().map(Objects::open).transpose()?;
    let mut made: BTreeMap<Key, BTreeMap<u64, Made>> = BTreeMap::new();
    let mut acked: BTreeMap<Key, BTreeMap<u64, String>> = BTreeMap::new();
    let mut branch = BTreeSet::new();
    let mut report = Report::default();
    for line in lines {
        match line {
            Line::Made { device, spool, seq, sha256, at_ms, .. } => {
                made.entry((device, spool)).or_default().insert(seq, Made { sha256, at_ms });
            }
            Line::Relay { device, spool, seq, .. } => {
                branch.insert((device, spool, seq));
            }
            Line::Hub { device, spool, seq, verdict, .. } => {
                acked.entry((device, spool)).or_default().insert(seq, verdict);
            }
        }
    }
    report.relay_acked = branch.len() as u64;
    report.made = made.values().map(|numbers| numbers.len() as u64).sum();
    report.hub_acked = acked.values().map(|numbers| numbers.len() as u64).sum();
    let devices: BTreeSet<DeviceId> = made.keys().map(|key| key.0).collect();
    let mut excused: BTreeMap<Key, Ranges> = BTreeMap::new();
    let mut known: BTreeMap<Key, u64> = BTreeMap::new();
    for device in devices {
        let Some(row) = store.device(device).await? else { continue };
        for (spool, _, numbers) in store.spools_of(row.id).await? {
            excused.insert((device, spool), numbers.excused().clone());
            known.insert((device, spool), numbers.stored().last().unwrap_or(0));
        }
        if let Some(objects) = &objects {
            look_at_pictures(device, &store.pictures(row.id, 0, i64::MAX).await?, objects, &mut report).await?;
        }
    }
    for (&key, numbers) in &made {
        let last = known.get(&key).copied().unwrap_or(0).max(numbers.keys().next_back().copied().unwrap_or(0));
        let acked = acked.remove(&key).unwrap_or_default();
        let excused = excused.get(&key).cloned().unwrap_or_default();
        let in_branch = |seq: u64| branch.contains(&(key.0, key.1, seq));
        let said = Said { acked: &acked, in_branch: &in_branch, excused: &excused };
        let here = kept(&store, key, last).await?;
        compare(key, numbers, &said, &here, args.under_way, &mut report);
    }
    for (device, spool) in known.keys().filter(|key| !made.contains_key(key)) {
        if known.get(&(*device, *spool)).is_some_and(|last| *last > 0) {
            report.faults.push(format!("{device} {spool}: the hub has batches of a spool that the journal doesn't know"));
        }
    }
    store.close().await;
    Ok(report)
}

/// A row always has its object, and it holds what the agent saw.
async fn look_at_pictures(device: DeviceId, rows: &[KeptPicture], objects: &Objects, report: &mut Report) -> anyhow::Result<()> {
    for row in rows {
        match objects.get(&row.object).await {
            Ok(bytes) if <[u8; 32]>::from(Sha256::digest(&bytes)) == row.picture.sha256 => report.pictures += 1,
            Ok(_) => report.faults.push(format!("{device} {}: the object holds another picture than its row says", row.object)),
            Err(ObjectError::Missing) => {
                report.faults.push(format!("{device} {}: a row names this object, and it isn't there", row.object))
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What was said of a spool's numbers besides that they were made.
struct Said<'a> {
    acked: &'a BTreeMap<u64, String>,
    in_branch: &'a dyn Fn(u64) -> bool,
    excused: &'a Ranges,
}

/// What the hub has of a spool, by its rows.
async fn kept(store: &Store, (device, spool): Key, last: u64) -> anyhow::Result<BTreeMap<u64, Answered>> {
    const PAGE: u64 = 1_000;
    let mut here = BTreeMap::new();
    for first in (1..=last).step_by(PAGE as usize) {
        let numbers = store.kept_numbers(device, spool, first, (first + PAGE - 1).min(last)).await?;
        here.extend(numbers.into_iter().map(|number| (number.seq, number.answered)));
    }
    Ok(here)
}

fn compare(
    (device, spool): Key,
    made: &BTreeMap<u64, Made>,
    said: &Said<'_>,
    here: &BTreeMap<u64, Answered>,
    under_way: bool,
    report: &mut Report,
) {
    let mut fault = |seq: u64, what: &str| report.faults.push(format!("{device} {spool} {seq}: {what}"));
    for (seq, answered) in here {
        match (answered, made.get(seq)) {
            (_, None) => fault(*seq, "the hub has it, and it was never made"),
            (Answered::Rows(records), Some(made)) if journal::digest(records) != made.sha256 => {
                fault(*seq, "the hub's rows are other records than were made");
            }
            (Answered::Rows(_), Some(_)) => report.stored += 1,
            (Answered::Expired(_), Some(_)) => report.expired += 1,
            (Answered::Verdict(..), Some(_)) => report.held += 1,
            (Answered::Deleted, Some(_)) => fault(*seq, "its rows are gone from the hub"),
        }
    }
    let last_commit_ms = made.values().next_back().map(|made| made.at_ms);
    for (seq, batch) in made.iter().filter(|(seq, _)| !here.contains_key(seq)) {
        let known = (said.in_branch)(*seq);
        match said.acked.get(seq) {
            Some(verdict) => fault(*seq, &format!("the agent was told \"{verdict}\", and the hub doesn't have it")),
            None if said.excused.contains(*seq) => report.excused += 1,
            None if under_way => report.under_way += 1,
            // A kill between the journal's line and the commit: the last ones of a life may never have existed.
            None if !known && Some(batch.at_ms) == last_commit_ms => report.unborn += 1,
            None => fault(*seq, "it was made, nobody says that it was dropped, and the hub doesn't have it"),
        }
    }
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        writeln!(f, "made {}, in the branch {}, acked by the hub {}", self.made, self.relay_acked, self.hub_acked)?;
        writeln!(
            f,
            "in the hub as made {}, pictures looked at {}, held {}, expired {}, dropped with a word {}, not there yet {}, never committed {}",
            self.stored, self.pictures, self.held, self.expired, self.excused, self.under_way, self.unborn
        )?;
        for fault in self.faults.iter().take(SHOWN) {
            writeln!(f, "  wrong: {fault}")?;
        }
        if self.faults.len() > SHOWN {
            writeln!(f, "  … and {} more", self.faults.len() - SHOWN)?;
        }
        write!(f, "{}", if self.is_sound() { "sound: nothing lost, nothing twice, nothing made up" } else { "NOT SOUND" })
    }
}
