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

#[cfg(test)]
mod tests {
    use muster_certs::{Ca, Keys, Role, SystemTime, Trusted};
    use muster_mesh::{
        clock::{ManualClock, Reading},
        ids::BootId,
        limits::DOOR_ASKS_PER_MINUTE,
        quic::{Kernel, ask_at_door},
    };

    use super::*;

    struct Echo;

    impl Way for Echo {
        async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
            Ok(ask)
        }
    }

    #[tokio::test]
    async fn the_eleventh_ask_of_an_address_in_a_minute_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), "muster.test").unwrap();
        let own = ca.issue_relay("oslo", "oslo-1").unwrap();
        let keys = Arc::new(Keys::from_pem(&own.pem, &own.key_pem, ca.roots_pem(), Role::Relay, Arc::new(SystemTime)).unwrap());
        let door = DoorServer::bind("127.0.0.1:0".parse().unwrap(), &keys).unwrap();
        let (address, stop) = (door.address().to_string(), CancellationToken::new());
        // A minute that ends when it is told to.
        let clock = ManualClock::new(Reading { wall_ms: 0, boot_ms: 0 }, BootId([1; 16]));
        let serving = tokio::spawn(serve(door, Arc::new(Carrier::new(Arc::new(Echo))), Arc::new(clock.clone()), stop.clone()));
        let (trusted, name) = (Trusted::of_roots("muster.test", ca.roots_pem()).unwrap(), keys.identity().name);
        let ask = || ask_at_door(&Kernel, &address, &trusted, &name, Arc::new(SystemTime), b"an ask");
        for n in 1..=DOOR_ASKS_PER_MINUTE {
            assert_eq!(ask().await.unwrap(), b"an ask", "ask {n}");
        }
        let refused = ask().await.unwrap_err();
        assert_eq!(refused, muster_mesh::quic::ConnectError::Busy);
        clock.advance(60_000);
        assert_eq!(ask().await.unwrap(), b"an ask", "a minute later");
        stop.cancel();
        serving.await.unwrap();
    }
}
