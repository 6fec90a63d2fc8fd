//! Blocking: reads one request from stdin, answers on stdout, ends.

use std::{
    io::{self, BufRead, Read, Write},
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use muster_shot::{
    answer::Refusal,
    request::{REQUEST_BYTES_MAX, Request},
    shot,
};

/// The agent ends it after as long; this is for the case that there is no agent any more.
const DEADLINE: Duration = Duration::from_secs(10);
const EXIT_LATE: i32 = 3;

fn main() -> ExitCode {
    let alarm = thread::Builder::new().name("alarm".into()).spawn(|| {
        thread::sleep(DEADLINE);
        process::exit(EXIT_LATE)
    });
    // Without an alarm it could stay for ever, holding a picture.
    if alarm.is_err() {
        return ExitCode::FAILURE;
    }
    let frames = request().map(|line| take(&line).unwrap_or_else(|refusal| refusal.frame()));
    match frames.and_then(|frames| io::stdout().lock().write_all(&frames)) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The line, and one byte more than a request may have, if there are so many.
fn request() -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    io::stdin().lock().take(REQUEST_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn take(line: &[u8]) -> Result<Vec<u8>, Refusal> {
    shot::take(&Request::read(line)?)
}
