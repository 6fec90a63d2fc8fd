//! Async: what the hub signed and this agent obeys: the newest policy, with the device's erasure version beside it.

use muster_mesh::{
    asking::Membership,
    ids::Version,
    message::{HeldVersion, Signed, SignedKind},
    policy::Policy,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{collect::day::PolicyInForce, uplink::News};

/// Hands the policy in force to the collector, which keeps it on the disk.
pub struct Newest {
    in_force: watch::Sender<Option<PolicyInForce>>,
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
    pub fn new(in_force: watch::Sender<Option<PolicyInForce>>) -> Newest {
        Newest { in_force }
    }

    fn policy(&self, version: Version, body: &[u8]) {
        let policy = match Policy::from_bytes(body) {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(%version, %error, "a policy of the hub can't be understood; the one before it stays in force");
                return;
            }
        };
        self.in_force.send_if_modified(|in_force| {
            let is_newer = in_force.as_ref().is_none_or(|known| known.version < version);
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
        in_force.iter().flat_map(|known| [of(SignedKind::Policy, known.version), of(SignedKind::Notice, known.policy.notice)]).collect()
    }

    fn signed(&self, signed: Signed) {
        match SignedKind::from_u8(signed.kind) {
            Some(SignedKind::Policy) => self.policy(signed.version, &signed.body),
            // A notice's text is made here from the policy; the others are for relays, or for a newer program.
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
    use super::*;
    use crate::collect::sense::tests::policy;

    fn version(n: u32) -> Version {
        Version { epoch: 1, n }
    }

    fn heard(newest: &Newest, n: u32, heartbeat_s: u32) {
        let body = Policy { heartbeat_s, ..policy() }.to_bytes();
        newest.signed(Signed::new(SignedKind::Policy, version(n), body));
    }

    #[test]
    fn only_a_newer_policy_comes_into_force_and_is_held() {
        let newest = Newest::new(watch::Sender::new(None));
        assert_eq!(newest.held(), []);
        heard(&newest, 2, 20);
        heard(&newest, 1, 10);
        newest.signed(Signed::new(SignedKind::Policy, version(3), b"{".to_vec()));
        newest.signed(Signed::new(SignedKind::Notice, version(9), Vec::new()));
        let in_force = newest.in_force.borrow().clone().unwrap();
        assert_eq!((in_force.version, in_force.policy.heartbeat_s), (version(2), 20));
        assert_eq!(newest.held()[0], HeldVersion { kind: SignedKind::Policy.as_u8(), version: version(2) });
    }

    #[test]
    fn an_erasure_only_rises_and_a_newer_policy_keeps_it() {
        let newest = Newest::new(watch::Sender::new(None));
        newest.erasure(version(5));
        heard(&newest, 1, 10);
        newest.erasure(version(2));
        newest.erasure(version(1));
        heard(&newest, 2, 10);
        assert_eq!(newest.in_force.borrow().as_ref().unwrap().erasure, version(2));
    }
}
