//! Async: the people who may sign in.

use sqlx::Row;

use super::{Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub id: i64,
    pub name: String,
    /// argon2id, as a PHC string.
    pub password: String,
}

impl Store {
    pub async fn admin(&self, name: &str) -> Result<Option<Admin>, StoreError> {
        let row = sqlx::query("SELECT id, name, password FROM admins WHERE name = $1").bind(name).fetch_optional(&self.readers).await?;
        let admin = |row: sqlx::any::AnyRow| Ok(Admin { id: row.try_get(0)?, name: row.try_get(1)?, password: row.try_get(2)? });
        row.map(admin).transpose()
    }

    /// Whether the admin that a token speaks of is still there, under the same name.
    pub async fn is_admin(&self, id: i64, name: &str) -> Result<bool, StoreError> {
        let row =
            sqlx::query("SELECT COUNT(*) FROM admins WHERE id = $1 AND name = $2").bind(id).bind(name).fetch_one(&self.readers).await?;
        Ok(row.try_get::<i64, _>(0)? == 1)
    }

    /// False: there is an admin of this name already, and nothing was changed.
    pub async fn create_admin(&self, name: &str, password: &str, now_ms: i64) -> Result<bool, StoreError> {
        let mut writing = self.write().await?;
        let statement = "INSERT INTO admins (name, password, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        let made = sqlx::query(statement).bind(name).bind(password).bind(now_ms).execute(&mut *writing.transaction).await?;
        writing.commit().await?;
        Ok(made.rows_affected() == 1)
    }
}
