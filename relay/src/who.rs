//! Blocking: who this relay is, and which hub is its own: from the files that the configuration names, or from its enrolment.

use std::{path::Path, sync::Arc};

use muster_certs::{Keys, Role, SystemTime};
use muster_mesh::{complaint::Complaint, config::expand, member::Home};

use crate::{config::Config, sync::HubAddress};

/// A certificate that ends within this is worth a word at the start; a relay's lives for 14 days.
const ENDS_SOON_MS: i64 = 4 * 24 * 3_600 * 1_000;

pub struct Who {
    pub keys: Arc<Keys>,
    pub hub: HubAddress,
    /// Some: it was enrolled, and its certificate renews itself.
    pub home: Option<Home>,
}

impl Who {
    pub fn find(config: &Config, state: &Path, now_ms: i64) -> Result<Who, Complaint> {
        let who = match config.files() {
            Some(files) => {
                let [certificate, key, roots] = files.map(expand);
                let keys = Keys::load(&certificate, &key, &roots, Role::Relay, Arc::new(SystemTime))
                    .map_err(|error| Complaint::new(error.to_string(), "Name this relay's own files in [agents]"))?;
                let hub = config.hub_address()?.ok_or_else(|| {
                    Complaint::new("the configuration says nowhere which hub is this relay's", "Give `hub.address` and `hub.id`")
                })?;
                Who { keys, hub, home: None }
            }
            None => Who::enrolled(config, state)?,
        };
        // It collects and keeps all the same: an ended certificate never stops what is under way here.
        if let Err(error) = who.keys.check_time(now_ms) {
            tracing::warn!("{error}: agents and hub won't talk to this relay before it has a new certificate");
        } else if who.home.is_none() && who.keys.expired(now_ms + ENDS_SOON_MS) {
            tracing::warn!("this relay's certificate ends within 4 days: issue a new one");
        }
        Ok(who)
    }

    fn enrolled(config: &Config, state: &Path) -> Result<Who, Complaint> {
        let unusable = |why: String| Complaint::new(why, "Restore the folder `member` below the state folder, or enrol this relay anew");
        let home = Home::of(state);
        let Some(member) = home.member().map_err(|error| unusable(error.to_string()))? else {
            let what = "this relay has no certificate: it was never enrolled, and its configuration names none";
            return Err(Complaint::new(what, "Ask for a join token and type: muster-relay enroll TOKEN"));
        };
        let keys = member.keys(Arc::new(SystemTime)).map_err(|error| unusable(error.to_string()))?;
        if keys.role() != Role::Relay {
            return Err(unusable(format!("{} was enrolled here, which is no relay", member.name)));
        }
        let dial = member.dial.first().and_then(|dial| Some((dial.address.clone(), dial.name.parse().ok()?)));
        let enrolled = dial.map(|(address, name)| HubAddress { address, name });
        let hub = config.hub_address()?.or(enrolled).ok_or_else(|| unusable("its enrolment names no hub".to_owned()))?;
        Ok(Who { keys, hub, home: Some(home) })
    }
}
