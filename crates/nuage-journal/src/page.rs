//! The entries of 2 MiB of a volume, in 7 bytes each where their segments lie within a TiB of slots.

use std::sync::Arc;

use crate::index::Entry;

/// Entries of a page: 512 × 4 KiB = 2 MiB of volume.
pub const PAGE_ENTRIES: usize = 512;

const NARROW_BYTES: usize = 7;
/// Bits of an entry below its slot.
const PLACE_BITS: u32 = 42;
/// Slots that a narrow page can name: 14 bits.
const NARROW_SLOTS: u32 = 1 << (8 * NARROW_BYTES as u32 - PLACE_BITS);
const NARROW_MASK: u64 = (1 << (8 * NARROW_BYTES)) - 1;

/// Entries with their slots counted from `first_slot`. The bytes lie apart from what counts their owners: 3584 is a
/// size that allocators have, and a word more would have each page take 4 KiB.
#[derive(Clone)]
#[allow(clippy::redundant_allocation)] // the bytes alone are of a size that allocators have
pub struct Narrow {
    first_slot: u32,
    bytes: Arc<Box<NarrowBytes>>,
}

type NarrowBytes = [u8; PAGE_ENTRIES * NARROW_BYTES];

impl Narrow {
    fn empty(first_slot: u32) -> Self {
        Self {
            first_slot,
            bytes: Arc::new(Box::new([0; PAGE_ENTRIES * NARROW_BYTES])),
        }
    }

    fn get(&self, at: usize) -> Entry {
        // Read in one piece of 8, which the last entry has to its end and all others from their beginning.
        let from = (at * NARROW_BYTES).min(PAGE_ENTRIES * NARROW_BYTES - 8);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[from..from + 8]);
        let stored = u64::from_le_bytes(bytes) >> (8 * (at * NARROW_BYTES - from));
        match stored & NARROW_MASK {
            0 => Entry::UNMAPPED,
            stored => Entry(stored + (u64::from(self.first_slot) << PLACE_BITS)),
        }
    }

    /// False when the entry does not fit.
    fn set(&mut self, at: usize, entry: Entry) -> bool {
        let stored = if entry.is_mapped() {
            let first = u64::from(self.first_slot) << PLACE_BITS;
            match entry.0.checked_sub(first) {
                Some(stored) if stored != 0 && stored <= NARROW_MASK => stored,
                _ => return false,
            }
        } else {
            0
        };
        let bytes = Arc::make_mut(&mut self.bytes);
        let target = &mut bytes[at * NARROW_BYTES..(at + 1) * NARROW_BYTES];
        target.copy_from_slice(&stored.to_le_bytes()[..NARROW_BYTES]);
        true
    }
}

/// A page; clones share it until one of them is changed.
#[derive(Clone)]
pub enum Page {
    Narrow(Narrow),
    Wide(Arc<[Entry; PAGE_ENTRIES]>),
}

impl Page {
    /// Without mapped entries; the first will be of about `slot`.
    pub fn empty(slot: u32) -> Self {
        Self::Narrow(Narrow::empty(slot.saturating_sub(NARROW_SLOTS / 2)))
    }

    /// As small as these entries can be held.
    pub fn of(entries: &[Entry; PAGE_ENTRIES]) -> Self {
        let slots = entries.iter().filter(|entry| entry.is_mapped());
        let slots = slots.map(|entry| entry.slot());
        let least = slots.clone().min().unwrap_or(0);
        let span = slots.max().unwrap_or(0) - least;
        // Room on both sides for what comes.
        let room = NARROW_SLOTS.saturating_sub(span + 1) / 2;
        let mut narrow = Narrow::empty(least.saturating_sub(room));
        let mut pairs = (0..).zip(entries);
        if pairs.all(|(at, entry)| narrow.set(at, *entry)) {
            Self::Narrow(narrow)
        } else {
            Self::Wide(Arc::new(*entries))
        }
    }

    pub fn get(&self, at: usize) -> Entry {
        match self {
            Self::Narrow(page) => page.get(at),
            Self::Wide(page) => page[at],
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> + Clone {
        (0..PAGE_ENTRIES).map(|at| self.get(at))
    }

    pub fn mapped_count(&self) -> u64 {
        let mapped = self.entries().filter(|entry| entry.is_mapped());
        mapped.count() as u64
    }

    /// Returns what was there.
    pub fn set(&mut self, at: usize, entry: Entry) -> Entry {
        let old = self.get(at);
        let fits = match self {
            Self::Narrow(page) => page.set(at, entry),
            Self::Wide(page) => {
                Arc::make_mut(page)[at] = entry;
                true
            }
        };
        if !fits {
            let mut entries = [Entry::UNMAPPED; PAGE_ENTRIES];
            for (target, entry) in entries.iter_mut().zip(self.entries()) {
                *target = entry;
            }
            entries[at] = entry;
            *self = Self::of(&entries);
        }
        old
    }

    /// True when both are one page in memory.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Narrow(one), Self::Narrow(other)) => Arc::ptr_eq(&one.bytes, &other.bytes),
            (Self::Wide(one), Self::Wide(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS_MAX: u32 = (1 << 22) - 1;

    fn of(slot: u32) -> Entry {
        Entry::new(slot, 5, 3, 77)
    }

    #[test]
    fn entries_of_slots_within_a_tib_take_seven_bytes_wherever_they_begin() {
        for first in [1, 40_000, SLOTS_MAX - NARROW_SLOTS + 1] {
            let mut page = Page::empty(first);
            let slots = [first, first + NARROW_SLOTS - 1, first + 100];
            for (at, slot) in slots.iter().enumerate() {
                page.set(at, of(*slot));
            }
            assert!(matches!(page, Page::Narrow(_)));
            for (at, slot) in slots.iter().enumerate() {
                assert_eq!(page.get(at), of(*slot));
            }
        }
        assert!(size_of::<Narrow>() + 4 * size_of::<usize>() < 8 * PAGE_ENTRIES);
    }

    #[test]
    fn a_page_whose_slots_lie_far_apart_holds_them_all_the_same() {
        let mut page = Page::empty(1);
        let before = page.clone();
        assert_eq!(page.set(7, of(1)), Entry::UNMAPPED);
        assert_eq!(page.set(511, of(SLOTS_MAX)), Entry::UNMAPPED);
        assert_eq!(page.set(7, of(NARROW_SLOTS)), of(1));
        assert!(matches!(page, Page::Wide(_)));
        assert_eq!(
            (page.get(7), page.get(511)),
            (of(NARROW_SLOTS), of(SLOTS_MAX))
        );
        assert_eq!((page.mapped_count(), before.mapped_count()), (2, 0));
        page.set(7, Entry::UNMAPPED);
        assert_eq!(page.mapped_count(), 1);
    }
}
