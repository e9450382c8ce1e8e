//! Task management, logout and whoever waits for writes to land (RFC 7143 §11.5, §11.14; SAM-5 §7).

use crate::pdu::{Bhs, reject, response};
use crate::server::{ConnectionId, Done, Server, Stage, TargetId, Wait};
use crate::unit::Nexus;
use bytes::Bytes;

/// Functions (RFC 7143 §11.5.1).
mod function {
    pub const ABORT_TASK: u8 = 1;
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LUN_RESET: u8 = 5;
    pub const WARM_RESET: u8 = 6;
    pub const COLD_RESET: u8 = 7;
}

/// Answers (RFC 7143 §11.6.1).
mod answer {
    pub const COMPLETE: u8 = 0;
    pub const NO_TASK: u8 = 1;
    pub const NO_LUN: u8 = 2;
    pub const NOT_SUPPORTED: u8 = 5;
}

impl Server {
    pub(crate) fn task_management(&mut self, id: ConnectionId, header: &Bhs) {
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let (target, nexus) = (session.target, session.nexus);
        let wanted = header.flags() & 0x7f;
        let (tag, immediate) = (header.task_tag(), header.immediate());
        let at_lun = matches!(
            wanted,
            function::ABORT_TASK
                | function::ABORT_TASK_SET
                | function::CLEAR_TASK_SET
                | function::LUN_RESET
        );
        if at_lun && header.lun() != [0; 8] {
            return self.answer_management(id, nexus, tag, immediate, answer::NO_LUN);
        }
        let victims = match wanted {
            function::ABORT_TASK => {
                let referenced = header.word(20);
                match session.tasks.iter().find(|(tag, _)| *tag == referenced) {
                    Some((_, key)) => vec![*key],
                    None => {
                        return self.answer_management(id, nexus, tag, immediate, answer::NO_TASK);
                    }
                }
            }
            function::ABORT_TASK_SET => session.tasks.iter().map(|(_, key)| *key).collect(),
            function::CLEAR_TASK_SET => {
                let victims = self.tasks_of(target, None);
                self.tell_cleared(target, nexus, &victims);
                victims
            }
            function::LUN_RESET | function::WARM_RESET | function::COLD_RESET => {
                if let Some(target) = self.targets.get_mut(&target) {
                    target.unit.reset();
                }
                self.tasks_of(target, None)
            }
            _ => return self.answer_management(id, nexus, tag, immediate, answer::NOT_SUPPORTED),
        };
        let cold = wanted == function::COLD_RESET;
        let done = Done::TaskManagement {
            connection: id,
            nexus,
            tag,
            immediate,
            cold,
        };
        let wait = self.waits.insert(Wait { remaining: 1, done });
        for key in victims {
            self.abort_task(key, Some(wait));
        }
        self.wait_over(wait);
    }

    fn tasks_of(&self, target: TargetId, nexus: Option<Nexus>) -> Vec<usize> {
        self.tasks
            .iter()
            .filter(|(_, task)| {
                task.target == target && nexus.is_none_or(|nexus| task.nexus == nexus)
            })
            .map(|(key, _)| key)
            .collect()
    }

    fn tell_cleared(&mut self, target: TargetId, by: Nexus, victims: &[usize]) {
        let mut others: Vec<Nexus> = victims
            .iter()
            .filter_map(|key| self.tasks.get(*key))
            .map(|task| task.nexus)
            .collect();
        others.retain(|nexus| *nexus != by);
        others.sort_unstable();
        others.dedup();
        if let Some(target) = self.targets.get_mut(&target) {
            for nexus in others {
                target.unit.tell_cleared(nexus);
            }
        }
    }

    /// End a task: at once when the engine does not hold it, otherwise when its operation has
    /// landed; `wait` counts it until then.
    pub(crate) fn abort_task(&mut self, key: usize, wait: Option<usize>) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        task.aborted = true;
        if task.stage == Stage::Running && (task.then.is_some() || task.held.is_some()) {
            if let Some(wait) = wait {
                task.waiters.push(wait);
                if let Some(wait) = self.waits.get_mut(wait) {
                    wait.remaining += 1;
                }
            }
        } else {
            self.forget(key);
        }
    }

    /// PREEMPT AND ABORT: hold the command's answer until the tasks of `nexuses` have ended.
    pub(crate) fn hold_for(&mut self, key: usize, nexuses: &[Nexus]) {
        let Some(target) = self.tasks.get(key).map(|task| task.target) else {
            return;
        };
        let wait = self.waits.insert(Wait {
            remaining: 1,
            done: Done::Task(key),
        });
        if let Some(task) = self.tasks.get_mut(key) {
            task.held = Some((wait, None));
        }
        for nexus in nexuses {
            for victim in self.tasks_of(target, Some(*nexus)) {
                if victim != key {
                    self.abort_task(victim, Some(wait));
                }
            }
        }
        // Our own count is taken back by the command's answer: see `release_held`.
        self.wait_over(wait);
    }

    /// One of those waited for is over.
    pub(crate) fn wait_over(&mut self, key: usize) {
        let Some(wait) = self.waits.get_mut(key) else {
            return;
        };
        wait.remaining = wait.remaining.saturating_sub(1);
        if wait.remaining > 0 {
            return;
        }
        let wait = self.waits.remove(key);
        match wait.done {
            Done::TaskManagement {
                connection,
                nexus,
                tag,
                immediate,
                cold,
            } => {
                self.answer_management(connection, nexus, tag, immediate, answer::COMPLETE);
                if cold {
                    self.close_target(connection);
                }
            }
            Done::Logout {
                connection,
                nexus,
                tag,
            } => self.answer_logout(connection, nexus, tag, 0),
            Done::Login {
                connection,
                header,
                reply,
            } => self.establish(connection, &header, &reply),
            Done::Task(task) => self.release_held(task),
        }
    }

    pub(crate) fn tell_waiters(&mut self, waiters: &[usize]) {
        for wait in waiters {
            self.wait_over(*wait);
        }
    }

    fn release_held(&mut self, key: usize) {
        let Some(task) = self.tasks.get_mut(key) else {
            return;
        };
        if let Some((_, Some(reply))) = task.held.take() {
            self.finish(key, reply);
        }
    }

    /// TARGET COLD RESET ends every session of the target (RFC 7143 §11.5.1).
    fn close_target(&mut self, id: ConnectionId) {
        let Some(target) = self.session_mut(id).map(|session| session.target) else {
            return;
        };
        for connection in self.connections_of(target) {
            self.end_session(connection, None);
            self.begin_close(connection);
        }
    }

    /// True when the connection still carries this nexus: ids of connections are used again.
    fn still(&mut self, id: ConnectionId, nexus: Nexus) -> bool {
        self.session_mut(id)
            .is_some_and(|session| session.nexus == nexus)
    }

    fn answer_management(
        &mut self,
        id: ConnectionId,
        nexus: Nexus,
        tag: u32,
        immediate: bool,
        code: u8,
    ) {
        if !self.still(id, nexus) {
            return;
        }
        self.slot_free(id, immediate);
        let mut reply = Bhs::new(response::TASK_MANAGEMENT, 0x80);
        reply.0[2] = code;
        reply.set_word(16, tag);
        self.queue(id, reply, Bytes::new(), true);
    }

    pub(crate) fn logout(&mut self, id: ConnectionId, header: &Bhs) {
        let tag = header.task_tag();
        let reason = header.flags() & 0x7f;
        let Some(session) = self.session_mut(id) else {
            return self.send_logout(id, tag, 0);
        };
        let nexus = session.nexus;
        if reason > 1 {
            // Recovery needs a level we do not offer: 2, "connection recovery not supported".
            self.slot_free(id, header.immediate());
            if reason > 2 {
                return self.reject(id, header, reject::INVALID_FIELD);
            }
            return self.answer_logout(id, nexus, tag, 2);
        }
        let victims: Vec<usize> = session.tasks.iter().map(|(_, key)| *key).collect();
        let done = Done::Logout {
            connection: id,
            nexus,
            tag,
        };
        let wait = self.waits.insert(Wait { remaining: 1, done });
        for key in victims {
            self.abort_task(key, Some(wait));
        }
        self.wait_over(wait);
    }

    fn answer_logout(&mut self, id: ConnectionId, nexus: Nexus, tag: u32, code: u8) {
        if self.still(id, nexus) {
            self.send_logout(id, tag, code);
        }
    }

    fn send_logout(&mut self, id: ConnectionId, tag: u32, code: u8) {
        let mut reply = Bhs::new(response::LOGOUT, 0x80);
        reply.0[2] = code;
        reply.set_word(16, tag);
        self.queue(id, reply, Bytes::new(), true);
        if code == 0 {
            self.end_session(id, None);
            self.begin_close(id);
        }
    }
}
