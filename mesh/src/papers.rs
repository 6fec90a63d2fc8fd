//! Async: what the hub signed and this program holds: the newest of each kind, in memory and in `<state>/signed/`, believed again at each start.
//!
//! ```text
//! signed/4-1-7     kind 4 (a bundle), version 1.7; the very bytes that the hub signed
//! ```
//!
//! Bundles, lists of the denied and of relays come into force here: roots and the denied are swapped in the program's [`Keys`]. Lists of the denied only
//! add up: what one of them says stays said until the hub's own says it too, whatever their versions are. So a hub that was put back from an
//! old backup lets nobody in again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use muster_certs::{
    Denied, Keys, Leaf, When,
    files::{self, FileError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    control_key::{Controls, Unproven},
    ids::Version,
    limits,
    message::{DenyList, HeldVersion, MessageError, Signed, SignedKind},
    relay_list::RelayList,
};

const FOLDER: &str = "signed";
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Files that are looked at: one of each kind that will ever be, and some that were left over.
const FILES_MAX: usize = 256;

/// What the hub signed, as far as this program holds it.
pub struct Papers {
    keys: Arc<Keys>,
    /// None: nothing outlives the program.
    folder: Option<PathBuf>,
    inner: Mutex<Inner>,
    /// Told whenever more are denied, and of each new list of relays.
    changes: watch::Sender<()>,
}

struct Inner {
    controls: Arc<Controls>,
    kept: Vec<Kept>,
    denied: DenyList,
    relays: (Version, Arc<RelayList>),
    /// The issuing CA by which the hub issues now.
    issuer: String,
}

struct Kept {
    kind: u8,
    version: Version,
    bytes: Bytes,
}

/// Something that the hub signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paper {
    pub signed: Signed,
    /// It says something that wasn't known here.
    pub is_news: bool,
}

impl Papers {
    /// Reads what lies in the state folder. What isn't believed any more is set aside as if it weren't there: the hub has it.
    pub fn open(state: &Path, keys: Arc<Keys>, now_ms: i64) -> Papers {
        let papers = Papers { folder: Some(state.join(FOLDER)), ..Papers::in_memory(keys) };
        let mut found = papers.files();
        // The bundle first: the others are believed by it.
        found.sort_by_key(|bytes| Signed::read(bytes).map_or(u8::MAX, |signed| if is(&signed, SignedKind::Bundle) { 0 } else { 1 }));
        for bytes in found {
            if let Err(error) = papers.admit(&Bytes::from(bytes), When::Kept(now_ms), true) {
                tracing::warn!(%error, "something on the disk isn't the hub's word (any more); it is asked for again");
            }
        }
        papers
    }

    /// With nothing, and nothing is kept on a disk.
    pub fn in_memory(keys: Arc<Keys>) -> Papers {
        let controls = Arc::new(Controls::new(&keys.identity().domain, &keys.roots_pem()));
        let inner = Inner { controls, kept: Vec::new(), denied: DenyList::default(), relays: Default::default(), issuer: String::new() };
        Papers { keys, folder: None, inner: Mutex::new(inner), changes: watch::channel(()).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Believes it or not. Bundles, lists of the denied and of relays come into force at once, and are kept; of other kinds the caller says by
    /// [`keep`](Papers::keep) what it can use. `now_ms`: this computer's clock.
    pub fn take(&self, bytes: &Bytes, now_ms: i64) -> Result<Paper, Unproven> {
        let now_ms = now_ms.max(self.keys.past_ms());
        self.admit(bytes, When::Taking(now_ms), false)
    }

    fn admit(&self, bytes: &Bytes, when: When, keeps: bool) -> Result<Paper, Unproven> {
        let (controls, denied) = (self.lock().controls.clone(), self.keys.denied());
        let kind = Signed::read(bytes).map(|signed| SignedKind::from_u8(signed.kind))?;
        let paper = match kind {
            Some(SignedKind::Bundle) => self.bundle(bytes, &controls, &denied, when)?,
            Some(SignedKind::Deny) => self.deny(bytes, controls.read(bytes, &denied)?)?,
            Some(SignedKind::Relays) => self.relays(bytes, controls.read(bytes, &denied)?)?,
            _ => {
                let signed = controls.read(bytes, &denied)?;
                let is_news = self.newest_of(signed.kind).is_none_or(|(known, _)| known < signed.version);
                Paper { signed, is_news }
            }
        };
        if keeps {
            self.keep(&paper.signed, bytes);
        }
        Ok(paper)
    }

    fn bundle(&self, bytes: &Bytes, controls: &Controls, denied: &Denied, when: When) -> Result<Paper, Unproven> {
        let (controls, signed, bundle) = match controls.taking(bytes, denied, when) {
            // The same again, as from two relays.
            Err(Unproven::Older) => return Ok(Paper { signed: Signed::read(bytes)?, is_news: false }),
            taken => taken?,
        };
        let mut inner = self.lock();
        if inner.controls.bundle().is_some_and(|known| signed.version <= known) {
            // Both of a relay's lanes take bundles; meanwhile the other one was quicker.
            return Ok(Paper { signed, is_news: false });
        }
        self.keys.trust(controls.roots()).map_err(|error| Unproven::Roots(error.to_string()))?;
        inner.controls = Arc::new(controls);
        inner.issuer = bundle.issuer;
        let gone = inner.unproven(denied);
        if gone.iter().any(|kept| kept.kind == SignedKind::Relays.as_u8()) {
            // Gone by until another comes, whatever version that has: this one's may be made up.
            inner.relays.0 = Version::default();
        }
        drop(inner);
        gone.iter().for_each(|kept| self.remove(kept));
        self.keys.signed_at(bundle.made_ms);
        self.keep(&signed, bytes);
        Ok(Paper { signed, is_news: true })
    }

    fn deny(&self, bytes: &Bytes, signed: Signed) -> Result<Paper, Unproven> {
        let list = DenyList::read(&signed.body)?;
        self.keys.signed_at(list.made_ms);
        // The hub says until when an entry counts, so its time says whether that is past: this computer's clock may stand far ahead.
        let past_ms = self.keys.past_ms();
        let mut inner = self.lock();
        let said_already = inner.denied.covers(&list, past_ms);
        let is_newest = inner.newest_of(signed.kind).is_none_or(|(known, _)| known < signed.version);
        if !said_already {
            inner.denied = inner.denied.union(&list, past_ms);
            self.keys.deny(inner.denied.denied());
            self.changes.send_replace(());
        }
        drop(inner);
        let is_news = !said_already || is_newest;
        if is_news {
            self.keep(&signed, bytes);
        }
        Ok(Paper { signed, is_news })
    }

    fn relays(&self, bytes: &Bytes, signed: Signed) -> Result<Paper, Unproven> {
        let list = RelayList::read(&signed.body)?;
        self.keys.signed_at(list.made_ms);
        let mut inner = self.lock();
        let is_news = inner.relays.0 < signed.version;
        if is_news {
            inner.relays = (signed.version, Arc::new(list));
            self.changes.send_replace(());
        }
        drop(inner);
        if is_news {
            self.keep(&signed, bytes);
        }
        Ok(Paper { signed, is_news })
    }

    /// Keeps it, where it is the newest of its kind. What is for one device or spool isn't kept.
    pub fn keep(&self, signed: &Signed, bytes: &Bytes) {
        if signed.device.is_some() || signed.spool.is_some() || is(signed, SignedKind::Ack) {
            return;
        }
        let mut inner = self.lock();
        let is_deny = is(signed, SignedKind::Deny);
        let is_known =
            |kept: &Kept| kept.kind == signed.kind && (kept.version == signed.version || !is_deny && kept.version > signed.version);
        if inner.kept.iter().any(is_known) {
            return;
        }
        let kept = Kept { kind: signed.kind, version: signed.version, bytes: bytes.clone() };
        self.write(&kept);
        inner.kept.push(kept);
        let gone = inner.overtaken(signed.kind, self.keys.past_ms());
        drop(inner);
        gone.iter().for_each(|kept| self.remove(kept));
    }

    /// The highest version held of each kind, for Hello and the POST's head.
    pub fn held(&self) -> Vec<HeldVersion> {
        let inner = self.lock();
        let newest = |kind: u8| inner.newest_of(kind).map(|(version, _)| HeldVersion { kind, version });
        SignedKind::ALL.into_iter().map(SignedKind::as_u8).filter_map(newest).collect()
    }

    /// The issuing CA by which the hub issues now, if it says so: its key identifier, lower-case hex.
    pub fn issuer(&self) -> Option<String> {
        Some(self.lock().issuer.clone()).filter(|issuer| !issuer.is_empty())
    }

    /// The version of the newest of a kind. 0.0: there is none.
    pub fn version(&self, kind: SignedKind) -> Version {
        self.newest_of(kind.as_u8()).map(|(version, _)| version).unwrap_or_default()
    }

    /// The newest of a kind, as the hub signed it.
    pub fn newest(&self, kind: SignedKind) -> Option<Bytes> {
        self.newest_of(kind.as_u8()).map(|(_, bytes)| bytes)
    }

    fn newest_of(&self, kind: u8) -> Option<(Version, Bytes)> {
        self.lock().newest_of(kind)
    }

    /// What the hub that holds these versions doesn't know, or says less of: a hub that was put back from a backup. The bundle comes first, by
    /// which it believes the others.
    pub fn unknown_to(&self, hub: &[HeldVersion]) -> Vec<Bytes> {
        let inner = self.lock();
        let of_hub = |kind: u8| hub.iter().find(|held| held.kind == kind).map(|held| held.version);
        let is_unknown = |kept: &Kept| match of_hub(kept.kind) {
            None => true,
            // A list that stays here beside the hub's says more than that.
            Some(held) if kept.kind == SignedKind::Deny.as_u8() => kept.version != held,
            Some(held) => kept.version > held,
        };
        let unknown: Vec<&Kept> = inner.kept.iter().filter(|kept| is_unknown(kept)).collect();
        let bundle = SignedKind::Bundle.as_u8();
        let (bundles, others): (Vec<&Kept>, Vec<&Kept>) = inner.kept.iter().partition(|kept| kept.kind == bundle);
        let others = others.into_iter().filter(|kept| is_unknown(kept));
        if unknown.is_empty() { Vec::new() } else { bundles.into_iter().chain(others).map(|kept| kept.bytes.clone()).collect() }
    }

    /// Everything that is held, the bundle first.
    pub fn all(&self) -> Vec<Bytes> {
        let inner = self.lock();
        let bundle = SignedKind::Bundle.as_u8();
        let (first, rest): (Vec<&Kept>, Vec<&Kept>) = inner.kept.iter().partition(|kept| kept.kind == bundle);
        first.into_iter().chain(rest).map(|kept| kept.bytes.clone()).collect()
    }

    /// Where agents deliver, by the newest list.
    pub fn relay_list(&self) -> Arc<RelayList> {
        self.lock().relays.1.clone()
    }

    /// The highest epoch of the hub under which something here was signed: what it said under a lower one is from before a restore.
    pub fn epoch(&self) -> u32 {
        self.lock().kept.iter().map(|kept| kept.version.epoch).max().unwrap_or_default()
    }

    /// Who is denied, by all lists together.
    pub fn denied(&self) -> Arc<Denied> {
        self.keys.denied()
    }

    /// Waits until somebody with this certificate is denied.
    pub async fn until_denied(&self, leaf: &Leaf) {
        self.until(|papers| papers.keys.check_denied(leaf).is_err()).await;
    }

    /// Waits until that is so by what the hub says of the denied and of relays.
    pub async fn until(&self, is_so: impl Fn(&Papers) -> bool) {
        let mut changes = self.changes.subscribe();
        while !is_so(self) {
            // The sender lives in `self`, so this can't fail.
            let _ = changes.changed().await;
        }
    }

    /// Shows versions and ages to monitoring until `stop`, by this computer's clock.
    pub async fn keep_measuring(self: Arc<Papers>, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let mut every = tokio::time::interval(MEASURE_EVERY);
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            self.measure(clock.now().wall_ms);
        }
    }

    fn measure(&self, now_ms: i64) {
        let inner = self.lock();
        let shown = |kind: SignedKind| inner.newest_of(kind.as_u8()).and_then(|(version, bytes)| Some((version, made_ms(kind, &bytes)?)));
        let age_s = |made_ms: i64| now_ms.saturating_sub(made_ms).max(0) as f64 / 1_000.0;
        if let Some((version, made_ms)) = shown(SignedKind::Bundle) {
            metrics::gauge!("muster_bundle_version").set(version.number() as f64);
            metrics::gauge!("muster_bundle_age_seconds").set(age_s(made_ms));
        }
        if let Some((version, made_ms)) = shown(SignedKind::Deny) {
            metrics::gauge!("muster_deny_list_version").set(version.number() as f64);
            metrics::gauge!("muster_deny_list_age_seconds").set(age_s(made_ms));
        }
    }

    // --- the disk ---

    fn files(&self) -> Vec<Vec<u8>> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let read = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let is_short = entry.metadata().ok()?.len() <= limits::CONTROL_BYTES_MAX as u64;
            if is_short { fs::read(entry.path()).ok() } else { None }
        };
        entries.take(FILES_MAX).filter_map(read).collect()
    }

    /// What can't be written holds all the same, and comes again after a restart.
    fn write(&self, kept: &Kept) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(kept.name());
        // Another file of this name holds something damaged, or signed by a key that counts no more.
        if fs::read(&path).is_ok_and(|there| there == kept.bytes) {
            return;
        }
        let written: Result<(), FileError> = files::create_folder(folder).and_then(|()| files::write_secret(&path, &kept.bytes));
        if let Err(error) = written {
            tracing::warn!(%error, "what the hub signed can't be kept");
        }
    }

    fn remove(&self, kept: &Kept) {
        if let Some(folder) = &self.folder {
            // One that stays is taken away after the next.
            let _ = fs::remove_file(folder.join(kept.name()));
        }
    }
}

impl Inner {
    fn newest_of(&self, kind: u8) -> Option<(Version, Bytes)> {
        let newest = self.kept.iter().filter(|kept| kept.kind == kind).max_by_key(|kept| kept.version);
        newest.map(|kept| (kept.version, kept.bytes.clone()))
    }

    /// Takes out what was signed by a key that counts no more: so it isn't held, and comes again under another signature. A list of the denied
    /// stays until a newer one says as much.
    fn unproven(&mut self, denied: &Denied) -> Vec<Kept> {
        let stays = [SignedKind::Bundle, SignedKind::Deny].map(SignedKind::as_u8);
        let controls = self.controls.clone();
        let is_unproven = |kept: &Kept| !stays.contains(&kept.kind) && controls.read(&kept.bytes, denied).is_err();
        let (gone, stays): (Vec<Kept>, Vec<Kept>) = self.kept.drain(..).partition(is_unproven);
        self.kept = stays;
        gone
    }

    /// Takes out what nobody needs beside the newest of this kind. `past_ms`: what is past for certain.
    fn overtaken(&mut self, kind: u8, past_ms: i64) -> Vec<Kept> {
        let Some((newest, bytes)) = self.newest_of(kind) else { return Vec::new() };
        let said = if kind == SignedKind::Deny.as_u8() { list(&bytes) } else { None };
        let is_over = |kept: &Kept| match &said {
            Some(said) => list(&kept.bytes).is_none_or(|older| said.covers(&older, past_ms)),
            None => true,
        };
        let (mut gone, stays): (Vec<Kept>, Vec<Kept>) =
            self.kept.drain(..).partition(|kept| kept.kind == kind && kept.version != newest && is_over(kept));
        self.kept = stays;
        let beside = |kept: &Kept| kept.kind == kind && kept.version != newest;
        while self.kept.iter().filter(|kept| beside(kept)).count() > limits::DENY_LISTS_MAX {
            let oldest = self.kept.iter().filter(|kept| beside(kept)).map(|kept| kept.version).min();
            let Some(at) = self.kept.iter().position(|kept| beside(kept) && Some(kept.version) == oldest) else { break };
            gone.push(self.kept.swap_remove(at));
        }
        gone
    }
}

impl Kept {
    fn name(&self) -> String {
        format!("{}-{}-{}", self.kind, self.version.epoch, self.version.n)
    }
}

fn is(signed: &Signed, kind: SignedKind) -> bool {
    signed.kind == kind.as_u8()
}

fn list(bytes: &[u8]) -> Option<DenyList> {
    Signed::read(bytes).and_then(|signed| DenyList::read(&signed.body)).ok()
}

fn made_ms(kind: SignedKind, bytes: &[u8]) -> Option<i64> {
    let body = Signed::read(bytes).ok()?.body;
    let made: Result<i64, MessageError> = match kind {
        SignedKind::Bundle => crate::message::Bundle::read(&body).map(|bundle| bundle.made_ms),
        SignedKind::Deny => DenyList::read(&body).map(|list| list.made_ms),
        SignedKind::Ack | SignedKind::Policy | SignedKind::Notice | SignedKind::Relays => return None,
    };
    made.ok()
}

#[cfg(test)]
mod tests {
    use muster_certs::{Chain, Identity, Issuer, LeafError, Name, Role, Root, SystemTime, leaf};

    use super::*;
    use crate::{
        control_key::ControlKey,
        message::{Bundle, ControlChain, Denial},
        relay_list::SiteRelays,
    };

    const NOW: i64 = 1_800_000_000_000;
    const DOMAIN: &str = "muster.test";
    const YEAR_MS: i64 = 365 * 86_400_000;

    #[test]
    fn what_the_hub_signed_outlives_the_program_and_what_nobody_signed_is_never_kept() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        assert!(papers.take(&hub.sign(SignedKind::Policy, 1, 1, b"p"), NOW).is_err(), "no bundle came yet");
        assert!(papers.take(&hub.bundle(1), NOW).unwrap().is_news);
        let policy = hub.sign(SignedKind::Policy, 1, 4, b"p");
        let paper = papers.take(&policy, NOW).unwrap();
        assert!(paper.is_news);
        papers.keep(&paper.signed, &policy);
        let forged = Bytes::from(Signed::new(SignedKind::Policy, Version { epoch: 9, n: 9 }, b"wider".to_vec()).bytes().unwrap());
        assert_eq!(papers.take(&forged, NOW), Err(Unproven::Unsigned));
        // Also where it lies on the disk already.
        fs::write(folder.path().join("signed/1-9-9"), &forged).unwrap();
        let again = hub.open(folder.path());
        assert_eq!(again.newest(SignedKind::Policy), Some(policy.clone()));
        assert!(!again.take(&policy, NOW).unwrap().is_news);
        assert_eq!(again.all(), [hub.bundle_of(&again), policy]);
    }

    #[test]
    fn an_ended_control_key_still_proves_what_lies_here() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        let policy = hub.sign(SignedKind::Policy, 1, 4, b"p");
        papers.keep(&papers.take(&policy, NOW).unwrap().signed, &policy);
        let later = Papers::open(folder.path(), hub.keys(), NOW + 2 * YEAR_MS);
        assert_eq!(later.newest(SignedKind::Policy), Some(policy));
    }

    #[test]
    fn what_a_key_signed_that_counts_no_more_is_let_go_and_taken_again_under_another_signature() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        let policy = hub.sign(SignedKind::Policy, 1, 4, b"p");
        papers.keep(&papers.take(&policy, NOW).unwrap().signed, &policy);
        let (key, chain) = ControlKey::issue(&hub.issuer, 2, NOW).unwrap();
        let other = Hub { key, chain, ..hub };
        papers.take(&other.bundle(2), NOW).unwrap();
        let held: Vec<u8> = papers.held().iter().map(|held| held.kind).collect();
        assert_eq!(held, [SignedKind::Bundle.as_u8()], "a policy that proves nothing any more is still said to be held");
        assert_eq!(papers.take(&policy, NOW), Err(Unproven::UnknownKey(1)));
        let again = other.sign(SignedKind::Policy, 1, 4, b"p");
        let paper = papers.take(&again, NOW).unwrap();
        assert!(paper.is_news);
        papers.keep(&paper.signed, &again);
        assert_eq!(other.open(folder.path()).newest(SignedKind::Policy), Some(again));
    }

    #[test]
    fn the_newest_list_of_relays_is_gone_by_and_outlives_the_program_and_the_key_that_signed_it() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        let guests = |papers: &Papers| papers.relay_list().sites.get("oslo").map(|site| site.guests.join(" "));
        assert!(papers.take(&hub.relays(5, "home"), NOW).unwrap().is_news);
        assert!(!papers.take(&hub.relays(5, "home"), NOW).unwrap().is_news);
        assert!(!papers.take(&hub.relays(4, "bergen"), NOW).unwrap().is_news, "an older list");
        assert!(papers.take(&hub.sign(SignedKind::Relays, 1, 6, b"rubbish"), NOW).is_err());
        for papers in [&papers, &hub.open(folder.path())] {
            assert_eq!(guests(papers).as_deref(), Some("home"));
            assert_eq!(papers.version(SignedKind::Relays), Version { epoch: 1, n: 5 });
        }
        // Its key counts no more: the list is gone by, isn't shown to anybody, and whatever comes under another signature holds.
        let (key, chain) = ControlKey::issue(&hub.issuer, 2, NOW).unwrap();
        let other = Hub { key, chain, ..hub };
        papers.take(&other.bundle(2), NOW).unwrap();
        assert_eq!((guests(&papers).as_deref(), papers.newest(SignedKind::Relays)), (Some("home"), None));
        for (n, guest) in [(3, "bergen"), (5, "tromso")] {
            let again = other.relays(n, guest);
            assert!(papers.take(&again, NOW).unwrap().is_news);
            assert_eq!((guests(&papers).as_deref(), papers.newest(SignedKind::Relays)), (Some(guest), Some(again)));
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_guest_to_be_none_is_told() {
        let hub = Hub::new();
        let papers = Papers::in_memory(hub.keys());
        papers.take(&hub.bundle(1), NOW).unwrap();
        papers.take(&hub.relays(1, "home"), NOW).unwrap();
        let gone = papers.until(|papers| !papers.relay_list().takes("oslo", "home"));
        let told = async {
            tokio::task::yield_now().await;
            papers.take(&hub.relays(2, "bergen"), NOW).unwrap();
        };
        tokio::join!(gone, told);
    }

    #[test]
    fn a_list_from_after_a_restore_lets_nobody_in_again() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        assert!(papers.take(&hub.list(1, 9, &["a", "b"]), NOW).unwrap().is_news);
        // The hub was put back from before b was denied, and has denied d since.
        assert!(papers.take(&hub.list(2, 1, &["a", "d"]), NOW).unwrap().is_news);
        for papers in [&papers, &hub.open(folder.path())] {
            assert!(papers.denied().names(&relay("b")), "b was let in again");
            let newest = HeldVersion { kind: SignedKind::Deny.as_u8(), version: Version { epoch: 2, n: 1 } };
            assert!(papers.held().contains(&newest));
            assert_eq!(papers.all().len(), 3, "both lists and the bundle");
            assert!(matches!(hub.check(papers, "b"), Err(LeafError::Denied { .. })));
            assert_eq!(hub.check(papers, "c"), Ok(()));
        }
        // Told by somebody who kept it, the hub says so itself.
        assert!(papers.take(&hub.list(2, 2, &["a", "b", "d"]), NOW).unwrap().is_news);
        assert_eq!(papers.all().len(), 2, "one list says it all");
        assert!(!papers.take(&hub.list(1, 9, &["a", "b"]), NOW).unwrap().is_news);
    }

    #[test]
    fn lists_that_say_too_much_at_once_are_bounded() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        for n in 1..40 {
            papers.take(&hub.list(n, 1, &[&format!("r{n}")]), NOW).unwrap();
        }
        assert_eq!(papers.all().len(), 2 + limits::DENY_LISTS_MAX);
        assert_eq!(fs::read_dir(folder.path().join("signed")).unwrap().count(), 2 + limits::DENY_LISTS_MAX);
    }

    #[test]
    fn a_clock_far_ahead_lets_nobody_in_and_only_the_hubs_time_ends_an_entry() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        papers.take(&hub.bundle(1), NOW).unwrap();
        papers.take(&hub.list(1, 1, &["a"]), NOW).unwrap();
        // A start, and a list that comes, while the clock stands behind the end of every entry.
        let ahead_ms = NOW + 2 * YEAR_MS;
        let again = Papers::open(folder.path(), hub.keys(), ahead_ms);
        assert!(again.denied().names(&relay("a")), "what lay on the disk isn't gone by");
        let running = Papers::in_memory(hub.keys());
        running.take(&hub.bundle(1), NOW).unwrap();
        running.take(&hub.list(1, 1, &["a"]), ahead_ms).unwrap();
        assert!(running.denied().names(&relay("a")), "what came isn't gone by");
        // The hub says later that it is over, within the life of the own certificate.
        let later_ms = NOW + 60_000;
        let over = DenyList { made_ms: NOW, denied: vec![denial("b", NOW + 30_000)] };
        papers.take(&hub.sign(SignedKind::Deny, 1, 2, &over.bytes().unwrap()), NOW).unwrap();
        assert!(papers.denied().names(&relay("b")));
        let without = DenyList { made_ms: later_ms, denied: vec![denial("a", NOW + YEAR_MS), denial("c", NOW + YEAR_MS)] };
        papers.take(&hub.sign(SignedKind::Deny, 1, 3, &without.bytes().unwrap()), NOW).unwrap();
        assert!(!papers.denied().names(&relay("b")), "it counts although the hub's time is past its end");
        assert_eq!(papers.all().len(), 2, "the newest list says all that counts");
    }

    #[test]
    fn a_hub_whose_clock_was_wrong_once_disarms_no_list() {
        let hub = Hub::new();
        let papers = Papers::in_memory(hub.keys());
        papers.take(&hub.bundle(1), NOW).unwrap();
        let wrong = DenyList { made_ms: NOW + 2 * YEAR_MS, denied: Vec::new() };
        papers.take(&hub.sign(SignedKind::Deny, 1, 1, &wrong.bytes().unwrap()), NOW).unwrap();
        papers.take(&hub.list(1, 2, &["a"]), NOW).unwrap();
        assert!(papers.denied().names(&relay("a")));
    }

    #[test]
    fn a_file_that_is_not_believed_is_replaced_when_the_same_version_comes_again() {
        let (hub, folder) = (Hub::new(), tempfile::tempdir().unwrap());
        let papers = hub.open(folder.path());
        let (list, policy) = (hub.list(1, 1, &["a"]), hub.sign(SignedKind::Policy, 1, 4, b"p"));
        papers.take(&hub.bundle(1), NOW).unwrap();
        papers.take(&list, NOW).unwrap();
        papers.keep(&papers.take(&policy, NOW).unwrap().signed, &policy);
        // A byte of one of them is damaged; the other one lies there as the key of a mesh signed it that is gone.
        let damaged = folder.path().join("signed/3-1-1");
        let mut bytes = fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&damaged, &bytes).unwrap();
        fs::write(folder.path().join("signed/1-1-4"), Hub::new().sign(SignedKind::Policy, 1, 4, b"p")).unwrap();
        let again = hub.open(folder.path());
        assert!(!again.denied().names(&relay("a")) && again.newest(SignedKind::Policy).is_none(), "neither is believed");
        again.take(&list, NOW).unwrap();
        again.keep(&again.take(&policy, NOW).unwrap().signed, &policy);
        let offline = hub.open(folder.path());
        assert!(offline.denied().names(&relay("a")), "the list of the denied was held in memory only");
        assert_eq!(offline.newest(SignedKind::Policy), Some(policy), "the policy was held in memory only");
    }

    #[test]
    fn of_two_bundles_that_are_taken_at_the_same_moment_the_newer_one_holds() {
        let hub = Hub::new();
        let papers = Papers::in_memory(hub.keys());
        papers.take(&hub.bundle(1), NOW).unwrap();
        // One lane has looked at what holds; before it goes on, the other one takes a newer bundle.
        let before = papers.lock().controls.clone();
        papers.take(&hub.bundle(3), NOW).unwrap();
        let paper = papers.bundle(&hub.bundle(2), &before, &Denied::default(), When::Taking(NOW)).unwrap();
        assert!(!paper.is_news);
        assert_eq!(papers.lock().controls.bundle(), Some(Version { epoch: 1, n: 3 }), "the older bundle is in force");
    }

    struct Hub {
        root: Root,
        issuer: Issuer,
        key: ControlKey,
        chain: Chain,
    }

    impl Hub {
        fn new() -> Hub {
            let (root, issuer) = Issuer::in_memory(DOMAIN, NOW).unwrap();
            let (key, chain) = ControlKey::issue(&issuer, 1, NOW).unwrap();
            Hub { root, issuer, key, chain }
        }

        fn keys(&self) -> Arc<Keys> {
            let signed = self.issuer.issue(&Identity::new(DOMAIN, relay("me")).unwrap(), NOW).unwrap();
            Keys::from_pem(&signed.pem, &signed.key_pem, self.root.pem(), Role::Relay, Arc::new(SystemTime)).unwrap()
        }

        fn open(&self, folder: &Path) -> Papers {
            Papers::open(folder, self.keys(), NOW)
        }

        fn sign(&self, kind: SignedKind, epoch: u32, n: u32, body: &[u8]) -> Bytes {
            self.key.sign(&Signed::new(kind, Version { epoch, n }, body.to_vec())).unwrap().into()
        }

        fn bundle(&self, n: u32) -> Bytes {
            let controls = vec![ControlChain { n: self.key.n(), chain: self.chain.pem.clone() }];
            let bundle =
                Bundle { made_ms: NOW, ca: 1, issuer: String::new(), roots: self.root.pem().to_owned(), crosses: String::new(), controls };
            self.sign(SignedKind::Bundle, 1, n, &bundle.bytes().unwrap())
        }

        fn bundle_of(&self, papers: &Papers) -> Bytes {
            papers.newest(SignedKind::Bundle).unwrap()
        }

        fn list(&self, epoch: u32, n: u32, names: &[&str]) -> Bytes {
            let list = DenyList { made_ms: NOW, denied: names.iter().map(|name| denial(name, NOW + YEAR_MS)).collect() };
            self.sign(SignedKind::Deny, epoch, n, &list.bytes().unwrap())
        }

        fn relays(&self, n: u32, guest: &str) -> Bytes {
            let site = SiteRelays { guests: vec![guest.to_owned()], ..SiteRelays::default() };
            let list = RelayList { made_ms: NOW, sites: [("oslo".to_owned(), site)].into() };
            self.sign(SignedKind::Relays, 1, n, &list.bytes().unwrap())
        }

        fn check(&self, papers: &Papers, id: &str) -> Result<(), LeafError> {
            let signed = self.issuer.issue(&Identity::new(DOMAIN, relay(id)).unwrap(), NOW).unwrap();
            papers.denied().check(&leaf::read_leaf(signed.leaf()).unwrap())
        }
    }

    fn denial(id: &str, until_ms: i64) -> Denial {
        Denial { name: relay(id).to_string(), issued_before_ms: NOW + 1_000, until_ms }
    }

    fn relay(id: &str) -> Name {
        Name::Relay { site: "oslo".to_owned(), id: id.to_owned() }
    }
}
