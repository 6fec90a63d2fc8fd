//! Blocking: who this agent is, and which relays are its own: from the files that the configuration names, or from its enrolment.

use std::{path::Path, sync::Arc};

use muster_certs::{Keys, Name, Role, SystemTime};
use muster_mesh::{
    asking::Membership,
    complaint::Complaint,
    config::expand,
    ids::DeviceId,
    member::{Home, Member},
};

use crate::{
    config::Config,
    relays::{RelayAddress, Relays},
};

/// A certificate that ends within this is worth a word at the start.
const ENDS_SOON_MS: i64 = 7 * 24 * 3_600 * 1_000;

pub struct Who {
    pub keys: Arc<Keys>,
    pub device: DeviceId,
    pub relays: Relays,
    /// Some: it was enrolled, and its certificate renews itself.
    pub enrolled: Option<Enrolled>,
}

pub struct Enrolled {
    pub home: Home,
    pub member: Member,
}

impl Who {
    pub fn find(config: &Config, state: &Path, now_ms: i64) -> Result<Who, Complaint> {
        let named = |keys: Arc<Keys>, relays: Relays, enrolled| match keys.identity().name {
            Name::Agent { device, .. } => Ok(Who { keys, device: DeviceId(device), relays, enrolled }),
            other => Err(Complaint::new(format!("{other} is no agent"), "Name this computer's own files, or enrol it anew")),
        };
        let configured = config.relays.iter().map(|relay| RelayAddress { address: relay.address.clone(), name: relay.id.clone() });
        let configured: Vec<_> = configured.collect();
        let who = match config.files() {
            Some(files) => named(of_files(files)?, Relays::Configured(configured), None)?,
            None => {
                let enrolled = Enrolled::find(state)?;
                let keys = enrolled.member.keys(Arc::new(SystemTime)).map_err(|error| unusable(error.to_string()))?;
                let relays = match configured.is_empty() {
                    true => enrolled.relays(),
                    false => Relays::Configured(configured),
                };
                named(keys, relays, Some(enrolled))?
            }
        };
        // One that has ended doesn't end collection.
        if let Err(error) = who.keys.check_time(now_ms) {
            tracing::warn!("{error}: no relay will take what is collected before there is a new certificate");
        } else if who.enrolled.is_none() && who.keys.expired(now_ms + ENDS_SOON_MS) {
            tracing::warn!("this computer's certificate ends within 7 days: a new one must be issued");
        }
        Ok(who)
    }
}

impl Enrolled {
    fn find(state: &Path) -> Result<Enrolled, Complaint> {
        let home = Home::of(state);
        match home.member().map_err(|error| unusable(error.to_string()))? {
            Some(member) => Ok(Enrolled { home, member }),
            None => {
                let what = "this computer has no certificate: it was never enrolled, and its configuration names none";
                Err(Complaint::new(what, "Ask for a join token and type: muster-agent enroll TOKEN"))
            }
        }
    }

    pub fn membership(&self) -> Membership {
        Membership::of(&self.member)
    }

    fn relays(&self) -> Relays {
        let Member { name, dial, .. } = &self.member;
        Relays::OfSite { site: name.site().unwrap_or_default().to_owned(), joined: dial.clone() }
    }
}

fn of_files([certificate, key, roots]: [&Path; 3]) -> Result<Arc<Keys>, Complaint> {
    let todo = "Name this computer's own files, as `muster-certs issue agent` wrote them";
    Keys::load(&expand(certificate), &expand(key), &expand(roots), Role::Agent, Arc::new(SystemTime))
        .map_err(|error| Complaint::new(format!("the agent's certificate can't be used: {error}"), todo))
}

fn unusable(why: String) -> Complaint {
    Complaint::new(why, "Restore the folder `member` below the state folder, or enrol this computer anew")
}
