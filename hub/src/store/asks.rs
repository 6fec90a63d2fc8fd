//! Async: what was asked at hubs without the issuing key, until the hub that has it answers.

use sqlx::Row;

use super::{Store, StoreError};

/// Something that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingAsk {
    /// SHA-256 of the ask, hex.
    pub id: String,
    pub ask: Vec<u8>,
}

impl Store {
    /// Puts an ask into the queue, once. False: `most` lie there already (give or take those that come at the same moment).
    pub async fn queue_ask(&self, waiting: &WaitingAsk, now_ms: i64, most: i64) -> Result<bool, StoreError> {
        let mut writing = self.write().await?;
        let row = sqlx::query("SELECT COUNT(*) FROM door_asks").fetch_one(&mut *writing.transaction).await?;
        if row.try_get::<i64, _>(0)? >= most {
            return Ok(false);
        }
        let insert = "INSERT INTO door_asks (id, ask, at_ms) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING";
        sqlx::query(insert).bind(waiting.id.clone()).bind(waiting.ask.clone()).bind(now_ms).execute(&mut *writing.transaction).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// What waits, the oldest first.
    pub async fn waiting_asks(&self, most: i64) -> Result<Vec<WaitingAsk>, StoreError> {
        let select = "SELECT id, ask FROM door_asks WHERE answer IS NULL ORDER BY at_ms, id LIMIT $1";
        let rows = sqlx::query(select).bind(most).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(WaitingAsk { id: row.try_get(0)?, ask: row.try_get(1)? })).collect()
    }

    /// The answer to an ask that waits.
    pub async fn answer_ask(&self, id: &str, answer: Vec<u8>) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        let update = "UPDATE door_asks SET answer = $2 WHERE id = $1";
        sqlx::query(update).bind(id).bind(answer).execute(&mut *writing.transaction).await?;
        writing.commit().await
    }

    /// Lays down the answer to something that is always answered, in place of the one before it.
    pub async fn put_answer(&self, waiting: &WaitingAsk, answer: Vec<u8>, now_ms: i64) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        let upsert = "INSERT INTO door_asks (id, ask, at_ms, answer) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms, answer = excluded.answer";
        sqlx::query(upsert)
            .bind(waiting.id.clone())
            .bind(waiting.ask.clone())
            .bind(now_ms)
            .bind(answer)
            .execute(&mut *writing.transaction)
            .await?;
        writing.commit().await
    }

    /// The answer that lies there, and when it was asked for or laid down.
    pub async fn answer_to(&self, id: &str) -> Result<Option<(Vec<u8>, i64)>, StoreError> {
        let select = "SELECT answer, at_ms FROM door_asks WHERE id = $1 AND answer IS NOT NULL";
        let row = sqlx::query(select).bind(id).fetch_optional(&self.readers).await?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
    }

    /// It was fetched.
    pub async fn forget_ask(&self, id: &str) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        sqlx::query("DELETE FROM door_asks WHERE id = $1").bind(id).execute(&mut *writing.transaction).await?;
        writing.commit().await
    }

    /// Forgets what was asked before or after these times. Returns how many.
    pub async fn forget_asks(&self, before_ms: i64, after_ms: i64) -> Result<u64, StoreError> {
        let is_over = "FROM door_asks WHERE at_ms < $1 OR at_ms > $2";
        // Looked for first: mostly there are none, and that needs no transaction.
        let select = format!("SELECT COUNT(*) {is_over}");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(before_ms).bind(after_ms).fetch_one(&self.readers).await?;
        if row.try_get::<i64, _>(0)? == 0 {
            return Ok(0);
        }
        let mut writing = self.write().await?;
        let delete = format!("DELETE {is_over}");
        let gone = sqlx::query(sqlx::AssertSqlSafe(delete)).bind(before_ms).bind(after_ms).execute(&mut *writing.transaction).await?;
        writing.commit().await?;
        Ok(gone.rows_affected())
    }
}
