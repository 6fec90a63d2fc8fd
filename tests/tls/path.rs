//! Async: a UDP path between agent and relay that loses packets, or takes them one way only.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_certs::DIALLED_NAME;
use muster_mesh::{
    ids::Lane,
    message::AGENT_ALPN,
    quic::{Client, Server, Tuning},
};
use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{mesh::*, strangers::*};

/// A path for one dialler. What `passes` (by its number, counted from 0) says no to is lost.
struct Path {
    address: SocketAddr,
    retries: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

impl Path {
    async fn to(relay: SocketAddr, passes: fn(Way, usize) -> bool) -> Path {
        let (near, far) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        far.connect(relay).await.unwrap();
        let (address, retries, lost) = (near.local_addr().unwrap(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (seen, dropped) = (retries.clone(), lost.clone());
        let task = tokio::spawn(async move {
            let (mut there, mut back, mut counts, mut dialler) = (vec![0; 65_536], vec![0; 65_536], [0, 0], None);
            loop {
                let (way, packet) = tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut there) => {
                        dialler = Some(from);
                        (Way::There, &there[..length])
                    }
                    Ok(length) = far.recv(&mut back) => (Way::Back, &back[..length]),
                };
                // A long header of type 3 in QUIC version 1.
                if way == Way::Back && packet[0] & 0xf0 == 0xf0 {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                let count = &mut counts[usize::from(way == Way::Back)];
                *count += 1;
                if !passes(way, *count - 1) {
                    dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let _ = match (way, dialler) {
                    (Way::There, _) => far.send(packet).await,
                    (Way::Back, Some(dialler)) => near.send_to(packet, dialler).await,
                    (Way::Back, None) => Ok(0),
                };
            }
        });
        Path { address, retries, lost, task }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn under_a_flood_of_handshakes_a_dialler_first_proves_its_address() {
    let mesh = Mesh::with(Tuning { retry_above: 4, ..Tuning::default() }).await;
    let agent = || client(Some(&mesh.ca.good(&mesh.new_agent())), AGENT_ALPN);
    let calm = Path::to(mesh.relay.agents_address(), |_, _| true).await;
    assert_eq!((knock_at_relay(calm.address, agent()).await, calm.retries.load(Ordering::Relaxed)), (Met::Welcomed, 0));

    // Who floods hears no answer, so none of its handshakes ever ends by itself.
    let mut flood = Vec::new();
    for _ in 0..8 {
        let (path, endpoint) = (Path::to(mesh.relay.agents_address(), |way, _| way == Way::There).await, endpoint());
        let connecting = endpoint.connect_with(quic_client(agent()), path.address, DIALLED_NAME).unwrap();
        flood.push((path, tokio::spawn(connecting.into_future())));
    }
    let first_retry = async {
        while flood.iter().all(|(path, _)| path.retries.load(Ordering::Relaxed) == 0) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, first_retry).await.expect("8 handshakes are under way, and none of them was asked for its address");
    let busy = Path::to(mesh.relay.agents_address(), |_, _| true).await;
    assert_eq!(knock_at_relay(busy.address, agent()).await, Met::Welcomed);
    assert_eq!(busy.retries.load(Ordering::Relaxed), 1);
    for (_, connecting) in flood {
        connecting.abort();
    }
}

/// Holes in a stream that are filled later: envelopes come out whole and in order all the same.
#[tokio::test]
async fn envelopes_arrive_whole_and_in_order_through_a_path_that_loses_packets() {
    let ca = Authority::new();
    let agent = muster_certs::Name::Agent { site: "oslo".to_owned(), device: [1; 16] };
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &ca.keys(&relay_name())).unwrap();
    // One of seven is lost, on either way.
    let path = Path::to(server.address(), |_, count| count % 7 != 6).await;
    let dialling = Client::new(&ca.keys(&agent));
    let (address, name) = (path.address.to_string(), relay_name());
    let (dialled, accepted) =
        tokio::join!(dialling.connect(&address, &name, SOON), async { server.accept().await.unwrap().handshake().await });
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let sent: Vec<bytes::Bytes> = (1..=300).map(|seq| crate::abuse::padded(seq, 4_000)).collect();
    let run = sent.clone();
    let sending = tokio::spawn(async move {
        let mut lane = dialled.open_lane(Lane::Telemetry).await.unwrap();
        lane.send(run).await.unwrap();
        lane.finish();
        dialled.closed().await
    });
    let mut lane = timeout(SOON, accepted.accept_lane()).await.unwrap().unwrap();
    for one in &sent {
        let got = timeout(SOON, lane.receive()).await.unwrap().unwrap().unwrap();
        assert_eq!(got.bytes(), one);
    }
    assert!(path.lost.load(Ordering::Relaxed) > 20, "the path lost next to nothing");
    sending.abort();
}
