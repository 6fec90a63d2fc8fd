//! Async: one program that this one started: it ends with it, and its last words are kept.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use muster_mesh::complaint::Complaint;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A child. Dropped, it is killed and waited for.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; both its outputs are appended to `log`, which only the owner reads.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process, Complaint> {
        let output = open_log(log)?;
        let errors = output.try_clone().map_err(|error| unwritable(log, &error))?;
        // A group of its own: Ctrl-C at the terminal is for the one who starts and stops, in order.
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0).spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            Complaint::new(format!("{program} can't be started: {error}"), "Look whether it is installed (ops/packages) or built")
        })?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), ended: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended; None: it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Complains, in its own last words, if it has ended.
    pub fn check(&mut self) -> Result<(), Complaint> {
        let Some(status) = self.ended() else { return Ok(()) };
        let what = match self.last_words() {
            Some(words) => format!("{} has ended ({status}) and said: {words}", self.name),
            None => format!("{} has ended ({status})", self.name),
        };
        Err(Complaint::new(what, format!("The rest stands in {}", self.log.display())))
    }

    /// Asks it to stop (SIGTERM), and waits. Complains if it doesn't end well within the time; then it is killed.
    pub async fn stop(&mut self, within: Duration) -> Result<(), Complaint> {
        self.check()?;
        self.signal(Signal::TERM);
        let deadline = Instant::now() + within;
        while self.ended().is_none() {
            if Instant::now() > deadline {
                self.kill();
                let what = format!("{} didn't stop within {} s and was killed", self.name, within.as_secs());
                return Err(Complaint::new(what, format!("See {}", self.log.display())));
            }
            sleep(LOOK_EVERY).await;
        }
        match self.ended() {
            Some(status) if status.success() => Ok(()),
            _ => self.check(),
        }
    }

    /// As [`stop`](Self::stop), for one that is only a means: it blocks, and how it ends doesn't matter.
    pub fn end(&mut self, within: Duration) {
        self.signal(Signal::TERM);
        let begin = Instant::now();
        while self.ended().is_none() && begin.elapsed() < within {
            thread::sleep(LOOK_EVERY);
        }
        self.kill();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // It can only fail for a process that is gone.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Freezes it (SIGSTOP) or lets it go on (SIGCONT).
    pub fn freeze(&mut self, frozen: bool) {
        self.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }

    fn signal(&mut self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // Until it was waited for the number is its own; after that nobody is signalled.
        if let (None, Some(id)) = (self.ended(), id) {
            let _ = kill_process(id, signal);
        }
    }

    /// The last line of its log.
    fn last_words(&self) -> Option<String> {
        let log = fs::read(&self.log).ok()?;
        let text = String::from_utf8_lossy(&log);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(500).collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn open_log(log: &Path) -> Result<File, Complaint> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(log).map_err(|error| unwritable(log, &error))
}

fn unwritable(log: &Path, error: &std::io::Error) -> Complaint {
    Complaint::new(format!("{} can't be written: {error}", log.display()), "Make its folder writable for this user")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &tempfile::TempDir) -> Process {
        Process::start("the test", Command::new("sh").args(["-c", script]), &dir.path().join("log")).unwrap()
    }

    async fn until_it_said(process: &Process, word: &str) {
        while !fs::read_to_string(process.log()).unwrap().contains(word) {
            sleep(LOOK_EVERY).await;
        }
    }

    #[tokio::test]
    async fn what_ended_by_itself_is_told_in_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo first; echo 'port 1 is taken' >&2; exit 3", &dir);
        while process.ended().is_none() {
            sleep(LOOK_EVERY).await;
        }
        let line = process.check().unwrap_err().to_string();
        assert!(line.contains("the test has ended") && line.contains("port 1 is taken") && !line.contains("first"), "{line}");
    }

    #[tokio::test]
    async fn one_that_stops_well_is_well_and_one_that_wont_stop_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut good = shell("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done", &dir);
        until_it_said(&good, "ready").await;
        good.stop(Duration::from_secs(5)).await.unwrap();
        let mut deaf = shell("trap '' TERM; echo deaf; while :; do sleep 0.05; done", &dir);
        until_it_said(&deaf, "deaf").await;
        let line = deaf.stop(Duration::from_millis(100)).await.unwrap_err().to_string();
        assert!(line.contains("was killed") && deaf.ended().is_some(), "{line}");
    }

    #[tokio::test]
    async fn a_dropped_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("echo up; exec sleep 100", &dir);
        until_it_said(&process, "up").await;
        let folder = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(folder.exists());
        drop(process);
        assert!(!folder.exists());
    }
}
