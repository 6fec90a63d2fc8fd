//! Async: what the hub signed and this agent obeys: the newest policy, with the device's erasure version beside it.

use std::sync::Arc;

use bytes::Bytes;
use muster_mesh::{
    asking::Membership,
    ids::Version,
    message::{HeldVersion, Signed, SignedKind},
    papers::Papers,
    policy::Policy,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{collect::day::PolicyInForce, uplink::News};

/// Hands the policy in force to the collector, which keeps it on the disk.
pub struct Newest {
    in_force: watch::Sender<Option<PolicyInForce>>,
    papers: Arc<Papers>,
}

/// What was in force when the program ended, as far as the hub's signature still stands under it. None: nothing is observed until it comes again.
pub fn proven(was_in_force: Option<PolicyInForce>, papers: &Papers) -> Option<PolicyInForce> {
    let was_in_force = was_in_force?;
    let signed = papers.newest(SignedKind::Policy).and_then(|bytes| Signed::read(&bytes).ok());
    let proven = signed.and_then(|signed| Some((signed.version, Policy::from_bytes(&signed.body).ok()?)));
    if proven.is_none() {
        tracing::warn!("the policy on the disk isn't proven to be the hub's; nothing is observed until it comes again");
    }
    proven.map(|(version, policy)| PolicyInForce { version, policy, erasure: was_in_force.erasure })
}

/// Lets what the hub said come into force while this computer is approved: nobody is observed before somebody has said whose it is.
pub async fn gate(
    mut heard: watch::Receiver<Option<PolicyInForce>>,
    mut standing: watch::Receiver<Membership>,
    in_force: watch::Sender<Option<PolicyInForce>>,
    stop: CancellationToken,
) {
    loop {
        if standing.borrow_and_update().is_approved() {
            let newest = heard.borrow_and_update().clone();
            in_force.send_if_modified(|known| {
                newest.is_some() && *known != newest && {
                    *known = newest;
                    true
                }
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // Whoever told of it has ended: nothing changes any more.
            changed = heard.changed() => if changed.is_err() { return },
            changed = standing.changed() => if changed.is_err() { stop.cancelled().await },
        }
    }
}

impl Newest {
    pub fn new(in_force: watch::Sender<Option<PolicyInForce>>, papers: Arc<Papers>) -> Newest {
        Newest { in_force, papers }
    }

    fn policy(&self, signed: &Signed, bytes: &Bytes) {
        let version = signed.version;
        let policy = match Policy::from_bytes(&signed.body) {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(%version, %error, "a policy of the hub can't be understood; the one before it stays in force");
                return;
            }
        };
        let proven = self.papers.version(SignedKind::Policy);
        // On the disk with its signature, before it comes into force.
        self.papers.keep(signed, bytes);
        self.in_force.send_if_modified(|in_force| {
            // One whose key was ended since may be made up, and so may its version be.
            let is_newer = in_force.as_ref().is_none_or(|known| known.version < version || known.version != proven);
            if is_newer {
                let erasure = in_force.as_ref().map(|known| known.erasure).unwrap_or_default();
                *in_force = Some(PolicyInForce { version, policy, erasure });
            }
            is_newer
        });
    }
}

impl News for Newest {
    fn held(&self) -> Vec<HeldVersion> {
        let in_force = self.in_force.borrow();
        let of = |kind: SignedKind, version| HeldVersion { kind: kind.as_u8(), version };
        let proven = in_force.iter().filter(|known| known.version == self.papers.version(SignedKind::Policy));
        proven.flat_map(|known| [of(SignedKind::Policy, known.version), of(SignedKind::Notice, known.policy.notice)]).collect()
    }

    fn signed(&self, signed: Signed, bytes: &Bytes) {
        match SignedKind::from_u8(signed.kind) {
            Some(SignedKind::Policy) => self.policy(&signed, bytes),
            // A notice's text is made here from the policy; the others come into force before, or are for a newer program.
            Some(SignedKind::Notice | SignedKind::Ack | SignedKind::Deny | SignedKind::Bundle | SignedKind::Relays) | None => {}
        }
    }

    fn erasure(&self, version: Version) {
        self.in_force.send_if_modified(|in_force| match in_force {
            Some(known) if known.erasure < version => {
                known.erasure = version;
                true
            }
            Some(_) | None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use muster_certs::{Chain, Identity, Issuer, Keys, Name, Role, SystemTime};
    use muster_mesh::{
        clock::{Clock, SystemClock},
        control_key::ControlKey,
        message::{Bundle, ControlChain},
    };

    use super::*;
    use crate::collect::sense::tests::policy;

    const NOW: i64 = 1_800_000_000_000;

    fn version(n: u32) -> Version {
        Version { epoch: 1, n }
    }

    fn newest() -> Newest {
        Newest::new(watch::Sender::new(None), Arc::new(Papers::in_memory(keys())))
    }

    fn keys() -> Arc<Keys> {
        let now_ms = SystemClock::new().now().wall_ms;
        let (root, issuer) = Issuer::in_memory("muster.test", now_ms).unwrap();
        let name = Name::Agent { site: "oslo".into(), device: [7; 16] };
        let signed = issuer.issue(&Identity::new("muster.test", name).unwrap(), now_ms).unwrap();
        Keys::from_pem(&signed.pem, &signed.key_pem, root.pem(), Role::Agent, Arc::new(SystemTime)).unwrap()
    }

    fn told(newest: &Newest, kind: SignedKind, n: u32, body: Vec<u8>) {
        let signed = Signed::new(kind, version(n), body);
        let bytes = signed.bytes().unwrap().into();
        newest.signed(signed, &bytes);
    }

    fn heard(newest: &Newest, n: u32, heartbeat_s: u32) {
        told(newest, SignedKind::Policy, n, Policy { heartbeat_s, ..policy() }.to_bytes());
    }

    #[test]
    fn only_a_newer_policy_comes_into_force_and_is_held() {
        let newest = newest();
        assert_eq!(newest.held(), []);
        heard(&newest, 2, 20);
        heard(&newest, 1, 10);
        told(&newest, SignedKind::Policy, 3, b"{".to_vec());
        told(&newest, SignedKind::Notice, 9, Vec::new());
        let in_force = newest.in_force.borrow().clone().unwrap();
        assert_eq!((in_force.version, in_force.policy.heartbeat_s), (version(2), 20));
        assert_eq!(newest.held()[0], HeldVersion { kind: SignedKind::Policy.as_u8(), version: version(2) });
    }

    #[test]
    fn what_a_key_signed_that_counts_no_more_is_not_held_and_an_older_policy_takes_its_place() {
        let (root, issuer) = Issuer::in_memory("muster.test", NOW).unwrap();
        let [(own, own_chain), (stolen, stolen_chain)] = [1, 2].map(|n| ControlKey::issue(&issuer, n, NOW).unwrap());
        let bundle = |n, all: &[(u32, &Chain)]| {
            let controls = all.iter().map(|(n, chain)| ControlChain { n: *n, chain: chain.pem.clone() }).collect();
            let (roots, crosses) = (root.pem().to_owned(), String::new());
            let bundle = Bundle { made_ms: NOW, ca: 1, issuer: String::new(), roots, crosses, controls };
            Bytes::from(own.sign(&Signed::new(SignedKind::Bundle, version(n), bundle.bytes().unwrap())).unwrap())
        };
        let name = Name::Agent { site: "oslo".into(), device: [7; 16] };
        let signed = issuer.issue(&Identity::new("muster.test", name).unwrap(), NOW).unwrap();
        let keys = Keys::from_pem(&signed.pem, &signed.key_pem, root.pem(), Role::Agent, Arc::new(SystemTime)).unwrap();
        let papers = Arc::new(Papers::in_memory(keys));
        let newest = Newest::new(watch::Sender::new(None), papers.clone());
        let told = |key: &ControlKey, n: u32, heartbeat_s: u32| {
            let policy = Policy { heartbeat_s, ..policy() };
            let bytes = Bytes::from(key.sign(&Signed::new(SignedKind::Policy, version(n), policy.to_bytes())).unwrap());
            newest.signed(papers.take(&bytes, NOW).unwrap().signed, &bytes);
        };
        let in_force = || newest.in_force.borrow().as_ref().map(|known| (known.version.n, known.policy.heartbeat_s));
        papers.take(&bundle(1, &[(1, &own_chain), (2, &stolen_chain)]), NOW).unwrap();
        told(&own, 4, 20);
        told(&stolen, 900, 10);
        told(&own, 5, 21);
        assert_eq!((in_force(), newest.held().len()), (Some((900, 10)), 2));
        papers.take(&bundle(2, &[(1, &own_chain)]), NOW).unwrap();
        assert_eq!(newest.held(), [], "the relay doesn't send what is said to be held");
        told(&own, 5, 21);
        assert_eq!(in_force(), Some((5, 21)));
        told(&own, 4, 20);
        assert_eq!(in_force(), Some((5, 21)), "an older one");
    }

    #[test]
    fn an_erasure_only_rises_and_a_newer_policy_keeps_it() {
        let newest = newest();
        newest.erasure(version(5));
        heard(&newest, 1, 10);
        newest.erasure(version(2));
        newest.erasure(version(1));
        heard(&newest, 2, 10);
        assert_eq!(newest.in_force.borrow().as_ref().unwrap().erasure, version(2));
    }
}
