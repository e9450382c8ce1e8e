//! Superblock and checkpoints (docs/protocols/journal.md §1, §5).

use crate::bytes::{Reader, narrow, put, undamaged, wide};
use crate::cipher::VolumeUuid;
use crate::disk::{BLOCK_BYTES, Content};
use crate::error::{JournalError, malformed};
use crate::index::{Entry, Index};
use crate::layout::{Chain, Kind, VOLUME_BYTES_MAX};
use crate::page::{PAGE_ENTRIES, Page};

const SUPER_MAGIC: [u8; 8] = *b"NUAGSUP1";
const CHECKPOINT_MAGIC: [u8; 8] = *b"NUAGCKP1";
const CHECKPOINT_HEADER_BYTES: usize = 160;
/// Marks that a volume keeps; older ones leave with the horizon.
pub const MARKS_MAX: usize = 100_000;

/// Identity and promise of one replica, kept twice ([`crate::superblocks`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub generation: u64,
    pub volume: VolumeUuid,
    pub size_bytes: u64,
    pub logical_block_bytes: u32,
    pub segment_bytes: u32,
    pub encrypted: bool,
    /// The highest epoch promised; lower writers are refused.
    pub promised: u64,
    pub created_ns: u64,
    /// Where a volume that was cloned got its first blocks.
    pub parent: VolumeUuid,
    /// Groups up to here had been durable and are damaged: until the log reaches it again, this copy
    /// cannot vouch for what was acknowledged.
    pub incomplete_seq: u64,
    /// Digest of the superblock before this one.
    pub previous: [u8; 32],
}

impl Superblock {
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        put(&mut block, 0, SUPER_MAGIC);
        put(&mut block, 8, self.generation.to_le_bytes());
        put(&mut block, 16, self.volume);
        put(&mut block, 32, self.size_bytes.to_le_bytes());
        put(&mut block, 40, self.logical_block_bytes.to_le_bytes());
        put(&mut block, 44, self.segment_bytes.to_le_bytes());
        put(&mut block, 48, u64::from(self.encrypted).to_le_bytes());
        put(&mut block, 56, self.promised.to_le_bytes());
        put(&mut block, 64, self.created_ns.to_le_bytes());
        put(&mut block, 72, self.parent);
        put(&mut block, 88, self.previous);
        put(&mut block, 120, self.incomplete_seq.to_le_bytes());
        let digest = *blake3::hash(&block[..128]).as_bytes();
        put(&mut block, 128, digest);
        block
    }

    pub fn decode(block: &[u8]) -> Result<Self, JournalError> {
        let mut reader = Reader::new(block, "superblock");
        reader.magic(SUPER_MAGIC)?;
        let found = Self {
            generation: reader.u64()?,
            volume: reader.array()?,
            size_bytes: reader.u64()?,
            logical_block_bytes: reader.u32()?,
            segment_bytes: reader.u32()?,
            encrypted: reader.u64()? != 0,
            promised: reader.u64()?,
            created_ns: reader.u64()?,
            parent: reader.array()?,
            previous: reader.array()?,
            incomplete_seq: reader.u64()?,
        };
        if blake3::hash(&block[..128]).as_bytes() != &reader.array::<32>()? {
            return Err(malformed("superblock", "digest"));
        }
        Ok(found)
    }
}

/// A named point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub seq: u64,
    pub time_ns: u64,
    pub kind: Kind,
    pub id: u64,
    pub name: String,
}

/// What a journal says besides blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideState {
    pub reservations: Vec<u8>,
    pub marks: Vec<Mark>,
}

/// A point of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    pub seq: u64,
    pub time_ns: u64,
    /// Epoch of the record at `seq`.
    pub epoch: u64,
    /// Segment that holds it.
    pub segment: u64,
    pub chain: Chain,
}

/// All that is needed to go on from a position.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub volume: VolumeUuid,
    pub size_bytes: u64,
    pub position: Position,
    /// Kept while it is within the history (after a rollback, before a clone).
    pub pinned: bool,
    pub side: SideState,
    pub index: Index,
    /// Rises when a copy is made anew from another: what has a lower one is of no use any more.
    pub life: u64,
}

pub fn checkpoint_name(seq: u64) -> String {
    format!("checkpoint.{seq:016x}")
}

/// The seq in a checkpoint's file name.
pub fn checkpoint_seq(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("checkpoint.")?, 16).ok()
}

impl Checkpoint {
    /// The file's bytes, made where they are written (another thread).
    pub fn content(&self) -> Content {
        let checkpoint = self.clone();
        Box::new(move |write| checkpoint.write(write))
    }

    fn write(&self, write: &mut dyn FnMut(&[u8])) {
        let mut hasher = blake3::Hasher::new();
        let mut emit = |bytes: &[u8]| {
            hasher.update(bytes);
            write(bytes);
        };
        let pages: Vec<(u64, &Page)> = self.index.pages().collect();
        let side = encode_side(&self.side);
        emit(&self.encode_header(side.len(), pages.len()));
        emit(&side);
        let mut buffer = Vec::with_capacity(8 + BLOCK_BYTES);
        for (number, page) in pages {
            buffer.clear();
            buffer.extend_from_slice(&number.to_le_bytes());
            for entry in page.entries() {
                buffer.extend_from_slice(&entry.0.to_le_bytes());
            }
            emit(&buffer);
        }
        write(hasher.finalize().as_bytes());
    }

    /// The whole file in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut |part| bytes.extend_from_slice(part));
        bytes
    }

    fn encode_header(&self, side_bytes: usize, page_count: usize) -> Vec<u8> {
        let mut header = vec![0; CHECKPOINT_HEADER_BYTES];
        put(&mut header, 0, CHECKPOINT_MAGIC);
        put(&mut header, 8, self.volume);
        put(&mut header, 24, self.size_bytes.to_le_bytes());
        put(&mut header, 32, self.position.seq.to_le_bytes());
        put(&mut header, 40, self.position.time_ns.to_le_bytes());
        put(&mut header, 48, self.position.epoch.to_le_bytes());
        put(&mut header, 56, self.position.segment.to_le_bytes());
        put(&mut header, 64, self.position.chain);
        put(&mut header, 96, u64::from(self.pinned).to_le_bytes());
        put(&mut header, 104, wide(side_bytes).to_le_bytes());
        put(&mut header, 112, wide(page_count).to_le_bytes());
        put(&mut header, 120, self.life.to_le_bytes());
        header
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        let what = "checkpoint";
        let body = undamaged(bytes, what)?;
        let mut reader = Reader::new(body, what);
        reader.magic(CHECKPOINT_MAGIC)?;
        let volume = reader.array()?;
        let size_bytes = reader.u64()?;
        let position = Position {
            seq: reader.u64()?,
            time_ns: reader.u64()?,
            epoch: reader.u64()?,
            segment: reader.u64()?,
            chain: reader.array()?,
        };
        let pinned = reader.u64()? != 0;
        let (side_length, page_count, life) = (reader.u64()?, reader.u64()?, reader.u64()?);
        reader.take(CHECKPOINT_HEADER_BYTES - 128)?;
        let side_length = usize::try_from(side_length).map_err(|_| malformed(what, "size"))?;
        let side = decode_side(reader.take(side_length)?)?;
        let mut index = Index::default();
        for _ in 0..page_count {
            let number = reader.u64()?;
            if number >= VOLUME_BYTES_MAX / wide(BLOCK_BYTES * PAGE_ENTRIES) {
                return Err(malformed(what, "page number"));
            }
            let raw = reader.take(PAGE_ENTRIES * 8)?;
            let mut page = [Entry::UNMAPPED; PAGE_ENTRIES];
            for (entry, bytes) in page.iter_mut().zip(raw.as_chunks::<8>().0) {
                *entry = Entry(u64::from_le_bytes(*bytes));
            }
            index.set_page(number, Page::of(&page));
        }
        Ok(Self {
            volume,
            size_bytes,
            position,
            pinned,
            side,
            index,
            life,
        })
    }
}

/// Side state as checkpoints hold it.
pub fn encode_side(side: &SideState) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&narrow(side.reservations.len()).to_le_bytes());
    bytes.extend_from_slice(&side.reservations);
    bytes.extend_from_slice(&narrow(side.marks.len()).to_le_bytes());
    for mark in &side.marks {
        bytes.extend_from_slice(&mark.seq.to_le_bytes());
        bytes.extend_from_slice(&mark.time_ns.to_le_bytes());
        bytes.extend_from_slice(&mark.id.to_le_bytes());
        bytes.push(mark.kind as u8);
        bytes.push(u8::try_from(mark.name.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(&mark.name.as_bytes()[..mark.name.len().min(255)]);
    }
    bytes
}

pub fn decode_side(bytes: &[u8]) -> Result<SideState, JournalError> {
    let mut reader = Reader::new(bytes, "side state");
    let length = reader.u32()? as usize;
    let reservations = reader.take(length)?.to_vec();
    let count = reader.u32()?;
    let mut marks = Vec::new();
    for _ in 0..count {
        let (seq, time_ns, id) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let kind = if reader.u8()? == Kind::Snapshot as u8 {
            Kind::Snapshot
        } else {
            Kind::Mark
        };
        let length = usize::from(reader.u8()?);
        let name = String::from_utf8_lossy(reader.take(length)?).into_owned();
        marks.push(Mark {
            seq,
            time_ns,
            kind,
            id,
            name,
        });
    }
    Ok(SideState {
        reservations,
        marks,
    })
}
