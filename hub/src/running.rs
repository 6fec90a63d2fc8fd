//! Async: a hub from its configuration to its end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_certs::{Keys, Role};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
    state_dir::StateDir,
    status::Status,
};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    config::Config,
    control::{Control, Own},
    hub::Hub,
    issued::Listed,
    objects::Objects,
    policy::Policies,
    restore, retention, serve,
    signer::{HubAt, Signer},
    store::Store,
    strays,
    token::Tokens,
};

const TOKEN_KEY: &str = "token.key";
/// How soon a changed policy or list is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    warn_of_end(&keys, clock.now().wall_ms);
    let store = Arc::new(Store::open(&config.store.url).await?);
    let objects = Arc::new(Objects::open(&config.objects())?);
    let now_ms = clock.now().wall_ms;
    let policies = Policies::open(store.clone(), config.policy.clone(), config.test_mode, restored, now_ms).await?;
    if restored {
        reconcile(&store, &objects, now_ms, &policies).await?;
    }
    let listed = Listed::open(store.clone(), config.issued.clone()).await?;
    let tokens = Tokens::open(&state.join(TOKEN_KEY))?;
    let mesh = serve::bind(config.mesh.listen, "mesh.listen").await?;
    let web = serve::bind(config.web.listen, "web.listen").await?;
    let (mesh_address, web_address) = (mesh.local_addr()?, web.local_addr()?);
    let door = match &config.door {
        Some(door) => Some(serve::bind(door.listen, "door.listen").await?),
        None => None,
    };
    let door_address = door.as_ref().map(|door| door.local_addr()).transpose()?;
    let signer = match &config.signer {
        Some(at) => {
            let hub_at = HubAt {
                name: keys.identity().name,
                address: config.mesh_address().unwrap_or_else(|| mesh_address.to_string()),
                door: config.door_address().or_else(|| door_address.map(|door| door.to_string())).unwrap_or_default(),
            };
            Some(Arc::new(Signer::new(store.clone(), clock.clone(), at.open()?, config.seal_key()?, at.lives(), hub_at)))
        }
        None => None,
    };
    let own = Own::find(&config, &keys, signer.as_ref(), &store, now_ms).await?;
    let control = Arc::new(Control::open(store.clone(), keys.clone(), own, restored, now_ms).await?);
    let hub = Hub::new(store.clone(), objects, clock.clone(), Arc::new(policies), control, tokens, config.test_mode);
    let hub = Arc::new(hub.signing(signer));
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(true));
    let (status_address, status_task) = status.serve(config.status.listen, ready.clone(), stop.clone()).await?;
    let mut tasks = Vec::new();
    if let Some(door) = door {
        tasks.push(serve::spawn(door, serve::Door::strangers(&keys, clock.clone())?, api::door(&hub), stop.clone()));
    }
    tasks.extend([
        serve::spawn(mesh, serve::Door::mesh(keys, clock, hub.control.denied())?, api::mesh(&hub), stop.clone()),
        serve::spawn(web, serve::Door::Web, api::web(&hub), stop.clone()),
        retention::spawn(hub.clone(), stop.clone()),
        strays::spawn(hub.clone(), stop.clone()),
        spawn_looking(hub.clone(), listed, ready, stop.clone()),
        status_task,
    ]);
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

/// Certificate, key and roots, for `serve` and `check`.
pub fn keys(config: &Config) -> Result<Arc<Keys>, Complaint> {
    let mesh = &config.mesh;
    let time = Arc::new(muster_certs::SystemTime);
    Keys::load(&mesh.certificate, &mesh.key, &mesh.roots, Role::Hub, time).map_err(|error| {
        Complaint::new(format!("The hub's certificate can't be used ({error})"), "Give what `muster-certs issue hub` wrote in [mesh]")
    })
}

/// An expired certificate ends nothing here: relays keep what they have until there is a new one.
fn warn_of_end(keys: &Keys, now_ms: i64) {
    if let Err(error) = keys.check_time(now_ms) {
        tracing::warn!("no relay will connect: {error}");
    }
}

/// Looks at the policy and at the list of devices, and takes over what changed.
fn spawn_looking(hub: Arc<Hub>, mut listed: Listed, ready: Arc<AtomicBool>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            ready.store(hub.store.is_up().await, Ordering::Relaxed);
            if let Err(error) = hub.policies.look(hub.now_ms()).await {
                tracing::warn!(%error, "a changed policy isn't kept yet");
            }
            if let Err(error) = hub.control.look(hub.now_ms()).await {
                tracing::warn!(%error, "what this hub signs can't be looked after now; what it signed before holds");
            }
            hub.control.measure(hub.now_ms());
            if let Err(error) = listed.look().await {
                tracing::warn!(%error, "the list of devices isn't kept yet");
            }
        }
    })
}
