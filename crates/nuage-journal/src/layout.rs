//! Groups and descriptors as they lie on disk and travel to replicas (docs/protocols/journal.md §3).

use std::sync::Arc;

use crate::bytes::{Reader, narrow, put, size, wide};
use crate::cipher::{BlockOrigin, Cipher, VolumeUuid, block_crc};
use nuage_block::{Buffer, Bytes, Pages, crc32c};
use std::ops::Range;

use crate::disk::BLOCK_BYTES;
use crate::error::{JournalError, malformed};

pub const GROUP_MAGIC: [u8; 8] = *b"NUAGGRP1";
pub const GROUP_HEADER_BYTES: usize = 160;
pub const DESCRIPTOR_BYTES: usize = 32;
/// Payload of a group at most: 1 MiB commits at disk speed, and more only delays the first of them.
pub const GROUP_PAYLOAD_BLOCKS_MAX: u32 = 256;
/// Header blocks at most, so that `back` (9 bits) reaches the header from each payload block.
pub const GROUP_HEADER_BLOCKS_MAX: usize = 128;
/// Records of a group at most.
pub const GROUP_RECORDS_MAX: u32 = 512;
/// A volume at most. What names a block past it is no record: an index that reached there would not fit in memory.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Reservation state of a volume at most; SPC-4 targets keep some hundred bytes a registrant.
pub const RESERVATIONS_BYTES_MAX: usize = 64 * 1024;
/// Names of marks and heads at most.
pub const NAME_BYTES_MAX: usize = 255;

pub const DIGEST_BLAKE3: u8 = 2;
pub const CIPHER_NONE: u8 = 0;
pub const CIPHER_AES_256_GCM: u8 = 1;

pub const FLAG_FUA: u8 = 1;
pub const FLAG_ATOMIC: u8 = 2;

/// The chain's value at one point of a journal.
pub type Chain = [u8; 32];

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Write = 1,
    Zero = 2,
    Unmap = 3,
    CompareAndWrite = 4,
    Flush = 5,
    Mark = 6,
    Snapshot = 7,
    Reservations = 8,
    Epoch = 9,
    Rollback = 10,
    Base = 11,
    Resize = 12,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Write,
            2 => Self::Zero,
            3 => Self::Unmap,
            4 => Self::CompareAndWrite,
            5 => Self::Flush,
            6 => Self::Mark,
            7 => Self::Snapshot,
            8 => Self::Reservations,
            9 => Self::Epoch,
            10 => Self::Rollback,
            11 => Self::Base,
            12 => Self::Resize,
            _ => return None,
        })
    }

    /// Bytes that each block adds to the tail.
    fn entry_bytes(self, cipher: u8) -> Option<usize> {
        match self {
            Self::Write | Self::CompareAndWrite if cipher == CIPHER_NONE => Some(4),
            Self::Write | Self::CompareAndWrite => Some(20),
            Self::Base => Some(56),
            _ => None,
        }
    }
}

/// One record of a group, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub kind: Kind,
    pub flags: u8,
    /// Payload blocks.
    pub blocks: u32,
    pub lba: u64,
    pub argument: u64,
    /// First payload block of the group that is this record's.
    pub payload_block: u32,
    pub tail: Vec<u8>,
}

/// What is known of one payload block without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFacts {
    pub lba: u64,
    pub crc: u32,
    pub tag: [u8; 16],
    pub origin: BlockOrigin,
}

/// The fixed part of a group's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    pub header_bytes: u32,
    pub cipher: u8,
    pub volume: VolumeUuid,
    pub segment: u64,
    pub epoch: u64,
    pub first_seq: u64,
    pub count: u32,
    pub payload_blocks: u32,
    pub time_ns: u64,
    pub stable_seq: u64,
    pub previous_chain: Chain,
    pub payload_digest: [u8; 32],
}

impl GroupInfo {
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count) - 1
    }

    pub fn header_blocks(&self) -> u32 {
        self.header_bytes.div_ceil(narrow(BLOCK_BYTES))
    }

    /// Blocks of header and payload.
    pub fn total_blocks(&self) -> u32 {
        self.header_blocks() + self.payload_blocks
    }
}

/// A group's header and descriptors, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHead {
    pub info: GroupInfo,
    pub descriptors: Vec<Descriptor>,
    pub chain: Chain,
}

/// A whole group: what is appended, replicated and hashed.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub head: Arc<GroupHead>,
    pub header: Pages,
    pub payload: Pages,
}

impl GroupHead {
    /// Read a group's header from the start of `bytes`; what follows it may be cut off.
    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        let info = decode_info(bytes)?;
        let header_bytes = info.header_bytes as usize;
        let whole = bytes
            .get(..header_bytes)
            .ok_or_else(|| malformed("group", "cut off"))?;
        let descriptors_crc = u32::from_le_bytes(array_at(whole, 152));
        if crc32c(&whole[GROUP_HEADER_BYTES..]) != descriptors_crc {
            return Err(malformed("group", "checksum of descriptors"));
        }
        let descriptors = decode_descriptors(&whole[GROUP_HEADER_BYTES..], &info)?;
        let chain = chain_of(whole);
        Ok(Self {
            info,
            descriptors,
            chain,
        })
    }

    /// What each payload block is, in payload order.
    pub fn block_facts(&self) -> Vec<BlockFacts> {
        let mut facts = Vec::with_capacity(self.info.payload_blocks as usize);
        for (descriptor, seq) in self.descriptors.iter().zip(self.info.first_seq..) {
            facts.extend(self.facts_of(descriptor, seq));
        }
        facts
    }

    fn facts_of<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        seq: u64,
    ) -> impl Iterator<Item = BlockFacts> + 'a {
        let info = &self.info;
        let entry_bytes = descriptor
            .kind
            .entry_bytes(info.cipher)
            .unwrap_or(usize::MAX);
        descriptor
            .tail
            .chunks_exact(entry_bytes.min(isize::MAX as usize))
            .zip(0u32..)
            .map(move |(entry, index)| {
                let mut facts = BlockFacts {
                    lba: descriptor.lba + u64::from(index),
                    crc: u32::from_le_bytes(array_at(entry, 0)),
                    tag: [0; 16],
                    origin: BlockOrigin {
                        volume: info.volume,
                        epoch: info.epoch,
                        seq,
                        index,
                    },
                };
                if entry.len() >= 20 {
                    facts.tag = array_at(entry, 4);
                }
                if descriptor.kind == Kind::Base {
                    facts.origin = BlockOrigin {
                        epoch: u64::from_le_bytes(array_at(entry, 20)),
                        seq: u64::from_le_bytes(array_at(entry, 28)),
                        index: u32::from_le_bytes(array_at(entry, 36)),
                        volume: array_at(entry, 40),
                    };
                }
                facts
            })
    }
}

impl Group {
    /// Read a whole group from the start of `bytes` and check all of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        let (head, payload) = check(bytes)?;
        Ok(Self::of(
            head,
            bytes,
            Buffer::padded(&bytes[payload]).into(),
        ))
    }

    /// As `decode`; a payload that begins at a page stays where it was received.
    pub fn take(bytes: &Bytes) -> Result<Self, JournalError> {
        let (head, payload) = check(bytes)?;
        let pages = Pages::of(bytes.slice(payload.clone()));
        let pages = pages.unwrap_or_else(|| Buffer::padded(&bytes[payload]).into());
        Ok(Self::of(head, bytes, pages))
    }

    fn of(head: GroupHead, bytes: &[u8], payload: Pages) -> Self {
        // Padding is ours: on every copy the same bytes lie on the disk.
        let header = Buffer::padded(&bytes[..head.info.header_bytes as usize]);
        Self {
            head: head.into(),
            header: header.into(),
            payload,
        }
    }

    pub fn total_bytes(&self) -> u64 {
        u64::from(self.head.info.total_blocks()) * wide(BLOCK_BYTES)
    }

    /// Header and descriptors without padding: what the chain covers.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header[..self.head.info.header_bytes as usize]
    }
}

/// The head of the group at the start of `bytes`, and where its payload lies, which has the digest that it says.
fn check(bytes: &[u8]) -> Result<(GroupHead, Range<usize>), JournalError> {
    let head = GroupHead::decode(bytes)?;
    let start = head.info.header_blocks() as usize * BLOCK_BYTES;
    let end = start + head.info.payload_blocks as usize * BLOCK_BYTES;
    let payload = bytes
        .get(start..end)
        .ok_or_else(|| malformed("group", "cut off"))?;
    if blake3::hash(payload).as_bytes() != &head.info.payload_digest {
        return Err(malformed("group", "digest of payload"));
    }
    Ok((head, start..end))
}

/// SHA-256 over header and descriptors.
pub fn chain_of(header: &[u8]) -> Chain {
    let mut chain = [0; 32];
    chain.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, header).as_ref());
    chain
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn decode_info(bytes: &[u8]) -> Result<GroupInfo, JournalError> {
    let fixed = bytes
        .get(..GROUP_HEADER_BYTES)
        .ok_or_else(|| malformed("group", "shorter than header"))?;
    if crc32c(&fixed[..156]) != u32::from_le_bytes(array_at(fixed, 156)) {
        return Err(malformed("group", "checksum of header"));
    }
    let mut reader = Reader::new(fixed, "group");
    reader.magic(GROUP_MAGIC)?;
    if reader.u16()? != 1 {
        return Err(malformed("group", "version"));
    }
    if reader.u8()? != DIGEST_BLAKE3 {
        return Err(malformed("group", "digest kind"));
    }
    let cipher = reader.u8()?;
    let info = GroupInfo {
        cipher,
        header_bytes: reader.u32()?,
        volume: reader.array()?,
        segment: reader.u64()?,
        epoch: reader.u64()?,
        first_seq: reader.u64()?,
        count: reader.u32()?,
        payload_blocks: reader.u32()?,
        time_ns: reader.u64()?,
        stable_seq: reader.u64()?,
        previous_chain: reader.array()?,
        payload_digest: reader.array()?,
    };
    let header_max = GROUP_HEADER_BLOCKS_MAX * BLOCK_BYTES;
    if cipher > CIPHER_AES_256_GCM
        || !(GROUP_HEADER_BYTES..=header_max).contains(&(info.header_bytes as usize))
        || !(1..=GROUP_RECORDS_MAX).contains(&info.count)
        || info.payload_blocks > GROUP_PAYLOAD_BLOCKS_MAX
        || info.first_seq == 0
        || info.first_seq.checked_add(u64::from(info.count)).is_none()
    {
        return Err(malformed("group", "field out of range"));
    }
    Ok(info)
}

fn decode_descriptors(bytes: &[u8], info: &GroupInfo) -> Result<Vec<Descriptor>, JournalError> {
    let mut reader = Reader::new(bytes, "descriptor");
    let mut descriptors = Vec::with_capacity(info.count as usize);
    let mut payload_block = 0;
    for _ in 0..info.count {
        let kind = Kind::from_byte(reader.u8()?).ok_or_else(|| malformed("descriptor", "kind"))?;
        let flags = reader.u8()?;
        reader.u16()?;
        let mut descriptor = Descriptor {
            kind,
            flags,
            blocks: reader.u32()?,
            lba: reader.u64()?,
            argument: reader.u64()?,
            payload_block: reader.u32()?,
            tail: Vec::new(),
        };
        let tail_bytes = reader.u32()? as usize;
        let tail = reader.take(tail_bytes.next_multiple_of(8).min(usize::MAX - 7))?;
        descriptor.tail = tail[..tail_bytes].to_vec();
        check_descriptor(&descriptor, info, payload_block)?;
        // A state that needs itself to be made could never be.
        let seq = info.first_seq + descriptors.len() as u64;
        if descriptor.kind == Kind::Rollback && descriptor.argument >= seq {
            return Err(malformed("descriptor", "a rollback to what comes after it"));
        }
        payload_block += descriptor.blocks;
        descriptors.push(descriptor);
    }
    if payload_block != info.payload_blocks || reader.left() != 0 {
        return Err(malformed("descriptor", "counts do not add up"));
    }
    Ok(descriptors)
}

fn check_descriptor(
    descriptor: &Descriptor,
    info: &GroupInfo,
    payload_block: u32,
) -> Result<(), JournalError> {
    let expected_tail = descriptor
        .kind
        .entry_bytes(info.cipher)
        .map(|entry| entry.saturating_mul(descriptor.blocks as usize));
    let sound = match descriptor.kind {
        Kind::Write | Kind::CompareAndWrite | Kind::Base => {
            expected_tail == Some(descriptor.tail.len())
                && descriptor.payload_block == payload_block
                && descriptor.blocks <= info.payload_blocks - payload_block
                && descriptor
                    .lba
                    .checked_add(u64::from(descriptor.blocks))
                    .is_some_and(|end| end <= VOLUME_BYTES_MAX / wide(BLOCK_BYTES))
        }
        Kind::Zero | Kind::Unmap => {
            descriptor.blocks == 0 && descriptor.lba.checked_add(descriptor.argument).is_some()
        }
        Kind::Mark | Kind::Snapshot | Kind::Epoch => {
            descriptor.blocks == 0 && descriptor.tail.len() <= NAME_BYTES_MAX
        }
        Kind::Reservations => {
            descriptor.blocks == 0 && descriptor.tail.len() <= RESERVATIONS_BYTES_MAX
        }
        Kind::Resize => descriptor.blocks == 0 && descriptor.argument <= VOLUME_BYTES_MAX,
        Kind::Flush | Kind::Rollback => descriptor.blocks == 0,
    };
    if sound {
        Ok(())
    } else {
        Err(malformed("descriptor", "field out of range"))
    }
}

/// What the head knows when it closes a group.
#[derive(Debug, Clone, Copy)]
pub struct Closing {
    pub segment: u64,
    pub time_ns: u64,
    pub stable_seq: u64,
    pub previous_chain: Chain,
}

/// Gathers records into the next group.
#[derive(Debug)]
pub struct GroupBuilder {
    volume: VolumeUuid,
    epoch: u64,
    first_seq: u64,
    encrypted: bool,
    header: Vec<u8>,
    descriptors: Vec<Descriptor>,
    payload: Buffer,
    /// The payload instead, where it was received.
    lent: Option<Pages>,
}

impl GroupBuilder {
    pub fn new(volume: VolumeUuid, epoch: u64, first_seq: u64, encrypted: bool) -> Self {
        Self {
            volume,
            epoch,
            first_seq,
            encrypted,
            header: vec![0; GROUP_HEADER_BYTES],
            descriptors: Vec::new(),
            payload: Buffer::new(),
            lent: None,
        }
    }

    /// With room for as much as `other` holds and a little more: the next group is likely to be about as large.
    #[must_use]
    pub fn with_room_of(mut self, other: &Self) -> Self {
        self.header.reserve(other.header.len());
        self.descriptors.reserve(other.descriptors.len());
        let held = other.payload.len();
        if held > 0 {
            self.payload.reserve_exact(held.next_power_of_two());
        }
        self
    }

    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// The seq that the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.first_seq + wide(self.descriptors.len())
    }

    pub fn payload_blocks(&self) -> u32 {
        let lent = self.lent.as_ref().map_or(0, |lent| lent.len());
        narrow((self.payload.len() + lent) / BLOCK_BYTES)
    }

    /// Payload so far; not what was lent.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub fn total_blocks(&self) -> u32 {
        narrow(self.header.len().div_ceil(BLOCK_BYTES)) + self.payload_blocks()
    }

    /// Bytes of header and descriptors so far.
    pub fn header_bytes(&self) -> usize {
        self.header.len()
    }

    /// True when a record of `blocks` payload blocks and `tail_bytes` still fits.
    pub fn fits(&self, blocks: u32, tail_bytes: usize, payload_blocks_max: u32) -> bool {
        let header = self.header.len() + DESCRIPTOR_BYTES + tail_bytes + 20 * blocks as usize + 8;
        self.descriptors.len() < GROUP_RECORDS_MAX as usize
            && self.payload_blocks() + blocks <= payload_blocks_max
            && header <= GROUP_HEADER_BLOCKS_MAX * BLOCK_BYTES
    }

    /// Add a write of whole blocks; returns its seq. `cipher` is the one the builder was made for.
    pub fn push_write(
        &mut self,
        kind: Kind,
        flags: u8,
        lba: u64,
        data: &[u8],
        cipher: Option<&mut Cipher>,
    ) -> u64 {
        let seq = self.next_seq();
        let tail = if let Some(cipher) = cipher {
            self.copy_sealed(seq, lba, data, cipher)
        } else {
            // From where it came: it is in the processor's cache, the payload may not be.
            let tail = self.checksums(lba, data);
            self.payload.extend_from_slice(data);
            self.payload.fetch_room(BLOCK_BYTES);
            tail
        };
        let blocks = narrow(data.len() / BLOCK_BYTES);
        self.push_descriptor(Descriptor {
            kind,
            flags,
            blocks,
            lba,
            argument: 0,
            payload_block: self.payload_blocks() - blocks,
            tail,
        })
    }

    /// Copy a write's blocks encrypted behind the payload; returns their entries.
    fn copy_sealed(&mut self, seq: u64, lba: u64, data: &[u8], cipher: &mut Cipher) -> Vec<u8> {
        let mut tail = Vec::with_capacity(data.len() / BLOCK_BYTES * 20);
        let start = self.payload.len();
        self.payload.extend_from_slice(data);
        let stored = self.payload[start..].chunks_mut(BLOCK_BYTES);
        for (block, index) in stored.zip(0u32..) {
            let block_lba = lba + u64::from(index);
            let origin = BlockOrigin {
                volume: self.volume,
                epoch: self.epoch,
                seq,
                index,
            };
            let tag = cipher.seal(&origin, block_lba, block);
            tail.extend_from_slice(&block_crc(&self.volume, block_lba, block).to_le_bytes());
            tail.extend_from_slice(&tag);
        }
        tail
    }

    /// Entries of blocks that are stored as they are.
    fn checksums(&self, lba: u64, data: &[u8]) -> Vec<u8> {
        let mut tail = Vec::with_capacity(data.len() / BLOCK_BYTES * 4);
        for (block, lba) in data.chunks(BLOCK_BYTES).zip(lba..) {
            tail.extend_from_slice(&block_crc(&self.volume, lba, block).to_le_bytes());
        }
        tail
    }

    /// Take a write's blocks as the payload, where they are; returns its seq. For a group that is empty and not
    /// encrypted.
    pub fn push_lent(&mut self, kind: Kind, flags: u8, lba: u64, data: Pages) -> u64 {
        debug_assert!(self.payload_blocks() == 0 && !self.encrypted);
        let tail = self.checksums(lba, &data);
        self.lent = Some(data);
        self.push_descriptor(Descriptor {
            kind,
            flags,
            blocks: self.payload_blocks(),
            lba,
            argument: 0,
            payload_block: 0,
            tail,
        })
    }

    /// Add a block that compaction moves; its ciphertext, tag and origin stay what they were.
    pub fn push_base(&mut self, facts: &BlockFacts, stored: &[u8]) -> u64 {
        let payload_block = self.payload_blocks();
        self.payload.extend_from_slice(stored);
        let mut tail = Vec::with_capacity(56);
        tail.extend_from_slice(&facts.crc.to_le_bytes());
        tail.extend_from_slice(&facts.tag);
        tail.extend_from_slice(&facts.origin.epoch.to_le_bytes());
        tail.extend_from_slice(&facts.origin.seq.to_le_bytes());
        tail.extend_from_slice(&facts.origin.index.to_le_bytes());
        tail.extend_from_slice(&facts.origin.volume);
        self.push_descriptor(Descriptor {
            kind: Kind::Base,
            flags: 0,
            blocks: 1,
            lba: facts.lba,
            argument: 0,
            payload_block,
            tail,
        })
    }

    /// Add a record without payload; returns its seq.
    pub fn push_plain(
        &mut self,
        kind: Kind,
        flags: u8,
        lba: u64,
        argument: u64,
        tail: &[u8],
    ) -> u64 {
        self.push_descriptor(Descriptor {
            kind,
            flags,
            blocks: 0,
            lba,
            argument,
            payload_block: self.payload_blocks(),
            tail: tail.to_vec(),
        })
    }

    fn push_descriptor(&mut self, descriptor: Descriptor) -> u64 {
        let seq = self.next_seq();
        self.header
            .extend_from_slice(&[descriptor.kind as u8, descriptor.flags, 0, 0]);
        self.header
            .extend_from_slice(&descriptor.blocks.to_le_bytes());
        self.header.extend_from_slice(&descriptor.lba.to_le_bytes());
        self.header
            .extend_from_slice(&descriptor.argument.to_le_bytes());
        self.header
            .extend_from_slice(&descriptor.payload_block.to_le_bytes());
        self.header
            .extend_from_slice(&narrow(descriptor.tail.len()).to_le_bytes());
        self.header.extend_from_slice(&descriptor.tail);
        let padded = self.header.len().next_multiple_of(8);
        self.header.resize(padded, 0);
        self.descriptors.push(descriptor);
        seq
    }

    /// Close the group.
    pub fn finish(self, closing: &Closing) -> Group {
        let mut header = self.header;
        let payload = self.lent.unwrap_or_else(|| self.payload.into());
        let info = GroupInfo {
            header_bytes: narrow(header.len()),
            cipher: if self.encrypted {
                CIPHER_AES_256_GCM
            } else {
                CIPHER_NONE
            },
            volume: self.volume,
            segment: closing.segment,
            epoch: self.epoch,
            first_seq: self.first_seq,
            count: narrow(self.descriptors.len()),
            payload_blocks: narrow(payload.count()),
            time_ns: closing.time_ns,
            stable_seq: closing.stable_seq,
            previous_chain: closing.previous_chain,
            payload_digest: *blake3::hash(&payload).as_bytes(),
        };
        encode_info(&mut header, &info);
        let head = GroupHead {
            info,
            descriptors: self.descriptors,
            chain: chain_of(&header),
        };
        debug_assert_eq!(GroupHead::decode(&header).as_ref(), Ok(&head));
        Group {
            head: head.into(),
            header: Buffer::padded(&header).into(),
            payload,
        }
    }
}

fn encode_info(header: &mut [u8], info: &GroupInfo) {
    put(header, 0, GROUP_MAGIC);
    put(header, 8, 1u16.to_le_bytes());
    put(header, 10, [DIGEST_BLAKE3, info.cipher]);
    put(header, 12, info.header_bytes.to_le_bytes());
    put(header, 16, info.volume);
    put(header, 32, info.segment.to_le_bytes());
    put(header, 40, info.epoch.to_le_bytes());
    put(header, 48, info.first_seq.to_le_bytes());
    put(header, 56, info.count.to_le_bytes());
    put(header, 60, info.payload_blocks.to_le_bytes());
    put(header, 64, info.time_ns.to_le_bytes());
    put(header, 72, info.stable_seq.to_le_bytes());
    put(header, 80, info.previous_chain);
    put(header, 112, info.payload_digest);
    let descriptors_crc = crc32c(&header[GROUP_HEADER_BYTES..]);
    put(header, 152, descriptors_crc.to_le_bytes());
    let header_crc = crc32c(&header[..156]);
    put(header, 156, header_crc.to_le_bytes());
}

/// Heads of groups back to back, as a footer holds them.
pub fn decode_footer(bytes: &[u8]) -> Result<Vec<GroupHead>, JournalError> {
    let mut heads = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let head = GroupHead::decode(&bytes[at..])?;
        at += size(u64::from(head.info.header_bytes));
        heads.push(head);
    }
    Ok(heads)
}
