//! Async: the verbs of `muster-swarm`.
// What a verb answers goes to the terminal that asked.
#![allow(clippy::print_stdout)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use muster_certs::Name;

use crate::{check, pictures::Look, run};

/// Many agents with real queues, and a check of what became of their batches.
#[derive(Debug, Parser)]
#[command(name = "muster-swarm", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lets many agents live a day and deliver it.
    Run(Run),
    /// Compares the journal with the hub's rows, read by SQL.
    Check(Check),
}

/// What `run` needs.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// A relay, tried in this order: `host:port=site/oslo/relay/oslo-1`
    #[arg(long = "relay", required = true, value_parser = relay)]
    pub relays: Vec<(String, Name)>,
    /// The folder with `<device>.pem`, `<device>.key` and `roots.pem`, as `muster-certs issue agent --count N --out DIR` makes it
    #[arg(long)]
    pub certificates: PathBuf,
    /// Where each agent's queue lies; a second run goes on where the first left
    #[arg(long)]
    pub state: PathBuf,
    /// One line per event is appended here
    #[arg(long)]
    pub journal: PathBuf,
    /// So many of the agents in the folder (default: all)
    #[arg(long)]
    pub agents: Option<usize>,
    /// The same seed gives the same days
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A day passes so many times faster
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Days that each agent lives
    #[arg(long, default_value_t = 1)]
    pub days: u32,
    /// After the days, wait this long for the hub's acks
    #[arg(long, default_value_t = 60)]
    pub drain_s: u64,
    /// The byte budget of each agent's telemetry queue, in MiB
    #[arg(long, default_value_t = 64)]
    pub budget_mib: u64,
    /// The byte budget of each agent's pictures queue, in MiB
    #[arg(long, default_value_t = 512)]
    pub pictures_budget_mib: u64,
    /// Pictures that each agent takes in a day
    #[arg(long, default_value_t = 2)]
    pub pictures_a_day: u32,
    /// How they look, as the policy would say
    #[arg(long, value_enum, default_value_t = Look::Blurred)]
    pub pictures: Look,
    /// Agents run in test mode, as the hub that they deliver to
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub test_mode: bool,
}

/// What `check` needs.
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// The journal that `run` wrote
    #[arg(long)]
    pub journal: PathBuf,
    /// The hub's database, as in its configuration: `sqlite:///var/lib/muster-hub/muster.db`
    #[arg(long)]
    pub database: String,
    /// Where its pictures lie, as in its configuration: each one is read, too
    #[arg(long)]
    pub objects: Option<String>,
    /// Batches may still be on their way: what is not in the hub yet is counted, not a fault
    #[arg(long)]
    pub under_way: bool,
}

/// Runs the verb that the arguments name.
#[tokio::main]
pub async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Run(args) => {
            println!("{}", run::run(args).await?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check(args) => {
            let report = check::check(&args).await?;
            println!("{report}");
            Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn relay(text: &str) -> anyhow::Result<(String, Name)> {
    let (address, name) = text.split_once('=').context("a relay is given as host:port=site/<site>/relay/<id>")?;
    Ok((address.to_owned(), name.parse()?))
}
