//! Async: at the doors of others: joining with a token, and asking there where no connection carries an ask.
//!
//! Which line leads to a door (QUIC to a relay's, HTTPS to the hub's) is the caller's: `door` makes one to an address, where exactly that name must
//! answer, with what is trusted behind it.

use std::sync::Arc;

use muster_certs::{Identity, Keys, Name, SystemTime, Trusted};

use crate::{
    asking::{Asking, Way},
    complaint::Complaint,
    door::{Said, Wish},
    ids::Version,
    join::JoinToken,
    member::{Home, Member},
    relay_list::RelayList,
    seal::SealTo,
};

/// Whom a token may make of this folder's program: anybody, or `again` only who it is already, with the key and the queue that it has. So a mesh
/// whose root was replaced gets its members back.
pub fn wanted(home: &Home, token: &JoinToken, again: bool) -> anyhow::Result<Option<Identity>> {
    match (home.member()?, again) {
        (None, false) => Ok(None),
        (Some(member), true) => Ok(Some(Identity::new(&token.domain, member.name)?)),
        (Some(member), false) => {
            let todo = "After a change of the mesh's root give --again; to become somebody else, use another state folder";
            Err(Complaint::new(format!("this is {} already", member.name), todo).into())
        }
        (None, true) => Err(Complaint::new("nobody was enrolled here before", "Leave out --again").into()),
    }
}

/// Joins with a token, as whom the hub says: at the first of its doors that answers. `wanted`: who this has been, and must stay.
pub async fn join<W: Way>(
    home: &Home,
    token: &JoinToken,
    wanted: Option<&Identity>,
    version: &str,
    door: impl Fn(&str, &Name, &Trusted) -> Result<W, String>,
) -> anyhow::Result<Member> {
    let (device_key, request) = (home.device_key()?, home.request()?);
    let asking = Asking { device_key: &device_key, seal: &SealTo(token.seal), version, bundle: Version::default() };
    let mut why = "the join token names nobody to ask".to_owned();
    for (address, name) in token.doors() {
        let wish = Wish::Enroll { token: token.id, secret: token.secret };
        let said = match door(address, &name, &token.trusted()) {
            Ok(way) => asking.ask(&way, wish, &request).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match said {
            Ok(Said::Issued(issued)) => return Ok(home.joined(&issued, &request, token.kind.role(), wanted, Arc::new(SystemTime))?),
            Ok(Said::Waiting) => why = "the hub wants an admin to approve it first".to_owned(),
            Ok(Said::Refused(refusal)) => return Err(Complaint::new(refusal.to_string(), "").into()),
            Err(error) => why = format!("{name} at {address}: {error}"),
        }
    }
    Err(Complaint::new(why, "Try again; the same token still counts").into())
}

/// Brings a member's ask to the first of the doors it knows that answers: for an agent those of `relays`, too.
pub async fn ask<W: Way>(
    home: &Home,
    keys: &Keys,
    relays: &RelayList,
    ask: Vec<u8>,
    door: impl Fn(&str, &Name, &Trusted) -> Result<W, String>,
) -> Result<Vec<u8>, String> {
    let member = home.member().map_err(|error| error.to_string())?.ok_or("this program was never enrolled")?;
    let trusted = Trusted::of_roots(&keys.identity().domain, &keys.roots_pem()).map_err(|error| error.to_string())?;
    let dials = match &member.name {
        Name::Agent { site, .. } => relays.dials(site, &member.dial),
        Name::Relay { .. } | Name::Hub { .. } | Name::Control { .. } => member.dial,
    };
    let mut why = "no door is known".to_owned();
    for dial in dials {
        let Ok(name) = dial.name.parse() else { continue };
        let answered = match door(&dial.door, &name, &trusted) {
            Ok(way) => way.ask(ask.clone()).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(answer) => return Ok(answer),
            Err(error) => why = error,
        }
    }
    Err(why)
}
