//! Async: who of those who were enrolled holds which certificate and which roots, as `muster-certs` reads it before a step of a rotation.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use muster_certs::{EarlierLeaf, Fingerprint, HubCertificate, HubKey, Member, Report};
use muster_mesh::{
    complaint::Complaint,
    ids::Version,
    message::{Bundle, MessageError, SignedKind},
};

use crate::{
    config::Config,
    control, running,
    store::{CertificateRow, Store, StoreError},
};

/// Members that are read at a time.
const PAGE: i64 = 1_000;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a bundle in the database doesn't read: {0}")]
    Bundle(#[from] MessageError),
}

/// Of the running hub's database; `own` is [`own`]. By which CA it signs is read first: behind that, nothing of an earlier one is added any more.
pub async fn report(store: &Store, domain: &str, own: OfHub, now_ms: i64) -> Result<Report, ReportError> {
    let kind = SignedKind::Bundle.as_u8();
    let newest = store.newest_paper(kind).await?.map(|paper| Bundle::read(&paper.body)).transpose()?;
    let signer_key = newest.as_ref().map(|bundle| bundle.issuer.clone()).filter(|issuer| !issuer.is_empty());
    let held = match &newest {
        Some(newest) => held(store, kind, newest).await?,
        None => BTreeMap::new(),
    };
    let certificates = store.last_certificates().await?;
    let certificates: HashMap<&str, &CertificateRow> = certificates.iter().map(|row| (row.name.as_str(), row)).collect();
    let mut living: BTreeMap<String, Vec<EarlierLeaf>> = BTreeMap::new();
    for (name, leaf) in store.living_of_denied(now_ms).await? {
        living.entry(name).or_default().push(leaf);
    }
    let mut members = Vec::new();
    let mut after = String::new();
    loop {
        let page = store.members(&after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        members.extend(page.into_iter().map(|member| {
            let certificate = certificates.get(member.name.as_str());
            Member {
                bundle_version: held.get(&member.name).copied(),
                issuer_key: certificate.map(|row| row.issuer.clone()),
                serial: certificate.map(|row| row.serial.clone()),
                not_after_ms: certificate.map(|row| row.not_after_ms),
                last_seen_ms: certificate.map(|row| row.issued_ms),
                denied: member.denied_ms.is_some(),
                earlier: earlier(living.remove(&member.name), certificate),
                name: member.name,
            }
        }));
    }
    let OfHub { keys, certificates } = own;
    Ok(Report { domain: domain.to_owned(), at_ms: now_ms, signer_key, keys, certificates, members })
}

/// Without the last one.
fn earlier(living: Option<Vec<EarlierLeaf>>, last: Option<&&CertificateRow>) -> Vec<EarlierLeaf> {
    living.into_iter().flatten().filter(|leaf| last.is_none_or(|last| last.serial != leaf.serial)).collect()
}

/// What a hub tells of itself.
#[derive(Debug, Clone, Default)]
pub struct OfHub {
    pub keys: Vec<HubKey>,
    pub certificates: Vec<HubCertificate>,
}

/// As this hub's files have it.
pub fn own(config: &Config) -> Result<OfHub, Complaint> {
    Ok(OfHub { keys: own_keys(config)?, certificates: own_certificates(config)? })
}

/// Those that the CA doesn't list: the organisation's, and the one that this hub issues to itself.
fn own_certificates(config: &Config) -> Result<Vec<HubCertificate>, Complaint> {
    let of = |what: &str, not_after_ms, renews_ms| HubCertificate { what: what.to_owned(), not_after_ms, renews_ms };
    let web = running::web_keys(config)?.map(|web| of("the hub's web certificate (web.certificate)", web.not_after_ms(), None));
    let control = control::own_life(config).map(|(end_ms, renews_ms)| of("the hub's control certificate", end_ms, Some(renews_ms)));
    Ok([web, control].into_iter().flatten().collect())
}

/// The keys that this hub has alone and that should have a backup, by their public halves. One that isn't there yet is none.
pub fn own_keys(config: &Config) -> Result<Vec<HubKey>, Complaint> {
    let of = |what: &str, public: &[u8]| HubKey { what: what.to_owned(), key: HEXLOWER.encode(digest(&SHA256, public).as_ref()) };
    // Nobody seals anything to a hub without the issuing key.
    let seal = config.signer.as_ref().map(|_| config.kept_seal_key()).transpose()?.flatten();
    let seal = seal.map(|key| of("the hub's sealing key (seal.key)", &key.public().0));
    let control = control::own_public(config).map(|public| of("the hub's control key (control.key)", &public));
    Ok([seal, control].into_iter().flatten().collect())
}

/// Of each who said which bundle it holds the version of the CA's roots in there. What this database doesn't know says nothing, and neither does
/// a bundle without any root of the newest: it may be another CA's, that counted on its own.
async fn held(store: &Store, kind: u8, newest: &Bundle) -> Result<BTreeMap<String, u64>, ReportError> {
    let mut known: HashMap<Version, Option<u64>> = HashMap::new();
    let mut held = BTreeMap::new();
    for (name, version) in store.held_versions(kind).await? {
        let ca = match known.get(&version) {
            Some(ca) => *ca,
            None => {
                let bundle = store.paper(kind, version).await?.map(|paper| Bundle::read(&paper.body)).transpose()?;
                let ca = bundle.filter(|bundle| bundle.ca > 0 && share_a_root(bundle, newest)).map(|bundle| bundle.ca);
                known.insert(version, ca);
                ca
            }
        };
        if let Some(ca) = ca {
            held.insert(name, ca);
        }
    }
    Ok(held)
}

fn share_a_root(one: &Bundle, other: &Bundle) -> bool {
    let fingerprints = |bundle: &Bundle| Fingerprint::of_roots(&bundle.roots).unwrap_or_default();
    let others = fingerprints(other);
    fingerprints(one).iter().any(|root| others.contains(root))
}
