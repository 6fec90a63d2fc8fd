//! Async: objects that no row names: of attempts that never committed, and of rows whose deletion went before. They are taken when no attempt
//! may name them any more.
//!
//! A sweep must never empty a store because the database is the wrong one. So it takes nothing from a store whose mark names another database
//! or none; and of its own only what this database knows to be over: its number is settled, by another attempt or by a `Gap`, or it is older
//! than pictures are kept. What a restored database doesn't know (yet) stays until it is one of the two.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::Hub,
    ingest::{
        attempts::{self, day_folder, number_of},
        placing::DAY_MS,
    },
    objects::{Listing, ObjectError, Objects},
    store::{Store, StoreError},
};

/// An object that no row names is a stray at this age: attempts are over after ten minutes, and a bucket's clock may be a quarter of an hour off.
pub const AGE: Duration = Duration::from_secs(3_600);
const EVERY: Duration = Duration::from_secs(3_600);
/// Of so many sweeps one looks at everything: what was left alone may be known by then.
const SWEEPS_A_ROUND: u32 = 24;
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
    /// What was put yesterday or today: most older strays were taken before.
    Lately,
}

/// Sweeps at the start, then every hour, until `stop`.
pub fn spawn(hub: Arc<Hub>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut sweeps: u32 = 0;
        loop {
            let reach = if sweeps.is_multiple_of(SWEEPS_A_ROUND) { Reach::Everything } else { Reach::Lately };
            let swept = tokio::select! {
                swept = sweep(&hub.store, &hub.objects, hub.clock.now().wall_ms, reach) => swept,
                // An object more or less: the next sweep goes on.
                () = stop.cancelled() => return,
            };
            match swept {
                Ok(_) => sweeps = sweeps.wrapping_add(1),
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
    if !objects.belongs_to(store.id().await?).await? {
        // Nobody's: we never put anything there.
        return Ok(0);
    }
    let kept_days = store.newest_policy().await?.map(|newest| i64::from(newest.policy.retention.pictures_days));
    let sweep = Sweep {
        store,
        objects,
        before_ms: now_ms.saturating_sub(AGE.as_millis() as i64),
        // A day more: rows go by whole days.
        kept_ms: kept_days.map_or(i64::MIN, |days| now_ms.saturating_sub((days + 1) * DAY_MS)),
    };
    let folders = match reach {
        Reach::Everything => vec![None],
        Reach::Lately => [now_ms - DAY_MS, now_ms].map(|at_ms| Some(day_folder(at_ms))).into(),
    };
    let (mut taken, mut left) = (0, 0);
    for folder in folders.iter().map(Option::as_deref) {
        taken += objects.remove_staged(folder, sweep.before_ms).await?;
        let (more, stay) = sweep.take(objects.list(folder)).await?;
        (taken, left) = (taken + more, left + stay);
    }
    if taken > 0 {
        tracing::info!(taken, "pictures that no row names are gone");
    }
    if left > 0 {
        tracing::info!(left, "objects whose numbers this database doesn't know stay until it knows them or their time is up");
    }
    metrics::counter!("muster_hub_swept_objects_total").increment(taken);
    Ok(taken)
}

struct Sweep<'a> {
    store: &'a Store,
    objects: &'a Objects,
    /// Older than this no attempt may name them.
    before_ms: i64,
    /// Older than this no row is kept.
    kept_ms: i64,
}

impl Sweep<'_> {
    /// How many were taken, and how many stay though no row names them.
    async fn take(&self, mut listing: Listing) -> Result<(u64, u64), StraysError> {
        let (mut taken, mut left) = (0, 0);
        loop {
            let found = listing.older_with_times(self.before_ms, NAMES_MAX).await?;
            if found.is_empty() {
                return Ok((taken, left));
            }
            let strays = self.strays(found).await?;
            let numbers: HashSet<_> = strays.iter().filter_map(|(name, _)| number_of(name)).collect();
            let settled = self.store.settled(&numbers).await?;
            for (name, written_ms) in strays {
                // What isn't named as ours was put there by somebody else.
                match number_of(&name) {
                    Some(number) if settled.contains(&number) || written_ms < self.kept_ms => {
                        self.objects.delete(&name).await?;
                        taken += 1;
                    }
                    Some(_) | None => left += 1,
                }
            }
        }
    }

    /// Those of them that no row names.
    async fn strays(&self, found: Vec<(String, i64)>) -> Result<Vec<(String, i64)>, StoreError> {
        let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let named = self.store.named_objects(&names).await?;
        Ok(found.into_iter().filter(|(name, _)| !named.contains(name)).collect())
    }
}
