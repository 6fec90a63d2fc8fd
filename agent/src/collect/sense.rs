//! Quiet: what the collector needs from a desktop: some small senses, how they fail, and when a failed one is tried again.
//!
//! A sense is only asked for what may be kept: while nothing may be observed it rests.

use std::collections::BTreeMap;

use muster_mesh::record::{Battery, Capability, Kind, Record, Source};

/// Key presses, clicks and wheel steps since the sense was made; only how many. Nothing else can pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub keys: u64,
    pub clicks: u64,
    pub wheel: u64,
    /// Whether the pointer moved since the last time this was asked.
    pub pointer_moved: bool,
}

/// What is in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Front {
    /// It can't be seen here, or not now.
    Unseen,
    Nothing(Source),
    Window(Window),
}

/// A window, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// How it was found out.
    pub source: Source,
    pub class: String,
    pub instance: String,
    /// None: it wasn't asked for, or there is none.
    pub title: Option<String>,
}

/// Where something lies on the screens, in root coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

/// What is known of the session and the computer around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionSight {
    pub locked: bool,
    /// It goes to sleep, or sleeps, or has just woken without saying so.
    pub sleeping: bool,
}

/// Where the computer's power comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Power {
    pub on_ac: bool,
    pub battery: Option<Battery>,
}

/// What the computer itself says in one tick; asked before the other senses, since it may forbid them. None: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ComputerSight {
    pub session: Option<SessionSight>,
    pub power: Option<Power>,
}

/// What was asked for and seen in one tick. None: not asked, or it can't be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    pub front: Option<Front>,
    pub idle_ms: Option<u64>,
    pub counts: Option<Counts>,
    /// In a call, or media is playing.
    pub call: Option<bool>,
    /// The computer's own, sorted.
    pub addresses: Option<Vec<String>>,
}

/// Why a sense gives nothing; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SenseError {
    #[error("{0}")]
    NoDisplay(String),
    #[error("{0}")]
    NotPermitted(String),
    #[error("{0}")]
    NotSupported(String),
    /// It worked, and the connection broke.
    #[error("{0}")]
    Lost(String),
}

/// The window in front.
pub trait ActiveWindow: Send {
    /// Whether it would work: connects, looks at no window.
    fn probe(&mut self) -> Result<(), SenseError>;
    /// The title is read only when `may_read_title(class, instance)` says so.
    fn front(&mut self, may_read_title: &dyn Fn(&str, &str) -> bool) -> Result<Front, SenseError>;
    /// Where the window in front lies. None: nothing is in front.
    fn geometry(&mut self) -> Result<Option<Rectangle>, SenseError>;
}

/// How long ago the last input was.
pub trait IdleClock: Send {
    fn probe(&mut self) -> Result<(), SenseError>;
    /// Milliseconds; `boot_ms` is the boot clock now.
    fn idle_ms(&mut self, boot_ms: u64) -> Result<u64, SenseError>;
    /// Looks at nothing until it is asked again.
    fn rest(&mut self) {}
}

/// Counts of key presses, clicks and wheel steps, which only rise.
pub trait InputCounter: Send {
    fn probe(&mut self) -> Result<(), SenseError>;
    fn counts(&mut self) -> Result<Counts, SenseError>;
    /// Counts nothing until it is asked again.
    fn rest(&mut self) {}
}

/// Whether the session is locked, and the computer going to sleep. Answers at once, from what was heard last.
pub trait SessionWatch: Send {
    fn probe(&mut self) -> Result<(), SenseError>;
    fn session(&mut self) -> Result<SessionSight, SenseError>;
    /// Hears nothing until it is asked again.
    fn rest(&mut self) {}
}

/// Whether a program keeps the screen on, as calls and players do. Answers at once, from what was heard last.
pub trait CallWatch: Send {
    fn probe(&mut self) -> Result<(), SenseError>;
    fn is_held(&mut self) -> Result<bool, SenseError>;
    /// Hears nothing until it is asked again.
    fn rest(&mut self) {}
}

/// Where the power comes from, and how much the battery holds.
pub trait PowerSource: Send {
    fn probe(&mut self) -> Result<(), SenseError>;
    /// `boot_ms` is the boot clock now.
    fn power(&mut self, boot_ms: u64) -> Result<Power, SenseError>;
    fn rest(&mut self) {}
}

/// The computer's own addresses.
pub trait AddressBook: Send {
    /// Sorted, each once; `boot_ms` is the boot clock now.
    fn addresses(&mut self, boot_ms: u64) -> Result<Vec<String>, SenseError>;
}

const RETRY_FIRST_MS: u64 = 1_000;
const RETRY_MOST_MS: u64 = 60_000;
/// What this desktop can't do, it seldom learns.
const RETRY_UNSUPPORTED_MS: u64 = 600_000;

/// When a sense is tried again after it failed.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    retry_at_ms: u64,
}

impl Backoff {
    pub fn is_due(&self, boot_ms: u64) -> bool {
        boot_ms >= self.retry_at_ms
    }

    /// How long it is until then.
    pub fn due_in_ms(&self, boot_ms: u64) -> u64 {
        self.retry_at_ms.saturating_sub(boot_ms)
    }

    pub fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    pub fn failed(&mut self, error: &SenseError, boot_ms: u64) {
        let wait_ms = match error {
            SenseError::NoDisplay(_) | SenseError::Lost(_) => (RETRY_FIRST_MS << self.failures.min(16)).min(RETRY_MOST_MS),
            SenseError::NotPermitted(_) | SenseError::NotSupported(_) => RETRY_UNSUPPORTED_MS,
        };
        self.failures = self.failures.saturating_add(1);
        self.retry_at_ms = boot_ms + wait_ms;
    }
}

/// What was told about each sense and switch, so that only changes are told.
#[derive(Debug, Default)]
pub struct Abilities {
    told: BTreeMap<&'static str, bool>,
}

impl Abilities {
    /// A record, if this is news; another reason for the same is none.
    pub fn tell(&mut self, at: i64, what: &'static str, able: bool, why: &str) -> Option<Record> {
        if self.told.insert(what, able) == Some(able) {
            return None;
        }
        Some(Record { at, kind: Kind::Capability(Capability { what: what.into(), able, why: why.into() }) })
    }

    /// As `tell`, for something whose ability is only news after its lack was told.
    pub fn tell_lack(&mut self, at: i64, what: &'static str, able: bool, why: &str) -> Option<Record> {
        if able && !self.told.contains_key(what) { None } else { self.tell(at, what, able, why) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use muster_mesh::policy::Policy;

    use super::*;

    /// Everything on, all week, heartbeats every 5 s, idle after 60 s.
    pub(crate) fn policy() -> Policy {
        let text = r#"
            [purpose]
            text = "a test"
            legal_ground = "none"
            contact = "nobody"
            [when]
            working_hours = { days = "mon-sun", from = "00:00", to = "24:00" }
            heartbeat_s = 300
            idle_after_s = 60
            [windows]
            applications = true
            titles = true
            excluded = ["KeePassXC"]
            [input]
            counts = true
        "#;
        Policy::from_toml(text).unwrap()
    }

    #[test]
    fn a_lost_sense_is_tried_again_with_growing_patience() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(0));
        let lost = SenseError::Lost("gone".into());
        let mut now = 10;
        let mut waits = Vec::new();
        for _ in 0..9 {
            backoff.failed(&lost, now);
            let wait = (0..).find(|wait| backoff.is_due(now + wait)).unwrap();
            waits.push(wait);
            now += wait;
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        backoff.succeeded();
        assert!(backoff.is_due(now));
        backoff.failed(&SenseError::NotSupported("never".into()), now);
        assert!(!backoff.is_due(now + 599_999));
    }

    #[test]
    fn an_ability_is_told_once_and_again_when_it_changes() {
        let mut abilities = Abilities::default();
        assert!(abilities.tell(0, "idle", true, "").is_some());
        assert!(abilities.tell(1, "idle", true, "").is_none());
        assert!(abilities.tell(2, "idle", false, "gone").is_some());
        assert!(abilities.tell(3, "idle", false, "still gone").is_none());
        assert!(abilities.tell_lack(3, "titles", true, "").is_none());
        assert!(abilities.tell_lack(4, "titles", false, "unread").is_some());
        assert!(abilities.tell_lack(5, "titles", true, "").is_some());
    }
}
