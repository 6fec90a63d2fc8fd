//! Quiet: relays that go on speaking with this hub and go on saying that they hold less than it gives them with each answer: one that can't
//! believe what it is given, or one that keeps it from its agents.

use std::collections::BTreeMap;

/// Given so often in a row and still not held. Both lanes' POSTs may be under way when a version is new, and an answer may be lost.
pub const GIVEN_MAX: u32 = 5;
/// Who says nothing for so long isn't behind but away; relays speak every few seconds. Milliseconds.
const SILENT_MS: i64 = 5 * 60 * 1_000;

/// Everybody who was given something, by name and kind.
#[derive(Debug, Default)]
pub struct Laggards {
    given: BTreeMap<(String, u8), Given>,
}

#[derive(Debug)]
struct Given {
    times: u32,
    last_ms: i64,
}

impl Laggards {
    /// Somebody spoke and holds the newest of a kind.
    pub fn holds(&mut self, name: &str, kind: u8) {
        self.given.remove(&(name.to_owned(), kind));
    }

    /// Somebody spoke, holds less, and is given the newest. True: it has become one to tell of.
    pub fn given(&mut self, name: &str, kind: u8, now_ms: i64) -> bool {
        let given = self.given.entry((name.to_owned(), kind)).or_insert(Given { times: 0, last_ms: now_ms });
        given.last_ms = now_ms;
        given.times = given.times.saturating_add(1);
        given.times == GIVEN_MAX
    }

    /// How many are behind with a kind. Those who fell silent are forgotten.
    pub fn behind(&mut self, kind: u8, now_ms: i64) -> usize {
        self.given.retain(|_, given| now_ms.saturating_sub(given.last_ms) < SILENT_MS);
        self.given.iter().filter(|((_, of), given)| *of == kind && given.times >= GIVEN_MAX).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "site/oslo/relay/oslo-1";

    #[test]
    fn whoever_is_given_it_again_and_again_and_never_holds_it_is_told_of_once() {
        let mut laggards = Laggards::default();
        let told: Vec<bool> = (0..i64::from(GIVEN_MAX) + 3).map(|at_ms| laggards.given(NAME, 3, at_ms)).collect();
        assert_eq!(told.iter().position(|told| *told), Some(GIVEN_MAX as usize - 1));
        assert_eq!(told.iter().filter(|told| **told).count(), 1);
        assert_eq!((laggards.behind(3, 10), laggards.behind(4, 10)), (1, 0));
        laggards.holds(NAME, 3);
        assert_eq!(laggards.behind(3, 10), 0);
    }

    #[test]
    fn one_who_holds_it_after_the_first_answers_is_no_laggard() {
        let mut laggards = Laggards::default();
        for at_ms in 0..20 {
            (1..GIVEN_MAX).for_each(|_| assert!(!laggards.given(NAME, 3, at_ms)));
            laggards.holds(NAME, 3);
        }
        assert_eq!(laggards.behind(3, 20), 0);
    }

    #[test]
    fn who_falls_silent_is_away_and_not_behind() {
        let mut laggards = Laggards::default();
        (0..GIVEN_MAX).for_each(|_| assert!(laggards.behind(3, 0) == 0 && laggards.given(NAME, 3, 0) == (laggards.behind(3, 0) == 1)));
        assert_eq!((laggards.behind(3, SILENT_MS - 1), laggards.behind(3, SILENT_MS)), (1, 0));
        assert!(laggards.given.is_empty(), "nobody is remembered for ever");
    }
}
