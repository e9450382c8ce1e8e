//! Blocks that are damaged here: noted, asked of other copies, put in place again (docs/protocols/journal.md §8).
//!
//! Theory of operation. A read or the scrub notes a damaged block, under the version that must lie there:
//! its address, the seq that wrote it, its checksum. The owner asks other copies for that version by the
//! [`BlockWish`]. What comes is written only where the checksum is that of the group's descriptor, which the
//! chain covers, and, once it is the last of its group, the payload has the digest that the chain covers.
//! A version that no copy has is *lost*: it stays noted until a later pass finds it again or its segment goes.

use std::ops::Range;

use nuage_block::Buffer;

use crate::bytes::{narrow, wide};
use crate::cipher::block_crc;
use crate::disk::{BLOCK_BYTES, Disk};
use crate::error::JournalError;
use crate::index::Entry;
use crate::layout::{BlockFacts, GroupHead};
use crate::segment::block_bytes;
use crate::store::{SlotState, Store, StoreEvent};

/// Damaged blocks noted at once; what is beyond is found again by the next pass.
pub(crate) const BAD_BLOCKS_MAX: usize = 4096;

/// A version of a block, as another copy can find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockWish {
    pub lba: u64,
    /// Record that wrote it; 0: not known, or of the volume that this one was cloned from.
    pub seq: u64,
    /// Checksum of the block as stored; its low 19 bits count.
    pub crc: u32,
}

impl BlockWish {
    fn same_crc(self, crc: u32) -> bool {
        (self.crc ^ crc) & 0x7_ffff == 0
    }
}

/// How a damaged block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Nobody was asked for it yet.
    Noted,
    Asked,
    /// No copy that could be asked has it.
    Lost,
}

/// A damaged block, and what must lie there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BadBlock {
    slot: u32,
    segment: u64,
    block: u32,
    wish: BlockWish,
    facts: Option<BlockFacts>,
    pub(crate) damage: Damage,
    /// The owner was told that it is lost.
    told: bool,
}

impl<D: Disk> Store<D> {
    /// Note that what `entry` names of `lba` is damaged. False: it cannot be mended.
    pub fn note_damage(&mut self, entry: Entry, lba: u64) -> bool {
        let facts = self
            .group_around(entry.slot(), entry.block())
            .and_then(|(head, at)| facts_at(&head, entry.block() - at));
        if facts.is_some_and(|facts| facts.lba != lba || !entry.matches_crc(facts.crc)) {
            return false; // another block lies there, and is not written over
        }
        if facts.is_none() && self.needs_table(entry.slot()) {
            return false; // good bytes alone could not be read either
        }
        let wish = BlockWish {
            lba,
            seq: 0,
            crc: entry.crc_bits(),
        };
        self.note(entry.slot(), entry.block(), wish, facts)
    }

    pub(crate) fn note(
        &mut self,
        slot: u32,
        block: u32,
        wish: BlockWish,
        facts: Option<BlockFacts>,
    ) -> bool {
        let Some(segment) = self.segment_of(slot) else {
            return false;
        };
        let own = |facts: &BlockFacts| facts.origin.volume == self.superblock.volume;
        let seq = facts
            .as_ref()
            .filter(|facts| own(facts))
            .map_or(0, |f| f.origin.seq);
        let crc = facts.as_ref().map_or(wish.crc, |facts| facts.crc);
        let known = |bad: &&mut BadBlock| (bad.slot, bad.block) == (slot, block);
        if let Some(bad) = self.bad.iter_mut().find(known) {
            // Found again, by a reader or the next pass: others may have it by now.
            if bad.damage == Damage::Lost {
                bad.damage = Damage::Noted;
            }
            return true;
        }
        if self.bad.len() >= BAD_BLOCKS_MAX {
            return false;
        }
        self.found_count += 1;
        self.bad.push(BadBlock {
            slot,
            segment,
            block,
            wish: BlockWish { seq, crc, ..wish },
            facts,
            damage: Damage::Noted,
            told: false,
        });
        true
    }

    /// Note what is damaged of a group of the log, by its bytes as they were read. False: nothing that another
    /// copy could mend, or nothing that one has.
    pub fn note_damaged_group(&mut self, stored: &[u8]) -> Result<bool, JournalError> {
        let Ok(told) = GroupHead::decode(stored) else {
            return Ok(false);
        };
        let first_seq = told.info.first_seq;
        for (number, header) in self.own_log() {
            if header.segment != told.info.segment {
                continue;
            }
            let groups = self.groups_of(number)?;
            let found = groups
                .into_iter()
                .find(|(head, _)| head.info.first_seq == first_seq);
            let Some((head, at)) = found.filter(|(head, _)| head.chain == told.chain) else {
                return Ok(false);
            };
            let header_blocks = head.info.header_blocks();
            let first = header_blocks as usize * BLOCK_BYTES;
            let length = head.info.payload_blocks as usize * BLOCK_BYTES;
            let payload = stored.get(first..first + length).unwrap_or_default();
            let may_be_mended = self.note_blocks(number, &head, at + header_blocks, payload);
            return Ok(may_be_mended);
        }
        Ok(false)
    }

    /// Note the damaged blocks of a group whose payload lies at `first`. False: none that a copy may have.
    pub(crate) fn note_blocks(
        &mut self,
        slot: u32,
        head: &GroupHead,
        first: u32,
        payload: &[u8],
    ) -> bool {
        let mut may_be_mended = false;
        for (block, facts) in damaged_blocks(head, payload, &[]) {
            let place = Entry::new(slot, first + block, 0, facts.crc);
            let wish = BlockWish {
                lba: facts.lba,
                seq: facts.origin.seq,
                crc: facts.crc,
            };
            if self.damage_of(place) != Some(Damage::Lost) {
                may_be_mended |= self.note(slot, place.block(), wish, Some(facts));
            }
        }
        may_be_mended
    }

    /// How the block that `entry` names stands; `None`: it is not known to be damaged.
    pub fn damage_of(&self, entry: Entry) -> Option<Damage> {
        let found = |bad: &&BadBlock| (bad.slot, bad.block) == (entry.slot(), entry.block());
        self.bad.iter().find(found).map(|bad| bad.damage)
    }

    /// What to ask other copies for; each is given out once, until it is lost or [`Store::ask_again`].
    pub fn take_wishes(&mut self) -> Vec<BlockWish> {
        if self.bad.is_empty() {
            return Vec::new();
        }
        self.forget_gone();
        let mut wishes = Vec::new();
        for bad in &mut self.bad {
            if bad.damage == Damage::Noted {
                bad.damage = Damage::Asked;
                wishes.push(bad.wish);
            }
        }
        wishes.sort_unstable();
        wishes.dedup();
        wishes
    }

    /// Whoever was asked may not answer any more.
    pub fn ask_again(&mut self) {
        for bad in &mut self.bad {
            if bad.damage == Damage::Asked {
                bad.damage = Damage::Noted;
            }
        }
    }

    /// Copies that were away may have what is lost: ask for it once more.
    pub fn retry_lost(&mut self) {
        for bad in &mut self.bad {
            if bad.damage == Damage::Lost {
                bad.damage = Damage::Noted;
            }
        }
    }

    /// No other copy has what `wish` asks for.
    pub fn give_up(&mut self, wish: BlockWish) {
        for bad in &mut self.bad {
            if bad.wish == wish && bad.damage != Damage::Lost {
                bad.damage = Damage::Lost;
                if !std::mem::replace(&mut bad.told, true) {
                    self.events.push(StoreEvent::Lost {
                        lba: wish.lba,
                        seq: wish.seq,
                    });
                }
            }
        }
    }

    /// Put what another copy has of `wish` in place. False: it is not what must lie there.
    pub fn mend(&mut self, wish: BlockWish, stored: &[u8]) -> Result<bool, JournalError> {
        self.forget_gone();
        let mut mended = false;
        let mut at = 0;
        while at < self.bad.len() {
            let bad = self.bad[at].clone();
            if bad.wish != wish || !self.fits(&bad, stored)? {
                at += 1;
                continue;
            }
            let Some(file) = self.file_of(bad.slot) else {
                at += 1;
                continue;
            };
            let written =
                self.disk
                    .write_now(file, block_bytes(bad.block), &Buffer::padded(stored).into());
            written.map_err(|error| self.fail(error.into()))?;
            self.bad.swap_remove(at);
            self.mended_count += 1;
            self.events.push(StoreEvent::Mended { lba: wish.lba });
            mended = true;
        }
        Ok(mended)
    }

    /// Checked against the descriptor, and the last of a group against the digest of the whole payload.
    fn fits(&mut self, bad: &BadBlock, stored: &[u8]) -> Result<bool, JournalError> {
        if stored.len() != BLOCK_BYTES {
            return Ok(false);
        }
        let Some(facts) = bad.facts else {
            let volume = self.volume_of_slot(bad.slot);
            return Ok(bad.wish.same_crc(block_crc(&volume, bad.wish.lba, stored)));
        };
        if block_crc(&facts.origin.volume, facts.lba, stored) != facts.crc {
            return Ok(false);
        }
        let (Some((head, at)), Some(file)) = (
            self.group_around(bad.slot, bad.block),
            self.file_of(bad.slot),
        ) else {
            return Ok(true);
        };
        let first = at + head.info.header_blocks();
        let length = head.info.payload_blocks as usize * BLOCK_BYTES;
        let mut bytes = self.disk.read_now(file, block_bytes(first), length)?;
        let own = bad.block - first;
        let offset = own as usize * BLOCK_BYTES;
        bytes[offset..offset + BLOCK_BYTES].copy_from_slice(stored);
        // With others of its group still damaged the digest says nothing yet.
        let left = damaged_blocks(&head, &bytes, &[]);
        Ok(left.iter().all(|(block, _)| *block != own))
    }

    /// The stored bytes of a version that another copy asks for, sound or not at all.
    pub fn stored_version(&mut self, wish: BlockWish) -> Result<Option<Vec<u8>>, JournalError> {
        let present = self.state.index.get(wish.lba);
        if let Some(stored) = self.sound_at(present, wish)? {
            return Ok(Some(stored));
        }
        if let Some(stored) = self.sound_in_log(wish)? {
            return Ok(Some(stored));
        }
        let oldest = self.view(self.horizon_seq())?.index.get(wish.lba);
        self.sound_at(oldest, wish)
    }

    fn sound_at(&mut self, entry: Entry, wish: BlockWish) -> Result<Option<Vec<u8>>, JournalError> {
        if !entry.is_mapped() || !entry.matches_crc(wish.crc) {
            return Ok(None);
        }
        let Some((head, at)) = self.group_around(entry.slot(), entry.block()) else {
            return Ok(None);
        };
        let facts = facts_at(&head, entry.block() - at);
        self.read_sound(entry.slot(), entry.block(), facts, wish)
    }

    fn sound_in_log(&mut self, wish: BlockWish) -> Result<Option<Vec<u8>>, JournalError> {
        if wish.seq == 0 || wish.seq > self.durable_seq {
            return Ok(None);
        }
        for (number, header) in self.own_log() {
            let ends_before = self
                .sealed(number)
                .is_some_and(|(_, seal)| seal.last_seq < wish.seq);
            if header.first_seq > wish.seq || ends_before {
                continue;
            }
            for (head, at) in self.groups_of(number)? {
                let first = at + head.info.header_blocks();
                let written = head.block_facts().into_iter().zip(first..);
                let mut found = written.filter(|(facts, _)| {
                    facts.origin.seq == wish.seq
                        && facts.lba == wish.lba
                        && wish.same_crc(facts.crc)
                });
                if let Some((facts, block)) = found.next() {
                    return self.read_sound(number, block, Some(facts), wish);
                }
            }
        }
        Ok(None)
    }

    fn read_sound(
        &mut self,
        slot: u32,
        block: u32,
        facts: Option<BlockFacts>,
        wish: BlockWish,
    ) -> Result<Option<Vec<u8>>, JournalError> {
        let (Some(facts), Some(file)) = (facts, self.file_of(slot)) else {
            return Ok(None);
        };
        let stored = self.disk.read_now(file, block_bytes(block), BLOCK_BYTES)?;
        let sound = facts.lba == wish.lba
            && block_crc(&facts.origin.volume, facts.lba, &stored) == facts.crc;
        Ok(sound.then_some(stored))
    }

    /// The group of a segment in whose blocks `block` lies, and where it begins; from the footer.
    pub(crate) fn group_around(&mut self, slot: u32, block: u32) -> Option<(GroupHead, u32)> {
        let groups = self.groups_of(slot).ok()?;
        groups
            .into_iter()
            .find(|(head, at)| (*at..at + head.info.total_blocks()).contains(&block))
    }

    /// Write the header of a group anew from the footer, when what lies there is not it.
    pub(crate) fn mend_header(
        &mut self,
        slot: u32,
        block: u32,
        header: &[u8],
    ) -> Result<(), JournalError> {
        let Some(file) = self.file_of(slot) else {
            return Ok(());
        };
        let blocks = Buffer::padded(header).into();
        let written = self.disk.write_now(file, block_bytes(block), &blocks);
        written.map_err(|error| self.fail(error.into()))?;
        self.found_count += 1;
        self.mended_count += 1;
        Ok(())
    }

    /// Blocks whose segments are not here any more need no mending.
    fn forget_gone(&mut self) {
        let mut bad = std::mem::take(&mut self.bad);
        bad.retain(|bad| self.segment_of(bad.slot) == Some(bad.segment));
        self.bad = bad;
    }

    /// A pass has read these blocks and found no more than `damaged`: what the disk did not give before it gives
    /// again, or nobody can read it any more.
    pub(crate) fn forget_sound(&mut self, slot: u32, group: &Range<u32>, damaged: &[u32]) {
        self.bad.retain(|bad| {
            bad.damage != Damage::Lost
                || bad.slot != slot
                || !group.contains(&bad.block)
                || damaged.contains(&bad.block)
        });
    }

    /// The log was cut: what lay in a segment from `end` on is given up.
    pub(crate) fn forget_cut(&mut self, slot: u32, end: u32) {
        self.bad
            .retain(|bad| bad.slot != slot || block_bytes(bad.block) < u64::from(end));
        if let Some(scrub) = &mut self.scrub {
            scrub.forget(slot);
        }
    }

    pub(crate) fn segment_of(&self, slot: u32) -> Option<u64> {
        match &self.slots.get(slot as usize)?.as_ref()?.state {
            SlotState::Open(header) | SlotState::Sealed(header, _) => Some(header.segment),
            SlotState::Rotten(segment) => Some(*segment),
            SlotState::Preparing | SlotState::Spare => None,
        }
    }

    /// Addresses of blocks that no copy has, as runs of (first, count).
    pub fn lost_blocks(&self) -> Vec<(u64, u64)> {
        let lost = self.bad.iter().filter(|bad| bad.damage == Damage::Lost);
        let mut lbas: Vec<u64> = lost.map(|bad| bad.wish.lba).collect();
        lbas.sort_unstable();
        lbas.dedup();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for lba in lbas {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == lba => *count += 1,
                _ => runs.push((lba, 1)),
            }
        }
        runs
    }
}

/// What the block `back` blocks behind a group's begin is.
pub(crate) fn facts_at(head: &GroupHead, back: u32) -> Option<BlockFacts> {
    let at = back.checked_sub(head.info.header_blocks())?;
    head.block_facts().get(at as usize).copied()
}

/// Payload blocks of a group whose stored bytes are not what its descriptors say; `unread` were not given.
pub(crate) fn damaged_blocks(
    head: &GroupHead,
    payload: &[u8],
    unread: &[u32],
) -> Vec<(u32, BlockFacts)> {
    let facts = head.block_facts();
    let sound = |facts: &BlockFacts, block: &[u8]| {
        block_crc(&facts.origin.volume, facts.lba, block) == facts.crc
    };
    let all = facts.iter().zip(payload.chunks(BLOCK_BYTES)).zip(0u32..);
    let bad: Vec<(u32, BlockFacts)> = all
        .filter(|((facts, block), at)| unread.contains(at) || !sound(facts, block))
        .map(|((facts, _), at)| (at, *facts))
        .collect();
    if bad.is_empty() && blake3::hash(payload).as_bytes() != &head.info.payload_digest {
        // The checksums are fooled: any of them may be it.
        return facts
            .into_iter()
            .zip(0..)
            .map(|(facts, at)| (at, facts))
            .collect();
    }
    debug_assert!(wide(payload.len()) == block_bytes(narrow(facts.len())));
    bad
}
