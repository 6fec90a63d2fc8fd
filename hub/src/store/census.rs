//! Async: how many of those who were enrolled stand how, for monitoring: an admin is waited for, or is not.

use sqlx::Row;

use super::{Store, StoreError};

/// Each member is counted once, under what weighs most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub members: i64,
    /// A computer that is nobody's yet.
    pub unapproved: i64,
    /// Somebody whose certificate had ended too often.
    pub waiting: i64,
    /// Two disks with one device's key.
    pub cloned: i64,
    pub denied: i64,
}

impl Store {
    pub async fn census(&self) -> Result<Census, StoreError> {
        let count = "SELECT CASE WHEN denied_ms IS NOT NULL THEN 'denied' WHEN cloned_ms IS NOT NULL THEN 'cloned' \
                     WHEN waits_ms IS NOT NULL THEN 'waiting' WHEN approved = 0 THEN 'unapproved' ELSE 'member' END AS standing, COUNT(*) \
                     FROM members GROUP BY 1";
        let mut census = Census::default();
        for row in sqlx::query(count).fetch_all(&self.readers).await? {
            let (standing, found): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            match standing.as_str() {
                "denied" => census.denied = found,
                "cloned" => census.cloned = found,
                "waiting" => census.waiting = found,
                "unapproved" => census.unapproved = found,
                _ => census.members = found,
            }
        }
        Ok(census)
    }
}

impl Census {
    /// Told as `muster_hub_members{standing}`, the empty ones too: what was never there can't be seen to rise.
    pub fn tell(&self) {
        let Census { members, unapproved, waiting, cloned, denied } = *self;
        let counts = [("member", members), ("unapproved", unapproved), ("waiting", waiting), ("cloned", cloned), ("denied", denied)];
        for (standing, count) in counts {
            metrics::gauge!("muster_hub_members", "standing" => standing).set(count as f64);
        }
    }
}
