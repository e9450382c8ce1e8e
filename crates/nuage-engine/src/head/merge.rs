//! Requests that read before they write: parts of blocks, COMPARE AND WRITE.

use nuage_block::{Buffer, Failure, Outcome, Tag};
use nuage_journal::{Disk, Kind};

use super::reading::ReadPurpose;
use super::request::skip;
use super::{BLOCK, VolumeHead};

/// A request that reads before it writes.
pub(super) struct Merge {
    pub(super) tag: Tag,
    pub(super) lba: u64,
    /// Byte offset of the change in the blocks read.
    pub(super) skip: usize,
    pub(super) length: u64,
    pub(super) change: Change,
    pub(super) fua: bool,
    /// The other edge of a range, after this one.
    pub(super) then: Option<Box<Merge>>,
}

impl Merge {
    /// Blocks that it reads.
    pub(super) fn block_count(&self) -> u64 {
        (self.skip as u64 + self.length).div_ceil(BLOCK)
    }
}

pub(super) enum Change {
    Data(Buffer),
    Compare { expected: Vec<u8>, data: Buffer },
    Zero(Kind),
}

pub(super) struct Lock {
    pub(super) tag: Tag,
    pub(super) lba: u64,
    pub(super) blocks: u64,
}

/// A part of a request that gets no answer of its own.
pub(super) const NO_TAG: Tag = Tag::MAX;

impl<D: Disk> VolumeHead<D> {
    /// Read what a change needs to see, under a lock.
    pub(super) fn start_merge(&mut self, merge: Merge) {
        let blocks = merge.block_count();
        let whole = merge.skip == 0 && merge.length.is_multiple_of(BLOCK);
        match merge.change {
            Change::Zero(kind) if whole => {
                self.append_zero(merge.tag, kind, merge.lba, blocks, merge.fua);
            }
            // Only the edges of a large range are read: the lock covers all of it.
            Change::Zero(_) if blocks > 2 => self.start_zero_with_edges(merge),
            _ => {
                self.locks.push(Lock {
                    tag: merge.tag,
                    lba: merge.lba,
                    blocks,
                });
                let lba = merge.lba;
                self.read_blocks(lba, blocks, ReadPurpose::Merge(merge));
            }
        }
    }

    /// Zero the middle by one record and the edges by merged blocks of their own.
    pub(super) fn start_zero_with_edges(&mut self, merge: Merge) {
        let Change::Zero(kind) = merge.change else {
            return;
        };
        let start = merge.lba * BLOCK + merge.skip as u64;
        let end = start + merge.length;
        let (first_whole, last_whole) = (start.div_ceil(BLOCK), end / BLOCK);
        let edges = [
            (start, first_whole * BLOCK - start),
            (last_whole * BLOCK, end - last_whole * BLOCK),
        ];
        // The middle goes without an answer of its own; the edges follow one after the other, and the last
        // one answers: by then all parts have their places in the journal.
        self.append_zero(
            NO_TAG,
            kind,
            first_whole,
            last_whole - first_whole,
            merge.fua,
        );
        let mut next: Option<Box<Merge>> = None;
        for (offset, length) in edges.into_iter().rev().filter(|edge| edge.1 > 0) {
            let tag = if next.is_none() { merge.tag } else { NO_TAG };
            let lba = offset / BLOCK;
            self.locks.push(Lock {
                tag,
                lba,
                blocks: 1,
            });
            next = Some(Box::new(Merge {
                tag,
                lba,
                skip: skip(offset),
                length,
                change: Change::Zero(kind),
                fua: merge.fua,
                then: next,
            }));
        }
        if let Some(edge) = next {
            self.read_blocks(edge.lba, 1, ReadPurpose::Merge(*edge));
        }
    }

    pub(super) fn finish_merge(
        &mut self,
        mut merge: Merge,
        blocks: Vec<u8>,
        failure: Option<Failure>,
    ) {
        let then = merge.then.take();
        self.finish_edge(merge, blocks, failure);
        match (then, failure) {
            (Some(next), None) => self.read_blocks(next.lba, 1, ReadPurpose::Merge(*next)),
            (Some(next), Some(_)) => self.finish_merge(*next, Vec::new(), failure),
            (None, _) => {}
        }
    }

    pub(super) fn finish_edge(
        &mut self,
        merge: Merge,
        mut blocks: Vec<u8>,
        failure: Option<Failure>,
    ) {
        let found = self
            .locks
            .iter()
            .position(|l| l.tag == merge.tag && l.lba == merge.lba);
        if let Some(at) = found {
            self.locks.swap_remove(at);
        }
        if let Some(failure) = failure {
            if merge.tag != NO_TAG {
                self.fail(merge.tag, failure);
            }
            return;
        }
        let target = &mut blocks[merge.skip..merge.skip + merge.length as usize];
        let kind = match &merge.change {
            Change::Data(data) => {
                target.copy_from_slice(data);
                Kind::Write
            }
            Change::Zero(_) => {
                target.fill(0);
                Kind::Write
            }
            Change::Compare { expected, data } => {
                let differs = target.iter().zip(expected).position(|(a, b)| a != b);
                if let Some(at) = differs {
                    self.complete(merge.tag, Outcome::Miscompare { at: at as u32 });
                    return;
                }
                target.copy_from_slice(data);
                Kind::CompareAndWrite
            }
        };
        self.append_write(merge.tag, kind, merge.lba, blocks.into(), merge.fua);
    }
}
