//! Quiet: the shared crate of agent, relay and hub: records and batches, the queue, the hop's rules, and what all three programs need.

pub mod asking;
pub mod batch;
pub mod callers;
pub mod chance;
pub mod clock;
pub mod complaint;
pub mod config;
pub mod control;
pub mod door;
pub mod ids;
pub mod join;
pub mod limits;
pub mod link;
pub mod log;
pub mod member;
pub mod message;
pub mod notice;
pub mod policy;
pub mod queue;
pub mod quic;
pub mod ranges;
pub mod record;
pub mod renewal;
pub mod seal;
pub mod state_dir;
pub mod status;
