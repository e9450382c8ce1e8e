//! Where each disk lies, and how it is made to fail.

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::rc::Rc;

use nuage_disk::{FileDisk, Method};
use nuage_journal::{Disk, FileId};
use nuage_sim_storage::{Medium, SimDisk};
use tempfile::TempDir;

/// What outlives a disk that is closed and opened again.
pub trait Place {
    type Disk: Disk;

    fn new() -> Self;
    fn open(&self) -> Self::Disk;
    /// Sleep until `poll` has results.
    fn wait(disk: &Self::Disk);
    /// The file whose next write fails as on a bad sector.
    fn break_next_write(&self, disk: &mut Self::Disk, file: FileId) -> FileId;
    /// There is no room for new files, these among them.
    fn fill_up(&self, names: &[&str]);
    fn make_room(&self);
}

/// A file each write to which gives EIO: nothing is ever mapped at the first page of a process.
fn broken_file(folder: &Path, disk: &mut FileDisk) -> FileId {
    symlink("/proc/self/mem", folder.join("broken")).unwrap();
    disk.open_now("broken").unwrap()
}

/// Each write to these gives ENOSPC. Making them anew takes the link away, and so does giving up.
fn fill_up(folder: &Path, names: &[&str]) {
    for name in names {
        symlink("/dev/full", folder.join(name)).unwrap();
    }
}

macro_rules! place_of_files {
    ($name:ident, $method:expr) => {
        pub struct $name(TempDir);

        impl Place for $name {
            type Disk = FileDisk;

            fn new() -> Self {
                Self(tempfile::tempdir().unwrap())
            }

            fn open(&self) -> FileDisk {
                let disk = FileDisk::open(self.0.path(), $method).unwrap();
                assert!($method == Method::Best || !disk.has_ring());
                disk
            }

            fn wait(disk: &FileDisk) {
                crate::support::wait(disk);
            }

            fn break_next_write(&self, disk: &mut FileDisk, _: FileId) -> FileId {
                broken_file(self.0.path(), disk)
            }

            fn fill_up(&self, names: &[&str]) {
                fill_up(self.0.path(), names);
            }

            fn make_room(&self) {}
        }
    };
}

place_of_files!(Ring, Method::Best);
place_of_files!(Threads, Method::Threads);

pub struct Simulated(Rc<RefCell<Medium>>);

impl Place for Simulated {
    type Disk = SimDisk;

    fn new() -> Self {
        Self(Medium::new(11))
    }

    fn open(&self) -> SimDisk {
        SimDisk::new(&self.0, 12)
    }

    /// It has results whenever it is polled, some polls later at most.
    fn wait(_: &SimDisk) {}

    fn break_next_write(&self, _: &mut SimDisk, file: FileId) -> FileId {
        self.0.borrow_mut().fail_next_write = true;
        file
    }

    fn fill_up(&self, _: &[&str]) {
        self.0.borrow_mut().is_full = true;
    }

    fn make_room(&self) {
        self.0.borrow_mut().is_full = false;
    }
}
