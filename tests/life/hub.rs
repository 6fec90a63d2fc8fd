//! Async: the hub of a world: the real signer over a real database and a real CA folder, TLS as it is, and a ledger of what came.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::ready,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{
    Ca, CaError, DIALLED_NAME, Keys, Member, Name, Report, Role, Trusted, check_dialled, check_peer, client_config, door_config,
    issue_control,
    leaf::issuer_key,
    material::certificates,
    rotation::{Kind, Phase, RotationError},
    server_config, stranger_config,
};
use muster_hub::{
    admission::{self, Owner, Wanted, Whom},
    relays::Place,
    signer::{HubAt, Lives, Signer},
    store::Store,
};
use muster_mesh::{
    control_key::ControlKey,
    ids::{DeviceId, SpoolId, Version},
    join::JoinToken,
    limits,
    message::{Answer, Bundle, ControlChain, HeldVersion, HubAck, PostHead, Posted, Signed, SignedKind, Taken, Verdict},
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
    folder: TempDir,
    store: Arc<Store>,
    look: tokio::sync::Mutex<AnyConnection>,
    clock: Watch,
    pub keys: Arc<Keys>,
    seal: Vec<u8>,
    lives: Lives,
    control: ControlKey,
    control_pem: String,
    ca: Mutex<Ca>,
    /// Follows the CA's folder.
    leads: Mutex<Leads>,
    ledger: Mutex<Ledger>,
    network: Network,
    /// For whom the line to the hub alone is cut.
    pub unreachable: Mutex<BTreeSet<IpAddr>>,
}

/// What the CA's folder said last.
#[derive(Clone)]
struct Leads {
    signer: Arc<Signer>,
    bundle: Signed,
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
    /// Steps of a rotation that were refused because somebody would have been cut off.
    pub held_up: u32,
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
        let at = folder.path().join("ca");
        let ca = Ca::init_at(&at, DOMAIN, Arc::new(clock.clone())).unwrap();
        let own = ca.issue_hub("hub-1").unwrap();
        let keys = Keys::from_pem(&own.pem, &own.key_pem, ca.roots_pem(), Role::Hub, Arc::new(clock.clone())).unwrap();
        let url = format!("sqlite://{}", folder.path().join("muster.db").display());
        let store = Arc::new(Store::open(&url).await.unwrap());
        let look = AnyConnection::connect(&url).await.unwrap().into();
        let seal = SealKey::generate().unwrap().to_bytes();
        let control_pem = muster_certs::KeyRequest::generate().unwrap().key_pem;
        let control = ControlKey::from_pem(1, &control_pem).unwrap();
        let leads = Leads::read(&at, &clock, &store, &seal, lives, &control_pem, 1);
        Arc::new(Hub {
            folder,
            store,
            look,
            clock,
            keys,
            seal,
            lives,
            control,
            control_pem,
            ca: Mutex::new(ca),
            leads: Mutex::new(leads),
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

    fn leads(&self) -> Leads {
        self.leads.lock().unwrap().clone()
    }

    fn folder_of_ca(&self) -> PathBuf {
        self.folder.path().join("ca")
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
        let made = admission::token(&self.store, &self.leads().signer, wanted).await.unwrap();
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

    /// The next step of a rotation, as an admin takes it. `bundles`: whose roots are those of the CA's folder. False: somebody would be cut off.
    pub async fn rotate(&self, kind: Kind, bundles: &BTreeMap<Name, String>) -> bool {
        let report = self.report(bundles).await;
        let mut ca = self.ca.lock().unwrap();
        let root = ca.root_folder();
        let turning = ca.state().turn.as_ref().map(|turn| turn.kind());
        let moved = match (turning, kind) {
            (None, Kind::Issuing) => ca.start_issuing(&root),
            (None, Kind::Root) => ca.start_root(&root),
            (Some(_), _) => ca.advance(Some(&report), false),
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(CaError::Rotation(RotationError::CutsOff(_))) => {
                self.ledger().held_up += 1;
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        self.ledger().keys_destroyed += moved.destroyed.len();
        if let Some(kind) = turning.filter(|_| ca.state().turn.is_none()) {
            self.ledger().rotated[usize::from(kind == Kind::Root)] += 1;
        }
        self.follow(&ca);
        true
    }

    /// Who holds a certificate of another CA than the one that issues now.
    pub async fn not_moved(&self) -> Vec<String> {
        let report = self.report(&BTreeMap::new()).await;
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

    /// What a running hub takes up from its CA's folder: who issues, which roots count; and its own certificate, which ops renew.
    fn follow(&self, ca: &Ca) {
        let own = ca.reissue(&[self.name()]).unwrap();
        self.keys.replace_pem(&own[0].pem, &own[0].key_pem, ca.roots_pem()).unwrap();
        ca.replaced(&own).unwrap();
        let mut leads = self.leads.lock().unwrap();
        let version = leads.bundle.version.n + 1;
        *leads = Leads::read(&self.folder_of_ca(), &self.clock, &self.store, &self.seal, self.lives, &self.control_pem, version);
    }

    /// What `muster-hub member list --json` says.
    async fn report(&self, bundles: &BTreeMap<Name, String>) -> Report {
        let select = "SELECT name, chain, serial, not_after_ms FROM certificates AS it \
                      WHERE issued_ms = (SELECT MAX(issued_ms) FROM certificates WHERE name = it.name)";
        let rows = sqlx::query(select).fetch_all(&mut *self.look.lock().await).await.unwrap();
        let ca = self.ca.lock().unwrap();
        let member = |row: &sqlx::any::AnyRow| {
            let (name, chain): (String, String) = (row.get(0), row.get(1));
            let leaf = certificates("certificate", &chain, 4).unwrap().remove(0);
            let has_newest = bundles.get(&name.parse().unwrap()).is_some_and(|roots| roots == ca.roots_pem());
            Member {
                name,
                bundle_version: Some(if has_newest { ca.bundle_version() } else { ca.bundle_version() - 1 }),
                issuer_key: issuer_key(&leaf).unwrap(),
                serial: Some(row.get(2)),
                not_after_ms: Some(row.get(3)),
                last_seen_ms: Some(self.clock.now_ms()),
                denied: false,
            }
        };
        let signer_key = Some(ca.state().issuer().key.clone());
        Report { domain: DOMAIN.to_owned(), at_ms: self.clock.now_ms(), signer_key, members: rows.iter().map(member).collect() }
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
        self.ledger().serials.entry(relay.identity.name).or_default().insert(relay.serial);
        match errand {
            Errand::Ask(ask) => carried(&mut there, &mut here, &ask, |ask| self.answer(ask)).await,
            Errand::Post(body) => {
                carried(&mut there, &mut here, &body, |body| ready(self.take(body.into()).bytes().unwrap().to_vec())).await
            }
        }
    }

    /// Somebody without a certificate asks at the door.
    pub async fn ask_at_door(&self, from: IpAddr, trusted: &Trusted, time: muster_certs::Time, ask: &[u8]) -> Result<Vec<u8>, String> {
        let client = stranger_config(trusted, &self.name(), time, ALPN).unwrap();
        let (mut there, mut here) = self.connect(from, client, door_config(&self.keys, ALPN).unwrap()).await?;
        carried(&mut there, &mut here, ask, |ask| self.answer(ask)).await
    }

    async fn answer(&self, ask: Vec<u8>) -> Vec<u8> {
        let signer = self.leads().signer;
        signer.answer(&ask).await.bytes().unwrap()
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

    fn take(&self, body: Bytes) -> Answer {
        let (head, posted) = PostHead::read(body).unwrap();
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
        let bundle = self.leads().bundle;
        taken.versions = vec![HeldVersion { kind: bundle.kind, version: bundle.version }];
        if !head.versions.iter().any(|held| held.kind == bundle.kind && held.version >= bundle.version) {
            taken.signed.push(self.control.sign(&bundle).unwrap());
        }
        Answer::Taken(taken)
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

impl Leads {
    fn read(at: &std::path::Path, clock: &Watch, store: &Arc<Store>, seal: &[u8], lives: Lives, control_pem: &str, version: u32) -> Leads {
        let ca = Ca::open_at(at, Arc::new(clock.clone())).unwrap();
        let chain = issue_control(ca.issuer(), 1, control_pem, clock.now_ms()).unwrap().pem;
        let (roots, crosses) = (ca.roots_pem().to_owned(), ca.state().cross().unwrap_or_default().to_owned());
        let (ca_version, issuer) = (ca.bundle_version(), ca.issuer_key().to_owned());
        let controls = vec![ControlChain { n: 1, chain }];
        let bundle = Bundle { made_ms: clock.now_ms(), ca: ca_version, issuer, roots, crosses, controls };
        let bundle = Signed::new(SignedKind::Bundle, Version { epoch: 1, n: version }, bundle.bytes().unwrap());
        let hub = HubAt { name: Name::Hub { id: "hub-1".to_owned() }, address: "hub:8444".to_owned(), door: "hub:8445".to_owned() };
        let seal = SealKey::from_bytes(seal).unwrap();
        Leads { signer: Arc::new(Signer::new(store.clone(), Arc::new(clock.clone()), ca, seal, lives, hub)), bundle }
    }
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
