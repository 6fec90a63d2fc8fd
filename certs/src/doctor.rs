//! Quiet: what breaks next and when, for the whole mesh, and until when each branch can stay alone. Time is an argument.
//!
//! A branch is alone when its line to the hub is cut and nobody renews. It *can stay alone until* the last moment at which every agent of the
//! site that can shake hands now with some relay of the site still can with one of them. An agent can with a relay until the sooner of two
//! ends: of the relay's certificate in the eyes of the agent's roots, and of the agent's in the eyes of the relay's roots. A certificate's
//! end in somebody's eyes is the leaf's, or if only a cross certificate leads to their roots, that one's if it is sooner; without any way to
//! their roots it is refused already. Roots have an end, too, but nobody checks it.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::collections::BTreeMap;

use serde::Serialize;

use crate::identity::{Name, Role};
use crate::issuer::leaf_life_ms;
use crate::ledger::Backups;
use crate::members::{Holder, HubCertificate, Report};
use crate::rotation::{Kind, State};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// What breaks within this is told by the exit code.
pub const SOON_MS: i64 = 30 * DAY_MS;
/// Those who renew by themselves do it at half of a certificate's life, a tenth more or less. Whoever has less left than this part hasn't.
const LATE_PART: i64 = 3;
/// A rotation that stands still for so long was forgotten.
const TURN_IDLE_MS: i64 = 60 * DAY_MS;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkup {
    /// The trust domain.
    pub domain: String,
    /// As of when, milliseconds UTC.
    pub at_ms: i64,
    /// Whether something breaks within 30 days.
    pub soon: bool,
    /// What ends, by time.
    pub findings: Vec<Finding>,
    /// The branches, by name.
    pub branches: Vec<Branch>,
    /// Whether the hub's report named the hub's own keys, so that they were looked at.
    pub hub_keys_known: bool,
    /// Keys of this CA and of the hub without a note that they have a backup.
    pub without_backup: Vec<Key>,
}

/// Something that ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// When, milliseconds UTC.
    pub at_ms: i64,
    /// What, or whose.
    pub what: String,
    /// Which kind of thing.
    pub kind: FindingKind,
    /// Whether something breaks then; else nobody has to do anything.
    pub breaks: bool,
    /// What to do.
    pub todo: String,
}

/// Which kind of thing ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The issuing CA: nothing is issued or renewed any more.
    IssuingCa,
    /// A root.
    Root,
    /// The cross certificate.
    Cross,
    /// A rotation that nobody goes on with.
    Rotation,
    /// Somebody's certificate, also one of the hub's that another CA issued.
    Leaf,
}

/// A branch office.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The site.
    pub site: String,
    /// Its relays.
    pub relays: usize,
    /// Its agents.
    pub agents: usize,
    /// Agents that can't shake hands with any of its relays even now: they have been away for long.
    pub agents_out: usize,
    /// The last moment at which all the others can, milliseconds UTC; null: there is nobody to meet.
    pub alone_until_ms: Option<i64>,
}

/// A key that should have a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Whose it is.
    pub of: KeyOf,
    /// What it is the key of.
    pub what: String,
    /// Its key identifier; of a hub's key, SHA-256 of its public half. Lower-case hex.
    pub key: String,
}

/// Whose a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyOf {
    /// The root's.
    Root,
    /// The issuing CA's.
    Issuing,
    /// The hub's own: what is sealed to it, what it signs with.
    Hub,
}

/// Looks at everything. `report`: the hub's, for its own keys and certificates; `holders` are everybody's certificates.
pub fn checkup(domain: &str, state: &State, report: Option<&Report>, holders: &[Holder], backups: &Backups, now_ms: i64) -> Checkup {
    let mut findings = authorities(state, now_ms);
    findings.extend(holders.iter().filter_map(|holder| leaf(holder, now_ms)));
    findings.extend(report.iter().flat_map(|report| &report.certificates).filter_map(|certificate| of_hub(certificate, now_ms)));
    findings.sort_by(|a, b| (a.at_ms, a.kind, &a.what).cmp(&(b.at_ms, b.kind, &b.what)));
    let soon = findings.iter().any(|finding| finding.breaks && finding.at_ms <= now_ms.saturating_add(SOON_MS));
    let hub_keys_known = report.is_some_and(|report| !report.keys.is_empty());
    let without_backup = keys(state, report).into_iter().filter(|key| !backups.keys.contains_key(&key.key)).collect();
    Checkup {
        domain: domain.to_owned(),
        at_ms: now_ms,
        soon,
        findings,
        branches: branches(state, holders, now_ms),
        hub_keys_known,
        without_backup,
    }
}

/// The keys that should have a backup: the CA's, and the hub's as far as its report names them.
pub fn keys(state: &State, report: Option<&Report>) -> Vec<Key> {
    let issuing = state.kept_keys().into_iter().map(|it| Key {
        of: KeyOf::Issuing,
        what: format!("the issuing CA ({})", it.file),
        key: it.key.clone(),
    });
    let roots = state.roots().into_iter().map(|it| Key { of: KeyOf::Root, what: format!("the root ({})", it.file), key: it.key.clone() });
    let hub = report.into_iter().flat_map(|report| &report.keys);
    let hub = hub.map(|it| Key { of: KeyOf::Hub, what: it.what.clone(), key: it.key.clone() });
    roots.chain(issuing).chain(hub).collect()
}

/// Each branch, and until when it can stay alone.
pub fn branches(state: &State, holders: &[Holder], now_ms: i64) -> Vec<Branch> {
    let mut sites: BTreeMap<&str, (Vec<&Holder>, Vec<&Holder>)> = BTreeMap::new();
    for holder in holders.iter().filter(|holder| !holder.denied) {
        match &holder.name {
            Name::Relay { site, .. } => sites.entry(site).or_default().0.push(holder),
            Name::Agent { site, .. } => sites.entry(site).or_default().1.push(holder),
            Name::Hub { .. } | Name::Control { .. } => {}
        }
    }
    sites.into_iter().map(|(site, (relays, agents))| branch(state, site, &relays, &agents, now_ms)).collect()
}

fn branch(state: &State, site: &str, relays: &[&Holder], agents: &[&Holder], now_ms: i64) -> Branch {
    let meets_until = |agent: &&Holder| relays.iter().filter_map(|relay| meet_until_ms(state, agent, relay)).max();
    let alive: Vec<i64> = agents.iter().filter_map(meets_until).filter(|until_ms| *until_ms >= now_ms).collect();
    Branch {
        site: site.to_owned(),
        relays: relays.len(),
        agents: agents.len(),
        agents_out: agents.len() - alive.len(),
        alone_until_ms: alive.into_iter().min(),
    }
}

/// Until when, milliseconds UTC, these two can shake hands.
fn meet_until_ms(state: &State, agent: &Holder, relay: &Holder) -> Option<i64> {
    Some(state.good_until_ms(agent, relay)?.min(state.good_until_ms(relay, agent)?))
}

fn authorities(state: &State, now_ms: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |at_ms: i64, what: String, kind: FindingKind, todo: &str| {
        findings.push(Finding { at_ms, what, kind, breaks: true, todo: todo.to_owned() });
    };
    let issuer = state.issuer();
    let todo = match &state.turn {
        None => "muster-certs rotate start issuing, and finish it 90 days before",
        Some(_) => "finish the rotation: muster-certs rotate advance",
    };
    add(issuer.not_after_ms, format!("the issuing CA ({})", issuer.file), FindingKind::IssuingCa, todo);
    for root in state.roots() {
        let replaced = state.turn.as_ref().is_some_and(|turn| turn.kind() == Kind::Root) && root.key == state.root.key;
        let todo =
            if replaced { "finish the rotation: muster-certs rotate advance" } else { "muster-certs rotate start root, a year before" };
        add(root.not_after_ms, format!("the root ({})", root.file), FindingKind::Root, todo);
    }
    if let Some(turn) = &state.turn {
        if let Some(cross) = &turn.issuing.crossed {
            let todo = "who holds only the old root by then must enrol again";
            add(cross.not_after_ms, "the cross certificate of the new root".to_owned(), FindingKind::Cross, todo);
        }
        let idle_ms = turn.since_ms.saturating_add(TURN_IDLE_MS);
        if idle_ms <= now_ms {
            let todo = "muster-certs rotate status says what the next step needs".to_owned();
            let what = format!("the rotation of {} stands still", turn.kind());
            findings.push(Finding { at_ms: idle_ms, what, kind: FindingKind::Rotation, breaks: false, todo });
        }
    }
    findings
}

/// A leaf that nobody renews in time. Those who renew by themselves are told of only when they are late, or asleep past their end.
fn leaf(holder: &Holder, now_ms: i64) -> Option<Finding> {
    let at_ms = holder.not_after_ms.filter(|_| !holder.denied)?;
    let role = holder.name.role();
    let left_ms = at_ms.saturating_sub(now_ms);
    let life_ms = holder.issued_ms.map_or(leaf_life_ms(role), |issued_ms| at_ms.saturating_sub(issued_ms));
    let (breaks, todo) = match (holder.enrolled, role) {
        (true, _) if !is_late(at_ms, life_ms, now_ms) => return None,
        (true, Role::Agent) if left_ms < 0 => (false, "it comes back by itself when it wakes; deny it if it is lost"),
        (true, Role::Agent) => (false, "it hasn't renewed: it sleeps, or its branch is cut off"),
        (true, Role::Relay | Role::Hub | Role::Control) => (true, "it hasn't renewed: look at its log and its line to the hub"),
        (false, Role::Agent | Role::Relay | Role::Hub | Role::Control) => (true, "muster-certs renew FOLDER, where its files are"),
    };
    Some(Finding { at_ms, what: holder.name.to_string(), kind: FindingKind::Leaf, breaks, todo: todo.to_owned() })
}

/// A certificate of the hub's own that no list of the CA has: one that it renews by itself is told of only when it is late.
fn of_hub(certificate: &HubCertificate, now_ms: i64) -> Option<Finding> {
    let at_ms = certificate.not_after_ms;
    let todo = match certificate.renews_ms {
        Some(renews_ms) if !is_late(at_ms, at_ms.saturating_sub(renews_ms).saturating_mul(2), now_ms) => return None,
        Some(_) => "it hasn't been renewed: look at the hub's log",
        None => "get another from the organisation's CA into the same files: ops/runbooks/hub-certificate.md",
    };
    Some(Finding { at_ms, what: certificate.what.clone(), kind: FindingKind::Leaf, breaks: true, todo: todo.to_owned() })
}

/// Whether a certificate of such a life should have been renewed by now.
fn is_late(not_after_ms: i64, life_ms: i64, now_ms: i64) -> bool {
    not_after_ms.saturating_sub(now_ms) <= life_ms / LATE_PART
}
