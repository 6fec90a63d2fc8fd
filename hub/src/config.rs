//! Blocking: the hub's configuration, local and fixed at the start. What is collected stands in the policy instead.

use std::{
    fmt::Display,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use muster_certs::{
    Ca,
    files::{self, FileError},
    issuer::LEAF_LIFE_MAX_MS,
};
use muster_mesh::{complaint::Complaint, config, seal::SealKey};
use serde::Deserialize;

use crate::signer::Lives;

const SEAL_KEY: &str = "seal.key";

/// `hub.toml`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of what isn't in the database: the lock, and the key of the tokens.
    pub state: PathBuf,
    pub policy: PathBuf,
    /// Which device is whose; muster-certs writes it.
    pub issued: PathBuf,
    #[serde(default)]
    pub test_mode: bool,
    pub mesh: Mesh,
    pub door: Option<Door>,
    pub signer: Option<SignerAt>,
    pub control: Option<ControlFiles>,
    pub web: Web,
    pub store: StoreAt,
    pub status: StatusAt,
}

/// Where relays come.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub roots: PathBuf,
    /// Host and port as relays dial them; without it, where it listens.
    pub address: Option<String>,
}

/// Where relays come that have no certificate yet, or whose certificate has ended. Without it nobody can come so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Door {
    pub listen: SocketAddr,
    /// Host and port as relays dial them; without it, where it listens.
    pub address: Option<String>,
}

/// The one hub that issues certificates has this.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerAt {
    /// The folder that `muster-certs init` made; `root/` may be away, and should be.
    pub ca: PathBuf,
    /// How long an agent's certificate lives, in seconds; 30 days.
    pub agent_life_s: Option<u32>,
    /// How long a relay's certificate lives, in seconds; 14 days.
    pub relay_life_s: Option<u32>,
}

/// What this hub signs with, where it isn't the signer: as `muster-certs issue control` writes it, with a number of its own for each hub.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where people come: on loopback only, with or without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    pub listen: SocketAddr,
    /// The organisation's own, PEM, with those above it behind it. This and the key together, or none of them: then it is plain HTTP.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreAt {
    /// `sqlite:///var/lib/muster-hub/muster.db`
    pub url: String,
    /// Where pictures go: a folder, or `s3://bucket/prefix`; without it `objects` in the state folder.
    pub objects: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusAt {
    pub listen: SocketAddr,
}

impl Config {
    /// Reads the file, or the usual one, and checks what needs no disk.
    pub fn load(path: Option<&Path>) -> Result<Config, Complaint> {
        let mut config: Config = config::load("hub", path)?;
        for path in [
            &mut config.state,
            &mut config.policy,
            &mut config.issued,
            &mut config.mesh.certificate,
            &mut config.mesh.key,
            &mut config.mesh.roots,
        ] {
            *path = config::expand(path);
        }
        if let Some(signer) = &mut config.signer {
            signer.ca = config::expand(&signer.ca);
        }
        for path in [&mut config.web.certificate, &mut config.web.key].into_iter().flatten() {
            *path = config::expand(path);
        }
        if let Some(control) = &mut config.control {
            (control.certificate, control.key) = (config::expand(&control.certificate), config::expand(&control.key));
        }
        config.check()?;
        Ok(config)
    }

    /// Where pictures go.
    pub fn objects(&self) -> String {
        self.store.objects.clone().unwrap_or_else(|| self.state.join("objects").to_string_lossy().into_owned())
    }

    /// The sealing key, in the state folder: what is sealed to it only this hub reads. Made when it isn't there.
    pub fn seal_key(&self) -> Result<SealKey, Complaint> {
        if let Some(kept) = self.kept_seal_key()? {
            return Ok(kept);
        }
        let made = SealKey::generate().map_err(|error| self.no_seal_key(&error))?;
        files::create_folder(&self.state).map_err(|error| self.no_seal_key(&error))?;
        match files::create_secret(&self.state.join(SEAL_KEY), (HEXLOWER.encode(&made.to_bytes()) + "\n").as_bytes()) {
            // Another program of this hub was faster.
            Err(FileError::Exists(_)) => self.seal_key(),
            Err(error) => Err(self.no_seal_key(&error)),
            Ok(()) => Ok(made),
        }
    }

    /// The sealing key as it is kept. None: it was never made.
    pub fn kept_seal_key(&self) -> Result<Option<SealKey>, Complaint> {
        let text = match files::read_secret(&self.state.join(SEAL_KEY)) {
            Ok(text) => text,
            Err(FileError::Missing(_)) => return Ok(None),
            Err(error) => return Err(self.no_seal_key(&error)),
        };
        let bytes = HEXLOWER.decode(text.trim().as_bytes()).ok();
        bytes.and_then(|bytes| SealKey::from_bytes(&bytes)).map(Some).ok_or_else(|| self.no_seal_key(&"it is none"))
    }

    fn no_seal_key(&self, why: &dyn Display) -> Complaint {
        let todo = format!("Put {} right; every join token that is out needs it", self.state.join(SEAL_KEY).display());
        Complaint::new(format!("The hub's sealing key can't be used ({why})"), todo)
    }

    /// The mesh port's host and port as relays dial them. None: it isn't known from here.
    pub fn mesh_address(&self) -> Option<String> {
        dialled(self.mesh.address.as_deref(), self.mesh.listen)
    }

    /// The door's. None: it has none, or it isn't known from here.
    pub fn door_address(&self) -> Option<String> {
        self.door.as_ref().and_then(|door| dialled(door.address.as_deref(), door.listen))
    }

    fn check(&self) -> Result<(), Complaint> {
        if self.web.certificate.is_some() != self.web.key.is_some() {
            return Err(Complaint::new("`web.certificate` and `web.key` belong together", "Give both, or none"));
        }
        let lives = self.signer.iter().flat_map(|signer| [signer.agent_life_s, signer.relay_life_s]);
        if lives.flatten().any(|seconds| i64::from(seconds) * 1_000 > LEAF_LIFE_MAX_MS) {
            let what = "`signer.agent_life_s` or `signer.relay_life_s` is longer than 90 days, and who is denied must be gone by then";
            return Err(Complaint::new(what, "Take at most 7776000, or leave it out"));
        }
        let listen = self.web.listen;
        if listen.ip().is_loopback() {
            return Ok(());
        }
        let what = format!("`web.listen` is {listen}, and people are answered on loopback only");
        Err(Complaint::new(what, format!("Take 127.0.0.1:{} and reach it through SSH", listen.port())))
    }
}

/// One that listens everywhere, or anywhere, says nothing of how it is dialled.
fn dialled(given: Option<&str>, listen: SocketAddr) -> Option<String> {
    let known = !listen.ip().is_unspecified() && listen.port() != 0;
    given.map(str::to_owned).or_else(|| known.then(|| listen.to_string()))
}

impl Web {
    /// The organisation's certificate and its key. None: plain HTTP.
    pub fn files(&self) -> Option<[&Path; 2]> {
        Some([self.certificate.as_deref()?, self.key.as_deref()?])
    }
}

impl SignerAt {
    /// The CA, with its issuing key.
    pub fn open(&self) -> Result<Ca, Complaint> {
        Ca::open(&self.ca).map_err(|error| {
            Complaint::new(format!("The hub can't issue certificates ({error})"), "Give the folder of muster-certs' CA as `signer.ca`")
        })
    }

    pub fn lives(&self) -> Lives {
        let or = |given: Option<u32>, usual: i64| given.map_or(usual, |seconds| i64::from(seconds) * 1_000);
        let usual = Lives::default();
        Lives { agent_ms: or(self.agent_life_s, usual.agent_ms), relay_ms: or(self.relay_life_s, usual.relay_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_port_beyond_loopback_is_refused_and_a_wrong_field_is_named() {
        let good = include_str!("../tests/hub.toml");
        assert!(load(good).is_ok());
        let open = load(&good.replace("127.0.0.1:8443", "0.0.0.0:8443")).unwrap_err();
        assert!(open.contains("web.listen") && open.contains("loopback"), "{open}");
        let half = load(&good.replace("127.0.0.1:8443\"", "127.0.0.1:8443\"\ncertificate = \"/etc/muster/web.pem\"")).unwrap_err();
        assert!(half.contains("web.key"), "{half}");
        let misspelt = load(&good.replace("test_mode", "testmode")).unwrap_err();
        assert!(misspelt.contains("testmode"), "{misspelt}");
    }

    #[test]
    fn each_kind_of_certificate_lives_as_long_as_was_given_for_it_or_as_usual() {
        let lives = |agent_life_s, relay_life_s| SignerAt { ca: "ca".into(), agent_life_s, relay_life_s }.lives();
        let (agent_ms, relay_ms) = (30 * 86_400_000, 14 * 86_400_000);
        assert_eq!(lives(None, None), Lives { agent_ms, relay_ms });
        assert_eq!(lives(Some(20), None), Lives { agent_ms: 20_000, relay_ms });
        assert_eq!(lives(None, Some(20)), Lives { agent_ms, relay_ms: 20_000 });
    }

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path())).map_err(|complaint| complaint.to_string())
    }
}
