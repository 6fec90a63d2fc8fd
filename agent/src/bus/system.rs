//! Async: the system bus: logind says whether the session is locked and the computer goes to sleep, UPower what the battery holds.

use std::collections::HashMap;

use futures_util::{Stream, StreamExt, stream};
use muster_mesh::record::Battery;
use tokio::time::{Instant, timeout_at};
use zbus::{
    MatchRule, Message, MessageStream,
    connection::Builder,
    message::Type,
    zvariant::{OwnedObjectPath, OwnedValue},
};

use super::{
    Addresses, Bus, LEVELS_EVERY, LEVELS_SOONEST, Level, Object, SIGNALS_MAX,
    line::{Attempt, Depth},
    may_be_call,
};
use crate::collect::sense::{Power, SenseError, SessionSight};

/// What was heard last, of each service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemWord {
    pub session: Result<SessionSight, SenseError>,
    pub power: Result<Power, SenseError>,
    /// Whether a program of ours keeps the screen on through logind.
    pub is_held: Result<bool, SenseError>,
}

const MANAGER: Object<'static> =
    Object { service: "org.freedesktop.login1", path: "/org/freedesktop/login1", interface: "org.freedesktop.login1.Manager" };
const SESSION: &str = "org.freedesktop.login1.Session";
const UPOWER: Object<'static> =
    Object { service: "org.freedesktop.UPower", path: "/org/freedesktop/UPower", interface: "org.freedesktop.UPower" };
/// All batteries in one, as panels show it.
const DISPLAY_DEVICE: Object<'static> =
    Object { path: "/org/freedesktop/UPower/devices/DisplayDevice", interface: "org.freedesktop.UPower.Device", ..UPOWER };
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// UPower's number of a state.
const CHARGING: u32 = 1;

/// Listens until the bus is lost.
pub async fn hear(attempt: Attempt<'_, SystemWord>, addresses: &Addresses) -> SenseError {
    let connected = Bus::connect("the system bus", addresses.system.as_deref(), Builder::system).await;
    let bus = match connected {
        Ok(bus) => bus,
        Err(error) => return error,
    };
    let ears = Ears { bus, session_id: addresses.session_id.clone(), session: None, locked: Level::default(), sleeping: Level::default() };
    match attempt.depth() {
        Depth::Nothing | Depth::Services => ears.find(attempt).await,
        Depth::Everything => ears.hear(attempt).await,
    }
}

struct Ears {
    bus: Bus,
    session_id: Option<String>,
    /// Ours, once it is found.
    session: Option<OwnedObjectPath>,
    locked: Level,
    sleeping: Level,
}

impl Ears {
    /// Says which services there are; their values are nobody's.
    async fn find(mut self, mut attempt: Attempt<'_, SystemWord>) -> SenseError {
        let word = SystemWord {
            session: self.our_session().await.map(|_| SessionSight::default()),
            power: self.runs(UPOWER).await.map(|()| Power { on_ac: true, battery: None }),
            is_held: self.runs(MANAGER).await.map(|()| false),
        };
        attempt.tell(word);
        std::future::pending().await
    }

    async fn hear(mut self, mut attempt: Attempt<'_, SystemWord>) -> SenseError {
        let mut signals = match self.signals().await {
            Ok(signals) => signals,
            Err(_) => return self.bus.lost(),
        };
        loop {
            let mut word = self.ask().await;
            if self.is_lost(&word) {
                return self.bus.lost();
            }
            attempt.tell(word.clone());
            let (soonest, mut next) = (Instant::now() + LEVELS_SOONEST, Instant::now() + LEVELS_EVERY);
            while let Ok(signal) = timeout_at(next, signals.next()).await {
                let Some(Ok(signal)) = signal else { return self.bus.lost() };
                self.note(&signal);
                // What is certain by the signal alone is told at once, all else asked for soon.
                if word.session.is_ok() {
                    word.session = Ok(self.sight());
                    attempt.tell(word.clone());
                }
                next = soonest;
                if Instant::now() >= soonest {
                    break;
                }
            }
        }
    }

    async fn signals(&self) -> zbus::Result<impl Stream<Item = zbus::Result<Message>> + use<>> {
        let of = |object: Object<'static>| MatchRule::builder().msg_type(Type::Signal).sender(object.service);
        let rules = [
            of(MANAGER)?.interface(MANAGER.interface)?.member("PrepareForSleep")?.build(),
            of(MANAGER)?.interface(SESSION)?.build(),
            of(MANAGER)?.interface(PROPERTIES)?.path_namespace("/org/freedesktop/login1/session")?.build(),
            of(UPOWER)?.interface(PROPERTIES)?.path_namespace(UPOWER.path)?.build(),
        ];
        let mut streams = Vec::new();
        for rule in rules {
            streams.push(MessageStream::for_match_rule(rule, &self.bus.connection, Some(SIGNALS_MAX)).await?);
        }
        Ok(stream::select_all(streams))
    }

    /// Takes what a signal says by itself.
    fn note(&mut self, signal: &Message) {
        let header = signal.header();
        let member = header.member().map(|member| member.as_str()).unwrap_or_default();
        let ours = self.session.as_ref().is_some_and(|session| header.path().is_some_and(|path| path.as_str() == session.as_str()));
        match member {
            "PrepareForSleep" => self.sleeping.hear(signal.body().deserialize().unwrap_or_default()),
            "Lock" if ours => self.locked.hear(true),
            "Unlock" if ours => self.locked.hear(false),
            _ => {}
        }
    }

    fn sight(&self) -> SessionSight {
        SessionSight { locked: self.locked.holds, sleeping: self.sleeping.holds }
    }

    fn is_lost(&self, word: &SystemWord) -> bool {
        let lost = self.bus.lost();
        [word.session.as_ref().err(), word.power.as_ref().err(), word.is_held.as_ref().err()].contains(&Some(&lost))
    }

    // --- what is asked for ---

    async fn ask(&mut self) -> SystemWord {
        SystemWord { session: self.ask_session().await, power: self.ask_power().await, is_held: self.ask_inhibitors().await }
    }

    async fn ask_session(&mut self) -> Result<SessionSight, SenseError> {
        let path = self.our_session().await?;
        let session = Object { path: path.as_str(), interface: SESSION, ..MANAGER };
        match self.bus.property(session, "LockedHint").await {
            Ok(locked) => self.locked.read(locked),
            Err(error) => {
                // The session may have ended; the next question looks for ours again.
                self.session = None;
                return Err(error);
            }
        }
        self.sleeping.read(self.bus.property(MANAGER, "PreparingForSleep").await?);
        Ok(self.sight())
    }

    /// The one that the environment names, else that of this process, else the one that the person sees: a service of the person is in none.
    async fn our_session(&mut self) -> Result<OwnedObjectPath, SenseError> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let mut found: Result<OwnedObjectPath, SenseError> = Err(none());
        if let Some(id) = &self.session_id {
            found = self.bus.call(MANAGER, "GetSession", &(id,)).await;
        }
        if let Err(SenseError::NotSupported(_)) = found {
            found = self.bus.call(MANAGER, "GetSessionByPID", &(std::process::id(),)).await;
        }
        if let Err(SenseError::NotSupported(_)) = found {
            found = self.shown_session().await;
        }
        self.session = found.as_ref().ok().cloned();
        found
    }

    async fn shown_session(&self) -> Result<OwnedObjectPath, SenseError> {
        let user: OwnedObjectPath = self.bus.call(MANAGER, "GetUser", &(uid(),)).await?;
        let user = Object { path: user.as_str(), interface: "org.freedesktop.login1.User", ..MANAGER };
        let (id, path): (String, OwnedObjectPath) =
            self.bus.property::<OwnedValue>(user, "Display").await?.try_into().map_err(|_| none())?;
        if id.is_empty() { Err(none()) } else { Ok(path) }
    }

    async fn ask_power(&self) -> Result<Power, SenseError> {
        let on_battery: bool = self.bus.property(UPOWER, "OnBattery").await?;
        let all = Object { interface: PROPERTIES, ..DISPLAY_DEVICE };
        let device: HashMap<String, OwnedValue> = self.bus.call(all, "GetAll", &(DISPLAY_DEVICE.interface,)).await?;
        Ok(Power { on_ac: !on_battery, battery: battery(&device) })
    }

    async fn ask_inhibitors(&self) -> Result<bool, SenseError> {
        let held: Vec<Inhibitor> = self.bus.call(MANAGER, "ListInhibitors", &()).await?;
        let uid = uid();
        Ok(held.iter().any(|inhibitor| keeps_screen_on(inhibitor, uid)))
    }

    async fn runs(&self, object: Object<'_>) -> Result<(), SenseError> {
        let bus = Object { service: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };
        let runs: bool = self.bus.call(bus, "NameHasOwner", &(object.service,)).await?;
        if runs { Ok(()) } else { Err(SenseError::NotSupported(format!("{} doesn't run here", object.service))) }
    }
}

fn none() -> SenseError {
    SenseError::NotSupported("logind knows no session of this person".into())
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// What, who, why, mode, user, process.
type Inhibitor = (String, String, String, String, u32, u32);

/// Other users' programs and mere delays tell nothing of this person.
fn keeps_screen_on((what, who, _, mode, user, _): &Inhibitor, uid: u32) -> bool {
    what.split(':').any(|what| what == "idle") && mode == "block" && *user == uid && may_be_call(who)
}

fn battery(device: &HashMap<String, OwnedValue>) -> Option<Battery> {
    let is_present = device.get("IsPresent").and_then(|value| bool::try_from(value).ok())?;
    let percent = device.get("Percentage").and_then(|value| f64::try_from(value).ok()).filter(|percent| percent.is_finite())?;
    let state = device.get("State").and_then(|value| u32::try_from(value).ok());
    // Clamped to 0 to 100 it fits, whatever was sent.
    let percent = percent.clamp(0.0, 100.0).round() as u8;
    is_present.then_some(Battery { percent, charging: state == Some(CHARGING) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inhibitor(what: &str, who: &str, mode: &str, user: u32) -> Inhibitor {
        (what.into(), who.into(), "why".into(), mode.into(), user, 1)
    }

    #[test]
    fn only_this_persons_programs_that_block_idleness_may_be_a_call() {
        for (what, who, mode, user, held) in [
            ("idle", "firefox", "block", 1000, true),
            ("sleep:idle", "zoom", "block", 1000, true),
            ("sleep", "NetworkManager", "block", 1000, false),
            ("idle", "firefox", "delay", 1000, false),
            ("idle", "backup", "block", 0, false),
            ("idle", "caffeine-ng", "block", 1000, false),
            ("idleness", "firefox", "block", 1000, false),
        ] {
            assert_eq!(keeps_screen_on(&inhibitor(what, who, mode, user), 1000), held, "{what} {who} {mode} {user}");
        }
    }

    #[test]
    fn a_battery_is_there_charged_and_bounded() {
        let device = |present: bool, percent: f64, state: u32| {
            HashMap::from([
                ("IsPresent".to_owned(), OwnedValue::from(present)),
                ("Percentage".to_owned(), OwnedValue::from(percent)),
                ("State".to_owned(), OwnedValue::from(state)),
            ])
        };
        assert_eq!(battery(&device(true, 41.6, 2)), Some(Battery { percent: 42, charging: false }));
        assert_eq!(battery(&device(true, 250.0, 1)), Some(Battery { percent: 100, charging: true }));
        assert_eq!(battery(&device(false, 0.0, 0)), None);
        assert_eq!(battery(&device(true, f64::NAN, 2)), None);
        assert_eq!(battery(&HashMap::new()), None);
    }
}
