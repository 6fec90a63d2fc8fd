//! Blocking: a rotation's steps, with its keys and files. What a step does is `rotation.rs`' matter.
//!
//! New keys and certificates are on the disk before `rotation.json` names them; old keys go after it doesn't need them any more. A crash
//! between leaves files that nobody ever names, or a key that should be gone: that one goes with the next step.

use std::path::{Path, PathBuf};

use super::{Ca, CaError, ISSUING_FOLDER, ROOT_FOLDER, ROOTS, ROTATION, authority, lock, put_issuing, put_root, read_state};
use crate::files::{self, FileError};
use crate::issuer::{Issuer, Root};
use crate::material::root_ders;
use crate::members::Report;
use crate::rotation::{Authority, Crossed, Cut, State};

/// Digits of the key identifier in a file's name.
const FILE_DIGITS: usize = 8;

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Whom it has cut off, if it was forced.
    pub cut_off: Vec<Cut>,
    /// Keys that were destroyed.
    pub destroyed: Vec<PathBuf>,
}

impl Ca {
    /// Where the root's folder is if nobody says otherwise.
    pub fn root_folder(&self) -> PathBuf {
        self.dir.join(ROOT_FOLDER)
    }

    /// Begins a rotation of the issuing CA with the root's key, which lies in `root_folder`. The old one goes on issuing.
    pub fn start_issuing(&mut self, root_folder: &Path) -> Result<Moved, CaError> {
        let _held = self.begin()?;
        let now_ms = self.now_ms()?;
        let root = self.own_root(root_folder)?;
        let issuing = self.new_issuing(&root, None, now_ms)?;
        self.keep(self.state.start_issuing(issuing, now_ms)?)
    }

    /// Begins a rotation of the root: a new root beside the old one in `root_folder`, its cross certificate by the old one, and an issuing CA
    /// below it. The bundle holds both from now on; the old issuing CA goes on issuing.
    pub fn start_root(&mut self, root_folder: &Path) -> Result<Moved, CaError> {
        let _held = self.begin()?;
        let now_ms = self.now_ms()?;
        let old = self.own_root(root_folder)?;
        let new = Root::create(self.domain(), now_ms)?;
        let cross = old.cross(&new, now_ms)?;
        let mut root = authority("new root", "", new.pem())?;
        root.file = file_of("root", &root.key);
        put_root(root_folder, &root.file, &new)?;
        let crossed = Crossed { by: self.state.root.key.clone(), not_after_ms: authority("cross certificate", "", &cross)?.not_after_ms };
        let issuing = self.new_issuing(&new, Some(crossed), now_ms)?;
        self.keep(self.state.start_root(root, cross, issuing, now_ms)?)
    }

    /// The next step. Refused if it cuts somebody off, or if nobody says who holds what; `force` does it all the same.
    pub fn advance(&mut self, report: Option<&Report>, force: bool) -> Result<Moved, CaError> {
        let _held = self.begin()?;
        let now_ms = self.now_ms()?;
        if let Some(report) = report {
            report.check_age(now_ms)?;
        }
        let everybody = self.holders(report)?;
        let known = report.map(|_| everybody.as_slice());
        if !force {
            report.map_or(Ok(()), |report| self.state.check_report(report))?;
            self.state.check_advance(known, now_ms)?;
        }
        let cut_off = self.state.cuts_off(&everybody, now_ms);
        let moved = self.keep(self.state.advance(now_ms)?)?;
        Ok(Moved { cut_off, ..moved })
    }

    /// One step back.
    pub fn back(&mut self) -> Result<Moved, CaError> {
        let _held = self.begin()?;
        let now_ms = self.now_ms()?;
        self.keep(self.state.back(now_ms)?)
    }

    /// Puts right what a crash left: `roots.pem`, and keys that should be gone. Says which were.
    pub fn settle(&self) -> Result<Vec<PathBuf>, CaError> {
        if !self.dir.join(ROTATION).exists() {
            return Ok(Vec::new());
        }
        let roots = self.dir.join(ROOTS);
        if !matches!(files::read(&roots), Ok(text) if text == self.roots_pem) {
            files::write_public(&roots, self.roots_pem.as_bytes())?;
        }
        let kept = self.state.kept_keys();
        let mut destroyed = Vec::new();
        for gone in [&self.state.issuing].into_iter().chain(&self.state.past).filter(|it| it.key != it.under) {
            let path = self.dir.join(ISSUING_FOLDER).join(format!("{}.key", gone.file));
            if !kept.iter().any(|kept| kept.file == gone.file) && remove(&path)? {
                destroyed.push(path);
            }
        }
        Ok(destroyed)
    }

    /// Nobody else steps meanwhile, and this is what is in force.
    fn begin(&self) -> Result<std::fs::File, CaError> {
        let held = lock(&self.dir)?;
        let (on_disk, _) = read_state(&self.dir)?;
        if on_disk.step != self.state.step {
            return Err(CaError::Overtaken);
        }
        self.settle()?;
        Ok(held)
    }

    fn keep(&mut self, state: State) -> Result<Moved, CaError> {
        let path = self.dir.join(ROTATION);
        let text = serde_json::to_string_pretty(&state).map_err(|e| files::write_error(&path, e.into()))?;
        files::write_public(&path, format!("{text}\n").as_bytes())?;
        *self = Ca::open_at(&self.dir, self.time.clone())?;
        let destroyed = self.settle()?;
        *self = Ca::open_at(&self.dir, self.time.clone())?;
        Ok(Moved { cut_off: Vec::new(), destroyed })
    }

    fn own_root(&self, folder: &Path) -> Result<Root, CaError> {
        self.state.check_free()?;
        let roots = root_ders(&self.roots_pem).map_err(CaError::Roots)?.len();
        if roots != 1 {
            return Err(CaError::ForeignRoots(roots));
        }
        let key = match files::read_secret(&folder.join(format!("{}.key", self.state.root.file))) {
            Ok(key) => key,
            Err(FileError::Missing(_)) => return Err(CaError::NoRootKey(folder.to_owned())),
            Err(other) => return Err(other.into()),
        };
        Ok(Root::from_pem(&self.state.root.pem, &key)?)
    }

    fn new_issuing(&self, root: &Root, crossed: Option<Crossed>, now_ms: i64) -> Result<Authority, CaError> {
        let issuer: Issuer = root.issue_issuing(self.domain(), now_ms)?;
        let mut issuing = authority("new issuing CA", "", issuer.pem())?;
        issuing.file = file_of("issuing", &issuing.key);
        issuing.crossed = crossed;
        put_issuing(&self.dir, &issuing.file, &issuer)?;
        Ok(issuing)
    }
}

fn file_of(what: &str, key: &str) -> String {
    format!("{what}-{}", key.get(..FILE_DIGITS).unwrap_or(key))
}

/// Whether there was one.
fn remove(path: &Path) -> Result<bool, CaError> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            files::sync_folder_of(path)?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(files::write_error(path, error).into()),
    }
}
