//! Async: the database. sqlx is named here and below, nowhere else.
//!
//! One text of SQL: SQLite runs it now, PostgreSQL takes it too, except for what [`bulk`] writes. One writer at a time: a POST's transaction
//! holds the [`Writing`], and with it the numbers of look-up rows, which are remembered only after its commit.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use muster_mesh::complaint::Complaint;
use sqlx::{
    Any, AnyConnection, AnyPool, Connection, Executor, Row, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migrator},
};
use tokio::sync::{Mutex, MutexGuard};

use look_ups::LookUps;

mod admins;
mod bulk;
mod devices;
mod look_ups;
mod looks;
mod policies;
mod posts;
mod records;
mod summary;
mod sweep;

pub use admins::Admin;
pub use devices::DeviceRow;
pub use looks::Look;
pub use policies::StoredPolicy;
pub use posts::{Loaded, NewBatch, NewHold, NewLine, PostRows};
pub use records::{Answered, KeptBatch, KeptNumber};
pub use summary::Summary;
pub use sweep::Swept;

/// Below this SQLite can corrupt a database with a write-ahead log.
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);
const READERS: u32 = 4;
/// How long a request waits for a connection or for the one writer: longer than any commit, shorter than a relay's patience.
const WAIT: Duration = Duration::from_secs(10);
/// Cache for the pages of recent days, in KiB, per connection.
const CACHE_KIB: u32 = 64 * 1024;

/// Pages of the write-ahead log before they are copied into the database: a page that many POSTs touch is then copied once for all.
const LOG_PAGES: u32 = 32_768;
/// The log is cut back to this size after that.
const LOG_BYTES_KEPT: u32 = 64 << 20;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The hub's database.
pub struct Store {
    writer: AnyPool,
    readers: AnyPool,
    look_ups: Mutex<LookUps>,
}

/// A transaction that may write. Dropped without [`commit`](Writing::commit), nothing of it happened.
pub struct Writing<'a> {
    transaction: Transaction<'static, Any>,
    look_ups: MutexGuard<'a, LookUps>,
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
}

impl Store {
    /// Opens the database and, where it is SQLite, brings it to this program's version.
    pub async fn open(url: &str) -> Result<Store, Complaint> {
        let store = Store::connect(url, Mode::Write).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Looks at version and integrity. Changes nothing.
    pub async fn check(url: &str) -> Result<Checked, Complaint> {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        if !sqlite_file(url)?.exists() {
            return Ok(Checked { version: None, newest });
        }
        let store = Store::connect(url, Mode::Look).await?;
        let version = store.version().await.map_err(|error| unusable(url, &error))?;
        store.refuse_newer(url, version, newest)?;
        let found: Vec<String> = sqlx::query("PRAGMA quick_check(5)")
            .fetch_all(&store.readers)
            .await
            .and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect())
            .map_err(|error| unusable(url, &error.into()))?;
        store.close().await;
        match found.first() {
            Some(first) if first != "ok" => Err(Complaint::new(
                format!("The database at {url} is damaged: {first}"),
                "Restore it from a backup and start with --restored",
            )),
            _ => Ok(Checked { version: Some(version), newest }),
        }
    }

    async fn connect(url: &str, mode: Mode) -> Result<Store, Complaint> {
        sqlx::any::install_default_drivers();
        let file = sqlite_file(url)?;
        if matches!(mode, Mode::Write) {
            make_owner_only(&file).map_err(|error| unusable(url, &StoreError::Unreachable(error.to_string())))?;
        }
        let full = match mode {
            Mode::Write => format!("sqlite://{}?mode=rwc", file.display()),
            // Without a log beside it nobody has it open, and even the files for sharing it are left unmade.
            Mode::Look if !log_of(&file).exists() => format!("sqlite://{}?mode=ro&immutable=true", file.display()),
            Mode::Look => format!("sqlite://{}?mode=ro", file.display()),
        };
        let options = AnyConnectOptions::from_str(&full).map_err(|error| unusable(url, &error.into()))?;
        // A pool tries again and again, and then only says that it took too long; one connection says at once what is wrong.
        probe(&options, mode).await.map_err(|error| unusable(url, &error.into()))?;
        let pool = |connections: u32| {
            AnyPoolOptions::new().max_connections(connections).acquire_timeout(WAIT).after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(mode.pragmas()).await?;
                    Ok(())
                })
            })
        };
        let writer = pool(1).connect_with(options.clone()).await.map_err(|error| unusable(url, &error.into()))?;
        let store = Store { writer, readers: pool(READERS).connect_lazy_with(options), look_ups: Mutex::default() };
        store.refuse_old_engine().await?;
        Ok(store)
    }

    async fn refuse_old_engine(&self) -> Result<(), Complaint> {
        let version: String = sqlx::query("SELECT sqlite_version()")
            .fetch_one(&self.writer)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(|error| unusable("its address", &error.into()))?;
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
    async fn migrate(&self) -> Result<(), Complaint> {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        let version = self.version().await.map_err(|error| unusable("its address", &error))?;
        self.refuse_newer("its address", version, newest)?;
        MIGRATIONS.run(&self.writer).await.map_err(|error| match error {
            MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
                Complaint::new("The database was made by another build of muster-hub", "Use the program that made it, or another database")
            }
            other => Complaint::new(
                format!("The database can't be brought to this program's version: {other}"),
                "Check its disk, then start again",
            ),
        })
    }

    fn refuse_newer(&self, url: &str, version: i64, newest: i64) -> Result<(), Complaint> {
        if version <= newest {
            return Ok(());
        }
        Err(Complaint::new(
            format!("The database at {url} has version {version}, and this program knows only up to {newest}; nothing was touched"),
            "Start the newer muster-hub that made it",
        ))
    }

    /// The highest migration that was applied; 0 for an empty database.
    async fn version(&self) -> Result<i64, StoreError> {
        let table = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'";
        let tables: i64 = sqlx::query(table).fetch_one(&self.writer).await?.try_get(0)?;
        if tables == 0 {
            return Ok(0);
        }
        let row = sqlx::query("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations").fetch_one(&self.writer).await?;
        Ok(row.try_get(0)?)
    }

    /// Begins a transaction that may write. Waits for the one before it.
    pub async fn write(&self) -> Result<Writing<'_>, StoreError> {
        let look_ups = tokio::time::timeout(WAIT, self.look_ups.lock()).await.map_err(|_| StoreError::Busy)?;
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Writing { transaction, look_ups, learned: LookUps::default() })
    }

    /// Whether the database answers.
    pub async fn is_up(&self) -> bool {
        sqlx::query("SELECT 1").fetch_one(&self.readers).await.is_ok()
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl Writing<'_> {
    /// After this everything written lies on the disk.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        self.look_ups.remember(self.learned);
        Ok(())
    }
}

async fn probe(options: &AnyConnectOptions, mode: Mode) -> Result<(), sqlx::Error> {
    let mut connection = AnyConnection::connect_with(options).await?;
    connection.execute(mode.pragmas()).await?;
    connection.execute("SELECT COUNT(*) FROM sqlite_master").await?;
    connection.close().await
}

#[derive(Clone, Copy)]
enum Mode {
    Write,
    /// Reads only, so that `check` changes nothing.
    Look,
}

impl Mode {
    fn pragmas(self) -> sqlx::AssertSqlSafe<String> {
        sqlx::AssertSqlSafe(match self {
            Mode::Write => format!(
                "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB}; \
                 PRAGMA wal_autocheckpoint = {LOG_PAGES}; PRAGMA journal_size_limit = {LOG_BYTES_KEPT};"
            ),
            Mode::Look => "PRAGMA busy_timeout = 5000; PRAGMA query_only = ON;".into(),
        })
    }
}

/// The database's file: `sqlite:///absolute/path` or `sqlite://~/path`.
fn sqlite_file(url: &str) -> Result<PathBuf, Complaint> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or_default();
    if path.is_empty() || path.contains('?') {
        let what = format!("store.url is {url:?}, which this program can't open");
        return Err(Complaint::new(what, "Give a file, such as sqlite:///var/lib/muster-hub/muster.db"));
    }
    Ok(muster_mesh::config::expand(Path::new(path)))
}

/// A new database is its owner's alone: people's days are in it. SQLite gives the files beside it the same rights.
fn make_owner_only(file: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// SQLite's write-ahead log: there while a database is open, or after a crash.
fn log_of(file: &Path) -> PathBuf {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

fn unusable(url: &str, error: &StoreError) -> Complaint {
    let todo = "Check that the path is right, that its folder may be written, and that it is a database of muster-hub";
    Complaint::new(format!("The database at {url} can't be used ({error})"), todo)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().and_then(|code| code.parse::<i64>().ok()).unwrap_or(0);
                match code & 0xff {
                    SQLITE_BUSY | SQLITE_LOCKED => StoreError::Busy,
                    SQLITE_FULL => StoreError::Full,
                    SQLITE_READONLY | SQLITE_IOERR | SQLITE_CANTOPEN => StoreError::Unreachable(error.to_string()),
                    _ => StoreError::Other(error.to_string()),
                }
            }
            sqlx::Error::PoolTimedOut => StoreError::Busy,
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Tls(_) => {
                StoreError::Unreachable(error.to_string())
            }
            _ => StoreError::Other(error.to_string()),
        }
    }
}

const SQLITE_BUSY: i64 = 5;
const SQLITE_LOCKED: i64 = 6;
const SQLITE_READONLY: i64 = 8;
const SQLITE_IOERR: i64 = 10;
const SQLITE_FULL: i64 = 13;
const SQLITE_CANTOPEN: i64 = 14;
