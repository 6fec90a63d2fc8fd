//! Blocking: the organisation's own certificate, for a port where people come with their browsers. Which CA stands behind it is the
//! organisation's matter, so our roots have no say here; swappable while running like [`crate::keys`].

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls_pki_types::CertificateDer;

use crate::files;
use crate::keys::{Reloaded, now_ms};
use crate::leaf;
use crate::material::{KeysError, certificates, certified, private_key, utc_text};
use crate::tls::{TlsError, provider};

/// The most certificates in a web certificate's file: an organisation's CA may stand deep below its root.
pub const WEB_CHAIN_CERTIFICATES_MAX: usize = 10;

/// Why a web certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WebKeysError {
    /// A file, its text, or a key that is another's.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Something in the chain that is no certificate.
    #[error("certificate {number} in the web certificate's file is not a readable X.509 certificate")]
    Unreadable {
        /// Its place in the file, from 1.
        number: usize,
    },
    /// The first certificate in the file is a CA's.
    #[error("the first certificate in the web certificate's file is a CA's; the port's own comes first, then those above it")]
    Ca,
    /// It has ended.
    #[error("the web certificate expired on {}; browsers refuse it", utc_text(*.0))]
    Expired(i64),
    /// It hasn't begun.
    #[error("the web certificate is valid only from {}; check this computer's clock", utc_text(*.0))]
    NotYetValid(i64),
}

/// A web port's certificate and key.
pub struct WebKeys {
    time: Arc<dyn TimeProvider>,
    current: ArcSwap<WebMaterial>,
}

struct WebMaterial {
    certified: Arc<CertifiedKey>,
    start_ms: i64,
    end_ms: i64,
}

impl WebKeys {
    /// Loads a PEM chain, the port's own certificate first, and its key, which must be owner-only.
    ///
    /// A certificate that has ended loads: ask [`WebKeys::check_time`] and warn.
    pub fn load(certificate: &Path, key: &Path, time: Arc<dyn TimeProvider>) -> Result<Arc<WebKeys>, WebKeysError> {
        let current = ArcSwap::from_pointee(WebMaterial::load(certificate, key)?);
        Ok(Arc::new(WebKeys { time, current }))
    }

    /// Looks at the files again. Besides what [`WebKeys::load`] checks, the certificate must be valid now. On an error nothing changes.
    pub fn reload(&self, certificate: &Path, key: &Path) -> Result<Reloaded, WebKeysError> {
        let new = WebMaterial::load(certificate, key)?;
        if new.certified.cert == self.current.load().certified.cert {
            return Ok(Reloaded::Same);
        }
        new.check_time(now_ms(&*self.time))?;
        self.current.store(Arc::new(new));
        Ok(Reloaded::Taken)
    }

    /// End of validity, milliseconds UTC: of whichever certificate in the file ends first.
    pub fn not_after_ms(&self) -> i64 {
        self.current.load().end_ms
    }

    /// Fails when the certificate isn't valid at `now_ms` (milliseconds UTC): a text for a warning.
    pub fn check_time(&self, now_ms: i64) -> Result<(), WebKeysError> {
        self.current.load().check_time(now_ms)
    }
}

impl fmt::Debug for WebKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out.
        f.debug_struct("WebKeys").field("not_after_ms", &self.not_after_ms()).finish_non_exhaustive()
    }
}

impl WebMaterial {
    fn load(certificate: &Path, key: &Path) -> Result<WebMaterial, WebKeysError> {
        let text = files::read(certificate).map_err(KeysError::from)?;
        let key = files::read_secret(key).map_err(KeysError::from)?;
        let chain = certificates("certificate", &text, WEB_CHAIN_CERTIFICATES_MAX)?;
        let (start_ms, end_ms) = window(&chain)?;
        let certified = Arc::new(certified(chain, private_key(&key)?)?);
        Ok(WebMaterial { certified, start_ms, end_ms })
    }

    fn check_time(&self, now_ms: i64) -> Result<(), WebKeysError> {
        match now_ms {
            late if late > self.end_ms => Err(WebKeysError::Expired(self.end_ms)),
            early if early < self.start_ms => Err(WebKeysError::NotYetValid(self.start_ms)),
            _ => Ok(()),
        }
    }
}

/// When all of a chain is valid, milliseconds UTC.
fn window(chain: &[CertificateDer<'_>]) -> Result<(i64, i64), WebKeysError> {
    let mut window = (i64::MIN, i64::MAX);
    for (index, der) in chain.iter().enumerate() {
        let certificate = leaf::parse(der).map_err(|_| WebKeysError::Unreadable { number: index + 1 })?;
        // Many an organisation's certificate is signed by itself; such a one may call itself a CA.
        if index == 0 && chain.len() > 1 && certificate.is_ca() {
            return Err(WebKeysError::Ca);
        }
        let validity = certificate.validity();
        let [start, end] = [validity.not_before, validity.not_after].map(|at| at.timestamp().saturating_mul(1000));
        window = (window.0.max(start), window.1.min(end));
    }
    Ok(window)
}

/// For a port where people come: TLS 1.3, no client certificate. Takes up every later [`WebKeys::reload`] by itself.
pub fn web_config(keys: &Arc<WebKeys>, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_details(provider().clone(), keys.time.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Rustls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(OwnWebKey(keys.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

#[derive(Debug)]
struct OwnWebKey(Arc<WebKeys>);

impl ResolvesServerCert for OwnWebKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.load().certified.clone())
    }
}
