//! Blocking: a small disk of a test's own, which can be filled. A file system in memory plays it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::statvfs;

/// A file system of its own that is mounted over a folder. Dropped, it is taken away.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// None where this user may not mount.
    pub fn mount(folder: &Path, mebibytes: u32) -> Option<SmallDisk> {
        fs::create_dir_all(folder).unwrap();
        let size = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "muster-test"]).arg(folder).output().unwrap();
        if !mounted.status.success() {
            println!("skipped: this user may not mount a small disk: {}", String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(SmallDisk { folder: folder.to_owned() })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        self.leave(0);
    }

    /// Takes all but so many bytes of it, and more than before where that isn't so any more.
    pub fn leave(&self, bytes: u64) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        let left = || statvfs(&self.folder).map(|disk| disk.f_bavail * disk.f_frsize).unwrap();
        while left() > bytes {
            match file.write_all(&[1; 4_096]) {
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                written => written.unwrap(),
            }
        }
    }

    /// Gives back what was taken.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("somebody-elses")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Programs that were just killed may hold it for a moment longer: it goes when they have gone.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
