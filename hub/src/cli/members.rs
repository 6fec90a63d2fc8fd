//! Async: `muster-hub token` and `muster-hub member`: who may join, and who has.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use muster_certs::{
    Fingerprint, Name, files,
    identity::check_label,
    issued::{check_name, check_person},
    material::utc_text,
};
use muster_mesh::{
    chance,
    clock::{Clock, SystemClock},
    complaint::Complaint,
    door::Dial,
    join::{JoinToken, Kind},
};

use crate::{
    config::Config,
    control, running,
    signer::secret_digest,
    store::{DialRow, Grant, MemberRow, Store, TokenRow},
};

/// A token is for hours to weeks.
const VALID_MIN: Duration = Duration::from_secs(60);
const VALID_MAX: Duration = Duration::from_secs(60 * 86_400);
/// Uses of one token: a large office on one day.
const USES_MAX: u32 = 10_000;
/// Members that are read at a time.
const PAGE: i64 = 1_000;
const AGENTS_PORT: u16 = 4433;
const DOOR_PORT: u16 = 4434;

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// For an employee's computer. With --person it is theirs at once; else an admin says of each computer whose it is
    Agent {
        /// Where the computer belongs, such as oslo
        #[arg(long)]
        site: String,
        /// Stable key of the person, such as kari.n (a-z 0-9 . _ @ -)
        #[arg(long, value_name = "KEY", requires = "name")]
        person: Option<String>,
        /// The person's name for display
        #[arg(long, requires = "person")]
        name: Option<String>,
        /// How many computers may use it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=USES_MAX as i64))]
        uses: u32,
        #[command(flatten)]
        out: Out,
    },
    /// For a branch office's relay
    Relay {
        /// The branch office, such as oslo
        #[arg(long)]
        site: String,
        /// Id of the relay, such as oslo-1
        #[arg(long)]
        id: String,
        /// Host, and port if it isn't 4433, where its agents will dial it
        #[arg(long, value_name = "HOST[:PORT]")]
        address: String,
        /// Host and port of its door for new agents, if it isn't the same host's port 4434
        #[arg(long, value_name = "HOST:PORT")]
        door: Option<String>,
        #[command(flatten)]
        out: Out,
    },
    /// Those that can still be used. Their secrets aren't kept
    List,
    /// Ends one; who has joined with it stays
    Revoke {
        /// As `list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct Out {
    /// How long it can be used, such as 24h, 7d
    #[arg(long, default_value = "24h", value_parser = parse_length, value_name = "TIME")]
    valid: Duration,
    /// A file, readable by its owner only, instead of the terminal
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// Everybody who was enrolled, and how they stand
    List,
    /// Says whose a waiting computer is, or lets one that asked too often come back once more
    Approve {
        /// As `list` shows it, such as site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617
        member: Name,
        /// Stable key of the person; needed for a computer that is nobody's yet
        #[arg(long, value_name = "KEY", requires = "name")]
        person: Option<String>,
        /// The person's name for display
        #[arg(long, requires = "person")]
        name: Option<String>,
    },
    /// Nobody takes what it says any more, and no certificate is issued to it
    Deny {
        /// As `list` shows it; also one that was never enrolled, whose certificate came as a file
        member: Name,
        /// For those who read the list later
        #[arg(long, default_value = "muster-hub member deny", value_name = "TEXT")]
        why: String,
    },
}

pub async fn token(config: &Config, verb: TokenVerb) -> anyhow::Result<()> {
    match verb {
        TokenVerb::Agent { site, person, name, uses, out } => {
            label(&site, "--site")?;
            owner(person.as_deref(), name.as_deref())?;
            let store = Store::open(&config.store.url).await?;
            let dials = store.dials(&site).await?;
            if dials.is_empty() {
                let what = format!("no relay of {site} is known that a new computer could ask");
                let todo = format!("Enrol one first: muster-hub token relay --site {site} --id {site}-1 --address HOST");
                return Err(Complaint::new(what, todo).into());
            }
            let doors = dials.into_iter().map(|DialRow { name, address, door, .. }| Dial { address, door, name }).collect();
            let grant = Grant { site, relay: None, person, display: name };
            make(config, &store, Kind::Agent, grant, doors, uses, &out).await
        }
        TokenVerb::Relay { site, id, address, door, out } => {
            label(&site, "--site")?;
            label(&id, "--id")?;
            let hub = running::keys(config)?.identity().name.to_string();
            let address = with_port(&address, AGENTS_PORT)?;
            let door = match door {
                Some(door) => with_port(&door, DOOR_PORT)?,
                None => with_port(address.rsplit_once(':').map_or(&address, |(host, _)| host), DOOR_PORT)?,
            };
            let (Some(dial), Some(hub_door)) = (config.mesh_address(), config.door_address()) else {
                let what = "a relay couldn't find this hub: `mesh.address` or `door.address` is missing in its configuration";
                return Err(
                    Complaint::new(what, "Give both as relays dial them, such as hub.example.org:8444 and hub.example.org:8445").into()
                );
            };
            let store = Store::open(&config.store.url).await?;
            let name = Name::Relay { site: site.clone(), id: id.clone() }.to_string();
            store.set_dial(&DialRow { name, site: site.clone(), address, door }).await?;
            let doors = vec![Dial { address: dial, door: hub_door, name: hub }];
            let grant = Grant { site, relay: Some(id), person: None, display: None };
            make(config, &store, Kind::Relay, grant, doors, 1, &out).await
        }
        TokenVerb::List => list_tokens(&Store::open(&config.store.url).await?).await,
        TokenVerb::Revoke { id } => {
            if !Store::open(&config.store.url).await?.end_token(&id).await? {
                return Err(
                    Complaint::new(format!("there is no join token {id} that can still be used"), "See: muster-hub token list").into()
                );
            }
            println!("Nobody can join with {id} any more.");
            Ok(())
        }
    }
}

async fn make(config: &Config, store: &Store, kind: Kind, grant: Grant, doors: Vec<Dial>, uses: u32, out: &Out) -> anyhow::Result<()> {
    let Some(signer) = &config.signer else {
        let what = "this hub issues no certificates, so nobody can join here";
        return Err(Complaint::new(what, "Run this where the configuration has [signer]").into());
    };
    let ca = signer.open()?;
    let now_ms = SystemClock::new().now().wall_ms;
    let ends_ms = now_ms.saturating_add(i64::try_from(out.valid.as_millis()).unwrap_or(i64::MAX));
    let [id, secret] = [chance::random_32(), chance::random_32()];
    let id: [u8; 8] = std::array::from_fn(|at| id[at]);
    let token = JoinToken {
        id,
        secret,
        kind,
        ends_ms,
        domain: ca.domain().to_owned(),
        roots: Fingerprint::of_roots(ca.roots_pem())?.into_iter().map(|root| root.0).collect(),
        seal: config.seal_key()?.public().0,
        doors,
    };
    let row = TokenRow {
        id: HEXLOWER.encode(&id),
        secret: secret_digest(&secret),
        role: kind.role().as_str().to_owned(),
        grant,
        uses_left: uses.into(),
        made_ms: now_ms,
        ends_ms,
        made_by: "muster-hub token".to_owned(),
    };
    match &out.file {
        Some(file) => {
            files::create_secret(file, (token.text() + "\n").as_bytes())?;
            store.add_token(&row).await?;
            println!("Join token {} is in {}; it can be used until {}.", row.id, file.display(), utc_text(ends_ms));
        }
        None => {
            store.add_token(&row).await?;
            println!("{}", token.text());
        }
    }
    store.close().await;
    Ok(())
}

async fn list_tokens(store: &Store) -> anyhow::Result<()> {
    println!("{:<16}  {:<5}  {:<4}  {:<24}  for", "id", "role", "uses", "until");
    for TokenRow { id, role, grant, uses_left, ends_ms, .. } in store.tokens(SystemClock::new().now().wall_ms).await? {
        let Grant { site, relay, person, .. } = grant;
        let whom = relay.or(person).map_or_else(|| format!("{site}, an admin approves each"), |who| format!("{site}, {who}"));
        println!("{id:<16}  {role:<5}  {uses_left:>4}  {:<24}  {whom}", utc_text(ends_ms));
    }
    Ok(())
}

pub async fn member(config: &Config, verb: MemberVerb) -> anyhow::Result<()> {
    let store = Store::open(&config.store.url).await?;
    match verb {
        MemberVerb::List => list_members(&store).await?,
        MemberVerb::Approve { member, person, name } => {
            owner(person.as_deref(), name.as_deref())?;
            approve(&store, &member, person, name).await?;
        }
        MemberVerb::Deny { member, why } => {
            let now_ms = SystemClock::new().now().wall_ms;
            control::deny(&store, &member, now_ms, &why).await?;
            if store.member(&member.to_string()).await?.is_some() {
                change(&store, &member, |row| row.denied_ms = row.denied_ms.or(Some(now_ms))).await?;
            }
            println!("Nobody takes {member} any more: this hub at once, each relay and agent with the hub's next answer.");
        }
    }
    store.close().await;
    Ok(())
}

async fn list_members(store: &Store) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let page = store.members(&after, PAGE).await?;
        for member in &page {
            println!("{:<56}  {:<20}  joined {}", member.name, standing(member), utc_text(member.joined_ms));
        }
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => after.clone_from(&last.name),
            _ => return Ok(()),
        }
    }
}

fn standing(member: &MemberRow) -> &'static str {
    match member {
        MemberRow { denied_ms: Some(_), .. } => "denied",
        MemberRow { cloned_ms: Some(_), .. } => "two disks with its key",
        MemberRow { waits_ms: Some(_), .. } => "waits to come back",
        MemberRow { approved: false, .. } => "waits for approval",
        _ => "member",
    }
}

async fn approve(store: &Store, name: &Name, person: Option<String>, display: Option<String>) -> anyhow::Result<()> {
    let Some(found) = store.member(&name.to_string()).await? else { return Err(unknown(name).into()) };
    if !found.approved && person.is_none() {
        let todo = "Give --person and --name; a computer belongs to one person for life";
        return Err(Complaint::new(format!("{name} is nobody's yet"), todo).into());
    }
    if found.approved && person.is_some() {
        let todo = "Leave out --person; to hand a computer over, enrol it anew with another token";
        return Err(Complaint::new(format!("{name} is somebody's already"), todo).into());
    }
    let mut writing = store.write().await?;
    if let (Some(device), Some(site)) = (name.device(), name.site())
        && person.is_some()
    {
        writing.keep_owner(&device, &Grant { site: site.to_owned(), relay: None, person, display }).await?;
    }
    let Some(mut member) = writing.member(&name.to_string()).await? else { return Err(unknown(name).into()) };
    if member.waits_ms.take().is_some() {
        member.allowed += 1;
    }
    (member.approved, member.cloned_ms) = (true, None);
    writing.keep_member(&member).await?;
    writing.commit().await?;
    println!("{name} is approved. It notices within a minute.");
    Ok(())
}

async fn change(store: &Store, name: &Name, change: impl FnOnce(&mut MemberRow)) -> anyhow::Result<()> {
    let mut writing = store.write().await?;
    let Some(mut member) = writing.member(&name.to_string()).await? else { return Err(unknown(name).into()) };
    change(&mut member);
    writing.keep_member(&member).await?;
    Ok(writing.commit().await?)
}

fn unknown(name: &Name) -> Complaint {
    Complaint::new(format!("{name} was never enrolled here"), "See: muster-hub member list")
}

fn label(text: &str, option: &str) -> Result<(), Complaint> {
    check_label(text).map_err(|error| Complaint::new(format!("{option} {text:?} can't be used"), error.to_string()))
}

fn owner(person: Option<&str>, name: Option<&str>) -> Result<(), Complaint> {
    let wrong = |option: &str, error: String| Complaint::new(format!("{option} can't be used"), error);
    person.map_or(Ok(()), check_person).map_err(|error| wrong("--person", error.to_string()))?;
    name.map_or(Ok(()), check_name).map_err(|error| wrong("--name", error.to_string()))
}

/// Host and port, the usual one if none is given.
fn with_port(text: &str, port: u16) -> Result<String, Complaint> {
    let wrong = || Complaint::new(format!("{text:?} is no host, and no host and port"), "Write it as relay.oslo.example.org:4433");
    let bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    match text.rsplit_once(':') {
        _ if bare_v6 => Ok(format!("[{text}]:{port}")),
        Some((host, given)) if !host.is_empty() && given.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        None if !text.is_empty() && !text.contains(['/', ' ']) => Ok(format!("{text}:{port}")),
        Some((host, _)) if text.starts_with('[') && text.ends_with(']') && !host.is_empty() => Ok(format!("{text}:{port}")),
        _ => Err(wrong()),
    }
}

fn parse_length(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as 90m, 24h or 7d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let length = Duration::from_secs(number.saturating_mul(seconds));
    if (VALID_MIN..=VALID_MAX).contains(&length) { Ok(length) } else { Err("a join token is valid for 1 minute to 60 days".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_gets_the_usual_port_and_rubbish_is_refused() {
        for (text, want) in [
            ("relay.oslo.example.org", "relay.oslo.example.org:4433"),
            ("relay.oslo.example.org:5", "relay.oslo.example.org:5"),
            ("10.0.0.1", "10.0.0.1:4433"),
            ("2001:db8::1", "[2001:db8::1]:4433"),
            ("[2001:db8::1]", "[2001:db8::1]:4433"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
        ] {
            assert_eq!(with_port(text, AGENTS_PORT).unwrap(), want);
        }
        for bad in ["", ":", ":5", "host:", "host:0", "host:99999", "a b", "https://host"] {
            assert!(with_port(bad, AGENTS_PORT).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_lives_for_minutes_to_weeks() {
        assert_eq!(parse_length("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_length("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "7", "d", "-1d", "61d", "0h", "7w", "99999999999999999999d", "ø"] {
            assert!(parse_length(bad).is_err(), "{bad}");
        }
    }
}
