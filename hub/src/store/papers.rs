//! Async: what this hub's control keys are, what they sign, who is denied, and who holds which version.

use muster_certs::EarlierLeaf;
use muster_mesh::{
    ids::Version,
    message::{Denial, DenyList},
};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Store, StoreError, Writing};

/// The public half of a control key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlRow {
    pub n: u32,
    /// PEM.
    pub chain: String,
}

/// A control key, whether it counts or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlKeyRow {
    pub n: u32,
    /// PEM.
    pub chain: String,
    /// Milliseconds UTC, as is its end.
    pub since_ms: i64,
    pub ended_ms: Option<i64>,
}

/// A version of something that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPaper {
    pub version: Version,
    pub body: Vec<u8>,
}

const CONTROL_KEYS: &str = "SELECT n, chain FROM control_keys WHERE ended_ms IS NULL ORDER BY n";

impl Store {
    /// All control keys that may be believed, by their numbers.
    pub async fn control_keys(&self) -> Result<Vec<ControlRow>, StoreError> {
        let rows = sqlx::query(CONTROL_KEYS).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(ControlRow { n: number(row, 0)?, chain: row.try_get(1)? })).collect()
    }

    /// All control keys that there ever were, by their numbers.
    pub async fn control_keys_ever(&self) -> Result<Vec<ControlKeyRow>, StoreError> {
        let rows = sqlx::query("SELECT n, chain, since_ms, ended_ms FROM control_keys ORDER BY n").fetch_all(&self.readers).await?;
        let key = |row: &AnyRow| {
            Ok(ControlKeyRow { n: number(row, 0)?, chain: row.try_get(1)?, since_ms: row.try_get(2)?, ended_ms: row.try_get(3)? })
        };
        rows.iter().map(key).collect()
    }

    /// The highest number of a control key that was ever given.
    pub async fn highest_control_key(&self) -> Result<u32, StoreError> {
        let row = sqlx::query("SELECT COALESCE(MAX(n), 0) FROM control_keys").fetch_one(&self.readers).await?;
        number(&row, 0)
    }

    /// The newest of a kind.
    pub async fn newest_paper(&self, kind: u8) -> Result<Option<StoredPaper>, StoreError> {
        read_newest(&mut *self.readers.acquire().await?, kind).await
    }

    /// Everybody who is denied and may still have a certificate.
    pub async fn denied(&self, now_ms: i64) -> Result<Vec<Denial>, StoreError> {
        let select = "SELECT name, issued_before_ms, until_ms FROM denied WHERE until_ms > $1 ORDER BY name";
        let rows = sqlx::query(select).bind(now_ms).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(Denial { name: row.try_get(0)?, issued_before_ms: row.try_get(1)?, until_ms: row.try_get(2)? })).collect()
    }

    /// Of the members that are denied the certificates that haven't ended, each with its name.
    pub async fn living_of_denied(&self, now_ms: i64) -> Result<Vec<(String, EarlierLeaf)>, StoreError> {
        let select = "SELECT certificates.name, issuer, serial, not_after_ms FROM certificates JOIN members ON members.name = certificates.name \
                      WHERE members.denied_ms IS NOT NULL AND not_after_ms >= $1 ORDER BY certificates.name, not_after_ms";
        let rows = sqlx::query(select).bind(now_ms).fetch_all(&self.readers).await?;
        let leaf = |row: &AnyRow| -> Result<EarlierLeaf, StoreError> {
            Ok(EarlierLeaf { issuer_key: row.try_get(1)?, serial: row.try_get(2)?, not_after_ms: row.try_get(3)? })
        };
        rows.iter().map(|row| Ok((row.try_get(0)?, leaf(row)?))).collect()
    }

    /// When, by its own clock, somebody first said that it holds this version of a kind or a later one.
    pub async fn held_since(&self, name: &str, kind: u8, version: Version) -> Result<Option<i64>, StoreError> {
        let select = "SELECT MIN(said_ms) FROM held_versions \
                      WHERE name = $1 AND kind = $2 AND (epoch > $3 OR (epoch = $3 AND n >= $4))";
        let row = sqlx::query(select)
            .bind(name)
            .bind(i64::from(kind))
            .bind(i64::from(version.epoch))
            .bind(i64::from(version.n))
            .fetch_one(&self.readers)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// The first version of the list of the denied that names somebody.
    pub async fn first_denied(&self, name: &str) -> Result<Option<Version>, StoreError> {
        let select = "SELECT epoch, n FROM denied WHERE name = $1 AND epoch IS NOT NULL";
        let row = sqlx::query(select).bind(name).fetch_optional(&self.readers).await?;
        row.map(|row| Ok(Version { epoch: number(&row, 0)?, n: number(&row, 1)? })).transpose()
    }

    /// The highest version of a kind that each has said it holds.
    pub async fn held_versions(&self, kind: u8) -> Result<Vec<(String, Version)>, StoreError> {
        let select = "SELECT name, epoch, n FROM held_versions WHERE kind = $1 ORDER BY name, epoch, n";
        let rows = sqlx::query(select).bind(i64::from(kind)).fetch_all(&self.readers).await?;
        let mut highest: Vec<(String, Version)> = Vec::new();
        for row in &rows {
            let (name, version): (String, _) = (row.try_get(0)?, Version { epoch: number(row, 1)?, n: number(row, 2)? });
            match highest.last_mut() {
                Some((last, held)) if *last == name => *held = version,
                Some(_) | None => highest.push((name, version)),
            }
        }
        Ok(highest)
    }

    /// Notes that somebody says it holds a version. Noted once.
    pub async fn note_held(&self, name: &str, kind: u8, version: Version, now_ms: i64, said_ms: i64) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        writing.note_held(name, kind, version, now_ms, said_ms).await?;
        writing.commit().await
    }

    /// One version of a kind.
    pub async fn paper(&self, kind: u8, version: Version) -> Result<Option<StoredPaper>, StoreError> {
        read_paper(&mut *self.readers.acquire().await?, kind, version).await
    }
}

impl Writing<'_> {
    /// All control keys that may be believed, by their numbers.
    pub async fn control_keys(&mut self) -> Result<Vec<ControlRow>, StoreError> {
        let rows = sqlx::query(CONTROL_KEYS).fetch_all(&mut *self.transaction).await?;
        rows.iter().map(|row| Ok(ControlRow { n: number(row, 0)?, chain: row.try_get(1)? })).collect()
    }

    /// The chain of a control key.
    pub async fn control_key(&mut self, n: u32) -> Result<Option<String>, StoreError> {
        let row =
            sqlx::query("SELECT chain FROM control_keys WHERE n = $1").bind(i64::from(n)).fetch_optional(&mut *self.transaction).await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    pub async fn keep_control_key(&mut self, n: u32, chain: &str, now_ms: i64) -> Result<(), StoreError> {
        let upsert = "INSERT INTO control_keys (n, chain, since_ms, ended_ms) VALUES ($1, $2, $3, NULL) \
                      ON CONFLICT (n) DO UPDATE SET chain = excluded.chain";
        sqlx::query(upsert).bind(i64::from(n)).bind(chain).bind(now_ms).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Nobody is to believe it from now on. False: it wasn't believed before.
    pub async fn end_control_key(&mut self, n: u32, now_ms: i64) -> Result<bool, StoreError> {
        let update = "UPDATE control_keys SET ended_ms = $2 WHERE n = $1 AND ended_ms IS NULL";
        let ended = sqlx::query(update).bind(i64::from(n)).bind(now_ms).execute(&mut *self.transaction).await?;
        Ok(ended.rows_affected() == 1)
    }

    /// The newest of a kind, with the hub's epoch. Hubs of one database take turns from here on.
    pub async fn newest_paper(&mut self, kind: u8) -> Result<(u32, Option<StoredPaper>), StoreError> {
        self.take_turn_to_sign().await?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = 'epoch'").fetch_one(&mut *self.transaction).await?;
        let epoch = number(&row, 0)?;
        Ok((epoch, read_newest(&mut self.transaction, kind).await?))
    }

    /// Whoever changes what is signed waits here until nobody else does.
    pub(super) async fn take_turn_to_sign(&mut self) -> Result<(), StoreError> {
        let touch = "INSERT INTO settings (name, value) VALUES ('epoch', 1) ON CONFLICT (name) DO UPDATE SET value = settings.value";
        sqlx::query(touch).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Notes that a member says it holds a version, where this database knows that one: nobody fills it with what never was.
    pub async fn note_known(&mut self, name: &str, kind: u8, version: Version, now_ms: i64) -> Result<(), StoreError> {
        match read_paper(&mut self.transaction, kind, version).await? {
            Some(_) => self.note_held(name, kind, version, now_ms, now_ms).await,
            None => Ok(()),
        }
    }

    async fn note_held(&mut self, name: &str, kind: u8, version: Version, now_ms: i64, said_ms: i64) -> Result<(), StoreError> {
        let insert = "INSERT INTO held_versions (name, kind, epoch, n, at_ms, said_ms) VALUES ($1, $2, $3, $4, $5, $6) \
                      ON CONFLICT (name, kind, epoch, n) DO NOTHING";
        sqlx::query(insert)
            .bind(name)
            .bind(i64::from(kind))
            .bind(i64::from(version.epoch))
            .bind(i64::from(version.n))
            .bind(now_ms)
            .bind(said_ms)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    pub async fn add_paper(&mut self, kind: u8, paper: &StoredPaper, now_ms: i64) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO papers (kind, epoch, n, at_ms, body) VALUES ($1, $2, $3, $4, $5)")
            .bind(i64::from(kind))
            .bind(i64::from(paper.version.epoch))
            .bind(i64::from(paper.version.n))
            .bind(now_ms)
            .bind(paper.body.clone())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Everybody who is denied and may still have a certificate.
    pub async fn denied(&mut self, now_ms: i64) -> Result<Vec<Denial>, StoreError> {
        let select = "SELECT name, issued_before_ms, until_ms FROM denied WHERE until_ms > $1 ORDER BY name";
        let rows = sqlx::query(select).bind(now_ms).fetch_all(&mut *self.transaction).await?;
        rows.iter().map(|row| Ok(Denial { name: row.try_get(0)?, issued_before_ms: row.try_get(1)?, until_ms: row.try_get(2)? })).collect()
    }

    /// Before when the certificates of a name must have been issued to be refused. None: it isn't denied.
    pub async fn denied_before(&mut self, name: &str) -> Result<Option<i64>, StoreError> {
        let select = "SELECT issued_before_ms FROM denied WHERE name = $1";
        let row = sqlx::query(select).bind(name).fetch_optional(&mut *self.transaction).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// A later denial counts beside an earlier one of the same name; nothing makes one weaker. Whoever had joined by then is no member any more,
    /// also where only a relay still knows of it; who joined under the same name since then is another.
    pub async fn deny(&mut self, denial: &Denial, now_ms: i64, why: &str) -> Result<(), StoreError> {
        let upsert = "INSERT INTO denied (name, issued_before_ms, until_ms, at_ms, why) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (name) DO UPDATE SET \
             issued_before_ms = CASE WHEN excluded.issued_before_ms > denied.issued_before_ms THEN excluded.issued_before_ms \
                                     ELSE denied.issued_before_ms END, \
             until_ms = CASE WHEN excluded.until_ms > denied.until_ms THEN excluded.until_ms ELSE denied.until_ms END";
        sqlx::query(upsert)
            .bind(denial.name.clone())
            .bind(denial.issued_before_ms)
            .bind(denial.until_ms)
            .bind(now_ms)
            .bind(why)
            .execute(&mut *self.transaction)
            .await?;
        let members = "UPDATE members SET denied_ms = $2 WHERE name = $1 AND denied_ms IS NULL AND joined_ms <= $3";
        sqlx::query(members).bind(denial.name.clone()).bind(now_ms).bind(denial.issued_before_ms).execute(&mut *self.transaction).await?;
        // Nobody is led to a relay that was denied. Who joins under its name says anew where it is.
        let dials = "DELETE FROM dials WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM members WHERE name = $1 AND joined_ms > $2)";
        sqlx::query(dials).bind(denial.name.clone()).bind(denial.issued_before_ms).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Notes of each name which version of the list said it first.
    pub async fn note_denied(&mut self, list: &DenyList, version: Version) -> Result<(), StoreError> {
        for denial in &list.denied {
            sqlx::query("UPDATE denied SET epoch = $2, n = $3 WHERE name = $1 AND epoch IS NULL")
                .bind(denial.name.clone())
                .bind(i64::from(version.epoch))
                .bind(i64::from(version.n))
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }
}

async fn read_newest(connection: &mut AnyConnection, kind: u8) -> Result<Option<StoredPaper>, StoreError> {
    let select = "SELECT epoch, n, body FROM papers WHERE kind = $1 ORDER BY epoch DESC, n DESC LIMIT 1";
    let row = sqlx::query(select).bind(i64::from(kind)).fetch_optional(connection).await?;
    row.map(|row| {
        let version = Version { epoch: number(&row, 0)?, n: number(&row, 1)? };
        Ok(StoredPaper { version, body: row.try_get(2)? })
    })
    .transpose()
}

async fn read_paper(connection: &mut AnyConnection, kind: u8, version: Version) -> Result<Option<StoredPaper>, StoreError> {
    let select = "SELECT body FROM papers WHERE kind = $1 AND epoch = $2 AND n = $3";
    let row = sqlx::query(select)
        .bind(i64::from(kind))
        .bind(i64::from(version.epoch))
        .bind(i64::from(version.n))
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok(StoredPaper { version, body: row.try_get(0)? })).transpose()
}

fn number(row: &AnyRow, i: usize) -> Result<u32, StoreError> {
    row.try_get::<i64, _>(i)?.try_into().map_err(|_| StoreError::Other("what should be a number below 2^32 is none".into()))
}
