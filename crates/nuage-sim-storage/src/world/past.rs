//! History: each moment of it equals a replay of the log up to there, by a model that has no index.

use nuage_journal::{Group, Kind, Store};

use super::{BLOCKS, Role, SimDisk, World};

/// Moments compared in a world.
const MOMENTS: usize = 6;

/// What each block is: the low bits of its checksum, or nothing.
type Picture = Vec<Option<u32>>;

impl World {
    /// The present view equals the index, and random moments equal the model's.
    pub(super) fn check_past(&mut self, head: usize) -> Result<(), String> {
        let draws: Vec<u64> = (0..MOMENTS).map(|_| self.prng.draw()).collect();
        let Role::Head(found) = &mut self.nodes[head].role else {
            return Ok(());
        };
        let store = found.store_mut();
        let applied = store.applied_seq();
        if seen_at(store, applied)? != picture_of(&store.state().index) {
            return Err("the view of now differs from the index".into());
        }
        let moments = replay(store)?;
        for draw in draws {
            let (seq, expected) = &moments[(draw % moments.len() as u64) as usize];
            if seen_at(store, *seq)? != *expected {
                return Err(format!("the view of {seq} differs from the log up to it"));
            }
            self.outcome.views_checked += 1;
        }
        Ok(())
    }
}

fn picture_of(index: &nuage_journal::Index) -> Picture {
    let entries = (0..BLOCKS).map(|lba| index.get(lba));
    entries
        .map(|entry| entry.is_mapped().then(|| entry.crc_bits()))
        .collect()
}

fn seen_at(store: &mut Store<SimDisk>, seq: u64) -> Result<Picture, String> {
    let view = store.view(seq);
    view.map(|view| picture_of(&view.index))
        .map_err(|error| format!("view of {seq}: {error}"))
}

/// Every end of a group from the horizon on, with what the volume was then.
fn replay(store: &mut Store<SimDisk>) -> Result<Vec<(u64, Picture)>, String> {
    let mut seq = store.horizon_seq();
    let applied = store.applied_seq();
    let mut picture = seen_at(store, seq)?;
    let mut moments = vec![(seq, picture.clone())];
    while seq < applied {
        let Ok(bytes) = store.read_groups(seq, 1 << 20) else {
            break; // rotten
        };
        let mut at = 0;
        while at < bytes.len() && seq < applied {
            let Ok(group) = Group::decode(&bytes[at..]) else {
                return Ok(moments); // rotten: nothing is known of what follows
            };
            at += group.total_bytes() as usize;
            apply(&mut picture, &group);
            seq = group.head.info.last_seq();
            moments.push((seq, picture.clone()));
        }
        if bytes.is_empty() {
            break;
        }
    }
    Ok(moments)
}

fn apply(picture: &mut Picture, group: &Group) {
    for descriptor in &group.head.descriptors {
        let first = descriptor.lba as usize;
        match descriptor.kind {
            Kind::Write | Kind::CompareAndWrite => {
                let blocks = descriptor.blocks as usize;
                let tail_bytes = descriptor.tail.len() / blocks.max(1);
                for block in 0..blocks {
                    let crc = &descriptor.tail[block * tail_bytes..][..4];
                    let crc = u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]);
                    picture[first + block] = Some(crc & 0x7_ffff);
                }
            }
            Kind::Zero | Kind::Unmap => {
                let end = (first + descriptor.argument as usize).min(picture.len());
                picture[first..end].fill(None);
            }
            _ => {}
        }
    }
}
