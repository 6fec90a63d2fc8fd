//! Blocking: `muster-certs rotate`: one step at a time, and what the next one does.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use muster_certs::rotation::{Authority, Cut, State};
use muster_certs::{Ca, Moved};

use super::Members;
use super::answer::{CutOff, Rotation, Signer, UnderWay};

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// Make the new one. The old one goes on issuing
    #[command(subcommand)]
    Start(Start),
    /// What is in force, how far a rotation is, and whom the next step would cut off
    Status {
        #[command(flatten)]
        members: Members,
    },
    /// The next step; refused, with names, while it would cut somebody off
    Advance {
        #[command(flatten)]
        members: Members,
        /// Do it all the same
        #[arg(long)]
        force: bool,
    },
    /// One step back
    Back,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Start {
    /// A new issuing CA below the same root: once a year
    Issuing(RootFolder),
    /// A new root, and an issuing CA below it
    Root(RootFolder),
}

#[derive(Debug, Args)]
pub(crate) struct RootFolder {
    /// Where the folder with the root's key lies while it is here [default: root in the CA's folder]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub(crate) fn rotate(ca: &mut Ca, what: &Rotate, notes: &mut dyn Write) -> Result<Rotation> {
    let folder = |start: &RootFolder, ca: &Ca| start.root.clone().unwrap_or_else(|| ca.root_folder());
    let nothing = Moved { cut_off: Vec::new(), destroyed: Vec::new() };
    let (moved, members) = match what {
        Rotate::Start(Start::Issuing(start)) => (ca.start_issuing(&folder(start, ca))?, None),
        Rotate::Start(Start::Root(start)) => {
            let moved = ca.start_root(&folder(start, ca))?;
            writeln!(notes, "the new root's key lies beside the old one's: move the folder offline again, and keep a copy")?;
            (moved, None)
        }
        Rotate::Status { members } => (Moved { destroyed: ca.settle()?, ..nothing }, Some(members)),
        Rotate::Advance { members, force } => (ca.advance(members.read(ca)?.as_ref(), *force)?, Some(members)),
        Rotate::Back => (ca.back()?, None),
    };
    let report = members.map_or(Ok(None), |members| members.read(ca))?;
    let now_ms = ca.now_ms()?;
    let would_cut_off = match &report {
        Some(report) => Some(ca.state().cuts_off(&ca.holders(Some(report))?, now_ms)),
        None => None,
    };
    Ok(status(ca.state(), moved, would_cut_off, now_ms))
}

fn status(state: &State, moved: Moved, would_cut_off: Option<Vec<Cut>>, now_ms: i64) -> Rotation {
    let rotation = state.turn.as_ref().map(|turn| UnderWay {
        of: turn.kind(),
        phase: turn.phase,
        started_ms: turn.started_ms,
        since_ms: turn.since_ms,
        way_back: state.has_way_back(),
        needs_members: state.check_advance(None, now_ms).is_err(),
        would_cut_off: would_cut_off.map(|cut| cut.iter().map(cut_off).collect()),
    });
    Rotation {
        issues: signer(state.issuer()),
        roots: state.roots().into_iter().map(signer).collect(),
        bundle_version: state.bundle,
        rotation,
        cut_off: moved.cut_off.iter().map(cut_off).collect(),
        destroyed: moved.destroyed,
    }
}

fn signer(authority: &Authority) -> Signer {
    Signer { file: authority.file.clone(), key: authority.key.clone(), not_after_ms: authority.not_after_ms }
}

fn cut_off(cut: &Cut) -> CutOff {
    CutOff { name: cut.name.to_string(), why: cut.why }
}
