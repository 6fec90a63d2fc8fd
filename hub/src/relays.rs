//! Async: where agents deliver: an admin says where relays are and whose agents may be guests, and the hub signs it for all
//! ([`RelayList`]). The command line and the API ask here.

use muster_certs::Name;
use muster_mesh::{door::Dial, limits, relay_list::RelayList};

use crate::{
    admission::{AdmissionError, label, wrong},
    store::{DialRow, Store, StoreError, Writing},
};

const AGENTS_PORT: u16 = 4433;
const DOOR_PORT: u16 = 4434;
/// Guests of one site.
pub const GUESTS_MAX: usize = 256;

/// Where somebody says that a relay is.
#[derive(Debug, Clone)]
pub struct Place {
    /// Host, and port if it isn't 4433.
    pub address: String,
    /// Host and port of its door, if it isn't the same host's port 4434.
    pub door: Option<String>,
}

/// Says where a relay is. It needn't have been enrolled: its certificate may be a file.
pub async fn set(store: &Store, name: &Name, place: Place) -> Result<DialRow, AdmissionError> {
    keep(store, row(name, place, true)?).await
}

/// Notes where a relay will be that is to join. Agents are told of it once it has.
pub async fn expect(store: &Store, name: &Name, place: Place) -> Result<DialRow, AdmissionError> {
    keep(store, row(name, place, false)?).await
}

/// Agents aren't led to a relay any more. Those who are there stay until the connection ends.
pub async fn remove(store: &Store, name: &Name) -> Result<(), AdmissionError> {
    match store.remove_dial(&name.to_string()).await? {
        true => Ok(()),
        false => Err(AdmissionError::Unknown(name.to_string())),
    }
}

/// These sites' agents may deliver at this one's relays, besides its own, and nobody else's. Sorted, each once.
pub async fn set_guests(store: &Store, site: &str, mut guests: Vec<String>) -> Result<Vec<String>, AdmissionError> {
    label(site, "site")?;
    guests.iter().try_for_each(|guest| label(guest, "guests"))?;
    guests.retain(|guest| guest != site);
    guests.sort();
    guests.dedup();
    if guests.len() > GUESTS_MAX {
        return Err(wrong("guests", format!("{} are more than {GUESTS_MAX}", guests.len()), "Name fewer"));
    }
    let mut writing = store.write().await?;
    writing.keep_guests(site, &guests).await?;
    fits(&mut writing).await?;
    writing.commit().await?;
    Ok(guests)
}

/// The doors of a site's relays, which new computers ask.
pub async fn doors(store: &Store, site: &str) -> Result<Vec<Dial>, StoreError> {
    let dials = store.dials(site).await?;
    Ok(dials.into_iter().map(|DialRow { name, address, door, .. }| Dial { address, door, name }).collect())
}

fn row(name: &Name, Place { address, door }: Place, told: bool) -> Result<DialRow, AdmissionError> {
    let Name::Relay { site, .. } = name else {
        return Err(wrong("relay", format!("{name} is no relay"), "Write it as site/oslo/relay/oslo-1"));
    };
    let address = with_port(&address, "address", AGENTS_PORT)?;
    let door = match door {
        Some(door) => with_port(&door, "door", DOOR_PORT)?,
        None => with_port(address.rsplit_once(':').map_or(&address, |(host, _)| host), "address", DOOR_PORT)?,
    };
    Ok(DialRow { name: name.to_string(), site: site.clone(), address, door, told })
}

async fn keep(store: &Store, row: DialRow) -> Result<DialRow, AdmissionError> {
    let mut writing = store.write().await?;
    writing.keep_dial(&row).await?;
    fits(&mut writing).await?;
    writing.commit().await?;
    Ok(row)
}

/// Whether what stands in the database now can be signed as one list.
async fn fits(writing: &mut Writing<'_>) -> Result<(), AdmissionError> {
    let list = RelayList { made_ms: i64::MAX, sites: writing.relay_sites(true).await? };
    match list.bytes() {
        Ok(bytes) if bytes.len() <= limits::RELAYS_BYTES_MAX => Ok(()),
        Ok(_) | Err(_) => {
            Err(wrong("relay", "the list that agents are given has no room for more", "Remove relays that are gone, or guests"))
        }
    }
}

/// Host and port, the usual one if none is given.
fn with_port(text: &str, field: &'static str, port: u16) -> Result<String, AdmissionError> {
    let bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    match text.rsplit_once(':') {
        _ if bare_v6 => Ok(format!("[{text}]:{port}")),
        Some((host, given)) if !host.is_empty() && given.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        None if !text.is_empty() && !text.contains(['/', ' ']) => Ok(format!("{text}:{port}")),
        Some((host, _)) if text.starts_with('[') && text.ends_with(']') && !host.is_empty() => Ok(format!("{text}:{port}")),
        _ => Err(wrong(field, format!("{text:?} is no host, and no host and port"), "Write it as relay.oslo.example.org:4433")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_gets_the_usual_port_and_rubbish_is_refused() {
        for (text, want) in [
            ("relay.oslo.example.org", "relay.oslo.example.org:4433"),
            ("relay.oslo.example.org:5", "relay.oslo.example.org:5"),
            ("10.0.0.1", "10.0.0.1:4433"),
            ("2001:db8::1", "[2001:db8::1]:4433"),
            ("[2001:db8::1]", "[2001:db8::1]:4433"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
        ] {
            assert_eq!(with_port(text, "address", AGENTS_PORT).unwrap(), want);
        }
        for bad in ["", ":", ":5", "host:", "host:0", "host:99999", "a b", "https://host"] {
            assert!(with_port(bad, "address", AGENTS_PORT).is_err(), "{bad}");
        }
    }
}
