//! Async: the door for those without a certificate, and asks of connected agents: carried to the hub unopened, and its answers back.
//!
//! The relay reads none of it. What it can do is not carry it, which delays.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_mesh::{
    asking::Way,
    callers::Callers,
    clock::Clock,
    door::Answer,
    quic::{DoorServer, Question},
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// Asks under way to the hub, of strangers and of connected agents alike: each is a request of its own beside the POSTs.
const UNDER_WAY_MAX: usize = 16;
/// An ask of a connected agent has this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Somebody whose ask couldn't be carried comes again after this.
const BUSY_S: u32 = 10;

type Bring = dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync;

/// The way of asks to the hub.
pub struct Carrier {
    bring: Box<Bring>,
    under_way: Semaphore,
}

impl Carrier {
    pub fn new<W: Way + 'static>(way: Arc<W>) -> Carrier {
        let bring = move |ask| -> BoxFuture<'static, _> {
            let way = way.clone();
            Box::pin(async move { way.ask(ask).await })
        };
        Carrier { bring: Box::new(bring), under_way: Semaphore::new(UNDER_WAY_MAX) }
    }

    /// The hub's answer, or "come again".
    async fn carry(&self, ask: Vec<u8>, patience: Duration) -> Bytes {
        let answered = timeout(patience, async {
            let _place = self.under_way.acquire().await.map_err(|error| error.to_string())?;
            (self.bring)(ask).await
        });
        match answered.await {
            Ok(Ok(answer)) => {
                metrics::counter!("muster_relay_asks_total", "outcome" => "answered").increment(1);
                answer.into()
            }
            failed => {
                metrics::counter!("muster_relay_asks_total", "outcome" => "busy").increment(1);
                tracing::debug!(?failed, "an ask for a certificate couldn't be carried to the hub");
                busy()
            }
        }
    }

    /// For a connected agent.
    pub async fn carry_for_agent(&self, ask: Bytes) -> Bytes {
        self.carry(ask.to_vec(), PATIENCE).await
    }
}

fn busy() -> Bytes {
    // It has one number: it always encodes.
    Answer::Busy { seconds: BUSY_S }.bytes().unwrap_or_default().into()
}

/// Answers strangers until `stop`.
pub async fn serve(door: DoorServer, carrier: Arc<Carrier>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let callers = Mutex::new(Callers::default());
    let admits = |address: SocketAddr| {
        // Nothing under this lock panics half-way through a change.
        callers.lock().unwrap_or_else(PoisonError::into_inner).admit(address.ip(), clock.now().boot_ms)
    };
    let mut questions = JoinSet::new();
    loop {
        let knock = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = questions.join_next() => continue,
            knock = door.knocked() => knock,
        };
        let Some(knock) = knock else { break };
        if !admits(knock.address()) {
            metrics::counter!("muster_relay_door_turned_away_total").increment(1);
            knock.refuse();
            continue;
        }
        let carrier = carrier.clone();
        questions.spawn(async move {
            if let Some(question) = knock.question().await {
                answer(question, &carrier).await;
            }
        });
    }
    questions.shutdown().await;
    door.close();
}

async fn answer(mut question: Question, carrier: &Carrier) {
    let ask = std::mem::take(&mut question.ask);
    // A little less than there is, so that "come again" still gets through.
    let answer = carrier.carry(ask, question.left().mul_f64(0.8)).await;
    question.answer(&answer).await;
}
