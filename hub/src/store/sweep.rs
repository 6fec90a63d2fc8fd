//! Async: deletion of what is older than it may be kept, a bounded piece per transaction, so that ingest gets its turn and a sweep that is
//! cut off goes on where it was. Numbers stay in *stored*: what was deleted doesn't come back.

use muster_mesh::{limits, link::hub_ranges::SpoolRow};
use sqlx::Row;

use super::{Store, StoreError};
use crate::{ingest::placing::DAY_MS, ingest::plan::Retention, rows::Table};

/// How much one sweep deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub records: u64,
    pub batches: u64,
    pub holds: u64,
    pub lines: u64,
}

impl Store {
    /// Deletes what is older than its retention at `now_ms`, at most `rows_max` rows in one transaction.
    pub async fn sweep(&self, now_ms: i64, retention: Retention, rows_max: i64) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for table in Table::ALL {
            let first_kept = now_ms.div_euclid(DAY_MS).saturating_sub(retention.days_of(table));
            let (name, key) = (table.name(), "day, spool_id, seq, idx");
            let delete = format!("DELETE FROM {name} WHERE ({key}) IN (SELECT {key} FROM {name} WHERE day < $1 ORDER BY {key} LIMIT $2)");
            swept.records += self.delete(&delete, &[first_kept], rows_max).await?;
        }
        let received_ms = now_ms.saturating_sub(retention.ceiling_ms());
        let first_kept = now_ms.div_euclid(DAY_MS).saturating_sub(retention.ceiling_ms() / DAY_MS);
        for device_id in self.device_numbers().await? {
            swept.records += self.sweep_future(device_id, now_ms, received_ms, rows_max).await?;
            let delete = "DELETE FROM batches WHERE (spool_id, seq) IN (SELECT spool_id, seq FROM batches WHERE device_id = $1 AND day < $2 LIMIT $3)";
            swept.batches += self.delete(delete, &[device_id, first_kept], rows_max).await?;
        }
        let delete =
            "DELETE FROM holds WHERE (spool_id, seq, digest) IN (SELECT spool_id, seq, digest FROM holds WHERE hub_ms < $1 LIMIT $2)";
        swept.holds = self.delete(delete, &[received_ms], rows_max).await?;
        let delete = "DELETE FROM dropped WHERE (spool_id, seq) IN (SELECT spool_id, seq FROM dropped WHERE hub_ms < $1 LIMIT $2)";
        swept.lines = self.delete(delete, &[received_ms], rows_max).await?;
        Ok(swept)
    }

    /// What a wrong clock placed in the future is no younger than its arrival: it goes when that is too long ago.
    async fn sweep_future(&self, device_id: i64, now_ms: i64, received_ms: i64, rows_max: i64) -> Result<u64, StoreError> {
        let tomorrow = now_ms.div_euclid(DAY_MS).saturating_add(1);
        let batches = "SELECT day, spool_id, seq FROM batches WHERE device_id = $1 AND day > $2 AND hub_ms < $3";
        let rows = sqlx::query(batches).bind(device_id).bind(tomorrow).bind(received_ms).fetch_all(&self.readers).await?;
        let mut records = 0;
        for row in rows {
            let (day, spool_id, seq): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            for table in Table::ALL {
                let (name, key) = (table.name(), "day, spool_id, seq, idx");
                let inner = format!("SELECT {key} FROM {name} WHERE day = $1 AND spool_id = $2 AND seq = $3 LIMIT $4");
                records += self.delete(&format!("DELETE FROM {name} WHERE ({key}) IN ({inner})"), &[day, spool_id, seq], rows_max).await?;
            }
            let inner = "SELECT spool_id, seq FROM batches WHERE spool_id = $1 AND seq = $2 LIMIT $3";
            self.delete(&format!("DELETE FROM batches WHERE (spool_id, seq) IN ({inner})"), &[spool_id, seq], rows_max).await?;
        }
        Ok(records)
    }

    async fn device_numbers(&self) -> Result<Vec<i64>, StoreError> {
        let rows = sqlx::query("SELECT id FROM devices ORDER BY id").fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Runs a statement, whose last parameter is its bound, until it deletes less than that.
    async fn delete(&self, statement: &str, binds: &[i64], rows_max: i64) -> Result<u64, StoreError> {
        let mut deleted = 0;
        loop {
            let mut writing = self.write().await?;
            let mut query = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned()));
            for number in binds {
                query = query.bind(*number);
            }
            let now = query.bind(rows_max).execute(&mut *writing.transaction).await?.rows_affected();
            writing.commit().await?;
            deleted += now;
            if now < rows_max as u64 {
                return Ok(deleted);
            }
        }
    }

    /// Forgets the digests of spools that need none any more, and of the others all but those of the newest numbers.
    pub async fn settle_spools(&self, now_ms: i64, rows_max: i64) -> Result<u64, StoreError> {
        let (mut settled, mut after) = (0, 0);
        loop {
            let mut writing = self.write().await?;
            let select = "SELECT id, numbers FROM spools WHERE settled = 0 AND id > $1 ORDER BY id LIMIT $2";
            let rows = sqlx::query(select).bind(after).bind(rows_max).fetch_all(&mut *writing.transaction).await?;
            for row in &rows {
                after = row.try_get(0)?;
                let numbers: Vec<u8> = row.try_get(1)?;
                let Ok(numbers) = SpoolRow::from_bytes(&numbers) else { continue };
                if numbers.needs_no_digests(now_ms) {
                    writing.forget_digests(&[after]).await?;
                    let update = "UPDATE spools SET settled = 1 WHERE id = $1";
                    sqlx::query(update).bind(after).execute(&mut *writing.transaction).await?;
                    settled += 1;
                } else {
                    let oldest = numbers.stored().last().unwrap_or(0).saturating_sub(limits::DIGESTS_KEPT as u64);
                    let delete = "DELETE FROM digests WHERE spool_id = $1 AND seq <= $2";
                    sqlx::query(delete).bind(after).bind(oldest as i64).execute(&mut *writing.transaction).await?;
                }
            }
            writing.commit().await?;
            if rows.len() < rows_max as usize {
                return Ok(settled);
            }
        }
    }
}
