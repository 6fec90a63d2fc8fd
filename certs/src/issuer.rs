//! Quiet: making certificates in memory, with rcgen. Time is an argument; keys and serials come
//! from the provider's random generator.
//!
//! ```text
//! root (no path length, 10 years)  →  issuing CA (path length 0, 1 year)  →  leaf
//! old root  →  cross certificate of the new root (path length 1)  →  issuing CA  →  leaf
//! ```
//!
//! While a root is being replaced, the new one's issuing CA gives out chains with the cross certificate at their end: who holds the old
//! root alone checks them by it, who holds the new one doesn't need it.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::identity::{Identity, IdentityError, Role, check_domain, hex, unhex};
use crate::leaf;
use crate::request::Requested;
use crate::tls::provider;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How far validity begins in the past, so that a clock a little behind doesn't refuse it.
pub const BACKDATED_MS: i64 = 10 * 60 * 1000;
/// Life of a root: ten years.
pub const ROOT_LIFE_MS: i64 = 3652 * DAY_MS;
/// No leaf of an employee's computer, a relay or a hub lives longer, whatever a hub's configuration says.
pub const LEAF_LIFE_MAX_MS: i64 = 90 * DAY_MS;
/// Life of an issuing CA: a year.
pub const ISSUING_LIFE_MS: i64 = 365 * DAY_MS;

/// How long a leaf of this role lives, in milliseconds.
pub fn leaf_life_ms(role: Role) -> i64 {
    match role {
        Role::Agent => 30 * DAY_MS,
        Role::Relay => 14 * DAY_MS,
        Role::Hub => 90 * DAY_MS,
        Role::Control => 365 * DAY_MS,
    }
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The domain or a name is outside the grammar.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A stored CA certificate or key can't be read.
    #[error("the {what} of the CA is damaged ({why})")]
    Damaged {
        /// Which file.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The stored key isn't that of the stored certificate.
    #[error("the key and the certificate of the {0} do not belong together")]
    KeyMismatch(&'static str),
    /// A time outside what a certificate can say.
    #[error("a certificate cannot hold the time {0} ms")]
    Time(i64),
    /// No randomness, or rcgen refuses.
    #[error("the certificate could not be made: {0}")]
    Make(String),
}

/// A root certificate and its key. The key is for the safe: it is needed only to make an issuing CA.
pub struct Root {
    pem: String,
    der: CertificateDer<'static>,
    signer: rcgen::Issuer<'static, KeyPair>,
}

impl Root {
    /// A new root for `domain`.
    pub fn create(domain: &str, now_ms: i64) -> Result<Root, IssuerError> {
        check_domain(domain)?;
        let key = new_key()?;
        let params = ca_params("root", domain, BasicConstraints::Unconstrained, now_ms, ROOT_LIFE_MS)?;
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Root { pem: certificate.pem(), der: certificate.der().clone(), signer: rcgen::Issuer::new(params, key) })
    }

    /// A stored root.
    pub fn from_pem(pem: &str, key_pem: &str) -> Result<Root, IssuerError> {
        let (der, signer) = read_ca("root", pem, key_pem)?;
        Ok(Root { pem: pem.to_owned(), der, signer })
    }

    /// The root certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The root's key, PKCS#8. A secret.
    pub fn key_pem(&self) -> String {
        self.signer.key().serialize_pem()
    }

    /// The root certificate, as DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The root's cross certificate of `new`: its name and its key, signed by this root. Whoever holds only this root can check what stands
    /// below the new one with it, for as long as both roots live.
    pub fn cross(&self, new: &Root, now_ms: i64) -> Result<String, IssuerError> {
        let damaged = |error: &dyn fmt::Display| damaged("new root", error);
        let (own, other) = (leaf::parse(&self.der).map_err(|e| damaged(&e))?, leaf::parse(&new.der).map_err(|e| damaged(&e))?);
        let end_ms = own.validity().not_after.timestamp().min(other.validity().not_after.timestamp()).saturating_mul(1000);
        let common_name = other.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name.ok_or_else(|| damaged(&"it has no name"))?);
        // One issuing CA stands between it and a leaf, and no more.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = key_identifier(&new.der)?;
        params.serial_number = Some(serial()?);
        params.not_before = moment(now_ms.saturating_sub(BACKDATED_MS))?;
        params.not_after = moment(end_ms)?;
        let key = SubjectPublicKeyInfo::from_der(other.public_key().raw).map_err(make)?;
        let cross = params.signed_by(&key, &self.signer).map_err(make)?;
        let made = leaf::parse(cross.der()).map_err(|e| damaged(&e))?;
        // A chain is put together by names, byte for byte.
        if made.subject().as_raw() != other.subject().as_raw() {
            return Err(damaged(&"its name is not one that this program writes"));
        }
        Ok(cross.pem())
    }

    /// A new issuing CA under this root.
    pub fn issue_issuing(&self, domain: &str, now_ms: i64) -> Result<Issuer, IssuerError> {
        check_domain(domain)?;
        let key = new_key()?;
        let params = ca_params("issuing", domain, BasicConstraints::Constrained(0), now_ms, ISSUING_LIFE_MS)?;
        let certificate = params.signed_by(&key, &self.signer).map_err(make)?;
        Issuer::from_pem(domain, &certificate.pem(), &key.serialize_pem())
    }
}

/// An issuing CA with its key: makes leaves.
pub struct Issuer {
    domain: String,
    pem: String,
    der: CertificateDer<'static>,
    not_after_ms: i64,
    /// What stands behind the issuing certificate in each chain: during a rotation of the root, the cross certificate.
    behind: Vec<(String, CertificateDer<'static>)>,
    signer: rcgen::Issuer<'static, KeyPair>,
}

impl Issuer {
    /// A root and an issuing CA that live only in memory: what most tests need. Trust `Root::pem`.
    pub fn in_memory(domain: &str, now_ms: i64) -> Result<(Root, Issuer), IssuerError> {
        let root = Root::create(domain, now_ms)?;
        let issuer = root.issue_issuing(domain, now_ms)?;
        Ok((root, issuer))
    }

    /// A stored issuing CA.
    pub fn from_pem(domain: &str, pem: &str, key_pem: &str) -> Result<Issuer, IssuerError> {
        check_domain(domain)?;
        let (der, signer) = read_ca("issuing CA", pem, key_pem)?;
        let not_after_ms = leaf::parse(&der).map_err(|e| damaged("issuing CA", e))?.validity().not_after.timestamp().saturating_mul(1000);
        Ok(Issuer { domain: domain.to_owned(), pem: pem.to_owned(), der, not_after_ms, behind: Vec::new(), signer })
    }

    /// The same, whose chains carry the cross certificate `pem` at their end.
    pub fn with_cross(mut self, pem: &str) -> Result<Issuer, IssuerError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged("cross certificate", e))?;
        self.behind.push((pem.to_owned(), der));
        Ok(self)
    }

    /// The domain of every leaf this makes by [`Issuer::issue`].
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The issuing certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The issuing key, PKCS#8. A secret.
    pub fn key_pem(&self) -> String {
        self.signer.key().serialize_pem()
    }

    /// The issuing certificate, as DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// End of the issuing certificate, milliseconds UTC.
    pub fn not_after_ms(&self) -> i64 {
        self.not_after_ms
    }

    /// A good leaf with a new key. It ends no later than the issuing CA does.
    pub fn issue(&self, identity: &Identity, now_ms: i64) -> Result<Signed, IssuerError> {
        let mut params = LeafParams::of(identity, now_ms);
        params.not_after_ms = params.not_after_ms.min(self.not_after_ms);
        self.sign(&params)
    }

    /// A good leaf for a key that was made elsewhere and stays there: the leaf, then the issuing CA, as PEM. Of the request nothing but the
    /// public key is taken. It lives `life_ms`, and ends no later than the issuing CA does.
    pub fn issue_for(&self, identity: &Identity, requested: &Requested, life_ms: i64, now_ms: i64) -> Result<Chain, IssuerError> {
        let mut params = LeafParams::of(identity, now_ms);
        let end_ms = now_ms.saturating_add(life_ms).min(self.not_after_ms);
        // A certificate ends with a whole second.
        params.not_after_ms = end_ms - end_ms.rem_euclid(1_000);
        let certificate = params.to_rcgen()?.signed_by(&requested.key, &self.signer).map_err(make)?;
        let (pem, ders) = self.chain(&certificate);
        Ok(Chain { pem, ders, not_after_ms: params.not_after_ms })
    }

    /// Signs whatever `params` say, right or wrong: this is how tests get bad leaves. Programs use
    /// [`Issuer::issue`].
    pub fn sign(&self, params: &LeafParams) -> Result<Signed, IssuerError> {
        let key = new_key()?;
        let certificate = params.to_rcgen()?.signed_by(&key, &self.signer).map_err(make)?;
        let (pem, chain) = self.chain(&certificate);
        let leaf = certificate.der().clone();
        Ok(Signed { pem, key_pem: key.serialize_pem(), chain, not_after_ms: params.not_after_ms, leaf })
    }

    /// A list of revoked certificates of this CA, for other people's software. `number` rises from list to list.
    pub fn revocation_list(&self, revoked: &[RevokedSerial], number: u64, now_ms: i64, next_ms: i64) -> Result<String, IssuerError> {
        let one = |it: &RevokedSerial| {
            let serial = unhex(&it.serial).ok_or_else(|| IssuerError::Make(format!("{:?} is no serial number", it.serial)))?;
            let serial_number = SerialNumber::from_slice(&serial);
            Ok(RevokedCertParams { serial_number, revocation_time: moment(it.at_ms)?, reason_code: None, invalidity_date: None })
        };
        let params = CertificateRevocationListParams {
            this_update: moment(now_ms)?,
            next_update: moment(next_ms)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect::<Result<_, IssuerError>>()?,
            key_identifier_method: key_identifier(&self.der)?,
        };
        params.signed_by(&self.signer).and_then(|list| list.pem()).map_err(make)
    }

    fn chain(&self, leaf: &rcgen::Certificate) -> (String, Vec<CertificateDer<'static>>) {
        let mut pem = format!("{}{}", leaf.pem(), self.pem);
        let mut ders = vec![leaf.der().clone(), self.der.clone()];
        for (text, der) in &self.behind {
            pem.push_str(text);
            ders.push(der.clone());
        }
        (pem, ders)
    }
}

/// A certificate that counts no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevokedSerial {
    /// Its serial number, hex.
    pub serial: String,
    /// When it was revoked, milliseconds UTC.
    pub at_ms: i64,
}

/// A fresh certificate for a key that is elsewhere.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The leaf, then the issuing CA, then the cross certificate if one is in use.
    pub pem: String,
    /// The same, as DER.
    pub ders: Vec<CertificateDer<'static>>,
    /// End of validity, milliseconds UTC.
    pub not_after_ms: i64,
}

/// A fresh certificate with its key.
pub struct Signed {
    /// The leaf, then the issuing CA, then the cross certificate if one is in use.
    pub pem: String,
    /// The leaf's key, PKCS#8. A secret.
    pub key_pem: String,
    /// The same certificates as [`Signed::pem`].
    pub chain: Vec<CertificateDer<'static>>,
    /// End of validity, milliseconds UTC.
    pub not_after_ms: i64,
    leaf: CertificateDer<'static>,
}

impl Signed {
    /// The leaf alone.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out, here and below.
        f.debug_struct("Root").field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("domain", &self.domain).field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("pem", &self.pem).finish_non_exhaustive()
    }
}

/// A name to put into a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AltName {
    /// A URI, in our grammar or not.
    Uri(String),
    /// A host name.
    Dns(String),
    /// An e-mail address.
    Email(String),
}

/// An extended key usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS client.
    Client,
    /// TLS server.
    Server,
    /// Code signing: what a control certificate has, so that no TLS stack takes it.
    CodeSigning,
    /// Any.
    Any,
}

/// What a leaf shall say. [`LeafParams::of`] is right; change a field to get a wrong one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafParams {
    /// The general names; right is one URI.
    pub names: Vec<AltName>,
    /// The extended key usages; empty means the extension is left out.
    pub usages: Vec<Usage>,
    /// Start of validity, milliseconds UTC.
    pub not_before_ms: i64,
    /// End of validity, milliseconds UTC.
    pub not_after_ms: i64,
    /// Whether it is a CA certificate; right is no.
    pub ca: bool,
    /// Whether its key may sign certificates; right is no.
    pub signs_certificates: bool,
}

impl LeafParams {
    /// What a good leaf of this identity says, issued at `now_ms`.
    pub fn of(identity: &Identity, now_ms: i64) -> LeafParams {
        let role = identity.role();
        let usages = match role {
            Role::Agent => vec![Usage::Client],
            Role::Relay => vec![Usage::Client, Usage::Server],
            Role::Hub => vec![Usage::Server],
            Role::Control => vec![Usage::CodeSigning],
        };
        LeafParams {
            names: vec![AltName::Uri(identity.to_string())],
            usages,
            not_before_ms: now_ms.saturating_sub(BACKDATED_MS),
            not_after_ms: now_ms.saturating_add(leaf_life_ms(role)),
            ca: false,
            signs_certificates: false,
        }
    }

    fn to_rcgen(&self) -> Result<CertificateParams, IssuerError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self
            .names
            .iter()
            .map(|name| match name {
                AltName::Uri(uri) => uri.as_str().try_into().map(SanType::URI),
                AltName::Dns(host) => host.as_str().try_into().map(SanType::DnsName),
                AltName::Email(address) => address.as_str().try_into().map(SanType::Rfc822Name),
            })
            .collect::<Result<_, _>>()
            .map_err(make)?;
        params.extended_key_usages = self
            .usages
            .iter()
            .map(|usage| match usage {
                Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
                Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
                Usage::CodeSigning => ExtendedKeyUsagePurpose::CodeSigning,
                Usage::Any => ExtendedKeyUsagePurpose::Any,
            })
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if self.signs_certificates {
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        // `ExplicitNoCa`, not `NoCa`: only then does rcgen write the subject key identifier.
        params.is_ca = if self.ca { IsCa::Ca(BasicConstraints::Constrained(0)) } else { IsCa::ExplicitNoCa };
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        params.not_before = moment(self.not_before_ms)?;
        params.not_after = moment(self.not_after_ms)?;
        Ok(params)
    }
}

fn ca_params(kind: &str, domain: &str, constraints: BasicConstraints, now_ms: i64, life_ms: i64) -> Result<CertificateParams, IssuerError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The tag keeps two CAs of one domain apart: during a rotation, and for whoever mixes up files.
    let serial = serial()?;
    let tag = hex(serial.to_bytes().get(..4).unwrap_or_default());
    let name = format!("muster {kind} {} {tag}", short(domain));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial);
    params.not_before = moment(now_ms.saturating_sub(BACKDATED_MS))?;
    params.not_after = moment(now_ms.saturating_add(life_ms))?;
    Ok(params)
}

fn read_ca(
    what: &'static str,
    pem: &str,
    key_pem: &str,
) -> Result<(CertificateDer<'static>, rcgen::Issuer<'static, KeyPair>), IssuerError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(what, e))?;
    let key = KeyPair::from_pem(key_pem).map_err(|e| damaged(what, e))?;
    let certificate = leaf::parse(&der).map_err(|e| damaged(what, e))?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(IssuerError::KeyMismatch(what));
    }
    let signer = rcgen::Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(what, e))?;
    Ok((der, signer))
}

/// A certificate's own key identifier, so that what names it names it alike.
fn key_identifier(der: &CertificateDer<'_>) -> Result<KeyIdMethod, IssuerError> {
    let key = leaf::subject_key(der).map_err(|e| damaged("CA", e))?;
    let bytes = key.as_deref().and_then(unhex).ok_or_else(|| damaged("CA", "it has no key identifier"))?;
    Ok(KeyIdMethod::PreSpecified(bytes))
}

fn new_key() -> Result<KeyPair, IssuerError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)
}

fn serial() -> Result<SerialNumber, IssuerError> {
    let mut bytes = [0; 16];
    provider().secure_random.fill(&mut bytes).map_err(|_| IssuerError::Make("no randomness".to_owned()))?;
    Ok(SerialNumber::from_slice(&bytes))
}

fn moment(ms: i64) -> Result<OffsetDateTime, IssuerError> {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).map_err(|_| IssuerError::Time(ms))
}

/// A common name has at most 64 characters (RFC 5280), a domain up to 253.
fn short(domain: &str) -> &str {
    domain.get(..40).unwrap_or(domain)
}

fn damaged(what: &'static str, why: impl fmt::Display) -> IssuerError {
    IssuerError::Damaged { what, why: why.to_string() }
}

fn make(error: rcgen::Error) -> IssuerError {
    IssuerError::Make(error.to_string())
}
