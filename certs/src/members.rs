//! Quiet: who holds which certificate and which roots. The hub knows it of those who were enrolled, and prints it as a [`Report`], which people
//! carry to where the CA is; of certificates that were issued into files the CA has its own list.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::identity::{IdentityError, Name, Role};
use crate::leaf::stranger_text;
use crate::material::utc_text;

/// How old a report may be where it decides: what was issued meanwhile isn't in it.
pub const REPORT_AGE_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// How far the hub's clock may be ahead.
const AHEAD_MAX_MS: i64 = 10 * 60 * 1000;
/// The most words, in characters, that a hub has for a key or a certificate of its own.
const WHAT_CHARS_MAX: usize = 80;
/// A key identifier has 20 bytes; nobody's has more than this, as hex.
const KEY_CHARS_MAX: usize = 128;

/// What `muster-hub member list --json` prints, as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The trust domain.
    pub domain: String,
    /// When it was made, milliseconds UTC.
    pub at_ms: i64,
    /// The subject key identifier of the issuing CA by which the hub signs at that moment, lower-case hex; null: another hub does.
    #[serde(default)]
    pub signer_key: Option<String>,
    /// Keys of that hub itself that should have a backup; none: a hub of an older version, or one that never ran.
    #[serde(default)]
    pub keys: Vec<HubKey>,
    /// Certificates of that hub itself that the CA doesn't list; none: a hub of an older version.
    #[serde(default)]
    pub certificates: Vec<HubCertificate>,
    /// Everybody who was enrolled, once.
    pub members: Vec<Member>,
}

/// A key of a hub's own, by its public half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubKey {
    /// What it is, in a few words: `the hub's sealing key (seal.key)`.
    pub what: String,
    /// SHA-256 of the public key, lower-case hex.
    pub key: String,
}

/// A certificate of a hub's own that no list of the CA has: another CA's, or one that the hub gives itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubCertificate {
    /// What it is, in a few words: `the hub's web certificate (web.certificate)`.
    pub what: String,
    /// Its end, milliseconds UTC.
    pub not_after_ms: i64,
    /// When the hub renews it by itself, at half of its life, milliseconds UTC; null: somebody has to get another.
    pub renews_ms: Option<i64>,
}

/// One member. Fields that this version doesn't know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who: `site/oslo/relay/oslo-1`.
    pub name: String,
    /// The version of the roots' bundle that it reported last; null: it never did.
    pub bundle_version: Option<u64>,
    /// The authority key identifier of the leaf issued to it last, lower-case hex ([`crate::leaf::issuer_key`]).
    pub issuer_key: Option<String>,
    /// The serial number of that leaf, lower-case hex.
    #[serde(default)]
    pub serial: Option<String>,
    /// The end of that leaf, milliseconds UTC; null: none was issued yet.
    pub not_after_ms: Option<i64>,
    /// When it last asked the hub for a certificate, and got that leaf, milliseconds UTC.
    pub last_seen_ms: Option<i64>,
    /// Whether it was denied: it counts no more.
    #[serde(default)]
    pub denied: bool,
    /// Of one that was denied, those from before the last that haven't ended: who has such a key still has a certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierLeaf>,
}

/// A certificate that was issued to a member before its last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierLeaf {
    /// Which issuing CA: its key identifier, lower-case hex.
    pub issuer_key: String,
    /// Its serial number, lower-case hex.
    pub serial: String,
    /// Its end, milliseconds UTC.
    pub not_after_ms: i64,
}

/// Why a report can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Not the JSON that it should be.
    #[error("this is not what muster-hub member list --json prints ({0})")]
    Unreadable(String),
    /// Another mesh.
    #[error("the report is of the mesh {found}, and this CA is of {own}")]
    OtherDomain {
        /// The report's domain, fit for a terminal.
        found: String,
        /// The CA's.
        own: String,
    },
    /// A name outside the grammar.
    #[error("member {number} of the report, \"{name}\", is nobody: {why}")]
    Name {
        /// Its place, from 1.
        number: usize,
        /// The name, escaped and cut.
        name: String,
        /// The rule it breaks.
        why: IdentityError,
    },
    /// A name that stands there twice.
    #[error("member {number} of the report, {name}, stands there twice; make a new report")]
    Twice {
        /// Its place, from 1.
        number: usize,
        /// Who.
        name: Name,
    },
    /// A key identifier or serial number that is none.
    #[error("member {number} of the report, {name}, has a key or serial number that isn't lower-case hex")]
    Hex {
        /// Its place, from 1.
        number: usize,
        /// Who.
        name: Name,
    },
    /// A key of the hub's own that isn't told as one.
    #[error("key {0} of the report isn't one: lower-case hex, and a few plain words")]
    HubKey(usize),
    /// A certificate of the hub's own that isn't told as one.
    #[error("certificate {0} of the report isn't told in a few plain words")]
    HubCertificate(usize),
    /// Too old to decide by.
    #[error("the report is of {}, more than a day ago; make a new one: muster-hub member list --json", utc_text(*.0))]
    Old(i64),
    /// Made in the future.
    #[error("the report is of {}, and that is still to come; check both computers' clocks", utc_text(*.0))]
    Future(i64),
}

/// Somebody with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub name: Name,
    /// The version of the bundle it holds, if anybody knows.
    pub bundle: Option<u64>,
    /// Which issuing CA its leaf is from, if anybody knows.
    pub issuer_key: Option<String>,
    /// Its leaf's serial number.
    pub serial: Option<String>,
    /// When its leaf was issued, milliseconds UTC, if anybody knows.
    pub issued_ms: Option<i64>,
    /// The end of its leaf, milliseconds UTC.
    pub not_after_ms: Option<i64>,
    /// Whether it renews by itself: it was enrolled. Others' certificates lie in files.
    pub enrolled: bool,
    /// Whether it was denied.
    pub denied: bool,
}

impl Holder {
    /// Whether its leaf is good at `now_ms`, as far as time goes.
    pub fn is_alive(&self, now_ms: i64) -> bool {
        self.not_after_ms.is_some_and(|end_ms| now_ms <= end_ms)
    }
}

impl HubKey {
    /// Whether a terminal can show it.
    fn is_plain(&self) -> bool {
        is_hex(&self.key) && is_plain(&self.what)
    }
}

impl Report {
    /// Reads a report and checks every entry.
    pub fn read(text: &str, domain: &str) -> Result<Report, ReportError> {
        let report: Report = serde_json::from_str(text).map_err(|e| ReportError::Unreadable(stranger_text(&e.to_string())))?;
        if report.domain != domain {
            return Err(ReportError::OtherDomain { found: stranger_text(&report.domain), own: domain.to_owned() });
        }
        report.holders()?;
        let bad = (1..).zip(&report.keys).find(|(_, key)| !key.is_plain());
        if let Some((number, _)) = bad {
            return Err(ReportError::HubKey(number));
        }
        let bad = (1..).zip(&report.certificates).find(|(_, certificate)| !is_plain(&certificate.what));
        if let Some((number, _)) = bad {
            return Err(ReportError::HubCertificate(number));
        }
        Ok(report)
    }

    /// Refuses one by which nothing should be decided any more.
    pub fn check_age(&self, now_ms: i64) -> Result<(), ReportError> {
        if self.at_ms > now_ms.saturating_add(AHEAD_MAX_MS) {
            return Err(ReportError::Future(self.at_ms));
        }
        if now_ms.saturating_sub(self.at_ms) > REPORT_AGE_MAX_MS {
            return Err(ReportError::Old(self.at_ms));
        }
        Ok(())
    }

    /// Everybody in it.
    pub fn holders(&self) -> Result<Vec<Holder>, ReportError> {
        let mut seen = BTreeSet::new();
        let mut holders = Vec::with_capacity(self.members.len());
        for (number, member) in (1..).zip(&self.members) {
            let name: Name = member.name.parse().map_err(|why| ReportError::Name { number, name: stranger_text(&member.name), why })?;
            if !seen.insert(member.name.as_str()) {
                return Err(ReportError::Twice { number, name });
            }
            let earlier = member.earlier.iter().flat_map(|leaf| [&leaf.issuer_key, &leaf.serial]);
            if ![&member.issuer_key, &member.serial].into_iter().flatten().chain(earlier).all(|text| is_hex(text)) {
                return Err(ReportError::Hex { number, name });
            }
            holders.push(Holder {
                name,
                bundle: member.bundle_version,
                issuer_key: member.issuer_key.clone(),
                serial: member.serial.clone(),
                issued_ms: member.last_seen_ms,
                not_after_ms: member.not_after_ms,
                enrolled: true,
                denied: member.denied,
            });
        }
        Ok(holders)
    }
}

/// Everybody by name: what the hub reports goes before what lies in the CA's own list, where a name may stand with each certificate that it may use.
pub fn everybody(reported: Vec<Holder>, listed: Vec<Holder>) -> Vec<Holder> {
    let mut all: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
    for holder in listed {
        all.entry(holder.name.to_string()).or_default().push(holder);
    }
    for holder in reported {
        all.insert(holder.name.to_string(), vec![holder]);
    }
    all.into_values().flatten().collect()
}

/// Whether somebody holds roots at all: a control certificate only signs.
pub(crate) fn trusts_others(holder: &Holder) -> bool {
    holder.name.role() != Role::Control
}

fn is_plain(what: &str) -> bool {
    let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    (1..=WHAT_CHARS_MAX).contains(&what.len()) && what.bytes().all(is_plain)
}

fn is_hex(text: &str) -> bool {
    (1..=KEY_CHARS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(members: &str) -> String {
        format!(r#"{{"domain":"test.internal","at_ms":1800000000000,"members":[{members}]}}"#)
    }

    fn member(name: &str) -> String {
        format!(r#"{{"name":{name:?},"bundle_version":2,"issuer_key":"0a1b","not_after_ms":1,"last_seen_ms":null,"team":7}}"#)
    }

    #[test]
    fn the_format_is_the_golden_one() {
        let report = Report {
            domain: "test.internal".into(),
            at_ms: 1_800_000_000_000,
            signer_key: Some("0c".into()),
            keys: vec![HubKey { what: "the hub's sealing key (seal.key)".into(), key: "5e".into() }],
            certificates: vec![HubCertificate {
                what: "the hub's web certificate (web.certificate)".into(),
                not_after_ms: 1_802_000_000_000,
                renews_ms: None,
            }],
            members: vec![Member {
                name: "site/oslo/relay/oslo-1".into(),
                bundle_version: Some(3),
                issuer_key: Some("0a1b".into()),
                serial: Some("77".into()),
                not_after_ms: Some(1_801_000_000_000),
                last_seen_ms: Some(1_799_999_999_000),
                denied: true,
                earlier: vec![EarlierLeaf { issuer_key: "0a1b".into(), serial: "76".into(), not_after_ms: 1_800_500_000_000 }],
            }],
        };
        let golden = concat!(
            r#"{"domain":"test.internal","at_ms":1800000000000,"signer_key":"0c","keys":[{"what":"the hub's sealing key (seal.key)","key":"5e"}],"#,
            r#""certificates":[{"what":"the hub's web certificate (web.certificate)","not_after_ms":1802000000000,"renews_ms":null}],"#,
            r#""members":[{"name":"site/oslo/relay/oslo-1","bundle_version":3,"issuer_key":"0a1b","serial":"77","not_after_ms":1801000000000,"last_seen_ms":1799999999000,"denied":true,"#,
            r#""earlier":[{"issuer_key":"0a1b","serial":"76","not_after_ms":1800500000000}]}]}"#
        );
        assert_eq!(serde_json::to_string(&report).unwrap(), golden);
        assert_eq!(Report::read(golden, "test.internal").unwrap(), report);
    }

    #[test]
    fn what_an_older_hub_leaves_out_and_a_newer_one_adds_reads_all_the_same() {
        let read = Report::read(&report(&member("site/oslo/relay/oslo-1")), "test.internal").unwrap();
        assert_eq!(read.holders().unwrap()[0].bundle, Some(2));
        let one = &read.members[0];
        assert_eq!((one.serial.as_deref(), one.denied, one.earlier.len()), (None, false, 0));
        assert_eq!((read.signer_key, read.keys, read.certificates), (None, Vec::new(), Vec::new()));
    }

    #[test]
    fn names_with_hostile_bytes_are_refused_and_shown_harmlessly() {
        for hostile in ["\u{1b}[31mred", "site/oslo/relay/../x", "a\nb", "\u{202e}abc", "", "hub/é", &"x".repeat(100_000)] {
            let text = serde_json::json!({"domain": "test.internal", "at_ms": 1, "members": [
                {"name": "hub/hub-1", "bundle_version": null, "issuer_key": null, "not_after_ms": null, "last_seen_ms": null},
                {"name": hostile, "bundle_version": null, "issuer_key": null, "not_after_ms": null, "last_seen_ms": null}]});
            let error = Report::read(&text.to_string(), "test.internal").unwrap_err();
            assert!(matches!(error, ReportError::Name { number: 2, .. }), "{hostile:?}: {error}");
            let shown = error.to_string();
            assert!(shown.chars().all(|c| c.is_ascii_graphic() || c == ' ' || c == '…') && shown.len() < 600, "{shown}");
        }
    }

    #[test]
    fn rubbish_another_mesh_repeats_and_bad_keys_are_refused() {
        let one = member("site/oslo/relay/oslo-1");
        assert!(matches!(Report::read("[]", "test.internal"), Err(ReportError::Unreadable(_))));
        assert!(matches!(Report::read("\u{1b}", "test.internal"), Err(ReportError::Unreadable(_))));
        assert!(matches!(Report::read(&report(&one), "other"), Err(ReportError::OtherDomain { .. })));
        assert!(matches!(Report::read(&report(&format!("{one},{one}")), "test.internal"), Err(ReportError::Twice { number: 2, .. })));
        let bad = one.replace("0a1b", "0A1B\\u001b");
        assert!(matches!(Report::read(&report(&bad), "test.internal"), Err(ReportError::Hex { number: 1, .. })));
        let bad = one.replace(r#""team":7"#, r#""denied":true,"earlier":[{"issuer_key":"0a","serial":"\u001b","not_after_ms":1}]"#);
        assert!(matches!(Report::read(&report(&bad), "test.internal"), Err(ReportError::Hex { number: 1, .. })));
        for (what, key) in [("seal", "0A"), ("seal", ""), ("", "0a"), ("\u{1b}[2J", "0a"), (&*"s".repeat(81), "0a")] {
            let keys = serde_json::json!([{"what": "the hub's sealing key (seal.key)", "key": "0a"}, {"what": what, "key": key}]);
            let text = serde_json::json!({"domain": "test.internal", "at_ms": 1, "keys": keys, "members": []}).to_string();
            assert_eq!(Report::read(&text, "test.internal"), Err(ReportError::HubKey(2)), "{what:?} {key:?}");
        }
        for what in ["", "\u{1b}[2J", &*"s".repeat(81)] {
            let certificates = serde_json::json!([{"what": what, "not_after_ms": 1, "renews_ms": null}]);
            let text = serde_json::json!({"domain": "test.internal", "at_ms": 1, "certificates": certificates, "members": []}).to_string();
            assert_eq!(Report::read(&text, "test.internal"), Err(ReportError::HubCertificate(1)), "{what:?}");
        }
    }

    #[test]
    fn a_report_of_last_week_and_one_of_tomorrow_decide_nothing() {
        let read = Report::read(&report(""), "test.internal").unwrap();
        let at_ms = 1_800_000_000_000;
        assert_eq!(read.check_age(at_ms + REPORT_AGE_MAX_MS), Ok(()));
        assert_eq!(read.check_age(at_ms + REPORT_AGE_MAX_MS + 1), Err(ReportError::Old(at_ms)));
        assert_eq!(read.check_age(at_ms - AHEAD_MAX_MS), Ok(()));
        assert_eq!(read.check_age(at_ms - AHEAD_MAX_MS - 1), Err(ReportError::Future(at_ms)));
    }

    #[test]
    fn the_report_goes_before_the_list() {
        let holder = |end_ms: i64, enrolled: bool| Holder {
            name: "hub/hub-1".parse().unwrap(),
            bundle: None,
            issuer_key: None,
            serial: None,
            issued_ms: None,
            not_after_ms: Some(end_ms),
            enrolled,
            denied: false,
        };
        let ends = |reported, listed| everybody(reported, listed).iter().map(|one| one.not_after_ms).collect::<Vec<_>>();
        assert_eq!(ends(vec![], vec![holder(2, false), holder(1, false)]), [Some(2), Some(1)]);
        assert_eq!(ends(vec![holder(3, true)], vec![holder(2, false), holder(1, false)]), [Some(3)]);
    }
}
