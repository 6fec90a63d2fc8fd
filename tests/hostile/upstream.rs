//! Async: its way to the real hub: POSTs as a relay's, and every word of the hub's that it ever had.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_mesh::{
    batch::Envelope,
    chance,
    clock::Clock,
    ids::{InstanceId, Lane},
    message::{Answer, Ask, Facts, HeldVersion, PostHead, QueueState, Signed, SignedKind, Taken},
};
use muster_relay::sync::Line;
use tokio::{sync::Mutex, time::sleep};

use crate::misdeed::Misdeed;

const ASK_EVERY: Duration = Duration::from_millis(300);
/// An answer that asks for the same again is followed this often.
const TRIES: usize = 4;

pub struct Upstream {
    line: Line,
    misdeed: Misdeed,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

struct Inner {
    instances: [InstanceId; 2],
    answered: [u64; 2],
    /// In the order in which they came, acks excepted.
    words: Vec<Bytes>,
    /// The newest of each device and spool.
    acks: Vec<Bytes>,
}

impl Upstream {
    pub fn new(line: Line, misdeed: Misdeed, clock: Arc<dyn Clock>, state: &Path) -> Upstream {
        let instances = [InstanceId(chance::random_16()), InstanceId(chance::random_16())];
        let inner = Mutex::new(Inner { instances, answered: [0; 2], words: of_its_honest_life(state), acks: Vec::new() });
        Upstream { line, misdeed, clock, inner }
    }

    /// What it has heard, from a place on.
    pub async fn words(&self, from: usize) -> Vec<Bytes> {
        self.inner.lock().await.words[from..].to_vec()
    }

    /// Acks of the hub's for whomever.
    pub async fn acks(&self) -> Vec<Bytes> {
        self.inner.lock().await.acks.clone()
    }

    pub async fn heard_ack(&self, ack: Bytes) {
        let of = |ack: &Bytes| Signed::read(ack).map(|signed| (signed.device, signed.spool)).ok();
        let mut inner = self.inner.lock().await;
        inner.acks.retain(|known| of(known) != of(&ack));
        inner.acks.push(ack);
    }

    /// Carries an ask for a certificate.
    pub async fn ask(&self, ask: &[u8]) -> Option<Bytes> {
        let answered = self.line.ask(ask.to_vec().into()).await;
        answered.inspect_err(|error| tracing::info!(%error, "an ask came back")).ok()
    }

    /// Brings batches, and hears what the hub says now.
    pub async fn bring(&self, lane: Lane, batches: &[(Facts, Envelope)], asks: &[Ask]) -> Option<Taken> {
        let mut inner = self.inner.lock().await;
        let entries: Vec<(Bytes, Bytes)> =
            batches.iter().map(|(facts, envelope)| (facts.bytes().unwrap(), envelope.bytes().clone())).collect();
        for _ in 0..TRIES {
            let head = inner.head(lane, !batches.is_empty(), asks, self.clock.now().wall_ms, self.misdeed);
            let body = head.body(entries.iter().map(|(facts, envelope)| (facts.as_ref(), envelope.as_ref()))).unwrap();
            match self.line.post(body).await {
                Ok(Answer::Taken(taken)) => {
                    inner.answered[lane.index()] = inner.answered[lane.index()].max(taken.number);
                    for word in taken.signed.iter().cloned().map(Bytes::from) {
                        if !inner.words.contains(&word) {
                            inner.words.push(word);
                        }
                    }
                    return Some(taken);
                }
                Ok(Answer::Stale { number }) => inner.answered[lane.index()] = number,
                Ok(Answer::Rewind { queues }) => queues.into_iter().for_each(|(lane, number)| inner.answered[lane.index()] = number),
                Err(error) => {
                    tracing::info!(%error, "the hub takes nothing");
                    return None;
                }
            }
        }
        None
    }

    pub async fn keep_asking(self: Arc<Self>) {
        loop {
            self.bring(Lane::Telemetry, &[], &[]).await;
            sleep(ASK_EVERY).await;
        }
    }
}

impl Inner {
    fn head(&self, lane: Lane, has_batches: bool, asks: &[Ask], relay_ms: i64, misdeed: Misdeed) -> PostHead {
        let queue = |lane: Lane| QueueState { lane, instance: self.instances[lane.index()], answered: self.answered[lane.index()] };
        PostHead {
            lane,
            number: if has_batches { self.answered[lane.index()] + 1 } else { 0 },
            queues: Lane::ALL.map(queue).to_vec(),
            asks: asks.to_vec(),
            presence: None,
            relay_ms,
            versions: SignedKind::ALL.into_iter().filter_map(|kind| self.says_it_holds(kind, misdeed)).collect(),
        }
    }

    fn says_it_holds(&self, kind: SignedKind, misdeed: Misdeed) -> Option<HeldVersion> {
        if misdeed == Misdeed::WithholdDenyList && kind == SignedKind::Deny {
            return None;
        }
        let signed = self.words.iter().filter_map(|word| Signed::read(word).ok());
        let version = signed.filter(|signed| signed.kind == kind.as_u8()).map(|signed| signed.version).max()?;
        Some(HeldVersion { kind: kind.as_u8(), version })
    }
}

/// What the relay believed before, the bundle first.
fn of_its_honest_life(state: &Path) -> Vec<Bytes> {
    let files = fs::read_dir(state.join("signed")).into_iter().flatten().flatten();
    let mut words: Vec<Bytes> = files.filter_map(|file| fs::read(file.path()).ok()).map(Bytes::from).collect();
    words.sort_by_key(|word| Signed::read(word).map(|signed| (signed.kind != SignedKind::Bundle.as_u8(), signed.version)).ok());
    words
}
