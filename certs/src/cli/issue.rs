//! Blocking: `muster-certs issue`: certificates with new keys, into files.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use muster_certs::identity::{check_label, device_text};
use muster_certs::material::utc_text;
use muster_certs::{Ca, Signed, files, read_leaf};

use super::answer::{Issued, IssuedOne};

#[derive(Debug, Subcommand)]
pub(crate) enum Issue {
    /// For a hub: writes hub.pem and hub.key
    Hub {
        /// Id of the hub, such as hub-1
        #[arg(long)]
        id: String,
        #[command(flatten)]
        out: Out,
    },
    /// For a branch office's relay: writes relay.pem and relay.key
    Relay {
        /// The branch office, such as oslo
        #[arg(long)]
        site: String,
        /// Id of the relay, such as oslo-1
        #[arg(long)]
        id: String,
        #[command(flatten)]
        out: Out,
    },
    /// For an employee's computer: prints the new device id, writes agent.pem and agent.key
    Agent {
        /// Where the device belongs, such as oslo
        #[arg(long)]
        site: String,
        /// Stable key of the person, such as kari.n (a-z 0-9 . _ @ -)
        #[arg(long, value_name = "KEY")]
        person: String,
        /// The person's name for display
        #[arg(long)]
        name: String,
        /// Issue N devices at once, into DEVICE.pem and DEVICE.key; {} in --person and --name
        /// becomes 1 to N
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: Option<u32>,
        #[command(flatten)]
        out: Out,
    },
    /// For signing what comes down (policy, deny list): writes control.pem and control.key
    Control {
        /// Number of the control key
        #[arg(long, default_value_t = 1)]
        n: u32,
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Out {
    /// Folder to write to
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn issue(ca: &Ca, what: &Issue, notes: &mut dyn Write) -> Result<Issued> {
    let (place, signed) = match what {
        Issue::Hub { id, out: to } => {
            check_label(id).context("--id")?;
            let place = Place::new(to, "hub")?;
            (place, ca.issue_hub(id)?)
        }
        Issue::Relay { site, id, out: to } => {
            check_label(site).context("--site")?;
            check_label(id).context("--id")?;
            let place = Place::new(to, "relay")?;
            (place, ca.issue_relay(site, id)?)
        }
        Issue::Control { n, out: to } => {
            let place = Place::new(to, "control")?;
            (place, ca.issue_control(*n)?)
        }
        Issue::Agent { site, person, name, count: None, out: to } => {
            check_label(site).context("--site")?;
            let place = Place::new(to, "agent")?;
            (place, ca.issue_agent(site, person, name)?.signed)
        }
        Issue::Agent { site, person, name, count: Some(count), out: to } => {
            check_label(site).context("--site")?;
            return many(ca, site, (person, name), *count, to, notes);
        }
    };
    place.put(ca, &signed, notes)?;
    Ok(Issued { certificates: vec![place.answer(&signed)?] })
}

fn many(ca: &Ca, site: &str, (person, name): (&str, &str), count: u32, to: &Out, notes: &mut dyn Write) -> Result<Issued> {
    let people: Vec<(String, String)> =
        (1..=count).map(|n| n.to_string()).map(|n| (person.replace("{}", &n), name.replace("{}", &n))).collect();
    let agents = ca.issue_agents(site, &people)?;
    // One remark for all of them, below; ids only when all files are there.
    let mut certificates = Vec::with_capacity(agents.len());
    for agent in &agents {
        let place = Place::new(to, &device_text(&agent.device()))?;
        place.put(ca, &agent.signed, &mut std::io::sink())?;
        certificates.push(place.answer(&agent.signed)?);
    }
    writeln!(notes, "wrote {count} certificates and keys to {}", to.out.display())?;
    Ok(Issued { certificates })
}

/// Where a certificate and its key go.
struct Place {
    folder: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Place {
    /// Refuses, before anything is issued, to overwrite a file.
    fn new(to: &Out, stem: &str) -> Result<Place> {
        let folder = to.out.clone();
        let place = Place { certificate: folder.join(format!("{stem}.pem")), key: folder.join(format!("{stem}.key")), folder };
        for path in [&place.certificate, &place.key] {
            ensure!(!path.exists(), "{} exists already and is not overwritten; move it away, or give another --out", path.display());
        }
        Ok(place)
    }

    fn answer(&self, signed: &Signed) -> Result<IssuedOne> {
        let leaf = read_leaf(signed.leaf())?;
        Ok(IssuedOne {
            device: leaf.identity.name.device().map(|device| device_text(&device)),
            identity: leaf.identity.to_string(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            not_after_ms: leaf.not_after_ms,
        })
    }

    fn put(&self, ca: &Ca, signed: &Signed, notes: &mut dyn Write) -> Result<()> {
        files::create_folder(&self.folder)?;
        // The key first: a certificate without its key would look finished.
        files::create_secret(&self.key, signed.key_pem.as_bytes())?;
        files::create_public(&self.certificate, signed.pem.as_bytes())?;
        writeln!(notes, "wrote {} and {} (valid until {})", self.certificate.display(), self.key.display(), utc_text(signed.not_after_ms))?;
        self.put_roots(ca, notes)
    }

    /// A node needs the roots too. Others that lie there already are somebody's decision.
    fn put_roots(&self, ca: &Ca, notes: &mut dyn Write) -> Result<()> {
        let roots = self.folder.join("roots.pem");
        if !roots.exists() {
            files::create_public(&roots, ca.roots_pem().as_bytes())?;
            writeln!(notes, "wrote {}", roots.display())?;
        } else if files::read(&roots)? != ca.roots_pem() {
            writeln!(notes, "left {} as it is: it differs from {}", roots.display(), ca.roots_path().display())?;
        }
        Ok(())
    }
}
