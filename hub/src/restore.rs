//! Async: after a restore: pictures' rows whose objects are gone. Such a number was never kept, as far as anyone can see: it is taken out of
//! *stored* before anybody is answered, so that relays and agents which still have it send it again. What nobody has shows as missing.

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use crate::{
    objects::{ObjectError, Objects, mark},
    store::{NamedObject, Store, StoreError},
};

/// Rows that are looked at, and at most changed, with one transaction.
const ROWS_MAX: i64 = 500;
/// Objects that are asked for at the same time.
const ASKED_MAX: usize = 16;
/// A line in the log for so many rows.
const SAID_EVERY: u64 = 10_000;

/// Why it can't be told what is there.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// It may as well be an address with a slip in it, and then all pictures would be given up.
    #[error(
        "the object store has no mark, so that it may be another than the one that has the pictures. If they are really lost, put an object \
         muster-store there that holds {0}"
    )]
    NoMark(String),
}

/// How a row's object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    There,
    Missing,
    /// It is there with another length.
    Other,
}

/// Takes every number out of *stored* whose picture isn't there. Returns how many.
pub async fn forget_missing(store: &Store, objects: &Objects, now_ms: i64) -> Result<u64, RestoreError> {
    let (mut after, mut looked, mut forgotten) = (String::new(), 0, 0);
    loop {
        let named = store.objects_behind(&after, ROWS_MAX).await?;
        let Some(last) = named.last() else { break };
        if after.is_empty() {
            belongs(store, objects).await?;
        }
        after.clone_from(&last.object);
        let count = named.len() as u64;
        let missing: Vec<_> = look(objects, named).await?.into_iter().filter(|(_, found)| *found == Found::Missing).collect();
        let missing: Vec<_> = missing.into_iter().map(|(named, _)| named).collect();
        if !missing.is_empty() {
            store.forget_pictures(&missing, now_ms).await?;
        }
        forgotten += missing.len() as u64;
        if looked / SAID_EVERY != (looked + count) / SAID_EVERY {
            tracing::info!(looked = looked + count, missing = forgotten, "looking which pictures of the restored database are there");
        }
        looked += count;
    }
    if looked > 0 {
        tracing::info!(
            looked,
            missing = forgotten,
            "the numbers of missing pictures aren't stored any more: who has them sends them again"
        );
    }
    Ok(forgotten)
}

async fn belongs(store: &Store, objects: &Objects) -> Result<(), RestoreError> {
    let id = store.id().await?;
    if objects.belongs_to(id).await? { Ok(()) } else { Err(RestoreError::NoMark(mark(id).trim_end().to_owned())) }
}

/// Asks for the object of each row, in their order.
pub async fn look(objects: &Objects, named: Vec<NamedObject>) -> Result<Vec<(NamedObject, Found)>, ObjectError> {
    let each: Vec<_> = named.into_iter().map(|named| look_at(objects, named).boxed()).collect();
    stream::iter(each).buffered(ASKED_MAX).try_collect().await
}

async fn look_at(objects: &Objects, named: NamedObject) -> Result<(NamedObject, Found), ObjectError> {
    let found = match objects.length(&named.object).await? {
        None => Found::Missing,
        Some(length) if i64::try_from(length) == Ok(named.bytes_len) => Found::There,
        Some(_) => Found::Other,
    };
    Ok((named, found))
}
