//! One of a copy's two superblocks rots: what the copy promised stays promised, and both are there again.
#![allow(clippy::unwrap_used)]

mod single;

use std::path::Path;

use nuage_disk::{FileDisk, Method};
use nuage_journal::{Disk as _, Store, TailRule};
use single::create;

const NAMES: [&str; 2] = ["super.a", "super.b"];

fn open(directory: &Path) -> Store<FileDisk> {
    let disk = FileDisk::open(directory, Method::Threads).unwrap();
    Store::open(disk, None, TailRule::OneOfSeveral).unwrap()
}

fn rot(file: &Path, how: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    match how {
        0 => bytes[60] ^= 1,
        1 => bytes.fill(0),
        2 => bytes.truncate(100),
        _ => return std::fs::remove_file(file).unwrap(),
    }
    std::fs::write(file, bytes).unwrap();
}

fn are_alike(directory: &Path) -> bool {
    let [one, other] = NAMES.map(|name| std::fs::read(directory.join(name)).unwrap());
    one == other && one.len() == 4096
}

#[test]
fn a_copy_of_which_a_superblock_rots_keeps_its_promise() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    for epoch in 1..=3 {
        for at in 0..8 {
            let (name, how) = (NAMES[at % 2], at / 2);
            let mut store = open(directory.path());
            let promised = (epoch << 16) + at as u64;
            store.promise(promised).unwrap();
            drop(store);
            rot(&directory.path().join(name), how);
            let mut store = open(directory.path());
            assert_eq!(store.superblock().promised, promised, "{name} {how}");
            assert!(store.promise(promised - 1).is_err());
            assert!(are_alike(directory.path()), "{name} {how}");
        }
    }
}

#[test]
fn a_pass_over_a_copy_finds_rotten_superblocks_and_writes_them_anew() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut store = open(directory.path());
    store.promise(7 << 16).unwrap();
    for how in 0..4 {
        for name in NAMES {
            rot(&directory.path().join(name), how);
        }
        store.begin_scrub(0);
        while !store.scrub_next().unwrap().is_over {}
        assert!(are_alike(directory.path()), "{how}");
    }
    let report = store.scrub_report();
    assert_eq!((report.found, report.mended), (8, 8));
    drop(store);
    assert_eq!(open(directory.path()).superblock().promised, 7 << 16);
}

#[test]
fn one_that_a_crash_or_an_earlier_version_left_older_is_brought_up_to_the_other() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path());
    let mut store = open(directory.path());
    store.promise(1 << 16).unwrap();
    let former = NAMES.map(|name| std::fs::read(directory.path().join(name)).unwrap());
    store.promise(2 << 16).unwrap();
    drop(store);
    for (name, former) in NAMES.iter().zip(former) {
        std::fs::write(directory.path().join(name), former).unwrap();
        assert_eq!(open(directory.path()).superblock().promised, 2 << 16);
        assert!(are_alike(directory.path()));
    }
}

#[test]
fn superblocks_of_two_volumes_are_followed_by_nobody() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    create(directory.path());
    let spec = nuage_journal::VolumeSpec {
        volume: [8; 16],
        ..single::spec()
    };
    let mut disk = FileDisk::open(other.path(), Method::Threads).unwrap();
    Store::create(&mut disk, &spec).unwrap();
    std::fs::copy(
        other.path().join("super.b"),
        directory.path().join("super.b"),
    )
    .unwrap();
    let mut disk = FileDisk::open(directory.path(), Method::Threads).unwrap();
    let files = disk.list_now().unwrap();
    assert!(Store::open(disk, None, TailRule::OneOfSeveral).is_err());
    let mut disk = FileDisk::open(directory.path(), Method::Threads).unwrap();
    assert_eq!(disk.list_now().unwrap(), files);
}
