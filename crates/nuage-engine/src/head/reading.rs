//! Reads: of the front, of views; and the mending of what is found damaged.

use nuage_block::{Completion, Failure, Outcome, Tag};
use nuage_journal::{BLOCK_BYTES, Disk, Index, ReadError, ReadOutcome, State, Wanted};

use super::merge::Merge;
use super::request::skip;
use super::{BLOCK, HeadEvent, QUEUE_DEPTH_MAX, VolumeHead};
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
    pub(super) damaged_lba: u64,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) purpose: ReadPurpose,
    pub(super) answers_left: usize,
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
        let mut buffer = vec![0; blocks as usize * BLOCK_BYTES];
        let mut wanted = Vec::new();
        for (at, lba) in (lba..lba + blocks).enumerate() {
            let buffer_offset = at * BLOCK_BYTES;
            match overlay.and_then(|overlay| overlay.get(lba)) {
                Some(Found::Data(data)) => {
                    buffer[buffer_offset..buffer_offset + BLOCK_BYTES].copy_from_slice(data);
                }
                Some(Found::Zero) => {}
                None => {
                    let entry = index.get(lba);
                    if entry.is_mapped() {
                        wanted.push(Wanted {
                            entry,
                            lba,
                            buffer_offset,
                        });
                    }
                }
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

    /// A copy sent a good version of a block that is damaged here: put it in place and read again.
    pub(super) fn repaired(&mut self, lba: u64, data: &[u8]) {
        let Some(at) = self
            .damaged
            .iter()
            .position(|waiting| waiting.damaged_lba == lba)
        else {
            return;
        };
        if self.store.repair_block(lba, data).unwrap_or(false) {
            self.events.push(HeadEvent::Repaired { lba });
            while let Some(at) = self.damaged.iter().position(|w| w.damaged_lba == lba) {
                let waiting = self.damaged.swap_remove(at);
                self.read_blocks(waiting.lba, waiting.blocks, waiting.purpose);
            }
            return;
        }
        self.damaged[at].answers_left = self.damaged[at].answers_left.saturating_sub(1);
        if self.damaged[at].answers_left == 0 {
            let waiting = self.damaged.swap_remove(at);
            let buffer = vec![0; waiting.blocks as usize * BLOCK_BYTES];
            let error = Some(ReadError::Damaged { lba });
            self.finish_read(waiting.purpose, ReadOutcome { buffer, error });
        }
    }

    /// Ask other copies for a block that is damaged here; gives the purpose back when none can help.
    pub(super) fn seek_repair(&mut self, purpose: ReadPurpose, lba: u64) -> Option<ReadPurpose> {
        let entry = self.store.state().index.get(lba);
        let (first, blocks) = match &purpose {
            ReadPurpose::Data {
                reader: Reader::Front,
                first,
                blocks,
                ..
            } => (*first, *blocks),
            _ => return Some(purpose),
        };
        let crc = entry.crc_bits();
        let asked = self
            .replicas
            .as_mut()
            .map_or(0, |replicas| replicas.ask_for_block(lba, crc));
        if asked == 0 || self.damaged.len() >= QUEUE_DEPTH_MAX {
            return Some(purpose);
        }
        self.damaged.push(Damaged {
            damaged_lba: lba,
            lba: first,
            blocks,
            purpose,
            answers_left: asked,
        });
        None
    }

    pub(super) fn finish_read(&mut self, purpose: ReadPurpose, outcome: ReadOutcome) {
        let failure = outcome.error.map(|error| match error {
            ReadError::Damaged { .. } => Failure::Checksum,
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
                let mut data = outcome.buffer;
                if skip > 0 {
                    data.drain(..skip);
                }
                data.truncate(length);
                let outcome = failure.map_or(Outcome::Data(data), Outcome::Failed);
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
