//! Blocking: a hub that has the issuing key looks after its own certificate, too, in the files where it lies: it is renewed at half of its life, and
//! when another CA issues.

use std::{path::PathBuf, sync::Arc};

use muster_certs::{
    Ca, Keys, Leaf,
    pair::{Pair, PairError, Roots, put_roots},
};
use muster_mesh::renewal::Life;

use crate::signer::Signer;

/// The hub's certificate, where it lies and where it is in use.
pub struct OwnLeaf {
    pub signer: Arc<Signer>,
    keys: Arc<Keys>,
    pair: Pair,
    roots: PathBuf,
}

impl OwnLeaf {
    pub fn new(signer: Arc<Signer>, keys: Arc<Keys>, pair: Pair, roots: PathBuf) -> OwnLeaf {
        OwnLeaf { signer, keys, pair, roots }
    }

    /// Renews what is due, and takes it into use. On an error what was in use stays.
    pub fn look(&self, now_ms: i64) -> Result<(), PairError> {
        let ca = self.signer.ca();
        if is_due(&self.keys.leaf(), &ca, now_ms) {
            let lies_there = self.pair.open(&ca)?;
            // Somebody may have put another there by hand.
            if is_due(&lies_there, &ca, now_ms) {
                let new = ca.reissue(&[lies_there.identity.name]).map_err(|why| self.of_ca(why))?;
                new.iter().try_for_each(|signed| self.pair.replace(&ca, signed).map(drop))?;
                ca.replaced(&new).map_err(|why| self.of_ca(why))?;
                tracing::info!("the hub's own certificate was renewed");
            }
            self.take()?;
        }
        // Behind the certificate, whose chain leads to the old roots, too, for as long as that matters.
        match put_roots(&ca, &self.roots)? {
            Roots::Written => self.take(),
            Roots::Same | Roots::Foreign => Ok(()),
        }
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
