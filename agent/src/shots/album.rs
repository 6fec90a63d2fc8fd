//! Blocking: the pictures of the last two days, for the person at this computer: exactly the bytes that were sent, never any other.
//!
//! ```text
//! <state>/shots/<number>.shot        one line of JSON about it, then the picture's bytes; owner only
//! <state>/shots/<number>.webp .jpg   a copy that the person had opened; goes with it
//! ```
//!
//! A picture is put here when it gets its number in the queue: what was thrown away before was never here. Nothing depends on it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use muster_mesh::{
    ids::SpoolId,
    record::{Area, Kind, PictureFormat, Record, Screenshot, Why},
};
use serde::{Deserialize, Serialize};

use super::camera::PICTURE_BYTES_MAX;

const FOLDER: &str = "shots";
/// How long a picture stays.
const KEPT_MS: u64 = 48 * 3_600 * 1_000;
/// All of them together: two days of detailed logs of several monitors; of pictures every minute the oldest go first.
pub const ALBUM_BYTES_MAX: u64 = 64 << 20;
/// What is listed fits an answer on the control socket.
const PICTURES_MAX: usize = 4_096;
/// The line of JSON.
const LINE_BYTES_MAX: usize = 4 << 10;

/// One picture, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    pub number: u64,
    /// Milliseconds UTC.
    pub at_ms: i64,
    /// A detailed log, else a picture at an interval.
    pub detailed_log: bool,
    pub active_window: bool,
    pub part: u8,
    pub parts: u8,
    pub width: u32,
    pub height: u32,
    pub jpeg: bool,
    pub blurred: bool,
    pub bytes: u64,
    /// Where it is in the queue.
    pub spool: SpoolId,
    pub seq: u64,
}

/// The folder.
#[derive(Debug)]
pub struct Album {
    folder: PathBuf,
    bytes_max: u64,
    /// By number: when, and how many bytes.
    shots: BTreeMap<u64, (i64, u64)>,
    next: u64,
}

impl Album {
    /// Below the state folder.
    pub fn open(state: &Path, bytes_max: u64) -> io::Result<Album> {
        let folder = state.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut album = Album { folder, bytes_max, shots: BTreeMap::new(), next: 1 };
        for entry in fs::read_dir(&album.folder)? {
            let path = entry?.path();
            if let Some(number) = number_of(&path) {
                album.next = album.next.max(number + 1);
            }
            match shot(&path) {
                Some(shot) => {
                    album.shots.insert(shot.number, (shot.at_ms, shot.bytes));
                }
                // Half written by a kill.
                None if path.extension().is_some_and(|kind| kind == "shot" || kind == "new") => fs::remove_file(&path)?,
                None => {}
            }
        }
        Ok(album)
    }

    /// What a batch holds of pictures, as it gets its number.
    pub fn note(&mut self, spool: SpoolId, seq: u64, records: &[Record], now_ms: i64) -> io::Result<()> {
        for record in records {
            if let Kind::Screenshot(screenshot) = &record.kind {
                self.add(spool, seq, record.at, screenshot)?;
            }
        }
        self.sweep(now_ms)
    }

    fn add(&mut self, spool: SpoolId, seq: u64, at_ms: i64, screenshot: &Screenshot) -> io::Result<()> {
        let shot = Shot::of(self.next, spool, seq, at_ms, screenshot);
        let name = format!("{:08}", shot.number);
        let new = self.folder.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut line = serde_json::to_vec(&shot)?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.write_all(&screenshot.bytes)?;
        fs::rename(&new, self.folder.join(format!("{name}.shot")))?;
        self.shots.insert(shot.number, (at_ms, shot.bytes));
        self.next += 1;
        Ok(())
    }

    /// Lets go of what is older than two days, and of the oldest beyond the budget. By a clock that was set, also of what lies ahead.
    pub fn sweep(&mut self, now_ms: i64) -> io::Result<()> {
        let old: Vec<u64> =
            self.shots.iter().filter(|(_, (at_ms, _))| now_ms.abs_diff(*at_ms) > KEPT_MS).map(|(number, _)| *number).collect();
        for number in old {
            self.remove(number)?;
        }
        while self.bytes() > self.bytes_max || self.shots.len() > PICTURES_MAX {
            let Some(oldest) = self.shots.keys().next().copied() else { break };
            self.remove(oldest)?;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.shots.values().map(|(_, bytes)| bytes).sum()
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        for kind in ["shot", "webp", "jpg"] {
            match fs::remove_file(self.folder.join(format!("{number:08}.{kind}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.shots.remove(&number);
        Ok(())
    }
}

impl Shot {
    fn of(number: u64, spool: SpoolId, seq: u64, at_ms: i64, screenshot: &Screenshot) -> Shot {
        Shot {
            number,
            at_ms,
            detailed_log: screenshot.why == Why::DetailedLog,
            active_window: screenshot.area == Area::ActiveWindow,
            part: screenshot.part,
            parts: screenshot.parts,
            width: screenshot.width,
            height: screenshot.height,
            jpeg: screenshot.format == PictureFormat::Jpeg,
            blurred: screenshot.blurred,
            bytes: screenshot.bytes.len() as u64,
            spool,
            seq,
        }
    }

    /// How files of its format end.
    pub fn extension(&self) -> &'static str {
        if self.jpeg { "jpg" } else { "webp" }
    }
}

/// What lies below a state folder, the oldest first.
pub fn list(state: &Path) -> io::Result<Vec<Shot>> {
    let entries = match fs::read_dir(state.join(FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut shots: Vec<Shot> = entries.filter_map(|entry| shot(&entry.ok()?.path())).collect();
    shots.sort_by_key(|shot| shot.number);
    Ok(shots)
}

/// One picture with its bytes. None: it isn't here, or not any more.
pub fn picture(state: &Path, number: u64) -> io::Result<Option<(Shot, Vec<u8>)>> {
    let path = state.join(FOLDER).join(format!("{number:08}.shot"));
    let Some(shot) = shot(&path) else { return Ok(None) };
    let mut file = BufReader::new(File::open(path)?);
    file.read_until(b'\n', &mut Vec::new())?;
    let mut bytes = Vec::new();
    file.take(PICTURE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 == shot.bytes).then_some((shot, bytes)))
}

/// Where a copy lies that the person opens; it goes with the picture.
pub fn opened(state: &Path, shot: &Shot) -> PathBuf {
    state.join(FOLDER).join(format!("{:08}.{}", shot.number, shot.extension()))
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// None: it is no picture, or can't be understood.
fn shot(path: &Path) -> Option<Shot> {
    let number = number_of(path).filter(|_| path.extension().is_some_and(|kind| kind == "shot"))?;
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?.take(LINE_BYTES_MAX as u64)).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice::<Shot>(&line).ok().filter(|shot| shot.number == number)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SPOOL: SpoolId = SpoolId([9; 16]);
    const HOUR_MS: i64 = 3_600_000;

    fn picture_of(at: i64, bytes: usize) -> Record {
        let screenshot = Screenshot {
            area: Area::Monitor,
            width: 1_280,
            height: 720,
            format: PictureFormat::Webp,
            blurred: true,
            why: Why::DetailedLog,
            sha256: [0; 32],
            group: [1; 16],
            part: 0,
            parts: 1,
            bytes: vec![b'\n'; bytes],
        };
        Record { at, kind: Kind::Screenshot(screenshot) }
    }

    fn numbers(state: &Path) -> Vec<u64> {
        list(state).unwrap().iter().map(|shot| shot.number).collect()
    }

    #[test]
    fn a_picture_is_listed_and_given_back_as_it_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut album = Album::open(dir.path(), ALBUM_BYTES_MAX).unwrap();
        album.note(SPOOL, 7, &[picture_of(5, 300)], 5).unwrap();
        let listed = list(dir.path()).unwrap();
        assert_eq!((listed.len(), listed[0].number, listed[0].seq, listed[0].bytes, listed[0].blurred), (1, 1, 7, 300, true));
        assert_eq!(picture(dir.path(), 1).unwrap(), Some((listed[0].clone(), vec![b'\n'; 300])));
        assert_eq!(picture(dir.path(), 2).unwrap(), None);
        for (path, mode) in [("shots", 0o700), ("shots/00000001.shot", 0o600)] {
            assert_eq!(fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777, mode, "{path}");
        }
        drop(album);
        let mut again = Album::open(dir.path(), ALBUM_BYTES_MAX).unwrap();
        again.note(SPOOL, 8, &[picture_of(6, 1)], 6).unwrap();
        assert_eq!(numbers(dir.path()), [1, 2]);
    }

    #[test]
    fn after_two_days_a_picture_is_gone_with_its_opened_copy() {
        let dir = tempfile::tempdir().unwrap();
        let mut album = Album::open(dir.path(), ALBUM_BYTES_MAX).unwrap();
        album.note(SPOOL, 1, &[picture_of(0, 10)], 0).unwrap();
        album.note(SPOOL, 2, &[picture_of(HOUR_MS, 10)], HOUR_MS).unwrap();
        let copy = opened(dir.path(), &list(dir.path()).unwrap()[0]);
        fs::write(&copy, "x").unwrap();
        album.sweep(48 * HOUR_MS).unwrap();
        assert_eq!(numbers(dir.path()), [1, 2]);
        album.sweep(48 * HOUR_MS + 1).unwrap();
        assert_eq!(numbers(dir.path()), [2]);
        assert!(!copy.exists());
        album.sweep(-48 * HOUR_MS).unwrap();
        assert_eq!(numbers(dir.path()), Vec::<u64>::new(), "by a clock that was set back it would stay for ever");
    }

    #[test]
    fn the_budget_costs_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let mut album = Album::open(dir.path(), 1_000).unwrap();
        for seq in 1..=5 {
            album.note(SPOOL, seq, &[picture_of(0, 300)], 0).unwrap();
        }
        assert_eq!(numbers(dir.path()), [3, 4, 5]);
    }

    #[test]
    fn what_a_kill_left_half_written_is_removed_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut album = Album::open(dir.path(), ALBUM_BYTES_MAX).unwrap();
        album.note(SPOOL, 1, &[picture_of(0, 10)], 0).unwrap();
        for name in ["00000002.shot", "00000003.new"] {
            fs::write(dir.path().join("shots").join(name), "{\"number\":").unwrap();
        }
        fs::write(dir.path().join("shots/00000001.shot"), fs::read(dir.path().join("shots/00000001.shot")).unwrap()).unwrap();
        assert_eq!(numbers(dir.path()), [1]);
        drop(Album::open(dir.path(), ALBUM_BYTES_MAX).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("shots")).unwrap().count(), 1);
    }
}
