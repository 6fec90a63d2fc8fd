//! Quiet: what programs of the mesh say to each other besides envelopes: control messages, the POST and its answer, and `Signed`.
//!
//! ```text
//! control   u32 length of what follows (≤ 64 KiB) | u16 kind | body (bincode)
//! POST      u32 length | PostHead;  then per envelope: u16 length | Facts | u32 length | envelope
//! ```
//!
//! Little-endian. A struct never grows in place: a new field is a new kind. Kinds from 0x8000 up may be skipped when unknown; any other
//! unknown kind ends the connection.

use std::collections::BTreeMap;

use bincode::{Decode, Encode, config::Config};
use bytes::Bytes;
use muster_certs::Denied;

use crate::{
    batch::{Envelope, FrameError, Tail},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    limits,
    record::State,
};

/// ALPN of agent → relay.
pub const AGENT_ALPN: &[u8] = b"muster/1";
/// The protocol of agent → relay that this build speaks.
pub const AGENT_PROTOCOL: u16 = 1;
/// The protocol of relay → hub that this build speaks: the number in the path of the POST.
pub const SYNC_PROTOCOL: u16 = 1;
/// Content type of a POST and of its answer.
pub const SYNC_CONTENT_TYPE: &str = "application/vnd.muster.sync";

/// The number in the path of the POST by which a relay shows what the hub signed.
pub const SIGNED_PROTOCOL: u16 = 1;
/// Content type of that POST.
pub const SIGNED_CONTENT_TYPE: &str = "application/vnd.muster.signed";

/// Bytes that are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a message of {0} bytes, more than is allowed")]
    TooLong(usize),
    #[error("a message ends too early")]
    Cut,
    #[error("an unknown message of kind {0:#06x}")]
    Kind(u16),
    #[error("a message doesn't decode")]
    Decode,
    #[error("bytes are left over behind a message")]
    LeftOver,
    #[error("an envelope: {0}")]
    Frame(#[from] FrameError),
}

// --- agent and relay ---

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Lowest and highest protocol that the agent speaks.
    pub protocols: (u16, u16),
    /// max(last stored + 1, wall clock in ms), stored before use: of two connections the higher is the newer.
    pub dial: u64,
    pub boot: BootId,
    pub wall_ms: i64,
    pub boot_ms: u64,
    pub zone: String,
    pub versions: Vec<HeldVersion>,
    /// The oldest spools with something held, and the open ones.
    pub tails: Vec<Tail>,
}

/// The highest version of one kind that the sender holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct HeldVersion {
    /// A [`SignedKind`] as a number.
    pub kind: u8,
    pub version: Version,
}

/// What the device is doing now: only shown, never counted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StateNow {
    pub state: State,
    pub since_ms: i64,
    pub tails: Vec<Tail>,
}

/// The relay's first message: until it came, nothing is "connected".
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    pub protocol: u16,
    pub limits: Limits,
    /// The relay's clock, milliseconds UTC.
    pub clock_ms: i64,
    pub lanes: [LaneState; 2],
    pub claims: Vec<Claim>,
}

/// The lower of the relay's and the hub's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    pub telemetry_raw_max: u32,
    pub pictures_raw_max: u32,
    /// Envelopes sent on one lane and not yet acked.
    pub lane_in_flight: u32,
}

impl Limits {
    /// What this build allows.
    pub const OURS: Limits = Limits {
        telemetry_raw_max: limits::TELEMETRY_RAW_MAX as u32,
        pictures_raw_max: limits::PICTURES_RAW_MAX as u32,
        lane_in_flight: limits::LANE_IN_FLIGHT_MAX as u32,
    };
}

/// What a relay has of one spool in readable files.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    pub spool: SpoolId,
    pub ranges: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum LaneState {
    Open,
    /// The relay's budget is used up: it doesn't read, the agent keeps.
    Full,
    /// Other devices come first for now.
    Share,
}

/// The first `count` envelopes of this connection's lane lie on this relay's disk. Speaks of nothing else; nobody stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    pub lane: Lane,
    pub count: u64,
}

/// Numbers that the relay doesn't have any more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Returned {
    pub spool: SpoolId,
    pub numbers: Vec<(u64, u64)>,
    pub why: ReturnReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum ReturnReason {
    /// The bytes were damaged on the relay's disk or on the way to the hub.
    Damaged,
    /// The spool has too many ranges at the hub: sending it again can't help.
    TooManyRanges,
}

impl ReturnReason {
    pub fn name(self) -> &'static str {
        match self {
            ReturnReason::Damaged => "damaged",
            ReturnReason::TooManyRanges => "too_many_ranges",
        }
    }
}

/// Agent → relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Up {
    Hello(Hello),
    /// A tail whose first held number rose, or that emptied.
    Holding(Tail),
    State(StateNow),
    /// An encoded [`crate::door::Ask`] for the hub.
    Ask(Bytes),
}

/// Relay → agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    Welcome(Welcome),
    Ack(Ack),
    Returned(Returned),
    Lane(Lane, LaneState),
    Signed(Bytes),
    /// The encoded [`crate::door::Answer`] to the oldest ask that has none yet.
    Answer(Bytes),
}

const HELLO: u16 = 1;
const HOLDING: u16 = 2;
const STATE: u16 = 3;
const WELCOME: u16 = 17;
const ACK: u16 = 18;
const RETURNED: u16 = 19;
const LANE: u16 = 20;
const SIGNED: u16 = 21;
const SKIPPABLE: u16 = 0x8000;
// Those who speak them without being understood lose nothing: a certificate is also renewed at the door.
const DOOR_ASK: u16 = SKIPPABLE + 1;
const DOOR_ANSWER: u16 = SKIPPABLE + 2;

impl Up {
    /// The message with its length and kind.
    pub fn frame(&self) -> Result<Bytes, MessageError> {
        match self {
            Up::Hello(hello) => control(HELLO, &encode(hello)?),
            Up::Holding(tail) => control(HOLDING, &encode(tail)?),
            Up::State(state) => control(STATE, &encode(state)?),
            Up::Ask(ask) => control(DOOR_ASK, ask),
        }
    }

    /// Reads what stands behind the length. None: an unknown kind that may be skipped.
    pub fn read(message: &[u8]) -> Result<Option<Up>, MessageError> {
        let (kind, body) = split_kind(message)?;
        Ok(Some(match kind {
            HELLO => {
                let hello: Hello = decode::<_, CONTROL_MEMORY>(body)?;
                bounded(hello.tails.len(), 2 * limits::TAILS_MAX)?;
                bounded(hello.zone.len(), limits::TEXT_BYTES_MAX)?;
                Up::Hello(hello)
            }
            HOLDING => Up::Holding(decode::<_, CONTROL_MEMORY>(body)?),
            STATE => {
                let state: StateNow = decode::<_, CONTROL_MEMORY>(body)?;
                bounded(state.tails.len(), limits::STATE_TAILS_MAX)?;
                Up::State(state)
            }
            DOOR_ASK => {
                bounded(body.len(), limits::DOOR_BYTES_MAX)?;
                Up::Ask(Bytes::copy_from_slice(body))
            }
            unknown if unknown >= SKIPPABLE => return Ok(None),
            unknown => return Err(MessageError::Kind(unknown)),
        }))
    }
}

impl Down {
    /// The message with its length and kind.
    pub fn frame(&self) -> Result<Bytes, MessageError> {
        match self {
            Down::Welcome(welcome) => control(WELCOME, &encode(welcome)?),
            Down::Ack(ack) => control(ACK, &encode(ack)?),
            Down::Returned(returned) => control(RETURNED, &encode(returned)?),
            Down::Lane(lane, state) => control(LANE, &encode((lane, state))?),
            Down::Signed(signed) => control(SIGNED, signed),
            Down::Answer(answer) => control(DOOR_ANSWER, answer),
        }
    }

    /// Reads what stands behind the length. None: an unknown kind that may be skipped.
    pub fn read(message: &[u8]) -> Result<Option<Down>, MessageError> {
        let (kind, body) = split_kind(message)?;
        Ok(Some(match kind {
            WELCOME => Down::Welcome(decode::<_, CONTROL_MEMORY>(body)?),
            ACK => Down::Ack(decode::<_, CONTROL_MEMORY>(body)?),
            RETURNED => Down::Returned(decode::<_, CONTROL_MEMORY>(body)?),
            LANE => {
                let (lane, state) = decode::<_, CONTROL_MEMORY>(body)?;
                Down::Lane(lane, state)
            }
            SIGNED => Down::Signed(Bytes::copy_from_slice(body)),
            DOOR_ANSWER => {
                bounded(body.len(), limits::DOOR_BYTES_MAX)?;
                Down::Answer(Bytes::copy_from_slice(body))
            }
            unknown if unknown >= SKIPPABLE => return Ok(None),
            unknown => return Err(MessageError::Kind(unknown)),
        }))
    }
}

/// Why a connection of agent and relay ends: the QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The program stops.
    Leaving = 1,
    /// A newer connection of the same device took over.
    Replaced = 2,
    /// The certificate's site is neither the relay's nor a guest's.
    NotOurSite = 3,
    /// No common protocol.
    Protocol = 4,
    /// A control message that can't be understood.
    Message = 5,
    /// A stream that the protocol doesn't know: a second one of a lane, or none of a known lane.
    Stream = 6,
    EnvelopeMagic = 7,
    EnvelopeCrc = 8,
    EnvelopeDevice = 9,
    EnvelopeLane = 10,
    EnvelopeLength = 11,
    /// What was read couldn't be committed.
    NotCommitted = 12,
    /// The relay forgot something: what it claims must be asked again.
    ClaimsChanged = 13,
    /// Hello did not come in time.
    Silent = 14,
    /// An envelope whose number no format allows.
    EnvelopeSeq = 15,
    /// The connection reached its greatest age, or a certificate its end: dial again.
    Aged = 16,
    /// Whoever shows this certificate was denied.
    Denied = 17,
}

impl CloseCode {
    pub const ALL: [CloseCode; 17] = [
        CloseCode::Leaving,
        CloseCode::Replaced,
        CloseCode::NotOurSite,
        CloseCode::Protocol,
        CloseCode::Message,
        CloseCode::Stream,
        CloseCode::EnvelopeMagic,
        CloseCode::EnvelopeCrc,
        CloseCode::EnvelopeDevice,
        CloseCode::EnvelopeLane,
        CloseCode::EnvelopeLength,
        CloseCode::NotCommitted,
        CloseCode::ClaimsChanged,
        CloseCode::Silent,
        CloseCode::EnvelopeSeq,
        CloseCode::Aged,
        CloseCode::Denied,
    ];

    /// The code behind a number from the wire. None: one that only a newer program knows.
    pub fn from_u64(number: u64) -> Option<CloseCode> {
        CloseCode::ALL.into_iter().find(|code| *code as u64 == number)
    }
}

impl From<FrameError> for CloseCode {
    fn from(error: FrameError) -> CloseCode {
        match error {
            FrameError::Magic => CloseCode::EnvelopeMagic,
            FrameError::Lane(_) => CloseCode::EnvelopeLane,
            FrameError::Length(_) | FrameError::Cut => CloseCode::EnvelopeLength,
            FrameError::Seq(_) => CloseCode::EnvelopeSeq,
            FrameError::Crc => CloseCode::EnvelopeCrc,
        }
    }
}

// --- relay and hub ---

/// What the relay knows of an envelope's arrival; lies beside it in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Facts {
    /// The relay's clock when the envelope came.
    pub receipt_ms: i64,
    pub dial: u64,
    pub boot: BootId,
    /// The relay's UTC minus the agent's boot clock, at Hello.
    pub zero_ms: i64,
    /// Only of devices with network on.
    pub address: Option<String>,
}

/// The head of a POST.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PostHead {
    pub lane: Lane,
    /// This POST's number in its lane, strictly rising for ever. A POST without envelopes has none of its own: 0.
    pub number: u64,
    /// Every lane's queue, always.
    pub queues: Vec<QueueState>,
    /// Telemetry only, taking turns.
    pub asks: Vec<Ask>,
    pub presence: Option<Snapshot>,
    /// The relay's clock now.
    pub relay_ms: i64,
    pub versions: Vec<HeldVersion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct QueueState {
    pub lane: Lane,
    pub instance: InstanceId,
    /// The number of the last POST of this queue that was answered.
    pub answered: u64,
}

/// A spool of a connected agent that waits for an ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Ask {
    pub device: DeviceId,
    pub spool: SpoolId,
    /// The first number that the agent still holds.
    pub from: u64,
}

/// Presence of the devices at one relay.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Snapshot {
    pub number: u64,
    /// Everything, or only what changed since `number - 1`.
    pub full: bool,
    pub devices: Vec<Presence>,
    /// Devices that are not connected any more (only where not `full`).
    pub gone: Vec<DeviceId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Presence {
    pub device: DeviceId,
    pub dial: u64,
    pub state: State,
    pub since_ms: i64,
    /// Only shown.
    pub tails: Vec<Tail>,
}

/// One envelope of a POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    pub facts: Facts,
    pub envelope: Envelope,
}

/// The hub's answer to a POST.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    Taken(Taken),
    /// Nothing was committed: count on from here and send again.
    Stale {
        number: u64,
    },
    /// Nothing was committed: the hub was rolled back. Take these as last answered and start at the oldest segment.
    Rewind {
        queues: Vec<(Lane, u64)>,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Taken {
    pub number: u64,
    pub counts: VerdictCounts,
    /// Indexes into the POST.
    pub returned: Vec<(u32, ReturnReason)>,
    /// Encoded [`Signed`] of kind ack.
    pub acks: Vec<Vec<u8>>,
    /// Per lane the highest POST number that every kept backup contains; None: no backup is configured.
    pub backed_up: [Option<u64>; 2],
    pub versions: Vec<HeldVersion>,
    /// Encoded [`Signed`] of other kinds that the relay holds an older version of.
    pub signed: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct VerdictCounts {
    pub stored: u32,
    pub repeat: u32,
    pub held: u32,
    pub refused: u32,
    pub expired: u32,
    pub erased: u32,
    pub returned: u32,
}

/// What the hub did with a batch. All but `Returned` are kept: the number counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Verdict {
    Stored,
    Repeat,
    Held,
    Refused,
    Expired,
    Erased,
    Returned,
}

impl Verdict {
    pub const ALL: [Verdict; 7] =
        [Verdict::Stored, Verdict::Repeat, Verdict::Held, Verdict::Refused, Verdict::Expired, Verdict::Erased, Verdict::Returned];

    pub fn name(self) -> &'static str {
        match self {
            Verdict::Stored => "stored",
            Verdict::Repeat => "repeat",
            Verdict::Held => "held",
            Verdict::Refused => "refused",
            Verdict::Expired => "expired",
            Verdict::Erased => "erased",
            Verdict::Returned => "returned",
        }
    }
}

/// Why a batch was held or refused: shown in `today` and at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Reason {
    None,
    UnknownVersion,
    UnknownSeal,
    UnknownCodec,
    UnknownFlags,
    /// The body doesn't decode, or leaves bytes over.
    Undecodable,
    /// A kind of record that this hub can't keep as rows yet.
    UnknownKind,
    /// Other content under a number that is already stored.
    OtherContent,
    TestMode,
    Bound,
    /// Its transaction failed again and again.
    StoreError,
    /// Its picture isn't what its record says, or is more than a picture.
    Picture,
    /// Its device was denied, and its relay had been told when it came there.
    Denied,
}

impl Reason {
    pub const ALL: [Reason; 13] = [
        Reason::None,
        Reason::UnknownVersion,
        Reason::UnknownSeal,
        Reason::UnknownCodec,
        Reason::UnknownFlags,
        Reason::Undecodable,
        Reason::UnknownKind,
        Reason::OtherContent,
        Reason::TestMode,
        Reason::Bound,
        Reason::StoreError,
        Reason::Picture,
        Reason::Denied,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::None => "none",
            Reason::UnknownVersion => "unknown_version",
            Reason::UnknownSeal => "unknown_seal",
            Reason::UnknownCodec => "unknown_codec",
            Reason::UnknownFlags => "unknown_flags",
            Reason::Undecodable => "undecodable",
            Reason::UnknownKind => "unknown_kind",
            Reason::OtherContent => "other_content",
            Reason::TestMode => "test_mode",
            Reason::Bound => "bound",
            Reason::StoreError => "store_error",
            Reason::Picture => "picture",
            Reason::Denied => "denied",
        }
    }
}

/// The body of a [`Signed`] ack for (device, spool).
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct HubAck {
    /// Stored numbers from the asked first held number up, lowest first: these free.
    pub stored: Vec<(u64, u64)>,
    /// Of these the newest whose verdict is neither stored nor repeat: only shown.
    pub shown: Vec<(u64, Verdict, Reason)>,
    pub erasure: Version,
}

impl PostHead {
    /// The POST's body: head, then facts and envelopes. `entries` holds encoded facts.
    pub fn body<'a>(&self, entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Bytes, MessageError> {
        let head = encode(self)?;
        bounded(head.len(), limits::POST_HEAD_BYTES_MAX)?;
        let mut body = Vec::with_capacity(head.len() + 4);
        body.extend((head.len() as u32).to_le_bytes());
        body.extend(head);
        for (facts, envelope) in entries {
            body.extend((facts.len() as u16).to_le_bytes());
            body.extend(facts);
            body.extend((envelope.len() as u32).to_le_bytes());
            body.extend(envelope);
        }
        if body.len() > limits::POST_BYTES_MAX { Err(MessageError::TooLong(body.len())) } else { Ok(body.into()) }
    }

    /// Reads a POST's body. The frame of each envelope is checked alone, so that one damaged batch doesn't stop those behind it.
    #[allow(clippy::type_complexity)]
    pub fn read(mut body: Bytes) -> Result<(PostHead, Vec<Result<Posted, MessageError>>), MessageError> {
        bounded(body.len(), limits::POST_BYTES_MAX)?;
        let head_len = take_u32(&mut body)? as usize;
        bounded(head_len, limits::POST_HEAD_BYTES_MAX)?;
        let head: PostHead = decode::<_, HEAD_MEMORY>(&take(&mut body, head_len)?)?;
        bounded(head.asks.len(), limits::ASKS_MAX)?;
        let mut posted = Vec::new();
        while !body.is_empty() {
            bounded(posted.len() + 1, limits::POST_ENVELOPES_MAX)?;
            let facts_len = usize::from(u16::from_le_bytes(array(&take(&mut body, 2)?)));
            let facts = take(&mut body, facts_len)?;
            let envelope_len = take_u32(&mut body)? as usize;
            let envelope = take(&mut body, envelope_len)?;
            posted.push(Facts::read(&facts).and_then(|facts| Ok(Posted { facts, envelope: Envelope::read(envelope)? })));
        }
        Ok((head, posted))
    }
}

impl Facts {
    pub fn bytes(&self) -> Result<Bytes, MessageError> {
        encode(self).map(Bytes::from)
    }

    /// An unknown tail is ignored: a newer relay may know more.
    pub fn read(bytes: &[u8]) -> Result<Facts, MessageError> {
        let config = bincode::config::standard().with_limit::<CONTROL_MEMORY>();
        bincode::decode_from_slice(bytes, config).map(|(facts, _)| facts).map_err(|_| MessageError::Decode)
    }
}

impl Answer {
    pub fn bytes(&self) -> Result<Bytes, MessageError> {
        encode(self).map(Bytes::from)
    }

    pub fn read(bytes: &[u8]) -> Result<Answer, MessageError> {
        bounded(bytes.len(), limits::ANSWER_BYTES_MAX)?;
        decode::<_, ANSWER_MEMORY>(bytes)
    }
}

impl HubAck {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        encode(self)
    }

    pub fn read(bytes: &[u8]) -> Result<HubAck, MessageError> {
        decode::<_, CONTROL_MEMORY>(bytes)
    }
}

impl VerdictCounts {
    pub fn add(&mut self, verdict: Verdict) {
        let count = match verdict {
            Verdict::Stored => &mut self.stored,
            Verdict::Repeat => &mut self.repeat,
            Verdict::Held => &mut self.held,
            Verdict::Refused => &mut self.refused,
            Verdict::Expired => &mut self.expired,
            Verdict::Erased => &mut self.erased,
            Verdict::Returned => &mut self.returned,
        };
        *count += 1;
    }
}

// --- what comes down ---

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignedKind {
    Ack,
    Policy,
    Notice,
    Deny,
    Bundle,
    Relays,
}

/// Everything from the hub to an agent. Relays pass its bytes on unchanged.
///
/// Fixed little-endian integers, an option as one byte 0 or 1, the body behind a u64 length.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Signed {
    /// A [`SignedKind`], or one that only a newer program knows: relays pass it on all the same.
    pub kind: u8,
    /// Bit 0: network on.
    pub flags: u8,
    pub device: Option<DeviceId>,
    pub spool: Option<SpoolId>,
    pub version: Version,
    pub body: Vec<u8>,
    /// Which control key.
    pub key: u32,
    /// Over `muster-signed-1` NUL and all bytes before it; empty while nobody has signed.
    pub signature: Vec<u8>,
}

impl SignedKind {
    pub const ALL: [SignedKind; 6] =
        [SignedKind::Ack, SignedKind::Policy, SignedKind::Notice, SignedKind::Deny, SignedKind::Bundle, SignedKind::Relays];

    pub fn from_u8(number: u8) -> Option<SignedKind> {
        SignedKind::ALL.get(usize::from(number)).copied()
    }

    pub fn as_u8(self) -> u8 {
        self as u8
    }
}

impl Signed {
    /// An unsigned message of the hub.
    pub fn new(kind: SignedKind, version: Version, body: Vec<u8>) -> Signed {
        Signed { kind: kind.as_u8(), flags: 0, device: None, spool: None, version, body, key: 0, signature: Vec::new() }
    }

    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        bincode::encode_to_vec(self, bincode::config::standard().with_fixed_int_encoding()).map_err(|_| MessageError::Decode)
    }

    pub fn read(bytes: &[u8]) -> Result<Signed, MessageError> {
        bounded(bytes.len(), limits::CONTROL_BYTES_MAX)?;
        let config = bincode::config::standard().with_fixed_int_encoding().with_limit::<CONTROL_MEMORY>();
        exactly(bytes, config)
    }
}

/// What a signature is over begins with this, so that it is good for nothing else.
const COVERED: &[u8] = b"muster-signed-1\0";

impl Signed {
    /// What the signature of these encoded bytes is over: all before it and its length. None: they are too few.
    pub fn covered(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let before = bytes.len().checked_sub(size_of::<u64>() + self.signature.len())?;
        Some([COVERED, bytes.get(..before)?].concat())
    }
}

/// The body of a [`SignedKind::Bundle`]: whom to trust from now on. Its own signer's chain stands in it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Bundle {
    /// The hub's clock when it was made.
    pub made_ms: i64,
    /// Which version of the CA's roots these are. 0: the hub has them from a file and doesn't know.
    pub ca: u64,
    /// The issuing CA by which the hub signs certificates now: its subject key identifier, lower-case hex; or empty.
    pub issuer: String,
    /// PEM, as are the others.
    pub roots: String,
    /// The new root's certificates under the old one, for who knows the old one only; or empty.
    pub crosses: String,
    pub controls: Vec<ControlChain>,
}

/// The certificate of a control key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ControlChain {
    pub n: u32,
    /// The leaf, the issuing CA, maybe a cross certificate.
    pub chain: String,
}

/// The body of a [`SignedKind::Deny`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct DenyList {
    /// The hub's clock when it was made.
    pub made_ms: i64,
    /// Sorted by name, each name once.
    pub denied: Vec<Denial>,
}

/// Nobody takes a certificate of this name that was issued before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Denial {
    /// As in `site/oslo/relay/oslo-1`.
    pub name: String,
    pub issued_before_ms: i64,
    /// From here on no such certificate can be alive: the entry may be left out.
    pub until_ms: i64,
}

impl Bundle {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        encode(self)
    }

    pub fn read(bytes: &[u8]) -> Result<Bundle, MessageError> {
        let bundle: Bundle = decode::<_, CONTROL_MEMORY>(bytes)?;
        bounded(bundle.controls.len(), limits::CONTROLS_MAX)?;
        Ok(bundle)
    }
}

impl DenyList {
    pub fn bytes(&self) -> Result<Vec<u8>, MessageError> {
        encode(self)
    }

    pub fn read(bytes: &[u8]) -> Result<DenyList, MessageError> {
        decode::<_, CONTROL_MEMORY>(bytes)
    }

    /// Everything that either says, without what may be left out by now.
    pub fn union(&self, other: &DenyList, now_ms: i64) -> DenyList {
        let mut all: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for denial in self.denied.iter().chain(&other.denied).filter(|denial| denial.until_ms > now_ms) {
            let (before_ms, until_ms) = all.entry(&denial.name).or_insert((denial.issued_before_ms, denial.until_ms));
            *before_ms = denial.issued_before_ms.max(*before_ms);
            *until_ms = denial.until_ms.max(*until_ms);
        }
        let denied = all
            .into_iter()
            .map(|(name, (issued_before_ms, until_ms))| Denial { name: name.to_owned(), issued_before_ms, until_ms })
            .collect();
        DenyList { made_ms: self.made_ms.max(other.made_ms), denied }
    }

    /// Whether it says everything that the other still says.
    pub fn covers(&self, other: &DenyList, now_ms: i64) -> bool {
        self.union(other, now_ms).denied == self.union(&DenyList::default(), now_ms).denied
    }

    /// For handshakes. A name that only a newer program understands is nobody's here.
    pub fn denied(&self) -> Denied {
        Denied::new(self.denied.iter().filter_map(|denial| Some((denial.name.parse().ok()?, denial.issued_before_ms))))
    }
}

// --- encoding ---

/// Memory that decoding one control message may claim: a decoded list is wider than its bytes.
pub(crate) const CONTROL_MEMORY: usize = 16 * limits::CONTROL_BYTES_MAX;
const HEAD_MEMORY: usize = 16 * limits::POST_HEAD_BYTES_MAX;
const ANSWER_MEMORY: usize = 8 * limits::ANSWER_BYTES_MAX;

pub(crate) fn encode(message: impl Encode) -> Result<Vec<u8>, MessageError> {
    bincode::encode_to_vec(message, bincode::config::standard()).map_err(|_| MessageError::Decode)
}

pub(crate) fn decode<T: Decode<()>, const MEMORY: usize>(bytes: &[u8]) -> Result<T, MessageError> {
    exactly(bytes, bincode::config::standard().with_limit::<MEMORY>())
}

fn exactly<T: Decode<()>>(bytes: &[u8], config: impl Config) -> Result<T, MessageError> {
    let (message, used) = bincode::decode_from_slice(bytes, config).map_err(|_| MessageError::Decode)?;
    if used == bytes.len() { Ok(message) } else { Err(MessageError::LeftOver) }
}

fn control(kind: u16, body: &[u8]) -> Result<Bytes, MessageError> {
    let length = body.len() + 2;
    bounded(length, limits::CONTROL_BYTES_MAX)?;
    let mut message = Vec::with_capacity(length + 4);
    message.extend((length as u32).to_le_bytes());
    message.extend(kind.to_le_bytes());
    message.extend(body);
    Ok(message.into())
}

fn split_kind(message: &[u8]) -> Result<(u16, &[u8]), MessageError> {
    let (kind, body) = message.split_first_chunk().ok_or(MessageError::Cut)?;
    Ok((u16::from_le_bytes(*kind), body))
}

fn bounded(length: usize, most: usize) -> Result<(), MessageError> {
    if length > most { Err(MessageError::TooLong(length)) } else { Ok(()) }
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, MessageError> {
    if length > bytes.len() { Err(MessageError::Cut) } else { Ok(bytes.split_to(length)) }
}

fn take_u32(bytes: &mut Bytes) -> Result<u32, MessageError> {
    Ok(u32::from_le_bytes(array(&take(bytes, 4)?)))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
