//! Quiet: the whole mesh on one computer, from the built programs: for trying it out (`muster-quickstart`), and for end-to-end tests.
//! This file only lists the modules.
//!
//! - [`mesh`]: a folder with a CA, a hub, relays and agents; starts, kills, stops and asks them.
//! - [`engines`]: where its hub keeps rows and pictures.
//! - [`process`], [`ports`], [`http`], [`hub_api`]: what that needs.
//! - [`desktop`]: a desktop in memory and the hands that work on it; [`buses`]: its message buses, and who plays on them.
//! - [`summary`], [`ledger`]: the comparison of the stages, and what was compared before.
//! - [`quickstart`], [`check`], [`terminal`]: the program.

pub mod buses;
pub mod check;
pub mod cli;
pub mod desktop;
pub mod engines;
pub mod http;
pub mod hub_api;
pub mod ledger;
pub mod mesh;
pub mod ports;
pub mod process;
pub mod quickstart;
pub mod summary;
pub mod terminal;
