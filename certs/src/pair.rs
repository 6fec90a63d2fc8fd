//! Blocking: a certificate and its key in two files, and a new pair in their place.
//!
//! The new pair is listed as one that lies beside the old one, written there, read back and checked; then the key, then the certificate takes the
//! old one's place; then it is listed as the one in use. So whatever is in use is in the CA's list at any moment, with what may be. A crash between
//! key and certificate leaves a pair that doesn't fit, which no program takes: the next renewal puts the certificate in its place.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::ca::{Ca, CaError};
use crate::files::{self, FileError};
use crate::issuer::Signed;
use crate::leaf::Leaf;
use crate::material::{CHAIN_CERTIFICATES_MAX, KeysError, certificates, check_key};
use crate::stranger::Fingerprint;

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// PEM: the leaf, then who issued it.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Why a pair isn't renewed. The old one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// One of the files.
    #[error(transparent)]
    File(#[from] FileError),
    /// What lies there doesn't read, or doesn't fit.
    #[error("{path}: {why}")]
    Keys {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        why: KeysError,
    },
    /// It isn't this CA's, or the CA can't issue.
    #[error("{path}: {why}")]
    Ca {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        why: CaError,
    },
}

impl Pair {
    /// What is in the two files, of this CA and fitting together. A renewal that stopped after the key took its place goes on first; one that
    /// stopped earlier is forgotten.
    pub fn open(&self, ca: &Ca) -> Result<Leaf, PairError> {
        self.finish_interrupted()?;
        self.read(ca, &self.certificate, &self.key)
    }

    /// Fails where nothing can be laid beside the pair. Asked before the CA lists a new one, which would lie nowhere.
    pub fn check_place(&self) -> Result<(), PairError> {
        let (certificate, key) = (self.new_certificate(), self.new_key());
        let written = files::write_secret(&key, b"").and_then(|()| files::write_public(&certificate, b""));
        self.remove_leftovers()?;
        Ok(written?)
    }

    /// Puts a new pair in the place of the old one.
    pub fn replace(&self, ca: &Ca, signed: &Signed) -> Result<Leaf, PairError> {
        files::write_secret(&self.new_key(), signed.key_pem.as_bytes())?;
        files::write_public(&self.new_certificate(), signed.pem.as_bytes())?;
        let leaf = self.read(ca, &self.new_certificate(), &self.new_key())?;
        put(&self.new_key(), &self.key)?;
        put(&self.new_certificate(), &self.certificate)?;
        files::sync_folder_of(&self.certificate)?;
        Ok(leaf)
    }

    fn read(&self, ca: &Ca, certificate: &Path, key: &Path) -> Result<Leaf, PairError> {
        let unfit = |why: KeysError| PairError::Keys { path: certificate.to_owned(), why };
        let chain = certificates("certificate", &files::read(certificate)?, CHAIN_CERTIFICATES_MAX).map_err(unfit)?;
        let leaf = ca.check_own(&chain).map_err(|why| PairError::Ca { path: certificate.to_owned(), why })?;
        check_key(chain, &files::read_secret(key)?).map_err(unfit)?;
        Ok(leaf)
    }

    fn finish_interrupted(&self) -> Result<(), PairError> {
        let (certificate, key) = (self.new_certificate(), self.new_key());
        if certificate.exists() && !key.exists() {
            let unfit = |why: KeysError| PairError::Keys { path: certificate.clone(), why };
            let chain = certificates("certificate", &files::read(&certificate)?, CHAIN_CERTIFICATES_MAX).map_err(unfit)?;
            if check_key(chain, &files::read_secret(&self.key)?).is_ok() {
                put(&certificate, &self.certificate)?;
                return Ok(files::sync_folder_of(&self.certificate)?);
            }
        }
        self.remove_leftovers()
    }

    /// The certificate first: alone it would be one whose key has its place.
    fn remove_leftovers(&self) -> Result<(), PairError> {
        for leftover in [self.new_certificate(), self.new_key()] {
            if leftover.exists() {
                std::fs::remove_file(&leftover).map_err(|error| files::write_error(&leftover, error))?;
            }
        }
        Ok(())
    }

    fn new_certificate(&self) -> PathBuf {
        beside(&self.certificate)
    }

    fn new_key(&self) -> PathBuf {
        beside(&self.key)
    }
}

/// What became of a file with roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// It holds those in force.
    Same,
    /// They were written.
    Written,
    /// It holds roots that aren't this CA's, which is somebody's decision.
    Foreign,
}

/// Writes the roots in force, if those that lie there are all this CA's, or there are none.
pub fn put_roots(ca: &Ca, path: &Path) -> Result<Roots, PairError> {
    let text = if path.exists() { files::read(path)? } else { String::new() };
    if text == ca.roots_pem() {
        return Ok(Roots::Same);
    }
    let own = ca.roots_ever().map_err(|why| PairError::Ca { path: path.to_owned(), why })?;
    if !text.is_empty() && Fingerprint::of_roots(&text).map_or(true, |roots| roots.iter().any(|root| !own.contains(root))) {
        return Ok(Roots::Foreign);
    }
    files::write_public(path, ca.roots_pem().as_bytes())?;
    Ok(Roots::Written)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

fn put(from: &Path, to: &Path) -> Result<(), PairError> {
    Ok(std::fs::rename(from, to).map_err(|error| files::write_error(to, error))?)
}
