//! Blocking: the verbs of `muster-certs`. Results go to standard output, so that scripts can use them, with `--json` as one JSON value per
//! command; remarks go to standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use muster_certs::chain::check_chain;
use muster_certs::description::Description;
use muster_certs::join::{self, JoinToken};
use muster_certs::material::{CHAIN_CERTIFICATES_MAX, certificates, check_key, root_store, utc_text};
use muster_certs::{Ca, Expect, Name, Report, Role, SystemTime, check_leaf, files, read_leaf};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use serde::Serialize;

use answer::{Answer, Listed, Made, Shown, Told, Verified};
use issue::Issue;
use rotate::Rotate;

mod answer;
mod doctor;
mod export;
mod issue;
mod renew;
mod rotate;

/// Certificates of a muster mesh: make the CA, issue, renew, rotate, revoke, and see what breaks next.
#[derive(Debug, Parser)]
#[command(name = "muster-certs", version, propagate_version = true)]
pub struct Cli {
    /// Folder of the CA
    #[arg(long, global = true, default_value = "muster-ca", value_name = "DIR")]
    dir: PathBuf,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
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
    /// Replace certificates and keys in a folder by new ones of the same names. Those who were enrolled renew by themselves
    Renew {
        /// The folder with hub.pem and hub.key, or relay., agent., control.
        folder: PathBuf,
    },
    /// Replace the issuing CA or the root, step by step
    #[command(subcommand)]
    Rotate(Rotate),
    /// Write down that what was issued to somebody until now counts no more
    Revoke {
        /// Who, such as site/oslo/relay/oslo-1
        name: Name,
        /// Why, in a few words
        #[arg(long, default_value = "not said")]
        why: String,
    },
    /// What was issued into files, and when it ends
    List {
        /// Earlier certificates of the same names, too
        #[arg(long)]
        all: bool,
    },
    /// Say plainly what is in a certificate file or a join token, but never a secret
    Show {
        /// A .pem file: a program's certificate, or roots; or a join token, or a file that holds one
        #[arg(value_name = "FILE|TOKEN")]
        what: PathBuf,
    },
    /// Check a certificate as its peers would; says in one line what is wrong
    Verify(Verify),
    /// What breaks next and when, and until when each branch can stay alone. Ends with 1 if something breaks within 30 days, with 2 on an error
    Doctor {
        #[command(flatten)]
        members: Members,
        /// Write down that this key has a backup: root, issuing, or a key as the doctor names it; with --members also hub, for all of its own
        #[arg(long, value_name = "KEY")]
        backed_up: Option<String>,
    },
    /// Print what other software needs
    #[command(subcommand)]
    Export(export::Export),
}

/// The hub's report.
#[derive(Debug, Args)]
struct Members {
    /// What `muster-hub member list --json` printed at the hub
    #[arg(long, value_name = "FILE")]
    members: Option<PathBuf>,
}

impl Members {
    fn read(&self, ca: &Ca) -> Result<Option<Report>> {
        let Some(path) = &self.members else { return Ok(None) };
        let text = files::read(path)?;
        Ok(Some(Report::read(&text, ca.domain()).with_context(|| path.display().to_string())?))
    }
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

/// How a command ended that didn't fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All is well.
    Fine,
    /// The doctor found something that breaks soon.
    Soon,
}

/// Runs one command. `out` gets results, `notes` gets remarks.
pub fn run(cli: &Cli, out: &mut dyn Write, notes: &mut dyn Write) -> Result<Ended> {
    let open = || Ca::open(&cli.dir);
    match &cli.verb {
        Verb::Init { domain } => cli.tell(&init(&cli.dir, domain, notes)?, out),
        Verb::Issue(what) => cli.tell(&issue::issue(&open()?, what, notes)?, out),
        Verb::Renew { folder } => cli.tell(&renew::renew(&open()?, folder, notes)?, out),
        Verb::Rotate(what) => cli.tell(&rotate::rotate(&mut open()?, what, notes)?, out),
        Verb::Revoke { name, why } => cli.tell(&Told(open()?.revoke(name, why)?), out),
        Verb::List { all } => cli.tell(&list(&open()?, *all)?, out),
        Verb::Show { what } => cli.tell(&show(what)?, out),
        Verb::Verify(what) => cli.tell(&verify(&cli.dir, what)?, out),
        Verb::Doctor { members, backed_up: None } => {
            let found = doctor::doctor(&open()?, members)?;
            let ended = if found.0.soon { Ended::Soon } else { Ended::Fine };
            cli.tell(&found, out)?;
            return Ok(ended);
        }
        Verb::Doctor { members, backed_up: Some(key) } => cli.tell(&doctor::note_backup(&open()?, members, key)?, out),
        Verb::Export(what) => cli.tell(&export::export(&open()?, what, notes)?, out),
    }?;
    Ok(Ended::Fine)
}

impl Cli {
    fn tell<A: Answer + Serialize>(&self, answer: &A, out: &mut dyn Write) -> Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut *out, answer)?;
            writeln!(out)?;
            return Ok(());
        }
        Ok(answer.text(out)?)
    }
}

/// The program's exit code; a failure is told in one line. Only the doctor's 1 isn't a failure, so its failures are 2.
#[expect(clippy::print_stderr, reason = "the program's last word")]
pub fn finish(cli: &Cli, result: Result<Ended>) -> ExitCode {
    let failure = if matches!(cli.verb, Verb::Doctor { .. }) { ExitCode::from(2) } else { ExitCode::FAILURE };
    match result {
        Ok(Ended::Fine) => ExitCode::SUCCESS,
        Ok(Ended::Soon) => ExitCode::FAILURE,
        // Whoever read our output (`show … | head`) has seen enough.
        Err(error) if is_broken_pipe(&error) => failure,
        Err(error) => {
            eprintln!("muster-certs: {error:#}");
            failure
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    io.or(json) == Some(std::io::ErrorKind::BrokenPipe)
}

fn init(dir: &Path, domain: &str, notes: &mut dyn Write) -> Result<Made> {
    let ca = Ca::init(dir, domain)?;
    let shown = dir.display();
    writeln!(notes, "made the CA of {domain} in {shown}")?;
    writeln!(notes, "  {shown}/roots.pem  give a copy to every hub, relay and agent")?;
    writeln!(notes, "  {shown}/root/      move this folder offline, and keep a copy; issuing works without it")?;
    writeln!(notes, "  {shown}/issuing/   issues certificates until {}", utc_text(ca.not_after_ms()))?;
    Ok(Made { domain: domain.to_owned(), roots: ca.roots_path(), issues_until_ms: ca.not_after_ms() })
}

fn list(ca: &Ca, all: bool) -> Result<answer::List> {
    let revoked = muster_certs::ledger::revoked(&ca.revoked_path())?;
    let lines = muster_certs::ledger::certificates(&ca.certificates_path())?;
    // One that was renewed is listed twice: as what lay beside the old one, and as what took its place.
    let once: std::collections::BTreeMap<(&str, &str), _> = lines.iter().map(|line| ((&*line.name, &*line.serial), line)).collect();
    let shown =
        if all { once.into_values().collect() } else { muster_certs::ledger::in_use(&lines).into_values().flatten().collect::<Vec<_>>() };
    let mut listed = Vec::new();
    for line in shown.into_iter().cloned() {
        let counts_no_more = revoked.iter().any(|it| it.name == line.name && line.issued_ms <= it.issued_before_ms);
        listed.push(Listed { revoked: counts_no_more, certificate: line });
    }
    listed.sort_by(|a, b| (a.certificate.not_after_ms, &a.certificate.name).cmp(&(b.certificate.not_after_ms, &b.certificate.name)));
    Ok(answer::List { certificates: listed })
}

fn show(what: &Path) -> Result<Shown> {
    // A token isn't repeated, not even where it is damaged: it holds a secret.
    if let Some(token) = what.to_str().filter(|text| join::looks_like_one(text)) {
        return show_token(token);
    }
    let text = match files::read(what) {
        Err(_) if join::may_be_a_piece_of_one(&what.to_string_lossy()) => {
            bail!("what was given is neither a whole join token nor a file; copy all of the token, or name the file");
        }
        read => read?,
    };
    let shown = what.display();
    if join::looks_like_one(&text) {
        return show_token(&text).with_context(|| shown.to_string());
    }
    if !text.contains("BEGIN CERTIFICATE") && text.contains("PRIVATE KEY") {
        bail!("{shown} is a private key; show reads certificates and join tokens");
    }
    let found = certificates("certificate", &text, 1000).with_context(|| shown.to_string())?;
    let now_ms = now_ms()?;
    let mut descriptions = Vec::with_capacity(found.len());
    for (number, der) in (1..).zip(&found) {
        descriptions.push(Description::of(der, now_ms).with_context(|| format!("{shown}, certificate {number}"))?);
    }
    Ok(Shown::Certificates(descriptions))
}

fn show_token(text: &str) -> Result<Shown> {
    let token: JoinToken = text.parse()?;
    Ok(Shown::JoinToken(Description::of_token(&token, now_ms()?)))
}

fn now_ms() -> Result<i64> {
    Ok(i64::try_from(now()?.as_secs())?.saturating_mul(1000))
}

fn verify(dir: &Path, what: &Verify) -> Result<Verified> {
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
    Ok(Verified { file: what.file.clone(), identity: leaf.identity.to_string(), not_after_ms: leaf.not_after_ms })
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
    use muster_certs::identity::device_text;

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
            Ok(_) => Ok(String::from_utf8(out).unwrap()),
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

    #[test]
    fn a_folder_is_renewed_in_place_and_goes_on_after_a_crash_between_its_two_files() {
        let temp = with_ca();
        let dir = temp.path();
        for line in ["issue hub --id hub-1 --out @/n", "issue control --out @/n"] {
            muster_certs(dir, line).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.join("n").join(name)).unwrap();
        let before = [read("hub.pem"), read("hub.key"), read("control.pem")];
        assert_eq!(muster_certs(dir, "renew @/n").unwrap(), "spiffe://test.internal/control/1\nspiffe://test.internal/hub/hub-1\n");
        let after = [read("hub.pem"), read("hub.key"), read("control.pem")];
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        muster_certs(dir, "verify @/n/hub.pem --key @/n/hub.key --name hub/hub-1").unwrap();
        assert_eq!(std::fs::read_dir(dir.join("n")).unwrap().count(), 5, "nothing is left beside");

        // A crash after the key took its place, before the certificate did.
        std::fs::rename(dir.join("n/hub.pem"), dir.join("n/hub.pem.new")).unwrap();
        std::fs::write(dir.join("n/hub.pem"), &before[0]).unwrap();
        muster_certs(dir, "renew @/n").unwrap();
        muster_certs(dir, "verify @/n/hub.pem --key @/n/hub.key").unwrap();
        // One before that.
        std::fs::write(dir.join("n/hub.pem.new"), &before[0]).unwrap();
        files::write_secret(&dir.join("n/hub.key.new"), before[1].as_bytes()).unwrap();
        muster_certs(dir, "renew @/n").unwrap();
        muster_certs(dir, "verify @/n/hub.pem --key @/n/hub.key").unwrap();
    }

    #[test]
    fn a_renewal_that_stops_anywhere_leaves_whatever_may_be_in_use_in_the_list() {
        let temp = with_ca();
        let dir = temp.path();
        for line in ["issue hub --id hub-1 --out @/n", "issue control --out @/n"] {
            muster_certs(dir, line).unwrap();
        }
        let serials = |verb: &str| -> Vec<String> {
            let list: serde_json::Value = serde_json::from_str(&muster_certs(dir, verb).unwrap()).unwrap();
            list["certificates"].as_array().unwrap().iter().map(|one| one["serial"].as_str().unwrap().to_owned()).collect()
        };
        let in_place = || {
            ["hub", "control"].map(|name| {
                let pem = std::fs::read_to_string(dir.join(format!("n/{name}.pem"))).unwrap();
                read_leaf(&certificates("certificate", &pem, 4).unwrap()[0]).unwrap().serial
            })
        };
        let is_listed = |what: &str| {
            let listed = serials("list --json");
            assert!(in_place().iter().all(|serial| listed.contains(serial)), "{what}: what is in use isn't in the list");
            listed.len()
        };
        assert_eq!(is_listed("at first"), 2);
        let ca = Ca::open(&dir.join("ca")).unwrap();
        ca.reissue(&["hub/hub-1".parse().unwrap(), "control/1".parse().unwrap()]).unwrap();
        assert_eq!(is_listed("before any is in its place"), 4);
        for (lines, listed) in [(0, 6), (1, 8)] {
            let before = in_place();
            assert!(renew::renew(&ca, &dir.join("n"), &mut Stops(lines)).is_err());
            let placed = in_place().iter().zip(&before).filter(|(now, before)| now != before).count();
            assert_eq!((placed, is_listed("in the midst")), (lines + 1, listed));
        }
        muster_certs(dir, "renew @/n").unwrap();
        assert_eq!(is_listed("at last"), 2);
        let all = serials("list --all --json");
        assert_eq!(all.len(), 10, "each once: {all:?}");
    }

    /// Takes so many lines, and stops whoever writes the next one.
    struct Stops(usize);

    impl Write for Stops {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("stopped"));
            }
            self.0 -= usize::from(bytes.ends_with(b"\n"));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_of_another_mesh_is_renewed_nor_who_was_revoked() {
        let temp = with_ca();
        let dir = temp.path();
        muster_certs(dir, "issue hub --id hub-1 --out @/n").unwrap();
        muster_certs(dir, "issue control --out @/n").unwrap();
        let foreign = Ca::init(&dir.join("other"), "test.internal").unwrap().issue_relay("oslo", "oslo-1").unwrap();
        files::create_public(&dir.join("n/relay.pem"), foreign.pem.as_bytes()).unwrap();
        files::create_secret(&dir.join("n/relay.key"), foreign.key_pem.as_bytes()).unwrap();
        let before = std::fs::read_to_string(dir.join("n/control.pem")).unwrap();
        let error = muster_certs(dir, "renew @/n").unwrap_err();
        assert!(error.contains("relay.pem"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.join("n/control.pem")).unwrap(), before, "all are looked at before one is touched");
        std::fs::remove_file(dir.join("n/relay.key")).unwrap();
        muster_certs(dir, "renew @/n").unwrap();
        let told = muster_certs(dir, "revoke hub/hub-1 --why stolen").unwrap();
        assert!(told.contains("muster-hub member deny hub/hub-1"), "{told}");
        let error = muster_certs(dir, "renew @/n").unwrap_err();
        assert!(error.contains("hub/hub-1 was revoked on"), "{error}");
        let listed = muster_certs(dir, "list").unwrap();
        assert!(listed.lines().any(|line| line.ends_with("hub/hub-1  revoked")), "{listed}");
        let error = muster_certs(dir, "renew @/ca").unwrap_err();
        assert!(error.contains("holds no certificate"), "{error}");
    }

    #[test]
    fn a_renewal_brings_the_roots_in_force_but_leaves_somebody_elses() {
        let temp = with_ca();
        let dir = temp.path();
        muster_certs(dir, "issue hub --id hub-1 --out @/n").unwrap();
        muster_certs(dir, "rotate start root").unwrap();
        muster_certs(dir, "renew @/n").unwrap();
        let of = |path: &str| std::fs::read_to_string(dir.join(path)).unwrap();
        assert_eq!(of("n/roots.pem"), of("ca/roots.pem"));
        Ca::init(&dir.join("other"), "test.internal").unwrap();
        let foreign = format!("{}{}", of("ca/roots.pem"), of("other/roots.pem"));
        std::fs::write(dir.join("n/roots.pem"), &foreign).unwrap();
        muster_certs(dir, "renew @/n").unwrap();
        assert_eq!(of("n/roots.pem"), foreign);
    }

    #[test]
    fn a_rotation_is_led_by_what_status_says() {
        let temp = with_ca();
        let dir = temp.path();
        muster_certs(dir, "issue hub --id hub-1 --out @/n").unwrap();
        assert!(muster_certs(dir, "rotate status").unwrap().ends_with("rotation  none is under way\n"));
        assert!(muster_certs(dir, "rotate advance").unwrap_err().contains("rotate start issuing"));
        muster_certs(dir, "rotate start root --root @/ca/root").unwrap();
        let status = muster_certs(dir, "rotate advance").unwrap();
        assert!(status.contains("rotation  of the root: the new one issues") && status.contains("back      rotate back"), "{status}");
        let error = muster_certs(dir, "rotate advance").unwrap_err();
        assert!(error.contains("--members FILE"), "{error}");
        let status: serde_json::Value = serde_json::from_str(&muster_certs(dir, "--json rotate status").unwrap()).unwrap();
        let key = status["issues"]["key"].as_str().unwrap();
        // A minute ahead, so that it is never older than a step of this test.
        let at_ms = i64::try_from(now().unwrap().as_secs()).unwrap() * 1000 + 60_000;
        let report = format!(r#"{{"domain":"test.internal","at_ms":{at_ms},"signer_key":"{key}","members":[]}}"#);
        std::fs::write(dir.join("members"), report).unwrap();
        let error = muster_certs(dir, "rotate advance --members @/members").unwrap_err();
        assert!(error.contains("would cut off 1:\n  hub/hub-1 (it holds a certificate of the old issuing CA)"), "{error}");
        let status = muster_certs(dir, "rotate status --members @/members").unwrap();
        assert!(status.contains("the next step would cut off 1:"), "{status}");
        muster_certs(dir, "renew @/n").unwrap();
        let status = muster_certs(dir, "rotate advance --members @/members").unwrap();
        assert!(status.contains("destroyed ") && status.contains("back      rotate back: put the old root"), "{status}");
        let status = muster_certs(dir, "rotate back").unwrap();
        assert!(status.contains("the new one issues") && !status.contains("back  "), "{status}");
        assert!(muster_certs(dir, "rotate back").unwrap_err().contains("no further way back"));
        muster_certs(dir, "rotate advance --members @/members").unwrap();
        let json: serde_json::Value = serde_json::from_str(&muster_certs(dir, "--json rotate status").unwrap()).unwrap();
        assert_eq!((&json["rotation"]["phase"], &json["rotation"]["way_back"]), (&"retired".into(), &true.into()));
        assert_eq!(muster_certs(dir, "export bundle").unwrap().matches("BEGIN CERTIFICATE").count(), 2);
        muster_certs(dir, "renew @/n").unwrap();
        let shown = muster_certs(dir, "show @/n/hub.pem").unwrap();
        assert!(shown.contains("a cross certificate of a root CA, path length 1"), "{shown}");
        muster_certs(dir, "rotate advance --members @/members").unwrap();
        assert_eq!(muster_certs(dir, "export bundle").unwrap(), muster_certs(dir, "export roots").unwrap());
        muster_certs(dir, "verify @/n/hub.pem --key @/n/hub.key").unwrap();
    }

    #[test]
    fn the_doctor_ends_with_what_it_found() {
        let temp = with_ca();
        let dir = temp.path();
        let doctor = |line: &str| {
            let dir = dir.to_str().unwrap();
            let ca = format!("{dir}/ca");
            let line = line.replace('@', dir);
            let cli = Cli::try_parse_from(["muster-certs", "--dir", &ca, "doctor"].into_iter().chain(line.split_whitespace())).unwrap();
            let mut out = Vec::new();
            let result = run(&cli, &mut out, &mut Vec::new());
            let code = result.as_ref().ok().copied();
            (format!("{:?}", finish(&cli, result)), code, String::from_utf8(out).unwrap())
        };
        let (code, ended, said) = doctor("");
        assert_eq!((code, ended), (format!("{:?}", ExitCode::SUCCESS), Some(Ended::Fine)), "{said}");
        assert!(said.contains("has no note of a backup"), "{said}");
        assert!(doctor("--backed-up root").2.contains("the root (root) has a backup"));
        assert!(doctor("--backed-up issuing").2.contains("the issuing CA (issuing) has a backup"));
        let said = doctor("").2;
        assert!(!said.contains("no note of a backup") && said.contains("hub's own keys weren't looked at"), "{said}");
        for unknown in ["boss", "hub", "5ea15ea1", "--members @/keys boss", "--members @/keys 5ea"] {
            let line = format!("--backed-up {unknown}");
            assert_eq!(
                doctor(&line.replace("--backed-up --members @/keys", "--members @/keys --backed-up")).0,
                format!("{:?}", ExitCode::from(2))
            );
        }

        let now_ms = i64::try_from(now().unwrap().as_secs()).unwrap() * 1000;
        let member = |name: &str, days: i64| {
            let end_ms = now_ms + days * 86_400_000;
            format!(r#"{{"name":"{name}","bundle_version":1,"issuer_key":null,"not_after_ms":{end_ms},"last_seen_ms":null}}"#)
        };
        let (seal, control) = ("5ea1".repeat(16), "c0de".repeat(16));
        let keys = format!(r#"{{"what":"the hub's sealing key","key":"{seal}"}},{{"what":"its control key","key":"{control}"}}"#);
        std::fs::write(dir.join("keys"), format!(r#"{{"domain":"test.internal","at_ms":{now_ms},"keys":[{keys}],"members":[]}}"#)).unwrap();
        let said = doctor("--members @/keys").2;
        assert!(
            said.contains(&format!(
                "the hub's sealing key has no note of a backup: keep one, then muster-certs doctor --members FILE --backed-up {seal}"
            )),
            "{said}"
        );
        assert!(said.contains(&control) && !said.contains("weren't looked at"), "{said}");
        let error = doctor(&format!("--backed-up {seal}")).0;
        assert_eq!(error, format!("{:?}", ExitCode::from(2)), "without the report nobody knows it");
        assert!(doctor(&format!("--members @/keys --backed-up {seal}")).2.contains("the hub's sealing key has a backup"));
        let said = doctor("--members @/keys").2;
        assert!(!said.contains(&seal) && said.contains(&control), "{said}");
        assert_eq!(doctor("--members @/keys --backed-up hub").2.matches("has a backup").count(), 2);
        assert!(!doctor("--members @/keys").2.contains("no note of a backup"));

        let members = [member("site/oslo/relay/oslo-1", 2), member("site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617", 20)].join(",");
        std::fs::write(dir.join("m"), format!(r#"{{"domain":"test.internal","at_ms":{now_ms},"members":[{members}]}}"#)).unwrap();
        let (code, ended, said) = doctor("--members @/m");
        assert_eq!((code, ended), (format!("{:?}", ExitCode::from(1)), Some(Ended::Soon)), "{said}");
        assert!(said.contains("site/oslo/relay/oslo-1: it hasn't renewed") && said.contains("oslo: can stay alone until"), "{said}");
        std::fs::write(dir.join("m"), r#"{"domain":"test.internal","at_ms":1,"members":[{"name":"\u001b[2J","bundle_version":1}]}"#)
            .unwrap();
        assert_eq!(doctor("--members @/m").0, format!("{:?}", ExitCode::from(2)));
    }

    #[test]
    fn a_join_token_is_shown_as_text_and_as_json_without_its_secret() {
        use muster_certs::join::{Dial, Kind};
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let dial = |name: &str| Dial { address: "h:1".into(), door: "door.example.org:4434".into(), name: name.into() };
        let token = JoinToken {
            id: [0x1d; 8],
            secret: *b"never to be seen by anybody else",
            kind: Kind::Agent,
            ends_ms: 4_000_000_000_000,
            domain: "test.internal\u{1b}[2J".into(),
            roots: vec![[0x3a; 32], [0x3b; 32]],
            seal: [4; 32],
            doors: vec![dial("site/oslo/relay/oslo-1"), dial("site/oslo/relay/oslo-2")],
        };
        let text = token.text();
        std::fs::write(dir.join("token"), format!("{}\n{}\n", &text[..100], &text[100..])).unwrap();
        let secret_hex: String = token.secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret_text = "never to be seen";
        // Of the token's text, any part that carries the secret: 24 bytes of it in the middle.
        let carries = &text[30..60];
        for line in [format!("show {text}"), "show @/token".into(), format!("--json show {text}"), "--json show @/token".into()] {
            let said = muster_certs(dir, &line).unwrap();
            for part in
                ["employee's computer", "1d1d1d1d1d1d1d1d", "site oslo", "2096-10-02", "site/oslo/relay/oslo-2 at door.example.org:4434"]
            {
                assert!(said.contains(part), "{part}: {said}");
            }
            assert!(said.contains(&"3a".repeat(32)) && said.contains(&"3b".repeat(32)) && !said.contains('\u{1b}'), "{said}");
            assert!(!said.contains(&secret_hex) && !said.contains(secret_text) && !said.contains(carries), "{said}");
        }
        let json: serde_json::Value = serde_json::from_str(&muster_certs(dir, "--json show @/token").unwrap()).unwrap();
        let words: Vec<&String> = json["join_token"].as_object().unwrap().keys().collect();
        assert_eq!(words, ["asks", "for", "id", "kind", "mesh", "roots", "until"]);

        let of_relay = JoinToken { kind: Kind::Relay, ends_ms: 1, doors: vec![dial("hub/hub-1")], ..token.clone() };
        let said = muster_certs(dir, &format!("show {}", of_relay.text())).unwrap();
        assert!(said.contains("for a relay") && said.contains("it has ended") && said.contains("the hub knows"), "{said}");

        let cut = &text[..text.len() - 5];
        std::fs::write(dir.join("cut"), cut).unwrap();
        for line in [format!("show {cut}"), "show @/cut".into()] {
            let error = muster_certs(dir, &line).unwrap_err();
            assert!(error.contains("the join token is damaged") && !error.contains(carries), "{error}");
        }
        let error = muster_certs(dir, &format!("show {}", text.replace("join-1", "join-2"))).unwrap_err();
        assert!(error.contains("another version") && !error.contains(carries), "{error}");
        let error = muster_certs(dir, &format!("show {}", &text[3..])).unwrap_err();
        assert!(error.contains("whole join token") && !error.contains(carries), "{error}");
    }

    #[test]
    fn every_verb_answers_in_json() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        for (line, field) in [
            ("--json init --domain test.internal", "issues_until_ms"),
            ("--json issue hub --id hub-1 --out @/n", "certificates"),
            ("--json issue agent --site oslo --person k --name K --count 2 --out @/m", "certificates"),
            ("--json renew @/n", "certificates"),
            ("--json list --all", "certificates"),
            ("--json show @/n/hub.pem", "certificates"),
            ("--json verify @/n/hub.pem", "identity"),
            ("--json rotate start issuing", "rotation"),
            ("--json rotate status", "issues"),
            ("--json rotate back", "destroyed"),
            ("--json revoke hub/hub-1", "issued_before_ms"),
            ("--json doctor", "findings"),
            ("--json doctor --backed-up root", "keys"),
            ("--json export crl", "lists"),
            ("--json export roots", "roots"),
            ("--json export bundle", "cross"),
        ] {
            let printed = muster_certs(dir, line).unwrap();
            let json: serde_json::Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{line}: {e}: {printed}"));
            assert!(json.get(field).is_some(), "{line}: {printed}");
        }
    }
}
