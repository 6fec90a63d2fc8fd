//! Async: devices, whose they are, and what is known of their spools' numbers.

use std::collections::{HashMap, HashSet};

use muster_certs::{Issued, Name};
use muster_mesh::{
    ids::{DeviceId, Lane, SpoolId},
    link::hub_ranges::SpoolRow,
};
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, look_ups::LookUp};
use crate::rows::blob;

/// A device as the hub knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    pub id: i64,
    pub device: DeviceId,
    /// None: it is not in the list of issued devices.
    pub person: Option<String>,
    pub display: Option<String>,
    pub site: Option<String>,
}

const COLUMNS: &str = "id, device, person, display, site";

impl Store {
    /// Devices in the order of their ids, from behind `after` on.
    pub async fn devices(&self, after: Option<DeviceId>, most: i64) -> Result<Vec<DeviceRow>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM devices WHERE device > $1 ORDER BY device LIMIT $2");
        let after = after.map_or(Vec::new(), |device| device.0.to_vec());
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(after).bind(most).fetch_all(&self.readers).await?;
        rows.iter().map(device_row).collect()
    }

    pub async fn device(&self, device: DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM devices WHERE device = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(device.0.to_vec()).fetch_optional(&self.readers).await?;
        row.as_ref().map(device_row).transpose()
    }

    /// All spools of a device, in the order of their birth.
    pub async fn spools_of(&self, device_id: i64) -> Result<Vec<(SpoolId, Lane, SpoolRow)>, StoreError> {
        let select = "SELECT spool, lane, numbers FROM spools WHERE device_id = $1 ORDER BY spool";
        let rows = sqlx::query(select).bind(device_id).fetch_all(&self.readers).await?;
        rows.iter().map(spool).collect()
    }

    /// Takes over whose each device is. A device that the list doesn't name (any more) is kept without a person. True when something changed.
    pub async fn set_listed(&self, listed: &[Issued]) -> Result<bool, StoreError> {
        let listed: HashMap<DeviceId, &Issued> = listed.iter().map(|issued| (DeviceId(issued.device), issued)).collect();
        let mut writing = self.write().await?;
        let mut keys: Vec<_> = listed.keys().map(|device| vec![blob(&device.0)]).collect();
        keys.sort_unstable();
        writing.numbers(LookUp::Devices, keys).await?;
        // Locked in one order: another hub reads the same list.
        let select = format!("SELECT {COLUMNS} FROM devices ORDER BY id {}", self.engine.locking());
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut *writing.transaction).await?;
        // Those who were enrolled here are whose this hub has said they are.
        let members = sqlx::query("SELECT name FROM members").fetch_all(&mut *writing.transaction).await?;
        let members: Vec<String> = members.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let enrolled: HashSet<DeviceId> = members.iter().filter_map(|name| name.parse::<Name>().ok()?.device()).map(DeviceId).collect();
        let mut changed = false;
        for row in &rows {
            let old = device_row(row)?;
            if enrolled.contains(&old.device) {
                continue;
            }
            let new = listed.get(&old.device);
            let (person, display, site) = (new.map(|new| &new.person), new.map(|new| &new.name), new.map(|new| &new.site));
            if (old.person.as_ref(), old.display.as_ref(), old.site.as_ref()) == (person, display, site) {
                continue;
            }
            sqlx::query("UPDATE devices SET person = $1, display = $2, site = $3 WHERE id = $4")
                .bind(person.cloned())
                .bind(display.cloned())
                .bind(site.cloned())
                .bind(old.id)
                .execute(&mut *writing.transaction)
                .await?;
            changed = true;
        }
        writing.commit().await?;
        Ok(changed)
    }
}

fn device_row(row: &AnyRow) -> Result<DeviceRow, StoreError> {
    let device: Vec<u8> = row.try_get(1)?;
    let device = DeviceId(device.try_into().map_err(|_| StoreError::Other("a device's id isn't 16 bytes".into()))?);
    Ok(DeviceRow { id: row.try_get(0)?, device, person: row.try_get(2)?, display: row.try_get(3)?, site: row.try_get(4)? })
}

fn spool(row: &AnyRow) -> Result<(SpoolId, Lane, SpoolRow), StoreError> {
    let spool: Vec<u8> = row.try_get(0)?;
    let spool = SpoolId(spool.try_into().map_err(|_| StoreError::Other("a spool's id isn't 16 bytes".into()))?);
    let lane = u8::try_from(row.try_get::<i64, _>(1)?)
        .ok()
        .and_then(Lane::from_u8)
        .ok_or_else(|| StoreError::Other("a spool of no lane".into()))?;
    let numbers: Vec<u8> = row.try_get(2)?;
    Ok((spool, lane, SpoolRow::from_bytes(&numbers).map_err(|error| StoreError::Other(error.to_string()))?))
}
