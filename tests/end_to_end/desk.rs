//! Async: somebody's desk, end to end: what the computer around a person says, and a disk that runs full under their agent, as the hub's own
//! answers tell it. python3-dbusmock plays logind, UPower and the desktop's session on buses of the test's own.

use std::{fs, process::Command, time::Duration};

use jiff::Timestamp;
use muster_start::{
    buses::Buses,
    desktop::Desktop,
    mesh::{AgentAt, Mesh},
    summary::InHub,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    canary::{PERSON, SITE, agent, until},
    small_disk::SmallDisk,
    swarm::{folder, mesh},
};

/// The agent looks once a second: what was done this long ago is seen.
const SEEN: Duration = Duration::from_millis(2_500);
const SLEEP: Duration = Duration::from_secs(10);

/// A person at a computer, with the mesh behind it.
struct Desk {
    mesh: Mesh,
    buses: Buses,
    desktop: Desktop,
    /// Local dates on which it was used.
    dates: Vec<String>,
    _folder: TempDir,
}

impl Desk {
    /// None: there is nobody to play the buses.
    fn is_there() -> bool {
        match Buses::missing() {
            Some(package) => println!("skipped: {package} is missing"),
            None => return true,
        }
        false
    }

    /// An agent that runs on a battery of 41 %, and whose person is idle after two seconds.
    async fn start(pictures: &str, before: impl FnOnce(&Mesh)) -> Desk {
        let folder = folder();
        let mut mesh = mesh(folder.path(), &[SITE]);
        set_policy(&mesh, pictures);
        mesh.start_hub().await.unwrap();
        mesh.start_relay(SITE).await.unwrap();
        let desktop = Desktop::start(&folder.path().join("desktop")).unwrap();
        let buses = Buses::start(&folder.path().join("buses")).await.unwrap();
        buses.battery(41.0, true).await.unwrap();
        buses.environment().iter().for_each(|(name, value)| mesh.set(&agent(), name, value));
        before(&mesh);
        let at = AgentAt { person: PERSON, name: "Ada", site: SITE, relays: &[SITE], display: Some(desktop.display()) };
        let dates = vec![today()];
        mesh.start_agent(&at).await.unwrap();
        let mut desk = Desk { mesh, buses, desktop, dates, _folder: folder };
        desk.until("the policy came", |status| !status["policy"].is_null()).await;
        desk
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Value) -> bool) {
        until(&mut self.mesh, what, holds).await;
    }

    async fn until_state(&mut self, state: &str) {
        self.until(&format!("it is {state}"), |status| status["state"] == state).await;
    }

    async fn status(&self) -> Value {
        self.mesh.ask(&agent(), &json!({ "verb": "status" })).await.unwrap()
    }

    /// Signs of life, five seconds after one another.
    async fn until_more_beats(&mut self, more: u64) {
        let wanted = beats(&self.status().await) + more;
        self.until("it gives signs of life", |status| beats(status) >= wanted).await;
    }

    /// Somebody moves the pointer until they are seen.
    async fn until_active(&mut self) {
        let mut moves = 0;
        while self.status().await["state"] != "active" {
            moves += 1;
            assert!(moves < 400, "nobody is seen at the desk");
            self.mesh.check().unwrap();
            self.xdotool("mousemove_relative 1 1");
            sleep(Duration::from_millis(300)).await;
        }
    }

    fn xdotool(&self, arguments: &str) {
        self.desktop.xdotool(&arguments.split(' ').collect::<Vec<_>>()).unwrap();
    }

    /// A window in front, in which these keys are pressed.
    fn works_in(&mut self, class: &str, title: &str, keys: &str) {
        let window = self.desktop.open(class, title, "60x10+40+40").unwrap();
        self.xdotool(&format!("windowactivate --sync {window}"));
        self.xdotool(&format!("key --delay 5 {keys}"));
    }

    // --- what the hub says ---

    async fn in_hub(&self) -> InHub {
        self.mesh.hub().unwrap().in_hub(0).await.unwrap()
    }

    /// Waits until the hub's rows of the days say so.
    async fn until_in_hub(&mut self, what: &str, holds: impl Fn(&Day) -> bool) {
        let mut looks = 0;
        loop {
            self.mesh.check().unwrap();
            let day = self.day().await;
            if holds(&day) {
                return;
            }
            looks += 1;
            assert!(looks < 500, "it never was so that {what}: {:#?}", day.0);
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// The hub's answers for the days on which this was used, one after the other.
    async fn day(&self) -> Day {
        let hub = self.mesh.hub().unwrap();
        let devices = hub.get("/api/v1/devices").await.unwrap();
        let device = devices["devices"][0]["device"].as_str().unwrap();
        let mut dates = self.dates.clone();
        dates.push(today());
        dates.dedup();
        let mut days = Vec::new();
        for date in dates {
            days.push(hub.get(&format!("/api/v1/devices/{device}/days/{date}")).await.unwrap());
        }
        Day(days)
    }

    /// Ends collection, and lets everything arrive.
    async fn leave(&mut self) -> Day {
        let made = |status: &Value| status["journey"]["made"]["batches"].as_u64().unwrap();
        let before = made(&self.status().await);
        self.mesh.ask(&agent(), &json!({ "verb": "leave" })).await.unwrap();
        self.until("the hub has everything", |status| made(status) > before && status["journey"]["made"] == status["journey"]["hub"]).await;
        self.day().await
    }
}

fn beats(status: &Value) -> u64 {
    status["observed"]["heartbeat"].as_u64().unwrap()
}

/// As the agent's zone has it.
fn today() -> String {
    let output = Command::new("date").arg("+%F").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn set_policy(mesh: &Mesh, pictures: &str) {
    let text = format!(
        "[purpose]\ntext = \"a test\"\nlegal_ground = \"none\"\ncontact = \"nobody\"\n\
         [when]\nworking_hours = {{ days = \"mon-sun\", from = \"00:00\", to = \"24:00\" }}\nheartbeat_s = 5\nidle_after_s = 2\n\
         [windows]\napplications = true\n[input]\ncounts = true\n{pictures}"
    );
    fs::write(mesh.folder().join("policy.toml"), text).unwrap();
}

/// The hub's answers for one day, or two around midnight.
struct Day(Vec<Value>);

impl Day {
    fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().flat_map(move |day| day[name].as_array().unwrap())
    }

    /// Each heartbeat's time and state.
    fn states(&self) -> Vec<(i64, &str)> {
        self.list("states").map(|state| (time(&state["at"]), state["state"].as_str().unwrap())).collect()
    }

    /// States without those of the same name that follow them.
    fn changes(&self) -> Vec<&str> {
        let mut states: Vec<&str> = self.states().into_iter().map(|(_, state)| state).collect();
        states.dedup();
        states
    }

    fn keys(&self) -> u64 {
        self.0.iter().map(|day| day["input"]["keys"].as_u64().unwrap()).sum()
    }

    fn session(&self, what: &str) -> &Value {
        let mut found = self.list("sessions").filter(|session| session["what"] == what);
        match (found.next(), found.next()) {
            (Some(session), None) => session,
            (first, _) => panic!("{what} once, and not so: {first:?} in {:#?}", self.0),
        }
    }

    /// Begin and end of all that tells of a person's work.
    fn work(&self) -> Vec<(i64, i64)> {
        let span = |from: &Value, length: &Value| (time(from), time(from) + length.as_i64().unwrap());
        let focus = self.list("focus").map(|focus| span(&focus["from"], &focus["length_ms"]));
        focus.chain(self.list("minutes").map(|minute| span(&minute["at"], &minute["length_ms"]))).collect()
    }

    fn applications(&self) -> Vec<&str> {
        self.list("focus").filter_map(|focus| focus["application"].as_str()).collect()
    }

    /// Pictures that had no room.
    fn pictures_without_room(&self) -> u64 {
        let gaps = self.list("gaps").inspect(|gap| assert_eq!(gap["lane"], "pictures", "nothing else goes: {gap}"));
        gaps.filter(|gap| gap["reason"] == "budget").map(|gap| gap["records"].as_u64().unwrap()).sum()
    }
}

fn time(at: &Value) -> i64 {
    at.as_str().unwrap().parse::<Timestamp>().unwrap().as_millisecond()
}

// --- the computer around a person ---

#[tokio::test]
async fn a_call_in_which_nobody_touches_a_key_is_never_idle_in_the_hubs_day() {
    if !Desk::is_there() {
        return;
    }
    let mut desk = Desk::start("", |_| ()).await;
    desk.until_active().await;
    desk.buses.call(Some("org.mozilla.firefox")).await.unwrap();
    desk.until_state("call").await;
    // Twenty seconds.
    desk.until_more_beats(4).await;
    desk.buses.call(None).await.unwrap();
    desk.until_state("idle").await;
    // What only keeps the screen on is no call.
    desk.buses.call(Some("caffeine-gnome-extension")).await.unwrap();
    desk.until_more_beats(2).await;
    let day = desk.leave().await;
    let (states, changes) = (day.states(), day.changes());
    let begin = changes.iter().position(|state| *state == "call").unwrap();
    assert_eq!(changes[begin..], ["call", "idle", "leaving"], "{states:?}");
    assert!(states.iter().filter(|(_, state)| *state == "call").count() >= 5, "{states:?}");
}

#[tokio::test]
async fn a_sleep_is_neither_idle_nor_work_in_the_hubs_day() {
    if !Desk::is_there() {
        return;
    }
    let mut desk = Desk::start("", |_| ()).await;
    desk.until_active().await;
    desk.works_in("Writer", "first letter", "a a a");
    sleep(SEEN).await;
    desk.buses.sleep(true).await.unwrap();
    desk.until_state("asleep").await;
    desk.works_in("Hidden", "while it sleeps", "b b b b b");
    sleep(SLEEP).await;
    desk.works_in("Writer", "second letter", "c c");
    desk.buses.sleep(false).await.unwrap();
    desk.until_active().await;
    desk.xdotool("key d");
    sleep(SEEN).await;
    let day = desk.leave().await;

    let (from, to) = (time(&day.session("suspend")["at"]), time(&day.session("resume")["at"]));
    let slept_ms = day.session("resume")["length_ms"].as_u64().unwrap();
    assert!(slept_ms >= SLEEP.as_millis() as u64, "{slept_ms}");
    let asleep: Vec<_> = day.states().into_iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, state)| state).collect();
    assert_eq!(asleep, ["asleep"], "once, and nothing else: {:?}", day.states());
    let work = day.work();
    assert!(work.len() >= 4, "there is some before and after it: {work:?}");
    assert!(work.iter().all(|&(begin, end)| end <= from || begin >= to), "{work:?} and a sleep from {from} to {to}");
    assert_eq!(day.keys(), 3 + 1, "not those of the sleep");
    assert!(day.applications().contains(&"Writer") && !day.applications().contains(&"Hidden"), "{:?}", day.applications());
}

#[tokio::test]
async fn a_low_battery_pauses_observing_in_the_hubs_day_until_it_is_charged() {
    if !Desk::is_there() {
        return;
    }
    let mut desk = Desk::start("", |_| ()).await;
    desk.until_active().await;
    desk.works_in("Writer", "first letter", "a a a");
    sleep(SEEN).await;
    desk.buses.battery(15.0, true).await.unwrap();
    desk.until_more_beats(2).await;
    desk.buses.battery(14.0, true).await.unwrap();
    desk.until_state("battery_low").await;
    desk.works_in("Hidden", "on the last percents", "b b b b b");
    desk.until_more_beats(1).await;
    desk.buses.battery(20.0, true).await.unwrap();
    desk.until_more_beats(2).await;
    desk.works_in("Writer", "second letter", "c c");
    desk.buses.battery(21.0, true).await.unwrap();
    desk.until_active().await;
    desk.buses.battery(9.0, true).await.unwrap();
    desk.until_state("battery_low").await;
    desk.buses.battery(9.0, false).await.unwrap();
    desk.until_active().await;
    let day = desk.leave().await;

    let mut told = day.changes();
    told.retain(|state| *state != "idle");
    told.dedup();
    assert_eq!(told, ["active", "battery_low", "active", "battery_low", "active", "leaving"], "{:?}", day.states());
    let low = day.states().iter().position(|(_, state)| *state == "battery_low").unwrap();
    let high = low + day.states()[low..].iter().position(|(_, state)| *state == "active").unwrap();
    let (from, to) = (day.states()[low].0, day.states()[high].0);
    assert!(day.states()[low..high].iter().all(|(_, state)| *state == "battery_low") && high >= low + 4, "{:?}", day.states());
    assert!(day.work().iter().all(|&(begin, end)| end <= from || begin >= to), "{:?} and a pause from {from} to {to}", day.work());
    assert_eq!(day.keys(), 3, "not those of the pause");
    assert!(day.applications().contains(&"Writer") && !day.applications().contains(&"Hidden"), "{:?}", day.applications());
}

// --- the disk under an agent ---

/// An agent's pictures leave an eighth of a small disk free.
const DISK_MIB: u32 = 40;
const LOW_BYTES: u64 = 3 << 20;

#[tokio::test]
async fn on_an_agents_full_disk_pictures_stop_first_and_all_goes_on_by_itself() {
    if !Desk::is_there() {
        return;
    }
    let mut disk = None;
    let pictures = "[pictures]\ninterval_s = 2\narea = \"all\"\nblur = true\n";
    let mut desk = Desk::start(pictures, |mesh| disk = SmallDisk::mount(&mesh.state(&agent()), DISK_MIB)).await;
    let Some(disk) = disk else { return };
    let pictures = |in_hub: &InHub| in_hub.kinds.get("screenshot").copied().unwrap_or(0);
    desk.until("pictures are taken", |status| status["journey"]["hub"]["kinds"]["screenshot"].as_u64() >= Some(3)).await;

    // It runs low: pictures stop, what is collected besides them arrives.
    disk.leave(LOW_BYTES);
    desk.until_in_hub("a picture had no room", |day| day.pictures_without_room() > 0).await;
    let pictures_of = |stage: &Value| stage["kinds"]["screenshot"].as_u64();
    desk.until("those before it came", |status| pictures_of(&status["journey"]["hub"]) == pictures_of(&status["journey"]["made"])).await;
    let (before, lost) = (desk.in_hub().await, desk.day().await.pictures_without_room());
    desk.until_active().await;
    desk.until_in_hub("the rest goes on, and no picture", |day| {
        day.states().len() > before.kinds["heartbeat"] as usize && day.pictures_without_room() >= lost + 3
    })
    .await;
    assert_eq!(pictures(&desk.in_hub().await), pictures(&before), "none while the disk is low");

    // It is full to the last byte: pictures that lie there make room, until there are none; then the rest waits in memory.
    let said = |desk: &Desk, words: &str| fs::read_to_string(desk.mesh.folder_of(&agent()).join("log")).unwrap().contains(words);
    let mut turns = 0;
    while !said(&desk, "the disk is full") {
        disk.fill();
        // Each change of state is a batch.
        desk.buses.sleep(true).await.unwrap();
        desk.until_state("asleep").await;
        desk.buses.sleep(false).await.unwrap();
        desk.until_active().await;
        turns += 1;
        assert!(turns < 100, "the disk never was full");
    }
    disk.clear();
    let had = pictures(&desk.in_hub().await);
    desk.until("a picture is kept again", |status| status["journey"]["hub"]["kinds"]["screenshot"].as_u64() > Some(had)).await;
    let day = desk.leave().await;
    let (status, in_hub) = (desk.status().await, desk.in_hub().await);
    for kind in ["heartbeat", "activity", "focus", "session", "capability"] {
        assert_eq!(Some(in_hub.kinds[kind]), status["observed"][kind].as_u64(), "{kind}: nothing but pictures went");
    }
    assert_eq!((in_hub.missing, in_hub.duplicates, in_hub.held, in_hub.refused), (0, 0, 0, 0));
    assert_eq!(day.pictures_without_room() + pictures(&in_hub), status["observed"]["screenshot"].as_u64().unwrap());
}
