//! Quiet: one consistent set of certificate, key and roots, checked as a whole before anyone uses it.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::chain::{ChainError, check_chain, moment, path};
use crate::files::FileError;
use crate::identity::{Identity, Role};
use crate::leaf::{self, Leaf, LeafError};
use crate::tls::provider;

/// The most certificates in a certificate file: leaf, issuing CA, and room for a cross-signed root.
pub const CHAIN_CERTIFICATES_MAX: usize = 4;
/// The most roots in a roots file: one, or two during a rotation, and room for mistakes.
pub const ROOTS_MAX: usize = 16;

/// Why a certificate, key and roots aren't a usable set.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file can't be read, or a key may be read by others.
    #[error(transparent)]
    File(#[from] FileError),
    /// A PEM text without what it should hold.
    #[error("the {what} file holds no usable {what} ({why})")]
    NotPem {
        /// `certificate`, `key` or `roots`.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The node's own certificate fails the leaf check.
    #[error("the node's own certificate is not usable: {0}")]
    Leaf(LeafError),
    /// No root stands behind the certificate, for another reason than time.
    #[error("the node's own certificate is not usable: {0}")]
    Chain(ChainError),
    /// Control certificates sign documents; they are no keys for connections.
    #[error("a control certificate is never used on a connection; give this program its own")]
    Control,
    /// The key belongs to another certificate.
    #[error("the key does not belong to the certificate; the two files must come from the same issue")]
    KeyMismatch,
    /// A certificate in the roots file that isn't a root.
    #[error("certificate {number} in the roots file is not a root (a self-issued CA); use the roots.pem that muster-certs wrote")]
    NotARoot {
        /// Its place in the file, from 1.
        number: usize,
    },
    /// A new set names someone else than the one in use.
    #[error("the new certificate is that of {new}, but this program runs as {old}; restart it to change who it is")]
    OtherIdentity {
        /// Who is running.
        old: Box<Identity>,
        /// Who stands in the new certificate.
        new: Box<Identity>,
    },
    /// A new set whose roots and certificate have nothing to do with those in use.
    #[error(
        "none of the roots in use stands behind the new certificate, and none of them is among the new roots: these files are of another mesh; if they are meant, restart this program"
    )]
    OtherRoots,
    /// The certificate has ended.
    #[error("the certificate of {identity} expired on {}; renew it", utc_text(*.not_after_ms))]
    Expired {
        /// Whose.
        identity: Box<Identity>,
        /// When, milliseconds UTC.
        not_after_ms: i64,
    },
    /// The certificate hasn't begun.
    #[error(
        "the certificate of {identity} is valid only from {}; check this computer's clock",
        utc_text(*.not_before_ms)
    )]
    NotYetValid {
        /// Whose.
        identity: Box<Identity>,
        /// From when, milliseconds UTC.
        not_before_ms: i64,
    },
    /// rustls refuses something that all checks above let pass.
    #[error("the TLS library refuses these files: {0}")]
    Tls(String),
}

/// A checked set: the key belongs to the certificate, the roots stand behind it, the role is right.
pub struct Material {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) leaf: Leaf,
    pub(crate) window: Window,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) root_ders: Vec<CertificateDer<'static>>,
    pub(crate) roots_pem: String,
    pub(crate) roots_end_ms: i64,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
}

impl Material {
    /// Reads three PEM texts and checks them against each other. Time never makes this fail: an
    /// expired or future chain is checked as of the nearest moment of its validity ("expiry means
    /// collect, keep, warn, never stop").
    pub fn from_pem(certificate: &str, key: &str, roots: &str, role: Role, now_ms: i64) -> Result<Self, KeysError> {
        if role == Role::Control {
            return Err(KeysError::Control);
        }
        let chain = certificates("certificate", certificate, CHAIN_CERTIFICATES_MAX)?;
        let key = private_key(key)?;
        let trust = Trust::read(roots)?;
        let (end, between) = chain.split_first().ok_or(KeysError::Leaf(LeafError::Missing))?;

        let leaf = leaf::read_leaf(end).map_err(KeysError::Leaf)?;
        if leaf.identity.role() != role {
            return Err(KeysError::Leaf(LeafError::OtherRole { found: Box::new(leaf.identity), wanted: vec![role] }));
        }
        let window = Window::of(&leaf, &path(end, between, &trust.root_ders)).map_err(KeysError::Leaf)?;
        check_chain(end, between, &trust.roots, role, window.nearest(now_ms)).map_err(KeysError::Chain)?;

        let certified = certified(chain, key)?;
        Ok(Material::of(Arc::new(certified), leaf, window, trust))
    }

    /// The same certificate and key with other roots. Whether these stand behind the own certificate is for others to see: a node whose
    /// certificate is of yesterday's root must still know whom to trust today.
    pub fn trusting(&self, roots: &str) -> Result<Self, KeysError> {
        let trust = Trust::read(roots)?;
        let (end, between) = self.certified.cert.split_first().ok_or(KeysError::Leaf(LeafError::Missing))?;
        let window = Window::of(&self.leaf, &path(end, between, &trust.root_ders)).map_err(KeysError::Leaf)?;
        Ok(Material::of(self.certified.clone(), self.leaf.clone(), window, trust))
    }

    fn of(certified: Arc<CertifiedKey>, leaf: Leaf, window: Window, trust: Trust) -> Self {
        let Trust { roots, root_ders, roots_pem, roots_end_ms, clients } = trust;
        Material { certified, leaf, window, roots, root_ders, roots_pem, roots_end_ms, clients }
    }

    /// Fails when this set has nothing to do with `old`: whoever could write three files could otherwise move a program into a mesh of their own.
    pub fn check_continues(&self, old: &Material, now_ms: i64) -> Result<(), KeysError> {
        if self.root_ders.iter().any(|root| old.root_ders.contains(root)) {
            return Ok(());
        }
        let Some((end, between)) = self.certified.cert.split_first() else { return Err(KeysError::OtherRoots) };
        // A site that missed a whole rotation: the cross certificate leads to the root that it still has.
        check_chain(end, between, &old.roots, self.leaf.identity.role(), self.window.nearest(now_ms)).map_err(|_| KeysError::OtherRoots)
    }

    /// Fails when the set isn't valid at `now_ms` (milliseconds UTC).
    pub fn check_time(&self, now_ms: i64) -> Result<(), KeysError> {
        let identity = || Box::new(self.leaf.identity.clone());
        if now_ms > self.window.end_ms {
            return Err(KeysError::Expired { identity: identity(), not_after_ms: self.window.end_ms });
        }
        if now_ms < self.window.start_ms {
            return Err(KeysError::NotYetValid { identity: identity(), not_before_ms: self.window.start_ms });
        }
        Ok(())
    }
}

/// Roots, as all that use them need them.
struct Trust {
    roots: Arc<RootCertStore>,
    root_ders: Vec<CertificateDer<'static>>,
    roots_pem: String,
    /// End of the one that ends first.
    roots_end_ms: i64,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    fn read(pem: &str) -> Result<Trust, KeysError> {
        let (roots_pem, root_ders) = (pem.to_owned(), root_ders(pem)?);
        let roots_end_ms = root_ders.iter().filter_map(|der| end_ms(der)).min().unwrap_or(i64::MAX);
        let roots = Arc::new(store_of(&root_ders)?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider().clone())
            .build()
            .map_err(|e| KeysError::Tls(e.to_string()))?;
        Ok(Trust { roots, root_ders, roots_pem, roots_end_ms, clients })
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out.
        f.debug_struct("Material")
            .field("leaf", &self.leaf)
            .field("window", &self.window)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// When the chain up to the root (without it: its dates nobody checks) is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
}

impl Window {
    /// The overlap of the leaf and those between it and the root.
    pub(crate) fn of(leaf: &Leaf, between: &[&CertificateDer<'_>]) -> Result<Self, LeafError> {
        let mut window = Window { start_ms: leaf.not_before_ms, end_ms: leaf.not_after_ms };
        for der in between {
            let certificate = leaf::parse(der)?;
            let validity = certificate.validity();
            let start_ms = validity.not_before.timestamp().saturating_mul(1000);
            let end_ms = validity.not_after.timestamp().saturating_mul(1000);
            window.start_ms = window.start_ms.max(start_ms);
            window.end_ms = window.end_ms.min(end_ms);
        }
        Ok(window)
    }

    /// The moment of validity nearest to `now_ms`.
    pub(crate) fn nearest(self, now_ms: i64) -> UnixTime {
        moment(now_ms.max(self.start_ms).min(self.end_ms))
    }
}

/// End of validity, milliseconds UTC.
pub(crate) fn end_ms(der: &CertificateDer<'_>) -> Option<i64> {
    let certificate = leaf::parse(der).ok()?;
    Some(certificate.validity().not_after.timestamp().saturating_mul(1000))
}

/// Milliseconds UTC for people: `2026-11-22 05:41:00 UTC`.
pub fn utc_text(ms: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)) {
        Ok(at) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        ),
        Err(_) => format!("{ms} ms after 1970"),
    }
}

/// The certificates of a PEM text, at least one and at most `max`.
pub fn certificates(what: &'static str, pem: &str, max: usize) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let bad = |why: String| KeysError::NotPem { what, why };
    let mut found = Vec::new();
    for item in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if found.len() == max {
            return Err(bad(format!("more than {max} certificates in it")));
        }
        found.push(item.map_err(|e| bad(e.to_string()))?);
    }
    if found.is_empty() {
        return Err(bad("no BEGIN CERTIFICATE in it".to_owned()));
    }
    Ok(found)
}

/// The roots of a PEM text: certificates that are CAs and issued by themselves, nothing else. A
/// leaf or an issuing CA among the roots would be trusted for ever.
pub fn root_store(pem: &str) -> Result<RootCertStore, KeysError> {
    store_of(&root_ders(pem)?)
}

/// [`root_store`], as certificates.
pub(crate) fn root_ders(pem: &str) -> Result<Vec<CertificateDer<'static>>, KeysError> {
    let ders = certificates("roots", pem, ROOTS_MAX)?;
    for (index, der) in ders.iter().enumerate() {
        let is_root = leaf::parse(der)
            .is_ok_and(|certificate| certificate.is_ca() && certificate.subject().as_raw() == certificate.issuer().as_raw());
        if !is_root {
            return Err(KeysError::NotARoot { number: index + 1 });
        }
    }
    Ok(ders)
}

fn store_of(ders: &[CertificateDer<'static>]) -> Result<RootCertStore, KeysError> {
    let mut store = RootCertStore::empty();
    for (index, der) in ders.iter().enumerate() {
        store.add(der.clone()).map_err(|_| KeysError::NotARoot { number: index + 1 })?;
    }
    Ok(store)
}

/// Refuses a PEM key that isn't the key of the first certificate of `chain`.
pub fn check_key(chain: Vec<CertificateDer<'static>>, key: &str) -> Result<(), KeysError> {
    certified(chain, private_key(key)?).map(drop)
}

pub(crate) fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, KeysError> {
    CertifiedKey::from_der(chain, key, provider()).map_err(key_error)
}

pub(crate) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, KeysError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| KeysError::NotPem { what: "key", why: "no BEGIN PRIVATE KEY in it, or damaged".to_owned() })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' errors grow with its versions")]
fn key_error(error: rustls::Error) -> KeysError {
    match error {
        rustls::Error::InconsistentKeys(_) => KeysError::KeyMismatch,
        other => KeysError::NotPem { what: "key", why: other.to_string() },
    }
}
