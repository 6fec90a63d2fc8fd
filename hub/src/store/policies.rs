//! Async: the database's id, the hub's epoch, and every version of the policy that it gave out.

use muster_mesh::{ids::Version, policy::Policy};
use sqlx::{AnyConnection, Row};

use super::{Store, StoreError, Writing};

const EPOCH: &str = "epoch";
/// When the epoch rose last, milliseconds UTC; nothing: it never did.
const RESTORED: &str = "restored_ms";
/// Drawn by the first migration.
const ID: &str = "id";

/// A policy with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    pub version: Version,
    pub policy: Policy,
}

impl Store {
    /// The database's own number, the same in all its backups: the object store's mark says it.
    pub async fn id(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query("SELECT value FROM settings WHERE name = $1").bind(ID).fetch_one(&self.readers).await?.try_get(0)?)
    }

    /// The hub's epoch; 1 until it was restored or rolled back.
    pub async fn epoch(&self) -> Result<u32, StoreError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(EPOCH).fetch_optional(&self.readers).await?;
        let epoch: i64 = row.map_or(Ok(1), |row| row.try_get(0))?;
        epoch.try_into().map_err(|_| StoreError::Other("the hub's epoch isn't a number below 2^32".into()))
    }

    /// The policy that was given out last.
    pub async fn newest_policy(&self) -> Result<Option<StoredPolicy>, StoreError> {
        read_newest(&mut *self.readers.acquire().await?).await
    }

    /// Keeps a new version, and the epoch, before anyone is told of them. Some: another hub keeps one that isn't lower, with this epoch, and
    /// nothing was changed.
    pub async fn add_policy(&self, epoch: u32, new: &StoredPolicy, now_ms: i64) -> Result<Option<(u32, StoredPolicy)>, StoreError> {
        let mut writing = self.write().await?;
        // Two hubs take turns from here on.
        let raise = "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE \
                     SET value = CASE WHEN excluded.value > settings.value THEN excluded.value ELSE settings.value END";
        if epoch > self.epoch().await? {
            sqlx::query(raise).bind(RESTORED).bind(now_ms).execute(&mut *writing.transaction).await?;
        }
        sqlx::query(raise).bind(EPOCH).bind(i64::from(epoch)).execute(&mut *writing.transaction).await?;
        if let Some(newest) = read_newest(&mut writing.transaction).await?.filter(|newest| newest.version >= new.version) {
            return Ok(Some((self.epoch().await?, newest)));
        }
        sqlx::query("INSERT INTO policies (epoch, n, at_ms, body) VALUES ($1, $2, $3, $4)")
            .bind(i64::from(new.version.epoch))
            .bind(i64::from(new.version.n))
            .bind(now_ms)
            .bind(new.policy.to_bytes())
            .execute(&mut *writing.transaction)
            .await?;
        writing.commit().await?;
        Ok(None)
    }
}

impl Writing<'_> {
    /// When this database was found, or said, to be an older one than before. None: never.
    pub async fn restored_ms(&mut self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(RESTORED).fetch_optional(&mut *self.transaction).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }
}

async fn read_newest(connection: &mut AnyConnection) -> Result<Option<StoredPolicy>, StoreError> {
    let select = "SELECT epoch, n, body FROM policies ORDER BY epoch DESC, n DESC LIMIT 1";
    let Some(row) = sqlx::query(select).fetch_optional(connection).await? else { return Ok(None) };
    let number = |i: usize| -> Result<u32, StoreError> {
        row.try_get::<i64, _>(i)?.try_into().map_err(|_| StoreError::Other("a policy's version isn't a number below 2^32".into()))
    };
    let body: Vec<u8> = row.try_get(2)?;
    let policy = Policy::from_bytes(&body).map_err(|error| StoreError::Other(format!("the stored policy doesn't read: {error}")))?;
    Ok(Some(StoredPolicy { version: Version { epoch: number(0)?, n: number(1)? }, policy }))
}
