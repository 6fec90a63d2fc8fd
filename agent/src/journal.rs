//! Quiet: who is told what becomes of each batch: the day log of the agent, the journal of the swarm.

use std::sync::{Arc, Mutex};

use muster_mesh::{
    ids::SpoolId,
    message::{Reason, Verdict},
    ranges::Ranges,
};

use crate::spool::{Incident, Sealed};

/// Told by the keeper's thread, in order. What it does is paid by every batch.
pub trait Journal: Send {
    /// These are numbered and sealed, and committed right after this returns: what is written and synced here is never behind the queue.
    fn made(&mut self, _sealed: &[Sealed]) {}
    /// These lie on the disk now.
    fn kept(&mut self, _sealed: &[Sealed]) {}
    /// These newly lie on the disk of the relay with this place in the configuration.
    fn relay(&mut self, _relay: usize, _numbers: &[(SpoolId, u64)]) {}
    /// The hub newly says that it has these (after a start: says again); `shown` are the verdicts that are neither stored nor repeat.
    fn hub(&mut self, _spool: SpoolId, _stored: &Ranges, _shown: &[(u64, Verdict, Reason)]) {}
    /// The relay doesn't have so many numbers any more; they are sent again.
    fn returned(&mut self, _numbers: u64) {}
    fn incident(&mut self, _incident: &Incident) {}
}

/// A journal that others read, too.
pub type SharedJournal = Arc<Mutex<dyn Journal>>;

/// Nobody is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl Journal for NoJournal {}
