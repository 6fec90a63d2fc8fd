//! Async: what every request is answered from.

use std::sync::Arc;

use muster_mesh::{
    clock::Clock,
    message::{HeldVersion, SignedKind},
};
use tokio::sync::{Mutex, Semaphore};

use crate::{
    control::{Control, ControlError},
    ingest::{Ingest, pictures::Pictures},
    issued::IssuedSince,
    lockout::Lockout,
    objects::Objects,
    policy::Policies,
    presence::Presences,
    signer::Signer,
    store::Store,
    token::Tokens,
};

/// Passwords checked at the same time: each takes a core and 19 MiB for a while.
const HASHING_MAX: usize = 2;

/// The running hub's parts, shared by all that answers.
pub struct Hub {
    pub store: Arc<Store>,
    pub objects: Arc<Objects>,
    pub clock: Arc<dyn Clock>,
    pub policies: Arc<Policies>,
    pub control: Arc<Control>,
    pub presences: Arc<Mutex<Presences>>,
    pub ingest: Ingest,
    pub tokens: Arc<Tokens>,
    pub lockout: Mutex<Lockout>,
    pub hashing: Semaphore,
    /// None: this hub issues no certificates.
    pub signer: Option<Arc<Signer>>,
}

impl Hub {
    pub fn new(
        store: Arc<Store>,
        objects: Arc<Objects>,
        clock: Arc<dyn Clock>,
        policies: Arc<Policies>,
        control: Arc<Control>,
        tokens: Arc<Tokens>,
        test_mode: bool,
    ) -> Hub {
        let presences = Arc::<Mutex<Presences>>::default();
        let pictures = Pictures::new(objects.clone(), clock.clone());
        let ingest = Ingest {
            store: store.clone(),
            clock: clock.clone(),
            policies: policies.clone(),
            control: control.clone(),
            presences: presences.clone(),
            pictures,
            issued: IssuedSince::default(),
            test_mode,
        };
        Hub {
            store,
            objects,
            clock,
            policies,
            control,
            presences,
            ingest,
            tokens,
            lockout: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            signer: None,
        }
    }

    /// The same hub, issuing certificates.
    pub fn signing(self, signer: Option<Arc<Signer>>) -> Hub {
        Hub { signer, ..self }
    }

    /// The same hub, knowing who has been given which certificate by files.
    pub fn listing(self, issued: IssuedSince) -> Hub {
        Hub { ingest: Ingest { issued, ..self.ingest }, ..self }
    }

    /// A relay shows what a hub of this mesh has signed: this hub takes over what it lacks, and says it under a version above.
    pub async fn shown(&self, bytes: &[u8]) -> Result<(), ControlError> {
        let signed = self.control.shown(bytes, self.now_ms()).await?;
        let held = HeldVersion { kind: signed.kind, version: signed.version };
        let is_policys = [SignedKind::Policy, SignedKind::Notice].map(SignedKind::as_u8).contains(&signed.kind);
        if is_policys && signed.device.is_none() {
            self.policies.told(&[held], self.now_ms()).await?;
        }
        Ok(())
    }

    /// Milliseconds UTC.
    pub fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms
    }
}
