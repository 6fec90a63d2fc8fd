//! Async: relays: where agents find them, and whose agents may be guests; what an admin changes about it.

use std::{collections::BTreeMap, sync::Arc};

use muster_certs::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Route, one_of,
    problem::ApiError,
    routes::{About, Call, Operation, Said, mount},
};
use crate::{
    hub::Hub,
    relays::{self, Place},
    store::DialRow,
};

pub fn routes(hub: &Arc<Hub>) -> Route {
    one_of([
        mount(hub, Operation::ListRelays, list),
        mount(hub, Operation::SetRelay, set),
        mount(hub, Operation::RemoveRelay, remove),
        mount(hub, Operation::SetGuests, set_guests),
    ])
}

#[derive(Serialize, ToSchema)]
pub struct RelayPlaces {
    relays: Vec<RelayPlace>,
    /// By site, the other sites whose agents its relays take.
    guests: BTreeMap<String, Vec<String>>,
}

/// Where agents find a relay.
#[derive(Serialize, ToSchema)]
pub struct RelayPlace {
    /// Such as site/oslo/relay/oslo-1
    relay: String,
    /// Host and port.
    address: String,
    /// Host and port of its door for new agents.
    door: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RelaySet {
    /// Such as site/oslo/relay/oslo-1
    relay: String,
    /// Host, and port if it isn't 4433.
    address: String,
    /// Host and port of its door for new agents, if it isn't the same host's port 4434.
    door: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RelayNamed {
    relay: String,
}

/// The list leads nobody to it any more. Those who are connected there stay; who was told of it with its certificate tries it last.
#[derive(Serialize, ToSchema)]
pub struct RelayRemoved {
    relay: String,
}

/// Whose agents a site's relays take besides its own: these and no others.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteGuests {
    site: String,
    guests: Vec<String>,
}

async fn list(hub: Arc<Hub>, _: Call) -> Result<Said, ApiError> {
    let relays: Vec<RelayPlace> = hub.store.all_dials().await?.into_iter().map(RelayPlace::from).collect();
    let sites = hub.store.relay_sites().await?.into_iter();
    let guests = sites.filter(|(_, site)| !site.guests.is_empty()).map(|(name, site)| (name, site.guests)).collect();
    Said::plain(&RelayPlaces { relays, guests })
}

async fn set(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let RelaySet { relay, address, door } = call.json()?;
    let name = relay.parse().map_err(|_| ApiError::Field("relay", "write it as site/oslo/relay/oslo-1".into()))?;
    let row = relays::set(&hub.store, &name, Place { address, door }).await?;
    Said::about(About { device_id: None, whom: row.name.clone() }, &RelayPlace::from(row))
}

async fn remove(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let RelayNamed { relay } = call.json()?;
    let name: Name = relay.parse().map_err(|_| ApiError::NotFound)?;
    relays::remove(&hub.store, &name).await?;
    Said::about(About { device_id: None, whom: relay.clone() }, &RelayRemoved { relay })
}

async fn set_guests(hub: Arc<Hub>, call: Call) -> Result<Said, ApiError> {
    let SiteGuests { site, guests } = call.json()?;
    let guests = relays::set_guests(&hub.store, &site, guests).await?;
    Said::about(About { device_id: None, whom: format!("guests of {site}") }, &SiteGuests { site, guests })
}

impl From<DialRow> for RelayPlace {
    fn from(DialRow { name, address, door, .. }: DialRow) -> RelayPlace {
        RelayPlace { relay: name, address, door }
    }
}
