//! Async: the comparison again, on stopped programs: what each run has observed stands in the ledger, what the hub has is counted anew by
//! SQL on its rows.

use std::path::Path;

use muster_hub::store::Store;
use muster_mesh::{complaint::Complaint, state_dir::StateDir};

use crate::{
    engines::Engines,
    ledger::{Ledger, Run},
    mesh::{self, Node},
    quickstart::{AGENT, LEDGER, SITE},
    summary::InHub,
    terminal::Terminal,
};

/// True: every run in the folder agrees. Changes nothing that is compared.
pub async fn check(folder: &Path, terminal: &mut Terminal) -> anyhow::Result<bool> {
    let ledger = Ledger::open(&folder.join(LEDGER))?;
    if ledger.runs().is_empty() {
        let what = format!("nothing was run in {} yet, so there is nothing to compare", folder.display());
        return Err(Complaint::new(what, "Run ops/quickstart --for 60 first").into());
    }
    let _stopped = all_stopped(folder)?;
    let url = Engines::of(folder)?.store_url(&std::path::absolute(folder)?);
    if Store::check(&url).await?.version.is_none() {
        return Err(Complaint::new("the hub's database is gone", "Start empty, with --fresh").into());
    }
    let store = Store::open(&url).await?;
    let mut agrees = true;
    let mut later = InHub::default();
    let mut lines = Vec::new();
    // Backwards, since the hub counts from a time on: a run is what is left without those after it.
    for (place, run) in ledger.runs().iter().enumerate().rev() {
        let since = InHub::from_store(&store.summary(run.summary.started_ms).await?);
        let found = found(run, &since.without(&later));
        agrees &= found.is_empty();
        lines.push(line(place + 1, run, &found));
        later = since;
    }
    store.close().await;
    lines.iter().rev().for_each(|line| terminal.say(line));
    Ok(agrees)
}

/// A run that was cut off says for certain only what must never be.
fn found(run: &Run, hub: &InHub) -> Vec<String> {
    let mut summary = run.summary.clone();
    summary.compare_with(hub);
    if run.ended { summary.differences() } else { summary.blemishes() }
}

fn line(number: usize, run: &Run, found: &[String]) -> String {
    let how = if run.ended { "" } else { ", cut off: only what must never be was looked for" };
    let records = run.summary.kinds.sum().observed;
    match found {
        [] => format!("run {number} ({records} records observed{how}): agrees"),
        found => format!("run {number} ({records} records observed{how}): {}", found.join("; ")),
    }
}

/// Holds the folders' locks, so that nothing starts meanwhile.
fn all_stopped(folder: &Path) -> Result<Vec<StateDir>, Complaint> {
    let mut held = vec![StateDir::open(folder, "quickstart")?];
    for node in [Node::Hub, Node::Relay(SITE.into()), Node::Agent(AGENT.into())] {
        let state = mesh::state_of(folder, &node);
        if state.exists() {
            held.push(StateDir::open(&state, node.program())?);
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::summary::{AtAgent, Kinds, Summary};

    fn run(ended: bool) -> (Run, InHub) {
        let kinds: BTreeMap<String, u64> = Kinds::default().each().map(|(kind, _)| (kind.to_owned(), 2)).into();
        let agent =
            AtAgent { observed: kinds.clone(), relay_acked: kinds.clone(), made_batches: 3, relay_acked_batches: 3, ..AtAgent::default() };
        let hub = InHub { kinds, stored: 3, ..InHub::default() };
        (Run { ended, summary: Summary::of(0, 20, &agent, &hub) }, hub)
    }

    #[test]
    fn a_row_that_went_after_the_end_is_told() {
        let (run, mut hub) = run(true);
        assert_eq!(found(&run, &hub), Vec::<String>::new());
        *hub.kinds.get_mut("focus").unwrap() -= 1;
        assert_eq!(found(&run, &hub), ["focus: 2 observed, 2 in the branch, 1 in the hub"]);
    }

    #[test]
    fn of_a_run_that_was_cut_off_only_what_must_never_be_is_told() {
        let (run, mut hub) = run(false);
        hub.stored = 4;
        hub.kinds.insert("focus".into(), 7);
        assert_eq!(found(&run, &hub), Vec::<String>::new());
        hub.missing = 1;
        assert_eq!(found(&run, &hub), ["missing batches: 1, and none was expected"]);
    }
}
