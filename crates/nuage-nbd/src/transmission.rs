//! The transmission phase: requests in, replies out, in any order.

use crate::handshake::PAYLOAD_BYTES_MAX;
use crate::server::{ConnectionId, Event, ExportId, Phase, Server};
use crate::wire::{
    CHUNK_MAGIC, CONTEXT_ID, REQUEST_BYTES, REQUEST_MAGIC, SIMPLE_MAGIC, STATE_HOLE, STATE_ZERO,
    be16, be32, be64, chunk, command, command_flag, error, length_u32,
};
use nuage_block::{Buffer, Extent, Failure, Operation, Outcome, Output, Request};

/// Requests of one connection in flight before it is read no further.
const IN_FLIGHT_MAX: usize = 256;
/// Bytes that the requests of one connection may move at once; at least one always runs.
const IN_FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Extents of one block status reply.
const EXTENTS_MAX: usize = 8192;
/// Longest extent that fits a reply, a whole number of pages.
const LONGEST_EXTENT: u32 = 0xffff_f000;

#[derive(Debug)]
pub(crate) struct Session {
    pub export: ExportId,
    structured: bool,
    context: bool,
    head: Vec<u8>,
    /// A WRITE whose payload is still coming, or a refused one whose payload is skipped.
    payload: Option<Payload>,
    pub in_flight: usize,
    in_flight_bytes: usize,
}

#[derive(Debug)]
struct Payload {
    header: Header,
    data: Buffer,
    /// Set when the request is refused: the payload is read and dropped.
    refused: Option<u32>,
    dropped_bytes: usize,
}

impl Payload {
    fn missing(&self) -> usize {
        self.header.length as usize - self.data.len() - self.dropped_bytes
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

/// A request that the engine holds.
#[derive(Debug)]
pub(crate) struct Task {
    pub connection: Option<ConnectionId>,
    pub export: ExportId,
    header: Header,
}

impl Session {
    pub fn new(export: ExportId, structured: bool, context: bool) -> Self {
        Self {
            export,
            structured,
            context,
            head: Vec::with_capacity(REQUEST_BYTES),
            payload: None,
            in_flight: 0,
            in_flight_bytes: 0,
        }
    }

    /// The data of a write that has begun to come, and how many bytes it lacks.
    pub fn unfinished_data(&mut self) -> Option<(&mut Buffer, usize)> {
        let payload = self.payload.as_mut()?;
        let missing = payload.missing();
        payload
            .refused
            .is_none()
            .then_some((&mut payload.data, missing))
    }

    pub fn has_room(&self) -> bool {
        self.in_flight < IN_FLIGHT_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        (be32(bytes, 0) == REQUEST_MAGIC).then(|| Self {
            flags: be16(bytes, 4),
            kind: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be32(bytes, 24),
        })
    }

    /// Bytes that the request moves through our memory.
    fn moves(&self) -> usize {
        match self.kind {
            command::READ | command::WRITE => self.length as usize,
            _ => 0,
        }
    }
}

impl Server {
    /// Take bytes until one request is complete.
    pub(crate) fn transmit(&mut self, id: ConnectionId, input: &mut &[u8]) {
        let Some(connection) = self.connections.get_mut(id) else {
            *input = &[];
            return;
        };
        let Phase::Transmission(session) = &mut connection.phase else {
            *input = &[];
            return;
        };
        if let Some(payload) = &mut session.payload {
            let count = input.len().min(payload.missing());
            let (taken, rest) = input.split_at(count);
            *input = rest;
            if payload.refused.is_none() {
                payload.data.extend_from_slice(taken);
            } else {
                payload.dropped_bytes += count;
            }
            if payload.missing() == 0
                && let Some(payload) = session.payload.take()
            {
                self.write(id, payload);
            }
            return;
        }
        let count = input.len().min(REQUEST_BYTES - session.head.len());
        let (taken, rest) = input.split_at(count);
        session.head.extend_from_slice(taken);
        *input = rest;
        if session.head.len() < REQUEST_BYTES {
            return;
        }
        let header = Header::parse(&session.head);
        session.head.clear();
        match header {
            Some(header) => self.request(id, header),
            None => self.protocol_error(id, "a request without its magic"),
        }
    }

    fn request(&mut self, id: ConnectionId, header: Header) {
        if header.kind == command::DISCONNECT {
            return self.begin_close(id);
        }
        let verdict = self.check(id, &header);
        if header.kind == command::WRITE && header.length > 0 {
            if header.length > PAYLOAD_BYTES_MAX {
                return self.protocol_error(id, "a write larger than announced");
            }
            let refused = verdict.err();
            let data = if refused.is_some() {
                Buffer::new()
            } else {
                Buffer::with_capacity(header.length as usize)
            };
            if let Some(session) = self.session(id) {
                session.payload = Some(Payload {
                    header,
                    data,
                    refused,
                    dropped_bytes: 0,
                });
            }
            return;
        }
        match verdict {
            Ok(()) => self.submit(id, header, Buffer::new()),
            Err(code) => self.fail(id, &header, code),
        }
    }

    fn session(&mut self, id: ConnectionId) -> Option<&mut Session> {
        match self
            .connections
            .get_mut(id)
            .map(|connection| &mut connection.phase)
        {
            Some(Phase::Transmission(session)) => Some(session),
            _ => None,
        }
    }

    fn check(&mut self, id: ConnectionId, header: &Header) -> Result<(), u32> {
        let Some(session) = self.session(id) else {
            return Err(error::SHUTDOWN);
        };
        let (export, context) = (session.export, session.context);
        let geometry = &self.exports.get(&export).ok_or(error::SHUTDOWN)?.geometry;
        let allowed = command_flag::FUA
            | match header.kind {
                command::READ => command_flag::DONT_FRAGMENT,
                command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                command::BLOCK_STATUS => command_flag::REQUEST_ONE,
                _ => 0,
            };
        if header.flags & !allowed != 0 || header.kind > command::BLOCK_STATUS {
            return Err(error::INVALID);
        }
        let changes = matches!(
            header.kind,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        if changes && geometry.read_only {
            return Err(error::PERMISSION);
        }
        if header.kind == command::FLUSH {
            return if header.offset == 0 && header.length == 0 {
                Ok(())
            } else {
                Err(error::INVALID)
            };
        }
        let end = header
            .offset
            .checked_add(u64::from(header.length))
            .ok_or(error::INVALID)?;
        if end > geometry.size_bytes {
            return Err(if changes {
                error::NO_SPACE
            } else {
                error::INVALID
            });
        }
        let block = u64::from(geometry.logical_block_bytes);
        if !header.offset.is_multiple_of(block) || !u64::from(header.length).is_multiple_of(block) {
            return Err(error::INVALID);
        }
        match header.kind {
            command::READ if header.length > PAYLOAD_BYTES_MAX => Err(error::INVALID),
            command::BLOCK_STATUS if !context || header.length == 0 => Err(error::INVALID),
            // A mapped range is zeroed by a record, never by writing zeros: always fast.
            _ => Ok(()),
        }
    }

    fn write(&mut self, id: ConnectionId, payload: Payload) {
        match payload.refused {
            Some(code) => self.fail(id, &payload.header, code),
            None => self.submit(id, payload.header, payload.data),
        }
    }

    fn submit(&mut self, id: ConnectionId, header: Header, data: Buffer) {
        let (offset, length) = (header.offset, u64::from(header.length));
        let fua = header.flags & command_flag::FUA != 0;
        let operation = match header.kind {
            command::FLUSH => Operation::Flush,
            _ if length == 0 => return self.succeed(id, &header, Vec::new()),
            command::READ => Operation::Read {
                offset,
                length: header.length,
            },
            command::WRITE => Operation::Write { offset, data, fua },
            command::TRIM => Operation::Unmap { offset, length },
            command::WRITE_ZEROES => {
                let allocate = header.flags & command_flag::NO_HOLE != 0;
                Operation::WriteZeroes {
                    offset,
                    length,
                    allocate,
                    fua,
                }
            }
            command::BLOCK_STATUS => Operation::BlockStatus { offset, length },
            // CACHE is a hint; the engine keeps its own cache.
            _ => return self.succeed(id, &header, Vec::new()),
        };
        let Some(session) = self.session(id) else {
            return;
        };
        session.in_flight += 1;
        session.in_flight_bytes += header.moves();
        let export = session.export;
        let tag = self.tasks.insert(Task {
            connection: Some(id),
            export,
            header,
        }) as u64;
        self.requests.push((export, Request { tag, operation }));
    }

    pub(crate) fn task_completed(&mut self, key: usize, outcome: Outcome) {
        let Some(task) = self.tasks.get(key) else {
            return;
        };
        // TRIM has no durable form of its own: its FUA is a flush behind it.
        let trims = task.header.kind == command::TRIM && task.header.flags & command_flag::FUA != 0;
        if trims && outcome == Outcome::Done {
            let export = task.export;
            if let Some(task) = self.tasks.get_mut(key) {
                task.header.flags &= !command_flag::FUA;
            }
            self.requests.push((
                export,
                Request {
                    tag: key as u64,
                    operation: Operation::Flush,
                },
            ));
            return;
        }
        let task = self.tasks.remove(key);
        let Some(id) = task.connection else { return };
        if let Some(session) = self.session(id) {
            session.in_flight = session.in_flight.saturating_sub(1);
            session.in_flight_bytes = session.in_flight_bytes.saturating_sub(task.header.moves());
        }
        match outcome {
            Outcome::Done => self.succeed(id, &task.header, Vec::new()),
            Outcome::Data(data) => self.succeed(id, &task.header, data),
            Outcome::Extents(extents) => self.extents(id, &task.header, &extents),
            Outcome::Failed(failure) => self.fail(id, &task.header, code(failure)),
            Outcome::Reservations(_) | Outcome::Miscompare { .. } => {
                self.fail(id, &task.header, error::IO);
            }
        }
    }

    fn replier(&mut self, id: ConnectionId) -> Option<(bool, &mut Output)> {
        self.touch(id);
        let connection = self.connections.get_mut(id)?;
        match &connection.phase {
            Phase::Transmission(session) => Some((session.structured, &mut connection.output)),
            Phase::Handshake(_) => None,
        }
    }

    fn succeed(&mut self, id: ConnectionId, header: &Header, data: Vec<u8>) {
        let Some((structured, output)) = self.replier(id) else {
            return;
        };
        // A structured reply is required for READ and BLOCK_STATUS, allowed for the others.
        if structured && header.kind == command::READ {
            let mut body = chunk_head(chunk::OFFSET_DATA, header.cookie, data.len() + 8);
            body.extend_from_slice(&header.offset.to_be_bytes());
            output.copy(&body);
            output.share(data.into());
        } else {
            output.copy(&simple(0, header.cookie));
            output.share(data.into());
        }
    }

    fn fail(&mut self, id: ConnectionId, header: &Header, code: u32) {
        let Some((structured, output)) = self.replier(id) else {
            return;
        };
        if structured {
            let text = message(code).as_bytes();
            let mut body = chunk_head(chunk::ERROR, header.cookie, 6 + text.len());
            body.extend_from_slice(&code.to_be_bytes());
            body.extend_from_slice(&length_u32(text)[2..]);
            body.extend_from_slice(text);
            output.copy(&body);
        } else {
            output.copy(&simple(code, header.cookie));
        }
        if code == error::IO {
            self.events.push(Event::ProtocolError {
                connection: id,
                reason: "an operation failed",
            });
        }
    }

    fn extents(&mut self, id: ConnectionId, header: &Header, extents: &[Extent]) {
        let one = header.flags & command_flag::REQUEST_ONE != 0;
        let count = if one { 1 } else { EXTENTS_MAX };
        let mut body = CONTEXT_ID.to_be_bytes().to_vec();
        for extent in extents.iter().take(count) {
            let length = u32::try_from(extent.length).unwrap_or(LONGEST_EXTENT);
            body.extend_from_slice(&length.to_be_bytes());
            let state = if extent.mapped {
                0
            } else {
                STATE_HOLE | STATE_ZERO
            };
            body.extend_from_slice(&state.to_be_bytes());
        }
        if extents.is_empty() {
            return self.fail(id, header, error::IO);
        }
        let Some((_, output)) = self.replier(id) else {
            return;
        };
        output.copy(&chunk_head(chunk::BLOCK_STATUS, header.cookie, body.len()));
        output.copy(&body);
    }
}

fn simple(code: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&code.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

fn chunk_head(kind: u16, cookie: u64, length: usize) -> Vec<u8> {
    let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&chunk::DONE.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes
}

fn code(failure: Failure) -> u32 {
    match failure {
        Failure::OutOfRange => error::INVALID,
        Failure::Medium | Failure::Checksum { .. } | Failure::Unavailable => error::IO,
        Failure::NoSpace => error::NO_SPACE,
        Failure::ReadOnly => error::PERMISSION,
        Failure::Fenced => error::SHUTDOWN,
    }
}

fn message(code: u32) -> &'static str {
    match code {
        error::PERMISSION => "the volume is read-only",
        error::NO_SPACE => "no space left for this volume",
        error::INVALID => "the request is malformed or lies outside the volume",
        error::SHUTDOWN => "another head serves this volume now",
        error::NOT_SUPPORTED => "not supported",
        _ => "the volume could not do it",
    }
}
