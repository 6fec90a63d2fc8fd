//! Blocking: the hub's configuration, local and fixed at the start. What is collected stands in the policy instead.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use muster_mesh::{complaint::Complaint, config};
use serde::Deserialize;

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
}

/// Where people come: plain HTTP, so loopback only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    pub listen: SocketAddr,
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
        config.check()?;
        Ok(config)
    }

    /// Where pictures go.
    pub fn objects(&self) -> String {
        self.store.objects.clone().unwrap_or_else(|| self.state.join("objects").to_string_lossy().into_owned())
    }

    fn check(&self) -> Result<(), Complaint> {
        let listen = self.web.listen;
        if listen.ip().is_loopback() {
            return Ok(());
        }
        let what = format!("`web.listen` is {listen}, and people are answered without TLS on loopback only");
        Err(Complaint::new(what, format!("Take 127.0.0.1:{} and reach it through SSH", listen.port())))
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
        let misspelt = load(&good.replace("test_mode", "testmode")).unwrap_err();
        assert!(misspelt.contains("testmode"), "{misspelt}");
    }

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path())).map_err(|complaint| complaint.to_string())
    }
}
