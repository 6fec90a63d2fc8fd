//! Quiet: a set of batch numbers, kept as sorted ranges that neither touch nor overlap.

use std::fmt;

/// Numbers 1, 2, 3 … of a spool, as inclusive ranges. Grows with the holes, not with the numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Ranges {
    sorted: Vec<(u64, u64)>,
}

impl Ranges {
    pub fn new() -> Self {
        Self::default()
    }

    /// A set of one range; empty when `last < first`.
    pub fn of(first: u64, last: u64) -> Self {
        let mut ranges = Self::new();
        ranges.insert_range(first, last);
        ranges
    }

    pub fn insert(&mut self, number: u64) {
        self.insert_range(number, number);
    }

    pub fn insert_range(&mut self, mut first: u64, mut last: u64) {
        if last < first {
            return;
        }
        // Ranges from `from` up to `to` touch or overlap the new one and melt into it.
        let from = self.sorted.partition_point(|&(_, end)| end.saturating_add(1) < first);
        let to = self.sorted.partition_point(|&(start, _)| start <= last.saturating_add(1));
        if from < to {
            first = first.min(self.sorted[from].0);
            last = last.max(self.sorted[to - 1].1);
        }
        self.sorted.splice(from..to, [(first, last)]);
    }

    pub fn remove(&mut self, number: u64) {
        self.remove_range(number, number);
    }

    pub fn remove_range(&mut self, first: u64, last: u64) {
        if last < first {
            return;
        }
        let from = self.sorted.partition_point(|&(_, end)| end < first);
        let to = self.sorted.partition_point(|&(start, _)| start <= last);
        if from >= to {
            return;
        }
        let (start, end) = (self.sorted[from].0, self.sorted[to - 1].1);
        let before = (start < first).then(|| (start, first - 1));
        let after = (end > last).then(|| (last + 1, end));
        self.sorted.splice(from..to, before.into_iter().chain(after));
    }

    pub fn extend(&mut self, other: &Ranges) {
        other.iter().for_each(|(first, last)| self.insert_range(first, last));
    }

    pub fn subtract(&mut self, other: &Ranges) {
        other.iter().for_each(|(first, last)| self.remove_range(first, last));
    }

    pub fn contains(&self, number: u64) -> bool {
        self.covers(number, number)
    }

    /// Whether all of `first..=last` is in the set.
    pub fn covers(&self, first: u64, last: u64) -> bool {
        let at = self.sorted.partition_point(|&(_, end)| end < first);
        last < first || self.sorted.get(at).is_some_and(|&(start, end)| start <= first && last <= end)
    }

    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// How many numbers; at most as many as fit, since a peer may name all there are.
    pub fn count(&self) -> u64 {
        let counts = self.sorted.iter().map(|(first, last)| (last - first).saturating_add(1));
        counts.fold(0, u64::saturating_add)
    }

    /// How many ranges.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn first(&self) -> Option<u64> {
        self.sorted.first().map(|&(first, _)| first)
    }

    pub fn last(&self) -> Option<u64> {
        self.sorted.last().map(|&(_, last)| last)
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.sorted.iter().copied()
    }

    /// Each number, lowest first.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter().flat_map(|(first, last)| first..=last)
    }

    /// At most `most` ranges of what lies at or above `from`, lowest first.
    pub fn from(&self, from: u64, most: usize) -> Vec<(u64, u64)> {
        let at = self.sorted.partition_point(|&(_, end)| end < from);
        self.sorted[at..].iter().take(most).map(|&(first, last)| (first.max(from), last)).collect()
    }

    /// What both sets hold.
    pub fn intersection(&self, other: &Ranges) -> Ranges {
        let mut rest = self.clone();
        rest.subtract(other);
        let mut both = self.clone();
        both.subtract(&rest);
        both
    }

    /// What of `first..=last` is not in the set.
    pub fn missing(&self, first: u64, last: u64) -> Ranges {
        let mut missing = Ranges::of(first, last);
        missing.subtract(self);
        missing
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|(first, last)| set.insert_range(first, last));
        set
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (i, (first, last)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}–{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_melt_into_one_range() {
        let mut ranges = Ranges::of(1, 3);
        ranges.insert(5);
        assert_eq!(ranges.len(), 2);
        ranges.insert(4);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 5)]);
        ranges.remove(3);
        assert_eq!(ranges.to_string(), "1–2, 4–5");
        assert_eq!(ranges.from(2, 1), [(2, 2)]);
        assert_eq!(ranges.missing(1, 6).to_string(), "3, 6");
    }

    #[test]
    fn the_highest_number_has_no_successor() {
        let mut ranges = Ranges::of(u64::MAX, u64::MAX);
        ranges.insert(u64::MAX - 1);
        ranges.remove(u64::MAX);
        assert_eq!(ranges, Ranges::of(u64::MAX - 1, u64::MAX - 1));
        assert_eq!(Ranges::of(0, u64::MAX).count(), u64::MAX, "one less than there are: the count of all has no number");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(steps in prop::collection::vec((any::<bool>(), 1u64..40, 0u64..6), 1..60)) {
            let (mut ranges, mut set) = (Ranges::new(), BTreeSet::new());
            for (insert, first, more) in steps {
                if insert {
                    ranges.insert_range(first, first + more);
                    set.extend(first..=first + more);
                } else {
                    ranges.remove_range(first, first + more);
                    set.retain(|n| !(first..=first + more).contains(n));
                }
                prop_assert_eq!(ranges.numbers().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.1 + 1 < b.0));
                prop_assert_eq!(ranges.count(), set.len() as u64);
                prop_assert_eq!(ranges.contains(7), set.contains(&7));
                prop_assert_eq!(ranges.covers(5, 9), (5..=9).all(|n| set.contains(&n)));
            }
        }
    }
}
