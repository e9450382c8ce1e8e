//! Every target of a daemon: connections, logins, sessions, tasks (RFC 7143 §4, §7).
//!
//! Theory of operation: a connection is in its login phase, a discovery session, or a normal
//! session of one target; a session has one connection, paths are sessions of their own. A SCSI
//! command is a task from its PDU until its status is queued and, where it was aborted, until the
//! operation that the engine already holds has landed: whoever aborted it is answered only then.
//! Otherwise an old write could land after the initiator's retry.
//!
//! Fault model: initiators are untrusted. A protocol error ends the connection (error recovery
//! level 0); what a session can make us hold is bounded by the command window, the first burst and
//! `BUDGET_BYTES`.

use crate::login::{Access, Agreement, Directory, Login, Reply, Status};
use crate::negotiate::{Parameters, RECEIVE_BYTES_MAX};
use crate::pdu::{Bhs, Pdu, PduError, PduOutput, PduReader, reject, request, response};
use crate::reservation::Port;
use crate::unit::{Alua, Identity, LogicalUnit, Nexus, Reply as ScsiReply};
use crate::{block::Then, chap::CHALLENGE_BYTES};
use bytes::Bytes;
use nuage_block::{Buffer, Completion, Geometry, Output, Request};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};

pub type ConnectionId = usize;
pub type TargetId = u32;

/// Commands that a session may have in flight (the CmdSN window).
pub const COMMAND_WINDOW: u32 = 128;
/// Connections of one daemon; a further one is not accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// Bytes that the running commands of one session may move at once; the rest waits its turn. At
/// least one command always runs.
pub(crate) const BUDGET_BYTES: usize = 32 * 1024 * 1024;
/// Unsent bytes of a connection beyond which no further command starts.
pub(crate) const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Something for the log and the metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    LoggedIn {
        connection: ConnectionId,
        initiator: String,
        target: Option<String>,
    },
    LoginRefused {
        connection: ConnectionId,
        initiator: Option<String>,
        target: Option<String>,
        reason: &'static str,
    },
    SessionEnded {
        initiator: String,
        target: TargetId,
    },
    ProtocolError {
        connection: ConnectionId,
        reason: String,
    },
}

/// A session as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    pub initiator: String,
    pub isid: [u8; 6],
    pub portal: String,
    pub task_count: usize,
}

#[derive(Debug)]
pub(crate) struct Target {
    pub name: String,
    pub access: Access,
    pub unit: LogicalUnit,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub target: TargetId,
    pub nexus: Nexus,
    pub port: Port,
    pub parameters: Parameters,
    /// Initiator task tag and task, in the order they came.
    pub tasks: Vec<(u32, usize)>,
    /// Tasks that wait for the budget.
    pub waiting: VecDeque<usize>,
    pub budget_used: usize,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Login(Box<Login>),
    /// Login agreed; the session that this one replaces still has writes in flight.
    Reinstating,
    Discovery(Parameters),
    Full(Box<Session>),
    Over,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub reader: PduReader,
    pub output: PduOutput,
    pub phase: Phase,
    /// Close once the output is sent.
    pub closing: bool,
    pub status_sn: u32,
    pub expected_command_sn: u32,
    pub command_sn_max: u32,
    pub portal: String,
    /// The rest of a text answer that did not fit one PDU.
    pub text_rest: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Data of the initiator is still to come.
    Gathering,
    /// Waits for the budget.
    Waiting,
    /// The engine holds an operation.
    Running,
}

#[derive(Debug)]
pub(crate) struct Task {
    /// `None` once the connection is gone.
    pub connection: Option<ConnectionId>,
    pub target: TargetId,
    pub nexus: Nexus,
    pub tag: u32,
    pub lun: [u8; 8],
    pub cdb: [u8; 16],
    /// EDTL.
    pub expected_bytes: u32,
    pub reads: bool,
    pub writes: bool,
    pub immediate: bool,
    /// Bytes the command wants from the initiator.
    pub wanted_bytes: u64,
    /// Of these, what we ask for: at most EDTL.
    pub gather_bytes: usize,
    pub received_bytes: usize,
    pub data: Buffer,
    pub stage: Stage,
    pub unsolicited: bool,
    pub burst_end: usize,
    pub data_sn: u32,
    pub r2t_sn: u32,
    pub budget: usize,
    pub then: Option<Then>,
    pub aborted: bool,
    /// Who waits for the end of this task.
    pub waiters: Vec<usize>,
    /// A PREEMPT AND ABORT: its own wait, and its answer until that is over.
    pub held: Option<(usize, Option<ScsiReply>)>,
}

/// Somebody who is answered when a number of tasks has ended.
#[derive(Debug)]
pub(crate) struct Wait {
    pub remaining: usize,
    pub done: Done,
}

#[derive(Debug)]
pub(crate) enum Done {
    TaskManagement {
        connection: ConnectionId,
        nexus: Nexus,
        tag: u32,
        immediate: bool,
        cold: bool,
    },
    Logout {
        connection: ConnectionId,
        nexus: Nexus,
        tag: u32,
    },
    Login {
        connection: ConnectionId,
        header: Box<Bhs>,
        reply: Box<Reply>,
    },
    Task(usize),
}

/// What a command has of its data, for the Data-Out that follows in order and fits: its bytes then come to where
/// they belong.
fn lent_data(session: &Session, tasks: &mut Slab<Task>, header: &Bhs) -> Option<Buffer> {
    if header.opcode() != request::DATA_OUT {
        return None;
    }
    let is_meant = |(tag, _): &&(u32, usize)| *tag == header.task_tag();
    let (_, key) = session.tasks.iter().find(is_meant)?;
    let task = tasks.get_mut(*key)?;
    let fits = task.stage == Stage::Gathering
        && task.data.len() == task.received_bytes
        && header.word(40) as usize == task.received_bytes
        && header.data_bytes() <= task.gather_bytes - task.received_bytes.min(task.gather_bytes);
    fits.then(|| std::mem::take(&mut task.data))
}

/// All targets behind the portals of one daemon.
#[derive(Debug)]
pub struct Server {
    pub(crate) portal_group_tag: u16,
    pub(crate) portals: Vec<String>,
    discovery: Access,
    pub(crate) targets: BTreeMap<TargetId, Target>,
    names: BTreeMap<String, TargetId>,
    pub(crate) connections: Slab<Connection>,
    pub(crate) tasks: Slab<Task>,
    pub(crate) waits: Slab<Wait>,
    next_nexus: Nexus,
    next_tsih: u16,
    pub(crate) requests: Vec<(TargetId, Request)>,
    touched: Vec<ConnectionId>,
    pub(crate) events: Vec<Event>,
}

struct Names<'a>(&'a Server);

impl Directory for Names<'_> {
    fn access(&self, target: Option<&str>) -> Option<&Access> {
        match target {
            None => Some(&self.0.discovery),
            Some(name) => {
                let id = self.0.names.get(name)?;
                self.0.targets.get(id).map(|target| &target.access)
            }
        }
    }

    fn portal_group_tag(&self) -> u16 {
        self.0.portal_group_tag
    }
}

impl Server {
    /// `portals`: addresses that discovery names, `host:port`.
    pub fn new(portal_group_tag: u16, portals: Vec<String>) -> Self {
        Self {
            portal_group_tag,
            portals,
            discovery: Access::default(),
            targets: BTreeMap::new(),
            names: BTreeMap::new(),
            connections: Slab::new(),
            tasks: Slab::new(),
            waits: Slab::new(),
            next_nexus: 1,
            next_tsih: 0,
            requests: Vec::new(),
            touched: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Offer a volume as target `name`, LUN 0. False: the id or the name is in use.
    pub fn add_target(
        &mut self,
        id: TargetId,
        name: &str,
        geometry: Geometry,
        access: Access,
    ) -> bool {
        if self.targets.contains_key(&id) || self.names.contains_key(name) {
            return false;
        }
        let identity = Identity {
            target_name: name.to_owned(),
            portal_group_tag: self.portal_group_tag,
            relative_port: self.portal_group_tag,
        };
        let unit = LogicalUnit::new(geometry, identity);
        self.names.insert(name.to_owned(), id);
        self.targets.insert(
            id,
            Target {
                name: name.to_owned(),
                access,
                unit,
            },
        );
        true
    }

    /// The disk of a target, to give it reservations, geometry or access states.
    pub fn unit_mut(&mut self, id: TargetId) -> Option<&mut LogicalUnit> {
        self.targets.get_mut(&id).map(|target| &mut target.unit)
    }

    pub fn set_alua(&mut self, id: TargetId, alua: Alua) {
        if let Some(unit) = self.unit_mut(id) {
            unit.set_alua(alua);
        }
    }

    /// Who may log in from now on; sessions stay.
    pub fn set_access(&mut self, id: TargetId, access: Access) -> bool {
        self.targets
            .get_mut(&id)
            .map(|target| target.access = access)
            .is_some()
    }

    /// Withdraw a target: its sessions end. Keep feeding completions while [`Server::busy`].
    pub fn remove_target(&mut self, id: TargetId) -> bool {
        let Some(target) = self.targets.remove(&id) else {
            return false;
        };
        self.names.remove(&target.name);
        for connection in self.connections_of(id) {
            self.end_session(connection, None);
            self.begin_close(connection);
        }
        true
    }

    /// True while the engine holds operations of this target.
    pub fn busy(&self, id: TargetId) -> bool {
        self.tasks.iter().any(|(_, task)| task.target == id)
    }

    pub fn sessions(&self, id: TargetId) -> Vec<SessionInfo> {
        let full = |(_, connection): (usize, &Connection)| match &connection.phase {
            Phase::Full(session) if session.target == id => Some(SessionInfo {
                initiator: session.port.initiator.clone(),
                isid: session.port.isid,
                portal: connection.portal.clone(),
                task_count: session.tasks.len(),
            }),
            _ => None,
        };
        self.connections.iter().filter_map(full).collect()
    }

    /// A socket was accepted at `portal`; `None`: there are too many. `entropy`: random bytes for
    /// the challenge of this login.
    pub fn accept(
        &mut self,
        portal: &str,
        entropy: [u8; CHALLENGE_BYTES + 1],
    ) -> Option<ConnectionId> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return None;
        }
        Some(self.connections.insert(Connection {
            reader: PduReader::new(RECEIVE_BYTES_MAX),
            output: PduOutput::default(),
            phase: Phase::Login(Box::new(Login::new(entropy))),
            closing: false,
            status_sn: 0,
            expected_command_sn: 0,
            command_sn_max: 0,
            portal: portal.to_owned(),
            text_rest: Vec::new(),
        }))
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
            let Connection { reader, phase, .. } = connection;
            let tasks = &mut self.tasks;
            let found = reader.next_into(&mut input, |header| match phase {
                Phase::Full(session) => lent_data(session, tasks, header),
                _ => None,
            });
            match found {
                Ok(Some(pdu)) => self.handle(id, pdu),
                Ok(None) => return,
                Err(error) => return self.unreadable(id, &error),
            }
        }
    }

    /// Where the loop may put bytes of a large transfer itself, and how many at most; `receive` follows, with
    /// what came behind them or nothing.
    pub fn unfinished_data(&mut self, id: ConnectionId) -> Option<(&mut Buffer, usize)> {
        let connection = self.connections.get_mut(id)?;
        let is_open = !connection.closing;
        is_open.then(|| connection.reader.unfinished_data())?
    }

    fn unreadable(&mut self, id: ConnectionId, error: &PduError) {
        if let PduError::DataDigest { header } = error {
            self.reject(id, header, reject::DATA_DIGEST);
        }
        self.protocol_error(id, &error.to_string());
    }

    fn handle(&mut self, id: ConnectionId, pdu: Pdu) {
        match self.connections.get(id).map(|connection| &connection.phase) {
            Some(Phase::Login(_)) => self.login(id, &pdu),
            Some(Phase::Discovery(_) | Phase::Full(_)) => self.full_feature(id, pdu),
            Some(Phase::Reinstating) => self.protocol_error(id, "a PDU before the login's answer"),
            Some(Phase::Over) | None => {}
        }
    }

    /// Reject nothing, say nothing: log and close.
    pub(crate) fn protocol_error(&mut self, id: ConnectionId, reason: &str) {
        self.events.push(Event::ProtocolError {
            connection: id,
            reason: reason.to_owned(),
        });
        self.end_session(id, None);
        self.begin_close(id);
    }

    pub(crate) fn begin_close(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.closing = true;
        }
        self.touch(id);
    }

    /// The socket is gone.
    pub fn closed(&mut self, id: ConnectionId) {
        if self.connections.contains(id) {
            self.end_session(id, None);
            self.connections.remove(id);
        }
    }

    /// Connections whose output or closing may have changed since the last call.
    pub fn take_touched(&mut self, into: &mut Vec<ConnectionId>) {
        into.append(&mut self.touched);
    }

    pub(crate) fn touch(&mut self, id: ConnectionId) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    /// Bytes to send.
    pub fn output(&self, id: ConnectionId) -> Option<&Output> {
        self.connections
            .get(id)
            .map(|connection| &connection.output.queue)
    }

    /// The socket took bytes; commands that waited for that start.
    pub fn sent(&mut self, id: ConnectionId, count: usize) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.output.queue.advance(count);
            let waits =
                matches!(&connection.phase, Phase::Full(session) if !session.waiting.is_empty());
            if waits {
                self.admit_waiting(id);
            }
        }
    }

    /// True when everything is sent and the connection is to be closed.
    pub fn finished(&self, id: ConnectionId) -> bool {
        self.connections
            .get(id)
            .is_none_or(|connection| connection.closing && connection.output.queue.is_empty())
    }

    /// False while the peer does not take what it asked for: stop reading its socket.
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.connections.get(id).is_some_and(|connection| {
            !connection.closing && connection.output.queue.len() <= OUTPUT_BYTES_MAX
        })
    }

    /// True once a session is established: the loop's login time-out ends.
    pub fn logged_in(&self, id: ConnectionId) -> bool {
        self.connections
            .get(id)
            .is_some_and(|connection| !matches!(connection.phase, Phase::Login(_)))
    }

    /// Operations for the engines, in the order to submit them.
    pub fn take_requests(&mut self, into: &mut Vec<(TargetId, Request)>) {
        into.append(&mut self.requests);
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// An engine has answered.
    pub fn complete(&mut self, completion: Completion) {
        let Ok(key) = usize::try_from(completion.tag) else {
            return;
        };
        self.task_completed(key, completion.outcome);
    }

    pub(crate) fn connections_of(&self, id: TargetId) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, connection)| {
                matches!(&connection.phase, Phase::Full(session) if session.target == id)
            })
            .map(|(id, _)| id)
            .collect()
    }

    pub(crate) fn session_mut(&mut self, id: ConnectionId) -> Option<&mut Session> {
        match self
            .connections
            .get_mut(id)
            .map(|connection| &mut connection.phase)
        {
            Some(Phase::Full(session)) => Some(session),
            _ => None,
        }
    }

    /// A nexus ends: its tasks are aborted; `wait` is told when the running ones have landed.
    pub(crate) fn end_session(&mut self, id: ConnectionId, wait: Option<usize>) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let phase = std::mem::replace(&mut connection.phase, Phase::Over);
        let Phase::Full(session) = phase else { return };
        for (_, key) in &session.tasks {
            if let Some(task) = self.tasks.get_mut(*key) {
                task.connection = None;
            }
            self.abort_task(*key, wait);
        }
        if let Some(target) = self.targets.get_mut(&session.target) {
            target.unit.detach(session.nexus);
        }
        self.events.push(Event::SessionEnded {
            initiator: session.port.initiator.clone(),
            target: session.target,
        });
    }

    fn login(&mut self, id: ConnectionId, pdu: &Pdu) {
        let opcode = pdu.header.opcode();
        if opcode != request::LOGIN {
            return self.protocol_error(id, "a PDU other than login before the login");
        }
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let phase = std::mem::replace(&mut connection.phase, Phase::Over);
        let Phase::Login(mut login) = phase else {
            return;
        };
        let reply = login.receive(pdu, &Names(self));
        if reply.status != Status::SUCCESS {
            let (initiator, target) = login.names();
            self.events.push(Event::LoginRefused {
                connection: id,
                initiator: initiator.map(str::to_owned),
                target: target.map(str::to_owned),
                reason: reply.reason.unwrap_or("refused"),
            });
            self.answer_login(id, &pdu.header, &reply, 0);
            return self.begin_close(id);
        }
        if reply.agreement.is_none() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.phase = Phase::Login(login);
            }
            return self.answer_login(id, &pdu.header, &reply, 0);
        }
        self.reinstate(id, pdu.header, reply);
    }

    /// Session reinstatement (RFC 7143 §6.3.5): the old session of the same initiator port ends
    /// first, and its writes have landed before the new login is answered.
    fn reinstate(&mut self, id: ConnectionId, header: Bhs, reply: Reply) {
        let old: Vec<ConnectionId> = match &reply.agreement {
            Some(agreement) => self
                .connections
                .iter()
                .filter(|(_, connection)| match &connection.phase {
                    Phase::Full(session) => {
                        session.port.initiator == agreement.initiator
                            && session.port.isid == agreement.isid
                            && self.targets.get(&session.target).map(|target| &target.name)
                                == agreement.target.as_ref()
                    }
                    _ => false,
                })
                .map(|(id, _)| id)
                .collect(),
            None => Vec::new(),
        };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.phase = Phase::Reinstating;
        }
        let done = Done::Login {
            connection: id,
            header: Box::new(header),
            reply: Box::new(reply),
        };
        let wait = self.waits.insert(Wait { remaining: 1, done });
        for old in old {
            self.end_session(old, Some(wait));
            self.begin_close(old);
        }
        self.wait_over(wait);
    }

    /// The old session is over: establish the new one.
    pub(crate) fn establish(&mut self, id: ConnectionId, header: &Bhs, reply: &Reply) {
        let Some(agreement) = reply.agreement.clone() else {
            return;
        };
        if !matches!(
            self.connections.get(id).map(|connection| &connection.phase),
            Some(Phase::Reinstating)
        ) {
            return;
        }
        self.next_tsih = self.next_tsih.wrapping_add(1).max(1);
        let tsih = self.next_tsih;
        let parameters = agreement.parameters;
        let phase = match self.open_session(&agreement) {
            Ok(phase) => phase,
            Err(status) => {
                let refusal = Reply {
                    status,
                    transit: false,
                    agreement: None,
                    ..reply.clone()
                };
                self.answer_login(id, header, &refusal, 0);
                return self.begin_close(id);
            }
        };
        self.answer_login(id, header, reply, tsih);
        self.events.push(Event::LoggedIn {
            connection: id,
            initiator: agreement.initiator,
            target: agreement.target,
        });
        if let Some(connection) = self.connections.get_mut(id) {
            connection.phase = phase;
            connection.reader.header_digest = parameters.header_digest;
            connection.reader.data_digest = parameters.data_digest;
            connection.output.header_digest = parameters.header_digest;
            connection.output.data_digest = parameters.data_digest;
        }
    }

    fn open_session(&mut self, agreement: &Agreement) -> Result<Phase, Status> {
        let Some(name) = &agreement.target else {
            return Ok(Phase::Discovery(agreement.parameters));
        };
        let id = *self.names.get(name).ok_or(Status::NOT_FOUND)?;
        let target = self.targets.get_mut(&id).ok_or(Status::NOT_FOUND)?;
        let account = agreement.account.as_deref();
        if !target.access.admits(&agreement.initiator, account) {
            return Err(Status::AUTHENTICATION); // it was changed while the login went on
        }
        let nexus = self.next_nexus;
        self.next_nexus += 1;
        let port = Port {
            initiator: agreement.initiator.clone(),
            isid: agreement.isid,
        };
        target.unit.attach(nexus, port.clone());
        Ok(Phase::Full(Box::new(Session {
            target: id,
            nexus,
            port,
            parameters: agreement.parameters,
            tasks: Vec::new(),
            waiting: VecDeque::new(),
            budget_used: 0,
        })))
    }

    fn answer_login(&mut self, id: ConnectionId, header: &Bhs, reply: &Reply, tsih: u16) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.expected_command_sn = header.command_sn();
        connection.command_sn_max = connection
            .expected_command_sn
            .wrapping_add(COMMAND_WINDOW - 1);
        let transit = if reply.transit {
            0x80 | reply.next_stage
        } else {
            0
        };
        let mut answer = Bhs::new(response::LOGIN, transit | reply.current_stage << 2);
        answer.0[8..14].copy_from_slice(&header.0[8..14]);
        answer.0[14..16].copy_from_slice(&tsih.to_be_bytes());
        answer.set_word(16, header.task_tag());
        answer.0[36] = reply.status.0;
        answer.0[37] = reply.status.1;
        self.queue(id, answer, Bytes::from(reply.pairs.encode()), true);
    }
}
