//! Async: the database. sqlx is named here and below, nowhere else.
//!
//! One text of SQL for SQLite and PostgreSQL, except for what [`bulk`] and [`engine`] write. Any number of hubs may use one PostgreSQL: what a
//! transaction will change it first locks in key order, and what is remembered between transactions never changes.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_mesh::complaint::Complaint;
use sqlx::{Any, AnyPool, Row, Transaction, migrate::MigrateError};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use engine::{Address, Engine, Mode};
use look_ups::LookUps;
use reserve::Reserve;

use crate::rows::{Shape, Value};

mod admins;
mod asks;
mod bulk;
mod census;
mod devices;
mod engine;
mod look_ups;
mod looks;
mod members;
mod papers;
mod pictures;
mod policies;
mod posts;
mod records;
mod relays;
mod reserve;
mod summary;
mod sweep;
mod token_keys;

pub use admins::Admin;
pub use asks::WaitingAsk;
pub use census::Census;
pub use devices::DeviceRow;
pub use looks::Look;
pub use members::{CertificateRow, Grant, MemberRow, MemberStanding, TokenRow};
pub use papers::{ControlKeyRow, ControlRow, StoredPaper};
pub use pictures::{KeptCapability, KeptPicture, NamedObject};
pub use policies::StoredPolicy;
pub use posts::{Loaded, NewBatch, NewHold, NewLine, NewObject, PostRows};
pub use records::{Answered, KeptBatch, KeptNumber};
pub use relays::DialRow;
pub use summary::Summary;
pub use sweep::{Deletion, Swept};
pub use token_keys::TokenKeyRow;

/// Below this SQLite can corrupt a database with a write-ahead log.
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);
const READERS: u32 = 4;
/// Whoever opens a database that is busy tries again for so long …
const BUSY_FOR: Duration = Duration::from_secs(5);
/// … this often.
const BUSY_EVERY: Duration = Duration::from_millis(50);
/// How long a request waits for a connection, for the one writer or for a lock: longer than any commit, shorter than a relay's patience.
const WAIT: Duration = Duration::from_secs(10);

/// The hub's database.
pub struct Store {
    engine: Engine,
    /// Where it is, for people.
    shown: String,
    writers: AnyPool,
    readers: AnyPool,
    look_ups: Mutex<LookUps>,
    reserve: Option<Reserve>,
    /// The disk is full and the reserve let go: only deletion writes.
    deletes_only: AtomicBool,
}

/// A transaction that may write. Dropped without [`commit`](Writing::commit), nothing of it happened.
pub struct Writing<'a> {
    transaction: Transaction<'static, Any>,
    store: &'a Store,
    /// What this transaction learned of look-ups: worth nothing unless it commits.
    learned: LookUps,
}

/// What the caller does next about a statement that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Locked, or all connections in use: the same again, a little later.
    #[error("the database is busy")]
    Busy,
    #[error("the disk of the database is full")]
    Full,
    /// Its file or server can't be reached.
    #[error("the database can't be reached: {0}")]
    Unreachable(String),
    /// The database says no to this very thing: the same again won't help.
    #[error("the database refuses: {0}")]
    Other(String),
}

impl StoreError {
    /// Whether the same may work later, without anything being changed.
    pub fn is_passing(&self) -> bool {
        match self {
            StoreError::Busy | StoreError::Full | StoreError::Unreachable(_) => true,
            StoreError::Other(_) => false,
        }
    }
}

/// What `check` finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// None: there is no database yet.
    pub version: Option<i64>,
    /// What this program would migrate it to.
    pub newest: i64,
    /// Whether `serve` does that, or only `migrate`.
    pub migrates_itself: bool,
}

impl Store {
    /// Opens the database for `serve`: SQLite is brought to this program's version, PostgreSQL has to have it.
    pub async fn open(url: &str) -> Result<Store, Complaint> {
        let store = Store::connect(&Address::parse(url)?, Mode::Write).await?;
        if store.engine.migrates_itself() {
            store.bring_to_newest().await?;
            store.keep_reserve().await;
            return Ok(store);
        }
        let (version, newest) = (store.version().await?, store.newest());
        if version < newest {
            let what = format!("The database at {} has version {version}, and this program needs {newest}", store.shown);
            return Err(Complaint::new(what, "Run `muster-hub migrate` once, then start every hub again"));
        }
        Ok(store)
    }

    /// Opens the database and brings it to this program's version, whichever it is.
    pub async fn migrate(url: &str) -> Result<Store, Complaint> {
        let store = Store::connect(&Address::parse(url)?, Mode::Write).await?;
        store.bring_to_newest().await?;
        Ok(store)
    }

    /// Looks at version and integrity. Changes nothing.
    pub async fn check(url: &str) -> Result<Checked, Complaint> {
        let address = Address::parse(url)?;
        let (newest, migrates_itself) = (newest(address.engine()), address.engine().migrates_itself());
        if address.is_missing() {
            return Ok(Checked { version: None, newest, migrates_itself });
        }
        let store = Store::connect(&address, Mode::Look).await?;
        let version = store.version().await?;
        let damage = store.damage(version).await.map_err(|error| unusable(&store.shown, &error))?;
        store.close().await;
        match damage {
            Some(damage) => Err(Complaint::new(
                format!("The database at {} is damaged: {damage}", store.shown),
                "Restore it from a backup and start with --restored",
            )),
            None => Ok(Checked { version: Some(version), newest, migrates_itself }),
        }
    }

    /// Opens the database to read only. None: there is none, or it isn't of this program's version.
    pub async fn look(url: &str) -> Result<Option<Store>, Complaint> {
        let address = Address::parse(url)?;
        if address.is_missing() {
            return Ok(None);
        }
        let store = Store::connect(&address, Mode::Look).await?;
        Ok((store.version().await? == store.newest()).then_some(store))
    }

    async fn connect(address: &Address, mode: Mode) -> Result<Store, Complaint> {
        let (engine, shown) = (address.engine(), address.shown());
        let unusable = |error: StoreError| unusable(&shown, &error);
        let options = address.options(mode).map_err(unusable)?;
        if let Err(error) = patiently(async || address.probe(&options, mode).await).await {
            // Opening makes a file, and a full disk has no room for it.
            let way =
                mode == Mode::Write && error.is_passing() && address.reserve().is_some_and(|reserve| reserve.let_go().unwrap_or(false));
            let error = if way { address.probe(&options, mode).await.err() } else { Some(error) };
            error.map_or(Ok(()), Err).map_err(unusable)?;
        }
        let writers = address.pool(&options, mode, engine.writers());
        let readers = address.pool(&options, mode, READERS);
        let (look_ups, reserve, deletes_only) = (Mutex::default(), address.reserve(), AtomicBool::new(false));
        let store = Store { engine, shown, writers, readers, look_ups, reserve, deletes_only };
        store.refuse_old_engine().await?;
        Ok(store)
    }

    async fn refuse_old_engine(&self) -> Result<(), Complaint> {
        if self.engine != Engine::Sqlite {
            return Ok(());
        }
        let select = async || Ok(sqlx::query("SELECT sqlite_version()").fetch_one(&self.writers).await?.try_get(0)?);
        let version: String = patiently(select).await.map_err(|error| unusable(&self.shown, &error))?;
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        if (next(), next(), next()) >= SQLITE_MIN {
            return Ok(());
        }
        Err(Complaint::new(
            format!("This program was built with SQLite {version}, which can damage a database"),
            "Build it with SQLite 3.51.3 or newer",
        ))
    }

    /// Applies what is missing. A database from a newer program is left as it is.
    async fn bring_to_newest(&self) -> Result<(), Complaint> {
        let mut before = self.version().await?;
        loop {
            let Err(error) = self.engine.migrations().run(&self.writers).await else { return Ok(()) };
            // SQLite has no lock around migrations: a verb and `serve` at their first start may both begin. Whoever was slower goes on from there.
            let after = self.version().await?;
            if after <= before {
                return Err(self.not_brought(error));
            }
            before = after;
        }
    }

    fn not_brought(&self, error: MigrateError) -> Complaint {
        match error {
            MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => made_by_another_build(),
            other => Complaint::new(
                format!("The database at {} can't be brought to this program's version: {other}", self.shown),
                "Check its disk and that its user may make tables, then start again",
            ),
        }
    }

    /// The highest migration that was applied; 0 for an empty database. One that this program doesn't know is complained of.
    async fn version(&self) -> Result<i64, Complaint> {
        let applied = patiently(async || self.applied().await).await.map_err(|error| unusable(&self.shown, &error))?;
        let (version, newest) = (applied.last().map_or(0, |(version, _)| *version), self.newest());
        if version > newest {
            let what = format!("The database at {} has version {version}, and this program knows only up to {newest}", self.shown);
            return Err(Complaint::new(format!("{what}; nothing was touched"), "Start the newer muster-hub that made it"));
        }
        let own: Vec<_> = self.engine.migrations().iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect();
        if !own.starts_with(&applied) {
            return Err(made_by_another_build());
        }
        Ok(version)
    }

    /// Version and digest of each migration, lowest first.
    async fn applied(&self) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        const TABLE: &str = "_sqlx_migrations";
        let tables: i64 = sqlx::query(self.engine.count_tables()).bind(TABLE).fetch_one(&self.readers).await?.try_get(0)?;
        if tables == 0 {
            return Ok(Vec::new());
        }
        let rows = sqlx::query("SELECT version, checksum FROM _sqlx_migrations ORDER BY version").fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    fn newest(&self) -> i64 {
        newest(self.engine)
    }

    /// What is wrong with the database itself, as far as a look can tell.
    async fn damage(&self, version: i64) -> Result<Option<String>, StoreError> {
        match self.engine {
            Engine::Sqlite => {
                let first: String = sqlx::query("PRAGMA quick_check(5)").fetch_one(&self.readers).await?.try_get(0)?;
                Ok((first != "ok").then_some(first))
            }
            // It checks its pages itself as it reads them; what we can see is whether our tables are all there and answer.
            Engine::Postgres if version == self.newest() => {
                for table in TABLES {
                    let select = format!("SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT 1) t");
                    if let Err(error) = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_one(&self.readers).await {
                        return match error {
                            sqlx::Error::Database(error) => Ok(Some(format!("its table {table} doesn't answer ({error})"))),
                            other => Err(other.into()),
                        };
                    }
                }
                Ok(None)
            }
            Engine::Postgres => Ok(None),
        }
    }

    /// Begins a transaction that may write. In SQLite it waits for the one before it.
    pub async fn write(&self) -> Result<Writing<'_>, StoreError> {
        if self.deletes_only.load(Ordering::Relaxed) {
            return Err(StoreError::Full);
        }
        self.write_to_delete().await
    }

    /// The same for what makes room.
    async fn write_to_delete(&self) -> Result<Writing<'_>, StoreError> {
        let transaction = self.writers.begin_with(self.engine.begin_writing()).await?;
        Ok(Writing { transaction, store: self, learned: LookUps::default() })
    }

    /// The disk is full: lets the reserve go, for deletion alone.
    async fn make_way(&self) {
        if self.on_reserve(Reserve::let_go).await.is_some_and(|gone| gone.unwrap_or(false)) {
            tracing::warn!("the disk of the database is full: nothing is taken until what is kept too long is deleted");
            self.deletes_only.store(true, Ordering::Relaxed);
        }
        // Where it has room for this it needs no more; else the log grows into what the reserve was.
        if let Err(error) = self.cut_log().await {
            tracing::debug!(%error, "the database's log can't be cut back yet");
        }
    }

    /// Makes the reserve where it isn't, and lets others write again.
    async fn keep_reserve(&self) {
        if self.deletes_only.load(Ordering::Relaxed)
            && let Err(error) = self.cut_log().await
        {
            tracing::warn!(%error, "the database's log can't be cut back");
        }
        if let Some(Err(error)) = self.on_reserve(Reserve::make).await {
            tracing::warn!(%error, "the database's disk has no room for a reserve: when it is full, deletion may fail");
        }
        self.deletes_only.store(false, Ordering::Relaxed);
    }

    /// None: there is none to be had, or the program ends.
    async fn on_reserve<T: Send + 'static>(&self, act: impl FnOnce(&Reserve) -> io::Result<T> + Send + 'static) -> Option<io::Result<T>> {
        let reserve = self.reserve.clone()?;
        spawn_blocking(move || act(&reserve)).await.ok()
    }

    async fn cut_log(&self) -> Result<(), StoreError> {
        if let Some(statement) = self.engine.cut_log() {
            sqlx::query(statement).fetch_optional(&self.writers).await?;
        }
        Ok(())
    }

    /// Begins a transaction that only reads: all its statements see the same.
    async fn read(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.readers.begin_with(self.engine.begin_reading()).await?)
    }

    /// Whether other hubs may use it, too.
    pub fn is_shared(&self) -> bool {
        self.engine == Engine::Postgres
    }

    /// Whether the database answers.
    pub async fn is_up(&self) -> bool {
        sqlx::query("SELECT 1").fetch_one(&self.readers).await.is_ok()
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }

    fn look_ups(&self) -> MutexGuard<'_, LookUps> {
        // Nothing under this lock panics half-way through a change.
        self.look_ups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing<'_> {
    /// After this everything written lies on the disk.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        self.store.look_ups().remember(self.learned);
        Ok(())
    }

    /// Runs `before <rows> after`, see [`bulk`].
    async fn put(&mut self, before: &str, rows: &[Vec<Value>], after: &str) -> Result<u64, StoreError> {
        bulk::execute(&mut self.transaction, self.store.engine, before, rows, after).await
    }

    /// Reads what `before <keys> after` answers, see [`bulk`].
    async fn find(&mut self, before: &str, keys: &[Vec<Value>], after: &str, shapes: &[Shape]) -> Result<Vec<Vec<Value>>, StoreError> {
        bulk::select(&mut self.transaction, self.store.engine, before, keys, after, shapes).await
    }
}

/// All tables that this version has.
const TABLES: [&str; 40] = [
    "settings",
    "counters",
    "relays",
    "zones",
    "applications",
    "versions",
    "contexts",
    "devices",
    "spools",
    "digests",
    "boots",
    "instances",
    "batches",
    "holds",
    "dropped",
    "alarms",
    "heartbeat",
    "activity",
    "focus",
    "screenshot",
    "session",
    "network",
    "capability",
    "gap",
    "policies",
    "admins",
    "looks",
    "deleted",
    "doomed",
    "join_tokens",
    "members",
    "certificates",
    "dials",
    "guests",
    "control_keys",
    "token_keys",
    "papers",
    "denied",
    "held_versions",
    "door_asks",
];

fn newest(engine: Engine) -> i64 {
    engine.migrations().iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn made_by_another_build() -> Complaint {
    Complaint::new("The database was made by another build of muster-hub", "Use the program that made it, or another database")
}

/// A new SQLite file changes to its log once, and the last who leaves cleans up: neither waits for anybody, and of programs that make a file together
/// all but one are told at once that it is busy.
async fn patiently<T>(mut what: impl AsyncFnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let deadline = Instant::now() + BUSY_FOR;
    loop {
        match what().await {
            Err(StoreError::Busy) if Instant::now() < deadline => sleep(BUSY_EVERY).await,
            done => return done,
        }
    }
}

fn unusable(shown: &str, error: &StoreError) -> Complaint {
    let todo =
        "Check that its address is right, that its folder may be written or its server answers, and that it is a database of muster-hub";
    Complaint::new(format!("The database at {shown} can't be used ({error})"), todo)
}
