//! Async: words that must be on no picture, and words that must be found on pictures everywhere, read by tesseract in the same run.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use muster_hub::objects::Objects;
use muster_mesh::record::Kind;
use muster_start::{
    desktop::Desktop,
    mesh::{AgentAt, Mesh, Node},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    canary::{PERSON, SITE, agent, another_day, batches, every_day, files_below, read_the_notice, until, xdotool},
    swarm::{folder, mesh},
};

/// Some pictures are due in it.
const STANDS: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_may_not_be_pictured_is_on_no_picture_and_what_may_be_is_read_there() {
    let folder = folder();
    let mut mesh = mesh(folder.path(), &[SITE]);
    mesh.set(&Node::Hub, "MUSTER_HUB__TEST_MODE", "false");
    set_policy(&mesh, &every_day());
    mesh.start_hub().await.unwrap();
    mesh.start_relay(SITE).await.unwrap();
    let desktop = Desktop::start(&folder.path().join("desktop")).unwrap();
    let display = desktop.display();
    let at = AgentAt { person: PERSON, name: "Ada", site: SITE, relays: &[SITE], display: Some(display) };
    mesh.start_agent(&at).await.unwrap();
    until(&mut mesh, "the notice waits", |status| !status["notice_waits"].is_null()).await;
    Poster::stands(display, "Before", "BUTTERFLY", "+100+100").await;

    read_the_notice(&mesh);
    let control = Poster::shown(display, "Control", "KANGAROO", "+100+100");
    pictured(&mut mesh, 1).await;
    drop(control);

    mesh.ask(&agent(), &json!({ "verb": "pause", "for_ms": null })).await.unwrap();
    Poster::stands(display, "Breaktime", "CROCODILE", "+100+100").await;
    mesh.ask(&agent(), &json!({ "verb": "resume" })).await.unwrap();

    // Partly covered: what is left of it can be seen.
    let secret = Poster::shown(display, "KeePassXC", "ELEPHANT", "+60+60");
    let cover = Poster::shown(display, "Control", "ORDINARY", "+60+180");
    sleep(STANDS).await;
    drop((secret, cover));

    let monitor = |name: &str, place: &str| {
        let done = Command::new("xrandr").args(["--setmonitor", name, place, "none"]).env("DISPLAY", display).status().unwrap();
        assert!(done.success(), "xrandr makes no monitor {name}");
    };
    monitor("left", "640/160x800/200+0+0");
    monitor("right", "640/160x800/200+640+0");
    let secret = Poster::shown(display, "KeePassXC", "FLAMINGO", "+700+100");
    let beside = Poster::shown(display, "Control", "ORDINARY", "+20+100");
    sleep(STANDS).await;
    drop((secret, beside));

    let before = pictures_taken(&mesh).await;
    let control = Poster::shown(display, "Control", "NIGHTINGALE", "+20+100");
    pictured(&mut mesh, before + 2).await;
    drop(control);

    set_policy(&mesh, &another_day());
    until(&mut mesh, "it is outside hours", |status| status["state"] == "outside_hours").await;
    Poster::stands(display, "Evening", "DRAGONFLY", "+100+100").await;

    mesh.ask(&agent(), &json!({ "verb": "leave" })).await.unwrap();
    until(&mut mesh, "the hub has everything", |status| status["journey"]["made"] == status["journey"]["hub"]).await;
    mesh.stop_all().await.unwrap();

    let mut reader = Reader::default();
    let relay = mesh.state(&Node::Relay(SITE.into()));
    let places = [
        ("a queue of the agent", pictures_in(&mesh.state(&agent()))),
        ("a queue of the relay", pictures_in(&relay)),
        ("a file of the agent", picture_files(&mesh.folder_of(&agent()))),
        ("an object", objects(&mesh).await),
    ];
    for (place, pictures) in places {
        let text: String = pictures.iter().map(|picture| reader.read(picture)).collect();
        for control in ["KANGAROO", "NIGHTINGALE"] {
            assert!(text.contains(control), "{control} can't be read in {place}: of {} pictures it says {text}", pictures.len());
        }
        for canary in ["BUTTERFLY", "CROCODILE", "ELEPHANT", "FLAMINGO", "DRAGONFLY"] {
            assert!(!text.contains(canary), "{canary} can be read in {place}");
        }
    }
}

fn set_policy(mesh: &Mesh, days: &str) {
    let text = format!(
        "[purpose]\ntext = \"a test\"\nlegal_ground = \"none\"\ncontact = \"nobody\"\n\
         [when]\nworking_hours = {{ days = \"{days}\", from = \"00:00\", to = \"24:00\" }}\nheartbeat_s = 5\nidle_after_s = 300\n\
         [windows]\napplications = true\nexcluded = [\"KeePassXC\"]\n\
         [pictures]\ninterval_s = 2\narea = \"all\"\nblur = false\n"
    );
    fs::write(mesh.folder().join("policy.toml"), text).unwrap();
}

/// A window with one word in large type.
struct Poster {
    child: Child,
}

impl Poster {
    fn shown(display: &str, class: &str, word: &str, place: &str) -> Poster {
        let script = format!("printf '\\n  {word}\\n'; exec sleep 1000");
        let geometry = format!("16x4{place}");
        let xterm = ["-fa", "Monospace", "-fs", "28", "-class", class, "-name", class, "-title", word, "-geometry", &geometry];
        let child = Command::new("xterm")
            .args(xterm)
            .args(["-e", "sh", "-c", &script])
            .env("DISPLAY", display)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Not every new window comes to the front by itself.
        let mut looks = 0;
        while !xdotool(display, &["getactivewindow", "getwindowname"]).contains(word) {
            looks += 1;
            assert!(looks < 1_000, "{word} doesn't come to the front");
            std::thread::sleep(Duration::from_millis(50));
            xdotool(display, &["search", "--name", word, "windowactivate"]);
        }
        Poster { child }
    }

    /// Stands for some pictures, and goes.
    async fn stands(display: &str, class: &str, word: &str, place: &str) {
        let poster = Poster::shown(display, class, word, place);
        sleep(STANDS).await;
        drop(poster);
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As the person sees them listed.
async fn pictures_taken(mesh: &Mesh) -> usize {
    mesh.ask(&agent(), &json!({ "verb": "shots" })).await.unwrap()["shots"].as_array().map_or(0, Vec::len)
}

async fn pictured(mesh: &mut Mesh, at_least: usize) {
    mesh.until(&agent(), "pictures are taken", async |mesh| pictures_taken(mesh).await >= at_least).await.unwrap();
}

// --- the scanner ---

fn pictures_in(state: &Path) -> Vec<Vec<u8>> {
    let records = batches(state).into_iter().flat_map(|batch| batch.records);
    records.filter_map(|record| if let Kind::Screenshot(picture) = record.kind { Some(picture.bytes) } else { None }).collect()
}

/// Every picture in every file, whatever its name and whatever stands before it.
fn picture_files(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    files_below(folder, &mut |path| {
        let bytes = fs::read(path).unwrap_or_default();
        let begins = |at: usize| bytes[at..].starts_with(b"RIFF") && bytes[at + 8..].starts_with(b"WEBP");
        for at in (0..bytes.len().saturating_sub(12)).filter(|&at| begins(at)) {
            let long = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize + 8;
            // What a queue's blocks tear apart is read from its batches.
            found.extend(bytes.get(at..at + long).filter(|picture| is_plain_webp(picture)).map(<[u8]>::to_vec));
        }
    });
    found
}

/// As muster-shot makes them: one chunk, and no other before it.
fn is_plain_webp(picture: &[u8]) -> bool {
    matches!(picture.get(12..16), Some(b"VP8 " | b"VP8L"))
}

/// Everything in the hub's object store, in a folder or in a bucket.
async fn objects(mesh: &Mesh) -> Vec<Vec<u8>> {
    let objects = Objects::open(&mesh.engines().objects(mesh.folder())).unwrap();
    let names = objects.list(None).older(i64::MAX, 10_000).await.unwrap();
    let mut found = Vec::new();
    for name in names {
        found.push(objects.get(&name).await.unwrap().to_vec());
    }
    found
}

/// Reads each picture once, wherever it lies.
#[derive(Default)]
struct Reader {
    texts: BTreeMap<Vec<u8>, String>,
}

impl Reader {
    fn read(&mut self, picture: &[u8]) -> String {
        self.texts.entry(picture.to_vec()).or_insert_with(|| by_tesseract(picture)).clone()
    }
}

fn by_tesseract(picture: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), picture).unwrap();
    let output = Command::new("tesseract").arg(file.path()).args(["stdout", "--psm", "11"]).env("OMP_THREAD_LIMIT", "1").output().unwrap();
    assert!(output.status.success(), "tesseract: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).to_uppercase()
}
