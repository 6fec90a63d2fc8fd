//! Blocking: `muster-bench ROW`: each row alternates ours and its yardstick in one run and prints medians of three.
#![allow(clippy::print_stdout)]

mod desk;
mod drain;
mod hop;
mod ingest;
mod measure;
mod place;
mod plain;
mod queue;
mod void;

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    for row in std::env::args().skip(1) {
        match row.as_str() {
            "queue" => queue::row()?,
            "hop" => hop::row()?,
            "hop-once" => hop::once()?,
            "pictures-once" => hop::pictures_once()?,
            "crowd" => hop::crowd()?,
            "ingest" => ingest::row("sqlite")?,
            "drain" => drain::row()?,
            "desk" => desk::row()?,
            "day" => ingest::day_row()?,
            "ingest-postgres" => ingest::row("postgres")?,
            other => {
                anyhow::bail!(
                    "there is no row {other}: queue, hop, hop-once, pictures-once, crowd, ingest, ingest-postgres, drain, day, desk"
                )
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
