//! Quiet: the comparison of the stages: what was observed, what the branch had, what the hub has by SQL on its rows.

use std::collections::BTreeMap;

use anyhow::Context;
use muster_hub::store;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The hub's counter of them; it has a row from the first on.
const RETURNED_EVER: &str = "returned_batches";

/// One run, in the shape of `examples/summary.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Milliseconds UTC. Only spools born from here on count.
    pub started_ms: i64,
    /// How long was observed.
    pub seconds: u64,
    pub test_mode: bool,
    pub agree: bool,
    pub kinds: Kinds,
    pub batches: Batches,
    /// Rows beyond one per (spool, seq, idx).
    pub duplicates: u64,
    /// Announced by tails, and neither stored nor excused.
    pub missing: u64,
    /// `Gap` records.
    pub gaps: u64,
    pub travel_ms: Travel,
}

/// The kinds that are made of every desktop, where the policy asks for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    pub heartbeat: Stages,
    pub activity: Stages,
    pub focus: Stages,
    pub screenshot: Stages,
    pub session: Stages,
    pub network: Stages,
    pub capability: Stages,
}

/// Records of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// Counted at the collectors.
    pub observed: u64,
    pub relay_acked: u64,
    /// Rows.
    pub in_hub: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batches {
    pub made: u64,
    pub relay_acked: u64,
    pub stored: u64,
    pub held: u64,
    pub refused: u64,
    pub returned: u64,
    pub expired: u64,
}

/// From the commit at the agent to the ack that the agent took. None: nothing came there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Travel {
    pub to_relay_p50: Option<u64>,
    pub to_relay_p99: Option<u64>,
    pub to_hub_p50: Option<u64>,
    pub to_hub_p99: Option<u64>,
}

/// What the agent says of this run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AtAgent {
    pub observed: BTreeMap<String, u64>,
    pub relay_acked: BTreeMap<String, u64>,
    pub made_batches: u64,
    pub relay_acked_batches: u64,
    pub returned: u64,
    pub test_mode: bool,
    pub travel_ms: Travel,
}

/// What the hub says of spools born since a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InHub {
    pub kinds: BTreeMap<String, u64>,
    pub stored: u64,
    pub held: u64,
    pub refused: u64,
    pub expired: u64,
    pub duplicates: u64,
    pub missing: u64,
    pub gaps: u64,
    /// Batches that the hub ever returned, whatever their spool.
    pub returned_ever: u64,
}

impl Summary {
    pub fn of(started_ms: i64, seconds: u64, agent: &AtAgent, hub: &InHub) -> Summary {
        let at = |kind: &str| Stages {
            observed: count(&agent.observed, kind),
            relay_acked: count(&agent.relay_acked, kind),
            in_hub: count(&hub.kinds, kind),
        };
        let mut summary = Summary {
            started_ms,
            seconds,
            test_mode: agent.test_mode,
            kinds: Kinds {
                heartbeat: at("heartbeat"),
                activity: at("activity"),
                focus: at("focus"),
                screenshot: at("screenshot"),
                session: at("session"),
                network: at("network"),
                capability: at("capability"),
            },
            batches: Batches {
                made: agent.made_batches,
                relay_acked: agent.relay_acked_batches,
                returned: agent.returned,
                ..Batches::default()
            },
            travel_ms: agent.travel_ms,
            ..Summary::default()
        };
        summary.compare_with(hub);
        summary
    }

    /// Takes the hub's numbers in, and compares.
    pub fn compare_with(&mut self, hub: &InHub) {
        for (kind, stages) in self.kinds.each_mut() {
            stages.in_hub = count(&hub.kinds, kind);
        }
        self.batches.stored = hub.stored;
        self.batches.held = hub.held;
        self.batches.refused = hub.refused;
        self.batches.expired = hub.expired;
        self.duplicates = hub.duplicates;
        self.missing = hub.missing;
        self.gaps = hub.gaps;
        self.agree = self.differences().is_empty();
    }

    /// What differs, or should not be, in words. Nothing: the stages agree.
    pub fn differences(&self) -> Vec<String> {
        let mut found: Vec<String> = self.kinds.each().into_iter().filter_map(|(kind, stages)| stages.difference(kind)).collect();
        let Batches { made, relay_acked, stored, .. } = self.batches;
        if made != relay_acked || made != stored {
            found.push(format!("batches: {made} made, {relay_acked} in the branch, {stored} in the hub"));
        }
        found.extend(self.blemishes());
        found
    }

    /// What must never be, whatever was observed.
    pub fn blemishes(&self) -> Vec<String> {
        let there = self.never_expected().into_iter().filter(|(_, count)| *count > 0);
        there.map(|(what, count)| format!("{what}: {count}, and none was expected")).collect()
    }

    /// Everything observed has come to the hub, whether or not there is some of each kind.
    pub fn is_drained(&self) -> bool {
        let Batches { made, relay_acked, stored, .. } = self.batches;
        let even = |stages: &Stages| stages.observed == stages.relay_acked && stages.observed == stages.in_hub;
        made == relay_acked && made == stored && self.kinds.each().iter().all(|(_, stages)| even(stages)) && self.missing == 0
    }

    fn never_expected(&self) -> [(&'static str, u64); 7] {
        let Batches { held, refused, returned, expired, .. } = self.batches;
        [
            ("held batches", held),
            ("refused batches", refused),
            ("returned batches", returned),
            ("expired batches", expired),
            ("duplicates", self.duplicates),
            ("missing batches", self.missing),
            ("gaps", self.gaps),
        ]
    }
}

impl Kinds {
    pub fn each(&self) -> [(&'static str, Stages); 7] {
        let Kinds { heartbeat, activity, focus, screenshot, session, network, capability } = *self;
        [
            ("heartbeat", heartbeat),
            ("activity", activity),
            ("focus", focus),
            ("screenshot", screenshot),
            ("session", session),
            ("network", network),
            ("capability", capability),
        ]
    }

    fn each_mut(&mut self) -> [(&'static str, &mut Stages); 7] {
        let Kinds { heartbeat, activity, focus, screenshot, session, network, capability } = self;
        [
            ("heartbeat", heartbeat),
            ("activity", activity),
            ("focus", focus),
            ("screenshot", screenshot),
            ("session", session),
            ("network", network),
            ("capability", capability),
        ]
    }

    /// All kinds together.
    pub fn sum(&self) -> Stages {
        self.each().into_iter().fold(Stages::default(), |sum, (_, stages)| Stages {
            observed: sum.observed + stages.observed,
            relay_acked: sum.relay_acked + stages.relay_acked,
            in_hub: sum.in_hub + stages.in_hub,
        })
    }
}

impl Stages {
    fn difference(&self, kind: &str) -> Option<String> {
        let Stages { observed, relay_acked, in_hub } = *self;
        if observed == 0 && relay_acked == 0 && in_hub == 0 {
            return Some(format!("{kind}: none was observed, and some was expected"));
        }
        let even = observed == relay_acked && observed == in_hub;
        (!even).then(|| format!("{kind}: {observed} observed, {relay_acked} in the branch, {in_hub} in the hub"))
    }
}

impl AtAgent {
    /// From the agent's answer to `status`.
    pub fn from_json(status: &Value) -> anyhow::Result<AtAgent> {
        let journey = status.get("journey").context("the agent's status doesn't say how far its batches have come")?;
        let number = |value: &Value| value.as_u64().context("the agent's status lacks a number");
        let travel = &journey["travel_ms"];
        Ok(AtAgent {
            observed: counts(&status["observed"]),
            relay_acked: counts(&journey["relay"]["kinds"]),
            made_batches: number(&journey["made"]["batches"])?,
            relay_acked_batches: number(&journey["relay"]["batches"])?,
            returned: number(&journey["returned"])?,
            test_mode: status["test_mode"].as_bool().unwrap_or(false),
            travel_ms: Travel {
                to_relay_p50: travel["to_relay_p50"].as_u64(),
                to_relay_p99: travel["to_relay_p99"].as_u64(),
                to_hub_p50: travel["to_hub_p50"].as_u64(),
                to_hub_p99: travel["to_hub_p99"].as_u64(),
            },
        })
    }
}

impl InHub {
    /// From the API's summary.
    pub fn from_json(summary: &Value) -> anyhow::Result<InHub> {
        let number = |value: &Value, name: &str| value[name].as_u64().with_context(|| format!("the hub's summary lacks {name}"));
        let batches = &summary["batches"];
        Ok(InHub {
            kinds: counts(&summary["kinds"]),
            stored: number(batches, "stored")?,
            held: number(batches, "held")?,
            refused: number(batches, "refused")?,
            expired: number(batches, "expired")?,
            duplicates: number(summary, "duplicates")?,
            missing: number(summary, "missing")?,
            gaps: number(summary, "gaps")?,
            returned_ever: summary["ever"][RETURNED_EVER].as_u64().unwrap_or(0),
        })
    }

    /// From the database itself.
    pub fn from_store(summary: &store::Summary) -> InHub {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        InHub {
            kinds: summary.kinds.iter().map(|(kind, rows)| ((*kind).to_owned(), count(*rows))).collect(),
            stored: count(summary.batches),
            held: count(summary.held),
            refused: count(summary.refused),
            expired: count(summary.expired),
            duplicates: count(summary.duplicates),
            missing: summary.missing,
            gaps: count(summary.gaps),
            returned_ever: summary.counters.get(RETURNED_EVER).copied().map_or(0, count),
        }
    }

    /// What came of spools between two times: `self` since the earlier, `later` since the later.
    pub fn without(&self, later: &InHub) -> InHub {
        InHub {
            kinds: self.kinds.iter().map(|(kind, rows)| (kind.clone(), rows.saturating_sub(count(&later.kinds, kind)))).collect(),
            stored: self.stored.saturating_sub(later.stored),
            held: self.held.saturating_sub(later.held),
            refused: self.refused.saturating_sub(later.refused),
            expired: self.expired.saturating_sub(later.expired),
            duplicates: self.duplicates.saturating_sub(later.duplicates),
            missing: self.missing.saturating_sub(later.missing),
            gaps: self.gaps.saturating_sub(later.gaps),
            returned_ever: self.returned_ever,
        }
    }
}

fn count(kinds: &BTreeMap<String, u64>, kind: &str) -> u64 {
    kinds.get(kind).copied().unwrap_or(0)
}

fn counts(kinds: &Value) -> BTreeMap<String, u64> {
    let all = kinds.as_object().into_iter().flatten();
    all.filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The published shape, every field of it, with the kinds that came later.
    const EXAMPLE: &str = r#"{
        "started_ms": 1795424402000, "seconds": 60, "test_mode": true, "agree": true,
        "kinds": {
            "heartbeat":  { "observed": 14, "relay_acked": 14, "in_hub": 14 },
            "activity":   { "observed": 2,  "relay_acked": 2,  "in_hub": 2 },
            "focus":      { "observed": 21, "relay_acked": 21, "in_hub": 21 },
            "screenshot": { "observed": 4,  "relay_acked": 4,  "in_hub": 4 },
            "session":    { "observed": 2,  "relay_acked": 2,  "in_hub": 2 },
            "network":    { "observed": 1,  "relay_acked": 1,  "in_hub": 1 },
            "capability": { "observed": 1,  "relay_acked": 1,  "in_hub": 1 }
        },
        "batches": { "made": 19, "relay_acked": 19, "stored": 19, "held": 0, "refused": 0, "returned": 0, "expired": 0 },
        "duplicates": 0, "missing": 0, "gaps": 0,
        "travel_ms": { "to_relay_p50": 3, "to_relay_p99": 11, "to_hub_p50": 2480, "to_hub_p99": 5120 }
    }"#;

    fn example() -> Summary {
        serde_json::from_str(EXAMPLE).unwrap()
    }

    fn agent() -> AtAgent {
        let kinds = json!({
            "heartbeat": 14, "activity": 2, "focus": 21, "screenshot": 4, "session": 2, "network": 1, "capability": 1, "gap": 0,
        });
        let travel = json!({ "to_relay_p50": 3, "to_relay_p99": 11, "to_hub_p50": 2480, "to_hub_p99": 5120 });
        let stage = json!({ "batches": 19, "kinds": kinds });
        let journey = json!({ "made": stage, "relay": stage, "hub": stage, "returned": 0, "travel_ms": travel });
        AtAgent::from_json(&json!({ "observed": kinds, "test_mode": true, "journey": journey })).unwrap()
    }

    fn hub() -> InHub {
        InHub::from_json(&json!({
            "kinds": { "heartbeat": 14, "activity": 2, "focus": 21, "screenshot": 4, "session": 2, "network": 1, "capability": 1 },
            "batches": { "stored": 19, "held": 0, "refused": 0, "expired": 0 },
            "duplicates": 0, "missing": 0, "lost": 0, "gaps": 0,
        }))
        .unwrap()
    }

    #[test]
    fn the_summary_has_the_published_shape() {
        let made = Summary::of(1_795_424_402_000, 60, &agent(), &hub());
        assert_eq!(made, example());
        assert_eq!(serde_json::to_value(&made).unwrap(), serde_json::from_str::<Value>(EXAMPLE).unwrap());
    }

    #[test]
    fn each_number_that_is_off_is_told() {
        type Spoil = fn(&mut AtAgent, &mut InHub);
        let cases: [(Spoil, &str); 13] = [
            (|agent, _| *agent.observed.get_mut("focus").unwrap() += 1, "focus: 22 observed, 21 in the branch, 21 in the hub"),
            (|agent, _| *agent.relay_acked.get_mut("session").unwrap() -= 1, "session: 2 observed, 1 in the branch"),
            (|_, hub| *hub.kinds.get_mut("heartbeat").unwrap() -= 1, "heartbeat: 14 observed, 14 in the branch, 13 in the hub"),
            (|_, hub| *hub.kinds.get_mut("screenshot").unwrap() -= 1, "screenshot: 4 observed, 4 in the branch, 3 in the hub"),
            (|agent, _| agent.made_batches += 1, "batches: 20 made"),
            (|_, hub| hub.stored -= 1, "18 in the hub"),
            (|_, hub| hub.held = 1, "held batches: 1"),
            (|_, hub| hub.refused = 1, "refused batches: 1"),
            (|agent, _| agent.returned = 2, "returned batches: 2"),
            (|_, hub| hub.expired = 1, "expired batches: 1"),
            (|_, hub| hub.duplicates = 1, "duplicates: 1"),
            (|_, hub| hub.missing = 3, "missing batches: 3"),
            (|_, hub| hub.gaps = 1, "gaps: 1"),
        ];
        for (spoil, told) in cases {
            let (mut agent, mut hub) = (agent(), hub());
            spoil(&mut agent, &mut hub);
            let summary = Summary::of(0, 60, &agent, &hub);
            let differences = summary.differences();
            assert!(!summary.agree && differences.len() == 1 && differences[0].contains(told), "{told}: {differences:?}");
        }
    }

    #[test]
    fn a_kind_that_nobody_saw_is_told() {
        let (mut agent, mut hub) = (agent(), hub());
        for kinds in [&mut agent.observed, &mut agent.relay_acked, &mut hub.kinds] {
            kinds.remove("screenshot");
            kinds.remove("network");
        }
        let summary = Summary::of(0, 60, &agent, &hub);
        let missed = |kind| format!("{kind}: none was observed, and some was expected");
        assert_eq!(summary.differences(), [missed("screenshot"), missed("network")]);
        assert!(summary.is_drained() && !summary.agree);
    }

    #[test]
    fn a_run_between_two_others_is_what_they_leave() {
        let mut both = hub();
        both.kinds.values_mut().for_each(|rows| *rows *= 2);
        (both.stored, both.missing) = (38, 1);
        let first = both.without(&hub());
        assert_eq!((first.kinds, first.stored, first.missing), (hub().kinds, 19, 1));
    }
}
