//! Async: deletion of what is older than it may be kept, a bounded piece per transaction, so that ingest gets its turn and a sweep that is
//! cut off goes on where it was. Numbers stay in *stored*: what was deleted doesn't come back.
//!
//! Each piece counts itself in `deleted`, in its own transaction, and names the objects of its rows in `doomed`: so a picture's row goes
//! first, then its object, whatever happens in between.

use muster_mesh::{ids::Lane, limits, link::hub_ranges::SpoolRow};
use sqlx::Row;

use super::{Store, StoreError, Writing, posts::TITLE_EXPIRED};
use crate::{
    ingest::placing::DAY_MS,
    ingest::plan::Retention,
    rows::{Table, Value, int, text},
};

/// How much one sweep deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub records: u64,
    /// Of records that stay.
    pub titles: u64,
    pub batches: u64,
    pub holds: u64,
    pub lines: u64,
    /// Of those who joined: certificates, tokens, denials, what was signed for them.
    pub identities: u64,
}

/// What was deleted of one kind on one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The last piece.
    pub at_ms: i64,
    /// A kind's table, or title, batches, holds, dropped, or a table of those who joined.
    pub kind: String,
    /// How long it was kept.
    pub days: i64,
    pub records: u64,
    /// Gone from the object store; the others follow.
    pub objects: u64,
}

const TITLE: &str = "title";
/// The columns that make a record's row unique.
const RECORD_KEY: [&str; 4] = ["day", "spool_id", "seq", "idx"];

impl Store {
    /// Deletes what is older than its retention at `now_ms`, at most `rows_max` rows in one transaction.
    pub async fn sweep(&self, now_ms: i64, retention: Retention, rows_max: i64) -> Result<Swept, StoreError> {
        let swept = Sweep { store: self, now_ms, retention, rows_max }.everything().await;
        self.keep_reserve().await;
        swept
    }

    /// Objects whose rows are gone, in their order, from behind `after` on.
    pub async fn doomed(&self, after: &str, most: i64) -> Result<Vec<String>, StoreError> {
        let select = "SELECT object FROM doomed WHERE object > $1 ORDER BY object LIMIT $2";
        let rows = sqlx::query(select).bind(after).bind(most).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// These objects are gone from the object store.
    pub async fn forget_doomed(&self, objects: &[String], now_ms: i64, retention: Retention) -> Result<(), StoreError> {
        let mut rows: Vec<_> = objects.iter().map(|object| vec![text(object)]).collect();
        rows.sort_unstable();
        let mut writing = self.write().await?;
        writing.take_turn(now_ms).await?;
        let gone = writing.put("DELETE FROM doomed WHERE object IN (", &rows, ")").await?;
        writing.report(now_ms, Table::Screenshot.name(), retention.days_of(Table::Screenshot), 0, gone).await?;
        writing.commit().await
    }

    /// What was deleted, the newest day first.
    pub async fn deletions(&self, most: i64) -> Result<Vec<Deletion>, StoreError> {
        let select = "SELECT at_ms, kind, days, records, objects FROM deleted ORDER BY day DESC, kind, days LIMIT $1";
        let rows = sqlx::query(select).bind(most).fetch_all(&self.readers).await?;
        let deletion = |row: &sqlx::any::AnyRow| {
            Ok(Deletion {
                at_ms: row.try_get(0)?,
                kind: row.try_get(1)?,
                days: row.try_get(2)?,
                records: row.try_get::<i64, _>(3)? as u64,
                objects: row.try_get::<i64, _>(4)? as u64,
            })
        };
        rows.iter().map(deletion).collect()
    }

    /// Forgets the digests of spools that need none any more, and of the others all but those of the newest numbers.
    pub async fn settle_spools(&self, now_ms: i64, rows_max: i64) -> Result<u64, StoreError> {
        let (mut settled, mut after) = (0, 0);
        let select = format!("SELECT id, numbers FROM spools WHERE settled = 0 AND id > $1 ORDER BY id LIMIT $2 {}", self.engine.locking());
        loop {
            let mut writing = self.write().await?;
            let query = sqlx::query(sqlx::AssertSqlSafe(select.clone())).bind(after).bind(rows_max);
            let rows = query.fetch_all(&mut *writing.transaction).await?;
            for row in &rows {
                after = row.try_get(0)?;
                let numbers: Vec<u8> = row.try_get(1)?;
                let Ok(numbers) = SpoolRow::from_bytes(&numbers) else { continue };
                if numbers.needs_no_digests(now_ms) {
                    writing.forget_digests(&[after]).await?;
                    let update = "UPDATE spools SET settled = 1 WHERE id = $1";
                    sqlx::query(update).bind(after).execute(&mut *writing.transaction).await?;
                    settled += 1;
                } else {
                    let oldest = numbers.stored().last().unwrap_or(0).saturating_sub(limits::DIGESTS_KEPT as u64);
                    let delete = "DELETE FROM digests WHERE spool_id = $1 AND seq <= $2";
                    sqlx::query(delete).bind(after).bind(oldest as i64).execute(&mut *writing.transaction).await?;
                }
            }
            writing.commit().await?;
            if rows.len() < rows_max as usize {
                return Ok(settled);
            }
        }
    }

    async fn device_numbers(&self) -> Result<Vec<i64>, StoreError> {
        let rows = sqlx::query("SELECT id FROM devices ORDER BY id").fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

struct Sweep<'a> {
    store: &'a Store,
    now_ms: i64,
    retention: Retention,
    rows_max: i64,
}

/// Rows of batches that a wrong clock placed in the future: they are no younger than their arrival.
const FUTURE: &str = "JOIN batches b ON b.spool_id = r.spool_id AND b.seq = r.seq WHERE r.day > $1 AND b.hub_ms < $2";

/// Rows of one table whose time is up.
struct Old<'a> {
    table: &'a str,
    key: &'a [&'a str],
    /// What stands behind `FROM <table> r`, with as many parameters as `binds` has.
    which: &'a str,
    binds: &'a [i64],
    /// How long they were kept.
    days: i64,
}

/// Rows about those who joined whose time is up.
struct Outlived {
    table: &'static str,
    key: &'static [&'static str],
    which: &'static str,
    days: i64,
}

/// Recoveries are counted over twelve months, and what a relay took of a denied device may come as late: a month more for clocks and backups.
const YEAR_AND_MONTH: i64 = 396;
const MONTH: i64 = 30;
/// What somebody held matters as long as a denial from that time stands here: as long as a certificate lives, and the months after it.
const DENIALS: i64 = 800;

/// Nothing of it is policy: these rows hold no day of anybody's. The newest of each stays, as does a control key: its number never comes back.
const OUTLIVED: [Outlived; 6] = [
    Outlived {
        table: "certificates",
        key: &["public_key"],
        which: "WHERE r.not_after_ms < $1 \
                AND EXISTS (SELECT 1 FROM certificates later WHERE later.name = r.name AND later.not_after_ms > r.not_after_ms)",
        days: YEAR_AND_MONTH,
    },
    Outlived { table: "join_tokens", key: &["id"], which: "WHERE r.ends_ms < $1", days: MONTH },
    Outlived { table: "token_keys", key: &["kid"], which: "WHERE r.ends_ms < $1", days: MONTH },
    Outlived { table: "denied", key: &["name"], which: "WHERE r.until_ms < $1", days: YEAR_AND_MONTH },
    Outlived {
        table: "papers",
        key: &["kind", "epoch", "n"],
        // What somebody holds tells the report before a rotation's step which roots they have.
        which: "WHERE r.at_ms < $1 AND EXISTS (SELECT 1 FROM papers later WHERE later.kind = r.kind AND (later.epoch, later.n) > (r.epoch, r.n)) \
                AND NOT EXISTS (SELECT 1 FROM held_versions held WHERE held.kind = r.kind AND held.epoch = r.epoch AND held.n = r.n)",
        days: MONTH,
    },
    Outlived {
        table: "held_versions",
        key: &["name", "kind", "epoch", "n"],
        which: "WHERE r.at_ms < $1 AND EXISTS (SELECT 1 FROM held_versions later \
                WHERE later.name = r.name AND later.kind = r.kind AND (later.epoch, later.n) > (r.epoch, r.n))",
        days: DENIALS,
    },
];

impl Sweep<'_> {
    async fn everything(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for table in Table::ALL {
            swept.records += self.records(table).await?;
        }
        swept.titles = self.titles().await?;
        swept.batches = self.batches().await?;
        swept.holds = self.holds().await?;
        swept.lines = self.received("dropped", &["spool_id", "seq"]).await?;
        for Outlived { table, key, which, days } in OUTLIVED {
            swept.identities += self.delete(&Old { table, key, which, binds: &[self.received_ms(days)], days }).await?;
        }
        Ok(swept)
    }

    async fn records(&self, table: Table) -> Result<u64, StoreError> {
        let days = self.retention.days_of(table);
        let old = Old { table: table.name(), key: &RECORD_KEY, which: "WHERE r.day < $1", binds: &[self.first_kept(days)], days };
        let future = Old { which: FUTURE, binds: &[self.tomorrow(), self.received_ms(days)], ..old };
        Ok(self.days(&old).await? + self.delete(&future).await?)
    }

    /// The oldest rows of a kind's table, piece by piece in the order of its key. Each piece is all up to its last row: so no row has to be
    /// found by its key, which not every table has.
    async fn days(&self, old: &Old<'_>) -> Result<u64, StoreError> {
        let key = RECORD_KEY.join(", ");
        let before = format!("day < {}", self.first_kept(old.days));
        // The bounds are a part of the text: PostgreSQL plans by them.
        let last = format!("SELECT {key} FROM {} WHERE {before} ORDER BY {key} LIMIT 1 OFFSET {}", old.table, self.rows_max - 1);
        let mut deleted = 0;
        while self.is_there(old).await? {
            let piece = match sqlx::query(sqlx::AssertSqlSafe(last.clone())).fetch_optional(&self.store.readers).await? {
                Some(row) => {
                    let [day, spool_id, seq, idx]: [i64; 4] = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?];
                    format!("day <= {day} AND ({key}) <= ({day}, {spool_id}, {seq}, {idx})")
                }
                None => before.clone(),
            };
            deleted += self.delete_by(old, format!("DELETE FROM {} WHERE {piece}", old.table), &[]).await?;
        }
        Ok(deleted)
    }

    async fn batches(&self) -> Result<u64, StoreError> {
        let days = self.retention.ceiling_days();
        let mut batches = 0;
        for device in self.store.device_numbers().await? {
            let (which, binds) = ("WHERE r.device_id = $1 AND r.day < $2", [device, self.first_kept(days)]);
            let old = Old { table: "batches", key: &["spool_id", "seq"], which, binds: &binds, days };
            let (which, binds) =
                ("WHERE r.device_id = $1 AND r.day > $2 AND r.hub_ms < $3", [device, self.tomorrow(), self.received_ms(days)]);
            batches += self.delete(&old).await? + self.delete(&Old { which, binds: &binds, ..old }).await?;
        }
        Ok(batches)
    }

    /// What nobody has read may hold anything of its lane: it goes by its arrival, and pictures with the pictures.
    async fn holds(&self) -> Result<u64, StoreError> {
        const KEY: [&str; 3] = ["spool_id", "seq", "digest"];
        let days = self.retention.days_of(Table::Screenshot);
        let binds = [i64::from(Lane::Pictures.as_u8()), self.received_ms(days)];
        let which = "JOIN spools s ON s.id = r.spool_id WHERE s.lane = $1 AND r.hub_ms < $2";
        let pictures = self.delete(&Old { table: "holds", key: &KEY, which, binds: &binds, days }).await?;
        Ok(pictures + self.received("holds", &KEY).await?)
    }

    /// Rows that go when they came as long ago as anything is kept.
    async fn received(&self, table: &str, key: &[&str]) -> Result<u64, StoreError> {
        let days = self.retention.ceiling_days();
        self.delete(&Old { table, key, which: "WHERE r.hub_ms < $1", binds: &[self.received_ms(days)], days }).await
    }

    /// Deletes piece by piece until there are no more.
    async fn delete(&self, old: &Old<'_>) -> Result<u64, StoreError> {
        let mut deleted = 0;
        // Looked for first: most tables of most sweeps have nothing, and that needs no transaction.
        while self.is_there(old).await? {
            deleted += self.delete_piece(old).await?;
        }
        Ok(deleted)
    }

    async fn is_there(&self, old: &Old<'_>) -> Result<bool, StoreError> {
        let select = format!("SELECT 1 FROM {} r {} LIMIT 1", old.table, old.which);
        let query = old.binds.iter().fold(sqlx::query(sqlx::AssertSqlSafe(select)), |query, number| query.bind(*number));
        Ok(query.fetch_optional(&self.store.readers).await?.is_some())
    }

    async fn delete_piece(&self, old: &Old<'_>) -> Result<u64, StoreError> {
        let key = old.key.join(", ");
        let of_row = old.key.iter().map(|column| format!("r.{column}")).collect::<Vec<_>>().join(", ");
        // The bound is a part of the text: PostgreSQL plans by it.
        let oldest = format!("SELECT {of_row} FROM {} r {} ORDER BY {of_row} LIMIT {}", old.table, old.which, self.rows_max);
        self.delete_by(old, format!("DELETE FROM {} WHERE ({key}) IN ({oldest})", old.table), old.binds).await
    }

    /// One piece, on a full disk in the room of the reserve.
    async fn delete_by(&self, old: &Old<'_>, delete: String, binds: &[i64]) -> Result<u64, StoreError> {
        match self.delete_once(old, delete.clone(), binds).await {
            Err(StoreError::Full) => {
                self.store.make_way().await;
                self.delete_once(old, delete, binds).await
            }
            done => done,
        }
    }

    /// In a transaction of its own, with its report.
    async fn delete_once(&self, old: &Old<'_>, delete: String, binds: &[i64]) -> Result<u64, StoreError> {
        let mut writing = self.store.write_to_delete().await?;
        writing.take_turn(self.now_ms).await?;
        let deleted = if old.table == Table::Screenshot.name() {
            writing.delete_pictures(&delete, binds, self.now_ms).await?
        } else {
            // A text that never comes again isn't kept prepared.
            let query = sqlx::query(sqlx::AssertSqlSafe(delete)).persistent(!binds.is_empty());
            let query = binds.iter().fold(query, |query, number| query.bind(*number));
            query.execute(&mut *writing.transaction).await?.rows_affected()
        };
        writing.report(self.now_ms, old.table, old.days, deleted, 0).await?;
        writing.commit().await?;
        Ok(deleted)
    }

    /// Takes the titles out of rows that stay.
    async fn titles(&self) -> Result<u64, StoreError> {
        let days = self.retention.titles_days();
        if days >= self.retention.days_of(Table::Focus) {
            return Ok(0);
        }
        let old = self.titles_of("WHERE r.day < $1 AND r.day < $2", [self.first_kept(days), i64::MAX]).await?;
        Ok(old + self.titles_of(FUTURE, [self.tomorrow(), self.received_ms(days)]).await?)
    }

    /// Row by row behind a cursor, so that those which have no title (any more) are passed once.
    async fn titles_of(&self, which: &str, binds: [i64; 2]) -> Result<u64, StoreError> {
        const KEY: &str = "r.day, r.spool_id, r.seq, r.idx";
        let select = format!(
            "SELECT {KEY} FROM focus r {which} AND r.title IS NOT NULL AND ({KEY}) > ($3, $4, $5, $6) ORDER BY {KEY} LIMIT {}",
            self.rows_max
        );
        let (mut taken, mut after) = (0, [i64::MIN; 4]);
        loop {
            let query =
                binds.iter().chain(&after).fold(sqlx::query(sqlx::AssertSqlSafe(select.clone())), |query, number| query.bind(*number));
            let rows = query.fetch_all(&self.store.readers).await?;
            let mut keys: Vec<Vec<Value>> = Vec::with_capacity(rows.len());
            for row in &rows {
                after = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?];
                keys.push(after.map(int).to_vec());
            }
            if !keys.is_empty() {
                taken += self.take_titles(&keys).await?;
            }
            if rows.len() < self.rows_max as usize {
                return Ok(taken);
            }
        }
    }

    async fn take_titles(&self, keys: &[Vec<Value>]) -> Result<u64, StoreError> {
        let update = format!(
            ") UPDATE focus SET title = NULL, title_key = {TITLE_EXPIRED} FROM v \
             WHERE focus.day = v.day AND focus.spool_id = v.spool_id AND focus.seq = v.seq AND focus.idx = v.idx"
        );
        let mut writing = self.store.write_to_delete().await?;
        writing.take_turn(self.now_ms).await?;
        let taken = writing.put("WITH v (day, spool_id, seq, idx) AS (", keys, &update).await?;
        writing.report(self.now_ms, TITLE, self.retention.titles_days(), taken, 0).await?;
        writing.commit().await?;
        Ok(taken)
    }

    /// The oldest day of which something is kept.
    fn first_kept(&self, days: i64) -> i64 {
        self.now_ms.div_euclid(DAY_MS).saturating_sub(days)
    }

    fn tomorrow(&self) -> i64 {
        self.now_ms.div_euclid(DAY_MS).saturating_add(1)
    }

    fn received_ms(&self, days: i64) -> i64 {
        self.now_ms.saturating_sub(days.saturating_mul(DAY_MS))
    }
}

impl Writing<'_> {
    /// Sweeps of several hubs wait for each other here, piece by piece.
    async fn take_turn(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let turn = "INSERT INTO settings (name, value) VALUES ('swept_ms', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        sqlx::query(turn).bind(now_ms).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Exactly the objects of the rows that go: another hub may add rows in between.
    async fn delete_pictures(&mut self, delete: &str, binds: &[i64], now_ms: i64) -> Result<u64, StoreError> {
        let delete = format!("{delete} RETURNING object");
        let query = binds.iter().fold(sqlx::query(sqlx::AssertSqlSafe(delete)), |query, number| query.bind(*number));
        let mut objects = Vec::new();
        for row in query.fetch_all(&mut *self.transaction).await? {
            objects.push(vec![text(&row.try_get::<String, _>(0)?), int(now_ms)]);
        }
        objects.sort_unstable();
        self.put("INSERT INTO doomed (object, at_ms)", &objects, "ON CONFLICT DO NOTHING").await?;
        Ok(objects.len() as u64)
    }

    async fn report(&mut self, now_ms: i64, kind: &str, days: i64, records: u64, objects: u64) -> Result<(), StoreError> {
        let raise = "INSERT INTO deleted (day, kind, days, at_ms, records, objects) VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (day, kind, days) DO UPDATE SET at_ms = excluded.at_ms, records = deleted.records + excluded.records, \
                     objects = deleted.objects + excluded.objects";
        sqlx::query(raise)
            .bind(now_ms.div_euclid(DAY_MS))
            .bind(kind)
            .bind(days)
            .bind(now_ms)
            .bind(records as i64)
            .bind(objects as i64)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}
