//! Blocking: which device was issued to whom, `issued.jsonl`: one line per certificate of an agent.
//!
//! ```text
//! {"device":"0190b7e8c4d27d30a5f1c2d3e4f50617","site":"oslo","person":"kari.n","name":"Kari N.","not_after_ms":1767225600000}
//! ```
//!
//! `muster-certs` appends, the hub reads again whenever the file changes. A device belongs to one
//! person for life: lines of the same device must agree on the person, and the last one is in force.
//! Fields this version doesn't know are ignored, so an older hub reads a newer list; a missing or
//! wrong field is an error that names the line. A last line without a line feed that doesn't read
//! is an append under way (or cut off by a crash before its device id was given out): it is left
//! out, and the next append removes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};
use crate::identity::{self, IdentityError};
use crate::lines;

/// The longest person key, in bytes.
pub const PERSON_BYTES_MAX: usize = 64;
/// The longest display name, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// One line: this device is this person's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The device id in the certificate.
    pub device: [u8; 16],
    /// Where the device belongs.
    pub site: String,
    /// The person's stable key, `[a-z0-9._@-]{1,64}`.
    pub person: String,
    /// The person's name for display: 1 to 100 characters, no control characters.
    pub name: String,
    /// End of the certificate, milliseconds UTC.
    pub not_after_ms: i64,
}

impl Issued {
    /// Refuses what must not stand in the list.
    pub fn check(&self) -> Result<(), FieldError> {
        identity::check_label(&self.site)?;
        check_person(&self.person)?;
        check_name(&self.name)
    }
}

/// A field of a line that must not be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The device or the site.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The person key.
    #[error("a person key has 1 to 64 of the characters a-z, 0-9, and . _ @ -")]
    Person,
    /// The display name.
    #[error("a display name has 1 to 100 characters and no control characters")]
    Name,
}

/// Why the list can't be read or added to.
#[derive(Debug, thiserror::Error)]
pub enum IssuedError {
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
    /// Two lines give one device to two people.
    #[error(
        "{path}, line {line}: the device of line {first} belongs to another person; a device belongs to one person for life, so issue a new certificate"
    )]
    OtherPerson {
        /// The file.
        path: PathBuf,
        /// The later line, from 1.
        line: usize,
        /// The earlier line, from 1.
        first: usize,
    },
    /// An entry to add that must not stand in the list.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Reads the whole list, in the file's order. Before the first agent there is no file
/// ([`FileError::Missing`]).
pub fn read(path: &Path) -> Result<Vec<Issued>, IssuedError> {
    parse(path, &files::read(path)?)
}

/// Adds lines and makes them durable: all are on the disk when this returns. Two programs may
/// append at the same time. The file is made, owner-only, if it isn't there.
pub fn append(path: &Path, entries: &[Issued]) -> Result<(), IssuedError> {
    let mut texts = Vec::with_capacity(entries.len());
    for entry in entries {
        entry.check()?;
        texts.push(line_of(entry).map_err(|e| files::write_error(path, e.into()))?);
    }
    Ok(lines::append(path, &texts, |text| parse_line(text).is_ok())?)
}

/// Refuses what isn't a person key.
pub fn check_person(text: &str) -> Result<(), FieldError> {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@-".contains(&b);
    if (1..=PERSON_BYTES_MAX).contains(&text.len()) && text.bytes().all(inside) { Ok(()) } else { Err(FieldError::Person) }
}

/// Refuses what isn't a display name. Marks that turn the direction of writing count as control
/// characters: they make one name look like another.
pub fn check_name(text: &str) -> Result<(), FieldError> {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let control = |c: char| c.is_control() || turns(c) || matches!(c, '\u{2028}' | '\u{2029}');
    let count = text.chars().count();
    if (1..=NAME_CHARS_MAX).contains(&count) && !text.trim().is_empty() && !text.chars().any(control) {
        Ok(())
    } else {
        Err(FieldError::Name)
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    device: String,
    site: String,
    person: String,
    name: String,
    not_after_ms: i64,
}

fn line_of(entry: &Issued) -> serde_json::Result<String> {
    serde_json::to_string(&Line {
        device: identity::device_text(&entry.device),
        site: entry.site.clone(),
        person: entry.person.clone(),
        name: entry.name.clone(),
        not_after_ms: entry.not_after_ms,
    })
}

fn parse(path: &Path, text: &str) -> Result<Vec<Issued>, IssuedError> {
    let read = lines::parse(text, parse_line).map_err(|(line, why)| IssuedError::Line { path: path.to_owned(), line, why })?;
    let mut owners: HashMap<[u8; 16], (usize, String)> = HashMap::new();
    for (line, entry) in &read {
        let (first, owner) = owners.entry(entry.device).or_insert_with(|| (*line, entry.person.clone()));
        if *owner != entry.person {
            return Err(IssuedError::OtherPerson { path: path.to_owned(), line: *line, first: *first });
        }
    }
    Ok(read.into_iter().map(|(_, entry)| entry).collect())
}

fn parse_line(raw: &str) -> Result<Issued, String> {
    let line: Line = serde_json::from_str(raw).map_err(|e| e.to_string())?;
    let entry = Issued {
        device: identity::parse_device(&line.device).map_err(|e| e.to_string())?,
        site: line.site,
        person: line.person,
        name: line.name,
        not_after_ms: line.not_after_ms,
    };
    entry.check().map_err(|e| e.to_string())?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8, person: &str) -> Issued {
        Issued {
            device: [n; 16],
            site: "oslo".into(),
            person: person.into(),
            name: "Kari \"K\" Nordmann, Øst".into(),
            not_after_ms: 1_767_225_600_000,
        }
    }

    fn list() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issued.jsonl");
        (dir, path)
    }

    #[test]
    fn what_was_appended_reads_back_in_order() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        append(&path, &[entry(2, "ola"), entry(3, "a.b_c-d@e")]).unwrap();
        let want = [entry(1, "kari"), entry(2, "ola"), entry(3, "a.b_c-d@e")];
        assert_eq!(read(&path).unwrap(), want);
    }

    #[test]
    fn the_format_is_the_golden_one() {
        let mut one = entry(0xab, "kari.n");
        one.name = "Kari N.".into();
        let golden = r#"{"device":"abababababababababababababababab","site":"oslo","person":"kari.n","name":"Kari N.","not_after_ms":1767225600000}"#;
        assert_eq!(line_of(&one).unwrap(), golden);
    }

    #[test]
    fn a_bad_line_is_named() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in [
            "{}",
            "rubbish",
            &good.trim().replace("kari", "Kari"),
            &good.trim().replace("0101", "01"),
            &good.trim().replace("oslo", "os lo"),
            &good.trim().replace("1767225600000", "\"soon\""),
        ] {
            std::fs::write(&path, format!("{good}{bad}\n{good}")).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_unknown_field_is_ignored() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        let newer = std::fs::read_to_string(&path).unwrap().replace('{', r#"{"team":7,"#);
        std::fs::write(&path, newer).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, "kari")]);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_the_next_append_removes_it() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{good}{}{}", &good[..40], "x".repeat(500))).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, "kari")]);
        append(&path, &[entry(2, "ola")]).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, "kari"), entry(2, "ola")]);
    }

    #[test]
    fn a_last_line_that_only_lacks_its_line_feed_is_kept() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, good.trim_end()).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, "kari")]);
        append(&path, &[entry(2, "ola")]).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1, "kari"), entry(2, "ola")]);
    }

    #[test]
    fn a_device_never_changes_its_person() {
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari"), entry(2, "ola"), entry(1, "kari")]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 3);
        append(&path, &[entry(1, "ola")]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(error, IssuedError::OtherPerson { line: 4, first: 1, .. }));
    }

    #[test]
    fn what_would_not_read_back_is_not_appended() {
        let (_dir, path) = list();
        for person in ["", "Kari", "kari n", "kari/../x", &"k".repeat(65)] {
            let error = append(&path, &[entry(1, person)]).unwrap_err();
            assert!(matches!(error, IssuedError::Field(FieldError::Person)));
        }
        for name in ["", "  ", "a\nb", "a\u{202e}b", "a\u{1b}[31m", &"n".repeat(101)] {
            let mut bad = entry(1, "kari");
            bad.name = name.to_owned();
            let error = append(&path, &[bad]).unwrap_err();
            assert!(matches!(error, IssuedError::Field(FieldError::Name)));
        }
        assert!(!path.exists());
    }

    #[test]
    fn two_issuers_at_once_lose_nothing() {
        let (_dir, path) = list();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let path = &path;
                scope.spawn(move || (0..10).for_each(|i| append(path, &[entry(n * 10 + i, "kari")]).unwrap()));
            }
        });
        assert_eq!(read(&path).unwrap().len(), 40);
    }

    #[test]
    fn the_list_is_owner_only() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, path) = list();
        append(&path, &[entry(1, "kari")]).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }
}
