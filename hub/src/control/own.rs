//! Async: this hub's own key: where it and its certificate come from, and whether it still counts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_certs::{
    Ca, Controller, KeyRequest, Keys, Leaf, Name, Role, When, check_control,
    files::{self, FileError},
    issuer::leaf_life_ms,
    material::{CHAIN_CERTIFICATES_MAX, certificates, root_store, utc_text},
    read_leaf,
};
use muster_mesh::{complaint::Complaint, control_key::ControlKey};

use crate::{
    config::{Config, ControlFiles},
    signer::Signer,
    store::{ControlKeyRow, Store, StoreError},
};

const KEY: &str = "control.key";
pub(super) const CERTIFICATE: &str = "control.pem";

/// A control key with its certificate.
pub struct Own {
    pub key: ControlKey,
    /// PEM.
    pub chain: String,
    /// None: it has this one for ever.
    pub renews: Option<Renews>,
}

/// How a hub comes by its next control certificate.
pub enum Renews {
    /// It has the issuing key, and issues it to itself. `state`: its state folder.
    Signer { signer: Arc<Signer>, key_pem: String, state: PathBuf },
    /// Somebody puts it there.
    Files(ControlFiles),
}

impl Own {
    pub(super) fn leads(&self) -> Option<&Signer> {
        match &self.renews {
            Some(Renews::Signer { signer, .. }) => Some(signer),
            Some(Renews::Files(_)) | None => None,
        }
    }

    /// From the files that the configuration names, or from the state folder and the signer.
    pub async fn find(config: &Config, keys: &Keys, signer: Option<&Arc<Signer>>, store: &Store, now_ms: i64) -> anyhow::Result<Own> {
        match (&config.control, signer) {
            (Some(files), _) => Ok(Own::of_files(files, keys, store, now_ms).await?),
            (None, Some(signer)) => Own::of_signer(&config.state, signer, store, now_ms).await,
            (None, None) => Err(signs_nothing().into()),
        }
    }

    pub(super) async fn of_files(at: &ControlFiles, keys: &Keys, store: &Store, now_ms: i64) -> Result<Own, Complaint> {
        let (own, key, chain) = read_files(at, keys, now_ms)?;
        if own.leaf.not_after_ms < now_ms {
            tracing::warn!(
                "the control certificate ended on {}: who joins now believes nothing that this hub says",
                utc_text(own.leaf.not_after_ms)
            );
        }
        let unreadable = |error: StoreError| Complaint::new(format!("The hub's database can't be read ({error})"), "Try again");
        let is_taken = is_taken(store, &own).await.map_err(unreadable)?;
        if was_ever_ended(store, own.n, &own.public_key).await.map_err(unreadable)? {
            return Err(was_ended(own.n));
        }
        if is_taken {
            return Err(Complaint::new(format!("control key {} is another hub's", own.n), "Issue this hub one with a number of its own"));
        }
        Ok(Own { key, chain, renews: Some(Renews::Files(at.clone())) })
    }

    pub(super) async fn of_signer(state: &Path, signer: &Arc<Signer>, store: &Store, now_ms: i64) -> anyhow::Result<Own> {
        let certificate = state.join(CERTIFICATE);
        let key_pem = key_pem(&state.join(KEY), store).await?;
        let public = ControlKey::from_pem(0, &key_pem).map(|key| key.public().to_vec());
        let ca = signer.ca();
        let kept = files::read(&certificate).ok().and_then(|chain| {
            let own = controller(&chain, &ca)?;
            (Some(&own.public_key) == public.as_ref()).then_some((chain, own))
        });
        let (n, kept) = match kept {
            Some((chain, own)) if !is_taken(store, &own).await? && !was_ever_ended(store, own.n, &own.public_key).await? => {
                (own.n, (!is_due(&chain, &ca, now_ms)).then_some(chain))
            }
            Some(_) | None => (store.highest_control_key().await?.saturating_add(1), None),
        };
        let chain = match kept {
            Some(chain) => chain,
            None => {
                let chain = signer.control_chain(n, &key_pem)?;
                files::write_public(&certificate, chain.as_bytes())?;
                chain
            }
        };
        let key = ControlKey::from_pem(n, &key_pem).ok_or_else(|| damaged_key(&state.join(KEY)))?;
        Ok(Own { key, chain, renews: Some(Renews::Signer { signer: signer.clone(), key_pem, state: state.to_owned() }) })
    }
}

/// What would stop `serve`, or what this hub signs with.
pub fn check(config: &Config, keys: &Keys, now_ms: i64) -> Result<String, Complaint> {
    match (&config.control, &config.signer) {
        (Some(files), _) => {
            let (own, _, _) = read_files(files, keys, now_ms)?;
            Ok(format!("{}, until {}", own.leaf.identity, utc_text(own.leaf.not_after_ms)))
        }
        (None, Some(_)) => Ok("with a key of its own, certified by the signer".to_owned()),
        (None, None) => Err(signs_nothing()),
    }
}

/// The number of the key that this hub signs with, as its files say it. None: it has none yet.
pub fn own_number(config: &Config) -> Option<u32> {
    match leaf_of(&own_chain(config)?)?.identity.name {
        Name::Control { n } => Some(n),
        Name::Hub { .. } | Name::Relay { .. } | Name::Agent { .. } => None,
    }
}

/// The public half of the key that this hub signs with, as its files say it. None: it has none yet.
pub fn own_public(config: &Config) -> Option<Vec<u8>> {
    public_of(&own_chain(config)?)
}

/// The end of the certificate that this hub issues to itself, and when it renews it, milliseconds UTC. None: it has none yet, or has one from files.
pub fn own_life(config: &Config) -> Option<(i64, i64)> {
    if config.control.is_some() || config.signer.is_none() {
        return None;
    }
    let leaf = leaf_of(&own_chain(config)?)?;
    Some((leaf.not_after_ms, renews_ms(&leaf)))
}

fn own_chain(config: &Config) -> Option<String> {
    let path = config.control.as_ref().map_or_else(|| config.state.join(CERTIFICATE), |files| files.certificate.clone());
    files::read(&path).ok()
}

fn signs_nothing() -> Complaint {
    let what = "this hub can sign nothing of what comes down, and no agent would believe it";
    Complaint::new(what, "Give [control] certificate and key, as `muster-certs issue control` writes them, or [signer]")
}

fn read_files(at: &ControlFiles, keys: &Keys, now_ms: i64) -> Result<(Controller, ControlKey, String), Complaint> {
    let todo = "Give what `muster-certs issue control` wrote as `control.certificate` and `control.key`";
    let unusable = |why: String| Complaint::new(format!("The hub's control certificate can't be used ({why})"), todo);
    let chain = files::read(&at.certificate).map_err(|error| unusable(error.to_string()))?;
    let pem = files::read_secret(&at.key).map_err(|error| unusable(error.to_string()))?;
    let roots = root_store(&keys.roots_pem()).map_err(|error| unusable(error.to_string()))?;
    let domain = keys.identity().domain;
    let own = check_control(&chain, "", &roots, &domain, When::Kept(now_ms)).map_err(|error| unusable(error.to_string()))?;
    let key = ControlKey::from_pem(own.n, &pem).filter(|key| key.public() == own.public_key);
    let key = key.ok_or_else(|| unusable("the key is that of another certificate, or none".to_owned()))?;
    Ok((own, key, chain))
}

/// The key of the state folder; made when it isn't there, or was ended.
async fn key_pem(path: &Path, store: &Store) -> anyhow::Result<String> {
    match files::read_secret(path) {
        Ok(pem) => {
            let key = ControlKey::from_pem(0, &pem).ok_or_else(|| damaged_key(path))?;
            if was_ever_ended(store, 0, key.public()).await? {
                let made = KeyRequest::generate()?.key_pem;
                files::write_secret(path, made.as_bytes())?;
                return Ok(made);
            }
            Ok(pem)
        }
        Err(FileError::Missing(_)) => {
            let made = KeyRequest::generate()?.key_pem;
            files::create_secret(path, made.as_bytes())?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

fn damaged_key(path: &Path) -> Complaint {
    Complaint::new(format!("{} holds no control key", path.display()), "Restore it, or take the file away: a new one is made")
}

pub(super) fn was_ended(n: u32) -> Complaint {
    let what = format!("control key {n} was ended, and nobody believes what it signs");
    Complaint::new(what, "Put another into the files of [control], as `muster-certs issue control` writes it with a number that none had")
}

pub(super) async fn ended_keys(store: &Store) -> Result<Vec<ControlKeyRow>, StoreError> {
    let mut keys = store.control_keys_ever().await?;
    keys.retain(|key| key.ended_ms.is_some());
    Ok(keys)
}

/// A number never comes back, and neither does a key.
async fn was_ever_ended(store: &Store, n: u32, public_key: &[u8]) -> Result<bool, StoreError> {
    let is_it = |ended: &ControlKeyRow| ended.n == n || public_of(&ended.chain).is_some_and(|public| public == public_key);
    Ok(ended_keys(store).await?.iter().any(is_it))
}

/// What the certificate of a control key says.
pub(super) fn leaf_of(chain: &str) -> Option<Leaf> {
    let ders = certificates("certificate", chain, CHAIN_CERTIFICATES_MAX).ok()?;
    read_leaf(ders.first()?).ok()
}

/// Whether another key has this number.
async fn is_taken(store: &Store, own: &Controller) -> Result<bool, StoreError> {
    let rows = store.control_keys().await?;
    let Some(row) = rows.iter().find(|row| row.n == own.n) else { return Ok(false) };
    Ok(public_of(&row.chain).is_some_and(|public| public != own.public_key))
}

/// Of a chain that was checked when it became a row.
fn public_of(chain: &str) -> Option<Vec<u8>> {
    muster_certs::control::public_key(chain).ok()
}

/// Behind which one of the CA's roots stands.
fn controller(chain: &str, ca: &Ca) -> Option<Controller> {
    check_control(chain, "", &root_store(ca.roots_pem()).ok()?, ca.domain(), When::Kept(i64::MAX)).ok()
}

/// At half of its life, and when another issuing CA issues.
pub(super) fn is_due(chain: &str, ca: &Ca, now_ms: i64) -> bool {
    let Some(own) = controller(chain, ca).filter(|own| own.leaf.issuer.as_deref() == Some(ca.issuer_key())) else { return true };
    now_ms > renews_ms(&own.leaf)
}

fn renews_ms(leaf: &Leaf) -> i64 {
    let life_ms = leaf.not_after_ms.saturating_sub(leaf.not_before_ms).min(leaf_life_ms(Role::Control));
    leaf.not_after_ms.saturating_sub(life_ms / 2)
}
