//! Blocking: `muster-certs doctor`.

use anyhow::{Result, bail};
use muster_certs::{Ca, doctor, doctor::KeyOf, ledger};

use super::Members;
use super::answer::{Found, Noted};

/// Fewer characters of a key identifier than this name none.
const KEY_CHARS_MIN: usize = 8;

pub(crate) fn doctor(ca: &Ca, members: &Members) -> Result<Found> {
    let report = members.read(ca)?;
    let now_ms = ca.now_ms()?;
    if let Some(report) = &report {
        report.check_age(now_ms)?;
    }
    let holders = ca.holders(report.as_ref())?;
    let backups = ledger::backups(&ca.backup_path())?;
    Ok(Found(doctor::checkup(ca.domain(), ca.state(), report.as_ref(), &holders, &backups, now_ms)))
}

/// Writes down that these keys have a backup.
pub(crate) fn note_backup(ca: &Ca, members: &Members, named: &str) -> Result<Noted> {
    let report = members.read(ca)?;
    let at_ms = ca.now_ms()?;
    let is_meant = |key: &doctor::Key| match named {
        "root" => key.of == KeyOf::Root,
        "issuing" => key.of == KeyOf::Issuing,
        "hub" => key.of == KeyOf::Hub,
        other => other.len() >= KEY_CHARS_MIN && key.key.starts_with(other),
    };
    let keys: Vec<doctor::Key> = doctor::keys(ca.state(), report.as_ref()).into_iter().filter(is_meant).collect();
    if keys.is_empty() {
        if report.is_none() {
            bail!(
                "nothing is known of such a key; say root, issuing, or a key as the doctor names it, and for the hub's own also --members FILE"
            );
        }
        bail!("neither this CA nor the report knows such a key; say root, issuing, hub, or a key as the doctor names it");
    }
    let mut backups = ledger::backups(&ca.backup_path())?;
    for key in &keys {
        backups.keys.insert(key.key.clone(), at_ms);
    }
    ledger::write_backups(&ca.backup_path(), &backups)?;
    Ok(Noted { at_ms, keys })
}
