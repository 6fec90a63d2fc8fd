//! Quiet: which relays an agent dials, and in which order: what its configuration says, else what the hub says of its site.

use muster_certs::{Name, Role};
use muster_mesh::{door::Dial, papers::Papers};

/// A relay, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayAddress {
    /// `host:port`
    pub address: String,
    /// Who must answer there.
    pub name: Name,
}

/// Who decides which relays are dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relays {
    /// The configuration, for as long as the program runs.
    Configured(Vec<RelayAddress>),
    /// The hub: `joined` is what it said when this computer got its certificate; its signed list, which may come later and change, goes before.
    OfSite { site: String, joined: Vec<Dial> },
}

impl Relays {
    /// In the order in which they are to be tried.
    pub fn now(&self, papers: &Papers) -> Vec<RelayAddress> {
        match self {
            Relays::Configured(relays) => relays.clone(),
            Relays::OfSite { site, joined } => papers.relay_list().dials(site, joined).iter().filter_map(address).collect(),
        }
    }
}

fn address(dial: &Dial) -> Option<RelayAddress> {
    let name: Name = dial.name.parse().ok()?;
    (name.role() == Role::Relay).then(|| RelayAddress { address: dial.address.clone(), name })
}
