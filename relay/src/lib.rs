//! Quiet: a branch office's relay: it takes its agents' batches, keeps them while the line is down and syncs them to the hub.

pub mod buffer;
