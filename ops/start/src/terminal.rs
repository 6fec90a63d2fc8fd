//! Blocking: what a person at the terminal sees: lines, one live line, and a question. The one file of this program that writes there.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use tokio::time::Instant;

/// How often the live line is repeated where it can't be updated in place.
const REPEAT_EVERY: Duration = Duration::from_secs(5);

/// Standard output, whatever it is.
pub struct Terminal {
    is_tty: bool,
    live: bool,
    last: Option<Instant>,
}

impl Terminal {
    pub fn standard() -> Terminal {
        Terminal { is_tty: io::stdout().is_terminal(), live: false, last: None }
    }

    /// Whether a person can be asked here.
    pub fn can_ask(&self) -> bool {
        self.is_tty && io::stdin().is_terminal()
    }

    pub fn say(&mut self, text: &str) {
        self.end_live();
        write(&format!("{text}\n"));
    }

    /// Only for eyes: where this goes into a file or a log, `instead` is said.
    pub fn say_in_person(&mut self, text: &str, instead: &str) {
        self.say(if self.is_tty { text } else { instead });
    }

    /// One line that is always the newest: updated in place on a terminal, a line every 5 s elsewhere.
    pub fn live(&mut self, text: &str) {
        if self.is_tty {
            write(&format!("\r\x1b[2K{text}"));
            self.live = true;
        } else if self.last.is_none_or(|last| last.elapsed() >= REPEAT_EVERY) {
            write(&format!("{text}\n"));
            self.last = Some(Instant::now());
        }
    }

    /// Yes or no; no at the end of the input.
    pub fn ask(&mut self, question: &str) -> bool {
        self.end_live();
        loop {
            write(&format!("{question} [y/n] "));
            let mut line = String::new();
            if !matches!(io::stdin().lock().read_line(&mut line), Ok(1..)) {
                return false;
            }
            match line.trim() {
                "y" | "Y" | "yes" => return true,
                "n" | "N" | "no" => return false,
                _ => {}
            }
        }
    }

    fn end_live(&mut self) {
        if self.live {
            write("\n");
            self.live = false;
        }
        self.last = None;
    }
}

impl Drop for Terminal {
    /// What a complaint says begins on a line of its own.
    fn drop(&mut self) {
        self.end_live();
    }
}

fn write(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads any more: what runs goes on, and ends in order.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
