//! Async: the daily sweep: what is older than the policy keeps it is deleted, at the start and once a day.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    ingest::plan::Retention,
    store::{Store, StoreError, Swept},
};

/// Rows that one transaction deletes: a few milliseconds, so that ingest gets its turn in between.
pub const ROWS_MAX: i64 = 1_000;
const EVERY: Duration = Duration::from_secs(24 * 3_600);
/// After a sweep that failed.
const AGAIN: Duration = Duration::from_secs(10 * 60);

/// Sweeps until `stop`.
pub fn spawn(hub: Arc<Hub>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let wait = tokio::select! {
                swept = sweep(&hub.store, hub.now_ms(), hub.policies.current().retention(), ROWS_MAX) => match swept {
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

/// One whole sweep at `now_ms`, at most `rows_max` rows in a transaction.
pub async fn sweep(store: &Store, now_ms: i64, retention: Retention, rows_max: i64) -> Result<Swept, StoreError> {
    let swept = store.sweep(now_ms, retention, rows_max).await?;
    store.settle_spools(now_ms, rows_max).await?;
    if swept != Swept::default() {
        let Swept { records, batches, holds, lines } = swept;
        tracing::info!(records, batches, holds, lines, days = retention.days, "what was kept long enough is deleted");
    }
    metrics::counter!("muster_hub_swept_records_total").increment(swept.records);
    Ok(swept)
}
