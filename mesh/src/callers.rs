//! Quiet: how often one address may ask at a door in a minute. Time is an argument.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use crate::limits;

const MINUTE_MS: u64 = 60_000;

/// Who asked in this minute.
#[derive(Debug, Default)]
pub struct Callers {
    minute: u64,
    asked: HashMap<IpAddr, u32>,
}

impl Callers {
    /// Whether this one may ask, which counts. Of IPv6 a whole /64 is one caller: it is one customer's.
    pub fn admit(&mut self, address: IpAddr, boot_ms: u64) -> bool {
        let minute = boot_ms / MINUTE_MS;
        if minute != self.minute {
            self.minute = minute;
            self.asked.clear();
        }
        let caller = caller(address);
        if self.asked.len() >= limits::DOOR_ADDRESSES_MAX && !self.asked.contains_key(&caller) {
            return false;
        }
        let asked = self.asked.entry(caller).or_default();
        if *asked >= limits::DOOR_ASKS_PER_MINUTE {
            return false;
        }
        *asked += 1;
        true
    }
}

fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_asks_so_often_a_minute_and_others_besides_it() {
        let mut callers = Callers::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..limits::DOOR_ASKS_PER_MINUTE {
            assert!(callers.admit(one, 59_999));
        }
        assert!(!callers.admit(one, 59_999) && callers.admit(other, 59_999));
        assert!(!callers.admit("::ffff:10.0.0.1".parse().unwrap(), 59_999), "the same address in other clothes");
        assert!(callers.admit(one, 60_000));
    }

    #[test]
    fn a_whole_ipv6_network_is_one_caller() {
        let mut callers = Callers::default();
        let admitted = (0..100).filter(|host| callers.admit(format!("2001:db8:0:1::{host:x}").parse().unwrap(), 0)).count();
        assert_eq!(admitted, limits::DOOR_ASKS_PER_MINUTE as usize);
        assert!(callers.admit("2001:db8:0:2::1".parse().unwrap(), 0));
    }

    #[test]
    fn what_is_remembered_of_a_flood_is_bounded() {
        let mut callers = Callers::default();
        let from = |n: u32| IpAddr::from(n.to_be_bytes());
        let admitted = (0..3 * limits::DOOR_ADDRESSES_MAX as u32).filter(|n| callers.admit(from(*n), 0)).count();
        assert_eq!((admitted, callers.asked.len()), (limits::DOOR_ADDRESSES_MAX, limits::DOOR_ADDRESSES_MAX));
        assert!(callers.admit(from(0), 0), "who was there before goes on");
    }
}
