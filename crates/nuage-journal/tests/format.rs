//! Groups, checkpoints and superblocks: what is written is read again, what is damaged is refused.

use nuage_block::crc32c;
use nuage_journal::{
    BLOCK_BYTES, Checkpoint, Cipher, Closing, Entry, Group, GroupBuilder, Index, Kind, Position,
    SegmentHeader, SegmentKind, SideState, scan,
};
use proptest::prelude::*;

const VOLUME: [u8; 16] = [4; 16];

fn group(first_seq: u64, previous_chain: [u8; 32], stable_seq: u64, encrypted: bool) -> Group {
    let mut cipher = encrypted.then(|| Cipher::new(&[1; 32]));
    let mut builder = GroupBuilder::new(VOLUME, 3, first_seq, encrypted);
    let data = vec![7; 2 * BLOCK_BYTES];
    builder.push_write(Kind::Write, 0, first_seq % 99 * 10, &data, cipher.as_mut());
    builder.push_plain(Kind::Zero, 0, 5, 100, &[]);
    builder.push_plain(Kind::Mark, 0, 0, 9, b"before the update");
    let closing = Closing {
        segment: 2,
        time_ns: first_seq,
        stable_seq,
        previous_chain,
    };
    builder.finish(&closing)
}

fn bytes_of(group: &Group) -> Vec<u8> {
    [&*group.header, &*group.payload].concat()
}

fn header() -> SegmentHeader {
    SegmentHeader {
        slot: 1,
        volume: VOLUME,
        segment: 2,
        epoch: 3,
        first_seq: 1,
        size_bytes: 1 << 18,
        kind: SegmentKind::Log,
        created_ns: 0,
        previous_chain: [0; 32],
    }
}

/// A segment with three groups, one after the other; each says that all before it are stable.
fn segment() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut places = Vec::new();
    let mut chain = [0; 32];
    for number in 0..3 {
        let made = group(1 + number * 3, chain, number * 3, false);
        chain = made.head.chain;
        places.push(bytes.len());
        bytes.extend_from_slice(&bytes_of(&made));
    }
    bytes.resize(1 << 18, 0);
    (bytes, places)
}

#[test]
fn a_torn_tail_is_cut_off() {
    let (mut bytes, places) = segment();
    bytes[places[2] + BLOCK_BYTES + 9] ^= 1;
    let found = scan(&bytes, &header(), 0);
    assert_eq!((found.groups.len(), found.damaged_at), (2, None));
}

#[test]
fn damage_in_the_middle_is_told_and_not_cut_off() {
    let (mut bytes, places) = segment();
    bytes[places[1] + 60] ^= 1;
    let found = scan(&bytes, &header(), 0);
    assert_eq!(found.groups.len(), 1);
    assert_eq!(found.damaged_at.map(|at| at as usize), Some(places[1]));
}

#[test]
fn payload_damaged_after_it_was_durable_keeps_its_group() {
    let (mut bytes, places) = segment();
    bytes[places[1] + BLOCK_BYTES + 9] ^= 1;
    let found = scan(&bytes, &header(), 0);
    assert_eq!((found.groups.len(), found.damaged_at), (3, None));
}

#[test]
fn what_a_checkpoint_knows_is_no_torn_tail() {
    let (sound, places) = segment();
    let mut bytes = sound.clone();
    bytes[places[2] + BLOCK_BYTES + 9] ^= 1;
    let found = scan(&bytes, &header(), 9);
    let damaged: Vec<bool> = found.groups.iter().map(|group| group.is_damaged).collect();
    assert_eq!(damaged, [false, false, true]);
    assert_eq!(found.damaged_at, None);
    let mut bytes = sound;
    bytes[places[2] + 60] ^= 1;
    let found = scan(&bytes, &header(), 9);
    assert_eq!((found.groups.len(), found.evidence_seq), (2, 9));
    assert_eq!(found.damaged_at.map(|at| at as usize), Some(places[2]));
}

#[test]
fn groups_of_a_former_life_of_the_file_are_not_seen() {
    let (bytes, _) = segment();
    let now = SegmentHeader {
        segment: 8,
        ..header()
    };
    let found = scan(&bytes, &now, 0);
    assert_eq!((found.groups.len(), found.damaged_at), (0, None));
}

proptest! {
    #[test]
    fn a_group_is_read_as_written(seq in 1..1u64 << 40, chain in any::<[u8; 32]>(), aes: bool) {
        let made = group(seq, chain, seq - 1, aes);
        prop_assert_eq!(Group::decode(&bytes_of(&made))?, made);
    }

    #[test]
    fn a_flipped_bit_is_found(at in any::<usize>(), bit in 0u8..8) {
        let made = group(5, [1; 32], 4, false);
        let mut bytes = bytes_of(&made);
        let at = at % bytes.len();
        bytes[at] ^= 1u8 << bit;
        let in_padding = (made.head.info.header_bytes as usize..BLOCK_BYTES).contains(&at);
        prop_assert_eq!(Group::decode(&bytes).is_ok(), in_padding);
    }

    #[test]
    fn of_a_damaged_segment_only_groups_as_written_are_seen(
        edits in proptest::collection::vec(
            (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..64), any::<bool>()), 1..6,
        ),
        cut in 0usize..1 << 18,
    ) {
        let (mut bytes, places) = segment();
        let written = scan(&bytes, &header(), 0).groups;
        let end = places[2] + 4 * BLOCK_BYTES;
        for (at, noise, zeroes) in edits {
            let at = at % end;
            let noise = if zeroes { vec![0; BLOCK_BYTES] } else { noise };
            bytes[at..at + noise.len()].copy_from_slice(&noise);
        }
        bytes.truncate((1 << 18) - cut / 2);
        let found = scan(&bytes, &header(), 0).groups;
        prop_assert!(found.len() <= written.len());
        for (seen, made) in found.iter().zip(&written) {
            prop_assert_eq!((seen.offset, seen.head.chain), (made.offset, made.head.chain));
        }
    }

    #[test]
    fn a_cut_group_is_refused(length in 0usize..3 * BLOCK_BYTES) {
        let bytes = bytes_of(&group(5, [1; 32], 4, true));
        prop_assert!(Group::decode(&bytes[..length]).is_err());
    }

    #[test]
    fn noise_with_a_good_checksum_does_not_panic(mut noise in proptest::collection::vec(any::<u8>(), 160..400)) {
        noise[..8].copy_from_slice(b"NUAGGRP1");
        noise[8..12].copy_from_slice(&[1, 0, 2, 0]);
        let crc = crc32c(&noise[160..]);
        let length = u32::try_from(noise.len()).unwrap_or(0);
        noise[12..16].copy_from_slice(&length.to_le_bytes());
        noise[152..156].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c(&noise[..156]);
        noise[156..160].copy_from_slice(&crc.to_le_bytes());
        prop_assert!(Group::decode(&noise).is_err());
    }

    #[test]
    fn a_checkpoint_is_read_as_written(
        blocks in proptest::collection::btree_map(0..1u64 << 30, (1u32..100, 1u32..100), 0..50),
        cut in any::<usize>(),
    ) {
        let mut index = Index::default();
        for (lba, (slot, block)) in &blocks {
            index.set(*lba, Entry::new(*slot, *block, 1, 77));
        }
        let position = Position { seq: 9, time_ns: 8, epoch: 7, segment: 6, chain: [5; 32] };
        let side = SideState { reservations: vec![1, 2, 3], marks: Vec::new() };
        let made =
            Checkpoint { volume: VOLUME, size_bytes: 1 << 42, position, pinned: true, side, index, life: 0 };
        let bytes = made.to_bytes();
        let read = Checkpoint::decode(&bytes)?;
        prop_assert_eq!(read.index.mapped(), blocks.len() as u64);
        for lba in blocks.keys() {
            prop_assert_eq!(read.index.get(*lba), made.index.get(*lba));
        }
        prop_assert_eq!((read.position, read.side), (made.position, made.side));
        prop_assert!(Checkpoint::decode(&bytes[..cut % bytes.len()]).is_err());
    }

    #[test]
    fn an_index_is_a_map(
        acts in proptest::collection::vec((0u64..5000, 0u64..3000, any::<bool>()), 1..60),
    ) {
        let mut index = Index::default();
        let mut model = std::collections::BTreeSet::new();
        for (lba, count, maps) in acts {
            if maps {
                index.set(lba, Entry::new(1, 2, 1, 3));
                model.insert(lba);
            } else {
                index.unmap(lba, count);
                model.retain(|at| !(lba..lba + count).contains(at));
            }
        }
        prop_assert_eq!(index.mapped(), model.len() as u64);
        let mut at = 0;
        while at < 9000 {
            let (mapped, end) = index.run_end(at, 9000);
            prop_assert!((at..end).all(|lba| model.contains(&lba) == mapped));
            at = end;
        }
    }
}
