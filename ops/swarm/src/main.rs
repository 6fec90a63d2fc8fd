//! Blocking: `muster-swarm run | check`.

use std::process::ExitCode;

use muster_mesh::{complaint, log};

fn main() -> ExitCode {
    log::init("swarm");
    match muster_swarm::cli::main() {
        Ok(code) => code,
        Err(error) => complaint::complain("muster-swarm", &error),
    }
}
