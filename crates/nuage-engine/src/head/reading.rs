//! Reads: of the front, of views; and the mending of what is found damaged.

use nuage_block::{Completion, Failure, Outcome, Tag};
use nuage_journal::{
    BLOCK_BYTES, Damage, Disk, Entry, Index, ReadError, ReadOutcome, State, Wanted,
};

use super::merge::Merge;
use super::request::skip;
use super::{BLOCK, QUEUE_DEPTH_MAX, VolumeHead};
use crate::overlay::Found;

/// Whose read it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Front,
    View(u64),
}

pub(super) enum ReadPurpose {
    Data {
        reader: Reader,
        tag: Tag,
        first: u64,
        blocks: u64,
        skip: usize,
        length: usize,
    },
    Merge(Merge),
}

/// A read that met a damaged block and waits for a good copy of it.
pub(super) struct Damaged {
    /// What the disk has there is not what `entry` says.
    pub(super) entry: Entry,
    pub(super) error: ReadError,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) purpose: ReadPurpose,
}

/// Where history is read from.
#[derive(Debug)]
pub(crate) struct View {
    pub index: Index,
    pub completions: Vec<Completion>,
}

impl<D: Disk> VolumeHead<D> {
    /// Make `state` readable as a view.
    pub(crate) fn add_view(&mut self, state: State) -> u64 {
        let number = self.next_view;
        self.next_view += 1;
        self.views.insert(
            number,
            View {
                index: state.index,
                completions: Vec::new(),
            },
        );
        number
    }

    pub(super) fn read(&mut self, reader: Reader, tag: Tag, offset: u64, length: usize) {
        let lba = offset / BLOCK;
        let blocks = (offset + length as u64).div_ceil(BLOCK) - lba;
        let purpose = ReadPurpose::Data {
            reader,
            tag,
            first: lba,
            blocks,
            skip: skip(offset),
            length,
        };
        self.read_blocks(lba, blocks, purpose);
    }

    pub(crate) fn read_view(&mut self, view: u64, tag: Tag, offset: u64, length: usize) {
        self.read(Reader::View(view), tag, offset, length);
    }

    pub(super) fn read_blocks(&mut self, lba: u64, blocks: u64, purpose: ReadPurpose) {
        let view = match purpose {
            ReadPurpose::Data {
                reader: Reader::View(number),
                ..
            } => self.views.get(&number),
            _ => None,
        };
        let index = view.map_or(&self.store.state().index, |view| &view.index);
        let overlay = Some(&self.overlay).filter(|overlay| view.is_none() && !overlay.is_empty());
        let length = blocks as usize * BLOCK_BYTES;
        let mut buffer = Vec::with_capacity(length);
        let mut wanted = Vec::new();
        for (at, lba) in (lba..lba + blocks).enumerate() {
            let buffer_offset = at * BLOCK_BYTES;
            let found = overlay.and_then(|overlay| overlay.get(lba, self.builder.payload()));
            let entry = index.get(lba);
            if found.is_none() && entry.is_mapped() {
                wanted.push(Wanted {
                    entry,
                    lba,
                    buffer_offset,
                });
                continue;
            }
            // Not all of it comes from the disk: only then it begins as zeros.
            buffer.resize(length, 0);
            if let Some(Found::Data(data)) = found {
                buffer[buffer_offset..buffer_offset + BLOCK_BYTES].copy_from_slice(data);
            }
        }
        if wanted.is_empty() {
            self.finish_read(
                purpose,
                ReadOutcome {
                    buffer,
                    error: None,
                },
            );
            return;
        }
        let number = self.next_read;
        self.next_read += 1;
        self.reads.insert(number, purpose);
        self.store.read(number, wanted, buffer);
    }

    /// Wait for another copy's version of a block that is damaged here, or that the disk does not give; gives the
    /// purpose back when it cannot be mended. Where there is no other copy the block is lost, and told as such.
    pub(super) fn seek_repair(
        &mut self,
        purpose: ReadPurpose,
        error: ReadError,
    ) -> Option<ReadPurpose> {
        let (ReadError::Damaged { lba, entry } | ReadError::Disk { lba, entry, .. }) = error;
        let (first, blocks) = match &purpose {
            ReadPurpose::Data { first, blocks, .. } => (*first, *blocks),
            ReadPurpose::Merge(merge) => (merge.lba, merge.block_count()),
        };
        let may_wait = self.damaged.len() < QUEUE_DEPTH_MAX;
        if !may_wait || self.stopped.is_some() || !self.store.note_damage(entry, lba) {
            return Some(purpose);
        }
        self.damaged.push(Damaged {
            entry,
            error,
            lba: first,
            blocks,
            purpose,
        });
        None
    }

    /// Read again what was mended meanwhile; what no copy has is an error now.
    pub(super) fn resume_damaged(&mut self) {
        let mut at = 0;
        while at < self.damaged.len() {
            let damage = self.store.damage_of(self.damaged[at].entry);
            if self.stopped.is_none() && matches!(damage, Some(Damage::Noted | Damage::Asked)) {
                at += 1;
                continue;
            }
            let waiting = self.damaged.swap_remove(at);
            if damage.is_none() && self.stopped.is_none() {
                self.read_blocks(waiting.lba, waiting.blocks, waiting.purpose);
                continue;
            }
            let outcome = ReadOutcome {
                buffer: Vec::new(),
                error: Some(waiting.error),
            };
            self.finish_read(waiting.purpose, outcome);
        }
    }

    pub(super) fn finish_read(&mut self, purpose: ReadPurpose, outcome: ReadOutcome) {
        let begin = match &purpose {
            ReadPurpose::Data { first, skip, .. } => first * BLOCK + *skip as u64,
            ReadPurpose::Merge(_) => 0,
        };
        let failure = outcome.error.map(|error| match error {
            ReadError::Damaged { lba, .. } => Failure::Checksum {
                offset: begin.max(lba * BLOCK),
            },
            ReadError::Disk { .. } => Failure::Medium,
        });
        match purpose {
            ReadPurpose::Data {
                reader,
                tag,
                skip,
                length,
                ..
            } => {
                let outcome = failure.map_or_else(
                    || {
                        let mut data = outcome.buffer;
                        if skip > 0 {
                            data.drain(..skip);
                        }
                        data.truncate(length);
                        Outcome::Data(data)
                    },
                    Outcome::Failed,
                );
                let completion = Completion { tag, outcome };
                match reader {
                    Reader::Front => self.completions.push(completion),
                    Reader::View(number) => {
                        if let Some(view) = self.views.get_mut(&number) {
                            view.completions.push(completion);
                        }
                    }
                }
            }
            ReadPurpose::Merge(merge) => self.finish_merge(merge, outcome.buffer, failure),
        }
    }
}
