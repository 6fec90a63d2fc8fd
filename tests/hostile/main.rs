//! Async: `muster-hostile MISDEED --config relay.toml`: a branch's relay in wrong hands, for the end-to-end tests. It has the certificate, the
//! name, the addresses and the memory of the enrolled relay whose configuration it is given, and speaks to agents and hub with the product's own
//! protocol; what it does otherwise is its misdeed. Each deed is a line `did: …` in its log, so that no test looks at what never happened.
#![allow(clippy::unwrap_used)]

mod branch;
mod door;
mod forger;
mod misdeed;
mod upstream;

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use muster_mesh::{
    clock::{Clock, SystemClock},
    config, log,
    message::CloseCode,
    quic::{DoorServer, Server},
};
use muster_relay::{config::Config, sync::Line, who::Who};
use tokio::signal::unix::{SignalKind, signal};

use branch::Branch;
use door::Door;
use forger::Forger;
use misdeed::Misdeed;
use upstream::Upstream;

/// The time for the goodbyes to its agents, who dial again as soon as they hear them.
const GOODBYE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() {
    log::init("hostile");
    let (misdeed, path) = arguments();
    let config: Config = config::load("relay", Some(&path)).unwrap();
    let state = config::expand(&config.state);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let now_ms = clock.now().wall_ms;
    let Who { keys, hub, home } = Who::find(&config, &state, now_ms).unwrap();
    let member = home.unwrap().member().unwrap().unwrap();
    let upstream = Arc::new(Upstream::new(Line::new(&keys, &hub).unwrap(), misdeed, clock.clone(), &state));
    let forger = Arc::new(Forger::new(&keys.identity().domain, &state, now_ms));
    let door = Arc::new(Door::new(upstream.clone(), misdeed, member.seal, &keys.identity().domain, now_ms));
    let server = Server::bind(config.agents.listen, &keys).unwrap();
    let strangers = DoorServer::bind(config.door.unwrap().listen, &keys).unwrap();
    tokio::spawn(door.clone().receive(strangers));
    tokio::spawn(upstream.clone().keep_asking());
    let branch = Arc::new(Branch { misdeed, upstream, forger, door, clock });
    tracing::info!(misdeed = misdeed.name(), "{} is in wrong hands", keys.identity());
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        () = branch.receive(&server) => {}
        _ = terminate.recv() => {}
    }
    server.close(CloseCode::Leaving, "it stops");
    let _ = tokio::time::timeout(GOODBYE, server.idle()).await;
}

fn arguments() -> (Misdeed, PathBuf) {
    let words: Vec<String> = env::args().skip(1).collect();
    let [misdeed, option, path] = words.as_slice() else { panic!("muster-hostile MISDEED --config relay.toml") };
    assert_eq!(option, "--config");
    let named = Misdeed::ALL.into_iter().find(|known| known.name() == misdeed);
    (named.unwrap_or_else(|| panic!("{misdeed} is none of {:?}", Misdeed::ALL.map(Misdeed::name))), path.into())
}
