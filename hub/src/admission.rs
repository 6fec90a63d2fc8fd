//! Async: who is let in: join tokens are made, those who wait are approved, and members are denied. The command line and the API ask here.

use std::time::Duration;

use data_encoding::HEXLOWER;
use muster_certs::{
    Fingerprint, Name,
    identity::check_label,
    issued::{check_name, check_person},
};
use muster_mesh::{
    chance,
    door::Dial,
    join::{JoinToken, Kind},
    limits,
};

use crate::{
    control::{self, DenyError},
    relays::{self, Place},
    signer::{Signer, secret_digest},
    store::{Grant, Store, StoreError, TokenRow},
};

/// A token is for hours to weeks.
pub const VALID_MIN: Duration = Duration::from_secs(60);
pub const VALID_MAX: Duration = Duration::from_secs(60 * 86_400);
pub const VALID_USUALLY: Duration = Duration::from_secs(86_400);
/// Uses of one token: a large office on one day.
pub const USES_MAX: u32 = 10_000;
const WHY_CHARS_MAX: usize = 200;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// What was asked for can't be so: which part of it, what is wrong, and what to do.
    #[error("{field}: {what}. {todo}")]
    Wrong { field: &'static str, what: String, todo: String },
    /// No such member, or token.
    #[error("{0} isn't known here")]
    Unknown(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) fn wrong(field: &'static str, what: impl Into<String>, todo: impl Into<String>) -> AdmissionError {
    AdmissionError::Wrong { field, what: what.into(), todo: todo.into() }
}

/// Whom a join token is to be for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub site: String,
    pub whom: Whom,
    pub uses: u32,
    pub valid: Duration,
    /// Who wants it.
    pub made_by: String,
}

#[derive(Debug, Clone)]
pub enum Whom {
    /// Employees' computers; of a person from the start, or of whom an admin says of each.
    Agents(Option<Owner>),
    /// A relay, and where its agents will dial it.
    Relay { id: String, place: Place },
}

/// Whose a computer is.
#[derive(Debug, Clone)]
pub struct Owner {
    /// A stable key, such as kari.n.
    pub person: String,
    /// For display.
    pub name: String,
}

impl Owner {
    fn check(&self) -> Result<(), AdmissionError> {
        let todo = "Write it as the list of people has it";
        check_person(&self.person).map_err(|error| wrong("person", error.to_string(), todo))?;
        check_name(&self.name).map_err(|error| wrong("name", error.to_string(), todo))
    }
}

/// A token that can be used from now on. Its text is told once.
pub struct Made {
    pub row: TokenRow,
    pub text: String,
}

/// Makes a join token. It isn't used before it is kept: [`Store::add_token`].
pub async fn token(store: &Store, signer: &Signer, wanted: Wanted) -> Result<Made, AdmissionError> {
    label(&wanted.site, "site")?;
    if !(1..=USES_MAX).contains(&wanted.uses) {
        return Err(wrong("uses", format!("{} is not 1 to {USES_MAX}", wanted.uses), "Make several tokens"));
    }
    if !(VALID_MIN..=VALID_MAX).contains(&wanted.valid) {
        return Err(wrong("valid", "a join token is valid for 1 minute to 60 days", "Make a new one then"));
    }
    let Wanted { site, whom, uses, valid, made_by } = wanted;
    let (kind, grant, doors) = match whom {
        Whom::Agents(owner) => {
            owner.as_ref().map_or(Ok(()), Owner::check)?;
            let doors = doors_of(store, &site).await?;
            let (person, display) = owner.map(|owner| (owner.person, owner.name)).unzip();
            (Kind::Agent, Grant { site, relay: None, place: None, person, display }, doors)
        }
        Whom::Relay { id, place } => {
            label(&id, "id")?;
            let hub = signer.hub();
            if hub.door.is_empty() {
                let todo = "Give `door.listen`, and `door.address` as relays dial it, in the hub's configuration";
                return Err(wrong("address", "a relay couldn't find this hub: it has no door", todo));
            }
            let place = relays::expect(store, &Name::Relay { site: site.clone(), id: id.clone() }, place).await?;
            let doors = vec![Dial { address: hub.address.clone(), door: hub.door.clone(), name: hub.name.to_string() }];
            (Kind::Relay, Grant { site, relay: Some(id), place: Some(place), person: None, display: None }, doors)
        }
    };
    let [random, secret] = [chance::random_32(), chance::random_32()];
    let id: [u8; 8] = std::array::from_fn(|at| random[at]);
    let now_ms = signer.now_ms();
    let ends_ms = now_ms.saturating_add(i64::try_from(valid.as_millis()).unwrap_or(i64::MAX));
    let roots = Fingerprint::of_roots(signer.ca().roots_pem()).map_err(|error| StoreError::Other(error.to_string()))?;
    let token = JoinToken {
        id,
        secret,
        kind,
        ends_ms,
        domain: signer.ca().domain().to_owned(),
        roots: roots.into_iter().map(|root| root.0).collect(),
        seal: signer.seal().0,
        doors,
    };
    let row = TokenRow {
        id: HEXLOWER.encode(&id),
        secret: secret_digest(&secret),
        role: kind.role().as_str().to_owned(),
        grant,
        uses_left: uses.into(),
        made_ms: now_ms,
        ends_ms,
        made_by,
    };
    Ok(Made { row, text: token.text() })
}

/// The doors of a site's relays, which new computers ask.
async fn doors_of(store: &Store, site: &str) -> Result<Vec<Dial>, AdmissionError> {
    let mut doors = relays::doors(store, site).await?;
    doors.truncate(limits::TOKEN_DOORS_MAX);
    if doors.is_empty() {
        let todo = format!("Enrol one first: muster-hub token relay --site {site} --id {site}-1 --address HOST");
        return Err(wrong("site", format!("no relay of {site} is known that a new computer could ask"), todo));
    }
    Ok(doors)
}

/// Says whose a waiting computer is (`owner`), or lets one that came back too often come back once more.
pub async fn approve(store: &Store, name: &Name, owner: Option<Owner>) -> Result<(), AdmissionError> {
    owner.as_ref().map_or(Ok(()), Owner::check)?;
    let mut writing = store.write().await?;
    let Some(mut member) = writing.member(&name.to_string()).await? else { return Err(AdmissionError::Unknown(name.to_string())) };
    match (member.approved, owner) {
        (false, None) => {
            return Err(wrong(
                "person",
                format!("{name} is nobody's yet"),
                "Give person and name; a computer belongs to one person for life",
            ));
        }
        (true, Some(_)) => {
            let todo = "Leave out the person; to hand a computer over, enrol it anew with another token";
            return Err(wrong("person", format!("{name} is somebody's already"), todo));
        }
        (false, Some(Owner { person, name: display })) => {
            if let (Some(device), Some(site)) = (name.device(), name.site()) {
                let grant = Grant { site: site.to_owned(), relay: None, place: None, person: Some(person), display: Some(display) };
                writing.keep_owner(&device, &grant).await?;
            }
        }
        (true, None) => {}
    }
    if member.waits_ms.take().is_some() {
        member.allowed += 1;
    }
    (member.approved, member.cloned_ms) = (true, None);
    writing.keep_member(&member).await?;
    Ok(writing.commit().await?)
}

/// Nobody takes it any more, by whatever certificate it has now, and none is issued to it. It needn't have been enrolled: whoever has a
/// certificate from files can be denied, too.
pub async fn deny(store: &Store, name: &Name, now_ms: i64, why: &str) -> Result<(), AdmissionError> {
    if why.chars().count() > WHY_CHARS_MAX || why.contains(char::is_control) {
        return Err(wrong("why", format!("it isn't one line of at most {WHY_CHARS_MAX} characters"), "Say it in a sentence"));
    }
    control::deny(store, name, now_ms, why).await.map_err(|error| match error {
        DenyError::Store(error) => error.into(),
        DenyError::Message(_) | DenyError::Full(_) => wrong("member", "nobody more fits into the list", error.to_string()),
    })
}

pub(crate) fn label(text: &str, field: &'static str) -> Result<(), AdmissionError> {
    check_label(text).map_err(|error| wrong(field, format!("{text:?} can't be used"), error.to_string()))
}
