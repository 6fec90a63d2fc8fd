//! Async: pictures' rows, and what of the object store they name; and what agents say that they can see.

use std::collections::{BTreeMap, HashSet};

use muster_mesh::{
    ids::{DeviceId, Lane, SpoolId},
    link::hub_ranges::SpoolRow,
    record::{Kind, Record, Screenshot},
};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, bulk};
use crate::rows::{self, Shape, Table, Value, blob, text};

/// Words about its abilities that a device has said, newest first: more are not looked at.
const CAPABILITIES_MAX: i64 = 2_000;

/// A picture as its row says; its bytes lie in the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPicture {
    /// What the API calls it.
    pub id: [u8; 16],
    pub placed_ms: i64,
    pub picture: Screenshot,
    pub bytes_len: i64,
    /// Its name in the object store.
    pub object: String,
}

/// What a row says of its object, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedObject {
    pub object: String,
    pub bytes_len: i64,
    pub sha256: Vec<u8>,
    pub device: DeviceId,
    pub spool: SpoolId,
    pub seq: u64,
    day: i64,
    spool_id: i64,
}

/// What a device said of one of its abilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptCapability {
    pub placed_ms: i64,
    pub what: String,
    pub able: bool,
    pub why: String,
}

impl Store {
    /// A device's pictures of these days (placed, UTC).
    pub async fn pictures(&self, device_id: i64, first_day: i64, last_day: i64) -> Result<Vec<KeptPicture>, StoreError> {
        let select = format!(
            "SELECT {} FROM batches b JOIN screenshot r ON r.day = b.day AND r.spool_id = b.spool_id AND r.seq = b.seq \
             WHERE b.device_id = $1 AND b.day BETWEEN $2 AND $3",
            columns()
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(select)).bind(device_id).bind(first_day).bind(last_day);
        query.fetch_all(&self.readers).await?.iter().map(picture).collect()
    }

    /// One picture of this device. None: it has none of this name, whoever else has.
    pub async fn picture(&self, device_id: i64, id: [u8; 16]) -> Result<Option<KeptPicture>, StoreError> {
        let select = format!(
            "SELECT {} FROM screenshot r JOIN batches b ON b.spool_id = r.spool_id AND b.seq = r.seq \
             WHERE r.object_id = $1 AND b.device_id = $2",
            columns()
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(select)).bind(id.to_vec()).bind(device_id);
        query.fetch_optional(&self.readers).await?.as_ref().map(picture).transpose()
    }

    /// Which of these objects a row names.
    pub async fn named_objects(&self, objects: &[String]) -> Result<HashSet<String>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        let keys: Vec<_> = objects.iter().map(|object| vec![text(object)]).collect();
        let select = "SELECT object FROM screenshot WHERE object IN (";
        let found = bulk::select(&mut connection, self.engine, select, &keys, ")", &[Shape::Text]).await?;
        let name = |row: Vec<Value>| match row.into_iter().next() {
            Some(Value::Text(name)) => name,
            _ => None,
        };
        Ok(found.into_iter().filter_map(name).collect())
    }

    /// Which of these numbers are settled: stored, or named by a `Gap` of their maker.
    pub async fn settled(&self, numbers: &HashSet<(SpoolId, u64)>) -> Result<HashSet<(SpoolId, u64)>, StoreError> {
        let spools: HashSet<SpoolId> = numbers.iter().map(|(spool, _)| *spool).collect();
        let mut keys: Vec<_> = spools.iter().map(|spool| vec![blob(&spool.0)]).collect();
        keys.sort_unstable();
        let mut connection = self.readers.acquire().await?;
        let select = "SELECT spool, numbers FROM spools WHERE spool IN (";
        let mut settled = HashSet::new();
        for found in bulk::select(&mut connection, self.engine, select, &keys, ")", &[Shape::Blob; 2]).await? {
            let [Value::Blob(Some(spool)), Value::Blob(Some(row))] = &found[..] else { continue };
            let (Ok(spool), Ok(row)) = (spool.as_slice().try_into(), SpoolRow::from_bytes(row)) else { continue };
            let is_settled = |seq: u64| row.stored().contains(seq) || row.excused().contains(seq);
            settled.extend(numbers.iter().filter(|number| number.0 == SpoolId(spool) && is_settled(number.1)));
        }
        Ok(settled)
    }

    /// What the rows of pictures name, in the order of the names, from behind `after` on.
    pub async fn objects_behind(&self, after: &str, most: i64) -> Result<Vec<NamedObject>, StoreError> {
        let select = "SELECT r.object, r.bytes_len, r.sha256, d.device, s.spool, r.seq, r.day, r.spool_id FROM screenshot r \
                      JOIN spools s ON s.id = r.spool_id JOIN devices d ON d.id = s.device_id \
                      WHERE r.object > $1 ORDER BY r.object LIMIT $2";
        let rows = sqlx::query(select).bind(after).bind(most).fetch_all(&self.readers).await?;
        let id = |row: &AnyRow, i: usize| -> Result<[u8; 16], StoreError> {
            row.try_get::<Vec<u8>, _>(i)?.try_into().map_err(|_| StoreError::Other("an id isn't 16 bytes".into()))
        };
        let named = |row: &AnyRow| {
            Ok(NamedObject {
                object: row.try_get(0)?,
                bytes_len: row.try_get(1)?,
                sha256: row.try_get(2)?,
                device: DeviceId(id(row, 3)?),
                spool: SpoolId(id(row, 4)?),
                seq: row.try_get::<i64, _>(5)? as u64,
                day: row.try_get(6)?,
                spool_id: row.try_get(7)?,
            })
        };
        rows.iter().map(named).collect()
    }

    /// Takes back that the numbers of these pictures were stored, with all rows of their batches: who still has them sends them again, and
    /// until then they are missing.
    pub async fn forget_pictures(&self, missing: &[NamedObject], now_ms: i64) -> Result<(), StoreError> {
        let keys: BTreeMap<_, _> = missing.iter().map(|named| ((named.device, named.spool), Lane::Pictures)).collect();
        let mut writing = self.write().await?;
        let (loaded, mut known) = writing.load(&keys, &[], &[]).await?;
        for named in missing {
            if let Some(row) = known.spools.get_mut(&(named.device, named.spool)) {
                row.forget(named.seq);
            }
            writing.delete_batch(named.day, named.spool_id, named.seq).await?;
        }
        writing.save(&loaded, &mut known, now_ms).await?;
        writing.commit().await
    }

    /// What a device said of its abilities, the newest word first.
    pub async fn capabilities(&self, device_id: i64) -> Result<Vec<KeptCapability>, StoreError> {
        let select = "SELECT r.at, b.shift_ms, r.what, r.able, r.why FROM batches b \
                      JOIN capability r ON r.day = b.day AND r.spool_id = b.spool_id AND r.seq = b.seq \
                      WHERE b.device_id = $1 ORDER BY b.day DESC, b.wall_ms DESC, r.seq DESC, r.idx DESC LIMIT $2";
        let rows = sqlx::query(select).bind(device_id).bind(CAPABILITIES_MAX).fetch_all(&self.readers).await?;
        let capability = |row: &AnyRow| {
            // Here, since a sum beyond 64 bits is an error in SQL.
            let placed_ms = row.try_get::<i64, _>(0)?.saturating_add(row.try_get(1)?);
            let able: i64 = row.try_get(3)?;
            Ok(KeptCapability { placed_ms, what: row.try_get(2)?, able: able != 0, why: row.try_get(4)? })
        };
        rows.iter().map(capability).collect()
    }
}

impl super::Writing<'_> {
    async fn delete_batch(&mut self, day: i64, spool_id: i64, seq: u64) -> Result<(), StoreError> {
        for table in Table::ALL {
            let delete = format!("DELETE FROM {} WHERE day = $1 AND spool_id = $2 AND seq = $3", table.name());
            let query = sqlx::query(sqlx::AssertSqlSafe(delete)).bind(day).bind(spool_id).bind(seq as i64);
            query.execute(&mut *self.transaction).await?;
        }
        for table in ["batches", "digests"] {
            let delete = format!("DELETE FROM {table} WHERE spool_id = $1 AND seq = $2");
            sqlx::query(sqlx::AssertSqlSafe(delete)).bind(spool_id).bind(seq as i64).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }
}

/// The record's own columns, then what stands beside them.
fn columns() -> String {
    format!("{}, r.bytes_len, r.object, r.object_id, b.shift_ms", Table::Screenshot.read().select)
}

fn picture(row: &AnyRow) -> Result<KeptPicture, StoreError> {
    let own = Table::Screenshot.read().shapes;
    let record = rows::record(Table::Screenshot, bulk::values(row, own)?).map_err(|error| StoreError::Other(error.to_string()))?;
    let Record { at, kind: Kind::Screenshot(picture) } = record else {
        return Err(StoreError::Other("a picture's row holds another record".into()));
    };
    let beside = own.len();
    let id: Vec<u8> = row.try_get(beside + 2)?;
    Ok(KeptPicture {
        id: id.try_into().map_err(|_| StoreError::Other("a picture's id isn't 16 bytes".into()))?,
        placed_ms: at.saturating_add(row.try_get(beside + 3)?),
        picture,
        bytes_len: row.try_get(beside)?,
        object: row.try_get(beside + 1)?,
    })
}
