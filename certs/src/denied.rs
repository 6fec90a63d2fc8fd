//! Quiet: whom nobody takes any more, by name, and from which issue on somebody of that name is welcome again.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::collections::BTreeMap;

use crate::identity::Name;
use crate::issuer::BACKDATED_MS;
use crate::leaf::{Leaf, LeafError};

/// Names, and before when a certificate must have been issued to be refused (milliseconds UTC).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied(BTreeMap<Name, i64>);

impl Denied {
    /// Of several entries of one name the latest counts.
    pub fn new(entries: impl IntoIterator<Item = (Name, i64)>) -> Denied {
        let mut denied = Denied::default();
        for (name, issued_before_ms) in entries {
            let before = denied.0.entry(name).or_insert(issued_before_ms);
            *before = issued_before_ms.max(*before);
        }
        denied
    }

    /// Fails for a certificate that was issued before its name was denied. By our profile it was issued ten minutes after it begins.
    pub fn check(&self, leaf: &Leaf) -> Result<(), LeafError> {
        let issued_ms = leaf.not_before_ms.saturating_add(BACKDATED_MS);
        match self.0.get(&leaf.identity.name) {
            Some(before_ms) if issued_ms < *before_ms => Err(LeafError::Denied { found: Box::new(leaf.identity.clone()) }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether this name is denied at all.
    pub fn names(&self, name: &Name) -> bool {
        self.0.contains_key(name)
    }

    /// Each name, and before when its certificates must have been issued to be refused.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, i64)> {
        self.0.iter().map(|(name, before_ms)| (name, *before_ms))
    }

    /// How many names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn what_was_issued_before_is_refused_and_what_was_issued_after_is_not() {
        let name: Name = "site/oslo/relay/oslo-1".parse().unwrap();
        let identity = Identity::new("muster.test", name.clone()).unwrap();
        let issued_at = |at_ms: i64| Leaf {
            identity: identity.clone(),
            not_before_ms: at_ms - BACKDATED_MS,
            not_after_ms: at_ms + 1_000_000,
            serial: String::new(),
            issuer: None,
        };
        let denied = Denied::new([(name.clone(), 5_000), (name.clone(), 7_000), (name, 6_000)]);
        assert!(matches!(denied.check(&issued_at(6_999)), Err(LeafError::Denied { .. })));
        assert_eq!(denied.check(&issued_at(7_000)), Ok(()));
        assert_eq!(Denied::default().check(&issued_at(0)), Ok(()));
    }
}
