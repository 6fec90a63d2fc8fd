//! Blocking: `muster-certs doctor`.

use anyhow::{Result, bail};
use muster_certs::rotation::Kind;
use muster_certs::{Ca, doctor, ledger};

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
    Ok(Found(doctor::checkup(ca.domain(), ca.state(), &holders, &backups, now_ms)))
}

/// Writes down that these keys have a backup.
pub(crate) fn note_backup(ca: &Ca, named: &str) -> Result<Noted> {
    let at_ms = ca.now_ms()?;
    let is_meant = |key: &doctor::Key| match named {
        "root" => key.of == Kind::Root,
        "issuing" => key.of == Kind::Issuing,
        other => other.len() >= KEY_CHARS_MIN && key.key.starts_with(other),
    };
    let keys: Vec<doctor::Key> = doctor::keys(ca.state()).into_iter().filter(is_meant).collect();
    if keys.is_empty() {
        bail!("no key of this CA is named so; say root, issuing, or a key as muster-certs rotate status shows it");
    }
    let mut backups = ledger::backups(&ca.backup_path())?;
    for key in &keys {
        backups.keys.insert(key.key.clone(), at_ms);
    }
    ledger::write_backups(&ca.backup_path(), &backups)?;
    Ok(Noted { at_ms, keys })
}
