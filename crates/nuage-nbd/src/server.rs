//! Exports and connections of one daemon.
//!
//! Fault model: clients are untrusted. A malformed request ends its connection; options and
//! payloads are bounded; a client that does not read its replies is not read from.

use crate::handshake::Handshake;
use crate::transmission::{Session, Task};
use nuage_block::{Buffer, Completion, Geometry, Output, Request};
use slab::Slab;
use std::collections::BTreeMap;

pub type ConnectionId = usize;
pub type ExportId = u32;

/// Connections of one daemon; a further one is not accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// Unsent bytes beyond which a connection is no longer read.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A volume under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub geometry: Geometry,
    /// Only where a flush on one connection covers writes completed on all others.
    pub multi_conn: bool,
}

/// Something for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Opened {
        connection: ConnectionId,
        export: String,
    },
    ProtocolError {
        connection: ConnectionId,
        reason: &'static str,
    },
}

#[derive(Debug)]
pub(crate) enum Phase {
    Handshake(Handshake),
    Transmission(Session),
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub phase: Phase,
    pub output: Output,
    pub closing: bool,
}

/// All exports behind the sockets of one daemon.
#[derive(Debug, Default)]
pub struct Server {
    pub(crate) exports: BTreeMap<ExportId, Export>,
    pub(crate) connections: Slab<Connection>,
    pub(crate) tasks: Slab<Task>,
    pub(crate) requests: Vec<(ExportId, Request)>,
    touched: Vec<ConnectionId>,
    pub(crate) events: Vec<Event>,
}

impl Server {
    /// Offer a volume. False: the id or the name is in use.
    pub fn add_export(&mut self, id: ExportId, export: Export) -> bool {
        if self.exports.contains_key(&id)
            || self.exports.values().any(|known| known.name == export.name)
        {
            return false;
        }
        self.exports.insert(id, export);
        true
    }

    /// The volume grew; connections made from now on see it.
    pub fn set_geometry(&mut self, id: ExportId, geometry: Geometry) {
        if let Some(export) = self.exports.get_mut(&id) {
            export.geometry = geometry;
        }
    }

    /// Withdraw an export: its connections end. Keep feeding completions while [`Server::busy`].
    pub fn remove_export(&mut self, id: ExportId) -> bool {
        let removed = self.exports.remove(&id).is_some();
        for connection in self.connections_of(id) {
            self.begin_close(connection);
        }
        removed
    }

    /// True while the engine holds operations of this export.
    pub fn busy(&self, id: ExportId) -> bool {
        self.tasks.iter().any(|(_, task)| task.export == id)
    }

    /// Connections in the transmission phase on an export.
    pub fn connections_of(&self, id: ExportId) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, connection)| {
                matches!(&connection.phase, Phase::Transmission(session) if session.export == id)
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// A socket was accepted; `None`: there are too many.
    pub fn accept(&mut self) -> Option<ConnectionId> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        let mut output = Output::default();
        let handshake = Handshake::begin(&mut output);
        let id = self.connections.insert(Connection {
            phase: Phase::Handshake(handshake),
            output,
            closing: false,
        });
        self.touch(id);
        Some(id)
    }

    /// Bytes came from a socket.
    pub fn receive(&mut self, id: ConnectionId, mut input: &[u8]) {
        loop {
            let Some(connection) = self.connections.get_mut(id) else {
                return;
            };
            if connection.closing {
                return;
            }
            let handshakes = matches!(connection.phase, Phase::Handshake(_));
            if handshakes {
                self.shake(id, &mut input);
            } else {
                self.transmit(id, &mut input);
            }
            if input.is_empty() {
                return;
            }
        }
    }

    /// Where the loop may put bytes of a large write itself, and how many at most; `receive` follows, with what
    /// came behind them or nothing.
    pub fn unfinished_data(&mut self, id: ConnectionId) -> Option<(&mut Buffer, usize)> {
        let connection = self.connections.get_mut(id)?;
        match &mut connection.phase {
            Phase::Transmission(session) if !connection.closing => session.unfinished_data(),
            _ => None,
        }
    }

    fn shake(&mut self, id: ConnectionId, input: &mut &[u8]) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Phase::Handshake(handshake) = &mut connection.phase else {
            return;
        };
        let result = handshake.receive(input, &self.exports, &mut connection.output);
        match result {
            Ok(crate::handshake::Step::More) => {}
            Ok(crate::handshake::Step::Close) => connection.closing = true,
            Ok(crate::handshake::Step::Go {
                export,
                structured,
                context,
            }) => {
                connection.phase = Phase::Transmission(Session::new(export, structured, context));
                let name = self
                    .exports
                    .get(&export)
                    .map(|export| export.name.clone())
                    .unwrap_or_default();
                self.events.push(Event::Opened {
                    connection: id,
                    export: name,
                });
            }
            Err(reason) => self.protocol_error(id, reason),
        }
        self.touch(id);
    }

    pub(crate) fn protocol_error(&mut self, id: ConnectionId, reason: &'static str) {
        self.events.push(Event::ProtocolError {
            connection: id,
            reason,
        });
        self.begin_close(id);
    }

    pub(crate) fn begin_close(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.closing = true;
        }
        self.touch(id);
    }

    /// The socket is gone; writes that the engine holds still land.
    pub fn closed(&mut self, id: ConnectionId) {
        if self.connections.contains(id) {
            for (_, task) in &mut self.tasks {
                if task.connection == Some(id) {
                    task.connection = None;
                }
            }
            self.connections.remove(id);
        }
    }

    pub fn take_touched(&mut self, into: &mut Vec<ConnectionId>) {
        into.append(&mut self.touched);
    }

    pub(crate) fn touch(&mut self, id: ConnectionId) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    pub fn output(&self, id: ConnectionId) -> Option<&Output> {
        self.connections
            .get(id)
            .map(|connection| &connection.output)
    }

    pub fn sent(&mut self, id: ConnectionId, count: usize) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.output.advance(count);
        }
    }

    /// True when everything is sent and the connection is to be closed. Requests still in flight
    /// are answered first (NBD_CMD_DISC).
    pub fn finished(&self, id: ConnectionId) -> bool {
        self.connections.get(id).is_none_or(|connection| {
            let idle = match &connection.phase {
                Phase::Transmission(session) => session.in_flight == 0,
                Phase::Handshake(_) => true,
            };
            connection.closing && connection.output.is_empty() && idle
        })
    }

    /// False while the client does not take its replies or has too much in flight.
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.connections.get(id).is_some_and(|connection| {
            let room = match &connection.phase {
                Phase::Transmission(session) => session.has_room(),
                Phase::Handshake(_) => true,
            };
            !connection.closing && room && connection.output.len() <= OUTPUT_BYTES_MAX
        })
    }

    /// True once an export is open: the loop's handshake time-out ends.
    pub fn opened(&self, id: ConnectionId) -> bool {
        self.connections
            .get(id)
            .is_some_and(|connection| !matches!(connection.phase, Phase::Handshake(_)))
    }

    /// Operations for the engines, in the order to submit them.
    pub fn take_requests(&mut self, into: &mut Vec<(ExportId, Request)>) {
        into.append(&mut self.requests);
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// An engine has answered.
    pub fn complete(&mut self, completion: Completion) {
        if let Ok(key) = usize::try_from(completion.tag) {
            self.task_completed(key, completion.outcome);
        }
    }
}
