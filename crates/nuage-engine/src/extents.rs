//! Which parts of a range hold data.

use nuage_block::Extent;
use nuage_journal::{BLOCK_BYTES, Index};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Extents in one answer; NBD and GET LBA STATUS both allow to answer for less than was asked.
const EXTENTS_MAX: usize = 4096;

/// Extents of `offset..offset + length` by `index`, with `newer` ranges (lba, blocks, mapped) on top.
pub(crate) fn extents(
    index: &Index,
    newer: impl Iterator<Item = (u64, u64, bool)>,
    offset: u64,
    length: u64,
) -> Vec<Extent> {
    let end = offset + length;
    let mut runs: Vec<(u64, bool)> = Vec::new(); // start of each run
    let mut at = offset / BLOCK;
    let limit = end.div_ceil(BLOCK);
    let mut covered = limit;
    while at < limit {
        if runs.len() >= EXTENTS_MAX {
            covered = at;
            break;
        }
        let (mapped, next) = index.run_end(at, limit);
        runs.push((at, mapped));
        at = next;
    }
    for (lba, blocks, mapped) in newer {
        paint(&mut runs, lba, (lba + blocks).min(covered), mapped);
    }
    let mut extents: Vec<Extent> = Vec::with_capacity(runs.len());
    for (at, (start, mapped)) in runs.iter().enumerate() {
        let stop = runs.get(at + 1).map_or(covered, |next| next.0);
        let start = (start * BLOCK).max(offset);
        let stop = (stop * BLOCK).min(end);
        match extents.last_mut() {
            Some(last) if last.mapped == *mapped => last.length += stop - start,
            _ => extents.push(Extent {
                offset: start,
                length: stop - start,
                mapped: *mapped,
            }),
        }
    }
    extents
}

/// Set `start..stop` in a list of run starts.
fn paint(runs: &mut Vec<(u64, bool)>, start: u64, stop: u64, mapped: bool) {
    let Some(first) = runs.first().map(|run| run.0) else {
        return;
    };
    let start = start.max(first);
    if start >= stop {
        return;
    }
    let after = runs
        .iter()
        .rev()
        .find(|run| run.0 <= stop)
        .map_or(mapped, |run| run.1);
    let from = runs.partition_point(|run| run.0 < start);
    let to = runs.partition_point(|run| run.0 <= stop);
    runs.splice(from..to, [(start, mapped), (stop, after)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuage_journal::Entry;

    #[test]
    fn newer_ranges_lie_over_the_index() {
        let mut index = Index::default();
        for lba in 4..8 {
            index.set(lba, Entry::new(1, 1, 1, 1));
        }
        let found = extents(
            &index,
            [(2, 3, true), (6, 1, false)].into_iter(),
            0,
            10 * BLOCK,
        );
        let flat: Vec<(u64, u64, bool)> = found
            .iter()
            .map(|e| (e.offset / BLOCK, e.length / BLOCK, e.mapped))
            .collect();
        assert_eq!(
            flat,
            [
                (0, 2, false),
                (2, 4, true),
                (6, 1, false),
                (7, 1, true),
                (8, 2, false)
            ]
        );
    }
}
