//! Async: `muster-hub token` and `muster-hub member`: who may join, and who has.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use muster_certs::{Name, files, material::utc_text};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
    ids::DeviceId,
};

use crate::{
    admission::{self, AdmissionError, Owner, USES_MAX, VALID_MAX, VALID_MIN, Wanted, Whom},
    config::Config,
    relays::Place,
    report, running,
    store::{Grant, MemberRow, MemberStanding, Store, TokenRow},
};

/// Members that are read at a time.
const PAGE: i64 = 1_000;

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
    List {
        /// Who holds which certificate and roots, for `muster-certs rotate advance --members FILE` and `muster-certs doctor`
        #[arg(long)]
        json: bool,
    },
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
    let store = std::sync::Arc::new(Store::open(&config.store.url).await?);
    let made_by = "muster-hub token".to_owned();
    let done = match verb {
        TokenVerb::Agent { site, person, name, uses, out } => {
            let owner = person.zip(name).map(|(person, name)| Owner { person, name });
            let wanted = Wanted { site, whom: Whom::Agents(owner), uses, valid: out.valid, made_by };
            make(config, &store, wanted, out.file).await
        }
        TokenVerb::Relay { site, id, address, door, out } => {
            let wanted = Wanted { site, whom: Whom::Relay { id, place: Place { address, door } }, uses: 1, valid: out.valid, made_by };
            make(config, &store, wanted, out.file).await
        }
        TokenVerb::List => list_tokens(&store).await,
        TokenVerb::Revoke { id } => match store.end_token(&id).await? {
            true => {
                println!("Nobody can join with {id} any more.");
                Ok(())
            }
            false => {
                let what = format!("there is no join token {id} that can still be used");
                Err(Complaint::new(what, "See: muster-hub token list").into())
            }
        },
    };
    store.close().await;
    done
}

async fn make(config: &Config, store: &std::sync::Arc<Store>, wanted: Wanted, file: Option<PathBuf>) -> anyhow::Result<()> {
    let Some(signer) = running::signer(config, store.clone(), std::sync::Arc::new(SystemClock::new()), None)? else {
        let what = "this hub issues no certificates, so nobody can join here";
        return Err(Complaint::new(what, "Run this where the configuration has [signer]").into());
    };
    let made = admission::token(store, &signer, wanted).await.map_err(complaint)?;
    match file {
        Some(file) => {
            files::create_secret(&file, (made.text + "\n").as_bytes())?;
            store.add_token(&made.row).await?;
            println!("Join token {} is in {}; it can be used until {}.", made.row.id, file.display(), utc_text(made.row.ends_ms));
        }
        None => {
            store.add_token(&made.row).await?;
            println!("{}", made.text);
        }
    }
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
        MemberVerb::List { json: false } => list_members(&store).await?,
        MemberVerb::List { json: true } => {
            let domain = running::keys(config)?.identity().domain;
            let report = report::report(&store, &domain, report::own(config)?, SystemClock::new().now().wall_ms).await?;
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        MemberVerb::Approve { member, person, name } => {
            let owner = person.zip(name).map(|(person, name)| Owner { person, name });
            admission::approve(&store, &member, owner).await.map_err(complaint)?;
            println!("{member} is approved. It notices within a minute.");
        }
        MemberVerb::Deny { member, why } => {
            let now_ms = SystemClock::new().now().wall_ms;
            admission::deny(&store, &member, now_ms, &why).await.map_err(complaint)?;
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
            let whose = owner_of(store, member).await?;
            println!("{:<56}  {:<22}  {whose:<20}  joined {}", member.name, standing(member), utc_text(member.joined_ms));
        }
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => after.clone_from(&last.name),
            _ => return Ok(()),
        }
    }
}

/// The person's key; `-` for a relay, and for a computer that is nobody's yet.
async fn owner_of(store: &Store, member: &MemberRow) -> anyhow::Result<String> {
    let device = member.name.parse().ok().and_then(|name: Name| name.device());
    let device = match device {
        Some(device) => store.device(DeviceId(device)).await?,
        None => None,
    };
    Ok(device.and_then(|device| device.person).unwrap_or_else(|| "-".to_owned()))
}

fn standing(member: &MemberRow) -> &'static str {
    match member.standing() {
        MemberStanding::Denied => "denied",
        MemberStanding::Cloned => "two disks with its key",
        MemberStanding::WaitsToComeBack => "waits to come back",
        MemberStanding::WaitsForApproval => "waits for approval",
        MemberStanding::Member => "member",
    }
}

/// As somebody at a terminal is told.
pub fn complaint(error: AdmissionError) -> anyhow::Error {
    match error {
        AdmissionError::Wrong { what, todo, .. } => Complaint::new(what, todo).into(),
        AdmissionError::Unknown(name) => {
            Complaint::new(format!("{name} isn't known here"), "See: muster-hub member list, muster-hub relay list").into()
        }
        AdmissionError::Store(error) => error.into(),
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
    fn a_token_lives_for_minutes_to_weeks() {
        assert_eq!(parse_length("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_length("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "7", "d", "-1d", "61d", "0h", "7w", "99999999999999999999d", "ø"] {
            assert!(parse_length(bad).is_err(), "{bad}");
        }
    }
}
