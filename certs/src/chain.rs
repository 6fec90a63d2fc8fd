//! Quiet: does a root of ours stand behind a certificate at a given time? Handshakes ask rustls;
//! this is for a node's own files, for `verify`, and for what the CA has just signed.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use x509_parser::certificate::X509Certificate;

use crate::identity::Role;
use crate::leaf::{issuer_key_of, parse, subject_key_of};
use crate::tls::provider;

/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3, without tag and length.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Why no root stands behind a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A certificate of the chain has ended.
    #[error("the certificate (or the CA that issued it) has expired; renew it")]
    Expired,
    /// A certificate of the chain hasn't begun.
    #[error("the certificate isn't valid yet; check this computer's clock")]
    NotYetValid,
    /// No path to any root.
    #[error(
        "none of the given roots stands behind the certificate; check that roots.pem and the certificate are of the same mesh, and that the file holds the issuing CA behind the leaf"
    )]
    UnknownIssuer,
    /// The certificate doesn't allow what its role needs.
    #[error("the certificate's chain doesn't allow the use its role needs")]
    WrongUsage,
    /// A CA where a leaf should be.
    #[error("this is a CA certificate, not one for a program")]
    Ca,
    /// Anything else, in webpki's words.
    #[error("the chain is not acceptable ({0})")]
    Other(String),
}

/// Checks the chain from `leaf` over `between` to one of `roots`, for the uses of `role`.
pub fn check_chain(
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    roots: &RootCertStore,
    role: Role,
    now: UnixTime,
) -> Result<(), ChainError> {
    let end = EndEntityCert::try_from(leaf).map_err(name)?;
    let algorithms = provider().signature_verification_algorithms.all;
    for usage in usages(role) {
        end.verify_for_usage(algorithms, &roots.roots, between, now, usage, None, None).map_err(name)?;
    }
    Ok(())
}

/// Those of `between` that somebody with these roots needs, from the leaf upwards. During a rotation of the root a chain carries a cross
/// certificate that only holders of the old root need; its end is nobody else's.
pub(crate) fn path<'a>(
    leaf: &CertificateDer<'_>,
    between: &'a [CertificateDer<'static>],
    roots: &[CertificateDer<'_>],
) -> Vec<&'a CertificateDer<'static>> {
    let mut path: Vec<&CertificateDer<'static>> = Vec::new();
    let mut below = leaf.clone();
    while !roots.iter().any(|root| signed(root, &below)) {
        let above = between.iter().find(|above| signed(above, &below) && !path.contains(above));
        let Some(above) = above else { break };
        path.push(above);
        below = above.clone();
    }
    path
}

/// Whether `above` says it is the one that `below` names; signatures are for [`check_chain`].
fn signed(above: &CertificateDer<'_>, below: &CertificateDer<'_>) -> bool {
    let same_key = |above: &X509Certificate<'_>, below: &X509Certificate<'_>| match (subject_key_of(above), issuer_key_of(below)) {
        (Some(above), Some(below)) => above == below,
        (None, _) | (_, None) => true,
    };
    match (parse(above), parse(below)) {
        (Ok(above), Ok(below)) => above.subject().as_raw() == below.issuer().as_raw() && same_key(&above, &below),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

fn usages(role: Role) -> Vec<KeyUsage> {
    match role {
        Role::Agent => vec![KeyUsage::client_auth()],
        Role::Relay => vec![KeyUsage::client_auth(), KeyUsage::server_auth()],
        Role::Hub => vec![KeyUsage::server_auth()],
        // Not `required`: webpki would ask it of the issuing CA, too. That the leaf itself has it is
        // the leaf check's business.
        Role::Control => vec![KeyUsage::required_if_present(CODE_SIGNING)],
    }
}

/// Milliseconds UTC as webpki takes them; a time before 1970 is 1970.
pub(crate) fn moment(ms: i64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_millis(ms.max(0).unsigned_abs()))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "webpki's errors grow with its versions")]
fn name(error: webpki::Error) -> ChainError {
    match error {
        webpki::Error::CertExpired { .. } => ChainError::Expired,
        webpki::Error::CertNotValidYet { .. } => ChainError::NotYetValid,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => ChainError::UnknownIssuer,
        webpki::Error::RequiredEkuNotFoundContext(_) => ChainError::WrongUsage,
        webpki::Error::CaUsedAsEndEntity => ChainError::Ca,
        other => ChainError::Other(other.to_string()),
    }
}
