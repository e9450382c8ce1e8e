//! How a fenced copy's log is joined to ours, and brought up to date from it.

use nuage_journal::{Chain, Disk, Group, JournalError, Store};
use nuage_replica::{Frame, Tail};

use crate::qos::Class;

use super::{ASK_AGAIN_NS, CATCH_UP_BYTES, CopyState, Replicas};

impl Replicas {
    /// Find where a fenced peer's log joins ours.
    pub(super) fn join<D: Disk>(
        &mut self,
        copy: usize,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let peer = &self.peers[copy];
        let (Some(tail), applied) = (peer.tail, peer.applied) else {
            return Ok(());
        };
        let joins = |store: &mut Store<D>, at: &Tail| -> Result<bool, JournalError> {
            Ok(store.chain_at(at.seq)? == Some(at.chain as Chain))
        };
        if joins(store, &tail)? {
            let peer = &mut self.peers[copy];
            peer.state = CopyState::CatchingUp;
            peer.sent_seq = tail.seq;
            self.note_former(copy, tail.seq, store)?;
        } else if tail.seq > applied.seq && joins(store, &applied)? {
            let peer = &mut self.peers[copy];
            peer.comparing = true;
            peer.common = applied;
            self.ask_for_groups(copy, applied.seq);
        } else {
            self.offer_base(copy, store, false)?;
        }
        Ok(())
    }

    /// Find where a peer's tail parts from our log and have it give up the rest, and no more than that.
    pub(super) fn compare<D: Disk>(
        &mut self,
        copy: usize,
        last: bool,
        groups: &[u8],
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let mut common = self.peers[copy].common;
        let mut parts = last;
        let mut at = 0;
        while at < groups.len() && !parts {
            let Ok(head) = nuage_journal::GroupHead::decode(&groups[at..]) else {
                self.disconnected(copy);
                return Ok(());
            };
            at += head.info.total_blocks() as usize * nuage_journal::BLOCK_BYTES;
            if store.chain_at(head.info.last_seq())? == Some(head.chain) {
                common = Tail {
                    seq: head.info.last_seq(),
                    epoch: head.info.epoch,
                    chain: head.chain,
                };
            } else {
                parts = true;
            }
        }
        self.peers[copy].common = common;
        if parts {
            let now_ns = self.now.monotonic_ns;
            let frame = Frame::Truncate {
                seq: common.seq,
                chain: common.chain,
            };
            self.peers[copy].send(&frame, now_ns);
        } else {
            self.ask_for_groups(copy, common.seq);
        }
        Ok(())
    }

    pub(super) fn catch_up<D: Disk>(
        &mut self,
        copy: usize,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let now_ns = self.now.monotonic_ns;
        while self.peers[copy].out.len() < CATCH_UP_BYTES {
            let next = self.peers[copy].sent_seq + 1;
            if next > self.local_memory {
                self.peers[copy].state = CopyState::Live;
                return Ok(());
            }
            let recent = self
                .recent
                .iter()
                .find(|group| group.head.info.first_seq == next);
            if let Some(group) = recent.cloned() {
                self.send_group(copy, &group, now_ns);
                continue;
            }
            if !self.budget.borrow_mut().may(Class::Replication, now_ns) {
                return Ok(());
            }
            let bytes = match store.read_groups(next - 1, CATCH_UP_BYTES) {
                Err(JournalError::OutOfHistory { .. }) => {
                    return self.offer_base(copy, store, false);
                }
                other => other?,
            };
            if bytes.is_empty() {
                return Ok(()); // on its way to our own disk
            }
            self.budget
                .borrow_mut()
                .take(Class::Replication, now_ns, bytes.len() as u64);
            let mut at = 0;
            while at < bytes.len() {
                // Damaged here: another copy may have it. This one is served once it is mended.
                let Ok(group) = Group::decode(&bytes[at..]) else {
                    if !store.note_damaged_group(&bytes[at..])? {
                        self.peers[copy].state = CopyState::Lost;
                        self.peers[copy].ask_at_ns = Some(now_ns + ASK_AGAIN_NS);
                    }
                    return Ok(());
                };
                at += group.total_bytes() as usize;
                self.send_group(copy, &group, now_ns);
            }
        }
        Ok(())
    }
}
