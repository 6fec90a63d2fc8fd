//! Quiet: what an agent observes. One `Record` is one observation; there is no room in it for which key, in which order or rhythm.
//!
//! Tags are the order of the variants, one byte each in bincode, and are never renumbered: after the first release enums grow at the end only.

use bincode::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::{
    ids::{Lane, SpoolId},
    limits,
};

/// One observation.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Milliseconds UTC by the wall clock of the agent's computer; for a span, its begin.
    pub at: i64,
    pub kind: Kind,
}

/// All that can be recorded, in the order of design.md's table.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Kind {
    Heartbeat(Heartbeat),
    Activity(Activity),
    Focus(Focus),
    Screenshot(Screenshot),
    Session(Session),
    Network(Network),
    Capability(Capability),
    Gap(Gap),
    Timer(Timer),
    Entry(Entry),
}

/// The names of the kinds, as metrics, tables and summaries use them; a tag is the place in this list.
pub const KIND_NAMES: [&str; 10] =
    ["heartbeat", "activity", "focus", "screenshot", "session", "network", "capability", "gap", "timer", "entry"];

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Heartbeat {
    pub state: State,
    /// None: no battery, or this build can't see one.
    pub battery: Option<Battery>,
    /// Version of the agent's program.
    pub version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Battery {
    /// 0 to 100.
    pub percent: u8,
    pub charging: bool,
}

/// What the person's computer is doing, as presence shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum State {
    WaitingForNotice,
    Active,
    Idle,
    /// In a call, or media is playing: no input, and yet not idle.
    Call,
    Locked,
    Paused,
    Asleep,
    OutsideHours,
    BatteryLow,
    Leaving,
}

impl State {
    pub const ALL: [State; 10] = [
        State::WaitingForNotice,
        State::Active,
        State::Idle,
        State::Call,
        State::Locked,
        State::Paused,
        State::Asleep,
        State::OutsideHours,
        State::BatteryLow,
        State::Leaving,
    ];

    /// The name that the API and the tables use.
    pub fn name(self) -> &'static str {
        match self {
            State::WaitingForNotice => "waiting_for_notice",
            State::Active => "active",
            State::Idle => "idle",
            State::Call => "call",
            State::Locked => "locked",
            State::Paused => "paused",
            State::Asleep => "asleep",
            State::OutsideHours => "outside_hours",
            State::BatteryLow => "battery_low",
            State::Leaving => "leaving",
        }
    }
}

/// One minute with input: how many, never which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Activity {
    /// Length of the span in milliseconds: a minute, or less where something cut it.
    pub ms: u32,
    pub keys: u32,
    pub clicks: u32,
    pub wheel: u32,
    pub pointer_moved: bool,
    pub active_ms: u32,
    pub idle_ms: u32,
}

/// A window was in front for a while.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Focus {
    pub ms: u32,
    pub application: Application,
    /// None: policy doesn't allow titles, or there is none.
    pub title: Option<String>,
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Application {
    Named(String),
    /// An excluded application: that it happened, and for how long.
    Private,
    /// Nothing was in front, or it has no name.
    None,
}

/// How the window in front was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Source {
    X11,
    Portal,
    /// It can't be seen here: "cannot see" is never "idle".
    None,
}

/// One picture of a monitor or of a window; a detailed log over several monitors is one group of parts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Screenshot {
    pub area: Area,
    pub width: u32,
    pub height: u32,
    pub format: PictureFormat,
    pub blurred: bool,
    pub why: Why,
    pub sha256: [u8; 32],
    pub group: [u8; 16],
    pub part: u8,
    pub parts: u8,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Area {
    Monitor,
    ActiveWindow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum PictureFormat {
    Webp,
    Jpeg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Why {
    DetailedLog,
    Interval,
}

/// Something happened to the session.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Session {
    Start,
    Stop,
    Lock,
    Unlock,
    /// The computer slept; noticed by the clocks, or told by the system.
    Suspend,
    Resume {
        /// How long it slept, in milliseconds.
        slept_ms: u64,
    },
    Pause,
    Unpause {
        /// How long nothing was collected, in milliseconds.
        paused_ms: u64,
    },
    NoticeAcknowledged {
        /// SHA-256 of the text shown.
        sha256: [u8; 32],
        /// BCP 47 tag of the text's language.
        language: String,
        /// The switches that the text named: nothing else may be observed under it.
        switches: Vec<String>,
    },
}

impl Session {
    /// The name that the API and the tables use.
    pub fn name(&self) -> &'static str {
        match self {
            Session::Start => "start",
            Session::Stop => "stop",
            Session::Lock => "lock",
            Session::Unlock => "unlock",
            Session::Suspend => "suspend",
            Session::Resume { .. } => "resume",
            Session::Pause => "pause",
            Session::Unpause { .. } => "unpause",
            Session::NoticeAcknowledged { .. } => "notice_acknowledged",
        }
    }
}

/// The computer's own addresses, at a change.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Network {
    pub addresses: Vec<String>,
}

/// What this agent can and can't measure here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Capability {
    /// Which collector or switch.
    pub what: String,
    pub able: bool,
    /// Plain words; empty where there is nothing to say.
    pub why: String,
}

/// Something was dropped, and this says so.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Gap {
    pub lane: Lane,
    /// The batches' numbers, if they had any.
    pub numbers: Option<Numbers>,
    /// How many records, as far as known.
    pub records: u64,
    pub bytes: u64,
    pub reason: GapReason,
}

/// Numbers of one spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Numbers {
    pub spool: SpoolId,
    pub first: u64,
    /// None: from `first` up, whatever isn't stored.
    pub last: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum GapReason {
    /// The agent's disk budget was used up.
    Budget,
    /// The bytes on the agent's disk are damaged.
    Damaged,
    /// The relay returned it too often. Only agents up to version 0.1.0 give a number up for that.
    Returned,
    /// A collector made records faster than they could be kept.
    Overflow,
    /// A picture that the policy asks for was not taken: an excluded window could be seen.
    Excluded,
    /// … the session was locked.
    Locked,
    /// … the person had paused.
    Paused,
    /// … the hours were over.
    OutsideHours,
    /// … the computer slept, or the agent didn't run.
    Asleep,
    /// … the battery was low.
    BatteryLow,
    /// … the screen couldn't be read.
    Failed,
}

impl GapReason {
    /// In the order of their tags.
    pub const ALL: [GapReason; 11] = [
        GapReason::Budget,
        GapReason::Damaged,
        GapReason::Returned,
        GapReason::Overflow,
        GapReason::Excluded,
        GapReason::Locked,
        GapReason::Paused,
        GapReason::OutsideHours,
        GapReason::Asleep,
        GapReason::BatteryLow,
        GapReason::Failed,
    ];

    /// Whether it tells of a picture that was never taken: nothing that existed was dropped.
    pub fn is_not_taken(self) -> bool {
        match self {
            GapReason::Budget | GapReason::Damaged | GapReason::Returned | GapReason::Overflow => false,
            GapReason::Excluded
            | GapReason::Locked
            | GapReason::Paused
            | GapReason::OutsideHours
            | GapReason::Asleep
            | GapReason::BatteryLow
            | GapReason::Failed => true,
        }
    }

    /// The name that the API and the tables use.
    pub fn name(self) -> &'static str {
        match self {
            GapReason::Budget => "budget",
            GapReason::Damaged => "damaged",
            GapReason::Returned => "returned",
            GapReason::Overflow => "overflow",
            GapReason::Excluded => "excluded",
            GapReason::Locked => "locked",
            GapReason::Paused => "paused",
            GapReason::OutsideHours => "outside_hours",
            GapReason::Asleep => "asleep",
            GapReason::BatteryLow => "battery_low",
            GapReason::Failed => "failed",
        }
    }
}

/// A timer that the person started or stopped.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Timer {
    pub timer: [u8; 16],
    pub running: bool,
    pub task: String,
}

/// A time entry that the person made while offline.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    pub entry: [u8; 16],
    pub ms: u64,
    pub task: String,
    pub note: String,
}

/// Why a record breaks a bound of version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a text holds a NUL character")]
    Nul,
    #[error("a text is longer than the format allows")]
    TextTooLong,
    #[error("a list is longer than the format allows")]
    ListTooLong,
    #[error("a number doesn't fit the database's signed 64 bits")]
    NumberTooLarge,
    #[error("a gap's first number comes after its last")]
    GapBackwards,
}

impl Record {
    /// Place of the kind in [`KIND_NAMES`].
    pub fn tag(&self) -> usize {
        match self.kind {
            Kind::Heartbeat(_) => 0,
            Kind::Activity(_) => 1,
            Kind::Focus(_) => 2,
            Kind::Screenshot(_) => 3,
            Kind::Session(_) => 4,
            Kind::Network(_) => 5,
            Kind::Capability(_) => 6,
            Kind::Gap(_) => 7,
            Kind::Timer(_) => 8,
            Kind::Entry(_) => 9,
        }
    }

    pub fn kind_name(&self) -> &'static str {
        KIND_NAMES[self.tag()]
    }

    /// The bounds of version 1 that decoding alone doesn't check.
    pub fn check(&self) -> Result<(), RecordError> {
        match &self.kind {
            Kind::Heartbeat(heartbeat) => text(&heartbeat.version),
            Kind::Activity(_) => Ok(()),
            Kind::Focus(focus) => {
                if let Application::Named(name) = &focus.application {
                    text(name)?;
                }
                match &focus.title {
                    Some(title) if title.chars().count() > limits::TITLE_CHARS_MAX => Err(RecordError::TextTooLong),
                    Some(title) => text(title),
                    None => Ok(()),
                }
            }
            Kind::Screenshot(_) => Ok(()),
            Kind::Session(session) => match session {
                Session::Resume { slept_ms: ms } | Session::Unpause { paused_ms: ms } => number(*ms),
                Session::NoticeAcknowledged { language, switches, .. } => {
                    text(language)?;
                    list(switches)
                }
                Session::Start | Session::Stop | Session::Lock | Session::Unlock | Session::Suspend | Session::Pause => Ok(()),
            },
            Kind::Network(network) => list(&network.addresses),
            Kind::Capability(capability) => text(&capability.what).and(text(&capability.why)),
            Kind::Gap(gap) => {
                number(gap.records)?;
                number(gap.bytes)?;
                let Some(numbers) = &gap.numbers else { return Ok(()) };
                number(numbers.first)?;
                number(numbers.last.unwrap_or(0))?;
                if numbers.first == 0 || numbers.last.is_some_and(|last| last < numbers.first) {
                    return Err(RecordError::GapBackwards);
                }
                Ok(())
            }
            Kind::Timer(timer) => text(&timer.task),
            Kind::Entry(entry) => {
                number(entry.ms)?;
                text(&entry.task)?;
                text(&entry.note)
            }
        }
    }
}

/// Lists in a record: addresses, switches.
const LIST_MAX: usize = 64;

fn text(text: &str) -> Result<(), RecordError> {
    if text.contains('\0') {
        return Err(RecordError::Nul);
    }
    if text.len() > limits::TEXT_BYTES_MAX { Err(RecordError::TextTooLong) } else { Ok(()) }
}

fn list(texts: &[String]) -> Result<(), RecordError> {
    if texts.len() > LIST_MAX {
        return Err(RecordError::ListTooLong);
    }
    texts.iter().try_for_each(|each| text(each))
}

fn number(number: u64) -> Result<(), RecordError> {
    if number > i64::MAX as u64 { Err(RecordError::NumberTooLarge) } else { Ok(()) }
}

/// SHA-256 over the records' bytes as a batch carries them, without its head: what journals and the hub's check compare.
pub fn digest(records: &[Record]) -> [u8; 32] {
    Sha256::digest(encode(records)).into()
}

/// The records' bytes as a batch carries them: their count, then each.
pub fn encode(records: &[Record]) -> Vec<u8> {
    // Encoding into memory of derived types without skipped variants has no failing case.
    bincode::encode_to_vec(records, bincode::config::standard()).unwrap_or_default()
}
