//! What a segment's first block says stands in its groups, too: one that rots costs nothing, and no group is written over.
#![allow(clippy::unwrap_used)]

mod single;

use std::path::{Path, PathBuf};

use nuage_block::Outcome;
use nuage_disk::FileDisk;
use nuage_engine::Volume;
use nuage_journal::JournalError;
use single::{create, open, open_as_one_of_several, read, try_open, write};

const BLOCK: usize = 4096;
/// Some segments of log, with the last one open.
const WRITES: u8 = 30;
const LENGTH: usize = 10 * BLOCK;

type Open = fn(&Path) -> Result<Volume<FileDisk>, JournalError>;
/// As an only copy is opened, and as one of several.
const WAYS: [Open; 2] = [try_open, open_as_one_of_several];

fn place(number: u8) -> u64 {
    u64::from(number) * LENGTH as u64
}

fn fill(volume: &mut Volume<FileDisk>, value: u8) {
    for number in 0..WRITES {
        let data = vec![number ^ value; LENGTH];
        write(volume, place(number % 16), data);
    }
}

fn check(volume: &mut Volume<FileDisk>, value: u8, of: &str) {
    for number in WRITES - 16..WRITES {
        let found = read(volume, place(number % 16), 40960);
        assert!(
            found == Outcome::Data(vec![number ^ value; LENGTH]),
            "{of}: write {number}"
        );
    }
}

/// Files whose first block is one of a segment in use.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| std::fs::read(path).unwrap().starts_with(b"NUAGSEG1"))
        .collect();
    found.sort_unstable();
    found
}

fn change(path: &Path, how: impl FnOnce(&mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn copy_of(from: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn a_segment_whose_first_block_rots_is_not_written_over() {
    let original = tempfile::tempdir().unwrap();
    create(original.path());
    let mut volume = open(original.path());
    fill(&mut volume, 0x40);
    drop(volume); // no checkpoint names what was written
    let count = segments(original.path()).len();
    assert!(count > 3);
    let rots: [fn(&mut [u8]); 3] = [
        |bytes| bytes[40] ^= 1,
        |bytes| bytes[..BLOCK].fill(0),
        |bytes| bytes.copy_within(9 * BLOCK..10 * BLOCK, 0),
    ];
    for (turn, rot) in (0..).zip(rots) {
        for at in [0, count / 2, count - 1] {
            for open in WAYS {
                let copy = copy_of(original.path());
                if turn == 2 {
                    let volume = open(copy.path()).unwrap();
                    volume.with(|head| head.store_mut().close().unwrap());
                }
                change(&segments(copy.path())[at], rot);
                let of = format!("rot {turn} of segment {at}");
                let mut volume = open(copy.path()).unwrap_or_else(|error| panic!("{of}: {error}"));
                check(&mut volume, 0x40, &of);
                fill(&mut volume, 0x20);
                drop(volume);
                check(&mut open(copy.path()).unwrap(), 0x20, &of);
            }
        }
    }
}

#[test]
fn several_first_blocks_that_rot_at_once_are_found_one_by_the_other() {
    for open in WAYS {
        let directory = tempfile::tempdir().unwrap();
        create(directory.path());
        let mut volume = open(directory.path()).unwrap();
        fill(&mut volume, 0x40);
        drop(volume);
        for path in segments(directory.path()) {
            change(&path, |bytes| bytes[100] ^= 8);
        }
        let mut volume = open(directory.path()).unwrap();
        check(&mut volume, 0x40, "all");
        let report = volume.with(|head| head.store().scrub_report());
        assert!(report.mended > 3, "{report:?}");
    }
}

#[test]
fn a_spare_whose_first_block_rots_is_a_spare() {
    for open in WAYS {
        let directory = tempfile::tempdir().unwrap();
        create(directory.path());
        let mut volume = open(directory.path()).unwrap();
        fill(&mut volume, 0x40);
        drop(volume);
        let mut spares = 0;
        for file in std::fs::read_dir(directory.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            if bytes.len() == 256 << 10 && !bytes.starts_with(b"NUAGSEG1") {
                change(&path, |bytes| bytes[9] ^= 1);
                spares += 1;
            }
        }
        assert!(spares > 0);
        let mut volume = open(directory.path()).unwrap();
        check(&mut volume, 0x40, "spares");
        assert!(volume.with(|head| head.store().is_whole()));
    }
}

#[test]
fn where_the_first_group_rots_too_the_copy_does_not_pass_for_the_volume() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut volume = open(directory.path());
    write(&mut volume, 0, vec![0x5a; BLOCK]);
    drop(volume);
    let spoil = |bytes: &mut [u8]| {
        bytes[40] ^= 1;
        bytes[BLOCK + 40] ^= 1;
    };
    for path in segments(directory.path()) {
        change(&path, spoil);
    }
    let refused = try_open(directory.path()).err();
    assert!(
        matches!(refused, Some(JournalError::Corrupt { .. })),
        "{refused:?}"
    );
    for _ in 0..2 {
        let refused = open_as_one_of_several(directory.path());
        assert_eq!(refused.err(), Some(JournalError::Lost));
    }
    let mut files = std::fs::read_dir(directory.path()).unwrap();
    let kept = files.any(|file| {
        let path = file.unwrap().path();
        let is_aside = path.to_string_lossy().contains("quarantine.");
        let holds = |bytes: Vec<u8>| bytes.chunks(BLOCK).any(|block| block == [0x5a; BLOCK]);
        is_aside && std::fs::read(path).is_ok_and(holds)
    });
    assert!(kept, "what had been written is kept for people");
}

#[test]
fn a_segment_that_is_named_and_cannot_be_made_anew_is_read_as_far_as_it_goes() {
    for open in WAYS {
        let directory = tempfile::tempdir().unwrap();
        create(directory.path());
        let mut volume = open(directory.path()).unwrap();
        fill(&mut volume, 0x40);
        volume.with(|head| head.store_mut().close().unwrap());
        drop(volume);
        drop(open(directory.path()).unwrap());
        // One whose blocks are still of the volume, before the checkpoint.
        let segments = segments(directory.path());
        change(&segments[segments.len() - 3], |bytes| {
            bytes[40] ^= 1;
            bytes[BLOCK + 40] ^= 1;
        });
        for _ in 0..2 {
            let mut volume = open(directory.path()).unwrap();
            check(&mut volume, 0x40, "named");
            volume.with(|head| head.store_mut().begin_scrub(0));
            while !volume.with(|head| head.store_mut().scrub_next().unwrap().is_over) {}
            let report = volume.with(|head| head.store().scrub_report());
            assert_eq!(report.lost_segments.len(), 1, "{report:?}");
        }
    }
}
