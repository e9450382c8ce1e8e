//! Persistent reservations (SPC-4 §5.13, §6.15, §6.16).
//!
//! State and decisions only: what was decided is kept by the engine as a journal record
//! ([`Reservations::encode`]), so that it survives a failover where APTPL asks for it.
//!
//! ```text
//! kept state: version:1 flags:1 (bit 0 APTPL) generation:4 type:1 (0 none) holder:2 count:2
//!             count × { isid:6 key:8 name_bytes:1 name }        big-endian
//! ```

use crate::sense::Sense;

/// Registrations of one unit; beyond it REGISTER answers INSUFFICIENT REGISTRATION RESOURCES.
const REGISTRATIONS_MAX: usize = 256;
const STATE_VERSION: u8 = 1;

/// Reservation types (SPC-4 table 64).
pub mod kind {
    pub const WRITE_EXCLUSIVE: u8 = 1;
    pub const EXCLUSIVE_ACCESS: u8 = 3;
    pub const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;
    pub const EXCLUSIVE_ACCESS_REGISTRANTS: u8 = 6;
    pub const WRITE_EXCLUSIVE_ALL: u8 = 7;
    pub const EXCLUSIVE_ACCESS_ALL: u8 = 8;
}

/// An initiator port (RFC 7143 §4.4.1): its name and the ISID of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub initiator: String,
    pub isid: [u8; 6],
}

impl Port {
    /// iSCSI TransportID of format 01b (SPC-4 §7.6.4.6).
    fn transport_id(&self) -> Vec<u8> {
        use std::fmt::Write as _;
        let mut name = format!("{},i,0x", self.initiator);
        for byte in self.isid {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let mut name = name.into_bytes();
        name.push(0);
        while !name.len().is_multiple_of(4) || name.len() < 20 {
            name.push(0);
        }
        let [high, low] = u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut bytes = vec![0x45, 0, high, low];
        bytes.extend_from_slice(&name);
        bytes
    }

    fn from_transport_id(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..4)?;
        if head[0] != 0x45 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let text = std::str::from_utf8(bytes.get(4..4 + length)?)
            .ok()?
            .trim_end_matches('\0');
        let (initiator, digits) = text.split_once(",i,0x")?;
        if digits.len() != 12 || !digits.is_ascii() {
            return None;
        }
        let mut isid = [0; 6];
        for (index, byte) in isid.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
        }
        Some(Self {
            initiator: initiator.to_owned(),
            isid,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registration {
    port: Port,
    key: u64,
}

/// A reservation that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    kind: u8,
    /// Meaningless for the types of all registrants.
    holder: Port,
}

/// The reservation state of one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reservations {
    generation: u32,
    persist: bool,
    registrations: Vec<Registration>,
    held: Option<Held>,
}

/// Why PERSISTENT RESERVE OUT is not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Conflict,
    Sense(Sense),
}

/// What others hear of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    pub attentions: Vec<(Port, Sense)>,
    /// Ports whose tasks PREEMPT AND ABORT ends.
    pub aborted: Vec<Port>,
}

/// The parameter list of the basic service actions (SPC-4 §6.16.3).
#[derive(Debug, Clone, Copy)]
struct Parameters {
    key: u64,
    action_key: u64,
    persist: bool,
}

fn word64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn all_registrants(kind: u8) -> bool {
    kind >= kind::WRITE_EXCLUSIVE_ALL
}

fn valid_kind(scope_and_kind: u8) -> Result<u8, Refused> {
    match scope_and_kind {
        1 | 3 | 5..=8 => Ok(scope_and_kind),
        _ => Err(Refused::Sense(Sense::cdb_field(2))),
    }
}

impl Reservations {
    fn key_of(&self, port: &Port) -> Option<u64> {
        self.registrations
            .iter()
            .find(|known| known.port == *port)
            .map(|known| known.key)
    }

    pub fn registered(&self, port: &Port) -> bool {
        self.key_of(port).is_some()
    }

    pub fn any_registration(&self) -> bool {
        !self.registrations.is_empty()
    }

    fn holds(&self, port: &Port) -> bool {
        self.held.as_ref().is_some_and(|held| {
            if all_registrants(held.kind) {
                self.registered(port)
            } else {
                held.holder == *port
            }
        })
    }

    /// True when `port` may not use the medium (SPC-4 table 62).
    pub fn conflicts(&self, port: &Port, writes: bool) -> bool {
        let Some(held) = &self.held else { return false };
        if self.holds(port) {
            return false;
        }
        match held.kind {
            kind::WRITE_EXCLUSIVE => writes,
            kind::EXCLUSIVE_ACCESS => true,
            _ if self.registered(port) => false,
            kind::WRITE_EXCLUSIVE_REGISTRANTS | kind::WRITE_EXCLUSIVE_ALL => writes,
            _ => true,
        }
    }

    /// PERSISTENT RESERVE IN, not yet cut to the allocation length; `None`: no such action.
    pub fn report(&self, action: u8, relative_port: u16) -> Option<Vec<u8>> {
        let mut bytes = self.generation.to_be_bytes().to_vec();
        match action {
            0x00 => {
                let keys: Vec<u8> = self
                    .registrations
                    .iter()
                    .flat_map(|known| known.key.to_be_bytes())
                    .collect();
                push_sized(&mut bytes, &keys);
            }
            0x01 => {
                let mut descriptor = Vec::new();
                if let Some(held) = &self.held {
                    let key = if all_registrants(held.kind) {
                        None
                    } else {
                        self.key_of(&held.holder)
                    };
                    descriptor.extend_from_slice(&key.unwrap_or(0).to_be_bytes());
                    descriptor.extend_from_slice(&[0, 0, 0, 0, 0, held.kind, 0, 0]);
                }
                push_sized(&mut bytes, &descriptor);
            }
            // ATP_C, PTPL_C; TMV, PTPL_A; all six types.
            0x02 => bytes = vec![0, 8, 0x05, 0x80 | u8::from(self.persist), 0xea, 0x01, 0, 0],
            0x03 => push_sized(&mut bytes, &self.full_status(relative_port)),
            _ => return None,
        }
        Some(bytes)
    }

    fn full_status(&self, relative_port: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for known in &self.registrations {
            let holds = self.holds(&known.port);
            let kind = self
                .held
                .as_ref()
                .filter(|_| holds)
                .map_or(0, |held| held.kind);
            let transport = known.port.transport_id();
            let mut descriptor = [0; 24];
            descriptor[..8].copy_from_slice(&known.key.to_be_bytes());
            descriptor[12] = u8::from(holds);
            descriptor[13] = kind;
            descriptor[18..20].copy_from_slice(&relative_port.to_be_bytes());
            let length = u32::try_from(transport.len()).unwrap_or(u32::MAX);
            descriptor[20..24].copy_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&descriptor);
            bytes.extend_from_slice(&transport);
        }
        bytes
    }

    /// PERSISTENT RESERVE OUT: change the state or say why not.
    pub fn change(&mut self, cdb: &[u8; 16], list: &[u8], port: &Port) -> Result<Effects, Refused> {
        let action = cdb[1] & 0x1f;
        if action == 0x07 {
            return self.register_and_move(cdb, list, port);
        }
        if action > 0x07 {
            return Err(Refused::Sense(Sense::cdb_field(1)));
        }
        if list.len() != 24 {
            return Err(Refused::Sense(Sense::LIST_LENGTH));
        }
        if list[20] & 0x08 != 0 {
            return Err(Refused::Sense(Sense::list_field(20))); // SPEC_I_PT
        }
        let parameters = Parameters {
            key: word64(list),
            action_key: word64(&list[8..]),
            persist: list[20] & 0x01 != 0,
        };
        if matches!(action, 0x00 | 0x06) {
            return self.register(action == 0x06, parameters, port);
        }
        if self.key_of(port) != Some(parameters.key) {
            return Err(Refused::Conflict);
        }
        match action {
            0x01 => self.reserve(valid_kind(cdb[2])?, port),
            0x02 => self.release(cdb[2], port),
            0x03 => Ok(self.clear(port)),
            _ => self.preempt(
                valid_kind(cdb[2]),
                parameters.action_key,
                action == 0x05,
                port,
            ),
        }
    }

    fn register(
        &mut self,
        ignore: bool,
        given: Parameters,
        port: &Port,
    ) -> Result<Effects, Refused> {
        let known = self.key_of(port);
        if !ignore && given.key != known.unwrap_or(0) {
            return Err(Refused::Conflict);
        }
        let mut effects = Effects::default();
        match (known, given.action_key) {
            (None, 0) => {}
            (None, key) => {
                if self.registrations.len() >= REGISTRATIONS_MAX {
                    return Err(Refused::Sense(Sense::NO_REGISTRATION_RESOURCES));
                }
                self.registrations.push(Registration {
                    port: port.clone(),
                    key,
                });
            }
            (Some(_), 0) => effects = self.unregister(port),
            (Some(_), key) => {
                for registration in self
                    .registrations
                    .iter_mut()
                    .filter(|known| known.port == *port)
                {
                    registration.key = key;
                }
            }
        }
        self.persist = given.persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn unregister(&mut self, port: &Port) -> Effects {
        let mut effects = Effects::default();
        let held_alone = self
            .held
            .as_ref()
            .is_some_and(|held| !all_registrants(held.kind) && held.holder == *port);
        self.registrations.retain(|known| known.port != *port);
        if held_alone {
            let kind = self.held.take().map_or(0, |held| held.kind);
            if kind >= kind::WRITE_EXCLUSIVE_REGISTRANTS {
                effects.attentions = self.tell_others(port, Sense::UA_RESERVATIONS_RELEASED);
            }
        } else if self.registrations.is_empty() {
            self.held = None;
        }
        effects
    }

    fn tell_others(&self, port: &Port, sense: Sense) -> Vec<(Port, Sense)> {
        self.registrations
            .iter()
            .filter(|known| known.port != *port)
            .map(|known| (known.port.clone(), sense))
            .collect()
    }

    fn reserve(&mut self, kind: u8, port: &Port) -> Result<Effects, Refused> {
        match &self.held {
            Some(held) if self.holds(port) && held.kind == kind => {}
            Some(_) => return Err(Refused::Conflict),
            None => {
                self.held = Some(Held {
                    kind,
                    holder: port.clone(),
                });
            }
        }
        Ok(Effects::default())
    }

    fn release(&mut self, scope_and_kind: u8, port: &Port) -> Result<Effects, Refused> {
        if !self.holds(port) {
            return Ok(Effects::default());
        }
        let kind = self.held.as_ref().map_or(0, |held| held.kind);
        if scope_and_kind != kind {
            return Err(Refused::Sense(Sense::INVALID_RELEASE));
        }
        self.held = None;
        let mut effects = Effects::default();
        if kind >= kind::WRITE_EXCLUSIVE_REGISTRANTS {
            effects.attentions = self.tell_others(port, Sense::UA_RESERVATIONS_RELEASED);
        }
        Ok(effects)
    }

    fn clear(&mut self, port: &Port) -> Effects {
        let attentions = self.tell_others(port, Sense::UA_RESERVATIONS_PREEMPTED);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Effects {
            attentions,
            aborted: Vec::new(),
        }
    }

    fn preempt(
        &mut self,
        kind: Result<u8, Refused>,
        victim_key: u64,
        abort: bool,
        port: &Port,
    ) -> Result<Effects, Refused> {
        let everyone = self
            .held
            .as_ref()
            .is_some_and(|held| all_registrants(held.kind));
        let holder_key = self
            .held
            .as_ref()
            .and_then(|held| self.key_of(&held.holder));
        let takes_over = self.held.is_some()
            && if everyone {
                victim_key == 0
            } else {
                holder_key == Some(victim_key)
            };
        if victim_key == 0 && !everyone {
            return Err(Refused::Sense(Sense::list_field(8)));
        }
        let is_victim = |known: &Registration| {
            known.port != *port && (victim_key == 0 || known.key == victim_key)
        };
        let found = self
            .registrations
            .iter()
            .any(|known| victim_key == 0 || known.key == victim_key);
        if !found {
            return Err(Refused::Conflict);
        }
        let kind = if takes_over { kind? } else { 0 };
        let victims: Vec<Port> = self
            .registrations
            .iter()
            .filter(|known| is_victim(known))
            .map(|known| known.port.clone())
            .collect();
        // Naming its own key and not taking over: the port loses its own registration too.
        let removes_itself =
            !takes_over && victim_key != 0 && self.key_of(port) == Some(victim_key);
        self.registrations.retain(|known| {
            !(victims.contains(&known.port) || removes_itself && known.port == *port)
        });
        let mut effects = Effects::default();
        for victim in &victims {
            effects
                .attentions
                .push((victim.clone(), Sense::UA_REGISTRATIONS_PREEMPTED));
        }
        if takes_over {
            let before = self.held.as_ref().map_or(0, |held| held.kind);
            if before != kind && before >= kind::WRITE_EXCLUSIVE_REGISTRANTS {
                effects
                    .attentions
                    .extend(self.tell_others(port, Sense::UA_RESERVATIONS_RELEASED));
            }
            self.held = Some(Held {
                kind,
                holder: port.clone(),
            });
        } else if self.registrations.is_empty() {
            self.held = None;
        }
        if abort {
            effects.aborted = victims;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    fn register_and_move(
        &mut self,
        cdb: &[u8; 16],
        list: &[u8],
        port: &Port,
    ) -> Result<Effects, Refused> {
        if list.len() < 24 {
            return Err(Refused::Sense(Sense::LIST_LENGTH));
        }
        if self.key_of(port) != Some(word64(list)) || !self.holds(port) {
            return Err(Refused::Conflict);
        }
        let kind = self.held.as_ref().map_or(0, |held| held.kind);
        let new_key = word64(&list[8..]);
        if all_registrants(kind) || cdb[2] != kind || new_key == 0 {
            return Err(Refused::Sense(Sense::list_field(8)));
        }
        let to = Port::from_transport_id(&list[24..])
            .filter(|to| to != port)
            .ok_or(Refused::Sense(Sense::list_field(24)))?;
        if self.registrations.len() >= REGISTRATIONS_MAX {
            return Err(Refused::Sense(Sense::NO_REGISTRATION_RESOURCES));
        }
        self.registrations.retain(|known| known.port != to);
        self.registrations.push(Registration {
            port: to.clone(),
            key: new_key,
        });
        self.held = Some(Held { kind, holder: to });
        if list[17] & 0x02 != 0 {
            self.registrations.retain(|known| known.port != *port);
        }
        self.persist = list[17] & 0x01 != 0;
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects::default())
    }

    /// The state as the engine keeps it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION, u8::from(self.persist)];
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.push(self.held.as_ref().map_or(0, |held| held.kind));
        let holder = self.held.as_ref().and_then(|held| {
            self.registrations
                .iter()
                .position(|known| known.port == held.holder)
        });
        let holder = holder
            .and_then(|index| u16::try_from(index).ok())
            .unwrap_or(u16::MAX);
        bytes.extend_from_slice(&holder.to_be_bytes());
        let count = u16::try_from(self.registrations.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&count.to_be_bytes());
        for known in &self.registrations {
            bytes.extend_from_slice(&known.port.isid);
            bytes.extend_from_slice(&known.key.to_be_bytes());
            // iSCSI names have at most 223 bytes (RFC 7143 §4.2.7.1); the login checks it.
            bytes.push(u8::try_from(known.port.initiator.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(known.port.initiator.as_bytes());
        }
        bytes
    }

    /// The state from what the engine kept; `None` when it cannot be understood.
    ///
    /// `power_loss`: registrations without APTPL are gone (SPC-4 §5.13.5).
    pub fn decode(bytes: &[u8], power_loss: bool) -> Option<Self> {
        let (head, mut rest) = bytes.split_first_chunk::<11>()?;
        if head[0] != STATE_VERSION {
            return None;
        }
        let mut state = Self {
            generation: u32::from_be_bytes([head[2], head[3], head[4], head[5]]),
            persist: head[1] & 1 != 0,
            ..Self::default()
        };
        for _ in 0..u16::from_be_bytes([head[9], head[10]]) {
            let (fixed, after) = rest.split_first_chunk::<15>()?;
            let name = after.get(..usize::from(fixed[14]))?;
            let mut isid = [0; 6];
            isid.copy_from_slice(&fixed[..6]);
            let initiator = std::str::from_utf8(name).ok()?.to_owned();
            state.registrations.push(Registration {
                port: Port { initiator, isid },
                key: word64(&fixed[6..14]),
            });
            rest = &after[name.len()..];
        }
        if head[6] != 0 {
            let index = usize::from(u16::from_be_bytes([head[7], head[8]]));
            let holder = match state.registrations.get(index) {
                Some(known) => known.port.clone(),
                None if all_registrants(head[6]) => state.registrations.first()?.port.clone(),
                None => return None,
            };
            state.held = Some(Held {
                kind: head[6],
                holder,
            });
        }
        if power_loss && !state.persist {
            let generation = 0;
            return Some(Self {
                generation,
                ..Self::default()
            });
        }
        Some(state)
    }
}

fn push_sized(bytes: &mut Vec<u8>, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u8) -> Port {
        Port {
            initiator: format!("iqn.2015-01.fr.nuage:host{number}"),
            isid: [number; 6],
        }
    }

    fn out(
        state: &mut Reservations,
        port: &Port,
        action: u8,
        kind: u8,
        keys: (u64, u64),
    ) -> Result<Effects, Refused> {
        let mut cdb = [0; 16];
        cdb[..3].copy_from_slice(&[0x5f, action, kind]);
        let mut list = [0; 24];
        list[..8].copy_from_slice(&keys.0.to_be_bytes());
        list[8..16].copy_from_slice(&keys.1.to_be_bytes());
        list[20] = 1;
        state.change(&cdb, &list, port)
    }

    fn two_registered() -> Reservations {
        let mut state = Reservations::default();
        out(&mut state, &port(1), 0, 0, (0, 11)).unwrap();
        out(&mut state, &port(2), 0, 0, (0, 22)).unwrap();
        state
    }

    #[test]
    fn exclusive_access_keeps_others_out_and_registrants_only_lets_them_in() {
        let mut state = two_registered();
        out(&mut state, &port(1), 1, kind::EXCLUSIVE_ACCESS, (11, 0)).unwrap();
        assert!(state.conflicts(&port(2), false));
        assert!(!state.conflicts(&port(1), true));
        out(&mut state, &port(1), 2, kind::EXCLUSIVE_ACCESS, (11, 0)).unwrap();
        out(
            &mut state,
            &port(1),
            1,
            kind::WRITE_EXCLUSIVE_REGISTRANTS,
            (11, 0),
        )
        .unwrap();
        assert!(!state.conflicts(&port(2), true));
        assert!(state.conflicts(&port(3), true));
        assert!(!state.conflicts(&port(3), false));
    }

    #[test]
    fn preempting_the_holder_takes_the_reservation_and_names_the_ports_to_abort() {
        let mut state = two_registered();
        out(&mut state, &port(1), 1, kind::EXCLUSIVE_ACCESS, (11, 0)).unwrap();
        let effects = out(&mut state, &port(2), 5, kind::EXCLUSIVE_ACCESS, (22, 11)).unwrap();
        assert_eq!(effects.aborted, [port(1)]);
        assert_eq!(
            effects.attentions,
            [(port(1), Sense::UA_REGISTRATIONS_PREEMPTED)]
        );
        assert!(state.conflicts(&port(1), false));
        assert!(!state.conflicts(&port(2), true));
    }

    #[test]
    fn a_wrong_key_is_a_conflict_and_changes_nothing() {
        let mut state = two_registered();
        let before = state.clone();
        for action in [0, 1, 2, 3, 4] {
            let refused = out(&mut state, &port(1), action, 1, (99, 22));
            assert_eq!(refused, Err(Refused::Conflict));
        }
        assert_eq!(state, before);
    }

    #[test]
    fn the_state_survives_encoding_and_only_with_aptpl_a_power_loss() {
        let mut state = two_registered();
        out(&mut state, &port(2), 1, kind::WRITE_EXCLUSIVE, (22, 0)).unwrap();
        assert_eq!(
            Reservations::decode(&state.encode(), true),
            Some(state.clone())
        );
        state.persist = false;
        assert_eq!(
            Reservations::decode(&state.encode(), false),
            Some(state.clone())
        );
        assert_eq!(
            Reservations::decode(&state.encode(), true),
            Some(Reservations::default())
        );
    }

    #[test]
    fn a_reservation_moves_to_the_port_named_by_a_transport_id() {
        let mut state = two_registered();
        out(&mut state, &port(1), 1, kind::EXCLUSIVE_ACCESS, (11, 0)).unwrap();
        let mut list = vec![0; 24];
        list[7] = 11;
        list[15] = 33;
        list[17] = 0x03;
        list.extend_from_slice(&port(3).transport_id());
        let mut cdb = [0; 16];
        cdb[..3].copy_from_slice(&[0x5f, 7, kind::EXCLUSIVE_ACCESS]);
        state.change(&cdb, &list, &port(1)).unwrap();
        assert!(!state.registered(&port(1)));
        assert!(!state.conflicts(&port(3), true));
        assert!(state.conflicts(&port(2), false));
    }
}
