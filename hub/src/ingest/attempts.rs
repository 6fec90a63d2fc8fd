//! Quiet: attempts to bring a picture from its envelope to its row, each under a name of its own in the object store.
//!
//! An attempt that put its object and couldn't commit (the database was busy, the relay's POST was stale) is lent to the next POST that
//! brings the same envelope: so pictures get on even where a slow store lets only a few through per POST. One POST has it at a time. Whoever
//! loses sight of one leaves an object that no row names, and the strays' sweep takes it.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use muster_mesh::ids::SpoolId;

use super::plan::SpoolKey;
use crate::store::NewObject;

/// An attempt that is older than this may not commit: long before anyone takes its object for a stray.
pub const AGE_MAX: Duration = Duration::from_secs(600);
/// One that is older than this isn't begun with again: it would hardly commit in time.
const LENT_AGE_MAX: Duration = Duration::from_secs(300);
/// Attempts that wait; beyond them an object is put again.
const WAITING_MAX: usize = 4_096;

/// One attempt, whose object is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub object: NewObject,
    /// The hub's boot clock, in milliseconds: it never steps.
    pub born_boot_ms: u64,
}

/// What an attempt is for: the number, and the content that came under it.
pub type Of = (SpoolKey, u64, [u8; 8]);

/// Attempts that no POST has.
#[derive(Debug, Default)]
pub struct Attempts(HashMap<Of, Attempt>);

impl Attempt {
    /// A name that nobody had: the day, the spool, the number, and chance. `chance` and `id` are random.
    pub fn new(spool: SpoolId, seq: u64, now_ms: i64, now_boot_ms: u64, chance: u64, id: [u8; 16]) -> Attempt {
        let key = format!("{}/{spool}/{seq}-{chance:016x}", day_folder(now_ms));
        Attempt { object: NewObject { key, id }, born_boot_ms: now_boot_ms }
    }

    pub fn may_commit(&self, now_boot_ms: u64) -> bool {
        self.is_within(AGE_MAX, now_boot_ms)
    }

    fn is_within(&self, age: Duration, now_boot_ms: u64) -> bool {
        u128::from(now_boot_ms.saturating_sub(self.born_boot_ms)) <= age.as_millis()
    }
}

/// The spool and the number of an object, from its name. None: it isn't one of ours.
pub fn number_of(key: &str) -> Option<(SpoolId, u64)> {
    let mut folders = key.rsplit('/');
    let (seq, chance) = folders.next()?.split_once('-')?;
    let spool = folders.next()?.parse().ok()?;
    let is_dated = folders.count() == DATE_FOLDERS;
    (is_dated && chance.len() == CHANCE_DIGITS).then_some((spool, seq.parse().ok()?))
}

/// Year, month, day.
const DATE_FOLDERS: usize = 3;
const CHANCE_DIGITS: usize = 16;

/// The folder of what is put at a time: `2026/11/23`.
pub fn day_folder(now_ms: i64) -> String {
    // A clock beyond all calendars puts everything into one folder.
    Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%Y/%m/%d").to_string()
}

impl Attempts {
    /// The attempt that waits for this envelope: its object needn't be put again.
    pub fn lend(&mut self, of: &Of, now_boot_ms: u64) -> Option<Attempt> {
        self.0.remove(of).filter(|attempt| attempt.is_within(LENT_AGE_MAX, now_boot_ms))
    }

    pub fn give_back(&mut self, of: Of, attempt: Attempt, now_boot_ms: u64) {
        if self.0.len() >= WAITING_MAX {
            self.0.retain(|_, waiting| waiting.is_within(LENT_AGE_MAX, now_boot_ms));
        }
        if self.0.len() < WAITING_MAX {
            self.0.insert(of, attempt);
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_mesh::ids::DeviceId;

    use super::*;

    const NOW: i64 = 1_795_424_402_000;

    #[test]
    fn a_name_says_day_spool_and_number_and_nobody_had_it() {
        let attempt = Attempt::new(SpoolId([7; 16]), 17, NOW, 5_000, 0xab, [1; 16]);
        assert_eq!(attempt.object.key, "2026/11/23/07070707070707070707070707070707/17-00000000000000ab");
        assert_eq!(number_of(&attempt.object.key), Some((SpoolId([7; 16]), 17)));
        for other in
            ["muster-store", "2026/11/23/notes.txt", "x/17-00000000000000ab", "1/07070707070707070707070707070707/17-00000000000000ab"]
        {
            assert_eq!(number_of(other), None, "{other}");
        }
        assert_eq!(day_folder(i64::MAX), "1970/01/01");
    }

    #[test]
    fn an_attempt_is_over_after_ten_minutes() {
        let attempt = made(5_000);
        assert!(attempt.may_commit(5_000) && attempt.may_commit(605_000) && attempt.may_commit(0));
        assert!(!attempt.may_commit(605_001));
    }

    #[test]
    fn one_post_has_an_attempt_at_a_time_and_an_old_one_is_not_lent() {
        let mut attempts = Attempts::default();
        attempts.give_back(of(1), made(0), 10);
        assert_eq!(attempts.lend(&of(2), 10), None);
        assert_eq!(attempts.lend(&of(1), 10), Some(made(0)));
        assert_eq!(attempts.lend(&of(1), 10), None);
        attempts.give_back(of(1), made(0), 10);
        assert_eq!(attempts.lend(&of(1), 300_001), None);
    }

    #[test]
    fn no_more_wait_than_the_bound_and_old_ones_make_room() {
        let mut attempts = Attempts::default();
        for seq in 0..WAITING_MAX as u64 + 10 {
            attempts.give_back(of(seq), made(0), 10);
        }
        assert_eq!(attempts.0.len(), WAITING_MAX);
        attempts.give_back(of(u64::MAX), made(400_000), 400_000);
        assert_eq!(attempts.0.len(), 1);
    }

    fn made(born_boot_ms: u64) -> Attempt {
        Attempt::new(SpoolId([7; 16]), 17, NOW, born_boot_ms, 1, [2; 16])
    }

    fn of(seq: u64) -> Of {
        ((DeviceId([1; 16]), SpoolId([7; 16])), seq, [3; 8])
    }
}
