//! Async: `muster-relay enroll TOKEN`: from a join token to a member of the mesh; and from then on a certificate that renews itself.

use std::{path::Path, sync::Arc};

use muster_certs::{Keys, Name, SystemTime, Time, Trusted};
use muster_mesh::{
    asking::{Way, Ways},
    clock::Clock,
    complaint::Complaint,
    control, doors,
    join::{JoinToken, Kind},
    member::{Home, Member},
    relay_list::RelayList,
    state_dir::StateDir,
};

use crate::sync::{Line, StrangersLine};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Joins with a token, as whom the hub says; `again`: as who it is already. The state folder must not be in use.
pub async fn enroll(state: &Path, token: &str, again: bool) -> anyhow::Result<Member> {
    let todo = "Ask for a new one: muster-hub token relay";
    let token: JoinToken = token.parse().map_err(|error| Complaint::new(format!("{error}"), todo))?;
    if token.kind != Kind::Relay {
        return Err(Complaint::new("this join token is for an employee's computer", todo).into());
    }
    let state = StateDir::open(state, "relay")?;
    control::check_folder(state.path())?;
    let home = Home::of(state.path());
    let wanted = doors::wanted(&home, &token, again)?;
    doors::join(&home, &token, wanted.as_ref(), VERSION, hubs_door(Arc::new(SystemTime))).await
}

/// The ways of a running relay: its own line to the hub, while its certificate lives, and the hub's door where that comes to nothing. The hub may
/// refuse a certificate that hasn't ended: one of a CA that was retired meanwhile, or one that has ended by every clock but this computer's.
pub struct ToTheHub<L, D> {
    pub line: L,
    /// Makes a line to a door; usually [`hubs_door`].
    pub door: D,
    pub home: Home,
    pub keys: Arc<Keys>,
    pub clock: Arc<dyn Clock>,
}

impl<L, W, D> Ways for ToTheHub<L, D>
where
    L: Way,
    W: Way,
    D: Fn(&str, &Name, &Trusted) -> Result<W, String> + Send + Sync,
{
    fn ways(&self) -> Result<Vec<impl Way>, String> {
        let line = self.keys.check_time(self.clock.now().wall_ms).is_ok().then_some(&self.line);
        doors::behind(line, doors::ways(&self.home, &self.keys, &RelayList::default(), &self.door))
    }
}

/// Lines to the hub's door. A clock that stands in 1970 asks there, too.
pub fn hubs_door(time: Time) -> impl Fn(&str, &Name, &Trusted) -> Result<StrangersLine, String> + Send + Sync {
    move |address, name, trusted| StrangersLine::new(address, trusted, name, time.clone()).map_err(|error| error.to_string())
}

impl Way for Line {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        Line::ask(self, ask.into()).await.map(|answer| answer.to_vec()).map_err(|error| error.to_string())
    }
}

impl Way for StrangersLine {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        StrangersLine::ask(self, ask.into()).await.map(|answer| answer.to_vec()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use muster_certs::{Identity, Issuer, Requested, Role};
    use muster_mesh::{
        clock::{ManualClock, Reading},
        door::{Dial, Issued, Standing},
        ids::BootId,
    };

    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;
    const LIFE_MS: i64 = 86_400_000;
    const NAME: &str = "site/oslo/relay/oslo-1";

    #[tokio::test]
    async fn a_relay_asks_at_the_hubs_door_where_its_line_comes_to_nothing() {
        let state = tempfile::tempdir().unwrap();
        let home = Home::of(state.path());
        let clock = ManualClock::new(Reading { wall_ms: NOW_MS, boot_ms: 0 }, BootId([1; 16]));
        let to_the_hub = ToTheHub {
            line: Said("the line"),
            door: |_: &str, _: &Name, _: &Trusted| Ok(Said("the door")),
            keys: enrolled(&home),
            home,
            clock: Arc::new(clock.clone()),
        };
        // By its own clock the certificate lives; the hub may know better.
        assert_eq!(asked(&to_the_hub).await, ["the line", "the door"]);
        clock.advance(2 * LIFE_MS.unsigned_abs());
        assert_eq!(asked(&to_the_hub).await, ["the door"]);
    }

    /// Who is asked in turn, where nobody brings the hub's word.
    async fn asked(ways: &impl Ways) -> Vec<String> {
        let mut asked = Vec::new();
        for way in ways.ways().unwrap() {
            asked.push(String::from_utf8(way.ask(Vec::new()).await.unwrap()).unwrap());
        }
        asked
    }

    struct Said(&'static str);

    impl Way for Said {
        async fn ask(&self, _: Vec<u8>) -> Result<Vec<u8>, String> {
            Ok(self.0.into())
        }
    }

    fn enrolled(home: &Home) -> Arc<Keys> {
        let (root, issuer) = Issuer::in_memory("muster.test", NOW_MS).unwrap();
        let (request, identity) = (home.request().unwrap(), Identity::new("muster.test", NAME.parse().unwrap()).unwrap());
        let chain = issuer.issue_for(&identity, &Requested::read(&request.request).unwrap(), LIFE_MS, NOW_MS).unwrap();
        let issued = Issued {
            name: NAME.to_owned(),
            chain: chain.pem,
            roots: root.pem().to_owned(),
            join_state: 1,
            standing: Standing::Approved,
            dial: vec![Dial { address: "hub:8444".to_owned(), door: "hub:8445".to_owned(), name: "hub/hub-1".to_owned() }],
            seal: [5; 32],
        };
        let member = home.joined(&issued, &request, Role::Relay, None, Arc::new(SystemTime)).unwrap();
        member.keys(Arc::new(SystemTime)).unwrap()
    }
}
