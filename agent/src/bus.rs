//! Blocking: what the two message buses of a desktop tell: the session locked, the computer going to sleep, its battery, programs that keep the
//! screen on. The only files that name the bus's driver are this one and those below it.
//!
//! One thread listens; the collector looks at what was heard last, so that a service that hangs never delays a second of the day. While
//! nothing may be observed there is no connection.
//!
//! ```text
//! collector ── wish ──▶ Line ◀── word ── thread "buses" ─┬─ system: logind, UPower
//!                                                        └─ session: the desktop's inhibitors
//! ```

mod line;
mod session;
mod system;

use std::{io, sync::Arc, thread, thread::JoinHandle, time::Duration};

use tokio_util::sync::CancellationToken;
use zbus::{
    Connection,
    connection::Builder,
    proxy::{CacheProperties, MethodFlags, Proxy},
    zvariant::{DynamicType, OwnedValue, Type},
};

use self::{
    line::{Depth, Line},
    session::SessionWord,
    system::SystemWord,
};
use crate::collect::sense::{CallWatch, Power, SenseError, SessionSight, SessionWatch};

/// A service that is asked answers in milliseconds, or hangs.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Levels are asked for again so often, whatever signals said meanwhile.
const LEVELS_EVERY: Duration = Duration::from_secs(5);
/// And not more often than this, however many signals come.
const LEVELS_SOONEST: Duration = Duration::from_secs(1);
/// Signals that wait to be heard; who sends more waits too.
const SIGNALS_MAX: usize = 64;

/// Where the buses are, and which session is ours. None: what is usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    pub system: Option<String>,
    pub session: Option<String>,
    /// logind's id of the session.
    pub session_id: Option<String>,
}

/// Listens while anybody holds it.
pub struct Buses {
    lines: Arc<Lines>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

struct Lines {
    system: Line<SystemWord>,
    session: Line<SessionWord>,
}

/// logind: the session locked and unlocked, the computer going to sleep.
pub struct Logind(pub Arc<Buses>);

/// Programs that keep the screen on: of the desktop's session, and of logind.
pub struct Inhibitors(pub Arc<Buses>);

/// UPower, where it runs.
pub struct Upower(pub Arc<Buses>);

impl Buses {
    /// Starts the thread; nothing is connected before something is asked for.
    pub fn start(addresses: Addresses) -> io::Result<Arc<Buses>> {
        let lines = Arc::new(Lines { system: Line::new(), session: Line::new() });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("buses".into()).spawn({
            let (lines, stop) = (lines.clone(), stop.clone());
            move || runtime.block_on(listen(&lines, &addresses, &stop))
        })?;
        Ok(Arc::new(Buses { lines, stop, thread: Some(thread) }))
    }
}

impl Drop for Buses {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that listens to the buses ended by a fault");
        }
    }
}

async fn listen(lines: &Lines, addresses: &Addresses, stop: &CancellationToken) {
    let system = lines.system.follow(async |attempt| system::hear(attempt, addresses).await);
    let session = lines.session.follow(async |attempt| session::hear(attempt, addresses).await);
    tokio::select! {
        () = stop.cancelled() => {}
        _ = async { tokio::join!(system, session) } => {}
    }
}

// --- the senses ---

impl SessionWatch for Logind {
    fn probe(&mut self) -> Result<(), SenseError> {
        self.0.lines.system.ask(Depth::Services)?.session.map(|_| ())
    }

    fn session(&mut self) -> Result<SessionSight, SenseError> {
        self.0.lines.system.ask(Depth::Everything)?.session
    }

    fn rest(&mut self) {
        self.0.lines.system.rest();
    }
}

impl CallWatch for Inhibitors {
    fn probe(&mut self) -> Result<(), SenseError> {
        self.is_held_at(Depth::Services).map(|_| ())
    }

    fn is_held(&mut self) -> Result<bool, SenseError> {
        self.is_held_at(Depth::Everything)
    }

    fn rest(&mut self) {
        self.0.lines.session.rest();
    }
}

impl Inhibitors {
    /// Either of both services is enough to know that one is held.
    fn is_held_at(&self, depth: Depth) -> Result<bool, SenseError> {
        let desktop = self.0.lines.session.ask(depth).and_then(|word| word.is_held);
        let logind = self.0.lines.system.ask(depth).and_then(|word| word.is_held);
        match (desktop, logind) {
            (Ok(desktop), Ok(logind)) => Ok(desktop || logind),
            (Ok(held), Err(_)) | (Err(_), Ok(held)) => Ok(held),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

impl Upower {
    pub fn probe(&self) -> Result<(), SenseError> {
        self.0.lines.system.ask(Depth::Services)?.power.map(|_| ())
    }

    pub fn power(&self) -> Result<Power, SenseError> {
        self.0.lines.system.ask(Depth::Everything)?.power
    }

    pub fn rest(&self) {
        self.0.lines.system.rest();
    }
}

// --- one bus, as both sides use it ---

/// A connected bus.
struct Bus {
    connection: Connection,
    /// For people, as in "the system bus".
    name: &'static str,
}

/// An object of a service.
#[derive(Clone, Copy)]
struct Object<'a> {
    service: &'a str,
    path: &'a str,
    interface: &'a str,
}

impl Bus {
    async fn connect(name: &'static str, address: Option<&str>, usual: fn() -> zbus::Result<Builder<'static>>) -> Result<Bus, SenseError> {
        let unreachable = || SenseError::Lost(format!("{name} can't be reached"));
        let builder = match address {
            Some(address) => Builder::address(address),
            None => usual(),
        };
        let building = builder.map_err(|_| unreachable())?.method_timeout(ANSWER_MAX).build();
        let connection = tokio::time::timeout(ANSWER_MAX, building).await.map_err(|_| unreachable())?.map_err(|_| unreachable())?;
        Ok(Bus { connection, name })
    }

    /// Calls a service that runs; none is started for it.
    async fn call<B, R>(&self, object: Object<'_>, method: &str, body: &B) -> Result<R, SenseError>
    where
        B: serde::ser::Serialize + DynamicType,
        R: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        let asking = async {
            let proxy: Proxy<'_> = zbus::proxy::Builder::new(&self.connection)
                .destination(object.service)?
                .path(object.path)?
                .interface(object.interface)?
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            proxy.call_with_flags(method, MethodFlags::NoAutoStart.into(), body).await
        };
        match asking.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(SenseError::NotSupported(format!("{} gives no answer", object.service))),
            Err(error) => Err(self.trouble(object, &error)),
        }
    }

    async fn property<R>(&self, object: Object<'_>, name: &str) -> Result<R, SenseError>
    where
        R: TryFrom<OwnedValue> + Type,
    {
        let properties = Object { interface: "org.freedesktop.DBus.Properties", ..object };
        let value: OwnedValue = self.call(properties, "Get", &(object.interface, name)).await?;
        R::try_from(value).map_err(|_| SenseError::NotSupported(format!("{} has no {name} as it should be", object.service)))
    }

    fn lost(&self) -> SenseError {
        SenseError::Lost(format!("{} is gone", self.name))
    }

    fn trouble(&self, object: Object<'_>, error: &zbus::Error) -> SenseError {
        let service = object.service;
        match error {
            zbus::Error::MethodError(name, ..) => match name.as_str() {
                "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner" => {
                    SenseError::NotSupported(format!("{service} doesn't run here"))
                }
                "org.freedesktop.DBus.Error.AccessDenied" => SenseError::NotPermitted(format!("{service} refuses to say it")),
                _ => SenseError::NotSupported(format!("{service} can't say it")),
            },
            zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::TimedOut => {
                SenseError::NotSupported(format!("{service} doesn't answer"))
            }
            zbus::Error::InputOutput(_) | zbus::Error::Connection(..) => self.lost(),
            _ => SenseError::NotSupported(format!("{service} doesn't answer as it should")),
        }
    }
}

/// A level, as signals and a property tell it. Some desktops only send signals, and their property never changes: so only a property that
/// changed overrules what was heard.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    holds: bool,
    property: Option<bool>,
}

impl Level {
    fn hear(&mut self, holds: bool) {
        self.holds = holds;
    }

    fn read(&mut self, property: bool) {
        if self.property != Some(property) {
            self.property = Some(property);
            self.holds = property;
        }
    }
}

/// Whose only purpose is to keep the screen on: they tell of no call.
const KEEPS_AWAKE: [&str; 2] = ["caffeine", "espresso"];

/// Whether a program that keeps the screen on may be a call or a player.
fn may_be_call(program: &str) -> bool {
    let program = program.to_lowercase();
    !KEEPS_AWAKE.iter().any(|known| program.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_overrules_a_signal_only_when_it_changes() {
        let mut level = Level::default();
        level.read(false);
        level.hear(true);
        level.read(false);
        assert!(level.holds, "this desktop's property never changes");
        level.read(true);
        level.read(false);
        assert!(!level.holds);
        level.read(true);
        assert!(level.holds, "no signal came");
        level.hear(false);
        assert!(!level.holds);
    }

    #[test]
    fn a_program_that_only_keeps_the_screen_on_is_no_call() {
        assert!(may_be_call("org.mozilla.firefox") && may_be_call("Zoom") && may_be_call(""));
        assert!(!may_be_call("caffeine-gnome-extension") && !may_be_call("Caffeine-ng"));
    }

    #[test]
    fn without_a_bus_each_sense_says_so_and_the_thread_ends() {
        let nowhere = Some("unix:path=/nonexistent/bus".to_owned());
        let buses = Buses::start(Addresses { system: nowhere.clone(), session: nowhere, session_id: None }).unwrap();
        let mut logind = Logind(buses.clone());
        let unreachable = |name: &str| SenseError::Lost(format!("{name} can't be reached"));
        assert_eq!(logind.probe(), Err(unreachable("the system bus")));
        assert_eq!(logind.session(), Err(unreachable("the system bus")));
        assert_eq!(Inhibitors(buses.clone()).is_held(), Err(unreachable("the session bus")));
        assert_eq!(Upower(buses.clone()).power(), Err(unreachable("the system bus")));
        logind.rest();
        let lines = Arc::downgrade(&buses.lines);
        drop((logind, buses));
        assert_eq!(lines.strong_count(), 0);
    }
}
