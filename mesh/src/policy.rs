//! Quiet: the policy: what may be collected, why, when, and how long it is kept.
//!
//! The hub reads it from TOML, where an unknown field is a mistake ([`Policy::from_toml`]). It travels to the agents as JSON in the body of a
//! `Signed` ([`Policy::to_bytes`]), where an unknown field is a newer hub's: what an agent doesn't know it doesn't do. A switch that isn't
//! stated is off in both.
//!
//! One rule tells how two policies compare, [`Policy::narrowed_by`]: an agent applies it with the policy that its person has read about, and
//! the notice's number rises exactly when it changes something.

use std::fmt;

use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

use crate::{ids::Version, ranges::Ranges};

/// What may be collected, why, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub purpose: Purpose,
    /// Days that personal activity data is kept.
    pub retention_days: u16,
    /// What is kept shorter than that.
    pub retention: KindRetention,
    /// Outside them nothing is observed.
    pub hours: WorkingHours,
    /// Seconds between two signs of life; a change of state makes one at once.
    pub heartbeat_s: u32,
    /// Seconds without input after which someone is idle.
    pub idle_after_s: u32,
    pub applications: bool,
    /// Never on without `applications`.
    pub titles: bool,
    /// Programs that are only counted as "private", whatever their case.
    pub excluded: Vec<String>,
    pub counts: bool,
    pub pictures: Pictures,
    pub addresses: bool,
    /// The hub runs in test mode; it sets this from its own configuration.
    pub test_mode: bool,
    /// The notice that belongs to this policy; the hub gives the number.
    pub notice: Version,
}

/// Why, and who answers questions: shown in the notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// The employer's name; may be empty.
    pub organisation: String,
    pub text: String,
    pub legal_ground: String,
    pub contact: String,
}

/// Days that what tells most of a person is kept: never longer than the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindRetention {
    pub titles_days: u16,
    pub pictures_days: u16,
    pub network_days: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pictures {
    pub detailed_logs_per_day: u8,
    /// Seconds between two pictures; 0: none.
    pub interval_s: u32,
    pub area: PictureArea,
    pub blur: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PictureArea {
    ActiveWindow,
    All,
}

/// What can be observed, each with a name that notices, acknowledgements and `Capability` records use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Switch {
    Presence,
    Counts,
    Applications,
    Titles,
    Pictures,
    Addresses,
}

/// The minutes of a local week in which may be observed: 0 is Monday 00:00.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkingHours {
    minutes: Ranges,
}

/// A policy that can't be used, in one line that names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct PolicyError {
    field: String,
    what: String,
}

/// Retention, heartbeat and idle time where a policy doesn't say.
const RETENTION_DAYS: u16 = 45;
const HEARTBEAT_S: u32 = 300;
const IDLE_AFTER_S: u32 = 300;

const RETENTION_DAYS_MAX: u16 = 3_650;
const SECONDS_MAX: u32 = 86_400;
/// Texts are shown on a terminal, in one paragraph each.
const TEXT_CHARS_MAX: usize = 1_000;
const EXCLUDED_MAX: usize = 256;
const EXCLUDED_CHARS_MAX: usize = 128;
const DETAILED_LOGS_MAX: u8 = 24;
/// Half of a control message, so that a policy always fits the `Signed` around it.
pub const POLICY_BYTES_MAX: usize = crate::limits::CONTROL_BYTES_MAX / 2;

const DAY_MINUTES: u64 = 24 * 60;
const WEEK_MINUTES: u64 = 7 * DAY_MINUTES;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_NAMES: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Policy {
    /// Reads the hub's policy file. `test_mode` and `notice` are the hub's to set.
    pub fn from_toml(text: &str) -> Result<Policy, PolicyError> {
        let file: File = toml::from_str(text).map_err(|error| PolicyError::of_toml(text, &error))?;
        let policy = file.policy()?;
        policy.check()?;
        Ok(policy)
    }

    /// The body of a `Signed` of kind policy.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serializing these plain fields into memory has no failing case.
        serde_json::to_vec(&Wire::of(self)).unwrap_or_default()
    }

    /// Reads the body of a `Signed`. Unknown fields are a newer hub's, and ignored.
    pub fn from_bytes(bytes: &[u8]) -> Result<Policy, PolicyError> {
        if bytes.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::new("policy", format!("{} bytes are more than {POLICY_BYTES_MAX}", bytes.len())));
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| PolicyError::new("policy", error.to_string()))?;
        let policy = wire.policy()?;
        policy.check()?;
        Ok(policy)
    }

    pub fn has(&self, switch: Switch) -> bool {
        match switch {
            Switch::Presence => true,
            Switch::Counts => self.counts,
            Switch::Applications => self.applications,
            Switch::Titles => self.applications && self.titles,
            Switch::Pictures => self.pictures.are_on(),
            Switch::Addresses => self.addresses,
        }
    }

    /// The switches that are on, in their order.
    pub fn switches(&self) -> Vec<Switch> {
        Switch::ALL.into_iter().filter(|&switch| self.has(switch)).collect()
    }

    /// This policy, with only those of its switches on that are in `allowed`. Presence stays: without it nothing is left to do.
    pub fn only(&self, allowed: &[Switch]) -> Policy {
        let both = |switch| self.has(switch) && allowed.contains(&switch);
        let mut policy = self.clone();
        policy.counts = both(Switch::Counts);
        policy.applications = both(Switch::Applications);
        policy.titles = both(Switch::Applications) && both(Switch::Titles);
        policy.addresses = both(Switch::Addresses);
        if !both(Switch::Pictures) {
            policy.pictures = Pictures { detailed_logs_per_day: 0, interval_s: 0, ..self.pictures };
        }
        policy
    }

    /// As much of this policy as `read`, the one that the person was told of, allows as well.
    pub fn narrowed_by(&self, read: &Policy) -> Policy {
        Policy {
            retention_days: self.retention_days.min(read.retention_days),
            retention: self.retention.narrowed_by(read.retention),
            hours: self.hours.and(&read.hours),
            heartbeat_s: self.heartbeat_s.max(read.heartbeat_s),
            idle_after_s: self.idle_after_s.max(read.idle_after_s),
            applications: self.applications && read.applications,
            titles: self.titles && read.titles,
            excluded: self.excluded.iter().chain(read.excluded.iter().filter(|name| !self.excludes(name))).cloned().collect(),
            counts: self.counts && read.counts,
            pictures: self.pictures.narrowed_by(&read.pictures),
            addresses: self.addresses && read.addresses,
            ..self.clone()
        }
    }

    /// Whether this policy observes more, keeps longer or shows wider than `old`: then, and only then, the notice's number rises.
    pub fn observes_more_than(&self, old: &Policy) -> bool {
        self.narrowed_by(old) != *self
    }

    /// Whether a program is only counted as private.
    pub fn excludes(&self, application: &str) -> bool {
        let application = application.to_lowercase();
        self.excluded.iter().any(|excluded| excluded.to_lowercase() == application)
    }

    fn check(&self) -> Result<(), PolicyError> {
        let Purpose { organisation, text, legal_ground, contact } = &self.purpose;
        shown("purpose.organisation", organisation)?;
        for (field, value) in [("purpose.text", text), ("purpose.legal_ground", legal_ground), ("purpose.contact", contact)] {
            shown(field, value)?;
            require(field, !value.trim().is_empty(), "is empty; the notice shows it")?;
        }
        require("purpose.retention_days", (1..=RETENTION_DAYS_MAX).contains(&self.retention_days), "is not 1 to 3650 days")?;
        let KindRetention { titles_days, pictures_days, network_days } = self.retention;
        for (field, days) in [("titles_days", titles_days), ("pictures_days", pictures_days), ("network_days", network_days)] {
            let within = (1..=self.retention_days).contains(&days);
            require(&format!("retention.{field}"), within, "is not 1 to purpose.retention_days days")?;
        }
        require("when.working_hours", !self.hours.minutes.is_empty(), "holds no minute of the week")?;
        require("when.heartbeat_s", (1..=SECONDS_MAX).contains(&self.heartbeat_s), "is not 1 to 86400 seconds")?;
        require("when.idle_after_s", (1..=SECONDS_MAX).contains(&self.idle_after_s), "is not 1 to 86400 seconds")?;
        require("windows.titles", self.applications || !self.titles, "titles can't be on while windows.applications is off")?;
        require("windows.excluded", self.excluded.len() <= EXCLUDED_MAX, "holds more than 256 programs")?;
        for name in &self.excluded {
            shown("windows.excluded", name)?;
            let fits = !name.trim().is_empty() && name.chars().count() <= EXCLUDED_CHARS_MAX;
            require("windows.excluded", fits, "a program's name has 1 to 128 characters")?;
        }
        let few = self.pictures.detailed_logs_per_day <= DETAILED_LOGS_MAX;
        require("pictures.detailed_logs_per_day", few, "is more than 24")?;
        require("pictures.interval_s", self.pictures.interval_s <= SECONDS_MAX, "is more than 86400 seconds")?;
        require("policy", self.to_bytes().len() <= POLICY_BYTES_MAX, "is too long to travel to the agents; shorten its texts and lists")
    }
}

/// Text that a person reads on a terminal holds no control characters.
fn shown(field: &str, text: &str) -> Result<(), PolicyError> {
    require(field, !text.chars().any(char::is_control), "holds a line break or another control character")?;
    require(field, text.chars().count() <= TEXT_CHARS_MAX, "is longer than 1000 characters")
}

fn require(field: &str, holds: bool, otherwise: &str) -> Result<(), PolicyError> {
    if holds { Ok(()) } else { Err(PolicyError::new(field, otherwise)) }
}

impl KindRetention {
    /// Each kind for as long as all the others.
    pub fn alike(days: u16) -> KindRetention {
        KindRetention { titles_days: days, pictures_days: days, network_days: days }
    }

    fn narrowed_by(self, read: KindRetention) -> KindRetention {
        KindRetention {
            titles_days: self.titles_days.min(read.titles_days),
            pictures_days: self.pictures_days.min(read.pictures_days),
            network_days: self.network_days.min(read.network_days),
        }
    }
}

impl Pictures {
    const OFF: Pictures = Pictures { detailed_logs_per_day: 0, interval_s: 0, area: PictureArea::ActiveWindow, blur: true };

    pub fn are_on(&self) -> bool {
        self.detailed_logs_per_day > 0 || self.interval_s > 0
    }

    fn narrowed_by(&self, read: &Pictures) -> Pictures {
        let interval_s = if read.interval_s == 0 { 0 } else { self.interval_s };
        let narrowed = Pictures {
            detailed_logs_per_day: self.detailed_logs_per_day.min(read.detailed_logs_per_day),
            interval_s: if interval_s == 0 { 0 } else { interval_s.max(read.interval_s) },
            area: self.area.min(read.area),
            blur: self.blur || read.blur,
        };
        // Where no picture is made, area and blur say nothing: they alone are never "more".
        if narrowed.are_on() { narrowed } else { Pictures { area: self.area, blur: self.blur, ..narrowed } }
    }
}

impl Switch {
    pub const ALL: [Switch; 6] =
        [Switch::Presence, Switch::Counts, Switch::Applications, Switch::Titles, Switch::Pictures, Switch::Addresses];

    pub fn name(self) -> &'static str {
        match self {
            Switch::Presence => "presence",
            Switch::Counts => "counts",
            Switch::Applications => "applications",
            Switch::Titles => "titles",
            Switch::Pictures => "pictures",
            Switch::Addresses => "addresses",
        }
    }

    /// None: a name that this build doesn't know.
    pub fn of_name(name: &str) -> Option<Switch> {
        Switch::ALL.into_iter().find(|switch| switch.name() == name)
    }
}

impl WorkingHours {
    /// Every minute of the week.
    pub fn always() -> WorkingHours {
        WorkingHours { minutes: Ranges::of(0, WEEK_MINUTES - 1) }
    }

    /// `days` as in "mon-fri" or "mon,wed,sat-sun"; `from` and `to` as in "07:00", up to "24:00". Hours that end before they begin
    /// belong to the night that follows the named day.
    pub fn parse(days: &str, from: &str, to: &str) -> Result<WorkingHours, PolicyError> {
        let field = |name: &str| format!("when.working_hours.{name}");
        let days =
            parse_days(days).ok_or_else(|| PolicyError::new(field("days"), format!("{days:?} is not like \"mon-fri\" or \"mon,wed\"")))?;
        let minute =
            |name, text| parse_minute(text).ok_or_else(|| PolicyError::new(field(name), format!("{text:?} is not a time like \"07:30\"")));
        let (from, mut to) = (minute("from", from)?, minute("to", to)?);
        if from == to || from == DAY_MINUTES {
            return Err(PolicyError::new(field("to"), "the hours hold no minute; the whole day is from \"00:00\" to \"24:00\""));
        }
        if to < from {
            to += DAY_MINUTES;
        }
        let mut minutes = Ranges::new();
        for day in days {
            let (first, last) = (day * DAY_MINUTES + from, day * DAY_MINUTES + to - 1);
            minutes.insert_range(first, last.min(WEEK_MINUTES - 1));
            if last >= WEEK_MINUTES {
                minutes.insert_range(0, last - WEEK_MINUTES);
            }
        }
        Ok(WorkingHours { minutes })
    }

    /// Whether the local civil time lies in them.
    pub fn contains(&self, local: DateTime) -> bool {
        let number = |part: i8| u64::try_from(part).unwrap_or(0);
        let day = number(local.weekday().to_monday_zero_offset());
        self.minutes.contains(day * DAY_MINUTES + number(local.hour()) * 60 + number(local.minute()))
    }

    /// The minutes that are in both.
    pub fn and(&self, other: &WorkingHours) -> WorkingHours {
        let mut minutes = self.minutes.clone();
        minutes.subtract(&other.minutes.missing(0, WEEK_MINUTES - 1));
        WorkingHours { minutes }
    }

    /// The spans of one day, in minutes from its midnight; the end is exclusive.
    fn of_day(&self, day: usize) -> Vec<(u64, u64)> {
        let midnight = day as u64 * DAY_MINUTES;
        let within = |(first, last): (u64, u64)| {
            let (from, to) = (first.max(midnight), (last + 1).min(midnight + DAY_MINUTES));
            (from < to).then(|| (from - midnight, to - midnight))
        };
        self.minutes.iter().filter_map(within).collect()
    }
}

fn parse_days(text: &str) -> Option<Vec<u64>> {
    let day = |name: &str| DAYS.iter().position(|day| name.trim().eq_ignore_ascii_case(day));
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        days.extend((0..7).map(|step| (first + step) % 7).take((last + 7 - first) % 7 + 1).map(|day| day as u64));
    }
    Some(days)
}

fn parse_minute(text: &str) -> Option<u64> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse::<u64>().ok())?;
    let (hour, minute) = (number(hour)?, number(minute)?);
    let total = hour * 60 + minute;
    (minute < 60 && total <= DAY_MINUTES).then_some(total)
}

/// "Monday to Friday, 07:00-17:00", as the notice says it.
impl fmt::Display for WorkingHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: [Vec<(u64, u64)>; 7] = std::array::from_fn(|day| self.of_day(day));
        let (mut day, mut said) = (0, false);
        while day < 7 {
            let same = days[day..].iter().take_while(|spans| **spans == days[day]).count();
            if !days[day].is_empty() {
                f.write_str(if said { "; " } else { "" })?;
                f.write_str(DAY_NAMES[day])?;
                if same > 1 {
                    write!(f, " {} {}", if same == 2 { "and" } else { "to" }, DAY_NAMES[day + same - 1])?;
                }
                for (i, (from, to)) in days[day].iter().enumerate() {
                    let before = if i == 0 { ", " } else { " and " };
                    write!(f, "{before}{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
                }
                said = true;
            }
            day += same;
        }
        if said { Ok(()) } else { f.write_str("never") }
    }
}

impl fmt::Debug for WorkingHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// --- the hub's file ---

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    purpose: FilePurpose,
    #[serde(default)]
    retention: PartRetention,
    when: FileWhen,
    #[serde(default)]
    windows: FileWindows,
    #[serde(default)]
    input: FileInput,
    #[serde(default)]
    pictures: FilePictures,
    #[serde(default)]
    network: FileNetwork,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePurpose {
    #[serde(default)]
    organisation: String,
    text: String,
    legal_ground: String,
    contact: String,
    retention_days: Option<u16>,
}

/// A kind that isn't stated is kept as long as the rest.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PartRetention {
    titles_days: Option<u16>,
    pictures_days: Option<u16>,
    network_days: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWhen {
    working_hours: FileHours,
    heartbeat_s: Option<u32>,
    idle_after_s: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHours {
    days: String,
    from: String,
    to: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileWindows {
    applications: bool,
    titles: bool,
    excluded: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileInput {
    counts: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FilePictures {
    detailed_logs_per_day: u8,
    interval_s: u32,
    area: Option<String>,
    blur: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileNetwork {
    addresses: bool,
}

impl File {
    fn policy(self) -> Result<Policy, PolicyError> {
        let File { purpose, retention, when, windows, input, pictures, network } = self;
        let FilePurpose { organisation, text, legal_ground, contact, retention_days } = purpose;
        let retention_days = retention_days.unwrap_or(RETENTION_DAYS);
        Ok(Policy {
            purpose: Purpose { organisation, text, legal_ground, contact },
            retention_days,
            retention: retention.within(retention_days),
            hours: WorkingHours::parse(&when.working_hours.days, &when.working_hours.from, &when.working_hours.to)?,
            heartbeat_s: when.heartbeat_s.unwrap_or(HEARTBEAT_S),
            idle_after_s: when.idle_after_s.unwrap_or(IDLE_AFTER_S),
            applications: windows.applications,
            titles: windows.titles,
            excluded: windows.excluded,
            counts: input.counts,
            pictures: pictures.pictures()?,
            addresses: network.addresses,
            test_mode: false,
            notice: Version::default(),
        })
    }
}

impl PartRetention {
    fn within(self, days: u16) -> KindRetention {
        KindRetention {
            titles_days: self.titles_days.unwrap_or(days),
            pictures_days: self.pictures_days.unwrap_or(days),
            network_days: self.network_days.unwrap_or(days),
        }
    }
}

impl FilePictures {
    fn pictures(self) -> Result<Pictures, PolicyError> {
        let area = match self.area {
            None => Pictures::OFF.area,
            Some(name) => PictureArea::of_name(&name)
                .ok_or_else(|| PolicyError::new("pictures.area", format!("{name:?} is neither \"all\" nor \"active-window\"")))?,
        };
        let blur = self.blur.unwrap_or(Pictures::OFF.blur);
        Ok(Pictures { detailed_logs_per_day: self.detailed_logs_per_day, interval_s: self.interval_s, area, blur })
    }
}

impl PictureArea {
    fn name(self) -> &'static str {
        match self {
            PictureArea::ActiveWindow => "active-window",
            PictureArea::All => "all",
        }
    }

    fn of_name(name: &str) -> Option<PictureArea> {
        [PictureArea::ActiveWindow, PictureArea::All].into_iter().find(|area| area.name() == name)
    }
}

// --- the body of a `Signed` ---

/// Fields are only ever added, and off when missing.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    organisation: String,
    purpose: String,
    legal_ground: String,
    contact: String,
    retention_days: u16,
    titles_days: Option<u16>,
    pictures_days: Option<u16>,
    network_days: Option<u16>,
    /// First and last minute of each span of the local week.
    hours: Vec<(u16, u16)>,
    heartbeat_s: u32,
    idle_after_s: u32,
    #[serde(default)]
    applications: bool,
    #[serde(default)]
    titles: bool,
    #[serde(default)]
    excluded: Vec<String>,
    #[serde(default)]
    counts: bool,
    pictures: Option<WirePictures>,
    #[serde(default)]
    addresses: bool,
    #[serde(default)]
    test_mode: bool,
    notice: Version,
}

#[derive(Serialize, Deserialize)]
struct WirePictures {
    detailed_logs_per_day: u8,
    interval_s: u32,
    area: String,
    blur: bool,
}

impl Wire {
    fn of(policy: &Policy) -> Wire {
        // Minutes of a week fit 16 bits.
        let hours = policy.hours.minutes.iter().map(|(first, last)| (first as u16, last as u16)).collect();
        let Pictures { detailed_logs_per_day, interval_s, area, blur } = policy.pictures;
        Wire {
            organisation: policy.purpose.organisation.clone(),
            purpose: policy.purpose.text.clone(),
            legal_ground: policy.purpose.legal_ground.clone(),
            contact: policy.purpose.contact.clone(),
            retention_days: policy.retention_days,
            titles_days: Some(policy.retention.titles_days),
            pictures_days: Some(policy.retention.pictures_days),
            network_days: Some(policy.retention.network_days),
            hours,
            heartbeat_s: policy.heartbeat_s,
            idle_after_s: policy.idle_after_s,
            applications: policy.applications,
            titles: policy.titles,
            excluded: policy.excluded.clone(),
            counts: policy.counts,
            pictures: Some(WirePictures { detailed_logs_per_day, interval_s, area: area.name().into(), blur }),
            addresses: policy.addresses,
            test_mode: policy.test_mode,
            notice: policy.notice,
        }
    }

    fn policy(self) -> Result<Policy, PolicyError> {
        let mut minutes = Ranges::new();
        for &(first, last) in &self.hours {
            let (first, last) = (u64::from(first), u64::from(last));
            require("when.working_hours", first <= last && last < WEEK_MINUTES, "is not a span of a week's minutes")?;
            minutes.insert_range(first, last);
        }
        let retention = PartRetention { titles_days: self.titles_days, pictures_days: self.pictures_days, network_days: self.network_days };
        Ok(Policy {
            purpose: Purpose {
                organisation: self.organisation,
                text: self.purpose,
                legal_ground: self.legal_ground,
                contact: self.contact,
            },
            retention_days: self.retention_days,
            retention: retention.within(self.retention_days),
            hours: WorkingHours { minutes },
            heartbeat_s: self.heartbeat_s,
            idle_after_s: self.idle_after_s,
            applications: self.applications,
            titles: self.titles,
            excluded: self.excluded,
            counts: self.counts,
            pictures: self.pictures.and_then(WirePictures::pictures).unwrap_or(Pictures::OFF),
            addresses: self.addresses,
            test_mode: self.test_mode,
            notice: self.notice,
        })
    }
}

impl WirePictures {
    /// None for an area that this build doesn't know: it makes no pictures then.
    fn pictures(self) -> Option<Pictures> {
        let area = PictureArea::of_name(&self.area)?;
        Some(Pictures { detailed_logs_per_day: self.detailed_logs_per_day, interval_s: self.interval_s, area, blur: self.blur })
    }
}

impl PolicyError {
    fn new(field: impl Into<String>, what: impl Into<String>) -> PolicyError {
        PolicyError { field: field.into(), what: what.into() }
    }

    /// The field where TOML found its mistake, and the mistake in one line.
    fn of_toml(text: &str, error: &toml::de::Error) -> PolicyError {
        let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        let field = error.span().map_or_else(|| "policy".into(), |span| field_at(text, span.start));
        PolicyError { field, what }
    }
}

/// The dotted name of the field whose key or value stands at a byte of a TOML text, with its line.
fn field_at(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line_number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let key_start = text[line_start..at.min(text.len())].rfind(['{', ',']).map_or(line_start, |place| line_start + place + 1);
    let key_of = |piece: &str| piece.split(['=', '\n', '}']).next().unwrap_or("").trim().to_owned();
    let section = before.lines().rev().map(str::trim).find_map(|line| line.strip_prefix('[')?.split(']').next()).unwrap_or("");
    let outer = if key_start > line_start { key_of(&text[line_start..]) } else { String::new() };
    let key = key_of(&text[key_start..]);
    let path: Vec<&str> = [section.trim(), &outer, &key].into_iter().filter(|part| !part.is_empty() && !part.starts_with('[')).collect();
    if path.is_empty() { format!("line {line_number}") } else { format!("{} (line {line_number})", path.join(".")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Policy);

    pub(super) const EXAMPLE: &str = r#"
[purpose]
text = "Demonstration on this computer"
legal_ground = "the person running it agreed"
contact = "you"
retention_days = 45

[when]
working_hours = { days = "mon-sun", from = "00:00", to = "24:00" }   # outside them nothing is observed
heartbeat_s = 5
idle_after_s = 60

[windows]
applications = true
titles = true
excluded = ["KeePassXC"]

[input]
counts = true

[pictures]
detailed_logs_per_day = 0
interval_s = 15
area = "all"
blur = true

[network]
addresses = true
"#;

    fn example() -> Policy {
        Policy::from_toml(EXAMPLE).unwrap()
    }

    fn changed(from: &str, to: &str) -> Result<Policy, PolicyError> {
        assert!(EXAMPLE.contains(from), "{from}");
        Policy::from_toml(&EXAMPLE.replace(from, to))
    }

    #[test]
    fn the_example_is_read_with_every_switch_on() {
        let policy = example();
        assert_eq!(policy.switches(), Switch::ALL);
        assert_eq!(policy.hours, WorkingHours::always());
        assert!(policy.excludes("keepassxc") && !policy.excludes("KeePass"));
        assert_eq!((policy.heartbeat_s, policy.idle_after_s, policy.retention_days), (5, 60, 45));
    }

    #[test]
    fn what_a_policy_does_not_say_is_off() {
        let shortest =
            "[purpose]\ntext='t'\nlegal_ground='l'\ncontact='c'\n[when]\nworking_hours={days='mon-fri',from='07:00',to='17:00'}\n";
        let policy = Policy::from_toml(shortest).unwrap();
        assert_eq!(policy.switches(), [Switch::Presence]);
        assert_eq!((policy.heartbeat_s, policy.idle_after_s, policy.retention_days), (300, 300, 45));
        assert_eq!(policy.hours.to_string(), "Monday to Friday, 07:00-17:00");
    }

    #[test]
    fn what_is_kept_shorter_is_stated_by_kind_and_never_longer_than_the_rest() {
        assert_eq!(example().retention, KindRetention::alike(45));
        let stated = Policy::from_toml(&format!("{EXAMPLE}\n[retention]\npictures_days = 7\ntitles_days = 14\n")).unwrap();
        assert_eq!(stated.retention, KindRetention { titles_days: 14, pictures_days: 7, network_days: 45 });
        assert_eq!(Policy::from_bytes(&stated.to_bytes()).unwrap(), stated);
        assert!(example().observes_more_than(&stated) && !stated.observes_more_than(&example()));
        for wrong in ["pictures_days = 46", "titles_days = 0"] {
            let error = Policy::from_toml(&format!("{EXAMPLE}\n[retention]\n{wrong}\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("retention.{}", wrong.split(' ').next().unwrap())), "{error}");
        }
        let mut older: serde_json::Value = serde_json::from_slice(&example().to_bytes()).unwrap();
        older.as_object_mut().unwrap().retain(|name, _| !name.ends_with("_days") || name == "retention_days");
        assert_eq!(Policy::from_bytes(older.to_string().as_bytes()).unwrap(), example());
    }

    #[test]
    fn an_error_names_the_field() {
        for (from, to, names) in [
            ("titles = true", "titels = true", "titels"),
            ("titles = true", "titles = 3", "windows.titles"),
            ("days = \"mon-sun\"", "days = \"mon-someday\"", "when.working_hours.days"),
            ("from = \"00:00\"", "from = 7", "when.working_hours.from"),
            ("to = \"24:00\"", "to = \"24:01\"", "when.working_hours.to"),
            ("to = \"24:00\"", "to = \"00:00\"", "when.working_hours.to"),
            ("retention_days = 45", "retention_days = 0", "purpose.retention_days"),
            ("retention_days = 45", "retention_days = -1", "purpose.retention_days"),
            ("contact = \"you\"", "contact = \" \"", "purpose.contact"),
            ("contact = \"you\"", "contact = \"\\u001b[2J\"", "purpose.contact"),
            ("contact = \"you\"\n", "", "contact"),
            ("applications = true", "applications = false", "windows.titles"),
            ("area = \"all\"", "area = \"everything\"", "pictures.area"),
            ("heartbeat_s = 5", "heartbeat_s = 0", "when.heartbeat_s"),
            ("[network]", "[wifi]", "wifi"),
            ("[network]", "[network", "line 27"),
        ] {
            let error = changed(from, to).expect_err(to).to_string();
            assert!(error.contains(names), "{to}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_policy_travels_and_a_newer_hubs_fields_are_ignored() {
        let mut policy =
            changed("days = \"mon-sun\", from = \"00:00\", to = \"24:00\"", "days = \"mon,thu-sat\", from = \"22:00\", to = \"06:00\"")
                .unwrap();
        policy.test_mode = true;
        policy.notice = Version { epoch: 1, n: 3 };
        assert_eq!(Policy::from_bytes(&policy.to_bytes()).unwrap(), policy);

        let mut json: serde_json::Value = serde_json::from_slice(&policy.to_bytes()).unwrap();
        json["camera"] = true.into();
        json["pictures"]["area"] = "the whole street".into();
        let read = Policy::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap();
        assert!(!read.has(Switch::Pictures), "an area that this build doesn't know is not guessed");
        assert!(read.has(Switch::Counts));

        json["hours"] = serde_json::json!([[0, 20_000]]);
        assert!(Policy::from_bytes(&serde_json::to_vec(&json).unwrap()).is_err());
        assert!(Policy::from_bytes(&vec![b' '; POLICY_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn working_hours_know_their_minutes() {
        let at = |text: &str| text.parse::<DateTime>().unwrap();
        let office = WorkingHours::parse("mon-fri", "07:00", "17:00").unwrap();
        assert!(office.contains(at("2026-11-23T07:00:00")), "a Monday");
        assert!(office.contains(at("2026-11-23T16:59:59")));
        assert!(!office.contains(at("2026-11-23T17:00:00")));
        assert!(!office.contains(at("2026-11-22T12:00:00")), "a Sunday");

        let night = WorkingHours::parse("sun", "22:00", "06:00").unwrap();
        assert!(night.contains(at("2026-11-22T23:00:00")), "Sunday's night");
        assert!(night.contains(at("2026-11-23T05:59:00")), "goes on on Monday");
        assert!(!night.contains(at("2026-11-22T05:00:00")));
        assert_eq!(night.to_string(), "Monday, 00:00-06:00; Sunday, 22:00-24:00");
        assert_eq!(
            WorkingHours::parse("sat-mon", "08:00", "09:00").unwrap().to_string(),
            "Monday, 08:00-09:00; Saturday and Sunday, 08:00-09:00"
        );
        assert_eq!(office.and(&night).to_string(), "never");
    }

    #[test]
    fn the_notices_number_rises_exactly_when_more_is_observed_or_kept_longer() {
        let old = changed("days = \"mon-sun\", from = \"00:00\", to = \"24:00\"", "days = \"mon-fri\", from = \"07:00\", to = \"17:00\"")
            .unwrap();
        let with = |change: fn(&mut Policy)| {
            let mut policy = old.clone();
            change(&mut policy);
            policy
        };
        let (sunday, short) = (
            |p: &mut Policy| p.hours = WorkingHours::always(),
            |p: &mut Policy| p.hours = WorkingHours::parse("mon", "08:00", "09:00").unwrap(),
        );
        let more_and_less: [(Change, Change); 12] = [
            (|p| p.titles = true, |p| p.titles = false),
            (|p| p.counts = true, |p| p.counts = false),
            (|p| p.addresses = true, |p| p.addresses = false),
            (|p| p.retention_days = 46, |p| p.retention_days = 44),
            (|p| p.heartbeat_s = 4, |p| p.heartbeat_s = 6),
            (|p| p.idle_after_s = 30, |p| p.idle_after_s = 90),
            (|p| p.excluded.clear(), |p| p.excluded.push("signal".into())),
            (|p| p.pictures.blur = false, |p| p.pictures.interval_s = 60),
            (|p| p.pictures.interval_s = 5, |p| p.pictures.interval_s = 0),
            (|p| p.pictures.detailed_logs_per_day = 1, |p| p.pictures.area = PictureArea::ActiveWindow),
            (sunday, short),
            (|p| p.pictures.area = PictureArea::All, |p| p.purpose.text = "Other words".into()),
        ];
        for (place, (more, less)) in more_and_less.into_iter().enumerate() {
            let (wide, narrow) = (with(more), with(less));
            assert!(wide == old || wide.observes_more_than(&old), "row {place}");
            assert!(!narrow.observes_more_than(&old), "row {place}");
            assert!(!old.observes_more_than(&old));
            assert!(!wide.narrowed_by(&old).observes_more_than(&old), "row {place}");
        }
        let narrow = with(|p| p.titles = false);
        assert!(old.observes_more_than(&narrow));
        assert!(
            !with(|p| {
                p.notice.n = 9;
                p.test_mode = true
            })
            .observes_more_than(&old)
        );
    }

    #[test]
    fn only_allowed_switches_stay_on() {
        let policy = example().only(&[Switch::Presence, Switch::Titles, Switch::Counts]);
        assert_eq!(policy.switches(), [Switch::Presence, Switch::Counts], "a title without its application is not shown either");
        assert!(Switch::ALL.iter().all(|switch| Switch::of_name(switch.name()) == Some(*switch)));
    }
}
