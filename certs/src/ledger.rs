//! Blocking: what the CA's folder remembers: the certificates that were issued into files (`certificates.jsonl`), who was revoked
//! (`revoked.jsonl`), and which keys have a backup (`backup.json`).
//!
//! ```text
//! {"name":"hub/hub-1","serial":"5d…","issuer_key":"0a1b…","bundle_version":1,"issued_ms":1800000000000,"not_after_ms":1807776000000}
//! {"name":"site/oslo/relay/oslo-1","issued_before_ms":1800000000000,"at_ms":1800000000000,"why":"stolen"}
//! ```
//!
//! What the hub signs for those who enrol stands in its own database, not here. Fields that this version doesn't know are ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};
use crate::identity::Name;
use crate::lines;
use crate::members::Holder;

/// The longest reason for a revocation, in characters.
pub const WHY_CHARS_MAX: usize = 200;

/// A certificate that was issued into a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Who: `hub/hub-1`.
    pub name: String,
    /// Lower-case hex.
    pub serial: String,
    /// Which issuing CA signed it: its key identifier, lower-case hex.
    pub issuer_key: String,
    /// The version of the roots' bundle that was given with it.
    pub bundle_version: u64,
    /// Milliseconds UTC.
    pub issued_ms: i64,
    /// Its end, milliseconds UTC.
    pub not_after_ms: i64,
    /// It lies beside the one in use, whose place it is about to take: until it is listed again without this, either may be in use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
}

/// Somebody whose certificates count no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Who.
    pub name: String,
    /// Certificates that were issued up to this moment, milliseconds UTC.
    pub issued_before_ms: i64,
    /// When it was revoked, milliseconds UTC.
    pub at_ms: i64,
    /// Why, in somebody's words.
    pub why: String,
}

/// Which keys have a backup, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backups {
    /// Key identifier, and when somebody said so, milliseconds UTC.
    pub keys: BTreeMap<String, i64>,
}

/// Why a list can't be read or added to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line that isn't what a line is.
    #[error("{path}, line {line}: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A reason that must not stand in the list.
    #[error("a reason has 1 to {WHY_CHARS_MAX} characters and no control characters")]
    Why,
}

impl Certificate {
    /// Who holds it.
    pub fn holder(&self) -> Option<Holder> {
        Some(Holder {
            name: self.name.parse().ok()?,
            bundle: Some(self.bundle_version),
            issuer_key: Some(self.issuer_key.clone()),
            serial: Some(self.serial.clone()),
            issued_ms: Some(self.issued_ms),
            not_after_ms: Some(self.not_after_ms),
            enrolled: false,
            denied: false,
        })
    }
}

/// Reads the certificates, in the file's order; none before the first.
pub fn certificates(path: &Path) -> Result<Vec<Certificate>, LedgerError> {
    read(path, |text| {
        let line: Certificate = serde_json::from_str(text).map_err(|e| e.to_string())?;
        check_name(&line.name)?;
        Ok(line)
    })
}

/// Of each name the certificates that may be in use: the last one listed, and those beside it since.
pub fn in_use(certificates: &[Certificate]) -> BTreeMap<&str, Vec<&Certificate>> {
    let mut in_use: BTreeMap<&str, Vec<&Certificate>> = BTreeMap::new();
    for certificate in certificates {
        let of_name = in_use.entry(&certificate.name).or_default();
        if !certificate.beside {
            of_name.clear();
        }
        of_name.push(certificate);
    }
    in_use
}

/// Adds certificates; all are on the disk when this returns.
pub fn append_certificates(path: &Path, certificates: &[Certificate]) -> Result<(), LedgerError> {
    append(path, certificates)
}

/// Reads who was revoked, in the file's order; nobody before the first.
pub fn revoked(path: &Path) -> Result<Vec<Revoked>, LedgerError> {
    read(path, |text| {
        let line: Revoked = serde_json::from_str(text).map_err(|e| e.to_string())?;
        check_name(&line.name)?;
        Ok(line)
    })
}

/// Adds somebody.
pub fn append_revoked(path: &Path, revoked: &Revoked) -> Result<(), LedgerError> {
    let control = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    let count = revoked.why.chars().count();
    if !(1..=WHY_CHARS_MAX).contains(&count) || revoked.why.chars().any(control) {
        return Err(LedgerError::Why);
    }
    append(path, std::slice::from_ref(revoked))
}

/// Reads which keys have a backup.
pub fn backups(path: &Path) -> Result<Backups, LedgerError> {
    match files::read(path) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|e| LedgerError::Line { path: path.to_owned(), line: e.line(), why: e.to_string() })
        }
        Err(FileError::Missing(_)) => Ok(Backups::default()),
        Err(other) => Err(other.into()),
    }
}

/// Writes it whole.
pub fn write_backups(path: &Path, backups: &Backups) -> Result<(), LedgerError> {
    let text = serde_json::to_string(backups).map_err(|e| files::write_error(path, e.into()))?;
    Ok(files::write_public(path, format!("{text}\n").as_bytes())?)
}

fn check_name(name: &str) -> Result<(), String> {
    name.parse::<Name>().map(drop).map_err(|e| e.to_string())
}

fn read<T>(path: &Path, line: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, LedgerError> {
    let text = match files::read(path) {
        Ok(text) => text,
        Err(FileError::Missing(_)) => return Ok(Vec::new()),
        Err(other) => return Err(other.into()),
    };
    let read = lines::parse(&text, line).map_err(|(line, why)| LedgerError::Line { path: path.to_owned(), line, why })?;
    Ok(read.into_iter().map(|(_, entry)| entry).collect())
}

fn append<T: Serialize + for<'a> Deserialize<'a>>(path: &Path, entries: &[T]) -> Result<(), LedgerError> {
    let texts: Result<Vec<String>, _> = entries.iter().map(serde_json::to_string).collect();
    let texts = texts.map_err(|e| files::write_error(path, e.into()))?;
    Ok(lines::append(path, &texts, |text| serde_json::from_str::<T>(text).is_ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> Certificate {
        Certificate {
            name: name.into(),
            serial: "5d".into(),
            issuer_key: "0a1b".into(),
            bundle_version: 1,
            issued_ms: 1_800_000_000_000,
            not_after_ms: 1_807_776_000_000,
            beside: false,
        }
    }

    #[test]
    fn the_formats_are_the_golden_ones() {
        let golden = r#"{"name":"hub/hub-1","serial":"5d","issuer_key":"0a1b","bundle_version":1,"issued_ms":1800000000000,"not_after_ms":1807776000000}"#;
        assert_eq!(serde_json::to_string(&certificate("hub/hub-1")).unwrap(), golden);
        let beside = Certificate { beside: true, ..certificate("hub/hub-1") };
        assert_eq!(serde_json::to_string(&beside).unwrap(), golden.replace('}', r#","beside":true}"#));
        let revoked = Revoked { name: "hub/hub-1".into(), issued_before_ms: 1, at_ms: 2, why: "stolen".into() };
        let golden = r#"{"name":"hub/hub-1","issued_before_ms":1,"at_ms":2,"why":"stolen"}"#;
        assert_eq!(serde_json::to_string(&revoked).unwrap(), golden);
    }

    #[test]
    fn what_lies_beside_counts_with_what_it_is_to_replace_until_it_has() {
        let of = |serial: &str, beside: bool| Certificate { serial: serial.into(), beside, ..certificate("hub/hub-1") };
        let serials = |lines: &[Certificate]| -> Vec<String> { in_use(lines).values().flatten().map(|line| line.serial.clone()).collect() };
        let lines = [of("1", false), of("2", true), of("3", true), of("3", false), of("4", true)];
        assert_eq!(serials(&lines[..1]), ["1"]);
        assert_eq!(serials(&lines[..2]), ["1", "2"]);
        // The second try of a renewal that stopped.
        assert_eq!(serials(&lines[..3]), ["1", "2", "3"]);
        assert_eq!(serials(&lines[..4]), ["3"]);
        assert_eq!(serials(&lines), ["3", "4"]);
    }

    #[test]
    fn what_was_appended_reads_back_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificates.jsonl");
        assert_eq!(certificates(&path).unwrap(), []);
        append_certificates(&path, &[certificate("hub/hub-1"), certificate("control/1")]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{good}{}", &good[..30])).unwrap();
        assert_eq!(certificates(&path).unwrap().len(), 2);
        append_certificates(&path, &[certificate("hub/hub-2")]).unwrap();
        assert_eq!(certificates(&path).unwrap(), [certificate("hub/hub-1"), certificate("control/1"), certificate("hub/hub-2")]);
        std::fs::write(&path, format!("{good}{}\n", good.lines().next().unwrap().replace("hub-1", "../x"))).unwrap();
        assert!(matches!(certificates(&path), Err(LedgerError::Line { line: 3, .. })));
    }

    #[test]
    fn a_reason_is_a_line_of_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.jsonl");
        let revoked = |why: &str| Revoked { name: "hub/hub-1".into(), issued_before_ms: 1, at_ms: 1, why: why.into() };
        for bad in ["", "a\nb", "\u{1b}[2J", "\u{202e}x", &"w".repeat(201)] {
            assert!(matches!(append_revoked(&path, &revoked(bad)), Err(LedgerError::Why)), "{bad:?}");
        }
        append_revoked(&path, &revoked("lost in a taxi")).unwrap();
        assert_eq!(super::revoked(&path).unwrap(), [revoked("lost in a taxi")]);
    }
}
