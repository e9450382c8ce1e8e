//! The commands of the disk: one table from which dispatch, reservations and REPORT SUPPORTED
//! OPERATION CODES (SPC-4 §6.35) all read.

/// What a reservation of somebody else lets through (SPC-4 table 62, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Answered whatever is reserved.
    Always,
    /// Reads the medium: refused by exclusive access only.
    Reads,
    /// Changes the medium or its modes: refused by every reservation.
    Writes,
    /// Decides for itself (reservation commands).
    Own,
}

/// One row: opcode, service action, command length with usage bits after the opcode byte.
#[derive(Debug)]
pub struct Command {
    pub opcode: u8,
    /// `Some`: the five bits of byte 1 that select among commands of one opcode.
    pub service_action: Option<u8>,
    pub class: Class,
    /// CDB usage data: a 1 bit is evaluated (SPC-4 §6.35.3); its length is the command's.
    pub usage: &'static [u8],
}

const fn row(opcode: u8, class: Class, usage: &'static [u8]) -> Command {
    Command {
        opcode,
        service_action: None,
        class,
        usage,
    }
}

const fn action(opcode: u8, service_action: u8, class: Class, usage: &'static [u8]) -> Command {
    Command {
        opcode,
        service_action: Some(service_action),
        class,
        usage,
    }
}

pub const TEST_UNIT_READY: u8 = 0x00;
pub const REQUEST_SENSE: u8 = 0x03;
pub const READ_6: u8 = 0x08;
pub const WRITE_6: u8 = 0x0a;
pub const INQUIRY: u8 = 0x12;
pub const MODE_SELECT_6: u8 = 0x15;
pub const RESERVE_6: u8 = 0x16;
pub const RELEASE_6: u8 = 0x17;
pub const MODE_SENSE_6: u8 = 0x1a;
pub const START_STOP: u8 = 0x1b;
pub const PREVENT_ALLOW: u8 = 0x1e;
pub const READ_CAPACITY_10: u8 = 0x25;
pub const READ_10: u8 = 0x28;
pub const WRITE_10: u8 = 0x2a;
pub const WRITE_VERIFY_10: u8 = 0x2e;
pub const VERIFY_10: u8 = 0x2f;
pub const PREFETCH_10: u8 = 0x34;
pub const SYNCHRONIZE_10: u8 = 0x35;
pub const READ_DEFECT_10: u8 = 0x37;
pub const WRITE_SAME_10: u8 = 0x41;
pub const UNMAP: u8 = 0x42;
pub const MODE_SELECT_10: u8 = 0x55;
pub const MODE_SENSE_10: u8 = 0x5a;
pub const PERSISTENT_IN: u8 = 0x5e;
pub const PERSISTENT_OUT: u8 = 0x5f;
pub const READ_16: u8 = 0x88;
pub const COMPARE_AND_WRITE: u8 = 0x89;
pub const WRITE_16: u8 = 0x8a;
pub const ORWRITE_16: u8 = 0x8b;
pub const WRITE_VERIFY_16: u8 = 0x8e;
pub const VERIFY_16: u8 = 0x8f;
pub const PREFETCH_16: u8 = 0x90;
pub const SYNCHRONIZE_16: u8 = 0x91;
pub const WRITE_SAME_16: u8 = 0x93;
pub const WRITE_ATOMIC_16: u8 = 0x9c;
pub const SERVICE_IN_16: u8 = 0x9e;
pub const REPORT_LUNS: u8 = 0xa0;
pub const MAINTENANCE_IN: u8 = 0xa3;
pub const READ_12: u8 = 0xa8;
pub const WRITE_12: u8 = 0xaa;
pub const WRITE_VERIFY_12: u8 = 0xae;
pub const VERIFY_12: u8 = 0xaf;
pub const READ_DEFECT_12: u8 = 0xb7;

/// Service actions of SERVICE ACTION IN(16) and MAINTENANCE IN.
pub const READ_CAPACITY_16: u8 = 0x10;
pub const GET_LBA_STATUS: u8 = 0x12;
pub const REPORT_PORT_GROUPS: u8 = 0x0a;
pub const REPORT_OPCODES: u8 = 0x0c;
pub const REPORT_TASK_FUNCTIONS: u8 = 0x0d;

const U6: &[u8] = &[0x08, 0x1f, 0xff, 0xff, 0xff, 0x04];
/// PERSISTENT RESERVE IN: service action, allocation length.
const U_PRIN: &[u8] = &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04];
const U_PROUT: &[u8] = &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04];

macro_rules! cdb10 {
    ($op:literal, $flags:literal) => {
        &[$op, $flags, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0x04]
    };
}
macro_rules! cdb12 {
    ($op:literal, $flags:literal) => {
        &[
            $op, $flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0x04,
        ]
    };
}
macro_rules! cdb16 {
    ($op:literal, $flags:literal) => {
        &[
            $op, $flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0x3f, 0x04,
        ]
    };
}

/// Every command of the disk, in the order that REPORT SUPPORTED OPERATION CODES gives them.
pub const COMMANDS: &[Command] = &[
    row(TEST_UNIT_READY, Class::Always, &[0x00, 0, 0, 0, 0, 0x04]),
    row(
        REQUEST_SENSE,
        Class::Always,
        &[0x03, 0x01, 0, 0, 0xff, 0x04],
    ),
    row(READ_6, Class::Reads, U6),
    row(
        WRITE_6,
        Class::Writes,
        &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0x04],
    ),
    row(
        INQUIRY,
        Class::Always,
        &[0x12, 0x01, 0xff, 0xff, 0xff, 0x04],
    ),
    row(
        MODE_SELECT_6,
        Class::Writes,
        &[0x15, 0x11, 0, 0, 0xff, 0x04],
    ),
    row(RESERVE_6, Class::Own, &[0x16, 0, 0, 0, 0, 0x04]),
    row(RELEASE_6, Class::Own, &[0x17, 0, 0, 0, 0, 0x04]),
    row(
        MODE_SENSE_6,
        Class::Reads,
        &[0x1a, 0x08, 0xff, 0xff, 0xff, 0x04],
    ),
    row(
        START_STOP,
        Class::Writes,
        &[0x1b, 0x01, 0, 0x0f, 0xf7, 0x04],
    ),
    row(PREVENT_ALLOW, Class::Writes, &[0x1e, 0, 0, 0, 0x03, 0x04]),
    row(
        READ_CAPACITY_10,
        Class::Always,
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0x04],
    ),
    row(READ_10, Class::Reads, cdb10!(0x28, 0xf8)),
    row(WRITE_10, Class::Writes, cdb10!(0x2a, 0xf8)),
    row(WRITE_VERIFY_10, Class::Writes, cdb10!(0x2e, 0xf2)),
    row(VERIFY_10, Class::Reads, cdb10!(0x2f, 0xf6)),
    row(PREFETCH_10, Class::Reads, cdb10!(0x34, 0x02)),
    row(SYNCHRONIZE_10, Class::Writes, cdb10!(0x35, 0x02)),
    row(
        READ_DEFECT_10,
        Class::Reads,
        &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04],
    ),
    row(WRITE_SAME_10, Class::Writes, cdb10!(0x41, 0xe0)),
    row(
        UNMAP,
        Class::Writes,
        &[0x42, 0x01, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0x04],
    ),
    row(
        MODE_SELECT_10,
        Class::Writes,
        &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04],
    ),
    row(
        MODE_SENSE_10,
        Class::Reads,
        &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04],
    ),
    action(PERSISTENT_IN, 0x00, Class::Own, U_PRIN),
    action(PERSISTENT_IN, 0x01, Class::Own, U_PRIN),
    action(PERSISTENT_IN, 0x02, Class::Own, U_PRIN),
    action(PERSISTENT_IN, 0x03, Class::Own, U_PRIN),
    action(PERSISTENT_OUT, 0x00, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x01, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x02, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x03, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x04, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x05, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x06, Class::Own, U_PROUT),
    action(PERSISTENT_OUT, 0x07, Class::Own, U_PROUT),
    row(READ_16, Class::Reads, cdb16!(0x88, 0xf8)),
    row(
        COMPARE_AND_WRITE,
        Class::Writes,
        &[
            0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x3f, 0x04,
        ],
    ),
    row(WRITE_16, Class::Writes, cdb16!(0x8a, 0xf8)),
    row(ORWRITE_16, Class::Writes, cdb16!(0x8b, 0xf8)),
    row(WRITE_VERIFY_16, Class::Writes, cdb16!(0x8e, 0xf2)),
    row(VERIFY_16, Class::Reads, cdb16!(0x8f, 0xf6)),
    row(PREFETCH_16, Class::Reads, cdb16!(0x90, 0x02)),
    row(SYNCHRONIZE_16, Class::Writes, cdb16!(0x91, 0x02)),
    row(WRITE_SAME_16, Class::Writes, cdb16!(0x93, 0xf9)),
    row(
        WRITE_ATOMIC_16,
        Class::Writes,
        &[
            0x9c, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff, 0x3f,
            0x04,
        ],
    ),
    action(
        SERVICE_IN_16,
        READ_CAPACITY_16,
        Class::Always,
        &[
            0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        SERVICE_IN_16,
        GET_LBA_STATUS,
        Class::Reads,
        cdb16!(0x9e, 0x1f),
    ),
    row(
        REPORT_LUNS,
        Class::Always,
        &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
    ),
    action(
        MAINTENANCE_IN,
        REPORT_PORT_GROUPS,
        Class::Always,
        &[0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
    ),
    action(
        MAINTENANCE_IN,
        REPORT_OPCODES,
        Class::Always,
        &[
            0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        MAINTENANCE_IN,
        REPORT_TASK_FUNCTIONS,
        Class::Always,
        &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04],
    ),
    row(READ_12, Class::Reads, cdb12!(0xa8, 0xf8)),
    row(WRITE_12, Class::Writes, cdb12!(0xaa, 0xf8)),
    row(WRITE_VERIFY_12, Class::Writes, cdb12!(0xae, 0xf2)),
    row(VERIFY_12, Class::Reads, cdb12!(0xaf, 0xf6)),
    row(
        READ_DEFECT_12,
        Class::Reads,
        &[
            0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
];

/// The row of a command, by opcode and, where the opcode has them, service action.
pub fn find(cdb: &[u8; 16]) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| {
        command.opcode == cdb[0]
            && command
                .service_action
                .is_none_or(|wanted| wanted == cdb[1] & 0x1f)
    })
}

/// REPORT SUPPORTED OPERATION CODES; `None`: a field of the CDB is refused.
pub fn report(cdb: &[u8; 16]) -> Option<Vec<u8>> {
    let with_timeouts = cdb[2] & 0x80 != 0;
    let action_bits = u16::from_be_bytes([cdb[4], cdb[5]]);
    let opcode = cdb[3];
    let known = COMMANDS.iter().any(|command| command.opcode == opcode);
    let has_actions = COMMANDS
        .iter()
        .any(|command| command.opcode == opcode && command.service_action.is_some());
    match cdb[2] & 7 {
        0 => return Some(report_all(with_timeouts)),
        1 if has_actions => return None,
        2 if known && !has_actions => return None,
        1..=3 => {}
        _ => return None,
    }
    let found = COMMANDS.iter().find(|command| {
        command.opcode == opcode
            && command
                .service_action
                .is_none_or(|wanted| u16::from(wanted) == action_bits)
    });
    let mut bytes = vec![0; 4];
    match found {
        None => bytes[1] = 0x01,
        Some(command) => {
            bytes[1] = 0x03 | if with_timeouts { 0x80 } else { 0 };
            bytes[2..4].copy_from_slice(&length_u16(command.usage.len()));
            let mut usage = command.usage.to_vec();
            if let Some(service_action) = command.service_action {
                usage[1] = usage[1] & 0xe0 | service_action;
            }
            bytes.extend_from_slice(&usage);
            if with_timeouts {
                bytes.extend_from_slice(&timeouts());
            }
        }
    }
    Some(bytes)
}

fn report_all(with_timeouts: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for command in COMMANDS {
        let mut descriptor = [0; 8];
        descriptor[0] = command.opcode;
        if let Some(service_action) = command.service_action {
            descriptor[3] = service_action;
            descriptor[5] |= 0x01;
        }
        if with_timeouts {
            descriptor[5] |= 0x02;
        }
        descriptor[6..8].copy_from_slice(&length_u16(command.usage.len()));
        bytes.extend_from_slice(&descriptor);
        if with_timeouts {
            bytes.extend_from_slice(&timeouts());
        }
    }
    let total = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&total.to_be_bytes());
    bytes
}

/// Command timeouts descriptor (SPC-4 §6.35.4): zeros, "no indication".
fn timeouts() -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = 0x0a;
    bytes
}

fn length_u16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_starts_with_its_opcode_and_has_its_group_length() {
        for command in COMMANDS {
            assert_eq!(command.usage[0], command.opcode);
            let length = match command.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(command.usage.len(), length, "opcode {:#x}", command.opcode);
        }
    }
}
