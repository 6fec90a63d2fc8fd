//! Async: which database it is, how it is reached, and what its driver's errors mean. All other files below `store` are alike for both.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use muster_mesh::complaint::Complaint;
use sqlx::{
    AnyConnection, AnyPool, Connection, Executor,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::Migrator,
    postgres::PgConnectOptions,
};

use super::{StoreError, WAIT, reserve::Reserve};

/// Cache for the pages of recent days, in KiB, per connection.
const CACHE_KIB: u32 = 64 * 1024;
/// Pages of the write-ahead log before they are copied into the database: a page that many POSTs touch is then copied once for all.
const LOG_PAGES: u32 = 32_768;
/// The log is cut back to this size after that.
const LOG_BYTES_KEPT: u32 = 64 << 20;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// Where a database is.
#[derive(Debug, Clone)]
pub enum Address {
    /// `sqlite:///absolute/path` or `sqlite://~/path`
    File(PathBuf),
    /// `postgres://user:password@host:port/database`
    Server {
        url: String,
        /// The same for people and logs: without user and password.
        shown: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Write,
    /// Reads only, so that `check` changes nothing.
    Look,
}

impl Engine {
    pub fn migrations(self) -> &'static Migrator {
        match self {
            Engine::Sqlite => &SQLITE,
            Engine::Postgres => &POSTGRES,
        }
    }

    /// Whether `serve` brings the database to this program's version: a file belongs to one hub, a server's database to all of them.
    pub fn migrates_itself(self) -> bool {
        match self {
            Engine::Sqlite => true,
            Engine::Postgres => false,
        }
    }

    /// Connections that may write. SQLite has one writer; the others' turn comes when it commits.
    pub fn writers(self) -> u32 {
        match self {
            Engine::Sqlite => 1,
            Engine::Postgres => 8,
        }
    }

    /// Begins a transaction that may write: SQLite locks everything, PostgreSQL the rows that a statement names.
    pub fn begin_writing(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// Begins a transaction whose statements all see the same.
    pub fn begin_reading(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    /// What stands behind a `SELECT … ORDER BY key` whose rows will be written: they are locked in that order, and read as they are then.
    pub fn locking(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE",
        }
    }

    /// Holds a text until the transaction ends, where several write at a time. (A count, since the lock itself is of no type that rows have.)
    pub fn locking_text(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => Some("SELECT COUNT(pg_advisory_xact_lock(hashtextextended($1, 0)))"),
        }
    }

    /// Copies the write-ahead log into the database, where there is one, so that it is written from its begin again: the room that it has on
    /// the disk is enough then.
    pub fn cut_log(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => Some("PRAGMA wal_checkpoint(RESTART)"),
            Engine::Postgres => None,
        }
    }

    /// Counts the tables of this name.
    pub fn count_tables(self) -> &'static str {
        match self {
            Engine::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
            Engine::Postgres => {
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = CAST($1 AS TEXT)"
            }
        }
    }

    /// Makes each new connection what it has to be.
    fn settings(self, mode: Mode) -> String {
        match (self, mode) {
            (Engine::Sqlite, Mode::Write) => format!(
                "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB}; \
                 PRAGMA wal_autocheckpoint = {LOG_PAGES}; PRAGMA journal_size_limit = {LOG_BYTES_KEPT};"
            ),
            (Engine::Sqlite, Mode::Look) => "PRAGMA busy_timeout = 5000; PRAGMA query_only = ON;".into(),
            // A commit that isn't on the disk acknowledges nothing. No lock is waited for longer than for a connection, and a hub that hangs
            // in a transaction loses it. Plans don't depend on the values: each statement finds its rows by a key.
            (Engine::Postgres, Mode::Write) => format!(
                "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'; \
                 SET lock_timeout = '{wait}s'; SET idle_in_transaction_session_timeout = '{hung}s'; SET plan_cache_mode = force_generic_plan;",
                wait = WAIT.as_secs(),
                hung = 3 * WAIT.as_secs(),
            ),
            (Engine::Postgres, Mode::Look) => "SET default_transaction_read_only = on;".into(),
        }
    }
}

impl Address {
    pub fn parse(url: &str) -> Result<Address, Complaint> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return server(url);
        }
        let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or_default();
        if path.is_empty() || path.contains('?') {
            // Whatever else it is may hold a password.
            let scheme = url.split(':').next().unwrap_or_default();
            let what = format!("store.url begins with {scheme:?}, and this program can't open what it says");
            return Err(Complaint::new(
                what,
                "Give a file, such as sqlite:///var/lib/muster-hub/muster.db, or postgres://user:password@host/database",
            ));
        }
        Ok(Address::File(muster_mesh::config::expand(Path::new(path))))
    }

    pub fn engine(&self) -> Engine {
        match self {
            Address::File(_) => Engine::Sqlite,
            Address::Server { .. } => Engine::Postgres,
        }
    }

    /// For people: never with a password.
    pub fn shown(&self) -> String {
        match self {
            Address::File(file) => file.display().to_string(),
            Address::Server { shown, .. } => shown.clone(),
        }
    }

    /// What is kept free for deletion: a server sees to its own disk.
    pub fn reserve(&self) -> Option<Reserve> {
        match self {
            Address::File(file) => Some(Reserve::beside(file)),
            Address::Server { .. } => None,
        }
    }

    /// Whether nothing is there yet, as far as can be seen without a connection.
    pub fn is_missing(&self) -> bool {
        match self {
            Address::File(file) => !file.exists(),
            Address::Server { .. } => false,
        }
    }

    pub fn options(&self, mode: Mode) -> Result<AnyConnectOptions, StoreError> {
        sqlx::any::install_default_drivers();
        let full = match (self, mode) {
            (Address::File(file), Mode::Write) => {
                make_owner_only(file).map_err(|error| StoreError::Unreachable(error.to_string()))?;
                format!("sqlite://{}?mode=rwc", file.display())
            }
            // Without a log beside it nobody has it open, and even the files for sharing it are left unmade.
            (Address::File(file), Mode::Look) if !log_of(file).exists() => format!("sqlite://{}?mode=ro&immutable=true", file.display()),
            (Address::File(file), Mode::Look) => format!("sqlite://{}?mode=ro", file.display()),
            (Address::Server { url, .. }, _) => url.clone(),
        };
        Ok(AnyConnectOptions::from_str(&full)?)
    }

    /// A pool tries again and again, and then only says that it took too long; one connection says at once what is wrong.
    pub async fn probe(&self, options: &AnyConnectOptions, mode: Mode) -> Result<(), StoreError> {
        let connect = async {
            let mut connection = AnyConnection::connect_with(options).await?;
            connection.execute(sqlx::AssertSqlSafe(self.engine().settings(mode))).await?;
            sqlx::query(self.engine().count_tables()).bind("").fetch_one(&mut connection).await?;
            connection.close().await
        };
        // A server behind a broken line answers never.
        tokio::time::timeout(WAIT, connect).await.map_err(|_| StoreError::Unreachable("it doesn't answer".into()))??;
        Ok(())
    }

    pub fn pool(&self, options: &AnyConnectOptions, mode: Mode, connections: u32) -> AnyPool {
        let settings = self.engine().settings(mode);
        let options = options.clone();
        AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(WAIT)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    connection.execute(sqlx::AssertSqlSafe(settings)).await?;
                    Ok(())
                })
            })
            // SQLite rolls back by itself when its disk is full, and the driver counts on: such a connection is closed and made anew.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_lazy_with(options)
    }
}

fn server(url: &str) -> Result<Address, Complaint> {
    let Ok(options) = PgConnectOptions::from_str(url) else {
        return Err(Complaint::new("store.url isn't the address of a PostgreSQL", "Give postgres://user:password@host:port/database"));
    };
    let Some(database) = options.get_database() else {
        return Err(Complaint::new("store.url names no database", "Give postgres://user:password@host:port/database"));
    };
    let shown = format!("postgres://{}:{}/{database}", options.get_host(), options.get_port());
    Ok(Address::Server { url: url.to_owned(), shown })
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                let fate = if code.len() == SQLSTATE_CHARS { of_postgres(&code) } else { of_sqlite(&code) };
                fate(error.to_string())
            }
            sqlx::Error::PoolTimedOut => StoreError::Busy,
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Tls(_) => {
                StoreError::Unreachable(error.to_string())
            }
            // The server broke off in the middle of an answer.
            sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed => StoreError::Unreachable(error.to_string()),
            _ => StoreError::Other(error.to_string()),
        }
    }
}

/// PostgreSQL's codes have five characters, and SQLite's numbers never as many.
const SQLSTATE_CHARS: usize = 5;

type Fate = fn(String) -> StoreError;
const BUSY: Fate = |_| StoreError::Busy;
const FULL: Fate = |_| StoreError::Full;

fn of_postgres(code: &str) -> Fate {
    match code {
        // A serialization failure, a deadlock, a lock that wasn't had in time, a transaction that took too long.
        "40001" | "40P01" | "55P03" | "25P03" | "57014" => BUSY,
        // No memory, no connection left.
        "53200" | "53300" => BUSY,
        "53100" => FULL,
        // It reads only (a standby), doesn't let us in, has no such database, an I/O error.
        "25006" | "28000" | "28P01" | "3D000" | "58030" => StoreError::Unreachable,
        // A connection that broke, a server that stops or starts.
        _ if code.starts_with("08") || code.starts_with("57P") => StoreError::Unreachable,
        _ => StoreError::Other,
    }
}

fn of_sqlite(code: &str) -> Fate {
    const SQLITE_BUSY: i64 = 5;
    const SQLITE_LOCKED: i64 = 6;
    const SQLITE_READONLY: i64 = 8;
    const SQLITE_IOERR: i64 = 10;
    const SQLITE_FULL: i64 = 13;
    const SQLITE_CANTOPEN: i64 = 14;
    match code.parse::<i64>().unwrap_or(0) & 0xff {
        SQLITE_BUSY | SQLITE_LOCKED => BUSY,
        SQLITE_FULL => FULL,
        SQLITE_READONLY | SQLITE_IOERR | SQLITE_CANTOPEN => StoreError::Unreachable,
        _ => StoreError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let address = Address::parse("postgres://muster:gehe1m@db.example:5433/attendance?sslmode=require").unwrap();
        assert_eq!((address.engine(), address.shown().as_str()), (Engine::Postgres, "postgres://db.example:5433/attendance"));
        assert_eq!(Address::parse("sqlite:///a/b.db").unwrap().shown(), "/a/b.db");
        for bad in
            ["mysql://muster:gehe1m@host/x", "postgres://muster:gehe1m@host", "postgres://muster:gehe1m@host:port/x", "", "sqlite://"]
        {
            let complaint = Address::parse(bad).unwrap_err().to_string();
            assert!(complaint.contains("store.url") && !complaint.contains("gehe1m"), "{complaint}");
        }
    }

    #[test]
    fn each_engines_codes_say_what_to_do_next() {
        let of = |fate: Fate| fate("why".into());
        for (code, passing) in [("40001", true), ("40P01", true), ("53100", true), ("57P01", true), ("23505", false), ("42P01", false)] {
            assert_eq!(of(of_postgres(code)).is_passing(), passing, "{code}");
        }
        for (code, passing) in [("5", true), ("517", true), ("13", true), ("3338", true), ("2067", false), ("1", false)] {
            assert_eq!(of(of_sqlite(code)).is_passing(), passing, "{code}");
        }
    }
}
