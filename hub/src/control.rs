//! Async: the hub's signature: its control key, the bundle that vouches for it, the lists of the denied and of relays, and all that it signs.
//!
//! Each hub has a key of its own, in its state folder; its certificate comes from the signer, where this hub is that, or from files. The public
//! halves are rows, so that the bundle of any hub speaks for all of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use muster_certs::{
    Denied, Keys, Name, Role, When, check_control, files,
    issuer::{LEAF_LIFE_MAX_MS, leaf_life_ms},
    material::root_store,
};
use muster_mesh::{
    control_key::{Controls, SignError, Unproven},
    ids::Version,
    limits,
    message::{Bundle, ControlChain, Denial, DenyList, HeldVersion, MessageError, Signed, SignedKind},
    relay_list::SiteRelays,
};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    laggards::Laggards,
    store::{ControlRow, Store, StoreError, StoredPaper, Writing},
};

mod newest;
mod own;

use newest::{Above, Newest, Roots, vouched_for};
use own::{CERTIFICATE, ended_keys, is_due, was_ended};
pub use own::{Own, Renews, check, own_life, own_number, own_public};

/// What relays are expected to hold, and what metrics and logs call it.
const LAGGING: [(SignedKind, &str); 3] = [(SignedKind::Deny, "deny"), (SignedKind::Bundle, "bundle"), (SignedKind::Relays, "relays")];

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
    #[error(
        "{} control keys count, and relays and agents take no more: `muster-hub key list` shows them, and \
         `muster-hub key end control/N` ends one that no hub signs with",
        limits::CONTROLS_MAX
    )]
    Full,
}

impl Control {
    /// Looks what is to be signed, and keeps new versions of it. `restored`: above all that was ever given out.
    pub async fn open(store: Arc<Store>, keys: Arc<Keys>, own: Own, restored: bool, now_ms: i64) -> anyhow::Result<Control> {
        let mut writing = store.write().await?;
        add_key(&mut writing, own.key.n(), &own.chain, now_ms).await?;
        writing.commit().await?;
        let newest = Newest::make(&store, &keys, &own, Above { own_files: true, all: restored, over: None }, None, now_ms).await?;
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
        let before = self.newest.load_full();
        let newest = Newest::make(&self.store, &self.keys, &self.own.load(), above, Some(&before), now_ms).await?;
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
        add_key(&mut writing, new.key.n(), &new.chain, now_ms).await?;
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
    async fn take_keys(&self, bundle: &Bundle, roots: &str, now_ms: i64) -> Result<bool, ControlError> {
        let domain = self.keys.identity().domain;
        let Ok(roots) = root_store(roots) else { return Ok(false) };
        let mut writing = self.store.write().await?;
        let mut lacks = false;
        for ControlChain { n, chain } in &bundle.controls {
            let is_ours =
                check_control(chain, &bundle.crosses, &roots, &domain, When::Kept(i64::MAX)).is_ok_and(|controller| controller.n == *n);
            if is_ours && writing.control_key(*n).await?.is_none() {
                match add_key(&mut writing, *n, chain, now_ms).await {
                    Ok(()) => lacks = true,
                    Err(error @ ControlError::Full) => tracing::warn!(n, %error, "a control key that this database lacks isn't taken over"),
                    Err(error) => return Err(error),
                }
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

/// A control key counts from now on, unless the bundle has no room for it.
async fn add_key(writing: &mut Writing<'_>, n: u32, chain: &str, now_ms: i64) -> Result<(), ControlError> {
    if writing.control_key(n).await?.is_none() {
        let mut rows = writing.control_keys().await?;
        rows.push(ControlRow { n, chain: chain.to_owned() });
        vouched_for(rows, now_ms)?;
    }
    Ok(writing.keep_control_key(n, chain, now_ms).await?)
}

// --- who is believed no more ---

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

/// Nobody takes a certificate any more that was issued to this name until now. Running hubs see it within a second.
pub async fn deny(store: &Store, name: &Name, now_ms: i64, why: &str) -> Result<(), DenyError> {
    let name = name.to_string();
    let mut writing = store.write().await?;
    // A request that is being answered has its certificate before this goes on: it is among the denied, whatever the time was when somebody said so.
    writing.member(&name).await?;
    let issued_ms = writing.last_issued_ms(&name).await?;
    let issued_before_ms = issued_ms.map_or(now_ms, |issued_ms| now_ms.max(issued_ms.saturating_add(1)));
    // What came from files isn't in the database, and neither is what was issued since a backup was taken: it counts until the last of them must
    // have ended.
    let until_ms = issued_before_ms.saturating_add(LEAF_LIFE_MAX_MS);
    add_denial(&mut writing, &Denial { name, issued_before_ms, until_ms }, now_ms, why).await?;
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
