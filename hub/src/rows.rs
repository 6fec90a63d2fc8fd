//! Quiet: records as rows, and rows as records again, field by field, so that what is kept can be proven to be what was sent.
//!
//! One table per kind. Each small enum has one numbering, its order of declaration, which the records' format has frozen as well.

use std::collections::HashMap;

use muster_mesh::{
    ids::{DeviceId, Lane, SpoolId},
    record::{
        Activity, Application, Area, Battery, Capability, Focus, Gap, GapReason, Heartbeat, Kind, Network, Numbers, PictureFormat, Record,
        Screenshot, Session, Source, State, Why,
    },
};

/// One field of a row. Null has a type, since PostgreSQL wants one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
}

/// A kind that this hub keeps as rows; its name is the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Heartbeat,
    Activity,
    Focus,
    Screenshot,
    Session,
    Network,
    Capability,
    Gap,
}

/// The type of a column that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Int,
    Text,
    Blob,
}

/// How a table's records are read: `r` is the table, look-ups are joined.
pub struct Read {
    pub select: &'static str,
    pub join: &'static str,
    pub shapes: &'static [Shape],
}

/// Numbers of what stands in look-up tables.
#[derive(Debug, Default)]
pub struct Ids {
    pub applications: HashMap<String, i64>,
    pub versions: HashMap<String, i64>,
    pub spools: HashMap<(DeviceId, SpoolId), i64>,
}

/// A row that is no record: the database was changed by another hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row of the table {} is not a record", .0.name())]
pub struct RowError(pub Table);

const PRIVATE: i64 = 0;

impl Table {
    pub const ALL: [Table; 8] =
        [Table::Heartbeat, Table::Activity, Table::Focus, Table::Screenshot, Table::Session, Table::Network, Table::Capability, Table::Gap];

    /// None: timers and entries have no rows yet.
    pub fn of(record: &Record) -> Option<Table> {
        match record.kind {
            Kind::Heartbeat(_) => Some(Table::Heartbeat),
            Kind::Activity(_) => Some(Table::Activity),
            Kind::Focus(_) => Some(Table::Focus),
            Kind::Screenshot(_) => Some(Table::Screenshot),
            Kind::Session(_) => Some(Table::Session),
            Kind::Network(_) => Some(Table::Network),
            Kind::Capability(_) => Some(Table::Capability),
            Kind::Gap(_) => Some(Table::Gap),
            Kind::Timer(_) | Kind::Entry(_) => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Table::Heartbeat => "heartbeat",
            Table::Activity => "activity",
            Table::Focus => "focus",
            Table::Screenshot => "screenshot",
            Table::Session => "session",
            Table::Network => "network",
            Table::Capability => "capability",
            Table::Gap => "gap",
        }
    }

    /// The columns behind the key (day, spool_id, seq, idx), in the order of [`fields`].
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Table::Heartbeat => &["at", "state", "battery", "charging", "version_id"],
            Table::Activity => &["at", "ms", "keys", "clicks", "wheel", "pointer_moved", "active_ms", "idle_ms"],
            Table::Focus => &["at", "ms", "application_id", "title", "source"],
            Table::Screenshot => {
                &["at", "area", "width", "height", "format", "blurred", "why", "sha256", "group_id", "part", "parts", "bytes_len"]
            }
            Table::Session => &["at", "what", "ms", "sha256", "language", "switches"],
            Table::Network => &["at", "addresses"],
            Table::Capability => &["at", "what", "able", "why"],
            Table::Gap => &["at", "lane", "of_spool_id", "first", "last", "records", "bytes", "reason"],
        }
    }

    /// What [`record`] reads, in its order.
    pub fn read(self) -> Read {
        use Shape::{Blob, Int, Text};
        match self {
            Table::Heartbeat => Read {
                select: "r.at, r.state, r.battery, r.charging, v.name",
                join: "LEFT JOIN versions v ON v.id = r.version_id",
                shapes: &[Int, Int, Int, Int, Text],
            },
            Table::Activity => Read {
                select: "r.at, r.ms, r.keys, r.clicks, r.wheel, r.pointer_moved, r.active_ms, r.idle_ms",
                join: "",
                shapes: &[Int; 8],
            },
            Table::Focus => Read {
                select: "r.at, r.ms, r.application_id, a.name, r.title, r.source",
                join: "LEFT JOIN applications a ON a.id = r.application_id",
                shapes: &[Int, Int, Int, Text, Text, Int],
            },
            Table::Screenshot => Read {
                select: "r.at, r.area, r.width, r.height, r.format, r.blurred, r.why, r.sha256, r.group_id, r.part, r.parts",
                join: "",
                shapes: &[Int, Int, Int, Int, Int, Int, Int, Blob, Blob, Int, Int],
            },
            Table::Session => Read {
                select: "r.at, r.what, r.ms, r.sha256, r.language, r.switches",
                join: "",
                shapes: &[Int, Int, Int, Blob, Text, Text],
            },
            Table::Network => Read { select: "r.at, r.addresses", join: "", shapes: &[Int, Text] },
            Table::Capability => Read { select: "r.at, r.what, r.able, r.why", join: "", shapes: &[Int, Text, Int, Text] },
            Table::Gap => Read {
                select: "r.at, r.lane, s.spool, r.first, r.last, r.records, r.bytes, r.reason",
                join: "LEFT JOIN spools s ON s.id = r.of_spool_id",
                shapes: &[Int, Int, Blob, Int, Int, Int, Int, Int],
            },
        }
    }
}

/// The record's fields in the order of [`Table::columns`]. None: it has no table, or a look-up was not made for it.
pub fn fields(record: &Record, device: DeviceId, ids: &Ids) -> Option<Vec<Value>> {
    let mut row = vec![int(record.at)];
    match &record.kind {
        Kind::Heartbeat(heartbeat) => {
            let battery = heartbeat.battery;
            row.push(int(state_number(heartbeat.state)));
            row.push(Value::Int(battery.map(|battery| i64::from(battery.percent))));
            row.push(Value::Int(battery.map(|battery| i64::from(battery.charging))));
            row.push(int(*ids.versions.get(&heartbeat.version)?));
        }
        Kind::Activity(activity) => {
            let Activity { ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms } = *activity;
            row.extend([ms, keys, clicks, wheel, u32::from(pointer_moved), active_ms, idle_ms].map(count));
        }
        Kind::Focus(focus) => {
            let application = match &focus.application {
                Application::Named(name) => Some(*ids.applications.get(name)?),
                Application::Private => Some(PRIVATE),
                Application::None => None,
            };
            row.extend([count(focus.ms), Value::Int(application), Value::Text(focus.title.clone())]);
            row.push(int(source_number(focus.source)));
        }
        Kind::Screenshot(picture) => row.extend(picture_fields(picture)),
        Kind::Session(session) => row.extend(session_fields(session)),
        Kind::Network(network) => row.push(list(&network.addresses)),
        Kind::Capability(capability) => {
            row.extend([text(&capability.what), int(i64::from(capability.able)), text(&capability.why)]);
        }
        Kind::Gap(gap) => {
            let of_spool = match &gap.numbers {
                Some(numbers) => Some(*ids.spools.get(&(device, numbers.spool))?),
                None => None,
            };
            let number = |number: Option<u64>| Value::Int(number.map(|number| number as i64));
            row.extend([int(i64::from(gap.lane.as_u8())), Value::Int(of_spool)]);
            row.extend([number(gap.numbers.map(|numbers| numbers.first)), number(gap.numbers.and_then(|numbers| numbers.last))]);
            row.extend([int(gap.records as i64), int(gap.bytes as i64), int(gap_reason_number(gap.reason))]);
        }
        Kind::Timer(_) | Kind::Entry(_) => return None,
    }
    Some(row)
}

/// The record of a row that was read as [`Table::read`] says. A picture's bytes are in its object: here it has none.
pub fn record(table: Table, values: Vec<Value>) -> Result<Record, RowError> {
    read_record(table, &mut Fields(values.into_iter())).ok_or(RowError(table))
}

fn read_record(table: Table, row: &mut Fields) -> Option<Record> {
    let at = row.int()?;
    let kind = match table {
        Table::Heartbeat => {
            let state = state_of(row.int()?)?;
            let battery = match (row.maybe_int()?, row.maybe_int()?) {
                (Some(percent), Some(charging)) => Some(Battery { percent: percent.try_into().ok()?, charging: charging != 0 }),
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => return None,
            };
            Kind::Heartbeat(Heartbeat { state, battery, version: row.text()? })
        }
        Table::Activity => Kind::Activity(Activity {
            ms: row.count()?,
            keys: row.count()?,
            clicks: row.count()?,
            wheel: row.count()?,
            pointer_moved: row.int()? != 0,
            active_ms: row.count()?,
            idle_ms: row.count()?,
        }),
        Table::Focus => {
            let ms = row.count()?;
            let application = match (row.maybe_int()?, row.maybe_text()?) {
                (None, None) => Application::None,
                (Some(PRIVATE), None) => Application::Private,
                (Some(_), Some(name)) => Application::Named(name),
                (None, Some(_)) | (Some(_), None) => return None,
            };
            Kind::Focus(Focus { ms, application, title: row.maybe_text()?, source: source_of(row.int()?)? })
        }
        Table::Screenshot => Kind::Screenshot(read_picture(row)?),
        Table::Session => Kind::Session(read_session(row)?),
        Table::Network => Kind::Network(Network { addresses: row.list()? }),
        Table::Capability => Kind::Capability(Capability { what: row.text()?, able: row.int()? != 0, why: row.text()? }),
        Table::Gap => {
            let lane = Lane::from_u8(row.int()?.try_into().ok()?)?;
            let numbers = match (row.maybe_blob()?, row.maybe_int()?, row.maybe_int()?) {
                (Some(spool), Some(first), last) => {
                    Some(Numbers { spool: SpoolId(spool.try_into().ok()?), first: first as u64, last: last.map(|last| last as u64) })
                }
                (None, None, None) => None,
                (None, _, _) | (Some(_), None, _) => return None,
            };
            let (records, bytes) = (row.int()? as u64, row.int()? as u64);
            Kind::Gap(Gap { lane, numbers, records, bytes, reason: gap_reason_of(row.int()?)? })
        }
    };
    Some(Record { at, kind })
}

fn picture_fields(picture: &Screenshot) -> [Value; 11] {
    let Screenshot { area, width, height, format, blurred, why, sha256, group, part, parts, bytes } = picture;
    [
        int(*area as i64),
        int(i64::from(*width)),
        int(i64::from(*height)),
        int(*format as i64),
        int(i64::from(*blurred)),
        int(*why as i64),
        blob(sha256),
        blob(group),
        int(i64::from(*part)),
        int(i64::from(*parts)),
        int(bytes.len() as i64),
    ]
}

fn read_picture(row: &mut Fields) -> Option<Screenshot> {
    Some(Screenshot {
        area: [Area::Monitor, Area::ActiveWindow].get(row.place()?).copied()?,
        width: row.u32()?,
        height: row.u32()?,
        format: [PictureFormat::Webp, PictureFormat::Jpeg].get(row.place()?).copied()?,
        blurred: row.int()? != 0,
        why: [Why::DetailedLog, Why::Interval].get(row.place()?).copied()?,
        sha256: row.blob()?.try_into().ok()?,
        group: row.blob()?.try_into().ok()?,
        part: row.int()?.try_into().ok()?,
        parts: row.int()?.try_into().ok()?,
        bytes: Vec::new(),
    })
}

const START: i64 = 0;
const STOP: i64 = 1;
const LOCK: i64 = 2;
const UNLOCK: i64 = 3;
const SUSPEND: i64 = 4;
const RESUME: i64 = 5;
const PAUSE: i64 = 6;
const UNPAUSE: i64 = 7;
const NOTICE_ACKNOWLEDGED: i64 = 8;

fn session_fields(session: &Session) -> [Value; 5] {
    let plain = |what: i64, ms: Option<u64>| {
        [int(what), Value::Int(ms.map(|ms| ms as i64)), Value::Blob(None), Value::Text(None), Value::Text(None)]
    };
    match session {
        Session::Start => plain(START, None),
        Session::Stop => plain(STOP, None),
        Session::Lock => plain(LOCK, None),
        Session::Unlock => plain(UNLOCK, None),
        Session::Suspend => plain(SUSPEND, None),
        Session::Resume { slept_ms } => plain(RESUME, Some(*slept_ms)),
        Session::Pause => plain(PAUSE, None),
        Session::Unpause { paused_ms } => plain(UNPAUSE, Some(*paused_ms)),
        Session::NoticeAcknowledged { sha256, language, switches } => {
            [int(NOTICE_ACKNOWLEDGED), Value::Int(None), Value::Blob(Some(sha256.to_vec())), text(language), list(switches)]
        }
    }
}

fn read_session(row: &mut Fields) -> Option<Session> {
    let what = row.int()?;
    let (ms, sha256) = (row.maybe_int()?, row.maybe_blob()?);
    Some(match what {
        START => Session::Start,
        STOP => Session::Stop,
        LOCK => Session::Lock,
        UNLOCK => Session::Unlock,
        SUSPEND => Session::Suspend,
        RESUME => Session::Resume { slept_ms: ms? as u64 },
        PAUSE => Session::Pause,
        UNPAUSE => Session::Unpause { paused_ms: ms? as u64 },
        NOTICE_ACKNOWLEDGED => {
            Session::NoticeAcknowledged { sha256: sha256?.try_into().ok()?, language: row.text()?, switches: row.list()? }
        }
        _ => return None,
    })
}

fn state_number(state: State) -> i64 {
    state as i64
}

fn state_of(number: i64) -> Option<State> {
    State::ALL.get(usize::try_from(number).ok()?).copied()
}

fn source_number(source: Source) -> i64 {
    match source {
        Source::X11 => 0,
        Source::Portal => 1,
        Source::None => 2,
    }
}

fn source_of(number: i64) -> Option<Source> {
    [Source::X11, Source::Portal, Source::None].get(usize::try_from(number).ok()?).copied()
}

fn gap_reason_number(reason: GapReason) -> i64 {
    match reason {
        GapReason::Budget => 0,
        GapReason::Damaged => 1,
        GapReason::Returned => 2,
        GapReason::Overflow => 3,
        GapReason::Excluded => 4,
        GapReason::Locked => 5,
        GapReason::Paused => 6,
        GapReason::OutsideHours => 7,
        GapReason::Asleep => 8,
        GapReason::BatteryLow => 9,
        GapReason::Failed => 10,
    }
}

fn gap_reason_of(number: i64) -> Option<GapReason> {
    GapReason::ALL.get(usize::try_from(number).ok()?).copied()
}

pub fn int(number: i64) -> Value {
    Value::Int(Some(number))
}

/// A count of the tables that have most rows, whose columns have 32 bits with a sign: beyond 2^31, further than anyone counts in a minute, it
/// stands there less 2^32.
fn count(count: u32) -> Value {
    int(i64::from(count as i32))
}

pub fn text(text: &str) -> Value {
    Value::Text(Some(text.to_owned()))
}

pub fn blob(bytes: &[u8]) -> Value {
    Value::Blob(Some(bytes.to_vec()))
}

fn list(texts: &[String]) -> Value {
    // A list of strings always has a JSON text.
    Value::Text(Some(serde_json::to_string(texts).unwrap_or_default()))
}

/// A row's values, taken one by one; None where the type is another.
struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    fn maybe_int(&mut self) -> Option<Option<i64>> {
        match self.0.next()? {
            Value::Int(number) => Some(number),
            Value::Text(_) | Value::Blob(_) => None,
        }
    }

    fn maybe_text(&mut self) -> Option<Option<String>> {
        match self.0.next()? {
            Value::Text(text) => Some(text),
            Value::Int(_) | Value::Blob(_) => None,
        }
    }

    fn maybe_blob(&mut self) -> Option<Option<Vec<u8>>> {
        match self.0.next()? {
            Value::Blob(bytes) => Some(bytes),
            Value::Int(_) | Value::Text(_) => None,
        }
    }

    fn int(&mut self) -> Option<i64> {
        self.maybe_int()?
    }

    fn count(&mut self) -> Option<u32> {
        i32::try_from(self.int()?).ok().map(|count| count as u32)
    }

    fn u32(&mut self) -> Option<u32> {
        self.int()?.try_into().ok()
    }

    /// The place of a small enum's variant.
    fn place(&mut self) -> Option<usize> {
        self.int()?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        self.maybe_text()?
    }

    fn blob(&mut self) -> Option<Vec<u8>> {
        self.maybe_blob()?
    }

    fn list(&mut self) -> Option<Vec<String>> {
        serde_json::from_str(&self.text()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_small_enum_comes_back_from_its_number() {
        for state in State::ALL {
            assert_eq!(state_of(state_number(state)), Some(state));
        }
        for source in [Source::X11, Source::Portal, Source::None] {
            assert_eq!(source_of(source_number(source)), Some(source));
        }
        for reason in GapReason::ALL {
            assert_eq!(gap_reason_of(gap_reason_number(reason)), Some(reason));
        }
        assert_eq!((state_of(10), source_of(3), gap_reason_of(-1)), (None, None, None));
    }

    #[test]
    fn the_tables_are_named_as_the_kinds() {
        for table in Table::ALL {
            assert!(muster_mesh::record::KIND_NAMES.contains(&table.name()));
            assert_eq!(table.read().shapes.len(), table.read().select.split(", ").count(), "{}", table.name());
        }
    }
}
