//! Quiet: the computer's own addresses, told when observing them begins and when they change.

use muster_mesh::{
    clock::Reading,
    record::{Kind, Network, Record},
};

/// A laptop has a handful; a record holds at most 64.
pub const ADDRESSES_MAX: usize = 32;

/// What was told last.
#[derive(Debug, Default)]
pub struct Addresses {
    told: Option<Vec<String>>,
}

impl Addresses {
    /// Takes what the computer has now. None: it can't be seen.
    pub fn tick(&mut self, now: Reading, seen: Option<Vec<String>>) -> Option<Record> {
        let mut seen = seen?;
        seen.truncate(ADDRESSES_MAX);
        if self.told.as_ref() == Some(&seen) {
            return None;
        }
        self.told = Some(seen.clone());
        Some(Record { at: now.wall_ms, kind: Kind::Network(Network { addresses: seen }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_at_the_start_and_at_each_change() {
        let mut addresses = Addresses::default();
        let mut told = |seen: Option<&[&str]>| {
            let seen = seen.map(|seen| seen.iter().map(|each| (*each).to_owned()).collect());
            let record = addresses.tick(Reading { wall_ms: 1, boot_ms: 1 }, seen);
            record.map(|record| if let Kind::Network(network) = record.kind { network.addresses } else { panic!() })
        };
        assert_eq!(told(None), None);
        assert_eq!(told(Some(&[])).as_deref(), Some(&[][..]), "no address is an answer too");
        assert_eq!(told(Some(&["10.0.0.1"])), Some(vec!["10.0.0.1".into()]));
        assert_eq!(told(Some(&["10.0.0.1"])), None);
        assert_eq!(told(None), None, "what can't be seen for a moment is no change");
        assert_eq!(told(Some(&["10.0.0.1"])), None);
        let many = ["10.0.0.1"; 90];
        assert_eq!(told(Some(&many)).map(|told| told.len()), Some(ADDRESSES_MAX));
    }
}
