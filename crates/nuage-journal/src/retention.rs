//! What leaves when history is full: the horizon moves, dead segments go back to the spares (§7).

use std::collections::HashMap;

use crate::checkpoint::checkpoint_name;
use crate::disk::{Disk, DiskError};
use crate::error::JournalError;
use crate::index::Index;
use crate::layout::Kind;
use crate::segment::{Seal, SegmentHeader, SegmentKind};
use crate::store::{SlotState, Store, StoreEvent};

/// Spares kept of what leaves; more go back to the file system.
const SPARES_MAX: usize = 8;

/// What the rule lets go now: so many anchors, one of them before its time or none.
#[derive(Default)]
struct Due {
    anchors: usize,
    early: bool,
}

impl<D: Disk> Store<D> {
    /// Move the horizon to what the retention rule allows at `now_ns` (UTC) and give back what nothing
    /// refers to any more. Cheap when nothing is due; the owner calls it now and then.
    pub fn enforce_retention(&mut self, now_ns: u64) -> Result<(), JournalError> {
        // A read under way (or a checkpoint) may still want a block of what would leave.
        if self.failed.is_some() || !self.jobs.is_empty() || self.checkpoint_running {
            return Ok(());
        }
        let due = self.due(now_ns);
        for _ in 0..due.anchors {
            let gone = self.anchors.remove(0);
            match self.disk.remove_now(&checkpoint_name(gone.position.seq)) {
                Ok(()) | Err(DiskError::NotFound { .. }) => {}
                Err(error) => return Err(self.fail(error.into())),
            }
        }
        if due.early {
            self.dropped_early_ns = now_ns;
        }
        if !self.finish_moves()? {
            return Ok(());
        }
        if due.anchors > 0 {
            let horizon = self.anchors[0].position;
            self.rollbacks
                .retain(|(_, rollback)| *rollback > horizon.seq);
            self.state.side.marks.retain(|mark| mark.seq >= horizon.seq);
            self.free_dead_segments()?;
            if !self.checkpoint_running {
                let live = live_blocks(&self.view(horizon.seq)?.index);
                if self.compact(&live)? {
                    self.free_dead_segments()?;
                }
            }
            let (seq, time_ns) = (horizon.seq, horizon.time_ns);
            self.events.push(StoreEvent::HorizonMoved { seq, time_ns });
        }
        Ok(())
    }

    /// A strict rule lets go for age alone.
    fn due(&self, now_ns: u64) -> Due {
        let mut due = Due::default();
        while let Some(next) = self.anchors.get(due.anchors + 1) {
            let too_old = next
                .position
                .time_ns
                .saturating_add(self.retention.window_ns)
                < now_ns;
            let horizon = self.anchors[due.anchors].position.seq;
            let too_much = !self.retention.strict
                && self.log_bytes_after(horizon) > self.retention.window_bytes;
            if !too_old && !too_much {
                break;
            }
            due.early |= !too_old;
            due.anchors += 1;
        }
        self.spare_rollbacks(&mut due);
        due
    }

    /// The history never begins between a rollback that it has and the state that was gone back to: a copy that is
    /// made anew from its beginning could not follow the log. What is of age waits until the rollback is,
    /// too; what is too much goes with all up to the rollback.
    fn spare_rollbacks(&self, due: &mut Due) {
        let cuts = |at: usize| {
            let seq = self.anchors[at].position.seq;
            let between = |(to, rollback): &(u64, u64)| *to < seq && seq < *rollback;
            self.rollbacks.iter().any(between)
        };
        while due.anchors > 0 && cuts(due.anchors) {
            if !due.early {
                due.anchors -= 1;
            } else if due.anchors + 1 < self.anchors.len() {
                due.anchors += 1;
            } else {
                due.anchors = 0; // the state after the rollback is still on its way to the disk
            }
        }
        due.early &= due.anchors > 0;
    }

    /// The rollbacks in the log that the history has: a checkpoint after each is pinned.
    pub(crate) fn find_rollbacks(&mut self) {
        let pinned = self.anchors.iter().filter(|anchor| anchor.pinned);
        let pinned: Vec<_> = pinned.map(|anchor| anchor.position).collect();
        let log = self.own_log();
        for position in pinned {
            let slot = log
                .iter()
                .find(|(_, header)| header.segment == position.segment);
            // A segment that cannot be read is the scrub's business.
            let groups = slot.map(|(number, _)| self.groups_of(*number).unwrap_or_default());
            for (head, _) in groups.unwrap_or_default() {
                let records = head.descriptors.iter().zip(head.info.first_seq..);
                let found = records
                    .filter(|(record, seq)| *seq == position.seq && record.kind == Kind::Rollback)
                    .map(|(record, seq)| (record.argument, seq));
                self.rollbacks.extend(found);
            }
        }
    }

    /// Bytes of log that the rule would let go at `now_ns`: an open view holds them back.
    pub fn due_bytes(&self, now_ns: u64) -> u64 {
        let next = self.anchors.get(self.due(now_ns).anchors);
        next.map_or(0, |anchor| {
            self.history_bytes()
                .saturating_sub(self.log_bytes_after(anchor.position.seq))
        })
    }

    /// When history last left before its time for being too much; 0: never since this was opened.
    pub fn dropped_early_ns(&self) -> u64 {
        self.dropped_early_ns
    }

    /// True when a strict rule holds writers up: history is full and may not be dropped.
    pub fn is_history_full(&self) -> bool {
        self.retention.strict && self.history_bytes() > self.retention.window_bytes
    }

    /// Sealed segments of which nobody needs more than the live blocks: bases, logs of the volume
    /// this one was cloned from, own logs that end by the horizon. Those still being sealed are
    /// left out.
    pub(crate) fn sealed_before(
        &self,
        horizon: u64,
    ) -> impl Iterator<Item = (u32, &SegmentHeader, &Seal)> {
        self.slots
            .iter()
            .zip(0u32..)
            .filter_map(move |(slot, number)| {
                let SlotState::Sealed(header, seal) = &slot.as_ref()?.state else {
                    return None;
                };
                let own_log =
                    header.kind == SegmentKind::Log && header.volume == self.superblock.volume;
                let needed = own_log && seal.last_seq > horizon || self.is_staged(header);
                (!needed && !self.footers.contains_key(&number)).then_some((number, header, seal))
            })
    }

    /// Segments before the horizon that its index does not use. Later views use no others of them.
    pub(crate) fn free_dead_segments(&mut self) -> Result<(), JournalError> {
        if !self.moves.is_empty() {
            return Ok(());
        }
        let horizon = self.horizon_seq();
        let index = self.view(horizon)?.index;
        let live = live_blocks(&index);
        let dead: Vec<_> = self
            .sealed_before(horizon)
            .filter(|(number, _, _)| !live.contains_key(number))
            .map(|(number, header, seal)| (number, self.expiry(number, header, seal)))
            .collect();
        let mut spares = self.spare_count();
        for (number, receipt) in dead {
            self.events.push(StoreEvent::Receipt(receipt));
            let shared = match self.file_of(number) {
                Some(file) => self.disk.is_shared(file),
                None => true,
            };
            if spares < SPARES_MAX && !shared {
                self.make_spare(number)?;
                spares += 1;
            } else {
                self.drop_slot(number)?;
            }
        }
        self.free_rotten()
    }

    pub(crate) fn drop_slot(&mut self, number: u32) -> Result<(), JournalError> {
        self.tables.forget_slot(number);
        self.recent.forget_slot(number);
        if let Some(slot) = self.slots[number as usize].take() {
            self.disk.close(slot.file);
            self.disk.remove_now(&crate::store::segment_name(number))?;
        }
        Ok(())
    }
}

/// Blocks that an index uses, by slot.
pub(crate) fn live_blocks(index: &Index) -> HashMap<u32, usize> {
    let mut live = HashMap::new();
    for (_, entry) in index.entries() {
        *live.entry(entry.slot()).or_insert(0) += 1;
    }
    live
}
