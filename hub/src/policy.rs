//! Async: the policy in force, its versions, and the hub's epoch.
//!
//! The file is read at the start and whenever it changes; a new version is on the disk before anyone is told of it. The notice's number
//! rises exactly when a policy observes more than the one before it.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use muster_mesh::{
    complaint::Complaint,
    ids::Version,
    message::{HeldVersion, Signed, SignedKind},
    policy::{KindRetention, Policy},
};
use tokio::sync::Mutex;

use crate::{
    ingest::plan::Retention,
    store::{Store, StoreError, StoredPolicy},
};

/// Flag of a `Signed`: relays note the addresses that they see.
const FLAG_NETWORK: u8 = 1;

/// The hub's policy, from the file to the relays.
pub struct Policies {
    store: Arc<Store>,
    path: PathBuf,
    test_mode: bool,
    current: ArcSwap<InForce>,
    /// One change at a time; holds the file's text that was looked at last.
    looked_at: Mutex<String>,
}

/// What holds right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The hub's epoch: that of its acks.
    pub epoch: u32,
    pub version: Version,
    pub policy: Policy,
}

impl Policies {
    /// Reads the file, and keeps a new version if it says something else than the last one, or if the hub was restored.
    pub async fn open(store: Arc<Store>, path: PathBuf, test_mode: bool, restored: bool, now_ms: i64) -> anyhow::Result<Policies> {
        let text = read(&path)?;
        let wanted = parse(&path, &text)?;
        let epoch = store.epoch().await?;
        let epoch = if restored { epoch.saturating_add(1) } else { epoch };
        let in_force = match store.newest_policy().await? {
            None => {
                let first = Version { epoch, n: 1 };
                let policy = Policy { test_mode, notice: first, ..wanted };
                keep(&store, InForce { epoch, version: first, policy }, now_ms).await?
            }
            Some(last) => {
                let old = InForce { epoch, version: last.version, policy: last.policy };
                match old.changed(&wanted, test_mode) {
                    Some(new) => keep(&store, new, now_ms).await?,
                    None if restored => {
                        let version = Version { epoch, n: old.version.n.saturating_add(1) };
                        keep(&store, InForce { version, ..old }, now_ms).await?
                    }
                    None => old,
                }
            }
        };
        Ok(Policies { store, path, test_mode, current: ArcSwap::from_pointee(in_force), looked_at: Mutex::new(text) })
    }

    pub fn current(&self) -> Arc<InForce> {
        self.current.load_full()
    }

    /// Looks at the file again, and at what another hub of this database gave out. A file that can't be used changes nothing, and is
    /// complained of once.
    pub async fn look(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut looked_at = self.looked_at.lock().await;
        self.catch_up().await?;
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(complaint) => complaint.to_string(),
        };
        if *looked_at == text {
            return Ok(());
        }
        match parse(&self.path, &text) {
            Ok(wanted) => {
                if let Some(new) = self.current().changed(&wanted, self.test_mode) {
                    let kept = keep(&self.store, new.clone(), now_ms).await?;
                    tracing::info!(version = %kept.version, notice = %kept.policy.notice, "a new policy is in force");
                    let overtaken = kept != new;
                    self.current.store(Arc::new(kept));
                    if overtaken {
                        // Another hub was faster: what the file wants is compared with its version at the next look.
                        return Ok(());
                    }
                }
            }
            Err(complaint) => tracing::warn!("the old policy stays in force: {complaint}"),
        }
        *looked_at = text;
        Ok(())
    }

    /// A relay has shown what was signed under these versions. Higher ones than our own mean that this hub was rolled back: it takes
    /// an epoch above all of them before it answers anyone.
    pub async fn told(&self, held: &[HeldVersion], now_ms: i64) -> Result<(), StoreError> {
        if self.current().is_above(held) {
            return Ok(());
        }
        let _one_change = self.looked_at.lock().await;
        // Or another hub of this database gave them out.
        self.catch_up().await?;
        let old = self.current();
        let Some(new) = old.above(held) else { return Ok(()) };
        let new = keep(&self.store, new, now_ms).await?;
        tracing::warn!(epoch = new.epoch, "relays know higher versions than this database: it was rolled back, and takes a new epoch");
        self.current.store(Arc::new(new));
        Ok(())
    }

    /// Takes over what another hub gave out since.
    async fn catch_up(&self) -> Result<(), StoreError> {
        let own = self.current();
        if let Some(newest) = self.store.newest_policy().await?.filter(|newest| newest.version > own.version) {
            let epoch = self.store.epoch().await?;
            self.current.store(Arc::new(InForce { epoch, version: newest.version, policy: newest.policy }));
        }
        Ok(())
    }
}

impl InForce {
    pub fn retention(&self) -> Retention {
        let KindRetention { titles_days, pictures_days, network_days } = self.policy.retention;
        Retention { days: self.policy.retention_days, titles_days, pictures_days, network_days }
    }

    /// What this hub holds of each kind.
    pub fn versions(&self) -> Vec<HeldVersion> {
        let of = |kind: SignedKind, version| HeldVersion { kind: kind.as_u8(), version };
        vec![of(SignedKind::Policy, self.version), of(SignedKind::Notice, self.policy.notice)]
    }

    /// What is to be signed of it.
    pub fn papers(&self) -> Vec<Signed> {
        self.versions().into_iter().map(|own| self.signed(own)).collect()
    }

    fn signed(&self, own: HeldVersion) -> Signed {
        // The notice's text is made from the policy by whoever shows it, so that of a notice only the version travels.
        let is_policy = own.kind == SignedKind::Policy.as_u8();
        let (kind, body) = if is_policy { (SignedKind::Policy, self.policy.to_bytes()) } else { (SignedKind::Notice, Vec::new()) };
        let mut signed = Signed::new(kind, own.version, body);
        signed.flags = if is_policy && self.policy.addresses { FLAG_NETWORK } else { 0 };
        signed
    }

    /// The next version, if the file wants something else than what is in force.
    fn changed(&self, wanted: &Policy, test_mode: bool) -> Option<InForce> {
        let same_notice = Policy { test_mode, notice: self.policy.notice, ..wanted.clone() };
        if same_notice == self.policy {
            return None;
        }
        let more = same_notice.observes_more_than(&self.policy);
        let notice = if more { Version { epoch: self.epoch, n: self.policy.notice.n.saturating_add(1) } } else { self.policy.notice };
        let version = Version { epoch: self.epoch, n: self.version.n.saturating_add(1) };
        Some(InForce { epoch: self.epoch, version, policy: Policy { notice, ..same_notice } })
    }

    fn is_above(&self, held: &[HeldVersion]) -> bool {
        held.iter().all(|held| held.version.epoch <= self.epoch)
            && self.versions().iter().all(|own| held_of(held, own.kind).is_none_or(|held| held <= own.version))
    }

    /// The same policy above everything that is held elsewhere; None if it is that already, or if there is no higher epoch.
    fn above(&self, held: &[HeldVersion]) -> Option<InForce> {
        if self.is_above(held) {
            return None;
        }
        let highest = held.iter().map(|held| held.version.epoch).max().unwrap_or(0).max(self.epoch);
        let epoch = highest.checked_add(1)?;
        let above = |kind: SignedKind, own: Version| {
            let n = held_of(held, kind.as_u8()).map_or(own.n, |held| held.n.max(own.n));
            Version { epoch, n: n.saturating_add(1) }
        };
        let version = above(SignedKind::Policy, self.version);
        // Asking people again is only right where they have read of a notice that this hub doesn't know.
        let known_elsewhere = held_of(held, SignedKind::Notice.as_u8()).is_some_and(|held| held > self.policy.notice);
        let notice = if known_elsewhere { above(SignedKind::Notice, self.policy.notice) } else { self.policy.notice };
        Some(InForce { epoch, version, policy: Policy { notice, ..self.policy.clone() } })
    }
}

fn held_of(held: &[HeldVersion], kind: u8) -> Option<Version> {
    held.iter().filter(|held| held.kind == kind).map(|held| held.version).max()
}

/// Keeps what is to be given out. Another hub's version comes back if that hub was faster.
async fn keep(store: &Store, new: InForce, now_ms: i64) -> Result<InForce, StoreError> {
    let stored = StoredPolicy { version: new.version, policy: new.policy.clone() };
    Ok(match store.add_policy(new.epoch, &stored, now_ms).await? {
        None => new,
        Some((epoch, StoredPolicy { version, policy })) => InForce { epoch, version, policy },
    })
}

/// Reads and checks a policy file, for `check`.
pub fn check(path: &std::path::Path) -> Result<Policy, Complaint> {
    parse(path, &read(path)?)
}

fn read(path: &std::path::Path) -> Result<String, Complaint> {
    std::fs::read_to_string(path).map_err(|error| {
        Complaint::new(
            format!("The policy file {} can't be read ({error})", path.display()),
            "Give its path as `policy` in the configuration",
        )
    })
}

fn parse(path: &std::path::Path, text: &str) -> Result<Policy, Complaint> {
    Policy::from_toml(text).map_err(|error| {
        Complaint::new(format!("The policy file {} can't be used: {error}", path.display()), "Put it right; see the example")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = include_str!("../tests/policy.toml");

    #[test]
    fn the_notices_number_rises_exactly_when_more_is_observed() {
        let old = in_force();
        let narrower = POLICY.replace("titles = true", "titles = false");
        let narrower = old.changed(&Policy::from_toml(&narrower).unwrap(), true).unwrap();
        assert_eq!((narrower.version.n, narrower.policy.notice.n), (2, 1));
        let wider = narrower.changed(&Policy::from_toml(POLICY).unwrap(), true).unwrap();
        assert_eq!((wider.version.n, wider.policy.notice.n), (3, 2));
        assert_eq!(wider.changed(&Policy::from_toml(POLICY).unwrap(), true), None);
    }

    #[test]
    fn a_hub_told_of_higher_versions_takes_an_epoch_above_them_once() {
        let old = in_force();
        let held = [held(SignedKind::Policy, 1, 7), held(SignedKind::Notice, 1, 1), held(SignedKind::Deny, 3, 9)];
        let new = old.above(&held).unwrap();
        assert_eq!((new.epoch, new.version, new.policy.notice), (4, Version { epoch: 4, n: 8 }, Version { epoch: 1, n: 1 }));
        assert_eq!(new.above(&held), None);
        let noticed = old.above(&[self::held(SignedKind::Notice, 1, 5)]).unwrap();
        assert_eq!(noticed.policy.notice, Version { epoch: 2, n: 6 });
        assert_eq!(old.above(&[self::held(SignedKind::Policy, u32::MAX, 1)]), None);
    }

    #[test]
    fn a_policy_travels_with_its_flags_and_a_notice_as_its_number() {
        let own = in_force();
        let [policy, notice] = &own.papers()[..] else { panic!("not two") };
        assert_eq!((policy.kind, policy.flags), (SignedKind::Policy.as_u8(), FLAG_NETWORK));
        assert_eq!(Policy::from_bytes(&policy.body).unwrap(), own.policy);
        assert_eq!((notice.kind, notice.version, notice.body.len()), (SignedKind::Notice.as_u8(), own.policy.notice, 0));
    }

    fn in_force() -> InForce {
        let first = Version { epoch: 1, n: 1 };
        let policy = Policy { test_mode: true, notice: first, ..Policy::from_toml(POLICY).unwrap() };
        InForce { epoch: 1, version: first, policy }
    }

    fn held(kind: SignedKind, epoch: u32, n: u32) -> HeldVersion {
        HeldVersion { kind: kind.as_u8(), version: Version { epoch, n } }
    }
}
