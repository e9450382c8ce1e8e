//! Operations far beyond what the ring holds: each comes back, and the caller is woken for it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use nuage_disk::{FileDisk, Method};
use nuage_journal::{AlignedBuffer, BLOCK_BYTES, Disk, DiskOperation, FileId};

const BLOCKS: usize = 64;
/// Well over the entries of the ring and of its completion queue.
const OPERATIONS: u64 = 5_000;
const WAKE_MS_MAX: i32 = 10_000;

fn disk_with_blocks(folder: &std::path::Path, method: Method) -> (FileDisk, FileId) {
    let mut disk = FileDisk::open(folder, method).unwrap();
    let bytes = u64::try_from(BLOCKS * BLOCK_BYTES).unwrap();
    disk.prepare_now("blocks", bytes).unwrap();
    let file = disk.open_now("blocks").unwrap();
    for block in 0..BLOCKS {
        let mut buffer = AlignedBuffer::zeroed(1);
        buffer.bytes_mut().fill(u8::try_from(block).unwrap());
        disk.write_now(file, offset_of(block), &buffer).unwrap();
    }
    (disk, file)
}

fn offset_of(block: usize) -> u64 {
    u64::try_from(block * BLOCK_BYTES).unwrap()
}

fn block_of(token: u64) -> usize {
    usize::try_from(token).unwrap() % BLOCKS
}

/// Sleep until the disk says that `poll` has results.
fn wait(disk: &FileDisk) {
    let mut wanted = libc::pollfd {
        fd: disk.wake_fd().unwrap(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid `pollfd`, and the count says so.
    let ready = unsafe { libc::poll(&raw mut wanted, 1, WAKE_MS_MAX) };
    assert_eq!(ready, 1, "nothing wakes the caller");
}

fn read_far_beyond_the_ring(method: Method) {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, file) = disk_with_blocks(folder.path(), method);
    for token in 1..=OPERATIONS {
        let read = DiskOperation::Read {
            file,
            offset: offset_of(block_of(token)),
            block_count: 1,
        };
        disk.submit(token, read);
    }
    let mut missing: BTreeSet<u64> = (1..=OPERATIONS).collect();
    let mut results = Vec::new();
    let mut empty_polls = 0;
    disk.poll(&mut results);
    while !missing.is_empty() {
        for result in results.drain(..) {
            let buffer = result.outcome.unwrap();
            let expected = u8::try_from(block_of(result.token)).unwrap();
            assert!(buffer.bytes().iter().all(|byte| *byte == expected));
            assert!(
                missing.remove(&result.token),
                "token {} twice",
                result.token
            );
        }
        if !missing.is_empty() {
            wait(&disk);
            disk.poll(&mut results);
            empty_polls = if results.is_empty() {
                empty_polls + 1
            } else {
                0
            };
            assert!(empty_polls < 1_000, "{} are missing", missing.len());
        }
    }
}

#[test]
fn reads_far_beyond_the_ring_all_come_back() {
    read_far_beyond_the_ring(Method::Best);
}

#[test]
fn reads_far_beyond_the_threads_all_come_back() {
    read_far_beyond_the_ring(Method::Threads);
}

#[test]
fn a_disk_dropped_with_unpolled_operations_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, file) = disk_with_blocks(folder.path(), Method::Best);
    for token in 1..=OPERATIONS {
        let write = DiskOperation::Write {
            file,
            offset: offset_of(block_of(token)),
            buffers: vec![Arc::new(AlignedBuffer::zeroed(1))],
        };
        disk.submit(token, write);
    }
    drop(disk);
}
