//! Async: a world whose pictures go into a store that fails on demand, and pictures to post.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use image::{ExtendedColorType, codecs::webp::WebPEncoder};
use muster_hub::{
    hub::Hub,
    ingest::IngestError,
    objects::Objects,
    strays::{self, Reach},
};
use muster_mesh::{
    batch::{Batch, Envelope},
    clock::{Clock, SystemClock},
    ids::{Lane, SpoolId},
    link::hub_ranges::SpoolRow,
    message::{Answer, Reason, Taken, Verdict},
    record::{Area, Kind, PictureFormat, Record, Screenshot, Why},
};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, memory::InMemory, path::Path,
};
use tokio::sync::{Notify, watch};

use crate::world::*;

pub struct Studio {
    pub world: World,
    pub store: Arc<Faulty>,
    /// Of the last POST of pictures that was answered.
    pub number: u64,
}

impl Studio {
    pub fn new(world: World) -> Studio {
        let store = Arc::new(Faulty::default());
        Studio { store: store.clone(), ..Studio::over(world, Objects::over(store, None)) }
    }

    /// The same world with another object store.
    pub fn over(mut world: World, objects: Objects) -> Studio {
        world.hub = another(&world, Arc::new(objects));
        Studio { world, store: Arc::default(), number: 0 }
    }

    /// The same database and objects with a new hub.
    pub fn restart(mut self) -> Studio {
        self.world.hub = another(&self.world, self.world.hub.objects.clone());
        self
    }

    pub async fn post(&mut self, envelopes: &[Envelope]) -> std::result::Result<Taken, IngestError> {
        let answer = self.send(envelopes).await?;
        let Answer::Taken(taken) = answer else { panic!("{answer:?}") };
        self.number = taken.number;
        Ok(taken)
    }

    /// The relay's next POST of pictures.
    pub async fn send(&mut self, envelopes: &[Envelope]) -> std::result::Result<Answer, IngestError> {
        let body = self.body(envelopes);
        self.world.hub.ingest.post(RELAY, body).await
    }

    pub fn body(&mut self, envelopes: &[Envelope]) -> Bytes {
        self.body_by(RELAY, envelopes)
    }

    pub fn body_by(&mut self, relay: &str, envelopes: &[Envelope]) -> Bytes {
        let mut head = self.world.head(relay, true);
        head.lane = Lane::Pictures;
        head.number = self.number + 1;
        head.queues[1].answered = self.number;
        let facts = facts(self.world.now_ms()).bytes().unwrap();
        head.body(envelopes.iter().map(|envelope| (&facts[..], &envelope.bytes()[..]))).unwrap()
    }

    /// Sweeps as if it were so much later: objects have the real clock's times.
    pub async fn sweep(&self, later_ms: i64) -> u64 {
        let hub = &self.world.hub;
        strays::sweep(&hub.store, &hub.objects, real_ms() + later_ms, Reach::Everything).await.unwrap()
    }

    /// Where a picture lies.
    pub async fn object_of(&self, seq: u64) -> String {
        let kept = self.world.hub.store.kept_numbers(device(1), pictures_spool(), seq, seq).await.unwrap();
        kept[0].objects[0].clone()
    }

    /// As if the numbers behind this one had never come: what a backup from before has.
    pub async fn go_back_to(&mut self, seq: u64) {
        let mut row = SpoolRow::default();
        (1..=seq).for_each(|seq| row.take(seq, [0; 8], Verdict::Stored, Reason::None, NOW));
        // They stand in a table of their own.
        row.take_digests();
        let hex: String = row.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers = if self.world.is_on_postgres() { format!("'\\x{hex}'") } else { format!("X'{hex}'") };
        for table in ["screenshot", "batches", "digests"] {
            self.world.meddle(&format!("DELETE FROM {table} WHERE seq > {seq}")).await;
        }
        self.world.meddle(&format!("UPDATE spools SET numbers = {numbers} WHERE lane = 1")).await;
    }

    /// What a sweep of everything takes in so many days.
    pub async fn sweep_in_days(&self, days: i64) -> u64 {
        self.sweep(days * DAY_MS).await
    }

    pub async fn rows_without_objects(&self) -> usize {
        let hub = &self.world.hub;
        let Some(device) = hub.store.device(device(1)).await.unwrap() else { return 0 };
        let mut missing = 0;
        for kept in hub.store.pictures(device.id, 0, 30_000).await.unwrap() {
            missing += usize::from(hub.objects.get(&kept.object).await.is_err());
        }
        missing
    }
}

fn another(world: &World, objects: Arc<Objects>) -> Arc<Hub> {
    let (store, policies, control) = (world.hub.store.clone(), world.hub.policies.clone(), world.hub.control.clone());
    let tokens = world.hub.tokens.clone();
    Arc::new(Hub::new(store, objects, Arc::new(world.clock.clone()), policies, control, tokens, world.hub.ingest.test_mode))
}

pub fn real_ms() -> i64 {
    SystemClock::new().now().wall_ms
}

/// A bucket of this test's own at the S3 server, opened as `serve` opens it. None: there is no server, or nothing says how to reach it.
pub async fn bucket() -> Option<Objects> {
    let server = std::env::var("MUSTER_TEST_S3").ok()?;
    // What ops/engines prints beside it.
    std::env::var("AWS_ENDPOINT_URL").ok()?;
    let name = format!("muster-{}", uuid::Uuid::new_v4().simple());
    let made = reqwest::Client::new().put(format!("{server}/{name}")).send().await.unwrap();
    assert!(made.status().is_success(), "{made:?}");
    Some(Objects::open(&format!("s3://{name}/some/prefix")).unwrap())
}

// --- pictures ---

pub fn pictures_spool() -> SpoolId {
    spool(7)
}

pub fn pictures_batch(seq: u64, records: Vec<Record>) -> Batch {
    Batch { lane: Lane::Pictures, spool: pictures_spool(), ..batch(seq, records) }
}

/// A batch with one picture, sealed.
pub fn shot(seq: u64) -> Envelope {
    pictures_batch(seq, vec![Record { at: NOW, kind: Kind::Screenshot(picture(seq)) }]).seal().unwrap()
}

/// A small sound picture, another for each seed.
pub fn picture(seed: u64) -> Screenshot {
    let (width, height) = (24, 16);
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (u64::from(i) * (seed + 3) % 251) as u8).collect();
    let mut bytes = Vec::new();
    WebPEncoder::new_lossless(&mut bytes).encode(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
    Screenshot {
        area: Area::Monitor,
        width,
        height,
        format: PictureFormat::Webp,
        blurred: true,
        why: Why::Interval,
        sha256: sha256(&bytes),
        group: [seed as u8; 16],
        part: 0,
        parts: 1,
        bytes,
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

// --- a store that fails on demand ---

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Nothing is answered but errors.
    Down,
    /// Reads and deletes, and takes nothing.
    Full,
    /// Takes it, and says no.
    FailsAfterPut,
    /// Takes so many more, then none.
    TakesOnly(usize),
    /// Puts wait until this is over.
    Hangs,
}

#[derive(Debug)]
pub struct Faulty {
    inner: InMemory,
    fault: watch::Sender<Fault>,
    asked: AtomicUsize,
    asked_now: Notify,
    taken: Mutex<usize>,
    puts: AtomicUsize,
}

impl Default for Faulty {
    fn default() -> Faulty {
        Faulty {
            inner: InMemory::new(),
            fault: watch::Sender::new(Fault::None),
            asked: AtomicUsize::new(0),
            asked_now: Notify::new(),
            taken: Mutex::new(0),
            puts: AtomicUsize::new(0),
        }
    }
}

impl Faulty {
    pub fn set(&self, fault: Fault) {
        *self.taken.lock().unwrap() = 0;
        self.fault.send_replace(fault);
    }

    /// Puts that came to an end in the store itself.
    pub fn puts(&self) -> usize {
        self.puts.load(Ordering::SeqCst)
    }

    /// Objects that are there, besides the mark.
    pub fn len(&self) -> usize {
        let listing = self.inner.list(None).collect::<Vec<_>>();
        let found = futures_util::FutureExt::now_or_never(listing).unwrap();
        found.into_iter().filter(|found| !is_mark(&found.as_ref().unwrap().location)).count()
    }

    /// Until so many puts have been asked for.
    pub async fn until_asked(&self, count: usize) {
        loop {
            let now = self.asked_now.notified();
            if self.asked.load(Ordering::SeqCst) >= count {
                return;
            }
            now.await;
        }
    }

    fn fault(&self) -> Fault {
        *self.fault.borrow()
    }

    fn says_no(&self) -> object_store::Error {
        object_store::Error::Generic { store: "Faulty", source: format!("{:?}", self.fault()).into() }
    }

    fn up(&self) -> Result<()> {
        if self.fault() == Fault::Down { Err(self.says_no()) } else { Ok(()) }
    }
}

/// Faults are about pictures.
fn is_mark(location: &Path) -> bool {
    location.as_ref() == "muster-store"
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails on demand")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if is_mark(location) {
            self.up()?;
            return self.inner.put_opts(location, payload, opts).await;
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.asked_now.notify_waiters();
        match self.fault() {
            Fault::None | Fault::FailsAfterPut => {}
            Fault::Down | Fault::Full => return Err(self.says_no()),
            Fault::TakesOnly(count) => {
                let mut taken = self.taken.lock().unwrap();
                if *taken == count {
                    return Err(self.says_no());
                }
                *taken += 1;
            }
            Fault::Hangs => {
                let _ = self.fault.subscribe().wait_for(|fault| *fault != Fault::Hangs).await;
            }
        }
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.puts.fetch_add(1, Ordering::SeqCst);
        if self.fault() == Fault::FailsAfterPut { Err(self.says_no()) } else { Ok(put) }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.up()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.up()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
