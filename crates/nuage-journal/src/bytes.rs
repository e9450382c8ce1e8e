//! Little-endian fields at fixed places of a buffer, and a bounded reader.

use crate::error::{JournalError, malformed};

/// Write `value` at `at`; panics when our own layout is wrong.
pub(crate) fn put<const N: usize>(buffer: &mut [u8], at: usize, value: [u8; N]) {
    buffer[at..at + N].copy_from_slice(&value);
}

/// The bytes before their own BLAKE3 digest, which ends a file that is replaced whole.
pub(crate) fn undamaged<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], JournalError> {
    let (body, digest) = bytes
        .split_last_chunk::<32>()
        .ok_or_else(|| malformed(what, "short"))?;
    if blake3::hash(body).as_bytes() != digest {
        return Err(malformed(what, "digest"));
    }
    Ok(body)
}

/// Reads fields in order from bytes that others may have damaged.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], JournalError> {
        let (head, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or_else(|| malformed(self.what, "too short"))?;
        self.bytes = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], JournalError> {
        let (head, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or_else(|| malformed(self.what, "too short"))?;
        self.bytes = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, JournalError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, JournalError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, JournalError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, JournalError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn magic(&mut self, magic: [u8; 8]) -> Result<(), JournalError> {
        if self.array::<8>()? == magic {
            Ok(())
        } else {
            Err(malformed(self.what, "magic"))
        }
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }
}

/// Widen a length that fits in memory; `usize` has at most 64 bits on every target we build for.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn wide(length: usize) -> u64 {
    length as u64
}

/// Narrow a length that is bounded by a segment or a group.
pub(crate) fn narrow(length: usize) -> u32 {
    u32::try_from(length).expect("bounded by the segment size")
}

/// Narrow an offset that is bounded by a segment or a file we read whole.
pub(crate) fn size(length: u64) -> usize {
    usize::try_from(length).expect("bounded by memory")
}
