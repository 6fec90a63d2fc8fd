//! Async: the hub's signature: its control key, the bundle that vouches for it, the list of the denied, and all that it signs.
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
    Controller, Denied, KeyRequest, Keys, Name, When, check_control,
    files::{self, FileError},
    issuer::{ISSUING_LIFE_MS, leaf_life_ms},
    material::{root_store, utc_text},
};
use muster_mesh::{
    complaint::Complaint,
    control_key::{ControlKey, Controls, SignError, Unproven},
    ids::Version,
    limits,
    message::{Bundle, ControlChain, Denial, DenyList, HeldVersion, MessageError, Signed, SignedKind},
};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    config::{Config, ControlFiles},
    laggards::Laggards,
    signer::Signer,
    store::{ControlRow, Store, StoreError, StoredPaper, Writing},
};

const KEY: &str = "control.key";
const CERTIFICATE: &str = "control.pem";
/// What relays are expected to hold, and what metrics and logs call it.
const LAGGING: [(SignedKind, &str); 2] = [(SignedKind::Deny, "deny"), (SignedKind::Bundle, "bundle")];
/// Leaves a message's other fields their room.
const BUNDLE_BYTES_MAX: usize = limits::CONTROL_BYTES_MAX - 1_024;

/// A control key with its certificate.
pub struct Own {
    pub key: ControlKey,
    /// PEM.
    pub chain: String,
    /// Some: this hub issues its own certificate, and renews it.
    pub renews: Option<Renews>,
}

/// How a hub with the issuing key comes by its control certificate.
pub struct Renews {
    signer: Arc<Signer>,
    key_pem: String,
    certificate: PathBuf,
}

/// What this hub signs, and with what.
pub struct Control {
    store: Arc<Store>,
    /// Whom this hub's own handshakes believe, and refuse.
    keys: Arc<Keys>,
    own: Own,
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
    /// Who believes this hub's bundle believes this.
    controls: Controls,
}

/// All that the bundle and the list of the denied are made of.
#[derive(Debug, PartialEq, Eq)]
struct Sources {
    keys: Vec<ControlRow>,
    denied: Vec<Denial>,
    roots: Option<String>,
    bundle: Option<Version>,
    deny: Option<Version>,
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
}

impl Control {
    /// Looks what is to be signed, and keeps new versions of it. `restored`: above all that was ever given out.
    pub async fn open(store: Arc<Store>, keys: Arc<Keys>, own: Own, restored: bool, now_ms: i64) -> anyhow::Result<Control> {
        let mut writing = store.write().await?;
        writing.keep_control_key(own.key.n(), &own.chain, now_ms).await?;
        writing.commit().await?;
        let leads = own.renews.as_ref().map(|renews| renews.signer.clone());
        let newest = Newest::make(&store, &keys, &own, leads.as_deref(), restored, now_ms).await?;
        let denied = Arc::new(newest.denied()?);
        keys.deny(Denied::clone(&denied));
        Ok(Control {
            store,
            keys,
            own,
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
        self.renew(now_ms).await?;
        let sources = self.sources(now_ms).await?;
        if made_of.as_ref() != Some(&sources) {
            self.remake(false, now_ms).await?;
            *made_of = Some(self.sources(now_ms).await?);
        }
        Ok(())
    }

    async fn sources(&self, now_ms: i64) -> Result<Sources, StoreError> {
        let newest = [SignedKind::Bundle, SignedKind::Deny].map(SignedKind::as_u8);
        Ok(Sources {
            keys: self.store.control_keys().await?,
            denied: self.store.denied(now_ms).await?,
            roots: self.own.renews.as_ref().map(|renews| renews.signer.roots().to_owned()),
            bundle: self.store.newest_paper(newest[0]).await?.map(|paper| paper.version),
            deny: self.store.newest_paper(newest[1]).await?.map(|paper| paper.version),
        })
    }

    async fn remake(&self, above: bool, now_ms: i64) -> Result<(), ControlError> {
        let leads = self.own.renews.as_ref().map(|renews| &*renews.signer);
        let newest = Newest::make(&self.store, &self.keys, &self.own, leads, above, now_ms).await?;
        let denied = newest.denied()?;
        self.newest.store(Arc::new(newest));
        if denied != **self.denied.borrow() {
            tracing::info!(names = denied.len(), "the list of the denied has changed");
            self.keys.deny(denied.clone());
            self.denied.send_replace(Arc::new(denied));
        }
        Ok(())
    }

    /// At half of its life; the key stays.
    async fn renew(&self, now_ms: i64) -> anyhow::Result<()> {
        let Some(renews) = &self.own.renews else { return Ok(()) };
        let rows = self.store.control_keys().await?;
        let Some(row) = rows.iter().find(|row| row.n == self.own.key.n()) else { return Ok(()) };
        let due = controller(&row.chain, renews.signer.domain(), renews.signer.roots()).is_none_or(|own| is_due(&own, now_ms));
        if due {
            let chain = renews.signer.control_chain(row.n, &renews.key_pem)?;
            files::write_public(&renews.certificate, chain.as_bytes())?;
            let mut writing = self.store.write().await?;
            writing.keep_control_key(row.n, &chain, now_ms).await?;
            writing.commit().await?;
            tracing::info!(n = row.n, "the control certificate was renewed");
        }
        Ok(())
    }

    // --- signing ---

    /// Signs something that is said once, such as an ack.
    pub fn sign(&self, signed: &Signed) -> Result<Vec<u8>, SignError> {
        self.own.key.sign(signed)
    }

    /// Signs something that many are told, once.
    fn sign_once(&self, signed: &Signed) -> Result<Vec<u8>, SignError> {
        let mut all = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = all.get(&signed.kind).filter(|(version, _)| *version == signed.version) {
            return Ok(bytes.clone());
        }
        let bytes = self.own.key.sign(signed)?;
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
        let deny = newest.deny.as_ref().map(|paper| of(SignedKind::Deny, paper));
        std::iter::once(of(SignedKind::Bundle, &newest.bundle)).chain(deny).collect()
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
            metrics::gauge!("muster_bundle_version").set(f64::from(newest.bundle.version.n));
            metrics::gauge!("muster_bundle_age_seconds").set(age_s(bundle.made_ms));
        }
        if let Some((paper, list)) = newest.deny.as_ref().and_then(|paper| Some((paper, DenyList::read(&paper.body).ok()?))) {
            metrics::gauge!("muster_deny_list_version").set(f64::from(paper.version.n));
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
            let newest = if kind == SignedKind::Deny { newest.deny.as_ref() } else { Some(&newest.bundle) };
            let own = held.iter().filter(|held| held.kind == kind.as_u8()).map(|held| held.version).min().unwrap_or_default();
            if newest.is_none_or(|newest| own >= newest.version) {
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
                if lacks || signed.version > newest.bundle.version {
                    self.above(SignedKind::Bundle, signed.version, now_ms).await?;
                }
                Ok(signed)
            }
            Some(SignedKind::Deny) => {
                let signed = newest.controls.read(bytes, &self.keys.denied())?;
                let list = DenyList::read(&signed.body)?;
                let own = newest.deny.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?.unwrap_or_default();
                let held = newest.deny.as_ref().map(|paper| paper.version);
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
                if lacks || held.is_none_or(|held| signed.version > held) {
                    self.above(SignedKind::Deny, signed.version, now_ms).await?;
                }
                Ok(signed)
            }
            _ => Ok(newest.controls.read(bytes, &self.keys.denied())?),
        }
    }

    /// Control keys of a bundle that this database doesn't have. True: there were some.
    async fn take_keys(&self, bundle: &Bundle, roots: &str, now_ms: i64) -> Result<bool, StoreError> {
        let domain = self.keys.identity().domain;
        let mut writing = self.store.write().await?;
        let mut lacks = false;
        for ControlChain { n, chain } in &bundle.controls {
            let is_ours = controller(chain, &domain, roots).is_some_and(|controller| controller.n == *n);
            if is_ours && writing.control_key(*n).await?.is_none() {
                writing.keep_control_key(*n, chain, now_ms).await?;
                lacks = true;
            }
        }
        writing.commit().await?;
        Ok(lacks)
    }

    /// Gives the same out again under a version above one that others hold.
    async fn above(&self, kind: SignedKind, version: Version, now_ms: i64) -> Result<(), ControlError> {
        let mut writing = self.store.write().await?;
        if let (_, Some(newest)) = writing.newest_paper(kind.as_u8()).await?
            && newest.version < version
        {
            // What others hold stands here too from now on, so that the next is above it.
            writing.add_paper(kind.as_u8(), &StoredPaper { version, body: newest.body }, now_ms).await?;
        }
        writing.commit().await?;
        self.remake(true, now_ms).await
    }
}

impl Newest {
    /// Everything as the database has it now; what differs from the newest version is given a new one. `above`: in any case.
    async fn make(store: &Store, keys: &Keys, own: &Own, leads: Option<&Signer>, above: bool, now_ms: i64) -> Result<Newest, ControlError> {
        let mut writing = store.write().await?;
        let bundle = bundle(&mut writing, keys, leads, above, now_ms).await?;
        let deny = deny_list(&mut writing, above, now_ms).await?;
        writing.commit().await?;
        let own_roots = leads.map_or_else(|| keys.roots_pem(), |signer| signer.roots().to_owned());
        let stranger = Controls::new(&keys.identity().domain, &own_roots);
        let signed = own.key.sign(&Signed::new(SignedKind::Bundle, bundle.version, bundle.body.clone()))?;
        let (controls, _, _) = stranger.taking(&signed, &Denied::default(), When::Kept(now_ms))?;
        Ok(Newest { bundle, deny, controls })
    }

    fn denied(&self) -> Result<Denied, MessageError> {
        let list = self.deny.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?;
        Ok(list.unwrap_or_default().denied())
    }
}

async fn bundle(
    writing: &mut Writing<'_>,
    keys: &Keys,
    leads: Option<&Signer>,
    above: bool,
    now_ms: i64,
) -> Result<StoredPaper, ControlError> {
    let kind = SignedKind::Bundle.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    let known = newest.as_ref().map(|paper| Bundle::read(&paper.body)).transpose()?;
    // Where the issuing key is, the roots are known; the other hubs follow.
    let (roots, crosses) = match (leads, &known) {
        (Some(signer), _) => (signer.roots().to_owned(), String::new()),
        (None, Some(known)) => (known.roots.clone(), known.crosses.clone()),
        (None, None) => (keys.roots_pem(), String::new()),
    };
    let rows = writing.control_keys().await?;
    let controls = rows.into_iter().map(|row| ControlChain { n: row.n, chain: row.chain }).collect();
    let wanted = Bundle { made_ms: known.as_ref().map_or(now_ms, |known| known.made_ms), roots, crosses, controls };
    match newest {
        Some(newest) if !above && known.as_ref() == Some(&wanted) => Ok(newest),
        newest => {
            let body = Bundle { made_ms: now_ms, ..wanted }.bytes()?;
            if body.len() > BUNDLE_BYTES_MAX {
                return Err(MessageError::TooLong(body.len()).into());
            }
            next(writing, kind, epoch, newest, body, now_ms).await
        }
    }
}

async fn deny_list(writing: &mut Writing<'_>, above: bool, now_ms: i64) -> Result<Option<StoredPaper>, ControlError> {
    let kind = SignedKind::Deny.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    let known = newest.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?;
    let wanted = DenyList { made_ms: now_ms, denied: writing.denied(now_ms).await? };
    let is_same = known.as_ref().map_or(wanted.denied.is_empty(), |known| known.denied == wanted.denied);
    if is_same && (!above || newest.is_none()) {
        return Ok(newest);
    }
    let body = wanted.bytes()?;
    if body.len() > limits::DENY_BYTES_MAX {
        // Who denies is told so before; only what relays show from before a restore can come to this.
        tracing::error!(names = wanted.denied.len(), "the list of the denied is too long to be given out: the one before it holds");
        return Ok(newest);
    }
    let paper = next(writing, kind, epoch, newest, body, now_ms).await?;
    writing.note_denied(&wanted, paper.version).await?;
    Ok(Some(paper))
}

async fn next(
    writing: &mut Writing<'_>,
    kind: u8,
    epoch: u32,
    newest: Option<StoredPaper>,
    body: Vec<u8>,
    now_ms: i64,
) -> Result<StoredPaper, ControlError> {
    let last = newest.map(|newest| newest.version).unwrap_or_default();
    let version = Version { epoch: epoch.max(last.epoch), n: last.n.saturating_add(1) };
    let paper = StoredPaper { version, body };
    writing.add_paper(kind, &paper, now_ms).await?;
    Ok(paper)
}

// --- this hub's own key ---

impl Own {
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
        let is_taken = is_taken(store, &own)
            .await
            .map_err(|error| Complaint::new(format!("The hub's database can't be read ({error})"), "Try again"))?;
        if is_taken {
            return Err(Complaint::new(format!("control key {} is another hub's", own.n), "Issue this hub one with a number of its own"));
        }
        Ok(Own { key, chain, renews: None })
    }

    async fn of_signer(state: &Path, signer: &Arc<Signer>, store: &Store, now_ms: i64) -> anyhow::Result<Own> {
        let certificate = state.join(CERTIFICATE);
        let key_pem = key_pem(&state.join(KEY))?;
        let public = ControlKey::from_pem(0, &key_pem).map(|key| key.public().to_vec());
        let kept = files::read(&certificate).ok().and_then(|chain| {
            let own = controller(&chain, signer.domain(), signer.roots())?;
            (Some(&own.public_key) == public.as_ref()).then_some((chain, own))
        });
        let (n, kept) = match kept {
            Some((chain, own)) if !is_taken(store, &own).await? => (own.n, (!is_due(&own, now_ms)).then_some(chain)),
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
        Ok(Own { key, chain, renews: Some(Renews { signer: signer.clone(), key_pem, certificate }) })
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

/// The key of the state folder; made when it isn't there.
fn key_pem(path: &Path) -> anyhow::Result<String> {
    match files::read_secret(path) {
        Ok(pem) if ControlKey::from_pem(0, &pem).is_some() => Ok(pem),
        Ok(_) => Err(damaged_key(path).into()),
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

/// Nobody takes a certificate any more that was issued to this name until now. Running hubs see it within a second.
pub async fn deny(store: &Store, name: &Name, now_ms: i64, why: &str) -> Result<(), DenyError> {
    let name = name.to_string();
    let mut writing = store.write().await?;
    // Certificates from files aren't in the database; none of them lives longer than the CA that issued it.
    let (last_ms, _) = writing.issued_to(&name, now_ms).await?;
    let until_ms = last_ms.unwrap_or_else(|| now_ms.saturating_add(ISSUING_LIFE_MS)).max(now_ms.saturating_add(1));
    writing.deny(&Denial { name, issued_before_ms: now_ms, until_ms }, now_ms, why).await?;
    let list = DenyList { made_ms: now_ms, denied: writing.denied(now_ms).await? };
    if list.bytes()?.len() > limits::DENY_BYTES_MAX {
        return Err(DenyError::Full(list.denied.len()));
    }
    Ok(writing.commit().await?)
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

fn controller(chain: &str, domain: &str, roots: &str) -> Option<Controller> {
    check_control(chain, "", &root_store(roots).ok()?, domain, When::Kept(i64::MAX)).ok()
}

fn is_due(own: &Controller, now_ms: i64) -> bool {
    let life_ms = own.leaf.not_after_ms.saturating_sub(own.leaf.not_before_ms).min(leaf_life_ms(muster_certs::Role::Control));
    now_ms > own.leaf.not_after_ms.saturating_sub(life_ms / 2)
}
