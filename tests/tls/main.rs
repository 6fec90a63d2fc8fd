//! Async: the TLS rows of bad input, against a relay and a hub that run as they do in a branch and in the office, over QUIC and over HTTPS.
//!
//! Each test also lets the good pair through, so that a refusal says something. A dialler's own handshake is done *before* the listener has
//! looked at its certificate: what counts is the alert that comes back, and that no Welcome and no answer does.
//!
//! | file | what |
//! |---|---|
//! | `mesh` | a CA, a relay and a hub on loopback |
//! | `strangers` | clients and servers without manners, by quinn and rustls alone |
//! | `clients` | who is refused by the relay and by the hub |
//! | `servers` | whom an agent and a relay refuse |
//! | `sessions` | TLS 1.2, ALPN, resumption, early data |
//! | `abuse` | what a client with a good certificate may try |
//! | `running` | what a relay and an agent do while they run: a door or none, and certificates that change in their files |
//! | `path` | a network that loses packets, and one that hides its diallers |
#![allow(clippy::unwrap_used)]

mod abuse;
mod clients;
mod mesh;
mod path;
mod running;
mod servers;
mod sessions;
mod strangers;
