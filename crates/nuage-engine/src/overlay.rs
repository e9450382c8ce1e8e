//! What readers see before the index does: records that are visible but not applied.

use nuage_block::Bytes;
use nuage_journal::BLOCK_BYTES;
use std::collections::{HashMap, VecDeque};

/// What the overlay says of a block.
pub(crate) enum Found<'a> {
    Data(&'a [u8]),
    Zero,
}

struct Record {
    seq: u64,
    lba: u64,
    blocks: u64,
    zero: bool,
}

struct Block {
    seq: u64,
    data: Bytes,
    offset: usize,
}

/// Visible records in seq order; emptied as the store applies them.
#[derive(Default)]
pub(crate) struct Overlay {
    records: VecDeque<Record>,
    blocks: HashMap<u64, Block>,
    zero_count: usize,
    bytes: usize,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of data held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn write(&mut self, seq: u64, lba: u64, data: &Bytes, offset: usize, length: usize) {
        let blocks = (length / BLOCK_BYTES) as u64;
        for (lba, at) in (lba..lba + blocks).zip((offset..).step_by(BLOCK_BYTES)) {
            self.blocks.insert(
                lba,
                Block {
                    seq,
                    data: data.clone(),
                    offset: at,
                },
            );
        }
        self.bytes += length;
        self.records.push_back(Record {
            seq,
            lba,
            blocks,
            zero: false,
        });
    }

    pub(crate) fn zero(&mut self, seq: u64, lba: u64, blocks: u64) {
        self.zero_count += 1;
        self.records.push_back(Record {
            seq,
            lba,
            blocks,
            zero: true,
        });
    }

    pub(crate) fn get(&self, lba: u64) -> Option<Found<'_>> {
        let block = self.blocks.get(&lba);
        if self.zero_count > 0 {
            let seq = block.map_or(0, |block| block.seq);
            let covers = |record: &&Record| {
                record.zero
                    && record.seq > seq
                    && (record.lba..record.lba + record.blocks).contains(&lba)
            };
            if self.records.iter().any(|record| covers(&record)) {
                return Some(Found::Zero);
            }
        }
        block.map(|block| Found::Data(&block.data[block.offset..block.offset + BLOCK_BYTES]))
    }

    /// The index has everything up to `seq` now.
    pub(crate) fn applied(&mut self, seq: u64) {
        while let Some(record) = self.records.front() {
            if record.seq > seq {
                return;
            }
            if record.zero {
                self.zero_count -= 1;
            } else {
                self.bytes -= record.blocks as usize * BLOCK_BYTES;
                for lba in record.lba..record.lba + record.blocks {
                    if self.blocks.get(&lba).is_some_and(|block| block.seq <= seq) {
                        self.blocks.remove(&lba);
                    }
                }
            }
            self.records.pop_front();
        }
    }

    /// Ranges `(lba, blocks, mapped)` in order of their writing.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.records
            .iter()
            .map(|record| (record.lba, record.blocks, !record.zero))
    }
}
