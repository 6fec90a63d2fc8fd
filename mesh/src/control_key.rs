//! Quiet: the hub's signature under all that comes down, and who believes it.
//!
//! A *bundle* proves itself: the chain of the key that signed it stands in it and leads to a root that the receiver has already. It replaces the
//! receiver's roots and its list of control keys. Everything else is believed by that list alone, so that one signature is checked, no chain.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use muster_certs::{
    Chain, ControlError, Controller, Denied, Issuer, IssuerError, KeyRequest, When, check_control, issue_control, material,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use crate::{
    ids::Version,
    message::{Bundle, MessageError, Signed, SignedKind},
};

/// A control key with its number.
pub struct ControlKey {
    n: u32,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

/// Nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("no randomness for a signature")]
    NoRandomness,
}

impl ControlKey {
    /// A stored key: PKCS#8, P-256.
    pub fn from_pem(n: u32, pem: &str) -> Option<ControlKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).ok()?;
        Some(ControlKey { n, pair, random: SystemRandom::new() })
    }

    /// A new key with its certificate.
    pub fn issue(issuer: &Issuer, n: u32, now_ms: i64) -> Result<(ControlKey, Chain), IssuerError> {
        let pem = KeyRequest::generate()?.key_pem;
        let chain = issue_control(issuer, n, &pem, now_ms)?;
        let key = ControlKey::from_pem(n, &pem).ok_or_else(|| IssuerError::Make("the new key doesn't read".to_owned()))?;
        Ok((key, chain))
    }

    /// Its number: that in its certificate's name.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// The public half, an uncompressed point.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The message with this key's signature, encoded.
    pub fn sign(&self, signed: &Signed) -> Result<Vec<u8>, SignError> {
        let unsigned = Signed { key: self.n, signature: Vec::new(), ..signed.clone() };
        let covered = unsigned.covered(&unsigned.bytes()?).ok_or(MessageError::Cut)?;
        let signature = self.pair.sign(&self.random, &covered).map_err(|_| SignError::NoRandomness)?;
        Ok(Signed { signature: signature.as_ref().to_vec(), ..unsigned }.bytes()?)
    }
}

impl fmt::Debug for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private half stays out.
        f.debug_struct("ControlKey").field("n", &self.n).finish_non_exhaustive()
    }
}

/// Why something that claims to be the hub's isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("nobody signed it")]
    Unsigned,
    #[error("it is signed by control key {0}, which nobody vouches for here")]
    UnknownKey(u32),
    #[error("its signature isn't that of control key {0}")]
    Signature(u32),
    #[error("it is signed by a control key that can't be believed: {0}")]
    Chain(#[from] ControlError),
    #[error("a bundle that names no usable root: {0}")]
    Roots(String),
    #[error("what should be a bundle isn't one")]
    NotABundle,
    #[error("a bundle from before the one that holds")]
    Older,
}

impl Unproven {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Unproven::Message(_) | Unproven::NotABundle => "unreadable",
            Unproven::Unsigned => "unsigned",
            Unproven::UnknownKey(_) => "unknown_key",
            Unproven::Signature(_) => "signature",
            Unproven::Chain(_) => "chain",
            Unproven::Roots(_) => "roots",
            Unproven::Older => "older",
        }
    }
}

/// Whose signatures count here.
#[derive(Debug, Clone)]
pub struct Controls {
    domain: String,
    roots: String,
    keys: BTreeMap<u32, Controller>,
    bundle: Option<Version>,
}

impl Controls {
    /// With these roots (PEM) and no control key: only a bundle can be believed.
    pub fn new(domain: &str, roots: &str) -> Controls {
        Controls { domain: domain.to_owned(), roots: roots.to_owned(), keys: BTreeMap::new(), bundle: None }
    }

    /// The roots that hold: PEM.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// The version of the bundle that holds.
    pub fn bundle(&self) -> Option<Version> {
        self.bundle
    }

    /// Reads what the hub signed. A bundle isn't taken by this.
    pub fn read(&self, bytes: &[u8], denied: &Denied) -> Result<Signed, Unproven> {
        let signed = Signed::read(bytes)?;
        if signed.signature.is_empty() {
            return Err(Unproven::Unsigned);
        }
        let controller = self.keys.get(&signed.key).ok_or(Unproven::UnknownKey(signed.key))?;
        denied.check(&controller.leaf).map_err(ControlError::from)?;
        is_signed(&signed, bytes, controller)?;
        Ok(signed)
    }

    /// What counts after a bundle, and what it says.
    pub fn taking(&self, bytes: &[u8], denied: &Denied, when: When) -> Result<(Controls, Signed, Bundle), Unproven> {
        let signed = Signed::read(bytes)?;
        let is_bundle = SignedKind::from_u8(signed.kind) == Some(SignedKind::Bundle) && signed.device.is_none() && signed.spool.is_none();
        if !is_bundle {
            return Err(Unproven::NotABundle);
        }
        if signed.signature.is_empty() {
            return Err(Unproven::Unsigned);
        }
        let bundle = Bundle::read(&signed.body)?;
        let own = bundle.controls.iter().find(|control| control.n == signed.key).ok_or(Unproven::UnknownKey(signed.key))?;
        let present = roots_of(&self.roots)?;
        let signer = check_control(&own.chain, &bundle.crosses, &present, &self.domain, when)?;
        if signer.n != signed.key {
            return Err(Unproven::UnknownKey(signed.key));
        }
        denied.check(&signer.leaf).map_err(ControlError::from)?;
        is_signed(&signed, bytes, &signer)?;
        if self.bundle.is_some_and(|known| signed.version <= known) {
            return Err(Unproven::Older);
        }
        let coming = roots_of(&bundle.roots)?;
        let now =
            Controls { domain: self.domain.clone(), roots: bundle.roots.clone(), keys: BTreeMap::new(), bundle: Some(signed.version) };
        // Another's certificate may have ended: what it signed lies on disks all the same, and the signer of the bundle vouches for it.
        let (When::Taking(now_ms) | When::Kept(now_ms)) = when;
        let vouched = |chain: &str, roots: &_| check_control(chain, &bundle.crosses, roots, &self.domain, When::Kept(now_ms));
        let controllers = bundle.controls.iter().filter_map(|control| {
            let controller = vouched(&control.chain, &coming).or_else(|_| vouched(&control.chain, &present)).ok()?;
            (controller.n == control.n).then_some((control.n, controller))
        });
        let keys = controllers.collect();
        Ok((Controls { keys, ..now }, signed, bundle))
    }
}

fn roots_of(pem: &str) -> Result<rustls::RootCertStore, Unproven> {
    material::root_store(pem).map_err(|error| Unproven::Roots(error.to_string()))
}

fn is_signed(signed: &Signed, bytes: &[u8], controller: &Controller) -> Result<(), Unproven> {
    let covered = signed.covered(bytes).ok_or(MessageError::Cut)?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &controller.public_key);
    public.verify(&covered, &signed.signature).map_err(|_| Unproven::Signature(signed.key))
}

#[cfg(test)]
mod tests {
    use muster_certs::Root;

    use super::*;
    use crate::{ids::DeviceId, message::ControlChain};

    const NOW: i64 = 1_800_000_000_000;
    const DOMAIN: &str = "muster.test";
    const NOBODY: fn() -> Denied = Denied::default;

    #[test]
    fn what_the_hub_signed_is_believed_after_its_bundle_and_not_before() {
        let hub = Hub::new();
        let policy = hub.key.sign(&signed(SignedKind::Policy, 1)).unwrap();
        let stranger = Controls::new(DOMAIN, hub.root.pem());
        assert_eq!(stranger.read(&policy, &NOBODY()), Err(Unproven::UnknownKey(1)));
        let member = hub.member();
        assert_eq!(member.read(&policy, &NOBODY()).unwrap().body, b"body");
        assert_eq!(member.read(&signed(SignedKind::Policy, 1).bytes().unwrap(), &NOBODY()), Err(Unproven::Unsigned));
    }

    #[test]
    fn each_changed_byte_is_noticed() {
        let hub = Hub::new();
        let member = hub.member();
        let mut ack = signed(SignedKind::Ack, 0);
        ack.device = Some(DeviceId([7; 16]));
        let bytes = hub.key.sign(&ack).unwrap();
        assert!(member.read(&bytes, &NOBODY()).is_ok());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(member.read(&changed, &NOBODY()).is_err(), "byte {at} can be changed");
        }
        // A good signature over other bytes.
        let other = Signed { signature: Signed::read(&bytes).unwrap().signature, key: 1, ..signed(SignedKind::Ack, 0) };
        assert_eq!(member.read(&other.bytes().unwrap(), &NOBODY()), Err(Unproven::Signature(1)));
    }

    #[test]
    fn the_key_of_another_mesh_is_nobodys_here() {
        let (hub, other) = (Hub::new(), Hub::new());
        let forged = other.key.sign(&signed(SignedKind::Policy, 9)).unwrap();
        assert_eq!(hub.member().read(&forged, &NOBODY()), Err(Unproven::Signature(1)));
        let refused = hub.member().taking(&other.bundle(9), &NOBODY(), When::Taking(NOW)).map(drop);
        assert!(matches!(refused, Err(Unproven::Chain(_))), "{refused:?}");
        // Also where it puts the real one's chain into its bundle, under its own signature.
        let mut mixed = other.body();
        mixed.controls = hub.body().controls;
        let mixed = other.key.sign(&Signed { body: mixed.bytes().unwrap(), ..signed(SignedKind::Bundle, 9) }).unwrap();
        assert_eq!(hub.member().taking(&mixed, &NOBODY(), When::Taking(NOW)).map(drop), Err(Unproven::Signature(1)));
    }

    #[test]
    fn an_older_bundle_doesnt_come_back() {
        let hub = Hub::new();
        let member = hub.member();
        for n in [1, 2] {
            assert_eq!(member.taking(&hub.bundle(n), &NOBODY(), When::Taking(NOW)).map(drop), Err(Unproven::Older));
        }
        assert_eq!(member.taking(&hub.bundle(3), &NOBODY(), When::Taking(NOW)).unwrap().0.bundle(), Some(version(3)));
    }

    #[test]
    fn a_clock_that_died_takes_a_bundle_and_an_ended_key_only_proves_what_was_kept() {
        let hub = Hub::new();
        let stranger = Controls::new(DOMAIN, hub.root.pem());
        let (bundle, later) = (hub.bundle(2), NOW + 400 * 86_400_000);
        assert!(stranger.taking(&bundle, &NOBODY(), When::Taking(0)).is_ok());
        assert!(matches!(stranger.taking(&bundle, &NOBODY(), When::Taking(later)), Err(Unproven::Chain(_))));
        let kept = stranger.taking(&bundle, &NOBODY(), When::Kept(later)).unwrap().0;
        assert!(kept.read(&hub.key.sign(&signed(SignedKind::Policy, 1)).unwrap(), &NOBODY()).is_ok());
    }

    #[test]
    fn a_bundle_brings_the_next_root_and_the_next_key() {
        let (hub, next) = (Hub::new(), Hub::new());
        let (second, chain) = ControlKey::issue(&next.issuer, 2, NOW).unwrap();
        let mut body = hub.body();
        body.roots += next.root.pem();
        body.controls.push(ControlChain { n: 2, chain: chain.pem });
        let both = hub.key.sign(&Signed { body: body.bytes().unwrap(), ..signed(SignedKind::Bundle, 3) }).unwrap();
        let member = hub.member().taking(&both, &NOBODY(), When::Taking(NOW)).unwrap().0;
        assert!(member.read(&second.sign(&signed(SignedKind::Policy, 1)).unwrap(), &NOBODY()).is_ok());
        // The second key's own bundle is believed by the new root; then the first's isn't any more.
        body.roots = next.root.pem().to_owned();
        body.controls.remove(0);
        let alone = second.sign(&Signed { body: body.bytes().unwrap(), ..signed(SignedKind::Bundle, 4) }).unwrap();
        let member = member.taking(&alone, &NOBODY(), When::Taking(NOW)).unwrap().0;
        assert!(matches!(member.taking(&hub.bundle(5), &NOBODY(), When::Taking(NOW)), Err(Unproven::Chain(_))));
    }

    #[test]
    fn a_denied_control_key_signs_nothing_any_more() {
        let hub = Hub::new();
        let denied = Denied::new([(muster_certs::Name::Control { n: 1 }, NOW + 2_000)]);
        let policy = hub.key.sign(&signed(SignedKind::Policy, 1)).unwrap();
        assert!(matches!(hub.member().read(&policy, &denied), Err(Unproven::Chain(_))));
        assert!(matches!(hub.member().taking(&hub.bundle(9), &denied, When::Taking(NOW)), Err(Unproven::Chain(_))));
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

        fn body(&self) -> Bundle {
            let controls = vec![ControlChain { n: 1, chain: self.chain.pem.clone() }];
            Bundle { made_ms: NOW, ca: 1, issuer: String::new(), roots: self.root.pem().to_owned(), crosses: String::new(), controls }
        }

        fn bundle(&self, n: u32) -> Vec<u8> {
            self.key.sign(&Signed { body: self.body().bytes().unwrap(), ..signed(SignedKind::Bundle, n) }).unwrap()
        }

        /// Somebody who has its second bundle.
        fn member(&self) -> Controls {
            Controls::new(DOMAIN, self.root.pem()).taking(&self.bundle(2), &NOBODY(), When::Taking(NOW)).unwrap().0
        }
    }

    fn version(n: u32) -> Version {
        Version { epoch: 1, n }
    }

    fn signed(kind: SignedKind, n: u32) -> Signed {
        Signed::new(kind, version(n), b"body".to_vec())
    }
}
