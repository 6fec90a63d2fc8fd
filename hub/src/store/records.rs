//! Async: records read back from their rows.

use std::collections::{BTreeMap, HashMap};

use muster_mesh::{
    ids::{DeviceId, Lane, SpoolId},
    message::{Reason, Verdict},
    record::Record,
};
use sqlx::{Any, AnyConnection, Row, Transaction};

use super::{
    Store, StoreError, bulk,
    posts::{reason_of, verdict_of},
};
use crate::{
    ingest::placing::{Placed, ShiftWhy},
    rows::{self, Shape, Table, Value},
};

/// A batch as its rows say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBatch {
    pub spool: SpoolId,
    pub lane: Lane,
    pub seq: u64,
    pub placed: Placed,
    pub wall_ms: i64,
    pub zone: String,
    pub offset_s: i32,
    pub flags: u32,
    /// In the order of the batch; what has expired since is missing.
    pub records: Vec<Record>,
}

/// One number of a spool, as the hub has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptNumber {
    pub seq: u64,
    pub answered: Answered,
}

/// What lies behind a kept number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Its records, made again from the rows.
    Rows(Vec<Record>),
    /// Kept unread, or dropped with a verdict.
    Verdict(Verdict, Reason),
    /// It was stored, and its rows are gone: deleted when their time was up, or by another hand.
    Deleted,
}

/// What every table's rows begin with: day, spool, number, place in the batch.
const KEY: &str = "r.day, r.spool_id, r.seq, r.idx";

/// (spool's number, seq)
type Place = (i64, i64);

impl Store {
    /// Everything of a device that lies on these days (placed, UTC).
    pub async fn kept_batches(&self, device_id: i64, first_day: i64, last_day: i64) -> Result<Vec<KeptBatch>, StoreError> {
        let mut reading = self.readers.begin().await?;
        let mut batches = read_batches(&mut reading, device_id, first_day, last_day).await?;
        for day in first_day..=last_day {
            for table in Table::ALL {
                let from = "r.day = $1 AND r.spool_id IN (SELECT spool_id FROM batches WHERE device_id = $2 AND day = $1)";
                for (place, idx, record) in read_records(&mut reading, table, from, &[day, device_id]).await? {
                    if let Some((_, records)) = batches.get_mut(&place) {
                        records.push((idx, record));
                    }
                }
            }
        }
        Ok(batches.into_values().map(|(batch, records)| KeptBatch { records: in_order(records), ..batch }).collect())
    }

    /// What lies behind each stored number of a spool in `first..=last`.
    pub async fn kept_numbers(&self, device: DeviceId, spool: SpoolId, first: u64, last: u64) -> Result<Vec<KeptNumber>, StoreError> {
        let mut reading = self.readers.begin().await?;
        let Some((spool_id, stored)) = read_spool(&mut reading, device, spool).await? else { return Ok(Vec::new()) };
        let range = [spool_id, first as i64, last.min(i64::MAX as u64) as i64];
        let mut rows = read_rows_of(&mut reading, &range).await?;
        let mut verdicts = read_verdicts(&mut reading, &range).await?;
        let mut kept = Vec::new();
        for (from, to) in stored.iter() {
            for seq in from.max(first)..=to.min(last) {
                let answered = match (rows.remove(&seq), verdicts.remove(&seq)) {
                    (Some(records), _) => Answered::Rows(in_order(records)),
                    (None, Some((verdict, reason))) => Answered::Verdict(verdict, reason),
                    (None, None) => Answered::Deleted,
                };
                kept.push(KeptNumber { seq, answered });
            }
        }
        Ok(kept)
    }
}

/// Records with their places in the batch.
type Placeds = Vec<(i64, Record)>;

fn in_order(mut records: Placeds) -> Vec<Record> {
    records.sort_unstable_by_key(|(idx, _)| *idx);
    records.into_iter().map(|(_, record)| record).collect()
}

async fn read_batches(
    reading: &mut Transaction<'_, Any>,
    device_id: i64,
    first_day: i64,
    last_day: i64,
) -> Result<BTreeMap<Place, (KeptBatch, Placeds)>, StoreError> {
    let select = "SELECT b.spool_id, b.seq, s.spool, s.lane, b.day, b.shift_ms, b.shift_why, b.wall_ms, z.name, c.offset_s, c.flags \
                  FROM batches b JOIN spools s ON s.id = b.spool_id JOIN contexts c ON c.id = b.context_id JOIN zones z ON z.id = c.zone_id \
                  WHERE b.device_id = $1 AND b.day BETWEEN $2 AND $3";
    let rows = sqlx::query(select).bind(device_id).bind(first_day).bind(last_day).fetch_all(&mut **reading).await?;
    let mut batches = BTreeMap::new();
    for row in rows {
        let (spool_id, seq): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let spool: Vec<u8> = row.try_get(2)?;
        let (lane, why): (i64, i64) = (row.try_get(3)?, row.try_get(6)?);
        let batch = KeptBatch {
            spool: SpoolId(spool.try_into().map_err(|_| damaged("spools"))?),
            lane: u8::try_from(lane).ok().and_then(Lane::from_u8).ok_or_else(|| damaged("spools"))?,
            seq: seq as u64,
            placed: Placed { day: row.try_get(4)?, shift_ms: row.try_get(5)?, why: ShiftWhy::of(why).ok_or_else(|| damaged("batches"))? },
            wall_ms: row.try_get(7)?,
            zone: row.try_get(8)?,
            offset_s: row.try_get::<i64, _>(9)?.try_into().map_err(|_| damaged("contexts"))?,
            flags: row.try_get::<i64, _>(10)?.try_into().map_err(|_| damaged("contexts"))?,
            records: Vec::new(),
        };
        batches.insert((spool_id, seq), (batch, Vec::new()));
    }
    Ok(batches)
}

/// The records of one table that a condition over `r` names.
async fn read_records(
    connection: &mut AnyConnection,
    table: Table,
    condition: &str,
    binds: &[i64],
) -> Result<Vec<(Place, i64, Record)>, StoreError> {
    let read = table.read();
    let statement = format!("SELECT {KEY}, {} FROM {} r {} WHERE {condition}", read.select, table.name(), read.join);
    let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
    for number in binds {
        query = query.bind(*number);
    }
    let shapes = [&[Shape::Int; 4], read.shapes].concat();
    let mut records = Vec::new();
    for row in query.fetch_all(connection).await? {
        let mut key = bulk::values(&row, &shapes)?;
        let fields = key.split_off(4);
        let [_, Value::Int(Some(spool_id)), Value::Int(Some(seq)), Value::Int(Some(idx))] = key[..] else {
            return Err(damaged(table.name()));
        };
        let record = rows::record(table, fields).map_err(|error| StoreError::Other(error.to_string()))?;
        records.push(((spool_id, seq), idx, record));
    }
    Ok(records)
}

async fn read_spool(
    reading: &mut Transaction<'_, Any>,
    device: DeviceId,
    spool: SpoolId,
) -> Result<Option<(i64, muster_mesh::ranges::Ranges)>, StoreError> {
    let select = "SELECT s.id, s.numbers FROM devices d JOIN spools s ON s.device_id = d.id WHERE d.device = $1 AND s.spool = $2";
    let row = sqlx::query(select).bind(device.0.to_vec()).bind(spool.0.to_vec()).fetch_optional(&mut **reading).await?;
    let Some(row) = row else { return Ok(None) };
    let numbers: Vec<u8> = row.try_get(1)?;
    let spool_row = muster_mesh::link::hub_ranges::SpoolRow::from_bytes(&numbers).map_err(|_| damaged("spools"))?;
    Ok(Some((row.try_get(0)?, spool_row.stored().clone())))
}

/// The records of a spool's batches: (spool's number, first, last).
async fn read_rows_of(reading: &mut Transaction<'_, Any>, range: &[i64; 3]) -> Result<HashMap<u64, Placeds>, StoreError> {
    let select = "SELECT seq FROM batches WHERE spool_id = $1 AND seq BETWEEN $2 AND $3";
    let batches = sqlx::query(select).bind(range[0]).bind(range[1]).bind(range[2]).fetch_all(&mut **reading).await?;
    let mut rows: HashMap<u64, Placeds> = HashMap::new();
    for batch in batches {
        rows.insert(batch.try_get::<i64, _>(0)? as u64, Vec::new());
    }
    let condition = "r.day IN (SELECT DISTINCT day FROM batches WHERE spool_id = $1 AND seq BETWEEN $2 AND $3) \
                     AND r.spool_id = $1 AND r.seq BETWEEN $2 AND $3";
    for table in Table::ALL {
        for ((_, seq), idx, record) in read_records(reading, table, condition, range).await? {
            rows.entry(seq as u64).or_default().push((idx, record));
        }
    }
    Ok(rows)
}

async fn read_verdicts(reading: &mut Transaction<'_, Any>, range: &[i64; 3]) -> Result<HashMap<u64, (Verdict, Reason)>, StoreError> {
    let select = "SELECT seq, verdict, reason FROM dropped WHERE spool_id = $1 AND seq BETWEEN $2 AND $3 \
                  UNION ALL SELECT seq, $4, reason FROM holds WHERE spool_id = $1 AND seq BETWEEN $2 AND $3";
    let held = super::posts::verdict_number(Verdict::Held);
    let query = sqlx::query(select).bind(range[0]).bind(range[1]).bind(range[2]).bind(held);
    let mut verdicts = HashMap::new();
    for row in query.fetch_all(&mut **reading).await? {
        let verdict = verdict_of(row.try_get(1)?).ok_or_else(|| damaged("dropped"))?;
        let reason = reason_of(row.try_get(2)?).ok_or_else(|| damaged("holds"))?;
        verdicts.insert(row.try_get::<i64, _>(0)? as u64, (verdict, reason));
    }
    Ok(verdicts)
}

fn damaged(table: &str) -> StoreError {
    StoreError::Other(format!("a row of the table {table} doesn't read; the database was changed by another hand"))
}
