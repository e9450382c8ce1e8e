//! The head of a volume: orders requests, makes groups of them, answers when the policy holds.
//!
//! Theory of operation. A write becomes a record of the group that is gathering. The group is closed when
//! nothing is on its way to the local disk, or when it is full; so it grows with the load. A record is *visible*
//! to readers once it is acknowledged (see [`AckMode`]); until the store has applied it, the overlay
//! answers for it. Requests that read before they write (sub-block writes, COMPARE AND WRITE) hold a
//! lock on their blocks, and writes that touch those wait behind them.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{Completion, Failure, Geometry, Operation, Outcome, Request, Tag};
use nuage_journal::{
    BLOCK_BYTES, Closing, Disk, GroupBuilder, Index, JournalError, Kind, Now, Point,
    RESERVATIONS_BYTES_MAX, ReadError, ReadOutcome, State, Store, StoreEvent, Wanted,
};

use crate::extents::extents;
use crate::overlay::{Found, Overlay};
use nuage_replica::{FrameError, Policy};

use crate::replicas::{CopyStatus, OwnCopy, Replicas, Wish};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Requests in flight; two full queues of an initiator.
pub const QUEUE_DEPTH_MAX: usize = 256;
/// Data accepted but not yet applied, at most; beyond it writers wait.
const BACKLOG_BYTES_MAX: usize = 16 << 20;
/// Bits of an epoch that count restarts of a head within one term of the quorum.
pub const EPOCH_RESTART_BITS: u32 = 16;

/// When a write is answered. The policy says on which copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckMode {
    /// In this head's memory: only where the head dies with the initiator (on its V-node).
    WriteBack,
    /// In the memory of a full ack set; FLUSH and FUA on stable storage of one.
    Memory,
    /// On stable storage of a full ack set.
    Durable,
}

/// Reads the clocks; the engine has none of its own.
pub trait Clock {
    fn now(&self) -> Now;
}

/// How a head serves its volume.
#[derive(Debug, Clone)]
pub struct HeadOptions {
    pub name: Arc<str>,
    pub mode: AckMode,
    /// Epoch given by the quorum; restarts within it are counted by the head.
    pub term: u64,
    /// Who leads, for the EPOCH record.
    pub head: String,
}

/// The copies of a replicated volume, as the quorum's record of it says.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    pub policy: Policy,
    /// Copies in all; `me` is the number of the head's own.
    pub count: usize,
    pub me: usize,
    /// No former head can still be reading (`ReplicaStore::hand_over` tells).
    pub released: bool,
    /// The own copy has lost nothing that it held in memory.
    pub steady: bool,
}

/// Whose read it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Front,
    View(u64),
}

enum ReadPurpose {
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
struct Damaged {
    damaged_lba: u64,
    lba: u64,
    blocks: u64,
    purpose: ReadPurpose,
    answers_left: usize,
}

/// A request that reads before it writes.
struct Merge {
    tag: Tag,
    lba: u64,
    /// Byte offset of the change in the blocks read.
    skip: usize,
    length: u64,
    change: Change,
    fua: bool,
    /// The other edge of a range, after this one.
    then: Option<Box<Merge>>,
}

enum Change {
    Data(Vec<u8>),
    Compare { expected: Vec<u8>, data: Vec<u8> },
    Zero(Kind),
}

/// A record that is not yet visible.
struct Pending {
    seq: u64,
    lba: u64,
    blocks: u64,
    data: Option<(Rc<Vec<u8>>, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Waiter {
    seq: u64,
    tag: Tag,
}

struct Lock {
    tag: Tag,
    lba: u64,
    blocks: u64,
}

/// Where history is read from.
#[derive(Debug)]
pub(crate) struct View {
    pub index: Index,
    pub completions: Vec<Completion>,
}

/// What a head tells its daemon.
#[derive(Debug)]
pub enum HeadEvent {
    Store(StoreEvent),
    /// An administrative request has ended; with the seq of its record.
    Administered {
        tag: u64,
        outcome: Result<u64, JournalError>,
    },
    /// A damaged block was replaced by another copy's.
    Repaired {
        lba: u64,
    },
    /// A newer epoch has taken over: this head has stopped for good.
    Fenced {
        epoch: u64,
    },
}

/// A record asked for by the administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Administration {
    Mark { id: u64, name: String },
    Snapshot { id: u64, name: String },
    Rollback(Point),
    Resize { size_bytes: u64 },
}

/// The one writer of a volume.
pub struct VolumeHead<D: Disk> {
    pub(crate) store: Store<D>,
    clock: Rc<dyn Clock>,
    options: HeadOptions,
    uuid: [u8; 16],
    size_bytes: u64,
    epoch: u64,
    builder: GroupBuilder,
    last_time_ns: u64,
    overlay: Overlay,
    pending: VecDeque<Pending>,
    /// Answered when visible / when durable by policy; both in seq order.
    visible_waiters: VecDeque<Waiter>,
    durable_waiters: VecDeque<Waiter>,
    blocked: VecDeque<Request>,
    locks: Vec<Lock>,
    reads: HashMap<u64, ReadPurpose>,
    next_read: u64,
    damaged: Vec<Damaged>,
    pub(crate) views: HashMap<u64, View>,
    next_view: u64,
    completions: Vec<Completion>,
    events: Vec<HeadEvent>,
    store_events: Vec<StoreEvent>,
    reservations: Vec<u8>,
    administrations: VecDeque<(u64, Administration)>,
    administered: VecDeque<(u64, u64)>,
    pub(crate) replicas: Option<Replicas>,
    stopped: Option<Failure>,
}

impl<D: Disk> VolumeHead<D> {
    /// Take the lead of a volume that has no other copy.
    pub fn open(
        store: Store<D>,
        options: HeadOptions,
        clock: Rc<dyn Clock>,
    ) -> Result<Self, JournalError> {
        let epoch = next_epoch(store.superblock().promised, options.term)?;
        let mut head = Self::assemble(store, options, clock, epoch, None);
        head.store.promise(epoch)?;
        head.start_epoch()?;
        Ok(head)
    }

    /// Take the lead of a volume that has copies elsewhere. It serves once a fence set has promised
    /// and its log is recovered; requests wait until then.
    pub fn open_replicated(
        mut store: Store<D>,
        options: HeadOptions,
        copies: CopyOptions,
        clock: Rc<dyn Clock>,
    ) -> Result<Self, JournalError> {
        let epoch = next_epoch(store.superblock().promised, options.term)?;
        store.promise(epoch)?;
        let volume = store.superblock().volume;
        let own = OwnCopy {
            released: copies.released,
            steady: copies.steady,
            from_memory: options.mode != AckMode::Durable,
        };
        let mut replicas = Replicas::new(copies.policy, copies.count, copies.me, volume, own);
        replicas.set_epoch(epoch, store.applied_seq());
        Ok(Self::assemble(store, options, clock, epoch, Some(replicas)))
    }

    /// A connection to a copy is there. The first frame is already waiting in `peer_output`.
    pub fn peer_connected(&mut self, copy: usize) {
        if let Some(replicas) = &mut self.replicas {
            replicas.connected(copy);
        }
    }

    pub fn peer_disconnected(&mut self, copy: usize) {
        if let Some(replicas) = &mut self.replicas {
            replicas.disconnected(copy);
        }
    }

    /// Bytes from a copy; `poll` works through them.
    pub fn peer_receive(&mut self, copy: usize, bytes: &[u8]) -> Result<(), FrameError> {
        self.replicas
            .as_mut()
            .map_or(Ok(()), |replicas| replicas.receive(copy, bytes))
    }

    /// Bytes for a copy.
    pub fn peer_output(&mut self, copy: usize) -> Vec<u8> {
        self.replicas
            .as_mut()
            .map(|replicas| replicas.output(copy))
            .unwrap_or_default()
    }

    /// How the copies stand; empty for a volume with one.
    pub fn copies(&self) -> Vec<CopyStatus> {
        self.replicas
            .as_ref()
            .map(Replicas::status)
            .unwrap_or_default()
    }

    /// Reads and writes are answered now.
    pub fn is_serving(&self) -> bool {
        let applied_seq = self.store.applied_seq();
        let may_serve = |replicas: &Replicas| replicas.may_serve(applied_seq);
        self.stopped.is_none() && self.replicas.as_ref().is_none_or(may_serve)
    }

    /// Stop answering and tell the copies, so that the next head need not wait for the lease.
    pub fn release(&mut self) {
        self.stop(Failure::Fenced);
        if let Some(replicas) = &mut self.replicas {
            replicas.release();
        }
    }

    fn pump_replicas(&mut self) {
        let now = self.clock.now();
        let Some(replicas) = &mut self.replicas else {
            return;
        };
        let Ok(wishes) = replicas.pump(&mut self.store, now) else {
            self.stop(Failure::Medium);
            return;
        };
        for wish in wishes {
            match wish {
                Wish::Stop { promised } => {
                    self.stop(Failure::Fenced);
                    self.events.push(HeadEvent::Fenced { epoch: promised });
                }
                Wish::RaiseEpoch { above } => self.raise_epoch(above),
                Wish::StartEpoch => self.begin_recovered(),
                Wish::Repaired { lba, data } => self.repaired(lba, &data),
            }
        }
    }

    fn raise_epoch(&mut self, above: u64) {
        let raised = next_epoch(above.max(self.epoch), self.options.term)
            .and_then(|epoch| self.store.promise(epoch).map(|()| epoch));
        let Ok(epoch) = raised else {
            self.stop(Failure::Fenced);
            self.events.push(HeadEvent::Fenced { epoch: above });
            return;
        };
        self.epoch = epoch;
        let known = self.store.applied_seq();
        if let Some(replicas) = &mut self.replicas {
            replicas.set_epoch(epoch, known);
        }
    }

    fn begin_recovered(&mut self) {
        let next = self.store.tail().seq + 1;
        self.builder = GroupBuilder::new(self.uuid, self.epoch, next, self.store.is_encrypted());
        self.last_time_ns = self.store.tail().time_ns;
        if self.start_epoch().is_err() {
            self.stop(Failure::Medium);
        }
    }

    pub(crate) fn assemble(
        store: Store<D>,
        options: HeadOptions,
        clock: Rc<dyn Clock>,
        epoch: u64,
        replicas: Option<Replicas>,
    ) -> Self {
        let superblock = store.superblock();
        let uuid = superblock.volume;
        let next_seq = store.tail().seq + 1;
        Self {
            builder: GroupBuilder::new(uuid, epoch, next_seq, superblock.encrypted),
            size_bytes: store.state().size_bytes,
            last_time_ns: store.tail().time_ns,
            reservations: store.state().side.reservations.clone(),
            store,
            clock,
            options,
            uuid,
            epoch,
            overlay: Overlay::default(),
            pending: VecDeque::new(),
            visible_waiters: VecDeque::new(),
            durable_waiters: VecDeque::new(),
            blocked: VecDeque::new(),
            locks: Vec::new(),
            reads: HashMap::new(),
            next_read: 1,
            damaged: Vec::new(),
            views: HashMap::new(),
            next_view: 1,
            completions: Vec::new(),
            events: Vec::new(),
            store_events: Vec::new(),
            administrations: VecDeque::new(),
            administered: VecDeque::new(),
            replicas,
            stopped: None,
        }
    }

    pub(crate) fn start_epoch(&mut self) -> Result<(), JournalError> {
        let former = self.store.tail().epoch;
        let name = self.options.head.clone();
        self.builder
            .push_plain(Kind::Epoch, 0, 0, former, clip(&name).as_bytes());
        self.close_group()
    }

    /// The time by the head's clock.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn store(&self) -> &Store<D> {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// Seq of the last record given out.
    pub fn last_seq(&self) -> u64 {
        self.builder.next_seq() - 1
    }

    pub fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_block_bytes: self.store.superblock().logical_block_bytes,
            uuid: self.uuid,
            name: Arc::clone(&self.options.name),
            read_only: false,
            write_cache: self.options.mode != AckMode::Durable,
        }
    }

    /// Ask for an administrative record; `HeadEvent::Administered` answers.
    pub fn administer(&mut self, tag: u64, administration: Administration) {
        self.administrations.push_back((tag, administration));
    }

    /// Take what happened since the last call.
    pub fn take_events(&mut self) -> Vec<HeadEvent> {
        std::mem::take(&mut self.events)
    }

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

    fn fail(&mut self, tag: Tag, failure: Failure) {
        self.complete(tag, Outcome::Failed(failure));
    }

    fn complete(&mut self, tag: Tag, outcome: Outcome) {
        self.completions.push(Completion { tag, outcome });
    }

    /// True for a change that must wait for others, or for room.
    fn must_wait(&self, operation: &Operation) -> bool {
        let Some((offset, length)) = changed_range(operation) else {
            return false;
        };
        if !self.blocked.is_empty() || !self.administrations.is_empty() {
            return true;
        }
        self.is_held_up(operation, offset, length)
    }

    fn is_held_up(&self, operation: &Operation, offset: u64, length: u64) -> bool {
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

    fn pending_bytes(&self) -> usize {
        // An upper bound that is cheap: requests in flight times the largest part of one.
        self.pending
            .iter()
            .map(|p| p.data.as_ref().map_or(0, |_| p.blocks as usize))
            .sum::<usize>()
            * BLOCK_BYTES
    }

    fn start(&mut self, request: Request) {
        let tag = request.tag;
        let mut zeroes = |kind, offset: u64, length: u64, fua| {
            if length == 0 {
                self.complete(tag, Outcome::Done);
                return;
            }
            let change = Change::Zero(kind);
            let merge = Merge {
                tag,
                lba: offset / BLOCK,
                skip: skip(offset),
                length,
                change,
                fua,
                then: None,
            };
            self.start_merge(merge);
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
                let merge = Merge {
                    tag,
                    lba: offset / BLOCK,
                    skip: skip(offset),
                    length,
                    change,
                    fua,
                    then: None,
                };
                self.start_merge(merge);
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

    fn start_write(&mut self, tag: Tag, offset: u64, data: Vec<u8>, fua: bool) {
        if data.is_empty() {
            self.complete(tag, Outcome::Done);
        } else if offset.is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK_BYTES) {
            self.append_write(tag, Kind::Write, offset / BLOCK, data, fua);
        } else {
            let length = data.len() as u64;
            let change = Change::Data(data);
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
    }

    /// Read what a change needs to see, under a lock.
    fn start_merge(&mut self, merge: Merge) {
        let blocks = (merge.skip as u64 + merge.length).div_ceil(BLOCK);
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
    fn start_zero_with_edges(&mut self, merge: Merge) {
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

    fn read(&mut self, reader: Reader, tag: Tag, offset: u64, length: usize) {
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

    fn read_blocks(&mut self, lba: u64, blocks: u64, purpose: ReadPurpose) {
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
    fn repaired(&mut self, lba: u64, data: &[u8]) {
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
    fn seek_repair(&mut self, purpose: ReadPurpose, lba: u64) -> Option<ReadPurpose> {
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

    fn finish_read(&mut self, purpose: ReadPurpose, outcome: ReadOutcome) {
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

    fn finish_merge(&mut self, mut merge: Merge, blocks: Vec<u8>, failure: Option<Failure>) {
        let then = merge.then.take();
        self.finish_edge(merge, blocks, failure);
        match (then, failure) {
            (Some(next), None) => self.read_blocks(next.lba, 1, ReadPurpose::Merge(*next)),
            (Some(next), Some(_)) => self.finish_merge(*next, Vec::new(), failure),
            (None, _) => {}
        }
    }

    fn finish_edge(&mut self, merge: Merge, mut blocks: Vec<u8>, failure: Option<Failure>) {
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
        self.append_write(merge.tag, kind, merge.lba, blocks, merge.fua);
    }

    /// Close the gathering group when a record of `blocks` and `tail_bytes` does not fit in it.
    fn make_room(&mut self, blocks: u32, tail_bytes: usize) -> Result<(), JournalError> {
        if self
            .builder
            .fits(blocks, tail_bytes, self.store.payload_blocks_max())
        {
            return Ok(());
        }
        self.close_group()
    }

    fn append_write(&mut self, tag: Tag, kind: Kind, lba: u64, data: Vec<u8>, fua: bool) {
        if !self.store.has_space() || self.store.is_history_full() {
            self.fail(tag, Failure::NoSpace);
            return;
        }
        let data = Rc::new(data);
        let part_blocks = self.store.payload_blocks_max() as usize;
        let mut last = 0;
        for (at, part) in data.chunks(part_blocks * BLOCK_BYTES).enumerate() {
            let blocks = part.len() / BLOCK_BYTES;
            if self.make_room(blocks as u32, 0).is_err() {
                self.fail(tag, Failure::Medium);
                return;
            }
            let offset = at * part_blocks * BLOCK_BYTES;
            let part_lba = lba + (at * part_blocks) as u64;
            let flags = u8::from(fua) * nuage_journal::FLAG_FUA;
            last = self
                .builder
                .push_write(kind, flags, part_lba, part, self.store.cipher_mut());
            self.appeared(
                last,
                part_lba,
                blocks as u64,
                Some((Rc::clone(&data), offset)),
            );
        }
        self.wait(tag, last, fua);
    }

    fn append_zero(&mut self, tag: Tag, kind: Kind, lba: u64, blocks: u64, fua: bool) {
        if !self.store.has_space() || self.store.is_history_full() {
            self.fail(tag, Failure::NoSpace);
            return;
        }
        if self.make_room(0, 0).is_err() {
            self.fail(tag, Failure::Medium);
            return;
        }
        let flags = u8::from(fua) * nuage_journal::FLAG_FUA;
        let seq = self.builder.push_plain(kind, flags, lba, blocks, &[]);
        self.appeared(seq, lba, blocks, None);
        self.wait(tag, seq, fua);
    }

    fn appeared(&mut self, seq: u64, lba: u64, blocks: u64, data: Option<(Rc<Vec<u8>>, usize)>) {
        let pending = Pending {
            seq,
            lba,
            blocks,
            data,
        };
        if self.options.mode == AckMode::WriteBack {
            self.show(&pending);
        } else {
            self.pending.push_back(pending);
        }
    }

    fn show(&mut self, record: &Pending) {
        match &record.data {
            Some((data, offset)) => {
                let length = record.blocks as usize * BLOCK_BYTES;
                self.overlay
                    .write(record.seq, record.lba, data, *offset, length);
            }
            None => self.overlay.zero(record.seq, record.lba, record.blocks),
        }
    }

    fn wait(&mut self, tag: Tag, seq: u64, fua: bool) {
        if tag == NO_TAG {
            return;
        }
        if fua || self.options.mode == AckMode::Durable {
            self.wait_durable(tag, seq);
        } else if self.options.mode == AckMode::WriteBack {
            self.complete(tag, Outcome::Done);
        } else {
            self.visible_waiters.push_back(Waiter { seq, tag });
        }
    }

    fn wait_durable(&mut self, tag: Tag, seq: u64) {
        if seq <= self.durable_by_policy() {
            self.complete(tag, Outcome::Done);
        } else {
            self.durable_waiters.push_back(Waiter { seq, tag });
        }
    }

    fn durable_by_policy(&self) -> u64 {
        self.replicas
            .as_ref()
            .map_or(self.store.durable_seq(), Replicas::durable_seq)
    }

    /// Make a group of what has gathered and hand it to the store and the replicas.
    fn close_group(&mut self) -> Result<(), JournalError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let next = self.builder.next_seq();
        let fresh = GroupBuilder::new(self.uuid, self.epoch, next, self.store.is_encrypted());
        let builder = std::mem::replace(&mut self.builder, fresh);
        self.last_time_ns = self.clock.now().unix_ns.max(self.last_time_ns + 1);
        let blocks = builder.total_blocks();
        let closing = Closing {
            segment: self
                .store
                .segment_for(self.epoch, blocks, builder.header_bytes()),
            time_ns: self.last_time_ns,
            stable_seq: self.durable_by_policy(),
            previous_chain: self.store.tail().chain,
        };
        let group = Arc::new(builder.finish(&closing)?);
        let appended = self.store.append(self.epoch, Arc::clone(&group));
        if let Err(error) = appended {
            self.stop(Failure::Medium);
            return Err(error);
        }
        if let Some(replicas) = &mut self.replicas {
            replicas.append(group);
        }
        Ok(())
    }

    /// Answer everything with `failure` from now on.
    pub(crate) fn stop(&mut self, failure: Failure) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some(failure);
        let mut tags: Vec<Tag> = self.blocked.drain(..).map(|request| request.tag).collect();
        tags.extend(self.visible_waiters.drain(..).map(|waiter| waiter.tag));
        tags.extend(self.durable_waiters.drain(..).map(|waiter| waiter.tag));
        for tag in tags {
            self.fail(tag, failure);
        }
    }

    /// Drive store and replicas; move completions to the end of `completions`.
    pub fn poll(&mut self, completions: &mut Vec<Completion>) {
        loop {
            self.poll_store();
            self.pump_replicas();
            self.advance();
            self.start_blocked();
            self.start_administration();
            if !self.wants_group() || self.stopped.is_some() || self.close_group().is_err() {
                break;
            }
        }
        completions.append(&mut self.completions);
    }

    /// For a view: take what reads have ended; completions of the front stay for its own poll.
    pub(crate) fn poll_reads(&mut self) {
        self.poll_store();
    }

    /// A group is closed when nothing is on its way to the local disk.
    fn wants_group(&self) -> bool {
        !self.builder.is_empty() && self.store.durable_seq() == self.store.tail().seq
    }

    fn poll_store(&mut self) {
        let mut events = std::mem::take(&mut self.store_events);
        self.store.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StoreEvent::Durable { seq } => {
                    if let Some(replicas) = &mut self.replicas {
                        replicas.local_durable(seq);
                    } else {
                        self.store.set_committed(seq);
                    }
                }
                StoreEvent::Read { tag, outcome } => {
                    let mut purpose = self.reads.remove(&tag);
                    if let Some(ReadError::Damaged { lba }) = outcome.error {
                        purpose = purpose.and_then(|purpose| self.seek_repair(purpose, lba));
                    }
                    if let Some(purpose) = purpose {
                        self.finish_read(purpose, outcome);
                    }
                }
                StoreEvent::Failed(error) => {
                    self.stop(Failure::Medium);
                    self.events
                        .push(HeadEvent::Store(StoreEvent::Failed(error)));
                }
                other => self.events.push(HeadEvent::Store(other)),
            }
        }
        self.store_events = events;
    }

    /// Show, apply and answer what the policy now covers.
    fn advance(&mut self) {
        let durable = self.durable_by_policy();
        let visible = match (&self.replicas, self.options.mode) {
            (Some(replicas), AckMode::Memory) => replicas.memory_seq().max(durable),
            (None, AckMode::Memory) => self.store.tail().seq,
            _ => durable,
        };
        self.store.set_committed(durable);
        while self
            .pending
            .front()
            .is_some_and(|pending| pending.seq <= visible)
        {
            if let Some(record) = self.pending.pop_front() {
                self.show(&record);
            }
        }
        self.overlay.applied(self.store.applied_seq());
        self.size_bytes = self.size_bytes.max(self.store.state().size_bytes);
        while self
            .visible_waiters
            .front()
            .is_some_and(|waiter| waiter.seq <= visible)
        {
            if let Some(waiter) = self.visible_waiters.pop_front() {
                self.complete(waiter.tag, Outcome::Done);
            }
        }
        while self
            .durable_waiters
            .front()
            .is_some_and(|waiter| waiter.seq <= durable)
        {
            if let Some(waiter) = self.durable_waiters.pop_front() {
                self.complete(waiter.tag, Outcome::Done);
            }
        }
        while self
            .administered
            .front()
            .is_some_and(|(_, seq)| *seq <= self.store.applied_seq())
        {
            if let Some((tag, seq)) = self.administered.pop_front() {
                self.size_bytes = self.size_bytes.max(self.store.state().size_bytes);
                self.events.push(HeadEvent::Administered {
                    tag,
                    outcome: Ok(seq),
                });
            }
        }
    }

    fn start_blocked(&mut self) {
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

    /// Administrative records stand alone: all before is applied first, nothing is begun meanwhile.
    fn start_administration(&mut self) {
        let Some((tag, administration)) = self.administrations.front().cloned() else {
            return;
        };
        let quiet = self.is_serving()
            && self.locks.is_empty()
            && self.administered.is_empty()
            && self.builder.is_empty()
            && self.store.applied_seq() == self.store.tail().seq;
        if !quiet && self.stopped.is_none() {
            return;
        }
        self.administrations.pop_front();
        let outcome = match self.stopped {
            Some(_) => Err(JournalError::Stopped),
            None => self.append_administration(administration),
        };
        match outcome {
            Ok(seq) => self.administered.push_back((tag, seq)),
            Err(error) => {
                self.events.push(HeadEvent::Administered {
                    tag,
                    outcome: Err(error),
                });
            }
        }
    }

    fn append_administration(&mut self, wish: Administration) -> Result<u64, JournalError> {
        let seq = match wish {
            Administration::Mark { id, name } => {
                self.builder
                    .push_plain(Kind::Mark, 0, 0, id, clip(&name).as_bytes())
            }
            Administration::Snapshot { id, name } => {
                self.builder
                    .push_plain(Kind::Snapshot, 0, 0, id, clip(&name).as_bytes())
            }
            Administration::Rollback(point) => {
                let seq = self.store.resolve(point)?;
                self.builder.push_plain(Kind::Rollback, 0, 0, seq, &[])
            }
            Administration::Resize { size_bytes } => {
                if size_bytes < self.size_bytes || size_bytes % BLOCK != 0 {
                    return Err(JournalError::Malformed {
                        what: "size",
                        reason: "volumes grow",
                    });
                }
                self.builder.push_plain(Kind::Resize, 0, 0, size_bytes, &[])
            }
        };
        self.close_group()?;
        Ok(seq)
    }

    /// Work for quiet moments: retention, and another look for space. The daemon calls it each second.
    pub fn tidy(&mut self) {
        if !self.views.is_empty() || self.stopped.is_some() {
            return; // an open view may use what would leave
        }
        self.store.retry_space();
        let now_ns = self.clock.now().unix_ns;
        if self.store.enforce_retention(now_ns).is_err() {
            self.stop(Failure::Medium);
        }
    }

    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.store.is_idle()
            && self.builder.is_empty()
            && self.blocked.is_empty()
            && self.reads.is_empty()
            && self.store.durable_seq() == self.store.tail().seq
    }

    /// Give the copy back as it is: to serve another head after this one was fenced.
    pub fn into_store(self) -> Store<D> {
        self.store
    }

    /// End in good order: everything durable here, a checkpoint, and the store given back.
    pub fn close(mut self) -> Result<Store<D>, JournalError> {
        self.close_group()?;
        self.store.close()?;
        Ok(self.store)
    }
}

/// A part of a request that gets no answer of its own.
const NO_TAG: Tag = Tag::MAX;

/// The next epoch of a head within `term`.
pub fn next_epoch(promised: u64, term: u64) -> Result<u64, JournalError> {
    let epoch = (promised + 1).max(term << EPOCH_RESTART_BITS);
    if epoch >> EPOCH_RESTART_BITS > term {
        return Err(JournalError::StaleEpoch {
            offered: term << EPOCH_RESTART_BITS,
            promised,
        });
    }
    Ok(epoch)
}

fn clip(name: &str) -> &str {
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

fn skip(offset: u64) -> usize {
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
