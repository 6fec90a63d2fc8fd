//! Blocking: a desktop in memory (Xvfb and openbox), and the hands that work on it: they type, click and switch between a few windows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use muster_certs::files;
use muster_mesh::complaint::Complaint;

use crate::process::Process;

const SCREEN: &str = "1280x800x24";
const UP_WITHIN: Duration = Duration::from_secs(20);
const ENDED_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Application, title, place on the screen, and what is typed there.
const WINDOWS: [(&str, &str, &str, &str); 3] = [
    ("Writer", "Letter to the landlord - Writer", "70x20+20+20", "Dear Sir, the tap drips again. "),
    ("Sheet", "Household 2026 - Sheet", "60x18+520+60", "12 40 7 19 "),
    ("Mail", "Inbox (3) - Mail", "64x16+220+380", "Thank you, see you on Monday. "),
];

/// A display of our own. Dropped, it is gone with everything on it.
pub struct Desktop {
    display: String,
    folder: PathBuf,
    /// The window manager, then windows.
    clients: Vec<Process>,
    server: Process,
}

/// Works on a display until it is dropped.
pub struct Hands {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Desktop {
    /// Starts an empty one on a free display number; its log lies in `folder`.
    pub fn start(folder: &Path) -> anyhow::Result<Desktop> {
        Desktop::start_sized(folder, SCREEN)
    }

    /// As [`start`](Self::start), with a screen of so many pixels and bits, as in "1280x800x24".
    pub fn start_sized(folder: &Path, screen: &str) -> anyhow::Result<Desktop> {
        files::create_folder(folder)?;
        let number = folder.join("display");
        // An earlier desktop's number must not be taken for this one's.
        files::write_secret(&number, b"")?;
        // The server itself finds a number that nobody has, and writes it down when it is up; the shell only gives it a file for that.
        // A server that resets itself when its only client leaves refuses who comes just then.
        let mut command = Command::new("sh");
        command.args(["-c", "exec Xvfb -displayfd 3 -noreset -screen 0 \"$1\" -nolisten tcp 3>\"$2\"", "sh", screen]).arg(&number);
        let mut server = Process::start("Xvfb", &mut command, &folder.join("log"))?;
        let display = format!(":{}", until(&mut server, || number_in(&number))?);
        let mut desktop = Desktop { display, folder: folder.to_owned(), clients: Vec::new(), server };
        let managed =
            |display: &str| said_by(display, "xprop", &["-root", "_NET_SUPPORTING_WM_CHECK"]).filter(|said| said.contains("window id"));
        desktop.client(&mut Command::new("openbox"), managed)?;
        Ok(desktop)
    }

    /// As in `$DISPLAY`.
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Opens a window, and waits until it is there. Returns its id, as xdotool names it.
    pub fn open(&mut self, class: &str, title: &str, place: &str) -> anyhow::Result<String> {
        let mut command = Command::new("xterm");
        command.args(["-class", class, "-name", class, "-title", title, "-geometry", place, "-e", "cat"]);
        Ok(self.client(&mut command, |display| window_of(display, class))?)
    }

    /// Does something with xdotool; complains if it can't be done.
    pub fn xdotool(&self, arguments: &[&str]) -> Result<String, Complaint> {
        said_by(&self.display, "xdotool", arguments)
            .ok_or_else(|| Complaint::new(format!("xdotool can't do this on display {}: {}", self.display, arguments.join(" ")), ""))
    }

    /// A few windows and hands that work in them like a person, somewhat hasty.
    pub fn hands(&mut self) -> anyhow::Result<Hands> {
        for (class, title, place, _) in WINDOWS {
            self.open(class, title, place)?;
        }
        let (stop, stopped) = channel();
        let display = self.display.clone();
        let thread = thread::Builder::new().name("hands".into()).spawn(move || work(&display, &stopped))?;
        Ok(Hands { stop, thread: Some(thread) })
    }

    fn client<T>(&mut self, command: &mut Command, is_up: impl Fn(&str) -> Option<T>) -> Result<T, Complaint> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut client = Process::start(&name, command.env("DISPLAY", &self.display), &self.folder.join("log"))?;
        let found = until(&mut client, || is_up(&self.display))?;
        self.clients.push(client);
        Ok(found)
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        while self.clients.pop().is_some() {}
        // Killed outright, it would leave its lock file in /tmp.
        self.server.end(ENDED_WITHIN);
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        // It may have ended by itself, when the display went away.
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One window after the other: to the front, some words, some clicks, a turn of the wheel, a breath.
fn work(display: &str, stopped: &Receiver<()>) {
    for (turn, (class, _, _, text)) in WINDOWS.into_iter().cycle().enumerate() {
        let Some(window) = window_of(display, class) else { return };
        let turn = turn as u64;
        // Inside even the smallest window: the wheel beside one would change to another desktop, and nobody would see these again.
        let x = (40 + 37 * turn % 200).to_string();
        let y = (40 + 23 * turn % 100).to_string();
        let wheel = if turn.is_multiple_of(2) { "4" } else { "5" };
        let gestures: [&[&str]; 5] = [
            &["windowactivate", &window],
            &["type", "--delay", "30", text],
            &["mousemove", "--window", &window, &x, &y],
            &["click", "--repeat", "2", "--delay", "120", "1"],
            &["click", "--repeat", "3", "--delay", "40", wheel],
        ];
        for gesture in gestures {
            // A window that was closed meanwhile is nobody's fault.
            let _ = said_by(display, "xdotool", gesture);
            if !matches!(stopped.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
        let breath = Duration::from_millis(800 + 450 * (turn % 5));
        if !matches!(stopped.recv_timeout(breath), Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

fn number_in(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.ends_with('\n').then(|| text.trim().to_owned())
}

/// The id of an application's window, as xdotool names it.
fn window_of(display: &str, class: &str) -> Option<String> {
    let found = said_by(display, "xdotool", &["search", "--onlyvisible", "--class", &format!("^{class}$")])?;
    found.lines().next().map(str::to_owned)
}

/// None: it failed.
fn said_by(display: &str, program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env("DISPLAY", display).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn until<T>(process: &mut Process, mut found: impl FnMut() -> Option<T>) -> Result<T, Complaint> {
    let mut waited = Duration::ZERO;
    while waited < UP_WITHIN {
        if let Some(found) = found() {
            return Ok(found);
        }
        process.check()?;
        thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    let what = format!("{} runs, but the desktop isn't there after {} s", process.name(), UP_WITHIN.as_secs());
    Err(Complaint::new(what, format!("See {}", process.log().display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_when_its_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("display");
        assert_eq!(number_in(&path), None);
        fs::write(&path, "10").unwrap();
        assert_eq!(number_in(&path), None);
        fs::write(&path, "101\n").unwrap();
        assert_eq!(number_in(&path).as_deref(), Some("101"));
    }
}
