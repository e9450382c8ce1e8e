//! A copy that our log does not reach back to is made anew: a past state first, then the log behind it.
//!
//! The head offers the oldest state of its history. The copy says what it has begun to take, maybe of another
//! state from another head; if our history reaches to that one, it goes on. Groups of blocks follow,
//! a bounded number ahead of the copy's answers and at a bounded rate, then marks and reservations, then the
//! word to install it all. The copy answers as after a fence, and its log is joined to ours.

use nuage_journal::{BaseRead, BaseReader, Disk, JournalError, Store, encode_side};
use nuage_replica::{Base, Frame};

use super::{CopyState, Replicas};
use crate::qos::Class;

/// When to look again at a block that another copy is asked for.
const MENDED_AFTER_NS: u64 = 1_000_000_000;
/// Blocks read in one turn: a few milliseconds of random reads in which the head does nothing else.
const BLOCKS_A_TURN: usize = 64;
/// Groups that may be ahead of the copy's answers.
const GROUPS_AHEAD: u32 = 32;
/// Bytes of marks and reservations in one frame.
const SIDE_PART_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Offered,
    Sending,
    Installing,
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RebuildProgress {
    pub done_blocks: u64,
    pub total_blocks: u64,
}

pub(super) struct Rebuild {
    reader: BaseReader,
    step: Step,
    /// Its own state was offered before ours: it is not offered again.
    went_on: bool,
    ahead: u32,
    done_blocks: u64,
    /// It waits for a block to be mended until then.
    mended_ns: u64,
}

impl Rebuild {
    pub(super) fn progress(&self) -> RebuildProgress {
        RebuildProgress {
            done_blocks: self.done_blocks,
            total_blocks: self.reader.block_count(),
        }
    }
}

impl Replicas {
    /// A copy takes a past state from us: what it needs must stay.
    pub(crate) fn holds_history(&self) -> bool {
        self.peers.iter().any(|peer| peer.rebuild.is_some())
    }

    /// Offer the oldest state of our history to a copy whose log cannot be joined to ours.
    pub(super) fn offer_base<D: Disk>(
        &mut self,
        copy: usize,
        store: &mut Store<D>,
        anew: bool,
    ) -> Result<(), JournalError> {
        let horizon = store.horizon_seq();
        self.offer(copy, horizon, anew, store)
    }

    fn offer<D: Disk>(
        &mut self,
        copy: usize,
        seq: u64,
        anew: bool,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let reader = store.base_reader(seq)?;
        let position = reader.position;
        let base = Base {
            seq: position.seq,
            time_ns: position.time_ns,
            epoch: position.epoch,
            segment: position.segment,
            chain: position.chain,
            size_bytes: reader.size_bytes,
            until_seq: store.tail().seq,
        };
        self.note_former(copy, 0, store)?;
        let now_ns = self.now.monotonic_ns;
        let peer = &mut self.peers[copy];
        let went_on = anew || peer.rebuild.is_some();
        peer.state = CopyState::Rebuilding;
        peer.rebuild = Some(Box::new(Rebuild {
            reader,
            step: Step::Offered,
            went_on,
            ahead: 0,
            done_blocks: 0,
            mended_ns: 0,
        }));
        peer.send(&Frame::Base { base, anew }, now_ns);
        Ok(())
    }

    /// A copy told which state it takes, and how far it is.
    pub(super) fn staged<D: Disk>(
        &mut self,
        copy: usize,
        state: (u64, u64),
        next_lba: u64,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let Some(rebuild) = &mut self.peers[copy].rebuild else {
            return Ok(());
        };
        let ours = (rebuild.reader.position.seq, rebuild.reader.position.epoch);
        if state == ours {
            if rebuild.step == Step::Offered {
                rebuild.reader.start_at(next_lba);
                rebuild.step = Step::Sending;
            } else {
                rebuild.ahead = rebuild.ahead.saturating_sub(1);
            }
            rebuild.done_blocks = rebuild.reader.blocks_below(next_lba);
            return Ok(());
        }
        let (seq, epoch) = state;
        let within = seq >= store.horizon_seq() && seq <= store.applied_seq();
        let is_ours = within && !rebuild.went_on && store.view(seq)?.position.epoch == epoch;
        if is_ours {
            self.offer(copy, seq, false, store)
        } else {
            self.offer_base(copy, store, true)
        }
    }

    /// Send what is due of a state.
    pub(super) fn send_base<D: Disk>(
        &mut self,
        copy: usize,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let now_ns = self.now.monotonic_ns;
        let Some(rebuild) = self.peers[copy].rebuild.as_mut() else {
            return Ok(());
        };
        let may_send = rebuild.step == Step::Sending && rebuild.ahead < GROUPS_AHEAD;
        let waits = rebuild.mended_ns > now_ns;
        if !may_send || waits || !self.budget.borrow_mut().may(Class::Repair, now_ns) {
            return Ok(());
        }
        match store.next_base(&mut rebuild.reader, BLOCKS_A_TURN)? {
            BaseRead::Group(group) => {
                rebuild.ahead += 1;
                let bytes = group.total_bytes();
                self.budget.borrow_mut().take(Class::Repair, now_ns, bytes);
                let mut bytes = group.header.to_vec();
                bytes.extend_from_slice(&group.payload);
                self.peers[copy].send(&Frame::BaseGroup { group: bytes }, now_ns);
            }
            BaseRead::Damaged { lba, entry } => {
                // Tried again a second later; meanwhile another copy may send a good one.
                store.note_damage(entry, lba);
                rebuild.mended_ns = now_ns + MENDED_AFTER_NS;
            }
            BaseRead::End if rebuild.ahead == 0 => {
                rebuild.step = Step::Installing;
                let side = encode_side(&rebuild.reader.side);
                let digest = rebuild.reader.digest();
                let peer = &mut self.peers[copy];
                for part in side.chunks(SIDE_PART_BYTES) {
                    let part = part.to_vec();
                    peer.send(&Frame::BaseSide { part }, now_ns);
                }
                peer.send(&Frame::Install { digest }, now_ns);
            }
            BaseRead::End => {}
        }
        Ok(())
    }
}
