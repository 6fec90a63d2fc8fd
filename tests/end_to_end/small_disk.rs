//! Blocking: a small disk of a test's own, which can be filled. A file system in memory plays it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

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
        let mut file = File::create(self.filler()).unwrap();
        for size in [1 << 16, 1 << 12] {
            let piece = vec![1; size];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
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
