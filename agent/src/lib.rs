//! Quiet: the agent: it observes one person's desktop, openly, and keeps what it saw until the hub has it.

pub mod answers;
pub mod batcher;
pub mod bus;
pub mod cli;
pub mod collect;
pub mod config;
pub mod daylog;
pub mod desktop;
pub mod diary;
pub mod enrolment;
pub mod journal;
pub mod keeper;
pub mod network;
pub mod news;
pub mod power;
pub mod redact;
pub mod relays;
pub mod run;
pub mod shots;
pub mod spool;
pub mod standing;
pub mod tally;
pub mod today;
pub mod uplink;
pub mod who;
pub mod x11;
