//! Blocking: bytes on the database's disk that nobody uses: SQLite's deletion writes before it frees, and a full disk has no room for that.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Room for a sweep of some ten thousand rows, piece by piece, or for what the log holds beyond the database's end.
const BYTES: usize = 8 << 20;

/// A file beside the database.
#[derive(Debug, Clone)]
pub struct Reserve {
    file: PathBuf,
}

impl Reserve {
    pub fn beside(database: &Path) -> Reserve {
        let mut file = database.as_os_str().to_owned();
        file.push("-reserve");
        Reserve { file: file.into() }
    }

    /// Makes it whole. Where the disk has no room for that, there is none.
    pub fn make(&self) -> io::Result<()> {
        if fs::metadata(&self.file).is_ok_and(|about| about.len() == BYTES as u64) {
            return Ok(());
        }
        let made = self.write();
        if made.is_err() {
            self.let_go()?;
        }
        made
    }

    /// Gives its room back. False: there was none.
    pub fn let_go(&self) -> io::Result<bool> {
        match fs::remove_file(&self.file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.file)?;
        file.write_all(&vec![0; BYTES])?;
        // Some disks say only now that they have no room.
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_let_go_once_and_half_of_one_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&dir.path().join("muster.db"));
        let file = dir.path().join("muster.db-reserve");
        let length = || fs::metadata(&file).unwrap().len();
        assert!(!reserve.let_go().unwrap());
        fs::write(&file, b"half").unwrap();
        reserve.make().unwrap();
        reserve.make().unwrap();
        assert_eq!(length(), BYTES as u64);
        assert!(reserve.let_go().unwrap() && !file.exists());
    }

    #[test]
    fn where_it_cant_be_made_nothing_of_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&dir.path().join("nowhere").join("muster.db"));
        assert!(reserve.make().is_err() && !reserve.let_go().unwrap());
    }
}
