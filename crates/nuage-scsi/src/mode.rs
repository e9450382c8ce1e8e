//! MODE SENSE and MODE SELECT (SPC-4 §6.11 to §6.14, §7.5; SBC-3 §6.4).

use crate::sense::{Sense, key};
use nuage_block::Geometry;

/// Modes an initiator may change. They last until a reset; nothing is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Sense data in descriptor format.
    pub descriptor_sense: bool,
    /// Software write protect.
    pub write_protect: bool,
}

const PAGES: [u8; 4] = [0x01, 0x08, 0x0a, 0x1c];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    Current,
    Changeable,
    Default,
}

fn page(code: u8, control: Control, modes: Modes, geometry: &Geometry) -> Vec<u8> {
    let length: usize = if code == 0x08 { 20 } else { 12 };
    let mut bytes = vec![0; length];
    bytes[0] = code;
    bytes[1] = if code == 0x08 { 18 } else { 10 };
    match (code, control) {
        // Caching: the write cache is what the volume's policy makes it; it cannot be switched.
        (0x08, Control::Current | Control::Default) if geometry.write_cache => bytes[2] = 0x04,
        (0x0a, Control::Changeable) => {
            bytes[2] = 0x04;
            bytes[4] = 0x08;
        }
        (0x0a, _) => {
            bytes[3] = 0x10; // unrestricted reordering
            if control == Control::Current {
                bytes[2] = u8::from(modes.descriptor_sense) << 2;
                bytes[4] = u8::from(modes.write_protect) << 3;
            }
            // Busy timeout: unlimited.
            bytes[8..10].copy_from_slice(&[0xff, 0xff]);
        }
        _ => {}
    }
    bytes
}

/// MODE SENSE(6) or (10); the answer is not yet cut to the allocation length.
pub fn sense(cdb: &[u8; 16], modes: Modes, geometry: &Geometry) -> Result<Vec<u8>, Sense> {
    let long = cdb[0] == crate::opcodes::MODE_SENSE_10;
    let no_descriptors = cdb[1] & 0x08 != 0;
    let long_lba = long && cdb[1] & 0x10 != 0;
    let control = match cdb[2] >> 6 {
        0 => Control::Current,
        1 => Control::Changeable,
        2 => Control::Default,
        // SAVING PARAMETERS NOT SUPPORTED
        _ => return Err(Sense::new(key::ILLEGAL_REQUEST, 0x39, 0x00)),
    };
    let (code, subpage) = (cdb[2] & 0x3f, cdb[3]);
    if subpage != 0 && subpage != 0xff {
        return Err(Sense::cdb_field(3));
    }
    let codes: Vec<u8> = match code {
        0x3f => PAGES.to_vec(),
        _ if PAGES.contains(&code) => vec![code],
        _ => return Err(Sense::cdb_field(2)),
    };
    let descriptor = if no_descriptors {
        Vec::new()
    } else {
        block_descriptor(long_lba, geometry)
    };
    let mut pages = Vec::new();
    for code in codes {
        pages.extend_from_slice(&page(code, control, modes, geometry));
    }
    let protect = geometry.read_only || modes.write_protect;
    let device_specific = 0x10 | if protect { 0x80 } else { 0 }; // DPOFUA, WP
    let descriptor_bytes = u8::try_from(descriptor.len()).unwrap_or(0);
    let mut bytes = if long {
        let total = 6 + descriptor.len() + pages.len();
        let [high, low] = u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes();
        vec![
            high,
            low,
            0,
            device_specific,
            u8::from(long_lba),
            0,
            0,
            descriptor_bytes,
        ]
    } else {
        let total = u8::try_from(3 + descriptor.len() + pages.len()).unwrap_or(u8::MAX);
        vec![total, 0, device_specific, descriptor_bytes]
    };
    bytes.extend_from_slice(&descriptor);
    bytes.extend_from_slice(&pages);
    Ok(bytes)
}

fn block_descriptor(long_lba: bool, geometry: &Geometry) -> Vec<u8> {
    let blocks = geometry.size_bytes / u64::from(geometry.logical_block_bytes);
    let block = geometry.logical_block_bytes.to_be_bytes();
    let mut bytes = Vec::with_capacity(16);
    if long_lba {
        bytes.extend_from_slice(&blocks.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&block);
    } else {
        let short = u32::try_from(blocks).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&short.to_be_bytes());
        bytes.extend_from_slice(&[0, block[1], block[2], block[3]]);
    }
    bytes
}

/// MODE SELECT(6) or (10): the new modes, or what is refused.
pub fn select(
    cdb: &[u8; 16],
    list: &[u8],
    modes: Modes,
    geometry: &Geometry,
) -> Result<Modes, Sense> {
    let long = cdb[0] == crate::opcodes::MODE_SELECT_10;
    if cdb[1] & 0x10 == 0 || cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb_field(1)); // PF=1, SP=0
    }
    if list.is_empty() {
        return Ok(modes);
    }
    let header_bytes = if long { 8 } else { 4 };
    if list.len() < header_bytes {
        return Err(Sense::LIST_LENGTH);
    }
    let descriptor_bytes = if long {
        usize::from(u16::from_be_bytes([list[6], list[7]]))
    } else {
        usize::from(list[3])
    };
    let mut rest = list
        .get(header_bytes + descriptor_bytes..)
        .ok_or(Sense::LIST_LENGTH)?;
    let mut changed = modes;
    while !rest.is_empty() {
        if rest.len() < 2 {
            return Err(Sense::LIST_LENGTH);
        }
        let code = rest[0] & 0x3f;
        let length = 2 + usize::from(rest[1]);
        if rest[0] & 0x40 != 0 || !PAGES.contains(&code) {
            return Err(Sense::list_field(0));
        }
        let given = rest.get(..length).ok_or(Sense::LIST_LENGTH)?;
        let current = page(code, Control::Current, modes, geometry);
        let changeable = page(code, Control::Changeable, modes, geometry);
        if given.len() != current.len() {
            return Err(Sense::list_field(1));
        }
        for (index, ((new, old), mask)) in given
            .iter()
            .zip(&current)
            .zip(&changeable)
            .enumerate()
            .skip(2)
        {
            if (new ^ old) & !mask != 0 {
                return Err(Sense::list_field(u16::try_from(index).unwrap_or(u16::MAX)));
            }
        }
        if code == 0x0a {
            changed.descriptor_sense = given[2] & 0x04 != 0;
            changed.write_protect = given[4] & 0x08 != 0;
        }
        rest = &rest[length..];
    }
    Ok(changed)
}
