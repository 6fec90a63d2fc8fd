//! Quiet: TLS for someone who has no certificate yet, at a door made for that alone. The door shows its certificate and, behind it, the roots;
//! the stranger holds the fingerprint of a root, from its join token, and trusts nothing else: nothing is believed on first sight.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Name, hex};
use crate::keys::Keys;
use crate::leaf::{self, Leaf, LeafError};
use crate::material::{CHAIN_CERTIFICATES_MAX, KeysError, ROOTS_MAX, root_ders};
use crate::tls::{TlsError, provider, refused, verify_at};

/// SHA-256 over a root's DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(der: &CertificateDer<'_>) -> Fingerprint {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Fingerprint(bytes)
    }

    /// Of each root of a PEM text.
    pub fn of_roots(pem: &str) -> Result<Vec<Fingerprint>, KeysError> {
        Ok(root_ders(pem)?.iter().map(Fingerprint::of).collect())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a stranger knows of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// The trust domain.
    pub domain: String,
    /// Roots, any of which may stand behind who answers.
    pub roots: Vec<Fingerprint>,
    /// Those of them that it holds. After a rotation of the root no door shows the old one any more; whoever holds it checks by the cross
    /// certificate.
    pub held: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// What somebody knows who holds the text of a `roots.pem`.
    pub fn of_roots(domain: &str, pem: &str) -> Result<Trusted, KeysError> {
        let held = root_ders(pem)?;
        Ok(Trusted { domain: domain.to_owned(), roots: held.iter().map(Fingerprint::of).collect(), held })
    }
}

/// For a listener whose clients have no certificate. Takes up every later [`Keys::replace`] by itself.
pub fn door_config(keys: &Arc<Keys>, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    if !keys.role().listens() {
        return Err(TlsError::DoesNotListen(keys.role()));
    }
    let mut config = ServerConfig::builder_with_details(provider().clone(), keys.time().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(WithRoots(keys.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// For a stranger: exactly `expected` must answer, with one of the trusted roots behind it. Connect with [`crate::DIALLED_NAME`].
pub fn stranger_config(trusted: &Trusted, expected: &Name, time: Arc<dyn TimeProvider>, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    if !expected.role().listens() {
        return Err(TlsError::DoesNotListen(expected.role()));
    }
    let mut config = ClientConfig::builder_with_details(provider().clone(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .dangerous() // rustls' word for "own verifier"
        .with_custom_certificate_verifier(Arc::new(DoorCheck { trusted: trusted.clone(), expected: expected.clone() }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// The leaf check again, per connection: is this the one that was dialled?
pub fn check_door(chain: &[CertificateDer<'_>], trusted: &Trusted, expected: &Name) -> Result<Leaf, LeafError> {
    let end = chain.first().ok_or(LeafError::Missing)?;
    leaf::check_name(end, &trusted.domain, expected)
}

/// The own certificate with the roots behind it, so that a stranger finds the one it knows.
#[derive(Debug)]
struct WithRoots(Arc<Keys>);

impl ResolvesServerCert for WithRoots {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.0.current();
        let mut shown = own.certified.cert.clone();
        shown.extend(own.root_ders.iter().cloned());
        Some(Arc::new(CertifiedKey::new(shown, own.certified.key.clone())))
    }
}

#[derive(Debug)]
struct DoorCheck {
    trusted: Trusted,
    expected: Name,
}

impl DoorCheck {
    /// The shown certificates that the token names, and the roots that are held. Whether they are roots is the chain's matter: only a CA can stand behind another.
    fn anchors(&self, shown: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let mut anchors = RootCertStore::empty();
        let known = shown.iter().filter(|der| self.trusted.roots.contains(&Fingerprint::of(der)));
        for der in known.chain(&self.trusted.held) {
            anchors.add(der.clone().into_owned())?;
        }
        if anchors.is_empty() { Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) } else { Ok(anchors) }
    }
}

impl ServerCertVerifier for DoorCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.len() >= CHAIN_CERTIFICATES_MAX + ROOTS_MAX {
            return Err(refused(LeafError::LongChain(1 + intermediates.len())));
        }
        let (end, algorithms) = (ParsedCertificate::try_from(end_entity)?, provider().signature_verification_algorithms.all);
        let anchors = self.anchors(intermediates)?;
        let verify = |at| verify_server_cert_signed_by_trust_anchor(&end, &anchors, intermediates, at, algorithms);
        // A newcomer knows nothing that is past for certain: no clock says that a door hasn't begun.
        verify_at(end_entity, intermediates, now, true, verify)?;
        leaf::check_name(end_entity, &self.trusted.domain, &self.expected).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
