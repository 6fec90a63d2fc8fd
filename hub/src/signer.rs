//! Async: the hub's word to those who ask for a certificate: to someone with a join token, to a member whose certificate is due or has ended.
//!
//! What decides is the device key that was bound at enrolment and the join state, which rises with each enrolment and recovery. One public key
//! is always answered alike: an answer that was lost costs nobody anything, and one that is asked for again counts once.
//!
//! The CA's folder is looked at while the hub runs: a step of a rotation comes into force here within a second.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use data_encoding::HEXLOWER;
use muster_certs::{
    Ca, CaError, Identity, IssuerError, Name, Requested, Role, issue_control,
    issuer::{BACKDATED_MS, leaf_life_ms},
    read_leaf,
};
use muster_mesh::{
    clock::Clock,
    door::{Answer, Ask, Dial, Issued, NONCE_BYTES, Nonce, Opened, Plea, Refusal, Said, Standing, Wish},
    ids::Version,
    message::SignedKind,
    relay_list::RelayAt,
    seal::SealKey,
};
use tokio::{
    sync::RwLock,
    task::{JoinError, spawn_blocking},
};
use uuid::Uuid;

use crate::{
    relays,
    store::{CertificateRow, DialRow, Grant, MemberRow, Store, StoreError, Writing},
};

/// A number is good for this long, by the hub's own clock.
const NONCE_LIFE_MS: i64 = 5 * 60 * 1_000;
/// Recoveries in [`RECOVERIES_WITHIN_MS`] that need nobody; then an admin has to approve.
const RECOVERIES_ALONE: i64 = 2;
const RECOVERIES_WITHIN_MS: i64 = 365 * 86_400_000;
/// Somebody whom the database keeps waiting comes again after this.
const BUSY_S: u32 = 5;

/// How long certificates live, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    pub agent_ms: i64,
    pub relay_ms: i64,
}

impl Default for Lives {
    fn default() -> Lives {
        Lives { agent_ms: leaf_life_ms(Role::Agent), relay_ms: leaf_life_ms(Role::Relay) }
    }
}

/// Where relays find this hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAt {
    pub name: Name,
    pub address: String,
    pub door: String,
}

/// Whoever holds the issuing key.
pub struct Signer {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    ca: ArcSwap<Ca>,
    /// Held for reading by whoever signs, until that is kept: behind a step nothing of before comes into the database any more.
    stepping: RwLock<()>,
    seal: SealKey,
    nonces: hmac::Key,
    lives: Lives,
    hub: HubAt,
}

/// Why nothing is said, or what.
enum Stop {
    Refuse(Refusal),
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refuse(refusal)
    }
}

impl Signer {
    pub fn new(store: Arc<Store>, clock: Arc<dyn Clock>, ca: Ca, seal: SealKey, lives: Lives, hub: HubAt) -> Signer {
        let derived = digest(&SHA256, &[b"muster-nonces-1\0".as_slice(), &seal.to_bytes()].concat());
        let nonces = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        Signer { store, clock, ca: ArcSwap::from_pointee(ca), stepping: RwLock::default(), seal, nonces, lives, hub }
    }

    /// The CA as it is in force here.
    pub fn ca(&self) -> Arc<Ca> {
        self.ca.load_full()
    }

    /// Looks at the CA's folder, and takes over a step of a rotation. On an error what was in force stays.
    pub async fn look(&self) -> Result<(), LookError> {
        let now = self.ca();
        let Some(next) = spawn_blocking(move || now.changed().then(|| now.reopen()).transpose()).await?? else { return Ok(()) };
        let _nobody_signs = self.stepping.write().await;
        tracing::info!(issuer = next.issuer_key(), bundle = next.bundle_version(), "the CA's folder has changed: this holds from now on");
        self.ca.store(Arc::new(next));
        Ok(())
    }

    /// What others seal to.
    pub fn seal(&self) -> muster_mesh::seal::SealTo {
        self.seal.public()
    }

    /// The certificate of this hub's control key, PKCS#8 in PEM.
    pub fn control_chain(&self, n: u32, key_pem: &str) -> Result<String, IssuerError> {
        Ok(issue_control(self.ca().issuer(), n, key_pem, self.now_ms())?.pem)
    }

    /// Where relays find this hub.
    pub fn hub(&self) -> &HubAt {
        &self.hub
    }

    /// End of validity of what issues, milliseconds UTC.
    pub fn not_after_ms(&self) -> i64 {
        self.ca().not_after_ms()
    }

    /// Milliseconds UTC, by this hub's clock.
    pub fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms
    }

    /// Answers one ask. What doesn't open or read is told so, and nothing else.
    pub async fn answer(&self, ask: &[u8]) -> Answer {
        let opened = match Ask::read(ask) {
            Ok(Ask::Nonce) => return Answer::Nonce(self.nonce(self.clock.now().wall_ms)),
            Ok(Ask::Sealed(sealed)) => Plea::open(&sealed, &self.seal).ok(),
            Err(_) => None,
        };
        let Some(opened) = opened.filter(|opened| self.is_fresh(&opened.plea.nonce)) else {
            count("unreadable", "unreadable");
            return Answer::Unreadable;
        };
        let kind = opened.plea.wish.kind();
        let said = match self.hear(&opened).await {
            Ok(said) => said,
            Err(Stop::Refuse(refusal)) => Said::Refused(refusal),
            Err(Stop::Store(error)) => {
                tracing::warn!(%error, kind, "a request for a certificate isn't answered now");
                count(kind, "busy");
                return Answer::Busy { seconds: BUSY_S };
            }
        };
        match &said {
            Said::Issued(issued) => count(kind, if issued.standing == Standing::Approved { "issued" } else { "waiting" }),
            Said::Waiting => count(kind, "waiting"),
            Said::Refused(refusal) => count(kind, refusal.name()),
        }
        opened.answer(&said).unwrap_or(Answer::Busy { seconds: BUSY_S })
    }

    // --- numbers ---

    fn nonce(&self, at_ms: i64) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        let (at, tag) = nonce.split_at_mut(8);
        at.copy_from_slice(&at_ms.to_le_bytes());
        let signed = hmac::sign(&self.nonces, at);
        tag.copy_from_slice(&signed.as_ref()[..NONCE_BYTES - 8]);
        nonce
    }

    fn is_fresh(&self, nonce: &Nonce) -> bool {
        let Some(at_ms) = nonce.first_chunk().map(|at| i64::from_le_bytes(*at)) else { return false };
        let age_ms = self.clock.now().wall_ms.saturating_sub(at_ms);
        self.nonce(at_ms) == *nonce && age_ms.saturating_abs() <= NONCE_LIFE_MS
    }

    // --- pleas ---

    async fn hear(&self, opened: &Opened) -> Result<Said, Stop> {
        let plea = &opened.plea;
        let requested = Requested::read(&plea.request).map_err(|_| Refusal::Request)?;
        let public_key = hex_digest(&requested.public_key());
        let _until_it_is_kept = self.stepping.read().await;
        let ca = self.ca();
        let mut writing = self.store.write().await?;
        let asked = Asked {
            ca: &ca,
            requested,
            public_key,
            device_key: HEXLOWER.encode(&plea.device_key),
            version: &plea.version,
            bundle: plea.bundle,
        };
        writing.one_by_one(&asked.public_key).await?;
        let said = match (answered_before(&mut writing, &asked, &plea.wish).await?, &plea.wish) {
            // The same answer as before, with what holds now.
            (Some((kept, member)), _) if kept.issuer == ca.issuer_key() => return self.issued(&ca, &member, kept.chain).await,
            // One by an earlier issuing CA isn't given again, it may lead to a root that is gone; nor is it a second use of the token, or a clone.
            (Some((_, member)), _) => self.sign(&mut writing, &asked, &member, false).await?,
            (None, Wish::Enroll { token, secret }) => self.enroll(&mut writing, &asked, token, secret).await?,
            (None, Wish::Renew { name, join_state }) => self.renew(&mut writing, &asked, name, *join_state).await?,
        };
        writing.commit().await?;
        Ok(said)
    }

    async fn enroll(&self, writing: &mut Writing<'_>, asked: &Asked<'_>, token: &[u8; 8], secret: &[u8; 32]) -> Result<Said, Stop> {
        let now_ms = self.clock.now().wall_ms;
        let (token, secret) = (HEXLOWER.encode(token), secret_digest(secret));
        let (role, grant) = match writing.use_token(&token, &secret, Role::Agent.as_str(), now_ms).await? {
            Some(grant) => (Role::Agent, grant),
            None => {
                let relay = writing.use_token(&token, &secret, Role::Relay.as_str(), now_ms).await?;
                (Role::Relay, relay.ok_or(Refusal::Token)?)
            }
        };
        let again = match role {
            Role::Agent => writing.member_of_key(&asked.device_key, &grant.site).await?,
            Role::Relay | Role::Hub | Role::Control => None,
        };
        let name = match &again {
            // After the mesh got a new root: it stays the device that it was, and what waits in its queue is its own.
            Some(member) => member.name.parse().map_err(|_| Refusal::Unknown)?,
            None => named(role, &grant).ok_or(Refusal::Token)?,
        };
        if let Some(device) = name.device()
            && let (Some(owner), Some(person)) = (writing.owner(&device).await?, &grant.person)
            && owner != *person
        {
            return Err(Refusal::OtherPerson.into());
        }
        let approved = role == Role::Relay || grant.person.is_some() || again.as_ref().is_some_and(|member| member.approved);
        if let Some(device) = name.device()
            && (again.is_none() || grant.person.is_some())
        {
            writing.keep_owner(&device, &grant).await?;
        }
        // A relay's computer may be replaced: a new token for its name binds the new one's key.
        let before = match again {
            Some(member) => Some(member),
            None => writing.member(&name.to_string()).await?,
        };
        let member = MemberRow {
            name: name.to_string(),
            device_key: asked.device_key.clone(),
            join_state: before.map_or(1, |before| before.join_state + 1),
            approved,
            token,
            joined_ms: now_ms,
            version: asked.version.to_owned(),
            allowed: 0,
            waits_ms: None,
            cloned_ms: None,
            denied_ms: None,
        };
        writing.keep_member(&member).await?;
        if let Some(RelayAt { address, door }) = grant.place {
            writing.keep_dial(&DialRow { name: member.name.clone(), site: grant.site, address, door }).await?;
        }
        tracing::info!(%name, approved, "somebody was enrolled");
        self.sign(writing, asked, &member, false).await
    }

    async fn renew(&self, writing: &mut Writing<'_>, asked: &Asked<'_>, name: &str, join_state: u64) -> Result<Said, Stop> {
        let now_ms = self.clock.now().wall_ms;
        let name: Name = name.parse().map_err(|_| Refusal::Unknown)?;
        let mut member = member_of(writing, asked, &name.to_string()).await?;
        writing.note_known(&member.name, SignedKind::Bundle.as_u8(), asked.bundle, now_ms).await?;
        let join_state = i64::try_from(join_state).map_err(|_| Refusal::Request)?;
        if join_state > member.join_state && self.is_from_before_a_backup(writing, &member).await? {
            tracing::info!(%name, "somebody came back after this database's backup was taken: its own count holds");
            member.join_state = join_state;
        }
        if join_state != member.join_state {
            tracing::error!(%name, "a request with a join state from before a later one: two disks have one device's key");
            metrics::counter!("muster_hub_clones_total").increment(1);
            if member.cloned_ms.is_none() {
                member.cloned_ms = Some(now_ms);
                writing.keep_member(&member).await?;
            }
            return Ok(Said::Refused(Refusal::Cloned));
        }
        member.version = asked.version.to_owned();
        let (end_ms, recoveries) = writing.issued_to(&member.name, now_ms.saturating_sub(RECOVERIES_WITHIN_MS)).await?;
        let recovers = end_ms.is_none_or(|end_ms| end_ms < now_ms);
        if recovers {
            if recoveries >= RECOVERIES_ALONE && member.allowed == 0 {
                member.waits_ms = member.waits_ms.or(Some(now_ms));
                writing.keep_member(&member).await?;
                return Ok(Said::Waiting);
            }
            if recoveries >= RECOVERIES_ALONE {
                member.allowed -= 1;
            }
            (member.waits_ms, member.join_state) = (None, member.join_state + 1);
            tracing::info!(%name, "somebody whose certificate had ended came back");
        }
        writing.keep_member(&member).await?;
        self.sign(writing, asked, &member, recovers).await
    }

    /// Since the database was put back, it has given this member no certificate: what it says of it may be older than the member.
    async fn is_from_before_a_backup(&self, writing: &mut Writing<'_>, member: &MemberRow) -> Result<bool, StoreError> {
        let (restored_ms, issued_ms) = (writing.restored_ms().await?, writing.last_issued_ms(&member.name).await?);
        Ok(restored_ms.is_some_and(|restored_ms| issued_ms.is_none_or(|issued_ms| issued_ms < restored_ms)))
    }

    async fn sign(&self, writing: &mut Writing<'_>, asked: &Asked<'_>, member: &MemberRow, recovery: bool) -> Result<Said, Stop> {
        let now_ms = self.clock.now().wall_ms;
        if now_ms > asked.ca.not_after_ms() {
            return Err(Refusal::NoIssuer.into());
        }
        let name: Name = member.name.parse().map_err(|_| Refusal::Unknown)?;
        let life_ms = match name.role() {
            Role::Agent => self.lives.agent_ms,
            Role::Relay | Role::Hub | Role::Control => self.lives.relay_ms,
        };
        let inside = |error: String| Stop::Store(StoreError::Other(format!("a certificate can't be made: {error}")));
        let identity = Identity::new(asked.ca.domain(), name).map_err(|error| inside(error.to_string()))?;
        // A certificate's times are whole seconds: in the second of its name's denial it would count as issued before that. So it would where the
        // denial's clock was ahead: by up to the time by which certificates are backdated it begins all the same.
        let issued_ms = match writing.denied_before(&member.name).await? {
            Some(before_ms) if before_ms <= now_ms.saturating_add(BACKDATED_MS) => {
                now_ms.max(before_ms.saturating_add(999) / 1_000 * 1_000)
            }
            Some(_) | None => now_ms,
        };
        let issuer = asked.ca.issuer();
        let chain = issuer.issue_for(&identity, &asked.requested, life_ms, issued_ms).map_err(|error| inside(error.to_string()))?;
        let leaf = chain.ders.first().ok_or_else(|| inside("it is empty".to_owned()))?;
        let leaf = read_leaf(leaf).map_err(|error| inside(error.to_string()))?;
        let row = CertificateRow {
            public_key: asked.public_key.clone(),
            name: member.name.clone(),
            serial: leaf.serial,
            issuer: asked.ca.issuer_key().to_owned(),
            chain: chain.pem.clone(),
            recovery,
            issued_ms,
            not_after_ms: chain.not_after_ms,
        };
        writing.keep_certificate(&row).await?;
        self.issued(asked.ca, member, chain.pem).await
    }

    async fn issued(&self, ca: &Ca, member: &MemberRow, chain: String) -> Result<Said, Stop> {
        Ok(Said::Issued(Issued {
            name: member.name.clone(),
            chain,
            roots: ca.roots_pem().to_owned(),
            join_state: member.join_state.unsigned_abs(),
            standing: if member.approved { Standing::Approved } else { Standing::Waiting },
            dial: self.dial(&member.name).await?,
            seal: self.seal.public().0,
        }))
    }

    /// Whom a member dials: a relay this hub, an agent the relays of its site.
    async fn dial(&self, name: &str) -> Result<Vec<Dial>, StoreError> {
        let name: Result<Name, _> = name.parse();
        match name {
            Ok(Name::Agent { site, .. }) => relays::doors(&self.store, &site).await,
            Ok(Name::Relay { .. }) => {
                let HubAt { name, address, door } = self.hub.clone();
                Ok(vec![Dial { address, door, name: name.to_string() }])
            }
            Ok(Name::Hub { .. } | Name::Control { .. }) | Err(_) => Ok(Vec::new()),
        }
    }
}

/// A request whose signatures are good.
struct Asked<'a> {
    /// By which it is answered.
    ca: &'a Ca,
    requested: Requested,
    /// Its SHA-256, hex.
    public_key: String,
    device_key: String,
    version: &'a str,
    /// The newest bundle of roots that the asker holds.
    bundle: Version,
}

/// Why a changed folder of the CA isn't in force.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("the CA's folder has changed and can't be used ({0}); what was in force stays")]
    Ca(#[from] CaError),
    #[error("the CA's folder can't be looked at: {0}")]
    Task(#[from] JoinError),
}

/// The certificate that this very key was given, if its member was given none since: its answer may have been lost, and then the member's join
/// state has risen without its knowing. Whoever comes with an older key comes with an older disk, and is heard like everybody else.
async fn answered_before(writing: &mut Writing<'_>, asked: &Asked<'_>, wish: &Wish) -> Result<Option<(CertificateRow, MemberRow)>, Stop> {
    let Some(kept) = writing.certificate(&asked.public_key).await? else { return Ok(None) };
    let member = member_of(writing, asked, &kept.name).await?;
    let is_of_now = match wish {
        Wish::Enroll { .. } => true,
        Wish::Renew { join_state, .. } => matches!(member.join_state.unsigned_abs().checked_sub(*join_state), Some(0 | 1)),
    };
    Ok(if is_of_now && writing.is_newest(&kept).await? { Some((kept, member)) } else { None })
}

/// Somebody who may have a certificate, as far as its device key says.
async fn member_of(writing: &mut Writing<'_>, asked: &Asked<'_>, name: &str) -> Result<MemberRow, Stop> {
    let member = writing.member(name).await?.filter(|member| member.device_key == asked.device_key).ok_or(Refusal::Unknown)?;
    if member.denied_ms.is_some() { Err(Refusal::Denied.into()) } else { Ok(member) }
}

/// Who the bearer of a token becomes. Device ids are the hub's, never hardware's.
fn named(role: Role, grant: &Grant) -> Option<Name> {
    let site = grant.site.clone();
    match (role, &grant.relay) {
        (Role::Agent, _) => Some(Name::Agent { site, device: Uuid::now_v7().into_bytes() }),
        (Role::Relay, Some(id)) => Some(Name::Relay { site, id: id.clone() }),
        (Role::Relay | Role::Hub | Role::Control, _) => None,
    }
}

/// What is kept of a token's secret.
pub fn secret_digest(secret: &[u8; 32]) -> String {
    hex_digest(secret)
}

fn hex_digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

fn count(wish: &'static str, outcome: &'static str) {
    metrics::counter!("muster_hub_certificate_requests_total", "wish" => wish, "outcome" => outcome).increment(1);
}
