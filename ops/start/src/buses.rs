//! Async: the two message buses of a desktop in memory, on which python3-dbusmock plays logind, UPower and a desktop's session manager.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use muster_certs::files;
use muster_mesh::complaint::Complaint;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use zbus::{
    Connection,
    connection::Builder,
    zvariant::{DynamicType, Value},
};

use crate::process::Process;

const UP_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An object of a played service: its name, its path, its interface.
type Object = (&'static str, &'static str, &'static str);

const LOGIND: Object = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager");
const UPOWER: Object = ("org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower");
/// All batteries in one.
const DISPLAY_DEVICE: Object = (UPOWER.0, "/org/freedesktop/UPower/devices/DisplayDevice", "org.freedesktop.UPower.Device");
const GNOME: Object = ("org.gnome.SessionManager", "/org/gnome/SessionManager", "org.gnome.SessionManager");
const INHIBITOR: Object = (GNOME.0, "/org/gnome/SessionManager/Inhibitor1", "org.gnome.SessionManager.Inhibitor");
/// The interface by which a player is told what to play.
const MOCK: &str = "org.freedesktop.DBus.Mock";
/// logind's id of the only session.
const SESSION_ID: &str = "c1";
/// GNOME's flags for "neither idle nor asleep".
const NOT_IDLE: u32 = 12;
/// UPower's numbers of a state.
const CHARGING: u32 = 1;
const DISCHARGING: u32 = 2;

/// Everything that plays. Dropped, it is gone.
pub struct Buses {
    system: Bus,
    session: Bus,
}

struct Bus {
    address: String,
    connection: Connection,
    /// Before the daemon, which they are connected to.
    players: Vec<Process>,
    _daemon: Process,
}

impl Buses {
    /// What isn't installed of what this needs, by its package. None: nothing.
    pub fn missing() -> Option<&'static str> {
        let runs = |program: &str, argument: &str| {
            let mut command = Command::new(program);
            command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        match (runs("dbus-daemon", "--version"), python()) {
            (false, _) => Some("dbus-daemon"),
            (true, None) => Some("python3-dbusmock"),
            (true, Some(_)) => None,
        }
    }

    /// Plays somebody's session on a computer on AC, whose screen nothing keeps on; sockets and log lie in `folder`.
    pub async fn start(folder: &Path) -> anyhow::Result<Buses> {
        files::create_folder(folder)?;
        let (mut system, mut session) = (Bus::start(folder, "system").await?, Bus::start(folder, "session").await?);
        system.play(&["--template", "logind"], LOGIND, folder).await?;
        system.play(&["--template", "upower"], UPOWER, folder).await?;
        session.play(&["--system", GNOME.0, GNOME.1, GNOME.2], GNOME, folder).await?;
        let buses = Buses { system, session };
        let user = rustix::process::getuid().as_raw();
        buses.system.tell(LOGIND, "AddSession", &(SESSION_ID, "seat0", user, "somebody", true)).await?;
        buses.call(None).await?;
        Ok(buses)
    }

    /// The environment in which a program finds them.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("DBUS_SYSTEM_BUS_ADDRESS", self.system.address.clone()),
            ("DBUS_SESSION_BUS_ADDRESS", self.session.address.clone()),
            ("XDG_SESSION_ID", SESSION_ID.into()),
        ]
    }

    /// A program keeps the screen on from now on, as calls and players do; None: no longer.
    pub async fn call(&self, program: Option<&str>) -> anyhow::Result<()> {
        let (is_held, held) = match program {
            Some(program) => {
                let no_properties: HashMap<&str, Value<'_>> = HashMap::new();
                let no_methods: &[(&str, &str, &str, &str)] = &[];
                self.session.tell(GNOME, "AddObject", &(INHIBITOR.1, INHIBITOR.2, no_properties, no_methods)).await?;
                self.session.answers(INHIBITOR, "GetFlags", ("", "u"), &NOT_IDLE.to_string()).await?;
                self.session.answers(INHIBITOR, "GetAppId", ("", "s"), &format!("'{program}'")).await?;
                ("True", format!("['{}']", INHIBITOR.1))
            }
            None => ("False", "[]".to_owned()),
        };
        self.session.answers(GNOME, "GetInhibitors", ("", "ao"), &format!("dbus.Array({held}, signature='o')")).await?;
        self.session.answers(GNOME, "IsInhibited", ("u", "b"), is_held).await?;
        if program.is_none() {
            // There may be none.
            let _ = self.session.tell(GNOME, "RemoveObject", &INHIBITOR.1).await;
        }
        let signal = if program.is_some() { "InhibitorAdded" } else { "InhibitorRemoved" };
        self.session.signal(GNOME, signal, "o", Value::from(INHIBITOR.1)).await
    }

    /// logind says that the computer goes to sleep, or that it is awake.
    pub async fn sleep(&self, begins: bool) -> anyhow::Result<()> {
        self.system.becomes(LOGIND, HashMap::from([("PreparingForSleep", Value::from(begins))])).await?;
        self.system.signal(LOGIND, "PrepareForSleep", "b", Value::from(begins)).await
    }

    /// UPower says what the battery holds, and whether the computer runs on it.
    pub async fn battery(&self, percent: f64, runs_on_it: bool) -> anyhow::Result<()> {
        let state = if runs_on_it { DISCHARGING } else { CHARGING };
        let device = [("IsPresent", Value::from(true)), ("Percentage", Value::from(percent)), ("State", Value::from(state))];
        self.system.becomes(UPOWER, HashMap::from([("OnBattery", Value::from(runs_on_it))])).await?;
        self.system.becomes(DISPLAY_DEVICE, HashMap::from(device)).await
    }
}

impl Bus {
    async fn start(folder: &Path, name: &str) -> anyhow::Result<Bus> {
        let (socket, config) = (folder.join(name), folder.join(format!("{name}.conf")));
        // A socket that an earlier one left can't be bound again.
        let _ = fs::remove_file(&socket);
        let address = format!("unix:path={}", socket.display());
        files::write_public(&config, config_of(&address).as_bytes())?;
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--config-file"]).arg(config);
        let mut daemon = Process::start("dbus-daemon", &mut command, &folder.join("log"))?;
        let connection = until(&mut daemon, async || Builder::address(address.as_str()).ok()?.build().await.ok()).await?;
        Ok(Bus { address, connection, players: Vec::new(), _daemon: daemon })
    }

    /// A service that python3-dbusmock plays; ready when this returns.
    async fn play(&mut self, arguments: &[&str], (service, ..): Object, folder: &Path) -> anyhow::Result<()> {
        let python = python().context("python3-dbusmock isn't installed")?;
        let mut command = Command::new(python);
        command.args(["-m", "dbusmock"]).args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        let mut player = Process::start(service, &mut command, &folder.join("log"))?;
        until(&mut player, async || self.is_there(service).await.then_some(())).await?;
        self.players.push(player);
        Ok(())
    }

    async fn is_there(&self, service: &str) -> bool {
        let dbus = Some("org.freedesktop.DBus");
        let answer = self.connection.call_method(dbus, "/org/freedesktop/DBus", dbus, "NameHasOwner", &service).await;
        answer.is_ok_and(|answer| answer.body().deserialize().unwrap_or(false))
    }

    async fn tell<B: Serialize + DynamicType>(&self, (service, path, _): Object, method: &str, body: &B) -> anyhow::Result<()> {
        let told = self.connection.call_method(Some(service), path, Some(MOCK), method, body).await;
        told.with_context(|| format!("{service} can't be played: {method}")).map(|_| ())
    }

    /// From now on the method of the object gives this (in Python). Types are its argument's and its result's.
    async fn answers(&self, object: Object, method: &str, types: (&str, &str), value: &str) -> anyhow::Result<()> {
        self.tell(object, "AddMethod", &(object.2, method, types.0, types.1, format!("ret = {value}"))).await
    }

    async fn becomes(&self, object: Object, properties: HashMap<&str, Value<'_>>) -> anyhow::Result<()> {
        self.tell(object, "UpdateProperties", &(object.2, properties)).await
    }

    async fn signal(&self, object: Object, name: &str, signature: &str, value: Value<'_>) -> anyhow::Result<()> {
        self.tell(object, "EmitSignal", &(object.2, name, signature, vec![value])).await
    }
}

/// One that everybody may do everything on.
fn config_of(address: &str) -> String {
    format!(
        "<busconfig><type>session</type><listen>{address}</listen><policy context=\"default\">\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>\n"
    )
}

/// The one that has python3-dbusmock: Debian's, where another comes before it.
fn python() -> Option<&'static str> {
    let has_it = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import dbusmock"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has_it)
}

async fn until<T>(process: &mut Process, mut found: impl AsyncFnMut() -> Option<T>) -> Result<T, Complaint> {
    let deadline = Instant::now() + UP_WITHIN;
    loop {
        if let Some(found) = found().await {
            return Ok(found);
        }
        process.check()?;
        if Instant::now() > deadline {
            let what = format!("{} runs, but isn't on its bus after {} s", process.name(), UP_WITHIN.as_secs());
            return Err(Complaint::new(what, format!("See {}", process.log().display())));
        }
        sleep(LOOK_EVERY).await;
    }
}
