//! Fills the journal of a new volume so that every block of its first GiB is mapped, for benchmarks of large
//! volumes on small disks: `nuage-mapped-volume JOURNAL GIB [scattered]`.
//!
//! The volume, its log, index and checkpoint are real and any daemon opens them. Only the blocks are zeros
//! that are never written: the files have holes there. `scattered`: block by block in an order in which no two
//! neighbours lie beside each other, otherwise in runs of 1 MiB.
#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use nuage_block::{BlockDevice, Completion, Operation, Outcome, Pages, Request};
use nuage_disk::{FileDisk, Method};
use nuage_engine::{AckMode, HeadOptions, SystemClock, Volume, VolumeHead};
use nuage_journal::{
    BLOCK_BYTES, Disk, DiskError, DiskOperation, DiskResult, FileId, Store, TailRule,
};

const RUN_BYTES: usize = 1 << 20;
/// Odd and about the golden part of a GiB's blocks: neighbours come far from each other.
const SCATTER: u64 = 161_803;
const IN_FLIGHT_MAX: u64 = 64;

/// A directory whose files have holes where zeros would be. Nothing in it survives a crash.
struct HollowDisk {
    inner: FileDisk,
    path: PathBuf,
    results: Vec<DiskResult>,
}

impl HollowDisk {
    fn write(&mut self, file: FileId, offset: u64, buffers: &[Pages]) -> Result<(), DiskError> {
        let mut at = offset;
        for buffer in buffers {
            if buffer.iter().any(|byte| *byte != 0) {
                self.inner.write_now(file, at, buffer)?;
            }
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn hollow_file(&self, name: &str, size_bytes: u64) -> Result<(), DiskError> {
        let file = std::fs::File::create(self.path.join(name));
        let made = file.and_then(|file| file.set_len(size_bytes));
        made.map_err(|error| DiskError::Io {
            operation: "prepare",
            name: name.to_owned(),
            reason: error.to_string(),
        })
    }
}

impl Disk for HollowDisk {
    fn submit(&mut self, token: u64, operation: DiskOperation) {
        let outcome = match operation {
            DiskOperation::Write {
                file,
                offset,
                buffers,
            } => self.write(file, offset, &buffers),
            DiskOperation::Prepare {
                name, size_bytes, ..
            } => self.hollow_file(&name, size_bytes),
            // Checkpoints on the way would take more than the log; the one at the end is written.
            DiskOperation::Replace { .. } => Ok(()),
            read @ DiskOperation::Read { .. } => return self.inner.submit(token, read),
        };
        let outcome = outcome.map(|()| Vec::new());
        self.results.push(DiskResult { token, outcome });
    }

    fn poll(&mut self, results: &mut Vec<DiskResult>) {
        results.append(&mut self.results);
        self.inner.poll(results);
    }

    fn wake_fd(&self) -> Option<i32> {
        self.inner.wake_fd()
    }

    fn list_now(&mut self) -> Result<Vec<String>, DiskError> {
        self.inner.list_now()
    }

    fn open_now(&mut self, name: &str) -> Result<FileId, DiskError> {
        self.inner.open_now(name)
    }

    fn close(&mut self, file: FileId) {
        self.inner.close(file);
    }

    fn read_now(&mut self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        self.inner.read_now(file, offset, length)
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &Pages) -> Result<(), DiskError> {
        self.inner.write_now(file, offset, data)
    }

    fn load_now(&mut self, name: &str) -> Result<Vec<u8>, DiskError> {
        self.inner.load_now(name)
    }

    fn replace_now(&mut self, name: &str, data: &[u8]) -> Result<(), DiskError> {
        self.inner.replace_now(name, data)
    }

    fn prepare_now(&mut self, name: &str, size_bytes: u64) -> Result<(), DiskError> {
        self.hollow_file(name, size_bytes)
    }

    fn remove_now(&mut self, name: &str) -> Result<(), DiskError> {
        self.inner.remove_now(name)
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        self.inner.free_bytes()
    }
}

fn write_all(device: &mut dyn BlockDevice, offsets: impl Iterator<Item = u64>, bytes: usize) {
    let mut completions: Vec<Completion> = Vec::new();
    let mut in_flight = 0;
    for (tag, offset) in (0..).zip(offsets) {
        let operation = Operation::Write {
            offset,
            data: vec![0; bytes].into(),
            fua: false,
        };
        device.submit(Request { tag, operation });
        in_flight += 1;
        while in_flight >= IN_FLIGHT_MAX || !completions.is_empty() {
            in_flight -= completions.len() as u64;
            for completion in completions.drain(..) {
                assert_eq!(completion.outcome, Outcome::Done);
            }
            device.poll(&mut completions);
        }
    }
    while in_flight > 0 {
        device.poll(&mut completions);
        in_flight -= completions.drain(..).count() as u64;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: nuage-mapped-volume JOURNAL GIB [scattered]";
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or(usage)?;
    let size = arguments.next().ok_or(usage)?.parse::<u64>()? << 30;
    let scattered = arguments.next().is_some();
    let disk = HollowDisk {
        inner: FileDisk::open(Path::new(&path), Method::Threads)?,
        path: path.into(),
        results: Vec::new(),
    };
    let options = HeadOptions {
        name: Arc::from("filler"),
        mode: AckMode::WriteBack,
        term: 1,
        head: "filler".into(),
        accepts_loss: false,
    };
    let begun = Instant::now();
    let store = Store::open(disk, None, TailRule::Only)?;
    let mut volume = Volume::new(VolumeHead::open(
        store,
        options,
        Rc::new(SystemClock::default()),
    )?);
    if scattered {
        let blocks = size / BLOCK_BYTES as u64;
        let order = (0..blocks).map(|at| at * SCATTER % blocks * BLOCK_BYTES as u64);
        write_all(&mut volume, order, BLOCK_BYTES);
    } else {
        let runs = (0..size).step_by(RUN_BYTES);
        write_all(&mut volume, runs, RUN_BYTES);
    }
    let head = volume.into_head().ok_or("the volume has views")?;
    let store = head.close()?;
    let mapped = store.state().index.mapped();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{mapped} blocks mapped in {seconds:.1} s");
    Ok(())
}
