//! Async: the public halves of the keys that sign people's tokens, of all hubs of this database.

use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, Writing};

/// The public half of a token key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKeyRow {
    /// 16 lower-case hex digits.
    pub kid: String,
    /// Ed25519, hex.
    pub public_key: String,
    /// Milliseconds UTC.
    pub since_ms: i64,
    /// From then on nothing counts that it signed. Milliseconds UTC.
    pub ends_ms: i64,
}

const TOKEN_KEY: &str = "kid, public_key, since_ms, ends_ms";

impl Store {
    /// Those that count at `now_ms`, the newest first.
    pub async fn token_keys(&self, now_ms: i64, most: i64) -> Result<Vec<TokenKeyRow>, StoreError> {
        let select = format!("SELECT {TOKEN_KEY} FROM token_keys WHERE ends_ms > $1 ORDER BY since_ms DESC, kid LIMIT $2");
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(now_ms).bind(most).fetch_all(&self.readers).await?;
        rows.iter().map(token_key).collect()
    }

    /// Nothing counts any more that this one has signed. False: it didn't count before.
    pub async fn end_token_key(&self, kid: &str, now_ms: i64) -> Result<bool, StoreError> {
        let mut writing = self.write().await?;
        let ended = writing.end_token_key_by(kid, now_ms).await?;
        writing.commit().await?;
        Ok(ended)
    }

    /// Nothing counts any more that any of them has signed.
    pub async fn end_all_token_keys(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        let update = "UPDATE token_keys SET ends_ms = $1 WHERE ends_ms > $1";
        sqlx::query(update).bind(now_ms).execute(&mut *writing.transaction).await?;
        writing.commit().await
    }
}

impl Writing<'_> {
    pub async fn keep_token_key(&mut self, key: &TokenKeyRow) -> Result<(), StoreError> {
        let insert = format!("INSERT INTO token_keys ({TOKEN_KEY}) VALUES ($1, $2, $3, $4)");
        sqlx::query(sqlx::AssertSqlSafe(insert))
            .bind(key.kid.clone())
            .bind(key.public_key.clone())
            .bind(key.since_ms)
            .bind(key.ends_ms)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// What a key signed counts until then. False: it ends before that, and nothing was changed.
    pub async fn end_token_key_by(&mut self, kid: &str, ends_ms: i64) -> Result<bool, StoreError> {
        let update = "UPDATE token_keys SET ends_ms = $1 WHERE kid = $2 AND ends_ms > $1";
        let ended = sqlx::query(update).bind(ends_ms).bind(kid).execute(&mut *self.transaction).await?;
        Ok(ended.rows_affected() == 1)
    }
}

fn token_key(row: &AnyRow) -> Result<TokenKeyRow, StoreError> {
    Ok(TokenKeyRow { kid: row.try_get(0)?, public_key: row.try_get(1)?, since_ms: row.try_get(2)?, ends_ms: row.try_get(3)? })
}
