//! Blocking: this computer's own addresses; the only file that names its driver.

use std::net::IpAddr;

use crate::collect::{
    addresses::ADDRESSES_MAX,
    sense::{AddressBook, SenseError},
};

/// Somebody carries a laptop from network to network, not faster.
const LOOK_EVERY_MS: u64 = 30_000;

/// The addresses of the network interfaces.
#[derive(Debug, Default)]
pub struct Interfaces {
    /// Boot clock of the last look, and what was seen.
    seen: Option<(u64, Vec<String>)>,
}

impl AddressBook for Interfaces {
    fn addresses(&mut self, boot_ms: u64) -> Result<Vec<String>, SenseError> {
        if let Some((at_ms, seen)) = &self.seen
            && boot_ms.saturating_sub(*at_ms) < LOOK_EVERY_MS
        {
            return Ok(seen.clone());
        }
        self.seen = None;
        let interfaces = if_addrs::get_if_addrs()
            .map_err(|error| SenseError::Lost(format!("the network's interfaces can't be listed: {}", error.kind())))?;
        let seen = worth_telling(interfaces.iter().map(|interface| interface.ip())).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        self.seen = Some((boot_ms, seen.clone()));
        Ok(seen)
    }
}

/// Addresses at which others could reach this computer: they are others in another network. They stay in memory.
pub fn reachable() -> Vec<IpAddr> {
    if_addrs::get_if_addrs().map(|interfaces| worth_telling(interfaces.iter().map(|interface| interface.ip()))).unwrap_or_default()
}

/// Sorted, each once. Loopback and link-local addresses say nothing of where a computer is.
fn worth_telling(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut kept: Vec<IpAddr> = addresses.filter(|address| !is_local(*address)).collect();
    kept.sort_unstable();
    kept.dedup();
    kept.truncate(ADDRESSES_MAX);
    kept
}

fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_could_reach_are_told_sorted_and_once() {
        let all = ["192.168.1.7", "127.0.0.1", "::1", "fe80::1", "169.254.3.4", "2001:db8::5", "10.0.0.2", "192.168.1.7", "0.0.0.0"];
        let told = worth_telling(all.iter().map(|each| each.parse().unwrap()));
        assert_eq!(told, ["10.0.0.2", "192.168.1.7", "2001:db8::5"].map(|each| each.parse::<IpAddr>().unwrap()));
        let many = (0..200).map(|n| IpAddr::from([10, 0, 0, n]));
        assert_eq!(worth_telling(many).len(), ADDRESSES_MAX);
    }

    #[test]
    fn interfaces_are_looked_at_every_half_minute() {
        let mut interfaces = Interfaces::default();
        let first = interfaces.addresses(1_000).unwrap();
        assert!(first.iter().all(|address| !is_local(address.parse().unwrap())), "{first:?}");
        interfaces.seen = Some((1_000, vec!["kept".into()]));
        assert_eq!(interfaces.addresses(30_999).unwrap(), ["kept"]);
        assert_eq!(interfaces.addresses(31_000).unwrap(), first);
    }
}
