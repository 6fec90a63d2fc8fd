//! Async: proof of what is kept: the records are made again from their rows, and hashed as their maker hashed them.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use muster_mesh::{
    ids::{DeviceId, SpoolId},
    record::{self, Kind, Record},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Route,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
};
use crate::{
    hub::Hub,
    objects::ObjectError,
    store::{Answered, KeptNumber},
};

/// Numbers that one request asks for, over all its spools.
const NUMBERS_MAX: u64 = 10_000;
const SPOOLS_MAX: usize = 500;
/// Numbers whose pictures are fetched at the same time.
const FETCHED_MAX: usize = 8;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::CheckSpools, check)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    spools: Vec<AskedSpool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskedSpool {
    #[schema(value_type = String)]
    device: DeviceId,
    #[schema(value_type = String)]
    spool: SpoolId,
    first: u64,
    last: u64,
}

#[derive(Serialize, ToSchema)]
pub struct CheckedList {
    spools: Vec<CheckedSpool>,
}

#[derive(Serialize, ToSchema)]
pub struct CheckedSpool {
    #[schema(value_type = String)]
    device: DeviceId,
    #[schema(value_type = String)]
    spool: SpoolId,
    /// Those that are stored.
    numbers: Vec<CheckedNumber>,
}

#[derive(Serialize, ToSchema)]
pub struct CheckedNumber {
    seq: u64,
    /// `stored`, `expired` (of some kinds, or since), `held`, `refused`, `erased`, `deleted`, or `object_missing`: a picture's row is here, and
    /// its picture isn't.
    verdict: &'static str,
    /// Records that are left of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
    /// Over all its records as they were sent, made again from the rows and the objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

async fn check(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let asked: Asked = call.json()?;
    bounded(&asked)?;
    let mut spools = Vec::new();
    for AskedSpool { device, spool, first, last } in asked.spools {
        let kept = hub.store.kept_numbers(device, spool, first, last).await?;
        let checking: Vec<_> = kept.into_iter().map(|number| checked(&hub, number).boxed()).collect();
        let numbers = stream::iter(checking).buffered(FETCHED_MAX).try_collect().await?;
        spools.push(CheckedSpool { device, spool, numbers });
    }
    let about = About { device_id: None, whom: format!("{} spools", spools.len()) };
    Said::about(about, &CheckedList { spools })
}

fn bounded(asked: &Asked) -> Result<(), ApiError> {
    if asked.spools.len() > SPOOLS_MAX {
        return Err(ApiError::Field("spools", format!("more than {SPOOLS_MAX}")));
    }
    let count = |spool: &AskedSpool| spool.last.checked_sub(spool.first).and_then(|more| more.checked_add(1));
    let total = asked.spools.iter().try_fold(0u64, |total, spool| total.checked_add(count(spool)?));
    match total {
        None => Err(ApiError::Field("last", "it comes before first".into())),
        Some(total) if total > NUMBERS_MAX => Err(ApiError::Field("spools", format!("more than {NUMBERS_MAX} numbers"))),
        Some(_) => Ok(()),
    }
}

async fn checked(hub: &Hub, number: KeptNumber) -> Result<CheckedNumber, ApiError> {
    let KeptNumber { seq, answered, objects } = number;
    let plain = |verdict, count| CheckedNumber { seq, verdict, count, sha256: None, reason: None };
    Ok(match answered {
        Answered::Rows(records) => {
            let count = Some(records.len());
            match with_bytes(hub, records, &objects).await {
                Ok(records) => {
                    let sha256 = record::digest(&records).iter().map(|byte| format!("{byte:02x}")).collect();
                    CheckedNumber { sha256: Some(sha256), ..plain("stored", count) }
                }
                Err(ObjectError::Missing) => plain("object_missing", count),
                Err(error) => return Err(error.into()),
            }
        }
        Answered::Expired(left) => plain("expired", Some(left)),
        Answered::Verdict(verdict, reason) => CheckedNumber { reason: Some(reason.name()), ..plain(verdict.name(), None) },
        Answered::Deleted => plain("deleted", None),
    })
}

/// The records with their pictures' bytes.
async fn with_bytes(hub: &Hub, mut records: Vec<Record>, objects: &[String]) -> Result<Vec<Record>, ObjectError> {
    let mut objects = objects.iter();
    for record in &mut records {
        let Kind::Screenshot(picture) = &mut record.kind else { continue };
        picture.bytes = hub.objects.get(objects.next().ok_or(ObjectError::Missing)?).await?.to_vec();
    }
    Ok(records)
}
