//! Quiet: the hub: takes the relays' batches, keeps them as rows, deletes them in time, and answers people.

pub mod admission;
pub mod api;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod day;
pub mod hub;
pub mod images;
pub mod ingest;
pub mod issued;
pub mod laggards;
pub mod lockout;
pub mod objects;
pub mod password;
pub mod policy;
pub mod presence;
pub mod restore;
pub mod retention;
pub mod rows;
pub mod running;
pub mod serve;
pub mod signer;
pub mod store;
pub mod strays;
pub mod token;
