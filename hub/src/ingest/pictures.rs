//! Async: what happens to a POST's pictures before its transaction: each new one is checked, and its object put. No lock of the database is
//! held meanwhile, and telemetry never comes here.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use muster_mesh::{
    batch::Batch,
    chance,
    clock::Clock,
    record::{Kind, Screenshot},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{
    attempts::{Attempt, Attempts, Of},
    plan::{self, Arrival, Outcome, Picture, Whole},
};
use crate::{
    images::{self, Unfit},
    objects::{OPERATIONS_MAX, ObjectError, Objects},
    store::{Store, StoreError},
};

/// Pictures of one POST on their way at once: each is in memory once more, no more than the POST's body together. As many as the store takes
/// at once, so that a disk writes what several wait for with one flush, and none waits while the next are checked.
const ON_THE_WAY_MAX: usize = OPERATIONS_MAX;
/// All pictures of one POST: then the relay is told to come again, and finds done what was done. Shorter than a request may take.
const TIME: Duration = Duration::from_secs(90);

/// Brings pictures into the object store.
pub struct Pictures {
    objects: Arc<Objects>,
    clock: Arc<dyn Clock>,
    attempts: Mutex<Attempts>,
}

/// An envelope whose picture has to be checked and put.
struct Wanted<'a> {
    /// Its place in the POST.
    place: usize,
    whole: &'a Whole,
    picture: Result<&'a Screenshot, Unfit>,
}

impl Pictures {
    pub fn new(objects: Arc<Objects>, clock: Arc<dyn Clock>) -> Pictures {
        Pictures { objects, clock, attempts: Mutex::default() }
    }

    /// Makes sure that the object store is this database's own, before the first picture goes there.
    pub async fn claim(&self, store: &Store) -> Result<Result<(), ObjectError>, StoreError> {
        if self.objects.is_claimed() {
            return Ok(Ok(()));
        }
        let id = store.id().await?;
        Ok(self.objects.claim(id).await)
    }

    /// Brings the pictures of these arrivals as far as a row may name them, those that the expected outcomes make rows of. When the store
    /// doesn't take part, what it took before is kept for the next POST that brings it.
    pub async fn bring(&self, arrivals: &mut [Arrival], expected: &[Outcome]) -> Result<(), ObjectError> {
        let whole = arrivals.iter().zip(expected).enumerate().filter_map(|(place, (arrival, outcome))| {
            let whole = arrival.whole()?;
            plan::names_object(whole, outcome).then(|| Wanted::of(place, whole)).flatten()
        });
        let wanted: Vec<_> = whole.collect();
        let (brought, done) = self.bring_all(&wanted).await;
        for (place, picture) in brought {
            if let Arrival::Whole(whole) = &mut arrivals[place] {
                whole.picture = picture;
            }
        }
        if done.is_err() {
            self.give_back(arrivals);
        }
        done
    }

    /// Keeps what a POST put and didn't commit.
    pub fn give_back(&self, arrivals: &[Arrival]) {
        let now_boot_ms = self.clock.now().boot_ms;
        let mut attempts = self.attempts();
        for whole in arrivals.iter().filter_map(Arrival::whole) {
            if let Picture::Put(attempt) = &whole.picture {
                attempts.give_back(of(whole), attempt.clone(), now_boot_ms);
            }
        }
    }

    /// After the first that the store doesn't take, no other is begun; those on their way come to their end.
    async fn bring_all(&self, wanted: &[Wanted<'_>]) -> (Vec<(usize, Picture)>, Result<(), ObjectError>) {
        let failed = &AtomicBool::new(false);
        let each: Vec<_> = wanted.iter().map(|one| self.bring_one(one, failed).boxed()).collect();
        let mut bringing = stream::iter(each).buffer_unordered(ON_THE_WAY_MAX);
        let (until, mut brought, mut done) = (Instant::now() + TIME, Vec::new(), Ok(()));
        loop {
            match timeout_at(until, bringing.next()).await {
                Ok(None) => return (brought, done),
                Ok(Some(Ok(one))) => brought.extend(one),
                Ok(Some(Err(error))) => {
                    failed.store(true, Ordering::Relaxed);
                    done = done.and(Err(error));
                }
                Err(_) => return (brought, Err(ObjectError::NotNow("it takes too long for all pictures of a POST".into()))),
            }
        }
    }

    /// None: it wasn't begun.
    async fn bring_one(&self, wanted: &Wanted<'_>, failed: &AtomicBool) -> Result<Option<(usize, Picture)>, ObjectError> {
        if failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Wanted { place, whole, picture } = *wanted;
        let now = self.clock.now();
        let lent = self.attempts().lend(&of(whole), now.boot_ms);
        if let Some(attempt) = lent {
            return Ok(Some((place, Picture::Put(attempt))));
        }
        let checked = match picture {
            Ok(picture) => self.check(picture.clone()).await,
            Err(unfit) => Err(unfit),
        };
        let bytes = match checked {
            Ok(bytes) => bytes,
            Err(unfit) => {
                metrics::counter!("muster_hub_unfit_pictures_total", "reason" => unfit.name()).increment(1);
                return Ok(Some((place, Picture::Unfit(unfit))));
            }
        };
        let header = whole.envelope.header();
        let (chance, id) = (chance::random_u64(), chance::random_16());
        let attempt = Attempt::new(header.spool, header.seq, now.wall_ms, now.boot_ms, chance, id);
        self.objects.put(&attempt.object.key, bytes).await?;
        Ok(Some((place, Picture::Put(attempt))))
    }

    /// Reads it on a thread of its own; gives its bytes back.
    async fn check(&self, picture: Screenshot) -> Result<Bytes, Unfit> {
        let checking = spawn_blocking(move || images::check(&picture).map(|()| Bytes::from(picture.bytes)));
        // A check that panics over hostile bytes must not take its POST with it: the relay would send the same again for ever.
        checking.await.unwrap_or(Err(Unfit::Structure))
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(whole: &Whole) -> Of {
    (whole.key(), whole.envelope.header().seq, whole.digest)
}

impl Wanted<'_> {
    /// None: it has no picture.
    fn of(place: usize, whole: &Whole) -> Option<Wanted<'_>> {
        let Ok(Batch { records, .. }) = &whole.opened else { return None };
        let mut pictures = records.iter().filter_map(|record| match &record.kind {
            Kind::Screenshot(picture) => Some(picture),
            _ => None,
        });
        let first = pictures.next()?;
        let picture = if pictures.next().is_some() { Err(Unfit::Several) } else { Ok(first) };
        Some(Wanted { place, whole, picture })
    }
}
