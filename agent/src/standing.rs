//! Blocking: what must outlive a restart: the notice that was read, the pause that was asked for, the policy that holds. Owner-only files,
//! replaced in one step.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_certs::files::{self, FileError};
use muster_mesh::{
    clock::Reading,
    ids::{BootId, Version},
    notice::Acknowledged,
    policy::Policy,
};
use serde::{Deserialize, Serialize};

use crate::collect::{day::PolicyInForce, pause::Pausing};

const ACKNOWLEDGED: &str = "acknowledged.json";
const PAUSE: &str = "pause.json";
const POLICY: &str = "policy.json";

/// The files of one state folder.
#[derive(Debug, Clone)]
pub struct Standing {
    folder: PathBuf,
}

/// Why something can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Acknowledged(#[from] muster_mesh::notice::AcknowledgedError),
}

#[derive(Serialize, Deserialize)]
struct StoredPolicy {
    version: Version,
    erasure: Version,
    policy: serde_json::Value,
}

impl Standing {
    pub fn new(folder: &Path) -> Standing {
        Standing { folder: folder.to_path_buf() }
    }

    /// None: nothing was read, or the file can't be understood; then the person is asked again.
    pub fn acknowledged(&self) -> Option<Acknowledged> {
        let text = self.read(ACKNOWLEDGED)?;
        let read = Acknowledged::from_json(&text);
        read.inspect_err(|error| tracing::warn!(%error, "the answer to the notice can't be understood; it is asked for again")).ok()
    }

    pub fn keep_acknowledged(&self, acknowledged: &Acknowledged) -> Result<(), KeepError> {
        self.write(ACKNOWLEDGED, acknowledged.to_json()?.as_bytes())
    }

    /// A pause that can't be understood counts as one without an end: nobody is observed by a mistake.
    pub fn pausing(&self, now: Reading, boot: BootId) -> Pausing {
        if !self.folder.join(PAUSE).exists() {
            return Pausing::default();
        }
        let pausing = self.read(PAUSE).and_then(|text| serde_json::from_str(&text).ok());
        pausing.unwrap_or_else(|| {
            tracing::warn!("the pause on the disk can't be understood; it holds until: muster-agent resume");
            Pausing::until_resumed(now, boot)
        })
    }

    pub fn keep_pausing(&self, pausing: &Pausing) -> Result<(), KeepError> {
        self.write(PAUSE, &serde_json::to_vec(pausing)?)
    }

    /// None: none came yet, or the file can't be understood; then the relay has it.
    pub fn in_force(&self) -> Option<PolicyInForce> {
        let text = self.read(POLICY)?;
        let understood = || {
            let StoredPolicy { version, erasure, policy } = serde_json::from_str(&text).ok()?;
            let policy = Policy::from_bytes(&serde_json::to_vec(&policy).ok()?).ok()?;
            Some(PolicyInForce { version, policy, erasure })
        };
        let in_force = understood();
        if in_force.is_none() {
            tracing::warn!("the policy on the disk can't be understood; nothing is observed until the hub's comes");
        }
        in_force
    }

    pub fn keep_in_force(&self, in_force: &PolicyInForce) -> Result<(), KeepError> {
        let policy = serde_json::from_slice(&in_force.policy.to_bytes())?;
        self.write(POLICY, &serde_json::to_vec(&StoredPolicy { version: in_force.version, erasure: in_force.erasure, policy })?)
    }

    fn read(&self, name: &str) -> Option<String> {
        match fs::read_to_string(self.folder.join(name)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(name, %error, "a file of the state folder can't be read");
                None
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), KeepError> {
        Ok(files::write_secret(&self.folder.join(name), bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::collect::sense::tests::policy;

    const BOOT: BootId = BootId([1; 16]);
    const NOW: Reading = Reading { wall_ms: 1_000, boot_ms: 10 };

    #[test]
    fn a_broken_file_observes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let standing = Standing::new(dir.path());
        assert_eq!((standing.acknowledged(), standing.pausing(NOW, BOOT), standing.in_force()), (None, Pausing::default(), None));
        for name in [ACKNOWLEDGED, PAUSE, POLICY] {
            fs::write(dir.path().join(name), "{\"asked\":").unwrap();
        }
        assert!(standing.pausing(NOW, BOOT).is_on(NOW, BOOT));
        assert_eq!((standing.acknowledged(), standing.in_force()), (None, None));
    }

    #[test]
    fn files_are_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let standing = Standing::new(dir.path());
        standing.keep_pausing(&Pausing::until_resumed(NOW, BOOT)).unwrap();
        let in_force = PolicyInForce { version: Version { epoch: 1, n: 2 }, policy: policy(), erasure: Version::default() };
        standing.keep_in_force(&in_force).unwrap();
        assert_eq!(standing.in_force(), Some(in_force));
        for name in [PAUSE, POLICY] {
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
