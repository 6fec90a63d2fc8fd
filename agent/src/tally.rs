//! Quiet: how far the batches made since the start have come, and how long their ways took, for those who compare the stages.

use std::collections::{BTreeMap, VecDeque};

use muster_mesh::{
    ids::SpoolId,
    ranges::Ranges,
    record::{KIND_NAMES, Record},
};
use serde_json::{Map, Value, json};

/// Batches that are followed at the same time: hours of them without a relay. Later ones are counted as made, and as not followed.
const FOLLOWED_MAX: usize = 10_000;
/// Times that the percentiles are made of: the newest.
const TIMES_MAX: usize = 4_096;

/// Batches and their records, by how far they have come. What the hub has, the branch had.
#[derive(Debug, Default)]
pub struct Tally {
    made: Counted,
    relay: Counted,
    hub: Counted,
    /// Numbers that came back from a relay or the hub.
    returned: u64,
    not_followed: u64,
    /// Made, and not in the hub yet.
    followed: BTreeMap<(SpoolId, u64), Followed>,
    to_relay: Times,
    to_hub: Times,
}

#[derive(Debug, Clone, Default)]
struct Counted {
    batches: u64,
    records: [u64; KIND_NAMES.len()],
}

#[derive(Debug)]
struct Followed {
    records: [u16; KIND_NAMES.len()],
    /// When it was committed here, boot clock.
    made_ms: u64,
    in_branch: bool,
}

/// The newest times, in milliseconds.
#[derive(Debug, Default)]
struct Times(VecDeque<u64>);

impl Tally {
    /// A batch was committed here. Times are of the boot clock, in milliseconds.
    pub fn made(&mut self, spool: SpoolId, seq: u64, records: &[Record], now_ms: u64) {
        let mut kinds = [0; KIND_NAMES.len()];
        records.iter().for_each(|record| kinds[record.tag()] += 1);
        self.made.add(&kinds);
        if self.followed.len() < FOLLOWED_MAX {
            self.followed.insert((spool, seq), Followed { records: kinds, made_ms: now_ms, in_branch: false });
        } else {
            self.not_followed += 1;
        }
    }

    /// A relay has it on its disk: it acked it, or claims it.
    pub fn relay(&mut self, spool: SpoolId, seq: u64, now_ms: u64) {
        let Some(followed) = self.followed.get_mut(&(spool, seq)) else { return };
        if !followed.in_branch {
            followed.in_branch = true;
            self.relay.add(&followed.records);
            self.to_relay.add(now_ms.saturating_sub(followed.made_ms));
        }
    }

    /// The hub has these of a spool.
    pub fn hub(&mut self, spool: SpoolId, stored: &Ranges, now_ms: u64) {
        for (first, last) in stored.iter() {
            let arrived: Vec<u64> = self.followed.range((spool, first)..=(spool, last)).map(|(&(_, seq), _)| seq).collect();
            for seq in arrived {
                self.arrived(spool, seq, now_ms);
            }
        }
    }

    fn arrived(&mut self, spool: SpoolId, seq: u64, now_ms: u64) {
        let Some(followed) = self.followed.remove(&(spool, seq)) else { return };
        if !followed.in_branch {
            self.relay.add(&followed.records);
        }
        self.hub.add(&followed.records);
        self.to_hub.add(now_ms.saturating_sub(followed.made_ms));
    }

    /// Numbers came back; they are sent again.
    pub fn returned(&mut self, numbers: u64) {
        self.returned = self.returned.saturating_add(numbers);
    }

    pub fn to_json(&self) -> Value {
        json!({
            "made": self.made.to_json(),
            "relay": self.relay.to_json(),
            "hub": self.hub.to_json(),
            "returned": self.returned,
            "not_followed": self.not_followed,
            "travel_ms": {
                "to_relay_p50": self.to_relay.percentile(50), "to_relay_p99": self.to_relay.percentile(99),
                "to_hub_p50": self.to_hub.percentile(50), "to_hub_p99": self.to_hub.percentile(99),
            },
        })
    }
}

impl Counted {
    fn add(&mut self, kinds: &[u16; KIND_NAMES.len()]) {
        self.batches += 1;
        self.records.iter_mut().zip(kinds).for_each(|(sum, &more)| *sum += u64::from(more));
    }

    fn to_json(&self) -> Value {
        let kinds: Map<String, Value> = KIND_NAMES.iter().zip(self.records).map(|(name, count)| ((*name).into(), count.into())).collect();
        json!({ "batches": self.batches, "kinds": kinds })
    }
}

impl Times {
    fn add(&mut self, ms: u64) {
        if self.0.len() == TIMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(ms);
    }

    /// None: nothing has come there yet.
    fn percentile(&self, percent: usize) -> Option<u64> {
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use muster_mesh::record::{Capability, Kind, Session};

    use super::*;

    const SPOOL: SpoolId = SpoolId([7; 16]);

    fn two_records() -> Vec<Record> {
        let able = Capability { what: "window".into(), able: true, why: String::new() };
        vec![Record { at: 0, kind: Kind::Session(Session::Start) }, Record { at: 0, kind: Kind::Capability(able) }]
    }

    fn counts(tally: &Tally) -> [(u64, u64); 3] {
        let said = tally.to_json();
        ["made", "relay", "hub"].map(|stage| (said[stage]["batches"].as_u64().unwrap(), said[stage]["kinds"]["session"].as_u64().unwrap()))
    }

    #[test]
    fn each_batch_is_counted_once_at_each_stage() {
        let mut tally = Tally::default();
        (1..=3).for_each(|seq| tally.made(SPOOL, seq, &two_records(), 1_000));
        tally.relay(SPOOL, 1, 1_003);
        tally.relay(SPOOL, 1, 1_900);
        tally.relay(SPOOL, 9, 1_900);
        assert_eq!(counts(&tally), [(3, 3), (1, 1), (0, 0)]);
        tally.hub(SPOOL, &Ranges::of(1, 2), 3_000);
        tally.hub(SPOOL, &Ranges::of(1, 2), 9_000);
        tally.hub(SpoolId([8; 16]), &Ranges::of(1, 9), 9_000);
        assert_eq!(counts(&tally), [(3, 3), (2, 2), (2, 2)], "the second came by a claim: the hub's word is enough for both");
        assert_eq!(tally.to_json()["travel_ms"]["to_relay_p99"], 3);
        assert_eq!(tally.to_json()["travel_ms"]["to_hub_p50"], 2_000);
    }

    #[test]
    fn a_long_outage_is_bounded_and_said() {
        let mut tally = Tally::default();
        (0..FOLLOWED_MAX as u64 + 5).for_each(|seq| tally.made(SPOOL, seq + 1, &[], 0));
        assert_eq!((tally.followed.len(), tally.to_json()["not_followed"].as_u64()), (FOLLOWED_MAX, Some(5)));
    }

    #[test]
    fn percentiles_are_of_real_times() {
        let mut times = Times::default();
        assert_eq!(times.percentile(50), None);
        (1..=100).for_each(|ms| times.add(ms));
        assert_eq!((times.percentile(50), times.percentile(99)), (Some(50), Some(99)));
    }
}
