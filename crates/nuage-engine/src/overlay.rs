//! What readers see before the index does: records that are visible but not applied.

use nuage_block::{Bytes, Pages};
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

/// Where the data of a record lies until the index has it.
#[derive(Clone)]
pub(crate) enum Kept {
    /// In the payload of its group, from this block of it on.
    InGroup(u32),
    /// Apart, from this byte on: its group has it encrypted.
    Apart(Bytes, usize),
}

impl Kept {
    /// The same, `blocks` further on.
    fn further(&self, blocks: u32) -> Self {
        match self {
            Self::InGroup(block) => Self::InGroup(block + blocks),
            Self::Apart(data, offset) => {
                Self::Apart(data.clone(), offset + blocks as usize * BLOCK_BYTES)
            }
        }
    }
}

struct Block {
    seq: u64,
    kept: Kept,
}

/// Visible records in seq order; emptied as the store applies them.
#[derive(Default)]
pub(crate) struct Overlay {
    records: VecDeque<Record>,
    blocks: HashMap<u64, Block>,
    /// Payloads of groups that are closed and not applied, by their last seq.
    groups: VecDeque<(u64, Pages)>,
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

    /// A group has been closed; what it holds may become visible.
    pub(crate) fn closed(&mut self, last_seq: u64, payload: Pages) {
        self.groups.push_back((last_seq, payload));
    }

    pub(crate) fn write(&mut self, seq: u64, lba: u64, blocks: u64, kept: &Kept) {
        for (lba, at) in (lba..lba + blocks).zip(0..) {
            let kept = kept.further(at);
            self.blocks.insert(lba, Block { seq, kept });
        }
        self.bytes += blocks as usize * BLOCK_BYTES;
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

    /// `gathering`: payload of the group that is not closed yet.
    pub(crate) fn get<'a>(&'a self, lba: u64, gathering: &'a [u8]) -> Option<Found<'a>> {
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
        let (memory, from) = match block? {
            Block {
                kept: Kept::Apart(data, offset),
                ..
            } => (&data[..], *offset),
            Block {
                kept: Kept::InGroup(block),
                seq,
            } => {
                let at = self.groups.partition_point(|(last, _)| last < seq);
                let payload = self
                    .groups
                    .get(at)
                    .map_or(gathering, |(_, payload)| payload);
                (payload, *block as usize * BLOCK_BYTES)
            }
        };
        Some(Found::Data(&memory[from..from + BLOCK_BYTES]))
    }

    /// The index has everything up to `seq` now.
    pub(crate) fn applied(&mut self, seq: u64) {
        while self.groups.front().is_some_and(|(last, _)| *last <= seq) {
            self.groups.pop_front();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use nuage_block::Buffer;

    fn block(value: u8) -> Buffer {
        vec![value; BLOCK_BYTES].into()
    }

    fn shown(overlay: &Overlay, lba: u64, gathering: &[u8]) -> Option<u8> {
        match overlay.get(lba, gathering)? {
            Found::Data(data) => Some(data[0]),
            Found::Zero => Some(0),
        }
    }

    #[test]
    fn a_block_is_found_in_the_group_that_has_it_until_that_is_applied() {
        let mut overlay = Overlay::default();
        let mut gathering = block(1);
        gathering.extend_from_slice(&block(2));
        overlay.write(1, 10, 2, &Kept::InGroup(0));
        assert_eq!(shown(&overlay, 11, &gathering), Some(2));
        overlay.closed(1, gathering.into());
        overlay.write(2, 11, 1, &Kept::InGroup(0));
        let gathering = block(3);
        assert_eq!(shown(&overlay, 10, &gathering), Some(1));
        assert_eq!(shown(&overlay, 11, &gathering), Some(3));
        overlay.closed(2, gathering.into());
        overlay.write(3, 12, 1, &Kept::Apart(Bytes::from_owner(block(4)), 0));
        assert_eq!(shown(&overlay, 11, &[]), Some(3));
        overlay.applied(1);
        assert_eq!(shown(&overlay, 10, &[]), None);
        assert_eq!(shown(&overlay, 11, &[]), Some(3));
        assert_eq!(shown(&overlay, 12, &[]), Some(4));
        overlay.applied(3);
        assert!(overlay.is_empty() && overlay.groups.is_empty() && overlay.bytes() == 0);
    }
}
