//! Async: who was enrolled here: join tokens, members, and the certificates that were issued to them.

use muster_certs::Name;
use muster_mesh::relay_list::RelayAt;
use sqlx::{Row, any::AnyRow};

use super::{Store, StoreError, Writing};

/// A join token, as it is kept: of its secret only the SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Hex, as is everything binary here.
    pub id: String,
    pub secret: String,
    /// `agent` or `relay`.
    pub role: String,
    pub grant: Grant,
    pub uses_left: i64,
    pub made_ms: i64,
    pub ends_ms: i64,
    pub made_by: String,
}

/// What a token makes of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub site: String,
    /// A relay's id.
    pub relay: Option<String>,
    /// Where agents will find it.
    pub place: Option<RelayAt>,
    /// None: an admin says of each device whose it is.
    pub person: Option<String>,
    pub display: Option<String>,
}

/// Someone who was enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// As in `site/oslo/agent/…`.
    pub name: String,
    pub device_key: String,
    pub join_state: i64,
    pub approved: bool,
    pub token: String,
    pub joined_ms: i64,
    pub version: String,
    /// Recoveries that an admin has approved and that weren't used yet.
    pub allowed: i64,
    /// Since when it waits for an admin to approve a recovery.
    pub waits_ms: Option<i64>,
    /// When somebody showed a join state from before a later one.
    pub cloned_ms: Option<i64>,
    pub denied_ms: Option<i64>,
}

/// What an admin sees of a member at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberStanding {
    Member,
    WaitsForApproval,
    WaitsToComeBack,
    /// Two disks have its key.
    Cloned,
    Denied,
}

impl MemberStanding {
    pub fn name(self) -> &'static str {
        match self {
            MemberStanding::Member => "member",
            MemberStanding::WaitsForApproval => "waits_for_approval",
            MemberStanding::WaitsToComeBack => "waits_to_come_back",
            MemberStanding::Cloned => "cloned",
            MemberStanding::Denied => "denied",
        }
    }
}

impl MemberRow {
    /// What weighs most comes first.
    pub fn standing(&self) -> MemberStanding {
        match self {
            MemberRow { denied_ms: Some(_), .. } => MemberStanding::Denied,
            MemberRow { cloned_ms: Some(_), .. } => MemberStanding::Cloned,
            MemberRow { waits_ms: Some(_), .. } => MemberStanding::WaitsToComeBack,
            MemberRow { approved: false, .. } => MemberStanding::WaitsForApproval,
            _ => MemberStanding::Member,
        }
    }
}

/// A certificate that was issued here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRow {
    pub public_key: String,
    pub name: String,
    pub serial: String,
    /// The key identifier of the issuing CA.
    pub issuer: String,
    pub chain: String,
    /// The one before it had ended.
    pub recovery: bool,
    pub issued_ms: i64,
    pub not_after_ms: i64,
}

const TOKEN: &str = "id, secret, role, site, relay, person, display, uses_left, made_ms, ends_ms, made_by, address, door";
const MEMBER: &str = "name, device_key, join_state, approved, token, joined_ms, version, allowed, waits_ms, cloned_ms, denied_ms";
const CERTIFICATE: &str = "public_key, name, serial, issuer, chain, recovery, issued_ms, not_after_ms";

impl Store {
    pub async fn add_token(&self, token: &TokenRow) -> Result<(), StoreError> {
        let mut writing = self.write().await?;
        let insert = format!("INSERT INTO join_tokens ({TOKEN}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)");
        let (address, door) = token.grant.place.clone().map(|RelayAt { address, door }| (address, door)).unzip();
        sqlx::query(sqlx::AssertSqlSafe(insert))
            .bind(token.id.clone())
            .bind(token.secret.clone())
            .bind(token.role.clone())
            .bind(token.grant.site.clone())
            .bind(token.grant.relay.clone())
            .bind(token.grant.person.clone())
            .bind(token.grant.display.clone())
            .bind(token.uses_left)
            .bind(token.made_ms)
            .bind(token.ends_ms)
            .bind(token.made_by.clone())
            .bind(address)
            .bind(door)
            .execute(&mut *writing.transaction)
            .await?;
        writing.commit().await
    }

    /// Tokens that can still be used, oldest first.
    pub async fn tokens(&self, now_ms: i64) -> Result<Vec<TokenRow>, StoreError> {
        let select = format!("SELECT {TOKEN} FROM join_tokens WHERE uses_left > 0 AND ends_ms > $1 ORDER BY made_ms, id");
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(now_ms).fetch_all(&self.readers).await?;
        rows.iter().map(token_row).collect()
    }

    /// Ends a token. False: there is none of this id that could still be used.
    pub async fn end_token(&self, id: &str) -> Result<bool, StoreError> {
        let mut writing = self.write().await?;
        let update = "UPDATE join_tokens SET uses_left = 0 WHERE id = $1 AND uses_left > 0";
        let ended = sqlx::query(update).bind(id).execute(&mut *writing.transaction).await?;
        writing.commit().await?;
        Ok(ended.rows_affected() == 1)
    }

    /// Ends all tokens. Returns how many could still be used.
    pub async fn end_tokens(&self) -> Result<u64, StoreError> {
        let mut writing = self.write().await?;
        let ended = sqlx::query("UPDATE join_tokens SET uses_left = 0 WHERE uses_left > 0").execute(&mut *writing.transaction).await?;
        writing.commit().await?;
        Ok(ended.rows_affected())
    }

    /// Everybody who was enrolled, in the order of their names, from behind `after` on.
    pub async fn members(&self, after: &str, most: i64) -> Result<Vec<MemberRow>, StoreError> {
        let select = format!("SELECT {MEMBER} FROM members WHERE name > $1 ORDER BY name LIMIT $2");
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(after).bind(most).fetch_all(&self.readers).await?;
        rows.iter().map(member_row).collect()
    }

    pub async fn member(&self, name: &str) -> Result<Option<MemberRow>, StoreError> {
        let select = format!("SELECT {MEMBER} FROM members WHERE name = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(name).fetch_optional(&self.readers).await?;
        row.as_ref().map(member_row).transpose()
    }

    /// Of everybody who has one the certificate that was issued last, in the order of their names.
    pub async fn last_certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        let select = format!(
            "SELECT {CERTIFICATE} FROM (SELECT {CERTIFICATE}, \
             ROW_NUMBER() OVER (PARTITION BY name ORDER BY issued_ms DESC, not_after_ms DESC) AS place FROM certificates) AS placed \
             WHERE place = 1 ORDER BY name"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&self.readers).await?;
        rows.iter().map(certificate_row).collect()
    }
}

impl Writing<'_> {
    /// Uses a token once. None: there is none of this id and secret, for this role, that can still be used.
    pub async fn use_token(&mut self, id: &str, secret: &str, role: &str, now_ms: i64) -> Result<Option<Grant>, StoreError> {
        let update = "UPDATE join_tokens SET uses_left = uses_left - 1 \
                      WHERE id = $1 AND secret = $2 AND role = $3 AND ends_ms > $4 AND uses_left > 0";
        let used = sqlx::query(update).bind(id).bind(secret).bind(role).bind(now_ms).execute(&mut *self.transaction).await?;
        if used.rows_affected() == 0 {
            return Ok(None);
        }
        let select = format!("SELECT {TOKEN} FROM join_tokens WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(id).fetch_one(&mut *self.transaction).await?;
        Ok(Some(token_row(&row)?.grant))
    }

    /// Until this transaction ends no other one of this public key goes on from here, at whichever hub.
    pub async fn one_by_one(&mut self, public_key: &str) -> Result<(), StoreError> {
        if let Some(lock) = self.store.engine.locking_text() {
            sqlx::query(lock).bind(public_key).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Locked until this transaction ends: two requests of one member are answered one after the other.
    pub async fn member(&mut self, name: &str) -> Result<Option<MemberRow>, StoreError> {
        let select = format!("SELECT {MEMBER} FROM members WHERE name = $1 {}", self.store.engine.locking());
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(name).fetch_optional(&mut *self.transaction).await?;
        row.as_ref().map(member_row).transpose()
    }

    /// The device of a site that has this key, unless it was denied or cloned. Locked as in [`member`](Self::member).
    pub async fn member_of_key(&mut self, device_key: &str, site: &str) -> Result<Option<MemberRow>, StoreError> {
        let select = format!(
            "SELECT {MEMBER} FROM members WHERE device_key = $1 AND denied_ms IS NULL AND cloned_ms IS NULL ORDER BY name {}",
            self.store.engine.locking()
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).bind(device_key).fetch_all(&mut *self.transaction).await?;
        let members: Vec<MemberRow> = rows.iter().map(member_row).collect::<Result<_, _>>()?;
        let is_of_site = |member: &MemberRow| matches!(member.name.parse(), Ok(Name::Agent { site: own, .. }) if own == site);
        Ok(members.into_iter().find(is_of_site))
    }

    pub async fn keep_member(&mut self, member: &MemberRow) -> Result<(), StoreError> {
        let upsert = format!(
            "INSERT INTO members ({MEMBER}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (name) DO UPDATE SET \
             device_key = excluded.device_key, join_state = excluded.join_state, approved = excluded.approved, token = excluded.token, \
             joined_ms = excluded.joined_ms, version = excluded.version, allowed = excluded.allowed, waits_ms = excluded.waits_ms, \
             cloned_ms = excluded.cloned_ms, denied_ms = excluded.denied_ms"
        );
        sqlx::query(sqlx::AssertSqlSafe(upsert))
            .bind(member.name.clone())
            .bind(member.device_key.clone())
            .bind(member.join_state)
            .bind(i64::from(member.approved))
            .bind(member.token.clone())
            .bind(member.joined_ms)
            .bind(member.version.clone())
            .bind(member.allowed)
            .bind(member.waits_ms)
            .bind(member.cloned_ms)
            .bind(member.denied_ms)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// The certificate that was issued for a public key.
    pub async fn certificate(&mut self, public_key: &str) -> Result<Option<CertificateRow>, StoreError> {
        let select = format!("SELECT {CERTIFICATE} FROM certificates WHERE public_key = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(public_key).fetch_optional(&mut *self.transaction).await?;
        row.as_ref().map(certificate_row).transpose()
    }

    /// The end of the certificate that lasts longest, and how many recoveries there were since `since_ms`.
    pub async fn issued_to(&mut self, name: &str, since_ms: i64) -> Result<(Option<i64>, i64), StoreError> {
        let select =
            "SELECT MAX(not_after_ms), COUNT(CASE WHEN recovery = 1 AND issued_ms > $2 THEN 1 END) FROM certificates WHERE name = $1";
        let row = sqlx::query(select).bind(name).bind(since_ms).fetch_one(&mut *self.transaction).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// Whether a member was given no certificate after this one.
    pub async fn is_newest(&mut self, certificate: &CertificateRow) -> Result<bool, StoreError> {
        Ok(self.last_issued_ms(&certificate.name).await? == Some(certificate.issued_ms))
    }

    /// When a member was last given a certificate.
    pub async fn last_issued_ms(&mut self, name: &str) -> Result<Option<i64>, StoreError> {
        let select = "SELECT MAX(issued_ms) FROM certificates WHERE name = $1";
        Ok(sqlx::query(select).bind(name).fetch_one(&mut *self.transaction).await?.try_get(0)?)
    }

    /// In the place of one for the same key, if there was one.
    pub async fn keep_certificate(&mut self, certificate: &CertificateRow) -> Result<(), StoreError> {
        let upsert = format!(
            "INSERT INTO certificates ({CERTIFICATE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (public_key) DO UPDATE SET \
             serial = excluded.serial, issuer = excluded.issuer, chain = excluded.chain, recovery = excluded.recovery, \
             issued_ms = excluded.issued_ms, not_after_ms = excluded.not_after_ms"
        );
        sqlx::query(sqlx::AssertSqlSafe(upsert))
            .bind(certificate.public_key.clone())
            .bind(certificate.name.clone())
            .bind(certificate.serial.clone())
            .bind(certificate.issuer.clone())
            .bind(certificate.chain.clone())
            .bind(i64::from(certificate.recovery))
            .bind(certificate.issued_ms)
            .bind(certificate.not_after_ms)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// The person whose a device is, if anybody's.
    pub async fn owner(&mut self, device: &[u8; 16]) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT person FROM devices WHERE device = $1")
            .bind(device.to_vec())
            .fetch_optional(&mut *self.transaction)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
    }

    /// Whose a device is. It becomes known by this, if it wasn't.
    pub async fn keep_owner(&mut self, device: &[u8; 16], grant: &Grant) -> Result<(), StoreError> {
        let upsert = "INSERT INTO devices (device, person, display, site) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (device) DO UPDATE SET person = excluded.person, display = excluded.display, site = excluded.site";
        sqlx::query(upsert)
            .bind(device.to_vec())
            .bind(grant.person.clone())
            .bind(grant.display.clone())
            .bind(grant.site.clone())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

fn token_row(row: &AnyRow) -> Result<TokenRow, StoreError> {
    let at: (Option<String>, Option<String>) = (row.try_get(11)?, row.try_get(12)?);
    let place = at.0.zip(at.1).map(|(address, door)| RelayAt { address, door });
    let grant = Grant { site: row.try_get(3)?, relay: row.try_get(4)?, place, person: row.try_get(5)?, display: row.try_get(6)? };
    Ok(TokenRow {
        id: row.try_get(0)?,
        secret: row.try_get(1)?,
        role: row.try_get(2)?,
        grant,
        uses_left: row.try_get(7)?,
        made_ms: row.try_get(8)?,
        ends_ms: row.try_get(9)?,
        made_by: row.try_get(10)?,
    })
}

fn member_row(row: &AnyRow) -> Result<MemberRow, StoreError> {
    Ok(MemberRow {
        name: row.try_get(0)?,
        device_key: row.try_get(1)?,
        join_state: row.try_get(2)?,
        approved: row.try_get::<i64, _>(3)? == 1,
        token: row.try_get(4)?,
        joined_ms: row.try_get(5)?,
        version: row.try_get(6)?,
        allowed: row.try_get(7)?,
        waits_ms: row.try_get(8)?,
        cloned_ms: row.try_get(9)?,
        denied_ms: row.try_get(10)?,
    })
}

fn certificate_row(row: &AnyRow) -> Result<CertificateRow, StoreError> {
    Ok(CertificateRow {
        public_key: row.try_get(0)?,
        name: row.try_get(1)?,
        serial: row.try_get(2)?,
        issuer: row.try_get(3)?,
        chain: row.try_get(4)?,
        recovery: row.try_get::<i64, _>(5)? == 1,
        issued_ms: row.try_get(6)?,
        not_after_ms: row.try_get(7)?,
    })
}
