//! Async: the command line: `muster-agent run | status | notice | pause [FOR] | resume | today [--follow] | shots [list | show]`.
// What a verb answers goes to the terminal that asked.
#![allow(clippy::print_stdout)]

use std::{
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use muster_certs::files;
use muster_mesh::{
    complaint::Complaint,
    config::{self, expand},
    control, join, log,
};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    answers::{Question, understood},
    config::Config,
    enrolment,
    run::run,
    shots::album,
};

/// Observes presence and activity on this computer, openly. Nothing is recorded before you have read the notice.
#[derive(Debug, Parser)]
#[command(name = "muster-agent", version)]
pub struct Cli {
    /// The configuration (default: ~/.config/muster/agent.toml, then /etc/muster/agent.toml).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs until it is stopped.
    Run,
    /// Joins the mesh, as whom the token says.
    Enroll {
        /// The token, or a file that holds it.
        #[arg(value_name = "TOKEN|FILE")]
        token: String,
        /// The mesh's root was replaced: this computer stays who it is, and keeps what waits.
        #[arg(long)]
        again: bool,
    },
    /// What it does now, and whether it is connected.
    Status,
    /// What is recorded about you, why, who can see it, how long it is kept. Asks whether you have read it.
    Notice,
    /// Nothing is collected until you resume, or for a time.
    Pause {
        /// As in 30m, 2h or 1h30m.
        #[arg(value_name = "FOR", value_parser = parse_length)]
        for_ms: Option<u64>,
    },
    /// Ends a pause.
    Resume,
    /// What was collected today, and where each thing is now.
    Today {
        /// Goes on showing it as it changes, until Ctrl-C.
        #[arg(long)]
        follow: bool,
    },
    /// The pictures that were taken in the last two days, and where each is now.
    Shots {
        #[command(subcommand)]
        what: Option<Shots>,
    },
}

#[derive(Debug, Subcommand)]
enum Shots {
    /// When each was taken, why, how large, whether blurred, and where it is now.
    List,
    /// Opens one, exactly as it was sent; without a display, or with --out, writes it to a file.
    Show {
        /// Its number in the list.
        #[arg(value_name = "NO")]
        number: u64,
        /// A file that isn't there yet.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl Cli {
    /// Does what was asked for.
    pub async fn act(self) -> anyhow::Result<()> {
        let config: Config = config::load("agent", self.config.as_deref())?;
        config.check()?;
        let state = expand(&config.state);
        match self.verb {
            Verb::Run => {
                log::init("agent");
                run(config, until_stopped()?).await
            }
            Verb::Enroll { token, again } => {
                println!("{}", enrolment::said(&enrolment::enroll(&state, &join::given(&token)?, again).await?));
                Ok(())
            }
            Verb::Status => tell(&state, &Question::Status).await,
            Verb::Today { follow: false } => tell(&state, &Question::Today).await,
            Verb::Today { follow: true } => follow(&state, until_stopped()?).await,
            Verb::Shots { what: None | Some(Shots::List) } => tell(&state, &Question::Shots).await,
            Verb::Shots { what: Some(Shots::Show { number, out }) } => show(&state, number, out.as_deref()),
            Verb::Pause { for_ms } => tell(&state, &Question::Pause { for_ms }).await,
            Verb::Resume => tell(&state, &Question::Resume).await,
            Verb::Notice => notice(&state).await,
        }
    }
}

/// Ctrl-C, or the session's end.
fn until_stopped() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).context("signals can't be listened to")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

async fn tell(state: &Path, question: &Question) -> anyhow::Result<()> {
    let answer = ask(state, question).await?;
    println!("{}", text_of(&answer));
    Ok(())
}

async fn ask(state: &Path, question: &Question) -> anyhow::Result<Value> {
    let answer = control::ask(state, "agent", &serde_json::to_value(question)?).await?;
    understood(&answer)?;
    Ok(answer)
}

/// Texts for a terminal hold no control characters besides their line ends, whoever wrote them.
fn text_of(answer: &Value) -> String {
    let text = answer.get("text").and_then(Value::as_str).unwrap_or_default();
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect::<String>().trim_end().to_owned()
}

// --- today, as it goes on ---

const FOLLOW_EVERY: Duration = Duration::from_secs(2);

/// On a terminal the text stands and changes; elsewhere each changed line is printed.
async fn follow(state: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let is_terminal = io::stdout().is_terminal();
    let mut shown = String::new();
    let mut looks = tokio::time::interval(FOLLOW_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = looks.tick() => {}
        }
        let text = text_of(&ask(state, &Question::Today).await?);
        if text != shown {
            let printed = if is_terminal { format!("{CLEAR}{text}\n") } else { changed_lines(&shown, &text) };
            print!("{printed}");
            // Whoever read it may be gone: then there is nothing left to do.
            if io::stdout().flush().is_err() {
                return Ok(());
            }
            shown = text;
        }
    }
}

/// To the terminal's upper left corner, with everything below gone.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Those of the new text that the old one didn't hold.
fn changed_lines(old: &str, new: &str) -> String {
    let is_news = |line: &&str| !line.trim().is_empty() && !old.lines().any(|before| before == *line);
    new.lines().filter(is_news).map(|line| format!("{line}\n")).collect()
}

// --- pictures ---

/// Read from the folder itself, which is the person's own: also while the agent doesn't run.
fn show(state: &Path, number: u64, out: Option<&Path>) -> anyhow::Result<()> {
    let list = "Look which there are: muster-agent shots";
    let found = album::picture(state, number).with_context(|| format!("picture {number} can't be read"))?;
    let Some((shot, bytes)) = found else {
        return Err(Complaint::new(format!("there is no picture {number} of the last two days"), list).into());
    };
    match out {
        Some(out) => {
            write_new(out, &bytes)?;
            println!("Picture {number} is written to {}, exactly as it was sent.", out.display());
        }
        None => {
            let viewer = viewer().ok_or_else(|| nowhere_to_show(number, shot.extension()))?;
            let copy = album::opened(state, &shot);
            files::write_secret(&copy, &bytes)?;
            let opened = process::Command::new(viewer).arg(&copy).stdout(process::Stdio::null()).stderr(process::Stdio::null()).status();
            if !opened.is_ok_and(|status| status.success()) {
                return Err(nowhere_to_show(number, shot.extension()).into());
            }
            println!("Picture {number} is opened by {viewer}, exactly as it was sent. It is deleted here two days after it was taken.");
        }
    }
    Ok(())
}

fn write_new(out: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(out);
    let written = opened.and_then(|mut file| file.write_all(bytes));
    let complaint = |error: io::Error| Complaint::new(format!("{} can't be written: {error}", out.display()), "Name another file");
    Ok(written.map_err(complaint)?)
}

/// The desktop's own way to open a file. None: there is no desktop here.
fn viewer() -> Option<&'static str> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    (is_set("DISPLAY") || is_set("WAYLAND_DISPLAY")).then_some("xdg-open")
}

fn nowhere_to_show(number: u64, extension: &str) -> Complaint {
    Complaint::new(
        format!("picture {number} can't be opened here: there is no display, or no program for pictures"),
        format!("Write it to a file: muster-agent shots show {number} --out picture.{extension}"),
    )
}

// --- the notice ---

async fn notice(state: &Path) -> anyhow::Result<()> {
    at_a_terminal()?;
    let shown = ask(state, &Question::Notice).await?;
    println!("{}\n", text_of(&shown));
    if !shown["read_at_ms"].is_null() {
        println!("You have read this notice.");
        return Ok(());
    }
    if shown["observed_before"] == Value::Bool(true) {
        println!("What is new in it isn't observed yet. It starts when you have answered here.");
    } else {
        println!("Nothing has been recorded yet. It starts when you have answered here.");
    }
    if !has_read()? {
        println!("Not now, then: nothing new is recorded, and you can come back with: muster-agent notice");
        return Ok(());
    }
    let sha256 = shown["sha256"].as_str().unwrap_or_default().to_owned();
    tell(state, &Question::Acknowledge { sha256 }).await
}

/// A person reads it in a session of their own: no script, and nobody else's terminal.
fn at_a_terminal() -> Result<(), Complaint> {
    let complaint = |what: &str| Complaint::new(what, "Type `muster-agent notice` in a terminal of your own session");
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(complaint("the notice is for a person to read, and this is no terminal"));
    }
    let owner = rustix::fs::fstat(io::stdin()).map(|terminal| terminal.st_uid);
    if owner != Ok(rustix::process::geteuid().as_raw()) {
        return Err(complaint("the notice is for the person who is signed in, and this terminal is another user's"));
    }
    Ok(())
}

fn has_read() -> anyhow::Result<bool> {
    loop {
        print!("[1] I have read this   [2] Not now   > ");
        io::stdout().flush()?;
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 {
            return Ok(false);
        }
        match line.trim() {
            "1" => return Ok(true),
            "2" => return Ok(false),
            _ => println!("Type 1 or 2."),
        }
    }
}

// --- lengths ---

const LENGTH_MS_MAX: u64 = 31 * 24 * 3_600_000;

/// "30m", "2h", "1h30m", "45s" in milliseconds.
fn parse_length(text: &str) -> Result<u64, String> {
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let mut after = rest[digits..].chars();
        let unit_ms = match after.next() {
            Some('s') => 1_000,
            Some('m') => 60_000,
            Some('h') => 3_600_000,
            Some('d') => 86_400_000,
            Some(_) | None => 0,
        };
        let ms = rest[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms)).filter(|_| unit_ms > 0);
        total_ms = ms.and_then(|ms| total_ms.checked_add(ms)).ok_or("a length is written like 30m, 2h or 1h30m")?;
        rest = after.as_str();
    }
    match total_ms {
        0 => Err("a length is written like 30m, 2h or 1h30m".into()),
        1..=LENGTH_MS_MAX => Ok(total_ms),
        _ => Err("the longest pause with an end is 31 days; without a length it lasts until you resume".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_people_write_them() {
        for (text, ms) in [("30m", 1_800_000), ("2h", 7_200_000), ("1h30m", 5_400_000), ("45s", 45_000), ("1d", 86_400_000)] {
            assert_eq!(parse_length(text), Ok(ms), "{text}");
        }
        for text in ["", "30", "m", "-5m", "1.5h", "0m", "99999999999999999999h", "60d", "1h 30m", "5€"] {
            assert!(parse_length(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn only_changed_lines_are_printed_where_nobody_looks() {
        assert_eq!(changed_lines("", "a\n\nb"), "a\nb\n");
        assert_eq!(changed_lines("a\n\nb 1", "a\n\nb 2\n"), "b 2\n");
        assert_eq!(changed_lines("a\nb", "a"), "");
    }

    #[test]
    fn a_picture_is_written_to_a_new_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("picture.webp");
        write_new(&out, b"picture").unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"picture");
        let error = write_new(&out, b"other").unwrap_err().to_string();
        assert!(error.contains("picture.webp") && error.contains("Name another file"), "{error}");
        assert_eq!(std::fs::read(&out).unwrap(), b"picture");
    }

    #[test]
    fn nothing_an_answer_holds_moves_the_cursor() {
        assert_eq!(text_of(&serde_json::json!({ "text": "a\u{1b}[2J\nb\r\u{9b}" })), "a[2J\nb");
    }
}
