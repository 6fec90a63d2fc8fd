//! Quiet: how someone asks the hub for a certificate: at a door that needs none, or through a relay.
//!
//! ```text
//! Ask::Nonce                 → Answer::Nonce
//! Ask::Sealed(HPKE to the hub: Plea | signature of the device key over it)
//!                            → Answer::Said(body | HMAC under the plea's reply key)
//! ```
//!
//! A relay in the middle can read neither a join token nor who asks, can't put in a request of its own (the device key has signed the whole
//! plea), and can't answer in the hub's place (only who opened the plea knows the reply key). Sending a plea again changes nothing: the hub
//! answers one public key always alike. A struct never grows in place: a new field is a new kind.

use std::fmt;

use aws_lc_rs::hmac;
use bincode::{Decode, Encode};
use muster_certs::{
    DeviceKey, Name,
    device_key::{self, PUBLIC_KEY_BYTES},
};

pub use muster_certs::join::Dial;

use crate::{
    ids::Version,
    limits,
    message::{MessageError, decode, encode},
    seal::{NotSealed, SealKey, SealTo},
};

/// ALPN of an agent at a relay's door.
pub const DOOR_ALPN: &[u8] = b"muster-door/1";
/// The number in the path of the POST by which an ask reaches the hub.
pub const DOOR_PROTOCOL: u16 = 1;
/// Content type of an ask and of its answer.
pub const DOOR_CONTENT_TYPE: &str = "application/vnd.muster.door";
/// A number of the hub's that a plea is signed over, so that no old one is good for ever.
pub const NONCE_BYTES: usize = 32;

/// What the device key signs begins with this, so that its signature is good for nothing else.
const SIGNED: &[u8] = b"muster-door-1\0";
/// HPKE's info.
const SEALED: &[u8] = b"muster-door-1";
/// What the reply key's HMAC is over begins with this.
const SAID: &[u8] = b"muster-door-answer-1\0";
const MEMORY: usize = 8 * limits::DOOR_BYTES_MAX;

pub type Nonce = [u8; NONCE_BYTES];

/// To the hub.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    Nonce,
    /// A [`Plea`] that only the hub can open.
    Sealed(Vec<u8>),
}

/// From the hub.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    Nonce(Nonce),
    /// [`Said`], and the reply key's HMAC over it.
    Said {
        body: Vec<u8>,
        tag: [u8; 32],
    },
    /// Come again in so many seconds. From whoever couldn't ask the hub, too.
    Busy {
        seconds: u32,
    },
    /// It doesn't open or read: sealed to another hub's key, signed over an old nonce, or changed on the way. Begin again.
    Unreadable,
}

/// What is asked for, and by whom.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Plea {
    pub wish: Wish,
    pub nonce: Nonce,
    /// PKCS#10. Only its public key counts.
    pub request: Vec<u8>,
    /// The public half of the device key.
    pub device_key: [u8; PUBLIC_KEY_BYTES],
    /// Random: what the answer is recognised by.
    pub reply_key: [u8; 32],
    /// Of the program that asks.
    pub version: String,
    /// The newest bundle of roots that it holds. 0.0: none.
    pub bundle: Version,
}

#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Wish {
    /// To become someone.
    Enroll { token: [u8; 8], secret: [u8; 32] },
    /// A new certificate for someone who has or had one. Whether the old one has ended is for the hub to see.
    Renew { name: String, join_state: u64 },
}

/// What the hub says to a plea that it could read.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Said {
    Issued(Issued),
    /// An admin has to approve first. The same plea may be brought again.
    Waiting,
    Refused(Refusal),
}

/// A certificate, and what else its owner needs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Issued {
    /// As in `site/oslo/agent/…`.
    pub name: String,
    /// The leaf, then the issuing CA: PEM.
    pub chain: String,
    /// All roots in force: PEM.
    pub roots: String,
    /// Rises with each enrolment and recovery.
    pub join_state: u64,
    pub standing: Standing,
    /// Relays for an agent, the hub for a relay; in the order in which they are to be tried.
    pub dial: Vec<Dial>,
    /// The hub's sealing key, for next time.
    pub seal: [u8; 32],
}

/// Whether a device may work yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Standing {
    Approved,
    /// It may connect, and collects nothing, until an admin has said whose it is.
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Refusal {
    /// No such token, or its time or its uses are up, or it is for another kind of program.
    Token,
    /// The request can't be used.
    Request,
    /// Nobody of that name was enrolled with this device key.
    Unknown,
    /// It was denied.
    Denied,
    /// A proof from before a later one: two disks have the same key.
    Cloned,
    /// This hub issues nothing now: its issuing CA has ended, or it has none.
    NoIssuer,
    /// The computer is one person's, and the token another's.
    OtherPerson,
}

impl Refusal {
    pub const ALL: [Refusal; 7] =
        [Refusal::Token, Refusal::Request, Refusal::Unknown, Refusal::Denied, Refusal::Cloned, Refusal::NoIssuer, Refusal::OtherPerson];

    /// The name that metrics and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Token => "token",
            Refusal::Request => "request",
            Refusal::Unknown => "unknown",
            Refusal::Denied => "denied",
            Refusal::Cloned => "cloned",
            Refusal::NoIssuer => "no_issuer",
            Refusal::OtherPerson => "other_person",
        }
    }
}

/// For people: what was wrong, and what to do.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Token => "the join token is unknown, was used up, has ended, or is for another kind of program; ask for a new one",
            Refusal::Request => "the hub can't use this program's request; is it of the same version?",
            Refusal::Unknown => "the hub doesn't know this device; enrol it with a new token",
            Refusal::Denied => "this device was denied; ask whoever looks after the mesh",
            Refusal::Cloned => "another disk has this device's key and used it later; an admin must decide which one is the device",
            Refusal::NoIssuer => "the hub issues no certificates now; whoever looks after it must look at its issuing CA",
            Refusal::OtherPerson => {
                "this computer is one person's and the token another's, and what waits here would become theirs; to hand it over, enrol it with an empty state folder"
            }
        })
    }
}

/// A plea whose signature is good.
pub struct Opened {
    pub plea: Plea,
}

/// It isn't a plea to this hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it doesn't open, doesn't read, or isn't signed by the device key in it")]
pub struct NotAPlea;

/// It isn't what the hub said to this plea.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer isn't the hub's")]
pub struct NotTheHub;

impl Plea {
    /// Signs and seals it.
    pub fn seal(&self, key: &DeviceKey, hub: &SealTo) -> Result<Ask, NotSealed> {
        let plea = encode(self).map_err(|_| NotSealed)?;
        let signature = key.sign(&[SIGNED, &plea].concat());
        let signed = encode((plea, signature.to_vec())).map_err(|_| NotSealed)?;
        Ok(Ask::Sealed(hub.seal(SEALED, &signed)?))
    }

    /// Opens what was sealed, and checks that the device key in it has signed it.
    pub fn open(sealed: &[u8], hub: &SealKey) -> Result<Opened, NotAPlea> {
        let signed = hub.open(SEALED, sealed).map_err(|_| NotAPlea)?;
        let (bytes, signature): (Vec<u8>, Vec<u8>) = decode::<_, MEMORY>(&signed).map_err(|_| NotAPlea)?;
        let plea: Plea = decode::<_, MEMORY>(&bytes).map_err(|_| NotAPlea)?;
        if plea.version.len() > limits::TEXT_BYTES_MAX || !device_key::is_signed(&plea.device_key, &[SIGNED, &bytes].concat(), &signature) {
            return Err(NotAPlea);
        }
        Ok(Opened { plea })
    }

    /// Reads what the hub said to this plea.
    pub fn said(&self, body: &[u8], tag: &[u8]) -> Result<Said, NotTheHub> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.reply_key);
        hmac::verify(&key, &[SAID, body].concat(), tag).map_err(|_| NotTheHub)?;
        decode::<_, MEMORY>(body).map_err(|_| NotTheHub)
    }
}

impl Opened {
    /// What is answered, so that the one who asked knows it for the hub's.
    pub fn answer(&self, said: &Said) -> Result<Answer, MessageError> {
        let body = encode(said)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.plea.reply_key);
        let signed = hmac::sign(&key, &[SAID, &body].concat());
        let mut tag = [0; 32];
        tag.copy_from_slice(signed.as_ref());
        Ok(Answer::Said { body, tag })
    }
}

impl Wish {
    /// The name that metrics and logs use.
    pub fn kind(&self) -> &'static str {
        match self {
            Wish::Enroll { .. } => "enroll",
            Wish::Renew { .. } => "renew",
        }
    }
}

impl Issued {
    /// Who it is, if it reads.
    pub fn name(&self) -> Option<Name> {
        self.name.parse().ok()
    }
}

impl Ask {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        bounded(encode(self)?)
    }

    pub fn read(bytes: &[u8]) -> Result<Ask, MessageError> {
        read(bytes)
    }
}

impl Answer {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        bounded(encode(self)?)
    }

    pub fn read(bytes: &[u8]) -> Result<Answer, MessageError> {
        read(bytes)
    }
}

fn bounded(bytes: Vec<u8>) -> Result<Vec<u8>, MessageError> {
    if bytes.len() > limits::DOOR_BYTES_MAX { Err(MessageError::TooLong(bytes.len())) } else { Ok(bytes) }
}

fn read<T: Decode<()>>(bytes: &[u8]) -> Result<T, MessageError> {
    if bytes.len() > limits::DOOR_BYTES_MAX {
        return Err(MessageError::TooLong(bytes.len()));
    }
    decode::<_, MEMORY>(bytes)
}

// Secrets stay out of logs.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ask::Nonce => "Nonce",
            Ask::Sealed(_) => "Sealed(..)",
        })
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Nonce(_) => f.write_str("Nonce(..)"),
            Answer::Said { .. } => f.write_str("Said(..)"),
            Answer::Busy { seconds } => write!(f, "Busy({seconds} s)"),
            Answer::Unreadable => f.write_str("Unreadable"),
        }
    }
}

impl fmt::Debug for Plea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plea({})", self.wish.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plea_reaches_the_hub_and_its_answer_comes_back() {
        let (hub, device) = (SealKey::generate().unwrap(), DeviceKey::generate().unwrap());
        let plea = plea(&device);
        let ask = Ask::read(&plea.seal(&device, &hub.public()).unwrap().bytes().unwrap()).unwrap();
        let Ask::Sealed(sealed) = &ask else { panic!("{ask:?}") };
        let opened = Plea::open(sealed, &hub).unwrap();
        assert!(opened.plea == plea);
        for said in [Said::Issued(issued()), Said::Waiting, Said::Refused(Refusal::Token)] {
            let answer = Answer::read(&opened.answer(&said).unwrap().bytes().unwrap()).unwrap();
            let Answer::Said { body, tag } = &answer else { panic!("{answer:?}") };
            assert_eq!(plea.said(body, tag).unwrap(), said);
        }
    }

    #[test]
    fn a_relay_in_the_middle_reads_and_changes_nothing() {
        let (hub, device) = (SealKey::generate().unwrap(), DeviceKey::generate().unwrap());
        let plea = plea(&device);
        let Ask::Sealed(sealed) = plea.seal(&device, &hub.public()).unwrap() else { panic!() };
        let Wish::Enroll { secret, .. } = &plea.wish else { panic!() };
        assert!(!sealed.windows(8).any(|window| secret.windows(8).any(|part| part == window)), "the token's secret is in sight");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(Plea::open(&changed, &hub).is_err(), "byte {at}");
        }
        // Nor can it answer: it doesn't know the reply key.
        let other = Opened { plea: Plea { reply_key: [9; 32], ..plea.clone() } };
        let Answer::Said { body, tag } = other.answer(&Said::Issued(issued())).unwrap() else { panic!() };
        assert_eq!(plea.said(&body, &tag), Err(NotTheHub));
        let Answer::Said { body, tag } = (Opened { plea: plea.clone() }).answer(&Said::Waiting).unwrap() else { panic!() };
        assert_eq!(plea.said(&body, &tag).unwrap(), Said::Waiting);
        let refused = encode(Said::Refused(Refusal::Denied)).unwrap();
        assert_eq!(plea.said(&refused, &tag), Err(NotTheHub));
    }

    #[test]
    fn a_request_that_the_device_key_has_not_signed_is_no_plea() {
        let (hub, device, thief) = (SealKey::generate().unwrap(), DeviceKey::generate().unwrap(), DeviceKey::generate().unwrap());
        // Whoever seals may sign: the key in the plea counts, and the thief hasn't got it.
        let Ask::Sealed(sealed) = plea(&device).seal(&thief, &hub.public()).unwrap() else { panic!() };
        assert!(Plea::open(&sealed, &hub).is_err());
        let Ask::Sealed(sealed) = plea(&device).seal(&device, &hub.public()).unwrap() else { panic!() };
        assert!(Plea::open(&sealed, &SealKey::generate().unwrap()).is_err());
    }

    #[test]
    fn rubbish_and_what_is_too_long_are_refused() {
        let long = vec![0; limits::DOOR_BYTES_MAX + 1];
        assert_eq!(Ask::read(&long), Err(MessageError::TooLong(long.len())));
        assert!(Ask::read(&[]).is_err() && Ask::read(&[7]).is_err() && Ask::read(&[0, 0]).is_err());
        assert!(Answer::read(&[]).is_err() && Answer::read(&[9]).is_err());
        // A length that says more than there is.
        assert!(Ask::read(&[1, 253, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn nothing_of_a_plea_can_be_read_in_a_log() {
        let device = DeviceKey::generate().unwrap();
        assert_eq!(format!("{:?}", plea(&device)), "Plea(enroll)");
        assert_eq!(format!("{:?}", Ask::Sealed(b"secret".to_vec())), "Sealed(..)");
    }

    fn plea(device: &DeviceKey) -> Plea {
        Plea {
            wish: Wish::Enroll { token: [1; 8], secret: *b"never in sight of those between." },
            nonce: [2; 32],
            request: vec![3; 250],
            device_key: device.public(),
            reply_key: [4; 32],
            version: "0.1.0".to_owned(),
            bundle: Version { epoch: 1, n: 2 },
        }
    }

    fn issued() -> Issued {
        Issued {
            name: "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617".to_owned(),
            chain: "a chain".to_owned(),
            roots: "roots".to_owned(),
            join_state: 1,
            standing: Standing::Waiting,
            dial: vec![Dial { address: "a:1".to_owned(), door: "a:2".to_owned(), name: "site/oslo/relay/oslo-1".to_owned() }],
            seal: [5; 32],
        }
    }
}
