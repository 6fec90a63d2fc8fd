//! Blocking: what was collected on this computer today and yesterday, for the person at it. How many of each kind, never their content.
//!
//! ```text
//! <state>/days/2026-11-23.jsonl   one line per batch, and one per verdict that is neither stored nor repeat; owner only
//! ```
//!
//! Nothing depends on it: a line lost by a kill is only not shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::civil::Date;
use muster_mesh::{
    ids::{Lane, SpoolId},
    message::{Reason, Verdict},
    record::{Application, KIND_NAMES, Kind, Record, Session, Why},
};
use serde::{Deserialize, Serialize};

const FOLDER: &str = "days";
/// Both days together. A day makes some 500 batches of 200 bytes each; more than this only tests make, and then its oldest lines go.
pub const DAYLOG_BYTES_MAX: u64 = 8 << 20;
/// Verdicts that were noted already; an ack repeats the newest 64 of each spool.
const VERDICTS_REMEMBERED: usize = 4_096;

/// One batch, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub lane: Lane,
    pub spool: SpoolId,
    pub seq: u64,
    /// Milliseconds UTC.
    pub at_ms: i64,
    /// How many records, by [`KIND_NAMES`].
    pub kinds: [u32; KIND_NAMES.len()],
    /// Focus spans of excluded applications.
    pub private: u32,
    /// Pauses that ended: (begin in milliseconds UTC, length in milliseconds).
    pub pauses: Vec<(i64, u64)>,
    /// Records that gaps name; what never was isn't among them.
    pub dropped: u64,
    /// Detailed logs, each by its first picture.
    #[serde(default)]
    pub logs: u32,
    /// Pictures at an interval, of several monitors together.
    #[serde(default)]
    pub pictures: u32,
    /// Pictures that were asked for and not taken, by the reason's name.
    #[serde(default)]
    pub untaken: BTreeMap<String, u64>,
}

/// One day, as far as it is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    pub entries: Vec<Entry>,
    /// (verdict, reason) by the names of both.
    pub verdicts: BTreeMap<(SpoolId, u64), (String, String)>,
    /// Its oldest batches are not listed any more.
    pub is_cut: bool,
}

/// The two days' files.
pub struct DayLog {
    folder: PathBuf,
    bytes_max: u64,
    open: Option<Open>,
    noted: BTreeSet<(SpoolId, u64)>,
}

struct Open {
    date: Date,
    file: File,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
enum Line {
    Batch(Entry),
    Verdict { spool: SpoolId, seq: u64, verdict: String, reason: String },
    Cut,
}

impl Entry {
    pub fn of(lane: Lane, spool: SpoolId, seq: u64, at_ms: i64, records: &[Record]) -> Entry {
        let mut entry = Entry {
            lane,
            spool,
            seq,
            at_ms,
            kinds: [0; KIND_NAMES.len()],
            private: 0,
            pauses: Vec::new(),
            dropped: 0,
            logs: 0,
            pictures: 0,
            untaken: BTreeMap::new(),
        };
        for record in records {
            entry.kinds[record.tag()] += 1;
            match &record.kind {
                Kind::Focus(focus) if focus.application == Application::Private => entry.private += 1,
                Kind::Session(Session::Unpause { paused_ms }) => {
                    let begin = record.at.saturating_sub(i64::try_from(*paused_ms).unwrap_or(i64::MAX));
                    entry.pauses.push((begin, *paused_ms));
                }
                Kind::Gap(gap) if gap.reason.is_not_taken() => {
                    *entry.untaken.entry(gap.reason.name().into()).or_default() += gap.records;
                }
                Kind::Gap(gap) => entry.dropped += gap.records,
                Kind::Screenshot(screenshot) if screenshot.part == 0 => match screenshot.why {
                    Why::DetailedLog => entry.logs += 1,
                    Why::Interval => entry.pictures += 1,
                },
                Kind::Heartbeat(_)
                | Kind::Activity(_)
                | Kind::Focus(_)
                | Kind::Screenshot(_)
                | Kind::Session(_)
                | Kind::Network(_)
                | Kind::Capability(_)
                | Kind::Timer(_)
                | Kind::Entry(_) => {}
            }
        }
        entry
    }
}

impl DayLog {
    /// Below the state folder; `bytes_max` for both days together.
    pub fn open(state: &Path, bytes_max: u64) -> io::Result<DayLog> {
        let folder = state.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(DayLog { folder, bytes_max, open: None, noted: BTreeSet::new() })
    }

    /// A batch was committed on `date`, the person's civil day.
    pub fn note(&mut self, date: Date, entry: Entry) -> io::Result<()> {
        self.write(date, &Line::Batch(entry))
    }

    /// The hub said something about a batch that is worth showing.
    pub fn note_verdict(&mut self, date: Date, spool: SpoolId, seq: u64, verdict: Verdict, reason: Reason) -> io::Result<()> {
        if !self.noted.insert((spool, seq)) {
            return Ok(());
        }
        if self.noted.len() > VERDICTS_REMEMBERED {
            self.noted.pop_first();
        }
        self.write(date, &Line::Verdict { spool, seq, verdict: verdict.name().into(), reason: reason.name().into() })
    }

    /// What is remembered of a day; verdicts that came a day later count too.
    pub fn day(&self, date: Date) -> io::Result<Remembered> {
        let mut remembered = Remembered::default();
        let next = date.tomorrow().unwrap_or(date);
        for (file, is_asked) in [(date, true), (next, false)] {
            for line in lines(&self.path(file))? {
                match line {
                    Line::Batch(entry) if is_asked => remembered.entries.push(entry),
                    Line::Cut if is_asked => remembered.is_cut = true,
                    Line::Batch(_) | Line::Cut => {}
                    Line::Verdict { spool, seq, verdict, reason } => {
                        remembered.verdicts.insert((spool, seq), (verdict, reason));
                    }
                }
            }
        }
        Ok(remembered)
    }

    fn path(&self, date: Date) -> PathBuf {
        self.folder.join(format!("{date}.jsonl"))
    }

    fn write(&mut self, date: Date, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let mut open = match self.open.take() {
            Some(open) if open.date == date => open,
            Some(_) | None => self.turn_to(date)?,
        };
        if open.bytes + text.len() as u64 > self.bytes_max / 2 {
            open = self.cut(date)?;
        }
        open.file.write_all(text.as_bytes())?;
        open.bytes += text.len() as u64;
        self.open = Some(open);
        Ok(())
    }

    /// Opens a day's file, and deletes those of other days than it and the one before.
    fn turn_to(&self, date: Date) -> io::Result<Open> {
        let yesterday = date.yesterday().unwrap_or(date);
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path != self.path(date) && path != self.path(yesterday) {
                fs::remove_file(path)?;
            }
        }
        self.append_to(date)
    }

    fn append_to(&self, date: Date) -> io::Result<Open> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(date))?;
        let bytes = file.metadata()?.len();
        Ok(Open { date, file, bytes })
    }

    /// Keeps the newer half of a day's lines.
    fn cut(&self, date: Date) -> io::Result<Open> {
        let lines = lines(&self.path(date))?;
        let newer = self.folder.join("newer");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&newer)?;
        for line in std::iter::once(&Line::Cut).chain(&lines[lines.len() / 2..]) {
            writeln!(file, "{}", serde_json::to_string(line)?)?;
        }
        fs::rename(newer, self.path(date))?;
        self.append_to(date)
    }
}

/// The lines of a file that can be understood; none where there is no file.
fn lines(path: &Path) -> io::Result<Vec<Line>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // A kill can leave half a line, and damage any: what is left is still worth showing.
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    Ok(lines.filter_map(|line| serde_json::from_slice(&line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use muster_mesh::record::{Area, Focus, Gap, GapReason, PictureFormat, Screenshot, Source};

    use super::*;

    const SPOOL: SpoolId = SpoolId([9; 16]);

    fn date(day: i8) -> Date {
        Date::constant(2026, 11, day)
    }

    fn focus(application: Application) -> Record {
        Record { at: 5, kind: Kind::Focus(Focus { ms: 1, application, title: Some("canary".into()), source: Source::X11 }) }
    }

    fn entry(seq: u64) -> Entry {
        let records = [
            focus(Application::Named("canary".into())),
            focus(Application::Private),
            Record { at: 10_000, kind: Kind::Session(Session::Unpause { paused_ms: 4_000 }) },
        ];
        Entry::of(Lane::Telemetry, SPOOL, seq, 10_000, &records)
    }

    #[test]
    fn a_day_is_remembered_without_names_and_titles() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = DayLog::open(dir.path(), DAYLOG_BYTES_MAX).unwrap();
        log.note(date(23), entry(1)).unwrap();
        log.note_verdict(date(24), SPOOL, 1, Verdict::Held, Reason::UnknownVersion).unwrap();
        log.note_verdict(date(24), SPOOL, 1, Verdict::Held, Reason::UnknownVersion).unwrap();
        drop(log);
        let path = dir.path().join("days/2026-11-23.jsonl");
        assert!(!fs::read_to_string(&path).unwrap().contains("canary"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(dir.path().join("days/2026-11-24.jsonl")).unwrap().lines().count(), 1);

        let day = DayLog::open(dir.path(), DAYLOG_BYTES_MAX).unwrap().day(date(23)).unwrap();
        assert_eq!(day.entries, [entry(1)]);
        assert_eq!((day.entries[0].kinds[2], day.entries[0].private, &day.entries[0].pauses[..]), (2, 1, &[(6_000, 4_000)][..]));
        assert_eq!(day.verdicts[&(SPOOL, 1)], ("held".into(), "unknown_version".into()));
    }

    #[test]
    fn pictures_are_counted_by_why_and_what_was_not_taken_by_its_reason() {
        let screenshot = |why, part| {
            let (area, format) = (Area::Monitor, PictureFormat::Webp);
            let (sha256, group, bytes) = ([0; 32], [0; 16], Vec::new());
            let shot = Screenshot { area, width: 1, height: 1, format, blurred: true, why, sha256, group, part, parts: 2, bytes };
            Record { at: 0, kind: Kind::Screenshot(shot) }
        };
        let gap = |reason| Record { at: 0, kind: Kind::Gap(Gap { lane: Lane::Pictures, numbers: None, records: 1, bytes: 0, reason }) };
        let records = [
            screenshot(Why::DetailedLog, 0),
            screenshot(Why::DetailedLog, 1),
            screenshot(Why::Interval, 0),
            gap(GapReason::Paused),
            gap(GapReason::Paused),
            gap(GapReason::Budget),
        ];
        let entry = Entry::of(Lane::Pictures, SPOOL, 1, 0, &records);
        assert_eq!((entry.logs, entry.pictures, entry.dropped), (1, 1, 1));
        assert_eq!(entry.untaken, BTreeMap::from([("paused".to_owned(), 2)]));
        let mut older = serde_json::to_value(&entry).unwrap();
        for field in ["logs", "pictures", "untaken"] {
            older.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(serde_json::from_value::<Entry>(older).unwrap().logs, 0, "a line of an older build is read");
    }

    #[test]
    fn two_days_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = DayLog::open(dir.path(), DAYLOG_BYTES_MAX).unwrap();
        for day in 22..=24 {
            log.note(date(day), entry(1)).unwrap();
        }
        assert_eq!(log.day(date(22)).unwrap(), Remembered::default());
        assert_eq!(log.day(date(23)).unwrap().entries.len(), 1);
    }

    #[test]
    fn the_budget_costs_the_oldest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = DayLog::open(dir.path(), 10_000).unwrap();
        for seq in 1..=200 {
            log.note(date(23), entry(seq)).unwrap();
        }
        let day = log.day(date(23)).unwrap();
        assert!(day.is_cut && day.entries.len() < 60);
        assert_eq!(day.entries.last().unwrap().seq, 200);
        assert!(fs::metadata(dir.path().join("days/2026-11-23.jsonl")).unwrap().len() <= 5_000);
    }

    #[test]
    fn a_damaged_line_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = DayLog::open(dir.path(), DAYLOG_BYTES_MAX).unwrap();
        log.note(date(23), entry(1)).unwrap();
        let path = dir.path().join("days/2026-11-23.jsonl");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"\xff\xfe{half a line\n");
        fs::write(&path, bytes).unwrap();
        log.note(date(23), entry(2)).unwrap();
        assert_eq!(log.day(date(23)).unwrap().entries.len(), 2);
    }
}
