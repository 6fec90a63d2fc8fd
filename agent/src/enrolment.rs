//! Async: `muster-agent enroll TOKEN`: from a join token to a member of the mesh; and the ways by which a running agent asks the hub.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_certs::{Keys, Name, SystemTime, Time, Trusted};
use muster_mesh::{
    asking::{Way, Ways},
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

/// The ways of a running agent: through its relay while it is connected, and at its relays' doors while it isn't, as after a certificate's end, or
/// where that relay doesn't bring the hub's word: it may be cut off from the hub, not mean it well, or have gone without a word.
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
        let line = self.linked.borrow().relay.as_ref().map(|_| Uplinked(&self.asks));
        let (network, time) = (&self.network, self.keys.time());
        let door = |address: &str, name: &Name, trusted: &Trusted| Ok(AtDoor::new(network.clone(), address, name, trusted, time.clone()));
        doors::behind(line, doors::ways(&self.home, &self.keys, &self.papers.relay_list(), door))
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

#[cfg(test)]
mod tests {
    use muster_certs::{Identity, Issuer, Requested, Role};
    use muster_mesh::{
        clock::{Clock, SystemClock},
        door::{Dial, Issued},
    };

    use super::*;
    use crate::relays::RelayAddress;

    const NAME: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
    const NOBODY: &str = "nowhere";

    #[tokio::test]
    async fn an_agent_asks_at_the_doors_too_where_its_relay_brings_no_word_of_the_hubs() {
        let state = tempfile::tempdir().unwrap();
        let home = Home::of(state.path());
        let keys = enrolled(&home);
        let (tell, linked) = watch::channel(Link::default());
        let papers = Arc::new(Papers::in_memory(keys.clone()));
        // Whoever takes asks to the relay has gone.
        let through = ThroughRelay { asks: mpsc::channel(1).0, linked, home, keys, papers, network: Arc::new(Kernel) };
        let at_the_door = said(&through).await;
        assert!(at_the_door.len() == 1 && at_the_door[0] != "the relay didn't answer", "{at_the_door:?}");
        let name = "site/oslo/relay/oslo-1".parse().unwrap();
        tell.send_modify(|link| link.relay = Some(RelayAddress { address: NOBODY.to_owned(), name }));
        let connected = said(&through).await;
        assert_eq!(connected, ["the relay didn't answer".to_owned(), at_the_door[0].clone()]);
    }

    /// What comes of each way in turn; none leads anywhere.
    async fn said(ways: &impl Ways) -> Vec<String> {
        let mut said = Vec::new();
        for way in ways.ways().unwrap() {
            said.push(way.ask(Vec::new()).await.unwrap_err());
        }
        said
    }

    fn enrolled(home: &Home) -> Arc<Keys> {
        let now_ms = SystemClock::new().now().wall_ms;
        let (root, issuer) = Issuer::in_memory("muster.test", now_ms).unwrap();
        let (request, identity) = (home.request().unwrap(), Identity::new("muster.test", NAME.parse().unwrap()).unwrap());
        let chain = issuer.issue_for(&identity, &Requested::read(&request.request).unwrap(), 86_400_000, now_ms).unwrap();
        let issued = Issued {
            name: NAME.to_owned(),
            chain: chain.pem,
            roots: root.pem().to_owned(),
            join_state: 1,
            standing: Standing::Approved,
            dial: vec![Dial { address: NOBODY.to_owned(), door: NOBODY.to_owned(), name: "site/oslo/relay/oslo-1".to_owned() }],
            seal: [5; 32],
        };
        let member = home.joined(&issued, &request, Role::Agent, None, Arc::new(SystemTime)).unwrap();
        member.keys(Arc::new(SystemTime)).unwrap()
    }
}
