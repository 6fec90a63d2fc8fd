//! Quiet: THE one leaf check. rustls checks chains, not names, and takes a certificate without an
//! extended key usage for both sides; this check closes that gap. It runs inside the handshake on
//! both sides and again per connection.
//!
//! A leaf has exactly one general name, a URI in our grammar and our domain; it is no CA; its
//! extended key usage is exactly what its role needs (agent: client; hub: server; relay: both;
//! control: code signing, so no TLS stack takes it); and it is who was expected.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::identity::{Identity, IdentityError, Name, Role, hex};

/// What a good leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Who it is.
    pub identity: Identity,
    /// Start of validity, milliseconds UTC (whole seconds).
    pub not_before_ms: i64,
    /// End of validity, milliseconds UTC (whole seconds).
    pub not_after_ms: i64,
    /// The serial number in lower-case hex, without a leading zero byte.
    pub serial: String,
    /// Whose key signed it, as it says itself: the authority key identifier in lower-case hex.
    pub issuer: Option<String>,
}

/// Who may stand at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anyone of these roles: what a listener says about those who dial it.
    Roles(&'static [Role]),
    /// Exactly this one: what a dialler says about whom it dialled.
    Exactly(Name),
}

/// Why a leaf is refused: one variant per reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// The peer sent no certificate.
    #[error("no certificate was presented; give this program a certificate of the mesh's own CA")]
    Missing,
    /// The peer sent more certificates than any chain of ours has.
    #[error("{0} certificates were sent; a chain of this mesh has at most 4")]
    LongChain(usize),
    /// Not a certificate at all, or one whose extensions can't be read.
    #[error("this is not a readable X.509 certificate ({0})")]
    Unreadable(&'static str),
    /// A CA certificate, or one that may sign certificates.
    #[error("this is a CA certificate; use the leaf certificate that was issued for this program")]
    Ca,
    /// No name at all.
    #[error("the certificate names nobody; issue one with muster-certs")]
    NoName,
    /// More than one name.
    #[error("the certificate has {0} names; exactly one is allowed")]
    ManyNames(usize),
    /// One name, but it isn't a URI.
    #[error("the certificate's name is {0}, not a spiffe:// URI; issue one with muster-certs")]
    NotAUri(&'static str),
    /// A URI outside our grammar.
    #[error("the certificate's name \"{uri}\" is not one of ours: {why}")]
    BadIdentity {
        /// The URI, escaped and cut so that it is fit for a log.
        uri: String,
        /// The rule it breaks.
        why: IdentityError,
    },
    /// The extended key usage isn't exactly that of the role.
    #[error("the certificate of {identity} allows {found}, but {role} must allow exactly {wanted}; issue a new one",
        role = identity.role().phrase(), wanted = wanted_usage(identity.role()))]
    WrongUsage {
        /// Who it says it is.
        identity: Box<Identity>,
        /// What it allows, in words.
        found: String,
    },
    /// Another mesh.
    #[error("{found} belongs to another mesh; ours is {own}")]
    OtherDomain {
        /// Who it is.
        found: Box<Identity>,
        /// Our own domain.
        own: String,
    },
    /// A role that has no business here.
    #[error("{found} is {role}; expected here: {wanted}", role = found.role().phrase(), wanted = role_list(wanted))]
    OtherRole {
        /// Who it is.
        found: Box<Identity>,
        /// Who would have been welcome.
        wanted: Vec<Role>,
    },
    /// Its name was denied after it was issued.
    #[error("{found} was denied; whoever it is needs a new certificate, which the hub's admins may give")]
    Denied {
        /// Who it is.
        found: Box<Identity>,
    },
    /// The right role perhaps, but not the one that was dialled.
    #[error("dialled {wanted}, but {found} answered; check the address and id in the configuration")]
    OtherName {
        /// Who it is.
        found: Box<Identity>,
        /// Who was dialled.
        wanted: Name,
    },
}

/// Checks a leaf against all rules. The chain is a separate matter ([`crate::chain`]): call this
/// only beside it.
pub fn check_leaf(der: &CertificateDer<'_>, domain: &str, expect: &Expect) -> Result<Leaf, LeafError> {
    match expect {
        Expect::Roles(roles) => check_role(der, domain, roles),
        Expect::Exactly(name) => check_name(der, domain, name),
    }
}

/// Reads a leaf without expecting anyone: all rules but domain, role and dialled name.
pub fn read_leaf(der: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
    let certificate = parse(der)?;
    check_not_ca(&certificate)?;
    let identity = only_identity(&certificate)?;
    check_usage(&certificate, &identity)?;
    let validity = certificate.validity();
    Ok(Leaf {
        identity,
        not_before_ms: validity.not_before.timestamp().saturating_mul(1000),
        not_after_ms: validity.not_after.timestamp().saturating_mul(1000),
        serial: serial_text(&certificate),
        issuer: issuer_key_of(&certificate),
    })
}

/// Whose key a certificate holds, as it says itself: the subject key identifier in lower-case hex.
pub fn subject_key(der: &CertificateDer<'_>) -> Result<Option<String>, LeafError> {
    let certificate = parse(der)?;
    Ok(subject_key_of(&certificate))
}

/// Whose key signed a certificate, as it says itself: the authority key identifier in lower-case hex. Of a leaf it says which issuing CA it
/// comes from.
pub fn issuer_key(der: &CertificateDer<'_>) -> Result<Option<String>, LeafError> {
    let certificate = parse(der)?;
    Ok(issuer_key_of(&certificate))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "one of x509-parser's many extensions")]
pub(crate) fn subject_key_of(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(hex(key.0)),
        _ => None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "one of x509-parser's many extensions")]
pub(crate) fn issuer_key_of(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref().map(|key| hex(key.0)),
        _ => None,
    })
}

/// [`check_leaf`] for roles that needn't live for ever.
pub(crate) fn check_role(der: &CertificateDer<'_>, domain: &str, roles: &[Role]) -> Result<Leaf, LeafError> {
    let leaf = check_own_domain(read_leaf(der)?, domain)?;
    if roles.contains(&leaf.identity.role()) {
        Ok(leaf)
    } else {
        Err(LeafError::OtherRole { found: Box::new(leaf.identity), wanted: roles.to_vec() })
    }
}

/// [`check_leaf`] for one who was dialled.
pub(crate) fn check_name(der: &CertificateDer<'_>, domain: &str, wanted: &Name) -> Result<Leaf, LeafError> {
    let leaf = check_own_domain(read_leaf(der)?, domain)?;
    if leaf.identity.name == *wanted {
        Ok(leaf)
    } else {
        Err(LeafError::OtherName { found: Box::new(leaf.identity), wanted: wanted.clone() })
    }
}

/// A whole certificate and nothing behind it.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(LeafError::Unreadable("bytes after its end")),
        Err(_) => Err(LeafError::Unreadable("its structure is damaged")),
    }
}

/// The serial in lower-case hex. DER puts a zero byte in front of a number whose first bit is set:
/// that byte belongs to the encoding, not to the number.
pub(crate) fn serial_text(certificate: &X509Certificate<'_>) -> String {
    match certificate.raw_serial() {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        all => hex(all),
    }
}

/// What an extended key usage allows, in words.
pub(crate) fn usage_text(usage: Option<&ExtendedKeyUsage<'_>>) -> String {
    let Some(usage) = usage else {
        return "any use (it has no extended key usage)".to_owned();
    };
    let words: Vec<&str> = [
        (usage.any, "any"),
        (usage.client_auth, "client"),
        (usage.server_auth, "server"),
        (usage.code_signing, "code signing"),
        (usage.email_protection, "e-mail"),
        (usage.time_stamping, "time stamping"),
        (usage.ocsp_signing, "OCSP signing"),
        (!usage.other.is_empty(), "others"),
    ]
    .into_iter()
    .filter_map(|(is, word)| is.then_some(word))
    .collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(" and ") }
}

/// Text from a stranger, made fit for a terminal and a log: escaped and at most 200 characters.
pub(crate) fn stranger_text(text: &str) -> String {
    let mut escaped: String = text.escape_default().take(200).collect();
    if text.escape_default().nth(200).is_some() {
        escaped.push('…');
    }
    escaped
}

fn check_own_domain(leaf: Leaf, domain: &str) -> Result<Leaf, LeafError> {
    if leaf.identity.domain == domain {
        Ok(leaf)
    } else {
        Err(LeafError::OtherDomain { found: Box::new(leaf.identity), own: domain.to_owned() })
    }
}

fn check_not_ca(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    let constraints = certificate.basic_constraints().map_err(|_| LeafError::Unreadable("its basic constraints"))?;
    let key_usage = certificate.key_usage().map_err(|_| LeafError::Unreadable("its key usage"))?;
    let is_ca = constraints.is_some_and(|it| it.value.ca);
    let signs = key_usage.is_some_and(|it| it.value.key_cert_sign() || it.value.crl_sign());
    if is_ca || signs { Err(LeafError::Ca) } else { Ok(()) }
}

fn only_identity(certificate: &X509Certificate<'_>) -> Result<Identity, LeafError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| LeafError::Unreadable("its alternative names"))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let name = match names {
        [] => return Err(LeafError::NoName),
        [one] => one,
        many => return Err(LeafError::ManyNames(many.len())),
    };
    let uri = match name {
        GeneralName::URI(uri) => *uri,
        GeneralName::DNSName(_) => return Err(LeafError::NotAUri("a host name")),
        GeneralName::IPAddress(_) => return Err(LeafError::NotAUri("an IP address")),
        GeneralName::RFC822Name(_) => return Err(LeafError::NotAUri("an e-mail address")),
        GeneralName::DirectoryName(_) => return Err(LeafError::NotAUri("a directory name")),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => return Err(LeafError::NotAUri("of an unusual kind")),
    };
    uri.parse().map_err(|why| LeafError::BadIdentity { uri: stranger_text(uri), why })
}

fn check_usage(certificate: &X509Certificate<'_>, identity: &Identity) -> Result<(), LeafError> {
    let usage =
        certificate.extended_key_usage().map_err(|_| LeafError::Unreadable("its extended key usage"))?.map(|extension| extension.value);
    let role = identity.role();
    let exact = usage.is_some_and(|usage| {
        let foreign = usage.any || usage.email_protection || usage.time_stamping || usage.ocsp_signing || !usage.other.is_empty();
        !foreign
            && usage.client_auth == role.dials()
            && usage.server_auth == role.listens()
            && usage.code_signing == (role == Role::Control)
    });
    if exact { Ok(()) } else { Err(LeafError::WrongUsage { identity: Box::new(identity.clone()), found: usage_text(usage) }) }
}

fn wanted_usage(role: Role) -> &'static str {
    match role {
        Role::Agent => "client",
        Role::Relay => "client and server",
        Role::Hub => "server",
        Role::Control => "code signing",
    }
}

fn role_list(roles: &[Role]) -> String {
    match roles {
        [] => "nobody".to_owned(),
        some => {
            let words: Vec<&str> = some.iter().map(|role| role.as_str()).collect();
            words.join(" or ")
        }
    }
}
