//! The first blocks of segments: read when a copy is opened, and made anew where they rotted
//! (docs/protocols/journal.md §6).
//!
//! Theory of operation. A spare says so in its first block, or is zeros as it was prepared. Any other first block that
//! is no header is *doubtful*: it rotted, or a version that marked no spares gave the segment back. All that a header
//! and a seal say stands in the groups and in the footer, too, so both are made anew from there, for a segment that
//! something here needs: a checkpoint names blocks of it, or it fits by its chain where the log lacks one. What
//! nothing needs is a spare. What is needed and cannot be made anew is never written over.

use std::collections::HashSet;

use nuage_block::{Buffer, Pages};

use crate::bytes::wide;
use crate::checkpoint::{Checkpoint, checkpoint_name};
use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::error::JournalError;
use crate::layout::{Chain, GroupHead};
use crate::rebuild::STAGED_SEGMENT;
use crate::recovery::TailRule;
use crate::segment::{
    Footer, Seal, SegmentHeader, SegmentKind, decode_first_block, encode_first_block,
    header_of_first_group, scan,
};
use crate::store::{Slot, SlotState, Store, segment_name, slot_of_name};

const SPARE_MAGIC: &[u8; 8] = b"NUAGSPAR";

/// Block 0 of a segment that was given back: what lies behind it is of a former life.
pub(crate) fn spare_block() -> Pages {
    Buffer::padded(SPARE_MAGIC).into()
}

/// What lies in a doubtful segment, by its groups.
struct Found {
    header: SegmentHeader,
    seal: Option<Seal>,
    /// Where its groups end: seq, and the chain there.
    ends: Vec<(u64, Chain)>,
}

impl Found {
    fn read(bytes: &[u8], slot: u32) -> Option<Self> {
        let header = header_of_first_group(bytes, slot)?;
        let (footer, end, ends) = groups_in(bytes, &header);
        let stored = bytes.get(end as usize..end as usize + footer.bytes.len());
        // The footer is written before the seal, and only for all groups at once.
        let seal = (stored == Some(&footer.bytes)).then(|| footer.seal(&header, end));
        Some(Self { header, seal, ends })
    }

    fn last_seq(&self) -> u64 {
        let before = self.header.first_seq.saturating_sub(1);
        self.ends.last().map_or(before, |(seq, _)| *seq)
    }

    fn state(&self) -> SlotState {
        let header = self.header.clone();
        match &self.seal {
            Some(seal) => SlotState::Sealed(header, seal.clone()),
            None => SlotState::Open(header),
        }
    }
}

/// The groups that follow each other from the first on, sound or not: as a footer, where they end, and each end.
fn groups_in(bytes: &[u8], header: &SegmentHeader) -> (Footer, u32, Vec<(u64, Chain)>) {
    let found = scan(bytes, header, u64::MAX);
    let mut footer = Footer::default();
    for group in &found.groups {
        footer.add(&group.header, &group.head);
    }
    let end = |group: &crate::segment::Scanned| (group.head.info.last_seq(), group.head.chain);
    (footer, found.end, found.groups.iter().map(end).collect())
}

/// The log as far as its segments tell: what each spans, and the moments whose chain is known.
#[derive(Default)]
struct Known {
    spans: Vec<(u64, u64)>,
    moments: HashSet<(u64, Chain)>,
}

impl Known {
    fn add(&mut self, header: &SegmentHeader, last_seq: u64) {
        let before = header.first_seq.saturating_sub(1);
        self.spans.push((header.first_seq, last_seq));
        self.moments.insert((before, header.previous_chain));
    }

    /// The log has no segment where `found` belongs, and one beside it or a checkpoint says that it belongs there.
    fn lacks(&self, found: &Found) -> bool {
        let (first_seq, last_seq) = (found.header.first_seq, found.last_seq());
        let is_free = |(first, last): &(u64, u64)| *last < first_seq || last_seq < *first;
        let begin = (first_seq.saturating_sub(1), found.header.previous_chain);
        let mut moments = std::iter::once(&begin).chain(&found.ends);
        self.spans.iter().all(is_free) && moments.any(|moment| self.moments.contains(moment))
    }
}

/// The segments of a copy by slot, and which of them are doubtful.
pub(crate) fn read_slots<D: Disk>(
    disk: &mut D,
    names: &[String],
    segment_bytes: u32,
) -> Result<(Vec<Option<Slot>>, Vec<u32>), JournalError> {
    let mut slots: Vec<Option<Slot>> = Vec::new();
    let mut doubtful = Vec::new();
    for number in names.iter().filter_map(|name| slot_of_name(name)) {
        let name = segment_name(number);
        let file = disk.open_now(&name)?;
        let last = u64::from(segment_bytes) - wide(BLOCK_BYTES);
        if let Err(DiskError::Short { .. }) = disk.read_now(file, last, BLOCK_BYTES) {
            // A crash while it was being prepared; a segment in use has its whole size.
            disk.close(file);
            disk.remove_now(&name)?;
            continue;
        }
        let blocks = disk.read_now(file, 0, 2 * BLOCK_BYTES)?;
        let state = match decode_first_block(&blocks) {
            Ok((header, seal)) if header.slot == number => match seal {
                Some(seal) => SlotState::Sealed(header, seal),
                None => SlotState::Open(header),
            },
            _ => {
                // The log does not use what lies on the larger medium: no spare is there.
                let is_spare = blocks.starts_with(SPARE_MAGIC) || is_zero(&blocks);
                if !is_spare || disk.is_shared(file) {
                    doubtful.push(number);
                }
                SlotState::Spare
            }
        };
        if slots.len() <= number as usize {
            slots.resize(number as usize + 1, None);
        }
        slots[number as usize] = Some(Slot { file, state });
    }
    Ok((slots, doubtful))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl<D: Disk> Store<D> {
    /// Decide what each doubtful segment is: of the log or a checkpoint, then its first block is made anew; or a spare.
    pub(crate) fn settle_doubtful(
        &mut self,
        doubtful: &[u32],
        tail: TailRule,
    ) -> Result<(), JournalError> {
        if doubtful.is_empty() {
            return Ok(());
        }
        let named = self.named_slots()?;
        let mut known = self.known_log()?;
        let mut left = Vec::new();
        for number in doubtful {
            let bytes = self.segment_now(*number)?;
            left.push((*number, Found::read(&bytes, *number)));
        }
        // Each that is found may show where the next belongs.
        while let Some(at) = left.iter().position(|(number, found)| {
            found
                .as_ref()
                .is_some_and(|found| named.contains(number) || self.log_lacks(&known, found))
        }) {
            if let (number, Some(found)) = left.swap_remove(at) {
                if self.is_own_log(&found.header) {
                    known.add(&found.header, found.last_seq());
                    known.moments.extend(&found.ends);
                }
                self.take_up(number, found)?;
            }
        }
        for (number, found) in left {
            self.settle_unneeded(number, found.is_some(), named.contains(&number), tail)?;
        }
        Ok(())
    }

    fn log_lacks(&self, known: &Known, found: &Found) -> bool {
        self.is_own_log(&found.header)
            && found.last_seq() > self.horizon_seq()
            && known.lacks(found)
    }

    fn is_own_log(&self, header: &SegmentHeader) -> bool {
        header.kind == SegmentKind::Log && header.volume == self.superblock.volume
    }

    fn segment_now(&mut self, number: u32) -> Result<Vec<u8>, JournalError> {
        let length = self.superblock.segment_bytes as usize;
        match self.file_of(number) {
            Some(file) => Ok(self.disk.read_now(file, 0, length)?),
            None => Ok(Vec::new()),
        }
    }

    /// Slots of which a checkpoint or the present names blocks.
    pub(crate) fn named_slots(&mut self) -> Result<HashSet<u32>, JournalError> {
        let mut named: HashSet<u32> = HashSet::new();
        named.extend(self.state.index.entries().map(|(_, entry)| entry.slot()));
        named.extend(self.moves.values().map(|entry| entry.slot()));
        for anchor in self.anchors.clone() {
            let bytes = self.disk.load_now(&checkpoint_name(anchor.position.seq))?;
            let index = Checkpoint::decode(&bytes)?.index;
            named.extend(index.entries().map(|(_, entry)| entry.slot()));
        }
        Ok(named)
    }

    fn known_log(&mut self) -> Result<Known, JournalError> {
        let mut known = Known::default();
        let moments = self.anchors.iter().map(|anchor| anchor.position);
        known
            .moments
            .extend(moments.map(|position| (position.seq, position.chain)));
        for (number, header) in self.own_log() {
            let sealed = self.sealed(number).map(|(_, seal)| seal.clone());
            let ends = if let Some(seal) = sealed {
                vec![(seal.last_seq, seal.chain)]
            } else {
                let bytes = self.segment_now(number)?;
                groups_in(&bytes, &header).2
            };
            let before = header.first_seq.saturating_sub(1);
            known.add(&header, ends.last().map_or(before, |(seq, _)| *seq));
            known.moments.extend(ends);
        }
        Ok(known)
    }

    /// A segment in use: its first block is made anew, unless another volume writes there.
    fn take_up(&mut self, number: u32, mut found: Found) -> Result<(), JournalError> {
        if found.header.segment == STAGED_SEGMENT {
            // The groups of a state that was taken do not tell their segment: it gets a number of its own again.
            self.write_superblock()?;
            found.header.segment |= self.superblock.generation;
            let segment = found.header.segment;
            found.seal = found.seal.map(|seal| Seal { segment, ..seal });
        }
        let Some(slot) = self.slots[number as usize].as_mut() else {
            return Ok(());
        };
        slot.state = found.state();
        if self.disk.is_shared(slot.file) {
            return Ok(());
        }
        let block = encode_first_block(&found.header, found.seal.as_ref());
        self.mend_header(number, 0, &block)
    }

    fn settle_unneeded(
        &mut self,
        number: u32,
        has_groups: bool,
        is_named: bool,
        tail: TailRule,
    ) -> Result<(), JournalError> {
        let bytes = self.segment_now(number)?;
        let blocks = bytes.chunks_exact(BLOCK_BYTES);
        let segment = blocks
            .skip(1)
            .find_map(|block| GroupHead::decode(block).ok());
        let segment = segment.map_or(0, |head| head.info.segment);
        if is_named {
            if let Some(slot) = self.slots[number as usize].as_mut() {
                slot.state = SlotState::Rotten(segment);
            }
            return Ok(());
        }
        let (first, rest) = bytes.split_at(BLOCK_BYTES.min(bytes.len()));
        let begins_empty = rest.get(..BLOCK_BYTES).is_none_or(is_zero);
        let was_used = !first.starts_with(SPARE_MAGIC) && !is_zero(first);
        if was_used && !has_groups && !begins_empty {
            // Its first group is gone as well: it may have been the end of the log.
            self.lose_segment(segment, &bytes, tail)?;
        }
        self.give_back(number)
    }

    /// What was durable here may be missing: an only copy is not opened so, one of several is filled again.
    fn lose_segment(
        &mut self,
        segment: u64,
        bytes: &[u8],
        tail: TailRule,
    ) -> Result<(), JournalError> {
        if tail == TailRule::Only {
            return Err(JournalError::Corrupt {
                what: "first block and first group",
                segment,
                offset: 0,
            });
        }
        self.superblock.incomplete_seq = u64::MAX;
        self.write_superblock()?;
        let position = self.state.position;
        self.put_aside(position.seq, position.epoch, bytes)
    }

    /// Spare again, or gone where the log may not write.
    fn give_back(&mut self, number: u32) -> Result<(), JournalError> {
        let shared = match self.file_of(number) {
            Some(file) => self.disk.is_shared(file),
            None => true,
        };
        if shared {
            self.drop_slot(number)
        } else {
            self.make_spare(number)
        }
    }

    /// Segments that could not be made anew and that nothing names any more.
    pub(crate) fn free_rotten(&mut self) -> Result<(), JournalError> {
        let is_rotten = |slot: &Option<Slot>| {
            let state = slot.as_ref().map(|slot| &slot.state);
            matches!(state, Some(SlotState::Rotten(_)))
        };
        let slots = self.slots.iter().zip(0u32..);
        let rotten: Vec<u32> = slots
            .filter_map(|(slot, number)| is_rotten(slot).then_some(number))
            .collect();
        // A checkpoint on its way to the disk may name what the present names no more.
        if rotten.is_empty() || self.checkpoint_running {
            return Ok(());
        }
        let named = self.named_slots()?;
        for number in rotten.into_iter().filter(|number| !named.contains(number)) {
            self.give_back(number)?;
        }
        Ok(())
    }
}
