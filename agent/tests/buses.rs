//! Async: the collector between a real display and real buses, on which python3-dbusmock plays logind, UPower and a desktop's session.
//!
//! Needs dbus-daemon and python3-dbusmock beside what desktop.rs needs. Without them it is skipped with a line, and fails where `CI` is set.
// Deadlines of real processes.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod stage;

use std::collections::HashMap;

use muster_agent::{bus::Addresses, desktop};
use muster_mesh::record::{Battery, Kind, Record, Session, State};
use tempfile::TempDir;
use zbus::zvariant::{ObjectPath, Value};

use self::stage::{Agent, Bus, CAPABILITY, Desktop, HEARTBEAT, MOCK, Observed, POLICY, Player};

const LOGIND: &str = "org.freedesktop.login1";
const LOGIND_PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SESSION: &str = "org.freedesktop.login1.Session";
const OUR_SESSION: &str = "/org/freedesktop/login1/session/c1";
const UPOWER: &str = "org.freedesktop.UPower";
const UPOWER_PATH: &str = "/org/freedesktop/UPower";
const DISPLAY_DEVICE: &str = "/org/freedesktop/UPower/devices/DisplayDevice";
const GNOME: &str = "org.gnome.SessionManager";
const GNOME_PATH: &str = "/org/gnome/SessionManager";

/// A display, a system bus with logind and UPower, and a session bus with a desktop's session manager.
struct Computer {
    desktop: Desktop,
    system: Bus,
    logind: Player,
    upower: Player,
    session: Bus,
    gnome: Player,
    folder: TempDir,
}

impl Computer {
    /// None: a program is missing.
    async fn start() -> Option<Computer> {
        let mut desktop = Desktop::start()?;
        let folder = tempfile::tempdir().unwrap();
        let mut system = Bus::start(folder.path(), "system").await?;
        let mut session = Bus::start(folder.path(), "session").await?;
        let (logind, upower) = (logind(&mut system, Ours::ByProcess).await, upower(&mut system).await);
        let gnome = session.play_service(GNOME, GNOME_PATH, GNOME).await;
        gnome.answers(GNOME_PATH, GNOME, "IsInhibited", "u", "b", "False").await;
        desktop.window("Writer", "control letter");
        Some(Computer { desktop, system, logind, upower, session, gnome, folder })
    }

    fn seen(&self) -> desktop::Desktop {
        let [system, session] = [&self.system, &self.session].map(|bus| Some(bus.address.clone()));
        let buses = Addresses { system, session, session_id: None };
        desktop::Desktop { display: Some(self.desktop.display.clone()), buses }
    }

    /// Somebody who is idle after two seconds without input.
    async fn agent(&self) -> Agent {
        Agent::start(self.seen(), &POLICY.replace("idle_after_s = 4", "idle_after_s = 2")).await
    }

    /// A program keeps the screen on from now on, or no longer.
    async fn hold(&self, program: Option<&str>) {
        let inhibitor = "/org/gnome/SessionManager/Inhibitor1";
        let (is_held, held) = if program.is_some() { ("True", format!("['{inhibitor}']")) } else { ("False", "[]".into()) };
        if let Some(program) = program {
            let no_methods: &[(&str, &str, &str, &str)] = &[];
            let no_properties: HashMap<&str, Value<'_>> = HashMap::new();
            let interface = "org.gnome.SessionManager.Inhibitor";
            self.gnome.call(MOCK, "AddObject", &(inhibitor, interface, no_properties, no_methods)).await;
            self.gnome.answers(inhibitor, interface, "GetFlags", "", "u", "12").await;
            self.gnome.answers(inhibitor, interface, "GetAppId", "", "s", &format!("'{program}'")).await;
        } else {
            self.gnome.call(MOCK, "RemoveObject", &inhibitor).await;
        }
        self.gnome.answers(GNOME_PATH, GNOME, "GetInhibitors", "", "ao", &format!("dbus.Array({held}, signature='o')")).await;
        self.gnome.answers(GNOME_PATH, GNOME, "IsInhibited", "u", "b", is_held).await;
        let signal = if program.is_some() { "InhibitorAdded" } else { "InhibitorRemoved" };
        self.gnome.call(MOCK, "EmitSignal", &(GNOME, signal, "o", vec![Value::from(inhibitor)])).await;
    }

    async fn prepare_for_sleep(&self, sleeping: bool) {
        self.logind.call(MOCK, "UpdateProperties", &(MANAGER, HashMap::from([("PreparingForSleep", Value::from(sleeping))]))).await;
        self.logind.call(MOCK, "EmitSignal", &(MANAGER, "PrepareForSleep", "b", vec![Value::from(sleeping)])).await;
    }

    async fn battery(&self, percent: f64, on_battery: bool) {
        let state = if on_battery { 2u32 } else { 1 };
        let device = HashMap::from([
            ("IsPresent", Value::from(true)),
            ("Percentage", Value::from(percent)),
            ("State", Value::from(state)),
            ("Type", Value::from(2u32)),
        ]);
        self.upower.call(MOCK, "UpdateProperties", &(UPOWER, HashMap::from([("OnBattery", Value::from(on_battery))]))).await;
        let device_interface = "org.freedesktop.UPower.Device";
        self.upower.call_at(DISPLAY_DEVICE, MOCK, "UpdateProperties", &(device_interface, device)).await;
    }
}

/// How logind tells which session is the agent's.
enum Ours {
    ByProcess,
    /// The agent is a service of the person, and so in no session.
    ByPerson,
}

async fn logind(system: &mut Bus, ours: Ours) -> Player {
    let logind = system.play_template("logind", LOGIND, LOGIND_PATH).await;
    logind.call(MOCK, "AddSession", &("c1", "seat0", 1000u32, "somebody", true)).await;
    match ours {
        Ours::ByProcess => logind.answers(LOGIND_PATH, MANAGER, "GetSessionByPID", "u", "o", &format!("'{OUR_SESSION}'")).await,
        Ours::ByPerson => {
            let user = "/org/freedesktop/login1/user/1000";
            logind.answers(LOGIND_PATH, MANAGER, "GetUser", "u", "o", &format!("'{user}'")).await;
            let shown = Value::from(("c1", ObjectPath::try_from(OUR_SESSION).unwrap()));
            logind.call_at(user, "org.freedesktop.DBus.Properties", "Set", &("org.freedesktop.login1.User", "Display", shown)).await;
        }
    }
    logind
}

async fn upower(system: &mut Bus) -> Player {
    system.play_template("upower", UPOWER, UPOWER_PATH).await
}

fn text(observed: &Observed) -> String {
    format!("{:#?}", observed.records)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_input_is_never_idle() {
    let Some(computer) = Computer::start().await else { return };
    let agent = computer.agent().await;
    agent.read_notice().await;
    computer.desktop.xdotool("key --delay 5 a a a");
    computer.hold(Some("org.mozilla.firefox")).await;
    agent.until_state(State::Call).await;
    // Four signs of life, each five seconds after the one before: twenty seconds in which nobody touches a key.
    agent.until_observed(HEARTBEAT, agent.observed(HEARTBEAT) + 4).await;
    computer.hold(None).await;
    agent.until_state(State::Idle).await;
    // What only keeps the screen on is no call.
    computer.hold(Some("caffeine-gnome-extension")).await;
    agent.until_observed(HEARTBEAT, agent.observed(HEARTBEAT) + 2).await;
    let observed = agent.stop().await;
    let beats = observed.beats();
    let calls: Vec<usize> = beats.iter().filter(|(_, state)| *state == State::Call).map(|(place, _)| *place).collect();
    assert!(calls.len() >= 5, "{}", text(&observed));
    let during = |place: &usize| (calls[0]..=calls[calls.len() - 1]).contains(place);
    assert!(beats.iter().all(|(place, state)| !during(place) || *state == State::Call), "{}", text(&observed));
    assert_eq!(observed.states().iter().filter(|state| **state == State::Call).count(), 1, "{}", text(&observed));
    assert_eq!(observed.able("call"), [true]);
    drop(computer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_and_a_sleep_are_told_once_and_nothing_is_seen_in_them() {
    let Some(mut computer) = Computer::start().await else { return };
    let players = computer.system.names().await.len();
    let agent = computer.agent().await;
    agent.read_notice().await;
    computer.desktop.xdotool("key --delay 5 a a a");
    // A tick or two, in which they are counted.
    agent.seconds(2).await;
    assert_eq!(computer.system.names().await.len(), players + 1, "it listens to the bus");

    // As a screen locker says it: by logind's signals.
    computer.logind.call_at(OUR_SESSION, SESSION, "Lock", &()).await;
    agent.until_state(State::Locked).await;
    computer.desktop.window("Hidden", "canary behind the lock");
    computer.desktop.xdotool("key --delay 5 b b b b b");
    agent.until_observed(HEARTBEAT, agent.observed(HEARTBEAT) + 1).await;
    computer.logind.call_at(OUR_SESSION, SESSION, "Unlock", &()).await;
    computer.desktop.window("Writer", "second letter");
    agent.until_active(&computer.desktop).await;

    // As a desktop says it: by the hint.
    computer.logind.call_at(OUR_SESSION, SESSION, "SetLockedHint", &true).await;
    agent.until_state(State::Locked).await;
    computer.logind.call_at(OUR_SESSION, SESSION, "SetLockedHint", &false).await;
    agent.until_active(&computer.desktop).await;
    computer.desktop.xdotool("key c");
    agent.seconds(2).await;

    computer.prepare_for_sleep(true).await;
    agent.until_state(State::Asleep).await;
    computer.desktop.window("Hidden", "canary in the sleep");
    agent.seconds(10).await;
    computer.desktop.window("Writer", "third letter");
    computer.desktop.xdotool("key --delay 5 d d");
    computer.prepare_for_sleep(false).await;
    agent.until_active(&computer.desktop).await;

    // A pause is the person's own: not even the bus is listened to.
    agent.asker.pause(None).await.unwrap();
    computer.system.until_left(players).await;
    computer.logind.call_at(OUR_SESSION, SESSION, "SetLockedHint", &true).await;
    agent.seconds(2).await;
    computer.logind.call_at(OUR_SESSION, SESSION, "SetLockedHint", &false).await;
    agent.asker.resume().await.unwrap();
    agent.until_active(&computer.desktop).await;

    let observed = agent.stop().await;
    let names: Vec<&str> = observed.sessions().iter().map(|(_, session)| session.name()).collect();
    let told = ["notice_acknowledged", "start", "lock", "unlock", "lock", "unlock", "suspend", "resume", "pause", "unpause", "stop"];
    assert_eq!(names, told, "{}", text(&observed));
    let slept =
        observed.sessions().iter().find_map(|(_, session)| if let Session::Resume { slept_ms } = session { Some(*slept_ms) } else { None });
    assert!(slept.is_some_and(|slept_ms| slept_ms >= 10_000), "{slept:?}");
    let place = |name: &str| observed.sessions().iter().find(|(_, session)| session.name() == name).unwrap().0;
    let asleep: Vec<_> = observed.beats().into_iter().filter(|(at, _)| (place("suspend")..place("resume")).contains(at)).collect();
    assert!(asleep.iter().all(|(_, state)| *state == State::Asleep) && asleep.len() == 1, "{asleep:?}");
    assert_eq!(observed.input().0, 3 + 1, "not the keys of the lock and the sleep: {}", text(&observed));
    assert!(!text(&observed).contains("canary") && !text(&observed).contains("Hidden"), "{}", text(&observed));
    assert_eq!(observed.able("lock"), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_battery_pauses_observing_until_it_is_charged() {
    let Some(mut computer) = Computer::start().await else { return };
    computer.battery(41.0, true).await;
    let agent = computer.agent().await;
    agent.read_notice().await;
    agent.until_active(&computer.desktop).await;
    computer.battery(14.0, true).await;
    agent.until_state(State::BatteryLow).await;
    computer.desktop.window("Hidden", "canary on the last percents");
    computer.desktop.xdotool("key --delay 5 b b b");
    agent.until_observed(HEARTBEAT, agent.observed(HEARTBEAT) + 1).await;
    computer.battery(20.0, true).await;
    agent.until_observed(HEARTBEAT, agent.observed(HEARTBEAT) + 2).await;
    computer.desktop.window("Writer", "second letter");
    computer.battery(21.0, true).await;
    agent.until_active(&computer.desktop).await;
    computer.battery(9.0, true).await;
    agent.until_state(State::BatteryLow).await;
    computer.battery(9.0, false).await;
    agent.until_active(&computer.desktop).await;
    let observed = agent.stop().await;
    let mut told: Vec<(State, Option<Battery>)> = observed
        .records
        .iter()
        .filter_map(|record| if let Kind::Heartbeat(beat) = &record.kind { Some((beat.state, beat.battery)) } else { None })
        .filter(|(state, _)| *state != State::Idle)
        .collect();
    told.dedup();
    let battery = |percent, charging| Some(Battery { percent, charging });
    let expected = [
        (State::Active, battery(41, false)),
        (State::BatteryLow, battery(14, false)),
        (State::BatteryLow, battery(20, false)),
        (State::Active, battery(21, false)),
        (State::BatteryLow, battery(9, false)),
        (State::Active, battery(9, true)),
        (State::Leaving, battery(9, true)),
    ];
    assert_eq!(told, expected, "{}", text(&observed));
    assert!(!text(&observed).contains("canary") && !text(&observed).contains("Hidden"), "{}", text(&observed));
    assert_eq!(observed.able("battery"), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_gone_is_told_once_and_is_heard_again_when_it_is_back() {
    let Some(mut computer) = Computer::start().await else { return };
    let agent = computer.agent().await;
    agent.read_notice().await;
    let told = agent.observed(CAPABILITY);
    drop(computer.system);
    // Its lock can't be seen; calls and the battery are known by other means.
    agent.until_observed(CAPABILITY, told + 1).await;
    computer.system = Bus::start(computer.folder.path(), "system").await.unwrap();
    computer.logind = logind(&mut computer.system, Ours::ByPerson).await;
    agent.until_observed(CAPABILITY, told + 2).await;
    computer.logind.call_at(OUR_SESSION, SESSION, "SetLockedHint", &true).await;
    agent.until_state(State::Locked).await;
    let observed = agent.stop().await;
    assert_eq!(observed.able("lock"), [true, false, true], "{}", text(&observed));
    let locked = |record: &Record| matches!(&record.kind, Kind::Session(Session::Lock));
    assert_eq!(observed.records.iter().filter(|record| locked(record)).count(), 1);
}
