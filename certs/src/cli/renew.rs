//! Blocking: `muster-certs renew`: new certificates and keys in place of those in a folder, of the same names.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use muster_certs::Ca;
use muster_certs::identity::device_text;
use muster_certs::material::utc_text;
use muster_certs::pair::{Pair, Roots, put_roots};

use super::answer::{Issued, IssuedOne};

/// Pairs in one folder: as many as `issue agent --count` makes.
const PAIRS_MAX: usize = 100_000;
/// Certificates that are written into the CA's lists with one sync to disk, and are lost together in a crash: run it again then.
const AT_ONCE: usize = 100;
const ROOTS: &str = "roots.pem";

pub(crate) fn renew(ca: &Ca, folder: &Path, notes: &mut dyn Write) -> Result<Issued> {
    let pairs = pairs(folder)?;
    ensure!(!pairs.is_empty(), "{} holds no certificate with its key beside it, such as hub.pem and hub.key", folder.display());
    // All are looked at before one is touched.
    let mut old = Vec::with_capacity(pairs.len());
    for pair in &pairs {
        old.push(pair.open(ca)?.identity.name);
    }
    // All lie in one folder.
    pairs.first().map(Pair::check_place).transpose()?;
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
    let roots = folder.join(ROOTS);
    match put_roots(ca, &roots)? {
        Roots::Same => {}
        Roots::Written => writeln!(notes, "wrote {}", roots.display())?,
        Roots::Foreign => writeln!(notes, "left {} as it is: it holds roots that aren't this CA's", roots.display())?,
    }
    Ok(Issued { certificates: renewed })
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
