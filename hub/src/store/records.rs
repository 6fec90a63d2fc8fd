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
    posts::{TITLE_EXPIRED, reason_of, verdict_of},
};
use crate::{
    ingest::placing::{DAY_MS, Placed, ShiftWhy},
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
    /// Where the bytes of its pictures lie, in the order of their records.
    pub objects: Vec<String>,
}

/// What lies behind a kept number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Its records, made again from the rows; pictures without their bytes.
    Rows(Vec<Record>),
    /// Something of it was older than its kind is kept, when it came or since: so many of its records are left, and their titles may be gone.
    /// The rest can't be compared with what was sent any more.
    Expired(usize),
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
        let mut reading = self.read().await?;
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
        let mut reading = self.read().await?;
        let Some((spool_id, stored)) = read_spool(&mut reading, device, spool).await? else { return Ok(Vec::new()) };
        let range = [spool_id, first as i64, last.min(i64::MAX as u64) as i64];
        let mut batches = read_batches_of(&mut reading, &range).await?;
        let mut verdicts = read_verdicts(&mut reading, &range).await?;
        let mut kept = Vec::new();
        for (from, to) in stored.iter() {
            for seq in from.max(first)..=to.min(last) {
                let (answered, objects) = match (batches.remove(&seq), verdicts.remove(&seq)) {
                    (Some(batch), _) => batch.answered(),
                    (None, Some((verdict, reason))) => (Answered::Verdict(verdict, reason), Vec::new()),
                    (None, None) => (Answered::Deleted, Vec::new()),
                };
                kept.push(KeptNumber { seq, answered, objects });
            }
        }
        Ok(kept)
    }
}

/// What is left of a batch.
#[derive(Default)]
struct Left {
    records: Placeds,
    /// (place in the batch, key)
    objects: Vec<(i64, String)>,
    /// Records in its envelope.
    count: usize,
    /// Whether some of them were too old when they came, or a title is gone since.
    is_cut: bool,
    /// Whether anything of its age was deleted since.
    is_old: bool,
}

impl Left {
    fn answered(mut self) -> (Answered, Vec<String>) {
        let left = self.records.len();
        // A row that is gone without its time being up is shown as what it is: other records than were sent.
        if self.is_cut || (self.is_old && left < self.count) {
            return (Answered::Expired(left), Vec::new());
        }
        self.objects.sort_unstable();
        (Answered::Rows(in_order(self.records)), self.objects.into_iter().map(|(_, object)| object).collect())
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
    let shapes = [&[Shape::Int; 4], read.shapes].concat();
    let mut records = Vec::new();
    for row in bind(statement, binds).fetch_all(connection).await? {
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

/// What is left of a spool's batches: (spool's number, first, last).
async fn read_batches_of(reading: &mut Transaction<'_, Any>, range: &[i64; 3]) -> Result<HashMap<u64, Left>, StoreError> {
    let swept = read_swept(reading).await?;
    let select = "SELECT seq, day, hub_ms, records, left_out FROM batches WHERE spool_id = $1 AND seq BETWEEN $2 AND $3";
    let mut batches: HashMap<u64, Left> = HashMap::new();
    for row in bind(select.into(), range).fetch_all(&mut **reading).await? {
        let (day, hub_ms, left_out): (i64, i64, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(4)?);
        // A batch from a wrong future goes by its arrival.
        let is_old = day.min(hub_ms.div_euclid(DAY_MS)) < swept;
        let left = Left { count: row.try_get::<i64, _>(3)? as usize, is_cut: left_out > 0, is_old, ..Left::default() };
        batches.insert(row.try_get::<i64, _>(0)? as u64, left);
    }
    let condition = "r.day IN (SELECT DISTINCT day FROM batches WHERE spool_id = $1 AND seq BETWEEN $2 AND $3) \
                     AND r.spool_id = $1 AND r.seq BETWEEN $2 AND $3";
    for table in Table::ALL {
        for ((_, seq), idx, record) in read_records(reading, table, condition, range).await? {
            batches.entry(seq as u64).or_default().records.push((idx, record));
        }
    }
    let untitled = format!("SELECT r.seq FROM focus r WHERE {condition} AND r.title_key = {TITLE_EXPIRED}");
    for row in bind(untitled, range).fetch_all(&mut **reading).await? {
        batches.entry(row.try_get::<i64, _>(0)? as u64).or_default().is_cut = true;
    }
    let objects = format!("SELECT r.seq, r.idx, r.object FROM screenshot r WHERE {condition}");
    for row in bind(objects, range).fetch_all(&mut **reading).await? {
        batches.entry(row.try_get::<i64, _>(0)? as u64).or_default().objects.push((row.try_get(1)?, row.try_get(2)?));
    }
    Ok(batches)
}

/// The day before which something was deleted because its time was up.
async fn read_swept(reading: &mut Transaction<'_, Any>) -> Result<i64, StoreError> {
    let select = "SELECT COALESCE(MAX(day - days), $1) FROM deleted";
    Ok(sqlx::query(select).bind(i64::MIN).fetch_one(&mut **reading).await?.try_get(0)?)
}

fn bind(statement: String, numbers: &[i64]) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
    numbers.iter().fold(sqlx::query(sqlx::AssertSqlSafe(statement)), |query, number| query.bind(*number))
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
