//! Blocking: a node's own certificate, key and roots, loaded from three files and swappable while
//! running. Live connections go on; whoever handshakes next sees the new set. A bad new set is
//! refused and the old one stays.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::time_provider::TimeProvider;

pub use rustls::time_provider::DefaultTimeProvider as SystemTime;

/// A clock of handshakes.
pub type Time = Arc<dyn TimeProvider>;

use crate::denied::Denied;
use crate::files;
use crate::identity::{Identity, Role};
use crate::leaf::{Leaf, LeafError};
pub use crate::material::KeysError;
use crate::material::Material;
use crate::time::Known;

/// What a node is and whom it trusts.
pub struct Keys {
    role: Role,
    time: Arc<dyn TimeProvider>,
    /// The same: what it is besides a clock.
    known: Arc<Known>,
    // One pointer for certificate, key and roots: nobody ever sees a mixture of old and new.
    current: ArcSwap<Material>,
    denied: ArcSwap<Denied>,
    /// One change at a time. Some: roots that the hub has signed for; files that are read later don't go behind them.
    trusted: Mutex<Option<String>>,
}

impl Keys {
    /// Loads and checks a node's files: all readable, the key owner-only and belonging to the
    /// certificate, the certificate's role `role`, the roots standing behind it.
    ///
    /// An expired certificate (or one that isn't valid yet) loads: ask [`Keys::expired`] or
    /// [`Keys::check_time`] and warn. `time` is also the clock of every handshake, unless it is known to be behind: [`Keys::time`].
    pub fn load(certificate: &Path, key: &Path, roots: &Path, role: Role, time: Arc<dyn TimeProvider>) -> Result<Arc<Keys>, KeysError> {
        let texts = Texts::read(certificate, key, roots)?;
        Keys::from_pem(&texts.certificate, &texts.key, &texts.roots, role, time)
    }

    /// [`Keys::load`] from PEM texts in memory.
    pub fn from_pem(certificate: &str, key: &str, roots: &str, role: Role, time: Arc<dyn TimeProvider>) -> Result<Arc<Keys>, KeysError> {
        let now_ms = now_ms(&*time);
        let material = Material::from_pem(certificate, key, roots, role, now_ms)?;
        let known = Arc::new(Known::new(time, material.window));
        let (current, denied) = (ArcSwap::from_pointee(material), ArcSwap::default());
        Ok(Arc::new(Keys { role, time: known.clone(), known, current, denied, trusted: Mutex::default() }))
    }

    /// Swaps certificate, key and roots in place. On an error nothing changes.
    ///
    /// Besides everything [`Keys::load`] checks, the identity must stay the same, and a certificate
    /// that isn't valid now replaces neither one that is, nor one that lasts longer.
    pub fn replace(&self, certificate: &Path, key: &Path, roots: &Path) -> Result<(), KeysError> {
        let texts = Texts::read(certificate, key, roots)?;
        self.replace_pem(&texts.certificate, &texts.key, &texts.roots)
    }

    /// [`Keys::replace`] from PEM texts in memory.
    pub fn replace_pem(&self, certificate: &str, key: &str, roots: &str) -> Result<(), KeysError> {
        let now_ms = now_ms(&*self.time);
        let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.read(certificate, key, roots, trusted.as_deref(), now_ms)?;
        self.check_change(&self.current.load(), &new, now_ms)?;
        self.put(new);
        Ok(())
    }

    /// Looks at a node's files again, while it runs. Besides everything that [`Keys::replace`] checks, they must belong to the mesh that it is
    /// in: the new roots have one in common with those in use, or one in use stands behind the new certificate. On an error nothing changes.
    pub fn reload(&self, certificate: &Path, key: &Path, roots: &Path) -> Result<Reloaded, KeysError> {
        let texts = Texts::read(certificate, key, roots)?;
        let now_ms = now_ms(&*self.time);
        let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.read(&texts.certificate, &texts.key, &texts.roots, trusted.as_deref(), now_ms)?;
        let old = self.current.load();
        // The key belongs to the certificate: it needs no comparison of its own.
        if new.certified.cert == old.certified.cert && new.root_ders == old.root_ders {
            return Ok(Reloaded::Same);
        }
        self.check_change(&old, &new, now_ms)?;
        new.check_continues(&old, now_ms)?;
        self.put(new);
        Ok(Reloaded::Taken)
    }

    fn put(&self, new: Material) {
        self.known.renewed(new.window);
        self.current.store(Arc::new(new));
    }

    /// What was read, with the roots that the hub has signed for, if it has.
    fn read(&self, certificate: &str, key: &str, roots: &str, trusted: Option<&str>, now_ms: i64) -> Result<Material, KeysError> {
        let read = |roots: &str| Material::from_pem(certificate, key, roots, self.role, now_ms);
        match trusted {
            None => read(roots),
            Some(trusted) => read(trusted).or_else(|_| read(roots)?.trusting(trusted)),
        }
    }

    fn check_change(&self, old: &Material, new: &Material, now_ms: i64) -> Result<(), KeysError> {
        if new.leaf.identity != old.leaf.identity {
            let [old, new] = [old, new].map(|material| Box::new(material.leaf.identity.clone()));
            return Err(KeysError::OtherIdentity { old, new });
        }
        // New roots may come beside an expired certificate (a branch long offline), or a renewal
        // while the clock is wrong; only a change for the worse is refused.
        let at_ms = if self.clock_is_behind() { now_ms.max(new.window.start_ms) } else { now_ms };
        if let Err(why) = new.check_time(at_ms) {
            let worse = new.window.end_ms < old.window.end_ms;
            if worse || old.check_time(now_ms).is_ok() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// From now on exactly these roots count (PEM), for new connections and for what is read from files later. On an error nothing changes.
    pub fn trust(&self, roots: &str) -> Result<(), KeysError> {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.current.load().trusting(roots)?;
        *trusted = Some(roots.to_owned());
        self.put(new);
        Ok(())
    }

    /// From now on these are denied in each handshake and in each check of a connection.
    pub fn deny(&self, denied: Denied) {
        self.denied.store(Arc::new(denied));
    }

    /// Whether somebody with this certificate is denied.
    pub fn check_denied(&self, leaf: &Leaf) -> Result<(), LeafError> {
        self.denied.load().check(leaf)
    }

    /// Who is denied right now.
    pub fn denied(&self) -> Arc<Denied> {
        self.denied.load_full()
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.current.load().leaf.identity.clone()
    }

    /// This node's role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// What this node's own certificate says.
    pub fn leaf(&self) -> Leaf {
        self.current.load().leaf.clone()
    }

    /// End of validity, milliseconds UTC: of the leaf or of the CA that issued it, whichever is
    /// sooner.
    pub fn not_after_ms(&self) -> i64 {
        self.current.load().window.end_ms
    }

    /// End of validity of the root that ends first, milliseconds UTC. No handshake looks at it; people should.
    pub fn roots_end_ms(&self) -> i64 {
        self.current.load().roots_end_ms
    }

    /// The roots in use, as PEM.
    pub fn roots_pem(&self) -> String {
        self.current.load().roots_pem.clone()
    }

    /// Whether the certificate has ended at `now_ms` (milliseconds UTC).
    pub fn expired(&self, now_ms: i64) -> bool {
        now_ms > self.not_after_ms()
    }

    /// [`KeysError::Expired`] or [`KeysError::NotYetValid`] when the certificate isn't valid at
    /// `now_ms` (milliseconds UTC): a text for a warning.
    pub fn check_time(&self, now_ms: i64) -> Result<(), KeysError> {
        self.current.load().check_time(now_ms)
    }

    /// The clock that handshakes use: this computer's, and never before what is past for certain ([`Keys::past_ms`]).
    pub fn time(&self) -> &Arc<dyn TimeProvider> {
        &self.time
    }

    /// What is past for certain, milliseconds UTC: the beginning of the own certificate, and the last moment at which the hub signed something
    /// ([`Keys::signed_at`]).
    pub fn past_ms(&self) -> i64 {
        self.known.past_ms()
    }

    /// The hub has signed something at `at_ms` (milliseconds UTC), and that was believed.
    pub fn signed_at(&self, at_ms: i64) {
        self.known.signed(at_ms);
    }

    /// This computer's clock stands before what is past for certain, as one with an empty battery does. It can't say of anybody's certificate
    /// that it hasn't begun.
    pub fn clock_is_behind(&self) -> bool {
        self.known.is_behind()
    }

    /// The set in use right now.
    pub(crate) fn current(&self) -> Arc<Material> {
        self.current.load_full()
    }
}

/// What files that were looked at again came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// They hold what is in use.
    Same,
    /// What they hold is in use from now on.
    Taken,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("role", &self.role).field("current", &self.current.load()).finish_non_exhaustive()
    }
}

struct Texts {
    certificate: String,
    key: String,
    roots: String,
}

impl Texts {
    fn read(certificate: &Path, key: &Path, roots: &Path) -> Result<Texts, KeysError> {
        Ok(Texts { certificate: files::read(certificate)?, key: files::read_secret(key)?, roots: files::read(roots)? })
    }
}

/// Milliseconds UTC by this clock. A clock that gives no time counts as 1970: too early for every
/// certificate, which loading tolerates and every handshake refuses by itself.
pub(crate) fn now_ms(time: &dyn TimeProvider) -> i64 {
    let seconds = time.current_time().map_or(0, |now| now.as_secs());
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}
