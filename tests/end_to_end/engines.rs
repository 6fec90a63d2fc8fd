//! Async: a database and a bucket of a test's own, on the PostgreSQL and the S3 server that `ops/engines` has started.

use std::{env, net::SocketAddr, thread};

use muster_mesh::chance;
use muster_start::{engines::Engines, http};
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

/// Where the servers are.
const POSTGRES: &str = "MUSTER_TEST_POSTGRES";
const S3: &str = "MUSTER_TEST_S3";
/// `servers`: every mesh of these tests keeps rows and pictures on them.
const ENGINES: &str = "MUSTER_TEST_ENGINES";

/// Dropped, the database is gone; the bucket goes with its server, which keeps it in memory.
pub struct Own {
    name: String,
    postgres: String,
    s3: String,
}

impl Own {
    /// None, and it says why: there are no servers.
    pub async fn new() -> Option<Own> {
        let (Ok(postgres), Ok(s3)) = (env::var(POSTGRES), env::var(S3)) else {
            println!("skipped: {POSTGRES} and {S3} don't say where PostgreSQL and an S3 server are: ops/engines starts both");
            return None;
        };
        let name = format!("muster-{:016x}", chance::random_u64());
        let own = Own { name, postgres, s3 };
        own.at_postgres(&format!("CREATE DATABASE \"{}\"", own.name)).await;
        let server: SocketAddr = own.s3.strip_prefix("http://").and_then(|place| place.parse().ok()).expect("http:// and an address");
        let made = http::ask(server, "PUT", &format!("/{}", own.name), &[], &[]).await.expect("the S3 server answers");
        assert_eq!(made.status, 200, "the bucket is made: {}", String::from_utf8_lossy(&made.body));
        Some(own)
    }

    pub fn engines(&self) -> Engines {
        let (server, _) = self.postgres.rsplit_once('/').expect("a database's URL");
        Engines { store: Some(format!("{server}/{}", self.name)), objects: Some(format!("s3://{}/pictures", self.name)) }
    }

    /// What the hub finds its pictures by. The server takes any key.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", self.s3.clone()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "muster".into()),
            ("AWS_SECRET_ACCESS_KEY", "muster".into()),
        ]
    }

    async fn at_postgres(&self, statement: &str) {
        sqlx::any::install_default_drivers();
        let mut server = AnyConnection::connect(&self.postgres).await.expect("PostgreSQL answers");
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut server).await.expect("PostgreSQL does it");
        server.close().await.expect("PostgreSQL says goodbye");
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let dropped = blocking(self.at_postgres(&format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name)));
        if dropped.is_none() && !thread::panicking() {
            panic!("the database {} can't be dropped", self.name);
        }
    }
}

/// For a mesh that nobody wants on other engines: those that `MUSTER_TEST_ENGINES` names. What it gets goes with the servers.
pub fn of_this_run() -> Option<Own> {
    match env::var(ENGINES).ok()?.as_str() {
        "servers" => Some(blocking(Own::new()).flatten().expect("the servers that were asked for")),
        other => panic!("{ENGINES} is `{other}`, and it can only be `servers`"),
    }
}

/// Waits on a thread of its own, since the caller's may be a runtime's.
fn blocking<T: Send>(work: impl Future<Output = T> + Send) -> Option<T> {
    let wait = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
    thread::scope(|scope| scope.spawn(wait).join().ok())
}
