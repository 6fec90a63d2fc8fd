//! Quiet: who someone is, and the certificates that prove it. This file only lists the modules.
//!
//! - [`identity`]: the name in a certificate, `spiffe://<domain>/…`, and its grammar.
//! - [`leaf`]: the one leaf check, run inside every handshake and again per connection.
//! - [`chain`]: does a root of ours stand behind a certificate at a given time?
//! - [`material`], [`keys`]: a node's own certificate, key and roots, swappable while running.
//! - `time`: what time it is, as far as a node can know.
//! - [`web`]: the organisation's own certificate, at a port for people.
//! - [`tls`]: rustls configurations, TLS 1.3 only, nothing resumed, nothing early.
//! - [`issuer`], [`ca`]: making certificates, in memory and in a folder.
//! - [`request`]: a new key and the request for a certificate of it.
//! - [`control`]: whose signature counts under what comes down from the hub.
//! - [`denied`]: whom nobody takes any more.
//! - [`device_key`]: the key that a device keeps for life.
//! - [`stranger`]: TLS for someone who has no certificate yet.
//! - [`join`]: the text that lets somebody in: all that is needed to know the mesh beforehand.
//! - [`issued`], [`ledger`]: which device was issued to whom; which certificates were issued, who was revoked.
//! - [`members`]: who holds which certificate and which roots, as the hub reports it.
//! - [`rotation`]: the steps from an old issuing CA or root to a new one.
//! - [`doctor`]: what breaks next and when.
//! - [`description`]: a certificate in plain words.
//! - [`files`]: reading with clear errors, writing whole or not at all.
//!
//! No socket, no quinn and no tokio here: what leaves this crate is a `rustls::ServerConfig` or a
//! `rustls::ClientConfig`.
#![warn(missing_docs)]

pub mod ca;
pub mod chain;
pub mod control;
pub mod denied;
pub mod description;
pub mod device_key;
pub mod doctor;
pub mod files;
pub mod identity;
pub mod issued;
pub mod issuer;
pub mod join;
pub mod keys;
pub mod leaf;
pub mod ledger;
mod lines;
pub mod material;
pub mod members;
pub mod pair;
pub mod request;
pub mod rotation;
pub mod stranger;
mod time;
pub mod tls;
pub mod web;

pub use ca::{Ca, CaError, IssuedAgent, Moved, Stamp};
pub use chain::ChainError;
pub use control::{ControlError, Controller, When, check_control, issue_control};
pub use denied::Denied;
pub use device_key::DeviceKey;
pub use identity::{Identity, IdentityError, Name, Role};
pub use issued::Issued;
pub use issuer::{AltName, Chain, Issuer, IssuerError, LeafParams, RevokedSerial, Root, Signed, Usage};
pub use keys::{Keys, Reloaded, SystemTime, Time};
pub use leaf::{Expect, Leaf, LeafError, check_leaf, read_leaf};
pub use material::KeysError;
pub use members::{EarlierLeaf, Holder, HubCertificate, HubKey, Member, Report};
pub use request::{KeyRequest, Requested};
pub use stranger::{Fingerprint, Trusted, check_door, door_config, stranger_config};
pub use tls::{DIALLED_NAME, TlsError, check_dialled, check_peer, client_config, handshake_words, leaf_error, server_config};
pub use web::{WebKeys, WebKeysError, web_config};
