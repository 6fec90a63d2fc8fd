//! Blocking: ports on loopback that nobody has.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use muster_mesh::{chance, complaint::Complaint};

/// Below those that the system gives to outgoing connections, so that none of them takes a port between its choice and its use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
const TRIES: usize = 1_000;

/// The ports that one mesh has taken.
#[derive(Debug, Default)]
pub struct Ports {
    taken: BTreeSet<u16>,
}

impl Ports {
    /// A port that is free for TCP and UDP, and wasn't given before.
    pub fn free(&mut self) -> Result<SocketAddr, Complaint> {
        let random = || FIRST + (chance::random_u64() % u64::from(COUNT)) as u16;
        (0..TRIES).find_map(|_| self.take(random())).ok_or_else(|| {
            Complaint::new(format!("no free port was found on 127.0.0.1 from {FIRST} on"), "Stop programs that listen there")
        })
    }

    /// This port if it is free, else another: for those that people type.
    pub fn prefer(&mut self, port: u16) -> Result<SocketAddr, Complaint> {
        self.take(port).map_or_else(|| self.free(), Ok)
    }

    fn take(&mut self, port: u16) -> Option<SocketAddr> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_free = !self.taken.contains(&port) && TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        is_free.then(|| {
            self.taken.insert(port);
            address
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_isnt_given_and_none_is_given_twice() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let held = holder.local_addr().unwrap().port();
        let mut ports = Ports::default();
        assert_ne!(ports.prefer(held).unwrap().port(), held);
        let first = ports.free().unwrap();
        assert_ne!(ports.prefer(first.port()).unwrap(), first);
    }
}
