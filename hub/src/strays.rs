//! Async: objects that no row names: of attempts that never committed, and of rows whose deletion went before. They are taken when no attempt
//! may name them any more.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    ingest::{attempts, attempts::day_folder, placing::DAY_MS},
    objects::{Listing, ObjectError, Objects},
    store::{Store, StoreError},
};

/// An object that no row names is a stray at this age: attempts are over after ten minutes, and a bucket's clock may be a quarter of an hour off.
pub const AGE: Duration = Duration::from_secs(3_600);
const EVERY: Duration = Duration::from_secs(3_600);
/// Names that are looked up with one statement.
const NAMES_MAX: usize = 500;

const _: () = assert!(attempts::AGE_MAX.as_secs() + 30 * 60 <= AGE.as_secs());

/// Why a sweep stopped half-way: the next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum StraysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// Which objects a sweep looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Everything,
    /// What was put yesterday or today: older strays were taken before.
    Lately,
}

/// Sweeps at the start, then every hour, until `stop`.
pub fn spawn(hub: Arc<Hub>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut reach = Reach::Everything;
        loop {
            let swept = tokio::select! {
                swept = sweep(&hub.store, &hub.objects, hub.clock.now().wall_ms, reach) => swept,
                // An object more or less: the next sweep goes on.
                () = stop.cancelled() => return,
            };
            match swept {
                Ok(_) => reach = Reach::Lately,
                Err(error) => tracing::warn!(%error, "the sweep for pictures without a row stopped half-way; it begins again in an hour"),
            }
            tokio::select! {
                () = sleep(EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    })
}

/// One sweep at `now_ms`. Returns how many objects it took.
pub async fn sweep(store: &Store, objects: &Objects, now_ms: i64, reach: Reach) -> Result<u64, StraysError> {
    let before_ms = now_ms.saturating_sub(AGE.as_millis() as i64);
    let folders = match reach {
        Reach::Everything => vec![None],
        Reach::Lately => [now_ms - DAY_MS, now_ms].map(|at_ms| Some(day_folder(at_ms))).into(),
    };
    let mut taken = 0;
    for folder in folders.iter().map(Option::as_deref) {
        taken += objects.remove_staged(folder, before_ms).await?;
        taken += take(store, objects, objects.list(folder), before_ms).await?;
    }
    if taken > 0 {
        tracing::info!(taken, "pictures that no row names are gone");
    }
    metrics::counter!("muster_hub_swept_objects_total").increment(taken);
    Ok(taken)
}

async fn take(store: &Store, objects: &Objects, mut listing: Listing, before_ms: i64) -> Result<u64, StraysError> {
    let mut taken = 0;
    loop {
        let names = listing.older(before_ms, NAMES_MAX).await?;
        if names.is_empty() {
            return Ok(taken);
        }
        let named = store.named_objects(&names).await?;
        for name in names.iter().filter(|name| !named.contains(*name)) {
            objects.delete(name).await?;
            taken += 1;
        }
    }
}
