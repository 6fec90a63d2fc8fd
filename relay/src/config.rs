//! Quiet: the relay's configuration, fixed at the start. Its name and site are not in it: they are in its certificate.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_certs::{Name, Role, identity::check_label};
use muster_mesh::{complaint::Complaint, config::Bytes, ids::Lane, limits, quic::Tuning};
use serde::Deserialize;

use crate::sync::HubAddress;

/// `relay.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of everything that the relay keeps.
    pub state: PathBuf,
    pub agents: AgentsConfig,
    #[serde(default)]
    pub buffer: BufferConfig,
    pub door: Option<DoorConfig>,
    #[serde(default)]
    pub hub: HubConfig,
    #[serde(default)]
    pub status: StatusConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsConfig {
    /// UDP.
    pub listen: SocketAddr,
    /// This and the next two together, or none of them: then the relay was enrolled.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub roots: Option<PathBuf>,
    /// Other sites whose agents may deliver here, besides those that the hub names (`muster-hub relay guests`).
    #[serde(default)]
    pub guests: Vec<String>,
    #[serde(default)]
    pub network: Tuning,
}

/// How much may lie here: what the hub lacks is never deleted for it, agents are refused instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BufferConfig {
    pub budget: Bytes,
    pub pictures_budget: Bytes,
}

impl Default for BufferConfig {
    fn default() -> Self {
        BufferConfig { budget: Bytes(20 << 30), pictures_budget: Bytes(60 << 30) }
    }
}

impl BufferConfig {
    pub fn of(&self, lane: Lane) -> Bytes {
        match lane {
            Lane::Telemetry => self.budget,
            Lane::Pictures => self.pictures_budget,
        }
    }
}

/// Where agents come that have no certificate yet, or whose certificate has ended. Without it nobody can come so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoorConfig {
    /// UDP.
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// `host:port`; an enrolled relay knows it.
    pub address: Option<String>,
    /// As its certificate says it: `hub/hub-1`; an enrolled relay knows it.
    pub id: Option<String>,
    pub interval_s: u64,
}

impl Default for HubConfig {
    fn default() -> Self {
        HubConfig { address: None, id: None, interval_s: limits::SYNC_EVERY.as_secs() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusConfig {
    pub listen: SocketAddr,
}

impl Default for StatusConfig {
    fn default() -> Self {
        StatusConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9465)) }
    }
}

/// POSTs are at most this far apart: beyond it presence would be "no signal".
const INTERVAL_S_MAX: u64 = 10;
/// Eight segments of the smallest size.
const BUDGET_MIN: u64 = (limits::BUDGET_SEGMENTS_MIN * limits::POST_BYTES_MAX) as u64;

impl Config {
    /// What the types alone can't say.
    pub fn check(&self) -> Result<(), Complaint> {
        self.hub_address()?;
        let agents = &self.agents;
        let given = [&agents.certificate, &agents.key, &agents.roots].into_iter().filter(|file| file.is_some()).count();
        if given % 3 != 0 {
            let fault = "`certificate`, `key` and `roots` belong together";
            return Err(wrong("agents", fault, "Give all three, or none where this relay was enrolled"));
        }
        for guest in &self.agents.guests {
            check_label(guest)
                .map_err(|error| wrong("agents.guests", &error.to_string(), "Write sites as their agents' certificates have them"))?;
        }
        if !(1..=INTERVAL_S_MAX).contains(&self.hub.interval_s) {
            return Err(wrong("hub.interval_s", &format!("{} is not 1 to {INTERVAL_S_MAX}", self.hub.interval_s), "Correct it there"));
        }
        for (field, budget) in [("buffer.budget", self.buffer.budget), ("buffer.pictures_budget", self.buffer.pictures_budget)] {
            if budget.get() < BUDGET_MIN {
                return Err(wrong(field, &format!("it is below {} MiB, eight of the smallest files", BUDGET_MIN >> 20), "Give it more"));
            }
        }
        Ok(())
    }

    /// Certificate, key and roots. None: the relay was enrolled.
    pub fn files(&self) -> Option<[&Path; 3]> {
        let AgentsConfig { certificate, key, roots, .. } = &self.agents;
        Some([certificate.as_deref()?, key.as_deref()?, roots.as_deref()?])
    }

    /// The hub that must answer, and where. None: an enrolled relay knows it.
    pub fn hub_address(&self) -> Result<Option<HubAddress>, Complaint> {
        let (address, id) = match (&self.hub.address, &self.hub.id) {
            (Some(address), Some(id)) => (address.clone(), id),
            (None, None) => return Ok(None),
            _ => return Err(wrong("hub", "`address` and `id` belong together", "Give both, or none where this relay was enrolled")),
        };
        let todo = "Write it as its certificate says it, like hub/hub-1";
        let name: Name = id.parse().map_err(|error: muster_certs::IdentityError| wrong("hub.id", &error.to_string(), todo))?;
        if name.role() == Role::Hub {
            Ok(Some(HubAddress { address, name }))
        } else {
            Err(wrong("hub.id", &format!("{name} is no hub"), todo))
        }
    }

    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.hub.interval_s)
    }
}

/// Segments of a lane: the usual size, or smaller so that a small budget still holds eight.
pub fn segment_bytes(budget: Bytes) -> u64 {
    (budget.get() / limits::BUDGET_SEGMENTS_MIN as u64).clamp(limits::POST_BYTES_MAX as u64, limits::RELAY_SEGMENT_BYTES as u64)
}

fn wrong(field: &str, fault: &str, todo: &str) -> Complaint {
    Complaint::new(format!("the configuration, `{field}`: {fault}"), todo)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn load(change: impl Fn(String) -> String) -> Result<Config, Complaint> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.toml");
        fs::write(&path, change(EXAMPLE.to_owned())).unwrap();
        let config: Config = muster_mesh::config::load("relay", Some(&path))?;
        config.check().map(|()| config)
    }

    const EXAMPLE: &str = r#"
state = "/var/lib/muster-relay"
[agents]
listen = "0.0.0.0:4433"
certificate = "/etc/muster/relay.pem"
key = "/etc/muster/relay.key"
roots = "/etc/muster/roots.pem"
guests = ["home"]
[buffer]
budget = "20 GiB"
pictures_budget = "60 GiB"
[hub]
address = "hub.example.org:8444"
id = "hub/hub-1"
interval_s = 5
[status]
listen = "127.0.0.1:9465"
"#;

    #[test]
    fn the_example_is_read() {
        let config = load(|text| text).unwrap();
        assert_eq!(config.state, Path::new("/var/lib/muster-relay"));
        assert_eq!((config.buffer.of(Lane::Telemetry).get(), config.interval().as_secs()), (20 << 30, 5));
        assert_eq!(config.hub_address().unwrap().unwrap().name.to_string(), "hub/hub-1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, named) in [
            ("interval_s = 5", "interval_s = 60", "`hub.interval_s`"),
            ("hub/hub-1", "site/oslo/relay/oslo-1", "`hub.id`"),
            ("hub/hub-1", "Hub 1", "`hub.id`"),
            ("\"home\"", "\"Home Office\"", "`agents.guests`"),
            ("20 GiB", "1 MiB", "`buffer.budget`"),
            ("guests", "gests", "gests"),
            ("key = \"/etc/muster/relay.key\"\n", "", "`agents`"),
            ("id = \"hub/hub-1\"\n", "", "`hub`"),
            ("0.0.0.0:4433", "4433", "listen"),
        ] {
            let line = load(|text| text.replace(from, to)).unwrap_err().to_string();
            assert!(line.contains(named), "{to}: {line}");
        }
    }

    #[test]
    fn a_small_budget_has_smaller_segments() {
        assert_eq!(segment_bytes(Bytes(20 << 30)), 64 << 20);
        assert_eq!(segment_bytes(Bytes(128 << 20)), 16 << 20);
        assert_eq!(segment_bytes(Bytes(64 << 20)), 8 << 20);
    }
}
