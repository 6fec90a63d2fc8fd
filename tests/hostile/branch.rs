//! Async: the agents that dial it, as a relay receives them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_mesh::{
    batch::Envelope,
    clock::Clock,
    ids::{DeviceId, Lane, SpoolId},
    message::{
        AGENT_PROTOCOL, Ack, Ask, Down, Facts, Hello, LaneState, Limits, ReturnReason, Returned, Signed, SignedKind, Taken, Up, Welcome,
    },
    quic::{Connection, ControlReceiver, LaneReceiver, Server},
};
use tokio::{sync::mpsc, time::interval};

use crate::{
    door::Door,
    forger::{Forger, is},
    misdeed::Misdeed,
    upstream::Upstream,
};

const TELL_EVERY: Duration = Duration::from_millis(300);
const SAYINGS_MAX: usize = 1_024;

pub struct Branch {
    pub misdeed: Misdeed,
    pub upstream: Arc<Upstream>,
    pub forger: Arc<Forger>,
    pub door: Arc<Door>,
    pub clock: Arc<dyn Clock>,
}

/// One agent's connection.
struct Visit {
    branch: Arc<Branch>,
    connection: Connection,
    device: DeviceId,
    hello: Hello,
    say: mpsc::Sender<Down>,
}

impl Branch {
    /// Lets everybody in for ever.
    pub async fn receive(self: &Arc<Self>, server: &Server) {
        while let Some(arriving) = server.accept().await {
            let branch = self.clone();
            tokio::spawn(async move {
                match arriving.handshake().await {
                    Ok(connection) => drop(branch.attend(connection).await),
                    Err(error) => tracing::info!(%error, "nobody came of a handshake"),
                }
            });
        }
    }

    async fn attend(self: Arc<Self>, connection: Connection) -> Option<()> {
        let (mut sender, mut receiver) = connection.accept_control().await.ok()?;
        let Some(Up::Hello(hello)) = Up::read(&receiver.receive().await.ok()??).ok()? else { return None };
        let lanes = [LaneState::Open; 2];
        let clock_ms = self.clock.now().wall_ms;
        let welcome = Welcome { protocol: AGENT_PROTOCOL, limits: Limits::OURS, clock_ms, lanes, claims: Vec::new() };
        sender.send(Down::Welcome(welcome).frame().ok()?).await.ok()?;
        let (say, mut said) = mpsc::channel::<Down>(SAYINGS_MAX);
        let device = connection.peer().device()?;
        let visit = Arc::new(Visit { branch: self, connection: connection.clone(), device, hello, say });
        let speaking = async {
            while let Some(down) = said.recv().await {
                let Ok(frame) = down.frame() else { continue };
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = speaking => {}
            _ = visit.listen(&mut receiver) => {}
            _ = visit.tell() => {}
            () = visit.take_lanes() => {}
            _ = connection.closed() => {}
        }
        Some(())
    }
}

impl Visit {
    async fn say(&self, down: Down) -> Option<()> {
        self.say.send(down).await.ok()
    }

    async fn listen(&self, receiver: &mut ControlReceiver) -> Option<()> {
        while let Some(message) = receiver.receive().await.ok()? {
            if let Some(Up::Ask(ask)) = Up::read(&message).ok()? {
                let answer = self.branch.door.answer(&ask, Some(self.connection.peer().name())).await;
                self.say(Down::Answer(answer)).await?;
            }
        }
        None
    }

    /// The hub's words as they come, as far as it passes them on; and words of its own.
    async fn tell(&self) -> Option<()> {
        let (mut told, mut every) = (0, interval(TELL_EVERY));
        loop {
            every.tick().await;
            let words = self.branch.upstream.words(0).await;
            for word in &words[told..] {
                if self.branch.misdeed == Misdeed::WithholdDenyList && is(word, SignedKind::Deny) {
                    tracing::info!("did: withheld the list of the denied");
                    continue;
                }
                self.say(Down::Signed(word.clone())).await?;
            }
            told = words.len();
            if self.branch.misdeed == Misdeed::WidenPolicy && words.iter().any(|word| is(word, SignedKind::Policy)) {
                let forger = &self.branch.forger;
                for word in forger.bundles(&words).into_iter().chain(forger.policies(self.device, &words)) {
                    self.say(Down::Signed(word)).await?;
                }
                let policies = words.iter().filter(|word| is(word, SignedKind::Policy)).count();
                tracing::info!("did: said wider policies beside {policies} of the hub's");
            }
        }
    }

    async fn take_lanes(self: &Arc<Self>) {
        while let Ok(lane) = self.connection.accept_lane().await {
            let visit = self.clone();
            tokio::spawn(async move { visit.read(lane).await });
        }
    }

    async fn read(&self, mut stream: LaneReceiver) -> Option<()> {
        let (lane, mut count, mut kept) = (stream.lane(), 0, Vec::new());
        while let Some(envelope) = stream.receive().await.ok()? {
            count += 1;
            match self.branch.misdeed {
                Misdeed::ForgeAcks => self.forge(&envelope, count).await?,
                Misdeed::Mangle => self.mangle(lane, &mut kept, envelope, count).await?,
                Misdeed::WidenPolicy | Misdeed::SwapCsr | Misdeed::ReplayAsk | Misdeed::WithholdDenyList => {
                    let taken = self.bring(lane, vec![envelope]).await;
                    self.say(Down::Ack(Ack { lane, count })).await?;
                    self.pass(taken).await?;
                }
            }
        }
        Some(())
    }

    async fn bring(&self, lane: Lane, batches: Vec<Envelope>) -> Option<Taken> {
        let now_ms = self.branch.clock.now().wall_ms;
        let boot_ms = i64::try_from(self.hello.boot_ms).unwrap();
        let facts = Facts { receipt_ms: now_ms, dial: self.hello.dial, boot: self.hello.boot, zero_ms: now_ms - boot_ms, address: None };
        let spools: Vec<SpoolId> = batches.iter().map(|envelope| envelope.header().spool).collect();
        let asks: Vec<Ask> = spools.into_iter().map(|spool| Ask { device: self.device, spool, from: 1 }).collect();
        let batches: Vec<(Facts, Envelope)> = batches.into_iter().map(|envelope| (facts.clone(), envelope)).collect();
        self.branch.upstream.bring(lane, &batches, &asks).await
    }

    /// The hub's own acks for this agent.
    async fn pass(&self, taken: Option<Taken>) -> Option<()> {
        for ack in taken.into_iter().flat_map(|taken| taken.acks).map(Bytes::from) {
            if Signed::read(&ack).is_ok_and(|signed| signed.device == Some(self.device)) {
                self.branch.upstream.heard_ack(ack.clone()).await;
                self.say(Down::Signed(ack)).await?;
            }
        }
        Some(())
    }

    async fn forge(&self, envelope: &Envelope, count: u64) -> Option<()> {
        let header = *envelope.header();
        self.say(Down::Ack(Ack { lane: header.lane, count })).await?;
        if count == 1 {
            let taken = self.bring(header.lane, vec![envelope.clone()]).await;
            self.pass(taken).await?;
            tracing::info!("did: brought the first batch of a connection");
        }
        let real = self.branch.upstream.acks().await;
        let others = real.iter().filter(|ack| Signed::read(ack).is_ok_and(|signed| signed.device != Some(self.device))).count();
        let forged = self.branch.forger.acks(self.device, header.spool, header.seq, &real);
        let words = self.branch.upstream.words(0).await;
        for word in self.branch.forger.bundles(&words).into_iter().chain(forged) {
            self.say(Down::Signed(word)).await?;
        }
        for why in [ReturnReason::Damaged, ReturnReason::TooManyRanges] {
            for numbers in [vec![(1, header.seq)], vec![(0, u64::MAX)]] {
                self.say(Down::Returned(Returned { spool: header.spool, numbers, why })).await?;
            }
        }
        tracing::info!("did: forged acks of {} numbers, beside {} real ones of which {others} are of others", header.seq, real.len());
        Some(())
    }

    async fn mangle(&self, lane: Lane, kept: &mut Vec<Envelope>, envelope: Envelope, count: u64) -> Option<()> {
        self.say(Down::Ack(Ack { lane, count })).await?;
        if count.is_multiple_of(3) {
            tracing::info!("did: dropped a batch");
            return Some(());
        }
        kept.push(envelope);
        if kept.len() < 2 {
            return Some(());
        }
        // The later one first, twice in one POST, and both once more in the next.
        let (later, earlier) = (kept.pop()?, kept.pop()?);
        let taken = self.bring(lane, vec![later.clone(), earlier.clone(), later.clone()]).await;
        self.pass(taken).await?;
        let taken = self.bring(lane, vec![earlier, later]).await;
        self.pass(taken).await?;
        tracing::info!("did: brought two batches twice and in the wrong order");
        Some(())
    }
}
