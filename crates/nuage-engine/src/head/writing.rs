//! Writes become records of a group, shown and answered when the policy holds.

use std::sync::Arc;
use std::time::Duration;

use nuage_block::{Buffer, Bytes, Failure, Outcome, Pages, Tag};
use nuage_journal::{BLOCK_BYTES, Closing, Disk, GroupBuilder, JournalError, Kind};

use super::merge::NO_TAG;
use super::{AckMode, HeadEvent, VolumeHead};
use crate::overlay::Kept;
use crate::replicas::{Answering, Replicas};

/// A group that nobody waits for gathers as long as this or until it has as many blocks: then a flush finds one
/// commit to wait for, not two, and a crash takes no more than a guest's cache would lose anyway.
const GATHER_TIME: Duration = Duration::from_millis(1);
const GATHER_BLOCKS: u32 = 64;
/// A write of as much is not copied to others: its own group costs less than that.
const LENT_BYTES_MIN: usize = 256 * 1024;

/// While answers rest, how soon is looked again at least.
const REST_LOOK: Duration = Duration::from_millis(1);

/// A record that is not yet visible.
pub(super) struct Pending {
    pub(super) seq: u64,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) data: Option<Kept>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) seq: u64,
    pub(super) tag: Tag,
}

impl<D: Disk> VolumeHead<D> {
    /// Close the gathering group when a record of `blocks` and `tail_bytes` does not fit in it, or when it has
    /// gathered and could go: all of a burst in one group would leave the processor's cache before it is digested.
    pub(super) fn make_room(&mut self, blocks: u32, tail_bytes: usize) -> Result<(), JournalError> {
        let payload_blocks_max = self.store.payload_blocks_max();
        let has_gathered = self.builder.payload_blocks() >= GATHER_BLOCKS && self.holds_the_last();
        if !has_gathered && self.builder.fits(blocks, tail_bytes, payload_blocks_max) {
            return Ok(());
        }
        self.close_group()
    }

    pub(super) fn append_write(&mut self, tag: Tag, kind: Kind, lba: u64, data: Buffer, fua: bool) {
        if !self.store.has_space() || self.store.is_history_full() {
            self.fail(tag, Failure::NoSpace);
            return;
        }
        let data = Bytes::from_owner(data);
        let part_blocks = self.store.payload_blocks_max() as usize;
        let mut last = 0;
        for (at, part) in data.chunks(part_blocks * BLOCK_BYTES).enumerate() {
            let blocks = part.len() / BLOCK_BYTES;
            let offset = at * part_blocks * BLOCK_BYTES;
            let part_lba = lba + (at * part_blocks) as u64;
            let flags = u8::from(fua) * nuage_journal::FLAG_FUA;
            let pushed = match self.lent(&data, offset, part.len()) {
                Some(lent) => self.push_lent(kind, flags, part_lba, lent),
                None => self.push_copy(kind, flags, part_lba, part),
            };
            match pushed {
                Ok(seq) => last = seq,
                Err(_) => return self.fail(tag, Failure::Medium),
            }
            let kept = if self.store.is_encrypted() {
                Kept::Apart(data.clone(), offset)
            } else {
                Kept::InGroup(self.builder.payload_blocks().saturating_sub(blocks as u32))
            };
            self.appeared(last, part_lba, blocks as u64, Some(kept));
        }
        self.wait(tag, last, fua);
    }

    fn push_copy(
        &mut self,
        kind: Kind,
        flags: u8,
        lba: u64,
        data: &[u8],
    ) -> Result<u64, JournalError> {
        self.make_room((data.len() / BLOCK_BYTES) as u32, 0)?;
        let cipher = self.store.cipher_mut();
        Ok(self.builder.push_write(kind, flags, lba, data, cipher))
    }

    /// A large write is a group of its own, which goes to the disk from where it was received.
    fn push_lent(
        &mut self,
        kind: Kind,
        flags: u8,
        lba: u64,
        data: Pages,
    ) -> Result<u64, JournalError> {
        self.close_group()?;
        let seq = self.builder.push_lent(kind, flags, lba, data);
        self.close_group()?;
        Ok(seq)
    }

    fn lent(&self, data: &Bytes, offset: usize, length: usize) -> Option<Pages> {
        if length < LENT_BYTES_MIN || self.store.is_encrypted() {
            return None;
        }
        Pages::of(data.slice(offset..offset + length))
    }

    pub(super) fn append_zero(&mut self, tag: Tag, kind: Kind, lba: u64, blocks: u64, fua: bool) {
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

    pub(super) fn appeared(&mut self, seq: u64, lba: u64, blocks: u64, data: Option<Kept>) {
        let pending = Pending {
            seq,
            lba,
            blocks,
            data,
        };
        if self.answers_at_once() {
            self.show(&pending);
        } else {
            self.pending.push_back(pending);
        }
    }

    pub(super) fn show(&mut self, record: &Pending) {
        match &record.data {
            Some(kept) => self
                .overlay
                .write(record.seq, record.lba, record.blocks, kept),
            None => self.overlay.zero(record.seq, record.lba, record.blocks),
        }
    }

    /// This head's memory is a full ack set.
    fn answers_at_once(&self) -> bool {
        match self.options.mode {
            AckMode::WriteBack => true,
            AckMode::Memory => self.replicas.is_none(),
            AckMode::Durable => false,
        }
    }

    pub(super) fn wait(&mut self, tag: Tag, seq: u64, fua: bool) {
        if tag == NO_TAG {
            return;
        }
        if fua || self.options.mode == AckMode::Durable {
            self.wait_durable(tag, seq);
        } else if self.answers_at_once() && self.answering() == Answering::AtOnce {
            self.complete(tag, Outcome::Done);
        } else {
            self.visible_waiters.push_back(Waiter { seq, tag });
        }
    }

    pub(super) fn wait_durable(&mut self, tag: Tag, seq: u64) {
        if seq <= self.durable_by_policy() {
            self.complete(tag, Outcome::Done);
        } else {
            self.durable_waiters.push_back(Waiter { seq, tag });
        }
    }

    pub(super) fn durable_by_policy(&self) -> u64 {
        self.replicas
            .as_ref()
            .map_or(self.store.durable_seq(), Replicas::durable_seq)
    }

    /// Make a group of what has gathered and hand it to the store and the replicas.
    pub(super) fn close_group(&mut self) -> Result<(), JournalError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let next = self.builder.next_seq();
        let fresh = GroupBuilder::new(self.uuid, self.epoch, next, self.store.is_encrypted())
            .with_room_of(&self.builder);
        let builder = std::mem::replace(&mut self.builder, fresh);
        self.gathering_since_ns = None;
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
        let group = Arc::new(builder.finish(&closing));
        if !self.store.is_encrypted() {
            self.overlay
                .closed(group.head.info.last_seq(), group.payload.clone());
        }
        let appended = self.store.append(self.epoch, Arc::clone(&group));
        if let Err(error) = appended {
            self.stop_for_disk();
            return Err(error);
        }
        if let Some(replicas) = &mut self.replicas {
            replicas.append(group);
        }
        Ok(())
    }

    /// A group is closed when the one before it is held, and somebody waits for it or it has gathered.
    pub(super) fn wants_group(&self) -> bool {
        !self.builder.is_empty()
            && self.holds_the_last()
            && (self.is_awaited() || self.gathers_for().is_some_and(|left| left.is_zero()))
    }

    /// Nothing is on its way to the local disk, or to an ack set whose memory is enough.
    fn holds_the_last(&self) -> bool {
        let tail_seq = self.store.tail().seq;
        let by_memory = self.options.mode == AckMode::Memory;
        let copies = self.replicas.as_ref().filter(|_| by_memory);
        self.store.durable_seq() == tail_seq
            || copies.is_some_and(|copies| copies.memory_seq() >= tail_seq)
    }

    fn is_awaited(&self) -> bool {
        !(self.visible_waiters.is_empty()
            && self.durable_waiters.is_empty()
            && self.blocked.is_empty()
            && self.administrations.is_empty())
    }

    /// Something waits until a record is on the disks of an ack set.
    pub(super) fn awaits_durable(&self) -> bool {
        let waits = !(self.durable_waiters.is_empty()
            && self.blocked.is_empty()
            && self.administrations.is_empty()
            && self.administered.is_empty());
        waits || !self.is_serving()
    }

    /// How much longer a group may gather; `None`: nothing has begun to.
    fn gathers_for(&self) -> Option<Duration> {
        let since_ns = self.gathering_since_ns?;
        if self.builder.payload_blocks() >= GATHER_BLOCKS {
            return Some(Duration::ZERO);
        }
        let gathered_ns = self.clock.now().monotonic_ns.saturating_sub(since_ns);
        Some(GATHER_TIME.saturating_sub(Duration::from_nanos(gathered_ns)))
    }

    /// Longest time until `poll` has a group to close; what is on its way to the disk wakes by itself.
    pub(crate) fn poll_within(&self) -> Option<Duration> {
        let can_close = self.stopped.is_none() && self.holds_the_last();
        let closes = self.gathers_for().filter(|_| can_close);
        closes.into_iter().chain(self.rests_for()).min()
    }

    /// How much longer answers rest for a copy that is behind.
    fn rests_for(&self) -> Option<Duration> {
        let waits = !(self.visible_waiters.is_empty() && self.durable_waiters.is_empty());
        let slowed = matches!(self.answering(), Answering::Slowed { .. });
        (waits && slowed).then(|| {
            let now_ns = self.clock.now().monotonic_ns;
            let rest = Duration::from_nanos(self.answer_from_ns.saturating_sub(now_ns));
            rest.max(REST_LOOK)
        })
    }

    /// Show, apply and answer what the policy now covers.
    pub(super) fn advance(&mut self) {
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
        if self.may_answer() {
            self.answer_up_to(visible, durable);
        }
        self.answer_administration();
    }

    pub(super) fn answering(&self) -> Answering {
        let copies = self.replicas.as_ref();
        copies.map_or(Answering::AtOnce, |copies| copies.answering)
    }

    /// No copy is so far behind that answers wait for it.
    fn may_answer(&mut self) -> bool {
        let now_ns = match self.answering() {
            Answering::AtOnce => return true,
            Answering::Held => return false,
            Answering::Slowed { .. } => self.clock.now().monotonic_ns,
        };
        now_ns >= self.answer_from_ns
    }

    fn answer_up_to(&mut self, visible: u64, durable: u64) {
        let waiting = self.visible_waiters.len() + self.durable_waiters.len();
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
        let answered = self.visible_waiters.len() + self.durable_waiters.len() < waiting;
        if let (true, Answering::Slowed { rest_ns }) = (answered, self.answering()) {
            self.answer_from_ns = self.clock.now().monotonic_ns + rest_ns;
        }
    }

    fn answer_administration(&mut self) {
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
}
