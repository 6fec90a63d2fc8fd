//! Async: where relays are found, and whose agents may be their guests.

use std::collections::BTreeMap;

use muster_certs::Name;
use muster_mesh::relay_list::{RelayAt, SiteRelays};
use sqlx::{AnyConnection, Row, any::AnyRow};

use super::{Store, StoreError, Writing};

/// Where others find a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialRow {
    /// `site/oslo/relay/oslo-1`
    pub name: String,
    pub site: String,
    /// Host and port.
    pub address: String,
    /// Its door's host and port.
    pub door: String,
}

const DIAL: &str = "name, site, address, door";

impl Store {
    /// Where relays of a site are found, in the order of their names.
    pub async fn dials(&self, site: &str) -> Result<Vec<DialRow>, StoreError> {
        let select = format!("SELECT {DIAL} FROM dials WHERE site = $1 ORDER BY name");
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(site).fetch_all(&self.readers).await?;
        rows.iter().map(dial_row).collect()
    }

    /// Where all relays are found, in the order of their names.
    pub async fn all_dials(&self) -> Result<Vec<DialRow>, StoreError> {
        read_dials(&mut *self.readers.acquire().await?).await
    }

    /// What agents are told: by site, its relays and its guests.
    pub async fn relay_sites(&self) -> Result<BTreeMap<String, SiteRelays>, StoreError> {
        read_sites(&mut *self.readers.acquire().await?).await
    }

    /// Agents aren't led to a relay any more. False: nobody knew where it is.
    pub async fn remove_dial(&self, name: &str) -> Result<bool, StoreError> {
        let mut writing = self.write().await?;
        let was_known = writing.remove_dial(name).await?;
        writing.commit().await?;
        Ok(was_known)
    }
}

impl Writing<'_> {
    /// Says where a relay is.
    pub async fn keep_dial(&mut self, row: &DialRow) -> Result<(), StoreError> {
        self.take_turn_to_sign().await?;
        let upsert = format!(
            "INSERT INTO dials ({DIAL}) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE SET address = excluded.address, \
             door = excluded.door"
        );
        sqlx::query(sqlx::AssertSqlSafe(upsert))
            .bind(row.name.clone())
            .bind(row.site.clone())
            .bind(row.address.clone())
            .bind(row.door.clone())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    pub async fn remove_dial(&mut self, name: &str) -> Result<bool, StoreError> {
        let removed = sqlx::query("DELETE FROM dials WHERE name = $1").bind(name).execute(&mut *self.transaction).await?;
        Ok(removed.rows_affected() == 1)
    }

    /// These and no others are a site's guests from now on.
    pub async fn keep_guests(&mut self, site: &str, guests: &[String]) -> Result<(), StoreError> {
        self.take_turn_to_sign().await?;
        sqlx::query("DELETE FROM guests WHERE site = $1").bind(site).execute(&mut *self.transaction).await?;
        for guest in guests {
            sqlx::query("INSERT INTO guests (site, guest) VALUES ($1, $2) ON CONFLICT (site, guest) DO NOTHING")
                .bind(site)
                .bind(guest.clone())
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    /// As [`Store::relay_sites`].
    pub async fn relay_sites(&mut self) -> Result<BTreeMap<String, SiteRelays>, StoreError> {
        read_sites(&mut self.transaction).await
    }
}

async fn read_dials(connection: &mut AnyConnection) -> Result<Vec<DialRow>, StoreError> {
    let select = format!("SELECT {DIAL} FROM dials ORDER BY name");
    let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(connection).await?;
    rows.iter().map(dial_row).collect()
}

async fn read_sites(connection: &mut AnyConnection) -> Result<BTreeMap<String, SiteRelays>, StoreError> {
    let mut sites: BTreeMap<String, SiteRelays> = BTreeMap::new();
    for DialRow { name, site, address, door } in read_dials(connection).await? {
        // Only names of relays are ever kept.
        let Ok(Name::Relay { id, .. }) = name.parse() else { continue };
        sites.entry(site).or_default().relays.insert(id, RelayAt { address, door });
    }
    for row in sqlx::query("SELECT site, guest FROM guests ORDER BY site, guest").fetch_all(connection).await? {
        sites.entry(row.try_get(0)?).or_default().guests.push(row.try_get(1)?);
    }
    Ok(sites)
}

fn dial_row(row: &AnyRow) -> Result<DialRow, StoreError> {
    Ok(DialRow { name: row.try_get(0)?, site: row.try_get(1)?, address: row.try_get(2)?, door: row.try_get(3)? })
}
