//! Blocking: the program `muster-certs`: makes the CA of a mesh, issues certificates, shows and
//! verifies them.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    cli::finish(cli::run(&cli::Cli::parse(), &mut std::io::stdout(), &mut std::io::stderr()))
}
