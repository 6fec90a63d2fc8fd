//! Quiet: what only the hub may read on its way through a relay: HPKE (RFC 9180, base mode) with X25519, HKDF-SHA256 and AES-256-GCM.
//!
//! ```text
//! encapsulated key (32) | ciphertext with its tag
//! ```
//!
//! `purpose` is HPKE's info: what was sealed for one purpose doesn't open for another.

use std::fmt;

use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};

const KEY_BYTES: usize = 32;

/// The public half of the hub's sealing key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SealTo(pub [u8; KEY_BYTES]);

/// The hub's sealing key.
pub struct SealKey {
    public: [u8; KEY_BYTES],
    private: HpkePrivateKey,
}

/// It wasn't sealed to this key, or for another purpose, or was changed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it doesn't open")]
pub struct NotOpened;

/// No key, or no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it can't be sealed to this key")]
pub struct NotSealed;

impl SealTo {
    /// Seals `text` so that only the key's owner reads it.
    pub fn seal(&self, purpose: &[u8], text: &[u8]) -> Result<Vec<u8>, NotSealed> {
        let to = HpkePublicKey(self.0.to_vec());
        let (encapsulated, ciphertext) = suite().seal(purpose, &[], text, &to).map_err(|_| NotSealed)?;
        let mut sealed = encapsulated.0;
        sealed.extend(ciphertext);
        Ok(sealed)
    }
}

impl SealKey {
    /// A new key.
    pub fn generate() -> Result<SealKey, NotSealed> {
        let (public, private) = suite().generate_key_pair().map_err(|_| NotSealed)?;
        let public = public.0.try_into().map_err(|_| NotSealed)?;
        Ok(SealKey { public, private })
    }

    /// The key as it is stored: public, then private half. A secret.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.public, self.private.secret_bytes()].concat()
    }

    /// A stored key. None: the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<SealKey> {
        let (public, private) = bytes.split_first_chunk()?;
        let key = SealKey { public: *public, private: private.to_vec().into() };
        // The halves must belong together, or nothing sealed would ever open.
        let sealed = key.public().seal(b"", b"").ok()?;
        key.open(b"", &sealed).is_ok().then_some(key)
    }

    /// What others seal to.
    pub fn public(&self) -> SealTo {
        SealTo(self.public)
    }

    /// Opens what was sealed to this key for `purpose`.
    pub fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let (encapsulated, ciphertext) = sealed.split_at_checked(KEY_BYTES).ok_or(NotOpened)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        suite().open(&encapsulated, purpose, &[], ciphertext, &self.private).map_err(|_| NotOpened)
    }
}

impl fmt::Debug for SealTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private half stays out.
        f.debug_struct("SealKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

fn suite() -> &'static dyn Hpke {
    DH_KEM_X25519_HKDF_SHA256_AES_256
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::hpke::{DH_KEM_X25519_HKDF_SHA256_AES_128, DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305};

    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_for_its_purpose_alone() {
        let key = SealKey::generate().unwrap();
        let sealed = key.public().seal(b"enroll", b"a secret").unwrap();
        assert_eq!(key.open(b"enroll", &sealed).unwrap(), b"a secret");
        assert_eq!(key.open(b"renew", &sealed), Err(NotOpened));
        assert_eq!(SealKey::generate().unwrap().open(b"enroll", &sealed), Err(NotOpened));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(b"enroll", &changed), Err(NotOpened), "byte {at}");
        }
        for cut in 0..sealed.len() {
            assert_eq!(key.open(b"enroll", &sealed[..cut]), Err(NotOpened));
        }
    }

    #[test]
    fn a_stored_key_opens_what_was_sealed_before() {
        let key = SealKey::generate().unwrap();
        let sealed = key.public().seal(b"x", b"text").unwrap();
        let stored = key.to_bytes();
        assert_eq!(SealKey::from_bytes(&stored).unwrap().open(b"x", &sealed).unwrap(), b"text");
        let mut mixed = stored.clone();
        mixed[..KEY_BYTES].copy_from_slice(&SealKey::generate().unwrap().to_bytes()[..KEY_BYTES]);
        assert!(SealKey::from_bytes(&mixed).is_none());
        assert!(SealKey::from_bytes(&stored[..40]).is_none() && SealKey::from_bytes(&[]).is_none());
    }

    /// RFC 9180 has no vector of this suite. This one was computed by the RFC alone, beside this library, with the ephemeral key of its A.1.1.
    #[test]
    fn a_text_that_was_sealed_by_the_suite_of_this_file_opens() {
        let stored = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c\
                      0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
        let sealed = "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431\
                      1f138950e5175ccce2a23dece54f17a5b218f0e1b84a43ef0a14a22681bf03a368a2f53a12f07a553619";
        let key = SealKey::from_bytes(&bytes(stored)).unwrap();
        assert_eq!(key.open(b"muster-door-1", &bytes(sealed)).unwrap(), b"what only the hub may read");
    }

    /// RFC 9180, A.1.1 and A.2.1: base mode with X25519 and HKDF-SHA256, first encryption; the RFC has none with AES-256-GCM and X25519.
    #[test]
    fn the_librarys_hpke_opens_the_vectors_of_rfc_9180() {
        const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
        const AAD: &str = "436f756e742d30";
        const TEXT: &str = "4265617574792069732074727574682c20747275746820626561757479";
        let vectors: [(&dyn Hpke, &str, &str, &str); 2] = [
            (
                DH_KEM_X25519_HKDF_SHA256_AES_128,
                "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
                "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
                "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
            ),
            (
                DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305,
                "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
                "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
                "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
            ),
        ];
        for (suite, encapsulated, private, ciphertext) in vectors {
            let private = HpkePrivateKey::from(bytes(private));
            let opened = suite.open(&EncapsulatedSecret(bytes(encapsulated)), &bytes(INFO), &bytes(AAD), &bytes(ciphertext), &private);
            assert_eq!(opened.unwrap(), bytes(TEXT));
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }
}
