//! Async: a copy of the hub's database from earlier, which is put back as people do it by hand. The hub is stopped at both.

use std::{
    fs,
    path::{Path, PathBuf},
};

use muster_start::mesh::{Mesh, database_url};
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

pub enum Backup {
    /// Where copies of the database's files lie.
    Files(PathBuf),
    /// Any database of the same server, and the name of the one that is copied.
    Server { server: String, name: String },
}

/// Whether the hub's rows lie on a server, instead of in a file.
pub fn is_on_a_server(mesh: &Mesh) -> bool {
    database_url(mesh.folder()).starts_with("postgres")
}

impl Backup {
    /// `folder` is for copies of files.
    pub async fn of(mesh: &Mesh, folder: &Path) -> Backup {
        if is_on_a_server(mesh) {
            let url = database_url(mesh.folder());
            let (place, name) = url.rsplit_once('/').expect("a database's URL");
            let backup = Backup::Server { server: format!("{place}/postgres"), name: name.to_owned() };
            // A hub that was killed may still have its sessions there.
            backup.at_server("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'").await;
            backup.at_server("CREATE DATABASE \"{name}-kept\" TEMPLATE \"{name}\"").await;
            return backup;
        }
        let kept = folder.join("backup");
        fs::create_dir(&kept).unwrap();
        for file in files(mesh).iter().filter(|file| file.exists()) {
            fs::copy(file, kept.join(file.file_name().unwrap())).unwrap();
        }
        Backup::Files(kept)
    }

    pub async fn put_back(&self, mesh: &Mesh) {
        match self {
            Backup::Files(kept) => {
                for file in files(mesh) {
                    let _ = fs::remove_file(&file);
                    let copy = kept.join(file.file_name().unwrap());
                    if copy.exists() {
                        fs::copy(copy, file).unwrap();
                    }
                }
            }
            Backup::Server { .. } => {
                self.at_server("DROP DATABASE \"{name}\" WITH (FORCE)").await;
                self.at_server("CREATE DATABASE \"{name}\" TEMPLATE \"{name}-kept\"").await;
            }
        }
    }

    async fn at_server(&self, statement: &str) {
        let Backup::Server { server, name } = self else { return };
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(server).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement.replace("{name}", name))).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

/// The hub's database in SQLite, and what belongs to it.
fn files(mesh: &Mesh) -> [PathBuf; 3] {
    let database = mesh.database();
    let beside = |end: &str| database.with_file_name(format!("{}{end}", database.file_name().unwrap().to_str().unwrap()));
    [database.clone(), beside("-wal"), beside("-shm")]
}
