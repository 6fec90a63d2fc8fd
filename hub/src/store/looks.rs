//! Async: who looked at whose data.

use sqlx::Row;

use super::{Store, StoreError};

/// One answered request for personal data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub at_ms: i64,
    pub admin_id: i64,
    pub who: String,
    /// None: more than one device.
    pub device_id: Option<i64>,
    /// The device's id, or what else was looked at.
    pub whom: String,
    pub what: String,
    /// Why, where one must be given.
    pub reason: Option<String>,
}

impl Store {
    /// On the disk when this returns: only then may the answer begin.
    pub async fn add_look(&self, look: &Look) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        sqlx::query("INSERT INTO looks (at_ms, admin_id, who, device_id, whom, what, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)")
            .bind(look.at_ms)
            .bind(look.admin_id)
            .bind(&look.who)
            .bind(look.device_id)
            .bind(&look.whom)
            .bind(&look.what)
            .bind(&look.reason)
            .execute(&mut *writing.transaction)
            .await?;
        writing.commit().await
    }

    /// The newest looks at a device, or at all.
    pub async fn looks(&self, device_id: Option<i64>, most: i64) -> Result<Vec<Look>, StoreError> {
        let select = "SELECT at_ms, admin_id, who, device_id, whom, what, reason FROM looks";
        let rows = match device_id {
            Some(device_id) => {
                let select = format!("{select} WHERE device_id = $1 ORDER BY id DESC LIMIT $2");
                sqlx::query(sqlx::AssertSqlSafe(select)).bind(device_id).bind(most).fetch_all(&self.readers).await?
            }
            None => {
                let select = format!("{select} ORDER BY id DESC LIMIT $1");
                sqlx::query(sqlx::AssertSqlSafe(select)).bind(most).fetch_all(&self.readers).await?
            }
        };
        let look = |row: &sqlx::any::AnyRow| {
            Ok(Look {
                at_ms: row.try_get(0)?,
                admin_id: row.try_get(1)?,
                who: row.try_get(2)?,
                device_id: row.try_get(3)?,
                whom: row.try_get(4)?,
                what: row.try_get(5)?,
                reason: row.try_get(6)?,
            })
        };
        rows.iter().map(look).collect()
    }
}
