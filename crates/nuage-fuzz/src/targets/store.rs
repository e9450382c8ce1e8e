//! A copy of a volume on a damaged disk: opened, read, gone over, written to, and opened again.
//!
//! The disk is the simulator's and never fails by itself; what the input changes lies there before the copy is opened.
//! Without `MENDS` every change is one that checksums tell: whatever is read then is something that was written.

use crate::input::{Input, Seed};
use crate::targets::journal::{mend_file, mend_first_block, mend_group, mend_superblock};
use nuage_block::crc32c;
use nuage_journal::{
    BLOCK_BYTES, BaseRead, Closing, Entry, Group, GroupBuilder, Kind, Retention, SEGMENT_BYTES_MIN,
    Store, StoreEvent, TailRule, VolumeSpec, Wanted, chain_of,
};
use nuage_sim_storage::{Medium, SimDisk};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

const BLOCKS: u64 = 96;
const EPOCH: u64 = 3;
/// Checksums, digests and the chain are made to fit what was changed.
const MENDS: u8 = 1;
const ONE_OF_SEVERAL: u8 = 2;
/// The image of a copy that lost its power, not of one that was closed.
const CRASHED: u8 = 4;
/// Steps of a loop that must come to its end by itself.
const STEPS_MAX: usize = 20_000;
const FOOTER_AT: usize = 84;

type Files = BTreeMap<String, Vec<u8>>;
type Copy = Store<SimDisk>;

pub fn spec() -> VolumeSpec {
    VolumeSpec {
        volume: [7; 16],
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
        logical_block_bytes: 512,
        segment_bytes: SEGMENT_BYTES_MIN,
        encrypted: false,
        created_ns: 1,
    }
}

/// What the record of `value` wrote to a block.
fn content(lba: u64, value: u8) -> Vec<u8> {
    let mut block = vec![value; BLOCK_BYTES];
    block[..8].copy_from_slice(&lba.to_le_bytes());
    block
}

fn next_group(store: &Copy, fill: impl FnOnce(&mut GroupBuilder)) -> Group {
    let (tail, epoch) = (store.tail(), store.superblock().promised);
    let mut builder = GroupBuilder::new([7; 16], epoch, tail.seq + 1, false);
    fill(&mut builder);
    let (blocks, header_bytes) = (builder.total_blocks(), builder.header_bytes());
    builder.finish(&Closing {
        segment: store.segment_for(epoch, blocks, header_bytes),
        time_ns: 100 + tail.seq,
        stable_seq: store.durable_seq(),
        previous_chain: tail.chain,
    })
}

fn settle(store: &mut Copy) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    for _ in 0..STEPS_MAX {
        store.poll(&mut events);
        if store.is_idle() || store.failure().is_some() {
            return events;
        }
    }
    panic!("the store never comes to rest");
}

/// The disks of a volume of a few segments, closed and crashed.
struct Images {
    closed: Files,
    crashed: Files,
}

fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let medium = Medium::new(1);
        let mut disk = SimDisk::new(&medium, 1);
        Store::create(&mut disk, &spec()).expect("an empty disk takes a volume");
        let mut store = Store::open(disk, None, TailRule::Only).expect("what was just made");
        store.promise(EPOCH).expect("newer than none");
        for value in 0..9u8 {
            let group = next_group(&store, |builder| {
                let first = u64::from(value) * 7 % BLOCKS;
                let data: Vec<u8> = (first..first + 9)
                    .flat_map(|lba| content(lba, value))
                    .collect();
                builder.push_write(Kind::Write, 0, first, &data, None);
                builder.push_plain(Kind::Unmap, 0, first + 8, 1, &[]);
                builder.push_plain(Kind::Mark, 0, 0, 9, &[b'a' + value]);
                if value == 5 {
                    builder.push_plain(Kind::Rollback, 0, 0, 8, &[]);
                }
            });
            store.append(EPOCH, Arc::new(group)).expect("it follows");
            settle(&mut store);
            store.set_committed(store.tail().seq);
            if value == 3 {
                store.checkpoint(true);
            }
            settle(&mut store);
        }
        let crashed = medium.borrow().files().clone();
        store.close().expect("a sound disk");
        let closed = medium.borrow().files().clone();
        Images { closed, crashed }
    })
}

/// Block 0 of a segment with a seal.
pub fn sealed_first_block() -> Vec<u8> {
    let files = &images().closed;
    let sealed = files
        .values()
        .find(|bytes| bytes.len() > 704 && bytes[512..].starts_with(b"NUAGSEAL"));
    sealed.expect("the volume has several segments")[..BLOCK_BYTES].to_vec()
}

fn is_segment(name: &str) -> bool {
    name.starts_with("seg.")
}

/// Change files as the input says; tells which.
fn damage(files: &mut Files, input: &mut Input<'_>) -> BTreeSet<String> {
    let mut changed = BTreeSet::new();
    for _ in 0..32 {
        if input.is_empty() || files.is_empty() {
            break;
        }
        let names: Vec<String> = files.keys().cloned().collect();
        let name = &names[usize::from(input.u8()) % names.len()];
        let Some(bytes) = files.get_mut(name) else {
            continue;
        };
        let act = input.u8();
        let blocks = bytes.len().div_ceil(BLOCK_BYTES).max(1);
        let block = usize::from(input.u8()) % blocks * BLOCK_BYTES;
        let place = block..(block + BLOCK_BYTES).min(bytes.len());
        match act % 8 {
            0..=3 => {
                let at = block + usize::from(input.u16()) % BLOCK_BYTES;
                let noise = input.sized();
                let end = (at + noise.len()).min(bytes.len());
                if at < end {
                    bytes[at..end].copy_from_slice(&noise[..end - at]);
                }
            }
            4 => bytes[place].fill(0),
            5 => {
                let from = usize::from(input.u8()) % blocks * BLOCK_BYTES;
                let from = from..(from + place.len()).min(bytes.len());
                bytes.copy_within(from, place.start);
            }
            6 => bytes.truncate(block + usize::from(input.u16()) % BLOCK_BYTES),
            _ => {
                if input.u8() & 1 == 0 {
                    files.remove(name);
                } else {
                    let other = &names[usize::from(input.u8()) % names.len()];
                    let copy = bytes.clone();
                    files.insert(other.clone(), copy);
                    changed.insert(other.clone());
                }
            }
        }
        changed.insert(name.clone());
    }
    changed
}

fn word(bytes: &[u8], at: usize) -> usize {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    found.map_or(0, |word| u32::from_le_bytes(*word) as usize)
}

/// Checksums of a segment's groups, the chain through them, and a footer and a seal that say the same.
fn mend_segment(bytes: &mut [u8]) {
    if bytes.len() < 2 * BLOCK_BYTES || !bytes.starts_with(b"NUAGSEG1") {
        return;
    }
    let mut chain: [u8; 32] = bytes[72..104].try_into().unwrap_or_default();
    let mut footer = Vec::new();
    let mut at = BLOCK_BYTES;
    while bytes
        .get(at..)
        .is_some_and(|rest| rest.starts_with(b"NUAGGRP1") && rest.len() >= 160)
    {
        bytes[at + 80..at + 112].copy_from_slice(&chain);
        mend_group(&mut bytes[at..]);
        let header = word(bytes, at + 12).clamp(160, bytes.len() - at);
        let header = &bytes[at..at + header];
        chain = chain_of(header);
        footer.extend_from_slice(header);
        let blocks = header.len().div_ceil(BLOCK_BYTES) + word(header, 60).min(1 << 12);
        at += blocks * BLOCK_BYTES;
    }
    if bytes[512..].starts_with(b"NUAGSEAL") {
        let crc = crc32c(&footer);
        let seal = &mut bytes[512..];
        seal[48..80].copy_from_slice(&chain);
        let length = u32::try_from(footer.len()).unwrap_or(u32::MAX);
        seal[FOOTER_AT + 4..FOOTER_AT + 8].copy_from_slice(&length.to_le_bytes());
        seal[FOOTER_AT + 8..FOOTER_AT + 12].copy_from_slice(&crc.to_le_bytes());
        let place = word(seal, 80);
        if let Some(place) = bytes.get_mut(place..place + footer.len()) {
            place.copy_from_slice(&footer);
        }
    }
    mend_first_block(bytes);
}

fn mend(files: &mut Files, changed: &BTreeSet<String>) {
    for name in changed {
        let Some(bytes) = files.get_mut(name) else {
            continue;
        };
        if is_segment(name) {
            mend_segment(bytes);
        } else if name.starts_with("super.") {
            mend_superblock(bytes);
        } else {
            mend_file(bytes);
        }
    }
}

fn open(medium: &Rc<RefCell<Medium>>, tail: TailRule) -> Option<Copy> {
    let mut store = Store::open(SimDisk::new(medium, 1), None, tail).ok()?;
    store.set_retention(Retention {
        window_ns: 300,
        window_bytes: u64::from(SEGMENT_BYTES_MIN),
        strict: false,
    });
    Some(store)
}

/// All mapped blocks; where `is_told`, a block that is read is one that was written there.
fn read_all(store: &mut Copy, entries: Vec<(u64, Entry)>, is_told: bool) {
    for (tag, (lba, entry)) in (1..).zip(entries.into_iter().take(200)) {
        let wanted = Wanted {
            entry,
            lba,
            buffer_offset: 0,
        };
        store.read(tag, vec![wanted], Vec::new());
        let read = settle(store).into_iter().find_map(|event| match event {
            StoreEvent::Read {
                tag: found,
                outcome,
            } if found == tag => Some(outcome),
            _ => None,
        });
        let Some(outcome) = read else {
            assert!(store.failure().is_some(), "a read that never ends");
            return;
        };
        if outcome.error.is_none() {
            assert_eq!(outcome.buffer.len(), BLOCK_BYTES);
            let value = outcome.buffer[BLOCK_BYTES - 1];
            let is_written = value < 9 && outcome.buffer == content(lba, value);
            assert!(is_written || !is_told, "block {lba} was never written so");
        }
    }
}

/// Everything that reads a copy's past and its log.
fn look(store: &mut Copy) {
    let (horizon, applied) = (store.horizon_seq(), store.applied_seq());
    let _ = store.verify_chain(0, u64::MAX);
    let _ = store.history(0, 64);
    let _ = store.made_after(0);
    let _ = store.holdings();
    let (_, _) = (store.marks(), store.history_bytes());
    for seq in [horizon, applied / 2, applied] {
        let _ = store.view(seq);
        let _ = store.read_groups(seq, 1 << 20);
        let _ = store.chain_at(seq);
    }
    if let Ok(mut reader) = store.base_reader(applied) {
        for _ in 0..64 {
            match store.next_base(&mut reader, 16) {
                Ok(BaseRead::Group(_)) => {}
                _ => break,
            }
        }
    }
    store.begin_scrub(0);
    for step in 0.. {
        assert!(step < STEPS_MAX, "a scrub that never ends");
        match store.scrub_next() {
            Ok(step) if !step.is_over => {}
            _ => break,
        }
    }
    for wish in store.take_wishes() {
        let found = store.stored_version(wish).ok().flatten();
        if !found.is_some_and(|stored| store.mend(wish, &stored).unwrap_or(false)) {
            store.give_up(wish);
        }
    }
}

/// Go on as a head does that begins: with an epoch of its own.
fn write(store: &mut Copy) {
    let epoch = store.superblock().promised.saturating_add(1);
    if store.promise(epoch).is_err() || store.tail().seq > u64::MAX / 2 {
        return;
    }
    let group = next_group(store, |builder| {
        builder.push_write(Kind::Write, 0, 3, &content(3, 1), None);
    });
    if store.append(epoch, Arc::new(group)).is_ok() {
        settle(store);
        store.set_committed(store.tail().seq);
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let images = images();
    let image = if mode & CRASHED == 0 {
        &images.closed
    } else {
        &images.crashed
    };
    let mut files = image.clone();
    let changed = damage(&mut files, &mut input);
    if mode & MENDS != 0 {
        mend(&mut files, &changed);
    }
    let is_told = mode & MENDS == 0;
    let tail = if mode & ONE_OF_SEVERAL == 0 {
        TailRule::Only
    } else {
        TailRule::OneOfSeveral
    };
    let medium = Medium::with_files(1, files);
    let Some(store) = open(&medium, tail) else {
        return;
    };
    // Opened once, a copy is opened again, and is what it was.
    let before = (
        store.tail(),
        store.applied_seq(),
        store.superblock().promised,
    );
    let whole = store.is_whole();
    drop(store);
    let mut store =
        Store::open(SimDisk::new(&medium, 1), None, tail).expect("what was opened is opened again");
    let after = (
        store.tail(),
        store.applied_seq(),
        store.superblock().promised,
    );
    assert_eq!((after, store.is_whole()), (before, whole));
    let entries: Vec<(u64, Entry)> = store.state().index.entries().collect();
    read_all(&mut store, entries, is_told);
    look(&mut store);
    write(&mut store);
    let _ = store.enforce_retention(1 << 40);
    settle(&mut store);
    store.checkpoint(false);
    settle(&mut store);
    if store.failure().is_none() && store.close().is_ok() {
        drop(store);
        let opened = Store::open(SimDisk::new(&medium, 1), None, tail);
        let mut store = opened.expect("what was closed is opened again");
        let entries: Vec<(u64, Entry)> = store.state().index.entries().collect();
        read_all(&mut store, entries, is_told);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let names: Vec<&String> = images().closed.keys().collect();
    let mut seeds = Vec::new();
    for mode in 0..8 {
        seeds.push(vec![mode]);
        for (number, name) in (0..).zip(&names) {
            let seed = Seed::default().u8(mode).u8(number);
            // A group's header, a first block, a whole block of zeros; of small files a field.
            let block = u8::from(is_segment(name));
            seeds.push(seed.clone().u8(0).u8(block).u16(57).sized(&[2]).0);
            seeds.push(seed.clone().u8(0).u8(0).u16(33).sized(&[9]).0);
            seeds.push(seed.clone().u8(4).u8(block).0);
            seeds.push(seed.u8(7).u8(0).u8(0).0);
        }
    }
    seeds
}
