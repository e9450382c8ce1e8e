//! Live blocks of mostly dead segments before the horizon move together (docs/protocols/journal.md §7).
//!
//! Blocks move as they are stored: no key is needed. Order of steps: the new segment is whole and sealed,
//! then a file says which blocks moved where, then every checkpoint refers to it, then the index, then the file
//! goes, then the old segments are given back. Checkpoints of later moments than the horizon may name either
//! segment until all are done: while the file is there nothing is given back, and whoever opens the journal after
//! a crash, or finds room again, begins with the checkpoints anew.

use std::collections::HashMap;

use crate::bytes::{Reader, narrow, undamaged};
use crate::checkpoint::{Checkpoint, checkpoint_name};
use crate::cipher::block_crc;
use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::error::JournalError;
use crate::index::{Entry, Index};
use crate::layout::{BlockFacts, Closing, GroupBuilder};
use crate::segment::{BASE_SEGMENT, Footer, SegmentHeader, SegmentKind, block_bytes};
use crate::store::{Slot, SlotState, Store};

/// Segments taken in one round: bounds the pause.
const SEGMENTS_A_ROUND: usize = 8;
/// The file that says which blocks are moving, and where to.
const MOVES_NAME: &str = "moves";
const MOVES_MAGIC: [u8; 8] = *b"NUAGMOV1";

struct Moving {
    entry: Entry,
    facts: BlockFacts,
    stored: Vec<u8>,
}

pub(crate) type Moves = HashMap<Entry, Entry>;

impl<D: Disk> Store<D> {
    /// Move the live blocks of some mostly dead segments into one new segment. False: nothing to gain.
    pub(crate) fn compact(&mut self, live: &HashMap<u32, usize>) -> Result<bool, JournalError> {
        let capacity = self.superblock.segment_bytes as usize / BLOCK_BYTES * 3 / 4;
        let horizon = self.horizon_seq();
        let mut victims: Vec<(usize, u32)> = Vec::new();
        for (number, _, _) in self.sealed_before(horizon) {
            let used = live.get(&number).copied().unwrap_or(0);
            if used > 0 && used * 2 < capacity {
                victims.push((used, number));
            }
        }
        victims.sort_unstable();
        if victims.len() < 2 || self.spare_count() == 0 {
            return Ok(false);
        }
        let index = self.view(horizon)?.index;
        let (mut moving, mut moved) = (Vec::new(), 0);
        for (used, number) in victims {
            if moved == SEGMENTS_A_ROUND || moving.len() + used > capacity {
                break;
            }
            // One that is damaged stays as it is, until it is mended or needed no more.
            if let Some(mut found) = self.collect_live(number, &index) {
                moving.append(&mut found);
                moved += 1;
            }
        }
        if moved < 2 {
            return Ok(false);
        }
        let moves = match self.write_base(&moving) {
            // The next round finds some, or the round after that: nothing is missing meanwhile.
            Err(JournalError::NoSpace | JournalError::Disk(DiskError::NoSpace)) => {
                return Ok(false);
            }
            moves => moves?,
        };
        match self.disk.replace_now(MOVES_NAME, &encode_moves(&moves)) {
            Ok(()) => self.moves = moves,
            // Nothing refers to the new segment: it is given back as dead.
            Err(DiskError::NoSpace) => return Ok(true),
            Err(error) => return Err(self.fail(error.into())),
        }
        self.finish_moves()
    }

    /// Have every checkpoint and the index name the places that blocks have moved to. False: the disk has no room
    /// for a checkpoint; until it has, nothing is given back.
    pub(crate) fn finish_moves(&mut self) -> Result<bool, JournalError> {
        if self.moves.is_empty() {
            return Ok(true);
        }
        let moves = std::mem::take(&mut self.moves);
        let done = self.relocate(&moves);
        if done.is_err() {
            self.moves = moves;
        }
        match done {
            Err(JournalError::Disk(DiskError::NoSpace)) => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }

    /// Moves that a crash broke off, or that had no room.
    pub(crate) fn read_moves(&mut self, names: &[String]) -> Result<(), JournalError> {
        if names.iter().any(|name| name == MOVES_NAME) {
            self.moves = decode_moves(&self.disk.load_now(MOVES_NAME)?)?;
            self.finish_moves()?;
        }
        Ok(())
    }

    /// The live blocks of a segment; `None`: not all of it can be read. What is damaged is noted.
    fn collect_live(&mut self, number: u32, index: &Index) -> Option<Vec<Moving>> {
        let here = |(_, entry): &(u64, Entry)| entry.slot() == number;
        let entries: Vec<(u64, Entry)> = index.entries().filter(here).collect();
        let mut facts: HashMap<u32, BlockFacts> = HashMap::new();
        for (head, block) in self.groups_of(number).ok()? {
            let first = block + head.info.header_blocks();
            facts.extend((first..).zip(head.block_facts()));
        }
        let file = self.file_of(number)?;
        let mut moving = Vec::with_capacity(entries.len());
        for (lba, entry) in entries {
            let facts = facts.get(&entry.block()).filter(|facts| facts.lba == lba)?;
            let read = self
                .disk
                .read_now(file, block_bytes(entry.block()), BLOCK_BYTES);
            let sound =
                |stored: &Vec<u8>| block_crc(&facts.origin.volume, lba, stored) == facts.crc;
            let Some(stored) = read.ok().filter(sound) else {
                self.note_damage(entry, lba);
                return None;
            };
            moving.push(Moving {
                entry,
                facts: *facts,
                stored,
            });
        }
        Some(moving)
    }

    fn write_base(&mut self, moving: &[Moving]) -> Result<Moves, JournalError> {
        // A number that no earlier life of the slot's file can hold.
        self.write_superblock()?;
        let segment = BASE_SEGMENT | self.superblock.generation;
        let is_spare = |slot: &Option<Slot>| {
            matches!(
                slot,
                Some(Slot {
                    state: SlotState::Spare,
                    ..
                })
            )
        };
        let slot = match self.take_base_slot()? {
            Some(slot) => slot,
            None => narrow(
                self.slots
                    .iter()
                    .position(is_spare)
                    .ok_or(JournalError::NoSpace)?,
            ),
        };
        let file = self.file_of(slot).ok_or(JournalError::NoSpace)?;
        let horizon = self
            .anchors
            .first()
            .map(|anchor| anchor.position)
            .unwrap_or_default();
        let header = SegmentHeader {
            slot,
            volume: self.superblock.volume,
            segment,
            epoch: horizon.epoch,
            first_seq: 1,
            size_bytes: self.superblock.segment_bytes,
            kind: SegmentKind::Base,
            created_ns: horizon.time_ns,
            previous_chain: horizon.chain,
        };
        let mut moves = Moves::new();
        let (mut block, mut seq, mut chain) = (1, 1, horizon.chain);
        let mut footer = Footer::default();
        for part in moving.chunks(self.payload_blocks_max() as usize) {
            let mut builder =
                GroupBuilder::new(header.volume, header.epoch, seq, self.superblock.encrypted);
            for moved in part {
                seq = builder.push_base(&moved.facts, &moved.stored) + 1;
            }
            let group = builder.finish(&Closing {
                segment,
                time_ns: horizon.time_ns,
                stable_seq: 0,
                previous_chain: chain,
            });
            chain = group.head.chain;
            let header_blocks = group.head.info.header_blocks();
            self.disk
                .write_now(file, block_bytes(block), &group.header)?;
            self.disk
                .write_now(file, block_bytes(block + header_blocks), &group.payload)?;
            footer.add(group.header_bytes(), &group.head);
            for (moved, at) in part.iter().zip(header_blocks..) {
                let entry = Entry::new(slot, block + at, at, moved.facts.crc);
                moves.insert(moved.entry, entry);
            }
            block += group.head.info.total_blocks();
        }
        let end = block * narrow(BLOCK_BYTES);
        self.write_seal(slot, header, &footer, end)?;
        Ok(moves)
    }

    fn relocate(&mut self, moves: &Moves) -> Result<(), JournalError> {
        for anchor in self.anchors.clone() {
            let name = checkpoint_name(anchor.position.seq);
            let mut checkpoint = Checkpoint::decode(&self.disk.load_now(&name)?)?;
            if move_entries(&mut checkpoint.index, moves) {
                self.disk.replace_now(&name, &checkpoint.to_bytes())?;
            }
        }
        move_entries(&mut self.state.index, moves);
        Ok(self.disk.remove_now(MOVES_NAME)?)
    }
}

/// `MAGIC 8 ‖ (from 8 ‖ to 8) for each block ‖ BLAKE3 of all before 32`, entries as in a checkpoint.
fn encode_moves(moves: &Moves) -> Vec<u8> {
    let mut bytes = MOVES_MAGIC.to_vec();
    for (from, to) in moves {
        bytes.extend_from_slice(&from.0.to_le_bytes());
        bytes.extend_from_slice(&to.0.to_le_bytes());
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn decode_moves(bytes: &[u8]) -> Result<Moves, JournalError> {
    let what = "moves";
    let body = undamaged(bytes, what)?;
    let mut reader = Reader::new(body, what);
    reader.magic(MOVES_MAGIC)?;
    (8..body.len())
        .step_by(16)
        .map(|_| Ok((Entry(reader.u64()?), Entry(reader.u64()?))))
        .collect()
}

fn move_entries(index: &mut Index, moves: &Moves) -> bool {
    let moved = |(lba, entry)| moves.get(&entry).map(|target| (lba, *target));
    let found: Vec<(u64, Entry)> = index.entries().filter_map(moved).collect();
    for (lba, entry) in &found {
        index.set(*lba, *entry);
    }
    !found.is_empty()
}
