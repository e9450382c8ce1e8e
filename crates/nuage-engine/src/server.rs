//! A copy of a volume that serves a head elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{Bytes, Output};
use nuage_journal::{
    BaseOffer, BlockWish, Disk, DiskError, Group, JournalError, Position, Store, StoreEvent,
    decode_side,
};
use nuage_replica::{
    Base, Frame, FrameError, FrameReader, Marks, RELEASED_NS, Refusal, Tail, rules,
};

use crate::head::Clock;
use crate::replicas::{fetch, tail_of};

/// Marks and reservations of a volume at most: 100,000 marks with the longest names.
const SIDE_BYTES_MAX: usize = 32 << 20;

/// A connection of a head, by a number that the reactor chose.
pub type SessionId = u64;

#[derive(Default)]
struct Session {
    reader: FrameReader,
    out: Output,
    epoch: Option<u64>,
    sent_ns: u64,
    owes_answer: bool,
    /// The head asked for word once all it sent is on this disk.
    awaits_durable: bool,
    /// Marks and reservations of a state that is being taken.
    side: Vec<u8>,
}

/// One copy of a volume behind the frames of docs/protocols/replication.md.
pub struct ReplicaStore<D: Disk> {
    store: Store<D>,
    sessions: BTreeMap<SessionId, Session>,
    released: bool,
    clock: Rc<dyn Clock>,
    /// When a head was last heard, or could have been by an earlier process of this copy.
    heard_ns: u64,
    /// Holds all that it ever told a head to hold in memory: false after a restart, until it has caught up.
    steady: bool,
    events: Vec<StoreEvent>,
    /// Groups of a state that wait for a segment to be ready.
    taking: VecDeque<(SessionId, Group)>,
}

/// A copy on its way to lead.
pub struct Handover<D: Disk> {
    pub store: Store<D>,
    /// For how long no former head was heard; `RELEASED_NS`: none can still be reading.
    pub quiet_ns: u64,
    pub steady: bool,
}

impl<D: Disk> ReplicaStore<D> {
    pub fn new(store: Store<D>, clock: Rc<dyn Clock>) -> Self {
        let steady = rules::is_steady_at_start(store.superblock().promised);
        Self {
            store,
            sessions: BTreeMap::new(),
            released: false,
            heard_ns: clock.now().monotonic_ns,
            clock,
            steady,
            events: Vec::new(),
            taking: VecDeque::new(),
        }
    }

    /// A head elsewhere is connected.
    pub fn is_led(&self) -> bool {
        !self.sessions.is_empty()
    }

    pub fn store(&self) -> &Store<D> {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// A copy that was a head's own until now. `steady`: as that head knew it ([`crate::VolumeHead::is_steady`]).
    pub fn after_lead(store: Store<D>, clock: Rc<dyn Clock>, steady: bool) -> Self {
        Self {
            steady,
            ..Self::new(store, clock)
        }
    }

    /// The copy, to lead it from here.
    pub fn hand_over(self) -> Handover<D> {
        let quiet_ns = self.quiet_ns();
        Handover {
            store: self.store,
            quiet_ns,
            steady: self.steady,
        }
    }

    fn quiet_ns(&self) -> u64 {
        if self.released || self.store.tail().seq == 0 {
            return RELEASED_NS;
        }
        let now_ns = self.clock.now().monotonic_ns;
        now_ns.saturating_sub(self.heard_ns)
    }

    pub fn wake_fd(&self) -> Option<i32> {
        self.store.wake_fd()
    }

    pub fn session_opened(&mut self, session: SessionId) {
        self.sessions.insert(session, Session::default());
    }

    pub fn session_closed(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.store.ask_again();
    }

    /// Bytes from a head. After an error its connection is of no more use.
    pub fn receive(&mut self, session: SessionId, bytes: &[u8]) -> Result<(), FrameError> {
        let Some(found) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        found.reader.receive(bytes);
        while let Some(found) = self.sessions.get_mut(&session) {
            let Some(frame) = found.reader.next_frame()? else {
                break;
            };
            if let Some(answer) = self.answer(session, frame) {
                self.send(session, &answer);
            }
        }
        Ok(())
    }

    fn send(&mut self, session: SessionId, frame: &Frame) {
        if let Some(found) = self.sessions.get_mut(&session) {
            frame.queue(&mut found.out);
        }
    }

    /// Bytes for a head.
    pub fn output(&mut self, session: SessionId) -> Output {
        self.sessions
            .get_mut(&session)
            .map(|session| std::mem::take(&mut session.out))
            .unwrap_or_default()
    }

    fn answer(&mut self, session: SessionId, frame: Frame) -> Option<Frame> {
        let promised = self.store.superblock().promised;
        if let Frame::Fence {
            volume,
            epoch,
            resumes,
        } = frame
        {
            return Some(self.fence(session, volume, epoch, resumes));
        }
        let epoch = self
            .sessions
            .get(&session)
            .and_then(|session| session.epoch);
        if epoch != Some(promised) {
            return Some(Frame::Refused(Refusal::StaleEpoch { promised }));
        }
        self.heard_ns = self.clock.now().monotonic_ns;
        match frame {
            Frame::Append { marks, group } => self.note(session, marks, Some(&group), promised),
            Frame::Renew { marks } => self.note(session, marks, None, promised),
            Frame::Truncate { seq, chain } => Some(match self.store.truncate_after(seq, &chain) {
                Ok(()) => self.fenced(promised, 0),
                Err(error) => refusal(&error),
            }),
            Frame::Fetch { after_seq, bytes } => {
                Some(match self.store.read_groups(after_seq, bytes as usize) {
                    Ok(groups) => Frame::Groups {
                        last: groups.is_empty(),
                        groups,
                    },
                    Err(error) => refusal(&error),
                })
            }
            Frame::Release { epoch } => {
                self.released |= epoch == promised;
                None
            }
            Frame::FetchBlock { lba, seq, crc } => {
                let found = self.store.stored_version(BlockWish { lba, seq, crc });
                Some(Frame::Block {
                    lba,
                    seq,
                    crc,
                    data: found.ok().flatten().unwrap_or_default(),
                })
            }
            Frame::Block {
                lba,
                seq,
                crc,
                data,
            } => {
                let wish = BlockWish { lba, seq, crc };
                // A failure shows at the next poll.
                if !self.store.mend(wish, &data).unwrap_or(false) {
                    self.store.give_up(wish);
                }
                None
            }
            Frame::Base { base, anew } => Some(self.offered(&base, anew)),
            Frame::BaseGroup { group } => match Group::decode(&group) {
                Ok(group) => {
                    self.taking.push_back((session, group));
                    None
                }
                Err(error) => Some(refusal(&error)),
            },
            Frame::BaseSide { part } => {
                if let Some(found) = self.sessions.get_mut(&session)
                    && found.side.len() + part.len() <= SIDE_BYTES_MAX
                {
                    found.side.extend_from_slice(&part);
                }
                None
            }
            Frame::Install { digest } => Some(self.install(session, promised, &digest)),
            // What only a replica says.
            _ => None,
        }
    }

    /// A head offers a state to be made anew from.
    fn offered(&mut self, base: &Base, anew: bool) -> Frame {
        self.taking.clear();
        let offer = BaseOffer {
            position: Position {
                seq: base.seq,
                time_ns: base.time_ns,
                epoch: base.epoch,
                segment: base.segment,
                chain: base.chain,
            },
            size_bytes: base.size_bytes,
            until_seq: base.until_seq,
        };
        let begun = match self.store.staged() {
            Some(state) => Ok(Some(state)),
            None => self.store.staged_before(),
        };
        let answer = begun.and_then(|begun| {
            let other = begun.filter(|state| *state != (base.seq, base.epoch) && !anew);
            match other {
                Some((seq, epoch)) => Ok((seq, epoch, 0)),
                None => Ok((base.seq, base.epoch, self.store.stage(&offer)?)),
            }
        });
        match answer {
            Ok((seq, epoch, next_lba)) => Frame::Staged {
                seq,
                epoch,
                next_lba,
            },
            Err(error) => refusal(&error),
        }
    }

    /// Write the groups of a state that have come, as far as segments are ready.
    fn take_base(&mut self) {
        while let Some((session, group)) = self.taking.front() {
            let session = *session;
            let answer = match self.store.stage_group(group) {
                Ok(None) => return,
                Ok(Some(next_lba)) => {
                    let (seq, epoch) = self.store.staged().unwrap_or_default();
                    Frame::Staged {
                        seq,
                        epoch,
                        next_lba,
                    }
                }
                // Not what we have begun: the head asks again.
                Err(JournalError::Malformed { .. }) => {
                    self.taking.clear();
                    Frame::Refused(Refusal::Diverged { seq: 0 })
                }
                Err(error) => {
                    self.taking.clear();
                    refusal(&error)
                }
            };
            self.taking.pop_front();
            self.send(session, &answer);
        }
    }

    fn install(&mut self, session: SessionId, epoch: u64, digest: &[u8; 32]) -> Frame {
        let side = self
            .sessions
            .get_mut(&session)
            .map(|found| std::mem::take(&mut found.side));
        let side = side.unwrap_or_default();
        let installed = decode_side(&side).and_then(|side| self.store.install(side, digest));
        match installed {
            Ok(()) => self.fenced(epoch, 0),
            Err(JournalError::Malformed { .. }) => Frame::Refused(Refusal::Diverged { seq: 0 }),
            Err(error) => refusal(&error),
        }
    }

    fn fence(&mut self, session: SessionId, volume: [u8; 16], epoch: u64, resumes: bool) -> Frame {
        if volume != self.store.superblock().volume {
            return Frame::Refused(Refusal::UnknownVolume);
        }
        let promised = self.store.superblock().promised;
        let fresh = match rules::fence(promised, epoch, resumes) {
            Ok(fresh) => fresh,
            Err(refused) => return Frame::Refused(refused),
        };
        // All that was received counts in the tail, so it must be durable before it is told.
        if let Err(error) = self.store.drain() {
            return refusal(&error);
        }
        if let Err(error) = self.store.promise(epoch) {
            return refusal(&error);
        }
        let quiet_ns = self.quiet_ns();
        self.heard_ns = self.clock.now().monotonic_ns;
        if fresh {
            self.released = false;
        }
        if let Some(found) = self.sessions.get_mut(&session) {
            found.epoch = Some(epoch);
        }
        self.fenced(epoch, quiet_ns)
    }

    fn fenced(&self, epoch: u64, quiet_ns: u64) -> Frame {
        let applied = self.store.state().position;
        let applied = Tail {
            seq: applied.seq,
            epoch: applied.epoch,
            chain: applied.chain,
        };
        Frame::Fenced {
            epoch,
            tail: tail_of(&self.store),
            applied,
            quiet_ns,
            steady: self.steady,
            whole: self.store.is_whole(),
        }
    }

    fn note(
        &mut self,
        session: SessionId,
        marks: Marks,
        group: Option<&Bytes>,
        epoch: u64,
    ) -> Option<Frame> {
        if let Some(bytes) = group {
            let Ok(group) = Group::take(bytes) else {
                return Some(Frame::Refused(Refusal::OutOfOrder {
                    tail_seq: self.store.tail().seq,
                }));
            };
            let info = &group.head.info;
            let offer = rules::Offer {
                session_epoch: epoch,
                group_epoch: info.epoch,
                first_seq: info.first_seq,
                previous_chain: info.previous_chain,
            };
            let promised = self.store.superblock().promised;
            if let Err(refused) = rules::accept(promised, &tail_of(&self.store), &offer) {
                return Some(Frame::Refused(refused));
            }
            if let Err(error) = self.store.append(epoch, Arc::new(group)) {
                return Some(refusal(&error));
            }
        }
        let tail = self.store.tail();
        self.store.set_committed(marks.committed_seq.min(tail.seq));
        self.steady |= tail.epoch == epoch && tail.seq >= marks.acked_seq;
        let has_all = self.store.durable_seq() >= marks.committed_seq.max(marks.acked_seq);
        if tail.epoch == epoch && has_all && !self.store.is_whole() {
            // A failure shows in what the store says from now on.
            let _ = self.store.vouch();
        }
        if let Some(found) = self.sessions.get_mut(&session) {
            found.sent_ns = marks.sent_ns;
            found.owes_answer = true;
            found.awaits_durable |= group.is_none();
        }
        None
    }

    /// Work for quiet moments: retention, and another look for space. The daemon calls it each second.
    pub fn tidy(&mut self, now_ns: u64) {
        self.store.retry_space();
        // A failure shows at the next poll.
        let _ = self.store.enforce_retention(now_ns);
    }

    /// Drive the disk; returns what the daemon wants to know.
    pub fn poll(&mut self) -> Vec<StoreEvent> {
        let mut events = std::mem::take(&mut self.events);
        self.take_base();
        self.store.poll(&mut events);
        let grown = events
            .iter()
            .any(|event| matches!(event, StoreEvent::Durable { .. }));
        let failed = self.store.failure().is_some();
        let stranded = self.store.is_stranded();
        let promised = self.store.superblock().promised;
        self.ask_for_damaged(promised);
        let (memory_seq, durable_seq) = (self.store.tail().seq, self.store.durable_seq());
        for session in self.sessions.values_mut() {
            let answers = session.owes_answer || (grown && session.awaits_durable) || failed;
            if session.epoch != Some(promised) || !answers {
                continue;
            }
            session.owes_answer = false;
            session.awaits_durable &= durable_seq < memory_seq;
            let frame = if failed {
                Frame::Refused(Refusal::Failed)
            } else if stranded {
                let horizon = self.store.horizon_seq();
                Frame::Refused(Refusal::OutOfHistory { horizon })
            } else {
                Frame::Held {
                    memory_seq,
                    durable_seq,
                    sent_ns: session.sent_ns,
                }
            };
            frame.queue(&mut session.out);
        }
        events
    }
}

impl<D: Disk> ReplicaStore<D> {
    /// Ask the head for what is damaged here, once this copy has what the head has.
    fn ask_for_damaged(&mut self, promised: u64) {
        if self.store.tail().epoch != promised {
            return;
        }
        let of_head = |session: &&mut Session| session.epoch == Some(promised);
        let Some(session) = self.sessions.values_mut().find(of_head) else {
            return;
        };
        for wish in self.store.take_wishes() {
            fetch(wish).queue(&mut session.out);
        }
    }
}

fn refusal(error: &JournalError) -> Frame {
    Frame::Refused(match error {
        JournalError::StaleEpoch { promised, .. } => Refusal::StaleEpoch {
            promised: *promised,
        },
        JournalError::OutOfOrder { tail, .. } => Refusal::OutOfOrder { tail_seq: *tail },
        JournalError::Diverged { seq } => Refusal::Diverged { seq: *seq },
        JournalError::NoSpace | JournalError::Disk(DiskError::NoSpace) => Refusal::NoSpace,
        JournalError::OutOfHistory { horizon, .. } => Refusal::OutOfHistory { horizon: *horizon },
        _ => Refusal::Failed,
    })
}
