//! What the journal may expect of a disk, asked of all three: files by `io_uring`, files by threads, and the
//! simulator's.
#![allow(clippy::unwrap_used)]

mod places;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;

use nuage_block::{Buffer, Pages};
use nuage_journal::{BLOCK_BYTES, Disk, DiskError, DiskOperation, DiskResult, FileId, Piece};

use places::{Place, Ring, Simulated, Threads};

const BLOCK: u64 = BLOCK_BYTES as u64;
const FILE_BLOCKS: u64 = 16;
const FILE_BYTES: usize = 16 * BLOCK_BYTES;
const SECTOR_BYTES: usize = 512;

fn filled(byte: u8, blocks: usize) -> Pages {
    let mut buffer = Buffer::zeroed(blocks * BLOCK_BYTES);
    buffer.fill(byte);
    buffer.into()
}

fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().all(|found| *found == byte)
}

fn with_file<P: Place>(place: &P) -> (P::Disk, FileId) {
    let mut disk = place.open();
    disk.prepare_now("seg.0", FILE_BLOCKS * BLOCK).unwrap();
    let file = disk.open_now("seg.0").unwrap();
    (disk, file)
}

/// Submit one operation and wait for its result.
fn perform<P: Place>(disk: &mut P::Disk, operation: DiskOperation) -> Result<Vec<u8>, DiskError> {
    disk.submit(7, operation);
    let mut results: Vec<DiskResult> = Vec::new();
    disk.poll(&mut results);
    while results.is_empty() {
        P::wait(disk);
        disk.poll(&mut results);
    }
    assert_eq!((results.len(), results[0].token), (1, 7));
    results.remove(0).outcome
}

fn write(file: FileId, block: u64, buffers: Vec<Pages>) -> DiskOperation {
    DiskOperation::Write {
        file,
        offset: block * BLOCK,
        buffers,
    }
}

fn read(file: FileId, block: u64, blocks: usize) -> DiskOperation {
    let length = blocks * BLOCK_BYTES;
    let piece = Piece {
        file,
        offset: block * BLOCK,
        length,
        at: 0,
    };
    DiskOperation::Read {
        pieces: vec![piece],
        buffer: vec![0xee; length],
    }
}

fn replace(name: &str, content: &'static [u8]) -> DiskOperation {
    DiskOperation::Replace {
        name: name.to_owned(),
        content: Box::new(move |write| content.chunks(3).for_each(&mut *write)),
    }
}

fn prepare(name: &str, written: bool) -> DiskOperation {
    DiskOperation::Prepare {
        name: name.to_owned(),
        size_bytes: FILE_BLOCKS * BLOCK,
        written,
    }
}

fn prepared_space_reads_as_zeros_over_what_was_there<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    for written in [false, true] {
        perform::<P>(&mut disk, write(file, 3, vec![filled(9, 1)])).unwrap();
        perform::<P>(&mut disk, prepare("seg.0", written)).unwrap();
        let anew = disk.open_now("seg.0").unwrap();
        let whole = disk.read_now(anew, 0, FILE_BYTES);
        assert!(is_all(&whole.unwrap(), 0));
        disk.close(anew);
    }
    assert_eq!(disk.list_now().unwrap(), ["seg.0"]);
    assert!(disk.free_bytes().unwrap() > 0);
}

fn what_is_written_is_read_whole_and_its_neighbours_stay<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    disk.write_now(file, BLOCK, &filled(1, 4)).unwrap();
    // From the middle of a buffer, as a large write is lent.
    let lent = filled(5, 3).bytes().slice(BLOCK_BYTES..2 * BLOCK_BYTES);
    let middle = Pages::of(lent).unwrap();
    let written = write(file, 2, vec![filled(4, 1), middle]);
    assert_eq!(perform::<P>(&mut disk, written), Ok(Vec::new()));
    let expected = [(0, 0), (1, 1), (2, 4), (3, 5), (4, 1), (5, 0)];
    let cached = perform::<P>(&mut disk, read(file, 0, 6)).unwrap();
    let medium = disk.read_now(file, 0, 6 * BLOCK_BYTES).unwrap();
    for (at, byte) in expected {
        assert!(is_all(&cached[at * BLOCK_BYTES..][..BLOCK_BYTES], byte));
        assert!(is_all(&medium[at * BLOCK_BYTES..][..BLOCK_BYTES], byte));
    }
    let odd = disk.read_now(file, 2 * BLOCK, BLOCK_BYTES + 100).unwrap();
    assert_eq!(odd.len(), BLOCK_BYTES + 100);
    assert!(is_all(&odd[..BLOCK_BYTES], 4) && is_all(&odd[BLOCK_BYTES..], 5));
}

fn pieces_past_what_was_written_become_part_of_the_buffer<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    for block in 0..4 {
        let byte = u8::try_from(block + 1).unwrap();
        disk.write_now(file, block * BLOCK, &filled(byte, 1))
            .unwrap();
    }
    let piece = |block: u64, blocks: usize, at: usize| Piece {
        file,
        offset: block * BLOCK,
        length: blocks * BLOCK_BYTES,
        at: at * BLOCK_BYTES,
    };
    // One block is there and stays, the first piece lies half in it, and they come in any order.
    for (written, pieces, expected) in [
        (0, vec![piece(0, 4, 0)], [1, 2, 3, 4]),
        (1, vec![piece(3, 1, 3), piece(0, 2, 1)], [0xee, 1, 2, 4]),
        (2, vec![piece(1, 3, 1)], [0xee, 2, 3, 4]),
    ] {
        let mut buffer = Vec::with_capacity(4 * BLOCK_BYTES);
        buffer.resize(written * BLOCK_BYTES, 0xee);
        let found = perform::<P>(&mut disk, DiskOperation::Read { pieces, buffer }).unwrap();
        assert_eq!(found.len(), 4 * BLOCK_BYTES);
        for (block, byte) in found.chunks(BLOCK_BYTES).zip(expected) {
            assert!(is_all(block, byte));
        }
    }
}

fn what_is_not_there_is_told<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    let past = perform::<P>(&mut disk, read(file, FILE_BLOCKS, 1));
    assert!(matches!(past, Err(DiskError::Short { .. })), "{past:?}");
    let is_missing = |outcome: Result<(), DiskError>| {
        assert!(matches!(outcome, Err(DiskError::NotFound { .. })));
    };
    is_missing(disk.open_now("seg.1").map(drop));
    is_missing(disk.load_now("seg.1").map(drop));
    disk.close(file);
    is_missing(perform::<P>(&mut disk, read(file, 0, 1)).map(drop));
    is_missing(perform::<P>(&mut disk, write(file, 0, vec![filled(1, 1)])).map(drop));
    is_missing(disk.read_now(file, 0, 1).map(drop));
    is_missing(disk.write_now(file, 0, &filled(1, 1)));
}

fn a_file_is_replaced_whole<P: Place>(place: &P) {
    let mut disk = place.open();
    disk.replace_now("super.a", b"the first, a longer one")
        .unwrap();
    perform::<P>(&mut disk, replace("super.a", b"the second")).unwrap();
    perform::<P>(&mut disk, replace("super.b", b"another")).unwrap();
    assert_eq!(disk.load_now("super.a").unwrap(), b"the second");
    let found: BTreeSet<String> = disk.list_now().unwrap().into_iter().collect();
    assert_eq!(found, ["super.a", "super.b"].map(String::from).into());
    disk.remove_now("super.a").unwrap();
    assert_eq!(disk.list_now().unwrap(), ["super.b"]);
}

fn what_completed_is_there_after_reopening_and_the_rest_is_old_or_new<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    disk.write_now(file, 0, &filled(1, FILE_BYTES / BLOCK_BYTES))
        .unwrap();
    for block in 0..FILE_BLOCKS {
        disk.submit(block + 1, write(file, block, vec![filled(2, 1)]));
    }
    let mut results = Vec::new();
    disk.poll(&mut results);
    while results.len() < 3 {
        P::wait(&disk);
        disk.poll(&mut results);
    }
    let completed: BTreeSet<u64> = results.iter().map(|result| result.token - 1).collect();
    drop(disk);
    let mut disk = place.open();
    assert!(matches!(
        disk.read_now(file + 100, 0, 1),
        Err(DiskError::NotFound { .. })
    ));
    let file = disk.open_now("seg.0").unwrap();
    for block in 0..FILE_BLOCKS {
        let found = disk.read_now(file, block * BLOCK, BLOCK_BYTES).unwrap();
        for sector in found.chunks(SECTOR_BYTES) {
            let is_new = is_all(sector, 2);
            assert!(is_new || (is_all(sector, 1) && !completed.contains(&block)));
        }
    }
}

fn a_write_that_fails_is_told_and_the_next_one_lands<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    let broken = place.break_next_write(&mut disk, file);
    let failed = perform::<P>(&mut disk, write(broken, 0, vec![filled(3, 2)]));
    assert!(matches!(failed, Err(DiskError::Io { .. })), "{failed:?}");
    perform::<P>(&mut disk, write(file, 0, vec![filled(4, 2)])).unwrap();
    assert!(is_all(&disk.read_now(file, 0, 2 * BLOCK_BYTES).unwrap(), 4));
}

fn a_full_disk_takes_no_new_file_and_keeps_none_in_part<P: Place>(place: &P) {
    let (mut disk, file) = with_file(place);
    for written in [false, true] {
        place.fill_up(&["seg.1", "checkpoint.1.tmp"]);
        let prepared = perform::<P>(&mut disk, prepare("seg.1", written));
        assert_eq!(prepared, Err(DiskError::NoSpace));
        let replaced = perform::<P>(&mut disk, replace("checkpoint.1", b"much"));
        assert_eq!(replaced, Err(DiskError::NoSpace));
        assert_eq!(disk.list_now().unwrap(), ["seg.0"]);
        // What it has is written over as ever.
        perform::<P>(&mut disk, write(file, 1, vec![filled(8, 1)])).unwrap();
        place.make_room();
        perform::<P>(&mut disk, prepare("seg.1", written)).unwrap();
        perform::<P>(&mut disk, replace("checkpoint.1", b"much")).unwrap();
        disk.remove_now("seg.1").unwrap();
        disk.remove_now("checkpoint.1").unwrap();
    }
    assert!(is_all(&disk.read_now(file, BLOCK, BLOCK_BYTES).unwrap(), 8));
}

macro_rules! of_each_disk {
    ($($case:ident)*) => {$(
        mod $case {
            use super::{Place as _, Ring, Simulated, Threads};

            #[test]
            fn by_the_ring() {
                super::$case(&Ring::new());
            }

            #[test]
            fn by_threads() {
                super::$case(&Threads::new());
            }

            #[test]
            fn simulated() {
                super::$case(&Simulated::new());
            }
        }
    )*};
}

of_each_disk! {
    prepared_space_reads_as_zeros_over_what_was_there
    what_is_written_is_read_whole_and_its_neighbours_stay
    pieces_past_what_was_written_become_part_of_the_buffer
    what_is_not_there_is_told
    a_file_is_replaced_whole
    what_completed_is_there_after_reopening_and_the_rest_is_old_or_new
    a_write_that_fails_is_told_and_the_next_one_lands
    a_full_disk_takes_no_new_file_and_keeps_none_in_part
}
