//! What a group does to index and side state: the one place that says it.

use crate::checkpoint::{MARKS_MAX, Mark, Position, SideState};
use crate::index::{Entry, Index};
use crate::layout::{GroupHead, Kind};

/// Index, side state and size of a volume at a position.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub position: Position,
    pub size_bytes: u64,
    pub side: SideState,
    pub index: Index,
}

/// A rollback that `apply` met: the caller resolves the point and calls `rolled_back`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackTo {
    pub seq: u64,
}

impl State {
    /// Apply the records of a group that lies at `block` of `slot`, up to `limit_seq`.
    ///
    /// Records before the position were applied already and are passed over. Stops after a
    /// rollback record and returns it; call again with the same group to go on.
    pub fn apply(
        &mut self,
        head: &GroupHead,
        slot: u32,
        block: u32,
        limit_seq: u64,
    ) -> Option<RollbackTo> {
        let info = &head.info;
        let mut rollback = None;
        let facts = head.block_facts();
        for (descriptor, seq) in head.descriptors.iter().zip(info.first_seq..) {
            if seq <= self.position.seq {
                continue;
            }
            if seq > limit_seq {
                return None;
            }
            match descriptor.kind {
                Kind::Write | Kind::CompareAndWrite | Kind::Base => {
                    let first = descriptor.payload_block as usize;
                    let range = first..first + descriptor.blocks as usize;
                    for (facts, at) in facts[range].iter().zip(descriptor.payload_block..) {
                        let back = info.header_blocks() + at;
                        let entry = Entry::new(slot, block + back, back, facts.crc);
                        self.index.set(facts.lba, entry);
                    }
                }
                Kind::Zero | Kind::Unmap => {
                    self.index.unmap(descriptor.lba, descriptor.argument);
                }
                Kind::Mark | Kind::Snapshot => self.side.marks.push(Mark {
                    seq,
                    time_ns: info.time_ns,
                    kind: descriptor.kind,
                    id: descriptor.argument,
                    name: String::from_utf8_lossy(&descriptor.tail).into_owned(),
                }),
                Kind::Reservations => self.side.reservations.clone_from(&descriptor.tail),
                Kind::Rollback => {
                    rollback = Some(RollbackTo {
                        seq: descriptor.argument,
                    });
                }
                Kind::Resize => self.size_bytes = descriptor.argument,
                Kind::Flush | Kind::Epoch => {}
            }
            self.position.seq = seq;
            if rollback.is_some() {
                break;
            }
        }
        if self.side.marks.len() > MARKS_MAX {
            let extra = self.side.marks.len() - MARKS_MAX;
            self.side.marks.drain(..extra);
        }
        self.position.time_ns = info.time_ns;
        self.position.epoch = info.epoch;
        self.position.segment = info.segment;
        self.position.chain = head.chain;
        rollback
    }
}
