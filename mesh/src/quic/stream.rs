//! Async: the streams of a connection: control messages and lanes of envelopes, each read and written whole.

use std::{collections::VecDeque, mem};

use bytes::{Buf, Bytes};
use quinn::VarInt;

use super::{Connection, Ended};
use crate::{
    batch::{Envelope, FrameError, HEADER_BYTES, Header},
    ids::Lane,
    limits,
    message::{CloseCode, MessageError},
};

/// Acks and policies before attendance, attendance before pictures.
const CONTROL_PRIORITY: i32 = 2;
const TELEMETRY_PRIORITY: i32 = 1;
const PICTURES_PRIORITY: i32 = 0;
/// Pieces taken from the QUIC library at once: one lock for some ninety envelopes.
const PIECES_READ: usize = 16;
/// A message that has begun gets at most so many times the memory of what came of it.
const ROOM_AHEAD: usize = 4;
/// Envelopes from this size up are written as they are; smaller ones are copied together.
const WRITTEN_ALONE_BYTES: usize = 16 * 1024;

/// A stream that doesn't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The peer gave this stream up, and only this one.
    #[error("the other side gave the stream up ({0})")]
    GivenUp(u64),
    /// The peer doesn't allow one more stream: this one was opened already.
    #[error("the other side allows no further stream")]
    NotOpened,
}

/// A stream that is no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("a stream ended before it named its lane")]
    NoLane,
    #[error("a stream for lane {0}, which isn't known")]
    UnknownLane(u8),
    #[error("a second stream for {0}")]
    SecondLane(Lane),
}

impl AcceptError {
    /// What to close the connection with; none when it is closed already.
    pub fn close_code(&self) -> Option<CloseCode> {
        match self {
            AcceptError::Stream(StreamError::Ended(_)) => None,
            AcceptError::Stream(_) | AcceptError::NoLane | AcceptError::UnknownLane(_) | AcceptError::SecondLane(_) => {
                Some(CloseCode::Stream)
            }
        }
    }
}

/// Both directions of a new control stream.
pub(super) fn control(connection: &Connection, (out, back): (quinn::SendStream, quinn::RecvStream)) -> (ControlSender, ControlReceiver) {
    let sender = ControlSender { outlet: Outlet::new(connection, out, CONTROL_PRIORITY) };
    (sender, ControlReceiver { inlet: Inlet::new(back), _connection: connection.clone() })
}

/// Messages to the peer.
pub struct ControlSender {
    outlet: Outlet,
}

impl ControlSender {
    /// Hands one message (as `Up::frame` or `Down::frame` made it) to the network; waits while the peer doesn't read.
    ///
    /// If this is dropped half-way, the message is finished by the next call.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), StreamError> {
        self.outlet.push(frame);
        self.outlet.flush().await
    }

    /// Finishes what a dropped [`ControlSender::send`] left.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.outlet.flush().await
    }
}

/// Messages from the peer.
pub struct ControlReceiver {
    inlet: Inlet,
    _connection: Connection,
}

/// A control stream that doesn't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl ControlError {
    /// What to close the connection with; none when it is closed already.
    pub fn close_code(&self) -> Option<CloseCode> {
        match self {
            ControlError::Stream(StreamError::Ended(_)) => None,
            ControlError::Stream(_) | ControlError::Message(_) => Some(CloseCode::Message),
        }
    }
}

const LENGTH_BYTES: usize = 4;

impl ControlReceiver {
    /// The next message without its length, for `Up::read` or `Down::read`. None: the peer has no more to say.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ControlError> {
        if !self.inlet.gather(LENGTH_BYTES).await? {
            return if self.inlet.is_empty() { Ok(None) } else { Err(MessageError::Cut.into()) };
        }
        let length = u32::from_le_bytes(*self.inlet.gathered().first_chunk().ok_or(MessageError::Cut)?) as usize;
        if length > limits::CONTROL_BYTES_MAX {
            return Err(MessageError::TooLong(length).into());
        }
        if !self.inlet.gather(LENGTH_BYTES + length).await? {
            return Err(MessageError::Cut.into());
        }
        Ok(Some(self.inlet.take().slice(LENGTH_BYTES..)))
    }
}

/// Envelopes to the relay.
pub struct LaneSender {
    outlet: Outlet,
    lane: Lane,
}

impl LaneSender {
    /// Names the lane, as the stream's first byte.
    pub(super) async fn begin(connection: &Connection, stream: quinn::SendStream, lane: Lane) -> Result<LaneSender, StreamError> {
        let mut sender = LaneSender { outlet: Outlet::new(connection, stream, lane_priority(lane)), lane };
        sender.outlet.push(Bytes::copy_from_slice(&[lane.as_u8()]));
        sender.flush().await?;
        Ok(sender)
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Hands a run of envelopes to the network, in order; waits while the relay doesn't read. Many at once cost less than one by one.
    ///
    /// If this is dropped half-way, the rest of the run is sent by the next call, before what that brings. After an error the stream is given
    /// up: the relay never takes a half envelope for a whole one.
    pub async fn send(&mut self, run: impl IntoIterator<Item = Bytes>) -> Result<(), StreamError> {
        for envelope in run {
            self.outlet.push(envelope);
        }
        self.flush().await
    }

    /// Finishes what a dropped [`LaneSender::send`] left.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.outlet.flush().await
    }

    /// Says that nothing follows. Envelopes of a dropped `send` that weren't handed over are given up with the stream.
    pub fn finish(self) {}
}

/// Envelopes from an agent.
pub struct LaneReceiver {
    inlet: Inlet,
    lane: Lane,
    _connection: Connection,
}

/// A lane that doesn't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("an envelope: {0}")]
    Frame(#[from] FrameError),
    #[error("an envelope of {0} on the other lane's stream")]
    OtherLane(Lane),
}

impl LaneError {
    /// What to close the connection with; none when it is closed already.
    pub fn close_code(&self) -> Option<CloseCode> {
        match self {
            LaneError::Stream(StreamError::Ended(_)) => None,
            LaneError::Stream(_) => Some(CloseCode::Stream),
            LaneError::Frame(error) => Some(CloseCode::from(*error)),
            LaneError::OtherLane(_) => Some(CloseCode::EnvelopeLane),
        }
    }
}

impl LaneReceiver {
    pub(super) fn new(connection: &Connection, inlet: Inlet, lane: Lane) -> LaneReceiver {
        LaneReceiver { inlet, lane, _connection: connection.clone() }
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// The next envelope, its frame checked. None: the agent has no more to send. Not to call this is to refuse: the agent then waits.
    ///
    /// Whose it is isn't checked here: compare its device with the peer's.
    pub async fn receive(&mut self) -> Result<Option<Envelope>, LaneError> {
        if let Some(header) = self.inlet.whole_piece().first_chunk() {
            let length = self.length(header)?;
            if self.inlet.whole_piece().len() >= length {
                return Ok(Some(Envelope::read(self.inlet.copy_from_piece(length))?));
            }
        }
        if !self.inlet.gather(HEADER_BYTES).await? {
            return if self.inlet.is_empty() { Ok(None) } else { Err(FrameError::Cut.into()) };
        }
        let length = self.length(self.inlet.gathered().first_chunk().ok_or(FrameError::Cut)?)?;
        if !self.inlet.gather(length).await? {
            return Err(FrameError::Cut.into());
        }
        Ok(Some(Envelope::read(self.inlet.take())?))
    }

    /// The next envelope if it came together with what was received already; never waits. None says nothing about what follows.
    pub fn ready(&mut self) -> Result<Option<Envelope>, LaneError> {
        let Some(header) = self.inlet.whole_piece().first_chunk() else { return Ok(None) };
        let length = self.length(header)?;
        if self.inlet.whole_piece().len() < length {
            return Ok(None);
        }
        Ok(Some(Envelope::read(self.inlet.copy_from_piece(length))?))
    }

    /// Memory that a begun envelope holds now.
    #[cfg(test)]
    pub(super) fn reserved_bytes(&self) -> usize {
        self.inlet.begun.capacity()
    }

    /// Checks the header before anything is kept by its numbers.
    fn length(&self, header: &[u8; HEADER_BYTES]) -> Result<usize, LaneError> {
        let header = Header::read(header)?;
        if header.lane == self.lane { Ok(header.envelope_len()) } else { Err(LaneError::OtherLane(header.lane)) }
    }
}

fn lane_priority(lane: Lane) -> i32 {
    match lane {
        Lane::Telemetry => TELEMETRY_PRIORITY,
        Lane::Pictures => PICTURES_PRIORITY,
    }
}

/// Bytes on their way out.
struct Outlet {
    stream: quinn::SendStream,
    /// Small pieces, copied together.
    gathering: Vec<u8>,
    waiting: VecDeque<Bytes>,
    _connection: Connection,
}

impl Outlet {
    fn new(connection: &Connection, stream: quinn::SendStream, priority: i32) -> Outlet {
        // It fails only for a stream that is finished, and this one is new.
        let _ = stream.set_priority(priority);
        Outlet { stream, gathering: Vec::new(), waiting: VecDeque::new(), _connection: connection.clone() }
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() >= WRITTEN_ALONE_BYTES {
            self.gathered();
            self.waiting.push_back(bytes);
            return;
        }
        if self.gathering.len() + bytes.len() > limits::LANE_WRITE_BYTES {
            self.gathered();
        }
        self.gathering.extend_from_slice(&bytes);
    }

    fn gathered(&mut self) {
        if !self.gathering.is_empty() {
            self.waiting.push_back(mem::take(&mut self.gathering).into());
        }
    }

    /// What was written has left `waiting` before anything is awaited again: so this may be dropped at any time.
    async fn flush(&mut self) -> Result<(), StreamError> {
        self.gathered();
        while !self.waiting.is_empty() {
            let written = self.stream.write_chunks(self.waiting.make_contiguous()).await;
            let pieces = match written {
                Ok(written) => written.chunks,
                Err(error) => return Err(self.broken(error)),
            };
            self.waiting.drain(..pieces);
        }
        Ok(())
    }

    fn broken(&mut self, error: quinn::WriteError) -> StreamError {
        self.give_up();
        match error {
            quinn::WriteError::Stopped(number) => StreamError::GivenUp(number.into_inner()),
            quinn::WriteError::ConnectionLost(error) => StreamError::Ended(error.into()),
            quinn::WriteError::ClosedStream => StreamError::GivenUp(0),
            quinn::WriteError::ZeroRttRejected => StreamError::Ended(Ended::Broken("early data, which is never sent".to_owned())),
        }
    }

    fn give_up(&mut self) {
        // It fails only for a stream that is over, which is what is wanted.
        let _ = self.stream.reset(VarInt::from_u32(0));
    }
}

impl Drop for Outlet {
    /// The library finishes a stream that is dropped: then half an envelope would look like the end of all.
    fn drop(&mut self) {
        if !self.waiting.is_empty() || !self.gathering.is_empty() {
            self.give_up();
        }
    }
}

/// Bytes on their way in.
pub(super) struct Inlet {
    stream: quinn::RecvStream,
    /// As they came from the network, each part of a packet.
    pieces: VecDeque<Bytes>,
    /// The beginning of a message that spans pieces. Grows with what came, never with what was announced.
    begun: Vec<u8>,
}

impl Inlet {
    pub(super) fn new(stream: quinn::RecvStream) -> Inlet {
        Inlet { stream, pieces: VecDeque::new(), begun: Vec::new() }
    }

    /// Waits until `length` bytes of the current message are here. False: the peer finished before.
    pub(super) async fn gather(&mut self, length: usize) -> Result<bool, StreamError> {
        loop {
            self.move_pieces(length);
            if self.begun.len() >= length {
                return Ok(true);
            }
            if !self.read().await? {
                return Ok(false);
            }
        }
    }

    fn move_pieces(&mut self, length: usize) {
        self.make_room(length);
        while let Some(piece) = self.pieces.front_mut() {
            let wanted = length.saturating_sub(self.begun.len()).min(piece.len());
            if wanted == 0 {
                return;
            }
            self.begun.extend_from_slice(&piece[..wanted]);
            self.used(wanted);
        }
    }

    /// So that a picture is copied once, into memory of its own size, and one that never comes takes little.
    fn make_room(&mut self, length: usize) {
        let here = self.begun.len() + self.pieces.iter().map(Bytes::len).sum::<usize>();
        if self.begun.capacity() < length.min(here) {
            self.begun.reserve_exact(length.min(here * ROOM_AHEAD) - self.begun.len());
        }
    }

    async fn read(&mut self) -> Result<bool, StreamError> {
        let mut pieces: [Bytes; PIECES_READ] = Default::default();
        match self.stream.read_chunks(&mut pieces).await {
            Ok(Some(count)) => self.pieces.extend(pieces.into_iter().take(count).filter(|piece| !piece.is_empty())),
            Ok(None) => return Ok(false),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(StreamError::Ended(error.into())),
            Err(quinn::ReadError::Reset(number)) => return Err(StreamError::GivenUp(number.into_inner())),
            Err(error) => return Err(StreamError::Ended(Ended::Broken(error.to_string()))),
        }
        Ok(true)
    }

    /// The piece that the next message begins in; empty when one has begun.
    fn whole_piece(&self) -> &[u8] {
        self.pieces.front().filter(|_| self.begun.is_empty()).map_or(&[], |piece| piece)
    }

    /// A copy, because a slice of 250 bytes would keep the whole receive buffer alive.
    fn copy_from_piece(&mut self, length: usize) -> Bytes {
        let copy = self.pieces.front().map(|piece| Bytes::copy_from_slice(&piece[..length])).unwrap_or_default();
        self.used(length);
        copy
    }

    fn used(&mut self, length: usize) {
        if let Some(piece) = self.pieces.front_mut() {
            piece.advance(length);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn gathered(&self) -> &[u8] {
        &self.begun
    }

    fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }

    /// The message that was gathered; the next begins.
    pub(super) fn take(&mut self) -> Bytes {
        mem::take(&mut self.begun).into_boxed_slice().into()
    }
}
