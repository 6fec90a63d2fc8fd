//! Blocking: passwords: argon2id, and one-time ones for new admins. Slow on purpose: never on a thread that answers.

use std::sync::LazyLock;

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use muster_mesh::chance;

/// Longer ones are refused unseen, so that nobody makes us hash megabytes.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// Without letters and digits that look alike.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// 80 random bits in four groups, to be typed once.
pub fn one_time() -> String {
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte) % LETTERS.len()]);
    let letters: Vec<char> = chance::random_16().into_iter().map(letter).collect();
    letters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// The PHC string to keep. None: the system has no random numbers or memory.
pub fn hash(password: &str) -> Option<String> {
    let hash = Argon2::default().hash_password(password.as_bytes()).ok()?;
    Some(hash.to_string())
}

/// Whether the password is the one behind `kept`. Without one (an unknown name) it takes as long, and is false.
pub fn is_right(password: &str, kept: Option<&str>) -> bool {
    // What nobody's password is, hashed once, so that an unknown name costs the same time as a known one.
    static NOBODY: LazyLock<String> = LazyLock::new(|| hash(&one_time()).unwrap_or_default());
    let hash = kept.unwrap_or(&NOBODY);
    let right = PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
    right && kept.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_is_right() {
        let password = one_time();
        assert_eq!(password.len(), 19);
        let kept = hash(&password).unwrap();
        assert!(kept.starts_with("$argon2id$"));
        assert!(is_right(&password, Some(&kept)));
        assert!(!is_right("wrong", Some(&kept)));
        assert!(!is_right(&password, None));
        assert!(!is_right(&password, Some("no hash")));
    }
}
