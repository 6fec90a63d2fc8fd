//! Blocking: a list in a file, one line per entry, that only ever grows.
//!
//! Two programs may append at the same time. A last line without a line feed that doesn't read is an append under way, or one that a crash cut
//! off before anybody was told of it: readers leave it out, and the next append removes it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::files::{self, FileError};

/// Adds lines (without their line feeds) and makes them durable: all are on the disk when this returns. The file is made, owner-only, if it
/// isn't there. `reads` says whether a line that lacks its line feed is a whole one.
pub(crate) fn append(path: &Path, lines: &[String], reads: impl Fn(&str) -> bool) -> Result<(), FileError> {
    let fail = |e| files::write_error(path, e);
    let mut text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(fail)?;
    // Held until the file is closed, so that two issuers don't write over each other.
    file.lock().map_err(fail)?;
    let end = end_of_last_whole_line(&mut file, reads).map_err(fail)?;
    file.set_len(end.offset).map_err(fail)?;
    file.seek(SeekFrom::Start(end.offset)).map_err(fail)?;
    if end.lacks_line_feed {
        text.insert(0, '\n');
    }
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    files::sync_folder_of(path)
}

/// Reads the lines of a text, each with its number from 1; stops at the first that is wrong.
pub(crate) fn parse<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<(usize, T)>, (usize, String)> {
    let mut entries = Vec::new();
    for (index, raw) in text.split_inclusive('\n').enumerate() {
        if raw.trim().is_empty() {
            continue;
        }
        match read(raw) {
            Ok(entry) => entries.push((index + 1, entry)),
            Err(_) if !raw.ends_with('\n') => break,
            Err(why) => return Err((index + 1, why)),
        }
    }
    Ok(entries)
}

struct End {
    offset: u64,
    lacks_line_feed: bool,
}

/// Where the next line goes: behind the last line that is whole, or that at least reads.
fn end_of_last_whole_line(file: &mut File, reads: impl Fn(&str) -> bool) -> std::io::Result<End> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let start = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let rest = &bytes[start..];
    let reads = std::str::from_utf8(rest).is_ok_and(reads);
    let keep = if reads { bytes.len() } else { start };
    Ok(End { offset: keep as u64, lacks_line_feed: reads })
}
