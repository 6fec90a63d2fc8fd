//! Async: pictures' rows, and what of the object store they name; and what agents say that they can see.

use std::collections::HashSet;

use muster_mesh::record::{Kind, Record, Screenshot};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, bulk};
use crate::rows::{self, Shape, Table, Value, text};

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
