//! Blocking: `muster-certs export`: what other software needs of this CA.

use std::io::Write;

use anyhow::Result;
use clap::Subcommand;
use muster_certs::Ca;

use super::Members;
use super::answer::{Exported, RevokedList};

#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// Lists of the revoked (CRL), one per issuing CA whose key is here. No program of muster reads one
    Crl {
        #[command(flatten)]
        members: Members,
    },
    /// The roots that nodes get
    Roots,
    /// The roots, and the cross certificate if one is in use
    Bundle,
}

pub(crate) fn export(ca: &Ca, what: &Export, notes: &mut dyn Write) -> Result<Exported> {
    let (bundle_version, roots) = (ca.bundle_version(), ca.roots_pem().to_owned());
    Ok(match what {
        Export::Roots => Exported::Roots { bundle_version, roots },
        Export::Bundle => Exported::Bundle { bundle_version, roots, cross: ca.state().cross().map(str::to_owned) },
        Export::Crl { members } => {
            let made = ca.revocation_lists(members.read(ca)?.as_ref())?;
            if made.left_out > 0 {
                writeln!(notes, "{} revoked certificates are of issuing CAs whose keys are gone; nobody can list them", made.left_out)?;
            }
            let list = |it: muster_certs::ca::RevocationList| RevokedList {
                issuer_key: it.issuer_key,
                certificates: it.certificates,
                pem: it.pem,
            };
            Exported::Lists { lists: made.lists.into_iter().map(list).collect(), left_out: made.left_out }
        }
    })
}
