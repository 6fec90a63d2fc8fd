//! Async: `muster-relay`: parse, run, drain.

use std::process::ExitCode;

use clap::Parser;
use muster_mesh::{complaint, log};
use muster_relay::cli::Cli;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init("relay");
    let stop = CancellationToken::new();
    tokio::spawn(until_told(stop.clone()));
    match cli.run(stop).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complaint::complain("relay", &error),
    }
}

/// Cancels `stop` at the first SIGINT or SIGTERM.
async fn until_told(stop: CancellationToken) {
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return tracing::warn!(%error, "SIGTERM can't be heard: it ends the relay at once"),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    stop.cancel();
}
