//! Async: `muster-relay enroll TOKEN`: from a join token to a member of the mesh; and from then on a certificate that renews itself.

use std::{path::Path, sync::Arc};

use muster_certs::{Keys, Role, SystemTime, Trusted};
use muster_mesh::{
    asking::{Asking, Way},
    clock::Clock,
    complaint::Complaint,
    control,
    door::{Said, Wish},
    join::{JoinToken, Kind},
    member::{Home, Member},
    state_dir::StateDir,
};

use crate::sync::{Line, StrangersLine};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Joins with a token, as whom the hub says. The state folder must not be in use.
pub async fn enroll(state: &Path, token: &str) -> anyhow::Result<Member> {
    let todo = "Ask for a new one: muster-hub token relay";
    let token: JoinToken = token.parse().map_err(|error| Complaint::new(format!("{error}"), todo))?;
    if token.kind != Kind::Relay {
        return Err(Complaint::new("this join token is for an employee's computer", todo).into());
    }
    let state = StateDir::open(state, "relay")?;
    control::check_folder(state.path())?;
    let home = Home::of(state.path());
    if let Some(member) = home.member()? {
        let what = format!("this relay is {} already", member.name);
        return Err(Complaint::new(what, "To make another one of it, use another state folder").into());
    }
    let (device_key, request) = (home.device_key()?, home.request()?);
    let asking = Asking { device_key: &device_key, seal: &token.seal(), version: VERSION };
    let mut last = None;
    for (address, name) in token.doors() {
        let way = StrangersLine::new(address, &token.trusted(), &name, Arc::new(SystemTime))?;
        let wish = Wish::Enroll { token: token.id, secret: token.secret };
        match asking.ask(&way, wish, &request).await {
            Ok(Said::Issued(issued)) => return Ok(home.joined(&issued, &request, Role::Relay, None, Arc::new(SystemTime))?),
            Ok(Said::Waiting) => last = Some("the hub wants an admin to approve it first".to_owned()),
            Ok(Said::Refused(refusal)) => return Err(Complaint::new(refusal.to_string(), "").into()),
            Err(error) => last = Some(format!("{name} at {address}: {error}")),
        }
    }
    let why = last.unwrap_or_else(|| "the join token names nobody to ask".to_owned());
    Err(Complaint::new(why, "Try again; the same token still counts").into())
}

/// The way of a running relay: its own line to the hub, and the hub's door once its certificate has ended.
pub struct ToTheHub {
    pub line: Arc<Line>,
    pub home: Home,
    pub keys: Arc<Keys>,
    pub clock: Arc<dyn Clock>,
}

impl Way for ToTheHub {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        if self.keys.check_time(self.clock.now().wall_ms).is_ok() {
            return Way::ask(&self.line, ask).await;
        }
        let member = self.home.member().map_err(|error| error.to_string())?.ok_or("this relay was never enrolled")?;
        let trusted = Trusted::of_roots(&self.keys.identity().domain, &self.keys.roots_pem()).map_err(|error| error.to_string())?;
        let mut last = "no hub's door is known".to_owned();
        for dial in member.dial {
            let Ok(name) = dial.name.parse() else { continue };
            let way = match StrangersLine::new(&dial.door, &trusted, &name, self.keys.time().clone()) {
                Ok(way) => way,
                Err(error) => return Err(error.to_string()),
            };
            match Way::ask(&way, ask.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
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
