//! Async: join tokens and members: who may join, who has, who waits; what an admin decides about them.

use std::{sync::Arc, time::Duration};

use muster_certs::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Route, one_of,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
    time::rfc3339,
};
use crate::{
    admission::{self, AdmissionError, Owner, VALID_USUALLY, Wanted, Whom},
    hub::Hub,
    relays::Place,
    store::{MemberRow, TokenRow},
};

const PAGE: i64 = 100;
const PAGE_MAX: i64 = 500;

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([
        mount(hub, Operation::MakeToken, make_token),
        mount(hub, Operation::ListTokens, list_tokens),
        mount(hub, Operation::EndToken, end_token),
        mount(hub, Operation::ListMembers, list_members),
        mount(hub, Operation::ApproveMember, approve),
        mount(hub, Operation::DenyMember, deny),
    ])
}

/// Whom a join token is to be for: with `relay` a branch office's relay, else employees' computers.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenWanted {
    site: String,
    relay: Option<RelayWanted>,
    /// Whose each computer is that joins with it; without it an admin says so of each.
    owner: Option<OwnerGiven>,
    /// How many computers may join with it; 1 if it isn't given.
    uses: Option<u32>,
    /// For how long, 1 minute to 60 days; 24 hours if it isn't given.
    valid_ms: Option<u64>,
}

/// A relay, and where its agents will dial it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RelayWanted {
    id: String,
    /// Host, and port if it isn't 4433.
    address: String,
    /// Host and port of its door for new agents, if it isn't the same host's port 4434.
    door: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnerGiven {
    /// A stable key, such as kari.n.
    person: String,
    /// For display.
    name: String,
}

/// A join token. Its text is told this once: nothing but a digest of its secret is kept.
#[derive(Serialize, ToSchema)]
pub struct TokenMade {
    id: String,
    token: String,
    #[schema(format = DateTime)]
    ends: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct TokenList {
    tokens: Vec<TokenShown>,
}

/// A join token that can still be used.
#[derive(Serialize, ToSchema)]
pub struct TokenShown {
    id: String,
    /// `agent` or `relay`.
    role: String,
    site: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    person: Option<String>,
    uses_left: i64,
    made_by: String,
    #[schema(format = DateTime)]
    made: Option<String>,
    #[schema(format = DateTime)]
    ends: Option<String>,
}

/// Nobody can join with it any more; who has joined stays.
#[derive(Serialize, ToSchema)]
pub struct TokenEnded {
    id: String,
}

#[derive(Serialize, ToSchema)]
pub struct MemberList {
    members: Vec<MemberShown>,
    /// `after` of the next page; none: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Who was enrolled, and how they stand.
#[derive(Serialize, ToSchema)]
pub struct MemberShown {
    /// Such as site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617
    name: String,
    /// `member`, `waits_for_approval`, `waits_to_come_back`, `cloned` (two disks have its key) or `denied`.
    standing: &'static str,
    #[schema(format = DateTime)]
    joined: Option<String>,
    /// Of its program, when it last asked for a certificate.
    version: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    member: String,
    /// Whose it is; for a computer that is nobody's yet.
    owner: Option<OwnerGiven>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    member: String,
    /// At most 200 characters in one line, such as: lost on a train.
    #[serde(default)]
    why: String,
}

/// Nobody takes it any more: the hub at once, each relay and agent with the hub's next answer.
#[derive(Serialize, ToSchema)]
pub struct Denied {
    member: String,
}

async fn make_token(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let TokenWanted { site, relay, owner, uses, valid_ms } = call.json()?;
    let signer =
        hub.signer.as_ref().ok_or_else(|| ApiError::Field("relay", "this hub issues no certificates; ask the one that does".into()))?;
    let whom = match (relay, owner) {
        (Some(_), Some(_)) => return Err(ApiError::Field("owner", "a relay is nobody's".into())),
        (Some(RelayWanted { id, address, door }), None) => Whom::Relay { id, place: Place { address, door } },
        (None, owner) => Whom::Agents(owner.map(Owner::from)),
    };
    let valid = valid_ms.map_or(VALID_USUALLY, Duration::from_millis);
    let wanted = Wanted { site, whom, uses: uses.unwrap_or(1), valid, made_by: call.admin.clone().unwrap_or_default() };
    let made = admission::token(&hub.store, signer, wanted).await?;
    hub.store.add_token(&made.row).await?;
    let about = About { device_id: None, whom: format!("join token {}", made.row.id) };
    Said::about(about, &TokenMade { id: made.row.id, token: made.text, ends: rfc3339(made.row.ends_ms) })
}

async fn list_tokens(hub: Arc<Hub>, _: Call) -> Result<Said, ApiError> {
    let tokens: Vec<TokenShown> = hub.store.tokens(hub.now_ms()).await?.into_iter().map(TokenShown::from).collect();
    let about = About { device_id: None, whom: format!("{} join tokens", tokens.len()) };
    Said::about(about, &TokenList { tokens })
}

async fn end_token(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let id = call.segment(0);
    match hub.store.end_token(id).await? {
        true => Said::about(About { device_id: None, whom: format!("join token {id}") }, &TokenEnded { id: id.to_owned() }),
        false => Err(ApiError::NotFound),
    }
}

async fn list_members(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let most = super::devices::limit(&call, PAGE, PAGE_MAX)?;
    let members = hub.store.members(call.query("after").unwrap_or_default(), most).await?;
    let next = members.last().filter(|_| members.len() as i64 == most).map(|last| last.name.clone());
    let members: Vec<MemberShown> = members.into_iter().map(MemberShown::from).collect();
    let about = About { device_id: None, whom: format!("{} members", members.len()) };
    Said::about(about, &MemberList { members, next })
}

async fn approve(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let Approval { member, owner } = call.json()?;
    admission::approve(&hub.store, &named(&member)?, owner.map(Owner::from)).await?;
    let member = hub.store.member(&member).await?.ok_or(ApiError::NotFound)?;
    Said::about(About { device_id: None, whom: member.name.clone() }, &MemberShown::from(member))
}

async fn deny(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let Denial { member, why } = call.json()?;
    admission::deny(&hub.store, &named(&member)?, hub.now_ms(), &why).await?;
    Said::about(About { device_id: None, whom: member.clone() }, &Denied { member })
}

fn named(member: &str) -> Result<Name, ApiError> {
    member.parse().map_err(|_| ApiError::NotFound)
}

impl From<OwnerGiven> for Owner {
    fn from(OwnerGiven { person, name }: OwnerGiven) -> Owner {
        Owner { person, name }
    }
}

impl From<TokenRow> for TokenShown {
    fn from(row: TokenRow) -> TokenShown {
        TokenShown {
            id: row.id,
            role: row.role,
            site: row.grant.site,
            relay: row.grant.relay,
            person: row.grant.person,
            uses_left: row.uses_left,
            made_by: row.made_by,
            made: rfc3339(row.made_ms),
            ends: rfc3339(row.ends_ms),
        }
    }
}

impl From<MemberRow> for MemberShown {
    fn from(row: MemberRow) -> MemberShown {
        MemberShown { standing: row.standing().name(), joined: rfc3339(row.joined_ms), name: row.name, version: row.version }
    }
}

impl From<AdmissionError> for ApiError {
    fn from(error: AdmissionError) -> ApiError {
        match error {
            AdmissionError::Wrong { field, what, todo } => ApiError::Field(field, format!("{what}. {todo}")),
            AdmissionError::Unknown(_) => ApiError::NotFound,
            AdmissionError::Store(error) => error.into(),
        }
    }
}
