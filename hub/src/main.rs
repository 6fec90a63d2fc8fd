//! Async: the program `muster-hub`: parse, run, complain.

use std::process::ExitCode;

use clap::Parser;
use muster_hub::cli::{self, Cli};
use muster_mesh::{complaint, log};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init("hub");
    match cli::run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complaint::complain("hub", &error),
    }
}
