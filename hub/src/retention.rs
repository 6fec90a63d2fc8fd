//! Async: the daily sweep: what is older than the policy keeps it is deleted, at the start and once a day.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    ingest::plan::Retention,
    objects::{ObjectError, Objects},
    store::{Store, StoreError, Swept},
};

/// Rows that one transaction deletes: a few milliseconds, so that ingest gets its turn in between.
pub const ROWS_MAX: i64 = 1_000;
const EVERY: Duration = Duration::from_secs(24 * 3_600);
/// After a sweep that failed.
const AGAIN: Duration = Duration::from_secs(10 * 60);

/// Objects that are deleted before they are forgotten together.
const OBJECTS_MAX: i64 = 500;
/// Objects that can't be deleted before a sweep gives up: some may be locked, and a store that is down fails each.
const FAILURES_MAX: usize = 10;

/// Why a sweep stopped half-way: the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// Sweeps until `stop`.
pub fn spawn(hub: Arc<Hub>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let wait = tokio::select! {
                swept = sweep(&hub.store, &hub.objects, hub.now_ms(), hub.policies.current().retention(), ROWS_MAX) => match swept {
                    Ok(_) => EVERY,
                    Err(error) => {
                        tracing::warn!(%error, "the sweep stopped half-way; it goes on in ten minutes");
                        AGAIN
                    }
                },
                // Whatever it was doing is rolled back or committed: a sweep can be cut anywhere.
                () = stop.cancelled() => return,
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    })
}

/// One whole sweep at `now_ms`, at most `rows_max` rows in a transaction: rows, then the objects that they named.
pub async fn sweep(store: &Store, objects: &Objects, now_ms: i64, retention: Retention, rows_max: i64) -> Result<Swept, SweepError> {
    let swept = store.sweep(now_ms, retention, rows_max).await?;
    store.settle_spools(now_ms, rows_max).await?;
    if swept != Swept::default() {
        let Swept { records, titles, batches, holds, lines, identities } = swept;
        tracing::info!(records, titles, batches, holds, lines, identities, days = retention.days, "what was kept long enough is deleted");
    }
    metrics::counter!("muster_hub_swept_records_total").increment(swept.records);
    // Last: an object store that is down keeps no row from going.
    clear(store, objects, now_ms, retention).await?;
    Ok(swept)
}

/// Deletes the objects of deleted rows, those too that an earlier sweep left. Returns how many.
async fn clear(store: &Store, objects: &Objects, now_ms: i64, retention: Retention) -> Result<u64, SweepError> {
    // In another's store nothing of ours is there to be deleted, and that would be taken for done.
    objects.belongs_to(store.id().await?).await?;
    let (mut after, mut cleared, mut failed) = (String::new(), 0, Vec::new());
    loop {
        let doomed = store.doomed(&after, OBJECTS_MAX).await?;
        let Some(last) = doomed.last() else { break };
        after.clone_from(last);
        let mut gone = Vec::with_capacity(doomed.len());
        for object in doomed {
            match objects.delete(&object).await {
                Ok(()) => gone.push(object),
                Err(error) => failed.push(error),
            }
            if failed.len() >= FAILURES_MAX {
                break;
            }
        }
        store.forget_doomed(&gone, now_ms, retention).await?;
        cleared += gone.len() as u64;
        if failed.len() >= FAILURES_MAX {
            break;
        }
    }
    if cleared > 0 {
        tracing::info!(objects = cleared, "the pictures of deleted rows are gone");
    }
    match failed.pop() {
        Some(error) => Err(error.into()),
        None => Ok(cleared),
    }
}
