//! The other copies of a head's volume: fencing, recovery, sending, counting what they hold.
//!
//! A peer is `Down`, then `Fencing` once connected, `Fenced` when it has promised, `CatchingUp` while
//! groups are read from the log for it, `Live` when it gets each group as it is made, `Lost` when it
//! must be rebuilt. The decisions are those of `nuage_replica::rules`.

mod joining;
mod lag;
mod mending;
mod rebuild;
mod recovery;

use std::collections::VecDeque;
use std::sync::Arc;

use nuage_block::Output;
use nuage_journal::{BlockWish, Disk, Group, JournalError, Now, Store};
use nuage_replica::{
    Frame, FrameError, FrameReader, Lease, Marks, Policy, RELEASED_NS, Refusal, Tail, rules,
    takeover_wait_ns,
};

use crate::head::CopyOptions;
use crate::qos::SharedBudget;
pub use lag::{Answering, CUT_OFF_NS, Lag, LagBound};
use lag::{Former, Trail};
use mending::Ask;
pub(crate) use mending::fetch;
use rebuild::Rebuild;
pub use rebuild::RebuildProgress;

/// Bytes waiting for one connection before a peer is read for from the log instead.
const OUT_BYTES_MAX: usize = 8 << 20;
/// Bytes read from the log for a peer at a time.
const CATCH_UP_BYTES: usize = 1 << 20;
/// Groups kept in memory for peers that are a little behind.
const RECENT_BYTES_MAX: u64 = 32 << 20;
/// A quarter of the lease: three answers may be lost before it ends.
const RENEW_NS: u64 = nuage_replica::LEASE_NS / 4;

/// How long a copy without room is left alone.
const ASK_AGAIN_NS: u64 = 5_000_000_000;

/// How a copy stands, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    Down,
    Fencing,
    Fenced,
    CatchingUp,
    Live,
    /// Made anew from our blocks: the log does not reach back to what it has.
    Rebuilding,
    /// Its disk failed or is full, or it does not know the volume.
    Lost,
}

/// A copy as its head sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyStatus {
    pub state: CopyState,
    pub memory_seq: u64,
    pub durable_seq: u64,
    pub lag: Lag,
    /// Cut off, or not yet near again: no bound holds the head back for it.
    pub let_go: bool,
    /// Since when nothing was heard of it, where it is cut off.
    pub silent_ns: Option<u64>,
    pub rebuild: Option<RebuildProgress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Fencing,
    Fetching { from: usize },
    Serving,
}

/// What a copy says of itself when it promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Its disk is new or damaged: it lacks what was durable.
    Damaged,
    /// It restarted: what it had only in memory may be gone.
    Forgetful,
    Sound,
}

impl Health {
    fn of(whole: bool, steady: bool) -> Self {
        match (whole, steady) {
            (false, _) => Self::Damaged,
            (true, false) => Self::Forgetful,
            (true, true) => Self::Sound,
        }
    }

    fn is_whole(self) -> bool {
        self != Self::Damaged
    }

    fn is_trusted(self, from_memory: bool) -> bool {
        self == Self::Sound || (self.is_whole() && !from_memory)
    }
}

struct Peer {
    state: CopyState,
    reader: FrameReader,
    out: Output,
    tail: Option<Tail>,
    applied: Tail,
    /// No former head can still be reading, by what it saw.
    released: bool,
    /// Until when a former head may answer reads for all that it knows, by this head's clock.
    former_until_ns: u64,
    health: Health,
    /// What it is known to hold of our log.
    held_seq: u64,
    former: Option<Former>,
    heard_ns: u64,
    let_go: bool,
    sent_seq: u64,
    /// Up to here it was asked for word once it is on its disk.
    asked_seq: u64,
    memory_seq: u64,
    durable_seq: u64,
    last_sent_ns: u64,
    fence_sent_ns: u64,
    /// Its tail is being compared with ours, and is the same up to `common`.
    comparing: bool,
    common: Tail,
    rebuild: Option<Box<Rebuild>>,
    /// When to ask again a copy that had no room.
    ask_at_ns: Option<u64>,
}

impl Peer {
    fn new() -> Self {
        Self {
            state: CopyState::Down,
            reader: FrameReader::default(),
            out: Output::default(),
            tail: None,
            applied: Tail::default(),
            released: false,
            former_until_ns: 0,
            health: Health::Damaged,
            held_seq: 0,
            former: None,
            heard_ns: 0,
            let_go: true,
            sent_seq: 0,
            asked_seq: 0,
            memory_seq: 0,
            durable_seq: 0,
            last_sent_ns: 0,
            fence_sent_ns: 0,
            comparing: false,
            common: Tail::default(),
            rebuild: None,
            ask_at_ns: None,
        }
    }

    fn send(&mut self, frame: &Frame, now_ns: u64) {
        frame.queue(&mut self.out);
        self.last_sent_ns = now_ns;
    }

    /// Queue a group behind `head`, from where it lies.
    fn send_group(&mut self, head: &[u8], group: &Group, now_ns: u64) {
        self.out.copy(head);
        self.out.share(group.header.bytes().clone());
        self.out.share(group.payload.bytes().clone());
        self.sent_seq = group.head.info.last_seq();
        self.last_sent_ns = now_ns;
    }
}

/// What the head knows of its own copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnCopy {
    pub quiet_ns: u64,
    pub steady: bool,
    /// Writes are acknowledged from memory.
    pub from_memory: bool,
    /// The owner accepts that what no copy has is lost.
    pub accepts_loss: bool,
}

/// What the other copies make the head do.
pub(crate) enum Wish {
    /// A higher term has been promised.
    Stop { promised: u64 },
    /// What our log lacks has left the history of the copies that have it, which begins at `horizon`.
    GiveUp { horizon: u64 },
    /// Another incarnation of ours was promised: go above it.
    RaiseEpoch { above: u64 },
    /// The log is recovered: begin the epoch.
    StartEpoch,
}

/// All copies of a volume, by number; `me` is the head's own.
pub struct Replicas {
    me: usize,
    policy: Policy,
    former: Option<Policy>,
    volume: [u8; 16],
    epoch: u64,
    peers: Vec<Peer>,
    pub(crate) phase: Phase,
    /// The own disk had no room for what the log lacks: when to begin again.
    recover_at_ns: u64,
    local_memory: u64,
    local_durable: u64,
    /// First record of this epoch; none is committed before it.
    first_seq: u64,
    known_committed: u64,
    /// Answered from memory at most.
    known_acked: u64,
    visible_from_ns: u64,
    now: Now,
    lease: Lease,
    recent: VecDeque<Arc<Group>>,
    recent_bytes: u64,
    /// How far a fetched log has been compared with ours.
    fetched_to: Tail,
    own: OwnCopy,
    /// Every copy has answered, and too few of them have all that was durable.
    is_lost: bool,
    trail: Trail,
    bound: Option<LagBound>,
    pub(crate) answering: Answering,
    wishes: Vec<Wish>,
    /// Damaged blocks that copies were asked for.
    asks: Vec<Ask>,
    /// What catching up and rebuilds may take of disk and network.
    pub(crate) budget: SharedBudget,
}

impl Replicas {
    pub(crate) fn new(copies: CopyOptions, volume: [u8; 16], own: OwnCopy) -> Self {
        Self {
            me: copies.me,
            policy: copies.policy,
            former: copies.former,
            volume,
            epoch: 0,
            peers: (0..copies.count).map(|_| Peer::new()).collect(),
            phase: Phase::Fencing,
            recover_at_ns: 0,
            local_memory: 0,
            local_durable: 0,
            first_seq: u64::MAX,
            known_committed: 0,
            known_acked: 0,
            visible_from_ns: u64::MAX,
            now: Now::default(),
            lease: Lease::new(copies.count),
            recent: VecDeque::new(),
            recent_bytes: 0,
            fetched_to: Tail::default(),
            own,
            is_lost: false,
            trail: Trail::default(),
            bound: None,
            answering: Answering::AtOnce,
            wishes: Vec::new(),
            asks: Vec::new(),
            budget: SharedBudget::default(),
        }
    }

    /// Begin (again) to ask for promises, for `epoch`.
    pub(crate) fn set_epoch(&mut self, epoch: u64, known_committed: u64) {
        self.epoch = epoch;
        self.known_committed = known_committed;
        self.phase = Phase::Fencing;
        for copy in 0..self.peers.len() {
            if !matches!(self.peers[copy].state, CopyState::Down | CopyState::Lost) {
                self.fence(copy, false);
            }
        }
    }

    fn fence(&mut self, copy: usize, resumes: bool) {
        let frame = Frame::Fence {
            volume: self.volume,
            epoch: self.epoch,
            resumes,
        };
        let now_ns = self.now.monotonic_ns;
        let peer = &mut self.peers[copy];
        peer.state = CopyState::Fencing;
        peer.fence_sent_ns = now_ns;
        peer.comparing = false;
        peer.asked_seq = 0;
        peer.send(&frame, now_ns);
    }

    /// Hold the copies to this bound from now on.
    pub(crate) fn set_bound(&mut self, bound: Option<LagBound>) {
        self.bound = bound;
    }

    /// The own copy has all that it ever held for a head.
    pub(crate) fn is_steady(&self) -> bool {
        self.own.steady
    }

    /// No copy that is left can vouch for what was acknowledged.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost && self.phase == Phase::Fencing
    }

    pub(crate) fn connected(&mut self, copy: usize) {
        if copy == self.me || copy >= self.peers.len() {
            return;
        }
        let former = &self.peers[copy];
        let promised = former.tail.is_some();
        self.peers[copy] = Peer {
            memory_seq: former.memory_seq,
            durable_seq: former.durable_seq,
            held_seq: former.held_seq,
            former: former.former,
            let_go: former.let_go,
            heard_ns: self.now.monotonic_ns,
            ..Peer::new()
        };
        // It may have promised on the connection before: then it knows this very epoch.
        let resumes = promised || self.phase == Phase::Serving;
        self.fence(copy, resumes);
    }

    pub(crate) fn disconnected(&mut self, copy: usize) {
        if self.phase == (Phase::Fetching { from: copy }) {
            self.phase = Phase::Fencing;
        }
        if let Some(peer) = self.peers.get_mut(copy) {
            peer.state = CopyState::Down;
            peer.rebuild = None;
            peer.out = Output::default();
            peer.reader = FrameReader::default();
        }
    }

    pub(crate) fn output(&mut self, copy: usize) -> Output {
        self.peers
            .get_mut(copy)
            .map(|peer| std::mem::take(&mut peer.out))
            .unwrap_or_default()
    }

    pub(crate) fn status(&self) -> Vec<CopyStatus> {
        let own = CopyStatus {
            state: CopyState::Live,
            memory_seq: self.local_memory,
            durable_seq: self.local_durable,
            lag: Lag::default(),
            let_go: false,
            silent_ns: None,
            rebuild: None,
        };
        let of = |(copy, peer): (usize, &Peer)| {
            if copy == self.me {
                return own;
            }
            CopyStatus {
                state: peer.state,
                memory_seq: peer.memory_seq,
                durable_seq: peer.durable_seq,
                lag: self.lag(copy),
                let_go: peer.let_go,
                silent_ns: self.silent_ns(copy),
                rebuild: peer.rebuild.as_ref().map(|rebuild| rebuild.progress()),
            }
        };
        self.peers.iter().enumerate().map(of).collect()
    }

    pub(crate) fn append(&mut self, group: Arc<Group>) {
        self.local_memory = group.head.info.last_seq();
        self.recent_bytes += group.total_bytes();
        let now_ns = self.now.monotonic_ns;
        self.trail
            .made(self.local_memory, group.total_bytes(), now_ns);
        // All are told the same, so the frame's head and its checksum are made once.
        let head = self.append_head(&group, now_ns);
        for (copy, peer) in self.peers.iter_mut().enumerate() {
            if copy == self.me || peer.state != CopyState::Live {
                continue;
            }
            if peer.out.len() > OUT_BYTES_MAX {
                peer.state = CopyState::CatchingUp;
            } else {
                peer.send_group(&head, &group, now_ns);
            }
        }
        self.recent.push_back(group);
        self.forget_recent();
    }

    fn forget_recent(&mut self) {
        while let Some(oldest) = self.recent.front() {
            let readable = oldest.head.info.last_seq() <= self.local_durable;
            if !readable || self.recent_bytes <= RECENT_BYTES_MAX {
                return;
            }
            self.recent_bytes -= oldest.total_bytes();
            self.recent.pop_front();
        }
    }

    fn append_head(&self, group: &Group, now_ns: u64) -> Vec<u8> {
        let parts = [&*group.header, &*group.payload];
        Frame::append_head(&self.marks(now_ns), &parts)
    }

    fn send_group(&mut self, copy: usize, group: &Group, now_ns: u64) {
        let head = self.append_head(group, now_ns);
        self.peers[copy].send_group(&head, group, now_ns);
    }

    pub(crate) fn local_durable(&mut self, seq: u64) {
        self.local_durable = seq;
        self.forget_recent();
    }

    /// The own log was cut or filled during recovery.
    pub(crate) fn local_log(&mut self, memory: u64, durable: u64) {
        self.local_memory = memory;
        self.local_durable = durable;
    }

    fn marks(&self, sent_ns: u64) -> Marks {
        let committed_seq = self.durable_seq();
        let acked_seq = if self.own.from_memory {
            self.memory_seq()
        } else {
            committed_seq
        };
        Marks {
            committed_seq,
            acked_seq,
            sent_ns,
        }
    }

    fn values(&self, own: u64, of: impl Fn(&Peer) -> u64) -> Vec<u64> {
        let value = |(copy, peer): (usize, &Peer)| if copy == self.me { own } else { of(peer) };
        self.peers.iter().enumerate().map(value).collect()
    }

    /// Committed: on the disks of an ack set, and old heads can no longer read what it replaces.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.committed(self.values(self.local_durable, |peer| peer.durable_seq))
    }

    /// In the memory of an ack set.
    pub(crate) fn memory_seq(&self) -> u64 {
        let reached = self.committed(self.values(self.local_memory, |peer| peer.memory_seq));
        reached.max(self.known_acked)
    }

    fn committed(&self, values: Vec<u64>) -> u64 {
        if self.now.monotonic_ns < self.visible_from_ns {
            return self.known_committed;
        }
        rules::committed(&self.policy, &values, self.first_seq, self.known_committed)
    }

    /// Requests may be answered: the lease of a full ack set runs, and all that former heads have
    /// acknowledged is in the index. `applied_seq` is the own store's.
    pub(crate) fn may_serve(&self, applied_seq: u64) -> bool {
        let now_ns = self.now.monotonic_ns;
        self.phase == Phase::Serving
            && applied_seq >= self.first_seq
            && now_ns < self.lease.ends_ns(&self.policy, self.me, now_ns)
    }

    pub(crate) fn receive(&mut self, copy: usize, bytes: &[u8]) -> Result<(), FrameError> {
        if let Some(peer) = self.peers.get_mut(copy) {
            peer.reader.receive(bytes);
        }
        Ok(())
    }

    /// Work through what has come, and send what is due.
    pub(crate) fn pump<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        now: Now,
    ) -> Result<Vec<Wish>, JournalError> {
        self.now = now;
        // One that was never heard is missed since this head began.
        for peer in self.peers.iter_mut().filter(|peer| peer.heard_ns == 0) {
            peer.heard_ns = now.monotonic_ns;
        }
        for copy in 0..self.peers.len() {
            while copy != self.me && self.peers[copy].state != CopyState::Down {
                match self.peers[copy].reader.next_frame() {
                    Ok(Some(frame)) => self.take(copy, frame, store)?,
                    Ok(None) => break,
                    // A peer that speaks nonsense is as good as gone; its connection will be made anew.
                    Err(_) => self.disconnected(copy),
                }
            }
        }
        for copy in 0..self.peers.len() {
            let due = self.peers[copy]
                .ask_at_ns
                .is_some_and(|at| at <= now.monotonic_ns);
            if due && self.peers[copy].state == CopyState::Lost {
                self.peers[copy].ask_at_ns = None;
                self.fence(copy, true);
            }
        }
        if self.phase == Phase::Fencing {
            self.try_recover(store)?;
        }
        if self.phase == Phase::Serving {
            for copy in 0..self.peers.len() {
                if copy != self.me {
                    self.serve(copy, store)?;
                }
            }
            if !store.is_whole() && self.durable_seq() >= self.first_seq {
                store.vouch()?;
            }
            self.mind_lag();
            self.forget_unanswered(store);
            self.ask_for_damaged(store);
        }
        // What was committed stays so, even if a copy comes back with less.
        self.known_committed = self.durable_seq();
        self.known_acked = self.memory_seq();
        Ok(std::mem::take(&mut self.wishes))
    }

    fn take<D: Disk>(
        &mut self,
        copy: usize,
        frame: Frame,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let peer = &mut self.peers[copy];
        peer.heard_ns = self.now.monotonic_ns;
        match frame {
            Frame::Fenced {
                epoch,
                tail,
                applied,
                quiet_ns,
                steady,
                whole,
            } if epoch == self.epoch => {
                peer.health = Health::of(whole, steady);
                // A copy that restarted has less than it said before.
                peer.memory_seq = peer.memory_seq.min(tail.seq);
                peer.durable_seq = peer.durable_seq.min(tail.seq);
                peer.held_seq = peer.held_seq.min(tail.seq);
                peer.state = CopyState::Fenced;
                peer.tail = Some(tail);
                peer.applied = applied;
                peer.released |= quiet_ns == RELEASED_NS;
                let left_ns = takeover_wait_ns().saturating_sub(quiet_ns);
                peer.former_until_ns = self.now.monotonic_ns + left_ns;
                peer.comparing = false;
                peer.rebuild = None;
                let sent_ns = peer.fence_sent_ns;
                self.lease.renewed(copy, sent_ns);
            }
            Frame::Held {
                memory_seq,
                durable_seq,
                sent_ns,
            } => {
                // Only what this epoch sent counts, and only to one whose log has been joined to ours.
                if matches!(peer.state, CopyState::Live | CopyState::CatchingUp) {
                    peer.memory_seq = memory_seq.min(peer.sent_seq);
                    peer.durable_seq = durable_seq.min(peer.sent_seq);
                    peer.held_seq = peer.held_seq.max(peer.durable_seq);
                    self.lease.renewed(copy, sent_ns);
                }
            }
            Frame::Groups { last, groups } if self.phase == (Phase::Fetching { from: copy }) => {
                match self.take_groups(copy, last, &groups, store) {
                    Err(error) if error.is_no_space() => self.recover_later(),
                    taken => taken?,
                }
            }
            Frame::Groups { last, groups } if peer.comparing => {
                self.compare(copy, last, &groups, store)?;
            }
            Frame::Staged {
                seq,
                epoch,
                next_lba,
            } => self.staged(copy, (seq, epoch), next_lba, store)?,
            Frame::Refused(refusal) => self.refused(copy, refusal, store)?,
            Frame::Block {
                lba,
                seq,
                crc,
                data,
            } => self.block_came(copy, BlockWish { lba, seq, crc }, &data, store)?,
            Frame::FetchBlock { lba, seq, crc } if self.phase == Phase::Serving => {
                self.asked_for(copy, BlockWish { lba, seq, crc }, store)?;
            }
            // Late answers to what an earlier phase asked.
            _ => {}
        }
        Ok(())
    }

    fn refused<D: Disk>(
        &mut self,
        copy: usize,
        refusal: Refusal,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        match refusal {
            Refusal::StaleEpoch { promised } if promised > self.epoch => {
                let term = |epoch: u64| epoch >> crate::head::EPOCH_RESTART_BITS;
                if term(promised) == term(self.epoch) && self.phase != Phase::Serving {
                    self.wishes.push(Wish::RaiseEpoch { above: promised });
                } else {
                    self.wishes.push(Wish::Stop { promised });
                }
            }
            // Equal: our own promise from a connection whose answer was lost.
            Refusal::StaleEpoch { promised } if promised == self.epoch => self.fence(copy, true),
            Refusal::StaleEpoch { .. } => self.fence(copy, false),
            // One answer to many frames that were under way: the first makes us ask again.
            Refusal::OutOfOrder { .. } if self.peers[copy].state == CopyState::Fencing => {}
            Refusal::OutOfOrder { .. } => self.fence(copy, true),
            Refusal::OutOfHistory { horizon } if self.phase == (Phase::Fetching { from: copy }) => {
                self.wishes.push(Wish::GiveUp { horizon });
            }
            // It has the log, but no longer what the log goes back to. One answer to many frames, as above.
            Refusal::OutOfHistory { .. } if self.phase == Phase::Serving => {
                if self.peers[copy].state != CopyState::Rebuilding {
                    self.offer_base(copy, store, false)?;
                }
            }
            // What was sent of a state does not fit what it has: from the start.
            Refusal::Diverged { .. } if self.peers[copy].state == CopyState::Rebuilding => {
                self.fence(copy, true);
            }
            // There may be room again: it is asked now and then.
            Refusal::NoSpace => {
                self.peers[copy].state = CopyState::Lost;
                self.peers[copy].rebuild = None;
                self.peers[copy].ask_at_ns = Some(self.now.monotonic_ns + ASK_AGAIN_NS);
            }
            Refusal::Diverged { .. }
            | Refusal::Failed
            | Refusal::OutOfHistory { .. }
            | Refusal::UnknownVolume => {
                self.peers[copy].state = CopyState::Lost;
                self.peers[copy].rebuild = None;
            }
        }
        Ok(())
    }

    fn serve<D: Disk>(&mut self, copy: usize, store: &mut Store<D>) -> Result<(), JournalError> {
        if self.peers[copy].state == CopyState::Fenced && !self.peers[copy].comparing {
            self.join(copy, store)?;
        }
        if self.peers[copy].state == CopyState::CatchingUp {
            self.catch_up(copy, store)?;
        }
        if self.peers[copy].state == CopyState::Rebuilding {
            self.send_base(copy, store)?;
        }
        let now_ns = self.now.monotonic_ns;
        let marks = self.marks(now_ns);
        let peer = &mut self.peers[copy];
        let quiet = now_ns >= peer.last_sent_ns + RENEW_NS;
        if quiet && matches!(peer.state, CopyState::Live | CopyState::CatchingUp) {
            peer.send(&Frame::Renew { marks }, now_ns);
        }
        Ok(())
    }

    /// Have copies say when all they were sent is on their disks; unasked they say it with their next answer.
    /// `awaited`: something of the head waits for that. Where copies are bound it counts at all times.
    pub(crate) fn ask_for_durable(&mut self, awaited: bool) {
        if !awaited && self.bound.is_none() {
            return;
        }
        let now_ns = self.now.monotonic_ns;
        let marks = self.marks(now_ns);
        for (copy, peer) in self.peers.iter_mut().enumerate() {
            let follows = matches!(peer.state, CopyState::Live | CopyState::CatchingUp);
            let lacks = peer.durable_seq < peer.sent_seq && peer.asked_seq < peer.sent_seq;
            if copy != self.me && follows && lacks {
                peer.asked_seq = peer.sent_seq;
                peer.send(&Frame::Renew { marks }, now_ns);
            }
        }
    }

    /// Tell the copies that this head reads no more. One that was still waiting for a former head's
    /// lease cannot say so for that one: it says nothing, and the next head waits.
    pub(crate) fn release(&mut self) {
        let (epoch, now_ns) = (self.epoch, self.now.monotonic_ns);
        if now_ns < self.visible_from_ns {
            return;
        }
        for peer in &mut self.peers {
            if peer.state != CopyState::Down {
                peer.send(&Frame::Release { epoch }, now_ns);
            }
        }
    }
}

pub(crate) fn tail_of<D: Disk>(store: &Store<D>) -> Tail {
    let tail = store.tail();
    Tail {
        seq: tail.seq,
        epoch: tail.epoch,
        chain: tail.chain,
    }
}
