//! What rotted in an only copy: told, passed over by compaction, and served all around.
#![allow(clippy::unwrap_used)]

mod single;

use std::path::Path;

use nuage_block::{BlockDevice, Failure, Operation, Outcome};
use nuage_disk::FileDisk;
use nuage_engine::{HeadEvent, Volume, VolumeHead};
use nuage_journal::{JournalError, Retention, StoreEvent};
use single::{create, open, open_as_one_of_several, run, write};

/// Spoil the header of the last group of each segment that has no seal.
fn rot_last_header(directory: &Path) {
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if !bytes.starts_with(b"NUAGSEG1") || bytes[512..].starts_with(b"NUAGSEAL") {
            continue;
        }
        let is_header = |block: &[u8]| block.starts_with(b"NUAGGRP1");
        if let Some(at) = bytes.chunks_exact(4096).rposition(is_header) {
            bytes[at * 4096 + 60] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

/// Change a byte of each block of a volume's files that holds nothing but `fill`; changed again it is as it was.
fn rot(directory: &Path, fill: u8) {
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        for block in bytes.chunks_exact_mut(4096) {
            if block[1..].iter().all(|byte| *byte == fill) {
                block[0] ^= 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

fn scrub(volume: &mut Volume<FileDisk>) {
    volume.with(|head| head.store_mut().begin_scrub(0));
    while !volume.with(|head| head.store_mut().scrub_next().unwrap().is_over) {}
    volume.poll(&mut Vec::new());
}

fn lost(volume: &Volume<FileDisk>) -> Vec<(u64, u64)> {
    volume.with(|head| head.store().lost_blocks())
}

#[test]
fn a_block_of_an_only_copy_that_a_reader_finds_rotten_is_told_until_it_is_sound_again() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut volume = open(directory.path());
    write(&mut volume, 8192, vec![0x5a; 8192]);
    write(&mut volume, 0, vec![1; 4096]);
    volume.with(|head| head.store_mut().close().unwrap());
    drop(volume);
    drop(open(directory.path())); // seals the segment: it is not scanned any more
    rot(directory.path(), 0x5a);
    let mut volume = open(directory.path());
    let read = || Operation::Read {
        offset: 8192,
        length: 4096,
    };
    let rotten = Outcome::Failed(Failure::Checksum { offset: 8192 });
    assert!(run(&mut volume, read()) == rotten);
    volume.poll(&mut Vec::new());
    let told = volume.with(VolumeHead::take_events);
    let is_it = |event: &HeadEvent| matches!(event, HeadEvent::Store(StoreEvent::Lost { lba: 2, seq }) if *seq > 0);
    assert!(told.iter().any(is_it), "{told:?}");
    assert_eq!(lost(&volume), [(2, 1)]);
    assert_eq!(run(&mut volume, read()), rotten, "the next reader, too");
    scrub(&mut volume);
    assert_eq!(lost(&volume), [(2, 2)]);
    rot(directory.path(), 0x5a);
    scrub(&mut volume);
    assert_eq!(lost(&volume), []);
    assert_eq!(run(&mut volume, read()), Outcome::Data(vec![0x5a; 4096]));
}

#[test]
fn the_last_write_before_a_clean_close_that_rots_is_lost_aloud() {
    for only in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        create(directory.path());
        let open = |path: &Path| {
            if only {
                open(path)
            } else {
                open_as_one_of_several(path).unwrap()
            }
        };
        let mut volume = open(directory.path());
        write(&mut volume, 0, vec![1; 4096]);
        write(&mut volume, 8192, vec![0x5a; 4096]);
        volume.with(|head| head.store_mut().close().unwrap());
        drop(volume);
        rot(directory.path(), 0x5a);
        for turn in 0..2 {
            let mut volume = open(directory.path());
            let mut told = Vec::new();
            for _ in 0..2 {
                volume.poll(&mut Vec::new());
                told.extend(volume.with(VolumeHead::take_events));
            }
            let is_it = |event: &HeadEvent| {
                matches!(event, HeadEvent::Store(StoreEvent::Lost { lba: 2, .. }))
            };
            assert!(turn > 0 || told.iter().any(is_it), "{told:?}");
            let mut read = |offset| {
                run(
                    &mut volume,
                    Operation::Read {
                        offset,
                        length: 4096,
                    },
                )
            };
            assert_eq!(
                read(8192),
                Outcome::Failed(Failure::Checksum { offset: 8192 })
            );
            // Of a read that begins in its midst: no address before its own.
            assert_eq!(
                read(9216),
                Outcome::Failed(Failure::Checksum { offset: 9216 })
            );
            assert_eq!(read(0), Outcome::Data(vec![1; 4096]));
            assert_eq!(read(4096), Outcome::Data(vec![0; 4096]));
            write(&mut volume, 4096, vec![0; 4096]);
            volume.with(|head| head.store_mut().close().unwrap());
        }
    }
}

#[test]
fn an_only_copy_whose_last_header_rots_does_not_pass_for_the_volume() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut volume = open_as_one_of_several(directory.path()).unwrap();
    write(&mut volume, 0, vec![1; 4096]);
    write(&mut volume, 8192, vec![0x5a; 4096]);
    volume.with(|head| head.store_mut().close().unwrap());
    drop(volume);
    rot_last_header(directory.path());
    for _ in 0..2 {
        let refused = open_as_one_of_several(directory.path());
        assert_eq!(refused.err(), Some(JournalError::Lost));
    }
    let kept = std::fs::read_dir(directory.path()).unwrap().any(|file| {
        let path = file.unwrap().path();
        let is_aside = path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("quarantine.");
        let holds = |path: &Path| std::fs::read(path).unwrap().ends_with(&[0x5a; 4096]);
        is_aside && holds(&path)
    });
    assert!(kept, "what had been written is kept for people");
}

#[test]
fn compaction_passes_over_what_is_damaged_and_the_volume_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut volume = open(directory.path());
    // A block that stays in each of many segments.
    for number in 0..24u64 {
        for (offset, fill, blocks) in [(number, 0x5a, 1), (1024, 1, 60)] {
            let operation = Operation::Write {
                offset: offset * 4096,
                data: vec![fill; blocks * 4096].into(),
                fua: false,
            };
            assert_eq!(run(&mut volume, operation), Outcome::Done);
        }
    }
    volume.with(|head| head.store_mut().close().unwrap());
    drop(volume);
    let segments = |kind: u8| -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(directory.path()).unwrap();
        let paths = files.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| {
                let bytes = std::fs::read(path).unwrap();
                bytes.starts_with(b"NUAGSEG1")
                    && bytes[60] == kind
                    && bytes[512..].starts_with(b"NUAGSEAL")
            })
            .collect()
    };
    // One whose headers and footer are both gone, and a block that another has kept.
    let mut damaged = segments(0).into_iter();
    let footer = damaged.next().unwrap();
    let mut bytes = std::fs::read(&footer).unwrap();
    let at = u32::from_le_bytes(bytes[512 + 84..512 + 88].try_into().unwrap()) as usize;
    bytes[at + 51] ^= 1;
    for block in bytes
        .chunks_exact_mut(4096)
        .filter(|block| block.starts_with(b"NUAGGRP1"))
    {
        block[50] ^= 1;
    }
    std::fs::write(&footer, bytes).unwrap();
    let block = damaged.next().unwrap();
    let mut bytes = std::fs::read(&block).unwrap();
    let kept = |found: &[u8]| found.iter().all(|byte| *byte == 0x5a);
    let kept_but_first = |found: &[u8]| found[1..].iter().all(|byte| *byte == 0x5a);
    let at = bytes.chunks_exact(4096).position(kept).unwrap() * 4096;
    bytes[at] ^= 1;
    std::fs::write(&block, bytes).unwrap();
    let mut volume = open(directory.path());
    let retention = Retention {
        window_bytes: 1 << 20,
        ..Retention::default()
    };
    volume.with(|head| head.store_mut().set_retention(retention));
    for _ in 0..40 {
        let operation = Operation::Write {
            offset: 1024 * 4096,
            data: vec![1; 60 * 4096].into(),
            fua: false,
        };
        assert_eq!(run(&mut volume, operation), Outcome::Done);
        volume.with(VolumeHead::tidy);
    }
    assert!(!segments(1).is_empty(), "the others were compacted");
    let live =
        |path: &Path| std::fs::read(path).is_ok_and(|bytes| bytes.chunks(4096).any(kept_but_first));
    assert!(live(&block), "the block's segment stays");
    assert!(live(&footer), "and that of the footer");
    volume.poll(&mut Vec::new());
    assert_eq!(lost(&volume).len(), 1);
}
