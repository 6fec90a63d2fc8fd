//! Blocking: the verbs of `muster-relay`, and what they print.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use muster_certs::material::utc_text;
use muster_mesh::{complaint::Complaint, config, control, ids::Lane, join, queue::segment::Segments, state_dir::StateDir};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    contents::{self, Contents, Verified},
    enrolment,
    run::{self, CACHE_BYTES, Question},
};

/// A branch office's relay: takes its agents' batches, keeps them while the line is down, and syncs them to the hub.
#[derive(Debug, Parser)]
#[command(name = "muster-relay", version)]
pub struct Cli {
    /// Configuration file; usually ~/.config/muster/relay.toml or /etc/muster/relay.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run until SIGINT or SIGTERM.
    Run,
    /// Join the mesh, as the relay that the token is for.
    Enroll {
        /// The token, or a file that holds it.
        #[arg(value_name = "TOKEN|FILE")]
        token: String,
        /// The mesh's root was replaced: this relay stays who it is, and keeps what waits.
        #[arg(long)]
        again: bool,
    },
    /// How the running relay stands.
    Status,
    /// What lies in its queues.
    #[command(subcommand)]
    Queue(QueueVerb),
}

#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// List envelopes of the running relay, headers only.
    Inspect {
        /// telemetry or pictures
        #[arg(long, default_value = "telemetry", value_parser = lane)]
        lane: Lane,
        /// Begin at this segment (16 hex digits, as its file is called) …
        #[arg(long, default_value = "0", value_parser = segment)]
        segment: u64,
        /// … and at this place in it.
        #[arg(long, default_value_t = 0)]
        index: u64,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        most: usize,
        /// One JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Read everything that lies on the disk of a stopped relay.
    Verify,
}

fn lane(text: &str) -> Result<Lane, String> {
    Lane::ALL.into_iter().find(|lane| lane.name() == text).ok_or_else(|| "it is telemetry or pictures".to_owned())
}

fn segment(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| "it is a number of 16 hex digits".to_owned())
}

impl Cli {
    /// Does what was asked. Ok(false): it was done, and what it found is not well.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<bool> {
        let config: Config = config::load("relay", self.config.as_deref())?;
        config.check()?;
        let state = config::expand(&config.state);
        match self.verb {
            Verb::Run => run::run(&config, stop).await.map(|()| true),
            Verb::Enroll { token, again } => enroll(&state, &token, again).await,
            Verb::Status => status(&state).await,
            Verb::Queue(QueueVerb::Inspect { lane, segment, index, most, json }) => {
                inspect(&state, Question::Inspect { lane, segment, index, most }, json).await
            }
            Verb::Queue(QueueVerb::Verify) => verify(&state),
        }
    }
}

/// A token is long, and a shell remembers what was typed: so a file will do.
async fn enroll(state: &Path, token: &str, again: bool) -> anyhow::Result<bool> {
    let member = enrolment::enroll(state, &join::given(token)?, again).await?;
    println!("This relay is {} now. Start it: muster-relay run", member.name);
    Ok(true)
}

async fn ask(state: &Path, question: &Question) -> anyhow::Result<Value> {
    let answer = control::ask(state, "relay", &json!(question)).await?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(Complaint::new(why, "Use the muster-relay of the same version as the running one").into()),
        None => Ok(answer),
    }
}

/// As the running relay says it.
#[derive(Deserialize)]
struct Standing {
    relay: String,
    certificate_until_ms: i64,
    trouble: Option<String>,
    connections: usize,
    lanes: Vec<LaneLine>,
}

#[derive(Deserialize)]
struct LaneLine {
    lane: Lane,
    answered: u64,
    segments: usize,
    waiting: u64,
    bytes: u64,
    full: bool,
    readable: bool,
}

async fn status(state: &Path) -> anyhow::Result<bool> {
    let standing: Standing = serde_json::from_value(ask(state, &Question::Status).await?)?;
    println!("{} runs: {} agents are connected", standing.relay, standing.connections);
    println!("{:<10} until {}", "certificate", utc_text(standing.certificate_until_ms));
    if let Some(trouble) = &standing.trouble {
        println!("{:<10} couldn't be renewed yet: {trouble}", "");
    }
    for lane in &standing.lanes {
        let state = match (lane.readable, lane.full) {
            (false, _) => "its folder can't be read",
            (true, true) => "FULL, agents keep what they have",
            (true, false) => "open",
        };
        println!(
            "{:<10} {state}; {} batches wait for the hub, last POST answered {}; {} MiB in {} files",
            lane.lane.name(),
            lane.waiting,
            lane.answered,
            lane.bytes >> 20,
            lane.segments
        );
    }
    Ok(standing.lanes.iter().all(|lane| lane.readable))
}

async fn inspect(state: &Path, question: Question, as_json: bool) -> anyhow::Result<bool> {
    let answer = ask(state, &question).await?;
    if as_json {
        println!("{answer}");
        return Ok(true);
    }
    let contents: Contents = serde_json::from_value(answer)?;
    println!("{:<16} {:>6}  {:<32} {:<32} {:>8} {:>7} {:>8} version", "segment", "index", "device", "spool", "seq", "records", "bytes");
    for one in &contents.envelopes {
        println!(
            "{:016x} {:>6}  {} {} {:>8} {:>7} {:>8} {}",
            one.segment, one.index, one.device, one.spool, one.seq, one.records, one.bytes, one.version
        );
    }
    if contents.damaged > 0 {
        println!("{} places can't be read", contents.damaged);
    }
    if let Some((segment, index)) = contents.next {
        println!("more: --segment {segment:016x} --index {index}");
    }
    Ok(true)
}

fn verify(state: &Path) -> anyhow::Result<bool> {
    // The lock is the proof that no relay runs: a live queue can't be opened by a second program.
    let state = StateDir::open(state, "relay")?;
    let mut sound = true;
    for lane in Lane::ALL {
        let folder = state.join(lane.name());
        let unopened = |error: &dyn std::fmt::Display| {
            Complaint::new(
                format!("the buffer {} can't be opened: {error}", folder.display()),
                "Look after that folder and the disk below it",
            )
        };
        let mut segments = Segments::open(&folder, CACHE_BYTES).map_err(|error| unopened(&error))?;
        let verified = contents::verify(&mut segments).map_err(|error| unopened(&error))?;
        report(lane, &verified);
        sound &= verified.is_sound();
    }
    Ok(sound)
}

fn report(lane: Lane, verified: &Verified) {
    println!("{:<10} {} files, {} envelopes, {} bytes", lane.name(), verified.segments, verified.envelopes, verified.bytes);
    for segment in &verified.unreadable {
        println!("{:<10} {segment:016x} can't be read; the relay sets it aside at its next start, and the agents send again", lane.name());
    }
    for (segment, count) in &verified.damaged {
        println!("{:<10} {segment:016x} has {count} damaged envelopes; the agents send them again", lane.name());
    }
}
