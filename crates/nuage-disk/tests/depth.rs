//! Many operations, and operations of many pieces: each comes back whole, and the caller is woken for it.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use nuage_block::{Buffer, Pages};
use nuage_disk::{FileDisk, Method};
use nuage_journal::{BLOCK_BYTES, Disk, DiskError, DiskOperation, FileId, Piece};

const BLOCKS: usize = 64;
/// As long as several take several processors.
const LARGE_BYTES: usize = 1 << 20;
/// Well over the entries of the ring and of its completion queue.
const OPERATIONS: u64 = 5_000;

fn disk_with_blocks(folder: &std::path::Path, method: Method) -> (FileDisk, FileId) {
    let mut disk = FileDisk::open(folder, method).unwrap();
    let bytes = u64::try_from(BLOCKS * BLOCK_BYTES).unwrap();
    disk.prepare_now("blocks", bytes).unwrap();
    let file = disk.open_now("blocks").unwrap();
    for block in 0..BLOCKS {
        let mut buffer = Buffer::zeroed(BLOCK_BYTES);
        buffer.fill(u8::try_from(block).unwrap());
        disk.write_now(file, offset_of(block), &buffer.into())
            .unwrap();
    }
    (disk, file)
}

fn offset_of(block: usize) -> u64 {
    u64::try_from(block * BLOCK_BYTES).unwrap()
}

fn block_of(token: u64) -> usize {
    usize::try_from(token).unwrap() % BLOCKS
}

fn read_far_beyond_the_ring(method: Method) {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, file) = disk_with_blocks(folder.path(), method);
    for token in 1..=OPERATIONS {
        let piece = Piece {
            file,
            offset: offset_of(block_of(token)),
            length: BLOCK_BYTES,
            at: 0,
        };
        let read = DiskOperation::Read {
            pieces: vec![piece],
            buffer: vec![0; BLOCK_BYTES],
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
            assert!(buffer.iter().all(|byte| *byte == expected));
            assert!(
                missing.remove(&result.token),
                "token {} twice",
                result.token
            );
        }
        if !missing.is_empty() {
            support::wait(&disk);
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
            buffers: vec![Buffer::zeroed(BLOCK_BYTES).into()],
        };
        disk.submit(token, write);
    }
    drop(disk);
}

fn pieces_fill_one_buffer(method: Method) {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, file) = disk_with_blocks(folder.path(), method);
    // Every other block, backwards, with a gap that keeps what the caller put there.
    let pieces: Vec<Piece> = (0..BLOCKS / 2)
        .map(|at| Piece {
            file,
            offset: offset_of(BLOCKS - 1 - 2 * at),
            length: BLOCK_BYTES,
            at: (at + 1) * BLOCK_BYTES,
        })
        .collect();
    let count = pieces.len();
    let buffer = vec![0xee; (count + 1) * BLOCK_BYTES];
    disk.submit(1, DiskOperation::Read { pieces, buffer });
    let buffer = one_result(&mut disk).unwrap();
    assert!(buffer[..BLOCK_BYTES].iter().all(|byte| *byte == 0xee));
    for at in 0..count {
        let block = &buffer[(at + 1) * BLOCK_BYTES..][..BLOCK_BYTES];
        let expected = u8::try_from(BLOCKS - 1 - 2 * at).unwrap();
        assert!(block.iter().all(|byte| *byte == expected), "piece {at}");
    }
}

fn one_result(disk: &mut FileDisk) -> Result<Vec<u8>, DiskError> {
    let mut results = Vec::new();
    disk.poll(&mut results);
    while results.is_empty() {
        support::wait(disk);
        disk.poll(&mut results);
    }
    assert_eq!(results.len(), 1);
    results.remove(0).outcome
}

#[test]
fn pieces_fill_one_buffer_by_the_ring() {
    pieces_fill_one_buffer(Method::Best);
}

#[test]
fn pieces_fill_one_buffer_by_threads() {
    pieces_fill_one_buffer(Method::Threads);
}

/// Workers that the kernel has made for this thread's rings.
fn worker_count() -> usize {
    // SAFETY: no memory is handed over.
    let name = format!("iou-wrk-{}", unsafe { libc::gettid() });
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|thread| std::fs::read(thread.unwrap().path().join("comm")).ok());
    names
        .filter(|found| found.trim_ascii() == name.as_bytes())
        .count()
}

#[test]
fn large_reads_at_once_take_workers_and_one_alone_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(LARGE_BYTES).collect();
    std::fs::write(folder.path().join("large"), &bytes).unwrap();
    let mut disk = FileDisk::open(folder.path(), Method::Best).unwrap();
    if !disk.has_ring() {
        return; // the threads of the disk's own are several
    }
    let file = disk.open_now("large").unwrap();
    let read = |length| DiskOperation::Read {
        pieces: vec![Piece {
            file,
            offset: 0,
            length,
            at: 0,
        }],
        buffer: Vec::with_capacity(length),
    };
    // One past the file's end fails, and is over as well.
    disk.submit(1, read(2 * LARGE_BYTES));
    assert!(one_result(&mut disk).is_err());
    for token in 2..=3 {
        disk.submit(token, read(LARGE_BYTES));
        assert_eq!(one_result(&mut disk).unwrap(), bytes);
    }
    assert_eq!(worker_count(), 0);
    for token in 4..=7 {
        disk.submit(token, read(LARGE_BYTES));
    }
    let mut results = Vec::new();
    disk.poll(&mut results);
    while results.len() < 4 {
        support::wait(&disk);
        disk.poll(&mut results);
    }
    assert_ne!(worker_count(), 0);
    for result in results {
        assert_eq!(result.outcome.unwrap(), bytes);
    }
}

#[test]
fn a_piece_past_the_end_of_its_file_is_told() {
    for method in [Method::Best, Method::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let (mut disk, file) = disk_with_blocks(folder.path(), method);
        let piece = |block: usize| Piece {
            file,
            offset: offset_of(block),
            length: BLOCK_BYTES,
            at: (block % 2) * BLOCK_BYTES,
        };
        let pieces = vec![piece(0), piece(BLOCKS + 1)];
        let buffer = vec![0; 2 * BLOCK_BYTES];
        disk.submit(1, DiskOperation::Read { pieces, buffer });
        let outcome = one_result(&mut disk);
        assert!(
            matches!(outcome, Err(DiskError::Short { .. })),
            "{outcome:?}"
        );
    }
}

#[test]
fn what_is_written_is_read_from_the_medium_too() {
    for method in [Method::Best, Method::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let (mut disk, file) = disk_with_blocks(folder.path(), method);
        let mut block = Buffer::zeroed(BLOCK_BYTES);
        block.fill(0x77);
        let block = Pages::from(block);
        let write = DiskOperation::Write {
            file,
            offset: offset_of(3),
            buffers: vec![block.clone(), block],
        };
        disk.submit(1, write);
        one_result(&mut disk).unwrap();
        let found = disk.read_now(file, offset_of(3), 2 * BLOCK_BYTES).unwrap();
        assert!(found.iter().all(|byte| *byte == 0x77));
    }
}

#[test]
fn space_that_is_prepared_reads_as_zeros_whether_it_is_written_or_not() {
    for (written, token) in [(false, 1), (true, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let (mut disk, _) = disk_with_blocks(folder.path(), Method::Best);
        let prepare = DiskOperation::Prepare {
            name: "blocks".into(), // over what another life left there
            size_bytes: offset_of(BLOCKS),
            written,
        };
        disk.submit(token, prepare);
        one_result(&mut disk).unwrap();
        let file = disk.open_now("blocks").unwrap();
        let found = disk.read_now(file, 0, BLOCKS * BLOCK_BYTES).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_write_that_fails_is_not_called_durable() {
    for method in [Method::Best, Method::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let (mut disk, file) = disk_with_blocks(folder.path(), method);
        let write = DiskOperation::Write {
            file,
            offset: 1 << 62, // past what a file may be long
            buffers: vec![Buffer::zeroed(BLOCK_BYTES).into()],
        };
        disk.submit(1, write);
        let outcome = one_result(&mut disk);
        assert!(matches!(outcome, Err(DiskError::Io { .. })), "{outcome:?}");
    }
}

#[test]
#[should_panic(expected = "leave no gap")]
fn memory_that_nobody_fills_is_not_given_out() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, file) = disk_with_blocks(folder.path(), Method::Best);
    let piece = |at| Piece {
        file,
        offset: 0,
        length: BLOCK_BYTES,
        at,
    };
    let pieces = vec![piece(0), piece(2 * BLOCK_BYTES)];
    let buffer = Vec::with_capacity(3 * BLOCK_BYTES);
    disk.submit(1, DiskOperation::Read { pieces, buffer });
}
