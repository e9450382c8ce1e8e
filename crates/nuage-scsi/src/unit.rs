//! The logical unit: one volume as a SCSI disk (SPC-4, SBC-3).
//!
//! A command becomes a [`Step`]: either its answer, or one operation for the engine and what to do
//! with the outcome. The unit knows no wire: nexuses are numbers with a port name.

use crate::block::{self, Then};
use crate::inquiry;
use crate::mode::{self, Modes};
use crate::opcodes::{self as op, Class};
use crate::reservation::{Port, Refused, Reservations};
use crate::sense::{Sense, key};
use nuage_block::{Buffer, Geometry, Operation, Outcome};
use std::collections::BTreeMap;

/// An I_T nexus, never reused.
pub type Nexus = u64;

/// Unit attentions kept for one nexus; further ones would tell nothing new.
const ATTENTIONS_MAX: usize = 8;

/// SCSI status codes (SAM-5 §5.3.1).
pub mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_SET_FULL: u8 = 0x28;
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u8,
    pub sense: Option<Sense>,
    pub data: Vec<u8>,
}

impl Reply {
    pub const fn status(status: u8) -> Self {
        Self {
            status,
            sense: None,
            data: Vec::new(),
        }
    }

    pub const fn good() -> Self {
        Self::status(status::GOOD)
    }

    pub const fn data(data: Vec<u8>) -> Self {
        Self {
            status: status::GOOD,
            sense: None,
            data,
        }
    }

    pub const fn sense(sense: Sense) -> Self {
        Self {
            status: status::CHECK_CONDITION,
            sense: Some(sense),
            data: Vec::new(),
        }
    }
}

/// What to do next for a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Finished(Reply),
    /// Give the operation to the engine and its outcome to [`LogicalUnit::resume`].
    Operate(Operation, Then),
}

impl From<Sense> for Step {
    fn from(sense: Sense) -> Self {
        Step::Finished(Reply::sense(sense))
    }
}

/// How initiators know the unit's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub target_name: String,
    pub portal_group_tag: u16,
    pub relative_port: u16,
}

/// Asymmetric access states (SPC-4 §5.15.2), as REPORT TARGET PORT GROUPS codes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessState {
    Optimized = 0x0,
    NonOptimized = 0x1,
    Standby = 0x2,
    Unavailable = 0x3,
    Transitioning = 0xf,
}

/// One target port group: an IO-node that has paths to the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGroup {
    pub id: u16,
    pub state: AccessState,
    pub ports: Vec<u16>,
}

/// The groups of a unit, given from outside; empty: no ALUA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alua {
    pub own_group: u16,
    pub groups: Vec<PortGroup>,
}

impl Alua {
    fn own_state(&self) -> AccessState {
        self.groups
            .iter()
            .find(|group| group.id == self.own_group)
            .map_or(AccessState::Optimized, |group| group.state)
    }
}

#[derive(Debug)]
struct NexusState {
    port: Port,
    attentions: Vec<Sense>,
}

/// A volume as a disk.
#[derive(Debug)]
pub struct LogicalUnit {
    pub(crate) geometry: Geometry,
    pub(crate) identity: Identity,
    pub(crate) modes: Modes,
    alua: Alua,
    nexuses: BTreeMap<Nexus, NexusState>,
    reservations: Reservations,
    /// RESERVE(6): the old kind, lost with its nexus.
    reserved: Option<Nexus>,
    /// Nexuses whose tasks a PREEMPT AND ABORT ended, for the transport to collect.
    aborted: Vec<Nexus>,
}

/// Cut an answer to the allocation length.
pub(crate) fn cut(mut data: Vec<u8>, allocation: usize) -> Step {
    data.truncate(allocation);
    Step::Finished(Reply::data(data))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

impl LogicalUnit {
    pub fn new(geometry: Geometry, identity: Identity) -> Self {
        Self {
            geometry,
            identity,
            modes: Modes::default(),
            alua: Alua::default(),
            nexuses: BTreeMap::new(),
            reservations: Reservations::default(),
            reserved: None,
            aborted: Vec::new(),
        }
    }

    /// Take what `Operation::LoadReservations` gave; false when it is damaged.
    pub fn load_reservations(&mut self, state: &[u8], power_loss: bool) -> bool {
        match Reservations::decode(state, power_loss) {
            Some(reservations) => {
                self.reservations = reservations;
                true
            }
            None => state.is_empty(),
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The volume grew or its write cache changed: initiators hear of it once each.
    pub fn set_geometry(&mut self, geometry: Geometry) {
        if geometry.size_bytes != self.geometry.size_bytes {
            self.tell_all(Sense::UA_CAPACITY_CHANGED);
        } else if geometry != self.geometry {
            self.tell_all(Sense::UA_MODE_CHANGED);
        }
        self.geometry = geometry;
    }

    pub fn set_alua(&mut self, alua: Alua) {
        if alua != self.alua {
            self.alua = alua;
            self.tell_all(Sense::UA_ALUA_CHANGED);
        }
    }

    /// A session begins.
    pub fn attach(&mut self, nexus: Nexus, port: Port) {
        self.nexuses.insert(
            nexus,
            NexusState {
                port,
                attentions: vec![Sense::UA_POWER_ON],
            },
        );
    }

    /// A session is gone: its RESERVE(6) with it, its registrations stay.
    pub fn detach(&mut self, nexus: Nexus) {
        self.nexuses.remove(&nexus);
        if self.reserved == Some(nexus) {
            self.reserved = None;
        }
    }

    /// LOGICAL UNIT RESET (SAM-5 §6.3.3): every nexus hears of it, also the one that asked.
    pub fn reset(&mut self) {
        self.reserved = None;
        self.modes = Modes::default();
        self.tell_all(Sense::UA_DEVICE_RESET);
    }

    /// Tell a nexus that somebody else ended its tasks.
    pub fn tell_cleared(&mut self, nexus: Nexus) {
        if let Some(state) = self.nexuses.get_mut(&nexus) {
            push_attention(&mut state.attentions, Sense::UA_COMMANDS_CLEARED);
        }
    }

    fn tell_all(&mut self, sense: Sense) {
        for state in self.nexuses.values_mut() {
            push_attention(&mut state.attentions, sense);
        }
    }

    /// Nexuses whose tasks must end before the PREEMPT AND ABORT that named them is answered.
    pub fn take_aborted(&mut self) -> Vec<Nexus> {
        std::mem::take(&mut self.aborted)
    }

    /// Bytes that a command wants from the initiator.
    pub fn data_out_bytes(&self, cdb: &[u8; 16]) -> u64 {
        match cdb[0] {
            op::MODE_SELECT_6 => u64::from(cdb[4]),
            op::MODE_SELECT_10 | op::UNMAP => u64::from(be16(cdb, 7)),
            op::PERSISTENT_OUT => u64::from(be32(cdb, 5)),
            _ => block::data_out_bytes(cdb, self.geometry.logical_block_bytes),
        }
    }

    /// Begin a command. `data` is what the initiator sent for it, at most what the command wants;
    /// `offered_bytes` is what the initiator said it would send.
    pub fn start(
        &mut self,
        nexus: Nexus,
        cdb: &[u8; 16],
        data: Buffer,
        offered_bytes: u64,
    ) -> Step {
        let exempt = matches!(cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE);
        let Some(state) = self.nexuses.get_mut(&nexus) else {
            return Sense::NO_SUCH_UNIT.into();
        };
        if !exempt && !state.attentions.is_empty() {
            return state.attentions.remove(0).into();
        }
        let Some(command) = op::find(cdb) else {
            let known = op::COMMANDS.iter().any(|command| command.opcode == cdb[0]);
            return if known {
                Sense::cdb_field(1)
            } else {
                Sense::INVALID_OPCODE
            }
            .into();
        };
        if let Some(sense) = self.wrong_path(cdb, command.class) {
            return sense.into();
        }
        if self.reserved_for_another(nexus, cdb, command.class) {
            return Step::Finished(Reply::status(status::RESERVATION_CONFLICT));
        }
        if block::wants_exact(cdb[0]) && offered_bytes != self.data_out_bytes(cdb) {
            return Sense::cdb_field(block::length_field(cdb[0])).into();
        }
        self.dispatch(nexus, cdb, data)
    }

    /// Go on with a command once the engine has answered.
    pub fn resume(&mut self, then: Then, outcome: Outcome) -> Step {
        block::resume(self, then, outcome)
    }

    /// On a standby or unavailable path only commands about the target itself are answered
    /// (SPC-4 §5.15.2.4), and the capacity: hosts would take the disk for an empty one. Whose
    /// reservations hold is known where the volume is led.
    fn wrong_path(&self, cdb: &[u8; 16], class: Class) -> Option<Sense> {
        let sense = match self.alua.own_state() {
            AccessState::Optimized | AccessState::NonOptimized => return None,
            AccessState::Standby => Sense::STANDBY,
            AccessState::Unavailable => Sense::PORT_UNAVAILABLE,
            AccessState::Transitioning => Sense::TRANSITION,
        };
        let answered = matches!(
            cdb[0],
            op::INQUIRY
                | op::REPORT_LUNS
                | op::REQUEST_SENSE
                | op::MAINTENANCE_IN
                | op::MODE_SENSE_6
                | op::MODE_SENSE_10
                | op::READ_CAPACITY_10
        ) || (cdb[0] == op::SERVICE_IN_16 && cdb[1] & 0x1f == op::READ_CAPACITY_16);
        if answered && class != Class::Writes {
            None
        } else {
            Some(sense)
        }
    }

    fn reserved_for_another(&self, nexus: Nexus, cdb: &[u8; 16], class: Class) -> bool {
        let allows_removal = cdb[0] == op::PREVENT_ALLOW && cdb[4] & 3 == 0;
        if let Some(owner) = self.reserved {
            let answered = matches!(
                cdb[0],
                op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE | op::RELEASE_6
            );
            return owner != nexus && !answered && !allows_removal;
        }
        let Some(state) = self.nexuses.get(&nexus) else {
            return false;
        };
        match class {
            Class::Always | Class::Own => false,
            Class::Reads => self.reservations.conflicts(&state.port, false),
            Class::Writes => !allows_removal && self.reservations.conflicts(&state.port, true),
        }
    }

    fn dispatch(&mut self, nexus: Nexus, cdb: &[u8; 16], data: Buffer) -> Step {
        match cdb[0] {
            op::TEST_UNIT_READY | op::START_STOP | op::PREVENT_ALLOW => {
                Step::Finished(Reply::good())
            }
            op::REQUEST_SENSE => self.request_sense(nexus, cdb),
            op::INQUIRY => self.inquiry(cdb),
            op::MODE_SENSE_6 | op::MODE_SENSE_10 => {
                let allocation = if cdb[0] == op::MODE_SENSE_6 {
                    u16::from(cdb[4])
                } else {
                    be16(cdb, 7)
                };
                match mode::sense(cdb, self.modes, &self.geometry) {
                    Ok(bytes) => cut(bytes, usize::from(allocation)),
                    Err(sense) => sense.into(),
                }
            }
            op::MODE_SELECT_6 | op::MODE_SELECT_10 => self.mode_select(nexus, cdb, &data),
            op::RESERVE_6 | op::RELEASE_6 => self.reserve_6(nexus, cdb[0] == op::RESERVE_6),
            op::PERSISTENT_IN => {
                match self
                    .reservations
                    .report(cdb[1] & 0x1f, self.identity.relative_port)
                {
                    Some(bytes) => cut(bytes, usize::from(be16(cdb, 7))),
                    None => Sense::cdb_field(1).into(),
                }
            }
            op::PERSISTENT_OUT => self.persistent_out(nexus, cdb, &data),
            op::REPORT_LUNS => report_luns(cdb),
            op::MAINTENANCE_IN => self.maintenance_in(cdb),
            _ => block::start(self, cdb, data),
        }
    }

    fn request_sense(&mut self, nexus: Nexus, cdb: &[u8; 16]) -> Step {
        let pending = self
            .nexuses
            .get_mut(&nexus)
            .filter(|state| !state.attentions.is_empty())
            .map(|state| state.attentions.remove(0));
        let sense = pending.unwrap_or(Sense::new(key::NO_SENSE, 0, 0));
        cut(sense.encode(cdb[1] & 1 != 0), usize::from(cdb[4]))
    }

    fn inquiry(&self, cdb: &[u8; 16]) -> Step {
        let allocation = usize::from(be16(cdb, 3));
        if cdb[1] & 0x02 != 0 {
            return Sense::cdb_field(1).into(); // CMDDT is obsolete
        }
        if cdb[1] & 0x01 == 0 {
            if cdb[2] != 0 {
                return Sense::cdb_field(2).into();
            }
            return cut(inquiry::standard(&self.alua), allocation);
        }
        match inquiry::page(cdb[2], &self.geometry, &self.identity, &self.alua) {
            Some(bytes) => cut(bytes, allocation),
            None => Sense::cdb_field(2).into(),
        }
    }

    fn mode_select(&mut self, nexus: Nexus, cdb: &[u8; 16], list: &[u8]) -> Step {
        match mode::select(cdb, list, self.modes, &self.geometry) {
            Ok(modes) => {
                if modes != self.modes {
                    self.modes = modes;
                    for (other, state) in &mut self.nexuses {
                        if *other != nexus {
                            push_attention(&mut state.attentions, Sense::UA_MODE_CHANGED);
                        }
                    }
                }
                Step::Finished(Reply::good())
            }
            Err(sense) => sense.into(),
        }
    }

    /// RESERVE(6) and RELEASE(6) (SPC-2 §5.5.1) beside registrations as SPC-4 §5.13.3 allows
    /// (compatible reservation handling): for a registered nexus they do nothing.
    fn reserve_6(&mut self, nexus: Nexus, reserve: bool) -> Step {
        if self.reservations.any_registration() {
            let registered = self
                .nexuses
                .get(&nexus)
                .is_some_and(|state| self.reservations.registered(&state.port));
            let status = if registered {
                status::GOOD
            } else {
                status::RESERVATION_CONFLICT
            };
            return Step::Finished(Reply::status(status));
        }
        if reserve {
            self.reserved = Some(nexus);
        } else if self.reserved == Some(nexus) {
            self.reserved = None;
        }
        Step::Finished(Reply::good())
    }

    fn persistent_out(&mut self, nexus: Nexus, cdb: &[u8; 16], list: &[u8]) -> Step {
        let Some(port) = self.nexuses.get(&nexus).map(|state| state.port.clone()) else {
            return Sense::NO_SUCH_UNIT.into();
        };
        let effects = match self.reservations.change(cdb, list, &port) {
            Ok(effects) => effects,
            Err(Refused::Conflict) => {
                return Step::Finished(Reply::status(status::RESERVATION_CONFLICT));
            }
            Err(Refused::Sense(sense)) => return sense.into(),
        };
        for state in self.nexuses.values_mut() {
            for (_, sense) in effects
                .attentions
                .iter()
                .filter(|(port, _)| *port == state.port)
            {
                push_attention(&mut state.attentions, *sense);
            }
        }
        self.aborted.extend(
            self.nexuses
                .iter()
                .filter(|(_, state)| effects.aborted.contains(&state.port))
                .map(|(nexus, _)| *nexus),
        );
        Step::Operate(
            Operation::StoreReservations {
                state: self.reservations.encode(),
            },
            Then::Status,
        )
    }

    fn maintenance_in(&self, cdb: &[u8; 16]) -> Step {
        let allocation = usize::try_from(be32(cdb, 6)).unwrap_or(usize::MAX);
        match cdb[1] & 0x1f {
            op::REPORT_OPCODES => match op::report(cdb) {
                Some(bytes) => cut(bytes, allocation),
                None => Sense::cdb_field(2).into(),
            },
            op::REPORT_TASK_FUNCTIONS => {
                // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LU RESET, TARGET RESETs.
                let mut bytes = vec![0xda, 0, 0, 0];
                if cdb[2] & 0x80 != 0 {
                    bytes[3] = 12;
                    bytes.extend_from_slice(&[0; 12]);
                }
                cut(bytes, allocation)
            }
            _ => cut(self.port_groups(cdb[1] >> 5 == 1), allocation),
        }
    }

    /// REPORT TARGET PORT GROUPS (SPC-4 §6.37).
    fn port_groups(&self, extended: bool) -> Vec<u8> {
        let mut bytes = vec![0; if extended { 8 } else { 4 }];
        if extended {
            bytes[4] = 0x10;
        }
        let alone = [PortGroup {
            id: 1,
            state: AccessState::Optimized,
            ports: vec![self.identity.relative_port],
        }];
        let groups = if self.alua.groups.is_empty() {
            &alone[..]
        } else {
            &self.alua.groups
        };
        for group in groups {
            let [high, low] = group.id.to_be_bytes();
            let count = u8::try_from(group.ports.len()).unwrap_or(u8::MAX);
            // T_SUP U_SUP S_SUP AN_SUP AO_SUP; status 2: changed implicitly.
            bytes.extend_from_slice(&[group.state as u8, 0x8f, high, low, 0, 0x02, 0, count]);
            for port in group.ports.iter().take(usize::from(count)) {
                let [high, low] = port.to_be_bytes();
                bytes.extend_from_slice(&[0, 0, high, low]);
            }
        }
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// REPORT LUNS (SPC-4 §6.33): one unit, LUN 0.
pub(crate) fn report_luns(cdb: &[u8; 16]) -> Step {
    let allocation = usize::try_from(be32(cdb, 6)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; 8];
    match cdb[2] {
        0x00 | 0x02 => {
            bytes[3] = 8;
            bytes.extend_from_slice(&[0; 8]);
        }
        0x01 => {}
        _ => return Sense::cdb_field(2).into(),
    }
    cut(bytes, allocation)
}

fn push_attention(attentions: &mut Vec<Sense>, sense: Sense) {
    if attentions.len() < ATTENTIONS_MAX && !attentions.contains(&sense) {
        attentions.push(sense);
    }
}
