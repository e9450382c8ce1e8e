//! Files for segments: prepared ahead, taken by the log, missing when the disk is full.

use super::{NO_FILE, Purpose, Slot, SlotState, Store, segment_name};
use crate::bytes::narrow;
use crate::disk::{Disk, DiskError, DiskOperation};
use crate::error::JournalError;

/// Segments kept ready besides the open one: the reserve for an epoch, a seal and a compaction.
const SPARES_MIN: usize = 2;
/// Blocks of a record on average from which the zeros are left out: the first write to unwritten space costs a
/// commit of the file system at the next sync, zeros written ahead as much bandwidth as the data.
const LARGE_BLOCKS: u32 = 64;
/// Slots that an entry can name (22 bits).
const SLOTS_MAX: usize = 1 << 22;

impl<D: Disk> Store<D> {
    /// True when a new segment could be started beyond the reserve.
    pub fn has_space(&self) -> bool {
        !self.no_space || self.spare_count() > SPARES_MIN
    }

    /// False when nothing is left, not even of the reserve.
    pub fn can_begin_segment(&self) -> bool {
        let is_ready = |slot: &Slot| matches!(slot.state, SlotState::Spare | SlotState::Preparing);
        !self.no_space || self.slots.iter().flatten().any(is_ready)
    }

    pub(crate) fn spare_count(&self) -> usize {
        self.slots
            .iter()
            .flatten()
            .filter(|slot| matches!(slot.state, SlotState::Spare))
            .count()
    }

    /// A prepared segment; when none is ready, one whose preparation the log will wait for.
    pub(super) fn take_slot(&mut self) -> Result<u32, JournalError> {
        let find = |slots: &[Option<Slot>], wanted: fn(&SlotState) -> bool| {
            slots
                .iter()
                .position(|slot| slot.as_ref().is_some_and(|slot| wanted(&slot.state)))
        };
        if let Some(found) = find(&self.slots, |state| matches!(state, SlotState::Spare)) {
            return Ok(narrow(found));
        }
        if let Some(found) = find(&self.slots, |state| matches!(state, SlotState::Preparing)) {
            return Ok(narrow(found));
        }
        if self.no_space {
            return Err(JournalError::NoSpace);
        }
        self.prepare_slot()
    }

    fn prepare_slot(&mut self) -> Result<u32, JournalError> {
        let slot = self.free_number()?;
        self.slots[slot] = Some(Slot {
            file: NO_FILE,
            state: SlotState::Preparing,
        });
        self.start_prepare(narrow(slot));
        Ok(narrow(slot))
    }

    /// A segment where bases belong, if there is such a place.
    pub(crate) fn take_base_slot(&mut self) -> Result<Option<u32>, JournalError> {
        let slot = self.free_number()?;
        let name = segment_name(narrow(slot));
        let size_bytes = u64::from(self.superblock.segment_bytes);
        if !self.disk.prepare_base_now(&name, size_bytes)? {
            return Ok(None);
        }
        let file = self.disk.open_now(&name)?;
        self.slots[slot] = Some(Slot {
            file,
            state: SlotState::Spare,
        });
        Ok(Some(narrow(slot)))
    }

    /// A number that no segment has.
    fn free_number(&mut self) -> Result<usize, JournalError> {
        let free = (1..SLOTS_MAX).find(|slot| self.slots.get(*slot).is_none_or(Option::is_none));
        let slot = free.ok_or(JournalError::NoSpace)?;
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        Ok(slot)
    }

    fn start_prepare(&mut self, slot: u32) {
        let size_bytes = u64::from(self.superblock.segment_bytes);
        let operation = DiskOperation::Prepare {
            name: segment_name(slot),
            size_bytes,
            written: self.blocks_a_record < LARGE_BLOCKS,
        };
        self.submit(Purpose::Spare { slot }, operation);
    }

    /// Try again after "no space": space may have been given back. The owner calls it now and then.
    pub fn retry_space(&mut self) {
        if !self.no_space || self.failed.is_some() {
            return;
        }
        self.no_space = false;
        for slot in std::mem::take(&mut self.starved) {
            self.start_prepare(slot);
        }
        self.keep_spares();
    }

    /// Have spares made in the background.
    pub fn keep_spares(&mut self) {
        let is_coming =
            |slot: &&Slot| matches!(slot.state, SlotState::Spare | SlotState::Preparing);
        while !self.no_space && self.slots.iter().flatten().filter(is_coming).count() < SPARES_MIN {
            if self.prepare_slot().is_err() {
                return;
            }
        }
    }

    pub(super) fn finish_spare(&mut self, slot: u32, outcome: Result<Vec<u8>, DiskError>) {
        let opened = outcome.and_then(|_| self.disk.open_now(&segment_name(slot)));
        let Some(found) = self.slots[slot as usize].as_mut() else {
            return;
        };
        let wanted = !matches!(found.state, SlotState::Preparing);
        match opened {
            Ok(file) => {
                found.file = file;
                if !wanted {
                    found.state = SlotState::Spare;
                }
            }
            Err(DiskError::NoSpace) if !wanted => {
                self.slots[slot as usize] = None;
                self.no_space = true;
            }
            Err(DiskError::NoSpace) => {
                self.no_space = true;
                self.starved.push(slot);
            }
            Err(error) => {
                self.fail(error.into());
            }
        }
    }
}
