//! Reading blocks: coalesced disk reads, checked and decrypted into the caller's buffer.

use std::collections::{HashMap, VecDeque};

use crate::bytes::wide;
use crate::cipher::{VolumeUuid, block_crc};
use crate::disk::{BLOCK_BYTES, Disk, DiskError, DiskOperation, Piece};
use crate::index::Entry;
use crate::layout::{BlockFacts, GROUP_HEADER_BLOCKS_MAX, GroupHead};
use crate::segment::{SegmentKind, block_bytes};
use crate::store::{Purpose, Slot, SlotState, Store, StoreEvent};

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
    Damaged { lba: u64, entry: Entry },
    #[error("block {lba}: {error}")]
    Disk {
        lba: u64,
        entry: Entry,
        error: DiskError,
    },
}

/// The buffer, filled; on failure of no use, with the first block that failed.
#[derive(Debug)]
pub struct ReadOutcome {
    pub buffer: Vec<u8>,
    pub error: Option<ReadError>,
}

#[derive(Debug)]
pub(crate) struct ReadJob {
    /// With the disk while it is filled.
    buffer: Vec<u8>,
    /// In the order of their places on disk.
    blocks: Vec<Wanted>,
    /// Facts of the blocks whose slots need them, taken when the read is started.
    facts: Vec<Option<BlockFacts>>,
    tables_waiting: usize,
    error: Option<ReadError>,
    /// Tables that did not fit their blocks were taken from the footers once.
    is_second: bool,
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

    fn forget_group(&mut self, slot: u32, block: u32) {
        if let Some((_, facts)) = self.groups.remove(&(slot, block)) {
            self.entries -= facts.len();
            self.order.retain(|group| *group != (slot, block));
        }
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
    pub(crate) fn facts(&self, entry: Entry) -> Option<&BlockFacts> {
        let (header_blocks, facts) = self
            .groups
            .get(&(entry.slot(), entry.block().checked_sub(entry.back())?))?;
        facts.get(entry.back().checked_sub(*header_blocks)? as usize)
    }
}

impl<D: Disk> Store<D> {
    /// Read blocks into `buffer`; the event `Read` with `tag` gives it back. An empty one
    /// has room for the blocks, which then leave no gap: nothing is zeroed that is read over.
    pub fn read(&mut self, tag: u64, mut wanted: Vec<Wanted>, buffer: Vec<u8>) {
        wanted.sort_unstable_by_key(|wanted| (wanted.entry.slot(), wanted.entry.block()));
        let job = ReadJob {
            buffer,
            blocks: wanted,
            facts: Vec::new(),
            tables_waiting: 0,
            error: None,
            is_second: false,
        };
        // A job has the number of its tag: the caller keeps tags unique among its reads.
        self.jobs.insert(tag, job);
        self.start_tables(tag);
    }

    fn start_tables(&mut self, number: u64) {
        let mut missing: Vec<(u32, u32, u32)> = Vec::new();
        if let Some(job) = self.jobs.get(&number) {
            for wanted in &job.blocks {
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
            self.table_ready(job, Some((slot, block)));
            return;
        };
        let segment_blocks = self.superblock.segment_bytes as usize / BLOCK_BYTES;
        let blocks_there = segment_blocks.saturating_sub(block as usize);
        let piece = Piece {
            file,
            offset: block_bytes(block),
            length: blocks.min(blocks_there) * BLOCK_BYTES,
            at: 0,
        };
        let operation = DiskOperation::Read {
            pieces: vec![piece],
            buffer: Vec::with_capacity(piece.length),
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
        outcome: Result<Vec<u8>, DiskError>,
    ) {
        let head = outcome.ok().map(|buffer| GroupHead::decode(&buffer));
        match head {
            Some(Ok(head)) if self.table_suffices(job, slot, block, &head) => {
                self.tables.insert(slot, block, &head);
                self.table_ready(job, None);
            }
            Some(Err(_)) if blocks < GROUP_HEADER_BLOCKS_MAX => {
                self.read_table(job, slot, block, (blocks * 8).min(GROUP_HEADER_BLOCKS_MAX));
            }
            _ => {
                let found = self.table_from_footer(job, slot, block);
                self.table_ready(job, (!found).then_some((slot, block)));
            }
        }
    }

    /// The header of a group is damaged where it lies, or another's lies there: the footer has it too. Blocks.
    fn table_from_footer(&mut self, job: u64, slot: u32, block: u32) -> bool {
        self.tables.forget_group(slot, block);
        let found = self.group_around(slot, block);
        let Some((head, _)) = found.filter(|(_, at)| *at == block) else {
            return false;
        };
        let suffices = self.table_suffices(job, slot, block, &head);
        if suffices {
            self.tables.insert(slot, block, &head);
        }
        suffices
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
        job.blocks.iter().all(|wanted| {
            let entry = wanted.entry;
            (entry.slot(), entry.block().wrapping_sub(entry.back())) != (slot, block)
                || described(entry, wanted.lba)
        })
    }

    fn table_ready(&mut self, number: u64, damaged: Option<(u32, u32)>) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.tables_waiting -= 1;
        let of_group = |group: (u32, u32)| {
            job.blocks.iter().find(|wanted| {
                let entry = wanted.entry;
                (entry.slot(), entry.block().wrapping_sub(entry.back())) == group
            })
        };
        if let Some(wanted) = damaged.and_then(of_group)
            && job.error.is_none()
        {
            let (lba, entry) = (wanted.lba, wanted.entry);
            job.error = Some(ReadError::Damaged { lba, entry });
        }
        if job.tables_waiting == 0 {
            self.start_data(number);
        }
    }

    fn start_data(&mut self, number: u64) {
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        if job.error.is_some() || job.blocks.is_empty() {
            self.finish_job(number, job);
            return;
        }
        if !self.take_facts(&mut job) {
            // A table was put out of the cache by others meanwhile: fetch it again.
            self.jobs.insert(number, job);
            self.start_tables(number);
            return;
        }
        let missing = self.recent.fill(&job.blocks, &mut job.buffer);
        match self.pieces(&missing) {
            Ok(pieces) => {
                let buffer = std::mem::take(&mut job.buffer);
                self.jobs.insert(number, job);
                if pieces.is_empty() {
                    return self.finish_data(number, Ok(buffer));
                }
                let operation = DiskOperation::Read { pieces, buffer };
                self.submit(Purpose::ReadData { job: number }, operation);
            }
            Err(error) => {
                job.error = Some(error);
                self.finish_job(number, job);
            }
        }
    }

    /// What to read for `blocks`: neighbours on disk that are neighbours in the buffer are one piece.
    fn pieces(&self, blocks: &[Wanted]) -> Result<Vec<Piece>, ReadError> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut slot = None;
        for wanted in blocks {
            let offset = block_bytes(wanted.entry.block());
            if let Some(last) = pieces.last_mut()
                && slot == Some(wanted.entry.slot())
                && last.offset + wide(last.length) == offset
                && last.at + last.length == wanted.buffer_offset
            {
                last.length += BLOCK_BYTES;
                continue;
            }
            slot = Some(wanted.entry.slot());
            let Some(file) = self.file_of(wanted.entry.slot()) else {
                let name = crate::store::segment_name(wanted.entry.slot());
                return Err(ReadError::Disk {
                    lba: wanted.lba,
                    entry: wanted.entry,
                    error: DiskError::NotFound { name },
                });
            };
            pieces.push(Piece {
                file,
                offset,
                length: BLOCK_BYTES,
                at: wanted.buffer_offset,
            });
        }
        Ok(pieces)
    }

    /// Copy the facts of all blocks into the job; false when a table is missing.
    fn take_facts(&self, job: &mut ReadJob) -> bool {
        let mut complete = true;
        job.facts.clear();
        for wanted in &job.blocks {
            let needed = self.needs_table(wanted.entry.slot());
            let facts = self.tables.facts(wanted.entry).filter(|_| needed).copied();
            complete &= !needed || facts.is_some();
            job.facts.push(facts);
        }
        complete
    }

    pub(crate) fn finish_data(&mut self, number: u64, outcome: Result<Vec<u8>, DiskError>) {
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        match outcome {
            Ok(buffer) => {
                job.buffer = buffer;
                for (wanted, facts) in job.blocks.iter().zip(&job.facts) {
                    let end = wanted.buffer_offset + BLOCK_BYTES;
                    let block = &mut job.buffer[wanted.buffer_offset..end];
                    if !self.check_block(wanted, *facts, block) {
                        job.error.get_or_insert(ReadError::Damaged {
                            lba: wanted.lba,
                            entry: wanted.entry,
                        });
                    }
                }
            }
            Err(error) => {
                job.error = job.blocks.first().map(|first| ReadError::Disk {
                    lba: first.lba,
                    entry: first.entry,
                    error,
                });
            }
        }
        let damaged = match &job.error {
            Some(ReadError::Damaged { entry, .. }) => Some(*entry),
            _ => None,
        };
        if let Some(entry) = damaged.filter(|entry| self.needs_table(entry.slot()))
            && !job.is_second
        {
            // Maybe the table is at fault: what lay in its place was another group's header.
            (job.is_second, job.error) = (true, None);
            self.jobs.insert(number, job);
            let group = entry.block() - entry.back();
            if self.table_from_footer(number, entry.slot(), group) {
                return self.start_tables(number);
            }
            job = match self.jobs.remove(&number) {
                Some(job) => job,
                None => return,
            };
            let lba = job.blocks.iter().find(|wanted| wanted.entry == entry);
            let lba = lba.map_or(0, |wanted| wanted.lba);
            job.error = Some(ReadError::Damaged { lba, entry });
        }
        self.finish_job(number, job);
    }

    fn finish_job(&mut self, tag: u64, job: ReadJob) {
        let outcome = ReadOutcome {
            buffer: job.buffer,
            error: job.error,
        };
        self.events.push(StoreEvent::Read { tag, outcome });
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
    pub(crate) fn needs_table(&self, slot: u32) -> bool {
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
