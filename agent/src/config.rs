//! Quiet: the agent's configuration, as typed as it gets. Who the agent is stands in its certificate, never here.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use muster_certs::{Name, Role};
use muster_mesh::{complaint::Complaint, config::Bytes};
use serde::{Deserialize, Deserializer, de};

/// `agent.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of everything that is kept.
    #[serde(default = "usual_state")]
    pub state: PathBuf,
    /// This and the next two together, or none of them: then the computer was enrolled.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub roots: Option<PathBuf>,
    /// Goes on without the notice, if the policy says test mode too.
    #[serde(default)]
    pub test_mode: bool,
    /// Tried in this order, and no others. None: those that the hub names for this computer's site.
    #[serde(default)]
    pub relays: Vec<Relay>,
    #[serde(default)]
    pub queue: Queue,
    #[serde(default)]
    pub pictures: Pictures,
    pub status: Option<Status>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Host and port.
    pub address: String,
    /// Which relay must answer there, as in `site/oslo/relay/oslo-1`.
    #[serde(deserialize_with = "relay_name")]
    pub id: Name,
}

/// How much of the disk each lane may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    pub budget: Bytes,
    pub pictures_budget: Bytes,
}

/// How this computer narrows what the policy allows; the hub sees that it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pictures {
    /// No pictures at all.
    pub off: bool,
    /// Blurred, also where the policy doesn't ask for it.
    pub blur: bool,
    /// Seconds; pictures at an interval come no sooner than this.
    pub interval_min_s: u32,
    /// The program that takes them. None: `muster-shot` beside this one.
    pub helper: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Health and metrics, on this computer only.
    pub listen: SocketAddr,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { budget: Bytes(64 << 20), pictures_budget: Bytes(512 << 20) }
    }
}

fn usual_state() -> PathBuf {
    "~/.local/share/muster-agent".into()
}

impl Config {
    /// Certificate, key and roots. None: the computer was enrolled.
    pub fn files(&self) -> Option<[&Path; 3]> {
        Some([self.certificate.as_deref()?, self.key.as_deref()?, self.roots.as_deref()?])
    }

    /// What the types alone can't say.
    pub fn check(&self) -> Result<(), Complaint> {
        let given = [&self.certificate, &self.key, &self.roots].into_iter().filter(|file| file.is_some()).count();
        match (given, self.relays.is_empty()) {
            (0, _) | (3, false) => Ok(()),
            (3, true) => Err(Complaint::new("the configuration names no relay", "Add at least one as [[relays]]")),
            _ => {
                let what = "the configuration names a part of `certificate`, `key` and `roots`, which belong together";
                Err(Complaint::new(what, "Give all three, or none where this computer was enrolled"))
            }
        }
    }
}

fn relay_name<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
    let text = String::deserialize(from)?;
    let name: Name = text.parse().map_err(|error| de::Error::custom(format!("{text:?} is no relay's id: {error}")))?;
    if name.role() == Role::Relay {
        Ok(name)
    } else {
        Err(de::Error::custom(format!("{text:?} is no relay's id, as in site/oslo/relay/oslo-1")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use muster_mesh::config::load;

    use super::*;

    const EXAMPLE: &str = r#"
        state = "~/.local/share/muster-agent"
        certificate = "~/.config/muster/agent.pem"
        key = "~/.config/muster/agent.key"
        roots = "~/.config/muster/roots.pem"
        test_mode = false

        [[relays]]
        address = "relay.oslo.example.org:4433"
        id = "site/oslo/relay/oslo-1"

        [[relays]]
        address = "relay.home.example.org:4433"
        id = "site/home/relay/home-1"

        [queue]
        budget = "64 MiB"
        pictures_budget = "512 MiB"

        [pictures]
        off = false
        blur = false
        interval_min_s = 0
    "#;

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        let config: Result<Config, Complaint> = load("agent", Some(&path));
        config.and_then(|config| config.check().map(|()| config)).map_err(|complaint| complaint.to_string())
    }

    #[test]
    fn the_example_is_read() {
        let config = read(EXAMPLE).unwrap();
        assert_eq!((config.queue, config.relays.len(), config.status), (Queue::default(), 2, None));
        assert_eq!(config.pictures, Pictures::default());
        assert_eq!(config.relays[1].id.to_string(), "site/home/relay/home-1");
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (from, to, names) in [
            ("test_mode", "testmode", "testmode"),
            ("64 MiB", "64 apples", "budget"),
            ("site/home/relay/home-1", "hub/hub-1", "relay"),
            ("certificate = \"~/.config/muster/agent.pem\"", "", "certificate"),
            ("[queue]", "[status]", "listen"),
            ("off = false", "of = false", "of"),
            ("interval_min_s = 0", "interval_min_s = -1", "interval_min_s"),
        ] {
            let line = read(&EXAMPLE.replace(from, to)).expect_err(to);
            assert!(line.contains(names) && !line.contains('\n'), "{to}: {line}");
        }
        assert!(read("relays = []\ncertificate='a'\nkey='b'\nroots='c'").unwrap_err().contains("[[relays]]"));
        assert!(read("").unwrap().files().is_none(), "an enrolled computer needs no configuration");
    }
}
