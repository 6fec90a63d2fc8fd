//! Async: proof of what is kept: the records are made again from their rows, and hashed as their maker hashed them.

use std::sync::Arc;

use muster_mesh::{
    ids::{DeviceId, SpoolId},
    record,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Route,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
};
use crate::{
    hub::Hub,
    store::{Answered, KeptNumber},
};

/// Numbers that one request asks for, over all its spools.
const NUMBERS_MAX: u64 = 10_000;
const SPOOLS_MAX: usize = 500;

pub fn routes(hub: &Arc<Hub>) -> Route {
    mount(hub, Operation::CheckSpools, check)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    spools: Vec<AskedSpool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedSpool {
    device: DeviceId,
    spool: SpoolId,
    first: u64,
    last: u64,
}

async fn check(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    call.only(&[])?;
    let asked: Asked = call.json()?;
    bounded(&asked)?;
    let mut spools = Vec::new();
    for asked in &asked.spools {
        let numbers = hub.store.kept_numbers(asked.device, asked.spool, asked.first, asked.last).await?;
        let numbers: Vec<Value> = numbers.iter().map(shown).collect();
        spools.push(json!({ "device": asked.device, "spool": asked.spool, "numbers": numbers }));
    }
    let about = About { device_id: None, whom: format!("{} spools", spools.len()) };
    Ok(Said::about(about, json!({ "spools": spools })))
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

fn shown(number: &KeptNumber) -> Value {
    let seq = number.seq;
    match &number.answered {
        Answered::Rows(records) => {
            let sha256: String = record::digest(records).iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "seq": seq, "verdict": "stored", "count": records.len(), "sha256": sha256 })
        }
        Answered::Verdict(verdict, reason) => json!({ "seq": seq, "verdict": verdict.name(), "reason": reason.name() }),
        Answered::Deleted => json!({ "seq": seq, "verdict": "deleted" }),
    }
}
