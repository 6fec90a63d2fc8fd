//! Async: where pictures lie: a folder, or a bucket. object_store is named here, nowhere else.
//!
//! The order that keeps both stores right: the object, then the row that names it; the row's deletion, then the object's. So a row always has
//! its object; an object without a row belongs to an attempt that failed, and [`crate::strays`] takes it when no attempt may commit any more.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{BoxStream, Fuse},
};
use jiff::Timestamp;
use muster_mesh::{complaint::Complaint, config};
use object_store::{
    BackoffConfig, ClientConfigKey, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path as Key,
    prefix::PrefixStore,
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Whatever the store does, an operation is over after this: three tries of a picture over a slow line.
const TIME: Duration = Duration::from_secs(30);
/// One try of a bucket.
const TRY: &str = "10 seconds";
const CONNECT: &str = "3 seconds";
const RETRIES: usize = 2;
/// Operations at once, those among them that nobody waits for any more: a store that hangs holds no more threads and memory than this.
pub const OPERATIONS_MAX: usize = 16;
/// An object is a picture: 3 MiB.
const OBJECT_BYTES_MAX: u64 = 4 << 20;
/// The object that says whose the others are: the id of the database whose rows name them.
const MARK: &str = "muster-store";

/// The object store.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// None: a bucket.
    folder: Option<PathBuf>,
    operations: Arc<Semaphore>,
    is_claimed: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Write,
    /// Changes nothing.
    Look,
}

/// What the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("the object isn't there")]
    Missing,
    /// Down, slow or full: the same again, a little later.
    #[error("the object store doesn't take part: {0}")]
    NotNow(String),
}

/// What is counted of one kind of operation.
#[derive(Clone, Copy)]
struct Operation {
    seconds: &'static str,
    failures: &'static str,
}

const PUT: Operation = Operation { seconds: "muster_hub_object_put_seconds", failures: "muster_hub_object_put_failures_total" };
const GET: Operation = Operation { seconds: "muster_hub_object_get_seconds", failures: "muster_hub_object_get_failures_total" };
const DELETE: Operation = Operation { seconds: "muster_hub_object_delete_seconds", failures: "muster_hub_object_delete_failures_total" };

/// Objects as the store lists them.
pub struct Listing(Fuse<BoxStream<'static, object_store::Result<ObjectMeta>>>);

impl Objects {
    /// `/folder`, `~/folder`, `file:///folder`, or `s3://bucket/prefix` with the usual `AWS_…` variables. A bucket isn't asked yet: a store
    /// that is down stops pictures, not the hub.
    pub fn open(url: &str) -> Result<Objects, Complaint> {
        Objects::open_for(url, Mode::Write)
    }

    /// The same without making a folder that isn't there.
    pub fn look(url: &str) -> Result<Objects, Complaint> {
        Objects::open_for(url, Mode::Look)
    }

    fn open_for(url: &str, mode: Mode) -> Result<Objects, Complaint> {
        if let Some(rest) = url.strip_prefix("s3://") {
            return Objects::bucket(url, rest);
        }
        let path = url.strip_prefix("file://").unwrap_or(url);
        if path.is_empty() || path.contains("://") {
            let what = format!("`store.objects` is {url:?}, which is no folder and no bucket");
            return Err(Complaint::new(what, "Give a folder, such as /var/lib/muster-hub/objects, or s3://bucket/prefix"));
        }
        let folder = config::expand(Path::new(path));
        // Its owner's alone: pictures are in it.
        let made = if mode == Mode::Write { DirBuilder::new().recursive(true).mode(0o700).create(&folder) } else { Ok(()) };
        let store = made.map_err(|error| error.to_string()).and_then(|()| {
            // What it says of a folder that isn't there names it twice.
            LocalFileSystem::new_with_prefix(&folder)
                .map_err(|error| if folder.exists() { error.to_string() } else { "it isn't there".into() })
        });
        let store = store.map_err(|why| {
            let todo = "Give another as `store.objects`, or let this program write there";
            Complaint::new(format!("The folder of the pictures, {}, can't be used ({why})", folder.display()), todo)
        })?;
        Ok(Objects::over(Arc::new(store.with_fsync(true).with_automatic_cleanup(true)), Some(folder)))
    }

    fn bucket(url: &str, rest: &str) -> Result<Objects, Complaint> {
        let (bucket, prefix) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
        let client = |key| AmazonS3ConfigKey::Client(key);
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: TIME };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_config(client(ClientConfigKey::Timeout), TRY)
            .with_config(client(ClientConfigKey::ConnectTimeout), CONNECT)
            .with_retry(retry)
            .build()
            .map_err(|error| {
                let todo =
                    "Write it as s3://bucket/prefix, and give AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment";
                Complaint::new(format!("`store.objects` is {url:?}, which can't be used ({error})"), todo)
            })?;
        let prefix = Key::parse(prefix).map_err(|error| {
            Complaint::new(format!("`store.objects` is {url:?}, whose prefix can't be used ({error})"), "Write it as s3://bucket/prefix")
        })?;
        Ok(Objects::over(Arc::new(PrefixStore::new(store, prefix)), None))
    }

    /// Over any store: tests have one that fails on demand. `folder` is where that store keeps files, if it does.
    pub fn over(store: Arc<dyn ObjectStore>, folder: Option<PathBuf>) -> Objects {
        Objects { store, folder, operations: Arc::new(Semaphore::new(OPERATIONS_MAX)), is_claimed: Arc::default() }
    }

    pub fn is_claimed(&self) -> bool {
        self.is_claimed.load(Ordering::Relaxed)
    }

    /// Makes the store the one of the database with this id, before anything is put there. One that is another database's takes no part.
    pub async fn claim(&self, id: i64) -> Result<(), ObjectError> {
        if !self.belongs_to(id).await? {
            self.put(MARK, Bytes::from(mark(id))).await?;
            // Of two databases that come at the same time one sees the other's.
            self.belongs_to(id).await?;
        }
        self.is_claimed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the store is the one of the database with this id; false: it is nobody's yet. Another's is an error.
    pub async fn belongs_to(&self, id: i64) -> Result<bool, ObjectError> {
        match self.get(MARK).await {
            Ok(found) if found.trim_ascii() == mark(id).trim_ascii().as_bytes() => Ok(true),
            Ok(_) => Err(ObjectError::NotNow(format!(
                "it belongs to another database. Give another place as `store.objects`; or, to take it over with all that is in it, delete \
                 the object {MARK} there, which names that database"
            ))),
            Err(ObjectError::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// On the store's disk when this returns.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let (store, at, length) = (self.store.clone(), Key::from(key), bytes.len() as u64);
        self.operate(PUT, async move { store.put(&at, bytes.into()).await.map(drop) }).await?;
        metrics::counter!("muster_hub_object_put_bytes_total").increment(length);
        Ok(())
    }

    pub async fn get(&self, key: &str) -> Result<Bytes, ObjectError> {
        let (store, at) = (self.store.clone(), Key::from(key));
        let got = self.operate(GET, async move {
            let found = store.get(&at).await?;
            if found.meta.size > OBJECT_BYTES_MAX {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        });
        got.await?.ok_or_else(|| ObjectError::NotNow("it has an object that is larger than any picture".into()))
    }

    /// How long an object is, in bytes. None: it isn't there.
    pub async fn length(&self, key: &str) -> Result<Option<u64>, ObjectError> {
        let (store, at) = (self.store.clone(), Key::from(key));
        match self.operate(GET, async move { store.head(&at).await }).await {
            Ok(about) => Ok(Some(about.size)),
            Err(ObjectError::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What isn't there is deleted.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let (store, at) = (self.store.clone(), Key::from(key));
        match self.operate(DELETE, async move { store.delete(&at).await }).await {
            Ok(()) | Err(ObjectError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Everything, or what lies in a folder such as `2026/11/23`.
    pub fn list(&self, folder: Option<&str>) -> Listing {
        Listing(self.store.list(folder.map(Key::from).as_ref()).fuse())
    }

    /// A put that was killed half-way leaves a file that the store itself hides: those that were last written before a time are removed,
    /// everywhere or in a folder such as `2026/11/23`.
    pub async fn remove_staged(&self, folder: Option<&str>, before_ms: i64) -> Result<u64, ObjectError> {
        let Some(root) = &self.folder else { return Ok(0) };
        let folder = root.join(folder.unwrap_or_default());
        let removed = spawn_blocking(move || remove_staged(folder, before_ms)).await;
        removed.map_err(|error| ObjectError::NotNow(error.to_string()))?.map_err(|error| ObjectError::NotNow(error.to_string()))
    }

    /// Runs it in a task of its own that keeps its place until it really ends: giving up waiting doesn't make a hanging disk let go.
    async fn operate<T: Send + 'static>(
        &self,
        kind: Operation,
        operation: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let operations = self.operations.clone();
        let begun = tokio::time::Instant::now();
        let waiting = async {
            // The semaphore is never closed.
            let Ok(place) = operations.acquire_owned().await else { return Err(ObjectError::NotNow("it is closed".into())) };
            let done = tokio::spawn(async move {
                let done = operation.await;
                drop(place);
                done
            });
            match done.await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(object_store::Error::NotFound { .. })) => Err(ObjectError::Missing),
                Ok(Err(error)) => Err(ObjectError::NotNow(causes(&error))),
                Err(error) => Err(ObjectError::NotNow(error.to_string())),
            }
        };
        let done = timeout(TIME, waiting).await.unwrap_or_else(|_| Err(ObjectError::NotNow("it takes too long".into())));
        metrics::histogram!(kind.seconds).record(begun.elapsed().as_secs_f64());
        if let Err(ObjectError::NotNow(_)) = &done {
            metrics::counter!(kind.failures).increment(1);
        }
        done
    }
}

/// What a store's mark says: the id of its database.
pub fn mark(id: i64) -> String {
    format!("{id:016x}\n")
}

impl Listing {
    /// The next names of objects that were last written before a time, at most so many; none: it is at its end.
    pub async fn older(&mut self, before_ms: i64, most: usize) -> Result<Vec<String>, ObjectError> {
        Ok(self.older_with_times(before_ms, most).await?.into_iter().map(|(name, _)| name).collect())
    }

    /// The same with the times when they were last written.
    pub async fn older_with_times(&mut self, before_ms: i64, most: usize) -> Result<Vec<(String, i64)>, ObjectError> {
        let mut older = Vec::new();
        while older.len() < most {
            match timeout(TIME, self.0.next()).await {
                Ok(Some(Ok(found))) => {
                    let (name, written_ms) = (found.location.to_string(), found.last_modified.timestamp_millis());
                    if written_ms < before_ms && name != MARK {
                        older.push((name, written_ms));
                    }
                }
                // It went while the list was made.
                Ok(Some(Err(object_store::Error::NotFound { .. }))) => {}
                Ok(Some(Err(error))) => return Err(ObjectError::NotNow(causes(&error))),
                Ok(None) => break,
                Err(_) => return Err(ObjectError::NotNow("it takes too long".into())),
            }
        }
        Ok(older)
    }
}

/// An error with what lies behind it, the innermost last; the library's own words alone say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Folders below one another: year, month, day, spool.
const DEPTH: usize = 4;

fn remove_staged(folder: PathBuf, before_ms: i64) -> io::Result<u64> {
    let (mut removed, mut folders) = (0, vec![(folder, 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // Nothing was put that day, or the store removed a folder that became empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                if depth < DEPTH {
                    folders.push((entry.path(), depth + 1));
                }
            } else if is_staged(&entry.file_name().to_string_lossy()) && entry.metadata().is_ok_and(|about| written_ms(&about) < before_ms)
            {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// `17-1f…#1`: the store's name for a file that is being written.
fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, try_)| !try_.is_empty() && try_.bytes().all(|byte| byte.is_ascii_digit()))
}

fn written_ms(about: &fs::Metadata) -> i64 {
    about.modified().ok().and_then(|time| Timestamp::try_from(time).ok()).map_or(i64::MAX, Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_put_comes_back_until_it_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().join("objects").to_str().unwrap()).unwrap();
        let key = "2026/11/23/07070707070707070707070707070707/17-00112233445566aa";
        assert!(matches!(objects.get(key).await, Err(ObjectError::Missing)));
        objects.put(key, Bytes::from_static(b"a picture")).await.unwrap();
        assert_eq!(objects.get(key).await.unwrap(), "a picture");
        assert_eq!(objects.list(None).older(i64::MAX, 10).await.unwrap(), [key]);
        assert_eq!(objects.list(Some("2026/11/23")).older(i64::MAX, 10).await.unwrap().len(), 1);
        assert!(objects.list(Some("2026/11/24")).older(i64::MAX, 10).await.unwrap().is_empty());
        assert!(objects.list(None).older(0, 10).await.unwrap().is_empty());
        objects.delete(key).await.unwrap();
        objects.delete(key).await.unwrap();
        assert!(objects.list(None).older(i64::MAX, 10).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_that_a_killed_put_left_is_removed_when_it_is_old() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().join("objects").to_str().unwrap()).unwrap();
        let spool = folder.path().join("objects/2026/11/23/07070707070707070707070707070707");
        fs::create_dir_all(&spool).unwrap();
        fs::write(spool.join("17-00112233445566aa#1"), "half a pict").unwrap();
        fs::write(spool.join("18-00112233445566aa"), "a picture").unwrap();
        assert_eq!(objects.list(None).older(i64::MAX, 10).await.unwrap().len(), 1, "the store itself hides it");
        assert_eq!(objects.remove_staged(None, 0).await.unwrap(), 0);
        assert_eq!(objects.remove_staged(Some("2026/11/24"), i64::MAX - 1).await.unwrap(), 0);
        assert_eq!(objects.remove_staged(Some("2026/11/23"), i64::MAX - 1).await.unwrap(), 1);
        assert_eq!(objects.remove_staged(None, i64::MAX - 1).await.unwrap(), 0);
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 1);
        assert_eq!(fs::metadata(folder.path().join("objects")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_place_that_is_no_store_gets_one_line() {
        for bad in ["", "http://example.org/x", "azure://x"] {
            let refused = Objects::open(bad).err().unwrap().to_string();
            assert!(refused.contains("store.objects") && !refused.contains('\n'), "{refused}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = Objects::open(file.path().to_str().unwrap()).err().unwrap().to_string();
        assert!(refused.contains("can't be used"), "{refused}");
    }
}
