//! Blocking: a hub that has the issuing key looks after its own certificate, too, in the files where it lies: it is renewed at half of its life, and
//! when another CA issues.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use muster_certs::{
    Ca, Keys, Leaf,
    pair::{Pair, PairError, Roots, put_roots},
};
use muster_mesh::renewal::Life;

use crate::signer::Signer;

/// How long nothing is issued after a renewal that failed: each one is a line in the CA's list, which is never cut.
pub const RETRY_MS: i64 = 5 * 60 * 1_000;
/// No renewal has failed.
const NEVER: i64 = i64::MIN;

/// The hub's certificate, where it lies and where it is in use.
pub struct OwnLeaf {
    pub signer: Arc<Signer>,
    keys: Arc<Keys>,
    pair: Pair,
    roots: PathBuf,
    /// When the renewal began that failed last, milliseconds UTC.
    failed_ms: AtomicI64,
}

impl OwnLeaf {
    pub fn new(signer: Arc<Signer>, keys: Arc<Keys>, pair: Pair, roots: PathBuf) -> OwnLeaf {
        OwnLeaf { signer, keys, pair, roots, failed_ms: AtomicI64::new(NEVER) }
    }

    /// Renews what is due, and takes it into use. On an error what was in use stays, and the next look that would renew is minutes later.
    pub fn look(&self, now_ms: i64) -> Result<(), PairError> {
        let ca = self.signer.ca();
        if is_due(&self.keys.leaf(), &ca, now_ms) {
            let lies_there = self.pair.open(&ca)?;
            if !is_due(&lies_there, &ca, now_ms) {
                // Somebody has put it there by hand.
                self.take()?;
            } else if !self.failed_lately(now_ms) {
                self.failed_ms.store(now_ms, Ordering::Relaxed);
                self.renew(&ca, lies_there)?;
                self.failed_ms.store(NEVER, Ordering::Relaxed);
                self.take()?;
            }
        }
        // Behind the certificate, whose chain leads to the old roots, too, for as long as that matters.
        match put_roots(&ca, &self.roots)? {
            Roots::Written => self.take(),
            Roots::Same | Roots::Foreign => Ok(()),
        }
    }

    fn renew(&self, ca: &Ca, old: Leaf) -> Result<(), PairError> {
        self.pair.check_place()?;
        let new = ca.reissue(&[old.identity.name]).map_err(|why| self.of_ca(why))?;
        new.iter().try_for_each(|signed| self.pair.replace(ca, signed).map(drop))?;
        ca.replaced(&new).map_err(|why| self.of_ca(why))?;
        tracing::info!("the hub's own certificate was renewed");
        Ok(())
    }

    /// Either way: a clock may be put back.
    fn failed_lately(&self, now_ms: i64) -> bool {
        now_ms.abs_diff(self.failed_ms.load(Ordering::Relaxed)) < RETRY_MS.unsigned_abs()
    }

    fn take(&self) -> Result<(), PairError> {
        let taken = self.keys.reload(&self.pair.certificate, &self.pair.key, &self.roots);
        taken.map(drop).map_err(|why| PairError::Keys { path: self.pair.certificate.clone(), why })
    }

    fn of_ca(&self, why: muster_certs::CaError) -> PairError {
        PairError::Ca { path: self.pair.certificate.clone(), why }
    }
}

fn is_due(leaf: &Leaf, ca: &Ca, now_ms: i64) -> bool {
    leaf.issuer.as_deref() != Some(ca.issuer_key()) || now_ms >= Life::of(leaf.not_before_ms, leaf.not_after_ms).renew_ms(0.5)
}
