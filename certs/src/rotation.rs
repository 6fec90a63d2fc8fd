//! Quiet: where a rotation of the issuing CA or of the root stands, what the next step does, whom it would cut off. Time is an argument; keys
//! and files are `ca.rs`' matter.
//!
//! ```text
//! issuing CA   prepared ──▶ switched ──▶ done              a step back: prepared ◀── switched, then given up
//! root         prepared ──▶ switched ──▶ retired ──▶ done  the same, and: switched ◀── retired
//! ```
//!
//! - **prepared**: the new issuing CA (and root) lies beside the old one, which still issues. A new root stands in the bundle beside the old.
//! - **switched**: the new one issues. Below a new root its chains carry the cross certificate, by which holders of the old root alone check
//!   them: a site that has been away all the time understands everybody.
//! - **retired** (root): the bundle holds the new root alone. The chains keep the cross certificate until nobody holds the old bundle. The old
//!   issuing CA's key is gone: a step back puts the old root beside the new again, for whoever was cut off, and no further one follows.
//! - **done**: the old issuing CA's key is gone; of a root, the cross certificate, too.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::Name;
use crate::members::{Holder, Report, trusts_others};

/// The version of the file.
pub const STATE_VERSION: u32 = 1;
/// Bundles that are remembered: one that is older than so many changes of the roots counts as unknown.
pub const BUNDLES_MAX: usize = 64;
/// A running signer has opened the CA again within this. Counted only where the report doesn't say by which CA the hub signs.
const OPENED_WITHIN_MS: i64 = 60 * 1000;
/// Authorities that were given up or retired and are remembered.
pub const PAST_MAX: usize = 64;

/// A CA certificate, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its subject key identifier, lower-case hex.
    pub key: String,
    /// The key identifier of the root below which it stands; a root's own.
    pub under: String,
    /// The name of its files, without `.pem` and `.key`.
    pub file: String,
    /// Its end, milliseconds UTC.
    pub not_after_ms: i64,
    /// The certificate.
    pub pem: String,
    /// Of an issuing CA: that its chains carry a cross certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crossed: Option<Crossed>,
}

/// By which other root chains can be checked, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossed {
    /// That root's key identifier.
    pub by: String,
    /// The end of the cross certificate, milliseconds UTC.
    pub not_after_ms: i64,
}

/// The roots that nodes got at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// It rises with each change.
    pub version: u64,
    /// The roots' key identifiers.
    pub roots: Vec<String>,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The new one lies beside the old, which still issues.
    Prepared,
    /// The new one issues.
    Switched,
    /// The old root is in no bundle any more.
    Retired,
}

/// What is being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The issuing CA, below the same root.
    Issuing,
    /// The root, and with it the issuing CA.
    Root,
}

/// A new root on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRoot {
    /// The root.
    pub authority: Authority,
    /// Its cross certificate by the old root, PEM.
    pub cross: String,
    /// The first bundle that holds the new root.
    pub bundle: u64,
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// How far it is.
    pub phase: Phase,
    /// When it was begun, milliseconds UTC.
    pub started_ms: i64,
    /// When this phase began, milliseconds UTC.
    pub since_ms: i64,
    /// The new issuing CA.
    pub issuing: Authority,
    /// The new root, if it is one of the root.
    pub root: Option<NewRoot>,
}

/// What stands in `rotation.json`: everything of a CA that changes, so that one atomic write changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Rises with each change, so that two commands at once are noticed.
    pub step: u64,
    /// The root, the old one during a rotation.
    pub root: Authority,
    /// The issuing CA, the old one during a rotation.
    pub issuing: Authority,
    /// The version of the bundle that nodes get now.
    pub bundle: u64,
    /// The last bundles, oldest first, with the present one.
    pub bundles: Vec<Bundle>,
    /// The rotation under way.
    pub turn: Option<Turn>,
    /// Authorities that were retired or given up, oldest first.
    pub past: Vec<Authority>,
}

/// Why a step isn't done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// There is one under way.
    #[error("a rotation of {0} is under way; finish it (rotate advance) or give it up (rotate back) first")]
    UnderWay(Kind),
    /// There is none.
    #[error("no rotation is under way; begin one with: muster-certs rotate start issuing (or root)")]
    None,
    /// The old root was out of the bundles already.
    #[error(
        "there is no further way back: the old root was retired once, and the key of the old issuing CA is gone; go on with rotate advance, or begin another rotation after it"
    )]
    NoWayBack,
    /// Nobody says who holds what.
    #[error("{0}")]
    NeedsReport(NeedsReport),
    /// The hub doesn't sign by the new issuing CA yet.
    #[error(
        "the hub's report was made while it still signed by the old issuing CA; look in its log whether it could open the CA again, then make a new report"
    )]
    HubLags,
    /// From before this phase.
    #[error("the report was made before the last step had reached everybody; make a new one: muster-hub member list --json")]
    EarlyReport,
    /// The step would cut somebody off.
    #[error("{0}")]
    CutsOff(CutsOff),
}

/// What is missing to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsReport;

impl fmt::Display for NeedsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this step may cut somebody off, and nobody says who holds what: at the hub run muster-hub member list --json > FILE, then give --members FILE (--force goes on without)",
        )
    }
}

/// Who would be cut off, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutsOff {
    /// Everybody, by name.
    pub who: Vec<Cut>,
}

/// Names in one message; all of them are in the JSON of `rotate status --members`.
const NAMES_SHOWN: usize = 20;

impl fmt::Display for CutsOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this would cut off {}:", self.who.len())?;
        for cut in self.who.iter().take(NAMES_SHOWN) {
            write!(f, "\n  {} ({})", cut.name, cut.why)?;
        }
        if self.who.len() > NAMES_SHOWN {
            write!(f, "\n  and {} more", self.who.len() - NAMES_SHOWN)?;
        }
        f.write_str("\nWait until they have renewed, deny them at the hub, or use --force")
    }
}

/// Somebody whom a step would cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Who.
    pub name: Name,
    /// Why.
    pub why: Why,
}

/// Why somebody would be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// A leaf of the old issuing CA that hasn't ended.
    OldLeaf,
    /// Only the old root, as far as anybody knows.
    OldBundle,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::OldLeaf => "it holds a certificate of the old issuing CA",
            Why::OldBundle => "it holds the old roots, or never said which",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Issuing => "the issuing CA",
            Kind::Root => "the root",
        })
    }
}

impl Turn {
    /// What is being replaced.
    pub fn kind(&self) -> Kind {
        if self.root.is_some() { Kind::Root } else { Kind::Issuing }
    }

    fn at(&self, phase: Phase, now_ms: i64) -> Turn {
        Turn { phase, since_ms: now_ms, ..self.clone() }
    }
}

impl State {
    /// A CA that was never rotated.
    pub fn first(root: Authority, issuing: Authority) -> State {
        let bundles = vec![Bundle { version: 1, roots: vec![root.key.clone()] }];
        State { version: STATE_VERSION, step: 0, root, issuing, bundle: 1, bundles, turn: None, past: Vec::new() }
    }

    /// The issuing CA that issues now.
    pub fn issuer(&self) -> &Authority {
        match &self.turn {
            Some(Turn { phase: Phase::Switched | Phase::Retired, issuing, .. }) => issuing,
            Some(Turn { phase: Phase::Prepared, .. }) | None => &self.issuing,
        }
    }

    /// The cross certificate that the chains given out now carry.
    pub fn cross(&self) -> Option<&str> {
        self.new_root_in_use().map(|new| new.cross.as_str())
    }

    /// The roots that nodes get now, the old one first.
    pub fn roots(&self) -> Vec<&Authority> {
        match &self.turn {
            Some(Turn { phase: Phase::Retired, root: Some(new), .. }) => vec![&new.authority],
            Some(Turn { phase: Phase::Prepared | Phase::Switched, root: Some(new), .. }) => vec![&self.root, &new.authority],
            Some(Turn { root: None, .. }) | None => vec![&self.root],
        }
    }

    /// The text of `roots.pem`.
    pub fn roots_pem(&self) -> String {
        self.roots().iter().map(|root| root.pem.as_str()).collect()
    }

    /// The roots of a bundle, if it is remembered.
    pub fn roots_of(&self, version: u64) -> Option<&[String]> {
        self.bundles.iter().find(|bundle| bundle.version == version).map(|bundle| bundle.roots.as_slice())
    }

    /// An issuing CA of this or an earlier time.
    pub fn issuer_of(&self, key: &str) -> Option<&Authority> {
        let new = self.turn.as_ref().map(|turn| &turn.issuing);
        [&self.issuing].into_iter().chain(new).chain(&self.past).find(|authority| authority.key == key && authority.under != authority.key)
    }

    /// Issuing CAs whose keys are needed: the others' must go.
    pub fn kept_keys(&self) -> Vec<&Authority> {
        match &self.turn {
            Some(Turn { issuing, .. }) if self.was_retired() => vec![issuing],
            Some(Turn { issuing, .. }) => vec![&self.issuing, issuing],
            None => vec![&self.issuing],
        }
    }

    /// Begins a rotation of the issuing CA: `issuing` was made with the root's key.
    pub fn start_issuing(&self, issuing: Authority, now_ms: i64) -> Result<State, RotationError> {
        self.start(issuing, None, now_ms)
    }

    /// Begins a rotation of the root: `issuing` stands below `root`, and `cross` is that root's, signed by the old one.
    pub fn start_root(&self, root: Authority, cross: String, issuing: Authority, now_ms: i64) -> Result<State, RotationError> {
        let new = NewRoot { authority: root, cross, bundle: self.bundle.saturating_add(1) };
        Ok(self.start(issuing, Some(new), now_ms)?.with_new_bundle())
    }

    /// Refuses when one is under way already.
    pub fn check_free(&self) -> Result<(), RotationError> {
        self.turn.as_ref().map_or(Ok(()), |turn| Err(RotationError::UnderWay(turn.kind())))
    }

    /// Who would be cut off by the next step.
    pub fn cuts_off(&self, holders: &[Holder], now_ms: i64) -> Vec<Cut> {
        let Some(turn) = &self.turn else { return Vec::new() };
        let why: fn(&Turn, &Holder, i64) -> Option<Why> = match (turn.kind(), turn.phase) {
            // Chains of the new one are good with either bundle.
            (Kind::Issuing | Kind::Root, Phase::Prepared) => |_, _, _| None,
            (Kind::Issuing | Kind::Root, Phase::Switched) => old_leaf,
            (Kind::Issuing | Kind::Root, Phase::Retired) => old_bundle,
        };
        let all = holders.iter().filter(|holder| !holder.denied);
        all.filter_map(|holder| why(turn, holder, now_ms).map(|why| Cut { name: holder.name.clone(), why })).collect()
    }

    /// Refuses a report by which the next step can't be judged: whoever got a certificate after it, by the old CA, doesn't stand in it.
    pub fn check_report(&self, report: &Report) -> Result<(), RotationError> {
        let turn = self.turn.as_ref().ok_or(RotationError::None)?;
        if turn.phase == Phase::Prepared {
            return Ok(());
        }
        let from_ms = match &report.signer_key {
            Some(key) if *key != turn.issuing.key => return Err(RotationError::HubLags),
            Some(_) => turn.since_ms,
            None => turn.since_ms.saturating_add(OPENED_WITHIN_MS),
        };
        if report.at_ms < from_ms { Err(RotationError::EarlyReport) } else { Ok(()) }
    }

    /// Refuses the next step if it would cut somebody off, or if nobody knows. `holders` is everybody, if the hub's report is at hand.
    pub fn check_advance(&self, holders: Option<&[Holder]>, now_ms: i64) -> Result<(), RotationError> {
        let turn = self.turn.as_ref().ok_or(RotationError::None)?;
        let Some(holders) = holders else {
            let harmless = match turn.phase {
                Phase::Prepared => true,
                // Nobody holds a leaf that outlives the CA that issued it.
                Phase::Switched => now_ms > self.issuing.not_after_ms,
                Phase::Retired => turn.issuing.crossed.as_ref().is_none_or(|cross| now_ms > cross.not_after_ms),
            };
            return if harmless { Ok(()) } else { Err(RotationError::NeedsReport(NeedsReport)) };
        };
        let who = self.cuts_off(holders, now_ms);
        if who.is_empty() { Ok(()) } else { Err(RotationError::CutsOff(CutsOff { who })) }
    }

    /// The next step, whoever it cuts off: ask [`State::check_advance`] first.
    pub fn advance(&self, now_ms: i64) -> Result<State, RotationError> {
        let turn = self.turn.as_ref().ok_or(RotationError::None)?;
        Ok(match (turn.phase, &turn.root) {
            (Phase::Prepared, _) => self.with_turn(Some(turn.at(Phase::Switched, now_ms))),
            (Phase::Switched, Some(_)) => self.with_turn(Some(turn.at(Phase::Retired, now_ms))).with_new_bundle(),
            (Phase::Switched, None) => {
                let mut done = self.with_turn(None).with_past(&self.issuing);
                done.issuing = turn.issuing.clone();
                done
            }
            (Phase::Retired, new) => {
                let mut done = self.with_turn(None).with_past(&self.issuing).with_past(&self.root);
                done.issuing = Authority { crossed: None, ..turn.issuing.clone() };
                if let Some(new) = new {
                    done.root = new.authority.clone();
                }
                done
            }
        })
    }

    /// Whether there is a step back.
    pub fn has_way_back(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.phase == Phase::Retired || !self.was_retired())
    }

    /// One step back.
    pub fn back(&self, now_ms: i64) -> Result<State, RotationError> {
        let turn = self.turn.as_ref().ok_or(RotationError::None)?;
        if !self.has_way_back() {
            return Err(RotationError::NoWayBack);
        }
        match turn.phase {
            Phase::Retired => Ok(self.with_turn(Some(turn.at(Phase::Switched, now_ms))).with_new_bundle()),
            Phase::Switched => Ok(self.with_turn(Some(turn.at(Phase::Prepared, now_ms)))),
            Phase::Prepared => {
                let given_up = self.with_turn(None).with_past(&turn.issuing);
                Ok(match &turn.root {
                    Some(new) => given_up.with_past(&new.authority).with_new_bundle(),
                    None => given_up,
                })
            }
        }
    }

    /// Until when (milliseconds UTC) somebody with the roots of `eyes` lets `holder`'s leaf pass; `None`: not even now.
    pub fn good_until_ms(&self, holder: &Holder, eyes: &Holder) -> Option<i64> {
        let end_ms = holder.not_after_ms?;
        let known: Vec<&str> = match eyes.bundle.and_then(|version| self.roots_of(version)) {
            Some(roots) => roots.iter().map(String::as_str).collect(),
            // Nobody knows: the roots that everybody has.
            None => self.roots().first().map(|root| root.key.as_str()).into_iter().collect(),
        };
        let Some(issuer) = holder.issuer_key.as_deref().and_then(|key| self.issuer_of(key)) else {
            // Of a CA that isn't remembered: no path but its end is known.
            return Some(end_ms);
        };
        if known.contains(&issuer.under.as_str()) {
            return Some(end_ms);
        }
        let cross = issuer.crossed.as_ref().filter(|cross| known.contains(&cross.by.as_str()))?;
        Some(end_ms.min(cross.not_after_ms))
    }

    /// Whether a bundle of this rotation was without the old root. Then somebody may hold the new one alone, and the old issuing CA's key is gone.
    fn was_retired(&self) -> bool {
        let Some(new) = self.turn.as_ref().and_then(|turn| turn.root.as_ref()) else { return false };
        self.bundles.iter().any(|bundle| bundle.version >= new.bundle && !bundle.roots.contains(&self.root.key))
    }

    fn new_root_in_use(&self) -> Option<&NewRoot> {
        match &self.turn {
            Some(Turn { phase: Phase::Switched | Phase::Retired, root, .. }) => root.as_ref(),
            Some(Turn { phase: Phase::Prepared, .. }) | None => None,
        }
    }

    fn start(&self, issuing: Authority, root: Option<NewRoot>, now_ms: i64) -> Result<State, RotationError> {
        self.check_free()?;
        Ok(self.with_turn(Some(Turn { phase: Phase::Prepared, started_ms: now_ms, since_ms: now_ms, issuing, root })))
    }

    fn with_turn(&self, turn: Option<Turn>) -> State {
        State { step: self.step.saturating_add(1), turn, ..self.clone() }
    }

    fn with_new_bundle(mut self) -> State {
        self.bundle = self.bundle.saturating_add(1);
        let roots = self.roots().iter().map(|root| root.key.clone()).collect();
        self.bundles.push(Bundle { version: self.bundle, roots });
        let older = self.bundles.len().saturating_sub(BUNDLES_MAX);
        self.bundles.drain(..older);
        self
    }

    fn with_past(mut self, authority: &Authority) -> State {
        self.past.push(authority.clone());
        let older = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..older);
        self
    }
}

/// A leaf of any other issuing CA than the new one, or of nobody knows which, that hasn't ended.
fn old_leaf(turn: &Turn, holder: &Holder, now_ms: i64) -> Option<Why> {
    let moved = holder.issuer_key.as_deref() == Some(turn.issuing.key.as_str());
    (holder.is_alive(now_ms) && !moved).then_some(Why::OldLeaf)
}

/// A bundle without the new root. Of those who were enrolled everybody counts, however long they have been away: by the cross certificate they
/// come back. Whose certificate lies in a file comes back only by a new file.
fn old_bundle(turn: &Turn, holder: &Holder, now_ms: i64) -> Option<Why> {
    let new = turn.root.as_ref()?;
    let has_it = holder.bundle.is_some_and(|version| version >= new.bundle);
    let counts = trusts_others(holder) && (holder.enrolled || holder.is_alive(now_ms));
    (counts && !has_it).then_some(Why::OldBundle)
}
