//! Async: a hub's database with a clock that stands, and relays and devices that bring what a test wants.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use muster_certs::{Identity, Issuer, KeyRequest, Keys, Name, Role, SystemTime, issue_control};
use muster_hub::{
    control::{Control, Own},
    hub::Hub,
    objects::Objects,
    policy::Policies,
    store::Store,
    token::Tokens,
};
use muster_mesh::{
    batch::{Batch, Envelope, Head, Tail},
    clock::{Clock, ManualClock, Reading},
    control_key::ControlKey,
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    message::{Answer, Ask, Facts, HubAck, PostHead, QueueState, Signed, Taken},
    record::{Activity, Application, Focus, Gap, GapReason, Heartbeat, Kind, Numbers, Record, Session, Source, State},
};

/// 2026-11-23T09:00:02Z, a Monday.
pub const NOW: i64 = 1_795_424_402_000;
pub const DAY_MS: i64 = 86_400_000;
pub const BOOT: BootId = BootId([0xb0; 16]);
pub const RELAY: &str = "site/oslo/relay/oslo-1";

pub struct World {
    pub hub: Arc<Hub>,
    pub clock: ManualClock,
    pub folder: tempfile::TempDir,
    server: Option<Server>,
    numbers: HashMap<(String, Lane), u64>,
}

/// Runs a test over each engine: SQLite, then the PostgreSQL of `MUSTER_TEST_POSTGRES`, each time with a database of its own.
pub async fn each_store(test: impl AsyncFn(World)) {
    test(World::new().await).await;
    match World::on_postgres().await {
        Some(world) => test(world).await,
        None => skipped(),
    }
}

/// A test without a server says so, and passes; `ops/test` counts it.
#[allow(clippy::print_stdout)]
pub fn skipped() {
    println!("skipped: no PostgreSQL; `source <(ops/engines start FOLDER)` starts one");
}

impl World {
    pub async fn new() -> World {
        World::with(true).await
    }

    pub async fn with(test_mode: bool) -> World {
        World::over(None, test_mode).await
    }

    /// None: there is no server to make a database at.
    pub async fn on_postgres() -> Option<World> {
        let server = Server::new().await?;
        Store::migrate(&server.url).await.unwrap().close().await;
        Some(World::over(Some(server), true).await)
    }

    async fn over(server: Option<Server>, test_mode: bool) -> World {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policy.toml"), include_str!("../policy.toml")).unwrap();
        let clock = ManualClock::new(Reading { wall_ms: NOW, boot_ms: 1_000_000 }, BOOT);
        let url = server.as_ref().map_or_else(|| sqlite_url(folder.path()), |server| server.url.clone());
        let hub = open(&url, folder.path(), &clock, test_mode, false).await;
        World { hub, clock, folder, server, numbers: HashMap::new() }
    }

    /// The same database with a new hub.
    pub async fn restart(&mut self, restored: bool) {
        self.hub.store.close().await;
        self.hub = self.another_hub(restored).await;
    }

    /// One more hub on the same database.
    pub async fn another_hub(&self, restored: bool) -> Arc<Hub> {
        open(&self.url(), self.folder.path(), &self.clock, true, restored).await
    }

    pub fn is_on_postgres(&self) -> bool {
        self.server.is_some()
    }

    /// SQLite's file.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("muster.db")
    }

    pub fn url(&self) -> String {
        self.server.as_ref().map_or_else(|| sqlite_url(self.folder.path()), |server| server.url.clone())
    }

    pub fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms
    }

    /// A head of the relay's next POST.
    pub fn head(&mut self, relay: &str, envelopes: bool) -> PostHead {
        let answered = *self.numbers.entry((relay.into(), Lane::Telemetry)).or_default();
        let queue = |lane: Lane, answered| QueueState { lane, instance: instance(relay, lane), answered };
        PostHead {
            lane: Lane::Telemetry,
            number: if envelopes { answered + 1 } else { 0 },
            queues: vec![queue(Lane::Telemetry, answered), queue(Lane::Pictures, 0)],
            asks: Vec::new(),
            presence: None,
            relay_ms: self.now_ms(),
            versions: Vec::new(),
        }
    }

    /// Posts envelopes, and counts on from the answer as a relay does.
    pub async fn post(&mut self, envelopes: &[Envelope]) -> Taken {
        self.post_by(RELAY, envelopes, &[]).await
    }

    pub async fn post_by(&mut self, relay: &str, envelopes: &[Envelope], asks: &[Ask]) -> Taken {
        let mut head = self.head(relay, !envelopes.is_empty());
        head.asks = asks.to_vec();
        match self.send(relay, &head, envelopes).await {
            Answer::Taken(taken) => {
                if !envelopes.is_empty() {
                    self.numbers.insert((relay.into(), Lane::Telemetry), taken.number);
                }
                taken
            }
            other => panic!("{other:?}"),
        }
    }

    /// Posts as a relay that counts for itself.
    pub async fn post_number(&self, number: u64, envelopes: &[Envelope]) -> Taken {
        let queue = |lane: Lane, answered| QueueState { lane, instance: instance("counting", lane), answered };
        let head = PostHead {
            lane: Lane::Telemetry,
            number,
            queues: vec![queue(Lane::Telemetry, number - 1), queue(Lane::Pictures, 0)],
            asks: Vec::new(),
            presence: None,
            relay_ms: self.now_ms(),
            versions: Vec::new(),
        };
        match self.send(RELAY, &head, envelopes).await {
            Answer::Taken(taken) => taken,
            other => panic!("{other:?}"),
        }
    }

    pub async fn send(&self, relay: &str, head: &PostHead, envelopes: &[Envelope]) -> Answer {
        let facts: Vec<_> = envelopes.iter().map(|_| facts(self.now_ms())).collect();
        self.send_with(relay, head, envelopes, &facts).await
    }

    pub async fn send_with(&self, relay: &str, head: &PostHead, envelopes: &[Envelope], facts: &[Facts]) -> Answer {
        let facts: Vec<_> = facts.iter().map(|facts| facts.bytes().unwrap()).collect();
        let entries = facts.iter().zip(envelopes).map(|(facts, envelope)| (&facts[..], &envelope.bytes()[..]));
        self.hub.ingest.post(relay, head.body(entries).unwrap()).await.unwrap()
    }

    /// One number from SQL.
    pub async fn one(&self, statement: &str) -> i64 {
        sqlx::any::install_default_drivers();
        let pool = sqlx::AnyPool::connect(&self.url()).await.unwrap();
        let row = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).fetch_one(&pool).await.unwrap();
        let number = sqlx::Row::try_get(&row, 0).unwrap();
        pool.close().await;
        number
    }

    /// Changes the database behind the hub's back.
    pub async fn meddle(&self, statement: &str) {
        run_at(&self.url(), statement).await;
    }
}

/// A database of a test's own at the server, gone with it.
pub struct Server {
    pub url: String,
    admin: String,
    name: String,
}

impl Server {
    /// An empty database. None: there is no server.
    pub async fn new() -> Option<Server> {
        let admin = std::env::var("MUSTER_TEST_POSTGRES").ok()?;
        let (server, _) = admin.rsplit_once('/').unwrap();
        let name = format!("muster_test_{}", uuid::Uuid::new_v4().simple());
        let url = format!("{server}/{name}");
        run_at(&admin, &format!("CREATE DATABASE {name}")).await;
        Some(Server { url, admin, name })
    }
}

impl Drop for Server {
    /// On a thread of its own: a test that fails drops it inside its runtime.
    fn drop(&mut self) {
        let (admin, drop) = (self.admin.clone(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dropping = std::thread::spawn(move || runtime().block_on(run_at(&admin, &drop)));
        // One that stays is gone with the test server.
        let _ = dropping.join();
    }
}

/// Runs statements at a database, behind the hub's back.
pub async fn run_at(url: &str, statement: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}

fn sqlite_url(folder: &std::path::Path) -> String {
    format!("sqlite://{}", folder.join("muster.db").display())
}

async fn open(url: &str, folder: &std::path::Path, clock: &ManualClock, test_mode: bool, restored: bool) -> Arc<Hub> {
    let store = Arc::new(Store::open(url).await.unwrap());
    let now_ms = clock.now().wall_ms;
    let policies = Policies::open(store.clone(), folder.join("policy.toml"), test_mode, restored, now_ms).await.unwrap();
    let tokens = Arc::new(Tokens::open(store.clone(), &folder.join("token.key"), restored, now_ms).await.unwrap());
    let objects = Objects::open(folder.join("objects").to_str().unwrap()).unwrap();
    let control = Arc::new(mesh_of_one().control(store.clone(), restored, now_ms).await);
    Arc::new(Hub::new(store, Arc::new(objects), Arc::new(clock.clone()), Arc::new(policies), control, tokens, test_mode))
}

/// A CA, and a hub's own keys of it: the same for all hubs of a test's process, as those of one mesh.
pub struct Papers {
    pub root: String,
    pub issuer: Issuer,
    key: String,
    chain: String,
    hub: muster_certs::Signed,
}

pub const DOMAIN: &str = "muster.test";

pub fn mesh_of_one() -> &'static Papers {
    static PAPERS: LazyLock<Papers> = LazyLock::new(|| {
        let (root, issuer) = Issuer::in_memory(DOMAIN, NOW).unwrap();
        let key = KeyRequest::generate().unwrap().key_pem;
        let chain = issue_control(&issuer, 1, &key, NOW).unwrap().pem;
        let hub = issuer.issue(&Identity::new(DOMAIN, Name::Hub { id: "hub-1".into() }).unwrap(), NOW).unwrap();
        Papers { root: root.pem().to_owned(), issuer, key, chain, hub }
    });
    &PAPERS
}

impl Papers {
    /// The control key of all hubs here.
    pub fn key(&self) -> ControlKey {
        ControlKey::from_pem(1, &self.key).unwrap()
    }

    /// Keys of somebody of this mesh.
    pub fn keys(&self, name: Name) -> Arc<Keys> {
        let role = name.role();
        let signed = self.issuer.issue(&Identity::new(DOMAIN, name).unwrap(), NOW).unwrap();
        Keys::from_pem(&signed.pem, &signed.key_pem, &self.root, role, Arc::new(SystemTime)).unwrap()
    }

    async fn control(&self, store: Arc<Store>, restored: bool, now_ms: i64) -> Control {
        let keys = Keys::from_pem(&self.hub.pem, &self.hub.key_pem, &self.root, Role::Hub, Arc::new(SystemTime)).unwrap();
        let own = Own { key: self.key(), chain: self.chain.clone(), renews: None };
        Control::open(store, keys, own, restored, now_ms).await.unwrap()
    }
}

/// A policy that keeps some kinds for another time.
pub async fn set_retention(world: &World, kinds: &str) {
    let policy = format!("{}\n[retention]\n{kinds}\n", include_str!("../policy.toml"));
    std::fs::write(world.folder.path().join("policy.toml"), policy).unwrap();
    world.hub.policies.look(NOW).await.unwrap();
}

pub fn instance(relay: &str, lane: Lane) -> InstanceId {
    let mut id = [lane.as_u8(); 16];
    id.iter_mut().zip(relay.bytes().rev()).for_each(|(id, byte)| *id ^= byte);
    InstanceId(id)
}

pub fn facts(now_ms: i64) -> Facts {
    Facts { receipt_ms: now_ms - 5, dial: 1, boot: BOOT, zero_ms: NOW - 1_000_000, address: None }
}

pub fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

pub fn spool(n: u8) -> SpoolId {
    SpoolId::new(NOW as u64, [n; 10])
}

pub fn batch(seq: u64, records: Vec<Record>) -> Batch {
    Batch {
        device: device(1),
        spool: spool(1),
        seq,
        lane: Lane::Telemetry,
        policy: Version { epoch: 1, n: 1 },
        notice: Version { epoch: 1, n: 1 },
        erasure: Version::default(),
        test_mode: true,
        head: Head { boot: BOOT, wall_ms: NOW, boot_ms: 1_000_000, zone: "Europe/Oslo".into(), offset_s: 3_600, tails: Vec::new() },
        records,
    }
}

pub fn sealed(seq: u64) -> Envelope {
    batch(seq, some_records(seq)).seal().unwrap()
}

pub fn some_records(seed: u64) -> Vec<Record> {
    vec![activity(NOW + seed as i64, seed as u32), focus(NOW + seed as i64, "xterm"), heartbeat(NOW)]
}

pub fn activity(at: i64, keys: u32) -> Record {
    Record {
        at,
        kind: Kind::Activity(Activity { ms: 60_000, keys, clicks: 2, wheel: 0, pointer_moved: true, active_ms: 50_000, idle_ms: 10_000 }),
    }
}

pub fn focus(at: i64, application: &str) -> Record {
    let application = Application::Named(application.into());
    Record { at, kind: Kind::Focus(Focus { ms: 900, application, title: Some("plan.txt".into()), source: Source::X11 }) }
}

pub fn heartbeat(at: i64) -> Record {
    Record { at, kind: Kind::Heartbeat(Heartbeat { state: State::Active, battery: None, version: "0.1.0".into() }) }
}

pub fn start(at: i64) -> Record {
    Record { at, kind: Kind::Session(Session::Start) }
}

pub fn gap(spool: SpoolId, first: u64, last: Option<u64>) -> Record {
    let numbers = Some(Numbers { spool, first, last });
    Record { at: NOW, kind: Kind::Gap(Gap { lane: Lane::Telemetry, numbers, records: 3, bytes: 300, reason: GapReason::Budget }) }
}

pub fn tail(spool: SpoolId, first_held: u64, next: u64, closed: bool) -> Tail {
    Tail { spool, lane: Lane::Telemetry, first_held, next, closed }
}

/// What the ack for a spool says.
pub fn ack_of(taken: &Taken, device: DeviceId, spool: SpoolId) -> HubAck {
    let signed = taken.acks.iter().map(|bytes| Signed::read(bytes).unwrap());
    let signed = signed.filter(|signed| signed.device == Some(device) && signed.spool == Some(spool));
    let [signed] = &signed.collect::<Vec<_>>()[..] else { panic!("not one ack") };
    HubAck::read(&signed.body).unwrap()
}

pub fn bytes_of(envelope: &Envelope) -> Bytes {
    envelope.bytes().clone()
}
