//! Blocking: the program `muster-certs`: makes the CA of a mesh, issues certificates, shows and
//! verifies them.
#![warn(clippy::unwrap_used, clippy::dbg_macro, clippy::todo)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    cli::finish(cli::run(&cli::Cli::parse(), &mut std::io::stdout(), &mut std::io::stderr()))
}
