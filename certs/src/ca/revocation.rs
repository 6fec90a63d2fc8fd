//! Blocking: the revoked as lists (CRL) for other people's software. No program of this mesh reads one: the hub's list of the denied reaches
//! everybody sooner.

use std::collections::{BTreeMap, BTreeSet};

use super::{Ca, CaError, ISSUING_FOLDER};
use crate::files;
use crate::issuer::{Issuer, RevokedSerial};
use crate::ledger;
use crate::members::Report;

/// A list says by when the next one comes.
const NEXT_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// The list of one issuing CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    /// Which issuing CA: its key identifier.
    pub issuer_key: String,
    /// How many certificates stand in it.
    pub certificates: usize,
    /// The list.
    pub pem: String,
}

/// The lists of all issuing CAs whose keys are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationLists {
    /// One per issuing CA.
    pub lists: Vec<RevocationList>,
    /// Revoked certificates that haven't ended, of issuing CAs whose keys are gone: nobody can list them.
    pub left_out: usize,
}

impl Ca {
    /// Who was revoked here, and who was denied at the hub by its report, as far as their certificates haven't ended.
    pub fn revocation_lists(&self, report: Option<&Report>) -> Result<RevocationLists, CaError> {
        let now_ms = self.now_ms()?;
        let revoked = self.revoked_serials(report, now_ms)?;
        let mut lists = Vec::new();
        for authority in self.state.kept_keys() {
            let key = self.dir.join(ISSUING_FOLDER).join(format!("{}.key", authority.file));
            let issuer = Issuer::from_pem(self.domain(), &authority.pem, &files::read_secret(&key)?)?;
            let serials: Vec<RevokedSerial> = revoked.get(&authority.key).into_iter().flatten().cloned().collect();
            // The lists only grow within a second: together this rises from list to list.
            let number = now_ms.unsigned_abs().saturating_add(serials.len().min(999) as u64);
            let pem = issuer.revocation_list(&serials, number, now_ms, now_ms.saturating_add(NEXT_MS))?;
            lists.push(RevocationList { issuer_key: authority.key.clone(), certificates: serials.len(), pem });
        }
        let listed: usize = lists.iter().map(|list| list.certificates).sum();
        Ok(RevocationLists { lists, left_out: revoked.values().map(BTreeSet::len).sum::<usize>().saturating_sub(listed) })
    }

    /// By issuing CA.
    fn revoked_serials(&self, report: Option<&Report>, now_ms: i64) -> Result<BTreeMap<String, BTreeSet<RevokedSerial>>, CaError> {
        let mut serials: BTreeMap<String, BTreeSet<RevokedSerial>> = BTreeMap::new();
        let mut add = |issuer: &str, serial: &str, at_ms: i64| {
            serials.entry(issuer.to_owned()).or_default().insert(RevokedSerial { serial: serial.to_owned(), at_ms });
        };
        let by_name: BTreeMap<String, ledger::Revoked> =
            ledger::revoked(&self.revoked_path())?.into_iter().map(|revoked| (revoked.name.clone(), revoked)).collect();
        for certificate in ledger::certificates(&self.certificates_path())? {
            let revoked = by_name.get(&certificate.name).filter(|revoked| certificate.issued_ms <= revoked.issued_before_ms);
            if let Some(revoked) = revoked.filter(|_| certificate.not_after_ms >= now_ms) {
                add(&certificate.issuer_key, &certificate.serial, revoked.at_ms);
            }
        }
        for member in report.iter().flat_map(|report| &report.members).filter(|member| member.denied) {
            let last = member.issuer_key.as_ref().zip(member.serial.as_ref()).zip(member.not_after_ms);
            let earlier = member.earlier.iter().map(|leaf| ((&leaf.issuer_key, &leaf.serial), leaf.not_after_ms));
            for ((issuer, serial), _) in last.into_iter().chain(earlier).filter(|(_, end_ms)| *end_ms >= now_ms) {
                add(issuer, serial, report.map_or(now_ms, |report| report.at_ms.min(now_ms)));
            }
        }
        Ok(serials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{EarlierLeaf, Member};

    #[test]
    fn each_living_certificate_of_who_was_denied_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), "test.internal").unwrap();
        let now_ms = ca.now_ms().unwrap();
        let key = ca.issuer_key().to_owned();
        let earlier = |serial: &str, not_after_ms| EarlierLeaf { issuer_key: key.clone(), serial: serial.into(), not_after_ms };
        let member = |name: &str, serial: &str, denied| Member {
            name: name.into(),
            bundle_version: None,
            issuer_key: Some(key.clone()),
            serial: Some(serial.into()),
            not_after_ms: Some(now_ms + 60_000),
            last_seen_ms: None,
            denied,
            earlier: vec![earlier("76", now_ms + 30_000), earlier("75", now_ms - 30_000)],
        };
        let listed = |members| {
            let report = Report {
                domain: "test.internal".into(),
                at_ms: now_ms,
                signer_key: None,
                keys: Vec::new(),
                certificates: Vec::new(),
                members,
            };
            ca.revoked_serials(Some(&report), now_ms).unwrap().remove(&key).unwrap_or_default().into_iter().map(|it| it.serial).collect()
        };
        let both: Vec<String> = listed(vec![member("site/oslo/relay/oslo-1", "77", true), member("site/oslo/relay/oslo-2", "78", false)]);
        assert_eq!(both, ["76", "77"]);
    }
}
