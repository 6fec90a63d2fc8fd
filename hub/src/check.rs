//! Async: `muster-hub check`: reads what `serve` would read, says what would stop it, and changes nothing.

use std::{collections::BTreeMap, net::SocketAddr};

use aws_lc_rs::digest::{SHA256, digest};
use muster_certs::{issued, material::utc_text};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
    ids::DeviceId,
};

use crate::{
    config::Config,
    control,
    objects::{ObjectError, Objects},
    policy,
    restore::{self, Found},
    running, serve,
    store::{Checked, NamedObject, Store, StoreError},
};

/// Rows of pictures that are read together.
const ROWS_MAX: i64 = 500;
/// Devices that are named; the others are counted.
const DEVICES_NAMED_MAX: usize = 10;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    /// What is well, or what would stop `serve`.
    pub said: Result<String, Complaint>,
}

/// How closely the pictures are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pictures {
    /// Each is there with its length.
    Lengths,
    /// Each is read, and has its digest.
    Digests,
}

/// Looks at everything, whatever is wrong with one of them.
pub async fn check(config: &Config, pictures: Pictures) -> Vec<Finding> {
    let finding = |what, said| Finding { what, said };
    vec![
        finding("certificate", certificate(config)),
        finding("web certificate", web_certificate(config)),
        finding("signature", signature(config)),
        finding("policy", policy_file(config)),
        finding("issued devices", list(config)),
        finding("database", database(config).await),
        finding("pictures", look_at_pictures(config, pictures).await),
        finding("mesh port", port(config.mesh.listen, "mesh.listen").await),
        finding("web port", port(config.web.listen, "web.listen").await),
        finding("status port", port(config.status.listen, "status.listen").await),
    ]
}

fn certificate(config: &Config) -> Result<String, Complaint> {
    let keys = running::keys(config)?;
    // It would not stop `serve`, only every relay.
    Ok(match keys.check_time(SystemClock::new().now().wall_ms) {
        Ok(()) => format!("{}", keys.identity()),
        Err(error) => format!("{}, but no relay will connect: {error}", keys.identity()),
    })
}

fn web_certificate(config: &Config) -> Result<String, Complaint> {
    // One that has ended would not stop `serve` either.
    Ok(match running::web_keys(config)? {
        None => "none: the web port speaks plain HTTP".to_owned(),
        Some(keys) => match keys.check_time(SystemClock::new().now().wall_ms) {
            Ok(()) => format!("good until {}", utc_text(keys.not_after_ms())),
            Err(error) => format!("people will be warned off: {error}"),
        },
    })
}

fn signature(config: &Config) -> Result<String, Complaint> {
    control::check(config, &*running::keys(config)?, SystemClock::new().now().wall_ms)
}

fn policy_file(config: &Config) -> Result<String, Complaint> {
    let policy = policy::check(&config.policy)?;
    Ok(format!("{}, kept for {} days", policy.hours, policy.retention_days))
}

fn list(config: &Config) -> Result<String, Complaint> {
    if !config.issued.exists() {
        return Ok("none yet".into());
    }
    let devices = issued::read(&config.issued)
        .map_err(|error| Complaint::new(format!("The list of issued devices can't be used ({error})"), "Put it right"))?;
    Ok(format!("{} lines", devices.len()))
}

/// Taken for a moment, and let go.
async fn port(listen: SocketAddr, field: &str) -> Result<String, Complaint> {
    serve::bind(listen, field).await?;
    Ok(format!("{listen} is free"))
}

async fn database(config: &Config) -> Result<String, Complaint> {
    let Checked { version, newest, migrates_itself } = Store::check(&config.store.url).await?;
    Ok(match version {
        None => "not there yet; `serve` makes it".into(),
        Some(version) if version == newest => format!("version {version}, sound"),
        Some(version) if migrates_itself => format!("version {version}, sound; `serve` brings it to {newest}"),
        Some(version) => {
            let what = format!("the database has version {version}, and this program needs {newest}");
            return Err(Complaint::new(what, "Run `muster-hub migrate`"));
        }
    })
}

/// What is wrong with pictures: how many of each, and of which devices.
#[derive(Default)]
struct Wrong {
    looked: u64,
    missing: u64,
    other_length: u64,
    other_digest: u64,
    devices: BTreeMap<DeviceId, u64>,
}

/// Why the pictures can't all be looked at.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// Nothing that is wrong here would stop `serve`, but for an address that can't be used.
async fn look_at_pictures(config: &Config, closely: Pictures) -> Result<String, Complaint> {
    // What is wrong with the database is said there.
    let Ok(Some(store)) = Store::look(&config.store.url).await else { return Ok("not looked at without a database".into()) };
    let said = match store.objects_behind("", 1).await {
        Ok(first) if first.is_empty() => Ok("none yet".into()),
        _ => match Objects::look(&config.objects()) {
            Ok(objects) => Ok(match look_at_each(&store, &objects, closely).await {
                Ok(wrong) => wrong.said(),
                Err(error) => format!("not all looked at: {error}"),
            }),
            Err(complaint) => Err(complaint),
        },
    };
    store.close().await;
    said
}

async fn look_at_each(store: &Store, objects: &Objects, closely: Pictures) -> Result<Wrong, LookError> {
    objects.belongs_to(store.id().await?).await?;
    let (mut after, mut wrong) = (String::new(), Wrong::default());
    loop {
        let named = store.objects_behind(&after, ROWS_MAX).await?;
        let Some(last) = named.last() else { return Ok(wrong) };
        after.clone_from(&last.object);
        for (named, found) in restore::look(objects, named).await? {
            wrong.looked += 1;
            let count = match found {
                Found::There if closely == Pictures::Lengths || has_its_digest(objects, &named).await? => continue,
                Found::There => &mut wrong.other_digest,
                Found::Missing => &mut wrong.missing,
                Found::Other => &mut wrong.other_length,
            };
            *count += 1;
            *wrong.devices.entry(named.device).or_default() += 1;
        }
    }
}

async fn has_its_digest(objects: &Objects, named: &NamedObject) -> Result<bool, ObjectError> {
    Ok(digest(&SHA256, &objects.get(&named.object).await?).as_ref() == named.sha256)
}

impl Wrong {
    fn said(&self) -> String {
        let Wrong { looked, missing, other_length, other_digest, devices } = self;
        if devices.is_empty() {
            return format!("{looked}, each with its object");
        }
        let kinds = [(missing, "without their object"), (other_length, "with one of another length"), (other_digest, "with other content")];
        let kinds: Vec<_> = kinds.iter().filter(|(count, _)| **count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let named: Vec<_> = devices.iter().take(DEVICES_NAMED_MAX).map(|(device, count)| format!("{device} ({count})")).collect();
        let more = match devices.len().saturating_sub(DEVICES_NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let ask = if *missing > 0 { "; `serve --restored` asks for the missing ones again" } else { "" };
        format!("{looked}, but {}: of {}{more}{ask}", kinds.join(", "), named.join(", "))
    }
}
