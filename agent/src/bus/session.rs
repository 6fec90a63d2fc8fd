//! Async: the session bus: whether a program keeps the screen on, as the desktop's own services know it.

use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, timeout_at};
use zbus::{MatchRule, Message, MessageStream, connection::Builder, message::Type, zvariant::OwnedObjectPath};

use super::{
    Addresses, Bus, LEVELS_EVERY, LEVELS_SOONEST, Object, SIGNALS_MAX,
    line::{Attempt, Depth},
    may_be_call,
};
use crate::collect::sense::SenseError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionWord {
    pub is_held: Result<bool, SenseError>,
}

/// GNOME, Cinnamon, MATE.
const GNOME: Object<'static> =
    Object { service: "org.gnome.SessionManager", path: "/org/gnome/SessionManager", interface: "org.gnome.SessionManager" };
/// KDE, Xfce and others.
const POWER: Object<'static> = Object {
    service: "org.freedesktop.PowerManagement",
    path: "/org/freedesktop/PowerManagement/Inhibit",
    interface: "org.freedesktop.PowerManagement.Inhibit",
};

/// GNOME's flag for "don't count the session as idle".
const IDLE: u32 = 8;
/// Programs that are asked who they are; a desktop with more of them is taken as held.
const INHIBITORS_MAX: usize = 32;

/// Listens until the bus is lost.
pub async fn hear(mut attempt: Attempt<'_, SessionWord>, addresses: &Addresses) -> SenseError {
    let connected = Bus::connect("the session bus", addresses.session.as_deref(), Builder::session).await;
    let bus = match connected {
        Ok(bus) => bus,
        Err(error) => return error,
    };
    match attempt.depth() {
        Depth::Nothing | Depth::Services => {
            attempt.tell(SessionWord { is_held: find(&bus).await });
            std::future::pending().await
        }
        Depth::Everything => listen(&bus, attempt).await,
    }
}

async fn listen(bus: &Bus, mut attempt: Attempt<'_, SessionWord>) -> SenseError {
    let Ok(mut signals) = signals(bus).await else { return bus.lost() };
    loop {
        let is_held = ask(bus).await;
        if is_held == Err(bus.lost()) {
            return bus.lost();
        }
        attempt.tell(SessionWord { is_held });
        let (soonest, mut next) = (Instant::now() + LEVELS_SOONEST, Instant::now() + LEVELS_EVERY);
        while let Ok(signal) = timeout_at(next, signals.next()).await {
            let Some(Ok(_)) = signal else { return bus.lost() };
            next = soonest;
            if Instant::now() >= soonest {
                break;
            }
        }
    }
}

async fn signals(bus: &Bus) -> zbus::Result<impl Stream<Item = zbus::Result<Message>> + use<>> {
    let mut streams = Vec::new();
    for (object, member) in [(GNOME, "InhibitorAdded"), (GNOME, "InhibitorRemoved"), (POWER, "HasInhibitChanged")] {
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(object.service)?.interface(object.interface)?.member(member)?.build();
        streams.push(MessageStream::for_match_rule(rule, &bus.connection, Some(SIGNALS_MAX)).await?);
    }
    Ok(stream::select_all(streams))
}

/// Whether there is a service to ask.
async fn find(bus: &Bus) -> Result<bool, SenseError> {
    let names = Object { service: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };
    for object in [GNOME, POWER] {
        if bus.call(names, "NameHasOwner", &(object.service,)).await? {
            return Ok(false);
        }
    }
    Err(nobody())
}

/// Either service is enough to know that one is held.
async fn ask(bus: &Bus) -> Result<bool, SenseError> {
    let (gnome, power) = (ask_gnome(bus).await, bus.call(POWER, "HasInhibit", &()).await);
    match (gnome, power) {
        (Ok(gnome), Ok(power)) => Ok(gnome || power),
        (Ok(held), Err(_)) | (Err(_), Ok(held)) => Ok(held),
        (Err(error), _) if error == bus.lost() => Err(error),
        (Err(_), Err(_)) => Err(nobody()),
    }
}

async fn ask_gnome(bus: &Bus) -> Result<bool, SenseError> {
    if !bus.call::<_, bool>(GNOME, "IsInhibited", &(IDLE,)).await? {
        return Ok(false);
    }
    let Ok(held) = bus.call::<_, Vec<OwnedObjectPath>>(GNOME, "GetInhibitors", &()).await else { return Ok(true) };
    if held.is_empty() || held.len() > INHIBITORS_MAX {
        return Ok(true);
    }
    for path in held {
        let inhibitor = Object { path: path.as_str(), interface: "org.gnome.SessionManager.Inhibitor", ..GNOME };
        let flags: u32 = bus.call(inhibitor, "GetFlags", &()).await.unwrap_or(IDLE);
        let program: String = bus.call(inhibitor, "GetAppId", &()).await.unwrap_or_default();
        if flags & IDLE != 0 && may_be_call(&program) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn nobody() -> SenseError {
    SenseError::NotSupported("no service of this desktop says whether a call or a player keeps the screen on".into())
}
