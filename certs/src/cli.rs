//! Blocking: the verbs of `muster-certs`. Results go to standard output, so that scripts can use
//! them; remarks go to standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use muster_certs::chain::check_chain;
use muster_certs::description::Description;
use muster_certs::identity::{check_label, device_text};
use muster_certs::material::{CHAIN_CERTIFICATES_MAX, certificates, check_key, root_store, utc_text};
use muster_certs::{Ca, Expect, Name, Role, Signed, SystemTime, check_leaf, files, read_leaf};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Certificates of a muster mesh: make the CA, issue, show, verify.
#[derive(Debug, Parser)]
#[command(name = "muster-certs", version, propagate_version = true)]
pub struct Cli {
    /// Folder of the CA
    #[arg(long, global = true, default_value = "muster-ca", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a new CA: a root and an issuing CA. Never overwrites one
    Init {
        /// Trust domain of the mesh; every identity begins with it
        #[arg(long, default_value = "muster.internal")]
        domain: String,
    },
    /// Issue a certificate with a new key
    #[command(subcommand)]
    Issue(Issue),
    /// Say plainly what is in a certificate file
    Show {
        /// A .pem file: a program's certificate, or roots
        file: PathBuf,
    },
    /// Check a certificate as its peers would; says in one line what is wrong
    Verify(Verify),
}

#[derive(Debug, Subcommand)]
enum Issue {
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
struct Out {
    /// Folder to write to
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Verify {
    /// A .pem file: leaf, then issuing CA
    file: PathBuf,
    /// Roots to trust [default: roots.pem of the CA]
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// Trust domain it must belong to [default: its own]
    #[arg(long)]
    domain: Option<String>,
    /// Role it must have: agent, relay, hub or control
    #[arg(long, conflicts_with = "name")]
    role: Option<Role>,
    /// Who it must be, such as site/oslo/relay/oslo-1
    #[arg(long)]
    name: Option<Name>,
    /// Key that must belong to it
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Runs one command. `out` gets results, `notes` gets remarks.
pub fn run(cli: &Cli, out: &mut dyn Write, notes: &mut dyn Write) -> Result<()> {
    match &cli.verb {
        Verb::Init { domain } => init(&cli.dir, domain, notes),
        Verb::Issue(what) => issue(&Ca::open(&cli.dir)?, what, out, notes),
        Verb::Show { file } => show(file, out),
        Verb::Verify(what) => verify(&cli.dir, what, out),
    }
}

/// The program's exit code; a failure is told in one line.
#[expect(clippy::print_stderr, reason = "the program's last word")]
pub fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output (`show … | head`) has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("muster-certs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn init(dir: &Path, domain: &str, notes: &mut dyn Write) -> Result<()> {
    let ca = Ca::init(dir, domain)?;
    let shown = dir.display();
    writeln!(notes, "made the CA of {domain} in {shown}")?;
    writeln!(notes, "  {shown}/roots.pem  give a copy to every hub, relay and agent")?;
    writeln!(notes, "  {shown}/root/      move this folder offline, and keep a copy; issuing works without it")?;
    writeln!(notes, "  {shown}/issuing/   issues certificates until {}", utc_text(ca.not_after_ms()))?;
    Ok(())
}

fn issue(ca: &Ca, what: &Issue, out: &mut dyn Write, notes: &mut dyn Write) -> Result<()> {
    match what {
        Issue::Hub { id, out: to } => {
            check_label(id).context("--id")?;
            let place = Place::new(to, "hub")?;
            let signed = ca.issue_hub(id)?;
            place.put(ca, &signed, notes)?;
            writeln!(out, "{}", read_leaf(signed.leaf())?.identity)?;
        }
        Issue::Relay { site, id, out: to } => {
            check_label(site).context("--site")?;
            check_label(id).context("--id")?;
            let place = Place::new(to, "relay")?;
            let signed = ca.issue_relay(site, id)?;
            place.put(ca, &signed, notes)?;
            writeln!(out, "{}", read_leaf(signed.leaf())?.identity)?;
        }
        Issue::Control { n, out: to } => {
            let place = Place::new(to, "control")?;
            let signed = ca.issue_control(*n)?;
            place.put(ca, &signed, notes)?;
            writeln!(out, "{}", read_leaf(signed.leaf())?.identity)?;
        }
        Issue::Agent { site, person, name, count: None, out: to } => {
            check_label(site).context("--site")?;
            let place = Place::new(to, "agent")?;
            let agent = ca.issue_agent(site, person, name)?;
            place.put(ca, &agent.signed, notes)?;
            writeln!(out, "{}", device_text(&agent.device()))?;
        }
        Issue::Agent { site, person, name, count: Some(count), out: to } => {
            check_label(site).context("--site")?;
            let people: Vec<(String, String)> =
                (1..=*count).map(|n| n.to_string()).map(|n| (person.replace("{}", &n), name.replace("{}", &n))).collect();
            let agents = ca.issue_agents(site, &people)?;
            // One remark for all of them, below; ids only when all files are there.
            for agent in &agents {
                Place::new(to, &device_text(&agent.device()))?.put(ca, &agent.signed, &mut std::io::sink())?;
            }
            writeln!(notes, "wrote {count} certificates and keys to {}", to.out.display())?;
            for agent in &agents {
                writeln!(out, "{}", device_text(&agent.device()))?;
            }
        }
    }
    Ok(())
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

fn show(file: &Path, out: &mut dyn Write) -> Result<()> {
    let text = files::read(file)?;
    let shown = file.display();
    if !text.contains("BEGIN CERTIFICATE") && text.contains("PRIVATE KEY") {
        bail!("{shown} is a private key; show reads certificates");
    }
    let found = certificates("certificate", &text, 1000).with_context(|| shown.to_string())?;
    let now_ms = i64::try_from(now()?.as_secs())?.saturating_mul(1000);
    for (index, der) in found.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let number = index + 1;
        let description = Description::of(der, now_ms).with_context(|| format!("{shown}, certificate {number}"))?;
        writeln!(out, "{description}")?;
    }
    Ok(())
}

fn verify(dir: &Path, what: &Verify, out: &mut dyn Write) -> Result<()> {
    let shown = what.file.display();
    let context = || shown.to_string();
    let text = files::read(&what.file)?;
    let chain = certificates("certificate", &text, CHAIN_CERTIFICATES_MAX).with_context(context)?;
    let Some((end, between)) = chain.split_first() else {
        bail!("{shown} holds no certificate");
    };
    let leaf = read_leaf(end).with_context(context)?;
    let domain = what.domain.as_deref().unwrap_or(&leaf.identity.domain);
    check_leaf(end, domain, &expectation(what)).with_context(context)?;

    let default_roots = dir.join("roots.pem");
    let roots_path = what.roots.as_ref().unwrap_or(&default_roots);
    let roots_text = files::read(roots_path).context("roots (choose them by --roots or --dir)")?;
    let roots = root_store(&roots_text).with_context(|| roots_path.display().to_string())?;
    check_chain(end, between, &roots, leaf.identity.role(), now()?).with_context(context)?;
    if let Some(key) = &what.key {
        let key_text = files::read_secret(key)?;
        check_key(chain.clone(), &key_text).with_context(|| key.display().to_string())?;
    }
    writeln!(out, "{shown}: good: {}, valid until {}", leaf.identity, utc_text(leaf.not_after_ms))?;
    Ok(())
}

fn expectation(what: &Verify) -> Expect {
    match (&what.name, what.role) {
        (Some(name), _) => Expect::Exactly(name.clone()),
        (None, Some(Role::Agent)) => Expect::Roles(&[Role::Agent]),
        (None, Some(Role::Relay)) => Expect::Roles(&[Role::Relay]),
        (None, Some(Role::Hub)) => Expect::Roles(&[Role::Hub]),
        (None, Some(Role::Control)) => Expect::Roles(&[Role::Control]),
        (None, None) => Expect::Roles(&Role::ALL),
    }
}

fn now() -> Result<UnixTime> {
    let now = SystemTime.current_time().context("this computer's clock gives no time; set it")?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a command line as the shell would; gives standard output, or the error in one line.
    fn muster_certs(dir: &Path, line: &str) -> Result<String, String> {
        let dir = dir.to_str().unwrap();
        let line = line.replace("@", dir);
        let ca = format!("{dir}/ca");
        let words = ["muster-certs", "--dir", &ca].into_iter();
        let cli = Cli::try_parse_from(words.chain(line.split_whitespace())).map_err(|e| e.to_string())?;
        let mut out = Vec::new();
        match run(&cli, &mut out, &mut Vec::new()) {
            Ok(()) => Ok(String::from_utf8(out).unwrap()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    fn with_ca() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        muster_certs(dir.path(), "init --domain test.internal").unwrap();
        dir
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn init_issue_show_and_verify_go_together() {
        let temp = with_ca();
        let dir = temp.path();
        for (line, identity) in [
            ("issue hub --id hub-1 --out @/n", "hub/hub-1"),
            ("issue relay --site oslo --id oslo-1 --out @/n", "site/oslo/relay/oslo-1"),
            ("issue control --n 7 --out @/n", "control/7"),
        ] {
            let printed = muster_certs(dir, line).unwrap();
            assert_eq!(printed, format!("spiffe://test.internal/{identity}\n"));
        }
        for role in ["hub", "relay", "control"] {
            let line = format!("verify @/n/{role}.pem --key @/n/{role}.key --role {role}");
            let printed = muster_certs(dir, &line).unwrap();
            assert!(printed.contains(": good: spiffe://test.internal/"), "{printed}");
            assert_eq!(printed.lines().count(), 1);
        }
        let shown = muster_certs(dir, "show @/n/relay.pem").unwrap();
        assert!(shown.contains("spiffe://test.internal/site/oslo/relay/oslo-1"), "{shown}");
        assert!(shown.contains("client and server"), "{shown}");
        assert!(shown.contains("an issuing CA, path length 0"), "{shown}");
        let roots = muster_certs(dir, "show @/n/roots.pem").unwrap();
        assert!(roots.contains("a root CA, no path length"), "{roots}");
    }

    #[test]
    fn issuing_an_agent_prints_its_device_and_lists_it() {
        let temp = with_ca();
        let dir = temp.path();
        let line = "issue agent --site oslo --person kari --name Kari --out @/kari";
        let printed = muster_certs(dir, line).unwrap();
        let list = muster_certs::issued::read(&dir.join("ca/issued.jsonl")).unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(printed, format!("{}\n", device_text(&list[0].device)));
        assert_eq!((list[0].person.as_str(), list[0].name.as_str()), ("kari", "Kari"));
        let verified = muster_certs(dir, "verify @/kari/agent.pem --roots @/kari/roots.pem");
        assert!(verified.unwrap().contains(printed.trim()));
    }

    #[test]
    fn many_agents_get_a_file_each_and_numbered_people() {
        let temp = with_ca();
        let dir = temp.path();
        let line = "issue agent --site oslo --person p{} --name N{} --count 3 --out @/many";
        let printed = muster_certs(dir, line).unwrap();
        let list = muster_certs::issued::read(&dir.join("ca/issued.jsonl")).unwrap();
        let people: Vec<&str> = list.iter().map(|entry| entry.person.as_str()).collect();
        assert_eq!(people, ["p1", "p2", "p3"]);
        assert_eq!(printed.lines().count(), 3);
        for device in printed.lines() {
            let line = format!("verify @/many/{device}.pem --key @/many/{device}.key");
            muster_certs(dir, &line).unwrap();
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let temp = with_ca();
        let dir = temp.path();
        let again = muster_certs(dir, "init").unwrap_err();
        assert!(again.contains("already a CA"), "{again}");
        let line = "issue agent --site oslo --person kari --name Kari --out @/kari";
        muster_certs(dir, line).unwrap();
        let again = muster_certs(dir, line).unwrap_err();
        assert!(again.contains("not overwritten"), "{again}");
        let list = muster_certs::issued::read(&dir.join("ca/issued.jsonl")).unwrap();
        assert_eq!(list.len(), 1, "a refused command issues nothing");
    }

    #[test]
    fn verify_says_in_one_line_what_is_wrong() {
        let temp = with_ca();
        let dir = temp.path();
        muster_certs(dir, "issue hub --id hub-1 --out @/n").unwrap();
        muster_certs(dir, "issue control --out @/n").unwrap();
        Ca::init(&dir.join("other"), "test.internal").unwrap();
        for (line, want) in [
            ("verify @/n/hub.pem --role relay", "is a hub; expected here: relay"),
            ("verify @/n/hub.pem --name hub/hub-2", "dialled hub/hub-2"),
            ("verify @/n/hub.pem --domain else", "another mesh"),
            ("verify @/n/hub.pem --roots @/other/roots.pem", "none of the given roots"),
            ("verify @/n/hub.pem --roots @/n/hub.pem", "not a root"),
            ("verify @/n/hub.pem --key @/n/control.key", "does not belong"),
            ("verify @/n/hub.key", "no BEGIN CERTIFICATE"),
            ("verify @/n/roots.pem", "CA certificate"),
            ("verify @/n/none.pem", "does not exist"),
            ("show @/n/hub.key", "is a private key"),
            ("verify @/n/hub.pem --role boss", "a role is agent, relay, hub or control"),
        ] {
            let error = muster_certs(dir, line).unwrap_err();
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn a_missing_ca_and_bad_names_are_told_with_the_remedy() {
        let temp = tempfile::tempdir().unwrap();
        let missing = muster_certs(temp.path(), "issue hub --id h").unwrap_err();
        assert!(missing.contains("muster-certs init"), "{missing}");
        let temp = with_ca();
        let dir = temp.path();
        for line in [
            "issue hub --id Hub --out @/n",
            "issue relay --site o/s --id a --out @/n",
            "issue agent --site oslo --person Kari --name K --out @/n",
            "issue agent --site Oslo --person kari --name K --out @/n",
        ] {
            let error = muster_certs(dir, line).unwrap_err();
            assert!(error.contains("characters a-z"), "{line}: {error}");
        }
        assert!(!dir.join("n").exists());
    }
}
