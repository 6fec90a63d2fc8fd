//! Async: `muster-hub relay`: where agents find relays, and whose agents may be guests.

use std::collections::BTreeMap;

use clap::Subcommand;
use muster_certs::Name;
use muster_mesh::relay_list::SiteRelays;
use serde::Serialize;

use super::members::complaint;
use crate::{
    config::Config,
    relays::{self, Place},
    store::{DialRow, Store},
};

#[derive(Debug, Subcommand)]
pub enum RelayVerb {
    /// All relays that agents are led to, and each site's guests
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Says where a relay is. Its agents dial it there when they dial next; a running relay isn't touched
    Set {
        /// Such as site/oslo/relay/oslo-1
        relay: Name,
        /// Host, and port if it isn't 4433, where agents will dial it
        #[arg(long, value_name = "HOST[:PORT]")]
        address: String,
        /// Host and port of its door for new agents, if it isn't the same host's port 4434
        #[arg(long, value_name = "HOST:PORT")]
        door: Option<String>,
    },
    /// Takes a relay out of the list. To let nobody take it any more: muster-hub member deny
    Remove {
        /// As `list` shows it
        relay: Name,
    },
    /// Says which other sites' agents may deliver at a site's relays, as when their own is down: these and no others
    Guests {
        /// The site whose relays take them
        site: String,
        /// Theirs; none: only its own
        guests: Vec<String>,
    },
}

/// What `relay list --json` prints.
#[derive(Serialize)]
struct Listed {
    relays: Vec<Relay>,
    /// By site.
    guests: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize)]
struct Relay {
    /// `site/oslo/relay/oslo-1`
    relay: String,
    address: String,
    door: String,
}

pub async fn relay(config: &Config, verb: RelayVerb) -> anyhow::Result<()> {
    let store = Store::open(&config.store.url).await?;
    match verb {
        RelayVerb::List { json } => list(&store, json).await?,
        RelayVerb::Set { relay, address, door } => {
            let DialRow { name, address, door, .. } = relays::set(&store, &relay, Place { address, door }).await.map_err(complaint)?;
            println!("Agents find {name} at {address} from now on, and its door at {door}.");
        }
        RelayVerb::Remove { relay } => {
            relays::remove(&store, &relay).await.map_err(complaint)?;
            println!(
                "{relay} isn't in the list any more. Agents that are connected there stay; those that were told of it with their certificate try it last."
            );
        }
        RelayVerb::Guests { site, guests } => match relays::set_guests(&store, &site, guests).await.map_err(complaint)?.as_slice() {
            [] => println!("Relays of {site} take agents of {site} alone."),
            guests => println!("Relays of {site} take agents of {site}, and as guests those of {}.", guests.join(", ")),
        },
    }
    store.close().await;
    Ok(())
}

async fn list(store: &Store, json: bool) -> anyhow::Result<()> {
    let relay = |DialRow { name, address, door, .. }| Relay { relay: name, address, door };
    let relays: Vec<Relay> = store.all_dials().await?.into_iter().map(relay).collect();
    let guests = |(site, SiteRelays { guests, .. }): (String, SiteRelays)| (!guests.is_empty()).then_some((site, guests));
    let guests: BTreeMap<String, Vec<String>> = store.relay_sites().await?.into_iter().filter_map(guests).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&Listed { relays, guests })?);
        return Ok(());
    }
    for Relay { relay, address, door } in relays {
        println!("{relay:<32}  {address:<32}  door {door}");
    }
    for (site, guests) in guests {
        println!("{:<32}  guests {}", format!("site/{site}"), guests.join(", "));
    }
    Ok(())
}
