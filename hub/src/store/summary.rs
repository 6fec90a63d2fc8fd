//! Async: counts over everything, by SQL, for those who compare the stages.

use std::collections::BTreeMap;

use muster_mesh::{ids::SpoolId, link::hub_ranges::SpoolRow, message::Verdict, ranges::Ranges};
use sqlx::Row;

use super::{Store, StoreError, posts::verdict_number};
use crate::rows::Table;

/// What came of the spools that were born since a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub kinds: BTreeMap<&'static str, i64>,
    /// Batches with rows.
    pub batches: i64,
    pub held: i64,
    pub refused: i64,
    pub expired: i64,
    /// Records under a number whose batch says another day, or that has no batch.
    pub duplicates: i64,
    /// Numbers that were announced and aren't here, those lost in the branch among them.
    pub missing: u64,
    pub lost: u64,
    /// `Gap` records.
    pub gaps: i64,
    /// (device, spool, seq) with other content.
    pub alarms: i64,
    /// From the batch's end at the agent to the relay's receipt and to the hub's, as their clocks say: (half, 99 of 100), in milliseconds.
    pub to_relay_ms: (i64, i64),
    pub to_hub_ms: (i64, i64),
    /// Over the whole life of the database: batches that came again, that were returned, and records older than their retention.
    pub counters: BTreeMap<String, i64>,
}

/// Clocks of this millennium and a few more: beyond 64 bits a difference is an error in SQL, and one agent must not spoil the sum.
const PLAUSIBLE: &str = "b.wall_ms BETWEEN 0 AND 100000000000000 AND b.shift_ms BETWEEN -100000000000000 AND 100000000000000";

impl Store {
    /// `since_ms`: spools born at or after it, milliseconds UTC.
    pub async fn summary(&self, since_ms: i64) -> Result<Summary, StoreError> {
        // A spool's id begins with its birth, so ids compare as times do.
        let from = SpoolId::new(u64::try_from(since_ms).unwrap_or(0), [0; 10]).0.to_vec();
        let mut summary = Summary::default();
        for table in Table::ALL {
            let name = table.name();
            let count = format!("SELECT COUNT(*) FROM {name} r JOIN spools s ON s.id = r.spool_id WHERE s.spool >= $1");
            summary.kinds.insert(name, self.one(count, &from).await?);
            let strays = format!(
                "SELECT COUNT(*) FROM {name} r JOIN spools s ON s.id = r.spool_id \
                 LEFT JOIN batches b ON b.spool_id = r.spool_id AND b.seq = r.seq AND b.day = r.day WHERE s.spool >= $1 AND b.seq IS NULL"
            );
            summary.duplicates += self.one(strays, &from).await?;
        }
        summary.gaps = summary.kinds.get("gap").copied().unwrap_or(0);
        let joined = |table: &str| format!("SELECT COUNT(*) FROM {table} r JOIN spools s ON s.id = r.spool_id WHERE s.spool >= $1");
        summary.batches = self.one(joined("batches"), &from).await?;
        summary.held = self.one(joined("holds"), &from).await?;
        summary.alarms = self.one(joined("alarms"), &from).await?;
        let dropped = |verdict| format!("{} AND r.verdict = {}", joined("dropped"), verdict_number(verdict));
        summary.refused = self.one(dropped(Verdict::Refused), &from).await?;
        summary.expired = self.one(dropped(Verdict::Expired), &from).await?;
        summary.to_relay_ms = self.travel("relay_ms", &from).await?;
        summary.to_hub_ms = self.travel("hub_ms", &from).await?;
        for row in sqlx::query("SELECT numbers FROM spools WHERE spool >= $1").bind(from).fetch_all(&self.readers).await? {
            let numbers: Vec<u8> = row.try_get(0)?;
            let missing = SpoolRow::from_bytes(&numbers).map_err(|error| StoreError::Other(error.to_string()))?.missing();
            summary.missing += missing.announced.count() + missing.lost.count();
            summary.lost += Ranges::count(&missing.lost);
        }
        for row in sqlx::query("SELECT name, n FROM counters").fetch_all(&self.readers).await? {
            summary.counters.insert(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(summary)
    }

    /// The middle and the 99th of 100 of the times that batches took.
    async fn travel(&self, arrival: &str, from: &[u8]) -> Result<(i64, i64), StoreError> {
        let which = format!("FROM batches b JOIN spools s ON s.id = b.spool_id WHERE s.spool >= $1 AND {PLAUSIBLE}");
        let batches = self.one(format!("SELECT COUNT(*) {which}"), from).await?;
        if batches == 0 {
            return Ok((0, 0));
        }
        let at = |place: i64| {
            let took = format!("b.{arrival} - b.wall_ms - b.shift_ms");
            self.one(format!("SELECT {took} AS took {which} ORDER BY took LIMIT 1 OFFSET {place}"), from)
        };
        Ok((at((batches - 1) / 2).await?, at((batches - 1) * 99 / 100).await?))
    }

    async fn one(&self, statement: String, from: &[u8]) -> Result<i64, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(from.to_vec()).fetch_one(&self.readers).await?;
        Ok(row.try_get(0)?)
    }
}
