//! Quiet: who someone is, as it stands in a certificate: `spiffe://<domain>/<name>`.
//!
//! ```text
//! spiffe://muster.internal/hub/hub-1
//! spiffe://muster.internal/site/oslo/relay/oslo-1
//! spiffe://muster.internal/site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617
//! spiffe://muster.internal/control/1
//! ```
//!
//! The grammar has one spelling per identity (lower case, no empty segment, no leading zero, no
//! query), so two identities are equal exactly when their texts are.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;
use std::str::FromStr;

/// The longest site, hub or relay id, in bytes: a DNS label, so an id can also be a host name.
pub const LABEL_BYTES_MAX: usize = 63;
/// The longest domain, in bytes, as DNS has it.
pub const DOMAIN_BYTES_MAX: usize = 253;

const SCHEME: &str = "spiffe://";

/// What part someone plays. Written as the certificate says it: `agent`, `relay`, `hub`, `control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// An employee's computer: only ever a TLS client.
    Agent,
    /// A branch office: server to agents, client to the hub.
    Relay,
    /// The hub: only ever a TLS server.
    Hub,
    /// Signs what comes down (policy, deny list); never part of a connection.
    Control,
}

impl Role {
    /// All roles, for texts and tests.
    pub const ALL: [Role; 4] = [Role::Agent, Role::Relay, Role::Hub, Role::Control];

    /// Whether this role dials, that is, may be the client of a TLS connection.
    pub fn dials(self) -> bool {
        match self {
            Role::Agent | Role::Relay => true,
            Role::Hub | Role::Control => false,
        }
    }

    /// Whether this role listens, that is, may be the server of a TLS connection.
    pub fn listens(self) -> bool {
        match self {
            Role::Relay | Role::Hub => true,
            Role::Agent | Role::Control => false,
        }
    }

    /// The word with its article, for sentences: "an agent".
    pub fn phrase(self) -> &'static str {
        match self {
            Role::Agent => "an agent",
            Role::Relay => "a relay",
            Role::Hub => "a hub",
            Role::Control => "a control certificate",
        }
    }

    /// The word in the identity.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Relay => "relay",
            Role::Hub => "hub",
            Role::Control => "control",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or(IdentityError::Role)
    }
}

/// What stands behind `spiffe://<domain>/`; as text e.g. `site/oslo/relay/oslo-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// `hub/<id>`
    Hub {
        /// The hub's id, a label.
        id: String,
    },
    /// `site/<site>/relay/<id>`
    Relay {
        /// The branch office, a label.
        site: String,
        /// The relay's id, a label.
        id: String,
    },
    /// `site/<site>/agent/<device>`
    Agent {
        /// Where the device belongs (not where it may deliver), a label.
        site: String,
        /// The device id, a UUID; 32 lower-case hex digits as text.
        device: [u8; 16],
    },
    /// `control/<n>`
    Control {
        /// Which control key, counted by ops.
        n: u32,
    },
}

impl Name {
    /// The role this name belongs to.
    pub fn role(&self) -> Role {
        match self {
            Name::Hub { .. } => Role::Hub,
            Name::Relay { .. } => Role::Relay,
            Name::Agent { .. } => Role::Agent,
            Name::Control { .. } => Role::Control,
        }
    }

    /// The site, for those who belong to one.
    pub fn site(&self) -> Option<&str> {
        match self {
            Name::Relay { site, .. } | Name::Agent { site, .. } => Some(site),
            Name::Hub { .. } | Name::Control { .. } => None,
        }
    }

    /// The device id, for an agent.
    pub fn device(&self) -> Option<[u8; 16]> {
        match self {
            Name::Agent { device, .. } => Some(*device),
            Name::Hub { .. } | Name::Relay { .. } | Name::Control { .. } => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Hub { id } => write!(f, "hub/{id}"),
            Name::Relay { site, id } => write!(f, "site/{site}/relay/{id}"),
            Name::Agent { site, device } => {
                write!(f, "site/{site}/agent/{}", device_text(device))
            }
            Name::Control { n } => write!(f, "control/{n}"),
        }
    }
}

impl FromStr for Name {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Five parts at most: a sixth means the name is too long whatever it says.
        let parts: Vec<&str> = text.splitn(5, '/').collect();
        match parts[..] {
            ["hub", id] => Ok(Name::Hub { id: label(id)? }),
            ["site", site, "relay", id] => Ok(Name::Relay { site: label(site)?, id: label(id)? }),
            ["site", site, "agent", device] => Ok(Name::Agent { site: label(site)?, device: parse_device(device)? }),
            ["control", n] => Ok(Name::Control { n: number(n)? }),
            _ => Err(IdentityError::Name),
        }
    }
}

/// A domain and a name in it; as text the whole SPIFFE URI.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, e.g. `muster.internal`. Lower-case labels with dots between.
    pub domain: String,
    /// What stands behind the domain.
    pub name: Name,
}

impl Identity {
    /// An identity whose domain and labels were checked, so that its text reads back as itself.
    pub fn new(domain: &str, name: Name) -> Result<Self, IdentityError> {
        Identity { domain: domain.to_owned(), name }.to_string().parse()
    }

    /// The role this identity belongs to.
    pub fn role(&self) -> Role {
        self.name.role()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.domain, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (domain, name) = rest.split_once('/').ok_or(IdentityError::Name)?;
        check_domain(domain)?;
        Ok(Identity { domain: domain.to_owned(), name: name.parse()? })
    }
}

/// Why a text isn't an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It doesn't start with `spiffe://`.
    #[error("an identity starts with spiffe://")]
    Scheme,
    /// The domain is not lower-case labels with dots between.
    #[error("a domain is lower-case labels of a-z, 0-9 and - with dots between, such as muster.internal")]
    Domain,
    /// Not one of the four shapes.
    #[error("a name is hub/<id>, site/<site>/relay/<id>, site/<site>/agent/<device> or control/<number>")]
    Name,
    /// A site or id is not a label.
    #[error("a site or id has 1 to 63 of the characters a-z, 0-9 and -, and neither starts nor ends with -")]
    Label,
    /// A device isn't 32 lower-case hex digits.
    #[error("a device id is 32 lower-case hex digits")]
    Device,
    /// A control number isn't a plain u32.
    #[error("a control number is a whole number without leading zeros")]
    Number,
    /// Not one of the four roles.
    #[error("a role is agent, relay, hub or control")]
    Role,
}

/// Refuses what isn't a domain: dot-separated labels, at most 253 bytes.
pub fn check_domain(text: &str) -> Result<(), IdentityError> {
    let fits = text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(is_label);
    if fits { Ok(()) } else { Err(IdentityError::Domain) }
}

/// Refuses what isn't a label, the grammar of sites and ids.
pub fn check_label(text: &str) -> Result<(), IdentityError> {
    if is_label(text) { Ok(()) } else { Err(IdentityError::Label) }
}

/// A device id as text: 32 lower-case hex digits.
pub fn device_text(device: &[u8; 16]) -> String {
    hex(device)
}

/// The reverse of [`device_text`].
pub fn parse_device(text: &str) -> Result<[u8; 16], IdentityError> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 32 || !text.bytes().all(lower_hex) {
        return Err(IdentityError::Device);
    }
    u128::from_str_radix(text, 16).map(u128::to_be_bytes).map_err(|_| IdentityError::Device)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The reverse of [`hex`].
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn label(text: &str) -> Result<String, IdentityError> {
    check_label(text)?;
    Ok(text.to_owned())
}

fn is_label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

fn number(text: &str) -> Result<u32, IdentityError> {
    let n: u32 = text.parse().map_err(|_| IdentityError::Number)?;
    // `+7` and `007` parse too, but an identity has one spelling only.
    if n.to_string() == text { Ok(n) } else { Err(IdentityError::Number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "0190b7e8c4d27d30a5f1c2d3e4f50617";

    #[test]
    fn each_kind_of_identity_reads_back_as_it_was_written() {
        for text in [
            "spiffe://muster.internal/hub/hub-1",
            "spiffe://muster.internal/site/oslo/relay/oslo-1",
            &format!("spiffe://m/site/oslo/agent/{DEVICE}"),
            "spiffe://a-b.c0/control/1",
            "spiffe://a-b.c0/control/4294967295",
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_knows_its_role_and_site() {
        let relay: Name = "site/oslo/relay/oslo-1".parse().unwrap();
        assert_eq!((relay.role(), relay.site()), (Role::Relay, Some("oslo")));
        let hub: Name = "hub/hub-1".parse().unwrap();
        assert_eq!((hub.role(), hub.site()), (Role::Hub, None));
        let agent: Name = format!("site/oslo/agent/{DEVICE}").parse().unwrap();
        assert_eq!(device_text(&agent.device().unwrap()), DEVICE);
    }

    #[test]
    fn another_spelling_of_an_identity_is_refused() {
        use IdentityError as E;
        let long = "a".repeat(64);
        let cases: &[(&str, E)] = &[
            ("", E::Scheme),
            ("https://m/hub/h", E::Scheme),
            ("SPIFFE://m/hub/h", E::Scheme),
            ("spiffe:///hub/h", E::Domain),
            ("spiffe://M/hub/h", E::Domain),
            ("spiffe://m./hub/h", E::Domain),
            ("spiffe://m..n/hub/h", E::Domain),
            ("spiffe://-m/hub/h", E::Domain),
            ("spiffe://m:443/hub/h", E::Domain),
            ("spiffe://u@m/hub/h", E::Domain),
            ("spiffe://m_n/hub/h", E::Domain),
            ("spiffe://m", E::Name),
            ("spiffe://m/", E::Name),
            ("spiffe://m/hub", E::Name),
            ("spiffe://m/hub/h/", E::Name),
            ("spiffe://m//hub/h", E::Name),
            ("spiffe://m/hub/", E::Label),
            ("spiffe://m/hub/H", E::Label),
            ("spiffe://m/hub/h?x=1", E::Label),
            ("spiffe://m/hub/h#x", E::Label),
            ("spiffe://m/hub/h%2f", E::Label),
            ("spiffe://m/hub/..", E::Label),
            ("spiffe://m/hub/ø", E::Label),
            ("spiffe://m/hub/h\n", E::Label),
            ("spiffe://m/hub/h\0", E::Label),
            ("spiffe://m/hub/-h", E::Label),
            ("spiffe://m/hub/h-", E::Label),
            (&format!("spiffe://m/hub/{long}"), E::Label),
            ("spiffe://m/site//relay/r", E::Label),
            ("spiffe://m/site/s/relay/r/", E::Name),
            ("spiffe://m/site/s/relay/r/x/y", E::Name),
            ("spiffe://m/site/s/hub/r", E::Name),
            ("spiffe://m/relay/r", E::Name),
            ("spiffe://m/site/s/agent/1", E::Device),
            (&format!("spiffe://m/site/s/agent/{}", DEVICE.to_uppercase()), E::Device),
            (&format!("spiffe://m/site/s/agent/+{}", &DEVICE[1..]), E::Device),
            ("spiffe://m/control/", E::Number),
            ("spiffe://m/control/01", E::Number),
            ("spiffe://m/control/+1", E::Number),
            ("spiffe://m/control/-1", E::Number),
            ("spiffe://m/control/4294967296", E::Number),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Identity>(), Err(*want), "{text:?}");
        }
    }

    #[test]
    fn a_domain_has_at_most_253_bytes() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!(long.len(), 253);
        assert!(check_domain(&long).is_ok());
        assert!(check_domain(&format!("{long}e")).is_err());
    }

    #[test]
    fn an_identity_is_not_made_from_an_unchecked_name() {
        let bad = Name::Hub { id: "../control/1".into() };
        assert!(Identity::new("m", bad).is_err());
    }
}
