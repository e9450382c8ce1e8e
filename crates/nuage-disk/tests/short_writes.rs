//! A write that the kernel cuts short is no write. A process of its own: the limit that cuts holds for all of it.
#![allow(clippy::unwrap_used)]

use nuage_block::Buffer;
use nuage_disk::{FileDisk, Method};
use nuage_journal::{BLOCK_BYTES, Disk, DiskOperation, DiskResult};

const BLOCK: u64 = BLOCK_BYTES as u64;
const WRITABLE_BLOCKS: u64 = 4;

/// Of no file in this process may anything behind so many bytes be written.
fn limit_files(bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a signal is ignored and a limit set by a valid structure; the error of a write says what happened.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

fn write(disk: &mut FileDisk, file: u32, block: u64, blocks: usize) -> DiskResult {
    disk.submit(
        1,
        DiskOperation::Write {
            file,
            offset: block * BLOCK,
            buffers: vec![Buffer::padded(&vec![7; blocks * BLOCK_BYTES]).into()],
        },
    );
    let mut results = Vec::new();
    while results.is_empty() {
        disk.poll(&mut results);
    }
    results.remove(0)
}

#[test]
fn a_write_that_is_cut_short_is_not_called_durable() {
    for method in [Method::Best, Method::Threads] {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = FileDisk::open(folder.path(), method).unwrap();
        disk.prepare_now("seg.0", 2 * WRITABLE_BLOCKS * BLOCK)
            .unwrap();
        let file = disk.open_now("seg.0").unwrap();
        limit_files(WRITABLE_BLOCKS * BLOCK);
        let cut = write(&mut disk, file, WRITABLE_BLOCKS - 1, 2);
        let whole = write(&mut disk, file, 0, 2);
        limit_files(libc::RLIM_INFINITY);
        assert!(cut.outcome.is_err(), "{method:?}: {cut:?}");
        assert!(whole.outcome.is_ok(), "{method:?}: {whole:?}");
        let found = disk.read_now(file, 0, 5 * BLOCK_BYTES).unwrap();
        let is_written = |block: usize| found[block * BLOCK_BYTES] == 7;
        let written: Vec<bool> = (0..5).map(is_written).collect();
        assert_eq!(written, [true, true, false, true, false]);
    }
}
