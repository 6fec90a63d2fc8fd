//! Async: `muster-agent enroll TOKEN`: from a join token to a member of the mesh; and the ways by which a running agent asks the hub.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_certs::{Keys, Name, SystemTime, Time, Trusted};
use muster_mesh::{
    asking::{By, Way, Ways},
    complaint::Complaint,
    control,
    door::Standing,
    doors,
    join::{JoinToken, Kind},
    member::{Home, Member},
    papers::Papers,
    quic::{Kernel, Network, ask_at_door},
    state_dir::StateDir,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::uplink::Link;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longer than a relay waits for the hub.
const PATIENCE: Duration = Duration::from_secs(40);
/// Asks that wait for the uplink; there is one task that asks.
pub const ASKS_WAITING_MAX: usize = 1;

/// Joins with a token, as whom the hub says; `again`: as who it is already. The state folder must not be in use.
pub async fn enroll(state: &Path, token: &str, again: bool) -> anyhow::Result<Member> {
    let todo = "Ask whoever looks after the mesh for a new one";
    let token: JoinToken = token.parse().map_err(|error| Complaint::new(format!("{error}"), todo))?;
    if token.kind != Kind::Agent {
        return Err(Complaint::new("this join token is for a branch office's relay", todo).into());
    }
    let state = StateDir::open(state, "agent")?;
    control::check_folder(state.path())?;
    let home = Home::of(state.path());
    let wanted = doors::wanted(&home, &token, again)?;
    let door =
        |address: &str, name: &Name, trusted: &Trusted| Ok(AtDoor::new(Arc::new(Kernel), address, name, trusted, Arc::new(SystemTime)));
    doors::join(&home, &token, wanted.as_ref(), VERSION, door).await
}

/// What a person is told who has just joined.
pub fn said(member: &Member) -> String {
    let first = format!("This computer is {} now.", member.name);
    match member.standing {
        Standing::Approved => format!("{first} Start it: muster-agent run"),
        Standing::Waiting => format!("{first} An admin still has to say whose it is; until then it connects and collects nothing."),
    }
}

/// A relay's door.
struct AtDoor {
    network: Arc<dyn Network>,
    address: String,
    name: Name,
    trusted: Trusted,
    time: Time,
}

impl AtDoor {
    fn new(network: Arc<dyn Network>, address: &str, name: &Name, trusted: &Trusted, time: Time) -> AtDoor {
        AtDoor { network, address: address.to_owned(), name: name.clone(), trusted: trusted.clone(), time }
    }
}

impl Way for AtDoor {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        let asked = ask_at_door(&*self.network, &self.address, &self.trusted, &self.name, self.time.clone(), &ask).await;
        asked.map_err(|error| error.to_string())
    }
}

/// An ask on its way through the uplink.
pub struct Asked {
    pub ask: Bytes,
    pub answer: oneshot::Sender<Bytes>,
}

/// The way of a running agent: through its relay while it is connected, and at its relays' doors while it isn't, as after a certificate's end.
pub struct ThroughRelay {
    pub asks: mpsc::Sender<Asked>,
    pub linked: watch::Receiver<Link>,
    pub home: Home,
    pub keys: Arc<Keys>,
    /// Where the doors are now.
    pub papers: Arc<Papers>,
    /// To the doors.
    pub network: Arc<dyn Network>,
}

impl Ways for ThroughRelay {
    fn ways(&self) -> Result<Vec<impl Way>, String> {
        if self.linked.borrow().relay.is_some() {
            return Ok(vec![By::Line(Uplinked(&self.asks))]);
        }
        let (network, time) = (&self.network, self.keys.time());
        let door = |address: &str, name: &Name, trusted: &Trusted| Ok(AtDoor::new(network.clone(), address, name, trusted, time.clone()));
        let doors = doors::ways(&self.home, &self.keys, &self.papers.relay_list(), door)?;
        Ok(doors.into_iter().map(By::Door).collect())
    }
}

/// Through the connected relay.
struct Uplinked<'a>(&'a mpsc::Sender<Asked>);

impl Way for Uplinked<'_> {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.0.send(Asked { ask: ask.into(), answer }).await.ok()?;
            answered.await.ok()
        };
        match timeout(PATIENCE, asked).await {
            Ok(Some(answer)) => Ok(answer.to_vec()),
            Ok(None) | Err(_) => Err("the relay didn't answer".to_owned()),
        }
    }
}
