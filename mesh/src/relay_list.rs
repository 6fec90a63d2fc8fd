//! Quiet: where agents deliver, as the hub signs it for all of them: each site's relays, and whose agents may be its guests.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use muster_certs::Name;

use crate::{
    door::Dial,
    limits,
    message::{CONTROL_MEMORY, MessageError, decode, encode},
};

/// The body of a [`SignedKind::Relays`](crate::message::SignedKind::Relays).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct RelayList {
    /// The hub's clock when it was made.
    pub made_ms: i64,
    /// By the site's name.
    pub sites: BTreeMap<String, SiteRelays>,
}

/// A branch office.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct SiteRelays {
    /// By id, which is the order in which its agents try them.
    pub relays: BTreeMap<String, RelayAt>,
    /// Other sites whose agents may deliver here, sorted.
    pub guests: Vec<String>,
}

/// Where a relay is found.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RelayAt {
    /// Host and port.
    pub address: String,
    /// Its door's host and port.
    pub door: String,
}

impl RelayList {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        encode(self)
    }

    pub fn read(bytes: &[u8]) -> Result<RelayList, MessageError> {
        decode::<_, CONTROL_MEMORY>(bytes)
    }

    /// Whether a site's relays take the agents of another one.
    pub fn takes(&self, site: &str, guest: &str) -> bool {
        self.sites.get(site).is_some_and(|site| site.guests.iter().any(|known| known == guest))
    }

    /// Whom an agent of this site dials, in this order: its own relays, then those of some sites whose guest it is, then where it was told to when it got its
    /// certificate, as far as that is elsewhere: so a wrong address in the list keeps nobody out.
    pub fn dials(&self, site: &str, joined: &[Dial]) -> Vec<Dial> {
        let at = |site: &str, relays: &SiteRelays| {
            let dial = |(id, at): (&String, &RelayAt)| Dial {
                address: at.address.clone(),
                door: at.door.clone(),
                name: Name::Relay { site: site.to_owned(), id: id.clone() }.to_string(),
            };
            relays.relays.iter().map(dial).collect::<Vec<Dial>>()
        };
        let own = self.sites.get(site).map(|relays| at(site, relays)).unwrap_or_default();
        let hosts = self.sites.iter().filter(|(host, _)| *host != site && self.takes(host, site)).take(limits::HOSTS_TRIED_MAX);
        let mut dials: Vec<Dial> = own.into_iter().chain(hosts.flat_map(|(host, relays)| at(host, relays))).collect();
        for dial in joined {
            let is_known = |known: &Dial| (&known.name, &known.address) == (&dial.name, &dial.address);
            if !dials.iter().any(is_known) {
                dials.push(dial.clone());
            }
        }
        dials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(site: &str, id: &str, host: &str) -> Dial {
        Dial { address: format!("{host}:4433"), door: format!("{host}:4434"), name: format!("site/{site}/relay/{id}") }
    }

    fn list() -> RelayList {
        let at = |host: &str| RelayAt { address: format!("{host}:4433"), door: format!("{host}:4434") };
        let site = |relays: &[(&str, &str)], guests: &[&str]| SiteRelays {
            relays: relays.iter().map(|(id, host)| ((*id).to_owned(), at(host))).collect(),
            guests: guests.iter().map(|guest| (*guest).to_owned()).collect(),
        };
        let sites = [
            ("bergen", site(&[("bergen-1", "b1")], &["home", "oslo"])),
            ("home", site(&[("home-1", "h1")], &[])),
            ("oslo", site(&[("oslo-2", "o2"), ("oslo-1", "o1")], &["home"])),
        ];
        RelayList { made_ms: 5, sites: sites.into_iter().map(|(name, site)| (name.to_owned(), site)).collect() }
    }

    #[test]
    fn an_agent_dials_its_own_relays_then_its_hosts_then_where_it_joined() {
        let moved = dial("oslo", "oslo-1", "old");
        let joined = [dial("oslo", "oslo-2", "o2"), moved.clone()];
        let want = [dial("oslo", "oslo-1", "o1"), dial("oslo", "oslo-2", "o2"), dial("bergen", "bergen-1", "b1"), moved];
        assert_eq!(list().dials("oslo", &joined), want);
        assert_eq!(list().dials("bergen", &[]), [dial("bergen", "bergen-1", "b1")]);
        assert_eq!(list().dials("tromso", &joined), joined);
    }

    #[test]
    fn guests_are_taken_by_their_hosts_alone() {
        assert!(list().takes("bergen", "oslo"));
        assert!(!list().takes("oslo", "bergen") && !list().takes("home", "oslo") && !list().takes("tromso", "oslo"));
    }

    #[test]
    fn it_is_read_as_it_was_written_and_rubbish_is_refused() {
        let bytes = list().bytes().unwrap();
        assert_eq!(RelayList::read(&bytes), Ok(list()));
        for cut in 0..bytes.len() {
            assert!(RelayList::read(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(RelayList::read(&[bytes, vec![0]].concat()).is_err());
    }
}
