//! Quiet: a join token: what a new device or relay is given, as one line of text. It holds all that is needed to know the mesh before the first
//! word is spoken, so that nothing is trusted on first sight.
//!
//! ```text
//! muster-join-1.<base64url: token (bincode) | crc32c>
//! ```

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use data_encoding::BASE64URL_NOPAD;

use crate::identity::{Name, Role};
use crate::stranger::{Fingerprint, Trusted};

const PREFIX: &str = "muster-join-1.";
const FAMILY: &str = "muster-join-";
/// As text: it is copied by people.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// A word of a file's name: the secret alone has 43 characters.
const WORD_MAX: usize = 40;
/// What a token may take while it is read.
const MEMORY_MAX: usize = 8 * TEXT_BYTES_MAX;

/// A token. Its text is a secret.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct JoinToken {
    /// What the hub knows it by.
    pub id: [u8; 8],
    /// The hub keeps only its SHA-256.
    pub secret: [u8; 32],
    /// What it makes of its bearer.
    pub kind: Kind,
    /// Until when it counts, milliseconds UTC.
    pub ends_ms: i64,
    /// The trust domain.
    pub domain: String,
    /// SHA-256 of each root.
    pub roots: Vec<[u8; 32]>,
    /// The hub's sealing key.
    pub seal: [u8; 32],
    /// Whom to ask: an agent its relays, a relay the hub. At their doors.
    pub doors: Vec<Dial>,
}

/// Where somebody can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Dial {
    /// Host and port.
    pub address: String,
    /// Its door's host and port.
    pub door: String,
    /// Who must answer, as in `site/oslo/relay/oslo-1`.
    pub name: String,
}

/// What a token makes of its bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Kind {
    /// An employee's computer.
    Agent,
    /// A branch office's relay.
    Relay,
}

impl Kind {
    /// The same as a role.
    pub fn role(self) -> Role {
        match self {
            Kind::Agent => Role::Agent,
            Kind::Relay => Role::Relay,
        }
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise.
    #[error("this is no join token: one begins with {PREFIX}")]
    NoToken,
    /// Of a later program, or an older.
    #[error("this join token is of another version than this program; take the program of the hub's version")]
    Version,
    /// Cut, or changed.
    #[error("the join token is damaged: was all of it copied?")]
    Damaged,
    /// Without a door that reads, or without a root.
    #[error("the join token names nobody to ask; ask for a new one")]
    Doors,
}

impl JoinToken {
    /// What its bearer knows of the mesh.
    pub fn trusted(&self) -> Trusted {
        Trusted { domain: self.domain.clone(), roots: self.roots.iter().copied().map(Fingerprint).collect(), held: Vec::new() }
    }

    /// Whom to ask, in order: the door's host and port, and who must answer there.
    pub fn doors(&self) -> impl Iterator<Item = (&str, Name)> {
        self.doors.iter().filter_map(|door| Some((door.door.as_str(), door.name.parse().ok()?)))
    }

    /// The one line that is given on.
    pub fn text(&self) -> String {
        // Encoding into memory can't fail: there is no such thing as a token too long for it.
        let mut bytes = bincode::encode_to_vec(self, bincode::config::standard()).unwrap_or_default();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        // A mail program may have broken the line.
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(2 * TEXT_BYTES_MAX).collect();
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(if text.starts_with(FAMILY) { TokenError::Version } else { TokenError::NoToken });
        };
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (token, crc) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if crc32c::crc32c(token) != u32::from_le_bytes(*crc) {
            return Err(TokenError::Damaged);
        }
        let config = bincode::config::standard().with_limit::<MEMORY_MAX>();
        let (token, used): (JoinToken, usize) = bincode::decode_from_slice(token, config).map_err(|_| TokenError::Damaged)?;
        if used + crc.len() != bytes.len() {
            return Err(TokenError::Damaged);
        }
        if token.doors().next().is_none() || token.roots.is_empty() { Err(TokenError::Doors) } else { Ok(token) }
    }
}

/// Whether a text is meant as a join token, of whatever version, damaged or not.
pub fn looks_like_one(text: &str) -> bool {
    text.trim_start().starts_with(FAMILY)
}

/// Whether a text may be a piece of a join token whose beginning was lost on the way: it isn't repeated to anybody then. Few names of files have
/// so long a word.
pub fn may_be_a_piece_of_one(text: &str) -> bool {
    let is_in_base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(|c| !is_in_base64url(c)).any(|word| word.len() > WORD_MAX)
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out.
        f.debug_struct("JoinToken").field("kind", &self.kind).field("domain", &self.domain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_also_from_broken_lines() {
        let token = token();
        let text = token.text();
        assert!(text.is_ascii() && text.len() < 512, "{} bytes: {text}", text.len());
        assert_eq!(text.parse(), Ok(token.clone()));
        let broken: String =
            text.chars().enumerate().flat_map(|(at, c)| if at % 60 == 59 { vec![c, '\n', ' '] } else { vec![c] }).collect();
        assert_eq!(broken.parse(), Ok(token));
    }

    #[test]
    fn the_text_is_the_golden_one() {
        let golden = concat!(
            "muster-join-1.AQEBAQEBAQECAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgD9AKC4MEYDAAAPbXVzdGVyLmludGVybmFsAQMDAwMD",
            "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQBG3JlbGF5Lm9zbG8uZXhhbXBsZS5vcm",
            "c6NDQzMxtyZWxheS5vc2xvLmV4YW1wbGUub3JnOjQ0MzQWc2l0ZS9vc2xvL3JlbGF5L29zbG8tMWV8aWA",
        );
        assert_eq!(token().text(), golden);
    }

    #[test]
    fn what_is_no_token_says_so() {
        let text = token().text();
        let refused = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(refused(""), TokenError::NoToken);
        assert_eq!(refused("hunter2"), TokenError::NoToken);
        assert_eq!(refused(&text.replace("join-1", "join-2")), TokenError::Version);
        for cut in PREFIX.len()..text.len() {
            assert_eq!(refused(&text[..cut]), TokenError::Damaged, "cut at {cut}");
        }
        assert_eq!(refused(&format!("{text}A")), TokenError::Damaged);
        assert_eq!(refused(&JoinToken { doors: Vec::new(), ..token() }.text()), TokenError::Doors);
        assert_eq!(refused(&JoinToken { roots: Vec::new(), ..token() }.text()), TokenError::Doors);
    }

    #[test]
    fn a_piece_of_one_is_known_and_the_name_of_a_file_is_none() {
        let text = token().text();
        assert!(text[1..].len() > 100 && may_be_a_piece_of_one(&text[1..]) && may_be_a_piece_of_one(&text[text.len() - 60..]));
        for name in ["", "token.txt", "/home/ada/Downloads/join-token-of-the-relay-in-oslo.txt", "./01a20661ff5970cf9aa6000f653cc697.pem"] {
            assert!(!may_be_a_piece_of_one(name), "{name}");
        }
    }

    #[test]
    fn its_secret_can_not_be_read_in_a_log() {
        assert_eq!(format!("{:?}", token()), r#"JoinToken { kind: Agent, domain: "muster.internal", .. }"#);
    }

    fn token() -> JoinToken {
        JoinToken {
            id: [1; 8],
            secret: [2; 32],
            kind: Kind::Agent,
            ends_ms: 1_800_000_000_000,
            domain: "muster.internal".to_owned(),
            roots: vec![[3; 32]],
            seal: [4; 32],
            doors: vec![Dial {
                address: "relay.oslo.example.org:4433".to_owned(),
                door: "relay.oslo.example.org:4434".to_owned(),
                name: "site/oslo/relay/oslo-1".to_owned(),
            }],
        }
    }
}
