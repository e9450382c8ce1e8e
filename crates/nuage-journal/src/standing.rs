//! Two copies of one volume on one node: which of them is further, and what the other's word binds it to.
//!
//! A copy that was made anew while the disk of the former one was away stands for the same member of the
//! set: what either promised or told a head was said in that member's name. Whichever goes on keeps the word
//! of both.

use crate::disk::{BLOCK_BYTES, Disk};
use crate::error::JournalError;
use crate::layout::Chain;
use crate::segment::{SegmentHeader, SegmentKind, decode_first_block, scan};
use crate::store::{Store, segment_name, slot_of_name};
use crate::superblocks::read_superblocks;

/// How far a copy is. The greater of two is the one to go on with: whole before damaged or still being filled,
/// then the later epoch of the last record, then the longer log, then the later promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    pub is_whole: bool,
    /// Of the last record.
    pub epoch: u64,
    pub seq: u64,
    pub promised: u64,
}

impl Standing {
    /// Of a copy that cannot be opened: it may have had all that it promised to take.
    pub fn of_unreadable<D: Disk>(disk: &mut D) -> Self {
        let promised = read_superblocks(disk).map(|(superblock, _)| superblock.promised);
        Self {
            is_whole: false,
            epoch: promised.as_ref().copied().unwrap_or(u64::MAX),
            seq: u64::MAX,
            promised: promised.unwrap_or(0),
        }
    }

    /// Of a copy that is not to be opened, by its log alone, and its chain there; nothing is written. `None`: the
    /// log does not tell.
    pub fn of_log<D: Disk>(disk: &mut D) -> Result<Option<(Self, Chain)>, JournalError> {
        let (superblock, _) = read_superblocks(disk)?;
        let mut segments = Vec::new();
        for slot in disk
            .list_now()?
            .iter()
            .filter_map(|name| slot_of_name(name))
        {
            let file = disk.open_now(&segment_name(slot))?;
            let blocks = disk.read_now(file, 0, 2 * BLOCK_BYTES).unwrap_or_default();
            let header = decode_first_block(&blocks).map(|(header, _)| header);
            let is_log = |header: &SegmentHeader| {
                header.kind == SegmentKind::Log && header.volume == superblock.volume
            };
            match header {
                Ok(header) if is_log(&header) => segments.push((file, header)),
                _ => disk.close(file),
            }
        }
        segments.sort_unstable_by_key(|(_, header)| std::cmp::Reverse(header.segment));
        let mut end = None;
        for (file, header) in &segments {
            let bytes = disk.read_now(*file, 0, superblock.segment_bytes as usize)?;
            let found = scan(&bytes, header, 0);
            if let Some(last) = found.groups.last() {
                let standing = Self {
                    is_whole: false,
                    epoch: last.head.info.epoch,
                    seq: last.head.info.last_seq(),
                    promised: superblock.promised,
                };
                end = Some((standing, last.head.chain));
                break;
            }
        }
        for (file, _) in segments {
            disk.close(file);
        }
        Ok(end)
    }
}

impl<D: Disk> Store<D> {
    pub fn standing(&self) -> Standing {
        let tail = self.tail();
        Standing {
            is_whole: self.is_whole(),
            epoch: tail.epoch,
            seq: tail.seq,
            promised: self.superblock().promised,
        }
    }

    /// Go on in the place of another copy as well: no head finds an ear here that found none there, and this
    /// one is not whole until it has what the other had beyond it. Durable on return.
    pub fn stand_for(&mut self, other: Standing) -> Result<(), JournalError> {
        let own = self.standing();
        if (other.epoch, other.seq) > (own.epoch, own.seq) {
            self.superblock.incomplete_seq = self.superblock.incomplete_seq.max(other.seq);
        }
        self.superblock.promised = self.superblock.promised.max(other.promised);
        self.write_superblock()
    }

    /// All that a copy whose log ends so had is durable here, or has left the history since.
    pub fn covers(&mut self, seq: u64, chain: &Chain) -> Result<bool, JournalError> {
        if seq < self.horizon_seq() {
            return Ok(true);
        }
        Ok(seq <= self.durable_seq() && self.chain_at(seq)?.as_ref() == Some(chain))
    }
}
