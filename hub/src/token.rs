//! Blocking: the tokens that signed-in people show: JWTs signed with an Ed25519 key, which is made at the first start and lies in the state
//! folder, owner only. One algorithm, one key, one issuer: whatever else a token says of itself is refused.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use muster_certs::files::{self, FileError};
use muster_mesh::complaint::Complaint;
use serde::{Deserialize, Serialize};

/// How long a token is good: short, since it can't be taken back.
pub const LIFE_S: i64 = 15 * 60;

const ISSUER: &str = "muster-hub";
const AUDIENCE: &str = "muster-api";
/// No token of ours is longer.
const TOKEN_BYTES_MAX: usize = 2_048;

/// Makes and checks tokens.
pub struct Tokens {
    kid: String,
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
}

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub admin_id: i64,
    pub name: String,
}

/// The token isn't one of ours, or its time is up. Deliberately says no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token isn't valid")]
pub struct TokenError;

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    name: String,
    /// Seconds UTC; integers, so that a text or a fraction isn't taken for one.
    iat: i64,
    exp: i64,
}

impl Tokens {
    /// Reads the key, or makes it at the first start.
    pub fn open(path: &Path) -> Result<Tokens, Complaint> {
        let unusable = |why: String| {
            let what = format!("The key of the sign-in tokens can't be used ({why})");
            Complaint::new(what, format!("Put {} right, or delete it: everybody then signs in again", path.display()))
        };
        let text = match files::read_secret(path) {
            Ok(text) => text,
            Err(FileError::Missing(_)) => {
                let made = make().map_err(&unusable)?;
                files::create_secret(path, made.as_bytes()).map_err(|error| unusable(error.to_string()))?;
                made
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        Tokens::from_text(&text).ok_or_else(|| unusable(format!("{} holds no Ed25519 key", path.display())))
    }

    fn from_text(text: &str) -> Option<Tokens> {
        let der = from_hex(text.trim())?;
        let pair = Ed25519KeyPair::from_pkcs8(&der).ok()?;
        let public = pair.public_key().as_ref();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // The hub has one clock, and it isn't the library's: `check` compares.
        validation.validate_exp = false;
        Some(Tokens {
            kid: to_hex(&public[..8]),
            checking: DecodingKey::from_ed_der(public),
            signing: EncodingKey::from_ed_der(&der),
            validation,
        })
    }

    /// A token for a caller, good from `now_ms` for [`LIFE_S`].
    pub fn issue(&self, caller: &Caller, now_ms: i64) -> Result<String, TokenError> {
        let iat = now_ms.div_euclid(1_000);
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: caller.admin_id.to_string(),
            name: caller.name.clone(),
            iat,
            exp: iat + LIFE_S,
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|_| TokenError)
    }

    pub fn check(&self, token: &str, now_ms: i64) -> Result<Caller, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError)?;
        if header.alg != Algorithm::EdDSA || header.kid.as_deref() != Some(&self.kid) {
            return Err(TokenError);
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation).map_err(|_| TokenError)?.claims;
        let now_s = now_ms.div_euclid(1_000);
        // One from the future was made before the clock was set back: its length would be anything.
        if now_s >= claims.exp || claims.iat > now_s + 60 || claims.exp - claims.iat > LIFE_S {
            return Err(TokenError);
        }
        Ok(Caller { admin_id: claims.sub.parse().map_err(|_| TokenError)?, name: claims.name })
    }
}

fn make() -> Result<String, String> {
    let pair = Ed25519KeyPair::generate().map_err(|_| "no random numbers to make one".to_owned())?;
    let der = pair.to_pkcs8().map_err(|_| "it can't be written down".to_owned())?;
    Ok(to_hex(der.as_ref()) + "\n")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if digits.len() % 2 == 1 { None } else { digits.chunks(2).map(byte).collect() }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::encode;

    use super::*;

    const NOW: i64 = 1_795_424_402_000;

    #[test]
    fn a_token_says_who_signed_in_until_its_time_is_up() {
        let tokens = tokens();
        let token = tokens.issue(&kari(), NOW).unwrap();
        assert_eq!(tokens.check(&token, NOW), Ok(kari()));
        assert_eq!(tokens.check(&token, NOW + (LIFE_S - 1) * 1_000), Ok(kari()));
        assert_eq!(tokens.check(&token, NOW + LIFE_S * 1_000), Err(TokenError));
    }

    #[test]
    fn the_key_is_made_once_and_only_the_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.key");
        let token = Tokens::open(&path).unwrap().issue(&kari(), NOW).unwrap();
        assert_eq!(Tokens::open(&path).unwrap().check(&token, NOW), Ok(kari()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "no key").unwrap();
        assert!(Tokens::open(&path).is_err_and(|complaint| complaint.to_string().contains("token.key")));
    }

    #[test]
    fn tokens_that_only_look_like_ours_are_refused() {
        let (tokens, other) = (tokens(), self::tokens());
        let good = tokens.issue(&kari(), NOW).unwrap();
        let [_, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let claim = |name: &str, value: serde_json::Value| {
            let iat = NOW / 1_000;
            let mut claims = serde_json::json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "7", "name": "kari", "iat": iat, "exp": iat + 60});
            claims[name] = value;
            let header = Header { kid: Some(tokens.kid.clone()), ..Header::new(Algorithm::EdDSA) };
            encode(&header, &claims, &tokens.signing).unwrap()
        };
        assert_eq!(tokens.check(&claim("name", "kari".into()), NOW), Ok(kari()));
        let hs = EncodingKey::from_secret(b"the public key, perhaps");
        let header = Header { kid: Some(tokens.kid.clone()), ..Header::new(Algorithm::HS256) };
        let confused = encode(&header, &serde_json::json!({"sub": "7", "exp": NOW}), &hs).unwrap();
        let stranger = Tokens { kid: tokens.kid.clone(), ..other };
        for (what, bad) in [
            ("alg none", format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")),
            ("no signature", format!("{}.{claims}.", good.split('.').next().unwrap())),
            ("other claims under a signature", format!("{}.e30.{signature}", good.split('.').next().unwrap())),
            ("HS256", confused),
            ("another key, our kid", stranger.issue(&kari(), NOW).unwrap()),
            ("another kid", self::tokens().issue(&kari(), NOW).unwrap()),
            ("exp as text", claim("exp", "9999999999".into())),
            ("exp missing", claim("exp", serde_json::Value::Null)),
            ("exp a year ahead", claim("exp", (NOW / 1_000 + 31_536_000).into())),
            ("another issuer", claim("iss", "someone".into())),
            ("another audience", claim("aud", "someone".into())),
            ("sub no number", claim("sub", "kari".into())),
            ("rubbish", "a.b.c".into()),
            ("empty", String::new()),
            ("far too long", "a".repeat(1 << 20)),
        ] {
            assert_eq!(tokens.check(&bad, NOW), Err(TokenError), "{what}");
        }
    }

    fn tokens() -> Tokens {
        Tokens::from_text(&make().unwrap()).unwrap()
    }

    fn kari() -> Caller {
        Caller { admin_id: 7, name: "kari".into() }
    }
}
