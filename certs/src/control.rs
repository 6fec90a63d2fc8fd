//! Quiet: whose signature counts under what comes down from the hub: a control certificate that a root of ours stands behind.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::chain::{ChainError, check_chain};
use crate::identity::{Name, Role};
use crate::issuer::{Chain, Issuer, IssuerError, leaf_life_ms};
use crate::leaf::{self, Leaf, LeafError};
use crate::material::{CHAIN_CERTIFICATES_MAX, KeysError, ROOTS_MAX, Window, certificates};
use crate::request::{KeyRequest, Requested};
use crate::{Identity, chain};

/// When a chain is looked at, milliseconds UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It is to be taken now. A clock that stands before the certificate's beginning (an empty battery says 1970) counts as that beginning.
    Taking(i64),
    /// It was taken before, and is read from the disk: one that has ended meanwhile still proves what was signed with it.
    Kept(i64),
}

/// Who signs, and with which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The number of the control key.
    pub n: u32,
    /// P-256, an uncompressed point.
    pub public_key: Vec<u8>,
    /// What its certificate says.
    pub leaf: Leaf,
}

/// Why nobody's signature counts by this chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The PEM text.
    #[error("the control certificate doesn't read: {0}")]
    Unreadable(String),
    /// The leaf check.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// No root stands behind it.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl From<KeysError> for ControlError {
    fn from(error: KeysError) -> ControlError {
        ControlError::Unreadable(error.to_string())
    }
}

/// Checks a chain (PEM: the leaf, the issuing CA, maybe a cross certificate), with more cross certificates (PEM, or empty) beside it.
pub fn check_control(
    chain_pem: &str,
    crosses_pem: &str,
    roots: &RootCertStore,
    domain: &str,
    when: When,
) -> Result<Controller, ControlError> {
    let chain = certificates("certificate", chain_pem, CHAIN_CERTIFICATES_MAX)?;
    let crosses = if crosses_pem.is_empty() { Vec::new() } else { certificates("certificate", crosses_pem, ROOTS_MAX)? };
    let (end, between) = chain.split_first().ok_or(LeafError::Missing)?;
    let leaf = leaf::check_role(end, domain, &[Role::Control])?;
    let Name::Control { n } = leaf.identity.name else { return Err(LeafError::Unreadable("its name").into()) };
    // A cross certificate behind the issuing CA ends with the root that only some still hold.
    let issuing: Vec<&CertificateDer<'static>> = between.iter().take(1).collect();
    let window = Window::of(&leaf, &issuing)?;
    let at = match when {
        When::Taking(now_ms) => chain::moment(now_ms.max(window.start_ms)),
        When::Kept(now_ms) => window.nearest(now_ms),
    };
    let between: Vec<CertificateDer<'static>> = between.iter().cloned().chain(crosses).collect();
    check_chain(end, &between, roots, Role::Control, at)?;
    let public_key = leaf::parse(end)?.public_key().subject_public_key.data.to_vec();
    Ok(Controller { n, public_key, leaf })
}

/// The public key of the first certificate of a chain (PEM) that was checked before.
pub fn public_key(chain_pem: &str) -> Result<Vec<u8>, ControlError> {
    let chain = certificates("certificate", chain_pem, CHAIN_CERTIFICATES_MAX)?;
    let end = chain.first().ok_or(LeafError::Missing)?;
    Ok(leaf::parse(end)?.public_key().subject_public_key.data.to_vec())
}

/// A chain for a control key that is kept elsewhere, given as PKCS#8 in PEM.
pub fn issue_control(issuer: &Issuer, n: u32, key_pem: &str, now_ms: i64) -> Result<Chain, IssuerError> {
    let request = KeyRequest::of_pem(key_pem)?;
    let requested = Requested::read(&request.request).map_err(|error| IssuerError::Make(error.to_string()))?;
    let identity = Identity::new(issuer.domain(), Name::Control { n })?;
    issuer.issue_for(&identity, &requested, leaf_life_ms(Role::Control), now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::material::root_store;

    const NOW: i64 = 1_800_000_000_000;
    const YEAR_MS: i64 = 365 * 86_400_000;

    #[test]
    fn a_control_chain_names_its_key_and_others_name_none() {
        let (root, issuer) = Issuer::in_memory("muster.test", NOW).unwrap();
        let roots = root_store(root.pem()).unwrap();
        let key = KeyRequest::generate().unwrap().key_pem;
        let made = issue_control(&issuer, 3, &key, NOW).unwrap();
        let check = |pem: &str, domain: &str, when| check_control(pem, "", &roots, domain, when);
        let controller = check(&made.pem, "muster.test", When::Taking(NOW)).unwrap();
        assert_eq!((controller.n, controller.public_key.len()), (3, 65));
        assert!(matches!(check(&made.pem, "else.test", When::Taking(NOW)), Err(ControlError::Leaf(LeafError::OtherDomain { .. }))));
        let hub = issuer.issue(&Identity::new("muster.test", Name::Hub { id: "h".into() }).unwrap(), NOW).unwrap();
        assert!(matches!(check(&hub.pem, "muster.test", When::Taking(NOW)), Err(ControlError::Leaf(LeafError::OtherRole { .. }))));
        let (_, other) = Issuer::in_memory("muster.test", NOW).unwrap();
        let foreign = issue_control(&other, 3, &key, NOW).unwrap();
        assert_eq!(check(&foreign.pem, "muster.test", When::Taking(NOW)), Err(ControlError::Chain(ChainError::UnknownIssuer)));
    }

    #[test]
    fn a_dead_clock_takes_it_and_an_ended_one_proves_only_what_was_kept() {
        let (root, issuer) = Issuer::in_memory("muster.test", NOW).unwrap();
        let roots = root_store(root.pem()).unwrap();
        let made = issue_control(&issuer, 1, &KeyRequest::generate().unwrap().key_pem, NOW).unwrap();
        let check = |when| check_control(&made.pem, "", &roots, "muster.test", when).map(drop);
        assert_eq!(check(When::Taking(0)), Ok(()));
        assert_eq!(check(When::Taking(NOW + 2 * YEAR_MS)), Err(ControlError::Chain(ChainError::Expired)));
        assert_eq!(check(When::Kept(NOW + 2 * YEAR_MS)), Ok(()));
        assert_eq!(check(When::Kept(0)), Ok(()));
    }
}
