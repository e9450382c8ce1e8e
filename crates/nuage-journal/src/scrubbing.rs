//! Reading everything to find damage before a reader does (docs/protocols/journal.md §8).
//!
//! A pass reads the superblocks, walks the segments in the order of their ids and reads, past the host's caches, first
//! block, footer and groups: a group at a time, as the owner lets it. What this copy can mend by itself (a header from
//! the footer, a footer from the headers, a superblock, a first block and a seal from memory) it mends at once; blocks of
//! data are noted for other copies ([`crate::mending`]). Blocks that no moment of the kept history shows are let be.

use std::collections::VecDeque;

use crate::bytes::{narrow, wide};
use crate::disk::{BLOCK_BYTES, Disk, FileId};
use crate::error::JournalError;
use crate::index::Index;
use crate::layout::{GroupHead, decode_footer};
use crate::mending::{BlockWish, damaged_blocks};
use crate::segment::{
    Seal, SegmentHeader, SegmentKind, block_bytes, decode_first_block, encode_first_block,
    footer_heads, headers_of,
};
use crate::store::{SlotState, Store};
use crate::superblocks::SUPERBLOCKS;

/// What one step of a pass read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubStep {
    pub bytes: u64,
    /// The pass is over: everything that is here was read.
    pub is_over: bool,
}

/// How far a copy is with itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Bytes read and in all, of the pass that runs.
    pub running: Option<(u64, u64)>,
    /// Since this copy was opened.
    pub found: u64,
    pub mended: u64,
    /// Damaged and not mended yet.
    pub waiting: u64,
    /// Runs of blocks (first, count) of which no copy has what must lie there.
    pub lost: Vec<(u64, u64)>,
    /// Segments of which neither the headers nor the footer can be read.
    pub lost_segments: Vec<u64>,
}

/// A group that is still to be read: its head, its header's bytes, its first block.
struct Due {
    head: GroupHead,
    header: Vec<u8>,
    block: u32,
}

struct Current {
    slot: u32,
    segment: u64,
    groups: VecDeque<Due>,
    /// Where damage does not matter: blocks before the horizon that its state does not show.
    shown: Option<Index>,
}

/// A pass over a copy.
pub(crate) struct Scrub {
    left: VecDeque<(u64, u32)>,
    current: Option<Current>,
    superblocks_due: bool,
    done_bytes: u64,
    total_bytes: u64,
}

impl Scrub {
    /// A segment is not what it was when the pass came to it: the next pass reads it.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.current = self.current.take().filter(|current| current.slot != slot);
    }
}

impl<D: Disk> Store<D> {
    /// Begin to read everything, behind the segment `after` (0: all).
    pub fn begin_scrub(&mut self, after: u64) {
        let mut left: Vec<(u64, u32)> = Vec::new();
        for number in 0..narrow(self.slots.len()) {
            if let Some(segment) = self.segment_of(number).filter(|found| *found > after) {
                left.push((segment, number));
            }
        }
        left.sort_unstable();
        self.lost_segments.clear();
        self.ask_again();
        let segment_bytes = u64::from(self.superblock.segment_bytes);
        self.scrub = Some(Box::new(Scrub {
            total_bytes: wide(left.len()) * segment_bytes,
            left: left.into(),
            current: None,
            superblocks_due: true,
            done_bytes: 0,
        }));
    }

    pub fn is_scrubbing(&self) -> bool {
        self.scrub.is_some()
    }

    /// The last segment that the pass has done with: where a later one may go on.
    pub fn scrubbed_to(&self) -> u64 {
        let scrub = self.scrub.as_ref();
        let now = scrub.and_then(|scrub| scrub.current.as_ref().map(|current| current.segment));
        let next = scrub.and_then(|scrub| scrub.left.front().map(|(segment, _)| *segment));
        now.or(next).map_or(0, |segment| segment - 1)
    }

    pub fn scrub_report(&self) -> ScrubReport {
        let waiting = self.bad.len() - self.lost_count();
        ScrubReport {
            running: self
                .scrub
                .as_ref()
                .map(|scrub| (scrub.done_bytes, scrub.total_bytes)),
            found: self.found_count,
            mended: self.mended_count,
            waiting: wide(waiting),
            lost: self.lost_blocks(),
            lost_segments: self.lost_segments.clone(),
        }
    }

    fn lost_count(&self) -> usize {
        let lost = |bad: &&crate::mending::BadBlock| bad.damage == crate::mending::Damage::Lost;
        self.bad.iter().filter(lost).count()
    }

    /// Read the next piece: a group, or what a segment has beside its groups. Blocks.
    pub fn scrub_next(&mut self) -> Result<ScrubStep, JournalError> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let Some(mut scrub) = self.scrub.take() else {
            return Ok(ScrubStep {
                bytes: 0,
                is_over: true,
            });
        };
        let read = self.scrub_piece(&mut scrub);
        let is_over = scrub.left.is_empty() && scrub.current.is_none();
        if !is_over {
            self.scrub = Some(scrub);
        }
        read.map(|bytes| ScrubStep { bytes, is_over })
    }

    fn scrub_piece(&mut self, scrub: &mut Scrub) -> Result<u64, JournalError> {
        let segment_bytes = u64::from(self.superblock.segment_bytes);
        if std::mem::take(&mut scrub.superblocks_due) {
            return self.scrub_superblocks();
        }
        let Some(mut current) = scrub.current.take() else {
            let Some((segment, slot)) = scrub.left.pop_front() else {
                return Ok(0);
            };
            scrub.done_bytes = scrub
                .total_bytes
                .saturating_sub(wide(scrub.left.len() + 1) * segment_bytes);
            // Gone meanwhile, or being sealed: the next pass finds it.
            if self.segment_of(slot) != Some(segment) || self.footers.contains_key(&slot) {
                return Ok(0);
            }
            let (groups, bytes) = self.scrub_begin(slot)?;
            scrub.current = Some(Current {
                slot,
                segment,
                groups,
                shown: None,
            });
            return Ok(bytes);
        };
        if self.segment_of(current.slot) != Some(current.segment) {
            return Ok(0);
        }
        let Some(due) = current.groups.pop_front() else {
            return Ok(0);
        };
        let bytes = block_bytes(due.head.info.total_blocks());
        self.scrub_group(&mut current, &due)?;
        scrub.done_bytes = (scrub.done_bytes + bytes).min(scrub.total_bytes);
        if !current.groups.is_empty() {
            scrub.current = Some(current);
        }
        Ok(bytes)
    }

    fn scrub_superblocks(&mut self) -> Result<u64, JournalError> {
        let said = self.superblock.encode();
        for name in SUPERBLOCKS {
            // Not as `open` reads them: the host's cache would hide what the medium has.
            let stored = self.disk.open_now(name).and_then(|file| {
                let stored = self.disk.read_now(file, 0, BLOCK_BYTES);
                self.disk.close(file);
                stored
            });
            if stored.is_ok_and(|stored| stored == said) {
                continue;
            }
            self.found_count += 1;
            self.mended_count += u64::from(self.mend_superblock(name)?);
        }
        Ok(block_bytes(2))
    }

    /// First block and footer of a segment; returns its groups and the bytes read.
    fn scrub_begin(&mut self, slot: u32) -> Result<(VecDeque<Due>, u64), JournalError> {
        let Some(found) = self.slots[slot as usize].clone() else {
            return Ok((VecDeque::new(), 0));
        };
        match found.state {
            SlotState::Sealed(header, seal) => {
                self.scrub_first_block(slot, &header, Some(&seal))?;
                let footer = self.scrub_footer(slot, &header, &seal)?;
                let read = block_bytes(1) + u64::from(seal.footer_bytes);
                Ok((dues(&footer, u64::MAX)?, read))
            }
            SlotState::Open(header) => {
                let Some(open) = self.open.as_ref().filter(|open| open.slot == slot) else {
                    return Ok((VecDeque::new(), 0)); // of a state that is being taken
                };
                let groups = dues(&open.footer.bytes, self.durable_seq)?;
                if !groups.is_empty() {
                    self.scrub_first_block(slot, &header, None)?;
                }
                Ok((groups, block_bytes(1)))
            }
            SlotState::Rotten(segment) => {
                self.found_count += 1;
                self.lost_segments.push(segment);
                Ok((VecDeque::new(), 0))
            }
            SlotState::Preparing | SlotState::Spare => Ok((VecDeque::new(), 0)),
        }
    }

    fn scrub_first_block(
        &mut self,
        slot: u32,
        header: &SegmentHeader,
        seal: Option<&Seal>,
    ) -> Result<(), JournalError> {
        let Some(file) = self.file_of(slot) else {
            return Ok(());
        };
        let stored = self.disk.read_now(file, 0, BLOCK_BYTES).unwrap_or_default();
        let sound = decode_first_block(&stored).is_ok_and(|(found, its_seal)| {
            found == *header && (seal.is_none() || its_seal.as_ref() == seal)
        });
        if sound {
            return Ok(());
        }
        let block = encode_first_block(header, seal);
        self.mend_header(slot, 0, &block)
    }

    /// The footer's bytes, mended from the groups' headers when it is damaged; empty when neither is whole.
    fn scrub_footer(
        &mut self,
        slot: u32,
        header: &SegmentHeader,
        seal: &Seal,
    ) -> Result<Vec<u8>, JournalError> {
        let Some(file) = self.file_of(slot) else {
            return Ok(Vec::new());
        };
        let length = (seal.footer_bytes as usize).next_multiple_of(BLOCK_BYTES);
        let read = self.disk.read_now(file, seal.footer_offset(), length);
        let mut stored = read.unwrap_or_default();
        if footer_heads(header, seal, &stored).is_ok() {
            stored.truncate(seal.footer_bytes as usize);
            return Ok(stored);
        }
        let bytes = self.disk.read_now(file, 0, seal.groups_end as usize);
        let footer = headers_of(&bytes.unwrap_or_default());
        if footer_heads(header, seal, &footer).is_err() {
            self.found_count += 1;
            self.lost_segments.push(header.segment);
            return Ok(Vec::new());
        }
        let at = narrow(seal.footer_offset() as usize / BLOCK_BYTES);
        self.mend_header(slot, at, &footer)?;
        Ok(footer)
    }

    fn scrub_group(&mut self, current: &mut Current, due: &Due) -> Result<(), JournalError> {
        let Some(file) = self.file_of(current.slot) else {
            return Ok(());
        };
        let (stored, unread) = self.read_what_can_be(file, due);
        if stored[..due.header.len()] != due.header {
            self.mend_header(current.slot, due.block, &due.header)?;
        }
        let header_blocks = due.head.info.header_blocks();
        let payload = &stored[header_blocks as usize * BLOCK_BYTES..];
        let unread: Vec<u32> = unread
            .into_iter()
            .filter_map(|at| at.checked_sub(header_blocks))
            .collect();
        let mut damaged = Vec::new();
        for (at, facts) in damaged_blocks(&due.head, payload, &unread) {
            let block = due.block + header_blocks + at;
            if self.is_shown(current, due, block, facts.lba)? {
                let wish = BlockWish {
                    lba: facts.lba,
                    seq: facts.origin.seq,
                    crc: facts.crc,
                };
                self.note(current.slot, block, wish, Some(facts));
                damaged.push(block);
            }
        }
        let group = due.block..due.block + due.head.info.total_blocks();
        self.forget_sound(current.slot, &group, &damaged);
        Ok(())
    }

    /// The bytes of a group, zeros for blocks that the disk does not give, and which those are.
    fn read_what_can_be(&mut self, file: FileId, due: &Due) -> (Vec<u8>, Vec<u32>) {
        let blocks = due.head.info.total_blocks();
        let length = blocks as usize * BLOCK_BYTES;
        if let Ok(stored) = self.disk.read_now(file, block_bytes(due.block), length) {
            return (stored, Vec::new());
        }
        let (mut stored, mut unread) = (Vec::with_capacity(length), Vec::new());
        for at in 0..blocks {
            let offset = block_bytes(due.block + at);
            if let Ok(block) = self.disk.read_now(file, offset, BLOCK_BYTES) {
                stored.extend_from_slice(&block);
            } else {
                unread.push(at);
                stored.resize(stored.len() + BLOCK_BYTES, 0);
            }
        }
        (stored, unread)
    }

    /// Some moment of the kept history shows the block.
    fn is_shown(
        &mut self,
        current: &mut Current,
        due: &Due,
        block: u32,
        lba: u64,
    ) -> Result<bool, JournalError> {
        let own_log = self.slots[current.slot as usize]
            .as_ref()
            .is_some_and(|slot| match &slot.state {
                SlotState::Open(header) | SlotState::Sealed(header, _) => {
                    header.kind == SegmentKind::Log && header.volume == self.superblock.volume
                }
                SlotState::Preparing | SlotState::Spare | SlotState::Rotten(_) => false,
            });
        let horizon = self.horizon_seq();
        if own_log && due.head.info.last_seq() > horizon {
            return Ok(true);
        }
        if current.shown.is_none() {
            current.shown = Some(self.view(horizon)?.index);
        }
        let entry = current.shown.as_ref().map(|index| index.get(lba));
        Ok(entry.is_some_and(|entry| (entry.slot(), entry.block()) == (current.slot, block)))
    }
}

/// The groups that a footer tells of, up to `last_seq`.
fn dues(footer: &[u8], last_seq: u64) -> Result<VecDeque<Due>, JournalError> {
    let (mut at, mut block) = (0, 1);
    let mut groups = VecDeque::new();
    for head in decode_footer(footer)? {
        let length = head.info.header_bytes as usize;
        let header = footer[at..at + length].to_vec();
        let next = block + head.info.total_blocks();
        at += length;
        if head.info.last_seq() <= last_seq {
            groups.push_back(Due {
                head,
                header,
                block,
            });
        }
        block = next;
    }
    Ok(groups)
}
