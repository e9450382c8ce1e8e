//! Compaction that breaks off among the checkpoints, by a crash or by a full disk, costs no block of the present or the past.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{BlockDevice, Completion, Operation, Outcome, Pages, Request};
use nuage_disk::{FileDisk, Method};
use nuage_engine::{AckMode, HeadOptions, SystemClock, Volume, VolumeHead, create_volume};
use nuage_journal::{
    BLOCK_BYTES, Disk, DiskError, DiskOperation, DiskResult, FileId, Point, Retention, Store,
    TailRule, VolumeSpec,
};

const SIZE: u64 = 512 << 10;
const BLOCKS: u64 = SIZE / BLOCK_BYTES as u64;
const HOT_BLOCKS: u64 = 16;

/// How often a checkpoint is still replaced before `NoSpace`, or before everything fails.
#[derive(Clone, Default)]
struct Fuse {
    left: Rc<Cell<Option<u32>>>,
    is_crash: bool,
    dead: Rc<Cell<bool>>,
}

struct FusedDisk {
    inner: FileDisk,
    fuse: Fuse,
}

impl FusedDisk {
    fn alive(&self) -> Result<(), DiskError> {
        if self.fuse.dead.get() {
            return Err(DiskError::Io {
                operation: "any",
                name: String::new(),
                reason: "power is gone".into(),
            });
        }
        Ok(())
    }
}

impl Disk for FusedDisk {
    fn submit(&mut self, token: u64, operation: DiskOperation) {
        self.inner.submit(token, operation);
    }

    fn poll(&mut self, results: &mut Vec<DiskResult>) {
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
        self.alive()?;
        self.inner.write_now(file, offset, data)
    }

    fn load_now(&mut self, name: &str) -> Result<Vec<u8>, DiskError> {
        self.inner.load_now(name)
    }

    fn replace_now(&mut self, name: &str, data: &[u8]) -> Result<(), DiskError> {
        self.alive()?;
        if name.starts_with("checkpoint.")
            && let Some(left) = self.fuse.left.get()
        {
            self.fuse.left.set(left.checked_sub(1));
            if left == 0 && !self.fuse.is_crash {
                return Err(DiskError::NoSpace);
            }
            self.fuse.dead.set(left == 0);
            self.alive()?;
        }
        self.inner.replace_now(name, data)
    }

    fn prepare_now(&mut self, name: &str, size_bytes: u64) -> Result<(), DiskError> {
        self.inner.prepare_now(name, size_bytes)
    }

    fn remove_now(&mut self, name: &str) -> Result<(), DiskError> {
        self.alive()?;
        self.inner.remove_now(name)
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        self.inner.free_bytes()
    }
}

fn open(path: &Path, fuse: &Fuse) -> Volume<FusedDisk> {
    let disk = FusedDisk {
        inner: FileDisk::open(path, Method::Threads).unwrap(),
        fuse: fuse.clone(),
    };
    let options = HeadOptions {
        name: Arc::from("v"),
        mode: AckMode::WriteBack,
        term: 1,
        head: "test".into(),
        accepts_loss: false,
    };
    let store = Store::open(disk, None, TailRule::Only).unwrap();
    let clock = Rc::new(SystemClock::default());
    let volume = Volume::new(VolumeHead::open(store, options, clock).unwrap());
    let retention = Retention {
        window_bytes: 6 << 20,
        ..Retention::default()
    };
    volume.with(|head| head.store_mut().set_retention(retention));
    volume
}

fn run(device: &mut dyn BlockDevice, operation: Operation) -> Outcome {
    device.submit(Request { tag: 1, operation });
    let mut completions: Vec<Completion> = Vec::new();
    while completions.is_empty() {
        device.poll(&mut completions);
    }
    completions.remove(0).outcome
}

fn read_all(device: &mut dyn BlockDevice) -> Vec<u8> {
    let length = SIZE as u32;
    match run(device, Operation::Read { offset: 0, length }) {
        Outcome::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

/// A volume, what it must hold now, and what it held after some writes.
struct Story {
    state: u64,
    /// Blocks before this one were written, if only once.
    cold: u64,
    model: Vec<u8>,
    past: Vec<(u64, Vec<u8>)>,
}

impl Story {
    fn below(&mut self, limit: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.state >> 33) % limit
    }

    /// Write the same few blocks again and again, and each other one once: soon segments are mostly dead, and all
    /// later checkpoints need what moves. False once the disk is gone.
    fn write(&mut self, volume: &mut Volume<FusedDisk>, turns: u64) -> bool {
        for turn in 0..turns {
            let is_cold = turn % 4 == 0 && self.cold < BLOCKS;
            let block = if is_cold {
                self.cold
            } else {
                self.below(HOT_BLOCKS)
            };
            self.cold += u64::from(is_cold);
            let first = block as usize * BLOCK_BYTES;
            let fill = vec![self.below(256) as u8; BLOCK_BYTES];
            self.model[first..first + BLOCK_BYTES].copy_from_slice(&fill);
            let write = Operation::Write {
                offset: first as u64,
                data: fill.into(),
                fua: false,
            };
            assert_eq!(run(volume, write), Outcome::Done);
            if turn % 16 == 0 {
                run(volume, Operation::Flush);
                let seq = volume.with(|head| head.store().applied_seq());
                self.past.push((seq, self.model.clone()));
                while !volume.with(|head| head.store().is_idle()) {
                    volume.poll(&mut Vec::new()); // a checkpoint may be on its way
                }
                volume.with(VolumeHead::tidy);
            }
            if !volume.with(|head| head.is_serving()) {
                return false;
            }
        }
        true
    }

    fn require_all(&self, volume: &mut Volume<FusedDisk>) {
        assert!(read_all(volume) == self.model, "the present");
        let horizon = volume.with(|head| head.store().horizon_seq());
        let kept = self.past.iter().filter(|(seq, _)| *seq >= horizon);
        for (seq, then) in kept.rev().step_by(4) {
            let mut view = volume.view(Point::Seq(*seq)).unwrap();
            assert!(read_all(&mut view) == *then, "the volume as after {seq}");
        }
    }
}

fn breaks_off(is_crash: bool, after: u32) {
    let directory = tempfile::tempdir().unwrap();
    let spec = VolumeSpec {
        volume: [9; 16],
        size_bytes: SIZE,
        logical_block_bytes: 512,
        segment_bytes: 256 << 10,
        encrypted: false,
        created_ns: 1,
    };
    create_volume(directory.path(), &spec).unwrap();
    let mut story = Story {
        state: u64::from(after),
        cold: HOT_BLOCKS,
        model: vec![0; SIZE as usize],
        past: Vec::new(),
    };
    let fuse = Fuse {
        left: Rc::new(Cell::new(Some(after))),
        is_crash,
        dead: Rc::default(),
    };
    let mut volume = open(directory.path(), &fuse);
    story.write(&mut volume, 2000);
    assert_eq!(fuse.left.get(), None, "no compaction came so far");
    if is_crash {
        drop(volume);
        volume = open(directory.path(), &Fuse::default());
    }
    story.require_all(&mut volume);
    // Segments that were given back are written again.
    assert!(story.write(&mut volume, 1200));
    story.require_all(&mut volume);
}

#[test]
fn a_crash_between_two_checkpoints_of_a_compaction_costs_nothing() {
    for after in 1..4 {
        breaks_off(true, after);
    }
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_compaction_costs_nothing() {
    for after in 1..4 {
        breaks_off(false, after);
    }
}
