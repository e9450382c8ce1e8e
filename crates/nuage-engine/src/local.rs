//! Volumes in directories of this machine.

use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nuage_disk::{FileDisk, Method, link_file};
use nuage_journal::{Cipher, Disk, JournalError, Now, Store, TailRule, VolumeSpec, VolumeUuid};

use crate::device::Volume;
use crate::head::{Clock, HeadOptions, VolumeHead, first_epoch};

/// The machine's clocks. All of a process agree: what several heads share is counted by them.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

static START: OnceLock<Instant> = OnceLock::new();

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            start: *START.get_or_init(Instant::now),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            monotonic_ns: self.start.elapsed().as_nanos() as u64,
            unix_ns: unix.as_nanos() as u64,
        }
    }
}

/// Make an empty volume in `directory`.
pub fn create_volume(directory: &Path, spec: &VolumeSpec) -> Result<(), JournalError> {
    Store::create(&mut FileDisk::open(directory, Method::Threads)?, spec)
}

/// Make an empty copy of a volume that has others: it vouches for nothing until it has everything, and
/// no head of a term before `term` may write to it.
pub fn create_to_join(directory: &Path, spec: &VolumeSpec, term: u64) -> Result<(), JournalError> {
    let mut disk = FileDisk::open(directory, Method::Threads)?;
    Store::create_to_join(&mut disk, spec, first_epoch(term))
}

/// Open the only copy of a volume and lead it. The cipher is wanted when it is encrypted.
pub fn open_volume(
    directory: &Path,
    cipher: Option<Cipher>,
    options: HeadOptions,
    clock: Rc<dyn Clock>,
) -> Result<Volume<FileDisk>, JournalError> {
    let disk = FileDisk::open(directory, Method::Best)?;
    let store = Store::open(disk, cipher, TailRule::Only)?;
    Ok(Volume::new(VolumeHead::open(store, options, clock)?))
}

/// Make `target` a new volume that begins as `store`'s was after `seq`: at once, sharing its segments
/// (both directories on one file system). The clone has the same data key. Made of the same moment of
/// any copy, clones are copies of each other. `joins`: the clone has been written to elsewhere since, up to this term.
pub fn clone_store(
    store: &mut Store<FileDisk>,
    seq: u64,
    target: &Path,
    uuid: VolumeUuid,
    created_ns: u64,
    joins: Option<u64>,
) -> Result<(), JournalError> {
    let parts = store.clone_parts(seq, uuid, created_ns, joins.map(first_epoch))?;
    let mut disk = FileDisk::open(target, Method::Threads)?;
    if !disk.list_now()?.is_empty() {
        return Err(JournalError::NotThisVolume(
            "the directory is not empty".into(),
        ));
    }
    let source = store.disk_mut().path().to_owned();
    for name in &parts.shared {
        link_file(&source, name, target)?;
    }
    for (name, bytes) in &parts.files {
        disk.replace_now(name, bytes)?;
    }
    Ok(())
}
