//! Blocking: the one place that makes the clear line for people: what was wrong, and what to do.

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// Something that a person must put right. Shown as one line: `<what>. <what to do>.`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    what: String,
    todo: String,
}

impl Complaint {
    /// `what` was wrong, with the name or number of the thing; `todo` is what to do about it. Both in plain words, without a final dot.
    pub fn new(what: impl Into<String>, todo: impl Into<String>) -> Complaint {
        Complaint { what: what.into(), todo: todo.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [what, todo] = [&self.what, &self.todo].map(|part| one_line(part));
        match todo.is_empty() {
            true => write!(f, "{what}."),
            false => write!(f, "{what}. {todo}."),
        }
    }
}

impl Error for Complaint {}

/// The end of a `main` that can't go on: prints the line to stderr and gives a non-zero exit code.
///
/// A [`Complaint`] anywhere in the chain is shown alone; otherwise the whole chain, in one line.
pub fn complain(program: &str, error: &anyhow::Error) -> ExitCode {
    let line = line(program, error);
    // Not `eprintln!`: that panics when stderr is closed, and there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
    ExitCode::FAILURE
}

/// What [`complain`] prints.
pub fn line(program: &str, error: &anyhow::Error) -> String {
    let complaint = error.chain().find_map(|cause| cause.downcast_ref::<Complaint>());
    let text = match complaint {
        Some(complaint) => complaint.to_string(),
        None => one_line(&format!("{error:#}")) + ".",
    };
    format!("{}: {text}", program_name(program))
}

/// `hub` and `muster-hub` both mean `muster-hub`.
pub(crate) fn program_name(program: &str) -> String {
    format!("muster-{}", program.strip_prefix("muster-").unwrap_or(program))
}

/// Texts of other programs and of files come in here too: nothing in them may start a line or steer the terminal.
fn one_line(text: &str) -> String {
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = shown.split_whitespace().collect();
    words.join(" ").trim_end_matches(['.', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_complaint_says_what_and_what_to_do_in_one_line() {
        let complaint = Complaint::new("port 4433/udp is in use\n", "Stop the other program.");
        assert_eq!(complaint.to_string(), "port 4433/udp is in use. Stop the other program.");
        assert_eq!(Complaint::new("it is broken", "").to_string(), "it is broken.");
    }

    #[test]
    fn a_complaint_anywhere_in_the_chain_is_shown_alone() {
        let error = Err::<(), _>(Complaint::new("the folder is gone", "Make it"));
        let error = error.context("opening the queue").context("starting").unwrap_err();
        assert_eq!(line("hub", &error), "muster-hub: the folder is gone. Make it.");
        assert_eq!(line("muster-hub", &error), "muster-hub: the folder is gone. Make it.");
    }

    #[test]
    fn another_error_is_shown_with_its_causes() {
        let error = anyhow::anyhow!("no route\x1b[31m\nto host").context("dialling the hub");
        assert_eq!(line("relay", &error), "muster-relay: dialling the hub: no route [31m to host.");
    }
}
