//! INQUIRY and its vital product data pages (SPC-4 §6.4, §7.8; SBC-3 §6.5).

use crate::unit::{Alua, Identity};
use nuage_block::Geometry;

/// Bytes one READ or WRITE may move: what a session must hold for it at once. As many as NBD's.
pub const TRANSFER_BYTES_MAX: u32 = 32 * 1024 * 1024;
/// Blocks of COMPARE AND WRITE: its NUMBER OF LOGICAL BLOCKS is one byte.
pub const COMPARE_BLOCKS_MAX: u8 = 255;
/// Longest WRITE SAME: it stays one command and must end within an initiator's patience.
pub const WRITE_SAME_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Longest atomic write: one record of the log.
pub const ATOMIC_BYTES_MAX: u32 = 1024 * 1024;
/// Descriptors of one UNMAP.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Standard INQUIRY data (SPC-4 §6.4.2).
pub fn standard(alua: &Alua) -> Vec<u8> {
    let mut bytes = vec![0; 96];
    bytes[2] = 0x06; // SPC-4
    bytes[3] = 0x12; // HISUP, response data format 2
    bytes[4] = 91;
    bytes[5] = if alua.groups.is_empty() { 0 } else { 0x10 }; // TPGS: implicit
    bytes[6] = 0x10; // MULTIP
    bytes[7] = 0x02; // CMDQUE
    bytes[8..16].copy_from_slice(b"NUAGE   ");
    bytes[16..32].copy_from_slice(b"Journaled volume");
    bytes[32..36].copy_from_slice(b"0001");
    // SAM-5, SPC-4, SBC-3, iSCSI: no version claimed.
    for (index, version) in [0x00a0_u16, 0x0460, 0x04c0, 0x0960].iter().enumerate() {
        bytes[58 + index * 2..60 + index * 2].copy_from_slice(&version.to_be_bytes());
    }
    bytes
}

/// Standard INQUIRY data of a LUN that does not exist.
pub fn absent() -> Vec<u8> {
    let mut bytes = standard(&Alua::default());
    bytes[0] = 0x7f;
    bytes
}

const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// A VPD page; `None`: there is no such page.
pub fn page(code: u8, geometry: &Geometry, identity: &Identity, alua: &Alua) -> Option<Vec<u8>> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => hex(&geometry.uuid).into_bytes(),
        0x83 => designators(geometry, identity, alua),
        0x86 => extended(geometry),
        0xb0 => limits(geometry),
        0xb1 => characteristics(),
        0xb2 => provisioning(),
        _ => return None,
    };
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0, code];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Device identification (SPC-4 §7.8.5): the same unit designators on every portal and after a
/// failover. The first is NAA 3, "locally assigned", because we own no IEEE company id.
fn designators(geometry: &Geometry, identity: &Identity, alua: &Alua) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut push = |code_set: u8, kind: u8, value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        // Protocol identifier iSCSI and PIV only for designators of the port.
        let port = matches!(kind & 0x30, 0x10 | 0x20);
        bytes.extend_from_slice(&[
            code_set | if port { 0x50 } else { 0 },
            kind | if port { 0x80 } else { 0 },
            0,
            length,
        ]);
        bytes.extend_from_slice(value);
    };
    let mut naa = [0; 8];
    naa.copy_from_slice(&geometry.uuid[..8]);
    for (byte, other) in naa.iter_mut().zip(&geometry.uuid[8..]) {
        *byte ^= other;
    }
    naa[0] = 0x30 | naa[0] & 0x0f;
    push(0x01, 0x03, &naa);
    let mut vendor = b"NUAGE   ".to_vec();
    vendor.extend_from_slice(hex(&geometry.uuid).as_bytes());
    push(0x02, 0x01, &vendor);
    let mut uuid = vec![0x10, 0];
    uuid.extend_from_slice(&geometry.uuid);
    push(0x01, 0x0a, &uuid);
    push(
        0x01,
        0x14,
        &[
            0,
            0,
            identity.relative_port.to_be_bytes()[0],
            identity.relative_port.to_be_bytes()[1],
        ],
    );
    if !alua.groups.is_empty() {
        let [high, low] = alua.own_group.to_be_bytes();
        push(0x01, 0x15, &[0, 0, high, low]);
    }
    // SCSI name string of the target port, null-terminated and padded to 4 (§7.8.6.9).
    let mut name = format!(
        "{},t,0x{:04x}",
        identity.target_name, identity.portal_group_tag
    )
    .into_bytes();
    name.push(0);
    while name.len() % 4 != 0 {
        name.push(0);
    }
    push(0x03, 0x18, &name);
    bytes
}

/// Extended INQUIRY data (SPC-4 §7.8.7).
fn extended(geometry: &Geometry) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    bytes[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
    bytes[2] = u8::from(geometry.write_cache); // V_SUP
    bytes[3] = 0x01; // LUICLR
    bytes
}

/// Block limits (SBC-3 §6.5.3, SBC-4 for the atomic fields).
fn limits(geometry: &Geometry) -> Vec<u8> {
    let block = geometry.logical_block_bytes;
    let per_page = 4096 / block;
    let mut bytes = vec![0; 60];
    let mut word = |at: usize, value: u32| {
        bytes[at - 4..at].copy_from_slice(&value.to_be_bytes());
    };
    word(8, TRANSFER_BYTES_MAX / block);
    word(12, 1024 * 1024 / block); // optimal transfer length
    word(16, 1024 * 1024 / block); // prefetch
    word(20, u32::MAX); // maximum unmap LBA count: no limit
    word(24, UNMAP_DESCRIPTORS_MAX);
    word(28, per_page); // optimal unmap granularity
    word(32, 0x8000_0000); // UGAVALID, aligned at 0
    word(44, ATOMIC_BYTES_MAX / block);
    bytes[1] = COMPARE_BLOCKS_MAX;
    bytes[2..4].copy_from_slice(&u16::try_from(per_page).unwrap_or(1).to_be_bytes());
    let same = WRITE_SAME_BYTES_MAX / u64::from(block);
    bytes[32..40].copy_from_slice(&same.to_be_bytes());
    bytes
}

/// Block device characteristics (SBC-3 §6.5.2): a non-rotating medium.
fn characteristics() -> Vec<u8> {
    let mut bytes = vec![0; 60];
    bytes[1] = 0x01;
    bytes
}

/// Logical block provisioning (SBC-3 §6.5.4): thin, unmapped blocks read as zeros.
fn provisioning() -> Vec<u8> {
    vec![0, 0xc4, 0x02, 0] // LBPU, LBPWS, LBPRZ; thin
}
