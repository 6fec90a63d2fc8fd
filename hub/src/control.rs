//! Async: the hub's signature: its control key, the bundle that vouches for it, the lists of the denied and of relays, and all that it signs.
//!
//! Each hub has a key of its own, in its state folder; its certificate comes from the signer, where this hub is that, or from files. The public
//! halves are rows, so that the bundle of any hub speaks for all of them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use muster_certs::{
    Ca, Controller, Denied, KeyRequest, Keys, Leaf, Name, Role, When, check_control,
    files::{self, FileError},
    issuer::{LEAF_LIFE_MAX_MS, leaf_life_ms},
    material::{CHAIN_CERTIFICATES_MAX, certificates, root_store, utc_text},
    read_leaf,
};
use muster_mesh::{
    complaint::Complaint,
    control_key::{ControlKey, Controls, SignError, Unproven},
    ids::Version,
    limits,
    message::{Bundle, ControlChain, Denial, DenyList, HeldVersion, MessageError, Signed, SignedKind},
    relay_list::{RelayList, SiteRelays},
};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    config::{Config, ControlFiles},
    laggards::Laggards,
    signer::Signer,
    store::{ControlKeyRow, ControlRow, Store, StoreError, StoredPaper, Writing},
};

const KEY: &str = "control.key";
const CERTIFICATE: &str = "control.pem";
/// What relays are expected to hold, and what metrics and logs call it.
const LAGGING: [(SignedKind, &str); 3] = [(SignedKind::Deny, "deny"), (SignedKind::Bundle, "bundle"), (SignedKind::Relays, "relays")];
/// Leaves a message's other fields their room.
const BUNDLE_BYTES_MAX: usize = limits::CONTROL_BYTES_MAX - 1_024;

/// A control key with its certificate.
pub struct Own {
    pub key: ControlKey,
    /// PEM.
    pub chain: String,
    /// None: it has this one for ever.
    pub renews: Option<Renews>,
}

/// How a hub comes by its next control certificate.
pub enum Renews {
    /// It has the issuing key, and issues it to itself. `state`: its state folder.
    Signer { signer: Arc<Signer>, key_pem: String, state: PathBuf },
    /// Somebody puts it there.
    Files(ControlFiles),
}

/// What this hub signs, and with what.
pub struct Control {
    store: Arc<Store>,
    /// Whom this hub's own handshakes believe, and refuse.
    keys: Arc<Keys>,
    own: ArcSwap<Own>,
    newest: ArcSwap<Newest>,
    /// What was signed once is sent as often as it is asked for: by kind.
    signed: Mutex<BTreeMap<u8, (Version, Vec<u8>)>>,
    /// Who has said that it holds what, as far as it was noted since the start.
    noted: Mutex<BTreeMap<(String, u8), Version>>,
    /// Who goes on saying that it holds less than it is given.
    laggards: Mutex<Laggards>,
    /// One change at a time; what the newest versions were made of.
    changing: AsyncMutex<Option<Sources>>,
    denied: watch::Sender<Arc<Denied>>,
}

/// What holds right now.
#[derive(Debug, Clone)]
struct Newest {
    bundle: StoredPaper,
    /// None: nobody was ever denied.
    deny: Option<StoredPaper>,
    /// None: no relay was ever known.
    relays: Option<StoredPaper>,
    /// Who believes this hub's bundle believes this.
    controls: Controls,
}

/// What a bundle says of the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Roots {
    ca: u64,
    issuer: String,
    roots: String,
    crosses: String,
}

/// When something is given out again under a version of its own.
#[derive(Debug, Clone, Copy)]
struct Above {
    /// This hub was given other roots in its files: where no hub has the issuing key they are everybody's.
    own_files: bool,
    /// In any case.
    all: bool,
    /// Others hold this version of a kind: the next one is above it.
    over: Option<(SignedKind, Version)>,
}

impl Above {
    const NOTHING: Above = Above { own_files: false, all: false, over: None };

    /// Whether a kind is given out again although it says the same.
    fn raises(self, kind: SignedKind, newest: Option<Version>) -> bool {
        self.all || self.floor(kind) > newest.unwrap_or_default()
    }

    /// What the next version of a kind is above of.
    fn floor(self, kind: SignedKind) -> Version {
        self.over.filter(|over| over.0 == kind).map(|over| over.1).unwrap_or_default()
    }
}

/// All that the bundle and the lists are made of.
#[derive(Debug, PartialEq, Eq)]
struct Sources {
    keys: Vec<ControlRow>,
    denied: Vec<Denial>,
    roots: Roots,
    sites: BTreeMap<String, SiteRelays>,
    /// Of the bundle, the list of the denied, the list of relays.
    versions: [Option<Version>; 3],
}

/// Why something isn't signed, or believed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it can't be signed: {0}")]
    Sign(#[from] SignError),
    #[error("it can't be written: {0}")]
    Message(#[from] MessageError),
    #[error("it isn't this mesh's hub's word: {0}")]
    Unproven(#[from] Unproven),
    #[error("there is no version above it")]
    Highest,
}

impl Control {
    /// Looks what is to be signed, and keeps new versions of it. `restored`: above all that was ever given out.
    pub async fn open(store: Arc<Store>, keys: Arc<Keys>, own: Own, restored: bool, now_ms: i64) -> anyhow::Result<Control> {
        let mut writing = store.write().await?;
        writing.keep_control_key(own.key.n(), &own.chain, now_ms).await?;
        writing.commit().await?;
        let newest = Newest::make(&store, &keys, &own, Above { own_files: true, all: restored, over: None }, now_ms).await?;
        newest.trusted_by(&keys);
        let denied = Arc::new(newest.denied()?);
        keys.deny(Denied::clone(&denied));
        Ok(Control {
            store,
            keys,
            own: ArcSwap::from_pointee(own),
            newest: ArcSwap::from_pointee(newest),
            signed: Mutex::default(),
            noted: Mutex::default(),
            laggards: Mutex::default(),
            changing: AsyncMutex::default(),
            denied: watch::channel(denied).0,
        })
    }

    /// Looks again: a certificate that is due, another hub's key, somebody who was denied.
    pub async fn look(&self, now_ms: i64) -> anyhow::Result<()> {
        let mut made_of = self.changing.lock().await;
        // Whoever was denied is denied although there is trouble with this hub's own key.
        let renewed = match self.replace_ended(now_ms).await {
            Ok(()) => self.renew(now_ms).await,
            Err(error) => Err(error),
        };
        let sources = self.sources(now_ms).await?;
        if made_of.as_ref() != Some(&sources) {
            let own_files = made_of.as_ref().is_some_and(|old| old.roots != sources.roots);
            self.remake(Above { own_files, ..Above::NOTHING }, now_ms).await?;
            // What has changed since `sources` was read differs from it at the next look, whether it is in the new versions or not.
            *made_of = Some(Sources { versions: self.newest.load().versions(), ..sources });
        }
        renewed
    }

    async fn sources(&self, now_ms: i64) -> Result<Sources, StoreError> {
        let newest = async |kind: SignedKind| Ok::<_, StoreError>(self.store.newest_paper(kind.as_u8()).await?.map(|paper| paper.version));
        let versions = [newest(SignedKind::Bundle).await?, newest(SignedKind::Deny).await?, newest(SignedKind::Relays).await?];
        Ok(Sources {
            keys: self.store.control_keys().await?,
            denied: self.store.denied(now_ms).await?,
            roots: Roots::of(self.own.load().leads(), &self.keys),
            sites: self.store.relay_sites().await?,
            versions,
        })
    }

    async fn remake(&self, above: Above, now_ms: i64) -> Result<(), ControlError> {
        let newest = Newest::make(&self.store, &self.keys, &self.own.load(), above, now_ms).await?;
        let denied = newest.denied()?;
        newest.trusted_by(&self.keys);
        self.newest.store(Arc::new(newest));
        if denied != **self.denied.borrow() {
            tracing::info!(names = denied.len(), "the list of the denied has changed");
            self.keys.deny(denied.clone());
            self.denied.send_replace(Arc::new(denied));
        }
        Ok(())
    }

    /// Where somebody ended this hub's key, or put another into its files: the other in its place.
    async fn replace_ended(&self, now_ms: i64) -> anyhow::Result<()> {
        let own = self.own.load_full();
        if !ended_keys(&self.store).await?.iter().any(|ended| ended.n == own.key.n()) {
            return Ok(());
        }
        let new = match &own.renews {
            Some(Renews::Signer { signer, state, .. }) => Own::of_signer(state, signer, &self.store, now_ms).await?,
            Some(Renews::Files(at)) => Own::of_files(at, &self.keys, &self.store, now_ms).await?,
            None => return Err(was_ended(own.key.n()).into()),
        };
        self.sign_with(new, now_ms).await
    }

    async fn sign_with(&self, new: Own, now_ms: i64) -> anyhow::Result<()> {
        let mut writing = self.store.write().await?;
        writing.keep_control_key(new.key.n(), &new.chain, now_ms).await?;
        writing.commit().await?;
        tracing::info!(n = new.key.n(), "this hub signs with a new control key");
        self.own.store(Arc::new(new));
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// The certificate: the key stays, where nobody puts another there.
    async fn renew(&self, now_ms: i64) -> anyhow::Result<()> {
        let own = self.own.load_full();
        let rows = self.store.control_keys().await?;
        let Some(row) = rows.iter().find(|row| row.n == own.key.n()) else { return Ok(()) };
        let chain = match &own.renews {
            Some(Renews::Signer { signer, key_pem, state }) if is_due(&row.chain, &signer.ca(), now_ms) => {
                let chain = signer.control_chain(row.n, key_pem)?;
                files::write_public(&state.join(CERTIFICATE), chain.as_bytes())?;
                chain
            }
            Some(Renews::Files(at)) if files::read(&at.certificate).is_ok_and(|chain| chain != row.chain) => {
                let new = Own::of_files(at, &self.keys, &self.store, now_ms).await?;
                if (new.key.n(), new.key.public()) != (own.key.n(), own.key.public()) {
                    return self.sign_with(new, now_ms).await;
                }
                new.chain
            }
            Some(_) | None => return Ok(()),
        };
        let mut writing = self.store.write().await?;
        writing.keep_control_key(row.n, &chain, now_ms).await?;
        writing.commit().await?;
        tracing::info!(n = row.n, "the control certificate was renewed");
        Ok(())
    }

    // --- signing ---

    /// Signs something that is said once, such as an ack.
    pub fn sign(&self, signed: &Signed) -> Result<Vec<u8>, SignError> {
        self.own.load().key.sign(signed)
    }

    /// Signs something that many are told, once.
    fn sign_once(&self, signed: &Signed) -> Result<Vec<u8>, SignError> {
        let mut all = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = all.get(&signed.kind).filter(|(version, _)| *version == signed.version) {
            return Ok(bytes.clone());
        }
        let bytes = self.own.load().key.sign(signed)?;
        all.insert(signed.kind, (signed.version, bytes.clone()));
        Ok(bytes)
    }

    /// Versions of what this hub signs besides `others`, the bundle first.
    pub fn versions(&self, others: &[Signed]) -> Vec<HeldVersion> {
        let all = self.papers().into_iter().chain(others.iter().cloned());
        all.map(|signed| HeldVersion { kind: signed.kind, version: signed.version }).collect()
    }

    /// What a relay that holds these versions still needs, the bundle first, by which it believes the others.
    pub fn newer_than(&self, held: &[HeldVersion], others: &[Signed]) -> Result<Vec<Vec<u8>>, SignError> {
        // Of one kind a relay names what it holds itself, then what one of its agents holds: it needs what it lacks itself.
        let lowest = |kind: u8| held.iter().filter(|held| held.kind == kind).map(|held| held.version).min();
        let papers = self.papers();
        let needed = papers.iter().chain(others).filter(|own| lowest(own.kind).is_none_or(|held| held < own.version));
        needed.map(|signed| self.sign_once(signed)).collect()
    }

    fn papers(&self) -> Vec<Signed> {
        let newest = self.newest.load();
        let of = |kind: SignedKind, paper: &StoredPaper| Signed::new(kind, paper.version, paper.body.clone());
        let newest = |kind: SignedKind| newest.of(kind).map(|paper| of(kind, paper));
        [SignedKind::Bundle, SignedKind::Deny, SignedKind::Relays].into_iter().filter_map(newest).collect()
    }

    /// Who is denied, and told whenever that changes.
    pub fn denied(&self) -> watch::Receiver<Arc<Denied>> {
        self.denied.subscribe()
    }

    /// Shows versions and ages to monitoring.
    pub fn measure(&self, now_ms: i64) {
        let newest = self.newest.load();
        let age_s = |made_ms: i64| now_ms.saturating_sub(made_ms).max(0) as f64 / 1_000.0;
        if let Ok(bundle) = Bundle::read(&newest.bundle.body) {
            metrics::gauge!("muster_bundle_version").set(newest.bundle.version.number() as f64);
            metrics::gauge!("muster_bundle_age_seconds").set(age_s(bundle.made_ms));
        }
        if let Some((paper, list)) = newest.deny.as_ref().and_then(|paper| Some((paper, DenyList::read(&paper.body).ok()?))) {
            metrics::gauge!("muster_deny_list_version").set(paper.version.number() as f64);
            metrics::gauge!("muster_deny_list_age_seconds").set(age_s(list.made_ms));
        }
        for (kind, name) in LAGGING {
            metrics::gauge!("muster_hub_relays_behind", "kind" => name).set(self.behind(kind, now_ms) as f64);
        }
    }

    // --- what others hold ---

    /// Notes which bundle and which list of the denied somebody says it holds. `said_ms`: the speaker's clock.
    pub async fn held(&self, name: &str, held: &[HeldVersion], now_ms: i64, said_ms: i64) -> Result<(), StoreError> {
        self.look_for_laggards(name, held, now_ms);
        for kind in [SignedKind::Bundle, SignedKind::Deny].map(SignedKind::as_u8) {
            // The lowest is the speaker's own.
            let Some(version) = held.iter().filter(|held| held.kind == kind).map(|held| held.version).min() else { continue };
            let key = (name.to_owned(), kind);
            let is_noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner).get(&key) == Some(&version);
            if !is_noted && version != Version::default() {
                self.store.note_held(name, kind, version, now_ms, said_ms).await?;
                self.noted.lock().unwrap_or_else(PoisonError::into_inner).insert(key, version);
            }
        }
        Ok(())
    }

    /// How many relays go on speaking with this hub, and on holding less of a kind than they are given.
    pub fn behind(&self, kind: SignedKind, now_ms: i64) -> usize {
        self.laggards.lock().unwrap_or_else(PoisonError::into_inner).behind(kind.as_u8(), now_ms)
    }

    /// Whoever holds less gets the newest with this answer, as with each before; one who never has it then is told of.
    fn look_for_laggards(&self, name: &str, held: &[HeldVersion], now_ms: i64) {
        let newest = self.newest.load();
        let mut laggards = self.laggards.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, called) in LAGGING {
            let own = held.iter().filter(|held| held.kind == kind.as_u8()).map(|held| held.version).min().unwrap_or_default();
            if newest.of(kind).is_none_or(|newest| own >= newest.version) {
                laggards.holds(name, kind.as_u8());
            } else if laggards.given(name, kind.as_u8(), now_ms) {
                tracing::warn!(
                    relay = name,
                    kind = called,
                    "a relay is given what this hub signs with each answer, and goes on holding less"
                );
            }
        }
    }

    /// Somebody shows what a hub of this mesh signed, because it is above what this hub says, or says more. What this database lacks of it is
    /// taken over, and given out under a version above it. Returns what was shown, for others to take theirs from.
    pub async fn shown(&self, bytes: &[u8], now_ms: i64) -> Result<Signed, ControlError> {
        let _one_change = self.changing.lock().await;
        let kind = SignedKind::from_u8(Signed::read(bytes)?.kind);
        let newest = self.newest.load_full();
        match kind {
            Some(SignedKind::Bundle) => {
                let stranger = Controls::new(&self.keys.identity().domain, newest.controls.roots());
                let (_, signed, bundle) = stranger.taking(bytes, &self.keys.denied(), When::Kept(now_ms))?;
                let lacks = self.take_keys(&bundle, newest.controls.roots(), now_ms).await?;
                self.above(SignedKind::Bundle, &signed, lacks, now_ms).await?;
                Ok(signed)
            }
            Some(SignedKind::Deny) => {
                let signed = newest.controls.read(bytes, &self.keys.denied())?;
                let list = DenyList::read(&signed.body)?;
                let own = newest.deny.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?.unwrap_or_default();
                let lacks = !own.covers(&list, now_ms);
                if lacks {
                    let mut writing = self.store.write().await?;
                    for denial in list.denied.iter().filter(|denial| denial.until_ms > now_ms) {
                        writing.deny(denial, now_ms, "a relay has kept the list that said so").await?;
                    }
                    writing.commit().await?;
                    tracing::warn!(
                        "a relay knows of somebody who was denied and isn't in this database: it was put back, and takes it over"
                    );
                }
                self.above(SignedKind::Deny, &signed, lacks, now_ms).await?;
                Ok(signed)
            }
            Some(SignedKind::Relays) => {
                let signed = newest.controls.read(bytes, &self.keys.denied())?;
                // What the database says counts; only its version has to be above.
                self.above(SignedKind::Relays, &signed, false, now_ms).await?;
                Ok(signed)
            }
            Some(SignedKind::Ack | SignedKind::Policy | SignedKind::Notice) | None => {
                Ok(newest.controls.read(bytes, &self.keys.denied())?)
            }
        }
    }

    /// Control keys of a bundle that this database doesn't have. True: there were some.
    async fn take_keys(&self, bundle: &Bundle, roots: &str, now_ms: i64) -> Result<bool, StoreError> {
        let domain = self.keys.identity().domain;
        let Ok(roots) = root_store(roots) else { return Ok(false) };
        let mut writing = self.store.write().await?;
        let mut lacks = false;
        for ControlChain { n, chain } in &bundle.controls {
            let is_ours =
                check_control(chain, &bundle.crosses, &roots, &domain, When::Kept(i64::MAX)).is_ok_and(|controller| controller.n == *n);
            if is_ours && writing.control_key(*n).await?.is_none() {
                writing.keep_control_key(*n, chain, now_ms).await?;
                lacks = true;
            }
        }
        writing.commit().await?;
        Ok(lacks)
    }

    /// Gives out what holds here under a version above one that others hold; `lacks`: something was taken over from it.
    async fn above(&self, kind: SignedKind, shown: &Signed, lacks: bool, now_ms: i64) -> Result<(), ControlError> {
        if shown.version.epoch == u32::MAX {
            return Err(ControlError::Highest);
        }
        let held = self.newest.load().of(kind).map(|paper| paper.version);
        if !lacks && held.is_some_and(|held| held >= shown.version) {
            return Ok(());
        }
        // Maybe another hub of this database gave it out a moment ago: then nothing is raised.
        self.remake(Above { over: Some((kind, shown.version)), ..Above::NOTHING }, now_ms).await
    }
}

impl Roots {
    /// As this hub has them.
    fn of(leads: Option<&Signer>, keys: &Keys) -> Roots {
        let Some(ca) = leads.map(Signer::ca) else {
            return Roots { ca: 0, issuer: String::new(), roots: keys.roots_pem(), crosses: String::new() };
        };
        let crosses = ca.state().cross().unwrap_or_default().to_owned();
        Roots { ca: ca.bundle_version(), issuer: ca.issuer_key().to_owned(), roots: ca.roots_pem().to_owned(), crosses }
    }

    fn in_bundle(bundle: &Bundle) -> Roots {
        let Bundle { ca, issuer, roots, crosses, .. } = bundle.clone();
        Roots { ca, issuer, roots, crosses }
    }
}

impl Newest {
    /// Everything as the database has it now; what differs from the newest version is given a new one. `above`: in any case.
    async fn make(store: &Store, keys: &Keys, own: &Own, above: Above, now_ms: i64) -> Result<Newest, ControlError> {
        let own_roots = Roots::of(own.leads(), keys);
        let mut writing = store.write().await?;
        let bundle = bundle(&mut writing, own.leads(), &own_roots, above, now_ms).await?;
        let deny = deny_list(&mut writing, above, now_ms).await?;
        let relays = relay_list(&mut writing, above, now_ms).await?;
        writing.commit().await?;
        let stranger = Controls::new(&keys.identity().domain, &own_roots.roots);
        let signed = own.key.sign(&Signed::new(SignedKind::Bundle, bundle.version, bundle.body.clone()))?;
        let (controls, _, _) = stranger.taking(&signed, &Denied::default(), When::Kept(now_ms))?;
        Ok(Newest { bundle, deny, relays, controls })
    }

    /// As in [`Sources`].
    fn versions(&self) -> [Option<Version>; 3] {
        let version = |paper: &StoredPaper| paper.version;
        [Some(version(&self.bundle)), self.deny.as_ref().map(version), self.relays.as_ref().map(version)]
    }

    fn of(&self, kind: SignedKind) -> Option<&StoredPaper> {
        match kind {
            SignedKind::Bundle => Some(&self.bundle),
            SignedKind::Deny => self.deny.as_ref(),
            SignedKind::Relays => self.relays.as_ref(),
            SignedKind::Ack | SignedKind::Policy | SignedKind::Notice => None,
        }
    }

    /// The roots of the CA count at this hub's own ports, too, whatever its file says.
    fn trusted_by(&self, keys: &Keys) {
        if let Ok(bundle) = Bundle::read(&self.bundle.body)
            && bundle.ca > 0
            && bundle.roots != keys.roots_pem()
            && let Err(error) = keys.trust(&bundle.roots)
        {
            tracing::error!(%error, "the CA's roots aren't trusted at this hub's ports; those that were there stay");
        }
    }

    fn denied(&self) -> Result<Denied, MessageError> {
        let list = self.deny.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?;
        Ok(list.unwrap_or_default().denied())
    }
}

async fn bundle(
    writing: &mut Writing<'_>,
    leads: Option<&Signer>,
    own_roots: &Roots,
    above: Above,
    now_ms: i64,
) -> Result<StoredPaper, ControlError> {
    let kind = SignedKind::Bundle.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    let known = newest.as_ref().map(|paper| Bundle::read(&paper.body)).transpose()?;
    // Where the issuing key is, the roots are known; the other hubs follow. Where no hub has it, whoever was given other roots last leads.
    let Roots { ca, issuer, roots, crosses } = match &known {
        Some(known) if leads.is_none() && (known.ca > 0 || !above.own_files) => Roots::in_bundle(known),
        Some(_) | None => own_roots.clone(),
    };
    let rows = writing.control_keys().await?;
    let controls = rows.into_iter().map(|row| ControlChain { n: row.n, chain: row.chain }).collect();
    let wanted = Bundle { made_ms: known.as_ref().map_or(now_ms, |known| known.made_ms), ca, issuer, roots, crosses, controls };
    match newest {
        Some(newest) if !above.raises(SignedKind::Bundle, Some(newest.version)) && known.as_ref() == Some(&wanted) => Ok(newest),
        newest => {
            let body = Bundle { made_ms: now_ms, ..wanted }.bytes()?;
            if body.len() > BUNDLE_BYTES_MAX {
                return Err(MessageError::TooLong(body.len()).into());
            }
            next(writing, SignedKind::Bundle, epoch, newest, above, body, now_ms).await
        }
    }
}

async fn deny_list(writing: &mut Writing<'_>, above: Above, now_ms: i64) -> Result<Option<StoredPaper>, ControlError> {
    let kind = SignedKind::Deny.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    let known = newest.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?;
    let wanted = DenyList { made_ms: now_ms, denied: writing.denied(now_ms).await? };
    let is_same = known.as_ref().map_or(wanted.denied.is_empty(), |known| known.denied == wanted.denied);
    if is_same && !must_rise(SignedKind::Deny, newest.as_ref(), above) {
        return Ok(newest);
    }
    let body = wanted.bytes()?;
    if body.len() > limits::DENY_BYTES_MAX {
        // Who denies is told so before; only what relays show from before a restore can come to this.
        tracing::error!(names = wanted.denied.len(), "the list of the denied is too long to be given out: the one before it holds");
        return Ok(newest);
    }
    let paper = next(writing, SignedKind::Deny, epoch, newest, above, body, now_ms).await?;
    writing.note_denied(&wanted, paper.version).await?;
    Ok(Some(paper))
}

async fn relay_list(writing: &mut Writing<'_>, above: Above, now_ms: i64) -> Result<Option<StoredPaper>, ControlError> {
    let kind = SignedKind::Relays.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    let known = newest.as_ref().map(|paper| RelayList::read(&paper.body)).transpose()?;
    let wanted = RelayList { made_ms: now_ms, sites: writing.relay_sites().await? };
    let is_same = known.as_ref().map_or(wanted.sites.is_empty(), |known| known.sites == wanted.sites);
    if is_same && !must_rise(SignedKind::Relays, newest.as_ref(), above) {
        return Ok(newest);
    }
    let body = wanted.bytes()?;
    if body.len() > limits::RELAYS_BYTES_MAX {
        // Who says where relays are is told so before; only a join can come to this.
        tracing::error!(sites = wanted.sites.len(), "the list of relays is too long to be given out: the one before it holds");
        return Ok(newest);
    }
    Ok(Some(next(writing, SignedKind::Relays, epoch, newest, above, body, now_ms).await?))
}

/// Whether a list that says what it said is given out again. One that says nothing and never did isn't, unless others hold one.
fn must_rise(kind: SignedKind, newest: Option<&StoredPaper>, above: Above) -> bool {
    let is_over = above.floor(kind) > Version::default();
    above.raises(kind, newest.map(|newest| newest.version)) && (newest.is_some() || is_over)
}

async fn next(
    writing: &mut Writing<'_>,
    kind: SignedKind,
    epoch: u32,
    newest: Option<StoredPaper>,
    above: Above,
    body: Vec<u8>,
    now_ms: i64,
) -> Result<StoredPaper, ControlError> {
    let last = newest.map(|newest| newest.version).unwrap_or_default().max(above.floor(kind));
    let epoch = epoch.max(last.epoch);
    let version = match last.n.checked_add(1) {
        Some(n) => Version { epoch, n },
        None => Version { epoch: epoch.checked_add(1).ok_or(ControlError::Highest)?, n: 1 },
    };
    let paper = StoredPaper { version, body };
    writing.add_paper(kind.as_u8(), &paper, now_ms).await?;
    Ok(paper)
}

// --- this hub's own key ---

impl Own {
    fn leads(&self) -> Option<&Signer> {
        match &self.renews {
            Some(Renews::Signer { signer, .. }) => Some(signer),
            Some(Renews::Files(_)) | None => None,
        }
    }

    /// From the files that the configuration names, or from the state folder and the signer.
    pub async fn find(config: &Config, keys: &Keys, signer: Option<&Arc<Signer>>, store: &Store, now_ms: i64) -> anyhow::Result<Own> {
        match (&config.control, signer) {
            (Some(files), _) => Ok(Own::of_files(files, keys, store, now_ms).await?),
            (None, Some(signer)) => Own::of_signer(&config.state, signer, store, now_ms).await,
            (None, None) => Err(signs_nothing().into()),
        }
    }

    async fn of_files(at: &ControlFiles, keys: &Keys, store: &Store, now_ms: i64) -> Result<Own, Complaint> {
        let (own, key, chain) = read_files(at, keys, now_ms)?;
        if own.leaf.not_after_ms < now_ms {
            tracing::warn!(
                "the control certificate ended on {}: who joins now believes nothing that this hub says",
                utc_text(own.leaf.not_after_ms)
            );
        }
        let unreadable = |error: StoreError| Complaint::new(format!("The hub's database can't be read ({error})"), "Try again");
        let is_taken = is_taken(store, &own).await.map_err(unreadable)?;
        if was_ever_ended(store, own.n, &own.public_key).await.map_err(unreadable)? {
            return Err(was_ended(own.n));
        }
        if is_taken {
            return Err(Complaint::new(format!("control key {} is another hub's", own.n), "Issue this hub one with a number of its own"));
        }
        Ok(Own { key, chain, renews: Some(Renews::Files(at.clone())) })
    }

    async fn of_signer(state: &Path, signer: &Arc<Signer>, store: &Store, now_ms: i64) -> anyhow::Result<Own> {
        let certificate = state.join(CERTIFICATE);
        let key_pem = key_pem(&state.join(KEY), store).await?;
        let public = ControlKey::from_pem(0, &key_pem).map(|key| key.public().to_vec());
        let ca = signer.ca();
        let kept = files::read(&certificate).ok().and_then(|chain| {
            let own = controller(&chain, &ca)?;
            (Some(&own.public_key) == public.as_ref()).then_some((chain, own))
        });
        let (n, kept) = match kept {
            Some((chain, own)) if !is_taken(store, &own).await? && !was_ever_ended(store, own.n, &own.public_key).await? => {
                (own.n, (!is_due(&chain, &ca, now_ms)).then_some(chain))
            }
            Some(_) | None => (store.highest_control_key().await?.saturating_add(1), None),
        };
        let chain = match kept {
            Some(chain) => chain,
            None => {
                let chain = signer.control_chain(n, &key_pem)?;
                files::write_public(&certificate, chain.as_bytes())?;
                chain
            }
        };
        let key = ControlKey::from_pem(n, &key_pem).ok_or_else(|| damaged_key(&state.join(KEY)))?;
        Ok(Own { key, chain, renews: Some(Renews::Signer { signer: signer.clone(), key_pem, state: state.to_owned() }) })
    }
}

/// What would stop `serve`, or what this hub signs with.
pub fn check(config: &Config, keys: &Keys, now_ms: i64) -> Result<String, Complaint> {
    match (&config.control, &config.signer) {
        (Some(files), _) => {
            let (own, _, _) = read_files(files, keys, now_ms)?;
            Ok(format!("{}, until {}", own.leaf.identity, utc_text(own.leaf.not_after_ms)))
        }
        (None, Some(_)) => Ok("with a key of its own, certified by the signer".to_owned()),
        (None, None) => Err(signs_nothing()),
    }
}

/// The number of the key that this hub signs with, as its files say it. None: it has none yet.
pub fn own_number(config: &Config) -> Option<u32> {
    match leaf_of(&own_chain(config)?)?.identity.name {
        Name::Control { n } => Some(n),
        Name::Hub { .. } | Name::Relay { .. } | Name::Agent { .. } => None,
    }
}

/// The public half of the key that this hub signs with, as its files say it. None: it has none yet.
pub fn own_public(config: &Config) -> Option<Vec<u8>> {
    public_of(&own_chain(config)?)
}

fn own_chain(config: &Config) -> Option<String> {
    let path = config.control.as_ref().map_or_else(|| config.state.join(CERTIFICATE), |files| files.certificate.clone());
    files::read(&path).ok()
}

fn signs_nothing() -> Complaint {
    let what = "this hub can sign nothing of what comes down, and no agent would believe it";
    Complaint::new(what, "Give [control] certificate and key, as `muster-certs issue control` writes them, or [signer]")
}

fn read_files(at: &ControlFiles, keys: &Keys, now_ms: i64) -> Result<(Controller, ControlKey, String), Complaint> {
    let todo = "Give what `muster-certs issue control` wrote as `control.certificate` and `control.key`";
    let unusable = |why: String| Complaint::new(format!("The hub's control certificate can't be used ({why})"), todo);
    let chain = files::read(&at.certificate).map_err(|error| unusable(error.to_string()))?;
    let pem = files::read_secret(&at.key).map_err(|error| unusable(error.to_string()))?;
    let roots = root_store(&keys.roots_pem()).map_err(|error| unusable(error.to_string()))?;
    let domain = keys.identity().domain;
    let own = check_control(&chain, "", &roots, &domain, When::Kept(now_ms)).map_err(|error| unusable(error.to_string()))?;
    let key = ControlKey::from_pem(own.n, &pem).filter(|key| key.public() == own.public_key);
    let key = key.ok_or_else(|| unusable("the key is that of another certificate, or none".to_owned()))?;
    Ok((own, key, chain))
}

/// The key of the state folder; made when it isn't there, or was ended.
async fn key_pem(path: &Path, store: &Store) -> anyhow::Result<String> {
    match files::read_secret(path) {
        Ok(pem) => {
            let key = ControlKey::from_pem(0, &pem).ok_or_else(|| damaged_key(path))?;
            if was_ever_ended(store, 0, key.public()).await? {
                let made = KeyRequest::generate()?.key_pem;
                files::write_secret(path, made.as_bytes())?;
                return Ok(made);
            }
            Ok(pem)
        }
        Err(FileError::Missing(_)) => {
            let made = KeyRequest::generate()?.key_pem;
            files::create_secret(path, made.as_bytes())?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

fn damaged_key(path: &Path) -> Complaint {
    Complaint::new(format!("{} holds no control key", path.display()), "Restore it, or take the file away: a new one is made")
}

fn was_ended(n: u32) -> Complaint {
    let what = format!("control key {n} was ended, and nobody believes what it signs");
    Complaint::new(what, "Put another into the files of [control], as `muster-certs issue control` writes it with a number that none had")
}

async fn ended_keys(store: &Store) -> Result<Vec<ControlKeyRow>, StoreError> {
    let mut keys = store.control_keys_ever().await?;
    keys.retain(|key| key.ended_ms.is_some());
    Ok(keys)
}

/// A number never comes back, and neither does a key.
async fn was_ever_ended(store: &Store, n: u32, public_key: &[u8]) -> Result<bool, StoreError> {
    let is_it = |ended: &ControlKeyRow| ended.n == n || public_of(&ended.chain).is_some_and(|public| public == public_key);
    Ok(ended_keys(store).await?.iter().any(is_it))
}

/// Nobody is to believe a control key any more. Each hub leaves it out of its next bundle, within a second; and its name is denied, so that who
/// stole it can't bring a bundle of its own that vouches for it, and no backup of the database lets it in again. False: it didn't count before.
pub async fn end_key(store: &Store, n: u32, now_ms: i64) -> Result<bool, DenyError> {
    let mut writing = store.write().await?;
    if writing.control_key(n).await?.is_none() || !writing.end_control_key(n, now_ms).await? {
        return Ok(false);
    }
    let until_ms = now_ms.saturating_add(leaf_life_ms(Role::Control));
    let name = Name::Control { n }.to_string();
    add_denial(&mut writing, &Denial { name, issued_before_ms: now_ms, until_ms }, now_ms, "its control key was ended").await?;
    writing.commit().await?;
    Ok(true)
}

fn leaf_of(chain: &str) -> Option<Leaf> {
    let ders = certificates("certificate", chain, CHAIN_CERTIFICATES_MAX).ok()?;
    read_leaf(ders.first()?).ok()
}

/// Nobody takes a certificate any more that was issued to this name until now. Running hubs see it within a second.
pub async fn deny(store: &Store, name: &Name, now_ms: i64, why: &str) -> Result<(), DenyError> {
    let name = name.to_string();
    let mut writing = store.write().await?;
    // What came from files isn't in the database, and neither is what was issued since a backup was taken: it counts until the last of them must
    // have ended.
    let until_ms = now_ms.saturating_add(LEAF_LIFE_MAX_MS);
    add_denial(&mut writing, &Denial { name, issued_before_ms: now_ms, until_ms }, now_ms, why).await?;
    Ok(writing.commit().await?)
}

async fn add_denial(writing: &mut Writing<'_>, denial: &Denial, now_ms: i64, why: &str) -> Result<(), DenyError> {
    writing.deny(denial, now_ms, why).await?;
    let list = DenyList { made_ms: now_ms, denied: writing.denied(now_ms).await? };
    if list.bytes()?.len() > limits::DENY_BYTES_MAX {
        return Err(DenyError::Full(list.denied.len()));
    }
    Ok(())
}

/// Why nobody more is denied.
#[derive(Debug, thiserror::Error)]
pub enum DenyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("{0} names don't fit into one list; rotate the issuing CA, by which all old certificates end at once")]
    Full(usize),
}

/// Whether another key has this number.
async fn is_taken(store: &Store, own: &Controller) -> Result<bool, StoreError> {
    let rows = store.control_keys().await?;
    let Some(row) = rows.iter().find(|row| row.n == own.n) else { return Ok(false) };
    Ok(public_of(&row.chain).is_some_and(|public| public != own.public_key))
}

/// Of a chain that was checked when it became a row.
fn public_of(chain: &str) -> Option<Vec<u8>> {
    muster_certs::control::public_key(chain).ok()
}

/// Behind which one of the CA's roots stands.
fn controller(chain: &str, ca: &Ca) -> Option<Controller> {
    check_control(chain, "", &root_store(ca.roots_pem()).ok()?, ca.domain(), When::Kept(i64::MAX)).ok()
}

/// At half of its life, and when another issuing CA issues.
fn is_due(chain: &str, ca: &Ca, now_ms: i64) -> bool {
    let Some(own) = controller(chain, ca).filter(|own| own.leaf.issuer.as_deref() == Some(ca.issuer_key())) else { return true };
    let life_ms = own.leaf.not_after_ms.saturating_sub(own.leaf.not_before_ms).min(leaf_life_ms(Role::Control));
    now_ms > own.leaf.not_after_ms.saturating_sub(life_ms / 2)
}
