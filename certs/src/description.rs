//! Quiet: a certificate in plain words, good or bad; and a join token, without its secret.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;

use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::identity::{Name, Role, hex};
use crate::join::{JoinToken, Kind};
use crate::leaf::{self, LeafError, read_leaf, serial_text, stranger_text, usage_text};
use crate::material::utc_text;

/// What a certificate or a join token says. `Display` gives aligned lines, without a line feed at the end; as JSON it is an object of the same words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    lines: Vec<(&'static str, String)>,
}

impl Description {
    /// Describes any certificate that can be read, also one the leaf check refuses. `now_ms`
    /// (milliseconds UTC) decides how its dates read.
    pub fn of(der: &CertificateDer<'_>, now_ms: i64) -> Result<Description, LeafError> {
        let certificate = leaf::parse(der)?;
        let mut lines = Vec::new();
        if certificate.is_ca() {
            lines.push(("kind", ca_text(&certificate)));
            lines.push(("name", stranger_text(&certificate.subject().to_string())));
        } else {
            match read_leaf(der) {
                Ok(leaf) => {
                    lines.push(("identity", leaf.identity.to_string()));
                    lines.push(("kind", role_text(leaf.identity.role()).to_owned()));
                }
                Err(why) => {
                    lines.push(("kind", "a certificate that muster refuses".to_owned()));
                    lines.push(("because", why.to_string()));
                    lines.push(("names", names_text(&certificate)));
                }
            }
            let usage = certificate.extended_key_usage().ok().flatten();
            lines.push(("allows", usage_text(usage.map(|it| it.value))));
        }
        lines.push(("from", stranger_text(&certificate.issuer().to_string())));
        lines.push(("valid", validity_text(&certificate, now_ms)));
        lines.push(("serial", serial_text(&certificate)));
        Ok(Description { lines })
    }

    /// Describes a join token; its secret is left out. `now_ms` (milliseconds UTC) decides how its end reads.
    pub fn of_token(token: &JoinToken, now_ms: i64) -> Description {
        let (kind, whom) = match token.kind {
            Kind::Agent => ("a join token for an employee's computer", "whose, the hub knows: muster-hub token list"),
            Kind::Relay => ("a join token for a relay", "of which site, the hub knows: muster-hub token list"),
        };
        let site = token.doors().find_map(|(_, name)| match name {
            Name::Relay { site, .. } | Name::Agent { site, .. } => Some(site),
            Name::Hub { .. } | Name::Control { .. } => None,
        });
        let whom = site.map_or_else(|| whom.to_owned(), |site| format!("site {site}; {whom}"));
        let until = utc_text(token.ends_ms);
        let until = if token.ends_ms < now_ms { format!("{until}: it has ended") } else { until };
        let doors: Vec<String> = token.doors().map(|(door, name)| format!("{name} at {}", stranger_text(door))).collect();
        let roots: Vec<String> = token.roots.iter().map(|root| hex(root)).collect();
        let lines = vec![
            ("kind", kind.to_owned()),
            ("id", hex(&token.id)),
            ("for", whom),
            ("until", until),
            ("mesh", stranger_text(&token.domain)),
            ("roots", roots.join(", ")),
            ("asks", doors.join(", ")),
        ];
        Description { lines }
    }
}

impl Serialize for Description {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.lines.iter().map(|(key, value)| (key, value)))
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.lines.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{key:<9} {value}")?;
        }
        Ok(())
    }
}

fn role_text(role: Role) -> &'static str {
    match role {
        Role::Agent => "an agent: dials relays",
        Role::Relay => "a relay: listens to agents, dials the hub",
        Role::Hub => "a hub: listens to relays",
        Role::Control => "a control certificate: signs what comes down, never connects",
    }
}

fn ca_text(certificate: &X509Certificate<'_>) -> String {
    let path = certificate.basic_constraints().ok().flatten().and_then(|it| it.value.path_len_constraint);
    let kind = match (certificate.subject().as_raw() == certificate.issuer().as_raw(), path) {
        (true, _) => "a root CA",
        (false, Some(1)) => "a cross certificate of a root CA",
        (false, _) => "an issuing CA",
    };
    match path {
        Some(length) => format!("{kind}, path length {length}"),
        None => format!("{kind}, no path length"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the rest is shown alike, whatever it is")]
fn names_text(certificate: &X509Certificate<'_>) -> String {
    let names =
        certificate.subject_alternative_name().ok().flatten().map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let texts: Vec<String> = names
        .iter()
        .take(5)
        .map(|name| match name {
            GeneralName::URI(text) | GeneralName::DNSName(text) | GeneralName::RFC822Name(text) => stranger_text(text),
            other => stranger_text(&other.to_string()),
        })
        .collect();
    match names.len() {
        0 => "none".to_owned(),
        n if n > texts.len() => format!("{}, and {} more", texts.join(", "), n - texts.len()),
        _ => texts.join(", "),
    }
}

fn validity_text(certificate: &X509Certificate<'_>, now_ms: i64) -> String {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let validity = certificate.validity();
    let start_ms = validity.not_before.timestamp().saturating_mul(1000);
    let end_ms = validity.not_after.timestamp().saturating_mul(1000);
    let state = if now_ms > end_ms {
        "expired".to_owned()
    } else if now_ms < start_ms {
        "not yet valid".to_owned()
    } else {
        match end_ms.saturating_sub(now_ms) / DAY_MS {
            0 => "less than a day left".to_owned(),
            1 => "1 day left".to_owned(),
            days => format!("{days} days left"),
        }
    };
    format!("{} to {} ({state})", utc_text(start_ms), utc_text(end_ms))
}
