//! Quiet: asking for a certificate: a new key and a request (PKCS#10) that proves its possession. Of a request only the public key counts:
//! names, usages and times are the issuer's own.
#![warn(clippy::wildcard_enum_match_arm, clippy::iter_over_hash_type)]

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
};
use rustls_pki_types::CertificateSigningRequestDer;

use crate::issuer::IssuerError;

/// The longest request, in bytes: one with a P-256 key and no names has about 250.
pub const REQUEST_BYTES_MAX: usize = 2_048;

/// A new key and the request for a certificate of it.
pub struct KeyRequest {
    /// PKCS#8. A secret.
    pub key_pem: String,
    /// DER.
    pub request: Vec<u8>,
}

impl KeyRequest {
    /// A new P-256 key, and a request that names nobody.
    pub fn generate() -> Result<KeyRequest, IssuerError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        KeyRequest::of(&key)
    }

    /// A request with a stored key, byte for byte another one each time.
    pub fn of_pem(key_pem: &str) -> Result<KeyRequest, IssuerError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| IssuerError::Damaged { what: "key", why: error.to_string() })?;
        KeyRequest::of(&key)
    }

    fn of(key: &KeyPair) -> Result<KeyRequest, IssuerError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(key).map_err(made)?;
        Ok(KeyRequest { key_pem: key.serialize_pem(), request: request.der().to_vec() })
    }
}

/// What counts of a request whose signature is good: its public key, P-256.
pub struct Requested {
    pub(crate) key: PublicKey,
}

impl Requested {
    /// Reads a request and checks its signature.
    pub fn read(request: &[u8]) -> Result<Requested, RequestError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLong);
        }
        let read = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request));
        let key = read.map_err(|error| RequestError::Unreadable(error.to_string()))?.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError::Algorithm);
        }
        Ok(Requested { key })
    }

    /// The public key, SubjectPublicKeyInfo: the same for every request of one key.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }
}

/// A request that gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More bytes than [`REQUEST_BYTES_MAX`].
    #[error("the request has more than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    /// No request, or its signature isn't that of its key.
    #[error("the request doesn't read, or isn't signed by its own key: {0}")]
    Unreadable(String),
    /// Another kind of key.
    #[error("the request's key isn't a P-256 key")]
    Algorithm,
}

fn made(error: rcgen::Error) -> IssuerError {
    IssuerError::Make(error.to_string())
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ED25519;

    use super::*;

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let made = KeyRequest::generate().unwrap();
        let read = Requested::read(&made.request).unwrap();
        let key = KeyPair::from_pem(&made.key_pem).unwrap();
        assert_eq!(read.public_key(), key.subject_public_key_info());
        let again = KeyRequest::of_pem(&made.key_pem).unwrap();
        assert_eq!(Requested::read(&again.request).unwrap().public_key(), read.public_key());
    }

    #[test]
    fn a_request_that_was_changed_is_refused_or_asks_for_the_same_key() {
        let made = KeyRequest::generate().unwrap().request;
        let key = Requested::read(&made).unwrap().public_key();
        let mut refused = 0;
        for at in 0..made.len() {
            let mut changed = made.clone();
            changed[at] ^= 1;
            // What names the signature's algorithm isn't signed itself.
            match Requested::read(&changed) {
                Ok(read) => assert_eq!(read.public_key(), key, "byte {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused >= made.len() - 8, "{refused} of {}", made.len());
        assert!(Requested::read(&made[..made.len() - 1]).is_err());
        assert!(Requested::read(&[]).is_err());
        assert_eq!(Requested::read(&[0; REQUEST_BYTES_MAX + 1]).err(), Some(RequestError::TooLong));
    }

    #[test]
    fn another_kind_of_key_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let request = KeyRequest::of(&key).unwrap().request;
        assert_eq!(Requested::read(&request).err(), Some(RequestError::Algorithm));
    }
}
