//! Quiet: every bound of the mesh, each with its reason. Relations between bounds are checked when this is compiled.

use std::time::Duration;

use crate::ids::Lane;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

// --- a batch ---

/// Records in one batch: a minute of a busy person has a few; a burst is cut here.
pub const BATCH_RECORDS_MAX: usize = 500;
/// An agent closes a telemetry batch at this raw size, half of what the format allows, so that a closed batch always fits.
pub const BATCH_CLOSE_BYTES: usize = 64 * KIB;
/// An agent closes a batch that is this old.
pub const BATCH_CLOSE_AGE: Duration = Duration::from_secs(60);
/// The longest raw body of a telemetry batch.
pub const TELEMETRY_RAW_MAX: usize = 128 * KIB;
/// The longest raw body of a pictures batch: one picture; a larger one is encoded smaller.
pub const PICTURES_RAW_MAX: usize = 3 * MIB;
/// zlib can't shrink more than about 1,030 times: more is a bomb.
pub const INFLATE_RATIO_MAX: usize = 1_100;
/// A window title, in characters, cut at the agent.
pub const TITLE_CHARS_MAX: usize = 512;
/// Any other text in a record, in bytes: names of programs, versions, reasons.
pub const TEXT_BYTES_MAX: usize = 4 * KIB;
/// Tails that one batch or message states; the rest is stated by the next.
pub const TAILS_MAX: usize = 256;
/// Tails in one state message and in presence, which are only shown.
pub const STATE_TAILS_MAX: usize = 64;
/// The highest number of a batch in its spool.
pub const SEQ_MAX: u64 = i64::MAX as u64;
/// A wall clock that steps by more than this against the boot clock closes the batch and the spools.
pub const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The longest raw body of a lane's batch.
pub const fn raw_max(lane: Lane) -> usize {
    match lane {
        Lane::Telemetry => TELEMETRY_RAW_MAX,
        Lane::Pictures => PICTURES_RAW_MAX,
    }
}

/// The longest envelope of a lane: header, body (stored, since compression is only used when it gets smaller), crc.
pub const fn envelope_max(lane: Lane) -> usize {
    raw_max(lane) + 92
}

// --- a queue ---

/// Payload of one redb value: with redb's own bytes it fits a page of 64 KiB (larger values double their pages).
pub const BLOCK_BYTES_MAX: usize = 65_400;
/// One commit of a queue: large enough that a sync is paid by many envelopes, small enough to hold in memory twice.
pub const COMMIT_BYTES_MAX: usize = 4 * MIB;
/// Envelopes in one commit.
pub const COMMIT_ENVELOPES_MAX: usize = 512;
/// redb's cache of a segment that a relay writes. Pages of a commit may fill half of it, and those of pictures are half empty at their ends:
/// with less, each page of a full commit is written early, read back for its checksum and written again.
pub const WRITTEN_CACHE_BYTES: usize = 3 * COMMIT_BYTES_MAX;
/// redb's cache of a closed segment: it is read once, in order.
pub const READ_CACHE_BYTES: usize = MIB;
/// How long a commit waits for company while more is arriving.
pub const COMMIT_WAIT: Duration = Duration::from_millis(5);
/// A relay's segment is closed at this size.
pub const RELAY_SEGMENT_BYTES: usize = 64 * MIB;
/// An agent's segment is closed at this size: a laptop frees in smaller steps.
pub const AGENT_SEGMENT_BYTES: usize = 8 * MIB;
/// A budget holds at least this many segments, or freeing whole segments would drop most of what is kept.
pub const BUDGET_SEGMENTS_MIN: usize = 8;
/// An agent's pictures leave so much of the disk free: what is collected besides them is months of work in it.
pub const PICTURES_LEAVE_BYTES: u64 = 64 << 20;
/// On a small disk they leave this part of it: one eighth.
pub const PICTURES_LEAVE_PART: u64 = 8;
/// Tries to open a damaged segment before it is set aside unopened.
pub const SEGMENT_OPEN_TRIES: u32 = 3;

// --- the door ---

/// An ask, and an answer, at a door: a request, or a chain with the roots behind it.
pub const DOOR_BYTES_MAX: usize = 16 * KIB;
/// From the first packet of someone without a certificate to its answer: nobody may hold a place at a door for longer.
pub const DOOR_TIMEOUT: Duration = Duration::from_secs(5);
/// Asks of one address in a minute: an enrolment takes two, and a whole office may stand behind one address.
pub const DOOR_ASKS_PER_MINUTE: u32 = 10;
/// Addresses that a door remembers; beyond that everybody waits for the minute's end.
pub const DOOR_ADDRESSES_MAX: usize = 4_096;

// --- agent and relay ---

/// One control message, so that a peer can't make us allocate more.
pub const CONTROL_BYTES_MAX: usize = 64 * KIB;
/// Control keys that a bundle speaks of: one of each hub, and those before them whose signatures still lie on disks.
pub const CONTROLS_MAX: usize = 16;
/// What a list of the denied may have, so that it travels in one control message: about 700 names.
pub const DENY_BYTES_MAX: usize = 56 * KIB;
/// What a list of relays may have, for the same reason: about 700 relays.
pub const RELAYS_BYTES_MAX: usize = 56 * KIB;
/// Relays of one site: all of them stand in each certificate's answer.
pub const RELAYS_OF_A_SITE_MAX: usize = 16;
/// Doors in a join token, whose text people carry.
pub const TOKEN_DOORS_MAX: usize = 4;
/// Sites of others that a guest tries in one round.
pub const HOSTS_TRIED_MAX: usize = 8;
/// Lists of the denied that a program keeps beside the newest, because that one doesn't say all of theirs: a hub that was put back more often
/// than this before one of its relays spoke with it.
pub const DENY_LISTS_MAX: usize = 8;
/// Ranges per spool in a Welcome and in an ack.
pub const RANGES_SENT_MAX: usize = 16;
/// Spools of one device that a Welcome speaks of: with 16 ranges each they stay below `CONTROL_BYTES_MAX`.
pub const WELCOME_SPOOLS_MAX: usize = 128;
/// Verdicts shown beside an ack: the newest ones that are neither stored nor repeat.
pub const SHOWN_VERDICTS_MAX: usize = 64;
/// A number that the same relay returned this often isn't sent to it again before the next connection.
pub const RETURNS_MAX: u8 = 3;
/// Envelopes that an agent has sent on one lane and not yet seen acked.
pub const LANE_IN_FLIGHT_MAX: usize = 256;
/// Envelopes of one connection's lane that a relay has read and not yet committed.
pub const LANE_INBOX_MAX: usize = 256;
/// Bytes that all connections together have read of one lane and not yet committed: a few commits, whoever sends.
pub const LANES_INBOX_BYTES_MAX: usize = 8 * COMMIT_BYTES_MAX;
/// Envelopes that a relay reads from one connection before it hands them on.
pub const LANE_RUN_MAX: usize = 64;
/// Connections of one relay: above this many a dialler is told to go elsewhere.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Batches that wait for an agent's keeper; then whoever makes them waits, or says what was dropped.
pub const KEEPER_INBOX_MAX: usize = 64;
/// Messages of a relay that wait for an agent's keeper; then the relay waits.
pub const KEEPER_HEARD_MAX: usize = 64;
/// Envelopes that a keeper reads for a lane at once, beyond the first.
pub const KEEPER_RUN_BYTES: usize = 256 * KIB;
/// State is sent at each change, and this often.
pub const STATE_EVERY: Duration = Duration::from_secs(60);
/// A lower dial counts as the device's presence after the higher was silent for this long.
pub const PRESENCE_SILENCE: Duration = Duration::from_secs(45);
/// More dials of one device in a minute than this are two computers with one identity.
pub const DIALS_PER_MINUTE_MAX: usize = 6;

// --- a connection of agent and relay ---

/// What a peer may send on one stream before we read it: 10 MB/s at 100 ms, and no more memory than a refused lane may pin.
pub const STREAM_WINDOW_BYTES: usize = MIB;
/// The same for a whole connection: its control stream and both lanes, so that a full lane never blocks the other or the acks.
pub const CONNECTION_WINDOW_BYTES: usize = 3 * STREAM_WINDOW_BYTES;
/// The same towards an agent, which only receives control messages.
pub const AGENT_WINDOW_BYTES: usize = 256 * KIB;
/// Sent and not yet confirmed by the network, at an agent: what both lanes' windows take.
pub const AGENT_SEND_WINDOW_BYTES: usize = 2 * STREAM_WINDOW_BYTES;
/// The same at a relay, per agent: a few control messages.
pub const RELAY_SEND_WINDOW_BYTES: usize = AGENT_WINDOW_BYTES;
/// Small envelopes are written together up to this size: QUIC looks through its unconfirmed pieces one by one.
pub const LANE_WRITE_BYTES: usize = 64 * KIB;
/// An agent says something this often, or firewalls forget the connection (most after 30 s).
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// Silent for this long: the connection is gone. Two signs of life may be lost.
pub const CONNECTION_SILENCE: Duration = Duration::from_secs(45);
/// A connection ends at this age, so that no certificate and no deny list is older than that.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A handshake, and the opening of a stream after it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Above this many handshakes at once a dialler must first show that its address is real.
pub const HANDSHAKES_BEFORE_RETRY: usize = 128;
/// Above this many it is told to come again later: at 300 to 400 a second more would only time out together.
pub const HANDSHAKES_MAX: usize = 1_024;
/// Connections that the network layer queues before a handshake begins.
pub const INCOMING_MAX: usize = 4_096;
/// Bytes of one queued connection; without early data it has a few packets.
pub const INCOMING_BYTES_MAX: usize = 16 * KIB;
/// The largest datagram that an agent tries and a relay takes: five Ethernet frames, where the path carries jumbo frames, cost as one.
/// The QUIC library gives the kernel ten at a time and doesn't see that one call takes 65,507 bytes.
pub const DATAGRAM_BYTES_MAX: u16 = 6_550;
/// The kernel's buffers of the UDP socket, as far as it allows.
pub const UDP_BUFFER_BYTES: usize = 4 * MIB;

// --- a program and its person ---

/// A question on the control socket.
pub const LOCAL_REQUEST_BYTES_MAX: usize = 64 * KIB;
/// An answer on the control socket: `today` of a busy day is a few hundred KiB.
pub const LOCAL_ANSWER_BYTES_MAX: usize = 8 * MIB;
/// Questions at once; more wait.
pub const LOCAL_ASKERS_MAX: usize = 16;
/// A question must be complete after this.
pub const LOCAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer must be complete after this.
pub const LOCAL_ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Readers of health and metrics at once; more wait.
pub const STATUS_READERS_MAX: usize = 32;
/// One request for health or metrics, from its first byte to the end of the answer.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

// --- relay and hub ---

/// One POST to the hub, head and envelopes.
pub const POST_BYTES_MAX: usize = 8 * MIB;
/// Envelopes of one POST: what the hub commits in one transaction.
pub const POST_ENVELOPES_MAX: usize = 4_096;
/// The head of a POST, which grows with asks and presence.
pub const POST_HEAD_BYTES_MAX: usize = 3 * MIB;
/// The hub's answer.
pub const ANSWER_BYTES_MAX: usize = 8 * MIB;
/// Spools that one POST asks for; more take turns.
pub const ASKS_MAX: usize = 4_096;
/// Devices in one POST's presence; more take turns.
pub const PRESENCE_MAX: usize = 4_096;
/// Numbers of POSTs are reserved durably in steps of this.
pub const POST_NUMBERS_RESERVED: u64 = 1_000;
/// Sync this often while there is something to sync.
pub const SYNC_EVERY: Duration = Duration::from_secs(5);
/// Presence goes up at least this often.
pub const PRESENCE_EVERY: Duration = Duration::from_secs(15);
/// What the hub has answered for is kept this long where no backup is configured.
pub const GRACE_WITHOUT_BACKUP: Duration = Duration::from_secs(24 * 3_600);

// --- hub ---

/// Newest numbers of a spool whose content the hub can still tell apart.
pub const DIGESTS_KEPT: usize = 256;
/// Ranges of one spool at the hub; a batch that would make more is returned.
pub const SPOOL_RANGES_MAX: usize = 1_024;

const _: () = assert!(BATCH_CLOSE_BYTES * 2 <= TELEMETRY_RAW_MAX);
const _: () = assert!(TELEMETRY_RAW_MAX < PICTURES_RAW_MAX);
const _: () = assert!(envelope_max(Lane::Pictures) < COMMIT_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX < POST_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX * 5 / 4 < WRITTEN_CACHE_BYTES / 2);
const _: () = assert!(DATAGRAM_BYTES_MAX as usize * 10 <= 65_507);
const _: () = assert!(POST_BYTES_MAX <= AGENT_SEGMENT_BYTES && AGENT_SEGMENT_BYTES <= RELAY_SEGMENT_BYTES);
const _: () = assert!(POST_HEAD_BYTES_MAX + envelope_max(Lane::Pictures) + 1_024 <= POST_BYTES_MAX);
const _: () = assert!(WELCOME_SPOOLS_MAX * (16 + 2 + RANGES_SENT_MAX * 18) < CONTROL_BYTES_MAX);
const _: () = assert!(TITLE_CHARS_MAX * 4 <= TEXT_BYTES_MAX);
const _: () = assert!(CONNECTION_WINDOW_BYTES >= 3 * STREAM_WINDOW_BYTES);
const _: () = assert!(LANE_RUN_MAX <= LANE_INBOX_MAX && COMMIT_BYTES_MAX + envelope_max(Lane::Pictures) < LANES_INBOX_BYTES_MAX);
const _: () = assert!(CONTROL_BYTES_MAX < RELAY_SEND_WINDOW_BYTES && RELAY_SEND_WINDOW_BYTES <= AGENT_WINDOW_BYTES);
const _: () = assert!(KEEP_ALIVE_EVERY.as_secs() * 3 <= CONNECTION_SILENCE.as_secs());
const _: () = assert!(HANDSHAKES_BEFORE_RETRY < HANDSHAKES_MAX && HANDSHAKES_MAX < INCOMING_MAX);
