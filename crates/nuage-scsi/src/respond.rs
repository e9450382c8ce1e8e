//! Building what the target sends: numbers, data, status, rejects.

use crate::pdu::{BHS_BYTES, Bhs, TAG_NONE, response};
use crate::server::{ConnectionId, Server, Task};
use crate::unit::{Reply, status};
use bytes::Bytes;

/// Begins the names of virtual machines as initiators (`vnode/arguments.py`).
const MACHINES: &str = "iqn.2026-01.org.nuage:vm:";
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;

/// Residual of a command (RFC 7143 §11.4.5): flag bits and count.
fn residual(task: &Task, reply: &Reply) -> (u8, u32) {
    let expected = u64::from(if task.reads || task.writes {
        task.expected_bytes
    } else {
        0
    });
    let actual = if task.writes || task.wanted_bytes > 0 {
        if reply.status == status::GOOD {
            task.wanted_bytes
        } else {
            expected
        }
    } else {
        reply.data.len() as u64
    };
    let count = |difference: u64| u32::try_from(difference).unwrap_or(u32::MAX);
    match actual.cmp(&expected) {
        std::cmp::Ordering::Equal => (0, 0),
        std::cmp::Ordering::Less => (UNDERFLOW, count(expected - actual)),
        std::cmp::Ordering::Greater => (OVERFLOW, count(actual - expected)),
    }
}

impl Server {
    /// Stamp the sequence numbers and queue a PDU. `status`: it carries a StatSN of its own.
    pub(crate) fn queue(&mut self, id: ConnectionId, mut header: Bhs, data: Bytes, status: bool) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        header.set_word(24, connection.status_sn);
        header.set_word(28, connection.expected_command_sn);
        header.set_word(32, connection.command_sn_max);
        if status {
            connection.status_sn = connection.status_sn.wrapping_add(1);
        }
        connection.output.push(header, data);
        self.touch(id);
    }

    pub(crate) fn reject(&mut self, id: ConnectionId, header: &Bhs, reason: u8) {
        let mut answer = Bhs::new(response::REJECT, 0x80);
        answer.0[2] = reason;
        answer.set_word(16, TAG_NONE);
        self.queue(
            id,
            answer,
            Bytes::copy_from_slice(&header.0[..BHS_BYTES]),
            true,
        );
    }

    /// Send data and status of a command.
    pub(crate) fn send_reply(&mut self, id: ConnectionId, task: &Task, reply: Reply) {
        let (residual_flag, residual_count) = residual(task, &reply);
        let descriptors = self
            .targets
            .get(&task.target)
            .is_some_and(|target| target.unit.modes.descriptor_sense);
        let mut pdu_count = task.r2t_sn;
        let limit = if task.reads {
            task.expected_bytes as usize
        } else {
            0
        };
        let mut data = Bytes::from(reply.data);
        data.truncate(limit);
        if !data.is_empty() {
            let ends = reply.status == status::GOOD;
            let last = ends.then_some((residual_flag, residual_count));
            pdu_count += self.send_data(id, task.tag, &data, last);
            if ends {
                return;
            }
        }
        let mut answer = Bhs::new(response::SCSI, 0x80 | residual_flag);
        answer.0[3] = reply.status;
        answer.set_word(16, task.tag);
        answer.set_word(36, pdu_count);
        answer.set_word(44, residual_count);
        let waits = self.is_of_machine(id);
        let sense = match reply.sense {
            None => Bytes::new(),
            Some(sense) => {
                let sense = if waits { sense.waited_for() } else { sense };
                let bytes = sense.encode(descriptors);
                let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
                let mut data = length.to_be_bytes().to_vec();
                data.extend_from_slice(&bytes);
                Bytes::from(data)
            }
        };
        self.queue(id, answer, sense, true);
    }

    fn is_of_machine(&mut self, id: ConnectionId) -> bool {
        self.session_mut(id)
            .is_some_and(|session| session.port.initiator.starts_with(MACHINES))
    }

    /// Data-In PDUs; the last carries GOOD status and its residual (RFC 7143 §11.7.4). Gives the
    /// number of PDUs.
    fn send_data(
        &mut self,
        id: ConnectionId,
        tag: u32,
        data: &Bytes,
        last: Option<(u8, u32)>,
    ) -> u32 {
        let Some(session) = self.session_mut(id) else {
            return 0;
        };
        let piece_bytes = session
            .parameters
            .peer_receive_bytes
            .min(session.parameters.burst_bytes);
        let burst_bytes = session.parameters.burst_bytes;
        let (mut offset, mut number, mut in_burst) = (0, 0_u32, 0);
        while offset < data.len() {
            let length = piece_bytes
                .min(data.len() - offset)
                .min(burst_bytes - in_burst);
            let ends = offset + length == data.len();
            in_burst += length;
            let burst_ends = in_burst == burst_bytes;
            let mut answer = Bhs::new(response::DATA_IN, if ends || burst_ends { 0x80 } else { 0 });
            let mut carries_status = false;
            if let Some((flag, count)) = last.filter(|_| ends) {
                carries_status = true;
                answer.0[1] |= 0x01 | flag;
                answer.0[3] = status::GOOD;
                answer.set_word(44, count);
            }
            answer.set_word(16, tag);
            answer.set_word(20, TAG_NONE);
            answer.set_word(36, number);
            answer.set_word(40, u32::try_from(offset).unwrap_or(u32::MAX));
            self.queue(
                id,
                answer,
                data.slice(offset..offset + length),
                carries_status,
            );
            offset += length;
            number += 1;
            if burst_ends {
                in_burst = 0;
            }
        }
        number
    }
}
