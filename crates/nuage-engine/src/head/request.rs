//! Requests as they come: checked, held back while others touch their blocks, begun.

use nuage_block::{Buffer, Failure, Operation, Outcome, Request, Tag};
use nuage_journal::{BLOCK_BYTES, Disk, Kind, RESERVATIONS_BYTES_MAX};

use super::merge::{Change, Merge};
use super::reading::Reader;
use super::{BLOCK, VolumeHead};
use crate::extents::extents;

/// Data accepted but not yet applied, at most; beyond it writers wait.
const BACKLOG_BYTES_MAX: usize = 16 << 20;

impl<D: Disk> VolumeHead<D> {
    pub fn submit(&mut self, request: Request) {
        if let Some(failure) = self.stopped {
            self.fail(request.tag, failure);
            return;
        }
        if let Err(failure) = check(&request.operation, self.size_bytes) {
            self.fail(request.tag, failure);
            return;
        }
        if !self.is_serving() {
            self.blocked.push_back(request);
        } else if let Operation::Read { offset, length } = request.operation {
            self.read(Reader::Front, request.tag, offset, length as usize);
        } else if self.must_wait(&request.operation) {
            self.blocked.push_back(request);
        } else {
            self.start(request);
        }
    }

    /// True for a change that must wait for others, or for room.
    pub(super) fn must_wait(&self, operation: &Operation) -> bool {
        let Some((offset, length)) = changed_range(operation) else {
            return false;
        };
        if !self.blocked.is_empty() || !self.administrations.is_empty() {
            return true;
        }
        self.is_held_up(operation, offset, length)
    }

    pub(super) fn is_held_up(&self, operation: &Operation, offset: u64, length: u64) -> bool {
        let limit = BACKLOG_BYTES_MAX.min(self.store.superblock().segment_bytes as usize);
        let backlog = self.overlay.bytes() + self.pending_bytes();
        if backlog > limit {
            return true;
        }
        let (lba, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
        let overlaps = |other: u64, blocks: u64| lba < other + blocks && other < end;
        self.locks
            .iter()
            .any(|lock| overlaps(lock.lba, lock.blocks))
            || (reads_first(operation)
                && self
                    .pending
                    .iter()
                    .any(|pending| overlaps(pending.lba, pending.blocks)))
    }

    pub(super) fn pending_bytes(&self) -> usize {
        // An upper bound that is cheap: requests in flight times the largest part of one.
        self.pending
            .iter()
            .map(|p| p.data.as_ref().map_or(0, |_| p.blocks as usize))
            .sum::<usize>()
            * BLOCK_BYTES
    }

    pub(super) fn start(&mut self, request: Request) {
        let tag = request.tag;
        let mut zeroes = |kind, offset: u64, length: u64, fua| {
            if length == 0 {
                self.complete(tag, Outcome::Done);
                return;
            }
            self.merge_at(tag, offset, length, Change::Zero(kind), fua);
        };
        match request.operation {
            Operation::Read { offset, length } => {
                self.read(Reader::Front, tag, offset, length as usize);
            }
            Operation::Unmap { offset, length } => zeroes(Kind::Unmap, offset, length, false),
            Operation::WriteZeroes {
                offset,
                length,
                fua,
                allocate: _,
            } => {
                zeroes(Kind::Zero, offset, length, fua);
            }
            Operation::Write { offset, data, fua } => self.start_write(tag, offset, data, fua),
            Operation::CompareAndWrite {
                offset,
                expected,
                data,
                fua,
            } => {
                let length = data.len() as u64;
                let change = Change::Compare { expected, data };
                self.merge_at(tag, offset, length, change, fua);
            }
            Operation::Flush => self.wait_durable(tag, self.last_seq()),
            Operation::StoreReservations { state } => {
                if state.len() > RESERVATIONS_BYTES_MAX || !self.store.has_space() {
                    self.fail(tag, Failure::NoSpace);
                    return;
                }
                if self.make_room(0, state.len()).is_err() {
                    self.fail(tag, Failure::Medium);
                    return;
                }
                let seq = self.builder.push_plain(Kind::Reservations, 0, 0, 0, &state);
                self.reservations = state;
                self.wait_durable(tag, seq);
            }
            Operation::LoadReservations => {
                self.complete(tag, Outcome::Reservations(self.reservations.clone()));
            }
            Operation::BlockStatus { offset, length } => {
                let newer = self.overlay.ranges();
                let found = extents(&self.store.state().index, newer, offset, length);
                self.complete(tag, Outcome::Extents(found));
            }
        }
    }

    pub(super) fn start_write(&mut self, tag: Tag, offset: u64, data: Buffer, fua: bool) {
        if data.is_empty() {
            self.complete(tag, Outcome::Done);
        } else if offset.is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK_BYTES) {
            self.append_write(tag, Kind::Write, offset / BLOCK, data, fua);
        } else {
            let length = data.len() as u64;
            self.merge_at(tag, offset, length, Change::Data(data), fua);
        }
    }

    fn merge_at(&mut self, tag: Tag, offset: u64, length: u64, change: Change, fua: bool) {
        self.start_merge(Merge {
            tag,
            lba: offset / BLOCK,
            skip: skip(offset),
            length,
            change,
            fua,
            then: None,
        });
    }

    pub(super) fn start_blocked(&mut self) {
        while self.administrations.is_empty() && self.is_serving() {
            let Some(request) = self.blocked.front() else {
                return;
            };
            let held_up = changed_range(&request.operation).is_some_and(|(offset, length)| {
                self.is_held_up(&request.operation, offset, length)
            });
            if held_up {
                return;
            }
            if let Some(request) = self.blocked.pop_front() {
                self.start(request);
            }
        }
    }
}

pub(super) fn skip(offset: u64) -> usize {
    (offset % BLOCK) as usize
}

fn reads_first(operation: &Operation) -> bool {
    match operation {
        Operation::CompareAndWrite { .. } => true,
        Operation::Write { offset, data, .. } => {
            offset % BLOCK != 0 || data.len() % BLOCK_BYTES != 0
        }
        Operation::Unmap { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
            offset % BLOCK != 0 || length % BLOCK != 0
        }
        _ => false,
    }
}

/// The bytes that an operation may change.
fn changed_range(operation: &Operation) -> Option<(u64, u64)> {
    match operation {
        Operation::Write { offset, data, .. } | Operation::CompareAndWrite { offset, data, .. } => {
            Some((*offset, data.len() as u64))
        }
        Operation::Unmap { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
            Some((*offset, *length))
        }
        Operation::StoreReservations { .. } => Some((0, 0)),
        _ => None,
    }
}

fn check(operation: &Operation, size_bytes: u64) -> Result<(), Failure> {
    let range = match operation {
        Operation::Read { offset, length } => Some((*offset, u64::from(*length))),
        Operation::BlockStatus { offset, length } => Some((*offset, *length)),
        other => changed_range(other),
    };
    let Some((offset, length)) = range else {
        return Ok(());
    };
    let inside = offset
        .checked_add(length)
        .is_some_and(|end| end <= size_bytes);
    let aligned = offset % 512 == 0 && length % 512 == 0;
    let equal = match operation {
        Operation::CompareAndWrite { expected, data, .. } => expected.len() == data.len(),
        _ => true,
    };
    if inside && aligned && equal {
        Ok(())
    } else {
        Err(Failure::OutOfRange)
    }
}
