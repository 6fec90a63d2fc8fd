//! Async: the command line: what each verb prints.
// What a verb answers goes to the terminal that asked.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{api::openapi, check, config::Config, password, running, store::Store};

mod keys;
mod members;
mod relays;

use keys::KeyVerb;
use members::{MemberVerb, TokenVerb};
use relays::RelayVerb;

/// Takes the relays' batches, keeps them, deletes them in time, and answers people.
#[derive(Debug, Parser)]
#[command(name = "muster-hub", version)]
pub struct Cli {
    /// The configuration [usual places: ~/.config/muster/hub.toml, /etc/muster/hub.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Answers relays and people until it is stopped
    Serve {
        /// The database was restored from a backup: take new epochs before the first answer
        #[arg(long)]
        restored: bool,
    },
    /// Brings the database to this program's version
    Migrate,
    /// People who may sign in
    #[command(subcommand)]
    Admin(Admin),
    /// Join tokens: what a new device or relay is given
    #[command(subcommand)]
    Token(TokenVerb),
    /// Those who were enrolled with one
    #[command(subcommand)]
    Member(MemberVerb),
    /// Where agents find relays, and whose agents may be guests
    #[command(subcommand)]
    Relay(RelayVerb),
    /// Keys that sign what comes down, and people's tokens
    #[command(subcommand)]
    Key(KeyVerb),
    /// Says what would stop `serve`, and which pictures are missing; changes nothing
    Check {
        /// Reads every picture and compares its SHA-256
        #[arg(long)]
        digests: bool,
    },
    /// Prints the description of the API (OpenAPI 3.1)
    Openapi,
}

#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Makes an admin and prints a one-time password
    Create {
        /// 1 to 64 of a-z, 0-9 and . _ @ -
        name: String,
    },
}

pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = || Config::load(cli.config.as_deref());
    match cli.verb {
        Verb::Serve { restored } => serve(config()?, restored).await,
        Verb::Migrate => migrate(&config()?).await,
        Verb::Admin(Admin::Create { name }) => create_admin(&config()?, &name).await,
        Verb::Token(verb) => members::token(&config()?, verb).await,
        Verb::Member(verb) => members::member(&config()?, verb).await,
        Verb::Relay(verb) => relays::relay(&config()?, verb).await,
        Verb::Key(verb) => keys::key(&config()?, verb).await,
        Verb::Check { digests } => say_check(&config()?, if digests { check::Pictures::Digests } else { check::Pictures::Lengths }).await,
        Verb::Openapi => say_api(),
    }
}

async fn serve(config: Config, restored: bool) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // From here on SIGHUP ends nothing, also while everything starts; those who look at certificates hear it.
    let _hangup = signal(SignalKind::hangup())?;
    let running = running::start(config, restored).await?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    running.drain().await;
    Ok(())
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    Store::migrate(&config.store.url).await?.close().await;
    println!("The database has this program's version.");
    Ok(())
}

async fn create_admin(config: &Config, name: &str) -> anyhow::Result<()> {
    if muster_certs::issued::check_person(name).is_err() {
        let what = format!("{name:?} can't be an admin's name");
        return Err(Complaint::new(what, "Take 1 to 64 of the characters a-z, 0-9, and . _ @ -").into());
    }
    let store = Store::open(&config.store.url).await?;
    let password = password::one_time();
    let hash = password::hash(&password).context("the password can't be hashed")?;
    let made = store.create_admin(name, &hash, SystemClock::new().now().wall_ms).await?;
    store.close().await;
    if !made {
        return Err(Complaint::new(format!("There is an admin {name} already"), "Take another name").into());
    }
    println!("{password}");
    Ok(())
}

fn say_api() -> anyhow::Result<()> {
    print!("{}", openapi::text()?);
    Ok(())
}

async fn say_check(config: &Config, pictures: check::Pictures) -> anyhow::Result<()> {
    let findings = check::check(config, pictures).await;
    for finding in &findings {
        match &finding.said {
            Ok(well) => println!("{:<16} {well}", finding.what),
            Err(complaint) => println!("{:<16} {complaint}", finding.what),
        }
    }
    match findings.iter().filter(|finding| finding.said.is_err()).count() {
        0 => Ok(()),
        wrong => Err(Complaint::new(format!("{wrong} of {} would stop serve", findings.len()), "See above").into()),
    }
}
