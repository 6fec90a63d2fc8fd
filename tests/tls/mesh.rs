//! Async: a CA in memory, a hub and a relay that really run, and keys for whoever asks.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use muster_certs::{Identity, Issuer, Keys, LeafParams, Name, Root, Signed, SystemTime, files};
use muster_hub::{
    control,
    running::{self, Running},
    store::Store,
};
use muster_mesh::{
    clock::{Clock, SystemClock},
    config::Bytes,
    quic::Tuning,
};
use muster_relay::{
    config::{self as relay_config, DoorConfig},
    run::Relay,
};

pub const DOMAIN: &str = "muster.test";
/// A guest of the relay's site.
pub const GUEST: &str = "bergen";
pub const SOON: Duration = Duration::from_secs(10);
pub const DAY_MS: i64 = 24 * 3_600 * 1_000;

pub struct Mesh {
    pub ca: Authority,
    pub relay: Relay,
    pub hub: Running,
    devices: AtomicU8,
    folder: tempfile::TempDir,
}

impl Mesh {
    pub async fn start() -> Mesh {
        Mesh::with(Tuning::default()).await
    }

    pub async fn with(network: Tuning) -> Mesh {
        Mesh::of(network, None).await
    }

    /// Its relay hears those without a certificate, too.
    pub async fn with_a_door() -> Mesh {
        Mesh::of(Tuning::default(), Some(DoorConfig { listen: anywhere() })).await
    }

    async fn of(network: Tuning, door: Option<DoorConfig>) -> Mesh {
        let (folder, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let hub = running::start(hub_config(folder.path(), &ca), false).await.unwrap();
        let relay = Relay::start(&relay_config(folder.path(), &ca, hub.mesh, network, door)).await.unwrap();
        Mesh { ca, relay, hub, devices: AtomicU8::new(1), folder }
    }

    /// Puts this into the files of the running relay's certificate.
    pub fn put_relays(&self, signed: &Signed) {
        write_pair(self.folder.path(), "relay", signed);
    }

    /// An agent of the relay's site that nobody has seen yet.
    pub fn new_agent(&self) -> Name {
        self.new_agent_of("oslo")
    }

    pub fn new_agent_of(&self, site: &str) -> Name {
        Name::Agent { site: site.to_owned(), device: [self.devices.fetch_add(1, Ordering::Relaxed); 16] }
    }

    /// As `muster-hub member deny` does it, beside the running hub.
    pub async fn deny(&self, name: &Name) {
        let store = Store::open(&store_url(self.folder.path())).await.unwrap();
        control::deny(&store, name, now_ms(), "a test").await.unwrap();
        store.close().await;
    }

    pub async fn stop(self) {
        self.relay.stop().await.unwrap();
        self.hub.drain().await;
    }
}

pub fn relay_name() -> Name {
    Name::Relay { site: "oslo".to_owned(), id: "oslo-1".to_owned() }
}

pub fn hub_name() -> Name {
    Name::Hub { id: "hub-1".to_owned() }
}

fn hub_config(folder: &Path, ca: &Authority) -> muster_hub::config::Config {
    use muster_hub::config::{Config, ControlFiles, Mesh, StatusAt, StoreAt, Web};
    let at = |name: &str| folder.join(name);
    ca.write(folder, "hub", &ca.good(&hub_name()));
    ca.write(folder, "control", &ca.good(&Name::Control { n: 1 }));
    std::fs::write(at("policy.toml"), include_str!("../../ops/examples/policy.toml")).unwrap();
    std::fs::write(at("issued.jsonl"), "").unwrap();
    Config {
        state: at("hub"),
        policy: at("policy.toml"),
        issued: at("issued.jsonl"),
        test_mode: true,
        mesh: Mesh { listen: anywhere(), certificate: at("hub.pem"), key: at("hub.key"), roots: at("roots.pem"), address: None },
        door: None,
        signer: None,
        control: Some(ControlFiles { certificate: at("control.pem"), key: at("control.key") }),
        web: Web { listen: anywhere(), certificate: None, key: None },
        store: StoreAt { url: store_url(folder), objects: None },
        status: StatusAt { listen: anywhere() },
    }
}

fn store_url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("muster.db").display())
}

fn relay_config(folder: &Path, ca: &Authority, hub: SocketAddr, network: Tuning, door: Option<DoorConfig>) -> relay_config::Config {
    use relay_config::{AgentsConfig, BufferConfig, Config, HubConfig, StatusConfig};
    let at = |name: &str| folder.join(name);
    ca.write(folder, "relay", &ca.good(&relay_name()));
    Config {
        state: at("relay"),
        agents: AgentsConfig {
            listen: anywhere(),
            certificate: Some(at("relay.pem")),
            key: Some(at("relay.key")),
            roots: Some(at("roots.pem")),
            guests: vec![GUEST.to_owned()],
            network,
        },
        buffer: BufferConfig { budget: Bytes(64 << 20), pictures_budget: Bytes(64 << 20) },
        door,
        hub: HubConfig { address: Some(hub.to_string()), id: Some(hub_name().to_string()), interval_s: 5 },
        status: StatusConfig { listen: anywhere() },
    }
}

pub fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A CA that signs whatever a test wants.
pub struct Authority {
    pub root: Root,
    pub issuer: Issuer,
}

impl Authority {
    pub fn new() -> Authority {
        let (root, issuer) = Issuer::in_memory(DOMAIN, now_ms()).unwrap();
        Authority { root, issuer }
    }

    /// What a good leaf of this name says: change it to get a bad one.
    pub fn params(&self, name: &Name) -> LeafParams {
        LeafParams::of(&identity(name), now_ms())
    }

    pub fn good(&self, name: &Name) -> Signed {
        self.issuer.sign(&self.params(name)).unwrap()
    }

    /// The keys that the product's own clients take.
    pub fn keys(&self, name: &Name) -> Arc<Keys> {
        let signed = self.good(name);
        Keys::from_pem(&signed.pem, &signed.key_pem, self.root.pem(), name.role(), Arc::new(SystemTime)).unwrap()
    }

    pub fn write(&self, folder: &Path, name: &str, signed: &Signed) {
        write_pair(folder, name, signed);
        files::write_public(&folder.join("roots.pem"), self.root.pem().as_bytes()).unwrap();
    }
}

fn write_pair(folder: &Path, name: &str, signed: &Signed) {
    files::write_secret(&folder.join(name).with_extension("key"), signed.key_pem.as_bytes()).unwrap();
    files::write_public(&folder.join(name).with_extension("pem"), signed.pem.as_bytes()).unwrap();
}

pub fn identity(name: &Name) -> Identity {
    Identity::new(DOMAIN, name.clone()).unwrap()
}

pub fn now_ms() -> i64 {
    SystemClock::new().now().wall_ms
}
