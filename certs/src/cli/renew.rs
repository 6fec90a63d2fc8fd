//! Blocking: `muster-certs renew`: new certificates and keys in place of those in a folder, of the same names.
//!
//! The new pair is listed as one that lies beside the old one, written there, read back and checked; then the key, then the certificate takes the
//! old one's place; then it is listed as the one in use. So whatever is in use is in the CA's list at any moment, with what may be. A crash between
//! key and certificate leaves a pair that doesn't fit, which no program takes: the next `renew` puts the certificate in its place.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use muster_certs::identity::device_text;
use muster_certs::material::{CHAIN_CERTIFICATES_MAX, certificates, check_key, utc_text};
use muster_certs::{Ca, Fingerprint, Leaf, Signed, files};

use super::answer::{Issued, IssuedOne};

/// Pairs in one folder: as many as `issue agent --count` makes.
const PAIRS_MAX: usize = 100_000;
/// Certificates that are written into the CA's lists with one sync to disk, and are lost together in a crash: run it again then.
const AT_ONCE: usize = 100;
const ROOTS: &str = "roots.pem";

/// A certificate and its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

pub(crate) fn renew(ca: &Ca, folder: &Path, notes: &mut dyn Write) -> Result<Issued> {
    let pairs = pairs(folder)?;
    ensure!(!pairs.is_empty(), "{} holds no certificate with its key beside it, such as hub.pem and hub.key", folder.display());
    // All are looked at before one is touched.
    let mut old = Vec::with_capacity(pairs.len());
    for pair in &pairs {
        pair.finish_interrupted()?;
        old.push(pair.read(ca, &pair.certificate, &pair.key)?.identity.name);
    }
    let mut renewed = Vec::with_capacity(pairs.len());
    for (pairs, names) in pairs.chunks(AT_ONCE).zip(old.chunks(AT_ONCE)) {
        let new = ca.reissue(names)?;
        for (pair, signed) in pairs.iter().zip(&new) {
            let leaf = pair.replace(ca, signed)?;
            writeln!(notes, "renewed {} (valid until {})", pair.certificate.display(), utc_text(leaf.not_after_ms))?;
            renewed.push(IssuedOne {
                device: leaf.identity.name.device().map(|device| device_text(&device)),
                identity: leaf.identity.to_string(),
                certificate: pair.certificate.clone(),
                key: pair.key.clone(),
                not_after_ms: leaf.not_after_ms,
            });
        }
        ca.replaced(&new)?;
    }
    put_roots(ca, &folder.join(ROOTS), notes)?;
    Ok(Issued { certificates: renewed })
}

impl Pair {
    fn replace(&self, ca: &Ca, signed: &Signed) -> Result<Leaf> {
        files::write_secret(&self.new_key(), signed.key_pem.as_bytes())?;
        files::write_public(&self.new_certificate(), signed.pem.as_bytes())?;
        let leaf = self.read(ca, &self.new_certificate(), &self.new_key())?;
        put(&self.new_key(), &self.key)?;
        put(&self.new_certificate(), &self.certificate)?;
        files::sync_folder_of(&self.certificate)?;
        Ok(leaf)
    }

    /// What is in these two files, of this CA and fitting together.
    fn read(&self, ca: &Ca, certificate: &Path, key: &Path) -> Result<Leaf> {
        let context = || certificate.display().to_string();
        let chain = certificates("certificate", &files::read(certificate)?, CHAIN_CERTIFICATES_MAX).with_context(context)?;
        let leaf = ca.check_own(&chain).with_context(context)?;
        check_key(chain, &files::read_secret(key)?).with_context(context)?;
        Ok(leaf)
    }

    /// A renewal that stopped after the key took its place goes on; one that stopped earlier is forgotten.
    fn finish_interrupted(&self) -> Result<()> {
        let (certificate, key) = (self.new_certificate(), self.new_key());
        if certificate.exists() && !key.exists() {
            let chain = certificates("certificate", &files::read(&certificate)?, CHAIN_CERTIFICATES_MAX)?;
            if check_key(chain, &files::read_secret(&self.key)?).is_ok() {
                put(&certificate, &self.certificate)?;
                return Ok(files::sync_folder_of(&self.certificate)?);
            }
        }
        for leftover in [certificate, key] {
            if leftover.exists() {
                std::fs::remove_file(&leftover).with_context(|| leftover.display().to_string())?;
            }
        }
        Ok(())
    }

    fn new_certificate(&self) -> PathBuf {
        self.certificate.with_extension("pem.new")
    }

    fn new_key(&self) -> PathBuf {
        self.key.with_extension("key.new")
    }
}

/// Each `NAME.pem` with a `NAME.key`, by name.
fn pairs(folder: &Path) -> Result<Vec<Pair>> {
    let context = || folder.display().to_string();
    let mut pairs = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let certificate = entry.with_context(context)?.path();
        let key = certificate.with_extension("key");
        if certificate.extension().is_some_and(|kind| kind == "pem") && key.exists() {
            ensure!(pairs.len() < PAIRS_MAX, "{} holds more than {PAIRS_MAX} certificates", folder.display());
            pairs.push(Pair { certificate, key });
        }
    }
    pairs.sort_by(|a, b| a.certificate.cmp(&b.certificate));
    Ok(pairs)
}

/// The roots in force, if those that lie there are all this CA's. Others are somebody's decision.
fn put_roots(ca: &Ca, path: &Path, notes: &mut dyn Write) -> Result<()> {
    let text = if path.exists() { files::read(path)? } else { String::new() };
    if text == ca.roots_pem() {
        return Ok(());
    }
    let own = ca.roots_ever()?;
    let foreign = !text.is_empty() && Fingerprint::of_roots(&text).map_or(true, |roots| roots.iter().any(|root| !own.contains(root)));
    if foreign {
        writeln!(notes, "left {} as it is: it holds roots that aren't this CA's", path.display())?;
    } else {
        files::write_public(path, ca.roots_pem().as_bytes())?;
        writeln!(notes, "wrote {}", path.display())?;
    }
    Ok(())
}

fn put(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| to.display().to_string())
}
