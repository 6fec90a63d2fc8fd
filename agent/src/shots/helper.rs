//! Blocking: runs the helper `muster-shot` for one set of pictures, with a deadline; its memory is given back when it ends.
//!
//! The helper is a program of its own so that a fault in a display's libraries can't end the agent. It gets one line, and an environment that
//! only leads to the display. It has ended, by itself or by force, before its answer is given on, so that it never stays behind.

use std::{
    env,
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
    thread,
    time::Duration,
};

use muster_mesh::{clock::Clock, complaint::Complaint};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process_group},
};

use super::{
    camera::{Camera, CameraError, Picture, Request},
    frames::{Frames, request_line, senseless},
};

/// The helper's name beside the agent's.
const NAME: &str = "muster-shot";
/// From its start to its end: a picture takes 100 ms, and a portal that asks somebody has no end.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How soon a picture that nobody wants any more is given up.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Read at once.
const PIECE_BYTES: usize = 64 << 10;
/// What leads to the display and to whoever allows pictures of it.
const ENVIRONMENT: [&str; 9] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "HOME",
    "LANG",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_CURRENT_DESKTOP",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_TYPE",
];

/// Takes pictures by the helper program, each set on a thread of its own.
pub struct Helper {
    program: PathBuf,
    deadline: Duration,
    clock: Arc<dyn Clock>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    answer: Receiver<Result<Vec<Picture>, CameraError>>,
    given_up: Arc<AtomicBool>,
}

/// Where the helper is: as configured, or beside this program. None: it isn't installed.
pub fn find(configured: Option<&Path>) -> Result<Option<PathBuf>, Complaint> {
    if let Some(path) = configured {
        return if is_program(path) { Ok(Some(path.to_owned())) } else { Err(no_program(path)) };
    }
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(NAME)));
    Ok(beside.filter(|path| is_program(path)))
}

fn no_program(path: &Path) -> Complaint {
    Complaint::new(
        format!("pictures.helper names {}, and that is no program", path.display()),
        "Name the file muster-shot there, or leave the line out: then it is looked for beside muster-agent",
    )
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl Helper {
    pub fn new(program: PathBuf, clock: Arc<dyn Clock>) -> Helper {
        Helper::with_deadline(program, clock, DEADLINE)
    }

    pub fn with_deadline(program: PathBuf, clock: Arc<dyn Clock>, deadline: Duration) -> Helper {
        Helper { program, deadline, clock, under_way: None }
    }
}

impl Camera for Helper {
    fn begin(&mut self, request: &Request) {
        self.cancel();
        let (answer, answered) = sync_channel(1);
        let given_up = Arc::new(AtomicBool::new(false));
        let run = Run {
            program: self.program.clone(),
            request: request.clone(),
            deadline_ms: self.clock.now().boot_ms + u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
            clock: self.clock.clone(),
            given_up: given_up.clone(),
        };
        let spawned = thread::Builder::new().name("shot".into()).spawn(move || {
            // Nobody may want it any more.
            let _ = answer.send(run.run());
        });
        if let Err(error) = spawned {
            // The channel's other end is gone, and `poll` says so.
            tracing::warn!(%error, "the thread for a picture can't be started");
        }
        self.under_way = Some(UnderWay { answer: answered, given_up });
    }

    fn poll(&mut self) -> Option<Result<Vec<Picture>, CameraError>> {
        let answer = match self.under_way.as_ref()?.answer.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(senseless("its thread ended")),
        };
        self.under_way = None;
        Some(answer)
    }

    fn cancel(&mut self) {
        if let Some(under_way) = self.under_way.take() {
            under_way.given_up.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Its thread ends the helper, and then itself; waiting for it here a moment keeps the helper from outliving the agent.
        if let Some(under_way) = self.under_way.take() {
            under_way.given_up.store(true, Ordering::Relaxed);
            let _ = under_way.answer.recv_timeout(10 * LOOK_EVERY);
        }
    }
}

/// One run of the helper.
struct Run {
    program: PathBuf,
    request: Request,
    deadline_ms: u64,
    clock: Arc<dyn Clock>,
    given_up: Arc<AtomicBool>,
}

impl Run {
    fn run(&self) -> Result<Vec<Picture>, CameraError> {
        let mut child = self.start().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CameraError::NotSupported(super::NOT_INSTALLED.into()),
            _ => senseless(&format!("it can't be started: {error}")),
        })?;
        let talked = self.talk(&mut child);
        // An answer that ends where it should comes from a helper that is about to end by itself.
        let ended = talked.is_ok() && self.has_ended(&mut child);
        if !ended {
            end(&child);
        }
        // It was told to end, or has: this doesn't wait long, and nothing of it stays behind.
        let status = child.wait();
        match talked {
            Ok(frames) if ended && status.as_ref().is_ok_and(std::process::ExitStatus::success) => frames.finish(),
            Ok(frames) => Err(frames.finish().err().unwrap_or_else(|| senseless("it didn't end as it should"))),
            Err(error) => Err(error),
        }
    }

    fn start(&self) -> io::Result<Child> {
        let environment = ENVIRONMENT.iter().filter_map(|name| Some((*name, env::var_os(name)?)));
        Command::new(&self.program)
            .env_clear()
            .envs(environment.collect::<Vec<(&str, OsString)>>())
            .current_dir("/")
            // A group of its own: whatever it starts ends with it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }

    fn talk(&self, child: &mut Child) -> Result<Frames, CameraError> {
        let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else { return Err(senseless("it has no pipes")) };
        let broken = |error: io::Error| senseless(&format!("it doesn't talk: {error}"));
        for pipe in [stdin.as_fd(), stdout.as_fd()] {
            fcntl_getfl(pipe).and_then(|flags| fcntl_setfl(pipe, flags | OFlags::NONBLOCK)).map_err(|error| broken(error.into()))?;
        }
        self.ask(stdin)?;
        let mut frames = Frames::new(self.request.clone());
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match stdout.read(&mut piece) {
                Ok(0) => return Ok(frames),
                Ok(bytes) => frames.push(&piece[..bytes])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(stdout.as_fd(), PollFlags::IN)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// The whole request, and then the end of what it is told.
    fn ask(&self, mut stdin: impl Write + AsFd) -> Result<(), CameraError> {
        let line = request_line(&self.request);
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match stdin.write(rest) {
                Ok(bytes) => rest = &rest[bytes..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(stdin.as_fd(), PollFlags::OUT)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It may have said why before it read the question.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(senseless(&format!("it doesn't listen: {error}"))),
            }
        }
        Ok(())
    }

    /// Until the pipe is ready, or it is time to look again.
    fn wait(&self, pipe: BorrowedFd<'_>, until: PollFlags) -> Result<(), CameraError> {
        let left_ms = self.left_ms()?;
        let wait = LOOK_EVERY.min(Duration::from_millis(left_ms));
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut [PollFd::from_borrowed_fd(pipe, until)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(senseless(&format!("its pipe breaks: {error}"))),
        }
    }

    fn left_ms(&self) -> Result<u64, CameraError> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(senseless("it was given up"));
        }
        match self.deadline_ms.saturating_sub(self.clock.now().boot_ms) {
            0 => Err(senseless("it takes too long")),
            left_ms => Ok(left_ms),
        }
    }

    /// It said all that it has to say, and gets what is left of the time to end.
    fn has_ended(&self, child: &mut Child) -> bool {
        const A_MOMENT: Duration = Duration::from_millis(2);
        loop {
            match child.try_wait() {
                Ok(Some(_)) => return true,
                Ok(None) if self.left_ms().is_ok() => thread::sleep(A_MOMENT),
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

/// Ends the helper and whatever it started.
fn end(child: &Child) {
    // Not waited for yet, so its number is still its own. Gone already: that is what is wanted.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use muster_mesh::{clock::SystemClock, record::PictureFormat};

    use super::*;
    use crate::shots::camera::Of;

    const HEADER: &str = r#"{"area":"monitor","part":0,"parts":1,"x":0,"y":0,"width":8,"height":6,"captured_width":8,"captured_height":6,"format":"webp","blurred":true,"bytes":12}"#;

    fn picture_script() -> String {
        let length = format!("\\{:03o}\\{:03o}\\000\\000", HEADER.len() % 256, HEADER.len() / 256);
        format!("read line\nprintf '{length}'\nprintf '%s' '{HEADER}'\nprintf 'RIFF\\004\\000\\000\\000WEBP'\n")
    }

    fn error_script(error: &str) -> String {
        let header = format!(r#"{{"error":"{error}","text":"in plain words"}}"#);
        format!("read line\nprintf '\\{:03o}\\000\\000\\000'\nprintf '%s' '{header}'\n", header.len())
    }

    struct Stage {
        dir: tempfile::TempDir,
        helper: Helper,
    }

    impl Stage {
        /// A helper that is a shell script, and first notes its number.
        fn new(script: &str, deadline_ms: u64) -> Stage {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join(NAME);
            let pid = dir.path().join("pid");
            fs::write(&program, format!("#!/bin/sh\necho $$ > '{}'\n{script}", pid.display())).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            let helper = Helper::with_deadline(program, Arc::new(SystemClock::new()), Duration::from_millis(deadline_ms));
            Stage { dir, helper }
        }

        fn take(&mut self) -> Result<Vec<Picture>, CameraError> {
            self.helper.begin(&request());
            loop {
                if let Some(answer) = self.helper.poll() {
                    return answer;
                }
                thread::sleep(Duration::from_millis(2));
            }
        }

        fn pid(&self) -> Option<String> {
            fs::read_to_string(self.dir.path().join("pid")).ok().filter(|pid| pid.ends_with('\n')).map(|pid| pid.trim().to_owned())
        }

        /// Neither running nor a zombie.
        fn is_gone(&self) -> bool {
            self.pid().is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        }
    }

    /// Within what a loaded machine needs.
    fn until(mut holds: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if holds() {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("it didn't come");
    }

    fn request() -> Request {
        Request { of: Of::AllMonitors, blur: true, format: PictureFormat::Webp, excluded: vec!["x".repeat(20_000)] }
    }

    fn lost(answer: Result<Vec<Picture>, CameraError>) -> String {
        match answer {
            Err(CameraError::Lost(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_picture_comes_back_and_the_helper_is_gone() {
        let mut stage = Stage::new(&picture_script(), 10_000);
        let pictures = stage.take().unwrap();
        assert_eq!((pictures.len(), pictures[0].width, pictures[0].bytes.len()), (1, 8, 12));
        assert!(stage.is_gone());
        assert_eq!(stage.take().unwrap(), pictures, "and again");
    }

    #[test]
    fn each_error_is_told_and_the_helper_is_gone() {
        let words = || "in plain words".to_owned();
        for (error, expected) in [
            ("no_display", CameraError::NoDisplay(words())),
            ("not_permitted", CameraError::NotPermitted(words())),
            ("not_supported", CameraError::NotSupported(words())),
            ("lost", CameraError::Lost(words())),
            ("bad_request", CameraError::Lost(words())),
            ("excluded", CameraError::Excluded),
        ] {
            let mut stage = Stage::new(&error_script(error), 10_000);
            assert_eq!(stage.take(), Err(expected), "{error}");
            assert!(stage.is_gone(), "{error}");
        }
    }

    #[test]
    fn rubbish_silence_and_floods_end_it() {
        for (what, script) in [
            ("rubbish", "read line\necho rubbish\nsleep 600".to_owned()),
            ("nothing", "read line".to_owned()),
            ("nothing read", "exit 0".to_owned()),
            ("a flood", "read line\nyes".to_owned()),
            ("a failure after the picture", picture_script() + "exit 3"),
            ("half a picture", "read line\nprintf '\\050\\000\\000\\000{'".to_owned()),
        ] {
            let mut stage = Stage::new(&script, 60_000);
            let why = lost(stage.take());
            assert!(why.starts_with("muster-shot doesn't work"), "{what}: {why}");
            assert!(stage.is_gone(), "{what}");
        }
    }

    #[test]
    fn the_deadline_ends_it_with_whatever_it_started() {
        for (what, script) in [
            ("silent", "read line\nsleep 600".to_owned()),
            ("deaf", "sleep 600".to_owned()),
            ("a child that keeps the pipe", "read line\nsleep 600 &\nwait".to_owned()),
            ("a whole answer, and no end", picture_script() + "sleep 600"),
            ("closed pipes, and no end", picture_script() + "exec >&- <&-\nsleep 600"),
        ] {
            let mut stage = Stage::new(&script, 300);
            let why = lost(stage.take());
            assert!(why.contains("takes too long") || why.contains("didn't end"), "{what}: {why}");
            assert!(stage.is_gone(), "{what}");
        }
    }

    #[test]
    fn what_is_given_up_ends_at_once() {
        let mut stage = Stage::new("read line\nsleep 600", 600_000);
        stage.helper.begin(&request());
        until(|| stage.pid().is_some());
        stage.helper.cancel();
        until(|| stage.is_gone());
        assert_eq!(stage.helper.poll(), None);
    }

    #[test]
    fn its_environment_leads_only_to_the_display() {
        let mut stage = Stage::new("env > \"${0%/*}/env\"\nread line", 10_000);
        let _ = stage.take();
        let environment = fs::read_to_string(stage.dir.path().join("env")).unwrap();
        let names: Vec<&str> = environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        // The shell sets some of its own.
        let known = |name: &&str| ENVIRONMENT.contains(name) || ["PWD", "OLDPWD", "SHLVL", "_", "PATH"].contains(name);
        assert!(names.iter().all(known), "{names:?}");
        assert!(env::vars_os().count() > names.len(), "the agent's own has more");
    }

    #[test]
    fn a_helper_that_isnt_there_is_said_to_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut helper = Helper::new(path.clone(), Arc::new(SystemClock::new()));
        helper.begin(&request());
        let answer = loop {
            if let Some(answer) = helper.poll() {
                break answer;
            }
            thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(answer, Err(CameraError::NotSupported(super::super::NOT_INSTALLED.into())));
        assert!(find(Some(&path)).unwrap_err().to_string().contains("pictures.helper"));
        fs::write(&path, "").unwrap();
        assert!(find(Some(&path)).is_err(), "a file that can't be run is no program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Some(&path)).unwrap(), Some(path));
    }
}
