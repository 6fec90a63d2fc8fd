//! Async: the command line of `muster-quickstart`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{check, engines::Engines, quickstart, terminal::Terminal};

/// The whole mesh on this computer: a hub, a relay and an agent in test mode, with certificates of its own.
#[derive(Debug, Parser)]
#[command(name = "muster-quickstart", version)]
pub struct Cli {
    /// End by itself: observe for so long, let everything arrive (60 s at most), compare the stages. Otherwise it runs until Ctrl-C
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Where the comparison is written, as JSON
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Forget what earlier starts left in the folder
    #[arg(long)]
    fresh: bool,
    /// What is collected, instead of everything (`ops/examples/policy.toml`) or of what an earlier start left
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where the hub keeps rows, instead of SQLite in the folder: `postgres://user@host/database`; a password may stand in `PGPASSWORD`
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where the hub keeps pictures, instead of the folder: another one, or `s3://bucket/prefix`; address and keys stand in the usual `AWS_…`
    #[arg(long, value_name = "URL")]
    objects: Option<String>,
    /// Start nothing: compare again what earlier starts have observed with what the hub's database holds now
    #[arg(long, conflicts_with_all = ["seconds", "summary", "fresh", "policy", "store", "objects"])]
    check: bool,
    /// The folder of everything
    #[arg(long, value_name = "FOLDER", default_value = ".quickstart")]
    folder: PathBuf,
}

impl Cli {
    pub async fn act(self) -> anyhow::Result<ExitCode> {
        let mut terminal = Terminal::standard();
        let agrees = if self.check {
            check::check(&self.folder, &mut terminal).await?
        } else {
            let engines = Engines { store: self.store, objects: self.objects };
            let plan = quickstart::Plan {
                folder: self.folder,
                fresh: self.fresh,
                seconds: self.seconds,
                summary: self.summary,
                policy: self.policy,
                engines,
            };
            quickstart::run(plan, &mut terminal).await?
        };
        Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["q", "--check", "--fresh"]).is_err());
        assert!(Cli::try_parse_from(["q", "--for", "0"]).is_err());
    }
}
