//! The full feature phase: commands, data, pings, text (RFC 7143 §4.2, §7, §11).

use crate::negotiate::Parameters;
use crate::pdu::{Bhs, Pdu, TAG_NONE, reject, request, response};
use crate::sense::Sense;
use crate::server::{BUDGET_BYTES, ConnectionId, OUTPUT_BYTES_MAX, Phase, Server, Stage, Task};
use crate::text::Pairs;
use crate::unit::{Reply, Step, report_luns};
use crate::{inquiry, opcodes as op};
use bytes::Bytes;
use nuage_block::{Outcome, Request};

/// Immediate commands of one session in flight: they are outside the command window.
const IMMEDIATE_MAX: usize = 64;

/// Verdict on a CmdSN (RFC 7143 §4.2.2.1).
enum Order {
    Next,
    /// Outside the window: ignored without a word.
    Ignored,
    /// A hole before it: on one connection only a broken initiator makes one.
    Hole,
}

impl Server {
    pub(crate) fn full_feature(&mut self, id: ConnectionId, pdu: Pdu) {
        let opcode = pdu.header.opcode();
        let numbered = !matches!(opcode, request::DATA_OUT | request::SNACK);
        if numbered {
            match self.check_order(id, &pdu.header) {
                Order::Next => {}
                Order::Ignored => return,
                Order::Hole => return self.protocol_error(id, "a hole in CmdSN"),
            }
        }
        let normal = self.session_mut(id).is_some();
        match opcode {
            request::SCSI_COMMAND if normal => self.command(id, pdu),
            request::DATA_OUT if normal => self.data_out(id, pdu),
            request::TASK_MANAGEMENT if normal => self.task_management(id, &pdu.header),
            request::NOP_OUT => self.nop(id, &pdu),
            request::TEXT => self.text(id, &pdu),
            request::LOGOUT => self.logout(id, &pdu.header),
            request::SNACK => self.reject(id, &pdu.header, reject::SNACK),
            request::LOGIN => {
                self.reject(id, &pdu.header, reject::PROTOCOL);
                self.protocol_error(id, "a login inside a session");
            }
            _ => {
                self.reject(id, &pdu.header, reject::NOT_SUPPORTED);
                self.slot_free(id, pdu.header.immediate());
            }
        }
    }

    fn check_order(&mut self, id: ConnectionId, header: &Bhs) -> Order {
        let Some(connection) = self.connections.get_mut(id) else {
            return Order::Ignored;
        };
        if header.immediate() {
            return Order::Next;
        }
        let ahead = header
            .command_sn()
            .wrapping_sub(connection.expected_command_sn);
        let window = connection
            .command_sn_max
            .wrapping_sub(connection.expected_command_sn);
        // An empty window makes `window` u32::MAX: then nothing is inside.
        if window >= u32::MAX / 2 || ahead > window {
            Order::Ignored
        } else if ahead > 0 {
            Order::Hole
        } else {
            connection.expected_command_sn = connection.expected_command_sn.wrapping_add(1);
            Order::Next
        }
    }

    /// A command is over: the window opens by one.
    pub(crate) fn slot_free(&mut self, id: ConnectionId, immediate: bool) {
        if let Some(connection) = self.connections.get_mut(id).filter(|_| !immediate) {
            connection.command_sn_max = connection.command_sn_max.wrapping_add(1);
        }
    }

    fn parameters(&self, id: ConnectionId) -> Parameters {
        match self.connections.get(id).map(|connection| &connection.phase) {
            Some(Phase::Full(session)) => session.parameters,
            Some(Phase::Discovery(parameters)) => *parameters,
            _ => Parameters::default(),
        }
    }

    fn command(&mut self, id: ConnectionId, pdu: Pdu) {
        let header = pdu.header;
        let parameters = self.parameters(id);
        let immediate = header.immediate();
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let (target, nexus) = (session.target, session.nexus);
        if session
            .tasks
            .iter()
            .any(|(tag, _)| *tag == header.task_tag())
        {
            self.reject(id, &header, reject::TASK_IN_PROGRESS);
            return self.slot_free(id, immediate);
        }
        if immediate && session.tasks.len() >= IMMEDIATE_MAX {
            return self.reject(id, &header, reject::TOO_MANY_IMMEDIATE);
        }
        let flags = header.flags();
        let (reads, writes) = (flags & 0x40 != 0, flags & 0x20 != 0);
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&header.0[32..48]);
        let expected_bytes = header.word(20);
        let wanted_bytes = self
            .targets
            .get(&target)
            .map_or(0, |target| target.unit.data_out_bytes(&cdb));
        let unsolicited = writes && !header.last();
        let most = parameters.first_burst_bytes;
        if pdu.data.len() > most || unsolicited && parameters.initial_r2t {
            self.reject(id, &header, reject::PROTOCOL);
            return self.protocol_error(id, "more unsolicited data than agreed");
        }
        let gather = if writes {
            wanted_bytes.min(u64::from(expected_bytes))
        } else {
            0
        };
        // More than one transfer may move is refused by the unit before it looks at data.
        let gather_bytes = if gather > u64::from(inquiry::TRANSFER_BYTES_MAX) * 2 {
            0
        } else {
            usize::try_from(gather).unwrap_or(0)
        };
        let received_bytes = pdu.data.len();
        let mut data = pdu.data;
        data.truncate(gather_bytes);
        let key = self.tasks.insert(Task {
            connection: Some(id),
            target,
            nexus,
            tag: header.task_tag(),
            lun: header.lun(),
            cdb,
            expected_bytes,
            reads,
            writes,
            immediate,
            wanted_bytes,
            gather_bytes,
            received_bytes,
            data,
            stage: Stage::Gathering,
            unsolicited,
            burst_end: most.min(expected_bytes as usize),
            data_sn: 0,
            r2t_sn: 0,
            budget: 0,
            then: None,
            aborted: false,
            waiters: Vec::new(),
            held: None,
        });
        if let Some(session) = self.session_mut(id) {
            session.tasks.push((header.task_tag(), key));
        }
        if !unsolicited {
            self.admit(id, key);
        }
    }

    /// Start a task, or queue it behind others until the budget allows it.
    fn admit(&mut self, id: ConnectionId, key: usize) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let most = (inquiry::TRANSFER_BYTES_MAX as usize) * 2;
        let cost = if task.reads {
            (task.expected_bytes as usize).min(most)
        } else {
            task.gather_bytes
        };
        task.budget = cost;
        task.stage = Stage::Waiting;
        let unsent = self
            .connections
            .get(id)
            .map_or(0, |connection| connection.output.queue.len());
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let fits = session.budget_used == 0
            || session.budget_used + cost <= BUDGET_BYTES && unsent <= OUTPUT_BYTES_MAX;
        if session.waiting.is_empty() && fits {
            session.budget_used += cost;
            self.advance(key);
        } else {
            session.waiting.push_back(key);
        }
    }

    pub(crate) fn admit_waiting(&mut self, id: ConnectionId) {
        loop {
            let unsent = self
                .connections
                .get(id)
                .map_or(0, |connection| connection.output.queue.len());
            let Some(session) = self.session_mut(id) else {
                return;
            };
            let used = session.budget_used;
            let Some(key) = session.waiting.front().copied() else {
                return;
            };
            let cost = self.tasks.get(key).map_or(0, |task| task.budget);
            if used > 0 && (used + cost > BUDGET_BYTES || unsent > OUTPUT_BYTES_MAX) {
                return;
            }
            if let Some(session) = self.session_mut(id) {
                session.waiting.pop_front();
                session.budget_used += cost;
            }
            self.advance(key);
        }
    }

    /// Ask for the data still missing, or execute.
    fn advance(&mut self, key: usize) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.received_bytes >= task.gather_bytes {
            return self.execute(key);
        }
        let Some(id) = task.connection else { return };
        let burst_bytes = self.parameters(id).burst_bytes;
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.stage = Stage::Gathering;
        let missing = task.gather_bytes - task.received_bytes;
        task.data.reserve_exact(missing);
        let length = missing.min(burst_bytes);
        task.burst_end = task.received_bytes + length;
        task.data_sn = 0;
        let mut answer = Bhs::new(response::R2T, 0x80);
        answer.set_lun(task.lun);
        answer.set_word(16, task.tag);
        answer.set_word(20, u32::try_from(key).unwrap_or(TAG_NONE));
        answer.set_word(36, task.r2t_sn);
        // Both are at most the expected length, a u32.
        answer.set_word(40, u32::try_from(task.received_bytes).unwrap_or(u32::MAX));
        answer.set_word(44, u32::try_from(length).unwrap_or(u32::MAX));
        task.r2t_sn += 1;
        self.queue(id, answer, Bytes::new(), false);
    }

    fn data_out(&mut self, id: ConnectionId, pdu: Pdu) {
        let header = pdu.header;
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let found = session
            .tasks
            .iter()
            .find(|(tag, _)| *tag == header.task_tag())
            .map(|found| found.1);
        // The task may be answered or aborted already: what is still on its way is dropped.
        let Some(key) = found else { return };
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if task.stage != Stage::Gathering || task.aborted {
            return;
        }
        let transfer_tag = header.transfer_tag();
        let tag_fits = if task.unsolicited {
            transfer_tag == TAG_NONE
        } else {
            usize::try_from(transfer_tag) == Ok(key)
        };
        let end = task.received_bytes + pdu.data.len() - pdu.lent_bytes;
        let in_order = header.word(36) == task.data_sn
            && header.word(40) as usize == task.received_bytes
            && end <= task.burst_end
            && (task.unsolicited || !header.last() || end == task.burst_end);
        if !tag_fits || !in_order {
            return self.finish(key, Reply::sense(Sense::WRONG_AMOUNT_OF_DATA));
        }
        task.data_sn += 1;
        task.received_bytes = end;
        if task.data.is_empty() {
            task.data = pdu.data;
            task.data.truncate(task.gather_bytes);
        } else {
            let room = task.gather_bytes.saturating_sub(task.data.len());
            task.data
                .extend_from_slice(&pdu.data[..pdu.data.len().min(room)]);
        }
        if header.last() {
            if task.unsolicited {
                task.unsolicited = false;
                self.admit(id, key);
            } else {
                self.advance(key);
            }
        }
    }

    fn execute(&mut self, key: usize) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.stage = Stage::Running;
        let data = std::mem::take(&mut task.data);
        let (nexus, cdb, id) = (task.nexus, task.cdb, task.target);
        let offered = if task.writes {
            u64::from(task.expected_bytes)
        } else {
            0
        };
        let elsewhere = task.lun != [0; 8];
        let Some(target) = self.targets.get_mut(&id) else {
            return self.finish(key, Reply::sense(Sense::NO_SUCH_UNIT));
        };
        let step = if elsewhere {
            absent_unit(&cdb)
        } else {
            target.unit.start(nexus, &cdb, data, offered)
        };
        let aborted = target.unit.take_aborted();
        if !aborted.is_empty() {
            self.hold_for(key, &aborted);
        }
        self.take_step(key, step);
    }

    fn take_step(&mut self, key: usize, step: Step) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        match step {
            Step::Finished(reply) => self.finish(key, reply),
            Step::Operate(..) if task.aborted => self.forget(key),
            Step::Operate(operation, then) => {
                task.then = Some(then);
                self.requests.push((
                    task.target,
                    Request {
                        tag: key as u64,
                        operation,
                    },
                ));
            }
        }
    }

    pub(crate) fn task_completed(&mut self, key: usize, outcome: Outcome) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        let Some(then) = task.then.take() else { return };
        if task.aborted {
            return self.forget(key);
        }
        match self.targets.get_mut(&task.target) {
            Some(target) => {
                let step = target.unit.resume(then, outcome);
                self.take_step(key, step);
            }
            None => self.forget(key),
        }
    }

    /// Answer a command, unless its answer has to wait for aborted tasks.
    pub(crate) fn finish(&mut self, key: usize, reply: Reply) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if let Some((_, held)) = &mut task.held {
            *held = Some(reply);
            return;
        }
        if task.aborted {
            return self.forget(key);
        }
        if let Some(task) = self.remove_task(key) {
            if let Some(id) = task.connection {
                self.slot_free(id, task.immediate);
                self.send_reply(id, &task, reply);
                self.admit_waiting(id);
            }
            self.tell_waiters(&task.waiters);
        }
    }

    /// End a task without an answer.
    pub(crate) fn forget(&mut self, key: usize) {
        if let Some(task) = self.remove_task(key) {
            if let Some(id) = task.connection {
                self.slot_free(id, task.immediate);
                self.admit_waiting(id);
            }
            self.tell_waiters(&task.waiters);
        }
    }

    fn remove_task(&mut self, key: usize) -> Option<Task> {
        let task = self.tasks.try_remove(key)?;
        if let Some(session) = task.connection.and_then(|id| self.session_mut(id)) {
            session.tasks.retain(|(_, other)| *other != key);
            let before = session.waiting.len();
            session.waiting.retain(|other| *other != key);
            let was_waiting = session.waiting.len() < before;
            if !was_waiting {
                session.budget_used = session.budget_used.saturating_sub(task.budget);
            }
        }
        Some(task)
    }

    fn nop(&mut self, id: ConnectionId, pdu: &Pdu) {
        if pdu.header.task_tag() == TAG_NONE {
            return;
        }
        self.slot_free(id, pdu.header.immediate());
        let mut answer = Bhs::new(response::NOP_IN, 0x80);
        answer.set_lun(pdu.header.lun());
        answer.set_word(16, pdu.header.task_tag());
        answer.set_word(20, TAG_NONE);
        let most = pdu.data.len().min(self.parameters(id).peer_receive_bytes);
        let data = Bytes::copy_from_slice(&pdu.data[..most]);
        self.queue(id, answer, data, true);
    }

    /// Text requests: `SendTargets`, and the rest of a long answer.
    fn text(&mut self, id: ConnectionId, pdu: &Pdu) {
        let goes_on = pdu.header.transfer_tag() != TAG_NONE;
        self.slot_free(id, pdu.header.immediate());
        let rest = match self.connections.get_mut(id) {
            Some(connection) => std::mem::take(&mut connection.text_rest),
            None => return,
        };
        let answer = if goes_on {
            rest
        } else {
            match Pairs::parse(&pdu.data) {
                Ok(pairs) if pdu.header.last() => self.answer_text(id, &pairs),
                _ => return self.reject(id, &pdu.header, reject::PROTOCOL),
            }
        };
        self.send_text(id, &pdu.header, answer);
    }

    fn answer_text(&self, id: ConnectionId, pairs: &Pairs) -> Vec<u8> {
        let mut answers = Pairs::default();
        for (key, value) in pairs.iter() {
            match (key, value) {
                ("SendTargets", wanted) => self.send_targets(id, wanted, &mut answers),
                _ => answers.push(key, "NotUnderstood"),
            }
        }
        answers.encode()
    }

    fn send_targets(&self, id: ConnectionId, wanted: &str, answers: &mut Pairs) {
        let Some(connection) = self.connections.get(id) else {
            return;
        };
        let own = match &connection.phase {
            Phase::Full(session) => self
                .targets
                .get(&session.target)
                .map(|target| target.name.as_str()),
            _ => None,
        };
        let discovers = own.is_none();
        for target in self.targets.values() {
            let named = match wanted {
                "All" => discovers,
                "" => own == Some(&target.name),
                name => name == target.name && (discovers || own == Some(name)),
            };
            if named {
                answers.push("TargetName", target.name.clone());
                for portal in self
                    .portals
                    .iter()
                    .chain(self.portals.is_empty().then_some(&connection.portal))
                {
                    answers.push(
                        "TargetAddress",
                        format!("{portal},{}", self.portal_group_tag),
                    );
                }
            }
        }
    }

    fn send_text(&mut self, id: ConnectionId, header: &Bhs, mut answer: Vec<u8>) {
        let most = self.parameters(id).peer_receive_bytes;
        let rest = if answer.len() > most {
            answer.split_off(most)
        } else {
            Vec::new()
        };
        let flags = if rest.is_empty() { 0x80 } else { 0x40 };
        let mut reply = Bhs::new(response::TEXT, flags);
        reply.set_lun(header.lun());
        reply.set_word(16, header.task_tag());
        reply.set_word(20, if rest.is_empty() { TAG_NONE } else { 1 });
        if let Some(connection) = self.connections.get_mut(id) {
            connection.text_rest = rest;
        }
        self.queue(id, reply, Bytes::from(answer), true);
    }
}

/// Commands to a LUN that is not there (SPC-4 §6.4.2, §6.33).
fn absent_unit(cdb: &[u8; 16]) -> Step {
    match cdb[0] {
        op::INQUIRY if cdb[1] & 1 == 0 => {
            let mut data = inquiry::absent();
            data.truncate(usize::from(u16::from_be_bytes([cdb[3], cdb[4]])));
            Step::Finished(Reply::data(data))
        }
        op::REPORT_LUNS => report_luns(cdb),
        op::REQUEST_SENSE => {
            let mut data = Sense::NO_SUCH_UNIT.encode(cdb[1] & 1 != 0);
            data.truncate(usize::from(cdb[4]));
            Step::Finished(Reply::data(data))
        }
        _ => Sense::NO_SUCH_UNIT.into(),
    }
}
