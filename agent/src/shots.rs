//! Blocking: pictures, as the collector's thread drives them: when one is due, whether it may be taken, and what becomes a record.
//!
//! ```text
//! due ─▶ may be seen? ─no─▶ Gap, with the reason
//!            │ yes: it is noted as had, then the helper takes it
//!            ▼
//!        every tick: still the same policy, awake, not paused, not locked? ─no─▶ the picture is thrown away unread; Gap
//!            │ yes, until a tick after it was done: a lock that is told late still finds it
//!            ▼
//!        one record per monitor, each in a batch of its own
//! ```
//!
//! The agent's own file can only narrow what the policy allows, and the hub sees that it does. With a detailed log the spans of windows are cut,
//! so that the list of windows up to the picture lies in the records before it.

pub mod album;
pub mod camera;
pub mod frames;
pub mod helper;
pub mod times;

use std::path::{Path, PathBuf};

use muster_certs::files;
use muster_mesh::{
    chance,
    clock::{Reading, Zone},
    ids::Lane,
    policy::{PictureArea, Pictures, Policy},
    record::{Capability, Gap, GapReason, Kind, PictureFormat, Record, Screenshot, State, Why},
};
use sha2::{Digest, Sha256};

use self::{
    camera::{Camera, CameraError, Of, Picture, Request},
    times::{Asked, Book, Interval, Look, Times},
};
use crate::collect::sense::{Backoff, Rectangle, SenseError};

/// What is told where there is no helper.
pub const NOT_INSTALLED: &str = "muster-shot isn't installed";
const SWITCHED_OFF: &str = "switched off in this computer's own file";
/// The sense's name, and the switch's.
pub const PICTURES: &str = "pictures";
/// How many moments each day had: owner only, replaced in one step.
const BOOK: &str = "shots.json";
/// Looks come every second; a longer silence was a sleep.
const SLEEP_MS: u64 = 5_000;

/// How this computer's own file narrows what the policy allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Narrowing {
    pub off: bool,
    pub blur: bool,
    /// Seconds; pictures at an interval come no sooner than this.
    pub interval_min_s: u32,
}

/// All that pictures need of the desktop's state at a tick.
pub struct Sight<'a> {
    pub now: Reading,
    pub zone: &'a Zone,
    pub state: State,
    /// What of the policy is observed; None: nothing.
    pub policy: Option<&'a Policy>,
    pub on_battery: bool,
    /// Where the window in front is; asked only when a picture of it is due.
    pub front: &'a mut dyn FnMut() -> Option<Rectangle>,
}

/// What a tick brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// A detailed log begins: what is under way becomes records before those below.
    pub turns: bool,
    pub records: Vec<Record>,
    /// News of whether pictures can be taken; the text says why not.
    pub ability: Option<Result<(), String>>,
}

/// The collector's pictures.
pub struct Shots {
    narrowing: Narrowing,
    /// None: the helper isn't installed.
    camera: Option<Box<dyn Camera>>,
    chance: Box<dyn FnMut() -> f64 + Send>,
    times: Times,
    interval: Interval,
    file: PathBuf,
    kept: Book,
    taking: Option<Taking>,
    backoff: Backoff,
    /// What was told of the own file's narrowing.
    told: Option<String>,
    last: Option<Reading>,
    was_open: bool,
}

/// A picture on its way.
struct Taking {
    why: Why,
    since: Reading,
    policy: Policy,
    /// It is done, since the last tick.
    done: Option<Result<Vec<Picture>, CameraError>>,
}

impl Shots {
    /// `camera` None: there is no helper. The state folder holds what was had of each day.
    pub fn new(state: &Path, narrowing: Narrowing, camera: Option<Box<dyn Camera>>) -> Shots {
        Shots::with_chance(state, narrowing, camera, Box::new(chance::fraction))
    }

    /// No pictures, and nothing on the disk.
    pub fn none() -> Shots {
        Shots::with_book(PathBuf::new(), Book::default(), Narrowing::default(), None, Box::new(chance::fraction))
    }

    pub fn with_chance(
        state: &Path,
        narrowing: Narrowing,
        camera: Option<Box<dyn Camera>>,
        chance: Box<dyn FnMut() -> f64 + Send>,
    ) -> Shots {
        let file = state.join(BOOK);
        let kept = read(&file);
        Shots::with_book(file, kept, narrowing, camera, chance)
    }

    fn with_book(
        file: PathBuf,
        kept: Book,
        narrowing: Narrowing,
        camera: Option<Box<dyn Camera>>,
        chance: Box<dyn FnMut() -> f64 + Send>,
    ) -> Shots {
        Shots {
            narrowing,
            camera,
            chance,
            times: Times::new(kept.clone()),
            interval: Interval::default(),
            file,
            kept,
            taking: None,
            backoff: Backoff::default(),
            told: None,
            last: None,
            was_open: false,
        }
    }

    /// Whether pictures can be taken here at all; else why not.
    pub fn serves(&self) -> Result<(), &'static str> {
        match (&self.camera, self.narrowing.off) {
            (_, true) => Err(SWITCHED_OFF),
            (None, false) => Err(NOT_INSTALLED),
            (Some(_), false) => Ok(()),
        }
    }

    /// A second went by, and the state is up to date. A pause is followed by a tick at once.
    pub fn tick(&mut self, mut sight: Sight<'_>) -> Made {
        let mut made = Made::default();
        let passed_ms = self.last.map_or(0, |last| sight.now.boot_ms.saturating_sub(last.boot_ms));
        self.last = Some(sight.now);
        let slept = passed_ms > SLEEP_MS;
        let reason = if slept { Some(GapReason::Asleep) } else { closed_by(sight.state) };
        let asked = sight.policy.filter(|_| self.serves().is_ok()).map(|policy| (self.narrowed(policy.pictures), policy));
        self.tell_narrowing(&sight, asked.as_ref().map(|(pictures, _)| *pictures), &mut made);

        self.follow(&sight, reason, asked.as_ref().map(|(_, policy)| *policy), &mut made);
        let logs = asked.as_ref().map(|(pictures, policy)| Asked { logs_per_day: pictures.detailed_logs_per_day, hours: &policy.hours });
        let look = Look { now: sight.now, offset_s: sight.zone.offset_s, asked: logs };
        let log_is_due = self.times.look(&look, &mut self.chance);
        let interval_s = asked.as_ref().map_or(0, |(pictures, _)| pictures.interval_s);
        let observed_ms = if reason.is_none() && self.was_open { passed_ms } else { 0 };
        let interval_is_due = self.interval.look(observed_ms, interval_s);
        self.was_open = reason.is_none();

        if let (Some((pictures, policy)), true) = (asked, self.taking.is_none()) {
            match reason {
                Some(reason) if log_is_due => self.times.passed(reason),
                None if log_is_due => self.begin(Why::DetailedLog, pictures, policy, &mut sight, &mut made),
                None if interval_is_due && self.backoff.is_due(sight.now.boot_ms) => {
                    self.begin(Why::Interval, pictures, policy, &mut sight, &mut made);
                }
                Some(_) | None => {}
            }
        }
        self.tell_untaken(&sight, &mut made);
        made
    }

    /// The program ends: what is under way is given up, and told after the next start.
    pub fn stop(&mut self) {
        if let Some(camera) = self.camera.as_mut().filter(|_| self.taking.take().is_some()) {
            camera.cancel();
        }
    }

    fn narrowed(&self, pictures: Pictures) -> Pictures {
        let Narrowing { off, blur, interval_min_s } = self.narrowing;
        let interval_s = if pictures.interval_s == 0 { 0 } else { pictures.interval_s.max(interval_min_s) };
        let pictures = Pictures { blur: pictures.blur || blur, interval_s, ..pictures };
        if off { Pictures { detailed_logs_per_day: 0, interval_s: 0, ..pictures } } else { pictures }
    }

    /// Once, and again when it changes.
    fn tell_narrowing(&mut self, sight: &Sight<'_>, pictures: Option<Pictures>, made: &mut Made) {
        let (Some(policy), Some(pictures)) = (sight.policy.filter(|policy| policy.pictures.are_on()), pictures) else { return };
        let blurred = (pictures.blur != policy.pictures.blur).then(|| "blurred by this computer's own file".to_owned());
        let slower = (pictures.interval_s != policy.pictures.interval_s)
            .then(|| format!("by this computer's own file at most every {} seconds", pictures.interval_s));
        let why = [blurred, slower].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let is_news = self.told.as_ref() != Some(&why) && !(self.told.is_none() && why.is_empty());
        if is_news && may_tell(sight.state) {
            let capability = Capability { what: PICTURES.into(), able: true, why: why.clone() };
            made.records.push(Record { at: sight.now.wall_ms, kind: Kind::Capability(capability) });
            self.told = Some(why);
        }
    }

    // --- one picture ---

    fn begin(&mut self, why: Why, pictures: Pictures, policy: &Policy, sight: &mut Sight<'_>, made: &mut Made) {
        match why {
            Why::DetailedLog => {
                self.times.begun();
                made.turns = true;
                // What can't be remembered would be taken again after a restart.
                if !self.keep_book() {
                    return self.untaken(why, GapReason::Failed);
                }
            }
            Why::Interval => self.interval.taken(),
        }
        let of = match pictures.area {
            PictureArea::All => Some(Of::AllMonitors),
            PictureArea::ActiveWindow => (sight.front)().map(|Rectangle { x, y, width, height }| Of::Window { x, y, width, height }),
        };
        // With nothing in front, or where it can't be seen, there is nothing to take.
        let (Some(of), Some(camera)) = (of, &mut self.camera) else { return self.untaken(why, GapReason::Failed) };
        let format = if sight.on_battery { PictureFormat::Jpeg } else { PictureFormat::Webp };
        camera.begin(&Request { of, blur: pictures.blur, format, excluded: policy.excluded.clone() });
        self.taking = Some(Taking { why, since: sight.now, policy: policy.clone(), done: None });
    }

    /// Looks after the picture on its way. `closed`: why nothing may be seen now.
    fn follow(&mut self, sight: &Sight<'_>, closed: Option<GapReason>, policy: Option<&Policy>, made: &mut Made) {
        let (Some(mut taking), Some(camera)) = (self.taking.take(), &mut self.camera) else { return };
        if let Some(reason) = closed {
            camera.cancel();
            return self.untaken(taking.why, reason);
        }
        if policy != Some(&taking.policy) {
            // Made under what doesn't hold any more.
            camera.cancel();
            return self.untaken(taking.why, GapReason::Failed);
        }
        match taking.done.take() {
            Some(done) => self.finish(&taking, done, sight, made),
            None => {
                taking.done = camera.poll();
                self.taking = Some(taking);
            }
        }
    }

    fn finish(&mut self, taking: &Taking, done: Result<Vec<Picture>, CameraError>, sight: &Sight<'_>, made: &mut Made) {
        match done {
            Ok(pictures) => {
                self.backoff.succeeded();
                made.ability = Some(Ok(()));
                made.records.extend(records(taking, pictures, sight.now));
                self.times.ended();
            }
            Err(CameraError::Excluded) => self.untaken(taking.why, GapReason::Excluded),
            Err(error) => {
                let error = sense_error(error);
                self.backoff.failed(&error, sight.now.boot_ms);
                made.ability = Some(Err(error.to_string()));
                // When it works again, what the own file narrows is told again.
                self.told = None;
                self.untaken(taking.why, GapReason::Failed);
            }
        }
    }

    fn untaken(&mut self, why: Why, reason: GapReason) {
        self.times.not_taken(reason);
        if why == Why::DetailedLog {
            self.times.ended();
        }
    }

    // --- what is remembered ---

    /// Gaps are told while the person's state is: whoever uses the computer after hours isn't told of by them.
    fn tell_untaken(&mut self, sight: &Sight<'_>, made: &mut Made) {
        let untaken = if may_tell(sight.state) { self.times.tell() } else { Vec::new() };
        // Forgotten first: a gap is lost rather than told twice.
        self.keep_book();
        let gap = |(reason, records)| Gap { lane: Lane::Pictures, numbers: None, records, bytes: 0, reason };
        made.records.extend(untaken.into_iter().map(|told| Record { at: sight.now.wall_ms, kind: Kind::Gap(gap(told)) }));
    }

    fn keep_book(&mut self) -> bool {
        if *self.times.book() == self.kept {
            return true;
        }
        let written = serde_json::to_vec(self.times.book())
            .map_err(|error| error.to_string())
            .and_then(|bytes| files::write_secret(&self.file, &bytes).map_err(|error| error.to_string()));
        match written {
            Ok(()) => self.kept = self.times.book().clone(),
            Err(error) => tracing::warn!(%error, "how many pictures were taken today can't be kept on the disk"),
        }
        *self.times.book() == self.kept
    }
}

/// What can't be read is as good as nothing: then the day's number comes out once more at most.
fn read(file: &Path) -> Book {
    let text = match files::read_secret(file) {
        Ok(text) => text,
        Err(files::FileError::Missing(_)) => return Book::default(),
        Err(error) => {
            tracing::warn!(%error, "how many pictures were taken can't be read");
            return Book::default();
        }
    };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "how many pictures were taken can't be understood");
        Book::default()
    })
}

fn records(taking: &Taking, pictures: Vec<Picture>, now: Reading) -> Vec<Record> {
    let group = chance::random_16();
    // By the wall clock as it goes now, also when it was set meanwhile.
    let ago_ms = i64::try_from(now.boot_ms.saturating_sub(taking.since.boot_ms)).unwrap_or(i64::MAX);
    let at = now.wall_ms.saturating_sub(ago_ms);
    let parts = u8::try_from(pictures.len()).unwrap_or(u8::MAX);
    let record = |(part, picture): (u8, Picture)| {
        let Picture { area, width, height, format, blurred, bytes } = picture;
        let sha256 = Sha256::digest(&bytes).into();
        Record {
            at,
            kind: Kind::Screenshot(Screenshot { area, width, height, format, blurred, why: taking.why, sha256, group, part, parts, bytes }),
        }
    };
    (0..parts).zip(pictures).map(record).collect()
}

/// Why nothing may be seen in this state. None: it may.
fn closed_by(state: State) -> Option<GapReason> {
    match state {
        State::Active | State::Idle | State::Call => None,
        State::Paused => Some(GapReason::Paused),
        State::Locked => Some(GapReason::Locked),
        State::Asleep => Some(GapReason::Asleep),
        State::OutsideHours => Some(GapReason::OutsideHours),
        State::BatteryLow => Some(GapReason::BatteryLow),
        State::WaitingForNotice | State::Leaving => Some(GapReason::Failed),
    }
}

fn may_tell(state: State) -> bool {
    match state {
        State::Active | State::Idle | State::Call | State::Paused | State::Locked | State::BatteryLow => true,
        State::WaitingForNotice | State::Asleep | State::OutsideHours | State::Leaving => false,
    }
}

/// How soon it is tried again depends on what was wrong.
fn sense_error(error: CameraError) -> SenseError {
    match error {
        CameraError::NoDisplay(why) => SenseError::NoDisplay(why),
        CameraError::NotPermitted(why) => SenseError::NotPermitted(why),
        CameraError::NotSupported(why) => SenseError::NotSupported(why),
        CameraError::Lost(why) => SenseError::Lost(why),
        CameraError::Excluded => SenseError::Lost(error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
