//! Async: `muster-agent`.

use std::process::ExitCode;

use clap::Parser;
use muster_agent::cli::Cli;
use muster_mesh::complaint::complain;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Cli::parse().act().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain("agent", &error),
    }
}
