//! Quiet: how often a password may be tried. Counted per account *and* address, so that nobody elsewhere can lock an admin out, and each
//! wait ends by itself. A try counts before its password is checked, so that parallel ones don't slip through.

use std::{collections::HashMap, net::IpAddr};

/// Tries before the first wait.
const FREE: u32 = 5;
const WAIT_MIN_MS: i64 = 1_000;
const WAIT_MAX_MS: i64 = 30_000;
/// A row is forgotten after this time without a try.
const FORGOTTEN_MS: i64 = 15 * 60 * 1_000;
/// Rows kept; beyond them a flood of names shares one row per address.
const ROWS_MAX: usize = 10_000;
/// No name of an account is longer, so longer ones share a row.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Lockout {
    tries: HashMap<(String, IpAddr), Tries>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    failed: u32,
    next_ms: i64,
    last_ms: i64,
}

impl Lockout {
    /// Counts a try as failed. Err: not now, but in so many milliseconds.
    pub fn begin(&mut self, name: &str, address: IpAddr, now_ms: i64) -> Result<(), i64> {
        if self.tries.len() >= ROWS_MAX {
            self.tries.retain(|_, tries| now_ms.saturating_sub(tries.last_ms) < FORGOTTEN_MS);
        }
        let key = self.key(name, address);
        let tries = self.tries.entry(key).or_default();
        if now_ms.saturating_sub(tries.last_ms) >= FORGOTTEN_MS {
            *tries = Tries::default();
        }
        if now_ms < tries.next_ms {
            return Err(tries.next_ms - now_ms);
        }
        tries.failed += 1;
        tries.last_ms = now_ms;
        if tries.failed >= FREE {
            let wait_ms = WAIT_MIN_MS << (tries.failed - FREE).min(8);
            tries.next_ms = now_ms + wait_ms.min(WAIT_MAX_MS);
        }
        Ok(())
    }

    /// The password was right.
    pub fn succeed(&mut self, name: &str, address: IpAddr) {
        let key = self.key(name, address);
        self.tries.remove(&key);
    }

    fn key(&self, name: &str, address: IpAddr) -> (String, IpAddr) {
        let key = (name.to_owned(), address);
        let shared = name.len() > NAME_BYTES_MAX || (self.tries.len() >= ROWS_MAX && !self.tries.contains_key(&key));
        if shared { (String::new(), address) } else { key }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn wrong_passwords_make_one_wait_and_nobody_elsewhere() {
        let mut lockout = Lockout::default();
        for _ in 0..FREE {
            assert_eq!(lockout.begin("kari", HERE, 1_000), Ok(()));
        }
        assert_eq!(lockout.begin("kari", HERE, 1_000), Err(1_000));
        assert_eq!(lockout.begin("kari", THERE, 1_000), Ok(()));
        assert_eq!(lockout.begin("ola", HERE, 1_000), Ok(()));
        assert_eq!(lockout.begin("kari", HERE, 2_000), Ok(()));
        assert_eq!(lockout.begin("kari", HERE, 2_000), Err(2_000));
        lockout.succeed("kari", HERE);
        assert_eq!(lockout.begin("kari", HERE, 2_000), Ok(()));
    }

    #[test]
    fn no_wait_is_longer_than_half_a_minute_and_memory_is_bounded() {
        let mut lockout = Lockout::default();
        let mut now_ms = 0;
        for _ in 0..100 {
            if let Err(wait_ms) = lockout.begin("kari", HERE, now_ms) {
                assert!(wait_ms <= WAIT_MAX_MS);
                now_ms += wait_ms;
            }
        }
        for i in 0..2 * ROWS_MAX {
            let _ = lockout.begin(&i.to_string(), HERE, now_ms);
        }
        assert!(lockout.tries.len() <= ROWS_MAX + 1);
    }
}
