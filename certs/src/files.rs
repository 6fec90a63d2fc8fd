//! Blocking: small files, read with clear errors and written whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The largest file this crate reads whole, in bytes. A list of 100,000 devices has about 20 MB.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

const OWNER_ONLY: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// What went wrong with a file, and with which.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It isn't there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It is there already and must not be overwritten.
    #[error("{0} exists already and is not overwritten; move it away first")]
    Exists(PathBuf),
    /// Larger than [`FILE_BYTES_MAX`], or not a plain file.
    #[error("{0} is not a plain file of at most 64 MiB")]
    NotPlain(PathBuf),
    /// A secret that others may read.
    #[error("{path} may be read by others (mode {mode:03o}); run: chmod 600 {path}")]
    NotOwnerOnly {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not UTF-8.
    #[error("{0} is not a text file")]
    NotText(PathBuf),
    /// Cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Cannot be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Reads a whole text file.
pub fn read(path: &Path) -> Result<String, FileError> {
    read_open(path, open(path)?)
}

/// Reads a whole text file that holds a secret: refused when group or others may read or write it.
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let file = open(path)?;
    // Asked of the open file, not of the path, so that both answers are about the same file.
    let mode = file.metadata().map_err(|e| read_error(path, e))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::NotOwnerOnly { path: path.to_owned(), mode });
    }
    read_open(path, file)
}

/// Writes a secret (mode 0600) atomically: after a crash there is the old file or the new one.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, OWNER_ONLY, true)
}

/// Writes what anyone may read (mode 0644) atomically.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, PUBLIC, true)
}

/// [`write_secret`], but refuses to replace a file.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, OWNER_ONLY, false)
}

/// [`write_public`], but refuses to replace a file.
pub fn create_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, PUBLIC, false)
}

/// Makes a folder, and those above it, that only its owner may enter.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| write_error(path, e))
}

/// Gives a file to whom another one belongs. A key that root makes is for the program that reads its folder.
pub fn own_like(path: &Path, other: &Path) -> Result<(), FileError> {
    let wanted = std::fs::metadata(other).map_err(|e| read_error(other, e))?;
    let found = std::fs::metadata(path).map_err(|e| read_error(path, e))?;
    if (found.uid(), found.gid()) == (wanted.uid(), wanted.gid()) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(wanted.uid()), Some(wanted.gid())).map_err(|e| write_error(path, e))
}

/// Makes the entries of the folder that holds `path` durable.
pub fn sync_folder_of(path: &Path) -> Result<(), FileError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| write_error(folder, e))
}

pub(crate) fn read_error(path: &Path, error: io::Error) -> FileError {
    if error.kind() == io::ErrorKind::NotFound {
        return FileError::Missing(path.to_owned());
    }
    FileError::Read { path: path.to_owned(), error }
}

pub(crate) fn write_error(path: &Path, error: io::Error) -> FileError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return FileError::Exists(path.to_owned());
    }
    FileError::Write { path: path.to_owned(), error }
}

fn open(path: &Path) -> Result<File, FileError> {
    // Asked before opening: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|e| read_error(path, e))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(FileError::NotPlain(path.to_owned()));
    }
    File::open(path).map_err(|e| read_error(path, e))
}

fn read_open(path: &Path, file: File) -> Result<String, FileError> {
    let mut bytes = Vec::new();
    // One more than allowed, so that a file that grew meanwhile is noticed.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::NotPlain(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| FileError::NotText(path.to_owned()))
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> Result<(), FileError> {
    let fail = |e| write_error(path, e);
    let mut file = tempfile::Builder::new().prefix(".muster-").suffix(".tmp").tempfile_in(folder_of(path)).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    // Set on the open file, so that the umask has no say and nobody reads it before.
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    if replace {
        file.persist(path).map_err(|e| fail(e.error))?;
    } else {
        file.persist_noclobber(path).map_err(|e| fail(e.error))?;
    }
    sync_folder_of(path)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_secret_is_written_owner_only_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_secret(&path, b"one").unwrap();
        write_secret(&path, b"two").unwrap();
        assert_eq!((mode(&path), read_secret(&path).unwrap().as_str()), (0o600, "two"));
    }

    #[test]
    fn writing_leaves_no_temporary_file_behind_even_when_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        create_public(&path, b"one").unwrap();
        assert!(matches!(create_public(&path, b"two"), Err(FileError::Exists(_))));
        assert_eq!((mode(&path), read(&path).unwrap().as_str()), (0o644, "one"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("in-the-way");
        std::fs::create_dir(&folder).unwrap();
        assert!(matches!(write_public(&folder, b"x"), Err(FileError::Write { .. })));
        assert!(folder.is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for loose in [0o640, 0o604, 0o620, 0o660] {
            write_secret(&path, b"x").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(loose)).unwrap();
            let error = read_secret(&path).unwrap_err();
            assert!(matches!(error, FileError::NotOwnerOnly { mode, .. } if mode == loose));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_a_folder_and_binary_rubbish_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(matches!(read(&path), Err(FileError::Missing(p)) if p == path));
        assert!(matches!(read(dir.path()), Err(FileError::NotPlain(_))));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read(&path), Err(FileError::NotText(_))));
    }
}
