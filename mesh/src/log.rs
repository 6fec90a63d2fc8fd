//! Blocking: where log lines go: to stderr, where journald and terminals find them. What is logged is decided by `MUSTER_LOG`, else
//! `RUST_LOG`, else it is what an operator would tell a colleague.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing_subscriber::EnvFilter;

/// The libraries below us speak up from WARN on.
const USUAL: &str = "info,quinn=warn,quinn_proto=warn,quinn_udp=warn,rustls=warn,h2=warn,hyper=warn,sqlx=warn";

/// Turns logging on for this process; later calls change nothing. `program` is named when a filter can't be read.
pub fn init(program: &str) {
    let (filter, refused) = filter(["MUSTER_LOG", "RUST_LOG"].map(|name| (name, env::var(name).ok())));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let started = lines.try_init().is_ok();
    if let (true, Some(name)) = (started, refused) {
        tracing::warn!(program, variable = name, "this log filter can't be read and is left out; a good one is \"info\"");
    }
}

/// The first filter that is given; the usual one instead of one that can't be read, and which that was.
fn filter(given: [(&'static str, Option<String>); 2]) -> (EnvFilter, Option<&'static str>) {
    let given = given.into_iter().find_map(|(name, text)| text.filter(|text| !text.trim().is_empty()).map(|text| (name, text)));
    match given.map(|(name, text)| (name, EnvFilter::try_new(text))) {
        None => (EnvFilter::new(USUAL), None),
        Some((_, Ok(filter))) => (filter, None),
        Some((name, Err(_))) => (EnvFilter::new(USUAL), Some(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(muster: Option<&str>, rust: Option<&str>) -> (String, Option<&'static str>) {
        let (filter, refused) = filter([("MUSTER_LOG", muster.map(str::to_owned)), ("RUST_LOG", rust.map(str::to_owned))]);
        (filter.to_string(), refused)
    }

    #[test]
    fn musters_own_variable_wins() {
        assert_eq!(chosen(Some("debug"), Some("trace")), ("debug".to_owned(), None));
        assert_eq!(chosen(Some(" "), Some("trace")), ("trace".to_owned(), None));
    }

    #[test]
    fn a_filter_that_cant_be_read_is_named_and_the_usual_one_stays() {
        let (filter, refused) = chosen(None, Some("a=b=c"));
        assert!(filter.contains("info"), "{filter}");
        assert_eq!(refused, Some("RUST_LOG"));
    }
}
