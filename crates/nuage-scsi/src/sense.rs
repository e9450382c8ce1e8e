//! Sense data (SPC-4 §4.5): why a command did not do what it was asked.

/// Sense keys (SPC-4 table 48).
pub mod key {
    pub const NO_SENSE: u8 = 0x0;
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xb;
    pub const MISCOMPARE: u8 = 0xe;
}

/// A sense: key, additional code and qualifier, and what some of them carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    pub key: u8,
    pub asc: u8,
    pub ascq: u8,
    /// INFORMATION: an LBA, or the offset of the first byte that differs.
    pub information: Option<u64>,
    /// Byte of the CDB (true) or parameter list (false) that is refused.
    pub field: Option<(bool, u16)>,
}

impl Sense {
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self {
            key,
            asc,
            ascq,
            information: None,
            field: None,
        }
    }

    /// INVALID FIELD IN CDB at a byte.
    pub const fn cdb_field(byte: u16) -> Self {
        Self {
            field: Some((true, byte)),
            ..Self::new(key::ILLEGAL_REQUEST, 0x24, 0x00)
        }
    }

    /// INVALID FIELD IN PARAMETER LIST at a byte.
    pub const fn list_field(byte: u16) -> Self {
        Self {
            field: Some((false, byte)),
            ..Self::new(key::ILLEGAL_REQUEST, 0x26, 0x00)
        }
    }

    #[must_use]
    pub const fn with_information(self, information: u64) -> Self {
        Self {
            information: Some(information),
            ..self
        }
    }

    pub const INVALID_OPCODE: Self = Self::new(key::ILLEGAL_REQUEST, 0x20, 0x00);
    pub const OUT_OF_RANGE: Self = Self::new(key::ILLEGAL_REQUEST, 0x21, 0x00);
    pub const LIST_LENGTH: Self = Self::new(key::ILLEGAL_REQUEST, 0x1a, 0x00);
    pub const NO_SUCH_UNIT: Self = Self::new(key::ILLEGAL_REQUEST, 0x25, 0x00);
    pub const WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x00);
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x02);
    /// SPACE ALLOCATION FAILED WRITE PROTECT (SBC-3 §4.7.3.6).
    pub const NO_SPACE: Self = Self::new(key::DATA_PROTECT, 0x27, 0x07);
    pub const MISCOMPARE: Self = Self::new(key::MISCOMPARE, 0x1d, 0x00);
    pub const READ_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x11, 0x00);
    pub const WRITE_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x0c, 0x00);
    /// LOGICAL UNIT COMMUNICATION FAILURE: not enough replicas answer.
    pub const UNAVAILABLE: Self = Self::new(key::HARDWARE_ERROR, 0x08, 0x00);
    /// TARGET PORT IN STANDBY STATE: this head was fenced, another path serves.
    pub const STANDBY: Self = Self::new(key::NOT_READY, 0x04, 0x0b);
    /// TARGET PORT IN UNAVAILABLE STATE.
    pub const PORT_UNAVAILABLE: Self = Self::new(key::NOT_READY, 0x04, 0x0c);
    /// ASYMMETRIC ACCESS STATE TRANSITION.
    pub const TRANSITION: Self = Self::new(key::NOT_READY, 0x04, 0x0a);
    pub const NO_REGISTRATION_RESOURCES: Self = Self::new(key::ILLEGAL_REQUEST, 0x55, 0x04);
    pub const INVALID_RELEASE: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x04);
    /// Fewer or more bytes came than the command said (RFC 7143 §11.4.7.2).
    pub const WRONG_AMOUNT_OF_DATA: Self = Self::new(key::ABORTED_COMMAND, 0x0c, 0x0d);

    pub const UA_POWER_ON: Self = Self::new(key::UNIT_ATTENTION, 0x29, 0x00);
    pub const UA_DEVICE_RESET: Self = Self::new(key::UNIT_ATTENTION, 0x29, 0x03);
    pub const UA_MODE_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x01);
    pub const UA_RESERVATIONS_PREEMPTED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x03);
    pub const UA_RESERVATIONS_RELEASED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x04);
    pub const UA_REGISTRATIONS_PREEMPTED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x05);
    pub const UA_ALUA_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x06);
    pub const UA_CAPACITY_CHANGED: Self = Self::new(key::UNIT_ATTENTION, 0x2a, 0x09);
    /// COMMANDS CLEARED BY ANOTHER INITIATOR (TAS=0).
    pub const UA_COMMANDS_CLEARED: Self = Self::new(key::UNIT_ATTENTION, 0x2f, 0x00);

    /// What a machine of ours hears instead: its QEMU tells its guest of every error but this one, at which the
    /// guest waits and the command is tried again. So it hears of a block that no copy has as it is, also when it
    /// writes to a part of it, and waits for a path that does not serve now.
    #[must_use]
    pub fn waited_for(self) -> Self {
        let passes = match self.key {
            key::NOT_READY | key::HARDWARE_ERROR | key::ABORTED_COMMAND => true,
            key::MEDIUM_ERROR => self.information.is_none(), // the disk itself, which may come back
            _ => false,
        };
        if passes { Self::NO_SPACE } else { self }
    }

    /// Fixed format (SPC-4 §4.5.3) or, where D_SENSE is set, descriptor format (§4.5.2).
    pub fn encode(&self, descriptors: bool) -> Vec<u8> {
        if descriptors {
            self.encode_descriptors()
        } else {
            self.encode_fixed()
        }
    }

    fn encode_fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        if let Some(low) = self.information.and_then(|value| u32::try_from(value).ok()) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&low.to_be_bytes());
        }
        bytes[7] = 10;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(specific) = self.key_specific() {
            bytes[15..18].copy_from_slice(&specific);
        }
        bytes
    }

    fn encode_descriptors(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend_from_slice(&[0x00, 0x0a, 0x80, 0x00]);
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(specific) = self.key_specific() {
            bytes.extend_from_slice(&[0x02, 0x06, 0, 0]);
            bytes.extend_from_slice(&specific);
            bytes.push(0);
        }
        // At most 8 + 12 + 8 bytes: the additional length fits a byte.
        bytes[7] = u8::try_from(bytes.len() - 8).unwrap_or(u8::MAX);
        bytes
    }

    fn key_specific(&self) -> Option<[u8; 3]> {
        let (in_cdb, byte) = self.field?;
        let [high, low] = byte.to_be_bytes();
        Some([0x80 | if in_cdb { 0x40 } else { 0 }, high, low])
    }
}
