//! What was lately written, in memory: commits go past the page cache, and what is read soon is mostly what
//! was written last. The payloads are those that go to the disk: nothing is copied for this.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::disk::BLOCK_BYTES;
use crate::layout::Group;
use crate::reading::Wanted;

/// Payload bytes kept at most, and of a segment at most the half: what is sealed is read from the disk.
const RECENT_BYTES_MAX: usize = 32 << 20;
/// An idle volume keeps nothing.
const RECENT_TIME_NS: u64 = 30_000_000_000;

/// By slot and first block of the group.
type Place = (u32, u32);

/// Groups lately taken; none by default.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    groups: HashMap<Place, Arc<Group>>,
    order: VecDeque<Place>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(crate) fn new(segment_bytes: u32) -> Self {
        Self {
            bytes_max: RECENT_BYTES_MAX.min(segment_bytes as usize / 2),
            ..Self::default()
        }
    }

    pub(crate) fn insert(&mut self, place: Place, group: &Arc<Group>) {
        let bytes = payload_bytes(group);
        if bytes == 0 || bytes > self.bytes_max {
            return;
        }
        if self.groups.insert(place, Arc::clone(group)).is_none() {
            self.order.push_back(place);
            self.bytes += bytes;
        }
        while self.bytes > self.bytes_max {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front();
        if let Some(group) = oldest.and_then(|place| self.groups.remove(&place)) {
            self.bytes -= payload_bytes(&group);
        }
    }

    /// Forget what was written long before `now_ns` (UTC).
    pub(crate) fn forget_old(&mut self, now_ns: u64) {
        while let Some(group) = self.order.front().and_then(|place| self.groups.get(place)) {
            if group.head.info.time_ns.saturating_add(RECENT_TIME_NS) > now_ns {
                return;
            }
            self.forget_oldest();
        }
    }

    pub(crate) fn forget_slot(&mut self, slot: u32) {
        self.order.retain(|(found, _)| *found != slot);
        let bytes = &mut self.bytes;
        self.groups.retain(|(found, _), group| {
            let keep = *found != slot;
            if !keep {
                *bytes -= payload_bytes(group);
            }
            keep
        });
    }

    /// Copy what is here into `buffer`, as stored; returns the others.
    pub(crate) fn fill(&self, wanted: &[Wanted], buffer: &mut Vec<u8>) -> Vec<Wanted> {
        let ends = wanted
            .iter()
            .map(|wanted| wanted.buffer_offset + BLOCK_BYTES);
        let end = ends.max().unwrap_or(0);
        let is_elsewhere = |wanted: &&Wanted| match self.block(wanted) {
            Some(block) => {
                if buffer.len() < end {
                    buffer.resize(end, 0);
                }
                let at = wanted.buffer_offset;
                buffer[at..at + BLOCK_BYTES].copy_from_slice(block);
                false
            }
            None => true,
        };
        wanted.iter().filter(is_elsewhere).copied().collect()
    }

    fn block(&self, wanted: &Wanted) -> Option<&[u8; BLOCK_BYTES]> {
        let entry = wanted.entry;
        let place = (entry.slot(), entry.block().checked_sub(entry.back())?);
        let group = self.groups.get(&place)?;
        let index = entry.back().checked_sub(group.head.info.header_blocks())? as usize;
        (index < group.payload.count()).then(|| group.payload.page(index))
    }
}

fn payload_bytes(group: &Group) -> usize {
    group.payload.len()
}
