//! Identity and promise of a copy lie on its disk twice (docs/protocols/journal.md §1).
//!
//! Both are written at each change before anything is said of it, one after the other, each by a rename. So one of
//! them is enough, whichever it is: it says all that was ever told. One that is older was left by a crash between the
//! two, or its write was lost; one that cannot be read rotted, for a rename is not torn. Both are made anew then.
//! Were they written in turn, the loss of the newer one would take back a promise: two heads could find an ear here.

use crate::checkpoint::Superblock;
use crate::disk::{Disk, DiskError};
use crate::error::JournalError;
use crate::store::Store;

pub(crate) const SUPERBLOCKS: [&str; 2] = ["super.a", "super.b"];

/// What the superblocks say, and whether both are there and say the same.
pub(crate) fn read_superblocks<D: Disk>(disk: &mut D) -> Result<(Superblock, bool), JournalError> {
    let mut found: Vec<Superblock> = Vec::new();
    let mut unread = None;
    for name in SUPERBLOCKS {
        match disk.load_now(name) {
            Ok(bytes) => found.extend(Superblock::decode(&bytes)),
            Err(DiskError::NotFound { .. }) => {}
            Err(error) => unread = Some(error),
        }
    }
    let are_alike = found.len() == SUPERBLOCKS.len() && found[0] == found[1];
    if found.iter().any(|one| one.volume != found[0].volume) {
        return Err(JournalError::NotThisVolume(
            "the superblocks are of two volumes".into(),
        ));
    }
    let newest = found.into_iter().max_by_key(|found| found.generation);
    match (newest, unread) {
        (Some(newest), _) => Ok((newest, are_alike)),
        // The next try may find it.
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(JournalError::NotThisVolume("no valid superblock".into())),
    }
}

impl<D: Disk> Store<D> {
    /// Durable on return.
    pub(crate) fn write_superblock(&mut self) -> Result<(), JournalError> {
        self.superblock.previous = *blake3::hash(&self.superblock.encode()).as_bytes();
        self.superblock.generation += 1;
        let data = self.superblock.encode();
        for name in SUPERBLOCKS {
            let written = self.disk.replace_now(name, &data);
            written.map_err(|error| self.fail(error.into()))?;
        }
        Ok(())
    }

    /// Write one of them as it was said before. False: the disk has no room now, and the other one does.
    pub(crate) fn mend_superblock(&mut self, name: &str) -> Result<bool, JournalError> {
        match self.disk.replace_now(name, &self.superblock.encode()) {
            Ok(()) => Ok(true),
            Err(DiskError::NoSpace) => Ok(false),
            Err(error) => Err(self.fail(error.into())),
        }
    }
}
