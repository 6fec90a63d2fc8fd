//! Async: where agents deliver: an admin says where relays are and whose agents may be guests, and the hub signs it for all
//! ([`RelayList`]). The command line and the API ask here.

use std::net::Ipv6Addr;

use muster_certs::Name;
use muster_mesh::{
    door::Dial,
    limits,
    relay_list::{RelayAt, RelayList},
};

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
    let row = row(name, place)?;
    let mut writing = store.write().await?;
    if writing.member(&row.name).await?.is_some_and(|member| member.denied_ms.is_some()) {
        return Err(wrong("relay", format!("{name} was denied"), "Let it join again first: muster-hub token relay"));
    }
    writing.keep_dial(&row).await?;
    fits(&mut writing).await?;
    writing.commit().await?;
    Ok(row)
}

/// Where a relay will be that is to join: agents are told of it once it has. Refused where there would be no room for it.
pub async fn expect(store: &Store, name: &Name, place: Place) -> Result<RelayAt, AdmissionError> {
    let row = row(name, place)?;
    let mut writing = store.write().await?;
    writing.keep_dial(&row).await?;
    // Only tried: nothing of it is kept.
    fits(&mut writing).await?;
    Ok(RelayAt { address: row.address, door: row.door })
}

/// The list leads agents to a relay no more. Who is there stays, and who was told of it with its certificate tries it last.
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

fn row(name: &Name, Place { address, door }: Place) -> Result<DialRow, AdmissionError> {
    let Name::Relay { site, .. } = name else {
        return Err(wrong("relay", format!("{name} is no relay"), "Write it as site/oslo/relay/oslo-1"));
    };
    let address = with_port(&address, "address", AGENTS_PORT)?;
    let door = match door {
        Some(door) => with_port(&door, "door", DOOR_PORT)?,
        None => with_port(address.rsplit_once(':').map_or(&address, |(host, _)| host), "address", DOOR_PORT)?,
    };
    Ok(DialRow { name: name.to_string(), site: site.clone(), address, door })
}

/// Whether what stands in the database now can be signed as one list.
async fn fits(writing: &mut Writing<'_>) -> Result<(), AdmissionError> {
    let list = RelayList { made_ms: i64::MAX, sites: writing.relay_sites().await? };
    if let Some((site, _)) = list.sites.iter().find(|(_, site)| site.relays.len() > limits::RELAYS_OF_A_SITE_MAX) {
        let what = format!("{site} has {} relays, and can't have more", limits::RELAYS_OF_A_SITE_MAX);
        return Err(wrong("site", what, "Remove one that is gone: muster-hub relay remove"));
    }
    match list.bytes() {
        Ok(bytes) if bytes.len() <= limits::RELAYS_BYTES_MAX => Ok(()),
        Ok(_) | Err(_) => {
            Err(wrong("site", "the list that agents are given has no room for more", "Remove relays that are gone, or guests"))
        }
    }
}

/// Host and port, the usual one if none is given.
fn with_port(text: &str, field: &'static str, port: u16) -> Result<String, AdmissionError> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{text}]:{port}"));
    }
    match text.rsplit_once(':') {
        Some((host, given)) if is_host(host) && given.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        _ if is_host(text) => Ok(format!("{text}:{port}")),
        _ => Err(wrong(field, format!("{text:?} is no host, and no host and port"), "Write it as relay.oslo.example.org:4433")),
    }
}

/// A name as DNS has it (RFC 1123, at most 253 characters), or an address; IPv6 in brackets.
fn is_host(text: &str) -> bool {
    let in_brackets = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let is_name = |text: &str| text.len() <= 253 && text.split('.').all(is_label);
    in_brackets.map_or_else(|| is_name(text), |address| address.parse::<Ipv6Addr>().is_ok())
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
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
        for bad in ["", ":", ":5", "host:", "host:0", "host:99999", "a b", "https://host", "https://host:443", "a b:5", "a..b", "[host]:5"]
        {
            assert!(with_port(bad, "address", AGENTS_PORT).is_err(), "{bad}");
        }
    }
}
