//! Async: `muster-relay enroll TOKEN`: from a join token to a member of the mesh; and from then on a certificate that renews itself.

use std::{path::Path, sync::Arc};

use muster_certs::{Keys, Name, SystemTime, Time, Trusted};
use muster_mesh::{
    asking::{By, Way, Ways},
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

/// The ways of a running relay: its own line to the hub, and the hub's door once its certificate has ended.
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
        if self.keys.check_time(self.clock.now().wall_ms).is_ok() {
            return Ok(vec![By::Line(&self.line)]);
        }
        let doors = doors::ways(&self.home, &self.keys, &RelayList::default(), &self.door)?;
        Ok(doors.into_iter().map(By::Door).collect())
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
