//! Quiet: what each verb answers: one struct, as JSON and as text for people.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::io::{Result, Write};
use std::path::PathBuf;

use muster_certs::description::Description;
use muster_certs::doctor::{Checkup, Key, KeyOf};
use muster_certs::ledger::{Certificate, Revoked};
use muster_certs::material::utc_text;
use muster_certs::rotation::{Kind, Phase, Why};
use serde::Serialize;

/// Findings of one kind that people are shown; JSON has all.
const LINES_SHOWN: usize = 50;

/// What people are shown instead of JSON.
pub(crate) trait Answer {
    fn text(&self, out: &mut dyn Write) -> Result<()>;
}

/// `init`.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    pub domain: String,
    pub roots: PathBuf,
    pub issues_until_ms: i64,
}

impl Answer for Made {
    /// The remarks say it.
    fn text(&self, _out: &mut dyn Write) -> Result<()> {
        Ok(())
    }
}

/// `issue`, `renew`.
#[derive(Debug, Serialize)]
pub(crate) struct Issued {
    pub certificates: Vec<IssuedOne>,
}

/// A certificate and its key, in files.
#[derive(Debug, Serialize)]
pub(crate) struct IssuedOne {
    pub identity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub not_after_ms: i64,
}

impl Answer for Issued {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        for one in &self.certificates {
            writeln!(out, "{}", one.device.as_ref().unwrap_or(&one.identity))?;
        }
        Ok(())
    }
}

/// `rotate`.
#[derive(Debug, Serialize)]
pub(crate) struct Rotation {
    pub issues: Signer,
    pub roots: Vec<Signer>,
    pub bundle_version: u64,
    /// Null: none is under way.
    pub rotation: Option<UnderWay>,
    /// Whom the step that was just done has cut off.
    pub cut_off: Vec<CutOff>,
    /// Keys that were just destroyed.
    pub destroyed: Vec<PathBuf>,
}

/// A CA certificate.
#[derive(Debug, Serialize)]
pub(crate) struct Signer {
    pub file: String,
    pub key: String,
    pub not_after_ms: i64,
}

/// How far a rotation is.
#[derive(Debug, Serialize)]
pub(crate) struct UnderWay {
    pub of: Kind,
    pub phase: Phase,
    pub started_ms: i64,
    pub since_ms: i64,
    pub way_back: bool,
    /// Whether the next step needs the hub's report.
    pub needs_members: bool,
    /// Whom the next step would cut off; null: nobody says who holds what.
    pub would_cut_off: Option<Vec<CutOff>>,
}

/// Somebody whom a step cuts off.
#[derive(Debug, Serialize)]
pub(crate) struct CutOff {
    pub name: String,
    pub why: Why,
}

impl Answer for Rotation {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "issues    {}", self.issues.text())?;
        for root in &self.roots {
            writeln!(out, "root      {}", root.text())?;
        }
        writeln!(out, "bundle    version {}", self.bundle_version)?;
        for cut in &self.cut_off {
            writeln!(out, "cut off   {} ({})", cut.name, cut.why)?;
        }
        for path in &self.destroyed {
            writeln!(out, "destroyed {}; its backups are still keys", path.display())?;
        }
        match &self.rotation {
            Some(turn) => turn.text(out),
            None => writeln!(out, "rotation  none is under way"),
        }
    }
}

impl Signer {
    fn text(&self) -> String {
        format!("{}, key {}, until {}", self.file, self.key, utc_text(self.not_after_ms))
    }
}

impl UnderWay {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "rotation  of {}: {}, since {}", self.of, self.now(), utc_text(self.since_ms))?;
        writeln!(out, "next      rotate advance: {}", self.next())?;
        if self.way_back {
            writeln!(out, "back      rotate back: {}", self.back())?;
        }
        match &self.would_cut_off {
            None if self.needs_members => {
                writeln!(out, "members   say by --members FILE who holds what, and the next step says whom it would cut off")
            }
            None => Ok(()),
            Some(cut) if cut.is_empty() => writeln!(out, "members   nobody would be cut off"),
            Some(cut) => {
                writeln!(out, "members   the next step would cut off {}:", cut.len())?;
                for cut in cut.iter().take(LINES_SHOWN) {
                    writeln!(out, "          {} ({})", cut.name, cut.why)?;
                }
                more(cut.len(), out)
            }
        }
    }

    fn now(&self) -> &'static str {
        match (self.of, self.phase) {
            (Kind::Issuing, Phase::Prepared) => "the new one lies ready, the old one issues",
            (Kind::Root, Phase::Prepared) => "the new one is in the bundle beside the old, the old issuing CA issues",
            (Kind::Issuing | Kind::Root, Phase::Switched) => "the new one issues",
            (Kind::Issuing | Kind::Root, Phase::Retired) => "the bundle holds the new one alone, chains carry the cross certificate",
        }
    }

    fn next(&self) -> &'static str {
        match (self.of, self.phase) {
            (Kind::Issuing | Kind::Root, Phase::Prepared) => "issue from the new one",
            (Kind::Issuing, Phase::Switched) => "destroy the old key, when nobody holds a certificate of it any more",
            (Kind::Root, Phase::Switched) => {
                "take the old root out of the bundle and destroy the old issuing key, when nobody holds a certificate of it any more"
            }
            (Kind::Issuing | Kind::Root, Phase::Retired) => {
                "leave the cross certificate out, when nobody holds the old bundle any more; then destroy the old root's key where you keep it"
            }
        }
    }

    fn back(&self) -> &'static str {
        match self.phase {
            Phase::Prepared => "give the new one up",
            Phase::Switched => "issue from the old one again",
            Phase::Retired => "put the old root into the bundle again, beside the new",
        }
    }
}

/// `revoke`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Told(pub Revoked);

impl Answer for Told {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{} is revoked: what was issued to it until {} counts no more", self.0.name, utc_text(self.0.issued_before_ms))?;
        writeln!(out, "now tell the hub, which tells everybody: muster-hub member deny {}", self.0.name)
    }
}

/// `list`.
#[derive(Debug, Serialize)]
pub(crate) struct List {
    pub certificates: Vec<Listed>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    #[serde(flatten)]
    pub certificate: Certificate,
    pub revoked: bool,
}

impl Answer for List {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        for Listed { certificate, revoked } in &self.certificates {
            let revoked = if *revoked { "  revoked" } else { "" };
            let beside = if certificate.beside { "  lies beside the one in use" } else { "" };
            writeln!(out, "{}  {}{beside}{revoked}", utc_text(certificate.not_after_ms), certificate.name)?;
        }
        Ok(())
    }
}

/// `show`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shown {
    Certificates(Vec<Description>),
    JoinToken(Description),
}

impl Answer for Shown {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        let shown = match self {
            Shown::Certificates(all) => all.as_slice(),
            Shown::JoinToken(one) => std::slice::from_ref(one),
        };
        for (index, description) in shown.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            writeln!(out, "{description}")?;
        }
        Ok(())
    }
}

/// `verify`.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub file: PathBuf,
    pub identity: String,
    pub not_after_ms: i64,
}

impl Answer for Verified {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{}: good: {}, valid until {}", self.file.display(), self.identity, utc_text(self.not_after_ms))
    }
}

/// `doctor`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Found(pub Checkup);

impl Answer for Found {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        let verdict = if self.0.soon { "something breaks within 30 days" } else { "nothing breaks within 30 days" };
        writeln!(out, "{} on {}: {verdict}", self.0.domain, utc_text(self.0.at_ms))?;
        for finding in self.0.findings.iter().take(LINES_SHOWN) {
            let mark = if finding.breaks { " " } else { "-" };
            writeln!(out, "{mark} {}  {}: {}", utc_text(finding.at_ms), finding.what, finding.todo)?;
        }
        more(self.0.findings.len(), out)?;
        for branch in &self.0.branches {
            let (relays, agents, away) = (branch.relays, branch.agents, branch.agents_out);
            let until =
                branch.alone_until_ms.map_or("nobody there can meet".to_owned(), |ms| format!("can stay alone until {}", utc_text(ms)));
            writeln!(out, "  {}: {until} ({relays} relays, {agents} agents, {away} of them away for too long)", branch.site)?;
        }
        for key in &self.0.without_backup {
            let known_by = if key.of == KeyOf::Hub { "--members FILE " } else { "" };
            writeln!(out, "  {} has no note of a backup: keep one, then muster-certs doctor {known_by}--backed-up {}", key.what, key.key)?;
        }
        if !self.0.hub_keys_known {
            writeln!(out, "  the hub's own keys weren't looked at: give --members FILE, as muster-hub member list --json printed it")?;
        }
        Ok(())
    }
}

/// `doctor --backed-up`.
#[derive(Debug, Serialize)]
pub(crate) struct Noted {
    pub at_ms: i64,
    pub keys: Vec<Key>,
}

impl Answer for Noted {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        for key in &self.keys {
            writeln!(out, "noted on {}: {} has a backup", utc_text(self.at_ms), key.what)?;
        }
        Ok(())
    }
}

/// `export`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Exported {
    Lists { lists: Vec<RevokedList>, left_out: usize },
    Roots { bundle_version: u64, roots: String },
    Bundle { bundle_version: u64, roots: String, cross: Option<String> },
}

/// A CRL.
#[derive(Debug, Serialize)]
pub(crate) struct RevokedList {
    pub issuer_key: String,
    pub certificates: usize,
    pub pem: String,
}

impl Answer for Exported {
    fn text(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Exported::Lists { lists, .. } => lists.iter().try_for_each(|list| out.write_all(list.pem.as_bytes())),
            Exported::Roots { roots, .. } => out.write_all(roots.as_bytes()),
            Exported::Bundle { roots, cross, .. } => {
                out.write_all(roots.as_bytes())?;
                out.write_all(cross.as_deref().unwrap_or_default().as_bytes())
            }
        }
    }
}

fn more(all: usize, out: &mut dyn Write) -> Result<()> {
    match all.checked_sub(LINES_SHOWN) {
        Some(more) if more > 0 => writeln!(out, "  and {more} more; --json shows them all"),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use muster_certs::doctor::{Branch, Finding, FindingKind};

    use super::*;

    const AT_MS: i64 = 1_800_000_000_000;

    fn is(answer: &impl Serialize, golden: &str) {
        assert_eq!(serde_json::to_string(answer).unwrap(), golden);
    }

    fn one(device: Option<&str>) -> IssuedOne {
        let (identity, certificate, key) = ("spiffe://m/hub/h".into(), "n/hub.pem".into(), "n/hub.key".into());
        IssuedOne { identity, device: device.map(str::to_owned), certificate, key, not_after_ms: AT_MS }
    }

    fn signer(file: &str) -> Signer {
        Signer { file: file.into(), key: "0a".into(), not_after_ms: AT_MS }
    }

    #[test]
    fn what_init_issue_and_renew_answer_does_not_change() {
        is(
            &Made { domain: "m".into(), roots: "ca/roots.pem".into(), issues_until_ms: AT_MS },
            r#"{"domain":"m","roots":"ca/roots.pem","issues_until_ms":1800000000000}"#,
        );
        is(
            &Issued { certificates: vec![one(None), one(Some("0b"))] },
            concat!(
                r#"{"certificates":[{"identity":"spiffe://m/hub/h","certificate":"n/hub.pem","key":"n/hub.key","not_after_ms":1800000000000},"#,
                r#"{"identity":"spiffe://m/hub/h","device":"0b","certificate":"n/hub.pem","key":"n/hub.key","not_after_ms":1800000000000}]}"#
            ),
        );
    }

    #[test]
    fn what_rotate_answers_does_not_change() {
        let cut = || CutOff { name: "hub/h".into(), why: Why::OldLeaf };
        let turn = UnderWay {
            of: Kind::Root,
            phase: Phase::Switched,
            started_ms: 1,
            since_ms: 2,
            way_back: true,
            needs_members: true,
            would_cut_off: Some(vec![cut(), CutOff { name: "hub/i".into(), why: Why::OldBundle }]),
        };
        is(
            &Rotation {
                issues: signer("issuing-0a"),
                roots: vec![signer("root")],
                bundle_version: 2,
                rotation: Some(turn),
                cut_off: vec![cut()],
                destroyed: vec!["ca/issuing/issuing.key".into()],
            },
            concat!(
                r#"{"issues":{"file":"issuing-0a","key":"0a","not_after_ms":1800000000000},"#,
                r#""roots":[{"file":"root","key":"0a","not_after_ms":1800000000000}],"bundle_version":2,"#,
                r#""rotation":{"of":"root","phase":"switched","started_ms":1,"since_ms":2,"way_back":true,"needs_members":true,"#,
                r#""would_cut_off":[{"name":"hub/h","why":"old-leaf"},{"name":"hub/i","why":"old-bundle"}]},"#,
                r#""cut_off":[{"name":"hub/h","why":"old-leaf"}],"destroyed":["ca/issuing/issuing.key"]}"#
            ),
        );
        let none =
            Rotation { issues: signer("issuing"), roots: vec![], bundle_version: 1, rotation: None, cut_off: vec![], destroyed: vec![] };
        is(
            &none,
            r#"{"issues":{"file":"issuing","key":"0a","not_after_ms":1800000000000},"roots":[],"bundle_version":1,"rotation":null,"cut_off":[],"destroyed":[]}"#,
        );
    }

    #[test]
    fn what_revoke_list_verify_and_export_answer_does_not_change() {
        let revoked = Revoked { name: "hub/h".into(), issued_before_ms: 1, at_ms: 2, why: "stolen".into() };
        is(&Told(revoked), r#"{"name":"hub/h","issued_before_ms":1,"at_ms":2,"why":"stolen"}"#);
        let certificate = Certificate {
            name: "hub/h".into(),
            serial: "5d".into(),
            issuer_key: "0a".into(),
            bundle_version: 1,
            issued_ms: 1,
            not_after_ms: 2,
            beside: false,
        };
        is(
            &List { certificates: vec![Listed { certificate, revoked: true }] },
            r#"{"certificates":[{"name":"hub/h","serial":"5d","issuer_key":"0a","bundle_version":1,"issued_ms":1,"not_after_ms":2,"revoked":true}]}"#,
        );
        is(
            &Verified { file: "hub.pem".into(), identity: "spiffe://m/hub/h".into(), not_after_ms: 3 },
            r#"{"file":"hub.pem","identity":"spiffe://m/hub/h","not_after_ms":3}"#,
        );
        let lists = vec![RevokedList { issuer_key: "0a".into(), certificates: 1, pem: "P".into() }];
        is(&Exported::Lists { lists, left_out: 4 }, r#"{"lists":[{"issuer_key":"0a","certificates":1,"pem":"P"}],"left_out":4}"#);
        is(&Exported::Roots { bundle_version: 2, roots: "R".into() }, r#"{"bundle_version":2,"roots":"R"}"#);
        is(&Exported::Bundle { bundle_version: 2, roots: "R".into(), cross: None }, r#"{"bundle_version":2,"roots":"R","cross":null}"#);
    }

    #[test]
    fn what_show_answers_does_not_change() {
        let (root, _) = muster_certs::Issuer::in_memory("m", AT_MS).unwrap();
        let shown = Shown::Certificates(vec![Description::of(root.der(), AT_MS).unwrap()]);
        let json = serde_json::to_value(&shown).unwrap();
        let words: Vec<&String> = json["certificates"][0].as_object().unwrap().keys().collect();
        assert_eq!(words, ["from", "kind", "name", "serial", "valid"]);
        assert_eq!(json["certificates"][0]["kind"], "a root CA, no path length");
    }

    #[test]
    fn what_the_doctor_answers_does_not_change() {
        let key = || Key { of: KeyOf::Root, what: "the root (root)".into(), key: "0a".into() };
        let finding = Finding { at_ms: 2, what: "hub/h".into(), kind: FindingKind::Leaf, breaks: true, todo: "renew".into() };
        let branch = Branch { site: "oslo".into(), relays: 1, agents: 2, agents_out: 1, alone_until_ms: None };
        is(
            &Found(Checkup {
                domain: "m".into(),
                at_ms: 1,
                soon: true,
                findings: vec![finding],
                branches: vec![branch],
                hub_keys_known: false,
                without_backup: vec![key()],
            }),
            concat!(
                r#"{"domain":"m","at_ms":1,"soon":true,"#,
                r#""findings":[{"at_ms":2,"what":"hub/h","kind":"leaf","breaks":true,"todo":"renew"}],"#,
                r#""branches":[{"site":"oslo","relays":1,"agents":2,"agents_out":1,"alone_until_ms":null}],"hub_keys_known":false,"#,
                r#""without_backup":[{"of":"root","what":"the root (root)","key":"0a"}]}"#
            ),
        );
        is(&Noted { at_ms: 1, keys: vec![key()] }, r#"{"at_ms":1,"keys":[{"of":"root","what":"the root (root)","key":"0a"}]}"#);
    }
}
