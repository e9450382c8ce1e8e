//! One copy of a volume: takes groups, makes them durable in order, applies what is committed.
//!
//! Theory of operation. `append` places a group in the open segment and queues it. One commit is in
//! flight at a time: it carries all groups that had gathered, back to back, as one durable write.
//! A group is *durable* once its commit and all before have landed, *committed* once the head says that the
//! policy holds, *applied* (index, side state) once it is both: so the index never shows what a failover may
//! take back, and a checkpoint never holds it.
//!
//! Fault model: a disk operation that fails stops the store for good (`StoreEvent::Failed`); nothing is
//! retried. Time enters only with the groups.

mod checkpoints;
mod commit;
mod slots;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::bytes::{narrow, wide};
use crate::checkpoint::{Checkpoint, Position, Superblock, checkpoint_name};
use crate::cipher::Cipher;
use crate::compaction::Moves;
use crate::disk::{BLOCK_BYTES, Disk, DiskOperation, DiskResult, FileId};
use crate::error::JournalError;
use crate::layout::{Group, GroupHead, Kind};
use crate::mending::BadBlock;
use crate::reading::{ReadJob, ReadOutcome, TableCache};
use crate::rebuild::Staging;
use crate::receipts::Receipt;
use crate::recent::Recent;
use crate::replay::State;
use crate::scrubbing::Scrub;
use crate::segment::{Footer, Seal, SegmentHeader, SegmentKind, block_bytes};

/// Handle of a slot whose file is being prepared.
const NO_FILE: FileId = FileId::MAX;

/// How retention treats history that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub window_ns: u64,
    pub window_bytes: u64,
    /// Writers get "no space" rather than history lost.
    pub strict: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            window_ns: 86_400_000_000_000,
            window_bytes: 64 << 30,
            strict: false,
        }
    }
}

/// What a store tells its owner.
#[derive(Debug)]
pub enum StoreEvent {
    /// All groups up to `seq` are on stable storage here.
    Durable {
        seq: u64,
    },
    /// A read has ended.
    Read {
        tag: u64,
        outcome: ReadOutcome,
    },
    Receipt(Receipt),
    /// History before `seq` is gone.
    HorizonMoved {
        seq: u64,
        time_ns: u64,
    },
    /// A damaged block was written anew from another copy.
    Mended {
        lba: u64,
    },
    /// No copy has what the record `seq` wrote there.
    Lost {
        lba: u64,
        seq: u64,
    },
    /// The disk failed: this copy has stopped.
    Failed(JournalError),
}

/// A segment by its slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub file: FileId,
    pub state: SlotState,
}

#[derive(Debug, Clone)]
pub(crate) enum SlotState {
    /// Its file is being written with zeros; a segment may already be meant for it.
    Preparing,
    Spare,
    Open(SegmentHeader),
    Sealed(SegmentHeader, Seal),
    /// A checkpoint names blocks of it; neither its first block nor the groups tell any more what else it holds.
    Rotten(u64),
}

#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub slot: u32,
    pub header: SegmentHeader,
    /// Where the next group goes.
    pub end: u32,
    pub footer: Footer,
}

#[derive(Debug)]
struct Placed {
    group: Arc<Group>,
    slot: u32,
    block: u32,
}

/// A group that is on its way to the index.
#[derive(Debug)]
pub(crate) struct Unapplied {
    pub head: Arc<GroupHead>,
    pub slot: u32,
    pub block: u32,
}

#[derive(Debug)]
enum Step {
    Write(Placed),
    /// Footer, then the seal, of a segment that is full.
    Footer(u32),
    Seal(u32),
    Start(u32, SegmentHeader),
}

#[derive(Debug)]
pub(crate) enum Purpose {
    Commit {
        seq: Option<u64>,
        sealed: Option<u32>,
    },
    Spare {
        slot: u32,
    },
    Checkpoint(Box<Checkpoint>),
    ReadData {
        job: u64,
    },
    ReadTable {
        job: u64,
        slot: u32,
        block: u32,
        blocks: usize,
    },
}

/// One copy of a volume.
pub struct Store<D: Disk> {
    pub(crate) disk: D,
    pub(crate) superblock: Superblock,
    pub(crate) state: State,
    pub(crate) tail: Position,
    pub(crate) durable_seq: u64,
    pub(crate) committed_seq: u64,
    pub(crate) slots: Vec<Option<Slot>>,
    pub(crate) open: Option<OpenSegment>,
    steps: VecDeque<Step>,
    step_running: bool,
    pub(crate) unapplied: VecDeque<Unapplied>,
    /// Footers of segments that are being sealed, by slot.
    pub(crate) footers: HashMap<u32, Arc<Vec<u8>>>,
    pub(crate) no_space: bool,
    pub(crate) purposes: HashMap<u64, Purpose>,
    next_token: u64,
    results: Vec<DiskResult>,
    pub(crate) jobs: HashMap<u64, ReadJob>,
    pub(crate) tables: TableCache,
    pub(crate) recent: Recent,
    pub(crate) cipher: Option<Cipher>,
    pub(crate) failed: Option<JournalError>,
    pub(crate) events: Vec<StoreEvent>,
    /// Positions of the checkpoints on disk, oldest first; the first is the horizon.
    pub(crate) anchors: Vec<Anchor>,
    pub(crate) checkpoint_running: bool,
    /// Rollbacks in the history: the seq that was gone back to, and that of the record.
    pub(crate) rollbacks: Vec<(u64, u64)>,
    /// Slots that the log waits for and that the disk had no room for.
    starved: Vec<u32>,
    /// Payload blocks of a record, on average, in the segment before the open one.
    blocks_a_record: u32,
    pub(crate) log_bytes_since_checkpoint: u64,
    pub(crate) retention: Retention,
    pub(crate) dropped_early_ns: u64,
    /// Rises each time this copy is made anew from another.
    pub(crate) life: u64,
    pub(crate) staging: Option<Staging>,
    /// Damaged blocks that wait for a good copy.
    pub(crate) bad: Vec<BadBlock>,
    pub(crate) scrub: Option<Box<Scrub>>,
    pub(crate) found_count: u64,
    pub(crate) mended_count: u64,
    pub(crate) lost_segments: Vec<u64>,
    /// Blocks that moved and that checkpoints may still look for where they were: nothing is given back meanwhile.
    pub(crate) moves: Moves,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    pub position: Position,
    pub pinned: bool,
}

pub(crate) struct Opened {
    pub superblock: Superblock,
    pub state: State,
    pub slots: Vec<Option<Slot>>,
    pub anchors: Vec<Anchor>,
    pub replayed_bytes: u64,
    pub life: u64,
}

impl<D: Disk> Store<D> {
    pub(crate) fn from_opened(disk: D, opened: Opened, cipher: Option<Cipher>) -> Self {
        let tail = opened.state.position;
        Self {
            disk,
            superblock: opened.superblock,
            tail,
            durable_seq: tail.seq,
            committed_seq: tail.seq,
            state: opened.state,
            slots: opened.slots,
            open: None,
            steps: VecDeque::new(),
            step_running: false,
            unapplied: VecDeque::new(),
            footers: HashMap::new(),
            no_space: false,
            purposes: HashMap::new(),
            next_token: 1,
            results: Vec::new(),
            jobs: HashMap::new(),
            tables: TableCache::default(),
            recent: Recent::default(),
            cipher,
            failed: None,
            events: Vec::new(),
            anchors: opened.anchors,
            checkpoint_running: false,
            rollbacks: Vec::new(),
            starved: Vec::new(),
            blocks_a_record: 0,
            log_bytes_since_checkpoint: opened.replayed_bytes,
            retention: Retention::default(),
            dropped_early_ns: 0,
            life: opened.life,
            staging: None,
            bad: Vec::new(),
            scrub: None,
            found_count: 0,
            mended_count: 0,
            lost_segments: Vec::new(),
            moves: Moves::new(),
        }
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// State at the applied position.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Position of the last group taken, durable or not.
    pub fn tail(&self) -> Position {
        self.tail
    }

    /// False while groups that had been durable here are missing.
    pub fn is_whole(&self) -> bool {
        self.durable_seq >= self.superblock.incomplete_seq
    }

    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    pub fn applied_seq(&self) -> u64 {
        self.state.position.seq
    }

    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    pub fn failure(&self) -> Option<&JournalError> {
        self.failed.as_ref()
    }

    pub fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
    }

    pub fn cipher_mut(&mut self) -> Option<&mut Cipher> {
        self.cipher.as_mut()
    }

    /// Give the key to a store that was opened without it.
    pub fn set_cipher(&mut self, cipher: Cipher) {
        self.cipher = Some(cipher);
    }

    pub fn is_encrypted(&self) -> bool {
        self.superblock.encrypted
    }

    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    pub fn wake_fd(&self) -> Option<i32> {
        self.disk.wake_fd()
    }

    /// Nothing of this store is on its way to the disk.
    pub fn is_idle(&self) -> bool {
        self.purposes.is_empty() && self.steps.is_empty()
    }

    /// Bytes in segments: log and base, open ones whole.
    pub fn segment_bytes_used(&self) -> u64 {
        let used = self
            .slots
            .iter()
            .flatten()
            .filter(|slot| !matches!(slot.state, SlotState::Spare | SlotState::Preparing))
            .count();
        wide(used) * u64::from(self.superblock.segment_bytes)
    }

    /// Payload blocks of a group at most, so that several fit in a segment.
    pub fn payload_blocks_max(&self) -> u32 {
        let blocks = self.superblock.segment_bytes / narrow(BLOCK_BYTES);
        (blocks / 4).min(crate::layout::GROUP_PAYLOAD_BLOCKS_MAX)
    }

    /// The segment that a group of `blocks` blocks and `header_bytes` goes to, in `epoch`.
    pub fn segment_for(&self, epoch: u64, blocks: u32, header_bytes: usize) -> u64 {
        let next = self.tail.segment + 1;
        let Some(open) = self.open.as_ref().filter(|open| open.header.epoch == epoch) else {
            return self
                .open
                .as_ref()
                .map_or(next, |open| open.header.segment + 1);
        };
        let footer = block_bytes(open.footer.blocks_with(header_bytes));
        let end = u64::from(open.end) + block_bytes(blocks) + footer;
        if end <= u64::from(self.superblock.segment_bytes) {
            open.header.segment
        } else {
            open.header.segment + 1
        }
    }

    /// Refuse writers below `epoch` from now on; durable when it returns.
    pub fn promise(&mut self, epoch: u64) -> Result<(), JournalError> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        if epoch < self.superblock.promised {
            return Err(JournalError::StaleEpoch {
                offered: epoch,
                promised: self.superblock.promised,
            });
        }
        if epoch > self.superblock.promised {
            self.superblock.promised = epoch;
            self.write_superblock()?;
        }
        Ok(())
    }

    /// Take a group of the head that has been promised `epoch`. It follows the tail, and may be of an
    /// older epoch when it is copied. It is durable once `StoreEvent::Durable` says so.
    pub fn append(&mut self, epoch: u64, group: Arc<Group>) -> Result<(), JournalError> {
        if epoch != self.superblock.promised {
            let promised = self.superblock.promised;
            return Err(JournalError::StaleEpoch {
                offered: epoch,
                promised,
            });
        }
        let info = &group.head.info;
        self.check_follows(&group)?;
        let (segment, epoch) = (info.segment, info.epoch);
        if self
            .open
            .as_ref()
            .is_none_or(|open| open.header.segment != segment)
        {
            self.roll(segment, epoch, info.first_seq, info.time_ns)?;
        }
        let open = self.open.as_mut().ok_or(JournalError::Stopped)?;
        let block = open.end / narrow(BLOCK_BYTES);
        open.end += narrow(BLOCK_BYTES) * info.total_blocks();
        open.footer.add(group.header_bytes(), &group.head);
        let slot = open.slot;
        self.tail = Position {
            seq: info.last_seq(),
            time_ns: info.time_ns,
            epoch,
            segment,
            chain: group.head.chain,
        };
        if self.superblock.encrypted {
            self.tables.insert(slot, block, &group.head);
        }
        self.recent.insert((slot, block), &group);
        self.log_bytes_since_checkpoint += group.total_bytes();
        self.unapplied.push_back(Unapplied {
            head: Arc::clone(&group.head),
            slot,
            block,
        });
        self.steps
            .push_back(Step::Write(Placed { group, slot, block }));
        Ok(())
    }

    /// Wait for all that is on its way to the disk. `NoSpace`: something waits for room that the disk has not.
    pub fn drain(&mut self) -> Result<(), JournalError> {
        let mut events = Vec::new();
        while !self.is_idle() && self.failed.is_none() {
            let waits_for_room = !self.starved.is_empty() && self.purposes.is_empty();
            if waits_for_room {
                self.events.append(&mut events);
                return Err(JournalError::NoSpace);
            }
            self.poll(&mut events);
        }
        self.events.append(&mut events);
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn queue_seal(&mut self, open: OpenSegment) {
        let seal = open.footer.seal(&open.header, open.end);
        self.footers.insert(open.slot, Arc::new(open.footer.bytes));
        if let Some(found) = &mut self.slots[open.slot as usize] {
            found.state = SlotState::Sealed(open.header, seal);
        }
        self.steps.push_back(Step::Footer(open.slot));
        self.steps.push_back(Step::Seal(open.slot));
    }

    fn check_follows(&self, group: &Group) -> Result<(), JournalError> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let info = &group.head.info;
        let promised = self.superblock.promised;
        if info.epoch > promised || info.epoch < self.tail.epoch {
            return Err(JournalError::StaleEpoch {
                offered: info.epoch,
                promised,
            });
        }
        if info.volume != self.superblock.volume {
            return Err(JournalError::NotThisVolume(
                "group of another volume".into(),
            ));
        }
        if info.first_seq != self.tail.seq + 1 {
            return Err(JournalError::OutOfOrder {
                tail: self.tail.seq,
                found: info.first_seq,
            });
        }
        if info.previous_chain != self.tail.chain {
            return Err(JournalError::Diverged { seq: self.tail.seq });
        }
        let room = match &self.open {
            Some(open) if open.header.segment == info.segment => {
                let footer = open.footer.blocks_with(info.header_bytes as usize);
                u64::from(open.end) + block_bytes(footer)
            }
            _ if info.segment < self.tail.segment || self.was_used(info.segment) => {
                return Err(JournalError::OutOfOrder {
                    tail: self.tail.seq,
                    found: info.first_seq,
                });
            }
            _ => wide(BLOCK_BYTES) + block_bytes(info.header_blocks()),
        };
        if room + group.total_bytes() > u64::from(self.superblock.segment_bytes) {
            return Err(JournalError::Malformed {
                what: "group",
                reason: "larger than segment",
            });
        }
        Ok(())
    }

    fn roll(
        &mut self,
        segment: u64,
        epoch: u64,
        first_seq: u64,
        time_ns: u64,
    ) -> Result<(), JournalError> {
        let slot = self.take_slot()?;
        if let Some(open) = self.open.take() {
            self.blocks_a_record = open.footer.blocks_a_record();
            self.queue_seal(open);
        }
        let header = SegmentHeader {
            slot,
            volume: self.superblock.volume,
            segment,
            epoch,
            first_seq,
            size_bytes: self.superblock.segment_bytes,
            kind: SegmentKind::Log,
            created_ns: time_ns,
            previous_chain: self.tail.chain,
        };
        self.steps.push_back(Step::Start(slot, header.clone()));
        if let Some(found) = &mut self.slots[slot as usize] {
            found.state = SlotState::Open(header.clone());
        }
        let end = narrow(BLOCK_BYTES);
        self.open = Some(OpenSegment {
            slot,
            header,
            end,
            footer: Footer::default(),
        });
        self.keep_spares();
        Ok(())
    }

    pub(crate) fn submit(&mut self, purpose: Purpose, operation: DiskOperation) {
        let token = self.next_token;
        self.next_token += 1;
        self.purposes.insert(token, purpose);
        self.disk.submit(token, operation);
    }

    /// The policy holds for every group up to `seq`.
    pub fn set_committed(&mut self, seq: u64) {
        self.committed_seq = self.committed_seq.max(seq);
        self.apply_ready();
    }

    fn apply_ready(&mut self) {
        let limit = self.durable_seq.min(self.committed_seq);
        while let Some(placed) = self.unapplied.front() {
            if placed.head.info.last_seq() > limit || self.goes_back_too_far(&placed.head) {
                return;
            }
            let Some(placed) = self.unapplied.pop_front() else {
                return;
            };
            self.apply_group(&placed.head, placed.slot, placed.block);
        }
    }

    /// A group that this copy's history does not reach back far enough for: it was away while the volume went back,
    /// and let go by itself what was gone back to.
    fn goes_back_too_far(&self, head: &GroupHead) -> bool {
        let horizon = self.horizon_seq();
        head.descriptors
            .iter()
            .zip(head.info.first_seq..)
            .any(|(record, seq)| {
                let applies = record.kind == Kind::Rollback && seq > self.applied_seq();
                applies && record.argument < horizon
            })
    }

    /// The next group goes back to before the history begins here: this copy holds the log, and can follow it no
    /// further. It must be made anew.
    pub fn is_stranded(&self) -> bool {
        let limit = self.durable_seq.min(self.committed_seq);
        let due = |placed: &&Unapplied| placed.head.info.last_seq() <= limit;
        let front = self.unapplied.front().filter(due);
        front.is_some_and(|placed| self.goes_back_too_far(&placed.head))
    }

    pub(crate) fn apply_group(&mut self, head: &GroupHead, slot: u32, block: u32) {
        while let Some(rollback) = self.state.apply(head, slot, block, u64::MAX) {
            match self.view(rollback.seq) {
                Ok(view) => {
                    self.state.index = view.index;
                    self.state.size_bytes = self.state.size_bytes.max(view.size_bytes);
                }
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
            self.rollbacks.push((rollback.seq, self.state.position.seq));
            self.checkpoint(true);
        }
    }

    pub(crate) fn fail(&mut self, error: JournalError) -> JournalError {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.events.push(StoreEvent::Failed(error.clone()));
        }
        error
    }

    /// Drive the disk; move what happened to the end of `events`.
    pub fn poll(&mut self, events: &mut Vec<StoreEvent>) {
        loop {
            self.start_step();
            let mut results = std::mem::take(&mut self.results);
            self.disk.poll(&mut results);
            let arrived = results.len();
            for result in results.drain(..) {
                self.finish_operation(result);
            }
            self.results = results;
            if arrived == 0 {
                break;
            }
        }
        self.checkpoint_when_due();
        events.append(&mut self.events);
    }

    /// Keep what is lately written at hand: for a head, whose readers come back to it.
    pub fn keep_recent(&mut self, keep: bool) {
        self.recent = if keep {
            Recent::new(self.superblock.segment_bytes)
        } else {
            Recent::default()
        };
    }

    /// Let go of memory that quiet moments need not hold; the owner calls it now and then.
    pub fn forget_recent(&mut self, now_ns: u64) {
        self.recent.forget_old(now_ns);
    }

    pub(crate) fn file_of(&self, slot: u32) -> Option<FileId> {
        let file = self.slots.get(slot as usize)?.as_ref()?.file;
        (file != NO_FILE).then_some(file)
    }

    fn finish_operation(&mut self, result: DiskResult) {
        let Some(purpose) = self.purposes.remove(&result.token) else {
            return;
        };
        match purpose {
            Purpose::Commit { seq, sealed } => {
                self.step_running = false;
                match result.outcome {
                    Ok(_) => self.finish_commit(seq, sealed),
                    Err(error) => {
                        self.fail(error.into());
                    }
                }
            }
            Purpose::Spare { slot } => self.finish_spare(slot, result.outcome),
            Purpose::Checkpoint(checkpoint) => self.finish_checkpoint(&checkpoint, result.outcome),
            Purpose::ReadData { job } => self.finish_data(job, result.outcome),
            Purpose::ReadTable {
                job,
                slot,
                block,
                blocks,
            } => {
                self.finish_table(job, slot, block, blocks, result.outcome);
            }
        }
    }

    /// End in good order: wait for the disk, seal nothing, keep a checkpoint of what is applied.
    pub fn close(&mut self) -> Result<(), JournalError> {
        self.drain()?;
        if self
            .anchors
            .last()
            .is_none_or(|anchor| anchor.position.seq < self.applied_seq())
        {
            let checkpoint = self.checkpoint_value(false);
            let name = checkpoint_name(checkpoint.position.seq);
            self.disk.replace_now(&name, &checkpoint.to_bytes())?;
            self.add_anchor(&checkpoint);
        }
        Ok(())
    }
}

pub(crate) fn segment_name(slot: u32) -> String {
    format!("seg.{slot:06x}")
}

pub(crate) fn slot_of_name(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("seg.")?, 16)
        .ok()
        .filter(|slot| *slot > 0)
}
