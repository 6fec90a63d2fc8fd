//! Blocking: what ops/examples says is what the programs read.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use muster_mesh::{config::load, policy::Policy};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

#[test]
fn the_example_configurations_are_read_by_their_programs() {
    let agent: muster_agent::config::Config = load("agent", Some(&example("agent.toml"))).unwrap();
    assert_eq!((agent.relays.len(), agent.test_mode, agent.queue), (2, false, muster_agent::config::Queue::default()));
    let relay: muster_relay::config::Config = load("relay", Some(&example("relay.toml"))).unwrap();
    relay.check().unwrap();
    assert_eq!(relay.agents.guests, ["home"]);
    let hub = muster_hub::config::Config::load(Some(&example("hub.toml"))).unwrap();
    assert!(hub.web.listen.ip().is_loopback() && !hub.test_mode);
    assert_eq!(hub.store.objects.as_deref(), Some("/var/lib/muster-hub/objects"));
}

#[test]
fn the_example_policy_is_read_by_the_hub() {
    let policy = Policy::from_toml(&std::fs::read_to_string(example("policy.toml")).unwrap()).unwrap();
    assert_eq!((policy.heartbeat_s, policy.titles, policy.retention_days, policy.retention.pictures_days), (5, true, 45, 14));
    assert_eq!((policy.pictures.interval_s, policy.pictures.blur, policy.addresses), (15, true, true));
}

#[test]
fn what_stands_commented_out_in_an_example_is_a_field_too() {
    let uncommented = |name: &str, from: &[&str]| {
        let mut text = std::fs::read_to_string(example(name)).unwrap();
        for line in from {
            assert!(text.contains(&format!("# {line}")), "{name} has no {line}");
            text = text.replace(&format!("# {line}"), line);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    };
    let file = uncommented("agent.toml", &["[status]", "listen = \"127.0.0.1:9466\""]);
    assert!(load::<muster_agent::config::Config>("agent", Some(file.path())).unwrap().status.is_some());
    let file = uncommented("agent.toml", &["helper = "]);
    assert!(load::<muster_agent::config::Config>("agent", Some(file.path())).unwrap().pictures.helper.is_some());
}
