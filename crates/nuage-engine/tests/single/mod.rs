//! A volume of one copy in a directory, driven by hand.
#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{BlockDevice, Completion, Operation, Outcome, Request};
use nuage_disk::{FileDisk, Method};
use nuage_engine::{
    AckMode, HeadOptions, SystemClock, Volume, VolumeHead, create_volume, open_volume,
};
use nuage_journal::{JournalError, Store, TailRule, VolumeSpec};

pub fn spec() -> VolumeSpec {
    VolumeSpec {
        volume: [9; 16],
        size_bytes: 8 << 20,
        logical_block_bytes: 512,
        segment_bytes: 256 << 10,
        encrypted: false,
        created_ns: 1,
    }
}

pub fn create(path: &Path) {
    create_volume(path, &spec()).unwrap();
}

pub fn options(mode: AckMode) -> HeadOptions {
    HeadOptions {
        name: Arc::from("v"),
        mode,
        term: 1,
        head: "test".into(),
        accepts_loss: false,
    }
}

pub fn open(path: &Path) -> Volume<FileDisk> {
    try_open(path).unwrap()
}

pub fn try_open(path: &Path) -> Result<Volume<FileDisk>, JournalError> {
    let clock = Rc::new(SystemClock::default());
    open_volume(path, None, options(AckMode::WriteBack), clock)
}

/// As the daemon does, which does not know yet whether there are other copies.
pub fn open_as_one_of_several(path: &Path) -> Result<Volume<FileDisk>, JournalError> {
    let disk = FileDisk::open(path, Method::Threads).unwrap();
    let store = Store::open(disk, None, TailRule::OneOfSeveral)?;
    let clock = Rc::new(SystemClock::default());
    let head = VolumeHead::open(store, options(AckMode::WriteBack), clock)?;
    Ok(Volume::new(head))
}

pub fn run(device: &mut dyn BlockDevice, operation: Operation) -> Outcome {
    device.submit(Request { tag: 1, operation });
    let mut completions: Vec<Completion> = Vec::new();
    while completions.is_empty() {
        device.poll(&mut completions);
    }
    completions.remove(0).outcome
}

pub fn write(volume: &mut dyn BlockDevice, offset: u64, data: Vec<u8>) {
    let data = data.into();
    let operation = Operation::Write {
        offset,
        data,
        fua: true,
    };
    assert_eq!(run(volume, operation), Outcome::Done);
}

pub fn read(volume: &mut dyn BlockDevice, offset: u64, length: u32) -> Outcome {
    run(volume, Operation::Read { offset, length })
}
