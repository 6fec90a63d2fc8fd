//! Async: at the doors of others: joining with a token, and the ways of a member that asks there because no connection carries its ask.
//!
//! Which line leads to a door (QUIC to a relay's, HTTPS to the hub's) is the caller's: `door` makes one to an address, where exactly that name must
//! answer, with what is trusted behind it.

use std::sync::Arc;

use muster_certs::{Identity, Keys, Name, SystemTime, Trusted};

use crate::{
    asking::{Asking, By, Way},
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

/// Lines to the doors that a member knows, in the order in which they are tried: for an agent those of `relays`, too.
pub fn ways<W: Way>(
    home: &Home,
    keys: &Keys,
    relays: &RelayList,
    door: impl Fn(&str, &Name, &Trusted) -> Result<W, String>,
) -> Result<Vec<W>, String> {
    let member = home.member().map_err(|error| error.to_string())?.ok_or("this program was never enrolled")?;
    let trusted = Trusted::of_roots(&keys.identity().domain, &keys.roots_pem()).map_err(|error| error.to_string())?;
    let dials = match &member.name {
        Name::Agent { site, .. } => relays.dials(site, &member.dial),
        Name::Relay { .. } | Name::Hub { .. } | Name::Control { .. } => member.dial,
    };
    let (mut ways, mut why) = (Vec::new(), "no door is known".to_owned());
    for dial in dials {
        let Ok(name) = dial.name.parse() else { continue };
        match door(&dial.door, &name, &trusted) {
            Ok(way) => ways.push(way),
            Err(error) => why = error,
        }
    }
    if ways.is_empty() { Err(why) } else { Ok(ways) }
}

/// A member's own line, where it has one that may be used, and behind it the doors. An error only where there is neither.
pub fn behind<L: Way, D: Way>(line: Option<L>, doors: Result<Vec<D>, String>) -> Result<Vec<By<L, D>>, String> {
    let doors = match doors {
        Err(why) if line.is_none() => return Err(why),
        doors => doors.unwrap_or_default(),
    };
    Ok(line.into_iter().map(By::Line).chain(doors.into_iter().map(By::Door)).collect())
}
