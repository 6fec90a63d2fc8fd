//! Quiet: the hop's rules, one state machine per side, without a clock, a socket or a disk.

pub mod agent_side;
pub mod hub_ranges;
pub mod relay_side;
pub mod relay_sync;
