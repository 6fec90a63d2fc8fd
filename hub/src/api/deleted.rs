//! Async: what was deleted because its time was up. Counts only: nobody's data.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Route, devices,
    problem::ApiError,
    routes::{Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{hub::Hub, store::Deletion};

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 1_000;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::ListDeleted, list)
}

#[derive(Serialize, ToSchema)]
pub struct DeletedList {
    /// One per day, kind and limit, the newest day first.
    deleted: Vec<DeletedShown>,
}

#[derive(Serialize, ToSchema)]
pub struct DeletedShown {
    /// The last of that day.
    #[schema(format = DateTime)]
    at: Option<String>,
    /// A kind of record, or `title`, `batches`, `holds`, `dropped`; of those who joined `certificates`, `join_tokens`, `token_keys`, `denied`,
    /// `papers`, `held_versions`.
    kind: String,
    /// How many days it was kept.
    kept_days: i64,
    records: u64,
    /// Of pictures: gone from the object store as well.
    objects: u64,
}

async fn list(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let most = devices::limit(&call, PAGE, PAGE_MAX)?;
    let deleted = hub.store.deletions(most).await?.into_iter();
    let shown =
        |Deletion { at_ms, kind, days, records, objects }| DeletedShown { at: rfc3339(at_ms), kind, kept_days: days, records, objects };
    Said::plain(&DeletedList { deleted: deleted.map(shown).collect() })
}
