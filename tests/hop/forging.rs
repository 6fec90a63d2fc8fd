//! Async: a relay that speaks in the hub's name, between a real agent and nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use muster_certs::Denied;
use muster_mesh::{
    control_key::ControlKey,
    message::{AGENT_PROTOCOL, Ack, Denial, DenyList, Down, HubAck, LaneState, Limits, ReturnReason, Returned, Up, Welcome},
    quic::{ControlSender, Server},
    relay_list::RelayList,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_relay_says_in_the_hubs_name_frees_or_widens_anything() {
    let town = Town::new().await;
    let relay = Hostile::new(&town);
    let agent = town.agent_at(vec![relay.at()]);
    agent.observe(3).await;
    let mut control = relay.welcome().await;
    let spool = agent.notes.lock().unwrap().made[0].0;
    let real = &town.hub.signing;
    let ack = |stored: Vec<(u64, u64)>| {
        let body = HubAck { stored, ..HubAck::default() }.bytes().unwrap();
        Signed { device: Some(DEVICE), spool: Some(spool), ..Signed::new(SignedKind::Ack, Version { epoch: 1, n: 0 }, body) }
    };
    let policy = |n| Signed::new(SignedKind::Policy, Version { epoch: 1, n }, b"{}".to_vec());
    let (_, other) = Issuer::in_memory(DOMAIN, SystemClock::new().now().wall_ms).unwrap();
    let (others_key, others_chain) = ControlKey::issue(&other, 1, SystemClock::new().now().wall_ms).unwrap();
    let signature_of_another = Signed { key: 1, signature: Signed::read(&real.sign(&ack(vec![]))).unwrap().signature, ..ack(vec![(1, 3)]) };
    let mut others_bundle = muster_mesh::message::Bundle::read(&real.bundle.body).unwrap();
    others_bundle.controls[0].chain = others_chain.pem;
    let others_bundle = Signed::new(SignedKind::Bundle, Version { epoch: 7, n: 7 }, others_bundle.bytes().unwrap());
    let relays = Signed::new(SignedKind::Relays, Version { epoch: 1, n: 9 }, RelayList::default().bytes().unwrap());

    say(&mut control, real.sign(&real.bundle)).await;
    for forged in [
        // An ack and a policy that nobody signed, or the hub of another mesh, or the hub for something else.
        ack(vec![(1, 3)]).bytes().unwrap(),
        others_key.sign(&ack(vec![(1, 3)])).unwrap(),
        signature_of_another.bytes().unwrap(),
        policy(9).bytes().unwrap(),
        others_key.sign(&policy(9)).unwrap(),
        others_key.sign(&others_bundle).unwrap(),
        relays.bytes().unwrap(),
        others_key.sign(&relays).unwrap(),
        others_key.sign(&policy(9)).unwrap(),
    ] {
        say(&mut control, forged).await;
    }
    // An older bundle again: nothing changes, and nobody has done wrong.
    say(&mut control, real.sign(&Signed { version: Version { epoch: 0, n: 9 }, ..real.bundle.clone() })).await;
    say(&mut control, real.sign(&policy(4))).await;
    until("the hub's own policy comes", || !agent.papers.0.lock().unwrap().is_empty()).await;
    let came: Vec<Version> = agent.papers.0.lock().unwrap().iter().map(|signed| signed.version).collect();
    assert_eq!(came, [Version { epoch: 1, n: 4 }], "a policy came that the hub didn't sign");
    assert_eq!(agent.link().unproven, 9);
    assert_eq!(agent.trust.version(SignedKind::Relays), Version::default());
    assert!(agent.link().relay.is_some(), "the connection stays");
    assert!(agent.notes.lock().unwrap().hub.is_empty(), "something was freed that the hub doesn't have");
    // The hub's own ack frees.
    say(&mut control, real.sign(&ack(vec![(1, 3)]))).await;
    agent.until_all_in(Place::Hub).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_gives_everything_back_makes_an_agent_let_go_of_nothing() {
    let town = Town::new().await;
    let (hostile, relay) = (Hostile::new(&town), town.relay("oslo-2").await);
    let agent = town.agent_at(vec![hostile.at()]);
    agent.observe(3).await;
    let mut control = hostile.welcome().await;
    let spool = agent.notes.lock().unwrap().made[0].0;
    let say = async |control: &mut ControlSender, down: Down| control.send(down.frame().unwrap()).await.unwrap();
    until("it has all of them", || hostile.taken.load(Ordering::Relaxed) == 3).await;
    // "In the branch", and then not any more: no count of them, and no reason, is the hub's word.
    say(&mut control, Down::Ack(Ack { lane: Lane::Telemetry, count: 3 })).await;
    agent.until_all_in(Place::Branch).await;
    for why in [ReturnReason::Damaged; 8].into_iter().chain([ReturnReason::TooManyRanges]) {
        for numbers in [vec![(1, 3)], vec![(0, u64::MAX)]] {
            say(&mut control, Down::Returned(Returned { spool, numbers, why })).await;
        }
    }
    agent.until_all_in(Place::Here).await;
    assert_eq!(agent.keeper.standing().await.unwrap().waiting[0], (3, 0));
    let folder = agent.stop().await;
    let agent = town.agent_in(folder, Relays::Configured(vec![relay.at()]));
    timeout(SOON, agent.keeper.delivered()).await.unwrap().unwrap();
    until("everything arrives", || town.hub.seqs().len() >= 3).await;
    assert_eq!(town.hub.seqs(), [1, 2, 3], "a batch was let go of by the word of a relay, or a gap came instead");
    agent.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_neither_keeps_nor_passes_on_what_the_hub_didnt_sign() {
    let town = Town::new().await;
    let policy = |n| Signed::new(SignedKind::Policy, Version { epoch: 1, n }, b"{}".to_vec());
    {
        let mut kept = town.hub.kept.lock().unwrap();
        kept.forged[1] = vec![policy(9).bytes().unwrap()];
        kept.signed.push(policy(4));
    }
    let relay = town.relay("oslo-1").await;
    let agent = town.agent(&[&relay]);
    until("the policy comes", || !agent.papers.0.lock().unwrap().is_empty()).await;
    until("the relay says what it holds", || {
        let kept = town.hub.kept.lock().unwrap();
        kept.heads.last().is_some_and(|head| head.versions.iter().any(|held| held.kind == SignedKind::Policy.as_u8()))
    })
    .await;
    let highest = |town: &Town| {
        let kept = town.hub.kept.lock().unwrap();
        kept.heads.iter().flat_map(|head| &head.versions).filter(|held| held.kind == 1).map(|held| held.version).max()
    };
    assert_eq!(highest(&town), Some(policy(4).version));
    // Killed and started again while its hub is away, it still has the hub's word for its agents.
    for _ in 0..50 {
        town.hub.say(Reply::Status("503 Busy", ""));
    }
    let relay = relay.restarted(&town).await;
    let another = town.agent_at(vec![relay.at()]);
    until("the policy comes again", || !another.papers.0.lock().unwrap().is_empty()).await;
    assert_eq!((agent.link().unproven, another.link().unproven), (0, 0));
    assert_eq!(Denied::default(), *another.trust.denied());
    another.stop().await;
    agent.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_from_before_a_restore_frees_nothing_also_after_a_start() {
    let town = Town::new().await;
    let relay = Hostile::new(&town);
    let mut agent = town.agent_at(vec![relay.at()]);
    agent.observe(3).await;
    let real = &town.hub.signing;
    let spool = agent.notes.lock().unwrap().made[0].0;
    let ack = |epoch| {
        let body = HubAck { stored: vec![(1, 3)], ..HubAck::default() }.bytes().unwrap();
        Signed { device: Some(DEVICE), spool: Some(spool), ..Signed::new(SignedKind::Ack, Version { epoch, n: 0 }, body) }
    };
    let of_epoch = |epoch| Signed { version: Version { epoch, n: 1 }, ..real.bundle.clone() };
    for (is_started_again, epoch) in [(false, 2), (true, 2)] {
        let mut control = relay.welcome().await;
        if !is_started_again {
            say(&mut control, real.sign(&of_epoch(epoch))).await;
        }
        // Signed by the hub, and kept by the relay since before its database was put back.
        say(&mut control, real.sign(&ack(1))).await;
        let n = if is_started_again { 8 } else { 7 };
        say(&mut control, real.sign(&Signed::new(SignedKind::Policy, Version { epoch, n }, b"{}".to_vec()))).await;
        until("what came behind it is here", || agent.papers.0.lock().unwrap().iter().any(|signed| signed.version.n == n)).await;
        assert!(agent.notes.lock().unwrap().hub.is_empty(), "an ack of epoch 1 freed something; started again: {is_started_again}");
        if !is_started_again {
            let folder = agent.stop().await;
            agent = town.agent_in(folder, Relays::Configured(vec![relay.at()]));
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lets_go_of_what_an_ended_key_signed_says_hello_again() {
    let town = Town::new().await;
    let relay = Hostile::new(&town);
    let agent = town.agent_at(vec![relay.at()]);
    let real = &town.hub.signing;
    let (stolen, chain) = ControlKey::issue(&town.issuer, 2, SystemClock::new().now().wall_ms).unwrap();
    let mut both = muster_mesh::message::Bundle::read(&real.bundle.body).unwrap();
    both.controls.push(muster_mesh::message::ControlChain { n: 2, chain: chain.pem });
    let list = Signed::new(SignedKind::Relays, Version { epoch: 1, n: 900 }, RelayList::default().bytes().unwrap());
    let mut control = relay.welcome().await;
    say(&mut control, real.sign(&Signed::new(SignedKind::Bundle, Version { epoch: 1, n: 5 }, both.bytes().unwrap()))).await;
    say(&mut control, stolen.sign(&list).unwrap()).await;
    until("the list is believed", || agent.trust.version(SignedKind::Relays) == list.version).await;
    say(&mut control, real.sign(&Signed { version: Version { epoch: 1, n: 6 }, ..real.bundle.clone() })).await;
    let mut control = timeout(SOON, relay.welcome()).await.expect("it says hello again, without the list");
    assert_eq!(agent.trust.version(SignedKind::Relays), Version::default());
    let genuine = Signed { version: Version { epoch: 1, n: 3 }, ..list };
    say(&mut control, real.sign(&genuine)).await;
    until("the hub's own list counts", || agent.trust.version(SignedKind::Relays) == genuine.version).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_relay_is_left_and_not_dialled_again() {
    let town = Town::new().await;
    let (lost, next) = (town.relay("oslo-1").await, town.relay("oslo-2").await);
    let agent = town.agent(&[&lost, &next]);
    agent.observe(2).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(lost.at()));
    let now_ms = SystemClock::new().now().wall_ms;
    let denial = Denial { name: relay_name("oslo-1").to_string(), issued_before_ms: now_ms + 3_600_000, until_ms: now_ms + 86_400_000 };
    let list = DenyList { made_ms: now_ms, denied: vec![denial] };
    let list = Signed::new(SignedKind::Deny, Version { epoch: 1, n: 1 }, list.bytes().unwrap());
    town.hub.kept.lock().unwrap().signed.push(list);
    until("the agent is at the other relay", || agent.link().relay == Some(next.at())).await;
    agent.observe(2).await;
    agent.until_all_in(Place::Hub).await;
    // Also after a start, with the list from its disk.
    let folder = agent.stop().await;
    let agent = town.agent_in(folder, Relays::Configured(vec![lost.at(), next.at()]));
    agent.observe(1).await;
    agent.until_all_in(Place::Hub).await;
    assert_eq!(agent.link().relay, Some(next.at()));
    agent.stop().await;
    lost.stop().await;
    next.stop().await;
}

pub async fn say(control: &mut ControlSender, signed: Vec<u8>) {
    control.send(Down::Signed(signed.into()).frame().unwrap()).await.unwrap();
}

/// A relay's certificate in somebody's hands.
struct Hostile {
    server: Server,
    /// Envelopes that came to it.
    taken: Arc<AtomicUsize>,
}

impl Hostile {
    fn new(town: &Town) -> Hostile {
        let keys = keys(&town.issuer, &town.root, relay_name("oslo-1"));
        Hostile { server: Server::bind("127.0.0.1:0".parse().unwrap(), &keys).unwrap(), taken: Arc::default() }
    }

    fn at(&self) -> RelayAddress {
        RelayAddress { address: self.server.address().to_string(), name: relay_name("oslo-1") }
    }

    /// Lets one agent in; the connection lives as long as the other end and this stream.
    async fn welcome(&self) -> ControlSender {
        let connection = self.server.accept().await.unwrap().handshake().await.unwrap();
        let (mut sender, mut receiver) = connection.accept_control().await.unwrap();
        let hello = receiver.receive().await.unwrap().unwrap();
        assert!(matches!(Up::read(&hello).unwrap(), Some(Up::Hello(_))));
        let lanes = [LaneState::Open; 2];
        let welcome = Welcome { protocol: AGENT_PROTOCOL, limits: Limits::OURS, clock_ms: 0, lanes, claims: Vec::new() };
        sender.send(Down::Welcome(welcome).frame().unwrap()).await.unwrap();
        // It reads whatever comes, and keeps nothing.
        let taken = self.taken.clone();
        tokio::spawn(async move {
            let lanes = async {
                while let Ok(mut lane) = connection.accept_lane().await {
                    while let Ok(Some(_)) = lane.receive().await {
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            let control = async { while let Ok(Some(_)) = receiver.receive().await {} };
            tokio::join!(lanes, control)
        });
        sender
    }
}
