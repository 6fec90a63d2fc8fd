//! Async: the program `muster-quickstart`: parse, run, complain.

use std::process::ExitCode;

use clap::Parser;
use muster_mesh::complaint::complain;
use muster_start::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Cli::parse().act().await {
        Ok(code) => code,
        Err(error) => complain("quickstart", &error),
    }
}
