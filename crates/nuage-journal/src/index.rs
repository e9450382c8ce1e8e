//! Where each block of a volume lies: `LBA → entry`, three levels, shared copy-on-write (§4).

use std::sync::Arc;

use crate::page::{PAGE_ENTRIES, Page};

const NODE_PAGES: usize = 512;

/// Where a block lies, in 8 bytes; zero means unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Entry(pub u64);

impl Entry {
    pub const UNMAPPED: Entry = Entry(0);

    /// `block` is the position in the segment, `back` the distance to the group's header.
    pub fn new(slot: u32, block: u32, back: u32, crc: u32) -> Self {
        debug_assert!(slot < 1 << 22 && block < 1 << 14 && back < 1 << 9);
        Self(
            u64::from(slot) << 42
                | u64::from(block) << 28
                | u64::from(back) << 19
                | u64::from(crc & 0x7_ffff),
        )
    }

    pub fn is_mapped(self) -> bool {
        self.0 != 0
    }

    pub fn slot(self) -> u32 {
        (self.0 >> 42) as u32
    }

    pub fn block(self) -> u32 {
        (self.0 >> 28) as u32 & 0x3fff
    }

    pub fn back(self) -> u32 {
        (self.0 >> 19) as u32 & 0x1ff
    }

    /// The low bits of the block's checksum.
    pub fn crc_bits(self) -> u32 {
        self.0 as u32 & 0x7_ffff
    }

    /// True when `crc` has the low bits that the index remembers.
    pub fn matches_crc(self, crc: u32) -> bool {
        (self.0 as u32 ^ crc) & 0x7_ffff == 0
    }
}

#[derive(Clone)]
struct Node {
    pages: [Option<Page>; NODE_PAGES],
}

/// The map of one volume at one point of its history. A clone shares all pages.
#[derive(Clone, Default)]
pub struct Index {
    nodes: Vec<Option<Arc<Node>>>,
    mapped: u64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Index({} mapped)", self.mapped)
    }
}

#[allow(clippy::cast_possible_truncation)]
fn place(lba: u64) -> (usize, usize, usize) {
    let page = lba / PAGE_ENTRIES as u64;
    (
        (page / NODE_PAGES as u64) as usize,
        (page % NODE_PAGES as u64) as usize,
        (lba % PAGE_ENTRIES as u64) as usize,
    )
}

impl Index {
    /// Blocks that are mapped.
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    fn page(&self, number: u64) -> Option<&Page> {
        let (node, page, _) = place(number * PAGE_ENTRIES as u64);
        self.nodes.get(node)?.as_ref()?.pages[page].as_ref()
    }

    pub fn get(&self, lba: u64) -> Entry {
        let (node, page, entry) = place(lba);
        self.nodes
            .get(node)
            .and_then(Option::as_ref)
            .and_then(|node| node.pages[page].as_ref())
            .map_or(Entry::UNMAPPED, |page| page.get(entry))
    }

    fn page_mut(&mut self, node: usize, page: usize) -> &mut Option<Page> {
        if self.nodes.len() <= node {
            self.nodes.resize(node + 1, None);
        }
        let node = self.nodes[node].get_or_insert_with(|| {
            Arc::new(Node {
                pages: [const { None }; NODE_PAGES],
            })
        });
        &mut Arc::make_mut(node).pages[page]
    }

    pub fn set(&mut self, lba: u64, entry: Entry) {
        let (node, page, at) = place(lba);
        if !entry.is_mapped() && !self.get(lba).is_mapped() {
            return;
        }
        let page = self.page_mut(node, page);
        let page = page.get_or_insert_with(|| Page::empty(entry.slot()));
        let old = page.set(at, entry);
        self.mapped += u64::from(entry.is_mapped());
        self.mapped -= u64::from(old.is_mapped());
    }

    /// Unmap `count` blocks from `lba`; whole pages and nodes go at once.
    pub fn unmap(&mut self, lba: u64, count: u64) {
        let end = lba.saturating_add(count).min(self.end());
        let mut at = lba;
        while at < end {
            let (node, page, entry) = place(at);
            let page_end = (at / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64;
            let node_end = (node as u64 + 1) * (PAGE_ENTRIES * NODE_PAGES) as u64;
            let Some(Some(found)) = self.nodes.get_mut(node) else {
                at = node_end;
                continue;
            };
            if found.pages[page].is_none() {
                at = page_end;
            } else if entry == 0 && page_end <= end {
                let gone = Arc::make_mut(found).pages[page].take();
                self.mapped -= gone.map_or(0, |page| page.mapped_count());
                at = page_end;
            } else {
                self.set(at, Entry::UNMAPPED);
                at += 1;
            }
        }
    }

    /// First LBA behind all that may be mapped.
    fn end(&self) -> u64 {
        (self.nodes.len() * NODE_PAGES * PAGE_ENTRIES) as u64
    }

    /// Mapped blocks below `lba`.
    pub fn mapped_below(&self, lba: u64) -> u64 {
        let (whole, rest) = (lba / PAGE_ENTRIES as u64, lba as usize % PAGE_ENTRIES);
        self.pages()
            .take_while(|(number, _)| *number <= whole)
            .map(|(number, page)| {
                let end = if number < whole { PAGE_ENTRIES } else { rest };
                let mapped = page.entries().take(end).filter(|entry| entry.is_mapped());
                mapped.count() as u64
            })
            .sum()
    }

    /// The first `count` mapped blocks from `lba` on.
    pub fn mapped_from(&self, lba: u64, count: usize) -> Vec<(u64, Entry)> {
        let mut found = Vec::with_capacity(count);
        let mut at = lba;
        while found.len() < count && at < self.end() {
            let (node, page, entry) = place(at);
            let Some(Some(pages)) = self.nodes.get(node) else {
                at = (node as u64 + 1) * (PAGE_ENTRIES * NODE_PAGES) as u64;
                continue;
            };
            let first = at - entry as u64;
            if let Some(page) = &pages.pages[page] {
                let mapped = (first..).zip(page.entries()).skip(entry);
                let mapped = mapped.filter(|(_, entry)| entry.is_mapped());
                found.extend(mapped.take(count - found.len()));
            }
            at = first + PAGE_ENTRIES as u64;
        }
        found
    }

    /// Mapped pages by number, in order.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.nodes.iter().enumerate().flat_map(|(number, node)| {
            let pages = node.as_ref().map_or(&[][..], |node| &node.pages[..]);
            pages.iter().enumerate().filter_map(move |(at, page)| {
                page.as_ref()
                    .map(|page| ((number * NODE_PAGES + at) as u64, page))
            })
        })
    }

    /// Mapped blocks and where they lie, in order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        let all = self.pages().flat_map(|(number, page)| {
            let first = number * PAGE_ENTRIES as u64;
            (first..).zip(page.entries())
        });
        all.filter(|(_, entry)| entry.is_mapped())
    }

    /// Put a whole page in place (from a checkpoint).
    pub fn set_page(&mut self, number: u64, page: Page) {
        let (node, at, _) = place(number * PAGE_ENTRIES as u64);
        self.mapped += page.mapped_count();
        let old = self.page_mut(node, at).replace(page);
        self.mapped -= old.map_or(0, |page| page.mapped_count());
    }

    /// End of the run from `lba` of blocks that are all mapped or all not, at most `limit`.
    pub fn run_end(&self, lba: u64, limit: u64) -> (bool, u64) {
        let mapped = self.get(lba).is_mapped();
        let mut at = lba + 1;
        while at < limit {
            let (node, page, entry) = place(at);
            let found = self.nodes.get(node).and_then(Option::as_ref);
            if entry == 0 && found.is_none_or(|node| node.pages[page].is_none()) {
                if mapped {
                    break;
                }
                at = match found {
                    None => (node as u64 + 1) * (PAGE_ENTRIES * NODE_PAGES) as u64,
                    Some(_) => at + PAGE_ENTRIES as u64,
                };
                continue;
            }
            if self.get(at).is_mapped() != mapped {
                break;
            }
            at += 1;
        }
        (mapped, at.min(limit))
    }
}

/// Runs of blocks, `(lba, count)` in order, at which two indexes differ: all that changed between two
/// moments, and what compaction has moved meanwhile.
pub fn changed_runs(before: &Index, after: &Index) -> Vec<(u64, u64)> {
    let none = Page::empty(0);
    let mut numbers: Vec<u64> = before.pages().chain(after.pages()).map(|p| p.0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        let (one, other) = (before.page(number), after.page(number));
        if one.is_some_and(|one| other.is_some_and(|other| one.is_shared_with(other))) {
            continue;
        }
        let pairs = one.unwrap_or(&none).entries();
        let pairs = pairs.zip(other.unwrap_or(&none).entries());
        for ((left, right), at) in pairs.zip(0u64..) {
            if left == right {
                continue;
            }
            let lba = number * PAGE_ENTRIES as u64 + at;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == lba => *count += 1,
                _ => runs.push((lba, 1)),
            }
        }
    }
    runs
}
