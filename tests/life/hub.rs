//! Async: the hub of a world: the hub's own signer, control and report over a real database and a real CA folder, TLS as it is, and a ledger of
//! what came.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{
    Ca, CaError, DIALLED_NAME, Keys, Member, Name, Report, Role, Time, Trusted, check_dialled, check_peer, client_config, door_config,
    files,
    pair::Pair,
    rotation::{Kind, Phase, RotationError},
    server_config, stranger_config,
};
use muster_hub::{
    admission::{self, Owner, Wanted, Whom},
    control::{Control, Own, Renews},
    own_leaf::OwnLeaf,
    relays::Place,
    report::{OfHub, report},
    signer::{HubAt, Lives, Signer},
    store::Store,
};
use muster_mesh::{
    control_key::ControlKey,
    ids::{DeviceId, SpoolId, Version},
    join::JoinToken,
    limits,
    message::{Answer, HubAck, MessageError, PostHead, Posted, Signed, SignedKind, Taken, Verdict},
    ranges::Ranges,
    record::Kind as Recorded,
    seal::SealKey,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use sqlx::{AnyConnection, Connection, Row};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{network::Network, time::Watch};

pub const DOMAIN: &str = "life.test";
const ALPN: &[&[u8]] = &[b"h2"];
/// There and back.
const ROUND_TRIP: Duration = Duration::from_millis(60);
const VALID: Duration = Duration::from_secs(86_400);

pub struct Hub {
    _folder: TempDir,
    store: Arc<Store>,
    /// A way of our own to its rows.
    look: tokio::sync::Mutex<AnyConnection>,
    clock: Watch,
    pub keys: Arc<Keys>,
    signer: Arc<Signer>,
    own_leaf: OwnLeaf,
    control: Control,
    /// The CA's folder, as ops use it.
    ca: Mutex<Ca>,
    ledger: Mutex<Ledger>,
    network: Network,
    /// For whom the line to the hub alone is cut.
    pub unreachable: Mutex<BTreeSet<IpAddr>>,
}

/// What came.
#[derive(Default)]
pub struct Ledger {
    stored: BTreeMap<(DeviceId, SpoolId), Ranges>,
    /// How often the content of each batch was stored.
    pub batches: BTreeMap<String, u32>,
    /// Serials of the certificates that relays have shown.
    pub serials: BTreeMap<Name, BTreeSet<String>>,
    /// Handshakes that came to nothing, and why.
    pub refused: Vec<String>,
    /// Rotations that came to their end, of the issuing CA and of the root.
    pub rotated: [u32; 2],
    pub keys_destroyed: usize,
}

/// What a relay wants of the hub.
pub enum Errand {
    Ask(Vec<u8>),
    Post(Bytes),
}

/// How often somebody was given a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Issued {
    pub certificates: i64,
    pub recoveries: i64,
}

impl Hub {
    pub async fn open(clock: Watch, lives: Lives, network: &Network) -> Arc<Hub> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let time: Time = Arc::new(clock.clone());
        let ca = Ca::init_at(&at("ca"), DOMAIN, time.clone()).unwrap();
        let (pair, roots) = (Pair { certificate: at("hub.pem"), key: at("hub.key") }, at("roots.pem"));
        let own = ca.issue_hub("hub-1").unwrap();
        files::write_public(&pair.certificate, own.pem.as_bytes()).unwrap();
        files::write_secret(&pair.key, own.key_pem.as_bytes()).unwrap();
        files::write_public(&roots, ca.roots_pem().as_bytes()).unwrap();
        let keys = Keys::load(&pair.certificate, &pair.key, &roots, Role::Hub, time.clone()).unwrap();
        let url = format!("sqlite://{}", at("muster.db").display());
        let store = Arc::new(Store::open(&url).await.unwrap());
        let hub = HubAt { name: keys.identity().name, address: "hub:8444".to_owned(), door: "hub:8445".to_owned() };
        let seal = SealKey::generate().unwrap();
        let signing = Ca::open_at(&at("ca"), time).unwrap();
        let signer = Arc::new(Signer::new(store.clone(), Arc::new(clock.clone()), signing, seal, lives, hub));
        let key_pem = muster_certs::KeyRequest::generate().unwrap().key_pem;
        let (key, chain) = (ControlKey::from_pem(1, &key_pem).unwrap(), signer.control_chain(1, &key_pem).unwrap());
        let own = Own { key, chain, renews: Some(Renews::Signer { signer: signer.clone(), key_pem, state: folder.path().to_owned() }) };
        let control = Control::open(store.clone(), keys.clone(), own, false, clock.now_ms()).await.unwrap();
        Arc::new(Hub {
            look: AnyConnection::connect(&url).await.unwrap().into(),
            own_leaf: OwnLeaf::new(signer.clone(), keys.clone(), pair, roots),
            _folder: folder,
            store,
            clock,
            keys,
            signer,
            control,
            ca: Mutex::new(ca),
            ledger: Mutex::default(),
            network: network.clone(),
            unreachable: Mutex::default(),
        })
    }

    pub fn name(&self) -> Name {
        self.keys.identity().name
    }

    pub fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    // --- letting in ---

    pub async fn token_for_relay(&self, site: &str, id: &str, ip: IpAddr) -> JoinToken {
        self.token(site, Whom::Relay { id: id.to_owned(), place: Place { address: ip.to_string(), door: None } }).await
    }

    pub async fn token_for_agent(&self, site: &str, person: &str) -> JoinToken {
        self.token(site, Whom::Agents(Some(Owner { person: person.to_owned(), name: person.to_owned() }))).await
    }

    async fn token(&self, site: &str, whom: Whom) -> JoinToken {
        let wanted = Wanted { site: site.to_owned(), whom, uses: 1, valid: VALID, made_by: "test".to_owned() };
        let made = admission::token(&self.store, &self.signer, wanted).await.unwrap();
        self.store.add_token(&made.row).await.unwrap();
        made.text.parse().unwrap()
    }

    /// As an admin does: whoever came back too often may come back once more.
    pub async fn approve_those_who_wait(&self) -> usize {
        let members = self.store.members("", 100).await.unwrap();
        let waiting: Vec<Name> =
            members.into_iter().filter(|member| member.waits_ms.is_some()).map(|member| member.name.parse().unwrap()).collect();
        for name in &waiting {
            admission::approve(&self.store, name, None).await.unwrap();
        }
        waiting.len()
    }

    pub async fn issued(&self) -> BTreeMap<Name, Issued> {
        let select = "SELECT name, COUNT(*), SUM(recovery) FROM certificates GROUP BY name";
        let rows = sqlx::query(select).fetch_all(&mut *self.look.lock().await).await.unwrap();
        let read = |row: &sqlx::any::AnyRow| {
            let name: String = row.get(0);
            (name.parse().unwrap(), Issued { certificates: row.get(1), recoveries: row.get(2) })
        };
        rows.iter().map(read).collect()
    }

    // --- rotating ---

    /// The next step of a rotation, as an admin takes it. False: somebody would be cut off.
    pub async fn rotate(&self, kind: Kind) -> bool {
        let report = self.report().await;
        let has_moved = self.step(kind, &report);
        self.look().await;
        has_moved
    }

    fn step(&self, kind: Kind, report: &Report) -> bool {
        let mut ca = self.ca.lock().unwrap();
        let root = ca.root_folder();
        let turning = ca.state().turn.as_ref().map(|turn| turn.kind());
        let moved = match (turning, kind) {
            (None, Kind::Issuing) => ca.start_issuing(&root),
            (None, Kind::Root) => ca.start_root(&root),
            (Some(_), _) => ca.advance(Some(report), false),
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(CaError::Rotation(RotationError::CutsOff(_))) => return false,
            Err(error) => panic!("{error}"),
        };
        self.ledger().keys_destroyed += moved.destroyed.len();
        if let Some(kind) = turning.filter(|_| ca.state().turn.is_none()) {
            self.ledger().rotated[usize::from(kind == Kind::Root)] += 1;
        }
        true
    }

    /// Who holds a certificate of another CA than the one that issues now.
    pub async fn not_moved(&self) -> Vec<String> {
        let report = self.report().await;
        let moved = |member: &Member| member.issuer_key == report.signer_key;
        report.members.iter().filter(|member| !moved(member)).map(|member| member.name.clone()).collect()
    }

    /// The new issuing CA issues, and the old one isn't retired.
    pub fn has_switched(&self) -> bool {
        self.ca.lock().unwrap().state().turn.as_ref().is_some_and(|turn| turn.phase == Phase::Switched)
    }

    pub fn is_rotating(&self) -> bool {
        self.ca.lock().unwrap().state().turn.is_some()
    }

    async fn report(&self) -> Report {
        report(&self.store, DOMAIN, OfHub::default(), self.clock.now_ms()).await.unwrap()
    }

    /// What a running hub does each second.
    async fn look(&self) {
        self.signer.look().await.unwrap();
        let now_ms = self.clock.now_ms();
        self.own_leaf.look(now_ms).unwrap();
        self.control.look(now_ms).await.unwrap();
    }

    // --- being asked ---

    /// A relay's errand over a connection of its own: both show their certificates.
    pub async fn run_errand(&self, from: IpAddr, keys: &Arc<Keys>, errand: Errand) -> Result<Vec<u8>, String> {
        let client = client_config(keys, &self.name(), ALPN).unwrap();
        let server = server_config(&self.keys, &[Role::Relay], ALPN).unwrap();
        let (mut there, mut here) = self.connect(from, client, server).await?;
        check_dialled(chain(there.get_ref().1.peer_certificates()), keys, &self.name()).map_err(|error| error.to_string())?;
        let relay =
            check_peer(chain(here.get_ref().1.peer_certificates()), &self.keys, &[Role::Relay]).map_err(|error| error.to_string())?;
        let name = relay.identity.name;
        self.ledger().serials.entry(name.clone()).or_default().insert(relay.serial);
        match errand {
            Errand::Ask(ask) => carried(&mut there, &mut here, &ask, |ask| self.answer(ask)).await,
            Errand::Post(body) => {
                carried(&mut there, &mut here, &body, async |body| self.take(&name, body.into()).await.bytes().unwrap().to_vec()).await
            }
        }
    }

    /// Somebody without a certificate asks at the door.
    pub async fn ask_at_door(&self, from: IpAddr, trusted: &Trusted, time: Time, ask: &[u8]) -> Result<Vec<u8>, String> {
        let client = stranger_config(trusted, &self.name(), time, ALPN).unwrap();
        let (mut there, mut here) = self.connect(from, client, door_config(&self.keys, ALPN).unwrap()).await?;
        carried(&mut there, &mut here, ask, |ask| self.answer(ask)).await
    }

    async fn answer(&self, ask: Vec<u8>) -> Vec<u8> {
        self.signer.answer(&ask).await.bytes().unwrap()
    }

    async fn connect(&self, from: IpAddr, client: rustls::ClientConfig, server: ServerConfig) -> Result<Lines, String> {
        sleep(ROUND_TRIP).await;
        if self.network.is_cut(from) || self.unreachable.lock().unwrap().contains(&from) {
            return Err("the line to the hub is cut".to_owned());
        }
        let (there, here) = duplex(limits::DOOR_BYTES_MAX);
        let dialled = DIALLED_NAME.try_into().unwrap();
        let connecting = TlsConnector::from(Arc::new(client)).connect(dialled, there);
        match tokio::join!(connecting, TlsAcceptor::from(Arc::new(server)).accept(here)) {
            (Ok(there), Ok(here)) => Ok((there, here)),
            (there, here) => {
                let why = format!("{:?} {:?}", there.err(), here.err());
                self.ledger().refused.push(format!("{from}: {why}"));
                Err(why)
            }
        }
    }

    async fn take(&self, relay: &Name, body: Bytes) -> Answer {
        let (head, posted) = PostHead::read(body).unwrap();
        let now_ms = self.clock.now_ms();
        self.control.held(&relay.to_string(), &head.versions, now_ms, head.relay_ms).await.unwrap();
        let (versions, signed) = (self.control.versions(&[]), self.control.newer_than(&head.versions, &[]).unwrap());
        Answer::Taken(Taken { versions, signed, ..self.keep(&head, posted) })
    }

    fn keep(&self, head: &PostHead, posted: Vec<Result<Posted, MessageError>>) -> Taken {
        let mut taken = Taken { number: head.number, ..Taken::default() };
        let mut asked: BTreeMap<(DeviceId, SpoolId), u64> = head.asks.iter().map(|ask| ((ask.device, ask.spool), ask.from)).collect();
        let mut ledger = self.ledger();
        for one in posted.into_iter().map(Result::unwrap) {
            let header = *one.envelope.header();
            taken.counts.add(ledger.keep(&one));
            asked.entry((header.device, header.spool)).or_insert(1);
        }
        for ((device, spool), from) in asked {
            let Some(stored) = ledger.stored.get(&(device, spool)) else { continue };
            let body = HubAck { stored: stored.from(from, 16), ..HubAck::default() }.bytes().unwrap();
            let ack = Signed { device: Some(device), spool: Some(spool), ..Signed::new(SignedKind::Ack, Version { epoch: 1, n: 0 }, body) };
            taken.acks.push(self.control.sign(&ack).unwrap());
        }
        taken
    }
}

type Lines = (tokio_rustls::client::TlsStream<DuplexStream>, tokio_rustls::server::TlsStream<DuplexStream>);

fn chain<'a>(shown: Option<&'a [CertificateDer<'static>]>) -> &'a [CertificateDer<'static>] {
    shown.unwrap_or_default()
}

/// Something there, the answer back.
async fn carried<F: Future<Output = Vec<u8>>>(
    there: &mut tokio_rustls::client::TlsStream<DuplexStream>,
    here: &mut tokio_rustls::server::TlsStream<DuplexStream>,
    sent: &[u8],
    answer: impl FnOnce(Vec<u8>) -> F,
) -> Result<Vec<u8>, String> {
    let asking = async {
        there.write_all(sent).await?;
        there.shutdown().await?;
        let mut answered = Vec::new();
        there.read_to_end(&mut answered).await.map(|_| answered)
    };
    let answering = async {
        let mut asked = Vec::new();
        here.read_to_end(&mut asked).await?;
        here.write_all(&answer(asked).await).await?;
        here.shutdown().await
    };
    let (answered, said) = tokio::join!(asking, answering);
    said.and(answered).map_err(|error| error.to_string())
}

impl Ledger {
    fn keep(&mut self, posted: &Posted) -> Verdict {
        let header = *posted.envelope.header();
        let stored = self.stored.entry((header.device, header.spool)).or_default();
        if stored.contains(header.seq) {
            return Verdict::Repeat;
        }
        stored.insert(header.seq);
        for record in posted.envelope.open().unwrap().records {
            if let Recorded::Capability(said) = record.kind {
                *self.batches.entry(said.what.to_string()).or_default() += 1;
            }
        }
        Verdict::Stored
    }
}
