//! Quiet: the relay's configuration, fixed at the start. Its name and site are not in it: they are in its certificate.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use muster_certs::{Name, Role, identity::check_label};
use muster_mesh::{complaint::Complaint, config::Bytes, ids::Lane, limits, quic::Tuning};
use serde::Deserialize;

/// `relay.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of everything that the relay keeps.
    pub state: PathBuf,
    pub agents: AgentsConfig,
    #[serde(default)]
    pub buffer: BufferConfig,
    pub hub: HubConfig,
    #[serde(default)]
    pub status: StatusConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsConfig {
    /// UDP.
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub roots: PathBuf,
    /// Other sites whose agents may deliver here.
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

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// `host:port`
    pub address: String,
    /// As its certificate says it: `hub/hub-1`.
    pub id: String,
    #[serde(default = "usual_interval")]
    pub interval_s: u64,
}

fn usual_interval() -> u64 {
    limits::SYNC_EVERY.as_secs()
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
        self.hub_name()?;
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

    /// The hub that must answer.
    pub fn hub_name(&self) -> Result<Name, Complaint> {
        let todo = "Write it as its certificate says it, like hub/hub-1";
        let name: Name = self.hub.id.parse().map_err(|error: muster_certs::IdentityError| wrong("hub.id", &error.to_string(), todo))?;
        if name.role() == Role::Hub { Ok(name) } else { Err(wrong("hub.id", &format!("{name} is no hub"), todo)) }
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
        assert_eq!(config.hub_name().unwrap().to_string(), "hub/hub-1");
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
