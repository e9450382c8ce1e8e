//! A copy made anew from another's blocks, when the log alone does not reach back to it (docs/protocols/replication.md §3).
//!
//! Theory of operation. The giving side reads a past state block by block, in the order of addresses, into
//! groups of BASE records; each block is checked as it is read. The taking side checks each again and writes the
//! groups to *staged* segments, beside whatever it has. Once all blocks are there it installs them: one
//! checkpoint of a new *life* takes the place of all that came before it, and the log goes on behind it.
//! A crash before that checkpoint leaves the former copy and the staged segments, which are taken up again
//! when the same state is offered; a crash after it leaves remains of the former life, which `open` clears away.

use std::collections::HashMap;

use crate::bytes::{narrow, wide};
use crate::checkpoint::{Checkpoint, Position, SideState, checkpoint_name};
use crate::cipher::block_crc;
use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::error::{JournalError, malformed};
use crate::index::{Entry, Index};
use crate::layout::{BlockFacts, Chain, Closing, GROUP_HEADER_BLOCKS_MAX, Group, GroupBuilder};
use crate::layout::{GroupHead, Kind};
use crate::replay::State;
use crate::retention::live_blocks;
use crate::segment::{Footer, SegmentHeader, SegmentKind, block_bytes};
use crate::store::{Anchor, SlotState, Store};

/// Ids of staged segments are apart from those of the log and of compaction.
pub(crate) const STAGED_SEGMENT: u64 = 0b11 << 62;

/// A past state on its way to another copy.
pub struct BaseReader {
    pub position: Position,
    pub size_bytes: u64,
    pub side: SideState,
    index: Index,
    next_lba: u64,
    next_seq: u64,
    chain: Chain,
}

impl BaseReader {
    /// Blocks in all.
    pub fn block_count(&self) -> u64 {
        self.index.mapped()
    }

    /// Blocks with an address below `lba`.
    pub fn blocks_below(&self, lba: u64) -> u64 {
        self.index.mapped_below(lba)
    }

    /// Go on from `lba`: what lies before is there already. The chain of groups begins anew.
    pub fn start_at(&mut self, lba: u64) {
        self.next_lba = lba;
        self.next_seq = 1;
        self.chain = self.position.chain;
    }

    /// What both sides must have in the end.
    pub fn digest(&self) -> Chain {
        digest_of(&self.index)
    }
}

/// What reading the next blocks of a state gave.
pub enum BaseRead {
    Group(Box<Group>),
    /// A block is damaged on this copy: mend it, then read on.
    Damaged {
        lba: u64,
        entry: Entry,
    },
    End,
}

/// The state that a new copy begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseOffer {
    pub position: Position,
    pub size_bytes: u64,
    /// Until its log reaches this, the copy cannot vouch for what was acknowledged.
    pub until_seq: u64,
}

/// A sealed staged segment: its id, its slot, and seq and epoch of the state it is of.
type StagedSlot = (u64, u32, (u64, u64));

#[derive(Debug)]
struct StagedSegment {
    slot: u32,
    header: SegmentHeader,
    footer: Footer,
    end: u32,
}

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct Staging {
    offer: BaseOffer,
    index: Index,
    next_lba: u64,
    next_seq: u64,
    chain: Chain,
    open: Option<StagedSegment>,
}

/// Addresses and checksums of all blocks of an index: equal on two copies that hold the same blocks.
fn digest_of(index: &Index) -> Chain {
    let mut hasher = blake3::Hasher::new();
    for (lba, entry) in index.entries() {
        hasher.update(&lba.to_le_bytes());
        hasher.update(&entry.crc_bits().to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl<D: Disk> Store<D> {
    /// Begin to read the state after `seq`, which must be within the history.
    pub fn base_reader(&mut self, seq: u64) -> Result<BaseReader, JournalError> {
        let state = self.view(seq)?;
        Ok(BaseReader {
            chain: state.position.chain,
            position: state.position,
            size_bytes: state.size_bytes,
            side: state.side,
            index: state.index,
            next_lba: 0,
            next_seq: 1,
        })
    }

    /// Read about `blocks` more blocks.
    pub fn next_base(
        &mut self,
        reader: &mut BaseReader,
        blocks: usize,
    ) -> Result<BaseRead, JournalError> {
        let limit = blocks.min(self.payload_blocks_max() as usize);
        let wanted = reader.index.mapped_from(reader.next_lba, limit);
        let Some((last, _)) = wanted.last() else {
            return Ok(BaseRead::End);
        };
        let next_lba = last + 1;
        let mut builder = GroupBuilder::new(
            self.superblock.volume,
            reader.position.epoch,
            reader.next_seq,
            self.superblock.encrypted,
        );
        let mut at = 0;
        while at < wanted.len() {
            let run = run_length(&wanted[at..]);
            let stored = self.read_run(wanted[at].1, run)?;
            if stored.is_empty() {
                let (lba, entry) = wanted[at];
                return Ok(BaseRead::Damaged { lba, entry });
            }
            for ((lba, entry), block) in wanted[at..at + run].iter().zip(stored.chunks(BLOCK_BYTES))
            {
                let Some(facts) = self.facts_of(*entry, *lba, block)? else {
                    let (lba, entry) = (*lba, *entry);
                    return Ok(BaseRead::Damaged { lba, entry });
                };
                builder.push_base(&facts, block);
            }
            at += run;
        }
        reader.next_lba = next_lba;
        reader.next_seq = builder.next_seq();
        let group = builder.finish(&Closing {
            segment: STAGED_SEGMENT,
            time_ns: reader.position.time_ns,
            stable_seq: 0,
            previous_chain: reader.chain,
        });
        reader.chain = group.head.chain;
        Ok(BaseRead::Group(Box::new(group)))
    }

    /// `count` blocks from where `entry` lies; empty when its segment is not here.
    pub(crate) fn read_run(&mut self, entry: Entry, count: usize) -> Result<Vec<u8>, JournalError> {
        let Some(file) = self.file_of(entry.slot()) else {
            return Ok(Vec::new());
        };
        let offset = block_bytes(entry.block());
        Ok(self.disk.read_now(file, offset, count * BLOCK_BYTES)?)
    }

    /// What is known of the block `stored` that was read where `entry` says; `None`: it is damaged.
    pub(crate) fn facts_of(
        &mut self,
        entry: Entry,
        lba: u64,
        stored: &[u8],
    ) -> Result<Option<BlockFacts>, JournalError> {
        if self.tables.facts(entry).is_none() {
            self.load_table(entry)?;
        }
        let Some(facts) = self.tables.facts(entry).copied() else {
            return Ok(None);
        };
        let crc = block_crc(&facts.origin.volume, lba, stored);
        let sound = facts.lba == lba && facts.crc == crc && entry.matches_crc(crc);
        Ok(sound.then_some(facts))
    }

    fn load_table(&mut self, entry: Entry) -> Result<(), JournalError> {
        let Some(file) = self.file_of(entry.slot()) else {
            return Ok(());
        };
        let block = entry.block() - entry.back();
        let there = self.superblock.segment_bytes / narrow(BLOCK_BYTES) - block;
        for blocks in [1, 8, narrow(GROUP_HEADER_BLOCKS_MAX)] {
            let length = blocks.min(there) as usize * BLOCK_BYTES;
            let bytes = self.disk.read_now(file, block_bytes(block), length)?;
            if let Ok(head) = GroupHead::decode(&bytes) {
                self.tables.insert(entry.slot(), block, &head);
                break;
            }
        }
        Ok(())
    }

    /// A segment of the copy that is being made: nothing refers to it yet.
    pub(crate) fn is_staged(&self, header: &SegmentHeader) -> bool {
        let is_staged =
            header.kind == SegmentKind::Base && header.segment & STAGED_SEGMENT == STAGED_SEGMENT;
        is_staged && self.staged() == Some((header.first_seq, header.epoch))
    }

    /// Which state is being staged here: its seq and epoch.
    pub fn staged(&self) -> Option<(u64, u64)> {
        let position = &self.staging.as_ref()?.offer.position;
        Some((position.seq, position.epoch))
    }

    /// Which state was being staged before this copy was opened.
    pub fn staged_before(&mut self) -> Result<Option<(u64, u64)>, JournalError> {
        let found = self.staged_segments()?;
        Ok(found.last().map(|(_, _, state)| *state))
    }

    /// Sealed staged segments that no state refers to, by id: slot, and the state they are of.
    fn staged_segments(&mut self) -> Result<Vec<StagedSlot>, JournalError> {
        let is_staged = |header: &SegmentHeader| {
            header.kind == SegmentKind::Base && header.segment & STAGED_SEGMENT == STAGED_SEGMENT
        };
        let mut found: Vec<_> = self
            .slots
            .iter()
            .zip(0u32..)
            .filter_map(|(slot, number)| match &slot.as_ref()?.state {
                SlotState::Sealed(header, _) if is_staged(header) => {
                    Some((header.segment, number, (header.first_seq, header.epoch)))
                }
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            let live = live_blocks(&self.view(self.horizon_seq())?.index);
            found.retain(|(_, number, _)| !live.contains_key(number));
            found.sort_unstable();
        }
        Ok(found)
    }

    /// Begin to take the state of `offer`, or go on with it. Returns the first address that is missing.
    pub fn stage(&mut self, offer: &BaseOffer) -> Result<u64, JournalError> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        if !self.finish_moves()? {
            return Err(JournalError::NoSpace);
        }
        self.seal_staged()?;
        let position = &offer.position;
        let goes_on = self.staged() == Some((position.seq, position.epoch));
        let (index, next_lba) = match self.staging.take() {
            Some(staging) if goes_on => (staging.index, staging.next_lba),
            _ => self.find_staged(position)?,
        };
        self.staging = Some(Staging {
            offer: offer.clone(),
            index,
            next_lba,
            next_seq: 1,
            chain: position.chain,
            open: None,
        });
        self.keep_spares();
        Ok(next_lba)
    }

    /// Staged segments of `position` that an earlier attempt left; those of others are given back.
    fn find_staged(&mut self, position: &Position) -> Result<(Index, u64), JournalError> {
        let (mut index, mut next_lba) = (Index::default(), 0);
        for (_, number, state) in self.staged_segments()? {
            let same = state == (position.seq, position.epoch);
            // In the order of addresses: behind a damaged one nothing counts.
            let groups = self.groups_of(number).unwrap_or_default();
            let first = groups
                .first()
                .and_then(|(head, _)| head.descriptors.first());
            if !same || first.is_none_or(|first| first.lba < next_lba) {
                self.make_spare(number)?;
                continue;
            }
            for (head, block) in groups {
                next_lba = place(&mut index, &head, number, block).unwrap_or(next_lba);
            }
        }
        Ok((index, next_lba))
    }

    /// Take the next group of the state. Returns the first address that is missing then, `None` while a
    /// segment for it is still being prepared: ask again.
    pub fn stage_group(&mut self, group: &Group) -> Result<Option<u64>, JournalError> {
        self.check_base(group)?;
        if !self.make_staged_room(group)? {
            return Ok(None);
        }
        let Some(staging) = self.staging.as_mut() else {
            return Err(malformed("base group", "nothing is being staged"));
        };
        let Some(open) = staging.open.as_mut() else {
            return Ok(None);
        };
        let (slot, block) = (open.slot, open.end / narrow(BLOCK_BYTES));
        open.end += group.head.info.total_blocks() * narrow(BLOCK_BYTES);
        open.footer.add(group.header_bytes(), &group.head);
        staging.chain = group.head.chain;
        staging.next_seq = group.head.info.last_seq() + 1;
        let next = place(&mut staging.index, &group.head, slot, block);
        staging.next_lba = next.unwrap_or(staging.next_lba);
        let next_lba = staging.next_lba;
        let file = self.file_of(slot).ok_or(JournalError::Stopped)?;
        let payload = block + group.head.info.header_blocks();
        let written = self.disk.write_now(file, block_bytes(block), &group.header);
        let written = written.and_then(|()| {
            self.disk
                .write_now(file, block_bytes(payload), &group.payload)
        });
        written.map_err(|error| self.fail(error.into()))?;
        Ok(Some(next_lba))
    }

    fn check_base(&self, group: &Group) -> Result<(), JournalError> {
        let wrong = |reason| Err(malformed("base group", reason));
        let Some(staging) = &self.staging else {
            return wrong("nothing is being staged");
        };
        let info = &group.head.info;
        if info.volume != self.superblock.volume || info.segment != STAGED_SEGMENT {
            return wrong("of another volume or kind");
        }
        if info.first_seq != staging.next_seq || info.previous_chain != staging.chain {
            return wrong("chain");
        }
        let base = |kind: Kind| kind == Kind::Base;
        if group
            .head
            .descriptors
            .iter()
            .any(|d| !base(d.kind) || d.blocks != 1)
        {
            return wrong("kind of record");
        }
        let mut next = staging.next_lba;
        for (facts, at) in group.head.block_facts().iter().zip(0usize..) {
            if facts.lba < next || facts.lba >= staging.offer.size_bytes / wide(BLOCK_BYTES) {
                return wrong("order of addresses");
            }
            next = facts.lba + 1;
            let stored = group.payload.page(at);
            if block_crc(&facts.origin.volume, facts.lba, stored) != facts.crc {
                return wrong("checksum of a block");
            }
        }
        Ok(())
    }

    /// Have an open staged segment with room for `group`; false while none is ready.
    fn make_staged_room(&mut self, group: &Group) -> Result<bool, JournalError> {
        let fits = |open: &StagedSegment| {
            let footer = open.footer.blocks_with(group.header_bytes().len());
            u64::from(open.end) + group.total_bytes() + block_bytes(footer)
                <= u64::from(open.header.size_bytes)
        };
        let open = self
            .staging
            .as_ref()
            .and_then(|staging| staging.open.as_ref());
        if open.is_some_and(fits) {
            return Ok(true);
        }
        self.seal_staged()?;
        let spare = self.slots.iter().zip(0u32..).find_map(|(slot, number)| {
            matches!(slot.as_ref()?.state, SlotState::Spare).then_some(number)
        });
        let Some(slot) = spare else {
            self.keep_spares();
            return if self.no_space {
                Err(JournalError::NoSpace)
            } else {
                Ok(false)
            };
        };
        // A number that no earlier life of the slot's file can hold.
        self.write_superblock()?;
        let Some(staging) = self.staging.as_mut() else {
            return Ok(false);
        };
        let position = &staging.offer.position;
        let header = SegmentHeader {
            slot,
            volume: self.superblock.volume,
            segment: STAGED_SEGMENT | self.superblock.generation,
            epoch: position.epoch,
            first_seq: position.seq,
            size_bytes: self.superblock.segment_bytes,
            kind: SegmentKind::Base,
            created_ns: position.time_ns,
            previous_chain: staging.chain,
        };
        if let Some(found) = self.slots[slot as usize].as_mut() {
            found.state = SlotState::Open(header.clone());
        }
        staging.open = Some(StagedSegment {
            slot,
            header,
            footer: Footer::default(),
            end: narrow(BLOCK_BYTES),
        });
        self.tables.forget_slot(slot);
        self.recent.forget_slot(slot);
        self.keep_spares();
        Ok(true)
    }

    fn seal_staged(&mut self) -> Result<(), JournalError> {
        let open = self
            .staging
            .as_mut()
            .and_then(|staging| staging.open.take());
        let Some(open) = open else {
            return Ok(());
        };
        self.write_seal(open.slot, open.header, &open.footer, open.end)
            .map_err(|error| self.fail(error))
    }

    /// All blocks are here: be the copy that the offer described. `digest` is the giver's.
    pub fn install(&mut self, side: SideState, digest: &Chain) -> Result<(), JournalError> {
        if !self.finish_moves()? {
            return Err(JournalError::NoSpace);
        }
        self.seal_staged()?;
        self.drain()?;
        let Some(staging) = self.staging.take() else {
            return Err(malformed("base", "nothing is being staged"));
        };
        if digest_of(&staging.index) != *digest {
            return Err(malformed("base", "blocks are missing or differ"));
        }
        let offer = &staging.offer;
        self.superblock.incomplete_seq = self.superblock.incomplete_seq.max(offer.until_seq);
        self.write_superblock()?;
        self.keep_aside(offer.position.seq)?;
        let checkpoint = Checkpoint {
            volume: self.superblock.volume,
            size_bytes: offer.size_bytes,
            position: offer.position,
            pinned: false,
            side,
            index: staging.index,
            life: self.superblock.generation,
        };
        let name = checkpoint_name(offer.position.seq);
        let written = self.disk.replace_now(&name, &checkpoint.to_bytes());
        written.map_err(|error| self.fail(error.into()))?;
        self.begin_life(checkpoint)
    }

    /// What the former life had after `seq` is kept in files for people.
    fn keep_aside(&mut self, seq: u64) -> Result<(), JournalError> {
        if self.tail.seq <= seq {
            return Ok(());
        }
        for (number, header) in self.own_log() {
            let Some(file) = self.file_of(number) else {
                continue;
            };
            let mut refused = Vec::new();
            for (head, block) in self.groups_of(number)? {
                if head.info.last_seq() > seq {
                    let length = head.info.total_blocks() as usize * BLOCK_BYTES;
                    refused.extend(self.disk.read_now(file, block_bytes(block), length)?);
                }
            }
            if !refused.is_empty() {
                let name = format!("quarantine.{:016x}.{:016x}", header.first_seq, header.epoch);
                self.disk.replace_now(&name, &refused)?;
            }
        }
        Ok(())
    }

    /// Let go of all that was before `checkpoint`, which is on disk, and go on from it.
    fn begin_life(&mut self, checkpoint: Checkpoint) -> Result<(), JournalError> {
        let position = checkpoint.position;
        self.life = checkpoint.life;
        self.open = None;
        self.unapplied.clear();
        self.rollbacks.clear();
        self.footers.clear();
        self.drop_own_log()?;
        for anchor in std::mem::take(&mut self.anchors) {
            if anchor.position.seq != position.seq {
                remove(&mut self.disk, &checkpoint_name(anchor.position.seq))?;
            }
        }
        self.anchors.push(Anchor {
            position,
            pinned: false,
        });
        self.tail = position;
        self.durable_seq = position.seq;
        self.committed_seq = position.seq;
        self.log_bytes_since_checkpoint = 0;
        self.state = State {
            position,
            size_bytes: checkpoint.size_bytes,
            side: checkpoint.side,
            index: checkpoint.index,
        };
        self.free_dead_segments()
    }

    /// A segment of this id is here. A copy made anew begins in the middle of one that it has not.
    pub(crate) fn was_used(&self, segment: u64) -> bool {
        segment <= self.tail.segment
            && (self.anchors.first().map(|anchor| anchor.position.seq) != Some(self.tail.seq)
                || self
                    .own_log()
                    .iter()
                    .any(|(_, header)| header.segment == segment))
    }

    /// The head says that all it ever acknowledged is here.
    pub fn vouch(&mut self) -> Result<(), JournalError> {
        self.superblock.incomplete_seq = 0;
        self.write_superblock()
    }

    /// Give back every log segment of the former life.
    pub(crate) fn drop_own_log(&mut self) -> Result<(), JournalError> {
        for (number, _) in self.own_log() {
            let shared = self
                .file_of(number)
                .is_none_or(|file| self.disk.is_shared(file));
            if shared {
                self.drop_slot(number)?;
            } else {
                self.make_spare(number)?;
            }
        }
        Ok(())
    }
}

/// How many of the blocks lie one behind the other.
fn run_length(wanted: &[(u64, Entry)]) -> usize {
    let follows = |pair: &[(u64, Entry)]| {
        let (one, next) = (pair[0].1, pair[1].1);
        one.slot() == next.slot() && one.block() + 1 == next.block()
    };
    1 + wanted.windows(2).take_while(|pair| follows(pair)).count()
}

/// Put the blocks of a group into `index`; returns the address behind the last.
fn place(index: &mut Index, head: &GroupHead, slot: u32, block: u32) -> Option<u64> {
    let header = head.info.header_blocks();
    let facts: HashMap<u32, BlockFacts> = (header..).zip(head.block_facts()).collect();
    for (back, facts) in &facts {
        index.set(facts.lba, Entry::new(slot, block + back, *back, facts.crc));
    }
    facts.values().map(|facts| facts.lba + 1).max()
}

fn remove<D: Disk>(disk: &mut D, name: &str) -> Result<(), JournalError> {
    match disk.remove_now(name) {
        Ok(()) | Err(DiskError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
