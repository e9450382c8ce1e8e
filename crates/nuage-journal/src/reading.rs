//! Reading blocks: coalesced disk reads, checked and decrypted into the caller's buffer.

use std::collections::{HashMap, VecDeque};

use crate::cipher::{VolumeUuid, block_crc};
use crate::disk::{AlignedBuffer, BLOCK_BYTES, Disk, DiskError, DiskOperation};
use crate::index::Entry;
use crate::layout::{BlockFacts, GROUP_HEADER_BLOCKS_MAX, GroupHead};
use crate::segment::{SegmentKind, block_bytes};
use crate::store::{Purpose, Slot, SlotState, Store, StoreEvent};

/// Blocks of one disk read at most.
const READ_BLOCKS_MAX: u32 = 256;
/// Header blocks read at first: 70 records fit in one.
const TABLE_BLOCKS_FIRST: u32 = 1;
/// Payload blocks whose tags and nonces are remembered: 80 B each, 16 MiB, 0.8 GiB of hot data.
const TABLE_ENTRIES_MAX: usize = 200_000;

/// A block that a reader wants, and where it goes in the reader's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub entry: Entry,
    pub lba: u64,
    pub buffer_offset: usize,
}

/// Why a block could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("block {lba} is damaged on this copy")]
    Damaged { lba: u64 },
    #[error("block {lba}: {error}")]
    Disk { lba: u64, error: DiskError },
}

/// The buffer, filled; on failure the buffer as far as it came, and the first block that failed.
#[derive(Debug)]
pub struct ReadOutcome {
    pub buffer: Vec<u8>,
    pub error: Option<ReadError>,
}

#[derive(Debug)]
struct Part {
    blocks: Vec<Wanted>,
    /// Facts of the blocks whose slots need them, taken when the read is started.
    facts: Vec<Option<BlockFacts>>,
}

#[derive(Debug)]
pub(crate) struct ReadJob {
    tag: u64,
    buffer: Vec<u8>,
    parts: Vec<Part>,
    tables_waiting: usize,
    parts_waiting: usize,
    error: Option<ReadError>,
}

/// Tags and nonces of groups lately written or read.
#[derive(Default)]
pub(crate) struct TableCache {
    /// By slot and block of the group: header blocks, and the facts of each payload block.
    groups: HashMap<(u32, u32), (u32, Vec<BlockFacts>)>,
    order: VecDeque<(u32, u32)>,
    entries: usize,
}

impl TableCache {
    pub(crate) fn insert(&mut self, slot: u32, block: u32, head: &GroupHead) {
        if self.contains(slot, block) {
            return;
        }
        let facts = head.block_facts();
        if facts.is_empty() {
            return;
        }
        self.entries += facts.len();
        let table = (head.info.header_blocks(), facts);
        self.groups.insert((slot, block), table);
        self.order.push_back((slot, block));
        while self.entries > TABLE_ENTRIES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.entries -= self
                .groups
                .remove(&oldest)
                .map_or(0, |(_, facts)| facts.len());
        }
    }

    fn contains(&self, slot: u32, block: u32) -> bool {
        self.groups.contains_key(&(slot, block))
    }

    pub(crate) fn forget_slot(&mut self, slot: u32) {
        self.order.retain(|(found, _)| *found != slot);
        let entries = &mut self.entries;
        self.groups.retain(|(found, _), (_, facts)| {
            let keep = *found != slot;
            if !keep {
                *entries -= facts.len();
            }
            keep
        });
    }

    /// Facts of the block that `entry` names.
    fn facts(&self, entry: Entry) -> Option<&BlockFacts> {
        let (header_blocks, facts) = self
            .groups
            .get(&(entry.slot(), entry.block().checked_sub(entry.back())?))?;
        facts.get(entry.back().checked_sub(*header_blocks)? as usize)
    }
}

impl<D: Disk> Store<D> {
    /// Read blocks into `buffer`; the event `Read` with `tag` gives it back.
    pub fn read(&mut self, tag: u64, mut wanted: Vec<Wanted>, buffer: Vec<u8>) {
        wanted.sort_unstable_by_key(|wanted| (wanted.entry.slot(), wanted.entry.block()));
        let mut parts: Vec<Part> = Vec::new();
        for wanted in wanted {
            let follows = parts
                .last()
                .and_then(|part| part.blocks.last().zip(part.blocks.first()));
            match follows {
                Some((last, first))
                    if last.entry.slot() == wanted.entry.slot()
                        && last.entry.block() + 1 == wanted.entry.block()
                        && wanted.entry.block() - first.entry.block() < READ_BLOCKS_MAX =>
                {
                    if let Some(part) = parts.last_mut() {
                        part.blocks.push(wanted);
                    }
                }
                _ => parts.push(Part {
                    blocks: vec![wanted],
                    facts: Vec::new(),
                }),
            }
        }
        let job = ReadJob {
            tag,
            buffer,
            parts_waiting: parts.len(),
            parts,
            tables_waiting: 0,
            error: None,
        };
        // A job has the number of its tag: the caller keeps tags unique among its reads.
        self.jobs.insert(tag, job);
        self.start_tables(tag);
    }

    fn start_tables(&mut self, number: u64) {
        let mut missing: Vec<(u32, u32, u32)> = Vec::new();
        if let Some(job) = self.jobs.get(&number) {
            for wanted in job.parts.iter().flat_map(|part| &part.blocks) {
                if !self.needs_table(wanted.entry.slot()) {
                    continue;
                }
                let group = (
                    wanted.entry.slot(),
                    wanted.entry.block() - wanted.entry.back(),
                );
                if !self.tables.contains(group.0, group.1) {
                    missing.push((group.0, group.1, wanted.entry.back()));
                }
            }
        }
        missing.sort_unstable();
        missing.dedup_by_key(|(slot, block, _)| (*slot, *block));
        if let Some(job) = self.jobs.get_mut(&number) {
            job.tables_waiting = missing.len();
        }
        if missing.is_empty() {
            self.start_data(number);
        }
        for (slot, block, back) in missing {
            self.read_table(number, slot, block, TABLE_BLOCKS_FIRST.min(back) as usize);
        }
    }

    fn read_table(&mut self, job: u64, slot: u32, block: u32, blocks: usize) {
        let Some(file) = self.file_of(slot) else {
            self.table_ready(job, true);
            return;
        };
        let segment_blocks = self.superblock.segment_bytes as usize / BLOCK_BYTES;
        let blocks_there = segment_blocks.saturating_sub(block as usize);
        let operation = DiskOperation::Read {
            file,
            offset: block_bytes(block),
            block_count: blocks.min(blocks_there),
        };
        self.submit(
            Purpose::ReadTable {
                job,
                slot,
                block,
                blocks,
            },
            operation,
        );
    }

    pub(crate) fn finish_table(
        &mut self,
        job: u64,
        slot: u32,
        block: u32,
        blocks: usize,
        outcome: Result<AlignedBuffer, DiskError>,
    ) {
        let head = outcome.ok().map(|buffer| GroupHead::decode(buffer.bytes()));
        match head {
            Some(Ok(head)) => {
                self.tables.insert(slot, block, &head);
                let damaged = !self.table_suffices(job, slot, block, &head);
                self.table_ready(job, damaged);
            }
            Some(Err(_)) if blocks < GROUP_HEADER_BLOCKS_MAX => {
                self.read_table(job, slot, block, (blocks * 8).min(GROUP_HEADER_BLOCKS_MAX));
            }
            _ => self.table_ready(job, true),
        }
    }

    /// False when the header found does not describe the blocks that the index places there.
    fn table_suffices(&self, job: u64, slot: u32, block: u32, head: &GroupHead) -> bool {
        let Some(job) = self.jobs.get(&job) else {
            return true;
        };
        let facts = head.block_facts();
        let described = |entry: Entry, lba: u64| {
            let at = entry.back().checked_sub(head.info.header_blocks());
            at.and_then(|at| facts.get(at as usize))
                .is_some_and(|facts| facts.lba == lba)
        };
        job.parts
            .iter()
            .flat_map(|part| &part.blocks)
            .all(|wanted| {
                let entry = wanted.entry;
                (entry.slot(), entry.block().wrapping_sub(entry.back())) != (slot, block)
                    || described(entry, wanted.lba)
            })
    }

    fn table_ready(&mut self, number: u64, damaged: bool) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.tables_waiting -= 1;
        if damaged && job.error.is_none() {
            let lba = job
                .parts
                .first()
                .and_then(|part| part.blocks.first())
                .map_or(0, |b| b.lba);
            job.error = Some(ReadError::Damaged { lba });
        }
        if job.tables_waiting == 0 {
            self.start_data(number);
        }
    }

    fn start_data(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if job.error.is_some() {
            job.parts_waiting = 0;
        }
        if job.parts_waiting == 0 {
            self.finish_job(number);
            return;
        }
        if !self.take_facts(number) {
            // A table was put out of the cache by others meanwhile: fetch it again.
            self.start_tables(number);
            return;
        }
        let Some(job) = self.jobs.get(&number) else {
            return;
        };
        let reads: Vec<(u32, u32, usize)> = job
            .parts
            .iter()
            .map(|part| {
                (
                    part.blocks[0].entry.slot(),
                    part.blocks[0].entry.block(),
                    part.blocks.len(),
                )
            })
            .collect();
        for (part, (slot, block, block_count)) in reads.into_iter().enumerate() {
            let purpose = Purpose::ReadData { job: number, part };
            if let Some(file) = self.file_of(slot) {
                let offset = block_bytes(block);
                self.submit(
                    purpose,
                    DiskOperation::Read {
                        file,
                        offset,
                        block_count,
                    },
                );
            } else {
                let name = crate::store::segment_name(slot);
                self.finish_data(number, part, Err(DiskError::NotFound { name }));
            }
        }
    }

    /// Copy the facts of all blocks into the job; false when a table is missing.
    fn take_facts(&mut self, number: u64) -> bool {
        let Some(mut job) = self.jobs.remove(&number) else {
            return true;
        };
        let mut complete = true;
        for part in &mut job.parts {
            part.facts.clear();
            for wanted in &part.blocks {
                let needed = self.needs_table(wanted.entry.slot());
                let facts = self.tables.facts(wanted.entry).filter(|_| needed).copied();
                complete &= !needed || facts.is_some();
                part.facts.push(facts);
            }
        }
        self.jobs.insert(number, job);
        complete
    }

    pub(crate) fn finish_data(
        &mut self,
        number: u64,
        part: usize,
        outcome: Result<AlignedBuffer, DiskError>,
    ) {
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        let blocks = std::mem::take(&mut job.parts[part].blocks);
        let facts = std::mem::take(&mut job.parts[part].facts);
        match outcome {
            Ok(data) => {
                for (at, wanted) in blocks.iter().enumerate() {
                    let target =
                        &mut job.buffer[wanted.buffer_offset..wanted.buffer_offset + BLOCK_BYTES];
                    target.copy_from_slice(data.block(at));
                    let facts = facts.get(at).copied().flatten();
                    if !self.check_block(wanted, facts, target) {
                        job.error
                            .get_or_insert(ReadError::Damaged { lba: wanted.lba });
                    }
                }
            }
            Err(error) => {
                job.error.get_or_insert(ReadError::Disk {
                    lba: blocks[0].lba,
                    error,
                });
            }
        }
        job.parts_waiting -= 1;
        let done = job.parts_waiting == 0;
        self.jobs.insert(number, job);
        if done {
            self.finish_job(number);
        }
    }

    fn finish_job(&mut self, number: u64) {
        if let Some(job) = self.jobs.remove(&number) {
            let outcome = ReadOutcome {
                buffer: job.buffer,
                error: job.error,
            };
            self.events.push(StoreEvent::Read {
                tag: job.tag,
                outcome,
            });
        }
    }

    /// Check a block as stored and decrypt it in place.
    fn check_block(
        &mut self,
        wanted: &Wanted,
        facts: Option<BlockFacts>,
        block: &mut [u8],
    ) -> bool {
        if !self.needs_table(wanted.entry.slot()) {
            let volume = self.volume_of_slot(wanted.entry.slot());
            return wanted
                .entry
                .matches_crc(block_crc(&volume, wanted.lba, block));
        }
        let Some(facts) = facts else { return false };
        if facts.lba != wanted.lba || block_crc(&facts.origin.volume, facts.lba, block) != facts.crc
        {
            return false;
        }
        if !self.superblock.encrypted {
            return true;
        }
        self.cipher
            .as_mut()
            .is_some_and(|cipher| cipher.open(&facts.origin, facts.lba, &facts.tag, block))
    }

    /// Encrypted blocks need tag and nonce, moved ones the uuid that seeds their checksum.
    fn needs_table(&self, slot: u32) -> bool {
        self.superblock.encrypted
            || matches!(
                self.slots.get(slot as usize).and_then(Option::as_ref),
                Some(Slot { state: SlotState::Open(header) | SlotState::Sealed(header, _), .. })
                    if header.kind == SegmentKind::Base
            )
    }

    /// Whose uuid seeds the checksums of a slot's blocks.
    pub(crate) fn volume_of_slot(&self, slot: u32) -> VolumeUuid {
        match self
            .slots
            .get(slot as usize)
            .and_then(Option::as_ref)
            .map(|slot| &slot.state)
        {
            Some(SlotState::Open(header) | SlotState::Sealed(header, _)) => header.volume,
            _ => self.superblock.volume,
        }
    }
}
