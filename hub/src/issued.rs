//! Async: which device is whose, from the list that muster-certs writes. Read again when it changes.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use muster_certs::{
    Role,
    files::FileError,
    issued::{self, IssuedError},
    issuer::leaf_life_ms,
};
use muster_mesh::{complaint::Complaint, ids::DeviceId};

use crate::store::{Store, StoreError};

/// When the certificate was issued that each device of the list has now, milliseconds UTC, or earlier than that: one that ends with its issuing CA
/// has a shorter life than others.
pub type IssuedSince = Arc<ArcSwap<HashMap<DeviceId, i64>>>;

/// The list, and what of it was read last.
pub struct Listed {
    store: Arc<Store>,
    since: IssuedSince,
    path: PathBuf,
    /// When the file was changed and how long it was, when it was read last.
    seen: Option<(SystemTime, u64)>,
}

impl Listed {
    /// Reads the list. One that isn't there yet is empty; one that can't be read is a mistake.
    pub async fn open(store: Arc<Store>, since: IssuedSince, path: PathBuf) -> anyhow::Result<Listed> {
        let mut listed = Listed { store, since, path, seen: None };
        let seen = listed.mark();
        let read = listed.read().map_err(|error| {
            Complaint::new(format!("The list of issued devices can't be used ({error})"), "Put it right, or give another as `issued`")
        })?;
        listed.take(&read).await?;
        listed.seen = seen;
        Ok(listed)
    }

    /// Looks at the file again, if it was changed. One that can't be used changes nothing.
    pub async fn look(&mut self) -> Result<(), StoreError> {
        let seen = self.mark();
        if seen == self.seen {
            return Ok(());
        }
        match self.read() {
            Ok(read) => self.take(&read).await?,
            Err(error) => tracing::warn!(%error, "the list of issued devices can't be used; what was read before stays"),
        }
        self.seen = seen;
        Ok(())
    }

    fn mark(&self) -> Option<(SystemTime, u64)> {
        let about = std::fs::metadata(&self.path).ok()?;
        Some((about.modified().ok()?, about.len()))
    }

    fn read(&self) -> Result<Vec<issued::Issued>, IssuedError> {
        match issued::read(&self.path) {
            Err(IssuedError::File(FileError::Missing(_))) => Ok(Vec::new()),
            read => read,
        }
    }

    async fn take(&self, read: &[issued::Issued]) -> Result<(), StoreError> {
        let life_ms = leaf_life_ms(Role::Agent);
        let since = read.iter().map(|line| (DeviceId(line.device), line.not_after_ms.saturating_sub(life_ms)));
        self.since.store(Arc::new(since.collect()));
        if self.store.set_listed(read).await? {
            tracing::info!(lines = read.len(), "the list of issued devices was read");
        }
        Ok(())
    }
}
