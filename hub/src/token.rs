//! Async: the tokens that signed-in people show: JWTs signed with an Ed25519 key, which this hub makes and keeps in its state folder, owner only.
//! One algorithm, one issuer: whatever else a token says of itself is refused.
//!
//! The public halves are rows, so that any hub of a database checks what any of them signed. Each row says until when it counts. A key is
//! replaced at half of that time, and as soon as somebody ended it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair},
};
use data_encoding::HEXLOWER;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use muster_certs::files::{self, FileError};
use muster_mesh::complaint::Complaint;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::store::{Store, StoreError, TokenKeyRow};

/// How long a token is good: short, since it can't be taken back.
pub const LIFE_S: i64 = 15 * 60;

const ISSUER: &str = "muster-hub";
const AUDIENCE: &str = "muster-api";
/// No token of ours is longer.
const TOKEN_BYTES_MAX: usize = 2_048;
/// A key's id, in bytes; it is written in hex.
const KID_BYTES: usize = 8;
/// What a key signed counts for so long after it was made. It is replaced at half of that.
const KEY_LIFE_MS: i64 = 60 * 86_400_000;
/// Hubs' clocks differ by less.
const CLOCKS_MS: i64 = 60_000;
/// A key whose end is further away than its whole life was made by a clock that was wrong by more than this.
const STRAY_MS: i64 = 3_600_000;
/// Keys that count at once: each hub has one, and one before it.
const KEYS_MAX: i64 = 256;
/// A token by a key that isn't known makes a hub look at the rows, no oftener than this.
const LOOK_EVERY_MS: i64 = 1_000;

/// Makes and checks tokens.
pub struct Tokens {
    store: Arc<Store>,
    path: PathBuf,
    own: ArcSwap<Own>,
    known: ArcSwap<Known>,
    /// One look at the rows at a time; when the last one was.
    looking: Mutex<i64>,
}

/// This hub's key.
struct Own {
    kid: String,
    /// Hex.
    public_key: String,
    signing: EncodingKey,
}

/// Whose tokens count, and until when.
#[derive(Default)]
struct Known(BTreeMap<String, (DecodingKey, i64)>);

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

/// Why a token doesn't count here, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// Another hub may have made its key since the last look.
    UnknownKey,
    Bad,
}

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
    /// Reads this hub's key, or makes one: at the first start, and where it has ended or is due. `restored`: what was signed before counts no
    /// more, since the backup may not know which key was ended.
    pub async fn open(store: Arc<Store>, path: &Path, restored: bool, now_ms: i64) -> anyhow::Result<Tokens> {
        if restored {
            store.end_all_token_keys(now_ms).await?;
        }
        let rows = store.token_keys(now_ms, KEYS_MAX).await?;
        let own = match Own::read(path)? {
            Some(own) if !is_due(&rows, &own.kid, now_ms) => own,
            kept => Own::replace(&store, path, kept.as_ref(), now_ms).await?,
        };
        let known = Known::of(&store.token_keys(now_ms, KEYS_MAX).await?);
        let (own, known) = (ArcSwap::from_pointee(own), ArcSwap::from_pointee(known));
        Ok(Tokens { store, path: path.to_owned(), own, known, looking: Mutex::new(now_ms) })
    }

    /// Looks which keys count, and replaces this hub's where it is due or was ended.
    pub async fn look(&self, now_ms: i64) -> anyhow::Result<()> {
        let mut looked_ms = self.looking.lock().await;
        let mut rows = self.store.token_keys(now_ms, KEYS_MAX).await?;
        let own = self.own.load_full();
        if is_due(&rows, &own.kid, now_ms) {
            self.own.store(Arc::new(Own::replace(&self.store, &self.path, Some(&own), now_ms).await?));
            rows = self.store.token_keys(now_ms, KEYS_MAX).await?;
        }
        self.known.store(Arc::new(Known::of(&rows)));
        *looked_ms = now_ms;
        Ok(())
    }

    /// A token for a caller, good from `now_ms` for [`LIFE_S`].
    pub fn issue(&self, caller: &Caller, now_ms: i64) -> Result<String, TokenError> {
        self.own.load().issue(caller, now_ms)
    }

    /// Who shows it, if it is of a hub of this database.
    pub async fn check(&self, token: &str, now_ms: i64) -> Result<Caller, TokenError> {
        match self.known.load().check(token, now_ms) {
            Ok(caller) => Ok(caller),
            Err(Wrong::Bad) => Err(TokenError),
            Err(Wrong::UnknownKey) => {
                self.learn(now_ms).await.map_err(|error| {
                    tracing::debug!(%error, "the token keys can't be read now");
                    TokenError
                })?;
                self.known.load().check(token, now_ms).map_err(|_| TokenError)
            }
        }
    }

    /// What other hubs made since the last look.
    async fn learn(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut looked_ms = self.looking.lock().await;
        // A clock that was set back looks again, too.
        if now_ms.abs_diff(*looked_ms) >= LOOK_EVERY_MS.unsigned_abs() {
            self.known.store(Arc::new(Known::of(&self.store.token_keys(now_ms, KEYS_MAX).await?)));
            *looked_ms = now_ms;
        }
        Ok(())
    }

    /// The id of this hub's key.
    pub fn kid(&self) -> String {
        self.own.load().kid.clone()
    }
}

/// The id of the key that lies in a hub's state folder. None: there is none yet.
pub fn kid_of(path: &Path) -> Result<Option<String>, Complaint> {
    Ok(Own::read(path)?.map(|own| own.kid))
}

/// Whether this hub needs a new key: its row is gone, has ended or passed the half of its life, or was made by a clock that was wrong.
fn is_due(rows: &[TokenKeyRow], kid: &str, now_ms: i64) -> bool {
    let left_ms = rows.iter().find(|row| row.kid == kid).map(|row| row.ends_ms.saturating_sub(now_ms));
    left_ms.is_none_or(|left_ms| left_ms <= KEY_LIFE_MS / 2 || left_ms > KEY_LIFE_MS + STRAY_MS)
}

impl Own {
    fn read(path: &Path) -> Result<Option<Own>, Complaint> {
        let text = match files::read_secret(path) {
            Ok(text) => text,
            Err(FileError::Missing(_)) => return Ok(None),
            Err(error) => return Err(unusable(path, &error.to_string())),
        };
        Own::from_text(&text).map(Some).ok_or_else(|| unusable(path, &format!("{} holds no Ed25519 key", path.display())))
    }

    /// A new key in the old one's place. What that signed counts until it would have ended by itself.
    async fn replace(store: &Store, path: &Path, old: Option<&Own>, now_ms: i64) -> anyhow::Result<Own> {
        let text = make().map_err(|why| unusable(path, &why))?;
        let own = Own::from_text(&text).ok_or_else(|| unusable(path, "the new one doesn't read"))?;
        let mut writing = store.write().await?;
        if let Some(old) = old {
            writing.end_token_key_by(&old.kid, now_ms + LIFE_S * 1_000 + CLOCKS_MS).await?;
        }
        let (kid, public_key) = (own.kid.clone(), own.public_key.clone());
        writing.keep_token_key(&TokenKeyRow { kid, public_key, since_ms: now_ms, ends_ms: now_ms + KEY_LIFE_MS }).await?;
        // Before the commit: a row without its file would count for nobody; a file without its row is replaced by the next look.
        files::write_secret(path, text.as_bytes()).map_err(|error| unusable(path, &error.to_string()))?;
        writing.commit().await?;
        tracing::info!(kid = own.kid, "this hub signs people's tokens with a new key");
        Ok(own)
    }

    fn from_text(text: &str) -> Option<Own> {
        let der = HEXLOWER.decode(text.trim().as_bytes()).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8(&der).ok()?;
        let public = pair.public_key().as_ref();
        let kid = HEXLOWER.encode(digest(&SHA256, public).as_ref().get(..KID_BYTES)?);
        Some(Own { kid, public_key: HEXLOWER.encode(public), signing: EncodingKey::from_ed_der(&der) })
    }

    fn issue(&self, caller: &Caller, now_ms: i64) -> Result<String, TokenError> {
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
}

impl Known {
    /// A row that doesn't read vouches for nobody.
    fn of(rows: &[TokenKeyRow]) -> Known {
        let checking = |row: &TokenKeyRow| {
            let public = HEXLOWER.decode(row.public_key.as_bytes()).ok()?;
            Some((row.kid.clone(), (DecodingKey::from_ed_der(&public), row.ends_ms)))
        };
        Known(rows.iter().filter_map(checking).collect())
    }

    fn check(&self, token: &str, now_ms: i64) -> Result<Caller, Wrong> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Wrong::Bad);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Wrong::Bad)?;
        let kid = header.kid.filter(|kid| is_kid(kid)).ok_or(Wrong::Bad)?;
        if header.alg != Algorithm::EdDSA {
            return Err(Wrong::Bad);
        }
        let (checking, ends_ms) = self.0.get(&kid).ok_or(Wrong::UnknownKey)?;
        let claims = jsonwebtoken::decode::<Claims>(token, checking, &validation()).map_err(|_| Wrong::Bad)?.claims;
        let now_s = now_ms.div_euclid(1_000);
        // One from the future was made before the clock was set back: its length would be anything.
        let is_of_now = now_s < claims.exp && claims.iat <= now_s + CLOCKS_MS / 1_000 && claims.exp - claims.iat <= LIFE_S;
        if !is_of_now || now_ms >= *ends_ms {
            return Err(Wrong::Bad);
        }
        Ok(Caller { admin_id: claims.sub.parse().map_err(|_| Wrong::Bad)?, name: claims.name })
    }
}

/// Whoever sends something else makes nobody look anything up.
fn is_kid(text: &str) -> bool {
    text.len() == 2 * KID_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn validation() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // The hub has one clock, and it isn't the library's: `check` compares.
    validation.validate_exp = false;
    validation
}

fn make() -> Result<String, String> {
    let pair = Ed25519KeyPair::generate().map_err(|_| "no random numbers to make one".to_owned())?;
    let der = pair.to_pkcs8().map_err(|_| "it can't be written down".to_owned())?;
    Ok(HEXLOWER.encode(der.as_ref()) + "\n")
}

fn unusable(path: &Path, why: &str) -> Complaint {
    let what = format!("The key of the sign-in tokens can't be used ({why})");
    Complaint::new(what, format!("Put {} right, or delete it: everybody then signs in again", path.display()))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::encode;

    use super::*;

    const NOW: i64 = 1_795_424_402_000;

    #[test]
    fn a_token_says_who_signed_in_until_its_time_is_up() {
        let (own, known) = key();
        let token = own.issue(&kari(), NOW).unwrap();
        assert_eq!(known.check(&token, NOW), Ok(kari()));
        assert_eq!(known.check(&token, NOW + (LIFE_S - 1) * 1_000), Ok(kari()));
        assert_eq!(known.check(&token, NOW + LIFE_S * 1_000), Err(Wrong::Bad));
    }

    #[test]
    fn what_an_ended_key_signed_counts_no_more() {
        let (own, _) = key();
        let token = own.issue(&kari(), NOW).unwrap();
        let known = Known::of(&[row(&own, NOW + 1_000)]);
        assert_eq!(known.check(&token, NOW + 999), Ok(kari()));
        assert_eq!(known.check(&token, NOW + 1_000), Err(Wrong::Bad));
    }

    #[test]
    fn a_key_is_due_at_half_of_its_life_and_when_it_was_ended_or_a_clock_was_wrong() {
        let (own, _) = key();
        let due_with = |ends_ms: i64| is_due(&[row(&own, ends_ms)], &own.kid, NOW);
        assert!(!due_with(NOW + KEY_LIFE_MS));
        assert!(!due_with(NOW + KEY_LIFE_MS / 2 + 1));
        assert!(due_with(NOW + KEY_LIFE_MS / 2));
        assert!(due_with(NOW));
        assert!(due_with(NOW + 100 * KEY_LIFE_MS));
        assert!(is_due(&[], &own.kid, NOW));
    }

    #[test]
    fn tokens_that_only_look_like_ours_are_refused() {
        let ((own, known), (other, _)) = (key(), key());
        let good = own.issue(&kari(), NOW).unwrap();
        let [_, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let header = |kid: &str, alg| Header { kid: Some(kid.to_owned()), ..Header::new(alg) };
        let claim = |name: &str, value: serde_json::Value| {
            let iat = NOW / 1_000;
            let mut claims = serde_json::json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "7", "name": "kari", "iat": iat, "exp": iat + 60});
            claims[name] = value;
            encode(&header(&own.kid, Algorithm::EdDSA), &claims, &own.signing).unwrap()
        };
        assert_eq!(known.check(&claim("name", "kari".into()), NOW), Ok(kari()));
        let hs = EncodingKey::from_secret(b"the public key, perhaps");
        let confused = encode(&header(&own.kid, Algorithm::HS256), &serde_json::json!({"sub": "7", "exp": NOW}), &hs).unwrap();
        let named = |kid: &str| encode(&header(kid, Algorithm::EdDSA), &serde_json::json!({"sub": "7"}), &own.signing).unwrap();
        let unknown = other.issue(&kari(), NOW).unwrap();
        let stranger = Own { kid: own.kid.clone(), ..other };
        for (what, bad) in [
            ("alg none", format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")),
            ("no signature", format!("{}.{claims}.", good.split('.').next().unwrap())),
            ("other claims under a signature", format!("{}.e30.{signature}", good.split('.').next().unwrap())),
            ("HS256", confused),
            ("another key, our kid", stranger.issue(&kari(), NOW).unwrap()),
            ("no kid", encode(&Header::new(Algorithm::EdDSA), &serde_json::json!({"sub": "7"}), &own.signing).unwrap()),
            ("a kid that is none", named("../../etc/passwd")),
            ("a kid in capitals", named(&own.kid.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"))),
            ("a kid that is too long", named(&"a".repeat(1_000))),
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
            assert_eq!(known.check(&bad, NOW), Err(Wrong::Bad), "{what}");
        }
        assert_eq!(known.check(&unknown, NOW), Err(Wrong::UnknownKey));
    }

    fn key() -> (Own, Known) {
        let own = Own::from_text(&make().unwrap()).unwrap();
        let known = Known::of(&[row(&own, NOW + KEY_LIFE_MS)]);
        (own, known)
    }

    fn row(own: &Own, ends_ms: i64) -> TokenKeyRow {
        TokenKeyRow { kid: own.kid.clone(), public_key: own.public_key.clone(), since_ms: NOW, ends_ms }
    }

    fn kari() -> Caller {
        Caller { admin_id: 7, name: "kari".into() }
    }
}
