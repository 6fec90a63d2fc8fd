//! Async: asks for certificates at a hub that hasn't the issuing key: they lie in the database until the hub that has it answers.
//!
//! Nothing in the queue helps who reads it: an ask is sealed to the key that only the signer has, and an answer is what everybody who watches
//! the asker sees. The number over which an ask is signed comes from the signer, too: its newest one lies in the queue always, as the answer
//! to the one ask that all make alike, so that the key behind the numbers stays where it is.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use muster_mesh::{
    door::{Answer, Ask},
    message::MessageError,
};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    signer::Signer,
    store::{Store, StoreError, WaitingAsk},
};

/// Asks and answers that lie in the queue at once, of 16 KiB at the most each: what all doors of a mesh take within [`KEPT_MS`] on a busy day.
const ASKS_MAX: i64 = 512;
/// An ask that nobody answers, and an answer that nobody fetches, go after this; a number that old isn't given out.
const KEPT_MS: i64 = 2 * 60 * 1_000;
/// How long a hub waits for the signer's answer: a door gives its guest five seconds for all.
const PATIENCE: Duration = Duration::from_secs(3);
const FETCH_EVERY: Duration = Duration::from_millis(250);
/// Whoever wasn't answered comes again after this; one public key is always answered alike.
const BUSY_S: u32 = 5;

/// How often the signer looks into the queue …
const WORK_EVERY: Duration = Duration::from_millis(500);
/// … how many it answers at a look …
const AT_ONCE: i64 = 32;
/// … and how old its number may be before it lays down a new one.
const NUMBER_AGE_MS: i64 = 30 * 1_000;

/// Why the queue isn't worked off now.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Hub {
    /// The word of whoever holds the issuing key: this hub, or another one of this database.
    pub async fn ask(&self, ask: &[u8]) -> Answer {
        match &self.signer {
            Some(signer) => signer.answer(ask).await,
            None => self.pass_on(ask).await,
        }
    }

    async fn pass_on(&self, ask: &[u8]) -> Answer {
        // Rubbish takes no place in the queue.
        let Ok(read) = Ask::read(ask) else { return Answer::Unreadable };
        match self.answer_of_the_signer(&waiting(ask), read == Ask::Nonce).await {
            Ok(Some(answer)) => {
                count("answered");
                answer
            }
            Ok(None) => {
                count("unanswered");
                Answer::Busy { seconds: BUSY_S }
            }
            Err(error) => {
                tracing::warn!(%error, "what was asked at this hub can't be passed on now");
                count("unanswered");
                Answer::Busy { seconds: BUSY_S }
            }
        }
    }

    /// `is_standing`: the answer lies there without being asked for, and stays.
    async fn answer_of_the_signer(&self, waiting: &WaitingAsk, is_standing: bool) -> Result<Option<Answer>, StoreError> {
        let store = &self.store;
        if !is_standing {
            let now_ms = self.now_ms();
            store.forget_asks(now_ms.saturating_sub(KEPT_MS), now_ms.saturating_add(KEPT_MS)).await?;
            if !store.queue_ask(waiting, now_ms, ASKS_MAX).await? {
                return Ok(None);
            }
        }
        for _ in 0..PATIENCE.as_millis().div_ceil(FETCH_EVERY.as_millis()) {
            if let Some((answer, at_ms)) = store.answer_to(&waiting.id).await? {
                let is_fresh = at_ms.abs_diff(self.now_ms()) <= KEPT_MS.unsigned_abs();
                if !is_standing {
                    store.forget_ask(&waiting.id).await?;
                }
                // One that is old says that the signer is away, which a moment's wait changes for nobody.
                return Ok(Answer::read(&answer).ok().filter(|_| is_fresh));
            }
            sleep(FETCH_EVERY).await;
        }
        Ok(None)
    }
}

/// Works the queue off until `stop`.
pub fn spawn(signer: Arc<Signer>, store: Arc<Store>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        while stop.run_until_cancelled(sleep(WORK_EVERY)).await.is_some() {
            if let Err(error) = work(&signer, &store).await {
                tracing::warn!(%error, "what was asked at other hubs isn't answered now");
            }
        }
    })
}

/// One look into the queue. Returns how many were answered.
pub async fn work(signer: &Signer, store: &Store) -> Result<usize, WorkError> {
    let now_ms = signer.now_ms();
    store.forget_asks(now_ms.saturating_sub(KEPT_MS), now_ms.saturating_add(KEPT_MS)).await?;
    lay_down_number(signer, store, now_ms).await?;
    let mut answered = 0;
    for WaitingAsk { id, ask } in store.waiting_asks(AT_ONCE).await? {
        // Each gets its answer, if only that it comes again: none holds up those behind it.
        let answer = signer.answer(&ask).await.bytes().or_else(|_| Answer::Busy { seconds: BUSY_S }.bytes())?;
        store.answer_ask(&id, answer).await?;
        answered += 1;
    }
    Ok(answered)
}

async fn lay_down_number(signer: &Signer, store: &Store, now_ms: i64) -> Result<(), WorkError> {
    let ask = Ask::Nonce.bytes()?;
    let waiting = waiting(&ask);
    let lies_there = store.answer_to(&waiting.id).await?;
    if lies_there.is_none_or(|(_, at_ms)| at_ms.abs_diff(now_ms) >= NUMBER_AGE_MS.unsigned_abs()) {
        store.put_answer(&waiting, signer.answer(&ask).await.bytes()?, now_ms).await?;
    }
    Ok(())
}

fn waiting(ask: &[u8]) -> WaitingAsk {
    WaitingAsk { id: HEXLOWER.encode(digest(&SHA256, ask).as_ref()), ask: ask.to_vec() }
}

fn count(outcome: &'static str) {
    metrics::counter!("muster_hub_asks_passed_on_total", "outcome" => outcome).increment(1);
}
