//! Quiet: rustls configurations made of [`Keys`]. TLS 1.3 only, both sides show a certificate, the
//! leaf check runs inside the handshake, nothing is resumed and nothing is sent early: by default
//! rustls lets an expired or revoked client back in through a ticket.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::chain::moment;
use crate::identity::{Name, Role};
use crate::keys::Keys;
use crate::leaf::{self, Leaf, LeafError};
use crate::material::{CHAIN_CERTIFICATES_MAX, Window};

/// The server name to give to `connect()`. It says nothing: SNI is off, and who answers is checked
/// against the dialled [`Name`].
pub const DIALLED_NAME: &str = "muster.invalid";

/// A configuration that must not be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// This node's role never listens.
    #[error("{} does not listen", .0.phrase())]
    DoesNotListen(Role),
    /// This node's, or an expected client's, role never dials.
    #[error("{} does not dial", .0.phrase())]
    DoesNotDial(Role),
    /// Nobody would be welcome.
    #[error("a listener needs at least one role it lets in")]
    NoRoles,
    /// rustls itself refuses.
    #[error("the TLS library refuses this configuration: {0}")]
    Rustls(Error),
}

/// The one provider of cryptography in the whole product.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}

/// For a listener: clients must show a certificate of one of `roles` (which must be roles that
/// dial). Takes up every later [`Keys::replace`] by itself.
pub fn server_config(keys: &Arc<Keys>, roles: &'static [Role], alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    if !keys.role().listens() {
        return Err(TlsError::DoesNotListen(keys.role()));
    }
    if roles.is_empty() {
        return Err(TlsError::NoRoles);
    }
    if let Some(role) = roles.iter().find(|role| !role.dials()) {
        return Err(TlsError::DoesNotDial(*role));
    }
    let mut config = ServerConfig::builder_with_details(provider().clone(), keys.time().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .with_client_cert_verifier(Arc::new(ClientCheck { keys: keys.clone(), roles }))
        .with_cert_resolver(Arc::new(OwnKey(keys.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// For a dialler: exactly `expected` must answer. Takes up every later [`Keys::replace`] by itself.
/// Connect with [`DIALLED_NAME`].
pub fn client_config(keys: &Arc<Keys>, expected: &Name, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    if !keys.role().dials() {
        return Err(TlsError::DoesNotDial(keys.role()));
    }
    if !expected.role().listens() {
        return Err(TlsError::DoesNotListen(expected.role()));
    }
    let mut config = ClientConfig::builder_with_details(provider().clone(), keys.time().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .dangerous() // rustls' word for "own verifier"
        .with_custom_certificate_verifier(Arc::new(ServerCheck { keys: keys.clone(), expected: expected.clone() }))
        .with_client_cert_resolver(Arc::new(OwnKey(keys.clone())));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// The leaf check again, per connection, for a listener: who is this client?
pub fn check_peer(chain: &[CertificateDer<'_>], keys: &Keys, roles: &[Role]) -> Result<Leaf, LeafError> {
    check_length(chain.len())?;
    let end = chain.first().ok_or(LeafError::Missing)?;
    let leaf = leaf::check_role(end, &keys.current().leaf.identity.domain, roles)?;
    keys.check_denied(&leaf).map(|()| leaf)
}

/// The leaf check again, per connection, for a dialler: is this the one that was dialled?
pub fn check_dialled(chain: &[CertificateDer<'_>], keys: &Keys, expected: &Name) -> Result<Leaf, LeafError> {
    check_length(chain.len())?;
    let end = chain.first().ok_or(LeafError::Missing)?;
    let leaf = leaf::check_name(end, &keys.current().leaf.identity.domain, expected)?;
    keys.check_denied(&leaf).map(|()| leaf)
}

/// The leaf check's reason inside a handshake error, if that was the reason: for logs and tests.
#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' errors grow with its versions")]
pub fn leaf_error(error: &Error) -> Option<&LeafError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => why.downcast_ref().map(|Refusal(why)| why),
        _ => None,
    }
}

/// What rustls says that a handshake failed by, as QUIC and HTTP pass it on: only the leaf check's words, if that was the reason.
pub fn handshake_words(said: &str) -> &str {
    said.strip_prefix("invalid peer certificate: Other(OtherError(").and_then(|why| why.strip_suffix("))")).unwrap_or(said)
}

/// The leaf check's reason on its way through rustls, which shows people its `Debug`.
#[derive(thiserror::Error)]
#[error(transparent)]
struct Refusal(LeafError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// This node's current certificate and key, for both sides.
#[derive(Debug)]
struct OwnKey(Arc<Keys>);

impl ResolvesServerCert for OwnKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl ResolvesClientCert for OwnKey {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a listener asks of a client: chain first, so that only what our CA signed is looked into.
#[derive(Debug)]
struct ClientCheck {
    keys: Arc<Keys>,
    roles: &'static [Role],
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Nobody outside needs to know our roots' names, and roots change while running.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(1 + intermediates.len()).map_err(refused)?;
        let own = self.keys.current();
        let verify = |at| own.clients.verify_client_cert(end_entity, intermediates, at);
        let verified = verify_at(end_entity, intermediates, now, self.keys.clock_is_behind(), verify)?;
        let leaf = leaf::check_role(end_entity, &own.leaf.identity.domain, self.roles).map_err(refused)?;
        self.keys.check_denied(&leaf).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a dialler asks of a server. The server name of the connection is a constant and is not
/// looked at.
#[derive(Debug)]
struct ServerCheck {
    keys: Arc<Keys>,
    expected: Name,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_length(1 + intermediates.len()).map_err(refused)?;
        let own = self.keys.current();
        let (end, algorithms) = (ParsedCertificate::try_from(end_entity)?, provider().signature_verification_algorithms.all);
        let verify = |at| verify_server_cert_signed_by_trust_anchor(&end, &own.roots, intermediates, at, algorithms);
        verify_at(end_entity, intermediates, now, self.keys.clock_is_behind(), verify)?;
        let leaf = leaf::check_name(end_entity, &own.leaf.identity.domain, &self.expected).map_err(refused)?;
        self.keys.check_denied(&leaf).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Looks at a chain as of `now`. Where the clock can't tell whether a chain has begun, one that seems to begin later is looked at as of its
/// beginning: a wrong clock doesn't keep anybody out, and what is known to have ended stays out.
pub(crate) fn verify_at<T>(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    clock_is_behind: bool,
    verify: impl Fn(UnixTime) -> Result<T, Error>,
) -> Result<T, Error> {
    match verify(now) {
        Err(error) if clock_is_behind && is_early(&error) => {
            let leaf = leaf::read_leaf(end_entity).map_err(refused)?;
            let chain = Window::of(&leaf, &intermediates.iter().collect::<Vec<_>>()).map_err(refused)?;
            verify(moment(chain.start_ms))
        }
        verified => verified,
    }
}

fn is_early(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }))
}

/// Asked before any signature is looked at, so that a long chain costs nothing.
fn check_length(certificates: usize) -> Result<(), LeafError> {
    if certificates > CHAIN_CERTIFICATES_MAX { Err(LeafError::LongChain(certificates)) } else { Ok(()) }
}

pub(crate) fn refused(why: LeafError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(why)))))
}
