//! Blocking: the one place for chance: a strong generator, seeded by the operating system. Quiet code gets its chance as an argument.

use std::time::Duration;

/// 16 random bytes: ids, boot ids that can't be read, names of attempts.
pub fn random_16() -> [u8; 16] {
    rand::random()
}

/// 32 random bytes: secrets and keys.
pub fn random_32() -> [u8; 32] {
    rand::random()
}

/// 10 random bytes, for [`crate::ids::SpoolId::new`].
pub fn random_10() -> [u8; 10] {
    rand::random()
}

/// Any number: the seed of a quiet core.
pub fn random_u64() -> u64 {
    rand::random()
}

/// A number in [0, 1), for choices of quiet code.
pub fn fraction() -> f64 {
    rand::random()
}

/// Full jitter: any length from zero up to `most`.
pub fn jitter(most: Duration) -> Duration {
    most.mul_f64(fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_does_not_repeat_itself() {
        let drawn: std::collections::BTreeSet<_> = (0..100).map(|_| random_16()).collect();
        assert_eq!(drawn.len(), 100);
    }

    #[test]
    fn jitter_stays_below_its_bound_and_uses_its_room() {
        let most = Duration::from_secs(10);
        let drawn: Vec<_> = (0..1_000).map(|_| jitter(most)).collect();
        assert!(drawn.iter().all(|one| *one < most));
        assert!(drawn.iter().any(|one| *one < most / 4) && drawn.iter().any(|one| *one > most / 4 * 3));
        assert_eq!(jitter(Duration::ZERO), Duration::ZERO);
    }
}
