//! Blocking: the program `muster-certs`: makes the CA of a mesh, issues, renews, rotates and revokes certificates, shows and verifies them, and
//! says what breaks next.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = cli::run(&cli, &mut std::io::stdout(), &mut std::io::stderr());
    cli::finish(&cli, result)
}
