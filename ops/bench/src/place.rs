//! Async: a fresh place for one run: a folder, and a database in it or on the server that `MUSTER_TEST_POSTGRES` names.

use std::path::Path;

use anyhow::Context;
use muster_hub::store::Store;
use muster_mesh::chance;
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

const SERVER: &str = "MUSTER_TEST_POSTGRES";

pub struct Place {
    folder: TempDir,
    url: String,
    /// The server's address and the database's name.
    server: Option<(String, String)>,
}

impl Place {
    /// `sqlite` or `postgres`; a database of the second has the hub's tables.
    pub async fn new(engine: &str) -> anyhow::Result<Place> {
        let folder = tempfile::tempdir_in(".")?;
        if engine == "sqlite" {
            let url = format!("sqlite://{}", std::path::absolute(folder.path())?.join("muster.db").display());
            return Ok(Place { folder, url, server: None });
        }
        let server = std::env::var(SERVER).with_context(|| format!("{SERVER} names no server; see ops/engines"))?;
        let name = format!("bench_{:016x}", chance::random_u64());
        execute(&server, format!("CREATE DATABASE {name}")).await?;
        let (address, _) = server.rsplit_once('/').context("the server's address has no database")?;
        let url = format!("{address}/{name}");
        Store::migrate(&url).await?.close().await;
        Ok(Place { folder, url, server: Some((server, name)) })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn is_sqlite(&self) -> bool {
        self.server.is_none()
    }

    /// What the database takes on the disk; 0 for one that isn't there yet.
    pub async fn bytes(&self) -> anyhow::Result<u64> {
        let sql = if self.is_sqlite() {
            // As it is after its log was copied into it.
            "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        } else {
            "SELECT pg_database_size(current_database())"
        };
        if self.is_sqlite() && !self.folder.path().join("muster.db").exists() {
            return Ok(0);
        }
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&self.url).await?;
        let bytes: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(bytes.try_into()?)
    }

    /// Drops what it made on the server.
    pub async fn leave(self) -> anyhow::Result<()> {
        match &self.server {
            Some((server, name)) => execute(server, format!("DROP DATABASE {name} WITH (FORCE)")).await,
            None => Ok(()),
        }
    }
}

async fn execute(server: &str, sql: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(server).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await?;
    Ok(())
}
