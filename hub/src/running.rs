//! Async: a hub from its configuration to its end.

use std::{
    fmt::Display,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_certs::{Keys, Role, WebKeys, pair::Pair};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
    expiry,
    reload::{Kept, Reloading},
    state_dir::StateDir,
    status::Status,
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api, asks,
    config::{Config, Mesh},
    control::{Control, Own},
    hub::Hub,
    issued::{IssuedSince, Listed},
    objects::Objects,
    own_leaf::OwnLeaf,
    policy::Policies,
    restore, retention, serve,
    signer::{HubAt, Signer},
    store::Store,
    strays,
    token::Tokens,
};

/// In the state folder.
pub const TOKEN_KEY: &str = "token.key";
/// The files of the hub's certificate are read again after this, where they didn't fit.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How soon a changed policy or list is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often what monitoring asks is counted anew: about as often as it asks.
const TELL_EVERY: Duration = Duration::from_secs(15);

/// A hub that answers. Dropped without [`drain`](Running::drain), its tasks end with the runtime.
pub struct Running {
    pub mesh: SocketAddr,
    pub door: Option<SocketAddr>,
    pub web: SocketAddr,
    pub status: SocketAddr,
    stop: CancellationToken,
    /// In the order of their end: first nothing new comes in, then nothing is swept or looked at.
    tasks: Vec<JoinHandle<()>>,
    store: Arc<Store>,
    _state: StateDir,
}

/// Starts everything. `restored`: the database comes from a backup, so every version is above all that was ever given out.
pub async fn start(config: Config, restored: bool) -> anyhow::Result<Running> {
    let status = Status::install();
    let state = StateDir::open(&config.state, "hub")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = keys(&config)?;
    let web_keys = web_keys(&config)?;
    warn_of_end(&keys, web_keys.as_deref(), clock.now().wall_ms);
    let store = Arc::new(Store::open(&config.store.url).await?);
    let objects = Arc::new(Objects::open(&config.objects())?);
    let now_ms = clock.now().wall_ms;
    let policies = Policies::open(store.clone(), config.policy.clone(), config.test_mode, restored, now_ms).await?;
    if restored {
        // Which of them were used up or revoked since the backup, nobody knows any more.
        let ended = store.end_tokens().await?;
        if ended > 0 {
            tracing::warn!(ended, "join tokens from before the restore can't be used any more: make new ones");
        }
        reconcile(&store, &objects, now_ms, &policies).await?;
    }
    let issued = IssuedSince::default();
    let listed = Listed::open(store.clone(), issued.clone(), config.issued.clone()).await?;
    let tokens = Arc::new(Tokens::open(store.clone(), &state.join(TOKEN_KEY), restored, now_ms).await?);
    let mesh = serve::bind(config.mesh.listen, "mesh.listen").await?;
    let web = serve::bind(config.web.listen, "web.listen").await?;
    let (mesh_address, web_address) = (mesh.local_addr()?, web.local_addr()?);
    let door = match &config.door {
        Some(door) => Some(serve::bind(door.listen, "door.listen").await?),
        None => None,
    };
    let door_address = door.as_ref().map(|door| door.local_addr()).transpose()?;
    let signer = signer(&config, store.clone(), clock.clone(), Some((mesh_address, door_address)))?.map(Arc::new);
    let own_leaf = signer.clone().map(|signer| {
        let Mesh { certificate, key, roots, .. } = config.mesh.clone();
        Arc::new(OwnLeaf::new(signer, keys.clone(), Pair { certificate, key }, roots))
    });
    let own = Own::find(&config, &keys, signer.as_ref(), &store, now_ms).await?;
    let control = Arc::new(Control::open(store.clone(), keys.clone(), own, restored, now_ms).await?);
    let hub = Hub::new(store.clone(), objects, clock.clone(), Arc::new(policies), control, tokens, config.test_mode);
    let hub = Arc::new(hub.signing(signer).listing(issued));
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(true));
    let (status_address, status_task) = status.serve(config.status.listen, ready.clone(), stop.clone()).await?;
    let mut tasks = Vec::new();
    if let Some(signer) = hub.signer.clone().filter(|_| store.is_shared()) {
        tasks.push(asks::spawn(signer, store.clone(), stop.clone()));
    }
    if let Some(door) = door {
        tasks.push(serve::spawn(door, serve::Door::strangers(&keys, clock.clone())?, api::door(&hub), stop.clone()));
    }
    let web_door = serve::Door::web(web_keys.as_ref())?;
    tasks.extend([
        serve::spawn(mesh, serve::Door::mesh(keys.clone(), clock, hub.control.denied())?, api::mesh(&hub), stop.clone()),
        serve::spawn(web, web_door, api::web(&hub), stop.clone()),
        retention::spawn(hub.clone(), stop.clone()),
        strays::spawn(hub.clone(), stop.clone()),
        spawn_looking(hub.clone(), own_leaf, listed, ready, stop.clone()),
        tokio::spawn(tell_ends(keys.clone(), web_keys.clone(), hub.clone(), stop.clone())),
        status_task,
    ]);
    tasks.extend(reloadings(&config, keys, web_keys).into_iter().map(|reloading| tokio::spawn(reloading.run(stop.clone()))));
    tracing::info!(mesh = %mesh_address, web = %web_address, test_mode = config.test_mode, "the hub answers");
    Ok(Running { mesh: mesh_address, door: door_address, web: web_address, status: status_address, stop, tasks, store, _state: state })
}

impl Running {
    /// Takes nothing new, answers what was asked, and closes the database.
    pub async fn drain(self) {
        self.stop.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::warn!(%error, "a task of the hub ended badly");
            }
        }
        self.store.close().await;
        tracing::info!("the hub has stopped");
    }
}

/// Before anyone is answered: a relay that hears "repeat" doesn't send it again.
async fn reconcile(store: &Store, objects: &Objects, now_ms: i64, policies: &Policies) -> Result<(), Complaint> {
    let done = async {
        // What had to go since the backup goes first: its objects went long ago, and nobody misses it.
        retention::sweep(store, objects, now_ms, policies.current().retention(), retention::ROWS_MAX).await?;
        anyhow::Ok(restore::forget_missing(store, objects, now_ms).await?)
    };
    done.await.map(drop).map_err(|error| {
        let what = format!("It can't be told which pictures of the restored database are there ({error})");
        Complaint::new(what, "Put it right and start with --restored again")
    })
}

/// Whoever holds the issuing key, if this hub does. `listening`: at its mesh port and its door, where it listens already.
pub fn signer(
    config: &Config,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    listening: Option<(SocketAddr, Option<SocketAddr>)>,
) -> anyhow::Result<Option<Signer>> {
    let Some(at) = &config.signer else { return Ok(None) };
    let (mesh, door) = listening.unzip();
    let nowhere =
        || Complaint::new("nobody could find this hub: `mesh.address` is missing in its configuration", "Give it as relays dial it");
    let address = config.mesh_address().or_else(|| mesh.map(|mesh| mesh.to_string())).ok_or_else(nowhere)?;
    let door = config.door_address().or_else(|| door.flatten().map(|door| door.to_string())).unwrap_or_default();
    let hub = HubAt { name: keys(config)?.identity().name, address, door };
    Ok(Some(Signer::new(store, clock, at.open()?, config.seal_key()?, at.lives(), hub)))
}

/// Certificate, key and roots, for `serve` and `check`.
pub fn keys(config: &Config) -> Result<Arc<Keys>, Complaint> {
    let mesh = &config.mesh;
    let load = || Keys::load(&mesh.certificate, &mesh.key, &mesh.roots, Role::Hub, Arc::new(muster_certs::SystemTime));
    // Once more: the running hub, which renews the pair by itself, may have been between the two files.
    let loaded = load().or_else(|_| {
        std::thread::sleep(AGAIN_AFTER);
        load()
    });
    loaded.map_err(|error| {
        Complaint::new(format!("The hub's certificate can't be used ({error})"), "Give what `muster-certs issue hub` wrote in [mesh]")
    })
}

/// The organisation's certificate and key for the web port, for `serve` and `check`. None: plain HTTP.
pub fn web_keys(config: &Config) -> Result<Option<Arc<WebKeys>>, Complaint> {
    let Some([certificate, key]) = config.web.files() else { return Ok(None) };
    let loaded = WebKeys::load(certificate, key, Arc::new(muster_certs::SystemTime));
    loaded.map(Some).map_err(|error| {
        let todo = "Give the organisation's certificate, with those above it behind it, and its key in [web]";
        Complaint::new(format!("the web port's certificate can't be used ({error})"), todo)
    })
}

fn reloadings(config: &Config, keys: Arc<Keys>, web_keys: Option<Arc<WebKeys>>) -> Vec<Reloading> {
    let mesh = config.mesh.clone();
    let node = Kept::Node { keys, certificate: mesh.certificate, key: mesh.key, roots: mesh.roots };
    let web = web_keys.zip(config.web.files()).map(|(keys, files)| {
        let [certificate, key] = files.map(Path::to_owned);
        Kept::Web { keys, certificate, key }
    });
    [Some(node), web].into_iter().flatten().map(Reloading::new).collect()
}

/// Until when each certificate that this hub holds is good.
async fn tell_ends(keys: Arc<Keys>, web_keys: Option<Arc<WebKeys>>, hub: Arc<Hub>, stop: CancellationToken) {
    // What happens once, and is waited for: only what begins at 0 is seen to rise.
    metrics::counter!("muster_hub_clones_total").increment(0);
    metrics::counter!("muster_hub_missing_objects_total").increment(0);
    metrics::counter!("muster_hub_damaged_objects_total").increment(0);
    let mut every = tokio::time::interval(TELL_EVERY);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        expiry::tell_keys(&keys);
        if let Some(signer) = &hub.signer {
            expiry::tell("issuing", signer.not_after_ms());
        }
        if let Some(web) = &web_keys {
            expiry::tell("web", web.not_after_ms());
        }
        match hub.store.census().await {
            Ok(census) => census.tell(),
            Err(error) => tracing::debug!(%error, "the members can't be counted now"),
        }
    }
}

/// An expired certificate ends nothing here: relays keep what they have until there is a new one.
fn warn_of_end(keys: &Keys, web_keys: Option<&WebKeys>, now_ms: i64) {
    if let Some(Err(error)) = web_keys.map(|keys| keys.check_time(now_ms)) {
        tracing::warn!("people will be warned off the web port: {error}");
    }
    if let Err(error) = keys.check_time(now_ms) {
        tracing::warn!("no relay will connect: {error}");
    }
}

/// What is looked at again and again: what is wrong with it is said once.
#[derive(Default)]
struct Told(Option<String>);

impl Told {
    /// `so`: what that means.
    fn tell(&mut self, looked: Result<(), impl Display>, so: &str) {
        let wrong = looked.err().map(|error| error.to_string());
        if let Some(error) = wrong.as_ref().filter(|_| self.0 != wrong) {
            tracing::error!(error, "{so}");
        }
        self.0 = wrong;
    }
}

/// Looks at the CA, at the policy and at the list of devices, and takes over what changed.
fn spawn_looking(
    hub: Arc<Hub>,
    own_leaf: Option<Arc<OwnLeaf>>,
    mut listed: Listed,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (mut ca, mut leaf, mut signs) = (Told::default(), Told::default(), Told::default());
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            ready.store(hub.store.is_up().await, Ordering::Relaxed);
            if let Some(own_leaf) = own_leaf.clone() {
                ca.tell(own_leaf.signer.look().await, "the CA's changed folder isn't in force");
                metrics::gauge!("muster_hub_ca_refused").set(if ca.0.is_some() { 1.0 } else { 0.0 });
                let now_ms = hub.now_ms();
                match spawn_blocking(move || own_leaf.look(now_ms)).await {
                    Ok(looked) => leaf.tell(looked, "the hub's own certificate isn't renewed, and lasts as long as it did"),
                    Err(error) => leaf.tell(Err(error), "the hub's own certificate can't be looked at"),
                }
            }
            if let Err(error) = hub.policies.look(hub.now_ms()).await {
                tracing::warn!(%error, "a changed policy isn't kept yet");
            }
            signs.tell(hub.control.look(hub.now_ms()).await, "what this hub signs can't be looked after now; what it signed before holds");
            hub.control.measure(hub.now_ms());
            if let Err(error) = hub.tokens.look(hub.now_ms()).await {
                tracing::warn!(%error, "the token keys can't be looked after now; those that were known hold");
            }
            if let Err(error) = listed.look().await {
                tracing::warn!(%error, "the list of devices isn't kept yet");
            }
        }
    })
}
