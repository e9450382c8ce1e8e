//! Steps to the disk, one after the other: groups as one commit, footers, seals, first blocks.

use nuage_block::{Buffer, Pages};

use super::{Placed, Purpose, SlotState, Step, Store, StoreEvent};
use crate::disk::{Disk, DiskOperation};
use crate::error::JournalError;
use crate::segment::{block_bytes, encode_first_block};

/// Bytes of one commit at most; more only delays the first of them.
const COMMIT_BYTES_MAX: u64 = 4 << 20;

impl<D: Disk> Store<D> {
    pub(super) fn start_step(&mut self) {
        if self.step_running || self.failed.is_some() {
            return;
        }
        if let Some(Step::Start(slot, _)) = self.steps.front()
            && self.file_of(*slot).is_none()
        {
            return; // its file is still being prepared
        }
        let Some(step) = self.steps.pop_front() else {
            return;
        };
        self.step_running = true;
        match step {
            Step::Write(placed) => self.start_commit(&placed),
            Step::Footer(slot) => {
                let footer = self.footers.get(&slot).map(|bytes| Buffer::padded(bytes));
                if let Some((SlotState::Sealed(_, seal), footer)) =
                    self.slot_state(slot).zip(footer)
                {
                    let offset = seal.footer_offset();
                    self.write(slot, offset, vec![footer.into()], None, None);
                }
            }
            Step::Seal(slot) => {
                if let Some(SlotState::Sealed(header, seal)) = self.slot_state(slot) {
                    let block = encode_first_block(header, Some(seal));
                    self.write(slot, 0, vec![block], None, Some(slot));
                }
            }
            Step::Start(slot, header) => {
                let block = encode_first_block(&header, None);
                self.write(slot, 0, vec![block], None, None);
            }
        }
    }

    fn start_commit(&mut self, first: &Placed) {
        let mut bytes = first.group.total_bytes();
        let mut seq = first.group.head.info.last_seq();
        let mut buffers = vec![first.group.header.clone(), first.group.payload.clone()];
        while let Some(Step::Write(next)) = self.steps.front() {
            if bytes + next.group.total_bytes() > COMMIT_BYTES_MAX {
                break;
            }
            bytes += next.group.total_bytes();
            seq = next.group.head.info.last_seq();
            buffers.push(next.group.header.clone());
            buffers.push(next.group.payload.clone());
            self.steps.pop_front();
        }
        buffers.retain(|buffer| !buffer.is_empty());
        self.write(
            first.slot,
            block_bytes(first.block),
            buffers,
            Some(seq),
            None,
        );
    }

    pub(super) fn slot_state(&self, slot: u32) -> Option<&SlotState> {
        self.slots
            .get(slot as usize)?
            .as_ref()
            .map(|slot| &slot.state)
    }

    fn write(
        &mut self,
        slot: u32,
        offset: u64,
        buffers: Vec<Pages>,
        seq: Option<u64>,
        sealed: Option<u32>,
    ) {
        let Some(file) = self.file_of(slot) else {
            self.fail(JournalError::Stopped);
            return;
        };
        self.submit(
            Purpose::Commit { seq, sealed },
            DiskOperation::Write {
                file,
                offset,
                buffers,
            },
        );
    }

    pub(super) fn finish_commit(&mut self, seq: Option<u64>, sealed: Option<u32>) {
        if let Some(slot) = sealed {
            self.footers.remove(&slot);
            if let Some(SlotState::Sealed(header, seal)) = self.slot_state(slot) {
                let receipt = self.arrival(slot, header, seal);
                self.events.push(StoreEvent::Receipt(receipt));
            }
        }
        if let Some(seq) = seq {
            self.durable_seq = seq;
            self.events.push(StoreEvent::Durable { seq });
            self.apply_ready();
        }
    }
}
