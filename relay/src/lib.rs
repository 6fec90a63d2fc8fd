//! Quiet: a branch office's relay: it takes its agents' batches, keeps them while the line is down and syncs them to the hub.

pub mod accept;
pub mod agents;
pub mod buffer;
pub mod cli;
pub mod config;
pub mod contents;
pub mod door;
pub mod enrolment;
pub mod run;
pub mod sync;
pub mod who;
pub mod writer;
