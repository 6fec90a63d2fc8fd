//! Blocking: the key that a device keeps for life (Ed25519). It is made on the device at enrolment and never leaves it; the hub knows its public
//! half. Certificates come and go: this key says that who asks for one is still the same disk.

use std::fmt;
use std::path::Path;

use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use crate::files::{self, FileError};

/// A public half: 32 bytes.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// A signature: 64 bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// Why there is no usable device key.
#[derive(Debug, thiserror::Error)]
pub enum DeviceKeyError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a key.
    #[error("{0} holds no Ed25519 key in PKCS#8")]
    NotAKey(String),
    /// The random generator fails.
    #[error("no randomness for a new key")]
    NoRandomness,
}

/// The private half.
pub struct DeviceKey {
    pair: Ed25519KeyPair,
    pem: String,
}

impl DeviceKey {
    /// A new key, in memory.
    pub fn generate() -> Result<DeviceKey, DeviceKeyError> {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|_| DeviceKeyError::NoRandomness)?;
        DeviceKey::from_pem(&made.serialize_pem()).ok_or(DeviceKeyError::NoRandomness)
    }

    /// Reads the key of a file that only its owner may read, or makes it there. A key that is there is never replaced.
    pub fn open(path: &Path) -> Result<DeviceKey, DeviceKeyError> {
        match DeviceKey::load(path) {
            Err(DeviceKeyError::File(FileError::Missing(_))) => {
                let key = DeviceKey::generate()?;
                files::create_secret(path, key.pem.as_bytes())?;
                Ok(key)
            }
            opened => opened,
        }
    }

    /// Reads the key of a file that only its owner may read.
    pub fn load(path: &Path) -> Result<DeviceKey, DeviceKeyError> {
        let pem = files::read_secret(path)?;
        DeviceKey::from_pem(&pem).ok_or_else(|| DeviceKeyError::NotAKey(path.display().to_string()))
    }

    /// A stored key.
    pub fn from_pem(pem: &str) -> Option<DeviceKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?;
        Some(DeviceKey { pair, pem: pem.to_owned() })
    }

    /// The key as it is stored, PKCS#8. A secret.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The public half.
    pub fn public(&self) -> [u8; PUBLIC_KEY_BYTES] {
        let mut public = [0; PUBLIC_KEY_BYTES];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }

    /// Signs. What is signed begins with what it is for, so that no signature is good for anything else.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private half stays out.
        f.debug_struct("DeviceKey").finish_non_exhaustive()
    }
}

/// Whether `signature` is that of `public`'s owner under `message`.
pub fn is_signed(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&signature::ED25519, public).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_signs_as_itself_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        let made = DeviceKey::open(&path).unwrap();
        let signature = DeviceKey::open(&path).unwrap().sign(b"for this: that");
        assert!(is_signed(&made.public(), b"for this: that", &signature));
        assert!(!is_signed(&made.public(), b"for this: other", &signature));
        assert!(!is_signed(&DeviceKey::generate().unwrap().public(), b"for this: that", &signature));
        assert!(!is_signed(&[], b"for this: that", &signature) && !is_signed(&made.public(), b"", &[]));
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        files::write_secret(&path, b"no key").unwrap();
        assert!(DeviceKey::open(&path).unwrap_err().to_string().contains("device.key"));
        assert_eq!(files::read_secret(&path).unwrap(), "no key");
    }
}
