//! Any past moment: resolving a point, and the index as it was there (docs/protocols/journal.md §7).

use std::sync::Arc;

use crate::bytes::{narrow, wide};
use crate::checkpoint::{Checkpoint, Mark, Position, SideState, Superblock, checkpoint_name};
use crate::cipher::VolumeUuid;
use crate::disk::{BLOCK_BYTES, Disk, FileId};
use crate::error::JournalError;
use crate::layout::{Chain, Group, GroupHead, decode_footer};
use crate::replay::State;
use crate::retention::live_blocks;
use crate::segment::{
    Seal, SegmentHeader, SegmentKind, footer_heads, headers_of, heads_from_groups,
};
use crate::store::{Slot, SlotState, Store, segment_name};
use crate::superblocks::SUPERBLOCKS;

/// A moment of a volume's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// After this seq.
    Seq(u64),
    /// After the last group not later than this (ns since 1970).
    Time(u64),
}

/// The files of a clone: those it shares with its parent, and those of its own.
#[derive(Debug)]
pub struct CloneParts {
    /// Names to hard-link from the parent's directory.
    pub shared: Vec<String>,
    /// Written last, in this order: the superblock makes it a volume.
    pub files: Vec<(String, Vec<u8>)>,
}

/// What `verify_chain` found whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainProof {
    pub first_seq: u64,
    pub last_seq: u64,
    pub chain: Chain,
    pub group_count: u64,
    /// False: go on after `last_seq`.
    pub is_complete: bool,
}

/// One group of the history, for people and for the verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryItem {
    pub first_seq: u64,
    pub last_seq: u64,
    pub time_ns: u64,
    pub epoch: u64,
    pub segment: u64,
    pub blocks: u32,
}

/// Groups by their headers, which stand back to back, and the block of their segment where each lies.
pub(crate) fn groups_in(headers: &[u8]) -> Result<Vec<(GroupHead, u32)>, JournalError> {
    let mut block = 1;
    Ok(decode_footer(headers)?
        .into_iter()
        .map(|head| {
            let at = block;
            block += head.info.total_blocks();
            (head, at)
        })
        .collect())
}

impl<D: Disk> Store<D> {
    pub(crate) fn sealed(&self, number: u32) -> Option<(&SegmentHeader, &Seal)> {
        match self.slots.get(number as usize)?.as_ref()? {
            Slot {
                state: SlotState::Sealed(header, seal),
                ..
            } => Some((header, seal)),
            _ => None,
        }
    }

    /// Groups of a segment and the block where each lies, without their payload.
    pub(crate) fn groups_of(&mut self, number: u32) -> Result<Vec<(GroupHead, u32)>, JournalError> {
        groups_in(&self.headers_in_slot(number)?)
    }

    /// The headers of a segment's groups, back to back.
    pub(crate) fn headers_in_slot(&mut self, number: u32) -> Result<Arc<Vec<u8>>, JournalError> {
        if let Some(open) = self.open.as_ref().filter(|open| open.slot == number) {
            return Ok(Arc::new(open.footer.bytes.clone()));
        }
        if let Some(bytes) = self.footers.get(&number) {
            return Ok(Arc::clone(bytes));
        }
        let Some(Slot {
            file,
            state: SlotState::Sealed(header, seal),
        }) = self
            .slots
            .get(number as usize)
            .and_then(Option::as_ref)
            .cloned()
        else {
            return Ok(Arc::default());
        };
        let length = (seal.footer_bytes as usize).next_multiple_of(BLOCK_BYTES);
        let mut stored = self.disk.read_now(file, seal.footer_offset(), length)?;
        if footer_heads(&header, &seal, &stored).is_ok() {
            stored.truncate(seal.footer_bytes as usize);
            return Ok(Arc::new(stored));
        }
        let bytes = self.disk.read_now(file, 0, seal.groups_end as usize)?;
        heads_from_groups(&header, &seal, &bytes)?;
        Ok(Arc::new(headers_of(&bytes)))
    }

    /// Slots of own log segments that hold records after `after`, in order.
    fn log_slots_after(&self, after: u64) -> Vec<u32> {
        let mut found: Vec<(u64, u32)> = Vec::new();
        for (slot, number) in self.slots.iter().zip(0u32..) {
            let Some(slot) = slot else { continue };
            match &slot.state {
                SlotState::Sealed(header, seal)
                    if header.kind == SegmentKind::Log
                        && header.volume == self.superblock.volume
                        && seal.last_seq > after =>
                {
                    found.push((header.segment, number));
                }
                SlotState::Open(header)
                    if header.kind == SegmentKind::Log
                        && header.volume == self.superblock.volume =>
                {
                    found.push((header.segment, number));
                }
                _ => {}
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, number)| number).collect()
    }

    /// The seq that `point` names.
    pub fn resolve(&mut self, point: Point) -> Result<u64, JournalError> {
        let (horizon, tail) = (self.horizon_seq(), self.applied_seq());
        let outside = |asked| JournalError::OutOfHistory {
            horizon,
            tail,
            asked,
        };
        match point {
            Point::Seq(seq) if seq < horizon || seq > tail => Err(outside(seq)),
            Point::Seq(seq) => Ok(seq),
            Point::Time(time_ns) => {
                let first = self
                    .anchors
                    .first()
                    .map_or(0, |anchor| anchor.position.time_ns);
                if time_ns < first {
                    return Err(outside(time_ns));
                }
                let before = |anchor: &&crate::store::Anchor| anchor.position.time_ns <= time_ns;
                let mut seq = self
                    .anchors
                    .iter()
                    .rev()
                    .find(before)
                    .map_or(0, |a| a.position.seq);
                for number in self.log_slots_after(seq) {
                    for (head, _) in self.groups_of(number)? {
                        let last = head.info.last_seq();
                        if head.info.time_ns <= time_ns && last <= tail {
                            seq = seq.max(last);
                        }
                    }
                }
                Ok(seq)
            }
        }
    }

    /// Oldest seq that can be viewed.
    pub fn horizon_seq(&self) -> u64 {
        self.anchors.first().map_or(0, |anchor| anchor.position.seq)
    }

    /// When the horizon was the present (ns since 1970); 0: before the first write.
    pub fn horizon_time_ns(&self) -> u64 {
        self.anchors
            .first()
            .map_or(0, |anchor| anchor.position.time_ns)
    }

    /// The volume as it was right after `seq`. Reads the nearest checkpoint and footers: blocks.
    pub fn view(&mut self, seq: u64) -> Result<State, JournalError> {
        let asked = seq;
        // While a rollback is applied the applied position is the rollback's own.
        if seq > self.applied_seq() || seq < self.horizon_seq() {
            return Err(JournalError::OutOfHistory {
                horizon: self.horizon_seq(),
                tail: self.applied_seq(),
                asked,
            });
        }
        let anchor = self
            .anchors
            .iter()
            .rev()
            .find(|anchor| anchor.position.seq <= seq);
        let anchor_seq = anchor.map_or(0, |anchor| anchor.position.seq);
        let checkpoint = Checkpoint::decode(&self.disk.load_now(&checkpoint_name(anchor_seq))?)?;
        let mut state = State {
            position: checkpoint.position,
            size_bytes: checkpoint.size_bytes,
            side: checkpoint.side,
            index: checkpoint.index,
        };
        for number in self.log_slots_after(anchor_seq) {
            for (head, block) in self.groups_of(number)? {
                if head.info.first_seq > seq {
                    return Ok(state);
                }
                while let Some(rollback) = state.apply(&head, number, block, seq) {
                    let past = self.view(rollback.seq)?;
                    state.index = past.index;
                    state.size_bytes = state.size_bytes.max(past.size_bytes);
                }
            }
        }
        Ok(state)
    }

    /// What a new volume needs to begin as this one was after `seq`. Every copy makes the same
    /// beginning, whatever its slots; a segment that is still open is shared as it is: what lies in it up
    /// to the applied position never changes. `joins`: other copies are older, and what they may have promised.
    pub fn clone_parts(
        &mut self,
        seq: u64,
        volume: VolumeUuid,
        created_ns: u64,
        joins: Option<u64>,
    ) -> Result<CloneParts, JournalError> {
        let state = self.view(seq)?;
        let chain = self.origin_chain(seq)?;
        let live = live_blocks(&state.index);
        let mut shared: Vec<String> = live.keys().map(|slot| segment_name(*slot)).collect();
        shared.sort_unstable();
        let position = Position {
            time_ns: created_ns,
            chain,
            ..Position::default()
        };
        let checkpoint = Checkpoint {
            volume,
            size_bytes: state.size_bytes,
            position,
            pinned: false,
            side: SideState::default(),
            index: state.index,
            life: 0,
        };
        let superblock = Superblock {
            generation: 0,
            volume,
            size_bytes: state.size_bytes,
            promised: joins.unwrap_or(0),
            created_ns,
            parent: self.superblock.volume,
            incomplete_seq: joins.map_or(0, |_| u64::MAX),
            previous: [0; 32],
            ..self.superblock.clone()
        };
        let mut files = vec![(checkpoint_name(0), checkpoint.to_bytes())];
        files.extend(SUPERBLOCKS.map(|name| (name.to_owned(), superblock.encode().to_vec())));
        Ok(CloneParts { shared, files })
    }

    /// Where the chain of a clone begins: an empty copy, or one of another moment, never passes for it.
    fn origin_chain(&mut self, seq: u64) -> Result<Chain, JournalError> {
        let mut found = self.chain_at(seq)?;
        if found.is_none() {
            for number in self.log_slots_after(seq) {
                let groups = self.groups_of(number)?;
                let around = groups
                    .iter()
                    .find(|(head, _)| head.info.first_seq <= seq && seq <= head.info.last_seq());
                if let Some((head, _)) = around {
                    found = Some(head.chain);
                    break;
                }
            }
        }
        let chain = found.ok_or(JournalError::OutOfHistory {
            horizon: self.horizon_seq(),
            tail: self.applied_seq(),
            asked: seq,
        })?;
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(b"nuage clone");
        digest.update(&self.superblock.volume);
        digest.update(&seq.to_le_bytes());
        digest.update(&chain);
        let mut begin = Chain::default();
        begin.copy_from_slice(digest.finish().as_ref());
        Ok(begin)
    }

    /// Check the chain from `after` on and the digest of each payload as it is stored, of about `bytes`:
    /// no key is needed, so this also holds for a volume whose key was destroyed. Reads the log: blocks.
    pub fn verify_chain(&mut self, after: u64, bytes: u64) -> Result<ChainProof, JournalError> {
        // Before the horizon the log has gaps: segments of which nothing is mapped are gone, others are not.
        let after = after.max(self.horizon_seq());
        let begin = self.chain_at(after)?;
        let mut proof = ChainProof {
            last_seq: after,
            chain: begin.unwrap_or_default(),
            ..ChainProof::default()
        };
        let mut is_first = true;
        let mut left = bytes;
        for number in self.log_slots_after(after) {
            let Some((header, file)) = self.header_of(number) else {
                continue;
            };
            for (head, block) in self.groups_of(number)? {
                if head.info.last_seq() <= after {
                    continue;
                }
                if left == 0 || head.info.last_seq() > self.durable_seq {
                    return Ok(proof);
                }
                let offset = crate::segment::block_bytes(block);
                let length = head.info.total_blocks() as usize * BLOCK_BYTES;
                let stored = self.disk.read_now(file, offset, length)?;
                let follows = head.info.first_seq == proof.last_seq + 1
                    && head.info.previous_chain == proof.chain;
                // What lies before the horizon is gone: the first kept group begins the proof.
                let begins = is_first && begin.is_none();
                let is_whole = Group::decode(&stored).is_ok_and(|g| g.head.chain == head.chain);
                if !is_whole || !(follows || begins) {
                    return Err(JournalError::Corrupt {
                        what: "chain",
                        segment: header.segment,
                        offset,
                    });
                }
                if is_first {
                    proof.first_seq = head.info.first_seq;
                    is_first = false;
                }
                proof.group_count += 1;
                proof.last_seq = head.info.last_seq();
                proof.chain = head.chain;
                left = left.saturating_sub(wide(length));
            }
        }
        proof.is_complete = true;
        Ok(proof)
    }

    fn header_of(&self, number: u32) -> Option<(SegmentHeader, FileId)> {
        let slot = self.slots.get(number as usize)?.as_ref()?;
        match &slot.state {
            SlotState::Open(header) | SlotState::Sealed(header, _) => {
                Some((header.clone(), self.file_of(number)?))
            }
            SlotState::Preparing | SlotState::Spare | SlotState::Rotten(_) => None,
        }
    }

    /// Groups from `after` on, at most `count`.
    pub fn history(&mut self, after: u64, count: usize) -> Result<Vec<HistoryItem>, JournalError> {
        let tail = self.applied_seq();
        let mut items = Vec::new();
        for number in self.log_slots_after(after) {
            for (head, _) in self.groups_of(number)? {
                let info = &head.info;
                if info.last_seq() > after && info.last_seq() <= tail && items.len() < count {
                    items.push(HistoryItem {
                        first_seq: info.first_seq,
                        last_seq: info.last_seq(),
                        time_ns: info.time_ns,
                        epoch: info.epoch,
                        segment: info.segment,
                        blocks: info.payload_blocks,
                    });
                }
            }
        }
        Ok(items)
    }

    /// When the first group after `seq` was made that is still kept, and the bytes of log from there on at
    /// most; `None`: there is none.
    pub fn made_after(&mut self, seq: u64) -> Result<Option<(u64, u64)>, JournalError> {
        let slots: Vec<u32> = self.log_slots_after(seq);
        let bytes = slots.len() as u64 * u64::from(self.superblock.segment_bytes);
        for number in slots {
            for (head, _) in self.groups_of(number)? {
                if head.info.last_seq() > seq {
                    return Ok(Some((head.info.time_ns, bytes)));
                }
            }
        }
        Ok(None)
    }

    /// Marks and snapshots within the history.
    pub fn marks(&self) -> Vec<Mark> {
        let horizon = self.horizon_seq();
        self.state
            .side
            .marks
            .iter()
            .filter(|mark| mark.seq >= horizon)
            .cloned()
            .collect()
    }

    /// Payload bytes of the log still kept for history.
    pub fn history_bytes(&self) -> u64 {
        self.log_bytes_after(self.horizon_seq())
    }

    pub(crate) fn log_bytes_after(&self, seq: u64) -> u64 {
        let log = self.log_slots_after(seq);
        u64::from(narrow(log.len())) * u64::from(self.superblock.segment_bytes)
    }
}
