//! The head of a volume: orders requests, makes groups of them, answers when the policy holds.
//!
//! Theory of operation. A write becomes a record of the group that is gathering. The group is closed when
//! nothing is on its way to the local disk, or when it is full; so it grows with the load. A record is *visible*
//! to readers once it is acknowledged (see [`AckMode`]); until the store has applied it, the overlay
//! answers for it. Requests that read before they write (sub-block writes, COMPARE AND WRITE) hold a
//! lock on their blocks, and writes that touch those wait behind them.

mod administration;
mod copies;
mod merge;
mod reading;
mod request;
mod writing;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{Completion, Failure, Geometry, Outcome, Request, Tag};
use nuage_journal::{BLOCK_BYTES, Disk, GroupBuilder, JournalError, Kind, Now, Store, StoreEvent};

pub use administration::Administration;
pub use copies::CopyOptions;

use administration::clip;
use merge::Lock;
use reading::{Damaged, ReadPurpose, View};
use writing::{Pending, Waiter};

use crate::overlay::Overlay;
use crate::replicas::Replicas;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Requests in flight; two full queues of an initiator.
pub const QUEUE_DEPTH_MAX: usize = 256;
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
    /// The owner accepts that what no copy has is lost.
    pub accepts_loss: bool,
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
    /// A newer epoch has taken over: this head has stopped for good.
    Fenced {
        epoch: u64,
    },
    /// Other copies have more than this log, and what it lacks has left their history, which begins at
    /// `horizon`: this head has stopped, and one of theirs must lead.
    Behind {
        horizon: u64,
    },
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
    /// When `poll` first saw what is gathering, by the monotonic clock.
    gathering_since_ns: Option<u64>,
    /// Where a copy is behind: when writes are answered next.
    answer_from_ns: u64,
    stopped: Option<Failure>,
}

impl<D: Disk> VolumeHead<D> {
    /// Take the lead of a volume that has no other copy.
    ///
    /// A copy that is not whole is refused (`Lost`): there is nobody who could fill it, and an empty disk
    /// must never pass for the volume.
    pub fn open(
        mut store: Store<D>,
        options: HeadOptions,
        clock: Rc<dyn Clock>,
    ) -> Result<Self, JournalError> {
        if !store.is_whole() {
            if !options.accepts_loss {
                return Err(JournalError::Lost);
            }
            store.vouch()?;
        }
        let epoch = next_epoch(store.superblock().promised, options.term)?;
        let mut head = Self::assemble(store, options, clock, epoch, None);
        head.store.promise(epoch)?;
        head.start_epoch()?;
        Ok(head)
    }

    pub(crate) fn assemble(
        mut store: Store<D>,
        options: HeadOptions,
        clock: Rc<dyn Clock>,
        epoch: u64,
        replicas: Option<Replicas>,
    ) -> Self {
        store.keep_recent(true);
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
            gathering_since_ns: None,
            answer_from_ns: 0,
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

    /// Take what happened since the last call.
    pub fn take_events(&mut self) -> Vec<HeadEvent> {
        std::mem::take(&mut self.events)
    }

    fn fail(&mut self, tag: Tag, failure: Failure) {
        self.complete(tag, Outcome::Failed(failure));
    }

    fn complete(&mut self, tag: Tag, outcome: Outcome) {
        self.completions.push(Completion { tag, outcome });
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

    /// Stop since our own disk failed. Where there are other copies a head opens there: initiators are told that
    /// another path will serve, for an error of the medium goes to whoever wrote.
    pub(super) fn stop_for_disk(&mut self) {
        self.stop(if self.replicas.is_some() {
            Failure::Fenced
        } else {
            Failure::Medium
        });
    }

    /// Drive store and replicas; move completions to the end of `completions`.
    pub fn poll(&mut self, completions: &mut Vec<Completion>) {
        loop {
            self.poll_store();
            self.pump_replicas();
            self.resume_damaged();
            self.advance();
            self.start_blocked();
            self.start_administration();
            if !self.wants_group() || self.stopped.is_some() || self.close_group().is_err() {
                break;
            }
        }
        let awaited = self.awaits_durable();
        if let Some(replicas) = &mut self.replicas {
            replicas.ask_for_durable(awaited);
        }
        if !self.builder.is_empty() && self.gathering_since_ns.is_none() {
            self.gathering_since_ns = Some(self.clock.now().monotonic_ns);
        }
        completions.append(&mut self.completions);
    }

    /// For a view: take what reads have ended; completions of the front stay for its own poll.
    pub(crate) fn poll_reads(&mut self) {
        self.poll_store();
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
                    if let Some(error) = &outcome.error {
                        let error = error.clone();
                        purpose = purpose.and_then(|purpose| self.seek_repair(purpose, error));
                    }
                    if let Some(purpose) = purpose {
                        self.finish_read(purpose, outcome);
                    }
                }
                StoreEvent::Failed(error) => {
                    self.stop_for_disk();
                    self.events
                        .push(HeadEvent::Store(StoreEvent::Failed(error)));
                }
                other => self.events.push(HeadEvent::Store(other)),
            }
        }
        self.store_events = events;
    }

    /// Work for quiet moments: retention, and another look for space. The daemon calls it each second.
    pub fn tidy(&mut self) {
        let lends = |replicas: &Replicas| replicas.holds_history();
        let lent = !self.views.is_empty() || self.replicas.as_ref().is_some_and(lends);
        let now_ns = self.clock.now().unix_ns;
        self.store.forget_recent(now_ns);
        if self.stopped.is_none() {
            self.store.retry_space();
        }
        if lent || self.stopped.is_some() {
            return; // an open view, or a copy that is made anew, may use what would leave
        }
        if self.store.enforce_retention(now_ns).is_err() {
            self.stop_for_disk();
        }
    }

    /// Bytes of history that are due to leave and that open views hold back.
    pub fn held_by_views(&self) -> u64 {
        if self.views.is_empty() {
            return 0;
        }
        self.store.due_bytes(self.clock.now().unix_ns)
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
    pub fn into_store(mut self) -> Store<D> {
        self.store.keep_recent(false);
        self.store
    }

    /// End in good order: everything durable here, a checkpoint, and the store given back.
    pub fn close(mut self) -> Result<Store<D>, JournalError> {
        self.close_group()?;
        self.store.close()?;
        self.store.keep_recent(false);
        Ok(self.store)
    }
}

/// The first epoch of a head within `term`.
pub fn first_epoch(term: u64) -> u64 {
    term << EPOCH_RESTART_BITS
}

/// The next epoch of a head within `term`.
pub fn next_epoch(promised: u64, term: u64) -> Result<u64, JournalError> {
    let epoch = (promised + 1).max(first_epoch(term));
    if epoch >> EPOCH_RESTART_BITS > term {
        return Err(JournalError::StaleEpoch {
            offered: first_epoch(term),
            promised,
        });
    }
    Ok(epoch)
}
