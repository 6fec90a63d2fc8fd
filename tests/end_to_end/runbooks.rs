//! Async: the runbooks as they stand: their commands, taken out of the files and run in order by bash, on loopback, with the real programs. Only
//! what stands in the blocks of variables is another here; and systemd, which starts what the units say, is a small script.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use muster_start::ports::Ports;
use tokio::time::{Instant, sleep};

use crate::swarm::{PATIENCE, folder, program};

/// Whoever asks in vain asks again after this.
const AGAIN: Duration = Duration::from_millis(200);

#[tokio::test]
async fn the_runbooks_hold_from_the_first_day_to_a_restore() {
    let folder = folder();
    let mut desk = Desk::new(folder.path());
    desk.work_through("first-day.md").await;
    // A month is too long to wait for: with certificates of four minutes everybody moves to a new CA within twelve seconds.
    desk.type_in("hub", "sed -i 's/^ca = .*/&\\nagent_life_s = 240\\nrelay_life_s = 240/' ~/.config/muster/hub.toml");
    desk.type_in("hub", "systemctl stop muster-hub && systemctl start muster-hub");
    desk.work_through("new-branch.md").await;
    desk.open_branch("bergen");
    desk.work_through("new-branch.md").await;
    // Its relay is down for a while: its laptops are guests next door.
    desk.type_in("laptop", &in_time("muster-agent status", "Its relays, in order: bergen-1, oslo's oslo-1"));
    desk.type_in("relay", "systemctl stop muster-relay");
    desk.type_in("laptop", &in_time("muster-agent status", "Connected as a guest to oslo's relay oslo-1"));
    desk.type_in("relay", "systemctl start muster-relay");
    desk.open_branch("oslo");
    desk.work_through("lost-laptop.md").await;
    // A relay that was enrolled has no files to look at, and outlives the word to look.
    desk.type_in("relay", "systemctl reload muster-relay && muster-relay status && systemctl is-active muster-relay");
    // It is stolen while it runs; its address is the new one's.
    desk.type_in("relay", "systemctl stop muster-relay");
    desk.work_through("stolen-relay.md").await;
    desk.work_through("hub-certificate.md").await;
    desk.work_through("yearly-ca.md").await;
    // All of that in one view: both branches, and when what they hold ends. The lost laptop and the stolen relay's key hold nobody up.
    let report = "muster-hub member list --json >~/members.json";
    let doctor = desk.type_in("hub", &format!("{report}; muster-certs --dir ~/state/ca doctor --members ~/members.json || true"));
    println!("{doctor}");
    for site in ["oslo", "bergen"] {
        assert!(doctor.contains(&format!("{site}: can stay alone until")), "{doctor}");
    }
    desk.work_through("restore.md").await;
    desk.work_through("root-compromise.md").await;
}

/// Asks for a minute until the answer has these words.
fn in_time(command: &str, words: &str) -> String {
    format!("for _ in $(seq 60); do {command} | grep \"{words}\" && exit 0; sleep 1; done; {command}; exit 1")
}

/// Variables that the blocks set from what a command says.
const COMPUTED: [&str; 3] = ["LAPTOP", "WAITING", "TOKEN"];

/// Several computers on one, and somebody who works at them with a runbook in hand.
struct Desk {
    folder: PathBuf,
    /// Where everybody but the hub is.
    branch: &'static str,
    ports: Ports,
    /// In place of what the runbooks suggest: by computer (or `*`) and name.
    values: BTreeMap<(&'static str, &'static str), String>,
    /// What was set at each computer, as shell.
    variables: BTreeMap<String, String>,
    done: usize,
}

/// A fenced block that begins with "sh" and who types it.
struct Block {
    who: String,
    how: String,
    text: String,
    line: usize,
}

impl Desk {
    fn new(folder: &Path) -> Desk {
        let mut ports = Ports::default();
        let [mesh, door, web, status] = std::array::from_fn(|_| port(&mut ports));
        let values = BTreeMap::from([
            (("*", "CONFIG"), "$HOME/.config/muster".to_owned()),
            (("*", "STATE"), "$HOME/state".to_owned()),
            (("*", "LISTEN"), "127.0.0.1".to_owned()),
            (("hub", "HUB"), "127.0.0.1".to_owned()),
            (("hub", "OFFLINE"), "$HOME/safe".to_owned()),
            (("hub", "BACKUP"), "$HOME/backups/hub".to_owned()),
            (("hub", "MESH"), mesh),
            (("hub", "DOOR"), door),
            (("hub", "WEB"), web),
            (("hub", "STATUS"), status),
        ]);
        let mut desk = Desk { folder: folder.to_owned(), branch: "", ports, values, variables: BTreeMap::new(), done: 0 };
        desk.put_up_scripts();
        desk.open_branch("oslo");
        desk
    }

    /// What follows is about this branch. Its relay's addresses stay what they were at first.
    fn open_branch(&mut self, site: &'static str) {
        self.branch = site;
        let [agents, door, status] = ["agents", "door", "status"].map(|what| {
            let known = self.folder.join(format!("{site}-{what}"));
            if !known.exists() {
                fs::write(&known, port(&mut self.ports)).unwrap();
            }
            fs::read_to_string(&known).unwrap()
        });
        for relay in ["relay", "new-relay"] {
            for (name, port) in [("AGENTS", &agents), ("DOOR", &door), ("STATUS", &status)] {
                self.values.insert((relay, name), port.clone());
            }
        }
        let of_hub = [
            ("SITE", site.to_owned()),
            ("RELAY", format!("{site}-1")),
            ("RELAY_AT", format!("127.0.0.1:{agents}")),
            ("RELAY_DOOR_AT", format!("127.0.0.1:{door}")),
            ("NEIGHBOUR", if site == "oslo" { "bergen" } else { "oslo" }.to_owned()),
            ("PERSON", format!("kari.{site}")),
            ("OTHER_PERSON", format!("ola.{site}")),
        ];
        self.values.extend(of_hub.map(|(name, value)| (("hub", name), value)));
    }

    /// Every block, in its order. What fails is told with its place in the file.
    async fn work_through(&mut self, runbook: &str) {
        self.variables.clear();
        let path = root().join("ops/runbooks").join(runbook);
        for block in blocks(&fs::read_to_string(&path).unwrap()) {
            println!("{runbook}:{} {} {}", block.line, block.who, block.how);
            match block.how.as_str() {
                "variables" => self.set(&block),
                "" => {
                    let (well, said) = self.run(&block);
                    assert!(well, "{runbook}:{}, at {}:\n{}\nsaid: {said}\n{}", block.line, block.who, block.text, self.logs());
                }
                "until" => self.run_until(runbook, &block).await,
                other => panic!("{runbook}:{}: what does {other:?} mean?", block.line),
            }
            self.done += 1;
        }
    }

    async fn run_until(&self, runbook: &str, block: &Block) {
        let begun = Instant::now();
        loop {
            let (well, said) = self.run(block);
            if well {
                return;
            }
            let waited = begun.elapsed() < PATIENCE;
            assert!(waited, "{runbook}:{}, at {}, in vain:\n{}\nsaid: {said}\n{}", block.line, block.who, block.text, self.logs());
            sleep(AGAIN).await;
        }
    }

    /// `NAME=value   # remark`, the value ours where we have one.
    fn set(&mut self, block: &Block) {
        let mut set = String::new();
        for line in block.text.lines() {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line:?} sets no variable"));
            let ours = [block.who.as_str(), "*"].iter().find_map(|who| self.values.get(&(*who, name)).cloned());
            set += &format!("{name}={}\n", ours.unwrap_or_else(|| value.to_owned()));
        }
        self.variables.entry(block.who.clone()).or_default().push_str(&set);
    }

    /// As typed into one shell: what a block sets holds in those after it.
    fn run(&self, block: &Block) -> (bool, String) {
        let (home, kept) = (self.home(&block.who), self.home(&block.who).join("set"));
        fs::create_dir_all(home.join(".config/muster")).unwrap();
        let before = self.variables.get(&block.who).map_or("", String::as_str);
        let script = format!(
            "set -eu -o pipefail\n[ ! -e {kept} ] || . {kept}\n{before}{text}\ndeclare -p {names} >{kept} 2>/dev/null || true\n",
            kept = kept.display(),
            text = block.text,
            names = COMPUTED.join(" "),
        );
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).current_dir(&self.folder).stdin(Stdio::null());
        let path = [self.folder.join("scripts"), program(""), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()];
        let path = path.map(|part| part.display().to_string()).join(":");
        command.env_clear().env("PATH", path).env("HOME", &home).env("UNITS", root().join("ops/systemd"));
        // Tests may run as root, whom an agent doesn't observe otherwise. In test mode there would be no notice to wait for; this policy has none.
        command.env("MUSTER_AGENT__TEST_MODE", "true").env("MUSTER_HUB__TEST_MODE", "true");
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        (output.status.success(), said)
    }

    fn home(&self, who: &str) -> PathBuf {
        self.folder.join(if who == "hub" { who.to_owned() } else { format!("{}-{who}", self.branch) })
    }

    /// What stands in no runbook, and what is said to it.
    fn type_in(&self, who: &str, text: &str) -> String {
        let (well, said) = self.run(&Block { who: who.to_owned(), how: String::new(), text: text.to_owned(), line: 0 });
        assert!(well, "at {who}: {text}\nsaid: {said}\n{}", self.logs());
        said
    }

    /// The last lines of what the programs said.
    fn logs(&self) -> String {
        let mut logs = String::new();
        for file in self.in_units("log") {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(8).collect();
            logs += &format!("--- {}\n{}\n", file.display(), last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        logs
    }

    fn in_units(&self, extension: &str) -> Vec<PathBuf> {
        let homes = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let units = homes.filter_map(|home| fs::read_dir(home.path().join("units")).ok()).flatten().flatten();
        units.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }

    fn put_up_scripts(&self) {
        let scripts = self.folder.join("scripts");
        fs::create_dir(&scripts).unwrap();
        let nothing = "#!/bin/sh\nexit 0\n";
        // Users and owners: here all is one user's.
        for (name, text) in [("systemctl", SYSTEMCTL), ("runuser", RUNUSER), ("systemd-sysusers", nothing), ("chown", nothing)] {
            fs::write(scripts.join(name), text).unwrap();
            fs::set_permissions(scripts.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for file in self.in_units("pid") {
            let id = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(id) = id {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        }
    }
}

fn blocks(runbook: &str) -> Vec<Block> {
    for line in runbook.lines().filter(|line| line.contains("=$(")) {
        assert!(COMPUTED.iter().any(|name| line.starts_with(&format!("{name}=$("))), "{line:?} sets what no other block would know");
    }
    let (mut blocks, mut lines) = (Vec::new(), (1..).zip(runbook.lines()));
    while let Some((line, fence)) = lines.next() {
        let Some(info) = fence.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().map(|(_, text)| text).take_while(|text| *text != "```").collect();
        let mut words = info.split_whitespace();
        assert_eq!(words.next(), Some("sh"), "line {line}: a block that isn't for a shell");
        let (who, how) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        assert!(!who.is_empty(), "line {line}: who types this?");
        blocks.push(Block { who, how, text: body.join("\n"), line });
    }
    blocks
}

fn port(ports: &mut Ports) -> String {
    ports.free().unwrap().port().to_string()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

const RUNUSER: &str = "#!/bin/bash\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n";

/// What is used of systemctl, for one computer: it starts what `ExecStart` says, with this computer's configuration.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
here=$HOME/units
mkdir -p "$here"
touch "$here/environment"
words=()
for word in "$@"; do case $word in --user | --now) ;; *) words+=("$word") ;; esac; done
set -- "${words[@]}"
verb=$1 unit=${2%.service}

lives() { [ -e "$here/$unit.pid" ] && grep -q '^State:.[^Z]' "/proc/$(cat "$here/$unit.pid")/status" 2>/dev/null; }

start() {
    lives && return
    line=$(sed -n 's/^ExecStart=//p' "$UNITS/$unit.service")
    line=${line//\/usr\/bin\//}
    line=${line//\/etc\/muster/$HOME\/.config\/muster}
    ( set -a; . "$here/environment"; MUSTER_HUB_SERVE=${MUSTER_HUB_SERVE:-}; exec setsid bash -c "exec $line" ) >>"$here/$unit.log" 2>&1 </dev/null &
    echo $! >"$here/$unit.pid"
}

stop() {
    lives || return 0
    kill -TERM "$(cat "$here/$unit.pid")"
    for _ in $(seq 1200); do lives || return 0; sleep 0.05; done
    echo "$unit didn't stop" >&2
    exit 1
}

case $verb in
    enable | start) start ;;
    stop) stop ;;
    reload) kill -HUP "$(cat "$here/$unit.pid")" ;;
    is-active) lives ;;
    set-environment) echo "$2" >>"$here/environment" ;;
    unset-environment) sed -i "/^$2=/d" "$here/environment" ;;
    *) echo "systemctl $verb isn't known here" >&2; exit 1 ;;
esac
"#;
