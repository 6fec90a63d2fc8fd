//! Blocking: the few things that a queue's folder does to a disk, so that a test can take the disk's place and cut its power.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::directory::Room;

/// One folder on a disk. Names are relative to it; `quarantine/…` is one level down.
pub trait Disk: Send {
    type File: Medium;

    /// Names of the files in the folder, and of those in `quarantine/`.
    fn list(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Writes a whole new file; `durable`: its bytes are synced.
    fn write(&mut self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()>;
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_folder(&mut self) -> io::Result<()>;
    fn open(&mut self, name: &str, create: bool) -> io::Result<Self::File>;
    /// Bytes that a file occupies.
    fn allocated(&self, name: &str) -> u64;
    /// Of the whole disk. None: nobody knows.
    fn room(&self) -> Option<Room> {
        None
    }
}

/// An open file that is read and written in place.
pub trait Medium: fmt::Debug + Send + Sync + 'static {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the computer.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

const OWNER_ONLY_FILE: u32 = 0o600;
const OWNER_ONLY_FOLDER: u32 = 0o700;
/// The subfolder for what can't be read.
pub const QUARANTINE: &str = "quarantine";

impl Folder {
    /// Makes the folder if it isn't there, owner only.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(OWNER_ONLY_FOLDER).create(path.join(QUARANTINE))?;
        Ok(Folder { path: path.to_owned() })
    }
}

impl Disk for Folder {
    type File = Blocks;

    fn list(&self) -> io::Result<Vec<String>> {
        let names = |folder: &Path, prefix: &str| -> io::Result<Vec<String>> {
            let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
            let named = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
            Ok(named.map(|name| format!("{prefix}{name}")).collect())
        };
        let mut all = names(&self.path, "")?;
        all.extend(names(&self.path.join(QUARANTINE), &format!("{QUARANTINE}/"))?);
        Ok(all)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(OWNER_ONLY_FILE).open(self.path.join(name))?;
        file.write_all(bytes)?;
        if durable { file.sync_data() } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()?;
        File::open(self.path.join(QUARANTINE))?.sync_all()
    }

    fn open(&mut self, name: &str, create: bool) -> io::Result<Blocks> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(create).mode(OWNER_ONLY_FILE);
        Ok(Blocks { file: options.open(self.path.join(name))? })
    }

    fn allocated(&self, name: &str) -> u64 {
        // st_blocks counts 512 bytes each, whatever the file system's own block is.
        fs::metadata(self.path.join(name)).map_or(0, |metadata| metadata.blocks() * 512)
    }

    fn room(&self) -> Option<Room> {
        let disk = rustix::fs::statvfs(&self.path).ok()?;
        Some(Room { free: disk.f_bavail.saturating_mul(disk.f_frsize), size: disk.f_blocks.saturating_mul(disk.f_frsize) })
    }
}

/// An open file of a [`Folder`].
#[derive(Debug)]
pub struct Blocks {
    file: File,
}

impl Medium for Blocks {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
