//! Async: a network in memory that carries datagrams late, loses some, and can be cut at each computer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use muster_mesh::quic;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::chance::Chance;

/// What an Ethernet frame carries of a datagram.
const DATAGRAM_BYTES: usize = 1_472;
const FIRST_PORT: u16 = 20_000;

/// How datagrams fare.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub lost_per_mille: u64,
    pub delay_ms: (u64, u64),
}

#[derive(Clone, Debug)]
pub struct Network(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    chance: Chance,
    weather: Weather,
    mailboxes: BTreeMap<SocketAddr, Mailbox>,
    cut: BTreeSet<IpAddr>,
    next_port: u16,
    sent: u64,
    lost: u64,
}

#[derive(Debug, Default)]
struct Mailbox {
    /// By the time of arrival; the number keeps those of one moment apart.
    arriving: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

impl Network {
    pub fn new(weather: Weather, chance: Chance) -> Network {
        let (mailboxes, cut) = (BTreeMap::new(), BTreeSet::new());
        Network(Arc::new(Mutex::new(Lines { chance, weather, mailboxes, cut, next_port: FIRST_PORT, sent: 0, lost: 0 })))
    }

    /// A computer's way into it.
    pub fn card(&self, ip: Ipv4Addr) -> Arc<Card> {
        Arc::new(Card { network: self.clone(), ip: ip.into() })
    }

    pub fn cut(&self, ip: IpAddr, is_cut: bool) {
        let mut lines = self.lines();
        if is_cut {
            lines.cut.insert(ip)
        } else {
            lines.cut.remove(&ip)
        };
    }

    pub fn is_cut(&self, ip: IpAddr) -> bool {
        self.lines().cut.contains(&ip)
    }

    /// Datagrams that were sent, and how many of them were lost.
    pub fn count(&self) -> (u64, u64) {
        let lines = self.lines();
        (lines.sent, lines.lost)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap()
    }
}

/// A computer's network card.
#[derive(Debug)]
pub struct Card {
    pub network: Network,
    pub ip: IpAddr,
}

impl quic::Network for Card {
    fn socket(&self, listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut lines = self.network.lines();
        let port = if listen.port() == 0 { lines.free_port(self.ip) } else { listen.port() };
        let address = SocketAddr::new(self.ip, port);
        if lines.mailboxes.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        lines.mailboxes.insert(address, Mailbox::default());
        Ok(Arc::new(Socket { network: self.network.clone(), address, alarm: Mutex::new(Box::pin(sleep_until(Instant::now()))) }))
    }
}

impl Lines {
    fn free_port(&mut self, ip: IpAddr) -> u16 {
        loop {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.mailboxes.contains_key(&SocketAddr::new(ip, self.next_port)) {
                return self.next_port;
            }
        }
    }

    /// Whoever waits for it, if it arrives.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Waker> {
        self.sent += 1;
        let (number, is_cut) = (self.sent, self.cut.contains(&from.ip()) || self.cut.contains(&to.ip()));
        let is_lost = self.chance.below(1_000) < self.weather.lost_per_mille;
        let (least, most) = self.weather.delay_ms;
        let at = Instant::now() + Duration::from_millis(least + self.chance.below(most - least + 1));
        let mailbox = self.mailboxes.get_mut(&to).filter(|_| !is_cut && !is_lost && bytes.len() <= DATAGRAM_BYTES);
        let Some(mailbox) = mailbox else {
            self.lost += 1;
            return None;
        };
        mailbox.arriving.insert((at, number), (from, bytes.to_vec()));
        mailbox.reader.take()
    }
}

#[derive(Debug)]
struct Socket {
    network: Network,
    address: SocketAddr,
    /// Goes off when the next datagram arrives.
    alarm: Mutex<Pin<Box<Sleep>>>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let reader = self.network.lines().send(self.address, transmit.destination, transmit.contents);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    fn poll_recv(&self, context: &mut Context, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut lines = self.network.lines();
        let Some(mailbox) = lines.mailboxes.get_mut(&self.address) else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let mut read = 0;
        while read < buffers.len().min(meta.len()) {
            let Some(first) = mailbox.arriving.first_entry() else { break };
            if first.key().0 > Instant::now() {
                break;
            }
            let (from, bytes) = first.remove();
            buffers[read][..bytes.len()].copy_from_slice(&bytes);
            meta[read] = RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ..RecvMeta::default() };
            read += 1;
        }
        if read > 0 {
            return Poll::Ready(Ok(read));
        }
        mailbox.reader = Some(context.waker().clone());
        if let Some((at, _)) = mailbox.arriving.keys().next() {
            let mut alarm = self.alarm.lock().unwrap();
            alarm.as_mut().reset(*at);
            if alarm.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.network.lines().mailboxes.remove(&self.address);
    }
}

/// There is always room.
#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
