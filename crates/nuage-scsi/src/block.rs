//! The block commands (SBC-3): each becomes one engine operation, or a chain of them.

use crate::inquiry::{
    ATOMIC_BYTES_MAX, TRANSFER_BYTES_MAX, UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BYTES_MAX,
};
use crate::opcodes as op;
use crate::sense::Sense;
use crate::unit::{LogicalUnit, Reply, Step, be16, be32, be64, cut};
use nuage_block::{Buffer, Extent, Failure, Operation, Outcome};

/// Piece in which a pattern is written and a medium is verified.
const PIECE_BYTES: u64 = 1024 * 1024;
/// Range that one GET LBA STATUS looks at.
const STATUS_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What to do with the outcome of an operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// GOOD, nothing to send.
    Status,
    /// Send what was read.
    Data,
    /// Compare what was read with these bytes, repeated to its length.
    Compare { expected: Vec<u8> },
    /// Read the rest of a range and throw it away (VERIFY without data); or compare each block.
    Verify {
        at: u64,
        end: u64,
        expected: Option<Vec<u8>>,
    },
    /// Written; read back and compare (WRITE AND VERIFY with BYTCHK).
    ReadBack { offset: u64, written: Vec<u8> },
    /// Read what is to be changed: swap the change in, if nobody was faster.
    ChangeRead(Change),
    /// The swap: on a miscompare read again.
    ChangeSwap(Change),
    /// WRITE SAME of a pattern: the rest.
    Pattern {
        at: u64,
        end: u64,
        block: Vec<u8>,
        fua: bool,
    },
    /// UNMAP: the descriptors still to do, last first.
    Unmap { rest: Vec<(u64, u64)> },
    /// GET LBA STATUS.
    Extents { allocation: usize },
}

/// Whole blocks from `offset` on that a command changes by what they hold: read and
/// compare-and-swap, repeated until nobody wrote between the two.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    offset: u64,
    /// Bytes, a multiple of the block.
    length: u32,
    data: Buffer,
    how: How,
    fua: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    /// ORWRITE: `data` is OR-ed in.
    Or,
    /// A write that ends within a block: `data` replaces as many bytes; `read_back`: and is
    /// then compared with the medium (BYTCHK).
    Replace { read_back: bool },
}

impl Change {
    fn read(self) -> Step {
        let operation = Operation::Read {
            offset: self.offset,
            length: self.length,
        };
        Step::Operate(operation, Then::ChangeRead(self))
    }

    fn swap(self, expected: Vec<u8>) -> Step {
        let mut data = Buffer::from(&expected[..]);
        for (old, new) in data.iter_mut().zip(self.data.iter()) {
            *old = match self.how {
                How::Or => *old | new,
                How::Replace { .. } => *new,
            };
        }
        let operation = Operation::CompareAndWrite {
            offset: self.offset,
            expected,
            data,
            fua: self.fua,
        };
        Step::Operate(operation, Then::ChangeSwap(self))
    }

    fn done(self) -> Step {
        match self.how {
            How::Replace { read_back: true } => {
                read_back(self.offset, self.length, self.data.to_vec())
            }
            _ => Step::Finished(Reply::good()),
        }
    }
}

/// A range of the medium in a CDB.
#[derive(Debug, Clone, Copy)]
struct Range {
    lba: u64,
    blocks: u64,
}

fn range(cdb: &[u8; 16]) -> Range {
    let (lba, blocks) = match cdb[0] {
        op::READ_6 | op::WRITE_6 => {
            let lba = be32(cdb, 0) & 0x001f_ffff;
            (
                u64::from(lba),
                if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) },
            )
        }
        op::COMPARE_AND_WRITE => (be64(cdb, 2), u64::from(cdb[13])),
        op::WRITE_ATOMIC_16 => (be64(cdb, 2), u64::from(be16(cdb, 12))),
        _ => match cdb[0] >> 5 {
            4 => (be64(cdb, 2), u64::from(be32(cdb, 10))),
            5 => (u64::from(be32(cdb, 2)), u64::from(be32(cdb, 6))),
            _ => (u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7))),
        },
    };
    Range { lba, blocks }
}

/// Bytes a block command wants from the initiator.
pub(crate) fn data_out_bytes(cdb: &[u8; 16], block_bytes: u32) -> u64 {
    let blocks = range(cdb).blocks;
    let count = match cdb[0] {
        op::WRITE_6
        | op::WRITE_10
        | op::WRITE_12
        | op::WRITE_16
        | op::WRITE_ATOMIC_16
        | op::ORWRITE_16
        | op::WRITE_VERIFY_10
        | op::WRITE_VERIFY_12
        | op::WRITE_VERIFY_16 => blocks,
        op::COMPARE_AND_WRITE => blocks * 2,
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => match cdb[1] >> 1 & 3 {
            1 => blocks,
            3 => 1,
            _ => 0,
        },
        op::WRITE_SAME_10 => 1,
        op::WRITE_SAME_16 => u64::from(cdb[1] & 1 == 0), // NDOB
        _ => 0,
    };
    count * u64::from(block_bytes)
}

/// Commands that mean nothing with another amount of data than they say.
pub(crate) fn wants_exact(opcode: u8) -> bool {
    matches!(
        opcode,
        op::COMPARE_AND_WRITE | op::WRITE_SAME_10 | op::WRITE_SAME_16
    )
}

/// The byte of the CDB that gives the number of blocks.
pub(crate) fn length_field(opcode: u8) -> u16 {
    match opcode {
        op::COMPARE_AND_WRITE => 13,
        op::WRITE_SAME_16 => 10,
        _ => 7,
    }
}

/// A range in bytes, checked against the volume.
#[derive(Debug, Clone, Copy)]
struct Bytes {
    offset: u64,
    length: u64,
}

impl Bytes {
    fn length_u32(self) -> u32 {
        // Callers have checked it against TRANSFER_BYTES_MAX.
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    fn end(self) -> u64 {
        self.offset + self.length
    }
}

pub(crate) fn start(unit: &mut LogicalUnit, cdb: &[u8; 16], data: Buffer) -> Step {
    let step = match cdb[0] {
        op::READ_CAPACITY_10 => Ok(capacity_10(unit)),
        op::SERVICE_IN_16 => service_in(unit, cdb),
        op::READ_DEFECT_10 | op::READ_DEFECT_12 => Ok(defects(cdb)),
        op::PREFETCH_10 | op::PREFETCH_16 => unit
            .bytes(range(cdb))
            .map(|_| Step::Finished(Reply::good())),
        op::SYNCHRONIZE_10 | op::SYNCHRONIZE_16 => unit
            .bytes(range(cdb))
            .map(|_| Step::Operate(Operation::Flush, Then::Status)),
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => read(unit, cdb),
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => verify(unit, cdb, &data),
        op::UNMAP => unit.writable().and_then(|()| unmap(unit, cdb, &data)),
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
            unit.writable().and_then(|()| write_same(unit, cdb, &data))
        }
        op::COMPARE_AND_WRITE => unit
            .writable()
            .and_then(|()| compare_and_write(unit, cdb, &data)),
        _ => unit.writable().and_then(|()| write(unit, cdb, data)),
    };
    step.unwrap_or_else(Step::from)
}

impl LogicalUnit {
    fn block_bytes(&self) -> u64 {
        u64::from(self.geometry.logical_block_bytes)
    }

    fn blocks(&self) -> u64 {
        self.geometry.size_bytes / self.block_bytes()
    }

    fn bytes(&self, range: Range) -> Result<Bytes, Sense> {
        let end = range
            .lba
            .checked_add(range.blocks)
            .ok_or(Sense::OUT_OF_RANGE)?;
        if end > self.blocks() {
            return Err(Sense::OUT_OF_RANGE);
        }
        let block = self.block_bytes();
        Ok(Bytes {
            offset: range.lba * block,
            length: range.blocks * block,
        })
    }

    /// A range that is moved in one piece; `protect`: byte 1 carries RDPROTECT or WRPROTECT.
    fn transfer(&self, cdb: &[u8; 16]) -> Result<Bytes, Sense> {
        if !matches!(cdb[0], op::READ_6 | op::WRITE_6) && cdb[1] & 0xe0 != 0 {
            return Err(Sense::cdb_field(1));
        }
        let bytes = self.bytes(range(cdb))?;
        if bytes.length > u64::from(TRANSFER_BYTES_MAX) {
            return Err(Sense::cdb_field(length_field(cdb[0])));
        }
        Ok(bytes)
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.geometry.read_only {
            return Err(Sense::WRITE_PROTECTED);
        }
        if self.modes.write_protect {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED);
        }
        Ok(())
    }
}

fn capacity_10(unit: &LogicalUnit) -> Step {
    let last = u32::try_from(unit.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut bytes = last.to_be_bytes().to_vec();
    bytes.extend_from_slice(&unit.geometry.logical_block_bytes.to_be_bytes());
    Step::Finished(Reply::data(bytes))
}

fn service_in(unit: &LogicalUnit, cdb: &[u8; 16]) -> Result<Step, Sense> {
    let allocation = usize::try_from(be32(cdb, 10)).unwrap_or(usize::MAX);
    if cdb[1] & 0x1f == op::READ_CAPACITY_16 {
        let mut bytes = unit.blocks().saturating_sub(1).to_be_bytes().to_vec();
        bytes.extend_from_slice(&unit.geometry.logical_block_bytes.to_be_bytes());
        bytes.resize(32, 0);
        let per_page = 4096 / unit.geometry.logical_block_bytes.clamp(1, 4096);
        bytes[13] = u8::try_from(per_page.trailing_zeros()).unwrap_or(0);
        bytes[14] = 0xc0; // LBPME, LBPRZ
        return Ok(cut(bytes, allocation));
    }
    let lba = be64(cdb, 2);
    if lba >= unit.blocks() {
        return Err(Sense::OUT_OF_RANGE);
    }
    let blocks = (unit.blocks() - lba).min(STATUS_BYTES_MAX / unit.block_bytes());
    let bytes = unit.bytes(Range { lba, blocks })?;
    Ok(Step::Operate(
        Operation::BlockStatus {
            offset: bytes.offset,
            length: bytes.length,
        },
        Then::Extents { allocation },
    ))
}

/// READ DEFECT DATA (SBC-3 §5.17, §5.18): a volume has none.
fn defects(cdb: &[u8; 16]) -> Step {
    if cdb[0] == op::READ_DEFECT_10 {
        return cut(vec![0, cdb[2] & 0x1f, 0, 0], usize::from(be16(cdb, 7)));
    }
    let allocation = usize::try_from(be32(cdb, 6)).unwrap_or(usize::MAX);
    cut(vec![0, cdb[1] & 0x1f, 0, 0, 0, 0, 0, 0], allocation)
}

fn read(unit: &LogicalUnit, cdb: &[u8; 16]) -> Result<Step, Sense> {
    let bytes = unit.transfer(cdb)?;
    if bytes.length == 0 {
        return Ok(Step::Finished(Reply::good()));
    }
    let operation = Operation::Read {
        offset: bytes.offset,
        length: bytes.length_u32(),
    };
    Ok(Step::Operate(operation, Then::Data))
}

fn verify(unit: &LogicalUnit, cdb: &[u8; 16], data: &[u8]) -> Result<Step, Sense> {
    if cdb[1] & 0xe0 != 0 {
        return Err(Sense::cdb_field(1));
    }
    let bytes = unit.bytes(range(cdb))?;
    let expected = match cdb[1] >> 1 & 3 {
        0 => None,
        2 => return Err(Sense::cdb_field(1)),
        check => {
            if check == 1 && bytes.length > u64::from(TRANSFER_BYTES_MAX) {
                return Err(Sense::cdb_field(7));
            }
            Some(data.to_vec())
        }
    };
    match expected {
        Some(expected) if cdb[1] >> 1 & 3 == 1 => {
            if expected.is_empty() {
                return Ok(Step::Finished(Reply::good()));
            }
            let length = u32::try_from(expected.len()).map_err(|_| Sense::cdb_field(7))?;
            let operation = Operation::Read {
                offset: bytes.offset,
                length,
            };
            Ok(Step::Operate(operation, Then::Compare { expected }))
        }
        expected => Ok(verify_piece(bytes.offset, bytes.end(), expected)),
    }
}

fn verify_piece(at: u64, end: u64, expected: Option<Vec<u8>>) -> Step {
    if at >= end || expected.as_ref().is_some_and(Vec::is_empty) {
        return Step::Finished(Reply::good());
    }
    let length = u32::try_from((end - at).min(PIECE_BYTES)).unwrap_or(u32::MAX);
    let operation = Operation::Read { offset: at, length };
    Step::Operate(
        operation,
        Then::Verify {
            at: at + u64::from(length),
            end,
            expected,
        },
    )
}

fn write(unit: &LogicalUnit, cdb: &[u8; 16], data: Buffer) -> Result<Step, Sense> {
    let bytes = unit.transfer(cdb)?;
    let verifies = matches!(
        cdb[0],
        op::WRITE_VERIFY_10 | op::WRITE_VERIFY_12 | op::WRITE_VERIFY_16
    );
    if verifies && cdb[1] >> 1 & 3 > 1 {
        return Err(Sense::cdb_field(1));
    }
    if cdb[0] == op::WRITE_ATOMIC_16 && bytes.length > u64::from(ATOMIC_BYTES_MAX) {
        return Err(Sense::cdb_field(12));
    }
    if data.is_empty() {
        return Ok(Step::Finished(Reply::good()));
    }
    let fua = verifies || (cdb[0] != op::WRITE_6 && cdb[1] & 0x08 != 0);
    let read_back = verifies && cdb[1] & 0x02 != 0;
    let offset = bytes.offset;
    // Fewer bytes may have come than the command said (residual), and end within a block.
    let block = usize::try_from(unit.block_bytes()).unwrap_or(usize::MAX);
    let whole_bytes = data.len().next_multiple_of(block);
    let how = match cdb[0] {
        op::ORWRITE_16 => Some(How::Or),
        _ if whole_bytes > data.len() => Some(How::Replace { read_back }),
        _ => None,
    };
    if let Some(how) = how {
        let length =
            u32::try_from(whole_bytes).map_err(|_| Sense::cdb_field(length_field(cdb[0])))?;
        let change = Change {
            offset,
            length,
            data,
            how,
            fua,
        };
        return Ok(change.read());
    }
    let then = if read_back {
        Then::ReadBack {
            offset,
            written: data.to_vec(),
        }
    } else {
        Then::Status
    };
    Ok(Step::Operate(Operation::Write { offset, data, fua }, then))
}

/// Read `length` bytes and compare the first of them with what was written.
fn read_back(offset: u64, length: u32, written: Vec<u8>) -> Step {
    let operation = Operation::Read { offset, length };
    Step::Operate(operation, Then::Compare { expected: written })
}

fn compare_and_write(unit: &LogicalUnit, cdb: &[u8; 16], data: &[u8]) -> Result<Step, Sense> {
    let bytes = unit.transfer(cdb)?;
    let half = data.len() / 2;
    if half == 0 {
        return Ok(Step::Finished(Reply::good()));
    }
    if half as u64 != bytes.length {
        return Err(Sense::WRONG_AMOUNT_OF_DATA);
    }
    let (expected, data) = data.split_at(half);
    let operation = Operation::CompareAndWrite {
        offset: bytes.offset,
        expected: expected.to_vec(),
        data: data.into(),
        fua: cdb[1] & 0x08 != 0,
    };
    Ok(Step::Operate(operation, Then::Status))
}

/// WRITE SAME (SBC-3 §5.43, §5.45). Zero blocks: to the end of the unit (WSNZ=0).
fn write_same(unit: &LogicalUnit, cdb: &[u8; 16], data: &[u8]) -> Result<Step, Sense> {
    // WRPROTECT; ANCHOR: we announce no anchored blocks (VPD B2, ANC_SUP=0).
    if cdb[1] & 0xe0 != 0 || cdb[1] & 0x10 != 0 {
        return Err(Sense::cdb_field(1));
    }
    let unmap = cdb[1] & 0x08 != 0;
    if unmap && cdb[0] == op::WRITE_SAME_10 {
        return Err(Sense::cdb_field(1)); // VPD B2, LBPWS10=0: WRITE SAME (16) unmaps
    }
    let no_data = cdb[0] == op::WRITE_SAME_16 && cdb[1] & 0x01 != 0;
    let mut range = range(cdb);
    unit.bytes(range)?;
    if range.blocks == 0 {
        range.blocks = unit.blocks() - range.lba;
    }
    let bytes = unit.bytes(range)?;
    if bytes.length > WRITE_SAME_BYTES_MAX {
        return Err(Sense::cdb_field(length_field(cdb[0])));
    }
    let (offset, length) = (bytes.offset, bytes.length);
    if length == 0 {
        return Ok(Step::Finished(Reply::good()));
    }
    // With LBPRZ=1 only blocks of zeros may be unmapped: what is read afterwards is what was sent
    // (SBC-3 §4.7.3.4.3).
    if no_data || data.iter().all(|byte| *byte == 0) {
        let operation = if unmap {
            Operation::Unmap { offset, length }
        } else {
            Operation::WriteZeroes {
                offset,
                length,
                allocate: true,
                fua: false,
            }
        };
        return Ok(Step::Operate(operation, Then::Status));
    }
    Ok(pattern_piece(offset, bytes.end(), data.to_vec(), false))
}

fn pattern_piece(at: u64, end: u64, block: Vec<u8>, fua: bool) -> Step {
    if at >= end {
        return Step::Finished(Reply::good());
    }
    let length = (end - at).min(PIECE_BYTES);
    let count = usize::try_from(length).unwrap_or(0) / block.len().max(1);
    let operation = Operation::Write {
        offset: at,
        data: block.repeat(count).into(),
        fua,
    };
    Step::Operate(
        operation,
        Then::Pattern {
            at: at + length,
            end,
            block,
            fua,
        },
    )
}

/// UNMAP (SBC-3 §5.28): every descriptor is checked before the first is obeyed.
fn unmap(unit: &LogicalUnit, cdb: &[u8; 16], list: &[u8]) -> Result<Step, Sense> {
    if cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb_field(1)); // ANCHOR
    }
    if be16(cdb, 7) == 0 {
        return Ok(Step::Finished(Reply::good()));
    }
    if list.len() < 8 {
        return Err(Sense::LIST_LENGTH);
    }
    let descriptor_bytes = usize::from(be16(list, 2)).min(list.len() - 8);
    let descriptors = list[8..8 + descriptor_bytes].chunks_exact(16);
    if descriptors.len() > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::list_field(2));
    }
    let mut rest = Vec::new();
    for descriptor in descriptors {
        let range = Range {
            lba: be64(descriptor, 0),
            blocks: u64::from(be32(descriptor, 8)),
        };
        let bytes = unit.bytes(range)?;
        if bytes.length > 0 {
            rest.push((bytes.offset, bytes.length));
        }
    }
    rest.reverse();
    Ok(next_unmap(rest))
}

fn next_unmap(mut rest: Vec<(u64, u64)>) -> Step {
    match rest.pop() {
        None => Step::Finished(Reply::good()),
        Some((offset, length)) => {
            Step::Operate(Operation::Unmap { offset, length }, Then::Unmap { rest })
        }
    }
}

/// Go on after an outcome.
pub(crate) fn resume(unit: &LogicalUnit, then: Then, outcome: Outcome) -> Step {
    let reads = !matches!(
        then,
        Then::Status | Then::ChangeSwap(_) | Then::Pattern { .. } | Then::Unmap { .. }
    );
    match (then, outcome) {
        (Then::ChangeSwap(change), Outcome::Miscompare { .. }) => change.read(),
        (_, Outcome::Miscompare { at }) => Sense::MISCOMPARE.with_information(u64::from(at)).into(),
        (_, Outcome::Failed(failure)) => failed(unit, failure, reads).into(),
        (Then::Status, _) => Step::Finished(Reply::good()),
        (Then::ChangeRead(change), Outcome::Data(expected)) => change.swap(expected),
        (Then::ChangeSwap(change), Outcome::Done) => change.done(),
        (Then::Data, Outcome::Data(data)) => Step::Finished(Reply::data(data)),
        (Then::Compare { expected }, Outcome::Data(data)) => {
            compare(&data, &expected, 0).map_or_else(|| Step::Finished(Reply::good()), Step::from)
        }
        (Then::Verify { at, end, expected }, Outcome::Data(data)) => {
            match expected.as_ref().and_then(|expected| {
                data.chunks(expected.len())
                    .find_map(|block| compare(block, expected, 0))
            }) {
                Some(sense) => sense.into(),
                None => verify_piece(at, end, expected),
            }
        }
        (Then::ReadBack { offset, written }, Outcome::Done) => {
            let length = u32::try_from(written.len()).unwrap_or(u32::MAX);
            read_back(offset, length, written)
        }
        (
            Then::Pattern {
                at,
                end,
                block,
                fua,
            },
            _,
        ) => pattern_piece(at, end, block, fua),
        (Then::Unmap { rest }, _) => next_unmap(rest),
        (Then::Extents { allocation }, Outcome::Extents(extents)) => {
            cut(lba_status(unit, &extents), allocation)
        }
        // An engine that answers something else than asked is broken.
        (_, _) => failed(unit, Failure::Medium, reads).into(),
    }
}

fn compare(data: &[u8], expected: &[u8], base: u64) -> Option<Sense> {
    let at = data
        .iter()
        .zip(expected)
        .position(|(left, right)| left != right)?;
    Some(Sense::MISCOMPARE.with_information(base + at as u64))
}

fn failed(unit: &LogicalUnit, failure: Failure, reads: bool) -> Sense {
    match failure {
        Failure::OutOfRange => Sense::OUT_OF_RANGE,
        Failure::Medium if reads => Sense::READ_ERROR,
        Failure::Medium => Sense::WRITE_ERROR,
        // Of a write, too: what was to be kept of a block that it covers in part could not be read.
        Failure::Checksum { offset } => {
            Sense::READ_ERROR.with_information(offset / unit.block_bytes())
        }
        Failure::NoSpace => Sense::NO_SPACE,
        Failure::ReadOnly => Sense::WRITE_PROTECTED,
        Failure::Fenced => Sense::STANDBY,
        Failure::Unavailable => Sense::UNAVAILABLE,
    }
}

/// GET LBA STATUS parameter data (SBC-3 §5.5.2).
fn lba_status(unit: &LogicalUnit, extents: &[Extent]) -> Vec<u8> {
    let block = unit.block_bytes();
    let mut bytes = vec![0; 8];
    for extent in extents {
        let blocks = u32::try_from(extent.length / block).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&(extent.offset / block).to_be_bytes());
        bytes.extend_from_slice(&blocks.to_be_bytes());
        bytes.extend_from_slice(&[u8::from(!extent.mapped), 0, 0, 0]);
    }
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}
