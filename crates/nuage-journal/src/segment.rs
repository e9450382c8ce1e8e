//! Segment header, seal and the scan of an open segment (docs/protocols/journal.md §2, §6).

use crate::bytes::{Reader, narrow, put, wide};
use crate::cipher::VolumeUuid;
use nuage_block::{Buffer, Pages, crc32c};

use crate::disk::BLOCK_BYTES;
use crate::error::{JournalError, malformed};
use crate::layout::{Chain, Group, GroupHead};

const SEGMENT_MAGIC: [u8; 8] = *b"NUAGSEG1";
const SEAL_MAGIC: [u8; 8] = *b"NUAGSEAL";
const SEAL_AT: usize = 512;
const SEAL_BYTES: usize = 192;
/// Ids of base segments are apart from the log's.
pub const BASE_SEGMENT: u64 = 1 << 63;

/// Whether a segment is of the log or made by compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    Log,
    Base,
}

/// First 128 bytes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub slot: u32,
    pub volume: VolumeUuid,
    pub segment: u64,
    pub epoch: u64,
    pub first_seq: u64,
    pub size_bytes: u32,
    pub kind: SegmentKind,
    pub created_ns: u64,
    pub previous_chain: Chain,
}

/// What is written once a segment gets no more groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    pub segment: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub first_time_ns: u64,
    pub last_time_ns: u64,
    pub chain: Chain,
    /// Where the groups end.
    pub groups_end: u32,
    pub footer_bytes: u32,
    pub footer_crc: u32,
    pub group_count: u32,
    pub record_count: u32,
    pub block_count: u32,
}

impl SegmentHeader {
    fn encode(&self, block: &mut [u8]) {
        put(block, 0, SEGMENT_MAGIC);
        put(block, 8, 1u32.to_le_bytes());
        put(block, 12, self.slot.to_le_bytes());
        put(block, 16, self.volume);
        put(block, 32, self.segment.to_le_bytes());
        put(block, 40, self.epoch.to_le_bytes());
        put(block, 48, self.first_seq.to_le_bytes());
        put(block, 56, self.size_bytes.to_le_bytes());
        put(
            block,
            60,
            u32::from(self.kind == SegmentKind::Base).to_le_bytes(),
        );
        put(block, 64, self.created_ns.to_le_bytes());
        put(block, 72, self.previous_chain);
        let crc = crc32c(&block[..124]);
        put(block, 124, crc.to_le_bytes());
    }

    fn decode(block: &[u8]) -> Result<Self, JournalError> {
        let fixed = block
            .get(..128)
            .ok_or_else(|| malformed("segment header", "short"))?;
        let mut reader = Reader::new(fixed, "segment header");
        reader.magic(SEGMENT_MAGIC)?;
        if reader.u32()? != 1 {
            return Err(malformed("segment header", "version"));
        }
        let slot = reader.u32()?;
        let volume = reader.array()?;
        let (segment, epoch, first_seq) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let size_bytes = reader.u32()?;
        let kind = match reader.u32()? {
            0 => SegmentKind::Log,
            1 => SegmentKind::Base,
            _ => return Err(malformed("segment header", "kind")),
        };
        let created_ns = reader.u64()?;
        let previous_chain = reader.array()?;
        reader.take(20)?;
        if crc32c(&fixed[..124]) != reader.u32()? {
            return Err(malformed("segment header", "checksum"));
        }
        Ok(Self {
            slot,
            volume,
            segment,
            epoch,
            first_seq,
            size_bytes,
            kind,
            created_ns,
            previous_chain,
        })
    }
}

impl Seal {
    /// Where the footer lies: right after the groups.
    pub fn footer_offset(&self) -> u64 {
        u64::from(self.groups_end)
    }

    fn encode(&self, block: &mut [u8]) {
        let seal = &mut block[SEAL_AT..SEAL_AT + SEAL_BYTES];
        put(seal, 0, SEAL_MAGIC);
        put(seal, 8, self.segment.to_le_bytes());
        put(seal, 16, self.first_seq.to_le_bytes());
        put(seal, 24, self.last_seq.to_le_bytes());
        put(seal, 32, self.first_time_ns.to_le_bytes());
        put(seal, 40, self.last_time_ns.to_le_bytes());
        put(seal, 48, self.chain);
        put(seal, 80, self.groups_end.to_le_bytes());
        put(seal, 84, self.groups_end.to_le_bytes());
        put(seal, 88, self.footer_bytes.to_le_bytes());
        put(seal, 92, self.footer_crc.to_le_bytes());
        put(seal, 96, self.group_count.to_le_bytes());
        put(seal, 100, self.record_count.to_le_bytes());
        put(seal, 104, self.block_count.to_le_bytes());
        let crc = crc32c(&seal[..188]);
        put(seal, 188, crc.to_le_bytes());
    }

    fn decode(block: &[u8]) -> Result<Self, JournalError> {
        let seal = block
            .get(SEAL_AT..SEAL_AT + SEAL_BYTES)
            .ok_or_else(|| malformed("seal", "short"))?;
        let mut reader = Reader::new(seal, "seal");
        reader.magic(SEAL_MAGIC)?;
        let found = Self {
            segment: reader.u64()?,
            first_seq: reader.u64()?,
            last_seq: reader.u64()?,
            first_time_ns: reader.u64()?,
            last_time_ns: reader.u64()?,
            chain: reader.array()?,
            groups_end: reader.u32()?,
            footer_bytes: {
                reader.u32()?;
                reader.u32()?
            },
            footer_crc: reader.u32()?,
            group_count: reader.u32()?,
            record_count: reader.u32()?,
            block_count: reader.u32()?,
        };
        reader.take(80)?;
        if crc32c(&seal[..188]) != reader.u32()? {
            return Err(malformed("seal", "checksum"));
        }
        Ok(found)
    }
}

/// Block 0 of a segment.
pub fn encode_first_block(header: &SegmentHeader, seal: Option<&Seal>) -> Pages {
    let mut block = Buffer::zeroed(BLOCK_BYTES);
    header.encode(&mut block);
    if let Some(seal) = seal {
        seal.encode(&mut block);
    }
    block.into()
}

/// Read block 0. A seal that is torn or of a former life counts as none.
pub fn decode_first_block(block: &[u8]) -> Result<(SegmentHeader, Option<Seal>), JournalError> {
    let header = SegmentHeader::decode(block)?;
    let seal = Seal::decode(block)
        .ok()
        .filter(|seal| seal.segment == header.segment);
    Ok((header, seal))
}

/// The header of a segment as its first group tells it: what `encode_first_block` had been given, except that a base
/// which was staged counts its blocks from another seq.
pub fn header_of_first_group(bytes: &[u8], slot: u32) -> Option<SegmentHeader> {
    let head = GroupHead::decode(bytes.get(BLOCK_BYTES..)?).ok()?;
    let info = &head.info;
    Some(SegmentHeader {
        slot,
        volume: info.volume,
        segment: info.segment,
        epoch: info.epoch,
        first_seq: info.first_seq,
        size_bytes: u32::try_from(bytes.len()).ok()?,
        kind: if info.segment & BASE_SEGMENT == 0 {
            SegmentKind::Log
        } else {
            SegmentKind::Base
        },
        created_ns: info.time_ns,
        previous_chain: info.previous_chain,
    })
}

/// Groups of a segment gathered for its footer and seal.
#[derive(Debug, Clone, Default)]
pub struct Footer {
    pub bytes: Vec<u8>,
    group_count: u32,
    record_count: u32,
    block_count: u32,
    first: Option<(u64, u64)>,
    last: (u64, u64),
    chain: Chain,
}

impl Footer {
    pub fn add(&mut self, header: &[u8], head: &GroupHead) {
        let info = &head.info;
        self.bytes.extend_from_slice(header);
        self.group_count += 1;
        self.record_count += info.count;
        self.block_count += info.payload_blocks;
        self.first.get_or_insert((info.first_seq, info.time_ns));
        self.last = (info.last_seq(), info.time_ns);
        self.chain = head.chain;
    }

    pub fn is_empty(&self) -> bool {
        self.group_count == 0
    }

    /// Blocks that the footer needs once `more` header bytes have joined it.
    pub fn blocks_with(&self, more: usize) -> u32 {
        narrow((self.bytes.len() + more).div_ceil(BLOCK_BYTES))
    }

    /// Payload blocks of a record, on average.
    pub fn blocks_a_record(&self) -> u32 {
        self.block_count / self.record_count.max(1)
    }

    pub fn seal(&self, header: &SegmentHeader, groups_end: u32) -> Seal {
        let (first_seq, first_time_ns) =
            self.first.unwrap_or((header.first_seq, header.created_ns));
        let empty = self.is_empty();
        Seal {
            segment: header.segment,
            first_seq,
            last_seq: if empty { first_seq - 1 } else { self.last.0 },
            first_time_ns,
            last_time_ns: if empty { first_time_ns } else { self.last.1 },
            chain: if empty {
                header.previous_chain
            } else {
                self.chain
            },
            groups_end,
            footer_bytes: narrow(self.bytes.len()),
            footer_crc: crc32c(&self.bytes),
            group_count: self.group_count,
            record_count: self.record_count,
            block_count: self.block_count,
        }
    }
}

/// A group that a scan found.
#[derive(Debug)]
pub struct Scanned {
    /// Where it begins.
    pub offset: u32,
    pub head: GroupHead,
    pub header: Vec<u8>,
    /// Its payload is not what had been written.
    pub is_damaged: bool,
}

/// What a scan of an open segment found.
#[derive(Debug, Default)]
pub struct Scan {
    pub groups: Vec<Scanned>,
    /// Where the valid groups end.
    pub end: u32,
    /// Where damage begins, when what lies there had been durable.
    pub damaged_at: Option<u32>,
    /// The seq that later groups, a seal or a checkpoint say had been durable.
    pub evidence_seq: u64,
}

/// Walk the groups of an open segment (§6 rule 3); `known_seq`: a seal or a checkpoint says that up to there all
/// of it had been durable.
///
/// A group whose header is whole and whose payload is not is kept when that or a later group shows that it had
/// been durable: its blocks are damaged one by one, and mended from other copies.
pub fn scan(bytes: &[u8], header: &SegmentHeader, known_seq: u64) -> Scan {
    let mut found = Scan {
        end: narrow(BLOCK_BYTES),
        ..Scan::default()
    };
    let mut chain = header.previous_chain;
    let mut next_seq = header.first_seq;
    while let Some(rest) = bytes
        .get(found.end as usize..)
        .filter(|rest| !rest.is_empty())
    {
        let Ok(head) = GroupHead::decode(rest) else {
            break;
        };
        let info = &head.info;
        let follows = info.volume == header.volume
            && info.segment == header.segment
            && info.epoch == header.epoch
            && info.first_seq == next_seq
            && info.previous_chain == chain
            && block_bytes(info.total_blocks()) <= wide(rest.len());
        if !follows {
            break;
        }
        let end = found.end + narrow(BLOCK_BYTES) * info.total_blocks();
        let is_damaged = Group::decode(rest).is_err();
        let was_durable = || {
            info.first_seq <= known_seq || evidence(bytes, header, end, info.last_seq()).is_some()
        };
        if is_damaged && !was_durable() {
            break;
        }
        chain = head.chain;
        next_seq = info.last_seq() + 1;
        let header_bytes = rest[..info.header_bytes as usize].to_vec();
        let offset = found.end;
        found.end = end;
        found.groups.push(Scanned {
            offset,
            head,
            header: header_bytes,
            is_damaged,
        });
    }
    let known = (next_seq <= known_seq).then_some(known_seq);
    if let Some(seq) = evidence(bytes, header, found.end, next_seq).max(known) {
        found.damaged_at = Some(found.end);
        found.evidence_seq = seq;
    }
    found
}

/// What the groups after `from` say had been durable, when that includes `seq`.
fn evidence(bytes: &[u8], header: &SegmentHeader, from: u32, seq: u64) -> Option<u64> {
    let places = (from as usize..bytes.len()).step_by(BLOCK_BYTES);
    let heads = places.filter_map(|at| GroupHead::decode(&bytes[at..]).ok());
    let told = heads.filter(|head| {
        head.info.volume == header.volume
            && head.info.segment == header.segment
            && head.info.epoch == header.epoch
            && head.info.first_seq > seq
            && head.info.stable_seq >= seq
    });
    told.map(|head| head.info.stable_seq).max()
}

/// The heads of a sealed segment from its groups, when its footer is damaged.
pub fn heads_from_groups(
    header: &SegmentHeader,
    seal: &Seal,
    bytes: &[u8],
) -> Result<Vec<GroupHead>, JournalError> {
    let mut heads = Vec::new();
    let mut at = BLOCK_BYTES;
    let mut chain = header.previous_chain;
    while at < seal.groups_end as usize {
        let head = bytes.get(at..).map(GroupHead::decode);
        let Some(Ok(head)) = head.filter(|head| {
            head.as_ref()
                .is_ok_and(|head| head.info.previous_chain == chain)
        }) else {
            return Err(JournalError::Corrupt {
                what: "footer and header",
                segment: header.segment,
                offset: wide(at),
            });
        };
        chain = head.chain;
        at += head.info.total_blocks() as usize * BLOCK_BYTES;
        heads.push(head);
    }
    Ok(heads)
}

/// The headers of the groups of a segment back to back, as far as they can be read.
pub(crate) fn headers_of(bytes: &[u8]) -> Vec<u8> {
    let mut footer = Vec::new();
    let mut at = BLOCK_BYTES;
    while let Some(Ok(head)) = bytes.get(at..).map(GroupHead::decode) {
        footer.extend_from_slice(&bytes[at..at + head.info.header_bytes as usize]);
        at += head.info.total_blocks() as usize * BLOCK_BYTES;
    }
    footer
}

/// Read and check a footer.
pub fn footer_heads(
    header: &SegmentHeader,
    seal: &Seal,
    footer: &[u8],
) -> Result<Vec<GroupHead>, JournalError> {
    let damaged = || JournalError::Corrupt {
        what: "footer",
        segment: header.segment,
        offset: seal.footer_offset(),
    };
    let footer = footer
        .get(..seal.footer_bytes as usize)
        .ok_or_else(damaged)?;
    if crc32c(footer) != seal.footer_crc {
        return Err(damaged());
    }
    let heads = crate::layout::decode_footer(footer).map_err(|_| damaged())?;
    let mut chain = header.previous_chain;
    for head in &heads {
        if head.info.previous_chain != chain {
            return Err(damaged());
        }
        chain = head.chain;
    }
    if chain == seal.chain {
        Ok(heads)
    } else {
        Err(damaged())
    }
}

/// Bytes of `blocks` blocks.
pub fn block_bytes(blocks: u32) -> u64 {
    u64::from(blocks) * wide(BLOCK_BYTES)
}
