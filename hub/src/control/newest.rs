//! Async: the newest version of what is signed for all: the bundle, the list of the denied, the list of relays. What differs from what the database
//! says gets a new one.

use std::collections::BTreeSet;

use muster_certs::{Denied, Keys, When};
use muster_mesh::{
    control_key::Controls,
    ids::Version,
    limits,
    message::{Bundle, ControlChain, DenyList, MessageError, Signed, SignedKind},
    relay_list::RelayList,
};

use super::{ControlError, Own, own::leaf_of};
use crate::{
    signer::Signer,
    store::{ControlRow, Store, StoredPaper, Writing},
};

/// Leaves a message's other fields their room.
const BUNDLE_BYTES_MAX: usize = limits::CONTROL_BYTES_MAX - 1_024;

/// What holds right now.
#[derive(Debug, Clone)]
pub(super) struct Newest {
    pub(super) bundle: StoredPaper,
    /// None: nobody was ever denied.
    pub(super) deny: Option<StoredPaper>,
    /// None: no relay was ever known.
    pub(super) relays: Option<StoredPaper>,
    /// Who believes this hub's bundle believes this.
    pub(super) controls: Controls,
}

/// What a bundle says of the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roots {
    pub(super) ca: u64,
    pub(super) issuer: String,
    pub(super) roots: String,
    pub(super) crosses: String,
}

/// When something is given out again under a version of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Above {
    /// This hub was given other roots in its files: where no hub has the issuing key they are everybody's.
    pub(super) own_files: bool,
    /// In any case.
    pub(super) all: bool,
    /// Others hold this version of a kind: the next one is above it.
    pub(super) over: Option<(SignedKind, Version)>,
}

impl Above {
    pub(super) const NOTHING: Above = Above { own_files: false, all: false, over: None };

    /// Whether a kind is given out again although it says the same.
    fn raises(self, kind: SignedKind, newest: Option<Version>) -> bool {
        self.all || self.floor(kind) > newest.unwrap_or_default()
    }

    /// What the next version of a kind is above of.
    fn floor(self, kind: SignedKind) -> Version {
        self.over.filter(|over| over.0 == kind).map(|over| over.1).unwrap_or_default()
    }
}

impl Roots {
    /// As this hub has them.
    pub(super) fn of(leads: Option<&Signer>, keys: &Keys) -> Roots {
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
    /// Everything as the database has it now; what differs from the newest version is given a new one. `above`: in any case. `before`: what holds
    /// already, of which the bundle goes on holding where there can be no new one: whoever was denied is denied all the same.
    pub(super) async fn make(
        store: &Store,
        keys: &Keys,
        own: &Own,
        above: Above,
        before: Option<&Newest>,
        now_ms: i64,
    ) -> Result<Newest, ControlError> {
        let (bundle, controls) = match (believed_bundle(store, keys, own, above, before, now_ms).await, before) {
            (Ok(made), _) => made,
            (Err(ControlError::Store(error)), _) => return Err(error.into()),
            (Err(error), Some(before)) => {
                tracing::error!(%error, "there can be no new bundle: the one before it holds");
                (before.bundle.clone(), before.controls.clone())
            }
            (Err(error), None) => return Err(error),
        };
        let mut writing = store.write().await?;
        let deny = deny_list(&mut writing, above, now_ms).await?;
        let relays = relay_list(&mut writing, above, now_ms).await?;
        writing.commit().await?;
        Ok(Newest { bundle, deny, relays, controls })
    }

    /// As in [`Sources`].
    pub(super) fn versions(&self) -> [Option<Version>; 3] {
        let version = |paper: &StoredPaper| paper.version;
        [Some(version(&self.bundle)), self.deny.as_ref().map(version), self.relays.as_ref().map(version)]
    }

    pub(super) fn of(&self, kind: SignedKind) -> Option<&StoredPaper> {
        match kind {
            SignedKind::Bundle => Some(&self.bundle),
            SignedKind::Deny => self.deny.as_ref(),
            SignedKind::Relays => self.relays.as_ref(),
            SignedKind::Ack | SignedKind::Policy | SignedKind::Notice => None,
        }
    }

    /// The roots of the CA count at this hub's own ports, too, whatever its file says.
    pub(super) fn trusted_by(&self, keys: &Keys) {
        if let Ok(bundle) = Bundle::read(&self.bundle.body)
            && bundle.ca > 0
            && bundle.roots != keys.roots_pem()
            && let Err(error) = keys.trust(&bundle.roots)
        {
            tracing::error!(%error, "the CA's roots aren't trusted at this hub's ports; those that were there stay");
        }
    }

    pub(super) fn denied(&self) -> Result<Denied, MessageError> {
        let list = self.deny.as_ref().map(|paper| DenyList::read(&paper.body)).transpose()?;
        Ok(list.unwrap_or_default().denied())
    }
}

/// The bundle, and who believes it: none is given out that its own receivers can't take.
async fn believed_bundle(
    store: &Store,
    keys: &Keys,
    own: &Own,
    above: Above,
    before: Option<&Newest>,
    now_ms: i64,
) -> Result<(StoredPaper, Controls), ControlError> {
    let own_roots = Roots::of(own.leads(), keys);
    let mut writing = store.write().await?;
    let bundle = bundle(&mut writing, own.leads(), &own_roots, above, before, now_ms).await?;
    let stranger = Controls::new(&keys.identity().domain, &own_roots.roots);
    let signed = own.key.sign(&Signed::new(SignedKind::Bundle, bundle.version, bundle.body.clone()))?;
    let (controls, _, _) = stranger.taking(&signed, &Denied::default(), When::Kept(now_ms))?;
    writing.commit().await?;
    Ok((bundle, controls))
}

async fn bundle(
    writing: &mut Writing<'_>,
    leads: Option<&Signer>,
    own_roots: &Roots,
    above: Above,
    before: Option<&Newest>,
    now_ms: i64,
) -> Result<StoredPaper, ControlError> {
    let kind = SignedKind::Bundle.as_u8();
    let (epoch, newest) = writing.newest_paper(kind).await?;
    // One that nobody can read was given to nobody: the next one stands above it.
    let read = newest.as_ref().and_then(|paper| Bundle::read(&paper.body).ok());
    let known = read.clone().or_else(|| Bundle::read(&before?.bundle.body).ok());
    // Where the issuing key is, the roots are known; the other hubs follow. Where no hub has it, whoever was given other roots last leads.
    let Roots { ca, issuer, roots, crosses } = match &known {
        Some(known) if leads.is_none() && (known.ca > 0 || !above.own_files) => Roots::in_bundle(known),
        Some(_) | None => own_roots.clone(),
    };
    let rows = vouched_for(writing.control_keys().await?, now_ms)?;
    let controls = rows.into_iter().map(|row| ControlChain { n: row.n, chain: row.chain }).collect();
    let wanted = Bundle { made_ms: read.as_ref().map_or(now_ms, |read| read.made_ms), ca, issuer, roots, crosses, controls };
    match newest {
        Some(newest) if !above.raises(SignedKind::Bundle, Some(newest.version)) && read.as_ref() == Some(&wanted) => Ok(newest),
        newest => {
            let body = Bundle { made_ms: now_ms, ..wanted }.bytes()?;
            if body.len() > BUNDLE_BYTES_MAX {
                return Err(MessageError::TooLong(body.len()).into());
            }
            next(writing, SignedKind::Bundle, epoch, newest, above, body, now_ms).await
        }
    }
}

/// Those of the control keys that count for which a bundle has room. One whose certificate has ended goes on proving what lies on disks, until
/// its room is needed: then what ended first goes first.
pub(super) fn vouched_for(mut rows: Vec<ControlRow>, now_ms: i64) -> Result<Vec<ControlRow>, ControlError> {
    let too_many = rows.len().saturating_sub(limits::CONTROLS_MAX);
    let end_of = |row: &ControlRow| Some((leaf_of(&row.chain)?.not_after_ms, row.n));
    let mut ended: Vec<(i64, u32)> = rows.iter().filter_map(end_of).filter(|(end_ms, _)| *end_ms < now_ms).collect();
    if ended.len() < too_many {
        return Err(ControlError::Full);
    }
    ended.sort_unstable();
    let gone: BTreeSet<u32> = ended.into_iter().take(too_many).map(|(_, n)| n).collect();
    rows.retain(|row| !gone.contains(&row.n));
    Ok(rows)
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
