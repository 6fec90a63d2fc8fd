//! Blocking: the one folder that a program keeps its state in: owner only, one program at a time, one format number.
//!
//! ```text
//! <state>/format         "1": the number of everything below; another number is not ours to touch
//! <state>/lock           held while the program runs; names who holds it
//! <state>/control.sock   where verbs ask the running program
//! ```

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use crate::complaint::{Complaint, program_name};

/// The number of this build's formats.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const OWNER_ONLY: u32 = 0o700;

/// A program's state folder, locked for as long as this lives.
pub struct StateDir {
    path: PathBuf,
    // The lock ends when this is closed, also by a crash.
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it isn't there, checks whose it is and what its format is, and locks it for `program` ("hub", "relay", "agent").
    pub fn open(path: &Path, program: &str) -> Result<StateDir, Complaint> {
        let path = placed(path)?;
        make(&path)?;
        check_format(&path)?;
        keep_owner_only(&path)?;
        let lock = lock(&path, &program_name(program))?;
        write_format(&path)?;
        Ok(StateDir { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl fmt::Debug for StateDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateDir").field(&self.path).finish()
    }
}

/// The folder's full name. A `~` that is still there means that nobody knew a home folder: better no folder than one called `~`.
fn placed(path: &Path) -> Result<PathBuf, Complaint> {
    if path.components().next() == Some(Component::Normal("~".as_ref())) {
        return Err(Complaint::new(
            format!("the state folder {} needs a home folder, and HOME isn't set", path.display()),
            "Set HOME, or give a full path as `state` in the configuration",
        ));
    }
    std::path::absolute(path).map_err(|error| unusable(path, &error))
}

fn make(path: &Path) -> Result<(), Complaint> {
    DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(path).map_err(|error| unusable(path, &error))
}

/// Nothing may be touched in a folder of another format, so this comes first.
fn check_format(path: &Path) -> Result<(), Complaint> {
    let text = match fs::read_to_string(path.join(FORMAT_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(path, &error)),
    };
    match text.trim().parse::<u32>() {
        Ok(FORMAT) => Ok(()),
        Ok(newer) if newer > FORMAT => Err(Complaint::new(
            format!("the state folder {} has format {newer}, and this build knows {FORMAT}; nothing was touched", path.display()),
            "Use the newer build that wrote it, or another state folder",
        )),
        _ => Err(Complaint::new(
            format!("the state folder {} has no format number that this build knows; nothing was touched", path.display()),
            "Look whether it is the right folder, or use another",
        )),
    }
}

/// What lies here is about people. A folder that is plainly ours (new, or with our format) is closed to others; any other is left alone.
fn keep_owner_only(path: &Path) -> Result<(), Complaint> {
    let metadata = fs::metadata(path).map_err(|error| unusable(path, &error))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Complaint::new(
            format!("the state folder {} belongs to another user", path.display()),
            "Run this as that user, or use another state folder",
        ));
    }
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let empty = fs::read_dir(path).map_err(|error| unusable(path, &error))?.next().is_none();
    if !empty && !path.join(FORMAT_FILE).exists() {
        return Err(Complaint::new(
            format!("the folder {} is open to other users and holds other things", path.display()),
            format!("Use another state folder, or close this one: chmod 700 {}", path.display()),
        ));
    }
    fs::set_permissions(path, Permissions::from_mode(OWNER_ONLY)).map_err(|error| unusable(path, &error))
}

fn lock(path: &Path, program: &str) -> Result<File, Complaint> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK_FILE));
    let mut file = opened.map_err(|error| unusable(path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(running(path, program, &mut file)),
        Err(TryLockError::Error(error)) => return Err(unusable(path, &error)),
    }
    let named = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{program} (process {})", std::process::id()));
    named.map_err(|error| unusable(path, &error))?;
    Ok(file)
}

fn running(path: &Path, program: &str, lock: &mut File) -> Complaint {
    let mut holder = String::new();
    // The name is only for the message: without it the program's own name is the best guess.
    let _ = lock.take(200).read_to_string(&mut holder);
    let holder = if holder.trim().is_empty() { program } else { holder.trim() };
    Complaint::new(
        format!("{holder} is already running with the state folder {}", path.display()),
        "Stop it first, or use another state folder",
    )
}

/// Written whole or not at all: an empty `format` after a power cut would lock everybody out.
fn write_format(path: &Path) -> Result<(), Complaint> {
    let (format, temporary) = (path.join(FORMAT_FILE), path.join("format.new"));
    if format.exists() {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{FORMAT}")?;
        file.sync_all()?;
        fs::rename(&temporary, &format)?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> Complaint {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Complaint::new(
            format!("the state folder {shown} is not writable for this user"),
            "Give it to this user (chown), or name another as `state` in the configuration",
        ),
        io::ErrorKind::ReadOnlyFilesystem => {
            Complaint::new(format!("the state folder {shown} is on a read-only disk"), "Name another as `state` in the configuration")
        }
        io::ErrorKind::StorageFull => Complaint::new(format!("the disk of the state folder {shown} is full"), "Make room on it"),
        _ => Complaint::new(format!("the state folder {shown} can't be used: {error}"), "Name another as `state` in the configuration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn line(path: &Path) -> String {
        StateDir::open(path, "agent").unwrap_err().to_string()
    }

    #[test]
    fn a_new_folder_is_owner_only_and_says_its_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let state = StateDir::open(&path, "agent").unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(fs::read_to_string(state.join("format")).unwrap(), "1\n");
        drop(state);
        StateDir::open(&path, "agent").unwrap();
    }

    #[test]
    fn a_second_program_is_told_who_runs() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path(), "agent").unwrap();
        let line = line(dir.path());
        assert!(line.contains(&format!("muster-agent (process {}) is already running", std::process::id())), "{line}");
        drop(first);
        StateDir::open(dir.path(), "agent").unwrap();
    }

    #[test]
    fn another_format_is_refused_and_nothing_is_touched() {
        for (text, expected) in [("2\n", "has format 2"), ("", "no format number"), ("one", "no format number")] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("format"), text).unwrap();
            let line = line(dir.path());
            assert!(line.contains(expected), "{line}");
            assert_eq!(fs::read_to_string(dir.path().join("format")).unwrap(), text);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_folder_that_others_can_read_is_closed_only_when_it_is_plainly_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, shared) = (dir.path().join("ours"), dir.path().join("shared"));
        for path in [&ours, &shared] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(shared.join("letter.txt"), "x").unwrap();
        StateDir::open(&ours, "agent").unwrap();
        assert_eq!(mode(&ours), 0o700);
        let line = line(&shared);
        assert!(line.contains("holds other things"), "{line}");
        assert_eq!(mode(&shared), 0o755);
    }

    #[test]
    fn a_folder_that_cant_be_made_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        for path in [dir.path().join("file"), dir.path().join("file/below"), PathBuf::from("/proc/muster"), PathBuf::from("~/muster")] {
            let line = line(&path);
            assert!(line.contains(&path.display().to_string()) && line.contains("state"), "{line}");
        }
    }
}
